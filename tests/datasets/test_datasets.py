import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import (
    draw_images,
    hide_installed_data,
    idx_bytes,
    pickle_batch,
    write_cifar10,
    write_fashion_mnist,
    write_idx_files,
    write_mnist,
)

from fgbench.datasets import download as download_module
from fgbench.datasets.base import Split, channel_statistics, choose_balanced, load_splits
from fgbench.datasets.cifar import parse_batch
from fgbench.datasets.forms import CIFAR10_FILES, IDX_FILES
from fgbench.datasets.idx import read_idx
from fgbench.datasets.mini import FOLDER as MINI_FOLDER
from fgbench.datasets.options import ImageFolderOptions, StandardOptions, SyntheticOptions
from fgbench.datasets.search import DataSearch
from fgbench.datasets.sources import SOURCES
from fgbench.datasets.status import data_status, fetch, looked_in
from fgbench.errors import ConfigError, DataError, MissingDataError
from fgbench.registry import load

WRITERS = {"mnist": write_mnist, "fashion-mnist": write_fashion_mnist, "cifar10": write_cifar10}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    hide_installed_data(monkeypatch, tmp_path)
    monkeypatch.setattr(download_module, "download", refuse_download)


def refuse_download(torchvision_class, root):
    raise OSError("no network in tests")


def load_data(name, search):
    return load("dataset", name)(StandardOptions(name=name), search)


def synthetic_splits(seed=0, **options):
    return load_splits(SyntheticOptions(**options), seed, "cpu", DataSearch())


# What is read


@pytest.mark.parametrize("name", WRITERS)
def test_real_formats_are_read_as_they_were_written(tmp_path, name):
    WRITERS[name](tmp_path / "d")
    data = load_data(name, DataSearch(tmp_path / "d"))
    shape = (3, 32, 32) if name == "cifar10" else (1, 28, 28)
    images, labels = draw_images(shape if name == "cifar10" else shape[1:], 20, 5 if name == "cifar10" else 1)
    assert data.train_images.shape == (40, *shape)
    assert torch.equal(data.test_images, torch.from_numpy(images).view(20, *shape))
    assert data.test_labels.tolist() == labels.tolist()
    assert len(data.class_names) == 10


@pytest.mark.parametrize("place", ["", "MNIST/raw", "MNIST", "mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_found_in_every_usual_layout(tmp_path, place, packed):
    write_idx_files(tmp_path / "d" / place, packed=packed)
    assert len(load_data("mnist", DataSearch(tmp_path / "d")).train_images) == 40


@pytest.mark.parametrize("layout", ["archive", "batches", "folder itself"])
def test_cifar10_is_found_in_every_usual_layout(tmp_path, layout):
    path = write_cifar10(tmp_path / "d", archive=layout == "archive")
    root = path if layout == "folder itself" else tmp_path / "d"
    assert len(load_data("cifar10", DataSearch(root)).train_images) == 40


def test_pickles_of_todays_numpy_are_read_too():
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8))
    content = pickle.dumps({"data": images, "labels": [1, 2, 3, 4]}, protocol=2)
    read, labels = parse_batch(content, "batch")
    assert torch.equal(read.view(4, -1), torch.from_numpy(np.ascontiguousarray(images)))
    assert labels.tolist() == [1, 2, 3, 4]


def test_the_test_files_pickles_are_real_ones():
    images, labels = draw_images((3, 32, 32), 3, 0)
    batch = pickle.loads(pickle_batch("b", images.reshape(3, -1), labels), encoding="latin1")
    assert np.array_equal(batch["data"], images.reshape(3, -1))
    assert batch["labels"] == labels.tolist()


