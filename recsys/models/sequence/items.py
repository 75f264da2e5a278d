"""What sequence models have in common: one item table at both ends, and histories in batches."""

from typing import ClassVar, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from recsys.data.sequence_data import Windows
from recsys.embeddings import EmbeddingLayer
from recsys.settings import TrainConfig
from recsys.training.phase import Phase
from recsys.types import Batch, FieldSpec


class ItemModel(nn.Module):
    """Items of one sequence field: read through a table, recommended by the same table (a model
    that `reads_text` has a table of words, and says itself what the vectors of items are).

    The score of item v is ``query . item_vectors[v] + item_bias[v]``; ``forward(batch)`` of a model
    gives the queries. ``specials``: the first so many ids (null, unseen) are no items: they are
    read but never predicted.
    """

    reads_text: ClassVar[bool] = False

    def __init__(
        self, field: FieldSpec, layers: Mapping[str, EmbeddingLayer], *, specials: int
    ) -> None:
        super().__init__()
        assert field.kind == "sequence", field
        assert field.num_ids is not None, field
        assert field.max_length is not None, field
        assert 1 <= specials < field.num_ids, (specials, field.num_ids)
        (self.embedding,) = layers.values()
        self.dim: int = self.embedding.dim
        self.num_ids: int = field.num_ids
        self.max_length: int = field.max_length
        self.specials: int = specials

    @torch.jit.unused
    def windows(self, max_length: int) -> Windows:
        """How it wants its training sequences cut."""
        raise NotImplementedError

    @torch.jit.unused
    def phases(self, config: TrainConfig) -> Optional[List[Phase]]:
        """How it is trained; ``None``: in one ordinary phase."""
        return None

    @torch.jit.unused
    def pretraining_only(self) -> List[nn.Module]:
        """Parts that neither the later phases train nor bundles have."""
        return []

    @torch.jit.unused
    def finalise(self) -> None:
        """Drops what only training needs."""

    @torch.jit.export
    def item_vectors(self) -> Tensor:
        """(V, D), by encoded id."""
        return self.embedding.all_vectors(0)

    @torch.jit.export
    def item_bias(self) -> Tensor:
        """(V,): zeros; models with a bias have their own."""
        return torch.zeros(self.num_ids, device=self.embedding.order.device)

    @torch.jit.export
    def catalogue(self, start: int, count: int) -> Tensor:
        """(count, D): vectors of the ids ``start``, ``start + 1``, ..."""
        ids = torch.arange(start, start + count, device=self.embedding.order.device)
        return self.embedding.vectors(ids, 0)

    def recent(self, batch: Batch, most: int) -> Tuple[Tensor, Tensor]:
        """The last ``most`` known items of each history, (B, most) padded on the right with id 0,
        and how many there are, (B,).

        Ids below ``specials`` are left out: unless rare items were trained under one id, its row is
        as it was drawn, and as the last item of a history it would decide alone.
        """
        ids, lengths = batch.lists[0], batch.lengths[:, 0]  # (B, L), (B,)
        inside = torch.arange(ids.size(1), device=ids.device) < lengths.unsqueeze(1)
        known = (inside & (ids >= self.specials)).long()  # (B, L)
        total = known.sum(1)
        kept = total.clamp_max(most)
        after = total.unsqueeze(1) - known.cumsum(1)  # how many follow
        place = kept.unsqueeze(1) - 1 - after
        place = torch.where((known > 0) & (place >= 0), place, most)
        rows = torch.zeros([ids.size(0), most + 1], dtype=ids.dtype, device=ids.device)
        return rows.scatter(1, place, ids)[:, :most], kept

    def known_rows(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """``queries`` (B, D), zeros where a history (B,) has no known item: all scores are equal
        then but for the items' biases, and of equal ones the more popular come first."""
        # by index: an export cannot tell that both have as many rows
        return queries.index_fill(0, (lengths == 0).nonzero().squeeze(1), 0.0)


def packs(ids: Tensor) -> bool:
    """Whether sequences go through packed, without padding: on a CPU, but not under export."""
    if ids.device.type != "cpu":
        return False
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return not torch.is_grad_enabled()  # the kernel has no gradient there
    else:
        return not torch.compiler.is_compiling()
