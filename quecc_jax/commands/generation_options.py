"""Options of every command that generates answers."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from quecc_jax.commands.checks import check_least
from quecc_jax.config import MeshConfig
from quecc_jax.config.weights import Weights

if TYPE_CHECKING:
    from quecc_jax.generate.questions import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answering:
    """How answers are decoded, where they end, and on which devices."""

    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 decodes greedily; above 0, tokens are sampled, at 1 with the model's own probabilities."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0 for no limit."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the fewest tokens whose probabilities sum to at least this."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely to be repeated."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text that ends the answer and is not part of it; repeat the option for several."""
    seed: int = 0
    """Seed of the sampling; the same seed gives the same answer."""

    visual_tokens: int = 0
    """Visual tokens V per image, for an elastic model; 0 takes the largest V that it serves."""
    template: str = ""
    """Conversation template for the prompts, one of data.template; by default the run's own."""
    weights: Weights = "run"
    """How the model is kept and computes: `run` as the run's model.dtype says, `float32` or `bfloat16`; or with the
    matrices of the decoder's layers in 8 or 4 bits."""
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(1, 1, 1))
    """Devices per mesh axis; with several, parameters, key-value cache and batch are sharded over them. Of several
    processes each is started by the same command, as for `launch.train`."""

    def limits(self) -> "Limits":
        """The same as the library has it.

        Raises:
          UserError: a setting is out of its range.
        """
        from quecc_jax.generate.questions import Limits
        from quecc_jax.generate.sampling import Sampling, unless_greedy

        check_least(self, {"max_new_tokens": 1})
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)
        return Limits(self.max_new_tokens, self.stop, unless_greedy(sampling), self.seed)
