"""Matrices from layers' outputs to the model's outputs: their regression, and what they leave unexplained.

For a convolution a matrix may have one column per patch of positions: under a perturbation u / side that
is the same over a patch of side x side positions, the outputs change by the Jacobian's sum over the patch. A
row then has the patch's summed perturbation / side, and the matrix the patch's mean Jacobian times side.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgbench.trainers.activity_forward_gradient import per_sample
from fgbench.trainers.activity_pass import perturbed_pass
from fgbench.trainers.base import LossFunction
from fgbench.trainers.forward_mode.layers import LayerCall
from fgbench.trainers.reference import OutputCall
from fgbench.trainers.sampling import sample_tangents


def grid_of(call: LayerCall | OutputCall, grid: int | None) -> int | None:
    """The patches of a call's output: only a convolution's has positions, whatever its shape."""
    return grid if call.convolution else None


def patch_side(shape: torch.Size, grid: int | None) -> int:
    """Side of a patch, in positions: outputs of shape (B, C, H, W) have ``grid`` patches each way."""
    return 1 if grid is None or len(shape) != 4 else -(-max(shape[2:]) // grid)


def entries(shape: torch.Size, grid: int | None) -> int:
    """Columns of the matrix of a layer whose output has this shape (batch first)."""
    side = patch_side(shape, grid)
    sizes = [-(-size // side) for size in shape[2:]] if side > 1 else shape[2:]
    return math.prod((*shape[1:2], *sizes))


def draw_signs(output: Tensor, grid: int | None, generator: torch.Generator) -> Tensor:
    """Independent +-1 for every entry of an output; +-1 / side for every patch, the same all over it."""
    side = patch_side(output.shape, grid)
    like = output[..., ::side, ::side] if side > 1 else output
    signs = sample_tangents({"output": like}, "rademacher", generator)["output"]
    return signs if side == 1 else _spread(signs, side, output)


def to_rows(values: Tensor, grid: int | None) -> Tensor:
    """Shape (B, C, ...) to (B, entries), channels last; a patch becomes its sum / side."""
    side = patch_side(values.shape, grid)
    if side > 1:
        values = F.avg_pool2d(values, side, ceil_mode=True, divisor_override=side)
    return values.movedim(1, -1).flatten(1)


def from_rows(rows: Tensor, like: Tensor, grid: int | None) -> Tensor:
    """Rows to the shape and dtype of ``like``, (B, C, ...); every position of a patch gets entry / side."""
    side = patch_side(like.shape, grid)
    if side == 1:
        return rows.view(like.movedim(1, -1).shape).movedim(-1, 1).to(like.dtype)
    patches = like[..., ::side, ::side].movedim(1, -1).shape
    return _spread(rows.view(patches).movedim(-1, 1), side, like).to(like.dtype)


def _spread(patches: Tensor, side: int, like: Tensor) -> Tensor:
    """Every patch's entry over side x side positions, divided by side, cut to the shape of ``like``."""
    wide = F.interpolate(patches / side, scale_factor=side, mode="nearest-exact")
    return wide[..., : like.shape[2], : like.shape[3]]


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


def corrected(deltas: list[Tensor], changes: list[Tensor], derivatives: Tensor, share: float) -> list[Tensor]:
    """The feedback c plus a share of (d - <c, u>) u, per sample over all layers together.

    Args:
        deltas: c of every layer, shape (B, ...).
        changes: u of every layer, shape (B, ...), 0 where the ReLU is inactive.
        derivatives: d, shape (B,).
        share: from 0 to 1.
    """
    pairs = list(zip(deltas, changes, strict=True))
    known = sum((each * u).flatten(1).sum(1) for each, u in pairs)
    return [each + per_sample(share * (derivatives - known), u) for each, u in pairs]


@torch.no_grad()
def unexplained_shares(
    matrices: Sequence[Tensor],
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    labels: Tensor,
    layers: Mapping[Tensor, str],
    generator: torch.Generator,
    grid: int | None,
) -> dict[str, float]:
    """sum_i |y_i - F_l u_li|^2 / sum_i |y_i|^2 for every layer, perturbed alone; under "" all together.

    It is 1 for matrices of zeros, 0 for the Jacobian of every sample, and more than 1 for a matrix that is
    worse than none. NaN where a layer's change does not reach the outputs. Costs a pass per layer.

    Args:
        matrices: one per call, in the order the layers run; none: as if all were zero.
        model: its running statistics are updated by every pass.
        loss_fn: one loss per sample.
        inputs: shape (B, ...).
        labels: shape (B,).
        layers: the weights and biases of the layers to perturb, with names.
        generator: on the model's device.
        grid: patches of an image each way; None: every position has an entry of its own.
    """

    def share(names: Sequence[str] | None, of_calls: Sequence[str]) -> tuple[float, list[LayerCall]]:
        def perturb(call: LayerCall, output: Tensor) -> Tensor:
            if names is not None and of_calls[call.index] not in names:
                return torch.zeros_like(output)
            return draw_signs(output, grid_of(call, grid), generator)

        result = perturbed_pass(model, loss_fn, inputs, labels, layers, perturb, {})
        change = result.output_tangents.double()
        rows = [
            to_rows(call.reached(call.perturbation), grid_of(call, grid)).double() for call in result.calls
        ]
        known = matrices or [change.new_zeros(change.shape[1], row.shape[1]) for row in rows]
        left = left_over([matrix.to(change) for matrix in known], rows, change)
        return (left.square().sum() / change.square().sum()).item(), result.calls

    whole, calls = share(None, [])
    of_calls = [layer_name(call, layers) for call in calls]
    return {"": whole} | {name: share([name], of_calls)[0] for name in dict.fromkeys(of_calls)}


def layer_name(call: LayerCall, layers: Mapping[Tensor, str]) -> str:
    """The name of the layer whose weight (or, where that is frozen, bias) a call was given."""
    weight, bias = call.arguments["weight"], call.arguments["bias"]
    name = layers[weight if weight in layers else bias]
    return name.rpartition(".")[0] or name
