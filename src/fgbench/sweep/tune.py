"""Fair tuning: the same search for every configuration of a sweep, on validation images (Optuna)."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgbench import measure
from fgbench.analysis.series import label_configs
from fgbench.config.config import Config, config_hash, to_yaml
from fgbench.config.sweep import Sweep, TuneOptions
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.errors import ConfigError
from fgbench.run.build import build_training
from fgbench.run.code import own_code
from fgbench.run.epochs import has_diverged
from fgbench.run.loop import evaluate, start_next_epoch, train_epoch
from fgbench.run.signals import Interrupted, StopRequest
from fgbench.run.validation import reason_to_stop
from fgbench.storage.files import append_line
from fgbench.storage.metrics import Cell
from fgbench.storage.run_directory import RunDirectory
from fgbench.sweep.tuned import Tuned, describe_tuned, distinct_configs, with_values, write_tuned

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
except ModuleNotFoundError as error:
    raise ConfigError('fgbench tune needs Optuna: pip install "fgbench[tune]"') from error

TUNABLE = (
    "optimizer",
    "schedule",
    "trainer",
    "model",
    "batch_size",
    "clip_gradient_norm",
    "precision",
    "compile",
)
"""Keys and blocks that a trial is built with; its data, epochs and machine are the configuration's own."""

optuna.logging.set_verbosity(optuna.logging.ERROR)
State = optuna.trial.TrialState


def tune_sweep(sweep: Sweep, search: DataSearch, say: Callable[[str], None] = print) -> list[Tuned]:
    """Tune every configuration of a sweep, and write the tuned configs and the trials into RESULTS/tuned.

    A configuration's first seed is used. All have the same number of trials and epochs; a trial that is worse
    than the median of earlier ones at the same epoch is stopped early. After an interruption the same call
    runs the missing trials.

    Raises:
        ConfigError: a configuration cannot be built, or none of its trials gave a finite result.
        FgbenchError: another process is tuning in the same folder.
        Interrupted: a signal asked to stop; earlier trials are kept.
    """
    options = sweep.tune or TuneOptions()
    ranges = sweep.ranges or {"optimizer.lr": (1e-5, 1.0)}
    configs = distinct_configs(sweep.configs, list(ranges))
    labels = label_configs(configs)
    known: set[str] = set()
    for config, label in zip(configs, labels, strict=True):
        _check(config, label, options, ranges)
        if (data := f"{config.data_dir} {config.dataset.model_dump_json()} {config.seed}") not in known:
            known.add(data)
            _check_validation(config, label, search)
    folder = configs[0].results_dir / "tuned"
    results = []
    with RunDirectory(folder).create().lock(), StopRequest() as stop:
        storage = _open_journal((folder / f"{sweep.name}.journal").absolute())
        for config, label in zip(configs, labels, strict=True):
            study = _tune(config, label, options, ranges, storage, search, stop)
            results.append(_write(study, config, label, options, ranges, folder))
            say(f"{label}: {describe_tuned(results[-1])}")
    return results


def _check(config: Config, label: str, options: TuneOptions, ranges: dict[str, Any]) -> None:
    """Refuse, before anything is written, what a trial cannot do."""
    if others := [key for key in ranges if key.partition(".")[0] not in TUNABLE]:
        raise ConfigError(
            f"tune.keys: got {', '.join(others)}, which all trials have in common; expected keys of "
            f"{', '.join(TUNABLE)}"
        )
    spans = (map(_rounded, span) if isinstance(span, tuple) else span for span in ranges.values())
    for values in itertools.product(*spans):  # of a range, both ends
        trial = with_values(config, dict(zip(ranges, values, strict=True)))
        if trial.schedule.ends and (options.epochs or 0) > trial.epochs:
            raise ConfigError(
                f"{label}: tune.epochs: got {options.epochs}, expected at most epochs: {trial.epochs}, where "
                f"schedule {trial.schedule.name} ends"
            )


def _check_validation(config: Config, label: str, search: DataSearch) -> None:
    splits = load_splits(config.dataset, config.seed, "cpu", replace(search, config_dir=config.data_dir))
    if not len(splits.validation):
        raise ConfigError(f"{label}: tuning needs validation images, and dataset.validation_fraction is 0")


