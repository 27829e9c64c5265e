"""Every code base's keys and container give its trunk bit for bit; anything else is refused."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_bases import (
    KEY_LISTS,
    Sample,
    as_detectron2,
    canonical,
    haiku_trees,
    samples,
    trunk,
    under,
)

from sslbench.checkpoint import Backbone, CheckpointError, inspect, load_backbone
from sslbench.checkpoint.choice import choose
from sslbench.checkpoint.formats import FORMATS
from sslbench.checkpoint.sections import lay_out
from sslbench.checkpoint.table import DOCUMENT, with_table
from sslbench.checkpoint.trunk import extract

ONLINE, TARGET = trunk(1), trunk(2)
SAMPLES = samples(ONLINE, TARGET)
PROBED = "layer2.0.conv2.weight"  # a tensor that the refusals below take away or add to


def written(tmp_path: Path, content: Any, in_pickle: bool = False) -> Path:
    path = tmp_path / ("file.pkl" if in_pickle else "file.pth")
    if in_pickle:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return path


def loaded(tmp_path: Path, sample: Sample, branch: str = "online") -> Backbone:
    path = written(tmp_path, sample.content, sample.in_pickle)
    return load_backbone(path, branch, allow_pickle=sample.in_pickle)


def every_branch() -> list[tuple[str, str]]:
    return [(name, branch) for name, sample in SAMPLES.items() for branch in sample.branches]


def test_every_format_has_a_file_here():
    assert {sample.format for sample in SAMPLES.values()} == set(FORMATS)


@pytest.mark.parametrize(("name", "branch"), every_branch())
def test_the_trunk_comes_out_bit_for_bit(name: str, branch: str, tmp_path: Path):
    found = loaded(tmp_path, SAMPLES[name], branch)
    expected = canonical(ONLINE if branch == "online" else TARGET)
    assert len(expected) == 265
    assert list(found.state) == list(expected)
    assert all(torch.equal(found.state[k], v) for k, v in expected.items())
    assert (found.depth, found.width, found.format) == (50, 0.125, SAMPLES[name].format)


@pytest.mark.parametrize("name", [n for n, s in SAMPLES.items() if len(s.branches) == 1])
def test_a_file_with_one_branch_does_not_give_it_for_the_other(name: str, tmp_path: Path):
    (only,) = SAMPLES[name].branches
    other = "target" if only == "online" else "online"
    with pytest.raises(CheckpointError, match=f"without its {other} branch"):
        loaded(tmp_path, SAMPLES[name], other)


MARKS = ("layer4.0.", "7.0.", "res5.0.", "stages.3.", "block_group_3")


def altered(content: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Change every mapping that holds a trunk's tensors, wherever it stands."""
    if isinstance(content, tuple):
        return tuple(altered(item, change) for item in content)
    if not isinstance(content, Mapping):
        return content
    if any(mark in str(key) for key in content for mark in MARKS):
        return change(dict(content))
    return {key: altered(value, change) for key, value in content.items()}


def is_probed(value: Any) -> bool:
    """Tell the probed tensor by its values, also among a Haiku module's arrays."""
    if isinstance(value, Mapping):
        array = value.get("w", np.ones(1))
        return array.ndim == 4 and is_probed(array.transpose(3, 2, 0, 1))
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    wanted = ONLINE[PROBED]
    return tensor.shape == wanted.shape and torch.equal(tensor, wanted)


def in_memory(content: Any) -> Any:
    """What reading the file would give: arrays are tensors."""
    if isinstance(content, np.ndarray):
        return torch.from_numpy(content)
    if isinstance(content, Mapping):
        return {key: in_memory(value) for key, value in content.items()}
    return tuple(map(in_memory, content)) if isinstance(content, tuple) else content


