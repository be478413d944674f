"""`--backend`: other libraries return what torch returns, and `auto` takes the fastest that does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zoo
from outcome import Outcome

from medkit.errors import BundleError, UsageError
from medkit.images.phantom import make_image
from medkit.inference import backend_choice
from medkit.inference.backend_choice import Asked, Measured, Way, _best, asked_for, choose, example_of, measured
from medkit.inference.backends import CompiledNetwork, precision_of, require
from medkit.inference.onnx_network import OnnxNetwork
from medkit.pipe.remembered import BACKENDS, remembered, state_folder

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
OTHERS = ("onnxruntime", "openvino")
CPU = torch.device("cpu")


def needs(*backends: str) -> None:
    for package in ("onnx", "onnxscript", *backends):
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return make_image(tmp_path / "a.nii.gz", (20, 18, 30), (4.0, 4.0, 5.0))


def labels_of(toy: Run, bundle: Path, scan: Path, *more: str) -> tuple[np.ndarray, dict[str, Any]]:
    done = toy("run", "bundle", "--bundle", bundle, "--trust", "--json", "--overwrite", *more, scan)
    assert done.code == 0, done.err
    (record,) = done.records
    return np.asanyarray(nibabel.load(record["path"]).dataobj), record["medkit"]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", ["spleen_ct_segmentation", "ventricular_short_axis_3label", "segmentation_template"])
def test_labels_are_those_of_torch(toy: Run, scan: Path, tmp_path: Path, name: str, backend: str) -> None:
    needs(backend)
    root = zoo.write(tmp_path / "b", name)
    expected, told = labels_of(toy, root, scan, "--precision", "float32")
    assert told["backend"] == "torch"
    assert "backend" not in told["arguments"]
    found, told = labels_of(toy, root, scan, "--precision", "float32", "--backend", backend)
    assert len(np.unique(expected)) > 1
    assert np.mean(found != expected) < 0.001  # sums in another order: channels that nearly tie
    assert (told["backend"], told["precision"], told["arguments"]["backend"]) == (backend, "float32", backend)


def test_auto_measures_once_and_remembers(
    toy: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(*OTHERS)
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    expected, _ = labels_of(toy, root, scan, "--precision", "float32")
    found, told = labels_of(toy, root, scan, "--precision", "float32", "--backend", "auto")
    assert np.mean(found != expected) < 0.001
    assert set(told["backends_measured"]) == {"torch float32", "openvino float32", "onnxruntime float32"}
    fastest = min(told["backends_measured"], key=lambda way: told["backends_measured"][way]["seconds"])
    assert f"{told['backend']} {told['precision']}" in (fastest, "torch float32")
    (entry,) = remembered(BACKENDS).values()
    assert entry["bundle"] == "b"

    def again(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(backend_choice, "measured", again)
    _, second = labels_of(toy, root, scan, "--precision", "float32", "--backend", "auto")
    assert {k: second[k] for k in ("backend", "precision", "backends_measured")} == {
        k: told[k] for k in ("backend", "precision", "backends_measured")
    }
    weights = root / "models" / "model.pt"  # another content is another bundle
    state = torch.load(weights, weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, weights)
    done = toy("run", "bundle", "--bundle", root, "--trust", "--overwrite", "--backend", "auto", scan)
    assert done.code == 1
    assert "it was measured before" in done.err


def test_what_is_remembered_may_be_lost(home: Path) -> None:
    state_folder().mkdir(parents=True)
    for content in ("no json", "[]", '{"key": 1}'):
        (state_folder() / BACKENDS).write_text(content)
        assert choose(Asked("auto", "float32", "float32"), torch.nn.ReLU(), torch.ones(1, 1, 8, 8)).way.backend
    (state_folder() / BACKENDS).unlink(missing_ok=True)


def test_the_best_is_fast_and_keeps_the_answer() -> None:
    own = Measured(Way("torch", "bf16"), 1.0, 0.002)
    near = Measured(Way("openvino", "float32"), 0.9, 0.0)
    far = Measured(Way("openvino", "bf16"), 0.5, 0.0031)
    same = Measured(Way("onnxruntime", "float32"), 0.97, 0.0)
    assert _best([own, near, far, same], own.way) == near.way
    assert _best([own, far, same], own.way) == own.way
    assert _best([own], own.way) == own.way


def test_measured_is_the_distance_from_float32() -> None:
    needs("onnxruntime")
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1).eval()
    ways = [Way("torch", "bf16"), Way("onnxruntime", "float32")]
    for labels in (True, False):
        own, other = measured(network, ways, torch.rand(1, 1, 16, 16, 16), labels=labels)
        assert 0 < own.apart < 0.1
        assert other.apart < 1e-5
        assert own.seconds > 0


def test_a_way_that_fails_is_left_out() -> None:
    needs("onnxruntime")

    class Chance(torch.nn.Module):
        """A network that no copy can repeat."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image + torch.rand_like(image)

    ways = [Way("torch", "float32"), Way("onnxruntime", "float32")]
    (only,) = measured(Chance(), ways, torch.rand(1, 1, 8, 8, 8), labels=False)
    assert only.way == ways[0]
    with pytest.raises(BundleError, match=r"cannot be converted to ONNX for 8 x 8 x 8 voxels: .*differs"):
        CompiledNetwork(Chance(), "onnxruntime", "float32")(torch.rand(1, 1, 8, 8, 8))


