"""Published claims, compared with runs.

The claims are rows of claims.yaml, the rules that decide them functions of ``rules``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Any

from fgbench.analysis.bench_steps import Step
from fgbench.analysis.cautions import MIN_SEEDS
from fgbench.analysis.claims.rules import RULES, WITH_STEPS
from fgbench.analysis.claims.verdicts import NOT_COUNTED, Finding, Verdict
from fgbench.analysis.control import CONTROL, find_control
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
from fgbench.analysis.records import Results, RunRecord
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
        source: who says so, and where.
        statement: what is said, paraphrased.
        rule: name of the function that decides.
        options: its keyword arguments.
        series: what the claim is about: any of these.
        baseline: what that is compared with: each of these.
        setting: what must hold for both.
        bench: the case of ``fgbench bench`` that counts too, beside backprop's.
        device: the kind of device it is about, where that matters.
    """

    id: str
    source: str
    statement: str
    rule: str
    options: Mapping[str, Any]
    series: Sequence[Selection]
    baseline: Sequence[Selection]
    setting: Selection
    bench: str = ""
    device: str = ""

    @property
    def rule_text(self) -> str:
        """How it is decided, in a sentence."""
        text = " ".join((getdoc(RULES[self.rule]) or "").split())
        values = {
            key: " and ".join(value) if isinstance(value, list) else value
            for key, value in self.options.items()
            if key != "why"
        }
        options = ", ".join(
            "one case is enough, and none refutes" if key == "some" else f"{key}: {value}"
            for key, value in values.items()
        )
        return f"{text} ({options})" if options else text


@dataclass(frozen=True)
class AuditedClaim:
    """A claim and what the runs say about it.

    Attributes:
        device: the kind of device that gave the answer, where the claim is about another.
    """

    claim: Claim
    finding: Finding
    device: str = ""

    @property
    def answer(self) -> str:
        """The verdict, and on what device, where the claim is about another: ``refuted on a CPU``."""
        return f"{self.finding.verdict} on a {self.device.upper()}" if self.device else self.finding.verdict


@cache
def load_claims() -> tuple[Claim, ...]:
    """The rows of claims.yaml."""
    source = read_yaml(Path(__file__).with_name("claims.yaml"))
    source.raise_problems()
    selections = source.data["selections"]

    def select(names: str | list[str]) -> list[Selection]:
        return [selections[name] for name in ([names] if isinstance(names, str) else names)]

    return tuple(
        Claim(
            **row
            | {role: select(row[role]) for role in ("series", "baseline")}
            | {"setting": selections[row["setting"]]}
        )
        for row in source.data["claims"]
    )


def audit(
    records: Iterable[RunRecord], steps: Iterable[Step] = (), claims: Sequence[Claim] | None = None
) -> list[AuditedClaim]:
    """Every claim, compared with the runs and the benchmarked steps."""
    tasks, all_steps = make_tasks(records), list(steps)
    return [_audit_one(tasks, all_steps, claim) for claim in (load_claims() if claims is None else claims)]


def _audit_one(tasks: Sequence[Task], steps: Sequence[Step], claim: Claim) -> AuditedClaim:
    """What was measured on the claim's own kind of device decides, where it can."""
    pairs = find_pairs(tasks, claim)
    timed = find_steps(steps, claim)
    if not claim.device:
        return AuditedClaim(claim, _decide(claim, pairs, timed))
    own = {"gpu": "cuda"}[claim.device]
    there = _decide(
        claim, [each for each in pairs if _device(each) == own], [s for s in timed if s[0].device == own]
    )
    if there.verdict is not Verdict.not_enough_data:
        return AuditedClaim(claim, there)
    here = _decide(
        claim, [each for each in pairs if _device(each) != own], [s for s in timed if s[0].device != own]
    )
    finding = Finding(here.verdict, [*there.outcomes, *here.outcomes])
    silent = all(outcome.stance in NOT_COUNTED for outcome in here.outcomes)
    return AuditedClaim(claim, finding, "" if silent else "cpu")


