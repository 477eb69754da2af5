"""Forward gradients: random directions times the directional derivatives along them."""

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.options import ForwardGradientOptions
from fgbench.trainers.passes import DropoutReplay, forward_mode_statistics, gradient_norm
from fgbench.trainers.rank_one import RankOneTangents
from fgbench.trainers.reference import (
    mean_of_tangents,
    projection_on_tangents,
    reference_of_tangents,
    true_gradient,
)
from fgbench.trainers.tangents import FullTangents, Pass, Tangents
from fgbench.trainers.workers import Workers


class ForwardGradient(Trainer):
    """The mean of K random tangents, each times the directional derivative of the loss along it.

    g_hat = 1/K sum_k d_k v_k with d_k = <g, v_k>, all d_k from one vectorised forward-mode pass. With
    ``combine="projection"`` it is instead the gradient's projection on the span of the tangents,
    g_hat = sum_k c_k v_k with (V V^T) c = d.

    Bias: none with ``mean``, as long as the derivative is not clipped. A projection has mean (K/P) g for
    ``normal`` and ``sphere``; ``rescale`` multiplies it by P/K. Variance: in total (P+1)|g|^2 / K for
    ``normal``, (P-1)|g|^2 / K for ``rademacher``, rank-one or full, and for ``sphere``; (P/K - 1)|g|^2 for a
    rescaled projection. Cost in forward passes: 1 + 2K; 1 + K with ``structure="rank1"``.

    Differs from the paper in taking any K (the paper: 1) and other guesses than ``normal``.

    Source: Baydin et al. (2022), algorithm 1, arXiv 2202.08587; projection: Fluegel et al. (2025), arXiv
    2410.17764.

    Example:
        >>> model, inputs, labels = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> loss_fn, generator = nn.CrossEntropyLoss(reduction="none"), torch.Generator().manual_seed(0)
        >>> stats = ForwardGradient(tangents=4).compute_gradients(model, loss_fn, inputs, labels, generator)
        >>> model.weight.grad.shape, stats.directional_derivatives.shape
        (torch.Size([2, 3]), torch.Size([4]))
    """

    Options = ForwardGradientOptions

    def __init__(self, options: Any = None, **changes: Any) -> None:
        super().__init__(options, **changes)
        self.workers = Workers()
        self._tangents: tuple[weakref.ref[nn.Module], Tangents] | None = None

    def exact_names(self, model: nn.Module) -> set[str]:
        """The output layer's, with ``exact_output``; see :meth:`Trainer.exact_names`."""
        return OutputLayer(model).names if self.options.exact_output else set()

    @torch.no_grad()
    def compute_gradients(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> StepStats:
        """Fill ``param.grad``; see :meth:`Trainer.compute_gradients`."""
        model.zero_grad(set_to_none=True)  # what is overwritten anyway need not be held through the pass
        gradients: dict[str, Tensor] = {}

        def accumulate(tangents: Tangents, drawn: Any, weights: Tensor) -> None:
            for name, part in tangents.weighted_sum(drawn, weights).items():
                gradients[name] = gradients[name].add_(part) if name in gradients else part

        result, exact = self._estimate(model, loss_fn, inputs, labels, generator, accumulate)
        gradients |= exact
        for name, param in model.named_parameters():
            if name in gradients:
                param.grad = gradients[name]
        return StepStats(result.loss, result.outputs, result.derivatives, gradient_norm(gradients.values()))

    @torch.no_grad()
    def sgd_step(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        lr: float,
    ) -> StepStats:
        """Take a step of plain SGD, where possible without forming a gradient.

        Every layer of a rank-one tangent is updated from its factors; a single full tangent is added as it
        is.
        """
        if self.options.structure == "full" and self._num_tangents > 1:
            stats = self.compute_gradients(model, loss_fn, inputs, labels, generator)
            for param in model.parameters():
                if param.requires_grad and param.grad is not None:
                    param.add_(param.grad, alpha=-lr)
            return stats
        norms = []

        def update(tangents: Tangents, drawn: Any, weights: Tensor) -> None:
            norms.append(tangents.norm(drawn, weights))
            tangents.add_to_parameters(drawn, weights * -lr)

        result, exact = self._estimate(model, loss_fn, inputs, labels, generator, update)
        for name, gradient in exact.items():
            norms.append(torch.linalg.vector_norm(gradient))
            model.get_parameter(name).add_(gradient, alpha=-lr)
        norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
        return StepStats(result.loss, result.outputs, result.derivatives, norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """<g, v_k> with the tangents drawn again; see :meth:`Trainer.reference`."""
        options = self.options
        exact = OutputLayer(model).names if options.exact_output else ()
        source = self.tangents_for(model, inputs, exact)
        drawn = [
            source.dense(source.sample(each, options.tangents)) for each in self.workers.generators(generator)
        ]
        tangents = {name: torch.cat([each[name] for each in drawn]) for name in source.params}

        def estimate(derivatives: Tensor, tangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
            limit = options.clip_derivative
            derivatives = derivatives if limit is None else derivatives.clamp(-limit, limit)
            if options.combine == "mean":
                return mean_of_tangents(derivatives, tangents)
            return projection_on_tangents(derivatives, tangents, options.rescale)

        gradient = true_gradient(model, loss_fn, inputs, labels)
        gradient = {name: self.workers.average(part) for name, part in gradient.items()}
        return reference_of_tangents(gradient, tangents, estimate)

    def _estimate(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        take: Callable[[Tangents, Any, Tensor], None],
    ) -> tuple[Pass, dict[str, Tensor]]:
        """Give ``take`` the estimate as tangents and weights; returns the output layer's exact gradients.

        Averaged full tangents are drawn, used and dropped chunk by chunk. A projection needs all of them at
        once, and rank-one ones are small.
        """
        options = self.options
        total, chunk = options.tangents, min(options.chunk or options.tangents, options.tangents)
        with OutputLayer(model) if options.exact_output else nullcontext() as output:
            tangents = self.tangents_for(model, inputs, () if output is None else output.names)
            together = options.structure == "rank1" or options.combine == "projection"
            at_once = total if together else chunk
            replay = DropoutReplay(model, inputs.device) if chunk < total else nullcontext()
            results: list[Pass] = []
            everyones: list[Tensor] = []
            generators = self.workers.generators(generator)
            for first in range(0, total, at_once):
                count = min(at_once, total - first)
                drawn = tangents.sample(generators[self.workers.own], count)
                done = len(results)
                for start in range(0, count, chunk):
                    part = tangents.rows(drawn, start, start + chunk)
                    with replay, forward_mode_statistics(model, update=not results):
                        results.append(tangents.derivatives(model, loss_fn, inputs, labels, part, output))
                measured = torch.cat([each.derivatives for each in results[done:]])
                derivatives, loss = self.workers.exchange(measured, results[-1].loss)
                everyones.append(derivatives)
                sets: Iterable[Any] = (
                    drawn if index == self.workers.own else tangents.sample(each, count)
                    for index, each in enumerate(generators)
                )
                if together and self.workers.sets > 1:
                    sets, derivatives = [tangents.join(list(sets))], derivatives.flatten()[None]
                with torch.autocast(inputs.device.type, enabled=False):
                    for each, numbers in zip(sets, derivatives, strict=True):
                        take(tangents, each, self._weights(tangents, each, numbers))
            result = results[-1]._replace(derivatives=torch.cat(everyones, 1).flatten(), loss=loss)
            exact = {}
            if output is not None:
                exact = output.gradients(loss_fn, result.outputs, labels, result.features)
                exact = {name: self.workers.average(gradient) for name, gradient in exact.items()}
        return result, exact

    def _weights(self, tangents: Tangents, drawn: Any, derivatives: Tensor) -> Tensor:
        """What each tangent is multiplied with."""
        limit, count = self.options.clip_derivative, self._num_tangents
        if limit is not None:
            derivatives = derivatives.clamp(-limit, limit)
        if self.options.combine == "mean":
            return derivatives / count
        products = tangents.products(drawn)
        # A trace of ridge stands in for a decision on the rank, which would wait for the device.
        ridge = 10 * torch.finfo(derivatives.dtype).eps * products.diagonal().mean()
        identity = torch.eye(count, dtype=products.dtype, device=products.device)
        solution, _ = torch.linalg.solve_ex(products + ridge * identity, derivatives.to(products.dtype))
        scale = tangents.num_entries / count if self.options.rescale else 1.0
        return solution.to(derivatives.dtype) * scale

    @property
    def _num_tangents(self) -> int:
        """How many tangents a step averages over, those of all workers together."""
        return self.options.tangents * self.workers.sets

    def tangents_for(self, model: nn.Module, inputs: Tensor, exclude: Collection[str] = ()) -> Tangents:
        """The tangents of a model's trainable parameters, those of ``exclude`` left out."""
        if self._tangents is None or self._tangents[0]() is not model or not self._tangents[1].fits(model):
            if self.options.structure == "rank1":
                tangents: Tangents = RankOneTangents(model, inputs, exclude)
            else:
                tangents = FullTangents(model, inputs, self.options.guess, exclude)
            self._tangents = weakref.ref(model), tangents
        return self._tangents[1]
