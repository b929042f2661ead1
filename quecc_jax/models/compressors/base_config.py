"""What the settings of every compressor have in common. Imports neither jax nor flax."""

import abc
import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

NORM = 7
"""FLOPs of a LayerNorm per value."""


class Sizes(NamedTuple):
    """The model around a compressor."""

    grid: int
    """Patches along one side of the image; N = grid squared."""
    levels: int
    """Tower states side by side in the multi-level features."""
    width: int
    """Channels D of a tower state."""
    decoder_width: int
    """Channels M of a token embedding."""
    query_width: int
    """Channels of the question's feature."""

    @property
    def patches(self) -> int:
        """Patches N of one image."""
        return self.grid**2


class Cost(NamedTuple):
    """Of one image, biases, activations and softmax left out, and norms where products dwarf them."""

    params: int = 0
    """Weights."""
    flops: float = 0.0
    """Forward FLOPs; a multiply-add is two."""
    first: float = 0.0
    """Those of `flops` in products that act on the tower's states themselves, whose gradient the backward
    pass does not need."""


@dataclasses.dataclass(frozen=True)
class CompressorConfig(abc.ABC):
    """Visual token compressor between tower and projector: the settings that one of them reads, what it needs
    and makes, and what it costs. `config.compressors` lists them by name."""

    name: str = ""
    """Which compressor: quecc, quecc_plus, tokenpacker, m3, mqt, avgpool, conv, resampler, random, prumerge,
    prumerge_plus, llava_mini or none (all features of the select layer, as in LLaVA-1.5). Each has settings of
    its own; those that two have in common are kept when one is exchanged for the other."""

    shape: ClassVar[Literal["grid", "free", "all"]] = "grid"
    """`grid` tokens stand on an output grid that tiles the patches; `free` ones are any number; `all` patches
    are passed on."""
    nested: ClassVar[bool] = False
    """Of several V, the tokens of one are the first of those of a larger one."""
    projected: ClassVar[bool] = False
    """It acts on what the projector makes of all patches, in place of the projector on what it makes."""
    reads_attention: ClassVar[bool] = False
    """It reads CLS' attention and the keys of a tower layer, which the tower then keeps with its states."""
    reads_all_patches: ClassVar[bool] = False
    """The memory of its pre-fusion is the tower's states themselves."""

    @property
    def tokens(self) -> int:
        """V that was chosen, or 0."""
        return 0

    @property
    def elastic(self) -> tuple[int, ...]:
        """Values V that one set of weights serves; empty if it makes one V."""
        return ()

    @property
    def query(self) -> Literal["question", "zero"]:
        """What is injected into the features of a compressor that reads the question."""
        return "question"

    @property
    def fusion_layers(self) -> int:
        """Decoder layers of the pre-fusion; 0 without."""
        return 0

    @property
    def fuses_tokens(self) -> bool:
        """Whether the decoder gets visual tokens as the pre-fusion leaves them, which then leaves out text of id 0."""
        return False

    @property
    def reads_question(self) -> bool:
        """Whether visual tokens depend on the question, which then needs a pass of its own."""
        return False

    @property
    def elastic_choices(self) -> tuple[int, ...]:
        """Values V that batches draw from, ascending; empty where V is fixed."""
        return () if self.tokens else self.elastic

    def memory_tokens(self, patches: int) -> int:
        """Tokens R that the pre-fusion reads of an image of so many patches; 0 without pre-fusion. The
        module's call then gives them behind its V tokens."""
        del patches
        return 0

    def groups(self, grid: int) -> tuple[int, ...]:
        """The parts of what the module makes, one V behind the other: V alone, or all that are drawn unless
        they are nested; ValueError as `num_tokens`."""
        whole = not self.elastic_choices or self.nested
        return (self.num_tokens(grid),) if whole else self.elastic_choices

    def sides(self, grid: int) -> tuple[int, ...]:
        """Sides h of a grid compressor's output grids, one for each of its `groups`."""
        return tuple(math.isqrt(v) for v in self.groups(grid))

    @abc.abstractmethod
    def num_tokens(self, grid: int) -> int:
        """Tokens V of an image of grid x grid patches, the most of several.

        Raises:
          ValueError: the settings do not fit each other or the grid.
        """

    @abc.abstractmethod
    def cost(self, sizes: Sizes) -> Cost:
        """Weights and forward FLOPs of the module for one image, without those of a pre-fusion."""


