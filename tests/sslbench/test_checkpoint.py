"""Checkpoints of every code base give the same trunk; everything else is refused with a reason."""

import argparse
import hashlib
from pathlib import Path

import pytest
import torch

from sslbench.checkpoint import CheckpointError, inspect, load_backbone
from sslbench.resnet import ResNet

FC = {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
MLP = {"fc.0.weight": torch.zeros(4, 4), "fc.2.bias": torch.zeros(4)}


def trunk(seed: int = 0, depth: int = 50, width: float = 0.125) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = ResNet(depth, width).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_()
    return dict(state)


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def canonical(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


ONLINE, TARGET = trunk(1), trunk(2)
OWN_ARCH = {"depth": 50, "width": 0.125}
FILES = {
    "sslbench": {
        "format": "sslbench.pretrain",
        "version": 1,
        "arch": OWN_ARCH,
        "model": under("online.backbone.", ONLINE)
        | under("online.projector.", {"0.weight": torch.zeros(2)})
        | under("online.predictor.", {"0.weight": torch.zeros(2)})
        | under("target.backbone.", TARGET)
        | under("target.projector.", {"0.weight": torch.zeros(2)}),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
        "epoch": 3,
        "step": 12,
        "config": {},
    },
    "torchvision": ONLINE | FC,
    "torchvision in state_dict": {"state_dict": under("module.", ONLINE | FC), "epoch": 1},
    "torch.compile around DDP": {"model": under("_orig_mod.module.", ONLINE)},
    "MoCo v1": {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": under("module.encoder_q.", ONLINE | FC)
        | under("module.encoder_k.", TARGET | FC)
        | {"module.queue": torch.zeros(4, 8), "module.queue_ptr": torch.zeros(1)},
        "optimizer": {},
    },
    "MoCo v2": {
        "state_dict": under("module.encoder_q.", ONLINE | MLP)
        | under("module.encoder_k.", TARGET | MLP)
        | {"module.queue": torch.zeros(4, 8), "module.queue_ptr": torch.zeros(1)},
    },
    "OpenSelfSup SimCLR": {
        "meta": {"epoch": 1},
        "state_dict": under("backbone.", ONLINE)
        | {"neck.bn0.weight": torch.zeros(2), "head.pre.weight": torch.zeros(2)},
    },
    "OpenSelfSup extracted": {"state_dict": ONLINE, "author": "OpenSelfSup"},
    "DenseCL": {
        "meta": {},
        "state_dict": under("encoder_q.0.", ONLINE)
        | under("encoder_k.0.", TARGET)
        | under("backbone.", ONLINE)
        | {f"encoder_{side}.1.mlp.0.weight": torch.zeros(2) for side in "qk"}
        | {name: torch.zeros(2) for name in ("queue", "queue_ptr", "queue2", "queue2_ptr")},
    },
    "OpenSelfSup BYOL": {
        "state_dict": under("online_net.0.", ONLINE)
        | under("target_net.0.", TARGET)
        | under("backbone.", ONLINE)
        | {f"{side}_net.1.fc0.weight": torch.zeros(2) for side in ("online", "target")}
        | {"head.predictor.fc0.weight": torch.zeros(2)},
    },
    "ORL": {
        "state_dict": under("online_net.0.", ONLINE)
        | under("target_net.0.", TARGET)
        | under("backbone.", ONLINE)
        | {f"{net}.fc0.weight": torch.zeros(2) for net in ("online_net.1", "target_net.1", "neck")}
        | {
            f"{head}_head.predictor.fc0.weight": torch.zeros(2)
            for head in ("global", "local_intra", "local_inter")
        },
    },
    "byol-pytorch": under("net.", ONLINE | FC)
    | under("online_encoder.net.", ONLINE | FC)
    | under("target_encoder.net.", TARGET | FC)
    | {f"{side}_encoder.projector.net.0.weight": torch.zeros(2) for side in ("online", "target")}
    | {"online_predictor.net.0.weight": torch.zeros(2)},
    "SwAV": under("module.", ONLINE)
    | {
        "module.projection_head.0.weight": torch.zeros(2),
        "module.prototypes.weight": torch.ones(2),
    },
    "DINO": {
        "student": under("module.backbone.", ONLINE) | {"module.head.mlp.0.weight": torch.ones(2)},
        "teacher": under("backbone.", TARGET) | {"head.last_layer.weight_g": torch.ones(2)},
        "optimizer": {},
        "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.zeros(1, 8)},
    },
    "PyContrast": {
        "opt": argparse.Namespace(arch="resnet50"),
        "model": under("module.encoder.", ONLINE) | {"module.head.0.weight": torch.zeros(2)},
        "model_ema": under("encoder.", TARGET) | {"head.0.weight": torch.zeros(2)},
    },
    "SoCo": {
        "opt": argparse.Namespace(),
        "model": under("module.encoder.", ONLINE)
        | under("module.encoder_k.", TARGET)
        | {
            f"module.{part}.linear1.weight": torch.zeros(2)
            for part in ("projector", "projector_k", "predictor", "neck", "neck_k", "head")
        }
        | {"module.queue": torch.zeros(2), "module.queue_ptr": torch.zeros(1)},
    },
}
WITH_TARGET = [
    name
    for name in FILES
    if name not in ("torchvision", "SwAV", "torch.compile around DDP")
    and "extracted" not in name
    and "SimCLR" not in name
    and "state_dict" not in name
]


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_the_online_trunk_comes_out_bit_for_bit(name: str, tmp_path: Path):
    path = saved(tmp_path, FILES[name])
    backbone = load_backbone(path)

    expected = canonical(ONLINE)
    assert list(backbone.state) == list(expected)
    assert len(expected) == 265
    assert all(torch.equal(backbone.state[k], v) for k, v in expected.items())
    assert (backbone.depth, backbone.width, backbone.branch) == (50, 0.125, "online")
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", WITH_TARGET)
def test_the_target_trunk_is_the_other_one(name: str, tmp_path: Path):
    backbone = load_backbone(saved(tmp_path, FILES[name]), branch="target")
    assert all(torch.equal(backbone.state[k], v) for k, v in canonical(TARGET).items())


@pytest.mark.parametrize("name", sorted(set(FILES) - set(WITH_TARGET)))
def test_a_file_with_one_trunk_has_no_target(name: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match="without a target branch"):
        load_backbone(saved(tmp_path, FILES[name]), branch="target")


@pytest.mark.parametrize(("depth", "width"), [(18, 0.25), (34, 0.125), (50, 1.0), (101, 0.125)])
def test_depth_and_width_are_read_from_the_shapes(depth: int, width: float, tmp_path: Path):
    state = trunk(depth=depth, width=width)
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


def test_one_trunk_behind_an_unknown_prefix_is_not_ambiguous(tmp_path: Path):
    backbone = load_backbone(saved(tmp_path, under("my_net.", ONLINE | FC)))
    assert (backbone.prefix, backbone.format) == ("my_net.", "prefix")


def test_a_stranger_in_a_known_format_is_refused(tmp_path: Path):
    content = {"state_dict": FILES["MoCo v2"]["state_dict"] | {"stranger.weight": torch.ones(1)}}
    with pytest.raises(CheckpointError, match=r"nearest to a MoCo file.*1 .*'stranger\.weight'"):
        load_backbone(saved(tmp_path, content))


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
        ({"stem.conv1.weight": torch.ones(64, 3, 7, 7)}, "Detectron2's names"),
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
    changed = FILES["sslbench"] | {"arch": {"depth": 50, "width": 1.0}}
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load_backbone(saved(tmp_path, changed))
    newer = FILES["sslbench"] | {"version": 2}
    with pytest.raises(CheckpointError, match="version 2 of the pretraining format"):
        load_backbone(saved(tmp_path, newer))


def test_inspect_describes_both_branches(tmp_path: Path):
    found = inspect(saved(tmp_path, FILES["sslbench"]))
    assert found["recorded"] == {
        "format": "sslbench.pretrain",
        "version": 1,
        "epoch": 3,
        "step": 12,
    }
    assert found["branches"]["target"]["prefix"] == "target.backbone."
    assert found["branches"]["online"]["depth"] == 50
    alone = inspect(saved(tmp_path, FILES["torchvision"]))
    assert "without a target branch" in alone["branches"]["target"]
