"""Several processes make one run: equal batches, weights and predictions, and a clean end."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection_process import ROOT, Command, ended, places, wait_for_rows
from detectors import rows_of_losses, twin_task, write_random_weights

from sslbench import dist
from sslbench.datasets import DataRoots
from sslbench.stage import status
from transfer.loader import TrainingBatches

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]

# Each rank keeps what it trained to and what it saw.
WITNESS = """
import torch
from pathlib import Path
from sslbench import dist
from transfer.trainer import Trainer
save, train = Trainer.calibrate_norms, Trainer.train
def kept(self, *words):
    state = {k: v.clone() for k, v in self.engine.model.state_dict().items()}
    save(self, *words)
    after = self.engine.model.state_dict()
    torch.save({"trained": state, "after": after}, self.path.parent / f"rank{dist.rank()}.pt")
Trainer.calibrate_norms = kept
"""


def command(engine: str, layout: str, data: DataRoots, folder: Path, *overrides: str) -> Command:
    task = twin_task(layout, engine, ["set.SOLVER.MAX_ITER=4", *overrides])
    folder.mkdir(exist_ok=True)
    return Command(task, data, write_random_weights(folder / "w.pkl", layout), folder)


def test_the_processes_read_the_batch_of_one(monkeypatch: pytest.MonkeyPatch):
    class Names:
        def train(self, record, draw):
            return record.name, draw.iteration, draw.slot

        test = None

    class Picture:
        width = height = 1

        def __init__(self, name: int) -> None:
            self.name = name

    batches = TrainingBatches([Picture(i) for i in range(7)], Names(), 4, 0, grouped=True)
    whole = list(batches(3, 9))
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        shares.append(list(batches(3, 9)))
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_hold_the_same_weights_and_finish(
    engine: str, layout: str, scenes: DataRoots, tmp_path: Path
):
    """One image each: batch norm over both, the mask head's norms over unequally many regions."""
    run = command(engine, layout, scenes, tmp_path, "evaluate_every=3")
    for rank in run.start_ranks("two", hooks=(WITNESS, WITNESS)):
        ended(rank)
    first, second = (torch.load(tmp_path / f"two/checkpoints/rank{rank}.pt") for rank in (0, 1))
    for name, value in first["trained"].items():
        assert torch.equal(value, second["trained"][name]), name
        assert torch.equal(first["after"][name], second["after"][name]), name
    moved = [k for k, v in first["trained"].items() if not torch.equal(v, first["after"][k])]
    assert moved and all("running" in k or "num_batches" in k for k in moved)
    assert status(tmp_path / "two") == "done"
    assert list(json.loads((tmp_path / "two/history.json").read_text())) == ["3"]
    assert not (tmp_path / "two/predictions.parts").exists()

    # the same weights predict the same with one process
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    for name in ("done.json", "results.json", "predictions.json"):
        (tmp_path / "one" / name).unlink()
    ended(run.start("one"))
    for name in ("predictions.json", "results.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(json.loads((tmp_path / "one/predictions.json").read_text())) > 4


@pytest.mark.slow
def test_two_processes_take_the_steps_of_two_parts(scenes: DataRoots, tmp_path: Path):
    """With frozen norms it is the same arithmetic, up to rounding."""
    frozen = ("set.MODEL.RESNETS.NORM=FrozenBN", "set.TEST.PRECISE_BN.ENABLED=false")
    two = command("torchvision", "c4", scenes, tmp_path / "two", *frozen)
    ranks = two.start_ranks("out")
    parts = command("torchvision", "c4", scenes, tmp_path / "parts", *frozen, "accumulate=2")
    ended(parts.start("out"))
    for rank in ranks:
        ended(rank)
    rows = [rows_of_losses(tmp_path / name / "out") for name in ("two", "parts")]
    assert len(rows[0]) == 4
    for mine, theirs in zip(*rows, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


STATISTICS = """
import sys, torch
from pathlib import Path
from sslbench import dist
from sslbench.batchnorm import synchronised
from transfer.precise_bn import precise_bn
with dist.process_group("cpu"):
    torch.manual_seed(0)
    batches = [torch.randn(size, 3) * 2 + size for size in (4, 16, 7)]
    if dist.world_size() > 1:  # unequal shares, one of them empty
        cuts = [1, 16, 3]
        batches = [b[c:] if dist.rank() else b[:c] for b, c in zip(batches, cuts)]
    norms = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3)).double()
    synchronised(norms, torch.device("cpu"))
    precise_bn(norms, lambda i, x: norms(x.double()), enumerate(batches))
    torch.save(norms[0].state_dict(), f"{sys.argv[1]}.{dist.rank()}")
"""


@pytest.mark.slow
def test_precise_statistics_of_unequal_shares_are_those_of_the_whole_batches(tmp_path: Path):
    script = tmp_path / "statistics.py"
    script.write_text(STATISTICS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script)]
    subprocess.run([*words, str(tmp_path / "one")], env=environment, check=True, timeout=120)
    ranks = [
        subprocess.Popen([*words, str(tmp_path / "two")], env=environment | place)
        for place in places(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    one, *two = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    for half in two:
        for name in ("running_mean", "running_var"):
            assert torch.allclose(half[name], one[name], rtol=1e-10), name


FAILING = """
from transfer.trainer import Trainer, TrainingError
step = Trainer.step
def failing(self, batch):
    if self.iteration == 2:
        raise TrainingError("this rank cannot go on")
    return step(self, batch)
Trainer.step = failing
"""


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_other_and_the_run_can_go_on(
    scenes: DataRoots, tmp_path: Path
):
    run = command("torchvision", "c4", scenes, tmp_path, "checkpoint_every=1")
    ranks = run.start_ranks("out", hooks=("", FAILING))
    assert "error: this rank cannot go on" in ended(ranks[1], code=1)
    said = ended(ranks[0], code=1)
    assert "error: rank 0 of 2: another process of this run died" in said
    assert status(tmp_path / "out") == "resumable"
    said = ended(run.start("out"))  # one process may continue what two began
    assert re.search(r"continuing at iteration 2 of 4", said)
    assert [row["step"] for row in rows_of_losses(tmp_path / "out")] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_before_any_rank_leaves(scenes: DataRoots, tmp_path: Path):
    many = ("set.SOLVER.MAX_ITER=2000", "set.SOLVER.STEPS=[1500]", "checkpoint_every=2000")
    run = command("torchvision", "c4", scenes, tmp_path, *many)
    ranks = run.start_ranks("out")
    wait_for_rows(tmp_path / "out", 2, ranks[0])
    ranks[1].terminate()
    ended(ranks[1], code=130)
    said = ended(ranks[0], code=130)
    saved = int(re.search(r"asked to stop: saved after iteration (\d+)", said)[1])
    state = torch.load(tmp_path / "out/checkpoints/last.pt", weights_only=True)
    assert 0 < state["iteration"] == saved
