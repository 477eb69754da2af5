"""``fgbench check``: checks a config's derivatives and gradient, or the installation."""

import platform
import time

import torch
from torch import Tensor, nn

from fgbench import measure
from fgbench.checks.formula import check_formula
from fgbench.checks.gradients import (
    directional_derivatives,
    expected_values,
    gradient_of,
    kept_generators,
    sample_gradients,
)
from fgbench.checks.mean import check_mean
from fgbench.checks.part import Part, verdict
from fgbench.checks.probe import make_probe
from fgbench.checks.quality import gradient_quality
from fgbench.checks.sampler import check_sampler
from fgbench.config.config import Config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.datasets.status import data_status
from fgbench.errors import FgbenchError
from fgbench.models.build import build_model
from fgbench.registry import TRAINERS, load
from fgbench.seeds import derive_generator
from fgbench.trainers.base import Trainer
from fgbench.trainers.build import build_trainer

QUALITY_DRAWS = 8
"""Number of gradients from which the noise and the cosine of every layer are computed."""
LOSS = nn.CrossEntropyLoss(reduction="none")


def check(
    config: Config | None = None, search: DataSearch | None = None, draws: int = 64
) -> tuple[str, bool]:
    """The report of ``fgbench check``, and whether everything is consistent.

    Args:
        config: what to check, on its own model, data and device; None: the installation.
        search: where to look for the data.
        draws: how many gradients of the trainer to average.

    Raises:
        ConfigError: the trainer cannot train the model.
        DataError: there is no such data.
    """
    if config is None:
        return _check_installation(search or DataSearch())
    device = measure.resolve_device(config.device)
    measure.set_threads(config.threads)
    splits = load_splits(
        config.dataset, config.seed, device, search or DataSearch(config_dir=config.data_dir)
    )
    model = build_model(config.model, splits.image_shape, splits.num_classes, config.seed, device)
    inputs, labels = splits.train.batch(
        torch.arange(min(config.batch_size, len(splits.train)), device=device)
    )
    trainer = _set_up(config, model, inputs, splits.num_classes)
    count = sum(param.numel() for param in model.parameters() if param.requires_grad)
    parts = [_check_derivative(model, inputs, labels, config.seed)]
    with kept_generators(device):
        exact = build_model(
            config.model, splits.image_shape, splits.num_classes, config.seed, device
        ).double()
    twin = _set_up(config, exact, inputs.double(), splits.num_classes)
    parts.append(check_formula(twin, exact, LOSS, inputs.double(), labels, config.seed))
    del exact, twin
    parts.append(check_sampler(trainer, model, LOSS, inputs, labels, config.seed))
    parts.append(check_mean(trainer, device))
    parts.append(_check_samples(trainer, model, inputs, labels, config.seed, draws))
    lines = [
        f"{config.model.name}, {count:,} parameters; {len(labels)} of {config.dataset.name}; {device}",
        *(line for part in parts for line in ("", *part.lines)),
        "",
        *_quality_table(trainer, model, inputs, labels, config.seed, min(draws, QUALITY_DRAWS)),
        "",
        f"verdict: {verdict(parts)}",
    ]
    return "\n".join(lines), all(part.consistent is not False for part in parts)


def _set_up(config: Config, model: nn.Module, inputs: Tensor, num_classes: int) -> Trainer:
    trainer = build_trainer(config.trainer)
    trainer.set_up(model, inputs, num_classes, derive_generator("cpu", config.seed, "trainer"))
    return trainer


def _check_derivative(model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Part:
    """Check the model's directional derivative, independently of the trainer."""
    found = directional_derivatives(model, LOSS, inputs, labels, seed)
    title = "directional derivative along one normal tangent, in float64:"
    return Part("derivative", [title, *found.lines()], found.agree)


def _check_samples(
    trainer: Trainer, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int, draws: int
) -> Part:
    """Compare sampled gradients with the true one and with their theoretical means."""
    sampled = sample_gradients(trainer, model, LOSS, inputs, labels, seed, draws)
    figures = sampled.figures(expected_values(trainer, model, sampled))
    name = trainer.options.name
    lines = [f"{name}, {draws} gradients against the true one g (|g| = {sampled.norm:.4g}):"]
    lines.append(f"  {'':<28}{'measured':>22}   expected")
    lines += [figure.line() for figure in figures]
    return Part("samples", lines, all(figure.consistent for figure in figures))


def _quality_table(
    trainer: Trainer, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int, draws: int
) -> list[str]:
    generator = derive_generator(inputs.device, seed, "check quality")
    quality = gradient_quality(trainer, model, LOSS, inputs, labels, generator, draws)
    title = f"  {'layer':<28}{'E|g_hat-g|^2/|g|^2':>22}{'cosine':>10}{'|g|':>12}"
    return [title] + [
        f"  {layer or 'all':<28}{each.noise:>22.4g}{each.cosine:>10.4f}{each.norm:>12.4g}"
        for layer, each in quality.items()
    ]


def _check_installation(search: DataSearch) -> tuple[str, bool]:
    """Versions, devices, threads, available data, and one step of every trainer on a tiny model."""
    device = measure.resolve_device("auto")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, threads {torch.get_num_threads()}",
        f"GPUs: {', '.join(gpus) or 'none'}; runs go to {device} by default",
        "",
        "datasets:",
        *(f"  {row.name:<20}{row.found or 'not found'}" for row in data_status(search)),
        "",
        "one step of every trainer:",
    ]
    ok = True
    for name in TRAINERS:
        try:
            lines.append(f"  {name:<28}ok, {1000 * _try_step(name, device):.0f} ms")
        except (FgbenchError, RuntimeError) as error:
            ok = False
            lines.append(f"  {name:<28}failed: {str(error).splitlines()[0]}")
    lines += ["", f"verdict: {'ok' if ok else 'not ok'}"]
    return "\n".join(lines), ok


def _try_step(name: str, device: torch.device) -> float:
    """Seconds one step took (the first one, so it includes warm-up).

    Raises:
        FgbenchError: the step gave something that is not finite.
    """
    probe = make_probe(load("trainer", name)(), device)
    start = time.perf_counter()
    gradient = gradient_of(
        probe.trainer, probe.model, LOSS, probe.inputs, probe.labels, derive_generator(device, 0, "check")
    )
    finite = bool(gradient.isfinite().all())
    if not finite:
        raise FgbenchError("its gradient is not finite")
    return time.perf_counter() - start
