"""The common part of functions of one's own that hand gradients on as they are."""

import torch


class IdentityBackward(torch.autograd.Function):
    """Its backward pass is the identity; a subclass has ``forward(value)`` and ``jvp(ctx, tangent)``."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient
