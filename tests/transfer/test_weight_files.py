"""Converted weights in all layouts and formats: same tensors, same bytes, and the way back."""

import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_backbone, write_checkpoint

from sslbench.checkpoint import load_backbone
from sslbench.resnet import PIXEL_MEAN, PIXEL_STD
from transfer.convert import metadata
from transfer.engines.loading import Weights
from transfer.layouts import from_layout, to_layout
from transfer.trunks import read_trunk
from transfer.weights import WeightsError, is_weights, load_weights, write_weights

WAYS = [
    (layout, ending)
    for layout in ("c4", "fpn", "torchvision")
    for ending in ("pkl", "pth", "safetensors")
    if (layout, ending) != ("torchvision", "pkl")
]
SMALL = {"a": np.arange(64, dtype=np.float32), "b": np.full((2, 3), -1.5, np.float32)}
SAID = {"layout": "fpn", "depth": 50, "width": 0.125, "notes": ["one"], "stride_in_1x1": False}


def written(folder: Path, layout: str, ending: str, name: str = "weights") -> Path:
    """A thin trunk that looks trained, converted."""
    backbone = make_backbone(folder)
    path = folder / f"{name}.{ending}"
    arrays = {k: v.numpy() for k, v in to_layout(backbone.state, layout).items()}
    write_weights(path, arrays, metadata(backbone, layout))
    return path


@pytest.mark.parametrize(("layout", "ending"), WAYS)
def test_every_tensor_comes_back_bit_for_bit(layout: str, ending: str, tmp_path: Path):
    arrays, _ = load_weights(written(tmp_path, layout, ending))
    original = make_backbone(tmp_path).state
    back = from_layout(arrays, layout)
    assert back.keys() == original.keys()
    assert len(back) == 265  # and so no num_batches_tracked
    assert all(back[name].tobytes() == v.numpy().tobytes() for name, v in original.items())


@pytest.mark.parametrize(("layout", "ending"), WAYS)
def test_every_format_says_the_same_about_itself(layout: str, ending: str, tmp_path: Path):
    path = written(tmp_path, layout, ending)
    _, said = load_weights(path)
    assert said == {
        "source": "r50.pth",
        "sha256": load_backbone(tmp_path / "r50.pth").sha256,
        "branch": "online",
        "prefix": "",
        "checkpoint_format": "torchvision",
        "depth": 50,
        "width": 0.125,
        "layout": layout,
        "format": "RGB",
        "pixel_mean": list(PIXEL_MEAN),
        "pixel_std": list(PIXEL_STD),
        "stride_in_1x1": False,
        "notes": [],
    }


@pytest.mark.parametrize(("layout", "ending"), WAYS)
def test_the_same_trunk_gives_the_same_bytes(layout: str, ending: str, tmp_path: Path):
    first = written(tmp_path, layout, ending, "first").read_bytes()
    assert all(written(tmp_path, layout, ending, "other").read_bytes() == first for _ in range(3))


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
def test_what_was_read_is_written_to_the_bytes_it_came_from(ending: str, tmp_path: Path):
    path = written(tmp_path, "fpn", ending)
    write_weights(tmp_path / f"again.{ending}", *load_weights(path))
    assert (tmp_path / f"again.{ending}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("layout", "ending"), WAYS)
def test_the_trunk_inside_needs_no_leave_and_remembers_its_source(layout, ending, tmp_path: Path):
    original = make_backbone(tmp_path)
    backbone, said = read_trunk(written(tmp_path, layout, ending), "online", allow_pickle=False)
    assert all(torch.equal(backbone.state[name], v) for name, v in original.state.items())
    assert (backbone.sha256, backbone.format) == (original.sha256, "torchvision")
    assert said["source"] == "r50.pth"


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
def test_content_decides_and_not_the_name(ending: str, tmp_path: Path):
    path = written(tmp_path, "c4", ending).rename(tmp_path / "renamed.bin")
    assert is_weights(path)
    assert Weights.read(path).layout == "c4"


def test_weights_of_the_first_release_are_still_known(tmp_path: Path):
    path = tmp_path / "weights.pkl"
    model = {"a": np.zeros(9000, np.float32)}
    old = {"model": model, "__author__": "sslbench", "metadata": SAID}
    path.write_bytes(pickle.dumps(old, protocol=4))
    assert is_weights(path)
    assert load_weights(path)[1] == SAID


@pytest.mark.parametrize(
    "save",
    [
        lambda path: torch.save({"state_dict": {"conv1.weight": torch.ones(1)}}, path),
        lambda path: path.write_bytes(pickle.dumps({"model": SMALL, "__author__": "MOCO"}, 4)),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("text"),
        lambda path: path.mkdir(),
    ],
)
def test_other_files_are_not_taken_for_weights(save, tmp_path: Path):
    save(tmp_path / "other.pkl")
    assert not is_weights(tmp_path / "other.pkl")
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "other.pkl")


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
def test_a_file_that_was_cut_is_refused_at_any_length(ending: str, tmp_path: Path):
    path = tmp_path / f"weights.{ending}"
    write_weights(path, SMALL, SAID)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=f"weights.{ending}"):
            load_weights(path)


