"""Every block of a model trained by its own loss."""

from typing import Any

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError
from fgbench.models.layers import TokenMean
from fgbench.trainers.base import LossFunction, Reference, StepStats, Trainer
from fgbench.trainers.forward_mode.refusals import refuse_hidden, refuse_lazy
from fgbench.trainers.local.auxiliary import draw_weights, last_gradient, local_gradient
from fgbench.trainers.local.blocks import Block, cut_model, example_outputs, last_names
from fgbench.trainers.options import LocalLossOptions
from fgbench.trainers.passes import accumulating, begin_step, gradient_norm, sample_losses
from fgbench.trainers.reference import gradient_by_blocks, reference_of_gradient

POOLED_FEATURES = 2048
"""Most features to which a block's feature maps are pooled, for the head ``linear``; as in the source."""


class LocalLoss(Trainer):
    """Each of L blocks gets the gradient of its own loss, and passes on outputs without a graph.

    With y_l = f_l(stop(y_(l-1))) the outputs of block l, h_l its head and c the loss function, the step of
    its weights and of its head's is that of

        mean_i c(h_l(y_l), label_i),     and for the last block of the model's own loss.

    The head is trained along with the block, and has no other use. ``head``:

    * ``linear``: feature maps are averaged over windows, as large as needed for at most 2048 features, tokens
      over all of them; then a linear layer.
    * ``projection``: a linear layer without bias on all of the block's outputs, G = y M^T.

    Bias: the gradient of another loss, not of the model's, in all blocks but the last. Variance: none, given
    the batch. Cost: about 3 forward passes, less the gradients between blocks, plus the
    heads; nothing is drawn. Used backwards: a block's own loss; no graph is deeper than a block and its head.

    Source: ``linear``: the prediction loss of Noekland and Eidnes (2019), arXiv 1901.06656, without their
    similarity loss; ``projection``: Gong et al. (2025), "Mono-Forward", arXiv 2501.09238. Differences: both
    work layer by layer, which matches the stages of ``fc`` and ``cnn`` but not those of deeper models; and
    the last layer is here the model's own output layer.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))
        >>> inputs, labels = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> trainer = LocalLoss()
        >>> trainer.set_up(model, inputs, 2, torch.Generator().manual_seed(0))
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> stats = trainer.compute_gradients(model, loss_fn, inputs, labels, torch.Generator())
        >>> [tuple(param.shape) for param in trainer.parameters()]
        [(2, 4), (2,)]
    """

    Options = LocalLossOptions

    def __init__(self, options: Any = None, **changes: Any) -> None:
        super().__init__(options, **changes)
        self.heads = nn.ModuleList()

    def set_up(self, model: nn.Module, inputs: Tensor, num_classes: int, generator: torch.Generator) -> None:
        """Build the heads; see :meth:`Trainer.set_up`."""
        refuse_lazy(model)
        hidden = cut_model(model, self.options.blocks)[:-1]
        examples = example_outputs(model, hidden, inputs)
        kind = self.options.head
        self.heads = nn.ModuleList(build_head(kind, each.shape[1:], num_classes) for each in examples)
        draw_weights(self.heads, generator)
        for head, example in zip(self.heads, examples, strict=True):
            head.to(example.device, example.dtype)

    def exact_names(self, model: nn.Module) -> set[str]:
        """The last block's; see :meth:`Trainer.exact_names`."""
        return last_names(model, self.options.blocks) & self.trained_names(model)

    def parameters(self) -> list[nn.Parameter]:
        """The heads' parameters."""
        return list(self.heads.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The heads' state."""
        return self.heads.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.heads.load_state_dict(state)

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
        """Fill ``param.grad``, the heads' too; see :meth:`Trainer.compute_gradients`.

        Raises:
            ConfigError: the model cannot be cut into blocks, or ``set_up`` has not been called with it.
        """
        begin_step(model, labels, accumulate=accumulate)
        refuse_hidden(model, model.parameters())
        *hidden, last = (Block(model, part) for part in cut_model(model, self.options.blocks))
        if len(self.heads) != len(hidden):
            raise ConfigError(f"{self.options.name}: call set_up with this model before the first step")

        def losses(outputs: Tensor) -> Tensor:
            return sample_losses(loss_fn, outputs, labels)

        value = inputs
        with accumulating([*model.parameters(), *self.parameters()], accumulate):
            for block, head in zip(hidden, self.heads, strict=True):
                value, gradient = local_gradient(block, head, value, losses)
                block.fill(gradient)
            loss, outputs = last_gradient(last, value, losses)
        norm = gradient_norm(param.grad for param in model.parameters() if param.grad is not None)
        return StepStats(loss, outputs, loss.new_empty(0), norm)

    def reference(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Reference:
        """Backprop from every block's own loss; see :meth:`Trainer.reference`."""
        *hidden, last = cut_model(model, self.options.blocks)
        blocks = [*zip(hidden, self.heads, strict=True), (last, nn.Identity())]
        return reference_of_gradient(gradient_by_blocks(model, blocks, loss_fn, inputs, labels))


def build_head(kind: str, shape: torch.Size, num_classes: int) -> nn.Module:
    """The classifier on a block's outputs.

    Args:
        kind: ``linear`` or ``projection``.
        shape: of one sample: (C, H, W), (tokens, features) or (features,).
        num_classes: number of outputs.
    """
    if kind == "projection":
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), num_classes, bias=False))
    if len(shape) == 2:
        return nn.Sequential(TokenMean(), nn.Linear(shape[1], num_classes))
    if len(shape) == 1:
        return nn.Linear(shape[0], num_classes)
    channels, height, width = shape
    window = 1
    while (
        window < max(height, width)
        and channels * -(-height // window) * -(-width // window) > POOLED_FEATURES
    ):
        window += 1
    rows, columns = -(-height // window), -(-width // window)
    pool = nn.AvgPool2d(window, ceil_mode=True)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(channels * rows * columns, num_classes))
