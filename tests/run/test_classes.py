"""How classes are told apart in the end."""

import torch
from torch import nn

from fgbench.datasets.base import Split
from fgbench.run.classes import class_accuracies, count_confusions
from fgbench.run.loop import EVALUATION_BATCH
from fgbench.storage.run_directory import RunDirectory


class Says(nn.Module):
    """Answers with the pixel's value, among ``width`` outputs; wrong while training."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, images):
        answers = torch.zeros(len(images), self.width)
        answers[range(len(images)), images.flatten().round().long() * (not self.training)] = 1.0
        return answers


def split_of(answers, labels):
    images = torch.tensor(answers, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Split(images, torch.tensor(labels), torch.zeros(1), torch.full((1,), 1 / 255))


def test_every_image_counts_once_in_its_row_and_its_answers_column():
    model = Says(3).train()
    counts = count_confusions(model, split_of([0, 1, 2, 0, 0], [0, 1, 1, 1, 0]), 3)
    assert counts.tolist() == [[2, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert model.training
    assert class_accuracies(["a", "b", "c"], counts) == {"a": 1.0, "b": 1 / 3, "c": None}


def test_outputs_beyond_the_classes_are_counted_and_never_right():
    counts = count_confusions(Says(5), split_of([4, 1], [0, 1]), 2)
    assert counts.tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert class_accuracies(["a", "b"], counts) == {"a": 0.0, "b": 1.0}


def test_more_images_than_a_batch_are_all_counted():
    many = 2 * EVALUATION_BATCH + 7
    counts = count_confusions(Says(2), split_of([1] * many, [1] * many), 2)
    assert counts.tolist() == [[0, 0], [0, many]]


def test_a_confusion_matrix_reads_back_as_it_was_written(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_confusions() == ([], [])
    run.write_confusions(["T-shirt, top", "é"], [[3, 1, 0], [0, 4, 2]])
    assert run.read_confusions() == (["T-shirt, top", "é", "output 2"], [[3, 1, 0], [0, 4, 2]])
    run.write_confusions([], [])
    assert list(tmp_path.iterdir()) == []
