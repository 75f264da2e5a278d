"""Where each model was first described."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """``title`` is the short one; ``year`` of publication; ``url`` as in the model's docstring."""

    title: str
    authors: str
    year: int
    url: str


PAPERS: dict[str, Paper] = {
    "lr": Paper("LR", "Richardson et al.", 2007, "https://doi.org/10.1145/1242572.1242643"),
    "fm": Paper("FM", "Rendle", 2010, "https://doi.org/10.1109/ICDM.2010.127"),
    "dnn": Paper(
        "YouTube DNN", "Covington et al.", 2016, "https://doi.org/10.1145/2959100.2959190"
    ),
    "wide_deep": Paper("Wide & Deep", "Cheng et al.", 2016, "https://arxiv.org/abs/1606.07792"),
    "pnn": Paper("PNN", "Qu et al.", 2016, "https://arxiv.org/abs/1611.00144"),
    "gru4rec": Paper("GRU4Rec", "Hidasi et al.", 2016, "https://arxiv.org/abs/1511.06939"),
    "deepfm": Paper("DeepFM", "Guo et al.", 2017, "https://arxiv.org/abs/1703.04247"),
    "afm": Paper("AFM", "Xiao et al.", 2017, "https://arxiv.org/abs/1708.04617"),
    "dcn": Paper("DCN", "Wang et al.", 2017, "https://arxiv.org/abs/1708.05123"),
    "xdeepfm": Paper("xDeepFM", "Lian et al.", 2018, "https://arxiv.org/abs/1803.05170"),
    "din": Paper("DIN", "Zhou et al.", 2018, "https://arxiv.org/abs/1706.06978"),
    "sasrec": Paper("SASRec", "Kang and McAuley", 2018, "https://arxiv.org/abs/1808.09781"),
    "autoint": Paper("AutoInt", "Song et al.", 2019, "https://arxiv.org/abs/1810.11921"),
    "bert4rec": Paper("BERT4Rec", "Sun et al.", 2019, "https://arxiv.org/abs/1904.06690"),
    "fgcnn": Paper("FGCNN", "Liu et al.", 2019, "https://arxiv.org/abs/1904.04447"),
    "fibinet": Paper("FiBiNET", "Huang et al.", 2019, "https://arxiv.org/abs/1905.09433"),
    "dlrm": Paper("DLRM", "Naumov et al.", 2019, "https://arxiv.org/abs/1906.00091"),
    "afn": Paper("AFN", "Cheng et al.", 2020, "https://arxiv.org/abs/1909.03276"),
    "dcnv2": Paper("DCN V2", "Wang et al.", 2021, "https://arxiv.org/abs/2008.13535"),
    "masknet": Paper("MaskNet", "Wang et al.", 2021, "https://arxiv.org/abs/2102.07619"),
    "ft_transformer": Paper(
        "FT-Transformer", "Gorishniy et al.", 2021, "https://arxiv.org/abs/2106.11959"
    ),
    "recformer": Paper("Recformer", "Li et al.", 2023, "https://arxiv.org/abs/2305.13731"),
    "nasrec": Paper("NASRec", "Zhang et al.", 2023, "https://arxiv.org/abs/2207.07187"),
    "final_mlp": Paper("FinalMLP", "Mao et al.", 2023, "https://arxiv.org/abs/2304.00902"),
    "final_net": Paper("FinalNet", "Zhu et al.", 2023, "https://doi.org/10.1145/3539618.3591988"),
    "gdcn": Paper("GDCN", "Wang et al.", 2023, "https://arxiv.org/abs/2311.04635"),
}
