"""The kinds of features: one file each, one line each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recsys.features.bag import Bag
from recsys.features.base import FeatureBase
from recsys.features.categorical import Categorical
from recsys.features.null_indicator import NullIndicator
from recsys.features.numeric import Numeric
from recsys.features.sequence import Sequence

FEATURES: dict[str, type[FeatureBase]] = {
    "categorical": Categorical,
    "numeric": Numeric,
    "bag": Bag,
    "sequence": Sequence,
    "null_indicator": NullIndicator,
}

FeatureConfig = Annotated[
    Categorical | Numeric | Bag | Sequence | NullIndicator, Field(discriminator="type")
]
"""One feature of a run's config, told apart by its ``type``."""
