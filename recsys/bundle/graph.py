"""What is exported: raw tensors in, probabilities out, in one scriptable module."""

from typing import List

import torch
from torch import Tensor, nn

from serving.encode import Batch

__all__ = ["ServingGraph"]


class ServingGraph(nn.Module):
    """``sigmoid(model(id_map(encoder(raw))))``: all fitted state of a model in one graph.

    **Shape** - the fields of a raw `serving.encode.Batch`: ``ids`` (B, C) int64, ``floats`` (B, K)
    float64, ``lists[f]`` (B, L_f) int64, ``lengths`` (B, number of lists) int64; output (B,)
    float32 probabilities.
    """

    def __init__(self, *, encoder: nn.Module, id_map: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.id_map = id_map
        self.model = model

    def forward(self, ids: Tensor, floats: Tensor, lists: List[Tensor], lengths: Tensor) -> Tensor:
        encoded = self.encoder(Batch(ids, floats, lists, lengths))
        logits = self.model(self.id_map(encoded))  # (B,)
        return torch.sigmoid(logits.to(torch.float32))  # (B,)