def _open_journal(path: Path) -> Any:
    """The trials of earlier calls, without what a killed process left; the folder is locked.

    Raises:
        ConfigError: the journal is damaged.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    backend = JournalFileBackend(str(path))
    append_line(path, b"")  # which removes an incomplete last line
    try:
        for line in path.read_bytes().splitlines():
            json.loads(line)  # Optuna looks at the last line only when another one follows
        return optuna.storages.JournalStorage(backend)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error}); move it away to search anew") from error


def _tune(
    config: Config,
    label: str,
    options: TuneOptions,
    ranges: dict[str, Any],
    storage: Any,
    search: DataSearch,
    stop: StopRequest,
) -> Any:
    epochs = options.epochs or config.epochs
    device = measure.resolve_device(config.device)
    trained = config.model_copy(update={"results_dir": Path()})  # its epochs are the schedule's
    content = f"{to_yaml(trained)}{sorted(ranges.items())}{options.metric}{config_hash(trained, device.type)}"
    content += f"{epochs} epochs"
    splits = load_splits(config.dataset, config.seed, device, replace(search, config_dir=config.data_dir))
    content += splits.fingerprint.loaded if splits.fingerprint else ""
    content += "".join(own_code(config).values())
    name = f"{label} {hashlib.sha256(content.encode()).hexdigest()[:8]}"
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction="maximize" if options.metric == "val_accuracy" else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    for earlier in study.get_trials(deepcopy=False):
        if earlier.state == State.RUNNING:  # its process was killed
            study.tell(earlier.number, state=State.FAIL)
            study.enqueue_trial(earlier.params)
    measure.prepare(device, config.threads, keep=config.allocator, deterministic=config.deterministic)
    while (
        number := len(study.get_trials(deepcopy=False, states=(State.COMPLETE, State.PRUNED)))
    ) < options.trials:
        digest = hashlib.sha256(f"{name} {number}".encode()).digest()
        study.sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4]))
        trial = study.ask()
        chosen = {key: _suggest(trial, key, span) for key, span in ranges.items()}
        training = build_training(with_values(config, chosen), device, splits)
        score = math.nan
        rows: list[dict[str, Cell]] = []
        for epoch in range(epochs):
            train_epoch(training, lambda: stop.requested)
            if stop.requested:
                study.tell(trial, state=State.FAIL)
                study.enqueue_trial(chosen)
                raise Interrupted(stop.number, f"tuning {label}")
            train_loss, _, _ = training.train_means()
            start_next_epoch(training)
            loss, accuracy = evaluate(training.model, training.loss_fn, splits.validation)
            score = accuracy if options.metric == "val_accuracy" else loss
            if has_diverged(train_loss, loss):
                trial.set_user_attr("diverged", True)
                score = math.nan
                break
            trial.report(score, epoch)
            rows.append({"epoch": epoch + 1, "val_loss": loss, "val_accuracy": accuracy})
            if reason_to_stop(rows, config.early_stopping):
                break
            if epoch + 1 < epochs and trial.should_prune():
                score = math.nan
                break
        if math.isfinite(score):
            study.tell(trial, score)
        else:
            study.tell(trial, state=State.PRUNED)
    return study


def _suggest(trial: Any, key: str, span: Any) -> Any:
    if isinstance(span, tuple):
        return _rounded(trial.suggest_float(key, *span, log=True))
    return trial.suggest_categorical(key, span)


def _rounded(value: float) -> float:
    """The value as tried and as written to a file: four digits."""
    return float(f"{value:.4g}")


def _write(
    study: Any, config: Config, label: str, options: TuneOptions, ranges: dict[str, Any], folder: Path
) -> Tuned:
    ended = study.get_trials(deepcopy=False, states=(State.COMPLETE, State.PRUNED))[: options.trials]
    complete = [trial for trial in ended if trial.state == State.COMPLETE]
    if not complete:
        raise ConfigError(
            f"{label}: none of {options.trials} trials ended with a finite loss; narrow the range"
        )
    choose = max if options.metric == "val_accuracy" else min
    best = choose(complete, key=lambda trial: trial.value)
    values = {
        key: _rounded(value) if isinstance(ranges[key], tuple) else value
        for key, value in best.params.items()
    }
    origin = f"{options.metric} after {options.epochs or config.epochs} epochs, best of {len(ended)} trials"
    path = write_tuned(config, label, values, origin, folder)
    diverged = sum("diverged" in trial.user_attrs for trial in ended)
    stopped = len(ended) - len(complete) - diverged
    return Tuned(label, path, len(ended), diverged, values, best.value, stopped=stopped)
