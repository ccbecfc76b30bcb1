"""`make docs`: write api.md, help.md and prompts.md from the code.

    python docs/make.py            write them
    python docs/make.py --check    list those that differ from the code (exit 1)

A signature is the source's own text, a meaning is a docstring or, for a field, the comment beside it: the pages are
the same whichever Python makes them. What has no meaning in the source is an error here.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import json
import os
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import rlm  # noqa: E402
import rlm_backends  # noqa: E402
import rlm_cli  # noqa: E402
import rlm_config  # noqa: E402
import rlm_mcp  # noqa: E402
import rlm_sandbox  # noqa: E402
import rlm_tools  # noqa: E402
import rlm_viz  # noqa: E402
import rlm_worker  # noqa: E402

MADE = "<!-- Made by `make docs` from the code: edit docstrings, comments of fields and help texts there, not here. -->"


class Missing(Exception):
    """A public name or field whose meaning the source does not give."""


# --- the parts of a page --------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def fenced(text: str, language: str) -> str:
    fence = "````" if "```" in text else "```"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def page(*parts: str) -> str:
    return "\n\n".join(wrapped(part) for part in parts if part) + "\n"


def wrapped(part: str) -> str:
    """A paragraph in lines of at most 120 characters; a table, a heading or a part of several lines as it is."""
    if "\n" in part or part[0] in "|#<":
        return part
    return textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False)


# --- reading the source ---------------------------------------------------------------------------------------------


def definition(thing: Any) -> tuple[Any, str]:
    """The syntax tree of a class or function, and the source that it is of."""
    if not isinstance(thing, type):
        source = textwrap.dedent(inspect.getsource(thing))
    else:  # `inspect` looks where `__module__` says, which for two errors is where users import them from
        places = [module for module in (sys.modules[thing.__module__], rlm_config) if thing.__name__ in classes(module)]
        source = classes(places[0])[thing.__name__]
    return ast.parse(source).body[0], source


@functools.cache
def classes(module: Any) -> dict[str, str]:
    """The source of each class of a module."""
    source = inspect.getsource(module)
    lines = source.splitlines(keepends=True)
    found = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: "".join(lines[node.lineno - 1 : node.end_lineno]) for node in found}


def text_of(node: ast.AST | None, source: str) -> str:
    return " ".join((ast.get_source_segment(source, node) or "").split()) if node else ""


def kind_of(node: ast.AST | None, source: str) -> str:
    """An annotation, without the quotes that some need."""
    return text_of(node, source).strip('"') if isinstance(node, ast.Constant) else text_of(node, source)


def comments(source: str) -> dict[int, str]:
    """The comment of each line that has one beside it, or else lines of comment above it."""
    beside, above = {}, {}
    alone: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.line.strip()
        if token.type == tokenize.COMMENT and line == token.string:
            alone.append(line.lstrip("# "))
        elif token.type == tokenize.COMMENT:
            beside[token.start[0]] = token.string.lstrip("# ")
        elif token.type == tokenize.NEWLINE:
            above[token.start[0]], alone = " ".join(alone), []
    return {**above, **beside}


def meaning(thing: Any, name: str) -> str:
    """The docstring, in its own lines."""
    text = inspect.cleandoc(thing.__doc__ or "")
    if not text:
        raise Missing(f"{name} has no docstring")
    return text


class Signature(NamedTuple):
    """A function's parameters as the source writes them, without `self`, and what it returns."""

    name: str
    parameters: list[str]
    returns: str

    def __str__(self) -> str:
        tail = f" -> {self.returns}" if self.returns else ""
        line = f"{self.name}({', '.join(self.parameters)}){tail}"
        if len(line) <= 100:
            return line
        return (
            f"{self.name}(\n"
            + "".join(f"    {p}\n" if p[0] == "#" else f"    {p},\n" for p in self.parameters)
            + f"){tail}"
        )


