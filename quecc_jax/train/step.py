"""The train step and its compiled form: the one builder for training and for compiling ahead."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from quecc_jax.config import RunConfig
from quecc_jax.config.shapes import teacher_length
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.data.elastic import padded_lengths
from quecc_jax.data.text.queries import query_buckets
from quecc_jax.errors import UserError
from quecc_jax.models.lora import apart, joined
from quecc_jax.models.teacher import Teacher, teacher_of, with_teacher
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import batch_parts, batch_sharding, parameter_shardings, replicated, sharding_rules
from quecc_jax.train.loss import cross_entropy_sum
from quecc_jax.train.optimizer import run_optimizer, schedule
from quecc_jax.train.state import TrainState, split_params, stored_frozen

Metrics = dict[str, jax.Array]


class Trainer(NamedTuple):
    """A run's compiled functions over one mesh."""

    mesh: Mesh
    abstract_state: TrainState
    """ShapeDtypeStructs with shardings."""
    abstract_batch: Batch
    init: Callable[[jax.Array], TrainState]
    """Random parameters and fresh optimizer state from a key."""
    start: Callable[[dict[str, PyTree], jax.Array], TrainState]
    """Given parameters by top-level name, adapters apart, whose memory is reused, the others as `init` makes them
    of a key, and fresh optimizer state."""
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    """One optimizer step; the given state's memory is reused."""
    evaluate: Callable[[TrainState, Batch], tuple[jax.Array, jax.Array]]
    """The summed cross-entropy over a batch's labelled tokens, and their number (float32 scalars); nothing is dropped,
    and no teacher asked."""
    put: Callable[[Batch], Batch]
    """Host batch to sharded device arrays, without `ids`."""
    lower: Callable[..., jax.stages.Lowered]
    """The very step, lowered for its abstract state and batch; the mesh's devices need not be here.
    `lower("cuda")` takes them for NVIDIA GPUs, whatever they are; `query_length` is a bucket of the batch's
    questions, the longest for 0."""


