"""The start of a warp: the answer of a bundle's network for two heads that an affine map has aligned.

The network takes both scans on one coarse grid and returns the stationary velocity field between them (Hoffmann 2022),
whose flow (Arsigny 2006) is computed by scaling and squaring.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from medkit.errors import BundleError
from medkit.inference import Bundle, InferenceConfig, build_without_monai, read_config
from medkit_register.pyramid import Pyramid, percentile
from medkit_register.warp import Lattice, Sampler, doubled, indices, inside, transformed

SQUARINGS = 6
"""The velocity field is followed for 1 / 2^6 of the time, and the result is doubled 6 times."""
SIZES = (80.0, 320.0)
"""Range of sides, in mm, of the box of an object that may be a head."""


def fits(pyramid: Pyramid, box: Lattice) -> bool:
    """Whether a scan may show a head: a volume, and the `box` of its object has that size."""
    if pyramid.planar_axis is not None:
        return False
    sides = np.asarray(box.shape) * np.linalg.norm(box.affine[:3, :3], axis=0)
    return bool((sides >= SIZES[0]).all() and (sides <= SIZES[1]).all())


@dataclass(frozen=True, eq=False)
class Start:
    """A smooth deformation to start a warp with."""

    lattice: Lattice
    """Its points, in the fixed space."""
    shift: torch.Tensor
    """(3, I, J, K) RAS+ mm by which its points move, in the fixed space, before the affine map."""

    def on(self, lattice: Lattice) -> torch.Tensor:
        """Return it as a field (3, I, J, K) on another lattice, in steps of that lattice."""
        to_index = np.linalg.inv(self.lattice.affine) @ lattice.affine
        at = transformed(to_index, indices(lattice.shape, self.shift.device).reshape(3, -1))
        to_steps = torch.from_numpy(np.linalg.inv(lattice.affine[:3, :3]).astype(np.float32)).to(at.device)
        return (to_steps @ Sampler(self.shift).at(at)).reshape(3, *lattice.shape)


@dataclass(frozen=True, eq=False)
class StartNetwork:
    """A bundle's network, loaded when it is first asked and kept for later cases."""

    bundle: Bundle
    device: str = "cpu"

    def __call__(self, fixed: Pyramid, moving: Pyramid, matrix: np.ndarray, box: Lattice) -> Start | None:
        """Return what to start with; None unless both scans are volumes of about a head's size.

        `matrix` (4, 4) RAS+ mm takes fixed points to moving points; `box` is a lattice around the fixed object.
        """
        if not fits(fixed, box) or moving.planar_axis is not None:
            return None
        grid = self._grid(box)
        channels = [_scaled_on(fixed, grid, np.eye(4), self.device), _scaled_on(moving, grid, matrix, self.device)]
        with torch.inference_mode():
            velocity = self._network(torch.stack(channels)[None])[0].float()
        lattice = grid.coarser(grid.shape[0] // velocity.shape[1])
        steps = np.linalg.norm(lattice.affine[:3, :3], axis=0)
        steps = torch.from_numpy(steps).float().reshape(3, 1, 1, 1).to(velocity.device)
        return Start(lattice, flow(velocity) * steps)

    def _grid(self, box: Lattice) -> Lattice:
        """Return the network's grid, along the axes of the world, about the middle of the object."""
        shape, spacing = self._grid_size
        middle = box.affine @ [*((np.asarray(box.shape) - 1) / 2), 1.0]
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = middle[:3] - spacing * (np.asarray(shape) - 1) / 2
        return Lattice(shape, affine)

    @functools.cached_property
    def _grid_size(self) -> tuple[tuple[int, int, int], float]:
        """Shape of the network's grid, and its spacing in mm. Raises BundleError if the metadata do not state them."""
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
        """The network: takes (1, 2, *shape), returns a velocity (1, 3, i, j, k) in steps of its lattice."""
        network = own_network(self.bundle)
        if network is None:
            network = InferenceConfig(self.bundle, torch.device(self.device), {}).open().network
        for parameter in network.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.float().contiguous(memory_format=torch.channels_last_3d)
        return network.float().eval().to(self.device)


def own_network(bundle: Bundle) -> torch.nn.Module | None:
    """Return a bundle's network with its weights, without MONAI, whose import takes as long as a registration.

    None unless the network's class is in the bundle and its arguments are plain values.
    """
    network: torch.nn.Module | None
    network = build_without_monai(bundle, read_config(bundle.config("inference")), "network_def")
    if network is None:
        return None
    weights = torch.load(bundle.weights, map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network


def _scaled_on(pyramid: Pyramid, grid: Lattice, matrix: np.ndarray, device: str) -> torch.Tensor:
    """Return a scan (I, J, K) on `grid`, scaled so that its bright parts are 1; points outside the scan are 0.

    `matrix` (4, 4) RAS+ mm takes points of the grid to points of the scan.
    """
    level = pyramid.level(float(grid.affine[0, 0]))
    at = transformed(level.index_from_world @ matrix @ grid.affine, indices(grid.shape, device).reshape(3, -1))
    image = Sampler(level.image[None].clamp(min=0).to(device)).at(at)[0] * inside(at, level.image.shape)
    bright = image[image > 0]
    if len(bright):
        image = image / max(percentile(bright, 0.99), 1e-6)
    return image.reshape(grid.shape)


def flow(velocity: torch.Tensor) -> torch.Tensor:
    """Return the field (3, I, J, K) by which a stationary velocity field moves points in time 1, in lattice steps."""
    out = velocity / 2**SQUARINGS
    points = indices(velocity.shape[1:], velocity.device).reshape(3, -1)
    for _ in range(SQUARINGS):
        out = doubled(out, points)
    return out
