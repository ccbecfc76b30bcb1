"""The notebook of the examples in a real kernel, with a scripted model; the interrupt button."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import ROOT, need
from scripted import Request, Server, code

import rlm_viz

pytestmark = pytest.mark.slow


def analyst(request: Request) -> Any:
    asked = [m["content"] for m in request.messages if m["role"] == "user"][-1]
    if request.messages[-1]["role"] == "tool":
        return request.last
    if "not errors" in asked:
        return code("FINAL(len(lines) - len(errors))")
    source = "lines = context.splitlines()\nerrors = [line for line in lines if 'ERROR' in line]\n"
    return code(source + ("FINAL(len(lines))" if "Count the lines" in asked else "FINAL(len(errors))"))


@pytest.fixture
def kernel(openai: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client whose kernel finds the scripted server, in a copy of the examples."""
    need("import nbclient")
    need("import ipykernel")
    import nbclient
    import nbformat

    shutil.copytree(ROOT / "examples/data", workspace / "data")
    monkeypatch.setenv("IPYTHONDIR", str(workspace / "ipython"))
    book = nbformat.read(ROOT / "examples/notebook.ipynb", as_version=4)
    return nbclient.NotebookClient(book, timeout=60, resources={"metadata": {"path": str(workspace)}})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_of_the_examples_runs(kernel: Any, openai: Server) -> None:
    openai.script = analyst
    kernel.execute()
    cells = [cell for cell in kernel.nb.cells if cell.cell_type == "code"]
    text = (ROOT / "examples/data/app.log").read_text()
    errors, lines = text.count("ERROR"), len(text.splitlines())
    shown = next(output for output in cells[1].outputs if output.output_type == "execute_result").data
    assert shown["text/plain"] == shown["text/markdown"] == str(errors)
    assert "<script" not in shown["text/html"] and "<details" in shown["text/html"]
    assert cells[2].outputs[0].data["text/plain"].startswith(f"({errors}, 'answered'")
    assert [o.data["text/plain"] for o in cells[4].outputs if o.output_type == "execute_result"] == [str(errors)]
    last = [o.data["text/plain"] for o in cells[5].outputs if o.output_type == "execute_result"]
    assert last == [str(lines - errors)]
    progress = [o.data["text/plain"] for o in cells[1].outputs if o.output_type == "display_data"]
    assert len(progress) == 1 and progress[0].startswith("✓")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_interrupt_button_gives_a_keyboard_interrupt_and_keeps_what_was_done(
    kernel: Any, openai: Server, workspace: Path
) -> None:
    import nbformat

    openai.script = lambda request: code("x = 1") if request.turn == 1 else scripted.hang()
    sources = [
        "import os, pathlib, rlm\npathlib.Path('pid').write_text(str(os.getpid()))",
        "try:\n    rlm.complete('go')\nexcept KeyboardInterrupt:\n    print('stopped', rlm.last_result().total_calls)",
    ]
    kernel.nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])

    def press() -> None:
        openai.wait_for(2)
        os.kill(int((workspace / "pid").read_text()), signal.SIGINT)  # what the button of a local kernel does

    presser = threading.Thread(target=press)
    presser.start()
    kernel.execute()
    presser.join()
    assert [o.text for o in kernel.nb.cells[1].outputs if o.output_type == "stream"][-1] == "stopped 1\n"
    log = next((workspace / "logs").glob("*.jsonl"))
    assert json.loads(log.read_text().splitlines()[-1])["status"] == "interrupted"


def test_the_line_of_a_kernel_says_what_goes_on_and_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(rlm_viz, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    shown: list[str] = []

    class Handle:
        def update(self, line: dict[str, str], raw: bool) -> None:
            shown.append(line["text/plain"])

    def display(line: dict[str, str], **how: Any) -> Handle:
        shown.append(line["text/plain"])
        return Handle()

    line = rlm_viz.NotebookProgress(display)

    def happens(seconds: float, event: str, **fields: Any) -> None:
        now[0] += seconds
        line({"event": event, "trajectory_id": "t", "node": "n0", "depth": 0, **fields})

    happens(0, "start")
    happens(0, "progress", phase="loading", text="loading qwen\u202e.gguf (1.1 GB): 3 s")
    happens(1, "progress", phase="asking", kind="turn")
    happens(0.3, "progress", phase="reading", processed=1, total=4)
    happens(0.3, "progress", phase="reading", processed=2, total=4)
    happens(1, "text", delta="x" * 400)
    happens(1, "call", kind="turn", token_usage={"input": 1, "output": 0}, cost_usd=0.01)
    happens(1, "progress", phase="running", cell=1)
    happens(1, "progress", phase="subcalls", done=1, total=2)
    happens(0, "tool", code="1")
    happens(0, "end", status="answered")
    assert shown == [
        "… 0 ms · 0 calls · 0 tokens · $0 · depth 0 · loading qwen\\u202e.gguf (1.1 GB): 3 s",
        "… 1.0 s · 0 calls · 0 tokens · $0 · depth 0 · waiting for the model",
        "… 1.6 s · 0 calls · 0 tokens · $0 · depth 0 · reading the prompt 50%",
        "… 2.6 s · 0 calls · 0 tokens · $0 · depth 0 · writing 100 tok",
        "… 3.6 s · 1 call · 1 token · $0.010 · depth 0",
        "… 4.6 s · 1 call · 1 token · $0.010 · depth 0 · running cell 1",
        "… 5.6 s · 1 call · 1 token · $0.010 · depth 0 · 1 of 2 sub-calls",
        "✓ 5.6 s · 1 call · 1 token · $0.010 · depth 0",
    ]
