"""Published configurations against the scripts of QueCC's authors (the table in tests/config/test_configs.py).

Theirs have a conversation in each row, so ours are compared in that form: configs/ packs rows.
"""

import pytest

from configs import llava
from quecc_jax.commands.config_file import load_config_file
from tests.config.test_configs import SCRIPTS, in_the_scripts_words


@pytest.mark.parametrize("stage, script", [(1, "pretrain.sh"), (2, "finetune.sh")])
def test_the_scripts_settings(conforms, stage, script):
    ours = in_the_scripts_words(llava.one_each(load_config_file(f"configs/llava_7b_stage{stage}.py")))
    for key, value in SCRIPTS[stage].items():
        conforms("recipe", f"{script} {key}", value, ours[key])
