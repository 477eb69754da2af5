"""Rules of operations whose formula in torch is slow, or is not what backprop computes."""

from fgbench.trainers.forward_mode.rules import batch_norm, elementwise, lookups, products, reductions
from fgbench.trainers.forward_mode.rules.table import RULES

__all__ = ["RULES", "batch_norm", "elementwise", "lookups", "products", "reductions"]
