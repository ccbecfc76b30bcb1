"""What the operating system refuses a worker, tried from the inside with the language policy left out.

A filter with one wrong jump allows everything and looks fine, so each denial is attempted for real.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlm_sandbox
import rlm_worker
from rlm_sandbox import LocalSandbox, SandboxError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is Linux's")

PRELUDE = """
import ctypes, errno, os, signal, socket, struct, subprocess, sys, mmap, resource, time
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def refused(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (OSError, RuntimeError, ValueError) as error:
        return errno.errorcode.get(getattr(error, "errno", None), str(error))
    return "ALLOWED"
"""


@pytest.fixture(scope="module")
def box() -> Iterator[LocalSandbox]:
    with LocalSandbox(layers=("confinement",), memory="256m", cell_timeout=20) as sandbox:
        assert sandbox.execute(PRELUDE).ok
        yield sandbox


X86 = os.uname().machine == "x86_64"
FILES = {
    "read /etc/passwd": "open('/etc/passwd').read",
    "read the environment": "open, '/proc/self/environ'",
    "read another process": "open, '/proc/1/cmdline'",
    "list the root": "os.listdir, '/'",
    "list the home": "os.listdir, '/root'",
    "write outside": "open, '/tmp/escaped', 'w'",
    "write in the standard library": "open, os.path.join(os.path.dirname(os.__file__), 'escaped.py'), 'w'",
    "write in the mount's parent": "open, '../escaped', 'w'",
    "remove outside": "os.unlink, os.__file__",
    "symlink": "os.symlink, '/etc/passwd', 'link'",
    "hard link": "os.link, '/etc/passwd', 'link'",
    "fifo": "os.mkfifo, 'fifo'",
    "device": "os.mknod, 'device', 0o20600, os.makedev(1, 3)",
    "chmod": "os.chmod, '.', 0o777",
    "chown": "os.chown, '.', 1, 1",
    "chdir": "os.chdir, '/'",
    "chroot": "os.chroot, '.'",
    "read a device": "open, '/dev/zero'",
    "write to a device": "open, '/dev/null', 'w'",
}
CALLS = {
    "socket": "socket.socket",
    "unix socket": "socket.socket, socket.AF_UNIX",
    "socketpair": "socket.socketpair",
    "netlink": "socket.socket, socket.AF_NETLINK, socket.SOCK_RAW",
    "raw socket": "socket.socket, socket.AF_INET, socket.SOCK_RAW",
    "exec": "os.execv, sys.executable, ['x']",
    "exec of a shell": "subprocess.run, ['/bin/true']",
    "posix_spawn": "os.posix_spawn, '/bin/true', ['x'], {}",
    "thread": "__import__('threading').Thread(target=print).start",
    "new session": "os.setsid",
    "new process group": "os.setpgid, 0, 0",
    "setuid": "os.setuid, 1000",
    "signal init": "os.kill, 1, 0",
    "nice": "os.nice, -5",
    "raise the memory limit for good": "resource.setrlimit, resource.RLIMIT_AS, (-1, -1)",
    "raise the file size limit": "resource.setrlimit, resource.RLIMIT_FSIZE, (-1, -1)",
    "raise the process limit": "resource.setrlimit, resource.RLIMIT_NPROC, (-1, -1)",
    "another process's limits": "resource.prlimit, 1, resource.RLIMIT_AS, (1, 1)",
    "memfd": "os.memfd_create, 'x'",
    "pidfd": "os.pidfd_open, os.getpid()",
    "timer": "signal.setitimer, signal.ITIMER_REAL, 100",
    "scheduler": "os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)",
    "writable and executable memory": "mmap.mmap, -1, 4096, prot=7",
    "executable memory": "lambda: syscall(10, ctypes.c_void_p(id(object)), 4096, 5)",
    "host name": "socket.sethostname, 'x'",
    "shared memory": "__import__('multiprocessing.shared_memory').shared_memory.SharedMemory, 'x', True, 100",
    "eventfd": "getattr(os, 'eventfd', lambda n: syscall(290, n, 0)), 1",
}
REFUSED = ("'EPERM'", "'EACCES'", "'ESRCH'", '"can\'t start new thread"', "'not allowed to raise maximum limit'")
# Numbers on x86_64, of calls that Python has no function for.
SYSCALLS = {
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "mount": 165,
    "umount": 166,
    "pivot_root": 155,
    "unshare": 272,
    "setns": 308,
    "bpf": 321,
    "perf_event_open": 298,
    "io_uring_setup": 425,
    "userfaultfd": 323,
    "keyctl": 250,
    "add_key": 248,
    "init_module": 175,
    "kexec_load": 246,
    "reboot": 169,
    "swapon": 167,
    "settimeofday": 164,
    "clock_settime": 227,
    "syslog": 103,
    "quotactl": 179,
    "acct": 163,
    "personality": 135,
    "seccomp": 317,
    "prctl": 157,
    "capset": 126,
    "landlock_create_ruleset": 444,
    "open_by_handle_at": 304,
    "name_to_handle_at": 303,
    "shmget": 29,
    "msgget": 68,
    "semget": 64,
    "mq_open": 240,
    "connect": 42,
    "bind": 49,
    "sendmsg": 46,
    "recvmsg": 47,
    "vfork": 58,
    "tkill": 200,
    "tgkill": 234,
    "rt_sigqueueinfo": 129,
    "pidfd_send_signal": 424,
    "pidfd_getfd": 438,
    "fanotify_init": 300,
    "inotify_init1": 294,
    "timer_create": 222,
    "modify_ldt": 154,
    "ioperm": 173,
    "iopl": 172,
    "move_pages": 279,
    "splice": 275,
    "vmsplice": 278,
    "execveat": 322,
    "statfs": 137,
    "utimensat": 280,
    "setxattr": 188,
}


@pytest.mark.parametrize("attempt", FILES.values(), ids=FILES)
def test_files_outside_the_scratch_folder_are_refused(box: LocalSandbox, attempt: str) -> None:
    cell = box.execute(f"refused({attempt})" if "," in attempt else f"refused(lambda: {attempt}())")
    assert cell.value in ("'EACCES'", "'EPERM'"), cell


@pytest.mark.parametrize("attempt", CALLS.values(), ids=CALLS)
def test_calls_that_reach_out_are_refused(box: LocalSandbox, attempt: str) -> None:
    cell = box.execute(f"refused({attempt})")
    assert cell.value in REFUSED, cell


@pytest.mark.skipif(not X86, reason="numbers of x86_64")
@pytest.mark.parametrize("number", SYSCALLS.values(), ids=SYSCALLS)
def test_system_calls_that_are_not_listed_are_refused(box: LocalSandbox, number: int) -> None:
    cell = box.execute(f"refused(syscall, {number}, 0, 0, 0, 0, 0)")
    assert cell.value == "'EPERM'", cell


@pytest.mark.skipif(not X86, reason="numbers of x86_64")
def test_clone_makes_plain_forks_only(box: LocalSandbox) -> None:
    flags = {
        "thread": 0x3D0F00,
        "user namespace": 0x10000011,
        "pid namespace": 0x20000011,
        "vm": 0x111,
        "parent": 0x8011,
    }
    for name, flag in flags.items():
        assert box.execute(f"refused(syscall, 56, {flag}, 0, 0, 0, 0)").value == "'EPERM'", name
    assert box.execute("refused(syscall, 435, 0, 88)").value == "'ENOSYS'"


@pytest.mark.skipif(not X86, reason="x86 has them")
def test_the_x32_numbers_are_refused(box: LocalSandbox) -> None:
    assert box.execute("refused(syscall, 0x40000000 + 39)").value == "'EPERM'"


@pytest.mark.skipif(not X86, reason="machine code for x86_64")
def test_the_32_bit_entry_kills_the_process(box: LocalSandbox) -> None:
    """int 0x80 has other numbers; there is no executable memory to write it into, and the filter knows the machine."""
    program = rlm_worker.build_filter(0, 0xC000003E, True)
    assert program[:3] == [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (0x06, 0, 0, 0x80000000)]


def test_fcntl_and_ioctl_are_limited(box: LocalSandbox) -> None:
    assert box.execute("import fcntl; refused(fcntl.fcntl, 0, fcntl.F_SETOWN, 1)").value == "'EPERM'"
    assert box.execute("refused(fcntl.ioctl, 0, 0x5412, b'x')").value == "'EPERM'"  # TIOCSTI


def test_what_python_needs_is_allowed(box: LocalSandbox) -> None:
    code = """
import json, datetime, zoneinfo, encodings.idna, random, colorsys
open('note.txt', 'w').write('ä' * 1000)
os.mkdir('folder'); os.rename('note.txt', 'folder/note.txt')
assert len(open('folder/note.txt').read()) == 1000
os.unlink('folder/note.txt'); os.rmdir('folder')
datetime.datetime.strptime('2026-01-02', '%Y-%m-%d'); time.sleep(0.001); os.urandom(4); time.localtime()
r, w = os.pipe(); os.write(w, b'x'); assert os.read(r, 1) == b'x'; os.close(r); os.close(w)
m = mmap.mmap(-1, 4096); m[:1] = b'x'; m.close()
'fine'
"""
    assert box.execute(code).value == "'fine'"


def test_a_child_process_can_be_waited_for_and_killed(box: LocalSandbox) -> None:
    code = """
pid = os.fork()
if pid == 0:
    time.sleep(60)
os.kill(pid, signal.SIGKILL)
os.WTERMSIG(os.waitpid(pid, 0)[1])
"""
    assert box.execute(code).value == "9"


def test_processes_are_limited(box: LocalSandbox) -> None:
    code = """
children, why = [], None
try:
    while len(children) < 1000:
        pid = os.fork()
        if pid == 0:
            time.sleep(30); os._exit(0)
        children.append(pid)
except OSError as error:
    why = errno.errorcode[error.errno]
for pid in children:
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
why, len(children) < 60
"""
    assert box.execute(code).value == "('EAGAIN', True)"


def test_memory_is_limited_and_the_variables_survive(box: LocalSandbox) -> None:
    box.execute("kept = 41")
    cell = box.execute("big = bytearray(600 << 20)")
    assert (cell.status, cell.restored) == ("memory", False)
    assert box.execute("kept").value == "41"


def test_the_scratch_folder_is_bounded(box: LocalSandbox) -> None:
    one = box.execute("signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nrefused(open('f', 'wb').write, bytes(65 << 20))")
    assert one.value in ("'EFBIG'", "'ENOSPC'"), one
    code = """
def fill():
    for i in range(20):
        with open('f%d' % i, 'wb') as f: f.write(bytes(8 << 20))
why = refused(fill)
for name in os.listdir('.'): os.unlink(name)
why
"""
    assert box.execute(code).value == "'ENOSPC'"
    many = "refused(lambda: [open('n%d' % i, 'w').close() for i in range(5000)])"
    assert box.execute(many).value == "'ENOSPC'"
    assert box.execute("for name in os.listdir('.'): os.unlink(name)").ok


def test_nothing_of_the_host_is_inherited(box: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with LocalSandbox(layers=("confinement",)) as fresh:
        names = fresh.execute("import os; sorted(os.environ)").value
        assert names == "[]"
        code = "import os\n[fd for fd in range(3, 128) if not __import__('errno').EBADF == err(fd)]"
        define = "import os\ndef err(fd):\n    try: os.fstat(fd)\n    except OSError as e: return e.errno\n"
        descriptors = fresh.execute(define + code).value or ""
        assert len(descriptors.split(",")) <= 5, descriptors  # two sockets, and the pipes to the original
    status = box.execute("sorted(os.environ), os.getppid() < 1000, os.getpid() < 1000").value
    assert status == "([], True, True)"


def about_worker(box: LocalSandbox, name: str) -> str:
    """What the host's /proc says of a session's worker."""
    channel = box._channel
    assert isinstance(channel, rlm_sandbox.LocalChannel)
    return Path(f"/proc/{channel.workers()[0]}/{name}").read_text()


def test_the_network_namespace_is_empty() -> None:
    layers = rlm_sandbox.capabilities()
    if not layers["network_namespace"]:
        pytest.skip("no network namespaces here")
    with LocalSandbox(layers=("confinement",)) as box:
        lines = about_worker(box, "net/dev")
    assert "lo:" in lines and "eth" not in lines and "docker" not in lines


def test_capabilities_and_privileges_are_gone() -> None:
    with LocalSandbox(layers=("confinement",)) as box:
        status = about_worker(box, "status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_readable_folders_can_be_read_and_not_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("work")
    (folder / "a.txt").write_text("text")
    with LocalSandbox(layers=("confinement",), workspace=str(folder)) as box:
        box.execute(PRELUDE)
        assert box.execute(f"open('{folder}/a.txt').read()").value == "'text'"
        assert box.execute(f"refused(open, '{folder}/a.txt', 'w')").value == "'EACCES'"
        assert box.execute(f"refused(os.unlink, '{folder}/a.txt')").value == "'EACCES'"
        assert box.execute(f"refused(os.listdir, '{folder.parent}')").value == "'EACCES'"


def test_the_level_is_told_and_can_be_required() -> None:
    layers = rlm_sandbox.capabilities()
    assert layers["level"] == "full", layers
    with LocalSandbox(require="full") as box:
        assert box.level == "full"
    with pytest.raises(SandboxError, match="not fully confined here: no landlock, seccomp") as caught:
        LocalSandbox(require="full", layers=("policy",))
    assert "Docker" in caught.value.hint


@pytest.mark.parametrize("missing", ["landlock", "seccomp", "network_namespace", "rlimits", "no_new_privs"])
def test_one_missing_layer_is_not_full(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = rlm_sandbox.BaseSandbox._hello

    def without(self: rlm_sandbox.BaseSandbox, channel: rlm_sandbox.Channel) -> None:
        hello(self, channel)
        self.layers[missing] = False

    monkeypatch.setattr(rlm_sandbox.BaseSandbox, "_hello", without)
    with LocalSandbox() as box:
        assert box.level == "partial"
    with pytest.raises(SandboxError, match=f"no {missing}"):
        LocalSandbox(require="full")


def test_a_renewed_worker_must_be_confined_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalSandbox(require="full") as box:
        monkeypatch.setattr(LocalSandbox, "level", "partial")
        with pytest.raises(SandboxError, match="not fully confined"):
            box.reset()
        with pytest.raises(SandboxError, match="not fully confined"):
            box.execute("1")


def test_compiled_packages_need_the_confinement() -> None:
    pytest.importorskip("numpy")
    with pytest.raises(SandboxError, match="'numpy' is compiled code, and nothing on this system confines") as caught:
        LocalSandbox(allowed_imports=["numpy"], layers=("policy",))
    assert "Docker" in caught.value.hint


def test_a_lock_on_a_file_of_the_callers_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("")
    cell = """
import fcntl
file, own = open("a.db"), open("own.txt", "w")
for one in (file, own):
    fcntl.flock(one, fcntl.LOCK_EX)
fcntl.lockf(file, fcntl.LOCK_SH)
fcntl.lockf(own, fcntl.LOCK_EX)
"""
    with LocalSandbox(workspace=str(tmp_path), layers=("confinement",)) as box, open(tmp_path / "a.db", "r+") as mine:
        done = box.execute(cell)
        assert done.ok, done.error
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_database_in_the_scratch_folder_works() -> None:
    cell = """
import sqlite3
base = sqlite3.connect("own.db")
base.execute("create table t (a)")
base.execute("insert into t values (5)")
base.commit()
list(sqlite3.connect("own.db").execute("select a from t"))
"""
    with LocalSandbox(allowed_imports=["sqlite3"]) as box:
        done = box.execute(cell)
        assert done.value == "[(5,)]", done.error
