"""Times AutoInt's interacting layers, plain operators against the chunked kernel.

    python benchmarks/attention.py [--batch 4096] [--repeats 9] [--threads N]

Sizes of DESIGN 6: 39 fields, embedding width 16, 3 layers of width 32, 2 heads, MLP 400-400. Every
line is a median; plain and kernel take turns in one run, so that their ratio stands on a busy
machine too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from recsys.layers import MLP, InteractingLayer

FIELDS, DIM, WIDTH, HEADS, LAYERS = 39, 16, 32, 2, 3


class Network(nn.Module):
    """AutoInt+ after the embedding: ``(B, F, D) -> (B,)``; ``plain`` takes the definition."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = plain
        self.interacting = nn.ModuleList(
            InteractingLayer(input_dim=width, attention_dim=WIDTH, heads=HEADS)
            for width in [DIM] + [WIDTH] * (LAYERS - 1)
        )
        self.output = nn.Linear(FIELDS * WIDTH, 1)
        self.mlp = MLP(input_dim=FIELDS * DIM, hidden_units=(400, 400), output_dim=1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.interacting:
            if self.plain:
                h = layer.forward_with_attention(h)[0]
            else:
                h = layer(h)
        return (self.output(h.flatten(1)) + self.mlp(x.flatten(1))).squeeze(1)


def medians(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task; the tasks take turns, the first two are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 2):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    x = torch.randn(options.batch, FIELDS, DIM, requires_grad=True)
    plain, fast = Network(plain=True), Network(plain=False)
    scripted = torch.jit.script(Network(plain=False).eval())

    def train(network: Network) -> Callable[[], object]:
        def step() -> None:
            network.zero_grad()
            nn.functional.softplus(network(x)).mean().backward()

        return step

    def predict(network: nn.Module) -> Callable[[], object]:
        def step() -> None:
            with torch.no_grad():
                network(x)

        return step

    forward = medians(
        {"plain": predict(plain), "kernel": predict(fast), "scripted": predict(scripted)},
        options.repeats,
    )
    both = medians({"plain": train(plain), "kernel": train(fast)}, options.repeats)

    print(f"batch {options.batch}, {options.threads} threads, torch {torch.__version__}")
    print(f"{'':24}{'ms':>10}{'rows/s':>12}{'ratio':>8}")
    for title, seconds in (("forward", forward), ("forward + backward", both)):
        for name, value in seconds.items():
            rate, ratio = options.batch / value, seconds["plain"] / value
            print(f"{title + ' ' + name:24}{value * 1e3:10.1f}{rate:12,.0f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
