"""The parity figures on Detectron2 itself, and the settings that it would swallow silently."""

from pathlib import Path

import pytest
from checkpoints import WRONG_PIXELS, make_backbone
from test_parity import swap_statistics, written

from transfer.parity import GOAL, ParityError, check_parity
from transfer.weights import WeightsError

pytestmark = pytest.mark.d2


@pytest.mark.parametrize(
    ("layout", "depth", "width"),
    [
        ("c4", 50, 1.0),
        ("fpn", 50, 1.0),
        ("c4", 50, 0.125),
        ("fpn", 50, 0.125),
        ("fpn", 18, 1.0),
        ("c4", 101, 0.125),
    ],
)
def test_detectron2_computes_the_maps_of_the_checkpoint(layout, depth, width, tmp_path: Path):
    backbone = make_backbone(tmp_path, depth, width)
    record = check_parity(backbone, written(backbone, layout, tmp_path), layout)
    shown = {name: f"{level['relative']:.1e}" for name, level in record["levels"].items()}
    print(f"\n{record['reference']} {layout} R{depth} x{width}: {shown}")
    assert record["reference"].startswith("detectron2")
    assert all(level["relative"] <= GOAL for level in record["levels"].values())


@pytest.mark.parametrize(
    ("change", "extra"),
    [(swap_statistics, {}), *((None, wrong) for wrong in WRONG_PIXELS)],
)
def test_silent_mistakes_are_stopped(change, extra, tmp_path: Path):
    backbone = make_backbone(tmp_path)
    with pytest.raises(ParityError, match="differs from"):
        check_parity(backbone, written(backbone, "fpn", tmp_path, change, **extra), "fpn")


def test_a_name_that_detectron2_ignores_is_an_error(tmp_path: Path):
    backbone = make_backbone(tmp_path)

    def change(arrays):
        arrays["encoder.res2.0.conv1.weight"] = arrays.pop("backbone.bottom_up.res2.0.conv1.weight")

    with pytest.raises(WeightsError, match=r"did not take 1 .*encoder\.res2"):
        check_parity(backbone, written(backbone, "fpn", tmp_path, change), "fpn")


def test_a_trunk_that_detectron2_cannot_build_is_checked_independently(tmp_path: Path):
    backbone = make_backbone(tmp_path, 18, 0.25)
    record = check_parity(backbone, written(backbone, "fpn", tmp_path), "fpn")
    assert record["reference"] == "independent trunk"
