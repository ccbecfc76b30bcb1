# /// script
# requires-python = ">=3.10"
# dependencies = ["RestrictedPython>=8.5,<10", "docker>=7"]
# ///
"""A Python REPL for untrusted code: it keeps its variables, can be stopped, and calls back into the host.

    with LocalSandbox() as box:
        box.set("context", text)
        cell = box.execute("len(context)")
        print(cell.value)

`LocalSandbox` runs the code in a child process that the Linux kernel confines without root (`capabilities()` says which
layers hold here); a language policy (RestrictedPython) refuses early and readably what would not work anyway.
`DockerSandbox` runs plain Python in a hardened container. This file is the host's side of both. `rlm_worker.py` runs
inside, and only the child loads the policy, `rlm_policy.py`: keep the three files together.
`python rlm_sandbox.py --self-test` shows what `capabilities()` returns.

Covered: files outside a private folder, the network, other programs and processes, the host's memory and environment,
other sessions; unbounded time, memory, output and processes; results and frames made to harm the host. A cell that dies
leaves the variables as they were before it.

Not covered: holes in the kernel; whether a file exists elsewhere (`stat` is not hidden); time and processor use within
the limits; files that a cell wrote and host functions that it called before it died; what the host does with a result.
`allowed_imports` voids the policy, not the confinement. On macOS and Windows there is the policy alone, which is no
boundary (not tested there): use Docker for code that may be hostile.
"""

from __future__ import annotations

import atexit
import binascii
import contextlib
import errno
import functools
import io
import itertools
import json
import math
import os
import re
import select
import signal
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING or not __package__:
    import rlm_worker
    from rlm_worker import DEPTH_MAX, UNSET, Frame, Packer, Setup, encoded, unpack
else:  # vendored into a package
    from . import rlm_worker
    from .rlm_worker import DEPTH_MAX, UNSET, Frame, Packer, Setup, encoded, unpack

if TYPE_CHECKING:
    from socket import SocketIO, socket
    from subprocess import Popen

    from docker import APIClient
    from docker.types import Mount

__all__ = [
    "DEPTH_MAX",
    "UNSET",
    "AbortCell",
    "BaseSandbox",
    "Cell",
    "Chunks",
    "DockerSandbox",
    "LocalSandbox",
    "Namespace",
    "Packer",
    "Sandbox",
    "SandboxError",
    "capabilities",
    "encoded",
    "shutdown",
    "unpack",
    "warm",
]

# --- the host ---------------------------------------------------------------------------------------------------------

WORKER_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rlm_worker.py")
START_LIMIT = 20  # seconds for a process to start
SOFT_GRACE = 0.5  # seconds from the interrupt to the kill of the cell's process
SNAPSHOT_MAX = 300 << 20  # bytes of variables beyond which there is no checkpoint
COUNT_INTERVAL = 0.05  # seconds between two counts of a session's memory
HARD_GRACE = 0.3  # seconds from there to the kill of the session
CALLS_MAX = 10_000  # host calls in one cell, those waiting together, and threads for them
WAITING_MAX = 1_000
THREADS_MAX = 64
FILE_PART = 3 << 20  # bytes of a file in one answer


class SandboxError(RuntimeError):
    """The environment cannot start, or has broken."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint  # what to do next; "" if there is nothing


class AbortCell(BaseException):
    """Raised by a host function: stops the cell at once, and comes out of `execute`."""


class ConnectionLost(Exception):
    """The worker's stream ended, or carried something that no worker sends."""


@dataclass(frozen=True)
class Cell:
    """The result of one cell."""

    ok: bool  # it ended without an error
    stdout: str = ""  # what it printed, its middle left out beyond `output_limit` characters
    value: str | None = None  # repr of its last expression; None: it has none, or that is None
    error: str | None = None  # the traceback; None: it ended well
    final: Any = UNSET  # what it gave to FINAL, as Python data; UNSET: nothing
    images: list[dict[str, str]] = field(default_factory=list)  # figures it left open, {media_type, data: base64}
    duration_ms: float = 0.0  # how long it took, host functions included
    status: str = "ok"  # ok, error, refused, timeout, memory, crash or lost
    restored: bool = False  # its process died, and the variables are as they were before it
    n: int = 0  # its number, from 1
    stdout_chars: int = 0  # how much it printed, before anything was left out


NBYTES_MAX = rlm_worker.VALUE_MAX + (3 << 20)  # of a frame: a value, and what is shown of the cell beside it
LEVELS_MAX = 3 * DEPTH_MAX + 10  # of lists and objects in a frame: each container may come in two more
PENDING_BYTES_MAX = 2 * rlm_worker.FRAME_MAX  # of host calls that wait or run: beyond it no more are read
NOT_MARKS = bytes(set(range(256)) - set(b'"[{,:}]'))


def read_json(body: bytes) -> tuple[object, int]:
    """What JSON from a sandbox says, and its cost; ValueError before anything too large or deep is built.

    The cost is its bytes and PART_COST for each list, object, item and key: within a factor of two, the memory that
    these take here.
    """
    seen = body.translate(None, NOT_MARKS)
    nbytes = len(body) + rlm_worker.PART_COST * len(seen)
    # Exactly, where it matters: most of the marks may stand in strings.
    if nbytes > max(100_000, 2 * len(body)) or seen.count(b"[") + seen.count(b"{") > LEVELS_MAX:
        marks = marks_outside_strings(body)
        nbytes = len(body) + rlm_worker.PART_COST * sum(map(marks.count, (b"[", b"{", b",", b":")))
        if nbytes > NBYTES_MAX:
            raise ValueError(f"it has too many items, keys, lists and objects ({nbytes - len(body) >> 20} MB)")
        if max(itertools.accumulate(map(LEVELS.__getitem__, marks)), default=0) > LEVELS_MAX:
            raise ValueError(f"it is nested more than {LEVELS_MAX} deep")
    if len(body) > rlm_worker.FRAME_MAX // 2 and b"\\ud" in body and text_nbytes(body) > 2 * rlm_worker.FRAME_MAX:
        raise ValueError("its text takes too much memory")
    return from_json(body.decode("ascii")), nbytes


LEVELS = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]


def marks_outside_strings(body: bytes) -> bytes:
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, NOT_MARKS)
    if marks.count(b'"') * rlm_worker.PART_COST > 2 * NBYTES_MAX:
        raise ValueError("it has too many strings")
    return re.sub(rb'"[^"]*"', b"", marks.replace(b'""', b""))


