"""Names of files and folders without people: what is not a word of imaging or a small number becomes a pseudonym."""

from __future__ import annotations

import re
from pathlib import Path

from medkit.pipe.names import stem, suffix_of
from medkit.privacy.pseudonyms import Pseudonyms, is_pseudonym
from medkit.privacy.vocabulary import is_harmless

_TOKEN = re.compile(r"[^\W_]+(?:\.\d+)?", re.UNICODE)
_SUBJECT = re.compile(r"(?:^|(?<=[_/]))sub-([A-Za-z0-9+]+)")
"""A BIDS subject, whose label always stands for a person."""
_OWN_ENDINGS = {".nhdr": ".nrrd", ".mhd": ".mha"}
"""Endings of headers whose voxels are in another file -> that of header and voxels in one."""


GRADIENTS = (".bval", ".bvec")
"""Endings of FSL's files of b values and directions, next to the image of the same name."""


def harmless_path(path: Path, pseudonyms: Pseudonyms) -> Path:
    """Return a relative path whose folders and file name nobody; the ending stays.

    The same words become the same pseudonym everywhere, so that the files of one person stay together.
    """
    name, suffix = _divided(path)
    name = harmless_name(name, pseudonyms) + _OWN_ENDINGS.get(suffix, suffix)
    return Path(*(harmless_name(part, pseudonyms) for part in path.parts[:-1]), name)


def _divided(path: Path) -> tuple[str, str]:
    """Return the name of a file without its ending, and the ending."""
    if path.suffix.lower() in GRADIENTS:
        return path.stem, path.suffix.lower()
    return stem(path), suffix_of(path).lower()


def harmless_name(name: str, pseudonyms: Pseudonyms) -> str:
    """Return one name without its ending in which each run of telling words is a pseudonym."""
    out, last = "", 0
    for start, end in _telling(name):
        out += name[last:start] + pseudonyms.person(name[start:end])
        last = end
    return out + name[last:]


def identity_in(path: Path) -> str:
    """Return the words of a relative path that stand for a person: the subject, or the last telling ones; or nothing.

    >>> identity_in(Path("sub-07/anat/sub-07_T1w.nii.gz")), identity_in(Path("Anna_Miller_T1.nii.gz"))
    ('07', 'Anna_Miller')
    """
    subject = _SUBJECT.search(path.as_posix())
    if subject:
        return subject[1]
    for part in (_divided(path)[0], *reversed(path.parts[:-1])):
        for start, end in _telling(part):
            if re.search(r"[^\W\d_]", part[start:end]):  # a date is not a person
                return part[start:end]
    return ""


def _telling(name: str) -> list[tuple[int, int]]:
    """Where runs of words are that may tell who it is, with the numbers next to them."""
    subjects = {match.span(1) for match in _SUBJECT.finditer(name)}
    tokens = [match.span() for match in _TOKEN.finditer(name)]
    telling = [_is_telling(name[slice(*span)]) for span in tokens]
    for order in (range(1, len(tokens)), range(len(tokens) - 2, -1, -1)):
        step = -1 if order.step > 0 else 1
        for n in order:
            telling[n] |= telling[n + step] and _is_number(name[slice(*tokens[n])])
    spans: list[tuple[int, int]] = []
    for n, span in enumerate(tokens):
        if span in subjects and not is_pseudonym(name[slice(*span)]):
            spans.append(span)
        elif telling[n] and n and telling[n - 1] and tokens[n - 1] not in subjects:
            spans[-1] = (spans[-1][0], span[1])
        elif telling[n] and span not in subjects:
            spans.append(span)
    return spans


def _is_telling(word: str) -> bool:
    return not is_harmless(word) and not is_pseudonym(word)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[\d.]+", text) is not None
