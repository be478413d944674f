"""The structures of a chest and their numbers."""

from __future__ import annotations

from collections.abc import Mapping

from medkit.dicom_objects import Code, Meaning

BODY, LUNG_LEFT, LUNG_RIGHT, AIRWAY, BONES, HEART_AND_VESSELS = range(1, 7)
CHEST_LABELS: Mapping[int, str] = {
    BODY: "body",
    LUNG_LEFT: "lung_left",
    LUNG_RIGHT: "lung_right",
    AIRWAY: "airway",
    BONES: "bones",
    HEART_AND_VESSELS: "heart_and_vessels",
}
"""The structures of a chest and their numbers, which the bundle `chest_ct_segmentation` shares. `body` is all of the
body that is none of the others; the thresholds do not find heart and vessels, and leave them in `body`."""
FOUND_LABELS = (BODY, LUNG_LEFT, LUNG_RIGHT, AIRWAY, BONES)
"""What `chest_labels` can find."""

_LUNG = Code("39607008", "SCT", "Lung")
CHEST_MEANINGS: Mapping[str, Meaning] = {
    "lung_left": Meaning(_LUNG, "left"),
    "lung_right": Meaning(_LUNG, "right"),
    "airway": Meaning(Code("110726009", "SCT", "Trachea and bronchus")),
    "bones": Meaning(Code("272673000", "SCT", "Bone")),
    "heart_and_vessels": Meaning(Code("113257007", "SCT", "Cardiovascular system")),
}
"""What the structures mean. `body` is the rest of the body, for which no terminology has a code."""
