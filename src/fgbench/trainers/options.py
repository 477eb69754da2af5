"""Option blocks of the trainers."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fgbench.options import Backwards, TrainerOptions


class BackpropOptions(TrainerOptions):
    """Options of ``backprop``."""

    name: str = "backprop"
    recompute: bool = False
    """Drop activations and compute them again in the backward pass, stage by stage."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.EVERYTHING

    @property
    def can_compile(self) -> bool:
        """See :class:`TrainerOptions`."""
        return not self.recompute


class FrozenOptions(TrainerOptions):
    """Options of ``frozen``."""

    name: str = "frozen"
    exact_stages: PositiveInt | None = None
    """Train this many last stages of the model, by backprop that ends there; null: the output layer."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.NOTHING if self.exact_stages is None else Backwards.STAGES


class ForwardOptions(TrainerOptions):
    """Options every forward trainer has."""

    exact_output: bool = False
    """Give the last linear layer its gradient in closed form from the loss: no chain through the network."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.NOTHING


class TangentOptions(ForwardOptions):
    """Options of trainers that draw random tangents."""

    tangents: PositiveInt = 1
    """K, how many random directions a step averages over."""
    guess: Literal["normal", "rademacher", "sphere"] = "normal"
    """Where a tangent comes from; every one has zero mean and unit variance per entry."""


class ForwardGradientOptions(TangentOptions):
    """Options of ``forward-gradient``."""

    name: str = "forward-gradient"
    structure: Literal["full", "rank1"] = "full"
    """`rank1`: outer products of +-1 vectors (needs `guess: rademacher`): same variance, far cheaper."""
    chunk: PositiveInt | None = None
    """How many tangents one vectorised pass takes at most; bounds memory."""
    combine: Literal["mean", "projection"] = "mean"
    """`projection`: the gradient projected on the span of the tangents; biased by K/P."""
    rescale: bool = False
    """Multiply a projection by P/K, which makes it unbiased for `normal` and `sphere`."""
    clip_derivative: PositiveFloat | None = None
    """Largest magnitude of a directional derivative; larger ones are cut to it (biased)."""
    parallel: Literal["data", "tangents"] = "data"
    """Under torchrun: `data` splits the batch; `tangents` splits the tangents, each worker its own."""

    exact_stages: PositiveInt | None = None
    """This many last stages of the model get exact gradients, by backprop that ends there."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.NOTHING if self.exact_stages is None else Backwards.STAGES

    @property
    def can_compile(self) -> bool:
        """See :class:`TrainerOptions`."""
        return self.exact_stages is None and not self.exact_output

    @model_validator(mode="after")
    def _check(self) -> "ForwardGradientOptions":
        if self.structure == "rank1" and self.guess != "rademacher":
            raise ValueError(
                "structure: rank1 needs guess: rademacher (other guesses lose variance when rank-one)"
            )
        if self.exact_stages is not None and self.exact_output:
            raise ValueError(
                "exact_output: true does not go with exact_stages, which has the output layer in it"
            )
        if self.rescale and self.combine != "projection":
            raise ValueError("rescale: true needs combine: projection")
        return self


class ActivityForwardGradientOptions(ForwardOptions):
    """Options of ``activity-forward-gradient``."""

    name: str = "activity-forward-gradient"
    tangents: PositiveInt = 1
    """K, how many perturbations of the activations a step averages over."""
    guess: Literal["rademacher", "normal", "next-weights"] = "rademacher"
    """Where perturbations come from; `next-weights`: signs, in the range of the next transposed weights."""
    mask: bool = True
    """Perturb only where the ReLU that follows lets the perturbation through: same mean, less noise."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.WEIGHTS if self.guess == "next-weights" else Backwards.NOTHING

    @property
    def needs_independent_samples(self) -> bool:
        """See :class:`TrainerOptions`."""
        return True

    @model_validator(mode="after")
    def _check(self) -> "ActivityForwardGradientOptions":
        if self.guess == "next-weights" and not self.mask:
            raise ValueError("guess: next-weights needs mask: true")
        return self


