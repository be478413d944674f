"""Several `medkit train` at once, as the ranks of one training; each starts from a process that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MODULES = ["torch", "torch._dynamo", "ignite.distributed", "monai.bundle", "monai.engines", "monai.handlers"]
_MODULES += ["monai.networks.nets", "medkit.__main__", "medkit.cli", "medkit.commands.train", "medkit.training.run"]
SECONDS = 600


@dataclass(frozen=True)
class Ended:
    """How a rank has ended."""

    code: int
    out: str
    err: str


def train_over(
    size: int, arguments: Sequence[object], *changes: Mapping[str, str], different: Mapping[int, Sequence[object]] = {}
) -> list[Ended]:
    """Run `medkit` with the arguments over ranks; `changes` are variables of rank 0, rank 1, and so on.

    `different` are further arguments of some ranks.
    """
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(_MODULES)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(size):
            environ = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = {k: str(v) for k, v in environ.items()} | (dict(changes[rank]) if rank < len(changes) else {})
            words = [str(a) for a in (*arguments, *different.get(rank, ()))]
            ranks.append(start.Process(target=_medkit, args=(words, own, f"{folder}/{rank}")))
        for process in ranks:
            process.start()
        ended = []
        for rank, process in enumerate(ranks):
            process.join(SECONDS)
            hangs = process.exitcode is None
            if hangs:
                process.kill()
                process.join()
            out, err = (Path(f"{folder}/{rank}.{name}").read_text() for name in ("out", "err"))
            assert "Traceback" not in err, err
            ended.append(Ended(-1 if hangs else int(process.exitcode or 0), out, err))
            assert not hangs, [f"rank {n}: {e}" for n, e in enumerate(ended)]
        return ended


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _medkit(words: list[str], environ: dict[str, str], name: str) -> None:
    """Be the process of one rank."""
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{kind}", os.O_CREAT | os.O_WRONLY), number)
    os.setpgid(0, 0)
    os.environ.update(environ)
    sys.argv = ["medkit", *words]
    from medkit.__main__ import main

    main()
