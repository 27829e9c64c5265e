"""What two runs have in common, bit by bit."""

from pathlib import Path

import torch

from sslbench.log import read_metrics

CLOCKED = {
    "images_per_second",
    "seconds_waiting_for_data",
    "share_waiting_for_data",
    "peak_memory_gib",
}


def assert_equal(first, second, where="") -> None:
    """Compare nested containers of tensors bit by bit."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert first == second, where


def masks(folder: Path) -> dict[str, bytes]:
    """Every file of the mask generations of a run."""
    files = (path for path in (folder / "masks").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(folder: Path) -> list[dict]:
    """The log of a run, but for what a clock or the machine says."""
    found = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in found]
