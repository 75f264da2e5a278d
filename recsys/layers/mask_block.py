"""The instance-guided mask of MaskNet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.dropout import Dropout
from recsys.layers.init import linear
from recsys.layers.mlp import Activation, activation_layer


class FieldNorm(nn.Module):
    """Layer normalisation of each field's vector, with a gain and a bias of its own per field.

    **Shape** ``(B, F, D) -> (B, F, D)``.

    **Example**

    >>> FieldNorm(num_fields=1, dim=2)(torch.tensor([[[100.0, 300.0]]])).round().tolist()
    [[[-1.0, 1.0]]]
    """

    def __init__(self, *, num_fields: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(num_fields, dim))
        self.bias = nn.Parameter(torch.zeros(num_fields, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, [self.dim]), self.weight)  # (B, F, D)


class MaskBlock(nn.Module):
    """``act(LN(W_h (mask * h)))`` with ``mask = W_2 relu(W_1 e + b_1) + b_2``.

    The mask is computed from the row's field vectors ``e`` and multiplies the input ``h``: a
    product of features that additive layers lack. ``reduction_ratio``: width of the mask's hidden
    layer over that of ``h`` (``b_1`` has ``int(ratio * input_dim)`` numbers). ``dropout``:
    probability of dropping an output. Wang et al., MaskNet, DLP-KDD 2021,
    https://arxiv.org/abs/2102.07619.

    **Shape** ``e (B, mask_dim), h (B, input_dim) -> (B, output_dim)``.

    **Example**

    >>> block = MaskBlock(mask_dim=6, input_dim=4, output_dim=3)
    >>> block(torch.zeros(2, 6), torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        *,
        mask_dim: int,
        input_dim: int,
        output_dim: int,
        reduction_ratio: float = 1.0,
        activation: Activation = "relu",
        dropout: float = 0.0,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(reduction_ratio * input_dim)
        assert hidden >= 1, (reduction_ratio, input_dim)
        self.mask = nn.Sequential(
            linear(mask_dim, hidden), nn.ReLU(inplace=True), linear(hidden, input_dim)
        )
        parts: list[nn.Module] = [linear(input_dim, output_dim, bias=False)]
        if layer_norm:
            parts.append(nn.LayerNorm(output_dim))
        parts.append(activation_layer(activation, output_dim))
        if dropout > 0:
            parts.append(Dropout(dropout))
        self.hidden = nn.Sequential(*parts)

    def forward(self, e: Tensor, h: Tensor) -> Tensor:
        return self.hidden(self.mask(e) * h)  # (B, output_dim)
