"""Names of cases in tables of predicted classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkit.evaluation.classes.predictions import read_predictions
from medkit.pipe.cells import cell_of


@pytest.mark.parametrize("name", ["a b.png", "a\tb.png", "a\nb.png", "a\\tb.png", "a\u2028b.png"])
def test_odd_names_of_medkits_own_table_come_back(tmp_path: Path, name: str) -> None:
    table = tmp_path / "t.tsv"
    table.write_text(f"image\tsha256\tprobability_x\n{cell_of(name)}\tabc\t0.5\n")
    assert [prediction.case for prediction in read_predictions(table)] == [tmp_path / name]


def test_a_backslash_in_a_table_of_another_program_stays(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("image\tprobability_x\na\\tb.png\t0.5\n")
    assert [prediction.case for prediction in read_predictions(table)] == [tmp_path / "a\\tb.png"]
