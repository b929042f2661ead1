"""`python -m launch.sweep`; see `quecc_jax.commands.sweep`."""

from quecc_jax.commands.sweep import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
