"""Questions that other processes answer: torch, whose import may crash or hang, and the driver of the GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

SECONDS = 60.0
"""Longest time for an answer: torch is imported in one to three seconds, on busy processors in half a minute."""


def torch_facts() -> list[str]:
    """Return the command that prints what torch finds."""
    return [sys.executable, "-P", "-m", "medkit.diagnosis.torch_probe"]


def gpus_of_driver() -> list[str]:
    """Return the command that prints the GPUs that NVIDIA's driver shows; none without the driver."""
    program = shutil.which("nvidia-smi")
    query = "--query-gpu=name,memory.total,driver_version"
    return [program, query, "--format=csv,noheader"] if program else []


class Child:
    """A process that has been started to answer a question."""

    def __init__(self, command: Sequence[str]) -> None:
        self.began = time.monotonic()
        self.process: subprocess.Popen[str] | None = None
        if command:
            with contextlib.suppress(OSError):
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    errors="replace", start_new_session=True,
                )  # fmt: skip

    def answer(self, seconds: float = SECONDS) -> dict[str, Any]:
        """Return the JSON object that it prints, its lines as `gpus` if it prints none, or why it has not: `error`."""
        if self.process is None:
            return {}
        try:
            out, err = self.process.communicate(timeout=max(0.1, seconds - (time.monotonic() - self.began)))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            return {"error": f"no answer within {seconds:g} s"}
        lines = [line.strip() for line in out.split("\n") if line.strip()]
        if self.process.returncode:
            last = next((line for line in reversed(err.split("\n")) if line.strip()), "")
            return {"error": f"{last.strip()} ({_ending(self.process.returncode)})".lstrip()}
        if lines and lines[-1].startswith("{"):
            found: dict[str, Any] = json.loads(lines[-1])
            return found
        return {"gpus": lines}


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
