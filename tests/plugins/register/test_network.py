"""Registrations that a network begins: when its start is used, what it means in space, which bundles can give it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from medkit_register.deformable import StartReport, finest_lattice, register_deformable
from medkit_register.network import Start, StartNetwork, fits, flow, own_network
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.warp import Lattice, indices

from medkit.bundles.bundle import Bundle
from medkit.errors import BundleError, MedkitError
from medkit.images.phantom import make_image
from medkit.inference import bundle_or_none
from medkit.space import apply_affine
from medkit.testing import records, run_medkit

SIZE = 72
PACKAGE = '''
import torch
from torch import nn


class Shift(nn.Module):
    """A velocity of the same `steps` everywhere, and the images that it was given."""

    def __init__(self, steps, size):
        super().__init__()
        self.steps = nn.Parameter(torch.tensor(steps))
        self.size = size

    def forward(self, image):
        self.given = image
        return self.steps.reshape(1, 3, 1, 1, 1).expand(1, 3, self.size, self.size, self.size)
'''


@pytest.fixture
def bundle(tmp_path: Path, clean_path: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """Makes a bundle whose network says that everything moves by so many steps of 6 mm."""

    def make(name: str, *steps: float) -> Bundle:
        root = tmp_path / name
        (root / "configs").mkdir(parents=True)
        (root / "models").mkdir()
        (root / name).mkdir()
        (root / name / "__init__.py").write_text(PACKAGE)
        network = {"_target_": f"{name}.Shift", "steps": [0.0, 0.0, 0.0], "size": "@size"}
        (root / "configs" / "inference.json").write_text(json.dumps({"size": 16, "network_def": network}))
        formats = {"inputs": {"image": {"spatial_shape": [32, 32, 32]}}}
        metadata = {"version": "1.0", "network_data_format": formats, "medkit": {"task": "register", "spacing": 3.0}}
        (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
        torch.save({"steps": torch.tensor(steps).half()}, root / "models" / "model.pt")
        return Bundle(root, name, "register")

    return make


def pyramid(centre: float = 0.0, size: int = SIZE, spacing: float = 2.0) -> Pyramid:
    """An ellipsoid of tissue with waves in it, about `centre` mm along the first axis."""
    points = (indices((size, size, size)) - (size - 1) / 2) * spacing
    points[0] -= centre
    x, y, z = points / 10
    inside = (points**2 * torch.tensor([1.0, 1.2, 0.9]).reshape(3, 1, 1, 1)).sum(0).sqrt() < 0.33 * size * spacing
    image = inside * (1.5 + torch.sin(2 * x + y) + torch.cos(1.5 * y) * torch.sin(2 * z))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -(size - 1) / 2 * spacing
    return Pyramid(ScanVolume(image, affine))


class Given:
    """What says a given shift (mm) everywhere, in the place of a network."""

    def __init__(self, *shift: float) -> None:
        self.shift = torch.tensor(shift).reshape(3, 1, 1, 1)

    def __call__(self, fixed: Pyramid, moving: Pyramid, matrix: np.ndarray, box: Lattice) -> Start:
        affine = np.diag([60.0, 60.0, 60.0, 1.0])
        affine[:3, 3] = -90
        return Start(Lattice((4, 4, 4), affine), self.shift.expand(3, 4, 4, 4))


@pytest.mark.parametrize("metric", ["lncc", "mind"])
def test_a_start_is_used_where_it_lowers_the_cost(metric: str) -> None:
    fixed, moving = pyramid(), pyramid(6.0)
    asked = {"metric": metric, "quality": "fast"}
    plain = register_deformable(fixed, moving, np.eye(4), **asked)
    helped = register_deformable(fixed, moving, np.eye(4), **asked, network=Given(6.0, 0.0, 0.0))
    misled = register_deformable(fixed, moving, np.eye(4), **asked, network=Given(-6.0, 3.0, 0.0))
    assert plain.start is None
    assert isinstance(helped.start, StartReport)
    assert helped.start.used
    assert helped.start.cost < 0.3 * helped.start.affine_cost
    inside = (
        np.linalg.norm(apply_affine(helped.lattice.affine, np.argwhere(np.ones(helped.lattice.shape))), axis=1) < 30
    )
    moved = helped.forward.reshape(3, -1)[:, inside] * 4.0
    assert float((moved - torch.tensor([[6.0], [0.0], [0.0]])).norm(dim=0).mean()) < 0.6
    assert misled.start is not None
    assert not misled.start.used
    assert torch.equal(misled.forward, plain.forward)


def test_a_start_on_another_lattice() -> None:
    """A turned lattice of other steps: the same mm."""
    turned = np.array([[0.0, -2.0, 0, 20], [4.0, 0, 0, -30], [0, 0, 3.0, 5], [0, 0, 0, 1]])
    start = Given(6.0, -2.0, 3.0)(None, None, np.eye(4), None)  # type: ignore[arg-type]
    there = start.on(Lattice((5, 6, 7), turned))
    mm = turned[:3, :3] @ there.numpy().reshape(3, -1)
    np.testing.assert_allclose(mm, np.array([[6.0], [-2.0], [3.0]]) @ np.ones((1, 210)), atol=1e-5)


def test_flow_of_a_rotation() -> None:
    """A turn about the middle: its velocity is linear, and time 1 turns by the whole angle."""
    points = indices((17, 17, 3)) - torch.tensor([8.0, 8.0, 1.0]).reshape(3, 1, 1, 1)
    velocity = torch.stack([-0.4 * points[1], 0.4 * points[0], torch.zeros_like(points[0])])
    found = flow(velocity)[:, 6:11, 6:11]
    cos, sin = np.cos(0.4), np.sin(0.4)
    expected = torch.stack(
        [(cos - 1) * points[0] - sin * points[1], sin * points[0] + (cos - 1) * points[1], 0 * points[2]]
    )
    torch.testing.assert_close(found, expected[:, 6:11, 6:11], atol=0.02, rtol=0.02)


def test_what_a_network_is_given_and_says(bundle: Callable[..., Bundle]) -> None:
    """Both scans about the fixed object's middle, their bright parts 1; its answer in mm of the world."""
    network = StartNetwork(bundle("one_shift", 1.0, 0.0, -0.5))
    fixed, moving = pyramid(20.0), pyramid(6.0)
    matrix = np.eye(4)
    matrix[0, 3] = -14.0
    start = network(fixed, moving, matrix, finest_lattice(fixed))
    assert start is not None
    np.testing.assert_allclose(start.shift[:, 8, 8, 8], [6.0, 0.0, -3.0], atol=1e-3)
    middle = apply_affine(start.lattice.affine, [(n - 1) / 2 for n in start.lattice.shape])
    np.testing.assert_allclose(middle, [20.0, 0.0, 0.0], atol=3.0)
    given = network._network.given  # type: ignore[operator, union-attr]
    assert given.shape == (1, 2, 32, 32, 32)
    assert float(given.min()) >= 0
    assert 0.9 < float(given.max()) < 1.3
    inside = (given[0, 0] > 0.1) & (given[0, 1] > 0.1)
    assert float((given[0, 0] - given[0, 1])[inside].abs().mean()) < 0.02, "the affine map is applied"


