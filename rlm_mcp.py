# /// script
# requires-python = ">=3.10"
# dependencies = ["requests", "RestrictedPython", "docker", "tomli; python_version < '3.11'"]
# ///
"""An MCP server on stdio, written by hand: a sandboxed, persistent Python for any MCP client, with no API key.

It also has an MCP client (`ServerSet`), which makes the tools of other servers Python functions in the REPL.

Supported: revisions 2024-11-05 to 2025-11-25 (with a handshake) and 2026-07-28 (each request names its revision), both
on one stdin; tools, resources, progress, cancellation, batches (2025-03-26), sampling and roots. Not supported: a
server on HTTP, prompts, completion, logging, elicitation, tasks.

The path of a line; this file follows the same order:

    StdioTransport -> Server.receive -> Request -> a method, answered at once
                                                -> a tool: a Job on its session's thread, code in a worker process
                                                   llm_query: SamplingRequest -> the client's model, or
                                                   back to the host as "needs_completions"

The thread that reads stdin never runs a tool, so it sees a ping or a cancellation while code runs. Modules that the
first tool call does not need are imported where they are used.

Needs rlm.py and its modules: rlm_config.py, rlm_backends.py, rlm_tools.py, rlm_sandbox.py, rlm_worker.py and
rlm_policy.py.
"""

from __future__ import annotations

import binascii
import contextlib
import functools
import itertools
import json
import math
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeGuard, TypeVar, cast

if TYPE_CHECKING:
    import rlm
    import rlm_backends
    import rlm_config
    import rlm_sandbox
    import rlm_tools
else:

    class LazyModule:
        """A module of ours that is imported when it is first used."""

        def __init__(self, name):
            self._name = name

        def __getattr__(self, attribute):
            import importlib

            module = importlib.import_module(f"{__package__}.{self._name}" if __package__ else self._name)
            globals()[self._name] = module
            return getattr(module, attribute)

    rlm, rlm_backends, rlm_config = LazyModule("rlm"), LazyModule("rlm_backends"), LazyModule("rlm_config")
    rlm_sandbox, rlm_tools = LazyModule("rlm_sandbox"), LazyModule("rlm_tools")

__all__ = ["install", "serve"]

Message = dict[str, Any]
Received = Mapping[str, Any]  # a message, or a part of one, that is only read
T = TypeVar("T")

HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LATEST = "2026-07-28"
SUPPORTED = (LATEST, *reversed(HANDSHAKE))

PARSE_ERROR, INVALID_REQUEST, NO_METHOD, INVALID_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
NO_RESOURCE, UNSUPPORTED_VERSION = -32002, -32022

MAX_LINE = 64 << 20  # bytes of one message
MAX_SESSIONS = 32
MAX_WAITING = 20_000  # calls queued for one session
MAX_RUNNING = 100  # calls at work
IDLE_SECONDS = 30 * 60  # then an unused session, suspended run or uncollected result is dropped
HEARTBEAT_SECONDS = 2.5
STOP_GRACE = 0.075  # seconds between the interrupt of a cancelled cell and its kill
GATHER_SECONDS = 0.015  # sub-calls that arrive this close together are asked in one round
CLIENT_TOKENS = 16  # smallest max_tokens for the client's own model, whose usage is only estimated
DRAIN_SECONDS = 1.5
PARALLEL_SECONDS = 0.5  # calls of one session that arrive this close together are queued for as long as it takes
QUEUE_SECONDS = 2.0  # a later call waits this long before it is answered with its handle
PREVIEW_CHARS = 20_000
VALUE_CHARS = 4_000  # of one value: digits and punctuation cost a token for each two or three characters
OUTPUT_LIMIT = 2_000_000  # characters of a cell's output that are kept for its resource
MAX_OUTPUTS = 50
MAX_TRAJECTORY = 8 << 20  # bytes of a journal that a resource returns
TRAJECTORY = re.compile(r"[0-9a-f]{6}-[0-9a-f]{6}\.jsonl")
MAX_IMAGE_CHARS = 12 << 20  # base64 of one call's images together


# --- the wire ---------------------------------------------------------------------------------------------------


class ClientDisconnected(Exception):
    """The peer no longer reads what we write."""


class StdioTransport:
    """One JSON-RPC message per line, both ways, on descriptors that no user code can reach."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._in, self._out = read_fd, write_fd
        self._is_closed = False
        self.is_broken = False  # half a line was written: nothing can follow it
        self._lock = threading.Lock()
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._out, select.POLLOUT)
            self._poll.register(self._in, 0)  # reports POLLHUP: the client left while its pipe is full

    def lines(self) -> Iterator[bytearray | None]:
        """Yield each line without its newline; None in place of a line longer than MAX_LINE, which is skipped."""
        line, is_skipped = bytearray(), False
        while chunk := os.read(self._in, 1 << 18):
            for number, piece in enumerate(chunk.split(b"\n")):
                if number and not is_skipped:
                    yield line
                if number:
                    line, is_skipped = bytearray(), False
                line += b"" if is_skipped else piece
                if len(line) > MAX_LINE:
                    line, is_skipped = bytearray(), True
                    yield None
        if line:
            yield line

    def send(self, message: Message | list[Message], seconds: float | None = None) -> None:
        """Write one line; ClientDisconnected if the peer no longer reads, or has not read it in so many seconds."""
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
        if "\\ud" in text:  # a lone surrogate, which is legal in JSON, breaks several clients
            clean = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
            text = json.dumps(json.loads(clean), separators=(",", ":"))
        data = memoryview(text.encode() + b"\n")
        deadline = None if seconds is None else time.monotonic() + seconds
        if not self._lock.acquire(timeout=-1 if seconds is None else seconds):
            raise ClientDisconnected
        sent = 0
        try:
            while sent < len(data):
                sent += self._write_some(data[sent:], deadline)
        finally:
            self.is_broken = self.is_broken or 0 < sent < len(data)
            self._lock.release()

    def close_output(self, seconds: float) -> bool:
        """Refuse further messages; False if one is still being written after so many seconds."""
        if not self._lock.acquire(timeout=seconds):
            return False
        self._is_closed = True
        self._lock.release()
        return True

    def _write_some(self, data: memoryview, deadline: float | None) -> int:
        # Pieces of PIPE_BUF never block a pipe that polls as writable, so the thread notices when the peer leaves.
        try:
            if self._is_closed or self.is_broken:
                raise ClientDisconnected
            if self._poll:
                left = None if deadline is None else 1000 * max(0.0, deadline - time.monotonic())
                events = dict(self._poll.poll(left))
                if not events.get(self._out, 0) & select.POLLOUT:
                    raise ClientDisconnected
            return os.write(self._out, data[: select.PIPE_BUF if self._poll else 1 << 16])
        except OSError as error:
            raise ClientDisconnected from error


def _private_streams() -> tuple[int, int]:
    """Private copies of stdin and stdout. After that fd 0 is empty and fd 1 is stderr, also for user code."""
    sys.stdout.flush()
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return read_fd, write_fd


# --- requests ---------------------------------------------------------------------------------------------------


class ProtocolError(Exception):
    """An error that is answered as a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


class ToolError(Exception):
    """An error that the model can correct: answered as a tool result with isError."""


class ProtocolContext(NamedTuple):
    """The revision that a request speaks, and its client's capabilities."""

    version: str
    capabilities: Received

    @property
    def modern(self) -> bool:
        return self.version == LATEST

    def since(self, version: str) -> bool:
        return self.version >= version


class Request:
    """A request in flight. It is answered once, or never if it is cancelled."""

    def __init__(
        self,
        id: str | int,
        method: str,
        params: Message,
        dialect: ProtocolContext,
        answer: Callable[[Message | None], None],
    ) -> None:
        self.id, self.method, self.params, self.dialect = id, method, params, dialect
        self._answer = answer  # called with None for a request that gets no answer
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self.job: Job | None = None
        self.started = self.beat = time.monotonic()
        token = _mapping(params.get("_meta")).get("progressToken")
        self.token = token if _is_id(token) else None

    @property
    def call(self) -> tuple[object, object]:
        """What makes two tools/call requests the same call."""
        return self.params.get("name"), self.params.get("arguments") or {}

    def result(self, result: Message) -> bool:
        """Answer, in the request's own dialect. False when it was answered or cancelled before."""
        if "content" in result and not self.dialect.since("2025-06-18"):
            result = {**result, "content": [block for block in result["content"] if block["type"] != "resource_link"]}
        if self.dialect.modern:
            identity = {"io.modelcontextprotocol/serverInfo": {key: server_info()[key] for key in ("name", "version")}}
            result = {"resultType": "complete", **result, "_meta": {**identity, **result.get("_meta", {})}}
        return self._close({"jsonrpc": "2.0", "id": self.id, "result": result})

    def error(self, error: ProtocolError) -> bool:
        return self._close(error_message(error, self.id))

    def drop(self) -> bool:
        """Close it without an answer."""
        return self._close(None)

    def progress(self, message: str, send: Callable[[Message], None]) -> None:
        """Send a heartbeat with the seconds so far, if the client asked for progress."""
        with self._lock:
            now = time.monotonic()
            if self.closed.is_set() or self.token is None or now - self.beat < HEARTBEAT_SECONDS:
                return
            self.beat = now
            params = {"progressToken": self.token, "progress": round(now - self.started, 3)}
            if message and self.dialect.since("2025-03-26"):
                params["message"] = message[-200:]
            send(rpc("notifications/progress", params))

    def _close(self, message: Message | None) -> bool:
        with self._lock:
            if self.closed.is_set():
                return False
            self._answer(message)
            self.closed.set()
        return True


class Batch:
    """Collects the answers to an array of requests (2025-03-26) and sends them as one array."""

    def __init__(self, send: Callable[[list[Message]], None], expected: int) -> None:
        self._send, self._left = send, expected
        self._answers: list[Message] = []
        self._lock = threading.Lock()

    def add(self, message: Message | None) -> None:
        with self._lock:
            self._left -= 1
            if message is not None:
                self._answers.append(message)
            if not self._left and self._answers:
                self._send(self._answers)


def rpc(method: str, params: Received | None = None, id: str | int | None = None) -> Message:
    """A request, or without an id a notification."""
    rest = {} if params is None else {"params": params}
    return {"jsonrpc": "2.0", **({} if id is None else {"id": id}), "method": method, **rest}


def error_message(error: ProtocolError, id: str | int | None) -> Message:
    body: Message = {"code": error.code, "message": str(error)}
    if error.data is not None:
        body["data"] = error.data
    # A request whose id could not be read is answered without one: no revision's schema allows null.
    return {"jsonrpc": "2.0", **({} if id is None else {"id": id}), "error": body}


def _is_id(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _mapping(value: object) -> Received:
    return value if isinstance(value, dict) else {}


def _present(mapping: Received) -> Message:
    """`mapping` without nulls, which some clients send for absent members."""
    return {name: value for name, value in mapping.items() if value is not None}


# --- jobs: work for a session, which may outlive the call that began it ---------------------------------------------


class PendingReply(Generic[T]):
    """Waits for the reply to a request of ours. The first reply counts."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: T | None = None
        self.problem: Exception | None = None

    def settle(self, value: T | None = None, *, problem: Exception | None = None) -> None:
        if not self.done.is_set():
            self.value, self.problem = value, problem
            self.done.set()


class SamplingRequest(PendingReply[str]):
    """A question for the client's own model."""

    def __init__(self, messages: list[Message], max_tokens: int | None = None, known: int = 0) -> None:
        super().__init__()
        self.messages, self.max_tokens = messages, max_tokens
        self.known = known  # how many leading messages the client has seen, its own answers included

    def prompt(self, known: int = 0) -> str:
        """The question as one text: a single message verbatim, a conversation with its roles."""
        if len(self.messages) == 1:
            return text_of(self.messages[0])
        return "\n\n".join(f"[{message['role']}]\n{text_of(message)}" for message in self.messages[known:])

    def sampling(self) -> Message:
        """Parameters of sampling/createMessage."""
        system = "\n\n".join(text_of(m) for m in self.messages if m["role"] == "system")
        turns = [
            {
                "role": "assistant" if m["role"] == "assistant" else "user",
                "content": {"type": "text", "text": text_of(m)},
            }
            for m in self.messages
            if m["role"] != "system"
        ]
        return {
            "messages": turns,
            "maxTokens": self.max_tokens or 4096,
            **({"systemPrompt": system} if system else {}),
        }

    def refuse(self, why: str) -> None:
        self.settle(problem=_model_error(why, "refused"))

    def take(self, message: Received) -> None:
        """Settle with the message that answers sampling/createMessage."""
        if "error" in message:
            self.refuse(f"the client's model: {_mapping(message['error']).get('message', 'refused')}")
        else:
            self.settle_sampled(message.get("result"))

    def settle_sampled(self, result: object) -> None:
        """Settle with the text of a CreateMessageResult."""
        content = _mapping(result).get("content")
        blocks = content if isinstance(content, list) else [content]
        texts = [b["text"] for b in blocks if isinstance(b, dict) and isinstance(b.get("text"), str)]
        if texts:
            self.settle("\n".join(texts))
        else:
            self.refuse("the client's model answered without text")


def text_of(message: Received) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "(an image)") for part in content)


class Job:
    """Work on a thread. One request at a time waits for it; while none does, the outcome is kept.

    state       is seen by                  the waiting request is answered with
    queued      `begun_at` is None          the handle, after `patience` seconds
    running     none of the others          the handle, after `patience` seconds
    suspended   `pending_round` is filled   the questions of the round, at once
    done        `ended` is set              the outcome, at once

    The server's lock guards all of it.
    """

    def __init__(self, server: Server, work: Callable[[Job], Message]) -> None:
        self.server, self.work = server, work
        self.handle = "job_" + os.urandom(12).hex()
        self.request: Request | None = None
        self.call: tuple[object, object] | None = None  # the call that may continue a suspended job by its requestState
        self.asks: list[SamplingRequest] = []  # questions for the next round, in order of arrival
        self.pending_round: dict[str, SamplingRequest] = {}  # the questions of this round that have no answer yet
        self.round = 0
        self.numbers = itertools.count(1)  # of the questions: a client may repeat answers of an earlier round
        self.last_ask = 0.0
        self.outcome: Message = {}
        self.begun_at: float | None = None
        self.patience = server.max_wait
        self.ended = threading.Event()
        self.last_line = ""
        self.touched = time.monotonic()
        self.stops: list[Callable[[], None]] = []  # each ends something that runs; the work itself adds them
        self.cancelled = threading.Event()

    @property
    def is_detached(self) -> bool:
        """Whether the client has the handle of work that goes on without a request."""
        held = self.request is None and self.handle in self.server.jobs
        return held and not self.ended.is_set() and not self.cancelled.is_set()

    def run(self) -> None:
        """Do the work and hand over its outcome; nothing escapes."""
        self.server.running.add(self)
        try:
            self.begun_at = time.monotonic()
            if self.cancelled.is_set():
                raise ToolError("cancelled")
            outcome = self.work(self)
        except Exception as error:  # a tool must not take the server with it
            outcome = text_result(error_text(error), is_error=True)
        finally:
            self.server.running.discard(self)
        with self.server.lock:
            self.outcome, self.touched = outcome, time.monotonic()
            self.ended.set()
            self._deliver()

    def _deliver(self) -> None:
        if self.request is not None:
            self.request.result(self.outcome)
            self.request = None
        elif not self.cancelled.is_set():
            return
        self.server.jobs.pop(self.handle, None)

    def attach(self, request: Request) -> None:
        """Let `request` wait for the outcome, or answer it at once if it is there."""
        with self.server.lock:
            self.touched = time.monotonic()
            self.request, request.job = request, self
            if self.ended.is_set():
                self._deliver()
            elif self.pending_round:
                self.pose(request)
            else:
                self.next_round()

    def detach(self) -> None:
        """Let the work go on without a request: the client has the handle, and the outcome is kept for it."""
        self.request = None
        self.server.jobs[self.handle] = self

    def return_handle(self) -> None:
        """Answer the waiting request with the handle: the work goes on without it."""
        with self.server.lock:
            if (request := self.request) is None:
                return
            self.detach()
            self.patience = self.server.max_wait
            waited = round(time.monotonic() - request.started)
            following = f"still running after {waited} s: call resume with this handle to wait for the result"
            if self.begun_at is None:
                following = (
                    "waits for an earlier call of this session that still runs: call resume with this handle to wait "
                    'longer, clear_repl_context to stop both, or use session_id "new"'
                )
            status = {"status": "running", "handle": self.handle, "next": following}
            if self.last_line:
                status["last_output"] = self.last_line
            request.result(json_result(status))

    def cancel(self, why: str, *, by_client: bool = False) -> None:
        """Stop the work, and fail its open questions.

        A request that its own client cancelled gets no answer; any other is answered with the reason.
        """
        with self.server.lock:
            self.cancelled.set()
            request, self.request = self.request, None
            for ask in (*self.asks, *self.pending_round.values()):
                ask.refuse(why)
            self.asks, self.pending_round = [], {}
        if request is not None:
            request.drop() if by_client else request.result(text_result(why, is_error=True))
        if self.begun_at is not None:
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        """Stop the work; repeated, since the first try may come just before the code starts."""
        until = time.monotonic() + 5
        while not self.ended.is_set() and time.monotonic() < until:
            for stop in list(self.stops):
                stop()
            self.ended.wait(0.02)

    # questions for the client's model

    def ask(self, asks: list[SamplingRequest]) -> None:
        """Add questions to the round that is being gathered."""
        with self.server.lock:
            self.asks += asks
            self.last_ask = time.monotonic()

    def wait(self, asks: list[SamplingRequest], cancel: threading.Event | None = None) -> list[str | Exception]:
        """The answers, with an error in the place of each that failed. The threads that wait here pose the rounds."""
        for ask in asks:
            while not ask.done.wait(GATHER_SECONDS if self.asks else 0.25):
                if self.cancelled.is_set() or (cancel is not None and cancel.is_set()):
                    raise _model_error("cancelled", "cancelled")
                with self.server.lock:
                    self.next_round()
        return [ask.problem or ask.value or "" for ask in asks]

    def next_round(self) -> None:
        """Put the gathered questions to the client, if a request waits and no question has come for a moment."""
        rested = time.monotonic() - self.last_ask >= GATHER_SECONDS
        if self.asks and not self.pending_round and rested and self.request is not None:
            self.pending_round = {f"q{next(self.numbers)}": ask for ask in self.asks}
            self.asks = []
            self.round += 1
            self.pose(self.request)

    def pose(self, request: Request) -> None:
        """Put the open questions to the client, in the way that its dialect has for it."""
        self.touched = time.monotonic()
        if "sampling" not in request.dialect.capabilities:
            self.detach()
            request.result(json_result(self._needs_completions()))
        elif request.dialect.modern:
            self.call = request.call
            self.detach()
            request.result(self._input_required())
        else:  # the client is asked while its call waits
            asks, self.pending_round = self.pending_round, {}
            for ask in asks.values():
                self.server.call_client("sampling/createMessage", ask.sampling(), ask.take)

    def _needs_completions(self) -> Message:
        return {
            "status": "needs_completions",
            "handle": self.handle,
            "requests": [self._request_text(ask) for ask in self.pending_round.values()],
            "next": "answer each request yourself (or with sub-agents), then call resume with this handle and the "
            "answers, one string for each request, in their order",
        }

    def _request_text(self, ask: SamplingRequest) -> str:
        """The question as the host sees it: only the new messages of a conversation that it knows."""
        if not ask.known:
            return ask.prompt()
        whole = self.server.store_output(ask.prompt())
        opening = next((text_of(m) for m in ask.messages if m["role"] == "user"), "")[:80]
        return (
            f"(continues after your last answer in {opening!r}; the whole conversation is the resource {whole})\n\n"
            + ask.prompt(ask.known)
        )

    def _input_required(self) -> Message:
        method = "sampling/createMessage"
        inputs = {key: {"method": method, "params": ask.sampling()} for key, ask in self.pending_round.items()}
        state = f"{self.handle}.{self.round}"  # the handle cannot be guessed, so the state needs no seal
        return {"resultType": "input_required", "inputRequests": inputs, "requestState": state}

    def set_results(self, answers: list[str] | None) -> None:
        """Answer the whole round; ToolError if the number of answers is wrong."""
        with self.server.lock:
            asks = self.pending_round.values()
            if answers is None or (not asks and not answers):
                return
            if len(answers) != len(asks):
                raise ToolError(f"{len(asks)} answers are needed, in the order of the requests, not {len(answers)}")
            for ask, answer in zip(asks, answers, strict=True):
                ask.settle(answer)
            self.pending_round = {}

    def answer_inputs(self, responses: object) -> None:
        """Take a modern client's inputResponses; questions that are missing there stay open."""
        with self.server.lock:
            for key, response in _mapping(responses).items():
                if ask := self.pending_round.pop(key, None):
                    ask.settle_sampled(response)


