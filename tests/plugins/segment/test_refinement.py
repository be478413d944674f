"""Labels refined by the intensities of the scan: volumes, bias fields, when it is left out, and the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from medkit_segment.refinement import Outcome as Refined
from medkit_segment.refinement import Refinement, refine
from nearest import write_bundle
from outcome import Outcome
from scipy import ndimage

from medkit.errors import BundleError
from medkit.images.phantom import make_image
from medkit.pipe.records import read_sidecar
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable, Prior
from medkit.synthesis.ranges import Ranges

pytestmark = pytest.mark.usefixtures("clean_path")

SIZE = 56
STATED: dict[str, Any] = {
    "tissues": {"white matter": [2], "cortex": [3], "ventricle": [4], "nuclei": [11, 50]},
    "weight": 1.0,
    "neighbours": 3.0,
    "confidence": 0.7,
    "contrast": 2.0,
    "voxels": 100,
    "field": 0.04,
}
VALUES = [0, 2, 3, 4, 11, 50]
T1 = {0: 0.05, 2: 0.8, 3: 0.55, 4: 0.15, 11: 0.65, 50: 0.65}
CONTRASTS = {
    "T1": T1,
    "T2": {label: 0.95 - mean if label else mean for label, mean in T1.items()},
    "flat": {label: 0.5 + 0.02 * mean if label else mean for label, mean in T1.items()},
}
STILL = Ranges(
    **dict.fromkeys(("rotation", "scaling", "shearing", "shift", "warp", "flip", "stripped", "cut"), 0.0),
    **dict.fromkeys(("thick", "coarse", "salt_and_pepper", "spoiled", "gamma", "bias"), 0.0),
    prior=1.0,
    texture=(1.0, 1.0),
    blur=(0.3, 0.3),
    noise=0.01,
)


def brain() -> np.ndarray:
    """Return labels (I, J, K) of a cortex around white matter with a ventricle and two nuclei."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 3, indexing="ij"))
    radius = np.sqrt((place**2).sum(0))
    out = np.zeros((SIZE,) * 3, np.int64)
    out[radius < 0.9] = 3
    out[radius < 0.65 + 0.08 * np.sin(9 * place[0]) * np.cos(7 * place[1])] = 2
    for label, side in ((11, -0.3), (50, 0.3)):
        out[np.sqrt((place[0] - side) ** 2 + place[1] ** 2 + place[2] ** 2) < 0.17] = label
    out[np.abs(place).max(0) < 0.13] = 4
    return out


def drawn(contrast: str, labels: np.ndarray | None = None, **more: float) -> tuple[np.ndarray, torch.Tensor]:
    """Return labels (I, J, K), and an image of them; without `labels` those of a brain."""
    labels = brain() if labels is None else labels
    priors = tuple(Prior(CONTRASTS[contrast][v], 0.0, 0.03, 0.0, n) for n, v in enumerate(VALUES))
    names = {value: str(value) for value in VALUES}
    table = LabelTable(tuple(VALUES), tuple(range(len(VALUES))), tuple(VALUES), names, priors)
    encoded = torch.from_numpy(table.encode(labels))[None, None]
    made = Synthesis(table, labels.shape, 1.0, replace(STILL, **more), (), ())(encoded, (1.0,) * 3, 5)
    return np.array(VALUES)[made.labels[0, 0].long()], made.image[0, 0]


def network(labels: np.ndarray) -> torch.Tensor:
    """Return logits (C, I, J, K) of a network that blurs the labels it believes in."""
    shares = np.stack([ndimage.gaussian_filter((labels == value).astype(np.float32), 1.2) for value in VALUES])
    return torch.from_numpy(np.log(shares + 1e-3)) * 2


def wrong(labels: np.ndarray) -> np.ndarray:
    """Return labels with white matter too small and the ventricle too large by one voxel on each side."""
    out = labels.copy()
    out[(labels == 2) & ndimage.binary_dilation(labels == 3)] = 3
    out[ndimage.binary_dilation(labels == 4)] = 4
    return out


def refined(
    labels: np.ndarray, image: torch.Tensor, sure: float = 0.9, **stated: Any
) -> tuple[np.ndarray, np.ndarray, Refined]:
    """Return the labels of a network that believes in `labels`, before and after, and what came of it."""
    logits = network(labels)
    channels = logits.argmax(0).to(torch.uint8).numpy()
    how = Refinement.of({"refinement": {**STATED, **stated}}, VALUES)
    assert how is not None
    done = refine(logits, channels, image, sure, how)
    after = done.evidence.relabelled(logits, channels) if done.evidence else channels
    return np.array(VALUES)[channels], np.array(VALUES)[after], done


