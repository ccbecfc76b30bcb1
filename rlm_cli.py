# /// script
# requires-python = ">=3.10"
# dependencies = ["requests", "RestrictedPython", "docker", "tomli; python_version < '3.11'"]
# ///
"""The command line: `python -m rlm "prompt"`, `rlm logs`, `rlm chat` and the rest, and a run's progress.

    stdout  the answer, or one JSON object, or the events as JSON lines; nothing else
    stderr  progress, notes, and errors in three lines: what happened, where rlm looked, what to do next

A command is a row of COMMANDS: a summary, a function that declares its arguments and one that runs it, which returns
an Outcome. The flags of a run are made from `rlm_config.OPTIONS`, so that each option is written down once. The other
modules are imported on first use: `mcp-serve` imports only what it needs.

Not here: what a run does (rlm.py) and how a trajectory is drawn (rlm_viz.py). Needs all of its siblings.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TextIO

if TYPE_CHECKING:
    import argparse
    from dataclasses import Field
    from http.server import ThreadingHTTPServer

    import rlm
    import rlm_backends
    import rlm_config
    import rlm_mcp
    import rlm_sandbox
    import rlm_tools
    import rlm_viz


class LazyModule:
    """A module of ours that is imported when it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        import importlib

        module = importlib.import_module(f"{__package__}.{self._name}" if __package__ else self._name)
        if self._name == "rlm" and not hasattr(module, "LimitExceeded"):
            sys.stderr.write(f"rlm: another package hides flat-rlm's module rlm: {module.__file__}\n")
            sys.stderr.write(
                "  next: uninstall it, or install flat-rlm in a virtual environment; `rlm doctor` tells more\n"
            )
            raise SystemExit(EXIT_USAGE)
        globals()[self._name] = module
        return getattr(module, attribute)


if not TYPE_CHECKING:
    rlm, rlm_backends, rlm_mcp = LazyModule("rlm"), LazyModule("rlm_backends"), LazyModule("rlm_mcp")
    rlm_sandbox, rlm_tools, rlm_viz = LazyModule("rlm_sandbox"), LazyModule("rlm_tools"), LazyModule("rlm_viz")
    rlm_config = LazyModule("rlm_config")

__all__ = ["main"]

Event = dict[str, Any]
OptionValues = Mapping[str, Any]  # by the options' names
Row = dict[str, Any]  # an object of JSON that a command reads or prints
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_LIMIT, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 3, 130, 143  # exit codes


# --- entry point and outcome ----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a command ended. A command returns one, or None where it did all that it was asked to."""

    code: int = EXIT_OK  # of a command that ended by itself; else `error` decides
    error: BaseException | None = None
    result: rlm.CompletionResult | None = None
    model: str | None = None
    resume_flags: Callable[[str], str] | None = lambda but: ""  # without those of an option; None: it cannot be resumed
    done: str = ""  # instead of the figures of `result`, of what was interrupted
    next_step: str = ""


def exit_status(error: BaseException) -> tuple[int, str]:
    """(exit code, `status` in JSON) of what an error ended. A reader of stdout that went away has seen enough."""
    table: tuple[tuple[type[BaseException], int, str], ...] = (
        (Terminated, EXIT_TERMINATED, "interrupted"),
        (KeyboardInterrupt, EXIT_INTERRUPTED, "interrupted"),
        (BrokenPipeError, EXIT_OK, ""),
        (rlm.LimitExceeded, EXIT_LIMIT, "partial"),
        (rlm.ConfigError, EXIT_USAGE, "error"),
        (BaseException, EXIT_FAILED, "error"),
    )
    return next((code, status) for cls, code, status in table if isinstance(error, cls))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    stderr = sys.stderr
    try:
        if arguments[:1] == ["mcp-serve"]:  # an MCP client waits for the first byte: nothing else may cost time
            return mcp_serve(arguments[1:])
        shell = Invocation(arguments)
        return shell.report(outcome_of(lambda: dispatch(arguments, shell)))
    except KeyboardInterrupt as stop:  # before the command begins, or while its outcome is reported
        return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
    finally:
        sys.stderr = stderr


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours looks like the other lines on stderr; those of tools and libraries say where they come from."""
    if category is RuntimeWarning and os.path.basename(filename).startswith("rlm"):
        return f"rlm: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def outcome_of(command: Callable[[], Outcome | None]) -> Outcome:
    """Run a command; what it raises becomes its outcome."""
    try:
        listen_for_signals()
        return command() or Outcome()
    except SystemExit as leaving:  # argparse, after --help
        return Outcome(int(leaving.code or 0))
    except (KeyboardInterrupt, Exception) as error:
        return Outcome(error=error)


class Terminated(KeyboardInterrupt):
    """SIGTERM (systemd, `docker stop`, timeout): handled like Ctrl-C, but it also ends a chat."""


def listen_for_signals() -> None:
    """Make the first Ctrl-C or SIGTERM an exception and ignore later ones: they must not cut the cleanup short."""
    import signal

    def once(number: int, _: object) -> None:
        for heard in handled_signals:
            signal.signal(heard, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        # A background job keeps ignoring Ctrl-C.
        if signal.getsignal(number) != signal.SIG_IGN or number in handled_signals:
            handled_signals.add(number)
            signal.signal(number, once)


handled_signals: set[int] = set()  # signals that we ignore, not our parent


def dispatch(arguments: list[str], shell: Invocation) -> Outcome | None:
    """Find the command, read its arguments, run it. A command word is one only as the very first argument."""
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    command = COMMANDS[name or "run"]
    parser = command_parser(name)
    args = parse_args(parser, arguments[1:] if name else arguments, named=bool(name))
    shell.colour(getattr(args, "color", None))
    return command.run(args, shell)


class Invocation:
    """One invocation: the form in which it answers, its two streams, and the report of its outcome."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.stdout_closed = ensure_std_streams()
        self.terminal = Terminal(sys.stderr)
        sys.stderr = Harmless(sys.stderr)  # what tools, warnings and other modules print
        warnings.formatwarning = format_warning
        self.out = sys.stdout  # while a run goes on, sys.stdout is stderr: see `prints_to_stderr`
        self.coloured = False
        flags = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        self.form = "jsonl" if "--jsonl" in flags else "json" if "--json" in flags else "text"
        self.debug = "--debug" in flags or os.environ.get("RLM_DEBUG", "") not in ("", "0")
        self.stdout_error: BrokenPipeError | rlm.RLMError | None = None  # why nothing more can be written to stdout
        self._lock = threading.Lock()

    def colour(self, preference: str | None) -> None:
        """Settle which streams are coloured, now that `--color` has been read."""
        self.coloured = wants_colour(self.out, preference)
        self.terminal.colour = wants_colour(sys.stderr, preference)

    def print(self, text: str) -> None:
        """Print an answer on stdout: unchanged, but on a terminal without control characters."""
        self.write((strip_control(text) if self.out.isatty() else text) + "\n")

    def show(self, text: str, *, lead: str = "", style: str = "") -> None:
        """Print one line of a listing on stdout, without control characters: names and paths may be hostile."""
        painted = f"\x1b[{_STYLES[style]}m{lead}\x1b[0m" if self.coloured and style else lead
        self.write(encodable(self.out, painted + " ".join(strip_control(text).splitlines())) + "\n")

    def write(self, text: str) -> None:
        """Text for stdout."""
        with self._writing():
            self.out.write(text)

    def flush(self) -> None:
        """Return once everything is written, or raise."""
        with self._writing():
            self.out.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk is an RLMError, a reader that went away a BrokenPipeError; so is every later attempt to write."""
        if self.stdout_error is not None:
            raise self.stdout_error
        try:
            yield
        except OSError as error:
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), 1)  # or what is left in the buffer fails once more when Python ends
            if not isinstance(error, BrokenPipeError):
                self.stdout_error = rlm.RLMError(f"cannot write to stdout: {error.strerror}")
                raise self.stdout_error from error
            self.stdout_error = error
            raise

    def print_json(self, value: object) -> None:
        """One line of JSON for stdout, whole even when several threads write at the same time."""
        line = rlm_tools.to_json(value).replace("\x7f", "\\u007f") + "\n"
        with self._lock:
            self.write(line)
            self.flush()

    def emit(self, event: Event) -> bool:
        """Write an event for `--jsonl`; False if this has failed. Once stdout is lost, events are dropped."""
        if self.stdout_error is None:
            try:
                self.print_json(event)
            except (BrokenPipeError, rlm.RLMError):
                return False  # the error is kept
        return True

    def report(self, ended: Outcome) -> int:
        """Report how the command ended, on stdout and in three lines on stderr; the exit code."""
        error = ended.error
        if error is None or isinstance(error, BrokenPipeError):
            try:
                self.flush()
            except (BrokenPipeError, rlm.RLMError):
                pass  # it is kept
        error = self.stdout_error or error
        if error is None:
            return ended.code
        code, status = exit_status(error)
        if code == EXIT_OK:
            return code
        lines = self._error_lines(error, ended)
        if error is not self.stdout_error and not self._report_on_stdout(status, error, lines, ended):
            return EXIT_OK
        if self.debug and isinstance(error, Exception):
            import traceback

            self.terminal.write_line(without_keys("".join(traceback.format_exception(error)).rstrip()), lines=True)
        self.terminal.error(*lines)
        return code

    def _error_lines(self, error: BaseException, ended: Outcome) -> tuple[str, str, str]:
        """What happened, what rlm looked at or how far the run came, and what to do next."""
        result = ended.result or getattr(error, "result", None)
        if isinstance(error, KeyboardInterrupt):
            done = ended.done or (f"done: {summary(result)}" if result else "")
            word = "terminated" if isinstance(error, Terminated) else "interrupted"
            return word, done, ended.next_step or resume_command(ended, result)
        message, second, next_step = map(without_keys, describe_error(error))
        if error is self.stdout_error and result is not None and result.status == "answered":
            answer = f"the answer is in {result.log}" if result.log else ""
            return message.replace("cannot write", "cannot write the answer"), "", answer
        if isinstance(error, rlm.LimitExceeded):
            next_step = resume_command(ended, result, error.option, error.needed)
            if error.option == "confirm_above" and error.needed is None:
                next_step = error.hint
            second = "" if next_step else f"raise it: {flags_of(error.option)[-1]} {metavar(error.option)}"
        elif result is not None and not isinstance(error, rlm.ConfigError):
            if "max_errors" in next_step:
                return message, next_step, resume_command(ended, result, "max_errors")
            next_step = " or ".join(part for part in (next_step, resume_command(ended, result)) if part)
        return message, second, next_step

    def _report_on_stdout(self, status: str, error: BaseException, lines: tuple[str, str, str], ended: Outcome) -> bool:
        """Write the JSON object, or the partial answer, of a run that did not end well; False if nobody reads it."""
        result = ended.result or getattr(error, "result", None)
        try:
            if self.form != "text":
                is_fault = isinstance(error, Exception)
                fault = {"type": type(error).__name__, "message": lines[0], "hint": lines[2]} if is_fault else None
                self.print_result_json(result_dict(status, result, ended.model, fault))
            elif result is not None and result.response:
                self.print(result.response)
            self.flush()
        except BrokenPipeError:
            return False
        except rlm.RLMError as unwritable:
            self.terminal.error(*self._error_lines(unwritable, ended))
        return True

    def print_result_json(self, result: Row) -> None:
        """The object of `--json`, or the last line of `--jsonl`."""
        self.print_json({"event": "result", **result} if self.form == "jsonl" else result)


def resume_command(
    ended: Outcome, result: rlm.CompletionResult | None, limit: str = "", needed: float | None = None
) -> str:
    """The command that continues a run: with the limit that stopped it as `needed`, or doubled, and all its flags."""
    if result is None or not result.log or ended.resume_flags is None or (limit == "confirm_above" and not needed):
        return ""
    raised = f" {flags_of(limit)[-1]} {f'{needed:g}' if needed else doubled(result.log, limit)}" if limit else ""
    return f"rlm resume {result.trajectory_id}{raised}{ended.resume_flags(limit)}"


_PACKAGES = ("requests", "urllib3", "RestrictedPython", "docker", "tomli")  # that rlm imports


def describe_error(error: BaseException) -> tuple[str, str, str]:
    """(message, second line, next step) of an error. Other classes than these two are reported as a bug in rlm."""
    if isinstance(error, rlm.RLMError):
        looked = getattr(error.__cause__, "looked_for", None)
        if not looked:
            return error.message, "", error.hint
        places = f"{', '.join(looked)} (environment, .env), api_key (rlm.toml, user configuration)"
        return error.message, f"looked for: {places}", f"{error.hint}   or   rlm providers   or   rlm demo"
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        return f"the package {error.name} is not installed", "", f"pip install {error.name}"
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}", "", ""
    return f"{type(error).__name__}: {error}", "this is a bug in rlm", "run again with --debug and report this"


def doubled(log: str | os.PathLike[str], limit: str) -> str:
    """Twice the limit that a run had when it was last begun or resumed, as its flag takes it."""
    value: Any = rlm_config.OPTIONS[limit].default
    for event in rlm_viz.read(log, bodies=False)[0]:
        if event.get("event") == "resume" or (event.get("event") == "start" and not event.get("depth")):
            recorded = (event.get("limits") or {}).get(limit)
            value = value if recorded is None else recorded
    return f"{max(1, 2 * value):d}" if isinstance(value, int) else f"{2 * value:.10g}"


def without_keys(text: str) -> str:
    """The text without the keys in the environment. Errors that nobody foresaw may still hold one."""
    names = {*rlm_backends.key_variables(), "RLM_API_KEY", "SNIPARA_API_KEY", "RLM_SNIPARA_API_KEY"}
    return str(rlm_backends.mask(text, [os.environ[name] for name in names if os.environ.get(name)]))


_OUTCOME = (
    *("response", "value", "trajectory_id", "total_calls", "total_tokens", "usage", "cost_usd", "depth_reached"),
    *("tool_calls", "duration_ms", "log"),
)


def result_dict(
    status: str, result: rlm.CompletionResult | None, model: str | None, error: Mapping[str, str] | None
) -> Row:
    """The object of `--json`: always every key, null where nothing is known."""
    known = {name: getattr(result, name, None) for name in _OUTCOME}
    return {"status": status, "model": model, **known, "error": error}


def prints_to_stderr() -> contextlib.AbstractContextManager[object]:
    """Send what tools print to stderr: stdout is for the answer."""
    return contextlib.redirect_stdout(sys.stderr)


def ensure_std_streams() -> bool:
    """Make the standard streams safe to write to; True if stdout was closed.

    A closed descriptor is opened on /dev/null, or the next file to be opened would get its number. Characters that a
    stream cannot encode are written as escapes.
    """
    closed = False
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            closed = closed or number == 1
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return closed


# --- arguments ------------------------------------------------------------------------------------------------------

_METAVARS = {"int": "N", "float": "N", "str": "TEXT", "list[Any]": "FILE_OR_MODULE", "list[str]": "LIST"}


def flags_of(option: str) -> list[str]:
    """The flags of an option; messages name the last one."""
    long = "--" + option.replace("_", "-")
    row = rlm_config.OPTIONS[option].metadata
    flags = [row["short"], long, row["flag"]]
    return [flag for flag in dict.fromkeys(flags) if flag]


def metavar(option: str) -> str:
    """The name of an option's value in the help."""
    named = str(rlm_config.OPTIONS[option].metadata["metavar"])
    return named or _METAVARS.get(rlm_config.type_of(option), "JSON")


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command; without a name, the parser of a run, whose help lists the commands."""
    command = COMMANDS[name or "run"]
    parser = new_parser(f"rlm {name}".strip(), command.summary)
    command.declare(parser)
    general = parser.add_argument_group("general")
    general.add_argument("--config", metavar="PATH", help="use only this configuration file")
    general.add_argument("--color", choices=("auto", "always", "never"), help="colours (default: on a terminal)")
    general.add_argument("--debug", action="store_true", help="show tracebacks")
    if name in EXAMPLES:
        parser.epilog = examples_of(name)
    if not name:
        general.add_argument("--version", action="version", version=f"rlm {rlm.__version__}")
        rows = "\n".join(f"  {word:<13} {row.summary}" for word, row in COMMANDS.items())
        parser.epilog = f"{examples_of('run')}\n\ncommands (as the first word; `rlm COMMAND --help`):\n{rows}"
    return parser


def examples_of(name: str) -> str:
    """The examples at the end of a command's help."""
    return "examples:\n" + "".join(f"  {line}\n" for line in EXAMPLES[name]).rstrip()