def text_nbytes(body: bytes) -> int:
    """What the strings in JSON take at most, where one character beyond 16 bits makes all of its string wider."""
    strings = re.finditer(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', body)
    return sum((4 if b"\\ud" in text else 2) * len(text) for text in (found[0] for found in strings))


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse_integer(digits: str) -> int:
    """Longer ones travel in hexadecimal; in decimal each costs quadratic time."""
    if len(digits) > 40:
        raise ValueError("a number of too many digits")
    return int(digits)


from_json = json.JSONDecoder(parse_constant=refuse_constant, parse_int=parse_integer).decode


class Sandbox(Protocol):
    """A REPL that keeps its variables: what `environment=` takes, and `LocalSandbox` and `DockerSandbox` are."""

    def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        functions: dict[str, Callable[..., object]] | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Cell:
        """Run a cell, in which the functions can be called by their names."""

    def set(self, name: str, value: object) -> None:
        """Set a variable to plain data."""

    def get(self, name: str) -> Any:
        """A variable's value. KeyError if it does not exist, TypeError if it is not plain data."""

    def names(self) -> dict[str, tuple[str, int | None, str]]:
        """Each variable's type, length and a short preview."""

    def reset(self) -> None:
        """Remove all variables."""

    def close(self) -> None:
        """End the REPL."""


class Channel:
    """Frames to and from one worker, by a connected socket, and the means to stop it.

    Whatever arrives is checked before anything else sees it.
    """

    hard_grace = HARD_GRACE
    blocked: tuple[type[OSError], ...] = (BlockingIOError,)  # what a stream raises that would have to wait

    def __init__(self, stream: socket):
        self.stream = stream
        self.process_of_host = os.getpid()
        self.sending = threading.Lock()
        self.buffer = bytearray()
        self.nbytes = 0  # of the frame parsed last
        stream.setblocking(False)

    def send(
        self,
        message: Frame,
        pieces: Iterable[bytes] = (),
        valid: Callable[[], bool] = lambda: True,
        timeout: float = math.inf,
    ) -> None:
        """Write a whole frame and the pieces of a value, or nothing if `valid` is false by then.

        `timeout`: seconds for the frame, and for each piece.
        """
        data = rlm_worker.encode_frame(message)
        if not self.sending.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise ConnectionLost("the sandbox does not take what it is sent")
        try:
            if not valid():
                return
            self.write(data, timeout)
            for piece in pieces:
                self.write(struct.pack(">I", len(piece)), timeout)
                self.write(piece, timeout)
        finally:
            self.sending.release()

    def write(self, data: bytes | memoryview, timeout: float = math.inf) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + timeout
        while view:
            try:
                sent = self.send_bytes(view)
            except OSError as error:
                raise ConnectionLost("the sandbox's process has ended") from error
            view = view[sent:]
            if view and time.monotonic() > deadline:
                raise ConnectionLost("the sandbox does not take what it is sent")
            if not sent:
                rlm_worker.wait_for(self.fileno(), 0.2, writing=True)

    def receive(self, seconds: float, request: int = 0) -> Frame | None:
        """The next frame of this request, or None after that time, however much else arrives."""
        deadline = time.monotonic() + seconds
        while True:
            frame = self.parse()
            if frame is not None and frame["id"] == request:
                return frame
            if frame is None and rlm_worker.wait_for(self.fileno(), deadline - time.monotonic()):
                self.read()
            if time.monotonic() >= deadline:
                return None

    def read(self) -> None:
        try:
            data = self.receive_bytes()
        except self.blocked:
            return
        except OSError as error:
            raise ConnectionLost("the sandbox's process has ended") from error
        if not data:
            raise ConnectionLost("the sandbox's process has ended")
        self.buffer += data

    def parse(self) -> Frame | None:
        if len(self.buffer) < 4:
            return None
        size = int.from_bytes(self.buffer[:4], "big")
        if size > rlm_worker.FRAME_MAX:
            raise ConnectionLost(f"the sandbox sent a frame of {size} bytes")
        if len(self.buffer) < 4 + size:
            return None
        with memoryview(self.buffer) as view:
            body = bytes(view[4 : 4 + size])
        del self.buffer[: 4 + size]
        try:
            message, self.nbytes = read_json(body)
        except (ValueError, RecursionError) as error:
            raise ConnectionLost(f"the sandbox sent a frame that is not read: {error}") from None
        if type(message) is not dict or type(message.get("op")) is not str or type(message.get("id")) is not int:
            raise ConnectionLost("the sandbox sent a frame without a form")
        return message

    # - what differs between a child process and a container

    def inherited(self) -> bool:
        """Whether this process is a fork of the one that opened the channel, which still uses it."""
        return os.getpid() != self.process_of_host

    def fileno(self) -> int:
        return self.stream.fileno()

    def receive_bytes(self) -> bytes:
        """Bytes, once `fileno` is readable; b"" at the end. An error of `blocked`: nothing yet."""
        return self.stream.recv(1 << 18)

    def send_bytes(self, data: memoryview) -> int:
        """Send some of the bytes without waiting; 0 if there is no room now."""
        try:
            return self.stream.send(data)
        except self.blocked:
            return 0

    def hand_over(self, descriptor: int, path: str, start: int) -> Frame:
        """Pass an open file to the worker: by default its bytes from `start` on, as many as an answer carries."""
        return {"data": os.pread(descriptor, FILE_PART, start)}

    def signal(self, name: str) -> None:
        """Send a signal to the session."""
        raise NotImplementedError

    def interrupt(self) -> None:
        self.signal("SIGINT")

    def kill_cell(self) -> None:
        """The checkpoint kills the cell process and goes on with the variables of before."""
        self.signal("SIGUSR1")

    def settle(self) -> None:
        """Wait until no signal of an earlier cell is on its way."""

    def make_room(self, name: str, nbytes: int) -> None:
        """Allow that much memory for everything that `set` has sent, the variable that comes next included."""

    @contextlib.contextmanager
    def cell_memory(self, memory: int | None) -> Iterator[int | None]:
        """Apply a cell's memory limit while it runs; yields the limit that the worker has to apply itself."""
        yield memory

    def is_over_memory(self) -> bool:
        """Whether the session's processes together use more memory than allowed."""
        return False

    def kill(self) -> None:
        """End everything of this session now. May be called from any thread, at any time, more than once."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the channel's resources, after `kill`."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Like `close`, without waiting."""
        self.close()


class BaseSandbox(Sandbox):
    """What the local and the Docker sandbox share: requests, cells, host calls, the clock, and how a cell is stopped.

    In a `with` statement it is closed at the end.
    """

    def __init__(self, *, cell_timeout: float, output_limit: int, folders: Iterable[str] = ()):
        self.cell_timeout = cell_timeout
        self._files = Files(folders)
        self.output_limit = output_limit
        self.layers: dict[str, bool | str] = {}
        self._lock = threading.RLock()
        self._channel: Channel | None = None
        self._given: dict[str, tuple[object, int]] = {}  # what the host has set, and what it takes in the worker
        self._requests = 0
        self._cells = 0
        self._run: Run | None = None
        self._closed = False

    # - what an environment supplies

    def _open(self) -> Channel:
        """Start a worker and return its channel."""
        raise NotImplementedError

    @property
    def level(self) -> str:
        """How far the session is confined: "container", "full", "partial" or "language-only"."""
        raise NotImplementedError

    # - what callers use

    def __enter__(self) -> BaseSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_channel", None) is not None and not sys.is_finalizing():
            self.close()

    def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        functions: dict[str, Callable[..., object]] | None = None,
        on_output: Callable[[str], None] | None = None,
        memory: str | int | None = None,
        deadline: float = math.inf,
    ) -> Cell:
        """Run a cell. Whatever it does, a `Cell` comes back, within its time; only `AbortCell` passes through.

        `functions`: functions of the host that the cell may call by these names, with plain data in and out.
        `on_output(text)` is called with what it prints, as it prints it. `timeout`: seconds that the cell may compute,
        not counting the time in those functions. `deadline`: the time of `time.monotonic()` at which it is stopped in
        any case. `memory`: what this cell may use besides the existing variables, instead of the session's limit.
        """
        with self._lock:
            self._cells += 1
            if not isinstance(code, str):
                raise TypeError(f"code must be a str, not {type(code).__name__}")
            limit = timeout or self.cell_timeout or math.inf
            room = None if memory is None else parse_size(memory)
            run = self._run = Run(self, self._cells, limit, functions or {}, on_output, room, deadline)
            try:
                return run.execute(code)
            finally:
                self._run = None

    def set(self, name: str, value: object) -> None:
        """Set a variable to plain data; a worker that had to be restarted gets it again."""
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not a name for a variable")
        try:
            to_send = rlm_worker.to_pieces(value)
        except (TypeError, RecursionError) as error:
            raise TypeError(
                f"cannot hand {type(value).__name__} to the sandbox: {error}; convert it to text, lists and dicts first"
            ) from None
        with self._lock:
            self._started()
            self._send_value(name, *to_send)
            self._given[name] = value, to_send[0]["nbytes"]

    def get(self, name: str) -> Any:
        """A variable's value; KeyError if there is none, TypeError if it is not plain data."""
        with self._lock:
            self._started()
            reply = self._request({"op": "get", "name": name})
        try:
            return unpack(reply.get("value"))
        except (TypeError, ValueError, RecursionError):
            raise SandboxError("the sandbox's answer cannot be read") from None

    def names(self) -> dict[str, tuple[str, int | None, str]]:
        with self._lock:
            self._started()
            found = self._request({"op": "names"}).get("value")
        if type(found) is not dict or not all(
            type(row) is list and len(row) == 3 and type(row[1]) in (int, type(None)) for row in found.values()
        ):
            raise SandboxError("the sandbox's answer cannot be read")
        return {
            short(name, 200): (short(cls, 200), size, short(text, 1000)) for name, (cls, size, text) in found.items()
        }

    def reset(self) -> None:
        """Start a fresh worker without variables."""
        with self._lock:
            self._drop()
            self._given.clear()
            self._started()

    def interrupt(self, grace: float = SOFT_GRACE) -> None:
        """Stop the running cell from another thread: with SIGINT, then by killing its process."""
        run = self._run
        if run is not None:
            run.stop_softly(grace)

    def kill(self) -> None:
        """End the worker and all it started at once, from any thread; the next request starts a fresh one."""
        channel = self._channel
        if channel is not None:
            channel.kill()

    def close(self) -> None:
        """End the session and all it started; its variables and files are gone."""
        self._closed = True
        self.kill()
        with self._lock:
            self._drop()

    # - the worker's life

    def _started(self) -> Channel:
        if self._closed:
            raise SandboxError("the sandbox is closed")
        if self._channel is not None and self._channel.inherited():
            self._drop()
        if self._channel is None:
            self._channel = self._open()
            try:
                self._hello(self._channel)
                for name, (value, _) in self._given.items():
                    self._send_value(name, *rlm_worker.to_pieces(value))
            except BaseException:
                self._drop()  # a worker that lacks what the host has set is not to be found later
                raise
        self._channel.settle()
        return self._channel

    def _hello(self, channel: Channel) -> None:
        try:
            hello = channel.receive(START_LIMIT)
        except ConnectionLost as error:
            raise SandboxError(f"the sandbox did not start: {error}") from None
        if hello is None or hello["op"] != "hello":
            raise SandboxError("the sandbox did not start: %s" % ((hello or {}).get("error") or "no answer"))
        self.layers = {str(key): value for key, value in hello.get("layers", {}).items()}

    def _drop(self, *, hurry: bool = False) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.kill()
            channel.abandon() if hurry else channel.close()

    # - requests other than cells

    def _request(self, message: Frame, pieces: Iterable[bytes] = ()) -> Frame:
        channel = self._started()
        self._requests += 1
        request = self._requests
        try:
            channel.send(dict(message, id=request), pieces, timeout=START_LIMIT)
            deadline = time.monotonic() + START_LIMIT * (10 if message["op"] == "set" else 1)
            reply = channel.receive(max(0.0, deadline - time.monotonic()), request)
            if reply is None:
                raise ConnectionLost("no answer from the sandbox")
        except BaseException as error:
            self._drop()  # after half a frame nothing that follows could be read
            if isinstance(error, ConnectionLost):
                raise SandboxError(f"{error}: its variables are lost") from None
            raise
        if reply["op"] == "done":
            return reply
        if reply["op"] == "died":
            raise SandboxError(f"the sandbox could not {message['op']} {message.get('name')!r}: its process died on it")
        kinds: dict[str, type[Exception]] = {"TypeError": TypeError, "KeyError": KeyError, "ValueError": ValueError}
        raise kinds.get(short(reply.get("type"), 200), SandboxError)(short(reply.get("message"), 2000))

    def _send_value(self, name: str, header: Frame, pieces: Iterator[bytes]) -> None:
        total = header["nbytes"] + sum(nbytes for other, (_, nbytes) in self._given.items() if other != name)
        self._started().make_room(name, total)
        self._request({"op": "set", "name": name, **header, "given": total}, itertools.chain(pieces, [b""]))


class Chunks:
    """The host function `chunks`. The worker runs it without asking the host; any other sandbox calls it here."""

    def __init__(self, size: int):
        if type(size) is not int or not 1 <= size < 1 << 53:
            raise ValueError(f"the size is {rlm_worker.preview(size)}: a whole number of characters, at least 1")
        self.size = size

    def __call__(self, text: Any, size: int | None = None, overlap: int = 0) -> list[Any]:
        """Cut a text into pieces of at most `size` characters, at line ends where that is possible.

        A list of texts becomes lists of texts that have that size together. `size`: by default what fits into a
        sub-call. `overlap`: characters that each piece repeats of the one before.
        """
        return rlm_worker.text_chunks(text, self.size if size is None else size, overlap)


class Namespace:
    """Host functions as the attributes of one object, each with the text that `help` prints of it."""

    def __init__(self, doc: str, members: dict[str, tuple[Callable[..., object], str]]):
        self.__doc__ = doc
        self._members = {name: function for name, (function, _) in members.items()}
        self._spec = {"doc": doc, "members": {name: text for name, (_, text) in members.items()}}
        if not all(name.isidentifier() and name[:1] != "_" for name in members):
            raise ValueError(f"not all of these can be names of functions: {', '.join(members)[:200]}")

    def __getattr__(self, name: str) -> Callable[..., object]:
        members: dict[str, Callable[..., object]] = self.__dict__.get("_members", {})
        if name not in members:
            raise AttributeError(name)
        return members[name]


