"""The folders that are searched for datasets."""

import os
from dataclasses import dataclass
from pathlib import Path

from fgbench.errors import DataError
from fgbench.paths import expand_path


@dataclass(frozen=True)
class DataSearch:
    """The folders to search for datasets, in order, and whether a missing dataset may be downloaded.

    Attributes:
        data_dir: given on the command line.
        config_dir: given in the config.
        download: whether a dataset that is not found is downloaded.
    """

    data_dir: Path | None = None
    config_dir: Path | None = None
    download: bool = True

    @property
    def named(self) -> Path | None:
        """The folder given by the user, which is then the only one: ``--data-dir``, else the config's."""
        given = self.data_dir if self.data_dir is not None else self.config_dir
        return None if given is None else _absolute(given)

    def folders(self) -> list[Path]:
        """Every folder to search: only the named one, or $FGBENCH_DATA_DIR, ./data, ~/.cache/fgbench."""
        if self.named is not None:
            return [self.named]
        return list(dict.fromkeys([*_variable(), Path("data").absolute(), *_cache()]))

    def download_folder(self) -> Path | None:
        """The first writable folder, created if necessary; ``./data`` only if it exists."""
        local = [Path("data").absolute()] if Path("data").is_dir() else []
        for folder in [self.named] if self.named is not None else [*_variable(), *local, *_cache()]:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError):  # ValueError: no possible name of a folder
                continue
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
        return None


def _variable() -> list[Path]:
    given = os.environ.get("FGBENCH_DATA_DIR")
    return [_absolute(given)] if given else []


def _cache() -> list[Path]:
    try:
        return [(Path.home() / ".cache" / "fgbench").absolute()]
    except RuntimeError:  # no home folder
        return []


def _absolute(path: str | Path) -> Path:
    try:
        return expand_path(path).absolute()
    except ValueError as error:
        raise DataError(f"data folder: {error}") from error