def test_mini_is_balanced_licensed_and_small():
    data = load_data("fashion-mnist-mini", DataSearch(download=False))
    assert data.train_images.shape == (10_000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [1000] * 10
    assert data.test_labels.bincount().tolist() == [200] * 10
    assert "Copyright (c) 2017 Zalando SE" in (MINI_FOLDER / "LICENSE").read_text()
    assert sum(file.stat().st_size for file in MINI_FOLDER.iterdir()) <= 6e6


def test_a_file_that_changes_is_read_again(tmp_path):
    search = DataSearch(tmp_path / "d")
    write_mnist(tmp_path / "d", 40)
    assert len(load_data("mnist", search).train_images) == 40
    write_mnist(tmp_path / "d", 50)
    assert len(load_data("mnist", search).train_images) == 50


# Where it is looked for


def test_folders_are_searched_in_the_documented_order(tmp_path, monkeypatch):
    monkeypatch.setenv("FGBENCH_DATA_DIR", str(tmp_path / "environment"))
    debian = tmp_path / "debian"
    source = replace(SOURCES["fashion-mnist"], package_folder=debian)
    monkeypatch.setitem(SOURCES, "fashion-mnist", source)
    search = DataSearch()
    order = [
        tmp_path / "environment",
        tmp_path / "work" / "data",
        tmp_path / "home" / ".cache" / "fgbench",
    ]
    write_idx_files(debian, num_train=10)
    assert len(load_data("fashion-mnist", search).train_images) == 10
    for count, folder in enumerate(reversed(order), 11):
        write_fashion_mnist(folder, num_train=count)
        assert len(load_data("fashion-mnist", search).train_images) == count


def test_nothing_found_names_every_place_and_file_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FGBENCH_DATA_DIR", str(tmp_path / "environment"))
    write_mnist(tmp_path / "work" / "data").joinpath("t10k-labels-idx1-ubyte.gz").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MissingDataError) as caught:
        load_data("mnist", DataSearch(download=False))
    message = str(caught.value)
    for place in (
        "environment (no such folder)",
        "work/data (MNIST/raw holds t10k-images",
        "home/.cache/fgbench",
    ):
        assert str(tmp_path / place) in message
    assert all(name in message for name in IDX_FILES)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path):
    folder = write_idx_files(tmp_path / "d", packed=False)
    labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5] * 4, np.uint8)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match="holds fashion-mnist, not mnist"):
        load_data("mnist", DataSearch(folder))
    assert len(load_data("fashion-mnist", DataSearch(folder)).train_images) == 40


# Damage


def cut_in_half(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage", [cut_in_half, lambda content: b"", lambda content: b"<html>404</html>" * 9]
)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("stem", IDX_FILES)
def test_a_damaged_idx_file_is_named(tmp_path, stem, packed, damage):
    folder = write_idx_files(tmp_path / "d", packed=packed)
    file = folder / (f"{stem}.gz" if packed else stem)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=str(file)):
        load_data("mnist", DataSearch(folder))


def test_every_flipped_bit_of_a_packed_file_is_noticed_or_harmless(tmp_path):
    file = write_idx_files(tmp_path / "d", num_train=12) / f"{IDX_FILES[0]}.gz"
    content, whole = file.read_bytes(), read_idx(file, 3)
    rng = np.random.default_rng(0)
    outcomes = []
    for position in [*range(30), *rng.integers(0, len(content), 100), *range(-8, 0)]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        try:
            outcomes.append("whole" if torch.equal(read_idx(file, 3), whole) else "changed")
        except DataError as error:
            outcomes.append("named" if str(file) in str(error) else str(error))
    assert set(outcomes) == {"whole", "named"}
    assert outcomes.count("named") > 100


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.full(40, 10), "a label is 10"), (np.zeros(39), "40 images, but .* has 39 labels")],
)
def test_labels_that_do_not_fit_are_named(tmp_path, values, message):
    folder = write_idx_files(tmp_path / "d", packed=False)
    (folder / IDX_FILES[1]).write_bytes(idx_bytes(values.astype(np.uint8)))
    with pytest.raises(DataError, match=message) as caught:
        load_data("mnist", DataSearch(folder))
    assert str(folder / IDX_FILES[1]) in str(caught.value)


def test_images_of_a_header_that_promises_more_than_memory_are_refused(tmp_path):
    folder = write_idx_files(tmp_path / "d", packed=False)
    huge = bytes((0, 0, 8, 3)) + b"\xff\xff\xff\xff" * 3 + b"x" * 100
    (folder / IDX_FILES[0]).write_bytes(huge)
    with pytest.raises(DataError, match=str(folder / IDX_FILES[0])):
        load_data("mnist", DataSearch(folder))


@pytest.mark.parametrize("damage", [cut_in_half, lambda content: b"", lambda content: content[:-1]])
@pytest.mark.parametrize("name", CIFAR10_FILES[::5])
def test_a_damaged_cifar10_batch_is_named(tmp_path, name, damage):
    file = write_cifar10(tmp_path / "d") / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=str(file)):
        load_data("cifar10", DataSearch(tmp_path / "d"))


@pytest.mark.parametrize("damage", [cut_in_half, lambda content: b"", lambda content: b"not gzip" * 100])
def test_a_damaged_cifar10_archive_is_named(tmp_path, damage):
    file = write_cifar10(tmp_path / "d", archive=True)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=str(file)):
        load_data("cifar10", DataSearch(tmp_path / "d"))


