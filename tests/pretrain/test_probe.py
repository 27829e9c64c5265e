"""The online probe: due when asked, written once whatever is killed, and without any influence."""

import json
from pathlib import Path

import pytest
import torch
from devkit import write_devkit

from pretrain.config import PretrainConfig
from pretrain.probe import OnlineProbe, load_probe
from pretrain.stage import Pretrain
from pretrain.train import Place, Run
from sslbench.config import build
from sslbench.datasets import DataError, DataRoots, ImageList
from sslbench.log import RunLog, read_metrics
from sslbench.stage import run_standalone
from tests.pretrain.compare import masks

PROBE = {"train": "voc2007/trainval", "test": "voc2007/test", "neighbours": 5}


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    return DataRoots(write_devkit(tmp_path / "data", num_train=9, num_test=5))


def probed(tiny: PretrainConfig, every_epochs: int, **changes) -> PretrainConfig:
    """The tiny config, four epochs of two steps, with a probe."""
    probe = PROBE | changes | {"every_epochs": every_epochs}
    return build(PretrainConfig, json.loads(tiny.model_dump_json()) | {"probe": probe}, "test")


def train(cfg: PretrainConfig, pictures: ImageList, roots: DataRoots, folder: Path) -> dict:
    folder.mkdir(exist_ok=True)
    with RunLog(folder) as log:
        place = Place(folder, torch.device("cpu"))
        Run(cfg, pictures, place, log, probe=load_probe(cfg, roots)).train()
    return torch.load(folder / "checkpoints/last.pt", weights_only=True)


def probes(folder: Path) -> list[tuple[int, int, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [(r["epoch"], r["step"], r["knn_mAP"]) for r in rows if "knn_mAP" in r]


@pytest.mark.parametrize(
    ("every_epochs", "expected"),
    [
        (0, []),
        (1, [(1, 1), (2, 3), (3, 5), (4, 7)]),
        (3, [(3, 5), (4, 7)]),  # and after the last epoch
        (9, [(4, 7)]),
    ],
)
def test_a_row_follows_every_so_many_epochs(every_epochs, expected, tiny, image_list, roots):
    folder = roots.root / "run"
    train(probed(tiny, every_epochs), image_list, roots, folder)
    assert [(epoch, step) for epoch, step, _ in probes(folder)] == expected
    assert all(0 < value <= 100 for *_, value in probes(folder))
    if expected:
        assert f"epoch 4: knn_mAP {probes(folder)[-1][2]:.2f}" in (folder / "log.txt").read_text()


def test_weights_masks_and_losses_are_the_same_without_a_probe(tiny, image_list, roots, tmp_path):
    runs = {}
    for every_epochs in (0, 1):
        folder = tmp_path / str(every_epochs)
        saved = train(probed(tiny, every_epochs), image_list, roots, folder)
        losses = [r["loss"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
        runs[every_epochs] = saved, losses, masks(folder)
    plain, watched = runs[0][0], runs[1][0]
    for name, value in plain["model"].items():
        assert torch.equal(value, watched["model"][name]), name
    for index, state in plain["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), watched["optimizer"]["state"][index][name])
    assert runs[0][1:] == runs[1][1:]


class _Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("epoch", [2, 4])
@pytest.mark.parametrize("written", [False, True])
def test_a_kill_around_a_probe_neither_loses_nor_doubles_it(
    epoch, written, tiny, image_list, roots, tmp_path, monkeypatch
):
    cfg = probed(tiny, every_epochs=2)
    train(cfg, image_list, roots, tmp_path / "whole")
    original = OnlineProbe.record

    def stopping(self, backbone, now, *rest):
        if now != epoch or written:
            original(self, backbone, now, *rest)
        if now == epoch:
            raise _Stop

    monkeypatch.setattr(OnlineProbe, "record", stopping)
    with pytest.raises(_Stop):
        train(cfg, image_list, roots, tmp_path / "cut")
    monkeypatch.undo()
    train(cfg, image_list, roots, tmp_path / "cut")
    assert probes(tmp_path / "cut") == probes(tmp_path / "whole")
    assert len(probes(tmp_path / "cut")) == 2


def test_a_probe_after_the_saved_state_is_made_again(
    tiny, image_list, roots, tmp_path, monkeypatch
):
    """The probed weights of epoch 3 are lost with the file: the row goes with them."""
    cfg, folder = probed(tiny, every_epochs=1), tmp_path / "cut"
    train(cfg, image_list, roots, tmp_path / "whole")
    original, saved = Run.save, {}

    def keeping(self, **settings):
        original(self, **settings)
        saved[self.step] = self.last_path.read_bytes()

    monkeypatch.setattr(Run, "save", keeping)
    train(cfg, image_list, roots, folder)
    (folder / "checkpoints/last.pt").write_bytes(saved[4])
    train(cfg, image_list, roots, folder)
    assert probes(folder) == probes(tmp_path / "whole")


def test_the_probe_is_not_part_of_the_fingerprint(tiny, image_dir, roots, tmp_path):
    found = {}
    for every_epochs in (0, 4):
        cfg = probed(tiny, every_epochs).model_copy(update={"images": str(image_dir)})
        out = tmp_path / str(every_epochs)
        run_standalone(Pretrain(cfg), inputs={}, data=roots, out=out)
        found[every_epochs] = json.loads((out / "stage.json").read_text())
    assert found[0]["fingerprint"] == found[4]["fingerprint"]
    assert [len(probes(tmp_path / name)) for name in ("0", "4")] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "voc2012/val"}, "data set 'voc2012' not found"),
        ({"test": "voc2007/tset"}, "did you mean 'voc2007/test'"),
        ({"train": "lvis_v1/train"}, "lvis_v1/train has no image-level labels"),
        ({"neighbours": 10}, "10 neighbours are asked of the 9 images"),
    ],
)
def test_labels_that_cannot_be_used_stop_the_run_before_its_first_step(
    changes, message, tiny, image_dir, roots, tmp_path
):
    cfg = probed(tiny, 4, **changes).model_copy(update={"images": str(image_dir)})
    with pytest.raises(DataError, match=message):
        run_standalone(Pretrain(cfg), inputs={}, data=roots, out=tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()
