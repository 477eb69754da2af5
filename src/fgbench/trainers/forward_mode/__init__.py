"""Forward mode: a pass that carries directional derivatives along with the values of any model.

``forward_pass`` is the way in. In a pass, ``tangent_mode`` handles every operation, by one of ``rules`` or
by ``torch_formula``; ``shadows`` holds the tangents, ``factors`` those that are rank-one. ``refusals`` names
what cannot be differentiated; ``layers`` perturbs layers' outputs; ``shifted`` runs at other parameters.
"""

from fgbench.trainers.forward_mode.factors import Factors
from fgbench.trainers.forward_mode.forward_pass import ForwardPass

__all__ = ["Factors", "ForwardPass"]
