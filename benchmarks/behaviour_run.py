"""One run of one project for `behaviour.py`, in the project's own environment: reads its job on standard input.

    python behaviour_run.py SUBJECT PORT KEY RESULT_FILE < job.json

What a behaviour wishes for (a cap on sub-calls, a time limit …) becomes the project's own public option here, and only
here; a wish that a project has no option for ends the run with `{"lacks": …}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subjects import SUBJECTS

JSON = dict[str, Any]
LINE = "2026-11-02 12:00:00 INFO a line of an ordinary log, with a number at its end: 00000000\n"


# --- wishes, and each project's option for them --------------------------------------------------------------------
# cell_seconds: a cell is stopped after so long; where there is only a limit for the whole run, that one.
# dollars, subcalls: what the run may spend; log: a record on disk; system: instructions of the caller's own.


def local_interpreter(seconds: float) -> JSON:
    import dspy

    return {"interpreter_factory": lambda: dspy.LocalInterpreter(execution_timeout=seconds)}


def rlm_logger(folder: str) -> JSON:
    from rlm.logger import RLMLogger

    return {"logger": RLMLogger(log_dir=folder)}


FLAT: dict[str, Callable[[Any], JSON]] = {
    "cell_seconds": lambda n: {"cell_timeout": n},
    "dollars": lambda n: {"cost_budget_usd": n},
    "subcalls": lambda n: {"max_subcalls": n},
    "log": lambda folder: {"log_dir": folder},
    "system": lambda text: {"system": text},
    "text": lambda _: {"protocol": "text"},
}
RLMS: dict[str, Callable[[Any], JSON]] = {
    "cell_seconds": lambda n: {"max_timeout": n},
    "dollars": lambda n: {"max_budget": n},
    "log": rlm_logger,
    "system": lambda text: {"custom_system_prompt": text},
    "text": lambda _: {},
}
WISHES: dict[str, dict[str, Callable[[Any], JSON]]] = {
    "flat-rlm": FLAT,
    "flat-rlm docker": FLAT,
    "rlms": RLMS,
    "rlms isolated": RLMS | {"cell_seconds": lambda n: {"environment_kwargs": {"cell_timeout": n}}},
    "dspy": {
        "cell_seconds": local_interpreter,
        "subcalls": lambda n: {"max_llm_calls": n},
        "system": lambda text: {"instructions": text},
        "text": lambda _: {},
    },
    "smolagents": {
        "cell_seconds": lambda n: {"executor_kwargs": {"timeout_seconds": n}},
        "system": lambda text: {"instructions": text},
        "text": lambda _: {},
    },
    "minrlm": {
        "cell_seconds": lambda n: {"max_time_seconds": n},
        "subcalls": lambda n: {"max_sub_llm_calls": n},
        "log": lambda folder: {"log_dir": folder},
        "system": lambda text: {"system_prompt": text},
        "text": lambda _: {},
    },
    "rlm-runtime": {
        "cell_seconds": lambda n: {"config": {"docker_timeout": n}},  # the name notwithstanding: of every environment
        "dollars": lambda n: {"cost_budget_usd": n, "config": {"sub_calls_max_cost_per_session": n}},
        "subcalls": lambda n: {"max_subcalls": n, "config": {"sub_calls_max_per_turn": n}},
        "log": lambda folder: {"config": {"log_dir": folder}},
        "system": lambda text: {"system": text},
    },
}


def options(subject: str, wishes: JSON) -> JSON:
    found: JSON = {}
    for name, value in wishes.items():
        found |= WISHES[subject][name](value)
    return found


# --- contexts ------------------------------------------------------------------------------------------------------


def context(wanted: str | None) -> Any:
    """`megabytes N`, `mixed` (bytes and a set in a dict), `path` (of a file), or none."""
    if wanted is None:
        return None
    kind, _, size = wanted.partition(" ")
    if kind == "megabytes":
        return LINE * (int(size) * 1_000_000 // len(LINE))
    if kind == "mixed":
        return {"raw": b"\x00\xff", "tags": {"a", "b", "c"}}
    Path("context.txt").write_text(LINE * 10)
    return Path("context.txt").absolute()


# --- the run -------------------------------------------------------------------------------------------------------


def run(name: str, port: str, key: str, job: JSON) -> JSON:
    if lacking := [wish for wish in job["wishes"] if wish not in WISHES[name]]:
        return {"lacks": lacking[0]}
    subject = SUBJECTS[name](f"http://127.0.0.1:{port}/v1")
    try:
        answer = subject.run(key, context(job["context"]), **options(name, job["wishes"]))
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"answer": answer, "tokens": subject.tokens}


def main() -> None:
    name, port, key, path = sys.argv[1:]
    result = run(name, port, key, json.load(sys.stdin))
    Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