@dataclasses.dataclass(frozen=True)
class GridConfig(CompressorConfig):
    """A compressor whose V follows from a window over the patches, V = ((grid - kernel) // stride + 1)^2, so
    that one is exchanged for another by its name alone."""

    kernel: int = 24
    """Side in patches of the window: of the depthwise convolution, where there is one."""
    stride: int = 24
    """Patches between output tokens, along one side: V = ((grid - kernel) // stride + 1)^2."""

    def num_tokens(self, grid: int) -> int:
        """See `CompressorConfig`."""
        if self.tokens and self.shape != "free":
            raise ValueError(
                f"{self.name} takes V from kernel and stride, not from tokens {self.tokens}; "
                "leave tokens at 0"
            )
        tokens = self.tokens or output_grid(grid, self.kernel, self.stride) ** 2
        if not 0 < tokens <= grid**2:
            raise ValueError(f"tokens {tokens} is not between 1 and the {grid**2} patches of an image")
        return tokens


@dataclasses.dataclass(frozen=True)
class FreeConfig(GridConfig):
    """A compressor that makes any number of tokens."""

    shape = "free"
    tokens: int = 0
    """V; 0 takes that of `kernel` and `stride`."""


@dataclasses.dataclass(frozen=True)
class ElasticConfig(GridConfig):
    """A compressor whose weights can serve several V."""

    tokens: int = 0
    """V, one of `elastic` or, of mqt, any; 0 takes that of `kernel` and `stride`, or the largest of
    `elastic`."""
    elastic: tuple[int, ...] = ()
    """Values V, ascending, that one set of weights is trained for: each batch draws one of them, and the
    model serves any. `kernel` and `stride` are not read then. With `tokens` set to one of them, that V alone
    is computed, of the same weights; a trained model serves its largest unless told otherwise."""

    def num_tokens(self, grid: int) -> int:
        """See `CompressorConfig`."""
        choices = self.elastic
        if not choices:
            return super().num_tokens(grid)
        if self.tokens and self.tokens not in choices:
            raise ValueError(
                f"tokens {self.tokens} is none of the elastic {choices}; choose one of them, or 0"
            )
        if list(choices) != sorted(set(choices)) or choices[0] < 1 or choices[-1] > grid**2:
            raise ValueError(
                f"elastic {choices} is not a list of ascending numbers up to {grid**2}; order them"
            )
        squares = [s * s for s in range(1, grid + 1) if grid % s == 0]
        if self.shape == "grid" and not set(squares).issuperset(choices):
            raise ValueError(f"not all of elastic {choices} tile a {grid} x {grid} grid; these do: {squares}")
        return self.tokens or choices[-1]

    def windows(self, grid: int) -> tuple[int, int, tuple[int, ...]]:
        """Sides in patches of a convolution's kernel and stride, and of the windows that the kernel is
        resized to if there are several V."""
        if not self.elastic:
            return self.kernel, self.stride, ()
        base, *sides = (grid // math.isqrt(v) for v in (self.elastic[0], *self.groups(grid)))
        return base, base, tuple(sides)


def output_grid(grid: int, kernel: int, stride: int) -> int:
    """Side h of a compressor's output grid, (grid - kernel) // stride + 1.

    Raises:
      ValueError: the kernel does not fit, or h does not divide the grid so that regions would be
        uneven. The message names the numbers and the strides that work.
    """
    valid = [s for s in range(1, grid + 1) if grid % s == 0]
    hint = f"with kernel = stride, a grid of {grid} takes the strides {valid}"
    if kernel < 1 or stride < 1 or kernel > grid:
        raise ValueError(f"kernel {kernel} and stride {stride} do not fit a {grid} x {grid} grid; {hint}")
    side = (grid - kernel) // stride + 1
    if grid % side:
        raise ValueError(
            f"kernel {kernel} and stride {stride} give a {side} x {side} output, "
            f"which does not divide the {grid} x {grid} grid; {hint}"
        )
    return side


def attention_products(width: int, patches: int, queries: int, heads: int) -> int:
    """Multiply-adds of `RegionAttention` where V queries read all N patches of an image, its four
    matrices among them."""
    d, n, v = width, patches, queries
    if absorbs(v, n, heads, d):
        return 4 * v * d * d + 2 * v * n * heads * d
    return 2 * v * d * d + 2 * n * d * d + 2 * v * n * d


def absorbs(queries: int, patches: int, heads: int, width: int) -> bool:
    """Whether V queries of N patches cost less with the keys' and values' matrices on their side."""
    return queries * (patches * (heads - 1) + width) <= patches * width
