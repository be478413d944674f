"""`medkit bundle import nnunet`: the same labels as by nnU-Net's rules, and refusals of what medkit cannot run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_model import (
    REGIONS,
    architecture,
    configuration,
    dataset,
    expected_labels,
    plans,
    write_image,
    write_model,
)

pytestmark = pytest.mark.usefixtures("clean_path")
Run = Callable[..., "Outcome"]  # noqa: F821
THICK = configuration(
    spacing=[6.0, 1.5, 1.5], patch_size=[4, 16, 16],
    architecture=architecture(3, [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]),
)  # fmt: skip
Z_SCORE = configuration(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[True, False])
TWO = {"channel_names": {"0": "T1", "1": "T2"}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, tuple[int, ...], tuple[float, ...]]] = {
    "3d": (plans({"3d_fullres": configuration()}), dataset(), "3d_fullres", (0,), (1.2, 1.0, 2.0)),
    "folds": (
        plans({"3d_lowres": configuration()}, transpose_forward=[2, 0, 1]), dataset(), "3d_lowres", (0, 3),
        (1.2, 1.0, 2.0),
    ),
    "slices": (plans({"2d": configuration(2)}, transpose_forward=[1, 0, 2]), dataset(), "2d", (0,), (1.2, 1.0, 2.0)),
    "thick slices": (plans({"3d_fullres": THICK}), dataset(), "3d_fullres", (0,), (1.2, 1.0, 5.0)),
    "channels and regions": (
        plans({"3d_fullres": Z_SCORE}), dataset(**TWO, labels=REGIONS, regions_class_order=[1, 2]), "3d_fullres", (0,),
        (1.2, 1.0, 2.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_labels_are_those_of_nnunets_rules(case: str, medkit: Run, tmp_path: Path) -> None:
    plan, data, name, folds, spacing = CASES[case]
    weights = write_model(tmp_path / "model", plan, data, name, folds)
    shape = (24, 28, 8) if case == "thick slices" else (24, 28, 18)
    files = [
        write_image(tmp_path / f"{n}.nii.gz", shape, spacing, seed=n, empty=3)
        for n in range(len(data["channel_names"]))
    ]
    done = medkit("bundle", "import", "nnunet", tmp_path / "model", "--name", "lungs")
    assert done.code == 0, done.err
    record = {"path": str(files[0]), "inputs": {"t2": str(files[1])} if len(files) > 1 else {}}
    done = medkit(
        "run", "bundle", "--bundle", "lungs", "--precision", "float32", "--device", "cpu", "-o", tmp_path / "out",
        input=json.dumps(record) + "\n",
    )  # fmt: skip
    assert done.code == 0, done.err
    labels, scan = nib.load(done.paths[0]), nib.load(files[0])
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-5)
    expected = expected_labels(files, plan, data, name, weights)
    found = np.asarray(labels.dataobj)
    assert (found != expected).mean() < 1e-3  # ties of rounding may be broken either way
    assert min(np.bincount(expected.ravel(), minlength=3)) > 100


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model."""
    write_model(tmp_path / "model", plans({"3d_fullres": configuration()}), dataset(), "3d_fullres")
    return tmp_path / "model"