def test_numpy_1_knows_every_name_in_the_pickle(tmp_path: Path):
    write_weights(tmp_path / "weights.pkl", SMALL, SAID)
    content = (tmp_path / "weights.pkl").read_bytes()
    assert b"numpy.core.multiarray" in content
    assert b"numpy._core" not in content


def test_a_torch_file_holds_no_more_than_its_tensors(tmp_path: Path):
    large = torch.zeros(1_000_000)
    write_weights(tmp_path / "weights.pth", {"a": large[10:20].numpy()}, SAID)
    assert (tmp_path / "weights.pth").stat().st_size < 10_000


def test_a_torch_file_of_a_detector_opens_with_torchs_own_safe_reader(tmp_path: Path):
    content = torch.load(written(tmp_path, "fpn", "pth"), weights_only=True)
    assert set(content) == {"__author__", "metadata", "model"}
    assert content["model"]["backbone.bottom_up.stem.conv1.weight"].shape == (8, 3, 7, 7)


def test_torchvision_users_find_a_state_dict(tmp_path: Path):
    from torchvision.models import resnet18

    path = tmp_path / "weights.pth"
    backbone = load_backbone(write_checkpoint(tmp_path, depth=18, width=1.0))
    arrays = {name: value.numpy() for name, value in backbone.state.items()}
    write_weights(path, arrays, metadata(backbone, "torchvision"))
    network = resnet18()
    lost = network.load_state_dict(torch.load(path)["state_dict"], strict=False)
    assert not lost.unexpected_keys
    left = [n for n in lost.missing_keys if "num_batches_tracked" not in n]
    assert left == ["fc.weight", "fc.bias"]
    assert torch.equal(
        network.layer4[1].bn2.running_var, backbone.state["layer4.1.bn2.running_var"]
    )


def test_safetensors_carry_their_metadata_as_json_texts(tmp_path: Path):
    from safetensors import safe_open

    with safe_open(written(tmp_path, "c4", "safetensors"), framework="pt") as file:
        texts = file.metadata()
        assert len(file.keys()) == 265
    assert json.loads(texts["layout"]) == "c4"
    assert json.loads(texts["pixel_mean"]) == list(PIXEL_MEAN)


def test_half_precision_never_reaches_a_detector(tmp_path: Path):
    for ending in ("pkl", "pth", "safetensors"):
        write_weights(tmp_path / f"w.{ending}", {"a": np.ones(2, np.float16)}, SAID)
        with pytest.raises(WeightsError, match="float32"):
            load_weights(tmp_path / f"w.{ending}")


