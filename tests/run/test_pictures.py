"""The pictures of `--qc`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import names

from medkit.images.image import Image
from medkit.options import RunOptions
from medkit.pipe.records import record_of
from medkit.run.outputs import Targets
from medkit.space import Grid

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def test_pictures(toy: Run, scan: Make, tmp_path: Path) -> None:
    pytest.importorskip("medkit.figures.mosaic")
    for task in ("double", "halves"):
        done = toy("run", task, scan("x.nii.gz"), "--qc", tmp_path / "qc", "-o", tmp_path / "o")
        assert done.code == 0
        assert "no picture" not in done.err
    pictures = sorted((tmp_path / "qc").rglob("*"))
    assert [p.name for p in pictures] == ["x_double.png", "x_dseg.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_pictures_of_equal_names_are_kept_apart(toy: Run, scan: Make, tmp_path: Path) -> None:
    inputs = [scan(f"in/{n}/T1.nii.gz", seed=n) for n in (1, 2)]
    more = ["-o", tmp_path / "o", "--keep-tree", tmp_path / "in", "--qc", tmp_path / "qc"]
    assert toy("run", "double", *inputs, *more).code == 0
    assert len(list((tmp_path / "qc").rglob("*.png"))) == 2


def test_pictures_of_equal_names_without_an_output_folder(
    toy: Run, scan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        scan(f"{name}/a.nii.gz")
    assert toy("run", "double", "x/a.nii.gz", "y/a.nii.gz", "--qc", "qc").code == 0
    assert names(tmp_path / "qc") == ["x/a_double.png", "y/a_double.png"]


def test_a_picture_of_another_result_is_never_replaced(toy: Run, scan: Make, tmp_path: Path) -> None:
    for n in (1, 2):
        scan(f"in{n}/a.nii.gz", seed=n)
    runs = [("in1", "o1"), ("in2", "o2"), ("in1", "o1")]
    seen = []
    for source, out in runs:
        done = toy("run", "double", tmp_path / source / "a.nii.gz", "-o", tmp_path / out, "--qc", tmp_path / "qc",
                   "--overwrite")  # fmt: skip
        assert done.code == 0
        seen.append({path.name: path.read_bytes() for path in (tmp_path / "qc").iterdir()})
    assert list(seen[0]) == ["a_double.png"]
    assert set(seen[1]) == {"a_double.png", "a_double_2.png"}
    assert seen[1]["a_double.png"] == seen[0]["a_double.png"] != seen[1]["a_double_2.png"]
    assert seen[2] == seen[1]


def test_pictures_of_a_pipe_lie_next_to_each_other(
    toy: Run, scan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not a stage names a folder for its results; folders below the first one's stay."""
    monkeypatch.chdir(tmp_path)
    for n in (1, 2):
        scan(f"in/{n}/a.nii.gz", seed=n)
    first = ("in/1/a.nii.gz", "in/2/a.nii.gz", "--keep-tree", "in", "-o", "reg")
    assert toy("run", "double", *first, "--qc", "qc").code == 0
    made = [f"reg/{n}/a_double.nii.gz" for n in (1, 2)]
    assert toy("run", "halves", *made, "--qc", "qc").code == 0
    labels = [f"reg/{n}/a_double_dseg.nii.gz" for n in (1, 2)]
    assert toy("run", "double", *labels, "--keep-tree", "reg", "-o", "third/place", "--qc", "qc").code == 0
    stages = ("a_double", "a_double_dseg", "a_double_dseg_double")
    assert names(tmp_path / "qc") == [f"{n}/{stage}.png" for n in (1, 2) for stage in stages]


