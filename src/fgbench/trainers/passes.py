"""What every trainer needs around a forward pass: checked batches and losses, gradients written."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction
from fgbench.trainers.forward_mode.refusals import refuse_untrainable


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name, detached."""
    return {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}


def begin_step(model: nn.Module, labels: Tensor, *, accumulate: bool = False) -> None:
    """Before a trainer's first pass: check what every trainer needs, and drop old gradients.

    Gradients that will be overwritten need not be held during the step; those accumulated into are kept.

    Raises:
        ConfigError: see :func:`require_trainable`.
    """
    require_trainable(model, labels)
    if not accumulate:
        for param in model.parameters():
            if param.requires_grad:
                param.grad = None


def require_trainable(model: nn.Module, labels: Tensor) -> None:
    """Check what every trainer needs.

    Raises:
        ConfigError: the batch is empty, no parameter requires a gradient, or one cannot be trained.
    """
    refuse_untrainable(model)
    if not len(labels):
        raise ConfigError("the batch is empty: 0 samples have no mean loss")
    if not any(param.requires_grad for param in model.parameters()):
        raise ConfigError(f"nothing to train: no parameter of the {type(model).__name__} requires a gradient")


def write_gradient(param: Tensor, gradient: Tensor, *, accumulate: bool = False) -> None:
    """Set a parameter's ``.grad``, or add to it."""
    if accumulate and param.grad is not None:
        param.grad.add_(gradient)
    else:
        param.grad = gradient


@contextmanager
def accumulating(params: Sequence[Tensor], accumulate: bool) -> Iterator[None]:
    """If ``accumulate``, add the ``.grad`` set inside this context to the previous ones."""
    kept = [param.grad for param in params] if accumulate else []
    for param, _ in zip(params, kept, strict=False):
        param.grad = None
    yield
    for param, before in zip(params, kept, strict=False):
        if before is not None:
            param.grad = before if param.grad is None else before.add_(param.grad)


def write_gradients(gradients: Mapping[Tensor, Tensor], *, accumulate: bool = False) -> Tensor:
    """Set (or add to) every parameter's ``.grad``; returns the resulting norm, shape ()."""
    for param, gradient in gradients.items():
        write_gradient(param, gradient, accumulate=accumulate)
    return gradient_norm(param.grad for param in gradients if param.grad is not None)


def require_tensor(outputs: Any) -> None:
    """Refuse a model's outputs unless they are one tensor.

    Raises:
        ConfigError: they are not a tensor.
    """
    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"the model returned a {type(outputs).__name__}, expected one tensor of outputs: wrap it in a "
            f"module that returns that one (a classifier with auxiliary heads: switch them off)"
        )


def sample_losses(loss_fn: LossFunction, outputs: Tensor, labels: Tensor) -> Tensor:
    """One loss per sample, shape (B,).

    Raises:
        ConfigError: the model or ``loss_fn`` did not return one tensor.
    """
    require_tensor(outputs)
    losses = loss_fn(outputs, labels)
    if losses.shape != labels.shape[:1]:
        raise ConfigError(
            f"loss_fn returned shape {tuple(losses.shape)}, expected one loss per sample, shape "
            f'({labels.shape[0]},): give it reduction="none"'
        )
    return losses


def differentiate(
    outputs: Sequence[Tensor],
    params: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool = False,
) -> list[Tensor]:
    """The gradient of one loss (or of ``outputs``, weighted by ``cotangents``), zeros where there is none.

    Raises:
        ConfigError: the model uses a form of checkpointing that only ``loss.backward()`` supports.
    """
    weights = [None] * len(outputs) if cotangents is None else list(cotangents)
    pairs = [(each, its) for each, its in zip(outputs, weights, strict=True) if each.requires_grad]
    if not pairs or not params:
        return [torch.zeros_like(param) for param in params]
    ends, starts = zip(*pairs, strict=True)
    try:
        return list(
            torch.autograd.grad(ends, params, starts, retain_graph=retain_graph, materialize_grads=True)
        )
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        raise ConfigError(
            "the model checkpoints a part with use_reentrant=True, through which no single gradient can be "
            "taken: set use_reentrant=False there"
        ) from error


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm over all tensors together, shape (); 0 of none."""
    found = list(gradients)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found))) if found else torch.zeros(())
