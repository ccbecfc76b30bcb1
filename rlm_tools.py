# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Tools: functions that a model, and code in the REPL, can call.

`Tool` and `@tool` describe a function to a model; `call_tool` checks the arguments against the JSON Schema and runs it,
plain or `async`; `load_tools` imports tools from files and modules. Below them: the schema checker (which also checks
typed answers), the built-in file tools, context files, readers of documents and web pages, and Snipara's tools. A leaf:
imports nothing of ours, needs only the standard library.

Not covered: of JSON Schema `if`/`then`/`else`, `dependent*`, `unevaluated*`, `format` and references to other documents
(these are ignored); a hard link inside an allowed folder to a file outside it is read like any other file.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import enum
import functools
import itertools
import json
import keyword
import math
import os
import re
import stat
import sys
import threading
import time
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Tool", "ToolError", "call_tool", "construct", "file_tools", "load_tools", "schema_of", "tool", "validate"]

Schema = dict[str, Any]
AnyPath = str | os.PathLike[str]
_T = typing.TypeVar("_T")


class ToolError(RuntimeError):
    """A tool cannot be made, loaded or called like this; the message is for the model or the user."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint  # what to do next; "" if there is nothing


# --- a tool -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tool:
    """A function that a model can call by name; also callable from Python, with the same checks."""

    name: str  # a Python name that is no builtin
    description: str  # what it does, for the model
    parameters: Schema  # the JSON Schema of an object whose properties are its arguments
    handler: Callable[..., object] = field(repr=False)  # gets the arguments by name; may be async
    # Makes the text that the model reads when it calls the tool itself; None: the result as text.
    render: Callable[..., str] | None = field(default=None, repr=False, kw_only=True)
    source: str = field(default="", kw_only=True)  # where it comes from, for messages: a file, module, distribution

    def __post_init__(self) -> None:
        problem = _name_problem(self.name) or _parameters_problem(self.parameters)
        if not isinstance(self.description, str):
            problem = "its description must be a string"
        elif not callable(self.handler):
            problem = f"its handler must be callable, not {type(self.handler).__name__}"
        if problem:
            raise ToolError(f"tool {self.name!r}: {problem}")
        object.__setattr__(self, "parameters", {"type": "object", "properties": {}, **self.parameters})
        object.__setattr__(self, "source", self.source or getattr(self.handler, "__module__", "") or "this program")

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call it from Python: the arguments are checked, and the result is plain data, as for a model."""
        return call_tool(self, self.bind(*args, **kwargs))

    def bind(self, *args: object, **kwargs: object) -> dict[str, object]:
        """The arguments of a Python call as one object, the form that models send."""
        names = list(self.parameters["properties"])
        if len(args) > len(names):
            raise ToolError(f"{signature(self)} takes {len(names)} arguments, {len(args)} were given")
        bound = dict(zip(names, args))
        if twice := [name for name in bound if name in kwargs]:
            raise ToolError(f"{signature(self)} got {twice[0]!r} twice")
        return {**bound, **kwargs}


def _name_problem(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) or keyword.iskeyword(name):
        better = re.sub(r"\W+", "_", str(name), flags=re.ASCII).strip("_")
        hint = f", for example {better!r}" if better.isidentifier() and not keyword.iskeyword(better) else ""
        return f"its name must be a Python name of at most 64 letters, since code calls it too{hint}"
    if hasattr(builtins, name):
        return "its name is a Python builtin, which code in the REPL would lose"
    return ""


def _parameters_problem(parameters: object) -> str:
    if not isinstance(parameters, dict):
        return f"its parameters must be a JSON Schema (a dict), not {type(parameters).__name__}"
    if parameters.get("type", "object") != "object":
        return f"its parameters must be a schema of type 'object', not {parameters['type']!r}"
    if not isinstance(parameters.get("properties", {}), dict):
        return "'properties' of its parameters must be a dict of schemas"
    for name, schema in parameters.get("properties", {}).items():
        kinds = schema.get("type", []) if isinstance(schema, dict) else []
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind not in _TYPES:
                return f"the type of {name!r} must be one of {', '.join(_TYPES)}, not {kind!r}"
        if not isinstance(schema, (dict, bool)):
            return f"the schema of {name!r} must be a dict, not {schema!r}"
    required = parameters.get("required", [])
    if not isinstance(required, (list, tuple)):
        return f"'required' of its parameters must be a list of names, not {required!r}"
    if unknown := [name for name in required if name not in parameters.get("properties", {})]:
        return f"required parameter {unknown[0]!r} is not among its properties"
    problem = _schema_problem(parameters)
    return f"its parameters are not JSON Schema: {problem}" if problem else ""


def signature(tool: Tool) -> str:
    """`get_weather(city: string, days: integer = 3)`: how a tool is called, in one line."""
    required = tool.parameters.get("required", [])
    parts = []
    for name, schema in tool.parameters["properties"].items():
        text = f"{name}: {_kind_word(schema)}"
        if name not in required:
            default = schema.get("default") if isinstance(schema, dict) else None
            text += f" = {json.dumps(default, ensure_ascii=False, default=str)}"
        parts.append(text)
    return f"{tool.name}({', '.join(parts)})"


def from_signature(
    line: str, description: str, handler: Callable[..., object], render: Callable[..., str], source: str
) -> Tool:
    """A tool from a line as `signature` writes it. A parameter without `=` is required; `= null` means no default."""
    name, _, rest = line.partition("(")
    properties: dict[str, Schema] = {}
    required = []
    for key, many, kind, default in re.findall(r"(\w+): (array of )?([^=,]+?)(?: = ([^,]+))?(?:, |\)$)", rest):
        words = re.findall(r'"(\w+)"', kind)
        schema: Schema = {"type": "string", "enum": words} if words else {"type": kind}
        properties[key] = {"type": "array", "items": schema} if many else schema
        if not default:
            required.append(key)
        elif default != "null":
            properties[key]["default"] = json.loads(default)
    parameters = {"type": "object", "properties": properties, "required": required}
    return Tool(name, description, parameters, handler, render=render, source=source)


# --- @tool ----------------------------------------------------------------------------------------------------------


@typing.overload
def tool(function: Callable[..., object], /) -> Tool: ...
@typing.overload
def tool(*, name: str = "", description: str = "") -> Callable[[Callable[..., object]], Tool]: ...
def tool(
    function: Callable[..., object] | None = None, /, *, name: str = "", description: str = ""
) -> Tool | Callable[..., Tool]:
    """Make a Tool from a function's name, docstring (with an `Args:` section) and annotations."""
    if function is None:
        return lambda decorated: _tool_of(decorated, name, description)
    return _tool_of(function, name, description)


def _tool_of(function: Callable[..., object], name: str, description: str) -> Tool:
    import inspect

    name = name or getattr(function, "__name__", "")
    about, notes = _docstring_parts(inspect.getdoc(function) or "")
    handler = _Typed(function)
    properties: dict[str, Schema] = {}
    required: list[str] = []
    parameters: Schema = {"type": "object", "properties": properties, "required": required}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            parameters["additionalProperties"] = True
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise ToolError(f"tool {name!r}: parameter {str(parameter)!r} cannot be given by name, as models do")
        schema = schema_of(handler.hints.get(parameter.name, object))
        about_it = {"description": notes[parameter.name]} if parameter.name in notes else {}
        properties[parameter.name] = {**schema, **about_it}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            properties[parameter.name] |= _default(parameter.default)
    return Tool(name, description or about or name, parameters, handler, source=function.__module__)


class _Typed:
    """Calls a function with JSON data converted to its annotated types."""

    def __init__(self, function: Callable[..., object]) -> None:
        import inspect

        self.function = function
        self.hints = _hints(function if inspect.isroutine(function) else type(function).__call__)

    def __call__(self, **arguments: object) -> object:
        return self.function(
            **{name: construct(self.hints.get(name, object), item) for name, item in arguments.items()}
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle a reference to the decorated name, which now means the tool and not the function."""
        place = getattr(self.function, "__module__", ""), getattr(self.function, "__qualname__", "")
        named = getattr(sys.modules.get(place[0]), place[1], None)
        if isinstance(named, Tool) and named.handler is self and place[0] != "__main__":
            return _handler_of, place
        return _Typed, (self.function,)


def _handler_of(module: str, name: str) -> object:
    import importlib

    return getattr(importlib.import_module(module), name).handler


def _docstring_parts(text: str) -> tuple[str, dict[str, str]]:
    """A docstring's description, and its text on each parameter (Google's `Args:` or Sphinx's `:param x:`)."""
    head, _, tail = text.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", tail, maxsplit=1)[0]
    notes = dict(re.findall(r":param (?:[^:\n]+ )?(\w+): *([^\n]+)", head))
    entry = r"^ {2,8}\*{0,2}(\w+)(?: *\([^)\n]*\))?: *(.+(?:\n {5,}.+)*)"
    for name, about in re.findall(entry, section, re.MULTILINE):
        notes[name] = " ".join(about.split())
    head = re.split(r"\n *(?::\w|(?:Returns|Raises|Yields|Examples?):\n)", head)[0]
    return head.strip(), notes


# --- calling one --------------------------------------------------------------------------------------------------


def call_tool(tool: Tool, arguments: Mapping[str, object] | str) -> Any:
    """The handler's result as plain Python data. `arguments` is a mapping, or JSON text as a model wrote it.

    ToolError for arguments that do not fit the schema; the handler's own errors propagate.
    """
    checked, _ = check_arguments(tool, arguments)
    return plain_data(_run(tool.handler, checked))


def call_for_model(tool: Tool, arguments: Mapping[str, object] | str) -> str:
    """The result as text for the model, with a note on each argument that was changed."""
    checked, notes = check_arguments(tool, arguments)
    if tool.render is not None:
        text = tool.render(**checked)
    else:
        text = render(plain_data(_run(tool.handler, checked)))
    return "\n".join([text, *(f"[{note}]" for note in notes)])


def check_arguments(tool: Tool, arguments: Mapping[str, object] | str) -> tuple[dict[str, object], list[str]]:
    """Arguments that fit the tool's schema, and notes on what was changed; ToolError if they cannot be made to fit."""
    values = _read_arguments(tool, arguments)
    known, notes = _known_arguments(tool, values)
    value, problems = validate(tool.parameters, known)
    if problems:
        raise ToolError(f"bad arguments: {join_limited(problems)}; expected {signature(tool)}")
    return value, notes


def _read_arguments(tool: Tool, arguments: Mapping[str, object] | str) -> dict[str, object]:
    """The arguments as a dict: some models send JSON in a string, or a bare string for the only parameter."""
    if not isinstance(arguments, str):
        return dict(arguments)
    text = arguments.strip()
    if not text or text == "null":
        return {}
    try:
        value = from_json(text, strict=False)
    except ValueError as error:
        if text[0] in '{["' or (only := _only_string(tool)) is None:
            raise ToolError(f"the arguments are not a JSON object ({error}); expected {signature(tool)}") from None
        return {only: arguments}
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        return _read_arguments(tool, value)
    if isinstance(value, dict):
        return value
    if (only := _only_string(tool)) is None:
        raise ToolError(f"the arguments must be a JSON object, not {_type_word(value)}; expected {signature(tool)}")
    return {only: value if isinstance(value, str) else arguments}


def _only_string(tool: Tool) -> str | None:
    """The parameter that a bare string must be meant for: the only required one, or the only one."""
    properties = tool.parameters["properties"]
    names = list(tool.parameters.get("required") or properties)
    only = properties[names[0]] if len(names) == 1 else None
    return names[0] if isinstance(only, dict) and only.get("type") == "string" else None


def _known_arguments(tool: Tool, values: dict[str, object]) -> tuple[dict[str, object], list[str]]:
    """The known arguments: a misspelt name is corrected, other unknown names are dropped, each with a note."""
    import difflib

    properties = tool.parameters["properties"]
    if tool.parameters.get("additionalProperties"):
        return values, []
    known = {name: value for name, value in values.items() if name in properties}
    notes = []
    unknown = [name for name in values if name not in properties]
    for name in unknown[:_UNKNOWN]:
        free = [other for other in properties if other not in known]
        near = difflib.get_close_matches(str(name)[:100], free, n=1, cutoff=0.6)
        if near:
            known[near[0]] = values[name]
            notes.append(f"took argument {str(name)[:100]!r} as {near[0]!r}")
        else:
            notes.append(f"ignored unknown argument {str(name)[:100]!r} of {signature(tool)}")
    if len(unknown) > _UNKNOWN:
        notes.append(f"ignored {len(unknown) - _UNKNOWN:,} more unknown arguments")
    return known, notes


_UNKNOWN = 20  # unknown arguments for which a near name is searched


def _run(handler: Callable[..., object], arguments: dict[str, object]) -> object:
    """The result of a plain or async handler; ToolError if it calls sys.exit."""
    try:
        result = handler(**arguments)
        return _awaited(result) if isinstance(result, Awaitable) else result
    except SystemExit as leaving:
        raise ToolError(f"the tool called sys.exit({leaving.code!r})") from None


def _awaited(result: Awaitable[_T]) -> _T:
    """The result of a coroutine, run on a separate thread if this one has a running event loop."""
    import asyncio

    async def waited() -> _T:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(waited())
    return _on_thread(lambda: asyncio.run(waited()))


def _on_thread(work: Callable[[], _T], seconds: float | None = None) -> _T:
    """Call `work` on a daemon thread and return or raise its result; TimeoutError after `seconds`."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised in the caller's thread, SystemExit included
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not results:
        raise TimeoutError(f"took longer than {seconds:g} s")
    return results[0]


@contextlib.contextmanager
def _if_slow(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` from another thread if the block takes longer."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def plain_data(value: object) -> object:
    """Convert dataclasses, models, enums, paths and times, at any depth, to plain data that a sandbox accepts."""
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return value
    if isinstance(value, Mapping):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        return kind(plain_data(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain_data(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return plain_data(dump(mode="json"))
    if callable(data := getattr(value, "tolist", None)):  # a number or array of numpy's
        return plain_data(data())
    if callable(stamp := getattr(value, "isoformat", None)):
        return stamp()
    return list(map(plain_data, value)) if isinstance(value, Iterator) else str(value)


def render(value: object) -> str:
    """A tool's result as the text that a model reads."""
    if isinstance(value, str):
        return value
    if value is None:
        return "done (no result)"
    return to_json(value, ensure_ascii=False)


# - Python data as JSON, for answers, events, journals, results and the model


def to_json(value: object, **how: Any) -> str:
    """JSON of any Python data, as `json_safe` makes it; `how` is json.dumps's."""
    try:
        return json.dumps(json_safe(value), allow_nan=False, **how)
    except RecursionError:
        return json.dumps(f"<a {type(value).__name__}, nested too deep>")


def json_safe(value: object) -> object:
    """The value with everything that JSON cannot express replaced by its nearest equivalent.

    NaN and infinities become null, and sets become lists, sorted by repr. Keys other than strings become what json
    makes of None, booleans and finite numbers, otherwise their repr: `{("a", "b"): 3}` becomes `{"('a', 'b')": 3}`. A
    key whose text is already in use gets its type appended. Any other object becomes its str.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() < 14_000 else hex(value)  # Python refuses to print more digits
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return _json_object(value)
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [json_safe(item) for item in sorted(value, key=repr)]
    try:
        return str(value)
    except Exception as error:  # an object's own __str__
        return f"<{type(value).__name__} whose str raises {type(error).__name__}>"


def _json_object(value: Mapping[object, object]) -> dict[str, object]:
    taken = {key for key in value if isinstance(key, str)}
    result: dict[str, object] = {}
    for key, item in value.items():
        name = key if isinstance(key, str) else _key_text(key)
        while name is not key and name in taken:
            name = f"{name} ({type(key).__name__})"
        taken.add(name)
        result[name] = json_safe(item)
    return result


def _key_text(key: object) -> str:
    if key is None or isinstance(key, bool):
        return json.dumps(key)
    return str(json_safe(key)) if isinstance(key, int) else repr(key)


# --- tools from files, modules and installed packages ---------------------------------------------------------------

IMPORT_SECONDS = 20.0


def load_tools(spec: Tool | AnyPath | Callable[..., object]) -> list[Tool]:
    """The tools of a file (`tools.py`), a module (`package.module`), a name in it (`module:name`), or a function."""
    if isinstance(spec, Tool) or not isinstance(spec, (str, os.PathLike)):
        if not callable(spec):
            raise ToolError(f"not a tool: {_shown(spec)}", hint="give Tool objects, functions, files or modules")
        return [spec if isinstance(spec, Tool) else tool(spec)]
    spec = os.fspath(spec)
    if spec.endswith(".py") or "/" in spec or os.sep in spec:
        path = os.path.abspath(os.path.expanduser(spec))
        if not os.path.isfile(path):
            raise ToolError(f"no such tools file: {spec!r}", hint="give a file.py or a package.module")
        try:
            open_given(path).close()
        except OSError as error:
            raise ToolError(f"cannot read {spec!r}: {error.strerror}") from None
        return _collected(_imported(spec, lambda: _module_of_file(path)), spec)
    module, _, name = spec.partition(":")
    import importlib

    found = _imported(spec, lambda: importlib.import_module(module))
    if name and not hasattr(found, name):
        raise ToolError(f"tools plug-in {spec!r}: the module has no {name!r}")
    return _collected(getattr(found, name) if name else found, spec)


def entry_point_tools() -> list[Tool]:
    """The tools of installed packages that name some in the entry-point group `rlm.tools`."""
    tools: list[Tool] = []
    for point in _entry_points("rlm.tools"):
        source = f"{point.dist.name if point.dist else point.value} (entry point {point.name!r})"
        tools += _collected(_imported(source, point.load), source)
    return tools


def _entry_points(group: str) -> list[Any]:
    """The entry points in a group. Files are searched for the name first because importlib.metadata takes 15 ms."""
    if not _names_group(sys.path, group.encode()):
        return []
    from importlib.metadata import entry_points

    return sorted(entry_points(group=group), key=lambda point: point.name)


def _names_group(places: Iterable[str], group: bytes) -> bool:
    """Whether a package there may have such plug-ins."""
    for place in places:
        try:
            names = os.listdir(place or ".")
        except NotADirectoryError:
            return True  # a zip file
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                with contextlib.suppress(OSError), open(os.path.join(place, name, "entry_points.txt"), "rb") as file:
                    if group in file.read():
                        return True
    return False


def _module_of_file(path: str) -> object:
    """Import a file under a unique name; during the import its folder is last on sys.path."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("_rlm_tools" + re.sub(r"\W", "_", path), path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.append(os.path.dirname(path))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    finally:
        sys.path.remove(os.path.dirname(path))
    return module


def _imported(source: str, load: Callable[[], _T]) -> _T:
    """The result of a plug-in's import; any error or timeout becomes a ToolError that names the plug-in."""
    try:
        return _on_thread(load, IMPORT_SECONDS)
    except KeyboardInterrupt:
        raise
    except TimeoutError:
        raise ToolError(f"tools plug-in {source!r}: its import took longer than {IMPORT_SECONDS:g} s") from None
    except BaseException as error:  # a plug-in's module may raise anything, SystemExit too
        problem = f"tools plug-in {source!r} cannot be imported: {type(error).__name__}: {error}"
        raise ToolError(
            problem, hint=_place_of(error) or "give a file or an installed module: --tools FILE.py"
        ) from error


def _place_of(error: BaseException) -> str:
    """Where in a plug-in an error was raised; "" if the import system did not get that far."""
    import importlib
    import traceback

    if isinstance(error, SyntaxError) and error.filename:
        return f"see {error.filename}, line {error.lineno}"
    system = ("<", __file__, os.path.dirname(importlib.__file__))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(system)]
    return f"see {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _collected(found: object, source: str) -> list[Tool]:
    """The tools in a plug-in's object: a tool, a list of tools, a function that returns them, or a module."""
    if isinstance(found, Tool):
        found = [found]
    elif isinstance(found, type(sys)):
        listed = getattr(found, "TOOLS", None)
        found = listed if listed is not None else [item for item in vars(found).values() if isinstance(item, Tool)]
    elif callable(found):
        found = _imported(source, found)
    items = list(found) if isinstance(found, Iterable) and not isinstance(found, (str, Mapping)) else []
    if not items or not all(isinstance(item, Tool) for item in items):
        hint = "decorate functions with @tool (from rlm import tool), or list Tool objects in TOOLS"
        raise ToolError(f"tools plug-in {source!r} has no tools", hint=hint)
    return [dataclasses.replace(item, source=source) for item in dict.fromkeys(items)]


