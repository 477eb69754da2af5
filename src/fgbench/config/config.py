"""Configs: YAML and overrides to a checked ``Config``."""

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, LiteralString

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

from fgbench.config.epochs import DiagnosticsOptions, EarlyStoppingOptions, SavingOptions
from fgbench.config.extends import extend
from fgbench.config.mistakes import NAME_PATTERN, validate_source
from fgbench.config.optimizer import OptimizerOptions, ScheduleOptions
from fgbench.config.overrides import Override, apply_override, expand_names, parse_override
from fgbench.config.source import Location, Source, dump_yaml, read_yaml, show
from fgbench.errors import ConfigError
from fgbench.options import Options, TrainerOptions, declared_independence
from fgbench.paths import expand_path
from fgbench.registry import LOGGERS, TABLES, find, options_model

logger = logging.getLogger(__name__)

UNHASHED = {
    *("name", "seed", "tuned", "tags", "note", "device", "data_dir", "results_dir"),
    *("saving", "diagnostics", "log", "verify"),
}
"""Keys that do not change the experiment; the device's type is hashed in place of ``device``."""


SWEEP_KEYS = {"base", "axes"}
"""The keys of a sweep file that no config has."""


def _choose(kind: str) -> Callable[[Any, ValidationInfo], Any]:
    """A validator that uses the options model of the component that the block names."""

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
    """An error that pydantic reports along with its own, at a location below the validator's."""
    message = PydanticCustomError(kind, "{text}", {"text": text})
    return ValidationError.from_exception_data(
        kind, [InitErrorDetails(type=message, loc=location, input=value)]
    )


Tag = Annotated[str, Field(pattern=NAME_PATTERN)]


def _check_logger(name: str) -> str:
    """Refuse what cannot name a logger; whether it can be imported is checked before a run."""
    if name in LOGGERS or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    near = difflib.get_close_matches(name.lower(), LOGGERS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"got {show(name)}, expected {', '.join(LOGGERS)}, or package.module:Class{hint}")


