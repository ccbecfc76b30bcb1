"""The Docker sandbox: what only a container has. What it shares with the local one is in test_sandbox.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import CI, ROOT, available, interpreter, need
from scripted import Request, Server, call, code

import rlm
import rlm_sandbox
import rlm_tools
from rlm_sandbox import Cell, DockerSandbox, SandboxError

IMAGE = "python:3.11-slim"
SECRET = "CANARY-77ab01"


@pytest.fixture(autouse=True, scope="module")
def engine() -> Iterator[Any]:
    """The engine's client; at the end none of this process's containers may be there."""
    need("docker")
    client = rlm_sandbox.docker_engine()
    yield client
    rlm_sandbox.close_warm()
    assert containers(client) == []


@pytest.fixture
def box() -> Iterator[DockerSandbox]:
    with DockerSandbox(cell_timeout=20) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that a container may read if this process is root."""
    made = tmp_path / "project"
    made.mkdir()
    return made


def containers(client: Any, of: int | None = None) -> list[str]:
    """The containers of a process, in whatever state."""
    label = f"{rlm_sandbox.LABEL}={rlm_sandbox.owner_label(of or os.getpid())}"
    return [one["Id"] for one in client.containers(all=True, filters={"label": label})]


def inspect(box: DockerSandbox) -> dict[str, Any]:
    channel: Any = box._started().channel
    found: dict[str, Any] = box.engine.inspect_container(channel.container)
    return found


def value(cell: Cell) -> str | None:
    assert cell.ok, cell.error
    return cell.value


def last_line(cell: Cell) -> str:
    assert not cell.ok
    return (cell.error or "").splitlines()[-1]


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def tar_of(files: dict[str, bytes | Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            if isinstance(content, Path):
                tar.add(content, name, filter=lambda info: None if "/test" in info.name or ".a" in info.name else info)
            else:
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o755
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# --- hardening, each item from the inside --------------------------------------------------------------------------

INSIDE = {
    "not root": ("import os; (os.getuid() > 0, os.geteuid() > 0, 0 in os.getgroups())", "(True, True, False)"),
    "no capabilities": (
        "sum(int(l.split()[1], 16) for l in open('/proc/self/status') if l.startswith('Cap'))",
        "0",
    ),
    "no new privileges": ("[l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')]", "['1']"),
    "seccomp filters": ("[l.split()[1] for l in open('/proc/self/status') if l.startswith('Seccomp:')]", "['2']"),
    "only loopback": ("import socket; [name for _, name in socket.if_nameindex()]", "['lo']"),
    "processes are its own": ("import os; len([p for p in os.listdir('/proc') if p.isdigit()]) < 6", "True"),
    "no engine socket": (
        "import os; os.path.exists('/var/run/docker.sock') or os.path.exists('/run/docker.sock')",
        "False",
    ),
    "no core dumps": ("import resource; resource.getrlimit(resource.RLIMIT_CORE)", "(0, 0)"),
    "file size": ("import resource; resource.getrlimit(resource.RLIMIT_FSIZE)", "(67108864, 67108864)"),
    "descriptors": ("import resource; resource.getrlimit(resource.RLIMIT_NOFILE)[1]", "256"),
    "scratch is writable": ("open('/tmp/x', 'w').write('mine'); open('/tmp/x').read()", "'mine'"),
    "the environment holds nothing of the host's": (
        "import os; sorted(set(os.environ) - {'PATH', 'HOSTNAME', 'HOME', 'LC_CTYPE', 'LANG', 'PYTHONHASHSEED',"
        " 'PYTHONDONTWRITEBYTECODE', 'GPG_KEY', 'PYTHON_VERSION', 'PYTHON_SHA256', 'PYTHON_PIP_VERSION'})",
        "[]",
    ),
    "no devices but the harmless ones": (
        "import os; sorted(set(os.listdir('/dev')) - {'stdin', 'stdout', 'stderr', 'fd', 'null', 'zero', 'full',"
        " 'random', 'urandom', 'tty', 'pts', 'ptmx', 'mqueue', 'console'})",
        "[]",
    ),
}

REFUSED = {
    "write to the root": ("open('/x', 'w')", "Read-only file system"),
    "write to the system": ("open('/usr/x', 'w')", "Read-only file system"),
    "shared memory": ("open('/dev/shm/x', 'w')", "No such file"),
    "run what it wrote": (
        "import os\nopen('/tmp/run', 'w').write('#!/bin/sh\\n')\nos.chmod('/tmp/run', 0o755)\nos.execv('/tmp/run', ['x'])",
        "Permission denied",
    ),
    "become root": ("import os; os.setuid(0)", "Operation not permitted"),
    "change ownership": ("import os; open('/tmp/o', 'w').close(); os.chown('/tmp/o', 0, 0)", "Operation not permitted"),
    "connect": ("import socket; socket.create_connection(('1.1.1.1', 53), 5)", "Network is unreachable"),
    "reach the host": ("import socket; socket.create_connection(('172.17.0.1', 22), 5)", "Network is unreachable"),
    "resolve names": ("import socket; socket.getaddrinfo('example.com', 80)", "name resolution"),
    "raw sockets": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "Operation not permitted"),
    "make devices": ("import os, stat; os.mknod('/tmp/d', stat.S_IFBLK | 0o600, 0x800)", "Operation not permitted"),
    "read the kernel's memory": ("open('/proc/kcore', 'rb').read(1)", "Permission denied|No such file"),
    "change the kernel": ("open('/proc/sys/kernel/hostname', 'w').write('x')", "Read-only file system"),
    "change its control group": ("open('/sys/fs/cgroup/memory.max', 'w')", "Read-only file system|No such file|denied"),
    "raise a limit": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999))",
        "not allowed to raise maximum limit",
    ),
    "fill the scratch folder": (
        "for i in range(9): open(f'/tmp/{i}', 'wb').write(b'x' * (10 << 20))",
        "No space left on device",
    ),
    "write a large file": ("open('/tmp/big', 'wb').write(b'x' * (65 << 20))", "File too large|No space left"),
}

