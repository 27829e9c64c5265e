"""A ResNet trunk under Detectron2's names, written as plain functions of a dictionary of arrays.

It stands in for Detectron2 in the parity check where that is not installed, and knows nothing of
torchvision's names: an error in the renaming cannot cancel out here.

Shape letters: B images, C channels, H x W pixels.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # of every BatchNorm


class Detectron2Trunk:
    """The trunk of a detector as Detectron2 computes it.

    Args:
        arrays: weights under the detector's names; names outside the trunk are not touched.
        trunk: what stands in front of ``stem`` and ``res2`` to ``res4``.
        last_stage: what stands in front of the blocks of ``res5``.
        pixel_mean: of the channels in the order of the images, 0 to 255.
        pixel_std: likewise.
        stride_in_1x1: a bottleneck strides in its first convolution, as MSRA's did, and not in the
            3x3; the tensors are the same.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        trunk: str,
        last_stage: str,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        stride_in_1x1: bool = False,
    ) -> None:
        self._tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        self._stages = {f"res{i}": f"{trunk}res{i}." for i in (2, 3, 4)} | {"res5": last_stage}
        self._stem = f"{trunk}stem.conv1"
        self._stride_in_1x1 = stride_in_1x1
        self._mean = torch.tensor(pixel_mean).view(-1, 1, 1)
        self._std = torch.tensor(pixel_std).view(-1, 1, 1)

    @torch.no_grad()
    def maps(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Compute ``res2`` to ``res5`` of images with values 0 to 255."""
        x = (images_BCHW.float() - self._mean) / self._std
        x = F.relu(self._convolve(x, self._stem, stride=2, padding=3))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        found = {}
        for stage, prefix in self._stages.items():
            for block in range(self._num_blocks(prefix)):
                stride = 2 if block == 0 and stage != "res2" else 1
                x = self._block(x, f"{prefix}{block}.", stride)
            found[stage] = x
        return found

    def _num_blocks(self, prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        return 1 + max(int(m[1]) for name in self._tensors if (m := pattern.match(name)))

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        if f"{name}conv3.weight" in self._tensors:
            first, second = (stride, 1) if self._stride_in_1x1 else (1, stride)
            out = F.relu(self._convolve(x, f"{name}conv1", stride=first))
            out = F.relu(self._convolve(out, f"{name}conv2", stride=second, padding=1))
            out = self._convolve(out, f"{name}conv3")
        else:
            out = F.relu(self._convolve(x, f"{name}conv1", stride=stride, padding=1))
            out = self._convolve(out, f"{name}conv2", padding=1)
        if f"{name}shortcut.weight" in self._tensors:
            x = self._convolve(x, f"{name}shortcut", stride=stride)
        return F.relu(out + x)

    def _convolve(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, self._tensors[f"{name}.weight"], stride=stride, padding=padding)
        weight, bias, mean, variance = (
            self._tensors[f"{name}.norm.{stat}"]
            for stat in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=EPSILON)
