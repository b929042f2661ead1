"""The benchmarks by name."""

from quecc_jax.config.io import nearest
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.ai2d import AI2D
from quecc_jax.evaluate.tasks.base import Task
from quecc_jax.evaluate.tasks.conversations import LLAVA_BENCH, MMVET
from quecc_jax.evaluate.tasks.documents import CHARTQA, DOCVQA
from quecc_jax.evaluate.tasks.gqa import GQA
from quecc_jax.evaluate.tasks.mathvista import MATHVISTA
from quecc_jax.evaluate.tasks.mmbench import MMBENCH, MMBENCH_CN
from quecc_jax.evaluate.tasks.mme import MME
from quecc_jax.evaluate.tasks.mmmu import MMMU
from quecc_jax.evaluate.tasks.pope import POPE
from quecc_jax.evaluate.tasks.scienceqa import SCIENCEQA
from quecc_jax.evaluate.tasks.seed import SEED
from quecc_jax.evaluate.tasks.vqa import TEXTVQA, VIZWIZ, VIZWIZ_VAL, VQAV2, VQAV2_VAL

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        POPE,
        GQA,
        VQAV2,
        VQAV2_VAL,
        VIZWIZ,
        VIZWIZ_VAL,
        TEXTVQA,
        SCIENCEQA,
        MME,
        MMBENCH,
        MMBENCH_CN,
        SEED,
        MMMU,
        AI2D,
        CHARTQA,
        DOCVQA,
        MATHVISTA,
        LLAVA_BENCH,
        MMVET,
    )
}


def chosen(names: str, scorers: str = "") -> list[Task]:
    """Tasks from a list of names between commas, each once.

    Args:
      names: such as "mme,mmmu".
      scorers: whose rule reads the answers, such as "mme=lmms_eval,mmmu=lmms_eval"; a benchmark that is not
        named has its first.

    Raises:
      UserError: a name is of no benchmark, or there is none; a scorer is of none of them.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not wanted:
        raise UserError(f"no benchmark is named; choose from {', '.join(TASKS)}")
    for name in wanted:
        if name not in TASKS:
            raise UserError(
                f"{name} is not a benchmark; {nearest(name, list(TASKS), 'see --help')}; "
                f"there are {', '.join(TASKS)}"
            )
    rules: dict[str, str] = {}
    for part in scorers.split(","):
        task, equals, rule = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or task not in wanted or task in rules:
            raise UserError(
                f"--scorer {part.strip()} is not TASK=SCORER, once, for one of the benchmarks "
                f"{', '.join(wanted)}; write for example {wanted[0]}="
                f"{TASKS[wanted[0]].scorer.name}"
            )
        rules[task] = rule
    return [TASKS[name].scored_by(rules[name]) if name in rules else TASKS[name] for name in wanted]
