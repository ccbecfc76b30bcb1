# /// script
# requires-python = ">=3.10"
# dependencies = ["requests", "tomli; python_version < '3.11'"]
# ///
"""The options: one table behind the keywords of `RLM`, the keys of rlm.toml, the RLM_* variables and the flags.

    load_config({"model": "gpt-4o-mini"}).values["max_depth"]

`load_config` merges arguments, environment, the project's rlm.toml and the user's file, records where each value came
from, and checks types and ranges. A project file that the user has not trusted may set only harmless options.

Needs its sibling rlm_backends.py (the names of key variables).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _hashlib import HASH
if TYPE_CHECKING or not __package__:
    import rlm_backends
else:  # vendored into a package
    from . import rlm_backends


# --- errors -----------------------------------------------------------------------------------------------------------


class RLMError(Exception):
    """Base class of every error a run can raise."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        result: Any = None,
        trajectory_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message  # what happened, as in str(error)
        self.hint = hint  # what to do next; "" if there is nothing
        if hint and hasattr(self, "add_note"):  # from Python 3.11 on a traceback ends with it
            self.add_note(f"next: {hint}")
        self.result = result  # the partial CompletionResult; None: no model was called yet
        self.trajectory_id = trajectory_id  # for `resume`; None: the run has no journal

    def __reduce__(self) -> tuple[object, ...]:
        return rebuild_error, (type(self), self.args, self.__dict__)


