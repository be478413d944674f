"""A Slurm cluster of two nodes on this machine, for tests: all as the calling user, all sockets on loopback."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from waiting import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a job waits that goes back into the queue: 120 s by default
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/slurmd-%n.log
# nodes may claim more than the machine has
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=100000,batch_sched_delay=0
SlurmdTimeout=20
MinJobAge=3600
MaxArraySize=1001
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 GraceTime=10 State=UP
PartitionName=urgent Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
"""


def queue() -> list[str]:
    """Return the lines of the queue: the number in its array, and the state of each job."""
    done = subprocess.run(["squeue", "--noheader", "--array", "--format=%K %T"], capture_output=True, text=True)
    return done.stdout.splitlines()


def finished(seconds: float = 240) -> None:
    """Return once no job is in the queue; fail the test after `seconds`."""
    wait_for(lambda: not queue(), seconds)


def missing() -> list[str]:
    """Return the programs of Slurm that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Start a cluster for the block; yields its configuration, for SLURM_CONF."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: it holds sockets
    daemons: list[subprocess.Popen[bytes]] = []
    config = folder / "slurm.conf"
    environ = os.environ | {"PATH": _PATH, "SLURM_CONF": str(config)}

    def start(name: str, *command: str) -> None:
        with open(folder / f"{name}.out", "wb") as log:
            daemons.append(subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def answers(*command: str) -> Callable[[], bool]:
        return lambda: subprocess.run(command, env=environ, capture_output=True).returncode == 0

    def ready() -> bool:
        command = ["sinfo", "--noheader", "--Node", "--partition=batch", "--states=idle"]
        return len(subprocess.run(command, env=environ, capture_output=True).stdout.splitlines()) == 2

    def no_jobs() -> bool:
        return not subprocess.run(["squeue", "--noheader"], env=environ, capture_output=True).stdout

    try:
        _write_configuration(folder, config)
        sock = str(folder / "munge.socket")
        files = {"key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "seed", "log-file": "munged.log"}
        start("munged", "munged", "-F", "-S", sock, *(f"--{k}={folder / 'munge' / v}" for k, v in files.items()))
        _until(answers("munge", "-S", sock, "-n"), "munged", folder)
        start("slurmctld", "slurmctld", "-D", "-f", str(config))
        _until(answers("scontrol", "ping"), "slurmctld", folder)
        for node in ("n1", "n2"):
            start(f"slurmd-{node}", "slurmd", "-D", "-N", node, "-f", str(config))
        _until(ready, "slurmd", folder)
        yield config
    finally:
        subprocess.run(["scancel", "--quiet", f"--user={getpass.getuser()}"], env=environ, capture_output=True)
        with contextlib.suppress(RuntimeError):  # a step that still ends would outlive its daemon
            _until(no_jobs, "an empty queue", folder)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _write_configuration(folder: Path, config: Path) -> None:
    folder.chmod(0o711)
    (folder / "state").mkdir()
    (folder / "munge").mkdir(mode=0o700)
    key = folder / "munge" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    names = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": folder}
    config.write_text(_CONFIG.format(ports=_free_ports(3), **names))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    (folder / "plugstack.conf").touch()
    with contextlib.suppress(PermissionError):  # only root can pretend that there are GPUs
        for number in range(2):
            os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-1]\n")
        text = config.read_text().replace("State=UNKNOWN", "Gres=gpu:2 State=UNKNOWN")
        config.write_text(f"{text}GresTypes=gpu\n")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def _until(condition: Callable[[], bool], what: str, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in folder.glob("*.*") if path.is_file())
            raise RuntimeError(f"{what} did not come up\n{logs}")
        time.sleep(0.1)
