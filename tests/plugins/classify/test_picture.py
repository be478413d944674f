"""The picture of `medkit run classify --qc`, and how sure a finding is in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from medkit_classify.candidates import Candidate
from medkit_classify.finding import Finding
from medkit_classify.picture import Saliency, draw, heading_of, marked
from medkit_classify.report import sure_text, times_text

from medkit.errors import InputError
from medkit.figures.bars import BarGroup, bars_under
from medkit.figures.layout import WARNING
from medkit.figures.mosaic import write_png
from medkit.figures.overlays import label_colours
from medkit.images.image import Image
from medkit.space import Grid

SURE = Finding("", "pneumonia", {"normal": 0.25, "pneumonia": 0.75}, 0.9)
UNSURE = Finding("", "normal", {"normal": 0.6, "pneumonia": 0.4}, 0.6, 2.5, "unlike the training images")


def image(*shape: int) -> Image:
    data = np.random.default_rng(0).random((1, *shape), np.float32)
    return Image(data, Grid(shape, np.diag([-1.0, -1.0, 2.0, 1.0])))


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour)).all(axis=-1).any())


@pytest.mark.parametrize("shape", [(40, 50, 1), (30, 40, 20)])
def test_the_image_with_bars_under_it(shape: tuple[int, ...]) -> None:
    case: Any = SimpleNamespace(image=lambda: image(*shape))
    sure, unsure = draw(case, [SURE], [], [], "x"), draw(case, [UNSURE], [], [], "x")
    assert sure.dtype == np.uint8
    assert sure.shape == unsure.shape
    assert sure.shape[2] == 3
    bright = (sure == np.array((70, 160, 230))).all(axis=-1)
    width = bright.sum(axis=1).max()
    rest_of_the_other = ((sure == 70).all(axis=-1)).sum(axis=1).max()
    assert width == pytest.approx(rest_of_the_other, rel=0.02)  # 0.75, and 1 - 0.25
    assert not has(unsure, (70, 160, 230))  # the class that was not given is no brighter than the others
    bars = unsure[-80:]
    assert has(bars, WARNING)
    assert not has(sure[-80:], WARNING)


def test_a_coloured_picture_is_shown_as_it_is(tmp_path: Path) -> None:
    def refuse() -> Image:
        raise InputError("x.png: expected grey, got colours")

    write_png(np.full((300, 600, 3), (200, 30, 40), np.uint8), tmp_path / "x.png")
    case: Any = SimpleNamespace(image=refuse, path=tmp_path / "x.png")
    picture = draw(case, [UNSURE], [], [], "x")
    assert (picture == np.array((200, 30, 40))).all(axis=-1).sum() == 480 * 240
    case.path = tmp_path / "y.png"
    assert draw(case, [UNSURE], [], [], "x").shape[0] < 120  # nothing but bars


def test_saliency_of_a_picture_that_the_bundle_reads_lies_on_it() -> None:
    """The bundle's grid of a picture is another one than medkit's; voxels are the same."""
    scan = image(40, 40, 1)
    heat = np.zeros((1, 40, 40, 1), np.float32)
    heat[0, :10, :10] = 1
    case: Any = SimpleNamespace(image=lambda: scan)
    maps = [Saliency("", "pneumonia", Image(heat, Grid((40, 40, 1), np.eye(4))))]
    picture = draw(case, [SURE], [], maps, "x").astype(int)
    warm = picture[..., 0] - picture[..., 2] > 60
    middle = picture.shape[1] // 2
    assert warm[60:140, middle + 10 : middle + 90].mean() > 0.9  # the corner of the second of the two planes
    assert warm[60:140, 10:90].mean() < 0.02
    assert warm[200:400, middle + 150 :].mean() < 0.02


def test_candidates_have_their_patches_with_the_map() -> None:
    scan, patch = image(60, 60, 12), image(20, 20, 1)
    places = [Candidate("a", np.array([-10.0, -12, 8])), Candidate("b", np.array([-30.0, -30, 8]))]
    case: Any = SimpleNamespace(image=lambda: scan)
    heat = patch.with_data(np.ones_like(patch.data))
    maps = [Saliency(place.name, "nodule", heat, patch) for place in places]
    without, picture = draw(case, [SURE], places, [], "x"), draw(case, [SURE], places, maps, "x")
    assert picture.shape[0] > without.shape[0] + 300
    for number in (1, 2):
        assert has(without, tuple(label_colours(np.array(number)).tolist()))


def test_headings() -> None:
    assert heading_of(SURE) == "pneumonia, 90.0 % sure, calibrated on validation images"
    assert heading_of(UNSURE) == "no class: unlike the training images"
    assert heading_of(Finding("A", "nodule", {"nodule": 1.0})) == "A: nodule, how sure is not known"


def test_candidates_are_marked_where_they_are() -> None:
    marks = marked(
        image(30, 30, 12), [Candidate("a", np.array([-10.0, -12, 8])), Candidate("b", np.array([99.0, 0, 0]))]
    )
    assert set(np.unique(marks.data)) == {0, 1}
    assert marks.data[0, 10, 12, 4] == 1
    assert marks.data[0, 20, 12, 4] == 0


def test_long_lists_are_cut() -> None:
    many = {f"class {n}": 1 / 20 for n in range(20)}
    one = bars_under(None, "t", [BarGroup("h", many)])
    assert one.shape[0] < 20 * 13
    assert bars_under(None, "t", [BarGroup("h", many)] * 20).shape[0] < 7 * 20 * 13


@pytest.mark.parametrize(("confidence", "words"), [(0.98, "98.0 %"), (0.9996, "over 99.9 %"), (1.0, "over 99.9 %")])
def test_rounding_makes_nothing_certain(confidence: float, words: str) -> None:
    assert sure_text(Finding("", "x", {}, confidence)).startswith(words)


@pytest.mark.parametrize(
    ("distance", "words"), [(1.003, "slightly more than"), (1.04, "1.04 times"), (0.999, "almost")]
)
def test_a_distance_is_never_rounded_across_the_limit(distance: float, words: str) -> None:
    assert times_text(distance) == words
