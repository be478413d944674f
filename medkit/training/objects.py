"""Kinds of the objects that a config builds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def networks_among(objects: Iterable[Any]) -> Iterator[torch.nn.Module]:
    """Return the networks among objects; of a ModuleDict or ModuleList, which is never called, its children."""
    import torch

    for found in objects:
        if isinstance(found, torch.nn.ModuleDict | torch.nn.ModuleList):
            yield from found.children()
        elif isinstance(found, torch.nn.Module):
            yield found


def is_network(value: Any) -> bool:
    """Return whether an object of a config is a network."""
    import torch

    return isinstance(value, torch.nn.Module)


def is_shared(value: Any) -> bool:
    """Return whether all ranks have the same of an object of a config, since their gradients are averaged."""
    import torch

    return is_network(value) or isinstance(value, torch.optim.Optimizer)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor's numbers."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def device_name(device: torch.device) -> str:
    """Return what people call a device."""
    import torch

    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
