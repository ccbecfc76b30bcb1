# /// script
# requires-python = ">=3.10"
# dependencies = ["RestrictedPython>=8.5,<10", "docker>=7"]
# ///
"""A Python REPL for code that nobody has read: it keeps its variables, can be stopped, and calls back into the host.

    with LocalSandbox() as box:
        box.set("context", text)
        cell = box.execute("len(context)")
        print(cell.value)

`LocalSandbox` runs the code in a child process under two layers, a language policy (RestrictedPython) and what Linux
offers without root (`capabilities()` says what holds here). `DockerSandbox` runs plain Python in a hardened container.
One worker and one protocol serve both. The file reads in that order: worker, policy, confinement, zygote, host, local,
Docker. It needs none of its siblings and can be vendored alone; `python rlm_sandbox.py --self-test` tries it.

Covered: files outside a private folder, the network, other programs and processes, the host's memory and environment,
other sessions; time, memory, output and processes without end; results and frames made to harm the host. A cell that
dies leaves the variables as they were before it.

Not covered: holes in the kernel or the interpreter that both layers miss; whether a file exists elsewhere (`stat` is
not hidden); time and processor use within the limits; files that a cell wrote and host functions that it called before
it died; what the host does with a result. `allowed_imports` voids the policy, and leaves the confinement. On macOS and
Windows the policy stands alone (not tested there): use Docker for code that may be hostile.
"""

from __future__ import annotations

import array
import ast
import binascii
import builtins
import collections
import collections.abc
import contextlib
import functools
import io
import itertools
import json
import math
import mmap
import os
import random
import re
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple, NoReturn
from weakref import CallableProxyType, ProxyType

__all__ = [
    "UNSET",
    "Cell",
    "Chunks",
    "DockerSandbox",
    "LocalSandbox",
    "SandboxError",
    "Stop",
    "capabilities",
    "shutdown",
    "warm",
]

# --- the worker: this section alone is also what runs in a container (standard library only, Python 3.8) --------------

FRAME_MAX = 32 << 20  # bytes in one frame, either way
VALUE_MAX = 24 << 20  # of a value in it: the host needs about twice that to read it
CONTAINER_COST = 62  # of these bytes for a list or object, beyond the two of each item: so much more it takes to read
DEPTH_MAX = 100  # nested containers in a value that travels
OUT_HALF = 5_000_000  # characters of a cell's output kept at each end in `_out[n]`
STREAM_MAX = 4_000_000  # characters of a cell's output that are sent on while it runs
OUT_TOTAL = 100_000_000  # characters kept in all of `_out`
TOGETHER_MAX = 64  # tasks whose calls are asked together
NAMES_MAX = 5_000  # variables that are listed
PASSED_ON = b"done"  # the original's last word to the copy that takes over
RELAYED_MAX = 4  # frames for a copy that does not take them
SPARE_DESCRIPTORS = 16  # kept from the cells
SPILL_HALF = 32_768  # bytes of output at each end that survive the death of the cell's process


class Unset:
    """The value of `Cell.final` before FINAL was called."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


class Packer:
    """Turns plain data into what JSON can carry; what JSON lacks becomes {"$": kind, "v": ...}.

    Only the base types' own methods are used, so that a subclass made in a cell runs none of its code here.
    """

    def __init__(self, room: int = VALUE_MAX):
        self.room = room

    def pack(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if depth > DEPTH_MAX:
            raise ValueError(f"nested more than {DEPTH_MAX} deep")
        if issubclass(kind, str):
            self.take(len(value) if kind is str else str.__len__(value))
            return value if kind is str else str.__str__(value)
        if issubclass(kind, int):
            return self.integer(int.__add__(value, 0))
        if issubclass(kind, float):
            number = float.__float__(value)
            return number if math.isfinite(number) else self.tagged("float", repr(number))
        if issubclass(kind, dict):
            return self.mapping(list(dict.items(value)), depth)
        for base, tag in SEQUENCES:
            if issubclass(kind, base):
                self.take(CONTAINER_COST)
                items = [self.pack(item, depth + 1) for item in base.__iter__(value)]
                return self.tagged(tag, items) if tag else items
        if issubclass(kind, (bytes, bytearray)):
            self.take(len(value))
            return self.tagged(kind.__name__, binascii.b2a_base64(bytes(value), newline=False).decode())
        raise TypeError(
            f"{kind.__name__} is not plain data (None, bool, int, float, str, bytes, list, tuple, set, dict)"
        )

    def tagged(self, kind: str, body: Any) -> Any:
        self.take(CONTAINER_COST)
        return {"$": kind, "v": body}

    def mapping(self, items: list[tuple[Any, Any]], depth: int) -> Any:
        if all(type(key) is str and key != "$" for key, _ in items):
            self.take(CONTAINER_COST + sum(len(key) + 4 for key, _ in items))
            return {key: self.pack(item, depth + 1) for key, item in items}
        self.take(CONTAINER_COST * (1 + len(items)))
        return self.tagged("dict", [[self.pack(key, depth + 1), self.pack(item, depth + 1)] for key, item in items])

    def integer(self, value: int) -> Any:
        """Beyond 2**63 in hexadecimal. Beyond 4,300 digits nobody could print it, so it does not travel as a number."""
        if value.bit_length() > 14_000:
            raise ValueError("an integer of more than 4,200 digits: use hex() or a float")
        self.take(value.bit_length() // 4 + 2)
        return value if -(2**63) <= value < 2**63 else self.tagged("int", hex(value))

    def take(self, size: int) -> None:
        self.room -= size + 2
        if self.room < 0:
            raise ValueError(f"larger than the {VALUE_MAX >> 20} MB that one message may carry")


SEQUENCES = ((list, ""), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset"))


def unpack(value: Any) -> Any:
    """What `Packer.pack` was given; ValueError for what it cannot have made."""
    if type(value) is list:
        return [unpack(item) for item in value]
    if type(value) is not dict:
        return value
    if "$" not in value:
        return {key: unpack(item) for key, item in value.items()}
    kind, body = value["$"], value.get("v")
    if kind == "float" and body in ("nan", "inf", "-inf"):
        return float(body)
    if kind == "int" and type(body) is str:
        return int(body, 16)
    if kind in ("bytes", "bytearray") and type(body) is str:
        raw = binascii.a2b_base64(body)
        return raw if kind == "bytes" else bytearray(raw)
    if kind == "dict" and type(body) is list and all(type(pair) is list and len(pair) == 2 for pair in body):
        keys = spread([unpack(key) for key, _ in body])
        return {key: unpack(pair[1]) for key, pair in zip(keys, body)}
    for base, tag in SEQUENCES:
        if tag and kind == tag and type(body) is list:
            items = [unpack(item) for item in body]
            return base(items) if base is tuple else base(spread(items))
    raise ValueError("not a value that travels")


def spread(keys: list[Any]) -> list[Any]:
    """The keys, if their hashes differ: equal ones, made on purpose, would cost quadratic time."""
    if len(keys) > 1000 and len(set(map(hash, keys))) < len(keys) // 2:
        raise ValueError("keys whose hashes collide")
    return keys


to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode_frame(message: dict[str, Any]) -> bytes:
    body = to_json(message).encode("ascii")
    if len(body) > FRAME_MAX:
        raise ValueError(f"larger than the {FRAME_MAX >> 20} MB that one message may carry")
    return struct.pack(">I", len(body)) + body


def text_of(message: BaseException) -> str:
    """An exception's message, whatever its `__str__` does."""
    try:
        return str.__str__(str(message))
    except BaseException:
        return f"<{type_name(type(message))} whose text cannot be had>"


def type_name(kind: type) -> str:
    """A class's name as the interpreter knows it, whatever its metaclass says."""
    name = type.__dict__["__name__"].__get__(kind)
    return str(name)[:200]


def cut(text: str, limit: int, where: str) -> str:
    """The text, or its two ends with a line between them that says how much is missing and where it is."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    missing = len(text) - limit
    return f"{text[:head]}\n[... {missing} of {len(text)} characters left out{where} ...]\n{text[len(text) - tail :]}"


def preview(value: Any, room: int = 80, depth: int = 0) -> str:
    """A short picture of a value that runs no code of the cell's."""
    kind = type(value)
    if kind in (bool, type(None), float, complex):
        return repr(value)
    if kind is int:
        return repr(value) if value.bit_length() < 200 else f"<int of {value.bit_length()} bits>"
    if kind in (str, bytes):
        return repr(value) if len(value) <= room else repr(value[:room]) + "..."
    if kind in (list, tuple, set, frozenset, dict) and depth < 3:
        brackets = "[]" if kind is list else "()" if kind is tuple else "{}"
        parts: list[str] = []
        for item in itertools.islice(value.items() if kind is dict else value, 10):
            if sum(map(len, parts)) > room:
                break
            shown = [preview(one, room // 2, depth + 1) for one in (item if kind is dict else (item,))]
            parts.append(": ".join(shown))
        more = ", ..." if len(value) > len(parts) else ""
        return brackets[0] + ", ".join(parts) + more + brackets[1]
    return f"<{type_name(kind)}>"


SIZED: frozenset[type] = frozenset((str, bytes, bytearray, list, tuple, set, frozenset, dict, range)) | frozenset(
    (collections.Counter, collections.OrderedDict, collections.defaultdict, collections.deque)
)


def describe(value: Any) -> tuple[str, int | None, str]:
    return type_name(type(value)), len(value) if type(value) in SIZED else None, preview(value)


def require_text(value: Any) -> None:
    """Refuse as an answer what has no text of its own, such as "<generator object ...>"."""
    kind = type(value)
    mro = type.__dict__["__mro__"].__get__(kind)
    spaces = [type.__dict__["__dict__"].__get__(owner) for owner in mro if owner is not object]
    texts = [space[name] for space in spaces for name in ("__str__", "__repr__") if name in space]
    if issubclass(kind, tuple(MODULES)):
        what, instead = "module", "FINAL(x.name)"
    elif issubclass(kind, type):
        what, instead = "class", "FINAL(C(...))"
    elif texts and type(texts[0]) is type(require_text):
        return  # its class says what its text is
    elif any("__next__" in space for space in spaces):
        what, instead = type_name(kind), "FINAL(list(x))"
    elif callable(value):
        what, instead = "function", "FINAL(f(...))"
    elif texts:
        return
    else:
        what, instead = f"{type_name(kind)} without a text of its own", "FINAL(x.name)"
    raise TypeError(f"FINAL takes text or data, not a {what}: {instead}")


MODULES: list[type] = [type(sys)]


def long_repr(value: Any, limit: int) -> str:
    """`repr`, without building a gigabyte of it when a large built-in container is looked at."""
    kind, half = type(value), limit // 2 + 1
    if kind in (str, bytes) and len(value) > 2 * limit:
        shown = repr(value[:half]) + f" [... {len(value) - 2 * half} left out ...] " + repr(value[-half:])
    elif kind in (list, tuple) and len(value) > 2 * limit:
        shown = repr(value[:half])[:-1] + f", [... {len(value) - 2 * half} items ...], " + repr(value[-half:])[1:]
    elif kind in (dict, set, frozenset) and len(value) > 2 * limit:
        first = itertools.islice(value.items() if kind is dict else value, half)
        shown = repr(dict(first) if kind is dict else set(first))[:-1] + f", [... of {len(value)} ...]}}"
    else:
        shown = str.__str__(repr(value))
    return cut(shown, limit, "")


class Interrupts:
    """SIGINT as KeyboardInterrupt in the cell's own code, and nowhere else: never in the middle of a frame."""

    def __init__(self) -> None:
        self.armed = False
        self.held = 0
        self.pending = False
        self.main = threading.get_ident()

    def handler(self, *_: Any) -> None:
        if self.armed and self.held:
            self.pending = True
        elif self.armed:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        if threading.get_ident() == self.main:
            self.held += 1

    def __exit__(self, *_: Any) -> None:
        if threading.get_ident() == self.main:
            self.held -= 1
            if self.pending and self.armed and not self.held:
                self.pending = False
                raise KeyboardInterrupt


class Wire:
    """Length-prefixed frames over two descriptors, read exactly, so that another process can go on where one stops."""

    def __init__(self, reader: int, writer: int):
        self.reader, self.writer = reader, writer

    def read(self) -> bytes:
        (size,) = struct.unpack(">I", self.exactly(4))
        if size > FRAME_MAX:
            raise EOFError("oversized frame")
        return self.exactly(size)

    def exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.reader, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.writer, view) :]

    def wait(self) -> None:
        if hasattr(select, "poll"):  # not on Windows, where no signal comes to a worker that waits
            poller = select.poll()
            poller.register(self.reader, select.POLLIN)
            poller.poll()


class Spill:
    """Both ends of a cell's output in memory shared with the process that outlives the cell."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 8 + 2 * SPILL_HALF)

    def clear(self) -> None:
        self.map[:8] = bytes(8)

    def total(self) -> int:
        return int.from_bytes(self.map[:8], "big")

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "replace") if len(text) <= SPILL_HALF else self.ends(text)
        total = self.total()
        for start in range(0, len(data), SPILL_HALF):
            self.place(data[start : start + SPILL_HALF], total + start)
        self.map[:8] = struct.pack(">Q", total + len(data))

    def ends(self, text: str) -> bytes:
        return (text[:SPILL_HALF] + text[-SPILL_HALF:]).encode("utf-8", "replace")

    def place(self, data: bytes, at: int) -> None:
        """The first half is filled once; the second is a ring."""
        if at < SPILL_HALF:
            head = data[: SPILL_HALF - at]
            self.map[8 + at : 8 + at + len(head)] = head
            data, at = data[len(head) :], at + len(head)
        if data:
            offset = at % SPILL_HALF
            first = data[: SPILL_HALF - offset]
            base = 8 + SPILL_HALF
            self.map[base + offset : base + offset + len(first)] = first
            self.map[base : base + len(data) - len(first)] = data[len(first) :]

    def text(self) -> str:
        total = self.total()
        head = self.map[8 : 8 + min(total, SPILL_HALF)]
        if total <= SPILL_HALF:
            return head.decode("utf-8", "replace")
        base, offset = 8 + SPILL_HALF, total % SPILL_HALF
        ring = self.map[base : base + SPILL_HALF]
        if total <= 2 * SPILL_HALF:
            return (head + ring[: total - SPILL_HALF]).decode("utf-8", "replace")
        lost = f"\n[... {total - 2 * SPILL_HALF} bytes left out ...]\n"
        return head.decode("utf-8", "replace") + lost + (ring[offset:] + ring[:offset]).decode("utf-8", "replace")


class Output(io.TextIOBase):
    """What a cell prints. Both ends are kept; the middle of a flood is dropped as it comes."""

    def __init__(self, emit: Callable[[str], None] | None, spill: Spill | None):
        self.emit, self.spill = emit, spill
        self.waiting: list[str] = []
        self.waits = 0
        self.head: list[str] = []
        self.tail: collections.deque[str] = collections.deque()
        self.headed = self.tailed = self.total = self.emitted = 0
        self.drained = 0.0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if type(text) is not str:
            raise TypeError(f"write() argument must be str, not {type_name(type(text))}")
        self.waiting.append(text)
        self.waits += len(text)
        self.total += len(text)
        if self.spill is not None:
            self.spill.write(text)
        if self.waits > 65_536 or (self.emit and text.endswith("\n") and time.monotonic() - self.drained > 0.05):
            self.flush()
        return len(text)

    def flush(self) -> None:
        text = "".join(self.waiting)
        self.waiting, self.waits, self.drained = [], 0, time.monotonic()
        if not text:
            return
        if self.emit and self.emitted < STREAM_MAX:
            self.emit(text)
            self.emitted += len(text)
        room = OUT_HALF - self.headed
        if room > 0:
            self.head.append(text[:room])
            self.headed += len(text[:room])
            text = text[room:]
        if text:
            self.tail.append(text[-OUT_HALF:])
            self.tailed += len(self.tail[-1])
            while self.tailed - len(self.tail[0]) >= OUT_HALF:
                self.tailed -= len(self.tail.popleft())

    def text(self) -> str:
        self.flush()
        head, tail = "".join(self.head), "".join(self.tail)[-OUT_HALF:]
        lost = self.total - len(head) - len(tail)
        return head + tail if not lost else f"{head}\n[... {lost} characters dropped ...]\n{tail}"


class PlainLanguage:
    """Python as it is: what runs in a container, where the container is the boundary."""

    def compile(self, source: str, filename: str) -> tuple[CodeType, CodeType | None]:
        return plain_compile(source, filename)

    def namespace(self, functions: dict[str, Any], stdout: Any, calls: Calls) -> dict[str, Any]:
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        vars(main).update(functions, __builtins__=builtins_module)
        return vars(main)

    def traceback(self, error: BaseException, sources: dict[str, str]) -> str:
        return plain_traceback(error, sources)


builtins_module = sys.modules["builtins"]


def plain_compile(source: str, filename: str) -> tuple[CodeType, CodeType | None]:
    """The statements and, if the last of them is an expression, that expression by itself."""
    import ast

    tree = ast.parse(source, filename)
    last = tree.body[-1] if tree.body else None
    tail = None
    if isinstance(last, ast.Expr):
        tree.body.pop()
        tail = compile(ast.Expression(last.value), filename, "eval", dont_inherit=True)
    return compile(tree, filename, "exec", dont_inherit=True), tail


def plain_traceback(error: BaseException, sources: dict[str, str]) -> str:
    """A traceback of the user's lines only."""
    lines = []
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in sources]
    if frames:
        lines.append("Traceback (most recent call last):")
    for frame in frames[:20] + frames[max(20, len(frames) - 20) :]:
        source = sources[frame.filename].splitlines()
        lines.append(f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}')
        if frame.lineno and frame.lineno <= len(source):
            lines.append("    " + source[frame.lineno - 1].strip()[:500])
    if isinstance(error, SyntaxError) and not frames:
        lines.extend(line.rstrip("\n") for line in traceback.format_exception_only(type(error), error))
    else:
        message = text_of(error)
        lines.append(type_name(type(error)) + (": " + message if message else ""))
    return "\n".join(lines)


def made_exception(kind: str, message: str, data: dict[str, Any]) -> Exception:
    """A host function's exception as the cell sees it: a built-in one, or a class of that name."""
    base = getattr(builtins_module, kind, None)
    error: Exception
    try:
        if not (isinstance(base, type) and issubclass(base, Exception)):
            raise TypeError
        error = base(message)
    except TypeError:
        error = made_class(kind)(message)
    for key, value in data.items():
        with contextlib.suppress(AttributeError, TypeError):
            setattr(error, key, value)
    return error


def made_class(kind: str) -> type[Exception]:
    if kind not in made_classes:
        made_classes[kind] = type(kind, (RuntimeError,), {"__module__": "host"})
    return made_classes[kind]


made_classes: dict[str, type[Exception]] = {}


class Calls:
    """The worker's side of host functions: a call goes out as a frame, and its answer is waited for by its number."""

    def __init__(self, wire: Wire):
        self.host = self.wire = wire
        self.interrupts = Interrupts()
        self.request = 0
        self.process = os.getpid()
        self.marked = False  # in a forked copy each frame says, before the frame itself, what the original does with it
        self.numbers = itertools.count(1)
        self.answers: dict[int, dict[str, Any]] = {}
        self.answered = threading.Condition(threading.Lock())
        self.reading = False
        self.sending = threading.Lock()
        self.known: collections.deque[Any] = collections.deque()  # calls of this task that were asked ahead
        self.probe: int | None = None  # in a throw-away copy: where it says what it would have asked

    def begin(self, wire: Wire, marked: bool) -> None:
        self.wire, self.marked, self.process = wire, marked, os.getpid()
        self.numbers, self.answers = itertools.count(1), {}

    def send(self, message: dict[str, Any], mark: bytes = b".") -> None:
        data = encode_frame(dict(message, id=self.request))
        with self.interrupts, self.sending:
            try:
                self.wire.write(mark + data if self.marked else data)
            except BrokenPipeError:
                self.orphaned()
                self.wire.write(data)

    def in_child(self) -> bool:
        """Whether this is a process that the cell itself forked."""
        return os.getpid() != self.process

    def orphaned(self) -> None:
        """In a copy whose original was killed by what the cell did: go on without it."""
        if not self.marked:
            os._exit(0)
        self.wire, self.marked = self.host, False

    def ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a host function and wait; several threads may wait at once."""
        packer = Packer()
        call = {"op": "call", "name": name, "args": packer.pack(list(args)), "kwargs": packer.pack(kwargs)}
        if self.known and self.known[0][0] == call:
            return outcome(self.known.popleft()[1])
        if self.probe is not None:
            self.end_probe(call)
        return outcome(self.answer(self.start(call)))

    def start(self, call: dict[str, Any]) -> int:
        if self.in_child():
            raise RuntimeError("only the process of the cell can ask the host, not one that it forked: use threads")
        with self.answered:
            number = next(self.numbers)
        self.send(dict(call, call=number))
        return number

    def answer(self, number: int) -> dict[str, Any]:
        with self.answered:
            while number not in self.answers:
                if self.reading:
                    self.answered.wait()
                else:
                    self.read()
            return self.answers.pop(number)

    def read(self) -> None:
        """Take one frame off the wire, for whichever thread it is meant."""
        self.reading = True
        self.answered.release()
        try:
            self.wire.wait()  # an interrupt may come here, but not within a frame
            with self.interrupts:
                message = json.loads(self.wire.read())
        except EOFError:
            self.orphaned()
            message = {}
        finally:
            self.answered.acquire()
            self.reading = False
            self.answered.notify_all()
        if message.get("op") in ("return", "raise") and message.get("id") == self.request:
            self.answers[message["call"]] = message

    # - tasks whose calls are asked together, without threads

    def together(self, tasks: Sequence[Callable[[], Any]]) -> list[tuple[bool, Any]]:
        """Run the tasks in order, with (True, value) or (False, exception) of each.

        What they ask of the host overlaps: throw-away copies of this process find out what each task would ask next,
        round by round, until none asks any more; then the tasks run here, with the answers at hand.
        """
        if len(tasks) < 2 or self.probe is not None or not hasattr(os, "fork"):
            return [attempted(task) for task in tasks]
        if len(tasks) > TOGETHER_MAX:
            return self.together(tasks[:TOGETHER_MAX]) + self.together(tasks[TOGETHER_MAX:])
        known: list[list[Any]] = [[] for _ in tasks]
        open_tasks = list(range(len(tasks)))
        while open_tasks:
            asked = [(index, self.next_call(tasks[index], known[index])) for index in open_tasks]
            started = [(index, call, self.start(call)) for index, call in asked if call is not None]
            for index, call, number in started:
                known[index].append((call, self.answer(number)))
            open_tasks = [index for index, _, _ in started]
        results = []
        for task, answers in zip(tasks, known):
            self.known = collections.deque(answers)
            results.append(attempted(task))
        self.known.clear()
        return results

    def next_call(self, task: Callable[[], Any], answers: list[Any]) -> dict[str, Any] | None:
        """What the task asks of the host after these answers; None if it ends, fails or dies without asking."""
        told, tell = os.pipe()
        copy = os.fork()
        if copy == 0:
            try:
                self.probe = tell
                self.known = collections.deque(answers)
                attempted(task)
            finally:
                os._exit(0)
        os.close(tell)
        try:
            with os.fdopen(told, "rb") as source:
                text = source.read()
        except BaseException:
            os.kill(copy, signal.SIGKILL)
            raise
        finally:
            os.waitpid(copy, 0)
        return json.loads(text) if text else None

    def end_probe(self, call: dict[str, Any] | None = None) -> None:
        """End a throw-away copy, at its next call or where it would change something outside of itself."""
        if self.probe is None:
            return
        if call is not None:
            Wire(-1, self.probe).write(to_json(call).encode("ascii"))
        os._exit(0)


session_calls: Calls | None = None  # those of the worker that this process is


def run_together(tasks: Sequence[Callable[[], Any]]) -> list[tuple[bool, Any]]:
    """What a stand-in for `concurrent.futures` is made of: see `Calls.together`."""
    return session_calls.together(tasks) if session_calls else [attempted(task) for task in tasks]


def attempted(task: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, task()
    except Exception as error:
        return False, error


def outcome(answer: dict[str, Any]) -> Any:
    if answer["op"] == "return":
        return unpack(answer["value"])
    raise made_exception(answer["type"], answer["message"], unpack(answer.get("data") or {}))


def host_function(calls: Calls, name: str, batched: bool) -> Any:
    """What a cell sees of a host function. A batch that one frame cannot carry goes in several."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not batched or not args or len(args[0]) < 2 or weight_of(args[0]) < VALUE_MAX // 2:
            return calls.ask(name, args, kwargs)
        middle = len(args[0]) // 2
        return [*call(args[0][:middle], *args[1:], **kwargs), *call(args[0][middle:], *args[1:], **kwargs)]

    call.__name__ = call.__qualname__ = name
    return call


