"""`python -m launch.prepare_data`; see `quecc_jax.commands.prepare_data`."""

from quecc_jax.commands.prepare_data import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
