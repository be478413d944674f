"""Sets of small images unpacked into files and a datalist."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from medkit.errors import InputError
from medkit.training.class_data import unpack
from medkit.training.data import find_items


def parts(shape: tuple[int, ...], seed: int = 0, **counts: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for name, count in counts.items():
        out[f"{name}_images"] = rng.integers(0, 255, (count, *shape)).astype(np.uint8)
        out[f"{name}_labels"] = rng.integers(0, 2, (count, 1))
    return out


def test_pictures_of_several_sources(tmp_path: Path) -> None:
    first = parts((6, 5), train=4, val=2, test=3)
    second = parts((6, 5), seed=1, train=3, val=2, test=2)
    second["train_images"][0] = first["train_images"][1]  # comes twice
    second["train_images"][1] = first["test_images"][0]  # is a test image
    for name, content in (("a", first), ("b", second)):
        np.savez(tmp_path / f"{name}.npz", **content)  # type: ignore[arg-type]
    out = tmp_path / "out"
    assert unpack([tmp_path / "a.npz", tmp_path / "b.npz"], out) == {"training": 5, "validation": 2, "test": 3}
    found = find_items(out / "dataset.json", ["image", "label"])
    assert [item["label"] for item in found.training[:4]] == first["train_labels"].ravel().tolist()
    np.testing.assert_array_equal(np.asarray(Picture.open(found.validation[1]["image"])), first["val_images"][1])


def test_volumes_become_masks(tmp_path: Path) -> None:
    content = parts((4, 5, 6), train=2, val=1, test=1)
    content["train_images"] = np.where(content["train_images"] > 99, 255, 0).astype(np.uint8)
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    unpack([tmp_path / "a.npz"], tmp_path)
    mask = np.asarray(nibabel.load(tmp_path / "train" / "00001_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, content["train_images"][1] > 0)


def test_patches_in_archives(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        with zipfile.ZipFile(tmp_path / f"{part}_patches.zip", "w") as archive:
            for number in range(2):
                stream = io.BytesIO()
                value = 40 * number + len(part)
                Picture.fromarray(np.full((4, 4), value, np.uint8)).save(stream, "PNG")
                archive.writestr(f"{part}/{number}\u2028 \x0c.png", stream.getvalue())
        lines = [f"{part}/{number}\u2028 \x0c.png {number}" for number in range(3)]  # the third is not in the archive
        (tmp_path / f"{part}datalabels.txt").write_text("\n".join(lines) + "\n")
    assert unpack([tmp_path], tmp_path / "out") == {"training": 2, "validation": 2, "test": 2}
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [item["label"] for item in listed["test"]] == [0, 1]


@pytest.mark.parametrize("name", ["folder", "file.npz"])
def test_what_is_no_set(tmp_path: Path, name: str) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        np.savez(tmp_path / name, other=np.zeros(3))
    with pytest.raises(InputError, match="expected"):
        unpack([tmp_path / name], tmp_path / "out")