def volume_errors(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the relative error of each structure's volume."""
    return np.array([(found == value).sum() / (known == value).sum() - 1 for value in VALUES[1:]])


@pytest.mark.parametrize("contrast", ["T1", "T2"])
@pytest.mark.parametrize("more", [{}, {"bias": 0.3}, {"noise": 0.04}], ids=["plain", "bias field", "noise"])
def test_volumes_become_those_of_the_image(contrast: str, more: dict[str, float]) -> None:
    known, image = drawn(contrast, **more)
    before, after, done = refined(wrong(known), image)
    assert done.facts["done"]
    assert np.abs(volume_errors(before, known)).max() > 0.3
    assert np.abs(volume_errors(after, known)).max() < 0.03
    assert (after == known).mean() > 0.99


@pytest.mark.parametrize("contrast", ["T1", "T2"])
def test_volumes_that_are_right_stay(contrast: str) -> None:
    known, image = drawn(contrast)
    _, after, _ = refined(known, image)
    assert np.abs(volume_errors(after, known)).max() < 0.03


def test_a_bias_field_is_measured() -> None:
    known, image = drawn("T1")
    field = np.linspace(0.7, 1.3, SIZE)[:, None, None].astype(np.float32)
    image = image * torch.from_numpy(field)
    inside = np.broadcast_to(field, known.shape)[known > 0]
    _, after, done = refined(wrong(known), image)
    assert done.facts["field"] == pytest.approx(inside.std() / inside.mean(), abs=0.02)
    _, without, _ = refined(wrong(known), image, field=9)
    assert (after == known).mean() > (without == known).mean()


def test_weights_of_zero_leave_the_network_alone() -> None:
    known, image = drawn("T1")
    before, after, _ = refined(wrong(known), image, weight=0.0, neighbours=0.0)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("contrast", "stated", "reason"),
    [
        ("flat", {}, "contrast of "),
        ("T1", {"sure": 0.69}, "the network is unsure: 0.69, less than 0.7"),
        ("T1", {"contrast": 99}, "less than 99"),
        ("T1", {"voxels": 10**6}, "fewer than 1000000"),
    ],
)
def test_what_does_not_help_is_left_out(contrast: str, stated: dict[str, Any], reason: str) -> None:
    known, image = drawn(contrast)
    _, _, done = refined(known, image, **stated)
    assert done.evidence is None
    assert not done.facts["done"]
    assert reason in done.facts["reason"]


def test_a_tissue_that_is_not_there() -> None:
    labels = brain()
    labels[labels == 4] = 2
    known, image = drawn("T1", labels)
    _, after, done = refined(known, image)
    assert done.facts["done"]
    assert (after == known).mean() > 0.99


def test_an_image_on_another_grid() -> None:
    known, image = drawn("T1")
    _, _, done = refined(known, image[:-1])
    assert "another grid" in done.facts["reason"]


@pytest.mark.parametrize(
    "stated",
    [
        {"tissues": {"one": [2, 3], "two": [4, 11]}},
        {"tissues": {"one": [2, 3, 4], "two": [4, 11, 50]}},
        {"tissues": {"one": VALUES[1:]}},
        {"weight": None},
        {"tissues": [2, 3]},
    ],
)
def test_statements_that_are_wrong(stated: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="refinement: expected"):
        Refinement.of({"refinement": {**STATED, **stated}}, VALUES)
    assert Refinement.of({}, VALUES) is None


# ---- the command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose network tells label 9 from label 4 at an intensity of 600, and is less sure than others."""
    stated = {**STATED, "tissues": {"one": [4], "other": [9]}, "confidence": 0.5}
    root = write_bundle(tmp_path / "bundle", refinement=stated)
    weights = torch.load(root / "models" / "model.pt")
    torch.save({name: value / 8 for name, value in weights.items()}, root / "models" / "model.pt")
    return root


def write_scan(path: Path) -> np.ndarray:
    """Write a scan whose label 9 has intensities around 620, and return its true labels."""
    known = np.zeros((24, 22, 20), np.int64)
    known[4:12, 4:18, 4:16], known[12:20, 4:18, 4:16] = 4, 9
    means = np.select([known == 4, known == 9], [451, 620], 60)
    values = np.random.default_rng(1).normal(means, 30).clip(1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    return known


def test_the_command_refines(medkit: Callable[..., Outcome], bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.nii.gz"
    known = write_scan(source)
    words = ["run", "segment", "--bundle", bundle, "--trust", "--precision", "float32", "--no-clean", source]
    right, facts = {}, {}
    for option in ("--refine", "--no-refine"):
        done = medkit(*words, option, "--outputs", "labels,probabilities", "-o", tmp_path / option)
        assert done.code == 0, done.err
        labels = np.asanyarray(nibabel.load(done.paths[0]).dataobj)
        right[option] = (labels == known)[known > 0].mean()
        probabilities = np.asanyarray(nibabel.load(tmp_path / option / "a_probseg.nii.gz").dataobj)
        sure = np.sort(probabilities, -1)[..., -1] - np.sort(probabilities, -1)[..., -2] > 0.1
        np.testing.assert_array_equal(np.array([0, 4, 9])[probabilities.argmax(-1)][sure], labels[sure])
        record = read_sidecar(tmp_path / option / "a_dseg.json")
        assert record is not None
        facts[option] = (record.medkit.get("refinement"), record.medkit["arguments"]["refine"])
    assert right["--refine"] > right["--no-refine"] + 0.05
    assert facts["--refine"][0]["done"]
    assert facts["--refine"][1]
    assert facts["--no-refine"] == (None, False)


def test_other_methods_refine_nothing(medkit: Callable[..., Outcome], tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (16, 16, 16), (4.0, 4.0, 4.0))
    done = medkit("run", "segment", "--method", "threshold", "--no-refine", source)
    assert done.code == 2
    assert "--no-refine" in done.err