def unbound(method: Any) -> Any:
    """A function that does not lead to the method's object, as `__self__`, `copy` and weak references would."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__name__, method.__doc__
    return call


def weight_of(texts: Any) -> int:
    return sum(len(text) for text in texts if isinstance(text, str))


# - a function that needs no host: cutting a long text


def text_chunks(text: Any, size: Any, overlap: Any = 0) -> list[Any]:
    """A text as pieces, a list of texts as groups of them, each of at most `size` characters."""
    for name, number, least in (("size", size, 1), ("overlap", overlap, 0)):
        if type(number) is not int:
            raise TypeError(f"{name} is a whole number of characters, not {preview(number)}: int(...)")
        if number < least:
            raise ValueError(f"{name} is {number}: at least {least}")
    if overlap > size // 2:  # or a long text would become a great many pieces that are nearly the same
        raise ValueError(f"overlap is {overlap}: at most half of the size, which is {size}")
    kind = type(text)
    if issubclass(kind, str):
        return cut_text(str.__str__(text), size, overlap)
    if issubclass(kind, (list, tuple)):
        base = list if issubclass(kind, list) else tuple
        return pack_texts(list(base.__iter__(text)), size, overlap)
    wrong = "None" if text is None else type_name(kind)
    if issubclass(kind, dict):
        instead = 'list(context.values()), or context["name"] for one of them'
    elif issubclass(kind, (bytes, bytearray)):
        instead = 'context.decode("utf-8", "replace")'
    else:
        instead = "str(x), or [str(item) for item in x]"
    raise TypeError(f"chunks takes a text or a list of texts, not {wrong}: {instead}")


def cut_text(text: str, size: int, overlap: int) -> list[str]:
    """The text in pieces that end with a line, or where a line is longer, with a space.

    Linear: two pieces in a row are new text of at least `size - overlap` characters, and each is searched once.
    """
    pieces = []
    start = end = 0
    while end < len(text):
        limit = start + size
        if limit >= len(text):
            end = len(text)
        else:
            end = text.rfind("\n", end, limit) + 1 or text.rfind(" ", end, limit) + 1 or limit
        pieces.append(text[start:end])
        start = overlap_start(text, max(start, end - overlap), end) if overlap else end
    return pieces


def overlap_start(text: str, low: int, end: int) -> int:
    """Where the piece after `end` begins, from `low` on: with a whole line, else with a whole word."""
    if low == 0:
        return 0
    return text.find("\n", low - 1, end - 1) + 1 or text.find(" ", low - 1, end - 1) + 1 or low


def pack_texts(texts: list[Any], size: int, overlap: int) -> list[list[str]]:
    """The texts in groups, each of which, joined by newlines, stays within the size; one that is longer is cut."""
    groups: list[list[str]] = []
    group: list[str] = []
    length = -1  # of the group, joined
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            wrong = type_name(type(text))
            raise TypeError(f"chunks takes a list of texts, but item {index} is {wrong}: [str(item) for item in x]")
        text = str.__str__(text)
        for part in [text] if len(text) <= size else cut_text(text, size, 0):
            if group and length + 1 + len(part) > size:
                groups.append(group)
                group, length = last_texts(group, min(overlap, size - 1 - len(part))) if overlap else ([], -1)
            group.append(part)
            length += 1 + len(part)
    return [*groups, group] if group else groups


def last_texts(group: list[str], room: int) -> tuple[list[str], int]:
    """The last texts of a group that fit into the room when joined, and their joined length."""
    first, length = len(group), -1
    while first and length + 1 + len(group[first - 1]) <= room:
        first -= 1
        length += 1 + len(group[first])
    return group[first:], length


def chunks_function(name: str, usual: int) -> Any:
    """`chunks` as a cell sees it, with the host's size for it."""

    def chunks(text: Any, size: Any = None, overlap: Any = 0) -> list[Any]:
        return text_chunks(text, usual if size is None else size, overlap)

    chunks.__name__ = chunks.__qualname__ = name
    chunks.__doc__ = f"Cut a text into pieces of at most `size` ({usual:,}) characters, or group a list of texts so."
    return chunks


IN_WORKER: dict[str, Callable[[str, int], Any]] = {"chunks": chunks_function}


def check_in_worker(spec: Any) -> dict[str, Any]:
    """What a host function's `in_worker` says: which of the worker's own functions does the work, and its size."""
    known = type(spec) is dict and set(spec) == {"name", "size"} and spec["name"] in list(IN_WORKER)
    if not known or type(spec["size"]) is not int or not 1 <= spec["size"] < 1 << 53:
        raise ValueError(f"in_worker is {preview(spec)}: {{'name': 'chunks', 'size': 60000}}")
    return dict(spec)


class Worker:
    """Holds the variables, and does what the host asks: each request in a forked copy where that can be had.

    The copy becomes the holder when the request succeeds; when it dies, the variables are those of before. What the
    copy and the host say to each other passes through the waiting original, so that no frame is ever left half read.
    """

    def __init__(self, wire: Wire, language: Any, setup: dict[str, Any]):
        self.host = wire
        self.language = language
        self.output_limit: int = setup.get("output_limit", 10_000)
        self.fork_limit: int = setup.get("fork_limit", 300 << 20) if hasattr(os, "fork") else 0
        self.own_init: bool = setup.get("own_init", False)
        self.can_kill: bool = setup.get("can_kill", True)
        self.contained: bool = setup.get("contained", False)
        self.grow: Callable[[int], None] = setup.get("grow") or (lambda weight: None)
        self.blob: int = setup.get("blob", -1)
        self.weights: dict[str, int] = {}  # of what the host has set: large, but rarely touched, so cheap to fork
        self.at_start = memory_in_use()
        self.address_space = address_space(setup.get("memory", 0))
        self.kills = memory_kills()
        self.spill = Spill()
        global session_calls
        self.calls = session_calls = Calls(wire)
        self.forked = self.interrupted = False
        self.result: dict[str, Any] = {}
        self.out = Output(None, None)
        self.final: Any = UNSET
        self.last: Any = None
        self.outputs: dict[int, str] = {}
        self.sources: dict[str, str] = {}
        self.functions: dict[str, Any] = {}
        self.specs: dict[str, Any] = {}  # what the host said of each of them
        self.own = {**{m.__name__: unbound(m) for m in (self.FINAL, self.FINAL_VAR, self.SHOW_VARS)}, "_out": {}}
        random.seed(0)
        sys.stdout = sys.stderr = Redirect(self)
        self.variables: dict[str, Any] = language.namespace(dict(self.own), sys.stdout, self.calls)
        self.hidden = set(self.variables)

    # - requests

    def start(self, layers: dict[str, bool | str]) -> NoReturn:
        self.host.write(encode_frame({"op": "hello", "id": 0, "layers": layers, "python": sys.version.split()[0]}))
        self.serve()

    def serve(self) -> NoReturn:
        signal.signal(signal.SIGINT, self.calls.interrupts.handler)
        if self.fork_limit:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        operations = {"execute": self.execute, "set": self.set, "get": self.get, "names": self.names}
        lasting = ("execute", "set")
        while True:
            try:
                message = json.loads(self.host.read())
            except EOFError:
                os._exit(0)
            operation = operations.get(message.get("op"))
            if operation is None:
                continue  # an answer that came after its cell had ended
            self.calls.request = message["id"]
            role = self.fork() if self.can_fork() else "alone"
            self.forked = role == "copy"
            if role == "copy":
                self.answer(operation, message)
                self.commit(message["op"] in lasting)
            elif role == "alone":
                with may_be_killed():
                    self.answer(operation, message)
                self.calls.send(self.result)

    def answer(self, operation: Callable[[dict[str, Any]], dict[str, Any]], message: dict[str, Any]) -> None:
        try:
            self.result = operation(message)
            encode_frame(self.result)
        except (TypeError, ValueError, KeyError, RecursionError, MemoryError) as error:
            self.result = {"op": "failed", "type": type_name(type(error)), "message": text_of(error)[:2000]}

    def get(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["name"] not in self.variables:
            raise KeyError(message["name"])
        return {"op": "done", "value": Packer().pack(self.variables[message["name"]])}

    def names(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"op": "done", "value": {name[:200]: describe(value) for name, value in self.shown()[:NAMES_MAX]}}

    def shown(self) -> list[tuple[str, Any]]:
        """The cells' own variables."""
        pairs = [(name, value) for name, value in self.variables.items() if type(name) is str]
        ours = self.functions
        kept = [(n, v) for n, v in pairs if n not in self.hidden and n[:2] != "__" and n[:1] != "~"]
        return [(n, v) for n, v in kept if v is not ours.get(n, UNSET)]

    def set(self, message: dict[str, Any]) -> dict[str, Any]:
        name, weight = message["name"], message["weight"]
        self.grow(max(0, weight - self.weights.get(name, 0)))
        self.weights[name] = weight
        self.variables[name] = self.read_blob(message)
        return {"op": "done"}

    def read_blob(self, message: dict[str, Any]) -> Any:
        """A value handed over by reference: UTF-8 text in one piece, and where its items end."""
        size = message["size"]
        if size is None:
            raw = bytearray()
            while part := self.calls.wire.read():
                raw += part
            return from_blob(memoryview(raw), message)
        if not size:
            return from_blob(memoryview(b""), message)
        with mmap.mmap(self.blob, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return from_blob(view, message)

    # - a cell

    @contextlib.contextmanager
    def within(self, memory: int | None) -> Iterator[None]:
        """The cell may take so much beyond what the variables hold; afterwards the session's own limit holds again."""
        if memory is None or not self.address_space:
            yield
            return
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        wanted = self.address_space + max(0, memory_in_use() - self.at_start) + memory
        if before[1] != resource.RLIM_INFINITY:
            wanted = min(wanted, before[1])
        resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    def execute(self, message: dict[str, Any]) -> dict[str, Any]:
        number, began = message["cell"], time.perf_counter()
        streamed = message["stream"] or not self.forked
        self.out = Output(self.emit if streamed else None, self.spill if self.forked else None)
        self.interrupted = False
        self.bind(message["functions"])
        with self.within(message.get("memory")):
            ended = self.run(message["code"], f"<cell {number}>")
        if self.calls.in_child():
            os._exit(0 if ended["status"] == "ok" else 1)
        text = self.out.text()
        self.keep(number, text)
        where = f"; the whole is in _out[{number}]"
        shown = {"stdout": cut(text, self.output_limit, where), "chars": self.out.total}
        return {"op": "result", "ms": (time.perf_counter() - began) * 1000, **shown, **ended}

    def run(self, code: str, filename: str) -> dict[str, Any]:
        """The part that an interrupt may end anywhere: the cell, and all that may call its objects' methods."""
        interrupts = self.calls.interrupts
        interrupts.pending, interrupts.armed = False, True
        try:
            self.final = UNSET
            try:
                ended = {"status": "ok", "value": self.evaluate(code, filename), **self.final_value()}
            except BaseException as problem:
                ended = self.explain(problem)
            ended["images"] = self.images()
            self.final = UNSET  # here, where what its end sets off can be interrupted
            interrupts.armed = False
        except BaseException as problem:  # a second interrupt, or one that came while an error was being shown
            interrupts.armed = False
            ended = {"status": "error", "error": type_name(type(problem))}
        return ended

    def evaluate(self, code: str, filename: str) -> str | None:
        self.sources[filename] = code
        body, last = self.language.compile(code, filename)
        exec(body, self.variables)
        self.last = value = None if last is None else eval(last, self.variables)
        return None if value is None else long_repr(value, self.output_limit)

    def explain(self, problem: BaseException) -> dict[str, Any]:
        if type(problem) is SystemExit and problem.code in (None, 0):
            return {"status": "ok", **self.final_value()}
        try:
            shown = self.language.traceback(problem, self.sources)
        except Exception as failure:
            shown = f"{type_name(type(problem))} (its traceback cannot be shown: {type_name(type(failure))})"
        self.interrupted = isinstance(problem, KeyboardInterrupt)
        refused = type_name(type(problem)) == "PolicyError"
        status = "memory" if isinstance(problem, MemoryError) else "refused" if refused else "error"
        return {"status": status, "error": cut(shown, self.output_limit, "")}

    def keep(self, number: int, text: str) -> None:
        self.outputs[number] = text
        spent = sum(map(len, self.outputs.values()))
        for old in sorted(self.outputs)[:-1]:
            if spent <= OUT_TOTAL:
                break
            spent -= len(self.outputs[old])
            self.outputs[old] = "[dropped: later cells printed more than is kept]"
        self.own["_out"] = self.variables["_out"] = dict(self.outputs)  # what a cell does to it is its own affair

    def final_value(self) -> dict[str, Any]:
        if self.final is UNSET:
            return {}
        try:
            return {"final": Packer().pack(self.final)}
        except (TypeError, ValueError, RecursionError):
            long_number = isinstance(self.final, int)
            text = hex(self.final) if long_number else str.__str__(str(self.final))
            return {"final": cut(text, FRAME_MAX // 16, "")}

    def images(self) -> list[dict[str, str]]:
        """The last expression's picture, if it has one, and figures that the cell left open, drawn and closed."""
        pictures = []
        last, self.last = self.last, None
        if draw := getattr(type(last), "_repr_png_", None):  # what notebooks ask for: PIL and others
            pictures.append(draw(last))
        pyplot: Any = sys.modules.get("matplotlib.pyplot")
        for number in list(pyplot.get_fignums())[:10] if pyplot else []:
            buffer = io.BytesIO()
            pyplot.figure(number).savefig(buffer, format="png")
            pictures.append(buffer.getvalue())
        if pyplot:
            pyplot.close("all")
        small = [picture for picture in pictures if type(picture) is bytes and len(picture) < FRAME_MAX // 16]
        return [{"media_type": "image/png", "data": binascii.b2a_base64(p, newline=False).decode()} for p in small]

    def FINAL(self, value: Any) -> None:
        """Answer with this value: the session ends with it when the cell ends well."""
        require_text(value)
        self.final = value

    def FINAL_VAR(self, name: str) -> None:
        """Answer with the variable of this name."""
        if type(name) is not str:
            raise TypeError("FINAL_VAR takes the name of a variable as a string; FINAL(value) takes the value")
        if name not in self.variables or name == "__builtins__":
            known = ", ".join(sorted(name for name, _ in self.shown())[:30]) or "none"
            raise NameError(f"there is no variable {name[:100]!r}; there are: {known}")
        require_text(self.variables[name])
        self.final = self.variables[name]

    def SHOW_VARS(self) -> dict[str, str]:
        """The variables, with type, length and a glimpse of each."""
        lines = {}
        for name, value in self.shown()[:NAMES_MAX]:
            kind, size, glimpse = describe(value)
            lines[name] = kind + ("" if size is None else f"[{size}]") + " " + glimpse
        return lines

    def bind(self, functions: dict[str, Any]) -> None:
        """Put the host's functions into the namespace, and take away those of an earlier cell.

        Each comes with whether it takes batches, or with what `check_in_worker` lets through.
        """
        for name, function in self.functions.items():
            if name not in functions and self.variables.get(name) is function:
                del self.variables[name]
        old, known = self.functions, self.specs
        self.functions = {n: old[n] if known.get(n) == spec else self.made(n, spec) for n, spec in functions.items()}
        self.specs = functions
        self.variables.update(self.functions)
        self.variables.update(self.own)

    def made(self, name: str, spec: Any) -> Any:
        if type(spec) is bool:
            return host_function(self.calls, name, spec)
        return IN_WORKER[check_in_worker(spec)["name"]](name, spec["size"])

    def emit(self, text: str) -> None:
        if self.calls.probe is None and not self.calls.in_child():
            for start in range(0, len(text), 1 << 20):
                self.calls.send({"op": "output", "text": text[start : start + (1 << 20)]})

    # - the fork before a request

    def can_fork(self) -> bool:
        """Not beyond a size, and not while threads of earlier cells run: a copy would be without them."""
        light = memory_in_use() - sum(self.weights.values()) < self.fork_limit
        return light and threading.active_count() == 1

    def fork(self) -> str:
        """ "copy" in the process that is to do the request, "original" in the other once the copy has died or is done,
        "alone" if there can be no copy."""
        self.spill.clear()
        try:
            reserve_descriptors(0)
            to_copy, from_copy = os.pipe(), os.pipe()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            chance = random.getstate()
            copy = self.new_process()
        except OSError:
            signal.signal(signal.SIGINT, self.calls.interrupts.handler)
            return "alone"
        if copy == 0:
            os.close(to_copy[1])
            os.close(from_copy[0])
            random.setstate(chance)  # a fork seeds it anew, and replays need it to go on
            reserve_descriptors(SPARE_DESCRIPTORS)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN if self.can_kill else signal.SIG_DFL)
            signal.signal(signal.SIGINT, self.calls.interrupts.handler)
            self.calls.begin(Wire(to_copy[0], from_copy[1]), marked=True)
            if self.contained:
                os.setpgid(0, 0)
                set_expendable(1000)
            return "copy"
        os.close(to_copy[0])
        os.close(from_copy[1])
        died = Relay(self.host, Wire(from_copy[0], to_copy[1]), copy, self.sweep).run()
        signal.signal(signal.SIGINT, self.calls.interrupts.handler)
        if died is not None:
            self.sweep()
            self.tell_death(died)
        return "original"

    def new_process(self) -> int:
        try:
            return os.fork()
        except BlockingIOError:  # earlier cells left as many processes as there may be
            self.sweep()
            return os.fork()

    def commit(self, lasting: bool) -> None:
        """Hand the result to the original, and take its place when it has gone (or go, if nothing is to last)."""
        wire = self.calls.wire
        self.calls.send(self.result, b"c" if lasting else b"r")
        if not lasting:
            os._exit(0)
        last = b""
        while part := os.read(wire.reader, 1 << 16):
            last = (last + part)[-len(PASSED_ON) :]
        if self.calls.marked and last != PASSED_ON:  # the original died first
            self.calls.orphaned()
            self.calls.send(self.result)
        os.close(wire.reader)
        os.close(wire.writer)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self.calls.begin(self.host, marked=False)
        if self.contained:
            set_expendable(0)
        if self.interrupted or not self.contained:  # in a container, what a cell started may go on
            self.sweep()

    def sweep(self) -> None:
        """Kill what a cell left running. Only ever where this process's init is the sandbox's own."""
        if self.contained or (self.own_init and os.getppid() == 1):
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)

    def tell_death(self, status: int) -> None:
        how = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit": os.WEXITSTATUS(status)}
        shown = {"stdout": cut(self.spill.text(), self.output_limit, ""), "chars": self.spill.total()}
        kills, self.kills = self.kills, memory_kills()
        memory = None if kills is None else self.kills != kills
        self.host.write(encode_frame({"op": "died", "id": self.calls.request, "memory": memory, **shown, **how}))


def set_expendable(score: int) -> None:
    """How gladly the kernel kills this process when a container's memory runs out: the copy before its original."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(score))


def reserve_descriptors(spare: int) -> None:
    """Cells get fewer descriptors than there are, so that one that takes them all leaves enough for the next fork."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - spare, hard))


@contextlib.contextmanager
def may_be_killed() -> Iterator[None]:
    """Without a copy to kill, the signal for that ends this process, and the variables with it."""
    if not hasattr(signal, "SIGUSR1"):
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


class Redirect(io.TextIOBase):
    """`sys.stdout` of the cells: always the output of the cell that runs."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, worker: Worker):
        self.worker = worker

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return self.worker.out.write(text) if self.worker.calls.probe is None else len(text)

    def close(self) -> None:
        """A cell that closes its output would lose that of the next."""

    def flush(self) -> None:
        self.worker.out.flush()


class Relay:
    """Passes whole frames between the host and the copy that works, and notices how the copy ends."""

    def __init__(self, host: Wire, copy: Wire, pid: int, sweep: Callable[[], None]):
        self.host, self.copy, self.pid, self.sweep = host, copy, pid, sweep
        self.settled = self.killed = False
        self.waiting: collections.deque[memoryview] = collections.deque()
        os.set_blocking(copy.writer, False)  # a copy that does not read must not keep this process from listening

    def run(self) -> int | None:
        """The copy's wait status if it died; None if it answered a request that leaves nothing behind.

        When the copy takes over, this process ends here.
        """
        signal.signal(signal.SIGUSR1, self.kill)
        try:
            return self.relay()
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            os.close(self.copy.reader)
            os.close(self.copy.writer)

    def relay(self) -> int | None:
        poller = select.poll()
        poller.register(self.copy.reader, select.POLLIN)
        while True:
            poller.register(self.host.reader, select.POLLIN if len(self.waiting) < RELAYED_MAX else 0)
            poller.register(self.copy.writer, select.POLLOUT if self.waiting else 0)
            ready = dict(poller.poll(200))
            if self.copy.reader in ready:
                try:
                    mark, frame = self.copy.exactly(1), self.copy.read()
                except EOFError:
                    return self.reap()
                if self.from_copy(mark, frame):
                    return None
            if self.host.reader in ready:
                self.from_host()
            if self.waiting:
                self.to_copy()
            if not ready:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    return status

    def from_copy(self, mark: bytes, frame: bytes) -> bool:
        """Pass a frame on. True: it was the last, and the copy leaves nothing."""
        self.settled = mark == b"c"
        if self.settled and self.killed:
            self.settled = False
            return False
        self.host.write(struct.pack(">I", len(frame)) + frame)
        if self.settled:
            with contextlib.suppress(OSError):
                os.write(self.copy.writer, PASSED_ON)
            os._exit(0)
        if mark == b"r":
            self.reap()
        return mark == b"r"

    def from_host(self) -> None:
        try:
            frame = self.host.read()
        except EOFError:  # the host has gone
            self.kill()
            os._exit(0)
        self.waiting.append(memoryview(struct.pack(">I", len(frame)) + frame))

    def to_copy(self) -> None:
        try:
            sent = os.write(self.copy.writer, self.waiting[0])
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.waiting.clear()
            return
        self.waiting[0] = self.waiting[0][sent:]
        if not self.waiting[0]:
            self.waiting.popleft()

    def kill(self, *_: Any) -> None:
        """Kill the copy, unless it has taken over. (Where kill is forbidden, its own handling of SIGUSR1 ends it.)"""
        if not self.settled:
            self.killed = True
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
            self.sweep()

    def reap(self, patience: float = 0.2) -> int:
        """The wait status of a copy that has closed its end; one that goes on without it is killed: status 255."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.001)
        self.kill()
        os.waitpid(self.pid, 0)
        return 255 << 8


def address_space(memory: int) -> int:
    """Bytes of address space that a worker takes by itself, before any variable; 0 where that cannot be told."""
    try:
        import resource
    except ImportError:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        return max(0, soft - memory)  # the limit was made of both
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def memory_in_use() -> int:
    """Bytes this process holds, as well as can be told without /proc, which the confinement hides."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return heap_size()


def memory_kills() -> str | None:
    """How often the kernel killed for want of memory, where a container shows that."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError), open(path) as file:
            return next((line for line in file if line.startswith("oom_kill ")), None)
    return None


def heap_size() -> int:
    small = sys.getallocatedblocks() * 96  # a middling size for objects of the small-object allocator
    return small + (malloc_size() if malloc_size else 0)


malloc_size: Callable[[], int] | None = None  # set before confinement, where the C library can tell


def to_blob(value: Any) -> tuple[dict[str, Any], Iterator[bytes]]:
    """A header and pieces of UTF-8: text, lists of text and dicts of text as they are, the rest as JSON.

    The header's weight is what the worker needs at most: the value, and the pieces that it is made from.
    """
    if type(value) is str:
        return {"kind": "str", "weight": text_weight(value)}, encoded(value)
    if type(value) is list and set(map(type, value)) <= {str}:
        return joined("list", value)
    if type(value) is dict and set(map(type, value)) | set(map(type, value.values())) <= {str}:
        return joined("dict", list(itertools.chain.from_iterable(value.items())))
    text = to_json(Packer(1 << 40).pack(value))
    return {"kind": "json", "weight": 8 * len(text)}, encoded(text)


def joined(kind: str, texts: list[str]) -> tuple[dict[str, Any], Iterator[bytes]]:
    text = "".join(texts)
    header = {
        "kind": kind,
        "count": len(texts),
        "weight": 2 * text_weight(text) + 80 * len(texts),
        "ascii": text.isascii(),
    }
    sizes = map(len, texts if text.isascii() else (item.encode("utf-8", "surrogatepass") for item in texts))
    return header, filter(None, itertools.chain([array.array("I", sizes).tobytes()], encoded(text)))


def encoded(text: str) -> Iterator[bytes]:
    """In pieces, since fresh memory for a hundred megabytes costs more than filling it."""
    for start in range(0, len(text), 1 << 20):
        yield text[start : start + (1 << 20)].encode("utf-8", "surrogatepass")


def text_weight(text: str) -> int:
    """A text's characters at their width, and the UTF-8 they are decoded from."""
    return 2 * len(text) if text.isascii() else sys.getsizeof(text) + 4 * len(text)


def from_blob(view: memoryview, header: dict[str, Any]) -> Any:
    kind = header["kind"]
    if kind == "str":
        return str(view, "utf-8", "surrogatepass")
    if kind == "json":
        return unpack(json.loads(str(view, "ascii")))
    sizes = array.array("I")
    body = 4 * header["count"]
    sizes.frombytes(view[:body])
    ends = list(itertools.accumulate(sizes))
    spans = zip([0, *ends], ends)
    if header["ascii"]:
        text = str(view[body:], "ascii")
        texts = [text[start:end] for start, end in spans]
    else:
        texts = [str(view[body + start : body + end], "utf-8", "surrogatepass") for start, end in spans]
    return texts if kind == "list" else dict(zip(texts[::2], texts[1::2]))


def supervise(group: int, watched: Sequence[int], idle_limit: float = 0) -> NoReturn:
    """Reap what the worker leaves, end with it, and take it along when whoever holds the other end of `watched` dies.

    With `idle_limit` this is a container's first process: SIGINT and SIGUSR1 go to all that runs there, and after so
    many seconds without a word from the host it ends, since a daemon that died may have left it to itself.
    """
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    os.set_blocking(wakeup_read, False)
    for handled in (signal.SIGCHLD, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        signal.signal(handled, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    poller = select.poll()
    poller.register(wakeup_read, select.POLLIN)
    for descriptor in watched:
        poller.register(descriptor, 0)
    while reap_children():
        for descriptor, _ in poller.poll(1000):
            if descriptor != wakeup_read:
                end_group(group)
            for number in os.read(wakeup_read, 64):
                if idle_limit:
                    signal_container(number)
                elif number == signal.SIGTERM:
                    end_group(group)
        if idle_limit and time.time() - os.fstat(watched[0]).st_mtime > idle_limit:  # when the pipe was last written to
            end_group(group)
    os._exit(0)


def signal_container(number: int) -> None:
    """Pass a signal on to all processes of this container, wherever a cell put itself and even if it is stopped."""
    if number in (signal.SIGINT, signal.SIGUSR1) and os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGCONT)
            os.kill(-1, number)


def reap_children() -> bool:
    """False when there are no children any more."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def end_group(group: int) -> NoReturn:
    """The worker's processes; where this is the first process of their PID namespace, they end with it."""
    if os.getpid() != 1:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os._exit(0)


def take_streams() -> Wire:
    """The standard streams as the worker's own; whatever else writes to them writes to nowhere."""
    wire = Wire(os.dup(0), os.dup(1))
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, mode), descriptor)
    return wire


def write_to(scratch: str, folder: str) -> None:
    """Where the working directory can only be read, `open` by a relative name writes to the scratch folder instead.

    What was written there is then read, as in the local sandbox.
    """
    plain_open = io.open

    def open_here(file: Any, mode: str = "r", *options: Any, **named: Any) -> Any:
        if isinstance(file, (str, os.PathLike)) and not os.path.isabs(file) and within(os.getcwd(), folder):
            own = os.path.join(scratch, file)
            if set(mode) & set("wax+") or os.path.exists(own):
                file = own
        return plain_open(file, mode, *options, **named)

    vars(builtins_module)["open"] = vars(io)["open"] = open_here


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def container_main(setup: dict[str, Any]) -> NoReturn:
    """The first process of a container: it supervises the worker, which talks over what were the standard streams."""
    import resource

    wire = take_streams()
    setup["own_init"] = setup["contained"] = os.getpid() == 1  # not getppid() below: whoever loses its parent gets 1
    worker = os.fork()
    if worker:
        os.close(wire.writer)
        supervise(worker, [wire.reader], setup["idle_limit"])
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (setup["most"], setup["most"]))
    write_to("/tmp", "/workspace")
    Worker(wire, PlainLanguage(), setup).start({})


# --- end of the worker ------------------------------------------------------------------------------------------------

# --- the policy: what Python a cell may use (RestrictedPython) --------------------------------------------------------
#
# Three ideas carry it. Names are judged when a cell is compiled, so that most code then runs natively: an attribute
# without underscore is read and written as in plain Python. What makes that safe is that nothing reachable under such a
# name is dangerous: modules are seen through views, classes that are not the cell's own are frozen, and the library
# modules that cells can call have guarded `getattr`, `open`, `eval` and so on in their own globals. What can only be
# judged at run time (`_private` names, `format`, `__dict__` ...) goes through guards, whose names no cell can write.

Rule = str  # how an attribute name is treated: "plain" | "watched" | "private" | "refused"

IMMUTABLE_TYPE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: attributes of such a class can be neither set nor deleted


def words(text: str) -> list[str]:
    return text.split()


OPERATORS = "add sub mul matmul truediv floordiv mod pow lshift rshift and or xor"
DEFINABLE = frozenset(
    f"__{name}__"
    for name in (
        "init new del repr str bytes format lt le eq ne gt ge hash bool getattr getattribute setattr delattr dir"
        " get set delete set_name slots init_subclass class_getitem call len length_hint getitem setitem delitem"
        " missing iter next reversed contains neg pos abs invert complex int float index round trunc floor ceil"
        " enter exit copy deepcopy getstate setstate match_args instancecheck subclasscheck subclasshook prepare"
        " mro_entries divmod rdivmod fspath doc post_init sizeof module qualname hash replace array array_ufunc"
        " array_function"
        f" {OPERATORS} " + " ".join(f"r{name} i{name}" for name in OPERATORS.split())
    ).split()
)
READABLE = DEFINABLE - {"__getstate__", "__setstate__", "__match_args__"} | frozenset(
    words(
        "__name__ __class__ __base__ __bases__ __mro__ __cause__ __context__ __suppress_context__ __notes__"
        " __traceback__ __wrapped__ __members__ __version__ __all__ __origin__ __args__ __parameters__"
        " __supertype__ __orig_bases__ __dataclass_fields__ __dataclass_params__ __abstractmethods__"
        " __required_keys__ __optional_keys__ __total__ __type_params__ __value__ __bound__ __constraints__"
        " __match_args__ __isabstractmethod__ __forward_arg__"
    )
)
WATCHED = frozenset(
    words(
        "format format_map obj parser __dict__ __annotations__ __getattribute__ __getattr__ __setattr__ __delattr__"
        " __subclasses__"
    )
)
WRITABLE = DEFINABLE - {"__match_args__", "__slots__"} | frozenset(
    words("__name__ __dict__ __cause__ __context__ __suppress_context__ __notes__ __traceback__ __wrapped__")
)
LIBRARY_WRITABLE = WRITABLE | {"__annotations__", "__type_params__"}  # by functools.wraps and its like
SUNDER = frozenset(  # public in all but the name: namedtuple and Enum
    words(
        "_ _fields _asdict _replace _make _field_defaults _value_ _name_ _missing_ _ignore_ _order_ _member_map_"
        " _member_names_ _value2member_map_ _generate_next_value_"
    )
)
INSPECTION = frozenset(
    [f"{kind}_{what}" for kind in ("gi", "cr", "ag") for what in words("frame code yieldfrom await origin")]
    + [f"f_{what}" for what in words("back builtins code generator globals locals trace lineno lasti")]
    + ["tb_frame", "tb_next", "co_code", "co_consts", "func_globals", "func_code"]
)
LIBRARY_READABLE = frozenset(
    words("__partialmethod__ __text_signature__ __signature__ __type_params__ __file__ __package__ __path__")
)
PERILOUS = INSPECTION | frozenset(  # what library code may not be made to fetch
    f"__{name}__"
    for name in words("globals code closure builtins subclasses self func loader spec reduce reduce_ex getstate")
)
GLOBAL_DUNDERS = frozenset(words("__all__ __version__ __author__ __doc__"))
READABLE_NAMES = GLOBAL_DUNDERS | DEFINABLE | {"__name__", "__class__", "__debug__", "__import__", "__qualname__"}
ASYNC_REFUSED = "async code does not run here: write plain functions; llm_query_batched asks in parallel"
GUARD_NAME = re.compile(r"_[a-z]\w*_|_print|_tmp\d+|builtins|breakpoint")  # RestrictedPython's own, and what shadows


class PolicyError(SyntaxError):
    """Code that the policy refuses; the message says what it is and what to write instead."""


def rule_of(name: str) -> Rule:
    """How an attribute of this name is treated when it is read."""
    if name in WATCHED:
        return "watched"
    if not name.startswith("_"):
        return "refused" if name in INSPECTION else "plain"
    if name in SUNDER or name in READABLE:
        return "plain"
    return "refused" if name.startswith("__") and name.endswith("__") else "private"


def store_rule_of(name: str) -> Rule:
    """The same when it is set or deleted."""
    if name.startswith("__") and name.endswith("__"):
        return "plain" if name in WRITABLE else "refused"
    return rule_of(name) if name.startswith("_") or name in INSPECTION else "plain"


def refusal_of(name: str) -> str:
    if name in ("__globals__", "__code__", "__closure__", "__builtins__") or name in INSPECTION:
        return f"{name!r} is not accessible here: code and frames stay out of sight of the code that runs in them"
    if name.startswith("__"):
        return f"{name!r} is not accessible here: use the operator or built-in function that stands for it"
    return f"{name!r} is private to its owner and not accessible here"


# - compiling


def policy_compile(source: str, filename: str) -> tuple[CodeType, CodeType | None]:
    """The statements, and the last expression by itself if the source ends in one, as code that keeps the policy.

    SyntaxError for what is not Python, PolicyError for what is refused.
    """
    if state.stream is not None:
        sys.stdout = sys.stderr = state.stream  # whatever an earlier cell has put there
    state.sources[filename] = source
    tree = policy_tree(source, filename)
    last = tree.body[-1] if tree.body else None
    tail = None
    if isinstance(last, ast.Expr):
        tree.body.pop()
        tail = compiled(ast.Expression(last.value), filename, "eval")
    return compiled(tree, filename, "exec"), tail


def policy_tree(source: str, filename: str) -> ast.Module:
    """The parsed source, checked and with the guards in it."""
    try:
        with warnings_off():
            tree = ast.parse(source.removeprefix("\ufeff"), filename)
        checked: ast.Module = transformer_class()().visit(tree)
        return ast.fix_missing_locations(checked)
    except PolicyError as refusal:
        lines = source.splitlines()
        refusal.filename = filename
        refusal.text = lines[refusal.lineno - 1] if refusal.lineno and refusal.lineno <= len(lines) else ""
        raise
    except (RecursionError, MemoryError):
        raise PolicyError("the code is nested too deeply: split it into several statements") from None
    except (ValueError, UnicodeError) as error:
        raise SyntaxError(f"this is not source code: {error}") from None


def compiled(tree: Any, filename: str, mode: str) -> CodeType:
    try:
        with warnings_off():
            code: CodeType = compile(tree, filename, mode, dont_inherit=True)
    except (RecursionError, MemoryError):
        raise PolicyError("the code is nested too deeply: split it into several statements") from None
    return code


@contextlib.contextmanager
def warnings_off() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def transformer_class() -> type[Any]:
    from RestrictedPython.transformer import RestrictingNodeTransformer

    return type("Transformer", (Transforms, RestrictingNodeTransformer), {})


class Scope:
    """A function, class, comprehension or module while it is transformed."""

    def __init__(self, kind: str, name: str = "", parameters: frozenset[str] = frozenset()):
        self.kind, self.name, self.parameters = kind, name, parameters
        self.temporary: list[str] = []  # variables that the transformation has added


class Transforms:
    """What differs from RestrictedPython, which refuses whatever syntax neither of the two knows."""

    node_contents_visit: Callable[[Any], Any]

    def __init__(self) -> None:
        super().__init__()
        self.scopes = [Scope("module")]
        self.numbers = itertools.count()
        self.looks: list[Any] = []  # statements to run before the match that is being transformed

    def refuse(self, node: Any, message: str) -> NoReturn:
        error = PolicyError(message)
        error.lineno = getattr(node, "lineno", None)
        error.offset = getattr(node, "col_offset", -1) + 1
        raise error

    def error(self, node: Any, info: str) -> None:
        self.refuse(node, info)

    def not_allowed(self, node: Any) -> None:
        kind = type(node).__name__
        if kind.startswith("Async") or kind == "Await":
            self.refuse(node, ASYNC_REFUSED)
        if kind == "TryStar":
            self.refuse(node, "except* is not available here: catch the group with except and look at .exceptions")
        self.refuse(node, f"{kind} is not available here")

    def scoped(self, node: Any, scope: Scope) -> Any:
        self.scopes.append(scope)
        try:
            return self.node_contents_visit(node)
        finally:
            self.scopes.pop()

    # names

    def check_name(self, node: Any, name: str | None, allow_magic_methods: bool = False) -> None:
        if name is None or (not name.startswith("_") and name not in ("builtins", "breakpoint")):
            return
        if GUARD_NAME.fullmatch(name) and name not in SUNDER:
            self.refuse(node, f"the name {name!r} is reserved: choose another")
        if not (name.startswith("__") and name.endswith("__") and len(name) > 4):
            return
        in_class = self.scopes[-1].kind == "class" and name in DEFINABLE
        if name not in GLOBAL_DUNDERS and not in_class and not (allow_magic_methods and name in DEFINABLE):
            self.refuse(node, f"{name!r} cannot be defined here")

    def visit_Name(self, node: ast.Name) -> Any:
        if not isinstance(node.ctx, ast.Load):
            self.check_name(node, node.id)
        elif node.id == "__import__":
            return ast.copy_location(guard("import"), node)
        elif node.id not in READABLE_NAMES and node.id not in ("builtins", "breakpoint"):
            if node.id.startswith("__") and node.id.endswith("__") and len(node.id) > 4:
                self.refuse(node, refusal_of(node.id))
            self.check_name(node, node.id)
        return node

    def visit_Global(self, node: Any) -> Any:
        for name in node.names:
            self.check_name(node, name)
        return node

    visit_Nonlocal = visit_Global

    def visit_alias(self, node: Any) -> Any:
        return node

    def visit_Import(self, node: Any) -> Any:
        for alias in node.names:
            name = alias.asname or alias.name
            if name != "*":
                self.check_name(node, name)
            if alias.name.startswith("_") and alias.name != "__future__":
                self.refuse(node, f"{alias.name!r} is private and cannot be imported")
        return node

    visit_ImportFrom = visit_Import

    # attributes

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        loads = isinstance(node.ctx, ast.Load)
        name = node.attr = self.mangled(node.attr)
        rule = rule_of(name) if loads else store_rule_of(name)
        if rule == "refused":
            self.refuse(node, refusal_of(name))
        base = node.value
        node = self.node_contents_visit(node)
        if rule == "private":
            node.value = ast.copy_location(self.owned(base, node.value, name), node)
        elif rule == "watched" and loads:
            return ast.copy_location(ast.Call(guard("get"), [node.value, ast.Constant(name)], []), node)
        return node

    def owned(self, base: Any, visited: Any, name: str) -> Any:
        """The object, after a look at whether its `_name` is the cell's own; for a parameter the look is inline."""
        look = ast.Call(guard("own"), [visited, ast.Constant(name)], [])
        if not (isinstance(base, ast.Name) and base.id in self.scopes[-1].parameters):
            return look
        kind = ast.Call(guard("type"), [visited], [])
        return ast.IfExp(ast.Compare(ast.Call(guard("pure"), [kind], []), [ast.Is()], [kind]), visited, look)

    def mangled(self, name: str) -> str:
        """The name as the compiler would mangle it within a class."""
        classes = [scope.name for scope in self.scopes if scope.kind == "class"]
        if not classes or not name.startswith("__") or name.endswith("__") or not classes[-1].strip("_"):
            return name
        return f"_{classes[-1].lstrip('_')}{name}"

    def visit_Call(self, node: ast.Call) -> Any:
        if not is_plain_format(node.func):
            return self.node_contents_visit(node)
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        return node

    visit: Callable[[Any], Any]

    # statements that RestrictedPython rewrites and that run natively here

    def native(self, node: Any) -> Any:
        return self.node_contents_visit(node)

    visit_Subscript = visit_Assign = visit_AugAssign = visit_For = visit_With = visit_Module = visit_TypeAlias = native
    visit_MatchValue = visit_MatchSingleton = visit_MatchSequence = visit_MatchOr = visit_match_case = native

    def visit_comprehension(self, node: Any) -> Any:
        return self.refuse(node.target, ASYNC_REFUSED) if node.is_async else self.node_contents_visit(node)

    def in_comprehension(self, node: Any) -> Any:
        return self.scoped(node, Scope("comprehension"))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = in_comprehension

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        """In a class the annotation counts (dataclasses); elsewhere it would only be stored."""
        if self.scopes[-1].kind == "class":
            return self.node_contents_visit(node)
        target = self.visit(node.target)
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([target], self.visit(node.value)), node)

    def visit_TypeVar(self, node: Any) -> Any:
        self.check_name(node, node.name)
        return self.node_contents_visit(node)

    visit_ParamSpec = visit_TypeVarTuple = visit_TypeVar

    # definitions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        self.check_name(node, node.name, allow_magic_methods=True)
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        rebound = {name for inner in ast.walk(node) if isinstance(inner, ast.Nonlocal) for name in inner.names}
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.args = self.visit(arguments)
        node.returns = self.visit(node.returns) if node.returns else None
        for parameter in getattr(node, "type_params", []):
            self.visit(parameter)
        self.scopes.append(Scope("function", "", frozenset(arg.arg for arg in every) - rebound))
        node.body = self.visited(node.body)
        self.scopes.pop()
        return node

    def visited(self, statements: list[Any]) -> list[Any]:
        result: list[Any] = []
        for statement in statements:
            changed = self.visit(statement)
            result.extend(changed if isinstance(changed, list) else [changed])
        return result

    def visit_Lambda(self, node: Any) -> Any:
        return self.scoped(node, Scope("lambda"))

    def visit_arg(self, node: ast.arg) -> Any:
        kept = self.scopes
        self.scopes = [Scope("function")]  # a parameter is never a class's attribute
        self.check_name(node, node.arg)
        self.scopes = kept
        return self.node_contents_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        self.check_name(node, node.name)
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.bases = [self.visit(base) for base in node.bases]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        for parameter in getattr(node, "type_params", []):
            self.visit(parameter)
        self.scopes.append(Scope("class", node.name))
        node.body = self.visited(node.body)
        ours = GUARDS + self.scopes.pop().temporary
        start = 0 if ast.get_docstring(node, clean=False) is None else 1
        node.body.insert(start, ast.copy_location(ast.Global(ours), node))  # not from what `__prepare__` gave
        return node

    # match: class patterns read attributes, by names in the pattern or by those that the class gives

    def visit_Match(self, node: Any) -> Any:
        outer, self.looks = self.looks, []
        node = self.node_contents_visit(node)
        looks, self.looks = self.looks, outer
        return [*looks, node]

    def visit_MatchClass(self, node: Any) -> Any:
        for name in node.kwd_attrs:
            if rule_of(name) != "plain":
                self.refuse(node, refusal_of(name))
        node = self.node_contents_visit(node)
        if node.patterns:  # the class is looked up once, before the match, so that it cannot change in between
            name = f"~{next(self.numbers)}"
            self.scopes[-1].temporary.append(name)
            look = ast.Call(guard("match"), [node.cls, ast.Constant(len(node.patterns))], [])
            self.looks.append(ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], look), node.cls))
            node.cls = ast.copy_location(ast.Name(name, ast.Load()), node.cls)
        return node

    def visit_MatchAs(self, node: Any) -> Any:
        self.check_name(node, getattr(node, "name", None) or getattr(node, "rest", None))
        return self.node_contents_visit(node)

    visit_MatchStar = visit_MatchMapping = visit_MatchAs


