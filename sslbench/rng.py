"""Every random draw comes from (seed, purpose, indices), so that no restart can shift it."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Hash the draw's identity to an integer in [0, 2**63)."""
    identity = ":".join([str(int(seed)), purpose, *(str(int(i)) for i in indices)])
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return a NumPy generator for one purpose and place."""
    return np.random.default_rng(derive_seed(seed, purpose, *indices))


def torch_generator(seed: int, purpose: str, *indices: int) -> "torch.Generator":
    """Return a torch CPU generator for one purpose and place."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


@contextlib.contextmanager
def seeded(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seed the global generators inside the block and restore them after it.

    For third-party code that draws from them (Detectron2's mapper, torchvision's RPN sampler).
    """
    import torch

    value = derive_seed(seed, purpose, *indices)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda_devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(cuda_devices)):
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.manual_seed(value)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
