"""Footnotes that a number inherits from the stages below it, such as what a pretraining changed."""

from collections.abc import Collection, Sequence

from launch.graph import PlannedStage, pretraining
from launch.suite import Suite
from sslbench.files import read_json
from sslbench.stage import STAGE_FILE, footnotes

Notes = tuple[str, ...]


def inherited_notes(stages: Sequence[PlannedStage]) -> dict[str, Notes]:
    """Stage name -> footnotes of all it builds on and its own, in that order.

    Args:
        stages: of a plan, parents before children.
    """
    found: dict[str, Notes] = {}
    for stage in stages:
        lists = [*(found[parent] for parent in stage.parents), _own_notes(stage)]
        found[stage.name] = tuple(dict.fromkeys(note for notes in lists for note in notes))
    return found


def _own_notes(stage: PlannedStage) -> Notes:
    """As the run wrote them down; where none did so yet, as the code of today does."""
    path = stage.dir / STAGE_FILE
    record = read_json(path) if path.exists() else {}
    return tuple(record.get("footnotes", footnotes(stage.stage)))


def intended_notes(suite: Suite) -> dict[str, Collection[str]]:
    """Row -> footnotes that say what its cells change on purpose: their label says it already."""
    if not suite.cell:
        return {}
    of_base = set(footnotes(pretraining(suite.base_row)))
    found: dict[str, set[str]] = {}
    for line in suite.lines:
        if line.cell:
            own = set(footnotes(pretraining(line.row))) - of_base
            found.setdefault(line.row.method, set()).update(own)
    return {row: frozenset(notes) for row, notes in found.items()}
