"""`python -m scaling plan`: its options, and the recipe from them to plan.json and plan.html."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.cost import Kind, Setup

_ANSWER = 16
"""Generated tokens where none are named: a short answer."""


def add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the parser's."""
    plan = commands.add_parser(
        "plan",
        help="choose LLM size and visual tokens for a budget",
        description="Recommends the LLM size N and the visual tokens V that a budget should buy, by a fitted "
        "law, with intervals, the whole frontier and the regret of neighbouring choices. Writes plan.json, "
        "plan.html and PNG figures.",
    )
    plan.set_defaults(command=run_plan)
    plan.add_argument(
        "--fit",
        required=True,
        metavar="FILE",
        help="fit.json of `scaling fit` (or its folder), or a published table: general, ocr",
    )
    plan.add_argument(
        "--out", required=True, metavar="DIR", type=Path, help="folder for the results; created if missing"
    )
    budget = plan.add_argument_group("budget (one of)").add_mutually_exclusive_group(required=True)
    budget.add_argument("--flops", type=_positive, metavar="X", help="FLOPs per query, such as 5e12")
    budget.add_argument(
        "--ms", type=_positive, metavar="X", help="milliseconds until a batch is answered; needs --chip"
    )
    budget.add_argument(
        "--usd", type=_positive, metavar="X", help="dollars per million queries; needs --chip and --price"
    )
    plan.add_argument(
        "--cost",
        choices=("counted", "published"),
        default="counted",
        help="every part from real shapes (default), or the paper's 2N(Q + V)",
    )
    plan.add_argument(
        "--query-tokens",
        type=_count,
        metavar="Q",
        help="text tokens of a query in the LLM (default: the fit's)",
    )
    plan.add_argument(
        "--question-tokens",
        type=_count,
        metavar="N",
        help="tokens of the bare question, which its encoder reads (default: Q)",
    )
    plan.add_argument(
        "--encoder",
        choices=("decoder", "early_exit", "embeddings", "clip_text"),
        help="what encodes the question for the compressor (default: decoder, the paper's)",
    )
    plan.add_argument("--exit-layer", type=_whole, metavar="L", help="layers that --encoder early_exit runs")
    plan.add_argument(
        "--answer-tokens", type=_whole, metavar="G", help=f"generated tokens (default: {_ANSWER})"
    )
    plan.add_argument(
        "--llms",
        nargs="+",
        metavar="N",
        help="sizes in billions, or names such as qwen1.5-4b (default: the fit's sizes)",
    )
    plan.add_argument(
        "--visual-tokens",
        nargs="+",
        type=_positive,
        metavar="V",
        help="token counts to choose from (default: the fit's)",
    )
    plan.add_argument(
        "--compressor",
        metavar="NAME",
        help="what makes the visual tokens: quecc (default, the paper's), mqt (any number to 256), m3, "
        "prumerge (any number), tokenpacker, avgpool and others",
    )
    machine = plan.add_argument_group("machine")
    machine.add_argument(
        "--chip",
        metavar="NAME",
        help="v4, v5e, v5p, v6e, a100, h100, l4, or TFLOP/s,GB/s,GB such as 989,3350,80",
    )
    machine.add_argument(
        "--chips",
        type=_whole,
        metavar="K",
        help="chips that share a query, without cost of communication (default: 1)",
    )
    machine.add_argument(
        "--efficiency",
        type=_positive,
        metavar="X",
        help="share of its peaks that the chip reaches (default: 1)",
    )
    machine.add_argument("--batch", type=_whole, metavar="B", help="queries answered together (default: 1)")
    machine.add_argument("--price", type=_positive, metavar="USD", help="dollars per chip and hour")


