"""The Docker sandbox's figures beside what others do for a cell: `python benchmarks/docker_sandbox.py [--peers]`.

Medians and bests in milliseconds. `--peers` adds rlms and rlm-runtime from the environments that benchmarks/bench.py
keeps, with an image made of the tests' own that has what they need.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rlm_sandbox
from rlm_sandbox import DockerSandbox

IMAGE = "python:3.11-slim"
PEERS_IMAGE = "flat-rlm-bench-peers:1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flat-rlm" / "bench"
LIBRARIES = ("certifi", "charset_normalizer", "dill", "idna", "requests", "urllib3")


def times(work: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds of each."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def row(name: str, taken: list[float], bar: float | None = None) -> None:
    middle, best = statistics.median(taken), min(taken)
    kept = "" if bar is None else f"<= {bar:g} {'ok' if middle <= bar else 'best ok' if best <= bar else 'MISSED'}"
    print(f"{name:48} {middle:9.2f} {best:9.2f}   {kept}", flush=True)


# --- ours ----------------------------------------------------------------------------------------------------------


def ours() -> None:
    ready, closed = [], []
    for _ in range(7):
        began = time.perf_counter()
        made = DockerSandbox()
        ready.append((time.perf_counter() - began) * 1000)
        closed += times(made.close, 1)
    row("ready, cold", ready, 300)
    row("close", closed, 100)
    with DockerSandbox() as box:
        box.execute("x = 0")
        row("a cell, with a copy before it", times(lambda: box.execute("x += 1"), 200), 3)
        plain = times(lambda: box.execute("x += 1"), 50)
        many = times(lambda: box.execute("for _ in range(50): ask(1)", functions={"ask": int}), 7)
        row("a host call", [(all_of - statistics.median(plain)) / 50 for all_of in many], 1)
        text = "x" * (8 << 20)
        row("8 MB of context in", times(lambda: box.set("context", text), 5), 400)
    alone()
    pooled()


def alone() -> None:
    """What a cell costs without the copy before it: as for a session that has grown too large for one."""

    class Large(DockerSandbox):
        def _options(self, python: str) -> dict[str, Any]:
            options = super()._options(python)
            setup = dict(json.loads(options["entrypoint"][-1]), fork_limit=0)
            return {**options, "entrypoint": [*options["entrypoint"][:-1], json.dumps(setup)]}

    with Large() as box:
        box.execute("x = 0")
        row("a cell, without", times(lambda: box.execute("x += 1"), 300), 0.5)


def pooled() -> None:
    boxes = [DockerSandbox(pool=1, memory="256m")]
    ready = []
    for _ in range(4):
        while not any(rlm_sandbox._warm.values()):
            time.sleep(0.05)
        began = time.perf_counter()
        boxes.append(DockerSandbox(pool=1, memory="256m"))
        ready.append((time.perf_counter() - began) * 1000)
    row("ready, from the pool", ready, 10)
    for box in boxes:
        box.close()
    rlm_sandbox.close_warm()


# --- the plain ways ------------------------------------------------------------------------------------------------


def plain_ways() -> None:
    import docker

    client = docker.from_env()
    warm = client.containers.run(IMAGE, ["sleep", "600"], detach=True, network_mode="none", init=True)
    try:
        row("exec_run for each cell", times(lambda: warm.exec_run(["python3", "-c", "x = 1"]), 7))
    finally:
        warm.remove(force=True)

    def run() -> None:
        client.containers.run(IMAGE, ["python3", "-c", "x = 1"], network_mode="none", remove=True)

    row("docker run for each cell", times(run, 5))
    client.close()


# --- other projects ------------------------------------------------------------------------------------------------

RLMS = """
import json, time
from rlm.environments.docker_repl import DockerREPL
began = time.perf_counter()
box = DockerREPL(image=IMAGE)
ready = time.perf_counter() - began
taken = []
for n in range(6):
    began = time.perf_counter()
    result = box.execute_code(f"x = {n}")
    taken.append((time.perf_counter() - began) * 1000)
    assert not result.stderr, result.stderr
began = time.perf_counter()
box.cleanup()
print(json.dumps({"ready": [ready * 1000], "a cell": taken[1:], "close": [(time.perf_counter() - began) * 1000]}))
"""
RLM_RUNTIME = """
import asyncio, json, sys, time
sys.path.append(SDK)  # its own extra is not installed in that environment
from rlm.repl.docker import DockerREPL
async def main():
    box, taken = DockerREPL(image=IMAGE), []
    for n in range(6):
        began = time.perf_counter()
        result = await box.execute(f"print({n})")
        taken.append((time.perf_counter() - began) * 1000)
        assert str(n) in result.output, result
    print(json.dumps({"a cell, stateless": taken[1:]}))
asyncio.run(main())
"""


def make_image() -> None:
    (packages,) = (CACHE / "rlms/lib").glob("python3*/site-packages")
    with tempfile.TemporaryDirectory() as folder:
        for name in LIBRARIES:
            subprocess.run(["cp", "-r", packages / name, folder], check=True)
        (Path(folder) / "Dockerfile").write_text(
            f"FROM {IMAGE}\nCOPY . /usr/local/lib/python3.11/dist-packages/\n"
            "RUN command -v python || ln -s $(command -v python3) /usr/local/bin/python\n"
        )
        build = ["docker", "build", "-q", "--network=none", "-t", PEERS_IMAGE, folder]
        subprocess.run(build, check=True, capture_output=True)


def peers() -> None:
    import docker

    make_image()
    sdk = str(Path(docker.__file__).parent.parent)
    for name, source in (("rlms", RLMS), ("rlm-runtime", RLM_RUNTIME)):
        python = CACHE / name / "bin" / "python"
        with tempfile.TemporaryDirectory() as folder:
            code = source.replace("IMAGE", repr(PEERS_IMAGE)).replace("SDK", repr(sdk))
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=folder, timeout=300)
        if done.returncode:
            print(f"{name}: does not run here: {done.stderr.strip().splitlines()[-1][:150]}")
            continue
        for title, taken in json.loads(done.stdout.splitlines()[-1]).items():
            row(f"{name}: {title}", taken)
    subprocess.run(["docker", "rmi", "-f", PEERS_IMAGE], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", action="store_true", help="also rlms and rlm-runtime")
    arguments = parser.parse_args()
    print(f"{'':48} {'median':>9} {'best':>9}   bar")
    ours()
    plain_ways()
    if arguments.peers:
        peers()


if __name__ == "__main__":
    main()
