"""A Slurm of one node: munged, slurmctld and slurmd of this machine, in a folder and on ports of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]
"""What this machine has not (Debian: apt-get install slurm-wlm)."""

CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


@contextlib.contextmanager
def slurm_node(folder: Path, cpus: int = 4) -> Iterator[dict[str, str]]:
    """Yields the environment in which Slurm's commands reach it; ends it, and what it runs."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o755)
    (folder / "munge/key").write_bytes(os.urandom(1024))
    (folder / "munge/key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIG.format(folder=folder, host=host, ports=free_ports(2), cpus=cpus)
    )
    environment = {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin",
    }
    own = folder / "munge"
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
    munge = [f"--{option}={own / name}" for option, name in files.items()]
    commands = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D", "-i"], ["slurmd", "-D"]]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("wb")
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        wait_for(lambda: "idle" in said(environment, "sinfo", "-h", "-o", "%T"), folder, 30)
        yield environment
    finally:
        said(environment, "scancel", "--user=root", "--full", "--signal=KILL")
        said(environment, "scancel", "--user=root")
        time.sleep(1)
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=30)


def said(environment: dict[str, str], *command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def wait_for(condition, folder: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        told = "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted(folder.glob("*.log")))
        assert time.monotonic() < deadline, told
        time.sleep(0.5)
