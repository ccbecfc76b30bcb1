"""Long inputs, known answers: a model alone beside the same model in an RLM, at 8k to 10M tokens.

    python benchmarks/longcontext.py --model gpt-4o-mini --lengths 8k,64k,256k --samples 3 --max-cost 2
    python benchmarks/longcontext.py --scripted                       # no key, no network: shows that all of it works

Three tasks in the manner of published benchmarks, made here from a seed (docs/evaluation.md says where they come from
and how they differ): a needle in a haystack (constant work), counts over classified entries (linear), and pairs of
users (quadratic). One JSON line for each run in `--out`; run again, it does only what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the tree's own modules, not what is installed

from longtasks import CHARACTERS_PER_TOKEN, GENERATOR, TASKS, Sample, sample, score  # noqa: E402
from reader import MODEL  # noqa: E402

import rlm  # noqa: E402
import rlm_backends  # noqa: E402

JSON = dict[str, Any]
METHODS = ("plain", "rlm")
LENGTHS = "8k,32k,128k,512k"
SCRIPTED_LENGTHS = "8k,16k,32k,64k,128k,256k,512k,1M,2M,4M,10M"  # they cost nothing there


# --- one run -------------------------------------------------------------------------------------------------------

FINAL = ("answered", "refused", "limit", "failed")  # what counts as a result; anything else is done again


class Outcome:
    """What a run came to. What it used is added up as it goes, so that an interrupted run's spending is known too."""

    def __init__(self) -> None:
        self.status = "interrupted"
        self.response = ""
        self.stop_reason: str | None = None  # of a plain answer: "length" where it was cut
        self.error: JSON | None = None
        self.calls = 0
        self.tokens = {"input": 0, "output": 0, "cached": 0}
        self.cost: float | None = 0.0
        self.started = time.perf_counter()
        self.seconds = 0.0

    def spend(self, usage: JSON, cost: float | None) -> None:
        self.calls += 1
        for name in self.tokens:
            self.tokens[name] += int(usage.get(name) or 0)
        self.cost = None if cost is None or self.cost is None else self.cost + cost

    def hear(self, event: JSON) -> None:
        if event.get("event") == "call":
            self.spend(event["token_usage"], event["cost_usd"])

    def fail(self, error: BaseException, timeout: float | None) -> None:
        cause = error if isinstance(error, rlm_backends.BackendError) else error.__cause__
        code = cause.code if isinstance(cause, rlm_backends.BackendError) else ""
        late = code == "timeout" and timeout is not None and time.perf_counter() - self.started >= timeout
        self.status = "limit" if late else status_of(error, code, getattr(cause, "status", None))
        hint = getattr(error, "hint", None)
        message = f"{error} ({hint})" if hint else str(error)
        self.error = {"type": type(error).__name__, "code": code, "message": message[:500]}


def status_of(error: BaseException, code: str, http_status: int | None) -> str:
    """What went wrong, sorted: the method's own failure is a result of 0, anybody else's has to be tried again."""
    if code in ("context_length", "refused") or http_status == 413:
        return "refused"
    if code in ("auth", "quota", "not_found", "config", "redirect") or isinstance(error, rlm.ConfigError):
        return "stop"
    if isinstance(error, rlm.LimitExceeded):
        return "limit"
    if isinstance(error, (rlm.ProviderError, rlm.SandboxError, rlm_backends.BackendError)):
        return "trouble"
    return "failed"


def ask_plain(client: rlm.RLM, task: Sample, outcome: Outcome, most: int) -> None:
    """Everything in one prompt: the text, then the question."""
    backend = client.backend
    seconds = client.options.timeout_seconds
    reply = backend.complete(
        [{"role": "user", "content": f"{task.context}\n{task.question}"}],
        max_tokens=min(most, backend.max_output or most),
        deadline=time.monotonic() + seconds if seconds else None,
    )
    outcome.spend(reply.usage, reply.cost_usd)
    outcome.response, outcome.stop_reason = reply.text, reply.stop_reason


def ask_rlm(client: rlm.RLM, task: Sample, outcome: Outcome, most: int) -> None:
    """The question as the prompt, the text as `context`."""
    outcome.response = str(client.completion(task.question, task.context))


ASK = {"plain": ask_plain, "rlm": ask_rlm}


