"""Option blocks of the trainers."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import override

from fgbench.options import Backwards, TrainerOptions


class BackpropOptions(TrainerOptions):
    """Options of ``backprop``."""

    name: str = "backprop"
    recompute: bool = False
    """Drop activations and recompute them in the backward pass, stage by stage."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.EVERYTHING

    @property
    @override
    def can_compile(self) -> bool:
        return not self.recompute


class FrozenOptions(TrainerOptions):
    """Options of ``frozen``."""

    name: str = "frozen"
    exact_stages: PositiveInt | None = None
    """Number of last stages of the model to train, by backprop through these alone; null: the output
    layer."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.NOTHING if self.exact_stages is None else Backwards.STAGES


class ForwardOptions(TrainerOptions):
    """Options every forward trainer has."""

    exact_output: bool = False
    """Compute the last linear layer's gradient in closed form from the loss; no backward pass is needed."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.NOTHING


class TangentOptions(ForwardOptions):
    """Options of trainers that draw random tangents."""

    tangents: PositiveInt = 1
    """K, the number of random directions a step averages over."""
    guess: Literal["normal", "rademacher", "sphere"] = "normal"
    """Distribution of the tangents; all have zero mean and unit variance per entry."""


def _check_structure(options: "ForwardGradientOptions | ZerothOrderOptions") -> None:
    if options.structure == "rank1" and options.guess != "rademacher":
        raise ValueError(
            "structure: rank1 needs guess: rademacher (other guesses lose variance when rank-one)"
        )


class ForwardGradientOptions(TangentOptions):
    """Options of ``forward-gradient``."""

    name: str = "forward-gradient"
    structure: Literal["full", "rank1"] = "full"
    """`rank1`: outer products of +-1 vectors (needs `guess: rademacher`): same variance, far cheaper."""
    chunk: PositiveInt | None = None
    """Largest number of tangents in one vectorised pass; limits memory."""
    combine: Literal["mean", "projection"] = "mean"
    """`projection`: the gradient projected on the span of the tangents; biased by K/P."""
    rescale: bool = False
    """Multiply a projection by P/K, which makes it unbiased for `normal` and `sphere`."""
    clip_derivative: PositiveFloat | None = None
    """Largest magnitude of a directional derivative; larger ones are clipped to it (biased)."""
    parallel: Literal["data", "tangents"] = "data"
    """Under torchrun: `data` splits the batch; with `tangents` each worker has its own tangents."""

    exact_stages: PositiveInt | None = None
    """Number of last stages of the model that get exact gradients, by backprop through these alone."""
    tangent_precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: tangents in bfloat16, values and update in float32; pays where hardware multiplies those."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.NOTHING if self.exact_stages is None else Backwards.STAGES

    @property
    @override
    def can_compile(self) -> bool:
        return self.exact_stages is None and not self.exact_output

    @model_validator(mode="after")
    def _check(self) -> "ForwardGradientOptions":
        _check_structure(self)
        if self.exact_stages is not None and self.exact_output:
            raise ValueError(
                "exact_output: true does not go with exact_stages, which includes the output layer"
            )
        if self.rescale and self.combine != "projection":
            raise ValueError("rescale: true needs combine: projection")
        return self


