"""Option blocks of the optimizers and schedules."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from fgbench.options import Options

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class _ChoiceOptions(Options):
    """Options some of which apply only to certain names: setting them with another name is a mistake."""

    model_config = ConfigDict(allow_inf_nan=False)

    USED_BY: ClassVar[dict[str, tuple[str, ...]]]
    """Key -> the names it applies to; keys that are not listed apply to all."""

    @model_validator(mode="after")
    def _check_used(self) -> "_ChoiceOptions":
        for key, names in self.USED_BY.items():
            if self.name not in names and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no meaning for {self.name}: it belongs to {' and '.join(names)}")
        return self


class OptimizerOptions(_ChoiceOptions):
    """How the gradients update the parameters; the default is the study's."""

    USED_BY: ClassVar[dict[str, tuple[str, ...]]] = {
        "momentum": ("sgd",),
        "nesterov": ("sgd",),
        "betas": ("adam", "adamw"),
        "eps": ("adam", "adamw"),
    }

    name: Literal["sgd", "adam", "adamw"] = "adam"
    """Which optimizer of torch.optim."""
    lr: PositiveFloat = 1e-3
    """Learning rate; its largest value, if a schedule changes it."""
    exact_lr: PositiveFloat | None = None
    """Learning rate of parameters with exact gradients (such as those of `exact_output`); `lr` when null."""
    momentum: Fraction = 0.0
    """Momentum of `sgd`."""
    nesterov: bool = False
    """Nesterov's momentum (Sutskever et al., 2013) for `sgd`."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Weight decay: added to the gradient (`sgd`, `adam`) or decoupled from it (`adamw`)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square in `adam` and `adamw`."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square in `adam` and `adamw`."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> "OptimizerOptions":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs momentum above 0")
        return self


class ScheduleOptions(_ChoiceOptions):
    """How the learning rate changes from step to step."""

    USED_BY: ClassVar[dict[str, tuple[str, ...]]] = {
        "k": ("exponential",),
        "step_epochs": ("step",),
        "factor": ("step",),
        "warmup": ("one-cycle",),
    }

    name: Literal["constant", "exponential", "step", "linear", "cosine", "one-cycle"] = "constant"
    """`exponential`: lr * exp(-i*k) at step i; `linear`, `cosine`: to 0 at the end; `one-cycle`: up
    and down."""
    k: PositiveFloat = 1e-4
    """Decay per step of `exponential`."""
    step_epochs: PositiveInt = 30
    """Epochs between two drops of `step`."""
    factor: PositiveFloat = 0.2
    """What a drop of `step` multiplies the learning rate by."""
    warmup: float = Field(0.3, gt=0.0, lt=1.0)
    """Fraction of all steps during which `one-cycle` rises."""

    @property
    def ends(self) -> bool:
        """Whether the learning rate falls to its end at the run's last epoch, and stays there."""
        return self.name in ("linear", "cosine", "one-cycle")
