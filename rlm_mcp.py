# /// script
# requires-python = ">=3.10"
# dependencies = ["requests", "RestrictedPython", "docker", "tomli; python_version < '3.11'"]
# ///
"""An MCP server on stdio, written by hand: a sandboxed, persistent Python for any MCP client, with no API key.

Covered: revisions 2024-11-05 to 2025-11-25 (the handshake) and 2026-07-28 (every request speaks for itself), both on
one stdin; tools, resources, progress, cancellation, batches (2025-03-26), sampling and roots (asked for as each era
does). Not covered: HTTP, prompts, completion, logging, elicitation, tasks.

How a line travels (this file reads top to bottom in that order):

    Wire -> Server.receive -> Request -> a method, answered at once
                                      -> a tool: Job on its session's thread -> the session's worker process
                                         the model's help: Ask -> sampling, or back to the host as "needs_completions"

The thread that reads stdin never runs a tool, so a ping or a cancellation is heard while code runs. Modules that a
first tool call does not need are imported where they are used.

Needs rlm.py and what that needs: rlm_config.py, rlm_backends.py, rlm_tools.py, rlm_sandbox.py, rlm_worker.py and
rlm_policy.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import rlm_sandbox

__all__ = ["install", "serve"]

Message = dict[str, Any]

HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LATEST = "2026-07-28"
SUPPORTED = (LATEST, *reversed(HANDSHAKE))

PARSE_ERROR, INVALID_REQUEST, NO_METHOD, INVALID_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
NO_RESOURCE, UNSUPPORTED_VERSION = -32002, -32022

MAX_LINE = 64 << 20  # bytes of one message
MAX_SESSIONS = 32
MAX_WAITING = 20_000  # calls queued for one session
MAX_RUNNING = 100  # calls at work
IDLE_SECONDS = 30 * 60  # after which a session, a suspended run or an uncollected result is dropped
HEARTBEAT_SECONDS = 2.5
STOP_GRACE = 0.075  # seconds that a cancelled cell has before it is killed
GATHER_SECONDS = 0.015  # sub-calls that arrive this close together are asked in one round
CLIENT_TOKENS = 16  # least room for an answer of the client's own model, whose figures are estimates
DRAIN_SECONDS = 1.5
PARALLEL_SECONDS = 0.5  # calls of one session that arrive this close together may wait for each other
QUEUE_SECONDS = 2.0  # as long as a later one waits before it is answered with its handle
PREVIEW_CHARS = 20_000
VALUE_CHARS = 4_000  # of one value: digits and punctuation cost a token for each two or three characters
OUTPUT_LIMIT = 2_000_000  # characters of a cell's output that are kept for its resource
MAX_OUTPUTS = 50
MAX_TRAJECTORY = 8 << 20  # bytes of a journal that are handed out
TRAJECTORY = re.compile(r"[0-9a-f]{6}-[0-9a-f]{6}\.jsonl")
MAX_IMAGE_CHARS = 12 << 20  # base64 of one call's images together


# --- the wire ---------------------------------------------------------------------------------------------------


class ClientDisconnected(Exception):
    """The client no longer reads what we write."""


class StdioTransport:
    """One JSON-RPC message per line, both ways, on descriptors that no user code can reach."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._in, self._out = read_fd, write_fd
        self._lock = threading.Lock()
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._out, select.POLLOUT)
            self._poll.register(self._in, 0)  # only POLLHUP: a client that left while its pipe is full

    def lines(self) -> Iterator[bytearray | None]:
        """Each line without its newline; None for one longer than MAX_LINE, which is skipped, not stored."""
        line, too_long = bytearray(), False
        while chunk := os.read(self._in, 1 << 18):
            *ended, rest = chunk.split(b"\n")
            for piece in ended:
                too_long = too_long or len(line) + len(piece) > MAX_LINE
                line += piece
                yield None if too_long else line
                line, too_long = bytearray(), False
            line += rest
            if too_long or len(line) > MAX_LINE:
                line, too_long = bytearray(), True
        if line:
            yield line

    def send(self, message: Message | list[Message]) -> None:
        """Write one line. ClientDisconnected when nobody will read it."""
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
        if "\\ud" in text:  # a lone surrogate is legal here and kills the JSON readers of several clients
            clean = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
            text = json.dumps(json.loads(clean), separators=(",", ":"))
        data = memoryview(text.encode() + b"\n")
        with self._lock:
            while data:
                data = data[self._write_some(data) :]

    def _write_some(self, data: memoryview) -> int:
        # In pieces that a pipe with room takes without blocking: nothing may hold a thread that must notice the end.
        try:
            if self._poll:
                events = dict(self._poll.poll())
                if not events.get(self._out, 0) & select.POLLOUT:
                    raise ClientDisconnected
            return os.write(self._out, data[: select.PIPE_BUF if self._poll else 1 << 16])
        except OSError as error:
            raise ClientDisconnected from error


def _private_streams() -> tuple[int, int]:
    """Private copies of stdin and stdout; fd 0 then reads nothing and fd 1 goes to stderr, whoever uses them."""
    sys.stdout.flush()
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return read_fd, write_fd


# --- requests ---------------------------------------------------------------------------------------------------


class ProtocolError(Exception):
    """Answered as a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


class ToolError(Exception):
    """What the model can mend: answered as a tool result with isError."""


class ProtocolContext(NamedTuple):
    """What one request may expect: the revision it speaks, and what its client can do."""

    version: str
    capabilities: Mapping[str, Any]

    @property
    def modern(self) -> bool:
        return self.version == LATEST

    def since(self, version: str) -> bool:
        return self.version >= version


class Request:
    """One request in flight. It is answered once, or, when it was cancelled, never."""

    def __init__(
        self, id: str | int, method: str, params: Message, dialect: ProtocolContext, sink: Callable[..., None]
    ):
        self.id, self.method, self.params, self.dialect = id, method, params, dialect
        self._sink = sink  # takes the answer, or None for a request that gets none
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self.job: Job | None = None
        self.started = self.beat = time.monotonic()
        token = _mapping(params.get("_meta")).get("progressToken")
        self.token = token if _is_id(token) else None

    def result(self, result: Message) -> bool:
        """Answer, in the request's own dialect. False when it was answered or cancelled before."""
        if self.dialect.modern:
            identity = {"io.modelcontextprotocol/serverInfo": {key: server_info()[key] for key in ("name", "version")}}
            result = {"resultType": "complete", **result, "_meta": {**identity, **result.get("_meta", {})}}
        return self._close({"jsonrpc": "2.0", "id": self.id, "result": result})

    def error(self, error: ProtocolError) -> bool:
        return self._close(error_message(error, self.id))

    def drop(self) -> bool:
        """Close it without an answer."""
        return self._close(None)

    def progress(self, message: str, sink: Callable[[Message], None]) -> None:
        """A heartbeat, if the client asked for them: seconds so far, which always grow."""
        with self._lock:
            now = time.monotonic()
            if self.closed.is_set() or self.token is None or now - self.beat < HEARTBEAT_SECONDS:
                return
            self.beat = now
            params = {"progressToken": self.token, "progress": round(now - self.started, 3)}
            if message and self.dialect.since("2025-03-26"):
                params["message"] = message[-200:]
            sink({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})

    def _close(self, message: Message | None) -> bool:
        with self._lock:
            if self.closed.is_set():
                return False
            self._sink(message)
            self.closed.set()
        return True


class Batch:
    """The answers to one array of requests (2025-03-26), sent as one array when the last of them is there."""

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


def error_message(error: ProtocolError, id: str | int | None) -> Message:
    body: Message = {"code": error.code, "message": str(error)}
    if error.data is not None:
        body["data"] = error.data
    # A request whose id could not be read is answered without one: no revision's schema allows null.
    return {"jsonrpc": "2.0", **({} if id is None else {"id": id}), "error": body}


def _is_id(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _present(mapping: Mapping[str, Any]) -> Message:
    """`mapping` without what is null: some clients write absent members so."""
    return {name: value for name, value in mapping.items() if value is not None}


# --- jobs: work for a session, which may outlive the call that began it ---------------------------------------------


class SamplingRequest:
    """A question for the client's own model, and the place its answer is waited for."""

    def __init__(self, messages: list[Message], max_tokens: int | None = None, known: int = 0) -> None:
        self.messages, self.max_tokens = messages, max_tokens
        self.known = known  # messages at the front that the client has seen, its own answers among them
        self.reply: str | None = None
        self.problem: str | None = None
        self.done = threading.Event()

    def prompt(self, known: int = 0) -> str:
        """The question as one text: a single user message verbatim, a conversation with its roles."""
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

    def set_result(self, *, reply: str | None = None, problem: str | None = None) -> None:
        if not self.done.is_set():
            self.reply, self.problem = reply, problem
            self.done.set()

    def settle_sampled(self, result: Any) -> None:
        """Take a CreateMessageResult: its text, or the problem with it."""
        content = _mapping(result).get("content")
        blocks = content if isinstance(content, list) else [content]
        texts = [b["text"] for b in blocks if isinstance(b, dict) and isinstance(b.get("text"), str)]
        if texts:
            self.set_result(reply="\n".join(texts))
        else:
            self.set_result(problem="the client's model answered without text")


def text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "(an image)") for part in content)


