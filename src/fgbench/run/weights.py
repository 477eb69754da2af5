"""The weights of a run: as a module, or as a file that any PyTorch program can read."""

import io
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgbench.config.config import load_config
from fgbench.errors import ConfigError, FgbenchError
from fgbench.models.build import build_model
from fgbench.run.attributes import restore_attributes
from fgbench.run.validation import find_best
from fgbench.storage.files import atomic_write
from fgbench.storage.state import load_state, state_files

Which = Literal["last", "best"]


def load_model(run_directory: str | Path, which: Which = "last") -> nn.Module:
    """The model of a run with its last saved weights, on the CPU and in evaluation mode.

    Only tensors and plain values are read (``weights_only``), so an untrusted run directory runs no code; a
    user's own model is imported by its name, as for training.

    Args:
        run_directory: such as ``results/NAME/s0-0123abcd``, or a folder with one run in it.
        which: ``last``: of its last saved state; ``best``: of the best epoch so far on the validation images,
            if its config has ``saving.best``.

    Raises:
        FgbenchError: there is no run, it has saved no such state, or its state does not fit the model.
    """
    folder = find_run(run_directory)
    state = _read(folder)
    weights = _choose(state, which, folder)
    config = load_config(folder / "config.yaml")
    images = state.get("images")
    if images is None:
        raise FgbenchError(
            f"{folder}: an earlier version of fgbench saved this state, without the shape of the images; "
            f"`fgbench export {folder}` writes its weights"
        )
    attributes = dict(state["training"].get("attributes", {}))
    lost = list(state["training"].get("unsaved", ()))
    if which == "best":  # those are of the last epoch
        lost, attributes = [*lost, *attributes], {}
    if lost:
        warnings.warn(
            f"{folder}: the model keeps {lost[0]!r}, which was not saved, so it is as in a new model: make "
            "it a buffer",
            stacklevel=2,
        )
    model = build_model(config.model, tuple(images["shape"]), images["classes"], config.seed, "cpu")
    try:
        model.load_state_dict(weights)
        restore_attributes(model, attributes)
    except RuntimeError as error:
        text = str(error).splitlines()[-1].strip()
        raise FgbenchError(f"{folder}: its weights do not fit model {config.model.name}: {text}") from error
    return model.eval()


def export_weights(run_directory: str | Path, out: Path, which: Which = "last") -> Path:
    """Write the weights of a run as a plain ``state_dict``, for ``torch.load(out, weights_only=True)``.

    Args:
        run_directory: as of :func:`load_model`.
        out: the file to write.
        which: as of :func:`load_model`.

    Returns:
        The run directory they come from.

    Raises:
        FgbenchError: there is no run, it has saved no such state, or the file cannot be written.
    """
    folder = find_run(run_directory)
    weights = _choose(_read(folder), which, folder)
    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, buffer)
    atomic_write(out, buffer.getvalue())
    return folder


def find_run(path: str | Path) -> Path:
    """The run directory: the folder itself, or the only run in it.

    Raises:
        ConfigError: there is no run, or more than one.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder, expected a run directory such as results/NAME/s0-0123abcd"
        )
    if (folder / "config.yaml").exists():
        return folder
    found = sorted(file.parent for file in folder.rglob("config.yaml"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(
            f"{folder}: no run in it, expected a run directory such as results/NAME/s0-0123abcd"
        )
    more = ", ..." if len(found) > 3 else ""
    raise ConfigError(f"{folder}: {len(found)} runs, expected one: {', '.join(map(str, found[:3]))}{more}")


def _choose(state: dict[str, Any], which: Which, folder: Path) -> dict[str, Tensor]:
    """The weights in a state, by name."""
    if which == "last":
        return dict(state["training"]["model"])
    if which != "best":
        raise ConfigError(f"which: got {which!r}, expected last or best")
    best = find_best(state, load_config(folder / "config.yaml").saving.best)
    if best is None:
        raise FgbenchError(
            f"{folder}: the weights of its best epoch were not kept; from its first epoch on, saving.best: "
            "val_accuracy (or val_loss) keeps them"
        )
    return dict(best)


def _read(folder: Path) -> dict:
    if not state_files(folder):
        raise FgbenchError(
            f"{folder}: no state file, so no weights; `fgbench run {folder / 'config.yaml'} --force` "
            "runs it again"
        )
    state, _ = load_state(folder)
    assert state is not None
    return state
