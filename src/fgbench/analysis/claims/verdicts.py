"""What runs say about a claim, and how several cases make one verdict."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What the runs say about a claim."""

    supported = "supported"
    supported_in_part = "supported in part"
    refuted = "refuted"
    refuted_in_part = "refuted in part"
    no_difference = "no difference"
    mixed = "mixed"
    not_testable = "not testable"
    not_enough_data = "not enough data"


class Stance(StrEnum):
    """What one case says about a claim."""

    for_ = "for"
    against = "against"
    equal = "as good as equal"
    both = "both for and against"
    unclear = "unclear"
    no_evidence = "says nothing"
    note = "note"


NOT_COUNTED = (Stance.no_evidence, Stance.note)
"""Stances that do not count towards a verdict."""


@dataclass(frozen=True)
class Outcome:
    """What one case says, with its numbers."""

    stance: Stance
    text: str


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on."""

    verdict: Verdict
    outcomes: Sequence[Outcome] = ()

    @property
    def counts(self) -> str:
        """How many outcomes there are of each stance, such as ``2 for, 1 unclear``."""
        counts: Counter[Stance] = Counter(
            outcome.stance for outcome in self.outcomes if outcome.stance is not Stance.note
        )
        text = ", ".join(f"{counts[stance]} {stance}" for stance in Stance if counts[stance])
        return text if counts[Stance.no_evidence] == 1 else text.replace("says nothing", "say nothing")


def conclude(outcomes: Iterable[Outcome], some: bool = False) -> Finding:
    """A verdict from what each case says; cases that say nothing, and notes, do not count.

    All for: supported. All against, or some of them as good as equal: refuted. Either, beside unclear ones:
    in part. All as good as equal: no difference. None but unclear: not enough data. Anything else: mixed.
    With ``some``, one for is enough, and without one there is not enough data: no number of cases shows that
    there is none.
    """
    cases = tuple(outcomes)
    stances = {outcome.stance for outcome in cases} - set(NOT_COUNTED)
    if some:
        verdict = Verdict.supported if Stance.for_ in stances else Verdict.not_enough_data
    elif stances <= {Stance.unclear}:
        verdict = Verdict.not_enough_data
    elif stances == {Stance.for_}:
        verdict = Verdict.supported
    elif stances == {Stance.for_, Stance.unclear}:
        verdict = Verdict.supported_in_part
    elif stances == {Stance.equal}:
        verdict = Verdict.no_difference
    elif stances <= {Stance.against, Stance.equal}:
        verdict = Verdict.refuted
    elif Stance.against in stances and stances <= {Stance.against, Stance.equal, Stance.unclear}:
        verdict = Verdict.refuted_in_part
    else:
        verdict = Verdict.mixed
    return Finding(verdict, cases)