class Job:
    """Work that runs on its own thread. One request at a time waits for it; without one, the outcome is kept.

    All of its state is guarded by the server's lock.
    """

    def __init__(self, server: Server, work: Callable[[Job], Message], *, called: bool = True) -> None:
        self.server, self.work = server, work
        self.called = called  # by a client, not by ourselves
        self.handle = "job_" + os.urandom(12).hex()
        self.request: Request | None = None
        self.asks: dict[str, SamplingRequest] = {}  # questions for the next round, in order of arrival
        self.pending_round: dict[str, SamplingRequest] = {}  # the round that the client has, less what it has answered
        self.asked = self.round = 0
        self.last_ask = 0.0
        self.outcome: Message | None = None
        self.cancelled = False
        self.detached = False  # the client holds the handle
        self.begun = False
        self.since = float("inf")  # when it began
        self.patience = server.max_wait  # seconds that a request waits for it
        self.ended = threading.Event()
        self.last_line = ""
        self.touched = time.monotonic()
        self.stops: list[Callable[[], None]] = []  # each ends something that runs; the work itself puts them here
        self.abandon = threading.Event()  # set by a cancellation, for model calls in flight

    def run(self) -> None:
        """Do the work and hand over its outcome; nothing escapes."""
        self.server.running.add(self)
        try:
            self.begun, self.since = True, time.monotonic()
            if self.cancelled:
                raise ToolError("cancelled")
            outcome = self.work(self)
        except Exception as error:  # a tool must not take the server with it
            outcome = text_result(error_text(error), is_error=True)
        finally:
            self.server.running.discard(self)
        self.finish(outcome)

    def attach(self, request: Request) -> None:
        """Let `request` wait for the outcome, or answer it now with what there is."""
        with self.server.lock:
            self.touched, self.detached = time.monotonic(), False
            self.request, request.job = request, self
            if self.outcome is not None:
                self.finish(self.outcome)
            elif self.pending_round:
                self.pose(request)
            else:
                self.next_round()

    def finish(self, outcome: Message) -> None:
        with self.server.lock:
            self.outcome = outcome
            self.ended.set()
            self.touched = time.monotonic()
            if self.request is not None:
                self.request.result(self.server.downgrade(outcome, self.request.dialect))
                self.request = None
                self.server.jobs.pop(self.handle, None)
            elif self.cancelled:
                self.server.jobs.pop(self.handle, None)

    def detach(self) -> None:
        """From here on the client has the handle, and the outcome is kept for it."""
        self.detached, self.request = True, None
        self.server.jobs[self.handle] = self

    def return_handle(self) -> None:
        """Answer the waiting request with the handle: the work goes on without it."""
        with self.server.lock:
            request = self.request
            if request is None:
                return
            self.detach()
            self.patience = self.server.max_wait
            waited = round(time.monotonic() - request.started)
            following = f"still running after {waited} s: call resume with this handle to wait for the result"
            if not self.begun:
                following = (
                    "waits for an earlier call of this session that still runs: call resume with this handle to wait "
                    'longer, clear_repl_context to stop both, or use session_id "new"'
                )
            status = {"status": "running", "handle": self.handle, "next": following}
            if self.last_line:
                status["last_output"] = self.last_line
            request.result(json_result(status))

    def cancel(self, why: str, *, by_client: bool = False) -> None:
        """Stop the work: waiting questions fail in the code that asked them, and the code is stopped.

        A request that its own client cancelled gets no answer; one that was stopped otherwise is told why.
        """
        with self.server.lock:
            self.cancelled = True
            self.abandon.set()
            request, self.request = self.request, None
            for ask in (*self.asks.values(), *self.pending_round.values()):
                ask.set_result(problem=why)
            self.asks, self.pending_round = {}, {}
        if request is not None:
            request.drop() if by_client else request.result(text_result(why, is_error=True))
        if self.begun:
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        """Stop what runs; again while it does, since the first try may come just before the code begins."""
        until = time.monotonic() + 5
        while not self.ended.is_set() and time.monotonic() < until:
            for stop in list(self.stops):
                stop()
            self.ended.wait(0.02)

    # questions for the client's model

    def ask(self, asks: list[SamplingRequest]) -> None:
        """Add questions to the round that is being gathered."""
        with self.server.lock:
            if self.cancelled:
                for ask in asks:
                    ask.set_result(problem="cancelled")
                return
            for ask in asks:
                self.asked += 1
                self.asks[f"q{self.asked}"] = ask
            self.last_ask = time.monotonic()

    def wait(self, asks: list[SamplingRequest], cancel: threading.Event | None = None) -> list[str | Exception]:
        """The answers, or the errors in their places. The threads that wait see to it that the round is posed."""
        for ask in asks:
            while not ask.done.wait(GATHER_SECONDS if self.asks else 0.25):
                if self.cancelled or (cancel is not None and cancel.is_set()):
                    raise _model_error("cancelled", "cancelled")
                with self.server.lock:
                    self.next_round()
        return [_model_error(ask.problem, "refused") if ask.problem else ask.reply or "" for ask in asks]

    def next_round(self) -> None:
        """Put the gathered questions to the client, if it waits for us and no question has come for a moment."""
        rested = time.monotonic() - self.last_ask >= GATHER_SECONDS
        if self.asks and not self.pending_round and rested and self.request is not None:
            self.pending_round, self.asks = self.asks, {}
            self.round += 1
            self.pose(self.request)

    def pose(self, request: Request) -> None:
        """Put the open questions to the client, the way its dialect has for it."""
        self.touched = time.monotonic()
        if "sampling" not in request.dialect.capabilities:
            self._suspend(request)
        elif request.dialect.modern:
            self._require_input(request)
        else:
            asks, self.pending_round = self.pending_round, {}
            self.server.sample(asks)

    def _suspend(self, request: Request) -> None:
        self.detach()
        request.result(
            json_result(
                {
                    "status": "needs_completions",
                    "handle": self.handle,
                    "requests": [self._request_text(ask) for ask in self.pending_round.values()],
                    "next": "answer each request yourself (or with sub-agents), then call resume with this handle "
                    "and the answers, one string for each request, in their order",
                }
            )
        )

    def _request_text(self, ask: SamplingRequest) -> str:
        """What is put to the host: of a conversation that it is in the middle of, only what is new."""
        if not ask.known:
            return ask.prompt()
        whole = self.server.store_output(ask.prompt())
        opening = next((text_of(m) for m in ask.messages if m["role"] == "user"), "")[:80]
        return f"(goes on after your last answer in {opening!r}; all of it is the resource {whole})\n\n" + ask.prompt(
            ask.known
        )

    def _require_input(self, request: Request) -> None:
        self.detach()
        request.result(
            {
                "resultType": "input_required",
                "inputRequests": {
                    key: {"method": "sampling/createMessage", "params": ask.sampling()}
                    for key, ask in self.pending_round.items()
                },
                "requestState": self.server.seal(self, request),
            }
        )

    def set_results(self, answers: list[Any] | None) -> None:
        """Take the answers of the suspended round; ToolError when they do not fit it."""
        with self.server.lock:
            if answers is None or (not self.pending_round and not answers):
                return
            if len(answers) != len(self.pending_round):
                raise ToolError(
                    f"{len(self.pending_round)} answers are needed, in the order of the requests, not {len(answers)}"
                )
            for request, reply in zip(self.pending_round.values(), answers, strict=True):
                request.set_result(reply=reply)
            self.pending_round = {}

    def answer_inputs(self, responses: Any) -> None:
        """Take a modern client's inputResponses; what is missing stays asked."""
        with self.server.lock:
            for key, response in _mapping(responses).items():
                if ask := self.pending_round.pop(key, None):
                    ask.settle_sampled(response)


def error_text(error: Exception) -> str:
    """What the model reads of an error: ours and the sandbox's say what to do next, any other is also logged."""
    if isinstance(error, ToolError):
        return str(error)
    if hint := getattr(error, "hint", ""):
        return f"{error}\nnext: {hint}"
    log(f"{type(error).__name__} in a tool: {error}")
    return f"{type(error).__name__}: {error}"


def _model_error(message: str, code: str) -> Exception:
    """An error of a backend, which rlm understands."""
    error: Exception = sibling("rlm_backends").BackendError(message, code=code, provider="the MCP client")
    return error


def text_result(text: str, *, is_error: bool = False) -> Message:
    return {"content": [{"type": "text", "text": text}], "isError": is_error}


def json_result(value: Any) -> Message:
    return text_result(json.dumps(value, ensure_ascii=False))


def log(text: str) -> None:
    """Words for whoever reads the client's log; a closed stderr is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(f"rlm mcp-serve: {text}", file=sys.stderr, flush=True)


# --- sessions ---------------------------------------------------------------------------------------------------


class Session:
    """A REPL with a name: a thread that takes its calls in order, and a worker process for each project in it."""

    def __init__(self, server: Server, name: str) -> None:
        import queue

        self.server, self.name = server, name
        self.created = self.used = time.monotonic()
        self.directory: str | None = None
        self.has_directory = False
        self.job: Job | None = None
        self._sandboxes: dict[str | None, Any] = {}
        self._partial: set[str | None] = set()  # projects whose rlm.toml was not taken whole
        self._notes: list[str] = []
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._work, name=f"session {name}", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Run `job` after those that came before; ToolError if it could not be served."""
        if busy := self.busy_with():
            raise ToolError(
                f"this session still runs {busy.handle}: call resume with that handle, or clear_repl_context to stop it"
            )
        if self._queue.qsize() >= MAX_WAITING:
            raise ToolError(f"{MAX_WAITING} calls are waiting for this session already")
        running = self.job
        if running is not None and not running.cancelled and time.monotonic() - running.since > PARALLEL_SECONDS:
            # No part of the same turn: its client may have given up on the one that runs, without a word.
            job.patience = min(job.patience, QUEUE_SECONDS)
        self.used = time.monotonic()
        self._queue.put(job)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self.job = job
            job.run()
            self.job = None
            if job.called:
                self.used = time.monotonic()

    def busy_with(self) -> Job | None:
        """The job whose handle the client holds while it runs: no other call can be served before it ends."""
        job = self.job
        return job if job is not None and job.detached and job.outcome is None and not job.cancelled else None

    def sandbox(self) -> Any:
        """The REPL of the current project, started when it is first needed."""
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
        """What was to be said of the REPL when it was started, once."""
        notes, self._notes = self._notes, []
        return notes

    def clear(self) -> None:
        """A clean REPL, with the options of now where some had been left out."""
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

    def use(self, directory: str) -> None:
        self.directory, self.has_directory = directory, True

    def forget(self) -> None:
        """Give up the current REPL: it is broken, or to be made anew."""
        if sandbox := self._sandboxes.pop(self.directory, None):
            _close(sandbox)

    @property
    def started(self) -> bool:
        return self.directory in self._sandboxes

    def count_variables(self) -> Job | None:
        """A job whose outcome is the number of variables; None if the session is at work and cannot say."""
        if self.job is not None or not self._queue.empty():
            return None
        job = Job(self.server, lambda job: {"count": len(self.sandbox().names()) if self.started else 0}, called=False)
        self._queue.put(job)
        return job

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


def _close(sandbox: Any) -> None:
    try:
        sandbox.close()
    except Exception as error:  # a container that will not go must not keep the client from going on
        log(f"closing a sandbox: {error}")


