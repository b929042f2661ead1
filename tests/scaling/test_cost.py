"""Costs of a query: the one FLOP counter, bytes and seconds by hand, and mistakes in words."""

import subprocess
import sys

import numpy as np
import pytest

from quecc_jax import flops
from quecc_jax.errors import UserError
from scaling import cost
from scaling.cost import Lengths, QueryConfig, Setup, find_llm, find_machine, model_config
from scaling.report.prices import counted_prices
from scaling.report.training import training_costs

LENGTHS = Lengths(text=80, answer=16, question=20)


@pytest.mark.parametrize("visual_tokens", [1, 16, 576])
def test_flops_are_those_of_the_one_counter(visual_tokens):
    config = model_config(find_llm("4"), visual_tokens)
    assert config.visual_tokens == visual_tokens
    work = cost.work_of_query(config, LENGTHS)
    assert {part: w.flops for part, w in work.items()} == flops.answer_flops(config, 20, 80, 16)
    assert tuple(work) == cost.PARTS
    assert (work["query"].flops == 0) == (visual_tokens == 576)


def test_each_encoder_of_the_question_reads_its_own_weights():
    """FLOPs, bytes and memory before Qwen-1.5-7B, counted here by hand."""
    llm, layer = find_llm("7"), 4096 * 4096 * 4 + 3 * 4096 * 11008
    text = 12 * (4 * 768**2 + 2 * 768 * 3072)
    early = QueryConfig("early_exit", 8)
    encoders = [QueryConfig(), early, QueryConfig("embeddings"), QueryConfig("clip_text")]
    whole, eight, mean, clip = (model_config(llm, 1, query) for query in encoders)
    works = [cost.work_of_query(config, LENGTHS)["query"] for config in (whole, eight, mean, clip)]
    assert [work.flops for work in works] == [
        32 * (2 * 20 * layer + 4 * 20 * 20 * 4096),
        8 * (2 * 20 * layer + 4 * 20 * 20 * 4096),
        20 * 4096,
        2 * (20 * text + 768 * 768) + 4 * 12 * 20 * 20 * 768,
    ]
    shared = [2 * 32 * layer, 2 * 8 * layer, 0, 2 * (text + 768 * 768)]
    assert [work.shared for work in works] == shared
    assert [work.own for work in works] == [0, 0, 2 * 20 * 4096, 0]
    held = [cost.memory_of(config, LENGTHS, 1) for config in (whole, eight, mean, clip)]
    # The compressor reads a narrower feature, which saves it weights.
    narrower = 2 * 1024 * (4096 - 768)
    tables = 2 * (49408 + 77) * 768
    assert held[0] == held[1] == held[2] == held[3] - (shared[3] + tables - narrower)
    # CLIP reads no more than its positions.
    long = cost.work_of_query(clip, Lengths(300, 1, 200))["query"]
    assert long == cost.work_of_query(clip, Lengths(300, 1, 77))["query"]
    setup = Setup("seconds", find_machine("h100"), 1, query=encoders[1])
    found = cost.encoder_costs("qwen1.5-7b", 7, 1, LENGTHS, setup)
    assert [one.layers for one in found] == [32, 8, 0, 12]
    assert [one.flops for one in found] == [work.flops for work in works]
    assert all(one.seconds is not None for one in found) and found[0].share > found[1].share > found[3].share
    for query in encoders:
        without = cost.work_of_query(model_config(llm, 576, query), LENGTHS)["query"]
        assert without.flops == without.shared == without.own == 0


def test_seconds_of_a_hand_made_decoder():
    """Every byte and FLOP of Qwen-1.5-7B's decode on one chip, counted here by hand."""
    machine = find_machine("100,1000,80")
    layer = 4096 * 4096 * 4 + 3 * 4096 * 11008
    weights = 32 * layer + 4096 * 151936
    context = [80 + 16 + k for k in range(1, 16)]
    config = model_config(find_llm("7"), 16)
    decode = cost.work_of_query(config, LENGTHS)["decode"]
    assert decode.shared == 2 * 15 * weights
    assert decode.own == sum(context) * 32 * 2 * 4096 * 2
    assert decode.flops == 2 * 15 * weights + 4 * 32 * 4096 * sum(context)
    # One query waits for the weights, a thousand for arithmetic.
    assert cost.seconds_of(decode, machine, 1) == pytest.approx((decode.shared + decode.own) / 1e12)
    assert cost.seconds_of(decode, machine, 1000) == pytest.approx(1000 * decode.flops / 1e14)


