"""Where datasets are looked for. Imports no torch."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSearch:
    """The folders to look for datasets in, in order, and whether a missing one may be downloaded.

    Attributes:
        data_dir: given on the command line.
        config_dir: given in the config.
        download: whether a dataset found nowhere is fetched from the network.
    """

    data_dir: Path | None = None
    config_dir: Path | None = None
    download: bool = True

    def given_folders(self) -> list[Path]:
        """The folders the user named: ``--data-dir``, the config's, ``FGBENCH_DATA_DIR``."""
        variable = os.environ.get("FGBENCH_DATA_DIR")
        named = (self.data_dir, self.config_dir, Path(variable) if variable else None)
        return _distinct([folder for folder in named if folder is not None])

    def folders(self) -> list[Path]:
        """Every folder to look in, the first one first: the given ones, ``./data``, ``~/.cache/fgbench``."""
        return _distinct([*self.given_folders(), Path("data"), *_cache()])

    def download_folder(self) -> Path | None:
        """The first folder that can be written, made if need be; ``./data`` only where there is one."""
        local = [Path("data")] if Path("data").is_dir() else []
        for folder in _distinct([*self.given_folders(), *local, *_cache()]):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError):  # ValueError: no possible name of a folder
                continue
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
        return None


def _cache() -> list[Path]:
    try:
        return [Path.home() / ".cache" / "fgbench"]
    except RuntimeError:  # no home folder
        return []


def _distinct(folders: list[Path]) -> list[Path]:
    return list(dict.fromkeys(Path(os.path.expanduser(folder)).absolute() for folder in folders))  # noqa: PTH111
