"""`python -m launch.report`; see `quecc_jax.commands.report`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("report")