def loss_sum(
    model: VLM,
    params: dict[str, PyTree],
    batch: Batch,
    chunk: int,
    dropout: jax.Array | None = None,
    teacher: Teacher | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy over a batch's labelled tokens, and their number (float32 scalars).

    Args:
      params: with adapters apart.
      dropout: the random key of what adapters drop; None drops nothing.
      teacher: whose divergence has a share in the loss.
    """
    variables = {"params": joined(params)}
    taught = None
    if teacher is not None:
        if batch.pixels is not None and batch.query_ends.shape[1]:
            # Once for both.
            states: PyTree = model.apply(variables, batch.pixels, method=VLM.encode_image)
            batch = batch._replace(pixels=None, features=states)
        taught = teacher.read(params, batch)
    hidden: PyTree = model.apply(variables, batch, rngs=None if dropout is None else {"dropout": dropout})
    matrix: PyTree = model.apply(variables, method=VLM.output_matrix)
    softcap = model.config.decoder.logit_softcap
    return cross_entropy_sum(hidden, matrix, batch.labels, chunk, batch_parts(), taught, softcap)


def accumulated_gradients(
    model: VLM,
    trainable: dict[str, PyTree],
    frozen: dict[str, PyTree],
    batch: Batch,
    microbatches: int,
    chunk: int,
    dropout: jax.Array | None = None,
    teacher: Teacher | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, PyTree]]:
    """Mean loss over all labelled tokens of the batch, their number, and its gradient.

    The batch's rows are cut into `microbatches` that run one after another; sums are divided once at
    the end, so the result does not depend on how labelled tokens fall into microbatches. What adapters drop
    does: `dropout` is the batch's key, of which each microbatch has one of its own.
    """

    def objective(
        trainable: dict[str, PyTree], part: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        return loss_sum(model, {**frozen, **trainable}, part, chunk, key, teacher)

    if microbatches == 1:
        (total, count), grads = jax.value_and_grad(objective, has_aux=True)(trainable, batch, dropout)
    else:
        parts = _microbatches(batch, microbatches)
        # The backward pass adds each layer's gradient to these as it gets to it: a microbatch has no gradients
        # of its own beside the sums.
        refs = jax.tree.map(lambda x: jax.new_ref(jnp.zeros_like(x)), trainable)

        keys = None if dropout is None else jax.random.split(dropout, microbatches)

        def add(
            sums: tuple[jax.Array, jax.Array], one: tuple[Batch, jax.Array | None]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            backward: PyTree
            total, backward, count = jax.vjp(lambda t: objective(t, *one), trainable, has_aux=True)
            backward.with_refs(refs)(jnp.ones_like(total))
            return (sums[0] + total, sums[1] + count), None

        zero = jnp.zeros((), jnp.float32)
        (total, count), _ = jax.lax.scan(add, (zero, zero), (parts, keys))
        grads = jax.tree.map(jax.freeze, refs)
    scale = 1.0 / jnp.maximum(count, 1.0)
    return total * scale, count, jax.tree.map(lambda g: g * scale, grads)


def _microbatches(batch: Batch, number: int) -> Batch:
    """Leaves [microbatches, ...]. Pool p goes to microbatch p % microbatches, so that every device keeps pools of its
    own in each; a row alone is one, too."""
    pools = batch.query_ends.shape[0]

    def cut(x: jax.Array) -> jax.Array:
        pooled = x.reshape(pools // number, number, len(x) // pools, *x.shape[1:])
        return pooled.swapaxes(0, 1).reshape(number, len(x) // number, *x.shape[1:])

    return jax.tree.map(cut, batch)


def summed_loss(
    model: VLM, params: dict[str, PyTree], batch: Batch, microbatches: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """As `loss_sum` of the whole batch, a microbatch at a time."""

    def add(sums: tuple[jax.Array, jax.Array], part: Batch) -> tuple[tuple[jax.Array, jax.Array], None]:
        loss, count = loss_sum(model, params, part, chunk)
        return (sums[0] + loss, sums[1] + count), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), _microbatches(batch, microbatches))[0]


def train_step(model: VLM, config: RunConfig, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """One pure optimizer step; where the loss or a gradient is not finite, or there is no label, nothing but the
    counters moves.

    Returns:
      The new state, and float32 scalars: loss (mean over the global batch's labelled tokens, in
      nats), label_tokens, grad_norm (before clipping), learning_rate, finite (1 or 0; 0 without labels).
    """
    train = config.train
    # Of seed and step alone, so that a run that goes on drops what it would have dropped.
    drops = config.model.lora.rank and config.model.lora.dropout
    key = jax.random.fold_in(jax.random.key(train.seed), state.step) if drops else None
    loss, count, grads = accumulated_gradients(
        model,
        state.trainable,
        state.frozen,
        batch,
        train.grad_accum_steps,
        train.loss_chunk,
        key,
        teacher_of(config),
    )
    norm = optax.tree.norm(grads)
    # A batch without labels has no loss; momentum and weight decay would move the parameters all the same.
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & (count > 0)
    optimizer = run_optimizer(config)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)

    def keep(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    bad = 1 - finite.astype(jnp.int32)
    metrics = {
        "loss": loss,
        "label_tokens": count,
        "grad_norm": norm,
        "learning_rate": jnp.asarray(schedule(config.optimizer, train.steps)(state.step), jnp.float32),
        "finite": finite.astype(jnp.float32),
    }
    new = TrainState(
        step=state.step + 1,
        trainable=keep(trainable, state.trainable),
        frozen=state.frozen,
        opt_state=keep(opt_state, state.opt_state),
        bad_run=(state.bad_run + bad) * bad,
        skipped=state.skipped + bad,
    )
    return new, metrics


def boxed_params(config: RunConfig, spec: Batch) -> PyTree:
    """Shapes and dtypes of the parameters that a batch of this form touches, adapters apart, with their logical
    axes."""
    model = VLM(config.model)
    return apart(jax.eval_shape(lambda b: model.init(jax.random.key(0), b, method=_touch)["params"], spec))


def abstract_params(config: RunConfig, mesh: Mesh, spec: Batch) -> PyTree:
    """Shapes, dtypes and shardings of the parameters that a batch of this form touches."""
    boxed = boxed_params(config, spec)
    shardings = parameter_shardings(boxed, mesh, sharding_rules(config.mesh))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.meta.unbox(boxed), shardings
    )


def _touch(model: VLM, batch: Batch) -> jax.Array:
    """Runs every part that training uses, so that init creates its parameters."""
    model.output_matrix()
    return model(batch)


def check_division(config: RunConfig, mesh: Mesh) -> None:
    """Raises UserError unless a microbatch's rows, and a sequence that is to be split, divide over the mesh."""
    train, data, tensor = config.train, config.data, mesh.shape["tensor"]
    rows, parts = train.batch_size / train.grad_accum_steps, batch_parts(mesh)
    if rows % (parts * data.rows_per_pool):
        pools = f", each in pools of data.pooled_rows {data.pooled_rows}" if data.rows_per_pool > 1 else ""
        raise UserError(
            f"train.batch_size {train.batch_size} in train.grad_accum_steps {train.grad_accum_steps} "
            f"microbatches gives {rows:g} rows, which do not divide over {parts} devices of mesh axes data "
            f"and fsdp{pools}; change one"
        )
    sizes = [("max_length", length) for length in padded_lengths(data, config.model)]
    if config.train.distil.weight:
        longest = data.row_images(config.model.visual_tokens, config.model.vision.max_crops)
        sizes += [
            (
                "max_length, with all patches in the teacher's rows,",
                teacher_length(config.model, data, size, longest),
            )
            for size in {size for _, size in sizes}
        ]
    sizes += [("query_length", size) for size in query_buckets(data, config.model)]
    for name, size in sizes:
        if config.mesh.sequence_parallel and size % tensor:
            raise UserError(
                f"mesh.sequence_parallel: data.{name} {size} does not divide over the {tensor} "
                "devices of mesh axis tensor; change one of them"
            )


def build_trainer(config: RunConfig, mesh: Mesh) -> Trainer:
    """Compiled init and step for a run on a mesh.

    The batch carries cached features when `data.cached_features` is set; the tower then has no
    parameters in the state.

    Raises:
      UserError: rows, sequence or a parameter do not divide over the mesh.
    """
    check_division(config, mesh)
    model, train = VLM(config.model), config.train
    spec = batch_spec(config.model, config.data, train.batch_size, config.data.cached_features)
    params = abstract_params(config, mesh, spec)
    optimizer = run_optimizer(config)
    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    scalar: PyTree = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)

    def start(given: PyTree, key: jax.Array) -> TrainState:
        example = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            batch_spec(config.model, config.data, 1, config.data.cached_features),
        )
        # Of these, only what is not given is ever made.
        random = apart(nn.meta.unbox(model.init(key, example, method=_touch)["params"]))
        trainable, frozen = split_params(with_teacher(random | given, config), train)
        frozen = stored_frozen(frozen, config)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, trainable, frozen, optimizer.init(trainable), zero, zero)

    trainable, frozen = split_params(with_teacher(params, config), train)
    frozen = stored_frozen(frozen, config)
    opt_shapes = jax.eval_shape(optimizer.init, trainable)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda slot, p: jax.ShapeDtypeStruct(slot.shape, slot.dtype, sharding=p.sharding),
        opt_shapes,
        trainable,
        transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    )
    abstract = TrainState(scalar, trainable, frozen, opt_state, scalar, scalar)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with nn.logical_axis_rules(sharding_rules(config.mesh)):
            return train_step(model, config, state, batch)

    jitted = jax.jit(
        step, donate_argnums=0, in_shardings=(shardings, rows), out_shardings=(shardings, everywhere)
    )

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return jitted(state, batch)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def measure(params: dict[str, PyTree], batch: Batch) -> tuple[jax.Array, jax.Array]:
        with nn.logical_axis_rules(sharding_rules(config.mesh)):
            return summed_loss(model, params, batch, train.grad_accum_steps, train.loss_chunk)

    def evaluate(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
        with jax.set_mesh(mesh):
            return measure({**state.frozen, **state.trainable}, batch)

    def lower(platform: str = "", query_length: int = 0) -> jax.stages.Lowered:
        batch = batch_spec(
            config.model, config.data, train.batch_size, config.data.cached_features, query_length
        )
        with jax.set_mesh(mesh):
            if not platform:
                return jitted.lower(abstract, batch)
            device = jax.sharding.AbstractDevice(platform, None, "gpu" if platform == "cuda" else platform)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh.update(abstract_device=device)):
                return jitted.trace(abstract, batch).lower(lowering_platforms=(platform,))

    def put(batch: Batch) -> Batch:
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(rows, x), batch._replace(ids=None)
        )

    return Trainer(
        mesh=mesh,
        abstract_state=abstract,
        abstract_batch=spec,
        init=jax.jit(functools.partial(start, {}), out_shardings=shardings),
        start=jax.jit(start, out_shardings=shardings, donate_argnums=0),
        step=run,
        evaluate=evaluate,
        put=put,
        lower=lower,
    )
