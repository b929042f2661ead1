"""Chooses LLM size and visual tokens for a budget: `python -m scaling plan --fit DIR --ms 60 --chip h100 --out DIR`."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from quecc_jax.commands.checks import check_folder, check_least, refuse_unread
from quecc_jax.errors import UserError

if TYPE_CHECKING:
    from scaling.cost import Kind, Setup
    from scaling.efficiency.measured import Measured

T = TypeVar("T")

_ANSWER = 16
"""Generated tokens where none are named: a short answer."""

_budget = tyro.conf.create_mutex_group(required=True, title="budget")


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclasses.dataclass(frozen=True)
class Options:
    """Recommends the LLM size N and the visual tokens V that a budget should buy, by a fitted law, with intervals,
    the whole frontier and the regret of neighbouring choices. Writes plan.json, plan.html and PNG figures."""

    fit: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """fit.json of `scaling fit` (or its folder), or a published table: general, ocr."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; created if missing."""

    flops: Annotated[float | None, _budget] = None
    """FLOPs per query, such as 5e12."""
    ms: Annotated[float | None, _budget] = None
    """Milliseconds until a batch is answered; needs a chip."""
    usd: Annotated[float | None, _budget] = None
    """Dollars per million queries; needs a chip."""

    cost: Literal["counted", "published"] = "counted"
    """Every part from real shapes, or the paper's 2N(Q + V)."""
    query_tokens: int | None = None
    """Text tokens of a query in the LLM; by default the fit's."""
    question_tokens: int | None = None
    """Tokens of the bare question, which its encoder reads; by default --query-tokens."""
    encoder: Literal["decoder", "early_exit", "embeddings", "clip_text"] | None = None
    """What encodes the question for the compressor; by default decoder, the paper's."""
    exit_layer: int | None = None
    """Layers that --encoder early_exit runs."""
    answer_tokens: int | None = None
    """Generated tokens; by default 16, a short answer."""
    llms: tuple[str, ...] = ()
    """Sizes in billions, or names such as qwen1.5-4b; by default the fit's sizes."""
    visual_tokens: tuple[float, ...] = ()
    """Token counts to choose from; by default the fit's."""
    compressor: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """What makes the visual tokens: quecc (default, the paper's), mqt (any number to 256), m3, prumerge (any
    number), tokenpacker, avgpool and others."""

    chip: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """v4, v5e, v5p, v6e, a100, h100, l4, or TFLOP/s,GB/s,GB such as 989,3350,80."""
    chips: int | None = None
    """Chips that share a query, without cost of communication; by default 1."""
    efficiency: Annotated[str | None, tyro.conf.arg(metavar="SHARE|FILE")] = None
    """Share of its peaks that the chip reaches, by default 1; or a file of `benchmarks.serve --parts stages` with
    the share of each part of a query by batch and prompt length, and with a chip, for which --chip may be left out."""
    batch: int | None = None
    """Queries answered together; by default 1."""
    weights: Literal["bfloat16", "int8", "int4", "nf4"] | None = None
    """How the matrices of the decoder's layers are kept when it answers, which decides the bytes that a token
    reads; all else is bfloat16, by default these too."""
    price: float | None = None
    """Dollars per chip and hour, with --usd; by default the chip's list price on demand, where one is known."""


def run(options: Options) -> None:
    """Plans for one budget and writes everything to the folder."""
    # float64 is slow or missing on accelerators, and the problems are small.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _check(options)
    check_folder("--out", options.out)
    # Imported late, so that --help and mistakes in the command line answer at once.
    from quecc_jax.aot.chips import price_of
    from quecc_jax.pages import page
    from scaling.cost import Lengths, compressor_config, find_llm
    from scaling.limits import refuse_choices
    from scaling.planner import counted_options, make_plan, published_options
    from scaling.report import plan_page, plan_report, plan_tables
    from scaling.saved_fit import load_fit

    setup = _setup(options)
    fit = load_fit(options.fit)
    text = fit.law.query_tokens if options.query_tokens is None else float(options.query_tokens)
    fit = fit.with_text(text)
    question = text if options.question_tokens is None else float(options.question_tokens)
    if question > text:
        raise UserError(f"The question's tokens are part of the text: at most {text:g}, not {question:g}.")
    lengths = Lengths(text, options.answer_tokens or _ANSWER, question)
    wanted = options.llms or [f"{n:.12g}" for n in fit.params_b]
    counts = options.visual_tokens or fit.visual_tokens.tolist()
    refuse_choices(len(wanted) * len(counts), 1 if fit.samples is None else len(fit.samples.A))
    counts = distinct(counts, "visual tokens")
    if options.compressor is not None:
        for count in counts:
            compressor_config(options.compressor, count)
    counted = options.cost == "counted"
    if counted:
        llms = [find_llm(str(name)) for name in distinct(wanted, "LLMs")]
        choices = counted_options(llms, counts, lengths, setup)
    else:
        llms = []
        choices = published_options(distinct(sizes_of(wanted), "LLMs"), counts, text)
    # One of the three is given, which the command line sees to.
    budget = options.flops or (options.ms or 0) / 1e3 or options.usd or 0
    plan = make_plan(fit.law, fit.samples, choices, budget, setup.kind)
    asked = plan_report.Question(fit, lengths, setup, counted)
    out = options.out
    try:
        for name, content in plan_page.files(plan, asked, llms).items():
            page.write_atomically(out / name, content)
        record = json.dumps(plan_report.plan_record(plan, asked), indent=2, allow_nan=False)
        page.write_atomically(out / "plan.json", record + "\n")
    except OSError as problem:
        raise UserError(f"--out {out} cannot be written ({problem.strerror}); choose another") from None
    print(fit.law.formula())
    print(f"cost: {asked.cost_model}; {asked.convention}")
    if options.usd is not None:
        price, source = price_of(_chip_name(options, setup.measured), options.price)
        print(f"price: ${price:g} per chip and hour ({source})")
    for title, table in (
        ("Where the recommended choice's cost goes", plan_tables.parts_table(plan, asked)),
        ("What encodes its question", plan_tables.encoders_table(plan, asked)),
        ("What its training holds", plan_tables.training_table(plan, asked)),
        ("Frontier", plan_tables.frontier_table(plan, asked)),
        ("One step away", plan_tables.neighbour_table(plan, asked)),
    ):
        if table is not None:
            print(f"\n{title}\n{columns([table[0], *table[1]])}")
    print(f"\n{plan_report.advice(plan, asked)}")
    for sentence in plan_report.sentences(plan, asked):
        print(f"note: {sentence}")
    print(f"written to {out / 'plan.html'}")