SYSTEM_CALLS = {  # refused by the engine's seccomp profile or for want of capabilities
    "unshare": "unshare(0x10000000)",
    "mount": "mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "umount": "umount2(b'/tmp', 2)",
    "pivot_root": "syscall(155, b'/tmp', b'/tmp')",
    "bpf": "syscall(321, 0, 0, 0)",
    "perf_event_open": "syscall(298, 0, 0, 0, 0, 0)",
    "keyctl": "syscall(250, 0, 0)",
    "kexec_load": "syscall(246, 0, 0, 0, 0)",
    "reboot": "reboot(0)",
    "init_module": "syscall(175, 0, 0, 0)",
    "setns": "setns(0, 0)",
    "swapon": "swapon(b'/tmp', 0)",
    "clock_settime": "clock_settime(0, bytes(16))",
}


@pytest.fixture(scope="module")
def hardened() -> Iterator[DockerSandbox]:
    with DockerSandbox(cell_timeout=20) as made:
        yield made


@pytest.mark.parametrize("probe, shown", INSIDE.values(), ids=INSIDE)
def test_from_the_inside(hardened: DockerSandbox, probe: str, shown: str) -> None:
    assert value(hardened.execute(probe)) == shown


@pytest.mark.parametrize("probe, words", REFUSED.values(), ids=REFUSED)
def test_refused_inside(hardened: DockerSandbox, probe: str, words: str) -> None:
    line = last_line(hardened.execute(probe))
    assert any(word in line for word in words.split("|")), line
    hardened.execute("import os\nfor name in os.listdir('/tmp'): os.remove('/tmp/' + name)")


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_system_calls_refused_inside(hardened: DockerSandbox, name: str) -> None:
    probe = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.{SYSTEM_CALLS[name]}, ctypes.get_errno()"
    assert value(hardened.execute(probe)) in ("(-1, 1)", "(-1, 38)")  # EPERM, or ENOSYS


def test_what_was_asked_for_is_what_the_engine_holds(hardened: DockerSandbox) -> None:
    found = inspect(hardened)
    held = found["HostConfig"]
    wanted = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "CapAdd": None,
        "Privileged": False,
        "SecurityOpt": ["no-new-privileges:true"],
        "PidsLimit": 64,
        "Memory": 512 << 20,
        "MemorySwap": 512 << 20,
        "NanoCpus": 10**9,
        "IpcMode": "none",
        "LogConfig": {"Type": "none", "Config": {}},
        "AutoRemove": True,
        "Init": False,
    }
    assert {name: held[name] for name in wanted} == wanted
    assert {u["Name"]: (u["Soft"], u["Hard"]) for u in held["Ulimits"]} == {
        "core": (0, 0),
        "nofile": (256, 256),
        "fsize": (64 << 20, 64 << 20),
    }
    assert held["Tmpfs"] == {"/tmp": "rw,noexec,nosuid,nodev,mode=1777,size=64m"}
    assert found["Config"]["User"].split(":")[0] != "0"
    assert found["Config"]["StdinOnce"] is True
    assert (hardened.level, hardened.layers["container"]) == ("container", True)


def test_limits_hold_from_the_inside(hardened: DockerSandbox) -> None:
    limit = value(
        hardened.execute(
            "import os\nv2 = os.path.exists('/sys/fs/cgroup/memory.max')\n"
            "names = ['memory.max', 'pids.max'] if v2 else ['memory/memory.limit_in_bytes', 'pids/pids.max']\n"
            "[open('/sys/fs/cgroup/' + name).read().strip() for name in names]"
        )
    )
    assert limit == f"['{512 << 20}', '64']"