def test_bits_flipped_in_a_batch_never_raise_anything_but_a_data_error():
    images, labels = draw_images((3, 32, 32), 2, 0)
    content = pickle_batch("b", images.reshape(2, -1), labels)
    structure = [*range(260), *range(len(content) - 40, len(content))]
    outcomes = []
    for position in structure:
        for bit in (0, 3, 7):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            try:
                outcomes.append(tuple(parse_batch(bytes(flipped), "some/batch")[0].shape))
            except DataError as error:
                outcomes.append(str(error).split()[0])
    assert set(outcomes) == {"some/batch", (2, 3, 32, 32)}
    assert outcomes.count("some/batch") > len(structure)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    folder = write_cifar10(tmp_path / "d")
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": Hostile(tmp_path / "run"), "labels": []}))
    with pytest.raises(DataError, match=str(folder / "data_batch_1")):
        load_data("cifar10", DataSearch(tmp_path / "d"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")]
)
def test_files_that_may_not_be_read_or_vanish_give_one_line(tmp_path, monkeypatch, name, error):
    folder = WRITERS[name](tmp_path / "d", 7)

    def fail(path):
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DataError) as caught:
        load_data(name, DataSearch(tmp_path / "d"))
    assert str(folder) in str(caught.value)
    assert error.strerror in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["\0", "x" * 5000])
def test_impossible_folder_names_are_folders_where_nothing_is(tmp_path, place):
    with pytest.raises(DataError, match="mnist not found"):
        load_data("mnist", DataSearch(Path(place)))
    with pytest.raises(DataError, match="no folder with train"):
        load("dataset", "imagefolder")(ImageFolderOptions(dir=place), DataSearch())


def test_more_synthetic_images_than_fit_are_refused():
    with pytest.raises(ValueError, match="lower train, test, classes or shape"):
        SyntheticOptions(train=10**9)


# Downloading


def test_a_missing_set_is_downloaded_into_the_given_folder_and_never_seen_half(tmp_path, monkeypatch):
    search = DataSearch(tmp_path / "given")

    def fake(torchvision_class, root):
        assert torchvision_class == "FashionMNIST"
        write_fashion_mnist(root)
        assert SOURCES["fashion-mnist"].find(search) is None

    monkeypatch.setattr(download_module, "download", fake)
    (tmp_path / "given" / download_module.STAGING_NAME / "left by a killed process").mkdir(parents=True)
    assert len(load_data("fashion-mnist", search).train_images) == 40
    assert fetch("fashion-mnist", search) == tmp_path / "given" / "FashionMNIST" / "raw"
    left = {path.name for path in (tmp_path / "given").iterdir()}
    assert left == {"FashionMNIST", download_module.LOCK_NAME}


def test_the_first_folder_that_can_be_written_is_downloaded_to(tmp_path):
    (tmp_path / "file").touch()
    cache = tmp_path / "home" / ".cache" / "fgbench"
    assert DataSearch(tmp_path / "file").download_folder() is None
    assert DataSearch().download_folder() == cache
    assert not (tmp_path / "work" / "data").exists()
    (tmp_path / "work" / "data").mkdir()
    assert DataSearch().download_folder() == tmp_path / "work" / "data"


@pytest.mark.parametrize("failure", [OSError("timed out"), RuntimeError("File not found\nor corrupted.")])
def test_a_failed_download_gives_one_line_and_leaves_nothing(tmp_path, monkeypatch, failure):
    def fake(torchvision_class, root):
        write_mnist(root)
        raise failure

    monkeypatch.setattr(download_module, "download", fake)
    with pytest.raises(DataError) as caught:
        load_data("mnist", DataSearch(tmp_path / "given"))
    assert " ".join(str(failure).split()) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "given").iterdir()] == [download_module.LOCK_NAME]


RACER = """
import sys, time
from pathlib import Path
from fgbench.datasets import download
from fgbench.datasets.search import DataSearch
from fgbench.datasets.forms import IDX_FILES
from fgbench.datasets.sources import SOURCES

def fake(torchvision_class, root):
    with Path(sys.argv[1], "downloads").open("a") as log:
        log.write("one\\n")
    for stem in IDX_FILES:
        time.sleep(0.15)
        path = root / "MNIST" / "raw" / stem
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"whole")

download.download = fake
Path(sys.argv[1], f"ready{sys.argv[2]}").touch()
while len(list(Path(sys.argv[1]).glob("ready*"))) < 2:
    time.sleep(0.01)
found = SOURCES["mnist"].obtain(DataSearch(Path(sys.argv[1], "given")))
assert all((found.place / stem).read_bytes() == b"whole" for stem in IDX_FILES)
"""


