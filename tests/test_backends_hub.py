"""Model files by name, from a scripted hub on loopback that cuts, lies, redirects and asks for a token."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import tiny_gguf

import rlm_backends
from rlm_backends import BackendError, downloaded_models, remove_model

REPO = "Some/Model-1.5B-GGUF"
COMMIT = "c0ffee" * 6 + "beef"
TOKEN = "hf_" + "planted" * 4
FILE = "model-1.5b-q4_k_m.gguf"
DATA = b"GGUF" + os.urandom(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Answers with what `answer(path, headers)` says: status, headers, and what is sent of the body, whole or not."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, Any], tuple[int, dict[str, str], bytes]]) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer = answer
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.server.asked.append((path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self.server.answer(path, self.headers)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = len(body) != int(headers.get("Content-Length", len(body)))

    def log_message(self, *_: Any) -> None:
        pass


class Hub:
    """A hub whose files lie on another host, as they do behind the real one's redirects."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.claims: dict[str, dict[str, Any]] = {}  # what the list says of a file instead of the truth
        self.faults: list[Any] = []  # of the coming downloads: a status, how many bytes until the cut, or a function
        self.api_faults: list[tuple[int, dict[str, str], bytes]] = []
        self.token = ""  # that is asked for
        self.redirect = ""
        self.cdn = Server(self.content)
        self.server = Server(self.reply)

    def listed(self) -> list[dict[str, Any]]:
        return [
            {
                "rfilename": path,
                "size": len(data),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
                **self.claims.get(path, {}),
            }
            for path, data in self.files.items()
        ]

    def reply(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if self.api_faults:
            return self.api_faults.pop(0)
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Invalid username or password."}'
        if path == f"/api/models/{REPO}?blobs=true":
            return 200, {}, json.dumps({"id": REPO, "sha": COMMIT, "siblings": self.listed()}).encode()
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name not in self.files:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        return 302, {"Location": self.redirect or f"{self.cdn.url}/blob/{name}?signature=abc"}, b""

    def content(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        data = self.files[urlsplit(path).path.removeprefix("/blob/")]
        found = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
        start = int(found[1]) if found else 0
        fault = self.faults.pop(0) if self.faults else None
        if callable(fault):
            return fault(data, start)  # type: ignore[no-any-return]
        if isinstance(fault, tuple):
            return fault
        body, more = data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if found else {}
        if fault is not None:
            return 206 if found else 200, {**more, "Content-Length": str(len(body))}, body[:fault]
        return 206 if found else 200, more, body

    def downloads(self) -> list[dict[str, str]]:
        """The headers of each request for a file's content."""
        return [headers for _, headers in self.cdn.asked]

    def close(self) -> None:
        for server in (self.server, self.cdn):
            server.shutdown()
            server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    made = Hub({FILE: DATA, "README.md": b"read me"})
    monkeypatch.setenv("HF_ENDPOINT", made.server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rlm_backends, "backoff", lambda error, failures: min(error.retry_after or 0.0, 0.01))
    yield made
    made.close()


def fetched(name: str = f"hf:{REPO}", said: list[str] | None = None) -> Path:
    progress = None if said is None else said.append
    return Path(rlm_backends._Hub(name, rlm_backends._Environ(None), progress).file())


def refused(name: str = f"hf:{REPO}") -> BackendError:
    with pytest.raises(BackendError) as caught:
        fetched(name)
    assert TOKEN not in f"{caught.value} {caught.value.hint}"
    return caught.value


def parts() -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.part"))


# --- what is downloaded ------------------------------------------------------------------------------------------


def test_a_file_comes_once_and_is_used_from_then_on_without_the_hub(hub: Hub) -> None:
    said: list[str] = []
    path = fetched(said=said)
    assert (path.read_bytes(), path.name, parts()) == (DATA, FILE, [])
    assert path == Path(os.environ["XDG_CACHE_HOME"], "rlm", "models", *REPO.split("/"), FILE)
    assert re.fullmatch(r"asking 127\.0\.0\.1:\d+ for " + REPO, said[0])
    assert re.fullmatch(rf"downloading {FILE}: \d+% of 0\.0 GB, \d+\.\d MB/s", said[1])
    assert said[-1] == f"checking {FILE}"
    asked = len(hub.server.asked)
    hub.close()
    for name in (f"hf:{REPO}", f"hf:{REPO}:Q4_K_M", f"hf:{REPO}:q4_k_m"):
        assert fetched(name) == path
    assert len(hub.server.asked) == asked


GB = 1_000_000_000
QUANTS = {"m-Q2_K.gguf": 1, "m-Q4_K_M.gguf": 4, "m-Q8_0.gguf": 8, "m-f16.gguf": 16}
HALVES = {"m-q4_k_m-00001-of-00002.gguf": 2, "m-q4_k_m-00002-of-00002.gguf": 2}
CHOICES: list[tuple[str, dict[str, int], str, str]] = [
    ("the usual one", QUANTS, "", "m-Q4_K_M.gguf"),
    ("by its quantisation", QUANTS, "q8_0", "m-Q8_0.gguf"),
    ("by its name", QUANTS, "m-F16.gguf", "m-f16.gguf"),
    ("the smallest of four bits up", {"m-IQ3_XS.gguf": 3, "m-Q5_K_S.gguf": 5, "m-Q8_0.gguf": 8}, "", "m-Q5_K_S.gguf"),
    ("the largest of less", {"m-Q2_K.gguf": 2, "m-Q3_K_L.gguf": 3}, "", "m-Q3_K_L.gguf"),
    ("the only one", {"whatever.gguf": 1, "mmproj-f16.gguf": 1}, "", "whatever.gguf"),
    ("whole rather than split", {"m-q4_k_m.gguf": 4, **HALVES}, "", "m-q4_k_m.gguf"),
    ("in a folder", {"Q4_K_M/m-Q4_K_M.gguf": 4, "Q8_0/m-Q8_0.gguf": 8}, "q8_0", "Q8_0/m-Q8_0.gguf"),
    ("of several models, by name", {"a-Q4_K_M.gguf": 4, "b-Q4_K_M.gguf": 4}, "b-Q4_K_M", "b-Q4_K_M.gguf"),
]


def variants(sizes: dict[str, int]) -> list[Any]:
    usable = {path: size for path, size in sizes.items() if "mmproj" not in path}
    return rlm_backends._variants([rlm_backends._HubFile(path, size * GB, "") for path, size in usable.items()])


@pytest.mark.parametrize(("sizes", "wanted", "path"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES])
def test_which_file_a_name_means(sizes: dict[str, int], wanted: str, path: str) -> None:
    (found,) = rlm_backends._matching(variants(sizes), wanted)
    assert [file.path for file in found.files] == [path]


def test_all_files_of_a_split_model_come(hub: Hub) -> None:
    hub.files = {f"big-Q4_K_M-0000{n}-of-00003.gguf": DATA[: n * 1000] for n in (1, 2, 3)}
    hub.files["torn-Q8_0-00001-of-00002.gguf"] = DATA[:10]
    path = fetched()
    assert path.name == "big-Q4_K_M-00001-of-00003.gguf"
    assert [file.stat().st_size for file in sorted(path.parent.glob("*.gguf"))] == [1000, 2000, 3000]
    assert rlm_backends._model_size(str(path)) == 6000
    (row,) = downloaded_models()
    assert (row["name"], row["bytes"]) == (f"hf:{REPO}:q4_k_m", 6000)


@pytest.mark.parametrize(
    ("paths", "wanted", "told"),
    [
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "", "has several models: there are a-Q4_K_M (0.0 GB), b-Q4_K_M (0.0 GB)"),
        (["m-Q4_0.gguf", "m-Q8_0.gguf"], ":Q5_K_M", "has no 'Q5_K_M': there are Q4_0 (0.0 GB), Q8_0 (0.0 GB)"),
        (["README.md", "model.safetensors"], "", "has no GGUF file"),
        (["m-Q4_K_M-00001-of-00002.gguf"], "", "has no GGUF file"),
    ],
    ids=["several", "none of that", "none at all", "half of one"],
)
def test_a_name_that_means_no_file_lists_those_that_are_there(
    hub: Hub, paths: list[str], wanted: str, told: str
) -> None:
    hub.files = dict.fromkeys(paths, DATA)
    error = refused(f"hf:{REPO}{wanted}")
    assert told in str(error)
    assert error.code == "not_found"
    assert "-GGUF" in error.hint or re.fullmatch(f"name one, as in hf:{REPO}:(a-Q4_K_M|Q4_0)", error.hint)
    assert hub.downloads() == []


BAD_PATHS = [
    "../../escape.gguf", "/etc/escape.gguf", "a/../escape.gguf", "a\\..\\escape.gguf", "C:escape.gguf", ".hidden.gguf",
    "a//escape.gguf", "a/./escape.gguf", "esc\x1b[2Jape.gguf", "escape\n.gguf", "escape.gguf/", "e" * 300 + ".gguf",
    "a/b/c/d/e/escape.gguf", "escape.gguf.exe", "é.gguf", "-rf.gguf", "index.json", "~/escape.gguf",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_elsewhere_is_no_file_of_ours(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.files = {path: DATA}
    assert "has no GGUF file" in str(refused())
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and ".locks" not in file.parts]


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:owner",
        "hf:owner/",
        "hf:/repo",
        "hf:../..",
        "hf:a/../b",
        "hf:a/b/c",
        "hf:a/b:",
        "hf:a/b:-x",
        "hf:a/b c",
    ],
)
def test_a_name_that_is_none(name: str) -> None:
    error = refused(name)
    assert (str(error), error.code) == (f"{name!r} is not a hub model name", "config")
    assert error.hint.startswith("hf:OWNER/REPO")


