"""The engine's answers where the instruction reads the image before the decoder does."""

import jax
import numpy as np
import pytest
from PIL import Image

from quecc_jax.data.batch import IGNORE
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.models.vlm import VLM
from tests.commands.talker import QUESTIONS, tiny_engine
from tests.laid_out import prompt
from tests.tiny import random_params

NEW, ROOM = 5, 96


@pytest.mark.parametrize("name", ["llava_mini", "quecc_plus"])
def test_answers_are_the_full_passes_choice_also_after_a_first_answer(name, tmp_path):
    engine = tiny_engine(tmp_path, name=name, fusion_layers=1)
    model, data = engine.config.model, engine.config.data
    params, vlm = random_params(engine.config, seed=5), VLM(model)
    image = engine.image(Image.new("RGB", (24, 24), "red"))
    first = Question(QUESTIONS[0], (image,))
    history = (QUESTIONS[0], engine.answers([first], Limits(NEW))[0])

    @jax.jit
    def logits(batch):
        hidden = vlm.apply({"params": params}, batch)
        return vlm.apply({"params": params}, hidden, method=VLM.logits)

    for question in (first, Question(QUESTIONS[1], (image,), history)):
        made = prompt(question.text, 1, engine.tokenizer, data, model.visual_tokens, question.history)
        length, empty = len(made.tokens), engine.batch([engine.prompt(first)], 32)
        tokens, slots, labels = (np.full((1, ROOM), fill, np.int32) for fill in (0, -1, IGNORE))
        for full, part in ((tokens, "tokens"), (slots, "slots"), (labels, "labels")):
            full[0, :length] = getattr(made, part)
        for end in range(length, length + NEW):
            batch = empty._replace(
                tokens=tokens,
                slots=slots,
                labels=labels,
                positions=np.arange(ROOM)[None],
                segments=(np.arange(ROOM) < end).astype(np.int32)[None],
                queries=made.queries[None],
                query_segments=np.ones((1, len(made.queries)), np.int32),
                query_ends=made.query_ends[None],
                pixels=image.pixels[None],
            )
            # An answer is labelled, as in training, and so left out of the pre-fusion.
            tokens[0, end] = labels[0, end] = int(np.argmax(logits(batch)[0, end - 1]))
        chosen, ends = tokens[0, length : length + NEW].tolist(), engine.ends.ids
        kept = chosen[: next((i for i, token in enumerate(chosen) if token in ends), NEW)]
        assert engine.answers([question], Limits(NEW))[0].strip() == engine.tokenizer.decode(kept).strip()
