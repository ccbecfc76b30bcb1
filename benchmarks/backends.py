"""One call to a model over HTTP: rlm_backends beside requests.Session, the OpenAI SDK and LiteLLM, in turns.

    python benchmarks/backends.py [--rounds 3] [--subjects flat-rlm,requests] [--write docs/benchmarks-backends.md]

The same server on loopback for all, in a process of its own; each subject in an environment of its own, kept in the
cache. Rounds go around the subjects, so that what else the machine does meets all of them; each figure is the best
round's. `requests` is the floor: a Session, `json=`, and the text taken out of the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flat-rlm" / "bench"
PACKAGES = {
    "flat-rlm": ["requests==2.34.2"],
    "requests": ["requests==2.34.2"],
    "openai": ["openai==3.54.0"],
    "litellm": ["litellm==1.106.2"],
}
MODULES = {"flat-rlm": "rlm_backends", "requests": "requests", "openai": "openai", "litellm": "litellm"}
WIDTH = 64
ROWS = {
    "import": ("import, ms of CPU over bare Python", "≤ 20"),
    "call": ("a call, µs (median)", "≤ 450"),
    "threads": (f"calls a second from {WIDTH} threads", "≥ 90 % of requests"),
    "fan": (f"{WIDTH} calls of 100 ms, {WIDTH} wide, ms", "≤ 150"),
    "token": ("a token's way from the server to the caller, ms (median)", "≤ 10"),
    "cancel": ("from a cancel to control, ms (worst of 30)", "≤ 50"),
}


# --- the server -----------------------------------------------------------------------------------------------------


def answer(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


def token(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    data = b"data: " + json.dumps(body).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    ready = answer("fine")
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(int(length.split(b":")[1]))
            if b"be slow" in body:
                await asyncio.sleep(0.1)
            if b"hang" in body:
                await asyncio.sleep(60)
            if b'"stream":true' in body.replace(b" ", b""):
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for _ in range(10):
                    await asyncio.sleep(0.01)
                    writer.write(token(f"{time.time():.6f}"))
                done = b"data: [DONE]\n\n"
                writer.write(token("", "stop") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))
            else:
                writer.write(ready)
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass  # the client has gone, or the benchmark is over

    finally:
        writer.close()


async def run_server() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the driver ends


# --- the subjects, each in its own process --------------------------------------------------------------------------

Ask = Callable[[str], str]
Stream = Callable[[str, Callable[[str], None]], None]


def flat_rlm(url: str) -> tuple[Ask, Stream]:
    sys.path.insert(0, str(ROOT))
    from rlm_backends import connect

    backend = connect("gpt-4o-mini", base_url=url, api_key="x" * 20, max_parallel=WIDTH)

    def stream(prompt: str, on_text: Callable[[str], None]) -> None:
        backend.complete([{"role": "user", "content": prompt}], on_text=on_text)

    return lambda prompt: backend.complete([{"role": "user", "content": prompt}]).text, stream


def plain_requests(url: str) -> tuple[Ask, Stream]:
    import requests

    session = requests.Session()
    session.trust_env = False
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=WIDTH))
    headers = {"Authorization": "Bearer " + "x" * 20}

    def post(prompt: str, **more: Any) -> Any:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}], **more}
        return session.post(f"{url}/chat/completions", json=body, headers=headers, stream="stream" in more, timeout=60)

    def stream(prompt: str, on_text: Callable[[str], None]) -> None:
        with post(prompt, stream=True) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    on_text(json.loads(line[6:])["choices"][0]["delta"]["content"])

    return lambda prompt: str(post(prompt).json()["choices"][0]["message"]["content"]), stream


def openai_sdk(url: str) -> tuple[Ask, Stream]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="x" * 20)

    def ask(prompt: str, **more: Any) -> Any:
        return client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": prompt}], **more
        )

    def stream(prompt: str, on_text: Callable[[str], None]) -> None:
        for chunk in ask(prompt, stream=True):
            on_text(chunk.choices[0].delta.content or "")

    return lambda prompt: str(ask(prompt).choices[0].message.content), stream


def litellm_sdk(url: str) -> tuple[Ask, Stream]:
    import litellm

    def ask(prompt: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": prompt}]
        return litellm.completion("openai/gpt-4o-mini", messages, api_base=url, api_key="x" * 20, **more)

    def stream(prompt: str, on_text: Callable[[str], None]) -> None:
        for chunk in ask(prompt, stream=True):
            on_text(chunk.choices[0].delta.content or "")

    return lambda prompt: str(ask(prompt).choices[0].message.content), stream


SUBJECTS = {"flat-rlm": flat_rlm, "requests": plain_requests, "openai": openai_sdk, "litellm": litellm_sdk}


def in_threads(ask: Ask, prompt: str, each: int) -> float:
    """Seconds until WIDTH threads have asked so many times each."""
    start = threading.Barrier(WIDTH + 1)

    def work() -> None:
        start.wait()
        for _ in range(each):
            assert ask(prompt) == "fine"

    threads = [threading.Thread(target=work) for _ in range(WIDTH)]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def one_call(ask: Ask) -> float:
    begun = time.perf_counter()
    assert ask("hello") == "fine"
    return (time.perf_counter() - begun) * 1e6


def token_delays(stream: Stream) -> list[float]:
    delays: list[float] = []
    stream("hello", lambda text: delays.append((time.time() - float(text)) * 1e3) if text else None)
    return delays


def cancel_delays(url: str) -> list[float]:
    """Milliseconds from `cancel.set()` until `complete` is back, waiting for an answer that does not come."""
    from rlm_backends import BackendError, connect

    backend, delays = connect("gpt-4o-mini", base_url=url, api_key="x" * 20), []
    for _ in range(30):
        cancel, set_at = threading.Event(), [0.0]

        def later(cancel: threading.Event = cancel, set_at: list[float] = set_at) -> None:
            set_at[0] = time.perf_counter()
            cancel.set()

        threading.Timer(0.05, later).start()
        try:
            backend.complete([{"role": "user", "content": "hang"}], cancel=cancel)
        except BackendError:
            delays.append((time.perf_counter() - set_at[0]) * 1e3)
    return delays


def measure(subject: str, port: str) -> dict[str, float]:
    url = f"http://127.0.0.1:{port}/v1"
    ask, stream = SUBJECTS[subject](url)
    for _ in range(50):
        ask("hello")
    found = {"call": statistics.median(one_call(ask) for _ in range(500))}
    in_threads(ask, "hello", 2)
    found["threads"] = WIDTH * 30 / in_threads(ask, "hello", 30)
    found["fan"] = min(in_threads(ask, "be slow", 1) for _ in range(3)) * 1e3
    found["token"] = statistics.median(delay for _ in range(5) for delay in token_delays(stream))
    if subject == "flat-rlm":
        found["cancel"] = max(cancel_delays(url))
    return found


# --- the driver -----------------------------------------------------------------------------------------------------


def python_of(subject: str) -> Path:
    """The subject's Python, its environment made where it is missing."""
    folder = CACHE / f"backends-{subject}"
    marker = folder / "installed.json"
    if not marker.exists() or json.loads(marker.read_text()) != PACKAGES[subject]:
        print(f"setting up {subject} …", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-qq", *PACKAGES[subject]], check=True)
        marker.write_text(json.dumps(PACKAGES[subject]))
    return folder / "bin" / "python"


def run(subject: str, *arguments: str) -> str:
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "LITELLM_LOCAL_MODEL_COST_MAP": "1",
    }
    command = [str(python_of(subject)), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if ran.returncode:
        raise SystemExit(f"{subject}: {ran.stderr.strip().splitlines()[-1:]}")
    return ran.stdout


def import_time(subject: str) -> float:
    def cpu(statement: str) -> float:
        source = f"import time; start = time.process_time(); {statement}; print((time.process_time() - start) * 1e3)"
        return statistics.median(float(run(subject, "-c", source).split()[-1]) for _ in range(7))

    return max(0.0, cpu(f"import {MODULES[subject]}") - cpu("pass"))


def better(key: str, one: float, other: float) -> float:
    return max(one, other) if key == "threads" else min(one, other)


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [["", "wanted", *found], ["---", "---", *["---:"] * len(found)]]
    for key, (title, wanted) in ROWS.items():
        figures = [found[subject].get(key) for subject in found]
        lines.append(
            [title, wanted, *("–" if figure is None else f"{figure:,.{figure < 10:d}f}" for figure in figures)]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    subjects = options.subjects.split(",")
    found: dict[str, dict[str, float]] = {subject: {"import": import_time(subject)} for subject in subjects}
    server = subprocess.Popen([sys.executable, HERE, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout
    port = server.stdout.readline().strip()
    for number in range(options.rounds):
        for subject in subjects:
            print(f"round {number + 1}: {subject}", file=sys.stderr)
            for key, figure in json.loads(run(subject, str(HERE), "measure", subject, port)).items():
                found[subject][key] = better(key, figure, found[subject].get(key, figure))
    server.stdin.close()
    server.wait()
    made = table(found)
    print(made)
    if options.write:
        title = "# One call to a model: figures\n\nMade by `python benchmarks/backends.py`, on "
        options.write.write_text(
            f"{title}{os.cpu_count()} shared cores, the best of {options.rounds} rounds.\n\n{made}\n"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(run_server())
    elif sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