def test_two_processes_that_start_together_download_once(tmp_path):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), str(number)], stderr=subprocess.PIPE)
        for number in range(2)
    ]
    errors = [racer.communicate(timeout=60)[1].decode() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], errors
    assert (tmp_path / "downloads").read_text() == "one\n"
    assert sum("waiting for another process" in error for error in errors) == 1


def test_looking_for_data_imports_no_torch():
    code = """if True:
        import sys
        from fgbench.datasets import options, search, status
        status.data_status(search.DataSearch())
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Splits


def test_split_sizes_are_exact_and_parts_share_no_image():
    splits = synthetic_splits(shape=(1, 6, 6), train=1003, test=50)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [802, 201, 50]
    images = torch.cat([splits.train.images, splits.validation.images]).view(1003, -1)
    assert len(images.unique(dim=0)) == 1003
    assert splits.image_shape == (1, 6, 6)
    assert splits.num_classes == 10
    assert splits.bytes == 1053 * (36 + 8)


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    first, again = synthetic_splits(3, augment=True), synthetic_splits(3)
    other = synthetic_splits(4)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.validation.labels, again.validation.labels)
    assert not torch.equal(first.train.images, other.train.images)


def test_no_validation_fraction_leaves_an_empty_part():
    splits = synthetic_splits(train=30, validation_fraction=0)
    assert (len(splits.train), len(splits.validation)) == (30, 0)


def test_a_single_image_cannot_be_split():
    with pytest.raises(DataError, match="1 training image cannot be split"):
        synthetic_splits(train=30, limit=1)


def test_limit_takes_a_balanced_subset_of_the_training_images_alone():
    splits = synthetic_splits(train=500, test=60, limit=103, validation_fraction=0)
    counts = splits.train.labels.bincount()
    assert len(splits.train) == 103
    assert counts.max() - counts.min() == 1
    assert len(splits.test) == 60
    assert synthetic_splits(train=500, test=60, test_limit=20).test.labels.bincount().tolist() == [2] * 10
    assert len(synthetic_splits(train=500, limit=10_000, validation_fraction=0).train) == 500


def test_small_classes_give_all_they_have():
    labels = torch.tensor([0] * 100 + [1] * 3 + [2] * 50)
    chosen = choose_balanced(labels, 43, torch.Generator().manual_seed(0))
    assert labels[chosen].bincount().tolist() == [20, 3, 20]
    assert len(chosen.unique()) == 43


def test_a_larger_limit_begins_with_the_smaller_one():
    labels = torch.randint(0, 7, (300,), generator=torch.Generator().manual_seed(1))
    small, large = (choose_balanced(labels, count, torch.Generator().manual_seed(0)) for count in (50, 120))
    assert torch.equal(small, large[:50])


def test_statistics_are_those_of_the_training_part():
    splits = synthetic_splits(shape=(3, 8, 8))
    pixels = splits.train.images.double() / 255
    assert torch.allclose(splits.train.mean.double(), pixels.mean((0, 1, 2)), atol=1e-6)
    assert torch.allclose(splits.train.std.double(), pixels.std((0, 1, 2), correction=0), atol=1e-6)
    assert torch.equal(splits.test.mean, splits.train.mean)


def test_a_constant_channel_is_not_divided_by_zero():
    images = torch.full((5, 4, 4, 2), 37, dtype=torch.uint8)
    images[0, 0, 0, 1] = 0
    mean, std = channel_statistics(images)
    assert std[0] == 1
    assert 0 < std[1] < 1
    assert Split(images, torch.zeros(5).long(), mean, std).batch(torch.arange(5))[0].isfinite().all()


# Batches


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 9)])
def test_a_batch_is_normalised_in_order_and_channels_last(shape):
    train = synthetic_splits(shape=shape, train=50).train
    indices = torch.tensor([7, 0, 7, 39])
    inputs, labels = train.batch(indices)
    pixels = train.images[indices].permute(0, 3, 1, 2).double() / 255
    expected = (pixels - train.mean.view(-1, 1, 1)) / train.std.view(-1, 1, 1)
    assert inputs.dtype == torch.float32
    assert torch.allclose(inputs.double(), expected, atol=1e-5)
    assert torch.equal(labels, train.labels[indices])
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    channels, height, width = shape
    assert inputs.stride() == (height * width * channels, 1, width * channels, channels)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7)])
def test_augmented_images_are_windows_of_the_padded_image_or_its_mirror(shape):
    train = synthetic_splits(shape=shape, train=200, augment=True).train
    raw = replace(train, mean=torch.zeros(shape[0]), std=torch.full((shape[0],), 1 / 255))
    inputs, _ = raw.batch(torch.arange(len(raw)), torch.Generator().manual_seed(0))
    height, width = shape[1:]
    seen = set()
    for got, image in zip(inputs.round().byte(), raw.images.permute(0, 3, 1, 2), strict=True):
        matches = {
            (top, left, mirrored)
            for mirrored in (False, True)
            for top in range(9)
            for left in range(9)
            if torch.equal(
                torch.nn.functional.pad(image.flip(2) if mirrored else image, (4, 4, 4, 4))[
                    :, top : top + height, left : left + width
                ],
                got,
            )
        }
        assert matches
        seen |= matches
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_augmentation_comes_from_its_generator_and_only_on_the_training_part():
    splits = synthetic_splits(augment=True)
    indices = torch.arange(32)

    def batch(part, seed):
        return part.batch(indices, None if seed is None else torch.Generator().manual_seed(seed))[0]

    assert torch.equal(batch(splits.train, 1), batch(splits.train, 1))
    assert not torch.equal(batch(splits.train, 1), batch(splits.train, 2))
    assert not torch.equal(batch(splits.train, 1), batch(splits.train, None))
    assert torch.equal(batch(splits.validation, 1), batch(splits.validation, None))
    assert torch.equal(batch(splits.test, 1), batch(splits.test, None))


# Users' own


OWN_LOADER = """
import torch
from fgbench.datasets.base import ImageData
from fgbench.datasets.options import DatasetOptions

