"""Shadow memory: every storage that depends on a tangent has a second one that holds the tangent.

A view of a value is the same view of its shadow, and what is written into a value is written into its shadow,
so aliases, slices, transposes, tied weights, parameters in lists, hooks and control flow need no rule.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from fgbench.trainers.forward_mode.factors import Factors, is_whole
from fgbench.trainers.replay import RandomStates

aten = torch.ops.aten
_REQUIRES_GRAD = torch._C.TensorBase.requires_grad.__get__  # type: ignore[attr-defined]
# Forward AD is off where a mode handles an operation; these switch it on again, as outside of all modes.
_INCLUDED = torch._C._dispatch_tls_local_include_set()
_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()
_NEW_MEMORY = {
    aten.resize_.default,
    aten.set_.source_Storage,
    aten.set_.source_Tensor,
    aten.set_.source_Storage_storage_offset,
}

TangentRule = Callable[..., Any]
Observer = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


class RefusedError(Exception):
    """Forward mode would not give this model's derivative; the message is the reason."""


class Signature(NamedTuple):
    """What an operation's schema says of memory.

    Attributes:
        view: its results are views of its first argument.
        written: the arguments it writes to: position, name, whether by keyword only.
    """

    view: bool
    written: list[tuple[int, str, bool]]


@cache
def signature(func: Any) -> Signature:
    """Read off the schema of an ATen operation."""
    written = [
        (index, argument.name, argument.kwarg_only)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    view = torch.Tag.inplace_view in func.tags or any(
        result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns
    )
    return Signature(view, written)


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


class Shadows(TorchDispatchMode):
    """Within, every ATen operation carries K tangents along with its values.

    Runs with gradients enabled and nothing that requires one, so that ``torch.is_grad_enabled()`` says what
    the model itself asked for: what it computes under ``no_grad``, and what it detaches, has no tangent.

    Args:
        count: K.
        rules: by operation: ``rule(shadows, func, *args, **kwargs)`` returns the values, having ``put``
            their tangents, or NotImplemented. Without a rule: torch's forward formula of that operation.
        half: hold the tangents of float32 values in bfloat16, in which their products are taken. A tangent
            that comes out of a rule in float32 stays so.

    Attributes:
        observers: called with every operation before it runs.
        handling: whether an operation is under way, below the model's own code.
    """

    def __init__(self, count: int, rules: Mapping[Any, TangentRule], *, half: bool = False) -> None:
        super().__init__()
        self.count = count
        self.rules = rules
        self.half = half
        self.observers: list[Observer] = []
        self.handling = False
        self._shadows: dict[int, Shadow] = {}
        self._factors: dict[int, tuple[Tensor, Factors]] = {}
        self._given: dict[int, int] = {}
        self._home: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._owned: int | None = None
        self._stopped: dict[int, weakref.ref[Tensor]] = {}

    def give(self, value: Tensor, tangent: Tensor | Factors) -> None:
        """Give a parameter or an input its K tangents, shape (K, ...), or their factors."""
        key = value.untyped_storage()._cdata
        self._home[id(value)] = weakref.ref(value), key
        if not isinstance(value, nn.Parameter):
            assert isinstance(tangent, Tensor)
            self.put(value.detach(), tangent.clone())  # the model may write into its inputs
            return
        self._given[key] = self._given.get(key, 0) + 1
        value = value.detach()
        if self._given[key] > 1 and key in self._factors:  # parameters cut from one tensor
            self._make_dense(key)
            del self._factors[key]
        if isinstance(tangent, Factors) and self._given[key] == 1:
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
        key = value.untyped_storage()._cdata
        home = self._home.get(id(value))
        if home is not None and home[1] != key and home[0]() is value:
            raise RefusedError("the model assigned to a tensor's .data")
        if key not in self._shadows and key not in self._factors:
            return False
        if not (value.is_floating_point() or value.is_complex()):
            return False
        return not self.is_stopped(value)

    def is_stopped(self, value: Tensor) -> bool:
        """Whether the model detached this tensor."""
        stopped = self._stopped.get(id(value))
        return stopped is not None and stopped() is value

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
        key, index, home = storage._cdata, id(value), self._home
        home[index] = weakref.ref(value, partial(_drop, home, index)), key
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
            self._bind(storage, tangent, start, distance)
            return
        self.blank(value, zeros=False).copy_(tangent)

    def blank(self, value: Tensor, *, zeros: bool = True) -> Tensor:
        """The tangents of a value, to be written to; zeros (or anything) where it has none yet.

        Raises:
            RefusedError: the model detached it, so that its tangent must not change.
        """
        storage = value.untyped_storage()
        if self.is_stopped(value):
            raise RefusedError("the model writes in place into a tensor that it detached")
        if storage._cdata not in self._shadows:
            if storage._cdata in self._factors:
                self._make_dense(storage._cdata)
            else:
                self._new(value, zeros=zeros)
        tangent = self.get(value)
        assert tangent is not None
        return tangent

    def written(self, value: Tensor) -> Tensor:
        """As ``blank``, for what an operation of the model writes into.

        Raises:
            RefusedError: also where it is a parameter.
        """
        if value.untyped_storage()._cdata in self._given:
            raise RefusedError("the model writes into a parameter")
        return self.blank(value)

    @contextmanager
    def owning(self, value: Tensor | None) -> Iterator[None]:
        """Within, a rule may free this tensor's memory, or put its results there, once it has read it."""
        self._owned = None if value is None else value.untyped_storage()._cdata
        del value
        try:
            yield
        finally:
            self._owned = None

    def release(self, value: Tensor) -> None:
        """Free a value and its tangents, if nobody but the running layer refers to it."""
        if self.take_memory(value):
            storage = value.untyped_storage()
            self._shadows.pop(storage._cdata, None)
            storage.resize_(0)

    def take_memory(self, value: Tensor) -> bool:
        """Whether a value's memory, and its tangents', may be written over."""
        if value.untyped_storage()._cdata != self._owned:
            return False
        self._owned = None
        return True

    def clear(self) -> None:
        """Forget all; the callbacks of weak references would keep it until garbage is collected."""
        for each in (self._shadows, self._factors, self._given, self._home, self._stopped):
            each.clear()
        self.observers.clear()

    def _bind(self, storage: Any, rows: Tensor, start: int, distance: int) -> None:
        key, shadows = storage._cdata, self._shadows
        shadows[key] = Shadow(weakref.ref(storage, partial(_drop, shadows, key)), rows, start, distance)

    def _new(self, value: Tensor, *, zeros: bool) -> None:
        storage = value.untyped_storage()
        entries = -(-storage.nbytes() // value.element_size())
        make = torch.zeros if zeros or entries > value.numel() else torch.empty
        rows = make(self.count, entries, dtype=self.dtype(value), device=value.device)
        self._bind(storage, rows, 0, entries * rows.element_size())

    def _make_dense(self, key: int) -> None:
        weight, factors = self._factors[key]
        self._new(weight, zeros=True)
        tangent = self.get(weight)
        assert tangent is not None
        tangent.copy_(factors.dense())

    def _stop(self, values: Any) -> None:
        stopped = self._stopped
        for value in values if isinstance(values, tuple | list) else (values,):
            index = id(value)
            stopped[index] = weakref.ref(value, partial(_drop, stopped, index))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.handling = True
        try:
            return self._handle(func, args, kwargs or {})
        finally:
            self.handling = False

    def _handle(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for observe in self.observers:
            observe(func, args, kwargs)
        view, written = signature(func)
        if view:
            if func in _NEW_MEMORY and self.has(args[0]):
                raise RefusedError("the model gives a tensor other memory")
            result = func(*args, **kwargs)
            source = args[0] if args and isinstance(args[0], Tensor) else None
            if (
                func is aten.detach.default
                or not torch.is_grad_enabled()
                or (source is not None and self.is_stopped(source))
            ):
                self._stop(result)
            return result
        # Without gradients a model computes constants; what it writes then keeps its tangent, as in backprop.
        if not torch.is_grad_enabled() or not any(map(self.has, tensors(args, kwargs))):
            return func(*args, **kwargs)
        rule = self.rules.get(func)
        if rule is not None and (result := rule(self, func, *args, **kwargs)) is not NotImplemented:
            return result
        return self.otherwise(func, written, args, kwargs)

    def otherwise(
        self, func: Any, written: list[tuple[int, str, bool]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Torch's forward formula of this one operation, or of what it is composed of, tangent by tangent."""
        targets = self._targets(written, args, kwargs)
        shadows = [self.written(target) for target in targets]
        leaves, structure = tree_flatten((args, kwargs))
        tangents = [self._as_precise(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]
        random = (
            RandomStates()
            if self.count > 1 and torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
            else None
        )
        for k in range(self.count):
            last = k == self.count - 1
            if random is not None and k > 0:
                random.restore()
            one = [each if each is None else each[k] for each in tangents]
            values = leaves
            if targets:
                values, one = _apart(leaves, one, targets, copy_targets=not last)
            result, pairs, after = _forward_formula(func, values, one, structure, bool(targets))
            for target, shadow in zip(targets, shadows, strict=True):
                index = next(i for i, leaf in enumerate(leaves) if leaf is target)
                _store_tangent(shadow[k], after[index])
            if k == 0:
                results: list[list[Tensor | None]] = [[] for _ in pairs]
            for kept, (_, tangent) in zip(results, pairs, strict=True):
                kept.append(tangent)
        inputs = {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, Tensor)}
        returns = func._schema.returns if hasattr(func, "_schema") else ()
        returns = returns if len(returns) == len(pairs) else [None] * len(pairs)
        out: list[Any] = []
        for (value, _), kept, schema in zip(pairs, results, returns, strict=True):
            if schema is not None and schema.alias_info is not None:
                value = targets[len(out)] if len(targets) > 1 else targets[0]
            elif isinstance(value, Tensor):
                value = value.detach() if value._is_view() else value
                known = value.untyped_storage()._cdata in inputs  # a view after all, as of unsafe_split
                if not known and any(each is not None for each in kept):
                    shadow = self.blank(value)
                    for k, each in enumerate(kept):
                        if each is not None:
                            shadow[k].copy_(each)
            out.append(value)
        return type(result)(out) if isinstance(result, tuple | list) else out[0]

    def _as_precise(self, value: Tensor) -> Tensor | None:
        tangent = self.get(value)
        return tangent if tangent is None else tangent.to(value.dtype)

    def _targets(
        self, written: list[tuple[int, str, bool]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Tensor]:
        targets = []
        for index, name, by_keyword in written:
            target = kwargs.get(name) if by_keyword or index >= len(args) else args[index]
            if isinstance(target, tuple | list):
                raise RefusedError("it writes into several tensors at once")
            if isinstance(target, Tensor) and (target.is_floating_point() or target.is_complex()):
                targets.append(target)
        return targets


def _drop(entries: dict[int, Any], key: int, _: Any) -> None:
    entries.pop(key, None)


def tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """All tensors among an operation's arguments."""
    for arg in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, tuple | list):
            yield from (each for each in arg if isinstance(each, Tensor))


def _apart(
    leaves: list[Any], tangents: list[Tensor | None], targets: list[Tensor], *, copy_targets: bool
) -> tuple[list[Any], list[Tensor | None]]:
    """Arguments of an operation in place, of which none shares memory with what is written.

    ``copy_targets`` copies what is written too: only the last of several passes writes to the values.
    """
    memory = {target.untyped_storage()._cdata for target in targets}
    seen: set[int] = set()
    leaves, tangents = list(leaves), list(tangents)
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or leaf.untyped_storage()._cdata not in memory:
            continue
        is_target = id(leaf) not in seen and any(leaf is target for target in targets)
        seen.add(id(leaf))
        if is_target and not copy_targets:
            continue
        leaves[index] = leaf.clone()
        if not is_target and (tangent := tangents[index]) is not None:
            tangents[index] = tangent.clone()
    return leaves, tangents


def _store_tangent(shadow: Tensor, dual: tuple[Tensor, Tensor | None]) -> None:
    """Let a shadow hold the tangent that an operation in place left."""
    tangent = dual[1]
    if tangent is None:
        shadow.zero_()
    elif tangent.data_ptr() != shadow.data_ptr() or tangent.stride() != shadow.stride():
        shadow.copy_(tangent)


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    """A dual tensor; torch cannot make one of what is expanded."""
    if any(size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)):
        value, tangent = value.contiguous(), tangent.contiguous()
    return forward_ad.make_dual(value, tangent)


def _forward_formula(
    func: Any, leaves: list[Any], tangents: list[Tensor | None], structure: Any, in_place: bool
) -> tuple[Any, list[tuple[Any, Tensor | None]], list[Any]]:
    """One operation under torch's forward AD.

    Returns:
        What it returned; each of its values with its tangent; each argument with its tangent afterwards.

    Raises:
        RefusedError: torch has no forward formula.
    """
    with (
        torch._C._ForceDispatchKeyGuard(_INCLUDED | torch._C._dispatch_tls_local_include_set(), _EXCLUDED),
        torch.no_grad(),
        forward_ad.dual_level(),
    ):
        duals = [
            leaf if tangent is None else _dual(leaf, tangent)
            for leaf, tangent in zip(leaves, tangents, strict=True)
        ]
        args, kwargs = tree_unflatten(duals, structure)
        try:
            result = func(*args, **kwargs)
        except NotImplementedError as error:
            decomposed = torch._decomp.decomposition_table.get(func)
            if decomposed is None or in_place:
                raise RefusedError("torch has no forward-mode formula for it") from error
            try:
                result = decomposed(*args, **kwargs)
            except NotImplementedError as inner:
                raise RefusedError("torch has no forward-mode formula for it") from inner
        flat = result if isinstance(result, tuple | list) else [result]
        pairs = [forward_ad.unpack_dual(each) if isinstance(each, Tensor) else (each, None) for each in flat]
        after = []
        if in_place:
            after = [
                forward_ad.unpack_dual(dual) if isinstance(dual, Tensor) else (dual, None) for dual in duals
            ]
        return result, [tuple(pair) for pair in pairs], [tuple(pair) for pair in after]
