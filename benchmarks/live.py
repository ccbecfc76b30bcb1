"""`make live`: questions with known answers, put to a live model through this project and others.

    python benchmarks/live.py --base-url http://127.0.0.1:8080/v1 --model qwen2.5-coder --out live.jsonl
    python benchmarks/live.py --serve model.gguf --subjects flat-rlm,plain --seeds reporting --out live.jsonl
    python benchmarks/live.py --out live.jsonl --report --plot live.svg

Each run is one subject (live_subjects.py) on one task (live_tasks.py), in a process of its own. A recording proxy
between the process and the server counts tokens the same way for everyone, applies the same limits to everyone, and
keeps the real key to itself. One JSON line is written for each run; run the command again to do only what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bench
from live_subjects import SUBJECTS, pasted
from live_tasks import DATA_KINDS, GENERATION, KINDS, REPORTING, TUNING, Data, Task, score, tasks

JSON = dict[str, Any]
HERE = Path(__file__).parent
OWN = ("flat-rlm", "flat-rlm-text", "flat-rlm-tools", "plain")  # run by this Python on this tree
SEEDS = {"tuning": TUNING, "reporting": REPORTING}


# --- the recording proxy -------------------------------------------------------------------------------------------


@dataclass
class Usage:
    """What a run used, by the server's own count. `estimated` is the number of calls that came without one."""

    calls: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    estimated: int = 0
    refusals: list[str] = field(default_factory=list)  # the server's errors
    trouble: bool = False  # the server could not be reached, or refused the key or the rate

    def add(self, usage: JSON | None, sent: int, received: int) -> None:
        """One call; `sent` and `received` are characters, used where the server does not say."""
        self.calls += 1
        if not usage:
            self.estimated += 1
            usage = {"prompt_tokens": sent // 4, "completion_tokens": received // 4}
        self.input += usage.get("prompt_tokens") or usage.get("input_tokens") or 0
        self.output += usage.get("completion_tokens") or usage.get("output_tokens") or 0
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        self.cached += details.get("cached_tokens") or 0

    def refuse(self, status: int, text: str) -> None:
        self.refusals.append(f"{status}: {text[:300]}")
        self.trouble = self.trouble or status in (401, 402, 403, 429, 502, 503)


class Proxy(ThreadingHTTPServer):
    """A server on loopback that passes everything on to `upstream`, and counts. One for each run."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, key: str = "", *, max_output: int, temperature: float | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.upstream, self.key = urlsplit(upstream), key
        self.max_output, self.temperature = max_output, temperature
        self.usage, self.lock = Usage(), threading.Condition()
        self.connections: set[http.client.HTTPConnection] = set()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is printed: a subject that hangs up is no news."""

    def connect(self) -> http.client.HTTPConnection:
        secure = self.upstream.scheme == "https"
        connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(self.upstream.netloc)
        connection.connect()
        with self.lock:
            self.connections.add(connection)
        return connection

    def path_of(self, path: str) -> str:
        return self.upstream.path.rstrip("/") + path[3:] if path.startswith("/v1/") else path

    def adjusted(self, body: JSON) -> JSON:
        """The request with the limits that hold for everyone; a streamed reply is to end with its usage."""
        name = "max_completion_tokens" if "openai.com" in self.upstream.netloc else "max_tokens"
        asked = [body.pop(key, None) for key in ("max_tokens", "max_completion_tokens")]
        body[name] = min([*filter(None, asked), self.max_output])
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if body.get("stream"):
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body

    def close(self) -> None:
        """End everything in flight, so that the server stops writing for a subject that is gone, and count it."""
        self.shutdown()
        with self.lock:
            for connection in self.connections:
                hang_up(connection)
            self.lock.wait_for(lambda: not self.connections, 5)
        self.server_close()

    def __exit__(self, *_: object) -> None:
        self.close()


def hang_up(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):  # it may be closed already
        connection.sock.shutdown(socket.SHUT_RDWR)


class Relay(BaseHTTPRequestHandler):
    """One connection of a subject."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self.relay("GET", b"", None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.endswith("/chat/completions"):
            return self.relay("POST", raw, None)
        asked = json.loads(raw)
        wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        self.relay("POST", json.dumps(self.server.adjusted(asked)).encode(), wants_usage)

    def relay(self, method: str, body: bytes, wants_usage: bool | None) -> None:
        """Pass a request on and its reply back. `wants_usage` is None where the call is not one to be counted."""
        headers = {"Content-Type": "application/json"}
        if self.server.key:
            headers["Authorization"] = f"Bearer {self.server.key}"
        try:
            upstream = self.server.connect()
        except OSError as error:
            return self.refuse(str(error))
        try:
            upstream.request(method, self.server.path_of(self.path), body or None, headers)
            self.wait_for(upstream)
            self.pass_back(upstream.getresponse(), body, wants_usage)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            if wants_usage is not None:
                self.count(None, body, 0)
        finally:
            with self.server.lock:
                self.server.connections.discard(upstream)
                self.server.lock.notify_all()
            upstream.close()

    def wait_for(self, upstream: http.client.HTTPConnection) -> None:
        """Return when the server answers. ConnectionAbortedError if the subject hangs up before."""
        ready, _, _ = select.select([self.connection, upstream.sock], [], [])
        if upstream.sock not in ready:  # nobody sends a second request before the first is answered
            raise ConnectionAbortedError

    def pass_back(self, reply: http.client.HTTPResponse, body: bytes, wants_usage: bool | None) -> None:
        kind = reply.headers.get("Content-Type", "application/json")
        if kind.startswith("text/event-stream"):
            return self.pass_stream(reply, body, bool(wants_usage))
        data = reply.read()
        if wants_usage is not None:
            self.record(reply.status, data, body)
        self.start(reply.status, kind, {"Content-Length": str(len(data))})
        self.wfile.write(data)

    def record(self, status: int, data: bytes, body: bytes) -> None:
        if status >= 400:
            with self.server.lock:
                self.server.usage.refuse(status, data.decode("utf-8", "replace"))
            return
        try:
            usage = json.loads(data).get("usage")
        except ValueError:
            usage = None
        self.count(usage, body, len(data))

    def pass_stream(self, reply: http.client.HTTPResponse, body: bytes, wants_usage: bool) -> None:
        """Line by line. The chunk with the usage is kept back from a subject that did not ask for it."""
        usage, received, skip = None, 0, False
        self.start(reply.status, "text/event-stream", {"Transfer-Encoding": "chunked"})
        try:
            while line := reply.readline():
                chunk = event_of(line)
                usage = chunk.get("usage") or usage
                received += len(text_of(chunk))
                if skip and not line.strip():
                    skip = False  # the empty line after a chunk that was kept back
                elif skip := bool(chunk.get("usage")) and not chunk.get("choices") and not wants_usage:
                    continue
                else:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            self.count(usage, body, received)

    def count(self, usage: JSON | None, body: bytes, received: int) -> None:
        with self.server.lock:
            self.server.usage.add(usage, len(body), received)

    def start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def refuse(self, message: str) -> None:
        data = json.dumps({"error": {"message": f"the model's server cannot be reached: {message}"}}).encode()
        with self.server.lock:
            self.server.usage.refuse(502, message)
        self.start(502, "application/json", {"Content-Length": str(len(data))})
        self.wfile.write(data)


def event_of(line: bytes) -> JSON:
    """The JSON of a line of an event stream, or nothing."""
    with contextlib.suppress(ValueError):
        if line.startswith(b"data:") and isinstance(found := json.loads(line[5:]), dict):
            return found
    return {}


def text_of(chunk: JSON) -> str:
    deltas = [choice.get("delta") or {} for choice in chunk.get("choices") or []]
    return "".join(str(delta.get("content") or delta.get("tool_calls") or "") for delta in deltas)


# --- one run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What holds for every subject. Results with other limits are kept apart."""

    seconds: float = 300.0
    turns: int = 20
    output: int = 1024
    window: int = 16_384
    temperature: float | None = None


@dataclass(frozen=True)
class Target:
    base_url: str
    model: str
    key: str = ""


def run_once(subject: str, task: Task, target: Target, limits: Limits, keep: Path | None = None) -> JSON:
    """The result of one run: how it ended, the answer, and what it used."""
    job = {"question": task.question, "context": task.context, "model": target.model, "turns": limits.turns}
    usage = Usage()
    if subject == "plain" and len(pasted(job)) / 3 + limits.output > limits.window:
        result: JSON = {"ended": "does not fit", "seconds": 0.0}
    else:
        proxy = Proxy(target.base_url, target.key, max_output=limits.output, temperature=limits.temperature)
        with proxy, working_folder(keep) as folder:
            start = time.perf_counter()
            result = in_process(subject, {**job, "base_url": proxy.base_url, "key": "no-key"}, folder, limits.seconds)
            result.setdefault("seconds", time.perf_counter() - start)
        usage = proxy.usage
    result |= asdict(usage)
    if result.pop("trouble") and result["ended"] != "answered":
        result["ended"] = "trouble"
    return result


@contextlib.contextmanager
def working_folder(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="live-", ignore_cleanup_errors=True) as name:
            yield Path(name)


def in_process(subject: str, job: JSON, folder: Path, seconds: float) -> JSON:
    """Run a subject in its own process group. The group is killed at the time limit, and in any case at the end."""
    python, environment = interpreter_of(subject)
    command = [python, str(HERE / "live_subjects.py"), subject]
    environment = {**environment, "HOME": str(folder)}
    with tempfile.TemporaryFile("w+") as given, (folder / "output.txt").open("w+") as printed:
        json.dump(job, given)
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=printed, stderr=printed, cwd=folder, env=environment, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return {"ended": "timeout", "message": f"killed after {seconds:g} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        return result_in(printed.read())


def result_in(printed: str) -> JSON:
    found = re.findall(r"^RESULT (.*)$", printed, re.MULTILINE)
    if found:
        return dict(json.loads(found[-1]))
    return {"ended": "error", "message": "the process died: " + printed.strip()[-300:]}


def interpreter_of(subject: str) -> tuple[str, dict[str, str]]:
    """The Python that runs a subject, and its environment variables: no settings or keys of this machine."""
    if subject in OWN:
        path = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(bench.ROOT)}
        return sys.executable, {**path, "LANG": "C.UTF-8", "NO_PROXY": "127.0.0.1"}
    peer = next(one for one in bench.SUBJECTS if one.name == subject)
    return str(bench.python_of(peer)), bench.environment_of(peer)


# --- verdicts ------------------------------------------------------------------------------------------------------

# What a model writes when it means a call or code and not an answer.
MARKUP = re.compile(
    r"<tool_call>|<function=|\[TOOL_CALLS\]|<\|python_tag\|>|<\|channel\|>|```(python|py|repl|json|tool)"
    r'|^\s*\{\s*"(name|function|tool|code|action|arguments|parameters)"\s*:'
    r"|^\s*(import \w+|from \w+ import |print\(|FINAL(_VAR)?\(|llm_query\(|execute_code\(|for \w+ in .*:$|def \w+\()",
    re.MULTILINE,
)


def verdict_of(result: JSON, task: Task) -> tuple[str, float]:
    """right, wrong, markup, unread (wrong, and given before any code had run) or none; and the score."""
    answer = str(result.get("answer") or "")
    if result["ended"] != "answered" or not answer.strip():
        return "none", 0.0
    if MARKUP.search(answer):
        return "markup", 0.0
    found = score(answer, task)
    if found == 1:
        return "right", found
    return ("unread" if result.get("cells") == 0 else "wrong"), found


# --- results -------------------------------------------------------------------------------------------------------

IDENTITY = ("generation", "model", "limits", "subject", "task", "seed")


class Results:
    """The file of results: read whole, then appended to line by line. A torn line is left alone and done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        self.rows = [row for row in map(row_of, lines) if row]

    def add(self, row: JSON) -> None:
        with self.path.open("ab+") as file:
            torn = file.tell() > 0 and last_byte(self.path) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
        self.rows.append(row)

    def done(self) -> set[str]:
        return {identity(row) for row in self.rows if row["ended"] != "trouble"}


def last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def row_of(line: bytes) -> JSON | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    wanted = {*IDENTITY, "ended", "verdict", "score", "seconds", "input", "output", "cached", "calls", "estimated"}
    return row if isinstance(row, dict) and wanted <= set(row) else None


def identity(row: JSON) -> str:
    return json.dumps([row[name] for name in IDENTITY], sort_keys=True)


class Evaluation:
    """All the runs that were asked for and are not in the file yet, subject by subject."""

    def __init__(self, settings: argparse.Namespace, target: Target, data: Data | None) -> None:
        self.settings, self.target, self.data = settings, target, data
        names = [name for name in Limits.__dataclass_fields__ if getattr(settings, name) is not None]
        self.limits = Limits(**{name: getattr(settings, name) for name in names})
        self.results = Results(settings.out)

    def missing(self) -> Iterator[tuple[JSON, Task]]:
        done = self.results.done()
        common = {"generation": GENERATION, "model": self.target.model, "limits": asdict(self.limits)}
        for subject in self.settings.subjects:
            for seed in self.settings.seeds:
                for task in tasks(seed, self.data):
                    run = {**common, "subject": subject, "task": task.name, "seed": seed}
                    if task.name in self.settings.tasks and identity(run) not in done:
                        yield run, task

    def run(self) -> None:
        """Do what is missing. SystemExit where the server is in trouble three times in a row, or the cap is reached."""
        missing, troubles = list(self.missing()), 0
        say(f"{len(self.results.rows)} runs in {self.settings.out}, {len(missing)} to do")
        for number, (run, task) in enumerate(missing, 1):
            if self.settings.max_cost is not None and self.spent() >= self.settings.max_cost:
                raise SystemExit(f"stopped: {self.spent():.4f} USD spent; raise --max-cost and run again for the rest")
            row = self.one(run, task)
            say(f"[{number}/{len(missing)}] {row['subject']} {row['task']} {row['seed']}: {summary(row)}")
            troubles = troubles + 1 if row["ended"] == "trouble" else 0
            if troubles == 3:
                raise SystemExit(f"stopped: {row['refusals'][-1]}; run again for the rest")

    def one(self, run: JSON, task: Task) -> JSON:
        name = f"{run['subject']}-{run['task']}-{run['seed']}"
        keep = self.settings.keep / name if self.settings.keep else None
        result = run_once(run["subject"], task, self.target, self.limits, keep)
        verdict, points = verdict_of(result, task)
        answer = str(result.pop("answer", None) or "")[:2000]
        refusals = result.pop("refusals")[:3]
        row = {**run, **result, "answer": answer, "verdict": verdict, "score": points, "refusals": refusals}
        row["wanted"] = task.wanted
        self.results.add(row)
        return row

    def spent(self) -> float:
        return float(sum(cost_of(row, self.settings.prices) for row in self.results.rows))


def summary(row: JSON) -> str:
    answer = " ".join(row["answer"].split())[:80] or row.get("message", "")[:80]
    tokens = row["input"] + row["output"]
    return f"{row['verdict']} ({row['ended']}, {row['seconds']:.0f} s, {tokens:,} tokens) {answer}"


def cost_of(row: JSON, prices: list[float] | None) -> float:
    """USD, from prices per million tokens: input, output and, where it differs, cached input."""
    if not prices:
        return 0.0
    into, out, cached = (*prices, prices[0])[:3]
    return ((row["input"] - row["cached"]) * into + row["cached"] * cached + row["output"] * out) / 1e6


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- the report ----------------------------------------------------------------------------------------------------


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not n:
        return 0.0, 1.0
    z, share = 1.96, right / n
    middle, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - width) / (1 + z * z / n)), min(1.0, (middle + width) / (1 + z * z / n))


@dataclass(frozen=True)
class Line:
    """All runs of one subject."""

    subject: str
    rows: list[JSON]

    @property
    def verdicts(self) -> Counter[str]:
        return Counter(row["verdict"] for row in self.rows)

    @property
    def right(self) -> int:
        return self.verdicts["right"]

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, len(self.rows))

    def per_right(self, *names: str) -> float | None:
        """What all the runs used, divided by the right answers."""
        total = sum(row[name] for row in self.rows for name in names)
        return total / self.right if self.right else None

    def cost_per_right(self, prices: list[float] | None) -> float | None:
        return sum(cost_of(row, prices) for row in self.rows) / self.right if self.right else None


def lines_of(rows: list[JSON]) -> list[Line]:
    """A line for each subject; of runs that were done twice, the last counts. Trouble is no result."""
    last = {identity(row): row for row in rows if row["ended"] != "trouble"}
    found: dict[str, list[JSON]] = defaultdict(list)
    for row in last.values():
        found[row["subject"]].append(row)
    return [Line(name, found[name]) for name in SUBJECTS if name in found]


def markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def table(lines: list[Line], prices: list[float] | None = None) -> str:
    head = [
        "subject",
        "right",
        "95 %",
        "mean score",
        "tokens per right",
        "cached",
        "calls per run",
        "seconds per right",
    ]
    head += ["USD per right"] if prices else []
    body = []
    for line in lines:
        n, (low, high) = len(line.rows), line.interval
        total = sum(row["input"] for row in line.rows)
        cells = [line.subject, f"{line.right} of {n}", f"{low:.0%} to {high:.0%}"]
        cells += [f"{sum(row['score'] for row in line.rows) / n:.2f}", number(line.per_right("input", "output"))]
        cells += [f"{sum(row['cached'] for row in line.rows) / total:.0%}" if total else "–"]
        cells += [number(sum(row["calls"] for row in line.rows) / n, 1), number(line.per_right("seconds"))]
        body.append(cells + ([number(line.cost_per_right(prices), 4)] if prices else []))
    return markdown(head, body)


ENDS = ("answered", "limit", "error", "timeout", "does not fit")
WRONG = ("wrong", "markup", "unread", "none")


def ends_table(lines: list[Line]) -> str:
    """How the runs ended, and what was wrong with the answers that are not right."""
    body = []
    for line in lines:
        ends = Counter(row["ended"] for row in line.rows)
        estimated = sum(row["estimated"] for row in line.rows)
        counts = [*(ends[name] for name in ENDS), *(line.verdicts[name] for name in WRONG), estimated]
        body.append([line.subject, *(str(count) if count else "" for count in counts)])
    return markdown(["subject", *ENDS, *WRONG, "calls estimated"], body)


def kinds_table(lines: list[Line]) -> str:
    """Right answers of all, for each kind of task."""
    body = []
    for kind in (*KINDS, *DATA_KINDS):
        verdicts = [[row["verdict"] for row in line.rows if row["task"] == kind] for line in lines]
        if any(verdicts):
            body.append([kind, *(f"{found.count('right')}/{len(found)}" if found else "" for found in verdicts)])
    return markdown(["task", *(line.subject for line in lines)], body)


def report(rows: list[JSON], prices: list[float] | None, plot_path: Path | None) -> None:
    """The tables of each model and set of limits; with several, only the last is plotted."""
    groups: dict[str, list[JSON]] = defaultdict(list)
    for row in rows:
        groups[json.dumps([row["model"], row["generation"], row["limits"]], sort_keys=True)].append(row)
    for group in groups.values():
        lines, first = lines_of(group), group[0]
        seeds = sorted({row["seed"] for row in group})
        limits = ", ".join(f"{name} {value}" for name, value in first["limits"].items() if value is not None)
        print(f"\n{first['model']}; tasks of generation {first['generation']}, seeds {seeds}; {limits}\n")
        print(table(lines, prices), ends_table(lines), kinds_table(lines), sep="\n\n")
        versions = {row["subject"]: row["version"] for row in group if row.get("version")}
        print("\nversions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
        if plot_path:
            plot(lines, plot_path, first["model"])


def plot(lines: list[Line], path: Path, title: str) -> None:
    """Right answers with their intervals, and tokens per right answer, by subject. The same bytes each time."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "live"
    from matplotlib import pyplot

    names = [line.subject for line in lines]
    shares = [line.right / len(line.rows) for line in lines]
    spans = [(share - line.interval[0], line.interval[1] - share) for share, line in zip(shares, lines)]
    tokens = [line.per_right("input", "output") or 0 for line in lines]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 0.8 + 0.4 * len(lines)), sharey=True, layout="tight")
    colours = ["#1f6feb" if name in OWN[:3] else "#8c959f" for name in names]
    left.barh(names, shares, color=colours, xerr=[[max(0, a) for a, _ in spans], [max(0, b) for _, b in spans]])
    left.set(xlim=(0, 1), xlabel="share of right answers (95 % interval)", title=title)
    right.barh(names, tokens, color=colours)
    right.set(xlabel="tokens per right answer")
    left.invert_yaxis()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


