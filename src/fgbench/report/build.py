"""One self-contained page about a results folder."""

import base64
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from fgbench.analysis import compare_tables
from fgbench.analysis.cautions import MIN_SEEDS
from fgbench.analysis.claims.claims import audit
from fgbench.analysis.compare import Comparison, compare
from fgbench.analysis.control import AgainstControl, controls_of
from fgbench.analysis.readings import read
from fgbench.analysis.records import Results, RunRecord, read_results
from fgbench.analysis.rendering import Table
from fgbench.analysis.series import Series, group_series
from fgbench.config.source import dump_yaml
from fgbench.errors import ConfigError
from fgbench.formatting import format_number
from fgbench.plotting.figures import SPREAD
from fgbench.plotting.style import trainer_hue
from fgbench.registry import TABLES, TRAINERS
from fgbench.report.answer import ANSWERED, find_answers, summarise
from fgbench.report.confusions import ConfusionMatrix, find_confusions
from fgbench.report.figures import (
    MOST_SERIES,
    SPARK,
    Chart,
    best_series,
    draw_charts,
    sparkline,
    theme,
    themed,
)
from fgbench.storage.files import atomic_write

ENVIRONMENT_OF_A_RUN = ("command", "git_commit", "git_dirty")
"""Keys of env.json that are shown with the run instead of its machine."""


@dataclass(frozen=True)
class Group:
    """What the page shows of one dataset and model.

    Attributes:
        file: how the names of its files begin.
    """

    id: str
    title: str
    file: str
    charts: list[Chart]
    tables: list[Table]
    confusions: list[ConfusionMatrix]


@dataclass(frozen=True)
class Row:
    """A run, with what the page shows of it.

    Attributes:
        number: of the run on the page.
        label: of its series.
        colour: its trainer's.
        environment: number of its environment.
    """

    number: int
    run: RunRecord
    label: str
    colour: str
    environment: int

    @property
    def config(self) -> str:
        """Its config as YAML."""
        return dump_yaml(self.run.config)

    @property
    def command(self) -> str:
        """The command that started it; empty if unknown."""
        command = self.run.env.get("command")
        return shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")

    @property
    def state(self) -> str:
        """Its state, with the reason there may be."""
        reason = self.run.status.get("reason")
        return f"{self.run.state}: {reason}" if reason else self.run.state

    @cached_property
    def curves(self) -> list[tuple[str, str, str, str, str]]:
        """Column, title, path, range and last value of each curve there is."""
        drawn = []
        for column, title, form in (
            ("test_accuracy", "test accuracy", ".4f"),
            ("train_loss", "training loss", ".4g"),
            ("epoch_time_s", "time per epoch, s", ".3g"),
        ):
            values = self.run.metrics[column]
            finite = values[values.map(isfinite)]
            if len(finite):
                low, high = float(finite.min()), float(finite.max())
                path = sparkline(values, low, high)
                last = format_number(float(values.iloc[-1]), form)
                drawn.append((column, title, path, f"{low:{form}} to {high:{form}}", last))
        return drawn


def build_report(results: str | Path, out: str | Path = "report.html", tag: str | None = None) -> Path:
    """Write one HTML page that needs no other file and no network.

    Args:
        results: a results folder, or any folder in it.
        out: the file to write.
        tag: write of the runs that have it, and say so.

    Returns:
        The file written.

    Raises:
        ConfigError: no runs there, or ``out`` is not a place for a page.
        FgbenchError: the file cannot be written.
    """
    target = Path(out)
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {target}: expected a file that ends in .html")
    only = ["--tag", tag] if tag else []
    command = shlex.join(["fgbench", "report", str(results), "--out", str(out), *only])
    page = render(read_results(results, tag), command)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create {target.parent}: {error.strerror}") from error
    atomic_write(target, page)
    return target


