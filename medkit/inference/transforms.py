"""A bundle's transforms before and after its network, as steps that medkit runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medkit.bundles.contract import Contract
from medkit.errors import BundleError, InputError
from medkit.inference.inputs import Feed, ScanReader, feed_of
from medkit.inference.prompts import Prompts
from medkit.run.task import Case
from medkit.space import Grid


@dataclass(frozen=True)
class Prepared:
    """A case between two stages."""

    item: Mapping[str, Any]
    """Key -> value, as MONAI's dataset or, with `pred`, its evaluator would pass it on."""
    grid: Grid
    """Grid of the case's own input."""
    warnings: tuple[str, ...] = ()
    """What the user should know about how it was computed."""
    labelled: bool = False
    """Whether `pred` already holds labels (see `medkit.inference.network.ComputePlan.tiles`)."""


_BY_VOXEL = ("Activations", "EnsureType", "CastToType", "ToDevice", "ToTensor")
"""Transforms that look at one voxel at a time and keep the order of its channels."""
_KEEP_VALUES = (*_BY_VOXEL, "KeepLargest", "RemoveSmall", "FillHoles", "SqueezeDim", "FromMetaTensor", "ToNumpy")
"""Transforms that never change a label's number."""


class Preprocessing:
    """The transforms before the network, applied to the images that medkit has read."""

    def __init__(self, compose: Any, contract: Contract, name: str, *, planes: bool, task: str | None = None) -> None:
        from monai.transforms import LoadImaged, MapTransform, Randomizable

        from medkit.inference.axis_resampling import patch_monai

        patch_monai()
        self.contract, self.name, self.task = contract, name, task
        steps = compose.flatten().transforms
        self.reader = ScanReader(planes)
        for loader in loaders_of(compose):
            loader.readers.append(self.reader)
        # results must not depend on chance, even if the bundle's demonstration adds random transforms; those that are
        # done with a probability stay, since the inverse asks for their traces
        left_out = [s for s in steps if isinstance(s, Randomizable) and _named(s, "Rand") and not _can_stay(s)]
        self.left_out = [type(s).__name__ for s in left_out]
        """Names of transforms that are not done, since they draw at random in every case."""
        self.steps = [s for s in steps if s not in left_out]
        self.drawing = [s for s in self.steps if isinstance(s, Randomizable)]
        self.prompts = Prompts()
        """What a case's item holds besides images."""
        self.by_file = not any(isinstance(s, LoadImaged) for s in steps)
        """Whether the transforms take the name of one file instead of a dictionary."""
        if contract.optional:
            _allow_missing(s for s in self.steps if isinstance(s, MapTransform))

    def __call__(self, case: Case) -> Prepared:
        """Read and prepare a case. Raises InputError."""
        feed = feed_of(case, self.contract)
        return self.prepare(replace(feed, item={**self.prompts.of(case.record), **feed.item}), case)

    def prepare(self, feed: Feed, case: Case) -> Prepared:
        """Prepare images that were read, or made, for a case. Raises InputError."""
        self.reader.images = feed.images
        for step in self.drawing:
            step.set_random_state(seed=case.runtime.seed)
        try:
            item = self._item(feed)
        finally:
            self.reader.images = {}
        if not isinstance(item, dict):
            raise BundleError(
                f"bundle {self.name}: its preprocessing returns several samples of an image, expected one"
            )
        image: Any = item.get("image", item.get(self.contract.keys[0]))
        channels = self.contract.channels
        if self.contract.named_channels and len(channels) > 1 and len(image) != len(channels):
            own_task = f"; medkit run {self.task} makes them of one image" if self.task else ""
            raise InputError(
                f"{case.path}: expected {len(channels)} channels ({', '.join(channels)}), got {len(image)}; "
                f'a record names their files: {{"path": ..., "inputs": {{"{channels[1]}": ...}}}}{own_task}'
            )
        for value in item.values():
            _forget_ids(getattr(value, "applied_operations", ()))
        return Prepared(item | {"image": image}, feed.grid)

    def _item(self, feed: Feed) -> Any:
        """Run the transforms; for a network of planes, a volume of one slice is a plane, else the volume that it is."""
        run = self._by_file if self.by_file else self._by_keys
        if not self.reader.planar or all(image.grid.dims == 2 for image in feed.images.values()):
            return run(feed)
        try:
            return run(feed)
        except Exception:
            self.reader.planar = False
            try:
                return run(feed)
            except Exception:  # the first error, raised below, is about what the bundle asks for
                self.reader.planar = True
            raise

    def _by_keys(self, feed: Feed) -> Any:
        return _through(self.steps, dict(feed.item))

    def _by_file(self, feed: Feed) -> dict[str, Any]:
        import torch

        names = feed.item[self.contract.keys[0]]
        parts = [_through(self.steps, name) for name in ([names] if isinstance(names, str) else names)]
        return {"image": torch.cat(parts) if len(parts) > 1 else parts[0]}


