"""torchvision's side of the parity check: its own ResNet, of any width, with the written weights.

It shares nothing with our trunk but the names, which are torchvision's.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslbench.resnet import BLOCKS, LAYERS
from transfer.engines.loading import tensors
from transfer.naming import STAGES
from transfer.weights import Arrays, WeightsError, load_weights


@torch.no_grad()
def maps(weights_path: Path, pictures: list[Path]) -> tuple[str, dict[str, Tensor]]:
    """Load the file into torchvision's network and run its trunk; also name the version."""
    import torchvision

    arrays, metadata = load_weights(weights_path)
    network = _network(metadata["depth"], arrays["conv1.weight"].shape[0])
    _load(network, arrays)
    images = _images(pictures, metadata)
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    found = {}
    for layer in LAYERS:
        x = found[STAGES[layer]] = network.get_submodule(layer)(x)
    return f"torchvision {torchvision.__version__}", found


def _network(depth: int, stem: int) -> Any:
    """torchvision's ResNet, its stages built anew by its own method where the stem is not 64."""
    from torchvision.models import resnet

    block = resnet.Bottleneck if depth >= 50 else resnet.BasicBlock
    blocks = BLOCKS[depth]
    with torch.device("meta"):  # every tensor that the maps need comes from the file
        network = resnet.ResNet(block, list(blocks))
        if stem != network.conv1.out_channels:
            network.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
            network.bn1 = nn.BatchNorm2d(stem)
            network.inplanes = stem
            for index, layer in enumerate(LAYERS):
                planes, stride = stem * 2**index, 1 if index == 0 else 2
                made = network._make_layer(block, planes, blocks[index], stride=stride)
                network.add_module(layer, made)
    return network.eval()


def _load(network: nn.Module, arrays: Arrays) -> None:
    lost = network.load_state_dict(tensors(arrays), strict=False, assign=True)
    missing = [
        name
        for name in lost.missing_keys
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    ]
    if missing or lost.unexpected_keys:
        raise WeightsError(
            f"torchvision has no place for {len(lost.unexpected_keys)} of the written weights "
            f"(e.g. {lost.unexpected_keys[:3]}) and got none for {len(missing)} (e.g. "
            f"{missing[:3]})"
        )


def _images(pictures: list[Path], metadata: dict[str, Any]) -> Tensor:
    """Read and normalise as torchvision does, but on the scale of 0 to 255."""
    from PIL import Image
    from torchvision.transforms import functional

    images = []
    for path in pictures:
        with Image.open(path) as picture:
            rgb = np.array(picture.convert("RGB"))
        seen = rgb if metadata["format"] == "RGB" else rgb[:, :, ::-1].copy()
        pixels = torch.from_numpy(seen).permute(2, 0, 1).float()
        images.append(functional.normalize(pixels, metadata["pixel_mean"], metadata["pixel_std"]))
    return torch.stack(images)
