"""Answers to questions about pictures, in text that streams: buckets, batches, stop texts and reuse."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from quecc_jax.config import RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.images import Picture, load_pixels, picture_size
from quecc_jax.data.text.conversation import prompt, query_turns
from quecc_jax.data.text.queries import question_segments
from quecc_jax.data.text.templates import PLACEHOLDER, stops
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.tiles import Arrangement, arrange
from quecc_jax.errors import UserError
from quecc_jax.generate.decode import advance, begin, decoding_params, on_mesh
from quecc_jax.generate.reuse import Encoders, Reuse, round_up
from quecc_jax.generate.sampling import Sampling
from quecc_jax.generate.text_stream import TextStream
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import batch_parts, batch_sharding

SMALLEST = 32
"""Prompts and answers are padded to at least so many places, so that few programs are compiled."""


Query = Literal["own", "latest"]
"""Whose words condition the compressor: those of the turn that holds the picture, as in training and in the
original, or the latest turn's, for which the pictures are compressed anew at every turn."""

BEGIN: Any = jax.jit(begin, static_argnums=(0, 1, 7))
ADVANCE: Any = jax.jit(advance, static_argnums=(0, 1, 6), donate_argnums=3)
"""Compiled once per model and shapes, for all engines; the state's memory is reused."""


class Pixels(NamedTuple):
    """A picture as the tower takes it."""

    array: np.ndarray
    """uint8 [H, W, 3]; of an any-resolution picture the whole, in the tower's square"""
    key: Hashable
    """Equal keys mean equal pixels."""
    tiles: np.ndarray | None = None
    """uint8 [tiles, H, W, 3] of an any-resolution picture"""
    arranged: Arrangement | None = None
    """What stands for such a picture in the text."""

    def squares(self) -> list[np.ndarray]:
        """All that the tower sees of it."""
        return [self.array, *(() if self.tiles is None else self.tiles)]


class Question(NamedTuple):
    """What is asked, about which pictures, after which conversation."""

    text: str
    pictures: tuple[Pixels, ...] = ()
    history: tuple[str, ...] = ()
    """What human and assistant said before, in turn, the human first."""
    query: Query = "own"
    """Whose words condition the compressor."""

    def asked(self) -> str:
        """The turn whose words condition the compression of the last picture, without placeholders."""
        turns = [*self.history, self.text]
        asked = turns if self.query == "latest" else query_turns(turns) or turns[:1]
        return asked[-1].replace(PLACEHOLDER, "").strip()


class Limits(NamedTuple):
    """How an answer is chosen, and where it ends."""

    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    """Texts that end an answer, beside the template's own end; none of them is part of it."""
    sampling: Sampling | None = None
    """None is greedy."""
    seed: int = 0
    """Row r of a call draws with the key jax.random.fold_in(key(seed), r)."""


class Usage(NamedTuple):
    """What one answer took."""

    prompt_tokens: int
    """Visual tokens included."""
    visual_tokens: int
    """Newlines of any-resolution pictures included."""
    cut_question_tokens: int
    """Of the question for the compressor, that data.query_length left out."""
    new_tokens: int
    """Tokens of the answer, its end left out."""
    first_token_seconds: float
    """From the question to its first token, encoding of the pictures included."""
    seconds: float
    """From the question to the end of its batch."""
    ended_by: str
    """`end` (a token), `stop` (a text) or `length`."""

    def cut(self) -> str:
        """What to say of a question that was cut; "" of a whole one."""
        lost = self.cut_question_tokens
        return f"data.query_length cut {lost} tokens of the question for the compressor" if lost else ""


