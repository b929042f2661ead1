"""Questions for the compressor: whose turn, never cut without a word, and the shapes that batches have."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from quecc_jax.config import DataConfig, DecoderConfig, ModelConfig, RopeScaling, RunConfig, SourceConfig
from quecc_jax.config.compressors import named
from quecc_jax.config.shapes import row_limit
from quecc_jax.config.validation import validate
from quecc_jax.data.bad_rows import Tally
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.sources.questions import Questions
from quecc_jax.data.sources.source import Layout
from quecc_jax.data.text.conversation import query_ids
from quecc_jax.data.text.queries import BUCKETS, SHORTEST, limit_buckets, query_buckets, question_segments
from quecc_jax.data.text.turns import query_turns
from quecc_jax.errors import BadRow, UserError
from tests.data.every_row import eval_batches
from tests.data.text.test_conversation import SHORT, row
from tests.laid_out import encode, prompt

LONG = "one two three red green blue " * 30


def words(tokenizer, ids):
    return tokenizer.hf.convert_ids_to_tokens(ids.tolist())


def test_a_question_is_never_cut_unless_a_limit_says_so(tokenizer):
    whole = dataclasses.replace(SHORT, max_length=512, query_length=0)
    made = encode(row(f"<image> {LONG}", "red", image=1), tokenizer, whole, 1)
    assert words(tokenizer, made.queries) == ["<bos>", *LONG.split()] and made.query_cut == 0
    cut = encode(
        row("<image> one two three", "red", image=1), tokenizer, dataclasses.replace(SHORT, query_length=2), 1
    )
    assert words(tokenizer, cut.queries) == ["<bos>", "one"] and cut.query_cut == 2


def test_a_turn_of_nothing_but_placeholders_is_bos_alone_as_in_the_original(tokenizer, monkeypatch):
    made = encode(row("<image>", "red", image=1), tokenizer, SHORT, 1)
    assert made.queries.tolist() == [tokenizer.bos_token_id] and made.query_ends.tolist() == [0]
    none = encode(row("one?", "red"), tokenizer, SHORT, 1)
    assert none.queries.shape == none.query_ends.shape == (0,)
    # Without a BOS the original reads a padding token's state: its word for no question stands in.
    monkeypatch.setattr(tokenizer, "bos_token_id", None)
    assert words(tokenizer, query_ids(" <image> ", tokenizer, SHORT)[0]) == ["image"]


@pytest.mark.parametrize(
    "turns, system, asked",
    [
        (["<image>\na", "x", "b", "y"], None, ["<image>\na"]),
        (["a", "x", "<image> b", "y"], None, ["<image> b"]),
        (["<image> a", "x", "<image><image> b", "y"], None, ["<image> a", *["<image><image> b"] * 2]),
        (["a", "<image>", "b"], None, ["a"]),
        (["a", "x", "b"], "<image>", ["a"]),
        (["a"], None, []),
    ],
)
def test_the_query_is_the_image_s_own_turn(turns, system, asked):
    assert query_turns(turns, system) == tuple(asked)


def test_every_image_has_the_query_of_its_turn_and_the_latest_where_asked(tokenizer):
    data = dataclasses.replace(SHORT, images_per_row=3)
    talk = ("<image> one", "red", "two", "blue")
    own = prompt("<image> three", 2, tokenizer, data, 1, talk)
    assert words(tokenizer, own.queries) == ["<bos>", "one", "<bos>", "three"]
    assert own.query_ends.tolist() == [1, 3]
    late = prompt("green?", 1, tokenizer, data, 1, talk, latest=True)
    assert words(tokenizer, late.queries) == ["<bos>", "green", "?"]
    # Images of one turn share its question.
    both = prompt("<image> and <image> three", 2, tokenizer, data, 1)
    assert both.query_ends.tolist() == [len(both.queries) - 1] * 2


@given(turns=st.lists(st.integers(0, 30), min_size=1, max_size=5), limit=st.integers(5, 60))
@settings(max_examples=100, deadline=None)
def test_questions_never_take_more_than_a_row_has_for_them(tokenizer, turns, limit):
    said = [text for count in turns for text in ("<image> " + "one " * count, "red")]
    data = dataclasses.replace(SHORT, max_length=limit, query_length=0, images_per_row=5, too_long="truncate")
    try:
        made = encode(row(*said, image=list(range(len(turns)))), tokenizer, data, 1)
    except BadRow:
        return
    different = dict.fromkeys(turns)
    assert len(made.queries) <= row_limit(data, len(turns)) and len(made.query_ends) == len(turns)
    assert len(made.queries) + made.query_cut == sum(1 + count for count in different)
    segments = question_segments(made.query_ends, limit)
    assert segments[: len(made.queries)].all() and not segments[len(made.queries) :].any()


READS, BLIND = ModelConfig(), ModelConfig(compressor=named("avgpool"))
LONGROPE = ModelConfig(
    decoder=DecoderConfig(
        rope_scaling=RopeScaling(
            "longrope", original_length=4096, short_factors=(1.0,) * 64, long_factors=(2.0,) * 64
        )
    )
)


@given(limit=st.integers(0, 200_000))
@settings(max_examples=300, deadline=None)
def test_few_buckets_reach_up_to_the_limit(limit):
    found = limit_buckets(limit)
    assert found[-1] == limit and list(found) == sorted(set(found)) and len(found) <= BUCKETS
    assert not any(length % SHORTEST for length in found[:-1])


def test_buckets_of_the_usual_limits():
    assert query_buckets(DataConfig(max_length=2048), READS) == (32, 128, 512, 2048)
    assert query_buckets(DataConfig(query_length=64), READS) == (64,)
    assert query_buckets(DataConfig(max_length=28), READS) == (28,)
    packed = DataConfig(query_length=64, batching="packed", packed_images=8)
    assert query_buckets(packed, READS) == (32, 128, 512)
    for data, model in ((DataConfig(), BLIND), (DataConfig(cached_queries=True), READS)):
        assert query_buckets(data, model) == (2048,)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer):
    """Rows with questions of 1 to 300 words, every fourth without an image."""
    root = tmp_path_factory.mktemp("questions")
    Image.new("RGB", (24, 24)).save(root / "a.png")
    rng, rows = np.random.default_rng(0), []
    for k in range(40):
        asked = " ".join(rng.choice(["one", "two", "red"], 1 + int(300 * rng.random() ** 12)))
        rows.append(row(f"<image>\n{asked}", "red", image="a.png") if k % 4 else row(asked, "red"))
    (root / "rows.json").write_text(json.dumps(rows))
    source = SourceConfig(path=str(root / "rows.json"), images=str(root))
    return DataConfig(
        sources=(source,),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=512,
        cache=str(root / "cache"),
    )


@pytest.mark.parametrize("batching", ["pad", "grouped", "packed"])
def test_a_batch_takes_the_shortest_bucket_and_all_hosts_the_same(data, model, batching):
    data = dataclasses.replace(data, batching=batching, packed_images=4)
    seen = set()
    with (
        make_iterator(data, model, 4, seed=1) as whole,
        make_iterator(data, model, 4, seed=1, rows=[0, 1]) as first,
        make_iterator(data, model, 4, seed=1, rows=[2, 3]) as second,
    ):
        for _ in range(12):
            batch, *parts = (next(one) for one in (whole, first, second))
            if not batch.query_ends.size:
                assert all(one.queries.shape[1] == 0 for one in (batch, *parts))
                continue
            longest, q = batch.query_ends.max() + 1, batch.queries.shape[1]
            assert q == next(size for size in (32, 128, 512) if size >= longest)
            assert [part.queries.shape[1] for part in parts] == [q, q]
            seen.add(q)
    assert len(seen) >= 2


def test_packed_rows_have_room_for_the_questions_that_a_template_leaves_out(data, model, tmp_path):
    """Captions of a few tokens under questions of 150: a row's questions may not exceed its length."""
    rows = [row(f"<image>\n{'one ' * 150}", "red", image="a.png") for _ in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = dataclasses.replace(data.sources[0], path=str(tmp_path / "rows.json"))
    data = dataclasses.replace(data, sources=(source,), template="plain", batching="packed", packed_images=8)
    most = 0
    with make_iterator(data, model, 2, seed=1) as batches:
        for _ in range(8):
            batch = next(batches)
            most = max(most, int(batch.query_segments.max()))
            assert batch.queries.shape[1] in query_buckets(data, model)
        assert not batches.tally.cut_questions
    assert most == 3


def test_questions_that_a_limit_cuts_are_counted(data, model):
    limited, tally = dataclasses.replace(data, query_length=8), Tally(data, 40)
    rows = json.loads(Path(data.sources[0].path).read_text())
    long = {
        k
        for k, one in enumerate(rows)
        if "image" in one and len(one["conversations"][0]["value"].split()) > 8
    }
    for batch in eval_batches(limited, model, 8, tally=tally):
        assert batch.queries.shape[1] == 8
    assert set(tally.cut_questions) == long and 0 < len(long) < 30
    whole = Tally(data, 40)
    assert {batch.queries.shape[1] for batch in eval_batches(data, model, 8, tally=whole)} <= {32, 128, 512}
    assert not whole.cut_questions


def test_what_a_run_does_with_long_rows_of_text_is_nothing_to_stored_queries(tokenizer):
    """A text too long to be learned has no image that it asks about."""
    rows = [row("<image>\nis it red", "red", image="a.png"), row(" ".join(["red"] * 80), "red")]
    data = DataConfig(tokenizer=tokenizer.directory, template="short", max_length=64)
    writer = Layout(tokenizer, data, 4)
    reader = writer._replace(text=dataclasses.replace(data, max_length=48))
    assert Questions(rows, reader).fingerprint() == Questions(rows, writer).fingerprint()
    assert [Questions(rows, reader).ids(k).tolist() for k in (0, 1)] == [
        query_ids("is it red", tokenizer, data)[0].tolist(),
        [],
    ]


def test_a_longrope_decoder_reads_every_question_as_a_short_text():
    config = dataclasses.replace(RunConfig(), model=LONGROPE)
    long = dataclasses.replace(config.data, max_length=8192, tokenizer="x")
    with pytest.raises(UserError, match="questions of up to 8192 tokens are more than the 4096"):
        validate(dataclasses.replace(config, data=long))
    validate(dataclasses.replace(config, data=dataclasses.replace(long, query_length=4096)))
