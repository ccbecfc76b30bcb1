"""Whatever a worker sends, the host gets a `Cell` or a `SandboxError` in time, and stays as it was."""

from __future__ import annotations

import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rlm_sandbox
import rlm_worker
from rlm_sandbox import UNSET, BaseSandbox, Cell, Channel, SandboxError
from rlm_worker import FRAME_MAX, Packer, unpack

Script = Callable[["Liar", dict[str, Any]], None]


class Liar(Channel):
    """A worker that says what a test wants, on a thread at the other end of a socket."""

    def __init__(self, script: Script):
        ours, self.theirs = socket.socketpair()
        super().__init__(ours)
        self.script = script
        self.stopped: list[str] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        try:
            self.send_frame({"op": "hello", "id": 0, "layers": {}})
            while True:
                (size,) = struct.unpack(">I", self.exactly(4))
                message = json.loads(self.exactly(size))
                if message["op"] in ("return", "raise"):
                    continue
                self.script(self, message)
        except (OSError, EOFError):
            return

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.theirs.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def send_frame(self, message: Any) -> None:
        self.send_raw(json.dumps(message).encode())

    def send_raw(self, body: bytes) -> None:
        self.theirs.sendall(struct.pack(">I", len(body)) + body)

    def interrupt(self) -> None:
        self.stopped.append("soft")

    def kill_cell(self) -> None:
        self.stopped.append("hard")

    def kill(self) -> None:
        self.stopped.append("kill")
        try:
            self.theirs.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self.stream.close()
        self.thread.join(10)
        self.theirs.close()


class LyingSandbox(BaseSandbox):
    def __init__(self, script: Script):
        super().__init__(cell_timeout=0.3, output_limit=1000)
        self.script = script
        self.channels: list[Liar] = []
        self._started()

    def _open(self) -> Channel:
        self.channels.append(Liar(self.script))
        return self.channels[-1]


@pytest.fixture
def lying() -> Iterator[Callable[[Script], LyingSandbox]]:
    made: list[LyingSandbox] = []

    def make(script: Script) -> LyingSandbox:
        made.append(LyingSandbox(script))
        return made[-1]

    yield make
    for box in made:
        box.close()


def result(message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"op": "result", "id": message["id"], "status": "ok", "stdout": "", "chars": 0, "value": None, **fields}


