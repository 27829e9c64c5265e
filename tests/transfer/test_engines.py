"""Building, loading and predicting, engine by engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import build_engine, twin_task, write_random_weights

from sslbench.config import ConfigError
from sslbench.datasets import DataError, DataRoots, Object, Record
from sslbench.resnet import ResNet
from transfer.detection import read_data
from transfer.engines.base import Draw, Engine
from transfer.engines.detectron2 import Detectron2Engine
from transfer.engines.heads import RegionPooler
from transfer.engines.loading import Weights, load_exactly
from transfer.engines.masks import cut, encode, paste, rasterise
from transfer.engines.proposals import Anchors
from transfer.engines.samples import SampleMapper, resized_shape
from transfer.naming import to_detectron2
from transfer.weights import WeightsError, load_weights

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]
LAST_STAGE = {"torchvision": "heads.box_head.res5", "detectron2": "roi_heads.res5"}


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_every_backbone_tensor_comes_from_the_weights_and_only_heads_are_fresh(
    engine_name: str, layout: str, scenes: DataRoots, tmp_path: Path
):
    engine = build_engine(twin_task(layout, engine_name), scenes, tmp_path)
    arrays, _ = load_weights(tmp_path / f"{layout}.pkl")
    state = engine.model.state_dict()
    tracked = {n for n in state if n.endswith("num_batches_tracked")}
    assert len(state) - len(tracked) == len(arrays) + len(engine.fresh)
    if layout == "c4":
        fresh_in_stage = [n for n in engine.fresh if n.startswith(LAST_STAGE[engine_name] + ".")]
        norm = "roi_heads.res5.norm."  # the extra norm after res5 is a head
        assert all(name.startswith(norm) for name in fresh_in_stage)
    arrays_left = {value.tobytes() for value in arrays.values()}
    arrays_left -= {value.numpy().tobytes() for value in state.values()}
    assert not arrays_left


def test_nothing_is_frozen(engine_name: str, scenes: DataRoots, tmp_path: Path):
    engine = build_engine(twin_task("c4", engine_name), scenes, tmp_path)
    assert all(parameter.requires_grad for parameter in engine.model.parameters())
    assert all(module.training for module in engine.model.train().modules())


def test_the_same_seed_gives_the_same_heads(engine_name: str, scenes: DataRoots, tmp_path: Path):
    build = [
        build_engine(twin_task("fpn", engine_name, [f"seed={seed}"]), scenes, tmp_path).model
        for seed in (0, 0, 1)
    ]
    first, same, other = (model.state_dict() for model in build)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_augmentation_depends_on_seed_iteration_and_slot_alone(
    engine_name: str, scenes: DataRoots, tmp_path: Path
):
    engine = build_engine(twin_task("fpn", engine_name), scenes, tmp_path)
    record = read_data(twin_task("fpn"), scenes)[0].records[0]

    def pixels(*draw: int) -> torch.Tensor:
        sample = engine.mapper.train(record, Draw(*draw))
        return sample["image"] if isinstance(sample, dict) else sample.image_3HW

    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(pixels(0, 1, 2), pixels(0, 1, 2))
    shown = [pixels(0, iteration, slot) for iteration in range(3) for slot in range(3)]
    assert any(a.shape != b.shape or not torch.equal(a, b) for a in shown for b in shown)


def test_a_truncated_image_is_named(engine_name: str, scenes: DataRoots, tmp_path: Path):
    engine = build_engine(twin_task("c4", engine_name), scenes, tmp_path)
    record = read_data(twin_task("c4"), scenes)[0].records[0]
    path = tmp_path / "cut.jpg"
    path.write_bytes(record.path.read_bytes()[:700])
    broken = Record("cut", path, record.height, record.width, record.objects)
    with pytest.raises(DataError, match=r"cut\.jpg"):
        engine.mapper.train(broken, Draw(0, 0, 0))


@pytest.mark.parametrize("use", ["train", "test"])
def test_an_image_of_another_size_than_annotated_is_named_with_both_sizes(
    use: str, engine_name: str, scenes: DataRoots, tmp_path: Path
):
    mapper = build_engine(twin_task("c4", engine_name), scenes, tmp_path).mapper
    record = read_data(twin_task("c4"), scenes)[0].records[0]
    grown = replace(record, height=record.height * 2)
    message = rf"{record.path.name}.*{record.width}\D+{record.height}\b.*\D{grown.height}\b"
    with pytest.raises(DataError, match=message):
        mapper.train(grown, Draw(0, 0, 0)) if use == "train" else mapper.test(grown)


def boundary(engine: Engine, record: Record) -> None:
    """Whatever a detector of random weights finds lies inside the image."""
    engine.model.eval()
    (found,) = engine.predict([engine.mapper.test(record)])
    assert (found.boxes_N4 >= 0).all()
    assert (found.boxes_N4[:, 2] <= record.width).all()
    assert (found.boxes_N4[:, 3] <= record.height).all()
    assert (np.diff(found.scores_N) <= 0).all()
    if found.masks is not None:
        assert len(found.masks) == len(found.scores_N)
        assert all(mask["size"] == [record.height, record.width] for mask in found.masks)


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_predictions_lie_in_the_original_image(
    engine_name: str, layout: str, scenes: DataRoots, tmp_path: Path
):
    task = twin_task(layout, engine_name)
    engine = build_engine(task, scenes, tmp_path)
    for record in read_data(task, scenes)[1].records[:2]:
        boundary(engine, record)


def test_weights_of_the_other_layout_are_refused(tmp_path: Path):
    weights = Weights.read(write_random_weights(tmp_path / "w.pkl", "c4"))
    with pytest.raises(WeightsError, match=r"layout 'c4', the task needs 'fpn'"):
        weights.require_fit("fpn", twin_task("fpn").values())


def test_weights_of_another_width_are_refused(tmp_path: Path):
    weights = Weights.read(write_random_weights(tmp_path / "w.pkl", "c4", width=0.25))
    with pytest.raises(WeightsError, match=r"width 0.25.*width 0.125.*leave the widths"):
        weights.require_fit("c4", twin_task("c4").values())


@pytest.mark.parametrize(("depth", "width"), [(18, 0.125), (50, 0.25), (101, 1.0)])
def test_a_task_takes_the_trunk_of_its_weights(depth: int, width: float, tmp_path: Path):
    weights = Weights.read(write_random_weights(tmp_path / "w.pkl", "fpn", width, depth))
    task = twin_task("fpn").resolved().on_trunk(weights.depth, weights.width)
    weights.require_fit("fpn", task.values())
    assert task.values().width == width


def test_a_trunk_that_was_set_explicitly_stays(tmp_path: Path):
    task = twin_task("fpn", overrides=["set.MODEL.RESNETS.DEPTH=101"]).resolved()
    assert task.on_trunk(50, 0.25) == task


def test_weights_of_another_depth_are_refused(tmp_path: Path):
    weights = Weights.read(write_random_weights(tmp_path / "w.pkl", "fpn", depth=18))
    with pytest.raises(WeightsError, match=r"ResNet-18.*builds a ResNet-50"):
        weights.require_fit("fpn", twin_task("fpn").values())


def test_a_missing_superfluous_or_misshapen_tensor_is_refused():
    model = ResNet(18, 0.125)
    state = dict(model.state_dict())
    kept = {k: v for k, v in state.items() if "num_batches" not in k}
    changed = kept | {"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(1)}
    del changed["bn1.bias"]
    with pytest.raises(WeightsError) as caught:
        load_exactly(model, changed, lambda name: True, Path("w.pkl"))
    for problem in ("fc.weight: the detector has no", "conv1.weight: (3,)", "bn1.bias: no weights"):
        assert problem in str(caught.value)
    assert load_exactly(model, kept, lambda name: True, Path("w.pkl")) == ()


def test_an_unknown_norm_is_refused(scenes: DataRoots, tmp_path: Path):
    with pytest.raises(ConfigError, match="norm 'GN' is not built"):
        build_engine(twin_task("c4", overrides=["set.MODEL.RESNETS.NORM=GN"]), scenes, tmp_path)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((100, 200), 50, 1000, (50, 100)),
        ((100, 200), 50, 80, (40, 80)),
        ((75, 50), 64, 999, (96, 64)),
    ],
)
def test_the_short_side_is_scaled_and_the_long_one_capped(size, short, longest, expected):
    assert resized_shape(*size, short, longest) == expected


def test_a_flip_mirrors_boxes_and_masks_with_the_pixels(scenes: DataRoots):
    mapper = SampleMapper(twin_task("fpn").values())
    mapper.train_sizes = (96,)
    record = next(
        r
        for r in read_data(twin_task("fpn"), scenes)[0].records
        if not any(o.crowd for o in r.objects)
    )
    plain, flipped = {}, {}
    for iteration in range(20):
        sample = mapper.train(record, Draw(0, iteration, 0))
        same = torch.equal(sample.image_3HW, mapper.train(record, Draw(0, 0, 0)).image_3HW)
        (plain if same else flipped)["sample"] = sample
    a, b = plain["sample"], flipped["sample"]
    assert torch.equal(a.image_3HW.flip(2), b.image_3HW)
    height, width = a.image_3HW.shape[1:]
    for mine, mirrored in zip(a.shapes_N, b.shapes_N, strict=True):
        pair = [
            rasterise([list(p) for p in shape], height, width, "") for shape in (mine, mirrored)
        ]
        assert (pair[0][:, ::-1] != pair[1]).mean() < 0.02  # drawing is not quite symmetric
    width = a.image_3HW.shape[2]
    assert torch.allclose(width - a.boxes_N4[:, [2, 0]], b.boxes_N4[:, [0, 2]])


def test_masks_cover_what_their_boxes_say(scenes: DataRoots):
    mapper = SampleMapper(twin_task("fpn").values())
    for record in read_data(twin_task("fpn"), scenes)[0].records[:4]:
        sample = mapper.train(record, Draw(0, 0, 0))
        for box, shape in zip(sample.boxes_N4, sample.shapes_N, strict=True):
            mask = rasterise([list(p) for p in shape], *sample.image_3HW.shape[1:], "")
            rows, columns = torch.where(torch.from_numpy(mask) > 0)
            extent = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (extent - box).abs().max() <= 2


def test_boxes_that_become_empty_are_dropped_from_the_targets(tmp_path: Path, scenes: DataRoots):
    record = read_data(twin_task("c4"), scenes)[0].records[0]
    flat = Object(0, (5.0, 5.0, 5.0, 9.0), 0.0, False, False, None, 99)
    mapper = SampleMapper(twin_task("c4").values())
    record = Record("x", record.path, record.height, record.width, (*record.objects, flat))
    assert len(mapper.train(record, Draw(0, 0, 0)).boxes_N4) == len(record.objects) - 1


def test_an_object_is_cut_alike_from_its_polygon_and_from_its_pixels():
    square = np.array([8.0, 8, 40, 8, 40, 40, 8, 40])
    pixels = rasterise([square.tolist()], 64, 64, "")
    box = np.array([0.0, 0, 32, 32])
    for shape in ((square,), pixels):
        part = cut(shape, box, 16)
        assert part[5:, 5:].all() and not part[:4].any() and not part[:, :4].any()


def test_an_object_without_segmentation_cannot_teach_masks(scenes: DataRoots):
    record = read_data(twin_task("c4"), scenes)[0].records[0]  # VOC has boxes only
    with pytest.raises(DataError, match="without segmentation"):
        SampleMapper(twin_task("fpn").values()).train(record, Draw(0, 0, 0))


def test_an_rle_of_the_wrong_size_is_refused():
    with pytest.raises(DataError, match=r"object 3.*\[2, 3\].*\[4, 5\]"):
        rasterise(encode(np.ones((2, 3))), 4, 5, "object 3")


def test_a_full_map_pasted_in_a_box_fills_it():
    box = torch.tensor([[10.0, 20.0, 30.0, 50.0]])
    (rle,) = paste(torch.ones(1, 28, 28), box, 64, 48)
    mask = rasterise(rle, 64, 48, "")
    expected = np.zeros((64, 48), np.uint8)
    expected[20:50, 10:30] = 1
    assert (mask == expected).all()


@pytest.mark.d2
def test_pasted_masks_are_detectron2s():
    from detectron2.layers import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(6, 28, 28, generator=generator)
    corner = torch.rand(6, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(6, 2, generator=generator) * 30], dim=1)
    theirs = paste_masks_in_image(maps, boxes, (80, 70), threshold=0.5).numpy()
    ours = np.stack([rasterise(rle, 80, 70, "") for rle in paste(maps, boxes, 80, 70)])
    assert (ours != theirs).mean() < 1e-4


def test_anchors_are_centred_on_multiples_of_the_stride_and_keep_their_area():
    anchors = Anchors([[10.0, 20.0]], [[0.5, 2.0]], (16,))
    cell = anchors.cell_anchors[0]
    assert torch.allclose(cell[:, :2], -cell[:, 2:])
    sides = cell[:, 2:] - cell[:, :2]
    assert sides.prod(1).tolist() == pytest.approx([100, 100, 400, 400])
    assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 2, 0.5, 2])


def test_pooling_a_whole_aligned_cell_returns_its_mean():
    feature = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled = RegionPooler(2, (16,))([feature], [torch.tensor([[0.0, 0.0, 64.0, 64.0]])])
    assert pooled.flatten().tolist() == pytest.approx([2.5, 4.5, 10.5, 12.5])


def test_regions_are_read_from_the_level_that_fits_their_size():
    pooler = RegionPooler(1, (4, 8, 16, 32))
    maps = [torch.full((1, 1, 64 // 2**i, 64 // 2**i), float(i)) for i in range(4)]
    sides = (16, 112, 224, 448)
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in sides])
    boxes = boxes.clamp(max=256.0)
    boxes[3] = torch.tensor([0.0, 0.0, 448.0, 448.0])
    assert pooler(maps, [boxes]).flatten()[:3].tolist() == [0, 1, 2]
    assert pooler(maps, [boxes]).flatten()[3].item() == pytest.approx(3 * 0.57, abs=1)


def test_depth_18_fits_the_pyramid(scenes: DataRoots, tmp_path: Path):
    keys = ["set.MODEL.RESNETS.DEPTH=18", "set.MODEL.RESNETS.RES2_OUT_CHANNELS=8"]
    task = twin_task("fpn", overrides=keys)
    path = write_random_weights(tmp_path / "w.pkl", "fpn", depth=18)
    weights = Weights.read(path)
    weights.require_fit("fpn", task.values())
    assert task.values().width == 0.125
    assert set(weights.arrays) == set(
        to_detectron2({n: 0 for n in ResNet(18, 0.125).state_dict() if "num_b" not in n}, "fpn")
    )


@pytest.mark.parametrize("cause", [ImportError("undefined symbol: _ZN3c10"), OSError("libcudart")])
def test_a_broken_detectron2_is_named_with_the_way_out(
    cause: Exception, scenes: DataRoots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(name: str) -> None:
        assert name == "detectron2._C"
        raise cause

    weights = Weights.read(write_random_weights(tmp_path / "w.pkl", "c4"))
    task = twin_task("c4", "detectron2")
    monkeypatch.setattr("importlib.import_module", broken)
    message = rf"cannot be imported: {cause}; reinstall Detectron2.*set engine=torchvision"
    with pytest.raises(ConfigError, match=message):
        Detectron2Engine(task, ["a"], weights)
