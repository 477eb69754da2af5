"""Random directions: where a forward gradient's tangents come from."""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from fgbench.trainers.base import LossFunction
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.passes import gradient_norm, mean_loss, trainable_parameters

ALIGNMENT = 16  # entries; each parameter's tangent starts on a cache line
NORMAL_CHUNK = 2**17  # entries one generator draws; fixed, so the bits do not depend on the number of threads


class Pass(NamedTuple):
    """What one pass along several tangents gives.

    Attributes:
        loss: mean loss of the batch, shape ().
        outputs: of the model, shape (B, classes).
        features: input of the output layer, where asked for, else empty.
        derivatives: the directional derivative along each tangent, shape (K,).
    """

    loss: Tensor
    outputs: Tensor
    features: Tensor
    derivatives: Tensor


def along_all(along: Callable[[Any], Pass], drawn: Any) -> Pass:
    """One pass along all tangents together, given the pass along one; the values are computed once."""
    out_dims: Any = (None, None, None, 0)
    return Pass(*vmap(lambda one: tuple(along(one)), out_dims=out_dims, randomness="same")(drawn))


class FullTangents:
    """Tangents with an entry of their own for every parameter.

    ``drawn`` is what ``sample`` gives: a tensor per parameter with the tangents as first dimension.
    """

    def __init__(self, model: nn.Module, guess: str, exclude: Collection[str] = ()) -> None:
        self.guess = guess
        self.params = {
            name: param for name, param in trainable_parameters(model).items() if name not in exclude
        }
        self.num_entries = sum(param.numel() for param in self.params.values())

    def sample(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """``count`` tangents; asking in portions gives the same ones."""
        return sample_tangents(self.params, self.guess, generator, count)

    def join(self, sets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Several sets of tangents as one."""
        return {name: torch.cat([drawn[name] for drawn in sets]) for name in sets[0]}

    def rows(self, drawn: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
        """Some of the tangents."""
        return {name: tangent[start:stop] for name, tangent in drawn.items()}

    def derivatives(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        drawn: dict[str, Tensor],
        output: OutputLayer | None = None,
    ) -> Pass:
        """One pass along all tangents together."""
        mean = mean_loss(model, loss_fn, inputs, labels)

        def function(params: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            loss, outputs = mean(params)
            return loss, (outputs, outputs.new_empty(0) if output is None else output.input)

        def along(tangent: dict[str, Tensor]) -> Pass:
            result: Any = jvp(function, (self.params,), (tangent,), has_aux=True)
            loss, derivative, (outputs, features) = result
            return Pass(loss, outputs, features, derivative)

        if all(len(tangent) == 1 for tangent in drawn.values()):  # vmap costs time at every operation
            result = along({name: tangent[0] for name, tangent in drawn.items()})
            return result._replace(derivatives=result.derivatives[None])
        return along_all(along, drawn)

    def weighted_sum(self, drawn: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """sum_k weights_k v_k for each parameter."""
        return {name: _weighted(tangent, weights) for name, tangent in drawn.items()}

    def add_to_parameters(self, drawn: dict[str, Tensor], weights: Tensor) -> None:
        """Add sum_k weights_k v_k to the parameters in place."""
        for name, tangents in drawn.items():
            for tangent, weight in zip(tangents, weights.to(tangents.dtype), strict=True):
                self.params[name].addcmul_(tangent, weight)

    def norm(self, drawn: dict[str, Tensor], weights: Tensor) -> Tensor:
        """Euclidean norm of sum_k weights_k v_k, shape (), for a single tangent."""
        return gradient_norm(tangent[0] for tangent in drawn.values()) * weights[0].abs()

    def products(self, drawn: dict[str, Tensor]) -> Tensor:
        """<v_j, v_k> of all pairs, shape (K, K), float64."""
        rows = [tangent.reshape(len(tangent), -1) for tangent in drawn.values()]
        return torch.stack([(row @ row.T).double() for row in rows]).sum(0)


def _weighted(tangents: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights_k v_k in the memory format of each v_k."""
    if len(tangents) == 1:
        return tangents[0] * weights.to(tangents.dtype)
    total = torch.zeros_like(tangents[0])
    for tangent, weight in zip(tangents, weights.to(tangents.dtype), strict=True):
        total.addcmul_(tangent, weight)
    return total


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
    tangents = _blocks(
        params, _fill_rademacher if guess == "rademacher" else _fill_normal, generator, count or 1
    )
    if guess == "sphere":
        _scale_to_sphere(tangents)
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
    tangents = {}
    for dtype in dict.fromkeys(param.dtype for param in params.values()):
        group = {name: param for name, param in params.items() if param.dtype == dtype}
        sizes = {name: -(-param.numel() // ALIGNMENT) * ALIGNMENT for name, param in group.items()}
        total = -(-sum(sizes.values()) // 64) * 64
        block = torch.empty(count, total, dtype=dtype, device=generator.device)
        for row in block:
            fill(row, generator)
        offset = 0
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

    def draw(chunk: Tensor, seed: int) -> None:
        chunk.normal_(generator=torch.Generator().manual_seed(seed))

    list(_workers(torch.get_num_threads()).map(draw, chunks, seeds))


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tangents")


def _scale_to_sphere(tangents: dict[str, Tensor]) -> None:
    """Give every tangent, all parameters together, the length sqrt(P)."""
    values = list(tangents.values())
    entries = sum(value[0].numel() for value in values)
    squares = torch.stack([value.flatten(1).double().square().sum(1) for value in values]).sum(0)
    scale = (entries / squares).sqrt()
    for value in values:
        value.mul_(scale.to(value.dtype).view(-1, *[1] * (value.dim() - 1)))
