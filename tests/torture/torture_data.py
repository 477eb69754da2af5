"""Data files of every form, damaged, odd, or changed while a run is waiting to be resumed."""

import functools
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import data_files
import torture_inputs as inputs
from arena import Arena, Process, Tally, outcome, run

from fgbench.datasets import standard_sets
from fgbench.datasets.fingerprint import Fingerprint
from fgbench.datasets.official import OFFICIAL
from fgbench.datasets.options import ImageFolderOptions, StandardOptions
from fgbench.datasets.search import DataSearch
from fgbench.registry import load
from fgbench.storage.run_directory import RunDirectory

OWN = "own pictures"
FORMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "packed idx files": ("mnist", lambda folder: data_files.write_idx_files(folder)),
    "idx files": ("mnist", lambda folder: data_files.write_idx_files(folder, packed=False)),
    "tables": ("mnist", lambda folder: data_files.write_tables(folder)),
    "class folders": ("mnist", lambda folder: data_files.write_class_folders(folder, (28, 28), "0123456789")),
    "pickled batches": ("cifar10", lambda folder: data_files.write_cifar10(folder)),
    "archive of pickled batches": ("cifar10", lambda folder: data_files.write_cifar10(folder, archive=True)),
    "binary batches": ("cifar10", lambda folder: data_files.write_binary_cifar10(folder)),
    OWN: ("imagefolder", lambda folder: data_files.write_class_folders(folder, (12, 12), "abcdefghij")),
}


def _link_to_itself_elsewhere(path: Path, *_: Any) -> None:
    moved = path.with_name(f".{path.name}.moved")
    path.rename(moved)
    path.symlink_to(moved)


def _replace_by_a_folder(path: Path, *_: Any) -> None:
    path.unlink()
    path.mkdir()


def _link_to_nothing(path: Path, *_: Any) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


def _end_lines_as_windows(path: Path, *_: Any) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


ODD: dict[str, Callable[[Path, Path, random.Random], Any]] = {
    "linked": _link_to_itself_elsewhere,
    "a folder": _replace_by_a_folder,
    "linked to nothing": _link_to_nothing,
    "with CRLF": _end_lines_as_windows,
    "beside a hidden file": lambda path, *_: path.with_name(".DS_Store").write_bytes(b"Bud1"),
    "beside notes": lambda path, *_: path.with_name("Thumbs.db").write_bytes(b"notes"),
    "doubled": lambda path, *_: path.write_bytes(2 * path.read_bytes()),
    "with more behind": lambda path, _, dice: path.write_bytes(path.read_bytes() + dice.randbytes(99)),
    "renamed": lambda path, *_: path.rename(path.with_name(f"x{path.name}")),
}
DAMAGES = inputs.DAMAGES | ODD


