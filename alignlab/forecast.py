"""What a training step holds in memory, before there are weights: the step itself, done with tensors that have no contents.

Scorer, backward pass and optimizer run as in training, on tensors that know shape and dtype alone (PyTorch's fake tensors),
and every allocation is written down. So nothing here knows an architecture, LoRA or recomputation.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from alignlab.config import Hardware, Train
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.protocols import Row
from alignlab.train.optim import adamw

RUNTIME = {"cpu": 500 * 2**20, "cuda": 0}
"""bytes of a process beside its tensors. On a CPU: resident in training the embedded model, whose tensors are nearly nothing (torch
2.13, transformers and peft). On a GPU only what PyTorch allocates is counted. See benchmarks/memory_forecast.py."""

PACKED = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 1 / 4096}
"""bytes per weight of a quantised layer: of 4 bits, with an 8-bit scale for each 64 and an fp32 one for each 256 of these"""


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank holds at the moment at which it holds most, by what they are."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """all else that the pass makes, what it takes for a moment included"""
    logits: int
    """tensors of the width of the vocabulary"""
    runtime: int
    """the process itself, see :data:`RUNTIME`"""

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, part.name) for part in fields(self))


class _Books(TorchDispatchMode):
    """Writes down every storage that is made inside, and when it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[int, int]] = []
        """(number of a storage, bytes, negative where it goes) in order"""
        self.wide: dict[int, int] = {}
        """number -> size of the last dimension of the tensor that it was made for"""
        self._number: dict[int, int] = {}

    def take(self, tensor: Tensor, size: int | None = None) -> int:
        """The number of a tensor's storage, which is written down if it is new, with its own size or another."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._number:
            number = self._number[key] = len(self.wide)
            size = storage.nbytes() if size is None else size
            self.wide[number] = tensor.shape[-1] if tensor.ndim else 0
            self.log.append((number, size))
            weakref.finalize(storage, self._drop, key, size)
        return self._number[key]

    def _drop(self, key: int, size: int) -> None:
        self.log.append((self._number.pop(key), -size))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.take(tensor)
        return out

    def fullest(self) -> dict[int, int]:
        """Number -> bytes of what is there when it is most."""
        now = most = at = 0
        for place, (_, size) in enumerate(self.log, 1):
            now += size
            if now > most:
                most, at = now, place
        held: dict[int, int] = {}
        for number, size in self.log[:at]:
            held[number] = held.get(number, 0) + size
        return held


class _Untried(Scorer):
    """A scorer of a model without contents: there is nothing to compare, so it takes the first backend that runs."""

    def _agreeing(self, backends: tuple[str, ...]) -> tuple[str, str]:
        tokens, parent, source, target = np.array([1, 2, 3]), np.array([-1, 0, 0]), np.array([0, 1]), np.array([2, 3])
        row = Row(0, 1.0, tokens, parent, source, target)
        for self.backend in backends:
            for self.head in ("module", "own"):
                if self._refuses(self.backend):
                    continue
                try:
                    self(collate([row]))
                except Exception:  # whatever an architecture cannot do, the next one may
                    continue
                return self.backend, self.head
        return "padded", "own"


def without_contents(model: nn.Module) -> nn.Module:
    """A model on the device ``meta`` with fake tensors of the CPU in its place: there autocast and attention are as in training."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
                    learns = tensor.requires_grad
                    made[id(tensor)] = nn.Parameter(fake, learns) if isinstance(tensor, nn.Parameter) else fake
                held[name] = made[id(tensor)]  # a tied one stays the same
    return model


