"""Log-space functions that several losses share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def log1mexp(logp: torch.Tensor, floor: float) -> torch.Tensor:
    """log(1 - p) from log p, exact near both ends; where p is 1 in this dtype, the log of ``floor``, without gradient."""
    import torch

    one = logp == 0
    safe = torch.where(one, -1.0, logp)
    small = safe < -math.log(2)
    near_one = torch.log(-torch.expm1(torch.where(small, -1.0, safe)))
    far = torch.log1p(-torch.exp(torch.where(small, safe, -1.0)))
    return torch.where(one, math.log(floor), torch.where(small, far, near_one))
