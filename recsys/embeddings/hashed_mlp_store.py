"""A table whose vectors a small network computes from many hashes of the id."""

from itertools import pairwise
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.computed_store import ComputedStore
from recsys.features.hashing import splitmix64

EPS = 1e-5
REFERENCE = 256
"""Codes over which activations are normalised, and vectors penalised."""
MISH_SQUARE = 0.4529
"""E[mish(z)^2] of a standard normal z."""


def hash_codes(keys: Tensor, code: int, buckets: int) -> Tensor:
    """int64 keys (U,) -> (U, code) in [-1, 1]: ``code`` outputs of splitmix64, seeded with the
    mixed key, each reduced to ``buckets`` values that lie evenly. Scriptable."""
    step = torch.arange(code, device=keys.device) * -7046029254386353131  # the generator's
    mixed = splitmix64(splitmix64(keys).unsqueeze(1) + step) & 0x7FFFFFFFFFFFFFFF
    return (mixed % buckets).to(torch.float32) * (2.0 / (buckets - 1)) - 1


class NetworkStore(ComputedStore):
    """Codes of ids -> ``hidden`` layers (linear, Mish) -> linear. Rows are ids, any 64-bit number.

    `prepare` gives, layer by layer, a weight (in, out) and a bias (1, out).
    """

    is_network = True

    def __init__(
        self, *, salt: int, buckets: int, code: int, hidden: int, wide: int, width: int
    ) -> None:
        super().__init__(width=width, row_floats=6 * code + 3 * hidden * wide + width)
        self.salt: int = salt
        self.buckets: int = buckets
        self.code: int = code
        self.hidden: int = hidden
        self.wide: int = wide

    def compute(self, rows: Tensor, shared: List[Tensor]) -> Tensor:
        return self.network(hash_codes(rows + self.salt, self.code, self.buckets), shared)

    def network(self, x: Tensor, shared: List[Tensor]) -> Tensor:
        """Codes (U, k) -> (U, width)."""
        for layer in range(self.hidden):
            x = F.mish(torch.addmm(shared[2 * layer + 1], x, shared[2 * layer]))  # (U, h)
        return torch.addmm(shared[2 * self.hidden + 1], x, shared[2 * self.hidden])  # (U, width)


class FoldedNetworkStore(NetworkStore):
    """The serving form: batch normalisation has become part of weights and biases."""

    def __init__(self, *, like: NetworkStore, tensors: List[Tensor]) -> None:
        super().__init__(
            salt=like.salt,
            buckets=like.buckets,
            code=like.code,
            hidden=like.hidden,
            wide=like.wide,
            width=like.width,
        )
        self.layers = nn.ParameterList([nn.Parameter(tensor) for tensor in tensors])

    def prepare(self) -> List[Tensor]:
        shared: List[Tensor] = []
        for tensor in self.layers:
            shared.append(tensor)
        return shared

    @torch.jit.unused
    def finalise(self) -> "FoldedNetworkStore":
        """Itself: it serves already."""
        return self


class HashedMlpStore(NetworkStore):
    """The trained form: linear, batch normalisation, Mish; the linear layers before a
    normalisation have no bias, which it would take away.

    Mean and variance are those of `REFERENCE` fixed random codes that go through the network beside
    the batch, gradients included (virtual batch normalisation, Salimans et al., "Improved
    Techniques for Training GANs", https://arxiv.org/abs/1606.03498). The code of any id is a draw
    from that very distribution, so the moments are a batch's, yet no vector ever depends on the ids
    beside it, a lone id has one too, and serving needs no running averages.

    ``l2``: weight of half the squared norm of all ``rows`` vectors.
    """

    def __init__(
        self,
        *,
        salt: int,
        reference_salt: int,
        buckets: int,
        code: int,
        hidden: int,
        wide: int,
        width: int,
        std: float,
        rows: int = 0,
        l2: float = 0.0,
    ) -> None:
        """Vectors start with a variance of about ``std**2``."""
        super().__init__(
            salt=salt, buckets=buckets, code=code, hidden=hidden, wide=wide, width=width
        )
        self.reference_salt: int = reference_salt
        self.reference: int = REFERENCE  # scripts see no global numbers
        sizes = [code, *[wide] * hidden]
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(a, b) * a**-0.5) for a, b in pairwise(sizes)]
        )
        unit = torch.tensor([[1.0], [0.0]])
        self.affine = nn.ParameterList(
            [nn.Parameter(unit.repeat(1, wide)) for _ in range(hidden)]  # scale, shift
        )
        self.out = nn.Parameter(torch.randn(wide, width) * std * (wide * MISH_SQUARE) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(1, width))
        self.eps: float = EPS
        self.rows, self.l2 = rows, l2

    def prepare(self) -> List[Tensor]:
        """Normalisation folded into weights and biases."""
        keys = torch.arange(self.reference, device=self.out.device) + self.reference_salt
        x = hash_codes(keys, self.code, self.buckets)
        shared: List[Tensor] = []
        for weight, affine in zip(self.weights, self.affine):  # noqa: B905 (no strict in a script)
            z = x @ weight  # (reference, h)
            mean = z.mean(0)
            scale = affine[0] * torch.rsqrt((z - mean).square().mean(0) + self.eps)
            shift = affine[1] - mean * scale
            shared.append(weight * scale)
            shared.append(shift.unsqueeze(0))
            x = F.mish(z * scale + shift)
        shared.append(self.out)
        shared.append(self.bias)
        return shared

    @torch.jit.unused
    def finalise(self) -> FoldedNetworkStore:
        """The serving form: fewer numbers, the same vectors to the bit."""
        with torch.no_grad():
            return FoldedNetworkStore(like=self, tensors=[t.clone() for t in self.prepare()])

    @torch.jit.unused
    def penalised(self) -> List[nn.Parameter]:
        return list(self.parameters()) if self.l2 > 0 and self.rows else []

    @torch.jit.unused
    def penalty(self) -> Optional[Tensor]:
        """L2 of the vectors, not of the network: their mean square over fresh random codes, which
        are codes of random ids, times the number of ids."""
        if not self.penalised():
            return None
        codes = torch.rand(REFERENCE, self.code, device=self.out.device) * 2 - 1
        square = self.network(codes, self.prepare()).square().sum(1).mean()
        return self.l2 / 2 * self.rows * square
