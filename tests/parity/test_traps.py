"""Ways of calling transformers that give wrong numbers without a word. Each is shown to be wrong, and ours right, on one input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ALL, WINDOW, batch_of, build, chain, oracle, tree
from torch import Tensor

from alignlab.engine.attention import Forest, ancestor_mask, model_masks
from alignlab.engine.batch import Batch, collate
from alignlab.engine.scorer import Scorer

WRONG, RIGHT = 0.1, 1e-5  # in float64, where eager softmax and RMS norms are in fp32 all the same


def naive(model: Any, batch: Batch, **inputs: Any) -> Tensor:
    """Log-probabilities from one packed call, made as given."""
    logits = model(input_ids=batch.tokens[None], **inputs).logits[0]
    return logits.log_softmax(-1)[batch.source, batch.target]


def error(model: Any, batch: Batch, logp: Tensor) -> float:
    return float((logp - oracle(model, batch)).abs().max())


def ours(model: Any, batch: Batch, *backends: str) -> float:
    return max(error(model, batch, Scorer(model, backend)(batch)) for backend in backends or ("segments", "masked", "padded"))


@torch.no_grad()
def test_a_boolean_mask_is_added_as_zero_and_one_by_eager_attention() -> None:
    batch = collate([tree(1)])
    model = build("llama", attn_implementation="eager")
    boolean = ancestor_mask(batch.end[None], batch.depth[None], torch.float64) == 0
    assert error(model, batch, naive(model, batch, position_ids=batch.depth[None], attention_mask=boolean)) > WRONG
    assert model_masks(model.config, batch, torch.float64).dtype == torch.float64
    assert ours(model, batch) < RIGHT
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "qwen2"])
def test_a_mask_made_by_hand_switches_the_sliding_window_off(name: str) -> None:
    batch = collate([chain(5 * WINDOW, 1)])
    model = build(name)
    full = ancestor_mask(batch.end[None], batch.depth[None], torch.float64)
    given = full if name == "mistral" else {"full_attention": full, "sliding_attention": full}
    assert error(model, batch, naive(model, batch, position_ids=batch.depth[None], attention_mask=given)) > WRONG
    assert ours(model, batch, "masked", "padded", "auto") < RIGHT


@torch.no_grad()
def test_the_window_counts_along_the_path_not_along_the_line() -> None:
    """In a packed trie the trunk is far from the last branch, and near to it on the path."""
    batch = collate([tree(1)])
    model = build("mistral")
    index = torch.arange(len(batch))[None]
    by_line = ancestor_mask(batch.end[None], index, torch.float64, WINDOW)
    assert error(model, batch, naive(model, batch, position_ids=batch.depth[None], attention_mask=by_line)) > WRONG
    assert ours(model, batch) < RIGHT


@torch.no_grad()
@pytest.mark.parametrize("more", [{}, {"use_cache": False, "attention_mask": torch.ones((1, 20), dtype=torch.long)}])
def test_packing_goes_unnoticed_with_the_default_cache_or_a_mask_of_ones(more: dict[str, Any]) -> None:
    batch = collate([chain(9, 1), chain(11, 2)])
    model = build("llama")
    assert error(model, batch, naive(model, batch, position_ids=batch.depth[None], **more)) > WRONG
    assert error(model, batch, naive(model, batch, position_ids=batch.depth[None], use_cache=False)) < RIGHT
    assert ours(model, batch) < RIGHT


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_position_ids_are_not_found_by_the_model(name: str) -> None:
    batch = collate([tree(1), chain(5, 2)])
    model = build(name)
    mask = model_masks(model.config, batch, torch.float64)
    assert error(model, batch, naive(model, batch, attention_mask=mask)) > WRONG
    assert ours(model, batch) < RIGHT


@torch.no_grad()
def test_logits_are_kept_by_a_list_of_places_in_one_dimension() -> None:
    """Two dimensions mean one thing in some versions of transformers and another in others."""
    model = build("llama")
    scorer, batch = Scorer(model), batch_of(ALL)
    kept: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: kept.append(kwargs["logits_to_keep"]), with_kwargs=True)
    scorer.head = "own"
    logp = scorer(batch)
    hook.remove()
    assert [places.tolist() for places in kept] == [sorted(set(batch.source.tolist()))]
    assert error(model, batch, logp) < RIGHT


@torch.no_grad()
def test_padding_that_sees_nothing_becomes_nan() -> None:
    """A padded place further from its text than a sliding window sees nothing; eager attention makes NaN of that, for all."""
    batch = collate([chain(20, 1), chain(4, 2)])
    model = build("mistral", attn_implementation="eager")
    ids, mask = torch.zeros((2, 20), dtype=torch.long), torch.zeros((2, 20), dtype=torch.long)
    ids[0], ids[1, :4] = batch.tokens[:20], batch.tokens[20:]
    mask[0], mask[1, :4] = 1, 1
    assert model(input_ids=ids, attention_mask=mask).logits[1, :4].isnan().any()
    assert ours(model, batch) < RIGHT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_mask_of_minus_infinity_becomes_nan_where_nothing_is_seen(dtype: torch.dtype) -> None:
    """The shorter tree of a group is filled up with places that see nothing and that nobody sees."""
    batch = collate([tree(1, branches=(3, 4)), tree(2, branches=(3, 5))])
    forest = Forest(batch)
    assert len(forest.groups) == 1
    mask = forest.mask(0, 0, dtype, None)
    assert mask is not None
    hidden = (mask == torch.finfo(dtype).min).all(-1)
    assert hidden.any()
    scores = torch.randn(mask.shape, dtype=dtype).requires_grad_()
    weights = (scores + mask).softmax(-1)
    weights.square().sum().backward()
    assert weights.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    infinite = torch.zeros_like(mask).masked_fill_(mask != 0, float("-inf"))
    assert (scores + infinite).softmax(-1).isnan().any()


@torch.no_grad()
def test_a_tree_filled_up_to_the_size_of_its_group_is_scored_as_alone() -> None:
    """Repeated places would count twice if they were seen."""
    rows = [tree(s, branches=(3, 4)) for s in range(3)] + [tree(4, branches=(3, 5)), chain(20, 5), chain(23, 6), chain(21, 7)]
    batch = collate(rows)
    forest = Forest(batch)
    assert [len(group.nodes) for group in forest.groups] == [3, 4]
    for name in ("llama", "mistral"):
        assert ours(build(name), batch, "segments") < RIGHT
