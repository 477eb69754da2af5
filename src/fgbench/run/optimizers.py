"""Optimizers and schedules: ``torch.optim`` as it is, built from options."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fgbench.config.optimizer import OptimizerOptions, ScheduleOptions
from fgbench.trainers.forward_mode.refusals import refuse_untrainable

ONE_CYCLE_START = 25.0
"""The largest learning rate of one-cycle divided by its first."""
ONE_CYCLE_END = 1e4
"""The first learning rate of one-cycle divided by its last."""


def build_optimizer(
    options: OptimizerOptions,
    model: nn.Module,
    extra_parameters: Iterable[nn.Parameter] = (),
    exact_names: Collection[str] = (),
) -> Optimizer:
    """The optimizer of the parameters that require a gradient, fused into one kernel where torch can.

    Args:
        options: which one and its settings.
        model: on its device.
        extra_parameters: a trainer's own, in a separate group.
        exact_names: parameters of the model with exact gradients; with ``exact_lr``, the last group.

    Raises:
        ConfigError: a parameter cannot be stepped.
    """
    refuse_untrainable(model)
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    extra = list(extra_parameters)
    exact = set() if options.exact_lr is None else trainable.keys() & set(exact_names)
    others = [param for name, param in trainable.items() if name not in exact]
    groups: list[dict[str, Any]] = [{"params": params} for params in (others, extra) if params]
    if exact:
        own = [param for name, param in trainable.items() if name in exact]
        groups.append({"params": own, "lr": options.exact_lr})
    fused = all(_is_fusible(param) for param in [*trainable.values(), *extra])
    common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay, "fused": fused}
    optimizer: Optimizer
    if options.name == "sgd":
        optimizer = SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **common)
    else:
        kind = {"adam": Adam, "adamw": AdamW}[options.name]
        optimizer = kind(groups, betas=options.betas, eps=options.eps, **common)
    optimizer.register_step_pre_hook(_match_strides)
    return optimizer


def _is_fusible(param: torch.Tensor) -> bool:
    """Whether a fused kernel may step it: it walks along memory and takes all of it for entries."""
    if param.device.type not in ("cpu", "cuda") or param.layout != torch.strided:
        return False
    return param.is_floating_point() and torch.empty_like(param, device="meta").stride() == param.stride()


def _match_strides(optimizer: Optimizer, *_: Any) -> None:
    """Give gradients their parameters' memory layout: fused kernels on a CPU assume it without a check."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.grad.stride() != param.stride():
                param.grad = torch.empty_like(param).copy_(param.grad)


def is_plain_sgd(optimizer: Optimizer) -> bool:
    """Whether a step is ``param -= lr * grad`` with one learning rate for all and no optimizer state."""
    if type(optimizer) is not SGD or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    return not (group["momentum"] or group["weight_decay"] or group["nesterov"] or group["maximize"])


def build_schedule(
    options: ScheduleOptions, optimizer: Optimizer, steps_per_epoch: int, epochs: int
) -> LRScheduler:
    """The schedule of the optimizer's learning rate, to be stepped once after every step.

    The learning rate of step i is a function of i alone, so a resumed run continues exactly where it was.
    """
    return LambdaLR(optimizer, lambda step: lr_factor(options, step, steps_per_epoch, epochs))


def lr_factor(options: ScheduleOptions, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the learning rate of step i = ``step`` (from 0) is multiplied by.

    Source: exponential: Baydin et al. (2022), arXiv 2202.08587; cosine: Loshchilov and Hutter (2016),
    arXiv 1608.03983, eq. 5 without restarts; one-cycle: Smith and Topin (2017), arXiv 1708.07120, with cosine
    flanks as in ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    total = steps_per_epoch * epochs
    if options.name == "exponential":
        return math.exp(-options.k * step)
    if options.name == "step":
        return options.factor ** (step // (steps_per_epoch * options.step_epochs))
    if options.name == "linear":
        return max(0.0, 1 - step / total)
    if options.name == "cosine":
        return _cosine(1.0, 0.0, step / total)
    if options.name == "one-cycle":
        start, end = 1 / ONE_CYCLE_START, 1 / (ONE_CYCLE_START * ONE_CYCLE_END)
        peak = max(0.0, options.warmup * total - 1)
        if step < peak:
            return _cosine(start, 1.0, step / peak)
        return _cosine(1.0, end, (step - peak) / max(1.0, total - 1 - peak))
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
