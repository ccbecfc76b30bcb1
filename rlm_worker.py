# /// script
# requires-python = ">=3.10"
# ///
"""What runs inside a sandbox: a REPL that keeps its variables, exchanges frames with the host, and confines itself.

`rlm_sandbox` starts this file in a child process, or sends it into a container, and drives it. It needs only the
standard library and, since a container may have an old Python, version 3.8. Do not import it for anything else: it
changes the process it runs in (limits, signals, streams).

The local sandbox's language layer, `rlm_policy`, is loaded from the file beside this one. It provides
`policy_preload(allowed_imports)`, which may be called again after more imports, and `PolicyLanguage(setup)`, a
`PlainLanguage`.

Order of the file: codec and frames, output, host calls, files, worker, confinement, zygote.
"""

from __future__ import annotations

import binascii
import builtins
import codecs
import collections
import contextlib
import errno
import functools
import gc
import importlib.util
import io
import itertools
import json
import math
import mmap
import os
import random
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Dict, List, NoReturn, Tuple, Union

if sys.platform != "win32":
    import fcntl
    import resource
if TYPE_CHECKING:
    from socket import socket

Frame = Dict[str, Any]  # a message's fields: plain data, which JSON carries
Setup = Dict[str, Any]  # what the host says of a session when it starts; also from JSON
Layers = Dict[str, Union[bool, str]]  # of the confinement: whether each holds, and `..._error`: why not
StrPath = Union[str, "os.PathLike[str]"]

# --- codec and frames -------------------------------------------------------------------------------------------------

