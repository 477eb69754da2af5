"""What each layer does to a pair (value, tangent).

Torch's own forward mode computes two products for a layer whose weight W has a tangent V: W applied to the
incoming tangent and V applied to the value. It never notices that V x is a number per sample times a vector
where V has rank one, makes a second product where there is no incoming tangent, and copies what could be
changed in place. A ``TorchFunctionMode`` inside the forward-mode pass catches the layers it knows, takes the
pair apart, and puts together the pair that comes out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from fgbench.trainers.watch import INERT, Call, references

CHUNK_ENTRIES = 2**18  # 1 MiB

# By name: bound methods would tie a pass to itself, and keep its tangents until garbage is collected.
RULES: dict[Any, str] = {
    F.linear: "linear",
    F.conv2d: "conv2d",
    F.relu: "relu",
    torch.relu_: "relu_",
    Tensor.relu_: "relu_",
}
IN_PLACE_RULES: dict[Any, str] = {
    F.batch_norm: "batch_norm",
    F.max_pool2d: "max_pool2d",
    torch.max_pool2d: "max_pool2d",
    Tensor.__iadd__: "add_",
    Tensor.add_: "add_",
}


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
        calls: of the model's forward pass, as ``Watch`` saw them; lets a layer free its input as soon as it
            has read it, where the caller, who still refers to it, is known to drop it next. None under
            ``vmap``, where nothing can be done in place.
    """

    def __init__(self, tangents: Mapping[int, Factors | Tensor], calls: Sequence[Call] | None) -> None:
        super().__init__()
        self.tangents = tangents
        self.in_place = calls is not None
        self.calls = iter(calls or ())
        self.last_use = False
        self.rules = RULES | IN_PLACE_RULES if self.in_place else RULES

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        seen = next(self.calls, None)
        self.last_use = seen is not None and seen == (func, references(args), True)
        rule = self.rules.get(func)
        if rule is not None:
            return getattr(self, rule)(*args, **(kwargs or {}))
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
        """Pair (x, t) to (W x + b, W t + V x + b'), where V x = u (w . x) for V = u w^T."""
        direction = self.tangents.get(id(weight))
        if direction is None:
            return self.otherwise(F.linear, input, weight, bias)
        value, tangent = self._parts(input)
        bias, bias_tangent = self._pair(bias)
        output = F.linear(value, weight, bias)
        if isinstance(direction, Factors):
            scale = (value @ direction.inputs.to(value.dtype)).unsqueeze(-1).to(output.dtype)
            rows = direction.rows.to(output.dtype)
            if tangent is not None:
                carried = self._add_outer(F.linear(tangent, weight, bias_tangent), scale, rows)
            elif bias_tangent is None:
                carried = scale * rows
            else:
                carried = torch.addcmul(bias_tangent.to(output.dtype), scale, rows)
        else:
            carried = F.linear(value, direction, bias_tangent)
            if tangent is not None:
                carried = carried.add_(F.linear(tangent, weight))
        return join(output, carried)

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
        """As ``linear``; for V = u x c x k, V x is u times the convolution of one channel, c . x, with k."""
        direction = self.tangents.get(id(weight))
        if direction is None or input.dim() != 4:
            return self.otherwise(F.conv2d, input, weight, bias, stride, padding, dilation, groups)
        value, tangent = self._parts(input)
        bias, bias_tangent = self._pair(bias)
        geometry = (stride, padding, dilation)
        output = F.conv2d(value, weight, bias, *geometry, groups)
        if not isinstance(direction, Factors):
            carried = F.conv2d(value, direction, bias_tangent, *geometry, groups)
            if tangent is not None:
                if self.last_use:
                    release(input, value)
                carried = carried.add_(F.conv2d(tangent, weight, None, *geometry, groups))
            return join(output, carried)
        scale = _one_channel(value, direction, geometry, groups, len(weight)).to(output.dtype)
        rows = direction.rows.to(output.dtype)
        if tangent is not None:
            if self.last_use:
                release(input, value)
            carried = F.conv2d(tangent, weight, bias_tangent, *geometry, groups)
            if carried.stride(1) == 1:  # channels_last: or the product is made in another order of memory
                moved = self._add_outer(carried.permute(0, 2, 3, 1), scale.permute(0, 2, 3, 1), rows)
                carried = moved.permute(0, 3, 1, 2)
            else:
                carried = self._add_outer(carried, scale, rows[:, None, None])
        else:
            start = torch.zeros_like(rows) if bias_tangent is None else bias_tangent.to(output.dtype)
            if output.is_contiguous(memory_format=torch.channels_last):  # or make_dual copies
                carried = torch.addcmul(start, scale.permute(0, 2, 3, 1), rows).permute(0, 3, 1, 2)
            else:
                carried = torch.addcmul(start[:, None, None], scale, rows[:, None, None])
        return join(output, carried)

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
        """In chunks that stay in the cache, and in place where nobody reads the input again."""
        value, tangent = self._parts(input)
        memory = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        known = value.dim() in (2, 4) and value.is_contiguous(memory_format=memory) and value.stride(1) == 1
        if not training or tangent is None or not known or value.numel() == value.size(1):
            return self.otherwise(
                F.batch_norm, input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        weight, weight_tangent = self._pair(weight)
        bias, bias_tangent = self._pair(bias)
        mean, variance = torch.batch_norm_update_stats(value, running_mean, running_var, momentum)
        output, carried = (
            (value, tangent) if self.last_use else (torch.empty_like(value), torch.empty_like(tangent))
        )
        _normalize(
            value, tangent, output, carried, mean, variance + eps, weight, bias, weight_tangent, bias_tangent
        )
        return join(output, carried)

    def relu(self, input: Tensor, inplace: bool = False) -> Tensor:
        """In place where the model asks for it, or nobody could tell; torch would make a second tangent."""
        return self.relu_(input) if inplace else F.relu(input)

    def relu_(self, input: Tensor) -> Tensor:
        """Pair (x, t) to (max(x, 0), t where x > 0), both in place."""
        value, tangent = forward_ad.unpack_dual(input)
        value.relu_()
        if tangent is not None and self.in_place:
            torch.ops.aten.threshold_backward.grad_input(tangent, value, 0, grad_input=tangent)
        elif tangent is not None:  # vmap's rule for it repeats the value for every tangent
            tangent.mul_((value > 0).to(tangent.dtype))
        return input

    def max_pool2d(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The tangent at the largest value; torch's own way copies a channels_last tangent first."""
        value, tangent = forward_ad.unpack_dual(input)
        kwargs.pop("return_indices", None)
        if tangent is None or value.dim() != 4 or not value.is_contiguous(memory_format=torch.channels_last):
            return self.otherwise(F.max_pool2d, input, *args, **kwargs)
        output, indices = F.max_pool2d(value, *args, **kwargs, return_indices=True)
        if self.last_use:
            release(input, value)
        rows, places = (each.permute(0, 2, 3, 1).flatten(1, 2) for each in (tangent, indices))
        carried = rows.gather(1, places).unflatten(1, output.shape[2:]).permute(0, 3, 1, 2)
        return join(output, carried)

    def add_(self, input: Tensor, other: Any, **kwargs: Any) -> Tensor:
        """In place in both; torch would make a second tangent."""
        if kwargs or not isinstance(other, Tensor) or id(other) in self.tangents:
            return self.otherwise(Tensor.add_, input, other, **kwargs)
        value, tangent = forward_ad.unpack_dual(input)
        other_value, other_tangent = forward_ad.unpack_dual(other)
        if tangent is None and other_tangent is not None:
            return self.otherwise(Tensor.add_, input, other)
        value.add_(other_value)
        if other_tangent is not None:
            tangent.add_(other_tangent)
        return input

    def _parts(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """A dual tensor's value, not as a view if possible, and tangent."""
        value, tangent = forward_ad.unpack_dual(input)
        return getattr(input, "_primal", value), tangent

    def _add_outer(self, total: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
        """Add an outer product in place; vmap has no rule for the fused way."""
        return total.addcmul_(scale, rows) if self.in_place else total.add_(scale * rows)

    def _pair(self, param: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """A bias or norm parameter's value and full tangent; it may be dual already."""
        if param is None:
            return None, None
        if id(param) in self.tangents:
            param = self.dual(param)
        value, tangent = forward_ad.unpack_dual(param)
        return value, tangent


def _one_channel(
    value: Tensor, factors: Factors, geometry: tuple[Any, Any, Any], groups: int, outputs: int
) -> Tensor:
    """(c x k) convolved with a value, shape (B, 1 or outputs, height, width)."""
    assert factors.kernel is not None
    inputs, kernel = factors.inputs.to(value.dtype), factors.kernel.to(value.dtype)
    if groups == 1:
        channel = (value.permute(0, 2, 3, 1) @ inputs).unsqueeze(1)
        return F.conv2d(channel, kernel[None, None], None, *geometry)
    one = (inputs[:, None, None] * kernel).expand(groups, -1, -1, -1)
    return F.conv2d(value, one, None, *geometry, groups).repeat_interleave(outputs // groups, 1)


def join(value: Tensor, tangent: Tensor) -> Tensor:
    """A dual tensor that knows the tensor it is a view of, so that ``release`` can find it."""
    dual = forward_ad.make_dual(value, tangent)
    dual._primal = value
    return dual


def release(*tensors: Tensor) -> None:
    """Free what tensors hold that are still referred to but will not be read again."""
    for tensor in tensors:
        nothing = tensor.new_empty(0)
        primal = getattr(tensor, "_primal", tensor)
        for each in (primal._base, primal, tensor):
            if each is not None:
                each.data = nothing


def _normalize(
    value: Tensor,
    tangent: Tensor,
    output: Tensor,
    carried: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
) -> None:
    """Batch normalisation and its tangent, written to ``output`` and ``carried``, which may be the inputs.

    y = w z + b with z = (x - mean) / std, and y' = w (t - <t> - z <z t>) / std + w' z + b'.
    <> are means over the batch. Channels are the last dimension in memory.
    """
    parts = [each.movedim(1, -1).flatten(0, -2) for each in (value, tangent, output, carried)]
    chunks = list(zip(*(part.split(max(1, CHUNK_ENTRIES // value.size(1))) for part in parts), strict=True))
    invstd = variance.rsqrt()
    products, sums = torch.zeros_like(mean), torch.zeros_like(mean)
    for x, t, _, _ in chunks:
        products += ((x - mean).mul_(t)).sum(0)
        sums += t.sum(0)
    count = len(parts[0])
    scale = invstd if weight is None else weight * invstd
    slope = -scale * products / count / variance
    if weight_tangent is not None:
        slope = slope + weight_tangent * invstd
    shift = -mean * slope - scale * sums / count
    if bias_tangent is not None:
        shift = shift + bias_tangent
    offset = -mean * scale if bias is None else bias - mean * scale
    for x, t, y, c in chunks:
        torch.addcmul(shift, t, scale, out=c).addcmul_(x, slope)
        torch.addcmul(offset, x, scale, out=y)
