"""Refine a network's labels by the intensities of the image itself: expectation and maximisation.

The network's probabilities are the priors of an image whose tissues have one Gaussian each (Wells 1996, Van Leemput
1999). Means and variances are fitted to each image, so no contrast is built in; a bias field is fitted with them.
Volumes are (I, J, K) on the network's grid; its output (C, I, J, K) holds logits, the background first. Lists of N
voxels have one row for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from medkit.errors import BundleError

if TYPE_CHECKING:
    import torch

_ROUNDS = 5
_MARGIN = 2
"""Voxels around the labelled body in which labels may change."""
_MEMBER = 0.5
"""Smallest probability of a tissue at a voxel that its Gaussian is fitted to; blurred borders belong to no tissue."""
_FITTED = 150_000
"""Number of voxels that the Gaussians are fitted to."""
_ROWS = 1 << 17
"""Number of voxels whose channels are processed at a time."""
_LEAST_VARIANCE = 1e-3
"""Smallest variance of a tissue, as a share of the variance around the body."""
_STEPS = 1000
"""Steps of probabilities in sums over neighbours, which 16 bits hold: half the memory, twice as fast."""
_FIELD_LIMITS = (0.3, 3.0)
"""Smallest and largest bias field: a polynomial may run away where no tissue is."""

Voxels = tuple["torch.Tensor", ...]
"""Indices i, j and k of voxels, (N,) each."""


@dataclass(frozen=True)
class Refinement:
    """How a bundle's labels are refined, as its metadata state it under `medkit.refinement`."""

    tissue: tuple[int, ...]
    """Channel -> tissue; tissue 0 is the background."""
    weight: tuple[float, ...]
    """Channel -> weight of the intensities where the network expects it; 1: as a Gaussian has it."""
    neighbours: float
    """Weight of the mean probability of the 26 neighbours."""
    confidence: float
    """Smallest mean probability that the network gives its labels; a network that errs much is a bad start."""
    contrast: float
    """Smallest difference of the means of the two largest tissues, in standard deviations."""
    voxels: int
    """Smallest number of voxels that are refined, and that a Gaussian is fitted to."""
    field: float
    """Smallest variation (standard deviation over mean) of a bias field that is corrected for the fit."""

    @classmethod
    def of(cls, block: Mapping[str, Any], values: Sequence[int]) -> Refinement | None:
        """Read it from a bundle's metadata `medkit`; None if they state none. `values`: channel -> label.

        Raises BundleError if a label is in no tissue or in two, or a number is missing.
        """
        stated = block.get("refinement")
        if stated is None:
            return None
        try:
            tissues = [[int(label) for label in labels] for labels in stated["tissues"].values()]
            weights = {int(label): float(weight) for label, weight in stated.get("weights", {}).items()}
            keys = ("weight", "neighbours", "confidence", "contrast", "field")
            usual, neighbours, confidence, contrast, field = (float(stated[key]) for key in keys)
            voxels = int(stated["voxels"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            expected = "expected tissues, weight, neighbours, confidence, contrast, voxels and field"
            raise BundleError(f"medkit.refinement: {expected}: {type(error).__name__}: {error}") from None
        tissue = {label: number for number, labels in enumerate(tissues, start=1) for label in labels}
        if sorted(tissue) != sorted(map(int, values[1:])) or sum(map(len, tissues)) != len(tissue) or len(tissues) < 2:
            raise BundleError("medkit.refinement: expected each label in exactly one of two or more tissues")
        return cls(
            tuple(tissue.get(int(label), 0) for label in values),
            tuple(weights.get(int(label), usual) for label in values),
            neighbours, confidence, contrast, voxels, field,
        )  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What the intensities of an image add to the logits of a network, near the body that it labelled."""

    voxels: Voxels
    terms: torch.Tensor
    """What to add to the channels of each tissue, (N, T) float32."""
    tissue: torch.Tensor
    """Channel -> tissue, (C,) int64."""

    def relabelled(self, logits: torch.Tensor, channels: np.ndarray) -> np.ndarray:
        """Return the largest channel (I, J, K) uint8; `channels`: those of the logits, for the other voxels."""
        import torch

        out = torch.from_numpy(channels.copy())
        for where, rows, part in _chunks(logits, self.voxels):
            out[where] = (rows + self.terms[part][:, self.tissue]).max(1).indices.to(torch.uint8)
        return out.numpy()

    def added(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (C, I, J, K) with what the intensities add."""
        out = logits.clone()
        rows = out.movedim(0, -1)
        for where, own, part in _chunks(logits, self.voxels):
            rows[where] = (own + self.terms[part][:, self.tissue]).to(out.dtype)
        return out


@dataclass(frozen=True)
class Outcome:
    """Whether and why labels are refined."""

    evidence: Evidence | None
    """None: the network's labels stay."""
    facts: Mapping[str, Any]
    """For the sidecar: `done`, and `reason` if it is not; `contrast` and `field`, as far as they were measured."""


@dataclass(frozen=True)
class _Tissues:
    """Gaussians of the tissues; (T,) each."""

    mean: torch.Tensor
    variance: torch.Tensor
    count: torch.Tensor
    """Number of voxels they were fitted to."""

    def contrast(self) -> float:
        """Return the difference of the means of the two largest tissues, in standard deviations."""
        one, other = (1 + self.count[1:].topk(2).indices).tolist()
        spread = float((self.variance[one] + self.variance[other]) / 2) ** 0.5
        return abs(float(self.mean[one] - self.mean[other])) / spread


def refine(
    logits: torch.Tensor, channels: np.ndarray, image: torch.Tensor, confidence: float, how: Refinement
) -> Outcome:
    """Return what the intensities of an image (I, J, K) say about the labels near a body.

    `channels` (I, J, K): the label of each voxel as a channel; 0 outside the body.
    `confidence`: mean probability that the network gives the body's labels.
    """
    import torch

    if tuple(image.shape) != channels.shape:
        return _unchanged("the image is on another grid than the labels")
    if confidence < how.confidence:
        return _unchanged(f"the network is unsure: {confidence:.2f}, less than {how.confidence:g}")
    voxels = torch.from_numpy(ndimage.binary_dilation(channels > 0, iterations=_MARGIN)).nonzero(as_tuple=True)
    if len(voxels[0]) < how.voxels:
        return _unchanged(f"{len(voxels[0])} voxels, fewer than {how.voxels}")
    values = image[voxels].float()
    values /= values.std().clamp(min=1e-6)
    priors, weights = _priors(logits, voxels, how)
    every = max(1, len(values) // _FITTED)
    least = how.voxels / every
    places = _polynomials(tuple(axis[::every] for axis in voxels), channels.shape)
    tissues, field = _fitted(priors[::every], values[::every], weights[::every], places, least=least, weakest=how.field)
    facts = {"contrast": round(tissues.contrast(), 3), "field": round(field.variation, 3)}
    if tissues.contrast() < how.contrast:
        return _unchanged(f"contrast of {facts['contrast']}, less than {how.contrast:g}", **facts)
    terms = torch.empty_like(priors)
    shares = torch.empty(priors.shape[::-1], dtype=torch.int16)
    for part in _parts(len(values)):
        where = tuple(axis[part] for axis in voxels)
        flat = (
            values[part]
            if field.coefficients is None
            else field.removed(values[part], _polynomials(where, channels.shape))
        )
        terms[part] = _terms(priors[part], flat, weights[part], tissues, least)
        shares[:, part] = (torch.softmax(priors[part] + terms[part], 1) * _STEPS).short().T
    if how.neighbours:
        _add_neighbours(terms, shares, voxels, how.neighbours)
    return Outcome(Evidence(voxels, terms, torch.tensor(how.tissue)), {"done": True, **facts})


def _unchanged(reason: str, **facts: float) -> Outcome:
    return Outcome(None, {"done": False, "reason": reason, **facts})


def _parts(count: int) -> Iterator[slice]:
    """Yield slices of lists of `count` voxels."""
    return (slice(first, first + _ROWS) for first in range(0, count, _ROWS))


def _chunks(logits: torch.Tensor, voxels: Voxels) -> Iterator[tuple[Voxels, torch.Tensor, slice]]:
    """Yield indices of some voxels, their logits (n, C) float32, and their place among all."""
    rows = logits.movedim(0, -1)
    for part in _parts(len(voxels[0])):
        where = tuple(axis[part] for axis in voxels)
        yield where, rows[where].float(), part


def _priors(logits: torch.Tensor, voxels: Voxels, how: Refinement) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logarithms of the network's probabilities of tissues (N, T), and the weights of intensities (N, 1)."""
    import torch

    members = torch.nn.functional.one_hot(torch.tensor(how.tissue)).float()
    weight = torch.tensor(how.weight)
    priors = torch.empty(len(voxels[0]), members.shape[1])
    weights = torch.empty(len(priors), 1)
    for _, rows, part in _chunks(logits, voxels):
        sure = rows.softmax(1)
        priors[part], weights[part, 0] = sure @ members, sure @ weight
    return priors.clamp_(min=1e-12).log_(), weights


def _fitted(
    priors: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
    places: torch.Tensor,
    *,
    least: float,
    weakest: float,
) -> tuple[_Tissues, _Field]:
    """Return the tissues' Gaussians and the bias field after some rounds of expectation and maximisation."""
    import torch

    field, corrected = _Field(None, 0.0), values
    tissues = _gaussians(priors.exp(), values)
    for number in range(1, _ROUNDS):
        shares = torch.softmax(priors + _terms(priors, corrected, weights, tissues, least), 1)
        if number > 1:  # the first Gaussians are too wide to tell a field from tissues
            field = _field(shares, values, tissues, places, weakest)
            corrected = field.removed(values, places)
        tissues = _gaussians(shares, corrected)
    return tissues, field


def _members(shares: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(shares > _MEMBER, shares, 0.0)


def _gaussians(shares: torch.Tensor, values: torch.Tensor) -> _Tissues:
    """Return the Gaussians of intensities (N,), whose voxels belong to tissues by `shares` (N, T)."""
    members = _members(shares)
    count = members.sum(0)
    mean = values @ members / count.clamp(min=1)
    variance = (values * values) @ members / count.clamp(min=1) - mean * mean
    return _Tissues(mean, variance.clamp(min=_LEAST_VARIANCE), count)


def _terms(
    priors: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, tissues: _Tissues, least: float
) -> torch.Tensor:
    """Return what intensities add to the logarithms of the priors, (N, T).

    A tissue of fewer than `least` voxels is as likely after it as before.
    """
    off = values[:, None] - tissues.mean
    likely = (off * off).div_(tissues.variance).add_(tissues.variance.log()).mul_(-0.5)
    unknown = tissues.count < least
    if unknown.any():
        known = priors[:, ~unknown]
        likely[:, unknown] = ((known + likely[:, ~unknown]).logsumexp(1) - known.logsumexp(1))[:, None]
    return likely.mul_(weights)


@dataclass(frozen=True)
class _Field:
    """A bias field with mean 1: intensities are those of the tissues times the field."""

    coefficients: torch.Tensor | None
    """(K,), of the polynomials; None: too weak to be corrected."""
    variation: float
    """Standard deviation over mean."""

    def removed(self, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return intensities (N,) without the field; `places` (N, K): polynomials at their voxels."""
        return values if self.coefficients is None else values / (places @ self.coefficients).clamp(*_FIELD_LIMITS)


def _polynomials(voxels: Voxels, size: Sequence[int]) -> torch.Tensor:
    """Return the polynomials up to degree 2 of the voxels' places in a volume of `size`, (N, 10)."""
    import torch

    i, j, k = (axis.float().mul_(2 / length).sub_(1) for axis, length in zip(voxels, size, strict=True))
    return torch.stack([torch.ones_like(i), i, j, k, i * i, j * j, k * k, i * j, j * k, k * i], 1)


def _field(
    shares: torch.Tensor, values: torch.Tensor, tissues: _Tissues, places: torch.Tensor, weakest: float
) -> _Field:
    """Return the field that explains best, by least squares, how intensities (N,) differ from their tissues' means.

    The background has no part in it.
    """
    import torch

    members, mean = _members(shares)[:, 1:], tissues.mean[1:]
    precision = 1 / tissues.variance[1:]
    left = places.T @ (places * (members @ (mean * mean * precision))[:, None])
    right = places.T @ ((members @ (mean * precision)) * values)
    ridge = 1e-4 * left.diagonal().mean().clamp(min=1e-6) * torch.eye(len(left))
    coefficients = torch.linalg.solve(left + ridge, right)
    body = (places @ coefficients)[members.sum(1) > 0]
    if len(body) < 2 or (level := float(body.mean())) <= 0:
        return _Field(None, 0.0)
    variation = float(body.std()) / level
    return _Field(coefficients / level if variation >= weakest else None, variation)


def _add_neighbours(terms: torch.Tensor, shares: torch.Tensor, voxels: Voxels, weight: float) -> None:
    """Add the mean of each tissue's probability over the 26 neighbours of each voxel, times `weight`, to the terms.

    `shares`: probabilities (T, N) in steps of 1 / _STEPS.
    """
    import torch

    first = [int(axis.min()) - 1 for axis in voxels]
    size = [int(axis.max()) + 2 - start for axis, start in zip(voxels, first, strict=True)]
    i, j, k = (axis - start for axis, start in zip(voxels, first, strict=True))
    place = (i * size[1] + j) * size[2] + k
    inner = ((i - 1) * (size[1] - 2) + j - 1) * (size[2] - 2) + k - 1
    del i, j, k
    for tissue, share in enumerate(shares):
        total = torch.full(size, _STEPS if tissue == 0 else 0, dtype=torch.int16)
        total.view(-1)[place] = share
        for axis, length in enumerate(size):
            low, middle, high = (total.narrow(axis, start, length - 2) for start in range(3))
            total = (low + middle).add_(high)
        terms[:, tissue] += (total.view(-1)[inner] - share) * (weight / (26 * _STEPS))
