"""`python -m launch.compile_pod`; see `quecc_jax.commands.compile_pod`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("compile-pod")
