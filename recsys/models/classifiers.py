"""The CTR models that classify field vectors: every one can also stand behind an augmenter."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from recsys.models.afm import AFM, AFMConfig
from recsys.models.afn import AFN, AFNConfig
from recsys.models.autoint import AutoInt, AutoIntConfig
from recsys.models.dcn import DCN, DCNConfig
from recsys.models.dcnv2 import DCNv2, DCNv2Config
from recsys.models.deepfm import DeepFM, DeepFMConfig
from recsys.models.dlrm import DLRM, DLRMConfig
from recsys.models.dnn import DNN, DNNConfig
from recsys.models.fibinet import FiBiNET, FiBiNETConfig
from recsys.models.final_mlp import FinalMLP, FinalMLPConfig
from recsys.models.final_net import FinalNet, FinalNetConfig
from recsys.models.fm import FactorizationMachine, FMConfig
from recsys.models.ft_transformer import FTTransformer, FTTransformerConfig
from recsys.models.gdcn import GDCN, GDCNConfig
from recsys.models.lr import LR, LRConfig
from recsys.models.masknet import MaskNet, MaskNetConfig
from recsys.models.nasrec import NASRec, NASRecConfig
from recsys.models.pnn import PNN, PNNConfig
from recsys.models.wide_deep import WideDeep, WideDeepConfig
from recsys.models.xdeepfm import XDeepFM, XDeepFMConfig

CLASSIFIERS: dict[str, type[Any]] = {
    "lr": LR,
    "fm": FactorizationMachine,
    "dnn": DNN,
    "deepfm": DeepFM,
    "dcnv2": DCNv2,
    "autoint": AutoInt,
    "dlrm": DLRM,
    "gdcn": GDCN,
    "afm": AFM,
    "afn": AFN,
    "ft_transformer": FTTransformer,
    "pnn": PNN,
    "masknet": MaskNet,
    "final_mlp": FinalMLP,
    "final_net": FinalNet,
    "wide_deep": WideDeep,
    "dcn": DCN,
    "xdeepfm": XDeepFM,
    "fibinet": FiBiNET,
    "nasrec": NASRec,
}

ClassifierConfig = Annotated[
    LRConfig
    | FMConfig
    | DNNConfig
    | DeepFMConfig
    | DCNv2Config
    | AutoIntConfig
    | DLRMConfig
    | GDCNConfig
    | AFMConfig
    | AFNConfig
    | FTTransformerConfig
    | PNNConfig
    | MaskNetConfig
    | FinalMLPConfig
    | FinalNetConfig
    | WideDeepConfig
    | DCNConfig
    | XDeepFMConfig
    | FiBiNETConfig
    | NASRecConfig,
    Field(discriminator="name"),
]
