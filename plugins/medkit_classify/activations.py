"""What a classifier's layers say while it runs: its pooled features, and statistics of layers by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
LAGS = (1, 2, 4, 8, 16)
"""Voxels between those that are compared."""
SMALL = 1e-3
"""A difference that does not count, on a scale of 0 to 1."""


class ActivationRecorder:
    """Listens to a network. One that is a script (`models/model.ts`) shows nothing.

    The features are what the last linear layer is given; where the network runs several times for one answer, as for
    mirror images, the mean over the runs. Statistics are those of the first run. Raises KeyError for a layer that is
    not there.
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
        self._images: list[torch.Tensor] = []
        self._channels = getattr(network, "image_channels", None)
        """Those of the image, where others hold facts beside it (see `medkit_classify.multimodal`)."""
        if layers:
            network.register_forward_pre_hook(self._keep_image)
        for name in layers:
            modules[name].register_forward_hook(self._keeper(name))

    def _keep_features(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if not inputs[0].is_meta:
            self._features.append(inputs[0].detach().float().flatten(1))

    def _keep_image(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if not (inputs[0].is_meta or self._images):
            self._images.append(of_images(inputs[0][:, : self._channels].detach().float()).cpu())

    def _keeper(self, name: str) -> Any:
        def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
            # a run on meta tensors only foresees the memory
            if not (output.is_meta or self._levels[name]):
                self._levels[name].append(_as_rows(output.detach()).cpu())

        return keep

    def forget(self) -> None:
        """Before a run whose features are wanted."""
        self._features.clear()
        self._images.clear()
        for kept in self._levels.values():
            kept.clear()

    def features(self) -> torch.Tensor | None:
        """(N, F) of the images of the last run."""
        return _mean(self._features) if self._features else None

    def levels(self) -> torch.Tensor | None:
        """(N, L): statistics of the images, then mean and standard deviation of each channel of the named layers."""
        import torch

        if not self._levels or not all(self._levels.values()):
            return None
        return torch.cat([kept[0] for kept in (self._images, *self._levels.values())], 1)


def of_images(images: torch.Tensor) -> torch.Tensor:
    """(N, S) statistics of (N, C, I, J[, K]) images: quantiles, spread, and how much voxels differ that lie apart.

    A network forgets what it does not need; these tell noise and smooth pictures from what it was trained with.
    """
    import torch

    flat = images.flatten(1)
    ranks = [int(share * (flat.shape[1] - 1)) for share in QUANTILES]
    out = [flat.sort(1).values[:, ranks], flat.std(1, keepdim=True)]
    for axis, size in enumerate(images.shape[2:], start=2):
        for lag in (lag for lag in LAGS if lag < size):
            apart = images.narrow(axis, lag, size - lag) - images.narrow(axis, 0, size - lag)
            mean, root = apart.flatten(1).abs().mean(1), apart.flatten(1).square().mean(1).sqrt()
            out.append(torch.stack([(root + SMALL).log(), mean / (root + SMALL)], 1))
    return torch.cat(out, 1)


def _as_rows(values: torch.Tensor) -> torch.Tensor:
    """(N, C, I, J[, K]) -> (N, 2 C)."""
    import torch

    variance, mean = torch.var_mean(values.float(), dim=tuple(range(2, values.dim())), correction=0)
    return torch.cat([mean, variance.sqrt()], 1)


def _mean(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(runs)).mean(0).cpu()
