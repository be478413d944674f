"""What a trained nnU-Net states about itself, in `plans.json` and `dataset.json`: checked, since strangers write them.

Everything that goes into a config is a number, or a word of a known list; other texts are made harmless first, because
configs run what begins with `$`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medkit.errors import BundleError, listed
from medkit.nnunet.architecture import Sizes, network_of
from medkit.nnunet.texts import plain_text, short

READERS = {
    "SimpleITKIO": None,
    "NibabelIO": None,
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
}
"""nnU-Net's readers of volumes -> the directions that they turn axes to; None: as the file has them."""
_SCHEMES = {
    "CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
}  # fmt: skip
_RESAMPLING = "resample_data_or_seg_to_shape"
_MOST = 100_000
"""Largest number of voxels of a window along an axis, and of anything else that is counted."""


@dataclass(frozen=True)
class Heads:
    """What the channels of a network's answer are."""

    names: tuple[str, ...]
    """Name of each."""
    labels: Mapping[int, str]
    """Number in the label map -> name, without the background."""
    regions: tuple[int, ...]
    """The number that is written for each, if they are regions that may overlap; else empty."""


@dataclass(frozen=True)
class Configuration:
    """One of a plan's configurations: `2d`, `3d_fullres`, `3d_lowres`."""

    name: str
    spacing: tuple[float, ...]
    """mm, in nnU-Net's order of axes; two for slices."""
    patch_size: tuple[int, ...]
    axes: tuple[int, ...]
    """The plans' `transpose_forward`."""
    orientation: str | None
    """Directions that axes are turned to first; None: as the file has them."""
    normalization: tuple[Mapping[str, Any], ...]
    """For each channel, as `medkit.nnunet.NnunetPreprocessd` takes it."""
    data_order: int
    """Order of the spline that resamples images."""
    logits_order: int
    data_separate: bool | None
    """Whether thick slices are resampled one by one; None: as their spacing tells."""
    logits_separate: bool | None
    network: Mapping[str, Any]
    """The network as a part of a config."""
    package: str | None
    """The package that builds it, next to MONAI; None: MONAI does."""

    @property
    def is_ct(self) -> bool:
        """Whether all channels are CT."""
        return all(channel["scheme"] == "CTNormalization" for channel in self.normalization)


