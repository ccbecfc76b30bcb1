"""Runs adversarial cells, one after another, in a host process, and says what each got away with.

A payload is a dict with `name`, `kind`, `code` and `proof` (see tests/corpus/sandbox/). The host is forked, so that
one that hangs or dies is seen as that and takes nothing along; the next payload then gets another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import rlm_sandbox

ROOT = Path(__file__).parent.parent
LIMIT = 0.5  # seconds for the cell
AFTER = 5.0  # for those after it, which are judged by their values: a busy machine is still freeing the memory
AT_EASE = 20.0  # for what comes before it
BACK = LIMIT + 3.0  # the host is back in limit + 1 (benchmarks/sandbox.py measures it); the rest is for busy machines
GROWTH = 50 << 20  # bytes that the host may grow by
HOST_SPACE = 2 << 30  # address space for the host, so that one that balloons dies here and not with the machine

WITNESS = """
import collections, copy, decimal, enum, functools, json, math, re, string
str([json.dumps({"a": [1]}), json.JSONEncoder().encode([1]), len([1, 2]), math.pi, decimal.getcontext().prec,
     collections.Counter("aab").most_common(1), collections.OrderedDict.__name__, re.compile("a").pattern,
     b"\\xff".decode("ascii", "replace"), functools.reduce(max, [1, 3, 2]), copy.copy([1]), string.digits])
"""
EXPECTED = repr(
    str(['{"a": [1]}', "[1]", 2, 3.141592653589793, 28, [("a", 2)], "OrderedDict", "a", "\ufffd", 3, [1], "0123456789"])
)


def judge(payload: dict[str, Any], layers: Sequence[str], folder: Path) -> dict[str, Any]:
    """What came of a payload: `verdict` is empty if it was stopped; `kept` if the session's variables lived on."""
    if Host.living is None or Host.living.layers != layers:
        end_host()
        Host.living = Host(layers)
    return Host.living.judge(payload, folder)


def end_host() -> None:
    if Host.living is not None:
        Host.living.end()


class Host:
    """A forked process that serves one payload after another, until one of them gets away with something."""

    living: Host | None = None

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers, self.seen = layers, list[str]()
        self.channel, its_end = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            serve(its_end, layers)
        its_end.close()

    def judge(self, payload: dict[str, Any], folder: Path) -> dict[str, Any]:
        self.channel.sendall(json.dumps([payload, str(folder)]).encode() + b"\n")
        self.channel.settimeout(60)
        try:
            text = self.channel.makefile("rb").readline()
            report = json.loads(text) if text else {"verdict": f"the host died ({self.end()})", "kept": False}
        except TimeoutError:
            report = {"verdict": "the host hung", "kept": False}
        if report["verdict"]:
            report["seen before"] = self.seen
            self.end()
        self.seen.append(payload["name"])
        return report

    def end(self) -> str:
        """How it ended. One that does not end by itself, when nothing more comes, is killed."""
        if Host.living is not self:
            return "ended"
        Host.living = None
        self.channel.close()
        ended = (0, 0)
        until = time.monotonic() + 10
        while ended[0] == 0 and time.monotonic() < until:
            ended = os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.01)
        if ended[0] == 0:
            os.kill(self.pid, signal.SIGKILL)
            ended = os.waitpid(self.pid, 0)
        return f"wait status {ended[1]}"


def serve(channel: socket.socket, layers: Sequence[str]) -> NoReturn:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (HOST_SPACE, HOST_SPACE))
        options: dict[str, Any] = {"layers": layers, "cell_timeout": LIMIT, "memory": "512m"}
        with rlm_sandbox.LocalSandbox(**options) as witness:
            assert witness.execute(WITNESS, timeout=AT_EASE).value == EXPECTED
            for line in channel.makefile("rb"):
                payload, folder = json.loads(line)
                try:
                    report = attack(payload, options, witness, Path(folder))
                except BaseException as error:
                    report = {"verdict": f"the host raised {type(error).__name__}: {error}", "kept": False}
                channel.sendall(json.dumps(report).encode() + b"\n")
        rlm_sandbox.shutdown()
    finally:
        os._exit(0)


def attack(
    payload: dict[str, Any], options: dict[str, Any], witness: rlm_sandbox.LocalSandbox, folder: Path
) -> dict[str, Any]:
    """Run the payload in a new session, beside one that lives on: neither that one nor the next new one may change."""
    secret, marker = folder / "secret.txt", folder / "marker"
    secret.write_text("CANARY-5f2c91")
    functions = {"llm_query": lambda prompt: f"echo {prompt[:20] if isinstance(prompt, str) else type(prompt)}"}
    with rlm_sandbox.LocalSandbox(**options) as box:
        before = box.execute(f"kept = 41\n{WITNESS}", timeout=AT_EASE)
        assert before.value == EXPECTED, before
        box.set("P", str(secret))
        box.set("M", str(marker))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        size, began = memory(), time.monotonic()
        cell = box.execute(payload["code"], functions=functions)
        took, grown = time.monotonic() - began, peak_memory() - size
        shown = "\n".join(map(str, (cell.stdout, cell.value, cell.error, cell.final)))
        with contextlib.suppress(rlm_sandbox.SandboxError):  # the session is lost
            shown += str(sorted(box.names().items()))
        verdict = verdict_on(payload, cell, shown, marker)
        if took > BACK:
            verdict = verdict or f"the host was back after {took:.2f} s"
        if grown > GROWTH:
            verdict = verdict or f"the host grew by {grown >> 20} MB"
        after = witness.execute(WITNESS, timeout=AFTER)
        fresh = box.execute("kept", functions=functions, timeout=AFTER)
        if after.value != EXPECTED:
            verdict = verdict or f"another session changed: {after.value or after.error}"
        return {"verdict": verdict, "kept": fresh.value == "41", "status": cell.status, "seconds": took}


def verdict_on(payload: dict[str, Any], cell: rlm_sandbox.Cell, shown: str, marker: Path) -> str:
    """By effect: what a cell finds out about its own process is no escape."""
    json.dumps([cell.stdout, cell.value, cell.error, str(cell.final)])
    shown.encode("utf-8")
    if "CANARY-5f2c91" in shown or marker.exists():
        return "it escaped"
    if payload["kind"] == "spoof" and cell.ok:
        return "it forged a result"
    return ""


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> int:
    """`python tests/sandbox_harness.py CORPUS.json both|policy|confinement [NAME ...]` shows what was not stopped."""
    import tempfile

    layers = {"both": ("policy", "confinement"), "policy": ("policy",), "confinement": ("confinement",)}[arguments[1]]
    payloads = json.loads(Path(arguments[0]).read_text())["payloads"]
    chosen = [p for p in payloads if len(arguments) < 3 or p["name"] in arguments[2:]]
    failed = lost = 0
    for payload in chosen:
        with tempfile.TemporaryDirectory() as folder:
            report = judge(payload, layers, Path(folder))
        if report["verdict"] or len(chosen) < 4:
            print(f"{payload['kind']:8} {payload['name']}: {report}")
        elif not report["kept"]:
            print(f"{payload['kind']:8} {payload['name']}: variables lost")
        failed += bool(report["verdict"])
        lost += not report["kept"]
    end_host()
    print(f"{arguments[1]}: {len(chosen) - failed} of {len(chosen)} stopped; {lost} sessions lost their variables")
    return bool(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main(sys.argv[1:]))