def error_text(error: Exception) -> str:
    """The error as the model reads it, with its hint. Errors of no known kind are also logged."""
    if isinstance(error, ToolError):
        return str(error)
    if hint := getattr(error, "hint", ""):
        return f"{error}\nnext: {hint}"
    log(f"{type(error).__name__} in a tool: {error}")
    return f"{type(error).__name__}: {error}"


def _model_error(message: str, code: str) -> rlm_backends.BackendError:
    """A BackendError, as rlm expects it of a backend."""
    return rlm_backends.BackendError(message, code=code, provider="the MCP client")


def text_result(text: str, *, is_error: bool = False) -> Message:
    return {"content": [{"type": "text", "text": text}], "isError": is_error}


def json_result(value: object) -> Message:
    return text_result(json.dumps(value, ensure_ascii=False))


def log(text: str) -> None:
    """Write a line for the client's log; a closed stderr is ignored."""
    with contextlib.suppress(OSError, ValueError):
        print(f"rlm mcp-serve: {text}", file=sys.stderr, flush=True)


# --- sessions ---------------------------------------------------------------------------------------------------


class Session:
    """A named REPL: a thread that runs its calls in order, and a worker process for each project."""

    def __init__(self, server: Server, name: str) -> None:
        import queue

        self.server, self.name = server, name
        self.created = self.used = time.monotonic()
        self.calls = 0
        self.directory: str | None = None
        self.has_directory = False
        self.job: Job | None = None
        self._sandboxes: dict[str | None, rlm_sandbox.BaseSandbox] = {}
        self._partial: set[str | None] = set()  # projects with options left out of an untrusted rlm.toml
        self._notes: list[str] = []
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._work, name=f"session {name}", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Run `job` after the earlier ones; ToolError if the session cannot take it."""
        if (busy := self.job) is not None and busy.is_detached:
            raise ToolError(
                f"this session still runs {busy.handle}: call resume with that handle, or clear_repl_context to stop it"
            )
        if self._queue.qsize() >= MAX_WAITING:
            raise ToolError(f"{MAX_WAITING} calls are waiting for this session already")
        running_since = None if busy is None or busy.cancelled.is_set() else busy.begun_at
        if running_since is not None and time.monotonic() - running_since > PARALLEL_SECONDS:
            # Not of the same turn: the client may have given up on the one that runs without cancelling it.
            job.patience = min(job.patience, QUEUE_SECONDS)
        self.used = time.monotonic()
        self.calls += 1
        self._queue.put(job)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self.job = job
            job.run()
            self.job = None
            self.used = time.monotonic()

    def sandbox(self) -> rlm_sandbox.BaseSandbox:
        """The REPL of the current project, started at its first use."""
        directory = self.folder()
        sandbox = self._sandboxes.get(directory)
        if sandbox is None:
            sandbox, self._notes = self.server.new_sandbox(directory)
            self._sandboxes[directory] = sandbox
            if self._notes:
                self._partial.add(directory)
            if self._closed:
                self.close()
        return sandbox

    def news(self) -> list[str]:
        """Notes on the start of the REPL; each is returned once."""
        notes, self._notes = self._notes, []
        return notes

    def clear(self) -> None:
        """Clear the REPL; start it anew if options were left out, since the file may be trusted by now."""
        if self.directory in self._partial:
            self._partial.discard(self.directory)
            self.forget()
        elif self.started:
            self.sandbox().reset()

    def folder(self) -> str | None:
        """The project's folder."""
        if not self.has_directory:
            self.directory, self.has_directory = self.server.default_directory(), True
        return self.directory

    def forget(self) -> None:
        """Close the current REPL; the next use starts another."""
        if sandbox := self._sandboxes.pop(self.directory, None):
            _close(sandbox)

    @property
    def started(self) -> bool:
        return self.directory in self._sandboxes

    def count_variables(self) -> rlm.Future[int] | None:
        """The number of variables, once it is known; None if the session is busy."""
        if self.job is not None or not self._queue.empty():
            return None
        return rlm.spawn(lambda: len(self.sandbox().names()) if self.started else 0)

    def close(self) -> None:
        self._closed = True
        self._queue.put(None)
        if self.job is not None:
            self.job.cancel("the session was ended")
        for sandbox in list(self._sandboxes.values()):
            _close(sandbox)

    def kill(self) -> None:
        for sandbox in list(self._sandboxes.values()):
            with contextlib.suppress(Exception):  # as in Server.close
                sandbox.kill()


def _close(sandbox: rlm_sandbox.BaseSandbox) -> None:
    try:
        sandbox.close()
    except Exception as error:  # a container that cannot be removed must not block the client
        log(f"closing a sandbox: {error}")


# --- the server -------------------------------------------------------------------------------------------------

# Options that loosen the sandbox, and those that tighten it.
LOOSENING = (
    *("allowed_imports", "allowed_paths", "tools", "mcp", "local_memory", "docker_image", "docker_network_disabled"),
)
CONFINING = ("require", "docker_mount", "docker_runtime")


