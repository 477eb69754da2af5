"""The rule that samples must not interact, for trainers that take one derivative per sample."""

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fgbench.errors import ConfigError

_INDEPENDENT: WeakKeyDictionary[nn.Module, set[tuple[bool, ...]]] = WeakKeyDictionary()
"""Models whose samples are known not to interact, with their modules' modes and what was trained; each is
checked once in every such state, since that takes passes."""


def require_independent_samples(model: nn.Module, trainer: str) -> None:
    """Refuse a model whose samples interact, judging by its layers alone.

    Raises:
        ConfigError: a BatchNorm layer uses the statistics of the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ConfigError(
                f"trainer {trainer} takes one derivative per sample, which would be biased by BatchNorm "
                f"({name!r}) in training mode, since samples interact in it: set model.normalization: group"
            )


class GivenStatistics(TorchFunctionMode):
    """Within, batch normalisation takes its batch's statistics as constants, which tie no samples."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The same values; running statistics are left as they are."""
        kwargs = kwargs or {}
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        if func is not F.batch_norm or not given.get("training"):
            return func(*args, **kwargs)
        value, like = given["input"].detach(), given["running_mean"]
        var, mean = torch.var_mean(value, [axis for axis in range(value.dim()) if axis != 1], correction=0)
        dtype = value.dtype if like is None else like.dtype
        given |= {"running_mean": mean.to(dtype), "running_var": var.to(dtype), "training": False}
        return func(**given)


def is_known_independent(model: nn.Module, *, given_statistics: bool = False) -> bool:
    """Whether ``refuse_interacting_samples`` has passed this model."""
    return _state(model, given_statistics) in _INDEPENDENT.get(model, ())


def refuse_interacting_samples(
    model: nn.Module,
    samples: int,
    trainer: str,
    derive: Callable[[Callable[[Tensor], Tensor]], Tensor],
    *,
    given_statistics: bool = False,
) -> None:
    """Refuse a model in which changing some samples' activations changes other samples' losses.

    Perturbs half of the batch by chance, in three ways, and checks whether any loss of the others changes.

    Args:
        model: once it has passed with two samples or more, it is not checked again in these modes, and with
            these parameters to train.
        samples: B; of a single one, nothing can be said.
        trainer: its name.
        derive: ``derive(perturb)`` runs a pass in which activations are perturbed by ``perturb(values)``, and
            returns the derivatives of the samples' losses, shape (B,).
        given_statistics: ``derive`` runs under :class:`GivenStatistics`, for a trainer that needs no
            more than a row of its own for every sample.

    Raises:
        ConfigError: samples interact, so a derivative per sample would be biased.
    """
    if samples < 2:
        return
    generator = torch.Generator("cpu").manual_seed(0)
    for half in halves(samples, generator):

        def perturb(values: Tensor, half: Tensor = half) -> Tensor:
            change = torch.randn(values.shape, generator=generator, device="cpu") * half.view(
                -1, *[1] * (values.dim() - 1)
            )
            return change.to(values)

        moved = derive(perturb)
        if isinstance(moved, FakeTensor):  # of a simulated device: it has no values
            return
        if bool(moved[~half.to(moved.device)].any()):
            if given_statistics:
                raise ConfigError(foreign_rows(trainer, "the outputs of its layers"))
            raise ConfigError(
                f"trainer {trainer} takes one derivative per sample, but in this model samples interact: a "
                f"change of some changes the losses of others; train it with another trainer"
            )
    _INDEPENDENT.setdefault(model, set()).add(_state(model, given_statistics))


def foreign_rows(trainer: str, where: str) -> str:
    """The refusal of a model in which a row of a layer is not its sample's own."""
    return (
        f"trainer {trainer} sends every sample's error to the row of that number, but in this model rows of "
        f"{where} change other samples' outputs (other than by batch normalisation): train it with another "
        f"trainer"
    )


def halves(samples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Three halves of a batch, shape (samples,): the first one, every other sample, and any."""
    numbers = torch.arange(samples, device="cpu")
    yield numbers < samples // 2
    yield numbers % 2 == 1
    yield torch.randperm(samples, generator=generator, device="cpu") < samples // 2


def _state(model: nn.Module, given_statistics: bool) -> tuple[bool, ...]:
    return (
        given_statistics,
        *(module.training for module in model.modules()),
        *(param.requires_grad for param in model.parameters()),
    )