def spec_of(function: object) -> bool | Frame:
    """What a request tells of a function: whether it takes batches, the size for the worker's own `chunks`, or what is
    in a namespace."""
    if isinstance(function, Chunks):
        return {"size": function.size}
    return function._spec if isinstance(function, Namespace) else bool(getattr(function, "batched", False))


class Run:
    """The execution of one cell: its clock, its host calls, and how it is stopped."""

    def __init__(
        self,
        sandbox: BaseSandbox,
        number: int,
        limit: float,
        functions: dict[str, Callable[..., object]],
        on_output: Callable[[str], None] | None,
        memory: int | None,
        deadline: float,
    ):
        from queue import SimpleQueue

        self.sandbox, self.number, self.limit, self.memory, self.deadline = sandbox, number, limit, memory, deadline
        self.functions, self.on_output = functions, on_output
        self.channel = sandbox._started()
        sandbox._requests += 1
        self.request = sandbox._requests
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.calls = self.active = self.at_work = 0  # to the host: all, unanswered ones, those at work
        self.jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # for the threads that work for it
        self.threads = 0
        self.pending_bytes = 0  # of the frames that these came in
        self.drained = threading.Condition(self.lock)  # signalled when it has become less
        self.paused = self.paused_at = self.interrupted_at = self.killed_at = 0.0
        self.streamed = io.StringIO()
        self.stream_room = max(1 << 20, 4 * sandbox.output_limit)
        self.stop: BaseException | None = None
        self.stop_reason = ""  # why it is being stopped: "timeout" or "interrupt"
        self.grace = SOFT_GRACE
        self.finished = False

    def execute(self, code: str) -> Cell:
        message = {
            "op": "execute",
            "id": self.request,
            "cell": self.number,
            "code": code,
            "functions": {name: spec_of(call) for name, call in self.functions.items()},
            "stream": self.on_output is not None,
        }
        try:
            try:
                with self.channel.cell_memory(self.memory) as memory:
                    self.channel.send(dict(message, memory=memory), timeout=min(START_LIMIT, self.limit + SOFT_GRACE))
                    reply = self.wait()
            except ConnectionLost as error:
                reply = {"op": "lost", "reason": str(error)}
                self.sandbox._drop(hurry=True)
            except ValueError as error:
                return self.cell("refused", error=f"ValueError: {error}")
        except BaseException:
            self.sandbox._drop()
            raise
        finally:
            self.finished = True
            for _ in range(self.threads):
                self.jobs.put(None)
        if self.stop is not None:
            raise self.stop
        return self.finish(reply)

    # - the clock

    def left(self) -> float:
        """Seconds that the cell has left; its clock stops while a host function works for it."""
        with self.lock:
            now = time.monotonic()
            waiting = now - self.paused_at if self.at_work else 0.0
            elapsed = now - self.began - self.paused - waiting
            return min(self.limit - elapsed, self.deadline - now)

    # - frames

    def wait(self) -> Frame:
        while True:
            timeout = self.poll_timeout()
            if self.pending_bytes > PENDING_BYTES_MAX and not self.interrupted_at:
                with self.lock:
                    self.drained.wait(timeout)
                self.escalate()
                continue
            reply = self.channel.receive(timeout, self.request)
            if reply is None:
                pass
            elif reply["op"] in ("result", "died", "failed"):
                return reply
            elif reply["op"] == "output":
                self.output(reply.get("text"))
            elif reply["op"] == "call":
                self.call(reply, self.channel.nbytes)
            if not self.killed_at and self.channel.is_over_memory():
                self.kill_for_memory()
            self.escalate()

    def poll_timeout(self) -> float:
        """Seconds to wait for the next frame."""
        now = time.monotonic()
        if self.killed_at:
            return max(0.0, self.killed_at + self.channel.hard_grace - now)
        if self.interrupted_at:
            return max(0.0, self.interrupted_at + self.grace - now)
        return min(max(0.0, self.left()) + 0.001, 0.05)  # soon enough for another thread's interrupt

    def kill_for_memory(self) -> None:
        """Kill a cell that has too much memory."""
        with self.lock:
            self.stop_reason, self.grace = "memory", 0.0
            self.interrupted_at = time.monotonic()
            self.killed_at = self.interrupted_at + 1.0  # freeing so much memory takes time
        self.channel.kill_cell()

    def escalate(self) -> None:
        """Take the next step if it is due: interrupt the cell, kill its process, kill the session."""
        now = time.monotonic()
        if not self.interrupted_at:
            if self.left() <= 0:
                self.stop_reason = self.stop_reason or "timeout"
                self.stop_softly()
        elif not self.killed_at:
            if now >= self.interrupted_at + self.grace:
                self.channel.kill_cell()
                self.killed_at = time.monotonic()
        elif now >= self.killed_at + self.channel.hard_grace:
            raise ConnectionLost("it could not be stopped otherwise")

    def stop_softly(self, grace: float = SOFT_GRACE) -> None:
        with self.lock:
            if self.interrupted_at or self.finished:
                return
            self.interrupted_at, self.grace = time.monotonic(), grace
            self.stop_reason = self.stop_reason or "interrupt"
        self.channel.interrupt()

    def output(self, text: object) -> None:
        if type(text) is not str or self.stream_room <= 0:
            return
        text = text[: self.stream_room]
        self.stream_room -= len(text)
        text = printable(text)
        self.streamed.write(text)
        if self.on_output is not None:
            self.on_output(text)

    # - calls from the cell

    def call(self, frame: Frame, nbytes: int) -> None:
        """Start the host function that a frame calls. What no genuine worker sends gets no answer."""
        name, key = frame.get("name"), frame.get("call")
        if type(key) is not int or type(name) is not str:
            return
        about_files = name == rlm_worker.FILES_CALL
        answer = functools.partial(self.sandbox._files.answer, self.channel)
        function = answer if about_files else self.function(name)
        if function is None or self.pending_bytes > PENDING_BYTES_MAX:  # beyond it, the cell is being stopped
            return
        self.calls += not about_files
        try:
            if self.calls > CALLS_MAX:
                raise RuntimeError(f"a cell may call the host {CALLS_MAX} times at most")
            args, kwargs = unpack(frame.get("args")), unpack(frame.get("kwargs"))
            if type(args) is not list or type(kwargs) is not dict:
                raise ValueError("not a call")
            schedule = getattr(function, "schedule", None)
            work = schedule(*args, **kwargs) if schedule else lambda: function(*args, **kwargs)
        except Exception as error:
            # Answered from a thread: this one must go on reading, whatever the worker does.
            work = functools.partial(fail, error)
        except AbortCell as stop:
            self.abort(stop)
            return
        # An answer about files costs the cell's time, unlike a host function.
        clock = contextlib.nullcontext() if about_files else self.working()
        self.dispatch(lambda: self.work(key, work, nbytes, clock), nbytes)

    def function(self, name: str) -> Callable[..., object] | None:
        """The host function of that name, or of a namespace: "github.search_issues"."""
        space, _, member = name.partition(".")
        function = self.functions.get(space)
        if isinstance(function, Namespace):
            return function._members.get(member)
        return None if member else function

    def dispatch(self, job: Callable[[], None], nbytes: int) -> None:
        """Have a host function run in one of this cell's threads, which are started as they are needed."""
        with self.lock:
            self.active += 1
            self.pending_bytes += nbytes
            if self.active > WAITING_MAX:
                raise ConnectionLost(f"{self.active} host calls at once")
            more = self.threads < min(self.active, THREADS_MAX)
            self.threads += more
        self.jobs.put(job)
        if more:
            threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while (job := self.jobs.get()) and not self.finished:
            job()
            with self.lock:
                self.active -= 1

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Stop the cell's clock while a host function works, and only then: queued calls must not stop it."""
        with self.lock:
            self.at_work += 1
            if self.at_work == 1:
                self.paused_at = time.monotonic()
        try:
            yield
        finally:
            with self.lock:
                self.at_work -= 1
                if not self.at_work:
                    self.paused += time.monotonic() - self.paused_at

    def work(
        self, key: int, work: Callable[[], object], nbytes: int, clock: contextlib.AbstractContextManager[None]
    ) -> None:
        try:
            try:
                with clock:
                    value = work()
            finally:
                with self.drained:
                    self.pending_bytes -= nbytes
                    self.drained.notify()
            self.reply({"op": "return", "call": key, "value": Packer().pack(value)})
        except AbortCell as stop:
            self.abort(stop)
        except BaseException as error:  # SystemExit or CancelledError of a tool: the cell waits for an answer
            self.reply_error(key, error)

    def reply_error(self, key: int, error: BaseException) -> None:
        data = getattr(error, "cell_data", None) or {}
        message = rlm_worker.safe_str(error)[:100_000]
        reply = {"op": "raise", "call": key, "type": type(error).__name__, "message": message}
        try:
            self.reply(dict(reply, data=Packer().pack(data)))
        except (TypeError, ValueError):
            self.reply(reply)

    def reply(self, message: Frame) -> None:
        with contextlib.suppress(ConnectionLost):
            self.channel.send(dict(message, id=self.request), valid=lambda: not self.finished)

    def abort(self, stop: BaseException) -> None:
        """A host function raised AbortCell: stop the cell."""
        if self.stop is None:
            self.stop = stop
        self.stop_softly()

    # - what came of it

    def finish(self, reply: Frame) -> Cell:
        op = reply["op"]
        if op == "result":
            return self.result(reply)
        if op == "failed":
            return self.cell("error", error=f"{short(reply.get('type'), 200)}: {short(reply.get('message'), 2000)}")
        if op == "lost":
            return self.lost(reply["reason"])
        status, reason = self.cause(reply)
        error = f"{reason}; the variables are as they were before this cell"
        return self.cell(status, error=error, restored=True, **self.printed(reply))

    def result(self, reply: Frame) -> Cell:
        limit = self.sandbox.output_limit
        status, error, value = reply.get("status"), reply.get("error"), reply.get("value")
        if status not in ("ok", "error", "memory", "refused"):
            status = "error"
        if status == "error" and self.stop_reason == "timeout":
            status = "timeout"
            error = (
                f"{error}\nthe cell was stopped after {self.limit:g} s (its limit); its variables are as it left them"
            )
        final: object = UNSET
        if status == "ok" and "final" in reply:
            try:
                final = unpack(reply["final"])
                final = printable(final) if type(final) is str else final
            except (ValueError, TypeError, RecursionError) as problem:
                status, error = "error", f"the value that FINAL was given cannot be read: {problem}"
        return self.cell(
            status,
            value=None if value is None else short(value, limit + 200),
            error=None if status == "ok" else short(error, limit + 500),
            final=final,
            images=images_of(reply.get("images")),
            **self.printed(reply),
        )

    def lost(self, reason: str) -> Cell:
        text = self.streamed.getvalue()
        status = {"timeout": "timeout", "interrupt": "error", "memory": "memory"}.get(self.stop_reason, "lost")
        stopped = f"the cell did not stop after {self.limit:g} s (its limit)" if status == "timeout" else reason
        again = ", ".join(self.sandbox._given)
        return self.cell(
            status,
            stdout=rlm_worker.truncate(text, self.sandbox.output_limit, ""),
            stdout_chars=len(text),
            error=f"{stopped}; the variables are lost{again and f' (what the host had set is there again: {again})'}",
        )

    def printed(self, reply: Frame) -> dict[str, object]:
        """What a reply says of the cell's output."""
        chars = count_of(reply.get("chars"))
        return {"stdout": short(reply.get("stdout"), self.sandbox.output_limit + 200), "stdout_chars": chars}

    def cause(self, reply: Frame) -> tuple[str, str]:
        number = reply.get("signal")
        if self.killed_at and number == signal.SIGKILL and self.stop_reason != "memory":
            if self.stop_reason == "timeout":
                return "timeout", f"the cell was killed: it did not stop at its limit of {self.limit:g} s"
            return "error", "KeyboardInterrupt: the cell was killed, since it did not stop when asked to"
        if number == signal.SIGKILL and reply.get("memory") is not False:
            return "memory", "the cell was killed: it ran out of memory"
        if type(number) is int:
            known = {member.value: member.name for member in signal.Signals}
            return "crash", f"the cell's process died of {known.get(number, f'signal {number}')}"
        return "crash", f"the cell ended its process (exit status {count_of(reply.get('exit'))})"

    def cell(self, status: str, **fields: Any) -> Cell:
        took = (time.monotonic() - self.began) * 1000
        return Cell(ok=status == "ok", status=status, n=self.number, duration_ms=took, **fields)