@pytest.mark.parametrize("weights, bits", [("int8", 8), ("int4", 4), ("nf4", 4)])
def test_a_token_waits_for_the_bytes_of_the_weights_form(weights, bits):
    """Vicuna-7B, by hand: codes and float32 scales; tables, tower and cache stay in bfloat16."""
    config = model_config(find_llm("vicuna-7b"), 1)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    scales = 32 * (5 * 4096 + 2 * 11008) if bits == 8 else matrices / 64
    stored = matrices * bits / 8 + 4 * scales
    head = 2 * 4096 * 32000
    whole, few = cost.work_of_query(config, LENGTHS), cost.work_of_query(config, LENGTHS, weights)
    assert whole["decode"].shared == 15 * (2 * matrices + head)
    assert few["decode"].shared == 15 * (stored + head) and few["prefill"].shared == stored + head
    assert few["query"].shared == stored and few["decode"].own == whole["decode"].own
    assert {part: work.flops for part, work in few.items()} == {part: w.flops for part, w in whole.items()}
    for part in ("tower", "compressor"):
        assert few[part] == whole[part]
    saved = cost.memory_of(config, LENGTHS, 3) - cost.memory_of(config, LENGTHS, 3, weights)
    assert saved == 2 * matrices - stored
    clip = model_config(find_llm("vicuna-7b"), 1, QueryConfig("clip_text"))
    assert cost.work_of_query(clip, LENGTHS, weights)["query"] == cost.work_of_query(clip, LENGTHS)["query"]


def test_training_says_what_fits():
    """One chip of 16 GiB holds 7B's adapters around 4 bits and nothing larger; eight hold LoRA."""
    one, eight = (Setup("seconds", find_machine("v5e", count)) for count in (1, 8))
    whole, lora, qlora = training_costs("vicuna-7b", 7, 1, one)
    assert [way.verdict for way in (whole, lora, qlora)] == ["does not fit", "does not fit", "fits"]
    assert whole.memory.slots == 2 * whole.memory.gradients > 20 * qlora.memory.slots
    assert lora.memory.parameters > 2 * qlora.memory.parameters
    assert [way.verdict for way in training_costs("vicuna-7b", 7, 1, eight)] == ["close", "fits", "fits"]


def test_dollars_follow_from_seconds_and_fall_with_the_batch():
    config = model_config(find_llm("1.8"), 4)
    work = cost.work_of_query(config, LENGTHS)
    machine = find_machine("l4", count=2, efficiency=0.5)
    assert machine.flops == 121e12 and machine.bandwidth == 300e9 and machine.memory == 48 * 2**30
    seconds = cost.query_cost(work, Setup("seconds", machine, 8), 84)
    dollars = cost.query_cost(work, Setup("usd", machine, 8, usd_per_hour=0.7), 84)
    assert dollars == pytest.approx(seconds / 8 * 1e6 * 2 * 0.7 / 3600)
    assert dollars < cost.query_cost(work, Setup("usd", machine, 1, usd_per_hour=0.7), 84)


def test_lengths_may_be_arrays():
    config = model_config(find_llm("0.5"), 36)
    setup = Setup("seconds", find_machine("h100"), 4)
    text = np.array([0.0, 5.0, 300.0])
    together = cost.query_cost(cost.work_of_query(config, Lengths(text, 3, text)), setup, text + 36)
    alone = [cost.query_cost(cost.work_of_query(config, Lengths(q, 3, q)), setup, q + 36) for q in text]
    np.testing.assert_allclose(together, alone, rtol=1e-14)


def test_memory_counts_tables_once_where_they_are_tied():
    tied, own = (model_config(find_llm(name), 1) for name in ("qwen1.5-0.5b", "qwen1.5-1.8b"))
    vision = 2 * flops.tower_params(tied.vision)
    for config, total in ((tied, 463_987_712), (own, 1_836_828_672)):
        adapter = 2 * (flops.compressor_cost(config).params + flops.projector_params(config))
        alone = cost.memory_of(config, Lengths(0, 1, 0), 0) - vision - adapter
        assert alone == pytest.approx(2 * total, rel=1e-3)
    grown = cost.memory_of(own, Lengths(10, 5, 0), 3) - cost.memory_of(own, Lengths(10, 5, 0), 2)
    assert grown == (10 + 1 + 5) * 24 * 2 * 2048 * 2


