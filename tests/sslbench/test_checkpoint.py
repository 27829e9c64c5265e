"""Trunks come out of files whole and unchanged; everything else is refused with a reason."""

import hashlib
from pathlib import Path

import pytest
import torch
from code_bases import canonical, trunk, under

from sslbench.checkpoint import CheckpointError, inspect, load_backbone

FC = {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
ONLINE, TARGET = trunk(1), trunk(2)
OWN = {
    "format": "sslbench.pretrain",
    "version": 1,
    "arch": {"depth": 50, "width": 0.125},
    "model": under("online.backbone.", ONLINE)
    | under("online.projector.", {"0.weight": torch.zeros(2)})
    | under("online.predictor.", {"0.weight": torch.zeros(2)})
    | under("target.backbone.", TARGET)
    | under("target.projector.", {"0.weight": torch.zeros(2)}),
    "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
    "epoch": 3,
    "step": 12,
    "config": {"seed": 1},
}


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("branch", "state"), [("online", ONLINE), ("target", TARGET)])
def test_our_own_file_gives_both_branches(branch: str, state: dict, tmp_path: Path):
    path = saved(tmp_path, OWN)
    backbone = load_backbone(path, branch)
    assert list(backbone.state) == list(canonical(state))
    assert all(torch.equal(backbone.state[k], v) for k, v in canonical(state).items())
    assert (backbone.format, backbone.branch) == ("sslbench", branch)
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_wrappers_are_taken_off(wrapper: str, tmp_path: Path):
    backbone = load_backbone(saved(tmp_path, {"model": under(wrapper, ONLINE)}))
    assert torch.equal(backbone.state["conv1.weight"], ONLINE["conv1.weight"])


def test_a_submodule_that_was_compiled_is_found(tmp_path: Path):
    state = under("encoder_q._orig_mod.", ONLINE) | under("encoder_k.", TARGET)
    backbone = load_backbone(saved(tmp_path, {"state_dict": state}))
    assert backbone.prefix == "encoder_q."


@pytest.mark.parametrize(("depth", "width"), [(18, 0.25), (34, 0.125), (50, 1.0), (101, 0.125)])
def test_depth_and_width_are_read_from_the_shapes(depth: int, width: float, tmp_path: Path):
    state = trunk(1, depth, width)
    backbone = load_backbone(saved(tmp_path, state))
    assert (backbone.depth, backbone.width) == (depth, width)
    built = backbone.build()
    assert not built.training
    assert all(torch.equal(built.state_dict()[k], v) for k, v in canonical(state).items())


def test_a_prefix_can_be_asked_for_where_no_format_fits(tmp_path: Path):
    content = under("a.", ONLINE) | under("b.", TARGET) | {"stranger": torch.zeros(2)}
    path = saved(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"'a\.', 'b\.'.*cannot be told"):
        load_backbone(path)
    for branch in ("b", "b.", "module.b."):
        backbone = load_backbone(path, branch=branch)
        assert torch.equal(backbone.state["conv1.weight"], TARGET["conv1.weight"])
    assert "stranger" in backbone.dropped
    with pytest.raises(CheckpointError, match=r"no trunk behind the prefix 'c\.'"):
        load_backbone(path, branch="c")


def test_one_trunk_behind_an_unknown_prefix_must_be_asked_for(tmp_path: Path):
    """It might be anybody's moving average."""
    path = saved(tmp_path, under("my_net.", ONLINE | FC))
    with pytest.raises(CheckpointError, match=r"'my_net\.'.*no known code base.*as the branch"):
        load_backbone(path)
    backbone = load_backbone(path, branch="my_net")
    assert (backbone.prefix, backbone.format) == ("my_net.", "prefix")


def test_copies_of_one_trunk_that_differ_are_refused(tmp_path: Path):
    content = under("backbone.", ONLINE) | under("encoder_q.0.", TARGET)
    with pytest.raises(
        CheckpointError, match=r"'backbone\.' and 'encoder_q\.0\.' should be copies"
    ):
        load_backbone(saved(tmp_path, content))


def test_a_missing_key_is_named(tmp_path: Path):
    state = {k: v for k, v in ONLINE.items() if k != "layer3.1.bn2.running_mean"}
    with pytest.raises(CheckpointError, match=r"1 missing: 'layer3\.1\.bn2\.running_mean'"):
        load_backbone(saved(tmp_path, state))


