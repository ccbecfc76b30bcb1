"""A real llama.cpp server (xllamacpp) with a tiny model: behind a URL, and as a model file that we serve ourselves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from conftest import alive
from sdk_types import every_request_is_one_that_the_sdks_could_send  # noqa: F401

import rlm_backends
from rlm_backends import BackendError, HTTPBackend, connect

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
xllamacpp = __import__("xllamacpp") if CI else pytest.importorskip("xllamacpp")

pytestmark = pytest.mark.slow

SAID = "".join(tiny_gguf.WORDS)
ORIGINAL_OPEN = rlm_backends.HostPool.open
ASK = [{"role": "system", "content": "be terse"}, {"role": "user", "content": "how wide is the river?"}]
ADD = {
    "name": "add",
    "description": "adds two numbers",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_gguf.make(tmp_path_factory.mktemp("model") / "tiny.gguf")
    rlm_backends.stop_local_models()


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """A server, as a user would have started it."""
    source = (
        "import sys, xllamacpp as x; p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 2048; p.port = 0;"
        "p.n_parallel = 2; p.use_jinja = True; s = x.Server(p);"
        "print(s.listening_address, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", source, str(model)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip() + "/v1"
        process.kill()


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def on_text(request: pytest.FixtureRequest) -> Any:
    return (lambda _: None) if request.param else None


@pytest.fixture(params=["server", "file"])
def backend(request: pytest.FixtureRequest, url: str, model: Path) -> HTTPBackend:
    """The model behind the server, and the same from its file."""
    return connect("tiny", "llamacpp", base_url=url) if request.param == "server" else connect(str(model))


def test_text(backend: HTTPBackend, on_text: Any) -> None:
    reply = backend.complete(ASK, on_text=on_text)
    assert (reply.text, reply.stop_reason, reply.cost_usd) == (SAID, "stop", 0.0)
    assert reply.usage["input"] > 20
    assert (reply.usage["output"], "estimated" in reply.usage) == (len(tiny_gguf.WORDS) + 1, False)


def test_a_limit_cuts_the_answer_and_says_so(backend: HTTPBackend, on_text: Any) -> None:
    reply = backend.complete(ASK, max_tokens=3, on_text=on_text)
    assert (reply.text, reply.stop_reason) == ("The river is", "length")


def test_tools(backend: HTTPBackend, on_text: Any) -> None:
    reply = backend.complete(ASK, tools=[ADD], on_text=on_text)
    (made,) = reply.tool_calls
    assert (made["name"], made["arguments"], reply.stop_reason) == ("add", {"a": 2, "b": 40}, "tool_calls")
    turn = {"role": "assistant", "content": reply.text, "tool_calls": reply.tool_calls, "raw": reply.raw}
    result = {"role": "tool", "tool_call_id": made["id"], "name": "add", "content": "42"}
    assert backend.complete([*ASK, turn, result], tools=[ADD], on_text=on_text).text == SAID


def test_a_prompt_that_is_too_long_is_one_and_teaches_the_window(backend: HTTPBackend) -> None:
    backend.window = None
    with pytest.raises(BackendError) as caught:
        backend.complete([{"role": "user", "content": "x" * 40_000}])
    assert caught.value.code == "context_length"
    assert backend.window is not None
    assert 256 <= backend.window <= tiny_gguf.CONTEXT


def test_an_image_is_refused_in_words(backend: HTTPBackend) -> None:
    picture = rlm_backends.image_part(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(BackendError) as caught:
        backend.complete([{"role": "user", "content": [picture]}])
    assert (caught.value.code, backend.supports_images) == ("no_images", False)


def test_the_text_comes_in_pieces(backend: HTTPBackend) -> None:
    heard: list[str] = []
    backend.complete(ASK, on_text=heard.append)
    assert (len(heard) > 5, "".join(heard)) == (True, SAID)


# --- -m ./model.gguf ------------------------------------------------------------------------------------------------


def test_one_server_serves_the_process_and_says_how_it_loads(model: Path, workspace: Path) -> None:
    own = workspace / "own.gguf"
    own.write_bytes(model.read_bytes())
    said: list[str] = []
    backends = [connect("own.gguf", progress=said.append) for _ in range(3)]
    assert backends[0].window == tiny_gguf.CONTEXT
    threads = [threading.Thread(target=backend.complete, args=(ASK,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({backend.base_url for backend in backends}) == 1
    assert said[0] == "loading own.gguf (0.0 GB): 0 s"
    assert backends[0].with_model("own.gguf") is backends[0]
    served = rlm_backends._served[str(own)]
    served.process.kill()
    served.process.wait()
    assert backends[0].complete(ASK).text == SAID  # started anew


def test_the_server_takes_only_our_key(model: Path) -> None:
    backend = connect(str(model))
    backend.complete(ASK)
    stranger = connect("tiny", "llamacpp", base_url=backend.base_url, api_key="another key".replace(" ", "-"))
    with pytest.raises(BackendError) as caught:
        stranger.complete(ASK)
    assert caught.value.code == "auth"


@pytest.mark.parametrize(
    "how", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "kill"]
)
def test_the_server_ends_with_the_process(model: Path, how: str) -> None:
    source = (
        "import sys, rlm_backends as b; b.connect(sys.argv[1]).complete([{'role': 'user', 'content': 'x'}]);"
        f"print(next(iter(b._served.values())).process.pid, flush=True); {how}"
    )
    ran = subprocess.run([sys.executable, "-c", source, str(model)], capture_output=True, text=True, timeout=60)
    pid = int(ran.stdout)
    waited, looks = threading.Event(), 0
    while alive(pid) and looks < 2000:  # the end of its standard input, which it reads, is what ends it
        waited.wait(0.01)
        looks += 1
    assert not alive(pid)


def test_a_call_can_be_cancelled_while_the_model_loads(model: Path, workspace: Path) -> None:
    own = workspace / "slow.gguf"
    own.write_bytes(model.read_bytes())
    cancel = threading.Event()
    with pytest.raises(BackendError) as caught:
        connect(str(own), progress=lambda _: cancel.set()).complete(ASK, cancel=cancel)
    assert caught.value.code == "cancelled"
    assert connect(str(own)).complete(ASK).text == SAID


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_prefix_that_was_sent_before_comes_from_the_cache(backend: HTTPBackend, stream: bool) -> None:
    system = {"role": "system", "content": f"be terse, {backend.path if hasattr(backend, 'path') else 'server'} " * 9}

    def cached(question: str) -> tuple[int, int]:
        turn = {"role": "user", "content": question}
        usage = backend.complete([system, turn], on_text=(lambda _: None) if stream else None).usage
        return usage["input"], usage["cached"]

    cached("how wide is the river?")
    total, again = cached("how wide is the river?")
    assert again == total - 1
    cached("y" * 300)  # another conversation in between
    total, again = cached("who says so?")
    assert again > 200


def test_calls_that_together_are_longer_than_the_context_are_all_answered(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three prompts of more than a third of it each: what they share is not overfilled."""
    monkeypatch.setattr(rlm_backends, "_text_tokens", len)  # as this model counts
    backend = connect(str(model))
    attempts: list[int] = []

    def ask(number: int) -> None:
        reply = backend.complete([{"role": "user", "content": f"{number} " + "x" * 12_000}])
        assert reply.text == SAID
        attempts.append(reply.attempts)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert attempts == [1, 1, 1]


