"""Options, spec and module that categorical, bag and sequence fields have in common.

Layout of encoded ids: 0 is null (and the padding of lists), then

- vocabulary: ``1 .. oov_ids`` for ids that are unseen or were cut, chosen by splitmix64, then the
  vocabulary by falling training frequency, ties by raw id;
- hash with ``buckets``: ``1 .. buckets``;
- hash without ``buckets``: raw 64-bit ids pass through, null as `NULL_ID`; the table hashes.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator
from torch import nn

from recsys.features.base import Collector, FeatureBase, State
from recsys.features.counting import HashCollector, VocabularyCollector
from recsys.features.hashing import salt
from recsys.features.lookup import HashLookup, OpenIds, VocabularyLookup
from recsys.types import FieldSpec


class IdOptions(FeatureBase):
    """How ids become rows of a table.

    ``min_count``: rarer training ids count as unseen. ``max_size``: keep only the most frequent.
    ``oov_ids``: ids shared by everything unseen. ``buckets``: size of a hashed id space.
    """

    encoding: Literal["vocabulary", "hash"] = "vocabulary"
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None
    oov_ids: PositiveInt = 1
    buckets: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_encoding(self) -> Self:
        if self.encoding == "hash":
            unused = self._changed("min_count", "max_size", "oov_ids")
            if unused:
                raise ValueError(f"{unused}: only for encoding vocabulary; remove it")
        elif self.buckets is not None:
            raise ValueError("buckets: only for encoding hash; add encoding: hash or remove it")
        return self

    def id_settings(self) -> str:
        """The settings of ids that are not the default, as text."""
        return self._changed("encoding", "min_count", "max_size", "oov_ids", "buckets")

    def _changed(self, *keys: str) -> str:
        """Those of ``keys`` that differ from their default, as text."""
        fields = type(self).model_fields
        return ", ".join(key for key in keys if getattr(self, key) != fields[key].default)

    def collector(self, name: str, family: str) -> Collector | None:
        """Counts of ids or buckets; open hashed ids need none."""
        del family
        if self.encoding == "vocabulary":
            return VocabularyCollector(
                min_count=self.min_count, max_size=self.max_size, oov_ids=self.oov_ids
            )
        if self.buckets is not None:
            return HashCollector(salt=salt(name), buckets=self.buckets)
        return None

    def module(self, name: str, state: State) -> nn.Module:
        """(N,) raw ids -> (N,) encoded ids, by what the state holds: the state may be that of the
        field whose table is shared."""
        del name
        if "ids" in state:
            return VocabularyLookup(
                ids=state["ids"], oov_ids=len(state["counts"]) - 1 - len(state["ids"])
            )
        if "salt" in state:
            return HashLookup(salt=int(state["salt"][0]), buckets=len(state["counts"]) - 1)
        return OpenIds()


class ListOptions(IdOptions):
    """`IdOptions` of a list column.

    ``shares``: use the ids and the rows of another categorical, bag or sequence feature. Its
    vocabulary is then fitted on the values of both columns counted together, so that ids which
    occur only in histories get rows too.
    """

    type: Literal["bag", "sequence"]
    shares: str | None = None
    pooling: Literal["sum", "mean"]
    max_length: PositiveInt | None = None
    remedy: ClassVar[str] = "give a list column of integers or text"

    @property
    def keep_last(self) -> int | None:
        """The last ``max_length`` elements count."""
        return self.max_length

    def spec(self, name: str, state: State) -> FieldSpec:
        """A list field over its own or the shared id space."""
        counts = state.get("counts")
        return FieldSpec(
            name=name,
            kind=self.type,
            num_ids=None if counts is None else len(counts),
            counts=counts,
            shares=self.shares,
            pooling=self.pooling,
            max_length=self.max_length,
        )

    @model_validator(mode="after")
    def _shared_options(self) -> Self:
        own = self.id_settings()
        if self.shares is not None and own:
            raise ValueError(f"{own}: decided by the shared feature {self.shares!r}; remove it")
        return self

    def input_kind(self, family: str) -> Literal["ids"]:
        """Lists of ids."""
        del family
        return "ids"

    @property
    def owner(self) -> str | None:
        """The feature whose ids and rows are used."""
        return self.shares
