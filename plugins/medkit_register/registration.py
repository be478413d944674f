"""What `register` does with each moving scan: read and prepare, find the map, make the files.

The three steps work on different cases at once (see `medkit.task.Stages`). Work that nothing waits for is done in
background threads: the similarity of the scans before registration, the fixed scan's features, the inverse of a warp.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import UsageError
from medkit.images import Image, read_image
from medkit.inference import choose_device
from medkit.task import Case, Result, Runtime, Stages
from medkit.transforms import read_transform, resample
from medkit_register.affine import AffineResult, AffineSettings
from medkit_register.choices import RegisterChoices
from medkit_register.deformable import Warp, prepare_fixed, register_deformable
from medkit_register.masks import compared, doubts_about_mask, volume_of
from medkit_register.midpoint import mean_matrix, middle_warp, root
from medkit_register.network import StartNetwork
from medkit_register.pyramid import Pyramid
from medkit_register.result import ResultMaker, Solution, similarity_of
from medkit_register.verdict import register_better

LIKE_CONTRASTS = 0.58
"""Correlation of intensities, or of their ranks (`affine.RANKS`), from which on a warp follows local correlation. T1
and FLAIR reach 0.51, since scalp and fluid look alike in both. Scans wrongly taken for unlike lose little, scans
wrongly taken for alike half of their Dice, so the limit is higher than the one for the affine map's metric."""


def set_up(runtime: Runtime, *, shared: Mapping[str, Path], choices: RegisterChoices) -> Stages:
    """Read and prepare what all cases share: the fixed image, its mask, a given start.

    Raises UsageError for a given start that is not an affine transform.
    """
    runtime = replace(runtime, device=str(choose_device(runtime.device)))
    fixed = read_image(shared["fixed"], frame=runtime.frame, frame_if_several=True)
    pyramid = Pyramid(volume_of(fixed, compared(fixed.grid, shared.get("fixed_mask"), shared.get("fixed_lesion_mask"))))
    network = StartNetwork(choices.bundle, runtime.device) if choices.bundle and choices.bends else None
    background = ThreadPoolExecutor(2, "medkit background")
    if choices.bends and choices.metric in ("auto", "lncc"):
        quality: Any = choices.quality
        background.submit(prepare_fixed, pyramid, quality, runtime.device)
    doubts = doubts_about_mask(fixed, pyramid, shared["fixed"])
    maker = ResultMaker(shared["fixed"], fixed, pyramid, choices, background, doubts)
    registration = Registration(fixed, pyramid, choices, _start(shared, choices), runtime, network, background, maker)
    return Stages(registration.prepare, registration.compute, registration.finish)


def _start(shared: Mapping[str, Path], choices: RegisterChoices) -> str | np.ndarray:
    """Return the affine map's start, as `init` of `AffineSettings`. Raises UsageError for a file that holds a warp."""
    if choices.init != "file":
        return choices.init
    matrix: np.ndarray | None = getattr(read_transform(shared["init"]), "matrix", None)
    if matrix is None:
        raise UsageError(f"--init {shared['init']}: expected an affine transform, got a displacement field")
    return matrix


@dataclass(frozen=True, eq=False)
class Moving:
    """A moving scan, prepared."""

    image: Image
    pyramid: Pyramid
    before: Future[dict[str, float]]
    """Similarity to the fixed scan before registration."""
    doubts: tuple[str, ...] = ()
    """What is doubtful about its mask."""


