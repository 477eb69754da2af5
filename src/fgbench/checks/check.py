"""``fgbench check``: are a config's derivatives and gradient right, and is fgbench installed well."""

import copy
import platform
import time

import torch
from torch import Tensor, nn

from fgbench import measure
from fgbench.checks.gradients import (
    directional_derivatives,
    expected_values,
    gradient_of,
    kept_generators,
    sample_gradients,
)
from fgbench.checks.quality import gradient_quality
from fgbench.checks.verify import verify
from fgbench.config.config import Config
from fgbench.datasets.base import load_splits
from fgbench.datasets.search import DataSearch
from fgbench.datasets.status import data_status
from fgbench.errors import ConfigError, FgbenchError
from fgbench.models.build import build_model
from fgbench.models.options import LocalMixerOptions
from fgbench.registry import TRAINERS, load
from fgbench.seeds import derive_generator
from fgbench.trainers.base import Trainer

QUALITY_DRAWS = 8
"""Gradients from which the noise and the cosine of every layer are taken."""

EXACT = 1e-8
"""How far a float64 step may be from its formula, as a share of a derivative's root mean square."""


def check(
    config: Config | None = None, search: DataSearch | None = None, draws: int = 64
) -> tuple[str, bool]:
    """What ``fgbench check`` prints, and whether all is well.

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
    trainer = load("trainer", config.trainer.name)(config.trainer)
    trainer.set_up(model, inputs, splits.num_classes, derive_generator("cpu", config.seed, "trainer"))
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    count = sum(param.numel() for param in model.parameters() if param.requires_grad)
    lines = [
        f"{config.model.name}, {count:,} parameters; {len(labels)} of {config.dataset.name}; {device}",
        "",
        "directional derivative along one normal tangent, in float64:",
    ]
    derivatives = directional_derivatives(model, loss_fn, inputs, labels, config.seed)
    lines += derivatives.lines()
    consistent = derivatives.agree
    exact, compared = _compare_exactly(trainer, model, inputs, labels, config.seed)
    lines += ["", "one step against its formula, entry by entry, in float64:", f"  {exact}"]
    consistent = consistent and compared is not False
    sampled = sample_gradients(trainer, model, loss_fn, inputs, labels, config.seed, draws)
    lines += [
        "",
        f"{config.trainer.name}, {draws} gradients against the true one g (|g| = {sampled.norm:.4g}):",
    ]
    lines.append(f"  {'':<28}{'measured':>22}   expected")
    for figure in sampled.figures(expected_values(trainer, model, sampled)):
        lines.append(figure.line())
        consistent = consistent and figure.consistent
        compared = compared or figure.expected is not None
    generator = derive_generator(device, config.seed, "check quality")
    quality = gradient_quality(trainer, model, loss_fn, inputs, labels, generator, min(draws, QUALITY_DRAWS))
    lines += ["", f"  {'layer':<28}{'E|g_hat-g|^2/|g|^2':>22}{'cosine':>10}{'|g|':>12}"]
    for layer, each in quality.items():
        lines.append(f"  {layer or 'all':<28}{each.noise:>22.4g}{each.cosine:>10.4f}{each.norm:>12.4g}")
    # only what a trainer declares can be compared: its own reference, or a mean that theory knows
    verdict = ("consistent" if compared else "not checked") if consistent else "inconsistent"
    lines += ["", f"verdict: {verdict}"]
    return "\n".join(lines), consistent


def _compare_exactly(
    trainer: Trainer, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int
) -> tuple[str, bool | None]:
    """A line on one step of float64 copies against the trainer's reference; None: it declares none."""
    trainer, model = copy.deepcopy((trainer, model))
    model, inputs = model.double(), inputs.double()
    generator = derive_generator(inputs.device, seed, "check step")
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    # central differences take the output layer's gradient beside the parameters, not at them
    beside = hasattr(trainer.options, "epsilon") and trainer.options.exact_output
    tolerance = 1e-3 if beside else EXACT
    try:
        found = verify(trainer, model, loss_fn, inputs, labels, generator, tolerance=tolerance)
    except ConfigError:
        raise
    except FgbenchError as error:
        return str(error), False
    if found.derivative_error is None:
        return "not checked: this trainer declares no reference", None
    return (
        f"{found.derivatives} derivatives off by at most {found.derivative_error:.1e}, "
        f"the gradient by {found.gradient_error:.1e} (allowed {tolerance:g})"
    ), True


def _check_installation(search: DataSearch) -> tuple[str, bool]:
    """Versions, devices, threads, the data that is there, and one step of every trainer on a tiny model."""
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
    with kept_generators(device):
        model: nn.Module = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU()),
            nn.Linear(8, 3),
        ).to(device)
    inputs, labels = torch.ones(4, 1, 4, 4, device=device), torch.tensor([0, 1, 2, 0], device=device)
    trainer = load("trainer", name)()
    try:
        trainer.set_up(model, inputs, 3, torch.Generator().manual_seed(0))
    except ConfigError:  # a trainer made for one model
        mixer = LocalMixerOptions(channels=8, groups=2, patches=2)
        model = build_model(mixer, (1, 4, 4), 3, 0, device)
        trainer.set_up(model, inputs, 3, torch.Generator().manual_seed(0))
    start = time.perf_counter()
    gradient = gradient_of(
        trainer,
        model,
        nn.CrossEntropyLoss(reduction="none"),
        inputs,
        labels,
        derive_generator(device, 0, "check"),
    )
    finite = bool(gradient.isfinite().all())
    if not finite:
        raise FgbenchError("its gradient is not finite")
    return time.perf_counter() - start
