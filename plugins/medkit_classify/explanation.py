"""Find which part of an image speaks for a class: GradCAM (Selvaraju et al. 2017) and occlusion, by monai.visualize."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medkit.errors import InputError, UsageError
from medkit.space import apply_affine

if TYPE_CHECKING:
    import torch

    from medkit.images import Image

Method = Literal["gradcam", "occlusion"]
METHODS: tuple[Method, ...] = ("gradcam", "occlusion")
PARTS = 6
"""Number of boxes, along an axis of a plane, that are covered in turn; half as many for a volume."""
BATCH_SIZE = 16
"""Number of images with covered boxes in a batch."""
STRONG = 0.5
"""Smallest value that counts when the place of a map is named in words, as a share of the map's range."""


class Explainer:
    """Explain the output of a network, on a copy of it: neither hooks nor runs of the copy reach the original.

    Raises UsageError for a TorchScript network, which accepts no hooks.
    """

    def __init__(self, network: torch.nn.Module, method: Method) -> None:
        import torch

        if isinstance(network, torch.jit.ScriptModule):
            raise UsageError(
                f"--explain {method}: the bundle's network is a TorchScript file, which cannot be explained"
            )
        self.method = method
        self.network = copy.deepcopy(network).eval()
        self.channels: int | None = getattr(network, "image_channels", None)
        """Number of the image's channels; further ones hold facts, which stay as they are. None: all."""
        self._visualizer: Any = None
        """GradCAM or OcclusionSensitivity, made for the first image."""

    def __call__(self, image: torch.Tensor, chosen: int) -> np.ndarray:
        """Return how much each voxel of a network's input speaks for a class, (1, I, J[, K]) float32 from 0 to 1.

        image: (C, I, J[, K]).
        chosen: channel of the class.
        """
        batch = (image.as_tensor() if hasattr(image, "as_tensor") else image)[None].float()
        heat = self._gradcam(batch, chosen) if self.method == "gradcam" else self._occlusion(batch, chosen)
        heat = heat.clip(min=0)
        largest = float(heat.max())
        return (heat / largest if largest > 0 else heat).astype(np.float32)

    def _gradcam(self, batch: torch.Tensor, chosen: int) -> np.ndarray:
        import torch
        from monai.visualize import GradCAM

        with torch.enable_grad():
            if self._visualizer is None:
                layer = last_spatial_layer(self.network, batch)
                self._visualizer = GradCAM(self.network, layer, postprocessing=lambda x: x)
            maps = self._visualizer(batch, class_idx=chosen)
        heat: np.ndarray = maps[0].detach().cpu().numpy()
        return heat

    def _occlusion(self, batch: torch.Tensor, chosen: int) -> np.ndarray:
        import torch
        from monai.visualize import OcclusionSensitivity

        parts = PARTS if batch.dim() == 4 else PARTS // 2
        sizes = [max(1, size // parts) for size in batch.shape[2:]]
        channels = batch.shape[1] if self.channels is None else self.channels
        image, facts = batch[:, :channels], batch[:, channels:]
        if self._visualizer is None:
            self._visualizer = OcclusionSensitivity(
                _of_image_only(self.network), sizes, BATCH_SIZE, False, "mean_img", 0.5
            )
        self._visualizer.nn_module.facts = facts
        with torch.no_grad():
            whole = self.network(batch).softmax(1)[0, chosen]
            covered, _ = self._visualizer(image)
        heat: np.ndarray = (whole - covered[0, chosen][None]).cpu().numpy()
        return heat


def _of_image_only(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network as a function of the image's channels; its attribute `facts`, (1, B, ...), holds the rest."""
    import torch

    class OfImageOnly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.facts = torch.empty(0)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            facts = self.facts.expand(len(images), *self.facts.shape[1:])
            logits: torch.Tensor = self.network(torch.cat([images, facts], 1))
            return logits

    return OfImageOnly()


def last_spatial_layer(network: torch.nn.Module, batch: torch.Tensor) -> str:
    """Return the name of the last layer whose output has several voxels. Raises UsageError if there is none."""
    import torch

    found: list[str] = []
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            if name:
                hooks.enter_context(_noting_spatial_output(module, name, found))
        network(batch)
    if not found:
        raise UsageError(
            "--explain gradcam: the bundle's network has no layer with spatial axes; use --explain occlusion"
        )
    return found[-1]


@contextlib.contextmanager
def _noting_spatial_output(module: torch.nn.Module, name: str, found: list[str]) -> Iterator[None]:
    """Add the name to `found` whenever the module's output has several voxels."""

    def note(module: Any, inputs: Any, output: Any) -> None:
        if hasattr(output, "dim") and output.dim() > 3 and output.shape[2:].numel() > 1:
            found.append(name)

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def in_words(heat: Image, picture: bool) -> str:
    """Return in words where a map (1, I, J, K) on an image's grid is strong; empty for a constant map."""
    values = heat.data[0]
    low, high = float(values.min()), float(values.max())
    if low == high:
        return ""
    middle = np.argwhere(values >= low + STRONG * (high - low)).mean(0)
    if picture:
        column, row = (middle[:2] + 0.5) / values.shape[:2]
        across = "left" if column < 1 / 3 else "right" if column > 2 / 3 else "middle"
        down = "top" if row < 1 / 3 else "bottom" if row > 2 / 3 else "middle"
        place = "middle" if across == down else f"{down} {across}".replace("middle ", "").replace(" middle", "")
        return f"the {place} of the picture"
    place = apply_affine(heat.grid.affine, middle[None])[0]
    sides = [f"{abs(mm):.0f} mm {names[int(mm < 0)]}" for mm, names in zip(place, ("RL", "AP", "SI"), strict=True)]
    return f"the region around {', '.join(sides)}"


@dataclass(frozen=True, eq=False)
class Overlay:
    """A picture, next to it the same with a map drawn over it, and the map's colours, as a PNG to look at."""

    source: Path
    """File of the picture."""
    heat: np.ndarray
    """(columns, rows) from 0 to 1, of the picture's size."""
    title: str
    what: str
    """What the map shows, next to its colours."""

    def write(self, path: Path) -> None:
        """Write the PNG."""
        from PIL import Image as Picture

        from medkit.figures import heat_mosaic, write_png
        from medkit.images import Image, read_grid
        from medkit.space import Grid

        with Picture.open(self.source) as picture:
            grey = np.asarray(picture.convert("F"), np.float32).T
        try:
            grid = read_grid(self.source)
        except InputError:  # of a format that only the bundle reads
            grid = Grid((*grey.shape, 1), np.eye(4), dims=2)
        if grid.shape[:2] != grey.shape:  # turned by its EXIF block, which the bundle's reader leaves as it is
            grid = Grid((*grey.shape, 1), grid.affine, dims=2)
        image, heat = (Image(values[None, ..., None], grid, self.source) for values in (grey, self.heat))
        write_png(heat_mosaic(image, heat, title=self.title, what=self.what), path)
