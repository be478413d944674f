"""How often text in pixels is found, and how often it is seen where there is none.

    python tests/benchmarks/burnt_in_text.py

One line of made-up text is drawn at the upper or lower edge of axial slices of real scans, at full or 70 %
of the brightness of the slice, with and without smooth edges. Both ways of looking are measured: that for pictures, and
that for slices, in which text is not likely.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from places import SHARED

from medkit.privacy.text_in_pixels import find_text

FOLDERS = ("chest_ct", "brain_heads", "lung_ct", "brain_multi", "ms_longitudinal", "abdomen_ct", "spine", "infants")
NO_SCANS = ("mask", "label", "seg", "dseg", "lm-")
TEXTS = ("MUELLER^ANNA", "Anna Mueller 12.03.1970", "ID: 4711-0815", "St. Mary Hospital", "2019-04-01 13:22")
SIZES = (8, 10, 12, 16, 24, 36)
SLICES, DRAWN = 4000, 1200


def slices() -> list[np.ndarray]:
    """Axial slices (rows, columns) of the scans, in random order."""
    found = []
    for folder in FOLDERS:
        paths = sorted((SHARED / "data" / folder).rglob("*.nii.gz"))
        for path in [p for p in paths if not any(word in p.name.lower() for word in NO_SCANS)][:20]:
            voxels = np.squeeze(np.asarray(nib.load(path).dataobj))
            if voxels.ndim == 3 and min(voxels.shape[:2]) >= 64:
                found += [np.nan_to_num(np.rot90(voxels[:, :, k])).astype(np.float32) for k in range(voxels.shape[2])]
    random.Random(0).shuffle(found)
    return [plane for plane in found if plane.max() > plane.min()][:SLICES]


def drawn(planes: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray, tuple[int, int]]]:
    """Size of the letters, a slice with a line of text, and row and column of its middle."""
    rng = random.Random(1)
    for _ in range(DRAWN):
        plane, size, text = rng.choice(planes), rng.choice(SIZES), rng.choice(TEXTS)
        picture = Image.new("L", (plane.shape[1], plane.shape[0]))
        draw = ImageDraw.Draw(picture)
        draw.fontmode = rng.choice("1L")
        font = ImageFont.load_default(size)
        width = draw.textlength(text, font=font)
        if min(plane.shape) < 150 or width > plane.shape[1] - 6:
            continue
        left, top = rng.randint(2, int(plane.shape[1] - width - 3)), rng.choice((3, plane.shape[0] - size - 6))
        draw.text((left, top), text, fill=255, font=font)
        ink = np.asarray(picture) / 255
        level = plane.min() + rng.choice((0.7, 1.0)) * np.ptp(plane)
        yield size, plane * (1 - ink) + level * ink, (top + size // 2, int(left + width / 2))


def main() -> None:
    planes = slices()
    for likely, name in ((True, "pictures"), (False, "slices of CT, MR, PET")):
        false = sum(bool(find_text(plane, is_likely=likely)) for plane in planes)
        print(f"{name}: called text where there is none: {false} of {len(planes)}")
        total, missed = Counter[int](), Counter[int]()
        for size, plane, (row, column) in drawn(planes):
            total[size] += 1
            boxes = find_text(plane, is_likely=likely)
            missed[size] += not any(a <= row < b and c <= column < d for a, b, c, d in boxes)
        for size in SIZES:
            print(f"  letters of {size} pixels: missed {missed[size]} of {total[size]}")
        large = [size for size in SIZES if size > 8]
        print(f"  of 10 and more: {sum(missed[s] for s in large)} of {sum(total[s] for s in large)}")


if __name__ == "__main__":
    main()
