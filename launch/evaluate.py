"""`python -m launch.evaluate`; see `quecc_jax.commands.evaluate`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("evaluate")