# --- checking data against a JSON Schema --------------------------------------------------------------------------

_DEEPEST = 64
_MOST_PROBLEMS = 100
_TYPES: dict[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
# keyword of a bound: (the wording of a violation, the type it applies to, the test)
_BOUNDS: dict[str, tuple[str, str, Callable[[float, float], bool]]] = {
    "minLength": ("at least {} characters", "string", lambda size, limit: size >= limit),
    "maxLength": ("at most {} characters", "string", lambda size, limit: size <= limit),
    "minItems": ("at least {} items", "array", lambda size, limit: size >= limit),
    "maxItems": ("at most {} items", "array", lambda size, limit: size <= limit),
    "minProperties": ("at least {} properties", "object", lambda size, limit: size >= limit),
    "maxProperties": ("at most {} properties", "object", lambda size, limit: size <= limit),
    "minimum": ("at least {}", "number", lambda value, limit: value >= limit),
    "maximum": ("at most {}", "number", lambda value, limit: value <= limit),
    "exclusiveMinimum": ("more than {}", "number", lambda value, limit: value > limit),
    "exclusiveMaximum": ("less than {}", "number", lambda value, limit: value < limit),
    "multipleOf": ("a multiple of {}", "number", lambda value, step: abs(value / step - round(value / step)) < 1e-9),
}


def validate(schema: Schema | bool, value: object, *, coerce: bool = True) -> tuple[Any, list[str]]:
    """The value with defaults filled in, and a line for each violation of the schema (none: it is valid).

    `coerce` accepts what a model plainly meant: "3" for 3, JSON in a string for an object, null for an absent optional
    property, one item for a list of one.
    """
    checker = _Checker(schema, coerce)
    return checker.check(schema, value, ""), _unique(checker.problems)


Rule = Callable[[Schema, object, str], object]  # of a schema, a value and its path: the value, perhaps coerced


class _Checker:
    """Checks a value once and collects its `problems`; references are resolved in `root`."""

    def __init__(self, root: Schema | bool, coerce: bool, depth: int = 0) -> None:
        self.root = root
        self.coerce = coerce
        self.depth = depth
        self.problems: list[str] = []
        self.rules: dict[int, list[Rule]] = {}  # by schema, because the data may be large

    def check(self, schema: object, value: object, path: str) -> object:
        """The value coerced to the schema; what cannot be coerced is added to the problems."""
        if not isinstance(schema, dict):
            return value if schema is not False else self.fail(path, "nothing is allowed here", value)
        if len(self.problems) > _MOST_PROBLEMS:
            return value
        if self.depth > _DEEPEST:
            return self.fail(path, f"nested more than {_DEEPEST} levels deep", value)
        before = len(self.problems)
        self.depth += 1
        value = list(value) if isinstance(value, (tuple, set, frozenset)) else value
        for rule in self.rules.get(id(schema)) or self.rules_for(schema):
            value = rule(schema, value, path)
            if len(self.problems) > before:
                break
        self.depth -= 1
        return value

    def rules_for(self, schema: Schema) -> list[Rule]:
        wants: dict[Rule, set[str]] = {
            self.check_combinators: {"$ref", "allOf", "anyOf", "oneOf", "not"},
            self.typed: {"type"},
            self.check_enum: {"enum", "const"},
            self.bounds: _BOUNDS.keys() | {"pattern", "uniqueItems"},
            self.items: {"items", "prefixItems"},
            self.properties: {"properties", "required", "additionalProperties", "patternProperties"},
        }
        rules = [rule for rule, words in wants.items() if not words.isdisjoint(schema)]
        self.rules[id(schema)] = rules
        return rules

    def fail(self, path: str, problem: str, value: object) -> object:
        self.problems.append(f"{path}: {problem}" if path else problem)
        return value

    def is_valid(self, schema: object, value: object) -> bool:
        checker = _Checker(self.root, False, self.depth)
        checker.check(schema, value, "")
        return not checker.problems

    def check_combinators(self, schema: Schema, value: object, path: str) -> object:
        """Apply the keywords that pass the whole value to other schemas."""
        referred = [self.resolve_ref(schema["$ref"])] if "$ref" in schema else []
        for part in [*referred, *schema.get("allOf", ())]:
            value = self.check(part, value, path)
        if branches := [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            value = self.any_of(branches, value, path)
        if "not" in schema and self.is_valid(schema["not"], value):
            self.fail(path, f"{_shown(value)} is not allowed", value)
        return value

    def resolve_ref(self, reference: object) -> object:
        found: object = self.root
        for part in filter(None, str(reference).removeprefix("#").split("/")):
            key = part.replace("~1", "/").replace("~0", "~")
            found = found.get(key, {}) if isinstance(found, dict) else {}
        return found

    def any_of(self, branches: list[object], value: object, path: str) -> object:
        """The value by the first branch that accepts it unchanged, otherwise by the first that it can be coerced to."""
        problems: list[str] = []
        for coerce in (False, True) if self.coerce else (False,):
            for branch in branches:
                checker = _Checker(self.root, coerce, self.depth)
                result = checker.check(branch, value, path)
                if not checker.problems:
                    return result
                problems += checker.problems
        return self.fail("", join_limited(_unique(problems), " or "), value)

    def typed(self, schema: Schema, value: object, path: str) -> object:
        wanted = schema.get("type", [])
        names = [wanted] if isinstance(wanted, str) else wanted
        if not names or any(name not in _TYPES or _TYPES[name](value) for name in names):
            return value
        for name in names if self.coerce else ():
            with contextlib.suppress(ValueError, RecursionError):
                return _to_type(name, value)
        return self.fail(path, f"expected {' or '.join(names)}, got {_shown(value)}", value)

    def check_enum(self, schema: Schema, value: object, path: str) -> object:
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if choices is None or any(_same(value, choice) for choice in choices):
            return value
        for choice in choices if self.coerce else ():
            if str(choice).casefold() == str(value).strip().casefold():
                return choice
        allowed = ", ".join(json.dumps(choice, ensure_ascii=False, default=repr) for choice in choices)
        return self.fail(path, f"{_shown(value)} is not one of {allowed}", value)

    def bounds(self, schema: Schema, value: Any, path: str) -> object:
        if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
            self.fail(path, f"{_shown(value)} does not match the pattern {schema['pattern']}", value)
        unique = isinstance(value, list) and schema.get("uniqueItems")
        if unique and len(value) > len({json.dumps(item, default=str) for item in value}):
            self.fail(path, "has the same item twice", value)
        for word, (limit, kind, holds) in _BOUNDS.items():
            if word in schema and _TYPES[kind](value):
                size = value if kind == "number" else len(value)
                if not holds(size, schema[word]):
                    self.fail(path, f"must be {limit.format(schema[word])}, is {size}", value)
        return value

    def items(self, schema: Schema, value: object, path: str) -> object:
        if not isinstance(value, list):
            return value
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        rules = [*first, *[rest] * len(value)]
        return [self.check(rule, item, f"{path}[{index}]") for index, (rule, item) in enumerate(zip(rules, value))]

    def properties(self, schema: Schema, value: object, path: str) -> object:
        if not isinstance(value, dict):
            return value
        properties, required = schema.get("properties", {}), schema.get("required", [])
        result: dict[str, object] = {}
        for name, item in value.items():
            optional = name in properties and name not in required
            rule = _property_rule(schema, str(name))
            below = f"{path}.{name}" if path else str(name)
            if rule is False:
                self.fail(below, f"unknown property; there are {', '.join(properties) or 'none'}", item)
            elif item is None and optional and self.coerce and not self.is_valid(rule, None):
                continue  # null for an optional property means that it is absent
            else:
                result[name] = self.check(rule, item, below)
        for name in required:
            if name not in value:
                rule = properties.get(name)
                about = rule.get("description", "") if isinstance(rule, dict) else ""
                self.fail(path, f"missing {name!r} ({_kind_word(rule)}{': ' + about if about else ''})", value)
        for name, rule in properties.items():
            if name not in result and isinstance(rule, dict) and "default" in rule:
                result[name] = json.loads(json.dumps(rule["default"], default=str))
        return result


def _property_rule(schema: Schema, name: str) -> object:
    """The schema of one property: by name, by pattern, or the one for additional properties (False: not allowed)."""
    properties = schema.get("properties") or {}
    if name in properties:
        return properties[name]
    for pattern, rule in (schema.get("patternProperties") or {}).items():
        if re.search(pattern, name):
            return rule
    return schema.get("additionalProperties", True)


def _to_type(name: str, value: object) -> object:
    """The value converted to the type that the model plainly meant; ValueError if that is not plain."""
    text = value.strip() if isinstance(value, str) else None
    if text and name in ("integer", "number") and len(text) > JSON_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    if name == "string" and isinstance(value, (int, float, bool)):
        return json.dumps(value)
    if name == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    if name == "integer" and text and re.fullmatch(r"[+-]?\d+(\.0*)?", text):
        return int(text.partition(".")[0])
    if name == "number" and text and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if name == "boolean" and str(value).strip().lower() in ("true", "false", "1", "0"):
        return str(value).strip().lower() in ("true", "1")
    if name == "null" and text == "null":
        return None
    if name in ("object", "array") and text and text[0] == "{["[name == "array"]:
        return from_json(text, strict=False)
    if name == "array" and value is not None:
        return [value]
    raise ValueError(name)


def _same(a: object, b: object) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def join_limited(lines: list[str], joint: str = "; ", most: int = 8) -> str:
    more = f"{joint}and {len(lines) - most} more" if len(lines) > most else ""
    return joint.join(lines[:most]) + more


def _shown(value: object) -> str:
    """A value in a message: its type, and a truncated repr."""
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str) else render(value)
    return f"{_type_word(value)} {text if len(text) <= 60 else text[:57] + '...'}"


def _type_word(value: object) -> str:
    words = ("boolean", "integer", "number", "string", "object", "array", "null")
    return next((word for word in words if _TYPES[word](value)), type(value).__name__)


def _kind_word(schema: object) -> str:
    """A schema in a word or two: `integer`, `array of string`, `"asc" | "desc"`."""
    if not isinstance(schema, dict):
        return "any"
    if choices := schema.get("enum"):
        return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices[:8])
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(_unique(map(_kind_word, branches)))
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " | ".join(kind)
    return f"array of {_kind_word(schema['items'])}" if kind == "array" and "items" in schema else str(kind)