FRAME_MAX = 8 << 20  # bytes in one frame, either way
VALUE_MAX = 8_000_000  # of a value in it
PART_COST = 80  # bytes charged for each item, key and container beyond their text: what it costs to read them
DEPTH_MAX = 100  # nested containers in a value that is sent
OUTPUT_HALF = 5_000_000  # bytes of a cell's output kept at each end
OUTPUTS_MAX = 100_000_000  # characters kept in all of `_out`
NAMES_MAX = 5_000  # variables that are listed
COMMIT = b"c"  # marks a cell process's last frame; "." the others
COMMITTED = b"done"  # the checkpoint's last word to the cell process that takes over
QUEUED_FRAMES_MAX = 4  # frames held back for a cell process that does not read
SPARE_DESCRIPTORS = 16  # that cells cannot use


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

    def __init__(self, budget: int = VALUE_MAX):
        self.budget = budget

    def pack(self, value: Any, depth: int = 0) -> object:
        """The value for JSON; TypeError if it is not plain data, ValueError if it is too large or too deep."""
        cls = type(value)
        if value is None or cls is bool:
            return self.charge(4, value)
        if depth > DEPTH_MAX:
            raise ValueError(f"nested more than {DEPTH_MAX} deep")
        if issubclass(cls, str):
            text = str.__str__(value)
            return self.charge(len(text) if text.isascii() else max(len(text), sys.getsizeof(text) // 2), text)
        if issubclass(cls, int):
            return self.integer(int.__add__(value, 0))
        if issubclass(cls, float):
            number = float.__float__(value)
            self.charge(24)
            return number if math.isfinite(number) else self.tagged("float", repr(number))
        if issubclass(cls, dict):
            self.charge(0, parts=dict.__len__(value))
            return self.mapping(list(dict.items(value)), depth)
        for base, tag in CONTAINERS:
            if issubclass(cls, base):
                self.charge(2, parts=2)
                if base.__len__(value) * PART_COST > self.budget:
                    raise ValueError(TOO_LARGE)
                items = [self.pack(item, depth + 1) for item in base.__iter__(value)]
                return self.tagged(tag, items) if tag else items
        if issubclass(cls, (bytes, bytearray)):
            kind: type[bytes | bytearray] = bytes if issubclass(cls, bytes) else bytearray
            self.charge(kind.__len__(value))
            return self.tagged(kind.__name__, to_base64(kind.__add__(value, b"")))
        raise TypeError(
            f"{cls.__name__} is not plain data (None, bool, int, float, str, bytes, list, tuple, set, dict)"
        )

    def tagged(self, tag: str, body: object) -> object:
        return self.charge(20, {"$": tag, "v": body}, parts=4)

    def mapping(self, items: list[tuple[Any, object]], depth: int) -> object:
        if all(type(key) is str and key != "$" for key, _ in items):
            self.charge(sum(len(key) + 3 for key, _ in items), parts=2)
            return {key: self.pack(item, depth + 1) for key, item in items}
        self.charge(2 * len(items), parts=2)
        return self.tagged("dict", [[self.pack(key, depth + 1), self.pack(item, depth + 1)] for key, item in items])

    def integer(self, value: int) -> object:
        """Hexadecimal beyond 2**63. ValueError beyond Python's limit on digits, since nobody could print it."""
        if value.bit_length() > 14_000:
            raise ValueError("an integer of more than 4,200 digits: use hex() or a float")
        self.charge(value.bit_length() // 4 + 2)
        return value if -(2**63) <= value < 2**63 else self.tagged("int", hex(value))

    def charge(self, size: int, packed: object = None, parts: int = 1) -> object:
        self.budget -= size + PART_COST * parts
        if self.budget < 0:
            raise ValueError(TOO_LARGE)
        return packed


TOO_LARGE = (
    f"larger than the {VALUE_MAX // 10**6} MB that one message may carry (each item counts {PART_COST} bytes more):"
    " keep it in a variable, and pass or print a part or a summary of it"
)
CONTAINERS = ((list, ""), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset"))


def unpack(value: object) -> Any:
    """The inverse of `Packer.pack`; ValueError for anything that it cannot have produced."""
    if type(value) is list:
        return [unpack(item) for item in value]
    if type(value) is not dict:
        return value
    if "$" not in value:
        return {key: unpack(item) for key, item in value.items()}
    tag_name, body = value["$"], value.get("v")
    if tag_name == "float" and body in ("nan", "inf", "-inf"):
        return float(body)
    if tag_name == "int" and type(body) is str and len(body) < 3510:  # what `Packer.integer` makes
        return int(body, 16)
    if tag_name in ("bytes", "bytearray") and type(body) is str:
        raw = binascii.a2b_base64(body)
        return raw if tag_name == "bytes" else bytearray(raw)
    if tag_name == "dict" and type(body) is list and all(type(pair) is list and len(pair) == 2 for pair in body):
        keys = reject_collisions([unpack(key) for key, _ in body])
        return {key: unpack(pair[1]) for key, pair in zip(keys, body)}
    for base, tag in CONTAINERS:
        if tag and tag_name == tag and type(body) is list:
            items = [unpack(item) for item in body]
            return base(items) if base is tuple else base(reject_collisions(items))
    raise ValueError("not an encoded value")


def reject_collisions(keys: list[object]) -> list[object]:
    """Return the keys; ValueError if their hashes collide, which costs quadratic time and is never an accident."""
    if len(keys) > 100 and max(collections.Counter(map(hash, keys)).values()) > 100:
        raise ValueError("keys whose hashes collide")
    return keys


def to_base64(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode_frame(message: Frame) -> bytes:
    body = to_json(message).encode("ascii")
    if len(body) > FRAME_MAX:
        raise ValueError(TOO_LARGE)
    return struct.pack(">I", len(body)) + body


def safe_str(message: BaseException) -> str:
    """An exception's message, even if its `__str__` fails."""
    try:
        return str.__str__(str(message))
    except BaseException:
        return f"<{type_name(type(message))} without a message>"


def type_name(cls: type) -> str:
    """A class's name as the interpreter stores it; no metaclass can override it."""
    name = type.__dict__["__name__"].__get__(cls)
    return str.__str__(name)[:200]  # it may be of a subclass of str


def truncate(text: str, limit: int, where: str) -> str:
    """Shorten a text to its two ends; a line between them says how much is missing and where to find it."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    missing = len(text) - limit
    return f"{text[:head]}\n[... {missing} of {len(text)} characters left out{where} ...]\n{text[len(text) - tail :]}"


def is_one_of(cls: type, classes: Sequence[type]) -> bool:
    """Whether a class is one of these; `in` would call its metaclass's `__eq__`."""
    return any(cls is one for one in classes)


def preview(value: Any, room: int = 80, depth: int = 0) -> str:
    """A short repr of a value that runs no code of the cell's."""
    cls = type(value)
    if is_one_of(cls, (bool, type(None), float, complex)):
        return repr(value)
    if cls is int:
        return repr(value) if value.bit_length() < 200 else f"<int of {value.bit_length()} bits>"
    if is_one_of(cls, (str, bytes)):
        return repr(value) if len(value) <= room else repr(value[:room]) + "..."
    if is_one_of(cls, (list, tuple, set, frozenset, dict)) and depth < 3:
        brackets = "[]" if cls is list else "()" if cls is tuple else "{}"
        parts: list[str] = []
        for item in itertools.islice(value.items() if cls is dict else value, 10):
            if sum(map(len, parts)) > room:
                break
            shown = [preview(one, room // 2, depth + 1) for one in (item if cls is dict else (item,))]
            parts.append(": ".join(shown))
        more = ", ..." if len(value) > len(parts) else ""
        return brackets[0] + ", ".join(parts) + more + brackets[1]
    return f"<{type_name(cls)}>"


SIZED: tuple[type, ...] = (
    *(str, bytes, bytearray, list, tuple, set, frozenset, dict, range),
    *(collections.Counter, collections.OrderedDict, collections.defaultdict, collections.deque),
)


def describe(value: Any) -> tuple[str, int | None, str]:
    return type_name(type(value)), len(value) if is_one_of(type(value), SIZED) else None, preview(value)


def require_text(value: object) -> None:
    """TypeError for an answer without a text form of its own, such as "<generator object ...>"."""
    cls = type(value)
    text = cls.__repr__ if cls.__str__ is object.__str__ else cls.__str__
    if isinstance(value, ModuleType):
        what, instead = "module", "FINAL(x.name)"
    elif isinstance(value, type):
        what, instead = "class", "FINAL(C(...))"
    elif isinstance(text, FunctionType):
        return  # its class says what its text is
    elif hasattr(cls, "__next__"):
        what, instead = type_name(cls), "FINAL(list(x))"
    elif callable(value):
        what, instead = "function", "FINAL(f(...))"
    elif text is not vars(object)["__repr__"]:
        return
    else:
        what, instead = f"{type_name(cls)} without a text of its own", "FINAL(x.name)"
    raise TypeError(f"FINAL takes text or data, not a {what}: {instead}")


def long_repr(value: Any, limit: int) -> str:
    """`repr` in bounded memory: of a large built-in container only both ends are rendered."""
    cls, half = type(value), limit // 2 + 1
    if cls in (str, bytes) and len(value) > 2 * limit:
        shown = repr(value[:half]) + f" [... {len(value) - 2 * half} left out ...] " + repr(value[-half:])
    elif cls in (list, tuple) and len(value) > 2 * limit:
        shown = repr(value[:half])[:-1] + f", [... {len(value) - 2 * half} items ...], " + repr(value[-half:])[1:]
    elif cls in (dict, set, frozenset) and len(value) > 2 * limit:
        first = itertools.islice(value.items() if cls is dict else value, half)
        shown = repr(dict(first) if cls is dict else set(first))[:-1] + f", [... of {len(value)} ...]}}"
    else:
        shown = str.__str__(repr(value))
    return truncate(shown, limit, "")


class Interrupts:
    """Raises KeyboardInterrupt for SIGINT in the cell's own code only, never in the middle of a frame."""

    def __init__(self) -> None:
        self.armed = False
        self.held = 0
        self.pending = False
        self.main = threading.get_ident()

    def handler(self, *_: object) -> None:
        if self.armed and self.held:
            self.pending = True
        elif self.armed:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        if threading.get_ident() == self.main:
            self.held += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self.main:
            self.held -= 1
            if self.pending and self.armed and not self.held:
                self.pending = False
                raise KeyboardInterrupt


class FramedPipe:
    """Length-prefixed frames over two descriptors. Reads exactly one frame, so that another process can take over."""

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


def wait_for(descriptor: int, seconds: float | None, writing: bool = False) -> bool:
    if not hasattr(select, "poll"):
        sets = select.select([] if writing else [descriptor], [descriptor] if writing else [], [], seconds)
        return bool(sets[0] or sets[1])
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT if writing else select.POLLIN)
    return bool(poller.poll(None if seconds is None else max(0.0, seconds) * 1000))


class Output(io.TextIOBase):
    """`sys.stdout` of the cells. Keeps both ends of the output in shared memory that outlives the cell process.

    Layout: the counts of bytes and characters, the first OUTPUT_HALF bytes, a ring buffer of the last.
    """

    encoding, errors = "utf-8", "surrogatepass"

    def __init__(self) -> None:
        self._kept = mmap.mmap(-1, 16 + 2 * OUTPUT_HALF)
        self.begin(None)

    def begin(self, emit: Callable[[str], None] | None) -> None:
        """Reset for the next cell; `emit` streams its output, the first OUTPUT_HALF bytes of it, while it runs."""
        self._kept[:16] = bytes(16)
        self._size = self._chars = self._emitted = 0
        self._emit, self._emitted_at = emit, 0.0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type_name(type(text))}")
        text = str.__str__(text)
        both_ends = text if len(text) <= 2 * OUTPUT_HALF else text[:OUTPUT_HALF] + text[-OUTPUT_HALF - 1 :]
        data, size = both_ends.encode("utf-8", "surrogatepass"), self._size
        while data:  # to the first half while there is room, then to the ring
            at = size % OUTPUT_HALF
            part = data[: OUTPUT_HALF - at]
            start = at + (16 if size < OUTPUT_HALF else 16 + OUTPUT_HALF)
            self._kept[start : start + len(part)] = part
            data, size = data[len(part) :], size + len(part)
        self._size, self._chars = size, self._chars + len(text)
        self._kept[:16] = SIZES.pack(size, self._chars)
        due = text.endswith("\n") and time.monotonic() - self._emitted_at > 0.05
        if due or size - self._emitted > 65_536:
            self.flush()
        return len(text)

    def flush(self) -> None:
        start, end = self._emitted, min(self._size, OUTPUT_HALF)
        if self._emit and start < end:
            self._emitted, self._emitted_at = end, time.monotonic()
            self._emit(decoded(self._kept[16 + start : 16 + end]))

    def close(self) -> None:
        """Do nothing: a cell must not close the next cell's output."""

    def chars(self) -> int:
        return int(SIZES.unpack(self._kept[:16])[1])

    def text(self) -> str:
        size, chars = SIZES.unpack(self._kept[:16])
        head, ring = self._kept[16 : 16 + min(size, OUTPUT_HALF)], self._kept[16 + OUTPUT_HALF : 16 + size]
        if size <= 2 * OUTPUT_HALF:
            return decoded(head + ring)
        at = size % OUTPUT_HALF
        ends = decoded(head), decoded((ring[at:] + ring[:at]).lstrip(bytes(range(0x80, 0xC0))))
        return f"{ends[0]}\n[... {chars - sum(map(len, ends))} characters dropped ...]\n{ends[1]}"


SIZES = struct.Struct(">QQ")


def decoded(data: bytes) -> str:
    """Decode UTF-8, without a character truncated at the end; the cell process may have left any bytes there."""
    try:
        return codecs.utf_8_decode(data, "surrogatepass", False)[0]
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


class PlainLanguage:
    """Plain Python, for a container, where the container is the boundary."""

    def compile(self, source: str, filename: str) -> tuple[CodeType, CodeType | None]:
        """The compiled statements and, if the last one is an expression, that expression separately."""
        import ast

        tree = ast.parse(source, filename)
        last = tree.body[-1] if tree.body else None
        tail = None
        if isinstance(last, ast.Expr):
            tree.body.pop()
            tail = compile(ast.Expression(last.value), filename, "eval", dont_inherit=True)
        return compile(tree, filename, "exec", dont_inherit=True), tail

    def namespace(self, functions: dict[str, object]) -> dict[str, object]:
        main = sys.modules["__main__"] = ModuleType("__main__")
        vars(main).update(functions, __builtins__=builtins, help=print_help)
        return vars(main)

    def traceback(self, error: BaseException, sources: dict[str, str]) -> str:
        return format_traceback(error, sources)


def format_traceback(error: BaseException, sources: dict[str, str]) -> str:
    """A traceback in Python's format that shows the cells' own lines only."""
    parts = [one_traceback(error, sources)]
    while len(parts) < 18:
        cause, context = error.__cause__, None if error.__suppress_context__ else error.__context__
        before = context if cause is None else cause
        if before is None:
            break
        parts += [LINK_CONTEXT if cause is None else LINK_CAUSE, one_traceback(before, sources)]
        error = before
    return "\n".join(reversed(parts))


LINK_CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
LINK_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n"


def one_traceback(error: BaseException, sources: dict[str, str]) -> str:
    frames, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename in sources:
            frames.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    lines = ["Traceback (most recent call last):"] if frames else []
    for index, (filename, number, name) in enumerate(frames):
        if index == 10 and len(frames) > 20:
            lines.append(f"  [... {len(frames) - 20} more calls ...]")
        if index < 10 or index >= len(frames) - 10:
            source = "".join(sources[filename].splitlines()[number - 1 : number])
            lines += location_lines(f'"{filename}", line {number}, in {name}', source)
    message = safe_str(error)
    if isinstance(error, SyntaxError) and error.lineno and error.filename in (*sources, "<eval>", "<exec>"):
        lines += location_lines(f'"{error.filename}", line {error.lineno}', error.text or "", error.offset or 0)
        message = str(error.msg)
    notes = [str.__str__(note) for note in getattr(error, "__notes__", None) or () if issubclass(type(note), str)]
    return "\n".join([*lines, type_name(type(error)) + (": " + message if message else ""), *notes[:10]])


def location_lines(where: str, text: str, offset: int = 0) -> list[str]:
    indent = len(text) - len(text.lstrip())
    shown = [f"  File {where}", *([f"    {text.strip()[:500]}"] if text.strip() else [])]
    if indent < offset <= indent + 500 and len(shown) > 1:
        shown.append(" " * (4 + offset - 1 - indent) + "^")
    return shown


def rebuild_exception(exc_name: str, message: str, data: dict[str, object]) -> Exception:
    """Recreate a host function's exception in the cell: a built-in class, or a new class of that name."""
    base = getattr(builtins, exc_name, None)
    error: Exception
    try:
        if not (isinstance(base, type) and issubclass(base, Exception)):
            raise TypeError
        error = base(message)
    except TypeError:
        cls = host_exception_classes.setdefault(exc_name, type(exc_name, (RuntimeError,), {"__module__": "host"}))
        error = cls(message)
    for key, value in data.items():
        with contextlib.suppress(AttributeError, TypeError):
            setattr(error, key, value)
    return error


host_exception_classes: dict[str, type[Exception]] = {}


class Calls:
    """The worker's side of host functions: sends each call as a frame and waits for the answer with its number."""

    def __init__(self, pipe: FramedPipe):
        self.host = pipe
        self.interrupts = Interrupts()
        self.request = 0
        self.sending = threading.Lock()
        self.answered = threading.Condition(threading.Lock())
        self.reading = False  # a thread reads for all that wait
        self.direct: dict[int, str] = {}  # ids of the cells' functions that only call the host, and their names
        self.begin(pipe, marked=False)

    def begin(self, pipe: FramedPipe, marked: bool) -> None:
        """In a cell process, `marked`: a mark before each frame tells the checkpoint what to do with it."""
        self.pipe, self.marked, self.process = pipe, marked, os.getpid()
        self.numbers = itertools.count(1)
        self.answers: dict[int, Frame] = {}

    def send(self, message: Frame, mark: bytes = b".") -> None:
        data = encode_frame(dict(message, id=self.request))
        with self.interrupts, self.sending:
            try:
                self.pipe.write(mark + data if self.marked else data)
            except BrokenPipeError:
                self.orphaned()
                self.pipe.write(data)

    def in_child(self) -> bool:
        """Whether the cell's own code forked this process."""
        return os.getpid() != self.process

    def orphaned(self) -> None:
        """In a cell process whose checkpoint was killed by the cell's own code: go on without it."""
        if not self.marked:
            os._exit(0)
        self.pipe, self.marked = self.host, False

    def ask(self, name: str, args: Sequence[object], kwargs: dict[str, object]) -> Any:
        """Call a host function and wait; several threads may wait at once."""
        return unwrap(self.answer(self.start(name, args, kwargs)))

    def start(self, name: str, args: Sequence[object], kwargs: dict[str, object]) -> int:
        packer = Packer()
        call = {"op": "call", "name": name, "args": packer.pack(list(args)), "kwargs": packer.pack(kwargs)}
        if self.in_child():
            raise RuntimeError("only the process of the cell can ask the host, not one that it forked: use threads")
        number = next(self.numbers)
        self.send(dict(call, call=number))
        return number

    def answer(self, number: int) -> Frame:
        """Read frames, in whichever thread comes first, until that answer is there."""
        with self.answered:
            while number not in self.answers:
                if self.reading:
                    self.answered.wait()
                else:
                    self.read()
            return self.answers.pop(number)

    def read(self) -> None:
        """Read a frame without holding the lock, and wake the other threads: the answer may be for one of them."""
        message: Frame = {}
        self.reading = True
        self.answered.release()
        try:
            if hasattr(select, "poll"):  # not on Windows, where no signal interrupts a worker
                wait_for(self.pipe.reader, None)  # an interrupt is allowed here, not within a frame
            with self.interrupts:
                message = json.loads(self.pipe.read())
        except EOFError:
            self.orphaned()
        finally:
            self.answered.acquire()
            self.reading = False
            self.answered.notify_all()
        if message.get("op") in ("return", "raise") and message.get("id") == self.request:
            self.answers[message["call"]] = message


session_calls: Calls | None = None  # of this process's worker


def start_task(task: Callable[[], object]) -> Callable[[], object]:
    """Send a task that only calls a host function; returns a function that waits for its answer, else the task.

    `rlm_policy` builds its `concurrent.futures` on this, since there are no threads.
    """
    if session_calls and type(task) is functools.partial and id(task.func) in session_calls.direct:
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            answer = session_calls.answer
            number = session_calls.start(session_calls.direct[id(task.func)], task.args, task.keywords)
            return lambda: unwrap(answer(number))
    return task


def unwrap(answer: Frame) -> Any:
    if answer["op"] == "return":
        return unpack(answer["value"])
    raise rebuild_exception(answer["type"], answer["message"], unpack(answer.get("data") or {}))


def host_function(calls: Calls, name: str, batched: bool = False, doc: str | None = None) -> Callable[..., object]:
    """The function that stands for a host function in a cell. A batch too large for one frame is sent in several."""

    def call(*args: Any, **kwargs: object) -> Any:
        prompts = args[0] if batched and args else ()
        size = sum(PART_COST + (len(text) if isinstance(text, str) else 0) for text in prompts)
        if size < VALUE_MAX // 2 or len(args[0]) < 2:
            return calls.ask(name, args, kwargs)
        middle = len(args[0]) // 2
        return [*call(args[0][:middle], *args[1:], **kwargs), *call(args[0][middle:], *args[1:], **kwargs)]

    call.__name__ = call.__qualname__ = name
    call.__doc__, call.__module__ = doc, "host" if doc else __name__
    if not batched:
        calls.direct[id(call)] = name
    return call


def namespace(calls: Calls, name: str, doc: str, members: dict[str, str]) -> object:
    """Host functions as the attributes of one object, which leads nowhere else: the tools of a server, say."""
    functions = {own: staticmethod(host_function(calls, f"{name}.{own}", doc=text)) for own, text in members.items()}

    def missing(self: object, wanted: str) -> NoReturn:
        parts = [part for part in wanted.lower().split("_") if len(part) > 2]
        close = [member for member in members if any(part in member.lower() for part in parts)][:8]
        there = f"; there are: {', '.join(close)}" if close else ""
        raise AttributeError(f"{name} has no {wanted[:100]!r}{there}; help({name}) lists all")

    own = {"__doc__": doc, "__slots__": (), "__getattr__": missing, "__repr__": lambda self: doc.partition("\n")[0]}
    return type(name, (), dict(own, __module__="host", **functions))()


def print_help(*topic: object) -> None:
    """`help`, without its pager for what the host gives; docstrings alone where Python started without `help`."""
    about = getattr(topic[0], "__doc__", None) if topic else None
    of_host = topic and "host" in (type(topic[0]).__module__, getattr(topic[0], "__module__", ""))
    if hasattr(builtins, "help") and not (of_host and isinstance(about, str)):
        help(*topic)
    else:
        print(about if isinstance(about, str) else "no help on that")


def unbound(method: Callable[..., object]) -> Callable[..., object]:
    """Wrap a method, so that a cell cannot reach its object through `__self__`, `copy` or weak references."""

    def call(*args: object, **kwargs: object) -> object:
        return method(*args, **kwargs)

    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__name__, method.__doc__
    return call


# --- files ------------------------------------------------------------------------------------------------------------

FILES_CALL = "<files>"  # name of the host call for files; no caller's function can have it
FILES_FD = 60  # the session's socket for descriptors from the host
WRITTEN = "[files written here live in the session's scratch folder: later cells can read them, and they end with it]\n"


class Files:
    """The files that a cell can use: its own, in the scratch folder, and those that the host lets it read.

    The host decides, and hands over a descriptor, a name to open here, or the bytes. `home` is the folder that relative
    names belong to; what cannot be written there is written to the same name in the scratch folder. Where `home` is
    `mounted`, the files in it are here already. The kernel decides on files in `readable`: Python's own and, without a
    policy, all but those in `home` and in the `workspace` folders.
    """

    def __init__(self, ask: Callable[..., Frame], write_note: Callable[[str], object], setup: Setup):
        self.ask_host, self.write_note = ask, write_note
        self.scratch = os.path.realpath(setup["scratch"])
        self.home: str = setup.get("home", self.scratch)
        self.folders = [self.home, *setup.get("workspace", ())]
        self.readable: list[str] = setup["readable"] if setup.get("policy") else [os.sep]
        self.mounted: bool = setup.get("mounted", False)
        self.channel: socket | None = None
        if setup.get("descriptors"):
            import socket

            self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=FILES_FD)
        self.lock = threading.Lock()
        self.note_shown = False

    def locate(self, path: StrPath) -> tuple[str, str]:
        """A name's path in the scratch folder ("" if it has none), and the name to ask the host for."""
        full = in_scratch = absolute(path)
        if is_inside(full, self.home):
            in_scratch = self.scratch + full[len(self.home) :]
        if not is_inside(in_scratch, self.scratch):
            return "", full
        own = os.fspath(path) if in_scratch == full else in_scratch  # errors name a file as the cell did
        return own, os.path.relpath(in_scratch, self.scratch)

    def ask(self, what: str, path: StrPath, start: int = 0) -> Frame:
        answer = self.ask_host(FILES_CALL, (what, self.locate(path)[1], start), {})
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"], str(path))
        return answer

    def open(self, path: StrPath, mode: str = "r", *options: Any, **more: Any) -> Any:
        """`open`: the cell's own file if it exists or is to be written, else the caller's."""
        own = self.locate(path)[0]
        if set(mode) & set("wax+"):
            own = self.for_writing(path, mode)
        if is_there(own) or set(mode) & set("wax"):
            return plain.open(own, mode, *options, **more)
        if self.mounted:
            return plain.open(path, mode, *options, **more)
        with self.lock:
            self.receive(0)  # left by a process that died
            answer = self.ask("open", path)
            descriptor = self.receive(answer["tag"]) if "tag" in answer else -1
        if descriptor >= 0:
            return plain.open(path, mode, *options, **dict(more, opener=lambda *_: descriptor))
        if "path" in answer:
            return plain.open(answer["path"], mode, *options, **more)
        raw = io.BytesIO(self.rest(path, answer))
        return raw if "b" in mode else io.TextIOWrapper(raw, *options[1:4], **{k: more[k] for k in TEXT if k in more})

    def rest(self, path: StrPath, answer: Frame) -> bytes:
        """All the bytes of a file whose first part is in the answer."""
        data = bytearray()
        while answer["data"]:
            data += answer["data"]
            answer = self.ask("open", path, len(data))
        return bytes(data)

    def receive(self, tag: int) -> int:
        """Receive the descriptor with that tag, or -1; close older ones."""
        import socket

        while self.channel is not None:
            try:
                data, control, _, _ = self.channel.recvmsg(20, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not control:
                raise OSError(24, "too many open files")  # EMFILE: there was no room for it here
            descriptor = int.from_bytes(control[0][2][:4], sys.byteorder)
            if int(data) == tag:
                return descriptor
            os.close(descriptor)
        return -1

    def for_writing(self, path: StrPath, mode: str) -> str:
        """The file in the scratch folder to write to; for appending, first copy the caller's file there."""
        own = self.writable(path)
        if is_there(own) or "w" in mode:
            return own
        try:
            if "x" in mode:
                self.stat(path)
                raise FileExistsError(17, "File exists", str(path))
            with self.open(path, "rb") as source, plain.open(own, "wb") as target:
                while part := source.read(1 << 20):
                    target.write(part)
        except FileNotFoundError:
            if "+" in mode and "r" in mode:
                raise
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(own)
            raise
        return own

    def writable(self, path: StrPath) -> str:
        """A name's path in the scratch folder. The first use adds a note to the cell's output."""
        own = self.locate(path)[0]
        if not own:
            raise PermissionError(13, "only the scratch folder can be written to", str(path))
        if not self.note_shown:
            self.note_shown = True
            self.write_note(WRITTEN)
        folder = os.path.dirname(own) or "."
        if not is_there(folder) and os.path.isdir(os.path.dirname(path) or "."):
            make_folders(folder)
        return own

    def entries(self, path: StrPath = ".") -> dict[str, bool]:
        """The names in a folder, the cell's own and the caller's; True for a folder that is not a link."""
        own = self.locate(path)[0]
        found: dict[str, bool] = {}
        try:
            answer = self.ask("list", path)
            found = {**dict.fromkeys(answer["files"], False), **dict.fromkeys(answer["folders"], True)}
        except OSError as error:
            if error.errno not in NOTHING_THERE or not is_there(own):
                raise
        if is_there(own):
            with plain.scandir(own) as names:
                found.update((entry.name, entry.is_dir(follow_symlinks=False)) for entry in names)
        return dict(sorted(found.items()))

    def stat(self, path: StrPath, **options: object) -> object:
        own = self.locate(path)[0]
        if is_there(own):
            return plain.stat(own, **options)
        if self.mounted:
            return plain.stat(path, **options)
        try:
            return os.stat_result(self.ask("stat", path)["stat"])
        except PermissionError as error:  # which `exists` would not take for "no"
            raise FileNotFoundError(errno.ENOENT, error.strerror, str(path)) from None

    def exists(self, path: StrPath) -> bool:
        """`os.path.lexists`."""
        with contextlib.suppress(OSError, ValueError):
            self.stat(path, follow_symlinks=False)
            return True
        return False

    def install(self) -> None:
        """Route what opens, lists and changes files by name, and with it everything built on that, to these files."""
        routes: dict[str, Callable[..., object]] = {"open": self.open}
        if not self.mounted:
            routes.update({name: functools.partial(self.change, name, paths) for name, paths in CHANGES.items()})
            routes["listdir"] = lambda path=".": list(self.entries(path))
            routes.update(stat=self.stat, lexists=self.exists, scandir=lambda path=".": Scan(self, path))

        def route(name: str) -> Callable[..., object]:
            def either(*given: Any, **more: Any) -> object:
                # `open` calls the name `file`, `rename` and `replace` call the two `src` and `dst`.
                names = [more.pop(word) for word in ("file", "path", "src", "dst") if word in more]
                path, *options = (*given[:1], *names, *given[1:]) or (".",)
                by_name = isinstance(path, (str, os.PathLike)) and more.get("dir_fd") is more.get("opener") is None
                return (routes if by_name and self.knows(path) else vars(plain))[name](path, *options, **more)

            return functools.partial(either)  # no method where pathlib makes it an attribute of a class

        for name in routes:
            owner = {"open": io, "lexists": os.path}.get(name, os)
            vars(owner)[name] = route(name)
        vars(builtins)["open"] = io.open
        forget_keepers()

    def change(self, name: str, paths: int, *arguments: Any, **more: object) -> object:
        """A function of `os` that changes files, the first so many arguments being their names."""
        own = [self.writable(path) for path in arguments[:paths]]
        return getattr(plain, name)(*own, *arguments[paths:], **more)

    def knows(self, path: StrPath) -> bool:
        """Whether a file of this name is the caller's, or the cell's own."""
        if self.mounted and os.path.isabs(path):
            return False
        full = absolute(path)
        known = any(is_inside(full, folder) for folder in self.folders)
        return known or not any(is_inside(full, folder) for folder in self.readable)


CHANGES = {"mkdir": 1, "rmdir": 1, "remove": 1, "unlink": 1, "rename": 2, "replace": 2}
KEEP_FUNCTIONS = ("bz2", "glob", "pathlib", "tarfile")  # modules that keep a function of these from their import on


def forget_keepers() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in KEEP_FUNCTIONS]:
        del sys.modules[name]


class Scan(contextlib.AbstractContextManager, Iterator):  # type: ignore[type-arg]
    """`os.scandir` over files that the host lists."""

    def __init__(self, files: Files, path: StrPath):
        self.entries = iter([Entry(files, os.path.join(path, name), d) for name, d in files.entries(path).items()])

    def __next__(self) -> Entry:
        return next(self.entries)

    def close(self, *_: object) -> None:
        self.entries = iter(())

    __exit__ = close


class Entry(os.PathLike):  # type: ignore[type-arg]
    """`os.DirEntry` of a file that the host lists."""

    def __init__(self, files: Files, path: str, folder: bool):
        self.path, self.name = path, os.path.basename(path)
        self.is_dir, self.is_file, self.is_symlink = lambda **_: folder, lambda **_: not folder, lambda: False
        self.stat = lambda **_: files.stat(path)

    def __fspath__(self) -> str:
        return self.path


def make_folders(path: str) -> None:
    """`os.makedirs`, without mistaking one of the caller's folders for an existing one."""
    if not is_there(path):
        make_folders(os.path.dirname(path) or ".")
        plain.mkdir(path)


def is_there(path: str) -> bool:
    return path != "" and plain.lexists(path)


def absolute(path: StrPath) -> str:
    return os.path.normpath(os.path.join(os.getcwd(), os.fspath(path)))


TEXT = ("encoding", "errors", "newline")
NOTHING_THERE = (1, 2, 20)  # EPERM: no access to any such folder; ENOENT, ENOTDIR
plain = SimpleNamespace(**dict(vars(os), open=io.open, lexists=os.path.lexists))  # what is not routed


def is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


# --- a function that needs no host: cutting a long text ---------------------------------------------------------------


def text_chunks(text: Any, size: int, overlap: int = 0) -> list[Any]:
    """Split a text into pieces, or a list of texts into groups, of at most `size` characters each."""
    for name, number, least in (("size", size, 1), ("overlap", overlap, 0)):
        if type(number) is not int:
            raise TypeError(f"{name} is a whole number of characters, not {preview(number)}: int(...)")
        if number < least:
            raise ValueError(f"{name} is {number}: at least {least}")
    if overlap > size // 2:  # or a long text would become very many, nearly equal pieces
        raise ValueError(f"overlap is {overlap}: at most half of the size, which is {size}")
    cls = type(text)
    if issubclass(cls, str):
        return split_text(str.__str__(text), size, overlap)
    if issubclass(cls, (list, tuple)):
        base = list if issubclass(cls, list) else tuple
        return pack_texts(list(base.__iter__(text)), size, overlap)
    wrong = "None" if text is None else type_name(cls)
    if issubclass(cls, dict):
        instead = 'list(context.values()), or context["name"] for one of them'
    elif issubclass(cls, (bytes, bytearray)):
        instead = 'context.decode("utf-8", "replace")'
    else:
        instead = "str(x), or [str(item) for item in x]"
    raise TypeError(f"chunks takes a text or a list of texts, not {wrong}: {instead}")


def split_text(text: str, size: int, overlap: int) -> list[str]:
    """Split a text at ends of lines or, where a line is too long, at spaces.

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
    """Where the next piece starts, at `low` or later: at a line if possible, else at a word."""
    if low == 0:
        return 0
    return text.find("\n", low - 1, end - 1) + 1 or text.find(" ", low - 1, end - 1) + 1 or low


def pack_texts(texts: list[object], size: int, overlap: int) -> list[list[str]]:
    """Group texts so that each group, joined by newlines, fits the size; longer texts are split."""
    groups: list[list[str]] = []
    group: list[str] = []
    length = -1  # of the group, joined
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            wrong = type_name(type(text))
            raise TypeError(f"chunks takes a list of texts, but item {index} is {wrong}: [str(item) for item in x]")
        text = str.__str__(text)
        for part in [text] if len(text) <= size else split_text(text, size, 0):
            if group and length + 1 + len(part) > size:
                groups.append(group)
                group = last_texts(group, min(overlap, size - 1 - len(part))) if overlap else []
                length = sum(map(len, group)) + len(group) - 1
            group.append(part)
            length += 1 + len(part)
    return [*groups, group] if group else groups


def last_texts(group: list[str], room: int) -> list[str]:
    """The last texts of a group that fit into `room` when joined."""
    lengths = itertools.accumulate(1 + len(text) for text in reversed(group))
    return group[len(group) - sum(length - 1 <= room for length in lengths) :]


def chunks_function(name: str, usual: int) -> Callable[..., object]:
    """The cell's `chunks` function, with the host's default size."""

    def chunks(text: object, size: int | None = None, overlap: int = 0) -> list[Any]:
        return text_chunks(text, usual if size is None else size, overlap)

    chunks.__name__ = chunks.__qualname__ = name
    chunks.__doc__ = f"Cut a text into pieces of at most `size` ({usual:,}) characters, or group a list of texts so."
    return chunks


# --- the worker -------------------------------------------------------------------------------------------------------
#
# Which process runs what? Arrows are forks; the double line carries the frames.
#
#   host ──> zygote ──> intermediate ──> init ─────────> checkpoint ──> cell
#    ║       Zygote     start_session    run_init        Worker,        Worker: answer, commit
#    ║       one for    enters the       PID 1 of the    Relay          runs one cell; what
#    ║       a host     namespaces,      namespace:      holds the      a cell forks by itself
#    ║                  then ends        reaps zombies,  variables of   is `in_child`
#    ║                                   ends the        before
#    ║                                   session
#    ╚═════════════════════════════════════════════════> checkpoint <══> cell
#
# In a container `container_main` is both the intermediate process and init, and there is no zygote. Where nothing can
# fork (`plain_main`) there is one process, which never has a checkpoint.
#
# The worker is the process that holds the variables. Before each cell it takes a fork snapshot: the fork, a copy of it,
# runs the cell and is the cell process. The worker itself is the checkpoint meanwhile: it relays frames, and has the
# variables as they were. Then one of the two goes on as the worker:
#
#   the cell process ...                  the checkpoint ...                          the next worker is
#   sends output, calls, file questions   relays them, and the host's answers back    (not settled)
#   commits: its result is marked "c"     relays the result, says COMMITTED, ends     the cell process
#   dies                                  reaps it, sweeps up, sends "died"           the checkpoint
#   passes a limit (SIGUSR1)              kills it unless it has committed            as if it had died
#   finds the checkpoint dead (killed     -                                           the cell process, which sends
#     by its own code): no COMMITTED                                                  its result itself
#   runs when the host goes away          reads end of file, kills it, ends           none: init ends the session
#
# The worker answers `set`, `get` and `names` itself: they run none of the cells' code. What could set off a `__del__`
# of theirs waits for the next cell: what `set` replaces is kept until then, and only cells collect cyclic garbage.
# Where there can be no fork (too much memory, threads, no descriptors) the worker runs the cell "alone": a cell
# that has to be killed then takes the variables with it.


class Worker:
    """Holds the variables and serves the host's requests, each in a forked cell process where possible."""

    def __init__(self, pipe: FramedPipe, language: PlainLanguage, setup: Setup):
        self.host = pipe
        self.language = language
        self.output_limit: int = setup["output_limit"]
        self.fork_limit: int = setup["fork_limit"] if hasattr(os, "fork") else 0
        self.own_init: bool = setup.get("own_init", False)
        self.can_kill: bool = setup.get("can_kill", True)
        self.contained: bool = setup.get("contained", False)
        self.given = 0  # bytes of what the host has set: rarely written to, so cheap to fork
        self.kills = memory_kills()
        global session_calls
        self.calls = session_calls = Calls(pipe)
        self.forked = self.interrupted = False
        self.out = Output()
        self.final: object = UNSET
        self.last: object = None
        self.outputs: dict[int, str] = {}
        self.sources: dict[str, str] = {}
        self.replaced: list[object] = []  # what `set` has replaced, until the next cell
        self.undying: list[object] = []  # and what was to go when that cell died, perhaps of it
        self.collects = True  # whether cells collect cyclic garbage
        self.functions: dict[str, object] = {}
        self.specs: dict[str, object] = {}  # what the host said of each of them
        self.own = {**{m.__name__: unbound(m) for m in (self.FINAL, self.FINAL_VAR, self.SHOW_VARS)}, "_out": {}}
        Files(self.calls.ask, self.out.write, setup).install()
        random.seed(0)
        gc.disable()
        self.variables = language.namespace(dict(self.own))
        self.hidden = set(self.variables)

    # - requests: `serve` runs in the worker, what it calls in the cell process or, without one, in the worker

    def serve(self, layers: Layers) -> NoReturn:
        signal.signal(signal.SIGINT, self.calls.interrupts.handler)
        if self.fork_limit:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self.calls.send({"op": "hello", "layers": layers})
        operations = {"execute": self.execute, "set": self.set, "get": self.get, "names": self.names}
        while True:
            try:
                message = json.loads(self.host.read())
            except EOFError:
                os._exit(0)
            operation = operations.get(message.get("op"))
            if operation is None:
                continue  # an answer that came after its cell had ended
            self.calls.request = message["id"]
            role = self.fork() if message["op"] == "execute" and self.may_fork() else "alone"
            self.forked = role == "cell"
            if role == "cell":
                self.commit(self.answer(operation, message))
            elif role == "alone":
                if self.fork_limit:  # without a checkpoint, a timeout kills this process, and the variables are lost
                    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
                result = self.answer(operation, message)
                if self.fork_limit:
                    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
                self.calls.send(result)

    def answer(self, operation: Callable[[Frame], Frame], message: Frame) -> Frame:
        try:
            result = operation(message)
            encode_frame(result)
            return result
        except (TypeError, ValueError, KeyError, RecursionError, MemoryError) as error:
            return {"op": "failed", "type": type_name(type(error)), "message": safe_str(error)[:2000]}

    def get(self, message: Frame) -> Frame:
        if message["name"] not in self.variables:
            raise KeyError(message["name"])
        return {"op": "done", "value": Packer().pack(self.variables[message["name"]])}

    def names(self, message: Frame) -> Frame:
        listed = self.user_variables()[:NAMES_MAX]
        return {"op": "done", "value": {name[:200]: describe(value) for name, value in listed}}

    def user_variables(self) -> list[tuple[str, object]]:
        """The cells' own variables."""
        hidden, ours = self.hidden, self.functions
        named = [(n, v) for n, v in self.variables.items() if type(n) is str and n[:2] != "__" and n[:1] != "~"]
        return [(n, v) for n, v in named if n not in hidden and v is not ours.get(n, UNSET)]

    def set(self, message: Frame) -> Frame:
        self.given = message["given"]
        pieces = iter(self.host.read, b"")
        try:
            value = from_pieces(pieces, message)
        finally:
            collections.deque(pieces, 0)  # what follows these is another request
        before = self.variables.get(message["name"])
        if not is_one_of(type(before), (str, bytes, type(None))):
            self.replaced.append(before)
        self.variables[message["name"]] = value
        return {"op": "done"}

    # - a cell: in the cell process or, without one, in the worker

    @contextlib.contextmanager
    def memory_limit(self, memory: int | None) -> Iterator[None]:
        """Let the cell use so much more memory than is in use now; restore the session's limit afterwards."""
        size = memory_size(0)
        if memory is None or size is None:
            yield
            return
        before = resource.getrlimit(resource.RLIMIT_AS)
        ceiling = sys.maxsize if before[1] == resource.RLIM_INFINITY else before[1]
        resource.setrlimit(resource.RLIMIT_AS, (min(size + memory, ceiling), before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    def execute(self, message: Frame) -> Frame:
        number = message["cell"]
        sys.stdout = sys.stderr = self.out  # whatever an earlier cell has put there
        self.out.begin(self.emit if message["stream"] or not self.forked else None)
        self.interrupted = False
        self.bind(message["functions"])
        with self.memory_limit(message.get("memory")), self.collecting():
            ended = self.run(message["code"], f"<cell {number}>")
        if self.calls.in_child():
            os._exit(0 if ended["status"] == "ok" else 1)
        self.out.flush()
        output = self.output(f"; the whole is in _out[{number}]")
        self.keep_output(number, self.out.text())
        return {"op": "result", **output, **ended}

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Let cyclic garbage be collected here, unless a cell has switched that off."""
        if self.collects:
            gc.enable()
        yield
        self.collects = gc.isenabled()
        gc.disable()

    def output(self, where: str = "") -> Frame:
        return {"stdout": truncate(self.out.text(), self.output_limit, where), "chars": self.out.chars()}

    def run(self, code: str, filename: str) -> Frame:
        """Run the cell and everything that may call its objects' methods; an interrupt may end this anywhere."""
        interrupts = self.calls.interrupts
        interrupts.pending, interrupts.armed = False, True
        try:
            self.final = UNSET
            self.replaced.clear()
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

    def explain(self, problem: BaseException) -> Frame:
        if type(problem) is SystemExit and problem.code in (None, 0):
            return {"status": "ok", **self.final_value()}
        try:
            text = self.language.traceback(problem, self.sources)
        except Exception as failure:
            text = f"{type_name(type(problem))} (its traceback cannot be shown: {type_name(type(failure))})"
        self.interrupted = isinstance(problem, KeyboardInterrupt)
        refused = type_name(type(problem)) == "PolicyError"
        status = "memory" if isinstance(problem, MemoryError) else "refused" if refused else "error"
        return {"status": status, "error": truncate(text, self.output_limit, "")}

    def keep_output(self, number: int, text: str) -> None:
        self.outputs[number] = text
        spent = sum(map(len, self.outputs.values()))
        for old in sorted(self.outputs)[:-1]:
            if spent <= OUTPUTS_MAX:
                break
            spent -= len(self.outputs[old])
            self.outputs[old] = "[dropped: later cells printed more than is kept]"
        self.own["_out"] = self.variables["_out"] = dict(self.outputs)  # what a cell does to it is its own affair

    def final_value(self) -> Frame:
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
            elif is_one_of(type(self.final), SIZED) and type(self.final) is not str:
                text = long_repr(self.final, limit)
            else:
                text = str.__str__(str(self.final))
            return {"final": truncate(text, limit, "")}

    def images(self) -> list[dict[str, str]]:
        """PNG images of the last expression and of the figures that the cell left open; the figures are closed."""
        pictures = []
        last, self.last = self.last, None
        if draw := getattr(type(last), "_repr_png_", None):  # what notebooks ask for: PIL and others
            pictures.append(draw(last))
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            for number in list(pyplot.get_fignums())[:10]:
                buffer = io.BytesIO()
                pyplot.figure(number).savefig(buffer, format="png")
                pictures.append(buffer.getvalue())
            pyplot.close("all")
        sizes = itertools.accumulate(len(picture) if type(picture) is bytes else 0 for picture in pictures)
        small = [p for p, size in zip(pictures, sizes) if type(p) is bytes and size < FRAME_MAX // 4]
        return [{"media_type": "image/png", "data": to_base64(p)} for p in small]

    def FINAL(self, value: object) -> None:
        """Answer with this value. The run ends with it, if the cell ends without an error."""
        require_text(value)
        self.final = value

    def FINAL_VAR(self, name: str) -> None:
        """Answer with the variable of this name."""
        if type(name) is not str:
            raise TypeError("FINAL_VAR takes the name of a variable as a string; FINAL(value) takes the value")
        if name not in self.variables or name == "__builtins__":
            known = ", ".join(sorted(name for name, _ in self.user_variables())[:30]) or "none"
            raise NameError(f"there is no variable {name[:100]!r}; there are: {known}")
        self.FINAL(self.variables[name])

    def SHOW_VARS(self) -> dict[str, str]:
        """The variables, each with type, length and a short preview."""
        listed = [(name, *describe(value)) for name, value in self.user_variables()[:NAMES_MAX]]
        return {name: cls + ("" if size is None else f"[{size}]") + " " + short for name, cls, size, short in listed}

    def bind(self, functions: dict[str, object]) -> None:
        """Put the host's functions into the namespace and remove those of an earlier cell.

        Each comes with whether it takes batches; `chunks`, which needs no host, its size; a namespace, its members.
        """
        for name, function in self.functions.items():
            if name not in functions and self.variables.get(name) is function:
                del self.variables[name]
        kept = {name: self.functions[name] for name, spec in functions.items() if self.specs.get(name) == spec}
        new = {name: self.function(name, spec) for name, spec in functions.items() if name not in kept}
        self.functions, self.specs = {**kept, **new}, functions
        self.variables.update(self.functions)
        self.variables.update(self.own)

    def function(self, name: str, spec: Any) -> object:
        if type(spec) is bool:
            return host_function(self.calls, name, spec)
        return chunks_function(name, spec["size"]) if "size" in spec else namespace(self.calls, name, **spec)

    def emit(self, text: str) -> None:
        if not self.calls.in_child():
            for start in range(0, len(text), 1 << 20):
                self.calls.send({"op": "output", "text": text[start : start + (1 << 20)]})

    # - the fork snapshot before a request

    def may_fork(self) -> bool:
        """Not beyond a size, and not while threads of earlier cells run, which a fork would lack."""
        light = memory_in_use() - self.given < self.fork_limit
        return light and threading.active_count() == 1

    def fork(self) -> str:
        """Returns in both processes, with the role: "cell" runs the request, "checkpoint" returns once the cell process
        has died; "alone" if nothing could be forked."""
        self.out.begin(None)
        try:
            reserve_descriptors(0)
            to_child, from_child = os.pipe(), os.pipe()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            chance = random.getstate()
            try:
                child = os.fork()
            except BlockingIOError:  # earlier cells left as many processes as there may be
                self.sweep()
                child = os.fork()
        except OSError:
            signal.signal(signal.SIGINT, self.calls.interrupts.handler)
            return "alone"
        if child == 0:
            os.close(to_child[1])
            os.close(from_child[0])
            random.setstate(chance)  # a fork seeds it anew, and replays need it to go on
            reserve_descriptors(SPARE_DESCRIPTORS)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN if self.can_kill else signal.SIG_DFL)
            signal.signal(signal.SIGINT, self.calls.interrupts.handler)
            self.calls.begin(FramedPipe(to_child[0], from_child[1]), marked=True)
            if self.contained:
                os.setpgid(0, 0)
                with contextlib.suppress(OSError):  # the kernel is to kill the cell process before its checkpoint
                    write_file("/proc/self/oom_score_adj", "1000")
            return "cell"
        os.close(to_child[0])
        os.close(from_child[1])
        status = Relay(self.host, FramedPipe(from_child[0], to_child[1]), child, self.sweep).run()
        os.close(from_child[0])
        os.close(to_child[1])
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGINT, self.calls.interrupts.handler)
        self.undying += self.replaced
        self.replaced = []
        self.sweep()
        self.report_death(status)
        return "checkpoint"

    def commit(self, result: Frame) -> None:
        """In the cell process: hand over the result, and become the worker once the checkpoint has ended."""
        pipe = self.calls.pipe
        self.calls.send(result, COMMIT)
        last = b""
        while part := os.read(pipe.reader, 1 << 16):
            last = (last + part)[-len(COMMITTED) :]
        if self.calls.marked and last != COMMITTED:
            self.calls.orphaned()
            self.calls.send(result)
        os.close(pipe.reader)
        os.close(pipe.writer)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self.calls.begin(self.host, marked=False)
        if self.contained:
            with contextlib.suppress(OSError):
                write_file("/proc/self/oom_score_adj", "0")
        if self.interrupted or not self.contained:  # in a container, what a cell started may go on
            self.sweep()

    def sweep(self) -> None:
        """In the worker or checkpoint: kill what a cell left running. Only where PID 1 is the sandbox's own."""
        if self.contained or (self.own_init and os.getppid() == 1):
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)

    def report_death(self, status: int) -> None:
        """In the checkpoint: tell the host how the cell process ended."""
        how = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit": os.WEXITSTATUS(status)}
        kills, self.kills = self.kills, memory_kills()
        memory = None if kills is None else self.kills != kills
        died = {"op": "died", "id": self.calls.request, "memory": memory, **self.output(), **how}
        self.host.write(encode_frame(died))


def reserve_descriptors(spare: int) -> None:
    """Cells get fewer descriptors than there are, so that one that takes them all leaves enough for the next fork."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - spare, hard))


class Relay:
    """The checkpoint while a cell process runs: it relays whole frames and notices how the cell process ends.

    So no frame is left half read or half written when the cell process is killed.
    """

    def __init__(self, host: FramedPipe, child: FramedPipe, pid: int, sweep: Callable[[], None]):
        self.host, self.child, self.pid, self.sweep = host, child, pid, sweep
        self.committed = self.killed = False
        self.waiting: collections.deque[memoryview] = collections.deque()
        os.set_blocking(child.writer, False)  # a cell that does not read must not block this process

    def run(self) -> int:
        """The cell process's wait status, once it has died. When it commits, the checkpoint ends here."""
        signal.signal(signal.SIGUSR1, self.kill)
        poller = select.poll()
        poller.register(self.child.reader, select.POLLIN)
        ended = status = 0
        while not ended:
            poller.register(self.host.reader, select.POLLIN if len(self.waiting) < QUEUED_FRAMES_MAX else 0)
            poller.register(self.child.writer, select.POLLOUT if self.waiting else 0)
            ready = dict(poller.poll(200))
            if self.child.reader in ready:
                try:
                    mark, frame = self.child.exactly(1), self.child.read()
                except EOFError:
                    return self.wait_status()
                self.pass_on(mark, frame)
            if self.host.reader in ready:
                self.read_from_host()
            if self.waiting:
                self.write_to_child()
            if not ready:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
        return status

    def pass_on(self, mark: bytes, frame: bytes) -> None:
        if mark == COMMIT and self.killed:
            return
        self.committed = mark == COMMIT
        self.host.write(struct.pack(">I", len(frame)) + frame)
        if self.committed:
            with contextlib.suppress(OSError):
                os.write(self.child.writer, COMMITTED)
            os._exit(0)

    def read_from_host(self) -> None:
        try:
            frame = self.host.read()
        except EOFError:  # the host has gone
            self.kill()
            os._exit(0)
        self.waiting.append(memoryview(struct.pack(">I", len(frame)) + frame))

    def write_to_child(self) -> None:
        try:
            self.waiting[0] = self.waiting[0][os.write(self.child.writer, self.waiting[0]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.waiting.clear()
        if self.waiting and not self.waiting[0]:
            self.waiting.popleft()

    def kill(self, *_: object) -> None:
        """Kill the cell process unless it has committed. Where kill is forbidden, its own SIGUSR1 ends it."""
        if not self.committed:
            self.killed = True
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
            self.sweep()

    def wait_status(self) -> int:
        """Wait for a cell process that has closed its end; one that does not end is killed: status 255."""
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.001)
        self.kill()
        os.waitpid(self.pid, 0)
        return 255 << 8


def write_file(path: str, text: str) -> None:
    with plain.open(path, "w") as file:
        file.write(text)


def memory_size(field: int, pid: int | str = "self") -> int | None:
    """A process's bytes of address space (field 0), or of those that are in memory (1); None without /proc."""
    try:
        with plain.open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[field]) * mmap.PAGESIZE
    except OSError:
        return None


def memory_in_use() -> int:
    """Bytes of memory in use; an estimate where the confinement hides /proc."""
    small = sys.getallocatedblocks() * 96  # a middling size for objects of the small-object allocator
    return memory_size(1) or small + (malloc_size() if malloc_size else 0)


def memory_kills() -> str | None:
    """The kernel's count of out-of-memory kills in this container; None if it is not shown."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError), plain.open(path) as file:
            return next((line for line in file if line.startswith("oom_kill ")), None)
    return None


malloc_size: Callable[[], int] | None = None  # set before confinement, where the C library can tell


def to_pieces(value: Any) -> tuple[Frame, Iterator[bytes]]:
    """Serialise a value to a header and pieces of UTF-8: texts, lists and dicts of texts directly; the rest as JSON.

    The header's nbytes are the most that the worker needs: for the value and for the pieces it is built from.
    """
    if type(value) is str:
        return {"form": "str", "nbytes": text_nbytes(value)}, encoded(value)
    texts = list(itertools.chain.from_iterable(value.items())) if type(value) is dict else value
    if type(value) in (list, dict) and set(map(type, texts)) <= {str}:
        for mark in SEPARATORS:
            text = mark.join(texts)
            if text.count(mark) == len(texts) - 1:
                nbytes = text_nbytes(text) + sys.getsizeof(text) + 80 * len(texts)
                return {"form": type(value).__name__, "mark": mark, "nbytes": nbytes}, encoded(text)
    text = to_json(Packer(1 << 40).pack(value))
    return {"form": "json", "nbytes": 8 * len(text)}, encoded(text)


SEPARATORS = "\0\1\2\3"  # one stands between texts: hardly any contains it, and one character is found fastest


def encoded(text: str) -> Iterator[bytes]:
    """Encode in pieces: allocating 100 MB at once costs more than filling it."""
    for start in range(0, len(text), 1 << 20):
        yield text[start : start + (1 << 20)].encode("utf-8", "surrogatepass")


def text_nbytes(text: str) -> int:
    """Memory for a text and for the pieces that it is joined from."""
    return 2 * len(text) if text.isascii() else sys.getsizeof(text) + 4 * len(text)


def from_pieces(pieces: Iterator[bytes], header: Frame) -> object:
    text = "".join([str(piece, "utf-8", "surrogatepass") for piece in pieces])
    if header["form"] == "json":
        return unpack(json.loads(text))
    if header["form"] == "str":
        return text
    texts = text.split(header["mark"])
    return texts if header["form"] == "list" else dict(zip(texts[::2], texts[1::2]))


def run_init(group: int, watched: Sequence[int], idle_limit: float = 0) -> NoReturn:
    """PID 1: reap zombies, end with the worker, and end it when whoever holds the other end of `watched` dies.

    With `idle_limit` this is a container's PID 1: it passes SIGINT and SIGUSR1 to every process there, and ends after
    so many seconds without a frame from the host, since a daemon that died may have orphaned the container.
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
    with contextlib.suppress(ChildProcessError):  # there are no children any more
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            for descriptor, _ in poller.poll(1000):
                if descriptor != wakeup_read:
                    kill_group(group)
                for number in os.read(wakeup_read, 64):
                    if idle_limit:
                        signal_container(number)
                    elif number == signal.SIGTERM:
                        kill_group(group)
            last_written = os.fstat(watched[0]).st_mtime  # the pipe from the host
            if idle_limit and time.time() - last_written > idle_limit:
                kill_group(group)
    os._exit(0)


def signal_container(number: int) -> None:
    """In PID 1: pass a signal on to all processes of this container, in whatever group they are and even if stopped."""
    if number in (signal.SIGINT, signal.SIGUSR1) and os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGCONT)
            os.kill(-1, number)


def kill_group(group: int) -> NoReturn:
    """In PID 1: kill the worker's processes. Those of the PID namespace end with this one."""
    if os.getpid() != 1:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os._exit(0)


def take_streams() -> FramedPipe:
    """Take over the standard streams for frames; anything else that uses them gets /dev/null."""
    pipe = FramedPipe(os.dup(0), os.dup(1))
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, mode), descriptor)
    return pipe


def container_main(setup: Setup) -> NoReturn:
    """PID 1 of a container: it forks the worker, which gets what were the standard streams, and becomes its init."""
    pipe = take_streams()
    layers: Layers = {}
    attempt(layers, "socket_filter", filter_container, setup["network"], setup["mounted"])
    setup["own_init"] = setup["contained"] = os.getpid() == 1  # not getppid() below: whoever loses its parent gets 1
    worker = os.fork()
    if worker:
        os.close(pipe.writer)
        run_init(worker, [pipe.reader], setup["idle_limit"])
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (setup["data_limit"], setup["data_limit"]))
    Worker(pipe, PlainLanguage(), setup).serve(layers)


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
truncate 76 45, ftruncate 77 46, fallocate 285 47, fadvise64 221 223, fsync 74 82, fdatasync 75 83,
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
RECVMSG, FLOCK = (47, 212), (73, 32)
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
    """Load the C library, and find the allocator's statistics for `memory_in_use`, which cannot read /proc later."""
    import ctypes

    global libc, malloc_size
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": [("f", ctypes.c_size_t * 10)]})
        malloc_size = lambda: int(sum(libc.mallinfo2().f[4:8:3]))  # noqa: E731 - mapped, and used in the heap


