"""One file per rule that gives gradients. Importing it loads no torch."""

import warnings

# torch's own use of it, when a derivative is first taken by forward mode
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
