"""Tiny random models of many architectures, forests, and the plain oracle that every backend is held against.

The oracle shares no code with the engine: each root-to-leaf path is one unpadded, unpacked call of the model by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from alignlab.engine.batch import Batch, collate
from alignlab.protocols import Row
from alignlab.trees import TreeBuilder

VOCABULARY = 97
WINDOW = 4
"""sliding window of the models that have one: shorter than the paths"""

# Weights this large make a model care who sees whom: a wrong mask changes log-probabilities by about one.
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OLD = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
_GEMMA = {**_SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
_LOCAL = {**_SIZES, "sliding_window": WINDOW}
_BOTH = ["sliding_attention", "full_attention"]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "gpt2": {**_OLD, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": _LOCAL,
    "gemma2": {**_GEMMA, "layer_types": _BOTH},
    "gemma3_text": {**_GEMMA, "layer_types": _BOTH},
    "qwen2": {**_LOCAL, "use_sliding_window": True, "layer_types": _BOTH},
    "qwen3": {**_SIZES, "head_dim": 8},
    "mixtral": {**_LOCAL, "num_local_experts": 4},
    "phi3": _LOCAL,
    "gpt_neox": _SIZES,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "init_std": 0.3,
        "word_embed_proj_dim": 32,
    },
    "cohere": {**_SIZES, "logit_scale": 0.25},
    "granite": {**_SIZES, "logits_scaling": 3.0, "residual_multiplier": 0.5},
    "phimoe": {**_LOCAL, "num_local_experts": 4},
    "gpt_oss": {**_LOCAL, "head_dim": 8, "num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "falcon": {**_OLD, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {**_OLD, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {**_OLD, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "gpt_neo": {
        **_OLD,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
        "window_size": 32,
    },
}
PARITY = ("llama", "gpt2", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3")
"""architectures whose every backend is compared in loss and gradients"""


def build(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model in evaluation mode; ``attn_implementation`` may be among the changes to its config."""
    attention = changes.pop("attn_implementation", None)
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**ARCHITECTURES[name], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and the scales of norms start at 0 or 1, where a mistake could hide
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def stay_in_dtype(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    """Norms and eager softmax in the model's own dtype, where transformers computes them in fp32."""

    def forward(self: Any, x: Tensor) -> Tensor:
        epsilon = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        scale = 1 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * scale

    for kind in {type(module) for module in model.modules() if "RMSNorm" in type(module).__name__}:
        monkeypatch.setattr(kind, "forward", forward)
    softmax = nn.functional.softmax
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim=None, dtype=None: softmax(x, dim=dim))


def chain(length: int, seed: int) -> Row:
    """A text of which every token is scored."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCABULARY, length + 1).astype(np.int32)
    index = np.arange(length, dtype=np.int32)
    return Row(0, 1.0, tokens[:-1], index - 1, index, tokens[1:])


def tree(seed: int, roots: int = 1, branches: Sequence[int] = (6, 1, 3, 9)) -> Row:
    """Tries of a trunk, branches and twigs; edges in no order, some nodes with several, some with none."""
    random = np.random.default_rng(seed)
    builder = TreeBuilder()
    draw = lambda n: random.integers(0, VOCABULARY, n).tolist()  # noqa: E731
    nodes: list[int] = []
    for _ in range(roots):
        trunk = builder.path(draw(5))
        nodes += trunk
        for length in branches:
            branch = builder.path(draw(length), trunk[-1])
            nodes += [*branch, *builder.path(draw(3), branch[length // 2])]
    for node in nodes:
        for target in draw(int(random.integers(0, 3))):
            builder.edge(node, target)
    tokens, parent, source, target, _ = builder.arrays()
    order = random.permutation(len(source))
    return Row(0, 1.0, tokens, parent, source[order], target[order])


FORESTS: dict[str, list[Row]] = {
    "chain": [chain(11, 1)],
    "chains of one length": [chain(9, s) for s in range(3)],
    "chains of all lengths": [chain(n, n) for n in (13, 2, 7, 1, 30, 8)],
    "trie": [tree(1)],
    "two roots in a row": [tree(2, roots=2)],
    "tries of like size": [tree(s, branches=(3, s)) for s in (3, 4, 5)],
    "all together": [chain(9, 6), tree(7, roots=2), chain(10, 8), tree(9), chain(3, 10)],
}


def oracle(model: Any, batch: Batch) -> Tensor:
    """Log-probability of each edge, [E]: the model's own logits for one path at a time."""
    parent, source = batch.parent.tolist(), batch.source.tolist()
    inner, of_node = set(parent), {}
    for leaf in (node for node in range(len(parent)) if node not in inner):
        path, node = [], leaf
        while node >= 0:
            path.append(node)
            node = parent[node]
        path.reverse()
        logits = model(input_ids=batch.tokens[path][None], use_cache=False).logits[0]
        of_node.update(zip(path, logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1), strict=True))
    return torch.stack([of_node[node][target] for node, target in zip(source, batch.target.tolist(), strict=True)])


def weights(batch: Batch) -> Tensor:
    """A weight per edge, of both signs, so that mistakes do not cancel."""
    return torch.from_numpy(np.random.default_rng(5).standard_normal(len(batch.source)))


Run = tuple[Tensor, float, dict[str, Tensor]]


def run(model: nn.Module, score: Callable[[Batch], Tensor], batch: Batch) -> Run:
    """Log-probabilities, a weighted loss and its gradient for every parameter that has one."""
    model.zero_grad(set_to_none=True)
    logp = score(batch)
    loss = (weights(batch) * logp.double()).sum()
    loss.backward()
    gradients = {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }
    return logp.detach(), float(loss.detach()), gradients


def difference(one: Run, other: Run) -> tuple[float, float]:
    """Relative difference of the log-probabilities and loss, and the largest of any parameter's gradient."""
    values = float((one[0] - other[0]).double().abs().max() / other[0].double().abs().mean())
    largest = max(float(g.double().norm()) for g in other[2].values())

    def of(name: str) -> float:
        mine, theirs = one[2][name].double(), other[2][name].double()
        # a parameter without influence (a bias of keys) has a gradient of rounding errors only
        return float((mine - theirs).norm()) / max(float(theirs.norm()), 1e-3 * largest)

    return max(values, abs(one[1] - other[1]) / abs(other[1])), max(map(of, other[2]))


ALL = "all together"


def batch_of(name: str) -> Batch:
    """One of the forests, packed."""
    return collate(FORESTS[name])
