"""The one primitive: a batch of token trees -> the log-probability of every edge, differentiable.

The scorer is the module that the loop prepares for data-parallel training: body, head and recomputation all run inside its forward.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab.engine.attention import NAME, Forest, model_masks, packed, score_dtype, short_windows, unknown_window
from alignlab.engine.batch import Batch, collate
from alignlab.engine.chunked import chunked_logprobs, edge_logprobs, frozen_head
from alignlab.errors import UserError
from alignlab.protocols import Row
from alignlab.trees import TreeBuilder, split

log = logging.getLogger(__name__)

BACKENDS = ("segments", "masked", "padded")
SCALINGS = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""settings by which architectures change what their head gives"""


class Scorer(nn.Module):
    """Scores token trees with a causal language model.

    Whatever is chosen here was found to agree with the model's own forward pass, text by text, on a small forest.

    Args:
        model: a Hugging Face causal LM, or a PEFT model around one.
        backend: ``segments``, ``masked`` or ``padded``; ``auto`` takes the first of these, which is the fastest, that agrees.
        logits_mib: memory for logits, in MiB.

    Raises:
        UserError: the backend that was asked for does not agree, or the model gives no finite numbers.
    """

    def __init__(self, model: nn.Module, backend: str = "auto", logits_mib: int = 1024) -> None:
        super().__init__()
        self.training = model.training
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend must be auto, {', '.join(BACKENDS)}; got {backend!r}")
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise UserError("prompt and prefix tuning put tokens of their own before a text; token trees have no place for them.")
        self.model = model
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        # Held outside the module tree: the same weights must not be registered twice.
        self._held: tuple[Any, Any] = (base, getattr(base, base.base_model_prefix, None))
        self.config = base.config.get_text_config()
        if base.config._attn_implementation != NAME:  # else an earlier scorer of this model has noted what it was
            base.alignlab_own_attention = base.config._attn_implementation
        self._own_attention: str = base.alignlab_own_attention
        self.logits_bytes = logits_mib * 2**20
        self.backend, self.head = self._choose(BACKENDS if backend == "auto" else (backend,))
        if backend == "auto" and self.backend == "padded":
            log.warning("%s: no fast path agrees with its own forward; every text is computed apart.", self.config.model_type)

    @property
    def base(self) -> Any:
        """The causal LM itself, with its adapters in place."""
        return self._held[0]

    @property
    def device(self) -> torch.device:
        """Where it computes: a sharded model's weights may wait elsewhere."""
        mesh = getattr(next(self.parameters()), "device_mesh", None)
        return self.base.device if mesh is None else torch.device(mesh.device_type)

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers, by name, that are sharded one by one: accelerate asks for them."""
        return sorted({type(m).__name__ for m in self.base.modules()} & set(getattr(self.base, "_no_split_modules", None) or ()))

    def forward(self, batch: Batch) -> Tensor:
        """Log-probability of each edge, [E], in the larger of fp32 and the model's dtype; of no edges, an empty tensor."""
        inputs, place = self._inputs(batch)
        places, node = torch.unique(place[batch.source], return_inverse=True)
        with packed() if self.backend == "segments" else nullcontext():
            if self.head == "own":
                keep = {} if self.backend == "padded" else {"logits_to_keep": places}
                logits = self.base(**inputs, **keep).logits.flatten(0, 1)
                return edge_logprobs(logits if keep else logits[places], node, batch.target)
            hidden = self._held[1](**inputs).last_hidden_state.flatten(0, 1)[places]
        order = torch.argsort(node, stable=True)
        targets = batch.target[order]
        plain = not any(getattr(self.config, name, None) for name in SCALINGS)
        frozen = frozen_head(self.base.get_output_embeddings()) if plain and hidden.dtype.itemsize > 2 else None
        logp = chunked_logprobs(hidden, node[order], targets, self._project, self.config.vocab_size, self.logits_bytes, frozen)
        return torch.empty_like(logp).scatter(0, order, logp)

    def _inputs(self, batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """What the model is called with, lines [B, W], and each node's place, [N], among its B * W positions."""
        self._attend(NAME if self.backend == "segments" else self._own_attention)
        if self.backend == "padded":
            ids, place = _paths(batch)
            return {"input_ids": ids, "use_cache": False}, place
        inputs: dict[str, Any] = {
            "input_ids": batch.tokens[None],
            "position_ids": batch.depth[None],
            "use_cache": False,
        }
        if self.backend == "segments":
            inputs["forest"] = Forest(batch)
        else:
            inputs["attention_mask"] = model_masks(self.config, batch, score_dtype(batch.tokens.device, self.base.dtype))
        return inputs, torch.arange(len(batch), device=batch.tokens.device)

    def _attend(self, attention: str) -> None:
        """Switch the model's attention, unless it is in place: another scorer of the same model may have changed it."""
        if self.base.config._attn_implementation != attention:
            self.base.set_attn_implementation(attention)

    def _project(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, H] to logits [n, V], through the head as a module: it may carry an adapter.

        The scalings are those of Gemma, Cohere and Granite; a model that does anything else to its logits keeps its own head.
        """
        logits = self.base.get_output_embeddings()(hidden)
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def _choose(self, backends: tuple[str, ...]) -> tuple[str, str]:
        """The first backend, and the head for it, that agree with the model's own forward on a small forest."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with short_windows(self.base, self.config, 4):
                return self._agreeing(backends)
        except BaseException:
            self._attend(self._own_attention)
            raise
        finally:
            for module, mode in modes:
                module.training = mode

    def _agreeing(self, backends: tuple[str, ...]) -> tuple[str, str]:
        right, shifted = (_probe(self.config.vocab_size, shift).to(self.base.device) for shift in (0, 1))
        self.backend, self.head = "padded", "own"
        oracle = self(right)
        if not oracle.isfinite().all():
            raise UserError(
                f"this {self.config.model_type} model gives log-probabilities that are not finite: its weights are damaged, "
                f"or too large for {self.base.dtype}; try model.dtype=float32."
            )
        # How much context matters to this model sets the scale of the tolerance. Measured on nine architectures of 2 to 16
        # layers: kernels differ by less than 1e-4 of it in fp32 and by 8 % at most in bf16, a wrong mask by 27 % at least.
        # Layers of 8 bits compute in fp16 and pick their outlying features from all that is computed together.
        effect = _rms(oracle - self(shifted))
        exact = self.base.dtype.itemsize > 2 and not getattr(self.base, "is_quantized", False)
        tolerance = max(1e-5, (0.005 if exact else 0.1) * effect)
        for backend in backends:
            if reason := self._refuses(backend):
                log.debug("%s: %s", backend, reason)
                continue
            for head in ("module", "own"):
                self.backend, self.head = backend, head
                try:
                    error = _rms(self(right) - oracle)
                except Exception as failure:  # whatever an architecture cannot do, the next one may
                    log.debug("%s/%s: %s", backend, head, failure)
                    continue
                if error <= tolerance:
                    return backend, head
                log.debug("%s/%s differs from the model's own forward by %.3g", backend, head, error)
        name = self.config.model_type
        raise UserError(f"backend={backends[0]} does not compute what this {name} model's own forward does; use backend=auto.")

    def _refuses(self, backend: str) -> str | None:
        """Why a backend need not be tried, or None."""
        if backend == "padded":
            return None
        if backend == "segments" and not getattr(self.base, "_can_set_attn_implementation", lambda: True)():
            return "the architecture keeps its own attention"
        name = unknown_window(self.config)
        return name and f"the architecture limits attention by {name}"


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _paths(batch: Batch) -> tuple[Tensor, Tensor]:
    """Every root-to-leaf path a line of token ids, [P, W], and each node's place, [N], in P * W.

    A short line ends in copies of its last token. No causal model looks at what comes later, so there is nothing to mask; a mask
    would leave positions that see nothing (beyond a sliding window), which eager attention turns into NaN.
    """
    parent, device = batch.parent.tolist(), batch.tokens.device
    inner, lines = set(parent), []
    for leaf in (node for node in range(len(parent)) if node not in inner):
        line, node = [], leaf
        while node >= 0:
            line.append(node)
            node = parent[node]
        lines.append(line[::-1])
    width = max(map(len, lines))
    place = {node: line * width + at for line, nodes in reversed(list(enumerate(lines))) for at, node in enumerate(nodes)}
    nodes = torch.tensor([line + line[-1:] * (width - len(line)) for line in lines], device=device)
    return batch.tokens[nodes], torch.tensor([place[node] for node in range(len(parent))], device=device)


def _probe(vocabulary: int, shift: int) -> Batch:
    """A chain and a trie of pseudo-random tokens; ``shift`` changes the first token of each."""
    random = np.random.default_rng(0)
    builder = TreeBuilder()

    def draw(count: int) -> list[int]:
        return [int(token) for token in random.integers(0, vocabulary, count)]

    trunk = builder.path([(draw(1)[0] + shift) % vocabulary, *draw(5)])[-1]
    for length in (3, 1, 4):
        for node in builder.path(draw(length), trunk):
            builder.edge(node, draw(1)[0])
    chain = builder.path([(draw(1)[0] + shift) % vocabulary, *draw(7)])
    for node in chain[2:]:
        builder.edge(node, draw(1)[0])
    tokens, parent, source, target, _ = builder.arrays()
    return collate([Row(0, 1.0, tokens, parent, source, target)])


@torch.no_grad()
def edge_logprobs_of(scorer: Scorer, rows: Sequence[Row], capacity: int) -> list[Tensor]:
    """Log-probabilities of the edges of each row, [E] each, without gradient; a row beyond the capacity is cut where it may be."""
    device = scorer.device
    if sum(len(row.tokens) for row in rows) <= capacity:
        batch = collate(rows).to(device)
        return list(scorer(batch).split([len(row.source) for row in rows]))
    results = []
    for row in rows:
        numbered = replace(row, columns={"edge": np.arange(len(row.source))})
        pieces = split(numbered, capacity) if row.splittable else [numbered]
        logp = torch.cat([scorer(collate([piece]).to(device)) for piece in pieces])
        edge = torch.from_numpy(np.concatenate([piece.columns["edge"] for piece in pieces])).to(device)
        results.append(torch.empty_like(logp).scatter(0, edge, logp))
    return results
