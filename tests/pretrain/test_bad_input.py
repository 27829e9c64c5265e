"""Odd pictures, odd masks and odd sizes: each has a defined outcome."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import start
from pretrain import train as train_module
from pretrain.config import PretrainConfig
from pretrain.data import Batch, ViewSpec, make_loader
from pretrain.estimate import synthetic_batch
from pretrain.masks.kmeans import KMeans
from pretrain.masks.kmeans_faiss import BackendError
from pretrain.masks.refresh import Bootstrap, refresh
from pretrain.memory import shared_batch
from pretrain.methods.cyborgs import RECIPES, Cyborgs, build
from pretrain.optimizers import build_optimizer
from pretrain.plan import EpochPlan
from pretrain.stage import Pretrain
from pretrain.train import Place, Run
from sslbench.config import ConfigError
from sslbench.config import build as config_build
from sslbench.datasets import DataRoots, images
from sslbench.log import RunLog, read_metrics
from sslbench.memory import OutOfMemoryError
from sslbench.resnet import ResNet
from sslbench.stage import StageError, run_standalone
from tests.pretrain.conftest import write_images

CONTRAST = EpochPlan(refresh_masks=False, contrast=True, clustering_weight=0.0, clusters=(2, 8))
MANY_CLUSTERS = dataclasses.replace(
    CONTRAST, contrast=False, clustering_weight=1.0, clusters=(256, 256)
)


def _relabelled(batch: Batch, *labels: int) -> Batch:
    """Give every pixel of the two views these labels."""
    views = (
        dataclasses.replace(view, labels_BSS=torch.full_like(view.labels_BSS, label))
        for view, label in zip(batch.views, labels, strict=True)
    )
    return dataclasses.replace(batch, views=tuple(views))


def _step(method: Cyborgs, batch: Batch, plan: EpochPlan):
    (part,) = batch.parts(1)
    output = method(part, method.prepare([part], plan), plan)
    sum(output.terms.values()).backward()
    return output


def _gradients(method: Cyborgs) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


@pytest.fixture
def batch(tiny) -> Batch:
    return synthetic_batch(build(tiny).view_spec, 4, torch.device("cpu"))


def test_views_with_a_single_mask_are_contrasted_as_whole_images(tiny, batch):
    output = _step(build(tiny), _relabelled(batch, 7, 7), CONTRAST)
    assert output.monitors["masks_per_view"] == 1
    assert output.monitors["share_positive"] == 1
    # One anchor, drawn four times: each copy counts a quarter.
    relation = output.terms["contrast"] / output.monitors["weighted_loss"]
    assert relation.item() == pytest.approx(2 / tiny.method.masks_per_view, rel=1e-5)


def test_a_batch_without_any_positive_costs_nothing_and_steps_on(tiny, batch):
    method = build(tiny)
    optimizer = build_optimizer(tiny.optimizer, method)
    output = _step(method, _relabelled(batch, 7, 8), CONTRAST)
    assert output.terms["contrast"] == 0 and output.monitors["share_positive"] == 0
    assert (_gradients(method) == 0).all()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in method.parameters())


def test_fewer_cells_than_clusters_keep_one_column_each(tiny, batch, monkeypatch):
    """Crops of 32 px have 16 cells: a group of two images has 32 points for K = 256."""
    method, made = build(tiny), []
    original = method.consistency.cluster
    monkeypatch.setattr(
        method.consistency, "cluster", lambda *a: made.append(original(*a)) or made[-1]
    )
    output = _step(method, batch, MANY_CLUSTERS)
    assert {len(p.centers_KD) for pair in made for p in pair} == {32}
    assert torch.isfinite(output.terms["clustering"])


def test_maps_of_zeros_cost_log_k_and_have_finite_gradients(tiny, batch):
    """All channels dead: no direction, no NaN, and as dear as any collapsed map."""
    method = build(tiny)
    for branch in (method.online, method.target):
        for block in branch.backbone.layer2:
            torch.nn.init.zeros_(block.bn2.weight)
            torch.nn.init.zeros_(block.downsample[1].weight if block.downsample else block.bn2.bias)
    plan = dataclasses.replace(MANY_CLUSTERS, clusters=(8, 8))
    output = _step(method, batch, plan)
    assert output.terms["clustering"].item() == pytest.approx(4 * math.log(8), rel=1e-4)
    assert torch.isfinite(_gradients(method)).all()


def test_bootstrapping_fewer_cells_than_clusters_gives_each_cell_its_own(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):  # four cells each
        pixels = generator.integers(0, 256, (9, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    listed = images(folder, DataRoots(folder))
    settings = Bootstrap(("layer2.1",), 256, 256, 3, seed=0, epoch=1, rule=KMeans(5))
    with RunLog(tmp_path) as log:
        store = refresh(ResNet(18, 0.125), listed, "id", tmp_path / "epoch_0001", settings, log)
    assert [store.clusters(index) for index in range(3)] == [12] * 3
    assert max(store.read(index).max() for index in range(3)) < 12


def _save(image: Image.Image, path, **settings) -> None:
    image.save(path, "JPEG", quality=95, **settings)


@pytest.fixture
def odd_jpegs(tmp_path):
    """Ten pictures: gray, CMYK and one that asks to be turned among them."""
    folder = tmp_path / "odd"
    write_images(folder, 7)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((64, 40), Image.Resampling.NEAREST)
    _save(picture.convert("L"), folder / "gray.jpg")
    _save(picture.convert("CMYK"), folder / "inks.jpg")
    exif = picture.getexif()
    exif[0x0112] = 6  # shown upright only after a quarter turn
    _save(picture, folder / "turned.jpg", exif=exif)
    return folder


def test_gray_cmyk_and_turned_jpegs_train_from_end_to_end(tiny, odd_jpegs, tmp_path):
    cfg = tiny.model_copy(update={"images": str(odd_jpegs)})
    roots = DataRoots(odd_jpegs)
    folder, made = run_standalone(Pretrain(cfg), inputs={}, data=roots, out=tmp_path / "run")
    assert all(math.isfinite(row["loss"]) for row in read_metrics(folder / "metrics.jsonl"))
    index = np.load(folder / made["masks"] / "index.npy")
    names = images(odd_jpegs, roots).names
    turned = index[names.index("turned.jpg")]
    # As the file stores it; annotations and masks count in these pixels too.
    assert (turned["height"], turned["width"]) == (40, 64)


def test_the_loader_turns_gray_and_cmyk_into_rgb_and_turns_nothing(odd_jpegs):
    listed = images(odd_jpegs, DataRoots(odd_jpegs))
    spec = ViewSpec(RECIPES, crop_size=32, num_uniforms=4)
    (batch,) = make_loader(listed, None, spec, batch_size=10, seed=0, epoch=1)
    place = {
        name: batch.indices_B.tolist().index(listed.names.index(name)) for name in listed.names
    }
    for view in batch.views:
        gray = view.images_B3SS[place["gray.jpg"]]
        assert (gray == gray[:1]).all()
        ink = view.images_B3SS[place["inks.jpg"]]
        assert ink.shape == (3, 32, 32) and not (ink == ink[:1]).all()


def test_the_loader_crops_a_turned_jpeg_as_it_is_stored(odd_jpegs):
    listed = images(odd_jpegs, DataRoots(odd_jpegs))
    turned, spec = listed.names.index("turned.jpg"), ViewSpec(RECIPES, 32, 4)
    boxes = []
    for epoch in range(1, 13):
        (batch,) = make_loader(listed, None, spec, batch_size=10, seed=0, epoch=epoch)
        row = batch.indices_B.tolist().index(turned)
        boxes += [view.geometry.box_B4[row].tolist() for view in batch.views]
    assert 40 < max(x + width for x, _, width, _ in boxes) <= 64
    assert max(y + height for _, y, _, height in boxes) <= 40


SMALL = [(1, 1), (1, 63), (63, 1), (1, 300), (300, 1), (2, 3), (8, 8), (9, 7), (17, 63), (64, 5)]


def test_pictures_down_to_one_pixel_train_through_every_phase(tiny, tmp_path):
    """Height and width below a cell, below a crop, and far from any allowed aspect."""
    folder = tmp_path / "small"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate(SMALL):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    cfg = tiny.model_copy(update={"images": str(folder)})
    out, made = run_standalone(
        Pretrain(cfg), inputs={}, data=DataRoots(folder), out=tmp_path / "run"
    )
    rows = read_metrics(out / "metrics.jsonl")
    assert len(rows) == 8 and all(math.isfinite(row["loss"]) for row in rows)
    assert {"contrast", "clustering"} <= {key for row in rows for key in row}
    sizes = np.load(out / made["masks"] / "index.npy")
    assert [(row["height"], row["width"]) for row in sizes] == SMALL
    assert [(row["h"], row["w"]) for row in sizes] == [(-(-h // 8), -(-w // 8)) for h, w in SMALL]


def test_a_run_whose_images_changed_is_refused(tiny, image_dir, tmp_path):
    """Its masks, its order and its epochs belong to another list."""
    cfg = tiny.model_copy(update={"images": str(image_dir)})
    roots, out = DataRoots(image_dir), tmp_path / "run"
    run_standalone(Pretrain(cfg), inputs={}, data=roots, out=out)
    (out / "done.json").unlink()
    (image_dir / "image_03.png").unlink()
    with pytest.raises(StageError, match="what differs: data"):
        run_standalone(Pretrain(cfg), inputs={}, data=roots, out=out)


def test_a_batch_that_the_processes_cannot_share_is_refused_at_the_start(tiny, monkeypatch):
    monkeypatch.setattr(train_module.dist, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="batch_size 4 cannot be shared equally by 3 processes"):
        shared_batch(tiny).require_equal_parts()


@pytest.mark.parametrize("where", ["estimate", "prepare", "forward"])
def test_a_gpu_that_is_too_small_is_told_what_to_change(
    where, tiny, image_list, tmp_path, monkeypatch
):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    if where == "estimate":
        monkeypatch.setattr(start, "estimate", full)
    else:
        monkeypatch.setattr(Run, "say_plan", lambda self: None)
        monkeypatch.setattr(Cyborgs, where, full)
    message = r"^4 images at a time do not fit.*accumulate=2 makes it 2 .*batch_size=2 changes"
    with RunLog(tmp_path) as log, pytest.raises(OutOfMemoryError, match=message):
        Run(tiny, image_list, Place(tmp_path, torch.device("cpu")), log).train()


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "advice"),
    [
        (64, 1, "accumulate=2 makes it 32"),
        (12, 4, "accumulate=6 makes it 2"),
        (9, 1, "=3 makes it 3"),
    ],
)
def test_the_advice_for_a_small_gpu_is_a_setting_that_works(batch_size, accumulate, advice, tiny):
    changes = {"batch_size": batch_size, "accumulate": accumulate}
    with (
        pytest.raises(OutOfMemoryError, match=advice),
        shared_batch(tiny.model_copy(update=changes)).out_of_memory_explained(),
    ):
        raise torch.cuda.OutOfMemoryError("full")


def test_two_images_that_do_not_fit_cannot_be_split(tiny):
    cfg = tiny.model_copy(update={"batch_size": 2})
    with (
        pytest.raises(OutOfMemoryError, match=r"2 images at a time .* smaller crop_size or arch"),
        shared_batch(cfg).out_of_memory_explained(),
    ):
        raise torch.cuda.OutOfMemoryError("full")


@pytest.mark.parametrize("part", ["masks", "clustering"])
def test_a_run_that_lacks_faiss_ends_before_it_begins(
    part, tiny, image_list, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "faiss", None)
    table = json.loads(tiny.model_dump_json())
    table["method"][part]["backend"] = "faiss"
    cfg = config_build(PretrainConfig, table, where="test")
    with RunLog(tmp_path) as log, pytest.raises(BackendError, match="pip install faiss-cpu"):
        Run(cfg, image_list, Place(tmp_path, torch.device("cpu")), log)
    assert (tmp_path / "log.txt").read_text() == ""


def test_masks_are_made_in_the_precision_that_the_run_began_with(tiny, image_list, tmp_path):
    """A run that began in bfloat16 and goes on where float32 is the rule, or the reverse."""
    with RunLog(tmp_path) as log:
        run = Run(tiny, image_list, Place(tmp_path, torch.device("cpu")), log)
        run.method.precision = "bf16"
        assert run.masks_for(2).manifest["precision"] == "bf16"
