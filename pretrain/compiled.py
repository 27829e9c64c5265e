"""The trunk's forward pass through ``torch.compile``, without a trace in modules or checkpoints."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sslbench import dist
from sslbench.config import ConfigError
from sslbench.resnet import ResNet

Maps = Callable[[ResNet, Tensor, Sequence[str]], dict[str, Tensor]]

BACKEND = "inductor"
MAX_GRAPHS = 32  # two branches, three sets of layers, other sizes while a run is estimated


def trunk_maps(*, compiled: bool) -> Maps:
    """Return ``ResNet.maps`` as a function of the trunk, or the same compiled.

    The function is compiled, not a module: parameters keep their names, and whoever calls a trunk
    himself (mask making with its many image sizes, the probe) gets it as it is. Each set of layers
    makes a graph that ends at the deepest of them.

    Raises:
        ConfigError: there are several processes, whose BatchNorm speaks within the pass.
    """
    if not compiled:
        return ResNet.maps
    if dist.world_size() > 1:
        raise ConfigError(
            f"compile=true works in one process, but there are {dist.world_size()}: BatchNorm "
            "exchanges statistics in the middle of what would be compiled. Set compile=false"
        )
    # Beyond its limit dynamo goes on uncompiled with no more than a warning.
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, MAX_GRAPHS)
    maps: Maps = torch.compile(ResNet.maps, dynamic=False, fullgraph=True, backend=BACKEND)
    return maps
