"""How a tracked run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from recsys.training.stopping import Interrupted
from recsys.training.tracking.tracker import Tracker


@contextmanager
def finishing(tracker: Tracker) -> Iterator[None]:
    """Finishes the run of ``tracker`` with the block: as killed if it was interrupted, as failed
    after another error."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish()
