"""From tables of candidate widths to vectors of one width; what AutoDim puts between the two."""

from math import sqrt
from typing import List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FieldProjections(nn.Module):
    """``x -> x P_i`` for the feature i that owns the row; one table, one lookup a field.

    ``owners[f]``: of field f of a layer (-1: it has no rows); ``widths[i]``: columns of its rows
    that are not zero. Only so many rows of each ``P_i`` are held. Linear, without bias.

    **Shape:** [(..., C, D)], f -> (..., C, D).
    """

    linear: bool = True
    source: Tensor
    owner: Tensor

    def __init__(
        self, *, dim: int, owners: Sequence[int], widths: Sequence[int], singles: int
    ) -> None:
        super().__init__()
        self.dim: int = dim
        self.singles: int = singles
        self.weight = nn.Parameter(torch.zeros(sum(widths) + 1, dim), requires_grad=False)
        source = torch.full((len(widths), dim), sum(widths), dtype=torch.int32)  # the row of zeros
        start = 0
        for place, width in enumerate(widths):
            source[place, :width] = torch.arange(start, start + width, dtype=torch.int32)
            start += width
        self.register_buffer("source", source)
        self.register_buffer("owner", torch.tensor(list(owners)), persistent=False)

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        owner = self.owner.narrow(0, 0, self.singles) if f < 0 else self.owner.narrow(0, f, 1)
        places = self.source.index_select(0, owner).long()  # (C, D)
        return project(vectors[0], self.weight[places])

    @torch.jit.unused
    def fill(self, projection: Tensor) -> None:
        """Takes the rows that are held out of ``projection`` (features, D, D)."""
        held = self.source < len(self.weight) - 1
        self.weight.data[self.source[held].long()] = projection[held].detach().to(self.weight)


def project(vectors: Tensor, weight: Tensor) -> Tensor:
    """(..., C, d), (C, d, D) -> (..., C, D)."""
    flat = vectors.flatten(0, -3).transpose(0, 1)  # (C, N, d)
    shape = list(vectors.shape)
    shape[-1] = weight.size(2)
    return torch.bmm(flat, weight).transpose(0, 1).reshape(shape)


