"""Networks that bundles of tests name."""

from __future__ import annotations

from typing import Any

import torch


class Unscriptable(torch.nn.Module):
    """Two channels of the one it gets, in a way that TorchScript does not know."""

    def forward(self, *images: Any, **_: Any) -> Any:
        return torch.cat([*images, *images], 1)
