# /// script
# requires-python = ">=3.10"
# dependencies = ["requests", "RestrictedPython", "docker", "tomli; python_version < '3.11'"]
# ///
"""The command line: `python -m rlm "prompt"`, `rlm logs`, `rlm chat` and the rest, and the progress of a run as shown.

    stdout  the answer, or one JSON object, or the events as JSON lines; nothing else
    stderr  progress, notes, and errors in three lines: what, what was looked at, what to do next

A command is a row of COMMANDS: what it is for, the arguments it declares, the function that runs it. The flags of a
run are made from `rlm_config.OPTIONS`, so that an option cannot exist in one place only. The other modules are
imported when they are first used: `--help` pays for none of them and `mcp-serve` only for its own.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TextIO

if TYPE_CHECKING:
    import argparse

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

    def __getattr__(self, attribute: str) -> Any:
        import importlib

        module = importlib.import_module(f"{__package__}.{self._name}" if __package__ else self._name)
        globals()[self._name] = module
        return getattr(module, attribute)


if not TYPE_CHECKING:
    rlm, rlm_backends, rlm_mcp = LazyModule("rlm"), LazyModule("rlm_backends"), LazyModule("rlm_mcp")
    rlm_sandbox, rlm_tools, rlm_viz = LazyModule("rlm_sandbox"), LazyModule("rlm_tools"), LazyModule("rlm_viz")
    rlm_config = LazyModule("rlm_config")

__all__ = ["main"]

Event = dict[str, Any]
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_LIMIT, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 3, 130, 143  # exit codes


# --- the way in -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["mcp-serve"]:  # an MCP client waits for the first byte: nothing else may cost time
        return mcp_serve(arguments[1:])
    stderr = sys.stderr
    try:
        shell = Invocation(arguments)
        return shell.ended(_outcome_of(arguments, shell))
    finally:
        sys.stderr = stderr


def _outcome_of(arguments: list[str], shell: Invocation) -> int:
    try:
        listen_for_signals()
        code = dispatch(arguments, shell)
        shell.flush()
    except SystemExit as leaving:  # argparse, after --help
        return int(leaving.code or 0)
    except BrokenPipeError:
        return shell.handle_broken_pipe()
    except KeyboardInterrupt as stop:
        return shell.interrupted(stop)
    except Exception as error:
        return shell.failed(error)
    return code


class Terminated(KeyboardInterrupt):
    """SIGTERM (systemd, `docker stop`, timeout): tidied up after like Ctrl-C, but it ends a chat too."""


def listen_for_signals() -> None:
    """Ctrl-C and SIGTERM are an exception once; what comes after must not cut the tidying up short."""
    import signal

    def once(number: int, _: object) -> None:
        for heard in handled_signals:
            signal.signal(heard, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if (
            signal.getsignal(number) != signal.SIG_IGN or number in handled_signals
        ):  # a background job stays deaf to Ctrl-C
            handled_signals.add(number)
            signal.signal(number, once)


handled_signals: set[int] = set()  # those of which SIG_IGN is our own doing


def dispatch(arguments: list[str], shell: Invocation) -> int:
    """Find the command, read its arguments, run it. A command word is one only as the very first argument."""
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    command = COMMANDS[name or "run"]
    parser = command_parser(name)
    args = parse_args(parser, arguments[1:] if name else arguments, named=bool(name))
    shell.colour(getattr(args, "color", None))
    return command.run(args, shell)


class Invocation:
    """One invocation: the form in which it answers, its terminal, and what is known of the run when it ends badly."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.stdout_closed = ensure_std_streams()
        self.terminal = Terminal(sys.stderr)
        sys.stderr = Harmless(sys.stderr)  # what tools, warnings and other modules print
        self.out = sys.stdout  # while a run goes on, sys.stdout is stderr: see `prints_to_stderr`
        flags = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        self.form = "jsonl" if "--jsonl" in flags else "json" if "--json" in flags else "text"
        self.debug = "--debug" in flags or os.environ.get("RLM_DEBUG", "") not in ("", "0")
        self.is_run = not flags or flags[0] not in COMMANDS or flags[0] in RUNS
        self.model: str | None = None
        self.rerun_flags: Callable[[Collection[str]], str] = lambda but: ""
        self.can_resume = True
        self.page_on_stdout = False  # --html -
        self.lost: rlm.RLMError | None = None  # why nothing can be written to stdout
        self.loss_reported = False
        self.abandoned = False
        self.stop_summary: tuple[str, str] | None = (
            None  # of a batch that was stopped: how far it came, and how to go on
        )
        self._lock = threading.Lock()

    def colour(self, preference: str | None) -> None:
        """Settle whether stderr is coloured, now that `--color` has been read."""
        self.terminal.colour = wants_colour(sys.stderr, preference)

    def print(self, text: str) -> None:
        """An answer for stdout, exactly as it is: but control characters of models do not reach a terminal."""
        self.write((strip_control(text) if self.out.isatty() else text) + "\n")

    def show(self, text: str, *, lead: str = "", style: str = "", colour: bool = False) -> None:
        """A line of a command's own for stdout, harmless wherever it goes: a name or a path in it may be anyone's."""
        painted = f"\x1b[{_STYLES[style]}m{lead}\x1b[0m" if colour and style else lead
        self.write(encodable(self.out, painted + " ".join(strip_control(text).splitlines())) + "\n")

    def write(self, text: str) -> None:
        """Text for stdout. A full disk is an error of ours, and a reader that went away is not."""
        try:
            self.out.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def flush(self) -> None:
        """What was written is written, or an error."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> rlm.RLMError:
        self.silence()  # or what is left in the buffer fails once more when Python ends
        result = rlm.last_result() if self.is_run else None
        where = f"the answer is in {result.log}" if result and result.log else ""
        what = "the answer to stdout" if result else "to stdout"
        self.lost = rlm.RLMError(f"cannot write {what}: {error.strerror}", hint=where)
        return self.lost

    def silence(self) -> None:
        """From here on stdout goes nowhere."""
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 1)

    def ended(self, code: int) -> int:
        """The exit code, now that nothing more is written; what argparse has printed may not have got out."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            self.silence()
        except OSError as error:
            self._unwritable(error)
        if self.lost is not None and not self.loss_reported:
            return self.failed(self.lost)
        return code

    def print_json(self, value: Any) -> None:
        """One line of JSON for stdout, whole even when several threads have something to say."""
        line = rlm_tools.to_json(value).replace("\x7f", "\\u007f") + "\n"
        with self._lock:
            self.write(line)
            self.flush()

    def emit(self, event: Event) -> None:
        """An event for `--jsonl`. A reader that went away ends the run: it costs money and nobody listens."""
        if self.abandoned:
            return
        try:
            self.print_json(event)
        except (BrokenPipeError, rlm.RLMError):
            self.abandoned = True
            import _thread

            _thread.interrupt_main()

    def handle_broken_pipe(self) -> int:
        """Whoever read stdout has seen enough: end quietly."""
        self.silence()
        return EXIT_OK

    def interrupted(self, stop: KeyboardInterrupt) -> int:
        """Ctrl-C or SIGTERM: what was done, and how to go on."""
        if self.lost is not None:
            return self.failed(self.lost)
        if self.abandoned:
            return self.handle_broken_pipe()
        result = rlm.last_result() if self.is_run else None
        self._report("interrupted", result, None)
        second, following = self.stop_summary or (f"done: {summary(result)}" if result else "", self._way_on(result))
        ended = isinstance(stop, Terminated)
        self.terminal.error("terminated" if ended else "interrupted", second, following)
        return EXIT_TERMINATED if ended else EXIT_INTERRUPTED

    def failed(self, error: Exception) -> int:
        """An error as a user reads it: three lines, and the exit code of its kind. `--debug` shows the traceback."""
        code, result = exit_code(error), getattr(error, "result", None)
        message, second, following = map(without_keys, describe_error(error))
        if code == EXIT_LIMIT:
            option = error.option  # type: ignore[attr-defined]
            following = self._way_on(result, option, error.needed)  # type: ignore[attr-defined]
            if option == "confirm_above" and error.needed is None:  # type: ignore[attr-defined]
                following = error.hint  # type: ignore[attr-defined]
            second = "" if following else f"raise it: {flags_of(option)[-1]} {metavar(option)}"
        elif result is not None and code == EXIT_FAILED:
            following = " or ".join(part for part in (following, self._way_on(result)) if part)
        try:
            status = "partial" if code == EXIT_LIMIT else "error"
            self._report(status, result, error, message, following)
        except BrokenPipeError:
            return self.handle_broken_pipe()
        except rlm.RLMError as unwritable:  # stdout: what was to be said there is lost
            if unwritable is not error:
                self.terminal.error(unwritable.message, "", unwritable.hint)
        self.loss_reported = self.lost is not None
        if self.debug:
            import traceback

            self.terminal.write_line(without_keys("".join(traceback.format_exception(error)).rstrip()), lines=True)
        self.terminal.error(message, second, following)
        return code

    def _way_on(self, result: rlm.CompletionResult | None, limit: str = "", needed: float | None = None) -> str:
        """The command that goes on: with the limit that stopped the run as `needed`, or doubled, and all its flags."""
        if result is None or not result.log or not self.can_resume or (limit == "confirm_above" and not needed):
            return ""
        raised = f" {flags_of(limit)[-1]} {f'{needed:g}' if needed else doubled(result.log, limit)}" if limit else ""
        return f"rlm resume {result.trajectory_id}{raised}{self.rerun_flags([limit])}"

    def _report(
        self,
        status: str,
        result: rlm.CompletionResult | None,
        error: Exception | None,
        message: str = "",
        hint: str = "",
    ) -> None:
        """What stdout gets of a run that did not end well: the JSON object, or the partial answer."""
        if self.form != "text":
            fault = {"type": type(error).__name__, "message": message, "hint": hint} if error else None
            last = {"event": "result"} if self.form == "jsonl" else {}
            self.print_json(last | result_dict(status, result, self.model, fault))
        elif result is not None and result.response:
            self.print(result.response)
        self.flush()


