"""Rules against matrix products written out, their inverses, and the strict comparison of names."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.convert.formats.compressors.quecc import quecc_rules
from quecc_jax.convert.formats.towers.clip import vision_rules
from quecc_jax.convert.rules import (
    Rule,
    Scope,
    check,
    dense,
    from_tree,
    leaf_shapes,
    matrix,
    norm,
    same,
    to_tree,
    vector,
)
from quecc_jax.errors import UserError
from tests.convert.names import random_tensors
from tests.tiny import MODEL

PART = Scope(("part",))
AXES = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple)
TYPES = st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16])


def shapes_of(rules: list[Rule]) -> dict[str, tuple[int, ...]]:
    return {n: s for rule in rules for n, s in zip(rule.theirs, rule.shapes, strict=True)}


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype), name
        assert np.ascontiguousarray(a[name]).tobytes() == np.ascontiguousarray(b[name]).tobytes(), name


@given(AXES, st.lists(AXES, min_size=1, max_size=3))
def test_kernels_compute_what_the_rows_of_a_linear_layer_compute(ins, outs):
    slabs = [PART.slab(f"{i}/kernel", *ins, *axes) for i, axes in enumerate(outs)]
    rule = matrix("w", *slabs, inputs=len(ins))
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=rule.shapes[0]), rng.normal(size=ins)
    expected = weight @ x.ravel()
    ours = [np.tensordot(x, kernel, len(ins)) for kernel in rule.to_ours((weight,))]
    assert [y.shape for y in ours] == outs
    np.testing.assert_allclose(np.concatenate([y.ravel() for y in ours]), expected, rtol=1e-12)


@given(AXES, st.lists(AXES, min_size=1, max_size=3), TYPES)
def test_all_bits_survive_the_way_there_and_back(ins, outs, dtype):
    layer = Scope(("layers",), 0)
    slabs = [layer.slab(f"{i}/kernel", *ins, *axes) for i, axes in enumerate(outs)]
    biases = [layer.slab(f"{i}/bias", *axes) for i, axes in enumerate(outs)]
    rules = [
        matrix("w", *slabs, inputs=len(ins)),
        vector("b", *biases),
        *dense("d", layer, "d", ins, outs[0], bias=True),
        *norm("n", layer, "n", math.prod(ins), bias=True),
        same("s", PART.slab("s", *ins)),
    ]
    theirs = random_tensors(shapes_of(rules), dtype)
    tree = to_tree(rules, theirs)
    assert tree["layers"]["0"]["kernel"].shape == (1, *ins, *outs[0])
    assert_same_bits(from_tree(rules, tree), theirs)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), TYPES)
def test_all_bits_of_a_compressor_survive_the_way_there_and_back(head, heads, text, kernel, dtype):
    rules = quecc_rules(head * heads, text, 4 * head * heads, kernel, heads, "model.mm_projector.0.")
    theirs = random_tensors(shapes_of(rules), dtype)
    assert_same_bits(from_tree(rules, to_tree(rules, theirs)), theirs)


def test_patch_kernels_compute_the_towers_convolution():
    rules = vision_rules(MODEL.vision)
    rule = next(r for r in rules if r.theirs[0].endswith("patch_embedding.weight"))
    rng = np.random.default_rng(0)
    weight, patch = rng.normal(size=rule.shapes[0]), rng.normal(size=(4, 4, 3))
    (kernel,) = rule.to_ours((weight,))
    np.testing.assert_allclose(patch.ravel() @ kernel, np.einsum("hwc,dchw->d", patch, weight), rtol=1e-12)
    np.testing.assert_array_equal(rule.to_theirs((kernel,))[0], weight)


def test_leaves_are_stacked_and_gaps_or_double_fillings_are_found():
    layers = [same(f"s.{i}", Scope(("layers",), i).slab("s", 3)) for i in range(3)]
    assert leaf_shapes([*layers, same("t", PART.slab("t", 2))]) == {
        ("layers", "s"): (3, 3),
        ("part", "t"): (2,),
    }
    for broken in ([layers[0], layers[2]], [layers[1]], [*layers, same("x", PART.slab("x", 1)), layers[0]]):
        with pytest.raises(ValueError, match="layers/s"):
            leaf_shapes(broken)


def test_every_missing_unknown_and_reshaped_tensor_is_named_at_once():
    rules = [same(f"t{i:02}", PART.slab(f"{i}", 2, 3)) for i in range(30)]
    found = shapes_of(rules)
    check(rules, found)
    check(rules, found | {"buffer": (1,)}, ignored=["buffer"])
    wrong = {k: v for k, v in found.items() if k >= "t25"} | {"t29": (3, 2), "extra": (7,)}
    with pytest.raises(UserError) as caught:
        check(rules, wrong, where="DIR")
    text = str(caught.value)
    assert "of DIR" in text and "1 unknown: extra [7];" in text
    assert "25 missing: t00 [2, 3], " in text and "t19 [2, 3] and 5 more" in text and "t20" not in text
    assert "1 of another shape: t29 [3, 2] instead of [2, 3]" in text


def test_two_rules_for_one_tensor_are_a_mistake_of_ours():
    rule = same("t", PART.slab("t", 1))
    with pytest.raises(ValueError, match="two rules read t"):
        check([rule, rule], {"t": (1,)})