def rebuild_error(kind: type[RLMError], args: tuple[object, ...], state: dict[str, object]) -> RLMError:
    """Unpickle an error without calling its `__init__`, whose arguments differ from `args`."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(RLMError):
    """The options, a configuration file, a key or the context cannot be used; nothing was sent."""

    untrusted = ""  # the key that a project file sets without being trusted to


# --- options ----------------------------------------------------------------------------------------------------


def _option(
    default: object,
    help: str,
    *,
    limit: bool = False,
    project: bool = False,
    env: str = "",
    short: str = "",
    flag: str = "",
    metavar: str = "",
    example: object = None,
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    secret: bool = False,
) -> Any:
    """A row of the table of options.

    `limit`: journalled, and restored when a run is resumed. `project`: an untrusted ./rlm.toml may set it, as it may
    set every limit. `env`: a variable in addition to RLM_*. `short`, `flag`: flags in addition to the long one.
    `example`: the value in a generated configuration file if there is no default. `words`: values allowed in addition
    to those of its type. `least`, `most`: the range; beyond it a machine runs out of threads or memory before the limit
    is reached. `secret`: never shown.
    """
    metadata = {**locals(), "project": project or limit, "metavar": metavar or "|".join(choices)}
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class Options:
    """Every option with its type, default and meaning: the one table behind `RLM`, rlm.toml, RLM_* and the flags."""

    model: str | None = _option(
        None,
        "model that answers and that rlm_query uses (default gpt-4o-mini)",
        project=True,
        short="-m",
        metavar="MODEL",
        example="gpt-4o-mini",
    )
    sub_model: str | None = _option(
        None,
        "model that llm_query uses (default: the main model)",
        project=True,
        metavar="MODEL",
        example="gpt-4o-mini",
    )
    backend: str = _option(
        "auto",
        "provider id, or auto: chosen from the model's name and the API keys that are set",
        project=True,
        metavar="ID",
    )
    api_key: str | None = _option(
        None, "API key (default: the provider's environment variable)", metavar="KEY", example="…", secret=True
    )
    base_url: str | None = _option(
        None, "base URL of the provider's API", metavar="URL", example="http://localhost:8000/v1"
    )
    protocol: str = _option(
        "auto", "how the model asks to run code: tool calls, text, or auto", choices=("auto", "tools", "text")
    )
    environment: str = _option(
        "local", "where the model's code runs: local or docker", flag="--env", short="-e", choices=("local", "docker")
    )
    max_depth: int = _option(4, "how deeply rlm_query may nest", limit=True, least=0, most=256)
    max_subcalls: int = _option(
        50, "prompts that llm_query and rlm_query may send, in total", limit=True, least=0, most=1_000_000
    )
    max_iterations: int = _option(
        30, "turns that a run, and each of its children, may take", limit=True, most=1_000_000
    )
    max_errors: int = _option(5, "consecutive failures after which a run or child gives up", limit=True, most=1_000_000)
    token_budget: int = _option(
        1_000_000, "at most this many input and output tokens in the whole run", limit=True, most=10**12
    )
    cost_budget_usd: float | None = _option(
        None,
        "at most this many US dollars for the whole run",
        limit=True,
        flag="--cost-budget",
        metavar="USD",
        example=0.5,
        most=1e9,
    )
    timeout_seconds: float | None = _option(
        None,
        "at most this many seconds for the whole run",
        limit=True,
        flag="--timeout",
        metavar="SECONDS",
        example=600,
        most=366 * 86_400,
    )
    confirm_above: float | None = _option(
        None,
        "ask before a batch of sub-calls or a child that may cost more than this many US dollars; without a terminal, "
        "refuse it. Single llm_query calls are not asked about",
        metavar="USD",
        example=0.5,
        most=1e9,
    )
    max_parallel: int = _option(16, "model calls in flight at once", limit=True, most=1024)
    max_retries: int = _option(4, "retries after a transient error", project=True, least=0, most=1024)
    output_limit: int = _option(
        10_000, "characters of each cell's output shown to the model", limit=True, least=200, most=10_000_000
    )
    cell_timeout: float = _option(
        30, "seconds that one cell may compute", limit=True, metavar="SECONDS", most=366 * 86_400
    )
    compaction: bool = _option(True, "replace old outputs with stubs when the model's window fills up", project=True)
    params: dict[str, Any] | None = _option(
        None,
        "request parameters: temperature, top_p, seed, reasoning_effort, …",
        short="-p",
        metavar="NAME=VALUE",
        example={"temperature": 0},
    )
    sub_params: dict[str, Any] | None = _option(
        None,
        "request parameters of llm_query and map_query (default: those of params)",
        metavar="NAME=VALUE",
        example={"temperature": 0, "reasoning_effort": "low"},
    )
    prompt: str | None = _option(
        None,
        "system prompt: full, small, or a file (default: chosen for the model)",
        flag="--prompt-file",
        metavar="full|small|FILE",
        example="my_prompt.txt",
    )
    encoding: str | None = _option(
        None, "encoding of context files (default: UTF-8, else detected)", metavar="NAME", example="cp1251"
    )
    show_below: int = _option(
        4_000,
        "show the model the whole context if it has at most this many characters",
        metavar="CHARACTERS",
        least=0,
        most=10_000_000,
    )
    plain_below: int | str | None = _option(
        None,
        "send a context of at most this many tokens in one plain call, without REPL; auto: what show_below allows",
        metavar="TOKENS|auto",
        words=("auto",),
        example="auto",
        least=0,
        most=100_000_000,
    )
    prices: dict[str, Any] | None = _option(
        None,
        "US dollars per million tokens: {model: [input, output, cached, cache write]}",
        metavar="JSON",
        example={"my-model": [0.15, 0.6]},
    )
    cache: bool = _option(False, "cache replies on disk and reuse them for identical calls")
    schema: Any = _option(
        None,
        "JSON Schema, dataclass or pydantic model that the answer must fit",
        metavar="FILE",
        example={"type": "object"},
    )
    tools: list[Any] | None = _option(
        None, "Tool objects, or files or modules that define tools", example=["my_tools.py"]
    )
    mcp: dict[str, Any] | None = _option(
        None,
        "MCP servers whose tools the code may call; --mcp NAME chooses among the configured ones",
        metavar="NAME",
        example={"docs": {"command": ["docs-server", "--stdio"]}},
        secret=True,
    )
    allowed_paths: list[str] | None = _option(
        None, "folders that the model's code and tools may read (default: the working directory)", example=["."]
    )
    allowed_imports: list[str] | None = _option(
        None, "additional modules that code in the local sandbox may import", example=["numpy"]
    )
    require: str = _option(
        "best",
        "confinement of the local sandbox: best available, or full (refuse to run with less)",
        choices=("best", "full"),
    )
    local_memory: str = _option(
        "1g", "memory of the local sandbox, in addition to the context", metavar="SIZE", most=1 << 46
    )
    docker_image: str = _option("python:3.11-slim", "Docker image with Python 3.8 or later", metavar="IMAGE")
    docker_cpus: float = _option(1.0, "CPUs per container", project=True, most=1024)
    docker_memory: str = _option("512m", "memory per container", project=True, metavar="SIZE", most=1 << 46)
    docker_network_disabled: bool = _option(True, "run containers without a network")
    docker_runtime: str | None = _option(None, "container runtime, such as runsc", metavar="NAME", example="runsc")
    docker_mount: str = _option(
        "ro", "mount the working directory at /workspace: ro (read-only) or none", choices=("ro", "none")
    )
    docker_pool: int = _option(0, "idle containers to keep ready for children and batches", least=0, most=256)
    persistent: bool = _option(False, "keep the REPL and the messages between completions")
    snipara_api_key: str | None = _option(
        None, "Snipara API key", env="SNIPARA_API_KEY", project=True, example="…", secret=True
    )
    snipara_project_slug: str | None = _option(
        None, "Snipara project slug", env="SNIPARA_PROJECT_SLUG", project=True, example="my-project"
    )
    snipara_api_url: str | None = _option(
        None, "base URL of Snipara's API", env="SNIPARA_API_URL", metavar="URL", example="https://api.snipara.com"
    )
    memory_enabled: bool = _option(False, "also offer Snipara's memory tools")
    save_context: bool = _option(
        True, "save a context passed as a value beside the journal, so that the run can be resumed"
    )
    verbose: bool = _option(False, "print each step to stderr", project=True, flag="-v")
    log_dir: str | None = _option("./logs", "folder for journals; empty to write none", metavar="DIR")


OPTIONS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Options)}
LIMITS = [name for name, row in OPTIONS.items() if row.metadata["limit"]]
PAIRS = ("params", "sub_params")  # options whose flags take NAME=VALUE, each time another
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class Configuration:
    """The options in force, and where each came from."""

    values: dict[str, Any] = field(repr=False)  # each option's value; may hold keys
    origins: dict[str, str]  # each option's origin: "argument", "RLM_MODEL", "rlm.toml:4" or "default"
    files: list[str]  # the configuration files that were read, the weakest first
    environ: dict[str, str] = field(repr=False)  # the environment, with provider keys from .env added


def load_config(
    given: Mapping[str, object],
    *,
    config: str | bool | None = None,
    cwd: str | None = None,
    without: Collection[str] = (),
) -> Configuration:
    """Look up every option: in `given` (unless None), then the environment, then rlm.toml, then the user's file.

    rlm.toml is that of `cwd` or of the nearest folder above. `config`: a path reads only that file, False reads none.
    `without`: keys that are ignored in an untrusted project file. ConfigError for an unknown key, a wrong type or a
    value out of range, and for an option that an untrusted project file may not set.
    """
    cwd = cwd or os.getcwd()
    environ = {**os.environ, **{name: key for name, key in _dotenv_keys(cwd).items() if not os.environ.get(name)}}
    values: dict[str, Any] = {name: row.default for name, row in OPTIONS.items()}
    origins = dict.fromkeys(OPTIONS, "default")
    files = _config_files(config, cwd)
    untrusted: set[str] = set()
    for path, is_project in files:
        table, trusted = read_toml(path, is_project, without)
        if "mcp" in table:
            servers, origin = table["mcp"]
            known = values["mcp"] or {}
            both = {**known, **servers} if isinstance(servers, dict) else servers
            table["mcp"] = _chosen_servers(both, known, origin), origin
        _merge(values, origins, table)
        if not trusted:
            untrusted = {origin for _, origin in table.values()}
    configured = values["mcp"]
    _merge(values, origins, _from_environment(environ))
    _merge(values, origins, {n: (v, "argument") for n, v in given.items() if v is not None and n in OPTIONS})
    values["mcp"] = _chosen_servers(values["mcp"], configured, origins["mcp"])
    for name in OPTIONS:
        values[name] = checked(name, values[name], origins[name])
    _keep_key_from(untrusted, origins)
    return Configuration(values, origins, [path for path, _ in files], environ)


def _merge(values: dict[str, object], origins: dict[str, str], new: Mapping[str, tuple[object, str]]) -> None:
    for name, (value, origin) in new.items():
        values[name], origins[name] = value, origin


def user_config_dir() -> str:
    """The folder of the user's config.toml and of the list of trusted project files."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "rlm")