def test_what_is_no_head_is_not_given_to_it(bundle: Callable[..., Bundle]) -> None:
    network = StartNetwork(bundle("another_shift", 0.0, 0.0, 0.0))
    small = pyramid(size=24)
    assert network(small, small, np.eye(4), finest_lattice(small)) is None
    flat = Pyramid(ScanVolume(torch.rand(90, 90, 1), np.diag([2.0, 2.0, 2.0, 1.0])))
    assert network(flat, flat, np.eye(4), finest_lattice(flat)) is None
    head = pyramid()
    assert fits(head, finest_lattice(head))
    assert network(head, flat, np.eye(4), finest_lattice(head)) is None


def test_networks_without_monai(bundle: Callable[..., Bundle]) -> None:
    """Where the class is the bundle's own and its arguments are plain; MONAI reads all others."""
    own = bundle("plain_shift", 1.0, 2.0, 3.0)
    network = own_network(own)
    assert network is not None
    assert network.steps.tolist() == [1.0, 2.0, 3.0]
    path = own.root / "configs" / "inference.json"
    for definition in (
        {"_target_": "torch.nn.Conv3d", "in_channels": 2},
        "$None",
        {"_target_": "plain_shift.Shift", "steps": "$[1]"},
    ):
        path.write_text(json.dumps({"size": 16, "network_def": definition}))
        assert own_network(own) is None


def test_metadata_that_do_not_say_the_grid(bundle: Callable[..., Bundle]) -> None:
    made = bundle("vague_shift", 0.0, 0.0, 0.0)
    path = made.root / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"medkit": {}}))
    head = pyramid()
    with pytest.raises(BundleError, match="vague_shift: expected a spatial_shape"):
        StartNetwork(Bundle(made.root, "vague_shift"), 1)(head, head, np.eye(4), finest_lattice(head))


def test_which_bundle(bundle: Callable[..., Bundle]) -> None:
    assert bundle_or_none("none", "register", trust=False) is None
    found = bundle_or_none("auto", "register", trust=False)
    assert found is not None
    assert found.name == "brain_mri_registration"
    made = bundle("my_shift", 0.0, 0.0, 0.0)
    with pytest.raises(MedkitError, match="--trust"):
        bundle_or_none(str(made.root), "register", trust=False)
    (made.root / "models" / "model.pt").unlink()
    with pytest.raises(MedkitError, match="no weights"):
        bundle_or_none(str(made.root), "register", trust=True)


@pytest.mark.slow
def test_the_record_says_what_began(bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    scans = [str(make_image(tmp_path / f"{name}.nii.gz", (44, 50, 40), (3.4, 3.1, 3.8), seed=3)) for name in "ab"]
    base = ["run", "register", "--fixed", scans[0], scans[1], "--quality", "fast", "--json", "--overwrite",
            "-o", str(tmp_path / "out")]  # fmt: skip
    made = bundle("told_shift", 0.5, 0.0, 0.0)
    done = run_medkit([*base, "--bundle", str(made.root), "--trust"])
    assert done.returncode == 0, done.stderr
    (record,) = records(done.stdout)
    assert record["medkit"]["registration"]["warp_start"]["network"] is False
    assert record["medkit"]["bundle"]["name"] == "told_shift"
    done = run_medkit(base)
    (record,) = records(done.stdout)
    assert "warp_start" not in record["medkit"]["registration"]
    assert record["medkit"].get("bundle") is None
    done = run_medkit([*base, "--bundle", str(made.root), "--type", "rigid"])
    assert done.returncode == 2
    assert "--bundle: takes --type deformable or joint" in done.stderr
