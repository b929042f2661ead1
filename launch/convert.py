"""`python -m launch.convert`; see `quecc_jax.commands.convert`."""

from quecc_jax.commands.convert import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