def project_file(cwd: str) -> str | None:
    """The nearest rlm.toml, in `cwd` or above."""
    folder = os.path.abspath(cwd)
    while True:
        path = os.path.join(folder, "rlm.toml")
        if os.path.isfile(path):
            return path
        if (parent := os.path.dirname(folder)) == folder:
            return None
        folder = parent


def _config_files(config: str | bool | None, cwd: str) -> list[tuple[str, bool]]:
    """(path, whether it is the project's rather than the user's) of each file to read, in ascending precedence."""
    if config is False:
        return []
    if isinstance(config, (str, os.PathLike)):
        if not os.path.isfile(config):
            raise ConfigError(f"no configuration file at {str(config)!r}", hint="rlm init writes one")
        return [(os.fspath(config), False)]
    files = []
    user = os.path.join(user_config_dir(), "config.toml")
    if os.path.isfile(user):
        files.append((user, False))
    if project := project_file(cwd):
        files.append((project, True))
    return files


def read_toml(path: str, is_project: bool, without: Collection[str] = ()) -> tuple[dict[str, tuple[object, str]], bool]:
    """{option: (value, "rlm.toml:4")} of the [rlm] table of a file, and whether the file is the user's or trusted."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    short = os.path.basename(path) if is_project else path
    try:
        with open(path, "rb") as file:
            blob = file.read(_CONFIG_BYTES + 1)
        if len(blob) > _CONFIG_BYTES:
            raise ConfigError(f"{short} is larger than {_CONFIG_BYTES // 1000} kB")
        if any(line.count(b".") > 1_000 for line in blob.splitlines()):
            # A dotted key takes quadratic time to parse.
            raise ConfigError(f"{short} has a line with more than 1,000 dots")
        for digits in re.finditer(rb"[\dA-Fa-f_]+", blob):
            if len(digits[0]) > rlm_backends.JSON_DIGITS:
                line = blob[: digits.start()].decode("utf-8", "replace").rpartition("\n")[2]
                raise ConfigError(f"{short}: {line[:80]!r} has more than {rlm_backends.JSON_DIGITS:,} digits in a row")
        data = tomllib.loads(blob.decode("utf-8-sig"))
        rlm_backends.check_depth(data)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError:
        raise ConfigError(f"{short} is nested too deeply") from None
    except ValueError as error:  # from TOML, UTF-8 or an integer
        raise ConfigError(f"{short} is not valid TOML: {error}") from None
    stray = [key for key in data if key not in ("rlm", "mcp")]
    if stray:
        raise ConfigError(f"{short}: {stray[0]!r} is outside the [rlm] table", hint="put every key under [rlm]")
    table = data.get("rlm", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{short}: rlm is not a table", hint="write [rlm] above the keys")
    if "mcp" in data:
        if "mcp" in table:
            raise ConfigError(f"{short}: mcp is set twice", hint="write [mcp.NAME] for each server")
        table = {**table, "mcp": data["mcp"]}
    for key in table:
        if key not in OPTIONS:
            raise ConfigError(f"{short}:{_line_of(blob, key)}: unknown key {key!r}", hint=suggestion(key, OPTIONS))
    trusted = not is_project or is_trusted(path, blob)
    if not trusted:
        table = {key: value for key, value in table.items() if key not in without}
        for key in untrusted_keys(table):
            message = f"{short}:{_line_of(blob, key)}: {key!r} is not taken from a project file that is not trusted"
            raise _untrusted_error(key, message, f"read {path}, then: rlm trust")
    return {key: (value, f"{short}:{_line_of(blob, key)}") for key, value in table.items()}, trusted


_CONFIG_BYTES = 100_000


def _line_of(blob: bytes, key: str) -> int:
    """The number of the line that sets a key, from 1."""
    lines = blob.decode("utf-8", "replace").splitlines()
    pattern = re.compile(
        rf"""\s*["']?{re.escape(key)}["']?\s*[=.\]]|\s*\[\s*(?:rlm\s*\.\s*)?{re.escape(key)}\s*[\].]"""
    )
    return next((n for n, line in enumerate(lines, 1) if pattern.match(line)), 1)


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?", or a list of what is known."""
    import difflib

    close = difflib.get_close_matches(word[:100], list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(known))}"


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    """The options set by RLM_* (and SNIPARA_*) variables; an empty variable counts as not set."""
    found = {}
    for name, row in OPTIONS.items():
        for variable in ("RLM_" + name.upper(), row.metadata["env"]):
            if variable and os.environ.get(variable):
                found[name] = (parse_option(name, environ[variable], variable), variable)
                break
    return found