def _decide(claim: Claim, pairs: Sequence[Pair], steps: Sequence[tuple[Step, Step]]) -> Finding:
    rule = RULES[claim.rule]
    return rule(pairs, steps, **claim.options) if claim.rule in WITH_STEPS else rule(pairs, **claim.options)


def _device(pair: Pair) -> str:
    return str(settings(pair.series).get("device type", ""))


def find_steps(steps: Sequence[Step], claim: Claim) -> list[tuple[Step, Step]]:
    """The benchmarked steps a claim is about, each with backprop's of the same process and batch size."""
    wanted = claim.setting.get("batch_size")

    def place(step: Step) -> tuple[str, str, int, str]:
        return step.source, step.model, step.batch_size, step.device

    backprop = {place(each): each for each in steps if each.case == "backprop"}
    return [
        (each, backprop[place(each)])
        for each in steps
        if claim.bench and each.case == claim.bench and wanted in (None, each.batch_size)
        if place(each) in backprop
    ]


def find_pairs(tasks: Iterable[Task], claim: Claim) -> list[Pair]:
    """The series a claim is about, each with the nearest one that differs in nothing but how it is trained.

    Trainer, optimizer and schedule may differ; epochs, batch size, device and the like may not, nor which
    stages have exact gradients, where both trainers have that option. A frozen body is taken at its
    own best rate, see :func:`find_control`.
    """
    pairs = []
    for task in tasks:
        able = [each for each in task.series if _matches(each, claim.setting)]
        for series in able:
            if not any(_matches(series, wanted) for wanted in claim.series):
                continue
            for baseline in claim.baseline:
                others = [each for each in able if _matches(each, baseline) and _comparable(series, each)]
                frozen = all(each.trainer == CONTROL for each in others)
                if pair := (find_control if frozen else nearest)(task.title, series, others):
                    pairs.append(pair)
    return pairs


def _matches(series: Series, selection: Selection) -> bool:
    values = series.runs[0].settings | trainer_options(series)
    return all(
        values.get(key) in wanted if isinstance(wanted, list) else values.get(key) == wanted
        for key, wanted in selection.items()
    )


def _comparable(first: Series, second: Series) -> bool:
    mine, others = trainer_options(first), trainer_options(second)
    exact = {"trainer.exact_output", "trainer.exact_stages"} & mine.keys() & others.keys()
    if any(mine[key] != others[key] for key in exact):
        return False
    return all(key.startswith(TUNABLE) for key in setting_differences(settings(first), settings(second)))


def claims_report(results: Results, form: Format | str = Format.text) -> str:
    """What ``fgbench claims`` prints."""
    audited = audit(results.runs, results.steps)
    if Format(form) is not Format.text:
        head = ["claim", "verdict", "statement", "source", "cases", "numbers", "rule"]
        return render([Table("", head, [_row(each) for each in audited], results.notes)], form)
    counts = Counter(each.finding.verdict for each in audited)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    notes = [
        f"{len(audited)} claims: {summary}. Fewer than {MIN_SEEDS} seeds decide nothing; "
        "intervals are not adjusted for the number of claims.",
        *results.notes,
    ]
    return "\n\n".join([*map(_block, audited), "\n".join(notes)])


def _row(audited: AuditedClaim) -> list[str]:
    claim, finding = audited.claim, audited.finding
    numbers = (
        "; ".join(f"{outcome.text} ({outcome.stance})" for outcome in finding.outcomes) or "no such runs"
    )
    counts = finding.counts or "none"
    return [claim.id, audited.answer, claim.statement, claim.source, counts, numbers, claim.rule_text]


def _block(audited: AuditedClaim) -> str:
    claim, finding = audited.claim, audited.finding
    numbers = [f"  {outcome.stance}: {outcome.text}" for outcome in finding.outcomes] or ["  no such runs"]
    verdict, _, device = audited.answer.partition(" on a ")
    where = f" on a {device}" if device else ""
    counts = f"  ({finding.counts})" if finding.counts else ""
    return "\n".join(
        [
            f"{verdict.upper()}{where}  {claim.id}{counts}",
            f"  {claim.statement}",
            f"  Source: {claim.source}",
            *numbers,
            f"  Rule: {claim.rule_text}",
        ]
    )
