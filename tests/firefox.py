"""A headless Firefox, driven by WebDriver BiDi over its own port: no driver binary is needed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect


class Firefox:
    """A browser with one page; `requests` and `errors` are what it asked for and logged since it began."""

    def __init__(self, binary: str) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.sent = 0
        self.home = tempfile.TemporaryDirectory(prefix="rlm-firefox-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [binary, "--headless", "--no-remote", "--profile", self.home.name, "--remote-debugging-port", "0"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HOME": self.home.name, "MOZ_CRASHREPORTER_DISABLE": "1"},
            start_new_session=True,
        )
        self.open_things = contextlib.ExitStack()
        socket = connect(f"{self._address()}/session", max_size=None, proxy=None)
        self.socket: ClientConnection = self.open_things.enter_context(socket)
        self.call("session.new", capabilities={})
        self.call("session.subscribe", events=["network.beforeRequestSent", "log.entryAdded"])
        self.page: str = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def _address(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"listening on (ws://\S+)", line):
                return found.group(1)
        raise RuntimeError("Firefox ended before it listened")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; events that come in between are noted."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self.sent:
                assert message["type"] == "success", message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "network.beforeRequestSent":
            self.requests.append(message["params"]["request"]["url"])
        elif message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
            self.errors.append(str(message["params"]["text"]))

    def open(self, address: str) -> None:
        self.call("browsingContext.navigate", context=self.page, url=address, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression (JSON-able, or a promise of one) in the page."""
        wrapped = f"Promise.resolve({expression}).then(value => JSON.stringify(value ?? null))"
        answer = self.call("script.evaluate", expression=wrapped, target={"context": self.page}, awaitPromise=True)
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def __enter__(self) -> Firefox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open_things.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.home.cleanup()
