"""What every test gets: an environment with no real key in it, a folder of its own, a scripted model server.

At the end of each test the planted key is searched for in all that the test wrote; at the end of the session nothing
that the tests started may be left running.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scripted

ROOT = Path(__file__).parent.parent
CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
MARK = f"flat-rlm-tests-{os.getpid()}"
MAY_HOLD_A_KEY = {".env", "rlm.toml", "config.toml"}  # written by the tests themselves


# --- the environment -----------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    """A variable that would let a test reach a real provider, or the developer's own configuration reach a test."""
    configures = name.startswith(("RLM_", "SNIPARA_", "XDG_", "OPENAI_", "ANTHROPIC_", "AWS_", "AZURE_", "GOOGLE_"))
    return (
        configures
        or re.search(r"(_KEY|_TOKEN|_SECRET|_BASE_URL|_API_BASE|_PROXY|_COLOR|_HOST)$", name.upper()) is not None
    )


@pytest.fixture(scope="session", autouse=True)
def session_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Home, configuration, cache and temporary files of the whole session lie under pytest's own folder."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if is_private(name)]:
            patch.delenv(name)
        for name in ("TMPDIR", "HOME"):
            (base / name.lower()).mkdir(mode=0o700)
            patch.setenv(name, str(base / name.lower()))
        patch.setattr("tempfile.tempdir", None)
        patch.setattr("sys.dont_write_bytecode", False)  # a thousand processes would compile our modules anew
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("RLM_TEST_SESSION", MARK)
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command line that runs in this process takes over Ctrl-C, and ignores the second: not in later tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and an empty home with no configuration."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    yield folder
    found = files_with_the_key(tmp_path)
    assert not found, f"the planted key was written to {found}"


def files_with_the_key(folder: Path) -> list[str]:
    key = scripted.KEY.encode()
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_symlink() or not path.is_file() or path.name in MAY_HOLD_A_KEY or path.stat().st_size > 50e6:
                continue
            if key in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue  # gone meanwhile, or made unreadable by the test
    return found


@pytest.fixture
def server() -> Iterator[scripted.Server]:
    """A scripted model server; set `server.script`. What it would not have accepted fails the test."""
    with scripted.Server() as running:
        yield running
    assert not running.problems, "the server was sent what a provider refuses:\n" + "\n".join(running.problems)


@pytest.fixture
def openai(server: scripted.Server, monkeypatch: pytest.MonkeyPatch) -> scripted.Server:
    """The server, found through OPENAI_BASE_URL with the planted key."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", scripted.KEY)
    return server


@pytest.fixture
def anthropic(server: scripted.Server, monkeypatch: pytest.MonkeyPatch) -> scripted.Server:
    """The server, found through ANTHROPIC_BASE_URL with the planted key."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", scripted.KEY)
    return server


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is nightly or live is slow, so that `-m "not slow"` leaves it out, and has ten minutes."""
    for item in items:
        if item.get_closest_marker("nightly") or item.get_closest_marker("live"):
            item.add_marker("slow")
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    leaked = [title for title, text in report.sections if scripted.KEY in text]
    if leaked and report.passed:
        report.outcome = "failed"
        report.longrepr = f"the planted key was printed: {leaked}"
    return report  # type: ignore[return-value]


# --- what a test may need ------------------------------------------------------------------------------------------


def need(what: str) -> None:
    """Skip where `what` (docker, a program, python3.10, "import pydantic" …) is not here; in CI that is a failure."""
    if not available(what):
        (pytest.fail if CI else pytest.skip)(f"{what} is not available here")


@functools.cache
def available(what: str) -> bool:
    if what == "docker":
        return docker_answers()
    if what == "linux":
        return os.uname().sysname == "Linux"
    if what == "root":
        return os.getuid() == 0
    if what.startswith("import "):
        return importlib.util.find_spec(what.split()[1]) is not None
    if what.startswith("python3."):
        return interpreter(what) is not None
    return shutil.which(what) is not None


@functools.cache
def docker_answers() -> bool:
    """An engine that has the image the tests use (`make image`)."""
    try:
        command = ["docker", "image", "inspect", "python:3.11-slim"]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def interpreter(name: str) -> str | None:
    """The path of `python3.N`: on the PATH and answering, or under pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "/root/.pyenv")) / "versions"
    minor = name.removeprefix("python")
    for path in [shutil.which(name), *sorted(pyenv.glob(f"{minor}.*/bin/python"))]:
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return str(path)
    return None


def node_module(path: str) -> Path:
    """A file of an npm package, from NODE_PATH or ./node_modules."""
    folders = [*os.environ.get("NODE_PATH", "").split(os.pathsep), str(ROOT / "node_modules")]
    for folder in filter(None, folders):
        if (Path(folder) / path).exists():
            return Path(folder) / path
    (pytest.fail if CI else pytest.skip)(f"npm's {path} is not here (npm install axe-core eslint pyright)")
    raise AssertionError


# --- waiting -------------------------------------------------------------------------------------------------------


def eventually(happens: Callable[[], object], seconds: float = 30) -> bool:
    """Whether it happens within this time."""
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- nothing is left running ---------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ours(pid: int, base: str) -> bool:
    """A process of this session: a descendant, or one that carries its mark or has its folder open."""
    folder = Path(f"/proc/{pid}")
    try:
        if MARK.encode() in (folder / "environ").read_bytes() or base.encode() in (folder / "cmdline").read_bytes():
            return True
        links = [folder / "cwd", *(folder / "fd").iterdir()]
        return any(os.readlink(link).startswith(base) for link in links) or os.getpid() in ancestors(pid)
    except OSError:
        return False


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def left_running(base: str) -> dict[int, str]:
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != os.getpid()]
    mine = [pid for pid in pids if alive(pid) and ours(pid, base) and pid not in ancestors(os.getpid())]
    found = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in mine if alive(pid)}
    # What multiprocessing starts beside a cluster lives as long as this process does.
    return {pid: command for pid, command in found.items() if "multiprocessing.resource_tracker" not in command}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not Path("/proc/self/stat").exists():
        return
    if sandbox := sys.modules.get("rlm_sandbox"):
        sandbox.shutdown()  # the process that starts sandboxes lives as long as this one
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    base = str(factory.getbasetemp())
    eventually(lambda: not left_running(base), 5)  # a sandbox whose host was killed ends by itself, but not at once
    if left := left_running(base):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        lines = [f"  {pid} {command[:200]}" for pid, command in left.items()]
        print("\nFAILED: processes left behind by the tests:", *lines, sep="\n")
