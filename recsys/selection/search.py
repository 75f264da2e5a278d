"""A third split for methods that tune on rows they do not train on.

Valid stays for early stopping and test is read once, so what a search is judged by is carved out of
train: the phase below trains on the rest of it. A later retrain sees all of train again.
"""

from __future__ import annotations

from collections.abc import Iterator

from recsys.training.phase import Loop, Phase
from recsys.training.prediction import PartableRows, Rows
from recsys.types import Batch, InputError, Target


class SearchPhase(Phase):
    """Steps on train without a random ``share`` of its rows, which `search_rows` are.

    Errors: `InputError` if the share leaves nothing to train or to search on.
    """

    share: float
    setting = "selection.search_share"  # what the user calls it
    _parts: tuple[Rows, Rows] | None = None

    def parts(self, loop: Loop) -> tuple[Rows, Rows]:
        """The rows that the phase trains on, and those that it searches on."""
        if self._parts is None:
            assert isinstance(loop.train_rows, PartableRows), loop.train_rows
            self._parts = loop.train_rows.parted(self.share, seed=loop.seed)
            for rows, use in zip(self._parts, ("train", "search"), strict=True):
                if len(rows) == 0:
                    raise InputError(
                        f"{self.setting} {self.share}: of {len(loop.train_rows)} training "
                        f"rows none is left to {use} on; give a share nearer to 0.5, or more rows"
                    )
        return self._parts

    def search_rows(self, loop: Loop) -> Rows:
        """The rows that no step of this phase descends on."""
        return self.parts(loop)[1]

    def search_batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        """Shuffled batches of the search rows, round after round without end; batch ``start`` of
        ``epoch`` is the same whether or not the run was stopped before it."""
        rows = self.search_rows(loop)
        size = loop.config.batch_size
        a_round = -(-len(rows) // size)
        at, skip = divmod(epoch * self.steps(loop) + start, max(1, a_round))
        while a_round:
            yield from rows.batches(size, shuffle=True, seed=loop.seed + 1, epoch=at, start=skip)
            at, skip = at + 1, 0

    def steps(self, loop: Loop) -> int:
        """Steps of one epoch of this phase."""
        return -(-len(self.parts(loop)[0]) // loop.config.batch_size)

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        size = loop.config.batch_size
        rows = self.parts(loop)[0]
        return rows.batches(size, shuffle=True, seed=loop.seed, epoch=epoch, start=start)
