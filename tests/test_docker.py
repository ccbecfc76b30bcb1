"""The Docker sandbox: what only a container has. What it shares with the local one is in test_sandbox.py."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import select
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, eventually, interpreter, need
from scripted import Request, Server, code

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
    made = DockerSandbox(cell_timeout=20)
    yield made
    made.close()


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
    channel: Any = box._started()
    found: dict[str, Any] = box.engine.inspect_container(channel.container)
    return found


def value(cell: Cell) -> str | None:
    assert cell.ok, cell.error
    return cell.value


def last_line(cell: Cell) -> str:
    assert not cell.ok
    return (cell.error or "").splitlines()[-1]


@pytest.fixture
def unclosed_sockets() -> Iterator[None]:
    """The SDK leaves those that could not connect: collected while their warnings are expected."""
    yield
    gc.collect()


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
    "only loopback": ("import os; os.listdir('/sys/class/net')", "['lo']"),
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

NO_FAMILY = "Address family not supported"
REFUSED = {
    "write to the root": ("open('/x', 'w')", "Read-only file system"),
    "write to the system": ("open('/usr/x', 'w')", "Read-only file system"),
    "shared memory": ("open('/dev/shm/x', 'w')", "No such file"),
    "run what it wrote": (
        "import os\nopen('/tmp/a', 'w').write('#!/bin/sh\\n')\nos.chmod('/tmp/a', 0o755)\nos.execv('/tmp/a', ['x'])",
        "Permission denied",
    ),
    "become root": ("import os; os.setuid(0)", "Operation not permitted"),
    "change ownership": ("import os; open('/tmp/o', 'w').close(); os.chown('/tmp/o', 0, 0)", "Operation not permitted"),
    "connect": ("import socket; socket.create_connection(('1.1.1.1', 53), 5)", NO_FAMILY),
    "reach the host": ("import socket; socket.create_connection(('172.17.0.1', 22), 5)", NO_FAMILY),
    "a socket of IPv6": ("import socket; socket.socket(socket.AF_INET6)", NO_FAMILY),
    "a socket of the machine that hosts this one": ("import socket; socket.socket(socket.AF_VSOCK)", NO_FAMILY),
    "a socket of the kernel": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", NO_FAMILY),
    "packets": ("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", NO_FAMILY),
    "cryptography of the kernel": ("import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)", NO_FAMILY),
    "a message queue": ("open('/dev/mqueue/x', 'w')", "Too many open files|No such file"),
    "resolve names": ("import socket; socket.getaddrinfo('example.com', 80)", "name resolution"),
    "raw sockets": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", NO_FAMILY),
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

SYSTEM_CALLS = {  # refused by the engine's seccomp profile, by the worker's, or for want of capabilities
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
    "shmget": "shmget(0, 4096, 0o1600)",
    "semget": "semget(0, 1, 0o1600)",
    "msgget": "msgget(0, 0o1600)",
    "mq_open": "syscall(240, b'x', 0o102, 0o600, None)",
    "io_uring_setup": "syscall(425, 1, bytes(120))",
}


@pytest.fixture(scope="module")
def hardened() -> Iterator[DockerSandbox]:
    made = DockerSandbox(cell_timeout=20)
    yield made
    made.close()


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
        "msgqueue": (0, 0),
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
    "threads left": "import threading as t, time\nfor _ in range(999): t.Thread(target=time.sleep, args=(9,)).start()",
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


# --- the options, from every level of configuration ----------------------------------------------------------------

CHOSEN = {"docker_cpus": 0.5, "docker_memory": "128m", "docker_network_disabled": False, "docker_runtime": "runc"}


def toml(options: dict[str, Any]) -> str:
    return "[rlm]\n" + "".join(f"{name} = {json.dumps(setting)}\n" for name, setting in options.items())


@pytest.mark.parametrize("level", ["arguments", "environment", "user's file", "project's file"])
def test_options_reach_the_container(
    level: str, engine: Any, openai: Server, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    """Read back from the container while the run's code is in it."""
    held: list[dict[str, Any]] = []
    others = containers(engine)

    def look(request: Request) -> str:
        if not held:
            held.extend(
                engine.inspect_container(found)["HostConfig"] for found in containers(engine) if found not in others
            )
        return "seen"

    options: dict[str, Any] = {"environment": "docker", "docker_image": IMAGE, "docker_mount": "none", **CHOSEN}
    given = options if level == "arguments" else {}
    if level == "environment":
        for name, setting in options.items():
            monkeypatch.setenv(f"RLM_{name.upper()}", str(setting))
    elif level == "user's file":
        Path(rlm.user_config_dir()).mkdir(parents=True)
        (Path(rlm.user_config_dir()) / "config.toml").write_text(toml(options))
    elif level == "project's file":
        (workspace / "rlm.toml").write_text(toml(options))
        rlm.trust(str(workspace / "rlm.toml"))
    openai.script = lambda r: look(r) if not r.system else code("FINAL(llm_query('look'))")
    assert rlm.complete("x", model="gpt-4o-mini", **given).value == "seen"
    (one,) = held
    assert (one["NanoCpus"], one["Memory"], one["MemorySwap"]) == (5 * 10**8, 128 << 20, 128 << 20)
    assert (one["NetworkMode"], one["Runtime"]) == ("bridge", "runc")
    assert not one.get("Binds") and not one.get("Mounts")


