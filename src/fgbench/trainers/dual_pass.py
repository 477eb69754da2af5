"""What each layer does to a pair (value, tangent) when its weights have rank-one tangents.

``torch.func.jvp`` computes two products for a layer with a tangent V: W applied to the incoming tangent and
V applied to the value, and never notices that V x is a number per sample times a vector. A
``TorchFunctionMode`` inside the forward-mode pass catches the layers it knows, takes the pair apart, and
puts together the pair that comes out.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

INERT = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout")
    ),
    *(
        getattr(Tensor, name)
        for name in ("size", "dim", "numel", "stride", "is_floating_point", "is_contiguous")
    ),
}  # ask a tensor what it is: a parameter used in no other way has not been used


class Factors(NamedTuple):
    """The vectors of a rank-one tangent: V = rows columns^T, columns over inputs (and kernel positions)."""

    rows: Tensor
    inputs: Tensor
    kernel: Tensor | None = None

    def columns(self, weight: Tensor) -> Tensor:
        """The second vector over all but the first dimension of ``weight``, in its order in memory."""
        if self.kernel is None:
            return self.inputs
        kernel = self.kernel.flatten(-2)
        if is_channels_last(weight):
            return (kernel[..., :, None] * self.inputs[..., None, :]).flatten(-2)
        return (self.inputs[..., :, None] * kernel[..., None, :]).flatten(-2)


def is_channels_last(weight: Tensor) -> bool:
    """Whether a weight's inputs are innermost in memory."""
    return weight.dim() == 4 and not weight.is_contiguous() and weight.permute(0, 2, 3, 1).is_contiguous()


def as_matrix(weight: Tensor) -> Tensor:
    """A view of a weight with its outputs as rows and everything else, in the order of memory, as columns."""
    return (weight.permute(0, 2, 3, 1) if is_channels_last(weight) else weight).view(len(weight), -1)


def in_memory_order(entries: Tensor, weight: Tensor) -> Tensor:
    """A view of ``entries`` (..., numel) as tensors of the weight's shape and strides."""
    if is_channels_last(weight):
        outputs, inputs, *kernel = weight.shape
        return entries.unflatten(-1, (outputs, *kernel, inputs)).movedim(-1, -3)
    return entries.unflatten(-1, weight.shape)


