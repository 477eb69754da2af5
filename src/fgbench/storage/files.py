"""Files that survive a crash: written beside the old version, flushed to the disk, then renamed."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from fgbench.errors import FgbenchError


def atomic_write(path: Path, content: bytes | str) -> None:
    """Replace a whole file: even after a crash at any instant, it holds either the old or the new content.

    Raises:
        FgbenchError: the disk is full or the path is not writable; the old file is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        refuse(path, error)


def append_line(path: Path, line: bytes) -> None:
    """Append a line to an existing file and flush it to the disk; an incomplete last line is removed first.

    Raises:
        FgbenchError: the disk is full or the file cannot be written; the earlier lines are intact.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            end = file.readall().rfind(b"\n") + 1
            file.seek(end)
            file.truncate()
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        refuse(path, error)


def refuse(path: Path, error: OSError) -> NoReturn:
    """Raise an error that says in one line that ``path`` could not be written, and why.

    Raises:
        FgbenchError: always.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "; what was saved before is intact: make room and run it again to resume" if full else ""
    raise FgbenchError(f"cannot write {path}: {error.strerror}{hint}") from error


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot flush a folder
            raise
    finally:
        os.close(descriptor)
