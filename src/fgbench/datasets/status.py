"""The content of ``fgbench data``: which datasets are found, and where; and fetching the others."""

from dataclasses import dataclass
from pathlib import Path

from fgbench.datasets.search import DataSearch
from fgbench.datasets.sources import SOURCES
from fgbench.errors import ConfigError, DataError
from fgbench.registry import DATASETS, find

MIB = 2**20


@dataclass(frozen=True)
class DatasetStatus:
    """One row.

    Attributes:
        name: as in a config.
        summary: what it is and how large.
        found: where its files are, and in which format; empty if they are not found.
        size_mib: the files' size on disk; None if there are none.
        licence: of the images.
        origin: where ``fetch`` downloads it from; empty if it cannot be downloaded.
    """

    name: str
    summary: str
    found: str
    size_mib: float | None
    licence: str
    origin: str


def data_status(search: DataSearch) -> list[DatasetStatus]:
    """One row per dataset, in the order of ``fgbench list datasets``; reads no images."""
    return [_status(name, search) for name in DATASETS]


def looked_in(search: DataSearch) -> list[Path]:
    """Every folder that is searched, in order, including those of system packages."""
    return list(dict.fromkeys(folder for source in SOURCES.values() for folder in source.folders(search)))


def fetch(name: str, search: DataSearch) -> Path:
    """Where a dataset's files are, after downloading them if they are not found.

    Raises:
        ConfigError: there is no such dataset, or it is not one that is downloaded.
        DataError: it cannot be downloaded.
    """
    find("dataset", name)
    if name not in SOURCES:
        raise ConfigError(f"{name} is not downloaded; those that are: {', '.join(SOURCES)}")
    return SOURCES[name].obtain(search).place


def _status(name: str, search: DataSearch) -> DatasetStatus:
    summary = DATASETS[name].summary
    if name in SOURCES:
        source = SOURCES[name]
        found = source.find(search)
        return DatasetStatus(
            name,
            summary,
            str(found or ""),
            _size_mib(found.all_files()) if found else None,
            source.licence,
            source.origin,
        )
    if name == "fashion-mnist-mini":
        folder = Path(__file__).parent / "fashion_mnist_mini"
        return DatasetStatus(
            name, summary, "shipped with fgbench", _size_mib(list(folder.iterdir())), "MIT", ""
        )
    found_in = "dataset.dir of a config" if name == "imagefolder" else "generated when needed"
    return DatasetStatus(
        name, summary, found_in, None, "your own" if name == "imagefolder" else "none needed", ""
    )


def _size_mib(files: list[Path]) -> float:
    try:
        return sum(file.stat().st_size for file in files) / MIB
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
