"""Unified embedding: one table for all fields, several lookups per field.

Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
NeurIPS 2023, https://arxiv.org/abs/2305.12102.

One table ``E`` of M rows and chunk width ``d = D / T`` serves every field; id x of field f is

    e_f(x) = [E[h(x; f, 1)]; ...; E[h(x; f, T)]],   h(x; f, t) = mix(x + salt(f, t)) mod M.

The number of floats depends neither on the vocabularies nor on the number of fields, and ids need
no vocabulary at all. Two ids of one field share all their rows with probability ``M^-T``.
Collisions between fields are benign where each field has its own reader weights (the model learns
readers that are near orthogonal); do not add two such vectors before any field-specific weight.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import owner_name
from recsys.embeddings.combine import ConcatRows, SumRows
from recsys.embeddings.id_map import HashRows
from recsys.embeddings.one_table import OneTable, OneTableConfig
from recsys.features.hashing import salt
from recsys.types import InputError


class UnifiedConfig(OneTableConfig):
    """``lookups``: T, for all fields or by field; fields not named get the largest T named.

    A field with fewer lookups than the largest repeats its chunks, so that widths stay equal.
    ``rows``: M; or ``budget`` (neither: 10MB). ``exact_below``: fields of at most so many ids keep
    exact rows (T per id, behind the M shared ones). The table starts from U(-init_range,
    init_range).
    """

    method: Literal["unified"]
    lookups: PositiveInt | dict[str, PositiveInt] = 2

    @model_validator(mode="after")
    def _fits(self) -> UnifiedConfig:
        if self.lookups == {}:
            raise ValueError("lookups names no field; give a number or at least one field")
        if self.embedding_dim % self.largest:
            raise ValueError(
                f"lookups {self.largest} must divide embedding_dim {self.embedding_dim}: a vector "
                "is that many chunks of equal width"
            )
        return self

    @property
    def largest(self) -> int:
        """The largest number of lookups of any field."""
        return self.lookups if isinstance(self.lookups, int) else max(self.lookups.values())


class Unified(OneTable):
    """One table of M shared rows, then the exact rows of small fields.

    A layer narrower than T (first-order weights) cannot be cut into T chunks: its chunks have the
    layer's own width and are summed. Errors: as `OneTable`, and `InputError` for an unknown name in
    ``lookups``.
    """

    Config = UnifiedConfig
    config: UnifiedConfig

    def pieces(self) -> dict[str, int]:
        lookups = self.config.lookups
        named = lookups if isinstance(lookups, dict) else {}
        for name in named:
            if name not in self._owners:
                raise InputError(
                    f"embedding.lookups.{name}: no feature of this name owns embedding rows; "
                    f"known: {', '.join(self._owners)}"
                )
        return {name: named.get(name, self.config.largest) for name in self._owners}

    def misfit(self, dim: int) -> InputError:
        return InputError(
            f"embedding.lookups {self._most}: must divide the width {dim} of every layer of "
            "the model; change lookups or the model's width"
        )

    def solution(self) -> dict[str, Any]:
        return {"rows": self._shared, "exact rows": self._exact_rows, "lookups": self._most}

    def row_map(self) -> nn.Module:
        salts, moduli, offsets, strides = [], [], [], []
        for field in self.fields:
            if field.kind == "numeric":
                continue
            name = owner_name(field)
            for t in range(self._pieces[name]):
                exact = name in self._exact
                salts.append(salt(name, t))
                moduli.append(0 if exact else self._shared)
                offsets.append(self._shared + self._exact[name] + t if exact else 0)
                strides.append(self._pieces[name])
        return HashRows(
            counts=self._counts(),
            singles=self._singles(),
            salts=salts,
            moduli=moduli,
            offsets=offsets,
            strides=strides,
        )

    def combine(self, dim: int) -> nn.Module:
        kind = SumRows if dim < self._most else ConcatRows
        return kind(counts=self._counts(), singles=self._singles())