def test_the_progress_of_a_prompt_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_backends.HostPool, "open", ORIGINAL_OPEN)  # no SDK has return_progress
    backend, heard = connect(str(model)), list[tuple[int, int]]()
    prompt = [{"role": "user", "content": "new " * 1500}]
    reply = backend.complete(prompt, on_text=lambda _: None, on_progress=lambda *at: heard.append(at))
    assert heard == sorted(heard)
    assert len(heard) > 2
    assert {total for _, total in heard} == {reply.usage["input"]}
    assert heard[-1][0] == reply.usage["input"]


def test_a_server_that_is_llama_cpp_is_found_to_be_it(url: str, model: Path) -> None:
    backend = connect("tiny", "openai", base_url=url)
    backend.inspect()
    assert (backend.server, backend.window, backend.parameters) == ("llamacpp", 1024, None)  # of two slots
    local = connect(str(model))
    local.inspect()
    assert (local.server, local.window, local.parameters) == ("llamacpp", tiny_gguf.CONTEXT, None)


def refused(path: Path | str) -> str:
    with pytest.raises(BackendError) as caught:
        connect(str(path))
    assert caught.value.code == "config"
    return f"{caught.value.message} | {caught.value.hint}"


def test_a_file_that_is_no_model_is_said_to_be_none(workspace: Path, model: Path) -> None:
    assert refused("nowhere.gguf").endswith("nowhere.gguf': No such file or directory | ")
    (workspace / "text.gguf").write_text("not a model")
    assert "is not a GGUF file" in refused("text.gguf")
    (workspace / "torn.gguf").write_bytes(model.read_bytes()[:30])
    assert "is a damaged GGUF file | download it again" in refused("torn.gguf")
    (workspace / "deep.gguf").write_bytes(model.read_bytes()[:24] + b"\xff" * 500)
    assert "is a damaged GGUF file" in refused("deep.gguf")


def test_a_model_larger_than_the_memory_is_refused(workspace: Path, model: Path) -> None:
    huge = workspace / "huge.gguf"
    huge.write_bytes(model.read_bytes())
    os.truncate(huge, 8 << 40)  # sparse
    assert "takes 8796.1 GB of memory" in refused(huge)


def test_a_model_that_llama_cpp_cannot_read_is_an_error_in_its_words(workspace: Path, model: Path) -> None:
    (workspace / "cut.gguf").write_bytes(model.read_bytes()[:100_000])
    with pytest.raises(BackendError, match=r"llama\.cpp cannot serve 'cut\.gguf': .") as caught:
        connect("cut.gguf").complete(ASK)
    assert caught.value.code == "config"


def test_a_missing_package_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert refused(model) == "a .gguf model needs the package xllamacpp | pip install 'flat-rlm[local]'"


def test_another_model_cannot_be_had_from_the_file(model: Path) -> None:
    with pytest.raises(BackendError, match="serves no other model"):
        connect(str(model)).with_model("gpt-4o")
