"""`medkit run bundle` on bundles built like the zoo's."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zoo
from outcome import Outcome

from medkit.bundles.config import silence_monai
from medkit.images.phantom import make_image

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
SHAPE, SPACING = (20, 18, 14), (3.0, 3.5, 5.0)


@pytest.fixture
def run(toy: Run) -> Run:
    def run(bundle: Path, *arguments: object, trust: bool = True, **settings: Any) -> Outcome:
        words = ["--trust"] if trust else []
        return toy("run", "bundle", "--bundle", bundle, *words, "--precision", "float32", *arguments, **settings)

    return run


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "a.nii.gz", **settings: Any) -> Path:
        shape, spacing = settings.pop("shape", SHAPE), settings.pop("spacing", SPACING)
        return make_image(tmp_path / name, shape, spacing, **settings)

    return write


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def same_grid(path: Path, source: Path) -> None:
    made, given = nibabel.load(path), nibabel.load(source)
    assert made.shape == given.shape
    np.testing.assert_array_equal(made.affine, given.affine)
    for code in ("qform_code", "sform_code"):
        assert made.header[code] == given.header[code]


SEGMENTING = {
    "spleen_ct_segmentation": 2,
    "wholeBody_ct_segmentation": 5,
    "swin_unetr_btcv_segmentation": 14,
    "prostate_mri_anatomy": 3,
    "ventricular_short_axis_3label": 4,
    "segmentation_template": 4,
}


def test_a_volume_of_wrong_units_is_refused(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    done = run(zoo.write(tmp_path / "b", "spleen_ct_segmentation"), scan(spacing=(0.003, 0.0035, 0.005)))
    assert done.code == 3
    assert "a.nii.gz: the longest side measures 0.07 mm (20 x 18 x 14 voxels of 0.003 x 0.0035 x 0.005 mm)" in done.err


@pytest.mark.parametrize("name", SEGMENTING)
def test_bundles_that_segment(run: Run, scan: Callable[..., Path], tmp_path: Path, name: str) -> None:
    source = scan(shape=(20, 16, 14), spacing=(4.0, 4.0, 5.0), orientation="LIA")
    done = run(zoo.write(tmp_path / name, name), source, "--json")
    assert done.code == 0, done.err
    (record,) = done.records
    made = Path(record["path"])
    assert made.name == "a_dseg.nii.gz"
    assert record["kind"] == "labels"
    assert record["medkit"]["bundle"]["name"] == name
    assert record["medkit"]["labels"]["1"] == "thing 1"
    same_grid(made, source)
    labels = voxels(made)
    assert labels.dtype == np.uint8
    assert 1 < len(np.unique(labels)) <= SEGMENTING[name]
    volumes = record["medkit"]["metrics"]["volumes_mm3"]
    assert volumes["thing 1"] == pytest.approx(np.count_nonzero(labels == 1) * 80.0)


@pytest.mark.parametrize(
    "name", ["spleen_ct_segmentation", "wholeBody_ct_segmentation", "ventricular_short_axis_3label"]
)
@pytest.mark.parametrize("orientation", ["RAS", "LPI", "ASR"])
@pytest.mark.filterwarnings("ignore")  # theirs
def test_labels_are_those_of_monai(
    run: Run, scan: Callable[..., Path], tmp_path: Path, name: str, orientation: str
) -> None:
    from monai.bundle import ConfigWorkflow

    silence_monai()
    source = scan(shape=(20, 16, 14), orientation=orientation, oblique_degrees=10.0)
    root = zoo.write(tmp_path / name, name)
    run_id = "evaluating" if name.startswith("ventr") else "run"
    theirs = ConfigWorkflow(
        str(root / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        run_id=run_id,
        bundle_root=str(root),
        output_dir=str(tmp_path / "monai"),
        **{"dataset::data": [{"image": str(source)}]},
    )
    theirs.initialize()
    theirs.run()
    (expected,) = (tmp_path / "monai").rglob("*.nii.gz")
    done = run(root, source)
    assert done.code == 0, done.err
    np.testing.assert_array_equal(voxels(done.paths[0]), voxels(expected))


THRESHOLD = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PIR", "SLA", "IPL"])
def test_what_is_not_inverted_comes_back_to_its_place(
    run: Run, scan: Callable[..., Path], tmp_path: Path, orientation: str
) -> None:
    import torch

    source = scan(orientation=orientation)
    root = zoo.write(tmp_path / "b", "segmentation_template", network_def=THRESHOLD)
    # the second channel is larger where the scaled image is above 0.5
    state = {"weight": torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1), "bias": torch.tensor([0.5, 0.0])}
    torch.save(state, root / "models" / "model.pt")
    done = run(root, source)
    assert done.code == 0, done.err
    image = nibabel.load(source).get_fdata()
    expected = (image - image.min()) / (image.max() - image.min()) > 0.5
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(voxels(done.paths[0]), expected)


def test_four_images_of_a_case(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "brats", "brats_mri_segmentation")
    paths = {
        name: scan(f"{name}.nii.gz", shape=(16, 16, 16), seed=n) for n, name in enumerate(("t1c", "t1", "t2", "flair"))
    }
    record = {"path": str(paths["t1c"]), "inputs": {n: str(p) for n, p in paths.items() if n != "t1c"}}
    done = run(root, "--json", input=json.dumps(record) + "\n")
    assert done.code == 0, done.err
    labels = voxels(Path(done.records[0]["path"]))
    assert set(np.unique(labels)) <= {0, 1, 2, 4}
    assert len(np.unique(labels)) > 1
    assert set(done.records[0]["medkit"]["inputs"]) == {"image", "t1", "t2", "flair"}
    assert "labels" not in done.records[0]["medkit"]  # what 1, 2 and 4 mean is not what the channels are called

    together = np.stack([voxels(p) for p in paths.values()], axis=-1)
    frames = tmp_path / "frames.nii.gz"
    nibabel.save(nibabel.Nifti1Image(together, nibabel.load(paths["t1c"]).affine), frames)
    done = run(root, frames)
    assert done.code == 0, done.err
    np.testing.assert_array_equal(voxels(done.paths[0]), labels)

    record["inputs"].pop("t2")
    done = run(root, "-o", tmp_path / "o", input=json.dumps(record) + "\n")
    assert (done.code, done.out) == (3, "")
    assert "no t2: the bundle takes t1c, t1, t2, flair" in done.err
    done = run(root, paths["t1"], "-o", tmp_path / "o")
    assert "expected 4 channels (t1c, t1, t2, flair), got" in done.err
    record["inputs"]["t2"] = str(scan("other.nii.gz", shape=(16, 16, 18)))
    done = run(root, "-o", tmp_path / "o", input=json.dumps(record) + "\n")
    assert "expected the grid of t1c.nii.gz" in done.err


def test_images_under_keys_of_their_own(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "kidneys", "renalStructures_CECT_segmentation")
    artery, vein, excret = (scan(f"{n}.nii.gz", shape=(16, 16, 16), seed=s) for s, n in enumerate("ave"))
    record = {"path": str(artery), "inputs": {"vein": str(vein), "excret": str(excret)}}
    done = run(root, input=json.dumps(record) + "\n")
    assert done.code == 0, done.err
    same_grid(done.paths[0], artery)
    done = run(root, artery, "-o", tmp_path / "o")
    assert "no vein, excret: the bundle takes artery, vein, excret" in done.err


@pytest.mark.parametrize("name", ["breast_density_classification", "classification_template"])
def test_bundles_that_classify(run: Run, scan: Callable[..., Path], tmp_path: Path, name: str) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    source = tmp_path / "p.png"
    colours = name.startswith("breast")
    Image.fromarray(pixels if colours else pixels[..., 0]).save(source)
    done = run(zoo.write(tmp_path / name, name), source, "--json")
    assert done.code == 0, done.err
    (record,) = done.records
    assert Path(record["path"]).name == "p_class.tsv"
    header, *rows = [line.split("\t") for line in Path(record["path"]).read_text().splitlines()]
    assert header == ["class", "probability"]
    assert [row[0] for row in rows] == [f"thing {n}" for n in range(4)]
    probabilities = [float(row[1]) for row in rows]
    assert all(0 < p < 1 for p in probabilities)
    assert colours or sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert record["medkit"]["metrics"]["class"] == rows[int(np.argmax(probabilities))][0]


def test_a_volume_of_one_slice_is_a_plane(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    source = scan(shape=(40, 50, 1))
    done = run(zoo.write(tmp_path / "c", "classification_template"), source)
    assert done.code == 0, done.err


def test_two_images_registered(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    paths = []
    for name in ("moving", "fixed"):
        paths.append(tmp_path / f"{name}.nii.gz")
        data = rng.uniform(size=(16, 16, 1)).astype(np.float32)
        data[0, 0], data[1, 1] = 0, 1
        nibabel.save(nibabel.Nifti1Image(data, np.diag([-2.0, 3, 1, 1])), paths[-1])
    record = {"path": str(paths[0]), "inputs": {"fixed": str(paths[1])}}
    root = zoo.write(tmp_path / "reg", "mednist_reg")
    for _ in range(2):  # nothing moves at random
        done = run(root, "--overwrite", "--json", input=json.dumps(record) + "\n")
        assert done.code == 0, done.err
        made = Path(done.records[0]["path"])
        assert made.name == "moving_pred.nii.gz"
        np.testing.assert_allclose(voxels(made), (voxels(paths[0]) + voxels(paths[1])) / 2, atol=1e-6)


def picture(path: Path, colours: bool = False, shape: tuple[int, ...] = (16, 16), seed: int = 0) -> Path:
    from PIL import Image

    values = np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)
    Image.fromarray(values if colours else values[..., 0]).save(path)
    return path


def test_two_pictures_registered(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    moving, fixed = (picture(tmp_path / f"{n}.png", seed=n) for n in range(2))
    root = zoo.write(tmp_path / "reg", "mednist_reg")
    record = {"path": str(moving), "inputs": {"fixed": str(fixed)}}
    done = run(root, input=json.dumps(record) + "\n")
    assert done.code == 0, done.err
    scaled = [
        (p - p.min()) / (p.max() - p.min()) for p in (np.asarray(Image.open(p), float).T for p in (moving, fixed))
    ]
    np.testing.assert_allclose(voxels(done.paths[0]), sum(scaled) / 2, atol=1e-6)

    done = run(root, moving, "-o", tmp_path / "o")
    assert (done.code, done.out) == (3, "")
    assert "expected 2 channels (moving, fixed), got 1" in done.err
    record["inputs"]["fixed"] = str(picture(tmp_path / "wide.png", shape=(16, 20)))
    done = run(root, "-o", tmp_path / "o", input=json.dumps(record) + "\n")
    assert "wide.png: expected the grid of 0.png" in done.err


def test_a_label_that_the_network_is_given(run: Run, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", colours=True)
    record = {"path": str(source), "inputs": {"label": str(picture(tmp_path / "b.png", seed=1))}}
    root = zoo.write(tmp_path / "nuclei", "pathology_nuclei_classification")
    done = run(root, input=json.dumps(record) + "\n")
    assert done.code == 0, done.err
    done = run(root, source, "-o", tmp_path / "o")
    assert (done.code, done.out) == (3, "")
    assert "a.png: no label: the bundle takes image, label; a record names them" in done.err


def test_files_of_arrays_and_devices_of_the_config(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    root = zoo.write(tmp_path / "searched", "pancreas_ct_dints_segmentation")
    found = root / "models" / "search.pt"
    torch.save({"window": np.array([16, 16, 16])}, found, _use_new_zipfile_serialization=False)
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):  # of NumPy 1 and 2
        found.write_bytes(re.sub(rb"numpy\._?core\.multiarray", module, found.read_bytes()))
        assert module in found.read_bytes()
        done = run(root, scan(), "--device", "cpu", "--overwrite")
        assert done.code == 0, done.err
    torch.save({"window": Path("x")}, found)
    done = run(root, scan("b.nii.gz"), "--device", "cpu")
    assert done.code == 1
    assert "a file to load holds more than weights" in done.err


def test_a_package_that_is_missing(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    key = "$__import__('no_such_package') and 'image'"
    done = run(zoo.write(tmp_path / "b", "spleen_ct_segmentation", image_key=key), scan())
    assert done.code == 1
    assert "inference.json: needs the Python package no_such_package, which is not installed\n" in done.err


def test_image_to_image(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    source = scan(orientation="PSR")
    done = run(zoo.write(tmp_path / "e", "enhancer"), source, "--json")
    assert done.code == 0, done.err
    assert done.records[0]["kind"] == "image"
    same_grid(Path(done.records[0]["path"]), source)
    assert voxels(Path(done.records[0]["path"])).dtype == np.float32


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("brats_mri_generative_diffusion", "makes images from noise: it takes no image, and medkit would need a task"),
        ("pathology_nuclick_annotation", "needs a user who clicks (AddClickSignals): medkit has only images"),
        ("pathology_tumor_detection", "its preprocessing loads no image"),
    ],
)
def test_bundles_that_cannot_run_say_why(
    run: Run, scan: Callable[..., Path], tmp_path: Path, name: str, reason: str
) -> None:
    done = run(zoo.write(tmp_path / name, name, weights=False), scan())  # before they are looked for
    assert done.code == 1
    assert reason in done.err


def test_files_of_four_axes_are_refused(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    """As those of the zoo's valve_landmarks, whose frames are a third axis."""
    steps = [
        {"_target_": "LoadImage", "image_only": True},
        {"_target_": "Transpose", "indices": [2, 0, 1, 3]},
    ]
    root = zoo.write(tmp_path / "b", "enhancer", preprocessing={"_target_": "Compose", "transforms": steps})
    done = run(root, scan())
    assert done.code == 1
    assert "takes files of four axes (Transpose), such as planes over time: medkit hands it single images" in done.err


