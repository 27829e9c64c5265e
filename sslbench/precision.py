"""In which precision the networks run; everything around them stays in float32."""

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_fp32(values: Tensor) -> Tensor:
    """Widen 16-bit numbers to float32; float64 stays. Everything but the networks computes in
    this.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def resolved(precision: Precision, device: torch.device) -> Precision:
    """Say what ``auto`` means: bfloat16 on a GPU, float32 on the CPU."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Context for forward passes of the networks; BatchNorm keeps its statistics in float32.

    bfloat16 has float32's range, so that no loss scaling is needed; float16 needs it.
    """
    dtype = DTYPES[resolved(precision, device)]
    if dtype == torch.float32:
        return torch.autocast(device.type, torch.bfloat16, enabled=False)
    return torch.autocast(device.type, dtype)
