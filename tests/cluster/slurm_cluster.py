"""A real Slurm of two nodes on this host, for the tests: its own folder, ports, munge key, accounting database.

Needs Debian's packages slurm-wlm, munge, slurmdbd, mariadb-server-core and mariadb-client-core (others' are the
same programs). No systemd, no cgroups, nothing outside the folder is touched.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from pipelines.machine import free_ports

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mysql", "sbatch")
NODES = ("node1", "node2")
GPUS_PER_NODE = 1
"""The GPUs are devices that exist and compute nothing: enough for Slurm to hand out."""

_SLURM_CONF = """
ClusterName=ayf{tag}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ctld}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=86400
MailProg=/bin/true
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={folder}/munge/socket
GresTypes=gpu
AccountingStorageTRES=gres/gpu
NodeName=DEFAULT CPUs=1 RealMemory=8000 Gres=gpu:fake:1 State=UNKNOWN
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{slurmd}-{slurmd_last}]
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

_SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
"""


def lacking() -> str | None:
    """Why there can be no cluster here, or None."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} not found)"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class SlurmCluster:
    """Two nodes of one CPU and one GPU each; partitions `main` (pre-emptible) and `high`.

    Args:
        folder: an empty folder for everything; short, since socket paths are limited.

    Raises:
        RuntimeError: a daemon did not come up, with the end of its log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}
        self._frozen: list[psutil.Process] = []
        self._write_configuration()
        self._start()

    # ------------------------------------------------------------------------------------------- for tests

    def environment(self) -> dict[str, str]:
        """What a process needs to use this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def run(self, *command: str) -> str:
        """The output of a Slurm command."""
        done = subprocess.run(
            command, env=os.environ | self.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def state(self, job: str) -> str:
        """The state of a job as Slurm's controller knows it, e.g. RUNNING."""
        text = self.run("scontrol", "show", "job", job, "--oneliner")
        return next(part.split("=")[1] for part in text.split() if part.startswith("JobState="))

    def wait_for(self, job: str, states: set[str], seconds: float) -> str:
        """Wait until the job is in one of `states`; returns it. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {state}, not {states}, after {seconds:.0f} s")
            time.sleep(0.2)
        return state

    def kill_node(self, node: str) -> None:
        """A node without power: slurmd and all processes of its jobs are gone, and nobody tells the others.

        The daemons of its job steps are frozen until the node comes back: killed, they would close their connections.
        """
        slurmd = self._daemons.pop(node)
        slurmd.kill()
        slurmd.wait()
        tasks = self.processes(node)
        self._frozen = [p.parent() for p in tasks if (p.parent() and p.parent().name().startswith("slurmstepd"))]
        for step in self._frozen:
            with contextlib.suppress(psutil.Error):
                step.suspend()
        kill(tasks)

    def processes(self, node: str, words: str = "") -> list[psutil.Process]:
        """Processes of jobs on a node (their children included) whose command line contains `words`."""
        found: dict[int, psutil.Process] = {}
        for pid, environment in _environments():
            if f"SLURMD_NODENAME={node}\n" in environment and f"SLURM_CONF={self.folder}/" in environment:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    # Ray's workers write their title over their environment: they are found as children.
                    found |= {each.pid: each for each in [process, *process.children(recursive=True)]}
        return [process for process in found.values() if words in _command(process)]

    def start_node(self, node: str, wrapper: tuple[str, ...] = ()) -> None:
        """Start a node's slurmd (again), perhaps inside another command, and wait until it is idle."""
        command = [*wrapper, _program("slurmd") or "", "-D", "-N", node, "-f", str(self.folder / "slurm.conf")]
        kill(self._frozen)
        self._daemon(node, command)
        self.wait_until_idle(node)

    def stop_node(self, node: str) -> None:
        """End a node's slurmd, as its administrator would."""
        slurmd = self._daemons.pop(node)
        slurmd.terminate()
        slurmd.wait(timeout=60)

    def wait_until_idle(self, node: str) -> None:
        """Wait until a node is up and runs nothing. Raises RuntimeError."""
        self._await(lambda: self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T").split()[0] == "idle", node)

    def down(self) -> None:
        """End every job and daemon that this object started."""
        subprocess.run(
            ["scancel", "--full", "--user", str(os.getuid())], env=os.environ | self.environment(), check=False
        )
        kill(self._frozen)
        for node in NODES:
            kill(self.processes(node))
        for daemon in reversed(list(self._daemons.values())):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    # ------------------------------------------------------------------------------------------ coming up

    def _write_configuration(self) -> None:
        for name in ("state", "spool-node1", "spool-node2", "munge", "database", "run", "dev"):
            (self.folder / name).mkdir(parents=True)
        for place in (self.folder, self.folder / "munge"):
            place.chmod(0o755)
        (self.folder / "dev" / "gpu0").symlink_to("/dev/null")
        ctld, dbd, slurmd, slurmd_last = free_ports(4)
        values = {
            "folder": self.folder,
            "tag": secrets.token_hex(3),
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "ctld": ctld,
            "dbd": dbd,
            "slurmd": slurmd,
            "slurmd_last": slurmd_last,
            "password": secrets.token_hex(8),
        }
        self._database_password = values["password"]
        (self.folder / "slurm.conf").write_text(_SLURM_CONF.format(**values))
        gres = f"AutoDetect=off\nNodeName=node[1-2] Name=gpu Type=fake File={self.folder}/dev/gpu0\n"
        (self.folder / "gres.conf").write_text(gres)
        (self.folder / "slurmdbd.conf").write_text(_SLURMDBD_CONF.format(**values))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)

    def _start(self) -> None:
        folder = self.folder
        munge = folder / "munge"
        self._daemon(
            "munged",
            [
                _program("munged") or "",
                "--foreground",
                "--force",
                f"--key-file={munge}/key",
                f"--socket={munge}/socket",
                f"--pid-file={munge}/pid",
                f"--log-file={munge}/log",
                f"--seed-file={munge}/seed",
            ],
        )
        self._await(lambda: (munge / "socket").exists(), "munged")
        self._start_database()
        self._daemon("slurmdbd", [_program("slurmdbd") or "", "-D"])
        self._await(lambda: "Registering" in self._log("slurmdbd") or "started" in self._log("slurmdbd"), "slurmdbd")
        cluster = next(line for line in (folder / "slurm.conf").read_text().splitlines() if "ClusterName" in line)
        self._await(lambda: self._registers(cluster.split("=")[1]), "slurmdbd")
        self._daemon("slurmctld", [_program("slurmctld") or "", "-D", "-f", str(folder / "slurm.conf")])
        for node in NODES:
            command = [_program("slurmd") or "", "-D", "-N", node, "-f", str(folder / "slurm.conf")]
            self._daemon(node, command)
        self._await(lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * 2, "slurmd")

    def _start_database(self) -> None:
        data, run = self.folder / "database", self.folder / "run"
        command = [
            _program("mariadbd") or "",
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={run}/mysql",
            "--skip-networking",
            f"--pid-file={run}/mysql.pid",
            "--innodb-buffer-pool-size=16M",
            "--user=root" if os.getuid() == 0 else f"--user={os.getuid()}",
        ]
        installer = shutil.which("mariadb-install-db") or shutil.which("mysql_install_db") or "mysql_install_db"
        subprocess.run(
            [installer, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal",
             "--skip-test-db", *command[-1:]],
            check=True,
            capture_output=True,
        )  # fmt: skip
        self._daemon("mariadbd", command)
        client = [_program("mysql") or "", "--no-defaults", f"--socket={run}/mysql", "--user=root"]

        def ask(statement: str) -> bool:
            done = subprocess.run([*client, "--execute", statement], capture_output=True, check=False)
            return done.returncode == 0

        self._await(lambda: ask("SELECT 1"), "mariadbd")
        password = self._database_password
        ask(f"CREATE USER slurm@localhost IDENTIFIED BY '{password}'; GRANT ALL ON slurm_acct.* TO slurm@localhost")
        os.environ["MYSQL_UNIX_PORT"] = f"{run}/mysql"  # slurmdbd has no setting for the socket of its database

    def _registers(self, cluster: str) -> bool:
        done = subprocess.run(
            ["sacctmgr", "--immediate", "add", "cluster", cluster],
            env=os.environ | self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode == 0 or "already exists" in done.stdout + done.stderr

    def _daemon(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.out").open("a") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=os.environ | self.environment(),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _await(self, ready: object, name: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            daemon = self._daemons.get(name)
            if daemon is not None and daemon.poll() is not None:
                raise RuntimeError(f"{name} ended with {daemon.returncode}: {self._log(name)[-2000:]}")
            try:
                if ready():  # type: ignore[operator]
                    return
            except (RuntimeError, IndexError):
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} is not ready after {seconds:.0f} s: {self._log(name)[-2000:]}")
            time.sleep(0.1)

    def _log(self, name: str) -> str:
        files = [self.folder / f"{name}.out", self.folder / f"{name}.log"]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())


def _environments() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
            except OSError:
                continue
            found.append((int(entry.name), text))
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, whatever is left of them."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
