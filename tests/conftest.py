"""Tests and the processes that they start have one thread each: workers side by side do not slow each other.

Set here since torch reads it when it is imported.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
