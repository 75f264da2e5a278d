"""Recformer."""

from typing import Annotated, Dict, Literal, Mapping, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from recsys.data.sequence_data import Windows
from recsys.embeddings import EmbeddingLayer
from recsys.features.item_text import ItemText
from recsys.layers.catalogue_loss import catalogue_cross_entropy
from recsys.layers.local_attention import LocalEncoder
from recsys.models.deep import Probability
from recsys.models.sequence.masked_words import MaskedWords
from recsys.models.sequence.next_item import draw_place
from recsys.models.sequence.recformer_phases import PRETRAIN, text_phases
from recsys.models.sequence.text_model import TextModel
from recsys.models.sequence.text_reader import TextReader, newest_first
from recsys.settings import TrainConfig
from recsys.training.phase import Phase
from recsys.types import Batch, FieldSpec, FrozenConfig, Target

TextTask = Literal["pretrain", "fine_tune", "fixed_items"]


class RecformerConfig(FrozenConfig):
    """``hidden_units``: of the feed-forward layers. ``window``: a token sees those at most half of
    it away. ``max_tokens``: of a history, the most recent ones. ``temperature``: what cosines are
    divided by. ``window_stride``: share of max_length by which training windows move; each gives
    one target an epoch. ``init_std``: of the vectors of places, types and the like; those of words
    have the table's.

    ``phases``: each of ``train.max_epochs`` at most. ``correct_popularity``: a batch holds popular
    items more often than others; take that off their scores as negatives. ``mask_share``: of the
    words, in pretraining; ``mask_weight``: of guessing them in the loss (0: none are hidden, which
    takes a fourth of the time). ``fine_tune_rate``: what learning rates are multiplied by in the
    phases after pretraining.
    """

    name: Literal["recformer"] = "recformer"
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    hidden_units: PositiveInt = 256
    dropout: Probability = 0.1
    window: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    max_tokens: Annotated[int, Field(ge=2)] = 512
    temperature: PositiveFloat = 0.05
    phases: Annotated[tuple[TextTask, ...], Field(min_length=1)] = ("pretrain",)
    correct_popularity: bool = True
    fine_tune_rate: PositiveFloat = 0.1
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask_weight: Annotated[float, Field(ge=0)] = 0.1
    window_stride: Annotated[float, Field(gt=0, le=1)] = 0.5
    init_std: PositiveFloat = 0.02

    @model_validator(mode="after")
    def _in_order(self) -> "RecformerConfig":
        order = get_args(TextTask)
        if list(self.phases) != [name for name in order if name in self.phases]:
            raise ValueError(f"phases: name some of {', '.join(order)}, each once, in this order")
        return self