class Postprocessing:
    """The transforms after the network, without those that save files."""

    def __init__(self, steps: Sequence[Any], contract: Contract) -> None:
        from monai.transforms import MapTransform

        self.contract = contract
        self.keeps_probabilities = False
        """Whether `probabilities` is asked for as well, so that the network's channels have to be kept."""
        if contract.kind == "table":  # a bare class would hide how sure the network is
            steps = [s for s in steps if not _named(s, "AsDiscrete")]
        self.steps = tuple(map(_quick, steps))
        _allow_missing(s for s in self.steps if isinstance(s, MapTransform))  # only training data has a label
        self.activated = bool(contract.aspects) or any(_named(s, "Activations") for s in self.steps)
        """Whether the steps turn a classifier's values into probabilities; a bundle with aspects always does so."""

    @functools.cached_property
    def is_only_softmax(self) -> bool:
        """Whether the only step is a softmax over all channels."""
        return len(self.steps) == 1 and _named(self.steps[0], "Activations") and _is_softmax(self.steps[0])

    @property
    def inverts_all(self) -> bool:
        """Whether all channels of an answer are resampled back to the scan, instead of the labels made from them."""
        names = [type(s).__name__ for s in self.steps]
        back = next((n for n, name in enumerate(names) if name.startswith("Invert")), None)
        if back is None or self.keeps_probabilities:
            return back is not None
        return not any(name.startswith("AsDiscrete") for name in names[:back])

    @property
    def inverts(self) -> bool:
        """Whether answers are taken back to the scan."""
        return any(_named(step, "Invert") for step in self.steps)

    @property
    def picks_largest(self) -> bool:
        """Whether labels are the largest channel of each voxel, resampled back to the scan, and nothing else."""
        chosen = [s for s in self.steps if _named(s, "AsDiscrete")]
        plain = all(_named(s, "AsDiscrete", "Invert", "MapLabelValue", *_BY_VOXEL) for s in self.steps)
        return plain and len(chosen) == 1 and _takes_largest(chosen[0])

    @property
    def labels_are_channels(self) -> bool:
        """Whether labels are channel numbers: the largest channel is taken, and no step changes its number."""
        if any(_named(s, "AsDiscrete") and not _takes_largest(s) for s in self.steps):
            return False
        return all(_named(s, "AsDiscrete", "Invert", *_KEEP_VALUES) for s in self.steps)

    @property
    def voxelwise(self) -> tuple[Any, ...] | None:
        """The steps that turn the network's values of a voxel into its label; None if they look at other voxels."""
        index = next((n for n, s in enumerate(self.steps) if _named(s, "AsDiscrete")), None)
        if index is None or self.keeps_probabilities:
            return None
        before = [s for s in self.steps[:index] if not _named(s, "Invert")]
        return (*before, self.steps[index]) if all(_named(s, *_BY_VOXEL) for s in before) else None

    def __call__(self, prepared: Prepared) -> dict[str, Any]:
        """Return the item after all steps, or after the remaining steps if it is already labelled."""
        if not prepared.labelled:
            item: Any = dict(prepared.item)
            for step in self.steps:
                item = _through([_keeping_labels(step, item, self.contract)], item)
            return dict(item)
        done = {id(s) for s in self.voxelwise or ()}
        left = [_nearest(s) for s in self.steps if id(s) not in done]
        return dict(_through(left, dict(prepared.item)))

    def probabilities(self, prepared: Prepared) -> Any:
        """Return what the largest channel, or a threshold, is taken of: (C, I, J, K) on the scan's grid or an own one.

        Raises BundleError if the steps make labels in another way.
        """
        if own := next((step for step in self.steps if hasattr(step, "probabilities")), None):
            return own.probabilities(prepared.item)
        index = next((n for n, s in enumerate(self.steps) if _named(s, "AsDiscrete") and "pred" in s.keys), None)
        item = dict(_through(self.steps[:index], dict(prepared.item)))
        value = item["pred"]
        if len(value) == 1 and _whole(value) and float(value.max()) > 1:
            raise BundleError("its postprocessing makes labels without AsDiscreted: there are no probabilities")
        largest = len(value) > 1 and (index is None or _takes_largest(self.steps[index]))
        item["pred"] = _as_probabilities(value, largest)
        if index is None:
            return item["pred"]
        back = [_resampling_by(s, nearest=False) for s in self.steps[index + 1 :] if _named(s, "Invert")]
        return _through(back, item)["pred"]


