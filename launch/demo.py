"""`python -m launch.demo`; see `quecc_jax.commands.demo`."""

from quecc_jax.commands.demo import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
