"""What training minimises."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the binary cross-entropy, in float32.

    **Shape** logits, label, weight ``(B,)`` -> scalar. ``label`` may be a probability.

    **Example**

    >>> import torch
    >>> cross_entropy(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.ones(2)).item()  # ln 2
    0.6931471824645996
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), label, weight, reduction="sum")
    return losses / weight.sum().clamp_min(1e-12)
