"""peft's layer for the rows of some tokens, computed without a copy of the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn


class TokenRows(TrainableTokensLayer):
    """An embedding or a head, some rows of which are trained.

    peft's own puts the rows into a copy of the whole matrix at every call, has a gradient of its size, and leaves out the bias
    of a head. Here the rest is computed as stored, and what the rows give is put in place; files are peft's.
    """

    def forward_adapters(self, x: Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Token ids [...] to vectors [..., H], or hidden states [..., H] to logits [..., V]."""
        if self.disable_adapters or self.merged or not active_adapters:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        name = active_adapters[0]
        rows, ids = self.trainable_tokens_delta[name], torch.tensor(self.token_indices[name], device=x.device)
        base, out = self.base_layer, self.base_layer(x)
        if isinstance(base, nn.Linear):
            bias = None if base.bias is None else base.bias[ids]
            return out.index_copy_(-1, ids, nn.functional.linear(x, rows.to(base.weight.dtype), bias).to(out.dtype))
        found = x[..., None] == ids
        mine = nn.functional.embedding(found.int().argmax(-1), rows).to(out.dtype)
        scale = self._get_embed_scale()
        return torch.where(found.any(-1, keepdim=True), mine if scale is None else mine * scale.to(out.dtype), out)

    def apart(self) -> tuple[nn.Module, Sequence[int], Tensor | None]:
        """The layer as stored, ids [k] of the tokens whose rows are others, and these rows, [k, H]; none where not in use."""
        name = next(iter(self.active_adapters), None)
        if name is None or self.disable_adapters or self.merged:
            return self.base_layer, (), None
        return self.base_layer, self.token_indices[name], self.trainable_tokens_delta[name]


def use_token_rows(model: nn.Module) -> None:
    """Compute the token rows of a model with an adapter by :class:`TokenRows`."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TokenRows
