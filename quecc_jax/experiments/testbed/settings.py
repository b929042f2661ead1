"""What the testbed's images and its vision tower are made of."""

import dataclasses
from typing import Literal, get_args

from quecc_jax.config import VisionConfig

Harder = Literal["shapes3", "shapes4", "digits3", "digits4", "digits5", "emoji2", "emoji3", "emoji4"]
"""The number at the end is m, so that a task has one fineness: the side of a cell is that of the image divided by m."""
Task = Literal["single", "mosaic", "reading", Harder]
"""A set of images and of questions about them."""
Split = Literal["train", "test"]
TASKS: tuple[Task, ...] = ("single", "mosaic", "reading")
HARDER: tuple[Harder, ...] = get_args(Harder)
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Testbed:
    """Images and questions of the tasks, the texts of a language model, and the tower that sees the images."""

    __test__ = False

    tasks: tuple[Task, ...] = TASKS
    """In equal shares."""
    images: int = 4000
    """Training images per task."""
    test_images: int = 150
    """Test images per task."""
    questions: int = 6
    """Questions per image."""
    negations: bool = True
    """Keep the questions of `single` that say no or not, of which small models learn late what turns round."""
    side: int = 2
    """Cells m along a side of the mosaic and reading images."""
    documents: int = 24000
    """Texts of the language-model corpus."""
    seed: int = 0
    vision: VisionConfig = VisionConfig(
        image_size=96,
        patch_size=12,
        width=64,
        depth=4,
        heads=2,
        mlp_width=256,
        select_layer=-2,
        levels=(1, 2, 3, 4),
    )
    """The small tower: 8 x 8 patches, four levels."""
    start: str = ""
    """Directory, as `examples`, of a tower, a tokenizer and language models to take; "" trains them."""
    tower_steps: int = 1800
    tower_batch: int = 24
    tower_rate: float = 2e-3
    shrunk: tuple[int, ...] = ()
    """Values V, square numbers below that of the patches: pools are made once more, of images shrunk to V patches."""
    text_tokens: int = 20
    """Longest conversation with its template, in word tokens; visual slots come on top."""
    query_tokens: int = 13
    """Longest question."""
    answer_tokens: int = 5
    """Longest answer, with its end."""
    document_tokens: int = 96
    """Length of a row of joined documents."""
    turns: Literal["first", "all"] = "first"
    """Questions of a test row that are asked; `all` in conversations of the harder tasks."""

    def tower(self, out: str) -> str:
        """Run directory of the tower, of a grid in `out`."""
        return f"{self.start}/model" if self.start else f"{out}/tower"

    def language(self, out: str, decoder: str) -> str:
        """Run directory of a decoder's language model, of a grid in `out`."""
        return f"{self.start or out}/language/{decoder}"

    def side_of(self, task: Task) -> int:
        """Cells m along a side of a task's images."""
        if task == "single":
            return 1
        return int(task[-1]) if task[-1].isdigit() else self.side


DEFAULT = Testbed()
