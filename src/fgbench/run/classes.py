"""How well a trained model knows each class, and what it mistakes it for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgbench.datasets.base import Split
from fgbench.run.loop import EVALUATION_BATCH, TrainingState
from fgbench.storage.run_directory import RunDirectory


def measure_classes(
    training: TrainingState, directory: RunDirectory, state: str
) -> dict[str, float | None] | None:
    """Write what the test images' classes are taken for at the end; returns the accuracy of each.

    None, and no file, for a run that diverged: its model has learnt nothing.
    """
    splits = training.splits
    if state == "diverged" or not len(splits.test):
        directory.write_confusions([], [])
        return None
    counts = count_confusions(training.model, splits.test, splits.num_classes)
    directory.write_confusions(splits.class_names, counts.tolist())
    return class_accuracies(splits.class_names, counts)


@torch.no_grad()
def count_confusions(model: nn.Module, split: Split, num_classes: int) -> Tensor:
    """How many images of each class the model, in evaluation mode, took for each; waits for the device.

    Returns:
        int64 counts of shape (num_classes, max(num_classes, outputs of the model)): a row for every true
        class, a column for every answer.
    """
    was_training = model.training
    model.eval()
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for indices in torch.arange(len(split), device=split.labels.device).split(EVALUATION_BATCH):
        inputs, labels = split.batch(indices, None)
        outputs = model(inputs)
        answers = max(num_classes, outputs.shape[1])
        if counts.shape[1] < answers:
            counts = counts.new_zeros(num_classes, answers)
        pairs = (labels * answers + outputs.argmax(1)).cpu()
        counts += pairs.bincount(minlength=num_classes * answers).reshape(num_classes, answers)
    model.train(was_training)
    return counts


def class_accuracies(names: Sequence[str], counts: Tensor) -> dict[str, float | None]:
    """Accuracy on each class's images, by its name; None for a class without images."""
    right, images = counts.diagonal().tolist(), counts.sum(1).tolist()
    return {name: hits / n if n else None for name, hits, n in zip(names, right, images, strict=True)}