class GuidedForwardGradientOptions(ForwardOptions):
    """Options of ``guided-forward-gradient``."""

    name: str = "guided-forward-gradient"
    guess: Literal["local", "ntk", "fixed-ntk", "normal", "rademacher"] = "local"
    """Where the direction comes from: the gradient of an auxiliary loss, or chance."""
    target: Literal["global", "local"] = "global"
    """Whose derivative is taken along the guess: the network's loss or the block's auxiliary loss."""
    space: Literal["weights", "activations"] = "weights"
    """What is perturbed."""
    blocks: PositiveInt | None = None
    """How many blocks the model is cut into; the model's stages when null (ResNet-18: 8 or 16)."""
    auxiliary: Literal["cnn", "mlp", "linear"] = "mlp"
    """The kind of auxiliary network each block but the last has."""
    hidden: PositiveInt = 32
    """Hidden channels or units of the auxiliary networks."""
    granularity: Literal["block", "tensor"] = "block"
    """Project on the whole block's guess, or on each parameter tensor's by itself."""
    chunk: PositiveInt | None = None
    """How many tangents are pushed forward at once at most; bounds memory."""

    @property
    def uses_backwards(self) -> Backwards:
        """With random guesses of weights the last block alone goes backwards, by the network's own loss."""
        random = self.guess in ("normal", "rademacher")
        if random and (self.space, self.target) == ("weights", "global"):
            return Backwards.STAGES
        return Backwards.BLOCKS

    @property
    def needs_independent_samples(self) -> bool:
        """In the space of activations, unless both target and guess are local."""
        local_learning = self.target == "local" and self.guess not in ("normal", "rademacher")
        return self.space == "activations" and not local_learning


class FeedbackForwardGradientOptions(ForwardOptions):
    """Options of ``feedback-forward-gradient``."""

    name: str = "feedback-forward-gradient"
    learning: Literal["regression", "average"] = "regression"
    """How the matrices learn: from what they leave unexplained of the outputs' change, or as averages."""
    rate: float = Field(default=0.3, gt=0.0, lt=2.0)
    """Step of `regression`, in parts of the one that explains a batch's outputs wholly."""
    feedback_momentum: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Momentum of `average`, over the directional derivatives of the outputs."""
    grid: PositiveInt | None = 7
    """Patches a convolution's output is cut into each way, each with one column of the matrix; null: none."""
    correction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the unbiased correction by the loss's own derivative: 0 trusts the matrices, 1 is unbiased."""
    combine: Literal["direction", "projection"] = "direction"
    """`direction`: the direction as it is; `projection`: the gradient projected on it (a pass more)."""

    @property
    def needs_independent_samples(self) -> bool:
        """With a correction, which is taken sample by sample."""
        return bool(self.correction)

    @model_validator(mode="after")
    def _check(self) -> "FeedbackForwardGradientOptions":
        if self.correction and self.combine == "projection":
            raise ValueError("correction goes with combine: direction")
        if self.correction and self.grid is not None:
            raise ValueError("correction needs grid: null (of shared entries it would not be unbiased)")
        return self


class FeedbackAlignmentOptions(TrainerOptions):
    """Options of ``feedback-alignment``."""

    name: str = "feedback-alignment"
    feedback: Literal["random", "sign", "direct"] = "random"
    """What errors go back through: random matrices, the weights' signs, or a matrix from outputs to layer."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.WEIGHTS if self.feedback == "sign" else Backwards.MATRICES


class LocalForwardGradientOptions(TrainerOptions):
    """Options of ``local-forward-gradient``."""

    name: str = "local-forward-gradient"
    guess: Literal["normal", "rademacher"] = "normal"
    """Where the perturbations come from."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.NOTHING


class LocalLossOptions(TrainerOptions):
    """Options of ``local-loss``."""

    name: str = "local-loss"
    head: Literal["linear", "projection"] = "linear"
    """A block's loss: through a linear layer on averages of its outputs, or a projection of all of them."""
    blocks: PositiveInt | None = None
    """How many blocks the model is cut into; the model's stages when null (ResNet-18: 8 or 16)."""

    @property
    def uses_backwards(self) -> Backwards:
        """See :class:`TrainerOptions`."""
        return Backwards.BLOCKS


class ZerothOrderOptions(TangentOptions):
    """Options of ``zeroth-order``."""

    name: str = "zeroth-order"
    epsilon: PositiveFloat = 1e-3
    """Half the distance between the two points of the central difference."""
    parallel: Literal["data", "tangents"] = "data"
    """Under torchrun: `data` splits the batch; `tangents` splits the tangents, each worker its own."""


__all__ = [
    "ActivityForwardGradientOptions",
    "BackpropOptions",
    "FeedbackAlignmentOptions",
    "FeedbackForwardGradientOptions",
    "ForwardGradientOptions",
    "FrozenOptions",
    "GuidedForwardGradientOptions",
    "LocalForwardGradientOptions",
    "LocalLossOptions",
    "ZerothOrderOptions",
]
