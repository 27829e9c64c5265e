"""In which precision the networks run; everything around them stays in float32."""

import torch
from torch import Tensor

from pretrain.config import Precision


def at_least_fp32(values: Tensor) -> Tensor:
    """Widen bfloat16 to float32; float64 stays. Everything but the networks computes in this."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Context for forward passes of the networks.

    ``auto`` is bfloat16 on a GPU and float32 on the CPU. bfloat16 has float32's range, so no loss
    scaling is needed; torch keeps BatchNorm's statistics in float32.
    """
    in_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16)