def test_a_zip_with_several_configurations(medkit: Run, tmp_path: Path) -> None:
    cascade = configuration(previous_stage="3d_lowres")
    plan = plans({"2d": configuration(2), "3d_fullres": configuration(), "3d_cascade_fullres": cascade})
    for name in plan["configurations"]:
        write_model(tmp_path / "Dataset001_Lungs" / f"nnUNetTrainer__nnUNetPlans__{name}", plan, dataset(), name)
    archive = tmp_path / "lungs.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(tmp_path.glob("Dataset001_Lungs/**/*")):
            out.write(path, path.relative_to(tmp_path))
    done = medkit("bundle", "import", "nnunet", archive)
    assert done.code == 0, done.err
    root = Path(done.lines[0])
    assert root.name == "Dataset001_Lungs"
    assert sorted(p.name for p in (root / "configs").iterdir()) == [
        "inference.json", "inference_2d.json", "metadata.json",
    ]  # fmt: skip
    assert "3d_fullres: fold 0, windows of 16 x 16 x 16 voxels of 1.5 x 1.5 x 1.5 mm, 2 labels" in done.err
    assert "left out" in done.err
    assert "3d_cascade_fullres: is a cascade: it needs the labels of 3d_lowres" in done.err
    assert (root / "LICENSE").read_text().startswith("CC0-1.0\n")
    scan = write_image(tmp_path / "scan.nii.gz", (20, 20, 6), (1.5, 1.5, 3.0))
    done = medkit("run", "bundle", "--bundle", root.name, "--config", "inference_2d", scan, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.records[0]["medkit"]["labels"] == {"1": "left lung", "2": "right lung"}


@pytest.mark.slow
def test_it_is_a_bundle_as_the_zoo_has_them(medkit: Run, model: Path) -> None:
    root = medkit("bundle", "import", "nnunet", model).lines[0]
    done = medkit("bundle", "verify", root)
    assert done.code == 0, done.out + done.err
    assert "returns the same as MONAI's own run" in done.out


def test_probabilities_are_those_that_labels_are_made_of(medkit: Run, model: Path, tmp_path: Path) -> None:
    medkit("bundle", "import", "nnunet", model, "--name", "lungs")
    scan = write_image(tmp_path / "scan.nii.gz", (24, 20, 18), (1.2, 1.0, 2.0), empty=4)
    done = medkit("run", "bundle", "--bundle", "lungs", "--probabilities", scan, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    outputs = done.records[0]["medkit"]["outputs"]
    labels, shares = (np.asarray(nib.load(outputs[role]["path"]).dataobj) for role in ("labels", "probabilities"))
    shares = np.squeeze(shares)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-3)
    assert (shares[:4, ..., 0] == 1).all()
    assert (shares.argmax(-1) == labels).mean() > 0.999


def test_images_are_turned_first_if_the_user_says_so(medkit: Run, model: Path, tmp_path: Path) -> None:
    medkit("bundle", "import", "nnunet", model, "--name", "lungs", "--orientation", "RAS")
    scan = nib.load(write_image(tmp_path / "down.nii.gz", (24, 20, 18), (1.2, 1.0, 2.0)))
    nib.save(nib.as_closest_canonical(scan), tmp_path / "up.nii.gz")
    done = medkit(
        "run", "bundle", "--bundle", "lungs", tmp_path / "down.nii.gz", tmp_path / "up.nii.gz", "-o", tmp_path / "out"
    )
    assert done.code == 0, done.err
    down, up = (nib.load(path) for path in done.paths)
    np.testing.assert_array_equal(np.asarray(nib.as_closest_canonical(down).dataobj), np.asarray(up.dataobj))


def test_too_little_memory_is_said_instead_of_taking_other_windows(medkit: Run, model: Path, tmp_path: Path) -> None:
    medkit("bundle", "import", "nnunet", model, "--name", "lungs")
    scan = write_image(tmp_path / "scan.nii.gz", (40, 40, 40), (1.5, 1.5, 1.5))
    done = medkit("run", "bundle", "--bundle", "lungs", "--memory", "10M", scan, "-o", tmp_path / "out")
    assert done.code == 1
    assert "MiB are needed" in done.err


def test_names_of_strangers_run_nothing(medkit: Run, tmp_path: Path) -> None:
    data = dataset(labels={"background": 0, "$__import__('os').abort()": 1, "\x1b[31mred": 2})
    write_model(tmp_path / "model", plans({"3d_fullres": configuration()}), data, "3d_fullres")
    root = Path(medkit("bundle", "import", "nnunet", tmp_path / "model").lines[0])
    labels = json.loads((root / "configs" / "metadata.json").read_text())["medkit"]["labels"]
    assert labels == {"1": "__import__('os').abort()", "2": "\\x1b[31mred"}


CONFIGURATION = {
    "a cascade": ({"previous_stage": "3d_lowres"}, "is a cascade: it needs the labels of 3d_lowres"),
    "another network": (
        {"architecture": {"network_class_name": "somebody.Net", "arch_kwargs": {}}},
        "its network is somebody.Net, which medkit does not know: PlainConvUNet, ResidualEncoderUNet or ResidualUNet",
    ),
    "another preprocessor": ({"preprocessor_name": "Mine"}, "prepares images by Mine, an unknown class"),
    "another resampling": ({"resampling_fn_data": "resample_torch_simple"}, "resamples by resample_torch_simple"),
    "another normalization": ({"normalization_schemes": ["Mine"]}, "normalises intensities by Mine"),
    "no number": ({"spacing": [1.5, "$x", 1.5]}, "spacing: expected numbers above 0"),
}


@pytest.mark.parametrize("what", CONFIGURATION)
def test_what_medkit_cannot_run_is_refused(what: str, medkit: Run, tmp_path: Path) -> None:
    changes, reason = CONFIGURATION[what]
    own = configuration()
    write_model(tmp_path / "model", plans({"3d_fullres": own}), dataset(), "3d_fullres")
    (tmp_path / "model" / "plans.json").write_text(json.dumps(plans({"3d_fullres": own | changes})))
    done = medkit("bundle", "import", "nnunet", tmp_path / "model")
    assert (done.code, done.out) == (1, "")
    assert reason in done.err
    assert str(tmp_path / "model") in done.err


def test_a_layer_that_plans_must_not_name(medkit: Run, tmp_path: Path) -> None:
    own = configuration()
    write_model(tmp_path / "model", plans({"3d_fullres": own}), dataset(), "3d_fullres")
    own["architecture"]["arch_kwargs"]["nonlin"] = "os.system"
    (tmp_path / "model" / "plans.json").write_text(json.dumps(plans({"3d_fullres": own})))
    done = medkit("bundle", "import", "nnunet", tmp_path / "model")
    assert done.code == 1
    assert "nonlin is os.system, which medkit does not know" in done.err


def test_a_checkpoint_that_would_run_code(medkit: Run, tmp_path: Path) -> None:
    plan = plans({"3d_fullres": configuration()})
    write_model(tmp_path / "model", plan, dataset(), "3d_fullres", logging=Path("/"))
    done = medkit("bundle", "import", "nnunet", tmp_path / "model")
    assert done.code == 1
    assert "fold_0/checkpoint_final.pth: holds more than weights and numbers (pathlib." in done.err


def test_weights_of_another_network(medkit: Run, model: Path) -> None:
    plan = plans({"3d_fullres": configuration()})
    plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 10]
    (model / "plans.json").write_text(json.dumps(plan))
    done = medkit("bundle", "import", "nnunet", model)
    assert done.code == 1
    assert "does not fit the network of its plans" in done.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--folds", "3"], "--folds 3: "),
        (["--checkpoint", "checkpoint_best.pth"], "no fold_*/checkpoint_best.pth; there is checkpoint_final.pth"),
        (["--configuration", "2d"], "no model of nnU-Net v2 of 2d"),
        (["--orientation", "RAX"], "--orientation RAX: expected three letters, such as RAS"),
    ],
)
def test_choices_that_do_not_fit(arguments: list[str], reason: str, medkit: Run, model: Path) -> None:
    done = medkit("bundle", "import", "nnunet", model, *arguments)
    assert done.code in (1, 2)
    assert reason in done.err


