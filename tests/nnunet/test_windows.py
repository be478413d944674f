"""nnU-Net's windows: where they lie, what they weigh, mirrored views, and logits too large for half precision."""

from __future__ import annotations

import pytest
import torch

from medkit.nnunet import FoldEnsemble, NnunetInferer
from medkit.nnunet.windows import gaussian_weights, window_starts


def test_windows_are_evenly_spaced() -> None:
    assert window_starts(110, 64, 0.5) == [0, 23, 46]  # the example in nnU-Net's source
    assert window_starts(64, 64, 0.5) == [0]
    assert window_starts(65, 64, 0.5) == [0, 1]


def test_weights_are_largest_in_the_middle_and_never_zero() -> None:
    weights = gaussian_weights((64, 64, 64))
    assert weights.dtype == torch.float16
    assert float(weights[32, 32, 32]) == 10
    assert float(weights.min()) > 0


class Scaled(torch.nn.Module):
    """A network that returns its image and its negative, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat((image, -image), 1) * self.factor


@pytest.mark.parametrize("size", [(20, 9, 12), (6, 5, 7)])
def test_the_answer_lies_where_the_image_does(size: tuple[int, ...]) -> None:
    image = torch.rand(1, 1, *size)
    network = FoldEnsemble([Scaled(1.0), Scaled(3.0)])
    found = NnunetInferer((8, 8, 8), mirror_axes=(0, 2))(image, network)
    assert found.dtype == torch.float16
    expected = torch.cat((image, -image), 1) * 2
    assert found.shape == expected.shape
    # at the corners weights are so small that half precision rounds what they multiply
    inner = (..., *[slice(1, -1)] * 3)
    torch.testing.assert_close(found.float()[inner], expected[inner], atol=5e-3, rtol=5e-3)


def test_it_works_in_bfloat16() -> None:
    images = torch.rand(2, 1, 12, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = NnunetInferer((8, 8, 8))(images, torch.nn.Conv3d(1, 2, 3, padding=1))
    assert found.shape == (2, 2, 12, 9, 8)
    assert found.isfinite().all()


def test_slices_are_those_of_the_first_axis() -> None:
    image = torch.arange(3.0)[None, None, :, None, None].expand(1, 1, 3, 6, 9).contiguous()
    found = NnunetInferer((4, 4), mirror_axes=(0, 1))(image, Scaled(1.0))
    torch.testing.assert_close(found[0, 0].float(), image[0, 0], atol=5e-3, rtol=5e-3)


def test_logits_too_large_for_half_precision() -> None:
    image = torch.rand(1, 1, 8, 8, 8) + 1
    found = NnunetInferer((8, 8, 8))(image, Scaled(1e5))
    torch.testing.assert_close(found[0, 0], image[0, 0] * 1e5)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="values that are not finite"):
        NnunetInferer((8, 8, 8))(torch.rand(1, 1, 8, 8, 8), Scaled(float("nan")))
