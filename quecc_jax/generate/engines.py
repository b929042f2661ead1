"""The engines of one elastic model, one for each number of visual tokens that is asked for."""

import dataclasses
import threading

from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.generate.engine import Engine


class Engines:
    """Engines that share parameters and what is remembered, for any thread."""

    def __init__(self, first: Engine):
        self.first = first
        self._by_v = {first.config.model.visual_tokens: first}
        self._held = threading.Lock()

    def at(self, visual_tokens: int = 0) -> Engine:
        """The engine that answers with V visual tokens; 0 is the first one's V.

        Raises:
          UserError: the model does not make this V.
        """
        first = self.first
        if not visual_tokens:
            return first
        model = at_visual_tokens(first.config.model, visual_tokens)
        with self._held:
            if visual_tokens not in self._by_v:
                config = dataclasses.replace(first.config, model=model)
                self._by_v[visual_tokens] = Engine(
                    config, first.params, reuse=first.reuse, mesh=first.mesh, chunk=first.chunk
                )
            return self._by_v[visual_tokens]
