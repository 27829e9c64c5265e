"""The one checkpoint file of a detector: tensors, plain containers, and the config they are of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslbench.files import write_torch
from transfer.task import TaskConfig

FORMAT, VERSION = "sslbench.detection", 1


class TrainingError(ValueError):
    """Training that cannot go on, or a checkpoint that is not this run's."""


def save_checkpoint(path: Path, task: TaskConfig, state: Mapping[str, Any]) -> None:
    """Write tensors and plain containers atomically, with the config they belong to."""
    config = json.loads(task.model_dump_json())
    write_torch(path, {"format": FORMAT, "version": VERSION, "config": config, **state})


def load_checkpoint(path: Path, task: TaskConfig) -> dict[str, Any]:
    """Read a checkpoint of this very task.

    Raises:
        TrainingError: the file is damaged, or belongs to another config.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"{path} cannot be read ({error}); delete it to start over") from error
    if state.get("format") != FORMAT or state.get("version") != VERSION:
        raise TrainingError(f"{path} is no checkpoint of a detector; delete it to start over")
    if state["config"]["recipe_values"] != json.loads(task.model_dump_json())["recipe_values"]:
        raise TrainingError(f"{path} was made with another recipe; delete its folder to start over")
    return state
