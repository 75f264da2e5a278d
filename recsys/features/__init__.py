"""Features: config -> fitted, frozen state -> scriptable encoder.

`fit` sees the training rows once; `Features` is what it found; `Features.encoder` is the module
that turns raw ids and numbers into what tables and models take, in training and in the graph.
"""

from recsys.features.encoder import FeatureEncoder
from recsys.features.fit import fit
from recsys.features.kinds import FEATURES, FeatureConfig
from recsys.features.state import Features

__all__ = ["FEATURES", "FeatureConfig", "FeatureEncoder", "Features", "fit"]