# --- the server -------------------------------------------------------------------------------------------------


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
        self._sent = 0
        self._roots: list[str] = []
        self._modern_roots = False
        self._roots_known = threading.Event()
        self._roots_known.set()
        self._listeners: dict[str | int, Request] = {}
        self._key = os.urandom(32)
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
        """stdin has ended. Calls that came together with its end, from a script's pipe, may still be answered."""
        end = time.monotonic()
        for request in list(self.inflight.values()):
            if end - request.started < 0.05:
                request.closed.wait(max(0.0, end + DRAIN_SECONDS - time.monotonic()))

    def close(self) -> None:
        """Kill every worker."""
        for session in list(self.sessions.values()):
            session.kill()
        for job in list(self.running):
            job.cancelled = True
            job.abandon.set()
            with contextlib.suppress(Exception):  # the process is ending: what is left is to end the others too
                for stop in list(job.stops):
                    stop()
        for group in list(_commands):
            _kill_group(group)

    def send(self, message: Message | list[Message]) -> None:
        """Write to the client; when it is gone, have the main thread end the process."""
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
        except Exception as error:  # no line ends the server, with all that its sessions hold
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
            self._message(message, self.send)

    def _warm_up(self) -> None:
        with contextlib.suppress(Exception):  # a sandbox that cannot start says so when a call needs it
            if self.env != "docker":
                sibling("rlm_sandbox").warm()
            sibling("rlm")

    def _batch(self, messages: list[Any]) -> None:
        if self._legacy is None or self._legacy.version != "2025-03-26":
            raise ProtocolError(INVALID_REQUEST, "arrays of messages are part of revision 2025-03-26 alone")
        if not messages:
            raise ProtocolError(INVALID_REQUEST, "an empty array")
        requests = [m for m in messages if not isinstance(m, dict) or ("id" in m and "method" in m)]
        batch = Batch(self.send, len(requests))
        for message in messages:
            try:
                self._message(message, batch.add)
            except ProtocolError as error:
                batch.add(error_message(error, None))

    def _message(self, message: Any, sink: Callable[..., None]) -> None:
        if not isinstance(message, dict):
            raise ProtocolError(INVALID_REQUEST, "a message is a JSON object")
        if "method" not in message and ("result" in message or "error" in message):
            self._response(message)
            return
        id, method, params = message.get("id"), message.get("method"), message.get("params")
        params = {} if params is None else params
        if "id" in message and not _is_id(id):
            raise ProtocolError(INVALID_REQUEST, "an id is a string or an integer")
        if id in self.inflight:  # answered without the id: with it, the first request would be taken for answered
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
            if method == "initialize" and sink != self.send:
                raise ProtocolError(INVALID_REQUEST, "initialize cannot be part of an array")
            self._request(Request(id, method, params, self._dialect(method, params), self._sink(id, sink)))
        except ProtocolError as error:
            sink(error_message(error, id))

    def _sink(self, id: str | int, sink: Callable[..., None]) -> Callable[..., None]:
        """Where a request's answer goes: out, and out of the table of those in flight."""

        def close(message: Message | None) -> None:
            self.inflight.pop(id, None)
            if message is not None or sink != self.send:
                sink(message)

        return close

    def _dialect(self, method: str, params: Message) -> ProtocolContext:
        """The revision and the client's abilities: a modern request says them itself, the others at the start."""
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
        except Exception as error:  # answered, so that the client does not wait for ever
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

    # outgoing: requests of ours to a handshake client

    def _call_client(self, method: str, params: Message | None, take: Callable[[Message], None]) -> None:
        with self.lock:
            self._sent += 1
            id = f"rlm-{self._sent}"
            self._outgoing[id] = take
        self.send({"jsonrpc": "2.0", "id": id, "method": method, **({"params": params} if params else {})})

    def _response(self, message: Message) -> None:
        id = message.get("id")
        take = self._outgoing.pop(id, None) if isinstance(id, str) else None
        if take is not None:
            take(message)

    def sample(self, asks: Mapping[str, SamplingRequest]) -> None:
        """Ask a handshake client's model each question; the call that waits goes on waiting."""
        for ask in asks.values():

            def take(message: Message, ask: SamplingRequest = ask) -> None:
                if "error" in message:
                    ask.set_result(
                        problem=f"the client's model: {_mapping(message['error']).get('message', 'refused')}"
                    )
                else:
                    ask.settle_sampled(message.get("result"))

            self._call_client("sampling/createMessage", ask.sampling(), take)

    def _ask_roots(self) -> None:
        if self._legacy is None or "roots" not in self._legacy.capabilities:
            return
        self._roots_known.clear()
        self._call_client("roots/list", None, self._take_roots)

    def _wants_roots(self, request: Request) -> bool:
        """Whether a 2026-07-28 client that has roots is to be asked for them first: once, and for each set_project.

        One that has them and gives none is held to our own folder.
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
            if os.getppid() != self._parent:  # the client died, and something else holds its end of our pipe open
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
        """The session of that name; "new" makes one, and none means the one that is shared."""
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
        """The folder a session begins in: the client's first root, else the server's own."""
        if not self._roots_known.wait(1.0):
            self._roots_known.set()  # a client that does not answer is not waited for again
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

    def configuration(self, directory: str | None, **given: Any) -> Any:
        """The options for asking a model about work in `directory`; ToolError if they cannot be used.

        Of an rlm.toml that is not trusted, what would give code more is left out. Anything else that it may not set
        is refused: it may say that the data should go elsewhere.
        """
        return self._configuration(directory, given, lambda key: key in LOOSENING)[0]

    def sandbox_configuration(self, directory: str | None) -> tuple[Any, list[str]]:
        """The options for a REPL in `directory`, and what was left out of an rlm.toml that is not trusted: all that it
        may not set, but for what would confine code further."""
        return self._configuration(directory, {}, lambda key: key not in CONFINING)

    def _configuration(
        self, directory: str | None, given: Message, can_go: Callable[[str], bool]
    ) -> tuple[Any, list[str]]:
        rlm = sibling("rlm")
        without: list[str] = []
        notes: list[str] = []
        while True:
            try:
                options = {"environment": self.env, **given}
                return rlm.load_config(options, cwd=directory or os.sep, without=without), notes
            except rlm.ConfigError as error:
                problem = f"{error}" + (f"; {error.hint}" if error.hint else "")
                if not error.untrusted or error.untrusted in without or not can_go(error.untrusted):
                    raise ToolError(problem) from None
                without.append(error.untrusted)
                notes.append(f"left out: {problem}, and clear_repl_context")

    def new_sandbox(self, directory: str | None) -> tuple[Any, list[str]]:
        """A REPL for work in `directory`, and what its user should know."""
        configuration, notes = self.sandbox_configuration(directory)
        return self._sandbox(directory, configuration), notes

    def _sandbox(self, directory: str | None, configuration: Any) -> Any:
        options = configuration.values
        module = sibling("rlm_sandbox")
        workspace = (options["allowed_paths"] or [directory]) if directory else None
        common = {"cell_timeout": options["cell_timeout"], "output_limit": OUTPUT_LIMIT}
        if options["environment"] == "docker":
            return module.DockerSandbox(
                image=options["docker_image"],
                cpus=options["docker_cpus"],
                memory=memory_limit(configuration, "docker_memory"),
                network_disabled=options["docker_network_disabled"],
                runtime=options["docker_runtime"],
                workspace=workspace[0] if workspace and options["docker_mount"] == "ro" else None,
                **common,
            )
        return module.LocalSandbox(
            memory=memory_limit(configuration, "local_memory"),
            allowed_imports=options["allowed_imports"],
            workspace=workspace,
            require=options["require"],
            **common,
        )

    def start(self, request: Request, session: Session | None, work: Callable[[Job], Message]) -> None:
        """Run `work` for `request`, after what its session was given before, or at once beside all sessions."""
        job = Job(self, work)
        job.request, request.job = request, job
        if session is not None:
            session.submit(job)
        elif len(self.running) >= MAX_RUNNING:
            raise ToolError(f"{MAX_RUNNING} calls are running already")
        else:
            threading.Thread(target=job.run, name=job.handle, daemon=True).start()

    def seal(self, job: Job, request: Request) -> str:
        """A requestState: which run, which round, until when, for which call, under our key."""
        until, call = int(time.time() + IDLE_SECONDS), call_digest(request.params)
        state = {"job": job.handle, "round": job.round, "until": until, "call": call}
        blob = json.dumps(state, separators=(",", ":")).encode()
        return blob.hex() + "." + self._mac(blob)

    def unseal(self, sealed: Any, digest: str) -> Job:
        """The job a requestState of ours names; ProtocolError for anything else."""
        import hmac

        with contextlib.suppress(ValueError, AttributeError):
            text, mac = sealed.split(".")
            blob = bytes.fromhex(text)
            if hmac.compare_digest(mac.encode(), self._mac(blob).encode()):
                state = json.loads(blob)
                job = self.jobs.get(state["job"])
                fresh = state["until"] >= time.time() and state["call"] == digest
                if fresh and job is not None and job.round == state["round"] and job.request is None:
                    return job
        raise ProtocolError(INVALID_PARAMS, "this requestState is not ours, was used, has expired or is another call's")

    def _mac(self, blob: bytes) -> str:
        import hmac

        return hmac.new(self._key, blob, hashlib.sha256).hexdigest()

    # results

    def downgrade(self, result: Message, dialect: ProtocolContext) -> Message:
        """A tool's result without the content blocks that the dialect does not know."""
        if dialect.since("2025-06-18"):
            return result
        content = [block for block in result["content"] if block["type"] != "resource_link"]
        return {**result, "content": content}

    def truncate(self, text: str, limit: int = PREVIEW_CHARS) -> list[Message]:
        """`text` as content: whole, or a preview of at most `limit` characters and a resource with all of it."""
        if len(text) <= limit:
            return [{"type": "text", "text": text}]
        uri = self.store_output(text)
        head, tail = text[: limit * 7 // 10], text[-(limit // 5) :]
        left_out = len(text) - len(head) - len(tail)
        preview = f"{head}\n\n... {left_out} characters left out, the whole is the resource {uri} ...\n\n{tail}"
        link = {"type": "resource_link", "uri": uri, "name": "whole output", "mimeType": "text/plain"}
        return [{"type": "text", "text": preview}, link]

    def store_output(self, text: str) -> str:
        """The URI of a resource that holds `text`, for as long as fewer than MAX_OUTPUTS came after it."""
        uri = "rlm://output/" + os.urandom(8).hex()
        with self.lock:
            self.outputs[uri] = text
            while len(self.outputs) > MAX_OUTPUTS:
                del self.outputs[next(iter(self.outputs))]
        self.resources_changed()
        return uri

    def resources_changed(self) -> None:
        """Tell who wants to know: every handshake client, and modern ones that listen."""
        note = {"jsonrpc": "2.0", "method": "notifications/resources/list_changed"}
        if self._legacy is not None:
            self.send(note)
        for request in list(self._listeners.values()):
            self.send({**note, "params": {"_meta": {"io.modelcontextprotocol/subscriptionId": request.id}}})

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
        _no_cursor(request)
        version = request.dialect.version
        tools = [fields_for_version(tool.described(), version) for tool in TOOLS.values()]
        return {"tools": tools, **(cache_hints(3_600_000, "public") if request.dialect.modern else {})}

    def call_tool(self, request: Request) -> Message | None:
        name, arguments = request.params.get("name"), request.params.get("arguments")
        arguments = {} if arguments in (None, "") else _from_json("object", arguments)
        if not isinstance(name, str) or name not in TOOLS:
            raise ProtocolError(INVALID_PARAMS, f"no tool {name!r:.100}; there are {', '.join(TOOLS)}")
        if not isinstance(arguments, dict):
            raise ProtocolError(INVALID_PARAMS, "arguments is an object")
        if request.dialect.modern and request.params.get("requestState") is not None:
            job = self.unseal(request.params["requestState"], call_digest(request.params))
            job.answer_inputs(request.params.get("inputResponses"))
            job.attach(request)
            return None
        tool = TOOLS[name]
        try:
            if tool.in_folder and self._wants_roots(request):
                return {"resultType": "input_required", "inputRequests": {"roots": {"method": "roots/list"}}}
            return tool.run(self, request, **tool.checked(arguments))
        except ToolError as refusal:
            return text_result(str(refusal), is_error=True)

    def list_resources(self, request: Request) -> Message:
        _no_cursor(request)
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
        resources = [
            fields_for_version(resource, request.dialect.version) for resource in (*outputs, *self._trajectories())
        ]
        return {"resources": resources, **(cache_hints(0, "private") if request.dialect.modern else {})}

    def list_templates(self, request: Request) -> Message:
        _no_cursor(request)
        templates = [fields_for_version(template, request.dialect.version) for template in TEMPLATES]
        return {"resourceTemplates": templates, **(cache_hints(3_600_000, "public") if request.dialect.modern else {})}

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
        """A modern client's subscription: acknowledged, then open until it is cancelled."""
        wanted = _mapping(request.params.get("notifications"))
        honoured = {"resourcesListChanged": True} if wanted.get("resourcesListChanged") is True else {}
        params = {"_meta": {"io.modelcontextprotocol/subscriptionId": request.id}, "notifications": honoured}
        self.send({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params})
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
# The revision that brought a field; older clients do not get it.
_SINCE = {
    "annotations": "2025-03-26",
    "title": "2025-06-18",
    "_meta": "2025-06-18",
    "description": "2025-11-25",
    "icons": "2025-11-25",
    "websiteUrl": "2025-11-25",
}


def fields_for_version(item: Message, version: str) -> Message:
    """`item` with the fields that revision `version` has. A description is new only in serverInfo."""
    new = {name for name, since in _SINCE.items() if version < since}
    if "version" not in item:
        new.discard("description")
    return {name: value for name, value in item.items() if name not in new}


def cache_hints(ttl_ms: int, scope: str) -> Message:
    return {"ttlMs": ttl_ms, "cacheScope": scope}


def _no_cursor(request: Request) -> None:
    if request.params.get("cursor"):
        raise ProtocolError(INVALID_PARAMS, "no such cursor: everything is on one page")


def server_info() -> Message:
    global _server_info
    if _server_info is None:
        _server_info = {
            "name": "rlm",
            "title": "RLM: sandboxed Python and recursive completions",
            "version": _version(),
            "description": "A sandboxed, persistent Python REPL and recursive language model runs over long inputs",
            "websiteUrl": "https://pypi.org/project/flat-rlm/",
            "icons": [{"src": f"data:image/png;base64,{_ICON}", "mimeType": "image/png", "sizes": ["16x16"]}],
        }
    return _server_info


_server_info: Message | None = None


def _version() -> str:
    """rlm.__version__, read from its file: importing it would cost more than the rest of the start."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rlm.py")
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        if found := re.search(r'^__version__ = "([^"]+)"', file.read(), re.MULTILINE):
            return found[1]
    return "0"


def _parse(line: bytearray) -> Any:
    try:
        return sibling("rlm_backends").from_json(line)
    except ValueError as error:
        raise ProtocolError(PARSE_ERROR, f"not a JSON message: {str(error)[:200]}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


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


# Options by which a project's file may ask for less freedom, or for more.
CONFINING = ("require", "docker_mount", "docker_runtime")
LOOSENING = ("allowed_imports", "allowed_paths", "tools", "local_memory", "docker_image", "docker_network_disabled")


def memory_limit(configuration: Any, option: str) -> str:
    """What a session may hold: as configured, else what the largest profile allows."""
    configured = configuration.origins[option] != "default"
    return str(configuration.values[option]) if configured else PROFILES["extended"][1]


def is_forbidden_root(path: str) -> bool:
    """Folders that are no project: the root, a home itself, the hidden ones in it, and the system's."""
    path, home = os.path.realpath(path), os.path.realpath(os.path.expanduser("~"))
    if path in (os.sep, home, os.path.dirname(home)):
        return True
    if path.startswith(home + os.sep):
        return path[len(home) + 1] == "."
    return path.split(os.sep)[1] in ("etc", "proc", "sys", "dev", "boot", "run")


def sibling(name: str) -> Any:
    """One of our other modules, imported now."""
    import importlib

    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


def call_digest(params: Message) -> str:
    """What makes two tools/call requests the same call."""
    call = [params.get("name"), params.get("arguments") or {}]
    return hashlib.sha256(json.dumps(call, sort_keys=True).encode()).hexdigest()


# --- models: who answers llm_query and run_completion ---------------------------------------------------------------


class SamplingBackend:
    """A backend whose answers come from the client: its model by sampling, or whoever answers a suspended call."""

    provider, model, supports_tools = "mcp", "the client's model", False

    def __init__(self, job: Job) -> None:
        self._job = job
        self._answered: set[str] = set()  # conversations, as far as the client has answered them

    def complete(
        self, messages: list[Message], *, max_tokens: int | None = None, cancel: Any = None, **rest: Any
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
    """For each message a digest of the conversation up to it."""
    digest = hashlib.sha256()
    marks = []
    for message in messages:
        digest.update(json.dumps([message["role"], text_of(message)]).encode())
        marks.append(digest.hexdigest())
    return marks


class CommandReply(NamedTuple):
    text: str
    usage: Mapping[str, int] | None = None
    cost_usd: float | None = None


class SubprocessBackend:
    """A backend that is a command: prompt on its stdin, answer on its stdout, plain or as `claude -p` has it."""

    provider, supports_tools = "cli", False

    def __init__(self, words: list[str], model: str | None) -> None:
        self._words, self.model = words, model or os.path.basename(words[0])
        self._slots = threading.BoundedSemaphore(4)  # each is a process of some hundred megabytes

    def complete(
        self, messages: list[Message], *, deadline: float | None = None, cancel: Any = None, **rest: Any
    ) -> CommandReply:
        with self._slots:
            return _command_reply(_run_command(self._words, SamplingRequest(messages).prompt(), deadline, cancel))


_commands: set[int] = set()  # process groups that run


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _run_command(words: list[str], prompt: str, deadline: float | None, cancel: Any) -> str:
    """What the command prints. It is killed, with all it started, when the run is cancelled or out of time."""
    import subprocess
    import tempfile

    # A claude that finds itself inside another refuses to start.
    environment = {k: v for k, v in os.environ.items() if k not in ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT")}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=tempfile.gettempdir(),
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise _model_error(f"{words[0]}: {error.strerror}", "connection") from None
    _commands.add(process.pid)
    given: bytes | None = prompt.encode("utf-8", "replace")
    try:
        while True:
            try:
                printed, complaint = process.communicate(given, timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                given = None
            if cancel is not None and cancel.is_set():
                raise _model_error("cancelled", "cancelled")
            if deadline is not None and time.monotonic() > deadline:
                raise _model_error(f"{words[0]} did not answer in time", "timeout")
    finally:
        _kill_group(process.pid)
        process.wait()
        _commands.discard(process.pid)
    if process.returncode:
        tail = (complaint or printed).decode("utf-8", "replace").strip()[-500:]
        raise _model_error(f"{words[0]} ended with status {process.returncode}: {tail}", "server")
    return printed.decode("utf-8", "replace")


def _command_reply(printed: str) -> CommandReply:
    """The answer in what a command printed: the JSON object of `claude -p --output-format json`, or all of it."""
    try:
        told = sibling("rlm_backends").from_json(printed)
    except ValueError:
        return CommandReply(printed.strip())
    if not isinstance(told, dict) or not isinstance(told.get("result"), str):
        return CommandReply(printed.strip())
    if told.get("is_error"):
        raise _model_error(told["result"][:500], "server")
    counts = _mapping(told.get("usage"))
    cached, written = (counts.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation"))
    usage = {
        "input": (counts.get("input_tokens") or 0) + cached + written,
        "output": counts.get("output_tokens") or 0,
        "cached": cached,
        "cache_write": written,
    }
    return CommandReply(told["result"], usage if counts else None, told.get("total_cost_usd"))


def model_command(model: str | None) -> list[str] | None:
    """The command that answers prompts on the host's own account: RLM_MCP_CLI, else `claude -p`, if it is there."""
    import shlex
    import shutil

    if words := shlex.split(os.environ.get("RLM_MCP_CLI", "")):
        return words
    claude = shutil.which("claude")
    if claude is None:
        return None
    # One turn, no tools, no MCP servers: it answers the prompt and cannot call us again.
    words = [claude, "-p", "--output-format", "json", "--max-turns", "1", "--tools", "", "--strict-mcp-config"]
    return [*words, "--model", model] if model else words


def model_for(job: Job, configuration: Any) -> Any:
    """The first that is there of: a provider with its key or a local server, a command, the client."""
    rlm = sibling("rlm")
    options = rlm.Options(**configuration.values)
    try:
        return rlm.connect(configuration, options)
    except rlm.ConfigError:
        pass  # no key: the next one
    if words := model_command(options.model):
        return SubprocessBackend(words, options.model)
    return SamplingBackend(job)


def run(job: Job, directory: str | None, prompt: str, context: Any, limits: Message, group: Any = None) -> Any:
    """A recursive completion for `job`: its result, or rlm's errors. `group`: the ledger that it shares, if it does."""
    rlm = sibling("rlm")
    configuration = job.server.configuration(directory, **limits)
    values = dict(configuration.values)
    model = model_for(job, configuration)
    folder = values["log_dir"] and os.path.join(directory or _state_dir(), values["log_dir"])
    if folder and os.path.islink(folder) and configuration.origins["log_dir"] == "default":
        raise ToolError(
            f"the log folder {folder} is a link to {os.path.realpath(folder)}: set RLM_LOG_DIR to that if it is meant"
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
            # A model wrote it, or code in a cell: not the user's own word, so no provider is told to fetch its URL.
            given = rlm.Context(context, "code") if isinstance(context, str) else context
            return runner._complete(prompt, given, group=group)
    finally:
        job.stops.remove(stop)


def _state_dir() -> str:
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "rlm")


def _tell(job: Job, event: Message) -> None:
    """What the heartbeat says of a completion: its last event."""
    if event.get("event") == "call":
        job.last_line = f"call {event.get('call_id')}, depth {event.get('depth')}: {event.get('response') or ''}"[:200]
    elif event.get("event") == "tool" and event.get("code"):
        job.last_line = f"cell {event.get('cell')}: {event.get('error') or event.get('stdout') or ''}"[:200]


class CellFunction:
    """A function of ours as code in a cell calls it: `schedule` runs in the order of the calls, what it returns at
    leisure."""

    def __init__(self, schedule: Callable[..., Callable[[], Any]]) -> None:
        self.schedule = schedule

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.schedule(*args, **kwargs)()


class LLMFunctions:
    """`llm_query`, `llm_query_batched` and `rlm_query` for the code of one cell: a run's limits hold for the cell."""

    def __init__(self, job: Job, directory: str | None) -> None:
        self._job, self._directory = job, directory
        self._started = time.monotonic()
        self._backends: dict[str | None, Any] = {}
        accepting: dict[str, Callable[..., Callable[[], Any]]] = {
            "llm_query": self.one,
            "llm_query_batched": self.many,
            "rlm_query": self.recursive,
        }
        self.functions = {name: CellFunction(accept) for name, accept in accepting.items()}

    @functools.cached_property
    def _options(self) -> Any:
        configuration = self._job.server.configuration(self._directory)
        return sibling("rlm").Options(**configuration.values)

    @functools.cached_property
    def _ledger(self) -> Any:
        """What the cell may spend, what `rlm_query` spends below it included; its time began with the cell."""
        ledger = sibling("rlm").Ledger(self._options)
        ledger.started = self._started
        if self._options.timeout_seconds:
            ledger.deadline = self._started + self._options.timeout_seconds
        ledger.cancel = self._job.abandon
        return ledger

    @functools.cached_property
    def _slots(self) -> threading.BoundedSemaphore:
        return threading.BoundedSemaphore(self._options.max_parallel)

    def one(self, prompt: str, model: str | None = None) -> Callable[[], str]:
        if not isinstance(prompt, str):
            raise TypeError("llm_query takes a string")
        answers = self._put([prompt], model)

        def work() -> str:
            answer = answers()[0]
            if isinstance(answer, BaseException):
                raise answer
            return str(answer)

        return work

    def many(self, prompts: list[str], model: str | None = None) -> Callable[[], list[str]]:
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
            raise TypeError("llm_query_batched takes a list of strings")
        answers = self._put(list(prompts), model)
        return lambda: _all_answered(answers())

    def recursive(self, prompt: str, context: Any = None) -> Callable[[], Any]:
        rlm = sibling("rlm")
        if self._options.max_depth < 1:
            raise rlm.MaxDepthExceeded(1, self._options.max_depth)
        self._ledger.check()
        self._ledger.count_subcalls(1)
        limits = {"max_depth": self._options.max_depth - 1}

        def work() -> Any:
            result = run(self._job, self._directory, prompt, context, limits, rlm.LedgerGroup(self._ledger))
            return result.response if result.value is None else result.value

        return work

    def _put(self, prompts: list[str], model: str | None) -> Callable[[], list[Any]]:
        """Put the questions; what is returned gives the answers, an exception where there is none."""
        questions: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        backend = self._backend(model or self._options.sub_model)
        ledger = self._ledger
        ledger.check()
        ledger.count_subcalls(len(questions))
        if isinstance(backend, SamplingBackend):
            return self._put_to_client(questions)

        def work() -> list[Any]:
            with ledger.queue(len(questions)) as begun:
                tasks = [functools.partial(self._ask, backend, question, begun) for question in questions]
                return list(sibling("rlm").fan_out(tasks, self._options.max_parallel))

        return work

    def _put_to_client(self, questions: list[list[Message]]) -> Callable[[], list[Any]]:
        """The questions for the client's own model, in one round; what they take is estimated, and nobody is paid."""
        rlm, ledger = sibling("rlm"), self._ledger
        sizes = [rlm.tokens_of(question) for question in questions]
        least = CLIENT_TOKENS * len(questions)
        reservation = ledger.reserve(sum(sizes), least, lambda size, output: None, wait=False)
        most = max(CLIENT_TOKENS, min(4096, ledger.left()["tokens"] // max(1, len(questions))))
        asks = [SamplingRequest(question, most) for question in questions]
        self._job.ask(asks)

        def work() -> list[Any]:
            try:
                answers = list(self._job.wait(asks))
            except BaseException:
                ledger.release(reservation)
                raise
            texts = [answer for answer in answers if isinstance(answer, str)]
            written = sum(rlm.tokens_of([{"role": "assistant", "content": text}]) for text in texts)
            ledger.settle(reservation, {"input": sum(sizes), "output": written}, None, 0.0)
            return answers

        return work

    def _ask(self, backend: Any, question: list[Message], begun: Callable[[], None]) -> str:
        """One paid call: room is reserved, the model asked, the ledger settled."""
        rlm, ledger, options = sibling("rlm"), self._ledger, self._options
        begun()
        size, price = rlm.tokens_of(question), rlm.price_of(backend, options)
        reservation, settled = ledger.reserve(size, rlm.SUBCALL_OUTPUT, price), False
        how = {
            "tools": None,
            "max_tokens": reservation.output,
            "on_text": None,
            "params": options.sub_params or options.params,
        }
        try:
            with self._slots:
                ledger.check()
                raw = backend.complete(question, **how, deadline=ledger.deadline, cancel=ledger.cancel)
            reply = rlm.normal_reply(raw, size, backend.model)
            settled = True
        finally:
            if not settled:
                ledger.release(reservation)
        cost = reply.cost_usd if reply.cost_usd is not None else price(reply.usage["input"], reply.usage["output"])
        ledger.settle(reservation, reply.usage, cost, 0.0)
        return str(reply.text)

    def _backend(self, model: str | None) -> Any:
        if model not in self._backends:
            given = {} if model is None else {"model": model}
            backend = model_for(self._job, self._job.server.configuration(self._directory, **given))
            sibling("rlm").check_prices(self._options, backend)
            self._backends[model] = backend
        return self._backends[model]


def _all_answered(answers: list[Any]) -> list[str]:
    """The answers of a batch; where some failed, an error that carries the others."""
    errors = [str(answer) if isinstance(answer, BaseException) else None for answer in answers]
    failed = [error for error in errors if error is not None]
    if failed:
        results = [None if isinstance(answer, BaseException) else answer for answer in answers]
        message = f"{len(failed)} of {len(answers)} failed (.results has the others, .errors the reasons): {failed[0]}"
        raise sibling("rlm").SubcallError(message, results=results, errors=errors)
    return [str(answer) for answer in answers]


# --- the tools --------------------------------------------------------------------------------------------------

PROFILES = {"quick": (5, "128m"), "default": (30, "512m"), "analysis": (120, "2g"), "extended": (300, "4g")}


class ToolSpec(NamedTuple):
    """A row of the table of tools: what clients are told, and the function behind it."""

    name: str
    title: str
    description: str
    run: Callable[..., Message | None]
    properties: Message
    required: tuple[str, ...] = ()
    in_folder: bool = False  # it needs to know which folder the session works in
    any_json: str = ""  # the argument that takes any JSON value, whatever its type says
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False
    open_world: bool = False

    def described(self) -> Message:
        """Its entry in tools/list, in the part of JSON Schema that every client's converter takes."""
        schema: Message = {"type": "object", "properties": self.properties}
        if self.required:
            schema["required"] = list(self.required)
        entry: Message = {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "inputSchema": schema,
            "annotations": {
                "title": self.title,
                "readOnlyHint": self.read_only,
                "destructiveHint": self.destructive,
                "idempotentHint": self.idempotent,
                "openWorldHint": self.open_world,
            },
        }
        if self.name in ("execute_python", "resume"):
            entry["_meta"] = {"anthropic/maxResultSizeChars": 2 * PREVIEW_CHARS}
        return entry

    def checked(self, arguments: Message) -> Message:
        """The arguments as the function takes them; ToolError, in words that the model can act on, if it does not.

        null and "" stand for an optional argument that is not there: a client in strict mode sends every argument.
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


def _from_json(kind: str, value: Any) -> Any:
    """`value`, or what it says as JSON where it is a string and no string is wanted; an integer may be written 3.0."""
    if isinstance(value, str) and kind != "string":
        with contextlib.suppress(ValueError):
            value = sibling("rlm_backends").from_json(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _mismatch(schema: Message, value: Any) -> str | None:
    """How `value` fails the part of JSON Schema that our own table uses."""
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


def _execute_python(
    server: Server,
    request: Request,
    code: str,
    timeout: float | None = None,
    profile: str = "default",
    session_id: str | None = None,
) -> None:
    session = server.session(session_id)
    seconds, memory = PROFILES[profile]

    def work(job: Job) -> Message:
        sandbox = session.sandbox()
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
            clean = sibling("rlm").clean_code(code)  # out of a fence, say
            cell = execute(clean) if clean != code else cell
        if cell.status == "lost":
            session.forget()
        if cell.status == "memory":
            more = "; profile='analysis' or 'extended' has more" if profile in ("quick", "default") else ""
            error = f"{cell.error or 'MemoryError'}\n(the limit of profile {profile!r} is {memory} of memory{more})"
            cell = dataclasses.replace(cell, error=error)
        return _cell_result(server, cell, session, session_id == "new")

    server.start(request, session, work)


def _note(job: Job, text: str) -> None:
    """Keep the last line that was printed, for the next heartbeat."""
    lines = text.rstrip().rsplit("\n", 1)
    if lines[-1].strip():
        job.last_line = lines[-1].strip()[-200:]


def _in_tools_of_ours(error: str, directory: str | None) -> str:
    """The error without the sandbox's word on `file_read`, a tool that there is in a run and not here."""
    hint = f"code reads what is in {directory}" if directory else "call set_project to name a folder that code may read"
    return error.replace("file_read reads the caller's files", hint)


def _cell_result(server: Server, cell: rlm_sandbox.Cell, session: Session, named: bool) -> Message:
    """A cell's outcome as content: what it printed, its value, what failed, its figures."""
    parts, links = [], []
    if cell.stdout:
        printed = cell.stdout.rstrip("\n")
        parts.append(f"Output:\n{printed}" if "\n" in printed else f"Output: {printed}")
    final = None if cell.final is sibling("rlm_sandbox").UNSET else repr(cell.final)
    error = _in_tools_of_ours(cell.error.rstrip(), session.directory) if cell.error else None
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
    if named:
        content.append({"type": "text", "text": f"session_id: {session.name}"})
    return {"content": content, "isError": not cell.ok}


def _get_repl_context(server: Server, request: Request, session_id: str | None = None) -> None:
    session = server.session(session_id)

    def work(job: Job) -> Message:
        names = session.sandbox().names() if session.started else {}
        rows, room = [], PREVIEW_CHARS
        for name, (kind, size, text) in list(names.items())[:200]:
            rows.append({"name": name, "type": kind, "size": size, "repr": text[:200]})
            room -= len(json.dumps(rows[-1], ensure_ascii=False))
            if room < 0:
                break
        answer: Message = {"session_id": session.name, "variables": rows}
        if len(names) > len(rows):
            answer["more"] = len(names) - len(rows)
        return json_result(answer)

    server.start(request, session, work)


def _set_repl_context(server: Server, request: Request, key: str, value: Any, session_id: str | None = None) -> None:
    import keyword

    if not key.isidentifier() or keyword.iskeyword(key) or key.startswith("_"):
        raise ToolError(f"key must be a variable's name without a leading underscore, not {key!r:.100}")
    session = server.session(session_id)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = sibling("rlm_backends").from_json(value)

    def work(job: Job) -> Message:
        try:
            session.sandbox().set(key, value)
        except TypeError as error:
            raise ToolError(str(error)) from None
        return json_result({"session_id": session.name, "set": key, "type": type(value).__name__})

    server.start(request, session, work)


def _clear_repl_context(server: Server, request: Request, session_id: str | None = None) -> None:
    session = server.session(session_id)
    if running := session.job:
        running.cancel("the session was cleared")

    def work(job: Job) -> Message:
        session.clear()
        return json_result({"session_id": session.name, "cleared": True})

    server.start(request, session, work)


def _list_sessions(server: Server, request: Request, session_id: str | None = None) -> None:
    named = server.session(session_id) if session_id else None

    def work(job: Job) -> Message:
        sessions = [named] if named else list(server.sessions.values())
        counts = [session.count_variables() for session in sessions]
        until, now = time.monotonic() + 0.5, time.monotonic()
        rows = []
        for session, count in zip(sessions, counts, strict=True):
            if count is not None:
                count.ended.wait(max(0.0, until - time.monotonic()))
            rows.append(
                {
                    "session_id": session.name,
                    "age_seconds": round(now - session.created),
                    "idle_seconds": round(now - session.used) if count else 0,
                    "busy": count is None,
                    "variables": count.outcome["count"] if count and count.outcome else None,
                    "directory": session.directory,
                }
            )
        return json_result({"sessions": rows})

    server.start(request, None, work)


def _destroy_session(server: Server, request: Request, session_id: str) -> None:
    with server.lock:
        session = server.sessions.pop(session_id, None)
    if session is None:
        raise ToolError(f"no session {session_id[:80]!r}")

    def work(job: Job) -> Message:
        session.close()
        return json_result({"session_id": session_id, "destroyed": True})

    server.start(request, None, work)


def _set_project(server: Server, request: Request, directory: str, session_id: str | None = None) -> Message | None:
    session = server.session(session_id)
    path = server.allowed_directory(directory)

    def work(job: Job) -> Message:
        session.use(path)
        answer = {"session_id": session.name, "directory": path}
        try:
            configuration, notes = server.sandbox_configuration(path)
            answer["config"] = configuration.files
        except ToolError as refusal:
            notes = [str(refusal)]
        if notes:
            answer["problem"] = "\n".join(notes)
        return json_result(answer)

    server.start(request, session, work)
    return None


def _run_completion(
    server: Server,
    request: Request,
    prompt: str,
    context: Any = None,
    files: list[str] | None = None,
    session_id: str | None = None,
    **limits: Any,
) -> None:
    session = server.session(session_id)
    if isinstance(context, str) and context.lstrip()[:1] in ("{", "["):  # a client without a type for data sends text
        context = _from_json("object", context)

    def work(job: Job) -> Message:
        rlm = sibling("rlm")
        directory = session.folder()
        try:
            given = _files(server, directory, files) if files else context
            result = run(job, directory, prompt, given, limits)
            return _completion_result(server, result, server.sandbox_configuration(directory)[1])
        except rlm.RLMError as error:
            return _failed_completion(server, error)

    server.start(request, None, work)


def _files(server: Server, directory: str | None, specs: list[str]) -> Any:
    """Files of the project as a context; ToolError for what lies outside of it or holds secrets."""
    rlm = sibling("rlm")
    if directory is None:
        raise ToolError("no project folder: call set_project first")
    if wrong := next((s for s in specs if os.path.isabs(os.path.expanduser(s)) or ".." in s.split(os.sep)), None):
        raise ToolError(f"files are named relative to {directory!r}, not {wrong!r}")
    values = server.configuration(directory).values
    how = {"cwd": directory, "left_out": values["log_dir"], "encoding": values["encoding"], "within": directory}
    context = rlm.read_context(specs, **how)
    if not isinstance(context.source, dict):
        raise ToolError(f"{specs!r} are not files of the project")
    return context


def _completion_result(server: Server, result: Any, notes: list[str]) -> Message:
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


def _failed_completion(server: Server, error: Any) -> Message:
    lines = [f"{type(error).__name__}: {error}"]
    if error.hint:
        lines.append(f"next: {error.hint}")
    if error.trajectory_id:
        lines.append(f"trajectory: {error.trajectory_id} (rlm resume {error.trajectory_id} goes on with it)")
        server.resources_changed()
    if error.result is not None and error.result.response:
        lines.append(f"so far:\n{error.result.response}")
    return {"content": server.truncate("\n".join(lines)), "isError": True}


def _resume(server: Server, request: Request, handle: str, answers: list[Any] | None = None) -> None:
    with server.lock:
        job = server.jobs.get(handle)
        if job is None or job.cancelled:
            raise ToolError(f"no run {handle[:80]!r}: unknown, collected already, or expired; call the tool again")
        if job.request is not None:
            raise ToolError("another call waits for this run already")
        job.set_results(answers)
        job.attach(request)


_SESSION = {
    "session_id": {
        "type": "string",
        "description": 'named by an earlier result; "new" makes one, ended after 30 idle minutes; else the shared one',
    }
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
                "code": {"type": "string", "description": "the code of one cell"},
                "timeout": {"type": "number", "minimum": 0.1, "maximum": 300, "description": "seconds, at most 300"},
                "profile": {
                    "type": "string",
                    "enum": list(PROFILES),
                    "description": "time and memory: quick 5 s/128m, default 30 s/512m, analysis 120 s/2g, "
                    "extended 300 s/4g",
                },
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
            read_only=True,
            idempotent=True,
        ),
        ToolSpec(
            "set_repl_context",
            "Set a variable",
            "Make a variable in a REPL session, for example a long text to be examined by code.",
            _set_repl_context,
            {
                "key": {"type": "string", "description": "the variable's name"},
                "value": {"type": "string", "description": "its value: JSON; what is not JSON is kept as a string"},
                **_SESSION,
            },
            ("key", "value"),
            in_folder=True,
            any_json="value",
            idempotent=True,
        ),
        ToolSpec(
            "clear_repl_context",
            "Clear the REPL",
            "Stop what runs in a REPL session and remove all its variables.",
            _clear_repl_context,
            {**_SESSION},
            destructive=True,
            idempotent=True,
        ),
        ToolSpec(
            "list_sessions",
            "List sessions",
            "List the open REPL sessions with their age, idle time and folder.",
            _list_sessions,
            # Without any argument, a converter to OpenAI's strict mode takes the schema for an open object.
            {"session_id": {"type": "string", "description": "show this one alone"}},
            read_only=True,
            idempotent=True,
        ),
        ToolSpec(
            "destroy_session",
            "End a session",
            "End a REPL session and its process.",
            _destroy_session,
            {"session_id": {"type": "string", "description": "the session to end"}},
            ("session_id",),
            destructive=True,
            idempotent=True,
        ),
        ToolSpec(
            "set_project",
            "Choose the project",
            "Choose the folder a session works in: code may read its files, and each project has variables of its own.",
            _set_project,
            {"directory": {"type": "string", "description": "the project's folder"}, **_SESSION},
            ("directory",),
            in_folder=True,
            idempotent=True,
        ),
        ToolSpec(
            "run_completion",
            "Work through a long input",
            "Have a language model work through a long input recursively: the input is a variable in a REPL, the model "
            "looks at it by code and calls itself on pieces. Give the input as context or as files of the project. "
            "Keeps a journal in the project's logs/.",
            _run_completion,
            {
                "prompt": {"type": "string", "description": "the question or task"},
                "context": {"type": "string", "description": "the input: text, or a JSON object or array"},
                "files": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "files, folders or globs of the project, in place of context",
                },
                "model": {"type": "string", "description": "model of the run, where a provider is configured"},
                "max_depth": {"type": "integer", "minimum": 0, "maximum": 16, "description": "depth of recursion"},
                "max_iterations": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "turns of a node"},
                "max_subcalls": {"type": "integer", "minimum": 0, "maximum": 10_000, "description": "sub-calls in all"},
                "token_budget": {"type": "integer", "minimum": 1, "maximum": 10**9, "description": "tokens in all"},
                "cost_budget_usd": {"type": "number", "minimum": 0, "maximum": 10**6, "description": "dollars in all"},
                "timeout_seconds": {"type": "number", "minimum": 1, "maximum": 86_400, "description": "seconds in all"},
                **_SESSION,
            },
            ("prompt",),
            in_folder=True,
            any_json="context",
            open_world=True,
        ),
        ToolSpec(
            "resume",
            "Go on with a run",
            "Go on with a run that answered needs_completions (with the answers to its requests), or wait for one "
            "that is still running.",
            _resume,
            {
                "handle": {"type": "string", "description": "the handle from the earlier result"},
                "answers": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "one answer for each request, in their order",
                },
            },
            ("handle",),
            open_world=True,
        ),
    )
}


# --- serving ----------------------------------------------------------------------------------------------------


class Ended(BaseException):
    """SIGTERM, SIGINT or SIGHUP has come."""


def serve(*, env: str | None = None, workspace: str | None = None, max_wait: float = 45) -> int:
    """Serve one client on stdin and stdout until it leaves, then end the process; 2 if it cannot be served.

    `env`: local or docker, whatever the configuration says. `workspace`: the only folder that code may read. After
    `max_wait` seconds a call is answered with a handle for `resume`.
    """
    if workspace is not None and not os.path.isdir(workspace):
        log(f"no folder {workspace!r}")
        return 2

    def end(number: int, frame: Any) -> None:
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
    os._exit(0)  # nothing that is left, a thread that waits for a dead worker, is worth waiting for


def _end_workers() -> None:
    """End the process that sessions are forked from, if the import that starts it has come so far."""
    sandbox = sys.modules.get(f"{__package__}.rlm_sandbox" if __package__ else "rlm_sandbox")
    if shutdown := getattr(sandbox, "shutdown", None):
        shutdown()


# --- installing: our entry in the configuration of MCP clients --------------------------------------------------------


class ClientKind(NamedTuple):
    """A client: where its configuration is (by scope, the default first), where in it, and what an entry looks like."""

    title: str
    files: Mapping[str, str]
    path: tuple[str, ...] = ("mcpServers",)
    extra: Mapping[str, Any] = {}
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
    """Print, write, remove or check our entry in the configuration of each client; the exit status.

    `action`: print, dry-run (the change as a diff), write, remove, or check (start the server as the client would).
    """
    if unknown := [name for name in clients if name not in CLIENTS]:
        return fail(f"no client {unknown[0]!r}", _meant(unknown[0]))
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


def _meant(word: str) -> str:
    """The clients that a word may have meant, as a question; else all of them, as a command."""
    import difflib

    close = [name for name in CLIENTS if name.startswith(word)] or difflib.get_close_matches(word, CLIENTS)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"rlm mcp-install {'|'.join(CLIENTS)}"


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
    """A YAML file is not edited; a check looks for the entry by its name, and starts the command that is printed."""
    if action != "check":
        what = "take the entry out" if action == "remove" else "add the entry"
        return fail(f"{client.title}: {path} is YAML, which is not edited here: {what} by hand", again, 1)
    if not re.search(rf"^ +[\"']?{ENTRY_NAME}[\"']?:\s*$", text, re.MULTILINE):
        return fail(f"{client.title}: no entry {ENTRY_NAME!r} in {path}", f"{again} prints what to add to it", 1)
    print(f"{client.title}: {path} has the entry {ENTRY_NAME!r}; what it starts is not read, but what {again} prints:")
    return _check(server_command(), {}, client.title)


def _print_own_command(command: str, scope: str) -> None:
    """The client's own command for the same, ready to paste."""
    if command:
        import shlex

        print(f"  the same: {command.format(scope=scope, command=shlex.join(server_command()))}")


def fail(problem: str, following: str, status: int = 2) -> int:
    print(f"rlm: {problem}\n  next: {following}", file=sys.stderr)
    return status


def config_file(client: ClientKind, scope: str) -> str:
    """Where the client's configuration is on this system, as its own environment variables have it."""
    path = os.path.abspath(os.path.expanduser(client.files[scope].format(**_folders())))
    if client.title == "opencode" and os.path.exists(path + "c"):  # the commented form, which it reads last
        path += "c"
    return path


def _folders() -> dict[str, str]:
    """The folders that the table of clients names; for Cline, which has moved its file, the file."""
    home = os.path.expanduser("~")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    application = {
        "darwin": os.path.join(home, "Library", "Application Support"),
        "win32": os.environ.get("APPDATA") or os.path.join(home, "AppData", "Roaming"),
    }.get(sys.platform, config)

    def chosen(variable: str, *inside: str, default: str) -> str:
        return os.path.join(os.environ[variable], *inside) if os.environ.get(variable) else default

    windows = sys.platform == "win32"
    code = os.path.join(os.environ.get("VSCODE_APPDATA") or application, "Code")
    goose = os.path.join(application, "Block", "goose", "config") if windows else os.path.join(config, "goose")
    zed = os.path.join(home, ".config") if sys.platform == "darwin" else config
    return {
        "config": config,
        "desktop": _claude_desktop(home, application),
        "claude": chosen("CLAUDE_CONFIG_DIR", default=home),
        "code": chosen("VSCODE_PORTABLE", "user-data", default=code),
        "zed": os.path.join(application, "Zed") if windows else os.path.join(zed, "zed"),
        "codex": chosen("CODEX_HOME", default=os.path.join(home, ".codex")),
        "gemini": chosen("GEMINI_CLI_HOME", ".gemini", default=os.path.join(home, ".gemini")),
        "copilot": chosen("COPILOT_HOME", default=os.path.join(home, ".copilot")),
        "cline": os.environ.get("CLINE_MCP_SETTINGS_PATH") or _cline_file(home, code),
        "goose": chosen("GOOSE_PATH_ROOT", "config", default=goose),
    }


def _claude_desktop(home: str, application: str) -> str:
    """Its folder. The packaged (MSIX) form on Windows sees the package's own copy of %APPDATA% alone."""
    import glob

    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
        packages = glob.glob(os.path.join(glob.escape(local), "Packages", "Claude_*"))
        folders = [os.path.join(package, "LocalCache", "Roaming", "Claude") for package in sorted(packages)]
        used = [folder for folder in folders if os.path.exists(os.path.join(folder, "claude_desktop_config.json"))]
        if folders:
            return (used or folders)[0]
    return os.path.join(application, "Claude")


def _cline_file(home: str, code: str) -> str:
    """Its settings, which the CLI and the extension share; an extension of old keeps them in a folder of its own."""
    name = "cline_mcp_settings.json"
    base = os.path.join(os.environ.get("CLINE_DIR") or os.path.join(home, ".cline"), "data")
    base = os.environ.get("CLINE_DATA_DIR") or base
    old = os.path.join(code, "User", "globalStorage", "saoudrizwan.claude-dev", "settings", name)
    return old if os.path.exists(old) and not os.path.isdir(base) else os.path.join(base, "settings", name)


def config_path(client: ClientKind, scope: str, text: str = "") -> tuple[str, ...]:
    """Where in the file, which holds `text`, our entry is."""
    inside = ("projects", os.getcwd()) if scope == "local" else ()
    if client.title == "opencode" and text.strip():  # 2.x reads both forms; a file keeps the one that it has
        flat = _mapping(_mapping(parse_jsonc(text).value).get("mcp"))
        nested = _mapping(flat.get("servers"))
        is_map = isinstance(flat.get("servers"), dict) and all(isinstance(server, dict) for server in nested.values())
        if is_map and (ENTRY_NAME in nested or ENTRY_NAME not in flat):
            return ("mcp", "servers", ENTRY_NAME)
    return (*inside, *client.path, ENTRY_NAME)


def server_command() -> list[str]:
    """How a client starts this very server: absolute, and without the client's folder on the module path."""
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


def _is_local(entry: Any) -> bool:
    """Whether an entry can be one of a command, and not of a server elsewhere."""
    return isinstance(entry, dict) and not any(key.lower().endswith("url") for key in entry)


def entry_over(client: ClientKind, name: str, old: Any, where: tuple[str, ...]) -> Message:
    """Our entry for the place of `old`. Of one for a command, all but that and our own arguments stays."""
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
    """The entry as it stands in a file that has nothing else."""
    entry = new_entry(client, name)
    if client.form == "toml":
        return _toml_table(where, entry)
    if client.form == "yaml":
        lines = [f"    {key}: {json.dumps(value)}\n" for key, value in entry.items()]
        return f"{where[0]}:\n  {where[1]}:\n" + "".join(lines)
    return json.dumps(functools.reduce(lambda inner, key: {key: inner}, reversed(where), entry), indent=2) + "\n"


def current_entry(client: ClientKind, text: str, where: tuple[str, ...]) -> Message | None:
    """The entry that the file has, or None."""
    tree: Any = (_toml(text) if client.form == "toml" else parse_jsonc(text).value) if text.strip() else {}
    for key in where:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) and "command" in tree else None


def edited(client: ClientKind, name: str, before: str, where: tuple[str, ...], *, remove: bool) -> str:
    """The file with our entry, or without it, and every other byte as it was. ValueError if it cannot be done so."""
    if not before.strip():
        return before if remove else rendered(client, name, where)
    read = _toml if client.form == "toml" else lambda text: parse_jsonc(text).value
    edit = _edit_toml if client.form == "toml" else _edit_json
    old = functools.reduce(lambda tree, key: _mapping(tree).get(key), where, read(before))
    entry = None if remove else entry_over(client, name, old, where)
    changes: list[tuple[tuple[str, ...], Any]] = [(where, entry)]
    if entry is not None and _is_local(old):  # each value by itself, the rest untouched
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


def _with_entry(tree: Any, where: tuple[str, ...], entry: Message | None) -> Any:
    """The data that the edited file should hold."""
    if not isinstance(tree, dict):
        raise ValueError("the file does not hold an object where the entry belongs")
    if len(where) == 1:
        return {**{k: v for k, v in tree.items() if k != where[0]}, **({} if entry is None else {where[0]: entry})}
    if entry is None and where[0] not in tree:
        return tree
    return {**tree, where[0]: _with_entry(tree.get(where[0], {}), where[1:], entry)}


# JSON with comments


class Node(NamedTuple):
    """A value in a JSON text and where it stands; for an object, its members with where their keys begin."""

    value: Any
    start: int
    end: int
    members: Mapping[str, tuple[int, Node]] = {}


_JSON_TOKEN = re.compile(
    r'(?:\s+|//[^\n]*|/\*.*?\*/)+|(?P<string>"(?:[^"\\\x00-\x1f]|\\.)*")|(?P<mark>[{}\[\],:])|(?P<word>[-+.\w]+)', re.S
)


def parse_jsonc(text: str) -> Node:
    """JSON, comments and trailing commas allowed, with the place of each value. ValueError if it is not that."""
    tokens: list[tuple[str, int, int]] = []
    at = 1 if text.startswith("\ufeff") else 0
    while at < len(text):
        found = _JSON_TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"not JSON at line {text.count(chr(10), 0, at) + 1}")
        if found.lastgroup:
            tokens.append((found[0], at, found.end()))
        at = found.end()
    tokens.append(("", at, at))
    node, rest = _json_node(tokens, 0)
    if tokens[rest][0]:
        raise ValueError(f"not JSON: something after its end: {tokens[rest][0][:20]!r}")
    return node