def new_parser(program: str, description: str) -> argparse.ArgumentParser:
    """An argument parser that raises ConfigError."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise rlm.ConfigError(message, hint=f"{self.prog} --help")

        def _print_message(self, message: str, file: Any = None) -> None:
            """Unlike argparse, raise an OSError when the disk is full."""
            (file or sys.stderr).write(message)

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def _format_action_invocation(self, action: argparse.Action) -> str:
            """All flags, then the value's name once; the help of `--x` mentions `--no-x`."""
            if not action.option_strings:
                return super()._format_action_invocation(action)
            flags = ", ".join(flag for flag in action.option_strings if not flag.startswith("--no-"))
            flags = flags or action.option_strings[0]
            return flags if action.nargs == 0 else f"{flags} {action.metavar or '|'.join(action.choices or ())}"

    return Parser(
        prog=program,
        description=description,
        formatter_class=lambda prog: Formatter(prog, max_help_position=32, width=110),
        allow_abbrev=False,
        add_help=True,
    )


def parse_args(parser: argparse.ArgumentParser, arguments: list[str], *, named: bool) -> argparse.Namespace:
    """The arguments of a command; words after `--` are never options. ConfigError suggests the flag that was meant."""
    import difflib

    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args, unknown = parser.parse_known_args(arguments[:cut])
    flags = [word.split("=")[0] for word in unknown if word.startswith("-") and word != "-"]
    if flags:
        known = [flag for action in parser._actions for flag in action.option_strings]
        meant = difflib.get_close_matches(flags[0], known, n=1)
        hint = f"did you mean {meant[0]!r}?" if meant else f"{parser.prog} --help"
        raise rlm.ConfigError(f"unknown option {flags[0]!r}", hint=hint)
    positionals = [*getattr(args, "words", []), *unknown, *arguments[cut + 1 :]]
    if positionals and not hasattr(args, "words"):
        raise rlm.ConfigError(f"unexpected argument {positionals[0]!r}", hint=f"{parser.prog} --help")
    args.words = positionals
    args.first = "" if named or cut == 0 else arguments[0]
    return args


def declare_options(parser: argparse.ArgumentParser, title: str = "options of a run, also keys of rlm.toml") -> None:
    """Add a flag for each option of `rlm_config.OPTIONS`."""
    import argparse

    group = parser.add_argument_group(title)
    taken = {flag for action in parser._actions for flag in action.option_strings}
    for name, row in rlm_config.OPTIONS.items():
        text = row.metadata["help"].replace("%", "%%")
        flags = [flag for flag in flags_of(name) if flag not in taken]
        kind = rlm_config.type_of(name)
        repeats = kind.startswith("list") or name in (*rlm_config.PAIRS, "mcp")
        how: dict[str, Any] = {"action": "append" if repeats else "store", "metavar": metavar(name)}
        if kind == "bool":
            how = {"action": argparse.BooleanOptionalAction, "default": None}
        group.add_argument(*flags, dest=name, help=help_with_default(text, row), **how)
    group.add_argument("--no-log", action="store_true", help="write no journal; the run cannot be resumed")


def help_with_default(text: str, row: Field[object]) -> str:
    """The help of an option with its default. (BooleanOptionalAction adds one where the text has none.)"""
    if row.default is True:
        return f"{text} (default; --no-{row.name.replace('_', '-')} turns it off)"
    return text if row.default in (None, False) or "default" in text else f"{text} (default {row.default})"


def given_options(args: argparse.Namespace) -> OptionValues:
    """The options that the command line sets."""
    values = {}
    for name in rlm_config.OPTIONS:
        value = getattr(args, name, None)
        if value is not None:
            values[name] = _option_value(name, value)
    if getattr(args, "no_log", False):
        values["log_dir"] = ""
    return values


def rerun_flags(args: argparse.Namespace, *but: str) -> str:
    """The flags of this command line, quoted for a shell, for the command that continues; never those of keys."""
    import shlex

    words = ["--config", args.config] if args.config else []
    for name in rlm_config.OPTIONS:
        value = getattr(args, name, None)
        if value is None or name in but or name.endswith("api_key"):
            continue
        if name == "mcp" and "{" in "".join(value):  # servers written out, perhaps with their keys
            continue
        flag = flags_of(name)[-1]
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
            continue
        for text in value if isinstance(value, list) else [value]:
            text = re.sub(r"//[^/@\s]+@", "//", text) if name.endswith("_url") else text
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return "".join(f" {shlex.quote(without_keys(word))}" for word in words)


def _option_value(name: str, value: Any) -> object:
    flag = flags_of(name)[-1]
    if name == "schema":
        return _read_schema(value)
    if name in rlm_config.PAIRS:
        return rlm_config.parse_params(value, flags_of(name)[0])
    if isinstance(value, list):
        items = [rlm_config.parse_option(name, text, flag) for text in value]
        return items[-1] if isinstance(items[-1], dict) else [item for part in items for item in part]
    if isinstance(value, bool):
        return value
    choices = rlm_config.OPTIONS[name].metadata["choices"] or (value,)
    if value not in choices:
        raise rlm.ConfigError(f"{flag} is {value!r}", hint=rlm_config.suggestion(value, choices))
    return rlm_config.checked(name, rlm_config.parse_option(name, value, flag), flag)


def _read_schema(path: str) -> object:
    """The JSON Schema from a file, or from the command line itself."""
    if path.lstrip().startswith("{"):
        return rlm_config.parse_option("schema", path, "--schema")
    try:
        return rlm_backends.from_json(rlm_tools.read_text(path))
    except OSError as error:
        raise rlm.ConfigError(
            f"--schema: cannot read {path!r}: {error.strerror}", hint="a file with a JSON Schema"
        ) from error
    except (ValueError, RecursionError) as error:
        raise rlm.ConfigError(f"--schema: {path!r} is not JSON: {error}", hint="a file with a JSON Schema") from None


# --- text on a terminal ---------------------------------------------------------------------------------------------

_CONTROL = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]{0,200}[ -/]{0,20}[@-~]"  # CSI: colours, cursor
    "|(?:\x1b[\\]P_^X]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,2000}(?:\x07|\x1b\\\\|\x9c)"  # OSC, DCS: links, clipboard
    "|\x1b.?"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)
_IN_ASCII = str.maketrans(
    {"✓": "ok", "✗": "x", "…": "...", "→": "->", **dict(zip("·●○▶■◆×↻⇊", "-*o>#@x@v", strict=True))}
)
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def strip_control(text: str) -> str:
    """The text without escape sequences, control characters and direction overrides."""
    return _CONTROL.sub("", text)


def plain_but_styled(text: str) -> str:
    """`strip_control` for text that rlm has coloured: our own styles stay."""
    own = rf"(\x1b\[(?:0|{'|'.join(_STYLES.values())})m)"
    return "".join(part if n % 2 else strip_control(part) for n, part in enumerate(re.split(own, text)))


def one_line(text: object, width: int) -> str:
    """The text on one line without control characters, truncated to `width` characters."""
    line = " ".join(strip_control(str(text))[: 4 * width].split())
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def wants_colour(stream: TextIO, preference: str | None = None) -> bool:
    """`--color`, else NO_COLOR, else FORCE_COLOR (empty variables are ignored), else whether it is a terminal."""
    if preference in ("always", "never"):
        return preference == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


class Harmless:
    """A stream that drops control characters from what others print to it."""

    def __init__(self, stream: TextIO | Invocation) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(strip_control(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Terminal:
    """stderr: permanent lines and, on a terminal, one status line below them that is repainted."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = wants_colour(stream)
        self._lock = threading.Lock()
        self._painted = False

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour and style else text

    def write_line(self, text: str, *, lead: str = "", style: str = "", lines: bool = False) -> None:
        """Write a permanent line, after a styled `lead`; with `lines`, keep the text's line breaks."""
        text = strip_control(text) if lines else " ".join(strip_control(text).splitlines())
        with self._lock:
            self._write(("\r\x1b[K" if self._painted else "") + self.paint(lead, style) + text + "\n")
            self._painted = False

    def status(self, text: str) -> None:
        """Repaint the status line; an empty text removes it."""
        with self._lock:
            if self.live and (text or self._painted):
                self._write("\r\x1b[K" + " ".join(strip_control(text).splitlines())[: self.width() - 1])
                self._painted = bool(text)

    def error(self, message: str, second: str, following: str) -> None:
        """Write at most three lines: what happened, where rlm looked, what to do next."""
        following = f"next: {following}" if following else ""
        lines = [" ".join(strip_control(text)[:2000].splitlines()) for text in (message, second, following) if text]
        self.write_line("\n  ".join(lines), lead="rlm: ", style="red", lines=True)

    def ask(self, question: str) -> None:
        """Write a question; the user types after it on the same line."""
        with self._lock:
            self._write(strip_control(question))

    def width(self) -> int:
        return columns_of(self.stream, 80)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(encodable(self.stream, text))
            self.stream.flush()
        except OSError:
            pass  # nobody reads stderr any more; the answer still matters


def columns_of(stream: TextIO, otherwise: int) -> int:
    """The width of the terminal that a stream is; else `otherwise`."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or otherwise
    except (OSError, ValueError):
        return otherwise


def encodable(stream: TextIO, text: str) -> str:
    """The text, with rlm's own symbols in ASCII where the stream's encoding lacks them."""
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII)
    return text


# --- standard input -------------------------------------------------------------------------------------------------

_STDIN_NOTICE = 2.0  # seconds without input after which a note says that rlm waits for stdin
_STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def read_stdin(terminal: Terminal, *, asked: bool) -> bytes | None:
    """The bytes piped in, or None. It waits for a pipe, and for a terminal only if `asked` (`-`, `-c -`)."""
    import stat

    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    if not asked and (stat.S_ISCHR(mode) or stat.S_ISDIR(mode)):
        return None
    with contextlib.suppress(AttributeError, OSError):
        os.set_blocking(0, True)  # a parent may have made the pipe non-blocking
    note = threading.Timer(
        _STDIN_NOTICE, terminal.write_line, ["rlm: waiting for input on stdin (--no-stdin to go on without it)"]
    )
    note.daemon = True
    if not stat.S_ISCHR(mode):
        note.start()
    blob = bytearray()
    try:
        while piece := os.read(0, 1 << 20):
            note.cancel()
            blob += piece
    finally:
        note.cancel()
    return bytes(blob) if blob or asked else None


def is_pipe(descriptor: int) -> bool:
    import stat

    with contextlib.suppress(OSError):
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    return False


def terminal_input(terminal: Terminal) -> int | None:
    """A descriptor of the user's terminal, even if stdin is a pipe; None if stderr is not a terminal."""
    if not terminal.stream.isatty():
        return None
    with contextlib.suppress(OSError):
        return os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0))
    with contextlib.suppress(OSError):
        return os.dup(0) if os.isatty(0) else None
    return None


def read_line(source: int, end: threading.Event) -> str:
    """The line that the user types; "" once `end` is set, because the run has stopped."""
    import select

    while os.name == "posix" and not select.select([source], [], [], 0.1)[0]:
        if end.is_set():
            return ""
    return os.read(source, 1024).decode("utf-8", "replace")


# --- progress -------------------------------------------------------------------------------------------------------