# --- schemas from Python types, and typed values from data ----------------------------------------------------------

_NAMED: dict[str, tuple[Schema, str]] = {
    # a type's full name, so that it need not be imported: (its schema, its method that parses a string; "": the type)
    "datetime.datetime": ({"type": "string", "format": "date-time"}, "fromisoformat"),
    "datetime.date": ({"type": "string", "format": "date"}, "fromisoformat"),
    "datetime.time": ({"type": "string", "format": "time"}, "fromisoformat"),
    "decimal.Decimal": ({"type": ["string", "number"]}, ""),
    "uuid.UUID": ({"type": "string", "format": "uuid"}, ""),
}
_SIMPLE: dict[object, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    dict: {"type": "object"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    set: {"type": "array", "uniqueItems": True},
    frozenset: {"type": "array", "uniqueItems": True},
    object: {},
    Any: {},
}
Shape = tuple[Schema, Callable[[Any], object]]  # a type's schema, and what makes a value of the type from valid data


def schema_of(kind: object) -> Schema:
    """The JSON Schema of a type: dataclass, TypedDict, pydantic model, enum, `list[int]`, `X | None`; a dict is one.

    ToolError for a type or a dict that has none.
    """
    if not isinstance(kind, dict):
        return _shape(kind)[0]
    if problem := _schema_problem(kind):
        raise ToolError(f"not a JSON Schema: {problem}")
    return kind


_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_KEYWORDS: dict[str, Schema] = {  # the schema of each keyword's value
    **{word: {"type": "object"} for word in _NAMED_SCHEMAS},
    **{word: {"type": "array"} for word in _LISTED_SCHEMAS},
    **{word: {"type": "number"} for word in _BOUNDS},
    "multipleOf": {"type": "number", "exclusiveMinimum": 0},
    "type": {"anyOf": [{"enum": [*_TYPES]}, {"type": "array", "items": {"enum": [*_TYPES]}}]},
    "enum": {"type": "array"},
    "required": {"type": "array", "items": {"type": "string"}},
    "pattern": {"type": "string"},
}


def _schema_problem(schema: Schema) -> str:
    """The first part of a JSON Schema that `validate` cannot use; "" if it can use all of it."""
    try:
        json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    waiting: list[tuple[str, object]] = [("", schema)]
    while waiting:
        path, part = waiting.pop()
        if not isinstance(part, (dict, bool)):
            return f"{path} cannot be {_shown(part)}"
        for word, value in part.items() if isinstance(part, dict) else ():
            at = f"{path}.{word}" if path else word
            if validate(_KEYWORDS.get(word, {}), value, coerce=False)[1] or (
                word == "pattern" and not _is_regex(value)
            ):
                return f"{at} cannot be {_shown(value)}"
            if word in _NAMED_SCHEMAS:
                waiting += [(f"{at}.{name}", inner) for name, inner in value.items()]
            elif word in _LISTED_SCHEMAS:
                waiting += [(f"{at}.{index}", inner) for index, inner in enumerate(value)]
            elif word in ("items", "additionalProperties", "not"):
                waiting.append((at, value))
    return ""


def _is_regex(pattern: str) -> bool:
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def construct(kind: object, value: object) -> Any:
    """A value of that type from data that fits its schema; ToolError if the type refuses it."""
    if isinstance(kind, dict):
        return value
    try:
        return _shape(kind)[1](value)
    except ToolError:
        raise
    except Exception as error:  # a dataclass's or a model's own checks may raise anything
        raise ToolError(f"not a valid {getattr(kind, '__name__', kind)}: {str(error)[:600]}") from error


def _shape(kind: object) -> Shape:
    shapes = _Shapes()
    schema, make = shapes.of(kind)
    return {**schema, "$defs": shapes.shared} if shapes.shared else schema, make


class _Shapes:
    """Finds the shapes of nested types; the schema of a class that contains itself goes to `shared`, for `$defs`."""

    def __init__(self) -> None:
        self.shared: dict[str, Schema] = {}
        self.open: list[object] = []

    def of(self, kind: Any) -> Shape:
        if getattr(kind, "__hash__", None) and kind in _SIMPLE:
            return dict(_SIMPLE[kind]), kind if kind in (float, tuple, set, frozenset) else _as_it_is
        if named := _NAMED.get(f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"):
            schema, maker = named
            make = getattr(kind, maker) if maker else kind
            return dict(schema), lambda value: make(re.sub("[zZ]$", "+00:00", str(value)))
        if isinstance(kind, type) and not typing.get_args(kind) and issubclass(kind, os.PathLike):
            return {"type": "string"}, kind
        if callable(model := getattr(kind, "model_json_schema", None)):
            schema = model()
            self.shared |= schema.pop("$defs", {})
            return schema, kind.model_validate
        if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind)):
            return self.of_record(kind)
        if hasattr(kind, "__members__"):
            values = [member.value for member in kind]
            return _choices(values), lambda value: next(member for member in kind if _same(member.value, value))
        return self.of_generic(kind, typing.get_origin(kind), typing.get_args(kind))

    def of_generic(self, kind: object, origin: Any, args: tuple[object, ...]) -> Shape:
        if origin is typing.Annotated:
            schema, make = self.of(args[0])
            about = next((note for note in args[1:] if isinstance(note, str)), "")
            return {**schema, **({"description": about} if about else {})}, make
        if str(origin).rpartition(".")[2] in ("Required", "NotRequired", "ReadOnly"):  # marks in a TypedDict
            return self.of(args[0])
        if origin is typing.Literal:
            return _choices(list(args)), _as_it_is
        if origin is typing.Union or getattr(origin, "__qualname__", "") in ("UnionType", "Union"):
            return self.of_union([self.of(arg) for arg in args])
        if isinstance(origin, type) and issubclass(origin, tuple) and args[-1:] != (...,):
            return self.of_tuple([self.of(arg) for arg in args])
        if isinstance(origin, type) and issubclass(origin, Mapping):
            schema, make = self.of(args[1])
            made = {"type": "object", "additionalProperties": schema}
            return made, lambda value: {key: make(item) for key, item in value.items()}
        if isinstance(origin, type) and issubclass(origin, Iterable):
            schema, make = self.of(args[0])
            kept = origin if origin in (tuple, set, frozenset) else list
            return {**_SIMPLE[kept], "items": schema}, lambda value: kept(map(make, value))
        raise ToolError(f"no JSON Schema for the type {getattr(kind, '__name__', kind)!r}")

    def of_union(self, shapes: list[Shape]) -> Shape:
        def make(value: object) -> object:
            for schema, made in shapes:
                if not validate({**schema, "$defs": self.shared}, value, coerce=False)[1]:
                    return made(value)
            return value

        return {"anyOf": [schema for schema, _ in shapes]}, make

    def of_tuple(self, shapes: list[Shape]) -> Shape:
        schema = {"type": "array", "prefixItems": [schema for schema, _ in shapes]}
        size = {"minItems": len(shapes), "maxItems": len(shapes)}
        return {**schema, **size}, lambda value: tuple(made(item) for (_, made), item in zip(shapes, value))

    def of_record(self, kind: Any) -> Shape:
        name = kind.__name__
        if kind in self.open:
            self.shared.setdefault(name, {})
            return {"$ref": f"#/$defs/{name}"}, lambda value: construct(kind, value)
        self.open.append(kind)
        hints = _hints(kind)
        fields = {name: (self.of(hints[name]), needed, extra) for name, needed, extra in _fields(kind)}
        self.open.remove(kind)
        schema: Schema = {
            "type": "object",
            "properties": {name: {**shape[0], **extra} for name, (shape, _, extra) in fields.items()},
            "required": [name for name, (_, needed, _) in fields.items() if needed],
            "additionalProperties": False,
        }
        if name in self.shared:
            self.shared[name] = schema
        return schema, lambda value: kind(**{name: fields[name][0][1](item) for name, item in value.items()})


def _as_it_is(value: _T) -> _T:
    return value


def _hints(kind: object) -> dict[str, object]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # an annotation is any expression, evaluated here
        name = getattr(kind, "__qualname__", kind)
        raise ToolError(f"the annotations of {name} cannot be read: {type(error).__name__}: {error}") from error


def _fields(record: Any) -> list[tuple[str, bool, Schema]]:
    """The fields of a dataclass or TypedDict: name, whether it is required, description and default as schema."""
    if not dataclasses.is_dataclass(record):
        return [(name, name in record.__required_keys__, {}) for name in record.__annotations__]
    found = []
    for item in dataclasses.fields(record):
        extra: Schema = {"description": item.metadata["description"]} if "description" in item.metadata else {}
        if item.default is not dataclasses.MISSING:
            extra |= _default(item.default)
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if item.init:
            found.append((item.name, needed, extra))
    return found


def _default(value: object) -> Schema:
    """The `default` entry of a schema; empty if the default is not JSON."""
    try:
        return {"default": json.loads(json.dumps(plain_data(value)))}
    except (TypeError, ValueError):
        return {}


def _choices(values: list[object]) -> Schema:
    kinds = _unique(map(_type_word, values))
    return {**({"type": kinds[0]} if len(kinds) == 1 and kinds[0] in _TYPES else {}), "enum": values}


# --- files: confined to the allowed folders -------------------------------------------------------------------------

