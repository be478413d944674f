"""One DICOM object without what says whose it is: the profile applied to every attribute, at any depth."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from medkit.privacy.dicom_reading import STANDARD, is_compressed
from medkit.privacy.private_tags import take_safe
from medkit.privacy.profile import CODES, DEVICE, Action, Options, action_of, without_text
from medkit.privacy.pseudonyms import Pseudonyms, is_pseudonym, moved_date
from medkit.privacy.report import Changes
from medkit.privacy.vocabulary import MANUFACTURERS, harmless_text, is_harmless, may_name_someone, words_of

REMOVED = "REMOVED"
"""What stands where a text must not be empty."""
_OLDEST = 89
"""Years of age above which people are few enough to be known by it (HIPAA's safe harbor)."""
_NAMING = ("PatientID", "OtherPatientIDs", "AccessionNumber", "PatientAddress", "PatientTelephoneNumbers")
"""Attributes whose words are taken out of all other texts; the names of all people are taken out as well."""
_OF_DEVICES = (
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "CodeValue",
    "LongCodeValue",
    *DEVICE,
)
"""Attributes in which a number may look like a date and is none."""
_OF_CODES = ("CodeValue", "LongCodeValue", "URNCodeValue", "CodeMeaning")
_DUMMIES = {
    "AS": "000Y", "DA": "19000101", "DT": "19000101", "TM": "000000", "DS": "0", "IS": "0", "UR": "http://removed.invalid",
    "OB": b"\0\0", "OW": b"\0\0", "UN": b"\0\0",
}  # fmt: skip


@dataclass
class CleanObject:
    """A DICOM object after its treatment."""

    dataset: Any
    """The pydicom data set, changed in place."""
    identity: str
    """What tells this person from others, before; only for the user's own table."""
    person: str
    """The pseudonym."""
    days: int
    """By how many days dates were moved."""
    changes: Changes
    sop_uid: str
    """The UID of the object, before."""


def clean_object(dataset: Any, pseudonyms: Pseudonyms, options: Options) -> CleanObject:
    """Take out of a data set what says whose it is, in place."""
    identity = identity_of(dataset)
    cleaner = _Cleaner(pseudonyms, options, identity, names_in(dataset), _was_treated(dataset))
    uid = str(dataset.SOPInstanceUID)
    is_report = "ContentSequence" in dataset
    _mask_unused_bits(dataset, cleaner.changes)
    cleaner.treat(dataset)
    dataset.PatientID = dataset.PatientName = cleaner.person
    _state_it(dataset, options, is_report=is_report)
    _renew_meta(dataset, cleaner.changes)
    return CleanObject(dataset, identity, cleaner.person, cleaner.days, cleaner.changes, uid)


def identity_of(dataset: Any) -> str:
    """Return what tells persons apart: the patient ID, else name and birth date, else the study."""
    number = str(dataset.get("PatientID") or "").strip()
    if number:
        return number
    name = f"{dataset.get('PatientName') or ''} {dataset.get('PatientBirthDate') or ''}".strip()
    return name or str(dataset.get("StudyInstanceUID") or dataset.SOPInstanceUID)


def names_in(dataset: Any) -> frozenset[str]:
    """Return the words by which texts of this object could name the people in it, in lower case."""
    words: set[str] = set()
    for element in dataset.iterall():
        if element.VR == "PN" or element.keyword in _NAMING:
            for value in _values(element):
                words |= words_of(str(value)) if not is_pseudonym(str(value)) else set()
    return frozenset(words - {REMOVED.casefold()})


def _was_treated(dataset: Any) -> bool:
    return dataset.get("PatientIdentityRemoved") == "YES"


_ENUMERATED = ("ValueType", "RelationshipType", "Modality", "PhotometricInterpretation")
"""Attributes whose words are those of the standard, whoever is called so."""


def _values(element: Any) -> list[Any]:
    value = element.value
    if value is None or value == "" or value == b"":
        return []
    return list(value) if element.VM > 1 else [value]


@dataclass
class _Cleaner:
    """The treatment of one object."""

    pseudonyms: Pseudonyms
    options: Options
    identity: str
    names: frozenset[str]
    treated: bool
    """Whether the object says that it was treated before: then UIDs and dates are not those of the clinic."""
    changes: Changes = field(default_factory=Changes)

    def __post_init__(self) -> None:
        self.person = self.pseudonyms.person(self.identity)
        self.days = self.pseudonyms.shift(self.identity)
        self.rare_names = frozenset(name for name in self.names if not is_harmless(name))
        """Those that are not words of imaging too: `Head` as a name does not make all heads suspicious."""

    def treat(self, dataset: Any) -> None:
        """Apply the profile to a data set and to the items of its sequences."""
        self._treat_private(dataset)
        for tag in [tag for tag in tuple(dataset.keys()) if not tag.is_private]:
            element = dataset[tag]
            self._apply(dataset, element, action_of(int(tag), element.VR, self.options))

    def _treat_private(self, dataset: Any) -> None:
        private = [tag for tag in tuple(dataset.keys()) if tag.is_private]
        safe = take_safe(dataset) if self.options.safe_private and private else []
        for tag in private:
            del dataset[tag]
        for creator, element in safe:
            dataset[creator.tag] = creator
            dataset[element.tag] = element
        for _ in range(len([tag for tag in private if not tag.is_private_creator]) - len(safe)):
            self.changes.add("removed", "private attributes")

    def _apply(self, dataset: Any, element: Any, action: Action) -> None:
        name = element.keyword or "unknown attributes"
        if action == "items":
            for item in element.value or ():
                self.treat(item)
            _replace_codes(element)
        elif action == "remove":
            filled = not element.is_empty
            del dataset[element.tag]
            if filled and not _is_length(element):
                self.changes.add("removed", name)
        elif action != "keep" and not element.is_empty:
            self._change(dataset, element, action, name)

    def _change(self, dataset: Any, element: Any, action: Action, name: str) -> None:
        """Give an attribute that has a value another one."""
        old = element.value
        if action == "empty":
            element.value = [] if element.VR == "SQ" else None
            self.changes.add("emptied", name)
        elif action == "dummy":
            element.value = _DUMMIES.get(element.VR, REMOVED if _is_text(element.VR) else 0)
            self._count("replaced", name, old, element.value)
        elif action == "person":
            own = name == "PatientName" or str(old).strip() == self.identity
            element.value = self.person if own and not is_pseudonym(str(old)) else self.pseudonyms.person(str(old))
            self._count("replaced", name, str(old), element.value)
        elif action == "uid":
            element.value = _same_count([self._uid(str(uid)) for uid in _values(element)])
            self._count("replaced", "UIDs", old, element.value, identifies=not self.treated)
        elif action == "date":
            self._move(dataset, element)
        elif action == "age":
            element.value = _capped(str(old))
            self._count("replaced", name, old, element.value)
        else:
            self._clean_text(dataset, element, name, only_if_named=action == "check")

    def _count(self, what: str, name: str, old: Any, new: Any, *, identifies: bool = True) -> None:
        if old != new:
            self.changes.add(what, name, identifies=identifies)

    def _uid(self, uid: str) -> str:
        return uid if uid.startswith(STANDARD) else self.pseudonyms.uid(uid)

    def _move(self, dataset: Any, element: Any) -> None:
        """Move a date; what is not a date is emptied."""
        moved = [moved_date(str(value), self.days) for value in _values(element)]
        element.value = None if None in moved else _same_count([text for text in moved if text])
        self.changes.add("moved", "dates", identifies=not self.treated)

    def _clean_text(self, dataset: Any, element: Any, name: str, *, only_if_named: bool) -> None:
        """Keep the harmless words of a text; if none are left, do what the basic profile does."""
        texts = [str(value) for value in _values(element)]
        if only_if_named and not any(self._names_someone(dataset, name, text) for text in texts):
            return
        cleaned = [REMOVED if text == REMOVED else harmless_text(text, self.names) for text in texts]
        if cleaned == texts:
            return
        self.changes.add("cleaned", name, identifies=any(map(_says_more, texts, cleaned)))
        if any(cleaned):
            element.value = _same_count([text or REMOVED for text in cleaned])
            return
        action = without_text(int(element.tag), element.VR)
        if name == "ROIName" and "ROINumber" in dataset:
            element.value = f"ROI {dataset.ROINumber}"
        elif action == "remove":
            del dataset[element.tag]
        else:
            element.value = None if action == "empty" else REMOVED

    def _names_someone(self, dataset: Any, keyword: str, text: str) -> bool:
        if keyword in _ENUMERATED:
            return False
        names = self.rare_names - MANUFACTURERS if keyword == "Manufacturer" else self.rare_names
        scheme = str(dataset.get("CodingSchemeDesignator") or "99")
        if keyword in _OF_CODES and not scheme.startswith("99"):
            return not names.isdisjoint(words_of(text))  # a standard's own words, with marks as it likes them
        return may_name_someone(text, names, dates=keyword not in _OF_DEVICES)


def _says_more(text: str, cleaned: str) -> bool:
    """Whether cleaning has taken away words, not only marks between them."""
    return re.findall(r"\w+", text) != re.findall(r"\w+", cleaned)


def _is_length(element: Any) -> bool:
    return bool(element.tag.element == 0)


def _same_count(values: list[str]) -> Any:
    return values[0] if len(values) == 1 else values


def _is_text(vr: str) -> bool:
    return vr in ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT")


def _capped(age: str) -> str:
    match = re.fullmatch(r"(\d{3})Y", age.strip())
    return f"{_OLDEST + 1:03d}Y" if match and int(match[1]) > _OLDEST else age


def _replace_codes(sequence: Any) -> None:
    """Replace codes that stand for a person."""
    if sequence.keyword == "PersonIdentificationCodeSequence":
        for item in sequence.value:
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = REMOVED, "99MEDKIT", REMOVED


def _mask_unused_bits(dataset: Any, changes: Changes) -> None:
    """Clear the bits of pixels that hold no image: old scanners put overlays there, with text.

    All bits above the used ones become what the value's sign says, so that the value stays.
    """
    import numpy as np

    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    if "PixelData" not in dataset or allocated != 16 or not 0 < stored < 16 or is_compressed(dataset):
        return
    high = int(dataset.get("HighBit", stored - 1))
    if high != stored - 1 or len(dataset.PixelData) % 2:
        return
    kind = "i" if dataset.get("PixelRepresentation") else "u"
    order = ">" if dataset.original_encoding[1] is False else "<"
    values = np.frombuffer(dataset.PixelData, f"{order}{kind}2")
    clean = (values << (16 - stored)) >> (16 - stored)
    if not np.array_equal(clean, values):
        dataset.PixelData = clean.astype(values.dtype).tobytes()
        changes.add("blanked", "unused bits of pixels")


def _state_it(dataset: Any, options: Options, *, is_report: bool) -> None:
    """Write into the object what was done (PS3.15 E.1.1)."""
    codes = ["113100", "113105", "113107", "113109"]
    codes += ["113104"] if is_report else []
    codes += ["113108"] if options.characteristics else []
    codes += ["113111"] if options.safe_private else []
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "medkit deidentify"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethodCodeSequence = [_code(value) for value in sorted(codes)]


def _code(value: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", CODES[value]
    return item


def state_clean_pixels(dataset: Any) -> None:
    """Write into the object that text in its pixels was blanked."""
    dataset.BurnedInAnnotation = "NO"
    codes = [*dataset.DeidentificationMethodCodeSequence, _code("113101")]
    dataset.DeidentificationMethodCodeSequence = sorted(codes, key=lambda item: str(item.CodeValue))


def _renew_meta(dataset: Any, changes: Changes) -> None:
    """Give the file a header of its own: nothing of the old one stays but the encoding."""
    from pydicom.dataset import FileMetaDataset

    old = getattr(dataset, "file_meta", None) or FileMetaDataset()
    meta: Any = FileMetaDataset()
    meta.TransferSyntaxUID = old.get("TransferSyntaxUID") or _syntax_of(dataset)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    kept = {"FileMetaInformationGroupLength", "FileMetaInformationVersion", "ImplementationClassUID"}
    kept |= {"ImplementationVersionName", *(element.keyword for element in meta)}
    for element in old:
        if element.keyword not in kept and not element.is_empty:
            changes.add("removed", element.keyword or "private file meta")
    if any(getattr(dataset, "preamble", None) or b""):
        changes.add("removed", "preamble")
    dataset.file_meta, dataset.preamble = meta, bytes(128)


def _syntax_of(dataset: Any) -> str:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = dataset.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)
