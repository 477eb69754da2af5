"""One part of a check, and its result."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of ``fgbench check``.

    Attributes:
        name: its name in the verdict.
        lines: its lines of the report: a title, and the results.
        consistent: None if there was nothing to compare with.
    """

    name: str
    lines: list[str]
    consistent: bool | None

    @classmethod
    def not_checked(cls, name: str, title: str, why: str) -> "Part":
        """A part without anything to compare with."""
        return cls(name, [title, f"  not checked: {why}"], None)


def verdict(parts: list[Part]) -> str:
    """``inconsistent``, naming the parts; ``consistent`` (at least with its formula); or ``not checked``."""
    wrong = [part.name for part in parts if part.consistent is False]
    open_ = [part.name for part in parts if part.consistent is None]
    if wrong:
        return f"inconsistent: {', '.join(wrong)}"
    if "formula" in open_:
        return f"not checked: {', '.join(open_)}"
    return "consistent" + (f"; not checked: {', '.join(open_)}" if open_ else "")