READ_LIMIT = 5_000_000  # bytes that file_read returns to code: they fit into a frame even if each is escaped
VIEW_LIMIT = 9_500  # characters of one call's result that a model sees
LINE_LIMIT = 2_000  # characters of one line, or one match, that a model sees
LIST_LIMIT = 100_000
PATH_MAX = 4096  # characters of a path: resolving one costs quadratic time
PATTERN_LIMIT = 4_000  # characters of a glob or a regex
MATCH_LIMIT = 10_000
SEARCH_SECONDS = 20.0
SEARCH_MEMORY = 48 << 20  # beyond what an idle Python has
SEARCHES = 4  # at once; others wait
SEARCHED_LINE = 1 << 18  # bytes of a line that are searched in one piece
_FILE_TOOLS = {
    "file_read(path: string, start_line: integer = null, end_line: integer = null)": (
        "Lines of a text file. In code: the text as str"
    ),
    'file_list(pattern: string = "**")': "Files by glob ('*.py' at any depth). In code: list of paths",
    'file_search(regex: string, pattern: string = "**")': (
        "Lines matching a Python regex in the files of a glob. In code: list of {path, line, text}"
    ),
}
SKIPPED = {".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".tox", ".mypy_cache", ".ruff_cache"}
_HEAD = 65_536  # bytes at the start of a file by which its type is detected
_UTF_8_MARK = b"\xef\xbb\xbf"
_WILD = r"[*?\[{]"
_READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KERNEL = ("/proc", "/sys", "/dev")  # virtual files: environments, memory, devices
_SECRET = re.compile(
    r"\.env.*|.*\.pem|id_.*|\.netrc|\.aws|\.ssh|\.git-credentials|\.pypirc|\.npmrc|\.snipara", re.IGNORECASE | re.DOTALL
)


def is_secret(path: str) -> bool:
    """Whether a part of a relative path is a name that usually holds credentials."""
    parts = [part.rstrip(". ") for part in re.split(r"[/\\]", path)]
    in_git = ".git" in map(str.lower, parts[:-1]) and parts[-1].lower().startswith("config")
    return in_git or any(map(_SECRET.fullmatch, parts))


def _is_kernels(real: str) -> bool:
    """Whether a real path is in a virtual file system; shared memory counts as an ordinary folder."""
    return any(is_under(real, place) for place in _KERNEL) and not is_under(real, "/dev/shm")


def file_tools(
    allowed_paths: Iterable[AnyPath] | None = None,
    cwd: str | None = None,
    *,
    exclude: Iterable[AnyPath] = (),
) -> list[Tool]:
    """file_read, file_list and file_search over the allowed folders and files (default: the working directory).

    `exclude`: folders that are listed and searched only when a pattern begins in them, such as a run's own logs.
    """
    files = _Files(allowed_paths, cwd, exclude)
    in_code: list[Callable[..., object]] = [files.read, files.paths, files.search]
    for_model: list[Callable[..., str]] = [files.read_view, files.list_view, files.search_view]
    tools = zip(_FILE_TOOLS.items(), in_code, for_model)
    return [from_signature(line, about, handler, view, "built in") for (line, about), handler, view in tools]


class _Files:
    """The files under some roots, which are fixed when the tools are made.

    A path is resolved and checked, then opened from its root one component at a time without following links: a folder
    that is swapped for a link in between is refused.
    """

    def __init__(self, allowed: Iterable[AnyPath] | None, cwd: str | None, exclude: Iterable[AnyPath]) -> None:
        self.cwd = os.path.realpath(cwd or os.getcwd())
        allowed = [self.cwd] if allowed is None else [allowed] if isinstance(allowed, (str, os.PathLike)) else allowed
        allowed = list(allowed)
        self.roots = [self.real(path) for path in allowed]
        named = [os.path.normpath(os.path.join(self.cwd, os.path.expanduser(path))) for path in allowed]
        self.named_roots = {*self.roots, *named}
        self.exclude = {self.real(path) for path in exclude}

    def real(self, path: AnyPath) -> str:
        return os.path.realpath(os.path.join(self.cwd, os.path.expanduser(path)))

    def resolve(self, path: str) -> tuple[str, str]:
        """The allowed folder that contains a path, and the path relative to it; PermissionError if none does."""
        try:
            if len(path) > PATH_MAX:
                raise ValueError(f"of {len(path):,} characters")
            real = os.path.realpath(os.path.join(self.cwd, path))
        except (OSError, ValueError) as error:
            raise ValueError(f"not a path: {path[:200]!r} ({error})") from None
        root = max((root for root in self.roots if is_under(real, root)), key=len, default=None)
        if root is None:
            allowed = ", ".join(map(self.shown, self.roots)) or "none"
            raise PermissionError(f"{path!r} is outside the allowed paths ({allowed})")
        if _is_kernels(real):
            raise PermissionError(f"{path!r} is the kernel's and not a regular file")
        below = _below(real, root)
        if is_secret(below) or self.is_named_secret(path):
            raise PermissionError(f"{path!r} may hold credentials and is not read")
        return root, below

    def is_named_secret(self, path: str) -> bool:
        """Whether the unresolved name, which may pass through links, is that of credentials below an allowed folder."""
        named = os.path.normpath(os.path.join(self.cwd, path))
        root = max((root for root in self.named_roots if is_under(named, root)), key=len, default=self.cwd)
        return is_secret(relpath(named, root))

    def shown(self, real: str) -> str:
        """A real path as the model sees it: relative to the working directory if it is inside."""
        path = _below(real, self.cwd) if is_under(real, self.cwd) else real
        return path.replace(os.sep, "/")

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[typing.BinaryIO]:
        """The regular file at that path, open for reading bytes."""
        root, below = self.resolve(path)
        try:
            descriptor = _open_below(root, below)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"no such file: {path!r}{self.suggestion(path)}") from None
        except OSError as error:
            raise PermissionError(f"cannot read {path!r}: {error.strerror}") from None
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(f"{path!r} is a folder: file_list({path!r}) lists its files")
            raise PermissionError(f"{path!r} is not a regular file")
        with open(descriptor, "rb") as file:
            yield file

    def suggestion(self, path: str) -> str:
        """Names similar to that of a missing file, for the error message."""
        import difflib

        try:
            names = os.listdir(os.path.join(*self.resolve(os.path.dirname(path) or ".")))
        except (OSError, ValueError):
            return ""
        near = difflib.get_close_matches(os.path.basename(path)[:255], [name for name in names if not is_secret(name)])
        return f"; there is {', '.join(map(repr, near))}" if near else ""

    def lines(self, path: str, first: int, last: int | None, limit: int) -> tuple[str, bool, int]:
        """Lines first to last as text, whether more than `limit` bytes of them cut it short, and the file's size."""
        with self.opened(path) as file:
            data, cut = _lines(_as_utf8(file, path), first, last, limit)
            return _decoded(data), cut, os.fstat(file.fileno()).st_size

    def read(self, path: str, start_line: int = 1, end_line: int | None = None) -> str:
        text, cut, _ = self.lines(path, *_line_range(start_line, end_line), READ_LIMIT)
        if cut:
            limit = f"{READ_LIMIT // 1_000_000} MB"
            raise ValueError(f"{path!r} is more than {limit} there: read fewer lines, or in code open({path!r})")
        return text

    def read_view(self, path: str, start_line: int = 1, end_line: int | None = None) -> str:
        first, last = _line_range(start_line, end_line)
        text, cut, size = self.lines(path, first, last, 4 * VIEW_LIMIT)
        if not text:
            return f"[{path} is empty]"
        lines = text.removesuffix("\n").split("\n")
        if cut and len(lines) > 1:
            lines.pop()  # it may be incomplete
        shown = [f"{number:>6} {truncate(line)}" for number, line in enumerate(lines, first)]
        fitting = max(lines_that_fit(shown), 1)
        if fitting < len(shown) or cut:
            end = first + fitting - 1
            shown[fitting:] = [f"[lines {first}-{end} of {path}, a file of {size:,} bytes; next: start_line={end + 1}]"]
        return "\n".join(shown)

    def paths(self, pattern: str = "**") -> list[str]:
        """The files that match a glob, sorted, without secrets, links to the outside and folders such as .git."""
        skipped = SKIPPED.difference(re.split(r"[/\\]", pattern[:PATTERN_LIMIT]))
        deadline = time.monotonic() + SEARCH_SECONDS
        found: set[str] = set()
        for start, globs in self.glob_roots(pattern):
            for path in self.walked(start, skipped, deadline):
                names = _below(path, start).split(os.sep) if path != start else []
                if any(_matches(glob, names) for glob in globs):
                    found.add(self.shown(path))
                if len(found) > LIST_LIMIT:
                    raise ValueError(f"more than {LIST_LIMIT:,} files match {pattern!r}: narrow the pattern")
        return sorted(found)

    def list_view(self, pattern: str = "**") -> str:
        paths = self.paths(pattern)
        if not paths:
            return f"no file matches {pattern!r}"
        rows = []
        for path in paths[: VIEW_LIMIT // 10]:
            with contextlib.suppress(OSError):
                rows.append(f"{path}  {os.stat(os.path.join(self.cwd, path)).st_size:,} bytes")
        fitting = lines_that_fit(rows)
        omitted = [f"[{fitting} of {len(paths):,} files; narrow the pattern]"] if fitting < len(paths) else []
        return "\n".join(rows[:fitting] + omitted)

    def glob_roots(self, pattern: str) -> list[tuple[str, list[Glob]]]:
        """The folders where matches of a pattern begin, each with the globs for the paths below it.

        A relative pattern is tried in the working directory and in each allowed folder elsewhere.
        """
        if len(pattern) > PATTERN_LIMIT:
            raise ValueError(f"the pattern is longer than {PATTERN_LIMIT:,} characters")
        pattern = pattern.replace("\\", "/")
        prefix, rest = _split_glob(pattern.rstrip("/"), self.cwd)
        if not rest:  # a file, or a folder with everything in it
            return [(os.path.normpath(os.path.join(*self.resolve(pattern))), _globs("**"))]
        bases = [self.cwd, *(root for root in self.roots if not is_under(root, self.cwd))]
        named = {path: os.path.realpath(path) for path in (os.path.join(base, prefix) for base in bases)}
        inside = {
            path: start
            for path, start in named.items()
            if any(is_under(start, root) or is_under(root, start) for root in self.roots)
        }
        if not inside:
            self.resolve(prefix)
        globs = _globs(rest if prefix or "/" in rest else f"**/{rest}")
        return [(start, globs) for start in dict.fromkeys(s for p, s in inside.items() if not self.is_named_secret(p))]

    def walked(self, start: str, skipped: set[str], deadline: float) -> Iterator[str]:
        """The readable files at or below `start` that are inside a root; links to folders are not followed."""
        waiting = [(root, start) for root in self.roots if is_under(start, root)]
        waiting += [(root, root) for root in self.roots if is_under(root, start) and root != start]
        while waiting:
            if time.monotonic() > deadline:
                raise TimeoutError(f"listing files took longer than {SEARCH_SECONDS:g} s: narrow the pattern")
            root, folder = waiting.pop()
            try:
                entries = _entries(root, folder)
            except OSError as error:
                self.unreadable(folder, error)
                continue
            for path, kind in entries:
                if is_secret(_below(path, root)):
                    continue
                if kind == "folder" and os.path.basename(path) not in skipped and path not in self.exclude:
                    waiting.append((root, path))
                elif kind == "file" or (kind == "link" and self.leads_in(path)):
                    yield path

    def unreadable(self, path: str, error: OSError) -> None:
        """Called for a folder that cannot be read; here it is skipped."""

    def leads_in(self, link: str) -> bool:
        try:
            return os.path.isfile(os.path.join(*self.resolve(link)))
        except (OSError, ValueError):
            return False

    def search(self, regex: str, pattern: str = "**") -> list[dict[str, str | int]]:
        rows, stopped, _ = self.matches(regex, pattern)
        if stopped:
            raise TimeoutError(stopped)
        if len(rows) > MATCH_LIMIT:
            raise ValueError(f"more than {MATCH_LIMIT:,} lines match {regex!r}: narrow it, or read the files in code")
        return [{"path": path, "line": line, "text": text} for path, line, text in rows]

    def search_view(self, regex: str, pattern: str = "**") -> str:
        rows, stopped, count = self.matches(regex, pattern)
        lines = [f"{path}:{line}: {truncate(text, 300)}" for path, line, text in rows]
        fitting = lines_that_fit(lines)
        notes = [f"[{stopped}]"] if stopped else []
        if fitting < len(lines):
            total = f"{len(lines):,}" if len(lines) <= MATCH_LIMIT else f"more than {MATCH_LIMIT:,}"
            notes.append(f"[{fitting} of {total} matching lines; narrow the regex or the pattern]")
        return "\n".join(lines[:fitting] + notes) or f"no line matches in {count:,} files"

    def matches(self, regex: str, pattern: str) -> tuple[list[tuple[str, int, str]], str, int]:
        """Matching lines (one more than the limit if there are more), why it stopped early, how many files."""
        paths = self.paths(pattern)
        if len(regex) > PATTERN_LIMIT:
            raise ValueError(f"the regex is longer than {PATTERN_LIMIT:,} characters")
        with _searching:
            rows, stopped = _grep(regex, self.blocks(paths), MATCH_LIMIT + 1, SEARCH_SECONDS)
        return rows, stopped, len(paths)

    def blocks(self, paths: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
        """Files in blocks of whole lines: path, number of the first line, UTF-8. Binary files are skipped."""
        for path in paths:
            with contextlib.suppress(OSError, ValueError), self.opened(os.path.join(self.cwd, path)) as raw:
                file = _as_utf8(raw, path)
                number = 1
                while block := file.read(1 << 16):
                    block += file.readline(SEARCHED_LINE)
                    yield path, number, _decoded(block).removesuffix("\n").encode()
                    number += block.count(b"\n")


def is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _below(path: str, root: str) -> str:
    """A real path relative to a real folder that contains it."""
    return path[len(root) :].lstrip(os.sep) or "."


def _open_below(root: str, below: str) -> int:
    """Open a file or folder by a path relative to `root`, without following links; the descriptor."""
    if os.open not in os.supports_dir_fd:
        return os.open(os.path.join(root, below), _READING)
    parts = below.split(os.sep) if below != "." else []
    through = _READING | getattr(os, "O_PATH", 0)  # folders on the way need not be readable
    descriptor = os.open(root, (through if parts else _READING) | os.O_NOFOLLOW)
    for number, part in enumerate(parts, 1):
        parent = descriptor
        try:
            mode = os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise PermissionError(1, "not a regular file")
            descriptor = os.open(part, (through if number < len(parts) else _READING) | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)
    return descriptor


def _entries(root: str, path: str) -> list[tuple[str, str]]:
    """The paths in a folder below `root` with their kinds, sorted; if it is a file, that alone."""
    descriptor = _open_below(root, _below(path, root))
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return [(path, "file")]
        with os.scandir(descriptor if os.scandir in os.supports_fd else path) as entries:
            return sorted((os.path.join(path, entry.name), _kind(entry)) for entry in entries)
    finally:
        os.close(descriptor)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"


Glob = list[Callable[[str], object] | None]  # a test for each name of a path; None stands for `**`, any number of names


def _split_glob(pattern: str, cwd: str) -> tuple[str, str]:
    """The folder in which a glob begins ("src/", "" for `cwd`, "/" for the root) and the rest, "" if there is none.

    A name that looks like a glob is a name if it exists: `[id].tsx`.
    """
    parts = pattern.split("/")
    for index, part in enumerate(parts):
        if re.search(_WILD, part) and not os.path.lexists(os.path.join(cwd, "/".join(parts[: index + 1]))):
            return "".join(f"{part}/" for part in parts[:index]), "/".join(parts[index:])
    return f"{pattern}/", ""


def _globs(pattern: str) -> list[Glob]:
    from fnmatch import translate  # its regexes do not backtrack

    tests = functools.cache(lambda part: None if part == "**" else re.compile(translate(part)).match)
    return [[tests(part) for part in expanded.split("/")] for expanded in _expanded(pattern)]


def _matches(glob: Glob, names: list[str]) -> bool:
    """Whether the names fit the glob, in time proportional to the product of their lengths."""
    ends = {0}  # how many names the parts of the glob so far may stand for
    for test in glob:
        if not ends:
            return False
        if test is None:
            ends = set(range(min(ends), len(names) + 1))
        else:
            ends = {end + 1 for end in ends if end < len(names) and test(names[end])}
    return len(names) in ends


def _expanded(pattern: str, most: int = 256) -> list[str]:
    """The patterns that a pattern with `{a,b}` expands to."""
    done, waiting = [], [pattern]
    while waiting:
        pattern = waiting.pop(0)
        if braces := next((m for m in re.finditer(r"\{([^{}]*)\}", pattern) if "," in m[1]), None):
            waiting += [pattern[: braces.start()] + word + pattern[braces.end() :] for word in braces[1].split(",")]
        else:
            done.append(pattern)
        if len(waiting) + len(done) > most:
            raise ValueError(f"the pattern stands for more than {most} patterns")
    return done


def _line_range(start_line: int, end_line: int | None) -> tuple[int, int | None]:
    """The first and last line; models also send 0 for the first and -1 for the last."""
    first = max(start_line, 1)
    last = end_line if end_line is not None and end_line > 0 else None
    if last is not None and last < first:
        raise ValueError(f"end_line {last} is before start_line {first}")
    return first, last


def _as_utf8(file: typing.BinaryIO, path: str) -> typing.BinaryIO:
    """The file as lines of UTF-8 (or nearly so, see `_decoded`); ValueError if it is binary."""
    head = file.read(_HEAD)
    file.seek(0)
    encoding = encoding_of(head)
    if not encoding:
        raise ValueError(f"{path!r} is binary: read it in code, with open({path!r}, 'rb')")
    if encoding not in ("utf-8", "cp1252"):
        import io

        data = file.read(4 * READ_LIMIT)
        if file.read(1):
            raise ValueError(
                f"{path!r} is {encoding.upper()} and too large: read it in code, with open({path!r}, "
                f"encoding={encoding!r})"
            )
        return io.BytesIO(data.decode(encoding, "replace").encode())
    if head[:3] == _UTF_8_MARK:
        file.seek(3)
    return file


def _lines(file: typing.BinaryIO, first: int, last: int | None, limit: int) -> tuple[bytes, bool]:
    """The bytes of lines first to last, at most `limit` of them, and whether that cut them short."""
    to_pass = first - 1
    while to_pass and (chunk := file.read(1 << 20)):
        count = chunk.count(b"\n")
        if count >= to_pass:
            file.seek(-len(chunk.split(b"\n", to_pass)[-1]), os.SEEK_CUR)
        to_pass -= min(count, to_pass)
    data = file.read(limit + 1)
    if first > 1 and not data:
        raise ValueError(f"start_line {first:,} is after the last line, {first - 1 - to_pass:,}")
    if last is not None:
        lines = data.split(b"\n", last - first + 1)
        data = b"\n".join(lines[:-1]) + b"\n" if len(lines) == last - first + 2 else data
    return data[:limit], len(data) > limit


def text_of(blob: bytes, encoding: str | None = None) -> tuple[str | bytes, str]:
    """A whole file's text, decoded as by file_read, and a note on what was assumed; the bytes if it is not text.

    `encoding`: overrides detection.
    """
    if encoding:
        import codecs

        is_utf_8 = codecs.lookup(encoding).name == "utf-8"
        text = blob.decode("utf-8-sig" if is_utf_8 else encoding, "replace").replace("\r\n", "\n")
        return text, _lost(text, encoding)
    guess = encoding_of(blob[:_HEAD])
    if guess == "utf-8":
        try:
            return blob.removeprefix(_UTF_8_MARK).decode().replace("\r\n", "\n"), ""
        except UnicodeDecodeError as error:
            guess = encoding_of(blob[max(0, error.start - 1000) : error.start + _HEAD], of_middle=True)
    if not guess:
        return blob, ""
    if guess in ("utf-8", "cp1252"):  # UTF-8 with invalid bytes in it
        guess, text = "cp1252", _decoded(blob.removeprefix(_UTF_8_MARK))
    else:
        text = blob.decode(guess, "replace").replace("\r\n", "\n")
    guessed = f"not UTF-8: read as {guess}, which is a guess (--encoding NAME says it)"
    return text, _lost(text, guess) if guess.startswith("utf-") else guessed


def _lost(text: str, encoding: str) -> str:
    count = text.count("\ufffd")
    return f"{count:,} places were not {encoding} and are U+FFFD" if count else ""


_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (_UTF_8_MARK, "utf-8"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\v\f\r\b\x1b"})
# The choices for charset-normalizer. With more of them it guesses worse: short texts in KOI8-R become Japanese.
_IN_RUNS = ("gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1251", "koi8_r", "cp866", "cp1253", "cp1255", "cp1256")
_AMONG_ASCII = ("cp1252", "cp1250", "cp1254", "iso8859_2", "cp1257")


def encoding_of(head: bytes, *, of_middle: bool = False) -> str:
    """The encoding of a text, detected from its first bytes; "" if it is not text.

    `cp1252` also stands for UTF-8 with invalid bytes. `of_middle`: these are not the first bytes of the file, so there
    is no byte order mark and no signature.
    """
    if not of_middle:
        if mark := next((name for mark, name in _MARKS if head.startswith(mark)), ""):
            return mark if mark == "utf-8" or _decodes(head, mark) else ""
        if kind_of_binary(head):
            return ""
    if b"\0" in head:
        wide = {b"\0": "utf-16-be"}.get(head[:1], "utf-16-le")
        zeros = head[wide == "utf-16-le" :: 2].count(0)  # the high bytes of Latin text
        return wide if zeros > 0.4 * len(head) // 2 > 1 and zeros == head.count(0) and _decodes(head, wide) else ""
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if _decodes(head, "utf-8"):
        return "" if controls * 20 > len(head) else "iso2022_jp" if re.search(rb"\x1b\$[@B]", head) else "utf-8"
    return "" if controls * 200 > len(head) else _guessed(head)


def _decodes(head: bytes, encoding: str) -> bool:
    """Whether this can be the beginning of a text in that encoding."""
    import codecs

    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _guessed(head: bytes) -> str:
    """The encoding of a text without a mark that is not UTF-8; "" if none fits."""
    mixed = head.decode("utf-8", "surrogateescape")
    strays = len(re.findall("[\udc80-\udcff]", mixed))
    # The UTF-8 that Java writes has surrogate pairs.
    surrogates = 3 * len(re.findall(rb"\xed[\xa0-\xbf][\x80-\xbf]", head))
    if surrogates == strays or len(re.findall("[\u0080-\ud7ff\ue000-\U0010ffff]", mixed)) >= strays:
        return "cp1252"
    if len(head) >= _HEAD and b"\n" in head:
        head = head[: head.rindex(b"\n")]  # a character may be cut at the end
    lines = b"\n".join(line for line in head.split(b"\n") if not line.isascii())[:_HEAD]
    high = re.findall(rb"[\x80-\xff]+", lines)
    count = sum(map(len, high))
    in_runs = sum(len(run) for run in high if len(run) > 1)
    kana = sum(run[0] in b"\x82\x83" for run in high)  # of Shift-JIS, whose second bytes may be ASCII
    try:
        import charset_normalizer
    except ImportError:  # requests also works with chardet
        return "cp1252"
    if in_runs > 0.8 * count or kana > 0.3 * count:
        found = [str(match.encoding) for match in charset_normalizer.from_bytes(lines, cp_isolation=list(_IN_RUNS))]
        if "euc_jp" in found and sum(map(lines.count, (b"\xa4", b"\xa5"))) > 0.15 * count:  # its kana
            return "euc_jp"
        return found[0] if found else "" if count > 0.5 * len(lines) else "cp1252"
    matches = list(charset_normalizer.from_bytes(lines, cp_isolation=list(_AMONG_ASCII)))
    turkish = sum(map(lines.count, (b"\xfd", b"\xfe", b"\xf0", b"\xdd", b"\xde", b"\xd0"))) > 0.5 * count
    if any(match.language == "Turkish" for match in matches) or turkish:  # not Icelandic
        return "cp1254"
    western = [match for match in matches if match.encoding == "cp1252"]
    best = matches[0] if matches and not western else None
    return "cp1252" if best is None or str(best) == lines.decode("cp1252", "replace") else str(best.encoding)


_SIGNATURES = (
    (rb"%PDF-", "a PDF"),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive"),
    (rb"\x1f\x8b", "gzip"),
    (rb"BZh[1-9]1AY&SY", "bzip2"),
    (rb"\xfd7zXZ\0", "xz"),
    (rb"\x28\xb5\x2f\xfd", "zstd"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "an archive"),
    (rb"\xd0\xcf\x11\xe0", "an Office file"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*", "an image"),
    (rb"OggS\0|fLaC\0|ID3[\x02-\x04]|RIFF....(?:WAVE|AVI )|\0..[\0-\xff]ftyp|\x1aE\xdf\xa3", "sound or video"),
    (rb"SQLite format 3\0|PAR1[\0-\x1f]|ARROW1\0|Obj\x01|\x89HDF|\x93NUMPY", "a data file"),
    (rb"\x7fELF|\xca\xfe\xba\xbe|\xfe\xed\xfa|\0asm", "a program"),
    (rb"(?:[\x91-\x9f]|\xdc..)?(?:[\x81-\x8f]|\xde..)(?:\xa1\w|\xa2\w\w|[\xa3-\xbf]\w\w\w)", "MessagePack"),
    (rb"\x80[\x02-\x05][}\]\x95c(]", "a pickle"),
    (rb"[\x84\x85\x8c\x99\xc1-\xd2](?:[\x01-\x04]|.[\x01-\x04]|..[\x01-\x06])[\x00-\x1f\x80-\xff]{3}", "OpenPGP"),
)
_INSIDE_ZIP = {b"word/": "a Word document", b"xl/": "an Excel workbook", b"ppt/": "a PowerPoint file"}


def kind_of_binary(head: bytes) -> str:
    """The kind of a binary file by its first bytes; "" if they are not a known signature."""
    kind = next((kind for pattern, kind in _SIGNATURES if re.match(pattern, head, re.DOTALL)), "")
    if kind == "a zip archive":
        return next((name for part, name in _INSIDE_ZIP.items() if part in head), kind)
    return kind


UNPACKED_LIMIT = 1 << 30  # bytes that a compressed file may grow to
_PACKED = {"gzip": "gzip", "bzip2": "bz2", "xz": "lzma"}  # kinds that are decompressed, and the module for each


def _decoded(data: bytes) -> str:
    """Decode UTF-8; invalid bytes are read as Windows-1252, which invalid lines in logs usually are.

    Each byte is decoded by itself, so that a part of a file reads like the same part of the whole.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape")  # in C: an error handler of ours would run for each stray byte
        for byte in range(0x80, 0x100):
            text = text.replace(chr(0xDC00 + byte), bytes([byte]).decode("cp1252", "replace"))
    return text.replace("\r\n", "\n")


def truncate(line: str, limit: int = LINE_LIMIT) -> str:
    return line if len(line) <= limit else f"{line[:limit]} … [a line of {len(line):,} characters or more]"


def lines_that_fit(lines: list[str]) -> int:
    """The number of lines that fit into VIEW_LIMIT."""
    return sum(total <= VIEW_LIMIT for total in itertools.accumulate(len(line) + 1 for line in lines))


_SEARCHER = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 1, SECONDS + 1))
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
except (ImportError, OSError):
    pass
read = sys.stdin.buffer
try:
    find = re.compile(json.loads(read.readline())).search
except (re.error, ArithmeticError, MemoryError, RecursionError) as error:
    sys.exit(print(json.dumps(str(error))))
left = MOST
for row in iter(read.readline, b""):
    path, number, size = json.loads(row)
    for number, line in enumerate(read.read(size).decode().split("\\n"), number):
        try:
            match = find(line)
        except MemoryError:
            sys.exit(3)
        if match:
            start = max(match.start() - LINE // 4, 0) if len(line) > LINE else 0
            print(json.dumps([path, number, line[start:start + LINE]]), flush=True)
            left -= 1
            if not left:
                sys.exit()
"""


_searching = threading.BoundedSemaphore(SEARCHES)


def _grep(
    regex: str, blocks: Iterable[tuple[str, int, bytes]], most: int, seconds: float
) -> tuple[list[tuple[str, int, str]], str]:
    """The first matching lines, and why it stopped early if it did.

    It runs in a process that can be killed: nothing else stops a regex that backtracks without end, and it would hold
    up every other thread.
    """
    import subprocess
    import tempfile

    settings = f"SECONDS, MEMORY, MOST, LINE = {int(seconds)}, {SEARCH_MEMORY}, {most}, {LINE_LIMIT}\n"
    command = [sys.executable, "-I", "-S", "-c", settings + _SEARCHER]
    path = ""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL)
        with child, _if_slow(seconds, child.kill):
            try:
                with contextlib.suppress(BrokenPipeError), typing.cast(typing.BinaryIO, child.stdin) as pipe:
                    pipe.write(json.dumps(regex).encode() + b"\n")
                    for path, number, text in blocks:
                        pipe.write(json.dumps([path, number, len(text)]).encode() + b"\n")
                        pipe.write(text)
                child.wait()
            finally:
                child.kill()
        out.seek(0)
        found = [json.loads(line) for line in out if line.endswith(b"\n")]
    if found and isinstance(found[0], str):
        raise ValueError(f"not a Python regular expression: {regex[:200]!r} ({found[0]})")
    if child.returncode == 3:
        raise ToolError(f"the search took too much memory, in {path!r}: simplify the regex")
    if child.returncode > 0:
        raise ToolError(f"the search failed in {path!r}")
    stopped = f"the search took longer than {seconds:g} s, in {path!r}: simplify the regex or narrow the pattern"
    return [tuple(row) for row in found], stopped if child.returncode < 0 else ""


# --- files that the caller gives as the context --------------------------------------------------------------------


class ContextFiles(typing.NamedTuple):
    """Each file's text (or bytes) by its name, and its path."""

    contents: dict[str, str | bytes]
    paths: list[str]
    named: list[str]  # the names given by the caller, rather than found in a folder or by a glob
    notes: list[str]  # on what was left out or assumed
    single: bool  # one file was named, no folder and no glob
    rereadable: bool  # none is a pipe


Opener = Callable[[], contextlib.AbstractContextManager[typing.BinaryIO]]
_SECRET_PLACES = ("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssl/private", "/run/secrets", "/var/run/secrets")
_DESCRIPTOR = r"/dev/(?:stdin|fd/\d+)|/proc/(?:self|thread-self)/fd/\d+"  # as `<(command)` gives it


def read_context_files(
    specs: Iterable[str],
    cwd: str | None = None,
    *,
    exclude: Iterable[AnyPath] = (),
    keep: Callable[[bytes], bool] = lambda head: False,
    encoding: str | None = None,
    within: str | None = None,
    documents: Documents | None = None,
) -> ContextFiles:
    """Read the files, folders and globs that a caller names, as file_read does; ToolError if one cannot be read.

    A named file or pipe is read if `open_given` permits it. In a folder or a glob, whose links the caller has not seen,
    links to the outside or to credentials are left out. Binary files are left out too, unless `keep(first bytes)` is
    true or the file is the only one named. `exclude`: folders to skip in folders and globs, such as a run's own logs.
    `within`: nothing outside this folder may be read. `documents` reads PDFs and the like as text; a document that it
    cannot read is an error if it was named, otherwise it is left out.
    """
    cwd, specs, exclude = os.path.abspath(cwd or os.getcwd()), list(specs), list(exclude)
    found: dict[str, tuple[str, Opener]] = {}
    named: list[str] = []
    notes: list[str] = []
    for spec in specs:
        path = os.path.join(cwd, os.path.expanduser(spec))
        if _kind_of(path) in ("file", "pipe", "device"):
            named.append(_tidy(os.path.expanduser(spec)))
            opener = functools.partial(open_given, path, cwd, within)
            if documents is not None and _kind_of(path) != "file":
                opener = functools.partial(_read_stream, opener, named[-1], documents)
            found[named[-1]] = path, opener
        else:
            found |= _ContextFolder(spec, cwd, exclude, within).found(notes)
    single = len(named) == len(specs) == 1
    contents: dict[str, str | bytes] = {}
    dropped: list[str] = []
    for name, place in found.items():
        content, note = _read_whole(*place, None if single else keep, encoding, documents, name, name in named)
        if content is None:
            dropped.append(f"{name} ({note})" if note else name)
            continue
        contents[name] = content
        if note:
            notes.append(f"{name}: {note}")
    if dropped:
        files = "1 file that is not text was" if len(dropped) == 1 else f"{len(dropped)} files that are not text were"
        notes.append(f"{files} left out: {join_limited(dropped, ', ', 5)}")
    if len(notes) > 12:
        notes[12:] = [f"and {len(notes) - 12} more notes of this kind"]
    paths = [found[name][0] for name in contents]
    return ContextFiles(contents, paths, named, notes, single, "pipe" not in map(_kind_of, paths))


def _read_stream(opener: Opener, name: str, documents: Documents) -> typing.BinaryIO:
    """What a program writes to a pipe, in memory; a note says what is waited for, since there may be no program."""
    import io

    with (
        documents.waiting(f"waiting for {name}: another program must write to this pipe and close it"),
        opener() as file,
    ):
        return io.BytesIO(file.read())


def read_file(path: str, encoding: str | None = None) -> str | bytes:
    """The text of a regular file, or its bytes if it is not text; ToolError if it cannot be read."""
    if _kind_of(path) != "file":
        raise ToolError(f"there is no file {path} to read")
    return typing.cast("str | bytes", _read_whole(path, lambda: open_given(path), encoding=encoding)[0])


def read_text(path: str, most: int = 10_000_000) -> str:
    """The text of a small file that a caller names, such as a prompt or a schema; OSError or ValueError otherwise."""
    with open_given(os.path.join(os.getcwd(), os.path.expanduser(path))) as file:
        blob = file.read(most + 1)
    if len(blob) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    text = text_of(blob)[0]
    if isinstance(text, bytes):
        raise ValueError("it is not text")
    return text


def open_given(path: str, cwd: str | None = None, within: str | None = None) -> typing.BinaryIO:
    """Open a file that the caller names. PermissionError if it may not be read by that name.

    A link was chosen by whoever made the folder, not by the caller. It is followed only to a regular file whose own
    name and place are not those of credentials, and never into a virtual file system. It is opened without following
    links, so that changing one after the check gains nothing.
    """
    if re.fullmatch(_DESCRIPTOR, path) and within is None:
        descriptor = os.open(path, os.O_RDONLY)
        if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
            return open(descriptor, "rb")
        os.close(descriptor)
    real = os.path.realpath(path)
    if problem := _refusal(path, real, cwd or os.getcwd(), within):
        raise PermissionError(1, f"it {problem}")
    is_pipe = stat.S_ISFIFO(os.stat(real).st_mode) and within is None
    descriptor = os.open(real, os.O_RDONLY) if is_pipe else _open_below(os.sep, real.lstrip(os.sep))
    is_meant = stat.S_ISFIFO if is_pipe else stat.S_ISREG
    if not is_meant(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PermissionError(1, "not a regular file")
    return open(descriptor, "rb")


def _refusal(path: str, real: str, cwd: str, within: str | None, is_folder: bool = False) -> str:
    """Why a path that the caller names, and that is really at `real`, may not be read; "" if it may.

    A file's own name is the caller's word for it, even if it may hold credentials. A link and a folder are not.
    """
    root, linked = os.path.realpath(within or cwd), real != os.path.abspath(path)
    inside = is_under(real, root)
    leads = f"leads to {real}, which " if linked else ""
    if within is not None and not inside:
        return f"lies outside of {within}"
    if _is_kernels(real) or (linked and not inside and is_under(real, "/dev/shm")):
        return f"{leads}is the kernel's"
    if within is None and not linked and not is_folder:
        return ""
    named = relpath(os.path.abspath(path), os.path.abspath(within or cwd))
    if (within is not None or is_folder) and is_secret(named):
        return "may hold credentials"
    secret = is_secret(real if linked and not inside else relpath(real, root))
    if secret or any(is_under(real, os.path.realpath(place)) for place in _SECRET_PLACES):
        return f"{leads}may hold credentials"
    wide = (cwd, os.path.expanduser("~")) if is_folder else ()
    if linked and any(is_under(os.path.realpath(place), real) for place in wide):
        return f"{leads}holds this folder or your home"
    return f"{leads}is not a regular file" if linked and not is_folder and not os.path.isfile(real) else ""


def _read_whole(
    path: str,
    opener: Opener,
    keep: Callable[[bytes], bool] | None = None,
    encoding: str | None = None,
    documents: Documents | None = None,
    name: str = "",
    is_named: bool = True,
) -> tuple[str | bytes | None, str]:
    """A file's text or bytes and a note on it; None for a binary file that is not to be kept, of which usually only the
    head is read."""
    try:
        with opener() as file:
            head = file.read(_HEAD)
            if documents is not None:
                try:
                    if (reader := documents.reader_for(name, head)) is not None:
                        return documents.read(reader, name, head + file.read(DOCUMENT_LIMIT + 1 - len(head)))
                except ToolError as error:
                    if is_named:
                        raise
                    return None, f"{error}; {error.hint}"
            kind = kind_of_binary(head)
            kept = keep is None or keep(head)
            if not (kept or kind in _PACKED or encoding or encoding_of(head)):
                return None, kind
            if file.seekable():  # saves a copy of a large file
                file.seek(0)
                head = b""
            content, note = read_blob(head + file.read(), encoding)
    except OSError as error:
        by_name = isinstance(error, PermissionError) and "kernel" not in str(error)
        hint = "give it by its own name, if that is meant" if by_name else ""
        raise ToolError(f"cannot read {path}: {error.strerror or error}", hint=hint) from error
    except MemoryError:
        raise ToolError(f"{path} does not fit into memory", hint="give a part of it") from None
    return (content, note) if kept or isinstance(content, str) else (None, kind)


def read_piped(blob: bytes, documents: Documents, encoding: str | None = None) -> tuple[str | bytes, str]:
    """The text (or bytes) of piped input, which may be a document, and a note on it."""
    if (reader := documents.reader_for("stdin", blob[:_HEAD])) is not None:
        return documents.read(reader, "stdin", blob)
    return read_blob(blob, encoding)


def read_blob(blob: bytes, encoding: str | None = None) -> tuple[str | bytes, str]:
    """The text in a file's bytes, decompressed if need be, and a note on it; the bytes themselves if it is not text."""
    kind, content, note, size = kind_of_binary(blob[:_HEAD]), blob, "", f"given as {len(blob):,} bytes"
    if kind in _PACKED:
        import importlib
        import io

        try:
            with importlib.import_module(_PACKED[kind]).open(io.BytesIO(blob)) as file:
                content, note = bytes(file.read(UNPACKED_LIMIT + 1)), "decompressed"
        except Exception as error:  # each of the three modules raises its own errors, and EOFError
            return blob, f"{size}: it cannot be decompressed ({error})"
        if len(content) > UNPACKED_LIMIT:
            return blob, f"{size}: it is more than {UNPACKED_LIMIT >> 30} GB when decompressed"
    text, assumed = text_of(content, encoding)
    if isinstance(text, str):
        return text, "; ".join(filter(None, [note, assumed]))
    return blob, "" if kind == "an image" else f"not text{f' but {kind}' if kind else ''}: {size}"


class _ContextFolder(_Files):
    """A folder that a caller names, or the one in which the caller's glob begins."""

    def __init__(self, spec: str, cwd: str, exclude: Iterable[AnyPath], within: str | None = None) -> None:
        self.spec = spec
        self.prefix, self.pattern = _split_glob(os.path.expanduser(spec).replace(os.sep, "/"), cwd)
        if not spec or not os.path.isdir(os.path.join(cwd, self.prefix)):
            raise self.nothing("was not found")
        super().__init__([self.prefix], cwd, exclude)
        self.links_out = 0
        self.within = within

    def nothing(self, problem: str) -> ToolError:
        hint = "give a file, a folder or a quoted glob: -c 'src/**/*.py'"
        return ToolError(f"context {self.spec!r} {problem}", hint=hint)

    def found(self, notes: list[str]) -> dict[str, tuple[str, Opener]]:
        """Path and opener of each file by the name that the caller would write. As in a shell, `*` does not match names
        that begin with a dot."""
        top = self.roots[0]
        if problem := _refusal(os.path.join(self.cwd, self.prefix), top, self.cwd, self.within, is_folder=True):
            raise self.nothing(f"{problem} and is not read")
        try:
            if len(self.pattern) > PATTERN_LIMIT:
                raise ValueError(f"longer than {PATTERN_LIMIT:,} characters")
            globs = _globs(self.pattern or "**")
        except ValueError as error:
            raise self.nothing(f"cannot be used: {error}") from None
        hidden = not self.pattern or re.search(r"(^|[/{,])\.", self.pattern)
        found: dict[str, tuple[str, Opener]] = {}
        for path in self.walked(top, SKIPPED.difference(self.pattern.split("/")), float("inf")):
            names = _below(path, top).split(os.sep)
            if any(_matches(glob, names) for glob in globs) and (hidden or not any(n[0] == "." for n in names)):
                found[_tidy(self.prefix + "/".join(names))] = path, functools.partial(self.opened, path)
        if self.links_out:
            notes.append(f"{self.links_out} links that lead out of {top} or to credentials were left out")
        if not found:
            raise self.nothing("holds no file to read" if self.links_out or not self.pattern else "was not found")
        return {name: found[name] for name in sorted(found)}

    def unreadable(self, path: str, error: OSError) -> None:
        raise ToolError(f"cannot read the folder {path}: {error.strerror}")

    def leads_in(self, link: str) -> bool:
        inside = super().leads_in(link)
        self.links_out += not inside and os.path.isfile(link)
        return inside


def _kind_of(path: str) -> str:
    """ "file", "pipe" or "device"; "" for a folder or if nothing is there."""
    with contextlib.suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        named = {stat.S_IFREG: "file", stat.S_IFIFO: "pipe", stat.S_IFDIR: ""}
        return named.get(stat.S_IFMT(mode), "device")
    return ""


def _tidy(name: str) -> str:
    return os.path.normpath(name).replace(os.sep, "/")


def relpath(path: str, start: str) -> str:
    try:
        return os.path.relpath(path, start)
    except ValueError:  # on another drive
        return path


# --- readers: documents and web pages as text -------------------------------------------------------------------------

READER_SECONDS = 600.0  # for one document, and for all slow documents of a call together
_READER_LEAST = 10.0  # seconds that each document has, however long those before it took
READER_MEMORY = 2 << 30  # bytes of a reader's process
READER_TEXT = 200_000_000  # characters that a reader may make of a document
DOCUMENT_LIMIT = 500_000_000  # bytes of a document
_DOCUMENTS = {
    ".pdf": "a PDF",
    ".docx": "a Word document",
    ".xlsx": "an Excel workbook",
    ".pptx": "a PowerPoint file",
    ".epub": "an EPUB",
}
_SLOW_SECONDS = 2.0
_INSTALL_DOCS = "pip install 'flat-rlm[docs]'"


class Reader(typing.NamedTuple):
    """Converts files with some suffixes or first bytes to text."""

    label: str  # for messages and the journal: "markitdown 0.1.9"
    target: str  # module:name of a function from path to text, called in a child process
    suffixes: tuple[str, ...] = ()
    signatures: tuple[bytes, ...] = ()

    def takes(self, name: str, head: bytes) -> bool:
        return name.lower().endswith(self.suffixes) or head.startswith(self.signatures)


def entry_point_readers() -> list[Reader]:
    """The readers of installed packages that name some in the entry-point group `rlm.readers`."""
    readers = []
    for point in _entry_points("rlm.readers"):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        function = _imported(f"{package} (reader {point.name!r})", point.load)
        suffixes, signatures = (tuple(getattr(function, name, ())) for name in ("suffixes", "signatures"))
        typed = all(isinstance(s, str) for s in suffixes) and all(isinstance(s, bytes) for s in signatures)
        if not callable(function) or not (suffixes or signatures) or not typed or not all((*suffixes, *signatures)):
            hint = 'a function of a path, with read.suffixes = [".rtf"] or read.signatures = [b"{\\\\rtf"]'
            raise ToolError(f"reader {point.name!r} of {package} is none", hint=hint)
        lower = tuple(suffix.lower() for suffix in suffixes)
        readers.append(Reader(f"{point.name} ({package})", point.value.split("[")[0].strip(), lower, signatures))
    return readers


def read_with_markitdown(path: str) -> str:
    """A document converted to Markdown by markitdown."""
    from markitdown import MarkItDown, StreamInfo, converters

    suffix = os.path.splitext(path)[1]
    converter = MarkItDown(enable_builtins=False)  # it would unpack any archive
    converter.register_converter(getattr(converters, f"{suffix[1:].capitalize()}Converter")())
    known = StreamInfo(charset="utf-8") if suffix == ".html" else None
    return str(converter.convert_local(path, stream_info=known).text_content)


def _markitdown(suffix: str) -> Reader | None:
    """The built-in reader if its package is installed; the package is not imported."""
    import importlib.metadata
    import importlib.util

    if importlib.util.find_spec("markitdown") is None:
        return None
    label = "markitdown"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        label += f" {importlib.metadata.version('markitdown')}"
    return Reader(label, f"{__name__}:{read_with_markitdown.__name__}", (suffix,))


def _no_text_hint(path: str) -> str:
    suffix = os.path.splitext(path)[1]
    if suffix == ".html":
        return "if a script fills the page in, save it from a browser: -c FILE"
    return "if it was scanned, run OCR on it first" if suffix in (".pdf", ".docx", ".pptx") else "is it the right file?"


def document_suffix(name: str, head: bytes) -> str:
    """The suffix (`.pdf`, …) of a document that markitdown reads, by its name and first bytes; "" for other files.

    ToolError if the bytes contradict the name.
    """
    suffix, kind = os.path.splitext(name)[1].lower(), kind_of_binary(head)
    if kind == "a PDF":
        return ".pdf"
    if not suffix:
        return next((known for known, named in _DOCUMENTS.items() if named == kind), "")
    if suffix not in _DOCUMENTS or (suffix != ".pdf" and head.startswith(b"PK\3\4")):
        return suffix if suffix in _DOCUMENTS else ""
    if kind == "an Office file":
        raise ToolError(f"{name} is encrypted, or in an older format", hint=f"save it without a password, as {suffix}")
    known = kind or ("text" if encoding_of(head) else "")
    found = f"its bytes are those of {known}" if known else "its bytes are of no known kind"
    found = found if head else "it is empty"
    raise ToolError(f"{name} is not {_DOCUMENTS[suffix]}: {found}", hint="give the right file, or the right suffix")


class Documents:
    """Reads documents as text in a child process, so that one that crashes it, hangs or fills memory harms only itself.

    The process has none of the user's environment variables. It is started for the first document, and again after a
    document has ended it. `records`: what was read, for the journal. `on_slow` is called after two seconds of waiting.
    """

    def __init__(self, on_slow: Callable[[str], None] | None = None) -> None:
        self.records: list[dict[str, object]] = []
        self._on_slow = on_slow
        self._plugins: list[Reader] = []
        self._process: Any = None
        self._folder: Any = None
        self._left = READER_SECONDS  # for what takes longer than _READER_LEAST

    def __enter__(self) -> Documents:
        self._plugins = entry_point_readers()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()

    def reader_for(self, name: str, head: bytes) -> Reader | None:
        """The reader for a file; None if it is read as text or bytes. ToolError if the reader is not installed."""
        if plugin := next((plugin for plugin in self._plugins if plugin.takes(name, head)), None):
            return plugin
        if not (suffix := document_suffix(name, head)):
            return None
        if (reader := _markitdown(suffix)) is None:
            raise ToolError(f"{name} is {_DOCUMENTS[suffix]}, which needs markitdown", hint=_INSTALL_DOCS)
        return reader

    def read(self, reader: Reader, name: str, blob: bytes, **about: object) -> tuple[str, str]:
        """A document's text, and a note on its reader. `about`: further fields of its record."""
        if len(blob) > DOCUMENT_LIMIT:
            raise ToolError(
                f"{name} is larger than {DOCUMENT_LIMIT // 1_000_000} MB", hint="give it in parts, or as text"
            )
        path = self._copy(name, reader, blob)
        try:
            with self.waiting(f"{reader.label} is reading {name} ({len(blob):,} bytes)"):
                text = self._converted(reader, path, name)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
        text = text.replace("\r\n", "\n").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not text.strip():
            raise ToolError(f"{reader.label} found no text in {name}", hint=_no_text_hint(path))
        self.record(name, blob, reader=reader.label, characters=len(text), **about)
        return text, f"read by {reader.label} into {len(text):,} characters"

    def record(self, name: str, blob: bytes, **about: object) -> None:
        import hashlib

        digest = hashlib.sha256(blob).hexdigest()
        self.records.append({"name": name, "bytes": len(blob), "sha256": digest, **about})

    def waiting(self, text: str) -> contextlib.AbstractContextManager[None]:
        """Call `on_slow` with the text if the block takes long."""
        return _if_slow(_SLOW_SECONDS, lambda: self._on_slow and self._on_slow(text))

    def _copy(self, name: str, reader: Reader, blob: bytes) -> str:
        """A private copy: a pipe or a page has no path, and the file may change after it was checked."""
        import tempfile

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="rlm-")
        suffix = os.path.splitext(name)[1].lower()
        suffix = suffix if not reader.suffixes or suffix in reader.suffixes else reader.suffixes[0]
        path = os.path.join(self._folder.name, f"document{suffix if re.fullmatch(r'[.][a-z0-9]+', suffix) else ''}")
        with open(path, "wb") as file:
            file.write(blob)
        return path

    def _converted(self, reader: Reader, path: str, name: str) -> str:
        hint = "save it in another format, or as text"
        started, seconds = time.monotonic(), min(READER_SECONDS, max(_READER_LEAST, self._left))
        try:
            reply = _on_thread(lambda: self._ask({"target": reader.target, "path": path}), seconds)
        except TimeoutError:
            self._stop()
            message = f"{reader.label} took longer than {seconds:.3g} s over {name}"
            if seconds < READER_SECONDS:
                message += f", what the documents before it left of {READER_SECONDS:g} s"
                hint = f"give it alone, {hint}"
            raise ToolError(message, hint=hint) from None
        except (OSError, ValueError):
            status = self._stop()
            raise ToolError(f"{reader.label} crashed over {name} (exit code {status})", hint=hint) from None
        finally:
            self._left -= max(0.0, time.monotonic() - started - _READER_LEAST)
        if isinstance(text := reply.get("text"), str):
            return text
        kind, message = str(reply.get("error")), " ".join(str(reply.get("message")).replace(path, name).split())
        message = message.rpartition("with message: ")[2]  # which markitdown appends to its own
        if kind == "MemoryError" or re.search("MemoryError|[Uu]nable to allocate", message):
            raise ToolError(f"{reader.label} needs more than {READER_MEMORY >> 30} GB for {name}", hint=hint)
        if re.search(r"(?i)password|encrypted", message):
            raise ToolError(f"{name} is encrypted", hint="save it without a password")
        raise ToolError(f"{reader.label} cannot read {name}: {kind}: {message[:300]}", hint=hint)

    def _ask(self, question: dict[str, str]) -> dict[str, object]:
        process = self._process = self._process or self._started()
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        reply = from_json(process.stdout.readline(6 * READER_TEXT + 1000))
        if not isinstance(reply, dict):
            raise ValueError("not a reply")
        return reply

    def _started(self) -> Any:
        import subprocess

        home = self._folder.name
        kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
        environ = {name: os.environ[name] for name in kept if name in os.environ}
        # Each thread would reserve address space.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        places = json.dumps([os.path.abspath(place) for place in sys.path])
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _READER_PROGRAM, places, __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env={**environ, **threads, "HOME": home, "TMPDIR": home},
            start_new_session=True,
        )

    def _stop(self) -> int | None:
        """End the process; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(OSError), _if_slow(0.2, process.kill), process:
            process.stdin.close()  # which ends it, unless it is at work
        return int(process.returncode)


_READER_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import importlib; "
    "importlib.import_module(sys.argv[2]).serve_readers()"
)


def serve_readers() -> None:
    """The loop of a reader's process: lines {target, path} in, {text} or {error, message} out."""
    import importlib

    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):  # a reader's output must not mix with replies
        os.dup2(null, number)
    for line in questions:
        question = json.loads(line)
        try:
            _limit_process()
            module, _, name = question["target"].partition(":")
            function: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
            text = function(question["path"])
            if not isinstance(text, str):
                raise TypeError(f"it returned {type(text).__name__}, not str")
            if len(text) > READER_TEXT:
                raise ValueError(f"the text has more than {READER_TEXT:,} characters")
            reply = json.dumps({"text": text})
        except BaseException as error:  # a reader may raise anything, SystemExit too
            reply = json.dumps({"error": type(error).__name__, "message": str(error)[:2000]})
        replies.write(reply.encode() + b"\n")
        replies.flush()


def _limit_process() -> None:
    """Limit this process's memory, and its CPU time, which ends it if its parent is gone."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    seconds = int(time.process_time() + READER_SECONDS) + 10
    limits = ((resource.RLIMIT_AS, READER_MEMORY), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0))
    for what, limit in limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (limit, resource.getrlimit(what)[1]))


# - pages that -c https://… names

FETCH_LIMIT = 100_000_000  # bytes
FETCH_SECONDS = 120.0
FETCH_REDIRECTS = 5
_SUFFIX_OF_TYPE = {
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/epub+zip": ".epub",
    "text/html": ".html",
    "application/xhtml+xml": ".html",
}


class Fetched(typing.NamedTuple):
    """The response to a fetch."""

    body: bytes
    type: str  # "text/html"
    charset: str | None
    addresses: list[str]  # without logins: the requested one, then each redirect


def is_url(spec: str) -> bool:
    """Whether a context is a web address; ToolError for an address of another kind."""
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", spec, re.IGNORECASE)
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise ToolError(f"context {redact_url(spec)!r}: only http and https are fetched", hint="download it: -c FILE")
    return scheme is not None


def redact_url(url: str) -> str:
    """The address without its login and without the keys in its query."""
    url = re.sub(r"//[^/?#]*@", "//", url)
    return re.sub(r"(?i)([?&][^=&#]*(?:key|token|sig|secret|pass|auth|credential)[^=&#]*=)[^&#]+", r"\1[redacted]", url)


def read_url(url: str, documents: Documents, encoding: str | None = None) -> tuple[str | bytes, list[str]]:
    """The content of a web address, as text if possible, and notes on it; it is recorded among the documents."""
    with documents.waiting(f"fetching {redact_url(url)}"):
        fetched = fetch(url)
    name, notes = fetched.addresses[0], [f"redirected to {to}" for to in fetched.addresses[1:]]
    about = {"url": name, "type": fetched.type, "redirects": fetched.addresses[1:]}
    base = fetched.addresses[-1].split("?")[0].split("#")[0].rstrip("/")
    suffix, blob = _SUFFIX_OF_TYPE.get(fetched.type, ""), fetched.body
    is_html = suffix == ".html"
    if is_html:
        charset = encoding or fetched.charset or _meta_charset(blob)
        blob = str(text_of(blob, charset or None)[0]).encode() if charset or encoding_of(blob[:_HEAD]) else blob
        encoding = "utf-8"
    reader = documents.reader_for(base if base.endswith(suffix) else base + suffix, blob[:_HEAD])
    if (reader := reader or (_markitdown(".html") if is_html else None)) is not None:
        text, note = documents.read(reader, name, blob, **about)
        return text, [*notes, note]
    textual = re.match(r"text/|application/.*(?:json|xml|javascript|yaml|csv)", fetched.type)
    content, note = read_blob(blob, encoding or (fetched.charset if textual else None))
    documents.record(name, fetched.body, reader=None, **about)
    if is_html:
        notes.append(f"the page's HTML ({_INSTALL_DOCS} gives it as Markdown)")
    return content, [*notes, *([note] if note else [])]


def _meta_charset(page: bytes) -> str | None:
    found = re.search(rb"<meta[^>]{0,200}charset=[\"']?([\w-]{1,40})", page[:4096], re.IGNORECASE)
    return _known_charset(found[1].decode("ascii", "replace")) if found else None


# Python's text encodings that no text is in: they take quadratic time, fail for any input or read escapes.
NO_ENCODINGS = frozenset({"punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape"})  # and rlm_config's


def _known_charset(name: str | None) -> str | None:
    """The charset if Python knows it; ISO-8859-1 is read as Windows-1252, as browsers do."""
    import codecs

    try:
        found = codecs.lookup(name or "")
    except (LookupError, ValueError):
        return None
    if not found._is_text_encoding or found.name in NO_ENCODINGS:
        return None
    return "cp1252" if found.name == "iso8859-1" else found.name


def fetch(url: str) -> Fetched:
    """GET a web address, following up to five redirects, without login, cookies or keys. ToolError if that fails.

    The address may be on this machine or the local network; a redirect from a public address may not lead there.
    """
    try:
        return _on_thread(lambda: _fetch(url), FETCH_SECONDS)
    except TimeoutError:
        raise ToolError(
            f"{redact_url(url)} took longer than {FETCH_SECONDS:g} s", hint="download it: -c FILE"
        ) from None


def _fetch(url: str) -> Fetched:
    import http.client
    from urllib.parse import urljoin

    addresses: list[str] = []
    peers = _Peers()
    deadline = time.monotonic() + FETCH_SECONDS
    while len(addresses) <= FETCH_REDIRECTS:
        addresses.append(redact_url(url))
        try:
            with peers.get(url) as response:
                if not (300 <= response.status < 400 and response.headers.get("Location")):
                    return _fetched(response, addresses, deadline)
                url = urljoin(url, response.headers["Location"])
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            reason = getattr(reason, "strerror", None) or reason
            way = f" (redirected from {addresses[0]})" if addresses[1:] else ""
            hint = "check the address, or download it: -c FILE"
            raise ToolError(f"cannot fetch {addresses[-1]}{way}: {reason}", hint=hint) from None
    hint = f"give the address it leads to: {redact_url(url)}"
    raise ToolError(f"{addresses[0]} redirects more than {FETCH_REDIRECTS} times", hint=hint)


def _fetched(response: Any, addresses: list[str], deadline: float) -> Fetched:
    if response.status != 200:
        login = response.status in (401, 403)
        hint = "it may want a login, and none is sent: download it, -c FILE" if login else "check the address"
        raise ToolError(f"{addresses[-1]} answered {response.status} {response.reason}", hint=hint)
    body = _body(response, addresses[-1], deadline)
    headers = response.headers
    return Fetched(body, headers.get_content_type(), _known_charset(headers.get_content_charset()), addresses)


def _body(response: Any, address: str, deadline: float) -> bytes:
    """The response's body, decompressed, within the limits on its size and time."""
    import zlib

    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    unpack = zlib.decompressobj(47) if coding in ("gzip", "x-gzip", "deflate") else None
    if unpack is None and coding not in ("", "identity"):
        raise ValueError(f"its encoding is {coding[:40]!r}")
    too_large = ToolError(f"{address} is larger than {FETCH_LIMIT // 1_000_000} MB", hint="download it: -c FILE")
    if (response.length or 0) > FETCH_LIMIT:
        raise too_large
    body = bytearray()
    while piece := response.read1(1 << 16):
        try:
            body += unpack.decompress(piece, FETCH_LIMIT + 1 - len(body)) if unpack else piece
        except zlib.error as error:
            raise ValueError(f"it cannot be decompressed ({error})") from None
        if len(body) > FETCH_LIMIT:
            raise too_large
        if time.monotonic() > deadline:
            raise TimeoutError("it took too long")
    if response.length or (unpack and not unpack.eof):
        raise ValueError("it was cut off")
    return bytes(body)


class _Peers:
    """Remembers whether a fetch has contacted a public address; after that, private addresses are refused."""

    def __init__(self) -> None:
        self.was_public = False

    def judge(self, address: str) -> None:
        if self.was_public and not _is_public(address):
            raise PermissionError(1, f"a public address redirects to {address}, which is private: not followed")
        self.was_public = self.was_public or _is_public(address)

    def get(self, url: str) -> Any:
        """The unread response to a GET, whatever its status."""
        import urllib.request
        from urllib.parse import quote, urlsplit

        parts = urlsplit(url)
        if not (is_url(url) and parts.hostname):
            raise ValueError("it names no host")
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
        place = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else "")
        below = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="/%:=&~+!$,;'@()*?[]")
        proxies = {} if host in ("localhost", "127.0.0.1", "::1") else urllib.request.getproxies()
        proxied = parts.scheme in proxies and not urllib.request.proxy_bypass(host)
        for address in _addresses(host) if proxied else ():
            self.judge(address)

        class Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
            def do_open(handler, http_class: Any, *request: Any, **how: Any) -> Any:
                class Connection(http_class):  # type: ignore[misc]
                    def connect(connection) -> None:
                        super().connect()
                        if not proxied:
                            self.judge(connection.sock.getpeername()[0])

                return super().do_open(Connection, *request, **how)

        opener = urllib.request.OpenerDirector()  # without handlers for redirects, errors, cookies, logins and files
        for handler in (urllib.request.ProxyHandler(proxies), Handler(context=_tls())):
            opener.add_handler(handler)
        headers = {"User-Agent": "flat-rlm", "Accept": "*/*", "Accept-Encoding": "identity"}
        return opener.open(urllib.request.Request(f"{parts.scheme}://{place}{below}", headers=headers), timeout=20)