class Progress:
    """Counts a run's events and shows them: a repainted line on a terminal, a plain one every 10 s elsewhere."""

    def __init__(self, terminal: Terminal, limits: OptionValues, *, quiet: bool = False, verbose: bool = False):
        self.terminal = terminal
        self.limits = limits
        self.quiet = quiet
        self.verbose = verbose
        self.started = time.monotonic()
        self.model: str | None = limits.get("model")
        self.counts = rlm_viz.Counts()
        self.activity = rlm_viz.Activity()
        self._end = threading.Event()
        self._painting = threading.Lock()

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        self.activity = rlm_viz.Activity()
        self._end = threading.Event()
        if not self.quiet:
            threading.Thread(target=self._tick, args=(self._end,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.activity = rlm_viz.Activity()

    def stop(self) -> None:
        """Remove the status line and paint no more."""
        self._end.set()
        with self._painting:
            self.terminal.status("")

    def ask(self, forecast: rlm.Forecast) -> bool:
        """Ask on the terminal whether to send a batch. Without a terminal, and on Ctrl-C, the answer is no."""
        end = self._end
        if (source := terminal_input(self.terminal)) is None:
            return False
        try:
            with self._painting:  # nothing repaints the question
                self.terminal.status("")
                self.terminal.ask(f"rlm: {forecast}. Go on? [y/N] ")
                return read_line(source, end).strip().lower() in ("y", "yes")
        finally:
            os.close(source)

    def _tick(self, end: threading.Event) -> None:
        while not end.wait(0.1 if self.terminal.live else 10):
            line = self.line(self.terminal.width() - 1 if self.terminal.live else None)
            with self._painting:
                if end.is_set():
                    return
                if self.terminal.live:
                    self.terminal.status(line)
                else:
                    self.terminal.write_line(line)

    def update(self, event: Event) -> None:
        """Take an event in."""
        self.activity.update(event)
        self.counts.update(event)
        if event.get("event") == "start" and not event.get("depth"):
            self.model = event.get("model") or self.model
        if self.verbose and not self.quiet and (step := rlm_viz.step(event)):
            self.terminal.write_line(step)

    def line(self, width: int | None = None) -> str:
        """`12s  7 calls  18,240 tok  $0.0131 / $0.50  depth 2  llm_query 14/40  running cell 3: 4 s`

        Where the width is too small, figures are dropped before the current activity.
        """
        used = self.counts
        cost = dollars(None if used.unpriced else used.cost)
        if budget := self.limits.get("cost_budget_usd"):
            cost += f" / ${budget:.2f}"
        parts = {"time": f"{time.monotonic() - self.started:.0f}s", "calls": rlm_viz.counted(used.calls, "call")}
        parts |= {"tokens": f"{used.tokens:,} tok", "cost": cost, "depth": f"depth {used.depth}"}
        if used.subcalls:
            limit = self.limits.get("max_subcalls")
            parts["subcalls"] = f"llm_query {used.subcalls}" + (f"/{limit}" if limit else "")
        if doing := self.activity.words():
            parts["now"] = doing
        for name in ("depth", "tokens", "cost", "subcalls", "calls"):
            if width is None or len("  ".join(parts.values())) <= width:
                break
            parts.pop(name, None)
        return "  ".join(parts.values())


def dollars(cost: float | None) -> str:
    """Dollars in the progress line, with a constant number of digits; `$?` when a price is unknown."""
    if not cost:
        return "$?" if cost is None else "$0"
    return f"${cost:.4f}" if cost < 1 else f"${cost:,.2f}"


def short_count(number: int) -> str:
    """61k, 1.2M."""
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1000:.0f}k" if number < 1_000_000 else f"{number / 1e6:.1f}M"


def summary(result: rlm.CompletionResult) -> str:
    """`41 s · 23 calls · 61k tok · $0.042 · logs/….jsonl`"""
    parts = [rlm_viz.duration(result.duration_ms), rlm_viz.counted(result.total_calls, "call")]
    parts += [f"{short_count(result.total_tokens)} tok", rlm_viz.money(result.cost_usd or 0.0, result.cost_usd is None)]
    return " · ".join([*parts, os.fspath(result.log)] if result.log else parts)


# --- a run ----------------------------------------------------------------------------------------------------------


def declare_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = f'{parser.prog} "PROMPT" [-c FILE_OR_FOLDER_OR_GLOB] [options]'
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="the prompt; - reads it from stdin")
    parser.add_argument(
        "-c", "--context", action="append", metavar="PATH", help="file, folder, glob or https://…; - is stdin"
    )
    parser.add_argument(
        "--no-stdin", dest="stdin", action="store_false", help="do not take standard input as the context"
    )
    parser.add_argument("-s", "--system", metavar="TEXT", help="additional instructions for the model")
    parser.add_argument("--stream", action="store_true", help="stream a plain completion, without a REPL")
    declare_output(parser)
    declare_options(parser)


def declare_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of the answer")
    group.add_argument("--jsonl", action="store_true", help="print events as they happen, then the result object")
    group.add_argument("--html", metavar="PATH", help="write the trajectory as an HTML page")
    group.add_argument("-q", "--quiet", action="store_true", help="print no progress and no summary line")


def run(args: argparse.Namespace, shell: Invocation) -> Outcome:
    """`rlm "PROMPT"`: answer it."""
    args.context = args.context and ["-" if spec in _STDIN else spec for spec in args.context]
    prompt = prompt_of(args, shell)
    if args.stream:
        return stream(args, shell, prompt)
    context = context_of(args, shell, prompt_is_stdin=args.words == ["-"])
    ask = functools.partial(rlm.RLM.completion, prompt=prompt, context=context, system=args.system)
    return execute_and_report(args, shell, ask, recorded=rlm_config.LIMITS)


def prompt_of(args: argparse.Namespace, shell: Invocation) -> str:
    """The prompt; ConfigError for none, several, or what looks like a mistyped command."""
    words = args.words
    if not words:
        raise rlm.ConfigError("no prompt", hint='rlm "PROMPT" -c FILE   or   rlm --help')
    if words[0] == args.first and re.fullmatch(r"[a-z]+(-[a-z]+)?", words[0]) and args.context is None:
        import difflib

        if meant := difflib.get_close_matches(words[0], [*COMMANDS, "help", "version"], n=1, cutoff=0.75):
            command = f"rlm --{meant[0]}" if meant[0] in ("help", "version") else f"rlm {meant[0]}"
            hint = f"did you mean `{command}`? (as a prompt: rlm run {words[0]!r})"
            raise rlm.ConfigError(f"unknown command {words[0]!r}", hint=hint)
    if len(words) > 1:
        hint = quoted_glob(args) or "put quotes around the prompt"
        raise rlm.ConfigError(f"more than one prompt; the second is {one_line(words[1], 40)!r}", hint=hint)
    if words != ["-"]:
        prompt = str(words[0])
    elif "-" in (args.context or []):
        raise rlm.ConfigError("stdin cannot be both the prompt and the context", hint="give one of them as a file")
    else:
        prompt = (read_stdin(shell.terminal, asked=True) or b"").decode("utf-8", "surrogateescape")
        prompt = prompt.removeprefix("\ufeff")
    if not prompt.strip():
        raise rlm.ConfigError("the prompt is empty", hint='rlm "PROMPT"')
    return prompt


def quoted_glob(args: argparse.Namespace) -> str:
    """The hint where the shell has expanded an unquoted glob after -c; else ""."""
    extra = args.words[1:]
    if not args.context or not all(map(os.path.exists, extra)):
        return ""
    endings = {os.path.splitext(path)[1] for path in (args.context[-1], *extra)}
    glob = os.path.join(os.path.dirname(args.context[-1]), f"*{endings.pop() if len(endings) == 1 else ''}")
    return f"put quotes around the glob: -c '{glob}'"


def context_of(args: argparse.Namespace, shell: Invocation, *, prompt_is_stdin: bool) -> rlm.Context | None:
    """The value of the variable `context`: the -c files, or stdin if there is no -c, or if `-c -` names it."""
    specs = list(args.context or [])
    asked = "-" in specs
    wanted = asked or (args.stdin and not prompt_is_stdin and not specs)  # in a shell's loop stdin is the loop's list
    piped = read_stdin(shell.terminal, asked=asked) if wanted else None
    if piped is not None and not asked:
        specs.append("-")
    if not specs:
        if wanted and not args.quiet and is_pipe(0):
            shell.terminal.write_line("rlm: stdin was empty: the run has no input (--no-stdin if that is meant)")
        return None
    return read_context(args, shell, specs, piped)


def read_context(
    args: argparse.Namespace, shell: Invocation, specs: Sequence[str], stdin: bytes | None = None
) -> rlm.Context:
    """Read the files in the configured encoding, without journals, and show what was left out or assumed."""
    encoding = rlm_config.load_config(given_options(args), config=args.config).values["encoding"]
    how: dict[str, Any] = {"exclude": log_folder(args), "encoding": encoding}
    how["on_slow"] = lambda text: shell.terminal.write_line(f"rlm: {text}")
    context = rlm.read_context(specs, stdin=stdin, **how)
    for note in context.notes:
        shell.terminal.write_line(f"rlm: context: {note}")
    return context


def execute_and_report(
    args: argparse.Namespace,
    shell: Invocation,
    ask: Callable[[rlm.RLM], rlm.CompletionResult],
    options: OptionValues | None = None,
    *,
    recorded: Collection[str] = (),
) -> Outcome:
    """Run what `ask` does with an RLM, show its progress, and print its result.

    `recorded`: options that a resume finds in the journal, and so need not be given again.
    """
    options_given = dict(options if options is not None else given_options(args))
    progress = new_progress(args, shell, options_given)
    if args.html:
        _require_folder(args.html)
        if args.html == "-" and shell.form != "text":
            raise rlm.ConfigError("stdout cannot be both the page and the JSON", hint="--html FILE")
    warn_of_variables(shell)
    seen: list[Event] = []

    def work() -> None:
        with progress:
            try:
                with prints_to_stderr(), open_runtime(args, shell, options_given, progress, seen) as runtime:
                    result = ask(runtime)
            finally:
                if args.html and seen:
                    _write_page(args.html, seen, shell)
        print_result(result, args, shell, typed=bool(options_given.get("schema")))

    flags = functools.partial(rerun_flags, args, *recorded) if progress.limits["log_dir"] else None
    return run_outcome(work, progress, flags)


def new_progress(args: argparse.Namespace, shell: Invocation, options: OptionValues) -> Progress:
    """The progress of a run with these options; its `limits` are the values of all options."""
    values = rlm_config.load_config(options, config=args.config).values
    return Progress(shell.terminal, values, quiet=args.quiet, verbose=bool(values["verbose"]))


def open_runtime(
    args: argparse.Namespace,
    shell: Invocation,
    options: OptionValues,
    progress: Progress,
    seen: list[Event] | None = None,
) -> rlm.RLM:
    """An RLM whose events are shown as progress, printed by `--jsonl` and kept in `seen`.

    Where stdout is lost, the run is stopped: it costs money, and nobody reads it.
    """

    def listen(event: Event) -> None:
        if "v" in event:  # pieces of text and output are not part of the trajectory
            if shell.form == "jsonl" and not shell.emit(event) and not ends_run(event):
                threading.Thread(target=runtime.stop, daemon=True).start()  # the journal waits for this listener
            if seen is not None:
                seen.append(event)
        progress.update(event)

    heard = {"on_event": listen, "on_progress": progress.update, "on_confirm": progress.ask}
    runtime = rlm.RLM(**{**options, "verbose": False, "config": args.config, **heard})
    return runtime


def run_outcome(
    work: Callable[[], None], progress: Progress, resume_flags: Callable[[str], str] | None = None
) -> Outcome:
    """Do `work`, which completes one prompt; the outcome has the result, also a partial one."""
    before, error = rlm.last_result(), None
    try:
        work()
    except (KeyboardInterrupt, Exception) as raised:
        error = raised
    latest = getattr(error, "result", None) or rlm.last_result()
    result = None if latest is before else latest
    return Outcome(EXIT_OK, error, result, progress.model, resume_flags)


def print_result(
    result: rlm.CompletionResult, args: argparse.Namespace, shell: Invocation, *, typed: bool = False
) -> None:
    """Print the answer on stdout in the form that was asked for, and the summary line on stderr."""
    if shell.form != "text":
        shell.print_result_json(result_dict(result.status, result, result.model, None))
    elif args.html != "-":
        shell.print(rlm_tools.to_json(result.value, ensure_ascii=False) if typed else result.response)
        shell.flush()
    if shell.stdout_closed:
        where = f"the answer is in {result.log}" if result.log else "there is no log with the answer"
        shell.terminal.write_line(f"rlm: stdout is closed; {where}")
    if not args.quiet and result.forced:
        shell.terminal.write_line(
            "rlm: a limit of turns or errors was reached; this is the model's best answer from what it had seen"
        )
    if not args.quiet:
        shell.terminal.write_line(f" {summary(result)}", lead="✓", style="green")


def _require_folder(path: str) -> None:
    """ConfigError before a run is paid for whose page could not be written."""
    if path == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
        return  # stdout, a device, a pipe
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise rlm.ConfigError(f"cannot write {path!r}", hint="a file in a folder that exists and can be written to")


def _write_page(path: str, events: list[Event], shell: Invocation) -> None:
    page = rlm_viz.render(events)
    if path == "-":
        shell.write(page)
        return
    try:
        rlm_viz.write_file(path, [page])
    except OSError as error:
        shell.terminal.write_line(f"rlm: cannot write {path}: {error.strerror}")


def stream(args: argparse.Namespace, shell: Invocation, prompt: str) -> Outcome:
    """`--stream`: print the tokens of a simple completion as they arrive."""
    reads_stdin = args.stdin and args.words != ["-"]
    if args.context or (reads_stdin and read_stdin(shell.terminal, asked=False) is not None):
        raise rlm.ConfigError(
            "--stream is a simple completion and takes no context", hint="leave out --stream or the context"
        )
    flags = {"--json": shell.form == "json", "--html": args.html, "--schema": args.schema}
    if clash := [flag for flag, given in flags.items() if given]:
        raise rlm.ConfigError(f"--stream cannot be combined with {clash[0]}", hint="leave one of them out")

    shown = shell.out.isatty()
    given = given_options(args)
    progress = new_progress(args, shell, given)

    def work() -> None:
        with prints_to_stderr(), progress, open_runtime(args, shell, given, progress) as runtime:
            for piece in runtime.stream(prompt, system=args.system):
                progress.stop()
                if shell.form == "text":
                    shell.write(strip_control(piece) if shown else piece)
                    shell.out.flush()
                else:
                    shell.print_json({"event": "text", "delta": piece})
        if shell.form == "jsonl":
            result = rlm.last_result()
            shell.print_result_json(result_dict("answered", result, result.model if result else None, None))
        else:
            shell.write("\n")

    return run_outcome(work, progress)  # a single call is not resumed


