"""A user's own images: what is read, and what is refused."""

import struct
import zlib

import pytest
import yaml
from data_files import hide_installed_data
from PIL import Image

from fgbench.config.config import Config, to_yaml
from fgbench.datasets.base import load_splits
from fgbench.datasets.options import ImageFolderOptions
from fgbench.datasets.search import DataSearch
from fgbench.errors import DataError
from fgbench.registry import load


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    hide_installed_data(monkeypatch, tmp_path)


def load_folder(folder, **options):
    return load("dataset", "imagefolder")(ImageFolderOptions(dir=str(folder), **options), DataSearch())


def save_image(path, mode="RGB", size=(20, 10), value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if len(mode) < 3 or mode.startswith("I") else (value,) * len(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for part in ("train", "test"):
        save_image(root / part / "cat" / "a.png")
        save_image(root / part / "dog" / "b.jpg", "L", (7, 33), 100)
        save_image(root / part / "dog" / "deeper" / "c.gif", "P", (64, 64), 0)
    (root / "train" / "cat" / ".DS_Store").write_text("hidden")
    return root


@pytest.mark.parametrize("grey", [False, True])
def test_imagefolder_takes_any_image_to_one_shape(folder, grey):
    options = ImageFolderOptions(dir=str(folder), size=12, grey=grey)
    data = load("dataset", "imagefolder")(options, DataSearch())
    assert data.train_images.shape == (3, 1 if grey else 3, 12, 12)
    assert data.class_names == ["cat", "dog"]
    assert data.train_labels.tolist() == [0, 1, 1]
    assert (data.train_images[0] == 200).all()
    assert load_splits(options, 0, "cpu", DataSearch()).image_shape == (1 if grey else 3, 12, 12)


def test_imagefolder_is_also_found_below_the_data_folder(folder):
    options = ImageFolderOptions(dir="pictures")
    assert len(load("dataset", "imagefolder")(options, DataSearch(folder.parent)).train_images) == 3


def test_a_named_data_folder_is_the_only_one_searched(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, named = ImageFolderOptions(dir="pictures"), tmp_path / "named"
    assert len(load("dataset", "imagefolder")(options, DataSearch()).train_images) == 3
    for search in (DataSearch(data_dir=named), DataSearch(config_dir=named)):
        with pytest.raises(DataError, match=f"looked for {named / 'pictures'}$"):
            load("dataset", "imagefolder")(options, search)
    for part in ("train", "test"):
        save_image(named / "pictures" / part / "cat" / "a.png")
    assert load("dataset", "imagefolder")(options, DataSearch(named)).source == str(named / "pictures")


@pytest.mark.parametrize(("name", "mode"), [("deep.png", "I;16"), ("deep.tif", "F"), ("deep.tif", "I")])
def test_more_than_eight_bits_are_refused(folder, name, mode):
    save_image(folder / "train" / "ant" / name, mode, value=100)
    with pytest.raises(DataError, match=f"{name} has more than 8 bits per value"):
        load_folder(folder)


def test_sixteen_bits_per_colour_are_refused_though_pillow_would_cut_them(folder):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header, rows = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), zlib.compress((b"\0" + b"\1\2" * 6) * 2)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (folder / "train" / "cat" / "rich.png").write_bytes(png)
    with pytest.raises(DataError, match=r"rich.png has more than 8 bits per value \(PNG, RGB\)"):
        load_folder(folder)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(folder, content):
    file = folder / "test" / "dog" / "b.jpg"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    with pytest.raises(DataError, match=str(file)):
        load_folder(folder)


def test_folders_that_are_not_as_they_should_be_are_named(folder, tmp_path):
    def message(place):
        with pytest.raises(DataError) as caught:
            load_folder(place)
        return str(caught.value)

    assert str(tmp_path / "nowhere") in message(tmp_path / "nowhere")
    save_image(folder / "test" / "bird" / "a.png")
    assert "bird" in message(folder)
    (folder / "train" / "bird").mkdir()
    assert f"{folder / 'train' / 'bird'} has no images" in message(folder)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "test").mkdir()
    assert str(tmp_path / "empty" / "train") in message(tmp_path / "empty")


# Turned, linked, and under other names


def test_a_photograph_is_turned_upright_as_its_exif_data_says(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned to the right
    lying = Image.new("RGB", (8, 8), (255, 0, 0))
    lying.paste((0, 0, 255), (0, 0, 4, 8))  # its left half, which becomes the upper one
    (folder / "train" / "ant").mkdir()
    lying.save(folder / "train" / "ant" / "photo.png", exif=exif)
    image = load_folder(folder, size=8).train_images[0]
    assert (image[2, :4] == 255).all()
    assert (image[0, 4:] == 255).all()
    assert (image[0, :4] == 0).all()


def test_linked_folders_are_followed_and_a_link_to_a_folder_above_ends(folder, tmp_path):
    save_image(tmp_path / "elsewhere" / "one.png")
    save_image(tmp_path / "elsewhere" / "deeper" / "two.png")
    (folder / "train" / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "dog" / "above").symlink_to(folder / "train" / "dog")
    (folder / "train" / "bird").symlink_to(tmp_path / "elsewhere")
    data = load_folder(folder)
    assert data.class_names == ["bird", "cat", "dog"]
    assert data.train_labels.tolist() == [0, 0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_images_are_those_of_their_folder(folder, name):
    save_image(folder / name / "dog" / "a.png", value=7)
    options = ImageFolderOptions(dir=str(folder))
    splits = load_splits(options, 0, "cpu", DataSearch())
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [3, 1, 3]
    assert splits.validation.labels.tolist() == [1]
    assert (splits.validation.images == 7).all()
    assert splits.fingerprint.images == {"train": 3, "test": 3, "validation": 1}


def test_a_config_written_out_in_full_is_read_again_beside_validation_images(folder):
    """So do the runs of a sweep, tuned configs and a run's own config.yaml."""
    save_image(folder / "val" / "dog" / "a.png", value=7)
    settings = {"dataset": {"name": "imagefolder", "dir": str(folder)}}
    config = Config.model_validate(settings | {"model": {"name": "fc"}, "trainer": {"name": "backprop"}})
    again = Config.model_validate(yaml.safe_load(to_yaml(config)))
    assert len(load_splits(again.dataset, 0, "cpu", DataSearch()).validation) == 1
    with pytest.raises(DataError, match=r"leave out dataset\.validation_fraction"):
        load_splits(ImageFolderOptions(dir=str(folder), validation_fraction=0.3), 0, "cpu", DataSearch())


@pytest.mark.parametrize("tested", ["testing", "val"])
def test_training_and_testing_or_validation_images_are_two_parts(folder, tested):
    (folder / "train").rename(folder / "training")
    (folder / "test").rename(folder / tested)
    data = load_folder(folder)
    assert (len(data.train_images), len(data.test_images), data.validation) == (3, 3, None)
    assert data.source == str(folder) + (" (tested on val/)" if tested == "val" else "")


@pytest.mark.parametrize(("name", "both"), [("testing", "test and testing"), ("Test", "Test and test")])
def test_two_folders_that_could_be_one_part_are_named(folder, name, both):
    save_image(folder / name / "cat" / "a.png")
    with pytest.raises(DataError, match=f"both {both} could be its test images"):
        load_folder(folder)


def test_one_class_is_refused_with_the_likely_reason(tmp_path):
    for part in ("train", "test"):
        save_image(tmp_path / "d" / part / "photos" / "cat" / "a.png")
        save_image(tmp_path / "d" / part / "photos" / "dog" / "a.png")
    options = ImageFolderOptions(dir=str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"only one class \(photos\), .* one level deeper\?"):
        load_splits(options, 0, "cpu", DataSearch())


def test_files_that_are_no_images_by_their_ending_are_left_out(folder):
    for name in ("Thumbs.db", "desktop.ini", "notes.txt"):
        (folder / "train" / "cat" / name).write_text("no image")
    assert len(load_folder(folder).train_images) == 3
    (folder / "train" / "cat" / "a.png").unlink()
    with pytest.raises(DataError, match="cat has no images"):
        load_folder(folder)
