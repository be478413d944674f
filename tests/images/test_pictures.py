"""Grey pictures as images of one plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as all its users call it
from PIL import Image as Pillow

from medkit.errors import InputError, OutputError
from medkit.images.image import Image, read_grid, read_image
from medkit.run.outputs import Output
from medkit.space import Grid

PIXELS = np.random.default_rng(0).integers(0, 250, (40, 70)).astype(np.uint8)


def saved(path: Path, pixels: np.ndarray = PIXELS, **settings: object) -> Path:
    Pillow.fromarray(pixels).save(path, **settings)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_png_lies_where_itk_puts_it(kind: type, tmp_path: Path) -> None:
    pixels = PIXELS.astype(kind) * (200 if kind is np.uint16 else 1)
    path = saved(tmp_path / "a.png", pixels, dpi=(254, 127))
    image, theirs = read_image(path), sitk.ReadImage(str(path))
    assert (image.data.shape, image.data.dtype, image.grid.dims) == ((1, 70, 40, 1), kind, 2)
    np.testing.assert_array_equal(image.data[0, ..., 0], sitk.GetArrayFromImage(theirs).T)
    assert theirs.GetDirection() == (1, 0, 0, 1)  # in its frame, LPS; itk does not read how large pixels are
    np.testing.assert_allclose(image.grid.affine[:2], [[-0.1, 0, 0, 0], [0, -0.2, 0, 0]], atol=1e-4)
    assert read_grid(path).digest() == image.grid.digest()
    assert not [w for w in image.warnings if "pixels" in w]


@pytest.mark.parametrize("name", ["b.png", "b.PNG", "b.jpg", "b.jpeg"])
def test_written_and_read_again(name: str, tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.png", dpi=(254, 127)))
    image.write(tmp_path / name)
    again = read_image(tmp_path / name)
    close = 0 if name.lower().endswith("png") else 12  # JPEG of noise
    assert np.abs(again.data.astype(int) - image.data).mean() <= close
    np.testing.assert_allclose(again.grid.affine, image.grid.affine, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"dpi": (72, 72)}, {"dpi": (96, 96)}])
def test_the_resolution_of_a_screen_is_no_spacing(settings: dict, tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.png", **settings))
    np.testing.assert_array_equal(image.grid.spacing, 1)
    assert any("1 mm" in warning for warning in image.warnings)


def test_grey_in_colours_is_grey(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.repeat(PIXELS[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_image(path).data[0, ..., 0].T, PIXELS)


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be shown a quarter to the right
    path = saved(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(path).data[0, ..., 0].T, np.rot90(PIXELS, -1))


def colours(path: Path) -> None:
    saved(path, np.stack([PIXELS, PIXELS, PIXELS[::-1]], 2))


def see_through(path: Path) -> None:
    saved(path, np.stack([PIXELS, PIXELS], 2))


def torn(path: Path) -> None:
    whole = saved(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (colours, "got colours"),
        (see_through, "transparent"),
        (torn, "expected a PNG or JPEG"),
        (lambda path: path.write_text("hello"), "expected a PNG or JPEG"),
        (lambda path: saved(path, np.zeros_like(PIXELS)), "in every voxel"),
    ],
)
def test_refused(make: object, words: str, tmp_path: Path) -> None:
    make(tmp_path / "a.png")  # type: ignore[operator]
    with pytest.raises(InputError, match=words) as error:
        read_image(tmp_path / "a.png")
    assert "a.png" in str(error.value)


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (np.zeros((1, 4, 5, 2), np.uint8), "x.png", "one plane"),
        (np.zeros((1, 4, 5, 1), np.float32), "x.png", "float32"),
        (np.zeros((1, 4, 5, 1), np.uint16), "x.jpg", "uint16"),
    ],
)
def test_what_no_picture_holds(data: np.ndarray, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=words):
        Image(data, Grid(data.shape[1:], np.eye(4), 2)).write(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_slice_is_shown_the_way_it_is_read(tmp_path: Path) -> None:
    """Voxels of a RAS grid: the patient's right comes to the left of the picture, the front to its top."""
    data = np.zeros((1, 8, 6, 1), np.uint8)
    data[0, 7, 5] = 200  # right, front
    Image(data, Grid((8, 6, 1), np.eye(4), 2)).write(tmp_path / "x.png")
    assert np.argwhere(np.asarray(Pillow.open(tmp_path / "x.png"))).tolist() == [[0, 0]]


def test_names_of_results(tmp_path: Path) -> None:
    output = Output("image", "image", "enhanced", as_picture=True)
    assert [output.name(Path(n)) for n in ("a.JPG", "a.nii.gz", "sub-1_T1w.png")] == [
        "a_enhanced.png", "a_enhanced.nii.gz", "sub-1_desc-enhanced_T1w.png",
    ]  # fmt: skip
    assert Output("image", "image", "enhanced").name(Path("a.png")) == "a_enhanced.nii.gz"