def call_libc(name: str, *arguments: object) -> int:
    """Call a C function; OSError if it returns -1."""
    import ctypes

    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def attempt(layers: Layers, name: str, step: Callable[..., object], *arguments: object) -> bool:
    """Take one step of the confinement and record in `layers` whether it holds."""
    try:
        result = step(*arguments)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        layers[name] = False
        layers[name + "_error"] = str(error)
        return False
    layers[name] = result if type(result) is str else True
    return True


def enter_namespaces(layers: Layers) -> None:
    """Enter new namespaces; the PID namespace starts with the next child."""
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
        write_file(f"/proc/self/{file}", text)


def mount_scratch(folder: str) -> None:
    """Mount a bounded tmpfs over the session's folder; it goes away with the last process."""
    private, nothing = 0x40000 | 0x4000, None  # MS_PRIVATE | MS_REC
    call_libc("mount", b"none", b"/", nothing, private, nothing)
    options = f"size={SCRATCH_SIZE},nr_inodes=2000,mode=700".encode()
    call_libc("mount", b"tmpfs", folder.encode(), b"tmpfs", 0x2 | 0x4 | 0x8, options)  # nosuid, nodev, noexec


def confine(setup: Setup, layers: Layers) -> None:
    """Confine this process before it sees any code. Each step is best effort; `layers` records the outcome."""
    attempt(layers, "rlimits", limit_resources, setup["memory"])
    if not setup["confined"]:
        return
    kernel = [int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2]]
    if layers.get("user_namespace") and kernel >= [5, 14]:  # where the count is the namespace's own
        attempt(layers, "process_limit", resource.setrlimit, resource.RLIMIT_NPROC, (PROCESSES_MAX, PROCESSES_MAX))
    attempt(layers, "no_new_privs", call_libc, "prctl", 38, 1, 0, 0, 0)
    attempt(layers, "not_dumpable", call_libc, "prctl", 4, 0, 0, 0, 0)
    attempt(layers, "capabilities_dropped", call_libc, "capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    attempt(layers, "landlock", restrict_files, setup["scratch"], setup["readable"])
    attempt(layers, "seccomp", lambda: install_filter(session_filter(may_kill(layers))))
    verify_layers(layers)


def may_kill(layers: Layers) -> bool:
    """Whether kill() reaches nothing but the session: in a PID namespace, or scoped by Landlock from ABI 6 on."""
    return bool(layers.get("pid_namespace")) or (bool(layers.get("landlock")) and landlock_abi() >= 6)


def verify_layers(layers: Layers) -> None:
    """Mark the two main layers as absent unless they really refuse something."""
    import socket

    for layer, forbidden in (("landlock", lambda: os.listdir("/")), ("seccomp", socket.socket)):
        with contextlib.suppress(PermissionError):
            forbidden()
            layers[layer] = False


def limit_resources(memory: int) -> None:
    present = memory_size(0)
    if present is None:
        raise OSError("the size of this process cannot be told")
    limits = {
        resource.RLIMIT_AS: (present + memory, present + memory + CONTEXT_ROOM),
        resource.RLIMIT_FSIZE: (SCRATCH_SIZE, SCRATCH_SIZE),
        resource.RLIMIT_NOFILE: (DESCRIPTORS_MAX, DESCRIPTORS_MAX),
        **dict.fromkeys((resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_MEMLOCK), (0, 0)),
    }
    for which, (soft, hard) in limits.items():
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def restrict_files(scratch: str, readable: Sequence[str]) -> str:
    """Landlock: allow the scratch folder and reading what Python needs. No TCP, no signals to processes outside."""
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
ALLOW: Filter = [(RETURN, 0, 0, 0x7FFF0000)]
REFUSE, NO_FAMILY, UNKNOWN = (
    [(RETURN, 0, 0, 0x00050000 | number)] for number in (1, 97, 38)
)  # EPERM, EAFNOSUPPORT, ENOSYS
PRETEND: Filter = [(RETURN, 0, 0, 0x00050000)]  # success, without the call
KILL_PROCESS: Filter = [(RETURN, 0, 0, 0x80000000)]


def encode_filter(program: Filter) -> bytes:
    return b"".join(struct.pack("HBBI", *step) for step in program)


@functools.lru_cache(maxsize=None)
def session_filter(kill_is_safe: bool) -> bytes:
    return encode_filter(build_filter(*machine_numbers(), kill_is_safe))


def install_filter(code: bytes) -> str:
    import ctypes

    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call_libc("prctl", 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    return f"{len(code) // 8} instructions"


def machine_numbers() -> tuple[int, int]:
    """This machine's column in the system call tables, and the kernel's number for the architecture."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}")
    return MACHINES[machine]


def filter_container(network: bool, mounted: bool) -> str:
    """Refuse what the engine's own filter allows: sockets other than AF_UNIX and, with a network, IPv4 and IPv6; shared
    memory, semaphores and message queues, which would outlive the cell. With the caller's folder mounted no lock is
    set: one on a file in it would hold up the caller's programs."""
    load_libc()
    column, architecture = machine_numbers()
    families = (1, 2, 10) if network else (1,)  # AF_UNIX, AF_INET, AF_INET6
    calls = {number: allow_values(0, families, NO_FAMILY) for number in SOCKET_CALLS[column]}
    calls.update(dict.fromkeys(numbers(CONTAINER_REFUSED, column), REFUSE))
    if mounted:
        locks = [step for value in (6, 7, 37, 38) for step in pretend(value)]  # F_SETLK, F_OFD_SETLK and their waits
        lease = [(EQUAL, 0, 1, 1024), *REFUSE]  # F_SETLEASE
        calls.update({FLOCK[column]: PRETEND, FCNTL[column]: [low_word(1), *locks, *lease, *ALLOW]})
    return install_filter(encode_filter(filter_of(calls, ALLOW, column, architecture)))


def build_filter(column: int, architecture: int, kill_is_safe: bool) -> Filter:
    """An allow-list. Only a plain fork may create processes, and memory is never both writable and executable."""
    checked = {
        KILL: ALLOW if kill_is_safe else REFUSE,
        CLONE: allow_values(0, (0x01200011, 0x11)),  # fork() of glibc, of musl
        CLONE3: UNKNOWN,
        IOCTL: allow_values(1, (0x5401, 0x5421, 0x5450, 0x5451)),  # TCGETS, FIONBIO, FIO(N)CLEX
        # No F_SETOWN. No lock is set, F_SETLK and F_SETLKW, since one on a file of the caller's would hold up the
        # caller's programs; the scratch folder needs none.
        FCNTL: allow_values(1, (0, 1, 2, 3, 4, 5, 1030), [*pretend(6), *pretend(7), *REFUSE]),
        FLOCK: PRETEND,
        MMAP: refuse_bits(2, 6),
        MPROTECT: refuse_bits(2, 4),
        PRLIMIT: allow_own_limits(),
        RECVMSG: allow_values(0, (FILES_FD,)),
    }
    calls = {**dict.fromkeys(numbers(SYSCALLS, column), ALLOW), **{call[column]: checked[call] for call in checked}}
    return filter_of(calls, REFUSE, column, architecture)


def numbers(table: str, column: int) -> list[int]:
    rows = [row.split() for row in table.split(",")]
    return [int(row[1 + column]) for row in rows if row[1 + column] != "-"]


def filter_of(calls: dict[int, Filter], others: Filter, column: int, architecture: int) -> Filter:
    """A filter that treats each call by its block, which ends in a return, and kills on another architecture, where the
    same numbers mean other calls."""
    program: Filter = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), *KILL_PROCESS, (LOAD, 0, 0, 0)]
    if column == 0:  # the x32 numbers name the same calls a second time
        program += [(ANY_BIT, 0, 1, 0x40000000), *REFUSE]
    for number, block in calls.items():
        program += [(EQUAL, 0, len(block), number), *block]
    return program + others


