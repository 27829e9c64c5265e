"""NormRescale: which tensors move, what stays, what epsilon does, and what the stage records."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import make_backbone, write_checkpoint
from torch import nn
from typer.testing import CliRunner

from sslbench.checkpoint import Backbone, load_backbone
from sslbench.config import departures
from sslbench.datasets import DataRoots
from sslbench.files import file_sha256
from sslbench.resnet import LAYERS
from sslbench.stage import run_standalone, status
from transfer import parity, rescale
from transfer.__main__ import app
from transfer.convert import Convert, ConvertConfig
from transfer.naming import from_detectron2
from transfer.rescale import RescaleError, Rescaling, by_constant, norm_after, to_anchor
from transfer.weights import load_weights

STATISTICS = ("running_mean", "running_var")


@pytest.fixture(scope="module", params=[18, 50])
def backbone(request, tmp_path_factory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("backbone"), depth=request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("small"), depth=18)


def uneven(backbone: Backbone) -> Rescaling:
    """A factor of its own for every layer, from 0.02 to 5."""
    names = list(rescale.weight_norms(backbone.state))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(2))
    exponents = torch.linspace(-1.7, 0.7, len(names))[order]
    return Rescaling({}, dict(zip(names, (10**exponents).tolist(), strict=True)))


def maps(backbone: Backbone, epsilon: float) -> dict[str, torch.Tensor]:
    network = backbone.build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.maps(images, LAYERS)


def relative_difference(one, other) -> float:
    return max(((one[k] - v).abs().max() / v.abs().max()).item() for k, v in other.items())


def changed(backbone: Backbone, **values: torch.Tensor) -> Backbone:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return replace(backbone, state={**backbone.state, **named})


def test_every_convolution_is_followed_by_a_norm_of_its_channels(backbone):
    names = {name.removesuffix(".weight") for name, v in backbone.state.items() if v.ndim == 4}
    followers = {norm_after(name) for name in names}
    assert followers == {n.removesuffix(".running_var") for n in backbone.state if "_var" in n}
    for name in names:
        channels = backbone.state[f"{name}.weight"].shape[0]
        assert backbone.state[f"{norm_after(name)}.running_var"].shape == (channels,)


def test_norms_are_roots_of_sums_of_squares(small):
    norms = rescale.weight_norms(small.state)
    for name in ("conv1", "layer2.0.downsample.0", "layer4.1.conv2"):
        values = small.state[f"{name}.weight"].flatten().tolist()
        assert norms[name] == pytest.approx(math.sqrt(math.fsum(v * v for v in values)), rel=1e-12)
    assert len(norms) == 20  # convolutions of a ResNet-18 with its shortcuts


def test_a_constant_moves_weights_means_and_variances_and_nothing_else(backbone):
    before = {name: value.clone() for name, value in backbone.state.items()}
    after = by_constant(backbone, 0.1).apply(backbone).state
    for name, value in before.items():
        assert torch.equal(backbone.state[name], value)  # the original was not touched
        if value.ndim == 4 or name.endswith("running_mean"):
            torch.testing.assert_close(after[name], value * 0.1)
        elif name.endswith("running_var"):
            torch.testing.assert_close(after[name], value * 0.01)
        else:
            assert name.endswith((".weight", ".bias"))
            assert torch.equal(after[name], value)


def test_an_anchor_gives_its_norms_and_no_direction(backbone):
    torch.manual_seed(5)
    other = {
        name: value * (0.1 + 5 * torch.rand(1)) + 0.1 * torch.randn_like(value)
        for name, value in backbone.state.items()
        if value.ndim == 4
    }
    anchor = replace(backbone, state={**backbone.state, **other})
    after = to_anchor(backbone, anchor).apply(backbone)
    wanted = rescale.weight_norms(anchor.state)
    assert rescale.weight_norms(after.state) == pytest.approx(wanted, rel=1e-6)
    for name in other:
        cosine = torch.cosine_similarity(
            after.state[name].flatten(), backbone.state[name].flatten(), 0
        )
        assert cosine == pytest.approx(1, abs=1e-5)


def test_rescaling_to_itself_changes_no_bit(backbone):
    after = to_anchor(backbone, backbone).apply(backbone).state
    assert all(torch.equal(after[name], value) for name, value in backbone.state.items())


def test_there_and_back_again_is_where_we_were(backbone):
    there = uneven(backbone)
    back = Rescaling({}, {name: 1 / factor for name, factor in there.factors.items()})
    after = back.apply(there.apply(backbone)).state
    for name, value in backbone.state.items():
        torch.testing.assert_close(after[name], value, rtol=1e-6, atol=0)


def test_an_anchor_of_tenfold_weights_is_the_constant_ten(backbone):
    tenfold = {k: 10 * v if v.ndim == 4 else v for k, v in backbone.state.items()}
    by_anchor = to_anchor(backbone, replace(backbone, state=tenfold)).apply(backbone).state
    for name, value in by_constant(backbone, 10).apply(backbone).state.items():
        torch.testing.assert_close(by_anchor[name], value, rtol=1e-6, atol=0)


def test_without_epsilon_the_maps_stay_the_same(backbone):
    after = uneven(backbone).apply(backbone)
    assert relative_difference(maps(after, epsilon=0), maps(backbone, epsilon=0)) < 1e-5


@pytest.mark.parametrize("constant", [0.1, 0.01, 3.0])
def test_epsilon_weighs_as_one_that_is_larger_by_the_square(backbone, constant: float):
    after = by_constant(backbone, constant).apply(backbone)
    drifted, plain = maps(after, 1e-5), maps(backbone, 1e-5)
    assert relative_difference(drifted, maps(backbone, 1e-5 / constant**2)) < 2e-5
    assert relative_difference(drifted, plain) > 1e-5


@pytest.mark.parametrize("forgotten", STATISTICS)
def test_statistics_that_were_forgotten_show_as_drift(small, forgotten: str):
    after = by_constant(small, 0.1).apply(small).state
    kept = {name: value for name, value in small.state.items() if name.endswith(forgotten)}
    drift = rescale.measure_drift(small, replace(small, state={**after, **kept}))
    assert drift["levels"]["res5"]["relative_rms"] > 0.1


def test_the_drift_is_relative_to_the_original(monkeypatch, small):
    other = replace(small, source="other")
    values = {small.source: [3.0, -4.0], other.source: [3.0, -3.0]}

    def maps_of(backbone: Backbone, pictures: list[Path]):
        return {"res2": torch.tensor(values[backbone.source])}

    monkeypatch.setattr(rescale, "canonical_maps", maps_of)
    level = rescale.measure_drift(small, other)["levels"]["res2"]
    assert level == pytest.approx({"relative_max": 1 / 4, "relative_rms": 1 / 5})


def test_a_map_of_zeros_has_a_drift_too(small):
    last = ("layer4.0.bn2.", "layer4.0.downsample.1.", "layer4.1.bn2.")  # all that res5 adds up
    dead = {k: torch.zeros_like(v) for k, v in small.state.items() if k.startswith(last)}
    zero = replace(small, state={**small.state, **dead})
    drift = rescale.measure_drift(zero, small)
    level = drift["levels"]["res5"]
    assert 0 < level["relative_rms"] < level["relative_max"] < float("inf")


def test_lost_variance_has_a_closed_form_and_dead_channels_weigh_nothing(small):
    variance = torch.full_like(small.state["bn1.running_var"], 1e-20)  # dead: all is epsilon
    variance[0], variance[1] = 1e-3, 1e-5
    gamma = torch.ones_like(variance)
    gamma[1] = 2.0
    before = changed(small, bn1__running_var=variance, bn1__weight=gamma)
    rescaling = by_constant(before, 0.1)
    record = rescale.describe(rescaling, before, rescaling.apply(before))
    # gamma^2 / (1 + eps / var), then with an epsilon that weighs a hundred times as much
    expected = 1 - (1 / 2 + 4 / 101) / (1 / 1.01 + 4 / 2)
    assert record["rescale"]["layers"]["conv1"]["variance_lost"] == pytest.approx(expected)


def test_a_large_drift_names_the_layer_that_epsilon_fills(small):
    tiny = torch.full_like(small.state["layer3.0.bn2.running_var"], 1e-4)
    before = changed(small, layer3__0__bn2__running_var=tiny)
    rescaling = by_constant(before, 0.1)
    drift = rescale.describe(rescaling, before, rescaling.apply(before))["drift"]
    assert drift["levels"]["res2"]["relative_rms"] < drift["levels"]["res4"]["relative_rms"]
    assert "most in layer3.0.bn2 90" in drift["warning"]


def test_no_drift_is_no_warning(small):
    drift = rescale.describe(to_anchor(small, small), small, small)["drift"]
    assert drift["warning"] is None
    assert all(level["relative_max"] == 0 for level in drift["levels"].values())


@pytest.mark.parametrize(("depth", "width"), [(50, 0.125), (18, 0.25)])
def test_an_anchor_of_another_shape_is_refused(small, depth: int, width: float, tmp_path: Path):
    anchor = make_backbone(tmp_path, depth, width)
    with pytest.raises(
        RescaleError, match=rf"ResNet-{depth} of width {width}, but .* same network"
    ):
        to_anchor(small, anchor)


def test_a_layer_of_zeros_is_refused_on_both_sides(small):
    name = "layer2.1.conv1"
    dead = changed(small, layer2__1__conv1__weight=torch.zeros_like(small.state[f"{name}.weight"]))
    for role, make in {
        "checkpoint": lambda: by_constant(dead, 0.1),
        "anchor": lambda: to_anchor(small, dead),
    }.items():
        with pytest.raises(RescaleError, match=rf"^{role} .*{name} are all zero .* another {role}"):
            make()


@pytest.mark.parametrize("constant", [1e-30, 1e30])
def test_factors_that_leave_float32_are_refused(small, constant: float):
    with pytest.raises(RescaleError, match=r"bn1\.running_var .* times 1e.* leaves the range"):
        by_constant(small, constant).apply(small)


def convert(checkpoint: Path, runs: Path, anchor: Path | None = None, **config) -> Path:
    inputs = {"checkpoint": checkpoint} | ({"anchor": anchor} if anchor else {})
    stage = Convert(ConvertConfig(layout="fpn", **config))
    folder, _ = run_standalone(stage, inputs=inputs, data=DataRoots(runs), runs=runs)
    return folder


def parity_record(folder: Path) -> dict:
    return json.loads((folder / "parity.json").read_text())


def test_the_stage_writes_the_rescaled_trunk_and_says_so(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, depth=18)
    folder = convert(checkpoint, tmp_path, rescale=0.1)
    arrays, metadata = load_weights(folder / "weights.pkl")
    original = load_backbone(checkpoint)
    expected = by_constant(original, 0.1).apply(original).state
    written = from_detectron2(arrays, "fpn")
    assert all(torch.equal(torch.from_numpy(written[k]), v) for k, v in expected.items())
    assert metadata["rescale"]["constant"] == 0.1
    again = Rescaling({}, metadata["rescale"]["factors"]).apply(original).state
    assert all(torch.equal(again[k], v) for k, v in expected.items())


def test_parity_is_with_the_rescaled_trunk_and_drift_with_the_original(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, depth=18)
    record = parity_record(convert(checkpoint, tmp_path, rescale=0.1))
    for level in ("res2", "res3", "res4", "res5"):
        assert record["levels"][level]["relative"] <= parity.GOAL
        assert record["drift"]["levels"][level]["relative_max"] > 10 * parity.TOLERANCE
    norms = rescale.weight_norms(load_backbone(checkpoint).state)
    for name, layer in record["rescale"]["layers"].items():
        assert layer["factor"] == 0.1
        assert layer["norm_before"] == norms.pop(name)
        assert layer["norm_after"] == pytest.approx(0.1 * layer["norm_before"], rel=1e-6)
    assert not norms


def test_a_large_drift_is_said_and_stops_nothing(tmp_path: Path, capsys):
    folder = convert(write_checkpoint(tmp_path, depth=18), tmp_path, rescale=0.01)
    said = capsys.readouterr().err
    assert "warning: the rescaled trunk drifts" in said
    assert status(folder) == "done"


def test_without_rescaling_nothing_is_new_in_the_record(tmp_path: Path):
    folder = convert(write_checkpoint(tmp_path, depth=18), tmp_path)
    assert not {"rescale", "drift"} & set(parity_record(folder))
    assert "rescale" not in load_weights(folder / "weights.pkl")[1]
    assert departures(ConvertConfig(layout="fpn")) == {"layout": "fpn"}


def test_what_decides_the_norms_decides_the_folder(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, depth=18)
    anchor, copy, other = (tmp_path / name for name in ("anchor.pth", "copy.pth", "other.pth"))
    content = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({"state_dict": content}, anchor)
    copy.write_bytes(anchor.read_bytes())
    content["conv1.weight"] = 2 * content["conv1.weight"]
    torch.save({"state_dict": content}, other)

    anchored = convert(checkpoint, tmp_path, anchor, anchor_branch="online")
    folders = [
        convert(checkpoint, tmp_path),
        convert(checkpoint, tmp_path, rescale=0.1),
        convert(checkpoint, tmp_path, rescale=0.2),
        convert(checkpoint, tmp_path, other, anchor_branch="online"),
        anchored,
    ]
    assert len(set(folders)) == len(folders)
    assert convert(checkpoint, tmp_path, copy, anchor_branch="online") == anchored


@pytest.mark.parametrize(
    ("config", "label", "note"),
    [
        ({}, "fpn", ()),
        ({"rescale": 0.1}, "fpn-rescaled-0.1", ("weight norms rescaled by 0.1 (NormRescale)",)),
        (
            {"branch": "target", "anchor_branch": "online"},
            "fpn-target-anchored",
            ("weight norms rescaled to an anchor's (NormRescale)",),
        ),
    ],
)
def test_folders_and_tables_show_a_rescaling(config, label: str, note):
    stage = Convert(ConvertConfig(layout="fpn", **config))
    assert (stage.label, stage.footnotes()) == (label, note)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_factor_is_finite_and_positive(value: float):
    with pytest.raises(ValueError, match="rescale"):
        ConvertConfig(layout="fpn", rescale=value)


def test_an_anchor_file_without_a_branch_is_not_ignored(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, depth=18)
    with pytest.raises(RescaleError, match=r"here is only the file .*r18\.pth"):
        convert(checkpoint, tmp_path, anchor=checkpoint)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_factors_and_drift(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path, depth=18), tmp_path / "out"
    order = ("convert", checkpoint, "--layout", "fpn", "--out", out, "--rescale", "0.01")
    for _ in range(2):  # the second time it is already done
        result = invoke(*order)
        assert result.exit_code == 0, result.output
        assert "weight norms times 0.01 to 0.01; drift from the original:" in result.output
        (line,) = [x for x in result.output.splitlines() if x.startswith("res5  largest")]
        assert line.endswith("  LARGE")


def test_the_command_takes_an_anchor_and_its_branch(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path, depth=18), tmp_path / "out"
    anchor = tmp_path / "anchor.pth"
    content = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({f"momentum.{name}": 2 * value for name, value in content.items()}, anchor)
    order = ("convert", checkpoint, "--layout", "fpn", "--out", out)
    result = invoke(*order, "--rescale-to", anchor, "--anchor-branch", "momentum.")
    assert result.exit_code == 0, result.output
    assert "weight norms times 2 to 2;" in result.output
    assert load_weights(out / "weights.pkl")[1]["rescale"]["anchor_branch"] == "momentum."


def test_converted_weights_are_an_anchor_too(tmp_path: Path):
    checkpoint, anchor = write_checkpoint(tmp_path, depth=18), tmp_path / "anchor.pkl"
    order = ("convert", checkpoint, "--layout", "fpn", "--out")
    assert invoke(*order, anchor, "--rescale", "0.5").exit_code == 0
    result = invoke(*order, tmp_path / "out.pkl", "--rescale-to", anchor)
    assert result.exit_code == 0, result.output
    assert "weight norms times 0.5 to 0.5;" in result.output
    said = load_weights(tmp_path / "out.pkl")[1]["rescale"]
    assert said["anchor_sha256"] == file_sha256(anchor)


def test_leave_to_open_pickles_counts_for_the_anchor(tmp_path: Path):
    checkpoint, anchor = write_checkpoint(tmp_path, depth=18), tmp_path / "anchor.pkl"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    anchor.write_bytes(pickle.dumps({"state_dict": {k: v.numpy() for k, v in state.items()}}))
    order = ("convert", checkpoint, "--layout", "fpn", "--rescale-to", anchor, "--out")
    assert "was not opened" in invoke(*order, tmp_path / "a.pkl").output
    assert invoke(*order, tmp_path / "a.pkl", "--allow-pickle").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rescale", "0.1", "--rescale-to", "r18.pth"), r"not both: drop one"),
        (("--rescale", "0"), "rescale: Input should be greater than 0"),
        (("--anchor-branch", "target"), "Give --rescale-to FILE"),
        (("--rescale-to", "missing.pth"), "anchor: missing.pth does not exist"),
        (("--rescale-to", "r18.pth", "--anchor-branch", "target"), "without its target branch"),
    ],
)
def test_wrong_orders_are_answered_in_one_paragraph(
    arguments, words: str, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path, depth=18)
    result = invoke("convert", "r18.pth", "--layout", "fpn", *arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output
