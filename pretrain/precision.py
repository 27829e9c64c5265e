"""In which precision the networks run; everything around them stays in float32."""

import torch
from torch import Tensor

from pretrain.config import Precision


def at_least_fp32(values: Tensor) -> Tensor:
    """Widen bfloat16 to float32; float64 stays. Everything but the networks computes in this."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def resolved(precision: Precision, device: torch.device) -> Precision:
    """Say what ``auto`` means: bfloat16 on a GPU, float32 on the CPU."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Context for forward passes of the networks.

    bfloat16 has float32's range, so no loss scaling is needed; BatchNorm keeps its statistics in
    float32.
    """
    in_bf16 = resolved(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16)
