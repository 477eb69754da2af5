"""The answer in sentences: what each trainer loses and gains compared with backprop."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from fgbench.analysis.cautions import MIN_SEEDS
from fgbench.analysis.compare import Comparison
from fgbench.analysis.pairing import Pair, closest_to_defaults, mean_validation_accuracy
from fgbench.analysis.time_to import geometric_mean
from fgbench.formatting import format_number
from fgbench.storage.metrics import COLUMNS

ANSWERED = ("test_accuracy", "epoch_time_s", "peak_memory_mib")
"""The measures in the answer, all at equal epochs."""

HEADLINE = "forward-gradient"
"""The trainer of the first sentence, if there are runs of it."""

VERDICTS = {"better": "better", "worse": "worse", "about the same": "same"}
"""The conclusions of a comparison that are definite."""


def _word(column: str, verdict: str) -> str:
    """A verdict on a column in words: ``less accurate``."""
    words = dict(zip(VERDICTS.values(), COLUMNS[column].words, strict=True))
    return words.get(verdict, f"no claim about {COLUMNS[column].label}")


@dataclass(frozen=True)
class Fact:
    """One measure of a trainer against its baseline.

    Attributes:
        name: of the measure.
        value: the difference or ratio, short.
        size: the same as a number; NaN where there is none.
        verdict: ``better``, ``worse``, ``same`` (as good as no difference) or ``unclear``.
        sentence: both means, the difference, its interval, the seeds.
    """

    name: str
    value: str
    size: float
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Answer:
    """What a trainer loses and gains on one task; ``notes`` are the conditions of the comparison."""

    pair: Pair
    facts: list[Fact]

    @property
    def caution(self) -> str:
        """Why nothing is claimed, if there is one reason."""
        return "Not enough seeds: one says nothing about the next." if len(self.pair.seeds) == 1 else ""

    @property
    def headline(self) -> str:
        """Such as ``less accurate, faster, more memory``."""
        if self.caution:
            return "no claim from 1 seed"
        return ", ".join(
            _word(column, fact.verdict) for column, fact in zip(ANSWERED, self.facts, strict=True)
        )


def find_answers(comparisons: Iterable[Comparison]) -> dict[str, list[Answer]]:
    """By task, an answer for the best series of every trainer, and for its plainest where that is another.

    The best has three seeds or more, where one has, and ends with the highest validation accuracy; the
    plainest is the best of those whose trainer's options are nearest their defaults: as published.
    """
    by_pair: dict[Pair, dict[str, Comparison]] = {}
    for each in comparisons:
        if each.budget == "epochs":
            by_pair.setdefault(each.pair, {})[each.measure.name] = each
    rivals: dict[str, dict[str, list[Pair]]] = {}
    for pair in by_pair:
        rivals.setdefault(pair.task, {}).setdefault(pair.series.trainer, []).append(pair)
    return {
        task: [
            Answer(pair, [_state(by_pair[pair][column]) for column in ANSWERED])
            for pairs in trainers.values()
            for pair in _chosen(pairs)
        ]
        for task, trainers in rivals.items()
    }


def _chosen(pairs: list[Pair]) -> list[Pair]:
    plain = closest_to_defaults(pair.series for pair in pairs)
    best_of_plain = max((pair for pair in pairs if pair.series in plain), key=_merit)
    return list(dict.fromkeys([max(pairs, key=_merit), best_of_plain]))


def summarise(answers: dict[str, list[Answer]]) -> str:
    """The first sentence: over all tasks, what the headline trainer's best series lose and gain."""
    found = [each for task in answers.values() for each in task]
    if not found:
        return "There is no trainer beside the baseline yet, so nothing can be compared."
    trainers = {each.pair.series.trainer for each in found}
    trainer = HEADLINE if HEADLINE in trainers else found[0].pair.series.trainer
    headline = [
        next(each for each in task if each.pair.series.trainer == trainer)
        for task in answers.values()
        if any(each.pair.series.trainer == trainer for each in task)
    ]
    subject, baseline, n = headline[0].pair.series.trainer, headline[0].pair.baseline.trainer, len(headline)
    parts = []
    for index, column in enumerate(ANSWERED):
        facts = sorted((each.facts[index] for each in headline), key=lambda fact: fact.size)
        for verdict in ("better", "worse", "same"):
            word = _word(column, verdict)
            if counted := [fact.value for fact in facts if fact.verdict == verdict]:
                ends = dict.fromkeys([counted[0], counted[-1]])
                parts.append(f"{word} in {len(counted)} of {n} ({' to '.join(ends)})")
    summary = f"{', '.join(parts)}" if parts else "nothing that the seeds at hand can show"
    uncounted = any(fact.verdict == "unclear" for each in headline for fact in each.facts)
    rest = " What is not counted, the runs at hand cannot show." if parts and uncounted else ""
    sentence = f"{subject} against {baseline}, on {n} task{'s' if n > 1 else ''}: {summary}.{rest}"
    return sentence[0].upper() + sentence[1:]