def type_of(name: str) -> str:
    """The annotated type of an option without None: "int", "list[str]"."""
    return str(OPTIONS[name].type).split(" |")[0]


def parse_size(text: str) -> int:
    """Bytes from "512m", "1g", "64k" or a number; ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9.]{1,40})\s*([kmg]?)b?\s*", text, re.IGNORECASE)
    if not match or match[1].count(".") > 1 or match[1] == ".":
        raise ValueError(f'{text!r} is not an amount of memory such as "512m" or "1g"')
    return int(float(match[1]) * (1 << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]))


def parse_option(name: str, text: str, origin: str) -> Any:
    """An option's value from text, as the environment and the command line have it; ConfigError if it is none."""
    kind = type_of(name)
    if text in OPTIONS[name].metadata["words"]:
        return text
    try:
        if kind == "bool":
            if text.lower() in _TRUE + _FALSE:
                return text.lower() in _TRUE
            raise ValueError
        if kind == "int":
            return int(text.replace(",", "_"))
        if kind == "float":
            return float(text)
        if kind.startswith("list") or (name == "mcp" and not text.lstrip().startswith("{")):
            return [item.strip() for item in text.split(",") if item.strip()]
        if name in PAIRS:
            return parse_params([text], origin)
        if kind.startswith("dict") or kind == "Any":
            return rlm_backends.from_json(text)
    except ValueError:
        valid = _KIND_WORDS[kind] if kind in ("int", "float", "bool") else "JSON"
        valid = " or ".join((valid, *OPTIONS[name].metadata["words"]))
        raise ConfigError(f"{origin}: {text!r} is not {valid}") from None
    return text


