"""The bundle brain_mri_registration and what trains it: its configs, its network, pairs drawn from label maps."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import bundled
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.blocks import DVF2DDF
from monai.networks.nets import DynUNet
from places import BUNDLES

from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Ranges
from medkit.synthesis.registration_pairs import (
    CENTRES,
    DrawPaird,
    LabelledHead,
    PairSynthesis,
    centres,
    fitted,
    stretched,
)
from medkit.testing import run_medkit
from medkit.training.parts.registration import AlignmentLoss, LabelOverlapLoss, MovedLabelsd, positions, roughness
from medkit.training.weights import initialise_from

# MONAI says that it was built without its own sampler
pytestmark = pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")

ROOT = BUNDLES / "brain_mri_registration"
SMALL = {"seen": [4, 8, 8], "compared": [4, 4], "shape": [32, 32, 32], "spacing": 6.0}

built = functools.partial(bundled.built, ROOT)


@pytest.fixture(autouse=True)
def own_code(clean_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own package is found, as under MONAI's commands and medkit's."""
    monkeypatch.syspath_prepend(str(ROOT))


# ---- configs and network


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree_and_the_weights_are_small() -> None:
    one, other = built("train"), built("inference")
    for name in ("network_def", "seen", "compared", "classes", "shape", "spacing", "squarings"):
        assert one.get(name) == other.get(name), name
    formats = json.loads((ROOT / "configs" / "metadata.json").read_text())
    assert formats["network_data_format"]["inputs"]["image"]["spatial_shape"] == one.get("shape")
    assert formats["medkit"]["spacing"] == one.get("spacing")
    assert (ROOT / "models" / "model.pt").stat().st_size < 5_000_000


@pytest.mark.parametrize(("stride", "channels"), [(2, [4, 6, 8, 8]), (1, [3, 5, 4])])
def test_the_u_net_is_monais(stride: int, channels: list[int]) -> None:
    own = importlib.import_module("brain_mri_registration.unet").RegistrationUNet(2, 3, channels, stride).eval()
    theirs = DynUNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=3,
        kernel_size=[3] * len(channels),
        strides=[stride] + [2] * (len(channels) - 1),
        upsample_kernel_size=[2] * (len(channels) - 1),
        filters=channels,
        norm_name=("INSTANCE", {"affine": True}),
    ).eval()
    missing, _ = own.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    image = torch.rand(1, 2, 16, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(own(image), theirs(image))


def test_flow_is_monais() -> None:
    package = importlib.import_module("brain_mri_registration")
    velocity = torch.randn(1, 3, 8, 9, 10)
    expected = DVF2DDF(num_steps=6, mode="bilinear", padding_mode="border")(velocity)
    torch.testing.assert_close(package.flow(velocity), expected, atol=1e-5, rtol=1e-4)


def test_forces_bring_structures_nearer() -> None:
    """A ball that lies two points further on: the first of three steps moves it most of the way, whatever the scale."""
    package = importlib.import_module("brain_mri_registration")
    fixed, moving = (ball(torch.tensor([centre, 12.0, 12.0])) for centre in (10.0, 12.0))
    for scale in (1, 2):
        pull = package.force(fixed, moving, scale)
        inside = fixed[0, 1] > 0.5
        assert pull[0, 0][inside].mean() > 0.2
        assert pull[0, 1:, inside].mean(1).abs().max() < 0.05


def ball(centre: torch.Tensor, size: int = 24) -> torch.Tensor:
    """(1, 2, I, J, K) probabilities of what is around a ball, and of the ball."""
    points = torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")).float()
    distance = (points - centre.reshape(3, 1, 1, 1)).norm(dim=0)
    inside = torch.sigmoid(6 - distance)
    return torch.stack([1 - inside, inside])[None]


def test_in_training_it_also_says_what_it_sees() -> None:
    network = built("train", **SMALL).get_parsed_content("network_def")
    image = torch.rand(2, 2, 32, 32, 32)
    assert network.train()(image).shape == (2, 3 + 2 * 4, 16, 16, 16)
    assert network.eval()(image).shape == (2, 3, 16, 16, 16)


# ---- losses


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels.long(), classes).movedim(-1, 1).float()