def _merit(pair: Pair) -> tuple[bool, float]:
    return len(pair.seeds) >= MIN_SEEDS, mean_validation_accuracy(pair.series)


def _state(comparison: Comparison) -> Fact:
    name = comparison.measure.name
    title = COLUMNS[name].label.capitalize()
    paired, n = comparison.paired, len(comparison.values)
    if paired is None:
        sentence = f"{title} cannot be compared: {comparison.obstacle}."
        return Fact(title, "-", math.nan, "unclear", sentence)
    mine, other = (fmean(side) for side in zip(*comparison.values, strict=True))
    ratio = geometric_mean([first / second if second else math.nan for first, second in comparison.values])
    amount = _amount(name, paired.mean)
    value, size = f"×{format_number(ratio, '.2f')}", ratio
    if name == "test_accuracy" or math.isnan(ratio):
        value, size = _signed(name, paired.mean), paired.mean
    if comparison.refusal:
        value = "-"
    conclusion = comparison.conclusion
    verdict = VERDICTS.get(conclusion, "unclear")
    compared = f"{title} is {_level(name, mine)} against {_level(name, other)}"
    if paired.mean == 0:
        change = "no difference"
    else:
        change = f"{amount} {'more' if paired.mean > 0 else 'less'}"
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    if paired.interval and paired.interval[0] != paired.interval[1]:
        low, high = (_signed(name, end) for end in paired.interval)
        seeds = f"95 % interval {low} to {high}, {seeds}"
    sentence = f"{compared}: {change} ({seeds})."
    if verdict == "unclear" and paired.mean and n > 1:
        sentence += f" {_caution(comparison)}"
    return Fact(title, value, size, verdict, sentence)


def _caution(comparison: Comparison) -> str:
    """Why an observed difference is not claimed."""
    assert comparison.paired is not None
    n, needed = comparison.paired.n, comparison.paired.seeds_needed
    if comparison.caution:
        return f"Not claimed: {comparison.caution}."
    if needed and needed > n:
        return f"Not enough seeds to call that a difference: about {needed} would be needed."
    return "Not shown once adjusted for the number of comparisons."


def _level(column: str, value: float) -> str:
    return f"{100 * value:.1f} %" if column == "test_accuracy" else f"{_digits(value)} {COLUMNS[column].unit}"


def _amount(column: str, difference: float) -> str:
    if column == "test_accuracy":
        return f"{abs(100 * difference):.1f} points"
    return f"{_digits(abs(difference))} {COLUMNS[column].unit}"


def _signed(column: str, difference: float) -> str:
    sign = "+" if difference > 0 else "−" if difference < 0 else ""
    return sign + _amount(column, difference).removesuffix(" points").removesuffix(f" {COLUMNS[column].unit}")


def _digits(value: float) -> str:
    return format_number(value, ".3g" if value < 1000 else ",.0f")
