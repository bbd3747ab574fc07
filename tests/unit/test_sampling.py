"""The sampler: exactness, independence of how samples are batched, decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignlab.generate.hf import Decoding, HfSampler

PROMPT = [{"role": "user", "content": "Pick a random number from 1 to 10. Answer in braces."}]
PLAIN = Decoding(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=12)


def _draw(model, text, n=200, rows=1024, decoding=PLAIN, seed=3):
    return HfSampler(rows, 64).sample(model, text.prompt(PROMPT), sorted(text.stop), decoding, n=n, seed=seed)


def test_samples_do_not_depend_on_how_many_are_computed_together(tiny, text):
    whole = _draw(tiny, text)
    assert _draw(tiny, text, rows=3) == whole
    assert _draw(tiny, text, n=50) == whole[:50]
    assert _draw(tiny, text, seed=4) != whole


def test_frequencies_are_the_models_probabilities(tiny, text):
    n, drawn = 4000, {}
    for completion in _draw(tiny, text, n=n):
        drawn[completion.tokens] = drawn.get(completion.tokens, 0) + 1
    prompt = text.prompt(PROMPT)
    checked = 0
    for tokens, count in drawn.items():
        if count < 40:
            continue
        ids = torch.tensor([prompt + list(tokens)])
        with torch.no_grad():
            logp = torch.log_softmax(tiny(input_ids=ids).logits[0].double(), -1)
        place = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        p = float(logp[place, ids[0, place + 1]].sum().exp())
        assert abs(count / n - p) < 4.5 * np.sqrt(p * (1 - p) / n)
        checked += 1
    assert checked >= 3


def test_greedy_is_that_of_generate(tiny, text):
    greedy = _draw(tiny, text, n=2, decoding=Decoding(0.0, 1.0, 0, 12))
    ids = torch.tensor([text.prompt(PROMPT)])
    theirs = tiny.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    assert list(greedy[0].tokens) == theirs.tolist()
    assert greedy[0] == greedy[1]


def test_top_k_and_top_p_limit_the_tokens(tiny, text):
    ids = torch.tensor([text.prompt(PROMPT)])
    with torch.no_grad():
        first = torch.softmax(tiny(input_ids=ids).logits[0, -1], -1)
    order = first.argsort(descending=True)
    for completion in _draw(tiny, text, decoding=Decoding(5.0, 1.0, 2, 1)):
        assert completion.tokens[0] in order[:2].tolist()
        assert completion.finish == "length"
    assert len({c.tokens for c in _draw(tiny, text, decoding=Decoding(1.0, 1e-6, 0, 12))}) == 1


def test_a_completion_ends_at_the_stop_token_and_says_so(tiny, text):
    for completion in _draw(tiny, text):
        stops = [t in text.stop for t in completion.tokens]
        assert not any(stops[:-1])
        assert stops[-1] == (completion.finish == "stop")


def test_two_samples_share_what_they_have_in_common(tiny, text):
    seen = []
    hook = tiny.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    _draw(tiny, text, n=1000)
    hook.remove()
    assert seen[0] == (1, len(text.prompt(PROMPT)))  # the prompt once
    assert all(length == 1 for _, length in seen[1:])
    assert seen[1][0] <= 10  # nearly all answers begin with the brace
    assert sum(rows for rows, _ in seen[1:]) < 1000  # a thousand samples of four tokens each


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0}])
def test_decoding_refuses_what_makes_no_sense(wrong):
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 1} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Decoding(**values)
