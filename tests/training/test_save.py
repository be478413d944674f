"""Weights and checkpoints are written whole, and a full disk is named in the system's words."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch

from medkit.errors import TrainingError
from medkit.training.checkpoint import save_whole


def test_what_is_saved_can_be_loaded(tmp_path: Path) -> None:
    save_whole(tmp_path / "a.pt", {"weights": torch.arange(5)})
    assert torch.load(tmp_path / "a.pt", weights_only=True)["weights"].tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("room", [100, 50_000])
def test_a_file_that_cannot_be_written(tmp_path: Path, room: int) -> None:
    """torch reports the place in its own code where it noticed."""
    path = tmp_path / "a.pt"
    save_whole(path, {"weights": torch.zeros(2)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        with pytest.raises(TrainingError, match=f"{path}: cannot be written: File too large; run the same command"):
            save_whole(path, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(torch.load(path, weights_only=True)["weights"]) == 2, "the old one stays"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
