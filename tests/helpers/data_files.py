"""Tiny datasets in the formats the real ones are kept in, for tests."""

import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgbench.datasets.forms import BINARY_FOLDER, CIFAR10_FILES, IDX_FILES, PICKLED_ARCHIVES
from fgbench.datasets.sources import SOURCES


def write_mnist(root, num_train=40, num_test=20, **kwargs):
    """MNIST as torchvision lays it out below ``root``; returns the folder of the four files."""
    return write_idx_files(Path(root) / "MNIST" / "raw", num_train, num_test, **kwargs)


def write_fashion_mnist(root, num_train=40, num_test=20, **kwargs):
    """Fashion-MNIST as torchvision lays it out below ``root``; returns the folder of the four files."""
    return write_idx_files(Path(root) / "FashionMNIST" / "raw", num_train, num_test, **kwargs)


def write_cifar10(root, per_batch=8, num_test=20, *, archive=False, seed=0):
    """CIFAR-10 as distributed: ``cifar-10-batches-py`` below ``root``, or its archive; returns that path."""
    root = Path(root)
    batches = {}
    for number, name in enumerate(CIFAR10_FILES):
        count = num_test if name == "test_batch" else per_batch
        images, labels = draw_images((3, 32, 32), count, seed + number)
        batches[name] = pickle_batch(name, images.reshape(count, -1), labels)
    if archive:
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / PICKLED_ARCHIVES[0], "w:gz") as tar:
            for name, content in batches.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return root / PICKLED_ARCHIVES[0]
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    return folder


def write_binary_cifar10(root, per_batch=8, num_test=20, seed=0):
    """CIFAR-10's binary version, the images of ``write_cifar10``; returns the folder of the batches."""
    folder = Path(root) / BINARY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CIFAR10_FILES):
        count = num_test if name == "test_batch" else per_batch
        images, labels = draw_images((3, 32, 32), count, seed + number)
        rows = np.concatenate([labels[:, None], images.reshape(count, -1)], 1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def write_tables(folder, stem="", num_train=40, num_test=20, *, seed=0):
    """A label and 784 pixels in every row of ``STEMtrain.csv`` and ``STEMtest.csv``; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    head = ",".join(["label", *(f"pixel{number}" for number in range(784))])
    for part, count, part_seed in (("train", num_train, seed), ("test", num_test, seed + 1)):
        images, labels = draw_images((28, 28), count, part_seed)
        rows = np.concatenate([labels[:, None], images.reshape(count, -1)], 1)
        np.savetxt(folder / f"{stem}{part}.csv", rows, "%d", ",", header=head, comments="")
    return folder


def write_class_folders(folder, shape, classes, num_train=40, num_test=20, *, seed=0):
    """PNG files in a folder per class below ``train`` and ``test``; returns the folder."""
    from PIL import Image

    for part, count, part_seed in (("train", num_train, seed), ("test", num_test, seed + 1)):
        images, labels = draw_images(shape, count, part_seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = Path(folder) / part / classes[label] / f"{number:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0)).save(file)
    return Path(folder)


def write_all(root):
    """All three, below one folder, which is returned."""
    write_mnist(root)
    write_fashion_mnist(root)
    write_cifar10(root)
    return Path(root)


def hide_installed_data(monkeypatch, folder):
    """Let no dataset of this machine be found: home and current folder are empty ones below ``folder``."""
    for name in ("home", "work"):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("HOME", str(Path(folder) / "home"))
    monkeypatch.delenv("FGBENCH_DATA_DIR", raising=False)
    monkeypatch.chdir(Path(folder) / "work")
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, replace(source, package_folder=None))


def draw_images(shape, count, seed):
    """Learnable images: a pattern per class under a little noise; the ten classes take turns."""
    labels = np.arange(count, dtype=np.uint8) % 10
    patterns = np.random.default_rng(99).integers(0, 200, (10, *shape))
    noise = np.random.default_rng(seed).integers(0, 56, (count, *shape))
    return (patterns[labels] + noise).astype(np.uint8), labels


def write_idx_files(folder, num_train=40, num_test=20, *, packed=True, side=28, seed=0):
    """The four IDX files, flat in ``folder``, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = draw_images((side, side), num_train, seed), draw_images((side, side), num_test, seed + 1)
    for stem, values in zip(IDX_FILES, (*train, *test), strict=True):
        content = idx_bytes(values)
        if packed:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / stem).write_bytes(content)
    return folder


def idx_bytes(values):
    """An array of bytes in the IDX format."""
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def pickle_batch(name, rows, labels):
    """A CIFAR-10 batch byte for byte as Python 2 and numpy wrote it, which no Python 3 can write."""
    count, width = rows.shape

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value):
        return b"J" + int(value).to_bytes(4, "little", signed=True)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + (b"(K\x01" + number(count) + number(width) + b"\x86")
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x89T" + rows.size.to_bytes(4, "little") + rows.tobytes() + b"tb")
    )
    return (
        (b"\x80\x02}(" + text("batch_label") + text(f"{name} of tests"))
        + (text("labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e")
        + (text("data") + array)
        + (text("filenames") + b"](" + text("a.png") * count + b"eu.")
    )