def signature(function: Callable[..., Any], name: str, *, constructs: bool = False) -> Signature:
    node, source = definition(function)
    arguments = node.args
    defaults = [None] * (len(arguments.posonlyargs + arguments.args) - len(arguments.defaults)) + arguments.defaults

    def written(argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
        kind = kind_of(argument.annotation, source)
        value = text_of(default, source)
        constant = getattr(function, "__globals__", {}).get(value)
        value = f"{constant:_}" if type(constant) in (int, float) else value
        equals = " = " if kind else "="
        return f"{stars}{argument.arg}{f': {kind}' if kind else ''}{f'{equals}{value}' if default else ''}"

    parameters = [written(*pair) for pair in zip(arguments.posonlyargs + arguments.args, defaults)]
    if arguments.posonlyargs:
        parameters.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        parameters.append(written(arguments.vararg, None, "*"))
    elif arguments.kwonlyargs:
        parameters.append("*")
    parameters += [written(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        parameters.append(written(arguments.kwarg, None, "**"))
    parameters = [p for p in parameters if p != "self" and ": _" not in p]  # a private type is for callers of ours
    return Signature(name, parameters, "" if constructs else kind_of(node.returns, source))


def fields(cls: type, name: str) -> list[tuple[str, str, str]]:
    """(name, type, meaning) of each field of a class: what its body declares or its `__init__` sets, with a comment."""
    tree, source = definition(cls)
    beside = comments(source)
    found = []
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append((node.target.id, kind_of(node.annotation, source), beside.get(node.end_lineno or 0, "")))
    if issubclass(cls, BaseException):
        found += _attributes(tree, source, beside)
    for field, _, words in found:
        if not words:
            raise Missing(f"{name}.{field} has no comment beside it that says what it is")
    return found


def _attributes(tree: ast.ClassDef, source: str, beside: dict[int, str]) -> Iterator[tuple[str, str, str]]:
    """The public attributes that an error's `__init__` sets, each with the type of the parameter of its name."""
    init = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return
    kinds = {a.arg: kind_of(a.annotation, source) for a in (*init.args.args, *init.args.kwonlyargs)}
    for node in init.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Attribute) and text_of(target.value, source) == "self" and target.attr in kinds:
            yield target.attr, kinds[target.attr], beside.get(node.end_lineno or 0, "")


# --- api.md ---------------------------------------------------------------------------------------------------------

# Of some classes only these members are for users; the others are called by the modules themselves.
MEMBERS = {
    "Activity": ("update", "words"),
    "Context": (),
    "Forecast": (),
    "HTTPBackend": ("complete", "with_model", "inspect", "close", "dry_run"),
    "OTel": (),
    "Options": (),
    "Packer": ("pack",),
    "Provider": (),
    "RLMError": (),
    "Tool": ("__call__", "bind"),
    "Chunks": ("__call__",),
    "DockerSandbox": (),
    "LocalSandbox": (),
    "RLM": ("completion", "stream", "batch", "resume", "replay", "variables", "stop", "close", "backend", "tools"),
    "BaseSandbox": ("execute", "interrupt", "kill", "level"),
    "Sandbox": ("execute", "set", "get", "names", "reset", "close"),
}
CONSTRUCTED = ("RLM", "OTel", "LocalSandbox", "DockerSandbox", "SubprocessBackend", "Namespace", "Chunks", "Packer")


def members(cls: type) -> list[tuple[str, Any]]:
    """The public methods and properties that a class itself defines."""
    wanted = MEMBERS.get(cls.__name__)
    own = {n: v for n, v in vars(cls).items() if callable(v) or isinstance(v, property)}
    if wanted is not None:
        return [(name, own[name]) for name in wanted]
    public = [name for name in own if name[0] != "_" and (own[name].__doc__ or isinstance(own[name], property))]
    return [(name, own[name]) for name in public]


def member(cls: type, name: str, value: Any, where: str) -> str:
    function: Any = value.fget if isinstance(value, property) else value
    shown = signature(function, f"{cls.__name__}.{name}" if name != "__call__" else cls.__name__.lower())
    text = meaning(function, f"{where}.{name}")
    if isinstance(value, property):
        return f"**`{cls.__name__}.{name}`** (`{shown.returns}`): {text}"
    return fenced(str(shown), "py") + f"\n\n{text}"


def class_entry(cls: type, where: str) -> list[str]:
    parts = []
    if cls.__name__ == "RLM":
        parts.append(fenced(str(_rlm_signature()), "py"))
    elif cls.__name__ in CONSTRUCTED or cls in (rlm_tools.ToolError, rlm_sandbox.SandboxError):
        init = signature(vars(cls)["__init__"], cls.__name__, constructs=True)
        parts.append(fenced(str(init), "py"))
    parts.append(meaning(cls, where))
    if issubclass(cls, rlm.RLMError) and cls is not rlm.RLMError:
        bases = (f"{b.__module__}.{b.__name__}".removeprefix("rlm.") for b in cls.__bases__)
        parts.append(f"Bases: {', '.join(map(code, bases))}.")
    listed = fields(cls, where) if cls.__name__ not in ("Options", "RLM") else []
    if listed:
        head = "attribute" if issubclass(cls, BaseException) else "field"
        parts.append(table((head, "type", "meaning"), [(code(n), code(kind), words) for n, kind, words in listed]))
    parts += [member(cls, name, value, where) for name, value in members(cls)]
    return parts


def _rlm_signature() -> Signature:
    """The parameters of `RLM`, with those that the table of options lists left to it."""
    whole = signature(rlm.RLM.__init__, "RLM", constructs=True)
    names = [re.split(r"\W", p)[0] for p in whole.parameters]
    shown = [p for p, n in zip(whole.parameters, names) if n not in rlm_config.OPTIONS or n in ("model", "backend")]
    shown.insert(shown.index("*") + 1, "# every other option, by its name: see the table of options")
    return Signature("RLM", shown, "")


def entry(module: Any, name: str) -> str:
    """The heading of a name, its signature and what there is to say about it."""
    value = getattr(module, name)
    where = name if module is rlm else f"{module.__name__}.{name}"
    heading = f"### {where}"
    if isinstance(value, type):
        return page(heading, *class_entry(value, where)).rstrip()
    if callable(value):
        return page(heading, fenced(str(signature(value, name)), "py"), meaning(value, where)).rstrip()
    return page(heading, CONSTANTS[name]).rstrip()


CONSTANTS = {
    "OPTIONS": "The rows of the table of options: name -> `dataclasses.Field`, whose `metadata` has `help`, `env`, …",
    "DEFAULT_MODEL": f"The model that is asked where none is named: `{rlm_backends.DEFAULT_MODEL}`.",
    "DEPTH_MAX": f"How deeply plain data that goes to or from a sandbox may be nested: {rlm_sandbox.DEPTH_MAX}.",
    "UNSET": "The value of `Cell.final` where the cell did not call `FINAL`, which may also be given None.",
}


class Section(NamedTuple):
    """A part of the page: the names of a module, in the order in which a reader meets them."""

    title: str
    intro: str
    module: Any
    names: tuple[str, ...]


SECTIONS = (
    Section(
        "Asking",
        "All of these are in `rlm`: `from rlm import complete`. They are synchronous; from a coroutine, call them with "
        "`asyncio.to_thread`.",
        rlm,
        ("complete", "stream", "batch", "RLM", "last_result", "read_context", "load_ipython_extension"),
    ),
    Section(
        "Results",
        "What the functions above return, and what the callbacks of `RLM` get. An event is a `dict`; "
        "[trajectories.md](trajectories.md#the-format) lists its fields.",
        rlm,
        ("CompletionResult", "Replayed", "Context", "Forecast"),
    ),
    Section(
        "Errors",
        "Every failure of a run is an `RLMError`: `except RLMError` catches them all, `except LimitExceeded` those of "
        "limits. What the model can correct (failing code, an unknown tool) goes back to the model first.",
        rlm,
        (
            *("RLMError", "ConfigError", "ProviderError", "SandboxError", "REPLExecutionError", "ToolNotFoundError"),
            *("LimitExceeded", "MaxDepthExceeded", "MaxSubcallsExceeded", "MaxIterationsExceeded"),
            *("TokenBudgetExhausted", "CostBudgetExhausted", "TimeoutExceeded", "SubcallError"),
        ),
    ),
    Section("Options", "", rlm, ()),
    Section(
        "Configuration",
        "How options are looked up ([configuration.md](configuration.md)). In `rlm_config`, and in `rlm` too.",
        rlm_config,
        (
            "load_config",
            "Configuration",
            "Options",
            "OPTIONS",
            "parse_params",
            "project_file",
            "trust",
            "user_config_dir",
        ),
    ),
    Section("In the REPL", "", None, ()),
    Section(
        "Tools",
        "Functions that the model may call ([tools.md](tools.md)). `Tool` and `tool` are in `rlm` too.",
        rlm_tools,
        (
            *("tool", "Tool", "ToolError", "call_tool", "file_tools", "load_tools"),
            *("schema_of", "validate", "construct"),
        ),
    ),
    Section(
        "Models",
        "A model behind HTTP, a program or a file ([providers.md](providers.md)). `rlm.Backend` says what an object "
        "needs that you give as `backend`.",
        rlm_backends,
        (
            *("connect", "HTTPBackend", "Reply", "BackendError", "SubprocessBackend", "image_part", "estimate_tokens"),
            *("cost_of", "saved_by_cache", "providers", "Provider", "local_servers", "agents", "downloaded_models"),
            *("remove_model", "size_in_name", "key_variables", "mask", "post", "stop_programs", "DEFAULT_MODEL"),
        ),
    ),
    Section(
        "Sandboxes",
        "A Python that keeps its variables between cells ([sandbox.md](sandbox.md)). An object with the methods of "
        "`rlm_sandbox.Sandbox` can be the `environment` of an `RLM`.",
        rlm_sandbox,
        (
            *(
                "LocalSandbox",
                "DockerSandbox",
                "BaseSandbox",
                "Sandbox",
                "Cell",
                "SandboxError",
                "AbortCell",
                "Namespace",
                "Chunks",
            ),
            *("capabilities", "warm", "shutdown", "Packer", "unpack", "encoded", "UNSET", "DEPTH_MAX"),
        ),
    ),
    Section(
        "Trajectories",
        "Reading, showing and exporting journals ([trajectories.md](trajectories.md)).",
        rlm_viz,
        (
            *("read", "merge", "list_runs", "find_log", "totals", "rows", "Row", "tree", "step", "visualize", "write"),
            *("render", "serve", "show", "card", "table", "History", "Activity", "OTel", "spans", "otlp"),
            *("training_samples", "notebook"),
        ),
    ),
    Section(
        "The MCP server",
        "What `rlm mcp-serve` and `rlm mcp-install` call ([mcp.md](mcp.md)).",
        rlm_mcp,
        ("serve", "install"),
    ),
    Section("The command line", "What the command `rlm` calls ([help.md](help.md)).", rlm_cli, ("main",)),
)


def options() -> str:
    """The table of options, from rlm_config."""
    rows = []
    for name, row in rlm_config.OPTIONS.items():
        flags = " ".join(map(code, rlm_cli.flags_of(name)))
        variables = " ".join(code(v) for v in (f"RLM_{name.upper()}", row.metadata["env"]) if v)
        flags += f" `--no-{name.replace('_', '-')}`" if row.type == "bool" else ""
        default = "" if row.default is None else json.dumps(row.default) if row.type == "bool" else str(row.default)
        rows.append((code(name), code(str(row.type)), code(default), flags, variables, option_help(name)))
    return page(
        "Each option is a keyword of `RLM`, `complete`, `stream` and `batch`, a key under `[rlm]` in `rlm.toml`, an "
        "environment variable and a flag. The first of these that sets an option wins: the argument, the environment, "
        "`./rlm.toml`, the user's file, the default. Besides these values, `environment` takes an object with the "
        "methods of `rlm_sandbox.Sandbox` or a function that makes one, and `backend` an object like `rlm.Backend`.",
        table(("option", "type", "default", "flag", "variable", "meaning"), rows),
    ).rstrip()


def option_help(name: str) -> str:
    """The meaning of an option, and its range."""
    row = rlm_config.OPTIONS[name].metadata
    kind = rlm_config.type_of(name)
    least = (1 if kind == "int" else None) if row["least"] is None else row["least"]
    ends = [f"at least {least:,}" if least is not None else "", f"at most {row['most']:,.0f}" if row["most"] else ""]
    span = " and ".join(end for end in ends if end) if kind in ("int", "float") else ""
    return f"{row['help']}{f'; {span}' if span else ''}"


def repl() -> str:
    """What code in a cell finds, with the signatures of the functions that the loop puts there."""
    functions = {
        **{name: getattr(rlm.Node, f"_plan_{name}") for name in ("llm_query", "llm_query_batched")},
        "chunks": rlm_sandbox.Chunks.__call__,
        **{name: getattr(rlm.Node, f"_plan_{name}") for name in ("map_query", "rlm_query", "rlm_query_batched")},
        **{name: getattr(rlm_worker.Worker, name) for name in ("FINAL", "FINAL_VAR", "SHOW_VARS")},
        "budget": rlm.Node._plan_budget,
    }
    parts = [
        "What the model's code finds in the REPL, besides Python ([repl.md](repl.md)).",
        "**`context`**: your input, as you gave it: a `str`, `list` or `dict`; the text of a file; for several files a "
        "`dict` of path -> text; None without an input.",
        "**`_out`**: `_out[n]` is the whole output of cell `n` (from 1; up to 10 MB), where the model was shown a "
        "part.",
        "**Each tool** is a function of its name and returns Python data; each MCP server is an object of its name.",
    ]
    for name, function in functions.items():
        shown = signature(function, name)
        returns = re.sub(r"^Callable\[\[\], (.*)\]$", r"\1", shown.returns)
        parts.append(f"### {name}\n\n{fenced(str(shown._replace(returns=returns)), 'py')}\n\n{meaning(function, name)}")
    return "\n\n".join(parts)


def contents(body: str) -> str:
    """Links to the sections of a page and the entries of each."""
    seen: dict[str, int] = {}
    lines: list[list[str]] = []
    for sharps, title in re.findall(r"^(##|###) (.+)", body, re.MULTILINE):
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        number = seen[anchor] = seen.get(anchor, -1) + 1
        link = f"[{title.rpartition('.')[2]}](#{anchor}{f'-{number}' if number else ''})"
        lines.append([link]) if sharps == "##" else lines[-1].append(link)
    return "\n".join(
        wrapped(f"- {first}{': ' if rest else ''}{', '.join(rest)}").replace("\n", "\n  ") for first, *rest in lines
    )


def api() -> str:
    parts = [
        "# API reference",
        MADE,
        "After this page you can call every public function, read every field of a result, catch every error by its "
        "name and set every option. For explanations and examples see the pages that the sections name; for the "
        "command line see [help.md](help.md).",
    ]
    made: list[str] = []
    bodies = {"Options": options, "In the REPL": repl}
    for section in SECTIONS:
        body = bodies[section.title]() if section.title in bodies else section.intro
        names = section.names
        extra = [entry(rlm, "Backend")] if section.module is rlm_backends else []
        made += [f"## {section.title}", body, *(entry(section.module, name) for name in names), *extra]
    body = page(*made)
    return page(*parts, contents(body), body.rstrip())


# --- help.md --------------------------------------------------------------------------------------------------------

EXITS = (
    (rlm_cli.EXIT_OK, "Success. Also if the program that reads stdout ends early, as `head` does."),
    (
        rlm_cli.EXIT_FAILED,
        "Failure of the provider, the sandbox, the code, a row of a batch or a check; or a replay that diverged.",
    ),
    (rlm_cli.EXIT_USAGE, "Wrong usage or configuration, a missing key, an unusable context: nothing was sent."),
    (
        rlm_cli.EXIT_LIMIT,
        "A limit stopped the run. Stdout has the best partial answer, stderr the command that continues.",
    ),
    (rlm_cli.EXIT_INTERRUPTED, "Interrupted by Ctrl-C. Stderr has the command that continues."),
    (rlm_cli.EXIT_TERMINATED, "Terminated by SIGTERM. Stderr has the command that continues."),
)
VARIABLES = (
    (("RLM_DEBUG",), "`1`: tracebacks with errors, as `--debug`"),
    (("RLM_MCP_CLI",), "the command that answers sub-questions of `rlm mcp-serve`: prompt on stdin, answer on stdout"),
    (("XDG_CONFIG_HOME",), "where `rlm/config.toml` and the list of trusted files are (default `~/.config`)"),
    (("XDG_CACHE_HOME",), "where `rlm/` keeps cached replies and downloaded models (default `~/.cache`)"),
    (("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"), "another address for that provider"),
    (("HF_ENDPOINT", "HF_TOKEN"), "the hub that `-m hf:…` downloads from, and the token for it"),
    (("OTEL_EXPORTER_OTLP_ENDPOINT",), "the collector of `rlm export --otel`, and of `rlm_viz.OTel`"),
    (("NO_COLOR", "FORCE_COLOR"), "no colours, or colours without a terminal; `--color` wins over both"),
    (("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"), "proxies; never used for loopback"),
    (("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"), "certificate authorities"),
    (("DOCKER_HOST",), "the Docker engine to use"),
)


def command_help(name: str) -> str:
    """A command: usage, its own arguments and flags, examples."""
    command = rlm_cli.COMMANDS[name]
    examples = "\n".join(rlm_cli.EXAMPLES[name])
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    parts = [f"## rlm {name}", summary]
    if name == "mcp-serve":  # it has no parser
        parts.append(fenced(rlm_cli._SERVE_HELP, "text"))
        return page(*parts, fenced(examples, "sh")).rstrip()
    parser = rlm_cli.command_parser("" if name == "run" else name)
    parts.append(fenced(parser.usage or "", "text"))
    rows = []
    for group in parser._action_groups:
        if group.title == "general":
            continue
        if any(action.dest == "max_depth" for action in group._group_actions):
            written = (
                "It also takes the [options of a run](#options-of-a-run), and writes those that you give into the file."
            )
            resumed = "Limits among the [options of a run](#options-of-a-run) replace the recorded limits."
            also = "It also takes the [options of a run](#options-of-a-run)."
            parts.append({"init": written, "resume": resumed}.get(name, also))
            continue
        rows += [_argument(action) for action in group._group_actions if action.dest != "help"]
    if rows:
        parts.insert(3, table(("argument", "meaning"), rows))
    return page(*parts, fenced(examples, "sh")).rstrip()


def _argument(action: Any) -> tuple[str, str]:
    """A row for an argument: its flags and the name of its value, and its help."""
    value = action.metavar or "|".join(action.choices or ())
    if not action.option_strings:
        return code(value), action.help
    last = "" if action.nargs == 0 else f" {value}"
    flags = [*action.option_strings[:-1], action.option_strings[-1] + last]
    return " ".join(map(code, flags)), action.help.replace("%%", "%")


def _options_of_a_run() -> str:
    rows = []
    for name, row in rlm_config.OPTIONS.items():
        flags = rlm_cli.flags_of(name)
        is_switch = rlm_config.type_of(name) == "bool"
        shown = " ".join(map(code, flags if is_switch else [*flags[:-1], f"{flags[-1]} {rlm_cli.metavar(name)}"]))
        shown += f" `--no-{name.replace('_', '-')}`" if is_switch else ""
        default = {"True": "on", "False": "off", "None": ""}.get(str(row.default), str(row.default))
        rows.append((shown, default, option_help(name)))
    rows.append(("`--no-log`", "", "write no journal; the run cannot be resumed"))
    return table(("flag", "default", "meaning"), rows)


def command_line() -> str:
    general = rlm_cli.command_parser("")._action_groups[-1]._group_actions[:-1]  # without --version
    commands = [(f"[`rlm {name}`](#rlm-{name})", command.summary) for name, command in rlm_cli.COMMANDS.items()]
    return page(
        "# Command line reference",
        MADE,
        "After this page you can call every command of `rlm` with every flag, and use its exit status in a script. The "
        "same text is in `rlm --help` and `rlm COMMAND --help`; [quickstart.md](quickstart.md) shows a first session.",
        'The first word is the command. Without a command, `rlm` answers a prompt: `rlm "PROMPT"` and '
        '`rlm run "PROMPT"` are the same. If the prompt is the name of a command, write `rlm run`, as in '
        "`rlm run logs`. Words after `--` are never flags. "
        "The answer, JSON and listings go to stdout, everything else to stderr. `ID` is a run's id or a unique prefix "
        "of it.",
        table(("command", "does"), commands),
        "Every command except `mcp-serve` also takes these flags. `rlm --version` prints the version.",
        table(("argument", "meaning"), map(_argument, general)),
        *map(command_help, rlm_cli.COMMANDS),
        "## Options of a run",
        "Each of these is also a key of `rlm.toml` and an environment variable: `--max-depth` is `max_depth` and "
        "`RLM_MAX_DEPTH`. A flag overrides the variable, the variable overrides the files, and the files override the "
        "default. `rlm config` shows each value and where it comes from. Lists (`--tools`, `--mcp`, `--allowed-paths`, "
        "`--allowed-imports`) are separated by commas or given as several flags. `-p` is given once for each "
        "parameter.",
        _options_of_a_run(),
        "## Exit status",
        table(("status", "meaning"), [(code(str(status)), words) for status, words in EXITS]),
        "With `--json`, stdout has one object with every key, whatever the status: `status` (`answered`, `partial`, "
        f"`error` or `interrupted`), `model`, {', '.join(map(code, rlm_cli._OUTCOME))} and `error` (null, or `type`, "
        "`message`, `hint`). What is unknown is null. The keys mean what the fields of "
        "[`CompletionResult`](api.md#completionresult) mean.",
        "## Environment variables",
        "`RLM_` and an option's name in capitals sets that option (`RLM_MODEL`, `RLM_COST_BUDGET_USD`); an empty "
        "variable counts as not set. `SNIPARA_API_KEY`, `SNIPARA_PROJECT_SLUG` and `SNIPARA_API_URL` are those of "
        "Snipara's own programs. Keys are in each provider's variable, such as `OPENAI_API_KEY`; `rlm providers` "
        "lists them.",
        table(("variable", "does"), [(", ".join(map(code, names)), words) for names, words in VARIABLES]),
    )


# --- prompts.md -----------------------------------------------------------------------------------------------------


class Recorder:
    """A backend that keeps what it is sent, and answers from a list."""

    model = "example"
    provider = "example"

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.sent: list[tuple[list[dict[str, Any]], Any]] = []

    def complete(self, messages: list[dict[str, Any]], *, tools: Any, **_: Any) -> Any:
        self.sent.append(([dict(message) for message in messages], tools))
        reply = self.replies.pop(0)
        fence = "```repl" if "```repl" in messages[0]["content"] else "```python"
        return cell(reply) if tools else f"{fence}\n{reply}\n```" if reply.startswith("#") else reply


def cell(text: str) -> Any:
    """A reply that runs a cell, if the text begins with a comment; else the answer."""
    calls = [{"id": "call_1", "name": "execute_code", "arguments": {"code": text}}] if text.startswith("#") else []
    usage = {"input": 1, "output": 1}
    return rlm_backends.Reply("" if calls else text, calls, usage, "tool_calls" if calls else "stop", "example")


QUESTION = "Which customer has the most failed payments?"
ROWS = [("Acme", "failed", "expired card"), ("Brix", "paid", ""), ("Coil", "failed", "no funds")]
PAYMENTS = "customer,status,reason\n" + "".join(",".join(ROWS[n % 3]) + "\n" for n in range(500))
COUNTING = "# count\nfrom collections import Counter\nCounter(line.split(',')[0] for line in context.splitlines())"


def sent(replies: Sequence[str] = (COUNTING, "Acme"), context: Any = PAYMENTS, **options: Any) -> list[Any]:
    """What a run sends: (messages, tools) of each call."""
    backend = Recorder(*replies)
    with rlm.RLM(backend=backend, config=False, log_dir="", **options) as runtime:
        runtime.completion(QUESTION, context)
    return backend.sent


def transcript(messages: Iterable[dict[str, Any]]) -> str:
    """Messages, each under its role."""
    shown = []
    for message in messages:
        calls = [f"execute_code({json.dumps(call['arguments'])})" for call in message.get("tool_calls") or []]
        shown.append("\n".join([f"[{message['role']}]", *calls, *([message["content"]] if message["content"] else [])]))
    return "\n\n".join(shown)


def _profile(title: str, why: str, calls: list[Any]) -> list[str]:
    system, user = calls[0][0][:2]
    return [
        f"## {title}",
        why,
        f"The system prompt, {len(system['content'].encode()):,} bytes:",
        fenced(system["content"], "text"),
        "The first user message:",
        fenced(user["content"], "text"),
    ]


def full_profile() -> list[str]:
    by_tools, by_text = sent(prompt="full", protocol="tools"), sent(prompt="full", protocol="text")
    return [
        *_profile(
            "Profile full, tool calls",
            "For large models. It states the functions, the habits that save calls and tokens, and the limits; it has "
            "no examples, because these models know how to work with code and every turn pays for the prompt again.",
            by_tools,
        ),
        "The tool schemas, in the form that is independent of the provider ([providers.md](providers.md) has the "
        "wires). `execute_code` comes first, then the file tools, then tools of yours. Their descriptions are short "
        "for the same reason as the prompt:",
        fenced("\n".join(json.dumps(schema, ensure_ascii=False) for schema in by_tools[0][1]), "json"),
        "The second call has the code and its output:",
        fenced(transcript(by_tools[1][0][2:]), "text"),
        *_profile(
            "Profile full, text",
            "For large models whose server takes no tools: a fenced block is the cell. Only the last rule differs: "
            "how to run code and how to finish. No tools are sent.",
            by_text,
        ),
        "The second call:",
        fenced(transcript(by_text[1][0][2:]), "text"),
    ]


def small_profile() -> list[str]:
    by_text = sent([COUNTING, COUNTING, "ANSWER: Acme"], prompt="small", protocol="text")
    return [
        *_profile(
            "Profile small, text",
            "For models of up to 10 billion parameters, which copy a worked example better than they follow a rule. "
            "Hence examples of the commonest tasks, one line as the form of an answer, no recursion, and, after the "
            "first lines of the input, a line of code to begin with.",
            by_text,
        ),
        "After each output a line says what to do next. After the same cell was run again, it says so:",
        fenced(transcript(by_text[1][0][2:]), "text"),
        fenced(transcript(by_text[2][0][-1:]), "text"),
        *_profile(
            "Profile small, tool calls",
            "The same with `--protocol tools`, and with the tool schemas above. By default small models get the text "
            "protocol, in which they need not write JSON.",
            sent(prompt="small", protocol="tools"),
        ),
    ]


SUBCALLS = (
    "# sub-calls\nlines = context.splitlines()\n"
    "llm_query('Why did this payment fail?\\n' + lines[1])\n"
    "llm_query('Was this paid?\\n' + lines[1], schema=['yes', 'no'])\n"
    "map_query('Was it paid?', lines[1:3], ['yes', 'no'])\n"
    "rlm_query('Which reasons are there?', lines[1:])"
)


def subcalls() -> list[str]:
    answers = ["Expired.", '{"answer": "no"}', '{"1": "no", "2": "yes"}', "# rows\nlen(context)", "Two."]
    asked = sent([SUBCALLS, *answers, "Acme"], prompt="full", protocol="tools")
    query, typed, mapped = (messages[0]["content"] for messages, _ in asked[1:4])
    return [
        "## Sub-calls",
        "`llm_query(prompt)` sends the prompt as the only message, without a system prompt: the model sees what the "
        "code put into it and nothing else.",
        fenced(query, "text"),
        'With `schema=["yes", "no"]` the form of the answer is appended, and is sent as the provider\'s own structured '
        "output where it has that. It is wrapped in an object, since some servers take objects only:",
        fenced(typed, "text"),
        '`map_query(question, items, ["yes", "no"])` numbers the items and asks for one answer under each number, so '
        "that none is skipped:",
        fenced(mapped, "text"),
        "`rlm_query(prompt, context)` starts a child, with the same system prompt and tools. Its first user message:",
        fenced(asked[4][0][1]["content"], "text"),
    ]


def prompts() -> str:
    short = "".join(PAYMENTS.splitlines(keepends=True)[:7])
    astray = sent(["", "Acme has.", COUNTING, COUNTING, "Acme"], prompt="full", protocol="tools", max_iterations=5)
    return page(
        "# Prompts, as they are sent",
        MADE,
        "After this page you know what a model is sent, word for word, and can write a prompt of your own. Everything "
        "here is recorded from runs with a scripted model, over a CSV file of 500 payments, with the default options. "
        "[repl.md](repl.md#what-the-model-is-told) says which profile a model gets, and how to replace the prompt.",
        "A request begins with the system prompt and the tool schemas. They are the same for every run with the same "
        "options, and for its children, so that a provider's prompt cache can serve them. The description of the "
        "input (type, size, format and first lines) follows the question, in the user message.",
        "Your options change the prompt as follows:",
        "- `system` (`-s`) is appended after a blank line, for the run and not for its children.\n"
        "- `cost_budget_usd` and `timeout_seconds` are added to the limits in the last line.\n"
        "- With Docker, the prompt says that the REPL has the whole standard library.\n"
        "- Your tools are listed with `file_read`, and MCP servers on a line of their own.\n"
        "- At `max_depth` 0, `rlm_query` is not mentioned.",
        *full_profile(),
        *small_profile(),
        *_profile(
            "A plain call",
            "With `plain_below`, a short context goes to the model as it is, without REPL and tools "
            "([configuration.md](configuration.md#short-contexts-one-plain-call)).",
            sent(["Acme"], short, plain_below="auto"),
        ),
        *subcalls(),
        "## When a reply cannot be used",
        "What follows when a reply is empty, then when an answer comes before any code has looked at the input, when "
        "the same cell is run twice, and on the last turn:",
        fenced(transcript(astray[-1][0][2:]), "text"),
    )


def sample() -> str:
    """The page of the recorded run of sample.md."""
    return rlm_viz.render(rlm_viz.read(HERE / "sample" / "journal.jsonl")[0])


# --- writing --------------------------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {
    "api.md": api,
    "help.md": command_line,
    "prompts.md": prompts,
    "sample/trajectory.html": sample,
}


def main() -> int:
    for name in [name for name in os.environ if name.startswith(("RLM_", "SNIPARA_"))]:
        del os.environ[name]  # options that would change the prompts
    differing = []
    for name, make in PAGES.items():
        text, path = make(), HERE / name
        if not path.exists() or path.read_text("utf-8") != text:
            differing.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    if "--check" in sys.argv and differing:
        print(f"not as the code has it: {', '.join(differing)}; run: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
