"""Errors of keys, networks and memory say what is wrong and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import scripted
from conftest import need
from mcp_peer import Peer
from scripted import Server, answer_with, code
from test_backends_wires import Wire, called, certificate, secure, wire  # noqa: F401  # fixtures
from test_cli import rlm as command

DEAD = "127.0.0.1:9"


def told(*arguments: str, env: dict[str, str], ok: int = 1) -> str:
    """What the command says of its failure, on one line."""
    clean = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    ran = command("what?", "--max-retries", "0", "--no-log", "-q", *arguments, env={**clean, **env})
    assert ran.returncode == ok, ran.stderr
    return " ".join(ran.stderr.decode().split())


@pytest.mark.parametrize("key", ['"sk-abcdefghijklmnop"', "'sk-abcdefghijklmnop'", '"sk-abcdefghijklmnop', "“sk-abc”"])
def test_quotes_around_a_key_are_named_and_not_sent(openai: Server, workspace: Path, key: str) -> None:
    assert "without quotes" in (words := told(env={"OPENAI_API_KEY": key}, ok=2)) or "without the quotes" in words
    assert "OPENAI_API_KEY" in words and "abc" not in words
    assert "quotes" in told("--api-key", key, env={}, ok=2)
    assert openai.requests == []
    (workspace / ".env").write_text(f'OPENAI_API_KEY="{scripted.KEY}"\n')  # there they are the file's
    openai.script = lambda request: "ok"
    assert command("what?", env={"OPENAI_API_KEY": ""}).stdout == b"ok\n"


def test_an_unknown_authority_is_named(secure: Wire, certificate: Path, tmp_path: Path) -> None:  # noqa: F811
    url = secure.url.replace("http:", "https:") + "/v1"
    words = told("-m", "m", "--base-url", url, env={})
    assert "certificate verify failed" in words and "SSL_CERT_FILE" in words and "server running" not in words
    digest = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", f"{certificate}.crt"], capture_output=True, text=True, check=True
    )
    (tmp_path / "certificates").mkdir()
    shutil.copy(f"{certificate}.crt", tmp_path / "certificates" / f"{digest.stdout.strip()}.0")
    assert called(url, SSL_CERT_DIR=str(tmp_path / "certificates")) == ["fine", "fine"]


def test_https_to_a_plain_server_is_named() -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"127.0.0.1:{server.server_address[1]}"
        words = told("-m", "m", "--base-url", f"https://{place}/v1", env={})
        assert "does not speak TLS" in words and f"next: http://{place} instead of https" in words
        assert "server running" not in words
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("variable", "url", "target"),
    [
        ("HTTP_PROXY", f"http://{DEAD}", "http://model.example/v1"),
        ("http_proxy", f"http://user:secret-word@{DEAD}", "http://model.example/v1"),
        ("HTTPS_PROXY", f"http://{DEAD}", "https://model.example/v1"),
        ("ALL_PROXY", f"socks5://{DEAD}", "https://model.example/v1"),
        ("ALL_PROXY", DEAD, "https://model.example/v1"),
    ],
)
def test_a_dead_proxy_is_named(variable: str, url: str, target: str) -> None:
    words = told("-m", "m", "--base-url", target, env={variable: url})
    assert f"through the proxy {DEAD}" in words and "secret-word" not in words
    assert variable in words or "PySocks" in words
    assert "base URL right" not in words and "server running" not in words


def test_a_memory_error_names_the_limit_and_the_option(openai: Server) -> None:
    need("linux")
    openai.script = answer_with(code("x = bytearray(3 << 30)"), "done")
    assert command("what?", "--local-memory", "300m").returncode == 0
    shown = openai.requests[1].last
    assert "MemoryError" in shown and "300m" in shown and "local_memory" in shown
    ran = command("replay", "-q", next(Path("logs").glob("*.jsonl")).stem)
    assert ran.returncode == 0, ran.stderr
    with Peer() as peer:
        words = peer.refused("execute_python", code="x = bytearray(3 << 30)", profile="quick")
        assert "MemoryError" in words and "128m" in words and "profile" in words
