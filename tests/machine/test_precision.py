"""Networks that compute in bfloat16: the gradients of every convolution are those of float32, rounded."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from medkit.machine.precision import prepare

M_PERTURB = -6
"""The option of glibc's mallopt that fills new memory with a byte (malloc.h)."""


@pytest.fixture(params=[1, 3, 128])
def filled_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill all new memory with a byte, so that what reads memory nobody has written differs from zero."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        pytest.skip("mallopt is glibc's")
    set_option(M_PERTURB, request.param)
    yield
    set_option(M_PERTURB, 0)


def gradients(layer: nn.Module, image: torch.Tensor, precision: str) -> list[torch.Tensor]:
    """Return the gradients of a layer's parameters and of its input, for a loss that weighs all voxels alike."""
    for parameter in layer.parameters():
        parameter.grad = None
    prepare(layer, precision)
    image = image.clone().requires_grad_()
    layer(image).float().sum().backward()
    return [parameter.grad.float() for parameter in layer.parameters() if parameter.grad is not None] + [image.grad]


@pytest.mark.usefixtures("filled_memory")
@pytest.mark.parametrize(
    ("layer", "sides"),
    [
        (lambda: nn.Conv3d(16, 32, 3, padding=1), (2, 2, 2)),
        (lambda: nn.Conv3d(16, 32, 3, padding=1), (2, 9, 6)),
        (lambda: nn.Conv3d(16, 32, 3, padding=1, stride=2), (1, 1, 1)),
        (lambda: nn.Conv3d(16, 32, 5, padding=2), (4, 4, 4)),
        (lambda: nn.Conv3d(1, 16, 1, stride=2), (1, 1, 1)),
        (lambda: nn.Conv2d(16, 32, 3, padding=1, stride=2), (1, 1)),
        (lambda: nn.Conv2d(16, 32, 5, padding=2), (1, 1)),
        (lambda: nn.ConvTranspose3d(16, 32, 3, padding=1), (2, 2, 2)),
        (lambda: nn.ConvTranspose3d(16, 32, 3, padding=1, stride=2), (1, 1, 1)),
        (lambda: nn.ConvTranspose3d(16, 32, 4, padding=1, stride=1), (4, 4, 4)),
        (lambda: nn.ConvTranspose2d(16, 32, 5, padding=2, stride=2), (1, 1)),
        (lambda: nn.Conv3d(16, 32, 3, padding=1), (8, 8, 8)),
    ],
)
def test_gradients_in_bf16_are_those_of_float32(layer: type[nn.Module], sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = layer()
    image = torch.randn(2, 16 if plain.in_channels == 16 else 1, *sides)
    wanted = gradients(plain, image, "float32")
    found = gradients(plain, image, "bf16")
    assert len(found) == 3
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))