class Server:
    def __init__(
        self, wire: StdioTransport, *, env: str | None = None, workspace: str | None = None, max_wait: float = 45
    ) -> None:
        self.wire, self.env, self.max_wait = wire, env, max_wait
        self.workspace = os.path.realpath(workspace) if workspace else None
        self.lock = threading.RLock()
        self.sessions: dict[str, Session] = {}
        self.jobs: dict[str, Job] = {}  # those whose handle the client has
        self.running: set[Job] = set()
        self.outputs: dict[str, str] = {}
        self.log_dirs: list[str] = []
        self.inflight: dict[str | int, Request] = {}
        self._legacy: ProtocolContext | None = None
        self._outgoing: dict[str, Callable[[Message], None]] = {}
        self._ids = itertools.count(1)
        self._roots: list[str] = []
        self._modern_roots = False
        self._roots_known = threading.Event()
        self._roots_known.set()
        self._listeners: dict[str | int, Request] = {}
        self._main = threading.current_thread()
        self._parent = os.getppid()
        self._warm = False

    def run(self) -> None:
        """Serve until stdin ends."""
        threading.Thread(target=self._tick, name="clock", daemon=True).start()
        for line in self.wire.lines():
            self.receive(line)
        self._drain()

    def _drain(self) -> None:
        """Answer calls that arrived together with the end of stdin, as from a script's pipe."""
        end = time.monotonic()
        for request in list(self.inflight.values()):
            if end - request.started < 0.05:
                request.closed.wait(max(0.0, end + DRAIN_SECONDS - time.monotonic()))

    def close(self) -> None:
        """Kill every worker."""
        for session in list(self.sessions.values()):
            session.kill()
        for job in list(self.running):
            job.cancelled.set()
            with contextlib.suppress(Exception):  # the process is ending: one failure must not keep the others alive
                for stop in list(job.stops):
                    stop()
        rlm_backends.stop_programs()

    def send(self, message: Message | list[Message]) -> None:
        """Write to the client; if it is gone, make the main thread end the process."""
        try:
            self.wire.send(message)
        except ClientDisconnected:
            if threading.current_thread() is self._main:
                raise
            os.kill(os.getpid(), signal.SIGTERM)

    # incoming

    def receive(self, line: bytearray | None) -> None:
        """Answer one line, whatever it is."""
        try:
            self._line(line)
            if not self._warm:
                self._warm = True
                threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()
        except ProtocolError as error:
            self.send(error_message(error, None))
        except ClientDisconnected:
            raise
        except Exception as error:  # no line may end the server and its sessions
            log(f"{type(error).__name__} in a message: {error}")

    def _line(self, line: bytearray | None) -> None:
        if line is None:
            raise ProtocolError(INVALID_REQUEST, f"a message may have {MAX_LINE} bytes")
        if line.isspace() or not line:
            return
        message = _parse(line)
        if isinstance(message, list):
            self._batch(message)
        else:
            self._message(message, self._answer)

    def _warm_up(self) -> None:
        with contextlib.suppress(Exception):  # a sandbox that cannot start fails again in the call that needs it
            if self.env != "docker":
                rlm_sandbox.warm()
            _ = rlm.RLM  # which imports the module

    def _batch(self, messages: list[Any]) -> None:
        if self._legacy is None or self._legacy.version != "2025-03-26":
            raise ProtocolError(INVALID_REQUEST, "arrays of messages are part of revision 2025-03-26 alone")
        if not messages:
            raise ProtocolError(INVALID_REQUEST, "an empty array")
        requests = [m for m in messages if not isinstance(m, dict) or ("id" in m and "method" in m)]
        batch = Batch(self.send, len(requests))
        for message in messages:
            try:
                if _mapping(message).get("method") == "initialize" and "id" in message:
                    raise ProtocolError(INVALID_REQUEST, "initialize cannot be part of an array")
                self._message(message, batch.add)
            except ProtocolError as error:
                batch.add(error_message(error, message["id"] if _is_id(_mapping(message).get("id")) else None))

    def _message(self, message: object, answer: Callable[[Message | None], None]) -> None:
        if not isinstance(message, dict):
            raise ProtocolError(INVALID_REQUEST, "a message is a JSON object")
        if "method" not in message and ("result" in message or "error" in message):
            self._response(message)
            return
        id, method, params = message.get("id"), message.get("method"), message.get("params")
        params = {} if params is None else params
        if "id" in message and not _is_id(id):
            raise ProtocolError(INVALID_REQUEST, "an id is a string or an integer")
        if id in self.inflight:  # answered without the id, which would answer the first request
            raise ProtocolError(INVALID_REQUEST, f"the id {id!r:.100} is in flight already")
        try:
            if not isinstance(method, str) or message.get("jsonrpc") != "2.0":
                raise ProtocolError(INVALID_REQUEST, 'a message has "jsonrpc": "2.0" and a method')
            if id is None:
                if isinstance(params, dict):
                    self._notification(method, params)
                return
            if not isinstance(params, dict):
                raise ProtocolError(INVALID_PARAMS, "params is an object")

            def close(message: Message | None) -> None:
                self.inflight.pop(id, None)
                answer(message)

            self._request(Request(id, method, params, self._dialect(method, params), close))
        except ProtocolError as error:
            answer(error_message(error, id))

    def _answer(self, message: Message | None) -> None:
        if message is not None:
            self.send(message)

    def _dialect(self, method: str, params: Message) -> ProtocolContext:
        """The revision and the client's capabilities, from the request itself or from the handshake."""
        meta = params.get("_meta")
        meta = {} if meta is None else meta
        if not isinstance(meta, dict):
            raise ProtocolError(INVALID_PARAMS, "_meta is an object")
        version = meta.get("io.modelcontextprotocol/protocolVersion")
        if version is None:
            if method in ("initialize", "ping"):
                return self._legacy or ProtocolContext(HANDSHAKE[-1], {})
            if self._legacy is None or method == "server/discover":
                raise ProtocolError(INVALID_PARAMS, "_meta names no io.modelcontextprotocol/protocolVersion")
            return self._legacy
        if not isinstance(version, str):
            raise ProtocolError(INVALID_PARAMS, "io.modelcontextprotocol/protocolVersion is a string")
        if version != LATEST:
            data = {"supported": list(SUPPORTED), "requested": version}
            raise ProtocolError(UNSUPPORTED_VERSION, "unsupported protocol version", data)
        capabilities = meta.get("io.modelcontextprotocol/clientCapabilities")
        if not isinstance(capabilities, dict):
            raise ProtocolError(INVALID_PARAMS, "_meta names no io.modelcontextprotocol/clientCapabilities")
        return ProtocolContext(LATEST, _present(capabilities))

    def _request(self, request: Request) -> None:
        methods = MODERN_METHODS if request.dialect.modern else HANDSHAKE_METHODS
        method = methods.get(request.method)
        if method is None:
            raise ProtocolError(NO_METHOD, f"no method {request.method[:100]!r}")
        self.inflight[request.id] = request
        try:
            answer = method(self, request)
        except ProtocolError as error:
            request.error(error)
        except ClientDisconnected:
            raise
        except Exception as error:  # answered, so that the client does not wait forever
            log(f"{type(error).__name__} in {request.method}: {error}")
            request.error(ProtocolError(INTERNAL, f"{type(error).__name__}: {error}"))
        else:
            if answer is not None:
                request.result(answer)

    def _notification(self, method: str, params: Message) -> None:
        if method == "notifications/cancelled":
            id = params.get("requestId")
            request = self.inflight.get(id) if isinstance(id, (str, int)) else None
            if request is not None and request.method != "initialize":
                self._listeners.pop(request.id, None)
                request.drop()
                if request.job is not None:
                    request.job.cancel("cancelled by the client", by_client=True)
        elif method in ("notifications/initialized", "notifications/roots/list_changed"):
            self._ask_roots()

    # requests to a handshake client, which is asked while a call of its waits

    def call_client(self, method: str, params: Message | None, take: Callable[[Message], None]) -> None:
        id = f"rlm-{next(self._ids)}"
        self._outgoing[id] = take
        self.send(rpc(method, params, id))

    def _response(self, message: Message) -> None:
        id = message.get("id")
        take = self._outgoing.pop(id, None) if isinstance(id, str) else None
        if take is not None:
            take(message)

    def _ask_roots(self) -> None:
        if self._legacy is None or "roots" not in self._legacy.capabilities:
            return
        self._roots_known.clear()
        self.call_client("roots/list", None, self._take_roots)

    def _wants_roots(self, request: Request) -> bool:
        """Whether to ask a 2026-07-28 client for its roots first: once, and for each set_project.

        A client that declares roots and gives none is restricted to the server's own folder.
        """
        if not request.dialect.modern or "roots" not in request.dialect.capabilities:
            return False
        responses = request.params.get("inputResponses")
        if responses is None:
            return request.params["name"] == "set_project" or not self._modern_roots
        given = _mapping(_mapping(responses).get("roots"))
        if isinstance(given.get("roots"), list):
            self._take_roots({"result": given})
        else:
            self._roots = [self.workspace or _working_directory()]
        self._modern_roots = True
        return False

    def _take_roots(self, message: Message) -> None:
        roots = _mapping(message.get("result")).get("roots")
        uris = [_mapping(root).get("uri") for root in roots] if isinstance(roots, list) else []
        self._roots = [path for uri in uris if isinstance(uri, str) and (path := _path_of(uri))]
        self._roots_known.set()

    # the clock

    def _tick(self) -> None:
        tick = min(0.5, self.max_wait / 4, HEARTBEAT_SECONDS / 2)
        while True:
            time.sleep(tick)
            now = time.monotonic()
            for request in list(self.inflight.values()):
                job = request.job
                if job is None:
                    continue
                request.progress(job.last_line, self.send)
                if now - request.started >= job.patience:
                    job.return_handle()
            self._expire(now)
            if os.getppid() != self._parent:  # the client died, but another process holds its end of the pipe open
                os.kill(os.getpid(), signal.SIGTERM)

    def _expire(self, now: float) -> None:
        with self.lock:
            old_jobs = [j for j in self.jobs.values() if j.request is None and now - j.touched > IDLE_SECONDS]
            old = [s for s in self.sessions.values() if s.job is None and now - s.used > IDLE_SECONDS]
            for job in old_jobs:
                del self.jobs[job.handle]
            for session in old:
                del self.sessions[session.name]
        for job in old_jobs:
            job.cancel("nobody asked for it for 30 minutes")
        for session in old:
            threading.Thread(target=session.close, daemon=True).start()

    # sessions and jobs

    def session(self, name: str | None) -> Session:
        """The session of that name; "new" makes one, None is the shared one."""
        name = name or "default"
        with self.lock:
            if name == "new":
                name = "s_" + os.urandom(9).hex()
            elif name not in self.sessions and name != "default":
                raise ToolError(f'no session {name[:80]!r}: it was ended or never made; use session_id "new"')
            if name not in self.sessions:
                if len(self.sessions) >= MAX_SESSIONS:
                    raise ToolError(f"{MAX_SESSIONS} sessions are open: end one with destroy_session")
                self.sessions[name] = Session(self, name)
            return self.sessions[name]

    def default_directory(self) -> str | None:
        """The folder a session starts in: the client's first root, else the server's own."""
        if not self._roots_known.wait(1.0):
            self._roots_known.set()  # do not wait again for a client that does not answer
        for path in (*self._roots[:1], self.workspace, _working_directory()):
            if path and os.path.isdir(path) and not is_forbidden_root(path):
                return os.path.realpath(path)
        return None

    def allowed_directory(self, path: str) -> str:
        """`path` as a folder that a session may read, or ToolError."""
        try:
            path = os.path.realpath(os.path.join(self.workspace or _working_directory(), os.path.expanduser(path)))
        except ValueError:  # a NUL or half a surrogate pair
            raise ToolError(f"no folder can be called {path!r:.200}") from None
        if not os.path.isdir(path):
            raise ToolError(f"no folder {path!r}")
        bounds = [os.path.realpath(p) for p in (*self._roots, self.workspace) if p]
        if bounds and not any(path == b or path.startswith(b.rstrip(os.sep) + os.sep) for b in bounds):
            raise ToolError(f"{path!r} is outside of what this server was given: {', '.join(bounds)}")
        if is_forbidden_root(path):
            raise ToolError(f"{path!r} is not a project's folder")
        return path

    def configuration(
        self, directory: str | None, given: Mapping[str, object] = {}, *, for_code: bool = False
    ) -> tuple[rlm_config.Configuration, list[str]]:
        """The options in `directory`, and notes on those that are left out; ToolError if they cannot be used.

        An option that an untrusted rlm.toml may not set is left out if it would loosen the sandbox, and is an error if
        not: it could send the data elsewhere. `for_code`, where no model is called: an error only if it confines code.
        """
        without: list[str] = []
        notes: list[str] = []
        while True:
            try:
                options = {"environment": self.env, **given}
                return rlm.load_config(options, cwd=directory or os.sep, without=without), notes
            except rlm.ConfigError as error:
                problem = f"{error}" + (f"; {error.hint}" if error.hint else "")
                key = error.untrusted
                can_go = key not in CONFINING if for_code else key in LOOSENING
                if not key or key in without or not can_go:
                    raise ToolError(problem) from None
                without.append(key)
                notes.append(f"left out: {problem}, and clear_repl_context")

    def new_sandbox(self, directory: str | None) -> tuple[rlm_sandbox.BaseSandbox, list[str]]:
        """A REPL for work in `directory`, and notes for its user."""
        configuration, notes = self.configuration(directory, for_code=True)
        given: Message = {"output_limit": OUTPUT_LIMIT, "docker_pool": 0}
        given["allowed_paths"] = (configuration.values["allowed_paths"] or [directory]) if directory else []
        for option in ("local_memory", "docker_memory"):
            if configuration.origins[option] == "default":
                given[option] = PROFILES["extended"][1]
        sandbox = rlm.make_sandbox(rlm.Options(**(configuration.values | given)))
        assert isinstance(sandbox, rlm_sandbox.BaseSandbox)  # a configuration names no object of a program's own
        return sandbox, notes

    def start(self, request: Request, session: Session | None, work: Callable[[Job], Message]) -> None:
        """Do `work` for `request`: after the earlier calls of `session`, or at once without one."""
        job = Job(self, work)
        job.request, request.job = request, job
        if session is not None:
            session.submit(job)
        elif len(self.running) >= MAX_RUNNING:
            raise ToolError(f"{MAX_RUNNING} calls are running already")
        else:
            threading.Thread(target=job.run, name=job.handle, daemon=True).start()

    def waiting_job(self, request: Request) -> Job:
        """The suspended job that a requestState of ours names; ProtocolError for anything else."""
        handle, _, asked_round = str(request.params["requestState"]).partition(".")
        job = self.jobs.get(handle)
        is_fresh = job is not None and job.request is None and time.monotonic() - job.touched <= IDLE_SECONDS
        if job and is_fresh and (asked_round, request.call) == (str(job.round), job.call):
            return job
        raise ProtocolError(INVALID_PARAMS, "this requestState is unknown, was used, has expired or is another call's")

    # results

    def truncate(self, text: str, limit: int = PREVIEW_CHARS) -> list[Message]:
        """`text` as content; if it is longer than `limit`, a preview and a link to a resource with the whole."""
        if len(text) <= limit:
            return [{"type": "text", "text": text}]
        uri = self.store_output(text)
        head, tail = text[: limit * 7 // 10], text[-(limit // 5) :]
        left_out = len(text) - len(head) - len(tail)
        preview = f"{head}\n\n... {left_out} characters left out, the whole is the resource {uri} ...\n\n{tail}"
        link = {"type": "resource_link", "uri": uri, "name": "whole output", "mimeType": "text/plain"}
        return [{"type": "text", "text": preview}, link]

    def store_output(self, text: str) -> str:
        """The URI of a new resource that holds `text`; the oldest beyond MAX_OUTPUTS are dropped."""
        uri = "rlm://output/" + os.urandom(8).hex()
        with self.lock:
            self.outputs[uri] = text
            while len(self.outputs) > MAX_OUTPUTS:
                del self.outputs[next(iter(self.outputs))]
        self.resources_changed()
        return uri

    def resources_changed(self) -> None:
        """Notify a handshake client, and the subscriptions of modern ones."""
        method = "notifications/resources/list_changed"
        if self._legacy is not None:
            self.send(rpc(method))
        for request in list(self._listeners.values()):
            self.send(rpc(method, {"_meta": {"io.modelcontextprotocol/subscriptionId": request.id}}))

    # methods

    def initialize(self, request: Request) -> Message:
        version = request.params.get("protocolVersion")
        if not isinstance(version, str):
            raise ProtocolError(INVALID_PARAMS, "initialize names a protocolVersion")
        capabilities = _present(_mapping(request.params.get("capabilities")))
        self._legacy = ProtocolContext(version if version in HANDSHAKE else HANDSHAKE[-1], capabilities)
        return {
            "protocolVersion": self._legacy.version,
            "capabilities": CAPABILITIES,
            "serverInfo": fields_for_version(server_info(), self._legacy.version),
            "instructions": INSTRUCTIONS,
        }

    def discover(self, request: Request) -> Message:
        return {
            "supportedVersions": list(SUPPORTED),
            "capabilities": CAPABILITIES,
            "instructions": INSTRUCTIONS,
            "_meta": {"io.modelcontextprotocol/serverInfo": server_info()},
            **cache_hints(3_600_000, "public"),
        }

    def ping(self, request: Request) -> Message:
        return {}

    def list_tools(self, request: Request) -> Message:
        return _page(request, "tools", [tool.described() for tool in TOOLS.values()], cache_hints(3_600_000, "public"))

    def call_tool(self, request: Request) -> Message | None:
        name, arguments = request.params.get("name"), request.params.get("arguments")
        arguments = {} if arguments in (None, "") else _from_json("object", arguments)
        if not isinstance(name, str) or name not in TOOLS:
            raise ProtocolError(INVALID_PARAMS, f"no tool {name!r:.100}; there are {', '.join(TOOLS)}")
        if not isinstance(arguments, dict):
            raise ProtocolError(INVALID_PARAMS, "arguments is an object")
        if request.dialect.modern and request.params.get("requestState") is not None:
            job = self.waiting_job(request)
            job.answer_inputs(request.params.get("inputResponses"))
            job.attach(request)
            return None
        tool = TOOLS[name]
        try:
            if tool.in_folder and self._wants_roots(request):
                return {"resultType": "input_required", "inputRequests": {"roots": {"method": "roots/list"}}}
            tool.run(self, request, **tool.checked(arguments))
            return None
        except ToolError as refusal:
            return text_result(str(refusal), is_error=True)

    def list_resources(self, request: Request) -> Message:
        outputs = [
            {
                "uri": uri,
                "name": uri.rpartition("/")[2],
                "title": "Whole output of a call",
                "description": f"{len(text)} characters that a cell printed",
                "mimeType": "text/plain",
            }
            for uri, text in list(self.outputs.items())
        ]
        return _page(request, "resources", [*outputs, *self._trajectories()], cache_hints(0, "private"))

    def list_templates(self, request: Request) -> Message:
        return _page(request, "resourceTemplates", TEMPLATES, cache_hints(3_600_000, "public"))

    def read_resource(self, request: Request) -> Message:
        uri = request.params.get("uri")
        if not isinstance(uri, str):
            raise ProtocolError(INVALID_PARAMS, "resources/read names a uri")
        text = self.outputs.get(uri)
        kind = "text/plain"
        if text is None and uri.startswith("rlm://trajectory/"):
            text, kind = self._trajectory(uri.removeprefix("rlm://trajectory/")), "application/jsonl"
        if text is None:
            code = INVALID_PARAMS if request.dialect.modern else NO_RESOURCE
            raise ProtocolError(code, "no such resource", {"uri": uri[:1000]})
        contents = [{"uri": uri, "mimeType": kind, "text": text}]
        return {"contents": contents, **(cache_hints(0, "private") if request.dialect.modern else {})}

    def listen(self, request: Request) -> None:
        """Acknowledge a modern client's subscription, which stays open until it is cancelled."""
        wanted = _mapping(request.params.get("notifications"))
        honoured = {"resourcesListChanged": True} if wanted.get("resourcesListChanged") is True else {}
        params = {"_meta": {"io.modelcontextprotocol/subscriptionId": request.id}, "notifications": honoured}
        self.send(rpc("notifications/subscriptions/acknowledged", params))
        if honoured:
            self._listeners[request.id] = request

    def _trajectories(self) -> list[Message]:
        """The newest journals of the projects in use."""
        found = []
        for folder in self.log_dirs:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                found += [
                    (entry.stat().st_mtime, entry.stat().st_size, entry.name[:-6])
                    for entry in entries
                    if TRAJECTORY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
                ]
        return [
            {
                "uri": f"rlm://trajectory/{id}",
                "name": id,
                "title": f"Run of {time.strftime('%Y-%m-%d %H:%M', time.localtime(at))}",
                "description": "the journal of a completion, one JSON event per line",
                "mimeType": "application/jsonl",
                "size": size,
            }
            for at, size, id in sorted(found, reverse=True)[:100]
        ]

    def _trajectory(self, id: str) -> str | None:
        for folder in self.log_dirs:
            path = os.path.join(folder, id + ".jsonl")
            if TRAJECTORY.fullmatch(id + ".jsonl") and os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    return file.read(MAX_TRAJECTORY).decode("utf-8", "replace")
        return None


HANDSHAKE_METHODS: dict[str, Callable[[Server, Request], Message | None]] = {
    "initialize": Server.initialize,
    "ping": Server.ping,
    "tools/list": Server.list_tools,
    "tools/call": Server.call_tool,
    "resources/list": Server.list_resources,
    "resources/templates/list": Server.list_templates,
    "resources/read": Server.read_resource,
}
MODERN_METHODS: dict[str, Callable[[Server, Request], Message | None]] = {
    **{name: method for name, method in HANDSHAKE_METHODS.items() if name not in ("initialize", "ping")},
    "server/discover": Server.discover,
    "subscriptions/listen": Server.listen,
}

CAPABILITIES = {"tools": {"listChanged": True}, "resources": {"listChanged": True}}
INSTRUCTIONS = (
    "A sandboxed, persistent Python. Put long inputs into variables and look at them with code (execute_python) "
    "instead of reading them whole; keep results in variables and print samples. In the code, llm_query(prompt) and "
    "llm_query_batched(prompts) ask a language model. run_completion works through a long input recursively. When a "
    'result says "needs_completions", answer its requests and call resume.'
)
_ICON = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAYAAAAf8/9hAAAAT0lEQVR42mNgGAWMDAwMDP///2dgZGRkYGBgYGBiIBMwkWsAy38S"
    "DUBWz0KMZnQ5ogxA14zuCoIuwKUZ3RV4XUCMZmRXEOUCUjQTdMFgAQAXrCgQYq0zWAAAAABJRU5ErkJggg=="
)
TEMPLATES = (
    {
        "uriTemplate": "rlm://trajectory/{id}",
        "name": "trajectory",
        "title": "Trajectory of a run",
        "description": "The journal of a run_completion: one JSON event per line",
        "mimeType": "application/jsonl",
    },
    {
        "uriTemplate": "rlm://output/{id}",
        "name": "output",
        "title": "Whole output of a call",
        "description": "What a cell printed, where the result shows only a preview",
        "mimeType": "text/plain",
    },
)
# The revision that introduced a field; older clients do not get it.
_SINCE = {
    "annotations": "2025-03-26",
    "title": "2025-06-18",
    "_meta": "2025-06-18",
    "description": "2025-11-25",
    "icons": "2025-11-25",
    "websiteUrl": "2025-11-25",
}


def fields_for_version(item: Message, version: str) -> Message:
    """`item` with the fields of that revision. Of the descriptions only that of serverInfo is new."""
    new = {name for name, since in _SINCE.items() if version < since}
    if "version" not in item:
        new.discard("description")
    return {name: value for name, value in item.items() if name not in new}


def cache_hints(ttl_ms: int, scope: str) -> Message:
    return {"ttlMs": ttl_ms, "cacheScope": scope}


def _page(request: Request, name: str, items: Iterable[Message], hints: Message) -> Message:
    """A list of everything on one page, with the fields of the request's revision."""
    if request.params.get("cursor"):
        raise ProtocolError(INVALID_PARAMS, "no such cursor: everything is on one page")
    page = [fields_for_version(item, request.dialect.version) for item in items]
    return {name: page, **(hints if request.dialect.modern else {})}


@functools.cache
def server_info() -> Message:
    return {
        "name": "rlm",
        "title": "RLM: sandboxed Python and recursive completions",
        "version": _version(),
        "description": "A sandboxed, persistent Python REPL and recursive language model runs over long inputs",
        "websiteUrl": "https://pypi.org/project/flat-rlm/",
        "icons": [{"src": f"data:image/png;base64,{_ICON}", "mimeType": "image/png", "sizes": ["16x16"]}],
    }


