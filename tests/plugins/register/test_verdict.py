"""Registrations that end worse than they began: what is tried instead, and when a person should look."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from maps import off_mm
from medkit_register import verdict
from medkit_register.affine import UNFINISHED, AffineResult, AffineSettings, register_affine
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.verdict import doubts_about, doubts_about_scores, information, overlap, register_better

from medkit.errors import MedkitError
from medkit.transforms import AffineTransform

Run = Callable[..., "Outcome"]  # noqa: F821
SHAPE = (40, 44, 36)
GRID = np.diag([4.0, 4.0, 4.0, 1.0])


def head(shift: tuple[float, float, float] = (0, 0, 0), *, lesion: float | None = None) -> np.ndarray:
    """A made-up head (I, J, K) with texture, moved by `shift` mm; `lesion`: the value of a ball of 26 mm in it."""
    at = np.stack(np.meshgrid(*[4.0 * np.arange(n) for n in SHAPE], indexing="ij"), -1) - np.array(shift)
    x = (at - np.array([78, 86, 70])) / np.array([62, 78, 66])
    texture = 500 + 250 * np.sin(5 * x[..., 0] + 1) * np.sin(6 * x[..., 1]) * np.sin(4 * x[..., 2])
    out = np.where((x**2).sum(-1) < 1, texture, 0)
    if lesion is not None:
        out[((at - np.array([90, 100, 80])) ** 2).sum(-1) < 26**2] = lesion
    return out.astype(np.float32)


def pyramid(data: np.ndarray, affine: np.ndarray = GRID, mask: np.ndarray | None = None) -> Pyramid:
    """The head for the engine."""
    return Pyramid(ScanVolume(torch.from_numpy(data), affine, None if mask is None else torch.from_numpy(mask)))


def moved(shift: tuple[float, float, float]) -> np.ndarray:
    """(4, 4) that moves points by `shift` mm."""
    out = np.eye(4)
    out[:3, 3] = shift
    return out


SHIFT = (9.0, -7.0, 6.0)


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("brightness", [3_000.0, 20_000.0])
@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_very_bright_lesion_is_not_taken_for_the_head(side: str, brightness: float, kind: Any) -> None:
    """33 mm across in a brain of 1.3 l; Otsu's threshold alone would leave nothing but the lesion."""
    values = {"fixed": (head(), head(lesion=brightness)), "moving": (head(SHIFT), head(SHIFT, lesion=brightness))}
    fixed, moving = (pyramid(values[name][name == side]) for name in ("fixed", "moving"))
    found = register_affine(fixed, moving, AffineSettings(kind))
    assert off_mm(found.matrix, moved(SHIFT)) < 2  # half a voxel


def test_the_range_of_a_scan_without_one_stays() -> None:
    plain = pyramid(head())
    low, high = np.percentile(head(), [0.5, 99.5])
    assert (plain._low, plain._high) == pytest.approx((low, high), rel=0.02)


def test_a_scan_on_itself_is_not_doubtful() -> None:
    found = register_better(pyramid(head()), pyramid(head()), AffineSettings())
    assert found.warnings == ()
    assert found.start is None


def test_information_falls_with_distance_and_outside() -> None:
    fixed, moving = pyramid(head()), pyramid(head(SHIFT))
    right = information(fixed, moving, AffineTransform(moved(SHIFT)))
    some = information(fixed, moving, AffineTransform(np.eye(4)))
    assert right > 1.3 * some > 0.2
    assert information(fixed, moving, AffineTransform(moved((0, 0, 900)))) == pytest.approx(0, abs=1e-9)
    assert overlap(fixed, moving, np.eye(4)) == 1
    assert overlap(fixed, moving, moved((0, 0, 900))) == 0


