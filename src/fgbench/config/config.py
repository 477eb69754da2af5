"""Configs: YAML and overrides to a checked ``Config``. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, LiteralString, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from fgbench.config.mistakes import validate_source
from fgbench.config.optimizer import OptimizerOptions, ScheduleOptions
from fgbench.config.source import Location, Source, dump_yaml, parse_value, read_yaml, show, show_key
from fgbench.errors import ConfigError
from fgbench.options import Options
from fgbench.registry import TABLES, find, options_model

NAMED_BLOCKS = (*TABLES, "optimizer", "schedule")
"""Blocks for which their bare name may stand: ``trainer: backprop``."""

UNHASHED = {"name", "seed", "tuned", "device", "data_dir", "results_dir", "saving", "diagnostics", "verify"}
"""Keys that do not make another experiment; the device's type is hashed in place of ``device``."""


SWEEP_KEYS = {"base", "axes"}
"""What tells a sweep file from a config."""


class SavingOptions(BaseModel):
    """When state files to resume from are written."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    every: PositiveInt = 1
    """Epochs between two savings."""
    keep: PositiveInt = 2
    """How many state files stay."""
    every_steps: PositiveInt | None = None
    """Steps between two savings within an epoch, for long epochs."""


class DiagnosticsOptions(BaseModel):
    """What is measured beside training, outside the timed part."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    every: PositiveInt | None = None
    """Epochs between two comparisons of the trainer's gradient with the true one; never when null."""


def _choose(kind: str) -> Callable[[Any, ValidationInfo], Any]:
    """Validation by the options model of whichever component the block names."""

    def choose(block: Any, info: ValidationInfo) -> Any:
        if not isinstance(block, dict):
            return block
        name = block.get("name")
        try:
            if not isinstance(name, str):
                there_are = f"expected one of {', '.join(TABLES[kind])}, or package.module:Class"
                raise ConfigError(there_are if "name" in block else f"missing, {there_are}")
            model = options_model(kind, name)
        except Exception as error:  # importing a user's own module can raise anything
            text = str(error) if isinstance(error, ConfigError) else f"cannot import {show(name)}: {error!r}"
            raise _error_at(("name",), name, "component", " ".join(text.split())) from error
        if info.mode == "json":  # as JSON, lists count as tuples and texts as paths, even when strict
            return model.model_validate_json(json.dumps(block), strict=True)
        return model.model_validate(block)

    return choose


def _error_at(location: Location, value: Any, kind: LiteralString, text: str) -> ValidationError:
    """A mistake that pydantic reports beside its own, at a location below the validator's."""
    message = PydanticCustomError(kind, "{text}", {"text": text})
    return ValidationError.from_exception_data(
        kind, [InitErrorDetails(type=message, loc=location, input=value)]
    )