# --- the working directory -----------------------------------------------------------------------------------------

HIDDEN = [
    *(".env", ".env.local", "sub/.ENV", "key.pem", "sub/server.PEM", "id_rsa", "sub/id_ed25519", ".netrc"),
    *(".aws/credentials", ".ssh/config", "sub/.ssh/known", ".git-credentials", ".npmrc", ".pypirc", ".snipara/token"),
    *(".git/config", "module/.git/config", ".git/modules/module/config", ".git/worktrees/w/config.worktree"),
]
SHOWN = ["data.json", "environment.txt", "pem.txt", "sub/identity.txt", "git/config", ".git/HEAD", "aws.txt"]
READ_ALL = """
import os
found = {}
for place, folders, files in os.walk('/workspace'):
    for name in files:
        with open(os.path.join(place, name)) as file:
            found[os.path.relpath(os.path.join(place, name), '/workspace')] = file.read()
sorted(name for name, text in found.items() if text)
"""


def fill(folder: Path, names: list[str], text: str = SECRET) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_credentials_in_the_working_directory_are_hidden(folder: Path) -> None:
    fill(folder, HIDDEN)
    fill(folder, SHOWN, "harmless")
    assert [name for name in HIDDEN + SHOWN if rlm_tools.is_secret(name)] == HIDDEN
    with DockerSandbox(workspace=str(folder)) as box:
        assert value(box.execute(READ_ALL)) == repr(sorted(SHOWN))
        cell = box.execute("open('data.json').read(), open('sub/identity.txt').read()")
        assert value(cell) == "('harmless', 'harmless')"


def test_credentials_behind_links_are_hidden(folder: Path, tmp_path: Path) -> None:
    fill(folder, ["plain", "conf/credentials"])
    fill(tmp_path, ["outside"])
    (folder / ".env").symlink_to("plain")
    (folder / ".aws").symlink_to("conf")
    (folder / "link").symlink_to("../outside")
    (folder / ".netrc").symlink_to("nowhere")
    with DockerSandbox(workspace=str(folder)) as box:
        cell = box.execute(
            "import os\n[open(n).read() for n in ('plain', '.env')], os.listdir('conf'), os.path.exists('link')"
        )
        assert value(cell) == "(['', ''], [], False)"


def test_the_working_directory_can_only_be_read(folder: Path) -> None:
    fill(folder, ["data.txt"], "line")
    with DockerSandbox(workspace=str(folder)) as box:
        for attempt in ("open('/workspace/new', 'w')", "import os; os.remove('data.txt')", "import os; os.mkdir('d')"):
            assert "Read-only file system" in last_line(box.execute(attempt)), attempt
    assert sorted(path.name for path in folder.iterdir()) == ["data.txt"]


