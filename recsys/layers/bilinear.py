"""Bilinear interaction of all pairs of fields."""

from typing import Literal

import torch
from torch import Tensor, nn

BilinearKind = Literal["field_all", "field_each", "field_interaction"]


class BilinearInteraction(nn.Module):
    """``(x_i W) * x_j`` of all pairs i < j, in the order (0, 1), (0, 2), ..., (1, 2).

    ``kind``: ``field_all`` has one matrix W, ``field_each`` one per left field i,
    ``field_interaction`` one per pair. Huang et al., FiBiNET, RecSys 2019,
    https://arxiv.org/abs/1905.09433. The last field is never on the left: where FuxiCTR keeps an
    unused matrix for it, here is none.

    **Shape** ``(B, F, D) -> (B, F (F - 1) / 2 * D)``, pair after pair.

    **Example**

    >>> pairs = BilinearInteraction(num_fields=4, dim=8, kind="field_each")
    >>> pairs(torch.zeros(2, 4, 8)).shape
    torch.Size([2, 48])
    """

    left: Tensor
    right: Tensor

    def __init__(
        self, *, num_fields: int, dim: int, kind: BilinearKind = "field_interaction"
    ) -> None:
        super().__init__()
        assert num_fields > 1, "pairs need two fields"
        self.kind = kind
        pairs = num_fields * (num_fields - 1) // 2
        matrices = {"field_all": 1, "field_each": num_fields - 1, "field_interaction": pairs}[kind]
        # Xavier-normal for each matrix.
        self.weight = nn.Parameter(torch.randn(matrices, dim, dim) * dim**-0.5)
        self.output_dim = pairs * dim
        # Places of the pairs' elements among the F*D of a row: whole rows are gathered at once.
        within = torch.arange(dim)
        i, j = torch.triu_indices(num_fields, num_fields, 1).unsqueeze(2) * dim + within  # (P, D)
        self.register_buffer("left", i.flatten(), persistent=False)
        self.register_buffer("right", j.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        right = x.flatten(1).index_select(1, self.right)  # (B, P*D)
        if self.kind == "field_interaction":
            pairs = self.weight.shape[0]
            left = x.flatten(1).index_select(1, self.left)  # (B, P*D)
            left = left.unflatten(1, [pairs, x.shape[2]]).transpose(0, 1)  # (P, B, D)
            mapped = torch.bmm(left, self.weight).transpose(0, 1).flatten(1)  # (B, P*D)
            return mapped * right
        if self.kind == "field_each":
            first = x[:, :-1].transpose(0, 1)  # (F-1, B, D)
            each = torch.bmm(first, self.weight).transpose(0, 1)  # (B, F-1, D)
        else:
            each = x[:, :-1] @ self.weight[0]  # (B, F-1, D)
        return each.flatten(1).index_select(1, self.left) * right
