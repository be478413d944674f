"""Files that are damaged at random are read right or refused: no crash, no wait, nothing of another file.

`MEDKIT_DAMAGED=1200 python -m pytest -m slow tests/images/test_damaged_files.py` tries more of them.
"""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import resource
import struct
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medkit.errors import MedkitError
from medkit.images.image import read_grid, read_image

COUNT = int(os.environ.get("MEDKIT_DAMAGED", "150"))
SECONDS = 60
"""Longest time for one file, far more than any takes."""
MEMORY = 1 << 30
"""Bytes that reading may take beyond what the process has; sound files promise some kilobytes."""
DIGEST = 64
"""Characters of the digest of an image that was read."""
AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2, 0.2, -40], [0, -0.2, 3, 10], [0, 0, 0, 1]])
THEIRS = [
    "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "rtdose.dcm", "rtdose_expb.dcm",
    "JPEG2000.dcm", "JPGExtended.dcm", "MR_truncated.dcm", "liver_1frame.dcm", "image_dfl.dcm", "no_meta.dcm",
    "SC_rgb_jpeg.dcm", "ExplVR_BigEnd.dcm",
]  # fmt: skip


def niftis(folder: Path) -> Iterator[Path]:
    """Sound files: two versions, two orders of bytes, integers and floats, 2 to 5 axes."""
    random = np.random.default_rng(0)
    for shape, kind in (
        ((9, 8, 7), np.int16), ((9, 8, 7), np.float32), ((9, 8, 7, 3), np.uint8), ((9, 8), np.uint16),
        ((5, 4, 3, 1, 3), np.float32),
    ):  # fmt: skip
        voxels = random.integers(0, 200, shape).astype(kind)
        for maker, order in ((nibabel.Nifti1Image, "<"), (nibabel.Nifti1Image, ">"), (nibabel.Nifti2Image, "<")):
            header = maker.header_class(endianness=order)
            image = maker(voxels, AFFINE, header)
            path = folder / f"{len(shape)}{np.dtype(kind).name}{maker.__name__}{'lb'[order == '>']}.nii"
            image.to_filename(path)
            yield path
            if kind is np.int16:
                path.with_suffix(".nii.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
                yield path.with_suffix(".nii.gz")


def dicoms() -> Iterator[Path]:
    """Sound and odd files of pydicom, as far as they come with it."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    for name in THEIRS:
        if (folder / name).is_file():
            yield Path(str(get_testdata_file(name)))


Damage = Callable[[bytearray, np.random.Generator], bytearray]


def flipped(content: bytearray, random: np.random.Generator) -> bytearray:
    """Some bytes, most of them in the header."""
    for _ in range(int(random.integers(1, 9))):
        end = len(content) if random.random() < 0.3 else min(len(content), 2000)
        content[int(random.integers(end))] = int(random.integers(256))
    return content


def cut(content: bytearray, random: np.random.Generator) -> bytearray:
    return content[: int(random.integers(len(content)))]


def without_a_part(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(len(content)))
    return content[:start] + content[start + int(random.integers(1, 200)) :]


def huge(content: bytearray, random: np.random.Generator) -> bytearray:
    """A number of the header as large as can be, or below 0."""
    for _ in range(int(random.integers(1, 4))):
        place = 2 * int(random.integers(min(len(content), 1500) // 2 - 4))
        values = (
            ("<h", 32767), (">h", 32767), ("<H", 65535), ("<h", -1), ("<i", 2**31 - 1), ("<I", 2**32 - 1),
            ("<f", np.nan),
        )  # fmt: skip
        form, value = values[int(random.integers(len(values)))]
        struct.pack_into(form, content, place, value)
    return content


def large_tags(content: bytearray, random: np.random.Generator) -> bytearray:
    """A number of DICOM that decides on the size of the pixels, or of NIfTI's dimensions."""
    tags = (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00", b"\x28\x00\x08\x00", b"\x28\x00\x00\x01", b"\x28\x00\x02\x00")
    tag = tags[int(random.integers(len(tags)))]
    where = content.find(tag)
    place = where + 8 if where >= 0 else 42 + 2 * int(random.integers(6))
    if place + 2 < len(content):
        struct.pack_into("<H", content, place, int(random.choice([0, 1, 7, 255, 1000, 32767, 65535])))
    return content


def repeated(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(len(content)))
    return content[:start] + content[max(0, start - 300) :]


WAYS: tuple[Damage, ...] = (flipped, cut, without_a_part, huge, large_tags, repeated)


def damaged(folder: Path, count: int) -> Iterator[Path]:
    """Files that are damaged in every way; those that were compressed are damaged before or after that."""
    sound = [*niftis(folder), *dicoms()]
    for number in range(count):
        random = np.random.default_rng(number)
        source, way = sound[number % len(sound)], WAYS[number // len(sound) % len(WAYS)]
        content = source.read_bytes()
        inside = source.name.endswith(".gz") and random.random() < 0.7
        changed = bytes(way(bytearray(gzip.decompress(content) if inside else content), random))
        path = folder / f"{number:05}_{way.__name__}_{source.name}"
        path.write_bytes(gzip.compress(changed, mtime=0) if inside else changed)
        yield path


def poison(folder: Path, value: int) -> Path:
    """Another person's image, all of one value, whose memory a reader may be given again."""
    path = folder / f"poison{value}.nii"
    voxels = np.full((128, 128, 16), value, np.uint8)
    voxels[0, 0, 0] = 0
    nibabel.Nifti1Image(voxels, AFFINE).to_filename(path)
    return path


def read(path: Path, before: Path, answer: Connection) -> None:
    """In a process of its own: read an image after another one, and send a digest or what was wrong."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # the libraries for JPEG complain there
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for _ in range(3):
        read_image(before)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    found = []
    for function in (read_grid, read_image):
        try:
            made = function(path)
            content = b"" if function is read_grid else made.data.tobytes() + made.grid.affine.tobytes()
            content += made.affine.tobytes() if function is read_grid else b""
            found.append(hashlib.sha256(content).hexdigest())
        except MedkitError as error:
            found.append(str(error))
        except BaseException as error:  # everything else is a fault
            found.append(f"FAULT {type(error).__name__}: {error}")
    answer.send(found)


def outcome(path: Path, before: Path) -> list[str]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=read, args=(path, before, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            return [f"FAULT waits for more than {SECONDS} s"]
        return list(receiver.recv())
    except EOFError:
        process.join()
        return [f"FAULT died: {process.exitcode}"]
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    import itk
    import torch  # noqa: F401  loaded once, not in each of the processes

    itk.imread  # noqa: B018  itk loads its parts when they are first named
    ones, others = poison(tmp_path, 0x5A), poison(tmp_path, 0x25)
    faults, refused = {}, 0
    for path in damaged(tmp_path, COUNT):
        first = outcome(path, ones)
        is_read = len(first[-1]) == DIGEST
        second = outcome(path, others) if is_read else first
        refused += not is_read
        if first != second:
            faults[path.name] = ["not the same twice", *first, *second]
        elif wrong := [text for text in first if text.startswith("FAULT") or len(text) > 1000 or "Traceback" in text]:
            faults[path.name] = wrong
        else:
            path.unlink()
    print(f"{COUNT} damaged files, {refused} refused")
    assert not faults, "\n".join(f"{name}: {what}" for name, what in faults.items())
    assert COUNT // 4 < refused < COUNT
