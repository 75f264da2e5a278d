"""Deep Interest Network."""

from collections.abc import Mapping, Sequence
from typing import Annotated, List, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import Activation, TargetAttention
from recsys.models.deep import DeepConfig, Widths
from recsys.models.histories import HistoryConfig, histories
from recsys.types import Batch, FieldSpec, InputError


class DINConfig(DeepConfig):
    """``histories``: ``None`` makes one of every sequence feature that shares the table of a
    categorical one. ``pooling: mean`` takes the mean of a history in place of its attention: the
    same network without the activation unit. ``attention_units``, ``attention_activation``,
    ``softmax``: see `TargetAttention`. The other keys are those of `DeepConfig`.
    """

    name: Literal["din"] = "din"
    histories: Annotated[tuple[HistoryConfig, ...], Field(min_length=1)] | None = None
    pooling: Literal["attention", "mean"] = "attention"
    attention_units: Widths = (80, 40)
    attention_activation: Activation = "dice"
    softmax: bool = False

    @model_validator(mode="after")
    def _no_dead_settings(self) -> "DINConfig":
        of_attention = (self.attention_units, self.attention_activation, self.softmax)
        if self.pooling == "mean" and of_attention != ((80, 40), "dice", False):
            raise ValueError(
                "pooling mean has no attention: remove attention_units, attention_activation and "
                "softmax, or choose pooling attention"
            )
        return self


class MeanPool(nn.Module):
    """The mean over valid positions, whatever the candidate; zeros without any.

    **Shape** as `TargetAttention`; the history is zero at padding.
    """

    def forward(self, candidate: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        return history.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)  # (B, d)


class History(nn.Module):
    """Where the K columns of one history and its candidate are, and the pooling of the history."""

    def __init__(
        self, config: DINConfig, pairs: HistoryConfig, fields: Sequence[FieldSpec], dim: int
    ) -> None:
        super().__init__()
        names = [field.name for field in fields]
        self.names: List[str] = list(pairs.sequence)
        self.candidates: List[int] = [names.index(name) for name in pairs.candidate]
        self.sequences: List[int] = [names.index(name) for name in pairs.sequence]
        self.of_events: int = dim * (len(pairs.sequence) - len(pairs.candidate))
        self.pool: nn.Module = MeanPool()
        if config.pooling == "attention":
            self.pool = TargetAttention(
                input_dim=dim * len(self.names),
                hidden_units=config.attention_units,
                activation=config.attention_activation,
                softmax=config.softmax,
            )

    def forward(self, x: Tensor, columns: List[Tensor], lengths: Tensor) -> Tensor:
        """Field vectors (B, F, D); per column vectors (B, L_k, D); valid positions (B,)."""
        longest = columns[0].size(1)
        history = torch.cat([_to_length(column, longest) for column in columns], dim=2)
        mask = torch.arange(longest, device=x.device) < lengths.unsqueeze(1)  # (B, L)
        history = history * mask.unsqueeze(2)  # (B, L, K * D)
        candidate = torch.cat([x[:, f] for f in self.candidates], dim=1)
        candidate = F.pad(candidate, [0, self.of_events])  # (B, K * D), zeros for what events have
        return self.pool(candidate, history, mask)  # (B, K * D)


def _to_length(column: Tensor, length: int) -> Tensor:
    """(B, L_k, D) -> (B, length, D), cut or with zeros; columns in line have that length."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        if column.size(1) == length:
            return column
    elif not torch.compiler.is_compiling() and column.size(1) == length:
        return column
    return F.pad(column, [0, 0, 0, length]).narrow(1, 0, length)


class DIN(nn.Module):
    """Histories pooled by what they have to do with the candidate, and an MLP on top.

    ``logit = MLP([e_f of all other fields, u_1, ..., u_H])`` where ``u_h`` is history h under
    `TargetAttention`. Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD
    2018, https://arxiv.org/abs/1706.06978. As the official code, it describes a pair of candidate
    and past item by difference and product, not by the outer product of the paper's figure; unlike
    it, it has no item bias and no ``u * v``.

    The columns of one history should be equally long in every row; in training others are an
    `InputError`. In scoring the positions that all columns have count, from the oldest kept on, so
    that a request without one of the columns has an empty history.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = DINConfig
    others: Tensor
    trimmed: List[bool]  # on the class: TorchScript cannot infer the type of an empty list

    def __init__(
        self, config: DINConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        dim = layers["embedding"].dim
        pairs = histories(config.histories, fields)
        self.histories = nn.ModuleList(History(config, pair, fields, dim) for pair in pairs)
        used = {name for pair in pairs for name in pair.sequence}
        others = [f for f, field in enumerate(fields) if field.name not in used]
        self.register_buffer("others", torch.tensor(others, dtype=torch.int64), persistent=False)
        self.first_list: int = sum(not field.is_list for field in fields)
        self.trimmed = [field.name in used for field in fields if field.is_list]
        width = len(others) + sum(len(pair.sequence) for pair in pairs)
        self.mlp = config.mlp(width * dim)

    @staticmethod
    def tables(config: DINConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> DINConfig:
        """A tiny config for the laws."""
        return DINConfig(hidden_units=(8, 8), attention_units=(8,))

    @staticmethod
    def check(config: DINConfig, fields: Sequence[FieldSpec]) -> None:
        """Refuses, when a config is read, fields without a history (`ValueError`)."""
        if not histories(config.histories, fields):
            raise ValueError(
                "model din needs a history: add a sequence feature that shares the table of a "
                "categorical one, for example history: {type: sequence, shares: item, "
                "max_length: 50}, or use model dnn"
            )

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(self._without_histories(batch))  # (B, F, D)
        parts = [x.index_select(1, self.others).flatten(1)]
        for history in self.histories:
            columns: List[Tensor] = []
            lengths: List[Tensor] = []
            for f in history.sequences:  # type: ignore[union-attr]
                columns.append(self.embedding.sequence(batch, f)[0])  # (B, L_f, D)
                lengths.append(batch.lengths[:, f - self.first_list])
            if not torch.jit.is_scripting():  # type: ignore[attr-defined]
                self._check_aligned(lengths, history)
            parts.append(history(x, columns, torch.stack(lengths).amin(0)))  # (B, K * D)
        return self.mlp(torch.cat(parts, dim=1)).squeeze(1)  # (B,)

    def _without_histories(self, batch: Batch) -> Batch:
        """The batch with empty histories: the layer need not fetch and pool them."""
        lists: List[Tensor] = []
        for j, trimmed in enumerate(self.trimmed):
            rows = batch.lists[j]
            lists.append(rows.narrow(1, 0, 0) if trimmed else rows)
        return Batch(batch.ids, batch.floats, lists, batch.lengths)

    def _check_aligned(self, lengths: List[Tensor], history: nn.Module) -> None:
        if not self.training:
            return
        assert isinstance(history, History)
        for other, name in zip(lengths[1:], history.names[1:], strict=True):
            if not torch.equal(lengths[0], other):
                row = int((lengths[0] != other).nonzero()[0])
                raise InputError(
                    f"model.histories: {name} has {int(other[row])} entries where "
                    f"{history.names[0]} has {int(lengths[0][row])}; write both columns from the "
                    "same events, as recsys histories does"
                )
