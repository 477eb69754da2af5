"""Random directions: normal entries, signs, points of a sphere, the same on any number of threads."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

ALIGNMENT = 16  # entries; each parameter's tangent starts on a cache line
NORMAL_CHUNK = 2**17  # entries one generator draws; fixed, so the bits do not depend on the number of threads


Drawn = list[tuple[Tensor, ...]]
"""Directions, each given by its rows, shape (count, ...), or by the rows of its outer product's factors."""

_watchers: list[Callable[[bytes, Drawn], None]] = []


@contextmanager
def watching_draws(watcher: Callable[[bytes, Drawn], None]) -> Iterator[None]:
    """Call ``watcher`` with every draw inside this context: the generator's state before it, and the draw.

    It may overwrite the entries in place. Equal states mean the same draw, repeated.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class DrawingClock:
    """Seconds spent drawing: ``with DrawingClock() as clock: ...; clock.seconds``.

    On a GPU it synchronises before and after every draw, which slows the rest down.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> "DrawingClock":
        _clocks.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _clocks.remove(self)


_clocks: list[DrawingClock] = []


@contextmanager
def drawing(generator: torch.Generator) -> Iterator[Callable[[Drawn], None]]:
    """Wraps a draw: yields the function that passes its outcome to the watchers, and times it."""
    state = generator.get_state().numpy().tobytes() if _watchers else b""
    start = _now(generator) if _clocks else 0.0

    def show(drawn: Drawn) -> None:
        for watcher in _watchers:
            watcher(state, drawn)

    yield show
    if _clocks:
        seconds = _now(generator) - start
        for clock in _clocks:
            clock.seconds += seconds


def _now(generator: torch.Generator) -> float:
    if generator.device.type == "cuda":
        torch.cuda.synchronize(generator.device)
    return time.perf_counter()


def sample_tangents(
    params: Mapping[str, Tensor], guess: str, generator: torch.Generator, count: int | None = None
) -> dict[str, Tensor]:
    """Tangents for all parameters: independent of each other, zero mean, unit variance per entry.

    The same generator state gives the same tangents on any number of threads.

    Args:
        params: what to make tangents for: shapes, dtypes and memory formats are taken from here.
        guess: ``normal``; ``rademacher``: +1 or -1; ``sphere``: uniform on the sphere of radius sqrt(P);
            P counts the entries of all parameters together.
        generator: on the parameters' device.
        count: how many tangents, as a new first dimension; None: one, without it.

    Returns:
        One tensor per parameter, in one block of memory per dtype.
    """
    with drawing(generator) as show:
        fill = _fill_rademacher if guess == "rademacher" else _fill_normal
        tangents = _blocks(params, fill, generator, count or 1)
        if guess == "sphere" and tangents:
            _scale_to_sphere(tangents)
        show([(tangent,) for tangent in tangents.values()])
    return tangents if count is not None else {name: tangent[0] for name, tangent in tangents.items()}


def random_signs(
    size: int, generator: torch.Generator, dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """Independent +1 and -1 with probability 1/2 each, shape (size,): one random bit for each."""
    device = generator.device
    words = torch.empty(-(-size // 64), dtype=torch.int64, device=device).random_(
        -(2**63), None, generator=generator
    )
    octets = words.view(torch.uint8).int()
    table = _sign_table(device, dtype)
    if out is not None and size % 64 == 0:
        torch.index_select(table, 0, octets, out=out.view(-1, 8))
        return out
    signs = table.index_select(0, octets).view(-1)[:size]
    return signs if out is None else out.copy_(signs)


@cache
def _sign_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Row b: the eight bits of the octet b as +1 and -1."""
    octets = torch.arange(256, device=device)[:, None]
    return ((octets >> torch.arange(8, device=device)) & 1).to(dtype) * 2 - 1


def _blocks(
    params: Mapping[str, Tensor],
    fill: Callable[[Tensor, torch.Generator], None],
    generator: torch.Generator,
    count: int,
) -> dict[str, Tensor]:
    """``count`` filled tensors per parameter, shape (count, ...), each with the parameter's strides."""
    tangents, groups = {}, []
    for dtype in dict.fromkeys(param.dtype for param in params.values()):
        group = {name: param for name, param in params.items() if param.dtype == dtype}
        sizes = {name: -(-param.numel() // ALIGNMENT) * ALIGNMENT for name, param in group.items()}
        total = -(-sum(sizes.values()) // 64) * 64
        groups.append((group, sizes, torch.empty(count, total, dtype=dtype, device=generator.device)))
    for k in range(count):  # one direction after the other, so that portions of them are the same directions
        for _, _, block in groups:
            fill(block[k], generator)
    for group, sizes, block in groups:
        total, offset = block.shape[1], 0
        for name, param in group.items():
            strides = torch.empty_like(param, device="meta").stride()
            tangents[name] = block.as_strided((count, *param.shape), (total, *strides), offset)
            offset += sizes[name]
    return {name: tangents[name] for name in params}


def _fill_rademacher(row: Tensor, generator: torch.Generator) -> None:
    random_signs(len(row), generator, row.dtype, out=row)


def _fill_normal(row: Tensor, generator: torch.Generator) -> None:
    """Standard normal entries; on a CPU, where torch draws them on one thread, chunk by chunk on several."""
    if row.device.type != "cpu" or len(row) <= NORMAL_CHUNK:
        row.normal_(generator=generator)
        return
    chunks = row.split(NORMAL_CHUNK)
    seeds = torch.empty(len(chunks), dtype=torch.int64).random_(generator=generator).tolist()
    left = deque(zip(chunks, seeds, strict=True))

    def draw() -> None:
        while True:
            try:
                chunk, seed = left.popleft()
            except IndexError:
                return
            chunk.normal_(generator=torch.Generator().manual_seed(seed))

    threads = torch.get_num_threads()
    others = [_helpers(threads - 1).submit(draw) for _ in range(threads - 1)]
    draw()
    for other in others:
        other.result()


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tangents")


def _scale_to_sphere(tangents: dict[str, Tensor]) -> None:
    """Scale every tangent, all parameters together, to the length sqrt(P)."""
    values = list(tangents.values())
    entries = sum(value[0].numel() for value in values)
    squares = torch.stack([value.flatten(1).double().square().sum(1) for value in values]).sum(0)
    scale = (entries / squares).sqrt()
    for value in values:
        value.mul_(scale.to(value.dtype).view(-1, *[1] * (value.dim() - 1)))
