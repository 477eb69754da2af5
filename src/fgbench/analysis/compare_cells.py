"""The cells of comparison tables, as text."""

import math
from statistics import fmean, median

from fgbench.analysis.cautions import find_caution
from fgbench.analysis.compare import Comparison, compare_pair
from fgbench.analysis.pairing import Pair
from fgbench.analysis.readings import MEASURES, Column
from fgbench.analysis.time_to import TimeTo, geometric_mean
from fgbench.formatting import format_number

NO_CLAIM = "no claim"
"""In place of a ratio that says nothing; the line below its table says why."""


def difference_text(comparison: Comparison) -> str:
    """The mean difference and its interval; why there is none, if there is none."""
    paired, form = comparison.paired, f"+{comparison.measure.form}"
    if paired is None:
        return "-"
    interval = ", ".join(format_number(end, form) for end in paired.interval or ())
    return format_number(paired.mean, form) + (f" [{interval}]" if interval else "")


def mean_texts(comparison: Comparison) -> list[str]:
    """The mean of each side over the paired seeds; none of those that survived alone."""
    if not comparison.values:
        return ["-", "-"]
    means = [fmean(side) for side in zip(*comparison.values, strict=True)]
    return ["-" if math.isnan(mean) else format_number(mean, comparison.measure.form) for mean in means]


def effect_size_text(comparison: Comparison) -> str:
    """Cohen's d_z with its sign."""
    effect = comparison.paired.effect_size if comparison.paired else None
    return "-" if effect is None or math.isinf(effect) else format_number(effect, "+.1f")


def p_text(comparison: Comparison) -> str:
    """The adjusted p value."""
    p = comparison.p_adjusted
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001"


def budget_text(comparison: Comparison) -> str:
    """The difference at one budget, what may be said of it, the budget, and epochs that differ."""
    limit = f"{comparison.limit:.4g}"
    unit = {
        "epochs": f"epoch {limit}",
        "time": f"{limit} s",
        "memory": f"{format_number(comparison.limit, '.1f')} MiB",
        "passes": f"{limit} passes",
    }
    paired, form = comparison.paired, comparison.measure.form
    if paired is None:
        return comparison.conclusion
    spread = "" if paired.interval is None else f" ± {format_number(paired.interval[1] - paired.mean, form)}"
    mean = format_number(paired.mean, f"+{form}")
    read_at = [
        "-".join(str(epoch) for epoch in sorted({min(side), max(side)}))
        for side in zip(*comparison.epochs, strict=True)
    ]
    epochs = "" if read_at[0] == read_at[1] else f", epochs {read_at[0]} / {read_at[1]}"
    return f"{mean}{spread} {comparison.conclusion} ({unit[comparison.budget]}{epochs})"


def step_cost_text(pair: Pair, attribute: str, form: str) -> str:
    """What a step costs, and in brackets what one of the baseline's does; the median over runs."""
    if attribute == "drawing_ms_per_step" and find_caution(pair, MEASURES["epoch_time_s"]):
        return NO_CLAIM
    both = []
    for series in (pair.series, pair.baseline):
        known = [value for run in series.averaged if not math.isnan(value := getattr(run, attribute))]
        both.append(f"{median(known):{form}}" if known else "-")
    return both[0] if both == ["-", "-"] else f"{both[0]} ({both[1]})"


def cost_ratio_text(pair: Pair, measure: Column) -> str:
    """The geometric mean over seeds of a cost as a multiple of the baseline's."""
    if find_caution(pair, measure):
        return NO_CLAIM
    values = compare_pair(pair, measure).values
    ratio = geometric_mean([mine / other if other else math.nan for mine, other in values])
    return "-" if math.isnan(ratio) else f"{format_number(ratio, '.2f')}×"


def time_to_text(reached: TimeTo | None) -> str:
    """How long both took to the same value, as a ratio and in seconds."""
    if reached is None:
        return "-"
    if reached.in_first_epoch:
        return "both within an epoch"
    arrived = [sum(map(math.isfinite, side)) for side in zip(*reached.seconds, strict=True)]
    n = len(reached.seconds)
    if arrived != [n, n]:
        return f"reached by {arrived[0]} of {n}; baseline {arrived[1]} of {n}"
    if find_caution(reached.pair, reached.measure, "time"):
        return NO_CLAIM
    mine, other = (fmean(side) for side in zip(*reached.seconds, strict=True))
    return f"{format_number(reached.ratio, '.2f')}× ({mine:.3g} s / {other:.3g} s)"


def time_to_accuracy_text(reached: TimeTo | None) -> str:
    """The same, with the accuracy where the cell speaks of one."""
    text = time_to_text(reached)
    if reached is None or reached.in_first_epoch or text == NO_CLAIM:
        return text
    return f"{text} to {reached.targets[0]:.2f}"
