"""What runs say about a claim, and how several cases make one verdict. Imports no torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What the runs say about a claim."""

    supported = "supported"
    refuted = "refuted"
    no_difference = "no difference"
    mixed = "mixed"
    not_testable = "not testable"
    not_enough_data = "not enough data"


class Kind(StrEnum):
    """What one case says about a claim."""

    for_ = "for"
    against = "against"
    same = "as good as equal"
    both = "both for and against"
    unclear = "unclear"
    too_few = "says nothing"
    aside = "note"


SILENT = (Kind.too_few, Kind.aside)
"""Kinds that do not count towards a verdict."""


@dataclass(frozen=True)
class Outcome:
    """What one case says, with its numbers."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on."""

    verdict: Verdict
    outcomes: Sequence[Outcome] = ()

    @property
    def counts(self) -> str:
        """How many outcomes there are of each kind, such as ``2 for, 1 unclear``."""
        counts: Counter[Kind] = Counter(
            outcome.kind for outcome in self.outcomes if outcome.kind is not Kind.aside
        )
        told = ", ".join(f"{counts[kind]} {kind}" for kind in Kind if counts[kind])
        return told if counts[Kind.too_few] == 1 else told.replace("says nothing", "say nothing")


def conclude(outcomes: Iterable[Outcome], some: bool = False) -> Finding:
    """A verdict from what each case says; cases that say nothing, and notes, do not count.

    All for: supported. All against, or some of them as good as equal: refuted. All as good as equal: no
    difference. None but unclear: not enough data. Anything else: mixed. With ``some``, one for is enough,
    and without one there is not enough data: no number of cases shows that there is none.
    """
    told = tuple(outcomes)
    kinds = {outcome.kind for outcome in told} - set(SILENT)
    if some:
        verdict = Verdict.supported if Kind.for_ in kinds else Verdict.not_enough_data
    elif kinds <= {Kind.unclear}:
        verdict = Verdict.not_enough_data
    elif kinds == {Kind.for_}:
        verdict = Verdict.supported
    elif kinds == {Kind.same}:
        verdict = Verdict.no_difference
    elif kinds <= {Kind.against, Kind.same}:
        verdict = Verdict.refuted
    else:
        verdict = Verdict.mixed
    return Finding(verdict, told)
