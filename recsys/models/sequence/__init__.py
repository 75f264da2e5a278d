"""Models of item sequences: what comes next?

A model reads histories of one sequence field through the embedding layer ``item``, and recommends
by the same table (one that ``reads_text`` has a layer ``word`` instead, and takes ``text=``):
``loss(batch, target)`` trains it, ``forward(batch) -> (B, D)`` gives queries, ``item_vectors() ->
(V, D)`` and ``item_bias() -> (V,)`` the rest of the scores. To add one: one file, one line in each
list below and in `recsys.models.papers`, one config.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from recsys.models.sequence.bert4rec import BERT4Rec, BERT4RecConfig
from recsys.models.sequence.gru4rec import GRU4Rec, GRU4RecConfig
from recsys.models.sequence.recformer import Recformer, RecformerConfig
from recsys.models.sequence.sasrec import SASRec, SASRecConfig

SEQUENCE_MODELS: dict[str, type[Any]] = {
    "bert4rec": BERT4Rec,
    "sasrec": SASRec,
    "gru4rec": GRU4Rec,
    "recformer": Recformer,
}

SequenceModelConfig = Annotated[
    BERT4RecConfig | SASRecConfig | GRU4RecConfig | RecformerConfig, Field(discriminator="name")
]

__all__ = ["SEQUENCE_MODELS", "SequenceModelConfig"]