def run_once(outcome: Outcome, method: str, task: Sample, options: JSON, most: int) -> None:
    """One run to its end, whatever end that is: `outcome` tells. Only an interrupt comes through."""
    try:
        with rlm.RLM(**options, config=False, on_event=outcome.hear) as client:
            ASK[method](client, task, outcome, most)
        outcome.status = "answered"
    except (rlm.RLMError, rlm_backends.BackendError) as error:
        outcome.fail(error, options.get("timeout_seconds"))
    finally:
        outcome.seconds = time.perf_counter() - outcome.started


# --- results -------------------------------------------------------------------------------------------------------

CONFIGURATION = ("model", "sub_model", "generator", "characters_per_token")
IDENTITY = (*CONFIGURATION, "task", "length", "seed", "method")
NUMBER = (int, float)
SHAPE: dict[str, Any] = {
    "model": str,
    "sub_model": (str, type(None)),
    "generator": int,
    "characters_per_token": NUMBER,
    "task": str,
    "length": int,
    "seed": int,
    "method": str,
    "status": str,
    "score": NUMBER,
    "cost_usd": (*NUMBER, type(None)),
    "seconds": NUMBER,
    "tokens": dict,
}


class Results:
    """The file of results: read whole, added to line by line. A torn last line is left behind, not built upon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[JSON] = []
        self.unreadable = 0
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            self._take(line)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if is_result(row):
            self.rows.append(row)
        else:
            self.unreadable += 1

    def add(self, row: JSON) -> None:
        with self.path.open("ab+") as file:
            torn = file.tell() > 0 and _last_byte(self.path) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def require_writable(self) -> None:
        """OSError now, not after the first run is paid for."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.open("ab").close()

    def done(self) -> set[tuple[Any, ...]]:
        return {identity(row) for row in self.rows if row["status"] in FINAL}

    def spent(self) -> float:
        return float(sum(row["cost_usd"] or 0.0 for row in self.rows))


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def is_result(row: Any) -> bool:
    if not isinstance(row, dict) or not all(name in row and isinstance(row[name], SHAPE[name]) for name in SHAPE):
        return False
    return all(isinstance(row["tokens"].get(name), int) for name in ("input", "output"))


def identity(row: JSON) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)


# --- the evaluation ------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The evaluation ends before its end; what is done is in the file."""


