"""Print what torch finds on this machine, as one line of JSON; run by `medkit doctor` in a process of its own."""

from __future__ import annotations

import json
import time
from typing import Any

from medkit.machine.threads import granted_threads, limit_torch


def facts() -> dict[str, Any]:
    """Import torch and return its version, its devices, and what `--device auto` and `--precision auto` choose."""
    start = time.perf_counter()
    limit_torch(granted_threads())
    import torch

    seconds = time.perf_counter() - start
    from medkit.machine.precision import choose_device, choose_precision

    device = choose_device("auto")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "version": str(torch.__version__),
        "import_seconds": round(seconds, 2),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "gpus": [_gpu(number) for number in range(count)],
        "device": str(device),
        "precision": choose_precision("auto", device),
    }


def _gpu(number: int) -> dict[str, Any]:
    import torch

    about = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    return {"name": about.name, "capability": f"{about.major}.{about.minor}", "free": free, "total": total}


if __name__ == "__main__":
    print(json.dumps(facts()))
