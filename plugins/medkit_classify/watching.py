"""What a classifier's layers say while it runs: its pooled features, and statistics of layers by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Watcher:
    """Listens to a network. One that is a script (`models/model.ts`) shows nothing.

    The features are what the last linear layer is given; where the network runs several times for one answer, as for
    mirror images, the mean over the runs. Raises KeyError for a layer that is not there.
    """

    def __init__(self, network: torch.nn.Module, layers: Sequence[str] = ()) -> None:
        import torch

        self._features: list[torch.Tensor] = []
        self._levels: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
        modules = {} if isinstance(network, torch.jit.ScriptModule) else dict(network.named_modules())
        linear = [module for module in modules.values() if isinstance(module, torch.nn.Linear)]
        self.sees_features = bool(linear)
        if linear:
            linear[-1].register_forward_pre_hook(self._keep_features)
        if missing := [name for name in layers if name not in modules]:
            raise KeyError(missing[0])
        for name in layers:
            modules[name].register_forward_hook(self._keeper(name))

    def _keep_features(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._features.append(inputs[0].detach().float().flatten(1))

    def _keeper(self, name: str) -> Any:
        def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
            values = output.detach().float().flatten(2)
            self._levels[name].append(_as_rows(values))

        return keep

    def forget(self) -> None:
        """Before a run whose features are wanted."""
        self._features.clear()
        for kept in self._levels.values():
            kept.clear()

    def features(self) -> torch.Tensor | None:
        """(N, F) of the images of the last run."""
        return _mean(self._features) if self._features else None

    def levels(self) -> torch.Tensor | None:
        """(N, L): mean and standard deviation over space of each channel of the named layers."""
        import torch

        if not self._levels or not all(self._levels.values()):
            return None
        return torch.cat([_mean(kept) for kept in self._levels.values()], 1)


def _as_rows(values: torch.Tensor) -> torch.Tensor:
    """(N, C, voxels) -> (N, 2 C)."""
    import torch

    return torch.cat([values.mean(2), values.std(2, unbiased=False)], 1)


def _mean(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(runs)).mean(0).cpu()
