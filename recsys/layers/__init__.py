"""Building blocks of models: they take plain numbers and know no config."""

from recsys.layers.attention import InteractingLayer
from recsys.layers.cross import CrossNetV2
from recsys.layers.fm import FM
from recsys.layers.mlp import MLP, Activation

__all__ = ["FM", "MLP", "Activation", "CrossNetV2", "InteractingLayer"]
