"""The picture of a table's row is not that of the image that the row is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medkit.figures.mosaic import write_png
from medkit.pipe.records import Record
from medkit.review.cases import ReviewCase
from medkit.review.pictures import pictures_of_qc, png_files
from medkit.run.pictures import OWNER, owner_digest


def test_each_has_its_own(tmp_path: Path) -> None:
    image, table = tmp_path / "a_registered.nii.gz", tmp_path / "classes.tsv"
    for name, row_of in (("a_registered.png", ""), ("a_registered_classify.png", "classify")):
        texts = {OWNER: owner_digest(image, tmp_path, row_of)}
        write_png(np.zeros((4, 4, 3), np.uint8), tmp_path / name, texts)
    cases = [
        ReviewCase(Record(image, "image"), image, tmp_path / "a.nii.gz", "a", "register"),
        ReviewCase(Record(table, "table"), image, tmp_path / "a.nii.gz", "a", "classify"),
    ]
    found = pictures_of_qc(cases, png_files(tmp_path))
    assert [found[case.key].name for case in cases] == ["a_registered.png", "a_registered_classify.png"]
