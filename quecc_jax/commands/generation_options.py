"""The options that the commands which answer have in common."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from quecc_jax.config import MeshConfig
from quecc_jax.errors import UserError

if TYPE_CHECKING:
    from quecc_jax.generate.questions import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answering:
    """How an answer is chosen and where it ends, and on which devices."""

    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token every time; above, tokens are drawn, 1 as the model says."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0 is no limit."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens with this much probability together."""
    repetition_penalty: float = 1.0
    """Above 1, what was said already becomes less likely."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text that ends the answer and is not part of it; repeat the option for several."""
    seed: int = 0
    """Of what is drawn: the same seed, the same answer."""

    visual_tokens: int = 0
    """Tokens V that an image becomes, of those that an elastic model serves; 0 takes the most."""
    template: str = ""
    """Conversation template to ask with, one of data.template; by default the run's own."""
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(1, 1, 1))
    """Devices per mesh axis; more than one splits parameters, cache and rows by the logical rules."""

    def limits(self) -> "Limits":
        """The same as the library has it.

        Raises:
          UserError: a setting is out of its range.
        """
        from quecc_jax.generate.questions import Limits
        from quecc_jax.generate.sampling import Sampling, unless_greedy

        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens is {self.max_new_tokens}; give at least 1")
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)
        return Limits(self.max_new_tokens, self.stop, unless_greedy(sampling), self.seed)
