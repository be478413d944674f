"""Networks for the bundles of tests."""

from __future__ import annotations

from typing import Any

import torch


class Unscriptable(torch.nn.Module):
    """Returns its channel twice, in a way that TorchScript cannot compile."""

    def forward(self, *images: Any, **_: Any) -> Any:
        return torch.cat([*images, *images], 1)
