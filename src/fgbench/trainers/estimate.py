"""A step of a forward gradient: draw tangents, take derivatives along them, weight them."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fgbench.trainers.base import LossFunction, StepStats
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.exact_stages import LastStages
from fgbench.trainers.options import ForwardGradientOptions
from fgbench.trainers.replay import OnePass
from fgbench.trainers.tangents import Tangents
from fgbench.trainers.workers import Workers

if TYPE_CHECKING:
    from fgbench.trainers.compiled import CompiledPass


class Estimate:
    """The estimate sum_k c_k v_k of one step: c_k = d_k / K, or (V V^T)^-1 d for a projection.

    Attributes:
        num_tangents: K, over all workers.
        joint: whether all tangents are held at once.
        chunk: how many tangents one pass carries.
        one_pass: makes several passes over the batch count as one for dropout and running statistics.
        exact: the gradients of parameters without a tangent, by name; filled by ``weighted_tangents``.
    """

    def __init__(
        self,
        options: ForwardGradientOptions,
        workers: Workers,
        tangents: Tangents,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        compiled: "CompiledPass | None" = None,
    ) -> None:
        self.compiled = compiled
        self.options, self.workers, self.tangents = options, workers, tangents
        self.model, self.loss_fn, self.batch, self.generator = model, loss_fn, (inputs, labels), generator
        self.num_tangents = options.tangents * workers.sets
        self.output = OutputLayer(model) if options.exact_output else None
        stages = options.exact_stages
        self.stages = None if stages is None else LastStages(model, stages)
        self.joint = options.structure == "rank1" or options.combine == "projection"
        total = options.tangents
        self.chunk = min(options.chunk or total, total)
        self.one_pass = OnePass(model, -(-total // self.chunk) + (stages is not None), inputs)
        self.exact: dict[str, Tensor] = {}
        self._derivatives: list[Tensor] = []

    def weighted_tangents(self) -> Iterator[tuple[Any, Tensor]]:
        """The estimate sum_k c_k v_k as pairs of (tangents v_k, their c_k), from passes over the batch."""
        workers, tangents = self.workers, self.tangents
        generators = workers.generators(self.generator)
        self._take_exact_stages()  # first: an SGD step changes the parameters as tangents are yielded
        for count in self._portions():
            own = tangents.sample(generators[workers.own], count)
            derivatives = self._derivatives_along(own, count)
            sets = [
                own if index == workers.own else tangents.sample(each, count)
                for index, each in enumerate(generators)
            ]
            if self.joint and workers.sets > 1:
                sets, derivatives = [tangents.join(sets)], derivatives.flatten()[None]
            with torch.autocast(self.batch[0].device.type, enabled=False):
                for drawn, numbers in zip(sets, derivatives, strict=True):
                    yield drawn, self._weights(drawn, numbers)
        self._take_exact_output()

    def _portions(self) -> list[int]:
        """Sizes of the portions in which tangents are held.

        Averaged full tangents are drawn, used and dropped chunk by chunk. A projection needs all of them at
        once, and rank-one tangents are small.
        """
        total = self.options.tangents
        size = total if self.joint else self.chunk
        return [min(size, total - first) for first in range(0, total, size)]

    def _derivatives_along(self, drawn: Any, count: int) -> Tensor:
        """d_k = <g, v_k> along ``count`` tangents, by passes of at most a chunk; shape (sets, count)."""
        parts = []
        for start in range(0, count, self.chunk):
            some = self.tangents.rows(drawn, start, start + self.chunk)
            number = min(self.chunk, count - start)
            with self.one_pass, self.output or nullcontext():
                self._last = self.tangents.derivatives(
                    self.model, self.loss_fn, *self.batch, some, number, self.output, self.compiled,
                    half=self.options.tangent_precision == "bf16",
                )  # fmt: skip
            parts.append(self._last.derivatives)
        derivatives, self._loss = self.workers.exchange(torch.cat(parts), self._last.loss)
        self._derivatives.append(derivatives)
        return derivatives

    def _weights(self, drawn: Any, derivatives: Tensor) -> Tensor:
        """The factor of each tangent: c_k = d_k / K, or (V V^T)^-1 d."""
        limit, count = self.options.clip_derivative, self.num_tangents
        if limit is not None:
            derivatives = derivatives.clamp(-limit, limit)
        if self.options.combine == "mean" or not self.tangents.params:
            return derivatives / count
        products = self.tangents.products(drawn)
        # A tiny ridge avoids deciding on the rank, which would synchronise with the device.
        ridge = 10 * torch.finfo(derivatives.dtype).eps * products.diagonal().mean()
        identity = torch.eye(count, dtype=products.dtype, device=products.device)
        solution, _ = torch.linalg.solve_ex(products + ridge * identity, derivatives.to(products.dtype))
        scale = self.tangents.num_entries / count if self.options.rescale else 1.0
        return solution.to(derivatives.dtype) * scale

    def _take_exact_stages(self) -> None:
        """Where ``exact_stages`` asks for it, the gradients of the last stages, in a pass of their own."""
        if self.stages is not None:
            with self.one_pass:
                exact, _, _ = self.stages.gradients(self.loss_fn, *self.batch)
            self._average_exact(exact)

    def _take_exact_output(self) -> None:
        """Where ``exact_output`` asks for it, the output layer's gradients, from the last pass's outputs."""
        if self.output is not None:
            last = self._last
            self._average_exact(
                self.output.gradients(self.loss_fn, last.outputs, self.batch[1], last.features)
            )

    def _average_exact(self, gradients: Mapping[str, Tensor]) -> None:
        self.exact = {name: self.workers.average(gradient) for name, gradient in gradients.items()}

    def stats(self, norm: Tensor) -> StepStats:
        """What was measured, once all tangents are used."""
        return StepStats(self._loss, self._last.outputs, torch.cat(self._derivatives, 1).flatten(), norm)
