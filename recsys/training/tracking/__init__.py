"""Run tracking. MLflow is imported nowhere else in the library, and only once a tracker is opened.

tracker = open_tracker(config.tracking)
run_id = tracker.start(config.name, params=config.model_dump())
...
tracker.finish()
"""

from recsys.settings import TrackingConfig
from recsys.training.tracking.mlflow_tracker import MlflowTracker
from recsys.training.tracking.stores import open_client, resolve_uri
from recsys.training.tracking.tracker import NullTracker, RunStatus, Tracker, flatten

__all__ = [
    "MlflowTracker",
    "NullTracker",
    "RunStatus",
    "Tracker",
    "flatten",
    "open_client",
    "open_tracker",
    "resolve_uri",
]


def open_tracker(config: TrackingConfig) -> Tracker:
    """The tracker that ``config`` asks for; ``uri: null`` gives a `NullTracker`.

    Raises `InputError` when the store cannot be used.
    """
    if config.uri is None:
        return NullTracker()
    return MlflowTracker(uri=config.uri, experiment=config.experiment)
