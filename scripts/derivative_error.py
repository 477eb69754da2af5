"""How far the derivatives of a rank-one forward gradient are off, with tangents in either precision.

    python scripts/derivative_error.py [--models fc cnn ...] [--tangents 8] [--batch-size 64]

Root mean square over the tangents of the error of d, as a share of |g|, which is that of d itself. The truth
is d in float64 along the same tangents. Images are normal numbers, the weights initial ones.
"""

import argparse
import copy

import torch
from torch import Tensor, nn

from fgbench import ForwardGradient
from fgbench.models.build import build_model
from fgbench.registry import MODELS, options_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", nargs="+", choices=MODELS, default=["fc", "cnn", "vgg16", "resnet18", "vit"])
parser.add_argument("--tangents", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=64)
arguments = parser.parse_args()

LOSS = nn.CrossEntropyLoss(reduction="none")


def derivatives(model: nn.Module, inputs: Tensor, precision: str = "fp32") -> Tensor:
    """Of the loss, along the same tangents each time, shape (K,), float64."""
    trainer = ForwardGradient(
        structure="rank1", guess="rademacher", tangents=arguments.tangents, chunk=2,
        tangent_precision=precision,
    )  # fmt: skip
    labels, generator = torch.arange(len(inputs)) % 10, torch.Generator().manual_seed(1)
    stats = trainer.compute_gradients(copy.deepcopy(model), LOSS, inputs, labels, generator)
    return stats.directional_derivatives.double()


print("| model | float32 | bfloat16 tangents |\n|---|---|---|")
for name in arguments.models:
    model = build_model(options_model("model", name)(name=name), (1, 28, 28), 10, 0, torch.device("cpu"))
    inputs = torch.randn(arguments.batch_size, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs, double = inputs.contiguous(memory_format=torch.channels_last), copy.deepcopy(model).double()
    loss = LOSS(double(inputs.double()), torch.arange(len(inputs)) % 10).mean()
    gradient = torch.autograd.grad(loss, list(double.parameters()))
    length = torch.stack([part.norm() for part in gradient]).norm()
    true = derivatives(double, inputs.double())
    off = [
        float((derivatives(model, inputs, precision) - true).square().mean().sqrt() / length)
        for precision in ("fp32", "bf16")
    ]
    print(f"| {name} | {off[0]:.1e} | {100 * off[1]:.2f} % |", flush=True)
