"""`python -m launch.compare_compressors`; see `quecc_jax.commands.compare_compressors`."""

from quecc_jax.commands.compare_compressors import main
from quecc_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