def run_plan(options: argparse.Namespace) -> None:
    """Plans for one budget and writes everything to the folder."""
    # Imported here so that --help and usage errors answer at once.
    from quecc_jax.pages import page
    from scaling.cost import Lengths, compressor_config, find_llm
    from scaling.planner import counted_options, make_plan, published_options
    from scaling.report import plan_page, plan_report
    from scaling.saved_fit import load_fit

    _check(options)
    setup = _setup(options)
    fit = load_fit(options.fit)
    text = fit.law.query_tokens if options.query_tokens is None else float(options.query_tokens)
    fit = fit.with_text(text)
    question = text if options.question_tokens is None else float(options.question_tokens)
    if question > text:
        raise UserError(f"The question's tokens are part of the text: at most {text:g}, not {question:g}.")
    lengths = Lengths(text, options.answer_tokens or _ANSWER, question)
    counts = _distinct(options.visual_tokens or fit.visual_tokens.tolist(), "visual tokens")
    if options.compressor is not None:
        for count in counts:
            compressor_config(options.compressor, count)
    wanted = options.llms or [f"{n:.12g}" for n in fit.params_b]
    counted = options.cost == "counted"
    if counted:
        llms = [find_llm(str(name)) for name in _distinct(wanted, "LLMs")]
        choices = counted_options(llms, counts, lengths, setup)
    else:
        llms = []
        choices = published_options(_distinct(_sizes(wanted), "LLMs"), counts, text)
    budget = options.flops or (options.ms and options.ms / 1e3) or options.usd
    plan = make_plan(fit.law, fit.samples, choices, budget, setup.kind)
    asked = plan_report.Question(fit, lengths, setup, counted)
    out = options.out
    try:
        for name, content in plan_page.files(plan, asked, llms).items():
            page.write_atomically(out / name, content)
        record = json.dumps(plan_report.plan_record(plan, asked), indent=2, allow_nan=False)
        page.write_atomically(out / "plan.json", record + "\n")
    except OSError as problem:
        raise UserError(f"Cannot write to {out}: {problem.strerror}.") from None
    print(fit.law.formula())
    print(f"cost: {asked.cost_model}; {asked.convention}")
    for title, table in (
        ("Where the recommended choice's cost goes", plan_report.parts_table(plan, asked)),
        ("What encodes its question", plan_report.encoders_table(plan, asked)),
        ("Frontier", plan_report.frontier_table(plan, asked)),
        ("One step away", plan_report.neighbour_table(plan, asked)),
    ):
        if table is not None:
            print(f"\n{title}\n{_columns([table[0], *table[1]])}")
    print(f"\n{plan_report.advice(plan, asked)}")
    for sentence in plan_report.notes(plan, asked):
        print(f"note: {sentence}")
    print(f"written to {out / 'plan.html'}")


def _check(options: argparse.Namespace) -> None:
    """Options that would do nothing are mistakes."""
    if options.cost == "published":
        for name in ("ms", "usd", "chip", "answer_tokens", "question_tokens", "encoder", "exit_layer"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} needs --cost counted; the published cost 2N(Q + V) knows "
                    "FLOPs of prefill alone."
                )
    for name in ("encoder", "question_tokens"):
        if getattr(options, name) is not None and not _reads_question(options.compressor):
            raise UserError(
                f"--{name.replace('_', '-')} is of compressors that read the question, and "
                f"{options.compressor} does not; leave it out."
            )
    if (options.encoder == "early_exit") != (options.exit_layer is not None):
        raise UserError("--encoder early_exit and --exit-layer go together: the exit, and after which layer.")
    if options.chip is None:
        for name in ("ms", "usd", "chips", "efficiency", "batch", "price"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} needs a --chip.")
    if (options.usd is None) != (options.price is None):
        raise UserError("--usd and --price go together: a budget in dollars, and what a chip's hour costs.")


def _reads_question(compressor: str | None) -> bool:
    from scaling.cost import COMPRESSORS, PAPERS_COMPRESSOR

    kind = COMPRESSORS.get(compressor or PAPERS_COMPRESSOR)
    return kind is None or kind.reads_question


def _setup(options: argparse.Namespace) -> "Setup":
    from scaling.cost import PAPERS_COMPRESSOR, QueryConfig, Setup, find_machine

    machine = None
    if options.chip is not None:
        machine = find_machine(options.chip, options.chips or 1, options.efficiency or 1.0)
    kind: Kind = "flops" if options.flops else "seconds" if options.ms else "usd"
    query = QueryConfig(options.encoder or "decoder", options.exit_layer or 0)
    return Setup(
        kind, machine, options.batch or 1, options.price, query, options.compressor or PAPERS_COMPRESSOR
    )


def _sizes(names: Sequence[str]) -> list[float]:
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


def _distinct(values: Sequence[Any], what: str) -> list[Any]:
    if len(set(values)) < len(values):
        raise UserError(f"The {what} to choose from name one twice: {', '.join(map(str, values))}.")
    return list(values)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(["", first.strip().ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