def _version() -> str:
    """rlm.__version__, read from its file: importing it would cost more than the rest of the start."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rlm.py")
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        if found := re.search(r'^__version__ = "([^"]+)"', file.read(), re.MULTILINE):
            return found[1]
    return "0"


def _parse(line: bytearray) -> object:
    try:
        return rlm_backends.from_json(line)
    except ValueError as error:
        raise ProtocolError(PARSE_ERROR, f"not a JSON message: {str(error)[:200]}") from None


def _path_of(uri: str) -> str | None:
    """The local folder of a file: URI; None for any other and for what cannot be one."""
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(uri)
        path = unquote(parts.path) if parts.scheme == "file" and parts.netloc in ("", "localhost") else ""
        return path if path and b"\0" not in os.fsencode(path) else None
    except ValueError:
        return None


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return os.sep


def is_forbidden_root(path: str) -> bool:
    """Whether a folder cannot be a project: the root, a home, a hidden folder in it, or a system folder."""
    path, home = os.path.realpath(path), os.path.realpath(os.path.expanduser("~"))
    if path in (os.sep, home, os.path.dirname(home)):
        return True
    if path.startswith(home + os.sep):
        return path[len(home) + 1] == "."
    return path.split(os.sep)[1] in ("etc", "proc", "sys", "dev", "boot", "run")


# --- models: who answers llm_query and run_completion ---------------------------------------------------------------


class SamplingBackend:
    """A backend that the client answers: its model by sampling, or the host that resumes a suspended call."""

    provider, model, supports_tools = "mcp", "the client's model", False

    def __init__(self, job: Job) -> None:
        self._job = job
        self._answered: set[str] = set()  # prefixes of conversations that the client has answered

    def complete(
        self,
        messages: list[Message],
        *,
        max_tokens: int | None = None,
        cancel: threading.Event | None = None,
        **rest: object,
    ) -> str:
        marks = prefix_digests(messages)
        known = max((n for n, mark in enumerate(marks, 1) if mark in self._answered), default=0)
        asks = [SamplingRequest(messages, max_tokens, known)]
        self._job.ask(asks)
        answer = self._job.wait(asks, cancel)[0]
        if isinstance(answer, Exception):
            raise answer
        self._answered.add(prefix_digests([*messages, {"role": "assistant", "content": answer}])[-1])
        return answer


def prefix_digests(messages: list[Message]) -> list[str]:
    """A digest of the conversation up to each message."""
    import hashlib

    digest = hashlib.sha256()
    marks = []
    for message in messages:
        digest.update(json.dumps([message["role"], text_of(message)]).encode())
        marks.append(digest.hexdigest())
    return marks


def model_for(job: Job, configuration: rlm_config.Configuration) -> Any:
    """The first available of: a provider with its key or a local server, a command, the client."""
    options = rlm.Options(**configuration.values)
    try:
        return rlm.connect(configuration, options)
    except rlm.ConfigError:
        pass  # no key: try the next one
    import shlex

    if words := shlex.split(os.environ.get("RLM_MCP_CLI", "")):
        return rlm_backends.SubprocessBackend(words, options.model)
    try:
        return rlm_backends.connect(f"cli:claude/{options.model or ''}".rstrip("/"))
    except rlm_backends.BackendError:  # no claude here
        return SamplingBackend(job)


def run(
    job: Job,
    directory: str | None,
    prompt: str,
    context: object,
    limits: Message,
    group: rlm.LedgerGroup | None = None,
) -> rlm.CompletionResult:
    """The result of a recursive completion for `job`. `group`: a ledger that it shares."""
    configuration, _ = job.server.configuration(directory, limits)
    values = dict(configuration.values)
    model = model_for(job, configuration)
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    folder = values["log_dir"] and os.path.join(directory or os.path.join(state, "rlm"), values["log_dir"])
    if folder and os.path.islink(folder) and configuration.origins["log_dir"] == "default":
        raise ToolError(
            f"the log folder {folder} is a link to {os.path.realpath(folder)}: set RLM_LOG_DIR to that folder to use it"
        )
    if folder and folder not in job.server.log_dirs:
        job.server.log_dirs.append(folder)
    values.update(
        backend=model,
        allowed_paths=values["allowed_paths"] or ([directory] if directory else None),
        log_dir=folder,
        environment=job.server.env or values["environment"],
        max_parallel=64 if isinstance(model, SamplingBackend) else values["max_parallel"],
    )
    runner = rlm.RLM(**values, config=False, on_event=lambda event: _tell(job, event))
    stop = functools.partial(runner.stop, "cancelled by the client")
    job.stops.append(stop)
    try:
        with runner:
            # A model or code in a cell wrote it, so no provider may fetch a URL in it.
            given = rlm.Context(context, "code") if isinstance(context, str) else context
            return runner._complete(prompt, given, group=group)
    finally:
        job.stops.remove(stop)


def _tell(job: Job, event: Message) -> None:
    """Show the last event of a completion in the heartbeat."""
    if event.get("event") == "call":
        job.last_line = f"call {event.get('call_id')}, depth {event.get('depth')}: {event.get('response') or ''}"[:200]
    elif event.get("event") == "tool" and event.get("code"):
        job.last_line = f"cell {event.get('cell')}: {event.get('traceback') or event.get('stdout') or ''}"[:200]


class CellFunction:
    """A host function for the code of a cell. `schedule` runs in the order of the calls; the functions that it returns
    run in parallel."""

    def __init__(self, schedule: Callable[..., Callable[[], object]]) -> None:
        self.schedule = schedule

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.schedule(*args, **kwargs)()


class LLMFunctions:
    """`llm_query`, `llm_query_batched` and `rlm_query` for the code of one cell, under the limits of a run."""

    def __init__(self, job: Job, directory: str | None) -> None:
        self._job, self._directory = job, directory
        self._started = time.monotonic()
        self._backends: dict[str | None, Any] = {}
        self.functions: dict[str, Callable[..., object]] = {
            "llm_query": CellFunction(self.one),
            "llm_query_batched": CellFunction(self.many),
            "rlm_query": CellFunction(self.recursive),
        }

    @functools.cached_property
    def _options(self) -> rlm.Options:
        configuration, _ = self._job.server.configuration(self._directory)
        return rlm.Options(**configuration.values)

    @functools.cached_property
    def _ledger(self) -> rlm.Ledger:
        """The budget of the cell and of the runs that it starts; its time starts with the cell."""
        ledger = rlm.Ledger(self._options)
        ledger.started = self._started
        if self._options.timeout_seconds:
            ledger.deadline = self._started + self._options.timeout_seconds
        ledger.cancel = self._job.cancelled
        return ledger

    @functools.cached_property
    def _slots(self) -> threading.BoundedSemaphore:
        return threading.BoundedSemaphore(self._options.max_parallel)

    def one(self, prompt: str, model: str | None = None) -> Callable[[], str]:
        if not isinstance(prompt, str):
            raise TypeError("llm_query takes a string")
        answers = self._put([prompt], model)
        return lambda: _answered(answers()[0])

    def many(self, prompts: list[str], model: str | None = None) -> Callable[[], list[str]]:
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
            raise TypeError("llm_query_batched takes a list of strings")
        answers = self._put(list(prompts), model)
        return lambda: _all_answered(answers())

    def recursive(self, prompt: str, context: object = None) -> Callable[[], object]:
        if self._options.max_depth < 1:
            raise rlm.MaxDepthExceeded(1, self._options.max_depth)
        self._ledger.check()
        self._ledger.count_subcalls(1)
        limits = {"max_depth": self._options.max_depth - 1}

        def work() -> object:
            result = run(self._job, self._directory, prompt, context, limits, rlm.LedgerGroup(self._ledger))
            return result.response if result.value is None else result.value

        return work

    def _put(self, prompts: list[str], model: str | None) -> Callable[[], list[str | BaseException]]:
        """A function that returns the answers, with an exception in the place of each that failed."""
        questions: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        backend = self._backend(model or self._options.sub_model)
        ledger = self._ledger
        ledger.check()
        ledger.count_subcalls(len(questions))
        if isinstance(backend, SamplingBackend):
            return self._put_to_client(questions)

        def work() -> list[str | BaseException]:
            with ledger.queue(len(questions)) as begun:
                tasks = [functools.partial(self._ask, backend, question, begun) for question in questions]
                return list(rlm.fan_out(tasks, self._options.max_parallel))

        return work

    def _put_to_client(self, questions: list[list[Message]]) -> Callable[[], list[str | BaseException]]:
        """Ask the client's own model in one round; its usage is estimated and costs nothing."""
        ledger = self._ledger
        sizes = [rlm.tokens_of(question) for question in questions]
        least = CLIENT_TOKENS * len(questions)
        reservation = ledger.reserve(sum(sizes), least, lambda size, output: None, wait=False)
        most = max(CLIENT_TOKENS, min(4096, ledger.left()["tokens"] // max(1, len(questions))))
        asks = [SamplingRequest(question, most) for question in questions]
        self._job.ask(asks)

        def work() -> list[str | BaseException]:
            try:
                answers: list[str | BaseException] = [*self._job.wait(asks)]
            except BaseException:
                ledger.release(reservation)
                raise
            texts = [answer for answer in answers if isinstance(answer, str)]
            written = sum(rlm.tokens_of([{"role": "assistant", "content": text}]) for text in texts)
            ledger.settle(reservation, {"input": sum(sizes), "output": written}, None, 0.0)
            return answers

        return work

    def _ask(self, backend: Any, question: list[Message], begun: Callable[[], None]) -> str:
        """Make one call within the ledger."""
        ledger, options = self._ledger, self._options
        begun()
        size, price = rlm.tokens_of(question), rlm.price_of(backend, options)
        reservation = ledger.reserve(size, rlm.SUBCALL_OUTPUT, price)
        try:
            with self._slots:
                ledger.check()
                raw = backend.complete(
                    question,
                    tools=None,
                    on_text=None,
                    params=options.sub_params or options.params,
                    max_tokens=reservation.output,
                    deadline=ledger.deadline,
                    cancel=ledger.cancel,
                )
            reply = rlm.normal_reply(raw, size, backend.model)
        except BaseException:
            ledger.release(reservation)
            raise
        cost = reply.cost_usd if reply.cost_usd is not None else price(reply.usage["input"], reply.usage["output"])
        ledger.settle(reservation, reply.usage, cost, 0.0)
        return str(reply.text)

    def _backend(self, model: str | None) -> Any:
        if model not in self._backends:
            given = {} if model is None else {"model": model}
            backend = model_for(self._job, self._job.server.configuration(self._directory, given)[0])
            rlm.check_prices(self._options, backend)
            self._backends[model] = backend
        return self._backends[model]


def _answered(answer: str | BaseException) -> str:
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _all_answered(answers: list[str | BaseException]) -> list[str]:
    """The answers of a batch; if some failed, SubcallError with the others."""
    errors = [str(answer) if isinstance(answer, BaseException) else None for answer in answers]
    failed = [error for error in errors if error is not None]
    if failed:
        results = [None if isinstance(answer, BaseException) else answer for answer in answers]
        message = f"{len(failed)} of {len(answers)} failed (.results has the others, .errors the reasons): {failed[0]}"
        raise rlm.SubcallError(message, results=results, errors=errors)
    return list(map(_answered, answers))


# --- the tools --------------------------------------------------------------------------------------------------

PROFILES = {"quick": (5, "128m"), "default": (30, "512m"), "analysis": (120, "2g"), "extended": (300, "4g")}
HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
READ_ONLY, DESTRUCTIVE, IDEMPOTENT, OPEN_WORLD = HINTS


class ToolSpec(NamedTuple):
    """A tool: its entry in tools/list, and the function that runs it."""

    name: str
    title: str
    description: str
    run: Callable[..., None]  # starts or continues a job for a request, with the arguments as keywords
    properties: Message
    required: tuple[str, ...] = ()
    in_folder: bool = False  # needs the session's folder, so the client's roots
    any_json: str = ""  # the argument that accepts any JSON value, whatever its schema says
    hints: tuple[str, ...] = ()  # those of HINTS that hold

    def described(self) -> Message:
        """Its entry in tools/list, in the subset of JSON Schema that every client's converter accepts."""
        schema: Message = {"type": "object", "properties": self.properties}
        if self.required:
            schema["required"] = list(self.required)
        entry: Message = {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "inputSchema": schema,
            "annotations": {"title": self.title, **{hint: hint in self.hints for hint in HINTS}},
        }
        if self.name in ("execute_python", "resume"):
            entry["_meta"] = {"anthropic/maxResultSizeChars": 2 * PREVIEW_CHARS}
        return entry

    def checked(self, arguments: Message) -> Message:
        """The validated arguments; ToolError says what to correct.

        null and "" count as absent optional arguments: a client in strict mode sends every argument.
        """
        given = {**_present(arguments), **{name: arguments[name] for name in self.required if name in arguments}}
        for name in self.required:
            if name not in given:
                raise ToolError(f"{self.name} needs {name!r}")
        for name in given:
            if name not in self.properties:
                raise ToolError(self._unknown(name))
        taken = {}
        for name, value in given.items():
            if name != self.any_json:
                if value == "" and name not in self.required:
                    continue
                value = _from_json(self.properties[name]["type"], value)
                if wrong := _mismatch(self.properties[name], value):
                    raise ToolError(f"{name} {wrong}")
            taken[name] = value
        return taken

    def _unknown(self, name: str) -> str:
        import difflib

        close = difflib.get_close_matches(name, self.properties, n=1)
        there = ", ".join(self.properties) or "none"
        asked = f"; did you mean {close[0]!r}?" if close else ""
        return f"{self.name} has no argument {name!r:.100}; it takes {there}{asked}"


_TYPES: dict[str, Any] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
    "boolean": (bool,),
}


def _from_json(kind: str, value: object) -> object:
    """`value`, parsed if it is JSON text where no string is expected; 3.0 is accepted as an integer."""
    if isinstance(value, str) and kind != "string":
        with contextlib.suppress(ValueError):
            value = rlm_backends.from_json(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _mismatch(schema: Message, value: Any) -> str | None:
    """How `value` fails its schema, in the subset of JSON Schema that TOOLS uses; None if it fits."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"must be {'an' if kind[0] in 'aio' else 'a'} {kind}"
    if value not in schema.get("enum", [value]):
        return f"must be one of {', '.join(schema['enum'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        return f"must be between {low} and {high}"
    if kind == "array" and any(_mismatch(schema["items"], item) for item in value):
        return f"must be an array of {schema['items']['type']}s"
    return None


def in_session(work: Callable[..., Message]) -> Callable[..., None]:
    """A tool whose `work` is done with a session, after the session's earlier calls."""

    def run(server: Server, request: Request, *, session_id: str | None = None, **arguments: object) -> None:
        session = server.session(session_id)
        server.start(request, session, functools.partial(work, session=session, **arguments))

    return run


def beside_sessions(work: Callable[..., Message]) -> Callable[..., None]:
    """A tool whose `work` is done at once."""

    def run(server: Server, request: Request, **arguments: object) -> None:
        server.start(request, None, functools.partial(work, **arguments))

    return run


@in_session
def _execute_python(
    job: Job, session: Session, code: str, timeout: float | None = None, profile: str = "default"
) -> Message:
    sandbox = session.sandbox()
    seconds, memory = PROFILES[profile]
    job.stops.append(functools.partial(sandbox.interrupt, STOP_GRACE))
    execute = functools.partial(
        sandbox.execute,
        timeout=seconds if timeout is None else timeout,
        functions=LLMFunctions(job, session.directory).functions,
        on_output=lambda text: _note(job, text),
        memory=memory,
    )
    cell = execute(code)
    if cell.error and re.search(r"(?m)^(?:Syntax|Indentation|Tab)Error", cell.error):
        clean = rlm.clean_code(code)  # as from a Markdown fence
        cell = execute(clean) if clean != code else cell
    if cell.status == "lost":
        session.forget()
    error = cell.error
    if cell.status == "memory":
        more = "; profile='analysis' or 'extended' has more" if profile in ("quick", "default") else ""
        error = f"{error or 'MemoryError'}\n(the limit of profile {profile!r} is {memory} of memory{more})"
    return _cell_result(job.server, cell, error, session)


def _note(job: Job, text: str) -> None:
    """Keep the last printed line for the next heartbeat."""
    lines = text.rstrip().rsplit("\n", 1)
    if lines[-1].strip():
        job.last_line = lines[-1].strip()[-200:]


def _in_tools_of_ours(error: str, directory: str | None) -> str:
    """The error without the sandbox's hint at `file_read`, a tool that only runs have."""
    hint = f"code reads what is in {directory}" if directory else "call set_project to name a folder that code may read"
    return error.replace("file_read reads the caller's files", hint)


def _cell_result(server: Server, cell: rlm_sandbox.Cell, error: str | None, session: Session) -> Message:
    """A cell's outcome as content: output, value, error and figures."""
    parts, links = [], []
    if cell.stdout:
        printed = cell.stdout.rstrip("\n")
        parts.append(f"Output:\n{printed}" if "\n" in printed else f"Output: {printed}")
    final = None if cell.final is rlm_sandbox.UNSET else repr(cell.final)
    error = _in_tools_of_ours(error.rstrip(), session.directory) if error else None
    for label, text in (("Value: ", cell.value), ("Final: ", final), (f"Error ({cell.status}):\n", error)):
        if text is not None:
            shown, *link = server.truncate(text, VALUE_CHARS)
            parts.append(label + shown["text"])
            links += link
    content = [*server.truncate("\n".join(parts) or "(no output)"), *links]
    content += [{"type": "text", "text": note} for note in session.news()]
    room = MAX_IMAGE_CHARS
    for image in cell.images:
        room -= len(image["data"])
        if room < 0:
            content.append({"type": "text", "text": "(further images were left out: too large)"})
            break
        content.append({"type": "image", "data": image["data"], "mimeType": image["media_type"]})
    if session.calls == 1 and session.name != "default":
        content.append(_name_of(session))
    return {"content": content, "isError": not cell.ok}


def _name_of(session: Session) -> Message:
    return {"type": "text", "text": f"session_id: {session.name}"}


@in_session
def _get_repl_context(job: Job, session: Session) -> Message:
    names = session.sandbox().names() if session.started else {}
    rows, room = [], PREVIEW_CHARS
    for name, (kind, size, text) in list(names.items())[:200]:
        rows.append({"name": name, "type": kind, "size": size, "repr": text[:200]})
        room -= len(json.dumps(rows[-1], ensure_ascii=False))
        if room < 0:
            break
    more = {"more": len(names) - len(rows)} if len(names) > len(rows) else {}
    return json_result({"session_id": session.name, "variables": rows, **more})


@in_session
def _set_repl_context(job: Job, session: Session, key: str, value: object) -> Message:
    import keyword

    if not key.isidentifier() or keyword.iskeyword(key) or key.startswith("_"):
        raise ToolError(f"key must be a variable's name without a leading underscore, not {key!r:.100}")
    value = _from_json("any", value)
    try:
        session.sandbox().set(key, value)
    except TypeError as error:
        raise ToolError(str(error)) from None
    return json_result({"session_id": session.name, "set": key, "type": type(value).__name__})


def _clear_repl_context(server: Server, request: Request, session_id: str | None = None) -> None:
    session = server.session(session_id)
    if running := session.job:
        running.cancel("the session was cleared")

    def work(job: Job) -> Message:
        session.clear()
        return json_result({"session_id": session.name, "cleared": True})

    server.start(request, session, work)


@beside_sessions
def _list_sessions(job: Job, session_id: str | None = None) -> Message:
    sessions = [job.server.session(session_id)] if session_id else list(job.server.sessions.values())
    counts = [session.count_variables() for session in sessions]
    until, now = time.monotonic() + 0.5, time.monotonic()
    rows = []
    for session, count in zip(sessions, counts, strict=True):
        is_known = count is not None and count.wait(max(0.0, until - time.monotonic()))
        variables = count.outcome() if count and is_known else None
        rows.append(
            {
                "session_id": session.name,
                "age_seconds": round(now - session.created),
                "idle_seconds": round(now - session.used) if count else 0,
                "busy": count is None,
                "variables": variables if isinstance(variables, int) else None,  # its process may have ended
                "directory": session.directory,
            }
        )
    return json_result({"sessions": rows})


def _destroy_session(server: Server, request: Request, session_id: str) -> None:
    def work(job: Job) -> Message:
        session.close()
        return json_result({"session_id": session_id, "destroyed": True})

    with server.lock:
        if session_id not in server.sessions:
            raise ToolError(f"no session {session_id[:80]!r}")
        session = server.sessions[session_id]
        server.start(request, None, work)  # may refuse: the session must not be lost then
        del server.sessions[session_id]


@in_session
def _set_project(job: Job, session: Session, directory: str) -> Message:
    path = job.server.allowed_directory(directory)
    session.directory, session.has_directory = path, True
    answer: Message = {"session_id": session.name, "directory": path}
    try:
        configuration, notes = job.server.configuration(path, for_code=True)
        answer["config"] = configuration.files
    except ToolError as refusal:
        notes = [str(refusal)]
    if notes:
        answer["problem"] = "\n".join(notes)
    return json_result(answer)


@beside_sessions
def _run_completion(
    job: Job, prompt: str, context: object = None, files: list[str] | None = None, session_id: str | None = None,
    **limits: object,
) -> Message:  # fmt: skip
    server = job.server
    session = server.session(session_id)
    directory = session.folder()
    if isinstance(context, str) and context.lstrip()[:1] in ("{", "["):  # some clients send data as text
        context = _from_json("object", context)
    try:
        given = _files(server, directory, files) if files else context
        result = run(job, directory, prompt, given, limits)
        outcome = _completion_result(server, result, server.configuration(directory, for_code=True)[1])
    except rlm.RLMError as error:
        outcome = _failed_completion(server, error)
    if session_id == "new":
        outcome["content"].append(_name_of(session))
    return outcome


def _files(server: Server, directory: str | None, specs: list[str]) -> rlm.Context:
    """Files of the project as a context; ToolError for files outside it or with secrets."""
    if directory is None:
        raise ToolError("no project folder: call set_project first")
    if wrong := next((s for s in specs if os.path.isabs(os.path.expanduser(s)) or ".." in s.split(os.sep)), None):
        raise ToolError(f"files are named relative to {directory!r}, not {wrong!r}")
    values = server.configuration(directory)[0].values
    how = {"cwd": directory, "exclude": values["log_dir"], "encoding": values["encoding"], "within": directory}
    context = rlm.read_context(specs, **how)
    if not isinstance(context.source, dict):
        raise ToolError(f"{specs!r} are not files of the project")
    return context


def _completion_result(server: Server, result: rlm.CompletionResult, notes: list[str]) -> Message:
    facts = {
        "status": result.status,
        "trajectory_id": result.trajectory_id,
        "calls": result.total_calls,
        "tokens": result.total_tokens,
        "cost_usd": result.cost_usd,
        "depth": result.depth_reached,
        "seconds": round(result.duration_ms / 1000, 1),
        "journal": result.log and os.path.normpath(result.log),
        **({"notes": notes} if notes else {}),
    }
    content = [*server.truncate(result.response), {"type": "text", "text": json.dumps(facts)}]
    if result.log:
        server.resources_changed()
        uri = f"rlm://trajectory/{result.trajectory_id}"
        content.append({"type": "resource_link", "uri": uri, "name": "trajectory", "mimeType": "application/jsonl"})
    return {"content": content, "isError": False}


def _failed_completion(server: Server, error: rlm.RLMError) -> Message:
    lines = [f"{type(error).__name__}: {error}"]
    if error.hint:
        lines.append(f"next: {error.hint}")
    if error.trajectory_id:
        lines.append(f"trajectory: {error.trajectory_id} (continue with: rlm resume {error.trajectory_id})")
        server.resources_changed()
    if error.result is not None and error.result.response:
        lines.append(f"so far:\n{error.result.response}")
    return {"content": server.truncate("\n".join(lines)), "isError": True}


def _resume(server: Server, request: Request, handle: str, answers: list[str] | None = None) -> None:
    with server.lock:
        job = server.jobs.get(handle)
        if job is None or job.cancelled.is_set():
            raise ToolError(f"no run {handle[:80]!r}: unknown, collected already, or expired; call the tool again")
        if job.request is not None:
            raise ToolError("another call waits for this run already")
        job.set_results(answers)
        job.attach(request)


def _argument(kind: str, description: str, **limits: object) -> Message:
    """The schema of an argument."""
    return {"type": kind, **limits, "description": description}


_SESSION = {
    "session_id": _argument(
        "string", 'named by an earlier result; "new" makes one, ended after 30 idle minutes; else the shared one'
    )
}
TOOLS: dict[str, ToolSpec] = {
    tool.name: tool
    for tool in (
        ToolSpec(
            "execute_python",
            "Run Python",
            "Run Python code in a sandboxed REPL whose variables persist between calls (no network; the project's "
            "files can be read by relative name). Shows what it prints, the last expression's value and figures. In "
            "the code, llm_query(prompt) and llm_query_batched(prompts) ask a language model.",
            _execute_python,
            {
                "code": _argument("string", "the code of one cell"),
                "timeout": _argument("number", "seconds, at most 300", minimum=0.1, maximum=300),
                "profile": _argument(
                    "string",
                    "time and memory: quick 5 s/128m, default 30 s/512m, analysis 120 s/2g, extended 300 s/4g",
                    enum=list(PROFILES),
                ),
                **_SESSION,
            },
            ("code",),
            in_folder=True,
        ),
        ToolSpec(
            "get_repl_context",
            "List variables",
            "List the variables of a REPL session: name, type, size and a short repr.",
            _get_repl_context,
            {**_SESSION},
            hints=(READ_ONLY, IDEMPOTENT),
        ),
        ToolSpec(
            "set_repl_context",
            "Set a variable",
            "Make a variable in a REPL session, for example a long text to be examined by code.",
            _set_repl_context,
            {
                "key": _argument("string", "the variable's name"),
                "value": _argument("string", "its value: JSON; what is not JSON is kept as a string"),
                **_SESSION,
            },
            ("key", "value"),
            in_folder=True,
            any_json="value",
            hints=(IDEMPOTENT,),
        ),
        ToolSpec(
            "clear_repl_context",
            "Clear the REPL",
            "Stop what runs in a REPL session and remove all its variables.",
            _clear_repl_context,
            {**_SESSION},
            hints=(DESTRUCTIVE, IDEMPOTENT),
        ),
        ToolSpec(
            "list_sessions",
            "List sessions",
            "List the open REPL sessions with their age, idle time and folder.",
            _list_sessions,
            # Without any argument, a converter to OpenAI's strict mode takes the schema for an open object.
            {"session_id": _argument("string", "show this one alone")},
            hints=(READ_ONLY, IDEMPOTENT),
        ),
        ToolSpec(
            "destroy_session",
            "End a session",
            "End a REPL session and its process.",
            _destroy_session,
            {"session_id": _argument("string", "the session to end")},
            ("session_id",),
            hints=(DESTRUCTIVE, IDEMPOTENT),
        ),
        ToolSpec(
            "set_project",
            "Choose the project",
            "Choose the folder a session works in: code may read its files, and each project has variables of its own.",
            _set_project,
            {"directory": _argument("string", "the project's folder"), **_SESSION},
            ("directory",),
            in_folder=True,
            hints=(IDEMPOTENT,),
        ),
        ToolSpec(
            "run_completion",
            "Work through a long input",
            "Have a language model work through a long input recursively: the input is a variable in a REPL, the model "
            "looks at it by code and calls itself on pieces. Give the input as context or as files of the project. "
            "Keeps a journal in the project's logs/.",
            _run_completion,
            {
                "prompt": _argument("string", "the question or task"),
                "context": _argument("string", "the input: text, or a JSON object or array"),
                "files": _argument(
                    "array", "files, folders or globs of the project, in place of context", items={"type": "string"}
                ),
                "model": _argument("string", "model of the run, where a provider is configured"),
                "max_depth": _argument("integer", "depth of recursion", minimum=0, maximum=16),
                "max_iterations": _argument("integer", "turns of a node", minimum=1, maximum=1000),
                "max_subcalls": _argument("integer", "sub-calls in all", minimum=0, maximum=10_000),
                "token_budget": _argument("integer", "tokens in all", minimum=1, maximum=10**9),
                "cost_budget_usd": _argument("number", "dollars in all", minimum=0, maximum=10**6),
                "timeout_seconds": _argument("number", "seconds in all", minimum=1, maximum=86_400),
                **_SESSION,
            },
            ("prompt",),
            in_folder=True,
            any_json="context",
            hints=(OPEN_WORLD,),
        ),
        ToolSpec(
            "resume",
            "Go on with a run",
            "Go on with a run that answered needs_completions (with the answers to its requests), or wait for one "
            "that is still running.",
            _resume,
            {
                "handle": _argument("string", "the handle from the earlier result"),
                "answers": _argument("array", "one answer for each request, in their order", items={"type": "string"}),
            },
            ("handle",),
            hints=(OPEN_WORLD,),
        ),
    )
}


# --- serving ----------------------------------------------------------------------------------------------------


class Ended(BaseException):
    """Raised on SIGTERM, SIGINT or SIGHUP."""


def serve(*, env: str | None = None, workspace: str | None = None, max_wait: float = 45) -> int:
    """Serve one client on stdin and stdout until it leaves, then end the process. Returns 2 for a missing workspace.

    `env`: local or docker, overrides the configuration. `workspace`: the folder that code may read, beside the client's
    roots. After `max_wait` seconds a call is answered with a handle for `resume`.
    """
    if workspace is not None and not os.path.isdir(workspace):
        log(f"no folder {workspace!r}")
        return 2

    def end(number: int, frame: object) -> None:
        for name in ends:
            signal.signal(name, signal.SIG_IGN)
        raise Ended

    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
    server = Server(StdioTransport(*_private_streams()), env=env, workspace=workspace, max_wait=max(0.1, max_wait))
    try:
        for name in ends:
            signal.signal(name, end)
        server.run()
    except (Ended, ClientDisconnected):
        pass
    finally:
        for name in ends:
            signal.signal(name, signal.SIG_IGN)
        server.close()
        _end_workers()
    sys.stderr.flush()
    os._exit(0)  # do not wait for threads that wait for dead workers


def _end_workers() -> None:
    """End the process that sessions are forked from, if it was started."""
    sandbox = sys.modules.get(f"{__package__}.rlm_sandbox" if __package__ else "rlm_sandbox")
    if shutdown := getattr(sandbox, "shutdown", None):
        shutdown()


# --- installing: the server's entry in the configuration of MCP clients -----------------------------------------------


class ClientKind(NamedTuple):
    """An MCP client: its configuration files by scope, the default first, and the form of an entry."""

    title: str
    files: Mapping[str, str]
    path: tuple[str, ...] = ("mcpServers",)
    extra: Mapping[str, object] = {}
    form: str = "json"  # json, with or without comments; toml; yaml, which is only printed
    note: str = ""
    adds: str = ""  # the client's own commands for the same
    removes: str = ""


_STDIO = {"type": "stdio"}
CLIENTS = {
    "claude-desktop": ClientKind(
        "Claude Desktop", {"user": "{desktop}/claude_desktop_config.json"}, note="restart Claude Desktop"
    ),
    "claude-code": ClientKind(
        "Claude Code",
        {"user": "{claude}/.claude.json", "project": "./.mcp.json", "local": "{claude}/.claude.json"},
        extra=_STDIO,
        adds="claude mcp add --scope {scope} rlm -- {command}",
        removes="claude mcp remove --scope {scope} rlm",
    ),
    "cursor": ClientKind("Cursor", {"user": "~/.cursor/mcp.json", "project": "./.cursor/mcp.json"}),
    "vscode": ClientKind(
        "VS Code", {"user": "{code}/User/mcp.json", "project": "./.vscode/mcp.json"}, ("servers",), _STDIO
    ),
    "windsurf": ClientKind("Windsurf", {"user": "~/.codeium/windsurf/mcp_config.json"}),
    "zed": ClientKind(
        "Zed",
        {"user": "{zed}/settings.json", "project": "./.zed/settings.json"},
        ("context_servers",),
        {"source": "custom"},
    ),
    "codex": ClientKind(
        "Codex",
        {"user": "{codex}/config.toml", "project": "./.codex/config.toml"},
        ("mcp_servers",),
        form="toml",
        adds="codex mcp add rlm -- {command}",
        removes="codex mcp remove rlm",
    ),
    "gemini": ClientKind("Gemini CLI", {"user": "{gemini}/settings.json", "project": "./.gemini/settings.json"}),
    "copilot": ClientKind(
        "Copilot CLI", {"user": "{copilot}/mcp-config.json"}, extra={"type": "local", "tools": ["*"]}
    ),
    "cline": ClientKind("Cline", {"user": "{cline}"}),
    "opencode": ClientKind(
        "opencode", {"user": "{config}/opencode/opencode.json", "project": "./opencode.json"}, ("mcp",)
    ),
    "goose": ClientKind("Goose", {"user": "{goose}/config.yaml"}, ("extensions",), form="yaml"),
}
ENTRY_NAME = "rlm"
CHECK_SECONDS = 30


def install(clients: list[str], *, action: str = "print", scope: str | None = None) -> int:
    """Print, write, remove or check the server's entry in the configuration of each client. Returns the exit status.

    `action`: print, dry-run (the change as a diff), write, remove, or check (start the server as the client would).
    """
    if unknown := next((name for name in clients if name not in CLIENTS), None):
        begun = [repr(name) for name in CLIENTS if name.startswith(unknown)]
        meant = f"did you mean {' or '.join(begun)}?" if begun else rlm_config.suggestion(unknown, CLIENTS)
        return fail(f"no client {unknown!r}", meant)
    if not clients:
        if action in ("write", "remove", "dry-run"):
            return fail("which client?", f"rlm mcp-install {'|'.join(CLIENTS)} --{action}")
        return _check(server_command(), {}, "the server") if action == "check" else _print_all()
    worst = 0
    for name in clients:
        try:
            worst = max(worst, _install(name, action, scope))
        except (OSError, ValueError) as error:
            path = config_file(CLIENTS[name], scope or next(iter(CLIENTS[name].files)))
            where = "" if path in str(error) else f"{path}: "
            worst = max(worst, fail(f"{CLIENTS[name].title}: {where}{error}", f"rlm mcp-install {name}", status=1))
    return worst


def _install(name: str, action: str, scope: str | None) -> int:
    client = CLIENTS[name]
    scope = scope or next(iter(client.files))
    if scope not in client.files:
        return fail(f"{client.title} has no scope {scope!r}", f"--scope {'|'.join(client.files)}")
    path, where = config_file(client, scope), config_path(client, scope)
    again = f"rlm mcp-install {name}" + ("" if scope == next(iter(client.files)) else f" --scope {scope}")
    if action == "print":
        print(f"{client.title}: {path}" + (f" ({client.note})" if client.note else ""))
        print(rendered(client, name, where), end="")
        if client.form == "yaml":
            print("nothing was written; this file is not edited here: add the entry by hand")
        else:
            print(f"nothing was written; {again} --write writes it")
        _print_own_command(client.adds, scope)
        return 0
    before = _read_text(path)
    if client.form == "yaml":
        return _install_by_hand(client, path, before, action, again)
    where = config_path(client, scope, before)
    if action == "check":
        entry = current_entry(client, before, where)
        if entry is None:
            return fail(f"{client.title}: no entry {ENTRY_NAME!r} in {path}", f"{again} --write", 1)
        words = entry["command"] if isinstance(entry["command"], list) else [entry["command"], *entry.get("args", [])]
        return _check(words, entry.get("env") or entry.get("environment") or {}, client.title)
    after = edited(client, name, before, where, remove=action == "remove")
    if after == before:
        print(f"{client.title}: {path} needs no change")
    elif action == "dry-run":
        _print_difference(before, after, path)
    else:
        kept = _replace_file(path, before, after)
        print(f"{client.title}: {path} {'no longer has' if action == 'remove' else 'has'} the entry {ENTRY_NAME!r}")
        for line in (f"before: {kept}" if kept else "", client.note):
            if line:
                print(f"  {line}")
        _print_own_command(client.removes if action == "remove" else client.adds, scope)
    return 0


def _install_by_hand(client: ClientKind, path: str, text: str, action: str, again: str) -> int:
    """YAML is not edited. A check looks for the entry's name, and starts the command that `print` shows."""
    if action != "check":
        what = "take the entry out" if action == "remove" else "add the entry"
        return fail(f"{client.title}: {path} is YAML, which is not edited here: {what} by hand", again, 1)
    if not re.search(rf"^ +[\"']?{ENTRY_NAME}[\"']?:\s*$", text, re.MULTILINE):
        return fail(f"{client.title}: no entry {ENTRY_NAME!r} in {path}", f"{again} prints what to add to it", 1)
    print(f"{client.title}: {path} has the entry {ENTRY_NAME!r}; what it starts is not read, but what {again} prints:")
    return _check(server_command(), {}, client.title)


def _print_own_command(command: str, scope: str) -> None:
    """Print the client's own command that does the same."""
    if command:
        import shlex

        print(f"  the same: {command.format(scope=scope, command=shlex.join(server_command()))}")


def fail(problem: str, following: str, status: int = 2) -> int:
    print(f"rlm: {problem}\n  next: {following}", file=sys.stderr)
    return status


def config_file(client: ClientKind, scope: str) -> str:
    """The path of the client's configuration on this system; the client's environment variables are honoured."""
    path = os.path.abspath(os.path.expanduser(client.files[scope].format(**_folders())))
    if client.title == "opencode" and os.path.exists(path + "c"):  # opencode.jsonc, which takes precedence
        path += "c"
    return path


def _folders() -> dict[str, str]:
    """The folders that CLIENTS names, and the file of Cline, which has moved it."""
    env, home, windows, mac = os.environ.get, os.path.expanduser("~"), sys.platform == "win32", sys.platform == "darwin"
    config = env("XDG_CONFIG_HOME") or f"{home}/.config"
    application = f"{home}/Library/Application Support" if mac else config
    if windows:
        application = env("APPDATA") or f"{home}/AppData/Roaming"
    code = f"{env('VSCODE_APPDATA') or application}/Code"
    cline = env("CLINE_DATA_DIR") or f"{env('CLINE_DIR') or f'{home}/.cline'}/data"
    cline_file = f"{cline}/settings/cline_mcp_settings.json"
    old = f"{code}/User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json"  # of the extension alone
    goose = f"{application}/Block/goose/config" if windows else f"{config}/goose"
    return {
        "config": config,
        "desktop": (windows and _packaged_claude_desktop(home)) or f"{application}/Claude",
        "claude": env("CLAUDE_CONFIG_DIR") or home,
        "code": f"{env('VSCODE_PORTABLE')}/user-data" if env("VSCODE_PORTABLE") else code,
        "zed": f"{application}/Zed" if windows else f"{home}/.config/zed" if mac else f"{config}/zed",
        "codex": env("CODEX_HOME") or f"{home}/.codex",
        "gemini": f"{env('GEMINI_CLI_HOME') or home}/.gemini",
        "copilot": env("COPILOT_HOME") or f"{home}/.copilot",
        "cline": env("CLINE_MCP_SETTINGS_PATH")
        or (old if os.path.exists(old) and not os.path.isdir(cline) else cline_file),
        "goose": f"{env('GOOSE_PATH_ROOT')}/config" if env("GOOSE_PATH_ROOT") else goose,
    }


def _packaged_claude_desktop(home: str) -> str:
    """The folder of the packaged (MSIX) app on Windows, which has its own copy of %APPDATA%; "" without one."""
    import glob

    local = os.environ.get("LOCALAPPDATA") or f"{home}/AppData/Local"
    packages = sorted(glob.glob(f"{glob.escape(local)}/Packages/Claude_*"))
    folders = [f"{package}/LocalCache/Roaming/Claude" for package in packages]
    used = [folder for folder in folders if os.path.exists(f"{folder}/claude_desktop_config.json")]
    return next(iter(used + folders), "")


def config_path(client: ClientKind, scope: str, text: str = "") -> tuple[str, ...]:
    """The keys that lead to the entry in a file that holds `text`."""
    inside = ("projects", os.getcwd()) if scope == "local" else ()
    if client.title == "opencode" and text.strip():  # 2.x reads two forms: keep that of the file
        flat = _mapping(_mapping(parse_jsonc(text)).get("mcp"))
        nested = _mapping(flat.get("servers"))
        is_map = isinstance(flat.get("servers"), dict) and all(isinstance(server, dict) for server in nested.values())
        if is_map and (ENTRY_NAME in nested or ENTRY_NAME not in flat):
            return ("mcp", "servers", ENTRY_NAME)
    return (*inside, *client.path, ENTRY_NAME)


def server_command() -> list[str]:
    """The command that starts this server: absolute, and without the working directory on the module path."""
    folder = os.path.dirname(os.path.abspath(__file__))
    if folder.endswith("site-packages") and sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", "rlm", "mcp-serve"]
    code = f"import sys; sys.path[0] = {folder!r}; from rlm_cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, "mcp-serve"]


def new_entry(client: ClientKind, name: str) -> Message:
    command, *arguments = server_command()
    if name == "opencode":
        return {"type": "local", "command": [command, *arguments], "enabled": True}
    if name == "goose":
        return {"name": ENTRY_NAME, "type": "stdio", "cmd": command, "args": arguments, "enabled": True, "timeout": 300}
    return {**client.extra, "command": command, "args": arguments}


def _is_local(entry: object) -> TypeGuard[Message]:
    """Whether an entry may start a command, as opposed to naming a URL."""
    return isinstance(entry, dict) and not any(key.lower().endswith("url") for key in entry)


def entry_over(client: ClientKind, name: str, old: object, where: tuple[str, ...]) -> Message:
    """The entry that replaces `old`. If that starts a command, its other keys and the server's options are kept."""
    new = new_entry(client, name)
    if where[-2] == "servers" and name == "opencode":
        del new["enabled"]  # 2.x says `disabled`
    if not _is_local(old):
        return new
    last = "args" if "args" in new else "command"
    words = old.get(last)
    if isinstance(words, list) and "mcp-serve" in words:
        new[last] += words[words.index("mcp-serve") + 1 :]
    same_kind = old.get("type") in ("stdio", "local")
    ours = {"command", "args"} if same_kind else {"command", "args", "type"}
    return {**old, **{key: value for key, value in new.items() if key in ours or key not in old}}


def rendered(client: ClientKind, name: str, where: tuple[str, ...]) -> str:
    """A file with nothing but the entry."""
    entry = new_entry(client, name)
    if client.form == "toml":
        return _toml_table(where, entry)
    if client.form == "yaml":
        lines = [f"    {key}: {json.dumps(value)}\n" for key, value in entry.items()]
        return f"{where[0]}:\n  {where[1]}:\n" + "".join(lines)
    return json.dumps(_nested(where, entry), indent=2) + "\n"


def _value_at(tree: object, where: tuple[str, ...]) -> object:
    return functools.reduce(lambda inner, key: _mapping(inner).get(key), where, tree)


def _nested(where: tuple[str, ...], value: object) -> object:
    return functools.reduce(lambda inner, key: {key: inner}, reversed(where), value)


def current_entry(client: ClientKind, text: str, where: tuple[str, ...]) -> Message | None:
    """The entry in the file, or None."""
    read = _toml if client.form == "toml" else parse_jsonc
    entry = _value_at(read(text), where) if text.strip() else None
    return entry if isinstance(entry, dict) and "command" in entry else None


def edited(client: ClientKind, name: str, before: str, where: tuple[str, ...], *, remove: bool) -> str:
    """The file with the entry, or without it, every other byte unchanged; ValueError if that is impossible."""
    if not before.strip():
        return before if remove else rendered(client, name, where)
    read, edit = (_toml, _edit_toml) if client.form == "toml" else (parse_jsonc, _edit_json)
    old = _value_at(read(before), where)
    entry = None if remove else entry_over(client, name, old, where)
    changes: list[tuple[tuple[str, ...], object]] = [(where, entry)]
    if entry is not None and _is_local(old):  # value by value, to leave the rest untouched
        changes = [((*where, key), value) for key, value in entry.items() if key not in old or old[key] != value]
    after = before
    for place, value in changes:
        after = edit(after, place, value)
    wanted = _with_entry(read(before), where, entry)
    if client.form == "toml" and wanted.get(where[0]) == {}:
        del wanted[where[0]]  # a TOML table without sub-tables has no line of its own
    if read(after) != wanted:
        raise ValueError("the entry cannot be put there without changing something else: add it by hand")
    return after


def _with_entry(tree: object, where: tuple[str, ...], entry: Message | None) -> Message:
    """The data that the edited file must parse to."""
    if not isinstance(tree, dict):
        raise ValueError("the file does not hold an object where the entry belongs")
    if len(where) == 1:
        return {**{k: v for k, v in tree.items() if k != where[0]}, **({} if entry is None else {where[0]: entry})}
    if entry is None and where[0] not in tree:
        return tree
    return {**tree, where[0]: _with_entry(tree.get(where[0], {}), where[1:], entry)}


# JSON with comments


class Member(NamedTuple):
    """Where an object's member is in its text: its key, and its value from start to end."""

    key: int
    start: int
    end: int


_STRING = r'"(?:[^"\\]|\\.)*"'


def parse_jsonc(text: str) -> object:
    """The value of JSON with comments and trailing commas."""
    try:
        return rlm_backends.from_json(_plain_json(text))
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _blanked(text: str, what: str) -> str:
    """`text` with spaces for what a pattern finds outside of strings, so that the rest keeps its position."""

    def blank(found: re.Match[str]) -> str:
        return found[0] if found[0][0] == '"' else re.sub(r"[^\n]", " ", found[0])

    return re.sub(f"{_STRING}|{what}", blank, text, flags=re.S)


def _without_comments(text: str) -> str:
    return _blanked(text, r"//[^\n]*|/\*.*?\*/|\A\ufeff")


def _plain_json(text: str) -> str:
    return _blanked(_without_comments(text), r",(?=\s*[\]}])")


def _members(plain: str, start: int) -> dict[str, Member]:
    """The members of the object at `start` in a text that is valid JSON."""
    decode, gap = json.JSONDecoder().raw_decode, re.compile(r"[\s:,]*")

    def skip(at: int) -> int:
        found = gap.match(plain, at)
        return found.end() if found else at

    members: dict[str, Member] = {}
    at = skip(start + 1)
    while plain[at] != "}":
        key, end = decode(plain, at)
        if key in members:
            raise ValueError(f"not JSON: the key {key!r} is there twice")
        value = skip(end)
        _, end = decode(plain, value)
        members[key] = Member(at, value, end)
        at = skip(end)
    return members


def _edit_json(text: str, where: tuple[str, ...], entry: object) -> str:
    """Set the member at `where` in valid JSON, or remove it if `entry` is None."""
    plain = _plain_json(text)
    place, depth = Member(0, len(plain) - len(plain.lstrip()), len(plain.rstrip())), 0
    while plain[place.start] == "{":
        members = _members(plain, place.start)
        found = members.get(where[depth])
        if found is None:
            if entry is None:
                return text
            value = _indented(text, _nested(where[depth + 1 :], entry), depth + 1)
            last = max((member.end for member in members.values()), default=None)
            return _with_member(text, place.end - 1, last, f"{json.dumps(where[depth])}: {value}", depth)
        if depth == len(where) - 1:
            if entry is None:
                return _without_member(text, found)
            return text[: found.start] + _indented(text, entry, depth + 1) + text[found.end :]
        place, depth = found, depth + 1
    raise ValueError(f"{'.'.join(where[:depth]) or 'the file'} is not an object")


def _indentation(text: str) -> tuple[str, str]:
    """The file's line end and indentation step."""
    step = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return ("\r\n" if "\r\n" in text else "\n"), (step[1] if step else "  ")


def _indented(text: str, value: object, depth: int) -> str:
    end, step = _indentation(text)
    lines = json.dumps(value, indent=step).split("\n")
    return (end + step * depth).join(lines)


def _with_member(text: str, close: int, last: int | None, member: str, depth: int) -> str:
    """Add a member to the object that ends at `close`, whose last member ends at `last`.

    The comma goes right after the last member, before any comment.
    """
    end, step = _indentation(text)
    needs_comma = last is not None and "," not in _without_comments(text)[last:close]
    head = text[:last] + "," + text[last:close] if needs_comma else text[:close]
    body = head.rstrip()
    tail = head[len(body) :] if "\n" in head[len(body) :] else end + step * depth
    return f"{body}{end}{step * (depth + 1)}{member}{tail}{text[close:]}"


def _without_member(text: str, member: Member) -> str:
    """Remove a member with its line and its comma."""
    following = re.compile(r"\s*,").match(text, member.end)
    head = text[: member.key].rstrip()
    if following:
        return head + text[following.end() :]
    return head.removesuffix(",") + text[member.end :]


# TOML


def _toml(text: str) -> Message:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return dict(tomllib.loads(text.removeprefix("\ufeff")))


def _toml_table(where: tuple[str, ...], entry: Message) -> str:
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    return "\n".join([f"[{'.'.join(where)}]", *lines, ""])


def _toml_name(where: Iterable[str]) -> str:
    """A pattern for a dotted name, quoted or not."""
    return r"\s*\.\s*".join(rf"[\"']?{re.escape(part)}[\"']?" for part in where)


def _edit_toml(text: str, where: tuple[str, ...], entry: object) -> str:
    """Set the table at `where`, or remove it if `entry` is None, or set one value of a table."""
    if entry is not None and not isinstance(entry, dict):
        return _edit_toml_value(text, where, entry)
    end, lines = _indentation(text)[0], text.splitlines(keepends=True)
    heading = re.compile(rf"\s*\[\s*{_toml_name(where)}\s*(\.[^\]]*)?\]")
    if own := [n for n, line in enumerate(lines) if heading.match(line)]:
        first, last = own[0], own[-1] + 1
        while last < len(lines) and not re.match(r"\s*\[", lines[last]):
            last += 1
        while last > first and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
            last -= 1  # blank lines and comments before the next table belong to that
        if first and not lines[first - 1].strip() and (last == len(lines) or not lines[last].strip()):
            first -= 1  # the blank line before the table
        text = "".join(lines[:first] + lines[last:])
    if entry is None:
        return text
    gap = "" if not text or text.endswith(end * 2) else end if text.endswith("\n") else end * 2
    return text + gap + _toml_table(where, entry).replace("\n", end)


def _edit_toml_value(text: str, where: tuple[str, ...], value: object) -> str:
    """Set one value of a table."""
    *table, key = where
    end, name = _indentation(text)[0], _toml_name(table)
    lines = text.splitlines(keepends=True)
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}{end}"
    heading = next((n for n, row in enumerate(lines) if re.match(rf"\s*\[\s*{name}\s*\]", row)), None)
    if heading is None:  # only sub-tables have headings: insert one before the first
        first = next((n for n, row in enumerate(lines) if re.match(rf"\s*\[\s*{name}\s*\.", row)), len(lines))
        return "".join([*lines[:first], f"[{'.'.join(table)}]{end}", line, end, *lines[first:]])
    start = stop = heading + 1
    for n in range(heading + 1, len(lines)):
        if re.match(r"\s*\[", lines[n]):
            break
        if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", lines[n]):
            start, stop = n, n + 1
            while stop < len(lines) and not _is_toml("".join(lines[start:stop])):  # an array over several lines
                stop += 1
            break
    if not lines[heading].endswith("\n"):
        lines[heading] += end
    return "".join([*lines[:start], line, *lines[stop:]])


def _is_toml(text: str) -> bool:
    try:
        _toml(text)
    except ValueError:
        return False
    return True


# files, and the check


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _replace_file(path: str, before: str, after: str) -> str | None:
    """Replace the file atomically, through links, keeping its mode. Returns the path of the backup."""
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    kept, mode = None, 0o600
    if os.path.exists(path):
        mode = os.stat(path).st_mode & 0o777
        kept = _write_new(f"{path}.{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}.bak", before, mode)
    os.replace(_write_new(f"{path}.{os.urandom(4).hex()}.tmp", after, mode), path)
    return kept


def _write_new(path: str, text: str, mode: int) -> str:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


def _print_difference(before: str, after: str, path: str) -> None:
    import difflib

    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), path, path)
    print("".join(line if line.endswith("\n") else line + "\n" for line in lines), end="")


