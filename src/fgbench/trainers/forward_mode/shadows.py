"""Shadow memory: every storage that depends on a tangent has a second one that holds the tangent.

A view of a value is the same view of its shadow, and what is written into a value is written into its shadow,
so aliases, slices, transposes, tied weights, parameters in lists, hooks and control flow need no rule.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgbench.trainers.forward_mode.factors import Factors, is_whole

_REQUIRES_GRAD = torch._C.TensorBase.requires_grad.__get__  # type: ignore[attr-defined]


class RefusedError(Exception):
    """Forward mode would not give this model's derivative; the message is the reason."""


class Shadow(NamedTuple):
    """The K tangents of one storage, in rows.

    Attributes:
        storage: whose; gone, it takes the shadow along.
        rows: a tensor whose memory holds them.
        start: where in that memory the first row begins, in bytes.
        distance: from one row to the next, in bytes.
    """

    storage: "weakref.ref[Any]"
    rows: Tensor
    start: int
    distance: int


class Shadows:
    """The K tangents of every tensor that has any, by the storage of its value.

    Args:
        count: K.
        half: hold the tangents of float32 values in bfloat16, in which their products are taken. A tangent
            that comes out of a rule in float32 stays so.
    """

    def __init__(self, count: int, *, half: bool = False) -> None:
        self.count = count
        self.half = half
        # By storage:
        self._shadows: dict[int, Shadow] = {}
        self._factors: dict[int, tuple[Tensor, Factors]] = {}  # a weight and its rank-one tangents
        self._parameters: dict[int, int] = {}  # how many parameters it holds
        self._disposable: int | None = None  # the one whose memory a rule may take
        # By tensor:
        self._storage_of: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._detached: dict[int, weakref.ref[Tensor]] = {}

    def give(self, value: Tensor, tangent: Tensor | Factors) -> None:
        """Give a parameter or an input its K tangents, shape (K, ...), or their factors."""
        key = value.untyped_storage()._cdata
        self._storage_of[id(value)] = weakref.ref(value), key
        if not isinstance(value, nn.Parameter):
            assert isinstance(tangent, Tensor)
            self.put(value.detach(), tangent.clone())  # the model may write into its inputs
            return
        self._parameters[key] = self._parameters.get(key, 0) + 1
        value = value.detach()
        if self._parameters[key] > 1 and key in self._factors:  # parameters cut from one tensor
            self._make_dense(key)
            del self._factors[key]
        if isinstance(tangent, Factors) and self._parameters[key] == 1:
            self._factors[key] = value, tangent
        else:
            tangent = tangent.dense() if isinstance(tangent, Factors) else tangent
            self.put(value, tangent.to(self.dtype(tangent)))

    def give_leaf(self, value: Tensor, tangent: Tensor | Factors) -> None:
        """The same for a tensor that shares its memory with none."""
        if isinstance(tangent, Factors):
            self.put_factors(value, tangent)
        else:
            self.put(value, tangent)

    def dtype(self, value: Tensor) -> torch.dtype:
        """The dtype that new tangents of a value are held in."""
        return torch.bfloat16 if self.half and value.dtype == torch.float32 else value.dtype

    def has(self, value: Tensor) -> bool:
        """Whether a tensor has a tangent."""
        if _REQUIRES_GRAD(value):
            raise RefusedError("the model computes gradients itself in its forward pass")
        if value.layout != torch.strided:  # apply_torch_formula refuses it beside what has a tangent
            return False
        key = value.untyped_storage()._cdata
        known = self._storage_of.get(id(value))
        if known is not None and known[1] != key and known[0]() is value:
            raise RefusedError("the model assigned to a tensor's .data")
        if key not in self._shadows and key not in self._factors:
            return False
        if not (value.is_floating_point() or value.is_complex()):
            return False
        return not self.is_detached(value)

    def is_detached(self, value: Tensor) -> bool:
        """Whether the model detached this tensor."""
        detached = self._detached.get(id(value))
        return detached is not None and detached() is value

    def mark_detached(self, values: Any) -> None:
        """Note that these have no tangent, though they share memory with what has one."""
        detached = self._detached
        for value in values if isinstance(values, tuple | list) else (values,):
            index = id(value)
            detached[index] = weakref.ref(value, partial(_drop, detached, index))

    def get(self, value: Tensor | None) -> Tensor | None:
        """The tangents of a value as a view of its shadow, shape (K, ...); None where it has none."""
        if value is None or not self.has(value):
            return None
        key = value.untyped_storage()._cdata
        if key not in self._shadows:
            self._make_dense(key)
        _, rows, start, distance = self._shadows[key]
        if (
            rows.stride()[1:] == value.stride()
            and rows.shape[1:] == value.shape
            and rows.dtype in (value.dtype, self.dtype(value))
        ):
            size = rows.element_size()
            whole = value.storage_offset() == 0 and start == rows.storage_offset() * size
            if whole and distance == rows.stride(0) * size and not (value.is_conj() or value.is_neg()):
                return rows
        if rows.dtype not in (value.dtype, self.dtype(value)):
            if rows.dtype == torch.bfloat16:
                raise RefusedError("there are no bfloat16 tangents of complex numbers")
            rows = rows.as_strided((rows.untyped_storage().nbytes() // rows.element_size(),), (1,), 0)
            rows = rows.view(value.dtype)
        size = rows.element_size()
        tangent = rows.as_strided(
            (self.count, *value.shape),
            (distance // size, *value.stride()),
            start // size + value.storage_offset(),
        )
        if value.is_complex() and value.is_conj():
            tangent = tangent.conj()
        return tangent._neg_view() if value.is_neg() else tangent

    def operand(self, value: Tensor | None) -> Tensor | None:
        """As ``get``, of what a product is taken with: in ``dtype``."""
        tangent = self.get(value)
        return tangent if tangent is None else tangent.to(self.dtype(tangent))

    def factors(self, weight: Tensor, *, transposed: bool = False) -> Factors | None:
        """The factors of a weight's tangents, if this is all of the weight (or of its transpose)."""
        entry = self._factors.get(weight.untyped_storage()._cdata)
        if entry is None or not self.has(weight):
            return None
        return entry[1] if is_whole(weight, entry[0], transposed=transposed) else None

    def put_factors(self, value: Tensor, factors: Factors) -> None:
        """Give a new tensor, a copy of a weight, rank-one tangents."""
        self._factors[value.untyped_storage()._cdata] = value, factors

    def put(self, value: Tensor, tangent: Tensor) -> None:
        """Give a tensor its tangents, shape (K, ...), in memory that is nobody else's."""
        storage = value.untyped_storage()
        key, index, known = storage._cdata, id(value), self._storage_of
        known[index] = weakref.ref(value, partial(_drop, known, index)), key
        size, memory = tangent.element_size(), tangent.untyped_storage().nbytes()
        length = storage.nbytes() // value.element_size() * size
        start, distance = int(tangent.storage_offset()) * size, tangent.stride(0) * size
        if (
            key not in self._shadows
            and tangent.dtype in (value.dtype, self.dtype(value))
            and tangent.stride()[1:] == value.stride()
            and value.storage_offset() == 0
            and (self.count == 1 or distance >= length)
            and memory >= start + length + (self.count - 1) * distance
        ):
            self._attach(storage, tangent, start, distance)
            return
        self.get_or_allocate(value, zeros=False).copy_(tangent)

    def get_or_allocate(self, value: Tensor, *, zeros: bool = True) -> Tensor:
        """The tangents of a value, to be written to; zeros (or anything) where it has none yet.

        Raises:
            RefusedError: the model detached it, so that its tangent must not change.
        """
        key = value.untyped_storage()._cdata
        if self.is_detached(value):
            raise RefusedError("the model writes in place into a tensor that it detached")
        if key not in self._shadows:
            if key in self._factors:
                self._make_dense(key)
            else:
                self._allocate(value, zeros=zeros)
        self._factors.pop(key, None)  # what is written has other tangents than these
        tangent = self.get(value)
        assert tangent is not None
        return tangent

    def writable(self, value: Tensor) -> Tensor:
        """As ``get_or_allocate``, for what an operation of the model writes into.

        Raises:
            RefusedError: also where it is a parameter.
        """
        if value.untyped_storage()._cdata in self._parameters:
            raise RefusedError("the model writes into a parameter")
        return self.get_or_allocate(value)

    @contextmanager
    def disposable(self, value: Tensor | None) -> Iterator[None]:
        """Within, a rule may free this tensor's memory, or put its results there, once it has read it."""
        self._disposable = None if value is None else value.untyped_storage()._cdata
        del value
        try:
            yield
        finally:
            self._disposable = None

    def release(self, value: Tensor) -> None:
        """Free a value and its tangents, if nobody but the running layer refers to it."""
        if self.take_memory(value):
            storage = value.untyped_storage()
            self._shadows.pop(storage._cdata, None)
            storage.resize_(0)

    def take_memory(self, value: Tensor) -> bool:
        """Whether a value's memory, and its tangents', may be written over."""
        if value.untyped_storage()._cdata != self._disposable:
            return False
        self._disposable = None
        return True

    def clear(self) -> None:
        """Forget all; the callbacks of weak references would keep it until garbage is collected."""
        for each in (self._shadows, self._factors, self._parameters, self._storage_of, self._detached):
            each.clear()

    def _attach(self, storage: Any, rows: Tensor, start: int, distance: int) -> None:
        key, shadows = storage._cdata, self._shadows
        shadows[key] = Shadow(weakref.ref(storage, partial(_drop, shadows, key)), rows, start, distance)

    def _allocate(self, value: Tensor, *, zeros: bool) -> None:
        storage = value.untyped_storage()
        entries = -(-storage.nbytes() // value.element_size())
        make = torch.zeros if zeros or entries > value.numel() else torch.empty
        rows = make(self.count, entries, dtype=self.dtype(value), device=value.device)
        self._attach(storage, rows, 0, entries * rows.element_size())

    def _make_dense(self, key: int) -> None:
        weight, factors = self._factors[key]
        self._allocate(weight, zeros=True)
        tangent = self.get(weight)
        assert tangent is not None
        tangent.copy_(factors.dense())


def _drop(entries: dict[int, Any], key: int, _: Any) -> None:
    entries.pop(key, None)
