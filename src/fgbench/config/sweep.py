"""Sweep files: a base config, axes, exclusions and seeds to many checked configs."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from fgbench.config.config import SWEEP_KEYS, Config, check_config, logger, read_config, resolve
from fgbench.config.mistakes import validate_source
from fgbench.config.overrides import Override, parse_override
from fgbench.config.source import Location, Source, read_yaml, show
from fgbench.errors import ConfigError
from fgbench.registry import TABLES

MAX_RUNS = 100_000


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class TuneOptions(_Block):
    """What ``fgbench tune`` looks for, and how long."""

    keys: dict[str, Any] = Field(default={"optimizer.lr": {"log": [1e-5, 1.0]}}, min_length=1)
    """Dotted keys, each with a list of values, or the ends of a range: `{log: [1e-5, 1]}`."""
    sampler: Literal["tpe", "grid"] = "tpe"
    """`tpe`: random, then near the best, trials that fall behind stopped; `grid`: the same values for every
    trainer, whole runs."""
    trials: PositiveInt = 20
    """Trials for every combination of the axes; a `grid` has `points` times seeds."""
    epochs: PositiveInt | None = None
    """Epochs of a trial; the run's own when null, and in a `grid` always."""
    points: int = Field(9, ge=3, le=1000)
    """Values of a `grid` from one end of the range (three decades when `keys` names none) to the other."""
    screen: PositiveInt | None = None
    """Epochs of a first look of a `grid` at all values; then the best one and its neighbours are trained in
    full, and further ones while the best is the last of them. When null all values are trained in full."""
    seeds: list[NonNegativeInt] = Field(default=[100, 101], min_length=2)
    """Seeds of a `grid`, at least two, none of which is reported."""
    metric: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    """What counts, at a trial's last epoch."""

    @model_validator(mode="after")
    def _check_sampler(self) -> "TuneOptions":
        other = {"grid": ("trials", "epochs"), "tpe": ("points", "screen", "seeds")}[self.sampler]
        for key in other:
            if key in self.model_fields_set:
                raise ValueError(f"{key} has no meaning for sampler: {self.sampler}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: got {self.seeds}, expected different ones")
        return self


class SweepFile(_Block):
    """The keys of a sweep file."""

    base: Any = Field(default_factory=dict)
    """Config files beside this one (a path or pattern, or a list of them), or a block of config keys."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys, each with a list of values or a range `{log: [first, last, count]}`; all combinations are
    run. `zip`: blocks of axes that move together."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Combinations to leave out: dotted keys with a value or a list of values."""
    seeds: list[NonNegativeInt] | None = Field(None, min_length=1)
    """Seeds of every combination; the base's when null."""
    exclusive: bool = False
    """Run one at a time, for timing."""
    tune: TuneOptions | None = None
    """What `fgbench tune` looks for."""


@dataclass(frozen=True)
class Sweep:
    """Many runs, checked.

    Attributes:
        name: the file's stem.
        configs: one per run, no two the same.
        ranges: for ``fgbench tune``: dotted key -> a list of values, or (low, high) of a log range.
    """

    name: str
    configs: tuple[Config, ...]
    exclusive: bool
    tune: TuneOptions | None
    ranges: dict[str, list[Any] | tuple[float, float]]


def load_sweep(
    path: Path,
    overrides: Sequence[str | Override] = (),
    seeds: Sequence[int] | None = None,
    say: Callable[[str], None] = logger.warning,
) -> Sweep:
    """Read a sweep file and check every run of it.

    Args:
        path: the YAML file.
        overrides: texts ``key.sub=value``, or ``Override``s, for every run; they win over axes.
        seeds: in place of the file's.
        say: given a line for everything that an override or an axis puts aside.

    Raises:
        ConfigError: every mistake in the file, its base and all combinations, one a line.
    """
    source = read_yaml(path)
    if TABLES.keys() & source.data.keys() and not SWEEP_KEYS & source.data.keys():
        raise ConfigError(f"{path}: the config of a run, not a sweep file: `fgbench run {path}` runs it")
    spec = validate_source(source, SweepFile)
    axes = [*_axes(spec.axes, ("axes",), source)]
    ranges = {
        key: _range(each, ("tune", "keys", key), source) for key, each in _tuned_keys(spec.tune).items()
    }
    if math.prod(map(len, axes)) > MAX_RUNS:
        source.add_problem(("axes",), f"more than {MAX_RUNS:,} combinations")
    source.raise_problems()
    parsed = [parse_override(each) if isinstance(each, str) else each for each in overrides]
    chosen = spec.seeds if seeds is None else seeds
    place = "--seeds" if seeds is not None else source.place(("seeds",))
    axes.append([(Override("seed", seed, place),) for seed in chosen] if chosen is not None else [()])
    configs = _expand(source, [*_bases(spec.base, path, source)], axes, parsed, spec.exclude)
    for note in source.notes:
        say(note)
    return Sweep(path.stem, tuple(configs), spec.exclusive, spec.tune, ranges)


def _tuned_keys(options: TuneOptions | None) -> dict[str, Any]:
    """The tuned keys with their values; a grid that names none has three decades of the learning rate."""
    if options is None:
        return {}
    unsaid = options.sampler == "grid" and "keys" not in options.model_fields_set
    return {"optimizer.lr": {"log": [1e-4, 1e-1]}} if unsaid else options.keys


