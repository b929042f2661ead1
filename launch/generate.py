"""`python -m launch.generate`; see `quecc_jax.commands.generate`."""

from quecc_jax.commands.generate import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