# --- the command ---------------------------------------------------------------------------------------------------

SERVE = """
import json, os, sys
sys.path = [folder for folder in sys.path if folder]
import xllamacpp
how = json.loads(sys.stdin.readline())
params = xllamacpp.CommonParams()
params.model.path, params.api_keys, params.n_ctx = how["path"], [how["key"]], how["window"]
params.port, params.n_parallel, params.use_jinja, params.sampling.temp = 0, 1, True, 0.0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
server = xllamacpp.Server(params)
print("ADDRESS " + server.listening_address, flush=True)
sys.stdin.read()  # ends with its parent
"""


@contextlib.contextmanager
def served(path: Path, window: int) -> Iterator[Target]:
    """A model file behind a llama.cpp server on loopback, for as long as the block runs."""
    key = secrets.token_hex(16)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps({"path": str(path.resolve()), "key": key, "window": window}) + "\n")
            process.stdin.flush()
            address = next((line.split()[1] for line in process.stdout if line.startswith("ADDRESS ")), None)
            if not address:
                log.seek(0)
                raise SystemExit(f"{path} cannot be served: {log.read()[-500:].decode('utf-8', 'replace').strip()}")
            yield Target(f"{address}/v1", path.stem, key)
        finally:
            process.kill()


def some_of(*known: str) -> Any:
    def read(text: str) -> list[str]:
        words = text.split(",")
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; choose from {', '.join(known)}")
        return words

    return read


