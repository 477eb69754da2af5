"""Epoch time of the training loop against that of the usual one, around the same fully connected model.

The loop most code has: a torchvision dataset that decodes, converts and normalises one image at a time, a
``DataLoader``, ``loss.backward()`` and ``loss.item()`` at every step. Same images, model, batch size and
optimizer on both sides; epochs of the two take turns in one process.

    python scripts/dataloader_baseline.py [--epochs 3] [--workers 0] [--data-dir DIR] [--out FILE.csv]
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Normalize, ToTensor

from fgbench import measure
from fgbench.building import build_training
from fgbench.config import load_config
from fgbench.datasets.base import Split, load_splits
from fgbench.datasets.search import DataSearch
from fgbench.models.build import build_model
from fgbench.training import Training, start_next_epoch, train_epoch

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
    loss_fn, total = nn.CrossEntropyLoss(), 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()


def fgbench_epoch(training: Training) -> None:
    """The loop of ``fgbench run``."""
    train_epoch(training)
    training.train_means()
    start_next_epoch(training)


def main() -> None:
    """Time the epochs; print them and write them to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes of the DataLoader")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    config = load_config(CONFIG, [f"dataset={arguments.dataset}"])
    device = torch.device("cpu")
    measure.prepare(device, None)
    splits = load_splits(config.dataset, 0, device, DataSearch(arguments.data_dir, None))
    training = build_training(config, device, splits)
    loader = DataLoader(
        usual_dataset(splits.train),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
    )
    model = build_model(config.model, splits.image_shape, splits.num_classes, 0, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)
    rows = []
    for epoch in range(1, arguments.epochs + 1):
        row: dict[str, object] = {"epoch": epoch}
        with measure.OtherLoad() as load:
            for name, work in (
                ("dataloader_s", lambda: usual_epoch(loader, model, optimizer)),
                ("fgbench_s", lambda: fgbench_epoch(training)),
            ):
                start = time.perf_counter()
                work()
                row[name] = round(time.perf_counter() - start, 3)
        rows.append(row | {"timing_note": load.reason})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    usual, own = table["dataloader_s"], table["fgbench_s"]
    print(f"ratio of medians {usual.median() / own.median():.1f}, of minima {usual.min() / own.min():.1f}")
    if arguments.out:
        table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
