"""A table behind something. Scriptable at every stage of a run."""

from typing import ClassVar, List

from torch import Tensor

from recsys.embeddings.store import FloatStore


class WrappedStore(FloatStore):
    """To layers and optimisers it looks like ``store``; lookups differ."""

    __jit_unused_properties__: ClassVar[List[str]] = ["weight"]

    def __init__(self, *, store: FloatStore) -> None:
        super().__init__()
        self.store = store
        self.sparse = store.sparse
        self.fused = store.fused
        self.padding = store.padding

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The table as it is trained, (R, width)."""
        return self.store.weight
