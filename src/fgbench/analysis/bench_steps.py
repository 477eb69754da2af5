"""Step times that ``fgbench bench`` measured, read from its folders."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """The step time of one case, measured in one process with the other cases of the same model.

    Attributes:
        model: the model.
        batch_size: images per step.
        case: as ``fgbench bench`` names it.
        time_ms: median over rounds.
        spread_ms: distance between the quartiles.
        rounds: how many.
        time_to_backprop: median over rounds of the ratio to backprop's step of the same round.
        device: kind of device, such as ``cpu``.
        noise: why the times cannot be trusted; empty if they can.
        source: the file it is from: ratios are to backprop in the same process.
    """

    model: str
    batch_size: int
    case: str
    time_ms: float
    spread_ms: float
    rounds: int
    time_to_backprop: float
    device: str
    noise: str = ""
    source: str = ""

    def interval(self, backprop: "Step") -> tuple[float, float]:
        """About 95 % of the ratio to backprop's time, on a logarithmic scale, from the quartiles.

        The standard error of a median is about 1.2533 standard deviations over the root of the rounds, and
        the quartiles of a normal distribution are 1.349 standard deviations apart; with Student's t.
        """
        spread = math.hypot(self.spread_ms / self.time_ms, backprop.spread_ms / backprop.time_ms)
        half = float(stats.t.ppf(0.975, self.rounds - 1)) * 1.2533 / 1.349 * spread / math.sqrt(self.rounds)
        middle = math.log(self.time_to_backprop)
        return middle - half, middle + half


def load_steps(path: str | Path) -> list[Step]:
    """Every case in a ``bench.csv`` at or below ``path``; what cannot be read is named in a warning."""
    steps = []
    for file in sorted(Path(path).rglob("bench.csv")):
        try:
            report = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            device = str(report["environment"]["device"]).partition(":")[0]
            table = pd.read_csv(file).dropna(subset=["step_time_ms", "time_to_backprop"])
            steps += [
                Step(
                    *(row["model"], int(row["batch_size"]), row["case"]),
                    *(row["step_time_ms"], row["step_time_spread_ms"], int(row["rounds"])),
                    *(row["time_to_backprop"], device),
                    noise=report.get("noise") or "",
                    source=str(file),
                )
                for row in table.to_dict("records")
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: not a benchmark that can be read (%s); left out", file, error)
    return steps
