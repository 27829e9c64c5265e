"""method.masks.source=stored: masks made before, read where they lie, and part of what a run is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pretrain.config import MaskQualityConfig, PretrainConfig
from pretrain.control import untrained_masks
from pretrain.departures import departures_from_paper
from pretrain.masks.__main__ import app
from pretrain.masks.store import MaskError, MaskStore, read_index
from pretrain.stage import MaskQuality, Pretrain
from pretrain.train import Place, Run
from sslbench.config import ConfigError, build
from sslbench.datasets import DataRoots, images
from sslbench.log import RunLog
from sslbench.results import read_results
from sslbench.stage import StageError, artifact_path, run_standalone
from tests.pretrain.compare import assert_equal, rows
from tests.pretrain.conftest import TINY
from tests.pretrain.runs import dying_after, last_checkpoint
from tests.pretrain.test_ground_truth import SPEC, write_coco
from tests.pretrain.test_masks_make import device_for


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six images of three colours each, large enough for Felzenszwalb's segments."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(6):
        pixels = np.zeros((96, 128, 3), np.uint8)
        for left, right in ((0, 40 + number), (40 + number, 80), (80, 128)):
            pixels[:, left:right] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    return tmp_path / "photos"


def make(folder: Path, images: object, *words: object) -> Path:
    arguments = ["make", folder, "--images", images, *device_for(*words), *words]
    made = CliRunner().invoke(app, [str(word) for word in arguments])
    assert made.exit_code == 0, made.output
    return folder


def config(images: object, **masks: str) -> PretrainConfig:
    """Two epochs without warm-up on these masks."""
    method = TINY["method"] | {"warmup_epochs": 0, "refresh_masks_every": 0, "masks": masks}
    schedule = TINY["schedule"] | {"epochs": 3, "keep_epochs": []}
    table = TINY | {"images": str(images), "method": method, "schedule": schedule}
    return build(PretrainConfig, table, "test")


def stored(images: object, store: Path) -> PretrainConfig:
    return config(images, source="stored", store=str(store))


def pretrain(cfg: PretrainConfig, out: Path) -> tuple[Path, dict[str, str]]:
    roots = DataRoots(out.parent)
    return run_standalone(Pretrain(cfg), inputs=cfg.inputs, data=roots, out=out, device="cpu")


def pretrain_and_stop(cfg: PretrainConfig, out: Path, steps: int) -> None:
    with dying_after(steps):
        pretrain(cfg, out)


def test_training_on_a_store_is_training_on_its_source_to_the_last_bit(photos, tmp_path):
    store = make(tmp_path / "fh", photos, "source=felzenszwalb")
    assert read_index(store)["clusters"].max() > 1
    source, _ = pretrain(config(photos, source="felzenszwalb"), tmp_path / "source")
    own, made = pretrain(stored(photos, store), tmp_path / "own")
    for part in ("model", "optimizer"):
        assert_equal(last_checkpoint(own)[part], last_checkpoint(source)[part])
    assert rows(own) == rows(source)
    assert made == {
        "checkpoint": "checkpoints/last.pt",
        "masks_epoch_0001": "masks/epoch_0001",
        "masks": "masks/epoch_0001",
    }
    other, _ = pretrain(stored(photos, make(tmp_path / "g", photos, "source=grid")), tmp_path / "o")
    assert rows(other) != rows(source)


def test_the_store_is_read_where_it_lies(photos, tmp_path):
    store = make(tmp_path / "fh", photos, "source=felzenszwalb")
    folder, made = pretrain(stored(photos, store), tmp_path / "run")
    assert (folder / made["masks"]).resolve() == store
    assert artifact_path(folder, "masks") == folder / made["masks"]
    listed = CliRunner().invoke(app, ["ls", str(folder)]).stdout
    assert "epoch_0001" in listed and "felzenszwalb" in listed and "complete" in listed
    assert f"masks from {store} before epochs 1" in (folder / "log.txt").read_text()


def test_a_generation_of_another_run_is_a_store(photos, tmp_path):
    table = json.loads(build(PretrainConfig, TINY, "test").model_dump_json())
    first, _ = pretrain(build(PretrainConfig, table | {"images": str(photos)}, "t"), tmp_path / "a")
    cfg = stored(photos, first / "masks/epoch_0004")
    second, made = pretrain(cfg, tmp_path / "b")
    manifest = json.loads((second / made["masks"] / "manifest.json").read_text())
    assert (manifest["source"], manifest["epoch"]) == ("kmeans", 4)
    assert (first / "masks/epoch_0004").is_dir()


def test_mask_quality_works_behind_a_run_on_a_store(tmp_path):
    roots = write_coco(tmp_path / "coco", num_images=4)
    store = make(tmp_path / "grid", SPEC, "--data", roots.root, "source=grid")
    cfg = stored(SPEC, store)
    folder, made = run_standalone(
        Pretrain(cfg), inputs=cfg.inputs, data=roots, out=tmp_path / "run", device="cpu"
    )
    inputs = {"checkpoint": folder / made["checkpoint"], "masks": artifact_path(folder, "masks")}
    quality = MaskQuality(MaskQualityConfig(data=SPEC, gallery_images=1))
    out, measured = run_standalone(quality, inputs=inputs, data=roots, out=tmp_path / "quality")
    found = {row.metric: row.value for row in read_results(out / measured["results"])}
    assert found["ari_grid_epoch_0001"] == found["ari_grid5x5"]


def test_two_stores_at_one_path_are_two_runs(photos, tmp_path):
    store, runs, found = tmp_path / "store", tmp_path / "runs", []
    for source in ("grid", "crop"):
        shutil.rmtree(store, ignore_errors=True)
        cfg = stored(photos, make(store, photos, f"source={source}"))
        folder, _ = run_standalone(
            Pretrain(cfg), inputs=cfg.inputs, data=DataRoots(tmp_path), runs=runs, device="cpu"
        )
        found.append(folder)
    assert found[0] != found[1]
    assert rows(found[0]) != rows(found[1])


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_another_store_at_the_path_is_refused_by_a_run_that_began(state, photos, tmp_path):
    store = make(tmp_path / "store", photos, "source=grid")
    cfg, out = stored(photos, store), tmp_path / "run"
    if state == "finished":
        pretrain(cfg, out)
    else:
        pretrain_and_stop(cfg, out, steps=2)
    shutil.rmtree(store)
    make(store, photos, "source=crop")
    with pytest.raises(StageError, match=r"what differs: upstream\.store\. Choose another folder"):
        pretrain(cfg, out)


def test_a_store_that_moved_continues_the_run_to_the_same_bits(photos, tmp_path):
    store = make(tmp_path / "store", photos, "source=felzenszwalb")
    whole, _ = pretrain(stored(photos, store), tmp_path / "whole")
    pretrain_and_stop(stored(photos, store), tmp_path / "cut", steps=2)
    store.rename(tmp_path / "moved")
    make(store, photos, "source=crop")  # what the link of the run's folder now leads to
    cut, made = pretrain(stored(photos, tmp_path / "moved"), tmp_path / "cut")
    assert_equal(last_checkpoint(cut)["model"], last_checkpoint(whole)["model"])
    assert (cut / made["masks"]).resolve() == tmp_path / "moved"


def test_the_place_of_the_store_is_not_part_of_the_identity(photos, tmp_path):
    store, found = make(tmp_path / "store", photos, "source=grid"), []
    shutil.copytree(store, tmp_path / "copy")
    for folder in (store, tmp_path / "copy"):
        cfg = stored(photos, folder)
        out, _ = run_standalone(
            Pretrain(cfg), inputs=cfg.inputs, data=DataRoots(tmp_path), runs=tmp_path / "runs"
        )
        found.append(out)
    assert found[0] == found[1]


def _cut(store: Path) -> None:
    (store / "labels.bin").write_bytes((store / "labels.bin").read_bytes()[:-5])


def _flip(store: Path) -> None:
    labels = bytearray((store / "labels.bin").read_bytes())
    labels[7] ^= 1
    (store / "labels.bin").write_bytes(bytes(labels))


def _no_manifest(store: Path) -> None:
    (store / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "store: .* does not exist"),
        (_no_manifest, "is no mask store: it has no manifest.json"),
        (_cut, "is damaged: labels.bin has"),
        (_flip, "the content's hash is"),
        (lambda store: (store / "manifest.json").write_text("{"), "is not valid JSON"),
    ],
)
def test_a_broken_store_is_refused_before_anything_is_trained(damage, told, photos, tmp_path):
    store = make(tmp_path / "store", photos, "source=grid")
    damage(store)
    with pytest.raises(ValueError, match=told):
        pretrain(stored(photos, store), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    assert not (tmp_path / "run/masks").exists()


def test_an_unfinished_store_is_refused_with_how_to_finish_it(photos, tmp_path):
    (tmp_path / "store.partial").mkdir()
    told = r"is unfinished \(0 of \? parts\); the command that was making it, run again"
    with pytest.raises(MaskError, match=told):
        pretrain(stored(photos, tmp_path / "store.partial"), tmp_path / "run")


def test_a_store_of_other_images_is_refused(photos, tmp_path):
    store = make(tmp_path / "store", photos, "source=grid")
    (photos / "5.png").unlink()
    with pytest.raises(MaskError, match=r"another image list.* or give masks of these images"):
        pretrain(stored(photos, store), tmp_path / "run")


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ({"source": "stored"}, "source='stored' needs the folder of the masks: add store"),
        ({"source": "grid", "store": "m/fh"}, "store='m/fh' is read by source='stored', not"),
        ({"source": "kmeans", "store": "m/fh"}, "not by 'kmeans': leave it out"),
        ({"source": "stored", "store": "m/fh", "refine": "crf"}, "set refine='none'"),
    ],
)
def test_a_store_and_its_source_come_together(masks, told):
    with pytest.raises(ConfigError, match=told):
        config("photos", **masks)


def test_a_store_is_there_from_the_start_and_never_changes():
    table = {"method": {"masks": {"source": "stored", "store": "m/fh"}}}
    with pytest.raises(ConfigError, match=r"set warmup_epochs .* and refresh_masks_every"):
        build(PretrainConfig, table, "test")


def test_make_reads_no_store(photos, tmp_path):
    words = ["make", str(tmp_path / "m"), "--images", str(photos), "source=stored", "store=x"]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 1
    assert "source='stored' reads masks that are there already; to make some give" in made.output


def test_a_footnote_says_that_masks_were_stored():
    assert "masks from stored, not kmeans" in departures_from_paper(stored("photos", Path("m/fh")))


def test_the_control_of_a_run_on_a_store_clusters_its_own_features(photos, tmp_path):
    folder, made = pretrain(
        stored(photos, make(tmp_path / "store", photos, "source=grid")), tmp_path / "run"
    )
    shutil.rmtree(tmp_path / "store")
    listed = images(photos, DataRoots(tmp_path))
    with RunLog(tmp_path) as log:
        found = untrained_masks(folder / made["checkpoint"], listed, tmp_path / "control", log)
    assert found.manifest["source"] == "kmeans"


def test_a_run_reads_labels_of_the_store_itself(photos, tmp_path):
    """Not by the link: another process may be making that anew."""
    store = make(tmp_path / "store", photos, "source=grid")
    cfg = stored(photos, store)
    listed = images(photos, DataRoots(tmp_path))
    place = Place(tmp_path / "run", torch.device("cpu"))
    place.folder.mkdir()
    with RunLog(place.folder) as log:
        masks = Run(cfg, listed, place, log, stored=store).masks_for(1)
    assert isinstance(masks, MaskStore) and masks.folder == store
    with RunLog(place.folder) as log, pytest.raises(MaskError, match="another image list"):
        Run(cfg, replace(listed, names=listed.names[:4]), place, log, stored=store)
