"""Images as tables."""

import numpy as np
import pytest

from fgbench.datasets.tables import read_table
from fgbench.errors import DataError

PIXELS = np.arange(8).reshape(2, 4)


def write(path, rows, header=None):
    lines = [",".join(header)] if header else []
    path.write_text("\n".join([*lines, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "place"),
    [
        (None, 0),
        (("label", "a", "b", "c", "d"), 0),
        (("a", "b", "c", "d", "label"), 4),
        (("a", "b", " Label", "c", "d"), 2),
    ],
)
def test_the_label_is_where_the_header_says_or_first(tmp_path, header, place):
    file = write(tmp_path / "mnist_train.csv", np.insert(PIXELS, place, [9, 3], axis=1), header)
    images, labels = read_table(file, (1, 2, 2), 10)
    assert labels.tolist() == [9, 3]
    assert images.tolist() == PIXELS.reshape(2, 1, 2, 2).tolist()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (PIXELS, "has no labels"),
        (np.insert(PIXELS, 0, [[1], [2]], axis=1)[:, :4], "has no labels"),
        (np.insert(PIXELS, [0, 0], 1, axis=1), "has 6 columns, expected 5"),
        (np.insert(PIXELS, 0, [10, 3], axis=1), "a label is 10, the largest is 9"),
        (np.insert(PIXELS - 1, 0, [1, 3], axis=1), "whole numbers of 0 to 255"),
    ],
)
def test_a_table_of_something_else_is_refused_with_the_reason(tmp_path, rows, told):
    with pytest.raises(DataError, match=told):
        read_table(write(tmp_path / "test.csv", rows), (1, 2, 2), 10)
