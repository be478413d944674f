"""How the ranks of a training find each other, and how they part."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from medkit.errors import MedkitError, Stopped, TrainingError, UsageError
from medkit.machine.threads import affinity, granted_threads
from medkit.pipe.signals import StopRequest
from medkit.training.channel import ANSWER_SECONDS, MEETING_SECONDS, Channel, Message, accept_all, connect, listen
from medkit.training.ranks import ALONE, RankEndedError, Ranks, set_joined
from medkit.training.world import World

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def joined(world: World, device: torch.device, command: str, stop: StopRequest) -> Iterator[Ranks]:
    """Join the other ranks for the block; with one rank, do nothing.

    All ranks must have been given the same command. Raises UsageError and TrainingError. If the block ends by an
    exception, the other ranks learn that; if they fail alike, an error is a RankEndedError that rank 0 tells.
    """
    if world.size == 1:
        yield ALONE
        return
    shared = _torchrun_store(world)
    channel = _meet(world, shared)
    ranks = Ranks(world, channel)
    try:
        set_joined(ranks)
        hello = _hello(world, device, command)
        ranks.hosts = ranks.exchange("start", **hello)
        _check(ranks.hosts)
        mine = [host for host in ranks.hosts if host["host"] == hello["host"]]
        cores = len({core for host in mine for core in host["cores"]})
        ranks.threads = granted_threads(tasks=len(mine), cores=cores)
        with stop.working():  # torch's threads, once begun, must be ended in order, or they abort the process
            _start_torch(ranks, device, _own_store(ranks) if shared is None else shared)
        if stop.received:
            raise Stopped("a signal")
        yield ranks
        ranks.exchange("end")
    except RankEndedError:
        raise
    except (Stopped, KeyboardInterrupt):
        channel.leave({"ended": "stopped"}, seconds=0)
        raise
    except Exception as error:
        code = error.exit_code if isinstance(error, MedkitError) else 1
        reason = str(error) if world.first else f"rank {world.rank}: {error}"
        answers = channel.leave({"ended": "failed", "reason": reason, "exit_code": code})
        if isinstance(error, MedkitError) and not world.first:
            raise RankEndedError(reason, code, told=bool(answers)) from error
        raise
    finally:
        set_joined(ALONE)
        channel.close()
        _end_torch()


def _meet(world: World, shared: Any | None) -> Channel:
    """Return the channel of this rank; `shared` is torchrun's store, which holds the port of the world."""
    if shared is None:
        if not world.first:
            return connect(world)
        with listen(world.address, world.port) as server:
            return accept_all(server, world)
    if world.first:
        with listen(world.address, 0) as server:
            shared.set("port", str(server.getsockname()[1]))
            return accept_all(server, world)
    deadline = time.monotonic() + MEETING_SECONDS
    while not shared.check(["port"]):  # waiting within `get` would not heed signals
        if time.monotonic() > deadline:
            raise TrainingError(f"rank {world.rank}: rank 0 did not come within {MEETING_SECONDS:g} s")
        time.sleep(0.1)
    return connect(replace(world, port=int(shared.get("port"))))


def _torchrun_store(world: World) -> Any | None:
    """Return the store that torchrun has opened for all ranks; None without torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return _within(f"medkit/{attempt}", _store(world.address, world.port))


def _own_store(ranks: Ranks) -> Any:
    """Return a store of torch's that rank 0 opens for all ranks."""
    address = ranks.world.address
    if not ranks.first:
        return _store(address, ranks.exchange("store")[0]["port"])
    held = listen(address, 0)
    port = held.getsockname()[1]
    store = _store(address, port, is_master=True, master_listen_fd=held.detach())
    ranks.exchange("store", port=port)
    return store


def _store(address: str, port: int, **more: Any) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=ANSWER_SECONDS), **more)


def _within(prefix: str, store: Any) -> Any:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    return PrefixStore(prefix, store)


def _hello(world: World, device: torch.device, command: str) -> Message:
    import torch

    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "cores": sorted(affinity()),
        "device": device.type,
        "gpu": gpu,
        "command": command,
    }


def _check(hosts: Sequence[Mapping[str, Any]]) -> None:
    """Raise UsageError if the ranks cannot train together."""
    first = hosts[0]
    gpus: dict[str, int] = {}
    for rank, host in enumerate(hosts):
        if host["command"] != first["command"]:
            raise UsageError(
                f"ranks 0 and {rank} were given different commands: {first['command']} and {host['command']}; for "
                f"trainings that have nothing to do with each other put `env RANK=0 WORLD_SIZE=1` before each"
            )
        if host["device"] != first["device"]:
            raise UsageError(f"rank 0 computes on {first['device']}, rank {rank} on {host['device']}; give --device")
        if (gpu := host["gpu"]) is not None and gpu in gpus:
            raise UsageError(
                f"ranks {gpus[gpu]} and {rank} have the same GPU of {host['host']}: ask for one for each rank, such as "
                f"with --gpus-per-task=1, or start fewer ranks"
            )
        if gpu is not None:
            gpus[gpu] = rank


def _start_torch(ranks: Ranks, device: torch.device, store: Any) -> None:
    """Start torch's process group: NCCL between GPUs, Gloo between processors."""
    from torch import distributed

    if len({host["host"] for host in ranks.hosts}) == 1 and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # on one machine, nothing listens on the network
    world = ranks.world
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):  # ignite, whose metrics gather their values, would guess or miss it
        os.environ.setdefault(name, str(world.local_rank))
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_within("torch", store),
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=ANSWER_SECONDS),
            device_id=device if device.type == "cuda" else None,
        )
        from ignite import distributed as idist

        idist.get_world_size()  # ignite exchanges names of machines once, and here all ranks do so together
    except RuntimeError as error:
        raise TrainingError(f"the ranks cannot reach each other: {' '.join(str(error).split())[:200]}") from None


def _end_torch() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
