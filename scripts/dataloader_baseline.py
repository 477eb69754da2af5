"""Compare the epoch time of fgbench with that of an ordinary training loop, on one fully connected model.

The ordinary loop: a torchvision dataset that decodes, converts and normalises one image at a time, a
``DataLoader``, ``loss.backward()`` and ``loss.item()`` at every step; after each epoch the test set in
the same way. Same images, model, batch size and optimizer (SGD, then Adam) on both sides; epochs of the two
take turns in one process.

    python scripts/dataloader_baseline.py [--epochs 3] [--workers 0] [--data-dir DIR] [--out FILE.csv]
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Normalize, ToTensor

from fgbench import measure
from fgbench.config.config import load_config
from fgbench.datasets.base import Split, load_splits
from fgbench.datasets.search import DataSearch
from fgbench.models.build import build_model
from fgbench.run.build import build_training
from fgbench.run.loop import TrainingState, evaluate, start_next_epoch, train_epoch

CONFIG = Path(__file__).parents[1] / "configs" / "fc_fmnist_bp.yaml"


def usual_dataset(split: Split) -> FashionMNIST:
    """Torchvision's dataset over the images of a split: decodes, converts and normalises one at a time."""
    dataset = FashionMNIST.__new__(FashionMNIST)  # without its search for files
    dataset.data, dataset.targets = split.images.squeeze(3), split.labels
    dataset.transform = Compose([ToTensor(), Normalize(split.mean.tolist(), split.std.tolist())])
    dataset.target_transform = None
    return dataset


def usual_epoch(loader: DataLoader, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The loop most code has."""
    model.train()
    loss_fn, total = nn.CrossEntropyLoss(), 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()


@torch.no_grad()
def usual_evaluation(loader: DataLoader, model: nn.Module) -> None:
    """Loss and accuracy on the test set, as most code computes them."""
    model.eval()
    loss_fn, total, correct = nn.CrossEntropyLoss(), 0.0, 0.0
    for images, labels in loader:
        outputs = model(images)
        total += loss_fn(outputs, labels).item()
        correct += (outputs.argmax(1) == labels).sum().item()


def fgbench_epoch(training: TrainingState) -> None:
    """The loop of ``fgbench run``."""
    train_epoch(training)
    training.train_means()
    start_next_epoch(training)


def fgbench_evaluation(training: TrainingState) -> None:
    """The test set in ``fgbench run``."""
    evaluate(training.model, training.loss_fn, training.splits.test)


def main() -> None:
    """Time the epochs, print them and write them to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes of the DataLoader")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    device = torch.device("cpu")
    measure.prepare(device, None)
    parts = {
        name: make_parts(optimizer, arguments, device)
        for name, optimizer in {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}.items()
    }
    rows = []
    for epoch, name in itertools.product(range(1, arguments.epochs + 1), parts):
        row: dict[str, object] = {"optimizer": name, "epoch": epoch}
        with measure.OtherLoad() as load:
            for part, work in parts[name].items():
                start = time.perf_counter()
                work()
                row[part] = round(time.perf_counter() - start, 3)
        rows.append(row | {"timing_note": load.reason})
    table = pd.DataFrame(rows).sort_values(["optimizer", "epoch"], kind="stable")
    print(table.to_string(index=False))
    for name, own in table.groupby("optimizer"):
        for what, columns in {"training": ["train"], "training and test": ["train", "test"]}.items():
            usual_s, own_s = (
                sum(own[f"{loop}_{column}_s"] for column in columns) for loop in ("dataloader", "fgbench")
            )
            print(
                f"{name}, {what}: usual / own {usual_s.median() / own_s.median():.1f} by medians, "
                f"{usual_s.min() / own_s.min():.1f} by minima"
            )
    if arguments.out:
        table.to_csv(arguments.out, index=False)


def make_parts(
    optimizer_class: type[torch.optim.Optimizer], arguments: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], None]]:
    """What is timed, by column: both loops over the same images, with an optimizer of that class each."""
    name = optimizer_class.__name__.lower()
    config = load_config(CONFIG, [f"dataset={arguments.dataset}", f"optimizer.name={name}"])
    splits = load_splits(config.dataset, 0, device, DataSearch(arguments.data_dir, None))
    training = build_training(config, device, splits)
    loader = DataLoader(
        usual_dataset(splits.train),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
    )
    test_loader = DataLoader(usual_dataset(splits.test), config.batch_size, num_workers=arguments.workers)
    model = build_model(config.model, splits.image_shape, splits.num_classes, 0, device)
    optimizer = optimizer_class(model.parameters(), lr=config.optimizer.lr)  # type: ignore[call-arg]
    return {
        "dataloader_train_s": lambda: usual_epoch(loader, model, optimizer),
        "dataloader_test_s": lambda: usual_evaluation(test_loader, model),
        "fgbench_train_s": lambda: fgbench_epoch(training),
        "fgbench_test_s": lambda: fgbench_evaluation(training),
    }


if __name__ == "__main__":
    main()
