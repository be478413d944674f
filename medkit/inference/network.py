"""A bundle's network on a prepared case: as the bundle's inferer says where that fits into memory, else in parts."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from medkit.inference.memory import HALF, SCRATCH, WORKSPACE, Footprint, footprint
from medkit.inference.transforms import Postprocessing, Prepared
from medkit.machine.memory import available, ran_out
from medkit.machine.precision import as_float, computing

if TYPE_CHECKING:
    import torch

log = logging.getLogger("medkit")

SMALLEST_WINDOW = 32
"""Voxels along an axis: less says too little about anatomy."""


@dataclass(frozen=True)
class ComputePlan:
    """How a case is computed; the default is what the bundle says."""

    batch: int | None = None
    """Windows at once; None: the bundle's."""
    window: tuple[int, ...] | None = None
    """Voxels of a window; None: the bundle's."""
    tiles: int = 0
    """Parts of the image, each labelled before it is put in its place; 0: whole, labelled by the postprocessing."""

    def __str__(self) -> str:
        parts = [f"{self.batch} window at a time"] if self.batch else []
        parts += [f"windows of {' x '.join(map(str, self.window))} voxels"] if self.window else []
        parts += [f"{self.tiles} tiles, labelled before they were resampled"] if self.tiles else []
        return ", ".join(parts) or "as the bundle says"


