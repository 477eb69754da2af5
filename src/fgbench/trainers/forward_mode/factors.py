"""Rank-one tangents of weights, kept as the vectors they are made of."""

from typing import NamedTuple

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
        matrix, columns = matrix.view(len(weight), -1), self._columns(weight)
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