def parse_params(items: Iterable[str], origin: str = "params") -> dict[str, object]:
    """Request parameters from items: `name=value`, several separated by commas, or a JSON object; later ones win.

    A value is parsed as JSON if possible; otherwise it is text.
    """
    params: dict[str, object] = {}
    for item in items:
        if item.lstrip().startswith("{"):
            value = _json_or_text(item)
            pairs = list(value.items()) if isinstance(value, dict) else []
        else:
            parts = re.split(r",(?=\s{0,99}\w{1,99}=)", item) if item.strip() else []
            pairs = [(name.strip(), _json_or_text(text.strip())) for name, _, text in (p.partition("=") for p in parts)]
            if not all("=" in part and part.partition("=")[0].strip() for part in parts):
                pairs = []
        if not pairs and item.strip() not in ("", "{}"):
            raise ConfigError(f"{origin}: {item!r} is not a parameter", hint="NAME=VALUE, such as temperature=0")
        params.update(pairs)
    return params


def _json_or_text(text: str) -> object:
    try:
        return rlm_backends.from_json(text)
    except ValueError:
        return text


_KIND_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list[Any]": "a list",
    "list[str]": "a list",
    "dict[str, Any]": "a table",
}


def checked(name: str, value: Any, origin: str) -> object:
    """The value of an option; ConfigError if it has the wrong type or is out of range."""
    row, kind = OPTIONS[name].metadata, type_of(name)
    if value is None or (isinstance(value, str) and value in row["words"]):
        return value
    plain: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}
    wanted = plain.get(kind) or (list if kind.startswith("list") else dict if kind.startswith("dict") else object)
    if name in ("environment", "backend") and not isinstance(value, str):
        return value  # a Sandbox or Backend object
    if name in ("log_dir", "base_url") and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if name in ("tools", "allowed_paths", "allowed_imports") and isinstance(value, (tuple, set)):
        value = list(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind in ("int", "float")):
        shown = "that" if row["secret"] else _shown_value(value)
        raise ConfigError(f"{name} ({origin}) must be {_KIND_WORDS.get(kind, kind)}, not {shown}")
    if name == "encoding":
        require_encoding(str(value), origin)
    if name == "mcp":
        check_servers(value, origin)
    if name in ("local_memory", "docker_memory"):
        try:
            if not 0 < parse_size(str(value)) <= row["most"]:
                raise ValueError(f"{value!r} is not between 1 byte and {row['most'] >> 30:,}g")
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{name} ({origin}): {error}", hint="such as 512m or 1g") from None
    if row["choices"] and value not in row["choices"]:
        raise ConfigError(f"{name} ({origin}) is {value!r}", hint=f"one of: {', '.join(row['choices'])}")
    if kind in ("int", "float"):
        least = (1 if kind == "int" else 0) if row["least"] is None else row["least"]
        assert isinstance(value, (int, float))
        nothing = kind == "float" and value == 0 and name not in ("cost_budget_usd", "confirm_above")
        if nothing or not least <= value <= row["most"]:
            low = f"at least {least}" if kind == "int" else "a number above 0"
            raise ConfigError(
                f"{name} ({origin}) is {_shown_value(value)}", hint=f"{low} and at most {row['most']:,.0f}"
            )
    return value


