"""One project under measurement, in its own environment: `python subjects.py SUBJECT PORT ROW` prints milliseconds.

Each subject is a class whose `run(key, context)` does one whole completion against the scripted model, answer checked.
Every subject runs with its defaults, but for limits that would end a scenario early; `options` are the project's own
and go before them. `behaviour.py` uses the same classes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

from model import ADDITIONS

# This folder has a mcp.py: it must not stand in for the package of that name.
sys.path.remove(os.path.dirname(os.path.abspath(__file__)))

MODEL = "gpt-4o-mini"
WARM_RUNS = 7
MANY_TURNS = 20
MEGABYTES = 100


# --- the subjects --------------------------------------------------------------------------------------------------


class Subject:
    speech = ""
    lacks: tuple[str, ...] = ()  # scenarios that it has no means for
    tokens: int | None = None  # spent in the last run, as the project itself reports it


class FlatRLM(Subject):
    speech = "flat-rlm"
    environment = "local"

    def __init__(self, url: str) -> None:
        from rlm import RLM

        self.rlm, self.url = RLM, url

    def run(self, key: str, context: Any = None, *, system: str | None = None, **options: Any) -> str:
        limits = {"max_subcalls": 100, "max_parallel": 64} | options
        server = {"model": MODEL, "backend": "openai", "base_url": self.url, "api_key": key}
        with self.rlm(environment=self.environment, config=False, **server, **limits) as rlm:
            result = rlm.completion("go", context, system=system)
        self.tokens = result.total_tokens
        return str(result.response)


class FlatRLMDocker(FlatRLM):
    environment = "docker"


class Rlms(Subject):
    speech = "rlms"
    environment = "local"
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, url: str) -> None:
        from rlm import RLM

        self.rlm, self.url = RLM, url

    def run(self, key: str, context: Any = None, *, environment_kwargs: Any = None, **options: Any) -> str:
        limits = {"max_depth": 2, "max_iterations": 50, "max_concurrent_subcalls": 64} | options
        rlm = self.rlm(
            backend="openai",
            backend_kwargs={"model_name": MODEL, "base_url": self.url, "api_key": key},
            environment=self.environment,
            environment_kwargs=self.options | (environment_kwargs or {}),
            **limits,
        )
        try:
            result = rlm.completion(context or "nothing", root_prompt="go")
        finally:
            rlm.close()
        usage = result.usage_summary
        self.tokens = usage.total_input_tokens + usage.total_output_tokens
        return str(result.response)


class RlmsIsolated(Rlms):
    environment = "ipython"
    options = {"kernel_mode": "subprocess"}  # noqa: RUF012


class Dspy(Subject):
    speech = "dspy"
    lacks = ("child",)

    def __init__(self, url: str) -> None:
        import dspy

        self.dspy, self.url = dspy, url

    def run(self, key: str, context: Any = None, *, instructions: str | None = None, **options: Any) -> str:
        lm = self.dspy.LM(f"openai/{MODEL}", api_base=self.url, api_key=key, cache=False)
        signature = self.dspy.Signature("context, query -> answer", instructions)
        limits = {"max_iters": 50, "max_llm_calls": 100, "interpreter_factory": self.dspy.LocalInterpreter} | options
        with self.dspy.context(lm=lm, track_usage=True):
            result = self.dspy.RLM(signature, **limits)(context=context or "nothing", query="go")
        self.tokens = sum(usage["total_tokens"] for usage in (result.get_lm_usage() or {}).values())
        return str(result.answer)


class Smolagents(Subject):
    speech = "smolagents"
    lacks = ("fan", "child")

    def __init__(self, url: str) -> None:
        import smolagents

        self.smolagents, self.url = smolagents, url

    def run(self, key: str, context: Any = None, **options: Any) -> str:
        model = self.smolagents.OpenAIServerModel(MODEL, api_base=self.url, api_key=key)
        agent = self.smolagents.CodeAgent(tools=[], model=model, max_steps=50, verbosity_level=0, **options)
        answer = agent.run("go", additional_args={"context": context} if context else None)
        self.tokens = agent.monitor.get_total_token_counts().total_tokens
        return str(answer)


class Minrlm(Subject):
    speech = "minrlm"
    lacks = ("child",)

    def __init__(self, url: str) -> None:
        from minrlm import RLM

        self.rlm, self.url = RLM, url

    def run(self, key: str, context: Any = None, **options: Any) -> str:
        rlm = self.rlm(model=MODEL, api_key=key, base_url=self.url, max_iterations=50, **options)
        result = rlm.completion("go", context or "")
        self.tokens = result.total_tokens
        return str(result.response)


class RlmRuntime(Subject):
    speech = "rlm-runtime"

    def __init__(self, url: str) -> None:
        import asyncio

        from rlm import RLM, RLMConfig
        from rlm.core.types import CompletionOptions

        self.asyncio, self.rlm, self.config, self.options, self.url = asyncio, RLM, RLMConfig, CompletionOptions, url

    def run(
        self,
        key: str,
        context: Any = None,
        *,
        system: str | None = None,
        config: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        os.environ |= {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": self.url, "OPENAI_API_BASE": self.url}
        limits = {"max_subcalls": 100, "max_depth": 60, "token_budget": 10**9, "tool_budget": 1000} | options
        rlm = self.rlm(
            model=f"openai/{MODEL}", config=self.config(**({"sub_calls_max_per_turn": 100} | (config or {})))
        )
        if context is not None:
            rlm.repl.set_context("context", context)
        result = self.asyncio.run(rlm.completion("go", system=system, options=self.options(**limits)))
        self.tokens = result.total_tokens
        return str(result.response)


SUBJECTS: dict[str, Callable[[str], Any]] = {
    "flat-rlm": FlatRLM,
    "flat-rlm docker": FlatRLMDocker,
    "rlms": Rlms,
    "rlms isolated": RlmsIsolated,
    "dspy": Dspy,
    "smolagents": Smolagents,
    "minrlm": Minrlm,
    "rlm-runtime": RlmRuntime,
}


# --- the rows ------------------------------------------------------------------------------------------------------


class Timed(NamedTuple):
    """A whole run in milliseconds, and when the requests of its nodes reached the model, counted from its start."""

    whole: float
    arrivals: list[float]
    sent: int

    @property
    def between(self) -> float:
        """From the first request to the last: the work in between, without start and end of a run."""
        return self.arrivals[-1] - self.arrivals[0]


class Measure:
    def __init__(self, name: str, port: int) -> None:
        self.port = port
        self.subject = SUBJECTS[name](f"http://127.0.0.1:{port}/v1")
        self.runs = 0

    def once(self, scenario: str, count: int = 1, context: str | None = None) -> Timed:
        """One whole run; one that does not give the right answer is no measurement."""
        if scenario in self.subject.lacks:
            raise SystemExit("there is no such thing")
        self.runs += 1
        name = f"{os.getpid()}-{self.runs}"
        start = time.perf_counter()
        answer = self.subject.run(f"{self.subject.speech}:{name}:{scenario}:{count}", context)
        whole = (time.perf_counter() - start) * 1000
        if (right := self.right(scenario, context)) not in answer:
            raise SystemExit(f"the answer was {answer[:300]!r}, not {right}")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/runs/{name}") as reply:
            told = json.load(reply)
        return Timed(whole, [(arrival - start) * 1000 for arrival in told["arrivals"]], told["bytes"])

    def several(self, scenario: str, count: int = 1, context: str | None = None, runs: int = WARM_RUNS) -> list[Timed]:
        self.once(scenario, count, context)
        return [self.once(scenario, count, context) for _ in range(runs)]

    def right(self, scenario: str, context: str | None) -> str:
        fan = "yes" if self.subject.speech == "rlm-runtime" else "64"
        known = {"turns": "done", "fan": fan, "child": "child 1" if fan == "yes" else "yes", "add": "499999500000"}
        return known.get(scenario) or str(len(context or ""))


def cold(measure: Measure) -> dict[str, float]:
    return {"cold": measure.once("turns", 0).whole}


def turns(measure: Measure) -> dict[str, float]:
    one = min(run.whole for run in measure.several("turns", 0))
    many = measure.several("turns", MANY_TURNS)
    # Not from the first request, which waits for the worker: what starting one costs is in the rows above.
    each = min(run.arrivals[-1] - run.arrivals[1] for run in many) / (MANY_TURNS - 1)
    return {"warm": one, "turn": each, "bytes": many[0].sent}


def added(measure: Measure, scenario: str) -> float:
    """What a cell of the scenario adds to a run, beside one that prints a number; nothing, where that costs more."""
    plain = min(run.between for run in measure.several("turns", 1))
    return max(0.0, min(run.between for run in measure.several(scenario)) - plain)


def fan(measure: Measure) -> dict[str, float]:
    return {"fan": added(measure, "fan")}


def context(measure: Measure) -> dict[str, float]:
    """Until the cell that looks at it has ended, beside the same with a context of one line."""
    line = "2026-11-02 12:00:00 INFO a line of an ordinary log, with a number at its end: 00000000\n"
    text = line * (MEGABYTES * 1_000_000 // len(line))
    small = min(run.arrivals[1] for run in measure.several("context", context=line, runs=4))
    return {"context": min(run.arrivals[1] for run in measure.several("context", context=text, runs=2)) - small}


def child(measure: Measure) -> dict[str, float]:
    return {"child": added(measure, "child")}


def add(measure: Measure) -> dict[str, float]:
    source = compile(ADDITIONS, "native", "exec")
    native = min(native_run(source) for _ in range(WARM_RUNS))
    return {"add": added(measure, "add") / native}


def native_run(source: Any) -> float:
    start = time.perf_counter()
    exec(source, {})
    return (time.perf_counter() - start) * 1000


ROWS: dict[str, Callable[[Measure], dict[str, float]]] = {
    "cold": cold,
    "turns": turns,
    "fan": fan,
    "context": context,
    "child": child,
    "add": add,
}


def main() -> None:
    name, port, row = sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="flat-rlm-bench-")
    os.chmod(folder, 0o755)  # a container of root's runs as nobody, and reads it
    os.chdir(folder)
    print("RESULT " + json.dumps(ROWS[row](Measure(name, int(port)))))


if __name__ == "__main__":
    main()