def declare_resume(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [ID] [limits to raise]"
    parser.add_argument(
        "words", nargs="*", metavar="ID", help="a run's id or a unique prefix of it (default: newest unfinished)"
    )
    declare_output(parser)
    declare_options(parser)


def resume(args: argparse.Namespace, shell: Invocation) -> Outcome:
    """`rlm resume [ID]`: continue a run where its journal ends."""
    log_dir = log_folder(args)
    name = run_name(log_dir, args.words) if args.words else ""
    raised = {name: value for name, value in given_options(args).items() if name in rlm_config.LIMITS}
    return execute_and_report(args, shell, lambda runtime: runtime.resume(name, **raised))


def declare_replay(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} ID [options]"
    parser.add_argument("words", nargs="*", metavar="ID", help="a run's id, a unique prefix of it, or its .jsonl file")
    declare_output(parser)
    declare_options(parser)


def replay(args: argparse.Namespace, shell: Invocation) -> Outcome | None:
    """`rlm replay ID`: re-run the code with the recorded replies; exit 1 if the outcome differs."""
    name = run_name(log_folder(args), args.words)
    divergence: list[str] = []

    def ask(runtime: rlm.RLM) -> rlm.CompletionResult:
        replayed = runtime.replay(name)
        divergence.extend(replayed.divergence)
        return replayed.result

    ended = execute_and_report(args, shell, ask)._replace(resume_flags=None)  # what was recorded has ended already
    if ended.error is not None:
        return ended
    if not divergence:
        shell.terminal.write_line("rlm: the same outcome as recorded")
        return ended
    shell.terminal.error(f"differs from the recording: {divergence[0]}", _and_more(divergence[1:]), f"rlm logs {name}")
    return Outcome(EXIT_FAILED)


def _and_more(lines: Sequence[str]) -> str:
    return f"and in {len(lines)} more places: {'; '.join(lines[:3])}" if lines else ""


# --- logs and pages -------------------------------------------------------------------------------------------------


def log_folder(args: argparse.Namespace) -> str:
    """The folder of the journals: --dir or --log-dir, else as configured."""
    chosen = getattr(args, "dir", None) or getattr(args, "log_dir", None)
    return str(chosen or rlm_config.load_config({}, config=args.config).values["log_dir"] or "./logs")


def run_name(log_dir: str, words: Sequence[str]) -> str:
    """The one run that the words name: its full id, or the .jsonl file if that was given."""
    if len(words) != 1:
        raise rlm.ConfigError("name one run", hint="rlm logs lists them; any unique prefix of an id will do")
    path = find_log(log_dir, words[0])
    return path if words[0].endswith(".jsonl") else os.path.basename(path)[: -len(".jsonl")]


def find_log(log_dir: str, name: str) -> str:
    """The path of a run's journal; ConfigError lists the runs that exist."""
    try:
        return str(rlm_viz.find_log(log_dir, name))
    except ValueError as error:
        raise rlm.ConfigError(str(error), hint="rlm logs") from None


def declare_logs(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [ID] [--json] [--follow] [--dir DIR]"
    parser.add_argument("words", nargs="*", metavar="ID", help="show this run's call tree (id or unique prefix)")
    parser.add_argument("--dir", "--log-dir", metavar="DIR", help="folder with the journals (default: as configured)")
    parser.add_argument("--json", action="store_true", help="print the runs, or one run's merged events, as JSON")
    parser.add_argument("-f", "--follow", action="store_true", help="show a run's steps as they happen")
    parser.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="number of runs to list (default 20)")


def logs(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm logs [ID]`: the runs, or one run's call tree."""
    log_dir = log_folder(args)
    if args.follow:
        return follow(args, shell, log_dir)
    if args.words:
        return show_run(find_log(log_dir, run_name(log_dir, args.words)), shell)
    runs = rlm_viz.list_runs(log_dir)
    if shell.form == "json":
        shell.print_json(runs)
    elif not runs:
        shell.terminal.write_line(f"no runs in {log_dir}")
    else:
        for row in runs[: args.limit]:
            shell.show(_run_row(row, columns_of(shell.out, 160)))
        if len(runs) > args.limit:
            older = rlm_config.counted(len(runs) - args.limit, "older run")
            shell.terminal.write_line(f"{older}: rlm logs -n {len(runs)}")


def _run_row(row: Mapping[str, Any], width: int) -> str:
    cost = "" if row["calls"] is None else rlm_viz.money(row["cost_usd"] or 0.0, row["cost_usd"] is None)
    took = "" if row["duration_ms"] is None else rlm_viz.duration(row["duration_ms"])
    calls, tokens = ("?" if row[name] is None else f"{row[name]:,}" for name in ("calls", "tokens"))
    figures = (
        f"{local_time(row['started']):<16}  {row['status']:<11}  {calls:>4} {'call' if calls == '1' else 'calls':<5}"
    )
    figures += f"  {tokens:>9} tok  {cost:>9}  {took:>8}  "
    head = f"{row['id']:<13}  {figures}"
    return head + one_line(row["prompt"], max(20, width - len(head)))


def local_time(stamp: str | None) -> str:
    """A journal's timestamp in the user's own time, to the minute."""
    from datetime import datetime

    try:
        moment = datetime.fromisoformat((stamp or "").replace("Z", "+00:00"))
        return moment.astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # the year 1 cannot be converted to local time
        return "?"


def show_run(path: str, shell: Invocation) -> None:
    """One run: its call tree, or with --json its merged events."""
    events, problems = rlm_viz.read(path)
    if shell.form == "json":
        shell.print_json(rlm_viz.merge(events))
    else:
        text = rlm_viz.tree(events, color=shell.coloured, width=min(columns_of(shell.out, 160), 160))
        shell.write(encodable(shell.out, plain_but_styled(text)) + "\n")
    for problem in problems:
        shell.terminal.write_line(f"rlm: {path}: {problem}")


def declare_cost(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [DIR ...] [--by model|day|project] [--json]"
    parser.add_argument("words", nargs="*", metavar="DIR", help="folders of journals (default: as configured)")
    parser.add_argument(
        "--by", choices=rlm_viz.COST_KEYS, default="model", help="what each row sums up (default model)"
    )
    parser.add_argument("--dir", "--log-dir", metavar="DIR", help="the same as the argument DIR")
    parser.add_argument("--json", action="store_true", help="print {by, rows, total} as JSON")


def cost(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm cost`: sum what the runs in the journals have cost."""
    folders = args.words or [log_folder(args)]
    for folder in args.words:
        if not os.path.isdir(folder):
            raise rlm.ConfigError(f"there is no folder {folder!r}", hint="a folder of journals, such as ./logs")
    sums = rlm_viz.costs(folders, args.by)
    if shell.form == "json":
        shell.print_json(sums)
    elif not sums["rows"]:
        shell.terminal.write_line(f"no calls in {', '.join(folders)}")
    else:
        width = max(24, min(60, max(len(row["key"]) for row in sums["rows"])))
        heads = ("runs", "calls", "input", "cached", "output")
        shell.show(f"{args.by:<{width}}" + "".join(f"  {head:>11}" for head in heads) + f"  {'cost':>14}")
        for row in (*sums["rows"], sums["total"]):
            price = rlm_viz.money(row["cost_usd"], row["unpriced"])
            figures = "".join(f"  {row[head]:>11,}" for head in heads)
            shell.show(f"{one_line(row['key'], width):<{width}}{figures}  {price:>14}")


def follow(args: argparse.Namespace, shell: Invocation, log_dir: str) -> None:
    """Print a run's steps as they are journalled, until its root ends."""
    names = args.words or [row["id"] for row in rlm_viz.list_runs(log_dir)[:1]]
    if not names:
        raise rlm.ConfigError(f"no runs in {log_dir!r}", hint="start a run, then: rlm logs --follow")
    for event in new_events(find_log(log_dir, names[0])):
        if shell.form == "json":
            shell.print_json(event)
        elif step := rlm_viz.step(event):
            shell.show(step)
            shell.flush()


def new_events(path: str) -> Iterator[Event]:
    """The events of a journal as they are written; ends after the root's `end`, when nothing follows it."""
    ended, line = False, bytearray()
    with open(path, "rb") as file:
        while True:
            if piece := file.readline(rlm.LINE_LIMIT):
                line += piece
            elif ended:
                return
            else:
                time.sleep(0.1)
            if not line.endswith(b"\n") and len(line) <= rlm.LINE_LIMIT:
                continue  # the rest of it is still to be written
            event = rlm.journal_event(bytes(line))
            line.clear()
            if event is not None:  # else a line that a killed process left incomplete
                ended = ends_run(event)
                yield event


def ends_run(event: Event) -> bool:
    """Whether an event is the `end` of a run's root."""
    return event.get("event") == "end" and not event.get("depth")


def declare_visualize(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [ID ...] [--dir DIR] [-o PAGE] [--open] [--port N] [--diff ID]"
    parser.add_argument("words", nargs="*", metavar="ID", help="runs to show (default: all, newest first)")
    parser.add_argument("--dir", "--log-dir", metavar="DIR", help="folder with the journals (default: as configured)")
    parser.add_argument("-o", "--output", metavar="PAGE", help="output file (default trajectory.html); - is stdout")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--port", type=int, metavar="N", help="serve the folder on this loopback port until Ctrl-C")
    parser.add_argument("--diff", metavar="ID", help="compare the run with this one")
    parser.add_argument("--no-bodies", action="store_true", help="leave out prompts, replies, code and output")


def visualize(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm visualize`: render the journals as one self-contained page."""
    page = args.output or "trajectory.html"
    if args.port is None and args.output is None and os.path.islink(page):
        raise rlm.ConfigError(f"{page} is a link to {os.path.realpath(page)}", hint=f"-o {page}, if that is meant")
    if args.port is None:
        _require_folder(page)
    elif not 0 <= args.port <= 65535:
        raise rlm.ConfigError(f"--port: there is no port {args.port}", hint="--port 8765")
    try:
        target = rlm_viz.visualize(
            args.words,
            dir=log_folder(args),
            out=page,
            open_browser=args.open,
            port=args.port,
            diff=args.diff,
            bodies=not args.no_bodies,
        )
    except ValueError as error:
        raise rlm.ConfigError(str(error), hint="rlm logs") from None
    except OSError as error:
        raise _port_error(error, args.port) if args.port and not error.filename else error from None
    if args.port is None and page != "-":
        shell.show(target)


def _port_error(error: OSError, port: int) -> rlm.ConfigError:
    import errno

    if error.errno == errno.EADDRINUSE:
        return rlm.ConfigError(f"port {port} is in use", hint=f"--port {port + 1 if port < 65535 else 0}")
    return rlm.ConfigError(f"port {port}: {error.strerror}", hint="--port 8765")


# --- exports --------------------------------------------------------------------------------------------------------


def declare_export(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} ID ... --otel | --sft | --ipynb | --csv | --chrome [-o FILE] [--dir DIR]"
    parser.add_argument("words", nargs="*", metavar="ID", help="a run, by any unique prefix, or a glob; '*' is all")
    forms = parser.add_mutually_exclusive_group()
    for form, text in _EXPORTS.items():
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form, help=text)
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="output file (default: stdout)")
    parser.add_argument("--dir", "--log-dir", metavar="DIR", help="folder of the journals (default: as configured)")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="--otel: the collector (default: OTEL_EXPORTER_OTLP_ENDPOINT, else no request)",
    )
    parser.add_argument(
        "--bodies", action="store_const", const=True, help="--otel: include prompts, replies, code and outputs"
    )
    parser.add_argument(
        "--status", metavar="WORD", help="--sft: only runs with this status (answered, partial, error, …)"
    )
    parser.add_argument("--min-score", type=float, metavar="X", help="--sft: only runs with at least this score")
    parser.add_argument("--scores", metavar="FILE", help="--sft: JSON or JSONL that gives the score of each run's id")


_EXPORTS = {
    "otel": "OpenTelemetry spans, sent to the endpoint or as JSON",
    "sft": "training samples, one for each turn, as JSONL in chat format",
    "ipynb": "a Jupyter notebook of the run's cells and their outputs",
    "csv": "a table of the run's rows: times, tokens, cost",
    "chrome": "a Chrome trace, for Perfetto and chrome://tracing",
}


def export(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm export ID`: convert journals for other programs."""
    if args.form is None:
        raise rlm.ConfigError("no export format given", hint="--otel, --sft, --ipynb, --csv or --chrome")
    flags = {"endpoint": "otel", "bodies": "otel", "status": "sft", "scores": "sft", "min_score": "sft"}
    for flag, form in flags.items():
        if form != args.form and getattr(args, flag) is not None:
            hint = f"--{form} instead of --{args.form}"
            raise rlm.ConfigError(f"--{flag.replace('_', '-')} goes with --{form}", hint=hint)
    if args.output != "-":
        _require_folder(args.output)
    convert = {"otel": export_spans, "sft": export_samples}.get(args.form, export_run)
    convert(args, shell, _chosen_logs(log_folder(args), args.words))


def _chosen_logs(log_dir: str, words: Sequence[str]) -> list[str]:
    """The journals that ids, files and globs name, each once; ConfigError for a word without a match."""
    import fnmatch

    if not words:
        raise rlm.ConfigError("name one or more runs", hint="rlm logs lists them; '*' is all")
    names = {row["id"]: row["path"] for row in rlm_viz.list_runs(log_dir)} if any(map(_is_glob, words)) else {}
    paths = []
    for word in words:
        found = [names[name] for name in fnmatch.filter(names, word)] if _is_glob(word) else [find_log(log_dir, word)]
        if not found:
            raise rlm.ConfigError(f"no run in {log_dir!r} matches {word!r}", hint="rlm logs")
        paths += found
    return list(dict.fromkeys(paths))


def _is_glob(word: str) -> bool:
    return not word.endswith(".jsonl") and re.search(r"[*?\[]", word) is not None


def _read_logs(paths: Sequence[str], shell: Invocation) -> Iterator[tuple[str, list[Event]]]:
    """Each journal with its events; unreadable lines are reported. ConfigError if there is no event at all."""
    some = False
    for path in paths:
        events, problems = rlm_viz.read(path)
        for problem in problems:
            shell.terminal.write_line(f"rlm: {path}: {problem}")
        if events:
            some = True
            yield path, events
    if not some:
        raise rlm.ConfigError(f"{paths[0]} holds no events", hint="rlm logs")


def _write_output(args: argparse.Namespace, shell: Invocation, pieces: Iterable[str]) -> None:
    """Write text to -o FILE, all of it or nothing, or to stdout piece by piece."""
    if args.output == "-":
        for piece in pieces:
            shell.write(encodable(shell.out, piece))
        return
    try:
        rlm_viz.write_file(args.output, pieces)
    except OSError as error:
        raise rlm.ConfigError(f"cannot write {args.output!r}: {error.strerror}", hint="-o FILE") from error


def export_spans(args: argparse.Namespace, shell: Invocation, paths: Sequence[str]) -> None:
    """`--otel`: send the spans to the collector, or print the JSON that it would be sent."""
    spans = [span for _, events in _read_logs(paths, shell) for span in rlm_viz.spans(events, bodies=bool(args.bodies))]
    if args.output != "-" or not (args.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        _write_output(args, shell, [json.dumps(rlm_viz.otlp(spans)), "\n"])
        return
    try:
        collector = rlm_viz.OTel(args.endpoint, timeout=10.0)
    except ValueError as error:
        raise rlm.ConfigError(str(error), hint="--endpoint http://localhost:4318") from None
    try:
        collector.send(spans)
    except OSError as error:
        hint = "start the collector or name another one: --endpoint URL; -o FILE keeps the JSON"
        raise rlm.RLMError(str(error), hint=hint) from error
    shell.terminal.write_line(f"rlm: {rlm_viz.counted(len(spans), 'span')} sent to {collector.shown}")


def export_samples(args: argparse.Namespace, shell: Invocation, paths: Sequence[str]) -> None:
    """`--sft`: print the training samples of the runs with the requested status and score."""
    if (args.min_score is None) != (args.scores is None):
        raise rlm.ConfigError("--min-score and --scores go together", hint="--scores scores.jsonl --min-score 0.8")
    scores = read_scores(args.scores) if args.scores else {}
    count = [0, 0]

    def lines() -> Iterator[str]:
        for path, events in _read_logs(paths, shell):
            score = scores.get(os.path.basename(path).removesuffix(".jsonl"))
            status = args.status in (None, rlm_viz.totals(events)["status"])
            if not status or (args.scores and (score is None or not score >= args.min_score)):
                continue
            count[0] += 1
            for sample in rlm_viz.training_samples(events):
                count[1] += 1
                yield json.dumps(sample, ensure_ascii=False) + "\n"

    _write_output(args, shell, lines())
    samples = rlm_viz.counted(count[1], "sample")
    shell.terminal.write_line(f"rlm: {samples} from {count[0]} of {rlm_viz.counted(len(paths), 'run')}")


def read_scores(path: str) -> dict[str, float]:
    """Scores by trajectory id: of an object {id: score}, or of lines with `trajectory_id` (or `id`) and `score`."""
    try:
        text = rlm_tools.read_text(path)
        try:
            whole = rlm_backends.from_json(text)
        except ValueError:
            whole = None  # one value per line
        if isinstance(whole, dict) and "score" not in whole:
            rows = list(whole.items())
        else:
            lines = (rlm_backends.from_json(line) for line in text.split("\n") if line.strip())
            rows = [(row.get("trajectory_id") or row.get("id"), row.get("score")) for row in lines]
        return {str(name): float(score) for name, score in rows if name is not None and score is not None}
    except OSError as error:
        raise rlm.ConfigError(f"--scores: cannot read {path!r}: {error.strerror}", hint="--scores FILE") from error
    except (ValueError, TypeError, AttributeError) as error:
        hint = '{"ID": 0.9, …}, or a line {"trajectory_id": "ID", "score": 0.9} for each run'
        raise rlm.ConfigError(f"--scores: {path!r} holds no scores: {error}", hint=hint) from None


def export_run(args: argparse.Namespace, shell: Invocation, paths: Sequence[str]) -> None:
    """`--ipynb`, `--csv` and `--chrome`: print one run as a notebook, a table or a Chrome trace."""
    if len(paths) != 1:
        raise rlm.ConfigError(f"this format takes one run, not {len(paths)}", hint="rlm logs lists the runs")
    [(path, events)] = _read_logs(paths, shell)
    if args.form == "csv":
        _write_output(args, shell, rlm_viz.csv_table(events))
    elif args.form == "chrome":
        _write_output(args, shell, [json.dumps(rlm_viz.chrome_trace(events)), "\n"])
    else:
        saved = os.path.abspath(os.path.splitext(path)[0] + ".context")
        book = rlm_viz.notebook(events, saved if os.path.isfile(saved) else "")
        _write_output(args, shell, [json.dumps(book, indent=1), "\n"])


# --- chat -----------------------------------------------------------------------------------------------------------

_CHAT_HELP = """\
/vars          the variables in the REPL
/cost          what the conversation has used
/save [FILE]   write the conversation as Markdown (default chat.md)
/reset         forget the conversation and the variables
/quit          leave (or Ctrl-D)
A line that ends in \\ continues on the next; a line that is \"\"\" begins and ends a longer text."""


def declare_chat(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [-c FILE_OR_FOLDER_OR_GLOB] [options]"
    parser.add_argument("-c", "--context", action="append", metavar="PATH", help="file, folder, glob or https://…")
    parser.add_argument("-s", "--system", metavar="TEXT", help="additional instructions for the model")
    parser.add_argument("--resume", metavar="ID", help="continue an earlier conversation")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    declare_options(parser)


class Chat:
    """A conversation in a terminal: one persistent RLM, prompts from stdin, answers to stdout."""

    def __init__(self, args: argparse.Namespace, shell: Invocation, runtime: rlm.RLM, progress: Progress) -> None:
        self.args = args
        self.shell = shell
        self.runtime = runtime
        self.progress = progress
        # The figures shown are sums over the conversation, these limits hold for each prompt.
        progress.limits = {**progress.limits, "max_subcalls": None, "cost_budget_usd": None}
        if any(spec in _STDIN for spec in args.context or []):
            raise rlm.ConfigError(
                "a chat reads its prompts from stdin, which cannot be the context too", hint="-c FILE"
            )
        self.context = read_context(args, shell, args.context) if args.context else None
        self.said: list[tuple[str, str]] = []
        self.saved: set[str] = set()  # the files that it has written
        self.log = ""
        self.commands = {"vars": self.variables, "cost": self.cost, "save": self.save, "reset": self.reset}

    def run(self) -> None:
        """Read prompts until the input ends."""
        if self.args.resume:
            name = run_name(log_folder(self.args), [self.args.resume])
            self.turn(f"(resumed {name})", functools.partial(self.runtime.resume, name))
        while (text := self.read()) is not None:
            word, _, rest = text.partition(" ")
            if word in ("/quit", "/exit"):
                return
            if text.startswith("/"):
                self.commands.get(word[1:], self.help)(rest.strip())
            elif text:
                self.turn(text, functools.partial(self.ask, text))

    def read(self) -> str | None:
        """One prompt of one or more lines; None at the end of the input. Ctrl-C discards what was typed."""
        lines: list[str] = []
        quoted = False
        while True:
            try:
                line = self.line("... " if lines or quoted else "> ")
            except EOFError:
                return "\n".join(lines) if lines else None
            except Terminated:
                raise
            except KeyboardInterrupt:
                listen_for_signals()
                self.shell.terminal.write_line("")
                lines, quoted = [], False
                continue
            if line.strip() == '"""':
                if quoted:
                    return "\n".join(lines)
                quoted = True
            elif not quoted and line.endswith("\\"):
                lines.append(line[:-1])
            else:
                lines.append(line)
                if not quoted:
                    return "\n".join(lines).strip()

    def line(self, sign: str) -> str:
        """A line of input, with editing and history if stdin and stdout are a terminal."""
        if sys.stdin.isatty() and sys.stdout.isatty():
            return input(sign)
        if sys.stdin.isatty():
            sys.stderr.write(sign)
            sys.stderr.flush()
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line.rstrip("\n")

    def ask(self, prompt: str) -> rlm.CompletionResult:
        context, self.context = self.context, None
        return self.runtime.completion(prompt, context, system=self.args.system)

    def turn(self, prompt: str, ask: Callable[[], rlm.CompletionResult]) -> None:
        """One prompt and its answer; an error or Ctrl-C ends the turn, not the conversation."""
        result = None
        before = rlm.last_result()
        try:
            with self.progress, prints_to_stderr():
                result = ask()
            self.shell.print(result.response)
            self.shell.flush()
        except Terminated:
            raise
        except KeyboardInterrupt:
            listen_for_signals()
            result = None if (latest := rlm.last_result()) is before else latest
            self.shell.terminal.error("the turn was interrupted", "", "")
        except rlm.RLMError as error:
            if error is self.shell.stdout_error:
                raise
            result = error.result
            self.shell.report(Outcome(error=error))
        self.said.append((prompt, (result and result.response) or "(no answer)"))
        self.log = (result and result.log) or self.log

    def variables(self, _: str) -> None:
        for name, (kind, size, shown) in self.runtime.variables().items():
            self.shell.terminal.write_line(f"{name:<20} {kind:<12} {size!s:>10}  {one_line(shown, 60)}")

    def cost(self, _: str) -> None:
        self.shell.terminal.write_line(self.progress.line())

    def save(self, named: str) -> None:
        path = named or "chat.md"
        text = "\n\n".join(f"## {prompt}\n\n{answer_text}" for prompt, answer_text in self.said)
        try:
            if os.path.lexists(path) and path not in self.saved:
                raise OSError(None, "it exists")
            rlm_viz.write_file(path, [text + "\n"])
        except OSError as error:
            self.shell.terminal.error(f"cannot write {path}: {error.strerror}", "", "/save FILE, with a new name")
        else:
            self.saved.add(path)
            self.shell.terminal.write_line(path)

    def reset(self, _: str) -> None:
        self.runtime.close()
        self.said = []
        if self.args.context:
            self.context = read_context(self.args, self.shell, self.args.context)

    def help(self, _: str) -> None:
        self.shell.terminal.write_line(_CHAT_HELP, lines=True)


def chat(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm chat`: hold a conversation over one REPL."""
    try:
        import readline  # noqa: F401  # editing and history for input()
    except ImportError:
        pass  # a Python built without it reads plain lines
    given = {**given_options(args), "persistent": True}
    progress = new_progress(args, shell, given)
    with prints_to_stderr():
        opened = open_runtime(args, shell, given, progress)
    with opened as runtime:
        if sys.stdin.isatty():
            shell.terminal.write_line("rlm chat: /help lists the commands; Ctrl-D leaves")
        talk = Chat(args, shell, runtime, progress)
        try:
            talk.run()
        finally:
            if talk.log and not args.quiet:
                name = os.path.basename(talk.log).removesuffix(".jsonl")
                shell.terminal.write_line(f"{talk.log}; to go on: rlm chat --resume {name}{rerun_flags(args)}")


# --- batch ----------------------------------------------------------------------------------------------------------


_MOST_JOBS = 1024


def declare_batch(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} PROMPTS.jsonl|ROWS.csv [-o RESULTS.jsonl] [-j N] [--prompt TEMPLATE] [options]"
    parser.add_argument(
        "words", nargs="*", metavar="FILE", help="JSONL (one string or {prompt, context} per line) or CSV"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="JSONL file for results; a second run does only what is missing"
    )
    parser.add_argument(
        "-j", "--jobs", type=int, default=8, metavar="N", help="how many prompts to run at once (default 8)"
    )
    parser.add_argument(
        "--prompt", dest="template", metavar="TEMPLATE", help="prompt for each row, with {column} placeholders"
    )
    parser.add_argument("--one-budget", action="store_true", help="apply limits to the whole batch instead of each row")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    declare_options(parser)


def batch(args: argparse.Namespace, shell: Invocation) -> Outcome | None:
    """`rlm batch FILE`: many prompts, each a row of the results; exit 1 if one has failed."""
    if len(args.words) != 1:
        raise rlm.ConfigError("give one file of prompts", hint="rlm batch prompts.jsonl -o results.jsonl")
    if not 1 <= args.jobs <= _MOST_JOBS:
        message = f"-j is {args.jobs}: give -j of at least 1 and at most {_MOST_JOBS:,}"
        raise rlm.ConfigError(message, hint="rlm batch prompts.jsonl -j 8")
    given = given_options(args)
    values = rlm_config.load_config(given, config=args.config).values
    items = read_items(args.words[0], args.template, values["encoding"], shell.terminal.write_line)
    keys = item_keys(items)
    progress = BatchProgress(shell.terminal, values, quiet=args.quiet, verbose=bool(values["verbose"]))
    with Results(args.output, args.words[0], keys) as results:
        missing = [number for number in range(len(items)) if number not in results.rows]
        progress.total, progress.done = len(items), len(results.rows)

        def on_result(place: int, result: rlm.CompletionResult | rlm.RLMError) -> None:
            number = missing[place]
            row = result_row(number, keys[number], items[number], result)
            progress.count(row)
            results.add(row)

        with prints_to_stderr(), open_runtime(args, shell, given, progress) as runtime, progress:
            how = {"max_workers": args.jobs, "on_result": on_result, "one_ledger": args.one_budget}
            try:
                for _ in runtime.batch([items[number] for number in missing], **how):
                    pass
            except KeyboardInterrupt as stop:
                next_step = "the same command goes on" if args.output else "-o RESULTS.jsonl keeps what is done"
                return Outcome(error=stop, done=f"{progress.done} of {progress.total} done", next_step=next_step)
        results.sort()
    if args.output in (None, "-"):
        for number in sorted(results.rows):
            shell.print_json(results.rows[number])
    if not args.quiet:
        shell.terminal.write_line(progress.line())
        if reason := progress.reason():
            shell.terminal.write_line(f"rlm: {one_line(reason, 400)}")
    return Outcome(EXIT_FAILED) if progress.failed else None


class BatchProgress(Progress):
    """The same counts, with how many rows are done."""

    total = done = failed = 0
    first_error: Mapping[str, str] | None = None

    def count(self, row: Row) -> None:
        self.done += 1
        if row["status"] != "answered":
            self.failed += 1
            self.first_error = self.first_error or row["error"]

    def update(self, event: Event) -> None:
        """Add an event. The activity of single rows is not shown: several run at once."""
        if event.get("event") != "text" and (event.get("event") != "progress" or event.get("phase") == "loading"):
            super().update(event)

    def line(self, width: int | None = None) -> str:
        failed = f"  {self.failed} failed" if self.failed else ""
        head = f"{self.done}/{self.total} rows{failed}  "
        return head + super().line(None if width is None else width - len(head))

    def reason(self) -> str:
        """The error of the first row that failed; "" if none did."""
        if self.first_error is None:
            return ""
        hint = self.first_error["hint"]
        return "first failure: " + without_keys(self.first_error["message"]) + (f" (next: {hint})" if hint else "")


def read_items(
    path: str, template: str | None, encoding: str | None = None, warn: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """The items of a batch: {"prompt", "context"} each. ConfigError names the first invalid line."""
    try:
        place = os.path.join(os.getcwd(), os.path.expanduser(path))
        waiting = rlm_tools.Documents(warn).waiting(f"rlm: waiting for {path}")  # which may be a pipe
        with waiting, rlm_tools.open_given(place) as file:
            blob = file.read()
        text, note = rlm_tools.read_blob(blob, encoding)
    except OSError as error:
        raise rlm.ConfigError(f"cannot read {path!r}: {error.strerror}", hint="rlm batch prompts.jsonl") from error
    if isinstance(text, bytes):
        raise rlm.ConfigError(f"{path!r} is not text", hint="a JSONL or CSV file")
    if note:
        warn(f"rlm: {path}: {note}")
    if is_table(path):
        records = _table_rows(path, text)
    else:
        lines = enumerate(text.split("\n"), 1)
        records = [(number, _json_line(path, number, line)) for number, line in lines if line.strip()]
    if not records:
        raise rlm.ConfigError(f"{path!r} has no rows", hint="a JSONL or CSV file")
    return [_item(path, number, record, template) for number, record in records]


def is_table(path: str) -> bool:
    return path.lower().endswith((".csv", ".tsv", ".tab"))


def _table_rows(path: str, text: str) -> list[tuple[int, object]]:
    """(last line, cells by column) of each row; a cell that a short row lacks is None."""
    import csv
    import io

    csv.field_size_limit(1 << 30)  # a cell may be a whole document
    rows = csv.reader(io.StringIO(text), delimiter=_delimiter(path, text), strict=True)
    records: list[tuple[int, object]] = []
    try:
        header = [name.strip() for name in next(rows, [])]
        for cells in rows:
            if len(cells) > len(header):
                message = f"{path}:{rows.line_num}: {len(cells)} cells, but {len(header)} columns"
                raise rlm.ConfigError(message, hint='put quotes around a cell that holds the delimiter: "a, b"')
            if cells:
                records.append((rows.line_num, dict(zip(header, cells + [None] * (len(header) - len(cells))))))
    except csv.Error as error:
        raise rlm.ConfigError(f"{path}:{rows.line_num}: {error}", hint="is a quote not closed?") from None
    if twice := {name for name in header if header.count(name) > 1}:
        raise rlm.ConfigError(f"{path}: two columns are called {min(twice)!r}", hint="rename one")
    return records


def _delimiter(path: str, text: str) -> str:
    """The delimiter of a table: the usual one that occurs most often in its header."""
    names = re.sub(r'"[^"]*"', "", text[:100_000].lstrip("\n").partition("\n")[0])
    usual = ",;\t|" if path.lower().endswith(".csv") else "\t,;|"
    return max(usual, key=names.count)


def _json_line(path: str, number: int, line: str) -> object:
    try:
        return rlm_backends.from_json(line)
    except ValueError as error:
        hint = 'a JSON string in quotes, or an object, on each line: "…" or {"prompt": "…"}'
        raise rlm.ConfigError(f"{path}:{number}: not JSON: {error}", hint=hint) from None


def _item(path: str, number: int, record: object, template: str | None) -> Row:
    fields = {"prompt": record} if isinstance(record, str) else record
    if not isinstance(fields, dict):
        raise rlm.ConfigError(
            f"{path}:{number}: neither a string nor an object", hint='{"prompt": "…", "context": "…"}'
        )
    if template is None and not is_table(path):  # a template and a table may have any columns
        for name in fields:
            if name not in rlm.ITEM_KEYS:
                hint = f"{rlm_config.suggestion(name, rlm.ITEM_KEYS)} (or --prompt TEMPLATE with {{{name}}})"
                raise rlm.ConfigError(f"{path}:{number}: unknown key {name!r}", hint=hint)
    prompt = fields.get("prompt") if template is None else render_template(template, fields, f"{path}:{number}")
    if is_table(path) and fields.get("context", "") is None:
        raise rlm.ConfigError(
            f"{path}:{number}: no 'context' in this row", hint="give each row as many cells as the first"
        )
    if not isinstance(prompt, str) or not prompt.strip():
        hint = f"--prompt TEMPLATE with {', '.join(f'{{{name}}}' for name in fields)}"
        raise rlm.ConfigError(f"{path}:{number}: no prompt in this row", hint=hint)
    return {"prompt": prompt} | ({"context": fields["context"]} if "context" in fields else {})


def render_template(template: str, fields: Row, place: str) -> str:
    """The template with {column} replaced; other braces stay. ConfigError for a missing column or value."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise rlm.ConfigError(
                f"--prompt: no column {match[1]!r}", hint=rlm_config.suggestion(match[1], map(str, fields))
            )
        given = fields[match[1]]
        if given is None:
            raise rlm.ConfigError(f"{place}: no {match[1]!r} in this row", hint='give it, or "" for an empty one')
        return given if isinstance(given, str) else rlm_tools.to_json(given, ensure_ascii=False)

    return re.sub(r"\{([^\W\d][\w .-]*)\}", value, template)


def item_keys(items: Sequence[Row]) -> list[str]:
    """A key for each row by which a later call knows it: a hash of its content, and its number among equal rows."""
    import hashlib

    seen: dict[str, int] = {}
    keys = []
    for item in items:
        digest = hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        keys.append(f"{digest}-{seen[digest]}")
    return keys


def result_row(number: int, key: str, item: Row, result: rlm.CompletionResult | rlm.RLMError) -> Row:
    """A line of the results; that of a failure has the error and the partial result."""
    head = {"index": number, "key": key, "prompt": item["prompt"]}
    if not isinstance(result, rlm.RLMError):
        return head | result_dict("answered", result, result.model, None)
    message, _, hint = describe_error(result)
    fault = {"type": type(result).__name__, "message": message, "hint": hint}
    return head | result_dict(exit_status(result)[1], result.result, None, fault)


class Results:
    """The rows of a batch by index and, with a path, the file from which a later call continues.

    Rows are appended as they finish. If the file is not a batch results file: ConfigError, and it is not changed.
    """

    def __init__(self, path: str | None, source: str, keys: Sequence[str]) -> None:
        self.rows: dict[int, Row] = {}
        self.others: list[bytes] = []  # lines of other prompts than this call's
        self._is_stream = path is not None and os.path.exists(path) and not os.path.isfile(path)
        self._file = None if path is None or path == "-" else _open_results(path, source)
        if self._file is None or self._is_stream:
            return
        places = {key: number for number, key in enumerate(keys)}
        for line in _result_lines(self._file):
            row = _result(line)
            place = places.get(row["key"]) if row else None
            if row is None or place is None:
                self.others.append(line)
            elif row["status"] == "answered":
                self.rows[place] = {**row, "index": place}

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Row) -> None:
        self.rows[row["index"]] = row
        if self._file is not None:
            self._file.write(_row_line(row))
            self._file.flush()

    def sort(self) -> None:
        """Sort the file by prompt, other prompts' results last; a failure leaves it unchanged."""
        if self._file is None or self._is_stream:
            return
        path = os.path.realpath(self._file.name)
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "wb") as file:
            file.writelines(_row_line(self.rows[number]) for number in sorted(self.rows))
            file.writelines(line + b"\n" for line in self.others)
        os.chmod(temporary, os.fstat(self._file.fileno()).st_mode & 0o7777)
        os.replace(temporary, path)


def _row_line(row: Row) -> bytes:
    return rlm_tools.to_json(row).encode() + b"\n"


def _open_results(path: str, source: str) -> BinaryIO:
    """The file of results, locked against a second batch; a device or a pipe is only written to. ConfigError for the
    prompts themselves."""
    _require_folder(path)
    if os.path.exists(path) and os.path.samefile(path, source):
        raise rlm.ConfigError(f"-o {path!r}: that is not a batch results file", hint="-o with the name of a new file")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            return open(os.open(path, os.O_WRONLY), "wb")
        file = open(path, "ab+")  # noqa: SIM115  # closed with Results
    except OSError as error:
        raise rlm.ConfigError(f"cannot write {path!r}: {error.strerror}", hint="-o FILE") from error
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise rlm.ConfigError(f"{path!r} is in use: another batch writes to it", hint="-o with another name") from None
    except (ImportError, OSError):
        pass  # Windows and some file systems have no such locks
    return file


def _result_lines(file: BinaryIO) -> list[bytes]:
    """The lines of a results file, which is then ready to append to: an incomplete last line is removed."""
    file.seek(0)
    whole = file.read()
    start = whole.rfind(b"\n") + 1
    lines, last = [line for line in whole[:start].split(b"\n") if line.strip()], whole[start:]
    torn = last.startswith(_ROW_BEGINS[: len(last)]) and not _result(last)
    if not (_result(lines[0]) if lines else torn or _result(last)):
        what = f"{file.name!r} holds something else than the results of a batch"
        file.close()
        raise rlm.ConfigError(what, hint="-o with the name of a new file")
    if torn:
        file.truncate(start)
    else:
        file.write(b"\n")
        lines.append(last)
    return lines


_ROW_BEGINS = b'{"index": '


def _result(line: bytes) -> Row | None:
    """The row of results in a line, or None."""
    try:
        row = rlm_backends.from_json(line, depth=rlm.EVENT_DEPTH, constant=float)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("key"), str) and "status" in row else None


# --- MCP ------------------------------------------------------------------------------------------------------------

_SERVE_HELP = """\
usage: rlm mcp-serve [--env local|docker] [--workspace DIR] [--max-wait SECONDS]

Serve the sandbox to one MCP client on stdin and stdout. `rlm mcp-install` writes a client's configuration.

options:
  -h, --help                    show this help message and exit
  -e, --env local|docker        where code runs (default: as configured)
  --workspace DIR               the folder that code may read, beside those that the client names
  --max-wait SECONDS            answer a call that takes longer with a handle to resume it (default 45)"""


def mcp_serve(arguments: Sequence[str]) -> int:
    """`rlm mcp-serve`: its few arguments are parsed by hand, because argparse would make the client wait."""
    ensure_std_streams()
    settings: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("-h", "--help"):
            shell = Invocation(arguments)
            return shell.report(outcome_of(functools.partial(shell.write, f"{_SERVE_HELP}\n")))
        name = {"-e": "env", "--env": "env", "--workspace": "workspace", "--max-wait": "max_wait"}.get(flag)
        value = value if equals else next(words, "")
        right = {"env": value in ("local", "docker"), "max_wait": re.fullmatch(r"\d{1,6}(\.\d{1,9})?", value)}
        if name is None or not value or not right.get(name, True):
            print(f"rlm: mcp-serve does not take {word!r} {value!r}\n  next: rlm mcp-serve --help", file=sys.stderr)
            return EXIT_USAGE
        settings[name] = float(value) if name == "max_wait" else value
    sys.stderr = Harmless(sys.stderr)
    return int(rlm_mcp.serve(**settings))


def declare_mcp_install(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [CLIENT ...] [--write | --dry-run | --remove | --check] [--scope SCOPE]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CLIENT",
        help=f"any of: {', '.join(rlm_mcp.CLIENTS)} (default: print the entry of each)",
    )
    parser.add_argument(
        "--client", action="append", default=[], metavar="CLIENT", help="the same as the argument CLIENT"
    )
    parser.add_argument("--scope", metavar="SCOPE", help="user, project or local, if the client supports it")
    actions = parser.add_mutually_exclusive_group()
    for action, text in _INSTALL_ACTIONS.items():
        actions.add_argument(f"--{action}", dest="action", action="store_const", const=action, help=text)


_INSTALL_ACTIONS = {
    "print": "show the entry to add (default)",
    "write": "write the entry into the client's file",
    "dry-run": "show what --write would change",
    "remove": "remove the entry",
    "check": "start the server as the client would",
}


def mcp_install(args: argparse.Namespace, shell: Invocation) -> Outcome | None:
    """`rlm mcp-install`: this server's entry in the configuration of MCP clients."""
    clients = [*args.words, *args.client]
    with contextlib.redirect_stdout(Harmless(shell)):  # a client's file may be a project's
        return Outcome(int(rlm_mcp.install(clients, action=args.action or "print", scope=args.scope)))


# --- the demo -------------------------------------------------------------------------------------------------------

_DEMO_SIZE = 5_000_000  # characters of log
_DEMO_MODEL = "scripted-demo"
_DEMO_QUESTION = "Which customer has the most failed payments, what is the main reason, and in which hour was it worst?"
_DEMO_WORST = "In which hour (UTC) were there most of these lines, and how many?"
_DEMO_CUSTOMERS = ["Alder Books", "Brightwell", "Corvid Air", "Dunmore Dairy", "Elm & Sons", "Fjord Foods", "Gantry"]
_DEMO_REASONS = {
    "expired card": ["the card ran out last month", "valid-thru date is in the past", "asked for a newer card"],
    "no funds": ["balance too low for the amount", "account could not cover it", "over the credit line"],
    "bank down": ["issuer did not answer in time", "the other side was being serviced", "gateway of the bank refused"],
    "fraud check": ["looked unlike earlier purchases", "stopped by the risk rules", "holder denied the purchase"],
}

_DEMO_ROOT = [
    'print(type(context).__name__, f"{len(context):,} characters")\n'
    'lines = context.splitlines()\nprint(len(lines), "lines")\nprint("\\n".join(lines[:4]))',
    "import re\nfrom collections import Counter\n"
    'pattern = re.compile(r\'customer="([^"]+)" .*status=failed\')\n'
    "failed = Counter(m[1] for m in map(pattern.search, lines) if m)\n"
    "print(sum(failed.values()), 'failed payments')\nfailed.most_common(3)",
    "worst, count = failed.most_common(1)[0]\n"
    "theirs = [l for l in lines if 'status=failed' in l and f'customer=\"{worst}\"' in l]\n"
    "notes = [l.split('note=')[1] for l in theirs]\n"
    "ask = 'Sort these notes by cause. Answer with a line `cause: count` for each.\\n'\n"
    "parts = [notes[i:i + 100] for i in range(0, len(notes), 100)]\n"
    "replies = llm_query_batched([ask + '\\n'.join(part) for part in parts])\n"
    "causes = Counter()\n"
    "for reply in replies:\n"
    "    for line in reply.splitlines():\n"
    "        cause, _, number = line.rpartition(':')\n"
    "        causes[cause.strip()] += int(number)\n"
    "print(len(parts), 'sub-calls')\ncauses",
    f"hour = rlm_query({_DEMO_WORST!r}, context=theirs)\nhour",
    "cause, number = causes.most_common(1)[0]\n"
    "FINAL(f'{worst}: {count} failed payments, {number} of them for {cause}; worst at {hour}')",
]
_DEMO_CHILD = [
    "from collections import Counter\nhours = Counter(line[11:13] for line in context)\nhours.most_common(3)",
    "hour, number = hours.most_common(1)[0]\nFINAL(f'{hour}:00 ({number})')",
]


def demo_log(size: int = _DEMO_SIZE) -> tuple[str, str]:
    """A payment service's log of about `size` characters, and the true answer to the demo's question."""
    import random
    from collections import Counter

    chance = random.Random(20261122)
    hours = [1, 1, 1, 1, 1, 2, 3, 5, 8, 9, 9, 8, 7, 8, 14, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    lines, failed, total, number = [], [], 0, 0
    while total < size:
        number += 1
        customer = chance.choices(_DEMO_CUSTOMERS, [5, 9, 4, 7, 3, 6, 5])[0]
        hour = chance.choices(range(24), hours)[0]
        line = f"2026-11-{chance.randint(1, 21):02}T{hour:02}:{chance.randint(0, 59):02}:{chance.randint(0, 59):02}Z "
        line += (
            f'pay-{chance.randint(1, 4)} customer="{customer}" payment=p{number:06} amount={chance.randint(3, 900)}.00 '
        )
        if chance.random() < 0.08:
            cause = chance.choices(list(_DEMO_REASONS), [6, 4, 3, 2])[0]
            failed.append((customer, cause, hour))
            line += f"status=failed note={chance.choice(_DEMO_REASONS[cause])}"
        else:
            line += "status=ok note=settled"
        lines.append(line)
        total += len(line) + 1
    worst, count = Counter(customer for customer, _, _ in failed).most_common(1)[0]
    cause, of_them = Counter(c for customer, c, _ in failed if customer == worst).most_common(1)[0]
    hour, most = Counter(h for customer, _, h in failed if customer == worst).most_common(1)[0]
    truth = f"{worst}: {count} failed payments, {of_them} of them for {cause}; worst at {hour:02}:00 ({most})"
    return "\n".join(lines), truth


def scripted_message(messages: Sequence[Row], *, tools: bool) -> Row:
    """The scripted model's reply: the next cell of its script or, to a sub-call, a count of the notes it was sent."""
    if not tools:
        notes = str(messages[-1]["content"]).splitlines()[1:]
        found = {cause: sum(note in phrases for note in notes) for cause, phrases in _DEMO_REASONS.items()}
        return {"content": "\n".join(f"{cause}: {count}" for cause, count in found.items())}
    turn = sum(message["role"] == "assistant" for message in messages)
    prompt = next(str(message["content"]) for message in messages if message["role"] == "user")
    script = _DEMO_CHILD if _DEMO_WORST in prompt else _DEMO_ROOT
    if turn >= len(script):
        return {"content": "the script has no more steps"}
    call = {"name": "execute_code", "arguments": json.dumps({"code": script[turn]})}
    return {"content": None, "tool_calls": [{"index": 0, "id": f"step{turn}", "type": "function", "function": call}]}


def scripted_server() -> ThreadingHTTPServer:
    """A loopback server that answers OpenAI chat requests with the scripted model."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Model(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", **scripted_message(asked["messages"], tools=bool(asked.get("tools")))}
            finish = "tool_calls" if message.get("tool_calls") else "stop"
            size, answered = len(json.dumps(asked["messages"])) // 4, len(json.dumps(message)) // 4
            reply = {
                "model": _DEMO_MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": size, "completion_tokens": answered, "total_tokens": size + answered},
            }
            body = json.dumps(reply).encode()  # also where a stream was asked for
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass  # the progress line says enough

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def declare_demo(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--log-dir DIR] [--env local|docker] [--no-open] [--html PATH]"
    parser.add_argument("--log-dir", metavar="DIR", help="folder for the journal (default ./logs)")
    parser.add_argument(
        "-e", "--env", dest="environment", choices=("local", "docker"), help="where code runs (default local)"
    )
    parser.add_argument("--no-open", action="store_true", help="do not open the page")
    declare_output(parser)


def demo(args: argparse.Namespace, shell: Invocation) -> Outcome | None:
    """`rlm demo`: a scripted model, real code on a generated log, the answer checked against the generator's."""
    if args.log_dir and not can_be_written(args.log_dir):
        raise rlm.ConfigError(
            f"cannot write to {args.log_dir!r}", hint="--log-dir with a folder that can be written to"
        )
    if not args.log_dir and not can_be_written("logs"):
        import tempfile

        args.log_dir = tempfile.mkdtemp(prefix="rlm-demo-")
        shell.terminal.write_line(f"rlm: ./logs cannot be written; the journal and the page go to {args.log_dir}")
    shell.terminal.write_line(
        "rlm demo: a scripted model answers here, not a language model; no key, no network, no cost."
    )
    log, truth = demo_log()
    shell.terminal.write_line(f"a log of {len(log):,} characters was generated; the question: {_DEMO_QUESTION}")
    server = scripted_server()
    defaults = {name: row.default for name, row in rlm_config.OPTIONS.items() if row.default is not None}
    del defaults["log_dir"]  # a folder named explicitly may be a symbolic link
    options = {
        **defaults,
        "model": _DEMO_MODEL,
        "sub_model": _DEMO_MODEL,
        "backend": "openai",
        "api_key": "no-key-is-needed",
        "base_url": f"http://127.0.0.1:{server.server_address[1]}/v1",
        "prices": {_DEMO_MODEL: {"input": 0, "output": 0}},
        "protocol": "tools",
        "verbose": not args.quiet,
        **{name: getattr(args, name) for name in ("log_dir", "environment") if getattr(args, name)},
    }
    args.config = False
    try:
        ended = execute_and_report(args, shell, lambda runtime: runtime.completion(_DEMO_QUESTION, log), options)
        ended = ended._replace(resume_flags=None)  # its model is gone
    finally:
        server.shutdown()
    if ended.error is not None or (result := ended.result) is None:
        return ended
    if result.response != truth:
        error = rlm.RLMError(f"the answer is wrong; the log's generator says: {truth}", result=result)
        return ended._replace(error=error)
    shell.terminal.write_line("checked: this is what the log's generator says")
    log_path = str(result.log)
    page = rlm_viz.write([log_path], os.path.splitext(log_path)[0] + ".html")
    shell.terminal.write_line(f"log: {result.log}")
    shell.terminal.write_line(f"page: {page}")
    if shell.terminal.live and not args.no_open and (os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
        import webbrowser

        webbrowser.open(f"file://{os.path.abspath(page)}")
    return ended


# --- configuration and trust ----------------------------------------------------------------------------------------


def declare_config(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--json] [options]"
    parser.add_argument("--json", action="store_true", help="print {option: {value, origin}} as JSON")
    declare_options(parser, "options, as a run would be given them")


def config(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm config`: show every option, its value and where it comes from."""
    warn_of_variables(shell)
    settings = rlm_config.load_config(given_options(args), config=args.config)
    rows = {
        name: {"value": shown_value(name, value), "origin": _origin(name, settings.origins[name])}
        for name, value in settings.values.items()
    }
    if shell.form == "json":
        shell.print_json(rows)
        return
    for name, row in rows.items():
        value = (
            "" if row["value"] is None else row["value"] if isinstance(row["value"], str) else json.dumps(row["value"])
        )
        shell.show(f"{name:<24} {value:<32} {row['origin']}")
    for path in settings.files:
        shell.terminal.write_line(f"read: {path}")


def _origin(name: str, origin: str) -> str:
    return flags_of(name)[-1] if origin == "argument" else origin


def shown_value(name: str, value: Any) -> object:
    """An option's value without secrets: of a key the last four characters, a URL without its password."""
    if value and name.endswith("api_key"):
        return masked(str(value))
    if value and name == "mcp":
        return rlm_config.shown_servers(value)
    return re.sub(r"//[^/@\s]+@", "//…@", value) if isinstance(value, str) else value


def masked(secret: str) -> str:
    return "…" + secret[-4:] if len(secret) >= 12 else "…"


def declare_init(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--user] [--force] [options to write down]"
    parser.add_argument("--user", action="store_true", help="write the user's own file instead of ./rlm.toml")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    declare_options(parser, "options to write down; the others are there as comments")


def init(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm init`: write a commented configuration file."""
    path = os.path.join(rlm_config.user_config_dir(), "config.toml") if args.user else "rlm.toml"
    if os.path.lexists(path) and not args.force:
        raise rlm.ConfigError(f"{path} is already there", hint="rlm init --force replaces it")
    given = given_options(args)
    rlm_config.load_config(given, config=False)  # raises for values that could not be loaded again
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        rlm_viz.write_file(path, [commented_config(given)], 0o600 if "api_key" in given or args.user else 0o644)
    except OSError as error:
        raise rlm.ConfigError(f"cannot write {path}: {error.strerror}") from error
    if given and not args.user and rlm_config.untrusted_keys(given):
        rlm_config.trust(path)  # the user has just given its content on the command line
    shell.show(path)


def commented_config(given: OptionValues) -> str:
    """A configuration file: every option with its meaning and default as a comment, those of `given` set."""
    lines = [
        "# Options of rlm. A flag or RLM_* variable wins over this file; `rlm config` shows what is in force.",
        "",
        "[rlm]",
    ]
    for name, row in rlm_config.OPTIONS.items():
        default = row.default if row.default is not None else row.metadata["example"]
        table = f" (or a table at the end of this file: [rlm.{name}])" if name in rlm_config.PAIRS else ""
        lines += ["", f"# {row.metadata['help']}{table}"]
        if name in given:
            lines.append(f"{name} = {toml(given[name])}")
        elif default is not None:
            lines.append(f"# {name} = {toml(default)}")
    return "\n".join(lines) + "\n"


def toml(value: object) -> str:
    """A value of plain data as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_toml_key(str(key))} = {toml(item)}" for key, item in value.items() if item is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml(key)


def declare_trust(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--show | --revoke] [PATH]"
    parser.add_argument("words", nargs="*", metavar="PATH", help="the rlm.toml (default: the nearest)")
    parser.add_argument("--show", action="store_true", help="show what the file would set and whether it is trusted")
    parser.add_argument("--revoke", action="store_true", help="revoke trust")
    parser.add_argument("--json", action="store_true", help="with --show: as JSON")


def trust(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm trust`: let this project's rlm.toml set what could send a key elsewhere or run code."""
    path = args.words[0] if args.words else rlm_config.project_file(os.getcwd())
    if path is None or not os.path.isfile(path):
        raise rlm.ConfigError(f"no file {path!r}" if path else "no rlm.toml here or above", hint="rlm init writes one")
    where = os.path.abspath(path)
    if args.revoke:
        rlm_config.trust(path, revoke=True)
        shell.show(f"{where}: no longer trusted")
        return
    table = {key: value for key, (value, _) in rlm_config.read_toml(path, False)[0].items()}
    rows = {key: shown_value(key, table[key]) for key in rlm_config.untrusted_keys(table)}
    if not args.show:
        rlm_config.trust(path)
        shell.show(
            f"{where}: trusted as it is now; " + (f"it sets {', '.join(rows)}" if rows else "nothing in it needs it")
        )
        return
    trusted = rlm_config.is_trusted_file(path)
    if shell.form == "json":
        shell.print_json({"path": where, "trusted": trusted, "needs_trust": rows})
        return
    shell.show(f"{where}: {'trusted' if trusted else 'not trusted'}")
    for key, value in rows.items():
        shell.show(f"  {key} = {toml(value)}")


# --- doctor and providers -------------------------------------------------------------------------------------------


def declare_providers(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [WORD ...] [--json]"
    parser.add_argument("words", nargs="*", metavar="WORD", help="list only providers whose id or name contains WORD")
    parser.add_argument(
        "--json", action="store_true", help="print [{id, name, wire, base_url, key_env, key_present}] as JSON"
    )


def providers(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm providers [WORD]`: list providers and which keys are set."""
    environ = rlm_config.load_config({}, config=False).environ
    rows = rlm_backends.providers(" ".join(args.words) or None, environ)
    if shell.form == "json":
        shell.print_json(rows)
        return
    if not rows:
        raise rlm.ConfigError(f"no provider matches {' '.join(args.words)!r}", hint="rlm providers")
    for row in rows:
        key = (row["key_env"] or [""])[0]
        line = f"{'✓' if row['key_present'] else '·'} {row['id']:<22} {row['wire']:<10} {key:<26} {row['base_url']}"
        shell.show(line)
    for name, program in [] if args.words else rlm_backends.agents(environ):
        shell.show(f"{'✓' if program else '·'} {name:<22} {'program':<10} {'':<26} {program or 'not on the PATH'}")
    if not args.words:
        shell.show(f"✓ {'hf:OWNER/REPO':<22} {'file':<10} {'':<26} kept models: rlm models")


def declare_models(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [remove NAME ...] [--json]"
    parser.add_argument("words", nargs="*", metavar="remove NAME", help="delete a model: hf:OWNER/REPO:QUANT")
    parser.add_argument("--json", action="store_true", help="print [{name, bytes, path, complete}] as JSON")


def models(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm models`: the model files that `-m hf:…` has downloaded; `rlm models remove NAME` deletes one."""
    action, *names = args.words or [""]
    if action not in ("", "remove"):
        raise rlm.ConfigError(f"unexpected argument {action!r}", hint="rlm models remove NAME")
    if action and not names:
        raise rlm.ConfigError("which model?", hint="rlm models lists them: rlm models remove NAME")
    for name in names:
        try:
            size = rlm_backends.remove_model(name)
        except rlm_backends.BackendError as error:
            raise rlm.ConfigError(str(error), hint=error.hint) from error
        shell.terminal.write_line(f"removed {name} ({size / 1e9:.1f} GB)")
    if action:
        return
    rows = rlm_backends.downloaded_models()
    if shell.form == "json":
        shell.print_json(rows)
        return
    if not rows:
        shell.terminal.write_line("no model is downloaded yet; -m hf:OWNER/REPO downloads one")
    for row in rows:
        state = "✓" if row["complete"] else "…"
        shell.show(f"{state} {row['name']}  {row['bytes'] / 1e9:.1f} GB  {row['path']}")


class Check(NamedTuple):
    """A line of `rlm doctor`: state is ok, warn or fail; only fail makes the exit code 1."""

    name: str
    state: str
    detail: str
    next: str = ""


def declare_doctor(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--json] [--online] [options]"
    parser.add_argument("--json", action="store_true", help="print {ok, checks: [{name, state, detail, next}]} as JSON")
    parser.add_argument("--online", action="store_true", help="send one small request to each provider with a key")
    declare_options(parser, "options, as a run would be given them")


def doctor(args: argparse.Namespace, shell: Invocation) -> Outcome | None:
    """`rlm doctor`: check what works on this machine, with a next step for what does not."""
    settings, config_check = _check_configuration(args)
    checks = [check_module(), check_python(), *check_dependencies(), config_check, *check_variables()]
    checks += [
        *check_keys(settings),
        *check_model(settings),
        check_local_models(),
        check_agents(settings),
        *check_tools(settings),
        *check_mcp(settings),
        check_sandbox(settings),
        check_docker(settings),
        check_logs(settings),
    ]
    if args.online:
        checks += check_online(settings)
    ok = all(check.state != "fail" for check in checks)
    if shell.form == "json":
        shell.print_json({"ok": ok, "checks": [check._asdict() for check in checks]})
    else:
        marks = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
        for check in checks:
            sign, style = marks[check.state]
            shell.show(f" {check.name:<14} {check.detail}", lead=sign, style=style)
            if check.next:
                shell.show(f"  {'':<14} next: {check.next}")
    return None if ok else Outcome(EXIT_FAILED)


def _check_configuration(args: argparse.Namespace) -> tuple[rlm_config.Configuration, Check]:
    try:
        settings = rlm_config.load_config(given_options(args), config=args.config)
    except rlm.ConfigError as error:
        return _unconfigured(), Check("configuration", "fail", error.message, error.hint)
    return settings, Check("configuration", "ok", ", ".join(settings.files) or "no files; defaults and environment")


def _unconfigured() -> rlm_config.Configuration:
    """A configuration without files, so that the other checks can still run when the files cannot be read."""
    try:
        return rlm_config.load_config({}, config=False)
    except rlm.ConfigError:  # then a variable is wrong
        defaults = {name: row.default for name, row in rlm_config.OPTIONS.items()}
        return rlm_config.Configuration(defaults, dict.fromkeys(rlm_config.OPTIONS, "default"), [], dict(os.environ))


def unknown_variables() -> dict[str, str]:
    """The RLM_* variables that name no option, each with the closest one that does, or ""."""
    import difflib

    known = {f"RLM_{name.upper()}" for name in rlm_config.OPTIONS} | {"RLM_DEBUG", "RLM_MCP_CLI"}
    unknown = sorted(name for name in os.environ if name.startswith("RLM_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), "") for name in unknown}


def warn_of_variables(shell: Invocation) -> None:
    for name, meant in unknown_variables().items():
        if meant:
            shell.terminal.write_line(f"rlm: {name} is not an option and is ignored: did you mean {meant!r}?")


def check_variables() -> list[Check]:
    """A line for each RLM_* variable that nothing reads."""
    return [
        Check(
            "environment",
            "warn",
            f"{name} is not an option and is ignored",
            f"did you mean {meant!r}?" if meant else "rlm config",
        )
        for name, meant in unknown_variables().items()
    ]


def check_module() -> Check:
    """Which file `rlm` is, and whether another distribution installs that name as well."""
    from importlib.metadata import packages_distributions

    where = os.path.abspath(rlm.__file__)
    others = sorted({name for name in packages_distributions().get("rlm", []) if name.lower() != "flat-rlm"})
    if others:
        return Check(
            "rlm", "warn", f"{where}; {', '.join(others)} installs `rlm` too", f"pip uninstall {' '.join(others)}"
        )
    return Check("rlm", "ok", f"{rlm.__version__} ({where})")


def check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    tested = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Check(
        "python", "ok" if tested else "warn", f"{version} ({sys.executable})", "" if tested else "use 3.10 to 3.13"
    )


def check_dependencies() -> list[Check]:
    """A line for each distribution that a run needs."""
    from importlib import import_module
    from importlib.metadata import PackageNotFoundError, version

    checks = []
    needed = {"requests": "requests", "RestrictedPython": "RestrictedPython", "docker": "docker"}
    if sys.version_info < (3, 11):
        needed["tomli"] = "tomli"
    for name, module in needed.items():
        try:
            found = import_module(module)
            if name == "docker" and not hasattr(found, "from_env"):
                raise ImportError("a folder named docker hides it")
            checks.append(Check(name, "ok", version(name)))
        except (ImportError, PackageNotFoundError) as error:
            state = "warn" if name == "docker" else "fail"  # only containers need it
            checks.append(Check(name, state, str(error), f"pip install {name}"))
    return checks


def check_keys(settings: rlm_config.Configuration) -> list[Check]:
    """The provider keys that are set, masked. A self-hosted server may need none."""
    names = sorted(rlm_backends.key_variables() & {name for name, value in settings.environ.items() if value})
    found = [f"{name} {masked(settings.environ[name])}" for name in names]
    if settings.values["api_key"]:
        found.append(
            f"api_key {masked(settings.values['api_key'])} ({_origin('api_key', settings.origins['api_key'])})"
        )
    if found:
        return [Check("keys", "ok", ", ".join(found))]
    none = "none (environment, .env, configuration)"
    own = settings.values["base_url"]
    return [] if own else [Check("keys", "warn", none, "export OPENAI_API_KEY=…   or   rlm demo")]


def check_model(settings: rlm_config.Configuration) -> list[Check]:
    """Whether the configured model can be used; with a base URL, whether its server answers."""
    values = settings.values
    if values["backend"] == "litellm" or not (values["base_url"] or values["model"]):
        return []
    given = {name: values[name] for name in ("api_key", "base_url")}
    if not values["base_url"] and str(values["model"]).startswith("hf:"):
        return [Check("model", "ok", f"{values['model']}: downloaded by the first run, and kept (rlm models)")]
    try:
        backend = rlm_backends.connect(values["model"], values["backend"], environ=settings.environ, **given)
    except rlm_backends.BackendError as error:
        return [Check("model", "fail" if values["base_url"] else "warn", str(error), error.hint)]
    if not values["base_url"]:
        return [Check("model", "ok", f"{backend.model} of {backend.provider}")]
    return [_check_server(backend.model, backend.base_url)]


def _check_server(model: str, base_url: str) -> Check:
    what = f"{model} at {base_url}"
    try:
        status, models = rlm_backends.server_models(base_url, timeout=2)
    except OSError as error:  # what requests raises is one
        return Check("model", "fail", f"{what}: no answer ({type(error).__name__})", "start it, or --base-url URL")
    if status in (401, 403):
        return Check("model", "ok", f"{what} answers, and asks for a key")
    if models and model not in models:
        return Check("model", "warn", f"{what}: it has no such model", rlm_config.suggestion(model, models[:20]))
    return Check("model", "ok", f"{what} answers")


def check_tools(settings: rlm_config.Configuration) -> list[Check]:
    """A line for the tools of the configuration and of installed plug-ins; none where there are none."""
    sources: list[Callable[[], list[rlm_tools.Tool]]] = [rlm_tools.entry_point_tools]
    sources += [functools.partial(rlm_tools.load_tools, spec) for spec in settings.values["tools"] or []]
    names: list[str] = []
    troubles: list[Check] = []
    for load in sources:
        try:
            with prints_to_stderr():
                names += [tool.name for tool in load()]
        except rlm_tools.ToolError as error:
            troubles.append(Check("tools", "fail", one_line(error, 300), error.hint or "--tools FILE_OR_MODULE"))
    return [*troubles, *([Check("tools", "ok", ", ".join(names))] if names else [])]


def check_mcp(settings: rlm_config.Configuration) -> list[Check]:
    """A line for each configured MCP server: it is started, asked for its tools, and ended."""
    checks = []
    for name, spec in (settings.values["mcp"] or {}).items():
        try:
            servers = rlm_mcp.ServerSet({name: spec}, settings.environ)
            servers.connect()
            servers.close()
            checks.append(Check("mcp", "ok", f"{name}: {sum(map(len, servers.tools.values()))} tools"))
        except rlm_tools.ToolError as error:
            checks.append(Check("mcp", "fail", one_line(error, 300), error.hint))
    return checks


def check_local_models() -> Check:
    """Model servers on this machine's usual ports."""
    found = rlm_backends.local_servers()
    if not found:
        return Check("local models", "ok", "none found")
    return Check(
        "local models", "ok", "; ".join(f"{name} at {url}: {', '.join(models[:4])}" for name, url, models in found)
    )


def check_agents(settings: rlm_config.Configuration) -> Check:
    """Models that need no key: coding agents on the PATH and downloaded model files."""
    found = [name for name, program in rlm_backends.agents(settings.environ) if program]
    kept = [row["name"] for row in rlm_backends.downloaded_models(settings.environ) if row["complete"]]
    return Check("without a key", "ok", ", ".join([*found, *kept]) or "no coding agent, no downloaded model")


def check_sandbox(settings: rlm_config.Configuration) -> Check:
    """Which confinement layers hold here, and that a cell runs at all."""
    layers = dict(rlm_sandbox.capabilities())
    level = layers.pop("level", "?")
    held = [name for name, holds in layers.items() if holds]
    missing = [name for name, holds in layers.items() if not holds]
    detail = f"{level}: {', '.join(held)}" + (f"; not here: {', '.join(missing)}" if missing else "")
    required = settings.values["require"] == "full" and settings.values["environment"] == "local"
    try:
        with rlm_sandbox.LocalSandbox(cell_timeout=10) as sandbox:
            cell = sandbox.execute("6 * 7")
    except (RuntimeError, OSError) as error:
        return Check("sandbox", "fail", f"does not start: {one_line(error, 200)}", "rlm --env docker")
    if cell.value != "42":
        return Check("sandbox", "fail", f"a cell failed: {one_line(cell.error, 200)}", "rlm --env docker")
    if missing and required:
        return Check("sandbox", "fail", detail, 'a newer kernel, or: require = "best"')
    return Check("sandbox", "ok", detail)


def check_docker(settings: rlm_config.Configuration) -> Check:
    """Whether a Docker daemon answers within two seconds; needed only where the configuration asks for it."""
    asking = rlm.spawn(lambda: str(rlm_sandbox.docker_engine().version()["Version"]))
    what, following = "no answer in 2 s", ""
    try:
        if asking.wait(2):
            return Check("docker", "ok", f"daemon {asking.get()}")
    except Exception as error:  # the SDK may raise anything, and that is what to report
        what, following = one_line(error, 200), getattr(error, "hint", "")
    state = "fail" if settings.values["environment"] == "docker" else "warn"
    return Check("docker", state, what, f"{following or 'start Docker'} (only --env docker needs it)")


def check_logs(settings: rlm_config.Configuration) -> Check:
    """Whether the log folder, or the nearest folder above it that exists, can be written to."""
    folder = settings.values["log_dir"]
    if not folder:
        return Check("logs", "ok", "off")
    if can_be_written(folder):
        return Check("logs", "ok", os.path.abspath(folder))
    return Check("logs", "fail", f"{os.path.abspath(folder)} cannot be written", "rlm --log-dir DIR")


def can_be_written(folder: str) -> bool:
    """Whether files can be made in the folder, or it in the nearest one above that exists."""
    existing = os.path.abspath(folder)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


def check_online(settings: rlm_config.Configuration) -> list[Check]:
    """One tiny call to each provider that has a key, all at once."""
    rows = [row["id"] for row in rlm_backends.providers(None, settings.environ) if row["key_present"]]
    found: list[Check] = rlm.fan_out([functools.partial(ask_online, name, settings) for name in rows], 8)
    return found


def ask_online(provider: str, settings: rlm_config.Configuration) -> Check:
    """Whether a provider answers its default model; one without such a model is not asked."""
    asked = [{"role": "user", "content": "Say ok."}]
    try:
        backend = rlm_backends.connect(None, provider, environ=settings.environ, max_retries=0)
        reply = backend.complete(asked, max_tokens=16, deadline=time.monotonic() + 20)
    except rlm_backends.BackendError as error:
        return Check(
            provider, "warn" if error.code == "config" else "fail", error.message, error.hint or "check the key"
        )
    return Check(provider, "ok", f"{backend.model} answered ({reply.usage['input']} + {reply.usage['output']} tokens)")


# --- shell completion -----------------------------------------------------------------------------------------------


def declare_completion(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} bash|zsh|fish"
    parser.add_argument("words", nargs="*", metavar="SHELL", help="bash, zsh or fish")


def completion(args: argparse.Namespace, shell: Invocation) -> None:
    """`rlm completion SHELL`: a script to source."""
    if len(args.words) != 1 or args.words[0] not in _SCRIPTS:
        raise rlm.ConfigError("which shell?", hint="rlm completion bash|zsh|fish")
    shell.print(_SCRIPTS[args.words[0]]().rstrip())


def _flags(name: str) -> list[str]:
    """The long flags of a command."""
    if name == "mcp-serve":
        return ["--env", "--workspace", "--max-wait", "--help"]
    return sorted({flag for a in command_parser(name)._actions for flag in a.option_strings if flag.startswith("--")})


def _bash() -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(_flags(name))}" ;;' for name in COMMANDS)
    return f"""\
# rlm: completion for bash; in ~/.bashrc: eval "$(rlm completion bash)"
_rlm() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} words
  case ${{COMP_WORDS[1]}} in
{cases}
    *) words="{" ".join(_flags(""))}" ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(COMMANDS)} $words"
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _rlm rlm
"""


def _zsh() -> str:
    return "#compdef rlm\nautoload -U +X bashcompinit && bashcompinit\n" + _bash()


def _fish() -> str:
    none = " ".join(COMMANDS)
    lines = ["# rlm: completion for fish; save as ~/.config/fish/completions/rlm.fish"]
    for name, command in COMMANDS.items():
        summary_text = command.summary.replace("'", "")
        lines.append(f"complete -c rlm -n '__fish_use_subcommand' -a {name} -d '{summary_text}'")
        lines += [f"complete -c rlm -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}" for flag in _flags(name)]
    lines += [f"complete -c rlm -n 'not __fish_seen_subcommand_from {none}' -l {flag[2:]}" for flag in _flags("")]
    return "\n".join(lines)


_SCRIPTS: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}


# --- the commands ---------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """What a command is for, the arguments it declares, and what it does."""

    summary: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Invocation], Outcome | None]


COMMANDS = {
    "run": Command("answer a prompt (the default command)", declare_run, run),
    "chat": Command("hold a conversation over one REPL", declare_chat, chat),
    "batch": Command("run many prompts from a file", declare_batch, batch),
    "resume": Command("continue a stopped run", declare_resume, resume),
    "replay": Command("re-run a recorded run without calling a model", declare_replay, replay),
    "logs": Command("list runs, show a run's call tree, or follow a run", declare_logs, logs),
    "cost": Command("sum what runs have cost, by model, day or project", declare_cost, cost),
    "visualize": Command("render runs as an HTML page, or serve them locally", declare_visualize, visualize),
    "export": Command("export runs as OpenTelemetry spans, training samples or a notebook", declare_export, export),
    "demo": Command("see rlm work without an API key (the model is scripted)", declare_demo, demo),
    "init": Command("write a commented rlm.toml", declare_init, init),
    "config": Command("show every option, its value and where it comes from", declare_config, config),
    "trust": Command("let this project's rlm.toml set every option", declare_trust, trust),
    "doctor": Command("check what works on this machine", declare_doctor, doctor),
    "providers": Command("list providers and which keys are set", declare_providers, providers),
    "models": Command("list and remove downloaded model files", declare_models, models),
    "mcp-serve": Command(
        "serve the sandbox to an MCP client", lambda _: None, lambda _args, _shell: Outcome(EXIT_USAGE)
    ),
    "mcp-install": Command("add rlm's MCP server to a client's settings", declare_mcp_install, mcp_install),
    "completion": Command("print a shell completion script", declare_completion, completion),
}

# What `rlm COMMAND --help` and docs/help.md show; a test parses each line.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        'rlm "Which customer has the most failed payments?" -c payments.csv',
        'cat big.log | rlm "Which errors came first?"',
        'rlm "Where is the retry logic?" -c "src/**/*.py" --env docker --cost-budget 0.50 --json',
        'rlm "What do these have in common?" -c a.txt -c b.txt -m cli:claude',
        'rlm --stream "Name three rivers."',
    ),
    "chat": ("rlm chat -c contract.md", "rlm chat --resume 2f1a"),
    "batch": (
        "rlm batch prompts.jsonl -o results.jsonl",
        'rlm batch rows.csv --prompt "Why did the payment of {customer} fail?" -o results.jsonl -j 4 --cost-budget 2',
    ),
    "resume": ("rlm resume", "rlm resume 2f1a --max-iterations 60"),
    "replay": ("rlm replay 2f1a", "rlm replay tests/recorded.jsonl -q"),
    "logs": ("rlm logs", "rlm logs 2f1a", "rlm logs --follow"),
    "cost": ("rlm cost --by day", "rlm cost logs ../other/logs --by project --json"),
    "visualize": ("rlm visualize --open", "rlm visualize 2f1a --diff 9c3e -o diff.html", "rlm visualize --port 8000"),
    "export": (
        "rlm export 2f1a --otel --endpoint http://localhost:4318",
        "rlm export '*' --sft --status answered -o samples.jsonl",
        "rlm export 2f1a --ipynb -o run.ipynb",
    ),
    "demo": ("rlm demo", "rlm demo --env docker --no-open"),
    "init": ("rlm init", "rlm init -m gpt-4o --token-budget 200000", "rlm init --user --sub-model gpt-4o-mini"),
    "config": ("rlm config", "rlm config --max-depth 2 --json"),
    "trust": ("rlm trust --show", "rlm trust", "rlm trust --revoke"),
    "doctor": ("rlm doctor", "rlm doctor --online", "rlm doctor --env docker -m gpt-4o"),
    "providers": ("rlm providers", "rlm providers mistral"),
    "models": ("rlm models", "rlm models remove hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"),
    "mcp-serve": ("rlm mcp-serve --workspace ~/project", "rlm mcp-serve --env docker --max-wait 120"),
    "mcp-install": ("rlm mcp-install cursor", "rlm mcp-install claude-code --write --scope project"),
    "completion": ('eval "$(rlm completion bash)"', "rlm completion fish > ~/.config/fish/completions/rlm.fish"),
}
