"""Which rules a checkpoint needs: from config files and names to settings, rules and what is left out."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from quecc_jax.config import DecoderConfig, ModelConfig, QueccConfig, QueryConfig, RunConfig, VisionConfig
from quecc_jax.config.io import from_dict, to_dict
from quecc_jax.config.shapes import tiled_tokens
from quecc_jax.config.validation import validate
from quecc_jax.convert.formats import families, llava, llava_hf
from quecc_jax.convert.formats.compressors.registry import KEYS, PROJECTORS, is_beside
from quecc_jax.convert.formats.decoder_rules import body_prefix, decoder_rules, embedding_name
from quecc_jax.convert.formats.family_keys import settings
from quecc_jax.convert.formats.towers import clip_text
from quecc_jax.convert.formats.towers.clip import CLIP
from quecc_jax.convert.formats.towers.families import (
    KINDS,
    hf_vision_config,
    tower_family,
    vision_config,
    vision_rules,
)
from quecc_jax.convert.formats.towers.family import TowerFamily
from quecc_jax.convert.image_processor import check_constants, check_maps, pads, with_pixels
from quecc_jax.convert.io.adapters import refuse_tensors
from quecc_jax.convert.rules import Rule, Shape, check
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

Layout = Literal["llava", "llava_hf", "decoder", "tower", "clip_text", "projector"]
"""The original project's whole model; transformers' LlavaForConditionalGeneration; a language model;
a vision tower; a CLIP text tower; the original's stage 1 output, compressor and projector alone."""

_BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|embeddings\.position_ids)")
"""Constants that old files store beside the weights."""
_BESIDE = re.compile(r"(.*\.)?(vision_tower|multi_modal_projector)\..*")
"""What stands beside Gemma 3's language model, set aside for exports."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint's config.json and tensor names: what is known before any tensor is read."""

    hf: JsonObject
    """Its config.json."""
    found: Mapping[str, Shape]
    """Shapes of all its tensors by name."""
    where: str = "the checkpoint"
    """Its directory or file, for messages."""
    image_processor: JsonObject = dataclasses.field(default_factory=dict)
    """Settings of the image processor beside it."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What is read from one source."""

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    """Names there that no rule reads, knowingly."""
    carried: bool = True
    """Whether they are set aside, so that an export gives them back."""


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """A run's settings and the rules that fill its parameters."""

    config: RunConfig
    """model and data.image_aspect, max_length, images_per_row; `out`, the tokenizer and the template are the
    caller's to set."""
    layout: Layout
    """The main source's format."""
    family: str | None
    """The decoder's model_type; None without a decoder."""
    parts: dict[str, Part]
    """By source, "model", "vision", "projector" or "text": those that tensors are read from."""
    why: str = ""
    """Why config.data.template is what it is."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules; together they fill each leaf once."""
        return tuple(rule for part in self.parts.values() for rule in part.rules)


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """A config.json and the rules that make the tensors beside it."""

    hf: JsonObject
    rules: tuple[Rule, ...]


