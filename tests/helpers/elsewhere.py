"""A pretended device: tensors on it compute on the CPU, but cannot be mixed with tensors on the CPU.

There is no GPU where the tests run. The most frequent errors of code for GPUs can be found without one: a tensor made
on the CPU that is mixed with others on the GPU, or a result that is read there without being copied. PyTorch lets
tensors claim to be on its `meta` device, and have their operations run by a `TorchDispatchMode`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
"""The name of the device."""


class Far(torch.Tensor):
    """A tensor on the pretended device."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        far: Far = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
        )
        far.near = near
        return far

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the pretended device, outside of it")


class Elsewhere(TorchDispatchMode):
    """Within this context `device="meta"` is the pretended device. Raises RuntimeError if devices are mixed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        far = [value for value in tensors if isinstance(value, Far)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = "cpu"
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        strangers = [value for value in tensors if not isinstance(value, Far) and value.dim()]
        if far and strangers and not moves:
            raise RuntimeError(f"{func}: expected all tensors on one device, got shapes {[t.shape for t in strangers]}")
        out = func(*tree_map(_near, args), **tree_map(_near, kwargs))
        if torch.device(asked or (DEVICE if far else "cpu")).type != DEVICE:
            return out
        known = {id(value.near): value for value in far}  # a tensor that is changed in place stays the same object

        def there(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return known[id(value)] if id(value) in known else Far(value)

        return tree_map(there, out)


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value
