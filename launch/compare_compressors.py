"""`python -m launch.compare_compressors`; see `quecc_jax.commands.compare_compressors`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("compare-compressors")
