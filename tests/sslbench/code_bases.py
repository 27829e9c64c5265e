"""Synthetic files with the exact keys and containers of every code base, for the format tests.

``key_lists.json`` holds the keys that instantiated models of each code base have beside their
trunks (``<W>`` weight and bias, ``<N>`` the five of BatchNorm, ``<S>`` its statistics), and where
each list comes from. Containers follow the saving code of the same sources. The trunks' own names
are spelled out here by plain loops, or by the library itself, without the reader's table of names.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from sslbench.resnet import ResNet

State = dict[str, torch.Tensor]
BLOCKS = (3, 4, 23, 3)  # of a ResNet-101, whose names comprise all others'
STATS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ENDS = {"<W>": STATS[:2], "<N>": STATS, "<S>": STATS[2:]}
KEY_LISTS = json.loads(Path(__file__).with_name("key_lists.json").read_text())


def trunk(seed: int, depth: int = 50, width: float = 0.125) -> State:
    """A trunk under torchvision's names with values that differ everywhere."""
    generator = torch.Generator().manual_seed(seed)
    state = ResNet(depth, width).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.normal_(generator=generator)
    return dict(state)


def canonical(state: State) -> State:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def as_sequential(state: State) -> State:
    """Let PyTorch number the children of torchvision's network."""
    return {numbered()[name]: value for name, value in state.items()}


@cache
def numbered() -> dict[str, str]:
    with torch.device("meta"):
        network = TorchvisionResNet(Bottleneck, BLOCKS)
    children = nn.Sequential(*list(network.children())[:-1]).state_dict()
    theirs = [name for name in network.state_dict() if not name.startswith("fc.")]
    return dict(zip(theirs, children, strict=True))


