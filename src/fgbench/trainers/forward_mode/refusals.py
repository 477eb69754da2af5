"""Where forward mode is not backprop: what a pass checks, and what it holds off while a model runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parameter import UninitializedParameter
from torch.utils.checkpoint import CheckpointFunction

from fgbench.errors import ConfigError
from fgbench.trainers.forward_mode.shadows import RefusedError, Shadows


def refuse_unsuitable(model: nn.Module) -> None:
    """Refuse a model whose gradient is not its derivative, or which has none yet.

    Raises:
        ConfigError: it is scripted, has lazy parameters, or hooks that change gradients.
    """
    for name, module in model.named_modules():
        where = f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"{where} is a TorchScript module, into which forward mode cannot look: train the model it "
                f"was made from"
            )
        if module._backward_hooks or module._backward_pre_hooks:
            raise ConfigError(
                f"{where} has a backward hook, which runs in no forward trainer: remove it, or train with "
                f"backprop"
            )
        for own, param in module._parameters.items():
            if param is None:
                continue
            full = f"{name}.{own}" if name else own
            if isinstance(param, UninitializedParameter):
                raise ConfigError(
                    f"{full!r} is lazy, without a shape yet: run one batch through the model first"
                )
            if param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None):
                raise ConfigError(
                    f"{full!r} has a gradient hook, which runs in no forward trainer: remove it, or train "
                    f"with backprop"
                )
    every = nn.modules.module
    if every._global_backward_hooks or every._global_backward_pre_hooks:
        raise ConfigError(
            "there is a backward hook for all modules, which runs in no forward trainer: remove it"
        )


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
def as_under_backprop(shadows: Shadows) -> Iterator[None]:
    """Let a model see what it sees under backprop, and catch what would go past the pass.

    ``tensor.requires_grad`` says whether there is a tangent, so that code which asks takes the way it takes
    in training. Hooks on tensors are refused, as are functions with a backward pass of their own, unless they
    have a forward-mode derivative too. Compiled models run eagerly, checkpointed parts as they are.
    """
    apply, register = Function.__dict__["apply"], Tensor.register_hook
    fast = torch.backends.mha.get_fastpath_enabled()
    plain: Any = torch._C.TensorBase.__dict__["requires_grad"]

    def requires_grad(value: Tensor) -> bool:
        return plain.__get__(value) or (torch.is_grad_enabled() and shadows.has(value))

    def refuse_hook(value: Tensor, hook: Any) -> Any:
        raise RefusedError("the model hooks a gradient (register_hook), which no forward trainer has")

    def apply_forward(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if issubclass(cls, CheckpointFunction):
            function, _, *rest = args
            return function(*rest)
        original = apply.__get__(None, cls)
        if not any(isinstance(each, Tensor) and shadows.has(each) for each in args):
            return original(*args, **kwargs)
        if cls.jvp is Function.jvp:
            raise RefusedError(f"{cls.__name__} has a backward pass of its own, and no jvp")
        with torch.utils._python_dispatch._disable_current_modes():
            return shadows.otherwise(original, [], args, kwargs)

    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else None
    Function.apply = classmethod(apply_forward)
    Tensor.register_hook = refuse_hook  # type: ignore[method-assign]
    Tensor.requires_grad = property(requires_grad, plain.__set__)  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        Function.apply = apply
        Tensor.register_hook = register  # type: ignore[method-assign]
        del Tensor.requires_grad
        torch.backends.mha.set_fastpath_enabled(fast)
        if eager is not None:
            eager.__exit__(None, None, None)