# - the servers of the option `mcp`

Server = Mapping[str, Any]  # the table of one
_SERVER_KEYS: dict[str, tuple[Any, str]] = {
    "command": ((str, list), "a program, or a list of it and its arguments"),
    "args": (list, "a list of text"),
    "env": (dict, "a table of text"),
    "cwd": (str, "a folder"),
    "url": (str, "an address that begins with http:// or https://"),
    "headers": (dict, "a table of text"),
    "tools": (list, "a list of the tools' names"),
    "timeout": ((int, float), "a number of seconds above 0"),
}


def _chosen_servers(value: object, configured: object, origin: str) -> object:
    """The configured servers that a list names; a dict of servers is returned unchanged."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return value
    known = configured if isinstance(configured, dict) else {}
    names = [name for name in value if name != "none"]
    for name in names:
        if name not in known:
            there = suggestion(str(name), known) if known else "write [mcp.NAME] with `command` or `url` in rlm.toml"
            raise ConfigError(f"mcp ({origin}): no server {str(name)[:80]!r} is configured", hint=there)
    return {name: known[name] for name in names}


def check_servers(servers: Any, origin: str) -> None:
    """ConfigError for an invalid entry of `mcp`; it shows no value, since some are keys."""
    for name, server in servers.items():
        where = f"mcp.{name} ({origin})"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]{0,63}", name):
            raise ConfigError(
                f"mcp ({origin}): {str(name)[:80]!r} is not a valid name for a server", hint="letters, digits, _ and -"
            )
        if not isinstance(server, dict):
            raise ConfigError(f"{where} is not a table", hint=f'[mcp.{name}] and below it command = ["program"]')
        for key, value in server.items():
            if key not in _SERVER_KEYS:
                raise ConfigError(f"{where}: unknown key {key!r}", hint=suggestion(str(key), _SERVER_KEYS))
            if not _is_server_value(key, value):
                raise ConfigError(f"{where}: {key} is not {_SERVER_KEYS[key][1]}")
        if ("command" in server) == ("url" in server):
            raise ConfigError(f"{where} needs one of `command` and `url`", hint='command = ["program", "argument"]')
        for key in server.keys() & ({"args", "env", "cwd"} if "url" in server else {"headers"}):
            raise ConfigError(f"{where}: {key} cannot be combined with `{'url' if 'url' in server else 'command'}`")


def _is_server_value(key: str, value: Any) -> bool:
    if not isinstance(value, _SERVER_KEYS[key][0]) or isinstance(value, bool):
        return False
    texts = value.items() if isinstance(value, dict) else [value] if isinstance(value, list) else []
    if not all(isinstance(part, str) and "\0" not in part for item in texts for part in item):
        return False
    if key == "headers":
        return all(re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", n) and re.fullmatch(r"[ -~]*", v) for n, v in value.items())
    if key == "url":
        return bool(re.fullmatch(r"https?://[^/?#@\s]+([/?][!-~]*)?", value))
    if key == "timeout":
        return 0 < float(value) <= 86_400
    return bool(value) or key in ("args", "env")


_KEY_WORDS = r"[\w.-]*(?:key|token|secret|pass|auth|cred|cookie)[\w.-]*"
_PATH = r"[./~].*|[A-Za-z]:\\.*"


def server_secrets(servers: Mapping[str, Server] | None, environ: Mapping[str, str]) -> list[str]:
    """What of the servers' tables may be a key.

    Of `env` and `headers` all but what is evidently a path, a word or a number; of a program's arguments what follows
    a flag such as --api-key, and the values of variables; of a URL its query, and what looks random in its path.
    """
    secrets: list[str] = []
    for server in (servers or {}).values():
        for name, text in (*server.get("env", {}).items(), *server.get("headers", {}).items()):
            value = expand_variables(text, environ)
            is_named = re.fullmatch(_KEY_WORDS, name, re.IGNORECASE)
            if is_named or not re.fullmatch(rf"{_PATH}|[A-Za-z_, ;=/*+-]*|[\d.:-]*", value):
                secrets += [value, value.rpartition(" ")[2]]
        words = command_words(server)
        secrets += [s for s in _argument_secrets(words, environ) if not re.fullmatch(_PATH, s)]
        for text in [server.get("url", ""), *(word for word in words if word.startswith(("http://", "https://")))]:
            url = expand_variables(text, environ)
            secrets += re.findall(r"[?&][^=&]*=([^&]*)", url)
            secrets += re.findall(r"/((?=[\w~-]*\d)(?=[\w~-]*[A-Za-z])[\w~-]{20,})(?![^/?#])", url)
    return [secret for secret in dict.fromkeys(secrets) if len(secret) >= 8]


def _argument_secrets(words: list[str], environ: Mapping[str, str]) -> Iterator[str]:
    for flag, text in zip(["", *words], words):
        word = expand_variables(text, environ)
        yield from (environ.get(name, "") for name in re.findall(r"\$\{(\w+)\}", text))
        named = re.match(rf"{_KEY_WORDS}(?:=|:\s)\s*(.+)", word, re.IGNORECASE)
        if named:
            yield from (named[1], named[1].rpartition(" ")[2])
        elif re.fullmatch(rf"-{_KEY_WORDS}", flag, re.IGNORECASE) and not word.startswith("--"):
            yield from (word, word.rpartition(" ")[2])


def command_words(server: Server) -> list[str]:
    """The program of a server and its arguments, from `command` (a list, or text) and `args`; none for a URL."""
    import shlex

    command, args = server.get("command", []), server.get("args", [])
    if isinstance(command, list):
        return [*command, *args]
    try:
        return [command, *args] if args or os.path.exists(command) else shlex.split(command)
    except ValueError:  # a quote that is not closed
        return [command]


def expand_variables(text: str, environ: Mapping[str, str]) -> str:
    """Replace each `${NAME}` by that variable (unset: ""), so that a file need not contain a key."""
    return re.sub(r"\$\{(\w+)\}", lambda found: environ.get(found[1], ""), text)


def shown_servers(servers: Mapping[str, Server]) -> dict[str, dict[str, object]]:
    """The servers without secrets: program, number of arguments, the URL's host, the names of `env` and `headers`."""

    def shown(key: str, value: Any, server: Server) -> object:
        if key == "command":
            program, *arguments = command_words(server) or [""]
            return f"{os.path.basename(program)} ({len(arguments)} argument{'s' * (len(arguments) != 1)})"
        if key == "url":
            return re.sub(r"(//[^/?#]*)[/?#].+", r"\1/…", value)
        return dict.fromkeys(value, "…") if key in ("env", "headers") else value

    return {
        name: {key: shown(key, value, server) for key, value in server.items() if key != "args"}
        for name, server in servers.items()
    }


