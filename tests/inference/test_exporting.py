"""`medkit bundle export`: a bundle in one file gives what the bundle gives."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zoo
from outcome import Outcome

from medkit.bundles.bundle import Bundle, find_bundle
from medkit.images.phantom import make_image
from medkit.plugins import registry

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
FORMATS = ("ts", "pt2", "onnx")


def needs(suffix: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if suffix == "onnx" else ():
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'medkit[onnx]'")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return make_image(tmp_path / "a.nii.gz", (20, 18, 30), (4.0, 4.0, 5.0))


def labels_of(toy: Run, bundle: Path, scan: Path, folder: Path, *more: str) -> tuple[np.ndarray, dict[str, Any]]:
    how = ("--bundle", bundle, "--trust", "--precision", "float32", "--json", *more)
    done = toy("run", "bundle", *how, scan, "-o", folder)
    assert done.code == 0, done.err
    (record,) = done.records
    return np.asanyarray(nibabel.load(record["path"]).dataobj), record


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["spleen_ct_segmentation", "ventricular_short_axis_3label", "segmentation_template"])
def test_the_file_gives_the_bundles_labels(toy: Run, scan: Path, tmp_path: Path, name: str, suffix: str) -> None:
    needs(suffix)
    root = zoo.write(tmp_path / name, name)
    expected, _ = labels_of(toy, root, scan, tmp_path / "own")
    done = toy("bundle", "export", root, "--trust", "-o", tmp_path / f"one.{suffix}")
    assert done.code == 0, done.err
    assert done.lines == [str(tmp_path / f"one.{suffix}")]
    assert "largest difference" in done.err
    found, record = labels_of(toy, tmp_path / f"one.{suffix}", scan, tmp_path / "file")
    assert len(np.unique(expected)) > 1
    assert np.mean(found != expected) <= (0.001 if suffix == "onnx" else 0)  # of channels that nearly tie
    assert record["medkit"]["bundle"]["name"] == "one"
    assert record["medkit"]["backend"] == ("onnxruntime" if suffix == "onnx" else "torch")
    assert not record["medkit"]["warnings"]  # the memory of its network is known


def test_configs_code_and_origin_travel(toy: Run, tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "renalStructures_CECT_segmentation")
    (root / "LICENSE").write_text("free")
    (root / "eval").mkdir()
    (root / "eval" / "of_the_user.json").write_text("{}")
    assert toy("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts").code == 0
    found = find_bundle(str(tmp_path / "one.ts"), registry())
    for name in ("configs/inference.json", "scripts/join.py", "scripts/__init__.py", "LICENSE"):
        assert (found.root / name).read_bytes() == (root / name).read_bytes()
    assert not (found.root / "eval").exists()
    own = json.loads((root / "configs" / "metadata.json").read_text())
    assert found.metadata.items() >= {k: v for k, v in own.items() if k != "medkit"}.items()
    stated = found.block["export"]
    assert stated["format"] == "torchscript"
    assert stated["from"]["name"] == "b"
    assert stated["memory"]["channels"] == 3
    assert stated["memory"]["bytes_per_voxel"] > 0
    assert found.has_weights
    assert Bundle(root, "b").has_weights


def test_monai_reads_the_file(toy: Run, tmp_path: Path) -> None:
    from monai.data import load_net_with_metadata

    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    assert toy("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts").code == 0
    network, metadata, more = load_net_with_metadata(str(tmp_path / "one.ts"), more_extra_files=["inference.json"])
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == 1
    assert "preprocessing" in json.loads(more["inference.json"])
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_a_file_of_monais_own_export_runs(toy: Run, scan: Path, tmp_path: Path) -> None:
    from monai.bundle import ckpt_export

    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    expected, _ = labels_of(toy, root, scan, tmp_path / "own")
    ckpt_export(
        net_id="network_def", filepath=str(tmp_path / "one.ts"), ckpt_file=str(root / "models" / "model.pt"),
        meta_file=str(root / "configs" / "metadata.json"), config_file=str(root / "configs" / "inference.json"),
        bundle_root=str(root),
    )  # fmt: skip
    found, _ = labels_of(toy, tmp_path / "one.ts", scan, tmp_path / "file")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_runs_nothing_before_it_is_trusted(toy: Run, scan: Path, tmp_path: Path, suffix: str) -> None:
    needs(suffix)
    root, one = zoo.write(tmp_path / "b", "spleen_ct_segmentation"), tmp_path / f"one.{suffix}"
    assert toy("bundle", "export", root, "--trust", "-o", one).code == 0
    refused = toy("run", "bundle", "--bundle", one, scan)
    assert refused.code == 2
    assert f"{one}: its configs run code" in refused.err
    audited = toy("bundle", "audit", one)
    assert audited.code == 0, audited.err
    assert ("models/model.ts" in audited.out and "TorchScript: a program" in audited.out) == (suffix == "ts")
    assert "inference.json" in audited.out
    assert toy("run", "bundle", "--bundle", one, "--trust", scan).code == 0
    assert toy("run", "bundle", "--bundle", one, scan, "--overwrite").code == 0


def test_a_file_is_installed_and_shown(toy: Run, scan: Path, tmp_path: Path) -> None:
    root, one = zoo.write(tmp_path / "b", "spleen_ct_segmentation"), tmp_path / "one.ts"
    assert toy("bundle", "export", root, "--trust", "-o", one).code == 0
    done = toy("bundle", "install", one, "--name", "kept", "--trust")
    assert done.code == 0, done.err
    one.unlink()
    found, record = labels_of(toy, Path("kept"), scan, tmp_path / "out")
    assert len(np.unique(found)) > 1
    assert record["medkit"]["bundle"]["weights_sha256"] is not None
    shown = json.loads(toy("bundle", "show", "kept", "--json").out)
    assert shown["title"] == "spleen_ct_segmentation"


def test_refusals_write_nothing(toy: Run, tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    for name, words in (("one.pth", ".ts, .pt2 or .onnx"), ("one", ".ts, .pt2 or .onnx")):
        done = toy("bundle", "export", root, "--trust", "-o", tmp_path / name)
        assert done.code == 2
        assert f"expected a name that ends in {words}" in done.err
    done = toy("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts", "--format", "onnx")
    assert done.code == 2
    assert "ends in .onnx" in done.err
    (tmp_path / "one.ts").write_text("mine")
    done = toy("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts")
    assert done.code == 1
    assert "already exists; --overwrite replaces it" in done.err
    assert (tmp_path / "one.ts").read_text() == "mine"
    empty = zoo.write(tmp_path / "empty", "spleen_ct_segmentation", weights=False)
    done = toy("bundle", "export", empty, "--trust", "-o", tmp_path / "two.ts")
    assert done.code == 4
    assert "no weights at" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "empty", "one.ts"]


def test_a_bundle_whose_evaluator_calls_the_network_is_refused(toy: Run, tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["evaluator"]["prepare_batch"] = "$lambda batch, *_, **__: (batch['image'], None)"
    path.write_text(json.dumps(config))
    done = toy("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts")
    assert done.code == 1
    assert "its evaluator has a prepare_batch of its own" in done.err
    assert not (tmp_path / "one.ts").exists()


def test_files_that_carry_no_bundle(toy: Run, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "bare.ts")
    (tmp_path / "broken.ts").write_bytes(b"PK\x03\x04 and then nothing")
    with zipfile.ZipFile(tmp_path / "hostile.ts", "w") as archive:
        archive.writestr("hostile/extra/metadata.json", "{}")
        archive.writestr("hostile/extra/../../out.json", "{}")
    for name, words in (
        ("bare.ts", "carries no metadata.json"),
        ("broken.ts", "expected a zip of a bundle"),
        ("hostile.ts", "leads out of the bundle"),
    ):
        done = toy("bundle", "show", tmp_path / name)
        assert done.code != 0
        assert name in done.err
        assert words in done.err


def test_a_broken_file_of_onnx(toy: Run, tmp_path: Path) -> None:
    needs("onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    done = toy("bundle", "show", tmp_path / "broken.onnx")
    assert done.code == 3
    assert "expected a network in ONNX" in done.err


def test_precisions_are_measured_for_the_metadata(toy: Run, scan: Path, tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    done = toy("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts", "--measure", scan)
    assert done.code == 0, done.err
    found = find_bundle(str(tmp_path / "one.ts"), registry())
    ways = found.block["export"]["measured"]
    assert ways["torch float32"] == {"ratio": 1.0, "apart": 0.0}
    assert 0 < ways["torch bf16"]["apart"] < 0.2
    assert ways["torch bf16"]["ratio"] > 0
    missing = toy("bundle", "export", root, "--trust", "-o", tmp_path / "two.ts", "--measure", tmp_path / "none.nii")
    assert missing.code == 2
    assert "none.nii: no such file" in missing.err