class Network:
    """A network, its inferer and the memory it may take."""

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: Any,
        post: Postprocessing,
        device: torch.device,
        precision: str,
        limit: int | None,
    ) -> None:
        self.network, self.inferer, self.post = network, inferer, post
        self.device, self.precision, self.limit = device, precision, limit
        self.keeps_half = False
        """Whether answers in half precision stay so, for a task that goes on in parts: half the memory."""
        self._footprints: dict[tuple[int, ...], Footprint] = {}
        self._worked: dict[tuple[int, ...], ComputePlan] = {}
        """Shape -> the way that was found for it."""

    def __call__(self, prepared: Prepared) -> Prepared:
        """The case with the network's answer, `pred`, and without a batch's axis.

        Raises MemoryError where it fits in no way.
        """
        image = prepared.item["image"]
        ways = list(self._ways(tuple(image.shape)))
        free = available(self.limit, self.device)
        needs = [self._need(way, tuple(image.shape), prepared) for way in ways]
        first = next((n for n, need in enumerate(needs) if need <= free), None)
        if first is None:
            least, left = min(needs) >> 20, free >> 20
            raise MemoryError(f"for {_by(image.shape[1:])} voxels: {least} MiB are needed, {left} MiB are left")
        log.debug("%s voxels: %s; %s MiB of %s", _by(image.shape[1:]), ways[first], needs[first] >> 20, free >> 20)
        for way in ways[first:]:
            try:
                with computing(self.precision, self.device):
                    answer = self._tiled(way, prepared) if way.tiles else self._whole(way, prepared.item)
            except Exception as error:
                if not ran_out(error) or way is ways[-1]:
                    raise
                log.debug("out of memory %s: %s", way, error)
                self._let_go()
                continue
            told = (
                ()
                if way == ComputePlan() or way == ComputePlan(batch=1)
                else (f"computed in parts for lack of memory: {way}",)
            )
            return replace(prepared, item=answer, warnings=told, labelled=way.tiles > 0)
        raise AssertionError("a loop over ways ends in a return or an error")

    def one_batch(self, cases: Sequence[Prepared]) -> bool:
        """Whether cases can be computed together: of one size, taken whole, and all in memory at once."""
        shapes = {tuple(case.item["image"].shape) for case in cases}
        if len(shapes) != 1 or self._window(shape := next(iter(shapes))) is not None:
            return False
        each = self._need(ComputePlan(), shape, cases[0]) - WORKSPACE
        return WORKSPACE + len(cases) * each <= available(self.limit, self.device)

    def together(self, cases: Sequence[Prepared]) -> list[Prepared]:
        """The answers to cases for which `one_batch` holds, computed as a batch."""
        import torch

        images = [case.item["image"] for case in cases]
        plain = [image.as_tensor() if hasattr(image, "as_tensor") else image for image in images]
        with computing(self.precision, self.device):
            batch = torch.stack(plain).to(self.device)
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(batch.dim())  # as the weights are laid out
            answer = self.inferer(batch.contiguous(memory_format=layout) if layout else batch, self.network)
        answers = answer if self.keeps_half else as_float(answer)
        return [replace(c, item={**c.item, "pred": a}) for c, a in zip(cases, answers, strict=True)]

    # ---- which ways there are, and what they take

    def _ways(self, shape: tuple[int, ...]) -> Iterator[ComputePlan]:
        """From what the bundle says to what takes least."""
        yield ComputePlan()
        windows = self._window(shape)
        if windows is not None and self.inferer.sw_batch_size > 1:
            yield ComputePlan(batch=1)
        if self._divides():
            yield from (ComputePlan(1, None, tiles) for tiles in self._tilings(ComputePlan(), shape))
        while windows is not None and max(windows) > SMALLEST_WINDOW and len(windows) == len(shape) - 1:
            windows = tuple(max(min(w, SMALLEST_WINDOW), w // 2 // 16 * 16) for w in windows)
            yield ComputePlan(1, windows, max(self._tilings(ComputePlan(1, windows), shape)) if self._divides() else 0)

    def _tilings(self, way: ComputePlan, shape: tuple[int, ...]) -> list[int]:
        """Numbers of tiles from 1 on; none keeps less than what is computed with it on one side."""
        window, stride = self._reach(way, shape)
        most = shape[self._axis(shape)] // max(window - stride, stride)
        return [1, *(2**n for n in range(1, 16) if 2**n <= most)]

    def _divides(self) -> bool:
        """Whether tiles can be computed one by one: windows and slices see no more than that anyhow."""
        from monai.inferers import SlidingWindowInferer

        return isinstance(self.inferer, SlidingWindowInferer) and self.post.voxelwise is not None

    def _window(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Voxels of the inferer's windows on an image, (C, I, J, K); None where it takes the image whole."""
        roi = getattr(self.inferer, "roi_size", None)
        if roi is None:
            return None
        sizes = [roi] * (len(shape) - 1) if isinstance(roi, int) else list(roi)
        if len(sizes) < len(shape) - 1:  # slices
            return tuple(sizes)
        return tuple(s if s and s > 0 else n for s, n in zip(sizes, shape[1:], strict=True))

    def _need(self, way: ComputePlan, shape: tuple[int, ...], prepared: Prepared) -> int:
        """Bytes for an image of `shape`, (C, I, J, K), the writing of the case before it included."""
        voxels = math.prod(shape[1:])
        window = way.window or self._window(shape) or shape[1:]
        batch = way.batch or int(getattr(self.inferer, "sw_batch_size", 1))
        found = self._footprint((1, shape[0], *window))
        run = WORKSPACE + int(found.peak * batch * SCRATCH * (HALF if self.precision != "float32" else 1))
        stitched = 4 * self._tile(way, shape) * (2 * found.channels + 2)
        grid = math.prod(prepared.grid.shape)
        if way.tiles:
            return run + stitched + 16 * (voxels + grid)
        return (
            run + stitched + 4 * found.channels * voxels + 12 * grid * (found.channels if self.post.inverts_all else 2)
        )

    def _tile(self, way: ComputePlan, shape: tuple[int, ...]) -> int:
        """Voxels of the part of an image, (C, I, J, K), that is computed at once."""
        if way.tiles < 2:
            return math.prod(shape[1:])
        size = shape[self._axis(shape)]
        window, stride = self._reach(way, shape)
        kept = -(-size // way.tiles) + stride
        return math.prod(shape[1:]) // size * min(size, kept + (window - 1) // stride * stride + window - stride)

    def _footprint(self, shape: tuple[int, ...]) -> Footprint:
        if shape not in self._footprints:
            classes = max(len(self.post.contract.classes), 1)
            self._footprints[shape] = footprint(self.network, shape, classes)
        return self._footprints[shape]

    def _let_go(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    # ---- computing

    def _whole(self, way: ComputePlan, item: Any) -> dict[str, Any]:
        """What MONAI's evaluator does with a batch of one."""
        from monai.data import decollate_batch, list_data_collate

        batch = list_data_collate([dict(item)])
        batch["image"] = batch["image"].to(self.device)
        answer = self._inferer(way)(batch["image"], self.network)
        batch["pred"] = answer if self.keeps_half else as_float(answer)
        return dict(decollate_batch(batch)[0])

    def _inferer(self, way: ComputePlan) -> Any:
        if way.batch is None and way.window is None:
            return self.inferer
        inferer = copy.copy(self.inferer)
        inferer.sw_batch_size = way.batch or inferer.sw_batch_size
        inferer.roi_size = way.window or inferer.roi_size
        return inferer

    def _tiled(self, way: ComputePlan, prepared: Prepared) -> dict[str, Any]:
        """Labels tile by tile along one axis, from the very windows that the whole image would be computed in."""
        image = prepared.item["image"]
        shape = tuple(image.shape)
        axis = self._axis(shape)
        size = shape[axis]
        window, stride = self._reach(way, shape)
        bounds = sorted({min(size, round(size * n / way.tiles / stride) * stride) for n in range(way.tiles)} | {size})
        labels: Any = None
        for low, high in pairwise(bounds):
            begin, end = low - min(low, (window - 1) // stride * stride), high + window - stride
            end = size if high > size - window else min(size, end)  # the last window is pushed back into the image
            answer = self._whole(way, {"image": image.narrow(axis, begin, end - begin)})
            for step in self.post.voxelwise or ():
                answer = step(answer)
            part = answer["pred"].narrow(axis, low - begin, high - low)
            if labels is None:
                labels = part.new_empty((len(part), *image.shape[1:]), device="cpu", dtype=_small(part))
            labels.narrow(axis, low, high - low).copy_(part)
        return {**prepared.item, "pred": _like(labels, image)}

    def _axis(self, shape: tuple[int, ...]) -> int:
        """The axis of (C, I, J, K) that tiles follow each other along: the longest, or that of the slices."""
        dim = getattr(self.inferer, "spatial_dim", None)
        return 1 + (dim if dim is not None else max(range(len(shape) - 1), key=lambda n: shape[n + 1]))

    def _reach(self, way: ComputePlan, shape: tuple[int, ...]) -> tuple[int, int]:
        """Voxels of a window along that axis, and from one window to the next; slices are windows of one."""
        if hasattr(self.inferer, "spatial_dim"):
            return 1, 1
        place = self._axis(shape) - 1
        window = (way.window or self._window(shape) or (1,) * 3)[place]
        overlap = self.inferer.overlap
        share = overlap if isinstance(overlap, float | int) else overlap[place]
        return window, max(1, int(window * (1 - share)))


def _small(part: Any) -> Any:
    import torch

    return torch.uint8 if part.max() < 256 else torch.int16


def _like(labels: Any, image: Any) -> Any:
    """Labels as MONAI hands an answer on: floats that lie where the image does."""
    from monai.data import MetaTensor

    values = labels.as_tensor() if isinstance(labels, MetaTensor) else labels
    return MetaTensor(values.float(), meta=image.meta, applied_operations=image.applied_operations)


def _by(sizes: Any) -> str:
    return " x ".join(str(int(n)) for n in sizes)
