"""Forward gradients: random directions times the directional derivatives along them."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.estimate import Estimate
from fgbench.trainers.exact_output import OutputLayer
from fgbench.trainers.exact_stages import LastStages
from fgbench.trainers.options import ForwardGradientOptions
from fgbench.trainers.passes import begin_step, write_gradients
from fgbench.trainers.rank_one import RankOneTangents
from fgbench.trainers.reference import (
    mean_of_tangents,
    projection_on_tangents,
    reference_of_tangents,
    true_gradient,
)
from fgbench.trainers.tangents import FullTangents, Tangents
from fgbench.trainers.workers import Sharing


class ForwardGradient(Trainer):
    """The mean of K random tangents, each times the directional derivative of the loss along it.

    g_hat = 1/K sum_k d_k v_k with d_k = <g, v_k>, all d_k from one vectorised forward-mode pass. With
    ``combine="projection"`` it is instead the gradient's projection on the span of the tangents,
    g_hat = sum_k c_k v_k with (V V^T) c = d.

    Bias: none with ``mean``, as long as the derivative is not clipped. A projection has mean (K/P) g for
    ``normal`` and ``sphere``; ``rescale`` multiplies it by P/K. Variance: in total (P+1)|g|^2 / K for
    ``normal``, (P-1)|g|^2 / K for ``rademacher``, rank-one or full, and for ``sphere``; (P/K - 1)|g|^2 for a
    rescaled projection. Cost in forward passes: 1 + 2K; 1 + K with ``structure="rank1"``.

    ``exact_stages`` n gives the last n top-level stages of an ``nn.Sequential`` their exact gradients, by
    backprop that ends before them (ElasticZO, arXiv 2501.04287, does so with zeroth-order before them): one
    more pass, whose graph covers those stages only, and P counts the parameters before them.

    With ``tangent_precision="bf16"`` values and update are in float32, tangents in bfloat16: d is then off by
    0.3 % (fc) to 1.5 % (resnet18) of its root mean square |g|, far below its own noise.

    After ``compile_steps`` (``compile: true``) the pass with its tangents is one compiled graph.

    Differs from the paper in allowing any K (the paper: 1) and other guesses than ``normal``.

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
    sharing = Sharing.DERIVATIVES

    def exact_names(self, model: nn.Module) -> set[str]:
        """The output layer's, with ``exact_output``; see :meth:`Trainer.exact_names`."""
        if self.options.exact_stages is not None:
            return LastStages(model, self.options.exact_stages).names
        return OutputLayer(model).names if self.options.exact_output else set()

    @torch.no_grad()
    def compute_gradients(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        *,
        accumulate: bool = False,
    ) -> StepStats:
        """Fill ``param.grad`` with sum_k c_k v_k; see :meth:`Trainer.compute_gradients`."""
        begin_step(model, labels, accumulate=accumulate)
        estimate = self._begin(model, loss_fn, inputs, labels, generator)
        gradients: dict[str, Tensor] = {}
        for drawn, weights in estimate.weighted_tangents():
            for name, part in estimate.tangents.weighted_sum(drawn, weights).items():
                gradients[name] = gradients[name].add_(part) if name in gradients else part
        gradients |= estimate.exact
        by_parameter: dict[Tensor, Tensor] = {
            model.get_parameter(name): gradient for name, gradient in gradients.items()
        }
        return estimate.stats(write_gradients(by_parameter, accumulate=accumulate))

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

        Every layer of a rank-one tangent is updated from its factors; a single full tangent is added
        directly.
        """
        if self.options.structure == "full" and self.num_tangents > 1:
            stats = self.compute_gradients(model, loss_fn, inputs, labels, generator)
            for param in model.parameters():
                if param.requires_grad and param.grad is not None:
                    param.add_(param.grad, alpha=-lr)
            return stats
        begin_step(model, labels)
        estimate = self._begin(model, loss_fn, inputs, labels, generator)
        norms = []
        for drawn, weights in estimate.weighted_tangents():
            norms.append(estimate.tangents.norm(drawn, weights))
            estimate.tangents.add_to_parameters(drawn, weights * -lr)
        for name, gradient in estimate.exact.items():
            norms.append(torch.linalg.vector_norm(gradient))
            model.get_parameter(name).add_(gradient, alpha=-lr)
        return estimate.stats(torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0])

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
        exact = self.exact_names(model)
        source = self.tangents_for(model, exact)
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
        none = None if tangents else torch.zeros(self.num_tangents, device=inputs.device)
        return reference_of_tangents(gradient, tangents, estimate, none)

    def mean_gradient(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor] | None:
        """Backprop's gradient, where the estimate is unbiased; see :meth:`Trainer.mean_gradient`."""
        options = self.options
        if options.combine != "mean" or options.clip_derivative is not None:
            return None
        return true_gradient(model, loss_fn, inputs, labels)

    def tangents_for(self, model: nn.Module, exclude: Collection[str] = ()) -> Tangents:
        """The tangents of a model's trainable parameters except those in ``exclude``."""
        if self.options.structure == "rank1":
            return RankOneTangents(model, exclude)
        return FullTangents(model, self.options.guess, exclude)

    @property
    def num_tangents(self) -> int:
        """How many tangents a step averages over, counting all workers."""
        return self.options.tangents * self.workers.sets

    def _begin(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Estimate:
        tangents = self.tangents_for(model, self.exact_names(model))
        if self.options.tangent_precision == "bf16":
            _require_float32(tangents.params, inputs.device)
        return Estimate(
            *(self.options, self.workers, tangents, model, loss_fn, inputs, labels, generator), self.compiled
        )


def _require_float32(params: Mapping[str, Tensor], device: torch.device) -> None:
    """Refuse what has no float32 values to go with bfloat16 tangents."""
    if torch.is_autocast_enabled(device.type):
        raise ConfigError(
            "tangent_precision: bf16 does not go with autocast, which has tangents in its dtype already"
        )
    for name, param in params.items():
        if param.dtype != torch.float32:
            raise ConfigError(
                f"tangent_precision: bf16 needs parameters in float32; {name!r} is {param.dtype}"
            )
