"""Query selection: tokens of the pixel decoder as the first content of the queries (MODEL.MASK_FORMER.QUERY_SELECTION).

Learned content is the same in every image, so the first layers have to find the objects. Here each token of the levels
that the decoder attends to is classified first, and the Q tokens that are most certain of a class become the content
(two-stage Deformable DETR, arXiv 2010.04159; with masks, Mask DINO, arXiv 2206.02777, "unified and enhanced query
selection"). As in Mask DINO the prediction heads are those of the decoder, only the selected tokens are supervised, and
no gradient of the decoder reaches them: their own losses train them.

Mask DINO gives the decoder the boxes of the selected tokens as anchors. Queries have no boxes here: masked attention
begins in the mask that the token predicts, and the position encoding of the token is added to the learned one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Selection:
    """The selected tokens of B images or clips, the most certain one first.

    Attributes:
        content: (B, Q, C), with gradients.
        index: (B, Q) int64, which of the S tokens of all levels each one is.
    """

    content: Tensor
    index: Tensor

    def queries(self) -> Tensor:
        """Return the first content of the queries, (Q, B, C), through which no gradient flows."""
        return self.content.detach().transpose(0, 1)

    def of_tokens(self, encoding: Tensor) -> Tensor:
        """Return the position encoding (Q, B, C) of the selected tokens from that of all, (S, B or 1, C)."""
        index = self.index.T[..., None].expand(-1, -1, encoding.shape[-1])
        return encoding.expand(-1, index.shape[1], -1).gather(0, index)


class QuerySelection(nn.Module):
    """The projection of tokens to queries, and their selection; checkpoints call it `query_selection`.

    Args:
        in_channels: channels C' of the levels.
        hidden_dim: C.
        num_queries: Q.
    """

    def __init__(self, in_channels: int, hidden_dim: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.project = nn.Linear(in_channels, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, levels: Sequence[Tensor], frames: int, classify: Callable[[Tensor], Tensor]) -> Selection:
        """Select Q tokens of each image or clip; of fewer tokens, each comes as often as others, or once more.

        Args:
            levels: maps (B * T, C', H, W).
            frames: T.
            classify: class logits (B, N, K + 1) of contents (B, N, C).
        """
        tokens = torch.cat([_tokens(level, frames) for level in levels], 1)
        # With gradients, which nobody asks for: autocast before PyTorch 2.11 would keep weights that were cast without
        # them for the layers that follow. Contents are computed again, so that the backward pass has Q tokens, not S.
        index = best_tokens(classify(self._content(tokens.detach())).detach(), self.num_queries)
        selected = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
        return Selection(self._content(selected), index)

    def _content(self, tokens: Tensor) -> Tensor:
        return self.norm(self.project(tokens))  # type: ignore[no-any-return]


def best_tokens(logits: Tensor, count: int) -> Tensor:
    """Return the tokens with the highest probability of a class that is not no-object, best first.

    Args:
        logits: (B, S, K + 1), no-object last.
        count: Q; of fewer tokens all are taken in turn, the best one first.

    Returns:
        (B, Q) int64.
    """
    scores = logits.float().softmax(-1)[..., :-1].amax(-1)
    tokens = scores.shape[1]
    if tokens >= count:
        return scores.topk(count, 1).indices
    order = scores.argsort(1, descending=True)
    return order.repeat(1, -(-count // tokens))[:, :count]


def _tokens(level: Tensor, frames: int) -> Tensor:
    """Return (B * T, C', H, W) as (B, T * H * W, C')."""
    return level.flatten(2).unflatten(0, (-1, frames)).transpose(2, 3).flatten(1, 2)
