"""Brightness of tissues in the contrasts of MRI, as ranges, for whole drawn scans and for recoloured ones."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from torch.nn import functional

from medkit.synthesis import Random, Ranges, bias_field

from . import CONTRASTS, SEEN, SPACING

FLUID, CORTEX, DEEP, IRON, WHITE, STEM, CEREBELLUM, LESION, VESSEL, FIRST_OUTSIDE = range(1, 11)
_NAMED = {
    FLUID: (4, 5, 14, 15, 24, 43, 44, 72, 136, 137, 163, 164),
    CORTEX: (3, 42),
    DEEP: (10, 11, 12, 17, 18, 26, 49, 50, 51, 53, 54, 58),
    IRON: (13, 28, 52, 60),
    WHITE: (2, 41, 85),
    STEM: (7, 16, 46),
    CEREBELLUM: (8, 47),
    LESION: (25, 57),
    VESSEL: (30, 62),
}
_DARK = (506, 514, 515)
"""Labels of bone and air, dark in all contrasts."""
_FAT = (502, 508, 511, 530)
_OUTSIDE = (502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)
GROUPS: Mapping[int, int] = (
    {0: 0}
    | {index: group for group, own in _NAMED.items() for index in own}
    | {index: FIRST_OUTSIDE + n for n, index in enumerate(_OUTSIDE)}
)
"""FreeSurfer's label, or 5xx outside the brain -> group of tissues of one brightness."""
COUNT = FIRST_OUTSIDE + len(_OUTSIDE)
"""Number of groups."""
INSIDE = tuple(range(FLUID, FIRST_OUTSIDE))
"""Groups that skull stripping leaves."""

_RATIOS = {
    "T1": ((1.12, 2.0), (0.05, 0.75)),
    "T2": ((0.45, 0.92), (1.25, 2.6)),
    "PD": ((0.68, 0.94), (0.6, 1.15)),
    "FLAIR": ((0.65, 0.94), (0.03, 0.45)),
}
"""Ranges of two ratios of brightness: white over grey matter, and fluid over grey matter."""
BIAS = Ranges(bias=0.3, bias_spacing=(50.0, 120.0))
_NEAR = 0.06
"""Share by which the ratios of `other` contrasts lie outside all these ranges."""


def means(name: str, random: Random) -> torch.Tensor:
    """Return random brightness (COUNT,) of each group in a contrast, 0 to 1."""
    white, fluid = _ratios(name, random)
    grey = 1.0
    values = torch.zeros(COUNT)
    values[FLUID], values[CORTEX], values[WHITE] = fluid, grey, white
    values[DEEP] = grey + (white - grey) * float(random.evenly((-0.1, 0.5)))
    values[IRON] = values[DEEP] * float(random.evenly((0.5, 1.0) if name in ("T2", "FLAIR") else (0.85, 1.15)))
    values[STEM] = grey + (white - grey) * float(random.evenly((0.5, 1.05)))
    values[CEREBELLUM] = grey * float(random.evenly((0.88, 1.12)))
    bright = {"T1": (0.7, 1.0), "other": (0.5, 1.6)}.get(name, (1.0, 1.6))
    values[LESION] = white * float(random.evenly(bright))
    values[VESSEL] = max(white, grey) * float(random.evenly((0.1, 1.8)))
    most = float(values.max())
    for index in _OUTSIDE:
        bounds = (0.0, 0.25) if index in _DARK else (0.2, 1.2) if index in _FAT else (0.1, 0.7)
        values[GROUPS[index]] = most * float(random.evenly(bounds))
    values[0] = most * float(random.evenly((0.0, 0.04))) if random.number() < 0.5 else 0.0
    return values / values[1:FIRST_OUTSIDE].max()