def test_a_size_between_presets_is_scaled():
    llm = find_llm("3")
    assert llm.params_b == 3 and "qwen1.5-4b" in llm.name
    ratio = flops.decoder_params(llm.decoder) / flops.decoder_params(find_llm("4").decoder)
    assert ratio == pytest.approx(3 / 4, rel=0.03)
    assert find_llm("7").name == "qwen1.5-7b"
    assert find_llm("vicuna-7b").params_b == 7


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: find_llm("gpt-9"), "qwen1.5-4b"),
        (lambda: find_llm("-1"), "positive"),
        (lambda: find_llm("nan"), "positive"),
        (lambda: find_llm("500"), "--cost published"),
        (lambda: find_machine("tpu9"), "h100"),
        (lambda: find_machine("1,2"), "989,3350,80"),
        (lambda: find_machine("1,0,3"), "positive"),
        (lambda: find_machine("h100", efficiency=1.5), "efficiency"),
        (lambda: model_config(find_llm("4"), 50), "1, 4, 9, 16, 36, 64, 144, 576"),
        (lambda: model_config(find_llm("4"), 25), "24 x 24"),
        (lambda: model_config(find_llm("4"), 1, QueryConfig("early_exit", 41)), "40 layers, too few"),
    ],
)
def test_mistakes_in_words(wrong, said):
    with pytest.raises(UserError, match=said):
        wrong()


def test_costs_need_neither_jax_nor_flax():
    code = "import sys, scaling.cost, scaling.planner; sys.exit(bool({'jax', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "name, counts",
    [
        ("mqt", (1, 2, 8, 36, 256)),
        ("m3", (1, 9, 36, 144)),
        ("prumerge", (1, 5, 40, 576)),
        ("resampler", (7,)),
        ("prumerge_plus", (144,)),
        ("tokenpacker", (4, 144)),
        ("avgpool", (64,)),
        ("conv", (16,)),
    ],
)
def test_every_compressor_costs_what_its_own_model_does(name, counts):
    """The page's numbers are those of the library's counter, for the model that such a run would train."""
    llm, lengths, setup = find_llm("1.8"), Lengths(30, 8, 12), Setup(compressor=name)
    prices = counted_prices([llm], counts, setup)
    for count, adapter in zip(counts, prices["llms"][0]["adapters"], strict=True):
        config = model_config(llm, count, compressor=name)
        assert config.visual_tokens == count and config.compressor.name == name
        counted = flops.answer_flops(config, 12, 30, 8)
        work = cost.work_of_query(config, lengths)
        assert {part: one.flops for part, one in work.items()} == counted
        assert adapter["flops"] == counted["compressor"] and not adapter["reads"]
        assert prices["tower"]["flops"] == counted["tower"] and counted["query"] == 0
    plain = model_config(llm, 16, compressor="avgpool")
    assert (prices["tower"]["flops"] > flops.tower_flops(plain.tower)) == name.startswith("prumerge")


@pytest.mark.parametrize(
    "name, count, says",
    [
        ("mqt", 300, "possible are 1 to 256, and 576"),
        ("mqt", 2.5, "V = 2.5"),
        ("quecc", 8, "are 1, 4, 9"),
        ("m3", 2, "by m3"),
        ("prumerge", 577, "possible are 1 to 576"),
        ("none", 36, "possible are 576"),
        ("llava_mini", 2, "square numbers"),
        ("mtq", 2, "'mtq' is not known; name one of quecc"),
        ("llava_mini", 4, "pre-fusion of llava_mini"),
        ("quecc_plus", 4, "pre-fusion of quecc_plus"),
        ("mqt", 0, "V = 0"),
    ],
)
def test_a_compressor_is_held_to_what_it_can_make(name, count, says):
    with pytest.raises(UserError, match=says):
        model_config(find_llm("7"), count, compressor=name)


def test_all_patches_are_no_compressor():
    for name in ("mqt", "m3", "quecc", "resampler"):
        assert model_config(find_llm("7"), 576, compressor=name).compressor.name == "none"