def exit_code(error: Exception) -> int:
    """2: wrong usage or configuration; 3: a limit; 1: everything else."""
    if isinstance(error, rlm.ConfigError):
        return EXIT_USAGE
    return EXIT_LIMIT if isinstance(error, rlm.LimitExceeded) else EXIT_FAILED


def describe_error(error: Exception) -> tuple[str, str, str]:
    """(message, second line, next step) of an error. One that is not ours is a fault of this program, and says so."""
    if isinstance(error, rlm.RLMError):
        looked = getattr(error.__cause__, "looked_for", None)
        if not looked:
            return error.message, "", error.hint
        places = f"{', '.join(looked)} (environment, .env), api_key (rlm.toml, user configuration)"
        return error.message, f"looked for: {places}", f"{error.hint}   or   rlm providers   or   rlm demo"
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
    """The text without the keys in the environment. Errors come masked; one that nobody thought of may not."""
    names = {*rlm_backends.key_variables(), "RLM_API_KEY", "SNIPARA_API_KEY", "RLM_SNIPARA_API_KEY"}
    return str(rlm_backends.mask(text, [os.environ[name] for name in names if os.environ.get(name)]))


_OUTCOME = (
    *("response", "value", "trajectory_id", "total_calls", "total_tokens", "usage", "cost_usd", "depth_reached"),
    *("tool_calls", "duration_ms", "log"),
)


def result_dict(
    status: str, result: rlm.CompletionResult | None, model: str | None, error: Mapping[str, str] | None
) -> dict[str, Any]:
    """The object of `--json`: always every key, null where nothing is known."""
    known = {name: getattr(result, name, None) for name in _OUTCOME}
    return {"status": status, "model": model, **known, "error": error}


def prints_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """While it holds, what a tool prints goes to stderr: stdout is the answer's."""
    return contextlib.redirect_stdout(sys.stderr)


def ensure_std_streams() -> bool:
    """Make the standard streams safe to write to; True if stdout was closed.

    A closed descriptor is pointed at /dev/null, or the next file to be opened would get its number. What a stream
    cannot encode is written as an escape rather than ending the program.
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
    """The flags of an option, the one to name in a message last."""
    long = "--" + option.replace("_", "-")
    row = rlm_config.OPTIONS[option].metadata
    flags = [row["short"], long, row["flag"]]
    return [flag for flag in dict.fromkeys(flags) if flag]


def metavar(option: str) -> str:
    """What an option's value is called in the help."""
    named = str(rlm_config.OPTIONS[option].metadata["metavar"])
    return named or _METAVARS.get(rlm_config.type_of(option), "JSON")


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command; without a name that of a run, whose help lists the commands."""
    command = COMMANDS[name or "run"]
    parser = new_parser(f"rlm {name}".strip(), command.summary)
    command.declare(parser)
    general = parser.add_argument_group("general")
    general.add_argument("--config", metavar="PATH", help="use only this configuration file")
    general.add_argument("--color", choices=("auto", "always", "never"), help="colours (default: on a terminal)")
    general.add_argument("--debug", action="store_true", help="show tracebacks")
    if not name:
        general.add_argument("--version", action="version", version=f"rlm {rlm.__version__}")
        rows = "\n".join(f"  {word:<13} {row.summary}" for word, row in COMMANDS.items())
        parser.epilog = f"commands (as the first word; `rlm COMMAND --help`):\n{rows}"
    return parser


def new_parser(program: str, description: str) -> argparse.ArgumentParser:
    """An argument parser whose complaints are our errors."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise rlm.ConfigError(message, hint=f"{self.prog} --help")

        def _print_message(self, message: str, file: Any = None) -> None:
            """argparse's own keeps a full disk to itself."""
            (file or sys.stderr).write(message)

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def _format_action_invocation(self, action: argparse.Action) -> str:
            """Flags once and the value's name once; `--no-x` is said by the help of `--x`."""
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
    """The arguments of a command; what follows `--` is never an option. ConfigError says what was meant, perhaps."""
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
        raise rlm.ConfigError(f"what is {positionals[0]!r}?", hint=f"{parser.prog} --help")
    args.words = positionals
    args.first = "" if named or cut == 0 else arguments[0]
    return args


def declare_options(parser: argparse.ArgumentParser, title: str = "options of a run, also keys of rlm.toml") -> None:
    """A flag for every row of the table of options."""
    import argparse

    group = parser.add_argument_group(title)
    taken = {flag for action in parser._actions for flag in action.option_strings}
    for name, row in rlm_config.OPTIONS.items():
        text = row.metadata["help"].replace("%", "%%")
        kind = rlm_config.type_of(name)
        flags = [flag for flag in flags_of(name) if flag not in taken]
        if kind == "bool":
            group.add_argument(
                *flags,
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=help_with_default(text, row),
            )
        else:
            repeat = "append" if kind.startswith("list") or name in (*rlm_config.PAIRS, "mcp") else "store"
            group.add_argument(
                *flags, dest=name, action=repeat, metavar=metavar(name), help=help_with_default(text, row)
            )
    group.add_argument("--no-log", action="store_true", help="write no journal; the run cannot be resumed")


def help_with_default(text: str, row: Any) -> str:
    """The help of an option with its default. (BooleanOptionalAction adds its own where it sees none.)"""
    if row.default is True:
        return f"{text} (default; --no-{row.name.replace('_', '-')} turns it off)"
    return text if row.default in (None, False) or "default" in text else f"{text} (default {row.default})"


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that the command line sets."""
    values = {}
    for name in rlm_config.OPTIONS:
        value = getattr(args, name, None)
        if value is not None:
            values[name] = _option_value(name, value)
    if getattr(args, "no_log", False):
        values["log_dir"] = ""
    return values


def rerun_flags(args: argparse.Namespace, *, but: Collection[str] = ()) -> str:
    """The flags of this command line, ready for a shell, for the command that goes on. A key is never among them."""
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


def _option_value(name: str, value: Any) -> Any:
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


def _read_schema(path: str) -> Any:
    """The JSON Schema in a file, or written out on the command line."""
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
    """Text without what would steer the terminal: escape sequences, control characters, overrides of direction."""
    return _CONTROL.sub("", text)


def plain_but_styled(text: str) -> str:
    """The same of a text that is coloured already: our own few styles stay."""
    own = rf"(\x1b\[(?:0|{'|'.join(_STYLES.values())})m)"
    return "".join(part if n % 2 else strip_control(part) for n, part in enumerate(re.split(own, text)))


def one_line(text: Any, width: int) -> str:
    """A harmless single line of at most `width` characters."""
    line = " ".join(strip_control(str(text))[: 4 * width].split())
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def wants_colour(stream: TextIO, preference: str | None = None) -> bool:
    """`--color`, else NO_COLOR, else FORCE_COLOR (an empty variable says nothing), else whether it is a terminal."""
    if preference in ("always", "never"):
        return preference == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


class Harmless:
    """A stream that others print to: what would steer the terminal does not get through."""

    def __init__(self, stream: Any) -> None:
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
    """stderr: lines that stay and, on a terminal, one line below them that is repainted."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = wants_colour(stream)
        self._lock = threading.Lock()
        self._painted = False

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour and style else text

    def write_line(self, text: str, *, lead: str = "", style: str = "", lines: bool = False) -> None:
        """A line that stays, behind a `lead` of ours in a style; with `lines` as many as the text has."""
        text = strip_control(text) if lines else " ".join(strip_control(text).splitlines())
        with self._lock:
            self._write(("\r\x1b[K" if self._painted else "") + self.paint(lead, style) + text + "\n")
            self._painted = False

    def status(self, text: str) -> None:
        """Repaint the line at the bottom; an empty text takes it away."""
        with self._lock:
            if self.live and (text or self._painted):
                self._write("\r\x1b[K" + " ".join(strip_control(text).splitlines())[: self.width() - 1])
                self._painted = bool(text)

    def error(self, message: str, second: str, following: str) -> None:
        """At most three lines: what happened, what was looked at, what to do."""
        following = f"next: {following}" if following else ""
        lines = [" ".join(strip_control(text)[:2000].splitlines()) for text in (message, second, following) if text]
        self.write_line("\n  ".join(lines), lead="rlm: ", style="red", lines=True)

    def ask(self, question: str) -> None:
        """A question, after which the user types."""
        with self._lock:
            self._write(strip_control(question))

    def width(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        try:
            self.stream.write(encodable(self.stream, text))
            self.stream.flush()
        except OSError:
            pass  # nobody reads stderr any more; the answer still counts


def encodable(stream: TextIO, text: str) -> str:
    """The text with our own signs in ASCII where the stream's encoding has none of them."""
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII)
    return text


