"""The process that runs a bundle's checks: `python -m medkit.bundles.checks DESCRIPTOR ROOT CHECK...`.

Writes lines of JSON to the file descriptor: `{"begin": NAME}` before a check, its outcome after it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from medkit.bundles.checks.outcomes import outcome
from medkit.bundles.checks.subject import CheckedBundle
from medkit.bundles.config import put_code_first


def main(descriptor: int, root: Path, names: Sequence[str]) -> None:
    """Run the checks in order and report each."""
    os.set_inheritable(descriptor, False)
    logging.disable(logging.ERROR)
    put_code_first(root)
    with open(descriptor, "w", encoding="utf-8") as out:
        for name in names:
            print(json.dumps({"begin": name}), file=out, flush=True)
            status, messages = outcome(name, CheckedBundle(root))
            print(json.dumps({"name": name, "status": status, "messages": messages}), file=out, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
