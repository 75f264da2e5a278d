"""Which features of a run are histories of which candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from recsys.types import FieldSpec, FrozenConfig, InputError

Names = Annotated[tuple[str, ...], Field(min_length=1)]


class HistoryConfig(FrozenConfig):
    """One history: aligned sequence features, the first of them each beside the candidate feature
    whose table it shares, for example ``{candidate: [item, genre], sequence: [hist_item,
    hist_genre, hist_rating]}``. What follows says something of a past event that a candidate does
    not have yet: how it was rated, what was done with it, how long ago."""

    candidate: Names
    sequence: Names

    @model_validator(mode="after")
    def _pairs(self) -> HistoryConfig:
        if len(self.candidate) > len(self.sequence):
            raise ValueError(
                f"candidate names {len(self.candidate)} feature(s) and sequence "
                f"{len(self.sequence)}; name a sequence for each candidate"
            )
        return self


def histories(
    given: Sequence[HistoryConfig] | None, fields: Sequence[FieldSpec]
) -> list[HistoryConfig]:
    """The ``given`` histories, checked; ``None``: one of every sequence feature that shares the
    table of a categorical one.

    Errors: `InputError` (a `ValueError`) for names that are no features of the right kind, a
    sequence that does not share its candidate's table, or columns of unequal ``max_length``.
    """
    known = {field.name: field for field in fields}
    if given is None:
        return [
            HistoryConfig(candidate=(field.shares,), sequence=(field.name,))
            for field in fields
            if field.kind == "sequence"
            and field.shares is not None
            and field.shares in known
            and known[field.shares].kind == "categorical"
        ]
    for pair in given:
        wanted = [(name, "categorical") for name in pair.candidate]
        for which, kind in [*wanted, *((name, "sequence") for name in pair.sequence)]:
            if which not in known or known[which].kind != kind:
                names = ", ".join(field.name for field in fields if field.kind == kind)
                raise InputError(
                    f"model.histories: {which!r} is no {kind} feature; name one of them "
                    f"({names or 'there is none'}) or add it to features"
                )
        for candidate, name in zip(pair.candidate, pair.sequence, strict=False):
            if known[name].shares != candidate:
                raise InputError(
                    f"model.histories: {name!r} must use the table of its candidate; set "
                    f"features.{name}.shares to {candidate}"
                )
        lengths = {known[name].max_length for name in pair.sequence}
        if len(lengths) > 1:
            raise InputError(
                f"model.histories: {', '.join(pair.sequence)} are cut to different lengths and "
                "would not be aligned; give them one max_length"
            )
    return list(given)