class Evaluation:
    """All runs that were asked for and are not in the file yet, shortest first."""

    def __init__(self, settings: argparse.Namespace, options: JSON, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.options = options
        self.say = say
        self.results = Results(Path(settings.out))
        self.results.require_writable()
        self.troubles = 0  # in a row
        with rlm.RLM(**options, config=False) as client:
            self.model = client.backend.model
            self.window = client.backend.window
            self.provider = client.backend.provider
        if settings.max_cost is not None:
            for model in filter(None, (self.model, options.get("sub_model"))):
                if self.price(model, 1000, 1000) is None:
                    hint = f"--prices '{{\"{model}\": [1.0, 4.0]}}', in USD per million tokens"
                    raise rlm.ConfigError(f"the price of {model!r} is not known, so --max-cost cannot hold", hint=hint)

    def price(self, model: str, into: int, out: int) -> float | None:
        usage = {"input": into, "output": out}
        cost: float | None = rlm_backends.cost_of(model, usage, self.options.get("prices"), self.provider)
        return cost

    def plan(self) -> Iterator[JSON]:
        """The identity of each run, in order."""
        settings = self.settings
        for length, seed, task, method in itertools.product(
            settings.lengths, range(settings.first, settings.first + settings.samples), settings.tasks, settings.methods
        ):
            yield {
                "generator": GENERATOR,
                "characters_per_token": settings.characters_per_token,
                "model": self.model,
                "sub_model": self.options.get("sub_model"),
                "task": task,
                "length": length,
                "seed": seed,
                "method": method,
            }

    def run(self) -> None:
        """Do what is missing. Stopped says why if that cannot be all."""
        done = self.results.done()
        missing = [run for run in self.plan() if identity(run) not in done]
        if self.results.unreadable:
            self.say(f"{self.results.unreadable} lines of {self.results.path} are no results, and are left as they are")
        self.say(f"{len(self.results.rows)} runs in {self.results.path}, {len(missing)} to do")
        for name, group in itertools.groupby(missing, key=lambda run: (run["task"], run["length"], run["seed"])):
            task = sample(*name, self.settings.characters_per_token)  # one in memory at a time
            for run in group:
                self.one(run, task)
        if left := len(missing) - len({identity(run) for run in missing} & self.results.done()):
            raise Stopped(f"{left} runs have no result, for reasons that are not the model's")

    def one(self, run: JSON, task: Sample) -> None:
        left = self.left(run["method"], task)
        options = {**self.options, **limits_for(run["length"], self.options)}
        if left is not None:
            own = options.get("cost_budget_usd")
            options["cost_budget_usd"] = left if own is None else min(own, left)
        outcome = Outcome()
        try:
            run_once(outcome, run["method"], task, options, self.settings.max_output)
        except KeyboardInterrupt:
            self.record(run, task, outcome)
            raise
        if left is not None and options["cost_budget_usd"] == left and self._ran_dry(outcome):
            outcome.status = "stop"
        self.record(run, task, outcome)
        self.troubles = self.troubles + 1 if outcome.status == "trouble" else 0
        if outcome.status == "stop" or self.troubles == 3:
            raise Stopped((outcome.error or {}).get("message", ""))

    def _ran_dry(self, outcome: Outcome) -> bool:
        return outcome.status == "limit" and (outcome.error or {}).get("type") == "CostBudgetExhausted"

    def left(self, method: str, task: Sample) -> float | None:
        """What --max-cost leaves, None without it. Stopped if a run that cannot stop by itself could cost more."""
        if self.settings.max_cost is None:
            return None
        left = float(self.settings.max_cost - self.results.spent())
        size = rlm_backends.estimate_tokens([{"content": task.question}, {"content": task.context}])
        size = min(size, self.window or size)  # nobody bills for more than the window
        most = self.price(self.model, size, self.settings.max_output) or 0.0
        if left <= 0 or (method == "plain" and most > left):
            raise Stopped(f"--max-cost: ${left:.4f} is left, and the next run could cost ${most:.4f}")
        return left

    def record(self, run: JSON, task: Sample, outcome: Outcome) -> None:
        row = {
            **run,
            "kind": task.kind,
            "status": outcome.status,
            "score": score(task, outcome.response) if outcome.status == "answered" else 0.0,
            "calls": outcome.calls,
            "tokens": outcome.tokens,
            "cost_usd": outcome.cost,
            "seconds": round(outcome.seconds, 3),
            "stop_reason": outcome.stop_reason,
            "answer": outcome.response[:500],
            "expected": str(task.expected)[:500],
            "error": outcome.error,
            "ended": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "version": rlm.__version__,
        }
        self.results.add(row)
        cost = "" if outcome.cost is None else f" ${outcome.cost:.4f}"
        why = f" ({outcome.error['message'][:100]})" if outcome.error else ""
        self.say(
            f"{short(run['length']):>5} {run['task']:<6} {run['seed']} {run['method']:<5} {outcome.status} "
            f"{row['score']:.2f} {outcome.seconds:.1f} s{cost}{why}"
        )


def limits_for(length: int, given: JSON) -> JSON:
    """Limits that grow with the input, where the caller has set none: a run is to end by its own lights."""
    room = {"token_budget": max(1_000_000, 5 * length), "max_subcalls": max(50, length // 2000)}
    return {name: value for name, value in room.items() if given.get(name) is None}


# --- what came out -------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One method at one length, over its samples."""

    length: int
    method: str
    n: int
    accuracy: float
    low: float
    high: float
    by_task: dict[str, float]
    tokens: float
    cost: float | None
    seconds: float
    refused: int


def wilson(mean: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share. For scores between 0 and 1 it is on the wide side: nothing varies more."""
    middle = mean + z * z / (2 * n)
    spread = z * math.sqrt(max(0.0, mean * (1 - mean)) / n + z * z / (4 * n * n))
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return max(0.0, min(low, mean)), min(1.0, max(high, mean))  # at the ends rounding would leave the mean outside


def by_configuration(rows: list[JSON]) -> dict[str, list[Line]]:
    """What is compared, by what must be equal to be compared: models, generator, measure of length."""
    found: dict[str, list[JSON]] = {}
    for row in rows:
        name = row["model"] + (f" with {row['sub_model']} for sub-calls" if row["sub_model"] else "")
        name += "" if row["generator"] == GENERATOR else f", samples of generation {row['generator']}"
        measure = row["characters_per_token"]
        name += "" if measure == CHARACTERS_PER_TOKEN else f", {measure:g} characters a token"
        found.setdefault(name, []).append(row)
    return {name: lines for name, rows in found.items() if (lines := lines_of(rows))}


def lines_of(rows: list[JSON]) -> list[Line]:
    """One line for each length and method of a configuration; the last result of a run counts."""
    last = {identity(row): row for row in rows if row["status"] in FINAL}
    groups: dict[tuple[int, str], list[JSON]] = {}
    for row in last.values():
        groups.setdefault((row["length"], row["method"]), []).append(row)
    return [_line(*key, groups[key]) for key in sorted(groups)]


def _line(length: int, method: str, rows: list[JSON]) -> Line:
    def mean(values: list[Any]) -> float:
        return float(sum(values) / len(values))

    accuracy = mean([row["score"] for row in rows])
    tasks = {task: [row["score"] for row in rows if row["task"] == task] for task in TASKS}
    costs = [row["cost_usd"] for row in rows]
    return Line(
        length,
        method,
        len(rows),
        accuracy,
        *wilson(accuracy, len(rows)),
        by_task={task: mean(scores) for task, scores in tasks.items() if scores},
        tokens=mean([row["tokens"]["input"] + row["tokens"]["output"] for row in rows]),
        cost=None if None in costs else mean(costs),
        seconds=mean([row["seconds"] for row in rows]),
        refused=sum(row["status"] == "refused" for row in rows),
    )


def table(lines: list[Line]) -> str:
    """The lines as a Markdown table."""
    head = "| tokens | method | runs | accuracy (95 %) | needle | counts | pairs | used | cost | seconds | refused |"
    rows = [head, "| ---: | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for line in lines:
        tasks = [f"{line.by_task[task]:.2f}" if task in line.by_task else "–" for task in TASKS]
        cost = "unknown" if line.cost is None else f"${line.cost:.4f}"
        cells = [short(line.length), line.method, str(line.n), f"{line.accuracy:.2f} ({line.low:.2f}–{line.high:.2f})"]
        cells += [*tasks, f"{line.tokens:,.0f}", cost, f"{line.seconds:.1f}", str(line.refused or "")]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def short(length: int) -> str:
    """8000 -> 8k, 10000000 -> 10M."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if length >= size and length % (size // 10) == 0:
            return f"{length / size:g}{unit}"
    return str(length)


# Colour, name, and a shift along the axis: where both are right, both are to be seen.
LOOKS = {"plain": ("#b3551d", "the model alone", 0.97), "rlm": ("#1f5fa8", "in an RLM", 1.03)}


def plot(lines: list[Line], path: Path, title: str) -> None:
    """Accuracy, and cost (or tokens, where a price is unknown), against length, as an SVG with its labels on it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    priced = all(line.cost is not None for line in lines) and any(line.cost for line in lines)
    with plt.rc_context({"svg.hashsalt": "longcontext", "font.size": 10}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
        for method in METHODS:
            own = [line for line in lines if line.method == method]
            _draw_accuracy(left, own)
            _draw_use(right, [(line, line.cost if priced else line.tokens) for line in own])
        left.set(ylim=(-0.16, 1.16), yticks=[0, 0.25, 0.5, 0.75, 1], title="accuracy, with 95 % intervals")
        right.set_title(f"mean {'cost' if priced else 'tokens'} of a run")
        right.set_yscale("log")
        right.yaxis.set_major_formatter(lambda value, _: f"${value:g}" if priced else f"{value:,.0f}")
        for axis in (left, right):
            _lengths(axis, sorted({line.length for line in lines}))
        figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _draw_accuracy(axis: Any, lines: list[Line]) -> None:
    """One method's curve; a hollow point: the provider refused every one of the inputs."""
    if not lines:
        return
    colour, name, shift = LOOKS[lines[0].method]
    x, y = [line.length * shift for line in lines], [line.accuracy for line in lines]
    spread = [[line.accuracy - line.low for line in lines], [line.high - line.accuracy for line in lines]]
    axis.errorbar(x, y, yerr=spread, color=colour, capsize=2, elinewidth=0.8, linewidth=1.5)
    for line, at, value in zip(lines, x, y):
        axis.plot(
            at, value, "o", color=colour, markersize=6, markerfacecolor="white" if line.refused == line.n else colour
        )
    if lines[-1].refused == lines[-1].n:
        name += " (hollow: input refused)"
    up = lines[0].method == "rlm"
    _label(axis, name, (x[-1], y[-1]), (6, 9 if up else -17), colour)


def _draw_use(axis: Any, points: list[tuple[Line, Any]]) -> None:
    """One method's curve, where it used anything: a refused input costs nothing."""
    points = [(line, used) for line, used in points if used]
    if not points:
        return
    colour, name, shift = LOOKS[points[0][0].method]
    x, y = [line.length * shift for line, _ in points], [used for _, used in points]
    axis.plot(x, y, "o-", color=colour, markersize=5, linewidth=1.5)
    _label(axis, name, (x[-1], y[-1]), (-9, 4), colour)


def _label(axis: Any, name: str, point: tuple[float, float], away: tuple[float, float], colour: str) -> None:
    """A curve's name, left of its last point, so many typographic points away from it, on a ground of its own."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
    axis.annotate(name, point, away, textcoords="offset points", ha="right", color=colour, bbox=ground)


def _lengths(axis: Any, lengths: list[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(lengths, [short(length) for length in lengths], rotation=45)
    axis.minorticks_off()
    axis.set_xlabel("tokens of input")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


# --- the command ---------------------------------------------------------------------------------------------------


def lengths_in(text: str) -> list[int]:
    """ "8k,1M" as numbers, ascending."""
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmM]?)", word.strip())
        size = int(float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]) if match else 0
        if not 1000 <= size <= 50_000_000:
            raise argparse.ArgumentTypeError(f"a length is 1k to 50M tokens, not {word.strip()!r}")
        found.append(size)
    return sorted(set(found))


def some_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return [word for word in known if word in words]

    return read


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0, not {text!r}")
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1, not {text!r}")
    return number


def count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return int(text)


def price_list(text: str) -> JSON:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError('{"model": [in, out]} in USD per million tokens')
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_argument_group("what is run")
    what.add_argument("--tasks", type=some_of(TASKS), default=list(TASKS), metavar="LIST", help=", ".join(TASKS))
    what.add_argument("--methods", type=some_of(METHODS), default=list(METHODS), metavar="LIST", help="plain, rlm")
    what.add_argument("--lengths", type=lengths_in, metavar="LIST", help=f"1k to 50M tokens ({LENGTHS})")
    what.add_argument("--samples", type=count, default=3, help="of each task at each length (3)")
    what.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first of them (0)")
    what.add_argument("--characters-per-token", type=positive, default=CHARACTERS_PER_TOKEN, help="for lengths (4)")
    model = parser.add_argument_group("the model")
    model.add_argument("--model", help="as for rlm run -m")
    model.add_argument("--sub-model", help="model of the RLM's sub-calls (the same)")
    model.add_argument("--backend", default="auto")
    model.add_argument("--base-url")
    model.add_argument("--prices", type=price_list, metavar="JSON", help='{"model": [in, out]}, USD per million tokens')
    model.add_argument(
        "--env", dest="environment", choices=("local", "docker"), help="where an RLM's code runs (local)"
    )
    model.add_argument("--protocol", choices=("tools", "text"), help="how an RLM's model asks for code (what it can)")
    model.add_argument("--scripted", action="store_true", help="a scripted reader on loopback instead of a model")
    model.add_argument("--window", type=count, default=128_000, help="of the scripted reader, in tokens (128000)")
    model.add_argument(
        "--lapses", type=share, default=0.0, metavar="RATE", help="rate at which the scripted reader slips (0)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-cost", type=positive, metavar="USD", help="of the whole evaluation, earlier runs included"
    )
    limits.add_argument("--cost-budget", type=positive, metavar="USD", dest="cost_budget_usd", help="of one RLM run")
    limits.add_argument("--token-budget", type=count, help="of one RLM run (five times the length)")
    limits.add_argument("--max-subcalls", type=count, help="of one RLM run (one for each 2,000 tokens)")
    limits.add_argument("--max-iterations", type=count, help="turns of one RLM run (30)")
    limits.add_argument("--max-depth", type=int, help="of one RLM run (4)")
    limits.add_argument("--timeout", type=positive, dest="timeout_seconds", metavar="SECONDS", help="of one run")
    limits.add_argument("--max-output", type=count, default=16_384, help="tokens of a plain answer (16384)")
    limits.add_argument("--max-parallel", type=count, help="sub-calls in flight at once (16)")
    limits.add_argument("--max-retries", type=int, help="further attempts of a call that failed in passing (4)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--out", default="longcontext.jsonl", help="results, added to and read back")
    out.add_argument("--plot", type=Path, metavar="FILE.svg")
    out.add_argument("--log-dir", default="", help="keep the RLM runs' trajectories here (none)")
    out.add_argument("--report", action="store_true", help="only show what is in --out")
    return parser


PASSED_ON = (
    *("model", "sub_model", "backend", "base_url", "prices", "cost_budget_usd", "token_budget", "max_subcalls"),
    *(
        "environment",
        "protocol",
        "max_iterations",
        "max_depth",
        "timeout_seconds",
        "max_parallel",
        "max_retries",
        "log_dir",
    ),
)


@contextlib.contextmanager
def scripted_reader(window: int, lapses: float) -> Iterator[JSON]:
    """A reader in a process of its own, and the options that reach it."""
    command = [sys.executable, str(HERE / "reader.py"), "--window", str(window), "--lapses", str(lapses)]
    how: JSON = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # In a session of its own: Ctrl-C at the terminal is for the harness, which then ends its reader.
    with subprocess.Popen(command, start_new_session=True, **how) as process:
        assert process.stdin and process.stdout
        try:
            port = int(process.stdout.readline())
            name = f"{MODEL}{f', lapses {lapses:g}' if lapses else ''}"
            where = {"backend": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "api_key": "no-key-is-needed"}
            yield {"model": name, "prices": {MODEL: [1.0, 4.0]}, **where}
        finally:
            process.stdin.close()


def report(rows: list[JSON], plot_path: Path | None) -> None:
    """The table of each configuration, and its plot: beside the others', if there are several."""
    found = by_configuration(rows)
    for number, (name, lines) in enumerate(found.items(), 1):
        print(f"\n{name}\n\n{table(lines)}")
        if plot_path:
            made_up = (
                " (invented prices): what the harness does, not what a model can" if name.startswith(MODEL) else ""
            )
            path = plot_path if len(found) == 1 else plot_path.with_stem(f"{plot_path.stem}-{number}")
            plot(lines, path, name + made_up)
            print(f"\nplot: {path}")


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    settings = parser.parse_args(argv)
    if settings.lengths is None:
        settings.lengths = lengths_in(SCRIPTED_LENGTHS if settings.scripted else LENGTHS)
    if settings.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'flat-rlm[bench]'")
    if settings.report:
        if not Path(settings.out).exists():
            parser.error(f"there is no {settings.out} to report")
        report(Results(Path(settings.out)).rows, settings.plot)
        return 0
    options = {name: getattr(settings, name) for name in PASSED_ON if getattr(settings, name) is not None}
    with contextlib.ExitStack() as stack:
        # The results hold the answers: a model that may read files must not find them, nor anything else.
        nothing = stack.enter_context(tempfile.TemporaryDirectory(prefix="longcontext-"))
        options |= {"allowed_paths": [nothing], "docker_mount": "none"}
        reader = stack.enter_context(scripted_reader(settings.window, settings.lapses)) if settings.scripted else {}
        try:
            evaluation = Evaluation(
                settings, {**options, **reader}, lambda line: print(line, file=sys.stderr, flush=True)
            )
            return evaluate(evaluation)
        except (rlm.RLMError, OSError) as error:
            hint = getattr(error, "hint", None)
            print(f"longcontext: {error}{f' ({hint})' if hint else ''}", file=sys.stderr)
            return 2


def evaluate(evaluation: Evaluation) -> int:
    """0 when all is done, 3 when stopped before, 130 after Ctrl-C; the table of what is there in any case."""
    status = 0
    try:
        evaluation.run()
    except Stopped as reason:
        evaluation.say(f"stopped: {reason}; run again for the rest")
        status = 3
    except KeyboardInterrupt:
        evaluation.say("interrupted; run again for the rest")
        status = 130
    report(evaluation.results.rows, evaluation.settings.plot)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
