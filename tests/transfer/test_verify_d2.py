"""verify with Detectron2 itself: its checkpointer, its configuration, its trunk."""

from pathlib import Path

import pytest
from checkpoints import make_backbone
from foreign_weights import WRITERS, as_moco, bare, encoder, moco_checkpoint
from test_parity import written
from test_verify_config import FAULTS_OF_MSRA, MSRA_C4, RIGHT, only, subjects, verify

from sslbench.checkpoint import Backbone
from transfer.engines.recipe import RECIPES_DIR, Recipe, read_recipe
from transfer.parity import GOAL
from transfer.verify import verify as verify_files
from transfer.verify.yaml_chain import USED, default, read_chain

pytestmark = pytest.mark.d2


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("checkpoint"))


def of_detectron2(found, subject: str):
    (comparison,) = [
        c for c in found.comparisons if c.subject == subject and "detectron2" in c.computed_by
    ]
    return comparison


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_full_width_weights_reach_the_goal_under_our_recipe(layout: str, tmp_path: Path):
    name = {"c4": "pascal_voc_R_50_C4_24k", "fpn": "coco_mask_rcnn_R_50_FPN_1x"}[layout]
    path = written(make_backbone(tmp_path, 50, 1.0), layout, tmp_path)
    recipe = str(RECIPES_DIR / f"{name}.yaml")
    found = verify_files(path, against=tmp_path / "r50.pth", config=recipe)
    print("\n" + "\n".join(found.lines()))
    assert found.passed
    for subject in ("checkpoint", "config"):
        comparison = of_detectron2(found, subject)
        assert comparison.loaded == "265 of 265"
        assert max(comparison.levels.values()) <= GOAL


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES_DIR.glob("*t[wi]*.yaml")))
def test_our_thin_recipes_pass_cleanly(recipe: str, tmp_path: Path):
    values = Recipe(read_recipe(RECIPES_DIR / f"{recipe}.yaml"))
    layout = "fpn" if "fpn" in values["MODEL.BACKBONE.NAME"] else "c4"
    path = written(make_backbone(tmp_path, 50, values.width), layout, tmp_path)
    found = verify_files(path, config=str(RECIPES_DIR / f"{recipe}.yaml"))
    assert subjects(found, "error") | subjects(found, "warning") == set()
    assert of_detectron2(found, "config").loaded == "265 of 265"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("FORMAT: RGB", "FORMAT: BGR", "INPUT.FORMAT"),
        ("[123.675, 116.280, 103.530]", "[103.530, 116.280, 123.675]", "MODEL.PIXEL_MEAN"),
        ("[58.395, 57.120, 57.375]", "[1.0, 1.0, 1.0]", "MODEL.PIXEL_STD"),
        ("STRIDE_IN_1X1: False", "STRIDE_IN_1X1: True", "MODEL.RESNETS.STRIDE_IN_1X1"),
    ],
)
@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_each_silent_mistake_is_caught_and_both_trunks_agree_on_it(
    layout: str, old: str, new: str, key: str, backbone: Backbone, tmp_path: Path
):
    kind = f"build_resnet_{'fpn_' * (layout == 'fpn')}backbone"
    text = RIGHT.replace("build_resnet_fpn_backbone", kind).replace(old, new)
    found = verify(written(backbone, layout, tmp_path), text, tmp_path)
    error = only(found, "error")
    theirs = of_detectron2(found, "config").levels
    print(f"\n{layout} {key}: ours {dict(error.levels)}, Detectron2's {dict(theirs)}")
    assert error.subject == key
    assert theirs["res5"] > 0.1
    assert theirs == pytest.approx(dict(error.levels), rel=1e-3, abs=1e-5)


def test_all_mistakes_together_agree_too(backbone: Backbone, tmp_path: Path):
    found = verify(written(backbone, "c4", tmp_path), MSRA_C4, tmp_path)
    assert subjects(found, "error") == FAULTS_OF_MSRA
    ours, theirs = (dict(comparison.levels) for comparison in found.comparisons)
    assert theirs == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("name", WRITERS)
def test_detectron2_loads_what_other_converters_wrote(name: str, tmp_path: Path):
    checkpoint = moco_checkpoint(tmp_path)
    path = WRITERS[name](tmp_path / name, encoder(checkpoint, "q"))
    found = verify_files(path, against=checkpoint, allow_pickle=True)
    assert found.passed
    comparison = of_detectron2(found, "checkpoint")
    assert comparison.loaded == "265 of 265"
    assert max(comparison.levels.values()) <= GOAL


@pytest.mark.parametrize(
    ("kind", "loaded"), [("no flag", 0), ("prefix", 0), ("caffe2", 159), ("statistics", 159)]
)
def test_the_replayed_loading_is_detectron2s(kind: str, loaded: int, tmp_path: Path):
    checkpoint = moco_checkpoint(tmp_path)
    query = encoder(checkpoint, "q")
    more = {
        "no flag": {"matching_heuristics": None},
        "prefix": {"model": {f"encoder.{n}": v for n, v in bare(query).items()}},
        "caffe2": {"__author__": "Caffe2"},
        "statistics": {"model": {n: v for n, v in bare(query).items() if "running" not in n}},
    }[kind]
    path = as_moco(tmp_path / "w.pkl", query, **more)
    found = verify_files(path, against=checkpoint, allow_pickle=True)
    assert not found.passed
    assert found.weights["loaded"] == f"{loaded} of 265"
    assert of_detectron2(found, "checkpoint").loaded == f"{loaded} of 265"


def test_module_in_front_of_exact_names_is_loaded(backbone: Backbone, tmp_path: Path):
    def change(arrays):
        for name in list(arrays):
            arrays[f"module.{name}"] = arrays.pop(name)

    path = written(backbone, "c4", tmp_path, change)
    found = verify_files(path, against=Path(backbone.source))
    assert of_detectron2(found, "checkpoint").loaded == "265 of 265"


def test_a_norm_that_the_weights_do_not_fit_loads_convolutions_only(backbone, tmp_path: Path):
    text = RIGHT.replace("SyncBN", '""')
    found = verify(written(backbone, "fpn", tmp_path), text, tmp_path)
    assert only(found, "error").subject == "MODEL.RESNETS.NORM"
    assert of_detectron2(found, "config").loaded == "53 of 265"


def test_recipes_of_the_model_zoo_are_found_by_name():
    chain = read_chain("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    assert chain["MODEL.BACKBONE.NAME"] == "build_resnet_fpn_backbone"


def test_every_recipe_of_the_model_zoo_on_resnets_can_be_read():
    from detectron2 import model_zoo

    root = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
    paths = [p for p in root.rglob("*.yaml") if "DETECTRON1" not in str(p)]
    assert len(paths) > 40
    for path in paths:
        assert read_chain(str(path))["INPUT.FORMAT"] in ("BGR", "RGB")


def test_the_defaults_are_detectron2s_own():
    from detectron2.config import get_cfg

    for key in sorted(USED):
        value = get_cfg()
        for name in key.split("."):
            value = value[name]
        assert default(key) == (tuple(value) if isinstance(value, list) else value), key


def test_our_c4_head_of_basic_blocks_computes_the_checkpoints_maps(tmp_path: Path):
    path = written(make_backbone(tmp_path, 18, 1.0), "c4", tmp_path)
    recipe = str(RECIPES_DIR / "pascal_voc_R_18_C4_24k.yaml")
    found = verify_files(path, against=tmp_path / "r18.pth", config=recipe)
    assert found.passed
    comparison = of_detectron2(found, "checkpoint")
    assert comparison.loaded == "100 of 100"
    assert max(comparison.levels.values()) <= GOAL
