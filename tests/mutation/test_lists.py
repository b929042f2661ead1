"""What `make mutate` is told of the tree is still true of it."""

from pathlib import Path

import pytest

from tests.mutation.areas import AREAS
from tests.mutation.equivalent import EQUIVALENT, reason_of


def test_modules_and_their_tests_are_there():
    for modules in AREAS.values():
        for module, tests in modules.items():
            files = [module, *(test for test in tests if test.endswith(".py"))]
            assert [file for file in files if not Path(file).is_file()] == []


@pytest.mark.parametrize("one", EQUIVALENT, ids=lambda one: f"{one.module} {one.mutated}")
def test_an_equivalent_mutant_is_of_a_line_that_stands_there(one):
    lines = Path(one.module).read_text(encoding="utf-8").splitlines()
    assert one.line in map(str.strip, lines) and one.line != one.mutated


def test_a_mutant_is_listed_by_its_module_and_both_lines():
    one = EQUIVALENT[0]
    diff = f"--- mutation diff ---\n--- a/x.py\n+++ b/x.py\n same\n-    {one.line}\n+    {one.mutated}\n"
    assert reason_of(one.module, diff) == one.reason
    assert reason_of("quecc_jax/train/step.py", diff) is None
    assert reason_of(one.module, diff.replace(one.mutated, "jnp.inf - one,")) is None
