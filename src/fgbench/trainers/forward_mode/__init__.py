"""Forward mode: a pass that carries directional derivatives along with the values of any model."""

from fgbench.trainers.forward_mode.factors import Factors
from fgbench.trainers.forward_mode.forward_pass import ForwardPass

__all__ = ["Factors", "ForwardPass"]