# --- what goes wrong on the way -----------------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: Hub) -> None:
    hub.faults = [1000, 50_000, 0, 100_000]
    assert fetched().read_bytes() == DATA
    assert [headers.get("range") for headers in hub.downloads()] == [
        None, "bytes=1000-", "bytes=51000-", "bytes=51000-", "bytes=151000-",
    ]  # fmt: skip


def test_one_that_never_ends_keeps_what_has_come_for_the_next_run(hub: Hub) -> None:
    hub.faults = [200_000, 0, 0, 0, 0]
    error = refused()
    assert (error.code, error.hint) == ("connection", "run it again: it goes on after the 0.2 MB that have come")
    assert [row["complete"] for row in downloaded_models()] == [False]
    assert [part.stat().st_size for part in parts()] == [200_000]
    assert fetched().read_bytes() == DATA
    assert hub.downloads()[-1]["range"] == "bytes=200000-"


def test_a_file_that_changed_in_between_begins_anew(hub: Hub) -> None:
    hub.faults = [200_000, 0, 0, 0, 0]
    refused()
    hub.files[FILE] = DATA[::-1]
    assert fetched().read_bytes() == DATA[::-1]
    assert "range" not in hub.downloads()[-1]
    assert parts() == []


@pytest.mark.parametrize("torn", [b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 1)], ids=["some", "all", "more"])
def test_a_torn_part_is_found_out(hub: Hub, torn: bytes) -> None:
    """What a crash left: the digest says so, and the next run has it right."""
    hub.faults = [1, 0, 0, 0, 0]
    refused()
    parts()[0].write_bytes(torn)
    if len(torn) <= len(DATA):
        error = refused()
        assert "its SHA-256 differs" in str(error)
        assert parts() == []
    assert fetched().read_bytes() == DATA


