"""The search for a start: many rotations and positions are tried on a coarse level, and the best are varied."""

from __future__ import annotations

import itertools

import numpy as np

from medkit_register.axes import LocalAxes
from medkit_register.optimise import rotation
from medkit_register.problem import Problem
from medkit_register.start_scoring import StartScores

ANGLES = np.deg2rad([-60.0, -30.0, 0.0, 30.0, 60.0])
"""Rotations (radians) tried about each axis of a volume; the optimiser finds angles between them."""
PLANAR_ANGLES = np.deg2rad(np.arange(-180, 180, 15))
"""Rotations (radians) tried for planar scans."""
POINTS = 1000
"""Sample points for scoring a map: enough to rank rotations."""
SHIFT = 0.4
"""Share of the radius by which centres of mass are tried apart, along each axis and in all combinations: one scan may
show more of the neck, or only a part of the head."""
SCALES = (0.85, 1.0)
"""Scales tried besides the ratio of the radii: the skull makes a head wider than the same brain without it."""
PARENTS = 24
"""Number of best maps that are varied in each round."""
CHILDREN = 32
"""Variants of each of these PARENTS maps."""
SPREADS = (
    (np.deg2rad(20.0), 0.3, 0.12),
    (np.deg2rad(12.0), 0.2, 0.08),
    (np.deg2rad(8.0), 0.12, 0.05),
    (np.deg2rad(5.0), 0.08, 0.03),
)
"""Standard deviations of the variants, round by round: rotation (radians), shift (shares of the radius), log scale."""
KEPT = 8
"""Starts that the optimiser refines."""
THOROUGH = 3
"""Factor on KEPT after a first search in vain."""


def search(
    problem: Problem,
    axes: LocalAxes,
    init: str | np.ndarray,
    *,
    scaled: bool,
    planar: bool,
    seed: int = 0,
    thorough: bool = False,
) -> list[np.ndarray]:
    """Return local maps (3, 4) to start from, the most promising first; only one unless `init` is "auto".

    `init` is as in `affine.AffineSettings`; `scaled`: whether scales are varied. `thorough` returns THOROUGH times as
    many maps, which may be closer to each other: the right one may have a neighbour with a better score.
    """
    header = axes.to_local(np.eye(4))
    centre = axes.to_local(translation(axes.middles[1] - axes.middles[0]))
    if not isinstance(init, str):
        return [in_plane(axes.to_local(init), planar)]
    if init != "auto":
        return [in_plane({"moments": np.eye(3, 4), "header": header, "centre": centre}[init], planar)]
    radius = axes.radii[0]
    ratio = axes.radii[1] / radius
    scales = sorted({*SCALES, ratio}) if scaled else [1.0]
    given = [in_plane(m, planar) for m in (header, centre)]
    maps = np.stack(given + turned(scales, SHIFT * radius, planar=planar))
    scoring = StartScores(problem)
    value = scoring.scores(maps, POINTS)
    # the header is right more often than any other single start: it is refined whenever the scans overlap
    header_value = np.inf if np.isfinite(value[0]) else -np.inf
    draw = np.random.default_rng(seed)
    kept, near = (THOROUGH * KEPT, 0.5) if thorough else (KEPT, 1.0)
    for spread in SPREADS:
        parents = np.stack(apart(maps, np.argsort(-value, kind="stable"), PARENTS, radius, near))
        maps = np.concatenate([parents, varied(parents, spread, radius, draw, scaled=scaled, planar=planar)])
        value = scoring.scores(maps, 2 * POINTS)
    maps, value = np.concatenate([given[:1], maps]), np.concatenate([[header_value], value])
    return apart(maps, np.argsort(-value, kind="stable"), kept, radius, near)


def varied(
    maps: np.ndarray,
    spread: tuple[float, float, float],
    radius: float,
    draw: np.random.Generator,
    *,
    scaled: bool,
    planar: bool,
) -> np.ndarray:
    """Return random variants (K * CHILDREN, 3, 4) of local maps (K, 3, 4); `spread` is an entry of SPREADS."""
    angle, shift, growth = spread
    out = []
    for mapping in np.repeat(maps, CHILDREN, axis=0):
        turns, move = angle * draw.normal(size=3), shift * radius * draw.normal(size=3)
        scale = np.exp(growth * draw.normal()) if scaled else 1.0
        if planar:
            turns[:2], move[2] = 0, 0
        linear = np.diag([scale, scale, 1.0 if planar else scale]) @ rotation(turns)
        out.append(np.hstack([linear @ mapping[:, :3], (mapping[:, 3] + move)[:, None]]))
    return np.stack(out)


def translation(shift: np.ndarray) -> np.ndarray:
    """Return the (4, 4) matrix that moves points by `shift` (3,) mm."""
    out = np.eye(4)
    out[:3, 3] = shift
    return out


def in_plane(mapping: np.ndarray, planar: bool) -> np.ndarray:
    """Return the map (3, 4), for planar scans without its part across the plane."""
    if not planar:
        return mapping
    out = np.eye(3, 4)
    out[:2, :2], out[:2, 3] = mapping[:2, :2], mapping[:2, 3]
    return out


def turned(scales: list[float], shift: float, *, planar: bool) -> list[np.ndarray]:
    """Return maps (3, 4) about the centres of mass: all rotations, scales and combinations of `shift` mm along axes."""
    unit = np.eye(3)
    if planar:
        turns = [rotation(np.array([0, 0, angle])) for angle in PLANAR_ANGLES]
    else:
        turns = [
            rotation(c * unit[2]) @ rotation(b * unit[1]) @ rotation(a * unit[0])
            for a, b, c in itertools.product(ANGLES, repeat=3)
        ]
    linear = [np.diag([s, s, 1.0 if planar else s]) @ turn for turn in turns for s in scales]
    steps = [(-shift, 0.0, shift)] * 2 + [(0.0,) if planar else (-shift, 0.0, shift)]
    shifts = [np.asarray(step) for step in itertools.product(*steps)]
    return [np.hstack([m, (m @ t)[:, None]]) for m in linear for t in shifts]


def apart(maps: np.ndarray, order: np.ndarray, count: int, radius: float, near: float) -> list[np.ndarray]:
    """Return the first `count` of the maps (K, 3, 4), in `order`, that differ from one another.

    Two maps differ if they are apart by `near` times 15 degrees or `near` times a quarter of the radius (mm).
    """
    chosen: list[np.ndarray] = []
    for index in order:
        changes = [np.abs(maps[index] - other) for other in chosen]
        if all(np.linalg.norm(c[:, :3]) > near * 0.35 or np.linalg.norm(c[:, 3]) > near * radius / 4 for c in changes):
            chosen.append(maps[index])
        if len(chosen) == count:
            break
    return chosen
