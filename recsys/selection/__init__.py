"""Learned selection: which parts of the embedding tables deserve their bytes.

A method wraps the embedding layers of any model, gives the trainer a list of phases, and packs the
tables for serving. Adding one: one file, one line in `SELECTIONS`, one in `SelectionConfig`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recsys.selection.dedup import Dedup, DedupConfig
from recsys.selection.magnitude import Magnitude, MagnitudeConfig
from recsys.selection.method import Selection
from recsys.selection.optembed import OptEmbed, OptEmbedConfig
from recsys.selection.optfs import OptFS, OptFSConfig

__all__ = ["SELECTIONS", "Selection", "SelectionConfig"]

SELECTIONS: dict[str, type[Selection]] = {
    "optfs": OptFS,
    "optembed": OptEmbed,
    "magnitude": Magnitude,
    "dedup": Dedup,
}

SelectionConfig = Annotated[
    OptFSConfig | OptEmbedConfig | MagnitudeConfig | DedupConfig,
    Field(discriminator="method"),
]
