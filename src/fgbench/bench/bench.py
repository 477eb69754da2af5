"""Step times and memory of every trainer, alternating in one process.

Each case has its own copy of the model. Rounds go through all cases in turn (A B C, A B C, ...), and a ratio
is the median over rounds of two times from the same round, so drift of the machine affects both alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fgbench import measure
from fgbench.bench.backprop_forms import COMPILED
from fgbench.bench.cases import (
    BACKPROP,
    CLASSES,
    COMPILED_VARIANTS,
    FORWARD,
    IN_LOOP,
    VARIANTS,
    Case,
    compiled_case,
    forward_case,
    in_backward_case,
    loop_case,
    textbook_case,
    trainer_case,
)
from fgbench.bench.report import BenchRow, name_best_backprop, table, write_report
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.options import Backwards
from fgbench.registry import MODELS, load, options_model
from fgbench.seeds import derive_generator
from fgbench.trainers.compiled import compile_steps

IMAGE_SHAPE = (1, 28, 28)
TURN_S = 0.03  # short steps are repeated to about this time per round


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
    cases = [forward_case(model, inputs), textbook_case(model, inputs, labels)]
    for variant, (trainer_name, changes) in VARIANTS.items():
        if quick and changes.get("tangents", 1) > 4:
            continue
        trainer = load("trainer", trainer_name)(**changes)
        try:
            trainer.set_up(model, inputs, CLASSES, derive_generator("cpu", 0, "trainer"))
        except ConfigError as error:
            rows.append(BenchRow(name, batch_size, variant, note=str(error)))
            continue
        cases.append(trainer_case(variant, trainer, model, inputs, labels))
    cases.append(in_backward_case(model, inputs, labels))
    if not quick:  # compiling takes half a minute
        try:
            cases.append(compiled_case(model, inputs, labels))
            for compiled, variant in COMPILED_VARIANTS.items():
                trainer_name, changes = VARIANTS[variant]
                trainer = compile_steps(load("trainer", trainer_name)(**changes))
                case = trainer_case(compiled, trainer, model, inputs, labels)
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
        cases += [loop_case(case, model, inputs, labels) for case in cases if case.name in IN_LOOP]
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
        gflop=measure.count_operations(case.step) / 1e9 if case.counted else 0.0,
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
