"""BERT4Rec."""

from typing import Annotated, Dict, Literal, Mapping

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recsys.data.sequence_data import Windows
from recsys.embeddings import EmbeddingLayer
from recsys.layers.catalogue_loss import catalogue_cross_entropy
from recsys.layers.sequence_encoder import SequenceEncoder, bert_start
from recsys.models.deep import Probability
from recsys.models.sequence.transformer import TransformerModel
from recsys.types import Batch, FieldSpec, FrozenConfig, Target


class BERT4RecConfig(FrozenConfig):
    """``hidden_units``: of the feed-forward layers. ``mask_share``: of the items of a training row
    that are hidden; ``last_item_share``: probability that instead the last item alone is (the
    official data has one such copy beside ten others). ``window_stride``: share of max_length by
    which training windows move. ``init_std``: of all weights outside the item table.
    """

    name: Literal["bert4rec"] = "bert4rec"
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    hidden_units: PositiveInt = 256
    dropout: Probability = 0.2
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    last_item_share: Annotated[float, Field(ge=0, le=1)] = 1 / 11
    window_stride: Annotated[float, Field(gt=0, le=1)] = 0.5
    init_std: PositiveFloat = 0.02


class BERT4Rec(TransformerModel):
    """A bidirectional transformer that fills in hidden items.

    ``x_t = norm(E[s_t] + P[t])``, post-norm blocks with GELU, ``g = norm(gelu(W h + b))`` and
    ``logits = g E^T + b_out`` with the table E that reads the items. Sun et al., BERT4Rec, CIKM
    2019, https://arxiv.org/abs/1904.06690; details from the authors' code: the mask alone replaces
    hidden items, some rows hide the last item only, sequences are padded on the right. The loss is
    the mean cross-entropy over hidden items; only their states pass the last block and the head. To
    recommend, a mask follows the last ``max_length - 1`` items.

    **Shape** batch of B histories -> queries ``(B, D)``.
    """

    Config = BERT4RecConfig

    def __init__(
        self,
        config: BERT4RecConfig,
        field: FieldSpec,
        layers: Mapping[str, EmbeddingLayer],
        *,
        specials: int = 2,
    ) -> None:
        dim = layers["item"].dim
        super().__init__(
            field,
            layers,
            specials=specials,
            encoder=SequenceEncoder(
                width=dim,
                layers=config.layers,
                heads=config.heads,
                hidden=config.hidden_units,
                dropout=config.dropout,
            ),
            input_norm=True,
            scale=1.0,
            dropout=config.dropout,
            head=nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim)),
        )
        self.embedding.read_whole = True  # by the softmax over all items
        self.mask_share, self.last_item_share = config.mask_share, config.last_item_share
        self.window_stride = config.window_stride
        self.mask = nn.Parameter(config.init_std * torch.randn(dim))
        self.bias = nn.Parameter(torch.zeros(self.num_ids))
        nn.init.trunc_normal_(
            self.positions, std=config.init_std, a=-2 * config.init_std, b=2 * config.init_std
        )
        bert_start(self.encoder, config.init_std)
        bert_start(self.head, config.init_std)

    @staticmethod
    def tables(config: BERT4RecConfig, embedding_dim: int) -> Dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"item": embedding_dim}

    @staticmethod
    def example() -> BERT4RecConfig:
        """A tiny config for the laws."""
        return BERT4RecConfig(layers=2, heads=2, hidden_units=16)

    @torch.jit.unused
    def windows(self, max_length: int) -> Windows:
        """How it wants its training sequences cut."""
        return Windows(length=max_length, stride=max(1, int(self.window_stride * max_length)))

    def forward(self, batch: Batch) -> Tensor:
        ids, lengths = self.recent(batch, self.max_length - 1)  # (B, L - 1), (B,)
        ids = torch.nn.functional.pad(ids, [0, 1])  # (B, L)
        masked = torch.arange(self.max_length, device=ids.device) == lengths.unsqueeze(1)
        return self.known_rows(self.states(ids, lengths + 1, masked, masked), lengths)  # (B, D)

    @torch.jit.export
    def item_bias(self) -> Tensor:
        """(V,), by encoded id."""
        return self.bias

    def hidden_item(self, x: Tensor) -> Tensor:
        """The mask's vector."""
        return self.mask.to(x.dtype)

    @torch.jit.unused
    def loss(self, batch: Batch, target: Target) -> Tensor:
        """Mean cross-entropy over the hidden items of a batch of windows, drawn anew each time."""
        ids, lengths = batch.lists[0], batch.lengths[:, 0]
        return self.masked_loss(ids, lengths, self.hide(lengths, ids.size(1)))

    @torch.jit.unused
    def hide(self, lengths: Tensor, length: int) -> Tensor:
        """Which items of rows of these lengths (B,) to hide, (B, length) bool."""
        rows, device = lengths.size(0), lengths.device
        places = torch.arange(length, device=device)
        valid = places < lengths.unsqueeze(1)
        hidden = (lengths * self.mask_share).round().clamp_min(1)  # (B,)
        order = torch.rand(rows, length, device=device).masked_fill(~valid, 2.0).argsort(1)
        ranks = torch.empty_like(order).scatter_(1, order, places.expand(rows, length))
        last = torch.rand(rows, 1, device=device) < self.last_item_share
        at_last = places == lengths.unsqueeze(1) - 1
        return torch.where(last, at_last, ranks < hidden.unsqueeze(1)) & valid

    @torch.jit.unused
    def masked_loss(self, ids: Tensor, lengths: Tensor, masked: Tensor) -> Tensor:
        """The loss where ``masked`` (B, L) says what is hidden; 0 if nothing is.

        Hidden ids that are no items (unseen in training) are hidden but not learned."""
        learned = masked & (ids >= self.specials)
        states = self.states(ids, lengths, masked, learned)  # (M, D)
        items, bias = self.item_vectors()[self.specials :], self.bias[self.specials :]
        return catalogue_cross_entropy(states, items, bias, ids[learned] - self.specials)


__all__ = ["BERT4Rec", "BERT4RecConfig"]