def test_overlap_is_that_of_one_hot_labels_interpolated() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(1, 2, 16, 20, 18, dtype=torch.uint8)
    labels[..., 5:11, 6:14, 5:13] = torch.randint(4, (1, 2, 6, 8, 8), dtype=torch.uint8)
    velocity = (0.4 * torch.randn(1, 3, 8, 10, 9)).requires_grad_()
    loss = LabelOverlapLoss(4, smoothness=0.7)(velocity, labels)

    at = positions(velocity, labels.shape[2:])
    sizes = torch.tensor(labels.shape[2:])
    grid = (2 * at / (sizes - 1).reshape(3, 1, 1, 1) - 1).flip(1).movedim(1, -1)
    moved = torch.nn.functional.grid_sample(one_hot(labels[:, 1], 4), grid, padding_mode="border", align_corners=True)
    fixed = one_hot(labels[:, 0], 4)
    dice = 2 * (fixed * moved).flatten(2).sum(2) / (fixed + moved).flatten(2).sum(2)
    expected = 1 - dice[0, 1:].mean() + 0.7 * roughness(velocity)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, velocity)[0] for v in (loss, expected)), atol=1e-6, rtol=1e-3)


def test_labels_are_learned_at_one_of_eight_voxels() -> None:
    """Whichever: on the whole it is the loss of all of them."""
    torch.manual_seed(0)
    head = torch.nn.ConvTranspose3d(4, 3, 2, 2)
    labels = torch.randint(3, (1, 2, 8, 8, 8), dtype=torch.uint8)
    pred = torch.randn(1, 3 + 8, 4, 4, 4)
    overlap = LabelOverlapLoss(3)
    alone = AlignmentLoss(overlap, head)
    assert torch.equal(alone(pred, labels), overlap(pred[:, :3], labels))
    joint = AlignmentLoss(overlap, head, segmentation=1.0)
    added = torch.stack([joint(pred, labels) - alone(pred, labels) for _ in range(60)]).detach()
    logits = head(torch.cat(pred[:, 3:].chunk(2, 1)))
    whole = joint.labels(logits, torch.cat([labels[:, :1], labels[:, 1:]])).detach()
    assert float(added.std()) > 0
    assert float(added.mean()) == pytest.approx(float(whole), rel=0.02)


# ---- pairs

TABLE = LabelTable((0, 2, 41, 500), (0, 1, 1, 2), (0, 2, 41, 0), {0: "background", 2: "left brain", 41: "right brain"})
NONE = ("rotation", "scaling", "shearing", "shift", "warp", "flip", "stripped", "cut")
STILL: dict[str, Any] = dict.fromkeys(NONE, 0.0)


def subject(shift: int = 0) -> LabelledHead:
    """A head with a brain of two halves, and something brighter on its left, `shift` voxels further to the right."""
    labels = torch.zeros(60, 64, 60, dtype=torch.uint8)
    labels[8 + shift : 48 + shift, 8:56, 8:52] = 3
    labels[14 + shift : 28 + shift, 14:50, 14:46] = 1
    labels[28 + shift : 42 + shift, 14:44, 14:46] = 2
    channels = torch.tensor([TABLE.channels.index(t) for t in TABLE.targets])
    return LabelledHead(labels, torch.ones(3), centres(channels[labels.long()], len(TABLE.channels)))


def pairs(**ranges: Any) -> PairSynthesis:
    drawn = Synthesis(TABLE, (32, 32, 32), 2.0, Ranges(**(STILL | ranges)), outside=(0, 500))
    return PairSynthesis(drawn, Ranges(rotation=0.0, scaling=0.0, shearing=0.0, shift=0.0), same=0.0)


def test_affine_maps_between_structures() -> None:
    points = torch.randn(9, 3)
    linear, offset = torch.eye(3) + 0.2 * torch.randn(3, 3), torch.randn(3)
    there = points @ linear.T + offset
    there[4] = torch.nan
    found = fitted(points, there)
    torch.testing.assert_close(found[0], linear, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], offset, atol=1e-4, rtol=1e-4)


