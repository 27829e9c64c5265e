"""The recipes against their protocols, number by number; CPU-sized kin; the published rows."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from sslbench.config import CONFIGS_DIR, ConfigError
from transfer.engines.recipe import DEFAULTS, RECIPES_DIR, read_recipe, recipe_path
from transfer.engines.torchvision import build_detector
from transfer.task import TASKS_DIR, TaskConfig, load_task

VOC = tuple(range(480, 801, 32))
COCO = tuple(range(640, 801, 32))
# task: iterations, drops, warm-up, short sides, classes, detections, least score, parameters
PROTOCOLS = {
    "voc0712_det": (24000, (18000, 22000), 100, VOC, 20, 100, 0.05, 33234160),
    "voc07_det": (7266, (5450, 6661), 100, VOC, 20, 100, 0.05, 33234160),
    "coco_c4": (90000, (60000, 80000), 1000, COCO, 80, 100, 0.05, 35966828),
    "coco_c4_2x": (180000, (120000, 160000), 1000, COCO, 80, 100, 0.05, 35966828),
    "coco_fpn": (90000, (60000, 80000), 1000, COCO, 80, 100, 0.05, 44398384),
    "coco_fpn_2x": (180000, (120000, 160000), 1000, COCO, 80, 100, 0.05, 44398384),
    "coco_fpn_infomin": (90000, (60000, 80000), 1000, COCO, 80, 100, 0.05, 45711152),
    "coco_fpn_infomin_2x": (180000, (120000, 160000), 1000, COCO, 80, 100, 0.05, 45711152),
    "lvis_v1": (90000, (60000, 80000), 1000, COCO, 1203, 300, 1e-4, 50442370),
    "lvis_v1_180k": (180000, (120000, 160000), 1000, COCO, 1203, 300, 1e-4, 50442370),
    "lvis_v05": (90000, (60000, 80000), 1000, COCO, 1230, 300, 1e-4, 50587684),
}
# heads: roi head, convolutions, fully connected layers and norm of the box head, of the mask head
HEADS = {
    "c4": ("SSLBenchRes5HeadExtraNorm", 0, 0, "", 0, ""),
    "cast": ("StandardROIHeads", 0, 2, "", 4, ""),
    "infomin": ("StandardROIHeads", 4, 1, "SyncBN", 4, "SyncBN"),
}
# the same for every protocol
COMMON = {
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.PIXEL_MEAN": (123.675, 116.28, 103.53),
    "MODEL.PIXEL_STD": (58.395, 57.12, 57.375),
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
}
GIVEN = {  # against Detectron2's defaults, which suit other weights
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.FORMAT": "RGB",
}
KIN = {
    "voc_det": "voc0712_det",
    "coco_c4": "coco_c4",
    "coco_fpn": "coco_fpn",
    "coco_fpn_infomin": "coco_fpn_infomin",
    "lvis_v1": "lvis_v1",
    "lvis_v05": "lvis_v05",
}


def resolved(name: str, *overrides: str) -> TaskConfig:
    return load_task(name, ["engine=torchvision", *overrides]).resolved()


def heads_of(task: str) -> str:
    if "infomin" in task:
        return "infomin"
    return "c4" if "c4" in task or "det" in task else "cast"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_recipe_has_every_number_of_its_protocol(name: str):
    recipe = resolved(name).values()
    iterations, steps, warmup, sizes, classes, detections, score, _ = PROTOCOLS[name]
    assert recipe["SOLVER.MAX_ITER"] == iterations and recipe["SOLVER.STEPS"] == steps
    assert recipe["SOLVER.WARMUP_ITERS"] == warmup and recipe["INPUT.MIN_SIZE_TRAIN"] == sizes
    assert recipe["MODEL.ROI_HEADS.NUM_CLASSES"] == classes
    assert recipe["TEST.DETECTIONS_PER_IMAGE"] == detections
    assert recipe["MODEL.ROI_HEADS.SCORE_THRESH_TEST"] == score
    assert {key: recipe[key] for key in COMMON} == COMMON
    assert {key: recipe.given[key] for key in GIVEN} == GIVEN
    box, mask = "MODEL.ROI_BOX_HEAD.", "MODEL.ROI_MASK_HEAD."
    keys = ("MODEL.ROI_HEADS.NAME", box + "NUM_CONV", box + "NUM_FC", box + "NORM")
    heads = (*keys, mask + "NUM_CONV", mask + "NORM")
    assert tuple(recipe[key] for key in heads) == HEADS[heads_of(name)]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_layout_decides_proposals_poolers_and_the_norm_of_the_pyramid(name: str):
    task = resolved(name)
    recipe = task.values()
    before_nms = (recipe["MODEL.RPN.PRE_NMS_TOPK_TRAIN"], recipe["MODEL.RPN.PRE_NMS_TOPK_TEST"])
    kept = recipe["MODEL.RPN.POST_NMS_TOPK_TRAIN"]
    side = recipe["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"]
    if task.layout == "c4":
        assert (before_nms, kept, side) == ((12000, 6000), 2000, 14)
    else:
        assert (before_nms, kept, side) == ((2000, 1000), 1000, 7)
        assert recipe["MODEL.FPN.NORM"] == "SyncBN"
        assert recipe["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"] == 14


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name.startswith("lvis")])
def test_lvis_repeats_the_images_of_rare_categories(name: str):
    recipe = resolved(name).values()
    assert recipe["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    assert recipe["DATALOADER.REPEAT_THRESHOLD"] == 0.001
    assert resolved("coco_fpn").values()["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler"


def test_voc07_alone_has_the_epochs_of_both_years():
    share = 5011 / 16551  # images of VOC07 trainval in VOC07+12
    one, both = resolved("voc07_det").values(), resolved("voc0712_det").values()
    ours = (one["SOLVER.MAX_ITER"], *one["SOLVER.STEPS"])
    theirs = (both["SOLVER.MAX_ITER"], *both["SOLVER.STEPS"])
    assert ours == tuple(round(iterations * share) for iterations in theirs)
    assert "our choice" in resolved("voc07_det").footnotes[0]


def test_a_note_beside_every_number_does_not_make_another_stage():
    from sslbench.stage import fingerprint
    from transfer.detection import Detection

    noted, plain = resolved("voc07_det"), resolved("voc07_det", "footnotes=[]")
    assert noted != plain
    assert fingerprint(Detection(noted), {}, {}) == fingerprint(Detection(plain), {}, {})


@pytest.mark.parametrize("name", ["voc0712_det", "coco_c4", "coco_fpn_infomin", "lvis_v1"])
def test_the_detector_of_a_protocol_has_its_number_of_parameters(name: str):
    task = resolved(name)
    with torch.device("meta"):
        model = build_detector(task.values(), PROTOCOLS[name][4], task.layout)
    assert sum(p.numel() for p in model.parameters()) == PROTOCOLS[name][-1]


@pytest.mark.d2
@pytest.mark.parametrize("name", PROTOCOLS)
def test_detectron2_builds_the_same_number_from_the_same_recipe(name: str):
    from detectron2.modeling import build_model

    from transfer.engines.detectron2 import build_config, register_extra_norm_head

    register_extra_norm_head()
    task = resolved(name)
    with torch.device("meta"):
        model = build_model(build_config(task, PROTOCOLS[name][4], "meta"))
    assert sum(p.numel() for p in model.parameters()) == PROTOCOLS[name][-1]
    assert type(model.roi_heads).__name__ == HEADS[heads_of(name)][0]


RECIPES = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


@pytest.mark.d2
@pytest.mark.parametrize("name", RECIPES)
def test_detectron2s_command_line_reads_a_recipe_as_we_do(name: str):
    from detectron2.config import get_cfg
    from yacs.config import CfgNode

    theirs, ours = get_cfg(), get_cfg()
    theirs.merge_from_file(str(recipe_path(name)))
    ours.merge_from_other_cfg(CfgNode(read_recipe(recipe_path(name))))
    assert theirs == ours


DATA_NAMES = {
    "voc_2007_trainval": "voc2007/trainval",
    "voc_2012_trainval": "voc2012/trainval",
    "voc_2007_test": "voc2007/test",
    "coco_2017_train": "coco2017/train",
    "coco_2017_val": "coco2017/val",
    "lvis_v1_train": "lvis_v1/train",
    "lvis_v1_val": "lvis_v1/val",
    "lvis_v0.5_train": "lvis_v05/train",
    "lvis_v0.5_val": "lvis_v05/val",
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_recipe_names_the_data_of_its_task_for_detectron2s_command_line(name: str):
    task = resolved(name)
    given = task.values().given
    assert tuple(DATA_NAMES[spec] for spec in given["DATASETS.TRAIN"]) == task.train
    assert [DATA_NAMES[spec] for spec in given["DATASETS.TEST"]] == [task.test]


SIZES = (  # counts, widths and thresholds; neither what is built nor how it learns
    *("STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS", "OUT_CHANNELS"),
    *("FC_DIM", "CONV_DIM", "POOLER_RESOLUTION", "ANCHOR_GENERATOR.SIZES"),
    *("BATCH_SIZE_PER_IMAGE", "TOPK_TRAIN", "TOPK_TEST", "SCORE_THRESH_TEST"),
    *("MIN_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TRAIN", "MAX_SIZE_TEST"),
    *("IMS_PER_BATCH", "BASE_LR", "STEPS", "MAX_ITER", "WARMUP_ITERS", "NUM_ITER"),
    *("DETECTIONS_PER_IMAGE", "REPEAT_THRESHOLD"),
)


@pytest.mark.parametrize("size", ["tiny", "twin"])
@pytest.mark.parametrize("kin", KIN)
def test_a_cpu_sized_task_differs_from_its_protocol_in_sizes_alone(kin: str, size: str):
    small, official = resolved(f"{kin}_{size}"), resolved(KIN[kin])
    for field in ("kind", "layout", "metric", "test", "protocol_version"):
        assert getattr(small, field) == getattr(official, field)
    assert small.protocol == KIN[kin]
    ours, theirs = small.values().given, official.values().given
    keys = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
    left_to_the_data = {"MODEL.ROI_HEADS.NUM_CLASSES", "DATASETS.TRAIN", "DATASETS.TEST"}
    assert not [key for key in keys - left_to_the_data if not key.endswith(SIZES)]


def test_every_task_is_a_protocol_or_the_cpu_sized_kin_of_one():
    names = {path.stem for path in TASKS_DIR.glob("*.toml")}
    kin = {f"{name}_{size}" for name in KIN for size in ("tiny", "twin")}
    assert names == {*PROTOCOLS, *kin, "voc_det_small"}


@pytest.mark.parametrize("depth", [18, 101])
@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("voc0712_det", "pascal_voc_R_{}_C4_24k"),
        ("voc07_det", "pascal_voc07_R_{}_C4_7k"),
        ("coco_fpn", "coco_mask_rcnn_R_{}_FPN_1x"),
    ],
)
def test_a_recipe_of_another_depth_is_what_its_task_becomes_with_such_weights(
    task: str, recipe: str, depth: int
):
    named = resolved(task, f"recipe={recipe.format(depth)}").values()
    adapted = resolved(task).on_trunk(depth, 1.0).values()
    assert DEFAULTS | named.given == DEFAULTS | adapted.given
    assert named.width == adapted.width == 1.0
    assert named["MODEL.RESNETS.DEPTH"] == adapted["MODEL.RESNETS.DEPTH"] == depth


def test_of_two_bases_the_later_wins(tmp_path: Path):
    for name, rate in (("one", 0.1), ("two", 0.2)):
        table = {"SOLVER": {"BASE_LR": rate, name.upper(): 1}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(table))
    (tmp_path / "top.yaml").write_text("_BASE_: [one.yaml, two.yaml]\nSOLVER: {MAX_ITER: 3}")
    assert read_recipe(tmp_path / "top.yaml") == {
        "SOLVER": {"BASE_LR": 0.2, "ONE": 1, "TWO": 1, "MAX_ITER": 3}
    }


@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("SOLVER.CLIP_GRADIENTS.ENABLED=true", "CLIP_GRADIENTS.ENABLED is True.*set False"),
        ("SOLVER.BIAS_LR_FACTOR=2.0", "BIAS_LR_FACTOR is 2.0"),
        ("SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR", "is 'WarmupCosineLR'"),
        ("SOLVER.RESCALE_INTERVAL=true", "RESCALE_INTERVAL is True.*take it out"),
        ("TEST.AUG.ENABLED=true", "TEST.AUG.ENABLED is True"),
        ("DATALOADER.SAMPLER_TRAIN=RandomSubsetTrainingSampler", "known: .*RepeatFactor"),
        ("DATALOADER.REPEAT_THRESHOLD=0", "must be above 0 for RepeatFactorTrainingSampler"),
    ],
)
def test_what_our_loop_would_ignore_is_refused_for_either_engine(
    change: str, message: str, engine: str
):
    with pytest.raises(ConfigError, match=message):
        load_task("lvis_v1_twin", [f"engine={engine}", f"set.{change}"]).resolved()


PUBLISHED = json.loads((CONFIGS_DIR / "published.json").read_text(encoding="utf-8"))["tables"]
METRICS = {
    "voc07": {"AP", "AP50", "AP75"},
    "coco": {f"{kind}_{m}" for kind in ("box", "mask") for m in ("AP", "AP50", "AP75")},
}
METRICS["lvis"] = METRICS["coco"]


def test_every_published_number_belongs_to_a_metric_of_a_task():
    for table in PUBLISHED:
        for row in table["rows"]:
            for name, value in row["values"].items():
                task, metric = name.split(".")
                assert metric in METRICS[load_task(task).metric], (table["source"], name)
                assert task in PROTOCOLS and 10 < value < 90


def test_the_targets_of_the_protocols_are_published():
    rows = {
        (table["source"], row["method"]): row["values"]
        for table in PUBLISHED
        for row in table["rows"]
    }
    ours = rows["CYBORGS, Table 1", "CYBORGS"] | rows["CYBORGS, Table C.2", "CYBORGS"]
    marks = ("AP", "AP50", "AP75")
    assert [ours[f"voc0712_det.{m}"] for m in marks] == [58.0, 83.0, 64.3]
    assert [ours[f"coco_fpn.box_{m}"] for m in marks] == [42.0, 62.6, 46.2]
    assert [ours[f"coco_fpn.mask_{m}"] for m in marks] == [38.0, 59.7, 40.8]
    assert [ours[f"lvis_v1.box_{m}"] for m in marks] == [23.9, 38.3, 25.2]
    assert [ours[f"lvis_v1.mask_{m}"] for m in marks] == [23.4, 36.2, 24.7]


RESULTS = Path(__file__).parents[3] / "shared" / "paper" / "results.json"


@pytest.mark.skipif(not RESULTS.exists(), reason="the papers' tables are not beside the project")
def test_the_published_rows_are_those_of_the_papers():
    papers = json.loads(RESULTS.read_text(encoding="utf-8"))
    places = {"CYBORGS": "cyborgs", "NormRescale": "normrescale"}
    for table in PUBLISHED:
        paper, name = table["source"].split(", Table ")
        rows = {
            r["method"]: r for r in papers[places[paper]][f"table{name.replace('.', '')}"]["rows"]
        }
        for row in table["rows"]:
            original = rows[row["method"]]["values"]
            mine = {m for m in original if m.split(".")[0] in PROTOCOLS}
            assert row["values"] == {metric: original[metric] for metric in mine}
            assert all(math.isfinite(value) for value in row["values"].values())