class WidthSearch(nn.Module):
    """Stands where the layer's combine was; its table has the columns of all candidates, the full
    width first. ``owners[f]``: feature whose rows field f looks up (-1: it has none); ``spans[i]``:
    first row of feature i, and the one behind its last.

    At first a vector is the first D columns. While ``searching``, each candidate c of width d_c is
    projected to D and, if ``normalised``, normalised over the batch for each field (padding counts
    among the positions of sequences); a vector is their sum with weights

        p = softmax((log softmax(logits) + g) / temperature),    g: Gumbel noise, while training.

    Once ``fixed``, the chosen candidate of each feature lies in the first columns, all others are
    zero, and so are the rows of ``projection`` behind them: no gradient reaches what is zero.
    """

    linear: bool = True
    owner: Tensor
    temperature: Tensor
    choice: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        *,
        dim: int,
        widths: Sequence[int],
        owners: Sequence[int],
        spans: Sequence[Tuple[int, int]],
        singles: int,
        normalised: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.dim: int = dim
        self.normalised: bool = normalised
        self.searching: bool = False
        self.fixed: bool = False
        self.widths: List[int] = list(widths)  # the full one first
        self.singles: int = singles
        self.spans: List[Tuple[int, int]] = list(spans)
        self.features: int = len(spans)
        features = self.features
        self.register_buffer("owner", torch.tensor(list(owners)), persistent=False)
        self.logits = nn.Parameter(torch.zeros(features, len(widths)), requires_grad=False)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("choice", torch.full((features,), -1))  # place in widths, once chosen
        # rows of the projections of candidate c: features x d_c, one candidate after the other
        # entries of variance 1 / d_c: vectors of all widths start equally long, and are moved
        # equally far by steps that move every number equally far
        rows = [
            torch.empty(features * d, dim).uniform_(-1, 1, generator=generator) * sqrt(3 / d)
            for d in widths
        ]
        self.mixing = nn.Parameter(torch.cat(rows), requires_grad=False)
        self.projection = nn.Parameter(torch.zeros(features * dim, dim), requires_grad=False)
        fields = len(owners)
        self.register_buffer("mean", torch.zeros(len(widths), fields, dim))
        self.register_buffer("variance", torch.ones(len(widths), fields, dim))

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        if self.searching:
            return self.searched(vectors[0], f)
        rows = vectors[0].narrow(-1, 0, self.dim)  # (..., C, D)
        if not self.fixed:
            return rows
        owner = self.owner.narrow(0, 0, self.singles) if f < 0 else self.owner.narrow(0, f, 1)
        weight = self.projection.view(self.features, self.dim, self.dim)
        return project(rows, weight.index_select(0, owner))

    @torch.jit.unused
    def searched(self, rows: Tensor, f: int) -> Tensor:
        """What `forward` gives during the search; never served, so never scripted."""
        first, count = (0, self.singles) if f < 0 else (f, 1)
        owner = self.owner.narrow(0, first, count)
        weights = self.probabilities(noisy=self.training)[owner]  # (C, candidates)
        out = torch.zeros((), device=rows.device)
        for c, part in enumerate(rows.split(self.widths, dim=-1)):
            wide = project(part, self.candidate(c)[owner])  # (..., C, D)
            if self.normalised:
                flat = F.batch_norm(
                    wide.reshape(-1, count * self.dim),
                    self.mean[c, first : first + count].view(-1),
                    self.variance[c, first : first + count].view(-1),
                    training=self.training and wide.numel() > count * self.dim,
                )
                wide = flat.view(wide.shape)
            out = out + wide * weights[:, c].unsqueeze(-1)
        return out

    @torch.jit.unused
    def probabilities(self, *, noisy: bool) -> Tensor:
        """p of every feature, (features, candidates)."""
        scores = torch.log_softmax(self.logits, dim=1)
        if noisy:
            uniform = torch.rand_like(scores).clamp_min(torch.finfo(scores.dtype).tiny)
            scores = scores - torch.log(-torch.log(uniform))
        return torch.softmax(scores / self.temperature, dim=1)

    @torch.jit.unused
    def candidate(self, c: int) -> Tensor:
        """Projections of candidate ``c``, (features, d_c, D)."""
        start, d = sum(self.widths[:c]) * self.features, self.widths[c]
        rows = self.mixing.narrow(0, start, self.features * d)
        return rows.view(self.features, d, self.dim)

    @torch.jit.unused
    def enter(self, *, searching: bool) -> None:
        """Begins the search, or what follows it."""
        self.searching, self.fixed = searching, not searching
        self.logits.requires_grad_(searching)
        self.mixing.requires_grad_(searching)
        self.projection.requires_grad_(not searching)

    @torch.jit.unused
    @torch.no_grad()
    def fix(self, table: Tensor, choice: Tensor) -> None:
        """Moves the columns of the candidates ``choice`` (features,) to the front of ``table``
        (R, sum of widths), with their projections, and zeroes all others."""
        self.choice.copy_(choice)
        starts = [sum(self.widths[:c]) for c in range(len(self.widths))]
        projection = self.projection.view(self.features, self.dim, self.dim).zero_()
        packed = torch.zeros_like(table)
        for i, c in enumerate(choice.tolist()):
            d, (start, stop) = self.widths[c], self.spans[i]
            packed[start:stop, :d] = table[start:stop, starts[c] : starts[c] + d]
            projection[i, :d] = self.candidate(c)[i]
        table.copy_(packed)

    @torch.jit.unused
    def half_square(self, tables: List[Tensor]) -> Tensor:
        """Half the sum of squares of the vectors of all rows, in the search of all candidates: L2
        on the table and the projections apart would be a penalty on the rank of their product.
        Nothing where normalisation makes the vectors as long as they are."""
        total = torch.zeros((), device=self.owner.device)
        if self.searching and self.normalised:
            return total
        if not self.searching and not self.fixed:
            return tables[0][:, : self.dim].square().sum() / 2
        if self.searching:
            parts = tables[0].split(self.widths, dim=1)
            pairs = [(part, self.candidate(c)) for c, part in enumerate(parts)]
        else:
            weight = self.projection.view(self.features, self.dim, self.dim)
            pairs = [(tables[0][:, : self.dim], weight)]
        for part, weight in pairs:
            for i, (start, stop) in enumerate(self.spans):
                rows = part[start:stop]
                total = total + ((rows.T @ rows) * (weight[i] @ weight[i].T)).sum() / 2
        return total
