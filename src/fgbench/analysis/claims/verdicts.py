"""What runs say about a claim, and how several cases make one verdict. Imports no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What the runs say about a claim."""

    supported = "supported"
    refuted = "refuted"
    mixed = "mixed"
    not_testable = "not testable"
    not_enough_data = "not enough data"


class Kind(StrEnum):
    """What one pair says about a claim."""

    for_ = "for"
    against = "against"
    both = "both for and against"
    unclear = "unclear"
    too_few = "too little"
    aside = "note"


@dataclass(frozen=True)
class Outcome:
    """What one pair says, with its numbers."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on."""

    verdict: Verdict
    outcomes: Sequence[Outcome] = ()


def conclude(outcomes: Iterable[Outcome], some: bool = False) -> Finding:
    """A verdict from what each pair says.

    Pairs with too little data, and notes, do not count. All for: supported. Some against and none for:
    refuted. None but unclear: not enough data. Anything else: mixed. With ``some``, one for is enough, and
    only what all are against is refuted.
    """
    told = tuple(outcomes)
    kinds = {outcome.kind for outcome in told} - {Kind.too_few, Kind.aside}
    if not kinds or kinds == {Kind.unclear}:
        verdict = Verdict.not_enough_data
    elif kinds == {Kind.for_} or (some and Kind.for_ in kinds):
        verdict = Verdict.supported
    elif kinds == {Kind.against} or (not some and kinds == {Kind.against, Kind.unclear}):
        verdict = Verdict.refuted
    elif some and Kind.both not in kinds:
        verdict = Verdict.not_enough_data
    else:
        verdict = Verdict.mixed
    return Finding(verdict, told)