def _is_public(address: str) -> bool:
    import ipaddress

    parsed = ipaddress.ip_address(address.split("%")[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_global


def _addresses(host: str) -> list[str]:
    """The addresses of a host; none if this machine cannot resolve it, as may be the case behind a proxy."""
    import socket

    with contextlib.suppress(OSError):
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
    return []


def _tls() -> Any:
    """A TLS context with the authorities of the system and certifi, or those in REQUESTS_CA_BUNDLE or SSL_CERT_FILE."""
    import ssl

    own = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    context = ssl.create_default_context(cafile=own if own and os.path.isfile(own) else None)
    with contextlib.suppress(ImportError):
        import certifi

        if not own:
            context.load_verify_locations(certifi.where())
    return context


# --- JSON from outside: the same lines in each module that stands alone -------------------------------------------

JSON_VALUES = 300_000  # of one text: a list takes two characters of it, and up to a hundred bytes of memory
JSON_DEPTH = 100
JSON_DIGITS = 4_300  # of an integer: a longer one cannot be printed


def from_json(
    data: str | bytes | bytearray,
    *,
    values: int = JSON_VALUES,
    depth: int = JSON_DEPTH,
    strict: bool = True,
    constant: Callable[[str], Any] | None = None,
) -> Any:
    """What JSON (bytes are UTF-8) says; ValueError if it is none, or has more values, levels or digits than it may.

    `strict=False` takes raw line breaks in strings; `constant` makes something of NaN and Infinity, which are refused.
    """
    if len(data) > values and _count_json(data, values) > values:
        raise ValueError(f"more than {values:,} values")
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        value = json.loads(text, strict=strict, parse_int=_json_int, parse_constant=constant or _no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(value, depth)
    return value


def check_depth(value: Any, depth: int = JSON_DEPTH) -> None:
    """ValueError for a list or an object with more levels than that."""
    level = [value]
    for _ in range(depth + 1):
        inner = [item.values() if type(item) is dict else item for item in level if type(item) in (dict, list)]
        if not inner:
            return
        level = [item for items in inner for item in items]
    raise ValueError(f"nested more than {depth} deep")


def _count_json(data: str | bytes | bytearray, enough: int) -> int:
    """At least how many values there are, not counted much beyond `enough`."""
    count = sum(map(data.count, ",[{" if isinstance(data, str) else (b",", b"[", b"{")))  # type: ignore[arg-type]
    if count <= enough:
        return count
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    count, quoted, rest = 0, False, b""
    for start in range(0, len(data), 1 << 16):
        piece = rest + data[start : start + (1 << 16)]
        rest = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""  # it may escape the next piece's first
        piece = piece[: len(piece) - len(rest)].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.translate(None, _NO_JSON_MARKS).split(b'"')
        count += sum(map(len, parts[quoted::2]))
        quoted ^= len(parts) % 2 == 0
        if count > enough:
            break
    return count


_NO_JSON_MARKS = bytes(set(range(256)) - set(b'",[{'))


def _json_int(text: str) -> int:
    if len(text) > JSON_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# --- Snipara: context retrieval over HTTP -----------------------------------------------------------------------------

SNIPARA_URL = "https://api.snipara.com/mcp"
SNIPARA_LOGIN_URL = "https://www.snipara.com"
_READ_LINES = 200  # the limit of Snipara's own clients
_MEMORY_KINDS = '"fact" | "decision" | "learning" | "preference" | "todo" | "context"'
_SCOPES = '"agent" | "project" | "team" | "user"'
_SNIPARA_TOOLS = {
    "context_query(query: string, max_tokens: integer = 2000, "
    'search_mode: "keyword" | "semantic" | "hybrid" = "hybrid", '
    "prefer_summaries: boolean = false, include_metadata: boolean = true)": (
        "Sections of the project's documentation that bear on a question, most relevant first"
    ),
    "search(pattern: string, max_results: integer = 20)": "Lines of the project's documentation that match a regex",
    "sections(filter: string = null, limit: integer = 20, offset: integer = 0)": "The documentation's sections",
    "read(start_line: integer, end_line: integer)": f"Lines of the documentation, at most {_READ_LINES} at once",
    'shared_context(categories: array of "MANDATORY" | "BEST_PRACTICES" | "GUIDELINES" | "REFERENCE" = null, '
    "max_tokens: integer = 2000, include_content: boolean = true)": "The team's shared rules and guidelines",
}
_SNIPARA_MEMORY_TOOLS = {
    f'remember(content: string, type: {_MEMORY_KINDS} = "fact", scope: {_SCOPES} = "project", category: string = null, '
    "ttl_days: integer = null, related_to: array of string = null, document_refs: array of string = null)": (
        "Keep something for later sessions"
    ),
    f"recall(query: string, limit: integer = 5, min_relevance: number = 0.5, type: {_MEMORY_KINDS} = null, "
    f"scope: {_SCOPES} = null, category: string = null)": "What was remembered that bears on a question",
    f"memories(type: {_MEMORY_KINDS} = null, scope: {_SCOPES} = null, category: string = null, search: string = null, "
    "limit: integer = 20, offset: integer = 0)": "List what was remembered",
    f"forget(memory_id: string = null, type: {_MEMORY_KINDS} = null, category: string = null, "
    "older_than_days: integer = null)": "Delete what was remembered: one memory, or all of a type, category or age",
}

Post = Callable[..., tuple[int, Mapping[str, str], bytes]]


def snipara_tools(
    api_key: str | None, slug: str | None, url: str | None, memory_enabled: bool, post: Post
) -> list[Tool]:
    """Snipara's tools for a project, if there is a key, or a login for the same project in `~/.snipara/tokens.json`.

    `post(url, json=, headers=, timeout=)` sends the requests, retries included, and returns status, headers and body.
    """
    if not slug:
        return []
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", slug):
        raise ToolError(f"not a snipara project slug: {slug!r}")
    api_key = (api_key or "").strip()
    if not re.fullmatch(r"[!-~]*", api_key):
        raise ToolError("the snipara key holds characters that no key has", hint="copy it again")
    login = None if api_key else _login_for(slug, url, post)
    if not api_key and not login:
        return []
    client = _Snipara(post, (url or SNIPARA_URL).rstrip("/"), slug, api_key, login)
    offered = {**_SNIPARA_TOOLS, **(_SNIPARA_MEMORY_TOOLS if memory_enabled else {})}
    return [client.tool(line, about) for line, about in offered.items()]


class _Snipara:
    """One project at one address, by JSON-RPC, or by REST if the address ends in /v1 or /api/mcp."""

    def __init__(self, post: Post, base: str, slug: str, key: str, login: _Login | None) -> None:
        self.post, self.key, self.login = post, key, login
        self.rest = base.endswith(("/api/mcp", "/v1"))
        self.url = f"{base}/{slug}/mcp" if base.endswith("/v1") else f"{base}/{slug}"
        self.older_url = f"{base.removesuffix('/v1')}/api/mcp/{slug}" if base.endswith("/v1") else ""

    def tool(self, line: str, description: str) -> Tool:
        name = line.partition("(")[0]

        def handler(**arguments: Any) -> object:
            return self.call(name, arguments)

        return from_signature(line, description, handler, lambda **given: _snipara_text(handler(**given)), "snipara")

    def call(self, name: str, arguments: dict[str, Any]) -> object:
        """The result of the server's tool as data; a ToolError with the server's message if anything fails."""
        if name == "read":
            arguments = {**arguments, "end_line": min(arguments["end_line"], arguments["start_line"] + _READ_LINES - 1)}
        arguments = {key: value for key, value in arguments.items() if value is not None}
        status, body = self.send(self.url, name, arguments)
        if status == 404 and self.older_url:
            status, body = self.send(self.older_url, name, arguments)
        try:
            return self.result(status, body)
        except ToolError as error:
            hint = "run snipara-mcp-login again" if self.login else "check the snipara key and project"
            raise ToolError(
                f"snipara {name}: {self.masked(str(error))}", hint=hint if status in (401, 403) else ""
            ) from None

    def send(self, url: str, name: str, arguments: dict[str, object]) -> tuple[int, bytes]:
        body: dict[str, object] = {"tool": f"rlm_{name}", "params": arguments}
        if not self.rest:
            params = {"name": f"rlm_{name}", "arguments": arguments}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        if self.login is None:
            return self.send_with({"X-API-Key": self.key}, url, body)
        token = self.login.token()
        if not token:
            raise ToolError("the snipara login has expired", hint="run snipara-mcp-login again")
        status, body_text = self.send_with({"Authorization": f"Bearer {token}"}, url, body)
        if status == 401 and (token := self.login.token(refused=token)):
            status, body_text = self.send_with({"Authorization": f"Bearer {token}"}, url, body)
        return status, body_text

    def send_with(self, headers: dict[str, str], url: str, body: dict[str, object]) -> tuple[int, bytes]:
        try:
            status, _, body_text = self.post(url, json=body, headers=headers, timeout=30)
        except (RuntimeError, ValueError) as error:
            raise ToolError(f"snipara cannot be reached: {self.masked(str(error))}") from error
        return status, body_text

    def masked(self, text: str) -> str:
        for secret in (self.key, *(self.login.secrets() if self.login else ())):
            text = text.replace(secret, "[redacted]") if secret else text
        return text

    def result(self, status: int, body: bytes) -> object:
        """The data in a reply of either protocol."""
        text = body.decode("utf-8", "replace")
        try:
            reply = from_json(text)
        except ValueError:
            reply = None
        if status >= 300:
            raise ToolError(f"the server answered {status}: {error_message(reply or text) or 'no reason given'}")
        if not isinstance(reply, dict):
            raise ToolError(f"the server answered {status} with what is not a JSON object: {text[:200]!r}")
        if (error := reply.get("error") or reply.get("detail")) or reply.get("success") is False:
            raise ToolError(f"the server answered: {error_message(error) or 'no reason given'}")
        if "result" not in reply:
            raise ToolError(f"the server answered {status} with neither a result nor an error: {text[:200]!r}")
        return reply["result"] if self.rest else _content(reply["result"])


def error_message(error: object) -> str:
    """The message in an error reply, whichever field holds it."""
    if isinstance(error, dict):
        message = next((error[key] for key in ("message", "detail", "error", "msg") if error.get(key)), None)
        code = f" (code {error['code']})" if "code" in error and message else ""
        return error_message(message) + code if message else json.dumps(error)[:300]
    if isinstance(error, list):
        return "; ".join(map(error_message, error))
    return str(error or "")[:300]


def _content(result: object) -> object:
    """The data in an MCP tool result: its text blocks, parsed as JSON if they all are."""
    if not isinstance(result, dict) or not isinstance(result.get("content"), list):
        return result
    texts = [str(block.get("text", "")) for block in result["content"] if isinstance(block, dict) and "text" in block]
    if result.get("isError"):
        raise ToolError(f"the tool failed: {' '.join(texts) or 'no reason given'}")
    if not texts and "structuredContent" in result:
        return result["structuredContent"]
    try:
        values = [from_json(text) for text in texts]
    except ValueError:
        return "\n".join(texts)
    return values[0] if len(values) == 1 else values


def _snipara_text(data: object) -> str:
    """A result for the model: the text of documents verbatim, everything else as JSON."""
    if not isinstance(data, dict):
        return render(data)
    sections = data.get("sections")
    if isinstance(sections, list) and all(isinstance(part, dict) and "content" in part for part in sections):
        about = {key: value for key, value in data.items() if key != "sections" and value not in (None, [], False)}
        heads = [render({key: value for key, value in part.items() if key != "content"}) for part in sections]
        return "\n\n".join([*(f"{head}\n{part['content']}" for head, part in zip(heads, sections)), render(about)])
    return str(data["content"]) if "total_lines" in data and "content" in data else render(data)


class _Login:
    """The OAuth login of one project, as stored by snipara-mcp-login; an expired token is renewed."""

    def __init__(self, path: str, project: str, url: str, post: Post) -> None:
        self.path, self.project, self.url, self.post = path, project, url, post
        self.entry = _stored_logins(path)[project]
        self.lock = threading.Lock()

    def token(self, refused: str = "") -> str:
        """The token at hand, one that another process has stored, or a new one; "" if all are expired or refused."""
        with self.lock:
            sources: list[Callable[[], dict[str, Any]]] = [lambda: self.entry, self.stored, self.renewed]
            for entry_from in sources:
                self.entry = entry_from()
                token = str(self.entry.get("access_token") or "")
                if token not in ("", refused) and not self.expired():
                    return token
        return ""

    def expired(self) -> bool:
        """Whether the time has passed; if it is unknown or in another zone than UTC, the server will tell."""
        from calendar import timegm

        try:
            return timegm(time.strptime(str(self.entry.get("expires_at"))[:19], "%Y-%m-%dT%H:%M:%S")) < time.time()
        except ValueError:
            return False

    def secrets(self) -> list[str]:
        return [str(self.entry.get(name) or "") for name in ("access_token", "refresh_token", "api_key")]

    def stored(self) -> dict[str, Any]:
        return _stored_logins(self.path).get(self.project, self.entry)

    def renewed(self) -> dict[str, Any]:
        """The entry with a new token from the server, stored because the old refresh token may be void now."""
        body = {"grant_type": "refresh_token", "refresh_token": self.entry.get("refresh_token")}
        if not body["refresh_token"]:
            return self.entry
        try:
            status, _, body_text = self.post(self.url, json=body, headers={}, timeout=30)
            reply = from_json(body_text) if status < 300 else {}
            new = {"access_token": str(reply["access_token"])}
            end = time.gmtime(time.time() + float(reply.get("expires_in") or 3600))
        except (RuntimeError, ValueError, KeyError, TypeError):
            return self.entry  # the caller says that the login has expired
        new["expires_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", end)
        new["refresh_token"] = reply.get("refresh_token") or self.entry["refresh_token"]
        entry = {**self.entry, **new}
        draft = f"{self.path}.{os.getpid()}"
        with contextlib.suppress(OSError):  # a home that cannot be written: the token still serves this run
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({**_stored_logins(self.path), self.project: entry}, file, indent=2)
            os.replace(draft, self.path)
        return entry


def _stored_logins(path: str) -> dict[str, dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            logins = from_json(file.read())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ToolError(
            f"cannot read the snipara login in {path}: {error}", hint="run snipara-mcp-login again"
        ) from None
    return {key: entry for key, entry in logins.items() if isinstance(entry, dict)} if isinstance(logins, dict) else {}


def _login_for(slug: str, url: str | None, post: Post) -> _Login | None:
    """The stored login of the project with exactly that slug."""
    path = os.path.expanduser("~/.snipara/tokens.json")
    project = next((key for key, entry in _stored_logins(path).items() if entry.get("project_slug") == slug), None)
    if project is None:
        return None
    # The refresh token is sent to Snipara's site, or to the server that the user configured instead.
    origin = re.match(r"https?://[^/?#]+", url or "")
    own = origin is None or origin[0] == SNIPARA_URL.removesuffix("/mcp")
    return _Login(path, project, f"{SNIPARA_LOGIN_URL if own or not origin else origin[0]}/api/oauth/token", post)