def _json_node(tokens: list[tuple[str, int, int]], n: int) -> tuple[Node, int]:
    word, start, end = tokens[n]
    if word not in ("{", "["):
        if word in ("", "}", "]", ",", ":"):
            raise ValueError(f"not JSON: {word or 'its end'!r} where a value belongs")
        return Node(json.loads(word, parse_constant=_no_constant), start, end), n + 1
    closing, items, members = {"{": "}", "[": "]"}[word], [], {}
    n += 1
    while tokens[n][0] != closing:
        key = tokens[n][0]
        if closing == "}":
            if key[:1] != '"' or tokens[n + 1][0] != ":" or json.loads(key) in members:
                raise ValueError(f"not JSON: {key[:20]!r} where a new key belongs")
            at = tokens[n][1]
            node, n = _json_node(tokens, n + 2)
            members[json.loads(key)] = (at, node)
        else:
            node, n = _json_node(tokens, n)
            items.append(node.value)
        if tokens[n][0] == ",":
            n += 1
        elif tokens[n][0] != closing:
            raise ValueError(f"not JSON: {tokens[n][0][:20]!r} where a comma belongs")
    value: Any = {key: node.value for key, (_, node) in members.items()} if closing == "}" else items
    return Node(value, start, tokens[n][2], members), n + 1