def seeds_in(text: str) -> tuple[int, ...]:
    return SEEDS.get(text) or tuple(int(word) for word in text.split(","))


def prices_in(text: str) -> list[float]:
    prices = [float(word) for word in text.split(",")]
    if len(prices) not in (2, 3):
        raise argparse.ArgumentTypeError("give IN,OUT or IN,OUT,CACHED in USD per million tokens")
    return prices


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base-url", metavar="URL", help="an OpenAI-compatible server")
    add("--model", metavar="NAME", help="the model's name there")
    add("--key-env", metavar="NAME", help="environment variable that holds the key (none)")
    add("--serve", type=Path, metavar="FILE.gguf", help="serve this model file instead (needs xllamacpp)")
    add("--subjects", type=some_of(*SUBJECTS), default=["flat-rlm"], metavar="LIST", help=", ".join(SUBJECTS))
    every = (*KINDS, *DATA_KINDS)
    add("--tasks", type=some_of(*every), default=list(every), metavar="LIST", help="kinds of task (all)")
    add("--seeds", type=seeds_in, default=TUNING, metavar="LIST", help="tuning, reporting, or numbers (tuning)")
    folder = os.environ.get("RLM_EVAL_DATA")
    add("--data", type=Path, default=folder, metavar="DIR", help="real data for some tasks ($RLM_EVAL_DATA)")
    add("--limit-seconds", dest="seconds", type=float, help="of one run (300)")
    add("--turns", type=int, help="of one run (20)")
    add("--max-output", dest="output", type=int, metavar="TOKENS", help="of one reply (1024)")
    add("--window", type=int, metavar="TOKENS", help="of the model; what does not fit is not given to `plain` (16384)")
    add("--temperature", type=float, help="sent with every request (what each subject sends)")
    add("--prices", type=prices_in, metavar="IN,OUT[,CACHED]", help="USD per million tokens")
    add("--max-cost", type=float, metavar="USD", help="start no run once all of them have cost this much")
    add("--out", type=Path, default=Path("live.jsonl"), metavar="FILE", help="results (live.jsonl)")
    add("--keep", type=Path, metavar="DIR", help="keep each run's output and journal here")
    add("--report", action="store_true", help="only show the tables of --out")
    add("--plot", type=Path, metavar="FILE.svg", help="needs matplotlib")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    settings = parser.parse_args(argv)
    if settings.max_cost is not None and not settings.prices:
        parser.error("--max-cost needs --prices")
    if not settings.report:
        if not settings.serve and not (settings.base_url and settings.model):
            parser.error("give --base-url and --model, or --serve FILE.gguf, or --report")
        try:
            evaluate(settings)
        except KeyboardInterrupt:
            say("interrupted; run again for the rest")
            return 130
    report(Results(settings.out).rows, settings.prices, settings.plot)
    return 0


def evaluate(settings: argparse.Namespace) -> None:
    data = Data.read(settings.data) if settings.data else None
    if not data and (left_out := [name for name in settings.tasks if name in DATA_KINDS]):
        say(f"left out without --data: {', '.join(left_out)}")
    for subject in bench.SUBJECTS:
        if subject.name in settings.subjects and subject.name not in OWN:
            bench.set_up(subject)
    with contextlib.ExitStack() as stack:
        if settings.serve:
            target = stack.enter_context(served(settings.serve, settings.window or Limits.window))
        else:
            target = Target(settings.base_url, settings.model, os.environ.get(settings.key_env or "", ""))
        Evaluation(settings, target, data).run()


if __name__ == "__main__":
    raise SystemExit(main())
