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
        UserError: the merged model's logits differ from the adapted one's by more than rounding.
    """
    ids = torch.tensor([text.prompt([{"role": "user", "content": "Is this the same model?"}])], device=model.device)
    before = model(input_ids=ids).logits.float()
    single = model.merge_and_unload()
    after = single(input_ids=ids).logits.float()
    difference, scale = float((after - before).abs().max()), float(before.abs().max())
    # Folding rounds once per weight in the dtype of storage.
    if difference > 50 * torch.finfo(single.dtype).eps * max(1.0, scale):
        raise UserError(
            f"export: merging changes the logits by {difference:.3g} (largest logit {scale:.3g}): "
            "this adapter does not survive a merge.\n"
            "Serve adapter/ with peft instead."
        )
    return single
