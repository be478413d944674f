"""Records and sidecars: reading, writing, moving, and the way back to a file's sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medkit.errors import InputError, MedkitError
from medkit.pipe.records import (
    Record,
    absolute,
    find_kind,
    lineage,
    read_sidecar,
    record_from_json,
    record_from_line,
    record_of,
    sha256_of,
)
from medkit.specs import KINDS

BLOCK = {
    "task": "segment",
    "status": "ok",
    "outputs": {"labels": {"path": "/d/out/a_dseg.nii.gz", "sha256": "1"}},
    "inputs": {"image": {"path": "/d/in/a.nii.gz", "sha256": "2"}},
}
FULL = Record(
    Path("/d/out/a_dseg.nii.gz"),
    "labels",
    (Path("/d/in/a.nii.gz"),),
    Path("/d/in/a.nii.gz"),
    "Organs",
    ({"Name": "medkit", "Version": "0"},),
    BLOCK,
    extra={"Atlas": "x"},
)


def test_keys_of_the_contract_in_its_order() -> None:
    assert list(FULL.to_json()) == [
        *("path", "kind", "Sources", "SpatialReference", "Description", "GeneratedBy", "medkit", "Atlas")
    ]


def test_there_and_back() -> None:
    assert record_from_json(json.loads(FULL.line())) == FULL
    assert record_from_json(FULL.to_json(Path("/d/out")), Path("/d/out")) == FULL


def test_sidecar_holds_relative_paths_everywhere() -> None:
    text = json.dumps(FULL.to_json(Path("/d/out")))
    assert "/d/" not in text
    assert json.loads(text)["medkit"]["inputs"]["image"]["path"] == "../in/a.nii.gz"
    moved = record_from_json(json.loads(text), Path("/mnt/out"))
    assert moved.sources == (Path("/mnt/in/a.nii.gz"),)
    assert moved.medkit["outputs"]["labels"]["path"] == "/mnt/out/a_dseg.nii.gz"


def test_a_record_line_is_one_line() -> None:
    record = Record(Path("/d/new\nline \udcff é.nii.gz"), description="two\nlines")
    assert "\n" not in record.line()
    assert record.line().isascii()
    assert record_from_line(record.line()) == record


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ([], "object"),
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": 3}, "path"),
        ({"path": "x", "kind": "picture"}, "kind"),
        ({"path": "x", "kind": ["image"]}, "kind"),
        ({"path": "x", "Sources": "y"}, "Sources"),
        ({"path": "x", "Sources": [1]}, "Sources"),
        ({"path": "x", "inputs": ["y"]}, "inputs"),
        ({"path": "x", "inputs": {"a": None}}, "inputs"),
        ({"path": "x", "medkit": "y"}, "medkit"),
    ],
)
def test_wrong_types_are_named(data: object, key: str) -> None:
    with pytest.raises(MedkitError, match=key):
        record_from_json(data)


@pytest.mark.parametrize(
    "block",
    [
        {"outputs": {"a": {"path": 3}}},
        {"outputs": {"a": {}}},
        {"outputs": ["x"]},
        {"inputs": {"a": "b"}},
    ],
)
def test_odd_blocks_of_others_do_no_harm(block: dict[str, object], tmp_path: Path) -> None:
    line = json.dumps({"path": "/d/x.nii.gz", "medkit": block})
    with pytest.raises(MedkitError, match='"medkit" is not an object'):
        record_from_line(line)
    (tmp_path / "x.json").write_text(line)
    assert read_sidecar(tmp_path / "x.json") is None


def test_a_line_is_a_path_unless_it_begins_with_a_brace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert record_from_line("a b .nii.gz ").path == tmp_path / "a b .nii.gz "
    assert record_from_line("./{x").path == tmp_path / "{x"
    assert record_from_line(" {x").path == tmp_path / " {x"
    with pytest.raises(MedkitError, match=r"begins with a brace"):
        record_from_line("{x")


def test_absolute_keeps_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/usr")
    assert absolute("link/../x", tmp_path) == tmp_path / "x"
    assert absolute(tmp_path / "link" / "x") == tmp_path / "link" / "x"


def test_a_short_record_is_completed_from_the_sidecar(tmp_path: Path) -> None:
    path = write(tmp_path / "a_dseg.nii.gz", "labels", ["a.nii.gz"])
    short = record_from_line(json.dumps({"path": str(path), "inputs": {"mask": str(tmp_path / "m.nii")}, "mine": 1}))
    assert short.kind == "labels"
    assert short.sources == (tmp_path / "a.nii.gz",)
    assert short.inputs == {"mask": tmp_path / "m.nii"}
    assert short.extra == {"mine": 1}
    assert record_from_line(json.dumps({"path": str(path), "kind": "mask"})).kind == "mask"


def test_a_record_of_named_inputs_alone_begins_with_the_first(tmp_path: Path) -> None:
    record = record_from_line(json.dumps({"inputs": {"moving": "/d/m.nii", "moving_labels": "/d/l.nii"}}))
    assert record.path == Path("/d/m.nii")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"path": 1}', '{"EchoTime": 0.1}', "\x00\xff", "[" * 99999]
)
def test_torn_and_foreign_sidecars_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    assert read_sidecar(tmp_path / "x.json") is None
    assert record_of(tmp_path / "x_mask.nii.gz").kind == "mask"


def test_a_sidecar_describes_its_main_output_only(tmp_path: Path) -> None:
    write(tmp_path / "a_dseg.nii.gz", "labels", ["a.nii.gz"])
    assert record_of(tmp_path / "a_dseg.nii.gz").sources
    table = record_of(tmp_path / "a_dseg.tsv")
    assert (table.kind, table.sources) == ("table", ())


# ---- lineage


def write(path: Path, kind: str, sources: list[str]) -> Path:
    """A file with a sidecar."""
    path.write_text("x")
    record = Record(path, kind, tuple(path.parent / s for s in sources), medkit={"task": "t"})
    path.with_name(path.name.split(".")[0] + ".json").write_text(json.dumps(record.to_json(path.parent)))
    return path


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """a, b -> r (image); r, f -> s (labels); s -> c (table)."""
    write(tmp_path / "r.nii.gz", "image", ["a.nii.gz", "b.nii.gz"])
    write(tmp_path / "s.nii.gz", "labels", ["r.nii.gz", "f_mask.nii.gz"])
    write(tmp_path / "c.tsv", "table", ["s.nii.gz"])
    return tmp_path


def test_lineage_goes_depth_first_and_the_own_input_first(family: Path) -> None:
    names = [r.path.name for r in lineage(record_of(family / "c.tsv"))]
    assert names == ["c.tsv", "s.nii.gz", "r.nii.gz", "a.nii.gz", "b.nii.gz", "f_mask.nii.gz"]


@pytest.mark.parametrize(
    ("kinds", "found"),
    [(["image"], "r.nii.gz"), (["labels"], "s.nii.gz"), (["mask"], "f_mask.nii.gz"), (["labels", "table"], "c.tsv")],
)
def test_the_first_of_a_kind(family: Path, kinds: list[str], found: str) -> None:
    assert find_kind(record_of(family / "c.tsv"), kinds).path.name == found


def test_none_of_a_kind_names_what_came(family: Path) -> None:
    path = write(family / "a_dseg.nii.gz", "labels", ["m_mask.nii.gz"])
    with pytest.raises(InputError) as caught:
        find_kind(record_of(path), ["image"])
    assert str(caught.value) == "expected an image, got labels a_dseg.nii.gz and none of its sources is one"


@pytest.mark.parametrize("kinds", [[k] for k in KINDS])
def test_the_error_reads_well_for_every_kind(kinds: list[str]) -> None:
    other = "image" if kinds != ["image"] else "table"
    with pytest.raises(InputError, match=r"^expected (an image|a mask|a transform|a table|labels|points), got"):
        find_kind(Record(Path("/x/y"), other), kinds)


def test_circles_end(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", "labels", ["b.nii.gz"])
    write(tmp_path / "b.nii.gz", "labels", ["a.nii.gz"])
    assert len(list(lineage(record_of(tmp_path / "a.nii.gz")))) == 2


def test_digests_of_files_and_folders(blob: Callable[..., Path], tmp_path: Path) -> None:
    blob("d/1", "one"), blob("d/2", "two")
    one, two = (hashlib.sha256(s).hexdigest() for s in (b"one", b"two"))
    assert sha256_of(tmp_path / "d/1") == one
    assert sha256_of(tmp_path / "d") == hashlib.sha256("".join(sorted([one, two])).encode()).hexdigest()
    (tmp_path / "d/1").rename(tmp_path / "d/3")
    assert sha256_of(tmp_path / "d") == hashlib.sha256("".join(sorted([one, two])).encode()).hexdigest()


def test_no_number_that_json_does_not_know() -> None:
    line = Record(Path("/a.nii.gz"), medkit={"metrics": {"ncc": float("nan"), "n": float("inf")}}).line()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["medkit"]["metrics"] == {
        "ncc": None,
        "n": None,
    }
