"""Parameters of runs, without their optimizers: written, read from a checkpoint, compared with what is wanted."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from quecc_jax.checksums import check_files
from quecc_jax.config import RunConfig
from quecc_jax.data.files import fresh_directory
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.models.kernel_forms import (
    Change,
    converted,
    different,
    in_form,
    like,
    with_kernel,
    without_kernels,
)
from quecc_jax.paths import as_path
from quecc_jax.records import Damaged
from quecc_jax.train.orbax_shim import first_line, frozen_form, quiet_libraries, readable, saving
from quecc_jax.train.reading import reading
from quecc_jax.train.run_dir import CHECKPOINTS, describe_run, load_run_config, run_and_step

Tree = dict[str, PyTree]
"""Parameters, or anything that stands for them, by top-level name."""
HALVES = (np.dtype(jnp.float16), np.dtype(jnp.bfloat16))
"""Types of stored parameters that are read as float32 where the model wants that, exactly."""
FROZEN = "frozen"
"""Name of the frozen parameters' directory, and, in a checkpoint's metadata, of what identifies it."""


def save_params(config: RunConfig, params: Tree) -> None:
    """Writes a run directory of parameters alone, which `load_params` reads, in the place of `config.out`.

    Args:
      params: by top-level name, e.g. {"vision": ...}.

    Raises:
      UserError: the directory holds a training run, or it cannot be written.
    """
    run = as_path(config.out)
    if any(p.name != "0" for p in (run / "checkpoints").glob("*")):
        raise UserError(f"{run} holds a training run; give another directory for the parameters")
    try:
        with fresh_directory(run) as aside:
            with quiet_libraries(), saving():
                ocp.save_checkpointables(aside / "checkpoints" / "0", {"params": params})
            describe_run(config, aside)
    except OSError as error:
        raise UserError(f"out directory {run} cannot be written ({error}); choose another") from None


def load_params(
    run_dir: str | os.PathLike[str], names: Iterable[str] | None = None, abstract: Tree | None = None
) -> tuple[RunConfig, Tree]:
    """Parameters of a run's newest readable checkpoint, without its optimizer.

    Args:
      run_dir: the run's directory; RUN/checkpoints/STEP takes that checkpoint or none.
      names: top-level names to read (compressor, projector, decoder, ...); None reads all that the
        run has and, where given, `abstract` has too.
      abstract: ShapeDtypeStructs with shardings by name; None gives numpy arrays on the host, as stored.
        What is stored in half precision becomes float32 where `abstract` says so. The decoder's matrices
        come in the forms that they have there, one by one; without `abstract` none is of few bits.

    Returns:
      The run's config (with its own tokenizer) and the parameters by top-level name.

    Raises:
      UserError: not a run's directory, no readable checkpoint, a name that it lacks, a leaf of another
        shape than `abstract` says, or a matrix that cannot take a form.
    """
    run, named = run_and_step(run_dir)
    config = load_run_config(run)
    steps = sorted((int(p.name) for p in (run / CHECKPOINTS).glob("*") if p.name.isdecimal()), reverse=True)
    if named is not None:
        if named not in steps:
            raise UserError(f"{run} has no checkpoint {named}; it has {', '.join(map(str, steps)) or 'none'}")
        steps = [named]
    wanted = None if names is None else list(names)
    for step in steps:
        try:
            with quiet_libraries():
                return config, _read_params(config, run, step, wanted, abstract)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, Damaged):
                raise
            notice(f"WARNING: checkpoint {step} of {run} cannot be read: {first_line(error)}")
    advice = "train it first, or give another run's directory" if named is None else "name another"
    raise UserError(f"{run} holds no readable checkpoint{'' if named is None else f' {named}'}; {advice}")


def _read_params(
    config: RunConfig, run: Path, step: int, names: list[str] | None, abstract: Tree | None
) -> Tree:
    path, frozen = run / "checkpoints" / str(step), run / FROZEN
    check_files_of(run, step)
    saved = ocp.checkpointables_metadata(path)
    trained = readable(saved.metadata, "params")
    check_frozen(run, step, saved.custom_metadata)
    fixed = frozen_form(frozen) if frozen.is_dir() else {}
    have = {**fixed, **trained}
    if abstract is not None and "decoder" in have and "decoder" in abstract:
        # Prompt embeddings may be made without them.
        unread = {"layers", "norm"} - abstract["decoder"].keys()
        have["decoder"] = {name: tree for name, tree in have["decoder"].items() if name not in unread}
    if names is None:
        names = [n for n in have if abstract is None or n in abstract]
    if missing := [n for n in names if n not in have]:
        raise UserError(f"{run} has no parameters {', '.join(missing)}; it has {', '.join(have)}")
    there = {n: jax.tree.map(_host_form, have[n]) if abstract is None else abstract[n] for n in names}
    changes: list[Change] = []
    if "decoder" in there:
        decoder, model = there["decoder"], config.model.decoder
        wanted = in_form(jax.eval_shape(lambda: decoder), model, None) if abstract is None else decoder
        there["decoder"] = decoder = like(decoder, have["decoder"], model)
        changes = list(different(decoder, wanted, model))
    for name in names:
        check_shapes({name: have[name]}, {name: there[name]}, str(run), widen=True)

    def load(some: Tree) -> Tree:
        params: Tree = {}
        context = reading(have, some)
        context.pytree.loading.partial_load = True
        with context:
            if part := {n: tree for n, tree in some.items() if n in trained}:
                params |= ocp.load_checkpointables(path, {"params": part})["params"]
            if part := {n: tree for n, tree in some.items() if n not in trained}:
                params |= ocp.load(frozen, part)
        return params

    if not changes:
        return load(there)
    params = load({**there, "decoder": without_kernels(decoder, [change.name for change in changes])})
    for change in changes:
        one = {"layers": {change.name: {"kernel": change.old}}}
        kernel = load({"decoder": one})["decoder"]["layers"][change.name]["kernel"]
        kernel = converted(kernel, change, f"decoder/layers/{change.name}/kernel of {run}")
        kernel = kernel if abstract is not None else np.asarray(kernel)
        params["decoder"] = with_kernel(params["decoder"], change.name, kernel)
    return params


def check_files_of(run: Path, step: int) -> None:
    """Compares a checkpoint's files with its list of them.

    Raises:
      Damaged: they are not what was saved after that step.
    """
    check_files(run / "checkpoints" / str(step), "restore it", str(step))


def check_frozen(run: Path, step: int, metadata: Any) -> None:
    """Compares the frozen parameters' files with their list, and that with a checkpoint's metadata.

    Raises:
      UserError: they are damaged, or not those that the checkpoint was trained with.
    """
    path = run / FROZEN
    advice = "restore that directory, or start over with --checkpoint.resume never"
    try:
        has = check_files(path, "copy it again", FROZEN)
    except Damaged as error:
        raise UserError(f"the frozen parameters in {path} cannot be read ({error}); {advice}") from None
    # Version 0.1 did not say.
    if isinstance(metadata, dict) and metadata.get(FROZEN, has) != has:
        raise UserError(
            f"the frozen parameters in {path} cannot be read: checkpoint {step} was trained with others; {advice}"
        )


def _host_form(leaf: PyTree) -> np.ndarray:
    """A numpy stand-in of a leaf's shape and dtype that takes no memory."""
    return np.broadcast_to(np.empty((), leaf.dtype), leaf.shape)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, as `a/b/0/c`; named tuples, dicts and lists spell their keys alike."""

    def name(key: Any) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(name, path)): leaf for path, leaf in flat}


def check_shapes(found: PyTree, expected: PyTree, where: str, widen: bool = False) -> None:
    """Compares two trees of anything with shape and dtype, leaf by leaf.

    Args:
      found: what is there.
      expected: what is wanted.
      where: the place of `found`, for messages.
      widen: whether half precision may stand where float32 is wanted.

    Raises:
      UserError: naming the first leaf that is missing, unexpected, or of another shape or dtype.
    """

    def form(leaf: PyTree) -> str:
        dtype = np.dtype(leaf.dtype)
        return f"shape {tuple(leaf.shape)} {np.dtype(np.float32) if widen and dtype in HALVES else dtype}"

    have, want = ({k: form(v) for k, v in named_leaves(t).items()} for t in (found, expected))
    for name in sorted(want.keys() - have.keys()):
        raise UserError(f"{where}: {name} is missing, expected {want[name]}; is it of another model?")
    for name in sorted(have.keys() - want.keys()):
        raise UserError(f"{where}: {name} of {have[name]} is not part of this run's model or optimizer")
    for name in want:
        if have[name] != want[name]:
            raise UserError(
                f"{where}: {name} has {have[name]}, expected {want[name]}; use the settings it was saved with"
            )
