"""Every form in which people keep MNIST, Fashion-MNIST and CIFAR-10 is found, named and read alike."""

import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_files import (
    draw_images,
    hide_installed_data,
    write_binary_cifar10,
    write_cifar10,
    write_class_folders,
    write_idx_files,
    write_mnist,
    write_tables,
)

from fgbench.datasets import standard_sets
from fgbench.datasets.cifar import parse_batch
from fgbench.datasets.fingerprint import take_fingerprint
from fgbench.datasets.forms import BINARY_ARCHIVE, IDX_FILES, PICKLED_ARCHIVES, PICKLED_FOLDERS
from fgbench.datasets.official import OFFICIAL
from fgbench.datasets.options import StandardOptions
from fgbench.datasets.search import DataSearch
from fgbench.datasets.status import data_status
from fgbench.errors import DataError
from fgbench.registry import load


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    hide_installed_data(monkeypatch, tmp_path)


def load_data(name, folder, **options):
    return load("dataset", name)(StandardOptions(name=name, **options), DataSearch(folder, download=False))


def form_found(name, folder):
    rows = {row.name: row.found for row in data_status(DataSearch(folder, download=False))}
    return rows[name].rpartition(" (")[2].rstrip(")")


def dotted_idx_files(folder):
    write_idx_files(folder, packed=False)
    for stem in IDX_FILES:
        (folder / stem).rename(folder / stem.replace("-idx", ".idx"))


def idx_files_in_folders(folder):
    """As Kaggle unpacks them: each in a folder of its own name."""
    write_idx_files(folder / "all", packed=False)
    for stem in IDX_FILES:
        name = stem.replace("-idx", ".idx")
        (folder / name).mkdir()
        (folder / "all" / stem).rename(folder / name / name)


def idx_files_for_test(folder):
    write_idx_files(folder)
    for stem in IDX_FILES[2:]:
        (folder / f"{stem}.gz").rename(folder / f"{stem.replace('t10k', 'test')}.gz")


GREY = {
    "dots": (dotted_idx_files, "idx files"),
    "folders": (idx_files_in_folders, "idx files"),
    "test": (idx_files_for_test, "idx files"),
    "tables": (write_tables, "csv files"),
    "named tables": (lambda folder: write_tables(folder, "NAME_"), "csv files"),
    "pictures": (lambda folder: write_class_folders(folder, (28, 28), "0123456789"), "class folders"),
}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("layout", GREY)
def test_grey_digits_and_clothes_are_read_alike_in_every_form(tmp_path, layout, name):
    write, form = GREY[layout]
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder)
    for file in folder.glob("NAME_*"):
        file.rename(folder / file.name.replace("NAME", name))
    assert form_found(name, folder) == form
    data = load_data(name, folder)
    whole = load_data(name, write_idx_files(tmp_path / "whole"))
    assert data.fingerprint.content == whole.fingerprint.content
    assert data.class_names == whole.class_names


def test_classes_may_be_folders_of_their_names(tmp_path):
    names = [
        "tshirt",
        "trouser",
        "Pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "Ankle_boot",
    ]
    write_class_folders(tmp_path / "d", (28, 28), names)
    whole = load_data("fashion-mnist", write_idx_files(tmp_path / "whole"))
    assert load_data("fashion-mnist", tmp_path / "d").fingerprint.content == whole.fingerprint.content


def keras_folder(folder):
    write_cifar10(folder / PICKLED_FOLDERS[1].partition("/")[0])


def keras_archive(folder):
    write_cifar10(folder, archive=True).rename(folder / "cifar-10-batches-py-target_archive")


def keras_renamed_archive(folder):
    write_cifar10(folder, archive=True).rename(folder / PICKLED_ARCHIVES[1])


def binary_archive(folder):
    batches = write_binary_cifar10(folder / "made")
    with tarfile.open(folder / BINARY_ARCHIVE, "w:gz") as tar:
        tar.add(batches, batches.name)


COLOUR = {
    "archive": (lambda folder: write_cifar10(folder, archive=True), "archive of pickled batches"),
    "Keras' folder": (keras_folder, "pickled batches"),
    "Keras' archive": (keras_archive, "archive of pickled batches"),
    "Keras' older archive": (keras_renamed_archive, "archive of pickled batches"),
    "binary batches": (write_binary_cifar10, "binary batches"),
    "binary archive": (binary_archive, "archive of binary batches"),
}


@pytest.mark.parametrize("layout", COLOUR)
def test_colour_images_are_read_alike_in_every_form(tmp_path, layout):
    write, form = COLOUR[layout]
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder)
    assert form_found("cifar10", folder) == form
    write_cifar10(tmp_path / "whole")
    whole = load_data("cifar10", tmp_path / "whole")
    assert load_data("cifar10", folder).fingerprint.loaded == whole.fingerprint.loaded


