"""Record what a classifier computes while it runs: its pooled features, and statistics of named layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Quantiles of an image's intensities."""
LAGS = (1, 2, 4, 8, 16)
"""Distances, in voxels along an axis, at which voxels are compared."""
SMALL = 1e-3
"""Added to differences before the logarithm; small for intensities from 0 to 1."""


class ActivationRecorder:
    """Record the activations of a network by hooks; a TorchScript network (`models/model.ts`) has no features.

    Features are the input of the last linear layer. If the network runs several times for one result, such as for
    mirror images, they are the mean over the runs, while statistics are those of the first run. Raises KeyError for a
    layer that the network does not have.
    """

    def __init__(self, network: torch.nn.Module, layers: Sequence[str] = ()) -> None:
        import torch

        self._features: list[torch.Tensor] = []
        self._layers: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
        eager = isinstance(network, torch.nn.Module) and not isinstance(network, torch.jit.ScriptModule)
        modules = dict(network.named_modules()) if eager else {}
        linear = [module for module in modules.values() if isinstance(module, torch.nn.Linear)]
        self.has_features = bool(linear)
        """Whether the network has a linear layer."""
        if linear:
            linear[-1].register_forward_pre_hook(self._keep_features)
        if missing := [name for name in layers if name not in modules]:
            raise KeyError(missing[0])
        self._images: list[torch.Tensor] = []
        self._channels = getattr(network, "image_channels", None)
        """Number of the image's channels; further ones hold facts (see `medkit_classify.multimodal`). None: all."""
        if layers:
            network.register_forward_pre_hook(self._keep_image)
        for name in layers:
            modules[name].register_forward_hook(self._keeper(name))

    def _keep_features(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if not inputs[0].is_meta:
            self._features.append(inputs[0].detach().float().flatten(1))

    def _keep_image(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if not (inputs[0].is_meta or self._images):
            self._images.append(image_statistics(inputs[0][:, : self._channels].detach().float()).cpu())

    def _keeper(self, name: str) -> Any:
        def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
            # a run on meta tensors only estimates the memory
            if not (output.is_meta or self._layers[name]):
                self._layers[name].append(_channel_statistics(output.detach()).cpu())

        return keep

    def clear(self) -> None:
        """Forget earlier runs; call it before each run to record."""
        self._features.clear()
        self._images.clear()
        for recorded in self._layers.values():
            recorded.clear()

    def features(self) -> torch.Tensor | None:
        """Return the features of the recorded images, (N, F); None without a linear layer."""
        return _mean(self._features) if self._features else None

    def statistics(self) -> torch.Tensor | None:
        """Return (N, S): statistics of the images, then mean and standard deviation of each channel of the layers.

        None without layers.
        """
        import torch

        if not self._layers or not all(self._layers.values()):
            return None
        return torch.cat([recorded[0] for recorded in (self._images, *self._layers.values())], 1)


def image_statistics(images: torch.Tensor) -> torch.Tensor:
    """Return (N, S) statistics of (N, C, I, J[, K]) images: quantiles, spread, and differences between voxels.

    A network discards what its task does not need, so its layers may look normal for noise or very smooth images. These
    statistics tell such images from those of the training.
    """
    import torch

    flat = images.flatten(1)
    ranks = [int(share * (flat.shape[1] - 1)) for share in QUANTILES]
    out = [flat.sort(1).values[:, ranks], flat.std(1, keepdim=True)]
    for axis, size in enumerate(images.shape[2:], start=2):
        for lag in (lag for lag in LAGS if lag < size):
            differences = (images.narrow(axis, lag, size - lag) - images.narrow(axis, 0, size - lag)).flatten(1)
            mean, root = differences.abs().mean(1), differences.square().mean(1).sqrt()
            out.append(torch.stack([(root + SMALL).log(), mean / (root + SMALL)], 1))
    return torch.cat(out, 1)


def _channel_statistics(values: torch.Tensor) -> torch.Tensor:
    """Return mean and standard deviation of each channel: (N, C, I, J[, K]) -> (N, 2 C)."""
    import torch

    variance, mean = torch.var_mean(values.float(), dim=tuple(range(2, values.dim())), correction=0)
    return torch.cat([mean, variance.sqrt()], 1)


def _mean(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of arrays of equal shape, on the CPU."""
    import torch

    return torch.stack(list(runs)).mean(0).cpu()