def _print_all() -> int:
    import shlex

    print("rlm mcp-install CLIENT [--write]; the clients, and where each has its configuration:\n")
    for name, client in CLIENTS.items():
        path = config_file(client, next(iter(client.files)))
        folder = os.path.dirname(path)
        known = path if folder == os.path.expanduser("~") else folder
        found = "found" if os.path.exists(known) else "not here"
        print(f"  {name:15} {found:9} {path}")
    print(f"\nany other client: {json.dumps({'mcpServers': {ENTRY_NAME: new_entry(CLIENTS['cursor'], '')}})}")
    print(f"from a clone, without installing it: {shlex.join(server_command())}")
    return 0


def _check(words: list[str], environ: Mapping[str, str], title: str) -> int:
    """Start the server as a client does, with a bare environment, and have it list its tools and run a cell."""
    spec = {"command": words, "env": environ, "cwd": os.sep, "timeout": CHECK_SECONDS}
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            connection = StdioConnection("rlm", spec, os.environ)
            stack.callback(connection.close)
            connection.negotiate()
            connection.negotiate(probe=False)  # the handshake of older revisions, too
            tools = read_catalogue("rlm", connection.list_tools())
            connection.call(tools["execute_python"], {"code": "6 * 7"})
        except KeyError:
            return fail(f"{title}: {words[0]} is another server: it has no tool execute_python", "rlm doctor", 1)
        except rlm_tools.ToolError as error:
            return fail(f"{title}: {error}", "rlm doctor", 1)
    print(f"{title}: works ({(time.monotonic() - started) * 1000:.0f} ms to start, list the tools, run a cell and end)")
    return 0