def test_the_moving_head_is_brought_to_the_fixed_one() -> None:
    """But for what is drawn; the same seed draws the same."""
    one, other = subject(), subject(shift=7)
    images, labels = pairs()(one, other, seed=3)
    assert images.shape == labels.shape == (2, 32, 32, 32)
    assert set(labels.unique().tolist()) == {0, 1, 2}
    assert float((labels[0] == labels[1]).float().mean()) > 0.995
    assert not torch.equal(*images)
    again = pairs()(one, other, seed=3)
    assert torch.equal(again[0], images)
    moved = pairs(warp=8.0, rotation=10.0)(one, other, seed=3)[1]
    assert 0.5 < float((moved[0] == moved[1]).float().mean()) < 0.995


def test_mirrored_heads_exchange_left_and_right() -> None:
    one = subject()
    plain, turned = (pairs(flip=flip)(one, one, seed=5)[1][0] for flip in (0.0, 1.0))
    left, right = plain == 1, plain == 2
    assert int(left.sum()) > int(right.sum()) > 0
    assert int((turned == 2).sum()) == pytest.approx(int(left.sum()), rel=0.15)
    assert float((turned == 1).nonzero()[:, 0].float().mean()) < float((turned == 2).nonzero()[:, 0].float().mean())


def test_stretching_is_trilinear() -> None:
    field = torch.randn(3, 4, 5, 6)
    expected = torch.nn.functional.interpolate(field[None], (9, 11, 8), mode="trilinear", align_corners=True)[0]
    torch.testing.assert_close(stretched(field, (9, 11, 8)), expected)


def test_pairs_are_of_two_people() -> None:
    heads = [subject(), subject(shift=7)]
    items = [{"labels": MetaTensor(s.labels[None]), CENTRES: s.centres} for s in heads]
    draw = DrawPaird("labels", pairs(), items)
    draw.set_random_state(seed=0)
    out = draw(items[0])
    assert out["image"].shape == out["label"].shape == (2, 32, 32, 32)
    assert float(out["image"].affine[0, 0]) == 2.0


def test_moved_labels_are_what_validates() -> None:
    labels = torch.zeros(2, 16, 16, 16, dtype=torch.uint8)
    labels[0, 4:8, 4:8, 4:8] = 1
    labels[1, 6:10, 4:8, 4:8] = 1  # a step of the lattice further on
    velocity = torch.zeros(3, 8, 8, 8)
    velocity[0] = 1.0
    out = MovedLabelsd("pred", "label", classes=2)({"pred": velocity, "label": labels})
    assert out["pred"].shape == (2, 16, 16, 16)
    assert torch.equal(out["pred"][1, :12], out["label"][1, :12])


# ---- training


def test_a_part_of_a_network_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Sequential(torch.nn.Linear(3, 4))})
    before = network["a"].weight.clone()
    other = torch.nn.Sequential(torch.nn.Linear(3, 4))
    torch.save(other.state_dict(), tmp_path / "w.pt")
    initialise_from(network, tmp_path / "w.pt")
    assert torch.equal(network["b"][0].weight, other[0].weight)
    assert torch.equal(network["a"].weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["train", "train,joint"])
def test_training(tmp_path: Path, config: str) -> None:
    """A few steps, stopped and gone on with; the result is a bundle with weights."""
    data = bundled.write_sources(tmp_path / "data")
    maps = [{"labels": f"map_{n}.nii.gz"} for n in range(2)]
    (data / "maps.json").write_text(json.dumps({"training": maps[:1], "validation": maps[1:]}))
    small = SMALL | {"classes": 3, "epoch_length": 2}
    common = ["train", "register", "--bundle", str(ROOT), "--trust", "--config", config,
              "--data", str(data / "maps.json"), "-o", str(tmp_path / "new"), *bundled.as_sets(small)]  # fmt: skip
    for steps in ("2", "4"):
        done = run_medkit([*common, "--steps", steps])
        assert done.returncode == 0, done.stderr
    weights = torch.load(tmp_path / "new" / "models" / "model.pt", weights_only=True)
    assert all(np.isfinite(value.float().numpy()).all() for value in weights.values())
    assert "Dice" in (tmp_path / "new" / "docs" / "README.md").read_text()
