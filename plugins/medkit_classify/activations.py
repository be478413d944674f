"""Record what a classifier computes while it runs: its pooled features, and statistics of named layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Quantiles of an image's intensities."""
LAGS = (1, 2, 4, 8, 16)
"""Distances, in voxels along an axis, at which voxels are compared."""
SMALL = 1e-3
"""Added to differences before the logarithm; small for intensities from 0 to 1."""


class _Hook:
    """A hook that belongs to one network only: it does nothing in a copy of that network.

    The copy may run in another thread, on another image: that of `Explainer` does, when a picture is drawn.
    """

    def __init__(self, record: Callable[[torch.Tensor], None] | None) -> None:
        self._record = record

    def __call__(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor | None = None) -> None:
        """Record the output of a layer; before it runs, there is none, and the input is recorded."""
        if self._record is not None:
            self._record((inputs[0] if output is None else output).detach())

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None)


class ActivationRecorder:
    """Record the activations of a network by hooks; a TorchScript network (`models/model.ts`) has no features.

    Copies of the network (`copy.deepcopy`) are not recorded.

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
            linear[-1].register_forward_pre_hook(_Hook(self._keep_features))
        if missing := [name for name in layers if name not in modules]:
            raise KeyError(missing[0])
        self._images: list[torch.Tensor] = []
        self._channels = getattr(network, "image_channels", None)
        """Number of the image's channels; further ones hold facts (see `medkit_classify.multimodal`). None: all."""
        if layers:
            network.register_forward_pre_hook(_Hook(self._keep_image))
        for name in layers:
            modules[name].register_forward_hook(_Hook(functools.partial(self._keep_statistics, name)))

    def _keep_features(self, inputs: torch.Tensor) -> None:
        self._features.append(inputs.float().flatten(1))

    def _keep_image(self, images: torch.Tensor) -> None:
        if not self._images:
            self._images.append(image_statistics(images[:, : self._channels].float()).cpu())

    def _keep_statistics(self, layer: str, output: torch.Tensor) -> None:
        if not self._layers[layer]:
            self._layers[layer].append(_channel_statistics(output).cpu())

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
