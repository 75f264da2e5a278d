"""What sequence models have in common: one item table at both ends, and histories in batches."""

from typing import Mapping, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.sequence_data import Windows
from recsys.embeddings import EmbeddingLayer
from recsys.types import Batch, FieldSpec


class ItemModel(nn.Module):
    """Items of one sequence field: read through a table, recommended by the same table.

    The score of item v is ``query . item_vectors[v] + item_bias[v]``; ``forward(batch)`` of a model
    gives the queries. ``specials``: the first so many ids (null, unseen) are no items: they are
    read but never predicted.
    """

    def __init__(
        self, field: FieldSpec, layers: Mapping[str, EmbeddingLayer], *, specials: int
    ) -> None:
        super().__init__()
        assert field.kind == "sequence", field
        assert field.num_ids is not None, field
        assert field.max_length is not None, field
        assert 1 <= specials < field.num_ids, (specials, field.num_ids)
        self.embedding = layers["item"]
        self.dim: int = layers["item"].dim
        self.num_ids: int = field.num_ids
        self.max_length: int = field.max_length
        self.specials: int = specials

    @torch.jit.unused
    def windows(self, max_length: int) -> Windows:
        """How it wants its training sequences cut."""
        raise NotImplementedError

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
        """The last ``most`` items of each history, (B, most) padded on the right with id 0, and how
        many there are, (B,)."""
        ids, lengths = batch.lists[0], batch.lengths[:, 0]  # (B, L), (B,)
        kept = lengths.clamp_max(most)
        places = torch.arange(most, device=ids.device)
        wanted = (lengths - kept).unsqueeze(1) + places  # (B, most)
        ids = F.pad(ids, [0, 1])  # one column at least
        ids = ids.gather(1, wanted.clamp_max(ids.size(1) - 1))
        return ids * (places < kept.unsqueeze(1)), kept


def packs(ids: Tensor) -> bool:
    """Whether sequences go through packed, without padding: on a CPU, but not under export."""
    if ids.device.type != "cpu":
        return False
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return not torch.is_grad_enabled()  # the kernel has no gradient there
    else:
        return not torch.compiler.is_compiling()