def refusal(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    content, path = in_memory(altered(SAMPLES[name].content, change)), Path("file.pth")
    with pytest.raises(CheckpointError) as caught:
        extract(choose(lay_out(content, path), "online", path).inside, "file.pth")
    return str(caught.value)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_wrong_prefix_is_refused(name: str):
    def misplaced(state: dict[str, Any]) -> dict[str, Any]:
        return {
            "module.strange." * key.startswith("module.")
            + "strange." * (not key.startswith("module."))
            + key.removeprefix("module."): value
            for key, value in state.items()
        }

    assert "strange." in refusal(name, misplaced)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_dropped_key_is_refused_and_named(name: str):
    def cut(state: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in state.items() if not is_probed(value)}

    assert f"1 missing: '{PROBED}'" in refusal(name, cut)


@pytest.mark.parametrize("name", SAMPLES)
def test_an_extra_key_inside_the_trunk_is_refused_and_named(name: str):
    def extended(state: dict[str, Any]) -> dict[str, Any]:
        more = {}
        for key, value in state.items():
            if is_probed(value):
                parent, dot, end = key.rpartition(".")
                more[f"{parent}_stranger{dot}{end}" if dot else f"{key}_stranger"] = value
        return state | more

    found = refusal(name, extended)
    assert "unexpected: " in found
    assert "_stranger" in found


@pytest.mark.parametrize("name", SAMPLES)
def test_an_extra_key_beside_the_trunk_is_refused_and_named(name: str):
    found = refusal(name, lambda state: state | {"stranger.weight": torch.ones(2)})
    assert "unexpected: " in found
    assert "stranger.weight" in found


def test_safetensors_are_read(tmp_path: Path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    content = {k: v.clone() for k, v in SAMPLES["hf ResNetForImageClassification"].content.items()}
    save_file(content, path, metadata={"format": "pt"})
    found = load_backbone(path)
    assert found.format == "Hugging Face"
    assert all(torch.equal(found.state[k], v) for k, v in canonical(ONLINE).items())


@pytest.mark.parametrize("depth", [18, 34, 101])
@pytest.mark.parametrize("name", ["MoCo v2", "DINO", "SoCo FPN", "VISSL MoCo", "solo-learn byol"])
def test_other_depths_come_out_of_the_same_containers(name: str, depth: int, tmp_path: Path):
    online, target = trunk(3, depth, 0.25), trunk(4, depth, 0.25)
    for branch, state in (("online", online), ("target", target)):
        found = loaded(tmp_path, samples(online, target)[name], branch)
        assert found.depth == depth
        assert all(torch.equal(found.state[k], v) for k, v in canonical(state).items())


# What has a ResNet's keys, shapes or parts and is none, or not of one known kind.


def test_a_detectron2_file_of_unknown_colour_order_is_refused_but_by_its_prefix(tmp_path: Path):
    content = SAMPLES["detectron2 mask_rcnn_R_50_FPN_1x.yaml"].content
    path = written(tmp_path, {"model": content["model"], "iteration": 9})
    with pytest.raises(CheckpointError, match=r"author None.*RGB.*pass the prefix"):
        load_backbone(path)
    found = load_backbone(path, branch="backbone.bottom_up")
    assert torch.equal(found.state["conv1.weight"], ONLINE["conv1.weight"])


def test_detectron2_weights_that_say_bgr_are_refused(tmp_path: Path):
    model = under("backbone.bottom_up.", as_detectron2(ONLINE))
    path = written(tmp_path, {"model": model, "metadata": {"format": "BGR"}})
    with pytest.raises(CheckpointError, match="say BGR"):
        load_backbone(path)


def test_msras_network_is_refused(tmp_path: Path):
    msra = {"conv1_w": torch.ones(64, 3, 7, 7), "res2_0_branch2a_w": torch.ones(64, 64, 1, 1)}
    with pytest.raises(CheckpointError, match=r"MSRA.*BGR.*stride"):
        load_backbone(written(tmp_path, msra))


@pytest.mark.parametrize(
    "beside",
    [
        {"arch": "resnetaa50"},
        {"args": {"model": "resnetblur50"}},
        {"hyper_parameters": {"backbone": "resnet50_caffe"}},
    ],
)
def test_a_network_that_only_looks_like_a_resnet_is_refused(beside: dict, tmp_path: Path):
    path = written(tmp_path, {"state_dict": ONLINE, **beside})
    with pytest.raises(CheckpointError, match="in silence"):
        load_backbone(path)
    assert load_backbone(path, branch=".").depth == 50


def test_a_look_alike_is_told_by_its_file_name_or_its_neighbour(tmp_path: Path):
    path = written(tmp_path, ONLINE)
    (tmp_path / "config.json").write_text('{"architecture": "resnetblur50"}')
    with pytest.raises(CheckpointError, match=r"config\.json.*resnetblur50"):
        load_backbone(path)
    text = '{"architectures": ["ResNetModel"], "downsample_in_bottleneck": true}'
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="downsample_in_bottleneck"):
        load_backbone(path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="its name says"):
        load_backbone(path.rename(tmp_path / "resnetaa50_a1.pth"))


def test_dinos_one_branch_is_not_called_the_student(tmp_path: Path):
    others = {k: torch.ones(2) for k in KEY_LISTS["DINO one branch"]["others"]}
    with pytest.raises(CheckpointError, match="student or teacher"):
        load_backbone(written(tmp_path, under("backbone.", ONLINE) | others))


def test_two_kinds_of_network_in_one_file_are_refused(tmp_path: Path):
    content = {"state_dict": ONLINE, "model_ema": TARGET, "state_dict_ema": TARGET}
    with pytest.raises(CheckpointError, match=r"more trunks behind 'state_dict_ema/'"):
        load_backbone(written(tmp_path, content))


def test_a_prefix_chooses_a_trunk_of_another_container(tmp_path: Path):
    path = written(tmp_path, SAMPLES["DINO"].content)
    for branch in ("teacher/backbone.", "teacher/backbone"):
        found = load_backbone(path, branch)
        assert torch.equal(found.state["conv1.weight"], TARGET["conv1.weight"])
    path = written(tmp_path, {"model": ONLINE, "swa": TARGET})
    for branch in ("swa", "swa/"):
        assert torch.equal(load_backbone(path, branch).state["bn1.bias"], TARGET["bn1.bias"])


@pytest.mark.parametrize("named", [True, False])
def test_a_training_state_in_an_array_file_is_read(named: bool, tmp_path: Path):
    """DetCon's files are such; what exactly is in them was not seen."""
    (ours, our_state), (theirs, their_state) = haiku_trees(ONLINE), haiku_trees(TARGET)
    state = {
        **{"target_params": theirs, "online_params": ours},
        **{"target_state": their_state, "online_state": our_state},
    }
    path = tmp_path / "detcon.npy"
    np.save(path, np.array(state if named else {"params": ours, "state": our_state}, dtype=object))
    for branch, wanted in (("online", ONLINE), ("target", TARGET))[: 1 + named]:
        found = load_backbone(path, branch, allow_pickle=True)
        assert torch.equal(found.state["conv1.weight"], wanted["conv1.weight"])
        assert torch.equal(found.state["bn1.running_var"], wanted["bn1.running_var"])


def test_deepminds_padding_is_noted(tmp_path: Path):
    (note,) = loaded(tmp_path, SAMPLES["BYOL of DeepMind"]).notes
    assert "SAME padding" in note
    assert loaded(tmp_path, SAMPLES["MoCo v2"]).notes == ()


def test_inspect_says_what_a_file_is(tmp_path: Path):
    found = inspect(written(tmp_path, SAMPLES["MoCo v2"].content))
    online, target = found["branches"]["online"], found["branches"]["target"]
    assert (online["format"], online["prefix"]) == ("MoCo v1/v2", "encoder_q.")
    assert (online["depth"], online["width"], online["colour_order"]) == (50, 0.125, "RGB")
    assert online["digest"] != target["digest"]
    assert found["recorded"] == {"epoch": 9, "arch": "resnet50"}
    alone = inspect(written(tmp_path, ONLINE))
    assert alone["branches"]["online"]["digest"] == online["digest"]
    assert "without its target branch" in alone["branches"]["target"]


def test_the_documents_table_is_that_of_the_code():
    text = DOCUMENT.read_text()
    assert with_table(text) == text
    assert all(f"| {name} |" in text for name in FORMATS)
