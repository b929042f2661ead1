"""`python -m launch.compare`; see `quecc_jax.commands.compare`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("compare")
