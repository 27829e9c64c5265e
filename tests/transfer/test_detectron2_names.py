"""The names and settings dumped from Detectron2, and the parity check that relies on them."""

from pathlib import Path

import pytest
from checkpoints import make_backbone
from dump_detectron2_names import TRUNKS, keys, trunk
from test_parity import written

from transfer import naming, parity
from transfer.detectron2_names import (
    bare_name,
    config_keys,
    depths,
    has_own_head,
    misnamed,
    trunk_names,
)
from transfer.engines.detectron2 import EXTRA_NORM_HEAD, register_extra_norm_head
from transfer.naming import to_detectron2
from transfer.parity import check_parity
from transfer.weights import WeightsError

NUM_TENSORS = {18: 100, 34: 180, 50: 265, 101: 520}


@pytest.mark.parametrize(("layout", "depth"), TRUNKS)
def test_a_trunk_has_its_number_of_tensors(layout: str, depth: int):
    assert len(trunk_names(layout, depth)) == NUM_TENSORS[depth]


@pytest.mark.parametrize(("layout", "depth"), [("c4", 50), ("c4", 18), ("fpn", 50), ("fpn", 18)])
def test_our_names_and_shapes_are_detectron2s(layout: str, depth: int, tmp_path: Path):
    backbone = make_backbone(tmp_path, depth, 0.125)
    ours = {n: tuple(v.shape) for n, v in to_detectron2(backbone.state, layout).items()}
    assert ours == trunk_names(layout, depth, 0.125)


def test_a_dc5_detector_keeps_the_whole_trunk_in_its_backbone():
    names = trunk_names("dc5", 50)
    assert len(names) == 265
    assert all(name.startswith("backbone.") for name in names)
    assert {bare_name(n, "dc5") for n in names} == {
        bare_name(n, "fpn") for n in trunk_names("fpn", 50)
    }


def test_detectron2_has_no_c4_detector_of_basic_blocks_and_we_have():
    assert [depth for depth in depths("c4") if has_own_head("c4", depth)] == [50, 101]
    assert depths("c4") == depths("fpn") == [18, 34, 50, 101]
    assert depths("dc5") == [50, 101]


@pytest.mark.d2
@pytest.mark.parametrize("depth", [18, 34])
def test_our_head_of_basic_blocks_has_the_names_that_are_listed_for_it(depth: int):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    register_extra_norm_head()
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NAME = EXTRA_NORM_HEAD
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = depth, 64
    state = build_model(cfg).state_dict()
    heads = ("proposal_generator.", "roi_heads.box", "roi_heads.res5.norm.", "pixel_")
    kept = {n: tuple(v.shape) for n, v in state.items() if not n.startswith(heads)}
    assert kept == trunk_names("c4", depth)


def test_a_tensor_of_another_shape_is_unknown_and_missing():
    shapes = trunk_names("fpn", 50)
    name = "backbone.bottom_up.stem.conv1.weight"
    unknown, missing = misnamed(shapes | {name: (64, 1, 7, 7)}, "fpn", 50, 1.0)
    assert (unknown, missing) == ([name], [name])


def test_the_keys_of_the_configuration_are_leaves():
    known = config_keys()
    assert {"MODEL.PIXEL_MEAN", "INPUT.FORMAT", "TEST.PRECISE_BN.ENABLED"} <= known
    assert "MODEL" not in known
    assert "MODEL.RESNETS" not in known


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_a_wrong_name_is_found_though_writer_and_reader_share_it(
    layout: str, tmp_path: Path, monkeypatch
):
    """The renaming itself is wrong here, so the maps would come out equal."""
    monkeypatch.setattr(parity, "has_detectron2", lambda: False)
    backbone = make_backbone(tmp_path)
    wrong = {"c4": "encoder.", "fpn": "backbone.bottom."}
    for table in (naming.TRUNK, naming.LAST_STAGE):
        monkeypatch.setitem(
            table, layout, wrong[layout] + ("res5." if table is naming.LAST_STAGE else "")
        )
    path = written(backbone, layout, tmp_path)
    with pytest.raises(WeightsError, match="would not take 265 of the written weights"):
        check_parity(backbone, path, layout)


@pytest.mark.parametrize("kind", ["left out", "extra"])
def test_a_missing_and_an_extra_tensor_are_found(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(parity, "has_detectron2", lambda: False)
    backbone = make_backbone(tmp_path)

    def change(arrays):
        if kind == "extra":
            arrays["backbone.bottom_up.stem.fc.weight"] = arrays[
                "backbone.bottom_up.stem.conv1.weight"
            ]
        else:
            del arrays["backbone.bottom_up.res4.5.conv3.norm.bias"]

    with pytest.raises(WeightsError, match=r"fc\.weight|res4\.5\.conv3"):
        check_parity(backbone, written(backbone, "fpn", tmp_path, change), "fpn")


@pytest.mark.d2
@pytest.mark.parametrize(("layout", "depth"), TRUNKS)
def test_detectron2_still_gives_exactly_these_names(layout: str, depth: int):
    assert trunk(layout, depth) == trunk_names(layout, depth)


@pytest.mark.d2
def test_detectron2_still_has_exactly_these_settings():
    assert set(keys()) == config_keys()
