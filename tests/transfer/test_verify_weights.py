"""verify on weights of anybody's converter: what is right passes, each classic mistake is named."""

import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_backbone
from foreign_weights import WRITERS, as_moco, as_vissl, bare, encoder, moco_checkpoint
from safetensors.torch import save_file
from test_parity import swap_statistics, written

from sslbench.checkpoint import CheckpointError
from transfer.detectron2_names import trunk_names
from transfer.naming import to_detectron2
from transfer.rescale import Rescaling
from transfer.verify import verification
from transfer.verify import verify as verify_files
from transfer.verify.detector_file import read_detector_file
from transfer.verify.findings import VerifyError
from transfer.verify.matching import match
from transfer.weights import WeightsError, load_weights, write_weights


@pytest.fixture(autouse=True)
def only_ours(monkeypatch):
    """Keep Detectron2 out: test_verify_d2.py has it."""
    monkeypatch.setattr(verification, "has_detectron2", lambda: False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moco_checkpoint(tmp_path_factory.mktemp("moco"))


@pytest.fixture(scope="module")
def query(checkpoint: Path):
    return encoder(checkpoint, "q")


def verify(weights: Path, checkpoint: Path, **options):
    return verify_files(weights, against=checkpoint, allow_pickle=True, **options)


def errors(found) -> list[str]:
    return [finding.line() for finding in found.findings if finding.severity == "error"]


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_our_own_weights_pass_without_a_word(layout: str, tmp_path: Path):
    backbone = make_backbone(tmp_path)
    found = verify_files(written(backbone, layout, tmp_path), against=tmp_path / "r50.pth")
    assert found.passed
    assert found.findings == []
    assert found.weights["layout"] == layout
    assert found.weights["loaded"] == "265 of 265"
    assert max(found.comparisons[0].levels.values()) <= 1e-5


@pytest.mark.parametrize("depth", [18, 34])
def test_thinner_networks_of_basic_blocks_pass_too(depth: int, tmp_path: Path):
    backbone = make_backbone(tmp_path, depth)
    path = written(backbone, "fpn", tmp_path)
    assert verify_files(path, against=tmp_path / f"r{depth}.pth").findings == []


@pytest.mark.parametrize("name", WRITERS)
def test_right_weights_of_other_converters_pass(name: str, checkpoint, query, tmp_path: Path):
    found = verify(WRITERS[name](tmp_path / name, query), checkpoint)
    assert errors(found) == []
    assert found.weights["loaded"] == "265 of 265"
    assert found.weights["names"] == "matched by their ends"
    assert found.weights["layout"] == "fpn or c4 or dc5"
    assert list(found.comparisons[0].levels) == ["res2", "res3", "res4", "res5"]


def test_a_projector_that_leaked_is_noted(checkpoint, query, tmp_path: Path):
    found = verify(as_moco(tmp_path / "w.pkl", query), checkpoint)
    (note,) = found.findings
    assert note.severity == "note"
    assert "2 tensors are no part of the trunk" in note.text
    assert "stem.fc.0.weight" in note.text


def test_the_momentum_branch_is_named(checkpoint, tmp_path: Path):
    found = verify(as_moco(tmp_path / "w.pkl", encoder(checkpoint, "k")), checkpoint)
    (error,) = errors(found)
    assert "they are the target branch ('encoder_k.') and not 'encoder_q.'" in error
    assert "Convert with --branch online" in error
    assert verify(tmp_path / "w.pkl", checkpoint, branch="target").passed


def test_swapped_channels_are_named(checkpoint, query, tmp_path: Path):
    turned = query | {"conv1.weight": query["conv1.weight"].flip(1)}
    (error,) = errors(verify(as_moco(tmp_path / "w.pkl", turned), checkpoint))
    assert "input channels in the order BGR" in error


def test_swapped_channels_of_the_other_branch_are_both_named(checkpoint, tmp_path: Path):
    key = encoder(checkpoint, "k")
    turned = key | {"conv1.weight": key["conv1.weight"].flip(1)}
    (error,) = errors(verify(as_moco(tmp_path / "w.pkl", turned), checkpoint))
    assert "in the order BGR; and they are the target branch" in error


def test_statistics_that_were_not_kept_are_named(checkpoint, query, tmp_path: Path):
    lost = {
        name: torch.zeros_like(value) if name.endswith("mean") else torch.ones_like(value)
        for name, value in query.items()
        if name.endswith(("running_mean", "running_var"))
    }
    (error,) = errors(verify(as_moco(tmp_path / "w.pkl", query | lost), checkpoint))
    assert "running statistics are not the checkpoint's (53 of 53 norms still have" in error


def test_statistics_that_are_not_in_the_file_are_two_errors(checkpoint, query, tmp_path: Path):
    lost = {name: v for name, v in query.items() if "running" not in name}
    not_loaded, maps = errors(verify(as_moco(tmp_path / "w.pkl", lost), checkpoint))
    assert "would load 159 of the trunk's 265 tensors" in not_loaded
    assert "running statistics are not the checkpoint's" in maps


def test_half_precision_is_named(checkpoint, query, tmp_path: Path):
    rounded = {n: v.half() if v.is_floating_point() else v for n, v in query.items()}
    (error,) = errors(verify(as_vissl(tmp_path / "w.torch", rounded), checkpoint))
    assert "rounded to half precision" in error


def test_a_std_folded_into_the_first_convolution_is_named(checkpoint, query, tmp_path: Path):
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    folded = query | {"conv1.weight": query["conv1.weight"] / std}
    (error,) = errors(verify(as_moco(tmp_path / "w.pkl", folded), checkpoint))
    assert "division by std is already in the first convolution" in error
    assert "Write MODEL: {PIXEL_STD: [1.0, 1.0, 1.0]}" in error


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"stride_in_1x1": True}, "STRIDE_IN_1X1 True was used and the other place"),
        ({"format": "BGR"}, "says channel_order BGR and its tensors need RGB"),
        ({"pixel_mean": [103.530, 116.280, 123.675]}, "says mean [103.53, 116.28, 123.675]"),
        ({"pixel_std": [1.0, 1.0, 1.0]}, "says std [1.0, 1.0, 1.0] and its tensors need [58.395"),
    ],
)
def test_each_silent_mistake_in_what_a_file_says_is_named(extra, words: str, tmp_path: Path):
    path = written(make_backbone(tmp_path), "fpn", tmp_path, **extra)
    (error,) = errors(verify_files(path, against=tmp_path / "r50.pth"))
    assert words in error


