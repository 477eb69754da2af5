"""Published claims, held against one's own runs. Imports no torch.

The claims are rows of claims.yaml, the rules that decide them functions of ``rules``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Any

from fgbench.analysis.claims.judging import MIN_SEEDS
from fgbench.analysis.claims.rules import RULES
from fgbench.analysis.claims.verdicts import Finding, Verdict
from fgbench.analysis.formats import Format
from fgbench.analysis.pairing import (
    TUNABLE,
    Pair,
    Task,
    make_tasks,
    nearest,
    setting_differences,
    settings,
    trainer_options,
)
from fgbench.analysis.records import RunRecord
from fgbench.analysis.rendering import Table, render
from fgbench.analysis.series import Series
from fgbench.config.source import read_yaml

Selection = Mapping[str, Any]
"""Values, or lists of allowed values, by dotted config key."""


@dataclass(frozen=True)
class Claim:
    """A row of claims.yaml.

    Attributes:
        id: for reference.
        source: who says so.
        statement: what is said.
        rule: name of the function that decides.
        options: its keyword arguments.
        series: what the claim is about.
        baseline: what that is held against.
        setting: what must hold for both.
    """

    id: str
    source: str
    statement: str
    rule: str
    options: Mapping[str, Any]
    series: Selection
    baseline: Selection
    setting: Selection

    @property
    def rule_text(self) -> str:
        """How it is decided, in a sentence."""
        text = " ".join((getdoc(RULES[self.rule]) or "").split())
        values = {
            key: " and ".join(value) if isinstance(value, list) else value
            for key, value in self.options.items()
        }
        told = ", ".join(
            "one case is enough" if key == "some" else f"{key}: {value}" for key, value in values.items()
        )
        return f"{text} ({told})" if told else text


@dataclass(frozen=True)
class Audited:
    """A claim and what the runs say about it."""

    claim: Claim
    finding: Finding


@cache
def load_claims() -> tuple[Claim, ...]:
    """The rows of claims.yaml."""
    source = read_yaml(Path(__file__).with_name("claims.yaml"))
    source.raise_problems()
    selections = source.data["selections"]
    return tuple(
        Claim(**row | {role: selections[row[role]] for role in ("series", "baseline", "setting")})
        for row in source.data["claims"]
    )


def audit(records: Iterable[RunRecord], claims: Sequence[Claim] | None = None) -> list[Audited]:
    """Every claim, held against the runs."""
    tasks = make_tasks(records)
    return [
        Audited(claim, RULES[claim.rule](find_pairs(tasks, claim), **claim.options))
        for claim in (load_claims() if claims is None else claims)
    ]


def find_pairs(tasks: Iterable[Task], claim: Claim) -> list[Pair]:
    """The series a claim is about, each with the nearest one that differs in nothing but how it is trained.

    Trainer, optimizer and schedule may differ; epochs, batch size, device and the like may not, nor whether
    the output layer's gradient is exact, where both trainers have that option.
    """
    pairs = []
    for task in tasks:
        able = [each for each in task.series if _matches(each, claim.setting)]
        for series in able:
            if not _matches(series, claim.series):
                continue
            others = [each for each in able if _matches(each, claim.baseline) and _comparable(series, each)]
            if found := nearest(series, others):
                pairs.append(Pair(task.title, series, found))
    return pairs


def _matches(series: Series, selection: Selection) -> bool:
    values = series.runs[0].settings | trainer_options(series)
    return all(
        values.get(key) in wanted if isinstance(wanted, list) else values.get(key) == wanted
        for key, wanted in selection.items()
    )


def _comparable(first: Series, second: Series) -> bool:
    exact = [trainer_options(each).get("trainer.exact_output") for each in (first, second)]
    if None not in exact and exact[0] != exact[1]:
        return False
    return all(key.startswith(TUNABLE) for key in setting_differences(settings(first), settings(second)))


def claims_report(records: Iterable[RunRecord], form: Format | str = Format.text) -> str:
    """What ``fgbench claims`` prints."""
    audited = audit(records)
    if Format(form) is not Format.text:
        head = ["claim", "verdict", "statement", "source", "numbers", "rule"]
        return render([Table("", head, [_row(each) for each in audited])], form)
    counts = Counter(each.finding.verdict for each in audited)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    notes = (
        f"{len(audited)} claims: {told}. Fewer than {MIN_SEEDS} seeds decide nothing; "
        "intervals are not adjusted for the number of claims."
    )
    return "\n\n".join([*map(_block, audited), notes])


def _row(audited: Audited) -> list[str]:
    claim, finding = audited.claim, audited.finding
    numbers = "; ".join(f"{outcome.text} ({outcome.kind})" for outcome in finding.outcomes) or "no such runs"
    return [claim.id, finding.verdict, claim.statement, claim.source, numbers, claim.rule_text]


def _block(audited: Audited) -> str:
    claim, finding = audited.claim, audited.finding
    numbers = [f"  {outcome.kind}: {outcome.text}" for outcome in finding.outcomes] or ["  no such runs"]
    return "\n".join(
        [
            f"{finding.verdict.upper()}  {claim.id}",
            f"  {claim.statement}",
            f"  Source: {claim.source}",
            *numbers,
            f"  Rule: {claim.rule_text}",
        ]
    )
