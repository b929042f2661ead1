"""Compares a whole imported model with what the original PyTorch code computed from the same files.

A directory of this form holds a checkpoint in the original's format, a tower, a tokenizer,
conversations with images, and `expected.npz`, `expected.json` and `templates.json`, see `check`.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.convert.plan import plan_export
from quecc_jax.convert.run import import_weights
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.images import load_pixels, normalise
from quecc_jax.data.references import ImageRef, image_path, image_refs
from quecc_jax.data.text.conversation import query_ids
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.load import load_vlm
from quecc_jax.models.towers.vit import split_features
from quecc_jax.models.vlm import VLM
from quecc_jax.train.step import loss_sum
from tests.generator import build_generator
from tests.laid_out import LaidOut, encode, prompt
from tests.measure import error

IMAGE = -200
"""The original's placeholder for an image in token ids."""
QUERY_TOKENS = 64


class Golden(NamedTuple):
    """An imported model, its tokenizer, and the rows that the arrays were computed from."""

    folder: Path
    run: RunConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    rows: list[dict[str, Any]]
    expected: dict[str, np.ndarray]

    @property
    def model(self) -> ModelConfig:
        """Float32 throughout, as the original ran."""
        return dataclasses.replace(self.run.model, dtype="float32", remat="none")


def check(folder: Path) -> dict[str, float]:
    """Relative errors in float32 by key, with the measure of `tests.golden_check`.

    Keys of `expected.npz` keep their names; what must agree exactly (token ids, labels, masks, greedy
    continuations, templates) has error 0 or infinity, and so has an array that nothing is compared with.
    Of `logits_*` and `templates.json` those are compared that are there.
    """
    with tempfile.TemporaryDirectory() as scratch, np.load(folder / "expected.npz") as file:
        out = Path(scratch, "run")
        import_weights(folder, out)
        run, params = load_vlm(out, weights="float32")
        tokenizer = load_tokenizer(run.data.tokenizer)
        rows = _json(folder, "conversations.json")
        golden = Golden(folder, run, params, tokenizer, rows, dict(file))
        with jax.default_matmul_precision("highest"):
            errors = {
                **_check_text(golden),
                **_check_arrays(golden),
                **_check_answers(golden),
                **_check_templates(golden),
            }
        return errors | dict.fromkeys(golden.expected.keys() - errors, math.inf)


def _json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def _exact(ours: Any, theirs: Any) -> float:
    return 0.0 if np.array_equal(np.asarray(ours), np.asarray(theirs)) else math.inf


def _data(golden: Golden, template: Any) -> DataConfig:
    length = golden.run.data.max_length
    return dataclasses.replace(
        golden.run.data, template=template, max_length=length, query_length=QUERY_TOKENS, images_per_row=1
    )