def plan_import(
    model: Source, vision: Source | None = None, projector: Source | None = None, text: Source | None = None
) -> ImportPlan:
    """Finds out what a checkpoint is, and checks that its tensors are exactly those that it needs.

    A language model alone gives parameters `decoder`, a vision tower `vision`, a stage 1 output
    `compressor` and `projector`, the others a whole model. A tower and a projector given beside a
    language model make it whole. A model of the original format describes its tower by name only, so
    `vision` says what it is; its tensors are read only if the model does not bring its own.

    Args:
      model: a language model, a vision tower, or a vision-language model of either format.
      vision: a vision tower.
      projector: the original's `mm_projector.bin` with the config.json written beside it.
      text: a CLIP text tower, or a whole CLIP, that is to encode the questions.

    Raises:
      UserError: missing, unknown or reshaped tensors, all of them; a setting that is not implemented;
        or sources that do not go together.
    """
    given = {"model": model, "vision": vision, "projector": projector, "text": text}
    sources = {name: source for name, source in given.items() if source is not None}
    for one in sources.values():
        refuse_tensors(one.found, one.hf, one.where)
    if model.hf.get("model_type") in KINDS or str(model.hf.get("model_type")).startswith("siglip2"):
        plan, spare = _import_tower(model), vision or projector
    elif llava_hf.is_llava_hf(model.hf):
        plan, spare = _import_llava_hf(model), vision or projector
    elif llava.is_original(model.hf):
        plan, spare = _import_original(model, vision), projector
    else:
        plan, spare = _import_decoder(model, vision, projector), None
    if spare is not None:
        raise UserError(
            f"{model.where} leaves no room for {spare.where}; give a language model to put it "
            "in front of, or leave it out"
        )
    if text is not None:
        plan = _with_text(plan, text)
    # The numbers are a stranger's: they must be of our types as well as fit each other.
    from_dict(ModelConfig, to_dict(plan.config.model), "model")
    validate(plan.config)
    for name, part in plan.parts.items():
        check(part.rules, sources[name].found, part.ignored, sources[name].where)
    return plan


def plan_export(
    config: RunConfig, layout: Layout, family: str | None = None, image_token: int | None = None
) -> ExportPlan:
    """The config.json and rules that write a run's parameters in a format, under its usual names.

    Args:
      config: the run.
      layout: the format; "llava" may need a "tower" export beside it, see `llava.hf_original`.
      family: model_type of the decoder's names; None takes the first that can express it.
      image_token: "llava_hf": the id that stands for an image; None takes the first behind the vocabulary.

    Raises:
      UserError: the format cannot express the model, by setting.
    """
    model = config.model
    if layout == "tower":
        return ExportPlan(hf_vision_config(model.vision), tuple(vision_rules(model.vision)))
    if layout == "clip_text":
        return ExportPlan(
            clip_text.hf_text_config(model.query.text), tuple(clip_text.text_rules(model.query.text))
        )
    family = family or families.guess_family(model.decoder)
    if layout == "decoder":
        hf = families.hf_decoder_config(model.decoder, family, config.data.max_length)
        return ExportPlan(hf, tuple(decoder_rules(model.decoder, family)))
    if layout == "llava_hf":
        number = model.decoder.vocab_size if image_token is None else image_token
        hf = llava_hf.hf_llava(config, family, number)
        rules = [
            *vision_rules(model.vision, "vision_tower."),
            *llava_hf.llava_hf_adapter_rules(model),
            *llava_hf.with_rows(
                decoder_rules(model.decoder, family, "language_model."), hf["text_config"]["vocab_size"]
            ),
        ]
        return ExportPlan(hf, tuple(rules))
    body = body_prefix(family)
    rules = llava.adapter_rules(model, family, body)
    if layout == "llava":
        rules += vision_rules(model.vision, f"{body}vision_tower.vision_tower.")
        rules += decoder_rules(model.decoder, family)
    return ExportPlan(llava.hf_original(config, family), tuple(rules))


def _import_tower(source: Source) -> ImportPlan:
    part, tower = _tower(source)
    run = RunConfig(model=ModelConfig(vision=tower, compressor=_any_compressor(tower)))
    return ImportPlan(run, "tower", None, {"model": part})


def _any_compressor(tower: VisionConfig) -> QueccConfig:
    """One that fits every grid, so that a run without a compressor has valid settings."""
    return QueccConfig(kernel=tower.grid, stride=tower.grid)