BROKEN: dict[str, bytes] = {
    "not JSON": b"nonsense",
    "not an object": b"[1, 2]",
    "a number": b"7",
    "empty": b"",
    "not text": b"\xff\xfe",
    "not ASCII": '{"op": "result", "id": 1, "stdout": "é"}'.encode(),
    "NaN": b'{"op": "result", "id": 1, "ms": NaN}',
    "infinite": b'{"op": "result", "id": 1, "ms": -Infinity}',
    "deep lists": b'{"op": "result", "id": 1, "final": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "a number of a million digits": b'{"op": "result", "id": 1, "ms": ' + b"9" * 1_000_000 + b"}",
    "no op": b'{"id": 1}',
    "an op that is a list": b'{"op": ["result"], "id": 1}',
    "no id": b'{"op": "result"}',
    "an id that is text": b'{"op": "result", "id": "1"}',
    "an id that is true": b'{"op": "result", "id": true}',
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_frame_without_a_form_ends_the_session_and_no_more(lying: Any, body: bytes) -> None:
    box = lying(lambda liar, message: liar.send_raw(body))
    cell = box.execute("x")
    assert (cell.ok, cell.status) == (False, "lost")
    assert "the sandbox sent a frame" in (cell.error or "")
    assert box.channels[0].stopped[-1] == "kill"


def test_an_oversized_frame_is_not_even_read(lying: Any) -> None:
    box = lying(lambda liar, message: liar.theirs.sendall(struct.pack(">I", FRAME_MAX + 1) + b"x" * 100))
    cell = box.execute("x")
    assert cell.status == "lost" and f"a frame of {FRAME_MAX + 1} bytes" in (cell.error or "")


CONTAINERS = {
    "lists": b"[]," * 2_000_000 + b"[]",
    "objects": b"{}," * 2_000_000 + b"{}",
    "lists behind strings": rb'"\\\\","\"[","]",' + b"[]," * 2_000_000 + b"[]",
}


@pytest.mark.parametrize("items", CONTAINERS.values(), ids=CONTAINERS)
def test_a_frame_of_more_lists_than_a_worker_sends_is_not_made_into_any(lying: Any, items: bytes) -> None:
    box = lying(lambda liar, message: liar.send_raw(b'{"op":"result","id":1,"final":[' + items + b"]}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cell = box.execute("x", timeout=20)  # a busy machine takes a while to send so much
    assert cell.status == "lost" and "lists and objects" in (cell.error or "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_brackets_in_text_are_no_lists(lying: Any) -> None:
    text = "[" * 1_000_000 + '\\"[\\\\' * 1000
    box = lying(lambda liar, message: liar.send_frame(result(message, final=[text, "[", "]"])))
    assert box.execute("x").final == [text, "[", "]"]


@pytest.mark.slow
def test_what_may_be_packed_may_be_read() -> None:
    for value in (
        ["ab"] * 95_000,
        [[]] * 49_000,
        [{}] * 49_000,
        [()] * 15_000,
        [None] * 90_000,
        {(i, i): 0 for i in range(7_000)},
        dict.fromkeys(map(str, range(47_000)), 0),
        "x" * 7_999_000,
        "[{,:" * 1_999_000,
        "\U0001f600" + "x" * 3_900_000,
    ):
        assert (
            unpack(rlm_sandbox.read_json(json.dumps(Packer().pack(value), separators=(",", ":")).encode())[0]) == value
        )
    for value in (
        ["ab"] * 5_900_000,
        [[]] * 50_000,
        [{}] * 50_000,
        [()] * 50_000,
        [None] * 100_000,
        [float("nan")] * 50_000,
        dict.fromkeys(range(50_000), 0),
        "x" * 8_000_001,
        "\U0001f600" + "x" * 4_000_000,
    ):
        with pytest.raises(ValueError, match="larger than the 8 MB"):
            Packer().pack(value)


def test_a_worker_that_takes_nothing_is_given_up(lying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_sandbox, "START_LIMIT", 0.5)
    asleep = threading.Event()

    def answer_and_sleep(liar: Liar, message: dict[str, Any]) -> None:
        liar.send_frame(result(message))
        asleep.wait(2)  # longer than the limit; `close` waits for this thread

    box = lying(answer_and_sleep)
    try:
        assert box.execute("x").ok
        cell = box.execute("x = '" + "a" * 7_000_000 + "'")
        assert cell.status == "lost" and "does not take what it is sent" in (cell.error or "")
        assert box.execute("x").ok
        with pytest.raises(SandboxError, match="does not take what it is sent"):
            box._request({"op": "set", "name": "x"}, [b"", b"a" * 10_000_000])
    finally:
        asleep.set()


def test_half_a_frame_is_waited_for_within_the_limit(lying: Any) -> None:
    box = lying(lambda liar, message: liar.theirs.sendall(struct.pack(">I", 100) + b"{"))
    cell = box.execute("x")
    assert cell.status == "timeout"
    assert box.channels[0].stopped[:3] == ["soft", "hard", "kill"]


def test_frames_that_drip_are_read_whole(lying: Any) -> None:
    def drip(liar: Liar, message: dict[str, Any]) -> None:
        body = json.dumps(result(message, value="'slow'")).encode()
        for byte in struct.pack(">I", len(body)) + body:
            liar.theirs.sendall(bytes([byte]))

    assert lying(drip).execute("x").value == "'slow'"


def test_answers_to_other_requests_are_ignored(lying: Any) -> None:
    def forge(liar: Liar, message: dict[str, Any]) -> None:
        for other in (0, -1, message["id"] - 1, message["id"] + 1, 2**70):
            liar.send_frame(result({"id": other}, value="'forged'"))
            liar.send_frame({"op": "output", "id": other, "text": "forged"})
            liar.send_frame({"op": "call", "id": other, "call": 1, "name": "f", "args": [], "kwargs": {}})
        liar.send_frame({"op": "surprise", "id": message["id"]})
        liar.send_frame(result(message, value="'true'"))

    called: list[int] = []
    seen: list[str] = []
    cell = lying(forge).execute("x", functions={"f": lambda: called.append(1)}, on_output=seen.append)
    assert (cell.value, called, seen) == ("'true'", [], [])


ODD: dict[str, dict[str, Any]] = {
    "unknown status": {"status": "splendid"},
    "status that is no text": {"status": ["ok"]},
    "everything null": {"status": None, "stdout": None, "chars": None, "value": None, "error": None, "images": None},
    "everything a list": {"stdout": [1], "chars": [1], "value": [1], "error": [1], "images": [1], "final": [1]},
    "everything an object": {"stdout": {}, "chars": {}, "value": {}, "error": {}, "images": {}, "final": {}},
    "numbers": {"stdout": 1, "chars": -5, "value": 1, "error": 1.5, "images": 3, "final": 1},
    "long": {"stdout": "x" * 1_000_000, "value": "y" * 1_000_000, "error": "z" * 1_000_000},
    "surrogates": {"stdout": "\ud800", "value": "\udfff", "error": "\ud800", "final": "\ud800"},
    "bad final": {"final": {"$": "set", "v": [[]]}},
    "unknown final": {"final": {"$": "pickle", "v": "x"}},
    "final without a value": {"final": {"$": "bytes"}},
    "final that is not base64": {"final": {"$": "bytes", "v": "é"}},
    "a dict keyed by a list": {"final": {"$": "dict", "v": [[[], 1]]}},
    "images that are not": {
        "images": [{"media_type": "text/html", "data": "x"}, {"media_type": "image/png", "data": "<"}, 3]
    },
    "thousands of images": {"images": [{"media_type": "image/png", "data": "iVBORw0KGgoA"}] * 1000},
}


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD)
def test_a_result_of_odd_types_makes_a_cell_of_the_right_ones(lying: Any, fields: dict[str, Any]) -> None:
    cell = lying(lambda liar, message: liar.send_frame(result(message, **fields))).execute("x")
    assert isinstance(cell, Cell)
    assert cell.status in ("ok", "error")
    assert type(cell.stdout) is str and len(cell.stdout) < 2000 and cell.stdout.encode() is not None
    assert cell.value is None or (
        type(cell.value) is str and len(cell.value) < 2000 and cell.value.encode() is not None
    )
    assert cell.error is None or (
        type(cell.error) is str and len(cell.error) < 2000 and cell.error.encode() is not None
    )
    assert type(cell.stdout_chars) is int and cell.stdout_chars >= 0
    assert len(cell.images) <= 10 and all(set(image) == {"media_type", "data"} for image in cell.images)
    if type(cell.final) is str:
        assert cell.final.encode() is not None


@pytest.mark.parametrize(
    "fields", [{"signal": "x"}, {"signal": 999}, {"exit": None}, {"signal": [9]}, {"signal": True}, {}]
)
def test_a_death_told_oddly_is_a_crash(lying: Any, fields: dict[str, Any]) -> None:
    box = lying(lambda liar, message: liar.send_frame({"op": "died", "id": message["id"], "stdout": 5, **fields}))
    cell = box.execute("x")
    assert (cell.status, cell.restored, cell.stdout) == ("crash", True, "")


CALLS: dict[str, dict[str, Any]] = {
    "unknown function": {"name": "g"},
    "a name that is a list": {"name": ["f"]},
    "a private name": {"name": "__class__"},
    "no number": {"call": None},
    "a number that is text": {"call": "1"},
    "arguments that are text": {"args": "abc"},
    "arguments missing": {"args": None},
    "keywords that are a list": {"kwargs": []},
    "keywords that are no names": {"kwargs": {"$": "dict", "v": [[1, 2]]}},
    "a value of no kind": {"args": [{"$": "function"}]},
    "too many arguments": {"args": [1, 2, 3]},
}


@pytest.mark.parametrize("fields", CALLS.values(), ids=CALLS)
def test_a_call_of_odd_form_never_reaches_the_function(lying: Any, fields: dict[str, Any]) -> None:
    def call(liar: Liar, message: dict[str, Any]) -> None:
        liar.send_frame(
            {"op": "call", "id": message["id"], "call": 1, "name": "f", "args": [1], "kwargs": {}, **fields}
        )
        liar.send_frame(result(message))

    called: list[Any] = []
    cell = lying(call).execute("x", functions={"f": lambda item: called.append(item)})
    assert cell.ok and called == []


def test_a_flood_of_frames_costs_no_memory_and_not_more_than_the_limit(lying: Any) -> None:
    def flood(liar: Liar, message: dict[str, Any]) -> None:
        output = json.dumps({"op": "output", "id": message["id"], "text": "x" * 1_000_000}).encode()
        while True:
            liar.send_raw(output)

    seen: list[int] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cell = lying(flood).execute("x", on_output=lambda text: seen.append(len(text)))
    assert cell.status == "timeout"
    assert sum(seen) <= 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_a_flood_of_calls_is_bounded(lying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def flood(liar: Liar, message: dict[str, Any]) -> None:
        for number in range(5000):
            liar.send_frame({"op": "call", "id": message["id"], "call": number, "name": "f", "args": [], "kwargs": {}})

    release = threading.Event()
    threads: set[str] = set()

    def work() -> None:
        threads.add(threading.current_thread().name)
        release.wait(10)

    cell = lying(flood).execute("x", functions={"f": work})
    release.set()
    assert cell.status == "lost" and "1001 host calls at once" in (cell.error or "")
    assert len(threads) <= rlm_sandbox.THREADS_MAX


def test_of_large_calls_no_more_are_read_than_may_be_held(lying: Any) -> None:
    def flood(liar: Liar, message: dict[str, Any]) -> None:
        call = {"op": "call", "id": message["id"], "name": "f", "args": ["x" * 7_000_000], "kwargs": {}}
        for number in range(20):
            liar.send_frame(dict(call, call=number))
        liar.send_frame(result(message, value="'done'"))

    lock = threading.Lock()
    now: list[int] = []
    most: list[int] = []

    def work(text: str) -> None:
        with lock:
            now.append(1)
            most.append(len(now))
        time.sleep(0.02)
        with lock:
            now.pop()

    cell = lying(flood).execute("x", functions={"f": work}, timeout=20)
    assert (cell.value, max(most) * 7_000_000 <= rlm_sandbox.PENDING_BYTES_MAX + rlm_worker.FRAME_MAX) == (
        "'done'",
        True,
    )


def test_a_worker_that_leaves_an_answer_unread_does_not_hold_the_next_cell_up(lying: Any) -> None:
    asleep, answered = threading.Event(), threading.Event()

    def answer_and_sleep(liar: Liar, message: dict[str, Any]) -> None:
        if not answered.is_set():
            answered.set()
            liar.send_frame({"op": "call", "id": message["id"], "call": 1, "name": "f", "args": [], "kwargs": {}})
            writing.wait(10)
            liar.send_frame(result(message))
            while "kill" not in liar.stopped:
                asleep.wait(0.02)
        liar.send_frame(result(message))

    writing = threading.Event()

    def work() -> str:
        threading.Timer(0.2, writing.set).start()
        return "x" * 7_000_000

    box = lying(answer_and_sleep)
    assert box.execute("x", functions={"f": work}, timeout=5).ok
    began = time.monotonic()
    assert box.execute("x", timeout=0.5).status in ("lost", "timeout")
    assert time.monotonic() - began < 3
    assert box.execute("x", timeout=5).ok


def test_a_worker_that_does_not_read_holds_nobody_up(lying: Any) -> None:
    killed = threading.Event()

    def deaf(liar: Liar, message: dict[str, Any]) -> None:
        for number in range(20):
            liar.send_frame({"op": "call", "id": message["id"], "call": number, "name": "f", "args": [], "kwargs": {}})
        while "kill" not in liar.stopped:
            killed.wait(0.01)

    assert lying(deaf).execute("x", functions={"f": lambda: "x" * 10_000_000}).status == "timeout"


@pytest.mark.parametrize(
    "reply",
    [
        {"op": "done"},
        {"op": "done", "value": {"$": "x"}},
        {"op": "done", "value": {"a": 1}},
        {"op": "done", "value": {"a": [1, 2]}},
        {"op": "done", "value": [1]},
        {"op": "failed"},
        {"op": "failed", "type": "SystemExit", "message": "x"},
        {"op": "died"},
        {"op": "result"},
    ],
)
def test_names_checks_what_it_is_told(lying: Any, reply: dict[str, Any]) -> None:
    box = lying(lambda liar, message: liar.send_frame({"id": message["id"], **reply}))
    with pytest.raises(SandboxError):
        box.names()


def test_get_refuses_what_does_not_travel(lying: Any) -> None:
    box = lying(
        lambda liar, message: liar.send_frame({"op": "done", "id": message["id"], "value": {"$": "set", "v": [[]]}})
    )
    with pytest.raises(SandboxError, match="cannot be read"):
        box.get("x")


def test_keys_made_to_collide_are_refused() -> None:
    """Without the check this takes hours."""
    clash = [hex(i * (2**61 - 1) * 2**64) for i in range(200_000)]
    for packed in (
        {"$": "set", "v": [{"$": "int", "v": number} for number in clash]},
        {"$": "dict", "v": [[{"$": "int", "v": number}, 0] for number in clash]},
    ):
        with pytest.raises(ValueError, match="collide"):
            unpack(packed)


def test_half_of_the_keys_made_to_collide_is_enough() -> None:
    clash = [hex(i * (2**61 - 1) * 2**64) for i in range(50_000)] + [hex(i) for i in range(50_001)]
    with pytest.raises(ValueError, match="collide"):
        unpack({"$": "set", "v": [{"$": "int", "v": number} for number in clash]})


@pytest.mark.parametrize("digits", [3_511, 20_000])
def test_a_number_that_could_not_be_printed_is_none(lying: Any, digits: int) -> None:
    final = {"$": "int", "v": "0x" + "f" * digits}
    cell = lying(lambda liar, message: liar.send_frame(result(message, final=[final]))).execute("x")
    assert (cell.ok, cell.final) == (False, UNSET) and "cannot be read" in (cell.error or "")


@pytest.mark.parametrize(
    "value", [{1, 2}, set(range(5000)), {i: i for i in range(5000)}, {float(i) for i in range(2000)}]
)
def test_ordinary_sets_and_dicts_pass(value: object) -> None:
    assert unpack(json.loads(json.dumps(Packer().pack(value)))) == value


def test_a_worker_that_never_says_hello_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_sandbox, "START_LIMIT", 0.2)
    monkeypatch.setattr(Liar, "serve", lambda self: None)
    with pytest.raises(SandboxError, match="did not start: no answer"):
        LyingSandbox(lambda liar, message: None)


def test_a_worker_that_ends_at_once_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Liar, "serve", lambda self: self.theirs.shutdown(socket.SHUT_RDWR))
    with pytest.raises(SandboxError, match="did not start"):
        LyingSandbox(lambda liar, message: None)
