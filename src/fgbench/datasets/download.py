"""Downloads a dataset so that neither a crash nor another process leaves an incomplete file."""

import fcntl
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fgbench.errors import DataError

LOCK_NAME = ".fgbench-download.lock"
STAGING_NAME = ".fgbench-download"
TIMEOUT_S = 60.0


def download_locked(torchvision_class: str, folder: Path, is_there: Callable[[], bool]) -> None:
    """Download a dataset into ``folder``, unless another process does so first.

    The files are downloaded to a temporary folder and moved when complete, so that other processes see a
    complete file or none.

    Args:
        torchvision_class: the name of a class of ``torchvision.datasets``; it checks the files' MD5 sums.
        folder: an existing folder, used as the class's ``root``.
        is_there: whether the files are there; called with the lock held.

    Raises:
        DataError: the download fails, the disk is full, or the files are damaged.
    """
    try:
        with _lock(folder / LOCK_NAME):
            if is_there():
                return
            staging = folder / STAGING_NAME
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            try:
                print(f"downloading {torchvision_class} into {folder}", file=sys.stderr)
                download(torchvision_class, staging)
                _move_files(staging, folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot download {torchvision_class} into {folder}: {reason}") from error


def download(torchvision_class: str, root: Path) -> None:
    """Let torchvision download, check and unpack a dataset below ``root``."""
    from torchvision import datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)  # torchvision sets none: a dead connection would hang forever
    try:
        getattr(datasets, torchvision_class)(root, download=True)
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that downloads into {path.parent}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _move_files(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
