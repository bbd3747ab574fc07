"""How long training takes, from a few micro-batches of a few layers with random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from alignlab.config import Config
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.models.load import load_config
from alignlab.pipeline import Run
from alignlab.protocols import Row
from alignlab.stages.train import trainable_model
from alignlab.train.optim import adamw

LAYERS = (1, 2)
"""of the models that are timed: what another layer adds is what each of the rest does"""
OPERATIONS = {"cpu": 3e11, "cuda": 3e14}
"""most floating-point operations of a micro-batch that is timed"""


@dataclass(frozen=True)
class Speed:
    """Seconds that training takes on one rank."""

    token: float
    """forward and backward pass, for a token of a row"""
    update: float
    """an optimizer step"""


def speed(run: Run, rows: Sequence[Row], room: int) -> Speed | None:
    """Measured on the device, which must be there; None where even one layer and one row take too long or do not fit.

    Args:
        run: its configuration.
        rows: a micro-batch; as many of them are timed as are soon done.
        room: bytes that may be taken.
    """
    shape = load_config(run.config.model, weights=False)
    whole = shape.get_text_config().num_hidden_layers
    found = []
    for layers in LAYERS:
        one = _timed(run, shape, min(layers, whole), rows, room)
        if one is None:
            return None
        found.append(one)
    first, second = found
    more = max(whole - LAYERS[0], 0)
    return Speed(*(a + more * max(b - a, 0.0) for a, b in ((first.token, second.token), (first.update, second.update))))


def _timed(run: Run, shape: Any, layers: int, rows: Sequence[Row], room: int) -> Speed | None:
    """The speed of a model with so many layers."""
    config = _shallow(run.config, shape, layers)
    size = sum(p.numel() for p in trainable_model(replace(run, config=config), "meta").parameters())
    most = OPERATIONS[run.device] / (6 * size)
    taken, nodes = [], 0
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if nodes + len(row.tokens) > most:
            break
        taken.append(row)
        nodes += len(row.tokens)
    if not taken or 20 * size > room:
        return None
    model, train = trainable_model(replace(run, config=config), run.device), config.train
    scorer = Scorer(model, config.hardware.backend, config.hardware.logits_mib).train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = adamw(learning, lr=0.0, betas=train.betas, eps=train.eps, weight_decay=0.0, decay=train.decay)
    batch = collate(taken).to(run.device)
    low = torch.bfloat16 if train.precision == "bf16" else torch.float16
    passes, updates = [], []
    for _ in range(3):  # the first does not count
        started = _now(run.device)
        with torch.autocast(run.device, low, train.precision != "fp32"):
            logp = scorer(batch)
        config.method.loss(logp, batch).total.backward()
        passes.append(_now(run.device) - started)
        started = _now(run.device)
        optimizer.step()
        optimizer.zero_grad()
        updates.append(_now(run.device) - started)
    return Speed(min(passes[1:]) / nodes, min(updates[1:]))


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _shallow(config: Config, shape: Any, layers: int) -> Config:
    """The configuration with a model of so many layers and random weights."""
    sizes = {k: v for k, v in shape.to_dict().items() if k not in ("architectures", "torch_dtype", "dtype", "quantization_config")}
    text = shape.get_text_config()
    sizes[getattr(text, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")] = layers
    if isinstance(sizes.get("layer_types"), list):
        sizes["layer_types"] = sizes["layer_types"][:layers]
    tokenizer = config.model.tokenizer or config.model.path
    model = replace(config.model, weights="random", architecture=sizes, tokenizer=tokenizer, quantization=None, adapter=None)
    return replace(config, model=model)