# --- what a cell can do to itself ----------------------------------------------------------------------------------

SURVIVED = {
    "kill all": "import os; os.kill(-1, 9)",
    "kill all politely": "import os; os.kill(-1, 15)",
    "interrupt all": "import os; os.kill(-1, 2)",
    "kill the original": "import os; os.kill(os.getppid(), 9)",
    "stop the original": "import os; os.kill(os.getppid(), 19)",
    "kill the first process": "import os; os.kill(1, 9); os.kill(1, 15)",
    "kill its group": "import os; os.killpg(0, 9)",
    "stop itself": "import os; os.kill(os.getpid(), 19)",
    "a group of its own": "import os; os.setpgid(0, 0)\nwhile True: pass",
    "a session of its own": "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\nwhile True: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "children left": "import os, time\nfor _ in range(99):\n    if os.fork() == 0: time.sleep(999)",
    "fork and return": "import os; os.fork()",
    "fork and fail": "import os\nif os.fork() == 0: raise ValueError",
    "threads left": "import threading, time\nfor _ in range(999): threading.Thread(target=time.sleep, args=(9,)).start()",
    "memory in a child": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = b\"x\" * (1 << 29)'])",
    "memory by small steps": "x = []\nwhile True: x.append(b'x' * (1 << 20))",
    "descriptors": "import os\nx = []\nwhile True: x.append(os.open('/dev/null', 0))",
    "closed descriptors": "import os; os.closerange(0, 256)",
    "disk": "i = 0\nwhile True:\n    i += 1\n    with open(f'/tmp/f{i}', 'wb') as f: f.write(b'x' * 10**6)",
    "a gigabyte of output": "for _ in range(1000): print('x' * 10**6)",
    "signals ignored": "import signal\nfor n in (2, 10): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "broken modules": "import json, struct, os\njson.loads = json.JSONEncoder.encode = struct.pack = os.read = None",
    "no output": "import sys; sys.stdout.close(); sys.stdout = None",
}


@pytest.mark.slow
@pytest.mark.parametrize("payload", SURVIVED.values(), ids=SURVIVED)
def test_the_session_survives(payload: str) -> None:
    with DockerSandbox(cell_timeout=20, memory="256m") as box:
        box.set("context", "from the host")
        box.execute("kept = 41")
        box.execute(payload, timeout=2)
        assert value(box.execute("kept + 1, context")) == "(42, 'from the host')"
        assert value(box.execute("ask(kept)", functions={"ask": lambda number: number + 2})) == "43"


def test_deaths_are_told_apart(box: DockerSandbox) -> None:
    box.execute("kept = 41")
    for payload, status, words in (
        ("x = []\nwhile True: x.append(b'x' * (1 << 20))", "memory", "out of memory"),
        ("x = b'x' * (1 << 40)", "memory", "MemoryError"),
        ("import os; os.kill(os.getpid(), 9)", "crash", "SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "crash", "SIGSEGV"),
        ("import os; os._exit(7)", "crash", "exit status 7"),
    ):
        cell = box.execute(payload)
        assert (cell.status, words in (cell.error or "")) == (status, True), cell
        assert value(box.execute("kept")) == "41"


def test_a_process_that_a_cell_forks_stays_out_of_the_protocol(box: DockerSandbox) -> None:
    asked: list[str] = []
    cell = box.execute(
        "import os\nchild = os.fork()\ntry: ask('who')\nexcept RuntimeError as error:\n"
        "    os._exit(7 if 'not one that it forked' in str(error) else 8)\nos.waitpid(child, 0)[1] >> 8",
        functions={"ask": asked.append},
    )
    assert (value(cell), asked) == ("7", ["who"])


def test_threads_of_a_cell_call_the_host_and_live_on(box: DockerSandbox) -> None:
    barrier = threading.Barrier(8)

    def ask(number: int) -> int:
        barrier.wait(20)
        return number * 2

    executor = "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(8)\n"
    cell = box.execute(executor + "list(pool.map(ask, range(8)))", functions={"ask": ask})
    assert value(cell) == str([number * 2 for number in range(8)])
    assert value(box.execute("list(pool.map(ask, range(8)))", functions={"ask": ask})) == value(cell)


def test_a_host_function_may_be_slow_while_output_floods(box: DockerSandbox) -> None:
    seen: list[int] = []
    cell = box.execute(
        "for i in range(300): print('x' * 10**5)\nask()",
        functions={"ask": lambda: "done"},
        on_output=lambda text: seen.append(len(text)),
    )
    assert value(cell) == "'done'"
    assert sum(seen) < 8_000_000 and cell.stdout_chars == 300 * 100_001
