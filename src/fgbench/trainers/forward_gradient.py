"""Forward gradients: random directions times the directional derivatives along them."""

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from fgbench.trainers.base import LossFunction, StepStats, Trainer
from fgbench.trainers.options import ForwardGradientOptions
from fgbench.trainers.passes import (
    DropoutReplay,
    forward_mode_statistics,
    gradient_norm,
    mean_loss,
    trainable_parameters,
)
from fgbench.trainers.tangents import sample_tangents


class ForwardGradient(Trainer):
    """The mean of K random tangents, each times the directional derivative of the loss along it.

    g_hat = 1/K sum_k d_k v_k with d_k = <gradient, v_k>, taken by forward mode.

    Source: Baydin et al. (2022), algorithm 1, arXiv 2202.08587.
    """

    Options = ForwardGradientOptions

    def compute_gradients(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> StepStats:
        """Fill ``param.grad``; see :meth:`Trainer.compute_gradients`."""
        options = self.options
        with torch.no_grad():
            params = trainable_parameters(model)
            function = mean_loss(model, loss_fn, inputs, labels)
            replay = DropoutReplay(model, inputs.device)
            chunk = min(options.chunk or options.tangents, options.tangents)
            tangents, derivatives = [], []
            for start in range(0, options.tangents, chunk):
                count = min(chunk, options.tangents - start)
                drawn = sample_tangents(params, options.guess, generator, count)

                def along(tangent, function=function):
                    loss, derivative, outputs = jvp(function, (params,), (tangent,), has_aux=True)
                    return loss, derivative, outputs

                with replay, forward_mode_statistics(model, update=start == 0):
                    loss, derivative, outputs = vmap(along, out_dims=(None, 0, None), randomness="same")(drawn)
                tangents.append(drawn)
                derivatives.append(derivative)
            d = torch.cat(derivatives)
            if options.clip_derivative is not None:
                d = d.clamp(-options.clip_derivative, options.clip_derivative)
            named = dict(model.named_parameters())
            for name in params:
                v = torch.cat([each[name] for each in tangents])
                named[name].grad = torch.tensordot(d / options.tangents, v, 1)
            norm = gradient_norm(named[name].grad for name in params)
        return StepStats(loss, outputs, d, norm)
