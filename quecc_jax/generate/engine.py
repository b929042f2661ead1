"""Answers to questions about images, in text that streams: the one way from prompts to answers.

A `Question` of a person, or a `Prompt` made of a row of a data set, is laid out as in training, collected in
a batch of few static shapes, and answered; what repeats among images and questions is computed once.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from quecc_jax.config import DecoderConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.batch import Batch
from quecc_jax.data.collate import Collate
from quecc_jax.data.plans.packing import BatchPlan
from quecc_jax.data.text.conversation import lay_out
from quecc_jax.data.text.templates import stops
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.text.turns import PLACEHOLDER, asking
from quecc_jax.errors import BadRow, UserError
from quecc_jax.generate.decode import Params, advance, begin, decoding_params, on_mesh
from quecc_jax.generate.questions import AskedImage, Limits, Prompt, Prompts, Question, ReadImage, Usage
from quecc_jax.generate.reading import arranged_image, read_image
from quecc_jax.generate.reply import Reply
from quecc_jax.generate.reuse import Encoders, Reuse, round_up
from quecc_jax.generate.sampling import per_row
from quecc_jax.models.vlm import VLM, Visual
from quecc_jax.sharding import batch_parts, on_host, spread_rows

SMALLEST = 32
"""Prompts and answers are padded to at least so many positions, so that few programs are compiled."""

SHORTEST = 16
"""Places that questions have at least, where a compressor reads them; most are shorter."""

CHUNK = 8
"""Tokens that are decoded between two looks of the host."""

BEGIN = jax.jit(begin, static_argnums=(0, 1, 8))
ADVANCE = jax.jit(advance, static_argnums=(0, 1, 4, 5), donate_argnums=3)
"""Compiled once per model and shapes, for all engines; the state's memory is reused."""


