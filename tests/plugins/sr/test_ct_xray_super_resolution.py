"""The bundle ct_xray_super_resolution: its configs under MONAI's own tools, `medkit train` and `medkit run sr`."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import bundled
import nibabel
import numpy as np
import pytest
import torch
from medkit_sr.sequence import moved, shift, with_neighbours
from monai.bundle import ConfigParser
from outcome import Outcome
from PIL import Image as Pillow
from places import BUNDLES
from scipy import ndimage

from medkit.bundles.bundle import WEIGHTS
from medkit.images.image import read_image
from medkit.testing import run_medkit

ROOT = BUNDLES / "ct_xray_super_resolution"
SMALL = {"width": 8, "blocks": 1}

built = functools.partial(bundled.built, ROOT)


def weighted(root: Path, *, scale: float = 0.0) -> Path:
    """The bundle with a small network's weights: what it adds times `scale`."""
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("models"))
    path = root / "configs" / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SMALL))
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(path))
    network = parser.get_parsed_content("network_def")
    for parameter in network[3].parameters():
        parameter.data.mul_(scale)
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


def picture(shape: tuple[int, int] = (61, 48)) -> np.ndarray:
    x, y = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return np.where(x**2 + y**2 < 0.8, 120 + 60 * np.sin(9 * x) * np.sin(8 * y), 10)


def voxels(path: str | Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def saved(path: Path, values: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), path)
    return path


@pytest.fixture
def sr(toy: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> Outcome:
        done = toy("run", "sr", *arguments, "--trust", "--json", env={"TOY_PLUGINS": "medkit_sr"})
        assert done.code == 0, done.err
        return done

    return run


# ---- configs


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree_and_the_weights_are_small() -> None:
    one, other = built("train"), built("inference")
    for name in ("network_def", "body", "trunk", "last", "width", "blocks"):
        assert one.get(name) == other.get(name), name
    network = other.get_parsed_content("network_def")
    assert 2 * sum(p.numel() for p in network.parameters()) < 4_900_000


@pytest.mark.slow
def test_it_trains(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    for n in range(2):
        saved(folder / f"ct_{n}.nii.gz", np.repeat(picture()[..., None], 5, 2) * (10 - n) - 1000)
    items = [{"source": f"ct_{n}.nii.gz", "kind": "slices", "unit": "HU"} for n in range(2)]
    (folder / "list.json").write_text(json.dumps({"training": items[:1], "validation": items[1:]}))
    changes = SMALL | {"epoch_length": 2, "shape": [24, 24], "batch": 2}
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    done = run_medkit(["train", "sr", "--bundle", str(ROOT), "--trust", "--data", str(folder / "list.json"), "--steps",
                       "4", "-o", str(tmp_path / "out"), "--precision", "float32", *sets])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "out" / WEIGHTS, weights_only=True)


@pytest.mark.slow
def test_inference_under_monai(tmp_path: Path) -> None:
    """A network that adds nothing leaves the interpolated image, on the finer grid."""
    root = weighted(tmp_path / "bundle")
    (tmp_path / "in").mkdir()
    source = saved(tmp_path / "in" / "a.nii.gz", picture())
    given = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "device": "cpu", "times": 2}
    bundled.monai_bundle(root, "run", "--config_file", "configs/inference.json", *bundled.as_arguments(given))
    (result,) = (tmp_path / "out").iterdir()
    assert voxels(result).squeeze().shape == (122, 96)
    assert voxels(result).mean() == pytest.approx(voxels(source).mean(), rel=0.01)


# ---- the plugin


@pytest.mark.parametrize("scale", [2, 4])
def test_planes_go_through_the_network(sr: Callable[..., Outcome], tmp_path: Path, scale: int) -> None:
    Pillow.fromarray(np.rint(picture()).astype(np.uint8)).save(tmp_path / "x.png", dpi=(254, 254))
    made = {}
    for name, strength in (("nothing", 0.0), ("much", 3.0)):
        root = weighted(tmp_path / name, scale=strength)
        (record,) = sr(tmp_path / "x.png", "--scale", scale, "--bundle", root, "-o", tmp_path / f"o{name}").records
        assert record["medkit"]["superresolution"]["method"] == "network"
        made[name] = read_image(Path(record["path"])).data[0, ..., 0].astype(float)
        assert made[name].shape == (48 * scale, 61 * scale)
    assert np.abs(made["much"] - made["nothing"]).mean() > 0.3


@pytest.mark.parametrize("over_time", [False, True])
def test_a_sequence_in_any_file(sr: Callable[..., Outcome], tmp_path: Path, over_time: bool) -> None:
    """Planes of a volume, and frames over time, come back as they were, twice as fine in the plane."""
    frames = np.stack([picture() + 2 * n for n in range(4)], -1)
    source = saved(tmp_path / "a.nii.gz", frames[:, :, None] if over_time else frames)
    (record,) = sr(source, "--scale", 2, "--sequence", "--bundle", weighted(tmp_path / "bundle")).records
    made = voxels(record["path"])
    assert made.shape == ((122, 96, 1, 4) if over_time else (122, 96, 4))
    np.testing.assert_allclose(nibabel.load(record["path"]).header.get_zooms()[:3], (0.5, 0.5, 1.0), atol=1e-6)
    means = made.reshape(122, 96, 4).mean((0, 1))
    np.testing.assert_allclose(means, frames.mean((0, 1)), atol=1)


@pytest.mark.parametrize("pixels", [(0.0, 0.0), (1.3, -0.6), (-7.25, 4.5)])
def test_neighbours_lie_as_the_frame_does(pixels: tuple[float, float]) -> None:
    frame = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(60, 72)), 2)).float()
    frame = frame / frame.std()
    away = torch.tensor(pixels)
    first, second, third = (moved(frame, n * away) for n in (0, -1, -2))
    torch.testing.assert_close(shift(first, second), away, atol=0.05, rtol=0)
    for image in with_neighbours([first, second, third]):
        for beside in image[1:]:
            assert float((beside - image[0])[16:-16, 16:-16].abs().max()) < 0.1


def test_frames_that_have_nothing_in_common_stay() -> None:
    one, other = torch.zeros(32, 32), torch.zeros(32, 32)
    one[4:8, 4:8], other[:, 20:] = 1, -1
    assert shift(one, other).tolist() == [0, 0]


def test_one_plane_is_no_sequence(toy: Callable[..., Outcome], tmp_path: Path) -> None:
    source = saved(tmp_path / "a.nii.gz", picture()[..., None])
    volumes = saved(tmp_path / "v.nii.gz", np.arange(8 * 8 * 4 * 3).reshape(8, 8, 4, 3))
    for path, words in ((source, "got one"), (volumes, "got volumes (8 x 8 x 4 x 3)")):
        done = toy("run", "sr", path, "--scale", 2, "--sequence", env={"TOY_PLUGINS": "medkit_sr"})
        assert (done.code, words in done.err) == (3, True), done.err