def test_information_is_of_what_the_masks_keep() -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[10:30, 10:30, 10:30] = 1
    spoilt = np.where(mask > 0, head(), 999.0 * np.random.default_rng(0).random(SHAPE, np.float32))
    at = AffineTransform(np.eye(4))
    assert information(pyramid(head()), pyramid(spoilt, mask=mask), at) > 1.0
    assert information(pyramid(spoilt, mask=mask), pyramid(head()), at) > 1.0
    assert information(pyramid(head()), pyramid(spoilt), at) < 0.7


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], list[str]]:
    """Makes registrations from the starts of a set wrong; returns the list of starts that were tried."""

    def spoil(starts: set[str]) -> list[str]:
        tried: list[str] = []

        def engine(fixed: Pyramid, moving: Pyramid, settings: AffineSettings) -> AffineResult:
            name = settings.init if isinstance(settings.init, str) else "given"
            tried.append(name)
            found = register_affine(fixed, moving, settings)
            return replace(found, matrix=moved((40, 50, -30))) if name in starts else found

        monkeypatch.setattr(verdict, "register_affine", engine)
        return tried

    return spoil


def test_a_result_worse_than_the_start_is_repaired(wrong: Callable[[set[str]], list[str]]) -> None:
    tried = wrong({"auto", "header"})
    found = register_better(pyramid(head()), pyramid(head(SHIFT)), AffineSettings("rigid"))
    assert tried == ["auto", "header", "moments"]
    assert off_mm(found.matrix, moved(SHIFT)) < 1
    assert (found.start, found.warnings) == ("moments (rigid)", ())


def test_a_result_that_stays_worse_is_told(wrong: Callable[[set[str]], list[str]]) -> None:
    wrong({"auto", "header", "moments"})
    found = register_better(pyramid(head()), pyramid(head(SHIFT)), AffineSettings("rigid"))
    assert found.warnings[0].startswith("the scans match less than before")


@pytest.mark.parametrize("init", ["header", "given"])
def test_a_start_without_overlap_is_replaced_and_told(init: str) -> None:
    far = GRID.copy()
    far[:3, 3] = (900, 0, 0)
    start: Any = np.eye(4) if init == "given" else init
    found = register_better(pyramid(head()), pyramid(head(), far), AffineSettings("rigid", init=start))
    assert off_mm(found.matrix, moved((900, 0, 0))) < 1
    assert f"the start {init} (rigid) led nowhere; the result is that of moments (rigid)" in found.warnings


def test_no_overlap_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = AffineResult(moved((900, 0, 0)), "mi", "", ())
    monkeypatch.setattr(verdict, "register_affine", lambda *_: nowhere)
    with pytest.raises(MedkitError, match="do not overlap"):
        register_better(pyramid(head()), pyramid(head()), AffineSettings())


def test_scans_of_different_things_are_doubtful() -> None:
    noise = np.random.default_rng(1).normal(300, 100, SHAPE).astype(np.float32)
    found = register_better(pyramid(head()), pyramid(noise), AffineSettings("rigid"))
    assert any("little in common" in text or "less than before" in text for text in found.warnings)


def test_other_sizes_of_unlike_contrasts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for metric, scale, told in (("mi", 0.75, True), ("mi", 0.85, False), ("lncc", 0.75, False), ("mi", 1.3, True)):
        ended = AffineResult(np.diag([scale, scale, scale, 1.0]), metric, "", ())
        monkeypatch.setattr(verdict, "register_affine", lambda *_, ended=ended: ended)
        found = register_better(pyramid(head()), pyramid(head()), AffineSettings("affine"))
        text = f"the moving image changes its volume by a factor of {scale**-3:.2g}"
        assert any(doubt.startswith(text) for doubt in found.warnings) == told