class Fixed(torch.nn.Module):
    """A network for one size, as transformers with learned places are."""

    def __init__(self) -> None:
        super().__init__()
        self.places = torch.nn.Parameter(torch.rand(1, 1, 8, 8, 8))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image + self.places).flatten(2).softmax(-1).unflatten(2, (8, 8, 8))


@pytest.mark.parametrize("backend", OTHERS)
def test_networks_for_one_size(backend: str) -> None:
    needs(backend)
    network = Fixed().eval()
    called = CompiledNetwork(network, backend, "float32")
    for count in (1, 3):
        image = torch.rand(count, 1, 8, 8, 8)
        torch.testing.assert_close(called(image), network(image).detach(), rtol=1e-4, atol=1e-6)
    assert called._shape == (1, 8, 8, 8)


@pytest.mark.parametrize("backend", OTHERS)
def test_any_size_by_one_copy(backend: str) -> None:
    needs(backend)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4)).eval()
    called = CompiledNetwork(network, backend, "float32")
    for shape in ((2, 1, 20, 24, 18), (1, 1, 33, 16, 40)):
        image = torch.rand(shape)
        torch.testing.assert_close(called(image), network(image).detach(), rtol=1e-3, atol=1e-4)
    assert called._shape is None
    with pytest.raises(BundleError, match="more than an image"):
        called(torch.rand(1, 1, 8, 8, 8), torch.rand(3))


SIGNAL = """
import os, signal, torch
from medkit.inference.backends import CompiledNetwork
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
networks = [CompiledNetwork(torch.nn.Conv3d(1, 1, 3, padding=1).eval(), "openvino", "float32") for _ in range(2)]
for index in range(2):
    networks[index](torch.rand(1, 1, 16, 16, 16))
del networks[0]
del networks[0]
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_networks_are_freed_is_handled() -> None:
    """The first freed first: OpenVINO then leaves the thread memory for signals that is no longer there."""
    needs("openvino")
    done = subprocess.run([sys.executable, "-c", SIGNAL], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_networks_for_one_image_at_a_time() -> None:
    needs("onnxruntime")

    class Flat(torch.nn.Module):
        """A network whose trace knows one batch only."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.reshape(len(image), -1).softmax(-1).reshape(len(image), *image.shape[1:])

    called = CompiledNetwork(Flat(), "onnxruntime", "float32")
    for shape in ((3, 1, 8, 8, 8), (2, 1, 9, 8, 8)):
        image = torch.rand(shape)
        torch.testing.assert_close(called(image), Flat()(image))


def test_several_answers_are_refused() -> None:
    needs("onnxruntime")

    class Two(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return image, image

    with pytest.raises(BundleError, match="returns tuple, not one tensor"):
        CompiledNetwork(Two(), "onnxruntime", "float32")(torch.rand(1, 1, 8, 8, 8))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = backend_choice.missing_package
    assert find("torch") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--backend openvino: is not installed: pip install 'medkit\[openvino\]'"):
        require("openvino", CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(UsageError, match=r"needs onnx, which is not installed: pip install 'medkit\[onnx\]'"):
        require("onnxruntime", CPU)
    assert Asked("auto", "auto", "bf16").ways() == [Way("torch", "bf16")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UsageError, match="computes on the CPU, with --device cpu; got cuda"):
        require("onnxruntime", torch.device("cuda"))
    with pytest.raises(UsageError, match="onnxruntime: computes with float32, not with bf16"):
        precision_of("onnxruntime", "bf16")
    assert precision_of("openvino", "bf16") == "bf16"
    assert asked_for("auto", torch.nn.ReLU(), torch.device("cuda"), "auto", "bf16").backend == "torch"
    assert asked_for(None, OnnxNetwork(Path("a.onnx")), CPU, "auto", "bf16").backend == "onnxruntime"
    with pytest.raises(UsageError, match=r"--backend torch: cannot compute ONNX, a.onnx; onnxruntime can"):
        asked_for("torch", OnnxNetwork(Path("a.onnx")), CPU, "auto", "bf16")


def test_a_backend_that_is_not_installed_stops_the_run(
    toy: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medkit.inference.backends.missing_package", lambda name: "openvino")
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    done = toy("run", "bundle", "--bundle", root, "--trust", "--backend", "openvino", scan)
    assert done.code == 2
    assert "pip install 'medkit[openvino]'" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b"]


def test_networks_that_only_torch_computes(toy: Run, scan: Path, tmp_path: Path) -> None:
    needs("onnxruntime")
    root = zoo.write(tmp_path / "b", "spleen_ct_segmentation")
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["evaluator"]["prepare_batch"] = "$lambda batch, *_, **__: (batch['image'], None)"
    path.write_text(json.dumps(config))
    done = toy("run", "bundle", "--bundle", root, "--trust", "--backend", "onnxruntime", scan)
    assert done.code == 2
    assert "its own evaluator calls the network; torch computes it" in done.err
    _, told = labels_of(toy, root, scan, "--backend", "auto")
    assert told["backend"] == "torch"


def test_the_part_that_is_measured() -> None:
    image = torch.arange(40 * 50 * 130, dtype=torch.float32).reshape(1, 40, 50, 130)
    small, whole = example_of(image, (64, 48, 130))
    assert small.shape == (1, 1, 32, 32, 96)
    assert torch.equal(small[0], image[:, 4:36, 9:41, 17:113])
    assert whole.shape == (1, 1, 64, 48, 130)
    assert torch.equal(whole[0, :, :40], image[:, :, 1:49])
    assert not whole[0, :, 40:].any()
    slices, _ = example_of(image, (16, 16), across=2)
    assert torch.equal(slices[0], image[:, 12:28, 17:33, 65])
