"""`python -m launch.reproduce`; see `quecc_jax.commands.reproduce`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("reproduce")
