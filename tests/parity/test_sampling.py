"""Sampling rules against transformers' logits processors, alone and in the order of its `generate`."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from quecc_jax.generate.sampling import Sampling, process

ROWS, VOCAB = 6, 300


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"temperature": 0.6},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"repetition_penalty": 1.2, "temperature": 1.7, "top_k": 50, "top_p": 0.8},
    ],
    ids=str,
)
def test_processed_logits_are_theirs(settings):
    rng = np.random.default_rng(0)
    logits = (4 * rng.normal(size=(ROWS, VOCAB))).astype(np.float32)
    ids = rng.integers(0, VOCAB, (ROWS, 40))
    theirs = LogitsProcessorList()
    if "repetition_penalty" in settings:
        theirs.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "temperature" in settings:
        theirs.append(TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        theirs.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        theirs.append(TopPLogitsWarper(settings["top_p"]))
    scores: Any = torch.from_numpy(logits.copy())
    wanted = theirs(torch.LongTensor(ids), scores).numpy()
    seen = np.zeros((ROWS, VOCAB), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    ours = np.asarray(jax.jit(process)(logits, seen, Sampling(**settings)))
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)