# --- standard input -------------------------------------------------------------------------------------------------

_PATIENCE = 2.0  # seconds after which is said what is waited for
_STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def read_stdin(terminal: Terminal, *, asked: bool) -> bytes | None:
    """What is piped in, None if nothing is. A pipe is waited for; a terminal only where it is `asked` (`-`, `-c -`)."""
    import stat

    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    if not asked and (stat.S_ISCHR(mode) or stat.S_ISDIR(mode)):
        return None
    with contextlib.suppress(AttributeError, OSError):
        os.set_blocking(0, True)  # a parent may have left its pipe otherwise
    note = threading.Timer(_PATIENCE, terminal.write_line, ["rlm: waiting for stdin (`< /dev/null` if there is none)"])
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


def terminal_input(terminal: Terminal) -> int | None:
    """A descriptor of what the user types, also where stdin is a pipe; None where nobody sees a question."""
    if not terminal.stream.isatty():
        return None
    with contextlib.suppress(OSError):
        return os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0))
    with contextlib.suppress(OSError):
        return os.dup(0) if os.isatty(0) else None
    return None


def read_line(source: int, end: threading.Event) -> str:
    """What is typed up to a line's end, "" once `end` is set: the run was stopped meanwhile."""
    import select

    while os.name == "posix" and not select.select([source], [], [], 0.1)[0]:
        if end.is_set():
            return ""
    return os.read(source, 1024).decode("utf-8", "replace")


# --- progress -------------------------------------------------------------------------------------------------------


class Progress:
    """Counts a run's events and shows them: a repainted line on a terminal, a plain one every 10 s elsewhere."""

    def __init__(self, terminal: Terminal, limits: Mapping[str, Any], *, quiet: bool = False, verbose: bool = False):
        self.terminal = terminal
        self.limits = limits
        self.quiet = quiet
        self.verbose = verbose
        self.started = time.monotonic()
        self.model: str | None = None
        self.calls = self.tokens = self.subcalls = self.depth = 0
        self.cost = 0.0
        self.unpriced = False
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
        """Take the line away and paint no other."""
        self._end.set()
        with self._painting:
            self.terminal.status("")

    def ask(self, forecast: rlm.Forecast) -> bool:
        """Whether the user says yes to a batch, on the terminal; without one, and to Ctrl-C, the answer is no."""
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
        self.depth = max(self.depth, int(event.get("depth") or 0))
        kind = event.get("event")
        if kind == "start":
            self.model = self.model or event.get("model")
        if kind == "call":
            usage = event.get("token_usage") or {}
            self.calls += 1
            self.tokens += (usage.get("input") or 0) + (usage.get("output") or 0)
            self.unpriced = self.unpriced or event.get("cost_usd") is None
            self.cost += event.get("cost_usd") or 0.0
        if (kind == "call" and event.get("kind") == "sub") or (kind == "start" and event.get("depth")):
            self.subcalls += 1
        if self.verbose and not self.quiet and (step := rlm_viz.step(event)):
            self.terminal.write_line(step)

    def line(self, width: int | None = None) -> str:
        """`12s  7 calls  18,240 tok  $0.0131 / $0.50  depth 2  llm_query 14/40  running cell 3: 4 s`

        What goes on now is worth more than figures: where the width is too small for both, these give way.
        """
        cost = dollars(None if self.unpriced else self.cost)
        if budget := self.limits.get("cost_budget_usd"):
            cost += f" / ${budget:.2f}"
        parts = {"time": f"{time.monotonic() - self.started:.0f}s", "calls": rlm_viz.counted(self.calls, "call")}
        parts |= {"tokens": f"{self.tokens:,} tok", "cost": cost, "depth": f"depth {self.depth}"}
        if self.subcalls:
            parts["subcalls"] = f"llm_query {self.subcalls}/{self.limits.get('max_subcalls', '?')}"
        if doing := self.activity.words():
            parts["now"] = doing
        for name in ("depth", "tokens", "cost", "subcalls", "calls"):
            if width is None or len("  ".join(parts.values())) <= width:
                break
            parts.pop(name, None)
        return "  ".join(parts.values())


def dollars(cost: float | None) -> str:
    """Dollars in the progress line, whose figures keep their width; `$?` when a price is not known."""
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


