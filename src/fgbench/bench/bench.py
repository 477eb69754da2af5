"""Step times and memory of every trainer, alternating in one process.

Each case has its own copy of the model. Rounds go through all cases in turn (A B C, A B C, ...), and a ratio
is the median over rounds of two times from the same round, so drift of the machine affects both alike.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.flop_counter import FlopCounterMode

from fgbench import measure
from fgbench.bench.backprop_forms import COMPILED, COMPILED_STEP, IN_BACKWARD, compiled_step, step_in_backward
from fgbench.bench.report import BenchRow, name_best_backprop, table, write_report
from fgbench.config.optimizer import ScheduleOptions
from fgbench.datasets.base import Split, Splits
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.options import Backwards
from fgbench.registry import MODELS, TRAINERS, load, options_model
from fgbench.run.loop import TrainingState, start_next_epoch, train_epoch
from fgbench.run.optimizers import build_schedule
from fgbench.seeds import derive_generator
from fgbench.trainers.base import Trainer
from fgbench.trainers.compiled import compile_steps
from fgbench.trainers.forward_gradient import ForwardGradient

IMAGE_SHAPE = (1, 28, 28)
CLASSES = 10
LEARNING_RATE = 1e-6  # small, so that values stay finite over hundreds of steps with noisy gradients
TURN_S = 0.03  # short steps are repeated to about this time per round
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


def run_bench(
    models: Sequence[str] = tuple(MODELS),
    batch_sizes: Sequence[int] = (64,),
    *,
    quick: bool = False,
    out: Path = Path("results/bench"),
    device: str = "auto",
    threads: int | None = None,
    rounds: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Measure all cases on every model and batch size, and write the results to ``out``.

    Files are written, and the table so far printed, after every model and batch size.

    Args:
        models: names of ``fgbench list models``.
        batch_sizes: images per step.
        quick: fewer rounds, and without the slowest cases.
        out: folder for ``bench.csv``, ``bench.json`` (with the environment), ``bench.png`` and ``bench.svg``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads; torch's own choice when None.
        rounds: how often each case is timed; 25, or 7 for ``quick``, when None.
        say: called with the table of each model and batch size when it is done.

    Returns:
        Where the results are, and whether the times can be trusted.

    Raises:
        ConfigError: an unknown model, a batch size below 1, a device that is not there.
    """
    for size in batch_sizes:
        if size < 1:
            raise ConfigError(f"batch size: got {size}, expected at least 1")
    known = [options_model("model", model)(name=model).name for model in models]
    target = measure.resolve_device(device)
    measure.prepare(target, threads)
    rows: list[BenchRow] = []
    loads: list[str] = []
    report, environment = "", measure.describe_environment(target)
    for model in known:
        for size in batch_sizes:
            with measure.OtherLoad() as load:
                rows += bench_model(model, size, target, rounds or (7 if quick else 25), quick=quick)
            loads += [f"{load.reason} ({model}, batch {size})"] if load.reason else []
            report = write_report(rows, environment, "; ".join(loads) or None, out)
            say(table([row for row in rows if (row.model, row.batch_size) == (model, size)]))
    return report


def bench_model(
    name: str, batch_size: int, device: torch.device, rounds: int, *, quick: bool = False
) -> list[BenchRow]:
    """All cases on one model and batch size."""
    model = build_model(options_model("model", name)(name=name), IMAGE_SHAPE, CLASSES, 0, device)
    generator = derive_generator(device, 0, "bench")
    inputs = torch.randn(batch_size, *IMAGE_SHAPE, device=device, generator=generator)
    labels = torch.randint(CLASSES, (batch_size,), device=device, generator=generator)
    rows = []
    cases = [_forward_case(model, inputs), _textbook_case(model, inputs, labels)]
    for variant, (trainer_name, changes) in VARIANTS.items():
        if quick and changes.get("tangents", 1) > 4:
            continue
        trainer = load("trainer", trainer_name)(**changes)
        try:
            trainer.set_up(model, inputs, CLASSES, derive_generator("cpu", 0, "trainer"))
        except ConfigError as error:
            rows.append(BenchRow(name, batch_size, variant, note=str(error)))
            continue
        cases.append(_trainer_case(variant, trainer, model, inputs, labels))
    cases.append(_in_backward_case(model, inputs, labels))
    if not quick:  # compiling takes half a minute
        try:
            cases.append(_compiled_case(model, inputs, labels))
            for compiled, variant in COMPILED_VARIANTS.items():
                trainer_name, changes = VARIANTS[variant]
                trainer = compile_steps(load("trainer", trainer_name)(**changes))
                case = _trainer_case(compiled, trainer, model, inputs, labels)
                cases.append(replace(case, counted=False))
        except ConfigError as error:
            rows.append(BenchRow(name, batch_size, COMPILED, note=str(error)))
    for case in cases:
        case.step()
    for case in list(cases):
        compiled_pass = case.trainer and case.trainer.compiled
        if compiled_pass and compiled_pass.reason:
            rows.append(BenchRow(name, batch_size, case.name, note=compiled_pass.reason))
            cases.remove(case)
    if not quick:
        cases += [_loop_case(case, model, inputs, labels) for case in cases if case.name in IN_LOOP]
    for _ in range(rounds):
        for case in cases:
            case.times_s.append(_turn(case.step, device) / case.steps)
    by_name = {case.name: case for case in cases}
    memory = {case.name: _step_memory_mib(case, device) for case in cases if case.bare is None}
    measured = [
        _row(name, batch_size, case, memory, by_name[FORWARD].times_s, by_name[BACKPROP].times_s, device)
        for case in cases
    ]
    return name_best_backprop(measured) + rows


