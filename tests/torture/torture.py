"""Try to break runs: kills, mutated configs, overrides, damaged files, other data, failing writes, races.

Processes are forked from this one, which has imported everything, and go through the command line.
``python tests/torture/torture.py`` takes about half an hour and writes results/reliability.md;
``--quick`` is a taste of it that writes nothing. Exit code 1 when anything went wrong.
"""

import argparse
import contextlib
import io
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process whose threads have started cannot be forked safely
sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import torch
import torture_configs
import torture_data
import torture_inputs as inputs
import torture_runs
from arena import Arena, Tally

from fgbench.config.config import load_config
from fgbench.measure import describe_environment
from fgbench.registry import TRAINERS
from fgbench.run import runner

FULL = {
    "kills": 200,
    "configs": 3000,
    "overrides": 300,
    "damages": 100,
    "data": 150,
    "changes": 50,
    "full disks": 40,
    "races": 500,
    "command races": 30,
}
QUICK = {
    "kills": 2,
    "configs": 20,
    "overrides": 10,
    "damages": 2,
    "data": 6,
    "changes": 2,
    "full disks": 2,
    "races": 2,
    "command races": 0,
}

PARTS = {
    "SIGKILL at random instants": (torture_runs.torture_kills, "kills"),
    "Mutated configs": (torture_configs.torture_configs, "configs"),
    "Overrides in any order": (torture_configs.torture_overrides, "overrides"),
    "Truncated, bit-flipped, swapped, emptied, missing files of a run": (
        torture_runs.torture_files,
        "damages",
    ),
    "The same for data files of every form, and odd ones": (torture_data.torture_data, "data"),
    "Data changed between a kill and the next start": (torture_data.torture_changes, "changes"),
    "Writes that fail half-way": (torture_runs.torture_writes, "full disks"),
    "Two to eight forked processes racing for one run": (torture_runs.torture_races, "races"),
    "Two to four whole commands racing for one run": (torture_runs.torture_command_races, "command races"),
}


def torture(
    counts: dict[str, int], seed: int, only: list[str], report: Callable[[dict[str, Tally]], object]
) -> bool:
    """Run every part, reporting after each; whether nothing went wrong."""
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        _import_everything(Path(folder))
        arena = Arena(Path(folder), random.Random(seed))
        for title, (part, count) in PARTS.items():
            if only and count not in only:
                continue
            start = time.perf_counter()
            tallies[title] = part(arena, counts[count])
            print(
                f"{title}: {dict(tallies[title].outcomes)}, {time.perf_counter() - start:.0f} s", flush=True
            )
            for failure in tallies[title].failures:
                print(f"  WRONG: {failure}", flush=True)
            report(tallies)
    return not any(tally.failures for tally in tallies.values())


def _import_everything(folder: Path) -> None:
    """Make a dry run of every trainer here, for what is imported late; torch starts no threads for it."""
    import pandas  # noqa: F401
    import PIL.Image  # noqa: F401

    with contextlib.redirect_stdout(io.StringIO()):
        for name in TRAINERS:
            config = inputs.write_config(folder / "imports.yaml", name)
            runner.run_configs([load_config(config)], dry_run=True)


def to_markdown(tallies: dict[str, Tally], command: str, seconds: float) -> str:
    """The table of counts, and where it comes from."""
    here = describe_environment(torch.device("cpu"))
    lines = [
        "# How hard it was tried to lose a run",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes on "
        f"{here['cpu_cores']} cores of {here['cpu']} (Python {platform.python_version()}, "
        f"torch {torch.__version__}); commit {(here['git_commit'] or 'unknown')[:10]}. "
        f"Trainers: {', '.join(TRAINERS)}.",
        "",
        "| trial | outcome | count |",
        "|---|---|---:|",
    ]
    for title, tally in tallies.items():
        lines += [f"| {title} | {name} | {number} |" for name, number in tally.outcomes.items()]
        lines.append(f"| {title} | **anything else** | {len(tally.failures)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse, torture, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few of each, nothing written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], choices=FULL, help="parts, by what they count")
    parser.add_argument("--out", type=Path, default=Path("results/reliability.md"))
    options = parser.parse_args()
    start = time.perf_counter()
    command = f"python tests/torture/torture.py --seed {options.seed}"
    command += f" --only {' '.join(options.only)}" if options.only else ""

    def write(tallies: dict[str, Tally]) -> None:
        if not options.quick:
            options.out.write_text(to_markdown(tallies, command, time.perf_counter() - start))

    return int(not torture(QUICK if options.quick else FULL, options.seed, options.only, write))


if __name__ == "__main__":
    sys.exit(main())
