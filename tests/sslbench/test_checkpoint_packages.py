"""Checkpoints that other packages write with their own code, where they are installed.

``pip install -e '.[packages]'``; CI does. Not only the names: the trunk's maps must be theirs.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from sslbench.checkpoint import CheckpointError, load_backbone
from sslbench.resnet import LAYERS
from sslbench.rng import seeded

TOLERANCE = 1e-5


@pytest.fixture
def images_BCHW() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def moved_statistics(network: nn.Module) -> nn.Module:
    """BatchNorm that does something, as after a training."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(generator=generator)
    return network.eval()


def test_timms_network_gives_the_same_maps(images_BCHW, tmp_path: Path):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[packages]'")
    for name in ("resnet18", "resnet34", "resnet50", "resnet101"):
        theirs = moved_statistics(timm.create_model(name, num_classes=10))
        torch.save(theirs.state_dict(), tmp_path / "timm.pth")
        found = load_backbone(tmp_path / "timm.pth")
        assert found.depth == int(name.removeprefix("resnet"))
        with torch.no_grad():
            expected = theirs.forward_features(images_BCHW)
            maps = found.build().maps(images_BCHW, ("layer4",))["layer4"]
        assert torch.allclose(maps, expected, atol=TOLERANCE * expected.abs().max())


def test_timms_saver_keeps_trained_and_averaged_weights_apart(tmp_path: Path):
    pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[packages]'")
    from timm import create_model
    from timm.utils import CheckpointSaver, ModelEmaV3

    with seeded(0, "timm"):
        model = create_model("resnet18", num_classes=10)
    average = ModelEmaV3(model, decay=0.5)
    nn.init.ones_(model.conv1.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3)
    path = next(tmp_path.glob("last*"))
    assert load_backbone(path).state["conv1.weight"].eq(1).all()
    assert not load_backbone(path, "target").state["conv1.weight"].eq(1).any()


@pytest.mark.parametrize(
    "name",
    [
        *("resnet50d", "resnet50c", "resnet50_gn", "seresnet50", "resnext50_32x4d"),
        *("wide_resnet50_2", "resnetv2_50", "vit_tiny_patch16_224"),
    ],
)
def test_timms_other_networks_are_refused(name: str, tmp_path: Path):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[packages]'")
    torch.save(timm.create_model(name).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path / "other.pth")


@pytest.mark.parametrize("with_classifier", [False, True])
@pytest.mark.parametrize(
    ("depth", "shape"),
    [
        (18, {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}),
        (50, {}),
    ],
)
def test_hugging_faces_network_gives_the_same_maps(
    depth: int, shape: dict, with_classifier: bool, images_BCHW, tmp_path: Path
):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[packages]'"
    )
    kind = "ResNetForImageClassification" if with_classifier else "ResNetModel"
    config = transformers.ResNetConfig(**shape)
    theirs = moved_statistics(getattr(transformers, kind)(config))
    theirs.save_pretrained(tmp_path)
    found = load_backbone(tmp_path / "model.safetensors")
    assert found.depth == depth
    with torch.no_grad():
        expected = theirs(images_BCHW, output_hidden_states=True).hidden_states[1:]
        maps = found.build().maps(images_BCHW, LAYERS)
    for layer, wanted in zip(LAYERS, expected, strict=True):
        assert torch.allclose(maps[layer], wanted, atol=TOLERANCE * wanted.abs().max())


def test_hugging_faces_stride_in_the_1x1_is_refused(tmp_path: Path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[packages]'"
    )
    config = transformers.ResNetConfig(downsample_in_bottleneck=True)
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="downsample_in_bottleneck"):
        load_backbone(tmp_path / "model.safetensors")


def lightly_method(method: str, resnet: nn.Module, copy: nn.Module) -> nn.Module:
    """One of lightly's examples: the names of its parts, and its own heads."""
    from lightly.models.modules import heads

    def trunk(network: nn.Module) -> nn.Sequential:
        return nn.Sequential(*list(network.children())[:-1])

    model = nn.Module()
    if method == "byol":
        model.backbone, model.backbone_momentum = trunk(resnet), trunk(copy)
        model.projection_head = heads.BYOLProjectionHead(512, 64, 32)
        model.prediction_head = heads.BYOLPredictionHead(32, 64, 32)
        model.projection_head_momentum = heads.BYOLProjectionHead(512, 64, 32)
    elif method == "dino":
        model.student_backbone, model.teacher_backbone = trunk(resnet), trunk(copy)
        model.student_head = heads.DINOProjectionHead(512, 64, 32, 16)
        model.teacher_head = heads.DINOProjectionHead(512, 64, 32, 16)
    else:
        model.backbone, model.key_backbone = resnet, copy
        model.backbone.fc = model.key_backbone.fc = nn.Identity()
        model.projection_head = heads.MoCoProjectionHead(512, 64, 32)
        model.key_projection_head = heads.MoCoProjectionHead(512, 64, 32)
    return model


@pytest.mark.parametrize("method", ["byol", "dino", "moco"])
def test_lightlys_methods_give_both_branches(method: str, images_BCHW, tmp_path: Path):
    pytest.importorskip("lightly", reason="lightly is not installed: pip install -e '.[packages]'")
    from torchvision.models import resnet18

    with seeded(0, "lightly"):
        networks = [moved_statistics(resnet18()) for _ in range(2)]
    with torch.no_grad():
        expected = [nn.Sequential(*list(n.children())[:-2])(images_BCHW) for n in networks]
    torch.save(lightly_method(method, *networks).state_dict(), tmp_path / "lightly.pth")
    for branch, wanted in zip(("online", "target"), expected, strict=True):
        found = load_backbone(tmp_path / "lightly.pth", branch)
        with torch.no_grad():
            maps = found.build().maps(images_BCHW, ("layer4",))["layer4"]
        assert found.format.startswith("lightly")
        assert torch.allclose(maps, wanted, atol=TOLERANCE * wanted.abs().max())


def test_byol_pytorchs_learner_gives_both_branches(tmp_path: Path):
    byol = pytest.importorskip(
        "byol_pytorch", reason="byol-pytorch is not installed: pip install -e '.[packages]'"
    )
    from torchvision.models import resnet18

    with seeded(0, "byol-pytorch"):
        network = resnet18()
        learner = byol.BYOL(network, image_size=32, hidden_layer="avgpool")
    nn.init.ones_(network.conv1.weight)
    torch.save(learner.state_dict(), tmp_path / "learner.pt")
    assert load_backbone(tmp_path / "learner.pt").state["conv1.weight"].eq(1).all()
    target = load_backbone(tmp_path / "learner.pt", "target")
    assert (target.format, target.prefix) == ("byol-pytorch", "target_encoder.net.")
    assert not target.state["conv1.weight"].eq(1).any()
