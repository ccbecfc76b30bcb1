"""What is known of a model that no table has: from its name, from its file, from the server that it runs on."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from scripted import KEY, Server
from test_backends_wires import Listener

import rlm_backends
from rlm_backends import HTTPBackend, connect, size_in_name

# --- the name ---------------------------------------------------------------------------------------------------------

NAMES: list[tuple[str, float | None]] = [
    ("qwen2.5-coder-1.5b", 1.5),
    ("Qwen/Qwen2.5-7B-Instruct-1M", 7),
    ("qwen2.5:0.5b", 0.5),
    ("llama-3.2-3b-instruct", 3),
    ("meta-llama/Llama-3.3-70B-Instruct-Turbo", 70),
    ("gemma3:270m", 0.27),
    ("smollm2:135m-instruct-fp16", 0.135),
    ("mixtral-8x7b-32768", 56),
    ("mixtral-8x22b", 176),
    ("Qwen3-30B-A3B", 30),
    ("gpt-oss:120b", 120),
    ("gemma3n:e4b", 4),
    ("command-r7b-12-2024", 7),
    ("phi-3-mini-4k-instruct", 3.8),
    ("phi-3.5-mini-instruct", 3.8),
    ("phi-4-mini", 3.8),
    ("phi3:mini", 3.8),
    ("models/qwen2.5-coder-1.5b.gguf", 1.5),
    ("mistral-7b-instruct-v0.3", 7),
    ("deepseek-r1:1.5b-qwen-distill-q4_K_M", 1.5),
    ("7B", 7),
    ("494.03M", 0.494),
    ("gpt-4o-mini-2024-07-18", None),
    ("claude-opus-4-5-20251101", None),
    ("gemini-2.5-flash", None),
    ("llama-3.3", None),
    ("ministral-8-bit", None),
    ("some-model-4bit", None),
    ("yi-34k", None),
    ("context-1m", None),
    ("bge-m3", None),
    ("gpt-3.5-turbo-16k", None),
    ("", None),
]


@pytest.mark.parametrize(("name", "billions"), NAMES)
def test_a_name_tells_how_large_a_model_is(name: str, billions: float | None) -> None:
    assert size_in_name(name) == billions


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        ("gpt-4o-mini", (128_000, None, "")),
        ("claude-opus-5-5", (1_000_000, None, "")),
        ("groq/llama-3.3-70b-versatile", (None, 70, "")),
    ],
)
def test_a_model_elsewhere_is_known_by_its_name_alone(model: str, facts: tuple[Any, ...]) -> None:
    backend = connect(model, api_key=KEY)
    backend.inspect()
    assert (backend.window, backend.parameters, backend.server) == facts


# --- the server -------------------------------------------------------------------------------------------------------


class Shelf(Listener):
    """A server of a few documents, by method and path; `None` hangs, bytes are sent as they are."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.over = threading.Event()
        super().__init__()

    def serve(self, connection: Any) -> None:
        threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: Any) -> None:
        with connection, connection.makefile("rb") as stream:
            place = " ".join(stream.readline().decode().split(" ")[:2])
            headers = {}
            while line := stream.readline().decode().strip():
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            self.asked.append((place, headers, stream.read(int(headers.get("content-length", 0)))))
            found = self.documents.get(place, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
            if found is None:
                self.over.wait(20)
            elif isinstance(found, bytes):
                try:
                    connection.sendall(found)
                except OSError:
                    pass  # the client had enough
            else:
                data = json.dumps(found).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    running = Shelf()
    yield running
    running.over.set()
    running.close()


def inspected(shelf: Shelf, model: str = "some-model", backend: str = "openai", **options: Any) -> HTTPBackend:
    made = connect(model, backend, base_url=f"{shelf.url}/v1", api_key=KEY, **options)
    made.inspect()
    return made


def facts(backend: HTTPBackend) -> tuple[int | None, float | None, str]:
    return backend.window, backend.parameters, backend.server


LLAMACPP = {
    "id": "a.gguf",
    "owned_by": "llamacpp",
    "meta": {"n_ctx": 16384, "n_ctx_train": 32768, "n_params": 1777088000},
}
LISTS: list[tuple[str, Any, tuple[Any, ...]]] = [
    ("llama.cpp", [LLAMACPP], (16384, 1.777, "llamacpp")),
    ("vLLM", [{"id": "some-model", "owned_by": "vllm", "max_model_len": 40960}], (40960, None, "")),
    ("LM Studio", [{"id": "some-model", "max_context_length": 32768, "loaded_context_length": 4096}], (4096, None, "")),
    ("another", [{"id": "some-model", "context_length": 8192}], (8192, None, "")),
    ("of several", [{**LLAMACPP, "id": "x"}, {"id": "some-model", "max_model_len": 512}], (512, None, "")),
    ("none of several", [{**LLAMACPP, "id": "x"}, {**LLAMACPP, "id": "y"}], (None, None, "")),
    ("names only", [{"id": "some-model", "object": "model"}], (None, None, "")),
    ("no model", [], (None, None, "")),
    ("odd values", [{"id": ["x"], "owned_by": 5, "meta": [1], "max_model_len": "many"}], (None, None, "")),
    ("no size", [{"id": "some-model", "max_model_len": -1, "meta": {"n_params": 10**400}}], (None, None, "")),
    ("no list", {"a": 1}, (None, None, "")),
]


@pytest.mark.parametrize(("listed", "found"), [case[1:] for case in LISTS], ids=[case[0] for case in LISTS])
def test_a_local_server_tells_of_its_model(shelf: Shelf, listed: Any, found: tuple[Any, ...]) -> None:
    shelf.documents["GET /v1/models"] = {"object": "list", "data": listed}
    assert facts(inspected(shelf)) == found


def test_it_is_asked_once_and_with_the_key(shelf: Shelf) -> None:
    shelf.documents["GET /v1/models"] = {"data": [LLAMACPP]}
    backend = connect("some-1.5b", "openai", base_url=f"{shelf.url}/v1/chat/completions?a=b", api_key=KEY)
    threads = [threading.Thread(target=backend.inspect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    backend.inspect()
    ((place, headers, sent),) = shelf.asked
    assert (place, headers["authorization"], sent) == ("GET /v1/models", f"Bearer {KEY}", b"")
    assert facts(backend) == (16384, 1.5, "llamacpp")  # the name's size before the server's
    another = backend.with_model("some-7b")
    assert facts(another) == (None, 7, "")
    another.inspect()
    assert facts(another) == (16384, 7, "llamacpp")


def test_ollama_tells_the_size_and_not_the_window(shelf: Shelf) -> None:
    shelf.documents["POST /api/show"] = {
        "details": {"parameter_size": "7.6B"},
        "model_info": {"qwen2.context_length": 32768},
    }
    assert facts(inspected(shelf, "some-model", "ollama")) == (None, 7.6, "")
    shelf.documents["GET /v1/models"] = {"data": [{"id": "some-model", "owned_by": "library"}]}
    assert facts(inspected(shelf)) == (None, 7.6, "")
    assert [place for place, _, _ in shelf.asked] == ["POST /api/show", "GET /v1/models", "POST /api/show"]
    assert json.loads(shelf.asked[0][2]) == {"model": "some-model"}


HOSTILE = {
    "nothing there": b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
    "hangs up": b"",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    "no object": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
    "deep": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"[" * 100_000,
    "cut": b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"data": [',
    "long": b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"data": [], "x": "' + b"x" * (4 << 20) + b'"}',
    "redirect": b"HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_what_an_odd_server_says_is_ignored(shelf: Shelf, said: bytes) -> None:
    shelf.documents["GET /v1/models"] = said
    shelf.documents["GET /elsewhere"] = {"data": [LLAMACPP]}
    assert facts(inspected(shelf)) == (None, None, "")
    assert len(shelf.asked) == 1


def test_a_server_that_hangs_costs_no_more_than_its_time(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.documents["GET /v1/models"] = None
    monkeypatch.setattr(rlm_backends, "INSPECT_TIME", 0.2)
    started = time.monotonic()
    assert facts(inspected(shelf)) == (None, None, "")
    assert time.monotonic() - started < 1.5


def test_the_deadline_of_the_run_counts_too(shelf: Shelf) -> None:
    shelf.documents["GET /v1/models"] = None
    started = time.monotonic()
    connect("some-model", "openai", base_url=f"{shelf.url}/v1").inspect(started + 0.1)
    assert time.monotonic() - started < 1.5


def test_nobody_there_is_no_error() -> None:
    with Server() as server:
        url = server.base_url
    backend = connect("some-model", "openai", base_url=url)
    backend.inspect()
    assert facts(backend) == (None, None, "")


@pytest.mark.parametrize(
    ("model", "backend"), [("gpt-4o-mini", "openai"), ("some-model", "anthropic"), ("some-model", "gemini")]
)
def test_a_model_of_the_table_or_of_another_wire_is_not_asked_about(shelf: Shelf, model: str, backend: str) -> None:
    inspected(shelf, model, backend)
    assert shelf.asked == []


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("192.168.1.7", True),
        ("10.1.2.3", True),
        ("vllm", True),
        ("box.local", True),
        ("api.openai.com", False),
        ("8.8.8.8", False),
        ("10.example.com", False),
    ],
)
def test_a_host_is_near_or_it_is_not(host: str, private: bool) -> None:
    assert rlm_backends._is_private(host) == private


# --- the file ---------------------------------------------------------------------------------------------------------


def header(path: Path, pairs: dict[str, Any]) -> Path:
    data = b"".join(tiny_gguf.string(name) + tiny_gguf.value(item) for name, item in pairs.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + data)
    return path


@pytest.mark.parametrize(
    ("pairs", "read"),
    [
        ({"general.size_label": "1.5B", "qwen2.context_length": 32768, "tokenizer.x": ["a"]}, (32768, 1.5)),
        ({"general.name": "x", "general.size_label": "8x7B", "llama.context_length": 4096}, (4096, 56)),
        ({"general.parameter_count": 1_777_088_000, "llama.context_length": 4096}, (4096, 1.777088)),
        ({"general.size_label": "large", "llama.context_length": 4096}, (4096, None)),
        ({"tokenizer.x": ["a", "b"], "llama.context_length": 4096}, (4096, None)),
        ({"general.size_label": "494M"}, (None, 0.494)),
        ({}, (None, None)),
    ],
)
def test_a_model_file_tells_its_window_and_size(tmp_path: Path, pairs: dict[str, Any], read: tuple[Any, ...]) -> None:
    assert rlm_backends._gguf_header(str(header(tmp_path / "a.gguf", pairs))) == read


# --- the context that the calls to a model file share -----------------------------------------------------------------


def call_state(cancel: threading.Event | None = None) -> Any:
    return rlm_backends.CallState("x", 20, time.monotonic() + 20, cancel)


def test_calls_hold_no_more_than_the_context_has_and_come_in_turn() -> None:
    shared, order = rlm_backends.CallQueue(100), list[str]()

    def call(name: str, tokens: int) -> None:
        with shared.reserve(call_state(), tokens):
            order.append(name)

    with shared.reserve(call_state(), 60):
        with shared.reserve(call_state(), 40):
            assert shared.free == 0
        threads = []
        for name, tokens in (("large", 1000), ("small", 10)):  # more than there is: when it is alone
            threads.append(threading.Thread(target=call, args=(name, tokens)))
            threads[-1].start()
            while len(shared.queue) < len(threads):
                time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join(20)
    assert (order, shared.free, len(shared.queue)) == (["large", "small"], 100, 0)


def test_a_call_that_is_cancelled_leaves_its_place() -> None:
    shared, cancel = rlm_backends.CallQueue(100), threading.Event()
    with shared.reserve(call_state(), 100):
        cancel.set()
        with pytest.raises(rlm_backends.BackendError, match="cancelled"), shared.reserve(call_state(cancel), 50):
            raise AssertionError("there is no room")
    assert (shared.free, len(shared.queue)) == (100, 0)


def test_a_full_context_of_llama_cpp_s_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the other calls that fill it: that this prompt is too long is another error."""
    from scripted import error

    monkeypatch.setattr(rlm_backends, "backoff", lambda *_: 0.0)
    server.script = [error(500, "Context size has been exceeded."), "ok"]
    reply = connect("some-model", "openai", base_url=server.base_url, api_key=KEY).complete(
        [{"role": "user", "content": "x"}]
    )
    assert (reply.text, reply.attempts) == ("ok", 2)


# --- a server named without a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "taken"),
    [
        pytest.param(["qwen.gguf"], "qwen.gguf", id="its only model"),
        pytest.param(["other", "gpt-4o-mini"], "gpt-4o-mini", id="the default, if it serves that"),
        pytest.param([], "gpt-4o-mini", id="an empty list"),
    ],
)
def test_a_server_named_without_a_model_is_asked_which_it_serves(shelf: Shelf, listed: list[str], taken: str) -> None:
    shelf.documents["GET /v1/models"] = {"data": [{"id": name} for name in listed]}
    made = connect(None, base_url=f"{shelf.url}/v1", api_key=KEY)
    assert made.model == taken
    assert [headers["authorization"] for _, headers, _ in shelf.asked] == [f"Bearer {KEY}"]
    assert made.price_known is (taken == "gpt-4o-mini")  # another model's price is not assumed


def test_a_server_of_several_models_asks_for_a_choice(shelf: Shelf) -> None:
    shelf.documents["GET /v1/models"] = {"data": [{"id": f"model-{number}"} for number in range(7)]}
    with pytest.raises(rlm_backends.BackendError, match=r"serves 7 models: model-0, .*model-4, …") as caught:
        connect(None, base_url=f"{shelf.url}/v1")
    assert (caught.value.code, caught.value.hint) == ("config", "-m model-0")


@pytest.mark.parametrize("document", [{"data": 7}, {"data": ["a"]}, b"HTTP/1.1 200 OK\r\n\r\n{", {"error": "no"}])
def test_a_server_without_a_list_is_asked_for_the_default(shelf: Shelf, document: Any) -> None:
    shelf.documents["GET /v1/models"] = document
    assert connect(None, base_url=f"{shelf.url}/v1").model == "gpt-4o-mini"


def test_a_server_that_does_not_list_its_models_in_time_is_asked_for_the_default(monkeypatch: Any) -> None:
    monkeypatch.setattr(rlm_backends, "LIST_TIME", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.warns(RuntimeWarning, match="which model it serves"):
        assert connect(None, base_url=f"http://127.0.0.1:{silent.getsockname()[1]}/v1").model == "gpt-4o-mini"


@pytest.mark.parametrize("model", [None, "qwen.gguf"])
def test_llama_cpp_at_an_address_costs_nothing(shelf: Shelf, model: str | None) -> None:
    shelf.documents["GET /v1/models"] = {"data": [{"id": "qwen.gguf", "owned_by": "llamacpp"}]}
    made = connect(model, base_url=f"{shelf.url}/v1", api_key=KEY)
    made.inspect()
    assert (made.provider, made.model, made.price_known, made.limit_field) == (
        "llamacpp",
        "qwen.gguf",
        True,
        "max_tokens",
    )
    assert rlm_backends.cost_of(made.model, {"input": 1000}, None, made.provider) == 0
    assert len(shelf.asked) == 1  # the list that named the model describes it, too


def test_names_of_models_are_shown_as_a_shell_may_read_them(shelf: Shelf) -> None:
    listed: list[Any] = ["a\x1b[31m; b", "c", None]
    shelf.documents["GET /v1/models"] = {"data": [{"id": name} for name in listed]}
    with pytest.raises(rlm_backends.BackendError, match="serves 2 models: a ") as caught:
        connect(None, base_url=f"{shelf.url}/v1")
    assert caught.value.hint == "-m 'a [31m; b'"
