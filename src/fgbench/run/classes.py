"""Accuracy per class and confusion matrix of a trained model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgbench.datasets.base import Split
from fgbench.run.loop import EVALUATION_BATCH, TrainingState
from fgbench.storage.run_directory import RunDirectory


def measure_classes(
    training: TrainingState, directory: RunDirectory, state: str
) -> dict[str, float | None] | None:
    """Write the final confusion matrix on the test images; returns the accuracy of each class.

    None, and no file, for a run that diverged.
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
    """The confusion matrix of the model in evaluation mode; waits for the device.

    Returns:
        int64 counts of shape (num_classes, max(num_classes, outputs of the model)): a row for every true
        class, a column for every predicted one.
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
    """Accuracy on the images of each class, by name; None for a class without images."""
    right, images = counts.diagonal().tolist(), counts.sum(1).tolist()
    return {name: hits / n if n else None for name, hits, n in zip(names, right, images, strict=True)}
