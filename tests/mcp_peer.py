"""A bare MCP client for the tests: it writes lines, and checks of every line that comes back that it is a message."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN = "2026-07-28"
PATIENCE = 60  # seconds until a test gives up; nothing here takes that long
META = "io.modelcontextprotocol/"
FIBONACCI = """\
def fib(n):
    a, b = 0, 1
    result = []
    while a <= n:
        result.append(a)
        a, b = b, a + b
    return result

result = fib(20)
print(result)
"""


class Peer:
    """A server process and its client. `version` None: nothing is said first."""

    def __init__(
        self,
        version: str | None = "2025-11-25",
        *,
        arguments: tuple[str, ...] = (),
        capabilities: dict[str, Any] | None = None,
        setup: str = "",
        environ: dict[str, str] | None = None,
        roots: list[str] | None = None,
    ) -> None:
        self.version, self.capabilities = version, capabilities or {}
        if roots is not None:
            self.capabilities = {**self.capabilities, "roots": {}}
        self.roots = roots or []
        self.transcript: list[dict[str, Any]] = []  # {"sent": …} and {"got": …}, in order
        self.notifications: list[dict[str, Any]] = []
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()  # of the server, to this client
        self._answers: dict[Any, Any] = {}
        self._news = threading.Condition()
        self._last = 0
        self._ended = False
        command = [sys.executable, str(ROOT / "rlm.py"), "mcp-serve", *arguments]
        if setup:  # the server with some of its constants changed
            code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import rlm_mcp\n{setup}\nraise SystemExit(serve())"
            code = code.replace("raise SystemExit(serve())", "raise SystemExit(rlm_mcp.serve(**options))")
            command = [sys.executable, "-c", "options = {}\n" + code]
        kept = {k: v for k, v in os.environ.items() if k in ("HOME", "PATH", "TMPDIR", "RLM_TEST_SESSION")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, **(environ or {})},
        )
        self.stderr = b""
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._drain)]
        for thread in self._threads:
            thread.start()
        if version in HANDSHAKE:
            self.handshake()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # what is said

    def handshake(self) -> dict[str, Any]:
        params = {
            "protocolVersion": self.version,
            "capabilities": self.capabilities,
            "clientInfo": {"name": "tests", "version": "1"},
        }
        answer = self.ask("initialize", params)
        self.notify("notifications/initialized")
        return answer

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, message: Any) -> None:
        self.transcript.append({"sent": message})
        self.write(json.dumps(message).encode() + b"\n")

    def notify(self, method: str, params: dict[str, Any] | None = None) -> None:
        self.send({"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})})

    def request(self, method: str, params: dict[str, Any] | None = None, *, id: Any = None) -> Any:
        """Send a request and return its id."""
        if id is None:
            self._last += 1
            id = self._last
        params = dict(params or {})
        if self.version == MODERN:
            params["_meta"] = {**self.meta(), **params.get("_meta", {})}
        self.send({"jsonrpc": "2.0", "id": id, "method": method, **({"params": params} if params else {})})
        return id

    def meta(self) -> dict[str, Any]:
        return {f"{META}protocolVersion": MODERN, f"{META}clientCapabilities": self.capabilities}

    # what comes back

    def wait(self, id: Any) -> dict[str, Any]:
        """The whole answer to a request."""
        with self._news:
            assert self._news.wait_for(lambda: id in self._answers or self._ended, PATIENCE), f"no answer to {id!r}"
            assert id in self._answers, f"the server ended: {self.stderr.decode()}"
            answer: dict[str, Any] = self._answers.pop(id)
            return answer

    def wait_note(self, method: str, *, number: int = 1) -> dict[str, Any]:
        """The `number`th notification of that kind."""

        def found() -> list[dict[str, Any]]:
            return [note for note in self.notifications if note["method"] == method]

        with self._news:
            assert self._news.wait_for(lambda: len(found()) >= number or self._ended, PATIENCE), f"no {method}"
            return found()[number - 1]

    def ask(self, method: str, params: dict[str, Any] | None = None, **about: Any) -> dict[str, Any]:
        return self.wait(self.request(method, params, **about))

    def result(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.ask(method, params)
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def error(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.ask(method, params)
        assert "error" in answer, answer
        error: dict[str, Any] = answer["error"]
        return error

    def start(self, tool: str, *, token: Any = None, **arguments: Any) -> Any:
        """Send a tools/call and return its id."""
        meta = {} if token is None else {"_meta": {"progressToken": token}}
        return self.request("tools/call", {"name": tool, "arguments": arguments, **meta})

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = self.wait(self.start(tool, **arguments))
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def text(self, tool: str, **arguments: Any) -> str:
        """The text of a call that succeeds."""
        result = self.call(tool, **arguments)
        assert result["isError"] is False, result
        return text_of(result)

    def refused(self, tool: str, **arguments: Any) -> str:
        """The text of a call that the model is to mend."""
        result = self.call(tool, **arguments)
        assert result["isError"] is True, result
        return text_of(result)

    def json(self, tool: str, **arguments: Any) -> Any:
        return json.loads(self.text(tool, **arguments))

    def run(self, code: str, **arguments: Any) -> str:
        return self.text("execute_python", code=code, **arguments)

    def nothing_more(self) -> None:
        """Everything sent so far has been dealt with: a ping behind it is answered."""
        if self.version == MODERN:
            self.ask("tools/list")
        else:
            self.ask("ping")

    # the end

    def close(self) -> int:
        """Close stdin and wait; the exit status."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        return self.join()

    def join(self) -> int:
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return status

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self.stderr = self.process.stderr.read()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            assert line.isascii(), line
            self.transcript.append({"got": message})
            for part in message if isinstance(message, list) else [message]:
                self._take(part)
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        assert message["jsonrpc"] == "2.0", message
        if "method" in message and "id" in message:
            if message["method"] == "roots/list":
                roots = [{"uri": uri} for uri in self.roots]
                self.send({"jsonrpc": "2.0", "id": message["id"], "result": {"roots": roots}})
            else:
                self.requests.put(message)
            return
        with self._news:
            if "method" in message:
                self.notifications.append(message)
            else:
                self._answers[message.get("id")] = message
            self._news.notify_all()


def text_of(result: dict[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"] if block["type"] == "text")


def descendants(pid: int) -> set[int]:
    """The processes below `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} | found
        grown, found = more != found, more
    return found - {pid}
