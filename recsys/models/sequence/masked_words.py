"""Guessing hidden words: what a reader of text learns the language from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.features.item_text import UNKNOWN
from recsys.layers.catalogue_loss import catalogue_cross_entropy
from recsys.layers.local_attention import LocalEncoder
from recsys.models.sequence.text_reader import TextReader, Tokens

FIRST_WORD = UNKNOWN + 1


class MaskedWords(nn.Module):
    """Hides ``share`` of the words, each with all of its pieces: of their tokens, 80 % become the
    mask, 10 % another word and 10 % stay. Devlin et al. 2019, https://arxiv.org/abs/1810.04805;
    whole words as in their later release.

    ``h -> norm(gelu(W h + b)) E^T + b_out`` with the table E that reads the words.
    """

    def __init__(self, width: int, words: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(words))

    def loss(
        self, words: EmbeddingLayer, reader: TextReader, encoder: LocalEncoder, texts: Tensor
    ) -> Tensor:
        """Mean cross-entropy of the hidden tokens of lists of texts (B, L), drawn anew."""
        tokens = reader.tokens(texts)
        hidden = draw_words(tokens, texts.size(0), self.share)  # (N, b)
        fate = torch.rand(hidden.shape, device=hidden.device)
        other = torch.randint_like(tokens.words, FIRST_WORD, len(self.bias))
        replaced = torch.where(hidden & (fate >= 0.9), other, tokens.words)
        x = words.vectors(replaced, 0)  # (N, b, D)
        x = torch.where((hidden & (fate < 0.8)).unsqueeze(2), self.mask.to(x.dtype), x)
        summary = reader.summary(texts.size(0))
        states, _ = encoder(reader(tokens, x), summary, tokens.blocks, False)
        guesses = self.head(states[hidden])  # (M, D)
        every = words.all_vectors(0)[FIRST_WORD:]
        wanted = tokens.words[hidden] - FIRST_WORD
        return catalogue_cross_entropy(guesses, every, self.bias[FIRST_WORD:], wanted)


def draw_words(tokens: Tokens, rows: int, share: float) -> Tensor:
    """(N, b): which tokens to hide, whole words of each of ``rows`` lists with chance ``share``."""
    owner = tokens.blocks.owner.unsqueeze(1)  # (N, 1)
    longest = int(tokens.places.max()) if tokens.places.numel() else 0
    draws = torch.rand(rows, longest + 1, device=owner.device)
    of_word = draws[owner, tokens.places - tokens.pieces]  # the draw of the word's first token
    return (of_word < share) & tokens.blocks.valid
