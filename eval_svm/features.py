"""Frozen features of all images of a split, kept in parts that survive a kill."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from sslbench.features import CentreCrops, crop_features
from sslbench.files import atomic_path, write_array
from sslbench.loading import start_loading
from sslbench.log import RunLog
from sslbench.resnet import ResNet

BATCHES_PER_PART = 16  # a kill costs at most so many batches

Features = npt.NDArray[np.float32]


def extract(
    network: ResNet,
    crops: CentreCrops,
    folder: Path,
    *,
    grid: int,
    batch_size: int,
    device: str,
    num_workers: int,
    log: RunLog,
) -> Features:
    """Compute the features of all images, keeping finished parts in ``folder``.

    Parts hold whole batches, so that a continued run puts the same images together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step = batch_size * BATCHES_PER_PART
    starts = range(0, len(crops), step)
    network = network.to(device).eval()
    parts = []
    with log.progress(len(crops), f"features of {folder.name}") as bar:
        for start in starts:
            path = folder / f"{start:07d}.npy"
            if not path.exists():
                chosen = range(start, min(start + step, len(crops)))
                subset = CentreCrops([crops.paths[i] for i in chosen], crops.resize, crops.crop)
                batches = start_loading(subset, batch_size=batch_size, num_workers=num_workers)
                part = [crop_features(network, batch, grid).cpu().numpy() for batch in batches]
                _save(path, np.concatenate(part))
            parts.append(np.load(path))
            bar.advance(len(parts[-1]))
    return np.concatenate(parts)


def _save(path: Path, features: Features) -> None:
    with atomic_path(path) as scratch:
        write_array(scratch, features)


def state_digest(state: Mapping[str, Tensor] | nn.Module) -> str:
    """Hash every parameter and buffer, to show that frozen means frozen."""
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
