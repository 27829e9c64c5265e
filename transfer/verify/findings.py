"""What verify says: one finding a line, with what is wrong, by how much, and the way out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

# error: the detector's maps are not the checkpoint's; warning: they are, but training departs from
# the protocol of self-supervised papers; note: nothing to mend
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


class VerifyError(ValueError):
    """Weights or a recipe that cannot be checked at all."""


@dataclass(frozen=True)
class Finding:
    """One thing that verify found."""

    severity: Severity
    subject: str  # a key of the recipe, or "weights"
    text: str
    way_out: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)  # max|a-b| / max|right|

    def line(self) -> str:
        measured = f" [{shown(self.levels)}]" if self.levels else ""
        way_out = f" {self.way_out}" if self.way_out else ""
        return f"{self.severity:<8}{self.subject}: {self.text}{measured}.{way_out}"

    def record(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v}


def shown(levels: Mapping[str, float]) -> str:
    return ", ".join(f"{level} {relative:.1e}" for level, relative in levels.items())


def setting(key: str, value: Any) -> str:
    """The line of YAML that gives ``key`` this value: ``INPUT: {FORMAT: RGB}``."""
    *outer, last = key.split(".")
    text = f"{last}: {_in_yaml(value)}"
    for name in reversed(outer):
        text = f"{name}: {{{text}}}"
    return text


def _in_yaml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_in_yaml(inner) for inner in value) + "]"
    return '""' if value == "" else str(value)
