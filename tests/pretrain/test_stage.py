"""The stages and the command line, on real files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import __main__ as pretrain_command
from pretrain.config import MaskQualityConfig, PretrainConfig, RandomInitConfig
from pretrain.stage import MaskQuality, Pretrain, RandomInit
from pretrain.train import Place, Run
from sslbench.checkpoint import load_backbone
from sslbench.config import ConfigError, build
from sslbench.datasets import DataRoots, images
from sslbench.files import file_sha256
from sslbench.log import RunLog
from sslbench.results import read_results
from sslbench.stage import StageContext, StageError, caption, run_standalone
from tests.pretrain.commands import write_toml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def coco(tmp_path) -> DataRoots:
    """Ten images in COCO's layout, each with one square object."""
    root = tmp_path / "coco"
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    generator = np.random.default_rng(0)
    pictures, objects = [], []
    for number in range(1, 11):
        pixels = np.full((48, 64, 3), 60, np.uint8)
        pixels[8:32, 16:40] = generator.integers(0, 256, (24, 24, 3))
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels).save(root / "train2017" / name)
        pictures.append({"id": number, "file_name": name, "height": 48, "width": 64})
        corners = [16, 8, 40, 8, 40, 32, 16, 32]
        objects.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 3,
                "bbox": [16, 8, 24, 24],
                "area": 576,
                "iscrowd": 0,
                "segmentation": [corners],
            }
        )
    payload = {"images": pictures, "annotations": objects, "categories": [{"id": 3, "name": "x"}]}
    (root / "annotations/instances_train2017.json").write_text(json.dumps(payload))
    return DataRoots(root)


@pytest.fixture
def start(tiny, tmp_path) -> Path:
    """A checkpoint of the tiny config's trunk, with other weights than its seed gives."""
    random = RandomInit(RandomInitConfig(depth=18, width=0.125, seed=9))
    folder, made = run_standalone(random, inputs={}, data=DataRoots(tmp_path), out=tmp_path / "r9")
    return folder / made["checkpoint"]


def test_a_run_starts_from_a_checkpoint_in_both_branches(tiny, coco, start, tmp_path):
    cfg = tiny.model_copy(update={"init": str(start)})
    (tmp_path / "run").mkdir()
    place = Place(tmp_path / "run", torch.device("cpu"))
    with RunLog(tmp_path / "run") as log:
        run = Run(cfg, images("coco2017/train", coco), place, log, start)
    expected = load_backbone(start).state
    for branch in (run.method.online, run.method.target):
        state = branch.backbone.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_the_start_counts_by_its_bytes(tiny, coco, start, tmp_path):
    cfg = build(PretrainConfig, {**json.loads(tiny.model_dump_json()), "init": str(start)}, "test")
    folder, _ = run_standalone(Pretrain(cfg), inputs={"init": start}, data=coco, runs=tmp_path)
    plain, _ = run_standalone(Pretrain(tiny), inputs={}, data=coco, runs=tmp_path)
    assert folder != plain
    upstream = json.loads((folder / "stage.json").read_text())["upstream"]
    assert upstream == {"init": f"sha256:{file_sha256(start)}"}


def test_a_start_of_another_size_is_refused_with_the_keys_to_set(tiny, coco, start, tmp_path):
    wider = json.loads(tiny.model_dump_json()) | {"arch": {"depth": 18, "width": 0.25}}
    stage = Pretrain(build(PretrainConfig, wider, "test"))
    with pytest.raises(ConfigError, match=r"ResNet-18 of width 0\.125.*arch\.width=0\.125"):
        run_standalone(stage, inputs={"init": start}, data=coco, out=tmp_path / "run")