class Recformer(TextModel):
    """Items are what their text says: no item has a row, so new ones can be recommended.

    A history is read as one text, the most recent item first, in which every item is the words of
    its attributes' names and values; the state of the summary token before it is the query. An item
    is the same of its text alone; scores are cosines divided by ``temperature``. Li et al.,
    Recformer, KDD 2023, https://arxiv.org/abs/2305.13731. Three phases: *pretrain* (a history
    should find the text of the item that came after it among those of the batch, plus guessing
    hidden words of both), *fine_tune* (softmax over the table of all items' vectors, encoded anew
    before every epoch) and *fixed_items* (the same over the table as it is). The last two move
    histories away from what encodes items: only after pretraining alone can other catalogues be
    encoded later.

    Other than published: a small encoder from random weights instead of Longformer-base, so word
    vectors are trained and no language is known before, and pretraining teaches most; a batch's
    equal targets are no negatives of each other, and what popularity makes of the others is taken
    off (Bengio and Senecal 2008); each phase has the whole schedule of learning rates.

    **Shape** batch of B histories -> queries ``(B, D)``.
    """

    Config = RecformerConfig
    log_counts: Tensor

    def __init__(
        self,
        config: RecformerConfig,
        field: FieldSpec,
        layers: Mapping[str, EmbeddingLayer],
        *,
        specials: int = 2,
        text: ItemText,
    ) -> None:
        width, pretrains = layers["word"].dim, PRETRAIN in config.phases
        guesses = pretrains and config.mask_weight > 0
        assert field.max_length is not None, field
        super().__init__(
            field,
            layers,
            specials=specials,
            text=text,
            reader=TextReader(
                text,
                width=width,
                max_items=field.max_length,
                max_tokens=config.max_tokens,
                window=config.window,
                dropout=config.dropout,
                std=config.init_std,
            ),
            encoder=LocalEncoder(
                width=width,
                layers=config.layers,
                heads=config.heads,
                hidden=config.hidden_units,
                summaries=not guesses,
                dropout=config.dropout,
            ),
            temperature=config.temperature,
        )
        self.config = config
        self.task: str = config.phases[0]
        log_counts = torch.zeros(self.num_ids)
        if config.correct_popularity and field.counts is not None:
            log_counts = torch.tensor(field.counts).float().clamp_min(1).log()
        self.register_buffer("log_counts", log_counts, persistent=False)
        if guesses:
            self.embedding.read_whole = True  # by the softmax over all words
            self.masked_words = MaskedWords(width, len(text.counts), config.mask_share)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                # Smaller, and all texts start as one vector, which InfoNCE hardly pulls apart: its
                # gradient is made of their differences.
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    @staticmethod
    def tables(config: RecformerConfig, embedding_dim: int) -> Dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"word": embedding_dim}

    @staticmethod
    def example() -> RecformerConfig:
        """A tiny config for the laws."""
        return RecformerConfig(
            hidden_units=16,
            window=4,
            max_tokens=24,
            phases=("pretrain", "fine_tune", "fixed_items"),
            mask_share=0.5,
        )

    @torch.jit.unused
    def windows(self, max_length: int) -> Windows:
        """How it wants its training sequences cut: a target, and up to max_length before it."""
        stride = max(1, int(self.config.window_stride * max_length))
        return Windows(length=max_length + 1, stride=stride, least=2)

    @torch.jit.unused
    def phases(self, config: TrainConfig) -> list[Phase]:
        """Those of the config."""
        own = self.config
        return text_phases(own.phases, config.max_epochs, rate=own.fine_tune_rate)

    @torch.jit.unused
    def loss(self, batch: Batch, target: Target) -> Tensor:
        """Mean loss of finding one item of each window, drawn anew, from those before it: among
        those of the batch while pretraining, among all afterwards."""
        ids, place = batch.lists[0], draw_place(batch, self.specials, late=self.task == PRETRAIN)
        chosen = (place > 0).nonzero().squeeze(1)  # rows with a target
        ids, place = ids[chosen], place[chosen]
        wanted = ids.gather(1, place.unsqueeze(1)).squeeze(1)  # (B',)
        before = Batch(batch.ids[chosen], batch.floats[chosen], [ids], place.unsqueeze(1))
        history, lengths = self.recent(before, self.max_length)
        if self.task != PRETRAIN:
            items = self.items[self.specials :]
            query = self.query(history, lengths)
            return catalogue_cross_entropy(query, items, None, wanted - self.specials)
        return self._pretrain_loss(self.text[newest_first(history, lengths)], wanted)

    @torch.jit.unused
    def _pretrain_loss(self, histories: Tensor, wanted: Tensor) -> Tensor:
        """Texts (B, L) and items (B,): InfoNCE from histories to the items' texts, and guessing
        words of both."""
        alone = self.text[wanted].unsqueeze(1)
        asked, items = self.represent(histories), self.represent(alone)
        with torch.autocast(asked.device.type, enabled=False):  # at first all are nearly alike
            scores = asked @ items.t() / self.temperature - self.log_counts[wanted]  # (B, B)
        same = alone == alone.t()
        same.fill_diagonal_(False)
        scores = scores.masked_fill(same, -torch.inf)
        right = torch.arange(len(wanted), device=wanted.device)
        loss = F.cross_entropy(scores, right, reduction="sum") / max(len(wanted), 1)
        if self.masked_words is not None:
            for texts in (histories, alone):
                guessed = self.masked_words.loss(self.embedding, self.reader, self.encoder, texts)
                loss = loss + self.config.mask_weight * guessed
        return loss
