"""What a selection method is: wrapped layers, phases, and a serving form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from recsys.embeddings import EmbeddingLayer, IdMap
from recsys.settings import TrainConfig
from recsys.training.phase import Phase
from recsys.types import FrozenConfig


class Selection(ABC):
    """One method around the embedding layers of one model, which it wraps in place when it is made.

    ``config``: its own; ``layers``: all of the model, in the order in which they share row indices.
    It draws nothing from torch's generator, and at the start the model's logits are those of the
    unwrapped model, bit for bit.
    """

    Config: ClassVar[type[FrozenConfig]]

    @abstractmethod
    def __init__(
        self, config: Any, layers: Sequence[EmbeddingLayer], train: TrainConfig
    ) -> None: ...

    @abstractmethod
    def phases(self) -> list[Phase]:
        """What the trainer runs, in order. Phases of one list may share state."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """What was kept, as plain JSON for the run's record and the bundle's manifest."""

    @abstractmethod
    def assume(self, report: Mapping[str, Any]) -> None:
        """Gives the tables the sizes of `report`, so that saved weights of a packed model fit."""

    @abstractmethod
    def pack(self, model: nn.Module, id_map: IdMap) -> IdMap:
        """Replaces the layers of ``model`` by their smallest serving form; outputs stay equal.

        Returns the id map that goes with them.
        """

    @abstractmethod
    def training_bytes(self) -> int:
        """Bytes that the method needs in training beside the layers' own."""
