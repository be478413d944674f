"""Which part of an image speaks for a class: GradCAM (Selvaraju et al. 2017) and occlusion, by monai.visualize."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medkit.errors import UsageError
from medkit.space import apply_affine

if TYPE_CHECKING:
    import torch

    from medkit.images import Image

Method = Literal["gradcam", "occlusion"]
METHODS: tuple[Method, ...] = ("gradcam", "occlusion")
PARTS = 6
"""Boxes along an axis of a plane that are covered one after the other; of a volume half as many."""
AT_ONCE = 16
"""Images with covered boxes in a batch."""
STRONG = 0.5
"""From the smallest to the largest value: what speaks for a class so strongly counts when its place is told."""


class Explainer:
    """Explains the answers of a network, on a copy of it, so that nothing of what it does for others changes.

    Raises UsageError for a network that is a script, which cannot be looked into.
    """

    def __init__(self, network: torch.nn.Module, method: Method) -> None:
        import torch

        if isinstance(network, torch.jit.ScriptModule):
            raise UsageError(f"--explain {method}: the bundle's network is a script, which cannot be looked into")
        self.method = method
        self.network = copy.deepcopy(network).eval()
        self.channels: int | None = getattr(network, "image_channels", None)
        """Those of the image, where others hold facts beside it, which stay as they are."""
        self._made: Any = None

    def __call__(self, image: torch.Tensor, chosen: int) -> np.ndarray:
        """(1, I, J[, K]) float32 from 0 to 1: how much each voxel of a network's input (C, I, J[, K]) speaks for it."""
        batch = (image.as_tensor() if hasattr(image, "as_tensor") else image)[None].float()
        heat = self._gradcam(batch, chosen) if self.method == "gradcam" else self._occlusion(batch, chosen)
        heat = heat.clip(min=0)
        most = float(heat.max())
        return (heat / most if most > 0 else heat).astype(np.float32)

    def _gradcam(self, batch: torch.Tensor, chosen: int) -> np.ndarray:
        import torch
        from monai.visualize import GradCAM

        with torch.enable_grad():
            if self._made is None:
                layer = last_spatial_layer(self.network, batch)
                self._made = GradCAM(self.network, layer, postprocessing=lambda x: x)
            found = self._made(batch, class_idx=chosen)
        heat: np.ndarray = found[0].detach().cpu().numpy()
        return heat

    def _occlusion(self, batch: torch.Tensor, chosen: int) -> np.ndarray:
        import torch
        from monai.visualize import OcclusionSensitivity

        parts = PARTS if batch.dim() == 4 else PARTS // 2
        sizes = [max(1, size // parts) for size in batch.shape[2:]]
        image, beside = (
            batch[:, : self.channels],
            batch[:, batch.shape[1] if self.channels is None else self.channels :],
        )
        if self._made is None:
            self._made = OcclusionSensitivity(_beside(self.network), sizes, AT_ONCE, False, "mean_img", 0.5)
        self._made.nn_module.beside = beside
        with torch.no_grad():
            whole = self.network(batch).softmax(1)[0, chosen]
            covered, _ = self._made(image)
        heat: np.ndarray = (whole - covered[0, chosen][None]).cpu().numpy()
        return heat


def _beside(network: torch.nn.Module) -> torch.nn.Module:
    """The network as one of the image's channels alone, with those beside them as they are in `beside`, (1, B, ...)."""
    import torch

    class Beside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.beside = torch.empty(0)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            beside = self.beside.expand(len(images), *self.beside.shape[1:])
            answer: torch.Tensor = self.network(torch.cat([images, beside], 1))
            return answer

    return Beside()


def last_spatial_layer(network: torch.nn.Module, batch: torch.Tensor) -> str:
    """The name of the last layer whose output still has places. Raises UsageError where there is none."""
    import torch

    found: list[str] = []
    with contextlib.ExitStack() as listening, torch.no_grad():
        for name, module in network.named_modules():
            if name:
                listening.enter_context(_listening(module, name, found))
        network(batch)
    if not found:
        raise UsageError("--explain gradcam: the bundle's network has no layer with places; --explain occlusion")
    return found[-1]


@contextlib.contextmanager
def _listening(module: torch.nn.Module, name: str, found: list[str]) -> Iterator[None]:
    def note(module: Any, inputs: Any, output: Any) -> None:
        if hasattr(output, "dim") and output.dim() > 3 and output.shape[2:].numel() > 1:
            found.append(name)

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def in_words(heat: Image, picture: bool) -> str:
    """Where in an image the map (1, I, J, K) on its grid is strong."""
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
    """A picture with a map over it in red, as PNG."""

    source: Path
    heat: np.ndarray
    """(columns, rows) from 0 to 1, of the picture's size."""

    def write(self, path: Path) -> None:
        """Writes the file."""
        from PIL import Image as Picture

        from medkit.figures import write_png

        with Picture.open(self.source) as picture:
            grey = np.asarray(picture.convert("F"), np.float32)
        low, high = float(grey.min()), float(grey.max())
        tile = np.repeat(((grey - low) * (255 / max(high - low, 1e-6)))[..., None], 3, -1)
        alpha = 0.6 * self.heat.T[..., None]
        write_png(np.rint(tile + alpha * (np.array([255.0, 40.0, 0.0]) - tile)).astype(np.uint8), path)
