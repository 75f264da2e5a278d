"""Learned selection: which parts of the embedding tables deserve their bytes.

A method wraps the embedding layers of any model, gives the trainer a list of phases, and packs the
tables for serving. Adding one: one file, one line in `SELECTIONS`, one in `SelectionConfig`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recsys.selection.autodim import AutoDim, AutoDimConfig
from recsys.selection.dedup import Dedup, DedupConfig
from recsys.selection.deeplight import DeepLight, DeepLightConfig
from recsys.selection.dnis import DNIS, DNISConfig
from recsys.selection.dsl import Dsl, DslConfig
from recsys.selection.magnitude import Magnitude, MagnitudeConfig
from recsys.selection.method import Selection
from recsys.selection.optembed import OptEmbed, OptEmbedConfig
from recsys.selection.optfs import OptFS, OptFSConfig
from recsys.selection.pep import PEP, PEPConfig

__all__ = ["SELECTIONS", "Selection", "SelectionConfig"]

SELECTIONS: dict[str, type[Selection]] = {
    "optfs": OptFS,
    "optembed": OptEmbed,
    "dnis": DNIS,
    "pep": PEP,
    "magnitude": Magnitude,
    "dedup": Dedup,
    "deeplight": DeepLight,
    "dsl": Dsl,
    "autodim": AutoDim,
}

SelectionConfig = Annotated[
    OptFSConfig
    | OptEmbedConfig
    | DNISConfig
    | PEPConfig
    | MagnitudeConfig
    | DedupConfig
    | DeepLightConfig
    | DslConfig
    | AutoDimConfig,
    Field(discriminator="method"),
]
