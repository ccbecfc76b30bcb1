"""The MCP server beside the official SDK's and rlm-runtime's, all through the official client, one after another.

    python benchmarks/mcp.py [--write docs/benchmarks-mcp.md]

Needs the clients of `.ci/mcp-clients`. Times are medians, in milliseconds; "never" is more than ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flat-rlm"
CLIENT = Path(os.environ.get("RLM_TEST_MCP", CACHE / "mcp")) / "client2" / "bin" / "python"
RUNTIME = CACHE / "bench" / "rlm-runtime-mcp"
NEVER = 10.0
QUIET = open(os.devnull, "w")  # noqa: SIM115

# The same tool on the official SDK: code runs in the server's own process, as its examples have it.
SDK_SERVER = """
import contextlib, io
from mcp.server.mcpserver import MCPServer
server, names = MCPServer("sdk"), {}
@server.tool()
def execute_python(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    return out.getvalue()
server.run("stdio")
"""
START = f"import sys; sys.path[0] = {str(ROOT)!r}; "
NO_SNAPSHOT = (
    START + "import functools, rlm_sandbox, rlm_mcp; "
    "rlm_sandbox.LocalSandbox = functools.partial(rlm_sandbox.LocalSandbox, snapshot=False); sys.exit(rlm_mcp.serve())"
)


class Subject(NamedTuple):
    name: str
    command: list[str]
    remark: str


def subjects(python: str) -> list[Subject]:
    ours = [python, "-c", START + "from rlm_cli import main; sys.exit(main())", "mcp-serve"]
    return [
        Subject("flat-rlm", ours, "confined process, variables survive a kill"),
        Subject("flat-rlm, no snapshot", [python, "-c", NO_SNAPSHOT], "confined process"),
        Subject(
            "official SDK",
            [str(CLIENT), "-c", SDK_SERVER],
            "exec in the server's process; what is cancelled there runs on",
        ),
        Subject("rlm-runtime", [str(RUNTIME / "bin" / "rlm"), "mcp-serve"], "RestrictedPython in the server's process"),
    ]


ROWS = {
    "connect": "spawn to the first tools/list",
    "first": "first call",
    "call": "a further call",
    "ping": "ping while code runs",
    "cancel": "cancel to the next answer",
    "exit": "stdin's end to the server's",
}


# --- in the client's environment ------------------------------------------------------------------------------------


async def measure(command: list[str], runs: int) -> dict[str, float | None]:
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    for _ in range(runs):
        await connect_and_leave(command, found)
    await cancel_and_ping(command, found)
    return {row: statistics.median(times) * 1000 if times else None for row, times in found.items()}


def client(command: list[str]) -> Any:
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    parameters = StdioServerParameters(command=command[0], args=command[1:])
    return Client(stdio_client(parameters, errlog=QUIET), mode="legacy")


async def connect_and_leave(command: list[str], found: dict[str, list[float]]) -> None:
    began = time.perf_counter()
    async with client(command) as session:
        await session.list_tools()
        found["connect"].append(time.perf_counter() - began)
        began = time.perf_counter()
        await session.call_tool("execute_python", {"code": "x = 0"})
        found["first"].append(time.perf_counter() - began)
        for _ in range(100):
            began = time.perf_counter()
            await session.call_tool("execute_python", {"code": "x = x + 1"})
            found["call"].append(time.perf_counter() - began)
        began = time.perf_counter()
    found["exit"].append(time.perf_counter() - began)


async def cancel_and_ping(command: list[str], found: dict[str, list[float]]) -> None:
    import anyio

    for endless in ("while True:\n    pass",) * 5:
        with anyio.move_on_after(NEVER):
            async with client(command) as session, anyio.create_task_group() as group:
                await session.call_tool("execute_python", {"code": "x = 0"})
                group.start_soon(session.call_tool, "execute_python", {"code": endless})
                await anyio.sleep(0.3)
                began = time.perf_counter()
                await session.session.send_ping()
                found["ping"].append(time.perf_counter() - began)
                group.cancel_scope.cancel()
                began = time.perf_counter()
                with anyio.CancelScope(shield=True), anyio.move_on_after(NEVER) as waited:
                    await session.call_tool("execute_python", {"code": "x = 1"})
                if not waited.cancelled_caught:
                    found["cancel"].append(time.perf_counter() - began)


# --- in ours --------------------------------------------------------------------------------------------------------


def set_up_runtime() -> None:
    if not (RUNTIME / "bin" / "rlm").exists():
        subprocess.run([sys.executable, "-m", "venv", str(RUNTIME)], check=True)
        packages = ["rlm-runtime[mcp]==2.1.3", "mcp<2"]
        subprocess.run(
            [str(RUNTIME / "bin" / "pip"), "install", "-qq", *packages], check=True, stderr=subprocess.DEVNULL
        )


def measured(subject: Subject, runs: int) -> dict[str, float | None]:
    arguments = [
        str(CLIENT),
        str(Path(__file__).resolve()),
        "--measure",
        json.dumps(subject.command),
        "--runs",
        str(runs),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    if done.returncode:
        print(f"{subject.name}: {done.stderr[-600:]}", file=sys.stderr)
        return {}
    found: dict[str, float | None] = json.loads(done.stdout)
    return found


def table(all_found: dict[str, dict[str, float | None]]) -> str:
    lines = ["| ms | " + " | ".join(all_found) + " |", "|---|" + "---:|" * len(all_found)]
    for row, title in ROWS.items():
        figures = [found.get(row) for found in all_found.values()]
        lines.append(f"| {title} | " + " | ".join("never" if f is None else f"{f:.2f}" for f in figures) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, help="put the table into this file too")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        import anyio

        print(json.dumps(anyio.run(measure, json.loads(options.measure), options.runs)))
        return
    set_up_runtime()
    chosen = subjects(sys.executable)
    text = table({subject.name: measured(subject, options.runs) for subject in chosen})
    text += "\n\n" + "\n".join(f"{subject.name}: {subject.remark}." for subject in chosen)
    print(text)
    if options.write:
        options.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its name is that of the client's package
    main()