# --- the client: other servers' tools as Python functions -------------------------------------------------------------
#
# ServerSet (all of one run) -> Connection, which speaks either era: a StdioConnection or an HTTPConnection

CALL_SECONDS = 60.0  # default `timeout` of a server: for its start and for each call
PROBE_SECONDS = 5.0  # a server that does not answer server/discover in this time is treated as an older one
EXIT_SECONDS = 1.0  # for a server to exit after its stdin is closed, and again after SIGTERM
MAX_STARTS = 4  # of one server in a run
MAX_REMOTE_TOOLS = 2_000  # of one server
MAX_CATALOGUE = 4_000_000  # characters of its list of tools
MAX_PAGES = 1_000  # of that list
MAX_SCHEMA = 64_000  # characters of one tool's schema; a larger one is ignored
MAX_HELP = 1_000_000  # characters of all tools' help
MAX_UNMATCHED = 10_000  # consecutive messages that answer nothing
STDERR_CHARS = 2_000
# The variables that the official SDKs pass to a server; none holds a key.
INHERITED = (
    *("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "SYSTEMROOT", "SYSTEMDRIVE", "APPDATA", "LOCALAPPDATA"),
    *("USERPROFILE", "USERNAME", "HOMEDRIVE", "HOMEPATH", "PROCESSOR_ARCHITECTURE", "TEMP"),
)


def remote_error(message: str, hint: str = "") -> rlm_tools.ToolError:
    """A server's failure, as code in the REPL and the user see it."""
    return rlm_tools.ToolError(message, hint=hint)


class RemoteTool(NamedTuple):
    """A tool of another server, as it is listed, journalled and called."""

    server: str  # the Python names
    name: str
    own_name: str  # as the server calls it
    description: str
    parameters: Message
    returns: Message | None

    @property
    def full_name(self) -> str:
        return f"{self.server}.{self.name}"

    def arguments(self, /, *args: object, **kwargs: object) -> Message:
        """The arguments of a Python call as JSON; TypeError if they do not fit the schema's names."""
        properties = self.parameters["properties"]
        names = self._python_names()
        by_python_name = {name: own for own, name in names.items()}
        if len(args) > len(properties):
            raise TypeError(f"{len(args)} arguments are too many: {self.signature()}")
        bound = {name: json_argument(value) for name, value in zip(names, args)}
        for given, value in kwargs.items():
            name = given if given in properties else by_python_name.get(given, given)
            if name in bound:
                raise TypeError(f"{given!r} is given twice: {self.signature()}")
            if name not in properties and properties and not self.parameters.get("additionalProperties"):
                raise TypeError(f"unexpected argument {given!r}: {self.signature()}")
            bound[name] = json_argument(value)
        if missing := [name for name in self.parameters["required"] if name not in bound]:
            raise TypeError(f"{missing[0]!r} is missing: {self.signature()}")
        return bound

    def signature(self, types: bool = True) -> str:
        """`github.search_issues(query: string, limit: integer = 10)`; without types `search_issues(query, limit=…)`."""
        required, names = self.parameters["required"], self._python_names()
        if not types:
            return f"{self.name}({', '.join(name if own in required else f'{name}=…' for own, name in names.items())})"
        schema = {
            "properties": {name: self.parameters["properties"][own] for own, name in names.items()},
            "required": [names[name] for name in required],
        }
        try:
            line = rlm_tools.signature(cast("rlm_tools.Tool", self._replace(name=self.full_name, parameters=schema)))
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError):  # an invalid schema
            return f"{self.server}.{self.signature(types=False)}"
        return _one_line(line, 1000)

    def _python_names(self) -> dict[str, str]:
        """The Python name of each argument, in the order of the signature: the required ones come first."""
        required, names = set(self.parameters["required"]), python_names(self.parameters["properties"])
        return dict(sorted(names.items(), key=lambda item: item[0] not in required))

    def help(self) -> str:
        """What `help` prints for the function. The server's own words are quoted."""
        lines = [self.signature(), "", _quoted(self.description[:2000])]
        if self.own_name != self.name:
            lines[1] = _own_name(self.own_name)
        names = self._python_names()
        for name, schema in list(self.parameters["properties"].items())[:100]:
            about = _one_line(_mapping(schema).get("description") or "", 300)
            if name != names[name]:
                about = f"{_own_name(name)} {about}".rstrip()
            if about:
                lines.append(f"  {names[name]}: {about}")
        fields = {key: _mapping(item).get("type", "any") for key, item in self._returned().items()}
        if fields:
            shown = ", ".join(f"{key}: {kind}" for key, kind in fields.items())
            lines.append(_one_line(f"Returns {fields['result'] if self._is_wrapped else '{' + shown + '}'}", 500))
        return "\n".join(lines)

    @property
    def _is_wrapped(self) -> bool:
        return set(self._returned()) == {"result"}

    def _returned(self) -> Received:
        return _mapping(_mapping(self.returns).get("properties"))

    def to_python(self, result: Message) -> object:
        """A result as Python data.

        Structured content comes first, unwrapped from {"result": …}, which servers use since it must be an object.
        Else the content blocks: text as str, images and audio as bytes, a link as a dict; several are a list.
        """
        blocks = _blocks(result)
        if result.get("structuredContent") is None:
            values = [_block_value(block) for block in blocks]
            return values[0] if len(values) == 1 else values or None
        data = result["structuredContent"]
        if self._is_wrapped and isinstance(data, dict) and set(data) == {"result"}:
            data = data["result"]
        pictures = [_block_value(block) for block in blocks if block.get("type") in ("image", "audio")]
        return [data, *pictures] if pictures else data


