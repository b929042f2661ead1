"""The page of a model on the Hub: what it is, how it was trained, what it scored. Nothing in it is invented."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from quecc_jax.config import RunConfig
from quecc_jax.config.io import differences
from quecc_jax.config.shapes import listed
from quecc_jax.convert.sidecar_files import kept_origins
from quecc_jax.errors import UserError
from quecc_jax.evaluate.results import Results, Scored
from quecc_jax.paths import is_remote
from quecc_jax.records import Damaged, read_record
from quecc_jax.train.run_dir import load_run_config

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_PLACES = re.compile(
    r"(out|init_from|tower_from|profile|data\.(tokenizer|query_tokenizer|cache|sources)|mesh\..*)"
)
"""Settings that say where something lies, or on what it ran."""


def model_card(run: Path, name: str, licence: str, scores: Sequence[Path]) -> str:
    """README.md of a run's export.

    Args:
      run: its directory.
      name: ORG/NAME.
      licence: as the Hub calls it.
      scores: directories of `launch.evaluate`.

    Raises:
      UserError: no licence is named, or one that cannot be one; or scores are of another run.
    """
    if not _LICENCE.fullmatch(licence):
        raise UserError(
            f"--license {licence!r} is no licence as the Hub calls them; say which one this model has, as apache-2.0, "
            "llama2 or other: it depends on those of the weights that it began with"
        )
    config = load_run_config(run)
    began = _origins(run, config)
    head = {
        "license": licence,
        "pipeline_tag": "image-text-to-text",
        "tags": ["quecc_jax", config.model.compressor.name],
    }
    if began:
        head["base_model"] = sorted({origin.partition("@")[0] for origin in began})
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", f"# {name}", ""]
    lines += [*_what(config), "", *_recipe(run, config, began), "", *_scores(run, scores)]
    return "\n".join(lines) + "\n"


def _what(config: RunConfig) -> Iterator[str]:
    model = config.model
    vision, decoder, elastic = model.vision, model.decoder, model.compressor.elastic
    others = f", or one of {listed(elastic)}" if elastic else ""
    yield (
        f"A vision-language model with the compressor `{model.compressor.name}`: {model.visual_tokens} visual tokens "
        f"of an image{others}."
    )
    yield ""
    yield f"- decoder: {decoder.depth} layers of width {decoder.width}, a vocabulary of {decoder.vocab_size}"
    yield (
        f"- tower: {vision.depth} layers of width {vision.width}, images of {vision.image_size} pixels in patches of "
        f"{vision.patch_size}"
    )
    yield f"- projector: {model.projector}"
    yield f"- prompts: {config.data.template}; images: {config.data.image_aspect}"


def _recipe(run: Path, config: RunConfig, began: Sequence[str]) -> Iterator[str]:
    yield "## Recipe"
    yield ""
    if began:
        yield f"Began with {', '.join(began)}."
        yield ""
    steps = _steps(run)
    if not steps:
        yield "These are imported weights; nothing was trained."
        return
    names = ", ".join(Path(source.path).name for source in config.data.sources)
    yield f"{steps} steps of stage {config.train.stage} on {names or 'data that the settings do not name'}, with"
    yield ""
    yield "```"
    for line in differences(RunConfig(), config):
        setting, _, values = line.partition(": ")
        if not _PLACES.fullmatch(setting):
            yield f"{setting} = {values.rpartition(' -> ')[2]}"
    yield "```"


def _scores(run: Path, scores: Sequence[Path]) -> Iterator[str]:
    yield "## Scores"
    yield ""
    if not scores:
        yield "None were given."
        return
    yield "| benchmark | score | standard error | questions | visual tokens |"
    yield "|---|---|---|---|---|"
    for folder in scores:
        results = _results(folder)
        if Path(results["checkpoint"]).resolve() != run.resolve():
            raise UserError(
                f"--scores {folder} are of {results['checkpoint']}, not of {run}; give those of the run that is pushed"
            )
        for task, scored in results["tasks"].items():
            yield _line(task, scored, results["visual_tokens"])


def _line(task: str, scored: Scored, tokens: int) -> str:
    metric = scored["metrics"].get(scored["headline"] or "")
    if metric is None:
        value = error = "not public"
    else:
        value = f"{metric['value']:.1f}"
        error = "" if metric["standard_error"] is None else f"{metric['standard_error']:.1f}"
    headline = f" ({scored['headline']})" if scored["headline"] else ""
    return f"| {task}{headline} | {value} | {error} | {scored['questions']} | {tokens} |"


def _results(folder: Path) -> Results:
    file = folder / "results.json"
    try:
        return read_record(file, Results, "score the answers again")
    except FileNotFoundError:
        raise UserError(
            f"--scores {folder} has no results.json; give a directory that launch.evaluate wrote"
        ) from None
    except Damaged as error:
        raise UserError(f"{error}; only scores of benchmarks (--tasks) go onto a page") from None


def _steps(run: Path) -> int:
    """Of the newest checkpoint; 0 of imported weights."""
    return max((int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def _origins(run: Path, config: RunConfig) -> list[str]:
    """ORG/NAME@COMMIT of what a run, or one that it goes back to, was imported from."""
    seen, found = set[str](), list[str]()
    where = str(run)
    while where and where not in seen and not is_remote(where):
        seen.add(where)
        found += kept_origins(Path(where)).values()
        try:
            where = config.init_from
            config = load_run_config(where) if where else config
        except UserError:
            break
    return list(dict.fromkeys(found))