def render(results: Results, command: str) -> str:
    """The page about a results folder; ``command`` is shown as what made it."""
    records = results.runs
    groups = group_series(records)
    comparisons = _compare(records)
    answers, controls = find_answers(comparisons), controls_of(records)
    environments = _environments(records)
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("fgbench", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": _number, "reading": read, "csv_link": _csv_link, "percent": _percent}
    templates.globals |= {"themed": themed, "hue": trainer_hue}
    folder = Path(__file__).parent
    script = (folder / "script.js").read_text(encoding="utf-8")
    page = templates.get_template("template.html.j2").render(
        headline=summarise(answers),
        answers=answers,
        controls=controls,
        summary=compare_tables.summary_lines(comparisons),
        groups=_groups(groups, comparisons, controls),
        rows=_rows(records, groups, environments),
        series=[each for series in groups.values() for each in series],
        environments=environments,
        claims=audit(records, results.steps),
        left_out=results.notes,
        min_seeds=MIN_SEEDS,
        most_series=MOST_SERIES,
        spread=SPREAD,
        trainers=TRAINERS,
        names={kind: sorted({run.component(kind) for run in records}) for kind in TABLES},
        sources=sorted({note for run in records for note in run.notes("memory_source")}),
        notes=sorted({note for run in records for note in run.notes("timing_note")}),
        states=Counter(run.state for run in records),
        commands=[(title, _commands(series)) for title, series in groups.items()],
        command=command,
        version=version("fgbench"),
        latest=max((str(run.status.get("heartbeat") or "") for run in records), default="")[:10],
        spark=SPARK,
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    light, dark = theme(page)
    return page.replace("/*light*/", light, 1).replace("/*dark*/", dark, 1)


def _compare(records: Sequence[RunRecord]) -> list[Comparison]:
    try:
        return compare(records, ANSWERED)
    except ConfigError:  # no run of the baseline: there is no answer yet, but still a page
        return []


def _groups(
    groups: dict[tuple[str, str], list[Series]],
    comparisons: Sequence[Comparison],
    controls: Mapping[Path, AgainstControl],
) -> list[Group]:
    shown = []
    for number, ((dataset, model), series) in enumerate(groups.items(), 1):
        paths = {run.path for each in series for run in each.runs}
        own = [each for each in comparisons if each.pair.series.runs[0].path in paths]
        shown.append(
            Group(
                f"g{number}",
                f"{model} on {dataset}",
                re.sub(r"[^\w.-]+", "-", f"{model}_{dataset}"),
                draw_charts(series, f"g{number}"),
                _tables(own, controls),
                find_confusions(best_series(series)),
            )
        )
    return shown


def _tables(comparisons: Sequence[Comparison], controls: Mapping[Path, AgainstControl]) -> list[Table]:
    tables = []
    for _, same_task in groupby(comparisons, key=lambda each: each.pair.task):
        group = list(same_task)
        for measure, same_measure in groupby(group, key=lambda each: each.measure):
            of_measure = list(same_measure)
            tables.append(
                compare_tables.measure_table([each for each in of_measure if each.budget == "epochs"])
            )
            if measure.learns:
                tables.append(compare_tables.budget_table(of_measure))
        pairs = list(dict.fromkeys(each.pair for each in group))
        tables += compare_tables.control_tables(pairs, controls)
        tables.append(compare_tables.cost_table(pairs))
    return tables


def _environments(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """The different environments, by their content."""
    found: dict[str, dict[str, Any]] = {}
    for run in records:
        env = _machine(run)
        found.setdefault(_key(env), env)
    return found


def _machine(run: RunRecord) -> dict[str, Any]:
    return {
        key: value for key, value in run.env.items() if key not in ENVIRONMENT_OF_A_RUN and value is not None
    }


def _key(env: dict[str, Any]) -> str:
    return json.dumps(env, sort_keys=True, default=str)


def _rows(
    records: Sequence[RunRecord],
    groups: dict[tuple[str, str], list[Series]],
    environments: dict[str, dict[str, Any]],
) -> list[Row]:
    labels = {run.path: each.label for series in groups.values() for each in series for run in each.runs}
    own = sorted({run.component("trainer") for run in records} - set(TRAINERS))
    places = {key: number for number, key in enumerate(environments, 1)}
    return [
        Row(
            number,
            run,
            labels.get(run.path, f"{run.component('trainer')} (another copy)"),
            themed(trainer_hue(run.component("trainer"), own)),
            places[_key(_machine(run))],
        )
        for number, run in enumerate(records, 1)
    ]


def _commands(series: Sequence[Series]) -> list[str]:
    """The commands that repeat the runs of every series, in a separate folder."""
    commands = []
    for each in series:
        seeds = ",".join(str(run.seed) for run in each.runs)
        config = str(each.runs[0].path / "config.yaml")
        commands.append(shlex.join(["fgbench", "run", config, "--seeds", seeds, "--results", "again"]))
    return commands


def _csv_link(text: str) -> str:
    """A link that contains the text itself."""
    return "data:text/csv;charset=utf-8," + quote(text, safe=",;:/()=+*!@$ ")


def _percent(share: float | None) -> str:
    """A share in percent; a dash if it is undefined, and empty if it is zero."""
    if share is None:
        return "–"
    return f"{100 * share:.0f}" if share >= 0.01 else "<1" if share else ""


def _number(value: Any, form: str = ".4g") -> str:
    """A number as text; a dash for what is missing."""
    return format_number(value, form) if isinstance(value, int | float) and isfinite(value) else "–"
