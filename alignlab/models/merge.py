"""An adapter folded into the weights it adapts, checked."""

from __future__ import annotations

from typing import Any

import torch

from alignlab.errors import UserError
from alignlab.text import TextCodec


@torch.no_grad()
def merged(model: Any, text: TextCodec) -> Any:
    """The base model with the adapter of a PEFT model folded in.

    Raises:
        UserError: merging moves more of the next-token probability than rounding does: 0.1 %, or 5 % where weights have 16 bits.
    """
    ids = torch.tensor([text.prompt([{"role": "user", "content": "Is this the same model?"}])], device=model.device)
    before = model(input_ids=ids).logits.float().softmax(-1)
    single = model.merge_and_unload()
    after = single(input_ids=ids).logits.float().softmax(-1)
    difference = float((after - before).abs().sum(-1).max()) / 2
    # Folding rounds each weight once in the dtype of storage.
    if difference > (1e-3 if single.dtype.itemsize > 2 else 0.05):
        raise UserError(
            f"export: merging moves {difference:.1%} of the next-token probability: "
            "this adapter does not survive a merge.\n"
            "Serve adapter/ with peft instead."
        )
    return single
