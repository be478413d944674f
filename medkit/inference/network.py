"""A bundle's network on a prepared case: by the bundle's inferer if that fits into memory, else in smaller parts."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from medkit.errors import size_text
from medkit.inference.backend_choice import Asked, Choice, fitting_example, settle
from medkit.inference.backends import TORCH
from medkit.inference.memory import HALF, SCRATCH, WORKSPACE, Footprint, footprint
from medkit.inference.transforms import Postprocessing, Prepared
from medkit.machine.memory import available, ran_out
from medkit.machine.precision import as_float, computing
from medkit.terminal.progress import counted, has_bar, steps

if TYPE_CHECKING:
    import torch

log = logging.getLogger("medkit")

SMALLEST_WINDOW = 32
"""Smallest window, in voxels along an axis: a smaller one shows too little anatomy."""


@dataclass(frozen=True)
class ComputePlan:
    """How a case is computed; by default as the bundle's inferer does."""

    batch: int | None = None
    """Number of windows at once; None: the bundle's."""
    window: tuple[int, ...] | None = None
    """Size of a window in voxels; None: the bundle's."""
    tiles: int = 0
    """Parts of the image, each labelled before it is put in its place; 0: whole, labelled by the postprocessing."""

    def __str__(self) -> str:
        parts = [f"{self.batch} window at a time"] if self.batch else []
        parts += [f"windows of {size_text(self.window)} voxels"] if self.window else []
        parts += [f"{self.tiles} tiles, labelled before they were resampled"] if self.tiles else []
        return ", ".join(parts) or "as the bundle's inferer does"

    @property
    def same_result(self) -> bool:
        """Whether the result is that of the bundle's own inferer: the number of windows at once does not change it."""
        return self in (ComputePlan(), ComputePlan(batch=1))


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
        self.keeps_half = hasattr(inferer, "bytes_per_voxel")
        """Whether answers in half precision stay so, which halves their memory, for steps that work on in parts."""
        self._footprints: dict[tuple[int, ...], Footprint] = {}
        self.backend = Asked(TORCH, precision, precision)
        """What computes the network; `auto` is decided by the first case."""
        self.choice: Choice | None = None
        self.called: Any = network
        """What the inferer calls: the network, or another library's copy of it."""
        self.stated: tuple[float, int] | None = None
        """Bytes for each voxel of a window and channels of the answer, for a network that cannot be followed."""

    def __call__(self, prepared: Prepared) -> Prepared:
        """Return the case with the network's answer under `pred`, without the batch axis.

        Raises MemoryError if the case does not fit into memory even in the smallest parts.
        """
        self._settle(prepared.item["image"])
        plans = self._fitting_plans(prepared)
        for plan in plans:
            try:
                with computing(self.precision, self.device):
                    answer = self._tiled(plan, prepared) if plan.tiles else self._whole(plan, prepared.item)
            except Exception as error:
                if not ran_out(error) or plan is plans[-1]:
                    raise
                log.debug("out of memory %s: %s", plan, error)
                self._release_memory()
                continue
            warnings = () if plan.same_result else (f"computed in parts for lack of memory: {plan}",)
            return replace(prepared, item=answer, warnings=warnings, labelled=plan.tiles > 0)
        raise AssertionError("a loop over plans ends in a return or an error")

    def one_batch(self, cases: Sequence[Prepared]) -> bool:
        """Return whether cases can be computed as one batch: of one size, without windows, and together in memory."""
        shapes = {tuple(case.item["image"].shape) for case in cases}
        if len(shapes) != 1 or self._window(shape := next(iter(shapes))) is not None:
            return False
        each = self._need(ComputePlan(), shape, cases[0]) - WORKSPACE
        return WORKSPACE + len(cases) * each <= available(self.limit, self.device)

    def together(self, cases: Sequence[Prepared]) -> list[Prepared]:
        """Compute cases for which `one_batch` holds as one batch."""
        import torch

        images = [case.item["image"] for case in cases]
        self._settle(images[0])
        plain = [image.as_tensor() if hasattr(image, "as_tensor") else image for image in images]
        with computing(self.precision, self.device):
            batch = torch.stack(plain).to(self.device)
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(batch.dim())  # the layout of the weights
            answer = self.inferer(batch.contiguous(memory_format=layout) if layout else batch, self.called)
        answers = answer if self.keeps_half else as_float(answer)
        return [replace(c, item={**c.item, "pred": a}) for c, a in zip(cases, answers, strict=True)]

    @property
    def facts(self) -> dict[str, Any]:
        """The entries for a sidecar: the backend and the precision, and what `auto` has measured."""
        return {"precision": self.precision, "backend": TORCH} | (self.choice.facts if self.choice else {})

    def _settle(self, image: Any) -> None:
        """Decide with the first image, (C, I, J, K), what computes the network."""
        if self.choice is not None:
            return
        self.choice, self.called = settle(self.backend, self.network, functools.partial(self.example, image))
        self.precision = self.choice.way.precision

    def example(self, image: Any) -> Any:
        """Return the part of an image, (C, I, J, K), on which ways to compute the network are compared: (1, C, ...)."""
        window = self._window(tuple(image.shape)) or tuple(image.shape[1:])
        return fitting_example(self.network, image.to(self.device), window, getattr(self.inferer, "spatial_dim", None))

    # ---- possible plans, and the memory that they need

    def _fitting_plans(self, prepared: Prepared) -> list[ComputePlan]:
        """Return the plans that should fit into memory, those that need less last. Raises MemoryError without any."""
        shape = tuple(prepared.item["image"].shape)
        plans = list(self._plans(shape))
        free = available(self.limit, self.device)
        needs = [self._need(plan, shape, prepared) for plan in plans]
        first = next((n for n, need in enumerate(needs) if need <= free), None)
        if first is None:
            least, left = min(needs) >> 20, free >> 20
            raise MemoryError(f"for {size_text(shape[1:])} voxels: {least} MiB are needed, {left} MiB are left")
        log.debug("%s voxels: %s; %s MiB of %s", size_text(shape[1:]), plans[first], needs[first] >> 20, free >> 20)
        return plans[first:]

    def _plans(self, shape: tuple[int, ...]) -> Iterator[ComputePlan]:
        """Yield plans for an image of `shape`, (C, I, J, K), from the bundle's own to the one that needs least."""
        yield ComputePlan()
        if hasattr(self.inferer, "bytes_per_voxel"):  # with other windows its results would be others
            return
        windows = self._window(shape)
        if windows is not None and self.inferer.sw_batch_size > 1:
            yield ComputePlan(batch=1)
        if self._divides():
            yield from (ComputePlan(1, None, tiles) for tiles in self._tilings(ComputePlan(), shape))
        while windows is not None and max(windows) > SMALLEST_WINDOW and len(windows) == len(shape) - 1:
            windows = tuple(max(min(w, SMALLEST_WINDOW), w // 2 // 16 * 16) for w in windows)
            yield ComputePlan(1, windows, max(self._tilings(ComputePlan(1, windows), shape)) if self._divides() else 0)

    def _tilings(self, plan: ComputePlan, shape: tuple[int, ...]) -> list[int]:
        """Return numbers of tiles from 1 on, up to where a tile would be smaller than its margin on one side."""
        window, stride = self._reach(plan, shape)
        most = shape[self._axis(shape)] // max(window - stride, stride)
        return [1, *(2**n for n in range(1, 16) if 2**n <= most)]

    def _divides(self) -> bool:
        """Return whether tiles can be computed one by one: windows and slices do not see beyond them anyhow."""
        from monai.inferers import SlidingWindowInferer

        return isinstance(self.inferer, SlidingWindowInferer) and self.post.voxelwise is not None

    def _window(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the size of the inferer's windows on an image, (C, I, J, K), in voxels; None without windows."""
        roi = getattr(self.inferer, "roi_size", None)
        if roi is None:
            return None
        sizes = [roi] * (len(shape) - 1) if isinstance(roi, int) else list(roi)
        if len(sizes) < len(shape) - 1:  # slices
            return tuple(sizes)
        return tuple(s if s and s > 0 else n for s, n in zip(sizes, shape[1:], strict=True))

    def _need(self, plan: ComputePlan, shape: tuple[int, ...], prepared: Prepared) -> int:
        """Return the bytes needed for an image of `shape`, (C, I, J, K), while the case before it is written."""
        voxels = math.prod(shape[1:])
        window = plan.window or self._window(shape) or shape[1:]
        batch = plan.batch or int(getattr(self.inferer, "sw_batch_size", 1))
        found = self._footprint((1, shape[0], *window))
        own: Any = getattr(self.inferer, "bytes_per_voxel", None)
        run = WORKSPACE + int(found.peak * batch * SCRATCH * (HALF if self.precision != "float32" else 1))
        stitched = 4 * self._tile(plan, shape) * (2 * found.channels + 2)
        grid = math.prod(prepared.grid.shape)
        if own is not None:
            folds = len(getattr(self.network, "networks", [self.network]))
            return run + voxels * int(own(found.channels, folds)) + 6 * grid
        if plan.tiles:
            return run + stitched + 16 * (voxels + grid)
        return (
            run + stitched + 4 * found.channels * voxels + 12 * grid * (found.channels if self.post.inverts_all else 2)
        )

    def _tile(self, plan: ComputePlan, shape: tuple[int, ...]) -> int:
        """Return the number of voxels of an image, (C, I, J, K), that are computed at once."""
        if plan.tiles < 2:
            return math.prod(shape[1:])
        size = shape[self._axis(shape)]
        window, stride = self._reach(plan, shape)
        kept = -(-size // plan.tiles) + stride
        return math.prod(shape[1:]) // size * min(size, kept + (window - 1) // stride * stride + window - stride)

    def _footprint(self, shape: tuple[int, ...]) -> Footprint:
        if self.stated is not None:
            return Footprint(int(self.stated[0] * math.prod(shape[2:])), self.stated[1])
        if shape not in self._footprints:
            classes = max(len(self.post.contract.classes), 1)
            self._footprints[shape] = footprint(self.network, shape, classes)
        return self._footprints[shape]

    def _release_memory(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    # ---- computing

    def _whole(self, plan: ComputePlan, item: Any) -> dict[str, Any]:
        """Compute an item as MONAI's evaluator does with a batch of one."""
        from monai.data import decollate_batch, list_data_collate

        batch = list_data_collate([dict(item)])
        batch["image"] = batch["image"].to(self.device)
        answer = self._infer(plan, batch["image"])
        if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict):  # what a detector has found
            return {**decollate_batch(batch)[0], "pred": as_float(answer[0])}
        batch["pred"] = answer if self.keeps_half else as_float(answer)
        return dict(decollate_batch(batch)[0])

    def _infer(self, plan: ComputePlan, image: Any) -> Any:
        """Return the inferer's answer to an image, (1, C, I, J, K); its windows are steps of the case."""
        inferer = self._inferer(plan)
        if not has_bar() or (total := self._calls(plan, tuple(image.shape[1:]))) is None:
            return inferer(image, self.called)
        with steps(total, "windows") as advance:

            def network(*args: Any, **kwargs: Any) -> Any:
                answer = self.called(*args, **kwargs)
                advance()
                return answer

            return inferer(image, network)

    def _calls(self, plan: ComputePlan, shape: tuple[int, ...]) -> int | None:
        """Return how often the inferer calls the network for an image, (C, I, J, K); None if it has no windows.

        None also for an inferer of another package: it may use the network in other ways than by calling it.
        """
        from monai.inferers import SlidingWindowInferer

        if not (isinstance(self.inferer, SlidingWindowInferer) and type(self.inferer).__module__.startswith("monai.")):
            return None
        windows = math.prod(
            -(-max(0, size - window) // stride) + 1
            for axis, size in enumerate(shape[1:])
            for window, stride in [self._reach(plan, shape, axis)]
        )
        return -(-windows // int(plan.batch or self.inferer.sw_batch_size))

    def _inferer(self, plan: ComputePlan) -> Any:
        if plan.batch is None and plan.window is None:
            return self.inferer
        inferer = copy.copy(self.inferer)
        inferer.sw_batch_size = plan.batch or inferer.sw_batch_size
        inferer.roi_size = plan.window or inferer.roi_size
        return inferer

    def _tiled(self, plan: ComputePlan, prepared: Prepared) -> dict[str, Any]:
        """Label tile by tile along one axis, with the same windows as if the whole image were computed."""
        image = prepared.item["image"]
        shape = tuple(image.shape)
        axis = self._axis(shape)
        size = shape[axis]
        window, stride = self._reach(plan, shape)
        bounds = sorted({min(size, round(size * n / plan.tiles / stride) * stride) for n in range(plan.tiles)} | {size})
        labels: Any = None
        for low, high in counted(list(pairwise(bounds)), "tiles"):
            start, end = low - min(low, (window - 1) // stride * stride), high + window - stride
            end = size if high > size - window else min(size, end)  # the last window is pushed back into the image
            answer = self._whole(plan, {"image": image.narrow(axis, start, end - start)})
            for step in self.post.voxelwise or ():
                answer = step(answer)
            part = answer["pred"].narrow(axis, low - start, high - low)
            if labels is None:
                labels = part.new_empty((len(part), *image.shape[1:]), device="cpu", dtype=_smallest_type(part))
            labels.narrow(axis, low, high - low).copy_(part)
        return {**prepared.item, "pred": _like(labels, image)}

    def _axis(self, shape: tuple[int, ...]) -> int:
        """Return the axis of (C, I, J, K) that is cut into tiles: the longest, or that of the slices."""
        dim = getattr(self.inferer, "spatial_dim", None)
        return 1 + (dim if dim is not None else max(range(len(shape) - 1), key=lambda n: shape[n + 1]))

    def _reach(self, plan: ComputePlan, shape: tuple[int, ...], axis: int | None = None) -> tuple[int, int]:
        """Return the voxels of a window along an axis of (C, I, J, K), and from one window to the next.

        `axis`: None for the one that is cut into tiles. Across slices a window is one slice.
        """
        across = getattr(self.inferer, "spatial_dim", None)
        axis = self._axis(shape) - 1 if axis is None else axis
        if axis == across:
            return 1, 1
        windows = list(plan.window or self._window(shape) or (1,) * 3)
        if across is not None and len(windows) < len(shape) - 1:
            windows.insert(across, 1)
        window = windows[axis] if windows[axis] and windows[axis] > 0 else shape[axis + 1]
        overlap = self.inferer.overlap
        share = overlap if isinstance(overlap, float | int) else overlap[axis]
        return window, max(1, int(window * (1 - share)))


def _smallest_type(part: Any) -> Any:
    """Return the smallest type that holds a tile's labels."""
    import torch

    return torch.uint8 if part.max() < 256 else torch.int16


def _like(labels: Any, image: Any) -> Any:
    """Return labels in the form of MONAI's answers: floats with the image's position."""
    from monai.data import MetaTensor

    values = labels.as_tensor() if isinstance(labels, MetaTensor) else labels
    return MetaTensor(values.float(), meta=image.meta, applied_operations=image.applied_operations)
