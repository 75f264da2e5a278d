"""What a recommending bundle exports: raw histories in, item ids and scores out."""

from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from recsys.layers.item_search import ItemIndex, ItemSearch
from recsys.models.sequence.items import ItemModel
from serving.encode import Batch

__all__ = ["TopKGraph"]


class TopKGraph(nn.Module):
    """``top k of item_vectors @ model(encoder(raw)) + item_bias``, exactly, ties by smaller id.

    Left out: ids below ``model.specials`` and, with ``filter_seen``, every item of the history,
    also those beyond the most recent ones that the model reads.

    `prepare` keeps the catalogue's index between calls; it is no part of the saved weights, so that
    a compressed item table stays small on disk. Without it every call builds the index anew.

    **Shape** - the fields of a raw `serving.encode.Batch` with one list: ``lists[0]`` (B, L) and
    ``lengths`` (B, 1) int64; output ids (B, k) int64 and scores (B, k) float32, -1 and minus
    infinity where a row has fewer than k candidates.
    """

    prepared: Optional[ItemIndex]

    def __init__(self, *, encoder: nn.Module, model: ItemModel, k: int, filter_seen: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = model
        self.search = ItemSearch()
        self.k: int = k
        self.filter_seen: bool = filter_seen
        self.prepared = None

    def forward(
        self, ids: Tensor, floats: Tensor, lists: List[Tensor], lengths: Tensor
    ) -> Tuple[Tensor, Tensor]:
        return self.best(ids, floats, lists, lengths, self.k)

    @torch.jit.export
    def best(
        self, ids: Tensor, floats: Tensor, lists: List[Tensor], lengths: Tensor, k: int
    ) -> Tuple[Tensor, Tensor]:
        """`forward` with lists of ``k`` items."""
        batch = self.encoder(Batch(ids, floats, lists, lengths))
        queries = self.model(batch)  # (B, D)
        seen = batch.lists[0]  # (B, L)
        valid = torch.arange(seen.size(1), device=seen.device) < lengths[:, :1]
        seen = seen * valid  # padding is id 0, which is never found anyway
        if not self.filter_seen:
            seen = seen[:, :0]
        index = self.prepared
        if index is None:
            index = self._index()
        return self.search(index, queries, seen, k)

    @torch.jit.export
    def prepare(self) -> None:
        """Build the index of the catalogue now, once; afterwards calls only read it."""
        self.prepared = self._index()

    def _index(self) -> ItemIndex:
        vectors, bias = self.model.item_vectors(), self.model.item_bias()
        return self.search.index(vectors, bias, self.model.specials)
