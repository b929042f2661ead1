"""`python -m launch.demo`; see `quecc_jax.commands.demo`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("demo")
