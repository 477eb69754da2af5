"""Matrices from the outputs of layers to the model's outputs: how they are regressed, what they leave."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fgbench.trainers.activity_pass import perturbed_pass
from fgbench.trainers.base import LossFunction
from fgbench.trainers.forward_mode.layers import LayerCall
from fgbench.trainers.sampling import sample_tangents


def to_rows(values: Tensor) -> Tensor:
    """Shape (B, C, ...) as (B, entries), channels last: a view of a channels_last tensor."""
    return values.movedim(1, -1).flatten(1)


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``to_rows``, with the shape and dtype of ``like``."""
    return rows.view(like.movedim(1, -1).shape).movedim(-1, 1).to(like.dtype)


def left_over(matrices: Sequence[Tensor], rows: Sequence[Tensor], change: Tensor) -> Tensor:
    """What all matrices together leave unexplained of the outputs' change, r = y - sum_l F_l u_l.

    Args:
        matrices: F_l, shape (classes, entries).
        rows: u_l, shape (B, entries).
        change: y, shape (B, classes).
    """
    left = change.clone()
    for matrix, row in zip(matrices, rows, strict=True):
        left.addmm_(row, matrix.T, alpha=-1)
    return left


def regress(matrices: Sequence[Tensor], rows: Sequence[Tensor], change: Tensor, rate: float) -> None:
    """F_l <- F_l + rate / (B + n) sum_i r_i u_li^T, n the mean over samples of |u|^2, all layers together."""
    left = left_over(matrices, rows, change)
    samples = len(change)
    active = sum((row.square().sum() for row in rows), start=left.new_zeros(())) / samples
    step = left * (rate / (samples + active))
    for matrix, row in zip(matrices, rows, strict=True):
        matrix.addmm_(step.T, row)


@torch.no_grad()
def unexplained_shares(
    matrices: Sequence[Tensor],
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    layers: Mapping[Tensor, str],
    generator: torch.Generator,
) -> dict[str, float]:
    """sum_i |y_i - F_l u_li|^2 / sum_i |y_i|^2 for every layer, perturbed alone; under "" all together.

    1 is what matrices of zeros leave, 0 what the Jacobians of every sample would; a matrix that is worse than
    none leaves more than 1. NaN where a layer's change does not reach the outputs. A pass for each layer.

    Args:
        matrices: one per call, in the order the layers run; none: as if all were zero.
        model: its running statistics move with every pass.
        loss_fn: one loss per sample.
        inputs: shape (B, ...).
        labels: shape (B,).
        layers: which layers: their weights and biases, with names.
        generator: on the model's device.
    """

    def share(names: Sequence[str] | None, of_calls: Sequence[str]) -> tuple[float, list[LayerCall]]:
        def perturb(index: int, output: Tensor) -> Tensor:
            if names is not None and of_calls[index] not in names:
                return torch.zeros_like(output)
            return sample_tangents({"output": output}, "rademacher", generator)["output"]

        result = perturbed_pass(model, loss_fn, inputs, labels, layers, perturb, {})
        change = result.output_tangents.double()
        rows = [to_rows(call.reached(call.perturbation)).double() for call in result.calls]
        known = matrices or [change.new_zeros(change.shape[1], row.shape[1]) for row in rows]
        left = left_over([matrix.to(change) for matrix in known], rows, change)
        return (left.square().sum() / change.square().sum()).item(), result.calls

    whole, calls = share(None, [])
    of_calls = [_layer_name(call, layers) for call in calls]
    return {"": whole} | {name: share([name], of_calls)[0] for name in dict.fromkeys(of_calls)}


def _layer_name(call: LayerCall, layers: Mapping[Tensor, str]) -> str:
    """The name of the layer whose weight (or, where that is frozen, bias) a call was given."""
    weight, bias = call.arguments["weight"], call.arguments["bias"]
    name = layers[weight if weight in layers else bias]
    return name.rpartition(".")[0] or name
