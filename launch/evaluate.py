"""`python -m launch.evaluate`; see `quecc_jax.commands.evaluate`."""

from quecc_jax.commands.evaluate import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
