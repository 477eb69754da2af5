"""What tests/torture/torture.py throws at runs: configs, mutants of them, damaged files, failing writes."""

import errno
import json
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_models import model_for

from fgbench.registry import DATASETS, MODELS, TABLES, TRAINERS, options_model

TINY = {
    "name": "tiny",
    "dataset": {
        "name": "synthetic",
        "shape": [1, 8, 8],
        "classes": 3,
        "train": 60,
        "test": 12,
        "augment": True,
    },
    "model": {"name": "fc", "hidden": 6, "dropout": 0.2},
    "trainer": {"name": "backprop"},
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    "schedule": {"name": "cosine"},
    "saving": {"every": 1, "keep": 2, "every_steps": 4},
    "batch_size": 8,
    "epochs": 4,
    "threads": 1,
    "device": "cpu",
}
PLAIN_VALUES: list[Any] = [
    True,
    False,
    None,
    1,
    2,
    3,
    5,
    0.5,
    0.25,
    0,
    "sphere",
    "rademacher",
    "step",
    "bf16",
]
ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        7,
        64,
        5000,
        10**6,
        10**9,
        2**31,
        2**63,
        10**30,
        -(10**30),
        0.5,
        1.0,
        -0.1,
    ),
    *(
        1e-300,
        1e308,
        "nan",
        ".inf",
        "-.inf",
        "1e-3",
        "",
        " ",
        "x",
        "x" * 5000,
        "../../x",
        "/",
        "~nobody/x",
        "a\0b",
    ),
    *(
        "\u202e",
        "é" * 50,
        "cuda:99",
        "os:system",
        "fgbench.cli.app:app",
        "nothing.here:Thing",
        "synthetic",
        "adam",
    ),
    *([], [1], [1, 8, 8], [[]], [1, "x", None], {}, {"a": 1}, {"name": "fc"}, {"name": None}, [0] * 1000),
    *(*TRAINERS, *MODELS, *DATASETS),
]
TARGETS = [
    *(("state.pt",), ("state-1.pt",), ("state.pt", "state-1.pt"), ("metrics.csv",), ("status.json",)),
    *(("config.yaml",), ("env.json",), ("state.pt", "metrics.csv", "status.json")),
]


def write_config(path: Path, trainer: str, **changes: Any) -> Path:
    """A config of a run that takes a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {**TINY, "trainer": {"name": trainer}, "model": model_for(trainer, TINY["model"])}
    path.write_text(json.dumps({**settings, **changes}))
    return path


def write_mutant(path: Path, dice: random.Random) -> str:
    """A config with one to three things changed; says how."""
    kind = dice.choice(["values", "values", "values", "keys", "bytes", "encoding", "extreme"])
    config = json.loads(json.dumps({**TINY, "trainer": {"name": dice.choice(list(TRAINERS))}, "epochs": 1}))
    if kind in ("values", "keys"):
        for _ in range(dice.choice([1, 1, 2, 3])):
            _mutate(config, dice, kind)
    content = json.dumps(config, indent=dice.choice([None, 1]), ensure_ascii=dice.random() < 0.5).encode()
    if kind == "bytes":
        for _ in range(dice.randint(1, 4)):
            start = dice.randrange(len(content) + 1)
            inserted = dice.choice(
                [b"", dice.randbytes(3), b"{", b"}", b":", b"\n- ", b"&a *a", b"!!python/x ", b"\t"]
            )
            content = content[:start] + inserted + content[start + dice.choice([0, 1, 2, 20]) :]
    elif kind == "encoding":
        text = content.decode().replace("tiny", "tïny" if dice.random() < 0.5 else "tiny")
        content = text.encode(dice.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1", "cp037", "utf-16-le"]))
    elif kind == "extreme":
        length = dice.choice([1, 100, 10**4, 10**6])
        choices = [
            b"",
            b"\n",
            b"#",
            b"\0",
            b"[",
            b"{a: ",
            b"- ",
            b"a: 1\n",
            content + b"\n",
            dice.randbytes(9),
        ]
        content = dice.choice(choices) * length
        content = content[: 10**6] if dice.random() < 0.8 else b""
        if dice.random() < 0.05:
            path.mkdir()
            return "a folder"
    path.write_bytes(content)
    return kind


def _mutate(config: dict[str, Any], dice: random.Random, kind: str) -> None:
    blocks = [config, *(value for value in config.values() if isinstance(value, dict))]
    block = dice.choice(blocks)
    known = list(block)
    for kind_of_block, table in TABLES.items():
        name = block.get("name")
        if block is config.get(kind_of_block) and isinstance(name, str) and name in table:
            known += options_model(kind_of_block, name).model_fields
    if not known:
        return
    key = dice.choice(known)
    if kind == "values":
        block[key] = dice.choice(dice.choice([ODD_VALUES, PLAIN_VALUES, PLAIN_VALUES]))
    else:
        value = block.pop(key, dice.choice(ODD_VALUES))
        if dice.random() < 0.7:
            block[
                dice.choice(
                    [key + "s", key.upper(), key[:-1], "", "x" * 300, "a.b", "name", "é", "1", "null"]
                )
            ] = value


OVERRIDES: dict[str, list[Any]] = {
    "trainer": list(TRAINERS),
    "trainer.tangents": [1, 2, 4],
    "trainer.guess": ["normal", "rademacher", "sphere"],
    "trainer.structure": ["full", "rank1"],
    "optimizer": ["sgd", "adam", "adamw"],
    "optimizer.lr": [1, 0.5, 0.002],
    "optimizer.momentum": [0.1, 0.5],
    "optimizer.weight_decay": [0.1, 0.01],
    "schedule": ["constant", "cosine"],
    "model": ["fc", "cnn"],
    "model.hidden": [4, 8],
    "dataset": ["synthetic", "mnist"],
    "dataset.limit": [20, 30],
    "dataset.augment": ["false", "true"],
    "epochs": [1, 2],
    "batch_size": [4, 16],
}


def draw_overrides(dice: random.Random) -> list[str]:
    """Two to five overrides of different keys."""
    keys = dice.sample(list(OVERRIDES), dice.randint(2, 5))
    return [f"{key}={dice.choice(OVERRIDES[key])}" for key in keys]


def _truncate(path: Path, _stranger: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content))])


def _flip(path: Path, _stranger: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 1, 8])):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path, random.Random], Any]] = {
    "truncated": _truncate,
    "bit-flipped": _flip,
    "swapped": lambda path, stranger, _: path.write_bytes(stranger.read_bytes()),
    "emptied": lambda path, *_: path.write_bytes(b""),
    "missing": lambda path, *_: path.unlink(),
    "overwritten": lambda path, _, dice: path.write_bytes(dice.randbytes(500)),
}


def limit_memory(size: int) -> None:
    """Let this process have so many bytes of address space more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + size, resource.RLIM_INFINITY))


def limit_file_size(size: int) -> None:
    """Let this process write no file past so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill_disk_after(count: int) -> None:
    """Let this process flush so many files, and then find the disk full."""
    fsync, done = os.fsync, iter(range(count))

    def flush(descriptor: int) -> None:
        if next(done, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    os.fsync = flush
