"""Whether an image is like those of the training: odds, size, the reason in words, and the intended use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from medkit_classify.activations import QUANTILES, image_statistics
from medkit_classify.calibration import Calibration, FeatureDistance, OddsLimit
from medkit_classify.intended_use import IntendedUse
from medkit_classify.shifts import mildly_changed, strongly_changed

from medkit.bundles.bundle import Bundle
from medkit.errors import BundleError

RNG = np.random.default_rng


def test_weights_tell_what_no_gaussian_does() -> None:
    """Features whose sum is larger, each well within its own spread."""
    like = RNG(0).normal(0, 0.3, (400, 20))
    unlike = RNG(1).normal(0, 0.3, (400, 20)) + 0.3
    plain = FeatureDistance.fitted(like)
    weighed = plain.with_weights(like, unlike)
    fresh = RNG(2).normal(0, 0.3, (300, 20))
    limit = np.quantile(weighed.odds(fresh), 0.95)
    other = RNG(3).normal(0, 0.3, (300, 20)) + 0.3
    assert (weighed.odds(other) > limit).mean() > 0.95
    assert (plain.distances(other) > np.quantile(plain.distances(fresh), 0.95)).mean() < 0.8


def test_the_file_keeps_the_weights(tmp_path: Path) -> None:
    import torch

    like = RNG(0).normal(0, 0.3, (60, 5))
    for found in (FeatureDistance.fitted(like), FeatureDistance.fitted(like).with_weights(like, like + 1)):
        torch.save(found.state(), tmp_path / "c.pt")
        read = FeatureDistance.read(tmp_path / "c.pt")
        assert (read.weights is None) == (found.weights is None)
        if found.weights is not None:
            np.testing.assert_allclose(read.odds(like), found.odds(like), atol=1e-3)


def test_the_limit_is_lower_for_images_of_another_size() -> None:
    limit = OddsLimit(same_size=2.0, other_size=-1.0, spread=2.0)
    assert limit.distance(2.0, other_size=False) == 1
    assert limit.distance(4.0, other_size=False) == 2
    assert limit.distance(-1.0, other_size=True) == 1
    assert limit.distance(1.0, other_size=True) == 2
    sized = Calibration(sides=(20, 30))
    assert [sized.size_in_words(n) for n in (5, 10, 30, 60, 61)] == ["smaller", "", "", "", "larger"]
    assert Calibration().size_in_words(500) == ""
    assert sized.size_in_words(None) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x, ""),
        (lambda x: x + 0.05 * RNG(5).normal(size=x.shape), "sharper"),
        (lambda x: 0.1 * x + 0.8, "smoother, brighter and of less contrast"),
    ],
)
def test_the_reason_is_said_in_words(change: object, words: str) -> None:
    import torch

    rows, columns = np.indices((28, 28)) / 28
    phases = RNG(0).uniform(0, 6, (200, 2))
    images = np.array([0.5 + 0.3 * np.sin(5 * rows + a) * np.cos(4 * columns + b) for a, b in phases])
    images += RNG(1).normal(0, 0.02, images.shape)
    features = image_statistics(torch.from_numpy(images)[:, None]).numpy()
    calibration = Calibration(sides=(28, 28))
    calibration.__dict__["feature_distance"] = FeatureDistance.fitted(features)
    scores = calibration.feature_distance.scores(features)  # type: ignore[union-attr]
    average = int(np.abs(scores).max(1).argmin())
    one = change(images[average])  # type: ignore[operator]
    statistics = image_statistics(torch.from_numpy(one)[None, None]).numpy()[0]
    assert calibration.difference_in_words(statistics, 28) == words
    larger = calibration.difference_in_words(statistics, 900)
    assert larger.startswith("larger")
    assert len(QUANTILES) + 2 < len(statistics)


def test_changed_images_stay_in_the_range_of_the_network() -> None:
    rows = np.indices((28, 28))[1] / 27.0
    images = np.stack([rows] * 10)
    for changed in (mildly_changed(images, RNG(0)), strongly_changed(images, RNG(0))):
        assert changed.shape == images.shape
        assert 0 <= changed.min() <= changed.max() <= 1
    assert np.abs(mildly_changed(images, RNG(0)) - images).mean() < 0.1
    inverted, turned, upside_down = strongly_changed(images, RNG(0))[:3]
    np.testing.assert_allclose(inverted, 1 - rows, atol=0.02)
    np.testing.assert_allclose(turned.mean(1), np.linspace(0, 1, 28) if turned[-1].mean() > 0.5 else
                               np.linspace(1, 0, 28), atol=0.03)  # fmt: skip
    np.testing.assert_allclose(upside_down, 1 - rows, atol=0.02)


def bundle(folder: Path, use: object) -> Bundle:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"medkit": {"use": use}}))
    return Bundle(folder, "b", "classify")


USE = {"for": "frontal X-rays of children", "age": [1, 5], "projections": ["AP", "PA"], "tested": "28 x 28 pixels"}


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({}, ""),
        ({"PatientAge": "005Y"}, ""),
        ({"PatientAge": "034Y"}, "the person is older than those of the training, 1 to 5 years"),
        ({"PatientAge": "003M"}, "the person is younger than those of the training, 1 to 5 years"),
        (
            {"age": 40, "view": "L"},
            "the person is older than those of the training, 1 to 5 years; the projection is L, expected AP or PA",
        ),
        ({"ViewPosition": "pa"}, ""),
        ({"PatientAge": "unknown"}, ""),
    ],
)
def test_what_a_sidecar_states_is_compared_with_the_intended_use(tmp_path: Path, stated: object, words: str) -> None:
    use = IntendedUse.of(bundle(tmp_path / "b", USE))
    (tmp_path / "x.json").write_text(json.dumps(stated))
    assert use.misfit(tmp_path / "x.png") == words
    assert use.in_words() == "for frontal X-rays of children; tested on 28 x 28 pixels"


def test_a_dicom_header_is_compared_too(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    header.PatientAge, header.ViewPosition = "061Y", "PA"
    header.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    use = IntendedUse.of(bundle(tmp_path / "b", USE))
    assert use.misfit(tmp_path / "x.dcm") == "the person is older than those of the training, 1 to 5 years"


def test_a_bundle_that_states_no_use_and_one_that_states_it_wrongly(tmp_path: Path) -> None:
    none = IntendedUse.of(bundle(tmp_path / "a", None))
    assert (none.in_words(), none.misfit(tmp_path / "x.png")) == ("", "")
    with pytest.raises(BundleError, match=r"expected medkit\.use"):
        IntendedUse.of(bundle(tmp_path / "b", {"age": 5}))