def _ratios(name: str, random: Random) -> tuple[float, float]:
    """Return random white over grey matter, and fluid over grey matter, of a contrast."""
    if name in _RATIOS:
        white, fluid = (float(random.evenly(bounds)) for bounds in _RATIOS[name])
        return white, fluid
    while True:
        white, fluid = (
            math.exp(float(random.evenly((math.log(low), math.log(high))))) for low, high in ((0.3, 2.5), (0.05, 3.0))
        )
        if not any(_within(white, a) and _within(fluid, b) for a, b in _RATIOS.values()):
            return white, fluid


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] * (1 - _NEAR) <= value <= bounds[1] * (1 + _NEAR)


class LoadDrawnd(MapTransform):
    """Reads a file of `drawing` at a key: the network's input as `image`, and `tissues`."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            with np.load(out[key]) as content:
                out |= {"image": torch.from_numpy(content["given"]), "tissues": torch.from_numpy(content["tissues"])}
            out["label"] = torch.tensor(out["label"])
        return out


class Recolourd(Randomizable, MapTransform):
    """Gives a drawn scan another contrast, flips it and removes its labels, each with a chance.

    Only the mean of the scan, which shows the contrast, is computed again, from the shares of the tissues. This gives
    any number of images, while drawing a whole scan takes seconds.

    Args:
        keys: of the network's input, (channels, *SHAPE).
        often: chance of another contrast.
        blind: chance that the labels are removed.
        mirrored: chance of the mirror image.
    """

    def __init__(self, keys: KeysCollection, often: float = 0.8, blind: float = 0.5, mirrored: float = 0.5) -> None:
        super().__init__(keys)
        self.often, self.blind, self.mirrored = often, blind, mirrored

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        random = Random(int(self.R.randint(2**31)), torch.device("cpu"))
        for key in self.key_iterator(out):
            image, tissues = out[key].float(), out["tissues"]
            if random.number() < self.often:
                number = int(random.number() * len(CONTRASTS))
                image[0] = recoloured(tissues, CONTRASTS[number], random) * (image[7] > 0)
                out["label"] = torch.stack([torch.tensor(number), out["label"][1]])
            if random.number() < self.blind:
                image[SEEN:] = 0
            else:
                image[SEEN:-1] *= 1 + 0.1 * random.normals(3)[:, None, None, None]
            if random.number() < self.mirrored:
                image = image.flip(1)
            out[key] = image
        out.pop("tissues", None)
        return out


def recoloured(tissues: torch.Tensor, name: str, random: Random) -> torch.Tensor:
    """Return the mean of a scan (*SHAPE) of a contrast, from the shares (COUNT, *SHAPE) of its tissues, 0 to 255."""
    values = means(name, random)
    if random.number() < 0.5:
        around = 1.0 if random.number() < 0.5 else 0.6  # skull stripping removes some of the fluid
        values = values * torch.tensor([float(g in INSIDE) * (around if g == FLUID else 1.0) for g in range(COUNT)])
    used = values.nonzero().flatten()
    image = (values[used] @ tissues[used].flatten(1).float()).reshape(tissues.shape[1:]) / 255
    image = image * bias_field(image.shape, SPACING, random, BIAS)[0]
    floor = 1.25 * math.exp(float(random.evenly((math.log(0.003), math.log(0.25)))))
    if random.number() < 0.5:  # the floor of Rician noise remains in a mean
        raised = torch.hypot(image, torch.tensor(floor))
        image = raised if random.number() < 0.6 else torch.where(image > 0.02, raised, image)
    if random.number() < 0.3:
        image = (functional.avg_pool3d(image[None, None], 3, 1, 1)[0, 0] + image) / 2
    image = image + float(random.evenly((0.0, 0.02))) * random.noise(image.shape)
    image = image.clamp(min=0).pow(math.exp(0.1 * float(random.normals())))
    return image / top(image, float(random.evenly((0.97, 0.995))))


def top(image: torch.Tensor, share: float = 0.99) -> torch.Tensor:
    """Return the quantile `share` of the voxels that are not 0; 1 if all are."""
    some = image.flatten()[:: 7 if image.numel() > 10**6 else 1]
    some = some[some > 1e-3]
    if not len(some):
        return image.new_ones(())
    return some.kthvalue(max(1, round(share * len(some)))).values.clamp(min=1e-3)