GUARDS = ["~own", "~get", "~match", "~import", "~type", "~pure"]


def guard(name: str) -> ast.Name:
    """A guard by its name, which is no identifier: code can neither write nor shadow it."""
    return ast.Name("~" + name, ast.Load())


def is_plain_format(function: Any) -> bool:
    """Whether this is `"...".format` of a literal whose fields fetch nothing: that runs natively."""
    if not (isinstance(function, ast.Attribute) and function.attr == "format"):
        return False
    return isinstance(function.value, ast.Constant) and fetches_nothing(function.value.value)


@functools.lru_cache(maxsize=500)
def fetches_nothing(text: Any) -> bool:
    """Whether no replacement field of a format string has an attribute or an index."""
    from string import Formatter

    if type(text) is not str:
        return False
    try:
        fields = list(Formatter().parse(text))
    except ValueError:
        return False
    return all(
        name is None or ("." not in name and "[" not in name and ("{" not in (spec or "") or fetches_nothing(spec)))
        for _, name, spec, _ in fields
    )


# - guards: what is judged at run time


flags_of: Callable[[type], int] = type.__dict__["__flags__"].__get__
mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
namespace_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__
# Classes of the cells' own whose bases are their own or built in: all `_names` are theirs. Each leads to itself, and is
# compared with what comes out: a metaclass may say that a class equals another.
pure: dict[type, type] = {}


def freeze() -> None:
    """Make classes immutable: all that exist when a session begins, later those of the library alone.

    Packages that are handed out whole, and what they depend on, are left as they are.
    """
    state.modules_seen = len(sys.modules)
    library_only = bool(state.globals or state.allowed)
    library = {__name__, *sys.stdlib_module_names}
    seen: set[int] = set()
    waiting: list[type] = [object]
    while waiting:
        kinds: list[type] = type.__subclasses__(waiting.pop())
        for kind in kinds:
            if id(kind) in seen:
                continue
            seen.add(id(kind))
            waiting.append(kind)
            module = namespace_of(kind).get("__module__")
            package = module.partition(".")[0] if type(module) is str else ""
            if is_own(kind) and (package in library or not library_only):
                set_flags(kind, flags_of(kind) | IMMUTABLE_TYPE)


def freeze_new() -> None:
    """The same where a module has been imported since: others make no classes that last."""
    if len(sys.modules) != state.modules_seen:
        freeze()


def set_flags(kind: type, flags: int) -> None:
    """Write the flags into the class's structure, which Python code cannot do otherwise."""
    import ctypes

    word = ctypes.c_ulong
    if state.flags_offset is None:
        state.flags_offset = flags_offset(word)
    place = word.from_address(id(kind) + state.flags_offset)
    if place.value == flags_of(kind):
        place.value = flags


def flags_offset(word: Any) -> int:
    """Where the flags are: at the one place that differs between classes exactly as their flags do."""

    samples = [type(f"Sample{bits}", bases, {}) for bits, bases in enumerate([(), (int,), (dict,), (Exception,)])]
    for offset in range(8, 400, 8):
        if all(word.from_address(id(kind) + offset).value == flags_of(kind) for kind in samples):
            return offset
    raise RuntimeError("this Python lays out its classes in an unknown way, so the policy cannot protect them")


def is_own(kind: type) -> bool:
    """Whether a class was made by a cell."""
    return not flags_of(kind) & IMMUTABLE_TYPE


def is_user_function(value: Any) -> bool:
    return type(value) is FunctionType and value.__globals__.get("__builtins__") is state.builtins


class PolicyState:
    """What the guards of this process go by: a worker serves one session."""

    def __init__(self) -> None:
        self.builtins: dict[str, Any] = {}
        self.globals: dict[str, Any] = {}
        self.sources: dict[str, str] = {}  # of the cells, for tracebacks that a cell asks for itself
        self.allowed: tuple[str, ...] = ()  # packages handed out whole
        self.views: dict[str, View] = {}
        self.workspace: Any = None
        self.stream: Any = None
        self.reconstruct: Any = None  # what `copy` had before
        self.flags_offset: int | None = None  # of the flags in a class's structure
        self.modules_seen = 0  # how many there were when classes were last frozen


state = PolicyState()


def guard_own(target: Any, name: str) -> Any:
    """The target, if its attribute `_name` is not the library's."""
    kind = type(target)
    if pure.get(kind) is kind:
        return target
    if issubclass(kind, type):
        owners = mro_of(target) + mro_of(kind)
    else:
        owners = mro_of(kind_behind(target))
        if kind is not super and forwards(kind):
            raise AttributeError(refusal_of(name))
    holder = next((owner for owner in owners if name in namespace_of(owner)), owners[0])
    if (is_own(holder) and is_own(owners[0])) or is_user_function(target):
        return target
    raise AttributeError(refusal_of(name))


def kind_behind(target: Any) -> type:
    """The class whose attributes are looked up: for `super()` that of the object it stands for."""
    kind: type = type(target)
    return super.__getattribute__(target, "__self_class__") if kind is super else kind


def forwards(kind: type) -> bool:
    """Whether instances show another object's attributes, as `list[int]`, weak proxies and subclasses of super do."""
    owners = mro_of(kind)
    return any(
        id(owner) in FORWARDERS or (not is_own(owner) and "__getattr__" in namespace_of(owner)) for owner in owners
    )


FORWARDERS = frozenset(map(id, (type(list[int]), MethodType, ProxyType, CallableProxyType, super)))


def guard_get(target: Any, name: str) -> Any:
    """An attribute whose name alone does not tell whether it is harmless."""
    formats_text = name == "format" and type(target) is str and len(target) < 1000
    if formats_text and fetches_nothing(target):
        return getattr(target, name)  # bound to this very text
    if name in ("__dict__", "__subclasses__"):
        return dict_of(target) if name == "__dict__" else subclasses_of(target)
    value = getattr(target, name)
    if name == "obj" and hides_its_object(kind_behind(target), value):
        raise AttributeError("the object behind an AttributeError is not accessible here")
    if name == "parser" and type(value) is ModuleType:  # of a path
        raise AttributeError(refusal_of(name))
    if name in ("obj", "parser"):
        return value
    if name == "__annotations__":
        return dict(value) if issubclass(type(value), dict) else value
    if name in ("format", "format_map"):
        return safe_format_of(value)
    return safe_access_of(target, value, name)


def hides_its_object(kind: type, value: Any) -> bool:
    return issubclass(kind, AttributeError) or forwards(kind) or value is AttributeError.__dict__["obj"]


def safe_format_of(value: Any) -> Any:
    """`str.format` with guarded field lookups in place of the native one, bound or not."""
    kind = type(value)
    if kind is BuiltinMethodType and issubclass(type(value.__self__), str):
        return functools.partial(formats[value.__name__], value.__self__)
    if kind is MethodDescriptorType and issubclass(value.__objclass__, str):
        return formats[value.__name__]
    return value


def format_text(text: str, /, *args: Any, **kwargs: Any) -> str:
    return expand(text, args, kwargs)


def format_map(text: str, mapping: Any, /) -> str:
    return expand(text, (), mapping)


formats: dict[str, Callable[..., str]] = {"format": format_text, "format_map": format_map}


def expand(text: str, args: tuple[Any, ...], named: Any) -> str:
    if not issubclass(type(text), str):
        raise TypeError(f"format needs a str, not {type_name(type(text))}")
    text = str.__str__(text)
    if fetches_nothing(text):
        return text.format(*args, **named) if args or type(named) is dict else text.format_map(named)
    import string

    return string.Formatter().vformat(text, args, named)  # its getattr is guarded, see `shadow`


def safe_access_of(target: Any, value: Any, name: str) -> Any:
    """`__getattribute__`, `__setattr__` ... as functions that judge the names they are given."""
    if is_user_function(value) or is_user_function(getattr(value, "__func__", None)):
        return value
    access = {"__setattr__": "set", "__delattr__": "set"}.get(name, "get")
    bound = type(value) in (MethodWrapperType, MethodType, BuiltinMethodType)

    def guarded(*args: Any) -> Any:
        place = 0 if bound else 1
        if len(args) <= place:
            raise TypeError(f"{name} needs {place + 1} arguments or more")
        owner, attribute = value.__self__ if bound else args[0], exact_name(args[place])
        rule = rule_of(attribute) if access == "get" else store_rule_of(attribute)
        if rule == "refused":
            raise AttributeError(refusal_of(attribute))
        if rule == "private":
            guard_own(owner, attribute)
        elif rule == "watched" and access == "get":
            return safe_format_of(value(*args)) if "format" in attribute else guard_get(owner, attribute)
        return value(*args[:place], attribute, *args[place + 1 :])

    return guarded