def _distinct(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


Folder = Annotated[Path, AfterValidator(expand_path)]

DEVICES = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"


def _check_device(name: Any) -> Any:
    """Refuse what is not a device, listing the names allowed and the one that was probably meant."""
    text = str(name).strip().lower()
    if re.fullmatch(DEVICES, str(name)):
        return name
    near = f"cuda:{text}" if re.fullmatch("[0-9]{1,3}", text) else text.replace("gpu", "cuda")
    hint = f" (did you mean {near!r}?)" if re.fullmatch(DEVICES, near) else ""
    raise ValueError(f"got {show(name)}, expected auto, cpu, cuda or cuda:N{hint}")


def _refuse_extends(value: Any) -> None:
    """Refuse it outside a config file: in a file it is resolved and removed as the file is read."""
    if value is not None:
        raise ValueError(f"got {show(value)}, which is allowed only in a config file")


class Config(BaseModel):
    """All settings of one run; every key except the names of dataset, model and trainer has a default."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra={"title": "fgbench config"},
    )

    extends: Annotated[None, BeforeValidator(_refuse_extends)] = Field(
        None, exclude=True, json_schema_extra={"type": "string"}
    )
    """Another config file, relative to this one's folder, whose keys (except name, tuned, note) apply unless
    this one sets them, block by block."""
    name: str = Field("run", pattern=NAME_PATTERN)
    """Name of the run's folder in the results; the file's stem when not given."""
    seed: int = Field(0, ge=0, lt=2**63)
    """The seed from which every random stream is derived."""
    tuned: str | None = None
    """How the learning rate and other values were chosen; `fgbench tune` writes it, tables show it."""
    tags: Annotated[tuple[Tag, ...], AfterValidator(_distinct)] = ()
    """Words kept in the run directory; `--tag` of `status`, `plot`, `compare`, `report` selects runs by
    one."""
    note: str | None = Field(None, max_length=1000)
    """What the run is for; kept in the run directory."""
    epochs: PositiveInt = 100
    """Passes over the training images."""
    batch_size: PositiveInt = 64
    """Images per step, over all workers."""
    dataset: Annotated[SerializeAsAny[Options], BeforeValidator(_choose("dataset"))]
    """The images: a name of `fgbench list datasets`, or a block with the name and its options."""
    model: Annotated[SerializeAsAny[Options], BeforeValidator(_choose("model"))]
    """The network: a name of `fgbench list models`, or a block with the name and its options."""
    trainer: Annotated[SerializeAsAny[Options], BeforeValidator(_choose("trainer"))]
    """The rule that computes gradients: a name of `fgbench list trainers`, or a block with the name and its
    options."""
    optimizer: OptimizerOptions = OptimizerOptions()
    """How the gradients update the parameters."""
    schedule: ScheduleOptions = ScheduleOptions()
    """How the learning rate changes from step to step."""
    clip_gradient_norm: PositiveFloat | None = None
    """Largest norm of the gradient; a larger gradient is scaled down to it."""
    early_stopping: EarlyStoppingOptions | None = None
    """When a run stops before its last epoch; never when null."""
    saving: SavingOptions = SavingOptions()
    """When state files (to resume from) are written, and which weights they keep."""
    diagnostics: DiagnosticsOptions = DiagnosticsOptions()
    """What is measured in addition to training."""
    log: Annotated[tuple[Annotated[str, AfterValidator(_check_logger)], ...], AfterValidator(_distinct)] = ()
    """Loggers that also receive what a run records: `tensorboard`, or your own as `package.module:Class`."""
    verify: bool = True
    """Before training, compare the first step's derivatives and gradient with those computed by backprop."""
    deterministic: bool = False
    """Use only PyTorch's deterministic algorithms."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: automatic mixed precision."""
    compile: bool = False
    """Compile the pass of `backprop`, `forward-gradient` or `zeroth-order`: takes seconds to a minute, then
    steps are faster."""
    allocator: bool = True
    """Keep large blocks of CPU memory between steps instead of returning them to the system; faster."""
    threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads; PyTorch's choice when null."""
    device: Annotated[str, BeforeValidator(_check_device)] = Field("auto", pattern=DEVICES)
    """`auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`."""
    data_dir: Folder | None = None
    """The only folder in which to look for datasets; the usual ones when null."""
    results_dir: Folder = Path("results")
    """The folder in which run directories are created."""

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        if declared_independence(self.trainer) and getattr(self.model, "normalization", None) == "batch":
            text = (
                f"batch does not go with trainer.name: {self.trainer.name}, which needs samples that do not "
                "interact; set model.normalization: group (or none)"
            )
            raise _error_at(("model", "normalization"), "batch", "combination", text)
        if self.compile and not (isinstance(self.trainer, TrainerOptions) and self.trainer.can_compile):
            text = (
                f"true does not go with trainer.name: {self.trainer.name} as it is set; expected backprop, "
                "forward-gradient or zeroth-order, without recompute, exact_output and exact_stages"
            )
            raise _error_at(("compile",), True, "combination", text)
        if self.precision == "bf16" and getattr(self.trainer, "tangent_precision", "fp32") == "bf16":
            text = "bf16 does not go with precision: bf16, which has tangents in bfloat16 already; set fp32"
            raise _error_at(("trainer", "tangent_precision"), "bf16", "combination", text)
        return self


def load_config(
    path: str | Path,
    overrides: Sequence[str | Override] = (),
    say: Callable[[str], None] = logger.warning,
) -> Config:
    """Read a config file, apply overrides to it and check the result.

    Args:
        path: the YAML file.
        overrides: texts ``key.sub=value``, as the command line's ``-o``, or ``Override``s. Their order does
            not matter, except that the last of several for one key wins. ``block=name`` keeps those options
            of the block that the new component has too.
        say: called with a line for everything that an override drops.

    Raises:
        ConfigError: every mistake in the file and the overrides, one a line: ``file:line: dotted.key:
            what was got, what is allowed``.
    """
    source = read_config(path)
    config = check_config(source, overrides)
    for note in source.notes:
        say(note)
    return config


def read_config(path: str | Path) -> Source:
    """Read a config file with what it extends, unchecked, its stem as the name where it has none.

    Raises:
        ConfigError: it, or a file it extends, cannot be read or is not valid YAML.
    """
    file = Path(path)
    source = resolve(_read(file), file)
    if "name" not in source.data:
        source.data = {"name": file.stem, **source.data}
        source.places["name",] = f"{path} (its stem is the name, unless name: is given)"
    return source


def resolve(source: Source, path: Path) -> Source:
    """A file's keys merged over those of the file it ``extends``, unchecked.

    Raises:
        ConfigError: the extended file cannot be read, or extends this one.
    """
    return extend(source, path, _read)


def _read(path: Path) -> Source:
    source = read_yaml(path)
    if SWEEP_KEYS & source.data.keys() and not TABLES.keys() & source.data.keys():
        raise ConfigError(f"{path}: a sweep file, not the config of a run: `fgbench sweep {path}` runs it")
    return source


def check_config(source: Source, *overrides: Sequence[str | Override]) -> Config:
    """Apply overrides to a source in place and check the result; see :func:`load_config`.

    Args:
        source: the values of a file; afterwards its ``notes`` list what was dropped.
        *overrides: sets of overrides, applied one after the other; one that a later set has too is not.

    Raises:
        ConfigError: every mistake, one a line.
    """
    expand_names(source)
    said: list[tuple[int, Override]] = []
    for index, each in enumerate(overrides):
        parsed = []
        for text in each:
            try:
                parsed.append(parse_override(text) if isinstance(text, str) else text)
            except ConfigError as error:
                source.problems.append(str(error))
        parsed.sort(key=lambda override: override.key.count("."))  # blocks, then keys
        said += [(index, override) for override in parsed]
    last = {override.key: index for index, override in said}
    made: dict[str, Override] = {}
    for index, override in said:
        earlier = made.get(override.key, override)
        if (earlier.value, earlier.place) != (override.value, override.place):
            source.notes.append(f"{override} replaces {earlier}")
        made[override.key] = override
        if index == last[override.key]:  # of what a later set replaces nothing stays, not even its options
            apply_override(source, override)
    return validate_source(source, Config)


def to_yaml(config: Config) -> str:
    """The whole config, defaults included, as ``load_config`` reads it back."""
    return dump_yaml(config.model_dump(mode="json"))


def config_hash(config: Config, device_type: str, workers: int = 1) -> str:
    """Eight hexadecimal digits, equal for two runs that differ only in the seed.

    Only values that differ from the defaults are hashed, so that a key added to fgbench does not orphan older
    results; name, seed, folders, saving and diagnostics are left out. A component whose results have changed
    has a revision, which is hashed too: older runs do not count as runs of the current code.
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
