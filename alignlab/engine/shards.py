"""Tensors of which each rank may have a share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether ranks have shares of any of them."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered where each rank has a share of it; all ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy values into a tensor; both are whole, but that each rank takes its share where the tensor has shares."""
    if isinstance(tensor, DTensor):
        values = values.to(tensor.device_mesh.device_type, tensor.dtype)
        values = distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def let_go(model: nn.Module) -> None:
    """Make a sharded model let go of what it gathered for a forward pass that no backward pass follows.

    Else its parameters stay whole, and are others than those that training and checkpoints know.
    """
    if isinstance(model, FSDPModule):
        model.register_forward_hook(lambda *_: None if torch.is_grad_enabled() else model.reshard())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, what stands outside the layers of a sharded model, such as its embedding, is whole and can be called alone."""
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()
