"""`python -m launch.sweep`; see `quecc_jax.commands.sweep`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("sweep")