def exact_name(name: Any) -> str:
    if type(name) is not str:
        raise TypeError(f"attribute name must be string, not {type_name(type(name))!r}")
    return name


def dict_of(target: Any) -> Any:
    """`vars(target)`: the real one for what is the cell's own, a copy without private names for other objects."""
    kind = type(target)
    if kind is View:
        return target.public()
    if issubclass(kind, type):
        if is_own(target):
            return target.__dict__
        raise AttributeError("the namespace of a library class is not accessible here; dir() lists its names")
    if kind is ModuleType or forwards(kind):
        raise AttributeError(refusal_of("__dict__"))
    if is_own(kind) or kind is FunctionType:
        return target.__dict__
    return {name: value for name, value in target.__dict__.items() if rule_of(name) == "plain"}


def subclasses_of(target: Any) -> Any:
    if issubclass(type(target), type) and is_own(target):
        return functools.partial(type.__subclasses__, target)
    raise AttributeError("'__subclasses__' is there for the cell's own classes only")


def guard_match(kind: Any, count: int) -> Any:
    """A class for a pattern with so many positions, whose `__match_args__` must not name what code may not read."""
    if not issubclass(type(kind), type) or kind in SELF_MATCHING:
        return kind
    if is_own(type(kind)):
        raise TypeError("classes with a metaclass of their own cannot be matched by position: name the attributes")
    names = getattr(kind, "__match_args__", ())
    if type(names) is not tuple or len(names) < count:
        raise TypeError(f"{type_name(kind)}() does not take {count} positional sub-patterns")
    if not all(type(name) is str and rule_of(name) == "plain" for name in names[:count]):
        raise TypeError("only public attributes can be matched by position here")
    if is_own(kind) and "__match_args__" not in namespace_of(kind):
        type.__setattr__(kind, "__match_args__", names)  # so that nothing gives it others during the match
    return kind


SELF_MATCHING = (bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple)


def fetch(target: Any, name: Any) -> Any:
    """An attribute by a name that is only known at run time."""
    rule = rule_of(exact_name(name))
    if rule == "refused":
        raise AttributeError(refusal_of(name))
    if rule == "watched":
        return guard_get(target, name)
    return getattr(guard_own(target, name) if rule == "private" else target, name)


def guarded_getattr(target: Any, name: str, /, *default: Any) -> Any:
    if len(default) > 1:
        raise TypeError(f"getattr expected at most 3 arguments, got {2 + len(default)}")
    try:
        return fetch(target, name)
    except AttributeError:
        if default:
            return default[0]
        raise


def guarded_hasattr(target: Any, name: str, /) -> bool:
    try:
        fetch(target, name)
    except AttributeError:
        return False
    return True


def guarded_setattr(target: Any, name: str, value: Any, /) -> None:
    setattr(storable(target, name), name, value)


def guarded_delattr(target: Any, name: str, /) -> None:
    delattr(storable(target, name), name)


def storable(target: Any, name: str) -> Any:
    rule = store_rule_of(exact_name(name))
    if rule == "refused":
        raise AttributeError(refusal_of(name))
    return guard_own(target, name) if rule == "private" else target


def build_class(function: Any, name: str, *bases: Any, **keywords: Any) -> Any:
    """What a `class` statement calls."""
    made = real_build_class(function, name, *bases, **keywords)
    known = issubclass(type(made), type) and not is_own(type(made)) and len(pure) < 10_000
    if known and all(pure.get(base) is base or base in BUILT_IN for base in mro_of(made)[1:]):
        pure[made] = made
    return made


real_build_class = builtins.__build_class__
BUILT_IN = frozenset(value for value in vars(builtins).values() if isinstance(value, type)) - {super, type}


# - built-in functions that look at the code that calls them


def caller_locals(depth: int = 2) -> dict[str, Any] | None:
    """The local variables of the cell's code that called the built-in function; None at its top level."""
    frame = sys._getframe(depth)
    if frame.f_builtins is not state.builtins or frame.f_locals is frame.f_globals:
        return None
    return {name: value for name, value in dict(frame.f_locals).items() if "~" not in name}


class Globals(collections.abc.MutableMapping[str, Any]):
    """The cell's variables as `globals()` shows them."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name == "__builtins__":
            raise KeyError(name)
        return state.globals[name]

    def __setitem__(self, name: str, value: Any) -> None:
        state.globals[self.checked(name)] = value

    def __delitem__(self, name: str) -> None:
        del state.globals[self.checked(name)]

    def checked(self, name: str) -> str:
        if type(name) is not str or not name.isidentifier() or len(name) > 1000 or GUARD_NAME.fullmatch(name):
            raise ValueError(f"not a name for a variable: {text_of(ValueError(name))[:80]}")
        if name.startswith("__") and name.endswith("__") and name not in GLOBAL_DUNDERS:
            raise ValueError(refusal_of(name))
        return name

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in state.globals if name != "__builtins__" and "~" not in name])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return repr(dict(self))


def guarded_globals() -> Globals:
    return Globals()


def guarded_locals() -> Any:
    found = caller_locals()
    return Globals() if found is None else found


def guarded_vars(*target: Any) -> Any:
    if target:
        try:
            return dict_of(target[0])
        except AttributeError as error:
            raise TypeError(f"vars() argument must have a readable __dict__: {error}") from None
    found = caller_locals()
    return Globals() if found is None else found


def guarded_dir(*target: Any) -> list[str]:
    if not target:
        found = caller_locals()
        return sorted(Globals() if found is None else found)
    return [name for name in dir(*target) if type(name) is str and rule_of(name) in ("plain", "watched")]


def guarded_eval(source: Any, globals: Any = None, locals: Any = None, /) -> Any:
    """The value of an expression, under the same policy as the cell."""
    if type(source) is not str:
        raise TypeError(f"eval() takes the text of an expression, not {type_name(type(source))!r}")
    tree = policy_tree(source.strip(), "<eval>")
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        raise SyntaxError("eval() takes one expression; exec() takes statements")
    code = compiled(ast.Expression(tree.body[0].value), "<eval>", "eval")
    return eval(code, run_space(globals, locals, caller_locals()))


def guarded_exec(source: Any, globals: Any = None, locals: Any = None, /) -> None:
    """Run statements under the same policy as the cell."""
    if type(source) is not str:
        raise TypeError(f"exec() takes the text of statements, not {type_name(type(source))!r}")
    code = compiled(policy_tree(source, "<exec>"), "<exec>", "exec")
    found = caller_locals()
    if globals is None and found is None:
        exec(code, state.globals)
        return
    space = run_space(globals, locals, found)
    before = dict(space)
    exec(code, space)
    target = locals if locals is not None else globals
    for name, value in space.items():
        if target is not None and name not in ("__builtins__", "__name__") and before.get(name, UNSET) is not value:
            target[name] = value


def run_space(globals: Any, locals: Any, found: dict[str, Any] | None) -> dict[str, Any]:
    """The variables for eval and exec: those of the caller, or copies of what it gave."""
    if globals is None and locals is None and found is None:
        return state.globals
    space = identifiers_of(state.globals if globals is None else globals)
    space.update(found if locals is None and globals is None and found else identifiers_of(locals or {}))
    return {**space, "__builtins__": state.builtins, "__name__": "__main__"}


def identifiers_of(given: Any) -> dict[str, Any]:
    """A copy of a namespace without names that no code could write: among those are the guards."""
    return {name: given[name] for name in given if type(name) is str and name.isidentifier()}


def not_here(name: str, instead: str) -> Callable[..., NoReturn]:
    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{name}() is not available here: {instead}")

    missing.__name__ = missing.__qualname__ = name
    return missing


def guarded_help(*topic: Any) -> None:
    """Print what is known of an object."""
    about = getattr(topic[0], "__doc__", None) if topic else None
    print(about if isinstance(about, str) else "no help on that")


# - the library: views of its modules, and guards in the globals of those that cells can call


class View:
    """A module as cells see it: its public names, none of which is another module."""

    def __init__(self, name: str, members: dict[str, Any]):
        if vars(self):
            raise TypeError("a view is made once")
        vars(self).update(members, __name__=f"view of {name}")  # a name that `import` finds in no `sys.modules`

    def public(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __getattr__(self, name: str) -> Any:
        module = vars(self)["__name__"].removeprefix("view of ")
        there = ", ".join(sorted(self.public())[:40])
        hint = MEMBER_HINTS.get(f"{module}.{name}") or f"there are: {there}"
        raise AttributeError(f"module {module!r} has no attribute {name!r} here; {hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{vars(self)['__name__'].removeprefix('view of ')!r} is shared and cannot be changed")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __dir__(self) -> list[str]:
        return sorted(self.public())

    def __repr__(self) -> str:
        return f"<{vars(self)['__name__']}>"


MODULES.append(View)


class SystemView(View):
    """`sys`, whose streams can be replaced for a while."""

    @property
    def stdout(self) -> Any:
        return sys.stdout

    @property
    def stderr(self) -> Any:
        return sys.stderr

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("stdout", "stderr"):
            super().__setattr__(name, value)
        setattr(sys, name, value)


PLAIN_MODULES = words(  # seen through a view of their public names
    "__future__ abc argparse array ast base64 binascii bisect calendar cmath collections collections.abc colorsys"
    " configparser contextlib contextvars copy csv dataclasses datetime decimal difflib email.header email.message"
    " email.utils enum fnmatch fractions functools graphlib hashlib heapq hmac html html.entities html.parser"
    " ipaddress itertools json json.decoder json.encoder keyword locale math numbers operator pprint queue quopri"
    " random re reprlib secrets shlex statistics string struct textwrap time tomllib typing unicodedata"
    " urllib.parse warnings weakref xml.etree.ElementTree zlib zoneinfo"
)
PARTIAL_MODULES = {  # of these only the names given
    "bz2": "compress decompress",
    "codecs": "encode decode BOM_UTF8 BOM_UTF16 BOM_UTF16_LE BOM_UTF16_BE BOM_UTF32 getincrementaldecoder",
    "email": "message_from_string message_from_bytes",
    "gc": "collect",
    "gzip": "compress decompress BadGzipFile",
    "inspect": "signature Signature Parameter cleandoc getdoc isfunction isclass ismethod isgenerator isbuiltin"
    " isgeneratorfunction isabstract ismodule",
    "lzma": "compress decompress LZMAError",
    "platform": "python_version python_version_tuple python_implementation system",
    "timeit": "default_timer",
    "types": "SimpleNamespace MappingProxyType GeneratorType FunctionType LambdaType MethodType BuiltinFunctionType"
    " NoneType EllipsisType NotImplementedType UnionType GenericAlias new_class resolve_bases prepare_class",
    "uuid": "UUID uuid3 uuid4 uuid5 NAMESPACE_DNS NAMESPACE_URL NAMESPACE_OID NAMESPACE_X500",
    "xml.dom.minidom": "parseString Document",
    "xml.sax.saxutils": "escape unescape quoteattr",
}
DENIED_MEMBERS = {
    "argparse": "FileType",
    "contextlib": "chdir",
    "enum": "global_enum global_enum_repr global_flag_repr global_str",
    "time": "clock_settime clock_settime_ns pthread_getcpuclockid tzset",
    "weakref": "WeakMethod finalize",
    "zoneinfo": "reset_tzpath TZPATH",
}
HINTS = {
    "asyncio": "async code does not run here; llm_query_batched(prompts) asks in parallel",
    "builtins": "the built-in functions are there without it",
    "ctypes": "there is no way to the machine from here",
    "httpx": "there is no network here; the host's functions are what reaches outside",
    "multiprocessing": "there is one process; llm_query_batched(prompts) asks in parallel",
    "pickle": "use json, or keep the value in a variable: variables live on between cells",
    "shutil": "the working folder is written with open, pathlib and os",
    "sqlite3": "use dicts and lists, or sorted() and itertools.groupby",
    "subprocess": "no other program can be run; write it in Python",
    "tempfile": "the working folder is private: open('name.txt', 'w') is enough",
    "_thread": "llm_query_batched(prompts) asks in parallel",
}
HINTS.update(
    dict.fromkeys(["requests", "urllib3", "socket", "http", "aiohttp", "urllib.request", "ssl"], HINTS["httpx"])
)
HINTS.update(dict.fromkeys(["marshal", "shelve", "dill"], HINTS["pickle"]))
LLM_HINT = "llm_query(prompt) asks a model; there is no network here"
PACKAGE_HINTS = {  # what does the work of packages that are not here unless the caller allows them
    "bs4": "use html.parser.HTMLParser, or re for a few tags",
    "chardet": "try data.decode('utf-8'), then 'cp1252'",
    "dateutil": "datetime.fromisoformat(s), or datetime.strptime(s, '%d %b %Y')",
    "docx": "context is text already",
    "jsonschema": "check keys and types with isinstance",
    "langchain": "chunks(text) cuts a text; llm_query(prompt) asks a model",
    "lxml": "import xml.etree.ElementTree as ET; ET.fromstring(text)",
    "matplotlib": "nothing shows plots here: print the numbers",
    "networkx": "use a dict of sets; graphlib.TopologicalSorter for an order",
    "nltk": "re.findall(r'\\w+', text) gives words, re.split(r'(?<=[.!?])\\s+', text) sentences",
    "numpy": "use lists, sum() and the modules statistics and math",
    "openai": LLM_HINT,
    "openpyxl": "context is text already: csv or splitlines()",
    "pandas": "for CSV: import csv; rows = list(csv.DictReader(context.splitlines()))",
    "pydantic": "use dataclasses or dicts",
    "pypdf": "context is text already",
    "pytz": "zoneinfo.ZoneInfo('Europe/Paris')",
    "rapidfuzz": "difflib.get_close_matches(word, words)",
    "regex": "import re",
    "scipy": "use the modules statistics and math",
    "simplejson": "import json",
    "sklearn": "count with collections.Counter; llm_query(prompt) sorts by meaning",
    "spacy": "re finds words and names; llm_query(prompt) understands text",
    "tabulate": "print(f'{name:<20}{value:>8}') for each row",
    "tiktoken": "len(text) // 4 is about the number of tokens",
    "tqdm": "iterate without it: nobody sees a bar",
    "yaml": "read simple lines with line.split(': ', 1); json where it is JSON",
}
PACKAGE_HINTS.update(
    dict.fromkeys(["anthropic", "google", "litellm", "ollama", "torch", "transformers", "tensorflow"], LLM_HINT),
    seaborn=PACKAGE_HINTS["matplotlib"],
    plotly=PACKAGE_HINTS["matplotlib"],
    polars=PACKAGE_HINTS["pandas"],
    arrow=PACKAGE_HINTS["dateutil"],
    fuzzywuzzy=PACKAGE_HINTS["rapidfuzz"],
    PyPDF2=PACKAGE_HINTS["pypdf"],
    ujson=PACKAGE_HINTS["simplejson"],
    orjson=PACKAGE_HINTS["simplejson"],
)
MEMBER_HINTS = {
    "os.system": HINTS["subprocess"],
    "os.popen": HINTS["subprocess"],
    "os.open": "open files with open(path), or read the caller's with file_read",
    "sys.settrace": "there is no tracing",
}


def module_view(name: str) -> View:
    """The view of a library module; its classes are frozen and its own globals guarded from then on."""
    import importlib

    module = importlib.import_module(name)
    shadow(name)
    freeze_new()
    if name in PARTIAL_MODULES:
        names = PARTIAL_MODULES[name].split()
    else:
        guards = ("open", "eval", "exec", "compile", "getattr", "setattr")
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_" and n not in guards]
    denied = DENIED_MEMBERS.get(name, "").split()
    members = {n: getattr(module, n) for n in names if hasattr(module, n) and n not in denied}
    public = {n: value for n, value in members.items() if type(value) is not ModuleType}
    return View(name, {**public, "__doc__": module.__doc__, **REPLACED.get(name, {})})


def shadow(name: str) -> None:
    """Put guards into a library module's own globals, where they come before the built-in functions."""
    space = vars(sys.modules[name])
    if not str(space.get("__file__", "")).endswith((".py", ".pyc")):
        return
    guards: dict[str, Any] = {"open": guarded_open, "eval": no_eval, "exec": no_eval, "compile": no_eval}
    if name == "typing":
        guards["compile"], guards["eval"] = compile_annotation, evaluate_annotation
    if name in ("ast", "collections"):  # the one parses, the other checks the names that it puts into its text
        guards = {"open": guarded_open}
    if name in words("ast contextlib dataclasses functools inspect operator reprlib types weakref"):
        guards["getattr"] = library_getattr
    if name == "argparse":
        guards["getattr"] = argparse_getattr
    if name == "enum":
        guards["getattr"] = enum_getattr
    if name == "string":
        guards["getattr"] = guarded_getattr
    if name in ("argparse", "ast", "contextlib", "functools"):
        guards["setattr"] = library_setattr
    if name == "dataclasses":
        guards["setattr"], guards["exec"] = dataclass_setattr, exec_generated
    for builtin, function in guards.items():
        space.setdefault(builtin, function)
    if name == "collections":
        space["UserString"].format = lambda self, /, *args, **named: expand(self.data, args, named)
        space["UserString"].format_map = lambda self, mapping: expand(self.data, (), mapping)
    if name == "xml.dom.minidom":
        load_and_save = sys.modules["xml.dom.xmlbuilder"]
        vars(load_and_save)["DOMBuilder"] = not_here("createDOMBuilder", "parseString(text) reads XML")  # it opens URLs
    if name == "copy" and space["_reconstruct"] is not reconstruct:
        state.reconstruct, space["_reconstruct"] = space["_reconstruct"], reconstruct


def no_eval(*args: Any, **kwargs: Any) -> NoReturn:
    raise NameError("library functions do not evaluate text here")


def compile_annotation(text: str, *ignored: Any, **more: Any) -> CodeType:
    """The code of an annotation that was written as text, under the policy."""
    tree = policy_tree(str.__str__(text).strip(), "<annotation>")
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        raise SyntaxError("an annotation is one expression")
    return compiled(ast.Expression(tree.body[0].value), "<annotation>", "eval")


def evaluate_annotation(code: Any, *ignored: Any, **more: Any) -> Any:
    """Its value among the cells' variables, whatever module the annotated object claims to be of."""
    if type(code) is not CodeType or code.co_filename != "<annotation>":
        no_eval()
    return eval(code, state.globals)


def library_getattr(target: Any, name: str, *default: Any) -> Any:
    """`getattr` for library code, which may be acting on names and objects that a cell gave it."""
    name = str.__str__(name)
    try:
        if (rule_of(name) == "refused" and name not in LIBRARY_READABLE) or is_out_of_reach(target, name):
            raise AttributeError(refusal_of(name))
        if name in ("__dict__", "format", "format_map", "obj", "parser"):
            return guard_get(target, name)
        return getattr(guard_own(target, name) if rule_of(name) == "private" else target, name)
    except AttributeError:
        if default:
            return default[0]
        raise


def is_out_of_reach(target: Any, name: str) -> bool:
    """Whether this is a real module, of which contextlib exchanges the streams in the name of a cell, and no more."""
    return type(target) is ModuleType and name not in ("stdout", "stderr")


def argparse_getattr(target: Any, name: str, *default: Any) -> Any:
    """The parser finds its own `_handle_conflict_...` by name; the rest are names that a cell gave."""
    if type(name) is str and name.startswith("_handle_conflict_"):
        return getattr(target, name)
    return library_getattr(target, name, *default)


def enum_getattr(target: Any, name: str, *default: Any) -> Any:
    """Making an enum fetches `__reduce_ex__`; what its property fetches, a subclass of a cell's may have named."""
    fetch_it = library_getattr if sys._getframe(1).f_code.co_name == "__get__" else getattr
    return fetch_it(target, name, *default)


def library_setattr(target: Any, name: str, value: Any) -> None:
    name = str.__str__(name)
    allowed = (name in LIBRARY_WRITABLE or store_rule_of(name) == "plain") and not is_out_of_reach(target, name)
    if not allowed and store_rule_of(name) == "private":
        allowed = guard_own(target, name) is target
    if not allowed:
        raise AttributeError(refusal_of(name))
    setattr(target, name, value)


def dataclass_setattr(target: Any, name: str, value: Any) -> None:
    """`setattr` for dataclasses, which give a class `__match_args__` only where it has none."""
    if name == "__match_args__" or name.startswith("__dataclass_"):
        setattr(target, name, value)
    else:
        library_setattr(target, name, value)


GENERATED_NODES = frozenset(
    words(
        "Module FunctionDef arguments arg Return Assign Attribute Name Load Store Call If Compare Tuple Set"
        " JoinedStr keyword FormattedValue Constant BinOp Add Expr Raise IfExp Is IsNot Eq NotEq In Lt LtE Gt GtE"
        " BoolOp Or And UnaryOp Not Pass"
    )
)
GENERATED_CALLS = re.compile(
    r"hash|type|super|FrozenInstanceError|_dflt_\w+|_?_?dataclass\w*|__dataclass\w*|_recursive_repr"
)


def exec_generated(text: str, globals: dict[str, Any], locals: dict[str, Any]) -> None:
    """`exec` for the methods that dataclasses write: field names cannot smuggle anything else into them."""
    for node in ast.walk(ast.parse(text)):
        if type(node).__name__ not in GENERATED_NODES:
            raise TypeError("a field's name is not an identifier")
        if isinstance(node, ast.Call):
            called = node.func
            by_name = isinstance(called, ast.Name) and GENERATED_CALLS.fullmatch(called.id)
            if not by_name and getattr(called, "attr", "") not in ("__setattr__", "__delattr__", "__post_init__"):
                raise TypeError("a field's name is not an identifier")
        if isinstance(node, ast.Attribute) and (node.attr in PERILOUS or node.attr in ("__dict__", "__getattribute__")):
            raise TypeError(refusal_of(node.attr))
        if isinstance(node, ast.Name) and rule_of(node.id) == "refused" and not node.id.startswith("__dataclass_"):
            raise TypeError(refusal_of(node.id))  # such as the built-in functions, guards and all
    exec(text, state.globals or globals, locals)  # never with a library module's names, nor its built-in functions


def reconstruct(original: Any, memo: Any, function: Any, args: Any, *rest: Any, **options: Any) -> Any:
    """`copy._reconstruct` for objects that say how they are copied: not into something of another kind."""

    def make(*given: Any) -> Any:
        made = function(*given)
        if type(made) is not type(original):
            raise TypeError("a copy must be of the same class as the original")
        return made

    return state.reconstruct(original, memo, make, args, *rest, **options)


def guarded_attrgetter(*names: str) -> Callable[[Any], Any]:
    def walk(target: Any, path: str) -> Any:
        for name in path.split("."):
            target = fetch(target, name)
        return target

    paths = [exact_name(name) for name in names]
    if not paths:
        raise TypeError("attrgetter expected at least 1 argument, got 0")
    if len(paths) == 1:
        return lambda target: walk(target, paths[0])
    return lambda target: tuple(walk(target, path) for path in paths)