def test_an_unexpected_key_inside_the_trunk_is_named(tmp_path: Path):
    state = ONLINE | {"layer3.1.se.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: 'layer3\.1\.se\.weight'"):
        load_backbone(saved(tmp_path, state))


def test_a_wide_resnet_is_refused_by_its_shapes(tmp_path: Path):
    state = ONLINE | {"layer1.0.conv2.weight": torch.ones(16, 16, 3, 3)}
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv2\.weight is \(16, 16, 3, 3\), not"):
        load_backbone(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layer2.0.conv1.weight", float("nan"), "NaN or infinite"),
        ("bn1.bias", float("inf"), "NaN or infinite"),
        ("layer1.0.bn1.running_var", 0.0, "variance that is not positive"),
    ],
)
def test_values_that_cannot_be_a_trained_network_are_refused(name, value, words, tmp_path: Path):
    state = ONLINE | {name: torch.full_like(ONLINE[name], value)}
    with pytest.raises(CheckpointError, match=words):
        load_backbone(saved(tmp_path, state))


def test_half_precision_is_refused(tmp_path: Path):
    state = {k: v.half() for k, v in ONLINE.items()}
    with pytest.raises(CheckpointError, match=r"torch\.float16, not torch\.float32"):
        load_backbone(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"patch_embed.proj.weight": torch.ones(8, 3, 16, 16)}, "vision transformer"),
        ({"conv1.0.weight": torch.ones(32, 3, 3, 3), "layer4.0.x": torch.ones(1)}, "deep stem"),
        ({"conv1.weight": torch.ones(64, 3, 3, 3)}, "not a 7x7 stem"),
        ({"conv1.weight": torch.ones(64, 3, 7, 7)}, r"'layer4\.0\.conv1\.weight' is missing"),
        ({"weight": torch.ones(1)}, "no 'conv1.weight' behind any prefix"),
        ({"epoch": 3}, "no tensors under"),
        ({"state_dict": {}}, "no tensors under"),
        ([torch.ones(1)], "holds a list, not a mapping"),
        ({"a.weight": torch.ones(1), "module.a.weight": torch.ones(1)}, "stands twice"),
    ],
)
def test_other_networks_are_called_by_their_name(content, words: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=words):
        load_backbone(saved(tmp_path, content))


def test_a_cut_file_is_said_to_be_cut(tmp_path: Path):
    path = saved(tmp_path, ONLINE)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cut short"):
        load_backbone(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"lr = 0.1\n", "is a text file"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"\x00\x01\x02\x03" * 20, "neither a torch file nor a pickle"),
        (b"\x80\x02garbage", "cannot be read|did not write"),
        (b"PK\x03\x04garbage", "cut short"),
    ],
)
def test_files_that_are_no_checkpoints_are_told_apart(content: bytes, words: str, tmp_path: Path):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        load_backbone(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_backbone(tmp_path)


class Planted:
    """A pickled object whose unpickling would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path: Path):
    victim = tmp_path / "touched"
    path = saved(tmp_path, {"state_dict": ONLINE, "hook": Planted(victim)})
    with pytest.raises(CheckpointError, match=r"was not opened.*--allow-pickle"):
        load_backbone(path)
    assert not victim.exists()


def test_our_own_file_must_hold_what_it_says(tmp_path: Path):
    changed = OWN | {"arch": {"depth": 50, "width": 1.0}}
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load_backbone(saved(tmp_path, changed))
    newer = OWN | {"version": 2}
    with pytest.raises(CheckpointError, match="version 2 of the pretraining format"):
        load_backbone(saved(tmp_path, newer))


def test_inspect_describes_both_branches(tmp_path: Path):
    found = inspect(saved(tmp_path, OWN))
    assert found["recorded"] == {
        **{"format": "sslbench.pretrain", "version": 1, "epoch": 3, "step": 12},
        **{"arch": {"depth": 50, "width": 0.125}, "config": {"seed": 1}},
    }
    assert found["branches"]["target"]["prefix"] == "target.backbone."
    assert found["branches"]["online"]["depth"] == 50
    alone = inspect(saved(tmp_path, ONLINE | FC))
    assert "without its target branch" in alone["branches"]["target"]