def low_word(argument: int) -> tuple[int, int, int, int]:
    return (LOAD, 0, 0, 16 + 8 * argument)


def allow_values(argument: int, values: Sequence[int], others: Filter = REFUSE) -> Filter:
    tests = [step for value in values for step in ((EQUAL, 0, 1, value), *ALLOW)]
    return [low_word(argument), *tests, *others]


def pretend(value: int) -> Filter:
    return [(EQUAL, 0, 1, value), *PRETEND]


def refuse_bits(argument: int, bits: int) -> Filter:
    return [low_word(argument), (AND, 0, 0, bits), (EQUAL, 0, 1, bits), *REFUSE, *ALLOW]


def allow_own_limits() -> Filter:
    """Allow reading any limit and setting that for descriptors (7). Only the host may raise a limit of memory."""
    high_word = (LOAD, 0, 0, 20 + 8 * 2)
    is_reading: Filter = [low_word(2), (EQUAL, 0, 3, 0), high_word, (EQUAL, 0, 1, 0), *ALLOW]
    return [*is_reading, low_word(0), (EQUAL, 1, 0, 0), *REFUSE, *allow_values(1, (7,))]


# --- the zygote: a process with everything imported, from which sessions are forked (Linux) ---------------------------

# What is in, or needs, libraries that the confined process cannot read.
PRELOADED = "_strptime copy dataclasses decimal hashlib random string uuid zlib"


