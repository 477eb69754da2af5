"""The answer in plain sentences: what each trainer loses and gains against backprop. Imports no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from fgbench.analysis.compare import Comparison
from fgbench.analysis.measures import MEASURES, best
from fgbench.analysis.pairing import Pair
from fgbench.analysis.speed import geometric_mean

COLUMNS = ("test_accuracy", "epoch_time_s", "peak_memory_mib")
"""What the answer is about, all at equal epochs."""

HEADLINE = "forward-gradient"
"""The trainer that the first sentence is about, where there are runs of it."""

_WORDS = {
    "test_accuracy": ("more accurate", "less accurate", "accuracy"),
    "epoch_time_s": ("faster", "slower", "time"),
    "peak_memory_mib": ("less memory", "more memory", "memory"),
}


@dataclass(frozen=True)
class Fact:
    """One measure of a trainer against its baseline.

    Attributes:
        name: of the measure.
        value: the difference or ratio, short.
        size: the same as a number; NaN where there is none.
        verdict: ``better``, ``worse`` or ``unclear``.
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
        """Why nothing is claimed, where that has one reason."""
        return "Not enough seeds: one says nothing about the next." if len(self.pair.seeds) == 1 else ""

    @property
    def headline(self) -> str:
        """Such as ``less accurate, faster, more memory``."""
        if self.caution:
            return "no claim from 1 seed"
        return ", ".join(
            _WORDS[column][("better", "worse").index(fact.verdict)]
            if fact.verdict != "unclear"
            else f"no claim about {_WORDS[column][2]}"
            for column, fact in zip(COLUMNS, self.facts, strict=True)
        )


def find_answers(comparisons: Iterable[Comparison]) -> dict[str, list[Answer]]:
    """By task, an answer for the best series of every trainer, judged by validation accuracy."""
    by_pair: dict[Pair, dict[str, Comparison]] = {}
    for each in comparisons:
        if each.budget == "epochs":
            by_pair.setdefault(each.pair, {})[each.measure.column] = each
    chosen: dict[str, dict[str, Pair]] = {}
    for pair in by_pair:
        trainers = chosen.setdefault(pair.task, {})
        rival = trainers.setdefault(pair.series.trainer, pair)
        if _validation(pair) > _validation(rival):
            trainers[pair.series.trainer] = pair
    return {
        task: [
            Answer(pair, [_state(by_pair[pair][column]) for column in COLUMNS]) for pair in trainers.values()
        ]
        for task, trainers in chosen.items()
    }


def summarise(answers: dict[str, list[Answer]]) -> str:
    """The first sentence: over all tasks, what the headline trainer loses and gains."""
    found = [each for task in answers.values() for each in task]
    headline = [each for each in found if each.pair.series.trainer == HEADLINE]
    headline = headline or [
        each for each in found if each.pair.series.trainer == found[0].pair.series.trainer
    ]
    if not headline:
        return "There is no trainer beside the baseline yet, so nothing can be compared."
    subject, baseline, n = headline[0].pair.series.trainer, headline[0].pair.baseline.trainer, len(headline)
    parts = []
    for index, column in enumerate(COLUMNS):
        facts = sorted((each.facts[index] for each in headline), key=lambda fact: fact.size)
        for verdict, word in zip(("better", "worse"), _WORDS[column], strict=False):
            if counted := [fact.value for fact in facts if fact.verdict == verdict]:
                ends = dict.fromkeys([counted[0], counted[-1]])
                parts.append(f"{word} in {len(counted)} of {n} ({' to '.join(ends)})")
    told = f"{', '.join(parts)}" if parts else "nothing that the seeds at hand can show"
    uncounted = any(fact.verdict == "unclear" for each in headline for fact in each.facts)
    rest = " What is not counted, the seeds at hand cannot show." if parts and uncounted else ""
    sentence = f"{subject} against {baseline}, on {n} task{'s' if n > 1 else ''}: {told}.{rest}"
    return sentence[0].upper() + sentence[1:]


def _validation(pair: Pair) -> float:
    values = [best(run, MEASURES["val_accuracy"]) for run in pair.series.averaged]
    return fmean(0.0 if math.isnan(value) else value for value in values) if values else -1.0


def _state(comparison: Comparison) -> Fact:
    name = comparison.measure.column
    title = {
        "test_accuracy": "Test accuracy",
        "epoch_time_s": "Time per epoch",
        "peak_memory_mib": "Peak memory",
    }
    paired, n = comparison.paired, len(comparison.values)
    if paired is None:
        told = f"{title[name]} cannot be compared: {comparison.obstacle}."
        return Fact(title[name], "-", math.nan, "unclear", told)
    mine, other = (fmean(side) for side in zip(*comparison.values, strict=True))
    ratio = geometric_mean([first / second if second else math.nan for first, second in comparison.values])
    amount = _amount(name, paired.mean)
    value, size = f"×{ratio:.2f}", ratio
    if name == "test_accuracy" or math.isnan(ratio):
        value, size = _signed(name, paired.mean), paired.mean
    conclusion = comparison.conclusion
    verdict = conclusion if conclusion in ("better", "worse") else "unclear"
    compared = f"{title[name]} is {_level(name, mine)} against {_level(name, other)}"
    if paired.mean == 0:
        told = "no difference"
    else:
        told = f"{amount} {'more' if paired.mean > 0 else 'less'}"
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    if paired.interval and paired.interval[0] != paired.interval[1]:
        low, high = (_signed(name, end) for end in paired.interval)
        seeds = f"95 % interval {low} to {high}, {seeds}"
    sentence = f"{compared}: {told} ({seeds})."
    if verdict == "unclear" and paired.mean and n > 1:
        sentence += f" {_caution(comparison)}"
    return Fact(title[name], value, size, verdict, sentence)


def _caution(comparison: Comparison) -> str:
    """Why a difference that was seen is not claimed."""
    assert comparison.paired is not None
    n, needed = comparison.paired.n, comparison.paired.seeds_needed
    if needed and needed > n:
        return f"Not enough seeds to call that a difference: about {needed} would be needed."
    return "Not shown once adjusted for the number of comparisons."


def _level(column: str, value: float) -> str:
    return f"{100 * value:.1f} %" if column == "test_accuracy" else f"{_digits(value)} {_unit(column)}"


def _amount(column: str, difference: float) -> str:
    if column == "test_accuracy":
        return f"{abs(100 * difference):.1f} points"
    return f"{_digits(abs(difference))} {_unit(column)}"


def _signed(column: str, difference: float) -> str:
    sign = "+" if difference > 0 else "−" if difference < 0 else ""
    return sign + _amount(column, difference).removesuffix(" points").removesuffix(f" {_unit(column)}")


def _unit(column: str) -> str:
    return "s" if column == "epoch_time_s" else "MiB"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
