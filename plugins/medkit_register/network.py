"""Where a warp begins: what a bundle's network says of two heads that an affine map has brought together.

The network takes both scans on one coarse grid and gives the stationary velocity field between them (Hoffmann 2022),
whose flow (Arsigny 2006) is found by scaling and squaring.
"""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import BundleError
from medkit.inference import Bundle, read_config
from medkit_register.warp import Lattice, Sampler, indices

if TYPE_CHECKING:
    import torch

    from medkit_register.pyramid import Pyramid

TASK = "register"
SQUARINGS = 6
"""The velocity field is followed for 1 / 2^6 of the time, then doubled so often."""
SIZES = (80.0, 320.0)
"""mm: objects whose box has sides within these may be heads."""


def fits(pyramid: Pyramid, box: Lattice) -> bool:
    """Whether a scan, whose object lies in `box`, may show a head: a volume of that size."""
    if pyramid.planar_axis is not None:
        return False
    sides = np.asarray(box.shape) * np.linalg.norm(box.affine[:3, :3], axis=0)
    return bool((sides >= SIZES[0]).all() and (sides <= SIZES[1]).all())


@dataclass(frozen=True, eq=False)
class Start:
    """A smooth deformation to begin with."""

    lattice: Lattice
    """Where it is given; in the fixed space."""
    shift: torch.Tensor
    """(3, I, J, K) RAS+ mm by which its points move, in the fixed space, before the affine map."""

    def on(self, lattice: Lattice) -> torch.Tensor:
        """(3, I, J, K) the same on another lattice, in its steps."""
        import torch

        to_index = np.linalg.inv(self.lattice.affine) @ lattice.affine
        at = _mapped(to_index, indices(lattice.shape, self.shift.device).reshape(3, -1))
        sampler = Sampler(self.shift)
        turn = torch.from_numpy(np.linalg.inv(lattice.affine[:3, :3]).astype(np.float32)).to(at.device)
        return (turn @ sampler.at(sampler.prepared(at))).reshape(3, *lattice.shape)


@dataclass(frozen=True, eq=False)
class StartNetwork:
    """A bundle's network, loaded when it is first asked; later cases find it warm."""

    bundle: Bundle
    device: str = "cpu"

    def __call__(self, fixed: Pyramid, moving: Pyramid, matrix: np.ndarray, box: Lattice) -> Start | None:
        """What to begin with; None where the scans are no volumes of a head's size.

        `matrix` (4, 4) RAS+ mm takes fixed points to moving points; `box` is a lattice about the fixed object.
        """
        import torch

        if not fits(fixed, box) or moving.planar_axis is not None:
            return None
        grid = self._grid(box)
        channels = [_seen(fixed, grid, np.eye(4), self.device), _seen(moving, grid, matrix, self.device)]
        with torch.inference_mode():
            velocity = self._network(torch.stack(channels)[None])[0].float()
        lattice = grid.coarser(grid.shape[0] // velocity.shape[1])
        steps = np.linalg.norm(lattice.affine[:3, :3], axis=0)
        steps = torch.from_numpy(steps).float().reshape(3, 1, 1, 1).to(velocity.device)
        return Start(lattice, flow(velocity) * steps)

    def _grid(self, box: Lattice) -> Lattice:
        """The network's own, along the axes of the world, about the middle of the object."""
        shape, spacing = self._form
        middle = box.affine @ [*((np.asarray(box.shape) - 1) / 2), 1.0]
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = middle[:3] - spacing * (np.asarray(shape) - 1) / 2
        return Lattice(shape, affine)

    @functools.cached_property
    def _form(self) -> tuple[tuple[int, int, int], float]:
        """Voxels of the network's grid, and their size in mm. Raises BundleError."""
        try:
            i, j, k = self.bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
            return (int(i), int(j), int(k)), float(self.bundle.block["spacing"])
        except (KeyError, TypeError, ValueError):
            raise BundleError(
                f"bundle {self.bundle.name}: expected a spatial_shape of three numbers for its input image, and its "
                "spacing in mm under medkit, in its metadata"
            ) from None

    @functools.cached_property
    def _network(self) -> torch.nn.Module:
        """Takes (1, 2, *shape), gives (1, 3, i, j, k) velocity in steps of its own lattice."""
        import torch

        network = own_network(self.bundle)
        if network is None:
            from medkit.inference import InferenceConfig

            network = InferenceConfig(self.bundle, torch.device(self.device), {}).open().network
        for parameter in network.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.float().contiguous(memory_format=torch.channels_last_3d)
        return network.float().eval().to(self.device)


def own_network(bundle: Bundle) -> torch.nn.Module | None:
    """A bundle's network with its weights, where its class is the bundle's own and its arguments are plain values.

    Without MONAI, whose import takes as long as a registration; None for a network that needs it.
    """
    import torch

    config = read_config(bundle.config("inference"))
    node = config.get("network_def")
    package, _, name = str(node.get("_target_", "") if isinstance(node, dict) else "").rpartition(".")
    if not package or not (bundle.root / package).is_dir():
        return None
    given = {key: value for key, value in node.items() if key != "_target_"}
    plain = {k: config.get(v[1:]) if isinstance(v, str) and v.startswith("@") else v for k, v in given.items()}
    if any(isinstance(value, str | dict | None) for value in plain.values()):
        return None
    if str(bundle.root) not in sys.path:
        sys.path.insert(1, str(bundle.root))  # as MONAI does: a bundle's own code lies there
    network: torch.nn.Module = getattr(importlib.import_module(package), name)(**plain)
    weights = torch.load(bundle.weights, map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network


def _seen(pyramid: Pyramid, grid: Lattice, matrix: np.ndarray, device: str) -> torch.Tensor:
    """(I, J, K) a scan on `grid`, whose points `matrix` takes to it; its bright parts are 1, beyond it is 0."""
    from medkit_register.pyramid import percentile
    from medkit_register.warp import inside

    level = pyramid.level(float(grid.affine[0, 0]))
    at = _mapped(level.index_from_world @ matrix @ grid.affine, indices(grid.shape, device).reshape(3, -1))
    sampler = Sampler(level.image[None].clamp(min=0).to(device))
    image = sampler.at(sampler.prepared(at))[0] * inside(at, level.image.shape)
    bright = image[image > 0]
    if len(bright):
        image = image / max(percentile(bright, 0.99), 1e-6)
    return image.reshape(grid.shape)


def flow(velocity: torch.Tensor) -> torch.Tensor:
    """(3, I, J, K) where a stationary velocity field takes points in time 1, both in steps of their lattice."""
    out = velocity / 2**SQUARINGS
    points = indices(velocity.shape[1:], velocity.device).reshape(3, -1)
    for _ in range(SQUARINGS):
        sampler = Sampler(out)
        out = out + sampler.at(sampler.prepared(points + out.reshape(3, -1))).reshape(out.shape)
    return out


def _mapped(matrix: np.ndarray, points: torch.Tensor) -> torch.Tensor:
    """(3, N) points through a (4, 4) matrix."""
    import torch

    rows = torch.from_numpy(np.asarray(matrix, np.float32)).to(points.device)
    return rows[:3, :3] @ points + rows[:3, 3:]