def _expand(
    source: Source,
    bases: Sequence[Source],
    axes: Sequence[Sequence[tuple[Override, ...]]],
    overrides: Sequence[Override],
    exclude: Sequence[dict[str, Any]],
) -> list[Config]:
    """The configs of all combinations that are not excluded; raises all mistakes at once."""
    configs: dict[str, Config] = {}
    used: set[int] = set()
    combinations = 0
    for base in bases:
        for bundle in itertools.product(*axes):
            each = copy.deepcopy(base)
            config, mistakes = None, []
            try:
                config = check_config(each, [*itertools.chain(*bundle)], overrides)
            except ConfigError as error:
                mistakes = str(error).splitlines()
            data = each.data if config is None else config.model_dump(mode="json")
            matching = [index for index, pattern in enumerate(exclude) if _matches(pattern, data)]
            used.update(matching)
            if matching:
                continue
            source.problems += [line for line in mistakes if line not in source.problems]
            source.notes += [note for note in each.notes if note not in source.notes]
            combinations += 1
            if config is not None:
                configs.setdefault(config.model_dump_json(), config)
    for index in range(len(exclude)):
        if index not in used and not overrides:
            source.add_problem(("exclude", index), "matches no run")
    if not configs and not source.problems:
        source.add_problem((), "every run is excluded")
    source.raise_problems()
    if len(configs) < combinations:
        source.notes.append(f"{source.path}: {combinations} combinations make {len(configs)} different runs")
    return list(configs.values())


def _bases(base: Any, path: Path, source: Source) -> Iterator[Source]:
    if isinstance(base, dict):
        places = {place[1:]: line for place, line in source.places.items() if place[:1] == ("base",)}
        yield resolve(Source(str(path), {"name": path.stem, **base}, places), path)
        return
    patterns = base if isinstance(base, list) else [base]
    files: dict[Path, None] = {}
    for index, pattern in enumerate(patterns):
        location: Location = ("base", index) if isinstance(base, list) else ("base",)
        if not isinstance(pattern, str) or not pattern:
            source.add_problem(
                location, f"got {show(pattern)}, expected a config file or a block of config keys"
            )
            continue
        whole = path.parent / pattern
        found = [whole]
        if any(char in pattern for char in "*?["):
            found = sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
            if not found:
                source.add_problem(location, f"no file matches {whole}")
        files.update(dict.fromkeys(found))
    source.raise_problems()
    for file in files:
        try:
            yield read_config(file)
        except ConfigError as error:
            source.problems += str(error).splitlines()
    source.raise_problems()


def _axes(
    block: Any, location: Location, source: Source, inside_zip: bool = False
) -> Iterator[list[tuple[Override, ...]]]:
    """Every axis as its steps, each a bundle of overrides made together."""
    for key, values in block.items():
        here = (*location, key)
        if key == "zip" and not inside_zip:
            groups = values if isinstance(values, list) else [values]
            for index, group in enumerate(groups):
                inner = (*here, index) if isinstance(values, list) else here
                if not isinstance(group, dict):
                    source.add_problem(inner, f"got {show(group)}, expected a block of axes")
                    continue
                moving = list(_axes(group, inner, source, inside_zip=True))
                if len({len(axis) for axis in moving}) > 1:
                    counts = ", ".join(str(len(axis)) for axis in moving)
                    source.add_problem(
                        inner, f"axes that move together need as many values each, got {counts}"
                    )
                elif moving:
                    yield [tuple(itertools.chain(*bundle)) for bundle in zip(*moving, strict=True)]
            continue
        said = _values(values, here, source)
        if said:
            yield [
                (Override(key, value, source.place((*here, index) if isinstance(values, list) else here)),)
                for index, value in enumerate(said)
            ]


def _values(values: Any, location: Location, source: Source) -> list[Any]:
    """The values of an axis: those of a list, or those of a log range."""
    if isinstance(values, list) and values:
        return values
    if isinstance(values, dict) and list(values) == ["log"]:
        ends = values["log"]
        if isinstance(ends, list) and len(ends) == 3 and _are_ends(ends[:2]) and _is_count(ends[2]):
            low, high, count = ends
            step = math.log(high / low) / max(1, count - 1)
            return [float(f"{low * math.exp(index * step):.6g}") for index in range(count)]
    source.add_problem(
        location, f"got {show(values)}, expected a list of values, or {{log: [first, last, count]}}"
    )
    return []


def _range(values: Any, location: Location, source: Source) -> list[Any] | tuple[float, float]:
    """What tuning may choose from."""
    if isinstance(values, list) and values and not any(isinstance(each, list | dict) for each in values):
        return values
    if isinstance(values, dict) and list(values) == ["log"]:
        ends = values["log"]
        if isinstance(ends, list) and len(ends) == 2 and _are_ends(ends):
            return float(ends[0]), float(ends[1])
    source.add_problem(
        location, f"got {show(values)}, expected a list of plain values, or {{log: [low, high]}}"
    )
    return []


def _are_ends(ends: Iterable[Any]) -> bool:
    low, high = ends
    return (
        all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
        and 0 < low < high < math.inf
    )


def _is_count(count: Any) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MAX_RUNS


def _matches(pattern: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a config has all the values of a pattern; a block's name stands for the block."""
    for key, wanted in pattern.items():
        value: Any = data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, dict) and not isinstance(wanted, dict):
            value = value.get("name")
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return bool(pattern)
