"""The trunk of a checkpoint as the run that saved it had it."""

from pathlib import Path

from sslbench.checkpoint import load_backbone
from sslbench.resnet import ResNet


def read_network(checkpoint: Path, branch: str = "online") -> ResNet:
    """Build the trunk in eval mode, BatchNorm's counters included: ``weights_id`` counts them too.

    Args:
        checkpoint: a file of any known format.
        branch: ``online``, ``target``, or the prefix in front of ``conv1.weight``.

    Raises:
        CheckpointError: the file does not hold exactly such a trunk.
    """
    found = load_backbone(checkpoint, branch)
    network = found.build()
    network.load_state_dict(dict(found.counters), strict=False)
    return network
