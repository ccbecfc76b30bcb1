# /// script
# requires-python = ">=3.10"
# dependencies = ["RestrictedPython>=8.5,<10", "docker>=7"]
# ///
"""A Python REPL for code that nobody has read: it keeps its variables, can be stopped, and calls back into the host.

    with LocalSandbox() as box:
        box.set("context", text)
        cell = box.execute("len(context)")
        print(cell.value)

`LocalSandbox` runs the code in a child process under two layers: a language policy (RestrictedPython) and what the
operating system offers (see `capabilities()`). One worker and one protocol serve it and the container alike.

This file needs none of its siblings and can be vendored alone.
"""

from __future__ import annotations

import array
import binascii
import collections
import contextlib
import io
import itertools
import json
import math
import mmap
import os
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NoReturn

__all__ = [
    "UNSET",
    "Cell",
    "LocalSandbox",
    "SandboxError",
    "Stop",
    "shutdown",
    "warm",
]

# --- the worker: this section alone is also what runs in a container (standard library only, Python 3.8) --------------

FRAME_MAX = 32 << 20  # bytes in one frame, either way
DEPTH_MAX = 100  # nested containers in a value that travels
OUT_HALF = 5_000_000  # characters of a cell's output kept at each end in `_out[n]`
OUT_TOTAL = 100_000_000  # characters kept in all of `_out`
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

    def __init__(self, room: int = FRAME_MAX):
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
            return number if math.isfinite(number) else {"$": "float", "v": repr(number)}
        self.take(2)
        if issubclass(kind, dict):
            return self.mapping(list(dict.items(value)), depth)
        for base, tag in SEQUENCES:
            if issubclass(kind, base):
                items = [self.pack(item, depth + 1) for item in base.__iter__(value)]
                return {"$": tag, "v": items} if tag else items
        if issubclass(kind, (bytes, bytearray)):
            self.take(len(value))
            return {"$": kind.__name__, "v": binascii.b2a_base64(bytes(value), newline=False).decode()}
        raise TypeError(
            f"{kind.__name__} is not plain data (None, bool, int, float, str, bytes, list, tuple, set, dict)"
        )

    def mapping(self, items: list[tuple[Any, Any]], depth: int) -> Any:
        if all(type(key) is str and key != "$" for key, _ in items):
            self.take(sum(len(key) + 4 for key, _ in items))
            return {key: self.pack(item, depth + 1) for key, item in items}
        return {"$": "dict", "v": [[self.pack(key, depth + 1), self.pack(item, depth + 1)] for key, item in items]}

    def integer(self, value: int) -> Any:
        """Beyond 2**63 in hexadecimal: decimal conversion of long integers is slow, and refused above 4,300 digits."""
        self.take(value.bit_length() // 4 + 2)
        return value if -(2**63) <= value < 2**63 else {"$": "int", "v": hex(value)}

    def take(self, size: int) -> None:
        self.room -= size + 2
        if self.room < 0:
            raise ValueError(f"larger than the {FRAME_MAX >> 20} MB that one message may carry")


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
        return {unpack(key): unpack(item) for key, item in body}
    for base, tag in SEQUENCES:
        if tag and kind == tag and type(body) is list:
            return base(unpack(item) for item in body)
    raise ValueError("not a value that travels")


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
        poller = select.poll()
        poller.register(self.reader, select.POLLIN)
        poller.poll()


class Spill:
    """Both ends of a cell's output in memory shared with the process that outlives the cell."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 8 + 2 * SPILL_HALF)

    def clear(self) -> None:
        self.map[:8] = bytes(8)

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "replace") if len(text) <= SPILL_HALF else self.ends(text)
        (total,) = struct.unpack(">Q", self.map[:8])
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
        (total,) = struct.unpack(">Q", self.map[:8])
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
        self.headed = self.tailed = self.total = 0
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
        if self.waits > 65_536 or (self.emit and time.monotonic() - self.drained > 0.05):
            self.flush()
        return len(text)

    def flush(self) -> None:
        text = "".join(self.waiting)
        self.waiting, self.waits, self.drained = [], 0, time.monotonic()
        if not text:
            return
        if self.emit:
            self.emit(text)
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

    def namespace(self, functions: dict[str, Any], stdout: Any) -> dict[str, Any]:
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


class Worker:
    """Holds the variables, and does what the host asks: each request in a forked copy where that can be had.

    The copy becomes the holder when the request succeeds; when it dies, the variables are those of before. What the
    copy and the host say to each other passes through the waiting original, so that no frame is ever left half read.
    """

    def __init__(self, wire: Wire, language: Any, setup: dict[str, Any]):
        self.host = self.wire = wire
        self.language = language
        self.output_limit: int = setup.get("output_limit", 10_000)
        self.fork_limit: int = setup.get("fork_limit", 300 << 20) if hasattr(os, "fork") else 0
        self.own_init: bool = setup.get("own_init", False)
        self.grow: Callable[[int], None] = setup.get("grow") or (lambda weight: None)
        self.blob: int | None = setup.get("blob")
        self.weight = 0  # bytes of context, which touch nothing and so cost little to fork
        self.spill = Spill()
        self.interrupts = Interrupts()
        self.replies: dict[int, dict[str, Any]] = {}
        self.replied = threading.Condition(threading.Lock())
        self.reading = False
        self.sending = threading.Lock()
        self.calls = itertools.count(1)
        self.request = 0
        self.cell = 0
        self.out = Output(None, None)
        self.functions: dict[str, Any] = {}
        self.final: Any = UNSET
        self.outputs: dict[int, str] = {}
        self.sources: dict[str, str] = {}
        self.forked = False
        self.own = {"FINAL": self.FINAL, "FINAL_VAR": self.FINAL_VAR, "SHOW_VARS": self.SHOW_VARS, "_out": self.outputs}
        self.variables: dict[str, Any] = language.namespace(dict(self.own), Redirect(self))
        self.hidden = set(self.variables)

    # - requests

    def serve(self) -> NoReturn:
        signal.signal(signal.SIGINT, self.interrupts.handler)
        operations = {"execute": self.execute, "set": self.set, "get": self.get, "names": self.names, "ping": self.ping}
        while True:
            try:
                message = json.loads(self.host.read())
            except EOFError:
                os._exit(0)
            operation = operations.get(message.get("op"))
            if operation is None:
                continue  # an answer that came after its cell had ended
            self.request = message["id"]
            self.forked = message["op"] != "ping" and self.can_fork()
            if not self.forked:
                self.answer(operation, message)
            elif self.fork(message["op"] in ("execute", "set")):
                self.answer(operation, message)
                self.commit()

    def answer(self, operation: Callable[[dict[str, Any]], dict[str, Any]], message: dict[str, Any]) -> None:
        try:
            reply = operation(message)
        except (TypeError, ValueError, KeyError, RecursionError, MemoryError) as error:
            reply = {"op": "failed", "type": type_name(type(error)), "message": text_of(error)[:2000]}
        self.result = encode_frame(dict(reply, id=self.request))
        if not self.forked:
            self.host.write(self.result)

    def ping(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"op": "done"}

    def get(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["name"] not in self.variables:
            raise KeyError(message["name"])
        return {"op": "done", "value": Packer().pack(self.variables[message["name"]])}

    def names(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"op": "done", "value": {name[:200]: describe(value) for name, value in self.shown()}}

    def shown(self) -> list[tuple[str, Any]]:
        hidden = self.hidden
        pairs = [(name, value) for name, value in self.variables.items() if type(name) is str]
        return [
            (n, v)
            for n, v in pairs
            if n not in hidden and not n.startswith("__") and v is not self.functions.get(n, UNSET)
        ]

    def set(self, message: dict[str, Any]) -> dict[str, Any]:
        self.weight += message["weight"]
        self.grow(message["weight"])
        self.variables[message["name"]] = self.read_blob(message)
        return {"op": "done"}

    def read_blob(self, message: dict[str, Any]) -> Any:
        """A value handed over by reference: UTF-8 text in one piece, and where its items end."""
        size = message["size"]
        if self.blob is None:
            raw = bytearray()
            while len(raw) < size:
                raw += self.wire.read()
            return from_blob(message["kind"], memoryview(raw), message)
        if not size:
            return from_blob(message["kind"], memoryview(b""), message)
        with mmap.mmap(self.blob, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return from_blob(message["kind"], view, message)

    # - a cell

    def execute(self, message: dict[str, Any]) -> dict[str, Any]:
        number = self.cell = message["cell"]
        streamed = message.get("stream") or not self.forked
        self.out = Output(self.emit if streamed else None, self.spill if self.forked else None)
        self.final = UNSET
        self.bind(message.get("functions") or [])
        filename = f"<cell {number}>"
        self.sources[filename] = message["code"]
        began = time.perf_counter()
        value, error, status = None, None, "ok"
        try:
            self.interrupts.pending = False
            self.interrupts.armed = True
            try:
                value = self.run(message["code"], filename)
            except BaseException as problem:
                status, error = self.explain(problem)
            final = self.final_value() if status == "ok" else {}
            images = self.images()
            self.interrupts.armed = False
        except BaseException as problem:  # the second interrupt, or one that came while an error was being shown
            self.interrupts.armed = False
            status, error = "error", type_name(type(problem))
            final, images = {}, []
        text = self.out.text()
        self.keep(number, text)
        return {
            "op": "result",
            "status": status,
            "stdout": cut(text, self.output_limit, f"; the whole is in _out[{number}]"),
            "chars": self.out.total,
            "value": value,
            "error": error,
            "images": images,
            "ms": (time.perf_counter() - began) * 1000,
            **final,
        }

    def run(self, code: str, filename: str) -> str | None:
        body, last = self.language.compile(code, filename)
        exec(body, self.variables)
        value = None if last is None else eval(last, self.variables)
        return None if value is None else long_repr(value, self.output_limit)

    def explain(self, problem: BaseException) -> tuple[str, str | None]:
        if type(problem) is SystemExit and problem.code in (None, 0):
            return "ok", None
        try:
            shown = self.language.traceback(problem, self.sources)
        except Exception as failure:
            shown = f"{type_name(type(problem))} (its traceback cannot be shown: {type_name(type(failure))})"
        refused = type(problem).__name__ == "PolicyError"
        status = "memory" if isinstance(problem, MemoryError) else "refused" if refused else "error"
        return status, cut(shown, self.output_limit, "")

    def keep(self, number: int, text: str) -> None:
        self.outputs[number] = text
        spent = sum(map(len, self.outputs.values()))
        for old in sorted(self.outputs)[:-1]:
            if spent <= OUT_TOTAL:
                break
            spent -= len(self.outputs[old])
            self.outputs[old] = "[dropped: later cells printed more than is kept]"
        self.variables["_out"] = self.outputs

    def final_value(self) -> dict[str, Any]:
        if self.final is UNSET:
            return {}
        try:
            return {"final": Packer().pack(self.final)}
        except (TypeError, ValueError, RecursionError):
            return {"final": cut(str.__str__(str(self.final)), FRAME_MAX // 16, "")}

    def images(self) -> list[dict[str, str]]:
        """Figures that the cell left open, drawn and closed."""
        pyplot: Any = sys.modules.get("matplotlib.pyplot")
        found = []
        for number in list(pyplot.get_fignums())[:10] if pyplot else []:
            buffer = io.BytesIO()
            pyplot.figure(number).savefig(buffer, format="png")
            if buffer.tell() < FRAME_MAX // 16:
                data = binascii.b2a_base64(buffer.getvalue(), newline=False).decode()
                found.append({"media_type": "image/png", "data": data})
        if pyplot:
            pyplot.close("all")
        return found

    def FINAL(self, value: Any) -> None:
        """Answer with this value: the session ends with it when the cell ends well."""
        self.final = value

    def FINAL_VAR(self, name: str) -> None:
        """Answer with the variable of this name."""
        if type(name) is not str:
            raise TypeError("FINAL_VAR takes the name of a variable as a string; FINAL(value) takes the value")
        if name not in self.variables:
            known = ", ".join(sorted(name for name, _ in self.shown())[:30]) or "none"
            raise NameError(f"there is no variable {name[:100]!r}; there are: {known}")
        self.final = self.variables[name]

    def SHOW_VARS(self) -> dict[str, str]:
        """The variables, with type, length and a glimpse of each."""
        lines = {}
        for name, value in self.shown():
            kind, size, glimpse = describe(value)
            lines[name] = f"{kind}{'' if size is None else f'[{size}]'} {glimpse}"
        return lines

    # - calls to the host

    def bind(self, names: list[str]) -> None:
        """Put the host's functions into the namespace, and take away those of an earlier cell."""
        for name, function in self.functions.items():
            if name not in names and self.variables.get(name) is function:
                del self.variables[name]
        self.functions = {name: self.functions.get(name) or host_function(self, name) for name in names}
        self.variables.update(self.functions)
        self.variables.update(self.own)

    def send(self, message: dict[str, Any]) -> None:
        data = encode_frame(dict(message, id=self.request))
        with self.interrupts, self.sending:
            self.wire.write(b"." + data if self.forked else data)

    def emit(self, text: str) -> None:
        for start in range(0, len(text), 1 << 20):
            self.send({"op": "output", "text": text[start : start + (1 << 20)]})

    def ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a host function and wait; several threads may wait at once."""
        packer = Packer()
        arguments = {"args": packer.pack(list(args)), "kwargs": packer.pack(kwargs)}
        self.out.flush()
        with self.replied:
            key = next(self.calls)
        self.send({"op": "call", "call": key, "name": name, **arguments})
        reply = self.receive(key)
        if reply["op"] == "return":
            return unpack(reply["value"])
        raise made_exception(reply["type"], reply["message"], unpack(reply.get("data") or {}))

    def receive(self, key: int) -> dict[str, Any]:
        with self.replied:
            while key not in self.replies:
                if self.reading:
                    self.replied.wait()
                    continue
                self.reading = True
                self.replied.release()
                try:
                    self.wire.wait()  # an interrupt may come here, and not within the frame
                    with self.interrupts:
                        message = json.loads(self.wire.read())
                finally:
                    self.replied.acquire()
                    self.reading = False
                    self.replied.notify_all()
                if message.get("op") in ("return", "raise") and message.get("id") == self.request:
                    self.replies[message["call"]] = message
            return self.replies.pop(key)

    # - the fork before a request

    def can_fork(self) -> bool:
        return bool(self.fork_limit) and memory_in_use() - self.weight < self.fork_limit

    def fork(self, lasting: bool) -> bool:
        """True in the copy that is to do the request; False in the original, once the copy has died."""
        self.spill.clear()
        to_copy, from_copy = os.pipe(), os.pipe()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        copy = os.fork()
        if copy == 0:
            os.close(to_copy[1])
            os.close(from_copy[0])
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGINT, self.interrupts.handler)
            self.wire = Wire(to_copy[0], from_copy[1])
            self.lasting = lasting
            self.calls, self.replies = itertools.count(1), {}
            return True
        os.close(to_copy[0])
        os.close(from_copy[1])
        relay = Relay(self.host, Wire(from_copy[0], to_copy[1]), copy)
        ended = relay.run()
        relay.close()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self.interrupts.handler)
        if ended is not None:
            self.sweep()
            self.tell_death(ended)
        return False

    def commit(self) -> None:
        """Hand the result to the original, and take its place when it has gone (or go, if nothing is to last)."""
        self.wire.write((b"c" if self.lasting else b"r") + self.result)
        self.result = b""
        if not self.lasting:
            os._exit(0)
        with contextlib.suppress(EOFError):
            while True:
                self.wire.read()
        os.close(self.wire.reader)
        os.close(self.wire.writer)
        self.wire = self.host
        self.forked = False
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def sweep(self) -> None:
        """Kill what the dead copy left running. Only ever where this process's init is the sandbox's own."""
        if self.own_init and os.getppid() == 1:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)

    def tell_death(self, status: int) -> None:
        how = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit": os.WEXITSTATUS(status)}
        text = self.spill.text()
        self.host.write(
            encode_frame(
                {
                    "op": "died",
                    "id": self.request,
                    "stdout": cut(text, self.output_limit, ""),
                    "chars": struct.unpack(">Q", self.spill.map[:8])[0],
                    **how,
                }
            )
        )


class Redirect(io.TextIOBase):
    """`sys.stdout` of the cells: always the output of the cell that runs."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, worker: Worker):
        self.worker = worker

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return self.worker.out.write(text)

    def flush(self) -> None:
        self.worker.out.flush()


def host_function(worker: Worker, name: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return worker.ask(name, args, kwargs)

    call.__name__ = call.__qualname__ = name
    return call


class Relay:
    """Passes whole frames between the host and the copy that works, and notices how the copy ends."""

    def __init__(self, host: Wire, copy: Wire, pid: int):
        self.host, self.copy, self.pid = host, copy, pid
        self.killed = False
        self.waiting: collections.deque[memoryview] = collections.deque()
        os.set_blocking(copy.writer, False)

    def close(self) -> None:
        os.close(self.copy.reader)
        os.close(self.copy.writer)

    def run(self) -> int | None:
        """The copy's wait status if it died; None if it answered a request that leaves nothing behind."""
        signal.signal(signal.SIGUSR1, self.kill)
        poller = select.poll()
        poller.register(self.host.reader, select.POLLIN)
        poller.register(self.copy.reader, select.POLLIN)
        while True:
            poller.register(self.copy.writer, select.POLLOUT if self.waiting else 0)
            ready = dict(poller.poll(200))
            if self.copy.reader in ready:
                try:
                    kind = self.copy.exactly(1)
                    frame = self.copy.read()
                except EOFError:
                    return self.reap()
                if kind == b"c":
                    self.pid, copy = 0, self.pid  # from here on no signal kills it
                    if self.killed:
                        self.pid = copy
                        return self.reap()
                self.host.write(struct.pack(">I", len(frame)) + frame)
                if kind == b"c":
                    os._exit(0)
                if kind == b"r":
                    self.reap()
                    return None
            if self.host.reader in ready:
                self.from_host()
            if self.waiting:
                self.to_copy()
            if not ready and os.waitpid(self.pid, os.WNOHANG)[0]:
                return self.reap()

    def kill(self, *_: Any) -> None:
        if self.pid:
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)

    def from_host(self) -> None:
        try:
            frame = self.host.read()
        except EOFError:  # the host has gone
            os.kill(self.pid, signal.SIGKILL)
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

    def reap(self) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            return 0


def memory_in_use() -> int:
    """Bytes this process holds, as well as can be told without /proc, which the confinement hides."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return heap_size()


def heap_size() -> int:
    small = sys.getallocatedblocks() * 96  # a middling size for objects of the small-object allocator
    return small + (malloc_size() if malloc_size else 0)


malloc_size: Callable[[], int] | None = None  # set before confinement, where the C library can tell


def to_blob(value: Any) -> tuple[dict[str, Any], bytes]:
    """A header and one piece of UTF-8: text, lists of text and dicts of text as they are, the rest as JSON."""
    if type(value) is str:
        return {"kind": "str", "weight": text_weight(value)}, value.encode("utf-8", "surrogatepass")
    if type(value) is list and all(type(item) is str for item in value):
        return joined("list", value)
    if type(value) is dict and all(type(key) is type(item) is str for key, item in value.items()):
        return joined("dict", list(itertools.chain.from_iterable(value.items())))
    data = to_json(Packer(1 << 40).pack(value)).encode("ascii")
    return {"kind": "json", "weight": 8 * len(data)}, data


def joined(kind: str, texts: list[str]) -> tuple[dict[str, Any], bytes]:
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = array.array("I", map(len, parts))
    weight = sum(map(text_weight, texts)) + 60 * len(texts)
    return {"kind": kind, "weight": weight, "count": len(parts)}, b"".join([ends.tobytes(), *parts])


def text_weight(text: str) -> int:
    """Bytes that the worker needs for a text: its characters at their width, and the piece it is decoded from once."""
    if text.isascii():
        return 2 * len(text)
    return sys.getsizeof(text) + 4 * len(text)


def from_blob(kind: str, view: memoryview, header: dict[str, Any]) -> Any:
    if kind == "str":
        return str(view, "utf-8", "surrogatepass")
    if kind == "json":
        return unpack(json.loads(str(view, "ascii")))
    count = header["count"]
    ends = array.array("I")
    ends.frombytes(view[: 4 * count])
    texts, at = [], 4 * count
    for size in ends:
        texts.append(str(view[at : at + size], "utf-8", "surrogatepass"))
        at += size
    return texts if kind == "list" else dict(zip(texts[::2], texts[1::2]))


def supervise(group: int, watched: Sequence[int], forward: bool) -> NoReturn:
    """Reap what the worker leaves, end with it, and take it along when whoever holds the other end of `watched` dies.

    With `forward` (as a container's first process) SIGINT and SIGUSR1 from outside go to the worker's group.
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
                if number == signal.SIGTERM:
                    end_group(group)
                elif forward and number in (signal.SIGINT, signal.SIGUSR1):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(group, number)
    os._exit(0)


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


# --- end of the worker ------------------------------------------------------------------------------------------------

# --- the policy: what Python a cell may use (RestrictedPython) --------------------------------------------------------


def policy_compile(source: str, filename: str) -> tuple[CodeType, CodeType | None]:
    return plain_compile(source, filename)


def policy_globals(
    functions: dict[str, Any], *, workspace: Workspace, allowed_imports: tuple[str, ...], stdout: Any
) -> dict[str, Any]:
    import builtins

    sys.stdout = stdout
    return {**functions, "__builtins__": vars(builtins), "__name__": "__main__"}


def format_traceback(error: BaseException, sources: dict[str, str]) -> str:
    return plain_traceback(error, sources)


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
close_range 436 436, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, mmap 9 222, mprotect 10 226, munmap 11 215,
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
    except (OSError, ValueError, AttributeError) as error:
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
    safe_kill = layers.get("pid_namespace")
    attempt(layers, "rlimits", limit_resources, setup["memory"])
    if layers.get("user_namespace") and kernel_version() >= (5, 14):  # where the count is the namespace's own
        attempt(layers, "process_limit", limit_processes)
    attempt(layers, "no_new_privs", call_libc, "prctl", 38, 1, 0, 0, 0)
    attempt(layers, "not_dumpable", call_libc, "prctl", 4, 0, 0, 0, 0)
    attempt(layers, "capabilities_dropped", drop_capabilities)
    attempt(layers, "landlock", restrict_files, setup["scratch"], setup["readable"])
    safe_kill = safe_kill or (layers["landlock"] and landlock_abi() >= 6)  # which keeps signals inside
    attempt(layers, "seccomp", filter_system_calls, bool(safe_kill))
    check(layers)


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

    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}")
    program = build_filter(*MACHINES[machine], kill_is_safe)
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    call_libc("prctl", 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    return f"{len(program)} instructions"


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

PRELOADED = [
    "abc",
    "array",
    "ast",
    "base64",
    "binascii",
    "bisect",
    "calendar",
    "cmath",
    "codecs",
    "collections",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "html.entities",
    "io",
    "itertools",
    "json",
    "keyword",
    "locale",
    "math",
    "numbers",
    "operator",
    "pprint",
    "random",
    "re",
    "reprlib",
    "shlex",
    "statistics",
    "string",
    "struct",
    "textwrap",
    "time",
    "typing",
    "unicodedata",
    "urllib.parse",
    "uuid",
    "zlib",
    "zoneinfo",
    "_strptime",
]


class Workspace:
    """What files a cell may open: its scratch folder, and for reading the folders it was given."""

    def __init__(self, scratch: str, readable: tuple[str, ...]):
        self.scratch, self.readable = scratch, readable


class PolicyLanguage:
    """Python under the policy of the section above."""

    def __init__(self, setup: dict[str, Any]):
        self.setup = setup

    def compile(self, source: str, filename: str) -> tuple[CodeType, CodeType | None]:
        return policy_compile(source, filename)

    def namespace(self, functions: dict[str, Any], stdout: Any) -> dict[str, Any]:
        workspace = Workspace(self.setup.get("scratch", "/"), tuple(self.setup["workspace"]))
        allowed = tuple(self.setup["allowed_imports"])
        return policy_globals(functions, workspace=workspace, allowed_imports=allowed, stdout=stdout)

    def traceback(self, error: BaseException, sources: dict[str, str]) -> str:
        return format_traceback(error, sources)


def zygote_main(channel: int, setup: dict[str, Any]) -> NoReturn:
    """Import everything once, then fork a session for each request until the host is gone."""
    import socket

    host = socket.socket(fileno=channel)
    try:
        base = make_base(setup["temporary"])
        os.environ["MPLCONFIGDIR"] = os.path.join(base, "matplotlib")
        preload(setup)
    except BaseException:
        host.sendall(to_json({"error": traceback.format_exc(limit=-3)[-2000:]}).encode())
        os._exit(1)
    zygote = Zygote(host, dict(setup, base=base))
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
        importlib.import_module("RestrictedPython")
    load_libc()
    gc.collect()
    gc.freeze()


def make_base(temporary: str) -> str:
    """A folder for the folders of sessions; those of processes that died without cleaning up are removed."""
    prefix = f"rlm-sandbox-{os.getuid()}-"
    for name in os.listdir(temporary):
        owner = name[len(prefix) :].partition("-")[0] if name.startswith(prefix) else ""
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            remove_tree(os.path.join(temporary, name))
    base = os.path.join(temporary, f"{prefix}{os.getpid()}-{os.urandom(4).hex()}")
    os.mkdir(base, 0o700)
    return base


def remove_tree(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


class Zygote:
    def __init__(self, host: Any, setup: dict[str, Any]):
        self.host, self.setup = host, setup
        self.sessions: dict[int, str] = {}
        self.life_read, self.life_write = os.pipe()  # its end tells the sessions that this process has died

    def serve(self) -> NoReturn:
        import socket

        set_subreaper()
        poller = select.poll()
        poller.register(self.host, select.POLLIN)
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                poller.register(os.pidfd_open(os.getppid()), select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if ready != [self.host.fileno()]:
                self.end()
            data, descriptors, _, _ = socket.recv_fds(self.host, 65_536, 4)
            if not data:
                self.end()
            request = json.loads(data)
            if request["op"] == "reap":
                self.reap(request["pid"])
            else:
                self.host.sendall(to_json(self.spawn(request, descriptors)).encode())

    def spawn(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        scratch = os.path.join(self.setup["base"], os.urandom(6).hex())
        os.mkdir(scratch, 0o700)
        told_read, told_write = os.pipe()
        entrance = os.fork()
        if entrance == 0:
            os.close(self.life_write)
            watched = [descriptors[0], self.life_read]
            start_session({**self.setup, **request, "scratch": scratch}, descriptors, watched, told_write)
        os.waitpid(entrance, 0)
        os.close(told_write)
        for descriptor in descriptors:
            os.close(descriptor)
        with os.fdopen(told_read, "rb") as told:
            pid = int(told.read() or b"0")
        if not pid:
            remove_tree(scratch)
            return {"error": "the session's process could not be forked"}
        self.sessions[pid] = scratch
        return {"pid": pid}

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


def start_session(setup: dict[str, Any], descriptors: list[int], watched: list[int], told: int) -> NoReturn:
    """In a fresh fork, which only leads into the PID namespace: fork the supervisor, and from that the worker."""
    try:
        layers: dict[str, bool | str] = {}
        if setup["confined"]:
            enter_namespaces(layers)
        supervisor = os.fork()
        if supervisor:
            os.setpgid(supervisor, supervisor)
            os.write(told, str(supervisor).encode())
            os._exit(0)
        os.setpgid(0, 0)
        keep_open(*descriptors, *watched)
        if layers.get("mount_namespace"):
            attempt(layers, "private_scratch", mount_scratch, setup["scratch"])
        set_subreaper()
        if os.fork():
            keep_open(*watched)
            supervise(os.getpgrp(), watched, forward=False)
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
    import random

    stream, blob = descriptors
    keep_open(stream, blob)
    os.chdir(setup["scratch"])
    random.seed(0)
    sys.modules["__main__"] = type(sys)("__main__")
    grow = None
    if setup["confined"]:
        confine(dict(setup, readable=readable_paths(setup)), layers)
        grow = raise_memory_limit if layers["rlimits"] else None
    os.environ.clear()
    layers["policy"] = setup["policy"]
    language = PolicyLanguage(setup) if setup["policy"] else PlainLanguage()
    worker = Worker(Wire(stream, stream), language, dict(setup, blob=blob, own_init=own_init, grow=grow))
    worker.host.write(encode_frame({"op": "hello", "id": 0, "layers": layers}))
    worker.serve()


def readable_paths(setup: dict[str, Any]) -> list[str]:
    """What Python needs while it runs, and what the caller gave."""
    import zoneinfo

    paths = [os.path.dirname(os.__file__), *zoneinfo.TZPATH, *setup["workspace"], *setup["readable"]]
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
    """A worker's byte stream, and the ways to stop it: what differs between a child process and a container."""

    def fileno(self) -> int:
        raise NotImplementedError

    def receive(self) -> bytes:
        """Some bytes, once `fileno` is readable; none at the end."""
        raise NotImplementedError

    def send(self, data: memoryview) -> int:
        """Take some of the bytes without waiting; 0 if there is no room now."""
        raise NotImplementedError

    def put(self, data: bytes) -> bool:
        """Lay a value where the worker finds it; False: it must follow in frames."""
        return False

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
        raise NotImplementedError


def wait_for(descriptor: int, seconds: float, writing: bool = False) -> bool:
    if not hasattr(select, "poll"):
        sets = select.select([] if writing else [descriptor], [descriptor] if writing else [], [], seconds)
        return bool(sets[0] or sets[1])
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT if writing else select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))


class Frames:
    """Frames to and from one worker. Whatever arrives is checked before anything else sees it."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self.sending = threading.Lock()
        self.buffer = bytearray()

    def send(self, message: dict[str, Any], blob: bytes = b"", valid: Callable[[], bool] = lambda: True) -> None:
        """Write a whole frame, or none of it when `valid` no longer holds as its turn comes."""
        data = encode_frame(message)
        with self.sending:
            if not valid():
                return
            self.write(data)
            for start in range(0, len(blob), 4 << 20):
                part = memoryview(blob)[start : start + (4 << 20)]
                self.write(struct.pack(">I", len(part)))
                self.write(part)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                sent = self.channel.send(view)
            except OSError as error:
                raise Broken("the sandbox's process has ended") from error
            view = view[sent:]
            if not sent:
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
        body = bytes(memoryview(self.buffer)[4 : 4 + size])
        del self.buffer[: 4 + size]
        try:
            message = json.loads(body, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Broken("the sandbox sent a frame that is not JSON") from error
        if type(message) is not dict or type(message.get("op")) is not str or type(message.get("id")) is not int:
            raise Broken("the sandbox sent a frame without a form")
        return message


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


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

    def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        functions: dict[str, Callable[..., Any]] | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Cell:
        """Run a cell. Whatever it does, a `Cell` comes back, within its time; only `Stop` passes through."""
        with self._lock:
            self._cells += 1
            if not isinstance(code, str):
                raise TypeError(f"code must be a str, not {type(code).__name__}")
            if self._lost():
                return self._renewed()
            limit = self.cell_timeout if timeout is None else timeout
            run = self._run = Run(self, self._cells, limit, functions or {}, on_output)
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
            return unpack(self._request({"op": "get", "name": name}).get("value"))

    def names(self) -> dict[str, tuple[str, int | None, str]]:
        """Each variable's type, length and a glimpse of it."""
        with self._lock:
            self._started()
            found = self._request({"op": "names"}).get("value")
        if type(found) is not dict:
            raise SandboxError("the sandbox's answer cannot be read")
        return {name: (str(row[0]), row[1], str(row[2])) for name, row in found.items()}

    def reset(self) -> None:
        """A fresh worker without variables."""
        with self._lock:
            self._drop()
            self._given.clear()
            self._started()

    def interrupt(self) -> None:
        """Stop the cell that runs, from another thread: softly, then by force."""
        run = self._run
        if run is not None:
            run.stop_softly()

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
        if self._frames is None:
            self._frames = Frames(self._open())
            self._hello(self._frames)
            for name, value in self._given.items():
                self._send_blob(name, *to_blob(value))
        return self._frames

    def _hello(self, frames: Frames) -> None:
        try:
            hello = frames.receive(20)
        except Broken as error:
            self._drop()
            raise SandboxError(f"the sandbox did not start: {error}") from None
        if hello is None or hello["op"] != "hello":
            self._drop()
            raise SandboxError("the sandbox did not start: %s" % ((hello or {}).get("error") or "no answer in 20 s"))
        self.layers = {str(key): value for key, value in hello.get("layers", {}).items()}

    def _drop(self) -> None:
        frames, self._frames = self._frames, None
        if frames is not None:
            frames.channel.kill()
            frames.channel.close()

    def _lost(self) -> bool:
        """Whether a worker that had variables is no more."""
        frames = self._frames
        if frames is None:
            self._started()
            return False
        try:
            return wait_for(frames.channel.fileno(), 0) and frames.receive(0) is None and False
        except Broken:
            return True

    def _renewed(self) -> Cell:
        self._drop()
        self._started()
        note = f"the sandbox's process had ended: the variables are lost{self._kept()}; this cell was not run"
        return Cell(ok=False, error=note, status="lost", n=self._cells)

    def _kept(self) -> str:
        return f" (what the host had set is there again: {', '.join(self._given)})" if self._given else ""

    # - requests other than cells

    def _request(self, message: dict[str, Any], blob: bytes = b"") -> dict[str, Any]:
        frames = self._started()
        self._requests += 1
        request = self._requests
        try:
            frames.send(dict(message, id=request), blob)
            deadline = time.monotonic() + max(30.0, self.cell_timeout)
            while True:
                reply = frames.receive(max(0.0, deadline - time.monotonic()))
                if reply is None:
                    raise Broken("no answer from the sandbox")
                if reply["id"] == request:
                    break
        except Broken as error:
            self._drop()
            raise SandboxError(f"{error}: its variables are lost") from None
        return self._checked(message, reply)

    def _checked(self, message: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        if reply["op"] == "done":
            return reply
        if reply["op"] == "died":
            raise SandboxError(f"the sandbox could not {message['op']} {message.get('name')!r}: its process died on it")
        kinds: dict[str, type[Exception]] = {"TypeError": TypeError, "KeyError": KeyError, "ValueError": ValueError}
        raise kinds.get(str(reply.get("type")), SandboxError)(str(reply.get("message")))

    def _send_blob(self, name: str, header: dict[str, Any], data: bytes) -> None:
        frames = self._started()
        laid = frames.channel.put(data)
        try:
            self._request({"op": "set", "name": name, "size": len(data), **header}, b"" if laid else data)
        finally:
            if laid:
                frames.channel.put(b"")


class Run:
    """One cell being executed: its clock, its calls, and how it is stopped."""

    def __init__(
        self,
        sandbox: Sandbox,
        number: int,
        limit: float,
        functions: dict[str, Callable[..., Any]],
        on_output: Callable[[str], None] | None,
    ):
        self.sandbox, self.number, self.limit = sandbox, number, limit
        self.functions, self.on_output = functions, on_output
        self.frames = sandbox._started()
        sandbox._requests += 1
        self.request = sandbox._requests
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.active = 0
        self.paused = 0.0
        self.paused_at = 0.0
        self.calls = 0
        self.streamed: list[str] = []
        self.stream_room = max(1 << 20, 4 * sandbox.output_limit)
        self.stop: BaseException | None = None
        self.asked = ""  # why it is being stopped: "timeout" or "interrupt"
        self.softened = 0.0
        self.hardened = 0.0
        self.over = False
        self.pool = Pool(THREADS_MAX)

    def execute(self, code: str) -> Cell:
        message = {
            "op": "execute",
            "id": self.request,
            "cell": self.number,
            "code": code,
            "functions": list(self.functions),
            "stream": self.on_output is not None,
        }
        try:
            try:
                self.frames.send(message)
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
            self.pool.close()
        if self.stop is not None:
            raise self.stop
        return self.finish(reply)

    # - the clock

    def elapsed(self) -> float:
        """Seconds of the cell's own: the clock stands still while a host function works for it."""
        with self.lock:
            now = time.monotonic()
            waiting = now - self.paused_at if self.active else 0.0
            return now - self.began - self.paused - waiting

    def pause(self) -> None:
        with self.lock:
            self.active += 1
            if self.active == 1:
                self.paused_at = time.monotonic()

    def resume(self) -> None:
        with self.lock:
            self.active -= 1
            if not self.active:
                self.paused += time.monotonic() - self.paused_at

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
                self.call(reply)
            if self.softened or self.elapsed() > self.limit:
                self.press()

    def patience(self) -> float:
        now = time.monotonic()
        if self.hardened:
            return max(0.0, self.hardened + HARD_GRACE - now)
        if self.softened:
            return max(0.0, self.softened + SOFT_GRACE - now)
        left = max(0.0, self.limit - self.elapsed())
        return min(left, 0.05) if self.active else left + 0.001

    def press(self) -> None:
        """The next step of the ladder, if its time has come: interrupt, kill the cell's process, kill the session."""
        now = time.monotonic()
        if not self.softened:
            if self.elapsed() >= self.limit:
                self.asked = self.asked or "timeout"
                self.stop_softly()
        elif not self.hardened:
            if now >= self.softened + SOFT_GRACE:
                self.hardened = now
                self.frames.channel.kill_cell()
        elif now >= self.hardened + HARD_GRACE:
            raise Broken("it could not be stopped otherwise")

    def stop_softly(self) -> None:
        with self.lock:
            if self.softened or self.over:
                return
            self.softened = time.monotonic()
            self.asked = self.asked or "interrupt"
        self.frames.channel.interrupt()

    def output(self, text: Any) -> None:
        if type(text) is not str or self.stream_room <= 0:
            return
        text = text[: self.stream_room]
        self.stream_room -= len(text)
        self.streamed.append(text)
        if self.on_output is not None:
            self.on_output(text)

    # - calls from the cell

    def call(self, frame: dict[str, Any]) -> None:
        name, key = frame.get("name"), frame.get("call")
        if type(key) is not int or type(name) is not str or name not in self.functions:
            return
        self.calls += 1
        function = self.functions[name]
        try:
            if self.calls > CALLS_MAX:
                raise RuntimeError(f"a cell may call the host {CALLS_MAX} times at most")
            if self.active >= WAITING_MAX:
                raise RuntimeError("too many host calls at once")
            args, kwargs = unpack(frame.get("args")), unpack(frame.get("kwargs"))
            if type(args) is not list or type(kwargs) is not dict:
                raise ValueError("not a call")
            accept = getattr(function, "accept", None)
            work = accept(*args, **kwargs) if accept else lambda: function(*args, **kwargs)
        except Exception as error:
            self.reply_error(key, error)
            return
        except Stop as stop:
            self.halt(stop)
            return
        self.pause()
        self.pool.run(lambda: self.work(key, work))

    def work(self, key: int, work: Callable[[], Any]) -> None:
        try:
            try:
                value = work()
            finally:
                self.resume()
            self.reply({"op": "return", "call": key, "value": Packer().pack(value)})
        except Exception as error:
            self.reply_error(key, error)
        except Stop as stop:
            self.halt(stop)

    def reply_error(self, key: int, error: Exception) -> None:
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
        final = UNSET
        if status == "ok" and "final" in reply:
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                final = unpack(reply["final"])
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
        if number == signal.SIGKILL:
            return "memory", "the cell was killed: it ran out of memory"
        if type(number) is int:
            return "crash", f"the cell's process died of {signal_name(number)}"
        return "crash", f"the cell ended its process (exit status {whole(reply.get('exit'))})"

    def cell(self, *, ok: bool, **fields: Any) -> Cell:
        return Cell(ok=ok, n=self.number, duration_ms=(time.monotonic() - self.began) * 1000, **fields)


def short(value: Any, limit: int) -> str:
    return value[:limit] if type(value) is str else ""


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
        if type(item) is dict and item.get("media_type") == "image/png" and type(item.get("data")) is str:
            found.append({"media_type": "image/png", "data": item["data"]})
    return found


class Pool:
    """Threads for the host functions of one cell, made as they are needed."""

    def __init__(self, limit: int):
        self.limit = limit
        self.lock = threading.Lock()
        self.jobs: list[Callable[[], None]] = []
        self.threads = 0

    def run(self, job: Callable[[], None]) -> None:
        with self.lock:
            self.jobs.append(job)
            if self.threads >= self.limit:
                return
            self.threads += 1
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        while True:
            with self.lock:
                if not self.jobs:
                    self.threads -= 1
                    return
                job = self.jobs.pop(0)
            job()

    def close(self) -> None:
        with self.lock:
            self.jobs.clear()


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
        self.stream, self.blob, self.group, self.zygote = stream, blob, group, zygote
        self.lock = threading.Lock()
        stream.setblocking(False)

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def receive(self) -> bytes:
        return bytes(self.stream.recv(1 << 18))

    def send(self, data: memoryview) -> int:
        try:
            return int(self.stream.send(data))
        except BlockingIOError:
            return 0

    def put(self, data: bytes) -> bool:
        os.ftruncate(self.blob, 0)
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(self.blob, view[at:], at)
        return True

    def signal(self, number: int) -> None:
        with self.lock:
            if self.group:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.group, number)

    def interrupt(self) -> None:
        self.signal(signal.SIGINT)

    def kill_cell(self) -> None:
        self.signal(signal.SIGUSR1)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        with self.lock:
            group, self.group = self.group, 0
        if group:
            self.zygote.reap(group)
            self.stream.close()
            os.close(self.blob)


class ZygoteClient:
    """The host's side of a zygote."""

    def __init__(self, setup: dict[str, Any]):
        import socket

        self.lock = threading.Lock()
        self.owner = os.getpid()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = start_python(theirs.fileno(), setup)
        self.answer()

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
            try:
                socket.send_fds(self.socket, [to_json(dict(request, op="spawn")).encode()], descriptors)
            except OSError as error:
                raise SandboxError("the sandbox did not start: its parent process has ended") from error
            return int(self.answer()["pid"])

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
setup = json.loads(sys.argv[3])
sys.path += setup["path"]
module.zygote_main(int(sys.argv[2]), setup)
"""


def start_python(channel: int, setup: dict[str, Any]) -> Any:
    """A bare interpreter that runs `zygote_main`. No -I: it would ignore PYTHONHASHSEED, and replays need that."""
    import subprocess

    flags = ["-S", "-s"] + (["-P"] if sys.version_info >= (3, 11) else [])
    environment = {
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "LC_ALL": "C.UTF-8",
    }
    arguments = [sys.executable, *flags, "-c", BOOTSTRAP, os.path.abspath(__file__), str(channel), json.dumps(setup)]
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
        pass_fds=[channel],
    )


_zygotes: dict[tuple[int, tuple[str, ...], bool], ZygoteClient] = {}
_zygotes_lock = threading.Lock()


def zygote_for(allowed_imports: tuple[str, ...], policy: bool) -> ZygoteClient:
    import atexit

    key = (os.getpid(), allowed_imports, policy)
    with _zygotes_lock:
        client = _zygotes.get(key)
        if client is None or client.process.poll() is not None:
            if not _zygotes:
                atexit.register(shutdown)
            setup = {
                "allowed_imports": allowed_imports,
                "policy": policy,
                "path": package_path(allowed_imports, policy),
                "temporary": os.path.abspath(os.environ.get("TMPDIR") or "/tmp"),
            }
            client = _zygotes[key] = ZygoteClient(setup)
        return client


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


def warm(allowed_imports: Sequence[str] = ()) -> None:
    """Start the process that sessions are forked from, in the background."""
    threading.Thread(target=zygote_for, args=(tuple(allowed_imports), True), daemon=True).start()


def shutdown() -> None:
    """End the processes that sessions are forked from, and with them every local session of this process."""
    with _zygotes_lock:
        mine = [key for key in _zygotes if key[0] == os.getpid()]
        clients = [_zygotes.pop(key) for key in mine]
    for client in clients:
        client.close()


FULL_LEVEL = ("landlock", "seccomp", "network_namespace", "rlimits", "no_new_privs")


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
        self.setup = {
            "memory": parse_size(memory),
            "workspace": [workspace] if isinstance(workspace, str) else list(workspace or ()),
            "readable": list(readable),
            "output_limit": output_limit,
            "fork_limit": 300 << 20 if snapshot else 0,
            "confined": "confinement" in layers,
        }
        self.require = require
        with self._lock:
            self._started()
        if require == "full" and self.level != "full":
            missing = ", ".join(name for name in FULL_LEVEL if not self.layers.get(name))
            self.close()
            raise SandboxError(f"the sandbox is not fully confined here: no {missing}", 'use Docker, or require="best"')

    @property
    def level(self) -> str:
        """What the operating system adds to the policy: "full", "partial", or nothing ("language-only")."""
        held = [bool(self.layers.get(name)) for name in FULL_LEVEL]
        return "full" if all(held) else "partial" if any(held) else "language-only"

    def _open(self) -> Channel:
        import socket

        zygote = zygote_for(self.allowed_imports, self.policy)
        blob = os.memfd_create("rlm")
        ours, theirs = socket.socketpair()
        with theirs:
            read_only = os.open(f"/proc/self/fd/{blob}", os.O_RDONLY)
            try:
                group = zygote.spawn(self.setup, [theirs.fileno(), read_only])
            except BaseException:
                ours.close()
                os.close(blob)
                raise
            finally:
                os.close(read_only)
        return LocalChannel(ours, blob, group, zygote)
