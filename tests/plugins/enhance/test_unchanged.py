"""An image that `medkit run enhance` left as it is: the progress line and the picture say so, without a look."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medkit_enhance.enhancer import summary_of

from medkit.figures import mosaic

Run = Callable[..., "Outcome"]  # noqa: F821


def test_nothing_to_be_done_is_said(medkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    i, j, k = np.mgrid[-1:1:40j, -1:1:44j, -1:1:30j]
    smooth = np.where(i**2 + j**2 + k**2 < 0.7, 500 + 200 * np.sin(4 * i) * np.sin(3 * j), 0).astype(np.int16)
    nibabel.Nifti1Image(smooth, np.diag([4.0, 4, 4, 1])).to_filename(tmp_path / "a.nii.gz")
    titles = []
    drawn = mosaic.comparison_mosaic
    monkeypatch.setattr(
        "medkit.figures.comparison_mosaic", lambda *images, title: titles.append(title) or drawn(*images, title=title)
    )
    done = medkit("run", "enhance", tmp_path / "a.nii.gz", "--method", "nlm", "--qc", tmp_path / "qc", "--json")
    assert done.code == 0, done.err
    assert "  unchanged (denoise: noise of " in done.err
    assert titles
    assert "unchanged (denoise: noise of" in titles[0]
    assert json.loads(done.out)["medkit"]["look"] is False
    assert "need a look" not in done.err


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"what": "denoise", "method": "nlm", "done": True}, {"what": "bias", "method": "n4", "done": True}],
         "denoise by nlm, bias by n4"),
        ([{"what": "denoise", "method": "nlm", "done": False, "reason": "noise of 0.1 % of the range is left alone"}],
         "unchanged (denoise: noise of 0.1 % of the range is left alone)"),
        ([], "unchanged (no step suits it)"),
    ],
)  # fmt: skip
def test_steps_in_words(steps: list[dict[str, object]], words: str) -> None:
    assert summary_of(steps) == words
