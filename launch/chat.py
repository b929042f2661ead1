"""`python -m launch.chat`; see `quecc_jax.commands.chat`."""

from quecc_jax.commands.cli import launch

if __name__ == "__main__":
    launch("chat")
