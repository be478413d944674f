"""Private attributes that stay if the user wants them: numbers of the acquisition, by maker.

They are the diffusion and scaling values of PS3.15 table E.3.10-1 and of the makers' conformance statements. Of
Siemens' own header, which also holds the protocol and with it names, the numbers that place slices are written anew.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from typing import Any

_SAFE = {
    "SIEMENS MR HEADER": (0x0019, "0A 0B 0C 0D 0E 18 27 28 29"),  # mosaic, b value, gradient, bandwidth, slice times
    "GEMS_ACQU_01": (0x0019, "23 24 27 9E A0 BB BC BD D9 DF E0"),  # table and rotation speed, gradients
    "GEMS_PARM_01": (0x0043, "27 39 6F 79"),  # scan pitch, b value, gradients
    "Philips Imaging DD 001": (0x2001, "03 04 18 51"),  # b value, direction, slices
    "Philips MR Imaging DD 001": (0x2005, "0D 0E B0 B1 B2"),  # scaling, directions
    "Philips MR Imaging DD 005": (0x2005, "09 0A 12 13"),  # scaling, numbers of b value and gradient
    "Philips PET Private Group": (0x7053, "00 09"),  # SUV and activity per count
    "GEMS_PETD_01": (0x0009, "38 3C 42 47"),  # activities of tracer and sources
}
"""Creator -> group, and elements in its block."""
_CODES = frozenset({"DIRECTIONAL", "ISOTROPIC", "NONE", "BMATRIX", "I", "P", "S", "M", "R", "O", "A"})
"""Words that stay among these attributes, which otherwise are numbers."""
CSA = "SIEMENS CSA HEADER"
_CSA_IMAGE = 0x10
_CSA_ENTRIES = """
B_matrix B_value BandwidthPerPixelPhaseEncode DiffusionGradientDirection EchoColumnPosition EchoLinePosition
EchoPartitionPosition MosaicRefAcqTimes NumberOfImagesInMosaic PhaseEncodingDirectionPositive ProtocolSliceNumber
RealDwellTime SliceMeasurementDuration SliceNormalVector TimeAfterStart
"""
_CSA_SAFE = frozenset(_CSA_ENTRIES.split())
"""Entries of Siemens' header that stay; all are numbers."""
_NUMBERS = ("FL", "FD", "DS", "SS", "US", "SL", "UL", "IS")


def take_safe(dataset: Any) -> list[tuple[Any, Any]]:
    """Return the safe private attributes of one data set, each with its creator's; sequences below are not entered."""
    found = []
    tags = tuple(dataset.keys())
    for tag in [t for t in tags if t.is_private and not t.is_private_creator and t.element > 0xFF]:
        creator = dataset.get((tag.group, tag.element >> 8))
        name = str(creator.value).strip() if creator is not None else ""
        element = dataset[tag]
        if name == CSA and tag.group == 0x0029 and tag.element & 0xFF == _CSA_IMAGE:
            content = _numbers_of_csa(dataset)
            if content:
                element.value = content
                found.append((creator, element))
        elif name in _SAFE and _listed(name, tag) and _is_number(element):
            found.append((creator, element))
    return found


def _listed(name: str, tag: Any) -> bool:
    group, elements = _SAFE[name]
    return bool(tag.group == group and f"{tag.element & 0xFF:02X}" in elements.split())


def _is_number(element: Any) -> bool:
    """Whether a value is made of numbers, or of the few words that stand among them; bytes of unknown type are not."""
    if element.VR in ("FL", "FD", "SS", "US", "SL", "UL"):
        return True
    values = (
        element.value if hasattr(element.value, "__iter__") and not isinstance(element.value, str) else [element.value]
    )
    if isinstance(element.value, bytes):
        try:
            values = element.value.decode("ascii").strip("\0 ").split("\\")
        except UnicodeDecodeError:
            return False
    return all(_is_plain(str(value).strip()) for value in values)


def _is_plain(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return text in _CODES
    return True


def _numbers_of_csa(dataset: Any) -> bytes:
    """Return Siemens' header of an image with its safe entries only; empty if it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel says of these readers that they know Siemens' files only
        from nibabel.nicom.csareader import CSAReadError, get_csa_header

    try:
        header = get_csa_header(dataset, "image")
    except CSAReadError:
        return b""
    tags = {} if header is None else header["tags"]
    kept = {name: tag for name, tag in tags.items() if name in _CSA_SAFE and tag["vr"] in _NUMBERS and tag["items"]}
    return b"".join(_csa2(kept)) if kept else b""


def _csa2(tags: dict[str, Any]) -> Iterator[bytes]:
    """Yield the parts of a header of Siemens' second form, as nibabel's and dcm2niix's readers take it."""
    yield b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, tag in tags.items():
        items = [f"{value:.8f}" if isinstance(value, float) else str(value) for value in tag["items"]]
        yield struct.pack("<64si4s3i", name.encode(), tag["vm"], tag["vr"].encode(), tag["syngodt"], len(items), 77)
        for item in items:
            content = item.encode() + b"\0"
            yield struct.pack("<4i", len(content), len(content), 77, len(content))
            yield content + bytes(-len(content) % 4)
