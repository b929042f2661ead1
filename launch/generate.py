"""`python -m launch.generate`; see `quecc_jax.commands.generate`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("generate")