@pytest.mark.parametrize(("degrees", "told"), [(40, False), (180, True)])
def test_scans_that_are_turned_by_their_headers_are_told(
    monkeypatch: pytest.MonkeyPatch, degrees: float, told: bool
) -> None:
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    middle = np.array([78.0, 86, 70])
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    scan = AffineTransform(turn).matrix @ GRID  # the head, laid down otherwise
    ended = AffineResult(turn, "lncc", "", ())
    monkeypatch.setattr(verdict, "register_affine", lambda *_: ended)
    results = [
        register_better(pyramid(head()), pyramid(head(), scan), AffineSettings(type="rigid", init=init))
        for init in ("auto", turn)
    ]
    texts = [text for text in results[0].warnings if "if one header is wrong" in text]
    assert (
        texts
        == [
            "by their headers the scans are turned by 180 degrees: if one header is wrong, left and right may be "
            "exchanged"
        ]
        * told
    )
    assert results[1].warnings == ()  # whoever gives a start knows of the turn


def test_steps_that_ran_out_do_no_harm_to_a_better_result(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{UNFINISHED} after 40 steps"
    for matrix, told in ((moved(SHIFT), False), (np.eye(4), True)):
        ended = AffineResult(matrix, "mi", "", (), (text,))
        monkeypatch.setattr(verdict, "register_affine", lambda *_, ended=ended: ended)
        found = register_better(pyramid(head()), pyramid(head(SHIFT)), AffineSettings("rigid"))
        assert (text in found.warnings) == told


def test_a_warp_that_makes_the_match_worse_is_told() -> None:
    fixed, moving = pyramid(head()), pyramid(head(SHIFT))
    affine = AffineResult(moved(SHIFT), "mi", "", (), information=1.0)
    assert not list(doubts_about(fixed, moving, AffineTransform(moved(SHIFT)), affine))
    assert "warp" in next(doubts_about(fixed, moving, AffineTransform(moved((40, 0, 0))), affine))


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({"dice": 0.7, "dice_before": 0.6, "tre_mm": 2.0, "tre_before_mm": 9.0}, []),
        ({"dice": 0.99, "dice_before": 1.0, "tre_mm": 0.4, "tre_before_mm": 0.0}, []),
        ({"dice": None, "dice_before": None}, []),
        ({"dice": 0.4, "dice_before": 0.6}, ["the labels overlap less than before: Dice 0.40, 0.60 before"]),
        (
            {"tre_mm": 76.0, "tre_before_mm": 13.0},
            ["the landmarks are farther apart than before: 76.0 mm, 13.0 mm before"],
        ),
        ({}, []),
    ],
)
def test_scores_that_fell(scores: dict[str, Any], told: list[str]) -> None:
    assert list(doubts_about_scores(scores)) == told


def test_the_command_tells_a_doubtful_registration(toy: Run, tmp_path: Path) -> None:
    far = GRID.copy()
    far[:3, 3] = (900, 0, 0)
    noise = np.random.default_rng(1).normal(300, 100, SHAPE)
    files = {"fixed": (head(), GRID), "near": (head(SHIFT), GRID), "far": (head(), far), "noise": (noise, GRID)}
    for name, (data, affine) in files.items():
        nibabel.Nifti1Image(data.astype(np.int16), affine).to_filename(tmp_path / f"{name}.nii.gz")
    moving = [tmp_path / f"{name}.nii.gz" for name in ("near", "far", "noise", "fixed")]
    done = toy(
        *("run", "register", "--fixed", tmp_path / "fixed.nii.gz", "--type", "rigid", "--init", "header", *moving),
        *("-o", tmp_path / "o", "--strict", "--json"),
        env={"TOY_PLUGINS": "medkit_register"},
    )
    assert done.code == 1
    assert [record["medkit"]["look"] for record in done.records] == [False, True, True, False]
    assert done.err.splitlines()[-1] == "medkit: register: 2 of 4 need a look: far, noise"
    moved_far = nibabel.load(tmp_path / "o/far_registered.nii.gz").get_fdata()
    assert np.corrcoef(moved_far.ravel(), head().ravel())[0, 1] > 0.99
    block = json.loads((tmp_path / "o/far_registered.json").read_text())["medkit"]
    assert block["registration"]["start"] == "moments (rigid)"
