"""What a grid run found, in plain sentences computed from the numbers of its `results.json`."""

from collections.abc import Iterator

from quecc_jax.experiments import summary
from quecc_jax.experiments.summary import Results, Score
from scaling.formatting import flops_text


def findings(results: Results) -> list[str]:
    """All sentences, each about one task or one question, most important first."""
    return [*_task_findings(results), *_query_findings(results), *_advice_findings(results)]


def _task_findings(results: Results) -> Iterator[str]:
    counts = results["visual_tokens"]
    for task in results["tasks"]:
        (decoder, v), top = summary.best(summary.grid(results, task))
        sentences = [
            f"{title(task)}: the best model (decoder {decoder}, V = {v}) answers {_percent(top)} of "
            f"{top.questions:,} test questions"
        ]
        without = summary.baseline(results, task)
        if without:
            blind = summary.best(without)[1]
            gain, error = summary.margin(top, blind)
            sentences[0] += f", against {_percent(blind)} for the best model that sees no picture"
            sentences.append(f"The margin is {100 * gain:+.1f} points, {_in_errors(gain, error)}")
        by_tokens, by_size = summary.spread(results, task)
        moves = []
        if by_tokens is not None:
            moves.append(f"{100 * by_tokens:+.1f} points from V = {min(counts)} to V = {max(counts)}")
        if by_size is not None:
            moves.append(f"{100 * by_size:+.1f} points from the smallest to the largest decoder")
        if moves:
            sentences.append(f"On average accuracy moves by {' and by '.join(moves)}")
        yield ". ".join(sentences) + "."


def _in_errors(gain: float, error: float) -> str:
    if error == 0:
        return "without any measurable error"
    count = gain / error
    return (
        f"{count:.0f} standard errors" if abs(count) >= 3 else f"within noise ({count:.1f} standard errors)"
    )


def _query_findings(results: Results) -> Iterator[str]:
    pairs = summary.ablation(results)
    for v in sorted({pair.visual_tokens for pair in pairs}):
        chosen = [pair for pair in pairs if pair.visual_tokens == v]
        gain, error = summary.ablation_effect(chosen)
        verb = "adds" if gain > 0 else "costs"
        change = f"{verb} {100 * abs(gain):.1f} ± {100 * error:.1f} points"
        if abs(gain) < 2 * error:
            change = (
                "makes no difference that these questions can resolve "
                f"({100 * gain:+.1f} ± {100 * error:.1f} points)"
            )
        models = "one pair" if len(chosen) == 1 else f"{len(chosen)} pairs"
        yield (
            f"The query: on questions about one mosaic cell at V = {v}, giving the compressor "
            f"the question instead of zeros {change}; {models} of models, "
            f"{chosen[0].question.questions:,} questions each."
        )
    for decoder in sorted({pair.decoder for pair in pairs if pair.visual_tokens == 1}):
        asked, blind = (summary.attention(results, decoder, query) for query in ("question", "zero"))
        if asked is not None and blind is not None:
            chance = 100 / results["plan"]["side"] ** 2
            yield (
                f"Attention: at V = 1, decoder {decoder}, {100 * asked:.0f} % of it falls on the cell that "
                f"the question names, {100 * blind:.0f} % with zeros; looking everywhere alike gives "
                f"{chance:.0f} %."
            )


def _advice_findings(results: Results) -> Iterator[str]:
    for task in results["tasks"]:
        scores, counted = summary.grid(results, task), summary.flops(results, task)
        top, _ = summary.best(scores)
        cheap = summary.cheapest_near_best(results, task)
        price = flops_text(counted[cheap])
        choice = f"decoder {cheap[0]} with V = {cheap[1]} ({_percent(scores[cheap])}, {price})"
        if cheap == top:
            yield f"Recommended for {task}: {choice}; no cheaper model comes within one standard error."
        else:
            yield (
                f"Recommended for {task}: {choice}. It is within one standard error of the best model, "
                f"at {100 * counted[cheap] / counted[top]:.0f} % of its compute for each question."
            )


def title(task: str) -> str:
    """A task's name as it starts a sentence."""
    return task[:1].upper() + task[1:]


def brief(score: Score) -> str:
    """Percentage and standard error without the unit, for tables."""
    return f"{100 * score.mean:.1f} ± {100 * score.stderr:.1f}"


def _percent(score: Score) -> str:
    return f"{brief(score)} %"
