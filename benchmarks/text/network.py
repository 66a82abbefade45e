"""A transformer encoder with an exit after every quarter, and what every exit costs.

N: texts, T: tokens, D: width, H: attention heads, C: classes, K: exits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class MultiExitText(nn.Module, ABC):
    """A text network in K stages, each with a head.

    Attributes:
        num_exits: K.
    """

    num_exits: int

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [N, T] to hidden states [N, T, D]."""

    @abstractmethod
    def stage(self, k: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [N, T, D] after stage k; `mask` [N, T] is False where padding is."""

    @abstractmethod
    def head(self, k: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits [N, C] of exit k."""

    def forward(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        """Logits [N, C] of all K exits."""
        hidden = self.embed(tokens)
        logits = []
        for k in range(self.num_exits):
            hidden = self.stage(k, hidden, mask)
            logits.append(self.head(k, hidden, mask))
        return logits


class ExitTransformer(MultiExitText):
    """Small enough to be trained from nothing on a processor.

    Args:
        vocabulary: Tokens it knows.
        max_length: Longest text.
        classes: C.
        width: D.
        layers: Of all K stages together.
        heads: H.
        num_exits: K; divides `layers`.
        dropout: Share of values that training drops.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        max_length: int,
        classes: int,
        width: int = 128,
        layers: int = 8,
        heads: int = 4,
        num_exits: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.num_exits = num_exits
        self._per_stage, rest = divmod(layers, num_exits)
        assert not rest, "every stage has as many layers"
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(max_length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, classes))
            for _ in range(num_exits)
        )
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token and position embeddings, summed."""
        position = self.position.weight[: tokens.shape[1]]
        dropped: Tensor = self.dropout(self.token(tokens) + position)
        return dropped

    def stage(self, k: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Through the layers of stage k."""
        for block in self.blocks[k * self._per_stage : (k + 1) * self._per_stage]:
            hidden = block(hidden, mask)
        return hidden

    def head(self, k: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """From the mean over what is no padding."""
        real = mask[:, :, None].to(hidden.dtype)
        logits: Tensor = self.heads[k]((hidden * real).sum(1) / real.sum(1))
        return logits


class _Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self._dropout = dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        n, t, d = hidden.shape
        qkv = self.qkv(self.norm1(hidden)).view(n, t, 3, self._heads, d // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # By hand: the fused attention's backward pass is most of a training step on a processor.
        agreement = (q @ k.transpose(2, 3)) / math.sqrt(d // self._heads)
        agreement = agreement.masked_fill(~mask[:, None, None, :], -math.inf)
        mixed = agreement.softmax(3).to(v.dtype) @ v
        hidden = hidden + self.drop(self.out(mixed.transpose(1, 2).reshape(n, t, d)))
        deeper: Tensor = hidden + self.drop(self.mlp(self.norm2(hidden)))
        return deeper


def gflops_per_exit(network: MultiExitText, length: int) -> tuple[float, ...]:
    """Cumulative GFLOPs to leave at each exit with a text of `length` tokens.

    Counted as for pictures: one multiply-add is 2 FLOPs, heads of passed exits are included, and
    element-wise work and table look-ups count nothing.
    """
    device = next(network.parameters()).device
    mask = torch.ones(1, length, dtype=torch.bool, device=device)
    training = network.training
    network.eval()
    costs: list[float] = []
    with torch.inference_mode():
        hidden = network.embed(mask.long())
        for k in range(network.num_exits):
            with FlopCounterMode(display=False) as counter:
                hidden = network.stage(k, hidden, mask)
                network.head(k, hidden, mask)
            costs.append((costs[-1] if costs else 0.0) + counter.get_total_flops() / 1e9)
    network.train(training)
    return tuple(costs)
