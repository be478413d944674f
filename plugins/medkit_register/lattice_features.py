"""What a metric compares of a scan, on the lattice of one stage of a deformable registration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool3d

from medkit_register.descriptors import descriptors
from medkit_register.features import MetricSettings, reliable
from medkit_register.pyramid import Pyramid
from medkit_register.similarity import normalised
from medkit_register.warp import Lattice, Sampler, indices, inside, transformed

ON_OBJECT = 0.3
"""Share of the threshold between background and object above which a point is the object's."""


@dataclass(frozen=True, eq=False)
class LatticeFeatures:
    """A scan on a lattice in the fixed space."""

    values: torch.Tensor
    """(I, J, K) what the metric compares; for mind (C, I, J, K)."""
    on_object: torch.Tensor
    """(I, J, K) bool."""
    trust: torch.Tensor | None
    """(I, J, K) 0..1, how far values depend on voxels inside the scan and its mask; None: all 1."""


def fixed_features(
    fixed: Pyramid, lattice: Lattice, detail: Lattice, settings: MetricSettings, device: str
) -> LatticeFeatures:
    """Return the fixed scan on `lattice`, as `features_on` does.

    Kept with its pyramid for further moving scans, except for mind: descriptors are too large for that.
    """
    if settings.metric == "mind":
        return features_on(fixed, lattice, detail, np.eye(4), settings, device)
    key = ("lattice", lattice.shape, lattice.affine.tobytes(), settings)
    if key not in fixed.features:
        fixed.features[key] = features_on(fixed, lattice, detail, np.eye(4), settings, device)
    return fixed.features[key]  # type: ignore[return-value]


def features_on(
    pyramid: Pyramid, lattice: Lattice, detail: Lattice, matrix: np.ndarray, settings: MetricSettings, device: str
) -> LatticeFeatures:
    """Return a scan on `lattice`; `matrix` (4, 4) RAS+ mm takes points of the lattice to points of the scan.

    Features are made on the lattice `detail`, as fine or twice as fine, and averaged.
    """
    image, trust = on_lattice(pyramid, detail, matrix, settings, device)
    on_object = averaged(image, lattice) > ON_OBJECT * pyramid.threshold
    values = averaged(feature_values(image, settings, pyramid.threshold), lattice)
    return LatticeFeatures(values, on_object, None if trust is None else averaged(trust, lattice))


def on_lattice(
    pyramid: Pyramid, lattice: Lattice, matrix: np.ndarray, settings: MetricSettings, device: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return intensities (I, J, K) on a lattice, and their weights (I, J, K) 0..1; None where all are 1.

    `matrix` (4, 4) RAS+ mm takes points of the lattice to points of the scan.
    """
    level = pyramid.level(lattice.spacing)
    to_index = level.index_from_world @ matrix @ lattice.affine
    at = transformed(to_index, indices(lattice.shape, device).reshape(3, -1))
    trust = reliable(pyramid, lattice.spacing, settings)
    several = np.asarray(level.image.shape) > 1
    open_faces = not pyramid.closed[several].all()
    if trust is None and open_faces:
        trust = torch.ones_like(level.image)
    channels = level.image[None] if trust is None else torch.stack([level.image, trust])
    out = Sampler(channels.to(device)).at(at)
    if trust is not None and open_faces:
        out[1] *= inside(at, level.image.shape)
    shaped = out.reshape(-1, *lattice.shape)
    return shaped[0], None if trust is None else shaped[1]


def feature_values(image: torch.Tensor, settings: MetricSettings, threshold: float) -> torch.Tensor:
    """Return what the metric compares of an image (I, J, K): the same shape, for mind (C, I, J, K).

    `threshold` is the intensity between background and object.
    """
    if settings.metric == "mind":
        return descriptors(image, threshold)
    return normalised(image, settings.window, settings.floor) if settings.metric == "lncc" else image


def averaged(image: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """Return an image (..., I, J, K) on `lattice`, from one on the same lattice or on one twice as fine."""
    shape = image.shape[-3:]
    if tuple(shape) == lattice.shape:
        return image
    factors = tuple(fine // coarse for fine, coarse in zip(shape, lattice.shape, strict=True))
    return avg_pool3d(image.reshape(1, -1, *shape), factors).reshape(*image.shape[:-3], *lattice.shape)
