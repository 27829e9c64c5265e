"""verify --config: ours pass, each setting that would silently hurt is named with its way out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_backbone
from test_parity import written

from sslbench.checkpoint import Backbone
from transfer.engines.recipe import RECIPES_DIR, Recipe, read_recipe
from transfer.verify import verification, yaml_chain
from transfer.verify import verify as verify_files
from transfer.verify.findings import VerifyError, setting
from transfer.verify.yaml_chain import read_chain

RIGHT = """
MODEL:
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  BACKBONE: {NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS:
    NORM: SyncBN
    STRIDE_IN_1X1: False
    STEM_OUT_CHANNELS: 8
    WIDTH_PER_GROUP: 8
    RES2_OUT_CHANNELS: 32
INPUT: {FORMAT: RGB}
TEST: {PRECISE_BN: {ENABLED: True}}
"""
THIN = "RESNETS: {STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 32}"
# All that a recipe for MSRA's weights says of the trunk: the rest is Detectron2's default.
MSRA_FPN = f"""
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  BACKBONE: {{NAME: build_resnet_fpn_backbone}}
  {THIN}
"""
MSRA_C4 = f"MODEL: {{{THIN}, WEIGHTS: elsewhere.pkl}}"
FAULTS_OF_MSRA = {
    "INPUT.FORMAT",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
}


@pytest.fixture(autouse=True)
def only_ours(monkeypatch):
    """Keep Detectron2 out: test_verify_d2.py has it."""
    monkeypatch.setattr(verification, "has_detectron2", lambda: False)
    monkeypatch.setattr(yaml_chain, "has_detectron2", lambda: False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def fpn(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(backbone, "fpn", tmp_path_factory.mktemp("fpn"))


@pytest.fixture(scope="module")
def c4(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(backbone, "c4", tmp_path_factory.mktemp("c4"))


def verify(weights: Path, text: str, folder: Path):
    path = folder / "my.yaml"
    path.write_text(text)
    return verify_files(weights, config=str(path))


def subjects(found, severity: str) -> set[str]:
    return {finding.subject for finding in found.findings if finding.severity == severity}


def only(found, severity: str):
    (finding,) = [f for f in found.findings if f.severity == severity]
    return finding


def recipes() -> Iterator[Any]:
    """Ours that are whole, not parts to lay over others; those of full width take seconds."""
    for path in sorted(set(RECIPES_DIR.glob("*.yaml")) - set(RECIPES_DIR.glob("Part-*.yaml"))):
        full = Recipe(read_recipe(path)).width == 1
        yield pytest.param(path.stem, marks=[pytest.mark.slow] if full else [])


@pytest.mark.parametrize("recipe", list(recipes()))
def test_our_own_recipes_pass_cleanly(recipe: str, tmp_path: Path):
    path = RECIPES_DIR / f"{recipe}.yaml"
    values = Recipe(read_recipe(path))
    layout = "fpn" if "fpn" in values["MODEL.BACKBONE.NAME"] else "c4"
    backbone = make_backbone(tmp_path, values["MODEL.RESNETS.DEPTH"], values.width)
    found = verify_files(written(backbone, layout, tmp_path), config=str(path))
    assert subjects(found, "error") | subjects(found, "warning") == set()
    assert all(value == 0 for value in found.comparisons[0].levels.values())


def test_the_right_settings_pass(fpn: Path, tmp_path: Path):
    found = verify(fpn, RIGHT, tmp_path)
    assert found.passed
    assert subjects(found, "warning") == set()


@pytest.mark.parametrize(
    ("old", "new", "key", "way_out"),
    [
        ("FORMAT: RGB", "FORMAT: BGR", "INPUT.FORMAT", "Write INPUT: {FORMAT: RGB}"),
        (
            "[123.675, 116.280, 103.530]",
            "[103.530, 116.280, 123.675]",
            "MODEL.PIXEL_MEAN",
            "Write MODEL: {PIXEL_MEAN: [123.675, 116.28, 103.53]}",
        ),
        (
            "[58.395, 57.120, 57.375]",
            "[1.0, 1.0, 1.0]",
            "MODEL.PIXEL_STD",
            "Write MODEL: {PIXEL_STD: [58.395, 57.12, 57.375]}",
        ),
        (
            "STRIDE_IN_1X1: False",
            "STRIDE_IN_1X1: True",
            "MODEL.RESNETS.STRIDE_IN_1X1",
            "Write MODEL: {RESNETS: {STRIDE_IN_1X1: False}}",
        ),
    ],
)
def test_each_silent_mistake_is_caught_and_measured(old, new, key, way_out, fpn, tmp_path: Path):
    assert old in RIGHT
    found = verify(fpn, RIGHT.replace(old, new), tmp_path)
    error = only(found, "error")
    assert (error.subject, error.way_out) == (key, way_out)
    assert error.levels == found.comparisons[0].levels
    assert error.levels["res5"] > 0.1
    assert not found.passed


def test_the_stride_leaves_res2_alone(fpn: Path, tmp_path: Path):
    text = RIGHT.replace("STRIDE_IN_1X1: False", "STRIDE_IN_1X1: True")
    levels = only(verify(fpn, text, tmp_path), "error").levels
    assert levels["res2"] == 0
    assert min(levels[f"res{i}"] for i in (3, 4, 5)) > 0.01


def test_a_c4_head_of_basic_blocks_is_ours_and_not_detectron2s(tmp_path: Path):
    weights = written(make_backbone(tmp_path, 18), "c4", tmp_path)
    text = RIGHT.replace("build_resnet_fpn_backbone", "build_resnet_backbone")
    text = text.replace("RES2_OUT_CHANNELS: 32", "RES2_OUT_CHANNELS: 8\n    DEPTH: 18")
    error = only(verify(weights, text, tmp_path), "error")
    assert "head cannot be a ResNet-18's" in error.text
    assert "MODEL.ROI_HEADS.NAME SSLBenchRes5HeadExtraNorm" in error.way_out
    ours = text.replace("MODEL:", "MODEL:\n  ROI_HEADS: {NAME: SSLBenchRes5HeadExtraNorm}")
    assert verify(weights, ours, tmp_path).passed


def test_a_network_of_basic_blocks_has_no_1x1_to_stride_in(tmp_path: Path):
    weights = written(make_backbone(tmp_path, 18), "fpn", tmp_path)
    text = RIGHT.replace("RES2_OUT_CHANNELS: 32", "RES2_OUT_CHANNELS: 8\n    DEPTH: 18")
    found = verify(weights, text.replace("STRIDE_IN_1X1: False", "STRIDE_IN_1X1: True"), tmp_path)
    assert found.passed
    stride = next(f for f in found.findings if f.subject == "MODEL.RESNETS.STRIDE_IN_1X1")
    assert (stride.severity, "does no harm" in stride.text) == ("note", True)


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_a_recipe_for_msra_weights_is_flagged_with_all_its_faults(layout, c4, fpn, tmp_path: Path):
    text, weights = {"c4": (MSRA_C4, c4), "fpn": (MSRA_FPN, fpn)}[layout]
    found = verify(weights, text, tmp_path)
    assert subjects(found, "error") == FAULTS_OF_MSRA
    assert subjects(found, "warning") == {
        "MODEL.RESNETS.NORM",
        "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.WEIGHTS",
    }
    assert all("Detectron2's default" in f.text for f in found.findings if f.severity == "error")


def test_a_mean_from_zero_to_one_is_recognised(fpn: Path, tmp_path: Path):
    text = RIGHT.replace("[123.675, 116.280, 103.530]", "[0.485, 0.456, 0.406]")
    assert "on a scale of 0 to 1" in only(verify(fpn, text, tmp_path), "error").text


def test_rounding_does_no_harm(fpn: Path, tmp_path: Path):
    text = RIGHT.replace("123.675", "123.6751")
    found = verify(fpn, text, tmp_path)
    assert found.passed
    mean = next(f for f in found.findings if f.subject == "MODEL.PIXEL_MEAN")
    assert 0 < mean.levels["res2"] <= 1e-4


@pytest.mark.parametrize(
    ("change", "severity", "key"),
    [
        (("NORM: SyncBN", "NORM: FrozenBN"), "warning", "MODEL.RESNETS.NORM"),
        (("NORM: SyncBN", "NORM: GN"), "error", "MODEL.RESNETS.NORM"),
        (("NORM: SyncBN", 'NORM: ""'), "error", "MODEL.RESNETS.NORM"),
        (("NORM: SyncBN", "NORM: SincBN"), "error", "MODEL.RESNETS.NORM"),
        (("FREEZE_AT: 0", "FREEZE_AT: 3"), "warning", "MODEL.BACKBONE.FREEZE_AT"),
        (("{ENABLED: True}", "{ENABLED: False}"), "warning", "TEST.PRECISE_BN.ENABLED"),
        (("NORM: SyncBN", "NORM: SyncBN\n    DEPTH: 101"), "error", "MODEL.RESNETS.DEPTH"),
        (("STEM_OUT_CHANNELS: 8", "STEM_OUT_CHANNELS: 64"), "error", "STEM_OUT_CHANNELS"),
        (("WIDTH_PER_GROUP: 8", "WIDTH_PER_GROUP: 4"), "error", "WIDTH_PER_GROUP"),
        (("RES2_OUT_CHANNELS: 32", ""), "error", "RES2_OUT_CHANNELS"),
        (("NORM: SyncBN", "NORM: SyncBN\n    NUM_GROUPS: 32"), "error", "NUM_GROUPS"),
        (("NORM: SyncBN", "NORM: SyncBN\n    RES5_DILATION: 2"), "warning", "RES5_DILATION"),
        (
            (
                "NORM: SyncBN",
                "NORM: SyncBN\n    DEFORM_ON_PER_STAGE: [False, True, True, True]",
            ),
            "warning",
            "DEFORM_ON_PER_STAGE",
        ),
        (
            (
                "NORM: SyncBN",
                "NORM: SyncBN\n    DEFORM_MODULATED: True\n"
                "    DEFORM_ON_PER_STAGE: [False, True, True, True]",
            ),
            "error",
            "DEFORM_ON_PER_STAGE",
        ),
        (("build_resnet_fpn", "build_my_fpn"), "warning", "MODEL.BACKBONE.NAME"),
        (("MODEL:", "MODEL:\n  WEIGHTS: other.pkl"), "warning", "MODEL.WEIGHTS"),
    ],
)
def test_each_other_setting_is_named(change, severity, key, fpn: Path, tmp_path: Path):
    assert change[0] in RIGHT
    found = verify(fpn, RIGHT.replace(*change, 1), tmp_path)
    finding = only(found, severity)
    assert finding.subject.endswith(key)
    assert found.passed == (severity == "warning")


def test_frozen_statistics_need_not_be_precise(fpn: Path, tmp_path: Path):
    text = RIGHT.replace("SyncBN", "FrozenBN").replace("{ENABLED: True}", "{ENABLED: False}")
    assert subjects(verify(fpn, text, tmp_path), "warning") == {"MODEL.RESNETS.NORM"}


@pytest.mark.parametrize(("have", "builds"), [("c4", "fpn"), ("fpn", "c4")])
def test_names_of_the_other_layout_would_load_nothing(have, builds, c4, fpn, tmp_path: Path):
    backbone = f"build_resnet_{'fpn_' * (builds == 'fpn')}backbone"
    text = RIGHT.replace("build_resnet_fpn_backbone", backbone)
    error = only(verify({"c4": c4, "fpn": fpn}[have], text, tmp_path), "error")
    assert "would load 0 of the trunk's 265" in error.text
    assert f"its names are of the layout {have} and the recipe builds {builds}" in error.text
    assert f"--layout {builds}" in error.way_out


def test_the_weights_of_the_recipe_may_be_the_verified_ones(fpn: Path, tmp_path: Path):
    text = RIGHT.replace("MODEL:", f"MODEL:\n  WEIGHTS: {fpn}", 1)
    assert "MODEL.WEIGHTS" not in {f.subject for f in verify(fpn, text, tmp_path).findings}


def test_a_value_comes_from_the_last_file_of_the_chain(tmp_path: Path):
    (tmp_path / "one.yaml").write_text("MODEL: {RESNETS: {DEPTH: 101, NORM: GN}}")
    (tmp_path / "two.yaml").write_text("MODEL: {RESNETS: {NORM: BN}}")
    (tmp_path / "top.yaml").write_text(
        "_BASE_: [one.yaml, two.yaml]\nMODEL: {RESNETS: {STRIDE_IN_1X1: 'False'}}"
    )
    chain = read_chain(str(tmp_path / "top.yaml"))
    assert chain["MODEL.RESNETS.DEPTH"] == 101
    assert chain["MODEL.RESNETS.NORM"] == "BN"
    assert chain["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert chain.where("MODEL.RESNETS.NORM") == "in two.yaml"
    assert chain["MODEL.BACKBONE.FREEZE_AT"] == 2
    assert chain.where("MODEL.BACKBONE.FREEZE_AT") == "Detectron2's default"


def test_python_in_a_value_that_is_not_read_is_left_alone(tmp_path: Path):
    made = tmp_path / "made"
    (tmp_path / "a.yaml").write_text(
        "MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: !!python/object/apply:os.mkdir\n"
        f"    - {made}\n  RESNETS: {{DEPTH: 34}}\n"
    )
    assert read_chain(str(tmp_path / "a.yaml"))["MODEL.RESNETS.DEPTH"] == 34
    assert not made.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n- 2\n", "must hold a table"),
        ("", "must hold a table"),
        ("MODEL: [1\n", "is not valid YAML"),
        ("MODEL: 3", "MODEL must hold a table of settings, got 3"),
        ("MODEL: {RESNETS: deep}", "MODEL.RESNETS must hold a table of settings, got 'deep'"),
        (
            "MODEL: {RESNETS: {STRIDE_IN_1x1: False}}",
            "MODEL.RESNETS.STRIDE_IN_1x1 is no key .* mean MODEL.RESNETS.STRIDE_IN_1X1",
        ),
        ("INPUT: {FORMAT: {a: 1}}", "INPUT.FORMAT.a is no key"),
        ("MODEL: {1: 2}", "the key 1 below MODEL. is no text"),
        ("INPUT: {FORMAT: [R, G, B]}", "INPUT.FORMAT must be a text"),
        ("INPUT: {FORMAT: L}", "for RGB and BGR only"),
        ("MODEL: {PIXEL_STD: [0.0, 1.0, 1.0]}", "a zero"),
        ("MODEL: {PIXEL_MEAN: [1.0, 2.0]}", "MODEL.PIXEL_MEAN must be three numbers"),
        ("MODEL: {PIXEL_MEAN: 1.0}", "MODEL.PIXEL_MEAN must be a list"),
        ("MODEL: {BACKBONE: {FREEZE_AT: true}}", "FREEZE_AT must be a whole number"),
        ("MODEL: {RESNETS: {STRIDE_IN_1X1: 0}}", "STRIDE_IN_1X1 must be True or False"),
        ("INPUT: {FORMAT: !!python/name:os.sep }", "which is not evaluated"),
        ("MODEL: !!python/object/apply:os.getcwd []", "MODEL must hold a table"),
        ("_BASE_: 3", "_BASE_ must be a path or a list of paths"),
        ("_BASE_: gone.yaml", r"gone\.yaml: no such file \(named as _BASE_ by .*my\.yaml\)"),
        ("_BASE_: my.yaml", "comes back to the file itself"),
        ("_BASE_: detectron2://COCO-Detection/a.yaml", "nothing is downloaded here and Detectron2"),
        ("_BASE_: https://example.org/a.yaml", "nothing is downloaded here"),
    ],
)
def test_a_faulty_yaml_is_one_paragraph(text: str, words: str, fpn: Path, tmp_path: Path):
    with pytest.raises(VerifyError, match=words) as caught:
        verify(fpn, text, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_circle_over_two_files_is_found(fpn: Path, tmp_path: Path):
    (tmp_path / "other.yaml").write_text("_BASE_: my.yaml")
    with pytest.raises(VerifyError, match=r"my\.yaml: its _BASE_ comes back .* of other\.yaml"):
        verify(fpn, "_BASE_: other.yaml", tmp_path)


def test_a_missing_yaml_is_named(fpn: Path, tmp_path: Path):
    with pytest.raises(VerifyError, match=r"gone\.yaml: no such file; names of the model zoo need"):
        verify_files(fpn, config=str(tmp_path / "gone.yaml"))


def test_a_setting_is_shown_as_yaml():
    assert setting("TEST.PRECISE_BN.ENABLED", True) == "TEST: {PRECISE_BN: {ENABLED: True}}"
    assert setting("MODEL.FPN.NORM", "") == 'MODEL: {FPN: {NORM: ""}}'
