"""`medkit evaluate` on classes: predicted classes against true ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medkit.commands.evaluate.lines import new_file, say
from medkit.errors import MedkitError, UsageError
from medkit.pipe.atomic import write_atomically

_OTHERS = ("labels", "label_map", "mask", "data_range", "transform")


def compare_classes(
    results: Sequence[Path], bad: Sequence[str], reference: str, given: Mapping[str, Any]
) -> tuple[str, int]:
    """Return what to print, and the exit code; `bad`: sentences about lines that do not name a result."""
    from medkit.evaluation.classes.plots import pictures
    from medkit.evaluation.classes.report import as_data, csv_text, table
    from medkit.evaluation.classes.run import judge, predictions_in

    for name in _OTHERS:
        if given[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} is not for classes, which these files are taken for")
    predictions, unread = predictions_in(results, given["aspect"])
    bad = [*bad, *unread]
    say(*bad)
    if not predictions:
        raise MedkitError("nothing to compare")
    judged = judge(predictions, reference, given["seed"], given["aspect"])
    say(*judged.unmatched.values())
    if given["csv_file"]:
        write_atomically(given["csv_file"], csv_text(judged))
    if given["plots"]:
        write_pictures(given["plots"], pictures(judged), given["overwrite"])
    text = json.dumps(as_data(judged)) + "\n" if given["as_json"] else table(judged, given["layout"])
    return text, int(bool(bad) or (bool(judged.unmatched) and not given["allow_missing"]))


def write_pictures(folder: Path, pictures: Mapping[str, bytes], overwrite: bool) -> None:
    """Write PNGs into a folder, which is made if it is missing. Raises OutputError."""
    files = {new_file(folder / name, overwrite): png for name, png in pictures.items()}
    for path, png in files.items():
        write_atomically(path, png)