def _edit_json(text: str, where: tuple[str, ...], entry: Any) -> str:
    """Put, replace or take out the member at `where`."""
    node, depth = parse_jsonc(text), 0
    while depth < len(where) - 1 and where[depth] in node.members:
        node, depth = node.members[where[depth]][1], depth + 1
    if not isinstance(node.value, dict):
        raise ValueError(f"{'.'.join(where[:depth]) or 'the file'} is not an object")
    present = depth == len(where) - 1 and where[-1] in node.members
    if entry is None:
        return _without_member(text, node, where[-1]) if present else text
    if present:
        old = node.members[where[-1]][1]
        return text if old.value == entry else text[: old.start] + _indented(text, entry, depth + 1) + text[old.end :]
    value: Any = functools.reduce(lambda inner, key: {key: inner}, reversed(where[depth + 1 :]), entry)
    return _with_member(text, node, f"{json.dumps(where[depth])}: {_indented(text, value, depth + 1)}", depth)


def _indentation(text: str) -> tuple[str, str]:
    """A line's end and one step of indentation, as the file has them."""
    step = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return ("\r\n" if "\r\n" in text else "\n"), (step[1] if step else "  ")


def _indented(text: str, value: Any, depth: int) -> str:
    end, step = _indentation(text)
    lines = json.dumps(value, indent=step).split("\n")
    return (end + step * depth).join(lines)


