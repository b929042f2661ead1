"""Which parameters weight decay acts on, under the names of those who own the models.

QueCC's were asked of the original: `LLaVATrainer.create_optimizer` of locuslab/llava-token-compression, with
its transformers 4.37.2, grouped the parameters of the model in tests/golden/llava_tiny; the groups with and
without decay are weight_decay.json there. The language models are asked of the transformers that is
installed, by `Trainer.get_decay_parameter_names`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from quecc_jax.convert.formats.family_keys import FAMILIES
from quecc_jax.convert.plan import plan_export, plan_import
from quecc_jax.convert.rules import Rule
from quecc_jax.train.optimizer import decays
from tests.convert.names import source

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"


def by_their_names(rules: tuple[Rule, ...]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for rule in rules:
        (verdict,) = {decays(slab.path[-1]) for slab in rule.ours}
        found |= dict.fromkeys(rule.theirs, verdict)
    return found


def test_the_original_with_quecc(conforms):
    groups = json.loads((GOLDEN / "weight_decay.json").read_text())
    rules = plan_export(plan_import(source("llava_tiny"), source("clip_tiny")).config, "llava").rules
    ours = {name: decayed for name, decayed in by_their_names(rules).items() if "vision_tower" not in name}
    for group, wanted in (("decayed", True), ("kept", False)):
        obtained = sorted(name for name, decayed in ours.items() if decayed is wanted)
        conforms("weight decay", f"QueCC's original: {len(groups[group])} {group}", groups[group], obtained)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_language_models(conforms, family):
    pytest.importorskip("torch")
    import transformers

    given = source(family)
    auto: Any = transformers
    model = auto.AutoModelForCausalLM.from_config(auto.AutoConfig.for_model(**given.hf))
    theirs = auto.Trainer.get_decay_parameter_names(None, model)
    parameters = [name for name, _ in model.named_parameters()]
    ours = by_their_names(plan_import(given).rules)
    expected = sorted(name for name in parameters if name in theirs)
    obtained = sorted(name for name in parameters if ours[name])
    conforms("weight decay", f"{family}: names of {len(parameters)}", expected, obtained)