def test_a_folder_that_is_too_large_to_look_through_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, [f"{number}.pem" for number in range(12)])
    monkeypatch.setattr(rlm_sandbox, "MASKS_MAX", 10)
    with pytest.raises(SandboxError, match="too many files") as caught:
        DockerSandbox(workspace=str(folder))
    assert "docker_mount" in caught.value.hint


# --- the whole product ---------------------------------------------------------------------------------------------


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100)


def test_the_specifications_example(openai: Server, workspace: Path) -> None:
    fill(workspace, ["a.json", "deep/b.json"], '{"mail": "ann@example.org", "cc": ["bob@example.org"]}')
    fill(workspace, [".env.json", "id_list.json"], '{"mail": "secret@example.org"}')
    source = """
import json, re
from pathlib import Path
found = set()
for path in sorted(Path('.').rglob('*.json')):
    found |= set(re.findall(r'[\\w.]+@[\\w.]+', path.read_text()))
FINAL(sorted(found))
"""
    openai.script = lambda request: code(source)
    ran = cli("run", "--env", "docker", "Parse the JSON files and extract all emails")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == ["ann@example.org", "bob@example.org"]


def test_subcalls_recursion_and_tools_work_without_a_network(openai: Server, workspace: Path) -> None:
    (workspace / "data.txt").write_text("one\ntwo\n")
    source = (
        "text = file_read('data.txt')\nparts = llm_query_batched(['a', 'b'])\n"
        "FINAL([parts, llm_query('c'), rlm_query('child', context='ctx'), 'two' in str(text), double(21)])"
    )

    def model(request: Request) -> Any:
        if not request.system:
            return request.prompt.upper()
        return code("FINAL(context * 2)") if "child" in request.prompt else code(source)

    openai.script = model
    tool = rlm.Tool(
        "double", "Twice a number.", {"type": "object", "properties": {"n": {"type": "integer"}}}, lambda n: 2 * n
    )
    result = rlm.complete("go", model="gpt-4o-mini", environment="docker", tools=[tool], docker_mount="none")
    assert result.value == [["A", "B"], "C", "ctxctx", True, 42]
    assert result.depth_reached == 1


# --- nothing is left -----------------------------------------------------------------------------------------------

HOST = f"""
import sys, threading
sys.path.insert(0, {str(ROOT)!r})
import rlm_sandbox
boxes = [rlm_sandbox.DockerSandbox() for _ in range(2)]
threading.Thread(target=boxes[0].execute, args=("while True: pass",), kwargs={{"timeout": 600}}, daemon=True).start()
print(boxes[1].execute("6 * 7").value, flush=True)
"""
ENDS = {
    "end": "",
    "exception": "raise RuntimeError('on purpose')",
    "interrupt": "import time; time.sleep(600)",
    "kill": "import time; time.sleep(600)",
}


@pytest.mark.parametrize("how", ENDS)
def test_nothing_outlives_the_host(engine: Any, how: str) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST + ENDS[how]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    label = rlm_sandbox.owner_label(host.pid)
    assert host.stdout is not None
    with host.stdout as shown:
        assert shown.readline() == "42\n"
    if how in ("interrupt", "kill"):
        host.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    host.wait(60)

    def gone() -> bool:
        return not engine.containers(all=True, filters={"label": f"{rlm_sandbox.LABEL}={label}"})

    assert eventually(gone)


def test_a_container_that_does_not_start_is_removed(engine: Any) -> None:
    before = containers(engine)
    with pytest.raises(SandboxError):
        DockerSandbox(runtime="none-such")
    assert containers(engine) == before


