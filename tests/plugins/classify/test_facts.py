"""Tables with a row for each case, texts of cases, and what a bundle keeps of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medkit_classify.context import Context
from medkit_classify.fact_tables import Sources, read_table
from medkit_classify.facts import FAR, Facts, Feature, Given, described, given_of, learnt, read, words_of

from medkit.errors import BundleError, InputError, UsageError
from medkit.pipe.records import Record


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---- tables


@pytest.mark.parametrize("key", ["image", "path", "Case", "participant_id", "whatever"])
@pytest.mark.parametrize("name", ["a.nii.gz", "a", "scans/a.nii.gz", "{folder}/scans/a.nii.gz"])
def test_a_row_is_found_by_a_path_a_file_name_or_a_stem(tmp_path: Path, key: str, name: str) -> None:
    named = name.format(folder=tmp_path)
    table = read_table(write(tmp_path / "t.csv", f"{key},age", "b.nii.gz,5", f"{named},61.5"))
    assert table.features(tmp_path / "scans" / "a.nii.gz") == {"age": 61.5}
    with pytest.raises(InputError, match=r"no row for c\.nii\.gz"):
        table.features(tmp_path / "c.nii.gz")


def test_a_row_of_bids_is_of_a_subject_or_a_session(tmp_path: Path) -> None:
    image = tmp_path / "sub-02" / "ses-b" / "sub-02_ses-b_T1w.nii.gz"
    subjects = write(tmp_path / "participants.tsv", "participant_id\tage\tsex", "sub-01\t30\tF", "sub-02\t40\tM")
    assert read_table(subjects).features(image) == {"age": 40.0}, "letters are no numbers"
    sessions = write(tmp_path / "s.tsv", "participant_id\tsession_id\tage", "sub-02\tses-a\t40", "sub-02\tses-b\t41")
    assert read_table(sessions).features(image) == {"age": 41.0}


def test_what_is_missing_and_what_is_no_number(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "case,age,crp,ward", "a,n/a,1e1,A", "b,,NaN,7", "c,3"))
    assert table.numeric == ("age", "crp")
    assert table.features(Path("a.png")) == {"age": None, "crp": 10.0}
    assert table.features(Path("b.png")) == {"age": None, "crp": None}
    assert table.features(Path("c.png")) == {"age": 3.0, "crp": None}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["case,age", "a,1", "a,2"], "two rows for a"),
        (["case,age"], "got 0 rows"),
        (["case", "a"], "expected a column that names cases, other columns, and rows"),
        ([], "got 0 rows with the columns none"),
    ],
)
def test_what_is_no_table(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_table(write(tmp_path / "t.csv", *lines))
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_table(tmp_path / "none.csv")


def test_a_changed_table_is_read_anew(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "case,age", "a,1")
    assert read_table(table) is read_table(table)
    write(table, "case,age", "a,2")
    os.utime(table, ns=(1, 1))
    assert read_table(table).features(Path("a.png")) == {"age": 2.0}


# ---- texts


def test_the_text_of_a_case(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    one = write(tmp_path / "one.txt", "for all")
    write(tmp_path / "reports" / "a.txt", "of a")
    table = write(tmp_path / "t.csv", "case,age,told,report", "a,1,in a column,in the report")
    assert Sources.of(None, None).text(image) is None
    assert Sources.of(None, one).text(image) == "for all\n"
    assert Sources.of(None, tmp_path / "reports").text(image) == "of a\n"
    assert Sources.of(table, "told").text(image) == "in a column"
    assert Sources.of(None, table).text(image) == "in the report"
    with pytest.raises(UsageError, match="no such file or folder"):
        Sources.of(None, "told")
    with pytest.raises(InputError, match="no column age_of_all"):
        Sources.of(table, "age_of_all").text(image)
    with pytest.raises(InputError, match=r"b\.txt: the text of b\.png cannot be read"):
        Sources.of(None, tmp_path / "reports").text(tmp_path / "b.png")


def test_words() -> None:
    assert words_of("Kein Erguß; größer_als 2,5 cm!") == ["kein", "erguß", "größer", "als", "2", "5", "cm"]
    assert words_of(None) == words_of("") == []


# ---- what is learnt


def items(*ages: float | None) -> list[dict[str, Any]]:
    return [{"image": f"{n}.png", "features": {"age": age, "same": 4}, "text": "no effusion"}
            for n, age in enumerate(ages)]  # fmt: skip


def test_means_spreads_and_words_are_those_of_the_training() -> None:
    given = items(40, None, 60)
    given[0]["text"] = "An effusion, an unusual one."
    facts = learnt(given)
    assert facts.features == (Feature("age", 50.0, 10.0), Feature("same", 4.0, 1.0))
    assert facts.words == ("effusion", "no"), "the frequent ones; what is said once is not learnt"
    assert facts.length == 5
    assert facts.row(Given({"age": 65.0, "same": None}, "no doubt")).tolist() == [1.5, 0, 0, 1, 3, 1, 0, 0, 0]
    assert facts.row(Given({"age": 1e9})).tolist()[:4] == [FAR, 0, 0, 1]
    assert learnt(given, longest=3).length == 3
    assert learnt(given, most_words=1).words == ("effusion",)


@pytest.mark.parametrize("kind", ["features", "text"])
def test_one_kind_alone(kind: str) -> None:
    facts = learnt([{"image": "a.png", kind: one[kind]} for one in items(40, 60)])
    row = facts.row(given_of(items(60)[0]))
    assert row.tolist() == ([1, 0, 0, 0, 0] if kind == "features" else [0, 3, 2])
    assert len(row) == facts.size


def test_features_may_be_picked(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "case,age,answer", "0,40,1", "1,60,0")
    known = [{"image": f"{n}.png"} for n in range(2)]
    assert [f.name for f in learnt(described(known, str(table))).features] == ["age", "answer"]
    assert [f.name for f in learnt(described(known, str(table), columns=["age"])).features] == ["age"]
    assert [f.name for f in learnt(described(known, str(table), columns="answer,age")).features] == ["answer", "age"]
    with pytest.raises(InputError, match=r"0\.png: no feature crp; there is age and answer"):
        described(known, str(table), columns=["age", "crp"])


def test_facts_on_disk(tmp_path: Path) -> None:
    facts = Facts((Feature("Größe", 1.5, 0.25),), ("erguß", "kein"), 7)
    facts.write(tmp_path / "models" / "context.json")
    assert read(tmp_path / "models" / "context.json") == facts
    with pytest.raises(BundleError, match=r"none\.json: expected what the bundle reads"):
        read(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"features": [{"name": "a"}], "words": [], "length": 0}')
    with pytest.raises(BundleError, match="expected what the bundle reads"):
        read(tmp_path / "torn.json")


def test_facts_that_are_no_facts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png: age: expected a number or nothing, got 'old'"):
        given_of({"image": "a.png", "features": {"age": "old"}})
    with pytest.raises(InputError, match="expected a finite number"):
        given_of({"image": "a.png", "features": {"age": float("inf")}})
    with pytest.raises(InputError, match=r"none\.txt: cannot be read as a text"):
        given_of({"image": "a.png", "text": str(tmp_path / "none.txt")})
    with pytest.raises(InputError, match="hold nothing besides their images"):
        learnt([{"image": "a.png"}])


def test_volumes_and_warnings_of_earlier_stages_are_features() -> None:
    block = {"metrics": {"volumes_mm3": {"hippocampus": 3000}}, "warnings": ["small"], "task": "segment"}
    record = Record(Path("/none/a_dseg.nii.gz"), "labels", medkit=block)
    assert Context.of_record(record).features() == {"volume_hippocampus": 3000.0, "warnings": 1.0}
    assert Context.of_record(Record(Path("/none/a.nii.gz"), "image")).features() == {}
    assert np.isfinite(learnt([{"features": Context.of_record(record).features()}]).row(Given())).all()