class Engine:
    """A model that answers. Programs are compiled once per bucket of rows, prompt and answer length.

    Args:
      config: of the run; its data settings lay out the prompts.
      params: parameters by top-level name; `vision` may be missing where all prompts bring stored states.
      reuse: what is remembered of questions and images; it belongs to these parameters.
      mesh: where the parameters are; None for one device. All processes of a mesh ask the same at the same time, and
        get the same answers.
      chunk: tokens that are decoded between two looks of the host, which streams and ends answers.
    """

    def __init__(
        self,
        config: RunConfig,
        params: Params,
        *,
        reuse: Reuse | None = None,
        mesh: Mesh | None = None,
        chunk: int = CHUNK,
    ):
        self.config = config = dataclasses.replace(config, model=at_visual_tokens(config.model))
        self.chunk = chunk
        self.reuse = Reuse() if reuse is None else reuse
        self.tokenizer = load_tokenizer(config.data.tokenizer, config.data.query_tokenizer)
        if mesh is None:
            # A mesh of one device is another sharding than none, which would compile programs twice.
            params = jax.device_put(params, jax.local_devices()[0])
        self.params = decoding_params(params, config.model)
        self.ends = stops(config.data.template, self.tokenizer)
        self.encoders = Encoders(config.model, self.reuse, mesh)
        self.mesh = mesh
        model = VLM(config.model, unrolled=True)
        self.begin = functools.partial(on_mesh(BEGIN, mesh), model, self.ends.ids)
        self.advance = functools.partial(on_mesh(ADVANCE, mesh), model, self.ends.ids)
        self._data = dataclasses.replace(
            config.data,
            batching="pad",
            labels="answers",
            too_long="error",
            bad_rows="error",
            cached_queries=False,
        )

    def image(self, image: AskedImage) -> ReadImage:
        """Reads an image for questions, known again by its pixels; one that is read comes back as it is.

        Raises:
          UserError: as `load_pixels`, or the model takes no images.
        """
        if not isinstance(image, ReadImage) and not self._data.images_per_row:
            raise UserError("this model was trained on text alone and takes no image; leave it out")
        return read_image(image, self.config)

    def prompt(self, question: Question, answer: str | None = None) -> Prompt:
        """Lays out a question, or a question with a given answer behind it.

        Raises:
          UserError: it does not fit, or has more images than the model was trained with.
        """
        data, model, count = self._data, self.config.model, len(question.images)
        if count > data.images_per_row:
            raise UserError(
                f"{count} images are given but the model was trained with at most "
                f"{data.images_per_row} a question; give fewer"
            )
        if not question.text.strip() and not count:
            raise UserError("the question is empty; ask something, or give an image")
        try:
            said = asking(question.text, count, question.history, latest=question.query == "latest")
            if answer is not None:
                said = said._replace(turns=(*said.turns, answer))
            shown = question.images if model.vision.tiles else ()
            arranged = [arranged_image(image, self.config) for image in shown]
            encoded = lay_out(said, self.tokenizer, data, model.visual_tokens, arranged)
            self._check_known(encoded.codes, encoded.queries)
        except UserError as error:
            raise error.at(question.where()) from None

        def write(out: np.ndarray) -> None:
            slot = 0
            for image in question.images:
                try:
                    pixels = self.image(image).pixels
                except BadRow as error:
                    raise error.at(question.where()) from None
                out[slot : slot + len(pixels)] = pixels
                slot += len(pixels)

        unknown = self.tokenizer.unknown_words(question.text.replace(PLACEHOLDER, " "))
        return Prompt(encoded, write, unknown_words=unknown)

    def batch(self, prompts: Sequence[Prompt], length: int, rows: int = 0) -> Batch:
        """The batch of some prompts, on the host.

        Args:
          prompts: all with pixels, or all with stored states.
          length: positions S of a row.
          rows: B at least, of which the last are empty; 0 for the bucket of their number.

        Raises:
          UserError: an image cannot be read.
        """
        parts = 1 if self.mesh is None else batch_parts(self.mesh)
        b = -(-rows // parts) * parts if rows > len(prompts) else round_up(len(prompts), parts)
        each = self.config.model.vision.max_crops
        images = -(-max(prompt.encoded.crops for prompt in prompts) // each) * each
        queries = max(SHORTEST, round_up(max(len(prompt.encoded.queries) for prompt in prompts)))
        ids = np.where(np.arange(b) < len(prompts), np.arange(b), -1).astype(np.int64)
        data = dataclasses.replace(self._data, cached_features=prompts[0].stored)
        collate = Collate([Prompts(prompts)], data, self.config.model)
        batch, read = collate(BatchPlan(ids, length, images, queries))
        for left_out in read.left_out:
            raise UserError(left_out.message)
        return batch._replace(ids=None)

    def encoded(self, batch: Batch) -> tuple[Batch, Visual | None]:
        """A host's batch as the decoder reads it: placed, without pixels or states, and what takes their place, None
        where no row has room for an image."""
        visual = self.encoders(self.params, batch) if batch.query_ends.size else None
        return spread_rows(batch._replace(pixels=None, features=None), self.mesh), visual

    def run(self, asked: Sequence[Question | Prompt], limits: Limits, rows: int = 0) -> "Run":
        """Starts answering, all in one batch; iterate over the result for pieces of text.

        Args:
          rows: of the batch, at least; where batches follow each other, equal numbers share a program.

        Raises:
          UserError: as `prompt` and `batch`.
        """
        return Run(self, asked, limits, rows)

    def answers(self, asked: Sequence[Question | Prompt], limits: Limits) -> list[str]:
        """The answers to some questions, all in one batch."""
        return self.run(asked, limits).finish()

    def attention(self, question: Question) -> np.ndarray | None:
        """Where the compressor looks: float32 [I, V, H, g, g], see `Encoders.attention`; None without. Of
        any-resolution images it is the whole that counts."""
        images = tuple(self.image(image) for image in question.images)
        weights = self.attention_maps([self.prompt(question._replace(images=images))])
        if weights is None:
            return None
        taken = [len(image.pixels) for image in images]
        return weights[0][np.cumsum([0, *taken[:-1]])]

    def attention_maps(self, prompts: Sequence[Prompt], rows: int = 0) -> np.ndarray | None:
        """Attention of a batch of prompts, [B, I, V, H, g, g], see `Encoders.attention`; None without."""
        batch = self.batch(prompts, max(len(prompt.encoded.codes) for prompt in prompts), rows)
        return self.encoders.attention(self.params, batch)

    def _check_known(self, codes: np.ndarray, queries: np.ndarray) -> None:
        """Raises UserError where a prompt has tokens that the model has no embedding of: looking one up
        beyond a table gives the values of no token, without a word."""
        tokenizer, model = self.tokenizer, self.config.model
        readers = [
            (tokenizer, codes, model.decoder.vocab_size),
            (
                (tokenizer, queries, model.decoder.vocab_size)
                if tokenizer.questions is None
                else (tokenizer.questions, queries, model.query.text.vocab_size)
            ),
        ]
        for reader, ids, known in readers:
            if beyond := ids[ids >= known].tolist():
                token = reader.hf.convert_ids_to_tokens(beyond[0])
                raise UserError(
                    f"{token!r} is token {beyond[0]} of {reader.directory}, but the model has "
                    f"only {known} embeddings; give the tokenizer that belongs to it"
                )

    def room(self, length: int, new: int) -> tuple[int, int]:
        """As `room_for`, of this engine's model and chunk."""
        return room_for(self.config.model.decoder, length, new, self.chunk)


def room_for(decoder: DecoderConfig, length: int, new: int, chunk: int = CHUNK) -> tuple[int, int]:
    """Positions for prompts of up to `length` tokens, and behind them for answers of up to `new`."""
    # The first token comes with the prompt, the others a chunk at a time.
    decoded = 1 + -(-(new - 1) // chunk) * chunk
    padded = max(SMALLEST, round_up(length)), max(SMALLEST, round_up(decoded))
    scaling = decoder.rope_scaling
    if scaling.kind == "longrope" and length + new <= scaling.original_length < sum(padded):
        # The length of the cache picks the frequencies, which padding must not change.
        return length, scaling.original_length - length
    return padded


class Run:
    """Answers under way: iterating yields (row, piece of text) as they come, `usage` is there at the end."""

    def __init__(self, engine: Engine, asked: Sequence[Question | Prompt], limits: Limits, rows: int):
        self._engine, self._limits = engine, limits
        self._began = time.perf_counter()
        self._prompts = [engine.prompt(one) if isinstance(one, Question) else one for one in asked]
        longest = max(len(prompt.encoded.codes) for prompt in self._prompts)
        length, self._answer_room = engine.room(longest, limits.max_new_tokens)
        self._batch = engine.batch(self._prompts, length, rows)
        self._replies = self._begun(read=True)

    def finish(self) -> list[str]:
        """All answers, when they are complete."""
        self._replies = self._begun(read=False)
        for _ in self:
            pass
        return self.texts()

    def texts(self) -> list[str]:
        """The answers so far."""
        return [reply.text for reply in self._replies]

    @property
    def usage(self) -> list[Usage]:
        """What each answer took."""
        return [reply.usage() for reply in self._replies]

    def _begun(self, read: bool) -> list[Reply]:
        tokenizer, ends = self._engine.tokenizer, self._engine.ends
        return [
            Reply(prompt, tokenizer, ends, self._limits, began=self._began, read=read)
            for prompt in self._prompts
        ]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        engine, limits, batch = self._engine, self._limits, self._batch
        rows = batch.tokens.shape[0]
        sampling = keys = None
        if limits.sampling is not None:
            sampling = per_row([limits.sampling] * rows)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(limits.seed), np.arange(rows))
        batch, visual = engine.encoded(batch)
        budget = np.full(rows, limits.max_new_tokens, np.int32)
        state = engine.begin(engine.params, batch, visual, budget, sampling, keys, self._answer_room)
        tokens = on_host(state.token)[:, None]
        running = set(range(len(self._replies)))
        while True:
            for row in sorted(running):
                reply = self._replies[row]
                if piece := reply.push(tokens[row].tolist()):
                    yield row, piece
                if reply.ended_by:
                    running.discard(row)
            if not running:
                return
            # The host knows of stop texts; the device only of tokens.
            done = np.array([row not in running for row in range(rows)])
            decoded, state = engine.advance(
                engine.params, state._replace(done=state.done | done), engine.chunk
            )
            tokens = on_host(decoded)
