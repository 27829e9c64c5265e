"""The loop: it trains, it stops on nonsense, and a resume is bit-equal."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain import checkpoint
from pretrain import train as train_module
from pretrain.checkpoint import DivergedError, ResumeError
from pretrain.config import PretrainConfig
from pretrain.masks import refresh, sources
from pretrain.methods.cyborgs import Cyborgs
from pretrain.train import Place, Run
from sslbench.config import ConfigError, build
from sslbench.files import FileError
from sslbench.log import RunLog, read_metrics
from tests.pretrain.compare import assert_equal, masks
from tests.pretrain.runs import last_checkpoint, train, train_and_stop

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_leaves_what_it_promises(tiny, image_list, tmp_path):
    saved = train(tiny, image_list, tmp_path / "run")
    assert (saved["format"], saved["version"]) == ("sslbench.pretrain", 1)
    assert (saved["epoch"], saved["step"]) == (4, 8)
    assert saved["arch"] == {"depth": 18, "width": 0.125}
    parts = {".".join(name.split(".")[:2]) for name in saved["model"]}
    online = {"online.backbone", "online.projector", "online.predictor"}
    assert parts == online | {"target.backbone", "target.projector"}
    assert (tmp_path / "run/checkpoints/epoch_0002.pt").exists()
    assert sorted(p.name for p in (tmp_path / "run/masks").iterdir()) == [
        "epoch_0002",
        "epoch_0004",
    ]

    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(8))
    assert set(rows[0]) >= {"loss", "clustering", "lr", "target_rate", "images_per_second"}
    watched = {"contrast", "share_positive", "masks_per_view", "target_std", "weighted_loss"}
    assert set(rows[-1]) >= watched | {"positive_cosine", "negative_cosine"}
    # Epochs: warm-up; contrast; contrast + clustering (M = 3); contrast.
    assert ["contrast" in row for row in rows] == [False] * 2 + [True] * 6
    assert ["clustering" in row for row in rows] == [True] * 2 + [False] * 2 + [True] * 2 + [
        False
    ] * 2


class _Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 7])
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_a_run_stopped_anywhere_resumes_bit_equal(steps, optimizer, image_list, tmp_path, tiny):
    table = json.loads(tiny.model_dump_json())
    table["optimizer"] = {"name": optimizer, "lr": 1.0 if optimizer == "lars" else 0.001}
    table["schedule"]["save_every_steps"] = 3
    cfg = build(PretrainConfig, table, where="test")
    whole = train(cfg, image_list, tmp_path / "whole")

    train_and_stop(cfg, image_list, tmp_path / "cut", steps)
    assert_equal(train(cfg, image_list, tmp_path / "cut"), whole)
    assert masks(tmp_path / "cut") == masks(tmp_path / "whole")
    rows = read_metrics(tmp_path / "cut/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(8))


@pytest.mark.parametrize("save_every_steps", [0, 1, 2])
def test_a_kill_between_a_kept_checkpoint_and_last_pt_loses_neither(
    save_every_steps, tiny, image_list, tmp_path, monkeypatch
):
    table = json.loads(tiny.model_dump_json())
    table["schedule"] |= {"keep_epochs": [4], "save_every_steps": save_every_steps}
    cfg = build(PretrainConfig, table, where="test")
    whole = train(cfg, image_list, tmp_path / "whole")
    original = checkpoint.save

    def stopping(path, *rest):
        original(path, *rest)
        if rest[-1] == 8:  # the first write after the last step
            raise _Stop

    monkeypatch.setattr(checkpoint, "save", stopping)
    with pytest.raises(_Stop):
        train(cfg, image_list, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut/checkpoints/epoch_0004.pt").exists()
    assert_equal(train(cfg, image_list, tmp_path / "cut"), whole)
    kept = (
        folder / "checkpoints/epoch_0004.pt" for folder in (tmp_path / "cut", tmp_path / "whole")
    )
    assert_equal(*(torch.load(path, weights_only=True) for path in kept))


@pytest.mark.parametrize(("save_every_steps", "saved_after"), [(0, [2, 4, 6, 8]), (1, range(1, 9))])
def test_an_epochs_end_is_saved_once(
    save_every_steps, saved_after, tiny, image_list, tmp_path, monkeypatch
):
    table = json.loads(tiny.model_dump_json())
    table["schedule"] |= {"keep_epochs": [], "save_every_steps": save_every_steps}
    steps, original = [], Run.save

    def counting(self, **settings):
        steps.append(self.step)
        original(self, **settings)

    monkeypatch.setattr(Run, "save", counting)
    train(build(PretrainConfig, table, where="test"), image_list, tmp_path / "run")
    assert steps == list(saved_after)


def test_training_on_is_exactly_reproducible(tiny, image_list, tmp_path):
    assert_equal(train(tiny, image_list, tmp_path / "a"), train(tiny, image_list, tmp_path / "b"))


def test_without_warmup_the_statistics_are_calibrated_first(
    tiny, image_list, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_module, "CALIBRATION_BATCHES", 3)
    table = json.loads(tiny.model_dump_json())
    table["method"] |= {"warmup_epochs": 0, "clustering_every": 2}
    table["schedule"] |= {"epochs": 2, "keep_epochs": []}
    cfg = build(PretrainConfig, table, where="test")
    seen = []
    original = train_module.refresh

    def watching(backbone, *rest):
        seen.append((int(backbone.bn1.num_batches_tracked), backbone.conv1.weight.detach().clone()))
        return original(backbone, *rest)

    monkeypatch.setattr(train_module, "refresh", watching)
    train(cfg, image_list, tmp_path / "run")
    assert seen[0][0] == 3
    assert torch.equal(
        seen[0][1],
        train_module.lookup(train_module.METHODS, "cyborgs", "")(cfg).online_backbone.conv1.weight,
    )


def test_calibration_sees_a_hundred_batches(tiny, image_list, tmp_path):
    with RunLog(tmp_path) as log:
        run = Run(tiny, image_list, Place(tmp_path, torch.device("cpu")), log)
        run.calibrate(("layer2.1",))
    assert int(run.method.online_backbone.bn1.num_batches_tracked) == 100


def test_warmup_steps_leave_all_behind_the_clustering_layer_as_it_was(tiny, image_list, tmp_path):
    """Optimizer with its weight decay, moving average and BatchNorm included."""
    table = json.loads(tiny.model_dump_json())
    table["method"] |= {"warmup_epochs": 2, "refresh_masks_every": 0}
    table["optimizer"]["weight_decay"] = 0.1
    table["schedule"] |= {"epochs": 3, "keep_epochs": [2]}
    cfg = build(PretrainConfig, table, where="test")
    start = train_module.lookup(train_module.METHODS, "cyborgs", "")(cfg).state_dict()
    train(cfg, image_list, tmp_path / "run")
    path = tmp_path / "run/checkpoints/epoch_0002.pt"
    model = torch.load(path, weights_only=True)["model"]
    behind = ("projector", "predictor", "layer3", "layer4")
    untouched = {name for name in start if any(part in name for part in behind)}
    changed = {name for name in start if not torch.equal(model[name], start[name])}
    assert len(untouched) > 50 and not changed & untouched
    assert {"online.backbone.conv1.weight", "target.backbone.conv1.weight"} <= changed


def test_fixed_masks_train_from_the_first_epoch(tiny, image_list, tmp_path):
    table = json.loads(tiny.model_dump_json())
    table["method"] |= {"warmup_epochs": 0, "refresh_masks_every": 0}
    table["method"]["masks"]["source"] = "grid"
    train(build(PretrainConfig, table, where="test"), image_list, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run/masks").iterdir()) == ["epoch_0001"]


def test_another_config_in_the_folder_is_refused_by_its_keys(tiny, image_list, tmp_path):
    train(tiny, image_list, tmp_path / "run")
    table = json.loads(tiny.model_dump_json())
    table["method"]["masks"]["max_clusters"] = 5
    table["seed"] = 3
    other = build(PretrainConfig, table, where="test")
    with pytest.raises(ResumeError, match=r"method\.masks\.max_clusters, seed"):
        train(other, image_list, tmp_path / "run")


def test_a_file_that_is_no_checkpoint_is_refused(tiny, image_list, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.pt").write_bytes(b"nonsense")
    with pytest.raises(ResumeError, match="cannot be read"):
        train(tiny, image_list, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(
    tiny, image_list, tmp_path, monkeypatch
):
    original = Cyborgs.forward

    def poisoned(self, part, prepared, plan):
        output = original(self, part, prepared, plan)
        if part.step == 3:
            output.terms["contrast"] = output.terms["contrast"] * torch.nan
        return output

    monkeypatch.setattr(Cyborgs, "forward", poisoned)
    with pytest.raises(
        DivergedError, match=r"epoch 2, step 3: contrast = .*keeps the last good state"
    ):
        train(tiny, image_list, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run")["step"] == 2
    dumped = torch.load(tmp_path / "run/diverged.pt", weights_only=True)
    assert dumped["step"] == 3 and len(dumped["indices"]) == 4


def test_features_that_are_not_finite_stop_the_run_before_they_are_clustered(
    tiny, image_list, tmp_path, monkeypatch
):
    original = Run.update

    def poisoned(self, batch, plan, epoch):
        if self.step == 1:
            self.method.target.backbone.conv1.weight.data[0] = torch.nan
        return original(self, batch, plan, epoch)

    monkeypatch.setattr(Run, "update", poisoned)
    with pytest.raises(DivergedError, match=r"epoch 1, step 1: features of layer2"):
        train(tiny, image_list, tmp_path / "run")
    assert (tmp_path / "run/diverged.pt").exists()


def test_a_run_goes_on_in_the_precision_that_it_began_with(tiny, image_list, tmp_path, monkeypatch):
    """``auto`` on a GPU is bf16; continued on a CPU it stays bf16."""
    original = train_module.resolved
    monkeypatch.setattr(train_module, "resolved", lambda *_: "bf16")
    steps, update = [], Run.update

    def stopping(self, *arguments):
        steps.append(self.method.precision)
        if len(steps) == 3:
            raise _Stop
        return update(self, *arguments)

    monkeypatch.setattr(Run, "update", stopping)
    with pytest.raises(_Stop):
        train(tiny, image_list, tmp_path / "run")
    monkeypatch.setattr(train_module, "resolved", original)
    train(tiny, image_list, tmp_path / "run")
    assert set(steps) == {"bf16"} and len(steps) == 3 + 6


def test_weights_that_are_not_finite_are_never_saved(tiny, image_list, tmp_path, monkeypatch):
    original = Run.save

    def poisoned(self, **settings):
        if self.step == 4:
            with torch.no_grad():
                self.method.online_backbone.conv1.weight[0] = torch.inf
        original(self, **settings)

    monkeypatch.setattr(Run, "save", poisoned)
    with pytest.raises(DivergedError, match="weights are not finite after step 4"):
        train(tiny, image_list, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run")["step"] == 2


def test_a_full_disk_is_named_and_nothing_half_written_stays(tiny, image_list, tmp_path):
    train(tiny, image_list, tmp_path / "run")
    before = (tmp_path / "run/checkpoints/last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    method = train_module.lookup(train_module.METHODS, "cyborgs", "")(tiny)
    optimizer = train_module.build_optimizer(tiny.optimizer, method)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"no room to write .*last\.pt"):
            checkpoint.save(tmp_path / "run/checkpoints/last.pt", method, optimizer, tiny, 1, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == before
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_signal_saves_within_the_epoch_and_the_rest_is_bit_equal(
    step, number, tiny, image_list, tmp_path, monkeypatch
):
    whole = train(tiny, image_list, tmp_path / "whole")
    original = Run.update

    def signalled(self, batch, plan, epoch):
        if self.step == step:
            os.kill(os.getpid(), number)
        return original(self, batch, plan, epoch)

    monkeypatch.setattr(Run, "update", signalled)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(KeyboardInterrupt):
        train(tiny, image_list, tmp_path / "cut")
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert after == handlers
    assert last_checkpoint(tmp_path / "cut")["step"] == step + 1
    monkeypatch.undo()
    assert_equal(train(tiny, image_list, tmp_path / "cut"), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_while_saving_leaves_the_last_checkpoint_whole(
    number, tiny, image_list, tmp_path, monkeypatch
):
    """Once asks to save and leave, twice means now: without waiting for the file."""
    whole = train(tiny, image_list, tmp_path / "whole")
    write, update = torch.save, Run.update

    def signalled(self, batch, plan, epoch):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return update(self, batch, plan, epoch)

    def impatient(payload, file):
        if payload["step"] == 3:
            file.write(b"half a checkpoint")
            os.kill(os.getpid(), number)
        write(payload, file)

    monkeypatch.setattr(Run, "update", signalled)
    monkeypatch.setattr(torch, "save", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, image_list, tmp_path / "cut")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["last.pt"]
    assert last_checkpoint(tmp_path / "cut")["step"] == 2
    assert_equal(train(tiny, image_list, tmp_path / "cut"), whole)


def test_a_signal_within_a_refresh_stops_it_at_once(tiny, image_list, tmp_path, monkeypatch):
    original, made = refresh.cluster_group, []

    def signalled(*arguments):
        made.append(1)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(refresh, "cluster_group", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, image_list, tmp_path / "cut")
    assert len(made) == 2
    train(tiny, image_list, tmp_path / "cut")  # the first group's part is there already
    whole = train(tiny, image_list, tmp_path / "whole")
    assert_equal(last_checkpoint(tmp_path / "cut"), whole)


def test_a_signal_while_fixed_masks_are_made_stops_at_once(tiny, image_list, tmp_path, monkeypatch):
    table = json.loads(tiny.model_dump_json())
    table["method"] |= {"warmup_epochs": 0, "refresh_masks_every": 0}
    table["method"]["masks"]["source"] = "grid"
    cfg = build(PretrainConfig, table, where="test")
    original, made = sources.SOURCES["grid"], []

    def signalled(picture):
        made.append(picture.name)
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(picture)

    monkeypatch.setattr(sources, "BLOCK", 2)
    monkeypatch.setitem(sources.SOURCES, "grid", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, image_list, tmp_path / "run")
    assert made == list(image_list.names[:5])
    train(cfg, image_list, tmp_path / "run")
    assert made[5:] == list(image_list.names[4:])  # two blocks are there already


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "batch_size 4 cannot be shared equally by 1 processes.*multiple of 3"),
        ({"accumulate": 4}, "leaves one image.*lower accumulate"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(changes, message, tiny, image_list, tmp_path):
    cfg = build(PretrainConfig, json.loads(tiny.model_dump_json()) | changes, where="test")
    with pytest.raises(ConfigError, match=message):
        train(cfg, image_list, tmp_path / "run")


KILLED = """
import sys, torch
from pathlib import Path
from pretrain.config import PretrainConfig
from pretrain.train import Place, Run
from pretrain.masks import refresh, store
from pretrain import checkpoint
from sslbench.datasets import DataRoots, images
from sslbench.files import FileError, sweep_scratch
from sslbench.log import RunLog
import os, signal

