"""Rank-one tangents of weights, kept as the vectors they are made of."""

from typing import NamedTuple

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

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """sum_k weights_k V_k for weights of shape (K,), one matrix product."""
        rows = (self.rows * weights.to(self.rows.dtype)[:, None]).T
        if self.kernel is None:
            return rows @ self.inputs
        columns = self.inputs[:, :, None] * self.kernel.flatten(1)[:, None, :]
        return (rows @ columns.flatten(1)).view(len(rows), self.inputs.shape[1], *self.kernel.shape[1:])

    def to(self, other: Tensor) -> "Factors":
        """The same with the dtype and device of another tensor."""
        kernel = None if self.kernel is None else self.kernel.to(other)
        return Factors(self.rows.to(other), self.inputs.to(other), kernel)