def _expand_user(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


Folder = Annotated[Path, AfterValidator(_expand_user)]


class Config(BaseModel):
    """One run, completely; every key but the names of dataset, model and trainer has a default."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra={"title": "fgbench config"},
    )

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The folder of the results; the file's stem when not given."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Every random stream is derived from it."""
    tuned: str | None = None
    """How its learning rate and the like were chosen; `fgbench tune` writes it, tables show it."""
    epochs: PositiveInt = 100
    """How often the training images are gone through."""
    batch_size: PositiveInt = 64
    """Images per step, over all workers."""
    dataset: Annotated[SerializeAsAny[Options], BeforeValidator(_choose("dataset"))]
    """The images: a name of `fgbench list datasets`, or a block of it and its options."""
    model: Annotated[SerializeAsAny[Options], BeforeValidator(_choose("model"))]
    """The network: a name of `fgbench list models`, or a block of it and its options."""
    trainer: Annotated[SerializeAsAny[Options], BeforeValidator(_choose("trainer"))]
    """The rule that gives gradients: a name of `fgbench list trainers`, or a block of it and its options."""
    optimizer: OptimizerOptions = OptimizerOptions()
    """What is done with the gradients."""
    schedule: ScheduleOptions = ScheduleOptions()
    """How the learning rate changes from step to step."""
    clip_gradient_norm: PositiveFloat | None = None
    """Largest norm of the gradient; longer ones are shortened to it."""
    saving: SavingOptions = SavingOptions()
    """When state files to resume from are written."""
    diagnostics: DiagnosticsOptions = DiagnosticsOptions()
    """What is measured beside training."""
    verify: bool = True
    """Before training, compare the first step's derivatives and gradient with those by backprop."""
    deterministic: bool = False
    """Ask PyTorch for deterministic algorithms only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: automatic mixed precision."""
    allocator: bool = True
    """Keep large blocks of CPU memory between steps instead of giving them back; faster."""
    threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads; PyTorch's choice when null."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    data_dir: Folder | None = None
    """A folder to look for datasets in, before the usual ones."""
    results_dir: Folder = Path("results")
    """The folder that run directories are made in."""

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        if (
            self.trainer.name == "activity-forward-gradient"
            and getattr(self.model, "normalization", None) == "batch"
        ):
            text = (
                "batch does not go with trainer.name: activity-forward-gradient, which needs samples "
                "that do not interact; set model.normalization: group (or none)"
            )
            raise _error_at(("model", "normalization"), "batch", "combination", text)
        return self


class Override(NamedTuple):
    """A value for a dotted key, and the place that messages about it name (``--epochs``)."""

    key: str
    value: Any
    place: str


def parse_override(text: str) -> Override:
    """An override from ``key.sub=value``, the value being YAML.

    >>> parse_override("optimizer.lr=1e-3")
    Override(key='optimizer.lr', value=0.001, place='-o optimizer.lr=1e-3')

    Raises:
        ConfigError: it has no such form.
    """
    key, equals, value = text.partition("=")
    place = f"-o {show_key(text)}"
    if not equals or not re.fullmatch(r"\w[\w-]*(\.\w[\w-]*)*", key):
        raise ConfigError(f"{place}: expected key=value or key.sub=value, such as -o optimizer.lr=0.01")
    return Override(key, parse_value(value, place), place)


def load_config(path: str | Path, overrides: Sequence[str | Override] = ()) -> Config:
    """Read a config file, apply overrides to it and check the result.

    Args:
        path: the YAML file.
        overrides: texts ``key.sub=value``, as the command line's ``-o``, or ``Override``s; the last wins.

    Raises:
        ConfigError: every mistake in the file and the overrides, one a line: ``file:line: dotted.key:
            what was got, what is allowed``.
    """
    return check_config(read_config(path), overrides)


def read_config(path: str | Path) -> Source:
    """Read a config file, unchecked, its stem as the name where it has none.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    source = read_yaml(Path(path))
    if SWEEP_KEYS & source.data.keys() and not TABLES.keys() & source.data.keys():
        raise ConfigError(
            f"{path}: a sweep file, not the config of a run: `fgbench sweep {path}` makes its runs"
        )
    if "name" not in source.data:
        source.data = {"name": Path(path).stem, **source.data}
        source.places["name",] = f"{path} (its stem is the name, unless name: says another)"
    return source


def check_config(source: Source, overrides: Sequence[str | Override] = ()) -> Config:
    """Apply overrides to what was read, in place, and check the result; see :func:`load_config`.

    Raises:
        ConfigError: every mistake, one a line.
    """
    _expand_names(source)
    for override in overrides:
        try:
            source.override(*(parse_override(override) if isinstance(override, str) else override))
        except ConfigError as error:
            source.problems.append(str(error))
        _expand_names(source)
    return validate_source(source, Config)


def to_yaml(config: Config) -> str:
    """The whole config, defaults included, as ``load_config`` reads it back."""
    return dump_yaml(config.model_dump(mode="json"))


def config_hash(config: Config, device_type: str, workers: int = 1) -> str:
    """Eight hexadecimal digits that two runs share if they differ in nothing but the seed.

    Hashed is what differs from the defaults, so that a key added to fgbench does not orphan older results;
    name, seed, folders, saving and diagnostics are left out. A component whose numbers have changed has a
    revision, which is hashed too: its older runs are not taken for those of today's code.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=UNHASHED)
    for kind in TABLES:  # a component's name may be the default within its own options
        settings[kind]["name"] = name = getattr(config, kind).name
        if (revision := find(kind, name).revision) > 1:
            settings[kind]["revision"] = revision
    settings.update(device=device_type, workers=workers)
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def run_folder(config: Config, device_type: str, workers: int = 1) -> Path:
    """The run directory within the results folder: ``<name>/s<seed>-<hash8>``."""
    return Path(config.name) / f"s{config.seed}-{config_hash(config, device_type, workers)}"


def _expand_names(source: Source) -> None:
    for kind in NAMED_BLOCKS:
        value = source.data.get(kind)
        if isinstance(value, str):
            source.data[kind] = {"name": value}
            source.places[kind, "name"] = source.place((kind,))
