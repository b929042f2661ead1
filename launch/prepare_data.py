"""`python -m launch.prepare_data`; see `quecc_jax.commands.prepare_data`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("prepare-data")