folder, image_dir, config, where = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
cfg = PretrainConfig.model_validate_json(Path(config).read_text())
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)

if where == "checkpoint":  # half a file written, not yet in place
    whole = torch.save
    calls = []
    def half(payload, file):
        calls.append(1)
        if len(calls) == 4:
            file.write(b"half a checkpoint")
            file.flush()
            die()
        whole(payload, file)
    torch.save = half
elif where == "refresh":  # the second generation, after its first group
    groups = []
    whole = refresh.cluster_group
    def second(*a):
        groups.append(1)
        return die() if len(groups) == 6 else whole(*a)
    refresh.cluster_group = second
elif where == "store":  # maps written, manifest not
    store.write_json = die

torch.set_num_threads(1)
folder.mkdir(parents=True, exist_ok=True)
place = Place(folder, torch.device("cpu"))
with RunLog(folder) as log:
    Run(cfg, images(image_dir, DataRoots(image_dir)), place, log).train()
"""


def _run_killed(script: Path, where: str, folder: Path, image_dir: Path, config: Path) -> int:
    command = [sys.executable, str(script), str(folder), str(image_dir), str(config), where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode


@pytest.mark.parametrize("where", ["checkpoint", "refresh", "store"])
def test_a_kill_inside_a_write_is_survived_bit_equal(where, tiny, image_dir, image_list, tmp_path):
    script, config = tmp_path / "run.py", tmp_path / "config.json"
    script.write_text(KILLED)
    config.write_text(tiny.model_dump_json())
    code = _run_killed(script, where, tmp_path / "cut", image_dir, config)
    assert code == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(tiny, image_list, tmp_path / "whole")
        assert_equal(train(tiny, image_list, tmp_path / "cut"), whole)
    finally:
        torch.set_num_threads(threads)
    assert masks(tmp_path / "cut") == masks(tmp_path / "whole")
