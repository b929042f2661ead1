"""Measures that several benchmarks share: whether one answer is right, and by how much."""

import re
from collections.abc import Iterable, Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = int(re.UNICODE)
"""The official script passes this flag where a count belongs, so it drops that many periods at most."""
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_CONTRACTIONS = """
'ow's'at 'twas I'd've I'm I've ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've
mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't
shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd
who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've
y'all'll you'd you'd've you'll you're you've
"""
"""Words that the VQA script knows with one apostrophe missing (its table, github.com/GT-Vision-Lab/VQA)."""


def _without_apostrophe() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # So in the official table, although the others add apostrophes.
    for word in _CONTRACTIONS.split():
        for at, letter in enumerate(word):
            if letter == "'":
                table[word[:at] + word[at + 1 :]] = word
    return table


_RESTORED = _without_apostrophe()


def normalise_answer(text: str) -> str:
    """A short answer as the VQA challenge compares it.

    Lower case; punctuation dropped where it touches a space (or a number has a comma in it), otherwise
    made a space; periods dropped unless a digit follows; number words up to ten as digits; articles
    dropped; missing apostrophes put back. The EvalAI processor of the VQA challenge (Antol et al. 2015,
    github.com/GT-Vision-Lab/VQA, in the form of Pythia and MMF that LLaVA uses for VQAv2, VizWiz and
    TextVQA), quirks included.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _processed(text)


def _processed(text: str) -> str:
    """The part of `normalise_answer` that the VQA challenge's own script has."""
    kept = text
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text or _DIGIT_COMMA.search(text)
        kept = kept.replace(mark, "" if touches else " ")
    kept = _PERIOD.sub("", kept, count=_PERIODS)
    words = (_NUMBERS.get(word, word) for word in kept.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Agreement with human answers in 0..1: min(matches / 3, 1), averaged over leaving one human out.

    VQA accuracy (Antol et al. 2015) with both sides normalised, as the TextVQA and VizWiz evaluations have
    it; see `normalise_answer`.
    """
    return _agreement(normalise_answer(answer), [normalise_answer(human) for human in humans])


def vqa_challenge_accuracy(answer: str, humans: Sequence[str], always: bool = False) -> float:
    """The same as the VQA challenge's own script computes it (vqaEval.py of github.com/GT-Vision-Lab/VQA).

    Less is normalised: commas, question marks and possessives stay for the rule of punctuation, and where
    all humans gave one answer both sides stay as they are, case included, unless `always`.
    """
    given, *truths = (" ".join(re.split("[\n\t]", text)).strip() for text in (answer, *humans))
    if always or len(set(truths)) > 1:
        given, *truths = map(_processed, (given, *truths))
    return _agreement(given, truths)


def _agreement(given: str, truths: Sequence[str]) -> float:
    if not truths:
        return 0.0
    matches = sum(truth == given for truth in truths)
    shares = (min((matches - (truth == given)) / 3, 1.0) for truth in truths)
    return sum(shares) / len(truths)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: fewest insertions, deletions and replacements of one letter."""
    above = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        row = [i]
        for j, right in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (left != right)))
        above = row
    return above[-1]


def anls(answer: str, truths: Iterable[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the nearest truth in 0..1; 0 below the threshold.

    ANLS (Biten et al. 2019, "Scene Text Visual Question Answering", eq. 1) as the Robust Reading
    Competition's script computes it: case and repeated blanks do not count, and a similarity of exactly
    the threshold does. Lengths are those in capitals, blanks included: the script's way.
    """
    best = 0.0
    for truth in truths:
        distance = edit_distance(" ".join(truth.lower().split()), " ".join(answer.lower().split()))
        length = max(len(truth.upper()), len(answer.upper()))
        best = max(best, 1 - distance / length if length else 1.0)
    return best if best >= threshold else 0.0


def relaxed_match(answer: str, truth: str, tolerance: float = 0.05) -> bool:
    """Whether a number is within 5 % of the truth, or a text equals it up to case.

    Relaxed accuracy (Methani et al. 2020; Masry et al. 2022, "ChartQA", section 5.1) as its common
    implementation reads it: "12%" is 0.12, and a truth of 0 is compared as text.
    """
    number, target = _number(answer), _number(truth)
    if number is None or not target:
        return answer.lower() == truth.lower()
    return abs(number - target) / abs(target) <= tolerance


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def says_no(text: str) -> bool:
    """Whether an answer to a yes-or-no question is no; everything else counts as yes.

    The first sentence decides, by the words No, no and not: POPE's rule (Li et al. 2023,
    github.com/RUCAIBox/POPE, and LLaVA's eval_pope).
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return any(word in words for word in ("No", "not", "no"))