def _with_member(text: str, node: Node, member: str, depth: int) -> str:
    """The object with one more member at its end; a comma goes right after the last one, before any comment."""
    end, step = _indentation(text)
    close = node.end - 1
    last = max((child.end for _, child in node.members.values()), default=None)
    bare = re.sub(r"//[^\n]*|/\*.*?\*/", lambda comment: " " * len(comment[0]), text[last:close], flags=re.S)
    needs_comma = last is not None and "," not in bare
    head = text[:last] + "," + text[last:close] if needs_comma else text[:close]
    body = head.rstrip()
    tail = head[len(body) :] if "\n" in head[len(body) :] else end + step * depth
    return f"{body}{end}{step * (depth + 1)}{member}{tail}{text[close:]}"


def _without_member(text: str, node: Node, key: str) -> str:
    """The object without that member, its line and its comma."""
    start, old = node.members[key]
    following = re.compile(r"\s*,").match(text, old.end)
    head = text[:start].rstrip()
    if following:
        return head + text[following.end() :]
    if head.endswith(","):
        head = head[:-1]
    return head + text[old.end :]


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


def _edit_toml(text: str, where: tuple[str, ...], entry: Any) -> str:
    """Put, replace or take out the table at `where`, which goes to the next table's heading; or put one value."""
    if entry is not None and not isinstance(entry, dict):
        return _edit_toml_value(text, where, entry)
    end = "\r\n" if "\r\n" in text else "\n"
    name = r"\s*\.\s*".join(rf"[\"']?{re.escape(part)}[\"']?" for part in where)
    lines = text.splitlines(keepends=True)
    own = [n for n, line in enumerate(lines) if re.match(rf"\s*\[\s*{name}\s*(\.[^\]]*)?\]", line)]
    table = "" if entry is None else _toml_table(where, entry).replace("\n", end)
    if not own:
        gap = "" if not text or text.endswith(end * 2) else end if text.endswith("\n") else end * 2
        return text if entry is None else text + gap + table
    if _toml_value(text, where) == entry:
        return text
    first, last = own[0], own[-1] + 1
    while last < len(lines) and not re.match(r"\s*\[", lines[last]):
        last += 1
    while last > first and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1  # blank lines and comments before the next table are not ours
    if entry is None and first and not lines[first - 1].strip() and (last == len(lines) or not lines[last].strip()):
        first -= 1  # the blank line that set our table apart
    return "".join(lines[:first]) + table + "".join(lines[last:])


