"""Builds a model from its options, ready to train."""

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fgbench.errors import ConfigError, FgbenchError
from fgbench.options import Options
from fgbench.own_code import explain_own
from fgbench.registry import load
from fgbench.seeds import derive_seed


def build_model(
    options: Options,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
    device: torch.device | str,
) -> nn.Module:
    """Build the model that ``options.name`` names; the same seed gives the same weights for every trainer.

    A builder is called as ``builder(options, image_shape, num_classes)`` and draws its weights from the
    global generators of torch, numpy and ``random``, which are seeded for it and put back afterwards.
    Those of fgbench return an ``nn.Sequential`` of stages; a user's own may return any module that maps
    (B, C, H, W) to (B, classes); one without ``Options`` and without arguments is called with none.

    Args:
        options: an instance of the model's options.
        image_shape: (C, H, W).
        num_classes: number of outputs.
        seed: of the run; the weights come from its stream ``initial weights``.
        device: where the model goes; its 4-dimensional parameters are laid out as channels_last.

    Raises:
        ConfigError: the builder returns something else, or the model does not accept such images; for a
            user's own, also any other error in its code.
    """
    builder = load("model", options.name)
    with _seeded(derive_seed(seed, "initial weights")):
        try:
            model = _call(builder, options, image_shape, num_classes)
            _check(model, image_shape, num_classes)
        except _WrongModelError as error:
            raise ConfigError(f"model.name: {options.name} {error}") from error
        except FgbenchError:
            raise
        except Exception as error:
            own = explain_own(error)
            if not (own or isinstance(error, RuntimeError)) or "can't allocate memory" in str(error):
                raise
            shape = "x".join(map(str, image_shape))
            text = own or str(error).strip().splitlines()[0]
            raise ConfigError(
                f"model.name: {options.name} does not work on images of {shape}: {text}"
            ) from error
    return model.to(device=device, memory_format=torch.channels_last)


def _call(builder: Any, *arguments: Any) -> Any:
    """The model; of a user's own without ``Options`` that can be called without arguments, by doing so."""
    signature = inspect.signature(builder)
    for given in (arguments,) if hasattr(builder, "Options") else ((), arguments):
        try:
            signature.bind(*given)
        except TypeError:
            continue
        return builder(*given)
    raise _WrongModelError(f"takes {signature}, expected (options, image_shape, num_classes), or nothing")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and ``random``, and put them back afterwards."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])


class _WrongModelError(Exception):
    """A builder did not return a model for such images."""


def _check(model: Any, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Run two images through the model; also initialises lazy layers."""
    if not isinstance(model, nn.Module):
        raise _WrongModelError(f"gave a {type(model).__name__}, expected a torch.nn.Module")
    model.eval()
    with torch.no_grad():
        outputs = model(torch.zeros(2, *image_shape))
    model.train()
    shape = tuple(getattr(outputs, "shape", ()))
    if shape != (2, num_classes):
        raise _WrongModelError(f"gave outputs of shape {shape} for 2 images, expected {(2, num_classes)}")
