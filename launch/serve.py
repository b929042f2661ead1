"""`python -m launch.serve`; see `quecc_jax.commands.serve`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("serve")