def fail(error: Exception) -> NoReturn:
    raise error


def short(value: object, limit: int) -> str:
    """Untrusted text, truncated, without lone surrogates; "" for anything but text."""
    return printable(value[:limit]) if type(value) is str else ""


SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    if text.isascii() or not SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def count_of(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0


def images_of(value: object) -> list[dict[str, str]]:
    """The PNG images in an untrusted list; anything else is dropped."""
    found = []
    for item in value[:10] if type(value) is list else []:
        data = item.get("data") if type(item) is dict else None
        if type(data) is str and re.fullmatch(r"iVBORw0KGgo[A-Za-z0-9+/]*=*", data):  # the signature of PNG
            found.append({"media_type": "image/png", "data": data})
    return found


# --- files ------------------------------------------------------------------------------------------------------------

NAMES_MAX = 50_000  # in an answer about a folder
NAMES_SIZE = rlm_worker.FRAME_MAX // 2  # of them as JSON
PATH_MAX = 4096  # characters of a path, as for Linux
LINK_SECONDS = 5.0  # to search the folders for hard links
KERNEL_FOLDERS = ("/proc", "/sys", "/dev")  # virtual file systems
PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)) | getattr(os, "O_CLOEXEC", 0)
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)

SECRET_NAMES = re.compile(
    r"\.env.*|.*\.pem|id_.*|\.netrc|\.aws|\.ssh|\.git-credentials|\.pypirc|\.npmrc|\.snipara", re.IGNORECASE | re.DOTALL
)


def may_hold_secrets(parts: Sequence[str]) -> bool:
    """Whether a relative path, in parts, names a file or folder that usually holds credentials."""
    parts = [part.rstrip(". ") for part in re.split(r"[/\\]", "/".join(parts))]
    in_git = ".git" in map(str.lower, parts[:-1]) and parts[-1].lower().startswith("config")
    return in_git or any(map(SECRET_NAMES.fullmatch, parts))


def is_kernel_file(real: str) -> bool:
    """Whether a real path is in one of the kernel's virtual file systems, shared memory excepted."""
    inside = [folder for folder in (*KERNEL_FOLDERS, "/dev/shm") if rlm_worker.is_inside(real, folder)]
    return bool(inside) and "/dev/shm" not in inside