def test_a_bundle_of_torchscript_alone(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    source = scan()
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    expected = voxels(run(root, source, "-o", tmp_path / "one").paths[0])
    from monai.networks.nets import UNet

    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=[2, 4], strides=[2])
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    torch.jit.script(network.eval()).save(root / "models" / "model.ts")
    (root / "models" / "model.pt").unlink()
    done = run(root, source, "-o", tmp_path / "two")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(voxels(done.paths[0]), expected)


def test_missing_weights_are_exit_4(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation", weights=False)
    done = run(root, scan())
    assert done.code == 4
    assert f"no weights at {root}/models/model.pt" in done.err


def test_nothing_runs_without_trust(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    root = zoo.write(
        tmp_path / "b", "spleen_ct_segmentation", image_key=f"$__import__('pathlib').Path('{mark}').touch() or 'image'"
    )
    done = run(root, scan(), trust=False)
    assert done.code == 2
    assert "--trust" in done.err
    assert not mark.exists()
    run(root, "--dry-run", scan("b.nii.gz"))
    assert not mark.exists()
    run(root, scan("c.nii.gz"))
    assert mark.exists()


def test_weights_with_code_in_them_are_refused(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    torch.save({"model": Path("x")}, root / "models" / "model.pt")
    done = run(root, scan())
    assert done.code == 1
    assert "more than weights" in done.err


def test_nothing_is_downloaded(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    url = "$__import__('urllib.request').request.urlopen('http://127.0.0.1:9/') and 'image'"
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation", image_key=url)
    done = run(root, scan())
    assert done.code == 1
    assert "downloads nothing" in done.err


def test_values_of_the_config_can_be_set(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "wholeBody_ct_segmentation")
    source = scan()
    done = run(root, source, "--set", "modelname=elsewhere.pt")
    assert done.code == 4
    assert "models/elsewhere.pt" in done.err
    assert run(root, source, "--set", "nonsense=1").code == 2


def test_results_of_other_weights_are_outdated(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    source = scan()
    assert run(root, source).code == 0
    assert run(root, source, "--skip-existing", "--json").records[0]["medkit"]["skipped"]
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    torch.save({k: v + 1 for k, v in state.items()}, root / "models" / "model.pt")
    assert not run(root, source, "--skip-existing", "--json").records[0]["medkit"]["skipped"]


def test_a_bad_case_among_good_ones(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    good = [scan(f"{n}.nii.gz", seed=n) for n in range(3)]
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    done = run(root, good[0], bad, *good[1:], "-o", tmp_path / "o")
    assert done.code == 1
    assert [p.name for p in done.paths] == [f"{n}_dseg.nii.gz" for n in range(3)]
    alone = run(root, good[2], "-o", tmp_path / "p").paths[0]
    assert alone.read_bytes() == done.paths[2].read_bytes()
    assert not [p for p in (tmp_path / "o").iterdir() if p.name.startswith(".")]


# ---- from a zip


def test_a_zip_is_run_as_it_is(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    source = scan()
    root = zoo.write(tmp_path / "b" / "spleen", "spleen_ct_segmentation")
    archive = shutil.make_archive(str(tmp_path / "spleen"), "zip", root.parent)
    refused = run(Path(archive), source, trust=False)
    assert refused.code == 2
    assert f"{archive}: its configs run code" in refused.err
    made = [run(b, source, "-o", tmp_path / o) for b, o in ((Path(archive), "z"), (root, "f"))]
    assert [m.code for m in made] == [0, 0], made[0].err
    assert (voxels(Path(made[0].paths[0])) == voxels(Path(made[1].paths[0]))).all()


@pytest.mark.parametrize("trust", [False, True])
def test_a_zip_that_climbs_out_is_refused(run: Run, scan: Callable[..., Path], tmp_path: Path, trust: bool) -> None:
    """Whatever the user trusts, nothing of it is written."""
    root = zoo.write(tmp_path / "spleen", "spleen_ct_segmentation")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(path, f"spleen/{path.relative_to(root)}")
        archive.writestr("spleen/../../escaped.py", "raise SystemExit(9)")
    done = run(tmp_path / "b.zip", scan(), trust=trust)
    assert done.code != 0
    assert "escaped.py" in done.err
    assert not list(tmp_path.rglob("escaped.py"))


@pytest.mark.parametrize(
    "change",
    [
        {"channel_def": ["background", "liver"]},
        {"channel_def": None, "label_def": {"0": "background", "1": "liver"}},
        {"channel_def": {"background": 0, "liver": 1}},
        {"channel_def": ["background", "liver"], "format": "Segmentation"},
        {"channel_def": ["background", "liver"], "format": "one-hot"},
    ],
)
def test_names_and_formats_as_authors_write_them(
    run: Run, scan: Callable[..., Path], tmp_path: Path, change: Any
) -> None:
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"]["outputs"]["pred"] |= change
    metadata["network_data_format"]["inputs"]["image"]["channel_def"] = ["image"]
    path.write_text(json.dumps(metadata))
    (record,) = run(root, scan(), "--json").records
    assert (record["kind"], record["medkit"]["labels"]) == ("labels", {"1": "liver"})


@pytest.mark.filterwarnings("ignore")  # theirs
def test_labels_are_not_blended_on_their_way_back(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    """Labels 0 and 2 side by side, on coarser voxels; the bundle interpolates them linearly, and 1 is in none."""
    import torch

    source = scan(shape=(20, 18, 14), spacing=(3.0, 3.0, 3.0))
    coarser = {"_target_": "Spacingd", "keys": "image", "pixdim": [5.0, 5.0, 5.0]}
    root = zoo.write(tmp_path / "b", "prostate_mri_anatomy", network_def={**THRESHOLD, "out_channels": 3})
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["preprocessing"]["transforms"].append(coarser)
    config["postprocessing"]["transforms"].pop(1)
    path.write_text(json.dumps(config))
    state = {"weight": torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1, 1), "bias": torch.tensor([0.5, -9.0, 0.0])}
    torch.save(state, root / "models" / "model.pt")
    done = run(root, source)
    assert done.code == 0, done.err
    assert np.unique(voxels(done.paths[0])).tolist() == [0, 2]
