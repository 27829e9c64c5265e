"""The protocol check: where a task leaves the published protocol that it names.

Every departure is one line a subject; it is printed before training starts, stands as a footnote
beside the numbers, and with ``strict`` refuses the run. No torch: it is planned with.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslbench.config import ConfigError
from sslbench.datasets import Dataset
from sslbench.results import DEPARTS, Result, told_departures
from transfer.engines.recipe import DEFAULTS, ELSEWHERE, FIXED, Recipe
from transfer.task import TASKS_DIR, TaskConfig, load_task

REFERENCE_ENGINE = "detectron2"
SUBJECTS = {  # the first prefix that fits decides
    "trunk": ("MODEL.RESNETS.", "MODEL.BACKBONE.", "MODEL.PIXEL"),
    "schedule": ("SOLVER.", "TEST.PRECISE_BN"),
    "resolution": ("INPUT.",),
    "proposals": ("MODEL.RPN.", "MODEL.ANCHOR_GENERATOR.", "MODEL.ROI_HEADS."),
    "heads": ("MODEL.FPN.", "MODEL.ROI_BOX_HEAD.", "MODEL.ROI_MASK_HEAD."),
    "other settings": ("",),
}


class ProtocolError(ConfigError):
    """A strict task that is not its published protocol."""


def departures(task: TaskConfig) -> tuple[str, ...]:
    """What of the config differs from the published protocol that the task names.

    Accumulation, precision and scaling are told of without a protocol, too.

    Raises:
        ConfigError: there is no such protocol.
    """
    official = _protocol_of(task)
    if official is None:
        unnamed = (f"{task.task} names no published protocol",) if task.strict else ()
        return (*unnamed, *task.notes_on_settings())
    lines = [
        f"{name}: {getattr(task, name)}"
        for name in ("kind", "layout", "metric")
        if getattr(task, name) != getattr(official, name)
    ]
    if task.engine not in ("auto", REFERENCE_ENGINE):
        lines.append(f"engine: {task.engine}")
    if (task.train, task.test) != (official.train, official.test):
        lines.append(f"data: {' + '.join(task.train)} -> {task.test}")
    left = tuple(_line(official.task, line) for line in (*lines, *_of_recipe(task, official)))
    return (*left, *task.notes_on_settings())


def check(task: TaskConfig, train: Dataset, test: Dataset) -> tuple[str, ...]:
    """All that departs from the protocol, data included: footnotes of the numbers.

    Raises:
        ProtocolError: something does and the task is strict.
    """
    found, official = departures(task), _protocol_of(task)
    unofficial = dict.fromkeys((*train.unofficial, *test.unofficial))
    if unofficial and official is not None:
        found += (_line(official.task, f"content of the data: {'; '.join(unofficial)}"),)
    if task.strict and found:
        listed = "\n".join(f"  {line}" for line in found)
        raise ProtocolError(
            f"task {task.task} is strict and not its protocol:\n{listed}\n"
            "Mend these, or run without --strict: then each is a footnote of the numbers"
        )
    return found


def departures_of_test(task: TaskConfig, test: Dataset) -> tuple[str, ...]:
    """What departs where only predictions are scored: metric, test split, and its content."""
    official = _protocol_of(task)
    if official is None:
        told = f"not the official data: {'; '.join(test.unofficial)}"
        return (told,) if test.unofficial else ()
    lines = [f"metric: {task.metric}"] if task.metric != official.metric else []
    if task.test != official.test:
        lines.append(f"data: tested on {task.test}")
    lines += [f"content of the data: {line}" for line in test.unofficial]
    return tuple(_line(official.task, line) for line in lines)


def require_protocol(task: TaskConfig, results: Sequence[Result], folder: Path) -> None:
    """Refuse finished numbers that are not their protocol's, by their own footnotes.

    Raises:
        ProtocolError: they depart from it.
    """
    told = (*departures(task), *told_departures(results))
    if told:
        listed = "\n".join(f"  {line}" for line in dict.fromkeys(told))
        raise ProtocolError(
            f"{folder} is finished and not the protocol of {task.task}:\n{listed}\n"
            "Look at it without --strict, or run what follows the protocol in another folder"
        )


def _line(protocol: str, what: str) -> str:
    return f"{DEPARTS}{protocol} in {what}"


def _protocol_of(task: TaskConfig) -> TaskConfig | None:
    """The task as published; None for a task of the user's own that names none."""
    name = task.protocol or task.task
    if (TASKS_DIR / f"{name}.toml").is_file():
        return load_task(name)
    if name == task.task and not task.set:
        return None
    raise ConfigError(
        f"task {task.task}: protocol {name!r} is no file of {TASKS_DIR}; set protocol to the task "
        "there that this one follows or departs from"
    )


def _of_recipe(task: TaskConfig, official: TaskConfig) -> list[str]:
    """One line a subject in which the two recipes differ, with our values."""
    ours, theirs = task.values(), official.values()
    changed: dict[str, list[str]] = {}
    for key in sorted({*theirs.given, *ours.given} - set(ELSEWHERE)):
        value = _value(ours, key)
        from_data = key == "MODEL.ROI_HEADS.NUM_CLASSES" and key not in ours.given
        if value != _value(theirs, key) and not from_data:
            subject = next(s for s, prefixes in SUBJECTS.items() if key.startswith(prefixes))
            short = ".".join(key.split(".")[-2:])
            shown = json.dumps(value) if isinstance(value, tuple) else str(value)
            changed.setdefault(subject, []).append(f"{short} {shown}")
    return [
        f"{subject}: {', '.join(changed[subject])}" for subject in SUBJECTS if subject in changed
    ]


def _value(recipe: Recipe, key: str) -> Any:
    """The recipe's value, or Detectron2's default as far as it is known here."""
    if key in recipe.given or key in DEFAULTS:
        return recipe[key]
    return FIXED[key][0] if key in FIXED else None
