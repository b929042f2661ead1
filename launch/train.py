"""`python -m launch.train`; see `quecc_jax.commands.train`."""

from quecc_jax.commands.train import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