def quantised(model: nn.Module) -> set[int]:
    """Ids of the weights that lie in fewer bits where the frozen base is quantised: those of linear layers, but the head."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    head = base.get_output_embeddings()
    linear = (m for m in base.modules() if m is not head and (type(m) is nn.Linear or type(m).__name__ == "Conv1D"))
    return {id(m.weight) for m in linear if not m.weight.requires_grad}


def forecast(
    model: nn.Module,
    rows: Sequence[Row],
    train: Train,
    hardware: Hardware,
    *,
    device: str = "cpu",
    ranks: int = 1,
    accumulates: bool = True,
    quantization: str | None = None,
) -> Memory:
    """Memory of a rank in a step of training that is not the first.

    Args:
        model: what is trained, on the device ``meta``; it is spent.
        rows: of the largest micro-batch.
        train: precision and optimizer.
        hardware: capacity for logits, backend, sharding.
        device: ``cpu`` or ``cuda``.
        ranks: that train together.
        accumulates: whether a rank may have several micro-batches in a step, so that gradients are there while one is computed.
        quantization: of the frozen base.
    """
    few = quantised(model) if quantization else set()
    packed = {name for name, p in model.named_parameters() if id(p) in few}
    shapes = without_contents(model).train()
    books, learning = _Books(), [p for p in shapes.parameters() if p.requires_grad]
    weights = {
        books.take(tensor, math.ceil(tensor.numel() * PACKED[quantization]) if quantization and name in packed else None)
        for name, tensor in [*shapes.named_parameters(), *shapes.named_buffers()]
    }
    scorer = _Untried(shapes, hardware.backend, hardware.logits_mib).train()
    optimizer = adamw(learning, lr=train.lr, betas=train.betas, eps=train.eps, weight_decay=train.weight_decay, decay=train.decay)
    with books:
        for p in learning:
            p.grad = torch.zeros_like(p)
        gradients = {books.take(p.grad) for p in learning if p.grad is not None}
        nn.utils.clip_grad_norm_(learning, train.clip or math.inf)
        optimizer.step()
        if not accumulates:
            optimizer.zero_grad()
        with ExitStack() as precision:
            if train.precision != "fp32":
                precision.enter_context(torch.autocast("cpu", torch.bfloat16 if train.precision == "bf16" else torch.float16))
            batch = collate(rows)
            logp = scorer(batch)
        logp.sum().backward()  # a loss has a number for each edge, which is nothing beside the rest
        gradients |= {books.take(p.grad) for p in learning if p.grad is not None}
        states = {books.take(value) for state in optimizer.state.values() for value in state.values()}
    held, vocabulary = books.fullest(), scorer.config.vocab_size
    parts = dict.fromkeys(("weights", "gradients", "optimizer", "logits", "activations"), 0)
    for number, size in held.items():
        kinds = {"weights": weights, "gradients": gradients, "optimizer": states}
        kind = next((name for name, numbers in kinds.items() if number in numbers), None)
        parts[kind or ("logits" if books.wide[number] == vocabulary else "activations")] += size
    whole = Memory(**parts, runtime=RUNTIME[device])
    if ranks == 1:
        return whole
    if hardware.sharding == "none":  # what is sent lies in buckets of its own
        return replace(whole, gradients=whole.gradients + sum(_bytes(p) for p in learning))
    return _sharded(whole, shapes, ranks, offload=hardware.offload and device != "cpu")


def _sharded(whole: Memory, model: nn.Module, ranks: int, *, offload: bool) -> Memory:
    """A rank's share, and what it gathers: what is in no layer, and two layers at a time; with ``offload``, that alone."""
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    apart = sum(_bytes(p) for p in model.parameters() if id(p) not in inside)
    gathered = apart + 2 * max((sum(map(_bytes, layer.parameters())) for layer in layers), default=0)
    learning = max((sum(_bytes(p) for p in layer.parameters() if p.requires_grad) for layer in layers), default=0)
    share = 0.0 if offload else 1 / ranks
    return replace(
        whole,
        weights=math.ceil(whole.weights * share) + gathered,
        gradients=math.ceil(whole.gradients * share) + learning,
        optimizer=math.ceil(whole.optimizer * share),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