def test_cifar10_is_read_from_pictures_in_folders_of_its_classes(tmp_path):
    classes = OFFICIAL["cifar10"].class_names
    folder = write_class_folders(tmp_path / "d" / "CIFAR-10-images", (3, 32, 32), classes)
    data = load_data("cifar10", folder.parent)
    images, labels = draw_images((3, 32, 32), 20, 1)
    same = take_fingerprint("", {"test": (images, labels)}, 10)
    assert form_found("cifar10", folder.parent) == "class folders"
    assert data.fingerprint.content["test"] == same.content["test"]


def test_a_picture_of_another_size_is_named(tmp_path):
    folder = write_class_folders(tmp_path / "d", (32, 32), "0123456789")
    with pytest.raises(
        DataError, match=r"0000\.png has 32x32 pixels, an image of mnist 28x28; .* imagefolder"
    ):
        load_data("mnist", folder)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, ">i4"])
def test_labels_of_a_batch_may_be_an_array(kind):
    images, labels = draw_images((3, 32, 32), 12, 0)
    content = pickle.dumps({b"data": images.reshape(12, -1), b"labels": labels.astype(kind)}, protocol=2)
    read, found = parse_batch(content, "batch")
    assert found.tolist() == labels.tolist()
    assert torch.equal(read, torch.from_numpy(images))


@pytest.mark.parametrize(
    ("name", "todo"),
    [
        *((f"mnist{end}", "save its images as train/<class>") for end in (".npz", ".parquet", ".mat", ".h5")),
        *((f"mnist{end}", "unpack it there") for end in (".tar", ".zip", ".tar.gz")),
    ],
)
def test_a_file_in_a_form_that_is_not_read_is_told_what_to_do_with(tmp_path, name, todo):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        load_data("mnist", tmp_path / "d")
    assert f"{name} is not read" in str(caught.value)
    assert todo in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_a_table_without_labels_is_refused_with_the_reason(tmp_path, alone, header):
    folder = write_tables(tmp_path / "d")
    lines = [line.partition(",")[2] for line in (folder / "test.csv").read_text().splitlines()]
    (folder / "test.csv").write_text("\n".join(lines[not header :]) + "\n")
    if alone:
        (folder / "train.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv has no labels: it was made for a competition"):
        load_data("mnist", folder)


def test_a_labelled_test_table_alone_misses_the_other(tmp_path):
    folder = write_tables(tmp_path / "d")
    (folder / "train.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv without train\.csv"):
        load_data("mnist", folder)


# What is official


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A folder whose made-up MNIST is taken for the official one."""
    folder = write_mnist(tmp_path / "d")
    found = load_data("mnist", folder).fingerprint
    replaced = replace(OFFICIAL["mnist"], images=dict(found.images), content=dict(found.content))
    monkeypatch.setitem(OFFICIAL, "mnist", replaced)
    standard_sets._read.cache_clear()
    yield folder
    standard_sets._read.cache_clear()


def test_the_official_set_loads_without_a_note(official):
    assert load_data("mnist", official).note == ""


def test_official_counts_with_other_content_are_damage_unless_they_are_meant(official):
    write_idx_files(official, seed=7)
    with pytest.raises(
        DataError, match="is damaged: 40 \\+ 20 images, but those of train and test are not the off"
    ):
        load_data("mnist", official)
    data = load_data("mnist", official, verify_content=False)
    assert data.note == "not the official content in train and test"


def test_a_set_with_other_counts_loads_and_says_so(official):
    write_idx_files(official, num_train=50)
    assert load_data("mnist", official).note == "not the official set, which has 40 + 20"


def test_another_official_set_is_named(official, monkeypatch):
    monkeypatch.setitem(OFFICIAL, "fashion-mnist", OFFICIAL["mnist"])
    other = replace(OFFICIAL["mnist"], content={"train": "0", "test": "0"})
    monkeypatch.setitem(OFFICIAL, "mnist", other)
    with pytest.raises(DataError, match="holds fashion-mnist, not mnist"):
        load_data("mnist", official, verify_content=False)


@pytest.mark.parametrize("dims", [(0, 2, 3, 1), (1, 2, 3, 0)])
def test_a_fingerprint_is_of_the_pixels_however_they_lie_in_memory(dims):
    images, labels = draw_images((3, 5, 4), 20, 0)
    order = np.argsort(dims)
    elsewhere = np.ascontiguousarray(images.transpose(dims)).transpose(order)
    assert not elsewhere.flags.c_contiguous
    same, other = (take_fingerprint("", {"train": (each, labels)}, 10) for each in (images, elsewhere))
    assert same == other