class Engine:
    """A model that answers. Programs are compiled once per bucket of rows, prompt and answer length.

    Args:
      config: of the run; its data settings lay out the prompts.
      params: all parameters by top-level name.
      reuse: what is remembered of questions and pictures; it belongs to these parameters.
      mesh: where the parameters are; None for one device.
      chunk: tokens that are decoded between two looks of the host, which streams and ends answers.
    """

    def __init__(
        self,
        config: RunConfig,
        params: dict[str, Any],
        *,
        reuse: Reuse | None = None,
        mesh: Mesh | None = None,
        chunk: int = 8,
    ):
        self.config = config = dataclasses.replace(config, model=at_visual_tokens(config.model))
        self.chunk = chunk
        self.reuse = Reuse() if reuse is None else reuse
        self.tokenizer = load_tokenizer(config.data.tokenizer, config.data.query_tokenizer)
        if mesh is None:
            # A mesh of one device is another sharding than none, which would compile programs twice.
            params = jax.device_put(params, jax.devices()[0])
        self.params = decoding_params(params, config.model)
        self._ends, self._mesh = stops(config.data.template, self.tokenizer), mesh
        self._encoders = Encoders(config.model, self.reuse, mesh)
        model, ends = VLM(config.model, unrolled=True), self._ends.ids
        self._begin = functools.partial(on_mesh(BEGIN, mesh), model, ends)
        self._advance = functools.partial(on_mesh(ADVANCE, mesh), model, ends)

    def picture(self, image: Picture) -> Pixels:
        """A picture for questions, known again by its pixels.

        Raises:
          UserError: as `load_pixels`, or the model takes no pictures.
        """
        if not self.config.data.images_per_row:
            raise UserError("this model was trained on text alone and takes no picture; leave it out")
        model = self.config.model
        data = self.config.data
        array = load_pixels(image, model.vision, data.image_aspect, data.image_decoding)
        key = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        if not model.vision.tiles:
            return Pixels(array, key)
        return Pixels(array[0], key, array[1:], arrange(*picture_size(image, data.image_decoding), model))

    def answers(self, questions: Sequence[Question], limits: Limits) -> list[str]:
        """The answers to some questions, all in one batch."""
        return self.run(questions, limits).finish()

    def run(self, questions: Sequence[Question], limits: Limits) -> "Run":
        """Starts answering; iterate over the result for pieces of text.

        Raises:
          UserError: a question does not fit, or has more pictures than the model was trained with.
        """
        return Run(self, questions, limits)

    def attention(self, question: Question) -> np.ndarray | None:
        """Where the compressor looks: float32 [I, V, H, g, g], see `Encoders.attention`; None without. Of
        any-resolution pictures it is the whole that counts."""
        batch, keys, _, _ = self._lay_out([question], 1)
        weights = self._encoders.attention(self.params, batch, keys)
        if weights is None:
            return None
        taken = [len(picture.squares()) for picture in question.pictures]
        return weights[0][np.cumsum([0, *taken[:-1]])]

    def _lay_out(
        self, questions: Sequence[Question], new: int
    ) -> tuple[Batch, list[list[Hashable]], list[tuple[int, int]], int]:
        """The batch on the host, keys of its pictures, of each prompt its length and the tokens that its
        question lost, and places for answers."""
        data, model = self.config.data, self.config.model
        made = []
        for question in questions:
            count = len(question.pictures)
            if count > data.images_per_row:
                raise UserError(
                    f"{count} pictures are given but the model was trained with at most "
                    f"{data.images_per_row} a question; give fewer"
                )
            if not question.text.strip() and not count:
                raise UserError("the question is empty; ask something, or give a picture")
            try:
                one = prompt(
                    question.text,
                    count,
                    self.tokenizer,
                    data,
                    model.visual_tokens,
                    question.history,
                    arranged=[p.arranged for p in question.pictures if p.arranged],
                    latest=question.query == "latest",
                )
                self._check_known(one)
            except UserError as error:
                raise UserError(f"question {question.text!r}: {error}") from None
            made.append(one)
        sizes = [(len(one["tokens"]), int(one["query_cut"])) for one in made]
        pictures = max(len(question.pictures) for question in questions) * model.vision.places
        length, places = self._places(max(length for length, _ in sizes), new)
        batch = self._empty(len(made), length, pictures, max(len(one["query"]) for one in made))
        for row, (question, one) in enumerate(zip(questions, made, strict=True)):
            squares = [square for picture in question.pictures for square in picture.squares()]
            length, count, asked = len(one["tokens"]), len(squares), len(one["query"])
            batch.tokens[row, :length], batch.slots[row, :length] = one["tokens"], one["slots"]
            batch.positions[row, :length], batch.segments[row, :length] = np.arange(length), 1
            batch.labels[row, :length] = one["labels"]
            batch.queries[row, :asked], batch.query_ends[row, :count] = one["query"], one["query_ends"]
            batch.query_segments[row] = question_segments(one["query_ends"], batch.queries.shape[1])
            for place, square in enumerate(squares):
                batch.pixels[row, place] = square
        keys: list[list[Hashable]] = [
            [(p.key, number) for p in q.pictures for number in range(len(p.squares()))] for q in questions
        ]
        return batch, keys, sizes, places

    def _check_known(self, one: dict[str, np.ndarray]) -> None:
        """Raises UserError where a prompt has tokens that the model has no embedding of: looking one up
        beyond a table gives the values of no token, without a word."""
        tokenizer, model = self.tokenizer, self.config.model
        readers = [
            (tokenizer, one["tokens"], model.decoder.vocab_size),
            (
                (tokenizer, one["query"], model.decoder.vocab_size)
                if tokenizer.questions is None
                else (tokenizer.questions, one["query"], model.query.text.vocab_size)
            ),
        ]
        for reader, ids, rows in readers:
            if beyond := ids[ids >= rows].tolist():
                token = reader.hf.convert_ids_to_tokens(beyond[0])
                raise UserError(
                    f"{token!r} is token {beyond[0]} of {reader.directory}, but the model has "
                    f"only {rows} embeddings; give the tokenizer that belongs to it"
                )

    def _empty(self, rows: int, length: int, pictures: int, query: int) -> Batch:
        """A batch of nothing but padding, its rows and queries rounded up."""
        split = 1 if self._mesh is None else batch_parts(self._mesh)
        b, q = round_up(rows, split), round_up(query) if pictures else 0
        side = self.config.model.vision.input_size
        none = np.zeros((b, length), np.int32)
        return Batch(
            tokens=none.copy(),
            slots=none - 1,
            labels=np.full_like(none, IGNORE),
            positions=none.copy(),
            segments=none.copy(),
            queries=np.zeros((b, q), np.int32),
            query_segments=np.zeros((b, q), np.int32),
            query_ends=np.full((b, pictures), -1, np.int32),
            pixels=np.zeros((b, pictures, side, side, 3), np.uint8) if pictures else None,
        )

    def _places(self, length: int, new: int) -> tuple[int, int]:
        """Places for prompts of up to `length` tokens, and behind them for answers of up to `new`."""
        # The first token comes with the prompt, the others a chunk at a time.
        decoded = 1 + -(-(new - 1) // self.chunk) * self.chunk
        padded = max(SMALLEST, round_up(length)), max(SMALLEST, round_up(decoded))
        scaling = self.config.model.decoder.rope_scaling
        if scaling.kind == "longrope" and length + new <= scaling.original_length < sum(padded):
            # The length of the cache picks the frequencies, which padding must not change.
            return length, scaling.original_length - length
        return padded


class Run:
    """Answers under way: iterating yields (row, piece of text) as they come, `usage` is there at the end."""

    def __init__(self, engine: Engine, questions: Sequence[Question], limits: Limits):
        self._engine, self._limits, self._questions = engine, limits, questions
        self._began = time.perf_counter()
        self._laid_out = engine._lay_out(questions, limits.max_new_tokens)
        ends = engine._ends
        stop = (*limits.stop, ends.text) if ends.text else limits.stop
        self._texts = [TextStream(engine.tokenizer, stop) for _ in questions]
        self.usage: list[Usage] = []

    def finish(self) -> list[str]:
        """All answers, when they are complete."""
        for _ in self:
            pass
        return self.texts()

    def texts(self) -> list[str]:
        """The answers so far."""
        return [text.text for text in self._texts]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        engine, limits = self._engine, self._limits
        batch, keys, sizes, places = self._laid_out
        rows = batch.tokens.shape[0]
        visual = engine._encoders(engine.params, batch, keys) if batch.pixels is not None else None
        draws = None
        if limits.sampling is not None:
            draws = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(limits.seed), np.arange(rows))
        batch = batch._replace(pixels=None)
        if engine._mesh is not None:
            batch = jax.device_put(batch, batch_sharding(engine._mesh))
        state = engine._begin(engine.params, batch, visual, limits.sampling, draws, places)
        tokens, count = np.asarray(state.token)[:, None], 1
        first = time.perf_counter() - self._began
        ended = ["length"] * len(self._questions)
        running = set(range(len(self._questions)))
        while True:
            for row in sorted(running):
                ids, ended_here = self._own(tokens[row], limits.max_new_tokens - count + tokens.shape[1])
                text = self._texts[row]
                if piece := text.push(ids):
                    yield row, piece
                if text.stopped is not None or ended_here:
                    ended[row] = "stop" if text.stopped is not None else "end"
                    running.discard(row)
                    if piece := text.finish():
                        yield row, piece
            if not running or count >= limits.max_new_tokens:
                break
            # The host knows of stop texts; the device only of tokens.
            done = np.array([row not in running for row in range(rows)])
            tokens, state = engine._advance(
                engine.params, state._replace(done=state.done | done), limits.sampling, draws, engine.chunk
            )
            tokens, count = np.asarray(tokens), count + engine.chunk
        for row in sorted(running):
            if piece := self._texts[row].finish():
                yield row, piece
        seconds = time.perf_counter() - self._began
        self.usage = [
            Usage(length, int((slots >= 0).sum()), cut, len(text.ids), first, seconds, how)
            for (length, cut), slots, text, how in zip(sizes, batch.slots, self._texts, ended, strict=False)
        ]

    def _own(self, tokens: np.ndarray, room: int) -> tuple[list[int], bool]:
        """A row's tokens before its end and within its room, and whether it has ended."""
        ids, eos = tokens.tolist()[:room], self._engine._ends.ids[0]
        return (ids[: ids.index(eos)], True) if eos in ids else (ids, False)