def _import_decoder(source: Source, vision: Source | None, projector: Source | None) -> ImportPlan:
    family, decoder = families.family_of(source.hf), families.decoder_config(source.hf)
    rules = _decoder_part(source.found, decoder, family)
    other = (_BESIDE,) if families.has_unread_tower(source.hf) else ()
    parts = {"model": Part(tuple(rules), _matching(source.found, _BUFFERS, *other))}
    if not vision and not projector:
        run = _run(ModelConfig(decoder=decoder), family, source.hf, images=0, stage=0)
        return ImportPlan(run, "decoder", family, parts)
    if not vision:
        raise UserError(f"{source.where} has no vision tower; give its directory with --vision")
    parts["vision"], tower = _tower(vision)
    if not projector:
        model = ModelConfig(vision=tower, compressor=_any_compressor(tower), decoder=decoder)
        return ImportPlan(_run(model, family, source.hf, stage=1), "decoder", family, parts)
    if not llava.is_original(projector.hf):
        raise UserError(
            f"the config.json beside {projector.where} does not say which projector it is (no "
            "mm_projector_type); put the one that was written with it there"
        )
    # The decoder that is given counts, not the one that the projector was trained with.
    others = ("image_aspect_ratio", "image_grid_pinpoints", "s2", "s2_scales", *KEYS)
    multimodal = {k: v for k, v in projector.hf.items() if k.startswith("mm_") or k in others}
    model = llava.original_model(source.hf | multimodal, tower)
    prefix = _before_projector(projector.found, "model.")
    parts["projector"] = Part(tuple(llava.adapter_rules(model, family, prefix)))
    return ImportPlan(_run(model, family, projector.hf, stage=1), "decoder", family, parts)


def _import_original(source: Source, vision: Source | None) -> ImportPlan:
    family = families.family_of(source.hf)
    body = body_prefix(family)
    apart, tower = _tower(vision) if vision else (None, llava.original_tower(source.hf))
    check_constants(tower, source.image_processor, source.where)
    prefix = _before_projector(source.found, body)
    if source.found and all(is_beside(name, prefix) for name in source.found):
        model = llava.original_model(source.hf, tower)
        parts = {"model": Part(tuple(llava.adapter_rules(model, family, prefix)))}
        return ImportPlan(_run(model, family, source.hf, stage=1), "projector", family, parts)
    kind = tower_family(vision.hf) if vision else CLIP
    inside = _before(source.found, kind.anchor)
    if inside is None and apart is None:
        raise UserError(
            f"{source.where} holds no vision tower; give the directory of "
            f"{source.hf.get('mm_vision_tower')!r} with --vision"
        )
    rules = []
    if inside is not None:
        tower, apart = _with_post_norm(tower, kind, source.found, inside), None
        rules += kind.rules(tower, inside)
    model = llava.original_model(source.hf, tower)
    rules += llava.adapter_rules(model, family, prefix)
    rules += _decoder_part(source.found, model.decoder, family, body=body)
    parts = {"vision": apart} if apart is not None else {}
    parts["model"] = Part(tuple(rules), _matching(source.found, _BUFFERS))
    return ImportPlan(_run(model, family, source.hf, stage=2), "llava", family, parts)


def _import_llava_hf(source: Source) -> ImportPlan:
    model = llava_hf.llava_hf_model(source.hf)
    text, kind = llava_hf.text_config(source.hf), tower_family(llava_hf.tower_settings(source.hf))
    family = families.family_of(text)
    found = _before(source.found, kind.anchor)
    tower = f"vision_tower.{kind.prefix}" if found is None else found
    projector = _before(source.found, "linear_1.weight") or "multi_modal_projector."
    vision = _with_post_norm(model.vision, kind, source.found, tower)
    model = dataclasses.replace(model, vision=with_pixels(vision, kind, source.image_processor, source.where))
    check_maps(source.image_processor, llava.pinpoints(vision), source.where)
    rules = [
        *kind.rules(vision, tower),
        *llava_hf.llava_hf_adapter_rules(model, projector),
        *_decoder_part(source.found, model.decoder, family, "language_model."),
    ]
    # The processor beside it counts; transformers' usual one crops where the original's evaluation pads.
    aspect = "pad" if pads(source.image_processor) else "square"
    run = _run(model, family, text | {"image_aspect_ratio": aspect}, stage=2)
    part = Part(tuple(rules), _matching(source.found, kind.beside, _BUFFERS))
    return ImportPlan(run, "llava_hf", family, {"model": part})


