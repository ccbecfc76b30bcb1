"""A real, small language model through the installed command, on a real llama.cpp server.

What such a model answers is luck; what is asserted is not: code ran, no markup is an answer, each run ends answered or
with the right error, its journal is whole, and a second run finds its prompt in the server's cache. The model file is
made by `.ci/fetch-model`; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CI, need

import rlm_viz

pytestmark = pytest.mark.live
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
MODEL = Path(os.environ.get("RLM_LIVE_MODEL") or CACHE / "rlm-live" / "qwen2.5-coder-1.5b.gguf")
SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.use_jinja, params.port = sys.argv[1], 8192, True, 0
params.sampling.temp = 0
server = xllamacpp.Server(params)  # it ends when nobody holds it
print(server.listening_address, flush=True)
sys.stdin.read()
"""
ORDERS = "order,customer,total\n" + "".join(f"{n},{'AB'[n % 3 == 0]},{n % 7}.50\n" for n in range(400))
LOG = "".join(f"2026-03-01 10:{n % 60:02} {'ERROR' if n % 9 == 0 else 'INFO'} job {n} ended\n" for n in range(900))
QUESTIONS = [
    ("What is the sum of the column total?", "orders.csv"),
    ("How many lines have the level ERROR?", "app.log"),
    ("Which customer has the most orders, and how many?", "orders.csv"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    need("import xllamacpp")
    if not MODEL.exists():
        (pytest.fail if CI else pytest.skip)(f"{MODEL} is not here (.ci/fetch-model makes it)")
    command = [sys.executable, "-c", SERVE, str(MODEL)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip() + "/v1"
        server.kill()


@pytest.fixture
def files(workspace: Path) -> Path:
    (workspace / "orders.csv").write_text(ORDERS)
    (workspace / "app.log").write_text(LOG)
    return workspace


def ask(*arguments: str) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """The exit status, the result and the journal of a run of the installed command."""
    command = [str(Path(sys.executable).with_name("rlm")), *arguments, "--json", "-q", "--timeout", "240"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290)
    result = json.loads(done.stdout)
    assert result["log"], result["error"]
    events, problems = rlm_viz.read(result["log"])
    assert problems == [], problems
    return done.returncode, result, events


def is_an_answer(text: str) -> bool:
    marks = ("```", '"name":', '"arguments"', "<tool_call", "execute_code", "import ", "print(", "<the answer>")
    return bool(text.strip()) and not any(mark in text for mark in marks)


@pytest.mark.parametrize(("question", "file"), QUESTIONS)
def test_a_question_is_answered_by_code_or_ends_in_the_right_error(
    url: str, files: Path, question: str, file: str
) -> None:
    code, result, events = ask(question, "-c", file, "-m", "local", "--base-url", url)
    cells = [event for event in events if event["event"] == "tool" and "code" in event]
    assert cells, "no code ran"
    assert events[0]["profile"] == "small"
    if code == 0:
        assert result["status"] == "answered" and is_an_answer(result["response"]), result["response"]
    else:
        assert (code, result["status"]) in ((3, "partial"), (1, "error")), result
        assert result["error"]["type"] in ("TimeoutExceeded", "MaxIterationsExceeded", "REPLExecutionError", "RLMError")


def test_a_second_run_finds_its_prompt_in_the_servers_cache(url: str, files: Path) -> None:
    for _ in range(2):
        _, _, events = ask("How many lines are there?", "-c", "app.log", "-m", "local", "--base-url", url)
    usage = next(event["token_usage"] for event in events if event["event"] == "call")
    assert usage["cached"] >= 0.6 * usage["input"], usage


def test_a_model_file_is_served_by_its_name(url: str, files: Path) -> None:
    code, result, _ = ask("How many lines have the level ERROR?", "-c", "app.log", "-m", str(MODEL))
    assert code in (0, 1, 3) and result["total_calls"] > 0
    assert code != 0 or is_an_answer(result["response"])