def zygote_main(channel: int, setup: Setup) -> NoReturn:
    """Import everything once, then fork a session for each request until the host is gone."""
    import shutil  # noqa: F401 - later there may be no descriptor left to import it with
    import socket

    host = socket.socket(fileno=channel)
    try:
        sweep_folders(setup["temporary"])
        zygote = Zygote(host, setup)
        preload(setup)
        load_libc()
        with contextlib.suppress(OSError):  # no list of system calls for this machine
            session_filter(True)
    except BaseException as error:
        host.sendall(to_json({"error": f"{type_name(type(error))}: {safe_str(error)[:2000]}"}).encode())
        os._exit(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    host.sendall(b'{"ready":true}')
    zygote.serve()


def preload(setup: Setup) -> None:
    for name in [*PRELOADED.split(), *setup["allowed_imports"]]:
        importlib.import_module(name)
    if setup["policy"]:
        load_policy().policy_preload(tuple(setup["allowed_imports"]))
    forget_keepers()  # once for all sessions
    gc.freeze()  # what a collection would look at, a fork would copy


def load_policy() -> ModuleType:
    """Load `rlm_policy` from the file beside this one, since its folder is not on `sys.path`."""
    name = "rlm_policy"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(os.path.dirname(__file__), f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


PREFIX = f"rlm-sandbox-{os.getuid()}-" if hasattr(os, "getuid") else ""


def make_folder(temporary: str) -> tuple[str, int]:
    """Create a folder, and a descriptor that keeps it locked: `sweep_folders` of other processes leaves it alone."""
    while True:
        folder = os.path.join(temporary, f"{PREFIX}{os.getpid()}-{os.urandom(6).hex()}")
        os.makedirs(temporary, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            os.mkdir(folder, 0o700)
            lock = locked(folder)
            if os.path.isdir(folder):
                return folder, lock
            os.close(lock)  # another process swept it before it was locked


def sweep_folders(temporary: str) -> None:
    """Remove the folders that no process locks any more."""
    for name in os.listdir(temporary):
        folder = os.path.join(temporary, name)
        if name.startswith(PREFIX):
            with contextlib.suppress(OSError):  # its process may be another container's: the lock alone tells
                remove_folder(folder, locked(folder))


def locked(folder: str) -> int:
    """A descriptor that locks the folder while it is open; BlockingIOError if another process holds the lock."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def remove_folder(folder: str, lock: int) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def plain_main(setup: Setup) -> NoReturn:
    """A worker without zygote or confinement, for macOS and Windows: the policy and resource limits only."""
    pipe = take_streams()
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (pipe.reader, pipe.writer):
            msvcrt.setmode(descriptor, os.O_BINARY)
    else:
        threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    preload(setup)
    start_worker(setup, {}, pipe)


def exit_with_parent(parent: int) -> NoReturn:
    """End this process when the host goes away, which a worker that runs a cell would not notice."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


REQUEST_MAX = 65_536  # bytes: what is longer would arrive cut


class Zygote:
    """The zygote: forks a session for each request of the host, and removes what sessions leave."""

    def __init__(self, host: socket, setup: Setup):
        self.host, self.setup = host, setup
        self.sessions: dict[int, tuple[str, int]] = {}
        self.settings = make_folder(setup["temporary"])
        os.environ["MPLCONFIGDIR"] = self.settings[0]
        self.liveness_pipe, self.liveness_writer = os.pipe()  # its end tells the sessions that this process has died

    def serve(self) -> NoReturn:
        import socket

        set_subreaper()
        poller = select.poll()
        poller.register(self.host, select.POLLIN)
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                poller.register(os.pidfd_open(os.getppid()), select.POLLIN)
        while [descriptor for descriptor, _ in poller.poll()] == [self.host.fileno()]:
            data, descriptors, _, _ = socket.recv_fds(self.host, REQUEST_MAX, 4)
            if not data:
                break
            self.answer(data, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        for pid in list(self.sessions):
            self.terminate(pid)
        remove_folder(*self.settings)
        os._exit(0)

    def answer(self, data: bytes, descriptors: list[int]) -> None:
        try:
            request = json.loads(data)
            if request["op"] == "terminate":
                return self.terminate(request["pid"])
            if len(descriptors) != 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            reply = {"pid": self.new_session(request, descriptors), "number": request["number"]}
        except ValueError:
            reply = {"error": "the request was not understood"}
        except OSError as error:
            reply = {"error": f"the session's process could not be forked: {error}"}
        self.host.sendall(to_json(reply).encode())

    def new_session(self, request: Frame, descriptors: list[int]) -> int:
        scratch, lock = make_folder(self.setup["temporary"])
        try:
            pid = self.fork_session({**self.setup, **request, "scratch": scratch}, descriptors)
        except OSError:
            remove_folder(scratch, lock)
            raise
        self.sessions[pid] = scratch, lock
        return pid

    def fork_session(self, setup: Setup, descriptors: list[int]) -> int:
        """In the zygote: the pid of a new session's init, which the intermediate process reports."""
        pid_reader, pid_writer = os.pipe()
        try:
            intermediate = os.fork()
            if intermediate == 0:
                os.close(self.liveness_writer)
                start_session(setup, descriptors, pid_writer, self.liveness_pipe)
            os.waitpid(intermediate, 0)
        finally:
            os.close(pid_writer)
            pid = int(os.read(pid_reader, 20) or b"0")
            os.close(pid_reader)
        if not pid:
            raise OSError("it did not start")
        return pid

    def terminate(self, pid: int) -> None:
        """Kill and reap a session. Until this frees its pid, the host can signal it safely."""
        if pid in self.sessions:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            remove_folder(*self.sessions.pop(pid))


def start_session(setup: Setup, descriptors: list[int], pid_writer: int, liveness_pipe: int) -> NoReturn:
    """In the intermediate process, which enters the namespaces: fork init, and from that the worker."""
    try:
        layers: Layers = {}
        if setup["confined"]:
            enter_namespaces(layers)
        init = os.fork()
        if init:
            os.setpgid(init, init)
            os.write(pid_writer, str(init).encode())
            os._exit(0)
        os.setpgid(0, 0)
        os.close(pid_writer)
        if layers.get("mount_namespace"):
            attempt(layers, "private_scratch", mount_scratch, setup["scratch"])
        set_subreaper()
        if os.fork():
            watched = [descriptors[0], liveness_pipe]
            keep_open(*watched)
            run_init(os.getpgrp(), watched)
        stream, files = descriptors
        os.dup2(files, FILES_FD)
        keep_open(stream, FILES_FD)
        own_init = os.getppid() == 1 and bool(layers.get("pid_namespace"))
        start_worker(dict(setup, own_init=own_init, descriptors=True), layers, FramedPipe(stream, stream))
    finally:
        os._exit(1)


def keep_open(*descriptors: int) -> None:
    """Close all descriptors but these and the standard three."""
    first = 3
    for descriptor in [*sorted(set(descriptors)), 1 << 16]:
        os.closerange(first, descriptor)
        first = descriptor + 1


def start_worker(setup: Setup, layers: Layers, pipe: FramedPipe) -> NoReturn:
    """In the worker: confine this process, then serve requests."""
    os.chdir(setup["scratch"])
    sys.modules["__main__"] = ModuleType("__main__")
    setup["readable"] = readable_paths(setup)
    confine(setup, layers)
    os.environ.clear()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    layers["policy"] = setup["policy"]
    setup["can_kill"] = not setup["confined"] or may_kill(layers)
    Worker(pipe, load_policy().PolicyLanguage(setup) if setup["policy"] else PlainLanguage(), setup).serve(layers)


TIME_ZONES = ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"]  # zoneinfo's


def readable_paths(setup: Setup) -> list[str]:
    """The paths that Python and the allowed packages read at run time. The caller's files come from the host."""
    paths = [os.path.dirname(os.__file__), *TIME_ZONES]
    if setup["allowed_imports"]:
        paths += [*setup["packages"], os.environ.get("MPLCONFIGDIR", "")]
        paths += ["/lib", "/lib64", "/usr/lib", "/usr/local/lib"]  # what compiled packages load late
    return [path for path in paths if path]


def set_subreaper() -> None:
    """Make orphaned descendants children of this process instead of the machine's PID 1."""
    with contextlib.suppress(OSError):
        call_libc("prctl", 36, 1, 0, 0, 0)
