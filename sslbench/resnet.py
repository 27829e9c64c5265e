"""The ResNet trunk that every stage shares: torchvision's names, any width, named maps.

At width 1 it equals torchvision's ``resnet18/34/50/101`` without the classifier, bit for bit.
A thinner trunk scales every channel count alike (width 0.125 of a ResNet-50: stem 8,
``layer1`` 32, ``layer4`` 256).

Shape letters: B images, H x W pixels.
"""

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
LAYERS = ("layer1", "layer2", "layer3", "layer4")
STEM_CHANNELS = 64
PIXEL_MEAN = (123.675, 116.280, 103.530)  # ImageNet's statistics, RGB, values 0 to 255
PIXEL_STD = (58.395, 57.120, 57.375)

Norm = Callable[[int], nn.Module]


def resolve_layer(layer: str, depth: int) -> str:
    """Return ``layer``, or its stage's last block where this depth has fewer than ResNet-50.

    ``layer2.2`` of a ResNet-50 is ``layer2.1`` in a ResNet-18; a whole stage stays as it is.

    Raises:
        ValueError: neither this depth nor a ResNet-50 has such a block.
    """
    match = re.fullmatch(r"layer([1-4])(?:\.(\d+))?", layer)
    if match is None:
        raise ValueError(f"layer {layer!r} is not of the form 'layer2' or 'layer2.2' (stages 1-4)")
    if match[2] is None:
        return layer
    stage, block = int(match[1]) - 1, int(match[2])
    last = blocks_of(depth)[stage] - 1
    if block > max(last, blocks_of(50)[stage] - 1):
        raise ValueError(
            f"layer {layer!r} does not exist: layer{match[1]} of a ResNet-{depth} has the blocks "
            f"0 to {last}"
        )
    return f"layer{match[1]}.{min(int(match[2]), last)}"


def blocks_of(depth: int) -> tuple[int, ...]:
    """Number of blocks in each of the four stages."""
    if depth not in BLOCKS:
        raise ValueError(f"ResNet depth {depth} is unknown; known: {sorted(BLOCKS)}")
    return BLOCKS[depth]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet-18 and -34)."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)
        self.downsample = _shortcut(inputs, planes, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around a shortcut; the stride sits in the 3x3 ("v1.5")."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        out = self.relu(out)
        return out


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


class ResNet(nn.Module):
    """A ResNet without classifier that returns the maps it is asked for.

    Args:
        depth: 18, 34, 50 or 101.
        width: factor on every channel count; ``64 * width`` must be a whole number.
        norm: makes the normalisation of a given number of channels.
    """

    strides: ClassVar[dict[str, int]] = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}

    def __init__(self, depth: int = 50, width: float = 1.0, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        stem = stem_channels(width)
        self.depth, self.width = depth, width
        self._block: type[BasicBlock | Bottleneck] = Bottleneck if depth >= 50 else BasicBlock
        self._inputs = stem
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = norm(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for index, (name, blocks) in enumerate(zip(LAYERS, blocks_of(depth), strict=True)):
            stride = 1 if index == 0 else 2
            self.add_module(name, self._stage(stem * 2**index, blocks, stride, norm))
        self.apply(_initialise)

    def _stage(self, planes: int, blocks: int, stride: int, norm: Norm) -> nn.Sequential:
        modules = []
        for index in range(blocks):
            modules.append(self._block(self._inputs, planes, stride if index == 0 else 1, norm))
            self._inputs = planes * self._block.expansion
        return nn.Sequential(*modules)

    def channels(self, layer: str) -> int:
        """Number of channels of the map called ``layer`` (a stage or one of its blocks)."""
        stage = int(resolve_layer(layer, self.depth)[5])
        planes: int = stem_channels(self.width) * 2 ** (stage - 1)
        return planes * self._block.expansion

    def maps(self, images_B3HW: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Compute the named maps, and nothing beyond the deepest of them.

        Args:
            images_B3HW: normalised RGB images.
            layers: stages (``layer3``) or blocks (``layer2.2``) that exist at this depth.
        """
        wanted = self._checked(layers)
        found: dict[str, Tensor] = {}
        x = self.maxpool(self.relu(self.bn1(self.conv1(images_B3HW))))
        for stage in LAYERS:
            blocks = list(self.get_submodule(stage).children())
            for index, block in enumerate(blocks):
                x = block(x)
                names = {f"{stage}.{index}"} | ({stage} if index == len(blocks) - 1 else set())
                found |= {name: x for name in names & wanted}
                if len(found) == len(wanted):
                    return {name: found[name] for name in layers}
        raise AssertionError(f"layers {sorted(wanted - set(found))} were not reached")

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Compute the last map, ``layer4``."""
        return self.maps(images_B3HW, ("layer4",))["layer4"]

    def _checked(self, layers: Sequence[str]) -> set[str]:
        if not layers:
            raise ValueError("no layer was asked for")
        for layer in layers:
            nearest = resolve_layer(layer, self.depth)
            if nearest != layer:
                raise ValueError(
                    f"ResNet-{self.depth} has no {layer!r}; its nearest is {nearest!r}"
                )
        return set(layers)


def stem_channels(width: float) -> int:
    """Channels after the first convolution, from which all others follow."""
    channels = STEM_CHANNELS * width
    if channels < 1 or channels != int(channels):
        raise ValueError(f"width must be a positive multiple of 1/{STEM_CHANNELS}, got {width}")
    return int(channels)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