def _check(options: Options) -> None:
    """Numbers out of range and options that would do nothing are mistakes."""
    for name in ("flops", "ms", "usd", "efficiency", "price"):
        value = _number(options.efficiency) if name == "efficiency" else getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is {value:g}; give a positive number")
    one_or_more = ("exit_layer", "answer_tokens", "chips", "batch")
    check_least(options, {"query_tokens": 0, "question_tokens": 0, **dict.fromkeys(one_or_more, 1)})
    for count in options.visual_tokens:
        if not 0 < count < math.inf:
            raise UserError(f"--visual-tokens has {count:g}; give positive numbers")
    if options.cost == "published":
        counted = (
            "ms",
            "usd",
            "chip",
            "answer_tokens",
            "question_tokens",
            "encoder",
            "exit_layer",
            "compressor",
            "efficiency",
        )
        why = "needs --cost counted; the published cost 2N(Q + V) knows FLOPs of prefill alone."
        refuse_unread(options, counted, why)
    given = options.encoder is not None or options.question_tokens is not None
    if given and not _reads_question(options.compressor):
        why = f"is of compressors that read the question, and {options.compressor} does not; leave it out."
        refuse_unread(options, ("encoder", "question_tokens"), why)
    if (options.encoder == "early_exit") != (options.exit_layer is not None):
        raise UserError("--encoder early_exit and --exit-layer go together: the exit, and after which layer.")
    if options.chip is None and not _names_file(options):
        refuse_unread(
            options, ("ms", "usd", "chips", "efficiency", "batch", "weights", "price"), "needs a --chip."
        )
    if options.usd is None:
        refuse_unread(options, ("price",), "is of a budget in dollars: add --usd or leave it out.")


def _number(text: str | None) -> float | None:
    """An option as a number, where it is one."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _names_file(options: Options) -> bool:
    return options.efficiency is not None and _number(options.efficiency) is None


def _chip_name(options: Options, measured: "Measured | None") -> str:
    """By which a list price is looked up."""
    if options.chip is None and measured is not None:
        return measured.chip.name
    return (options.chip or "").lower()


def _reads_question(compressor: str | None) -> bool:
    from quecc_jax.config.compressors import names, reads_question
    from scaling.cost import PAPERS_COMPRESSOR

    name = compressor or PAPERS_COMPRESSOR
    return name not in names() or reads_question(name)


def _setup(options: Options) -> "Setup":
    from quecc_jax.aot.chips import price_of
    from scaling.cost import PAPERS_COMPRESSOR, QueryConfig, Setup, find_machine, measured_machine
    from scaling.efficiency.record import read_efficiency

    machine, count = None, options.chips or 1
    measured = read_efficiency(options.efficiency or "") if _names_file(options) else None
    if options.chip is not None:
        machine = find_machine(options.chip, count, _number(options.efficiency) or 1.0)
    elif measured is not None:
        machine = measured_machine(measured, count)
    kind: Kind = "flops" if options.flops else "seconds" if options.ms else "usd"
    query = QueryConfig(options.encoder or "decoder", options.exit_layer or 0)
    compressor, weights = options.compressor or PAPERS_COMPRESSOR, options.weights or "bfloat16"
    price = None if options.usd is None else price_of(_chip_name(options, measured), options.price)[0]
    return Setup(kind, machine, options.batch or 1, price, query, compressor, weights, measured)


def sizes_of(names: Sequence[str]) -> list[float]:
    from scaling.cost import find_llm

    def size(name: str) -> float:
        try:
            value = float(name)
        except ValueError:
            return find_llm(name).params_b
        if not 0 < value < math.inf:
            raise UserError(f"A size must be a positive number of billions, not {name!r}.")
        return value

    return [size(name) for name in names]


def distinct(values: Sequence[T], what: str) -> list[T]:
    if len(set(values)) < len(values):
        raise UserError(f"The {what} to choose from name one twice: {', '.join(map(str, values))}.")
    return list(values)


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(["", first.strip().ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)