def _edit_toml_value(text: str, where: tuple[str, ...], value: Any) -> str:
    """Put or replace one value of the table above it."""
    end = "\r\n" if "\r\n" in text else "\n"
    *table, key = where
    name = r"\s*\.\s*".join(rf"[\"']?{re.escape(part)}[\"']?" for part in table)
    lines = text.splitlines(keepends=True)
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}{end}"
    heading = next((n for n, row in enumerate(lines) if re.match(rf"\s*\[\s*{name}\s*\]", row)), None)
    if heading is None:  # only tables below it have headings: its own goes before the first
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


def _toml_value(text: str, where: tuple[str, ...]) -> Any:
    value: Any = _toml(text)
    for key in where:
        value = value.get(key) if isinstance(value, dict) else None
    return value


# files, and the check


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _replace_file(path: str, before: str, after: str) -> str | None:
    """Write the file at once or not at all, through links, with its mode. Returns where the old one is kept."""
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    kept, mode = None, 0o600
    if os.path.exists(path):
        mode = os.stat(path).st_mode & 0o777
        stamp = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}"
        kept = _write_new([f"{stamp}.bak", *(f"{stamp}-{n}.bak" for n in range(2, 1000))], before, mode)
    temporary = _write_new([f"{path}.{os.urandom(4).hex()}.tmp"], after, mode)
    os.replace(temporary, path)
    return kept