def test_pretrain_then_mask_quality(tiny, coco, tmp_path):
    folder, made = run_standalone(Pretrain(tiny), inputs={}, data=coco, out=tmp_path / "run")
    assert made["checkpoint"] == "checkpoints/last.pt"
    assert made["epoch_0002"] == "checkpoints/epoch_0002.pt"
    assert made["masks"] == made["masks_epoch_0004"] == "masks/epoch_0004"
    assert made["masks_epoch_0002"] == "masks/epoch_0002"
    assert load_backbone(folder / made["checkpoint"]).depth == 18
    assert load_backbone(folder / made["checkpoint"], branch="target").width == 0.125

    inputs = {"checkpoint": folder / made["checkpoint"], "masks": folder / made["masks"]}
    config = MaskQualityConfig(data="coco2017/train", random_network=True, gallery_images=2)
    stage = MaskQuality(config)
    out, measured = run_standalone(stage, inputs=inputs, data=coco, out=tmp_path / "quality")
    rows = {row.metric: row for row in read_results(out / measured["results"])}
    sources = ("kmeans_epoch_0002", "kmeans_epoch_0004", "grid5x5", "random_network")
    assert rows.keys() >= {f"ari_{source}" for source in sources}
    assert all(row.task == "mask_quality" and row.num_images == 10 for row in rows.values())
    assert all(-100 <= row.value <= 100 for row in rows.values() if row.unit == "%")
    for picture in ("gallery", "curve"):
        assert Image.open(out / measured[picture]).size[0] > 200
        assert caption(stage, Path(measured[picture]).stem) != picture
    kept = json.loads((out / measured["quality"]).read_text())
    assert kept["sources"]["random_network"]["manifest"]["source"] == "kmeans"


def test_masks_of_fixed_sources_are_called_by_their_source(tiny, coco, tmp_path):
    method = {"warmup_epochs": 0, "refresh_masks_every": 0, "masks": {"source": "grid"}}
    config = json.loads(tiny.model_dump_json())
    config["method"] |= method
    stage = Pretrain(build(PretrainConfig, config, "test"))
    folder, made = run_standalone(stage, inputs={}, data=coco, out=tmp_path / "run")
    inputs = {"checkpoint": folder / made["checkpoint"], "masks": folder / made["masks"]}
    stage = MaskQuality(MaskQualityConfig(data="coco2017/train", gallery_images=0))
    out, measured = run_standalone(stage, inputs=inputs, data=coco, out=tmp_path / "quality")
    rows = {row.metric: row.value for row in read_results(out / measured["results"])}
    assert rows["ari_grid_epoch_0001"] == rows["ari_grid5x5"]


def test_a_finished_run_is_not_repeated_and_another_config_refused(tiny, coco, tmp_path):
    out = tmp_path / "run"
    run_standalone(Pretrain(tiny), inputs={}, data=coco, out=out)
    before = (out / "checkpoints/last.pt").stat().st_mtime_ns
    run_standalone(Pretrain(tiny), inputs={}, data=coco, out=out)
    assert (out / "checkpoints/last.pt").stat().st_mtime_ns == before
    other = Pretrain(tiny.model_copy(update={"seed": 1}))
    with pytest.raises(StageError, match="seed"):
        run_standalone(other, inputs={}, data=coco, out=out)


def test_random_init_equals_the_start_of_a_pretraining(tmp_path):
    stage = RandomInit(RandomInitConfig(depth=18, width=0.125, seed=4))
    made = stage.run(StageContext(tmp_path, {}, DataRoots(tmp_path)))
    backbone = load_backbone(tmp_path / made["checkpoint"])
    from pretrain.methods.cyborgs import build as build_method

    cfg = build(PretrainConfig, {"arch": {"depth": 18, "width": 0.125}, "seed": 4}, where="test")
    expected = build_method(cfg).online_backbone.conv1.weight
    assert torch.equal(backbone.state["conv1.weight"], expected)
    assert (backbone.depth, backbone.width) == (18, 0.125)


def test_ctrl_c_exits_with_130_and_says_how_to_continue(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain_command, "run_standalone", interrupted)
    with pytest.raises(SystemExit) as stopped:
        pretrain_command.main(ROOT / "configs/pretrain/twin.toml", out=tmp_path)
    assert stopped.value.code == 130
    assert "run the same command to continue" in capsys.readouterr().err


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pretrain", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_folder_of_images_from_the_command_line(image_dir, tiny, tmp_path):
    config = write_toml(tiny, tmp_path / "tiny.toml")
    done = _command(str(config), f"images={image_dir}", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "run/checkpoints/last.pt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=/not/there"], "/not/there"),
        (["images=coco2017/train"], "coco2017"),
        (["batch_siz=4"], "batch_size"),
        (["crop_size=-1"], "crop_size"),
    ],
    ids=lambda value: str(value[0]),
)
def test_bad_input_is_answered_in_one_line_without_a_traceback(arguments, message, tmp_path):
    config = "configs/pretrain/twin.toml"
    done = _command(config, *arguments, "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
