"""Building blocks of models: they take plain numbers and know no config."""

from recsys.layers.attention import InteractingLayer
from recsys.layers.bilinear import BilinearInteraction
from recsys.layers.bilinear_fusion import BilinearFusion
from recsys.layers.cin import CIN
from recsys.layers.cross import CrossNet, CrossNetV2, GatedCrossNet
from recsys.layers.factorized import FactorizedBlock, FieldGate
from recsys.layers.feature_gate import FeatureGate
from recsys.layers.feature_generation import FeatureGeneration
from recsys.layers.fm import FM
from recsys.layers.logarithmic import LogarithmicLayer
from recsys.layers.mask_block import FieldNorm, MaskBlock
from recsys.layers.mlp import MLP, Activation
from recsys.layers.pairs import PairDots, PairProducts
from recsys.layers.senet import SENET
from recsys.layers.sequence_encoder import SequenceEncoder
from recsys.layers.target_attention import TargetAttention
from recsys.layers.transformer import TransformerBlock

__all__ = [
    "CIN",
    "FM",
    "MLP",
    "SENET",
    "Activation",
    "BilinearFusion",
    "BilinearInteraction",
    "CrossNet",
    "CrossNetV2",
    "FactorizedBlock",
    "FeatureGate",
    "FeatureGeneration",
    "FieldGate",
    "FieldNorm",
    "GatedCrossNet",
    "InteractingLayer",
    "LogarithmicLayer",
    "MaskBlock",
    "PairDots",
    "PairProducts",
    "SequenceEncoder",
    "TargetAttention",
    "TransformerBlock",
]