class Data:
    """Made-up data in every form, taken for the official sets; runs on it undisturbed and killed."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.folder = arena, arena.new_folder()
        for form, (name, write) in FORMS.items():
            write(self._place(self.folder / form, form))
            if name in OFFICIAL:
                standard_sets._read.cache_clear()
                found = self.fingerprint(form, self.folder / form)
                standard_sets._read.cache_clear()
                OFFICIAL[name] = replace(
                    OFFICIAL[name], images=dict(found.images), content=dict(found.content)
                )

    def _place(self, folder: Path, form: str) -> Path:
        return folder / "pictures" if FORMS[form][0] == "imagefolder" else folder

    def fingerprint(self, form: str, folder: Path) -> Fingerprint:
        """Of what is loaded from a folder."""
        name = FORMS[form][0]
        own = name == "imagefolder"
        options = ImageFolderOptions(dir="pictures", size=8) if own else StandardOptions(name=name)
        return load("dataset", name)(options, DataSearch(folder, download=False)).fingerprint

    def config(self, form: str, trainer: str) -> Path:
        """A config of a run on data in a form."""
        name = FORMS[form][0]
        own = {"dir": "pictures", "size": 8} if name == "imagefolder" else {}
        path = self.arena.folder / f"{form} {trainer}.yaml"
        return inputs.write_config(path, trainer, dataset={"name": name, **own})

    def copy(self, form: str) -> Path:
        """A new folder for ``--data-dir`` with the data."""
        return self.arena.new_folder(self.folder / form)

    def run(self, form: str, results: Path, folder: Path, trainer: str = "backprop") -> Process:
        """A run on data in a folder."""
        return run(self.config(form, trainer), results, "--data-dir", folder)

    @functools.cache  # noqa: B019
    def undisturbed(self, form: str, trainer: str = "backprop") -> list[dict[str, Any]]:
        """The rows of a run on the data as it was written."""
        results = self.arena.new_folder()
        code, text = self.run(form, results, self.folder / form, trainer).wait()
        rows = outcome(results)
        if code or isinstance(rows, str):
            raise SystemExit(f"the undisturbed run of {trainer} on {form} failed: {text}")
        return rows

    @functools.cache  # noqa: B019
    def killed(self, trainer: str) -> Path:
        """Results with a run on the user's own pictures, killed when it had a state."""
        results = self.arena.new_folder()
        process = self.run(OWN, results, self.folder / OWN, trainer)
        while not list(results.rglob("state.pt")):
            time.sleep(0.001)
        process.kill()
        return results


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def torture_data(arena: Arena, count: int) -> Tally:
    """Damaged data files are refused, touch no image, or the run says what it is made on."""
    tally, data, forms = Tally(), Data(arena), list(FORMS)
    for trial in arena.trials(count):
        form = forms[trial % len(forms)]
        rows, folder, results = data.undisturbed(form), data.copy(form), arena.new_folder()
        path, stranger = arena.dice.sample(_files(folder) * 2, 2)
        damage = arena.dice.choice(list(DAMAGES))
        DAMAGES[damage](path, stranger, arena.dice)
        code, text = data.run(form, results, folder).wait()
        case = f"trial {trial}: {form}, {path.name} {damage}: exit {code}: {text[-1500:]}"
        if code == 0 and outcome(results) == rows:
            tally.note("ran to the undisturbed rows")
        elif code == 0 and "(not the official set, which has" in text.partition("\n")[0]:
            tally.note("ran on another number of images and said so")
        elif code == 0:
            [env] = results.rglob("env.json")
            found = RunDirectory(env.parent).read_env()["data"]
            whole = data.fingerprint(form, data.folder / form)
            reordered = found["content"] == whole.content and found["loaded"] != whole.loaded
            known = reordered or (form == OWN and found["loaded"] != whole.loaded)
            ended = "ran on the same images in another order" if reordered else "ran on other own pictures"
            tally.note(f"{ended}, as its digest says", "" if known else case)
        else:
            told = code == 2 and "Traceback" not in text and not list(results.iterdir())
            tally.note("refused with exit code 2", "" if told else case)
        shutil.rmtree(folder)
        shutil.rmtree(results)
    return tally


def _move_to_another_class(path: Path, stranger: Path, _: random.Random) -> None:
    path.rename(stranger.with_name(f"moved-{path.name}"))


def _remove_a_class(path: Path, *_: Any) -> None:
    for part in ("train", "test"):
        shutil.rmtree(path.parents[2] / part / path.parent.name)


CHANGES: dict[str, Callable[[Path, Path, random.Random], Any]] = {
    "an image removed": lambda path, *_: path.unlink(),
    "an image in place of another": lambda path, stranger, _: shutil.copy(stranger, path),
    "an image in another class": _move_to_another_class,
    "an image added": lambda path, stranger, _: shutil.copy(stranger, path.with_name("more.png")),
    "an image renamed": lambda path, *_: path.rename(path.with_name(f"zz-{path.name}")),
    "a class removed": _remove_a_class,
}


def torture_changes(arena: Arena, count: int) -> Tally:
    """Data changed between a kill and the next start is refused; put back, the run goes on."""
    tally, data = Tally(), Data(arena)
    for trial in arena.trials(count):
        trainer = arena.any_trainer()
        folder, results = data.copy(OWN), arena.new_folder(data.killed(trainer))
        kept = {path: path.read_bytes() for path in _files(results)}
        change = list(CHANGES)[trial % len(CHANGES)]
        CHANGES[change](*arena.dice.sample(_files(folder / "pictures" / "train"), 2), arena.dice)
        loaded = [data.fingerprint(OWN, each).loaded for each in (folder, data.folder / OWN)]
        if loaded[0] != loaded[1]:
            code, text = data.run(OWN, results, folder, trainer).wait()
            told = code == 2 and "this run started on other data" in text
            untouched = kept == {path: path.read_bytes() for path in _files(results)}
            case = f"trial {trial}: {trainer}, {change}: exit {code}, files kept: {untouched}: {text[-800:]}"
            tally.note("refused with exit code 2, nothing written", "" if told and untouched else case)
        code, text = data.run(OWN, results, data.folder / OWN, trainer).wait()
        same = code == 0 and "resumes" in text and outcome(results) == data.undisturbed(OWN, trainer)
        case = f"trial {trial}: {trainer}, {change} and put back: exit {code}: {text[-800:]}"
        tally.note("resumed to the undisturbed rows once the data was back", "" if same else case)
        shutil.rmtree(folder)
        shutil.rmtree(results)
    return tally