def _collapsed(made: LaidOut, visual_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids and labels with one placeholder in the place of each image's slots."""
    slots = made.slots
    keep = (slots < 0) | (slots % visual_tokens == 0)
    ids = np.where(slots < 0, made.tokens, IMAGE)
    return ids[keep].tolist(), made.labels[keep].tolist()


def _encoded(golden: Golden, template: str, rows: Iterable[dict[str, Any]]) -> list[LaidOut]:
    v, data = golden.model.visual_tokens, _data(golden, template)
    return [encode(row, golden.tokenizer, data, v) for row in rows]


def _check_text(golden: Golden) -> dict[str, float]:
    """Token ids, labels and the attention mask of the batch; the text of its queries."""
    expected, texts = golden.expected, _json(golden.folder, "expected.json")
    made = _encoded(golden, texts["system_template"], golden.rows)
    pairs = [_collapsed(one, golden.model.visual_tokens) for one in made]
    real = expected["attention_mask"]
    ids, labels = (
        [x[m].tolist() for x, m in zip(expected[k], real, strict=True)] for k in ("input_ids", "labels")
    )
    found = [golden.tokenizer.decode(_query(golden, one)) for one in made]
    same = [len(i) == int(n) for (i, _), n in zip(pairs, real.sum(axis=1), strict=True)]
    return {
        "input_ids": 0.0 if [i for i, _ in pairs] == ids else math.inf,
        "labels": 0.0 if [x for _, x in pairs] == labels else math.inf,
        "attention_mask": 0.0 if all(same) else math.inf,
        "query_text": 0.0 if found == texts["query_text"] else math.inf,
    }


def _query(golden: Golden, made: LaidOut) -> np.ndarray:
    """A row's query; of a row without an image the original's, which no token depends on."""
    if len(made.queries):
        return made.queries
    return query_ids("image", golden.tokenizer, DataConfig())[0]


def _batch(golden: Golden) -> Batch:
    """All rows, padded to the longest; a row without an image has zeros in its place, which no slot
    refers to, and the query that the original gives it."""
    template = _json(golden.folder, "expected.json")["system_template"]
    made = _encoded(golden, template, golden.rows)
    b, length = len(made), max(len(one.tokens) for one in made)
    side = golden.model.vision.image_size
    pixels = np.zeros((b, 1, side, side, 3), np.float32)
    empty = {"tokens": 0, "slots": -1, "labels": IGNORE, "positions": 0, "segments": 0}
    fields = {name: np.full((b, length), fill, np.int32) for name, fill in empty.items()}
    queries, query_segments = np.zeros((2, b, QUERY_TOKENS), np.int32)
    query_ends = np.zeros((b, 1), np.int32)
    for place, (row, one) in enumerate(zip(golden.rows, made, strict=True)):
        count = len(one.tokens)
        for name in ("tokens", "slots", "labels"):
            fields[name][place, :count] = getattr(one, name)
        fields["positions"][place, :count] = np.arange(count)
        fields["segments"][place, :count] = 1
        query = _query(golden, one)
        queries[place, : len(query)], query_segments[place, : len(query)] = query, 1
        query_ends[place] = len(query) - 1
        for image in image_refs(row):
            pixels[place, 0] = _pixels(golden, image)
    return Batch(
        queries=queries, query_segments=query_segments, query_ends=query_ends, pixels=pixels, **fields
    )


def _pixels(golden: Golden, image: ImageRef) -> np.ndarray:
    vision = golden.model.vision
    pixels = load_pixels(golden.folder / image_path(image), vision, golden.run.data.image_aspect)
    return normalise(pixels, vision.pixels)


def _check_arrays(golden: Golden) -> dict[str, float]:
    """Everything from pixels to the loss, and its gradients."""
    batch, vlm, expected, params = _batch(golden), VLM(golden.model), golden.expected, golden.params
    real = expected["spliced_mask"]

    def apply(method: Callable[..., Any], *args: Any) -> Any:
        return vlm.apply({"params": params}, *args, method=method)

    @jax.jit
    def forward(batch: Batch) -> dict[str, jax.Array]:
        states = apply(VLM.encode_image, batch.pixels)
        features = split_features(states[:, 0], golden.model.vision)
        query = apply(VLM.encode_query, batch.queries, batch.query_segments, batch.query_ends)
        logits = apply(VLM.logits, apply(VLM.__call__, batch))
        return {
            "single_level": features.single,
            "multi_level": features.multi,
            "query_feature": query,
            "visual_tokens": apply(VLM.compress, states, query).tokens[:, 0],
            "inputs_embeds": jnp.where(real[..., None], apply(VLM.splice, batch), 0),
            "logits_logsumexp": jax.nn.logsumexp(logits, axis=-1),
            "logits_every_8th_position": logits[:, ::8],
        }

    ours = jax.device_get(forward(batch))
    ours["pixel_values"] = np.asarray(batch.pixels)[:, 0].transpose(0, 3, 1, 2)
    # What the original computes at padded positions depends on how it pads.
    for name, mask in (("logits_logsumexp", real), ("logits_every_8th_position", real[:, ::8])):
        if name in expected:
            ours[name], expected[name] = ours[name][mask], expected[name][mask]
    expected["inputs_embeds"] = expected["inputs_embeds"] * real[..., None]
    errors = {name: error(a, expected[name]) for name, a in ours.items() if name in expected}
    errors["spliced_labels"] = _exact(batch.labels, np.where(real, expected["spliced_labels"], IGNORE))
    errors["spliced_mask"] = _exact(np.asarray(batch.segments) > 0, real)
    return errors | _check_gradients(golden, batch)


def _check_gradients(golden: Golden, batch: Batch) -> dict[str, float]:
    vlm, expected = VLM(golden.model), golden.expected

    @jax.jit
    @jax.value_and_grad
    def objective(params: Any) -> jax.Array:
        total, count = loss_sum(vlm, params, batch, batch.tokens.shape[1])
        return total / count

    loss, grads = jax.device_get(objective(golden.params))
    ours = original_names(golden.run, grads)
    wanted = {k: v for k, v in expected.items() if k.startswith("grad/")}
    largest = max(float(np.abs(v).max()) for v in wanted.values())
    errors = {"loss": error(loss.reshape(1), expected["loss"])}
    for key, theirs in wanted.items():
        errors[key] = error(ours[key.removeprefix("grad/")], theirs, largest)
    return errors


def original_names(run: RunConfig, tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """A tree shaped like the parameters, under the original's names and in its layouts."""
    out: dict[str, np.ndarray] = {}
    for rule in plan_export(run, "llava").rules:
        slabs = []
        for slab in rule.ours:
            leaf: Any = tree
            for key in slab.path:
                leaf = leaf[key]
            slabs.append(leaf if slab.layer is None else leaf[slab.layer])
        out |= dict(zip(rule.theirs, rule.to_theirs(tuple(slabs)), strict=True))
    return out


def _check_answers(golden: Golden) -> dict[str, float]:
    """Ids of the prompts and of their greedy continuations."""
    texts = _json(golden.folder, "expected.json")
    data, errors = _data(golden, texts["system_template"]), {}
    rows = {row["id"]: row for row in golden.rows}
    for name, wanted in texts.get("generate", {}).items():
        question = rows[name]["conversations"][0]["value"]
        images = image_refs(rows[name])
        v = golden.model.visual_tokens
        made = prompt(question, len(images), golden.tokenizer, data, v)
        ids, _ = _collapsed(made, v)
        errors[f"prompt_ids/{name}"] = 0.0 if ids == wanted["prompt_ids"] else math.inf
        # transformers puts BOS in front of what it generates from embeddings.
        greedy = wanted["greedy_ids"]
        greedy = greedy[greedy[0] == golden.tokenizer.bos_token_id :]
        length = len(made.tokens)
        batch = Batch(
            tokens=made.tokens[None],
            slots=made.slots[None],
            labels=np.full((1, length), IGNORE, np.int32),
            positions=np.arange(length, dtype=np.int32)[None],
            segments=np.ones((1, length), np.int32),
            queries=made.queries[None],
            query_segments=np.ones((1, len(made.queries)), np.int32),
            query_ends=made.query_ends[None],
            pixels=np.stack([_pixels(golden, p) for p in images])[None],
        )
        generate = build_generator(golden.model, len(greedy), golden.tokenizer.eos_token_id)
        found = np.asarray(generate(golden.params, batch))[0]
        errors[f"greedy_ids/{name}"] = _exact(found, greedy)
    return errors


def _check_templates(golden: Golden) -> dict[str, float]:
    """Ids and labels of all conversations under every template of templates.json."""
    if not (golden.folder / "templates.json").is_file():
        return {}
    rows = {row["id"]: row for row in golden.rows}
    if (golden.folder / "more_conversations.json").is_file():
        rows |= {row["id"]: row for row in _json(golden.folder, "more_conversations.json")}
    errors, v = {}, golden.model.visual_tokens
    for template, conversations in _json(golden.folder, "templates.json").items():
        for name, wanted in conversations.items():
            (made,) = _encoded(golden, template, [rows[name]])
            ids, labels = _collapsed(made, v)
            errors[f"templates/{template}/{name}/input_ids"] = 0.0 if ids == wanted["input_ids"] else math.inf
            errors[f"templates/{template}/{name}/labels"] = 0.0 if labels == wanted["labels"] else math.inf
    return errors