def test_a_torch_file_that_would_run_code_runs_nothing(tmp_path: Path):
    class Planted:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "made",)

    torch.save({"__author__": "sslbench", "model": Planted()}, tmp_path / "w.pth")
    assert is_weights(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="may run code"):
        load_weights(tmp_path / "w.pth")
    assert not (tmp_path / "made").exists()


def test_metadata_that_does_not_fit_the_tensors_stops_the_way_back(tmp_path: Path):
    arrays, said = load_weights(written(tmp_path, "fpn", "pkl"))
    write_weights(tmp_path / "w.pkl", arrays, said | {"depth": 101})
    with pytest.raises(WeightsError, match="it was changed after it was written"):
        read_trunk(tmp_path / "w.pkl", "online", allow_pickle=False)


def test_another_branch_cannot_be_had_from_weights(tmp_path: Path):
    path = written(tmp_path, "fpn", "pkl")
    with pytest.raises(WeightsError, match=r"holds the online branch of r50\.pth and no other"):
        read_trunk(path, "target", allow_pickle=False)


@pytest.mark.parametrize(
    "name",
    ["layout", "branch", "sha256", "prefix", "checkpoint_format", "pixel_mean", "stride_in_1x1"],
)
def test_weights_that_do_not_know_their_source_are_named(name: str, tmp_path: Path):
    arrays, said = load_weights(written(tmp_path, "fpn", "pkl"))
    write_weights(tmp_path / "w.pkl", arrays, {k: v for k, v in said.items() if k != name})
    with pytest.raises(WeightsError, match=f"does not say its {name}"):
        read_trunk(tmp_path / "w.pkl", "online", allow_pickle=False)


@pytest.mark.parametrize(
    "said",
    [
        {"format": "XYZ"},
        {"pixel_mean": [1.0, 2.0]},
        {"pixel_mean": "abc"},
        {"pixel_std": [0.0, 1.0, 1.0]},
        {"pixel_std": [float("nan"), 1.0, 1.0]},
        {"stride_in_1x1": "False"},
    ],
)
def test_what_no_detector_can_do_to_pixels_is_refused(said, tmp_path: Path):
    path = written(tmp_path, "fpn", "pkl")
    arrays, before = load_weights(path)
    write_weights(path, arrays, before | said)
    with pytest.raises(WeightsError, match=f"says {next(iter(said))} .* no detector can do"):
        load_weights(path)


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
def test_changed_bytes_lead_to_our_error_or_to_nothing(ending: str, tmp_path: Path):
    path = tmp_path / f"weights.{ending}"
    write_weights(path, SMALL, SAID)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        for place in generator.integers(0, len(whole), generator.integers(1, 4)):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        is_weights(path)
        with contextlib.suppress(WeightsError):
            model, said = load_weights(path)
            assert all(value.dtype == np.float32 for value in model.values())
            assert isinstance(said, dict)


@pytest.mark.parametrize("layout", ["c5", "", 7, ["c4"]])
def test_a_layout_that_nobody_knows_is_named(layout, tmp_path: Path):
    write_weights(tmp_path / "w.pkl", SMALL, SAID | {"layout": layout})
    with pytest.raises(WeightsError, match="known: c4, fpn, torchvision"):
        load_weights(tmp_path / "w.pkl")


def test_a_tensor_that_numpy_lacks_is_refused(tmp_path: Path):
    for odd in (torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.bfloat16)):
        content = {"__author__": "sslbench", "metadata": SAID, "model": {"a": odd}}
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="'a' is not a float32 array"):
            load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
def test_what_is_known_of_the_weights_survives_the_way_back(ending: str, tmp_path: Path):
    arrays, said = load_weights(written(tmp_path, "fpn", "pkl"))
    more = said | {"notes": ["pads otherwise"], "later": {"kind": [1.5, None, True]}}
    write_weights(tmp_path / f"w.{ending}", arrays, more)
    backbone, recorded = read_trunk(tmp_path / f"w.{ending}", "online", allow_pickle=False)
    assert backbone.notes == ("pads otherwise",)
    assert recorded == more
