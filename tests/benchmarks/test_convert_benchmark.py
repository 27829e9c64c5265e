"""The conversion's clock and scales, on a network small enough for a test."""

from pathlib import Path

import pytest
import torch

from benchmarks.convert import convert, measure
from sslbench.resnet import ResNet


def write(folder: Path) -> Path:
    torch.manual_seed(0)
    network = ResNet(18, 0.125).train()
    network(torch.randn(4, 3, 96, 96))
    torch.save({"state_dict": network.state_dict()}, folder / "r18.pth")
    return folder / "r18.pth"


def test_a_row_has_what_one_process_took(tmp_path: Path):
    row = measure(write(tmp_path), "fpn", "pth", repeats=1)
    assert 0 < row["s min"] == row["s max"]
    assert 100 < row["MB max"] < 10_000  # torch alone takes hundreds; not counted in kibibytes
    assert row["in"]


def test_a_conversion_that_fails_is_no_measurement(tmp_path: Path):
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "no_trunk.pth")
    with pytest.raises(RuntimeError, match=r"c4\.pkl ended with status"):
        convert(tmp_path / "no_trunk.pth", "c4", "pkl", tmp_path)