def test_a_folder_without_a_model(medkit: Run, tmp_path: Path) -> None:
    done = medkit("bundle", "import", "nnunet", tmp_path)
    assert done.code == 1
    assert "expected plans.json, dataset.json and fold_0/checkpoint_final.pth" in done.err


def test_plans_before_nnunet_2_4(medkit: Run, tmp_path: Path) -> None:
    own = configuration()
    arguments = own.pop("architecture")["arch_kwargs"]
    old = own | {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2],
        "conv_kernel_sizes": arguments["kernel_sizes"], "pool_op_kernel_sizes": arguments["strides"],
    }  # fmt: skip
    new = configuration()
    new["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_model.FEATURES", (4, 8, 8))
        write_model(tmp_path / "model", plans({"3d_fullres": new}), dataset(), "3d_fullres")
    (tmp_path / "model" / "plans.json").write_text(json.dumps(plans({"3d_fullres": old})))
    done = medkit("bundle", "import", "nnunet", tmp_path / "model")
    assert done.code == 0, done.err


@pytest.mark.filterwarnings("ignore")  # of packages that this project does not install
def test_labels_are_those_of_nnunets_own_predictor(
    medkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nnunetv2", reason="nnU-Net's own package is not installed")
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plan, data, name, folds, spacing = CASES["folds"]
    write_model(tmp_path / "model", plan | {"transpose_backward": [1, 2, 0]}, data, name, folds)
    scan = write_image(tmp_path / "scan.nii.gz", (24, 28, 18), spacing, empty=3)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path / "model"), folds)
    predictor.predict_from_files_sequential([[str(scan)]], [str(tmp_path / "theirs")])
    medkit("bundle", "import", "nnunet", tmp_path / "model", "--name", "lungs")
    done = medkit("run", "bundle", "--bundle", "lungs", "--precision", "float32", scan, "-o", tmp_path / "out")
    theirs = np.asarray(nib.load(tmp_path / "theirs.nii.gz").dataobj)
    assert (np.asarray(nib.load(done.paths[0]).dataobj) != theirs).mean() < 1e-3
