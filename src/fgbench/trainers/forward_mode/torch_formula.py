"""Torch's own forward-mode formula of one operation, for operations that have no rule here."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from fgbench.trainers.forward_mode.shadows import RefusedError, Shadows
from fgbench.trainers.model_state import version
from fgbench.trainers.replay import RandomStates

# Forward AD is off where a mode handles an operation; these switch it on again, as outside of all modes.
_INCLUDED = torch._C._dispatch_tls_local_include_set()
_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()

Dual = tuple[Any, Tensor | None]
"""A value with its tangent; None where it has none or is no tensor."""


def apply_torch_formula(
    shadows: Shadows,
    func: Any,
    written: list[tuple[int, str, bool]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run one operation, or what it is composed of, under torch's forward AD, once for every tangent.

    Args:
        shadows: has the tangents of the arguments, and gets those of the results.
        func: the operation, or a function with a forward-mode derivative.
        written: see :class:`Signature`.
        args: of the operation.
        kwargs: of the operation.

    Returns:
        What the operation returns.

    Raises:
        RefusedError: torch has no forward formula, or it cannot be used here.
    """
    targets = _targets(written, args, kwargs)
    target_tangents = [shadows.writable(target) for target in targets]
    leaves, structure = tree_flatten((args, kwargs))
    if any(isinstance(leaf, Tensor) and leaf.layout != torch.strided for leaf in leaves):
        raise RefusedError("there are no tangents of products with sparse tensors")
    tangents = [_in_full_precision(shadows, leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]
    own = not isinstance(func, torch._ops.OpOverload)  # a function of the user's: it may do anything
    is_random = own or torch.Tag.nondeterministic_seeded in func.tags
    states = RandomStates() if shadows.count > 1 and is_random else None
    versions = _versions(leaves) if own else []
    columns: list[tuple[Tensor | None, ...]] = []  # of every pass: the tangents of its results
    for k in range(shadows.count):
        if states is not None and k > 0:
            states.restore()  # the same random numbers along every tangent
        values, one = leaves, [each if each is None else each[k] for each in tangents]
        if targets:
            values, one = _apart(leaves, one, targets, copy_targets=k < shadows.count - 1)
        result, duals, after = _forward_formula(func, values, one, structure, bool(targets))
        if own and versions != _versions(leaves):
            raise RefusedError("it is a function of your own that writes into its arguments")
        for target, tangent in zip(targets, target_tangents, strict=True):
            index = next(i for i, leaf in enumerate(leaves) if leaf is target)
            _store_tangent(tangent[k], after[index])
        columns.append(tuple(tangent for _, tangent in duals))
    _refuse_constant(func, duals)
    inputs = {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, Tensor)}
    is_target = _are_targets(func, len(duals))
    out: list[Any] = []
    for index, (value, _) in enumerate(duals):
        if is_target[index]:
            value = targets[index] if len(targets) > 1 else targets[0]
        elif isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise RefusedError("there are no tangents of sparse tensors")
            value = value.detach() if value._is_view() else value
            if value.untyped_storage()._cdata not in inputs:  # or it is a view after all, as of unsafe_split
                _put(shadows, value, [column[index] for column in columns])
        out.append(value)
    if not isinstance(result, tuple | list):
        return out[0]
    return getattr(type(result), "_make", type(result))(out)  # a namedtuple takes them one by one


def _versions(leaves: list[Any]) -> list[int]:
    return [version(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


def _refuse_constant(func: Any, duals: list[Dual]) -> None:
    """Refuse an operator of the user's own whose backward pass forward AD knows nothing of."""
    if getattr(func, "namespace", "aten") in ("aten", "prims"):
        return
    floats = [tangent for value, tangent in duals if isinstance(value, Tensor) and value.is_floating_point()]
    if floats and all(tangent is None for tangent in floats):
        raise RefusedError("it is an operator of your own, without a forward-mode derivative")


def _are_targets(func: Any, count: int) -> list[bool]:
    """Of each of an operation's results, whether it is an argument that was written to."""
    returns = func._schema.returns if hasattr(func, "_schema") else ()
    if len(returns) != count:
        return [False] * count
    return [each.alias_info is not None for each in returns]


def _put(shadows: Shadows, value: Tensor, tangents: list[Tensor | None]) -> None:
    """Store the tangents of a result, unless it has none along any direction."""
    if any(each is not None for each in tangents):
        stored = shadows.get_or_allocate(value)
        for k, each in enumerate(tangents):
            if each is not None:
                stored[k].copy_(each)


def _in_full_precision(shadows: Shadows, value: Tensor) -> Tensor | None:
    """The tangents of an argument in its own dtype, which torch's formulas take alone."""
    tangent = shadows.get(value)
    return tangent if tangent is None else tangent.to(value.dtype)


def _targets(
    written: list[tuple[int, str, bool]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    """The arguments that an operation writes to."""
    targets = []
    for index, name, by_keyword in written:
        target = kwargs.get(name) if by_keyword or index >= len(args) else args[index]
        if isinstance(target, tuple | list):
            raise RefusedError("it writes into several tensors at once")
        if isinstance(target, Tensor) and (target.is_floating_point() or target.is_complex()):
            targets.append(target)
    return targets


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


def _store_tangent(shadow: Tensor, dual: Dual) -> None:
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
) -> tuple[Any, list[Dual], list[Dual]]:
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
        return result, [_unpack(each) for each in flat], [_unpack(each) for each in duals if in_place]


def _unpack(value: Any) -> Dual:
    if not isinstance(value, Tensor):
        return value, None
    primal, tangent = forward_ad.unpack_dual(value)
    return primal, tangent
