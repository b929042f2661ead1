"""What a grid of decoders and V found, in plain sentences computed from its numbers."""

from collections.abc import Iterator

from quecc_jax.experiments import stats
from quecc_jax.experiments.stats import Results, Score
from quecc_jax.pages.numbers import flops_text, percent_text


def findings(results: Results) -> list[str]:
    """All sentences, each about one task or one question, most important first."""
    return [*_task_findings(results), *_query_findings(results), *_advice_findings(results)]


def _task_findings(results: Results) -> Iterator[str]:
    counts = results["visual_tokens"]
    for task in stats.tasks(results["rows"]):
        (decoder, v), top = stats.best(stats.grid(results["rows"], task))
        sentences = [
            f"{title(task)}: the best model (decoder {decoder}, V = {v}) answers {_percent(top)} of "
            f"{top.questions:,} test questions"
        ]
        without = stats.baseline(results["rows"], task)
        if without:
            blind = stats.best(without)[1]
            gain, error = stats.margin(top, blind)
            sentences[0] += f", against {_percent(blind)} for the best model that sees no image"
            sentences.append(f"The margin is {100 * gain:+.1f} points, {_in_errors(gain, error)}")
        by_tokens, by_size = stats.spread(results, task)
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
    pairs = stats.ablation(results["rows"])
    for v in sorted({pair.visual_tokens for pair in pairs}):
        chosen = [pair for pair in pairs if pair.visual_tokens == v]
        gain, error = stats.ablation_effect(chosen)
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
    for decoder in sorted({pair.llm for pair in pairs if pair.visual_tokens == 1}):
        asked, blind = (stats.attention(results, decoder, query) for query in ("question", "zero"))
        if asked is not None and blind is not None:
            chance = 100 / results["steps"]["data"]["side"] ** 2
            yield (
                f"Attention: at V = 1, decoder {decoder}, {100 * asked:.0f} % of it falls on the cell that "
                f"the question names, {100 * blind:.0f} % with zeros; looking everywhere alike gives "
                f"{chance:.0f} %."
            )


def _advice_findings(results: Results) -> Iterator[str]:
    for task in stats.tasks(results["rows"]):
        scores, counted = stats.grid(results["rows"], task), stats.grid_flops(results["rows"], task)
        top, _ = stats.best(scores)
        cheap = stats.cheapest_near_best(results["rows"], task)
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
    return percent_text(score.mean, score.stderr)


def _percent(score: Score) -> str:
    return f"{brief(score)} %"