@dataclass(frozen=True)
class Plans:
    """The plans of one model folder, with its data set."""

    source: str
    """The folder, for messages."""
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]

    def fault(self, what: str) -> BundleError:
        """Return the error that says what medkit cannot import."""
        return BundleError(f"{self.source}: {what}")

    @property
    def name(self) -> str:
        """Name of the data set, such as `Dataset004_Hippocampus`."""
        return plain_text(self.plans.get("dataset_name") or self.dataset.get("name") or "nnunet")

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image's channels."""
        stated = self.dataset.get("channel_names") or self.dataset.get("modality")
        if not isinstance(stated, Mapping) or not stated:
            raise self.fault("dataset.json: expected channel_names, number -> name")
        if sorted(stated) != sorted(str(n) for n in range(len(stated))):
            raise self.fault(f"dataset.json: expected channel_names from 0 on, got {short(sorted(stated))}")
        return tuple(plain_text(stated[str(n)]) for n in range(len(stated)))

    def heads(self) -> Heads:
        """Return what the network's channels are. Raises BundleError for labels that nnU-Net refuses too."""
        stated = self.dataset.get("labels")
        if not isinstance(stated, Mapping) or stated.get("background") != 0:
            raise self.fault("dataset.json: expected labels, name -> number, with a background of 0")
        own = {name: value for name, value in stated.items() if name not in ("ignore", "background")}
        if any(isinstance(value, list) and len(value) > 1 for value in own.values()):
            return self._regions(own)
        single = {name: value[0] if isinstance(value, list) and value else value for name, value in own.items()}
        numbers = {self._number(value): name for name, value in single.items()}
        if sorted(numbers) != list(range(1, len(own) + 1)):
            raise self.fault(f"dataset.json: expected labels 0 to {len(own)}, got {short(sorted(numbers))}")
        names = {number: plain_text(numbers[number]) for number in sorted(numbers)}
        return Heads(("background", *names.values()), names, ())

    def _regions(self, own: Mapping[str, Any]) -> Heads:
        """Return the heads of a model of regions; a label is what a region has outside those written later."""
        order = self.dataset.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(own):
            raise self.fault("dataset.json: expected regions_class_order, a number for each region")
        regions = tuple(map(self._number, order))
        parts = [{self._number(n) for n in (v if isinstance(v, list) else [v])} for v in own.values()]
        names = [plain_text(name) for name in own]
        labels = {}
        for n, number in enumerate(regions):
            later = [names[m] for m in range(n + 1, len(names)) if parts[m] & parts[n] and regions[m] != number]
            labels[number] = f"{names[n]} without {listed(later)}" if later else names[n]
        return Heads(tuple(names), labels, regions)

    def _number(self, value: Any) -> int:
        if type(value) is not int or not 0 <= value < 2**31:
            raise self.fault(f"dataset.json: expected numbers of labels, got {short(value)}")
        return value

    def configuration(self, name: str) -> Configuration:
        """Return a configuration. Raises BundleError, with the reason, if medkit cannot run it."""
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):  # it becomes a part of names of files
            raise self.fault(f"expected a configuration's name of letters, digits and _, got {short(name)}")
        found = self._merged(name, ())
        where = f"configuration {name}"
        if found.get("previous_stage"):
            raise self.fault(f"{where}: is a cascade: it needs the labels of {plain_text(found['previous_stage'])}")
        if found.get("preprocessor_name") != "DefaultPreprocessor":
            raise self.fault(f"{where}: prepares images by {short(found.get('preprocessor_name'))}, an unknown class")
        if self.plans.get("label_manager", "LabelManager") != "LabelManager":
            raise self.fault(f"labels are made by {short(self.plans['label_manager'])}, an unknown class")
        reader = self.plans.get("image_reader_writer")
        if reader not in READERS:
            raise self.fault(
                f"reads images by {short(reader)}; medkit imports models of volumes: {listed(list(READERS))}"
            )
        patch = self._numbers(found.get("patch_size"), f"{where}: patch_size", whole=True)
        spacing = self._numbers(found.get("spacing"), f"{where}: spacing")
        axes = self.plans.get("transpose_forward")
        if len(patch) != len(spacing) or len(patch) not in (2, 3):
            raise self.fault(f"{where}: expected spacing and patch_size of two or three axes")
        if not isinstance(axes, list) or sorted(axes) != [0, 1, 2]:
            raise self.fault(f"plans.json: expected an order of three axes as transpose_forward, got {short(axes)}")
        data, logits = (self._resampling(found, where, kind) for kind in ("data", "probabilities"))
        sizes = Sizes(len(patch), len(self.channels), len(self.heads().names))
        try:
            network, package = network_of(found, sizes)
        except ValueError as error:
            raise self.fault(f"{where}: {error}") from None
        return Configuration(
            name, spacing, tuple(map(int, patch)), tuple(axes), READERS[reader], self._normalization(found, where),
            data[0], logits[0], data[1], logits[1], network, package,
        )  # fmt: skip

    def _merged(self, name: str, below: tuple[str, ...]) -> dict[str, Any]:
        """Return what a configuration states, and those that it inherits from."""
        there = self.plans.get("configurations")
        stated = there.get(name) if isinstance(there, Mapping) else None
        if not isinstance(stated, Mapping) or name in below:
            raise self.fault(f"plans.json: has no configuration {plain_text(name)}; it has {short(list(there or ()))}")
        parent = stated.get("inherits_from")
        return (self._merged(str(parent), (*below, name)) if parent else {}) | dict(stated)

    def _numbers(self, value: Any, what: str, *, whole: bool = False) -> tuple[float, ...]:
        kinds = (int,) if whole else (int, float)
        if not isinstance(value, list) or not all(type(n) in kinds and 0 < n < _MOST for n in value):
            raise self.fault(f"{what}: expected numbers above 0, got {short(value)}")
        return tuple(value)

    def _normalization(self, found: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
        schemes, masks = found.get("normalization_schemes"), found.get("use_mask_for_norm")
        count = len(self.channels)
        if not isinstance(schemes, list) or not isinstance(masks, list) or not len(schemes) == len(masks) == count:
            raise self.fault(f"{where}: expected normalization_schemes and use_mask_for_norm for {count} channels")
        key = "foreground_intensity_properties_per_channel"
        facts = self.plans.get(key) or self.plans.get("foreground_intensity_properties_by_modality") or {}
        channels: list[Mapping[str, Any]] = []
        for n, (scheme, mask) in enumerate(zip(schemes, masks, strict=True)):
            if scheme not in _SCHEMES:
                raise self.fault(f"{where}: normalises intensities by {short(scheme)}, an unknown class")
            channel: dict[str, Any] = {"scheme": scheme}
            if scheme == "CTNormalization":
                own = facts.get(str(n)) if isinstance(facts, Mapping) else None
                stated = own if isinstance(own, Mapping) else {}
                values = [float(v) for k in _CT if isinstance(v := stated.get(k), int | float)]
                if len(values) != len(_CT):
                    raise self.fault(f"plans.json: {key}: expected {listed(list(_CT))} of channel {n}")
                channel |= dict(zip(_CT.values(), values, strict=True))
            elif scheme == "ZScoreNormalization":
                channel["mask"] = mask is True
            channels.append(channel)
        return tuple(channels)

    def _resampling(self, found: Mapping[str, Any], where: str, kind: str) -> tuple[int, bool | None]:
        """Return the order of the spline, and whether slices are resampled one by one."""
        name, settings = found.get(f"resampling_fn_{kind}"), found.get(f"resampling_fn_{kind}_kwargs")
        settings = settings if isinstance(settings, Mapping) else {}
        order, separate = settings.get("order"), settings.get("force_separate_z")
        known = (
            settings.get("order_z", 0) == 0
            and type(order) is int
            and order in range(6)
            and separate in (None, True, False)
        )
        if name != _RESAMPLING or not known:
            text = f"{short(name)}, {short(dict(settings))}"
            raise self.fault(f"{where}: resamples by {text}; expected {_RESAMPLING} with order_z 0")
        return int(str(order)), separate


_CT = {"mean": "mean", "std": "std", "percentile_00_5": "low", "percentile_99_5": "high"}
"""Key of the plans -> of the config, for the intensities of CT."""


def mirrored_axes(value: Any, dims: int) -> Sequence[int]:
    """Return the axes that a checkpoint lets be mirrored. Raises ValueError for anything else."""
    axes = [] if value is None else list(value)
    if not all(type(axis) is int and 0 <= axis < dims for axis in axes):
        raise ValueError(f"axes to mirror: expected some of 0 to {dims - 1}, got {short(value)}")
    return sorted(set(axes))
