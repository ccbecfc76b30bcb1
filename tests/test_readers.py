"""What servers and models nearly say right is read as it is meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

import rlm
import rlm_backends


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('{}{"code":"x"}', {"code": "x"}),
        ('{"code":"x"}\n{"code":"x"}', {"code": "x"}),
        (r'{"pattern":"\d+\s"}', {"pattern": r"\d+\s"}),
        (r'{"pattern":"\\d\n"}', {"pattern": "\\d\n"}),
        ('{"a":[1,2,],}', {"a": [1, 2]}),
        ('{"a":",]"}', {"a": ",]"}),
        ('```json\n{"code":"x"}\n```', {"code": "x"}),
        ('[{"code":"x"}]', {"code": "x"}),
        ('{"code":"x"}</tool_call>', {"code": "x"}),
        ("{'code': 'x'}", {"code": "x"}),
        ('{"code":"x"', {"code": "x"}),
        ('{"a":1} and more words', None),
        ('[{"a":1},{"a":2}]', None),
        ("x = 1", None),
    ],
)
def test_arguments(text: str, meant: Any) -> None:
    assert rlm.read_arguments(text) == meant


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        (">>> x = 1\n>>> for i in y:\n...     print(i)\n1\n2", "x = 1\nfor i in y:\n    print(i)"),
        ("```\n>>> x = 1\n```", "x = 1"),
        ("<code>x = 1</code>", "x = 1"),
        ("x = 1\n<end_code>", "x = 1"),
        ("    x = 1\n    y = 2", "x = 1\ny = 2"),
        (r"x = 1\ny = 2\nprint(\"a\")", 'x = 1\ny = 2\nprint("a")'),
        (r'print("a\nb")', r'print("a\nb")'),
        ("def f(:", "def f(:"),
        ("%time x", "%time x"),
    ],
)
def test_code(code: str, meant: str) -> None:
    assert rlm.clean_code(code) == meant
    assert rlm.code_argument({"code": code}) == (meant, "")


def test_a_closing_fence_may_have_a_tail() -> None:
    blocks = rlm.fences("```python\nx = 1\n```<end_code>\nand\n```\nmore\n```</s>")
    assert [(block.tag, block.code) for block in blocks] == [("python", "x = 1"), ("", "more")]


WHOLE = json.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}, indent=1)
PIECES = [
    json.dumps({"choices": [{"delta": {"content": "y"}}]}),
    json.dumps({"choices": [{"delta": {"content": "es"}, "finish_reason": "stop"}]}),
]
STREAM = "".join(f"data: {piece}\n\n" for piece in PIECES) + "data: [DONE]\n\n"


@pytest.fixture
def answer() -> Iterator[dict[str, str]]:
    """What a server on loopback answers: `body`, under `kind`; its address is in `url`."""
    said: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            if said["kind"]:
                self.send_header("Content-Type", said["kind"])
            self.send_header("Content-Length", str(len(said["body"].encode())))
            self.end_headers()
            self.wfile.write(said["body"].encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said["url"] = f"http://127.0.0.1:{server.server_port}/v1"
    Thread(target=server.serve_forever, daemon=True).start()
    yield said
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson", "text/html", "text/event-stream", ""])
@pytest.mark.parametrize(
    "body",
    [WHOLE, f"{WHOLE}\n\ndata: [DONE]\n\n", STREAM, f"\n\n: ping\n\n{STREAM}", "\n".join(PIECES), f"\ufeff{WHOLE}"],
    ids=["JSON", "JSON and DONE", "events", "late events", "lines", "byte order mark"],
)
def test_the_bytes_say_what_an_answer_is(answer: dict[str, str], body: str, kind: str, streaming: bool) -> None:
    answer.update(body=body, kind=kind)
    backend = rlm_backends.connect("m", backend="openai", base_url=answer["url"], api_key="k" * 20, max_retries=0)
    heard: list[str] = []
    reply = backend.complete([{"role": "user", "content": "?"}], on_text=heard.append if streaming else None)
    assert (reply.text, "".join(heard)) == ("yes", "yes" if streaming else "")


def test_arguments_that_stream_as_nothing_and_then_the_object(answer: dict[str, str]) -> None:
    def delta(arguments: str, reason: str | None = None) -> str:
        call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}}
        return json.dumps({"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": reason}]})

    pieces = [delta("{}"), delta('{"code":'), delta('"1"}', "tool_calls")]
    answer.update(body="".join(f"data: {piece}\n\n" for piece in pieces), kind="text/event-stream")
    backend = rlm_backends.connect("m", backend="openai", base_url=answer["url"], api_key="k" * 20, max_retries=0)
    reply = backend.complete([{"role": "user", "content": "?"}], on_text=lambda text: None)
    assert reply.tool_calls == [{"id": "a", "name": "f", "arguments": {"code": "1"}}]