def unranged(data: bytes, start: int) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, data


def elsewhere(data: bytes, start: int) -> tuple[int, dict[str, str], bytes]:
    return 206, {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"}, data


def unsatisfiable(data: bytes, start: int) -> tuple[int, dict[str, str], bytes]:
    return 416, {}, b""


@pytest.mark.parametrize("fault", [unranged, elsewhere, unsatisfiable])
def test_a_server_that_cannot_go_on_sends_it_all_again(hub: Hub, fault: Any) -> None:
    hub.faults = [1000, fault]
    assert fetched().read_bytes() == DATA


def test_more_than_the_size_that_was_told_is_not_taken(hub: Hub) -> None:
    hub.claims[FILE] = {"lfs": {"sha256": hashlib.sha256(DATA).hexdigest(), "size": 1000}}
    error = refused()
    assert str(error) == f"the hub sends more of '{FILE}' than the 1,000 bytes that it has"
    assert error.hint == "is a proxy in the way? run it again"
    assert parts() == []  # what never fits is not kept


@pytest.mark.parametrize("size", [1e3, 10**30, -1, "1000", True, None, [1]], ids=str)
def test_a_size_that_is_no_count_of_bytes_is_said(hub: Hub, size: Any) -> None:
    hub.claims[FILE] = {"size": size, "lfs": None}
    error = refused()
    assert str(error) == f"the hub's answer cannot be read: {str(size)!r} as the size of {FILE!r}"
    assert (error.code, error.hint) == ("protocol", f"is {hub.server.url} a Hugging Face hub?")
    assert hub.downloads() == []


def test_less_than_the_size_that_was_told_is_no_file(hub: Hub) -> None:
    hub.claims[FILE] = {"lfs": {"sha256": hashlib.sha256(DATA).hexdigest(), "size": len(DATA) + 1}}
    error = refused()
    assert (error.code, parts() != []) == ("protocol", False) or error.code == "truncated"
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.gguf"))


def test_other_content_than_was_told_is_not_kept(hub: Hub) -> None:
    hub.claims[FILE] = {"lfs": {"sha256": "0" * 64, "size": len(DATA)}}
    error = refused()
    assert "its SHA-256 differs" in str(error)
    assert [path for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*") if path.suffix in (".gguf", ".part")] == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(hub: Hub, status: int) -> None:
    hub.api_faults = [(status, {"Retry-After": "0"}, b"")] * 2
    hub.faults = [(status, {}, b"no")] * 3
    assert fetched().read_bytes() == DATA


REFUSALS: list[tuple[str, tuple[int, dict[str, str], bytes], str, str]] = [
    ("401", (401, {}, b'{"error": "Invalid username or password."}'), "auth", "check the name; a private model needs"),
    ("gated", (403, {"X-Error-Code": "GatedRepo"}, b'{"error": "gated"}'), "auth", f"terms at http://.*/{REPO}, then"),
    ("404", (404, {"X-Error-Code": "RepoNotFound"}, b""), "not_found", "check the name"),
    ("429", (429, {"Retry-After": "600"}, b"slow down"), "rate", "wait; HF_TOKEN raises the limit"),
    ("503", (503, {}, b"<html>down</html>"), "server", "try again later"),
]


@pytest.mark.parametrize(("fault", "code", "hint"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_refusal_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch, fault: Any, code: str, hint: str) -> None:
    monkeypatch.setattr(rlm_backends, "backoff", lambda error, failures: error.retry_after or 0.0)
    hub.api_faults = [fault] * 5
    error = refused()
    assert (error.code, error.status) == (code, fault[0])
    assert re.search(hint, error.hint)
    assert f"answers {fault[0]} for '{REPO}'" in str(error)


def test_without_a_network_it_says_what_is_there(hub: Hub) -> None:
    fetched()
    hub.close()
    error = refused(f"hf:{REPO}:Q8_0")
    assert (error.code, error.hint) == (
        "connection",
        f"is the network up, and HF_ENDPOINT right? Downloaded already: hf:{REPO}:q4_k_m",
    )


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"siblings": 3}', b'{"siblings": [{}]}', b"[" * 100_000])
def test_an_answer_that_is_none_of_a_hub(hub: Hub, body: bytes) -> None:
    hub.api_faults = [(200, {}, body)]
    error = refused()
    assert (error.code, error.hint) == ("protocol", f"is {hub.server.url} a Hugging Face hub?")


# --- the token ---------------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_endpoint_and_to_no_host_that_it_redirects_to(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    assert refused().code == "auth"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetched().read_bytes() == DATA
    assert [headers["authorization"] for _, headers in hub.server.asked[1:]] == [f"Bearer {TOKEN}"] * 2
    assert hub.cdn.asked
    assert not [headers for headers in hub.downloads() if TOKEN in str(headers)]


def test_a_token_that_is_refused_is_not_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.api_faults = [(401, {}, json.dumps({"error": f"token {TOKEN} is expired"}).encode())]
    error = refused()
    assert "token [redacted] is expired" in str(error)
    assert "the one that is set is refused" in error.hint


NOWHERE = [
    "file:///etc/passwd", "ftp://127.0.0.1/x", "http://a:b@127.0.0.1/", "http://[bad", "http://127.0.0.1:999999/x?sig=1",
    "http://127.0.0.1:0/", "http://127.0.0.1:x/", "//127.0.0.1:70000/", "http://a b/", "",
]  # fmt: skip


@pytest.mark.parametrize("target", NOWHERE)
def test_a_redirect_to_nowhere_is_one_clear_error(hub: Hub, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.redirect = target or f"{hub.server.url}/{REPO}/resolve/{COMMIT}/{FILE}"
    error = refused()
    assert error.code == "redirect"
    assert ("circle" in str(error)) == (not target)
    assert "a:b" not in str(error) and "sig=1" not in str(error)
    assert f"curl -sIL {hub.server.url}/{REPO} shows the redirects" in error.hint
    assert len(hub.server.asked) == (2 if target else 7)  # the list, and the file once or round and round


def test_a_redirect_of_a_model_server_to_nowhere_is_not_tried_again(hub: Hub) -> None:
    hub.api_faults = [(302, {"Location": "http://[bad"}, b"")] * 9
    hub.server.RequestHandlerClass.do_POST = Handler.do_GET  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="it redirects to elsewhere") as caught:
        rlm_backends.connect("m", base_url=hub.server.url).complete([{"role": "user", "content": "x"}])
    assert (caught.value.code, len(hub.server.asked)) == ("redirect", 1)


# --- retries, silence, and an end by hand -------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 3])
def test_connections_that_are_closed_while_idle_again_and_again_use_up_the_retries(retries: int) -> None:
    calls: list[float] = []

    def send() -> None:
        calls.append(time.monotonic())
        error = BackendError("closed", code="connection", retryable=True, retry_after=0.0)
        error.idle_closed = True
        raise error

    state = rlm_backends.CallState("x", 5, None, None)
    with pytest.raises(BackendError, match="closed"):
        rlm_backends.with_retries(state, rlm_backends.AdaptiveLimiter(1), retries, send)
    assert len(calls) == retries + 2  # the first was no attempt
    assert [after - before > 0.2 for before, after in itertools.pairwise(calls)] == [False, *[True] * retries]


def test_only_a_connection_that_was_open_counts_as_closed_while_idle(hub: Hub) -> None:
    state = rlm_backends.CallState("x", 5, None, None)
    link, url = rlm_backends._link(hub.server.url, 4), f"{hub.server.url}/api/models/{REPO}?blobs=true"
    reused = []
    with rlm_backends._watch.watching(state):
        for keep in (False, False, True, True):
            response = link.open(state, url, {}, None)
            reused.append(state.reused)
            if keep:
                list(rlm_backends._chunks(state, response, url))
            else:
                rlm_backends._release(response)  # closed: the same object is opened again
        assert reused == [False, False, False, True]
        nowhere = "http://127.0.0.1:999999/"
        with pytest.raises(BackendError) as caught:
            rlm_backends._link(nowhere, 4).open(state, nowhere, {}, None)
    assert (caught.value.code, caught.value.idle_closed) == ("connection", False)


class Silent(threading.Thread):
    """A hub that takes requests and says nothing, or a byte now and then."""

    def __init__(self, head: bytes = b"") -> None:
        super().__init__(daemon=True)
        self.socket, self.head, self.asked = socket.create_server(("127.0.0.1", 0)), head, threading.Event()
        self.connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.connections.append(self.socket.accept()[0])
                self.connections[-1].recv(10_000)
                self.connections[-1].sendall(self.head)
                self.asked.set()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        for opened in (self.socket, *self.connections):
            opened.close()
        self.join()


@pytest.fixture(params=[b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"], ids=["no answer", "no more"])
def silent(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    made = Silent(request.param)
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    yield made
    made.close()


def test_a_hub_that_falls_silent_ends_the_download(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_backends, "_HUB_TIMEOUT", 0.1)
    error = refused()
    assert (error.code, str(error)) == ("timeout", "the server sent nothing for 0.1 s")
    assert error.hint == "is the network up, and HF_ENDPOINT right?"
    assert len(silent.connections) == 4


def test_an_interrupt_ends_the_download(silent: Silent) -> None:
    command = [sys.executable, "-m", "rlm", "-m", f"hf:{REPO}", "hello"]
    process = subprocess.Popen(command, stderr=-1, text=True, stdin=subprocess.DEVNULL)
    assert silent.asked.wait(30)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1].splitlines()[-1] == "rlm: interrupted"
    assert process.returncode == 130


# --- two at once, and the disk ------------------------------------------------------------------------------------

DOWNLOAD = "import sys, rlm_backends as b; print(b._Hub(sys.argv[1], b._Environ(None), print).file(), flush=True)"


def test_two_processes_download_it_once(hub: Hub) -> None:
    gate = threading.Event()

    def slow(data: bytes, start: int) -> tuple[int, dict[str, str], bytes]:
        gate.wait(20)
        return 200, {}, data

    hub.faults = [slow]
    command = [sys.executable, "-c", DOWNLOAD, f"hf:{REPO}"]
    first = subprocess.Popen(command, stdout=-1, text=True)
    while not hub.cdn.asked:
        time.sleep(0.01)
    second = subprocess.Popen(command, stdout=-1, text=True)
    assert second.stdout
    assert second.stdout.readline() == f"waiting for another process that downloads {REPO}\n"
    with pytest.raises(BackendError, match="another process is downloading"):
        remove_model(f"hf:{REPO}")
    gate.set()
    outs = [process.communicate(timeout=30)[0].splitlines()[-1] for process in (first, second)]
    assert outs[0] == outs[1] == str(fetched())
    assert len(hub.downloads()) == 1


def test_a_file_system_without_locks_is_no_hindrance(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    assert fetched(said=said).read_bytes() == DATA
    assert said[0].endswith("is on a file system without locks: start one download at a time")


def test_a_process_that_is_killed_leaves_what_the_next_goes_on_from(hub: Hub) -> None:
    gate = threading.Event()

    def stuck(data: bytes, start: int) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Length": str(len(data))}, data[:200_000]

    hub.faults = [stuck, lambda data, start: (gate.wait(20), (206, {}, b""))[1]]
    process = subprocess.Popen([sys.executable, "-c", DOWNLOAD, f"hf:{REPO}"], stdout=subprocess.DEVNULL)
    while len(hub.cdn.asked) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gate.set()
    assert [part.stat().st_size for part in parts()] == [200_000]
    assert fetched().read_bytes() == DATA


def test_no_room_is_said_before_anything_comes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    error = refused()
    assert re.search("0.0 GB are needed and 0.0 GB free", str(error))
    assert error.hint == "rlm models remove NAME makes room, XDG_CACHE_HOME names another place"
    assert hub.downloads() == []


LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
FULL = LIMITED + "sys.dont_write_bytecode = True; " + DOWNLOAD  # a module's cache that is cut would outlive the test


def test_a_disk_that_fills_on_the_way_is_one_clear_error(hub: Hub) -> None:
    ran = subprocess.run([sys.executable, "-c", FULL, f"hf:{REPO}"], capture_output=True, text=True, timeout=60)
    assert re.search(r"BackendError: cannot keep a model in '.*': File too large\n$", ran.stderr)
    assert [part.stat().st_size for part in parts()] == [100_000]
    assert fetched().read_bytes() == DATA


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "Not a directory" in str(refused())


# --- what is kept ------------------------------------------------------------------------------------------------


def test_what_is_kept_is_listed_and_removed(hub: Hub) -> None:
    hub.files = {"m-Q4_K_M.gguf": DATA, "m-Q8_0.gguf": DATA[::-1]}
    fetched()
    fetched(f"hf:{REPO}:Q8_0")
    assert [row["name"] for row in downloaded_models()] == [f"hf:{REPO}:q4_k_m", f"hf:{REPO}:q8_0"]
    assert remove_model(f"hf:{REPO}:Q4_K_M") == len(DATA)
    assert [row["name"] for row in downloaded_models()] == [f"hf:{REPO}:q8_0"]
    with pytest.raises(BackendError, match=r"Q4_K_M' is not downloaded"):
        remove_model(f"hf:{REPO}:Q4_K_M")
    assert fetched().name == "m-Q4_K_M.gguf"  # again
    remove_model(f"hf:{REPO}")
    assert downloaded_models() == []
    with pytest.raises(BackendError, match=f"nothing of '{REPO}' is downloaded"):
        remove_model(f"hf:{REPO}")


@pytest.mark.parametrize(
    "index", [b"", b"{}", b"[1]", b'{"": [[1, 2, 3]]}', b'{"": [["../x.gguf", 7, ""]]}', b'{"": 1}']
)
def test_an_index_that_is_torn_or_forged_is_none(hub: Hub, index: bytes) -> None:
    path = fetched()
    (path.parent.parent / "x.gguf").write_bytes(b"GGUF...")
    (path.parent / "index.json").write_bytes(index)
    assert downloaded_models() == []
    assert fetched() == path
    assert len(hub.downloads()) == 1  # the file itself is there still


# --- from end to end ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_model_answers_on_the_command_line(hub: Hub, workspace: Path) -> None:
    pytest.importorskip("xllamacpp")
    hub.files = {"tiny-0.1b-Q4_K_M.gguf": tiny_gguf.make(workspace / "tiny.gguf").read_bytes()}
    hub.faults = [1000]
    command = [sys.executable, "-m", "rlm", "-m", f"hf:{REPO}"]
    for _ in range(2):
        ran = subprocess.run([*command, "--stream", "how wide?"], capture_output=True, text=True, timeout=100)
        assert (ran.returncode, ran.stdout) == (0, "".join(tiny_gguf.WORDS) + "\n"), ran.stderr
    assert len(hub.downloads()) == 2  # the part, the rest, and nothing for the second run


def rlm(*arguments: str) -> Any:
    command = [sys.executable, "-m", "rlm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


def test_the_command_lists_and_removes_models(hub: Hub, workspace: Path) -> None:
    assert (rlm("models").stdout, rlm("models", "--json").stdout) == ("", "[]\n")
    path = fetched()
    assert rlm("models").stdout == f"✓ hf:{REPO}:q4_k_m  0.0 GB  {path}\n"
    rows = [{"name": f"hf:{REPO}:q4_k_m", "bytes": len(DATA), "path": str(path), "complete": True}]
    assert json.loads(rlm("models", "--json").stdout) == rows
    assert f"hf:{REPO}:q4_k_m" in rlm("doctor").stdout
    assert rlm("models", "remove", f"hf:{REPO}").stderr == f"removed hf:{REPO} (0.0 GB)\n"
    assert not path.exists()
    for wrong, told in (
        (("remove", f"hf:{REPO}"), "is downloaded"),
        (("remove", "x"), "is not a hub model name"),
        (("remove",), "which model?"),
        (("list",), "unexpected"),
    ):
        ran = rlm("models", *wrong)
        assert ran.returncode != 0
        assert told in ran.stderr or told == "unexpected"
        assert "next: " in ran.stderr


def test_a_project_file_that_is_not_trusted_downloads_nothing(hub: Hub, workspace: Path) -> None:
    Path("rlm.toml").write_text(f'[rlm]\nmodel = "hf:{REPO}"\n')
    ran = rlm("hello")
    assert ran.returncode == 2
    assert "rlm.toml:2: 'model' is not taken from a project file that is not trusted" in ran.stderr
    assert hub.server.asked == []