class Options(DatasetOptions):
    labels: int = 2

def load(options, search):
    images = torch.arange(12 * 16, dtype=torch.uint8).view(12, 1, 4, 4)
    labels = torch.arange(12) % options.labels
    return ImageData(images, labels, images, labels, ["even", "odd"])

load.Options = Options
"""


def test_a_users_own_loader_is_used_and_held_to_its_word(tmp_path, monkeypatch):
    (tmp_path / "own_dataset.py").write_text(OWN_LOADER)
    monkeypatch.syspath_prepend(tmp_path)
    options = load("dataset", "own_dataset:load").Options
    splits = load_splits(options(name="own_dataset:load"), 0, "cpu", DataSearch())
    assert (len(splits.train), splits.num_classes) == (10, 2)
    with pytest.raises(DataError, match="own_dataset:load: train labels must be 0 to 1, got 0 to 2"):
        load_splits(options(name="own_dataset:load", labels=3), 0, "cpu", DataSearch())


# What `fgbench data` shows


def test_status_says_what_is_found_where(tmp_path):
    write_mnist(tmp_path / "d")
    rows = {row.name: row for row in data_status(DataSearch(tmp_path / "d"))}
    assert rows["mnist"].found == f"{tmp_path / 'd' / 'MNIST' / 'raw'} (idx files)"
    assert rows["mnist"].size_mib > 0
    assert (rows["cifar10"].found, rows["cifar10"].size_mib) == ("", None)
    assert "toronto" in rows["cifar10"].origin
    assert rows["fashion-mnist-mini"].licence == "MIT"
    assert list(rows) == [
        "mnist",
        "fashion-mnist",
        "cifar10",
        "fashion-mnist-mini",
        "imagefolder",
        "synthetic",
    ]


def test_every_folder_looked_in_is_listed_in_order(tmp_path, monkeypatch):
    source = replace(SOURCES["fashion-mnist"], package_folder=tmp_path / "debian")
    monkeypatch.setitem(SOURCES, "fashion-mnist", source)
    cache = tmp_path / "home" / ".cache" / "fgbench"
    assert looked_in(DataSearch()) == [tmp_path / "work" / "data", cache, tmp_path / "debian"]
    assert looked_in(DataSearch(tmp_path / "d", tmp_path / "config")) == [tmp_path / "d"]


def test_only_known_sets_can_be_fetched():
    with pytest.raises(ConfigError, match="synthetic is not downloaded"):
        fetch("synthetic", DataSearch())
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        fetch("mnsit", DataSearch())
