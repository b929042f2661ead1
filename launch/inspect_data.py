"""`python -m launch.inspect_data`; see `quecc_jax.commands.inspect_data`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("inspect-data")
