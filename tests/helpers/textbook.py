"""Forward mode as textbooks write it, by ``torch.func``: what passes of the project are compared with."""

from contextlib import contextmanager

from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


def mean_loss(model, loss_fn, inputs, labels):
    """The batch's mean loss as a function of the parameters, ``params -> (loss, outputs)``."""

    def function(params):
        outputs = functional_call(model, params, (inputs,))
        return loss_fn(outputs, labels).mean(), outputs

    return function


@contextmanager
def counters_hidden(model):
    """Let BatchNorm run under ``torch.func.jvp``, which refuses ``num_batches_tracked += 1`` alone."""
    kept = [
        (module, module.num_batches_tracked)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.num_batches_tracked is not None
    ]
    for module, _ in kept:
        module.num_batches_tracked = None
    yield
    for module, counter in kept:
        module.num_batches_tracked = counter
        counter += 1