# Python's text encodings that no text is in: they take quadratic time, fail for any input or read escapes.
NO_ENCODINGS = frozenset({"punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape"})  # and rlm_tools's


def require_encoding(value: str, origin: str) -> None:
    import codecs

    try:
        found = codecs.lookup(value)
        is_text = found._is_text_encoding and found.name not in NO_ENCODINGS
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise ConfigError(
            f"encoding ({origin}): there is no encoding {value[:40]!r}", hint="such as cp1251, gb18030, utf-16"
        )


def _shown_value(value: object) -> str:
    """An invalid value, shortened for a message."""
    try:
        return shorten(value) if isinstance(value, (dict, list)) else repr(value)[:200]
    except ValueError:  # Python refuses to print an integer of over 4,300 digits
        return "far out of range"


def _dotenv_keys(cwd: str) -> dict[str, str]:
    """The provider keys in ./.env; nothing else is read from it, since the file belongs to the project."""
    path = os.path.join(cwd, ".env")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a terminal or a device would block
            return {}
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            text = file.read(100_000)
    except OSError:
        return {}
    known = rlm_backends.key_variables()
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:export\s+)?(\w+)\s*=(.*)", line)
        if match and match[1] in known:
            value = match[2].strip()
            quoted = re.match(r"""(['"])(.*?)\1\s*(?:#.*)?\Z""", value)
            found[match[1]] = quoted[2] if quoted else value.split(" #")[0].strip()
    return found


