"""`python -m launch.chat`; see `quecc_jax.commands.chat`."""

from quecc_jax.commands.chat import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