def test_a_pipe_without_folders_has_its_pictures_in_one_place(
    toy: Run, scan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scan("in/a.nii.gz")
    assert toy("run", "double", "in/a.nii.gz", "--qc", "qc").code == 0
    assert toy("run", "halves", "in/a_double.nii.gz", "-o", "labels", "--qc", "qc").code == 0
    assert names(tmp_path / "qc") == ["in/a_double.png", "in/a_double_dseg.png"]


def test_pictures_of_rows_are_no_pictures_of_their_images(toy: Run, scan: Make, tmp_path: Path) -> None:
    """A table's rows are named after images that may be results with pictures of their own."""
    from medkit.figures.mosaic import text_in_png
    from medkit.run.pictures import OWNER, Picture, owner_digest
    from medkit.run.task import CasePlan, Task

    assert toy("run", "double", scan("a.nii.gz"), "-o", tmp_path / "o", "--qc", tmp_path / "qc").code == 0
    assert text_in_png(tmp_path / "qc/a_double.png", OWNER) == owner_digest(
        tmp_path / "o/a_double.nii.gz", tmp_path / "qc"
    )
    plan = CasePlan(record_of(tmp_path / "o/a_double.nii.gz"), {}, Targets({}, tmp_path / "t.tsv"))
    row = Picture.of(plan, Task("classify", ()), RunOptions(qc=tmp_path / "qc"))
    assert row.path == tmp_path / "qc/a_double_classify.png"
    assert row.owner == owner_digest(tmp_path / "o/a_double.nii.gz", tmp_path / "qc", "classify")
    assert row.owner != owner_digest(tmp_path / "o/a_double.nii.gz", tmp_path / "qc")


def test_reasons_to_look_stand_in_the_picture(toy: Run, scan: Make, tmp_path: Path) -> None:
    from PIL import Image as Pillow

    from medkit.figures.layout import WARNING

    sizes = {}
    for name in ("doubtful", "plain"):
        scan(f"{name}.nii.gz")
        assert (
            toy("run", "double", tmp_path / f"{name}.nii.gz", "-o", tmp_path / "o", "--qc", tmp_path / "qc").code == 0
        )
        with Pillow.open(tmp_path / f"qc/{name}_double.png") as picture:
            sizes[name] = np.asarray(picture)
    assert len(sizes["doubtful"]) == len(sizes["plain"]) + 8 + 2 * 20
    yellow = (sizes["doubtful"][:48] == np.array(WARNING)).all(axis=-1)
    assert yellow[:26].any()
    assert yellow[26:].any()


def _draw(folder: Path, number: int) -> None:
    from medkit.run.pictures import Picture, _write

    picture = np.full((300, 300, 3), number, np.uint8)
    for main in (folder / "same.nii.gz", folder / f"{number}" / "same.nii.gz"):
        _write(picture, Picture(folder / "qc" / "same.png", main))


def test_several_processes_write_into_one_folder(tmp_path: Path) -> None:
    """Each result keeps its own picture, one that all make has one, and no part of a file is left."""
    import multiprocessing

    from medkit.figures.mosaic import text_in_png
    from medkit.run.pictures import OWNER

    (tmp_path / "qc").mkdir()
    gone = multiprocessing.get_context("fork").Process(target=int)
    gone.start()
    gone.join()
    (tmp_path / "qc" / f".same.png.{socket.gethostname()}.{gone.pid}.part").write_bytes(b"torn")
    others = [multiprocessing.get_context("fork").Process(target=_draw, args=(tmp_path, n)) for n in range(1, 7)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [0] * 6
    found = list((tmp_path / "qc").iterdir())
    assert sorted(path.name for path in found) == sorted(["same.png", *(f"same_{n}.png" for n in range(2, 8))])
    assert len({text_in_png(path, OWNER) for path in found}) == 7


def test_pictures_of_others_stay(toy: Run, scan: Make, tmp_path: Path) -> None:
    (tmp_path / "qc").mkdir()
    (tmp_path / "qc/a_double.png").write_bytes(b"mine")
    done = toy("run", "double", scan("a.nii.gz"), "-o", tmp_path / "o", "--qc", tmp_path / "qc")
    assert (tmp_path / "qc/a_double.png").read_bytes() == b"mine"
    assert "a_double.png: shows another result; the picture of a_double.nii.gz is a_double_2.png" in done.err
    assert names(tmp_path / "qc") == ["a_double.png", "a_double_2.png"]


def test_a_picture_of_what_was_measured_of_a_transform(toy: Run, scan: Make, tmp_path: Path) -> None:
    from medkit.transforms.files import write_transform
    from medkit.transforms.transform import AffineTransform

    write_transform(AffineTransform(np.diag([1.1, 1, 1, 1])), tmp_path / "x.tfm")
    options = ("--qc", tmp_path / "qc", "-o", tmp_path / "o")
    done = toy("transform", "jacobian", tmp_path / "x.tfm", "--reference", scan("a.nii.gz"), *options)
    assert done.code == 0
    assert "no picture" not in done.err
    assert names(tmp_path / "qc") == ["x_jacobian.png"]


def test_a_task_without_pictures_says_so_once(toy: Run, blob: Make, tmp_path: Path) -> None:
    from medkit.run import pictures

    pictures._say_once.cache_clear()
    inputs = [blob(f"{name}.nii.gz") for name in "ab"]
    done = toy("run", "pair", *inputs, "--qc", tmp_path / "qc")
    assert done.code == 0
    assert done.err.count("--qc: pair draws no picture") == 1
    assert not (tmp_path / "qc").exists()


def drawn(kind: str, made: object, *, reference: Path | None = None, **stated: object) -> np.ndarray | None:
    """Return the picture of a result of a task that draws none itself; its input is a bright ball at the right."""
    from types import SimpleNamespace

    from medkit.run.outputs import Output
    from medkit.run.pictures import _default_figure
    from medkit.run.task import Result, Task

    case: Any = SimpleNamespace(image=lambda: ball(-20), path=Path("x.nii.gz"))
    task = Task("any", (Output("result", kind, "made"),))
    writable: Any = made
    facts: Any = stated
    return _default_figure(task, case, Result({"result": writable}, spatial_reference=reference, **facts))


def ball(shift: float) -> Image:
    """A ball `shift` mm to the right of the middle."""
    grid = Grid((60, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1) * 2.0 - (59, 39, 39)
    return Image((np.linalg.norm(index - (shift, 0, 0), axis=-1) < 25).astype(np.float32)[None] * 100, grid)


def test_images_on_the_grid_of_their_input_are_compared_with_it() -> None:
    """The other ball is blue where the input's was, and orange where it is itself."""
    from medkit.figures.scales import ColourScale

    picture = drawn("image", ball(20))
    assert picture is not None
    orange, blue = ColourScale.diverging(100.0).colours(np.array([100.0, -100.0]))
    found = [np.nonzero((picture[:-24] == colour).all(axis=-1))[1] for colour in (orange, blue)]
    assert min(map(len, found)) > 3000
    assert found[0].mean() < found[1].mean() - 50  # the right is on the left
    assert found[0].min() > 2 * picture.shape[1] / 3 - 30


def test_images_lie_on_the_image_whose_grid_they_have(tmp_path: Path) -> None:
    """As those of `transform apply`: not on the input, which is elsewhere."""
    from medkit.figures.overlays import LEVEL_COLOURS

    ball(20).write(tmp_path / "reference.nii.gz")
    picture = drawn("image", ball(20), reference=tmp_path / "reference.nii.gz")
    assert picture is not None
    outline = (picture[66:300] == np.array(LEVEL_COLOURS[0])).all(axis=-1)
    bright = (picture[66:300] > 200).all(axis=-1)
    rows, columns = np.nonzero(bright)
    across = np.nonzero(outline)[1]
    first = across[across < picture.shape[1] // 5]
    assert abs((first.min() + first.max()) / 2 - np.median(columns[columns < picture.shape[1] // 5])) < 8
    assert rows.size


def test_labels_have_the_names_that_the_sidecar_states() -> None:
    labels = ball(0).with_data((ball(0).data > 0).astype(np.uint8) * 4)
    named, plain = (drawn("labels", labels, details=one) for one in ({"labels": {"4": "a long name of a ball"}}, {}))
    assert named is not None
    assert plain is not None
    assert named.shape == plain.shape
    assert (named[-27:] != plain[-27:]).any()
    assert np.array_equal(named[:-27], plain[:-27])


def test_probabilities_stand_as_bars_under_the_input() -> None:
    from medkit.run.task import Text

    picture = drawn("table", Text("x"), metrics={"probabilities": {"yes": 0.75, "no": 0.25}})
    assert picture is not None
    chosen, other = ((picture == np.array(c)).all(axis=-1).sum(axis=1).max() for c in ((70, 160, 230), (90, 110, 140)))
    assert chosen / other == pytest.approx(3, rel=0.02)
    assert drawn("table", Text("x")) is None
