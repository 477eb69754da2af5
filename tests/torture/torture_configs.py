"""Configs with anything in them, and overrides in any order."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import torture_inputs as inputs
import yaml
from arena import MEMORY, Arena, Process, Tally, call_here


def torture_configs(arena: Arena, count: int) -> Tally:
    """Mutated configs run, or end with exit code 2, a few lines and nothing written."""
    tally = Tally()
    for _ in arena.trials(count):
        path = arena.new_folder() / "mutant.yaml"
        kind = inputs.write_mutant(path, arena.dice)
        results = path.parent / "results"
        command = ("run", path, "--results", results, "--no-download")
        code, text = call_here(*command, "--dry-run")
        if code == 0:
            wrong = results.exists()
            ended = "valid at --dry-run"
        else:
            told = code == 2 and text.startswith("fgbench: ") and text.count("\n") <= 26 and len(text) < 6000
            wrong = not told or results.exists()
            ended = "refused with exit code 2"
        if code == 0 and arena.dice.random() < 0.2:
            limit = functools.partial(inputs.limit_memory, MEMORY)
            code, text = Process(*command, "--epochs", 1, prepare=limit).wait()
            ended = {0: "ran", 1: "failed with a line", 4: "ran and diverged"}.get(code, f"exit {code}")
            wrong = code not in (0, 1, 4)
        wrong = wrong or "Traceback" in text
        content = path.read_bytes()[:400] if path.is_file() else b""
        tally.note(ended, f"{kind} {content!r}: exit {code}: {text[-1500:]}" if wrong else "")
        shutil.rmtree(path.parent)
    return tally


def torture_overrides(arena: Arena, count: int) -> Tally:
    """Overrides give one config in whatever order; what they or the file say is kept, or told as dropped."""
    tally = Tally()
    for _ in arena.trials(count):
        path = inputs.write_config(arena.new_folder() / "overridden.yaml", arena.any_trainer())
        overrides = inputs.draw_overrides(arena.dice)
        shows = [_show(path, arena.dice.sample(overrides, len(overrides))) for _ in range(3)]
        code, config, notes = shows[0]
        case = f"{overrides} over {path.read_text()}"
        if any(each[:2] != (code, config) for each in shows):
            tally.note("overrides", f"{case}: it depends on the order: {shows}"[:1500])
        elif code == 0:
            lost = _find_lost(json.loads(path.read_text()), overrides, config, notes)
            ended = "one config, with a word about what it drops" if "drops" in notes else "one config"
            tally.note(ended, f"{case}: without a word: {lost}; {notes}"[:1500] if lost else "")
        else:
            tally.note(
                "refused with exit code 2", "" if code == 2 and len(notes) < 6000 else f"{case}: {notes}"
            )
        shutil.rmtree(path.parent)
    return tally


def _show(path: Path, overrides: list[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, the whole config and what else was said."""
    code, text = call_here("config", "show", path, *(word for each in overrides for word in ("-o", each)))
    notes = [line for line in text.splitlines() if line.startswith(("fgbench: ", "-o "))]
    rest = "\n".join(line for line in text.splitlines() if line not in notes)
    return code, yaml.safe_load(rest) if code == 0 else {}, "\n".join(notes) if code == 0 else text


def _find_lost(file: dict[str, Any], overrides: list[str], config: dict[str, Any], notes: str) -> list[str]:
    """What was said in the file or by an override, and is neither in the config nor in the notes."""
    said = {
        f"{block}.{key}": value
        for block, inner in file.items()
        if isinstance(inner, dict)
        for key, value in inner.items()
    }
    said |= {key: value for key, value in file.items() if not isinstance(value, dict)}
    for override in overrides:
        key, _, value = override.partition("=")
        said[f"{key}.name" if key in file and isinstance(file[key], dict) else key] = yaml.safe_load(value)
    lost = []
    for key, value in said.items():
        block, _, last = key.rpartition(".")
        found = (config.get(block, {}) if block else config).get(last)
        if found != value and f"{key}:" not in notes:
            lost.append(f"{key}: {value} is {found}")
    return lost
