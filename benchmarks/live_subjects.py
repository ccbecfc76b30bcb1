"""One run of one subject, in a process and environment of its own: `python live_subjects.py SUBJECT <job.json`.

The job has `question`, `context`, `base_url`, `model`, `key` and `turns`. The last line printed is `RESULT` and a JSON
object: `answer`, `ended` (answered, limit, error), `message`, `seconds` (imports excluded), `version`, and for this
project `cells`, the number of cells that ran. Every project runs with its own defaults, except for the number of turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

JSON = dict[str, Any]
Run = Callable[[JSON], JSON]


def as_text(context: Any) -> str:
    """A context as it is pasted into a prompt, or given to a project that takes text only."""
    if isinstance(context, dict):
        return "\n\n".join(f"=== {name} ===\n{text}" for name, text in context.items())
    if isinstance(context, list):
        return "\n".join(item if isinstance(item, str) else json.dumps(item) for item in context)
    return str(context)


def pasted(job: JSON) -> str:
    return f"{as_text(job['context'])}\n\n{job['question']}"


def flat_rlm(protocol: str | None = None) -> Run:
    import rlm

    options: JSON = {"protocol": protocol} if protocol else {}

    def run(job: JSON) -> JSON:
        cells: list[str] = []

        def on_event(event: JSON) -> None:
            if event.get("event") == "tool" and event.get("code") is not None:
                cells.append(event["code"])

        server = {"model": job["model"], "base_url": job["base_url"], "api_key": job["key"]}
        limits = {"max_iterations": job["turns"]}
        try:
            with rlm.RLM(**server, **options, **limits, config=False, on_event=on_event) as client:
                result = client.completion(job["question"], job["context"])
        except rlm.LimitExceeded as error:
            return {"ended": "limit", "message": str(error), "cells": len(cells)}
        return {"answer": str(result.response), "cells": len(cells), "forced": getattr(result, "forced", False)}

    return run


def plain() -> Run:
    """The model alone, with the whole context in one prompt."""
    import requests

    def run(job: JSON) -> JSON:
        body = {"model": job["model"], "messages": [{"role": "user", "content": pasted(job)}]}
        key = {"Authorization": f"Bearer {job['key']}"}
        reply = requests.post(f"{job['base_url']}/chat/completions", json=body, headers=key, timeout=(10, None))
        if not reply.ok:
            return {"ended": "error", "message": reply.text[:500]}
        return {"answer": reply.json()["choices"][0]["message"]["content"]}

    return run


def rlms() -> Run:
    from rlm import RLM

    def run(job: JSON) -> JSON:
        server = {"model_name": job["model"], "base_url": job["base_url"], "api_key": job["key"]}
        rlm = RLM(backend="openai", backend_kwargs=server, max_iterations=job["turns"])
        try:
            return {"answer": str(rlm.completion(job["context"], root_prompt=job["question"]).response)}
        finally:
            rlm.close()

    return run


def dspy() -> Run:
    """With the interpreter that needs no download."""
    import dspy

    def run(job: JSON) -> JSON:
        lm = dspy.LM(f"openai/{job['model']}", api_base=job["base_url"], api_key=job["key"], cache=False)
        rlm = dspy.RLM("context, query -> answer", max_iters=job["turns"], interpreter_factory=dspy.LocalInterpreter)
        with dspy.context(lm=lm):
            return {"answer": str(rlm(context=job["context"], query=job["question"]).answer)}

    return run


def smolagents() -> Run:
    import smolagents

    def run(job: JSON) -> JSON:
        model = smolagents.OpenAIServerModel(job["model"], api_base=job["base_url"], api_key=job["key"])
        agent = smolagents.CodeAgent(tools=[], model=model, max_steps=job["turns"], verbosity_level=0)
        arguments = {"context": job["context"]}
        result = agent.run(job["question"], additional_args=arguments, return_full_result=True)
        return {"answer": str(result.output), "forced": result.state == "max_steps_error"}

    return run


def minrlm() -> Run:
    from minrlm import RLM

    def run(job: JSON) -> JSON:
        rlm = RLM(model=job["model"], api_key=job["key"], base_url=job["base_url"], max_iterations=job["turns"])
        return {"answer": str(rlm.completion(job["question"], as_text(job["context"])).response)}

    return run


SUBJECTS: dict[str, tuple[str, Callable[[], Run]]] = {  # distribution, and what makes the run once it is imported
    "flat-rlm": ("flat-rlm", flat_rlm),
    "flat-rlm-text": ("flat-rlm", lambda: flat_rlm("text")),
    "flat-rlm-tools": ("flat-rlm", lambda: flat_rlm("tools")),
    "plain": ("flat-rlm", plain),
    "rlms": ("rlms", rlms),
    "dspy": ("dspy", dspy),
    "smolagents": ("smolagents", smolagents),
    "minrlm": ("minrlm", minrlm),
}


def version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "this tree"


def main() -> None:
    # This folder has a mcp.py: it must not stand in for the package of that name.
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    job = json.load(sys.stdin)
    distribution, make = SUBJECTS[sys.argv[1]]
    run = make()
    start = time.perf_counter()
    try:
        result = {"ended": "answered", "message": "", **run(job)}
    except Exception as error:  # whatever ends a project's run is its result
        result = {"ended": "error", "message": f"{type(error).__name__}: {error}"[:500]}
    result["seconds"] = time.perf_counter() - start
    result["version"] = version_of(distribution)
    print("\nRESULT " + json.dumps(result), flush=True)
    os._exit(0)  # threads that a project has left must not hold the result back


if __name__ == "__main__":
    main()
