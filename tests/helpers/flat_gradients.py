"""The gradient that a trainer leaves, as one vector."""

import torch
from torch import nn

LOSS = nn.CrossEntropyLoss(reduction="none")


def flat_gradient(trainer, model, inputs, labels, generator=None):
    """The ``param.grad`` of all parameters after a step, shape (P,)."""
    trainer.compute_gradients(model, LOSS, inputs, labels, generator)
    return torch.cat([param.grad.flatten() for param in model.parameters()])
