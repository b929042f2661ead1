"""Writes the inventories beside it: where the pages of other projects document the names that ours use.

    .venv-docs/bin/python docs/inventories/make.py

The build asks the network for each project's own `objects.inv` first and takes these where it cannot be reached (see
OTHERS in `docs/conf.py`). They hold few names, gathered by hand from the sources of these projects' documentation:
which page documents what. That each name exists is checked here against the installed packages; a page that moves
gives a link that leads to the top of a missing page, until the network's own inventory is read.
"""

import importlib
from pathlib import Path

from sphobjinv import DataObjStr, Inventory, compress

HERE = Path(__file__).parent

# Project -> page, where $ stands for the name -> Sphinx's role and the names.
PAGES: dict[str, dict[str, dict[str, str]]] = {
    "python": {
        "library/functions.html#$": {
            "class": "bool bytes dict float int list object range set slice str tuple type complex frozenset bytearray",
            "function": "open print",
        },
        "library/constants.html#$": {"data": "None NotImplemented"},
        "library/exceptions.html#$": {
            "exception": "BaseException Exception ImportError KeyError NotImplementedError OSError RuntimeError "
            "StopIteration TypeError ValueError SystemExit FileNotFoundError"
        },
        "library/typing.html#$": {
            "data": "typing.Any typing.Literal typing.ClassVar typing.Annotated typing.NotRequired typing.TypeGuard",
            "class": "typing.NamedTuple typing.IO typing.Protocol typing.TypedDict",
        },
        "library/collections.abc.html#$": {
            "class": "collections.abc.Callable collections.abc.Collection collections.abc.Hashable "
            "collections.abc.Iterable collections.abc.Iterator collections.abc.Mapping collections.abc.Sequence "
            "collections.abc.MutableMapping"
        },
        "library/pathlib.html#$": {"class": "pathlib.Path"},
        "library/os.html#$": {"class": "os.PathLike"},
        "library/io.html#$": {"class": "io.BytesIO"},
        "library/threading.html#$": {"class": "threading.Thread"},
    },
    "numpy": {
        "reference/generated/$.html#$": {"class": "numpy.ndarray numpy.dtype numpy.random.Generator"},
        "reference/arrays.scalars.html#$": {
            "class": "numpy.generic numpy.number numpy.bool numpy.int32 numpy.int64 numpy.uint8 numpy.uint32 "
            "numpy.uint64 numpy.float16 numpy.float32 numpy.float64"
        },
        "reference/typing.html#$": {"data": "numpy.typing.ArrayLike numpy.typing.DTypeLike"},
    },
    "jax": {
        "_autosummary/$.html#$": {
            "class": "jax.Array jax.ShapeDtypeStruct jax.Device jax.numpy.float32 jax.numpy.bfloat16",
            "function": "jax.jit jax.grad jax.vmap jax.make_mesh jax.device_put jax.lax.stop_gradient "
            "jax.random.key jax.random.fold_in jax.nn.dot_product_attention",
        },
        "jax.sharding.html#$": {
            "class": "jax.sharding.Mesh jax.sharding.NamedSharding jax.sharding.PartitionSpec jax.sharding.Sharding"
        },
    },
    "flax": {
        "api_reference/flax.linen/module.html#$": {"class": "flax.linen.Module"},
        "api_reference/flax.linen/decorators.html#$": {"function": "flax.linen.compact flax.linen.nowrap"},
        "api_reference/flax.linen/transformations.html#$": {"function": "flax.linen.scan flax.linen.remat"},
    },
    "optax": {
        "api/transformations.html#$": {
            "class": "optax.GradientTransformation optax.OptState",
            "function": "optax.clip_by_global_norm optax.scale_by_adam optax.add_decayed_weights",
        },
        "api/optimizers.html#$": {"function": "optax.adamw"},
        "api/optimizer_schedules.html#$": {
            "function": "optax.warmup_cosine_decay_schedule",
            "class": "optax.Schedule",
        },
        "api/combining_optimizers.html#$": {"function": "optax.chain"},
    },
    "orbax": {
        "api_reference/checkpoint.checkpoint_manager.html#$": {"class": "orbax.checkpoint.CheckpointManager"},
        "api_reference/checkpoint.v1.training.checkpointer.html#$": {
            "class": "orbax.checkpoint.v1.training.Checkpointer"
        },
    },
    "grain": {"grain.dataset.html#$": {"class": "grain.MapDataset"}},
}


def check(name: str) -> None:
    """Raises where no installed package has this name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]) or "builtins")
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return
    raise LookupError(name)


def inventory(project: str) -> Inventory:
    """The inventory of one project, its version that of the documentation that is newest."""
    made = Inventory()
    made.project, made.version = project, "latest"
    for page, roles in PAGES[project].items():
        for role, names in roles.items():
            for name in names.split():
                if name not in ("None", "NotImplemented"):
                    check(name)
                made.objects.append(
                    DataObjStr(
                        name=name,
                        domain="py",
                        role=role,
                        priority="1",
                        uri=page.replace("$", name),
                        dispname="-",
                    )
                )
    return made


def main() -> None:
    for project in PAGES:
        data = compress(inventory(project).data_file(contract=True))
        (HERE / f"{project}.inv").write_bytes(data)
        print(f"{project}.inv: {len(data)} bytes")


if __name__ == "__main__":
    main()
