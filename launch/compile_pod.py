"""`python -m launch.compile_pod`; see `quecc_jax.commands.compile_pod`."""

from quecc_jax.commands.compile_pod import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
