"""What methods share that fold the ids of every field into rows of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt, model_validator

from recsys.embeddings.budget import FLOAT_BYTES, budget_bytes, last_fitting, owners, refuse
from recsys.embeddings.method import TableConfig, TableMethod
from recsys.types import FieldSpec, InputError

DEFAULT_BUDGET = "10MB"


class HashedFieldsConfig(TableConfig):
    """How many rows each field gets, by one of these keys (none: a budget of 10MB).

    ``rows``: rows of every field, or of the fields named (others as below); a field never gets more
    rows than it has ids. ``compression``: c, each field gets ``ceil(c * num_ids)`` rows.
    ``budget``: the largest c that fits. ``exact_below``: fields of at most so many ids keep an
    exact row for each.
    """

    method: str
    rows: PositiveInt | dict[str, PositiveInt] | None = None
    compression: Annotated[float, Field(gt=0, le=1)] | None = None
    exact_below: Annotated[int, Field(ge=0)] = 64

    @model_validator(mode="after")
    def _one_size(self) -> HashedFieldsConfig:
        sizes = [self.compression, self.budget]
        if isinstance(self.rows, int):
            sizes.append(self.rows)
        if sum(size is not None for size in sizes) > 1:
            raise ValueError("give one of rows, compression and budget; they fix the same size")
        return self


class HashedFields(TableMethod):
    """Sizes the rows of each field. A field with as many rows as ids keeps exact ones.

    Errors: `InputError` for a field with open ids that ``rows`` does not size, an unknown name in
    ``rows``, or a budget that cannot be met.
    """

    Config: ClassVar[type[HashedFieldsConfig]]
    config: HashedFieldsConfig

    def __init__(
        self, config: HashedFieldsConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        given = config.rows if isinstance(config.rows, dict) else {}
        for name in given:
            if name not in self._owners:
                raise InputError(
                    f"embedding.rows.{name}: no feature of this name owns embedding rows; "
                    f"known: {', '.join(self._owners)}"
                )
        self._sizes = self._at(1.0 if config.compression is None else config.compression)
        sized = isinstance(config.rows, int) or config.compression is not None
        if config.budget is None:  # the default is for fields that nothing else sizes
            sized = sized or all(map(self._is_sized, self._owners.values()))
        if not sized:
            self._fit(budget_bytes(config.budget or DEFAULT_BUDGET, fields, dims))

    def _is_sized(self, owner: FieldSpec) -> bool:
        """Whether the size of a field does not depend on a budget."""
        given = isinstance(self.config.rows, dict) and owner.name in self.config.rows
        return given or (owner.num_ids is not None and owner.num_ids <= self.config.exact_below)

    def _row_words(self) -> int:
        """Floats of one row, all layers together."""
        return sum(self.dims.values())

    def _at(self, c: float) -> dict[str, int]:
        """Rows of each owner at compression ``c``."""
        return {name: self._rows_of(owner, c) for name, owner in self._owners.items()}

    def _rows_of(self, owner: FieldSpec, c: float) -> int:
        rows = self.config.rows
        given = rows.get(owner.name) if isinstance(rows, dict) else rows
        if owner.num_ids is None:
            if given is None:
                raise InputError(
                    f"features.{owner.name}: embedding.method {self.config.method} cannot size a "
                    f"field with open ids; set embedding.rows.{owner.name}, or use "
                    "embedding.method unified"
                )
            return given
        if owner.num_ids <= self.config.exact_below:
            return owner.num_ids
        return min(owner.num_ids, given if given is not None else ceil(c * owner.num_ids))

    def _fit(self, budget: int) -> None:
        smallest = 1e-12  # ceil makes this one row per field
        if self._cost(1.0) <= budget:
            return
        if self._cost(smallest) > budget:
            raise refuse(budget, self._cost(smallest), f"embedding.method {self.config.method}")
        fitting = last_fitting(lambda c: self._cost(c) <= budget, inside=smallest, outside=1.0)
        self._sizes = self._at(fitting)

    def _cost(self, c: float) -> int:
        """Bytes of all layers at compression ``c``, which the plan then has."""
        self._sizes = self._at(c)
        return self.fixed_bytes() + FLOAT_BYTES * self._row_words() * sum(self._sizes.values())

    def _exact(self, name: str) -> bool:
        """Whether every id of the owner ``name`` has its own row."""
        return self._sizes[name] == self._owners[name].num_ids

    def _starts(self) -> dict[str, int]:
        """First row of each owner; one owner's rows follow another's."""
        starts, start = {}, 0
        for name, size in self._sizes.items():
            starts[name] = start
            start += size
        return starts
