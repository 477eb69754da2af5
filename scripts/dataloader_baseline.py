"""Epoch time of the usual loop around the fully connected model: what ``fgbench run`` is compared with.

The loop most code has: a torchvision dataset that decodes, converts and normalises one image at a time, a
``DataLoader``, ``loss.backward()`` and ``loss.item()`` at every step. Same model, batch size, optimizer and
training part as ``fgbench run configs/fc_fmnist_bp.yaml``.

    python scripts/dataloader_baseline.py [--epochs 2] [--workers 0] [--data-dir DIR]
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import Compose, Normalize, ToTensor

from fgbench.datasets.search import DataSearch
from fgbench.models.build import build_model
from fgbench.models.options import FCOptions
from fgbench.options import Options
from fgbench.registry import load, options_model

MEAN, STD = 0.2860, 0.3530


class Images(Dataset):
    """What torchvision's ``FashionMNIST`` gives: a PIL image made, transformed and returned one by one."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        from PIL import Image

        self.images, self.labels, self.make = images.squeeze(1).numpy(), labels, Image.fromarray
        self.transform = Compose([ToTensor(), Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.make(self.images[index], mode="L")), int(self.labels[index])


def main() -> None:
    """Time the epochs and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes of the DataLoader")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()

    options: Options = options_model("dataset", arguments.dataset)(name=arguments.dataset)
    data = load("dataset", arguments.dataset)(options, DataSearch(arguments.data_dir, None))
    dataset = Images(data.train_images, data.train_labels)
    training = Subset(dataset, range(len(dataset) * 4 // 5))
    loader = DataLoader(training, arguments.batch_size, shuffle=True, num_workers=arguments.workers)
    model = build_model(FCOptions(), (1, 28, 28), len(data.class_names), 0, "cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(1, arguments.epochs + 1):
        start, total = time.perf_counter(), 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: {seconds:.1f} s, training loss {total / len(loader):.3f}")


if __name__ == "__main__":
    main()
