"""Texts in the cells of tables."""

from __future__ import annotations

import pytest

from medkit.pipe.cells import cell_of, text_of


@pytest.mark.parametrize(
    "text", ["", "a b", "a\tb", "a\nb\r", "\\", "\\t", "\\\t", "\\\\n", "a\x85\u2028\x0cb", "\udcff"]
)
def test_every_text_comes_back(text: str) -> None:
    cell = cell_of(text)
    assert not set(cell) & set("\t\n\r")
    assert text_of(cell) == text


def test_ordinary_texts_stay_as_they_are() -> None:
    assert cell_of("sub-01/ü (1), 'x'.nii.gz") == "sub-01/ü (1), 'x'.nii.gz"
    assert text_of(r"C:\data") == r"C:\data"