def run(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm "PROMPT"`: answer it."""
    args.context = args.context and ["-" if spec in _STDIN else spec for spec in args.context]
    prompt = prompt_of(args, shell)
    if args.stream:
        return stream(args, shell, prompt)
    context = context_of(args, shell, prompt_is_stdin=args.words == ["-"])
    ask = functools.partial(rlm.RLM.completion, prompt=prompt, context=context, system=args.system)
    execute_and_report(args, shell, ask, recorded=rlm_config.LIMITS)
    return EXIT_OK


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
        raise rlm.ConfigError(f"more than one prompt: {one_line(words[1], 40)!r} as well", hint=hint)
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
    """What to type where the shell has made several words of a glob after -c; "" where that was not it."""
    extra = args.words[1:]
    if not args.context or not all(map(os.path.exists, extra)):
        return ""
    endings = {os.path.splitext(path)[1] for path in (args.context[-1], *extra)}
    glob = os.path.join(os.path.dirname(args.context[-1]), f"*{endings.pop() if len(endings) == 1 else ''}")
    return f"put quotes around the glob: -c '{glob}'"


def context_of(args: argparse.Namespace, shell: Invocation, *, prompt_is_stdin: bool) -> rlm.Context | None:
    """What becomes the variable `context`: the -c files, or what is piped in where no -c is given, or asks for it."""
    specs = list(args.context or [])
    asked = "-" in specs
    wanted = not prompt_is_stdin and (asked or not specs)  # in a shell's loop stdin is the loop's list
    piped = read_stdin(shell.terminal, asked=asked) if wanted else None
    if piped is not None and not asked:
        specs.append("-")
    if not specs:
        return None
    context = read_context(args, shell, specs, piped)
    show_notes(context, shell)
    return context


def read_context(
    args: argparse.Namespace, shell: Invocation, specs: Sequence[str], stdin: bytes | None = None
) -> rlm.Context:
    """The files, in the encoding that is configured, without the logs."""
    encoding = rlm_config.load_config(given_options(args), config=args.config).values["encoding"]
    how: dict[str, Any] = {"exclude": log_folder(args), "encoding": encoding}
    return rlm.read_context(specs, stdin=stdin, on_slow=lambda text: shell.terminal.write_line(f"rlm: {text}"), **how)


def show_notes(context: rlm.Context, shell: Invocation) -> None:
    """What was left out of a context, or assumed of it."""
    for note in context.notes:
        shell.terminal.write_line(f"rlm: context: {note}")


def execute_and_report(
    args: argparse.Namespace,
    shell: Invocation,
    ask: Callable[[rlm.RLM], rlm.CompletionResult],
    options: Mapping[str, Any] | None = None,
    *,
    recorded: Collection[str] = (),
) -> rlm.CompletionResult:
    """Run what `ask` does with an RLM, show how it goes, and deliver its result.

    `recorded`: options that a resume finds in the journal, and so need not be given again.
    """
    options_given = dict(options if options is not None else given_options(args))
    values = rlm_config.load_config(options_given, config=args.config).values
    shell.model = values["model"]
    shell.can_resume = bool(values["log_dir"])
    shell.rerun_flags = lambda but: rerun_flags(args, but=[*recorded, *but])
    seen: list[Event] = []
    if args.html:
        _require_folder(args.html)
        shell.page_on_stdout = args.html == "-"
        if shell.page_on_stdout and shell.form != "text":
            raise rlm.ConfigError("stdout cannot be both the page and the JSON", hint="--html FILE")
    verbose = bool(values["verbose"])
    for name, meant in unknown_variables().items():
        if meant:
            shell.terminal.write_line(f"rlm: {name} is no option and was not read: did you mean {meant!r}?")
    with Progress(shell.terminal, values, quiet=args.quiet, verbose=verbose) as progress:

        def listen(event: Event) -> None:
            if shell.form == "jsonl" and "v" in event:  # pieces of text and output are not part of the trajectory
                shell.emit(event)
            if args.html and "v" in event:
                seen.append(event)
            progress.update(event)
            shell.model = progress.model or shell.model

        try:
            how = {
                **options_given,
                "verbose": False,
                "config": args.config,
                "on_event": listen,
                "on_progress": progress.update,
                "on_confirm": progress.ask,
            }
            with prints_to_stderr(), rlm.RLM(**how) as runtime:
                result = ask(runtime)
        finally:
            if args.html and seen:
                _write_page(args.html, seen, shell)
    print_result(result, shell, quiet=args.quiet, typed=bool(options_given.get("schema")))
    return result


def print_result(result: rlm.CompletionResult, shell: Invocation, *, quiet: bool, typed: bool = False) -> None:
    """The answer on stdout in the form that was asked for, and the last line on stderr."""
    if shell.form == "text" and not shell.page_on_stdout:
        shell.print(rlm_tools.to_json(result.value, ensure_ascii=False) if typed else result.response)
        shell.flush()
    elif shell.form != "text":
        last = {"event": "result"} if shell.form == "jsonl" else {}
        shell.print_json(last | result_dict(result.status, result, result.model or shell.model, None))
    if shell.stdout_closed:
        shell.terminal.write_line(f"rlm: stdout is closed; the answer is in {result.log or 'no log'}")
    if not quiet and result.forced:
        shell.terminal.write_line("rlm: no turn was left; this is the model's best answer from what it had seen")
    if not quiet:
        shell.terminal.write_line(f" {summary(result)}", lead="✓", style="green")


def _require_folder(path: str) -> None:
    """ConfigError now rather than after a run that was paid for."""
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


def stream(args: argparse.Namespace, shell: Invocation, prompt: str) -> int:
    """`--stream`: the tokens of a simple completion as they arrive."""
    if args.context or (args.words != ["-"] and read_stdin(shell.terminal, asked=False) is not None):
        raise rlm.ConfigError(
            "--stream is a simple completion and takes no context", hint="leave out --stream or the context"
        )
    if shell.form == "json" or args.html:
        raise rlm.ConfigError("--stream goes with neither --json nor --html", hint="leave one of them out")

    shown = shell.out.isatty()
    shell.can_resume = False  # it is a single call
    given = given_options(args)
    values = rlm_config.load_config(given, config=args.config).values
    progress = Progress(shell.terminal, values, quiet=args.quiet, verbose=bool(values["verbose"]))

    def listen(event: Event) -> None:
        if shell.form == "jsonl" and "v" in event:
            shell.emit(event)
        progress.update(event)

    opened = {**given, "verbose": False, "config": args.config, "on_event": listen, "on_progress": progress.update}
    with prints_to_stderr(), progress, rlm.RLM(**opened) as runtime:
        for piece in runtime.stream(prompt, system=args.system):
            progress.stop()
            if shell.form == "text":
                shell.write(strip_control(piece) if shown else piece)
                shell.out.flush()
            else:
                shell.emit({"event": "text", "delta": piece})
    if shell.form == "jsonl":
        result = rlm.last_result()
        model = result.model if result else shell.model
        shell.print_json({"event": "result"} | result_dict("answered", result, model, None))
    else:
        shell.write("\n")
    return EXIT_OK


def declare_resume(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [ID] [limits to raise]"
    parser.add_argument(
        "words", nargs="*", metavar="ID", help="a run's id or a unique prefix of it (default: newest unfinished)"
    )
    declare_output(parser)
    declare_options(parser)


def resume(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm resume [ID]`: go on where the journal ends."""
    log_dir = log_folder(args)
    name = run_name(log_dir, args.words) if args.words else ""
    raised = {name: value for name, value in given_options(args).items() if name in rlm_config.LIMITS}
    execute_and_report(args, shell, lambda runtime: runtime.resume(name, **raised))
    return EXIT_OK


def declare_replay(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} ID [options]"
    parser.add_argument("words", nargs="*", metavar="ID", help="a run's id, a unique prefix of it, or its .jsonl file")
    declare_output(parser)
    declare_options(parser)


def replay(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm replay ID`: the recorded replies, the code executed for real; exit 1 where the outcome differs."""
    name = run_name(log_folder(args), args.words)
    divergence: list[str] = []

    def ask(runtime: rlm.RLM) -> rlm.CompletionResult:
        replayed = runtime.replay(name)
        divergence.extend(replayed.divergence)
        return replayed.result

    execute_and_report(args, shell, ask)
    if not divergence:
        shell.terminal.write_line("rlm: the same outcome as recorded")
        return EXIT_OK
    shell.terminal.error(f"differs from the recording: {divergence[0]}", _and_more(divergence[1:]), f"rlm logs {name}")
    return EXIT_FAILED


def _and_more(lines: Sequence[str]) -> str:
    return f"and in {len(lines)} more places: {'; '.join(lines[:3])}" if lines else ""


# --- logs and pages -------------------------------------------------------------------------------------------------


def log_folder(args: argparse.Namespace) -> str:
    """The folder of the journals: --dir or --log-dir, else as configured."""
    chosen = getattr(args, "dir", None) or getattr(args, "log_dir", None)
    return str(chosen or rlm_config.load_config({}, config=args.config).values["log_dir"] or "./logs")


def run_name(log_dir: str, words: Sequence[str]) -> str:
    """The one run that the words name: its whole id, or its .jsonl file where that was given."""
    if len(words) != 1:
        raise rlm.ConfigError("name one run", hint="rlm logs lists them; any unique prefix of an id will do")
    path = find_log(log_dir, words[0])
    return path if words[0].endswith(".jsonl") else os.path.basename(path)[: -len(".jsonl")]


def find_log(log_dir: str, name: str) -> str:
    """The path of a run's journal; ConfigError says what there is instead."""
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


def logs(args: argparse.Namespace, shell: Invocation) -> int:
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
            shell.show(_run_row(row, stdout_width()))
        if len(runs) > args.limit:
            shell.terminal.write_line(f"{len(runs) - args.limit} older ones: rlm logs -n {len(runs)}")
    return EXIT_OK


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
    except (ValueError, OverflowError, OSError):  # the year 1 is before every clock's
        return "?"


def stdout_width() -> int:
    """Columns for a table: the terminal's, and room enough in a pipe."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 160
    except (OSError, ValueError):
        return 160


def show_run(path: str, shell: Invocation) -> int:
    """One run: its call tree, or with --json its merged events."""
    events, problems = rlm_viz.read(path)
    if shell.form == "json":
        shell.print_json(rlm_viz.merge(events))
    else:
        text = rlm_viz.tree(events, color=wants_colour(sys.stdout), width=min(stdout_width(), 160))
        shell.write(encodable(sys.stdout, plain_but_styled(text)) + "\n")
    for problem in problems:
        shell.terminal.write_line(f"rlm: {path}: {problem}")
    return EXIT_OK


def declare_cost(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [DIR ...] [--by model|day|project] [--json]"
    parser.add_argument("words", nargs="*", metavar="DIR", help="folders of journals (default: as configured)")
    parser.add_argument("--by", choices=rlm_viz.COST_KEYS, default="model", help="what a row is (default model)")
    parser.add_argument("--dir", "--log-dir", metavar="DIR", help="the same as DIR")
    parser.add_argument("--json", action="store_true", help="{by, rows, total} as JSON")


def cost(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm cost`: what the runs in the journals have cost."""
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
    return EXIT_OK


def follow(args: argparse.Namespace, shell: Invocation, log_dir: str) -> int:
    """Print a run's steps as they are journalled, until its root ends."""
    names = args.words or [row["id"] for row in rlm_viz.list_runs(log_dir)[:1]]
    if not names:
        raise rlm.ConfigError(f"no runs in {log_dir!r}", hint="start one, then: rlm logs --follow")
    for event in new_events(find_log(log_dir, names[0])):
        if shell.form == "json":
            shell.print_json(event)
        elif step := rlm_viz.step(event):
            shell.show(step)
            shell.flush()
    return EXIT_OK


def new_events(path: str) -> Iterator[Event]:
    """The events of a journal as they are written; ends after the root's `end`, when nothing follows it."""
    ended, rest = False, bytearray()
    with open(path, "rb") as file:
        while True:
            piece = file.read(1 << 20)
            if not piece:
                if ended:
                    return
                time.sleep(0.1)
                continue
            rest += piece
            if b"\n" not in piece:
                if len(rest) > rlm.LINE_LIMIT:
                    rest.clear()
                continue
            *lines, rest = rest.split(b"\n")
            for line in lines:
                event = rlm.journal_event(line + b"\n")
                if event is not None:  # else a line that a killed process left torn
                    ended = event.get("event") == "end" and not event.get("depth")
                    yield event


def declare_visualize(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [ID ...] [--dir DIR] [-o PAGE] [--open] [--port N] [--diff ID]"
    parser.add_argument("words", nargs="*", metavar="ID", help="runs to show (default: all, newest first)")
    parser.add_argument("--dir", "--log-dir", metavar="DIR", help="folder with the journals (default: as configured)")
    parser.add_argument("-o", "--output", metavar="PAGE", help="output file (default trajectory.html); - is stdout")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--port", type=int, metavar="N", help="serve the folder on this loopback port until Ctrl-C")
    parser.add_argument("--diff", metavar="ID", help="compare with this run")
    parser.add_argument("--no-bodies", action="store_true", help="leave out prompts, replies, code and output")


def visualize(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm visualize`: one self-contained page from the journals."""
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
    return EXIT_OK


def _port_error(error: OSError, port: int) -> rlm.ConfigError:
    import errno

    if error.errno == errno.EADDRINUSE:
        return rlm.ConfigError(f"port {port} is in use", hint=f"--port {port + 1 if port < 65535 else 0}")
    return rlm.ConfigError(f"port {port}: {error.strerror}", hint="--port 8765")


# --- exports --------------------------------------------------------------------------------------------------------


def declare_export(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} ID ... --otel | --sft | --ipynb [-o FILE] [--dir DIR]"
    parser.add_argument("words", nargs="*", metavar="ID", help="a run, by any unique prefix, or a glob; '*' is all")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--otel", action="store_true", help="OpenTelemetry spans, sent to the endpoint or as JSON")
    form.add_argument("--sft", action="store_true", help="training samples, one for each turn, as JSONL in chat format")
    form.add_argument("--ipynb", action="store_true", help="a Jupyter notebook of the run's cells and their outputs")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="default stdout")
    parser.add_argument("--dir", "--log-dir", metavar="DIR", help="folder of the journals (default: as configured)")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="--otel: the collector (default: OTEL_EXPORTER_OTLP_ENDPOINT, else no request)",
    )
    parser.add_argument("--bodies", action="store_true", help="--otel: prompts, replies, code and outputs as well")
    parser.add_argument("--status", metavar="WORD", help="--sft: only runs that ended so: answered, partial, error, …")
    parser.add_argument("--min-score", type=float, metavar="X", help="--sft: only runs with at least this score")
    parser.add_argument("--scores", metavar="FILE", help="--sft: JSON or JSONL that gives the score of each run's id")


def export(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm export ID`: journals in the form that other programs read."""
    log_dir = log_folder(args)
    forms = {"otel": export_spans, "sft": export_samples, "ipynb": export_notebook}
    chosen = next((name for name in forms if getattr(args, name)), "")
    if not chosen:
        raise rlm.ConfigError("no form to export to", hint="--otel, --sft or --ipynb")
    of_otel, of_sft = args.endpoint or args.bodies, args.status or args.scores or args.min_score is not None
    if (of_otel and chosen != "otel") or (of_sft and chosen != "sft"):
        wrong = next(flag for flag in ("endpoint", "bodies", "status", "scores", "min_score") if getattr(args, flag))
        owner = "--otel" if of_otel and chosen != "otel" else "--sft"
        raise rlm.ConfigError(f"--{wrong.replace('_', '-')} goes with {owner}", hint=f"{owner} instead of --{chosen}")
    if args.output != "-":
        _require_folder(args.output)
    forms[chosen](args, shell, _chosen_logs(log_dir, args.words))
    return EXIT_OK


def _chosen_logs(log_dir: str, words: Sequence[str]) -> list[str]:
    """The journals that ids, files and globs name, each once; ConfigError for a word that names none."""
    import fnmatch

    if not words:
        raise rlm.ConfigError("name one run or more", hint="rlm logs lists them; '*' is all")
    names = {row["id"]: row["path"] for row in rlm_viz.list_runs(log_dir)} if any(map(_is_glob, words)) else {}
    paths = []
    for word in words:
        found = [names[name] for name in fnmatch.filter(names, word)] if _is_glob(word) else [find_log(log_dir, word)]
        if not found:
            raise rlm.ConfigError(f"no run in {log_dir!r} is called like {word!r}", hint="rlm logs")
        paths += found
    return list(dict.fromkeys(paths))


def _is_glob(word: str) -> bool:
    return not word.endswith(".jsonl") and re.search(r"[*?\[]", word) is not None


def _read_logs(paths: Sequence[str], shell: Invocation) -> Iterator[tuple[str, list[Event]]]:
    """Each journal with its events, saying what of it could not be read; ConfigError if there is no event at all."""
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
    """Text for -o FILE, all of it or nothing; for stdout as it comes."""
    if args.output == "-":
        for piece in pieces:
            shell.write(encodable(shell.out, piece))
        return
    try:
        rlm_viz.write_file(args.output, pieces)
    except OSError as error:
        raise rlm.ConfigError(f"cannot write {args.output!r}: {error.strerror}", hint="-o FILE") from error


def export_spans(args: argparse.Namespace, shell: Invocation, paths: Sequence[str]) -> None:
    """`--otel`: to the collector, or as the JSON that it would be sent."""
    spans = [span for _, events in _read_logs(paths, shell) for span in rlm_viz.spans(events, bodies=args.bodies)]
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
    """`--sft`: the samples of the runs that have the status and the score asked for."""
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
    shell.terminal.write_line(f"rlm: {samples} of {count[0]} of {rlm_viz.counted(len(paths), 'run')}")


def read_scores(path: str) -> dict[str, float]:
    """Scores by trajectory id: of an object {id: score}, or of lines with `trajectory_id` (or `id`) and `score`."""
    try:
        text = rlm_tools.read_text(path)
        try:
            whole = rlm_backends.from_json(text)
        except ValueError:
            whole = None  # a value to a line
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


def export_notebook(args: argparse.Namespace, shell: Invocation, paths: Sequence[str]) -> None:
    """`--ipynb`: one run as a notebook."""
    if len(paths) != 1:
        raise rlm.ConfigError(f"a notebook is of one run, not of {len(paths)}", hint="rlm logs lists the runs")
    saved = os.path.abspath(os.path.splitext(paths[0])[0] + ".context")
    [(_, events)] = _read_logs(paths, shell)
    book = rlm_viz.notebook(events, saved if os.path.isfile(saved) else "")
    _write_output(args, shell, [json.dumps(book, indent=1), "\n"])


# --- chat -----------------------------------------------------------------------------------------------------------

_CHAT_HELP = """\
/vars          the variables in the REPL
/cost          what the conversation has used
/save [FILE]   write the conversation as Markdown (default chat.md)
/reset         forget the conversation and the variables
/quit          leave (or Ctrl-D)
A line that ends in \\ goes on in the next; a line that is \"\"\" begins and ends a longer text."""


def declare_chat(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [-c FILE_OR_FOLDER_OR_GLOB] [options]"
    parser.add_argument("-c", "--context", action="append", metavar="PATH", help="file, folder, glob or https://…")
    parser.add_argument("-s", "--system", metavar="TEXT", help="additional instructions for the model")
    parser.add_argument("--resume", metavar="ID", help="continue an earlier conversation")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    declare_options(parser)


class Chat:
    """A conversation in a terminal: one persistent RLM, prompts from stdin, answers to stdout."""

    def __init__(self, args: argparse.Namespace, shell: Invocation, runtime: rlm.RLM, progress: Progress) -> None:
        self.args = args
        self.shell = shell
        self.runtime = runtime
        self.progress = progress
        if any(spec in _STDIN for spec in args.context or []):
            raise rlm.ConfigError("stdin is where a chat's prompts come from", hint="-c FILE")
        self.context = read_context(args, shell, args.context) if args.context else None
        self.said: list[tuple[str, str]] = []
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
        """One prompt, of several lines if it says so; None at the end of the input. Ctrl-C drops what was typed."""
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
        """A line of input, with editing and history where input and output are a terminal."""
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
            if self.shell.lost is not None:
                raise
            result = error.result
            self.shell.failed(error)
        self.said.append((prompt, (result and result.response) or "(no answer)"))
        self.log = (result and result.log) or self.log

    def variables(self, _: str) -> None:
        for name, (kind, size, shown) in self.runtime.variables().items():
            self.shell.terminal.write_line(f"{name:<20} {kind:<12} {size!s:>10}  {one_line(shown, 60)}")

    def cost(self, _: str) -> None:
        self.shell.terminal.write_line(self.progress.line())

    def save(self, path: str) -> None:
        path = path or "chat.md"
        text = "\n\n".join(f"## {prompt}\n\n{answer_text}" for prompt, answer_text in self.said)
        try:
            if not path and os.path.islink(path):
                raise OSError(None, f"it is a link to {os.path.realpath(path)}")
            rlm_viz.write_file(path, [text + "\n"])
        except OSError as error:
            self.shell.terminal.error(f"cannot write {path}: {error.strerror}", "", "/save FILE")
        else:
            self.shell.terminal.write_line(path)

    def reset(self, _: str) -> None:
        self.runtime.close()
        self.said = []
        if self.args.context:
            self.context = read_context(self.args, self.shell, self.args.context)

    def help(self, _: str) -> None:
        self.shell.terminal.write_line(_CHAT_HELP, lines=True)


def chat(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm chat`: hold a conversation over one REPL."""
    try:
        import readline  # noqa: F401  # editing and history for input()
    except ImportError:
        pass  # a Python built without it reads plain lines
    given = {**given_options(args), "persistent": True}
    values = rlm_config.load_config(given, config=args.config).values
    progress = Progress(shell.terminal, values, quiet=args.quiet, verbose=bool(values["verbose"]))
    with prints_to_stderr():
        heard = {"on_event": progress.update, "on_progress": progress.update, "on_confirm": progress.ask}
        opened = rlm.RLM(**{**given, "verbose": False, "config": args.config, **heard})
    with opened as runtime:
        if sys.stdin.isatty():
            shell.terminal.write_line("rlm chat: /help says what else there is; Ctrl-D leaves")
        talk = Chat(args, shell, runtime, progress)
        try:
            talk.run()
        finally:
            if talk.log and not args.quiet:
                name = os.path.basename(talk.log).removesuffix(".jsonl")
                shell.terminal.write_line(f"{talk.log}; to go on: rlm chat --resume {name}{rerun_flags(args)}")
    return EXIT_OK


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
    parser.add_argument("-j", "--jobs", type=int, default=8, metavar="N", help="at once (default 8)")
    parser.add_argument(
        "--prompt", dest="template", metavar="TEMPLATE", help="prompt for each row, with {column} placeholders"
    )
    parser.add_argument("--one-budget", action="store_true", help="apply limits to the whole batch instead of each row")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    declare_options(parser)


def batch(args: argparse.Namespace, shell: Invocation) -> int:
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

        heard = {"on_event": progress.update, "on_progress": progress.update, "on_confirm": progress.ask}
        opened = {**given, "verbose": False, "config": args.config, **heard}
        with prints_to_stderr(), rlm.RLM(**opened) as runtime, progress:
            how = {"max_workers": args.jobs, "on_result": on_result, "one_ledger": args.one_budget}
            try:
                for _ in runtime.batch([items[number] for number in missing], **how):
                    pass
            except KeyboardInterrupt:
                following = "the same command goes on" if args.output else "-o RESULTS.jsonl keeps what is done"
                shell.stop_summary = f"{progress.done} of {progress.total} done", following
                raise
        results.sort()
    if args.output in (None, "-"):
        for number in sorted(results.rows):
            shell.print_json(results.rows[number])
    if not args.quiet:
        shell.terminal.write_line(progress.line())
        if reason := progress.reason():
            shell.terminal.write_line(f"rlm: {one_line(reason, 400)}")
    return EXIT_FAILED if progress.failed else EXIT_OK


class BatchProgress(Progress):
    """The same counts, with how many rows are done."""

    total = done = failed = 0
    first_error: Mapping[str, str] | None = None

    def count(self, row: Mapping[str, Any]) -> None:
        self.done += 1
        if row["status"] != "answered":
            self.failed += 1
            self.first_error = self.first_error or row["error"]

    def update(self, event: Event) -> None:
        """Take an event in. What single rows do now is not told: there are several at once."""
        if event.get("event") != "text" and (event.get("event") != "progress" or event.get("phase") == "loading"):
            super().update(event)

    def line(self, width: int | None = None) -> str:
        failed = f"  {self.failed} failed" if self.failed else ""
        head = f"{self.done}/{self.total} rows{failed}  "
        return head + super().line(None if width is None else width - len(head))

    def reason(self) -> str:
        """Why rows failed, by the first of them; "" where none did."""
        if self.first_error is None:
            return ""
        hint = self.first_error["hint"]
        return "first failure: " + without_keys(self.first_error["message"]) + (f" (next: {hint})" if hint else "")


def read_items(
    path: str, template: str | None, encoding: str | None = None, warn: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """The items of a batch: {"prompt", "context"} each. ConfigError names the line that is none."""
    try:
        with rlm_tools.open_given(os.path.join(os.getcwd(), os.path.expanduser(path))) as file:
            text, note = rlm_tools.read_blob(file.read(), encoding)
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


def _table_rows(path: str, text: str) -> list[tuple[int, Any]]:
    """The rows of a table with the lines that they end on; a cell that a short row lacks is None."""
    import csv
    import io

    csv.field_size_limit(1 << 30)  # a cell may be a whole document
    rows = csv.reader(io.StringIO(text), delimiter=_delimiter(path, text))
    records: list[tuple[int, Any]] = []
    try:
        header = [name.strip() for name in next(rows, [])]
        for cells in rows:
            if len(cells) > len(header):
                message = f"{path}:{rows.line_num}: {len(cells)} cells, but {len(header)} columns"
                raise rlm.ConfigError(message, hint='put quotes around a cell that holds the delimiter: "a, b"')
            if cells:
                records.append((rows.line_num, dict(zip(header, cells + [None] * (len(header) - len(cells))))))
    except csv.Error as error:
        raise rlm.ConfigError(f"{path}:{rows.line_num}: {error}", hint="a CSV file with a line of names") from None
    if twice := {name for name in header if header.count(name) > 1}:
        raise rlm.ConfigError(f"{path}: two columns are called {min(twice)!r}", hint="rename one")
    return records


def _delimiter(path: str, text: str) -> str:
    """What parts the cells: of the usual ones that which the line of names has most of."""
    names = re.sub(r'"[^"]*"', "", text[:100_000].lstrip("\n").partition("\n")[0])
    usual = ",;\t|" if path.lower().endswith(".csv") else "\t,;|"
    return max(usual, key=names.count)


def _json_line(path: str, number: int, line: str) -> Any:
    try:
        return rlm_backends.from_json(line)
    except ValueError as error:
        hint = 'a JSON string in quotes, or an object, on each line: "…" or {"prompt": "…"}'
        raise rlm.ConfigError(f"{path}:{number}: not JSON: {error}", hint=hint) from None


def _item(path: str, number: int, record: Any, template: str | None) -> dict[str, Any]:
    fields = {"prompt": record} if isinstance(record, str) else record
    if not isinstance(fields, dict):
        raise rlm.ConfigError(f"{path}:{number}: neither a text nor an object", hint='{"prompt": "…", "context": "…"}')
    if template is None and not is_table(path):  # a template, and a table, have columns of their own
        for name in fields:
            if name not in _ITEM_KEYS:
                hint = f"{rlm_config.suggestion(name, _ITEM_KEYS)} (or --prompt TEMPLATE with {{{name}}})"
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


_ITEM_KEYS = ("prompt", "context")


def render_template(template: str, fields: Mapping[str, Any], place: str) -> str:
    """The template with {column} replaced; other braces stay. ConfigError for a column or a value that is not there."""

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


def item_keys(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes a row the same one in a later call: its content, and which of its equals it is."""
    import hashlib

    seen: dict[str, int] = {}
    keys = []
    for item in items:
        digest = hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        keys.append(f"{digest}-{seen[digest]}")
    return keys


def result_row(number: int, key: str, item: Mapping[str, Any], result: Any) -> dict[str, Any]:
    """A line of the results; a failure has its error, and what was done until then."""
    head = {"index": number, "key": key, "prompt": item["prompt"]}
    if not isinstance(result, rlm.RLMError):
        return head | result_dict("answered", result, result.model, None)
    message, _, hint = describe_error(result)
    fault = {"type": type(result).__name__, "message": message, "hint": hint}
    status = "partial" if isinstance(result, rlm.LimitExceeded) else "error"
    return head | result_dict(status, result.result, None, fault)


class Results:
    """The rows of a batch by their place and, with a path, the file that a later call goes on from.

    Rows are appended as they come. ConfigError, and not a byte changed, if the file is not a batch's results.
    """

    def __init__(self, path: str | None, source: str, keys: Sequence[str]) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.others: list[bytes] = []  # lines that are not of this call's prompts
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

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["index"]] = row
        if self._file is not None:
            self._file.write(_row_line(row))
            self._file.flush()

    def sort(self) -> None:
        """Put the file into the order of the prompts, other prompts' results last; a failure leaves it as it is."""
        if self._file is None or self._is_stream:
            return
        path = os.path.realpath(self._file.name)
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "wb") as file:
            file.writelines(_row_line(self.rows[number]) for number in sorted(self.rows))
            file.writelines(line + b"\n" for line in self.others)
        os.chmod(temporary, os.fstat(self._file.fileno()).st_mode & 0o7777)
        os.replace(temporary, path)


def _row_line(row: Mapping[str, Any]) -> bytes:
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
        pass  # neither Windows nor every file system has such locks
    return file


def _result_lines(file: BinaryIO) -> list[bytes]:
    """The lines of a file of results, made ready to append to: what a killed process left torn is taken off."""
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


def _result(line: bytes) -> dict[str, Any] | None:
    """The row of results that a line is, None if it is none."""
    try:
        row = rlm_backends.from_json(line, depth=rlm.EVENT_DEPTH, constant=float)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("key"), str) and "status" in row else None


# --- MCP ------------------------------------------------------------------------------------------------------------

_SERVE_HELP = """\
usage: rlm mcp-serve [--env local|docker] [--workspace DIR] [--max-wait SECONDS]

Serve the sandbox to one MCP client on stdin and stdout. `rlm mcp-install` writes a client's configuration."""


def mcp_serve(arguments: Sequence[str]) -> int:
    """`rlm mcp-serve`: its few arguments are read by hand, since a client is waiting."""
    settings: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("-h", "--help"):
            shell = Invocation(arguments)
            try:
                shell.write(f"{_SERVE_HELP}\n")
            except rlm.RLMError as error:
                return shell.failed(error)
            return shell.ended(EXIT_OK)
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
    parser.add_argument("words", nargs="*", metavar="CLIENT", help=", ".join(rlm_mcp.CLIENTS))
    parser.add_argument("--client", action="append", default=[], metavar="CLIENT", help="the same, as an option")
    parser.add_argument("--scope", metavar="SCOPE", help="user, project or local, if the client supports it")
    actions = parser.add_mutually_exclusive_group()
    for action, text in _INSTALL_ACTIONS.items():
        actions.add_argument(f"--{action}", dest="action", action="store_const", const=action, help=text)


_INSTALL_ACTIONS = {
    "print": "show the entry (default)",
    "write": "put it into the client's file",
    "dry-run": "show what --write would change",
    "remove": "take it out again",
    "check": "start the server as the client would",
}


def mcp_install(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm mcp-install`: this server's entry in the configuration of MCP clients."""
    clients = [*args.words, *args.client]
    with contextlib.redirect_stdout(Harmless(shell)):  # a client's file may be a project's
        return int(rlm_mcp.install(clients, action=args.action or "print", scope=args.scope))


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


def scripted_message(messages: Sequence[Mapping[str, Any]], *, tools: bool) -> dict[str, Any]:
    """What the scripted model says: the next cell of its script or, to a sub-call, a count of the notes it was sent."""
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


def scripted_server() -> Any:
    """A server on loopback that speaks the OpenAI chat wire with the scripted model behind it."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Model(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", **scripted_message(asked["messages"], tools=bool(asked.get("tools")))}
            finish = "tool_calls" if message.get("tool_calls") else "stop"
            size, answered = len(json.dumps(asked["messages"])) // 4, len(json.dumps(message)) // 4
            usage = {"prompt_tokens": size, "completion_tokens": answered, "total_tokens": size + answered}
            head = {"id": "demo", "model": _DEMO_MODEL, "created": 0}
            if asked.get("stream"):
                chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": message, "finish_reason": None}]}]
                chunks += [
                    {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
                    {"choices": [], "usage": usage},
                ]
                lines = [f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', **c})}\n\n" for c in chunks]
                self.reply("text/event-stream", "".join(lines) + "data: [DONE]\n\n")
            else:
                choices = [{"index": 0, "message": message, "finish_reason": finish}]
                whole = {**head, "object": "chat.completion", "choices": choices, "usage": usage}
                self.reply("application/json", json.dumps(whole))

        def reply(self, kind: str, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass  # the progress line says enough

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def declare_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-dir", metavar="DIR", help="folder for the journal (default ./logs)")
    parser.add_argument("-e", "--env", dest="environment", choices=("local", "docker"), help="where code runs")
    parser.add_argument("--no-open", action="store_true", help="do not open the page")
    declare_output(parser)


def demo(args: argparse.Namespace, shell: Invocation) -> int:
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
    del defaults["log_dir"]  # a folder that is named is taken even where it is a link
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
        result = execute_and_report(args, shell, lambda runtime: runtime.completion(_DEMO_QUESTION, log), options)
    finally:
        server.shutdown()
    if result.response != truth:
        raise rlm.RLMError(f"the answer is wrong; the log's generator says: {truth}", result=result)
    shell.terminal.write_line("checked: this is what the log's generator says")
    log_path = str(result.log)
    page = rlm_viz.write([log_path], os.path.splitext(log_path)[0] + ".html")
    shell.terminal.write_line(f"log: {result.log}")
    shell.terminal.write_line(f"page: {page}")
    if shell.terminal.live and not args.no_open and (os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
        import webbrowser

        webbrowser.open(f"file://{os.path.abspath(page)}")
    return EXIT_OK


# --- configuration and trust ----------------------------------------------------------------------------------------


def declare_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="{option: {value, origin}}")
    declare_options(parser, "options, as a run would be given them")


def config(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm config`: every option, its value and where that comes from."""
    settings = rlm_config.load_config(given_options(args), config=args.config)
    rows = {
        name: {"value": shown_value(name, value), "origin": _origin(name, settings.origins[name])}
        for name, value in settings.values.items()
    }
    if shell.form == "json":
        shell.print_json(rows)
        return EXIT_OK
    for name, row in rows.items():
        value = (
            "" if row["value"] is None else row["value"] if isinstance(row["value"], str) else json.dumps(row["value"])
        )
        shell.show(f"{name:<24} {value:<32} {row['origin']}")
    for path in settings.files:
        shell.terminal.write_line(f"read: {path}")
    return EXIT_OK


def _origin(name: str, origin: str) -> str:
    return flags_of(name)[-1] if origin == "argument" else origin


def shown_value(name: str, value: Any) -> Any:
    """An option's value as it may be shown: a key as its last four characters, a URL without its password."""
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


def init(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm init`: a commented configuration file."""
    path = os.path.join(rlm_config.user_config_dir(), "config.toml") if args.user else "rlm.toml"
    if os.path.lexists(path) and not args.force:
        raise rlm.ConfigError(f"{path} is already there", hint="rlm init --force replaces it")
    given = given_options(args)
    rlm_config.load_config(given, config=False)  # refuses what would not load back
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        rlm_viz.write_file(path, [commented_config(given)], 0o600 if "api_key" in given or args.user else 0o644)
    except OSError as error:
        raise rlm.ConfigError(f"cannot write {path}: {error.strerror}") from error
    if given and not args.user and rlm_config.untrusted_keys(given):
        rlm_config.trust(path)  # whoever ran this command has just said what is in it
    shell.show(path)
    return EXIT_OK


def commented_config(given: Mapping[str, Any]) -> str:
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


def toml(value: Any) -> str:
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
    parser.add_argument("--json", action="store_true", help="with --show")


def trust(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm trust`: let this project's rlm.toml set what could send a key elsewhere or run code."""
    path = args.words[0] if args.words else rlm_config.project_file(os.getcwd())
    if path is None or not os.path.isfile(path):
        raise rlm.ConfigError(f"no file {path!r}" if path else "no rlm.toml here or above", hint="rlm init writes one")
    where = os.path.abspath(path)
    if args.revoke:
        rlm_config.trust(path, revoke=True)
        shell.show(f"{where}: no longer trusted")
        return EXIT_OK
    table = {key: value for key, (value, _) in rlm_config.read_toml(path, False)[0].items()}
    rows = {key: shown_value(key, table[key]) for key in rlm_config.untrusted_keys(table)}
    if not args.show:
        rlm_config.trust(path)
        shell.show(
            f"{where}: trusted as it is now; " + (f"it sets {', '.join(rows)}" if rows else "nothing in it needs it")
        )
        return EXIT_OK
    trusted = rlm_config.is_trusted_file(path)
    if shell.form == "json":
        shell.print_json({"path": where, "trusted": trusted, "needs_trust": rows})
        return EXIT_OK
    shell.show(f"{where}: {'trusted' if trusted else 'not trusted'}")
    for key, value in rows.items():
        shell.show(f"  {key} = {toml(value)}")
    return EXIT_OK


# --- doctor and providers -------------------------------------------------------------------------------------------


def declare_providers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="list only providers whose id or name contains this")
    parser.add_argument("--json", action="store_true", help="[{id, name, wire, base_url, key_env, key_present}]")


def providers(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm providers [WORD]`: who can be asked, and whose key is there."""
    environ = rlm_config.load_config({}, config=False).environ
    rows = rlm_backends.providers(" ".join(args.words) or None, environ)
    if shell.form == "json":
        shell.print_json(rows)
        return EXIT_OK
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
    return EXIT_OK


def declare_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="remove NAME", help="delete a model: hf:OWNER/REPO:QUANT")
    parser.add_argument("--json", action="store_true", help="[{name, bytes, path, complete}]")


def models(args: argparse.Namespace, shell: Invocation) -> int:
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
        return EXIT_OK
    rows = rlm_backends.downloaded_models()
    if shell.form == "json":
        shell.print_json(rows)
        return EXIT_OK
    if not rows:
        shell.terminal.write_line("no model is downloaded yet; -m hf:OWNER/REPO downloads one")
    for row in rows:
        state = "✓" if row["complete"] else "…"
        shell.show(f"{state} {row['name']}  {row['bytes'] / 1e9:.1f} GB  {row['path']}")
    return EXIT_OK


class Check(NamedTuple):
    """A line of `rlm doctor`: state is ok, warn or fail; only fail makes the exit code 1."""

    name: str
    state: str
    detail: str
    next: str = ""


def declare_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="{ok, checks: [{name, state, detail, next}]}")
    parser.add_argument("--online", action="store_true", help="send one small request to each provider with a key")
    declare_options(parser, "options, as a run would be given them")


def doctor(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm doctor`: what works here, and the next step for what does not."""
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
        colour = wants_colour(sys.stdout, args.color)
        for check in checks:
            sign, style = marks[check.state]
            shell.show(f" {check.name:<14} {check.detail}", lead=sign, style=style, colour=colour)
            if check.next:
                shell.show(f"  {'':<14} next: {check.next}")
    return EXIT_OK if ok else EXIT_FAILED


def _check_configuration(args: argparse.Namespace) -> tuple[rlm_config.Configuration, Check]:
    try:
        settings = rlm_config.load_config(given_options(args), config=args.config)
    except rlm.ConfigError as error:
        return _unconfigured(), Check("configuration", "fail", error.message, error.hint)
    return settings, Check("configuration", "ok", ", ".join(settings.files) or "no files; defaults and environment")


def _unconfigured() -> rlm_config.Configuration:
    """What is in force where the configuration cannot be read: what else is wrong here is told all the same."""
    try:
        return rlm_config.load_config({}, config=False)
    except rlm.ConfigError:  # a variable is what is wrong
        defaults = {name: row.default for name, row in rlm_config.OPTIONS.items()}
        return rlm_config.Configuration(defaults, dict.fromkeys(rlm_config.OPTIONS, "default"), [], dict(os.environ))


def unknown_variables() -> dict[str, str]:
    """The RLM_* variables that no option has, each with the one that was meant, or ""."""
    import difflib

    known = {f"RLM_{name.upper()}" for name in rlm_config.OPTIONS} | {"RLM_DEBUG", "RLM_MCP_CLI"}
    unknown = sorted(name for name in os.environ if name.startswith("RLM_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), "") for name in unknown}


def check_variables() -> list[Check]:
    """A line for each RLM_* variable that nothing reads."""
    return [
        Check("environment", "warn", f"{name} is no option", f"did you mean {meant!r}?" if meant else "rlm config")
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
    """The provider keys that are present, masked. A server of the user's own may need none."""
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
    """Whether the model that is configured can be asked; of a server of the user's own, whether it answers."""
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
        status, models = _models_at(base_url)
    except OSError as error:  # what requests raises is one
        return Check("model", "fail", f"{what}: no answer ({type(error).__name__})", "start it, or --base-url URL")
    if status in (401, 403):
        return Check("model", "ok", f"{what} answers, and asks for a key")
    if models and model not in models:
        return Check("model", "warn", f"{what}: it has no such model", rlm_config.suggestion(model, models[:20]))
    return Check("model", "ok", f"{what} answers")


def _models_at(base_url: str) -> tuple[int, list[str]]:
    """(HTTP status, names) of a server's list of models, which costs nothing. No key is sent."""
    import requests

    with requests.Session() as session:
        session.trust_env = False  # no .netrc
        session.proxies = {} if rlm_backends._is_loopback(base_url) else requests.utils.get_environ_proxies(base_url)
        response = session.get(f"{base_url.rstrip('/')}/models", timeout=2, allow_redirects=False, stream=True)
        try:
            body = rlm_backends._gathered(response.iter_content(65_536), rlm_backends.INSPECT_LIMIT)
            return response.status_code, [str(entry["id"]) for entry in rlm_backends.from_json(body)["data"]]
        except (rlm_backends.BackendError, ValueError, LookupError, TypeError):
            return response.status_code, []


def check_tools(settings: rlm_config.Configuration) -> list[Check]:
    """A line for the tools of the configuration and of installed plug-ins; none where there are none."""
    sources: list[Callable[[], list[Any]]] = [rlm_tools.entry_point_tools]
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
    """What can be a model without a key: coding agents on the PATH, and model files that were downloaded."""
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
    found: list[str] = []
    trouble: list[tuple[str, str]] = []

    def ask() -> None:
        try:
            found.append(str(rlm_sandbox.docker_engine().version()["Version"]))
        except Exception as error:  # whatever the SDK raises, it is what there is to report
            trouble.append((one_line(error, 200), getattr(error, "hint", "")))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2)
    if found:
        return Check("docker", "ok", f"daemon {found[0]}")
    state = "fail" if settings.values["environment"] == "docker" else "warn"
    what, following = trouble[0] if trouble else ("no answer in 2 s", "")
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


def completion(args: argparse.Namespace, shell: Invocation) -> int:
    """`rlm completion SHELL`: a script to source."""
    if len(args.words) != 1 or args.words[0] not in _SCRIPTS:
        raise rlm.ConfigError("which shell?", hint="rlm completion bash|zsh|fish")
    shell.print(_SCRIPTS[args.words[0]]().rstrip())
    return EXIT_OK


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
    run: Callable[[argparse.Namespace, Invocation], int]


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
    "mcp-serve": Command("serve the sandbox to an MCP client", lambda _: None, lambda _args, _shell: EXIT_USAGE),
    "mcp-install": Command("add this server to a client's settings", declare_mcp_install, mcp_install),
    "completion": Command("print a shell completion script", declare_completion, completion),
}
RUNS = {"run", "resume", "replay", "demo"}