class DualPass(TorchFunctionMode):
    """Within, known layers carry tangents as cheaply as they can; everything else is torch's forward mode.

    Args:
        tangents: by ``id`` of the parameter: factors, or a full tangent.
        in_place: whether tensors may be written to; False under ``vmap``.
    """

    def __init__(self, tangents: Mapping[int, Factors | Tensor], *, in_place: bool) -> None:
        super().__init__()
        self.tangents = tangents
        self.in_place = in_place
        self.rules: dict[Any, Callable[..., Any]] = {F.linear: self.linear, F.conv2d: self.conv2d}
        if in_place:
            self.rules |= {
                F.batch_norm: self.batch_norm,
                F.relu: self.relu,
                torch.relu_: self.relu_,
                Tensor.relu_: self.relu_,
            }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        rule = self.rules.get(func)
        if rule is not None:
            return rule(*args, **(kwargs or {}))
        return self.otherwise(func, *args, **(kwargs or {}))

    def otherwise(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``func`` under torch's own forward mode, a dual tensor in the place of each parameter."""
        if func not in INERT:
            args = tuple(self.dual(value) if id(value) in self.tangents else value for value in args)
            kwargs = {
                key: self.dual(value) if id(value) in self.tangents else value
                for key, value in kwargs.items()
            }
        return func(*args, **kwargs)

    def dual(self, param: Tensor) -> Tensor:
        """A parameter with its tangent, full."""
        tangent = self.tangents[id(param)]
        if isinstance(tangent, Factors):
            matrix = tangent.rows[:, None] * tangent.columns(param)
            tangent = in_memory_order(matrix.flatten(), param)
        return forward_ad.make_dual(param.detach(), tangent)

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Pair (x, t) to (W x + b, W t + u (w . x) + b')."""
        factors = self.tangents.get(id(weight))
        if not isinstance(factors, Factors):
            return self.otherwise(F.linear, input, weight, bias)
        value, tangent = forward_ad.unpack_dual(input)
        bias, bias_tangent = self._pair(bias)
        output = F.linear(value, weight, bias)
        scale = (value @ factors.inputs.to(value.dtype)).unsqueeze(-1).to(output.dtype)
        rows = factors.rows.to(output.dtype)
        if tangent is None:
            carried = (
                scale * rows
                if bias_tangent is None
                else torch.addcmul(bias_tangent.to(output.dtype), scale, rows)
            )
        else:
            carried = self._add_outer(F.linear(tangent, weight, bias_tangent), scale, rows)
        return forward_ad.make_dual(output, carried)

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """As ``linear``; V x is u times the convolution of one channel, the sum of all, with k."""
        factors = self.tangents.get(id(weight))
        if not isinstance(factors, Factors) or input.dim() != 4:
            return self.otherwise(F.conv2d, input, weight, bias, stride, padding, dilation, groups)
        assert factors.kernel is not None
        value, tangent = forward_ad.unpack_dual(input)
        bias, bias_tangent = self._pair(bias)
        geometry = (stride, padding, dilation)
        output = F.conv2d(value, weight, bias, *geometry, groups)
        inputs, kernel = factors.inputs.to(value.dtype), factors.kernel.to(value.dtype)
        if groups == 1:
            channel = (value.permute(0, 2, 3, 1) @ inputs).unsqueeze(1)
            scale = F.conv2d(channel, kernel[None, None], None, *geometry).to(output.dtype)
        else:
            one = (inputs[:, None, None] * kernel).expand(groups, -1, -1, -1)
            each = F.conv2d(value, one, None, *geometry, groups).to(output.dtype)
            scale = each.repeat_interleave(len(weight) // groups, 1)
        rows = factors.rows.to(output.dtype)
        if tangent is not None:
            carried = F.conv2d(tangent, weight, bias_tangent, *geometry, groups)
            carried = self._add_outer(carried, scale, rows[:, None, None])
        else:
            start = torch.zeros_like(rows) if bias_tangent is None else bias_tangent.to(output.dtype)
            if output.is_contiguous(memory_format=torch.channels_last):  # or make_dual copies
                carried = torch.addcmul(start, scale.permute(0, 2, 3, 1), rows).permute(0, 3, 1, 2)
            else:
                carried = torch.addcmul(start[:, None, None], scale, rows[:, None, None])
        return forward_ad.make_dual(output, carried)

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """The derivative by the input is symmetric, so the fused backward kernel gives the tangent."""
        value, tangent = forward_ad.unpack_dual(input)
        if not training or tangent is None or value.numel() == value.size(1):
            return self.otherwise(
                F.batch_norm, input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        weight, weight_tangent = self._pair(weight)
        bias, bias_tangent = self._pair(bias)
        output, mean, invstd = torch.native_batch_norm(
            value, weight, bias, running_mean, running_var, True, momentum, eps
        )
        carried, _, _ = torch.ops.aten.native_batch_norm_backward(
            tangent, value, weight, running_mean, running_var, mean, invstd, True, eps, [True, False, False]
        )
        shape = (-1, *[1] * (value.dim() - 2))
        if weight_tangent is not None:
            slope = weight_tangent * invstd
            carried.addcmul_(value, slope.view(shape))
            shift = -slope * mean if bias_tangent is None else bias_tangent - slope * mean
            carried.add_(shift.view(shape))
        elif bias_tangent is not None:
            carried.add_(bias_tangent.view(shape))
        return forward_ad.make_dual(output, carried)

    def relu(self, input: Tensor, inplace: bool = False) -> Tensor:
        """In place where the model asks for it; torch would make a second tangent."""
        return self.relu_(input) if inplace else F.relu(input)

    def relu_(self, input: Tensor) -> Tensor:
        """Pair (x, t) to (max(x, 0), t where x > 0), both in place."""
        value, tangent = forward_ad.unpack_dual(input)
        value.relu_()
        if tangent is not None:
            torch.ops.aten.threshold_backward.grad_input(tangent, value, 0, grad_input=tangent)
        return input

    def _add_outer(self, total: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
        """Add an outer product in place; vmap has no rule for the fused way."""
        return total.addcmul_(scale, rows) if self.in_place else total.add_(scale * rows)

    def _pair(self, param: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """A bias or norm parameter's value and full tangent; it may be dual already."""
        if param is None:
            return None, None
        if id(param) in self.tangents:
            param = self.dual(param)
        return tuple(forward_ad.unpack_dual(param))
