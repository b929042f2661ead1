"""`python -m launch.inspect_data`; see `quecc_jax.commands.inspect_data`."""

from quecc_jax.commands.inspect_data import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
