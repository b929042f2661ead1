"""`python -m launch.convert`; see `quecc_jax.commands.convert`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("convert")
