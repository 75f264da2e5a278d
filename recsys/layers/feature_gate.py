"""The feature selection gate of FinalMLP."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.layers.mlp import MLP


class PickedContext(nn.Module):
    """The vectors of the fields at ``places``, side by side: ``(B, F, D) -> (B, n * D)``."""

    places: Tensor

    def __init__(self, *, places: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor(list(places)), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.index_select(1, self.places).flatten(1)  # (B, n * D)


class LearnedContext(nn.Module):
    """One learned vector for all rows: ``(B, F, D) -> (1, D)``.

    It starts from N(0, 0.01^2). From zeros (FuxiCTR) it would never move: no gradient passes the
    ReLU of a gate network whose biases are zeros, too.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(1, dim))
        nn.init.normal_(self.vector, std=0.01)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.vector  # (1, D)


class FeatureGate(nn.Module):
    """``2 sigmoid(W_2 relu(W_1 c + b_1) + b_2)``: a factor for each of ``output_dim`` numbers, near
    1 at the start.

    ``c``: the vectors of the fields at ``places``, or, without any, a learned vector. Mao et al.,
    FinalMLP, AAAI 2023, https://arxiv.org/abs/2304.00902.

    **Shape** ``(B, F, dim) -> (B, output_dim)``, or ``(1, output_dim)`` without places.

    **Example**

    >>> FeatureGate(places=(1,), dim=2, hidden_units=(4,), output_dim=3)(torch.zeros(1, 5, 2))
    tensor([[1., 1., 1.]], grad_fn=<MulBackward0>)
    """

    def __init__(
        self, *, places: Sequence[int], dim: int, hidden_units: Sequence[int], output_dim: int
    ) -> None:
        super().__init__()
        self.context = PickedContext(places=places) if places else LearnedContext(dim=dim)
        self.mlp = MLP(
            input_dim=dim * max(1, len(places)), hidden_units=hidden_units, output_dim=output_dim
        )

    def forward(self, vectors: Tensor) -> Tensor:
        return 2 * self.mlp(self.context(vectors)).sigmoid()  # (B or 1, output_dim)