def python_name(name: str) -> str:
    """`name` as a Python identifier: "search-issues" is search_issues, "3d" tool_3d, "class" class_."""
    import keyword

    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    text = text if re.match(r"[A-Za-z]", text) else f"tool_{text.lstrip('_')}"
    return f"{text}_" if keyword.iskeyword(text) else text


def python_names(names: Iterable[str]) -> dict[str, str]:
    """The Python identifier of each name: different ones, so a second "go_on" becomes go_on_2."""
    found = dict.fromkeys(names, "")  # in the order given
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for own in sorted(found, key=lambda own: python_name(own) != own):  # a name that needs no change keeps it
        first = name = python_name(own)[:64]
        while name in taken:
            numbers[first] = numbers.get(first, 1) + 1
            name = f"{first}_{numbers[first]}"
        found[own] = name
        taken.add(name)
    return found


# What would change how a terminal or a reader shows the text around it: escapes, control characters, directions.
_UNSEEN = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def _seen(text: object, most: int) -> str:
    """Text of a server as it may be shown: without control characters."""
    return _UNSEEN.sub("", str(text))[:most]


def _one_line(text: object, most: int) -> str:
    return " ".join(_seen(text, 4 * most).split())[:most]


def _quoted(text: str) -> str:
    """Text of a server, so marked that it cannot pass for ours."""
    return "\n".join(f"> {line}" for line in text.splitlines())


def _own_name(name: str) -> str:
    return f"(the server calls it {name[:200]!r})"


def _about(info: Received) -> Message:
    """What is kept of a server's description of itself."""
    texts = {key: info.get(key) for key in ("name", "title", "instructions")}
    return {key: _seen(text, 10_000) if isinstance(text, str) else None for key, text in texts.items()}


def json_argument(value: object) -> object:
    """An argument as JSON: tuples and sets become lists, bytes become base64."""
    if isinstance(value, dict):
        return {str(key): json_argument(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_argument(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return binascii.b2a_base64(value, newline=False).decode()
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >> 14_000):
        raise ValueError("NaN, infinity and integers of over 4,000 digits cannot be a tool's argument")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be a tool's argument: use text, numbers, lists or dicts")


def _blocks(result: Message) -> list[Message]:
    """The content of a result; TypeError if it is no list."""
    content = result.get("content") or []
    if not isinstance(content, list):
        raise TypeError(f"its content is {_shortened(content)}")
    return [block for block in content if isinstance(block, dict)]


def _block_value(block: Message) -> object:
    kind, resource = block.get("type"), _mapping(block.get("resource"))
    data = block.get("data") if kind in ("image", "audio") else resource.get("blob")
    if isinstance(data, str):
        try:
            return binascii.a2b_base64(data)
        except ValueError:
            raise ValueError(f"the result's {kind} is not base64") from None
    if kind == "text" or isinstance(resource.get("text"), str):
        return str(block.get("text", resource.get("text", "")))
    return {key: value for key, value in block.items() if key not in ("type", "_meta", "annotations")}


def read_catalogue(server: str, listed: list[object]) -> dict[str, RemoteTool]:
    """A server's tools by their Python names; a second tool with the same name becomes name_2."""
    tools: dict[str, RemoteTool] = {}
    entries = [entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    by_name = {entry["name"]: entry for entry in reversed(entries)}
    for own, name in python_names(reversed(by_name)).items():
        entry = by_name[own]
        about = entry.get("description") or entry.get("title") or ""
        tools[name] = remote_tool(server, name, own, about, entry.get("inputSchema"), entry.get("outputSchema"))
    return dict(sorted(tools.items()))


def remote_tool(server: str, name: str, own: str, about: object, parameters: object, returns: object) -> RemoteTool:
    """A tool from what a server or a journal says of it, whatever that is."""
    return RemoteTool(server, name, own, _seen(about, 10_000), _object_schema(parameters), _small(returns))


def _small(schema: object) -> Message | None:
    return schema if isinstance(schema, dict) and len(json.dumps(schema)) <= MAX_SCHEMA else None


def _object_schema(schema: object) -> Message:
    """A tool's input schema with a valid `properties` and `required`."""
    schema = _small(schema) or {}
    properties = {str(name): part for name, part in _mapping(schema.get("properties")).items()}
    required = schema.get("required")
    named = required if isinstance(required, list) else []
    needed = [name for name in named if isinstance(name, str) and name in properties]
    return {**schema, "properties": properties, "required": needed}


# - a connection


class Connection:
    """A connection to one server: handshake, list of tools and calls, over any transport."""

    def __init__(self, name: str, spec: Message, environ: Mapping[str, str]) -> None:
        expand = functools.partial(rlm_config.expand_variables, environ=environ)
        self.name, self.spec = name, spec
        self.seconds = float(spec.get("timeout") or CALL_SECONDS)
        self.version = ""  # of the protocol, once that is known
        self.info: Message = {}
        self.secrets = sorted(rlm_config.server_secrets({name: spec}, environ), key=len, reverse=True)
        words = rlm_config.command_words(spec)
        self.words = [expand(word) for word in words]
        self.env = {key: expand(value) for key, value in spec.get("env", {}).items()}
        self.headers = {key: expand(value) for key, value in spec.get("headers", {}).items()}
        self.url = expand(spec.get("url", ""))
        self.ended = ""  # the reason, once it cannot be used any more
        self.is_ready = False
        self.deadline: float | None = None  # of its start
        self.schemas: dict[str, Message] = {}  # of the tools called, by their own names: HTTP headers depend on them
        texts = [*words, spec.get("url", ""), *spec.get("env", {}).values(), *spec.get("headers", {}).values()]
        if unset := [name for name in re.findall(r"\$\{(\w+)\}", " ".join(texts)) if not environ.get(name)]:
            raise self.failed(f"needs the variable {unset[0]}, which is not set", f"export {unset[0]}=…")

    def exchange(self, method: str, params: Message, seconds: float) -> Message:
        """The message that answers a request, with `result` or `error`; TimeoutError or ToolError if none comes."""
        raise NotImplementedError

    def notify(self, method: str, params: Message | None = None) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def interrupt(self) -> None:
        """Fail the calls in flight."""
        raise NotImplementedError

    def failed(self, what: str, hint: str = "") -> Exception:
        """An error that names the server, without its keys."""
        text = rlm_backends.mask(f"MCP server {self.name!r} {what}", self.secrets)
        return remote_error(text, hint or f"look at [mcp.{self.name}] in the configuration")

    def parse(self, data: bytes) -> list[Received]:
        """The messages in `data`, without the server's keys; ValueError if it is not JSON."""
        for secret in self.secrets:
            data = data.replace(json.dumps(secret)[1:-1].encode(), b"[redacted]")
        return _messages(data)

    def request(self, method: str, params: Message | None = None, seconds: float | None = None) -> Message:
        """The result of a request; ProtocolError where the server answers with an error."""
        params = dict(params or {})
        if self.version == LATEST:
            about = {"protocolVersion": LATEST, "clientCapabilities": {}, "clientInfo": self._client()}
            params["_meta"] = {f"io.modelcontextprotocol/{key}": value for key, value in about.items()}
        answer = self.exchange(method, params, self._seconds_left(seconds))
        if "error" in answer:
            error = _mapping(answer["error"])
            code = error.get("code") if isinstance(error.get("code"), int) else INTERNAL
            raise ProtocolError(
                code or INTERNAL, str(error.get("message") or "no reason given")[:2000], error.get("data")
            )
        if not isinstance(answer.get("result"), dict):
            raise self.failed(f"answered {method} without a result: {_shortened(answer)}")
        result: Message = answer["result"]
        return result

    def _seconds_left(self, seconds: float | None = None) -> float:
        """For a request: at most so many, `timeout` by default; TimeoutError once the deadline has passed."""
        left = seconds or self.seconds
        if self.deadline is not None:
            left = min(left, self.deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError("its time is up")
        return left

    def _client(self) -> Message:
        return {"name": "rlm", "version": _version()}

    def negotiate(self, *, probe: bool = True) -> None:
        """Agree on a revision: the newest if the server supports it, else by the handshake of the older ones."""
        if not probe or not self._discover(min(PROBE_SECONDS, self.seconds)):
            self.version = ""
            self._initialize()
        self.is_ready = True

    def _initialize(self) -> None:
        opening = {"protocolVersion": HANDSHAKE[-1], "capabilities": {}, "clientInfo": self._client()}
        try:
            result = self.request("initialize", opening)
        except ProtocolError as error:
            # A server that was slow to start has read the probe by now, and speaks the newest revision.
            if error.code in (UNSUPPORTED_VERSION, NO_METHOD) and self._discover(self.seconds):
                return
            raise self.failed(f"refused the handshake: {error}") from None
        except TimeoutError:
            raise self.failed(f"did not answer initialize in {self.seconds:g} s{self.diagnostics()}") from None
        if result.get("protocolVersion") not in HANDSHAKE:
            raise self.failed(f"speaks revision {_shortened(result.get('protocolVersion'))}, which is not known here")
        self.version = str(result["protocolVersion"])
        self.info = {**_mapping(result.get("serverInfo")), "instructions": result.get("instructions")}
        self.notify("notifications/initialized")

    def _discover(self, seconds: float) -> bool:
        """Whether the server speaks the newest revision."""
        self.version = LATEST
        try:
            result = self.request("server/discover", {}, seconds)
        except (ProtocolError, TimeoutError):
            return False
        if LATEST not in (result.get("supportedVersions") or []):
            return False
        identity = _mapping(_mapping(result.get("_meta")).get("io.modelcontextprotocol/serverInfo"))
        self.info = {**identity, "instructions": result.get("instructions")}
        return True

    def diagnostics(self) -> str:
        """What an error message adds about the server: the end of its stderr."""
        return ""

    def list_tools(self) -> list[object]:
        """All pages of the server's tools, in the time of one request."""
        until = time.monotonic() + self.seconds
        self.deadline = until if self.deadline is None else min(until, self.deadline)
        tools: list[object] = []
        seen, cursor, size = {""}, "", 0
        for _ in range(MAX_PAGES):
            page, cursor = self._tools_page(cursor)
            tools += page
            size += len(json.dumps(page)) + len(cursor)
            if len(tools) > MAX_REMOTE_TOOLS or size > MAX_CATALOGUE:
                raise self.failed(f"lists more than {MAX_REMOTE_TOOLS:,} tools, or {MAX_CATALOGUE // 10**6} MB of them")
            if cursor in seen:
                self.deadline = None
                return tools
            seen.add(cursor)
        raise self.failed(f"lists its tools on more than {MAX_PAGES:,} pages")

    def _tools_page(self, cursor: str) -> tuple[list[object], str]:
        """The tools of a page, and the cursor of the next; "" on the last."""
        try:
            result = self.request("tools/list", {"cursor": cursor} if cursor else {})
        except (ProtocolError, TimeoutError) as error:
            raise self.failed(f"does not list its tools: {error}") from None
        page, following = result.get("tools"), result.get("nextCursor")
        if not isinstance(page, list):
            raise self.failed(f"answered tools/list without a list: {_shortened(result)}")
        return page, following if isinstance(following, str) else ""

    def call(self, tool: RemoteTool, arguments: Message) -> object:
        """The tool's result as Python data; ToolError with the server's message if it fails."""
        self.schemas[tool.own_name] = tool.parameters
        try:
            result = self.request("tools/call", {"name": tool.own_name, "arguments": arguments})
        except ProtocolError as error:
            raise remote_error(f"{tool.full_name} was refused: {error}", tool.signature()) from None
        except TimeoutError:
            raise self.failed(
                f"did not answer {tool.name} in {self.seconds:g} s{self.diagnostics()}",
                f"ask for less, or give it longer: timeout in [mcp.{self.name}]",
            ) from None
        if result.get("resultType", "complete") != "complete":
            raise remote_error(f"{tool.full_name} asks for input from a user, which is not supported", tool.signature())
        if result.get("isError"):
            texts = [str(block["text"]) for block in _blocks(result) if block.get("text")]
            raise remote_error(f"{tool.full_name} failed: {' '.join(texts)[:4000] or 'no reason given'}")
        return tool.to_python(result)


def _shortened(value: object) -> str:
    return (json.dumps(value) if isinstance(value, (dict, list)) else repr(value))[:200]


class StdioConnection(Connection):
    """A server that runs as a child process, in its own process group."""

    def __init__(self, name: str, spec: Message, environ: Mapping[str, str]) -> None:
        super().__init__(name, spec, environ)
        self._lock = threading.Lock()
        self._pending: dict[int, PendingReply[Message]] = {}
        self._last = self._unmatched = 0
        self._stderr = bytearray()
        self._closing = threading.Lock()
        self._start(self.words, {key: environ[key] for key in INHERITED if key in environ})

    def _start(self, words: list[str], inherited: Message) -> None:
        import subprocess

        pipe, cwd = subprocess.PIPE, os.path.expanduser(self.spec.get("cwd") or os.getcwd())
        kept = {key: value for key, value in inherited.items() if not value.startswith("()")}  # functions of a shell
        try:
            self.process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=pipe, env={**kept, **self.env}, cwd=cwd, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            there = "" if os.path.isdir(cwd) else f" in {cwd}, which is no folder"
            reason = getattr(error, "strerror", None) or error
            raise self.failed(
                f"cannot be started: {words[0]}{there}: {reason}",
                f"install it, or mend `command` in [mcp.{self.name}]; PATH is searched for it",
            ) from None
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.wire = StdioTransport(self.process.stdout.fileno(), self.process.stdin.fileno())
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._drain)]
        for thread in reversed(self._threads):  # stderr first: the other may end at once, and joins its reader
            thread.start()

    def exchange(self, method: str, params: Message, seconds: float) -> Message:
        reply, deadline = PendingReply[Message](), time.monotonic() + seconds
        with self._lock:
            if self.ended:
                raise self.failed(self.ended)
            self._last += 1
            number = self._last
            self._pending[number] = reply
        try:
            self._send(rpc(method, params, number), seconds)  # if it fails, the reading thread reports the reason
            if self.wire.is_broken:
                self._end(f"read only a part of {method} in {seconds:g} s")
            is_answered = reply.done.wait(max(0.0, deadline - time.monotonic()))
            if method == "tools/call" and (not is_answered or reply.problem is not None):
                self._send(rpc("notifications/cancelled", {"requestId": number, "reason": "its time is up"}), 0)
            if not is_answered:
                raise TimeoutError(f"no answer in {seconds:g} s{self.diagnostics()}")
        finally:
            self._pending.pop(number, None)
        if reply.problem is not None:
            raise reply.problem
        assert reply.value is not None
        return reply.value

    def notify(self, method: str, params: Message | None = None) -> None:
        self._send(rpc(method, params), self._seconds_left())

    def _send(self, message: Message, seconds: float) -> None:
        """Send it if the server reads it in time; in no time means at once or not at all."""
        with contextlib.suppress(ClientDisconnected):
            self.wire.send(message, seconds)

    def diagnostics(self) -> str:
        said = self._stderr.decode("utf-8", "replace").strip()
        sent = f"; it sent {self._unmatched:,} messages that answer nothing" if self._unmatched else ""
        return f"{sent}; its stderr ends with: {said[-STDERR_CHARS:]}" if said else sent

    def interrupt(self) -> None:
        for reply in list(self._pending.values()):
            reply.settle(problem=remote_error("the run was stopped"))

    # reading

    def _drain(self) -> None:
        assert self.process.stderr
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self.process.stderr.fileno(), 65_536):
                self._stderr += data
                del self._stderr[: -4 * STDERR_CHARS]

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self.wire.lines():
                if line is None:
                    self._end(f"sent a message of more than {MAX_LINE >> 20} MB")
                    break
                self._handle_line(line)
                if self._unmatched > MAX_UNMATCHED:
                    self._end(f"floods: {self._unmatched:,} messages that answer nothing")
                    break
        self._end("")

    def _handle_line(self, line: bytearray) -> None:
        try:
            messages = self.parse(bytes(line))
        except ValueError as error:
            if line.lstrip().startswith((b"{", b"[")):
                self._fail_pending(f"sent JSON that cannot be read: {str(error)[:200]}", "ask it for less at once")
            self._unmatched += 1  # the server prints where only messages belong
            return
        for message in messages:
            self._handle_message(message)

    def _handle_message(self, message: Received) -> None:
        number = message.get("id")
        if "method" in message:
            self._unmatched += 1
            if _is_id(number) and len(str(number)) <= 200:  # a longer answer could stop halfway
                answer = {"result": {}} if message["method"] == "ping" else {"error": NOT_OFFERED}
                self._send({"jsonrpc": "2.0", "id": number, **answer}, 0)
            return
        reply = self._pending.get(number) if type(number) is int else None
        if reply is None or reply.done.is_set() or not message.keys() & {"result", "error"}:
            self._unmatched += 1
            return
        self._unmatched = 0
        reply.settle(dict(message))

    def _fail_pending(self, what: str, hint: str = "") -> None:
        for reply in list(self._pending.values()):
            reply.settle(problem=self.failed(what, hint))

    def _end(self, reason: str) -> None:
        """Record why the server has ended, or end it for `reason`, and fail the calls in flight."""
        if reason:
            rlm_backends.kill_group(self.process.pid)
        with self._lock:
            if not self.ended:
                with contextlib.suppress(Exception):
                    self.process.wait(EXIT_SECONDS)
                self._threads[1].join(0.2)  # reads the rest of stderr
                status = self.process.returncode
                how = "closed its stdout" if status is None else f"ended by signal {-status}" if status < 0 else ""
                self.ended = f"{reason or how or f'ended with status {status}'}{self.diagnostics()}"
        hint = "the next call starts it again" if self.is_ready else f"look at `command` in [mcp.{self.name}]"
        self._fail_pending(self.ended, hint)

    def close(self) -> None:
        """End the process as MCP specifies: close its stdin, then SIGTERM, then SIGKILL to its group."""
        if not self._closing.acquire(blocking=False):
            return
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        if self.wire.close_output(0.2):
            process.stdin.close()
            self._wait(EXIT_SECONDS)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            self._wait(EXIT_SECONDS)
        rlm_backends.kill_group(process.pid)
        self._wait(EXIT_SECONDS)
        if self.wire.close_output(EXIT_SECONDS):
            process.stdin.close()
        for thread, stream in zip(self._threads, (process.stdout, process.stderr)):
            thread.join(0.2)
            if not thread.is_alive():  # else a process that left the group holds the other end
                stream.close()

    def _wait(self, seconds: float) -> None:
        import subprocess

        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)