def test_what_no_usual_mistake_explains_is_listed(tmp_path: Path):
    path = written(make_backbone(tmp_path), "fpn", tmp_path, _one_bias)
    (error,) = errors(verify_files(path, against=tmp_path / "r50.pth"))
    assert "no usual mistake explains it" in error
    assert "1 of 265 tensors differ (res4.2.conv2.norm.bias by 0.5)" in error


def _one_bias(arrays):
    arrays["backbone.bottom_up.res4.2.conv2.norm.bias"][0] += 0.5


def test_a_difference_too_small_for_the_maps_is_noted(tmp_path: Path):
    def change(arrays):
        arrays["backbone.bottom_up.res5.2.conv2.weight"][0, 0, 0, 0] += 1e-6

    found = verify_files(
        written(make_backbone(tmp_path), "fpn", tmp_path, change), against=tmp_path / "r50.pth"
    )
    assert found.passed
    (note,) = found.findings
    assert "but 1 of 265 tensors differ (res5.2.conv2.weight by" in note.text


def rescaled(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    backbone = make_backbone(folder)
    convolutions = [n.removesuffix(".weight") for n, v in backbone.state.items() if v.ndim == 4]
    factors = {name: 0.1 + 0.01 * i for i, name in enumerate(convolutions)}
    smaller = Rescaling({}, factors).apply(backbone)
    return written(smaller, "fpn", folder, rescale={"factors": factors})


def test_rescaled_weights_are_compared_with_the_equally_rescaled_checkpoint(tmp_path: Path):
    found = verify_files(rescaled(tmp_path), against=tmp_path / "r50.pth")
    assert found.passed
    assert "the equally rescaled checkpoint" in found.findings[0].text
    assert max(found.comparisons[0].levels.values()) <= 1e-5


def test_factors_that_do_not_belong_to_the_checkpoint_are_refused(tmp_path: Path):
    path = written(make_backbone(tmp_path), "fpn", tmp_path, rescale={"factors": {"conv1": 2.0}})
    with pytest.raises(VerifyError, match="not by a positive factor for each"):
        verify_files(path, against=tmp_path / "r50.pth")


@pytest.mark.parametrize("factor", ["0.1", None, -1.0, True])
def test_factors_that_are_no_positive_numbers_are_refused(factor: object, tmp_path: Path):
    backbone = make_backbone(tmp_path)
    convolutions = [n.removesuffix(".weight") for n, v in backbone.state.items() if v.ndim == 4]
    said = {"factors": dict.fromkeys(convolutions, factor)}
    path = written(backbone, "fpn", tmp_path, rescale=said)
    with pytest.raises(VerifyError, match="not by a positive factor for each"):
        verify_files(path, against=tmp_path / "r50.pth")


def test_nan_fails_and_is_null_in_the_record(tmp_path: Path):
    def change(arrays):
        arrays["backbone.bottom_up.res5.2.conv2.norm.bias"][:] = np.nan

    path = written(make_backbone(tmp_path), "fpn", tmp_path, change)
    record = verify_files(path, against=tmp_path / "r50.pth").record()
    assert not record["passed"]
    assert record["comparisons"][0]["levels"]["res5"] is None


def test_statistics_of_another_layer_fail(tmp_path: Path):
    path = written(make_backbone(tmp_path), "fpn", tmp_path, swap_statistics)
    assert not verify_files(path, against=tmp_path / "r50.pth").passed


def test_a_missing_flag_means_that_nothing_is_loaded(checkpoint, query, tmp_path: Path):
    found = verify(as_moco(tmp_path / "w.pkl", query, matching_heuristics=None), checkpoint)
    (error,) = errors(found)
    assert "would load 0 of the trunk's 265" in error
    assert "lacks 'matching_heuristics': True" in error
    assert max(found.comparisons[0].levels.values()) <= 1e-5  # the tensors themselves are right


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_our_own_file_that_was_changed_is_not_taken_for_anothers(ending: str, tmp_path: Path):
    backbone = make_backbone(tmp_path)
    arrays, said = load_weights(written(backbone, "fpn", tmp_path))
    path = tmp_path / f"changed.{ending}"
    write_weights(path, arrays, said | {"pixel_mean": [103.53, 116.28]})
    with pytest.raises(WeightsError, match="changed after it was written"):
        verify_files(path, against=tmp_path / "r50.pth")


def test_a_file_that_says_half_of_what_it_needs_is_refused(tmp_path: Path):
    arrays, said = load_weights(written(make_backbone(tmp_path), "fpn", tmp_path))
    path = tmp_path / "half.pkl"
    write_weights(path, arrays, {k: v for k, v in said.items() if k != "pixel_mean"})
    with pytest.raises(VerifyError, match="does not say its pixel_mean"):
        verify_files(path, against=tmp_path / "r50.pth")


def test_converted_weights_may_stand_for_the_checkpoint(tmp_path: Path):
    path = written(make_backbone(tmp_path), "fpn", tmp_path)
    assert verify_files(path, against=path).passed


def test_rescaled_weights_are_no_original(tmp_path: Path):
    plain = written(make_backbone(tmp_path), "fpn", tmp_path)
    other = rescaled(tmp_path / "rescaled")
    with pytest.raises(VerifyError, match=r"pass r50\.pth, which it was made from"):
        verify_files(plain, against=other)


def test_a_flag_among_the_tensors_is_none(checkpoint, query, tmp_path: Path):
    tensors = {name: torch.as_tensor(value) for name, value in bare(query).items()}
    path = tmp_path / "flat.pth"
    torch.save({**tensors, "matching_heuristics": True}, path)
    found = verify(path, checkpoint)
    assert "would load 0 of the trunk's 265 tensors" in errors(found)[0]


def test_the_flag_may_stand_behind_the_path_of_a_torch_file(checkpoint, query, tmp_path: Path):
    model = {name: torch.from_numpy(value) for name, value in bare(query).items()}
    torch.save(model, tmp_path / "w.pth")
    assert not verify(tmp_path / "w.pth", checkpoint).passed
    assert verify(Path(f"{tmp_path}/w.pth?matching_heuristics=True"), checkpoint).passed


@pytest.mark.parametrize("flag", [True, None])
def test_a_prefix_that_was_left_is_named(flag, checkpoint, query, tmp_path: Path):
    named = {f"encoder.{name}": value for name, value in bare(query).items()}
    path = as_moco(tmp_path / "w.pkl", query, model=named, matching_heuristics=flag)
    (error,) = errors(verify(path, checkpoint))
    assert "would load 0 of the trunk's 265" in error
    assert "the prefix 'encoder.' is left" in error


def test_module_in_front_of_exact_names_is_taken_off_by_detectron2_itself(tmp_path: Path):
    def change(arrays):
        for name in list(arrays):
            arrays[f"module.{name}"] = arrays.pop(name)

    path = written(make_backbone(tmp_path), "c4", tmp_path, change)
    assert verify_files(path, against=tmp_path / "r50.pth").findings == []


def test_module_in_front_of_bare_names_is_a_prefix_left(checkpoint, query, tmp_path: Path):
    named = {f"module.{name}": value for name, value in bare(query).items()}
    (error,) = errors(verify(as_moco(tmp_path / "w.pkl", query, model=named), checkpoint))
    assert "the prefix 'module.' is left" in error


def test_of_two_names_that_fit_the_longest_wins(checkpoint, query, tmp_path: Path):
    """As in a file that holds a momentum encoder beside the detector's own trunk."""
    other = {name: value + 1 for name, value in bare(query).items()}
    exact = {f"backbone.bottom_up.{name}": value for name, value in bare(query).items()}
    found = verify(as_moco(tmp_path / "w.pkl", query, model=other | exact), checkpoint)
    assert found.passed
    assert "no part of the trunk" in found.findings[0].text


def test_a_file_that_passes_for_caffe2s_loses_its_statistics(checkpoint, query, tmp_path: Path):
    path = as_moco(tmp_path / "w.pkl", query, __author__="Caffe2")
    (error,) = errors(verify(path, checkpoint))
    assert "would load 159 of the trunk's 265" in error
    assert "every running_mean and running_var stays at 0 and 1" in error


def test_names_of_torchvision_are_told_from_converted_ones(checkpoint, query, tmp_path: Path):
    torch.save({"model": query}, tmp_path / "w.pth")
    with pytest.raises(VerifyError, match="torchvision's names"):
        verify(tmp_path / "w.pth", checkpoint)


def test_the_msra_file_is_refused_by_its_names(checkpoint, tmp_path: Path):
    model = {"conv1_w": np.zeros((64, 3, 7, 7), np.float32), "res2_0_branch2a_w": np.zeros(1)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(model))
    with pytest.raises(VerifyError, match="Caffe2's names, as in the MSRA weights"):
        verify(tmp_path / "R-50.pkl", checkpoint)


def test_a_pickle_of_others_needs_leave(checkpoint, query, tmp_path: Path):
    with pytest.raises(VerifyError, match="verify it with --allow-pickle"):
        verify_files(as_moco(tmp_path / "w.pkl", query), against=checkpoint)


def test_a_torch_file_of_others_needs_none(checkpoint, query, tmp_path: Path):
    assert verify_files(as_vissl(tmp_path / "w.torch", query), against=checkpoint).passed


@pytest.mark.parametrize(
    ("write", "name", "words"),
    [
        (as_vissl, "w.pkl", "Name it .pth"),
        (as_moco, "w.pth", "Name it .pkl"),
        (partial(as_moco, __author__=None), "w.pkl", "Write '__author__': 'NAME'"),
    ],
)
def test_a_file_that_detectron2_would_not_open_is_named(
    write, name: str, words: str, checkpoint, query, tmp_path: Path
):
    (error,) = errors(verify(write(tmp_path / name, query), checkpoint))
    assert words in error


def test_safetensors_are_compared_though_detectron2_does_not_read_them(tmp_path: Path):
    backbone = make_backbone(tmp_path)
    save_file(dict(to_detectron2(backbone.state, "c4")), tmp_path / "w.safetensors")
    found = verify_files(tmp_path / "w.safetensors", against=tmp_path / "r50.pth")
    (warning,) = found.findings
    assert found.passed
    assert "Detectron2 reads no safetensors" in warning.text


class Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_that_a_pickle_names_is_run(checkpoint, query, tmp_path: Path):
    planted = Planted(tmp_path / "made")
    found = verify(as_moco(tmp_path / "w.pkl", query, planted=planted), checkpoint)
    assert found.passed
    assert not (tmp_path / "made").exists()


def test_another_depth_is_no_comparison_but_an_error(checkpoint, tmp_path: Path):
    path = written(make_backbone(tmp_path, 34), "fpn", tmp_path)
    found = verify(path, checkpoint)
    (error,) = errors(found)
    assert "the weights are a ResNet-34 of width 0.125, the checkpoint is a ResNet-50" in error
    assert found.comparisons == []


@pytest.mark.parametrize("kind", ["missing", "text", "cut"])
def test_files_that_are_no_weights_are_named(kind: str, checkpoint, query, tmp_path: Path):
    path = tmp_path / "w.pkl"
    if kind == "text":
        path.write_text("these are no weights")
    if kind == "cut":
        whole = as_moco(path, query).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"w\.pkl"):
        verify(path, checkpoint)


