"""Tests and the processes that they start have one thread each: workers side by side do not slow each other.

Set here since torch reads it when it is imported.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    """The longest files first, so that workers end together."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/zoo/", "tests/sweep/test_ray.py")))