NOT_OFFERED = {"code": NO_METHOD, "message": "this client offers nothing to servers"}


class HTTPConnection(Connection):
    """A server at a URL: each message is a POST, answered with JSON or server-sent events."""

    def __init__(self, name: str, spec: Message, environ: Mapping[str, str]) -> None:
        super().__init__(name, spec, environ)
        self._session = ""
        self._cancel = threading.Event()
        self._numbers = itertools.count(1)

    def exchange(self, method: str, params: Message, seconds: float) -> Message:
        number = next(self._numbers)
        message = rpc(method, params, number)
        status, headers, body = self._post(message, seconds)
        if status == 404 and self._session and method != "initialize":  # it has expired, the request was not run
            self._session = ""
            self.negotiate()
            status, headers, body = self._post(message, seconds)
        answer = self._answer(headers, body, number)
        if answer is not None:
            if method == "initialize":
                self._session = headers.get("mcp-session-id", "")
            return answer
        if method == "server/discover" and 400 <= status < 500 and status not in (401, 403):
            raise ProtocolError(INVALID_REQUEST, f"status {status}")
        said = rlm_backends.mask(body[:300].decode("utf-8", "replace"), self.secrets)
        hints = {401: "its key", 403: "its key", 404: "the path of its url", 405: "its url: SSE alone is not supported"}
        where = hints.get(status, "`url`")
        raise self.failed(f"answered {method} with status {status}: {said}", f"look at {where} in [mcp.{self.name}]")

    def notify(self, method: str, params: Message | None = None) -> None:
        self._post(rpc(method, params), self._seconds_left())

    def _post(self, message: Message, seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        headers = self._request_headers(message)
        url, deadline = self.url, time.monotonic() + seconds
        for _ in range(4):
            try:
                status, answered, body = rlm_backends.post(
                    *(url,), json=message, headers=headers, timeout=seconds, max_retries=0, deadline=deadline,
                    cancel=self._cancel, complete=AnswerWatch(message.get("id")),
                )  # fmt: skip
                if status not in (301, 302, 307, 308):
                    self.url = url
                    return status, answered, body
                target = rlm_backends._redirect_target(url, answered.get("location", ""), "set url to its new address")
            except rlm_backends.BackendError as error:
                if error.code in ("timeout", "deadline"):
                    raise TimeoutError(f"no answer in {seconds:g} s") from None
                raise self.failed(f"cannot be reached: {error}", error.hint) from None
            if rlm_backends._origin(target) != rlm_backends._origin(url):
                raise self.failed(
                    f"redirects to {target[:200]}, where its key does not go", "if that is meant, set url to it"
                )
            url = target
        raise self.failed("redirects in a circle")

    def _request_headers(self, message: Message) -> dict[str, str]:
        headers = {**self.headers, "Accept": "application/json, text/event-stream"}
        if self._session:
            headers["Mcp-Session-Id"] = self._session
        if self.version:
            headers["MCP-Protocol-Version"] = self.version
        if self.version == LATEST:
            params = message.get("params", {})
            headers["Mcp-Method"] = message["method"]
            if message["method"] == "tools/call":
                headers["Mcp-Name"] = _header_value(params["name"])
                schema = self.schemas.get(params["name"], {})
                headers.update(_param_headers(schema, params.get("arguments")))
        return headers

    def _answer(self, headers: Mapping[str, str], body: bytes, number: int) -> Message | None:
        """The answer to request `number` in a response; None if it holds none."""
        kind = headers.get("content-type", "").partition(";")[0].strip()
        stream = kind == "text/event-stream"
        for text in rlm_backends._events(iter([body])) if stream else [body]:
            if not text.strip():  # an event with an id alone
                continue
            try:
                messages = self.parse(text if isinstance(text, bytes) else text.encode())
            except ValueError as error:
                if stream or kind.startswith("application/json"):
                    raise self.failed(f"sent JSON that cannot be read: {str(error)[:200]}") from None
                return None
            for message in messages:
                if _is_answer(message, number):
                    return dict(message)
        return None

    def interrupt(self) -> None:
        cancel, self._cancel = self._cancel, threading.Event()
        cancel.set()

    def close(self) -> None:
        self.interrupt()
        if not self._session:
            return
        thread = threading.Thread(target=self._end_session, daemon=True)
        thread.start()
        thread.join(2 * EXIT_SECONDS)  # whatever the server does meanwhile

    def _end_session(self) -> None:
        import requests

        headers = self._request_headers({"method": ""})
        with contextlib.suppress(requests.RequestException, ValueError), requests.Session() as http:
            http.trust_env = not rlm_backends._is_loopback(self.url)
            http.auth = lambda request: request  # none of .netrc
            # Its body is never read.
            http.delete(self.url, headers=headers, timeout=EXIT_SECONDS, allow_redirects=False, stream=True).close()


class AnswerWatch:
    """Tells from each piece of an event stream whether the answer is complete, without waiting for the stream's end.

    An event ends with an empty line; that of the answer has the request's id and `result` or `error`.
    """

    def __init__(self, number: int | None) -> None:
        self.number = number
        self._data = bytearray()  # since the end of the last event

    def __call__(self, piece: bytes) -> bool:
        start = max(0, len(self._data) - 3)
        self._data += piece
        if not (ends := [found.end() for found in _EVENT_END.finditer(self._data, start)]):
            return False
        events = bytes(self._data[: ends[-1]])
        del self._data[: ends[-1]]
        return any(map(self._is_answer, rlm_backends._events(iter([events]))))

    def _is_answer(self, text: str) -> bool:
        try:
            return any(_is_answer(message, self.number) for message in _messages(text))
        except ValueError:
            return False


_EVENT_END = re.compile(rb"\n\n|\r\n\r\n|\r\r")


def _messages(data: bytes | str) -> list[Received]:
    """The messages in `data`, one or an array of them; ValueError if it is not JSON."""
    found = rlm_backends.from_json(data)
    return [_mapping(message) for message in (found if isinstance(found, list) else [found])]


def _is_answer(message: Received, number: int | None) -> bool:
    """Whether it answers request `number`. Some servers leave the id of an error out."""
    is_reply = "method" not in message and message.keys() & {"result", "error"}
    return bool(is_reply) and message.get("id", number) in (number, None)


def _header_value(text: str) -> str:
    """Text as a header value of the newest revision: base64 unless it is printable ASCII."""
    if re.fullmatch(r"[ -~]*", text) and text == text.strip() and not text.startswith("=?base64?"):
        return text
    return f"=?base64?{binascii.b2a_base64(text.encode('utf-8', 'replace'), newline=False).decode()}?="


def _param_headers(schema: object, arguments: object) -> dict[str, str]:
    """The arguments that a schema marks with x-mcp-header: the newest revision repeats them as headers."""
    headers = {}
    for name, part in _mapping(_mapping(schema).get("properties")).items():
        value, token = _mapping(arguments).get(name), _mapping(part).get("x-mcp-header")
        if isinstance(value, dict):
            headers.update(_param_headers(part, value))
        elif isinstance(token, str) and re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", token) and value is not None:
            text = json.dumps(value) if isinstance(value, bool) else str(value)
            headers[f"Mcp-Param-{token}"] = _header_value(text)
    return headers


# - all servers of one run


class ServerSet:
    """The MCP servers of a run. They are connected at its start; a run resumed from a journal connects one at the
    first call whose result the journal does not have."""

    def __init__(self, specs: Mapping[str, Message], environ: Mapping[str, str]) -> None:
        self.specs = {python_name(name): (name, spec) for name, spec in specs.items()}
        if len(self.specs) < len(specs):
            raise remote_error("two MCP servers have the same name in Python", f"rename one of {', '.join(specs)}")
        self.environ = environ
        self.tools: dict[str, dict[str, RemoteTool]] = {}
        self.info: dict[str, Message] = {}
        self._connections: dict[str, Connection] = {}
        self._locks: dict[str, threading.Lock] = {name: threading.Lock() for name in self.specs}
        self._starts: dict[str, int] = {}
        self._closed = False
        self._deadline: float | None = None  # of the start of all

    def connect(self, deadline: float | None = None) -> None:
        """Start all servers in parallel and list their tools; ToolError for the first that fails.

        `deadline`: of time.monotonic(). `close`, called by another thread, ends the wait.
        """
        problems: list[BaseException] = []
        self._deadline = deadline

        def start(name: str) -> None:
            try:
                with self._unreadable_is_an_error(name):
                    connection = self._connection(name)
                    own, spec = self.specs[name]
                    tools = read_catalogue(name, connection.list_tools())
                    self.tools[name] = _filter_tools(own, tools, spec.get("tools"))
                    self.info[name] = _about(connection.info)
            except BaseException as error:
                problems.append(error)
                self.close()  # which ends the wait for the others

        try:
            tasks = [functools.partial(start, name) for name in self.specs]
            rlm.fan_out(tasks, len(tasks))
        except BaseException:
            self.close()
            raise
        if problems:
            raise problems[0]
        self.tools = {name: self.tools[name] for name in self.specs}
        self._deadline = None

    @contextlib.contextmanager
    def _unreadable_is_an_error(self, name: str) -> Iterator[None]:
        """An answer with the wrong types, in whatever place, becomes a ToolError that names the server."""
        try:
            yield
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError, ProtocolError, OSError) as error:
            what = f"failed: {error}"
            if not isinstance(error, (ProtocolError, OSError)):
                what = f"sent an answer that cannot be read: {type(error).__name__}: {error}"
            own, spec = self.specs.get(name, (name, {}))
            secrets = rlm_config.server_secrets({own: spec}, self.environ)
            text = rlm_backends.mask(f"MCP server {own!r} {what[:500]}", secrets)
            raise remote_error(text, f"look at [mcp.{own}] in the configuration") from error

    def restore(self, recorded: object) -> None:
        """Take the tools from a journal, without starting a server; ToolError if it holds none that can be read."""
        for name, server in _mapping(recorded).items():
            tools = _mapping(server).get("tools")
            if python_name(name) != name or not isinstance(tools, list):
                raise remote_error(f"the journal's MCP server {name[:80]!r} cannot be read", "ask again without it")
            self.info[name] = _about(server)
            self.tools[name] = {}
            for tool in map(_mapping, tools):
                own, about, parameters, returns = map(tool.get, ("own_name", "description", "parameters", "returns"))
                if python_name(key := str(tool.get("name"))) == tool.get("name"):
                    self.tools[name][key] = remote_tool(name, key, str(own), about, parameters, returns)
            self._locks.setdefault(name, threading.Lock())

    def recorded(self) -> Message:
        """The tools for the journal, as `restore` reads them."""
        return {
            name: {**self.info[name], "tools": [tool._asdict() for tool in tools.values()]}
            for name, tools in self.tools.items()
        }

    def _connection(self, name: str) -> Connection:
        """The connection to a server, made again if the server has ended."""
        with self._locks[name]:
            known = self._connections.get(name)
            if known is not None and not known.ended:
                return known
            if self._closed:
                raise remote_error("the run has ended")
            if name not in self.specs:
                raise remote_error(f"no MCP server {name!r} is configured", f"write [mcp.{name}] in rlm.toml")
            if known is not None:
                known.close()
            self._starts[name] = self._starts.get(name, 0) + 1
            if self._starts[name] > MAX_STARTS:
                last = f"; the last time it {known.ended}" if known is not None else ""
                raise remote_error(f"MCP server {name!r} was started {MAX_STARTS} times, which is the limit{last}")
            try:
                return self._negotiated(name)
            except BaseException:
                if (failed := self._connections.pop(name, None)) is not None:
                    failed.close()
                raise

    def _negotiated(self, name: str) -> Connection:
        connection = self._open(name)
        try:
            connection.negotiate()
        except rlm_tools.ToolError:
            if not connection.ended or connection.is_ready:
                raise
            # Some servers that only know the handshake exit at the probe.
            connection.close()
            connection = self._open(name)
            connection.negotiate(probe=False)
        return connection

    def _open(self, name: str) -> Connection:
        own, spec = self.specs[name]
        kind = HTTPConnection if "url" in spec else StdioConnection
        self._connections[name] = connection = kind(own, spec, self.environ)
        connection.deadline = self._deadline
        if self._closed:
            connection.close()
            raise remote_error("the run has ended")
        return connection

    def call(self, tool: RemoteTool, arguments: Message) -> object:
        """The result of a tool. The text of an error includes its hint, since code sees only the text."""
        try:
            allowed = self.specs.get(tool.server, ("", {}))[1].get("tools")
            if allowed is not None and not {tool.own_name, python_name(tool.own_name)} & set(allowed):
                raise remote_error(f"{tool.full_name} is not among the tools that [mcp.{tool.server}] allows")
            with self._unreadable_is_an_error(tool.server):
                return self._connection(tool.server).call(tool, arguments)
        except rlm_tools.ToolError as error:
            raise remote_error(f"{error}; next: {error.hint}" if error.hint else str(error)) from None

    def interrupt(self) -> None:
        for connection in list(self._connections.values()):
            connection.interrupt()

    def close(self) -> None:
        """End all servers, in parallel."""
        self._closed = True
        connections = list(self._connections.values())
        self._connections.clear()
        rlm.fan_out([connection.close for connection in connections], len(connections))

    # prompt and help

    def prompt_line(self) -> str:
        """A line for the prompt, of the same length for any number of tools."""
        counts = [f"{name} ({rlm_config.counted(len(tools), 'tool')})" for name, tools in self.tools.items()]
        return (
            f"Also in Python, tools of MCP servers: {', '.join(counts)}. help({next(iter(self.tools))}) lists them, "
            'tools("word") finds some; SERVER.TOOL(argument=…) returns data.'
        )

    def namespaces(self, function: Callable[[RemoteTool], Callable[..., object]]) -> dict[str, rlm_sandbox.Namespace]:
        """An object for each server, whose attributes are the functions of its tools."""
        texts = self._tool_help
        found = {}
        for name, tools in self.tools.items():
            members = {tool.name: (function(tool), texts[tool.full_name]) for tool in tools.values()}
            found[name] = rlm_sandbox.Namespace(self.server_help(name), members)
        return found

    @functools.cached_property
    def _tool_help(self) -> dict[str, str]:
        tools = [tool for tools in self.tools.values() for tool in tools.values()]
        texts = {tool.full_name: tool.help() for tool in tools}
        if sum(map(len, texts.values())) > MAX_HELP:  # sent with each cell
            texts = {tool.full_name: tool.signature()[:200] for tool in tools}
        return texts

    def server_help(self, name: str) -> str:
        """What `help` prints for a server: a line for each tool, shortened if there are many."""
        tools, info = self.tools[name], self.info[name]
        title = str(info.get("title") or info.get("name") or name)[:100]
        count = rlm_config.counted(len(tools), "tool")
        head = f"{name}: {count} of the MCP server {title!r}; help({name}.NAME) tells what one takes"
        told = [_quoted(str(info["instructions"])[:1000])] if info.get("instructions") else []
        lines = [f"{tool.signature(types=False)[:120]}: {_first_line(tool.description)}" for tool in tools.values()]
        if sum(map(len, lines)) > 8_000:
            lines = [tool.signature(types=False)[:60] for tool in tools.values()]
        if sum(map(len, lines)) > 8_000:
            lines = [", ".join(tools)]
        return "\n".join([head, *told, "", *lines])

    def search(self, word: str = "") -> list[str]:
        """A line for each tool whose name or description has all words of `word`; "" finds all."""
        words = str(word).lower().replace("_", " ").split()
        found = []
        for tool in (tool for tools in self.tools.values() for tool in tools.values()):
            text = f"{tool.full_name} {tool.own_name} {tool.description}".lower().replace("_", " ")
            if all(part in text for part in words):
                found.append(f"{tool.signature()}: {_first_line(tool.description)}")
        return found


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:100]


def _filter_tools(server: str, tools: dict[str, RemoteTool], names: list[str] | None) -> dict[str, RemoteTool]:
    """The tools that the option `tools` allows, by their own or their Python names."""
    if names is None:
        return tools
    known = {tool.own_name: tool for tool in tools.values()} | tools
    for name in names:
        if name not in known:
            there = rlm_config.suggestion(str(name), known)
            raise remote_error(f"MCP server {server!r} has no tool {name!r}, which [mcp.{server}] allows", there)
    kept = {known[name].name for name in names}
    return {name: tool for name, tool in tools.items() if name in kept}
