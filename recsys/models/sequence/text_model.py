"""Items that are encoded from their text by what reads histories: a table of them, and queries."""

from typing import Any, List, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.features.item_text import ItemText
from recsys.layers.local_attention import LocalEncoder
from recsys.models.sequence.items import ItemModel
from recsys.models.sequence.text_reader import TextReader, newest_first
from recsys.types import Batch, FieldSpec, MemoryReport

CHUNK = 512
"""Texts encoded at once."""


class TextModel(ItemModel):
    """The state of the summary before a text, as a unit vector, is what the text says: a history's,
    read from its last item back, divided by ``temperature``, is the query."""

    reads_text = True
    text: Tensor
    items: Tensor

    def __init__(
        self,
        field: FieldSpec,
        layers: Mapping[str, EmbeddingLayer],
        *,
        specials: int,
        text: ItemText,
        reader: TextReader,
        encoder: LocalEncoder,
        temperature: float,
    ) -> None:
        super().__init__(field, layers, specials=specials)
        self.reader = reader
        self.encoder = encoder
        self.temperature = temperature
        self.masked_words: Any = None
        self.register_buffer("text", torch.from_numpy(text.text), persistent=False)
        self.register_buffer("items", torch.zeros(self.num_ids, self.dim))

    @staticmethod
    def word_field(config: Any, text: ItemText) -> FieldSpec:
        """The field whose rows the table has."""
        return text.field(config.max_tokens)

    def forward(self, batch: Batch) -> Tensor:
        ids, lengths = self.recent(batch, self.max_length)  # (B, L), (B,)
        return self.known_rows(self.query(ids, lengths), lengths)

    def query(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, D): of histories ``ids`` (B, L), oldest first, padded on the right."""
        return self.represent(self.text[newest_first(ids, lengths)]) / self.temperature

    def represent(self, texts: Tensor) -> Tensor:
        """Unit vectors (B, D) of lists of texts (B, L), read from the first on."""
        tokens = self.reader.tokens(texts)
        x = self.reader(tokens, self.embedding.vectors(tokens.words, 0))
        summary = self.reader.summary(texts.size(0))
        return F.normalize(self.encoder(x, summary, tokens.blocks, True)[1].float(), dim=1)

    @torch.jit.export
    def item_vectors(self) -> Tensor:
        """(V, D), by encoded id: as last encoded."""
        return self.items

    @torch.jit.export
    def catalogue(self, start: int, count: int) -> Tensor:
        """(count, D): vectors of the ids ``start``, ``start + 1``, ..."""
        return self.items[start : start + count]

    @torch.jit.unused
    @torch.no_grad()
    def encode_items(self) -> None:
        """Fills the table of items with the vectors of their texts; equal texts get equal ones."""
        training = self.training
        self.eval()
        texts = torch.arange(len(self.reader.ends), device=self.text.device)
        vectors = torch.cat([self.represent(part.unsqueeze(1)) for part in texts.split(CHUNK)])
        vectors[0] = 0  # of no text
        self.items.copy_(vectors[self.text])
        self.train(training)

    @torch.jit.unused
    def encoded_items(self) -> MemoryReport:
        """The size of the table of items, which nothing trains."""
        size = self.items.numel() * self.items.element_size()
        return MemoryReport(0, size, size, 0)

    @torch.jit.unused
    def pretraining_only(self) -> List[nn.Module]:
        """Parts that neither the later phases train nor bundles have."""
        if self.masked_words is None:
            return []
        return [self.masked_words, *self.encoder.only_for_tokens()]

    @torch.jit.unused
    def finalise(self) -> None:
        """Drops what only pretraining needs."""
        self.masked_words = None
        self.encoder.only_summaries()