def counted(number: int, noun: str) -> str:
    """`1 turn`, `2,000 turns`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shorten(value: object) -> str:
    """A bounded repr, whatever the value's size."""
    import reprlib

    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 100
    return shortener.repr(value)


def sha256(blob: bytes = b"") -> HASH:
    """hashlib.sha256, imported late because hashlib loads OpenSSL."""
    import hashlib

    return hashlib.sha256(blob)


# --- trust: what a project's rlm.toml may set without the user's consent -------------------------------------------


def _trust_file() -> str:
    return os.path.join(user_config_dir(), "trusted.json")


def _trusted() -> dict[str, str]:
    try:
        with open(_trust_file(), encoding="utf-8") as file:
            table = rlm_backends.from_json(file.read())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def is_trusted(path: str, blob: bytes) -> bool:
    """Whether `rlm trust` has recorded this file as it is now."""
    return _trusted().get(os.path.realpath(path)) == sha256(blob).hexdigest()


def is_trusted_file(path: str) -> bool:
    with open(path, "rb") as file:
        return is_trusted(path, file.read())


def _keep_key_from(untrusted: set[str], origins: Mapping[str, str]) -> None:
    """ConfigError if an untrusted file would choose the provider that the user's `api_key` is sent to.

    A key in its provider's own variable (OPENAI_API_KEY) is sent to no other provider, whatever a file says.
    """
    if origins["api_key"] == "default" or origins["api_key"] in untrusted:
        return
    for name in ("backend", "model"):
        if origins[name] in untrusted:
            raise _untrusted_error(
                name,
                f"{origins[name]}: {name!r} of a project file that is not trusted would choose where the key of "
                f"{origins['api_key']} is sent",
                f"name it yourself (--{name}), or read the file, then: rlm trust",
            )


def _untrusted_error(key: str, message: str, hint: str) -> ConfigError:
    error = ConfigError(message, hint=hint)
    error.untrusted = key
    return error


def trust(path: str, *, revoke: bool = False) -> None:
    """Record that the user trusts the file at `path` with its present content, or revoke that."""
    table = _trusted()
    real = os.path.realpath(path)
    if revoke:
        table.pop(real, None)
    else:
        with open(path, "rb") as file:
            table[real] = sha256(file.read()).hexdigest()
    os.makedirs(user_config_dir(), mode=0o700, exist_ok=True)
    temporary = f"{_trust_file()}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
    os.replace(temporary, _trust_file())


def untrusted_keys(table: Mapping[str, object]) -> list[str]:
    """The keys of a project's [rlm] table that take effect only after `rlm trust`."""
    keys = []
    for key, value in table.items():
        harmless = OPTIONS[key].metadata["project"] or (key == "environment" and value == "docker")
        if key == "backend":
            harmless = value in ("auto", "litellm") or value in {row["id"] for row in rlm_backends.providers()}
        if key in ("model", "sub_model"):  # it may run a program, download gigabytes, or feed a file to native code
            harmless = not re.search(r"^(cli|hf):|\.gguf$", str(value))
        if key in ("snipara_api_key", "snipara_project_slug"):
            harmless = "snipara_api_key" in table and "snipara_project_slug" in table
        if not harmless:
            keys.append(key)
    return keys