@dataclass(frozen=True, eq=False)
class Registration:
    """A prepared fixed image and the settings: aligns one case at a time."""

    fixed: Image
    pyramid: Pyramid
    choices: RegisterChoices
    start: Any
    """As `init` of `AffineSettings`."""
    runtime: Runtime
    network: StartNetwork | None
    background: ThreadPoolExecutor
    maker: ResultMaker

    def prepare(self, case: Case) -> Moving:
        """Read the moving image."""
        image = case.image(blended=self.choices.wants("image"))
        before = self.background.submit(self._before, image)
        mask = compared(image.grid, case.inputs.get("moving_mask"), case.inputs.get("lesion_mask"))
        pyramid = Pyramid(volume_of(image, mask))
        return Moving(image, pyramid, before, doubts_about_mask(image, pyramid, case.path))

    def _before(self, moving: Image) -> dict[str, float]:
        return similarity_of(self.fixed, resample(moving, self.fixed.grid))

    def compute(self, case: Case, moving: Moving) -> Solution:
        """Find the map."""
        return self._to_midpoint(moving) if self.choices.midpoint else self._to_fixed(moving)

    def finish(self, case: Case, solution: Solution) -> Result:
        """Resample the moving image, measure how well the two scans match, and make the files."""
        return self.maker.result(case, solution)

    def _to_fixed(self, moving: Moving) -> Solution:
        """Align the moving image with the fixed one."""
        start, rigid = self.start, None
        if self.choices.kind == "joint":
            start = rigid = self._affine(self.pyramid, moving.pyramid, "rigid", start).matrix
        affine = self._affine(self.pyramid, moving.pyramid, self._affine_type, start)
        warp = self._warp(self.pyramid, moving.pyramid, affine.matrix, affine)
        return Solution(moving.image, moving.pyramid, moving.before, affine, warp, moving.doubts, rigid=rigid)

    def _to_midpoint(self, moving: Moving) -> Solution:
        """Align both images on a grid between them; see `midpoint`."""
        affine = self._affine(self.pyramid, moving.pyramid, self._affine_type, self.start)
        reverse_start = self.start if isinstance(self.start, str) else np.linalg.inv(self.start)
        back = self._affine(moving.pyramid, self.pyramid, self._affine_type, reverse_start)
        affine = replace(affine, matrix=mean_matrix(affine.matrix, back.matrix))
        half = root(affine.matrix)
        forward = self._warp(self.pyramid, moving.pyramid, affine.matrix, affine)
        backward = self._warp(moving.pyramid, self.pyramid, np.linalg.inv(affine.matrix), affine)
        warp = middle_warp(forward, backward, half) if forward and backward else None
        return Solution(moving.image, moving.pyramid, moving.before, affine, warp, moving.doubts, half=half)

    @property
    def _affine_type(self) -> str:
        return "rigid" if self.choices.kind == "rigid" else "affine"

    def _affine(self, fixed: Pyramid, moving: Pyramid, kind: Any, start: Any) -> AffineResult:
        """Find the rigid or affine map from `fixed` to `moving`; `start` is as `init` of `AffineSettings`."""
        metric: Any = "mi" if self.choices.metric == "mind" else self.choices.metric
        descriptors = self.choices.metric in ("auto", "mind")
        return register_better(fixed, moving, AffineSettings(kind, metric, start, self.runtime.seed, descriptors))

    def _warp(self, fixed: Pyramid, moving: Pyramid, matrix: np.ndarray, affine: AffineResult) -> Warp | None:
        """Refine the affine map `matrix` (4, 4) RAS+ mm by a warp; None where the type is rigid or affine.

        `affine` decides the metric.
        """
        if not self.choices.bends:
            return None
        quality: Any = self.choices.quality
        metric = warp_metric(self.choices.metric, affine.metric, affine.intensity_correlation)
        return register_deformable(
            fixed, moving, matrix, metric=metric, quality=quality, device=self.runtime.device, network=self.network,
            unmoved=np.eye(4) if affine.headers_fit and not self.choices.midpoint else None,
        )  # fmt: skip


def warp_metric(asked: str, affine: str, correlation: float | None = None) -> str:
    """Return the metric that a warp follows: unlike contrasts need mind.

    `asked` is what the user asked for, `affine` the affine map's metric, `correlation` that of the intensities.
    """
    unlike = affine == "mi" or (correlation is not None and correlation < LIKE_CONTRASTS)
    return "mind" if asked == "mind" or (asked == "auto" and unlike) else affine
