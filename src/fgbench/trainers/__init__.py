"""One file per rule that computes gradients. Importing it loads no torch."""

import warnings

# raised inside torch when forward mode is first used
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
