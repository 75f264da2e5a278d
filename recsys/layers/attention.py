"""The interacting layer of AutoInt: multi-head self-attention over the fields of a row."""

from typing import Literal, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.attention_function import Attend, kept_weights
from recsys.layers.attention_kernel import attend

Residual = Literal["auto", "projected", "none"]
NormPlace = Literal["none", "before_relu", "after_relu"]


class InteractingLayer(nn.Module):
    """One interacting layer: ``x' = relu(concat_h(softmax(Q_h K_h^T) V_h) + R)``.

    ``Q, K, V`` are bias-free projections of ``x`` to ``attention_dim`` = d' (the total over the
    heads). Song et al., AutoInt, CIKM 2019, https://arxiv.org/abs/1810.11921. The code bases
    disagree on the details, so they are flags; the defaults are those of FuxiCTR:

    - ``scale``: divide ``Q K^T`` by ``sqrt(d' / heads)``.
    - ``residual``: ``auto`` adds ``x`` itself, projected only if its width is not d';
      ``projected`` always projects (the paper); ``none`` adds nothing.
    - ``relu_projections``: ReLU on Q, K, V and the projected residual (the official TF code).
    - ``layer_norm``: none, before the final ReLU (FuxiCTR) or after it (official TF).
    - ``relu``: whether there is a final ReLU; without one there is no layer norm either, and the
      layer is the attention of a transformer before its output projection.
    - ``dropout``: probability of dropping an attention weight in training.

    **Shape** ``(B, F, input_dim) -> (B, F, attention_dim)``.

    **Example**

    >>> InteractingLayer(input_dim=4, attention_dim=6, heads=2)(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 6])
    """

    def __init__(
        self,
        *,
        input_dim: int,
        attention_dim: int,
        heads: int = 1,
        scale: bool = False,
        residual: Residual = "auto",
        relu_projections: bool = False,
        layer_norm: NormPlace = "none",
        relu: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert attention_dim % heads == 0, (attention_dim, heads)
        assert 0 <= dropout < 1, dropout
        self.heads = heads
        self.attention_dim = attention_dim
        self.head_dim = attention_dim // heads
        self.factor = self.head_dim**-0.5 if scale else 1.0
        self.relu_projections = relu_projections
        self.dropout = dropout
        assert relu or layer_norm == "none", layer_norm
        self.norm_first = layer_norm == "before_relu"
        self.relu_last = relu and not self.norm_first  # of what the kernel does
        self.norm = nn.Identity() if layer_norm == "none" else nn.LayerNorm(attention_dim)
        self.add_input = residual == "auto" and input_dim == attention_dim
        self.project_residual = residual != "none" and not self.add_input
        # Q, K, V (and R) side by side, so that one matrix product computes them all.
        blocks = 4 if self.project_residual else 3
        self.weight = nn.Parameter(torch.empty(blocks, attention_dim, input_dim))
        for block in range(blocks):
            nn.init.xavier_normal_(self.weight[block])

    def forward(self, x: Tensor) -> Tensor:
        if not self._fusable(x):
            return self.forward_with_attention(x)[0]
        # Scripted, the kernel runs without gradients; eager, its autograd function adds them.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            mixed = attend(
                x,
                self.weight,
                self.heads,
                self.factor,
                self.relu_projections,
                self.add_input,
                self.relu_last,
            )
        else:
            mixed = self._attend_with_gradient(x)
        if self.norm_first:
            return self.norm(mixed).relu()  # (B, F, d')
        return self.norm(mixed)  # (B, F, d')

    def _fusable(self, x: Tensor) -> bool:
        """Whether the kernel can stand in for the plain operators of the definition."""
        if x.device.type != "cpu":
            return False
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            if self.training and self.dropout > 0:
                return False
            return not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
        else:
            tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
            return not (torch.compiler.is_compiling() or tracing)

    @torch.jit.unused
    def _attend_with_gradient(self, x: Tensor) -> Tensor:
        kept: Optional[Tensor] = None
        keep = 1.0
        if self.training and self.dropout > 0:
            shape = (self.heads, x.shape[0], x.shape[1], x.shape[1])
            kept, keep = kept_weights(shape, self.dropout)
        narrow = (
            torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        )
        mixed: Tensor = Attend.apply(
            x,
            self.weight,
            kept,
            self.heads,
            self.factor,
            self.relu_projections,
            self.add_input,
            self.relu_last,
            keep,
            narrow,
        )
        return mixed

    def forward_with_attention(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The output and the weights ``(B, H, F, F)``: ``[b, h, m, k]`` is how much field m
        attends to field k; rows sum to 1 (in eval mode, or without dropout).

        This is the definition of the layer; `forward` gives the same output, faster."""
        batch, fields = x.shape[0], x.shape[1]
        projected = F.linear(x, self.weight.flatten(0, 1))  # (B, F, blocks * d')
        if self.relu_projections:
            projected = projected.relu()
        heads = projected.view(batch, fields, self.weight.shape[0], self.heads, self.head_dim)
        heads = heads.permute(2, 0, 3, 1, 4)  # (blocks, B, H, F, d)
        scores = torch.matmul(heads[0] * self.factor, heads[1].transpose(2, 3))  # (B, H, F, F)
        attention = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        mixed = torch.matmul(attention, heads[2])  # (B, H, F, d)
        mixed = mixed.transpose(1, 2).reshape(batch, fields, self.attention_dim)
        residual: Optional[Tensor] = None
        if self.project_residual:
            residual = projected[:, :, 3 * self.attention_dim :]
        elif self.add_input:
            residual = x
        if residual is not None:
            mixed = mixed + residual
        if self.norm_first:
            mixed = self.norm(mixed).relu()
        else:
            mixed = self.norm(mixed.relu() if self.relu_last else mixed)
        return mixed, attention  # (B, F, d'), (B, H, F, F)
