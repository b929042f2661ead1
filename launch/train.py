"""`python -m launch.train`; see `quecc_jax.commands.train`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("train")
