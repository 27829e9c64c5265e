"""The convert stage and the file it writes."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

from sslbench.checkpoint import CheckpointError, load_backbone
from sslbench.datasets import DataRoots
from sslbench.stage import run_standalone, status
from transfer.convert import Convert, ConvertConfig
from transfer.naming import from_detectron2
from transfer.weights import WeightsError, load_weights, write_weights


def convert(checkpoint: Path, out: Path, layout: str = "c4", branch: str = "online") -> Path:
    stage = Convert(ConvertConfig(layout=layout, branch=branch))
    data = DataRoots(out)
    folder, _ = run_standalone(stage, inputs={"checkpoint": checkpoint}, data=data, out=out)
    return folder


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_the_written_weights_are_the_checkpoints_bit_for_bit(layout: str, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    folder = convert(checkpoint, tmp_path / "out", layout)

    arrays, metadata = load_weights(folder / "weights.pkl")
    backbone = load_backbone(checkpoint)
    back = from_detectron2(arrays, layout)
    assert back.keys() == backbone.state.keys()
    assert all(np.array_equal(back[k], v.numpy()) for k, v in backbone.state.items())
    assert metadata["sha256"] == backbone.sha256
    assert (metadata["format"], metadata["stride_in_1x1"]) == ("RGB", False)
    assert (metadata["depth"], metadata["width"], metadata["layout"]) == (50, 0.125, layout)


def test_the_file_is_what_detectron2_reads_without_heuristics(tmp_path: Path):
    folder = convert(write_checkpoint(tmp_path), tmp_path / "out")
    content = pickle.loads((folder / "weights.pkl").read_bytes())
    assert content["__author__"] == "sslbench"
    assert not content.get("matching_heuristics", False)
    assert all(isinstance(v, np.ndarray) for v in content["model"].values())
    assert len(content["model"]) == 265


def test_parity_is_recorded(tmp_path: Path):
    folder = convert(write_checkpoint(tmp_path), tmp_path / "out")
    record = json.loads((folder / "parity.json").read_text())
    assert all(level["relative"] <= record["goal"] for level in record["levels"].values())


def test_a_conversion_is_the_same_bytes_every_time(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    first, second = (convert(checkpoint, tmp_path / name) for name in ("a", "b"))
    for name in ("weights.pkl", "parity.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_basic_blocks_go_into_both_detectors(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, depth=18)
    for layout in ("c4", "fpn"):
        assert status(convert(checkpoint, tmp_path / layout, layout)) == "done"


def test_a_missing_branch_stops_the_stage(tmp_path: Path):
    with pytest.raises(CheckpointError, match="without its target branch"):
        convert(write_checkpoint(tmp_path), tmp_path / "out", branch="target")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"text", "is a text file"),
        (b"\x80", "damaged"),
        (pickle.dumps({"model": {}}), "was not written by"),
        (pickle.dumps([1]), "was not written by"),
        (pickle.dumps({"__author__": "sslbench", "model": {}, "metadata": {}}), "no weights"),
        (
            pickle.dumps({"__author__": "sslbench", "model": {"a": 1}, "metadata": {}}),
            "not a float32 array",
        ),
    ],
)
def test_other_files_are_no_weights(content: bytes, words: str, tmp_path: Path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        load_weights(path)


def test_cut_weights_are_refused_at_any_length(tmp_path: Path):
    path = tmp_path / "weights.pkl"
    write_weights(path, {"a": np.arange(64, dtype=np.float32)}, {})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            load_weights(path)


class Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_that_would_run_code_run_nothing(tmp_path: Path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"__author__": "sslbench", "model": Planted(tmp_path / "made")}))
    with pytest.raises(WeightsError, match="holds no weights"):
        load_weights(path)
    assert not (tmp_path / "made").exists()


def test_float64_never_reaches_a_detector(tmp_path: Path):
    path = tmp_path / "weights.pkl"
    write_weights(path, {"a": np.ones(2)}, {})
    with pytest.raises(WeightsError, match="float32"):
        load_weights(path)
