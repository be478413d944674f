"""docs/clusters.md names every variable that medkit reads, or sets, in jobs."""

from __future__ import annotations

import re

from places import PLUGINS, REPOSITORY

OF_MEDKIT = re.compile(r"\bMEDKIT_[A-Z][A-Z_]*\b")
OF_SCHEDULERS = re.compile(r"\b(?:(?:SLURM|PBS|SGE|LSB)_[A-Z][A-Z_]*|NCPUS|NSLOTS|JOB_ID)\b")


def test_every_variable_is_in_the_docs() -> None:
    files = [*(REPOSITORY / "medkit").rglob("*.py"), *PLUGINS.rglob("*.py")]
    code = "\n".join(path.read_text() for path in files)
    page = (REPOSITORY / "docs" / "clusters.md").read_text()
    table = page.split("## Variables in jobs\n")[1].split("\n## ")[0]
    read = {name for name in OF_MEDKIT.findall(code) if not name.endswith("_")}
    assert {"MEDKIT_PART", "MEDKIT_OUTPUT"} <= read
    assert read - set(OF_MEDKIT.findall(table)) == set()
    granted = set(OF_SCHEDULERS.findall(code))
    assert {"SLURM_CPUS_PER_TASK", "PBS_ARRAY_INDEX"} <= granted
    assert granted - set(OF_SCHEDULERS.findall(page)) == set()