@pytest.mark.parametrize("moment", ["attach_socket", "start"])
def test_an_interrupt_during_the_start_leaves_nothing(
    engine: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = containers(engine)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        DockerSandbox()
    monkeypatch.undo()
    assert containers(engine) == before


def leftover(engine: Any, label: str) -> str:
    """A container that was made and never started, as a killed host leaves it."""
    made = engine.create_container(IMAGE, ["true"], labels={rlm_sandbox.LABEL: label}, network_disabled=True)
    return str(made["Id"])


def test_leftovers_of_dead_hosts_are_swept_and_no_others(engine: Any) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    dead = f"{rlm_sandbox.machine_id()} {ended.pid} {rlm_sandbox.start_of(ended.pid)}"
    ended.wait()
    living = rlm_sandbox.owner_label(os.getppid())
    foreign = f"another-machine/1 {ended.pid} 1"
    made = {name: leftover(engine, label) for name, label in (("dead", dead), ("living", living), ("foreign", foreign))}
    try:
        rlm_sandbox.sweep_containers(engine)
        there = {one["Id"] for one in engine.containers(all=True)}
        assert {name for name, found in made.items() if found in there} == {"living", "foreign"}
    finally:
        for found in made.values():
            rlm_sandbox.remove_container(engine, found)


@pytest.mark.nightly
def test_two_hundred_in_a_row_leave_nothing(engine: Any) -> None:
    before, held = containers(engine), []
    for number in range(200):
        with DockerSandbox() as box:
            assert value(box.execute(f"{number} + 1")) == str(number + 1)
        held.append(len(os.listdir("/proc/self/fd")))
    assert containers(engine) == before
    assert held[-1] <= held[50] + 3  # the SDK's connections are kept, but no more and more of them


# --- containers kept warm ------------------------------------------------------------------------------------------


def test_the_pool_serves_and_refills_and_ends(engine: Any) -> None:
    def waiting() -> int:
        return sum(map(len, rlm_sandbox._warm.values()))

    others = containers(engine)
    with DockerSandbox(pool=1, memory="128m") as first:
        assert eventually(lambda: waiting() == 1)
        (channels,) = rlm_sandbox._warm.values()
        kept: Any = channels[0]
        with DockerSandbox(pool=1, memory="128m") as second:
            channel: Any = second._started()
            assert channel is kept
            assert value(second.execute("1 + 1")) == "2"
        assert value(first.execute("2 + 2")) == "4"
        assert eventually(lambda: waiting() == 1 and not rlm_sandbox._filling)
    rlm_sandbox.close_warm()
    assert containers(engine) == others


def test_a_warm_container_that_died_is_not_handed_out(engine: Any) -> None:
    with DockerSandbox(pool=1, memory="96m"):
        assert eventually(lambda: any(rlm_sandbox._warm.values()))
        (channels,) = rlm_sandbox._warm.values()
        waits: Any = channels[0]
        rlm_sandbox.remove_container(engine, waits.container)
        with DockerSandbox(pool=1, memory="96m") as box:
            assert value(box.execute("1 + 1")) == "2"
    assert eventually(lambda: any(rlm_sandbox._warm.values()))
    rlm_sandbox.close_warm()


# --- what cannot be ------------------------------------------------------------------------------------------------

HOPELESS = {
    "no daemon": ({}, "unix:///nowhere/docker.sock", "no Docker daemon answers at unix:///nowhere", "start it"),
    "no port": ({}, "tcp://127.0.0.1:1", "no Docker daemon answers at tcp://127.0.0.1:1", "DOCKER_HOST"),
    "runtime": ({"runtime": "runsc-none"}, "", "no runtime 'runsc-none'", "docker info"),
    "memory": ({"memory": "8m"}, "", "too little for Python", "docker_memory"),
    "processors": ({"cpus": 999.0}, "", "number of processors", "docker_cpus"),
    "image": ({"image": "flat-rlm-none-such:1"}, "", "is not here and cannot be pulled", "docker_image"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("unclosed_sockets")
@pytest.mark.parametrize("options, host, message, hint", HOPELESS.values(), ids=HOPELESS)
def test_errors_say_the_next_step(
    options: dict[str, Any], host: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host:
        monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(SandboxError) as caught:
        DockerSandbox(on_progress=lambda line: None, **options)
    assert message in str(caught.value) and hint in caught.value.hint


def test_an_image_without_python(engine: Any) -> None:
    name = "flat-rlm-test-empty:1"
    engine.import_image_from_data(tar_of({"hello": b"#!/bin/none"}), repository="flat-rlm-test-empty", tag="1")
    try:
        with pytest.raises(SandboxError, match="has no python"):
            DockerSandbox(image=name)
    finally:
        engine.remove_image(name, force=True)


OLD = [version for version in ("3.7", "3.8", "3.9") if interpreter(f"python{version}")]


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD)
def test_old_pythons(version: str, tmp_path: Path) -> None:
    """The worker needs 3.8; anything older is told so."""
    found = interpreter(f"python{version}")
    assert found
    home = Path(found).resolve().parent.parent
    for library in (home / "lib").glob(f"libpython{version}*.so.1.0"):
        shutil.copy(library, tmp_path)
    shutil.copy(home / "bin" / f"python{version}", tmp_path / "python3")
    unused = shutil.ignore_patterns("test", "tests", "config-*", "site-packages", "__pycache__")
    shutil.copytree(home / "lib" / f"python{version}", tmp_path / "lib", ignore=unused)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {IMAGE}\nCOPY python3 /usr/local/bin/\nCOPY lib /usr/local/lib/python{version}\n"
        "COPY libpython* Dockerfile /usr/local/lib/\nENV LD_LIBRARY_PATH=/usr/local/lib\n"
    )
    name = f"flat-rlm-test-old:{version}"
    subprocess.run(["docker", "build", "-q", "--network=none", "-t", name, tmp_path], check=True, capture_output=True)
    try:
        if version == "3.7":
            with pytest.raises(SandboxError, match=r"is older than 3\.8"):
                DockerSandbox(image=name)
            return
        with DockerSandbox(image=name, cell_timeout=20) as box:
            box.set("context", "é" * 1000)
            box.execute("kept = 41\nimport sys")
            cell = box.execute("sys.version[:3], len(context), ask(kept)", functions={"ask": lambda n: n + 1})
            assert value(cell) == f"('{version}', 1000, 42)"
            assert box.execute("sum(range(10**13))", timeout=1).status == "timeout"
            assert value(box.execute("kept")) == "41"
            assert box.execute("FINAL({'a': (1, b'x')})").final == {"a": (1, b"x")}
    finally:
        subprocess.run(["docker", "rmi", "-f", name], check=True, capture_output=True)


def test_a_folder_named_docker_is_said_to_hide_the_sdk(workspace: Path) -> None:
    (workspace / "docker").mkdir()
    (workspace / "docker" / "__init__.py").touch()
    source = (
        "import rlm_sandbox\ntry: rlm_sandbox.DockerSandbox()\nexcept rlm_sandbox.SandboxError as e: print(e, e.hint)"
    )
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert str(workspace / "docker") in ran.stdout and "rename that folder" in ran.stdout, ran.stderr


def test_without_permission_on_the_socket(tmp_path: Path) -> None:
    need("root")
    source = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\nimport docker, rlm_sandbox\nos.setgroups([])\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: rlm_sandbox.DockerSandbox()\nexcept rlm_sandbox.SandboxError as e: print(e, '|', e.hint)"
    )
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert "no permission to use Docker" in ran.stdout and "usermod" in ran.stdout, ran.stderr


def test_a_context_that_cannot_fit_names_the_memory_needed() -> None:
    text = "x" * (60 << 20)
    with DockerSandbox(memory="96m") as box, pytest.raises(SandboxError, match="needs about 120 MB") as caught:
        box.set("context", text)
    needed = caught.value.hint.split('"')[1]
    with DockerSandbox(memory=needed) as box:
        box.set("context", text)
        assert value(box.execute("len(context), context.count('x')")) == f"({60 << 20}, {60 << 20})"


# --- an engine of the tests' own: remote, dying, full --------------------------------------------------------------


class Daemon:
    """A second dockerd, in namespaces of its own: it would take the first one's bridge away, and leave mounts."""

    def __init__(self, folder: Path, disk: str = ""):
        self.folder, self.socket, self.disk = folder, folder / "docker.sock", disk
        self.host = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folders = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        for stale in ("pid", "docker.sock", "exec/containerd/containerd.pid"):
            (self.folder / stale).unlink(missing_ok=True)
        options = [f"--{name}={self.folder / place}" for name, place in folders.items()]
        apart = ["unshare", "-n", "-m", "-p", "--fork", "--kill-child", "--mount-proc"]
        (self.folder / "data").mkdir(exist_ok=True)
        disk = f"mount -t tmpfs -o size={self.disk} none {self.folder / 'data'} && " if self.disk else ""
        dockerd = ["dockerd", *options, "-H", self.host, "--bridge=none", "--iptables=false"]
        command = [*apart, "sh", "-c", f"{disk}exec {shlex.join(dockerd)}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        assert eventually(self.answers), (self.folder / "log").read_text()[-2000:]

    def load(self) -> None:
        copy = f"docker save {IMAGE} | docker -H {self.host} load -q"
        subprocess.run(copy, shell=True, check=True, capture_output=True)

    def first(self) -> int:
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())

    def data(self) -> Path:
        """Its folder as it sees it itself."""
        return Path(f"/proc/{self.first()}/root{self.folder / 'data'}")

    def answers(self) -> bool:
        asked = ["docker", "-H", self.host, "version"]
        return self.socket.exists() and subprocess.run(asked, capture_output=True).returncode == 0

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            os.kill(self.first(), number)  # of its namespace: all others end with it
            process, self.process = self.process, None
            process.wait(60)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, engine: Any) -> Iterator[Daemon]:
    need("root")
    need("dockerd")
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    daemon.start()
    daemon.load()
    yield daemon
    daemon.end()