def _uses_backwards(case: Case) -> str:
    if case.bare is not None:
        return _uses_backwards(case.bare)
    if case.trainer is not None:
        return case.trainer.uses_backwards
    return Backwards.EVERYTHING if case.name.startswith(BACKPROP) else Backwards.NOTHING


def _row(
    model: str,
    batch_size: int,
    case: Case,
    memory: dict[str, float],
    forward_s: list[float],
    backprop_s: list[float],
    device: torch.device,
) -> BenchRow:
    row = BenchRow(
        model,
        batch_size,
        case.name,
        _uses_backwards(case),
        times_s=tuple(case.times_s),
        forward_s=tuple(forward_s),
        backprop_s=tuple(backprop_s),
    )
    if case.bare is not None:
        return replace(row, bare_s=tuple(case.bare.times_s))
    turns = min(len(case.times_s), 9)
    parts = {part: [_turn(piece, device) for _ in range(turns)] for part, piece in case.parts.items()}
    total = memory[case.name]
    state = [] if case.optimizer is None else case.optimizer.state.values()
    parameters = _mib([*case.model.parameters(), *case.model.buffers()])
    gradients = _mib([param.grad for param in case.model.parameters() if param.grad is not None])
    optimizer = _mib([each for values in state for each in values.values() if torch.is_tensor(each)])
    tangents = case.tangent_bytes / measure.MIB
    return replace(
        row,
        sampling_s=tuple(parts.get("sampling", ())),
        update_s=tuple(parts.get("update", ())),
        gflop=_count_gflop(case.step) if case.counted else 0.0,
        peak_memory_mib=total,
        parameters_mib=parameters,
        gradients_mib=gradients,
        optimizer_mib=optimizer,
        tangents_mib=tangents,
        activations_mib=max(0.0, total - parameters - gradients - optimizer - tangents),
        memory_to_forward=total / memory[FORWARD],
        memory_to_backprop=total / memory[BACKPROP],
    )


def _mib(tensors: list[Tensor]) -> float:
    return measure.tensor_bytes(tensors) / measure.MIB


def _turn(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one step; short steps are repeated, leaving out the first, which has cold caches."""
    measure.synchronize(device)
    start = time.perf_counter()
    step()
    measure.synchronize(device)
    first = time.perf_counter() - start
    repeats = min(20, int(TURN_S / first))
    if repeats < 2:
        return first
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    measure.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _count_gflop(step: Callable[[], object]) -> float:
    """Floating-point operations of a step's matrix products and convolutions, in GFLOP."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def _step_memory_mib(case: Case, device: torch.device) -> float:
    """Peak memory of one step including what is kept between steps, excluding other cases' copies."""
    if device.type == "cpu":
        return measure.step_memory(case.step, case.model, case.optimizer, case.trainer)
    resident = measure.resident_bytes(case.model, case.optimizer, case.trainer)
    before = torch.cuda.memory_allocated(device)
    with measure.PeakMemory(device) as peak:
        case.step()
        measure.synchronize(device)
    return (peak.mib or 0.0) + (resident - before) / measure.MIB


def _forward_case(model: nn.Module, inputs: Tensor) -> Case:
    own, images = copy.deepcopy(model), inputs.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def step() -> None:
        own(images)

    return Case(FORWARD, step, own)


def _compiled_case(model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    own, images = copy.deepcopy(model), inputs.contiguous(memory_format=torch.channels_last)
    step, optimizer = compiled_step(own, images, labels, LEARNING_RATE)
    return Case(COMPILED, step, own, optimizer=optimizer, counted=False)


def _in_backward_case(model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    own, images = copy.deepcopy(model), inputs.contiguous(memory_format=torch.channels_last)
    return Case(IN_BACKWARD, step_in_backward(own, images, labels, LEARNING_RATE), own)


def _textbook_case(model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    """The forward gradient as it is usually written: a reference, not a recommendation."""
    own = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in own.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None  # or torch.func.jvp refuses
    params = {name: param.detach() for name, param in own.named_parameters()}
    loss_fn = nn.CrossEntropyLoss()
    images = inputs.contiguous()

    def loss(values: dict[str, Tensor]) -> Tensor:
        return loss_fn(functional_call(own, values, (images,)), labels)

    @torch.no_grad()
    def step() -> None:
        tangents = {name: torch.randn_like(param) for name, param in params.items()}
        derivative: Any = jvp(loss, (params,), (tangents,))[1]
        for name, param in params.items():
            param.sub_(LEARNING_RATE * derivative * tangents[name])

    return Case(TEXTBOOK, step, own, tangent_bytes=measure.tensor_bytes(params.values()))


def _trainer_case(name: str, trainer: Trainer, model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
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


def _loop_case(bare: Case, model: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    """The same steps inside the training loop, over images on the device."""
    variant, changes = VARIANTS[bare.name]
    device, batch_size = inputs.device, len(inputs)
    start = time.perf_counter()
    bare.step()
    measure.synchronize(device)
    steps = max(2, min(LOOP_STEPS, int(LOOP_TURN_S / (time.perf_counter() - start))))
    images = torch.zeros(steps * batch_size, *IMAGE_SHAPE[1:], IMAGE_SHAPE[0], dtype=torch.uint8)
    zero = torch.zeros(IMAGE_SHAPE[0], device=device)
    split = Split(images.to(device), labels.repeat(steps), zero, zero + 1)
    own, trainer = copy.deepcopy(model), load("trainer", variant)(**changes)
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
