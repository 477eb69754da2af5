"""What ``fgbench bench`` times: each case is one way of taking a step, with its own copy of the model."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgbench import measure
from fgbench.bench.backprop_forms import COMPILED, COMPILED_STEP, IN_BACKWARD, compiled_step, step_in_backward
from fgbench.config.optimizer import ScheduleOptions
from fgbench.datasets.base import Split, Splits
from fgbench.registry import TRAINERS
from fgbench.run.loop import TrainingState, start_next_epoch, train_epoch
from fgbench.run.optimizers import build_schedule
from fgbench.seeds import derive_generator
from fgbench.trainers.base import Trainer
from fgbench.trainers.forward_gradient import ForwardGradient

CLASSES = 10
LEARNING_RATE = 1e-6  # small, so that values stay finite over hundreds of steps with noisy gradients
LOOP_TURN_S, LOOP_STEPS = 0.1, 100  # the training loop runs for this time or number of steps
LOSS = nn.CrossEntropyLoss(reduction="none")

FORWARD, BACKPROP = "forward only", "backprop"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    BACKPROP: ("backprop", {}),
    "backprop, recompute": ("backprop", {"recompute": True}),
    "forward-gradient, normal": ("forward-gradient", {}),
    "forward-gradient, rademacher": ("forward-gradient", {"guess": "rademacher"}),
    "forward-gradient, rank-one": ("forward-gradient", {"guess": "rademacher", "structure": "rank1"}),
    "forward-gradient, rank-one, bf16 tangents": (
        "forward-gradient",
        {"guess": "rademacher", "structure": "rank1", "tangent_precision": "bf16"},
    ),
    "forward-gradient, rank-one, K=4": (
        "forward-gradient",
        {"guess": "rademacher", "structure": "rank1", "tangents": 4},
    ),
    "forward-gradient, rank-one, K=16": (
        "forward-gradient",
        {"guess": "rademacher", "structure": "rank1", "tangents": 16},
    ),
    **{name: (name, {}) for name in TRAINERS if name not in ("backprop", "forward-gradient")},
    "zeroth-order, rank-one": ("zeroth-order", {"guess": "rademacher", "structure": "rank1"}),
}
COMPILED_VARIANTS = {
    COMPILED_STEP: BACKPROP,
    **{
        f"{name}, compiled": name
        for name in (
            "forward-gradient, normal",
            "forward-gradient, rank-one",
            "forward-gradient, rank-one, bf16 tangents",
            "forward-gradient, rank-one, K=4",
            "zeroth-order, rank-one",
        )
    },
}
"""Variants whose pass is also measured compiled (``compile: true``)."""
TEXTBOOK = "textbook forward gradient (reference)"
IN_LOOP = (BACKPROP, "forward-gradient, rank-one")
"""Cases that are also measured inside the training loop, which adds batches, sums, schedule and seeds."""


@dataclass
class Case:
    """One way of taking a step, with its own model.

    Attributes:
        name: its name in the table.
        step: takes one step.
        model: what the step trains.
        parts: parts of the step that are also timed separately: ``sampling``, ``update``.
        tangent_bytes: memory of the step's tangents.
        steps: how many steps ``step`` takes.
        counted: whether its operations can be counted; those of compiled code cannot.
        bare: for a case inside the training loop, the case of its step alone.
        trainer: the trainer that fills the gradients, if there is one.
        times_s: per round, of one step.
    """

    name: str
    step: Callable[[], object]
    model: nn.Module
    parts: dict[str, Callable[[], object]] = field(default_factory=dict)
    tangent_bytes: int = 0
    optimizer: torch.optim.Optimizer | None = None
    steps: int = 1
    bare: "Case | None" = None
    counted: bool = True
    trainer: Trainer | None = None
    times_s: list[float] = field(default_factory=list)


def forward_case(model: nn.Module, inputs: Tensor) -> Case:
    """One forward pass, without gradients."""
    own, images = copy.deepcopy(model), inputs.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def step() -> None:
        own(images)

    return Case(FORWARD, step, own)


def compiled_case(model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    """Backprop through ``torch.compile(model)``, with the fused optimizer."""
    own, images = copy.deepcopy(model), inputs.contiguous(memory_format=torch.channels_last)
    step, optimizer = compiled_step(own, images, labels, LEARNING_RATE)
    return Case(COMPILED, step, own, optimizer=optimizer, counted=False)


def in_backward_case(model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    """Backprop whose update is made in the backward pass, parameter by parameter."""
    own, images = copy.deepcopy(model), inputs.contiguous(memory_format=torch.channels_last)
    return Case(IN_BACKWARD, step_in_backward(own, images, labels, LEARNING_RATE), own)


def textbook_case(model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    """The forward gradient as it is usually written: a reference, not a recommendation."""
    own = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in own.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None  # or torch.func.jvp refuses
    params = {name: param.detach() for name, param in own.named_parameters()}
    loss_fn = nn.CrossEntropyLoss()
    images = inputs.contiguous()

    def loss(values: dict[str, Tensor]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # torch has no forward mode of fused attention
            return loss_fn(functional_call(own, values, (images,)), labels)

    @torch.no_grad()
    def step() -> None:
        tangents = {name: torch.randn_like(param) for name, param in params.items()}
        derivative: Any = jvp(loss, (params,), (tangents,))[1]
        for name, param in params.items():
            param.sub_(LEARNING_RATE * derivative * tangents[name])

    return Case(TEXTBOOK, step, own, tangent_bytes=measure.tensor_bytes(params.values()))


def trainer_case(name: str, trainer: Trainer, model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    """A step as in the training loop: plain SGD, without a dense gradient if the trainer can."""
    own, images = copy.deepcopy(model), inputs.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([*own.parameters(), *trainer.parameters()], lr=LEARNING_RATE, fused=True)
    generator = derive_generator(inputs.device, 0, "tangents")
    parts: dict[str, Callable[[], object]] = {}
    tangent_bytes = 0

    def dense_step() -> None:
        trainer.compute_gradients(own, LOSS, images, labels, generator)
        optimizer.step()

    def sgd_step() -> None:
        trainer.sgd_step(own, LOSS, images, labels, generator, LEARNING_RATE)

    fused = trainer.has_sgd_step
    if isinstance(trainer, ForwardGradient):
        tangents: Any = trainer.tangents_for(own)
        count = trainer.options.tangents
        drawn = tangents.sample(generator, count)
        tangent_bytes = measure.tensor_bytes(drawn.values() if isinstance(drawn, dict) else [drawn])
        zeros = inputs.new_zeros(count)
        parts["sampling"] = lambda: tangents.sample(generator, count)
        parts["update"] = torch.no_grad()(lambda: tangents.add_to_parameters(drawn, zeros))
    elif not fused:
        parts["update"] = optimizer.step
    if fused:
        return Case(name, sgd_step, own, parts, tangent_bytes, trainer=trainer)
    return Case(name, dense_step, own, parts, tangent_bytes, optimizer, trainer=trainer)


def loop_case(bare: Case, model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    """The same steps inside the training loop, over images on the device."""
    assert bare.trainer is not None
    channels, *size = inputs.shape[1:]
    device, batch_size = inputs.device, len(inputs)
    start = time.perf_counter()
    bare.step()
    measure.synchronize(device)
    steps = max(2, min(LOOP_STEPS, int(LOOP_TURN_S / (time.perf_counter() - start))))
    images = torch.zeros(steps * batch_size, *size, channels, dtype=torch.uint8)
    zero = torch.zeros(channels, device=device)
    split = Split(images.to(device), labels.repeat(steps), zero, zero + 1)
    own, trainer = copy.deepcopy(model), type(bare.trainer)(bare.trainer.options)
    optimizer = torch.optim.SGD(own.parameters(), lr=LEARNING_RATE, fused=True)
    training = TrainingState(
        own,
        trainer,
        optimizer,
        build_schedule(ScheduleOptions(), optimizer, steps, 1),
        Splits(split, split, split, [str(each) for each in range(CLASSES)]),
        0,
        device,
        batch_size,
    )

    def epoch() -> None:
        train_epoch(training)
        start_next_epoch(training)

    epoch()
    return Case(f"{bare.name}, in the training loop", epoch, own, steps=steps, bare=bare)