class ActivityForwardGradientOptions(ForwardOptions):
    """Options of ``activity-forward-gradient``."""

    name: str = "activity-forward-gradient"
    tangents: PositiveInt = 1
    """K, the number of perturbations of the activations a step averages over."""
    guess: Literal["rademacher", "normal", "next-weights"] = "rademacher"
    """Distribution of perturbations; `next-weights`: signs, projected on the range of the next layer's
    transposed weights."""
    mask: bool = True
    """Perturb only where the following ReLU is active: same mean, less noise."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.WEIGHTS if self.guess == "next-weights" else Backwards.NOTHING

    @property
    @override
    def needs_independent_samples(self) -> bool:
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
    """Where the direction comes from: the gradient of an auxiliary loss, or a random draw."""
    target: Literal["global", "local"] = "global"
    """Which loss is differentiated along the guess: the network's or the block's auxiliary loss."""
    space: Literal["weights", "activations"] = "weights"
    """What is perturbed."""
    blocks: PositiveInt | None = None
    """Number of blocks the model is cut into; the model's stages when null (ResNet-18: 8 or 16)."""
    auxiliary: Literal["cnn", "mlp", "linear"] = "mlp"
    """The kind of auxiliary network of each block but the last."""
    hidden: PositiveInt = 32
    """Hidden channels or units of the auxiliary networks."""
    granularity: Literal["block", "tensor"] = "block"
    """Project on the whole block's guess, or on each parameter tensor's separately."""
    chunk: PositiveInt | None = None
    """Largest number of tangents pushed forward at once; limits memory."""

    @property
    def uses_backwards(self) -> Backwards:
        """With random guesses of weights only the last block has a backward pass, from the network's loss."""
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
    """How the matrices learn: by regression on the unexplained change of the outputs, or as averages."""
    rate: float = Field(default=0.3, gt=0.0, lt=2.0)
    """Step size of `regression`, relative to the one that explains a batch's outputs completely."""
    feedback_momentum: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Momentum of `average`, over the directional derivatives of the outputs."""
    grid: PositiveInt | None = 7
    """Number of patches a convolution's output is cut into each way, each with one column of the matrix;
    null: none."""
    correction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the unbiased correction by the loss's own derivative: 0 trusts the matrices, 1 is unbiased."""
    combine: Literal["direction", "projection"] = "direction"
    """`direction`: the direction unchanged; `projection`: the gradient projected on it (one more pass)."""

    @property
    def needs_independent_samples(self) -> bool:
        """With a correction, which is taken sample by sample."""
        return bool(self.correction)

    @model_validator(mode="after")
    def _check(self) -> "FeedbackForwardGradientOptions":
        if self.correction and self.combine == "projection":
            raise ValueError("correction goes with combine: direction")
        if self.correction and self.grid is not None:
            raise ValueError("correction needs grid: null (with shared entries it would not be unbiased)")
        return self


class FeedbackAlignmentOptions(TrainerOptions):
    """Options of ``feedback-alignment``."""

    name: str = "feedback-alignment"
    feedback: Literal["random", "sign", "direct"] = "random"
    """What errors are sent back through: random matrices, the weights' signs, or a matrix from the outputs
    to each layer."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.WEIGHTS if self.feedback == "sign" else Backwards.MATRICES


class LocalForwardGradientOptions(TrainerOptions):
    """Options of ``local-forward-gradient``."""

    name: str = "local-forward-gradient"
    losses: Literal["local", "global"] = "local"
    """One for each block, patch and group of channels, or the model's loss alone."""
    guess: Literal["normal", "rademacher"] = "normal"
    """Distribution of the perturbations."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.NOTHING


class LocalLossOptions(TrainerOptions):
    """Options of ``local-loss``."""

    name: str = "local-loss"
    head: Literal["linear", "projection"] = "linear"
    """A block's loss: from a linear layer on averages of its outputs, or from a projection of all of them."""
    blocks: PositiveInt | None = None
    """Number of blocks the model is cut into; the model's stages when null (ResNet-18: 8 or 16)."""

    @property
    @override
    def uses_backwards(self) -> Backwards:
        return Backwards.BLOCKS


class ZerothOrderOptions(TangentOptions):
    """Options of ``zeroth-order``."""

    name: str = "zeroth-order"
    structure: Literal["full", "rank1"] = "full"
    """`rank1`: outer products of +-1 vectors (needs `guess: rademacher`): no copy of a weight is shifted."""
    epsilon: PositiveFloat = 1e-3
    """Half the distance between the two points of the central difference."""
    parallel: Literal["data", "tangents"] = "data"
    """Under torchrun: `data` splits the batch; with `tangents` each worker has its own tangents."""

    @property
    @override
    def can_compile(self) -> bool:
        return not self.exact_output

    @model_validator(mode="after")
    def _check(self) -> "ZerothOrderOptions":
        _check_structure(self)
        return self


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
