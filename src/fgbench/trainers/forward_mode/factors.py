"""Rank-one tangents of weights, kept as the vectors they are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """K tangents of one weight, each an outer product: V = rows x inputs (x kernel).

    Attributes:
        rows: over the outputs, shape (K, outputs).
        inputs: over the inputs, shape (K, inputs).
        kernel: over the positions of a kernel, shape (K, *kernel); None for a matrix.
    """

    rows: Tensor
    inputs: Tensor
    kernel: Tensor | None = None

    def dense(self) -> Tensor:
        """The tangents in full, shape (K, outputs, inputs, *kernel)."""
        matrix = self.rows[:, :, None] * self.inputs[:, None, :]
        if self.kernel is None:
            return matrix
        positions = [1] * (self.kernel.dim() - 1)
        return matrix.view(*matrix.shape, *positions) * self.kernel[:, None, None]

    def to(self, other: Tensor) -> "Factors":
        """The same with the dtype and device of another tensor."""
        kernel = None if self.kernel is None else self.kernel.to(other)
        return Factors(self.rows.to(other), self.inputs.to(other), kernel)

    def times_number(self, number: float) -> "Factors":
        """The tangents times a number."""
        return self._replace(rows=self.rows * number)

    def times(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """V x of a matrix, for x (B, inputs), as two tensors to be multiplied: (K, B, 1), (K, 1, outputs)."""
        return (x @ self.inputs.T).T[:, :, None], self.rows[:, None, :]

    def convolved(
        self, x: Tensor, convolution: Callable[..., Tensor], *geometry: Any
    ) -> tuple[Tensor, Tensor]:
        """V * x of a kernel likewise, by a convolution of one channel, k * (c . x).

        Args:
            x: shape (B, inputs, ...).
            convolution: ``(x, kernel, bias, *geometry, groups)``.
            *geometry: stride, padding and so on.

        Returns:
            Of shapes (K, B, 1, ...) and (K, 1, outputs, 1, ...).
        """
        assert self.kernel is not None
        channels = (x.movedim(1, -1) @ self.inputs.T).movedim(-1, 1)  # (B, K, ...)
        scale = convolution(channels, self.kernel[:, None], None, *geometry, len(self.rows))
        rows = self.rows.view(len(self.rows), 1, -1, *[1] * (x.dim() - 2))
        return scale.movedim(1, 0).unsqueeze(2), rows

    def looked_up(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of V at some indices likewise: (K, *indices, 1) and (K, 1, ..., inputs)."""
        inputs = self.inputs.view(len(self.inputs), *[1] * indices.dim(), -1)
        return self.rows[:, indices].unsqueeze(-1), inputs

    def weighted_sum(self, weights: Tensor, like: Tensor) -> Tensor:
        """sum_k weights_k V_k, one matrix product, in the shape and strides of the weight ``like``."""
        matrix = (self.rows * weights.to(self.rows.dtype)[:, None]).T @ self._columns(like)
        if is_channels_last(like) or like.is_contiguous():
            return matrix.as_strided(like.shape, like.stride())
        return torch.empty_like(like).copy_(matrix.view(like.shape))

    def add_to(self, weight: Tensor, weights: Tensor) -> None:
        """Add sum_k weights_k V_k to a weight in place."""
        matrix = weight.permute(0, 2, 3, 1) if is_channels_last(weight) else weight
        if not matrix.is_contiguous():
            weight.add_(self.weighted_sum(weights, weight))
            return
        matrix, columns = matrix.flatten(1), self._columns(weight)
        if len(weights) == 1:
            matrix.addr_(self.rows[0] * weights.to(self.rows.dtype), columns[0])
        else:
            matrix.addmm_((self.rows * weights.to(self.rows.dtype)[:, None]).T, columns)

    def _columns(self, like: Tensor) -> Tensor:
        """The second vector over all but the first dimension, in the order of memory, shape (K, columns)."""
        if self.kernel is None:
            return self.inputs
        kernel = self.kernel.flatten(1)
        if is_channels_last(like):
            return (kernel[:, :, None] * self.inputs[:, None, :]).flatten(1)
        return (self.inputs[:, :, None] * kernel[:, None, :]).flatten(1)


def is_channels_last(weight: Tensor) -> bool:
    """Whether a convolution's inputs are innermost in memory."""
    return weight.dim() == 4 and not weight.is_contiguous() and weight.permute(0, 2, 3, 1).is_contiguous()


def is_whole(value: Tensor, weight: Tensor, *, transposed: bool = False) -> bool:
    """Whether a tensor in a weight's memory is all of that weight (or of its transpose), as it is."""
    whole = weight.t() if transposed and weight.dim() == 2 else weight
    if value.dtype != whole.dtype or value.is_conj() or value.is_neg():
        return False
    same = whole.shape == value.shape and whole.stride() == value.stride()
    return same and bool(whole.storage_offset() == value.storage_offset())