def _as_probabilities(value: Any, largest: bool) -> Any:
    """Return probabilities for channels, (C, I, J, K), that may be logits; `largest`: classes exclude each other."""
    low, high = float(value.min()), float(value.max())
    if largest:
        return value if low >= 0 and abs(value.sum(0) - 1).max() < 0.05 else value.softmax(0)
    return value if low >= 0 and high <= 1 else value.sigmoid()


def _quick(step: Any) -> Any:
    """Let an `AsDiscreted` find the largest channel 5 to 10 times faster than torch.argmax; others are unchanged."""
    from monai.transforms import AsDiscrete, AsDiscreted

    class Quick(AsDiscrete):
        def __call__(self, img: Any, argmax: bool | None = None, *others: Any) -> Any:
            if argmax and not self.kwargs.keys() & {"dim", "keepdim"}:
                img, argmax = img.max(0, keepdim=True).indices, False
            return super().__call__(img, argmax, *others)

    if not isinstance(step, AsDiscreted):
        return step
    step = copy.copy(step)
    quick = Quick()
    quick.kwargs = step.converter.kwargs
    step.converter = quick
    return step


def _keeping_labels(step: Any, item: Mapping[str, Any], contract: Contract) -> Any:
    """Return a step that does not blend the numbers of several labels on their way back, whatever the bundle asks for.

    A single label is left to the bundle: what is half of it is rounded.
    """
    if not _named(step, "Invert"):
        return step
    kinds = {contract.results[0]: contract.kind, **contract.kinds}
    nearest = [bool(flag) for flag in step.nearest_interp]
    for n, key in enumerate(step.keys):
        if kinds.get(key) == "labels" and key in item and _whole(value := item[key]) and float(value.max()) > 1:
            nearest[n] = True
    return _resampling_by(step, nearest=nearest)


def _whole(value: Any) -> bool:
    """Return whether all values are whole numbers; a part of them is looked at first."""
    return all(bool((part == part.round()).all()) for part in (value[..., ::16], value)) if len(value) == 1 else False


def _nearest(step: Any) -> Any:
    """Return a step; one that inverts resamples labels then, by nearest neighbour."""
    return _resampling_by(step, nearest=True) if _named(step, "Invert") else step


def _resampling_by(step: Any, *, nearest: bool | Sequence[bool]) -> Any:
    """Return an `Invertd` that resamples its keys, all or each, by nearest neighbour or as on the way forward."""
    step = copy.copy(step)
    step.nearest_interp = [nearest] * len(step.keys) if isinstance(nearest, bool) else list(nearest)
    return step


def _through(steps: Iterable[Any], value: Any) -> Any:
    from monai.transforms import apply_transform

    for step in steps:
        value = apply_transform(step, value, map_items=False)
    return value


def loaders_of(compose: Any) -> list[Any]:
    """Return the `LoadImage` of each transform of a preprocessing that reads files."""
    from monai.transforms import LoadImage, LoadImaged

    steps = compose.flatten().transforms
    return [s._loader if isinstance(s, LoadImaged) else s for s in steps if isinstance(s, LoadImaged | LoadImage)]


def _named(step: Any, *names: str) -> bool:
    return type(step).__name__.startswith(names)


def _takes_largest(step: Any) -> bool:
    """Return whether an `AsDiscrete` or `AsDiscreted` returns the number of the largest channel."""
    argmax = step.argmax
    return bool(argmax if isinstance(argmax, bool) else next(iter(argmax)))


def _is_softmax(step: Any) -> bool:
    """Return whether an `Activationsd` applies only a softmax."""
    return tuple(getattr(step, "softmax", ())) == (True,) and not any(step.sigmoid) and not any(step.other)


def _can_stay(step: Any) -> bool:
    """Return whether a random transform is not done at the probability 0, which is set, or only orders others."""
    from monai.transforms import Compose

    if hasattr(step, "prob"):
        step.prob = 0.0
    return hasattr(step, "prob") or isinstance(step, Compose)


def _allow_missing(steps: Iterable[Any]) -> None:
    for step in steps:
        step.allow_missing_keys = True


def _forget_ids(operations: Any) -> None:
    """Remove the transforms' ids from the trace of an image: the copy of a transform that inverts it has another id."""
    from monai.utils import TraceKeys

    if isinstance(operations, dict):
        if TraceKeys.ID in operations:
            operations[TraceKeys.ID] = TraceKeys.NONE
        operations = operations.values()
    elif not isinstance(operations, list | tuple):
        return
    for part in operations:
        _forget_ids(part)
