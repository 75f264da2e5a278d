"""Attention of a candidate over a history: the local activation unit of DIN."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.init import linear
from recsys.layers.mlp import MLP, Activation, activation_layer


class TargetAttention(nn.Module):
    """``u = sum_t w_t h_t`` over the valid positions of a history, weighted by its candidate ``v``.

    ``a_t = MLP([v, h_t, v - h_t, v * h_t])``; the weights ``w_t`` are ``a_t`` themselves, which
    keeps the intensity of an interest (the paper), or with ``softmax`` those of ``a_t / sqrt(d)``
    (the official code). An empty history gives exact zeros. In training the MLP sees the valid
    positions alone: no padding enters the statistics of Dice.
    Zhou et al., Deep Interest Network, KDD 2018, https://arxiv.org/abs/1706.06978.

    **Shape** candidate ``(B, d)``, history ``(B, L, d)``, mask ``(B, L)`` -> ``(B, d)``.

    **Example**

    >>> import torch
    >>> unit = TargetAttention(input_dim=4, hidden_units=(8,))
    >>> unit(torch.ones(2, 4), torch.ones(2, 3, 4), torch.ones(2, 3) > 0).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_units: Sequence[int],
        activation: Activation = "dice",
        softmax: bool = False,
    ) -> None:
        super().__init__()
        self.scale = input_dim**-0.5
        self.softmax = softmax
        # Finite: the softmax of a history without positions holds numbers and no NaN.
        self.lowest = torch.finfo(torch.float32).min
        self.first = linear(4 * input_dim, hidden_units[0])
        self.rest = nn.Sequential(
            activation_layer(activation, hidden_units[0]),
            MLP(
                input_dim=hidden_units[0],
                hidden_units=hidden_units[1:],
                activation=activation,
                output_dim=1,
            ),
        )

    def forward(self, candidate: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        weights = self.weights(candidate, history, mask)  # (B, L)
        return torch.bmm(weights.unsqueeze(1), history).squeeze(1)  # (B, d)

    def weights(self, candidate: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """The weight of each position, (B, L); zeros at padding."""
        # W [v, h, v - h, v * h] = (W_v + W_d) v + [W_h - W_d, W_p] [h, v * h]: the first term is
        # one per row, and a position costs half of the products.
        w_v, w_h, w_d, w_p = self.first.weight.chunk(4, dim=1)
        own = F.linear(candidate, w_v + w_d, self.first.bias)  # (B, U)
        pair = torch.cat([w_h - w_d, w_p], dim=1)  # (U, 2 d)
        if self.training:
            valid = mask.flatten().nonzero().squeeze(1)  # (N,) valid positions of all rows
            row = mask.nonzero()[:, 0]  # (N,)
            h = history.flatten(0, 1).index_select(0, valid)  # (N, d)
            v = candidate.index_select(0, row)
            x = F.linear(torch.cat([h, v * h], dim=1), pair) + own.index_select(0, row)
            scores = self.rest(x).squeeze(1).float()  # (N,)
            scores = scores.new_zeros(mask.shape).masked_scatter(mask, scores)  # (B, L)
        else:  # no shape depends on data, as exporters want it
            product = candidate.unsqueeze(1) * history  # (B, L, d)
            x = F.linear(torch.cat([history, product], dim=2), pair) + own.unsqueeze(1)
            scores = self.rest(x.flatten(0, 1)).view(mask.shape).float()  # (B, L)
        if self.softmax:
            scores = (scores * self.scale).masked_fill(~mask, self.lowest).softmax(dim=1)
        return scores.masked_fill(~mask, 0.0)  # (B, L)