def as_detectron2(state: State) -> State:
    """Detectron2's names, as its own converter's chain of replacements would give them."""
    renamed = {}
    for name, value in state.items():
        key = name if name.startswith("layer") else f"stem.{name}"
        for stage in (4, 3, 2, 1):
            key = key.replace(f"layer{stage}", f"res{stage + 1}")
        for index in (1, 2, 3):
            key = key.replace(f"bn{index}", f"conv{index}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[key] = value
    return renamed


def as_hugging_face(state: State) -> State:
    pairs = [("conv1", "embedder.embedder.convolution"), ("bn1", "embedder.embedder.normalization")]
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            ours = f"layer{stage + 1}.{block}"
            theirs = f"encoder.stages.{stage}.layers.{block}"
            for index in range(3):
                inner = f"{theirs}.layer.{index}"
                pairs += [(f"{ours}.conv{index + 1}", f"{inner}.convolution")]
                pairs += [(f"{ours}.bn{index + 1}", f"{inner}.normalization")]
            pairs += [(f"{ours}.downsample.0", f"{theirs}.shortcut.convolution")]
            pairs += [(f"{ours}.downsample.1", f"{theirs}.shortcut.normalization")]
    modules = dict(pairs)
    split = [(name.rpartition("."), value) for name, value in state.items()]
    return {f"{modules[module]}.{end}": value for (module, _, end), value in split}


NAMED: dict[str, Callable[[State], State]] = {
    "torchvision": dict,
    "sequential": as_sequential,
    "huggingface": as_hugging_face,
    "detectron2 without counters": lambda state: as_detectron2(canonical(state)),
}


def expanded(keys: list[str]) -> list[str]:
    found = []
    for key in keys:
        ends = ENDS.get(key[-3:])
        found += [key[:-3] + end for end in ends] if ends else [key]
    return found


def model_state(name: str, online: State, target: State) -> State:
    """The whole state dict of one key list."""
    listed = KEY_LISTS[name]
    state: State = {}
    for prefix, (branch, scheme) in listed["trunks"].items():
        state |= under(prefix, NAMED[scheme](online if branch == "online" else target))
    return state | {key: torch.full((2,), 7.0) for key in expanded(listed["others"])}


def ddp(state: State) -> State:
    return under("module.", state)


OPTIONS = argparse.Namespace(arch="resnet50", lr=0.1)
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


def fair(state: State) -> dict[str, Any]:
    return {"epoch": 9, "arch": "resnet50", "state_dict": ddp(state), "optimizer": OPTIMIZER}


def mmcv(state: State) -> dict[str, Any]:
    return {"meta": {"epoch": 9, "iter": 99}, "state_dict": state, "optimizer": OPTIMIZER}


def swin_like(state: State) -> dict[str, Any]:
    return {
        **{"opt": OPTIONS, "model": ddp(state), "optimizer": OPTIMIZER},
        **{"scheduler": {}, "epoch": 9, "amp": {}},
    }


def lightning(state: State) -> dict[str, Any]:
    return {
        **{"epoch": 9, "global_step": 99, "pytorch-lightning_version": "2.6.6"},
        **{"state_dict": state, "loops": {}, "callbacks": {}, "optimizer_states": [OPTIMIZER]},
        **{"lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"batch": 4}},
    }


def contrast(state: State) -> dict[str, Any]:
    return {
        **{"model": ddp(state), "contrast": {"memory": torch.zeros(4, 8)}},
        **{"optimizer": OPTIMIZER, "epoch": 9},
    }


def virtex(state: State) -> dict[str, Any]:
    return {"model": state, "optimizer": OPTIMIZER, "scheduler": {}, "scaler": {}, "iteration": 9}


# The saving code of each family, by the first word of a key list's name.
CONTAINERS: dict[str, Callable[[State], dict[str, Any]]] = {
    **dict.fromkeys(("MoCo", "ReSim", "SimSiam", "LEWEL", "PLRC"), fair),
    **dict.fromkeys(("OpenSelfSup", "DenseCL", "ORL", "mmpretrain"), mmcv),
    **dict.fromkeys(("PixPro", "SoCo"), swin_like),
    "PyContrast": contrast,
    "detectron2": lambda state: {"model": state, "__author__": "torchvision"},
    **dict.fromkeys(("timm", "hf", "byol-pytorch"), dict),
    **dict.fromkeys(("lightly", "solo-learn"), lightning),
    **dict.fromkeys(
        ("SwAV", "DeepCluster-v2"),
        lambda state: {"epoch": 9, "state_dict": ddp(state), "optimizer": OPTIMIZER},
    ),
    **dict.fromkeys(
        ("Barlow", "VICReg", "VICRegL"),
        lambda state: {"epoch": 9, "model": ddp(state), "optimizer": OPTIMIZER},
    ),
    "VirTex": virtex,
    "CYBORGS": lambda state: {"state_dict": state, "optimizer": OPTIMIZER, "epoch": 9},
    "SeLa": lambda state: fair(state) | {"L": torch.zeros(4)},
}


@dataclass(frozen=True)
class Sample:
    """A file of one code base: its content, its format's name, and the branches that it has."""

    content: Any
    format: str
    branches: tuple[str, ...] = ("online",)
    in_pickle: bool = False  # with classes or arrays that only --allow-pickle reads


def samples(online: State, target: State) -> dict[str, Sample]:
    """One file for every key list, and those whose containers hold the branches apart."""
    found = {}
    for name, listed in KEY_LISTS.items():
        word = name.split()[0]
        if word == "DINO":  # its two branches lie in two containers, below
            continue
        content = CONTAINERS[word](model_state(name, online, target))
        branches = sorted({branch for branch, _ in listed["trunks"].values()})
        found[name] = Sample(content, FORMAT_OF.get(name, FORMAT_OF.get(word, word)), (*branches,))
    return found | by_container(online, target) | trunks_alone(online)


# What the reader calls them, where that is not the first word of the list's name.
FORMAT_OF = {
    "MoCo": "MoCo v1/v2",
    "MoCo v3": "MoCo v3",
    "detectron2": "Detectron2",
    "timm": "torchvision",
    "hf": "Hugging Face",
    "lightly example dino.py": "lightly DINO",
    "lightly benchmark dino": "lightly DINO",
    "DeepCluster-v2": "SwAV",
    "Barlow": "Barlow Twins",
    "VICRegL": "VICReg",
    # the same keys as an older relative's, which comes first
    "mmpretrain simclr_resnet50_16xb256-coslr-200e_in1k": "OpenSelfSup",
    "mmpretrain simsiam_resnet50_8xb32-coslr-100e_in1k": "mmselfsup 0.x",
}


def by_container(online: State, target: State) -> dict[str, Sample]:
    """Files whose branches lie in containers of their own, or whose keys were only read."""
    both = ("online", "target")
    moco = model_state("MoCo v2", online, target)
    head = {k: torch.ones(2) for k in expanded(KEY_LISTS["DINO one branch"]["others"])}
    dino = [ddp(under("backbone.", state) | head) for state in (online, target)]
    fc = {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
    neck = {f"{n}.{k}": torch.ones(2) for n in ("neck", "online_net.1") for k in ("fc0.weight",)}
    blocks = under("_feature_blocks.", online)
    vissl_heads = {"0.clf.0.weight": torch.ones(2), "0.clf.0.bias": torch.ones(2)}
    base_model = {"model": {"trunk": blocks, "heads": vissl_heads}, "meta": {"trunk": {}}}
    moco_loss = under("moco_encoder.trunk._feature_blocks.", target) | {
        **under("moco_encoder.heads.", vissl_heads),
        **{"queue": torch.ones(2), "queue_ptr": torch.ones(1)},
    }
    pycontrast = model_state("PyContrast RGBSingleHeadmlp", online, target)
    insloc = under("backbone.", online) | under("backbone_k.", target)
    moved = {
        k.replace("backbone_k.layer4", "roi_head_k.shared_head.layer4").replace(
            "backbone.layer4", "roi_head.shared_head.layer4"
        ): v
        for k, v in insloc.items()
    }
    insloc_heads = dict.fromkeys(
        ("neck.lateral_convs.0.conv.weight", "roi_head_k.bbox_head.fc_cls.bias", "queues", "queue"),
        torch.ones(2),
    )
    scrl_head = {"projector.net.0.weight": torch.ones(2), "projector.net.1.bias": torch.ones(2)}
    plain_mm = model_state("mmpretrain swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px",
                           online, target)  # fmt: skip
    averaged = plain_mm | under("backbone.", target)
    old_solo = {
        key.replace("backbone.", "encoder.", 1): value
        for key, value in model_state("solo-learn mocov2plus", online, target).items()
    }
    ours = under("online.backbone.", online) | under("target.backbone.", target)
    arch = {"depth": 50, "width": online["conv1.weight"].shape[0] / 64}
    return {
        "this suite's own": Sample(
            {"format": "sslbench.pretrain", "version": 1, "arch": arch, "model": ours}, "sslbench",
            both,
        ),
        "solo-learn 1.0.2": Sample(lightning(old_solo), "solo-learn", both),
        "CAST": Sample(
            {"state_dict": moco, "optimizer": OPTIMIZER, "epoch": 9}, "MoCo v1/v2", both
        ),
        "MoCo v1": Sample(
            fair(under("encoder_q.", online | fc) | under("encoder_k.", target | fc)),
            "MoCo v1/v2",
            both,
        ),
        "MoCo, released": Sample(
            {"state_dict": ddp(under("encoder_q.", online | fc))}, "MoCo v1/v2"
        ),
        "MoCo, linear probe": Sample(fair(online | fc) | {"best_acc1": 1.0}, "torchvision"),
        "torchvision's references": Sample(
            {"model": online | fc, "model_ema": ddp(target | fc) | {"n_averaged": torch.ones(())},
             "optimizer": OPTIMIZER, "epoch": 9, "args": OPTIONS},
            "torchvision", both,
        ),
        "timm's train.py": Sample(
            {"epoch": 9, "arch": "resnet50", "state_dict": online | fc, "version": 2,
             "state_dict_ema": target | fc, "optimizer": OPTIMIZER, "args": OPTIONS},
            "timm", both,
        ),
        "DINO": Sample(
            {"student": dino[0], "teacher": dino[1], "optimizer": OPTIMIZER, "epoch": 9,
             "args": OPTIONS, "dino_loss": {"center": torch.zeros(1, 8)}},
            "DINO", both,
        ),
        "PyContrast with momentum": Sample(
            contrast(pycontrast) | {"model_ema": under("encoder.", target)}, "PyContrast", both
        ),
        "mmselfsup 0.x": Sample(
            mmcv(under("backbone.", online) | under("online_net.0.", online)
                 | under("target_net.0.", target) | neck
                 | {"head.predictor.fc1.bias": torch.ones(2)}),
            "mmselfsup 0.x", both,
        ),
        "mmengine's EMAHook": Sample(
            mmcv(averaged) | {"ema_state_dict": ddp(plain_mm) | {"steps": torch.ones(())}},
            "mmpretrain with EMAHook", both,
        ),
        "VISSL MoCo": Sample(
            {"phase_idx": 1, "iteration": 9, "loss": moco_loss, "type": "consolidated",
             "classy_state_dict": {"train": True, "base_model": base_model, "meters": [],
                                   "optimizer": OPTIMIZER}},
            "VISSL", both,
        ),
        "VISSL model_state_dict": Sample({"model_state_dict": blocks}, "VISSL"),
        "InsLoc FPN": Sample(mmcv(insloc | insloc_heads), "InsLoc", both),
        "InsLoc C4": Sample(mmcv(moved | insloc_heads), "InsLoc", both),
        "SCRL": Sample(
            {"tag": "x", "epoch": 9, "optimizer_state_dict": OPTIMIZER,
             "online_network_state_dict": under("encoder.", as_sequential(online)) | scrl_head,
             "target_network_state_dict": under("encoder.", as_sequential(target)) | scrl_head},
            "SCRL", both,
        ),
        "MoCo's converter to Detectron2": Sample(
            {"model": {k: v.numpy() for k, v in as_detectron2(online | fc).items()},
             "__author__": "MOCO", "matching_heuristics": True},
            "Detectron2", in_pickle=True,
        ),
        "BYOL of DeepMind": Sample(deepmind(online, target), "BYOL of DeepMind", both, True),
    }  # fmt: skip


def trunks_alone(online: State) -> dict[str, Sample]:
    """Released trunks without anything beside them."""
    return {
        "CYBORGS, stripped": Sample({"state_dict": online}, "torchvision"),
        "extracted by OpenSelfSup, DenseCL, ORL, DetCo": Sample(
            {"state_dict": online, "author": "OpenSelfSup"}, "torchvision"
        ),
        "SwAV, released": Sample(
            ddp(online | {"prototypes.weight": torch.ones(2)}), "SwAV"
        ),
        "without counters": Sample(canonical(online), "torchvision"),
        "children by number": Sample(as_sequential(online), "children by number"),
    }  # fmt: skip


def haiku_trees(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and averages as Haiku nests them, arrays in its order of axes."""
    parameters: dict[str, Any] = {}
    averages: dict[str, Any] = {}
    modules = {"conv1": "initial_conv", "bn1": "initial_batchnorm"}
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            ours = f"layer{stage + 1}.{block}"
            theirs = f"block_group_{stage}/~/block_{block}/~"
            for index in range(3):
                modules[f"{ours}.conv{index + 1}"] = f"{theirs}/conv_{index}"
                modules[f"{ours}.bn{index + 1}"] = f"{theirs}/batchnorm_{index}"
            modules[f"{ours}.downsample.0"] = f"{theirs}/shortcut_conv"
            modules[f"{ours}.downsample.1"] = f"{theirs}/shortcut_batchnorm"
    ends = {"weight": "scale", "bias": "offset", "running_mean": "mean", "running_var": "var"}
    for name, value in canonical(state).items():
        ours, _, end = name.rpartition(".")
        module = f"res_net50/~/{modules[ours]}"
        if value.ndim == 4:
            parameters[module] = {"w": value.permute(2, 3, 1, 0).contiguous().numpy()}
        elif end in ("weight", "bias"):
            parameters.setdefault(module, {})[ends[end]] = value.reshape(1, 1, 1, -1).numpy()
        else:
            average = value.reshape(1, 1, 1, -1).numpy()
            averages[f"{module}/~/{ends[end]}_ema"] = {
                "hidden": average * 0.5,
                "average": average,
                "counter": torch.tensor(9).numpy(),
            }
    parameters["projector/linear"] = {"w": torch.ones(2, 2).numpy(), "b": torch.ones(2).numpy()}
    averages["projector/batch_norm/~/mean_ema"] = {"average": torch.ones(1, 2).numpy()}
    return parameters, averages


def deepmind(online: State, target: State) -> dict[str, Any]:
    """What BYOL's experiment dumps; its named tuple is a plain one to who lacks the class."""
    (ours, our_state), (theirs, their_state) = haiku_trees(online), haiku_trees(target)
    momentum = {k: {n: v * 0 for n, v in tree.items()} for k, tree in ours.items()}
    state = (ours, theirs, our_state, their_state, (momentum,))
    return {"experiment_state": state, "step": 9, "rng": torch.zeros(2).numpy()}