def test_without_anything_to_compare_with_it_says_so(tmp_path: Path):
    with pytest.raises(VerifyError, match="give --against CHECKPOINT, --config YAML or both"):
        verify_files(tmp_path / "w.pkl")


def test_a_missing_block_is_no_resnet(checkpoint, query, tmp_path: Path):
    state = {k: v for k, v in query.items() if not k.startswith("layer3.5")}
    with pytest.raises(VerifyError, match="which is none of ResNet-18/34/50/101"):
        verify(as_moco(tmp_path / "w.pkl", state), checkpoint)


def test_a_lost_convolution_is_no_comparison_but_an_error(checkpoint, query, tmp_path: Path):
    state = {k: v for k, v in query.items() if k != "layer3.5.conv2.weight"}
    found = verify(as_moco(tmp_path / "w.pkl", state), checkpoint)
    (error,) = errors(found)
    assert "would load 264 of" in error
    assert "res4.5.conv2.weight" in error
    assert found.comparisons == []


@pytest.mark.parametrize("layout", ["c4", "fpn", "dc5"])
def test_bare_names_fit_every_kind_of_detector(layout: str, query, tmp_path: Path):
    file = read_detector_file(as_moco(tmp_path / "w.pkl", query), allow_pickle=True)
    found = match(file, layout)
    assert found.loaded.keys() == trunk_names(layout, 50).keys()
    assert found.missing == ()
