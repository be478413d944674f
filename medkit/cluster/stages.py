"""What shell commands tell about their stages, without running them."""

from __future__ import annotations

import re
import shlex


def tasks_of(pipeline: str) -> list[str]:
    """Return the tasks of medkit in shell commands.

    >>> tasks_of("medkit run register --fixed f.nii.gz | medkit transform apply --transform x.tfm")
    ['register', 'transform apply']
    """
    found = re.finditer(r"\bmedkit\s+(?:run\s+([a-z][\w-]*)|(transform\s+[a-z]\w*))", pipeline)
    return [" ".join((match[1] or match[2]).split()) for match in found]


def tasks_here(pipeline: str) -> list[str]:
    """Return the tasks that the `medkit` of this environment runs, as far as that is certain.

    >>> tasks_here("medkit run sr | apptainer exec m.sif medkit run segment | medkit run classify")
    ['sr', 'classify']
    """
    return re.findall(r"(?:^|\|)\s*medkit\s+run\s+([a-z][\w-]*)", pipeline)


def is_medkit_only(pipeline: str) -> bool:
    """Return whether commands are a pipe of medkit's tasks and nothing else, so that records tell all.

    >>> is_medkit_only("medkit run register | medkit run segment > names.txt"), is_medkit_only("medkit run sr | gzip")
    (True, False)
    """
    words = shlex.shlex(pipeline, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    try:
        operators = [word for word in words if word and set(word) <= set("();&|")]
    except ValueError:
        return False
    return set(operators) <= {"|"} and len(operators) + 1 == len(tasks_of(pipeline))