def guarded_methodcaller(name: str, /, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    exact_name(name)
    return lambda target: fetch(target, name)(*args, **kwargs)


# - files


class File:
    """An open file, without a way to what it is made of."""

    __slots__ = ("_file",)

    def __init__(self, file: Any):
        self._file = file

    def __iter__(self) -> File:
        return self

    def __next__(self) -> Any:
        return next(self._file)

    def __enter__(self) -> File:
        self._file.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return f"<file {self.name!r} mode {self.mode!r}>"

    def fileno(self) -> int:
        raise io.UnsupportedOperation("descriptors are not handed out here")

    @property
    def name(self) -> str:
        return os.path.basename(str(self._file.name))

    @property
    def mode(self) -> str:
        return str(self._file.mode)

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    @property
    def encoding(self) -> str | None:
        return getattr(self._file, "encoding", None)


def delegate(name: str) -> Callable[..., Any]:
    def method(self: File, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._file, name)(*args, **kwargs)

    method.__name__ = name
    return method


for file_method in words(
    "read readline readlines write writelines seek tell flush close truncate readable writable seekable isatty readinto"
):
    setattr(File, file_method, delegate(file_method))


class Stream(io.TextIOBase):
    """What `print` writes to."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, target: Any):
        streams.setdefault(id(self), target)  # not an attribute, which a cell could reach

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not issubclass(type(text), str):
            raise TypeError(f"write() argument must be str, not {type_name(type(text))}")
        written: int = streams[id(self)].write(str.__str__(text))
        return written

    def flush(self) -> None:
        streams[id(self)].flush()

    def close(self) -> None:
        """Cells do not close what the next one prints to."""


streams: dict[int, Any] = {}


def path_text(path: Any) -> str:
    """A path as a plain string, whatever it was given as."""
    if type(path) is int or issubclass(type(path), (bytes, bool)):
        raise TypeError(f"a file is named by a str or Path here, not {type_name(type(path))!r}")
    return str.__str__(os.fspath(path))


def guarded_open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *ignored: Any,
    **more: Any,
) -> Any:
    """`open` within the working folder, and for reading in the folders that the caller has given."""
    mode = str.__str__(mode)
    real = state.workspace.resolve(path_text(file), writing=any(letter in "wax+" for letter in mode))
    if "b" not in mode:
        encoding = encoding or "utf-8"
    return File(open(real, mode, buffering, encoding, errors, newline))


def stat_of(path: Any) -> os.stat_result:
    return os.stat(state.workspace.resolve(path_text(path)))


def is_kind(test: Callable[[str], bool]) -> Callable[[Any], bool]:
    def check(path: Any) -> bool:
        try:
            return test(state.workspace.resolve(path_text(path)))
        except (OSError, ValueError):
            return False

    return check


def list_folder(path: Any = ".") -> list[str]:
    """The names in a folder; at the top those of the given folders too."""
    text = path_text(path)
    found = set(os.listdir(state.workspace.resolve(text)))
    if os.path.normpath(text) == ".":
        for folder in state.workspace.readable:
            found.update(os.listdir(folder))
    return sorted(found)


def walk_folders(top: Any = ".", *ignored: Any, **more: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    base = path_text(top)
    names = list_folder(base)
    folders = [name for name in names if exists_folder(os.path.join(base, name))]
    yield base, folders, [name for name in names if name not in folders]
    for folder in folders:
        yield from walk_folders(os.path.join(base, folder))


def find_files(pattern: Any, *ignored: Any, recursive: bool = False, **more: Any) -> list[str]:
    """`glob.glob` over what a cell may read."""
    import fnmatch

    text = path_text(pattern)
    base, rest = os.path.split(text)
    deep = "**" in text
    if deep:
        base, rest = text.split("**", 1)[0].rstrip("/"), text.rsplit("/", 1)[-1]
    found = []
    for folder, _, names in walk_folders(base or "."):
        found += [os.path.join(folder, name) for name in fnmatch.filter(names, rest)]
        if not deep:
            break
    return sorted(os.path.normpath(path) for path in found)


exists_file, exists_folder, exists = is_kind(os.path.isfile), is_kind(os.path.isdir), is_kind(os.path.exists)


def in_scratch(function: Callable[..., Any], paths: int = 1) -> Callable[..., None]:
    """A function of `os` that changes files, for the working folder."""

    def change(*args: Any, exist_ok: bool = False, **ignored: Any) -> None:
        real = [state.workspace.resolve(path_text(path), writing=True) for path in args[:paths]]
        function(*real, exist_ok=True) if exist_ok else function(*real)

    change.__name__ = function.__name__
    return change


def path_class() -> type:
    """`pathlib.Path` for what a cell may read and write."""
    import pathlib

    class Path(pathlib.PurePosixPath):
        __slots__ = ()

        def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return guarded_open(self, mode, *args, **kwargs)

        def read_text(self, encoding: str | None = None, errors: str | None = None) -> Any:
            with guarded_open(self, "r", -1, encoding, errors) as file:
                return file.read()

        def read_bytes(self) -> Any:
            with guarded_open(self, "rb") as file:
                return file.read()

        def write_text(self, data: str, encoding: str | None = None, *args: Any, **kwargs: Any) -> Any:
            with guarded_open(self, "w", -1, encoding) as file:
                return file.write(data)

        def write_bytes(self, data: bytes) -> Any:
            with guarded_open(self, "wb") as file:
                return file.write(data)

        def iterdir(self) -> Any:
            return (self / name for name in list_folder(self))

        def glob(self, pattern: str) -> Any:
            return (type(self)(path) for path in find_files(os.path.join(path_text(self), pattern)))

        def rglob(self, pattern: str) -> Any:
            return self.glob("**/" + pattern)

        @classmethod
        def cwd(cls) -> Any:
            return cls(".")

        def resolve(self, strict: bool = False) -> Any:
            return type(self)(os.path.normpath(path_text(self)))

        def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
            make_folders(self, exist_ok=exist_ok)

        def touch(self, *args: Any, **kwargs: Any) -> None:
            guarded_open(self, "a").close()

        def unlink(self, missing_ok: bool = False) -> None:
            if not missing_ok or exists(self):
                remove_file(self)

        def rename(self, target: Any) -> Any:
            rename_file(self, target)
            return type(self)(target)

        exists, is_file, is_dir, stat, rmdir = exists, exists_file, exists_folder, stat_of, in_scratch(os.rmdir)
        absolute = expanduser = resolve

    Path.__module__, Path.__qualname__ = "pathlib", "Path"
    return Path


make_folders, remove_file = in_scratch(os.makedirs), in_scratch(os.remove)
rename_file = in_scratch(os.replace, paths=2)


# - stand-ins for modules that are made of what cells may not have


class Future:
    """A task of an executor below: it runs when its result, or that of a later one, is first asked for."""

    def __init__(self, executor: Executor, task: Callable[[], Any]):
        self._executor, self._task = executor, task
        self._outcome: tuple[bool, Any] | None = None
        self._callbacks: list[Callable[[Future], Any]] = []

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._executor._run()
        ok, value = self._outcome or (False, RuntimeError("the task did not run"))
        return None if ok else value

    def result(self, timeout: float | None = None) -> Any:
        problem = self.exception()
        if problem is not None:
            raise problem
        return self._outcome[1] if self._outcome else None

    def done(self) -> bool:
        return self._outcome is not None

    def running(self) -> bool:
        return False

    cancelled = running

    def cancel(self) -> bool:
        return False

    def add_done_callback(self, function: Callable[[Future], Any]) -> None:
        self._callbacks.append(function)
        if self.done():
            self._finish()

    def _finish(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for function in callbacks:
            function(self)


class Executor:
    """`concurrent.futures` without threads: tasks run in the order they came, and their host calls overlap."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._waiting: list[Future] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future = Future(self, functools.partial(function, *args, **kwargs))
        self._waiting.append(future)
        return future

    def map(self, function: Callable[..., Any], *iterables: Any, timeout: Any = None, chunksize: int = 1) -> Any:
        futures = [self.submit(function, *args) for args in zip(*iterables)]
        return (future.result() for future in futures)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._run()

    def _run(self) -> None:
        futures, self._waiting = self._waiting, []
        for future, outcome in zip(futures, run_together([future._task for future in futures])):
            future._outcome = outcome
            future._finish()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._run()


def as_completed(futures: Any, timeout: float | None = None) -> Iterator[Future]:
    for future in list(futures):
        future.exception()
        yield future


DoneAndNotDone = collections.namedtuple("DoneAndNotDone", ["done", "not_done"])


def wait_for_futures(futures: Any, timeout: float | None = None, return_when: str = "ALL_COMPLETED") -> Any:
    done = set(as_completed(futures))
    return DoneAndNotDone(done, set())


logging_settings: dict[str, Any] = {"level": 30, "format": "%(levelname)s:%(name)s:%(message)s"}
LEVELS = {"NOTSET": 0, "DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class Logger:
    """As much of `logging` as prints."""

    def __init__(self, name: str = "root"):
        self.name = name
        self.level: int | None = None

    def setLevel(self, level: Any) -> None:
        self.level = LEVELS.get(level, 0) if type(level) is str else level

    def isEnabledFor(self, level: int) -> bool:
        return level >= (logging_settings["level"] if self.level is None else self.level)

    def log(self, level: int, message: Any, *args: Any, exc_info: Any = None, **ignored: Any) -> None:
        if not self.isEnabledFor(level):
            return
        name = next((name for name, number in LEVELS.items() if number == level), f"Level {level}")
        text = str(message) % args if args else str(message)
        asctime = time.strftime("%Y-%m-%d %H:%M:%S")
        record = {"levelname": name, "levelno": level, "name": self.name, "message": text, "asctime": asctime}
        try:
            line = logging_settings["format"] % record
        except (KeyError, ValueError, TypeError):
            line = f"{name}:{self.name}:{text}"
        print(line, file=sys.stderr)
        if exc_info:
            print(recent_traceback(), file=sys.stderr)

    def debug(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(10, message, *args, **more)

    def info(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(20, message, *args, **more)

    def warning(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(30, message, *args, **more)

    def error(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(40, message, *args, **more)

    def critical(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(50, message, *args, **more)

    def exception(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(40, message, *args, **{"exc_info": True, **more})

    def addHandler(self, handler: Any) -> None:
        """All that is logged is printed."""

    removeHandler = addFilter = addHandler


class Handler:
    """Accepted wherever `logging` takes a handler or formatter, and without effect."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.given = args

    def setLevel(self, level: Any) -> None:
        """All that is logged is printed."""

    setFormatter = addFilter = setLevel


loggers: dict[str, Logger] = {}


def get_logger(name: str | None = None) -> Logger:
    return loggers.setdefault(name or "root", Logger(name or "root"))


def configure_logging(*, level: Any = None, format: str | None = None, **ignored: Any) -> None:
    if level is not None:
        logging_settings["level"] = LEVELS.get(level, 0) if type(level) is str else level
    if format is not None and "{" not in format:
        logging_settings["format"] = str.__str__(format)


def logging_members() -> dict[str, Any]:
    root = get_logger()
    names = words("debug info warning error critical exception log")
    members: dict[str, Any] = {name: getattr(root, name) for name in names}
    members.update({"getLogger": get_logger, "basicConfig": configure_logging, "Logger": Logger, "WARN": 30, **LEVELS})
    members.update(dict.fromkeys(["Handler", "StreamHandler", "NullHandler", "Formatter"], Handler))
    return {**members, "disable": not_here("logging.disable", "use setLevel"), "getLevelName": level_name}


def level_name(level: int) -> str:
    return next((name for name, number in LEVELS.items() if number == level), f"Level {level}")


def recent_traceback(*ignored: Any) -> str:
    """`traceback.format_exc`: the cells' own lines only."""
    problem = sys.exc_info()[1]
    return format_traceback(problem, state.sources) + "\n" if problem is not None else "NoneType: None\n"


def shown_exception(*given: Any, **ignored: Any) -> list[str]:
    problem = given[1] if len(given) > 1 else given[0]
    return [format_traceback(problem, state.sources) + "\n"]


def traceback_members() -> dict[str, Any]:
    def print_exc(limit: Any = None, file: Any = None, chain: bool = True) -> None:
        print(recent_traceback(), end="", file=file or sys.stderr)

    def print_exception(*given: Any, file: Any = None, **ignored: Any) -> None:
        print(*shown_exception(*given), sep="", end="", file=file or sys.stderr)

    def format_exception_only(*given: Any) -> list[str]:
        return [shown_exception(*given)[0].splitlines()[-1] + "\n"]

    return {
        "format_exc": recent_traceback,
        "print_exc": print_exc,
        "format_exception": shown_exception,
        "format_exception_only": format_exception_only,
        "print_exception": print_exception,
    }


def threading_members() -> dict[str, Any]:
    names = words("Lock RLock Condition Semaphore BoundedSemaphore Event Barrier local get_ident")
    threads = not_here(
        "threading.Thread", "llm_query_batched(prompts) asks in parallel, and concurrent.futures overlaps host calls"
    )
    return {**{name: getattr(threading, name) for name in names}, "Thread": threads, "Timer": threads}


def futures_members() -> dict[str, Any]:
    waits = {name: name for name in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION")}
    pools = {"ThreadPoolExecutor": Executor, "ProcessPoolExecutor": Executor, "Executor": Executor}
    return {
        **waits,
        **pools,
        "Future": Future,
        "as_completed": as_completed,
        "wait": wait_for_futures,
        "TimeoutError": TimeoutError,
    }


def path_members() -> dict[str, Any]:
    names = "join split splitext splitdrive basename dirname normpath isabs commonprefix commonpath relpath sep extsep"
    members = {name: getattr(os.path, name) for name in names.split()}
    members.update(exists=exists, isfile=exists_file, isdir=exists_folder, islink=lambda path: False)
    members.update(dict.fromkeys(["abspath", "realpath", "expanduser"], os.path.normpath))
    return {**members, "getsize": lambda path: stat_of(path).st_size, "getmtime": lambda path: stat_of(path).st_mtime}


def os_members() -> dict[str, Any]:
    names = "sep linesep extsep curdir pardir pathsep altsep name fspath urandom PathLike strerror error"
    members = {name: getattr(os, name) for name in names.split()}
    environment: dict[str, str] = {}
    members.update(path=view_of("os.path"), environ=environment, getenv=environment.get, listdir=list_folder)
    members.update(walk=walk_folders, stat=stat_of, getcwd=lambda: ".", getpid=lambda: 1, cpu_count=lambda: 1)
    members.update(mkdir=in_scratch(os.mkdir), makedirs=make_folders, rmdir=in_scratch(os.rmdir), remove=remove_file)
    return {**members, "unlink": remove_file, "rename": rename_file, "replace": rename_file}


def sys_members() -> dict[str, Any]:
    names = (
        "version version_info maxsize maxunicode byteorder hexversion float_info int_info hash_info platform exc_info"
    )
    names += (
        " getsizeof getrefcount intern getrecursionlimit getdefaultencoding exit api_version copyright implementation"
    )
    names += " exception set_int_max_str_digits get_int_max_str_digits"
    members = {name: getattr(sys, name) for name in names.split() if hasattr(sys, name)}
    unset: dict[str, Any] = {"argv": [""], "path": [], "modules": {}, "executable": "", "stdin": io.StringIO()}
    return {**members, **unset, "setrecursionlimit": limit_recursion}


def limit_recursion(limit: int) -> None:
    """`sys.setrecursionlimit`, within what the C stack bears."""
    sys.setrecursionlimit(min(max(int(limit), 1000), 10_000))


def io_members() -> dict[str, Any]:
    names = "StringIO BytesIO TextIOWrapper BufferedReader TextIOBase IOBase RawIOBase BufferedIOBase"
    names += " UnsupportedOperation SEEK_SET SEEK_CUR SEEK_END DEFAULT_BUFFER_SIZE"
    members = {name: getattr(io, name) for name in names.split()}
    return {**members, "open": guarded_open}


@contextlib.contextmanager
def catch_warnings(*, record: bool = False, **options: Any) -> Iterator[Any]:
    """`warnings.catch_warnings`, whose own instances hold the module."""
    import warnings

    with warnings.catch_warnings(record=record, **options) as caught:
        yield caught


STAND_INS: dict[str, Callable[[], dict[str, Any]]] = {
    "concurrent.futures": futures_members,
    "glob": lambda: {"glob": find_files, "iglob": lambda *args, **more: iter(find_files(*args, **more))},
    "io": io_members,
    "logging": logging_members,
    "os": os_members,
    "os.path": path_members,
    "pathlib": lambda: dict.fromkeys(["Path", "PosixPath"], path_class()) | pure_paths(),
    "sys": sys_members,
    "threading": threading_members,
    "traceback": traceback_members,
}
REPLACED: dict[str, dict[str, Any]] = {
    "codecs": {"open": guarded_open},
    "operator": {"attrgetter": guarded_attrgetter, "methodcaller": guarded_methodcaller},
    "warnings": {"catch_warnings": catch_warnings},
}


def pure_paths() -> dict[str, Any]:
    import pathlib

    return {name: getattr(pathlib, name) for name in ("PurePath", "PurePosixPath", "PureWindowsPath")}


# - imports


def view_of(name: str) -> View:
    """The view of a module that cells may import, with those of its parents; ImportError for any other."""
    if name in state.views:
        return state.views[name]
    if name in STAND_INS:
        members = STAND_INS[name]()
        freeze()
        view = SystemView(name, members) if name == "sys" else View(name, members)
    elif name in PLAIN_MODULES or name in PARTIAL_MODULES:
        view = library_view(name)
    elif any(known.startswith(name + ".") for known in (*PLAIN_MODULES, *PARTIAL_MODULES, *STAND_INS)):
        view = View(name, {})
    else:
        raise no_module(name)
    state.views[name] = view
    parent, _, child = name.rpartition(".")
    if parent:
        vars(view_of(parent))[child] = view
    for part in ("collections.abc", "html.entities", "os.path", "json.decoder"):
        if part.rpartition(".")[0] == name:
            vars(view)[part.rpartition(".")[2]] = view_of(part)
    return view


def library_view(name: str) -> View:
    try:
        return module_view(name)
    except ModuleNotFoundError:  # newer than this Python
        raise no_module(name) from None


def no_module(name: str) -> ImportError:
    top = name.partition(".")[0]
    hint = HINTS.get(name) or HINTS.get(top)
    if top in PACKAGE_HINTS:
        hint = f"{PACKAGE_HINTS[top]} (the caller can add {top} with allowed_imports)"
    elif not hint:
        there = sorted({known.partition(".")[0] for known in (*PLAIN_MODULES, *PARTIAL_MODULES, *STAND_INS)})
        there = [known for known in (*state.allowed, *there) if known not in ("__future__", "gc", "email")]
        hint = f"there are: {', '.join(there)}. The caller can add others with allowed_imports"
    return ModuleNotFoundError(f"no module {name!r} here; {hint}", name=name)


def import_for_statement(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """What an import statement calls, and C code on its behalf (which passes a list, and uses only `sys.modules`)."""
    import importlib

    if level:
        raise ImportError("relative imports have no package to start from here")
    if type(fromlist) is list:
        if name not in sys.modules and name.partition(".")[0] not in (*state.allowed, "_strptime"):
            raise no_module(name)
        importlib.import_module(name)
        return None
    if name.partition(".")[0] in state.allowed:
        module = importlib.import_module(name)
        return module if fromlist else sys.modules[name.partition(".")[0]]
    view = view_of(name)
    for wanted in fromlist or ():
        if wanted != "*":
            require_member(name, view, wanted)
    return view if fromlist else view_of(name.partition(".")[0])


def require_member(name: str, view: View, wanted: str) -> None:
    """See that `from name import wanted` finds it in the view: Python would look for a real module next."""
    if wanted in vars(view):
        return
    try:
        view_of(f"{name}.{wanted}")
    except ImportError as problem:
        try:
            getattr(view, wanted)
        except AttributeError as missing:
            raise ImportError(f"cannot import name {wanted!r}: {missing}", name=name) from None
        raise problem


def guarded_import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """`__import__` as a function."""
    names = tuple(item for item in fromlist or () if type(item) is str and not item.startswith("_"))
    return import_for_statement(exact_name(name), None, None, names, level)


# - a session


def policy_preload(allowed_imports: tuple[str, ...] = ()) -> None:
    """Prepare what all sessions of this process and its forks share: guarded library modules, frozen classes."""
    state.allowed = tuple(name.partition(".")[0] for name in allowed_imports)
    transformer_class()
    __import__("_strptime")  # what C code imports on behalf of a cell has to be there
    import linecache

    linecache.updatecache = lambda *ignored: []  # warnings would show lines of any file
    if not state.views:
        state.modules_seen = len(sys.modules)  # all at once, afterwards
        for name in ("collections", "copy", "dataclasses", "enum", "functools", "re", "string", "typing"):
            view_of(name)
        freeze()
    freeze_new()


def policy_globals(
    functions: dict[str, Any], *, workspace: Any, allowed_imports: tuple[str, ...], stdout: Any
) -> dict[str, Any]:
    """The variables that a session starts with. This changes the process, which from then on serves that session."""
    policy_preload(allowed_imports)
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    state.workspace, state.globals, state.builtins = workspace, vars(main), session_builtins()
    sys.stdout = sys.stderr = state.stream = Stream(stdout)
    sys.stdin = io.StringIO()  # what shlex reads by itself: a real file leads to all others
    vars(main).update(functions, __builtins__=state.builtins)
    return vars(main)


def session_builtins() -> dict[str, Any]:
    """The built-in functions, and the guards under names that no code can write."""
    kept = {name: value for name, value in vars(builtins).items() if not name.startswith("_")}
    kept.update(
        open=guarded_open,
        getattr=guarded_getattr,
        hasattr=guarded_hasattr,
        setattr=guarded_setattr,
        delattr=guarded_delattr,
        globals=guarded_globals,
        locals=guarded_locals,
        vars=guarded_vars,
        dir=guarded_dir,
        eval=guarded_eval,
        exec=guarded_exec,
        help=guarded_help,
        compile=not_here("compile", "eval(text) and exec(text) run code under the same rules"),
        input=not_here("input", "nobody is there to answer"),
        breakpoint=not_here("breakpoint", "print what you want to see"),
    )
    kept.update(dict.fromkeys(["exit", "quit"], sys.exit))
    kept.update({"__import__": import_for_statement, "__build_class__": build_class, "__debug__": True})
    guards = {"own": guard_own, "get": guard_get, "match": guard_match, "import": guarded_import}
    kept.update({"~" + name: function for name, function in guards.items()})
    return {**kept, "~type": type, "~pure": pure.get}


# - errors


def format_traceback(error: BaseException, sources: dict[str, str]) -> str:
    """An exception as Python shows it, of the cells' own lines only."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    link = ""
    while current is not None and id(current) not in seen and len(parts) < 9:
        seen.add(id(current))
        parts += [link, one_traceback(current, sources)] if parts else [one_traceback(current, sources)]
        link = LINK_CONTEXT if current.__cause__ is None else LINK_CAUSE
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(reversed(parts))


LINK_CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
LINK_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n"


def one_traceback(error: BaseException, sources: dict[str, str]) -> str:
    lines = []
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename in sources:
            frames.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    if frames:
        lines.append("Traceback (most recent call last):")
    for filename, number, name in frames[:10]:
        lines += frame_lines(filename, number, name, sources)
    if len(frames) > 20:
        lines.append(f"  [... {len(frames) - 20} more calls ...]")
    for filename, number, name in frames[max(10, len(frames) - 10) :]:
        lines += frame_lines(filename, number, name, sources)
    if isinstance(error, SyntaxError) and error.lineno and error.filename in (*sources, "<eval>", "<exec>"):
        lines += syntax_lines(error)
        message = str(error.msg)
    else:
        message = text_of(error)
    notes = [str.__str__(note) for note in getattr(error, "__notes__", None) or () if issubclass(type(note), str)]
    return "\n".join([*lines, type_name(type(error)) + (": " + message if message else ""), *notes[:10]])


def frame_lines(filename: str, number: int, name: str, sources: dict[str, str]) -> list[str]:
    lines = sources[filename].splitlines()
    shown = [f'  File "{filename}", line {number}, in {name}']
    if 0 < number <= len(lines) and lines[number - 1].strip():
        shown.append("    " + lines[number - 1].strip()[:500])
    return shown


def syntax_lines(error: SyntaxError) -> list[str]:
    text = (error.text or "").rstrip("\n")
    shown = [f'  File "{error.filename}", line {error.lineno}']
    if text.strip():
        shown.append("    " + text.strip()[:500])
        column = (error.offset or 0) - 1 - (len(text) - len(text.lstrip()))
        if 0 <= column < 500:
            shown.append("    " + " " * column + "^")
    return shown


# --- end of the policy ------------------------------------------------------------------------------------------------

# --- the confinement: what Linux offers without root (ctypes alone) ---------------------------------------------------

SCRATCH_SIZE = 64 << 20  # bytes in a session's private folder, and in any one file
PROCESSES_MAX = 48
DESCRIPTORS_MAX = 128
CONTEXT_ROOM = 8 << 30  # address space that contexts may take beyond `memory`

# Namespaces, each tried by itself; the user namespace comes first because it allows the others without root.
NAMESPACES = {
    "user_namespace": 0x10000000,
    "network_namespace": 0x40000000,
    "pid_namespace": 0x20000000,
    "mount_namespace": 0x00020000,
    "ipc_namespace": 0x08000000,
}

# The system calls a worker needs: name, number on x86_64, number on aarch64 (-: there is none).
SYSCALLS = """
read 0 63, write 1 64, close 3 57, fstat 5 80, newfstatat 262 79, stat 4 -, lstat 6 -, statx 332 291, lseek 8 62,
pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, faccessat 269 48, faccessat2 439 439,
open 2 -, openat 257 56, getdents64 217 61, getcwd 79 17, readlink 89 -, readlinkat 267 78, fstatfs 138 44,
rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35,
truncate 76 45, ftruncate 77 46, fallocate 285 47, fadvise64 221 223, fsync 74 82, fdatasync 75 83, flock 73 32,
sendfile 40 71, copy_file_range 326 285, umask 95 166, pipe 22 -, pipe2 293 59, dup 32 23, dup2 33 -, dup3 292 24,
close_range 436 436, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, munmap 11 215,
mremap 25 216, madvise 28 233, msync 26 227, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, sigaltstack 131 132, restart_syscall 219 128, nanosleep 35 101, clock_nanosleep 230 115,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getpid 39 172,
getppid 110 173, getpgrp 111 -, getpgid 121 155, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, getgroups 115 158, uname 63 160, sysinfo 99 179, getrlimit 97 163, getrusage 98 165,
getrandom 318 278, futex 202 98, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, membarrier 324 283,
fork 57 -, wait4 61 260, waitid 247 95, exit 60 93, exit_group 231 94, set_robust_list 273 99, set_tid_address 218 96,
rseq 334 293
"""
KILL, CLONE, CLONE3, IOCTL, FCNTL, PRLIMIT = (62, 129), (56, 220), (435, 435), (16, 29), (72, 25), (302, 261)
MMAP, MPROTECT = (9, 222), (10, 226)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

libc: Any = None  # the C library, once `load_libc` ran


def load_libc() -> None:
    """Also finds out how the allocator is asked for its size, for `memory_in_use` once /proc is out of reach."""
    import ctypes

    global libc, malloc_size
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": [("f", ctypes.c_size_t * 10)]})
        malloc_size = lambda: int(sum(libc.mallinfo2().f[4:8:3]))  # noqa: E731 - mapped, and used in the heap


def call_libc(name: str, *arguments: Any) -> int:
    """A C function that says -1 for failure, as a Python function that raises."""
    import ctypes

    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def attempt(layers: dict[str, bool | str], name: str, step: Callable[..., Any], *arguments: Any) -> bool:
    """Take one step of the confinement, and note whether it holds."""
    try:
        result = step(*arguments)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        layers[name] = False
        layers[name + "_error"] = str(error)
        return False
    layers[name] = result if type(result) is str else True
    return True


def enter_namespaces(layers: dict[str, bool | str]) -> None:
    """Leave the machine's namespaces; a PID namespace begins with the next child."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        # Root's own processes are never counted against RLIMIT_NPROC; those of another real user are.
        with contextlib.suppress(OSError):
            os.setresuid(65534, 0, 0)
    for name, flag in NAMESPACES.items():
        if attempt(layers, name, call_libc, "unshare", flag) and name == "user_namespace":
            attempt(layers, name, map_user, uid, gid)


def map_user(uid: int, gid: int) -> None:
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{file}", "w") as target:
            target.write(text)


def mount_scratch(folder: str) -> None:
    """A bounded file system of the session's own over its folder, gone with its last process."""
    private, nothing = 0x40000 | 0x4000, None  # MS_PRIVATE | MS_REC
    call_libc("mount", b"none", b"/", nothing, private, nothing)
    options = f"size={SCRATCH_SIZE},nr_inodes=2000,mode=700".encode()
    call_libc("mount", b"tmpfs", folder.encode(), b"tmpfs", 0x2 | 0x4 | 0x8, options)  # nosuid, nodev, noexec


def confine(setup: dict[str, Any], layers: dict[str, bool | str]) -> None:
    """Everything that a worker does to itself before it sees any code. Each step is best effort; `layers` tells."""
    attempt(layers, "rlimits", limit_resources, setup["memory"])
    if not setup["confined"]:
        return
    if layers.get("user_namespace") and kernel_version() >= (5, 14):  # where the count is the namespace's own
        attempt(layers, "process_limit", limit_processes)
    attempt(layers, "no_new_privs", call_libc, "prctl", 38, 1, 0, 0, 0)
    attempt(layers, "not_dumpable", call_libc, "prctl", 4, 0, 0, 0, 0)
    attempt(layers, "capabilities_dropped", drop_capabilities)
    attempt(layers, "landlock", restrict_files, setup["scratch"], setup["readable"])
    attempt(layers, "seccomp", filter_system_calls, may_kill(layers))
    check(layers)


def may_kill(layers: dict[str, bool | str]) -> bool:
    """Whether kill() reaches nothing but the session: in a PID namespace, or scoped by Landlock from ABI 6 on."""
    return bool(layers.get("pid_namespace")) or (bool(layers.get("landlock")) and landlock_abi() >= 6)


def check(layers: dict[str, bool | str]) -> None:
    """Believe the two main layers only when they refuse something."""
    import socket

    tries: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("landlock", lambda: os.listdir("/")),
        ("seccomp", socket.socket),
    )
    for layer, forbidden in tries:
        try:
            if layers[layer]:
                forbidden()
                layers[layer] = False
        except PermissionError:
            pass


def kernel_version() -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])


def limit_resources(memory: int) -> None:
    import resource

    with open("/proc/self/statm", "rb") as statm:
        present = int(statm.read().split()[0]) * mmap.PAGESIZE
    limits = {
        resource.RLIMIT_AS: (present + memory, present + memory + CONTEXT_ROOM),
        resource.RLIMIT_FSIZE: (SCRATCH_SIZE, SCRATCH_SIZE),
        resource.RLIMIT_NOFILE: (DESCRIPTORS_MAX, DESCRIPTORS_MAX),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    for which, (soft, hard) in limits.items():
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def limit_processes() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES_MAX, PROCESSES_MAX))


def drop_capabilities() -> None:
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    call_libc("capset", header, nothing)


def restrict_files(scratch: str, readable: Sequence[str]) -> str:
    """Landlock: the scratch folder, and for reading what Python itself needs and the caller gave. No TCP, no signals
    to processes outside."""
    abi = landlock_abi()
    handled = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1 | (1 << 15 if abi >= 5 else 0)
    network, scope = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    attributes = struct.pack("QQQ", handled, network, scope)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = call_libc("syscall", 444, attributes, len(attributes), 0)
    try:
        file_rights, folder_rights = 0x4, 0x8  # READ_FILE, READ_DIR
        for path in readable:
            rights = file_rights | (folder_rights if os.path.isdir(path) else 0)
            with contextlib.suppress(FileNotFoundError):
                allow_path(ruleset, path, rights)
        changes = 0x2 | 0x10 | 0x20 | 0x80 | 0x100 | 1 << 13 | 1 << 14  # write, remove, make files and folders, rename
        allow_path(ruleset, scratch, (file_rights | folder_rights | changes) & handled)
        call_libc("syscall", 446, ruleset, 0)
    finally:
        os.close(ruleset)
    return f"ABI {abi}"


def landlock_abi() -> int:
    return call_libc("syscall", 444, None, 0, 1)


def allow_path(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        call_libc("syscall", 445, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


# A filter is a list of (code, jump if true, jump if false, operand). Jumps never leave the block they stand in.
Filter = list[tuple[int, int, int, int]]
LOAD, EQUAL, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
ALLOW, REFUSE, UNKNOWN, KILL_PROCESS = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM, ENOSYS


def filter_system_calls(kill_is_safe: bool) -> str:
    """seccomp: an allow-list. Processes may be made only by a plain fork, memory is never writable and executable."""
    import ctypes

    code = packed_filter(kill_is_safe)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call_libc("prctl", 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    return f"{len(code) // 8} instructions"


@functools.cache
def packed_filter(kill_is_safe: bool) -> bytes:
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}")
    return b"".join(struct.pack("HBBI", *step) for step in build_filter(*MACHINES[machine], kill_is_safe))


def build_filter(column: int, architecture: int, kill_is_safe: bool) -> Filter:
    program: Filter = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL_PROCESS), (LOAD, 0, 0, 0)]
    if column == 0:  # the x32 numbers name the same calls a second time
        program += [(ANY_BIT, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]
    for entry in SYSCALLS.split(","):
        number = entry.split()[1 + column]
        if number != "-":
            program += on_call(int(number), [(RETURN, 0, 0, ALLOW)])
    if kill_is_safe:
        program += on_call(KILL[column], [(RETURN, 0, 0, ALLOW)])
    program += on_call(CLONE[column], allow_values(0, (0x01200011, 0x11)))  # fork() of glibc, of musl
    program += on_call(CLONE3[column], [(RETURN, 0, 0, UNKNOWN)])
    program += on_call(IOCTL[column], allow_values(1, (0x5401, 0x5421, 0x5450, 0x5451)))  # TCGETS, FIONBIO, FIO(N)CLEX
    program += on_call(FCNTL[column], allow_values(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030)))  # no F_SETOWN
    program += on_call(MMAP[column], refuse_bits(2, 6))
    program += on_call(MPROTECT[column], refuse_bits(2, 4))
    program += on_call(PRLIMIT[column], allow_own_limits())
    return [*program, (RETURN, 0, 0, REFUSE)]


def on_call(number: int, block: Filter) -> Filter:
    """The block for one system call; the blocks end in a return, so that what follows is for the others."""
    return [(EQUAL, 0, len(block), number), *block]


def low_word(argument: int) -> tuple[int, int, int, int]:
    return (LOAD, 0, 0, 16 + 8 * argument)


def high_word(argument: int) -> tuple[int, int, int, int]:
    return (LOAD, 0, 0, 20 + 8 * argument)


def allow_values(argument: int, values: Sequence[int]) -> Filter:
    tests: Filter = []
    for value in values:
        tests += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    return [low_word(argument), *tests, (RETURN, 0, 0, REFUSE)]


def refuse_bits(argument: int, bits: int) -> Filter:
    return [low_word(argument), (AND, 0, 0, bits), (EQUAL, 0, 1, bits), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]


def allow_own_limits() -> Filter:
    """Read any limit; set the soft ones for descriptors (7) and address space (9), below their hard ones."""
    is_reading: Filter = [low_word(2), (EQUAL, 0, 3, 0), high_word(2), (EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW)]
    is_other: Filter = [low_word(0), (EQUAL, 1, 0, 0), (RETURN, 0, 0, REFUSE)]
    return [*is_reading, *is_other, *allow_values(1, (7, 9))]


# --- the zygote: a process with everything imported, from which sessions are forked (Linux) ---------------------------

# At once: what lies in, or needs, libraries that the confined process cannot read. The rest when nothing is asked for.
PRELOADED = words("_strptime copy dataclasses decimal hashlib random string uuid zlib")
PRELOADED_LATER = words(
    "array base64 bisect calendar cmath csv difflib fractions heapq hmac html numbers pprint shlex statistics textwrap"
    " unicodedata urllib.parse zoneinfo"
)


SECRET_NAMES = re.compile(
    r"\.env.*|.*\.pem|id_.*|\.netrc|\.aws|\.ssh|\.git-credentials|\.pypirc|\.npmrc|\.snipara", re.IGNORECASE | re.DOTALL
)


def may_hold_secrets(parts: Sequence[str]) -> bool:
    """Whether a relative path, in parts, names or lies under what usually holds credentials."""
    in_git = ".git" in map(str.lower, parts[:-1]) and parts[-1].lower().startswith("config")
    return in_git or any(map(SECRET_NAMES.fullmatch, parts))


class Workspace:
    """Which files a cell may open: any in its scratch folder, and for reading those of the folders it was given."""

    def __init__(self, scratch: str, readable: tuple[str, ...], before_write: Callable[[], None] = lambda: None):
        self.scratch = os.path.realpath(scratch)
        self.readable = tuple(os.path.realpath(folder) for folder in readable)
        self.before_write = before_write

    def resolve(self, path: str, *, writing: bool = False) -> str:
        """The real path behind a name. PermissionError: not for cells; FileNotFoundError: in none of the folders."""
        if "\0" in path:
            raise ValueError("embedded null byte")
        inside = os.path.realpath(os.path.join(self.scratch, path))
        if writing:
            if not within(inside, self.scratch):
                raise PermissionError(f"only the working folder can be written to, not {path!r}")
            self.before_write()
            return inside
        if within(inside, self.scratch) and os.path.lexists(inside):
            return inside
        for folder in self.readable:
            real = os.path.realpath(os.path.join(folder, path))
            if within(real, folder) and os.path.lexists(real):
                if may_hold_secrets(real[len(folder) :].split(os.sep)):
                    raise PermissionError(f"{path!r} may hold secrets and is not readable here")
                return real
        if os.path.isabs(path) or not within(inside, self.scratch):
            raise PermissionError(f"no access to {path!r} from here; file_read reads the caller's files")
        raise FileNotFoundError(2, "no such file here (file_read reads the caller's files)", path)


class PolicyLanguage:
    """Python under the policy of the section above."""

    def __init__(self, setup: dict[str, Any]):
        self.setup = setup

    def compile(self, source: str, filename: str) -> tuple[CodeType, CodeType | None]:
        return policy_compile(source, filename)

    def namespace(self, functions: dict[str, Any], stdout: Any, calls: Calls) -> dict[str, Any]:
        workspace = Workspace(self.setup["scratch"], tuple(self.setup["workspace"]), calls.end_probe)
        allowed = tuple(self.setup["allowed_imports"])
        return policy_globals(functions, workspace=workspace, allowed_imports=allowed, stdout=stdout)

    def traceback(self, error: BaseException, sources: dict[str, str]) -> str:
        return format_traceback(error, sources)


def zygote_main(channel: int, setup: dict[str, Any]) -> NoReturn:
    """Import everything once, then fork a session for each request until the host is gone."""
    import resource  # noqa: F401 - as is all else that every session needs
    import shutil  # noqa: F401 - later there may be no descriptor left to import it with
    import socket

    host = socket.socket(fileno=channel)
    try:
        base, lock = make_base(setup["temporary"])
        os.environ["MPLCONFIGDIR"] = os.path.join(base, "matplotlib")
        preload(setup)
        load_libc()
        with contextlib.suppress(OSError):
            packed_filter(True)
    except BaseException as error:
        host.sendall(to_json({"error": f"{type_name(type(error))}: {text_of(error)[:2000]}"}).encode())
        os._exit(1)
    zygote = Zygote(host, dict(setup, base=base), lock)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    host.sendall(b'{"ready":true}')
    zygote.serve()


def preload(setup: dict[str, Any]) -> None:
    import gc
    import importlib

    for name in [*PRELOADED, *setup["allowed_imports"]]:
        importlib.import_module(name)
    if setup["policy"]:
        policy_preload(tuple(setup["allowed_imports"]))
    gc.freeze()  # what a collection would look at, a fork would copy


def make_base(temporary: str) -> tuple[str, int]:
    """A folder for the folders of sessions, and a lock on it; those that nobody locks any more are removed."""
    prefix = f"rlm-sandbox-{os.getuid()}-"
    for name in os.listdir(temporary):
        if name.startswith(prefix):
            remove_abandoned(os.path.join(temporary, name))
    base = os.path.join(temporary, f"{prefix}{os.getpid()}-{os.urandom(4).hex()}")
    os.mkdir(base, 0o700)
    lock = locked(base)
    if lock is None:
        raise OSError(f"{base!r} cannot be locked")
    return base, lock


def locked(folder: str) -> int | None:
    """A descriptor that locks the folder as long as it is open; None if it is somebody else's."""
    import fcntl

    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def remove_abandoned(base: str) -> None:
    """Remove the folder of a process that died. Its number says nothing: it may be of another container's."""
    with contextlib.suppress(OSError):
        if (lock := locked(base)) is not None:
            remove_tree(base)
            os.close(lock)


def remove_tree(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def plain_main(setup: dict[str, Any]) -> NoReturn:
    """A worker by itself, for systems without what a zygote and its sessions need: the policy, limits, and no more."""
    wire = take_streams()
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (wire.reader, wire.writer):
            msvcrt.setmode(descriptor, os.O_BINARY)
    else:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    preload(setup)
    start_worker(setup, {}, wire, own_init=False)


def end_with(parent: int) -> NoReturn:
    """A worker in a loop does not notice that its host has gone; this thread does."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


REQUEST_MAX = 65_536  # bytes: what is longer would arrive cut
PING = b"?"  # a spare session says it back
PING_SECONDS = 0.2


class Session(NamedTuple):
    """A process in namespaces of its own, which waits on the channel to be told whose worker it is to start."""

    pid: int
    channel: Any


class Zygote:
    def __init__(self, host: Any, setup: dict[str, Any], lock: int):
        self.host, self.setup, self.lock = host, setup, lock
        self.sessions: dict[int, str] = {}
        self.starved = False  # there could be no spare: not until the next request is it tried again
        self.spare: Session | None = None  # the next one, made while nothing is asked for: it costs 5 ms
        self.life_read, self.life_write = os.pipe()  # its end tells the sessions that this process has died

    def serve(self) -> NoReturn:
        import socket

        set_subreaper()
        poller = select.poll()
        poller.register(self.host, select.POLLIN)
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                poller.register(os.pidfd_open(os.getppid()), select.POLLIN)
        later = list(PRELOADED_LATER)
        while True:
            idle = not later and self.spare is not None
            ready = [descriptor for descriptor, _ in poller.poll(None if idle or self.starved else 0)]
            if not ready:
                self.get_ready(later)
                continue
            if ready != [self.host.fileno()]:
                self.end()
            data, descriptors, _, _ = socket.recv_fds(self.host, REQUEST_MAX, 4)
            if not data:
                self.end()
            self.starved = False
            self.answer(data, descriptors)

    def answer(self, data: bytes, descriptors: list[int]) -> None:
        try:
            request = json.loads(data)
        except ValueError:
            for descriptor in descriptors:
                os.close(descriptor)
            self.host.sendall(b'{"error":"the request was not understood"}')
            return
        if request["op"] == "reap":
            self.reap(request["pid"])
        else:
            self.host.sendall(to_json(self.spawn(request, descriptors)).encode())

    def get_ready(self, names: list[str]) -> None:
        """One step while nothing is asked for. A session begun before the last import does the others itself."""
        import gc
        import importlib

        if not names:
            try:
                self.spare = self.new_session(confined=True)
            except OSError:  # whoever asks for a session is told, and the sessions that there are go on
                self.starved = True
            return
        importlib.import_module(names.pop())
        if not names:
            gc.freeze()
            if self.setup["policy"]:
                freeze()

    def spawn(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        try:
            session = self.take_spare() if request["confined"] else None
            if session is None or not self.hand_over(session, request, descriptors):
                session = self.new_session(confined=request["confined"])
                if not self.hand_over(session, request, descriptors):
                    raise OSError("it ended at once")
        except OSError as error:
            return {"error": f"the session's process could not be forked: {error}"}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return {"pid": session.pid, "number": request["number"]}

    def hand_over(self, session: Session, request: dict[str, Any], descriptors: list[int]) -> bool:
        """Tell a session whose worker it is to start. One that cannot be told is ended."""
        import socket

        with session.channel:
            try:
                socket.send_fds(session.channel, [to_json(request).encode()], descriptors)
            except OSError:
                self.reap(session.pid)
                return False
        return True

    def take_spare(self) -> Session | None:
        """The session made ahead, if it answers and has its folder: something may have stopped or cleaned it."""
        spare, self.spare = self.spare, None
        if spare is None:
            return None
        with contextlib.suppress(OSError):
            os.lstat(self.sessions[spare.pid])
            spare.channel.send(PING)
            if wait_for(spare.channel.fileno(), PING_SECONDS) and spare.channel.recv(20) == PING:
                return spare
        spare.channel.close()
        self.reap(spare.pid)
        return None

    def new_session(self, *, confined: bool) -> Session:
        self.keep_base()
        scratch = os.path.join(self.setup["base"], os.urandom(6).hex())
        os.mkdir(scratch, 0o700)
        try:
            session = self.fork_session(scratch, confined)
        except OSError:
            remove_tree(scratch)
            raise
        self.sessions[session.pid] = scratch
        return session

    def keep_base(self) -> None:
        """Make the folder anew where something has cleaned it away, and never use another's in its place."""
        try:
            there = os.path.samestat(os.lstat(self.setup["base"]), os.fstat(self.lock))
        except FileNotFoundError:
            there = False
        if not there:
            os.makedirs(self.setup["temporary"], exist_ok=True)
            base, lock = make_base(self.setup["temporary"])
            os.close(self.lock)
            self.setup["base"], self.lock = base, lock

    def fork_session(self, scratch: str, confined: bool) -> Session:
        import socket

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            entrance = os.fork()
            if entrance == 0:
                os.close(self.life_write)
                ours.close()
                start_session({**self.setup, "scratch": scratch, "confined": confined}, theirs, self.life_read)
        os.waitpid(entrance, 0)
        pid = int(ours.recv(20) or b"0")
        if not pid:
            raise OSError("it did not start")
        return Session(pid, ours)

    def reap(self, pid: int) -> None:
        """Only now may the number be used again: until here the host could safely signal it."""
        if pid in self.sessions:
            kill_group(pid)
            os.waitpid(pid, 0)
            remove_tree(self.sessions.pop(pid))

    def end(self) -> NoReturn:
        for pid in list(self.sessions):
            self.reap(pid)
        remove_tree(self.setup["base"])
        os._exit(0)


def start_session(setup: dict[str, Any], channel: Any, life: int) -> NoReturn:
    """In a fresh fork, which only leads into the PID namespace: fork the supervisor, and from that, once the channel
    has told for whom, the worker."""
    import socket

    try:
        layers: dict[str, bool | str] = {}
        if setup["confined"]:
            enter_namespaces(layers)
        supervisor = os.fork()
        if supervisor:
            os.setpgid(supervisor, supervisor)
            channel.send(str(supervisor).encode())
            os._exit(0)
        os.setpgid(0, 0)
        keep_open(channel.fileno(), life)
        if layers.get("mount_namespace"):
            attempt(layers, "private_scratch", mount_scratch, setup["scratch"])
        set_subreaper()
        while True:
            request, descriptors, _, _ = socket.recv_fds(channel, REQUEST_MAX, 4)
            if request != PING:
                break
            channel.send(PING)
        if not request:
            os._exit(0)  # it was never needed
        setup |= json.loads(request)
        if os.fork():
            watched = [descriptors[0], life]
            keep_open(*watched)
            supervise(os.getpgrp(), watched)
        run_worker(setup, layers, descriptors, own_init=os.getppid() == 1 and bool(layers.get("pid_namespace")))
    finally:
        os._exit(1)


def keep_open(*descriptors: int) -> None:
    """Close all but these and the standard three."""
    first = 3
    for descriptor in [*sorted(set(descriptors)), 1 << 16]:
        os.closerange(first, descriptor)
        first = descriptor + 1


def run_worker(
    setup: dict[str, Any], layers: dict[str, bool | str], descriptors: list[int], own_init: bool
) -> NoReturn:
    stream, blob = descriptors
    keep_open(stream, blob)
    start_worker(dict(setup, blob=blob), layers, Wire(stream, stream), own_init)


def start_worker(setup: dict[str, Any], layers: dict[str, bool | str], wire: Wire, own_init: bool) -> NoReturn:
    os.chdir(setup["scratch"])
    sys.modules["__main__"] = type(sys)("__main__")
    confine(dict(setup, readable=readable_paths(setup)), layers)
    os.environ.clear()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    layers["policy"] = setup["policy"]
    setup["own_init"] = own_init
    setup["grow"] = raise_memory_limit if layers["rlimits"] else None
    setup["can_kill"] = not setup["confined"] or may_kill(layers)
    Worker(wire, PolicyLanguage(setup) if setup["policy"] else PlainLanguage(), setup).start(layers)


TIME_ZONES = ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"]  # zoneinfo's


def readable_paths(setup: dict[str, Any]) -> list[str]:
    """What Python needs while it runs, and what the caller gave."""
    paths = [os.path.dirname(os.__file__), *TIME_ZONES, *setup["workspace"], *setup["readable"]]
    if setup["allowed_imports"]:
        paths += [*setup["path"], "/lib", "/lib64", "/usr/lib", "/usr/local/lib", os.environ.get("MPLCONFIGDIR", "")]
    return [path for path in paths if path]


def raise_memory_limit(added: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_AS, (min(soft + added, hard), hard))


def set_subreaper() -> None:
    """Orphans come here and not to the machine's init."""
    with contextlib.suppress(OSError):
        call_libc("prctl", 36, 1, 0, 0, 0)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


# --- the host ---------------------------------------------------------------------------------------------------------

START_LIMIT = 20  # seconds for a process to start
SOFT_GRACE = 0.5  # seconds from the interrupt to the kill of the cell's process
HARD_GRACE = 0.4  # seconds from there to the kill of the whole session
CALLS_MAX = 10_000  # host calls in one cell, those waiting together, and threads for them
WAITING_MAX = 1_000
THREADS_MAX = 64


class SandboxError(RuntimeError):
    """The environment cannot start, or has broken; `hint` says what to do."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


class Stop(BaseException):
    """Raised by a host function: stops the cell at once, and comes out of `execute`."""


class Broken(Exception):
    """The worker's stream ended, or carried what no worker of ours sends."""


@dataclass(frozen=True)
class Cell:
    """What came of one cell. `restored`: its process died, and the variables are those from before it."""

    ok: bool
    stdout: str = ""
    value: str | None = None
    error: str | None = None
    final: Any = UNSET
    images: list[dict[str, str]] = field(default_factory=list)
    duration_ms: float = 0.0
    status: str = "ok"
    restored: bool = False
    n: int = 0
    stdout_chars: int = 0


class Channel:
    """A worker's byte stream, and the ways to stop it: what differs between a child process and a container.

    `stream` is a connected socket, or looks like one.
    """

    hard_grace = HARD_GRACE

    def __init__(self, stream: Any):
        self.stream = stream
        self.process_of_host = os.getpid()
        stream.setblocking(False)

    def inherited(self) -> bool:
        """Whether this is a fork of the host: what it drops, its parent goes on using."""
        return os.getpid() != self.process_of_host

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def receive(self) -> bytes:
        """Some bytes, once `fileno` is readable; none at the end. BlockingIOError: not yet."""
        return bytes(self.stream.recv(1 << 18))

    def send(self, data: memoryview) -> int:
        """Take some of the bytes without waiting; 0 if there is no room now."""
        try:
            return int(self.stream.send(data))
        except BlockingIOError:
            return 0

    def put(self, pieces: Iterable[bytes]) -> int | None:
        """Lay a value where the worker finds it, and return its size; None: it must follow in frames."""
        return None

    def interrupt(self) -> None:
        """SIGINT for the cell."""
        raise NotImplementedError

    def kill_cell(self) -> None:
        """SIGUSR1: the waiting process kills the one that runs the cell, and goes on from its own state."""
        raise NotImplementedError

    def kill(self) -> None:
        """End everything of this session now. May be called from any thread, at any time, more than once."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the channel holds, after `kill`."""
        raise NotImplementedError


def wait_for(descriptor: int, seconds: float, writing: bool = False) -> bool:
    if not hasattr(select, "poll"):
        sets = select.select([] if writing else [descriptor], [descriptor] if writing else [], [], seconds)
        return bool(sets[0] or sets[1])
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT if writing else select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


from_json = json.JSONDecoder(parse_constant=refuse_constant).decode


CONTAINERS_MAX = VALUE_MAX // CONTAINER_COST + 10_000  # lists and objects in a frame: a forged one has room for more
NO_MARKS = bytes(set(range(256)) - set(b'"[{'))


def containers_in(text: bytes) -> int:
    """How many lists and objects there are in JSON, that is, brackets outside of strings."""
    marks = text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, NO_MARKS).replace(b'""', b"")
    return len(re.sub(rb'"[^"]*"', b"", marks))


class Frames:
    """Frames to and from one worker. Whatever arrives is checked before anything else sees it."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self.sending = threading.Lock()
        self.buffer = bytearray()
        self.size = 0  # of the frame parsed last

    def send(
        self,
        message: dict[str, Any],
        pieces: Iterable[bytes] = (),
        valid: Callable[[], bool] = lambda: True,
        patience: float = math.inf,
    ) -> None:
        """Write a whole frame and pieces of a value, or nothing if `valid` no longer holds as its turn comes."""
        data = encode_frame(message)
        with self.sending:
            if not valid():
                return
            self.write(data, patience)
            for piece in pieces:
                self.write(struct.pack(">I", len(piece)), patience)
                self.write(piece, patience)

    def write(self, data: bytes | memoryview, patience: float = math.inf) -> None:
        view = memoryview(data)
        moved = time.monotonic()
        while view:
            try:
                sent = self.channel.send(view)
            except OSError as error:
                raise Broken("the sandbox's process has ended") from error
            view = view[sent:]
            if sent:
                moved = time.monotonic()
            elif time.monotonic() - moved > patience:
                raise Broken("the sandbox does not take what it is sent")
            else:
                wait_for(self.channel.fileno(), 0.2, writing=True)

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next frame, or None after that time."""
        deadline = time.monotonic() + seconds
        while (frame := self.parse()) is None:
            if not wait_for(self.channel.fileno(), deadline - time.monotonic()):
                return None
            try:
                data = self.channel.receive()
            except BlockingIOError:
                continue
            except OSError as error:
                raise Broken("the sandbox's process has ended") from error
            if not data:
                raise Broken("the sandbox's process has ended")
            self.buffer += data
        return frame

    def parse(self) -> dict[str, Any] | None:
        if len(self.buffer) < 4:
            return None
        size = int.from_bytes(self.buffer[:4], "big")
        if size > FRAME_MAX:
            raise Broken(f"the sandbox sent a frame of {size} bytes")
        if len(self.buffer) < 4 + size:
            return None
        self.size = size
        brackets = self.buffer.count(b"[", 4, 4 + size) + self.buffer.count(b"{", 4, 4 + size)
        if brackets > CONTAINERS_MAX and containers_in(bytes(self.buffer[4 : 4 + size])) > CONTAINERS_MAX:
            raise Broken(f"the sandbox sent a frame of more than {CONTAINERS_MAX} lists and objects")
        try:
            with memoryview(self.buffer) as view:
                text = str(view[4 : 4 + size], "ascii")
            del self.buffer[: 4 + size]
            message = from_json(text)
        except (ValueError, RecursionError) as error:
            raise Broken("the sandbox sent a frame that is not JSON") from error
        if type(message) is not dict or type(message.get("op")) is not str or type(message.get("id")) is not int:
            raise Broken("the sandbox sent a frame without a form")
        return message


class Sandbox:
    """The part that both environments share: requests, cells, host calls, the clock, and the ladder of stops."""

    def __init__(self, *, cell_timeout: float, output_limit: int):
        self.cell_timeout = cell_timeout
        self.output_limit = output_limit
        self.layers: dict[str, bool | str] = {}
        self._lock = threading.RLock()
        self._frames: Frames | None = None
        self._given: dict[str, Any] = {}
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
        raise NotImplementedError

    # - what callers use

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_frames", None) is not None and not sys.is_finalizing():
            self.close()

    def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        functions: dict[str, Callable[..., Any]] | None = None,
        on_output: Callable[[str], None] | None = None,
        memory: str | int | None = None,
    ) -> Cell:
        """Run a cell. Whatever it does, a `Cell` comes back, within its time; only `Stop` passes through.

        `memory`: what this cell may take beyond the variables there are, in place of the session's own limit.
        """
        with self._lock:
            self._cells += 1
            if not isinstance(code, str):
                raise TypeError(f"code must be a str, not {type(code).__name__}")
            limit = timeout or self.cell_timeout or math.inf
            room = None if memory is None else parse_size(memory)
            run = self._run = Run(self, self._cells, limit, functions or {}, on_output, room)
            try:
                return run.execute(code)
            finally:
                self._run = None

    def set(self, name: str, value: Any) -> None:
        """Make a variable of plain data; a worker that had to be renewed gets it again."""
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not a name for a variable")
        try:
            to_send = to_blob(value)
        except (TypeError, RecursionError) as error:
            raise TypeError(
                f"cannot hand {type(value).__name__} to the sandbox: {error}; convert it to text, lists and dicts first"
            ) from None
        with self._lock:
            self._started()
            self._send_blob(name, *to_send)
            self._given[name] = value

    def get(self, name: str) -> Any:
        """A variable's value, if it is plain data. KeyError: there is none; TypeError: it is something else."""
        with self._lock:
            self._started()
            reply = self._request({"op": "get", "name": name})
        try:
            return unpack(reply.get("value"))
        except (TypeError, ValueError, RecursionError):
            raise SandboxError("the sandbox's answer cannot be read") from None

    def names(self) -> dict[str, tuple[str, int | None, str]]:
        """Each variable's type, length and a glimpse of it."""
        with self._lock:
            self._started()
            found = self._request({"op": "names"}).get("value")
        if type(found) is not dict or not all(type(row) is list and len(row) == 3 for row in found.values()):
            raise SandboxError("the sandbox's answer cannot be read")
        rows = found.items()
        return {short(name, 200): (short(kind, 200), size, short(shown, 1000)) for name, (kind, size, shown) in rows}

    def reset(self) -> None:
        """A fresh worker without variables."""
        with self._lock:
            self._drop()
            self._given.clear()
            self._started()

    def interrupt(self, grace: float = SOFT_GRACE) -> None:
        """Stop the cell that runs, from another thread: softly, then by force."""
        run = self._run
        if run is not None:
            run.stop_softly(grace)

    def kill(self) -> None:
        """End the worker and all it started now, from any thread; the next request finds a fresh one."""
        frames = self._frames
        if frames is not None:
            frames.channel.kill()

    def close(self) -> None:
        self._closed = True
        self.kill()
        with self._lock:
            self._drop()

    # - the worker's life

    def _started(self) -> Frames:
        if self._closed:
            raise SandboxError("the sandbox is closed")
        if self._frames is not None and self._frames.channel.inherited():
            self._drop()
        if self._frames is None:
            self._frames = Frames(self._open())
            try:
                self._hello(self._frames)
                for name, value in self._given.items():
                    self._send_blob(name, *to_blob(value))
            except BaseException:
                self._drop()  # a worker that lacks what the host has set is not to be found later
                raise
        return self._frames

    def _hello(self, frames: Frames) -> None:
        try:
            hello = frames.receive(START_LIMIT)
        except Broken as error:
            raise SandboxError(f"the sandbox did not start: {error}") from None
        if hello is None or hello["op"] != "hello":
            raise SandboxError("the sandbox did not start: %s" % ((hello or {}).get("error") or "no answer"))
        self.layers = {str(key): value for key, value in hello.get("layers", {}).items()}

    def _drop(self) -> None:
        frames, self._frames = self._frames, None
        if frames is not None:
            frames.channel.kill()
            frames.channel.close()

    def _kept(self) -> str:
        return f" (what the host had set is there again: {', '.join(self._given)})" if self._given else ""

    # - requests other than cells

    def _request(self, message: dict[str, Any], pieces: Iterable[bytes] = ()) -> dict[str, Any]:
        frames = self._started()
        self._requests += 1
        request = self._requests
        try:
            frames.send(dict(message, id=request), pieces, patience=START_LIMIT)
            deadline = time.monotonic() + START_LIMIT * (10 if message["op"] == "set" else 1)
            while True:
                reply = frames.receive(max(0.0, deadline - time.monotonic()))
                if reply is None:
                    raise Broken("no answer from the sandbox")
                if reply["id"] == request:
                    break
        except BaseException as error:
            self._drop()  # after half a frame nothing that follows could be read
            if isinstance(error, Broken):
                raise SandboxError(f"{error}: its variables are lost") from None
            raise
        return self._checked(message, reply)

    def _checked(self, message: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        if reply["op"] == "done":
            return reply
        if reply["op"] == "died":
            raise SandboxError(f"the sandbox could not {message['op']} {message.get('name')!r}: its process died on it")
        kinds: dict[str, type[Exception]] = {"TypeError": TypeError, "KeyError": KeyError, "ValueError": ValueError}
        raise kinds.get(str(reply.get("type")), SandboxError)(str(reply.get("message")))

    def _send_blob(self, name: str, header: dict[str, Any], pieces: Iterator[bytes]) -> None:
        frames = self._started()
        size = frames.channel.put(pieces)
        try:
            rest = itertools.chain(pieces, [b""]) if size is None else ()
            self._request({"op": "set", "name": name, "size": size, **header}, rest)
        finally:
            frames.channel.put(())


class Chunks:
    """The host function `chunks`. A worker of this module does it by itself; any other sandbox calls it here."""

    def __init__(self, size: int):
        self.in_worker = check_in_worker({"name": "chunks", "size": size})

    def __call__(self, text: Any, size: int | None = None, overlap: int = 0) -> list[Any]:
        """Cut a text into pieces of at most `size` characters, or group a list of texts so."""
        return text_chunks(text, self.in_worker["size"] if size is None else size, overlap)


def spec_of(function: Callable[..., Any]) -> bool | dict[str, Any]:
    """What the worker is told of a host function: whether it takes batches, or which of its own is meant."""
    in_worker = getattr(function, "in_worker", None)
    return bool(getattr(function, "batched", False)) if in_worker is None else check_in_worker(in_worker)


class Run:
    """One cell being executed: its clock, its calls, and how it is stopped."""

    def __init__(
        self,
        sandbox: Sandbox,
        number: int,
        limit: float,
        functions: dict[str, Callable[..., Any]],
        on_output: Callable[[str], None] | None,
        memory: int | None,
    ):
        self.sandbox, self.number, self.limit, self.memory = sandbox, number, limit, memory
        self.functions, self.on_output = functions, on_output
        self.frames = sandbox._started()
        sandbox._requests += 1
        self.request = sandbox._requests
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.active = self.at_work = 0  # calls that have arrived, and those of them that a thread works on
        self.held = 0  # bytes of the frames that these came in
        self.paused = 0.0
        self.paused_at = 0.0
        self.calls = 0
        self.streamed: list[str] = []
        self.stream_room = max(1 << 20, 4 * sandbox.output_limit)
        self.stop: BaseException | None = None
        self.asked = ""  # why it is being stopped: "timeout" or "interrupt"
        self.softened = 0.0
        self.grace = SOFT_GRACE
        self.hardened = 0.0
        self.over = False
        self.queued: list[Callable[[], None]] = []

    def execute(self, code: str) -> Cell:
        message = {
            "op": "execute",
            "id": self.request,
            "cell": self.number,
            "code": code,
            "functions": {name: spec_of(call) for name, call in self.functions.items()},
            "stream": self.on_output is not None,
            "memory": self.memory,
        }
        try:
            try:
                self.frames.send(message, patience=START_LIMIT)
                reply = self.wait()
            except Broken as error:
                reply = {"op": "lost", "why": str(error)}
                self.sandbox._drop()
            except ValueError as error:
                return self.cell(ok=False, error=f"ValueError: {error}", status="refused")
        except BaseException:
            self.sandbox._drop()
            raise
        finally:
            self.over = True
        if self.stop is not None:
            raise self.stop
        return self.finish(reply)

    # - the clock

    def elapsed(self) -> float:
        """Seconds of the cell's own: the clock stands still while a host function works for it."""
        with self.lock:
            now = time.monotonic()
            waiting = now - self.paused_at if self.at_work else 0.0
            return now - self.began - self.paused - waiting

    # - frames

    def wait(self) -> dict[str, Any]:
        while True:
            reply = self.frames.receive(self.patience())
            if reply is None:
                self.press()
            elif reply["id"] != self.request:
                continue
            elif reply["op"] in ("result", "died", "failed"):
                return reply
            elif reply["op"] == "output":
                self.output(reply.get("text"))
            elif reply["op"] == "call":
                self.call(reply, self.frames.size)
            if self.softened or self.elapsed() > self.limit:
                self.press()

    def patience(self) -> float:
        """Seconds until something has to be done even if no frame comes."""
        now = time.monotonic()
        if self.hardened:
            return max(0.0, self.hardened + self.frames.channel.hard_grace - now)
        if self.softened:
            return max(0.0, self.softened + self.grace - now)
        return min(max(0.0, self.limit - self.elapsed()) + 0.001, 0.05)  # soon enough for another thread's interrupt

    def press(self) -> None:
        """The next step of the ladder, if its time has come: interrupt, kill the cell's process, kill the session."""
        now = time.monotonic()
        if not self.softened:
            if self.elapsed() >= self.limit:
                self.asked = self.asked or "timeout"
                self.stop_softly()
        elif not self.hardened:
            if now >= self.softened + self.grace:
                self.frames.channel.kill_cell()
                self.hardened = time.monotonic()
        elif now >= self.hardened + self.frames.channel.hard_grace:
            raise Broken("it could not be stopped otherwise")

    def stop_softly(self, grace: float = SOFT_GRACE) -> None:
        with self.lock:
            if self.softened or self.over:
                return
            self.softened, self.grace = time.monotonic(), grace
            self.asked = self.asked or "interrupt"
        self.frames.channel.interrupt()

    def output(self, text: Any) -> None:
        if type(text) is not str or self.stream_room <= 0:
            return
        text = text[: self.stream_room]
        self.stream_room -= len(text)
        text = text if text.isascii() else printable(text)
        self.streamed.append(text)
        if self.on_output is not None:
            self.on_output(text)

    # - calls from the cell

    def call(self, frame: dict[str, Any], size: int) -> None:
        name, key = frame.get("name"), frame.get("call")
        if type(key) is not int or type(name) is not str or name not in self.functions:
            return
        self.calls += 1
        function = self.functions[name]
        try:
            if self.calls > CALLS_MAX:
                raise RuntimeError(f"a cell may call the host {CALLS_MAX} times at most")
            args, kwargs = unpack(frame.get("args")), unpack(frame.get("kwargs"))
            if type(args) is not list or type(kwargs) is not dict:
                raise ValueError("not a call")
            accept = getattr(function, "accept", None)
            work = accept(*args, **kwargs) if accept else lambda: function(*args, **kwargs)
        except Exception as error:
            work = raiser(error)  # answered from a thread: this one must go on reading, whatever the worker does
        except Stop as stop:
            self.halt(stop)
            return
        self.dispatch(lambda: self.work(key, work, size), size)

    def dispatch(self, job: Callable[[], None], size: int) -> None:
        """Give a host function a thread, or let it wait for one."""
        with self.lock:
            self.active += 1
            self.held += size
            if self.active > WAITING_MAX or self.held > 4 * FRAME_MAX:
                raise Broken(f"{self.active} host calls at once, of {self.held >> 20} MB")
            if self.active > THREADS_MAX:
                self.queued.append(job)
                return
        threads().run(job)

    def done(self, size: int) -> None:
        with self.lock:
            self.active -= 1
            self.held -= size
            job = self.queued.pop(0) if self.queued and not self.over else None
        if job is not None:
            threads().run(job)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """The clock stands still while a host function works, and only then, or calls without end would stop it."""
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

    def work(self, key: int, work: Callable[[], Any], size: int) -> None:
        try:
            try:
                with self.working():
                    value = work()
            finally:
                self.done(size)
            self.reply({"op": "return", "call": key, "value": Packer().pack(value)})
        except Stop as stop:
            self.halt(stop)
        except BaseException as error:  # SystemExit or CancelledError of a tool: the cell waits for an answer
            self.reply_error(key, error)

    def reply_error(self, key: int, error: BaseException) -> None:
        data = getattr(error, "cell_data", None) or {}
        message = text_of(error)[:100_000]
        reply = {"op": "raise", "call": key, "type": type(error).__name__, "message": message}
        try:
            self.reply(dict(reply, data=Packer().pack(data)))
        except (TypeError, ValueError):
            self.reply(reply)

    def reply(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(Broken):
            self.frames.send(dict(message, id=self.request), valid=lambda: not self.over)

    def halt(self, stop: BaseException) -> None:
        """A host function said that all is over."""
        if self.stop is None:
            self.stop = stop
        self.stop_softly()

    # - what came of it

    def finish(self, reply: dict[str, Any]) -> Cell:
        if reply["op"] == "result":
            return self.result(reply)
        if reply["op"] == "failed":
            return self.cell(ok=False, error=f"{reply.get('type')}: {reply.get('message')}", status="error")
        if reply["op"] == "lost":
            return self.lost(reply["why"])
        return self.died(reply)

    def result(self, reply: dict[str, Any]) -> Cell:
        status, error, value = reply.get("status"), reply.get("error"), reply.get("value")
        if status not in ("ok", "error", "memory", "refused"):
            status = "error"
        if status == "error" and self.asked == "timeout":
            status = "timeout"
            error = (
                f"{error}\nthe cell was stopped after {self.limit:g} s (its limit); its variables are as it left them"
            )
        final: Any = UNSET
        if status == "ok" and "final" in reply:
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                final = unpack(reply["final"])
                if type(final) is str and not final.isascii():
                    final = printable(final)
        return self.cell(
            ok=status == "ok",
            stdout=short(reply.get("stdout"), self.sandbox.output_limit + 200),
            stdout_chars=whole(reply.get("chars")),
            value=None if value is None else short(value, self.sandbox.output_limit + 200),
            error=None if status == "ok" else short(error, self.sandbox.output_limit + 500),
            final=final,
            images=images_of(reply.get("images")),
            status=status,
        )

    def died(self, reply: dict[str, Any]) -> Cell:
        status, why = self.cause(reply)
        return self.cell(
            ok=False,
            stdout=short(reply.get("stdout"), self.sandbox.output_limit + 200),
            stdout_chars=whole(reply.get("chars")),
            error=f"{why}; the variables are as they were before this cell",
            status=status,
            restored=True,
        )

    def lost(self, why: str) -> Cell:
        text = "".join(self.streamed)
        status = {"timeout": "timeout", "interrupt": "error"}.get(self.asked, "lost")
        stopped = f"the cell did not stop after {self.limit:g} s (its limit)" if status == "timeout" else why
        return self.cell(
            ok=False,
            stdout=cut(text, self.sandbox.output_limit, ""),
            stdout_chars=len(text),
            error=f"{stopped}; the variables are lost{self.sandbox._kept()}",
            status=status,
        )

    def cause(self, reply: dict[str, Any]) -> tuple[str, str]:
        number = reply.get("signal")
        if self.hardened and number == signal.SIGKILL:
            if self.asked == "timeout":
                return "timeout", f"the cell was killed: it did not stop at its limit of {self.limit:g} s"
            return "error", "KeyboardInterrupt: the cell was killed, since it did not stop when asked to"
        if number == signal.SIGKILL and reply.get("memory") is not False:
            return "memory", "the cell was killed: it ran out of memory"
        if type(number) is int:
            return "crash", f"the cell's process died of {signal_name(number)}"
        return "crash", f"the cell ended its process (exit status {whole(reply.get('exit'))})"

    def cell(self, *, ok: bool, **fields: Any) -> Cell:
        return Cell(ok=ok, n=self.number, duration_ms=(time.monotonic() - self.began) * 1000, **fields)


def raiser(error: Exception) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


def short(value: Any, limit: int) -> str:
    """Text of bounded length that can be printed and stored: no lone surrogates."""
    text = value[:limit] if type(value) is str else ""
    return text if text.isascii() else printable(text)


def printable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def images_of(value: Any) -> list[dict[str, str]]:
    """Only what looks like images, as plain text."""
    found = []
    for item in value[:10] if type(value) is list else []:
        data = item.get("data") if type(item) is dict else None
        if type(data) is str and re.fullmatch(r"iVBORw0KGgo[A-Za-z0-9+/]*=*", data):  # the signature of PNG
            found.append({"media_type": "image/png", "data": data})
    return found


class Threads:
    """Daemon threads that wait a while for the next job: a host call should not cost the start of a thread."""

    LINGER = 2.0

    def __init__(self) -> None:
        from queue import SimpleQueue

        self.process = os.getpid()
        self.jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.lock = threading.Lock()
        self.idle = 0

    def run(self, job: Callable[[], None]) -> None:
        with self.lock:
            start = not self.idle
            self.idle -= not start
        self.jobs.put(job)
        if start:
            threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        from queue import Empty

        while True:
            try:
                job = self.jobs.get(timeout=self.LINGER)
            except Empty:
                with self.lock:
                    if self.idle:  # nobody counts on this thread
                        self.idle -= 1
                        return
                continue
            job()
            with self.lock:
                self.idle += 1


_threads: Threads | None = None


def threads() -> Threads:
    global _threads
    if _threads is None or _threads.process != os.getpid():  # threads do not survive a fork
        _threads = Threads()
    return _threads


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
    except ValueError:
        raise ValueError(f'{text!r} is not an amount of memory such as "512m" or "1g"') from None


class LocalChannel(Channel):
    """A session forked from the zygote: one socket, and signals to its process group."""

    def __init__(self, stream: Any, blob: int, group: int, zygote: ZygoteClient):
        super().__init__(stream)
        self.blob, self.group, self.zygote = blob, group, zygote
        self.lock = threading.Lock()

    def put(self, pieces: Iterable[bytes]) -> int:
        os.ftruncate(self.blob, 0)
        at = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = os.pwrite(self.blob, view, at)
                view, at = view[written:], at + written
        return at

    def signal(self, number: int) -> None:
        if self.inherited():
            return
        with self.lock:
            if self.group:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.group, number)

    def interrupt(self) -> None:
        self.signal(signal.SIGCONT)  # it may have stopped itself
        self.signal(signal.SIGINT)

    def kill_cell(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGUSR1)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        with self.lock:
            group, self.group = self.group, 0
        if group:
            if not self.inherited():
                self.zygote.reap(group)
            self.stream.close()
            os.close(self.blob)


class PlainChannel(Channel):
    """A worker started by itself. A thread carries its output to a socket, since Windows cannot wait for a pipe."""

    def __init__(self, setup: dict[str, Any]):
        import socket
        import subprocess
        import tempfile

        self.folder = tempfile.mkdtemp(prefix="rlm-sandbox-")
        ours, self.theirs = socket.socketpair()
        super().__init__(ours)
        setup = dict(setup, scratch=self.folder, fork_limit=0, confined=False)
        self.process = start_python(
            "plain_main(setup)", setup, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.carrier = threading.Thread(target=self.carry, daemon=True)
        self.carrier.start()

    def carry(self) -> None:
        with self.theirs, contextlib.suppress(OSError):
            while data := os.read(self.process.stdout.fileno(), 1 << 18):
                self.theirs.sendall(data)

    def send(self, data: memoryview) -> int:
        return os.write(self.process.stdin.fileno(), data[: 1 << 16])

    def interrupt(self) -> None:
        if sys.platform != "win32":
            self.process.send_signal(signal.SIGINT)

    def kill_cell(self) -> None:
        self.kill()

    def kill(self) -> None:
        if not self.inherited():
            self.process.kill()

    def close(self) -> None:
        self.stream.close()
        if self.inherited():
            return
        self.kill()
        self.process.wait()
        self.carrier.join(5)
        self.process.stdin.close()
        self.process.stdout.close()
        remove_tree(self.folder)


class ZygoteClient:
    """The host's side of a zygote."""

    def __init__(self, setup: dict[str, Any]):
        import socket

        self.lock = threading.RLock()
        self.asked = 0
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

    def answer(self) -> dict[str, Any]:

        try:
            answer = json.loads(self.socket.recv(65_536) or b"{}")
        except (OSError, ValueError):
            answer = {}
        if not answer or "error" in answer:
            raise SandboxError("the sandbox did not start: %s" % (answer.get("error") or self.complaint()))
        return dict(answer)

    def complaint(self) -> str:
        try:
            _, told = self.process.communicate(timeout=5)
        except Exception:
            self.process.kill()
            return "its process does not answer"
        lines = told.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"its process ended with status {self.process.returncode}"

    def spawn(self, request: dict[str, Any], descriptors: list[int]) -> int:
        import socket

        with self.lock:
            self.asked += 1
            message = to_json(dict(request, op="spawn", number=self.asked)).encode()
            if len(message) > REQUEST_MAX:
                raise SandboxError(
                    "the paths to be readable are too long, taken together", "give a common parent folder"
                )
            try:
                socket.send_fds(self.socket, [message], descriptors)
            except OSError as error:
                raise SandboxError("the sandbox did not start: its parent process has ended") from error
            while (answer := self.answer())["number"] != self.asked:
                self.reap(answer["pid"])  # the answer that an earlier call, interrupted, did not wait for
            return int(answer["pid"])

    def reap(self, pid: int) -> None:
        with self.lock, contextlib.suppress(OSError):
            self.socket.send(to_json({"op": "reap", "pid": pid}).encode())

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
spec = spec_from_file_location("rlm_sandbox", sys.argv[1])
module = sys.modules["rlm_sandbox"] = module_from_spec(spec)
spec.loader.exec_module(module)
import json
setup = json.loads(sys.argv[2])
sys.argv[:] = [""]
sys.path += setup["path"]
module.%s
"""


def start_python(main: str, setup: dict[str, Any], **streams: Any) -> Any:
    """A bare interpreter that runs a function of this file. Not with -I, which would ignore PYTHONHASHSEED."""
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
    arguments = [sys.executable, *flags, "-c", BOOTSTRAP % main, os.path.abspath(__file__), json.dumps(setup)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    given = {name: value for name, value in environment.items() if value}
    # A session of its own: Ctrl-C in a terminal goes to all that share the host's, and would end every REPL.
    return subprocess.Popen(arguments, env=given, cwd=os.path.abspath(os.sep), start_new_session=True, **streams)


_zygotes: dict[tuple[int, tuple[str, ...], bool], ZygoteClient] = {}
_zygotes_lock = threading.Lock()


def renew_locks() -> None:
    """In a fork of the host, where whoever held them does not exist."""
    global _zygotes_lock, _warm_lock
    _zygotes_lock, _warm_lock = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_locks)


def zygote_for(allowed_imports: tuple[str, ...], policy: bool) -> ZygoteClient:
    import atexit

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


def language_setup(allowed_imports: tuple[str, ...], policy: bool) -> dict[str, Any]:
    path = package_path(allowed_imports, policy)
    return {"allowed_imports": allowed_imports, "policy": policy, "path": path}


def package_path(allowed_imports: tuple[str, ...], policy: bool) -> list[str]:
    """Where RestrictedPython and the allowed packages lie; the worker's interpreter sees no other site-packages."""
    from importlib.util import find_spec

    found: list[str] = []
    for name in [*(["RestrictedPython"] if policy else []), *allowed_imports]:
        spec = find_spec(name.partition(".")[0])
        if spec is None:
            raise SandboxError(f"the package {name!r} is not installed", f"pip install {name}")
        for place in spec.submodule_search_locations or [spec.origin or ""]:
            folder = os.path.dirname(place)
            if folder and folder not in found:
                found.append(folder)
    return found


def is_native(name: str) -> bool:
    """Whether a package, or one that lies within it, is compiled."""
    from importlib.util import find_spec

    spec = find_spec(name.partition(".")[0])
    suffixes = (".so", ".pyd", ".dylib")
    if spec is None or not spec.submodule_search_locations:
        return spec is not None and str(spec.origin).endswith(suffixes)
    walks = (os.walk(folder) for folder in spec.submodule_search_locations)
    return any(file.endswith(suffixes) for walk in walks for _, _, files in walk for file in files)


def capabilities() -> dict[str, bool | str]:
    """Which layers of the local sandbox hold on this machine (`..._error` says why one does not), and its level."""
    with LocalSandbox() as sandbox:
        return {**sandbox.layers, "level": sandbox.level}


def warm(allowed_imports: Sequence[str] = ()) -> None:
    """Start the process that sessions are forked from, in the background."""

    def start() -> None:
        with contextlib.suppress(SandboxError):  # whoever makes a sandbox is told
            zygote_for(tuple(allowed_imports), True)

    if FORKS_SESSIONS and (os.getpid(), tuple(allowed_imports), True) not in _zygotes:
        threading.Thread(target=start, daemon=True).start()


def shutdown() -> None:
    """End the processes that sessions are forked from, and with them every local session of this process."""
    with _zygotes_lock:
        mine = [key for key in _zygotes if key[0] == os.getpid()]
        clients = [_zygotes.pop(key) for key in mine]
    for client in clients:
        client.close()


FORKS_SESSIONS = sys.platform == "linux"
FULL_LEVEL = ("landlock", "seccomp", "network_namespace", "no_new_privs", "rlimits")


class LocalSandbox(Sandbox):
    """A REPL in a confined child process. `require="full"` refuses to start unless every layer holds."""

    def __init__(
        self,
        *,
        cell_timeout: float = 30,
        memory: str | int = "1g",
        allowed_imports: Sequence[str] | None = None,
        workspace: str | Sequence[str] | None = None,
        require: str = "best",
        output_limit: int = 10_000,
        readable: Sequence[str] = (),
        snapshot: bool = True,
        layers: Sequence[str] = ("policy", "confinement"),
    ):
        super().__init__(cell_timeout=cell_timeout, output_limit=output_limit)
        if require not in ("best", "full"):
            raise ValueError(f'require is "best" or "full", not {require!r}')
        self.allowed_imports = tuple(allowed_imports or ())
        self.policy = "policy" in layers
        self.require = require
        folders = [workspace] if isinstance(workspace, str) else workspace or ()
        self.setup = {
            "memory": parse_size(memory),
            "workspace": [os.path.realpath(folder) for folder in folders],
            "readable": [os.path.realpath(path) for path in readable],
            "output_limit": output_limit,
            "fork_limit": 300 << 20 if snapshot else 0,
            "confined": "confinement" in layers,
        }
        with self._lock:
            self._started()

    def _hello(self, frames: Frames) -> None:
        super()._hello(frames)
        self._check_level()

    def _check_level(self) -> None:
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
        """What the operating system adds to the policy: "full", "partial", or nothing ("language-only")."""
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
            blob = os.memfd_create("rlm")
            ours.callback(os.close, blob)
            stream, their_stream = socket.socketpair()
            ours.callback(stream.close)
            theirs.callback(their_stream.close)
            read_only = os.open(f"/proc/self/fd/{blob}", os.O_RDONLY)
            theirs.callback(os.close, read_only)
            group = zygote.spawn(self.setup, [their_stream.fileno(), read_only])
            ours.pop_all()
        return LocalChannel(stream, blob, group, zygote)


# --- the Docker sandbox -----------------------------------------------------------------------------------------------

LABEL = "flat-rlm.sandbox"  # whose value names the process that made the container
LEAST_MEMORY = 24 << 20  # what the worker needs itself, with a fork and some room
IDLE_LIMIT = 86_400.0  # seconds that a container waits for a word from its host
FILES_MAX = 200_000  # looked at in a folder that is to be mounted, and hidden in it
MASKS_MAX = 1_000
PIDS_MAX = 64
THREAD_STACK = 8 << 20  # bytes of address space that a thread reserves
CONNECT_SECONDS = 10.0  # for the daemon to answer at all, to start a container, to stop one
DAEMON_SECONDS = 60
STOP_SECONDS = 5.0
POOL_LINGER = 120.0  # seconds that containers are kept warm after the last was taken


class DockerChannel(Channel):
    """A container's attached standard streams, in the frames in which the engine mixes them."""

    hard_grace = 1.5  # a container that a cell has filled with processes is slow to be heard

    def __init__(self, engine: Any, container: str, attached: Any):
        super().__init__(plain_stream(engine, attached))
        self.engine, self.container = engine, container
        self.attached = attached  # holds the response open
        self.arrived = bytearray()
        self.complaint = bytearray()  # the newest of what came on stderr: why a worker did not start
        self.lock = threading.Lock()
        self.gone = False

    def receive(self) -> bytes:
        data = bytes(self.stream.recv(1 << 18))
        self.arrived += data
        output = self.output()
        if data and not output:
            raise BlockingIOError
        return output

    def output(self) -> bytes:
        """What has arrived whole of the container's stdout."""
        found, at = [], 0
        while len(self.arrived) - at >= 8:
            kind, size = self.arrived[at], int.from_bytes(self.arrived[at + 4 : at + 8], "big")
            if len(self.arrived) - at < 8 + size:
                break
            part = bytes(memoryview(self.arrived)[at + 8 : at + 8 + size])
            at += 8 + size
            if kind == 1:
                found.append(part)
            else:
                self.complaint = (self.complaint + part)[-4000:]
        del self.arrived[:at]
        return b"".join(found)

    def alive(self) -> bool:
        """Whether the other end is still there, as far as this machine knows."""
        poller = select.poll()
        poller.register(self.stream.fileno(), getattr(select, "POLLRDHUP", 0))
        return not poller.poll(0)

    def signal(self, name: str) -> None:
        """Signal the container's first process. One that has ended, or a daemon that has, is found out by reading."""
        with contextlib.suppress(OSError):
            request(self.engine, "POST", self.container, "/kill", signal=name)

    def interrupt(self) -> None:
        self.signal("SIGINT")

    def kill_cell(self) -> None:
        self.signal("SIGUSR1")

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


def close_attached(attached: Any) -> None:
    """The response first, which complains later if the socket below it has gone."""
    stream = getattr(attached, "_sock", attached)  # which the response's end takes from `attached`
    with contextlib.suppress(OSError, ValueError):
        if (response := getattr(attached, "_response", None)) is not None:
            response.close()
        stream.close()
        attached.close()


def plain_stream(engine: Any, attached: Any) -> Any:
    """The socket below what the SDK returned for an attached container."""
    import socket
    import ssl

    stream = getattr(attached, "_sock", attached)
    if isinstance(stream, ssl.SSLSocket):
        return TLSStream(stream)
    if not isinstance(stream, socket.socket):
        raise SandboxError(
            f"containers cannot be driven over {engine.base_url}",
            "forward the socket: ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST; "
            "then DOCKER_HOST=unix:///tmp/docker.sock and docker_mount=none",
        )
    return stream


class TLSStream:
    """A TLS connection with the manners of a plain non-blocking socket, for a reader and a writer at once."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.lock = threading.Lock()
        self.fileno, self.setblocking = stream.fileno, stream.setblocking
        self.shutdown, self.close = stream.shutdown, stream.close

    def recv(self, size: int) -> bytes:
        """All that has arrived, since what TLS has read already does not make the descriptor readable."""
        import ssl

        parts: list[bytes] = []
        with self.lock, contextlib.suppress(ssl.SSLWantReadError):
            while part := self.stream.recv(size):
                parts.append(part)
            return b"".join(parts)
        if not parts:
            raise BlockingIOError
        return b"".join(parts)

    def send(self, data: memoryview) -> int:
        import ssl

        with self.lock, contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return int(self.stream.send(data[: 1 << 16]))
        return 0


# - the engine


def request(engine: Any, method: str, container: str, action: str = "", **parameters: str) -> int:
    """A request about a container, in less time than the SDK allows; the answer's status."""
    url = f"{engine.base_url}/v{engine.api_version}/containers/{container}{action}"
    with engine.request(method, url, params=parameters, timeout=STOP_SECONDS) as answer:
        return int(answer.status_code)


def remove_container(engine: Any, container: str) -> None:
    """Remove a container in whatever state it is; one that is gone is fine, one that is going is waited for."""
    with contextlib.suppress(OSError):
        if request(engine, "DELETE", container, force="1", v="1") == 409:
            request(engine, "POST", container, "/wait", condition="removed")


def engine_errors() -> tuple[type[Exception], ...]:
    """What the Docker SDK raises."""
    import docker.errors

    known: tuple[type[Exception], ...] = (OSError, docker.errors.DockerException)  # OSError: requests' own are such
    return known


_engines: dict[tuple[int, str], Any] = {}


def docker_engine() -> Any:
    """The low-level client of the daemon that DOCKER_HOST names; SandboxError with the next step if none answers."""
    key = (os.getpid(), os.environ.get("DOCKER_HOST", ""))
    if key not in _engines:
        _engines[key] = connect_engine()
        threading.Thread(target=sweep_containers, args=(_engines[key],), daemon=True).start()
    return _engines[key]


def connect_engine() -> Any:
    import atexit

    try:
        import docker

        connect = docker.from_env
    except (ImportError, AttributeError) as error:
        folder = getattr(sys.modules.get("docker"), "__path__", None)
        why = f"{next(iter(folder))} hides it" if folder else str(error)
        raise SandboxError(
            f"the Docker SDK for Python cannot be imported: {why}",
            "rename that folder, or run elsewhere" if folder else "pip install docker",
        ) from None
    troubles: tuple[type[Exception], ...] = (*engine_errors(), ValueError)
    try:
        engine = connect(timeout=CONNECT_SECONDS, max_pool_size=100).api
    except troubles as error:
        raise no_engine(error) from None
    engine.timeout = DAEMON_SECONDS
    engine.is_podman = "Podman" in str(engine.version().get("Components"))
    atexit.register(leave_nothing, engine, os.getpid())
    return engine


def no_engine(error: BaseException) -> SandboxError:
    where = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if "Permission denied" in str(error):
        return SandboxError(
            f"no permission to use Docker at {where}", "sudo usermod -aG docker $USER, then log in again"
        )
    if "paramiko" in str(error):
        return SandboxError(f"the SDK cannot connect to {where}", 'pip install "docker[ssh]"')
    told = f" ({first_line(error)})" if os.environ.get("DOCKER_HOST") else ""
    return SandboxError(
        f"no Docker daemon answers at {where}{told}",
        "start it (sudo systemctl start docker), set DOCKER_HOST, or --env local",
    )


# - whose container it is


def owner_label(pid: int) -> str:
    """A process of this machine in words that no later process on this or another machine shares."""
    return f"{machine_id()} {pid} {start_of(pid)}"


def machine_id() -> str:
    """The machine since its start and, as pids mean nothing elsewhere, the PID namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        import platform

        return platform.node().replace(" ", "_") or "unknown"


def start_of(pid: int) -> str:
    """When a process started, as its kernel counts; "" where that cannot be seen."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


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


def sweep_containers(engine: Any) -> None:
    """Remove the containers that dead processes of this machine have left."""
    for container, label in labelled(engine):
        machine, pid, started = [*label.split(" "), "", ""][:3]
        if machine == machine_id() and pid.isdigit() and not is_alive(int(pid), started):
            remove_container(engine, container)


def leave_nothing(engine: Any, pid: int) -> None:
    """As this process ends: remove what an interrupt left half made."""
    if os.getpid() == pid:
        for container, label in labelled(engine):
            if label == owner_label(pid):
                remove_container(engine, container)


def labelled(engine: Any) -> list[tuple[str, str]]:
    try:
        found = engine.containers(all=True, filters={"label": LABEL})
    except engine_errors():
        return []
    return [(one["Id"], (one.get("Labels") or {}).get(LABEL, "")) for one in found]


# - the sandbox


WORKER_HEAD = """\
import sys
if sys.version_info < (3, 8):
    sys.exit("its Python %s is older than 3.8" % sys.version.split()[0])
sys.path[:] = [path for path in sys.path if path]
import binascii, json, os, random, types, zlib
setup = json.loads(sys.argv[1])
sys.argv[:] = [""]
for folder in setup["folders"]:
    try:
        os.chdir(folder)
        break
    except OSError:
        pass
random.seed(0)
module = sys.modules["rlm_worker"] = types.ModuleType("rlm_worker")
"""


def worker_program() -> str:
    """The worker's part of this file as a program for `python3 -c`; its setup follows as JSON."""
    import zlib

    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    imports = text[text.index("from __future__") : text.index("__all__")]
    section = text[text.index("# --- the worker") : text.index("# --- end of the worker")]
    packed = binascii.b2a_base64(zlib.compress((imports + section).encode(), 9), newline=False).decode()
    return (
        f"{WORKER_HEAD}source = zlib.decompress(binascii.a2b_base64({packed!r})).decode()\n"
        "exec(compile(source, '<worker>', 'exec'), module.__dict__)\n"
        "module.container_main(setup)\n"
    )


# What the engine says of a container that it does not make or start; the message; the next step.
REFUSALS = (
    (r"executable file not found", "the image {box.image!r} has no python", 'docker_image = "python:3.11-slim"'),
    (r"[Uu]nknown (or invalid )?runtime|runtime .{1,100} not found", "the engine has no runtime {box.runtime!r}",
     "docker info lists the runtimes; docker_runtime = one of them"),
    (r"[Mm]emory", "the engine refuses this amount of memory: {told}", 'docker_memory = "512m"'),
    (r"CPU", "the engine refuses this number of processors: {told}", "docker_cpus = 1.0"),
    (r"no space left", "the engine's disk is full: {told}", "docker system df shows what takes the room"),
    (r"bind source path|mount", "{box.workspace} cannot be mounted: {told}", 'docker_mount = "none"'),
    (r"refused|Connection|timed out|No such file", "the Docker daemon does not answer any more",
     "start it again (sudo systemctl start docker); a run that had begun goes on with: rlm resume ID"),
)  # fmt: skip


class DockerSandbox(Sandbox):
    """A REPL in a hardened container that is kept for the sandbox's life, driven over its attached streams.

    `workspace` is mounted read-only at /workspace (a local daemon only), what may hold credentials in it hidden.
    `pool`: how many containers of this kind are kept warm for the next ones.
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
        super().__init__(cell_timeout=cell_timeout, output_limit=output_limit)
        self.image, self.cpus, self.memory, self.runtime = image, cpus, parse_size(memory), runtime
        self.network_disabled, self.pool, self.on_progress = network_disabled, pool, on_progress
        self.workspace = os.path.realpath(workspace) if workspace else None
        self.weights: dict[str, int] = {}
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
        return "container"

    def execute(self, code: str, **options: Any) -> Cell:
        """As everywhere; SandboxError if the cell was lost because the daemon has gone."""
        cell = super().execute(code, **options)
        if cell.status == "lost":
            try:
                self.engine.ping()
            except engine_errors() as error:
                raise self._failure(error) from None
        return cell

    def reset(self) -> None:
        self.weights.clear()
        super().reset()

    def _send_blob(self, name: str, header: dict[str, Any], pieces: Iterator[bytes]) -> None:
        """Refuse what cannot fit, before the kernel does so by killing."""
        weights = {**self.weights, name: header["weight"]}
        needed = sum(weights.values())
        if needed > self.memory - LEAST_MEMORY:
            megabytes = (needed + LEAST_MEMORY + (48 << 20)) >> 20
            raise SandboxError(
                f"{name!r} needs about {needed >> 20} MB, the container has {self.memory >> 20} MB",
                f'docker_memory = "{megabytes}m"',
            )
        super()._send_blob(name, header, pieces)
        self.weights = weights

    # - starting

    def _open(self) -> Channel:
        return take_warm(self._kind(), self.pool, self._start) if self.pool else self._start()

    def _kind(self) -> tuple[Any, ...]:
        """What containers have in common that can stand in for each other."""
        limits = (self.image, self.cpus, self.memory, self.network_disabled, self.runtime)
        return (os.getpid(), id(self.engine), *limits, self.workspace, self.output_limit)

    def _hello(self, frames: Frames) -> None:
        channel = frames.channel
        try:
            super()._hello(frames)
        except SandboxError as error:
            told = bytes(getattr(channel, "complaint", b"")).decode("utf-8", "replace").strip().splitlines()
            raise SandboxError(
                f"the image {self.image!r} did not start: {told[-1] if told else error}",
                f"try: docker run --rm {self.image} python3 -V",
            ) from None
        self.layers["container"] = True

    def _start(self) -> DockerChannel:
        """A container whose worker is about to say hello. One that does not start is not removed by itself."""
        error: Exception | None = None
        for python in ("python3", "python"):
            name = f"rlm-{os.urandom(8).hex()}"
            try:
                return self._attach(name, python)
            except engine_errors() as refusal:
                remove_container(self.engine, name)
                error = refusal
                if "executable file not found" not in str(refusal):
                    break
            except BaseException:
                remove_container(self.engine, name)
                raise
        raise self._failure(error) from None

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
            return DockerChannel(self.engine, name, attached)
        except BaseException:
            close_attached(attached)
            raise

    def _options(self, python: str) -> dict[str, Any]:
        mounts, empty = self._mounts()
        setup = {
            "output_limit": self.output_limit,
            "fork_limit": min(300 << 20, self.memory // 2),
            "idle_limit": IDLE_LIMIT,
            "most": self.memory + PIDS_MAX * THREAD_STACK,  # what can never be had is a MemoryError, not a kill
            "folders": ["/workspace", "/tmp"] if mounts else ["/tmp"],
        }
        return {
            "image": self.image,
            "command": None,
            "entrypoint": [python, "-s", "-c", worker_program(), to_json(setup)],
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

    def _limits(self, mounts: list[Any], empty: list[str]) -> dict[str, Any]:
        """All that the engine is told to withhold."""
        from docker.types import LogConfig, Ulimit

        bounds = {"core": 0, "nofile": 256, "fsize": 64 << 20}
        hidden = "ro,noexec,nosuid,nodev,size=4k"
        if self.engine.is_podman:
            bounds["nproc"] = 4096  # its own default may be more than it can give
            hidden += ",notmpcopyup"  # or it would copy what is to be hidden
        limits: dict[str, Any] = {
            "network_mode": "none" if self.network_disabled else "bridge",
            "read_only": True,
            "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,mode=1777,size=64m", **dict.fromkeys(empty, hidden)},
            "mounts": mounts,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "pids_limit": PIDS_MAX,
            "mem_limit": self.memory,
            "memswap_limit": self.memory,
            "nano_cpus": int(self.cpus * 1e9),
            "ipc_mode": "none",
            "init": False,  # the worker's supervisor is one
            "log_config": LogConfig(type="none"),
            "ulimits": [Ulimit(name=name, soft=value, hard=value) for name, value in bounds.items()],
            "auto_remove": True,
        }
        return {**limits, "runtime": self.runtime} if self.runtime else limits

    def _mounts(self) -> tuple[list[Any], list[str]]:
        """The working directory with nothing in place of the files, and the folders, that may hold credentials."""
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
        """Fetch the image, saying so; SandboxError if no registry can be reached."""
        say = self.on_progress or (lambda line: print(line, file=sys.stderr))
        say(f"docker: the image {self.image} is not here; pulling it")
        refusal = ""
        try:
            for step in self.engine.pull(self.image, stream=True, decode=True):  # to its end, or it stays open
                refusal = step.get("error", refusal)
                if "progress" not in step and step.get("status"):
                    say(f"docker: {step['status']}")
            if refusal:
                raise OSError(refusal)
        except engine_errors() as error:
            raise SandboxError(
                f"the image {self.image!r} is not here and cannot be pulled ({first_line(error)})",
                f"docker pull {self.image}, or docker_image = an image that `docker images` lists",
            ) from None

    def _failure(self, error: Exception | None) -> SandboxError:
        """The engine's refusal, with the next step."""
        told = first_line(error)
        for pattern, message, hint in REFUSALS:
            if re.search(pattern, told):
                return SandboxError(message.format(box=self, told=told), hint)
        return SandboxError(f"the container cannot be started: {told}", "docker info")


def first_line(error: BaseException | None) -> str:
    explanation = getattr(error, "explanation", None) or error
    return str(explanation).strip().split("\n")[0][:300]


def container_user() -> str:
    """The caller's own ids, so that a mounted folder can be read; nobody's where those are root's."""
    user = getattr(os, "getuid", lambda: 65534)() or 65534
    group = getattr(os, "getgid", lambda: 65534)() or 65534
    return f"{user}:{group}"


def secrets_in(folder: str) -> tuple[list[str], list[str]]:
    """Files and folders in a folder that may hold credentials, relative to it, or are linked to by such names."""
    files: set[str] = set()
    folders: set[str] = set()
    seen = 0
    mounted = mount_points()
    for place, below, names in os.walk(folder):
        seen += len(below) + len(names)
        inside = [".git"] if ".git" in os.path.relpath(place, folder).lower().split(os.sep) else []
        secret = {name for name in (*below, *names) if may_hold_secrets([*inside, name])}
        for name in secret:
            real = os.path.realpath(os.path.join(place, name))
            if within(real, folder) and os.path.exists(real):
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


def mount_points() -> set[str]:
    try:
        with open("/proc/self/mountinfo") as file:
            return {line.split()[4] for line in file}
    except OSError:
        return set()


# - containers kept warm

_warm: dict[tuple[Any, ...], list[DockerChannel]] = {}
_filling: set[tuple[Any, ...]] = set()
_warm_lock = threading.Lock()


def take_warm(kind: tuple[Any, ...], size: int, start: Callable[[], DockerChannel]) -> DockerChannel:
    """A container that waits for its sandbox, or a fresh one; the places that this leaves are filled meanwhile."""
    import atexit

    with _warm_lock:
        if not _warm:
            atexit.register(close_warm)
        waiting = _warm.setdefault(kind, [])
        channel = waiting.pop() if waiting else None
        fill = kind not in _filling
        _filling.add(kind)
    if fill:
        threading.Thread(target=fill_warm, args=(kind, size, start)).start()
    if channel is not None and not channel.alive():
        channel.close()
        channel = None
    return channel or start()


def fill_warm(kind: tuple[Any, ...], size: int, start: Callable[[], DockerChannel]) -> None:
    """Start what is missing; what nobody takes for a while is given up."""
    with contextlib.suppress(SandboxError):  # whoever needs a container meets the error itself
        while is_short(kind, size):
            channel = start()
            wait_for(channel.fileno(), START_LIMIT)  # for its hello: who takes it is not to wait
            with _warm_lock:
                wanted = kind in _warm
                if wanted:
                    _warm[kind].append(channel)
            if not wanted:
                channel.close()
                continue
            lingers = threading.Timer(POOL_LINGER, give_up, args=(kind, channel))
            lingers.daemon = True
            lingers.start()
        return
    with _warm_lock:
        _filling.discard(kind)


def is_short(kind: tuple[Any, ...], size: int) -> bool:
    """Whether there are too few; if not, the filling is over, with the same look."""
    with _warm_lock:
        short = kind in _warm and len(_warm[kind]) < size
        if not short:
            _filling.discard(kind)
        return short


def give_up(kind: tuple[Any, ...], channel: DockerChannel) -> None:
    with _warm_lock:
        waits = channel in _warm.get(kind, ())
        if waits:
            _warm[kind].remove(channel)
    if waits:
        channel.close()


def close_warm() -> None:
    """End the containers that wait."""
    with _warm_lock:
        waiting = [channel for kind, channels in _warm.items() if kind[0] == os.getpid() for channel in channels]
        _warm.clear()
    for channel in waiting:
        channel.close()


# --- the self-test ----------------------------------------------------------------------------------------------------

SELF_TEST: dict[str, tuple[str, Callable[[Cell], bool]]] = {
    "runs code": ("print('hello')\n6 * 7", lambda cell: (cell.stdout, cell.value) == ("hello\n", "42")),
    "calls the host": ("ask('x') * 2", lambda cell: cell.value == "'XX'"),
    "stops a loop": ("kept = 1\nwhile True: pass", lambda cell: cell.status == "timeout" and not cell.restored),
    "kills what does not stop": (
        "kept = 2\nsum(range(10**13))",
        lambda cell: cell.status == "timeout" and cell.restored,
    ),
    "keeps variables": ("kept", lambda cell: cell.value == "1"),
    "limits memory": ("x = 'x' * 10**10", lambda cell: cell.status == "memory"),
    "opens no files": ("open('/etc/passwd').read()", lambda cell: not cell.ok),
    "has no network": ("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)", lambda cell: not cell.ok),
    "starts no programs": ("import subprocess\nsubprocess.run(['true'])", lambda cell: not cell.ok),
    "returns data": ("FINAL({'a': (1, b'x')})", lambda cell: cell.final == {"a": (1, b"x")}),
}


def self_test() -> int:
    """Show which layers hold here, and run a short battery; 0 if all of it went well."""
    failed = 0
    with LocalSandbox(cell_timeout=1) as sandbox:
        print(f"level: {sandbox.level}")
        for name, holds in sandbox.layers.items():
            print(f"  {name}: {holds}")
        for name, (code, expected) in SELF_TEST.items():
            cell = sandbox.execute(code, functions={"ask": str.upper})
            passed = expected(cell) or (not FORKS_SESSIONS and name in ("kills what does not stop", "keeps variables"))
            failed += not passed
            print(f"{'ok    ' if passed else 'FAILED'} {name} ({cell.duration_ms:.0f} ms)")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(self_test() if sys.argv[1:] == ["--self-test"] else "usage: python rlm_sandbox.py --self-test")
