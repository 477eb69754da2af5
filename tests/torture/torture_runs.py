"""Runs that are killed, find their files damaged or the disk full, or race for one run directory."""

import functools
import shutil
import subprocess
import sys
import time

import torture_inputs as inputs
from arena import Arena, Tally, outcome, run

from fgbench.registry import TRAINERS


def torture_kills(arena: Arena, count: int) -> Tally:
    """SIGKILL at random instants; resumed, the run equals the undisturbed one."""
    tally, trainers = Tally(), list(TRAINERS)
    for trial in arena.trials(10 * count):
        if tally.outcomes["kills"] >= count:
            break
        trainer = trainers[trial % len(trainers)]
        config, _, seconds = arena.reference(trainer)
        results = arena.new_folder()
        for _ in range(arena.dice.randint(1, 4)):
            process = run(config, results)
            time.sleep(arena.dice.uniform(0, 1.1 * seconds))
            if process.kill():
                tally.outcomes["kills"] += 1
                half = [*results.rglob("*.tmp"), *results.rglob("*.new")]
                tally.outcomes["killed while a file was being written"] += bool(half)
                tally.outcomes["killed with a state saved"] += bool(list(results.rglob("state*.pt")))
        tally.note("runs killed and resumed to the undisturbed rows", arena.finish(trainer, results))
        shutil.rmtree(results)
    return tally


def torture_files(arena: Arena, count: int) -> Tally:
    """Damaged files are got over, or named; never a traceback, never other numbers."""
    tally = Tally()
    for trial in arena.trials(count):
        trainer, other = arena.any_trainer(), arena.any_trainer()
        results = arena.new_folder(arena.unfinished(trainer))
        names = arena.dice.choice(inputs.TARGETS)
        damage = arena.dice.choice(list(inputs.DAMAGES))
        for name in names:
            for path in results.rglob(name):
                stranger = next(arena.unfinished(other).rglob(name), path)
                inputs.DAMAGES[damage](path, stranger, arena.dice)
        config, rows, _ = arena.reference(trainer)
        code, text = run(config, results).wait()
        case = f"trial {trial}: {trainer}, {damage} {' and '.join(names)}"
        if code == 0:
            same = outcome(results) == rows
            tally.note("ran to the undisturbed rows", "" if same else f"{case}: {outcome(results)}"[:400])
        else:
            told = code == 1 and "Traceback" not in text and "--no-resume" in text
            tally.note("stopped and named the file", "" if told else f"{case}: exit {code}: {text[-1500:]}")
        shutil.rmtree(results)
    return tally


def torture_writes(arena: Arena, count: int) -> Tally:
    """Writes that fail half-way, at every stage: a clear line, and the run can be resumed."""
    tally = Tally()
    for trial in arena.trials(count):
        trainer = arena.any_trainer()
        config, _, _ = arena.reference(trainer)
        results = arena.new_folder(arena.dice.choice([None, arena.unfinished(trainer)]))
        if trial % 2:
            how = functools.partial(
                inputs.limit_file_size, arena.dice.choice([0, 40, 300, 1500, 4000, 8000, 12000])
            )
        else:
            how = functools.partial(inputs.fill_disk_after, arena.dice.randint(0, 40))
        code, text = run(config, results, prepare=how).wait()
        told = code == 0 or (code in (1, 2) and "Traceback" not in text and "cannot write" in text)
        wrong = "" if told else f"{how} exit {code}: {text[-1500:]}"
        ended = "wrote all it needed" if code == 0 else "stopped with a line, then resumed"
        tally.note(ended, wrong or arena.finish(trainer, results))
        shutil.rmtree(results)
    return tally


def torture_races(arena: Arena, count: int) -> Tally:
    """Processes racing for one run: one runs it, the others say who does."""
    tally = Tally()
    for trial in arena.trials(count):
        trainer = arena.any_trainer()
        config, rows, _ = arena.reference(trainer)
        results = arena.new_folder()
        start = time.monotonic() + 0.1
        wait = lambda start=start: time.sleep(max(0.0, start - time.monotonic()))  # noqa: E731
        racers = [run(config, results, prepare=wait) for _ in range(2 + trial % 7)]
        ends = [(racer.pid, *racer.wait()) for racer in racers]
        _judge_race(tally, trainer, ends, outcome(results) == rows)
        shutil.rmtree(results)
    return tally


def torture_command_races(arena: Arena, count: int) -> Tally:
    """The same of whole commands, each with imports of its own."""
    tally = Tally()
    for trial in arena.trials(count):
        trainer = arena.any_trainer()
        config, rows, _ = arena.reference(trainer)
        results = arena.new_folder()
        command = [sys.executable, "-m", "fgbench", "run", config, "--results", results, "--no-download"]
        racers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(2 + trial % 3)
        ]
        ends = [(racer.pid, *reversed((racer.communicate()[0], racer.returncode))) for racer in racers]
        _judge_race(tally, trainer, ends, outcome(results) == rows)
        shutil.rmtree(results)
    return tally


def _judge_race(tally: Tally, case: str, ends: list[tuple[int, int, str]], same: bool) -> None:
    """Count a race; ``ends`` are process ids, exit codes and outputs, ``same`` whether the rows are right."""
    ran = [pid for pid, _, text in ends if "resumes" in text or "epoch 1/" in text]
    told = [code == 1 and any(f"in use by process {pid} on" in text for pid in ran) for _, code, text in ends]
    late = [code == 0 and pid not in ran for pid, code, _ in ends]
    well = len(ran) == 1 and sum(told) + sum(late) == len(ends) - 1 and same
    tally.note(
        "races run by one process", "" if well else f"{case}: {[(*end, text[-200:]) for *end, text in ends]}"
    )
    tally.outcomes["processes that were told who holds the run"] += sum(told)
    tally.outcomes["processes that found it finished"] += sum(late)