def _run(
    model: ModelConfig, family: str, hf: JsonObject, stage: Literal[0, 1, 2], images: int = 1
) -> RunConfig:
    """Settings of a run that starts, or has ended, with these weights."""
    run = RunConfig(model=model)
    full = settings(families.language_model(hf), family) if families.family_of(hf) == family else hf
    longest = full.get("max_position_embeddings") or full.get("max_seq_len") or 2048
    image_tokens = images * tiled_tokens(model) if model.vision.tiles else 0
    data = dataclasses.replace(
        run.data,
        image_aspect="pad" if model.vision.tiles else hf.get("image_aspect_ratio") or "square",
        max_length=hf.get("tokenizer_model_max_length") or min(longest, run.data.max_length + image_tokens),
        images_per_row=images,
    )
    return dataclasses.replace(run, data=data, train=dataclasses.replace(run.train, stage=stage))


def _decoder_part(
    found: Mapping[str, Shape], decoder: DecoderConfig, family: str, prefix: str = "", body: str | None = None
) -> list[Rule]:
    """The decoder's rules under the prefixes that its names have in this file."""
    embed = _before(found, embedding_name(family))
    head = _before(found, "lm_head.weight")
    return decoder_rules(
        decoder,
        family,
        prefix if head is None else head,
        body if embed is None else embed,
        head_too=head is not None,
    )


def _tower(source: Source) -> tuple[Part, VisionConfig]:
    """The rules of a tower's directory, and the tower with or without the final norm, as it is there."""
    family = tower_family(source.hf)
    # It is the image processor that the original project reads, wherever the weights are.
    tower = with_pixels(vision_config(source.hf), family, source.image_processor, source.where)
    prefix = _before(source.found, family.anchor)
    prefix = family.prefix if prefix is None else prefix
    tower = _with_post_norm(tower, family, source.found, prefix)
    ignored = _matching(source.found, family.beside, _BUFFERS)
    return Part(tuple(family.rules(tower, prefix)), ignored), tower


def _with_text(plan: ImportPlan, source: Source) -> ImportPlan:
    """The plan of a model whose questions a text tower encodes."""
    prefix = _before(source.found, clip_text.TEXT_ANCHOR)
    tower = clip_text.text_config(source.hf, projected=clip_text.PROJECTION in source.found)
    rules = clip_text.text_rules(tower, "text_model." if prefix is None else prefix)
    part = Part(tuple(rules), _matching(source.found, clip_text.NOT_TEXT), carried=False)
    model = dataclasses.replace(plan.config.model, query=QueryConfig("clip_text", text=tower))
    config = dataclasses.replace(plan.config, model=model)
    return dataclasses.replace(plan, config=config, parts=plan.parts | {"text": part})


def _with_post_norm(
    tower: VisionConfig, family: TowerFamily, found: Mapping[str, Shape], prefix: str
) -> VisionConfig:
    return dataclasses.replace(tower, post_norm=f"{prefix}{family.post_norm}.weight" in found)


def _matching(names: Iterable[str], *patterns: re.Pattern[str]) -> tuple[str, ...]:
    """The names that a pattern describes, each once."""
    return tuple(dict.fromkeys(name for one in patterns for name in names if one.fullmatch(name)))


def _before_projector(names: Iterable[str], otherwise: str) -> str:
    """What stands before the names of projector and compressor; `otherwise` where there is neither."""
    for part in PROJECTORS:
        if (found := _before(names, part, inside=True)) is not None:
            return found.removesuffix(part)
    return otherwise


def _before(names: Iterable[str], part: str, inside: bool = False) -> str | None:
    """The prefix of the names that end in `part`; None if there is no such name.

    Args:
      names: of all tensors.
      part: the end of a name.
      inside: whether names may go on behind `part`, which the prefix then includes.

    Raises:
      UserError: different names begin differently.
    """
    if inside:
        found = {name[: name.index(part) + len(part)] for name in names if part in name}
    else:
        found = {name.removesuffix(part) for name in names if name.endswith(part)}
    if len(found) > 1:
        raise UserError(
            f"tensors called {part} stand under {', '.join(map(repr, sorted(found)))}; "
            "give a checkpoint that holds one model"
        )
    return found.pop() if found else None