class Files:
    """Opens the caller's files for cells: the only way to them from a session, a container's mount aside.

    A name is opened with O_PATH, which does nothing to a pipe or device. The descriptor's own path and type are checked
    and the file is then opened for reading through that descriptor, so that nothing can be swapped in between.
    """

    def __init__(self, folders: Iterable[str]):
        self.folders = tuple(dict.fromkeys(os.path.realpath(folder) for folder in folders))
        self.bases = self.folders  # of relative names; the working directory too, as it is for the file tools
        with contextlib.suppress(FileNotFoundError):
            self.bases = tuple(dict.fromkeys((*self.folders, os.getcwd())))
        self.links: dict[tuple[int, int, int], bool] = {}  # files of several names, and whether all are harmless
        self.too_large = False  # the folders are too large to search for hard links
        self.looking = threading.Lock()

    def answer(self, channel: Channel, what: object, path: object, start: object = 0) -> Frame:
        """The answer to a worker's question about a path; ValueError for a question that no genuine worker asks."""
        if what not in ("open", "list", "stat") or type(path) is not str or type(start) is not int or "\0" in path:
            raise ValueError("not a question about a file")
        try:
            if len(path) > PATH_MAX:  # resolving it would cost quadratic time
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            if what == "list":
                return self.list(path)
            with self.opened(path) as (descriptor, info, real):
                if what == "stat":
                    return {"stat": [*info, *(float(getattr(info, f"st_{clock}time")) for clock in "amc")]}
                if stat.S_ISDIR(info.st_mode):
                    raise IsADirectoryError(errno.EISDIR, "Is a directory")
                with readable(descriptor, real) as source:
                    return channel.hand_over(source, real, start)
        except OSError as error:
            return {"errno": error.errno or errno.EIO, "error": error.strerror or "it cannot be read"}

    @contextlib.contextmanager
    def opened(self, path: str, bases: Sequence[str] = ()) -> Iterator[tuple[int, os.stat_result, str]]:
        """An O_PATH descriptor of a file or folder that cells may read, its stat result and its real path."""
        outside = os.path.isabs(path) or os.path.normpath(path).startswith(os.pardir)
        for base in bases or self.bases:
            named = os.path.normpath(os.path.join(base, path))
            real = os.path.realpath(named)
            if self.root_of(real) is None:
                outside = outside or self.root_of(named) is not None  # a link
                continue
            outside = False
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                descriptor = os.open(real, PATH_ONLY | NO_FOLLOW)
                try:
                    place = f"/proc/self/fd/{descriptor}"  # where it is now, if it was renamed
                    real = os.readlink(place) if sys.platform == "linux" else os.path.realpath(real)
                    info = os.fstat(descriptor)
                    self.check(path, real, info)
                    yield descriptor, info, real
                    return
                finally:
                    os.close(descriptor)
        if outside:
            raise PermissionError(errno.EPERM, "no access from here; file_read reads the caller's files")
        raise FileNotFoundError(errno.ENOENT, "no such file here (file_read reads the caller's files)")

    def root_of(self, real: str) -> str | None:
        inside = [folder for folder in self.folders if rlm_worker.is_inside(real, folder)]
        return max(inside, key=len) if inside and not is_kernel_file(real) else None

    def check(self, path: str, real: str, info: os.stat_result) -> None:
        """PermissionError if a cell may not read this open file."""
        folder = self.root_of(real)
        if folder is None or info.st_nlink == 0:
            raise PermissionError(errno.EACCES, "it is being moved out of reach")
        named = os.path.relpath(path, folder) if os.path.isabs(path) else os.path.normpath(path)
        if may_hold_secrets(real[len(folder) :].split(os.sep)) or may_hold_secrets(named.split(os.sep)):
            raise PermissionError(errno.EACCES, "it may hold secrets and is not readable here")
        if stat.S_ISREG(info.st_mode):
            if info.st_nlink > 1 and not self.has_harmless_names(info):
                raise PermissionError(errno.EACCES, "it is hard-linked, perhaps to a secret: copy it")
        elif not stat.S_ISDIR(info.st_mode):
            raise PermissionError(errno.EACCES, "it is not a regular file")

    def has_harmless_names(self, info: os.stat_result) -> bool:
        """Whether all hard links of a file are in the folders and none has a secret's name."""
        key = (info.st_dev, info.st_ino, info.st_ctime_ns)
        with self.looking:
            if key not in self.links and not self.too_large:
                self.judge_links()
            return self.links.setdefault(key, False)

    def judge_links(self) -> None:
        """Decide this for every file with several hard links in the folders."""
        left: dict[tuple[int, int, int], int] = {}  # names that have not been seen, or are a secret's
        for path, info in self.linked_files():
            key = (info.st_dev, info.st_ino, info.st_ctime_ns)
            harmless = not may_hold_secrets(path[len(self.root_of(path) or "") :].split(os.sep))
            left[key] = left.get(key, info.st_nlink) - harmless
        self.links.update((key, number == 0) for key, number in left.items())

    def linked_files(self) -> Iterator[tuple[str, os.stat_result]]:
        until = time.monotonic() + LINK_SECONDS
        apart = [f for f in self.folders if not any(rlm_worker.is_inside(f, o) for o in self.folders if o != f)]
        for place, folders, names in itertools.chain.from_iterable(map(os.walk, apart)):
            for path in [os.path.join(place, name) for name in (*names, *folders)]:
                if time.monotonic() > until:
                    self.too_large = True
                    return
                with contextlib.suppress(OSError):
                    info = os.lstat(path)
                    if info.st_nlink > 1 and stat.S_ISREG(info.st_mode):
                        yield path, info

    def list(self, path: str) -> Frame:
        """The names in a folder, secrets excluded; a relative name may exist in several of the given folders.

        A link is never listed as a folder, or walks would not end.
        """
        names: dict[str, bool] = {}
        refusals: list[OSError] = []
        bases = self.bases[: 1 if os.path.isabs(path) else None]
        for base in bases:
            try:
                names.update(self.names_in(path, base))
            except OSError as error:
                refusals.append(error)
        if refusals and len(refusals) == len(bases):
            raise refusals[0]
        too_many = f"{NAMES_MAX:,}" if len(names) > NAMES_MAX else ""
        if too_many or len(json.dumps(list(names))) > NAMES_SIZE:
            much = too_many or f"{NAMES_SIZE >> 20} MB of"
            raise OSError(errno.E2BIG, f"more than {much} names: use file_list with a pattern")
        folders = [name for name, is_folder in names.items() if is_folder]
        return {"folders": folders, "files": [name for name, is_folder in names.items() if not is_folder]}

    def names_in(self, path: str, base: str) -> dict[str, bool]:
        """The names in a folder, True for folders; at most one more than an answer may have."""
        with self.opened(path, [base]) as (descriptor, info, real):
            if not stat.S_ISDIR(info.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
            below = real[len(self.root_of(real) or "") :].split(os.sep)
            with readable(descriptor, real) as source, os.scandir(source) as entries:
                harmless = (entry for entry in entries if not may_hold_secrets([*below, entry.name]))
                return {
                    entry.name: entry.is_dir(follow_symlinks=False)
                    for entry in itertools.islice(harmless, NAMES_MAX + 1)
                }


@contextlib.contextmanager
def readable(descriptor: int, path: str) -> Iterator[int]:
    """Open the same file or folder for reading."""
    place = f"/proc/self/fd/{descriptor}" if sys.platform == "linux" else path
    source = os.open(place, os.O_RDONLY | os.O_CLOEXEC if sys.platform == "linux" else os.O_RDONLY)
    try:
        yield source
    finally:
        os.close(source)


# --- the local sandbox ------------------------------------------------------------------------------------------------


def parse_size(text: str | int) -> int:
    """Bytes from "512m", "1g", "64k" or a number."""
    if isinstance(text, int):
        return text
    units = {"k": 10, "m": 20, "g": 30}
    word = text.strip().lower().removesuffix("b")
    shift = units.get(word[-1:], 0)
    try:
        return int(float(word[:-1] if shift else word) * (1 << shift))
    except (ValueError, OverflowError):
        raise ValueError(f'{text!r} is not an amount of memory such as "512m" or "1g"') from None


class LocalChannel(Channel):
    """A session forked from the zygote: one socket, and signals to its process group."""

    def __init__(self, stream: socket, files: socket, group: int, zygote: ZygoteClient, memory: int):
        super().__init__(stream)
        self.files, self.group, self.zygote = files, group, zygote
        self.numbers = itertools.count(1)
        self.memory = memory
        self.granted = 0  # bytes for what the host has set
        self.floor = 0  # resident bytes of a worker without variables
        self.allowed = memory  # bytes for the running cell
        self.next_count = math.inf
        self.lock = threading.Lock()

    def workers(self) -> list[int]:
        """The session's processes except init, to which orphans go, so that none can leave its tree."""
        found = children_of(self.group)
        for pid in found:
            found += children_of(pid)
        if not found:  # perhaps a kernel that lists no children
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            found = [pid for pid in pids if pid != self.group and stat_field(pid, 2) == str(self.group)]
        return found

    def make_room(self, name: str, nbytes: int) -> None:
        added = max(0, nbytes - self.granted)
        self.granted += added
        for pid in self.workers() if added else ():
            set_address_space(pid, lambda soft, _: soft + added)

    @contextlib.contextmanager
    def cell_memory(self, memory: int | None) -> Iterator[int | None]:
        self.floor = self.floor or max(map(resident, self.workers()), default=0)
        self.next_count = time.monotonic() + COUNT_INTERVAL
        before = []
        if memory is not None:
            present = max(map(resident, self.workers()), default=0) - self.floor - self.granted
            self.allowed = memory + max(0, present)
            before = [set_address_space(pid, lambda _, size: size + memory) for pid in self.workers()]
        try:
            yield None
        finally:
            self.allowed = self.memory
            for pid in self.workers() if before else ():
                set_address_space(pid, lambda *_: max(before))

    def is_over_memory(self) -> bool:
        """A fork shares memory with its checkpoint, so the second and third largest processes are not counted."""
        if time.monotonic() < self.next_count:
            return False
        began = time.thread_time()
        sizes = sorted((resident(pid) - self.floor - self.granted for pid in self.workers()), reverse=True)
        self.next_count = time.monotonic() + max(COUNT_INTERVAL, 10 * (time.thread_time() - began))
        return sum(size for size in [*sizes[:1], *sizes[3:]] if size > 0) > self.allowed

    def hand_over(self, descriptor: int, path: str, start: int) -> Frame:
        import socket

        number = next(self.numbers)
        socket.send_fds(self.files, [str(number).encode()], [descriptor])
        return {"tag": number}

    def signal(self, name: str) -> None:
        if self.inherited():  # before the lock, which another thread may have held when this process was forked
            return
        with self.lock, contextlib.suppress(ProcessLookupError):
            if self.group:
                os.killpg(self.group, signal.SIGCONT)  # it may have stopped itself
                os.killpg(self.group, getattr(signal, name))

    def kill(self) -> None:
        self.signal("SIGKILL")

    def close(self) -> None:
        with self.lock:
            group, self.group = self.group, 0
        if group:
            if not self.inherited():
                self.zygote.terminate(group)
            self.stream.close()
            self.files.close()


def proc(path: str) -> str:
    """What a file in /proc says; "" if it cannot be read, as when the process has ended."""
    try:
        with open(f"/proc/{path}", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    return list(map(int, proc(f"{pid}/task/{pid}/children").split()))


def stat_field(pid: int, number: int) -> str:
    """A field of /proc/PID/stat, counted from the one after the name; "" if the process has ended."""
    fields = proc(f"{pid}/stat").rpartition(")")[2].split()
    return fields[number] if fields else ""


def resident(pid: int) -> int:
    """A process's bytes of memory; 0 if it has ended."""
    return rlm_worker.memory_size(1, pid) or 0


def set_address_space(pid: int, wanted: Callable[[int, int], int]) -> int:
    """Change a worker's limit to wanted(limit, size in use); returns the limit before."""
    import resource

    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limit = wanted(soft, rlm_worker.memory_size(0, pid) or 0)
            resource.prlimit(pid, resource.RLIMIT_AS, (limit if hard == -1 else min(limit, hard), hard))
        return soft
    except OSError:  # it has ended
        return 0


class PlainChannel(Channel):
    """A worker without zygote. A thread copies its output to a socket, since Windows cannot poll a pipe."""

    def __init__(self, setup: Setup):
        import socket
        import subprocess
        import tempfile

        self.folder = tempfile.mkdtemp(prefix="rlm-sandbox-")
        ours, self.theirs = socket.socketpair()
        super().__init__(ours)
        setup = dict(setup, scratch=self.folder, fork_limit=0, confined=False)
        self.process: Any = start_python(
            "plain_main(setup)", setup, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.carrier = threading.Thread(target=self.carry, daemon=True)
        self.carrier.start()

    def carry(self) -> None:
        with self.theirs, contextlib.suppress(OSError):
            while data := os.read(self.process.stdout.fileno(), 1 << 18):
                self.theirs.sendall(data)

    def hand_over(self, descriptor: int, path: str, start: int) -> Frame:
        return {"path": path}  # nothing confines it

    def send_bytes(self, data: memoryview) -> int:
        return os.write(self.process.stdin.fileno(), data[: 1 << 16])

    def signal(self, name: str) -> None:
        if sys.platform != "win32":
            self.process.send_signal(getattr(signal, name))

    def kill_cell(self) -> None:
        self.kill()

    def kill(self) -> None:
        if not self.inherited():
            self.process.kill()

    def close(self) -> None:
        import shutil

        self.stream.close()
        if self.inherited():
            return
        self.kill()
        self.process.wait()
        self.carrier.join(5)
        self.process.stdin.close()
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class ZygoteClient:
    """The host's side of a zygote."""

    def __init__(self, setup: Setup):
        import socket

        self.lock = threading.RLock()
        self.request_number = 0
        self.owner = os.getpid()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(START_LIMIT)
        with theirs:
            self.process = start_python(f"zygote_main({theirs.fileno()}, setup)", setup, pass_fds=[theirs.fileno()])
        try:
            self.answer()
        except SandboxError:
            self.process.kill()
            self.close()
            raise

    def answer(self) -> Frame:
        try:
            answer: Frame = json.loads(self.socket.recv(65_536) or b"{}")
        except (OSError, ValueError):
            answer = {}
        if not answer or "error" in answer:
            raise SandboxError("the sandbox did not start: %s" % (answer.get("error") or self.complaint()))
        return answer

    def complaint(self) -> str:
        try:
            _, stderr = self.process.communicate(timeout=5)
        except Exception:
            self.process.kill()
            return "its process does not answer"
        lines = stderr.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"its process ended with status {self.process.returncode}"

    def spawn(self, request: Frame, descriptors: list[int]) -> int:
        """The pid of a new session's init."""
        import socket

        with self.lock:
            self.request_number += 1
            message = rlm_worker.to_json(dict(request, op="spawn", number=self.request_number)).encode()
            if len(message) > rlm_worker.REQUEST_MAX:
                raise SandboxError(
                    "the paths to be readable are too long, taken together", "give a common parent folder"
                )
            try:
                socket.send_fds(self.socket, [message], descriptors)
            except OSError as error:
                raise SandboxError("the sandbox did not start: its parent process has ended") from error
            while (answer := self.answer())["number"] != self.request_number:
                self.terminate(answer["pid"])  # an answer that an earlier, interrupted call did not await
            return int(answer["pid"])

    def terminate(self, pid: int) -> None:
        with self.lock, contextlib.suppress(OSError):
            self.socket.send(rlm_worker.to_json({"op": "terminate", "pid": pid}).encode())

    def close(self) -> None:
        with self.lock:
            self.socket.close()
        if self.owner == os.getpid():
            self.process.wait()
            if self.process.stderr:
                self.process.stderr.close()


BOOTSTRAP = """
import sys
sys.path[:] = [p for p in sys.path if p]
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("rlm_worker", sys.argv[1])
module = sys.modules["rlm_worker"] = module_from_spec(spec)
spec.loader.exec_module(module)
import json
setup = json.loads(sys.argv[2])
sys.argv[:] = [""]
sys.path += setup["path"]
module.%s
"""


def start_python(main: str, setup: Setup, **streams: Any) -> Popen[bytes]:
    """Start a bare interpreter that runs a function of the worker. Not with -I, which ignores PYTHONHASHSEED."""
    import subprocess

    flags = ["-S", "-s"] + (["-P"] if sys.version_info >= (3, 11) else [])
    environment = {
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1" if sys.dont_write_bytecode else "",
        "OPENBLAS_NUM_THREADS": "1",  # a thread at the time of a fork would be lost, and its locks with it
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # a fork under a large text copies few page table entries
        "LC_ALL": "C.UTF-8",
        "SYSTEMROOT": os.environ.get("SYSTEMROOT", ""),  # without it no Python starts on Windows
    }
    arguments = [sys.executable, *flags, "-c", BOOTSTRAP % main, WORKER_FILE, json.dumps(setup)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    given = {name: value for name, value in environment.items() if value}
    # A session of its own: Ctrl-C in a terminal goes to all that share the host's, and would end every REPL.
    return subprocess.Popen(arguments, env=given, cwd=os.path.abspath(os.sep), start_new_session=True, **streams)


_zygotes: dict[tuple[int, tuple[str, ...], bool], ZygoteClient] = {}
_zygotes_lock = threading.Lock()


def renew_locks() -> None:
    """In a fork of the host: the threads that held these locks do not exist there."""
    global _zygotes_lock, _warm_lock
    _zygotes_lock, _warm_lock = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_locks)


def zygote_for(allowed_imports: tuple[str, ...], policy: bool) -> ZygoteClient:
    key = (os.getpid(), allowed_imports, policy)
    with _zygotes_lock:
        client = _zygotes.get(key)
        if client is not None and client.process.poll() is not None:
            client.close()
            client = None
        if client is None:
            if not _zygotes:
                atexit.register(shutdown)
            setup = {**language_setup(allowed_imports, policy), "temporary": temporary_folder()}
            client = _zygotes[key] = ZygoteClient(setup)
        return client


def temporary_folder() -> str:
    folder = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise SandboxError(f"the sandbox cannot keep its files in {folder!r} (TMPDIR)", "export TMPDIR=/tmp")
    return folder


def language_setup(allowed_imports: tuple[str, ...], policy: bool) -> Setup:
    """What the worker's interpreter, which sees no site-packages, needs for RestrictedPython and the packages.

    `path` is where it imports them from. `packages` is what these read while they run: their own files, and those that
    they are installed beside.
    """
    places = [place for name in allowed_imports for place in locations_of(name)]
    above = [os.path.dirname(place) for place in places]
    own = [os.path.dirname(place) for place in locations_of("RestrictedPython")] if policy else []
    return {
        "allowed_imports": allowed_imports,
        "policy": policy,
        "path": list(dict.fromkeys(filter(None, [*own, *above]))),
        "packages": [*places, *(folder for folder in above if folder.endswith(("site-packages", "dist-packages")))],
    }


def locations_of(name: str) -> list[str]:
    """The folders of a package, or the file of a module."""
    from importlib.util import find_spec

    spec = find_spec(name.partition(".")[0])
    if spec is None:
        raise SandboxError(f"the package {name!r} is not installed", f"pip install {name}")
    return list(spec.submodule_search_locations or [spec.origin or ""])


def is_native(name: str) -> bool:
    """Whether a package contains compiled code."""
    suffixes = (".so", ".pyd", ".dylib")
    places = locations_of(name)
    files = itertools.chain(places, *(names for place in places for _, _, names in os.walk(place)))
    return any(file.endswith(suffixes) for file in files)


def capabilities() -> dict[str, bool | str]:
    """Which layers of the local sandbox hold on this machine (`..._error` says why one does not), and its level."""
    with LocalSandbox() as sandbox:
        return {**sandbox.layers, "level": sandbox.level}


def warm(allowed_imports: Sequence[str] = ()) -> None:
    """Start the process that sessions are forked from, in the background."""

    def start() -> None:
        with contextlib.suppress(SandboxError):  # the error is reported when a sandbox is made
            zygote_for(tuple(allowed_imports), True)

    if FORKS_SESSIONS and (os.getpid(), tuple(allowed_imports), True) not in _zygotes:
        threading.Thread(target=start, daemon=True).start()


def shutdown() -> None:
    """End the zygotes, and with them every local session of this process."""
    with _zygotes_lock:
        clients = [_zygotes.pop(key) for key in list(_zygotes) if key[0] == os.getpid()]
    for client in clients:
        client.close()


FORKS_SESSIONS = sys.platform == "linux"
FULL_LEVEL = ("landlock", "seccomp", "network_namespace", "no_new_privs", "rlimits")


class LocalSandbox(BaseSandbox):
    """A REPL in a confined child process.

    `memory`: of all its processes, in addition to what `set` hands over. `workspace`: folders that cells may read.
    `allowed_imports`: further modules that they may import. `require="full"`: SandboxError unless the kernel confines
    it fully. `output_limit`: characters of a cell's output. `snapshot=False`: a killed cell takes the variables with
    it. `layers` is for tests of single layers.
    """

    def __init__(
        self,
        *,
        cell_timeout: float = 30,
        memory: str | int = "1g",
        allowed_imports: Sequence[str] | None = None,
        workspace: str | Sequence[str] | None = None,
        require: str = "best",
        output_limit: int = 10_000,
        snapshot: bool = True,
        layers: Sequence[str] = ("policy", "confinement"),
    ):
        folders = [workspace] if isinstance(workspace, str) else workspace or ()
        super().__init__(cell_timeout=cell_timeout, output_limit=output_limit, folders=folders)
        if require not in ("best", "full"):
            raise ValueError(f'require is "best" or "full", not {require!r}')
        self.allowed_imports = tuple(allowed_imports or ())
        self.policy = "policy" in layers
        self.require = require
        self.memory = parse_size(memory)
        self.setup = {
            "memory": self.memory,
            "workspace": self._files.folders,
            "output_limit": output_limit,
            "fork_limit": SNAPSHOT_MAX if snapshot else 0,
            "confined": "confinement" in layers,
        }
        with self._lock:
            self._started()

    def _hello(self, channel: Channel) -> None:
        super()._hello(channel)
        if isinstance(channel, LocalChannel):
            self.layers["memory_counted"] = True
        if self.require == "full" and self.level != "full":
            missing = ", ".join(name for name in FULL_LEVEL if not self.layers.get(name))
            raise SandboxError(f"the sandbox is not fully confined here: no {missing}", 'use Docker, or require="best"')
        for name in self.allowed_imports:
            # Compiled packages do what they like beneath the policy: only the operating system can hold them.
            if self.level == "language-only" and self.policy and is_native(name):
                message = f"{name!r} is compiled code, and nothing on this system confines the local sandbox"
                raise SandboxError(message, "use the Docker environment for it")

    @property
    def level(self) -> str:
        """How far the kernel confines the session: "full", "partial", or "language-only" (not at all)."""
        held = [name for name in FULL_LEVEL if self.layers.get(name)]
        if len(held) == len(FULL_LEVEL):
            return "full"
        return "partial" if set(held) - {"rlimits"} else "language-only"

    def _open(self) -> Channel:
        if not FORKS_SESSIONS:
            return PlainChannel({**self.setup, **language_setup(self.allowed_imports, self.policy)})
        try:
            return self._session(zygote_for(self.allowed_imports, self.policy))
        except OSError as error:
            hint = "it takes a few descriptors (ulimit -n), processes (ulimit -u), and /proc"
            raise SandboxError(f"the sandbox did not start: {error}", hint) from error

    def _session(self, zygote: ZygoteClient) -> Channel:
        import socket

        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            stream, their_stream = socket.socketpair()
            ours.enter_context(stream)
            theirs.enter_context(their_stream)
            files, their_files = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.enter_context(files)
            theirs.enter_context(their_files)
            files.setblocking(False)
            files.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # a few descriptors under way, and no more
            group = zygote.spawn(self.setup, [their_stream.fileno(), their_files.fileno()])
            ours.pop_all()
        return LocalChannel(stream, files, group, zygote, self.memory)


# --- the Docker sandbox -----------------------------------------------------------------------------------------------

LABEL = "flat-rlm.sandbox"  # its value names the process that made the container
LEAST_MEMORY = 24 << 20  # what the worker needs itself, with a fork and some room
IDLE_LIMIT = 86_400.0  # seconds that a container waits for a word from its host
FILES_MAX = 200_000  # looked at in a folder that is to be mounted, and hidden in it
MASKS_MAX = 1_000
PIDS_MAX = 64
THREAD_STACK = 8 << 20  # bytes of address space that a thread reserves
CONNECT_SECONDS = 10.0  # for the daemon to answer at all, to start a container, to stop one
DAEMON_SECONDS = 60
STOP_SECONDS = 5.0
POOL_LINGER = 120.0  # seconds that containers are kept warm after the last use


class DockerChannel(Channel):
    """A container's attached standard streams, which the engine multiplexes."""

    hard_grace = 1.5 * HARD_GRACE  # the engine passes a signal on

    def __init__(self, engine: APIClient, container: str, attached: SocketIO, memory: int):
        import ssl

        super().__init__(raw_socket(engine, attached))
        self.blocked = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
        self.turns = threading.Lock()  # a TLS connection cannot be read and written at once
        self.engine, self.container, self.memory = engine, container, memory
        self.attached = attached  # holds the response open
        self.arrived = bytearray()
        self.complaint = bytearray()  # the newest of what came on stderr: why a worker did not start
        self.lock = threading.Lock()
        self.gone = False
        self.mounted = False
        self.delivering: list[threading.Thread] = []  # signals on their way

    def receive_bytes(self) -> bytes:
        with self.turns:
            data = self.stream.recv(1 << 18)  # at least a whole record of TLS, or what is left of it would go unnoticed
        self.arrived += data
        output = self.output()
        if data and not output:
            raise BlockingIOError
        return output

    def send_bytes(self, data: memoryview) -> int:
        with self.turns:
            return super().send_bytes(data[: 1 << 16])

    def output(self) -> bytes:
        """The complete parts of the container's stdout that have arrived."""
        found = []
        while len(self.arrived) >= 8:
            stream_id, size = struct.unpack_from(">B3xI", self.arrived)
            if len(self.arrived) < 8 + size:
                break
            part = self.arrived[8 : 8 + size]
            del self.arrived[: 8 + size]
            if stream_id == 1:
                found.append(part)
            else:
                self.complaint = (self.complaint + part)[-4000:]
        return b"".join(found)

    def alive(self) -> bool:
        """Whether the connection is still open, as far as this machine knows."""
        poller = select.poll()
        poller.register(self.stream.fileno(), getattr(select, "POLLRDHUP", 0))
        return not poller.poll(0)

    def signal(self, name: str) -> None:
        """Signal the container's PID 1. If it or the daemon has ended, reading finds that out."""

        def deliver() -> None:
            with contextlib.suppress(OSError):
                request(self.engine, "POST", self.container, "/kill", signal=name)

        self.delivering.append(threading.Thread(target=deliver, daemon=True))  # a slow engine must not stop the clock
        self.delivering[-1].start()

    def make_room(self, name: str, nbytes: int) -> None:
        """SandboxError for what cannot fit, before the kernel kills for it."""
        if nbytes > self.memory - LEAST_MEMORY:
            megabytes = (nbytes + LEAST_MEMORY + (48 << 20)) >> 20
            raise SandboxError(
                f"{name!r} needs about {nbytes >> 20} MB, the container has {self.memory >> 20} MB",
                f'docker_memory = "{megabytes}m"',
            )

    def settle(self) -> None:
        while self.delivering:
            self.delivering.pop().join(STOP_SECONDS)

    def kill(self) -> None:
        """The worker ends with its input, and the container with the worker."""
        import socket

        if self.inherited():
            return
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self.lock:
            gone, self.gone = self.gone, True
        if gone:
            return
        if self.inherited():
            self.stream.close()
            return
        self.kill()
        close_attached(self.attached)
        remove_container(self.engine, self.container)

    def abandon(self) -> None:
        threading.Thread(target=self.close).start()


def close_attached(attached: SocketIO) -> None:
    """Close the response first: it warns later if its socket was closed before it."""
    stream = getattr(attached, "_sock", attached)  # closing the response clears it
    with contextlib.suppress(OSError, ValueError):
        if (response := getattr(attached, "_response", None)) is not None:
            response.close()
        stream.close()
        attached.close()


def raw_socket(engine: APIClient, attached: SocketIO) -> socket:
    """The socket under the SDK's object for an attached container, perhaps one of TLS."""
    import socket

    stream = getattr(attached, "_sock", attached)
    if not isinstance(stream, socket.socket):
        raise SandboxError(
            f"containers cannot be driven over {engine.base_url}",
            "forward the socket: ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST; "
            "then DOCKER_HOST=unix:///tmp/docker.sock and docker_mount=none",
        )
    return stream


# - the engine


def request(engine: APIClient, method: str, container: str, action: str = "", **parameters: str) -> int:
    """Send a request about a container, with a shorter timeout than the SDK's; returns the status."""
    url = f"{engine.base_url}/v{engine.api_version}/containers/{container}{action}"
    with engine.request(method, url, params=parameters, timeout=STOP_SECONDS) as answer:
        return int(answer.status_code)


def remove_container(engine: APIClient, container: str) -> None:
    """Remove a container in any state; if it is being removed already, wait for that."""
    with contextlib.suppress(OSError):
        if request(engine, "DELETE", container, force="1", v="1") == 409:
            request(engine, "POST", container, "/wait", condition="removed")


def engine_errors() -> tuple[type[Exception], ...]:
    """The exception classes of the Docker SDK."""
    import docker.errors

    return OSError, docker.errors.DockerException  # OSError: requests' own are such


_engines: dict[tuple[int, str], APIClient] = {}


def docker_engine() -> APIClient:
    """The low-level client of the daemon that DOCKER_HOST names; SandboxError with the next step if none answers."""
    key = (os.getpid(), os.environ.get("DOCKER_HOST", ""))
    if key not in _engines:
        _engines[key] = connect_engine()
        threading.Thread(target=sweep_containers, args=(_engines[key],), daemon=True).start()
    return _engines[key]


def connect_engine() -> APIClient:
    try:
        import docker

        connect = docker.from_env
    except (ImportError, AttributeError) as error:
        folder = getattr(sys.modules.get("docker"), "__path__", None)
        reason = f"{next(iter(folder))} hides it" if folder else str(error)
        raise SandboxError(
            f"the Docker SDK for Python cannot be imported: {reason}",
            "rename that folder, or run elsewhere" if folder else "pip install docker",
        ) from None
    host = os.environ.get("DOCKER_HOST")
    troubles: tuple[type[Exception], ...] = (*engine_errors(), ValueError)
    try:
        engine = connect(timeout=CONNECT_SECONDS, max_pool_size=100).api
    except troubles as error:
        why = f" ({first_line(error)})" if host else ""
        raise refusal(NO_ENGINE, error, where=host or "unix:///var/run/docker.sock", why=why) from None
    engine.timeout = DAEMON_SECONDS
    engine.is_podman = "Podman" in str(engine.version().get("Components"))
    return engine


# What the SDK or the engine says; the message; the next step. The last row takes whatever no other does.
Refusals = tuple[tuple[str, str, str], ...]
NO_ENGINE: Refusals = (
    (r"Permission denied", "no permission to use Docker at {where}",
     "sudo usermod -aG docker $USER, then log in again"),
    (r"paramiko", "the SDK cannot connect to {where}", 'pip install "docker[ssh]"'),
    (r"", "no Docker daemon answers at {where}{why}",
     "start it (sudo systemctl start docker), set DOCKER_HOST, or --env local"),
)  # fmt: skip
NO_CONTAINER: Refusals = (
    (r"executable file not found", "the image {box.image!r} has no python", 'docker_image = "python:3.11-slim"'),
    (r"[Uu]nknown (or invalid )?runtime|runtime .{1,100} not found", "the engine has no runtime {box.runtime!r}",
     "docker info lists the runtimes; docker_runtime = one of them"),
    (r"[Mm]emory", "the engine refuses this amount of memory: {detail}", 'docker_memory = "512m"'),
    (r"CPU", "the engine refuses this number of processors: {detail}", "docker_cpus = 1.0"),
    (r"no space left", "the engine's disk is full: {detail}", "docker system df shows what takes the room"),
    (r"bind source path|mount", "{box.workspace} cannot be mounted: {detail}", 'docker_mount = "none"'),
    (r"refused|Connection|timed out|No such file", "the Docker daemon does not answer any more",
     "start it again (sudo systemctl start docker); a run that had begun goes on with: rlm resume ID"),
    (r"", "the container cannot be started: {detail}", "docker info"),
)  # fmt: skip


def refusal(table: Refusals, error: BaseException | None, **words: object) -> SandboxError:
    detail = first_line(error)
    message, hint = next((message, hint) for pattern, message, hint in table if re.search(pattern, detail))
    return SandboxError(message.format(detail=detail, **words), hint)


def first_line(error: BaseException | None) -> str:
    explanation = getattr(error, "explanation", None) or error
    return str(explanation).strip().split("\n")[0][:300]


# - whose container it is


def owner_label(pid: int) -> str:
    """A label for a process that no other process, here or on another machine, ever has."""
    return f"{machine_id()} {pid} {start_of(pid)}"


def machine_id() -> str:
    """An id for this boot of the machine and this PID namespace."""
    if boot := proc("sys/kernel/random/boot_id").strip():
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    import platform

    return platform.node().replace(" ", "_") or "unknown"


def start_of(pid: int) -> str:
    """When a process started, in the kernel's units; "" if unknown."""
    return stat_field(pid, 19)


def is_alive(pid: int, started: str) -> bool:
    if os.name == "nt":  # where os.kill would be more than a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return start_of(pid) == started


def sweep_containers(engine: APIClient) -> None:
    """Remove the containers of this machine's dead processes."""
    with contextlib.suppress(*engine_errors()):
        for found in engine.containers(all=True, filters={"label": LABEL}):
            machine, pid, started = [*(found.get("Labels") or {}).get(LABEL, "").split(" "), "", ""][:3]
            if machine == machine_id() and pid.isdigit() and not is_alive(int(pid), started):
                remove_container(engine, found["Id"])


# - the sandbox


WORKER_HEAD = """\
import sys
if sys.version_info < (3, 8):
    sys.exit("its Python %s is older than 3.8" % sys.version.split()[0])
sys.path[:] = [path for path in sys.path if path]
import binascii, json, os, types, zlib
setup = json.loads(sys.argv[1])
sys.argv[:] = [""]
for folder in setup["folders"]:
    try:
        os.chdir(folder)
        break
    except OSError:
        pass
module = sys.modules["rlm_worker"] = types.ModuleType("rlm_worker")
"""


def worker_program() -> str:
    """rlm_worker.py as a program for `python3 -c`; the next argument is its setup as JSON."""
    import zlib

    with open(WORKER_FILE, encoding="utf-8") as file:
        source = file.read()
    packed = binascii.b2a_base64(zlib.compress(source.encode(), 9), newline=False).decode()
    return (
        f"{WORKER_HEAD}source = zlib.decompress(binascii.a2b_base64({packed!r})).decode()\n"
        "exec(compile(source, '<worker>', 'exec'), module.__dict__)\n"
        "module.container_main(setup)\n"
    )


class DockerSandbox(BaseSandbox):
    """A REPL in a hardened container that is kept for the sandbox's life, driven over its attached streams.

    `workspace` is mounted read-only at /workspace (by a local daemon only); files in it that may hold credentials are
    hidden. `pool`: how many idle containers of this kind are kept for the next sandboxes. `on_progress(text)` is told
    when the image is pulled. `execute` raises SandboxError if the engine has gone.
    """

    def __init__(
        self,
        *,
        image: str = "python:3.11-slim",
        cpus: float = 1.0,
        memory: str | int = "512m",
        network_disabled: bool = True,
        runtime: str | None = None,
        workspace: str | None = None,
        cell_timeout: float = 30,
        output_limit: int = 10_000,
        pool: int = 0,
        on_progress: Callable[[str], None] | None = None,
    ):
        super().__init__(cell_timeout=cell_timeout, output_limit=output_limit, folders=[workspace] if workspace else ())
        self.image, self.cpus, self.memory, self.runtime = image, cpus, parse_size(memory), runtime
        self.network_disabled, self.pool, self.on_progress = network_disabled, pool, on_progress
        self.workspace = os.path.realpath(workspace) if workspace else None
        self.engine = docker_engine()
        if self.memory < LEAST_MEMORY:
            raise SandboxError(
                f"{self.memory >> 20} MB of memory are too little for Python",
                f'docker_memory = "{LEAST_MEMORY >> 20}m" or more',
            )
        try:
            with self._lock:
                self._started()
        except BaseException:
            self.close()
            raise

    @property
    def level(self) -> str:
        """Always "container"."""
        return "container"

    def execute(self, code: str, **options: Any) -> Cell:
        """Run a cell; SandboxError if it was lost because the daemon has gone."""
        cell = super().execute(code, **options)
        if cell.status == "lost":
            try:
                self.engine.ping()
            except engine_errors() as error:
                raise refusal(NO_CONTAINER, error, box=self) from None
        return cell

    # - starting

    def _open(self) -> Channel:
        if not self.pool:
            return self._start()
        limits = (self.image, self.cpus, self.memory, self.network_disabled, self.runtime)
        key = (os.getpid(), id(self.engine), *limits, self.workspace, self.output_limit)
        return take_warm(key, self.pool, self._start)

    def _hello(self, channel: Channel) -> None:
        try:
            super()._hello(channel)
        except SandboxError as error:
            lines = bytes(getattr(channel, "complaint", b"")).decode("utf-8", "replace").strip().splitlines()
            raise SandboxError(
                f"the image {self.image!r} did not start: {lines[-1] if lines else error}",
                f"try: docker run --rm {self.image} python3 -V",
            ) from None
        self.layers["container"] = True
        if getattr(channel, "mounted", False):  # else it could ask for what is hidden there as the target of a link
            self._files = Files(())

    def _start(self) -> DockerChannel:
        """Start a container; its worker will say hello. One that fails to start has to be removed here."""
        error: BaseException | None = None
        for python in ("python3", "python"):
            name = f"rlm-{os.urandom(8).hex()}"
            try:
                return self._attach(name, python)
            except BaseException as problem:
                remove_container(self.engine, name)
                if not isinstance(problem, engine_errors()):
                    raise
                error = problem
                if "executable file not found" not in str(problem):
                    break
        raise refusal(NO_CONTAINER, error, box=self) from None

    def _attach(self, name: str, python: str) -> DockerChannel:
        from docker.errors import ImageNotFound

        options = self._options(python)
        try:
            self.engine.create_container(name=name, **options)
        except ImageNotFound:
            self._pull()
            self.engine.create_container(name=name, **options)
        attached = self.engine.attach_socket(name, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        try:
            self.engine.start(name)
            channel = DockerChannel(self.engine, name, attached, self.memory)
            channel.mounted = bool(options["host_config"].get("Mounts"))
            return channel
        except BaseException:
            close_attached(attached)
            raise

    def _options(self, python: str) -> dict[str, Any]:
        mounts, empty = self._mounts()
        setup = {
            "output_limit": self.output_limit,
            "fork_limit": min(SNAPSHOT_MAX, self.memory // 2),
            "idle_limit": IDLE_LIMIT,
            "data_limit": self.memory + PIDS_MAX * THREAD_STACK,  # beyond it, MemoryError instead of a kill
            "folders": ["/workspace", "/tmp"] if mounts else ["/tmp"],
            "scratch": "/tmp",
            "home": "/workspace" if mounts else "/tmp",
            "mounted": bool(mounts),
            "network": not self.network_disabled,
        }
        return {
            "image": self.image,
            "command": None,
            "entrypoint": [python, "-s", "-c", worker_program(), rlm_worker.to_json(setup)],
            "environment": {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp"},
            "user": container_user(),
            "working_dir": "/",
            "stdin_open": True,
            "detach": False,  # so that the worker's input ends with this process
            "stop_signal": "SIGKILL",
            "healthcheck": {"test": ["NONE"]},
            "network_disabled": self.network_disabled,
            "labels": {LABEL: owner_label(os.getpid())},
            "host_config": self.engine.create_host_config(**self._limits(mounts, empty)),
        }

    def _limits(self, mounts: list[Mount], empty: list[str]) -> dict[str, object]:
        """The limits and denials that the engine enforces."""
        from docker.types import LogConfig, Ulimit

        bounds = {"core": 0, "nofile": 256, "fsize": rlm_worker.SCRATCH_SIZE, "msgqueue": 0}
        scratch = f"rw,noexec,nosuid,nodev,mode=1777,size={rlm_worker.SCRATCH_SIZE >> 20}m"
        hidden = "ro,noexec,nosuid,nodev,size=4k"
        if self.engine.is_podman:
            bounds["nproc"] = 4096  # its own default may be more than it can give
            hidden += ",notmpcopyup"  # or it would copy what is to be hidden
        limits: dict[str, object] = {
            "network_mode": "none" if self.network_disabled else "bridge",
            "read_only": True,
            "tmpfs": {"/tmp": scratch, **dict.fromkeys(empty, hidden)},
            "mounts": mounts,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "pids_limit": PIDS_MAX,
            "mem_limit": self.memory,
            "memswap_limit": self.memory,
            "nano_cpus": int(self.cpus * 1e9),
            "ipc_mode": "none",
            "init": False,  # the worker's PID 1 is one
            "log_config": LogConfig(type="none"),
            "ulimits": [Ulimit(name=name, soft=value, hard=value) for name, value in bounds.items()],
            "auto_remove": True,
        }
        return {**limits, "runtime": self.runtime} if self.runtime else limits

    def _mounts(self) -> tuple[list[Mount], list[str]]:
        """Mounts for the working directory and over the files that may hold credentials, and the folders to hide."""
        from docker.types import Mount

        local = self.engine.base_url in ("http+docker://localhost", "http+docker://localnpipe")
        if self.workspace is None or not local or not os.path.isdir(self.workspace):
            return [], []
        files, folders = secrets_in(self.workspace)
        whole = Mount("/workspace", self.workspace, type="bind", read_only=True)
        whole["BindOptions"] = {"NonRecursive": True}  # a file system mounted below it would be writable
        hidden = [Mount(f"/workspace/{path}", "/dev/null", type="bind", read_only=True) for path in files]
        return [whole, *hidden], [f"/workspace/{path}" for path in folders]

    def _pull(self) -> None:
        """Pull the image and report progress; SandboxError if that fails."""
        report = self.on_progress or (lambda line: print(line, file=sys.stderr))
        report(f"docker: the image {self.image} is not here; pulling it")
        refusal = ""
        try:
            for step in self.engine.pull(self.image, stream=True, decode=True):  # to its end, or it stays open
                refusal = step.get("error", refusal)
                if "progress" not in step and step.get("status"):
                    report(f"docker: {step['status']}")
            if refusal:
                raise OSError(refusal)
        except engine_errors() as error:
            raise SandboxError(
                f"the image {self.image!r} is not here and cannot be pulled ({first_line(error)})",
                f"docker pull {self.image}, or docker_image = an image that `docker images` lists",
            ) from None


def container_user() -> str:
    """The caller's own ids, so that a mounted folder can be read; nobody's instead of root's."""
    user = getattr(os, "getuid", lambda: 65534)() or 65534
    group = getattr(os, "getgid", lambda: 65534)() or 65534
    return f"{user}:{group}"


def secrets_in(folder: str) -> tuple[list[str], list[str]]:
    """The files and folders below a folder that may hold credentials, or that such names link to; relative paths."""
    files: set[str] = set()
    folders: set[str] = set()
    seen = 0
    mounted = {line.split(" ")[4] for line in proc("self/mountinfo").split("\n") if line}
    for place, below, names in os.walk(folder):
        seen += len(below) + len(names)
        inside = [".git"] if ".git" in os.path.relpath(place, folder).lower().split(os.sep) else []
        secret = {name for name in (*below, *names) if may_hold_secrets([*inside, name])}
        for name in secret:
            real = os.path.realpath(os.path.join(place, name))
            if rlm_worker.is_inside(real, folder) and os.path.exists(real):
                (folders if os.path.isdir(real) else files).add(os.path.relpath(real, folder).replace(os.sep, "/"))
        passed = secret | ({"objects"} if inside else set())
        below[:] = [name for name in below if name not in passed and os.path.join(place, name) not in mounted]
        if seen > FILES_MAX or len(files) + len(folders) > MASKS_MAX:
            raise SandboxError(
                f"{folder} has too many files to hide credentials in it (over {FILES_MAX:,}, or {MASKS_MAX:,} of them)",
                'docker_mount = "none", or run in a smaller folder',
            )
    hidden = tuple(f"{name}/" for name in folders)
    return sorted(name for name in files if not name.startswith(hidden)), sorted(folders)


# - containers kept warm

# What is equal in containers that can replace each other, and those that wait.
_warm: dict[tuple[object, ...], list[DockerChannel]] = {}
_filling: list[tuple[object, ...]] = []  # the key of each container that is being started
_warm_lock = threading.Lock()


def take_warm(key: tuple[object, ...], size: int, start: Callable[[], DockerChannel]) -> DockerChannel:
    """A container from the pool, or a fresh one; threads refill the pool."""
    with _warm_lock:
        if not _warm:
            atexit.register(close_warm)
        waiting = _warm.setdefault(key, [])
        channel = waiting.pop() if waiting else None
        missing = size - len(waiting) - _filling.count(key)
        _filling.extend([key] * missing)
    for _ in range(missing):
        threading.Thread(target=start_warm, args=(key, start)).start()
    if channel is not None and not channel.alive():
        channel.close()
        channel = None
    return channel or start()


def start_warm(key: tuple[object, ...], start: Callable[[], DockerChannel]) -> None:
    """Start one container and keep it for a while."""
    channel = None
    with contextlib.suppress(SandboxError):  # whoever needs a container gets the error
        channel = start()
        rlm_worker.wait_for(channel.fileno(), START_LIMIT)  # until it says hello
    with _warm_lock:
        _filling.remove(key)
        if channel is not None and key in _warm:
            _warm[key].append(channel)
            lingers = threading.Timer(POOL_LINGER, give_up, args=(key, channel))
            lingers.daemon = True
            lingers.start()
            return
    if channel is not None:
        channel.close()


def give_up(key: tuple[object, ...], channel: DockerChannel) -> None:
    """Close a container that is still unused."""
    with _warm_lock:
        if channel not in _warm.get(key, ()):
            return
        _warm[key].remove(channel)
    channel.close()


def close_warm() -> None:
    """Close all pooled containers."""
    with _warm_lock:
        waiting = [channel for key, channels in _warm.items() if key[0] == os.getpid() for channel in channels]
        _warm.clear()
    for channel in waiting:
        channel.close()


if __name__ == "__main__":  # --self-test
    print("\n".join(f"{name}: {holds}" for name, holds in capabilities().items()))
