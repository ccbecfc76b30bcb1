# /// script
# requires-python = ">=3.10"
# ///
"""What runs inside a sandbox: a REPL that keeps its variables, speaks frames, and confines itself first.

`rlm_sandbox` starts it in a child process or sends this file into a container, and drives it. It needs the standard
library alone and, since a container may have an old one, Python 3.8. Not for import by anything else: what it does to
a process (limits, signals, streams) is meant for one of its own.

The language layer of the local sandbox, `rlm_policy`, is loaded from the file beside this one. It has to offer
`policy_preload(allowed_imports)`, which may be called again when more modules have been imported, and
`PolicyLanguage(setup)` with the methods of `PlainLanguage`.

The file reads in this order: codec and wire, output, host calls, worker, confinement, zygote.
"""

from __future__ import annotations

import array
import binascii
import collections
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
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any, List, NamedTuple, NoReturn, Tuple

# --- codec and wire ---------------------------------------------------------------------------------------------------

FRAME_MAX = 8 << 20  # bytes in one frame, either way
VALUE_MAX = 8_000_000  # of a value in it
PART_COST = 80  # of these bytes for each item, key and container, beyond their text: so much it takes to read them
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
            self.take(4)
            return value
        if depth > DEPTH_MAX:
            raise ValueError(f"nested more than {DEPTH_MAX} deep")
        if issubclass(kind, str):
            text = value if kind is str else str.__str__(value)
            self.take(len(text) if text.isascii() else max(len(text), sys.getsizeof(text) // 2))
            return text
        if issubclass(kind, int):
            return self.integer(int.__add__(value, 0))
        if issubclass(kind, float):
            number = float.__float__(value)
            self.take(24)
            return number if math.isfinite(number) else self.tagged("float", repr(number))
        if issubclass(kind, dict):
            return self.mapping(list(dict.items(value)), depth)
        for base, tag in SEQUENCES:
            if issubclass(kind, base):
                self.take(2, 2)
                if base.__len__(value) * PART_COST > self.room:
                    raise ValueError(TOO_LARGE)
                items = [self.pack(item, depth + 1) for item in base.__iter__(value)]
                return self.tagged(tag, items) if tag else items
        if issubclass(kind, (bytes, bytearray)):
            self.take(len(value))
            return self.tagged(kind.__name__, binascii.b2a_base64(bytes(value), newline=False).decode())
        raise TypeError(
            f"{kind.__name__} is not plain data (None, bool, int, float, str, bytes, list, tuple, set, dict)"
        )

    def tagged(self, kind: str, body: Any) -> Any:
        self.take(20, 4)
        return {"$": kind, "v": body}

    def mapping(self, items: list[tuple[Any, Any]], depth: int) -> Any:
        if all(type(key) is str and key != "$" for key, _ in items):
            self.take(sum(len(key) + 3 for key, _ in items), 2 + len(items))
            return {key: self.pack(item, depth + 1) for key, item in items}
        self.take(2 * len(items), 2 + len(items))
        return self.tagged("dict", [[self.pack(key, depth + 1), self.pack(item, depth + 1)] for key, item in items])

    def integer(self, value: int) -> Any:
        """Beyond 2**63 in hexadecimal. Beyond 4,300 digits nobody could print it, so it does not travel as a number."""
        if value.bit_length() > 14_000:
            raise ValueError("an integer of more than 4,200 digits: use hex() or a float")
        self.take(value.bit_length() // 4 + 2)
        return value if -(2**63) <= value < 2**63 else self.tagged("int", hex(value))

    def take(self, size: int, parts: int = 1) -> None:
        self.room -= size + PART_COST * parts
        if self.room < 0:
            raise ValueError(TOO_LARGE)


TOO_LARGE = (
    f"larger than the {VALUE_MAX // 10**6} MB that one message may carry (each item counts {PART_COST} bytes more):"
    " keep it in a variable, and pass or print a part or a summary of it"
)
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
    if kind == "int" and type(body) is str and len(body) < 3510:  # what `Packer.integer` makes
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
    if len(keys) > 100 and max(collections.Counter(map(hash, keys)).values()) > 100:
        raise ValueError("keys whose hashes collide")
    return keys


to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode_frame(message: dict[str, Any]) -> bytes:
    body = to_json(message).encode("ascii")
    if len(body) > FRAME_MAX:
        raise ValueError(TOO_LARGE)
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


def wait_for(descriptor: int, seconds: float, writing: bool = False) -> bool:
    if not hasattr(select, "poll"):
        sets = select.select([] if writing else [descriptor], [descriptor] if writing else [], [], seconds)
        return bool(sets[0] or sets[1])
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT if writing else select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))


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
            images = self.images()
            ended["images"] = images if images and len(to_json(ended)) < VALUE_MAX // 2 else []
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
            packed = Packer().pack(self.final)
            if len(to_json(packed)) > VALUE_MAX:
                raise ValueError(TOO_LARGE)
            return {"final": packed}
        except (TypeError, ValueError, RecursionError):
            limit = FRAME_MAX // 16
            if isinstance(self.final, int):
                text = hex(self.final)
            elif type(self.final) in SIZED and type(self.final) is not str:
                text = long_repr(self.final, limit)
            else:
                text = str.__str__(str(self.final))
            return {"final": cut(text, limit, "")}

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
        sizes = itertools.accumulate(len(picture) if type(picture) is bytes else 0 for picture in pictures)
        small = [p for p, size in zip(pictures, sizes) if type(p) is bytes and size < FRAME_MAX // 4]
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
    layers: dict[str, bool | str] = {}
    attempt(layers, "socket_filter", filter_container, setup["network"])
    setup["own_init"] = setup["contained"] = os.getpid() == 1  # not getppid() below: whoever loses its parent gets 1
    worker = os.fork()
    if worker:
        os.close(wire.writer)
        supervise(worker, [wire.reader], setup["idle_limit"])
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (setup["most"], setup["most"]))
    write_to("/tmp", "/workspace")
    Worker(wire, PlainLanguage(), setup).start(layers)


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
SOCKET_CALLS = ((41, 53), (198, 199))  # socket, socketpair
# What a container's worker is refused. With io_uring sockets could be had past any filter.
CONTAINER_REFUSED = """
shmget 29 194, shmat 30 196, shmctl 31 195, shmdt 67 197, semget 64 190, semop 65 193, semctl 66 191,
semtimedop 220 192, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180, mq_unlink 241 181,
mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184, mq_getsetattr 245 185, io_uring_setup 425 425,
io_uring_enter 426 426, io_uring_register 427 427
"""
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
    if uid == 0 and not layers["user_namespace"]:
        with contextlib.suppress(OSError):
            os.setresuid(0, 0, 0)  # so that the host may set the limits of this process


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
Filter = List[Tuple[int, int, int, int]]
LOAD, EQUAL, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
ALLOW, REFUSE, UNKNOWN, KILL_PROCESS = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM, ENOSYS
NO_FAMILY = 0x00050061  # EAFNOSUPPORT


def filter_system_calls(kill_is_safe: bool) -> str:
    """seccomp: an allow-list. Processes may be made only by a plain fork, memory is never writable and executable."""
    return install_filter(packed_filter(kill_is_safe))


def install_filter(code: bytes) -> str:
    import ctypes

    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call_libc("prctl", 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    return f"{len(code) // 8} instructions"


@functools.lru_cache(maxsize=None)
def packed_filter(kill_is_safe: bool) -> bytes:
    return packed(build_filter(*machine_numbers(), kill_is_safe))


def packed(program: Filter) -> bytes:
    return b"".join(struct.pack("HBBI", *step) for step in program)


def machine_numbers() -> tuple[int, int]:
    """Which column of the tables of system calls is this machine's, and how the kernel names it."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}")
    return MACHINES[machine]


def filter_container(network: bool) -> str:
    """Beside the engine's own filter, which lets these pass: sockets but those of the machine itself and, with a
    network, of IPv4 and IPv6; shared memory, semaphores and message queues, which would outlive the cell."""
    load_libc()
    column, architecture = machine_numbers()
    program = filter_head(column, architecture)
    families = (1, 2, 10) if network else (1,)  # AF_UNIX, AF_INET, AF_INET6
    for number in SOCKET_CALLS[column]:
        program += on_call(number, [*allow_values(0, families)[:-1], (RETURN, 0, 0, NO_FAMILY)])
    for entry in CONTAINER_REFUSED.split(","):
        program += on_call(int(entry.split()[1 + column]), [(RETURN, 0, 0, REFUSE)])
    return install_filter(packed([*program, (RETURN, 0, 0, ALLOW)]))


def filter_head(column: int, architecture: int) -> Filter:
    """The start of a filter: with the numbers of another machine every call would be another one."""
    program: Filter = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL_PROCESS), (LOAD, 0, 0, 0)]
    if column == 0:  # the x32 numbers name the same calls a second time
        program += [(ANY_BIT, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]
    return program


def build_filter(column: int, architecture: int, kill_is_safe: bool) -> Filter:
    program = filter_head(column, architecture)
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
    """Read any limit; set the soft one for descriptors (7), below its hard one. That of memory is the host's to set."""
    is_reading: Filter = [low_word(2), (EQUAL, 0, 3, 0), high_word(2), (EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW)]
    is_other: Filter = [low_word(0), (EQUAL, 1, 0, 0), (RETURN, 0, 0, REFUSE)]
    return [*is_reading, *is_other, *allow_values(1, (7,))]


# --- the zygote: a process with everything imported, from which sessions are forked (Linux) ---------------------------

# At once: what lies in, or needs, libraries that the confined process cannot read. The rest when nothing is asked for.
PRELOADED = "_strptime copy dataclasses decimal hashlib random string uuid zlib"
PRELOADED_LATER = (
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

    for name in [*PRELOADED.split(), *setup["allowed_imports"]]:
        importlib.import_module(name)
    if setup["policy"]:
        load_policy().policy_preload(tuple(setup["allowed_imports"]))
    gc.freeze()  # what a collection would look at, a fork would copy


def load_policy() -> Any:
    """The language layer, from the file beside this one: no folder of ours is on the path."""
    from importlib.util import module_from_spec, spec_from_file_location

    name = "rlm_policy"
    if name not in sys.modules:
        spec = spec_from_file_location(name, os.path.join(os.path.dirname(__file__), f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


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
        self.groups: dict[int, str] = {}  # the control groups that sessions are in
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
        later = PRELOADED_LATER.split()
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
                load_policy().policy_preload(tuple(self.setup["allowed_imports"]))

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
        return {"pid": session.pid, "number": request["number"], "group": self.groups.get(session.pid, "")}

    def hand_over(self, session: Session, request: dict[str, Any], descriptors: list[int]) -> bool:
        """Tell a session whose worker it is to start. One that cannot be told is ended."""
        import socket

        if group := self.groups.get(session.pid):
            limit_group(group, request["memory"] + GROUP_ROOM)
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
        if confined and (group := memory_group(session.pid)):
            self.groups[session.pid] = group
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
            with contextlib.suppress(OSError):  # a process that is not quite gone: `memory_group` looks again
                os.rmdir(self.groups.pop(pid, ""))

    def end(self) -> NoReturn:
        for pid in list(self.sessions):
            self.reap(pid)
        remove_tree(self.setup["base"])
        os._exit(0)


GROUP_ROOM = SCRATCH_SIZE + (32 << 20)  # bytes that a control group counts beyond a session's own: files, page tables
GROUP_PREFIX = "rlm-session-"


def memory_group(pid: int) -> str:
    """A fresh control group, which can be limited, with the process in it; "" where none can be had."""
    for parent in group_parents():
        group = os.path.join(parent, f"{GROUP_PREFIX}{os.getpid()}-{pid}")
        try:
            for name in os.listdir(parent):
                if name.startswith(GROUP_PREFIX) and not os.path.exists(f"/proc/{name.split('-')[2]}"):
                    remove_group(os.path.join(parent, name))  # of a process that was killed
            os.mkdir(group)
        except OSError:
            continue
        try:
            limit_group(group, CONTEXT_ROOM)
            with open(os.path.join(group, "cgroup.procs"), "w") as procs:
                procs.write(str(pid))
            return group
        except OSError:
            remove_group(group)
    return ""


def remove_group(group: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(group)


@functools.lru_cache(maxsize=None)
def group_parents() -> list[str]:
    """Where a group with a limit of its own may be made: beside or below this process's own, in version 2 or 1."""
    own = {}
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            _, kinds, path = line.rstrip("\n").split(":", 2)
            own["2" if not kinds else "1" if "memory" in kinds.split(",") else ""] = path
    found = []
    with contextlib.suppress(OSError), open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            root, place, kind, options = fields[3], fields[4], fields[fields.index("-") + 1], fields[-1].split(",")
            version = "2" if kind == "cgroup2" else "1" if kind == "cgroup" and "memory" in options else ""
            if not version or version not in own:
                continue
            folder = os.path.normpath(os.path.join(place, os.path.relpath(own[version], root)))
            while within(folder, place):
                if version == "1" or has_memory(folder):
                    found.append(folder)
                if folder == place:
                    break
                folder = os.path.dirname(folder)
    return found


def has_memory(folder: str) -> bool:
    """Whether the groups below one of version 2 have limits of memory."""
    with contextlib.suppress(OSError), open(os.path.join(folder, "cgroup.subtree_control")) as file:
        return "memory" in file.read().split()
    return False


def limit_group(group: str, limit: int) -> None:
    """OSError if the group takes no limit. Swap counts with memory where that can be said."""
    if os.path.exists(os.path.join(group, "memory.max")):
        names = {"memory.swap.max": 0, "memory.max": limit}
    else:
        names = {"memory.memsw.limit_in_bytes": limit, "memory.limit_in_bytes": limit}
    for last in (False, True):  # version 1 wants the one raised first, and the other lowered first
        for name, value in names.items():
            try:
                with open(os.path.join(group, name), "w") as file:
                    file.write(str(value))
            except OSError:
                if last and name in ("memory.max", "memory.limit_in_bytes"):
                    raise


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
    setup["grow"] = raise_memory_limit if layers["rlimits"] and sys.platform != "linux" else None
    setup["can_kill"] = not setup["confined"] or may_kill(layers)
    Worker(wire, load_policy().PolicyLanguage(setup) if setup["policy"] else PlainLanguage(), setup).start(layers)


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
