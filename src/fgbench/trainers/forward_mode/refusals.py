"""Where forward mode is not backprop: what a pass checks, and what it holds off while a model runs."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parameter import UninitializedParameter
from torch.utils.checkpoint import CheckpointFunction

from fgbench.errors import ConfigError
from fgbench.trainers.forward_mode.shadows import RefusedError
from fgbench.trainers.forward_mode.tangent_mode import TangentMode
from fgbench.trainers.forward_mode.torch_formula import apply_torch_formula

_HOOK = "which runs in no forward trainer: remove it, or train with backprop"


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model that has no shape yet.

    Raises:
        ConfigError: names the parameter.
    """
    for name, param in model.named_parameters():
        if isinstance(param, UninitializedParameter):
            raise ConfigError(f"parameter {name!r} is lazy: run one batch through the model first")


def refuse_untrainable(model: nn.Module) -> None:
    """Refuse parameters that no step can be taken with.

    Raises:
        ConfigError: names the parameter: it is lazy or complex, or its entries share memory.
    """
    refuse_lazy(model)
    for name, param in model.named_parameters():
        if param.requires_grad and param.is_complex():
            raise ConfigError(
                f"parameter {name!r} is complex, which no trainer takes: keep its two parts in a real "
                f"one, and use torch.view_as_complex"
            )
        if param.requires_grad and _shares_entries(param):
            raise ConfigError(
                f"entries of parameter {name!r} share memory (as after expand), so that a step of one moves "
                f"others too: clone it before making it a Parameter"
            )


def _shares_entries(value: Tensor) -> bool:
    """Whether entries of a tensor may lie in one place of its memory."""
    if value.layout != torch.strided or value.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def refuse_hidden(model: nn.Module, params: Iterable[Tensor]) -> None:
    """Refuse a model whose operations cannot be seen one by one, and parameters that share memory.

    Raises:
        ConfigError: a part is scripted, or a step of one parameter would move another too.
    """
    refuse_lazy(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"{_where(name, module)} is a TorchScript module, which shows none of its operations: train "
                f"the model that it was made from"
            )
    spans: dict[int, list[tuple[int, int]]] = {}
    for param in params:
        start, stop = extent(param)
        others = spans.setdefault(param.untyped_storage()._cdata, [])
        if any(first < stop and start < last for first, last in others):
            raise ConfigError(
                "two of the model's parameters share memory, so that a step of one moves the other: use one "
                "and the same Parameter in both places"
            )
        others.append((start, stop))


def extent(value: Tensor) -> tuple[int, int]:
    """Which bytes of its storage a tensor spans."""
    start = int(value.storage_offset()) * value.element_size()
    if not value.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return start, start + (last + 1) * value.element_size()


def refuse_hooks(model: nn.Module) -> None:
    """Refuse a model with hooks that change gradients on their way back, since nothing goes back.

    Raises:
        ConfigError: names the module or parameter.
    """
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise ConfigError(f"{_where(name, module)} has a backward hook, {_HOOK}")
        for own, param in module._parameters.items():
            if param is not None and (
                param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None)
            ):
                full = f"{name}.{own}" if name else own
                raise ConfigError(f"{full!r} has a gradient hook, {_HOOK}")
    every = nn.modules.module
    if every._global_backward_hooks or every._global_backward_pre_hooks:
        raise ConfigError(f"there is a backward hook for all modules, {_HOOK}")


def _where(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"


@contextmanager
def constant_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient within."""
    params = [param for param in model.parameters() if param.requires_grad]
    for param in params:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in params:
            param.requires_grad_(True)


@contextmanager
def backprop_semantics(mode: TangentMode) -> Iterator[None]:
    """Let a model see what it sees under backprop, and catch what would go past the pass.

    ``tensor.requires_grad`` and ``is_leaf`` say whether there is a tangent, so that code which asks takes the
    way it takes in training. A look at ``grad_fn`` and hooks on tensors are refused, as are functions with a
    backward pass of their own, unless they have a forward-mode derivative too. Checkpointed parts run as they
    are.
    """
    shadows = mode.shadows
    apply, register, detach_ = Function.__dict__["apply"], Tensor.register_hook, Tensor.detach_
    detach_function = torch.detach_
    fast = torch.backends.mha.get_fastpath_enabled()

    def of_graph(name: str, answer: Callable[[Tensor, Any], Any]) -> property:
        """A property of tensors: the model is answered as under backprop, torch's own code as it is."""
        plain: Any = torch._C.TensorBase.__dict__[name]

        def get(value: Tensor) -> Any:
            asked_by = sys._getframe(1).f_globals.get("__name__", "")
            with torch._C.DisableTorchFunction():  # a function mode would come back here, asking for itself
                real = plain.__get__(value)
                own = mode.handling or asked_by.startswith("torch.")  # which would look for a graph
                return real if own else answer(value, real)

        return property(get, getattr(plain, "__set__", None))

    def requires_grad(value: Tensor, real: bool) -> bool:
        return real or (torch.is_grad_enabled() and shadows.has(value))

    def is_leaf(value: Tensor, real: bool) -> bool:
        return real and (isinstance(value, nn.Parameter) or not shadows.has(value))

    def grad_fn(value: Tensor, real: Any) -> Any:
        if not is_leaf(value, True):
            raise RefusedError("the model looks at a grad_fn, which no forward trainer has")
        return real

    answers = {"requires_grad": requires_grad, "is_leaf": is_leaf, "grad_fn": grad_fn}

    def refuse_hook(value: Tensor, hook: Any) -> Any:
        raise RefusedError("the model hooks a gradient (register_hook), which no forward trainer has")

    def detach_in_place(value: Tensor) -> Tensor:
        shadows.mark_detached(detach_(value))
        return value

    def apply_forward(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if issubclass(cls, CheckpointFunction):
            function, _, *rest = args
            return function(*rest)
        for observe in mode.observers:  # what runs within leaves no graph of its own
            observe(cls, args, kwargs)
        original = apply.__get__(None, cls)
        with torch._C.DisableTorchFunction():
            moves = any(isinstance(each, Tensor) and shadows.has(each) for each in args)
        if not moves:
            outer, mode.in_function = mode.in_function, True
            try:
                return original(*args, **kwargs)
            finally:
                mode.in_function = outer
        if cls.jvp is Function.jvp:
            raise RefusedError(f"{cls.__name__} has a backward pass of its own, and no jvp")
        with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
            return apply_torch_formula(shadows, original, [], args, kwargs)

    Function.apply = classmethod(apply_forward)
    Tensor.register_hook = refuse_hook  # type: ignore[method-assign]
    Tensor.detach_ = torch.detach_ = detach_in_place  # type: ignore[assignment]
    for name, answer in answers.items():
        setattr(Tensor, name, of_graph(name, answer))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        Function.apply = apply
        Tensor.register_hook = register  # type: ignore[method-assign]
        Tensor.detach_, torch.detach_ = detach_, detach_function
        for name in answers:
            delattr(Tensor, name)
        torch.backends.mha.set_fastpath_enabled(fast)


def run_eagerly() -> AbstractContextManager[Any]:
    """Within, compiled models run as they were written, so that their operations are seen."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and importing it takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
