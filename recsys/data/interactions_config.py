"""Config of an interaction log, the `data` of a sequence run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from recsys.features.item_tokens import ItemTextConfig
from recsys.settings import Paths
from recsys.types import FrozenConfig

Share = Annotated[float, Field(gt=0, lt=1)]


class LeaveOneOut(FrozenConfig):
    """Each user's last item is the test target, the one before the valid target, the rest is train.

    Two items: train and test; one item: train alone.
    """

    method: Literal["leave_one_out"]


class GlobalTime(FrozenConfig):
    """Two moments cut the log for all users: ``valid`` and ``test`` are the shares of interactions
    between the cuts and after the second one (equal times stay together, in the later part).

    A user's row of valid or test has the first item of that part as its target and everything
    before the cut as its history; users without either have no row.
    """

    method: Literal["time"]
    valid: Share = 0.1
    test: Share = 0.1

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError("data.split: valid + test must be below 1, or no train is left")
        return self


SequenceSplit = Annotated[LeaveOneOut | GlobalTime, Field(discriminator="method")]


class InteractionsConfig(FrozenConfig):
    """Where the log is, one row an interaction, and its columns. ``timestamp`` orders a user's
    items (a time, a number or a position; ties by place in the log). ``items``: the text of the
    items, for models that read it."""

    source: Paths
    user: str
    item: str
    timestamp: str
    split: SequenceSplit
    items: ItemTextConfig | None = None

    @model_validator(mode="after")
    def _own_columns(self) -> Self:
        if len({self.user, self.item, self.timestamp}) < 3:
            raise ValueError("data.user, data.item and data.timestamp must be three columns")
        return self
