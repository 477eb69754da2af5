"""Backprop in its best forms: the baselines that a trainer without a backward pass has to beat."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.trainers.compiled import require_compiler

COMPILED = "backprop, compiled model"
COMPILED_STEP = "backprop, compiled step"
IN_BACKWARD = "backprop, optimizer in backward"


def compiled_step(
    model: nn.Module, inputs: Tensor, labels: Tensor, lr: float
) -> tuple[Callable[[], object], torch.optim.Optimizer]:
    """A step with ``torch.compile(model)`` and a fused SGD optimizer; trains ``model``.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    if inputs.device.type == "cpu":
        require_compiler()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)
    compiled: Any = torch.compile(model)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_fn(compiled(inputs), labels).backward()
        optimizer.step()

    return step, optimizer


def step_in_backward(model: nn.Module, inputs: Tensor, labels: Tensor, lr: float) -> Callable[[], object]:
    """A step of plain SGD that updates each parameter as soon as its gradient is ready, then frees it."""

    @torch.no_grad()
    def update(param: Tensor) -> None:
        assert param.grad is not None
        param.sub_(param.grad, alpha=lr)
        param.grad = None

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(update)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> None:
        loss_fn(model(inputs), labels).backward()

    return step