class Forward:
    """TCP on loopback, with TLS if a context is given, carried to an engine's socket: a remote daemon's other end."""

    def __init__(self, target: Path, tls: ssl.SSLContext | None = None):
        self.target, self.tls = target, tls
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.tls:
                    near = self.tls.wrap_socket(near, server_side=True)
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self.target))
                self.open += [near, far]
                threading.Thread(target=self.carry, args=(near, far), daemon=True).start()

    def carry(self, near: socket.socket, far: socket.socket) -> None:
        """Both ways on one thread, since a TLS connection may not be read and written at once."""
        with near, far, contextlib.suppress(OSError):
            while True:
                pending = isinstance(near, ssl.SSLSocket) and near.pending()
                for ready in [near] if pending else select.select([near, far], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    (far if ready is near else near).sendall(data)

    def close(self) -> None:
        self.listener.close()
        for one in self.open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def certificate(folder: Path) -> ssl.SSLContext:
    """One for 127.0.0.1 that is its own authority, laid where the SDK looks."""
    subject = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    command = ["openssl", "req", *subject.split(), "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    shutil.copy(folder / "cert.pem", folder / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_remote_daemon(
    second: Daemon, tls: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tls:
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which requests would take instead
            monkeypatch.delenv(name, raising=False)
    forward = Forward(second.socket, certificate(tmp_path) if tls else None)
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{forward.port}")
    try:
        client = rlm_sandbox.docker_engine()
        with DockerSandbox(workspace=str(folder), cell_timeout=20) as box:
            assert value(box.execute("import os; os.getcwd(), os.path.exists('/workspace')")) == "('/tmp', False)"
            box.set("context", "é" * 4_000_000)
            cell = box.execute("len(ask(context[:10**6])), len(context)", functions={"ask": str.upper})
            assert value(cell) == "(1000000, 4000000)"
            assert box.execute("for _ in range(50): print('x' * 10**6)").stdout_chars == 50 * 1_000_001
            assert box.execute("kept = 1\nwhile True: pass", timeout=1).status == "timeout"
            assert value(box.execute("kept")) == "1"
        assert containers(client) == []
        client.close()
    finally:
        forward.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("unclosed_sockets")
def test_a_daemon_that_dies_in_mid_cell(second: Daemon, openai: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error, an intact journal, and a run that goes on when the daemon is back."""
    monkeypatch.setenv("DOCKER_HOST", second.host)
    asked: list[str] = []
    dead = threading.Event()

    def model(request: Request) -> Any:
        if not request.system:
            asked.append(request.prompt)
            if request.prompt == "second" and asked.count("second") == 1:
                second.end(signal.SIGKILL)
                dead.set()
            return request.prompt.upper()
        return code(["kept = llm_query('first')", "FINAL([kept, llm_query('second')])"][min(request.turn, 2) - 1])

    openai.script = model
    options: dict[str, Any] = {"model": "gpt-4o-mini", "environment": "docker", "docker_mount": "none"}
    with pytest.raises(rlm.SandboxError, match="does not answer any more") as caught:
        rlm.complete("go", **options)
    assert "rlm resume" in caught.value.hint and caught.value.trajectory_id
    assert dead.wait(60)
    second.start()
    with rlm.RLM(**options) as again:
        result = again.resume(caught.value.trajectory_id)
    assert result.value == ["FIRST", "SECOND"]
    assert asked.count("first") == 1
    client = rlm_sandbox.docker_engine()
    assert containers(client) == []
    client.close()


@pytest.mark.slow
def test_a_full_disk(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("root")
    need("dockerd")
    daemon = Daemon(tmp_path, disk="400m")
    daemon.start()
    try:
        daemon.load()
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        client = rlm_sandbox.docker_engine()
        with DockerSandbox() as box:
            assert value(box.execute("1 + 1")) == "2"
        with contextlib.suppress(OSError), daemon.data().joinpath("fill").open("wb", buffering=0) as file:
            while file.write(b"x" * (1 << 20)):
                pass
        with pytest.raises(SandboxError, match="disk is full") as caught:
            DockerSandbox()
        assert "docker system df" in caught.value.hint
        assert containers(client) == []
        client.close()
    finally:
        daemon.end()


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[str]:
    """The address of a podman service of the test's own; its image is the engine's, as an archive."""
    if not shutil.which("podman"):
        pytest.skip("podman is not needed by anybody who has Docker")
    need("root")
    places = ["--root", tmp_path / "root", "--runroot", tmp_path / "run", "--storage-driver", "vfs"]
    program = ["podman", *map(str, places), "--cgroup-manager", "cgroupfs", "--runtime", "runc"]
    host = f"unix://{tmp_path / 'podman.sock'}"
    with (tmp_path / "log").open("wb") as log:
        apart = ["unshare", "-m", "-p", "--fork", "--kill-child", "--mount-proc"]
        service = subprocess.Popen([*apart, *program, "system", "service", "--time=0", host], stdout=log, stderr=log)
    try:
        assert eventually((tmp_path / "podman.sock").exists)
        path = "ENV PATH=/usr/local/bin:/usr/bin:/bin"
        made = subprocess.run(
            ["docker", "create", IMAGE, "true"], check=True, capture_output=True, text=True
        ).stdout.strip()
        copy = f"docker export {made} | docker -H {host} import --change '{path}' - {IMAGE}; docker rm {made}"
        subprocess.run(copy, shell=True, check=True, capture_output=True)
        yield host
    finally:
        service.kill()
        service.wait(60)


@pytest.mark.slow
def test_podman(podman: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, HIDDEN)
    fill(folder, SHOWN, "harmless")
    monkeypatch.setenv("DOCKER_HOST", podman)
    box = DockerSandbox(workspace=str(folder), cell_timeout=20)
    try:
        assert value(box.execute(READ_ALL)) == repr(sorted(SHOWN))
        box.execute("kept = 41")
        for payload in ("sum(range(10**13))", "import ctypes; ctypes.string_at(0)", "import os; os.kill(-1, 9)"):
            box.execute(payload, timeout=2)
            assert value(box.execute("ask(kept)", functions={"ask": lambda n: n + 1})) == "42"
        for name in ("not root", "no capabilities", "no new privileges", "seccomp filters", "only loopback"):
            probe, shown = INSIDE[name]
            assert value(box.execute(probe)) == shown, name
    finally:
        box.close()
    assert eventually(lambda: containers(box.engine) == [])  # podman removes at its leisure
    box.engine.close()