def _write_new(paths: list[str], text: str, mode: int) -> str:
    """Write a file that was not there, under the first of the names that is free."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            break
        except FileExistsError:
            if path == paths[-1]:
                raise
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
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
    import subprocess

    kept = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "SYSTEMROOT", "APPDATA", "USERPROFILE", "TEMP")
    scrubbed = {**{name: os.environ[name] for name in kept if name in os.environ}, **environ}
    client = {"name": "rlm mcp-install", "version": _version()}
    call = {"name": "execute_python", "arguments": {"code": "6 * 7"}}
    meta = {"io.modelcontextprotocol/protocolVersion": LATEST, "io.modelcontextprotocol/clientCapabilities": {}}
    opening = {"protocolVersion": HANDSHAKE[-1], "capabilities": {}, "clientInfo": client}
    requests: list[tuple[str, Message]] = [
        ("server/discover", {"_meta": meta}),
        ("initialize", opening),
        ("tools/list", {}),
        ("tools/call", call),
    ]
    started = time.monotonic()
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=scrubbed, cwd=os.sep)
    except OSError as error:
        return fail(f"{title}: {words[0]} does not start: {error.strerror}", "rlm mcp-install --write", 1)
    patience = threading.Timer(CHECK_SECONDS, process.kill)
    patience.start()
    with process, contextlib.ExitStack() as stack:
        stack.callback(patience.cancel)
        assert process.stdin is not None and process.stdout is not None
        for number, (method, params) in enumerate(requests):
            line = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            try:
                process.stdin.write(line.encode() + b"\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (OSError, ValueError):
                answer = {}
            if "result" not in answer or _mapping(answer["result"]).get("isError"):
                process.kill()
                return fail(f"{title}: {method} was answered with {json.dumps(answer)[:300]}", "rlm doctor", 1)
    print(f"{title}: works ({(time.monotonic() - started) * 1000:.0f} ms to start, list the tools, run a cell and end)")
    return 0
