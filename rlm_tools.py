# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Tools: what a model may call, and code in the REPL too.

`Tool` and `@tool` describe a function to a model; `call_tool` checks the arguments against the JSON Schema and runs it,
plain or `async`. Below them: the schema checker (it serves typed answers too), the built-in file tools, tools from
files, modules and entry points, and Snipara's. A leaf: imports nothing of ours, needs the standard library only.

Not covered: of JSON Schema `if`/`then`/`else`, `dependent*`, `unevaluated*`, `format` and references to other documents
(these are ignored); a hard link inside an allowed folder to a file outside it is read like any other file.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import json
import keyword
import os
import re
import stat
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Tool", "ToolError", "build", "call_tool", "file_tools", "load_tools", "schema_of", "tool", "validate"]

Schema = dict[str, Any]


class ToolError(RuntimeError):
    """A tool that cannot be made, loaded or called this way, said to the model or user who can mend it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


# --- a tool -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tool:
    """A function that a model can call by name; also callable from Python, with the same checks."""

    name: str
    description: str
    parameters: Schema
    handler: Callable[..., Any] = field(repr=False)
    view: Callable[..., str] | None = field(default=None, repr=False, kw_only=True)
    """What the model is shown when it calls the tool itself; None: the handler's result as text."""
    source: str = field(default="", kw_only=True)
    """Where the tool comes from, for messages: a file, a module, a distribution."""

    def __post_init__(self) -> None:
        problem = _name_problem(self.name)
        if not problem and not isinstance(self.description, str):
            problem = "its description must be a string"
        if not problem and not callable(self.handler):
            problem = f"its handler must be callable, not {type(self.handler).__name__}"
        if not problem:
            problem = _parameters_problem(self.parameters)
        if problem:
            raise ToolError(f"tool {self.name!r}: {problem}")
        object.__setattr__(self, "parameters", {"type": "object", "properties": {}, **self.parameters})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call_tool(self, self.bind(*args, **kwargs))

    def __reduce__(self) -> Any:
        """A decorated function is pickled by its name, since that name now means the tool."""
        module, name = getattr(self.handler, "__module__", None), getattr(self.handler, "__qualname__", "")
        if module and _find(module, name, None) is self:
            return _find, (module, name)
        values = (self.name, self.description, self.parameters, self.handler, self.view, self.source)
        return _remake, values

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of a Python call as the one object that models send."""
        names = list(self.parameters["properties"])
        if len(args) > len(names):
            raise ToolError(f"{signature(self)} takes {len(names)} arguments, {len(args)} were given")
        bound = dict(zip(names, args, strict=False))
        if twice := [name for name in bound if name in kwargs]:
            raise ToolError(f"{signature(self)} got {twice[0]!r} twice")
        return {**bound, **kwargs}


def _remake(name: str, description: str, parameters: Schema, handler: Any, view: Any, source: str) -> Tool:
    return Tool(name, description, parameters, handler, view=view, source=source)


def _find(module: str, name: str, *default: Any) -> Any:
    """The object of that dotted name in an imported or importable module."""
    import importlib

    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (AttributeError, ImportError):
        if default:
            return default[0]
        raise
    return found


def _name_problem(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) or keyword.iskeyword(name):
        better = re.sub(r"\W+", "_", str(name), flags=re.ASCII).strip("_")
        hint = f", for example {better!r}" if better.isidentifier() and not keyword.iskeyword(better) else ""
        return f"its name must be a Python name of at most 64 letters, since code calls it too{hint}"
    if hasattr(builtins, name):
        return "its name is a Python builtin, which code in the REPL would lose"
    return ""


def _parameters_problem(parameters: Any) -> str:
    if not isinstance(parameters, dict):
        return f"its parameters must be a JSON Schema (a dict), not {type(parameters).__name__}"
    if parameters.get("type", "object") != "object":
        return f"its parameters must be a schema of type 'object', not {parameters['type']!r}"
    if not isinstance(parameters.get("properties", {}), dict):
        return "'properties' of its parameters must be a dict of schemas"
    required = parameters.get("required", [])
    unknown = [name for name in required if name not in parameters.get("properties", {})]
    return f"required parameter {unknown[0]!r} is not among its properties" if unknown else ""


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


# --- calling one --------------------------------------------------------------------------------------------------


def call_tool(tool: Tool, arguments: Mapping[str, Any] | str) -> Any:
    """What the tool's handler returns, as plain Python data; bad arguments are a ToolError, its own errors pass."""
    checked, _ = check_arguments(tool, arguments)
    return plain(_run(tool.handler, checked))


def answer(tool: Tool, arguments: Mapping[str, Any] | str) -> str:
    """The same call as text for the model, with a note about arguments that were not taken as they came."""
    checked, notes = check_arguments(tool, arguments)
    if tool.view is not None:
        text = tool.view(**checked)
    else:
        text = render(plain(_run(tool.handler, checked)))
    return "\n".join([text, *(f"[{note}]" for note in notes)])


def check_arguments(tool: Tool, arguments: Mapping[str, Any] | str) -> tuple[dict[str, Any], list[str]]:
    """Arguments that fit the tool's schema, and notes on what was changed for that; ToolError if they cannot."""
    given = _read_arguments(tool, arguments)
    known, notes = _known_arguments(tool, given)
    value, problems = validate(tool.parameters, known)
    if problems:
        raise ToolError(f"bad arguments: {_some(problems)}; expected {signature(tool)}")
    return value, notes


def _read_arguments(tool: Tool, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    """The arguments as a dict: some models send JSON in a string, or a bare string for the only parameter."""
    if not isinstance(arguments, str):
        return dict(arguments)
    text = arguments.strip()
    if not text or text == "null":
        return {}
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
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
    """The parameter that a bare string can only mean: the one required, or the one there is, if it is a string."""
    properties = tool.parameters["properties"]
    names = list(tool.parameters.get("required") or properties)
    return names[0] if len(names) == 1 and properties[names[0]].get("type") == "string" else None


def _known_arguments(tool: Tool, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments that the tool has: a misspelt name is taken for the one it nearly is, others are dropped."""
    import difflib

    properties = tool.parameters["properties"]
    if tool.parameters.get("additionalProperties"):
        return given, []
    known = {name: value for name, value in given.items() if name in properties}
    notes = []
    for name in given.keys() - properties.keys():
        free = [other for other in properties if other not in known]
        near = difflib.get_close_matches(str(name), free, n=1, cutoff=0.6)
        if near:
            known[near[0]] = given[name]
            notes.append(f"took argument {name!r} as {near[0]!r}")
        else:
            notes.append(f"ignored unknown argument {name!r}; it is {signature(tool)}")
    return known, notes


def _run(handler: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """The handler's result; a coroutine is run to its end, on a thread of its own where a loop is running already."""
    result = handler(**arguments)
    if not hasattr(result, "__await__"):
        return result
    import asyncio

    async def waited() -> Any:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(waited())
    return _on_thread(lambda: asyncio.run(waited()))


def _on_thread(work: Callable[[], Any], seconds: float | None = None) -> Any:
    """What `work` returns or raises on a daemon thread; TimeoutError when it takes longer than `seconds`."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # handed over to the caller's thread, SystemExit included
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"took longer than {seconds:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def plain(value: Any) -> Any:
    """The value as plain Python data, which can travel into a sandbox: dataclasses, models, enums, paths, times too."""
    if _is_enum(value):
        return value.value
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        return kind(plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return plain(dump(mode="json"))
    if callable(stamp := getattr(value, "isoformat", None)):
        return stamp()
    return list(map(plain, value)) if isinstance(value, Iterator) else str(value)


def _is_enum(value: Any) -> bool:
    module = sys.modules.get("enum")
    return module is not None and isinstance(value, module.Enum)


def render(value: Any) -> str:
    """A tool's result as the text that a model reads."""
    if isinstance(value, str):
        return value
    if value is None:
        return "done (no result)"
    try:
        return json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError):
        return repr(value)


# --- checking data against a JSON Schema --------------------------------------------------------------------------

_DEEPEST = 64
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def validate(schema: Schema | bool, value: Any, *, coerce: bool = True) -> tuple[Any, list[str]]:
    """The value with defaults filled in, and what is wrong with it, a line each (none: it fits).

    With `coerce`, what a model plainly meant is taken: "3" for 3, JSON in a string for an object, null for an absent
    optional property, one item for a list of one.
    """
    return _Checker(schema, coerce).check(schema, value, "", 0)


Found = tuple[Any, list[str]]


class _Checker:
    """One check of one value; `root` is where references lead."""

    def __init__(self, root: Schema | bool, coerce: bool) -> None:
        self.root = root
        self.coerce = coerce

    def check(self, schema: Any, value: Any, path: str, depth: int) -> Found:
        if schema is True or not isinstance(schema, dict):
            return (value, []) if schema is not False else (value, [_at(path, "nothing is allowed here")])
        if depth > _DEEPEST:
            return value, [_at(path, f"nested more than {_DEEPEST} levels deep")]
        if "$ref" in schema:
            value, problems = self.check(self.resolve(schema["$ref"]), value, path, depth + 1)
            if problems:
                return value, problems
        if isinstance(value, (tuple, set, frozenset)):
            value = list(value)
        value, problems = self.check_type(schema, value, path)
        if problems:
            return value, problems
        value, problems = self.check_choice(schema, value, path)
        value, more = self.check_branches(schema, value, path, depth)
        problems += more
        if isinstance(value, dict):
            value, more = self.check_object(schema, value, path, depth)
        elif isinstance(value, list):
            value, more = self.check_array(schema, value, path, depth)
        else:
            more = _scalar_problems(schema, value, path)
        return value, problems + more

    def resolve(self, reference: Any) -> Any:
        found: Any = self.root
        for part in str(reference).removeprefix("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            found = found if not key else found.get(key, {}) if isinstance(found, dict) else {}
        return found

    def check_type(self, schema: Schema, value: Any, path: str) -> Found:
        wanted = schema.get("type")
        names = [wanted] if isinstance(wanted, str) else wanted or []
        if not names or any(_TYPES.get(name, lambda _: True)(value) for name in names):
            return value, []
        if isinstance(value, float) and value.is_integer() and "integer" in names:
            return int(value), []
        if self.coerce:
            for name in names:
                with contextlib.suppress(ValueError, RecursionError):
                    return _to_type(name, value), []
        return value, [_at(path, f"expected {' or '.join(names)}, got {_shown(value)}")]

    def check_choice(self, schema: Schema, value: Any, path: str) -> Found:
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if not isinstance(choices, list) or any(_same(value, choice) for choice in choices):
            return value, []
        if self.coerce:
            for choice in choices:
                if str(choice).casefold() == str(value).strip().casefold():
                    return choice, []
        return value, [_at(path, f"{_shown(value)} is not one of {', '.join(json.dumps(c) for c in choices)}")]

    def check_branches(self, schema: Schema, value: Any, path: str, depth: int) -> Found:
        for branch in schema.get("allOf", ()):
            value, problems = self.check(branch, value, path, depth + 1)
            if problems:
                return value, problems
        for word in ("anyOf", "oneOf"):
            if branches := schema.get(word):
                value, problems = self.check_any(branches, value, path, depth, one=word == "oneOf")
                if problems:
                    return value, problems
        if "not" in schema and not _Checker(self.root, False).check(schema["not"], value, path, depth + 1)[1]:
            return value, [_at(path, f"{_shown(value)} is not allowed")]
        return value, []

    def check_any(self, branches: list[Any], value: Any, path: str, depth: int, *, one: bool) -> Found:
        """A value that fits a branch as it is belongs to that branch; only then may one be coerced."""
        strict = [_Checker(self.root, False).check(branch, value, path, depth + 1) for branch in branches]
        fitting = [index for index, (_, problems) in enumerate(strict) if not problems]
        if one and len(fitting) > 1:
            return value, [_at(path, f"{_shown(value)} fits {len(fitting)} of the alternatives, and must fit one")]
        if fitting:
            return strict[fitting[0]]
        tried = [self.check(branch, value, path, depth + 1) for branch in branches] if self.coerce else strict
        for result, problems in tried:
            if not problems:
                return result, []
        return value, [_some(_unique(line for _, problems in tried for line in problems), " or ")]

    def check_object(self, schema: Schema, value: dict[str, Any], path: str, depth: int) -> Found:
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        result: dict[str, Any] = {}
        problems: list[str] = []
        for name, item in value.items():
            below = f"{path}.{name}" if path else str(name)
            optional = self.coerce and name in properties and name not in required
            if item is None and optional and _Checker(self.root, False).check(properties[name], None, "", depth + 1)[1]:
                continue  # null for an optional property means that it is absent
            rule = _property_rule(schema, str(name))
            if rule is False:
                problems.append(_at(below, f"unknown property; there are {', '.join(properties) or 'none'}"))
                continue
            result[name], more = self.check(rule, item, below, depth + 1)
            problems += more
        missing = [name for name in required if name not in value]
        problems += [_at(path, f"missing {_described(name, properties.get(name))}") for name in missing]
        for name, rule in properties.items():
            if name not in result and isinstance(rule, dict) and "default" in rule:
                result[name] = json.loads(json.dumps(rule["default"], default=str))
        return result, problems + _size_problems(schema, len(result), path, "Properties", "properties")

    def check_array(self, schema: Schema, value: list[Any], path: str, depth: int) -> Found:
        first = schema.get("prefixItems") or []
        rest = schema.get("items", True)
        result: list[Any] = []
        problems: list[str] = []
        for index, item in enumerate(value):
            rule = first[index] if index < len(first) else rest
            checked, more = self.check(rule, item, f"{path}[{index}]", depth + 1)
            result.append(checked)
            problems += more
        if schema.get("uniqueItems") and any(_same(a, b) for i, a in enumerate(value) for b in value[:i]):
            problems.append(_at(path, "has the same item twice"))
        return result, problems + _size_problems(schema, len(value), path, "Items", "items")


def _property_rule(schema: Schema, name: str) -> Any:
    """The schema of one property: named, by pattern, or what is said of all others (False: there are no others)."""
    properties = schema.get("properties") or {}
    if name in properties:
        return properties[name]
    for pattern, rule in (schema.get("patternProperties") or {}).items():
        if re.search(pattern, name):
            return rule
    return schema.get("additionalProperties", True)


def _scalar_problems(schema: Schema, value: Any, path: str) -> list[str]:
    if isinstance(value, str):
        problems = _size_problems(schema, len(value), path, "Length", "characters")
        pattern = schema.get("pattern")
        if pattern and not re.search(pattern, value):
            problems.append(_at(path, f"{_shown(value)} does not match the pattern {pattern}"))
        return problems
    if not _TYPES["number"](value):
        return []
    bounds: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "minimum": ("at least", lambda limit: value >= limit),
        "maximum": ("at most", lambda limit: value <= limit),
        "exclusiveMinimum": ("more than", lambda limit: value > limit),
        "exclusiveMaximum": ("less than", lambda limit: value < limit),
        "multipleOf": ("a multiple of", lambda step: abs(value / step - round(value / step)) < 1e-9),
    }
    return [
        _at(path, f"must be {word} {schema[name]}, got {value}")
        for name, (word, holds) in bounds.items()
        if _TYPES["number"](schema.get(name)) and not holds(schema[name])
    ]


def _size_problems(schema: Schema, size: int, path: str, suffix: str, unit: str) -> list[str]:
    low, high = schema.get(f"min{suffix}", 0), schema.get(f"max{suffix}", size)
    if low <= size <= high:
        return []
    return [_at(path, f"must have at {f'least {low}' if size < low else f'most {high}'} {unit}, has {size}")]


def _to_type(name: str, value: Any) -> Any:
    """The value as what a model plainly meant it to be, or ValueError."""
    text = value.strip() if isinstance(value, str) else None
    if name == "string" and isinstance(value, (int, float, bool)):
        return json.dumps(value)
    if name == "integer" and text and re.fullmatch(r"[+-]?\d+(\.0*)?", text):
        return int(text.partition(".")[0])
    if name == "number" and text and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if name == "boolean" and str(value).strip().lower() in ("true", "false", "1", "0"):
        return str(value).strip().lower() in ("true", "1")
    if name == "null" and text == "null":
        return None
    if name in ("object", "array") and text and text[0] == "{["[name == "array"]:
        return json.loads(text, strict=False)
    if name == "array" and value is not None:
        return [value]
    raise ValueError(name)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _some(lines: list[str], joint: str = "; ", most: int = 8) -> str:
    more = f"{joint}and {len(lines) - most} more" if len(lines) > most else ""
    return joint.join(lines[:most]) + more


def _at(path: str, problem: str) -> str:
    return f"{path}: {problem}" if path else problem


def _shown(value: Any) -> str:
    """A value named in a message: its type and, shortened, itself."""
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return f"{_type_word(value)} {text if len(text) <= 60 else text[:57] + '...'}"


def _type_word(value: Any) -> str:
    words = ("boolean", "integer", "number", "string", "object", "array", "null")
    return next((word for word in words if _TYPES[word](value)), type(value).__name__)


def _kind_word(schema: Any) -> str:
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


def _described(name: str, schema: Any) -> str:
    about = schema.get("description", "") if isinstance(schema, dict) else ""
    return f"{name!r} ({_kind_word(schema)}{': ' + about if about else ''})"


# --- schemas from Python types, and typed values from data ----------------------------------------------------------

_NAMED: dict[str, tuple[Schema, str]] = {
    # full name of a type: its schema, and how to make it of the data ("" calls the type itself)
    "datetime.datetime": ({"type": "string", "format": "date-time"}, "fromisoformat"),
    "datetime.date": ({"type": "string", "format": "date"}, "fromisoformat"),
    "datetime.time": ({"type": "string", "format": "time"}, "fromisoformat"),
    "decimal.Decimal": ({"type": ["string", "number"]}, ""),
    "uuid.UUID": ({"type": "string", "format": "uuid"}, ""),
    "pathlib.Path": ({"type": "string"}, ""),
    "pathlib.PurePath": ({"type": "string"}, ""),
}
_SIMPLE: dict[Any, Schema] = {
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


def schema_of(kind: Any) -> Schema:
    """The JSON Schema of a type (dataclass, TypedDict, pydantic model, enum, `list[int]`, `X | None`); a dict is one."""
    if isinstance(kind, dict):
        return kind
    maker = _SchemaMaker()
    schema = maker.of(kind)
    return {**schema, "$defs": {**schema.get("$defs", {}), **maker.shared}} if maker.shared else schema


def build(kind: Any, value: Any) -> Any:
    """A value of that type made from data that fits its schema; ToolError says why not."""
    try:
        return _built(kind, value)
    except ToolError:
        raise
    except Exception as error:  # a dataclass's or model's own checks may raise anything
        raise ToolError(f"not a valid {getattr(kind, '__name__', kind)}: {_first_lines(error)}") from error


def _first_lines(error: BaseException, most: int = 600) -> str:
    return str(error)[:most] or type(error).__name__


def _full_name(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"


def _is_record(kind: Any) -> bool:
    """Whether a class is a dataclass or a TypedDict, whose fields are its schema."""
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind))


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # an annotation is any expression, evaluated here
        name = getattr(kind, "__qualname__", kind)
        raise ToolError(f"the annotations of {name} cannot be read: {type(error).__name__}: {error}") from error


class _SchemaMaker:
    """One schema being made; a class that contains itself goes to `shared`, under `$defs`."""

    def __init__(self) -> None:
        self.shared: dict[str, Schema] = {}
        self.open: list[Any] = []
        self.recursive: list[Any] = []

    def of(self, kind: Any) -> Schema:
        with contextlib.suppress(TypeError):  # not hashable
            if kind in _SIMPLE:
                return dict(_SIMPLE[kind])
        if named := _NAMED.get(_full_name(kind)):
            return dict(named[0])
        if callable(maker := getattr(kind, "model_json_schema", None)):
            return self.of_model(maker())
        if _is_record(kind):
            return self.of_record(kind)
        if hasattr(kind, "__members__"):
            return _choices([member.value for member in kind])
        if (base := getattr(kind, "__supertype__", None)) is not None:
            return self.of(base)
        return self.of_generic(kind, typing.get_origin(kind), typing.get_args(kind))

    def of_model(self, schema: Schema) -> Schema:
        self.shared.update(schema.pop("$defs", {}))
        return schema

    def of_generic(self, kind: Any, origin: Any, args: tuple[Any, ...]) -> Schema:
        if origin is typing.Annotated:
            about = next((note for note in args[1:] if isinstance(note, str)), "")
            return {**self.of(args[0]), **({"description": about} if about else {})}
        if _is_mark(origin):
            return self.of(args[0])
        if origin is typing.Literal:
            return _choices(list(args))
        if _is_union(origin):
            return {"anyOf": [self.of(arg) for arg in args]}
        if isinstance(origin, type) and issubclass(origin, tuple) and args and args[-1] is not Ellipsis:
            return {"type": "array", "prefixItems": [*map(self.of, args)], "minItems": len(args), "maxItems": len(args)}
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(args[1])}
        if isinstance(origin, type) and issubclass(origin, Iterable) and args:
            return {**_SIMPLE.get(origin, {"type": "array"}), "items": self.of(args[0])}
        if isinstance(kind, typing.TypeVar):
            return {}
        raise ToolError(f"no JSON Schema for the type {getattr(kind, '__name__', kind)!r}")

    def of_record(self, kind: Any) -> Schema:
        name = kind.__name__
        if kind in self.open:
            self.recursive.append(kind)
            return {"$ref": f"#/$defs/{name}"}
        self.open.append(kind)
        hints = _hints(kind)
        properties = {name: {**self.of(hints[name]), **extra} for name, _, extra in _fields(kind)}
        required = [name for name, needed, _ in _fields(kind) if needed]
        self.open.remove(kind)
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        if kind in self.recursive:
            self.shared[name] = schema
        return schema


def _fields(record: Any) -> list[tuple[str, bool, Schema]]:
    """The fields of a dataclass or TypedDict: name, whether it is required, what its schema says besides its type."""
    if not dataclasses.is_dataclass(record):
        return [(name, name in record.__required_keys__, {}) for name in record.__annotations__]
    found = []
    for item in dataclasses.fields(record):
        extra: Schema = {"description": item.metadata["description"]} if "description" in item.metadata else {}
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if not needed and item.default is not dataclasses.MISSING:
            extra |= _default(item.default)
        if item.init:
            found.append((item.name, needed, extra))
    return found


def _default(value: Any) -> Schema:
    """The `default` entry of a schema, where the default is JSON."""
    try:
        return {"default": json.loads(json.dumps(plain(value)))}
    except (TypeError, ValueError):
        return {}


def _choices(values: list[Any]) -> Schema:
    kinds = _unique(_type_word(value) for value in values)
    return {"enum": values, **({"type": kinds[0]} if len(kinds) == 1 and kinds[0] in _TYPES else {})}


def _is_union(origin: Any) -> bool:
    return origin is typing.Union or getattr(origin, "__qualname__", "") in ("UnionType", "Union")


def _built(kind: Any, value: Any) -> Any:
    if callable(load := getattr(kind, "model_validate", None)):
        return load(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _built(hints[name], item) for name, item in value.items()})
    if isinstance(kind, type) and typing.is_typeddict(kind):
        hints = _hints(kind)
        return {name: _built(hints.get(name, Any), item) for name, item in value.items()}
    if hasattr(kind, "__members__"):
        return next((member for member in kind if _same(member.value, value)), None) or kind(value)
    if named := _NAMED.get(_full_name(kind)):
        if not isinstance(value, str):
            return kind(str(value))
        return getattr(kind, named[1])(re.sub("[zZ]$", "+00:00", value)) if named[1] else kind(value)
    if kind in (float, set, frozenset, tuple) and value is not None:
        return kind(value)
    if (base := getattr(kind, "__supertype__", None)) is not None:
        return _built(base, value)
    return _built_generic(typing.get_origin(kind), typing.get_args(kind), value)


def _built_generic(origin: Any, args: tuple[Any, ...], value: Any) -> Any:
    if origin is typing.Annotated or _is_mark(origin):
        return _built(args[0], value)
    if _is_union(origin):
        fitting = [arg for arg in args if not validate(schema_of(arg), value, coerce=False)[1]]
        return _built(fitting[0], value) if fitting else value
    if not isinstance(origin, type):
        return value
    if issubclass(origin, tuple) and args and args[-1] is not Ellipsis:
        return tuple(_built(arg, item) for arg, item in zip(args, value, strict=True))
    if issubclass(origin, Mapping):
        return {key: _built(args[1], item) for key, item in value.items()}
    if issubclass(origin, Iterable) and args:
        items = [_built(args[0], item) for item in value]
        return origin(items) if origin in (set, frozenset, tuple) else items
    return value


def _is_mark(origin: Any) -> bool:
    """Required[…], NotRequired[…] or ReadOnly[…] of a TypedDict, from typing or typing_extensions."""
    return str(origin).rpartition(".")[2] in ("Required", "NotRequired", "ReadOnly")


# --- @tool ----------------------------------------------------------------------------------------------------------


@typing.overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@typing.overload
def tool(*, name: str = "", description: str = "") -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, *, name: str = "", description: str = "") -> Any:
    """A Tool made of a function: its name, its docstring (with an `Args:` section) and its annotations."""
    if function is None:
        return lambda decorated: _tool_of(decorated, name, description)
    return _tool_of(function, name, description)


def _tool_of(function: Callable[..., Any], name: str, description: str) -> Tool:
    import inspect

    name = name or getattr(function, "__name__", "")
    about, notes = _docstring_parts(inspect.getdoc(function) or "")
    handler = _Typed(function, _hints(function if inspect.isroutine(function) else type(function).__call__))
    properties: dict[str, Schema] = {}
    required: list[str] = []
    parameters: Schema = {"type": "object", "properties": properties, "required": required}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            parameters["additionalProperties"] = True
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise ToolError(f"tool {name!r}: parameter {str(parameter)!r} cannot be given by name, as models do")
        schema = schema_of(handler.hints.get(parameter.name, Any))
        about_it = {"description": notes[parameter.name]} if parameter.name in notes else {}
        properties[parameter.name] = {**schema, **about_it}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            properties[parameter.name] |= _default(parameter.default)
    return Tool(name, description or about or name, parameters, handler, source=getattr(function, "__module__", ""))


class _Typed:
    """A function that takes JSON data for the types it is annotated with."""

    def __init__(self, function: Callable[..., Any], hints: dict[str, Any]) -> None:
        self.function = function
        self.hints = hints
        self.__module__ = getattr(function, "__module__", "")
        self.__qualname__ = getattr(function, "__qualname__", "")

    def __call__(self, **arguments: Any) -> Any:
        return self.function(**{name: build(self.hints.get(name, Any), item) for name, item in arguments.items()})


def _docstring_parts(text: str) -> tuple[str, dict[str, str]]:
    """A docstring's description, and what it says of each parameter (Google's `Args:` or Sphinx's `:param x:`)."""
    head, _, tail = text.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", tail, maxsplit=1)[0]
    notes = dict(re.findall(r":param (?:[^:\n]+ )?(\w+): *([^\n]+)", head))
    entry = r"^ {2,8}\*{0,2}(\w+)(?: *\([^)\n]*\))?: *(.+(?:\n {5,}.+)*)"
    for name, about in re.findall(entry, section, re.MULTILINE):
        notes[name] = " ".join(about.split())
    head = re.split(r"\n *(?::\w|(?:Returns|Raises|Yields|Examples?):\n)", head)[0]
    return head.strip(), notes


# --- files: confined to the allowed folders -------------------------------------------------------------------------

READ_LIMIT = 8_000_000  # bytes that file_read hands to code at once: they fit a frame however they are escaped
VIEW_LIMIT = 9_500  # characters that a model is shown of one call
LINE_LIMIT = 2_000  # characters of one line that a model is shown, and of one match
LIST_LIMIT = 100_000
MATCH_LIMIT = 10_000
SEARCH_SECONDS = 10.0
_SKIPPED = {".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".tox", ".mypy_cache", ".ruff_cache"}
_SECRET = re.compile(
    r"\.env.*|.*\.pem|id_.*|\.netrc|\.aws|\.ssh|\.git-credentials|\.pypirc|\.npmrc|\.snipara", re.IGNORECASE | re.DOTALL
)


def is_secret(path: str) -> bool:
    """Whether a relative path names, or lies under, what usually holds credentials."""
    parts = [part.rstrip(". ") for part in re.split(r"[/\\]", path)]
    in_git = ".git" in map(str.lower, parts[:-1]) and parts[-1].lower().startswith("config")
    return in_git or any(map(_SECRET.fullmatch, parts))


def file_tools(allowed_paths: Iterable[str | os.PathLike[str]] | None = None, cwd: str | None = None) -> list[Tool]:
    """file_read, file_list and file_search over the allowed folders and files (default: the working directory)."""
    files = _Files(allowed_paths, cwd)
    text: Schema = {"type": "string"}
    line: Schema = {"type": "integer"}
    glob: Schema = {"type": "string", "default": "**"}
    read = _object({"path": text, "start_line": line, "end_line": line}, "path")
    about_read = "Lines of a text file. In code: the text as str"
    about_list = "Files by glob ('*.py' at any depth). In code: list of paths"
    about_search = "Lines matching a Python regex in the files of a glob. In code: list of {path, line, text}"
    return [
        Tool("file_read", about_read, read, files.read, view=files.read_view, source="built in"),
        Tool("file_list", about_list, _object({"pattern": glob}), files.paths, view=files.list_view, source="built in"),
        Tool(
            "file_search",
            about_search,
            _object({"regex": text, "pattern": glob}, "regex"),
            files.search,
            view=files.search_view,
            source="built in",
        ),
    ]


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


class _Files:
    """The files under some roots, which are fixed when the tools are made.

    A path is resolved and checked, then opened from its root one component at a time without following links: a folder
    that is swapped for a link in between is refused.
    """

    def __init__(self, allowed: Iterable[str | os.PathLike[str]] | None, cwd: str | None) -> None:
        self.cwd = os.path.realpath(cwd or os.getcwd())
        given = [allowed] if isinstance(allowed, (str, os.PathLike)) else list(allowed or [self.cwd])
        self.roots = [os.path.realpath(os.path.join(self.cwd, os.path.expanduser(root))) for root in given]

    def locate(self, path: str) -> tuple[str, str]:
        """The root that a path lies under and the way down from it; PermissionError for any other."""
        try:
            real = os.path.realpath(os.path.join(self.cwd, path))
        except (OSError, ValueError) as error:
            raise ValueError(f"not a path: {path[:200]!r} ({error})") from None
        root = max((root for root in self.roots if _is_under(real, root)), key=len, default=None)
        if root is None or real.startswith(("/proc/", "/sys/")):
            allowed = ", ".join(map(self.shown, self.roots))
            raise PermissionError(f"{path!r} is outside the allowed paths ({allowed})")
        below = os.path.relpath(real, root)
        if is_secret(below) or is_secret(os.path.basename(path)):
            raise PermissionError(f"{path!r} may hold credentials and is not read")
        return root, below

    def shown(self, real: str) -> str:
        """A real path as it is named to the model: relative to the working directory where it lies in it."""
        path = os.path.relpath(real, self.cwd) if _is_under(real, self.cwd) else real
        return path.replace(os.sep, "/")

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[typing.BinaryIO]:
        """The regular file at that path, open for reading bytes."""
        root, below = self.locate(path)
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
        """What the caller may have meant by the name of a file that is not there."""
        import difflib

        try:
            names = os.listdir(os.path.join(*self.locate(os.path.dirname(path) or ".")))
        except (OSError, ValueError):
            return ""
        near = difflib.get_close_matches(os.path.basename(path), [name for name in names if not is_secret(name)])
        return f"; there is {', '.join(map(repr, near))}" if near else ""

    def read(self, path: str, start_line: int = 1, end_line: int | None = None) -> str:
        first, last = _line_range(start_line, end_line)
        with self.opened(path) as file:
            data, cut = _lines(_as_utf8(file, path), first, last, READ_LIMIT)
        if cut:
            limit = f"{READ_LIMIT // 1_000_000} MB"
            raise ValueError(f"{path!r} is more than {limit} there: read fewer lines, or in code open({path!r})")
        return _decoded(data)

    def read_view(self, path: str, start_line: int = 1, end_line: int | None = None) -> str:
        first, last = _line_range(start_line, end_line)
        with self.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            data, cut = _lines(_as_utf8(file, path), first, last, 4 * VIEW_LIMIT)
        lines = _decoded(data).removesuffix("\n").split("\n") if data else []
        shown = [f"{number:>6} {_clipped(line)}" for number, line in enumerate(lines, first)]
        fitting = _fitting(shown)
        if not shown:
            return f"[{path} is empty]"
        if fitting < len(shown) or cut:
            fitting = max(fitting, 1)
            end = first + fitting - 1
            shown[fitting:] = [f"[lines {first}-{end} of {path}, a file of {size:,} bytes; next: start_line={end + 1}]"]
        return "\n".join(shown)

    def paths(self, pattern: str = "**") -> list[str]:
        """The files that match a glob, sorted; secrets, links that lead out and folders of tools are left out."""
        skipped = _SKIPPED.difference(re.split(r"[/\\]", pattern))
        deadline = time.monotonic() + SEARCH_SECONDS
        paths: set[str] = set()
        for start, wanted in self.starts(pattern):
            for path in self.walked(start, skipped):
                if wanted(path[len(start) :].lstrip(os.sep).replace(os.sep, "/")):
                    paths.add(self.shown(path))
                if len(paths) > LIST_LIMIT:
                    raise ValueError(f"more than {LIST_LIMIT:,} files match {pattern!r}: narrow the pattern")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"looking for {pattern!r} took longer than {SEARCH_SECONDS:g} s: narrow it")
        return sorted(paths)

    def list_view(self, pattern: str = "**") -> str:
        paths = self.paths(pattern)
        if not paths:
            return f"no file matches {pattern!r}"
        rows = []
        for path in paths[: VIEW_LIMIT // 10]:
            with contextlib.suppress(OSError):
                rows.append(f"{path}  {os.stat(os.path.join(self.cwd, path)).st_size:,} bytes")
        fitting = _fitting(rows)
        left_out = [f"[{fitting} of {len(paths):,} files; narrow the pattern]"] if fitting < len(paths) else []
        return "\n".join(rows[:fitting] + left_out)

    def starts(self, pattern: str) -> list[tuple[str, Callable[[str], Any]]]:
        """The folders where matches of a glob begin, each with the test of a path below it.

        A relative pattern is tried in the working directory and in each allowed folder elsewhere.
        """
        pattern = pattern.replace("\\", "/")
        parts = pattern.rstrip("/").split("/")
        literal = next((index for index, part in enumerate(parts) if re.search(r"[*?\[{]", part)), len(parts))
        if literal == len(parts):  # a file, or a folder, which stands for all that is in it
            return [(os.path.join(*self.locate(pattern)), re.compile(".*", re.DOTALL).fullmatch)]
        glob = _glob("/".join(parts[literal:]))
        test = re.compile(glob if len(parts) > 1 else f"(?:.*/)?{glob}", re.DOTALL).fullmatch
        bases = [self.cwd, *(root for root in self.roots if not _is_under(root, self.cwd))]
        prefix = "/".join(parts[:literal]) + "/" if literal else ""
        starts = [os.path.realpath(os.path.join(base, prefix)) for base in bases]
        inside = [start for start in starts if any(_is_under(start, r) or _is_under(r, start) for r in self.roots)]
        if not inside:
            self.locate(prefix)
        return [(start, test) for start in dict.fromkeys(inside)]

    def walked(self, start: str, skipped: set[str]) -> Iterator[str]:
        """The regular files at or below `start` that lie under a root; folders behind links are not entered."""
        for root in self.roots:
            waiting = (
                [start if _is_under(start, root) else root] if _is_under(start, root) or _is_under(root, start) else []
            )
            while waiting:
                path = waiting.pop()
                try:
                    entries = _entries(root, os.path.relpath(path, root))
                except OSError:
                    continue
                if entries is None:
                    yield path
                    continue
                for name, kind in entries:
                    below = os.path.join(path, name)
                    if kind == "folder" and name not in skipped and not is_secret(name):
                        waiting.append(below)
                    elif (kind == "file" and not is_secret(os.path.relpath(below, root))) or (
                        kind == "link" and self.leads_in(below)
                    ):
                        yield below

    def leads_in(self, link: str) -> bool:
        try:
            return os.path.isfile(os.path.join(*self.locate(link)))
        except (PermissionError, ValueError):
            return False

    def search(self, regex: str, pattern: str = "**") -> list[dict[str, Any]]:
        rows, stopped, _ = self.matches(regex, pattern)
        if stopped:
            raise TimeoutError(stopped)
        if len(rows) > MATCH_LIMIT:
            raise ValueError(f"more than {MATCH_LIMIT:,} lines match {regex!r}: narrow it, or read the files in code")
        return rows

    def search_view(self, regex: str, pattern: str = "**") -> str:
        rows, stopped, count = self.matches(regex, pattern)
        lines = [f"{row['path']}:{row['line']}: {_clipped(row['text'], 300)}" for row in rows]
        fitting = _fitting(lines)
        notes = [f"[{stopped}]"] if stopped else []
        if fitting < len(lines):
            total = f"{len(lines):,}" if len(lines) <= MATCH_LIMIT else f"more than {MATCH_LIMIT:,}"
            notes.append(f"[{fitting} of {total} matching lines; narrow the regex or the pattern]")
        return "\n".join(lines[:fitting] + notes) or f"no line matches in {count:,} files"

    def matches(self, regex: str, pattern: str) -> tuple[list[dict[str, Any]], str, int]:
        """Matching lines (one more than the limit if there are more), why it stopped early, how many files."""
        paths = self.paths(pattern)
        rows, stopped = _grep(regex, self.blocks(paths), MATCH_LIMIT + 1, SEARCH_SECONDS)
        return [{"path": path, "line": line, "text": text} for path, line, text in rows], stopped, len(paths)

    def blocks(self, paths: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
        """Files in blocks of whole lines: path, number of the first line, UTF-8. Binary files are skipped."""
        for path in paths:
            with contextlib.suppress(OSError, ValueError), self.opened(os.path.join(self.cwd, path)) as raw:
                file = _as_utf8(raw, path)
                number = 1
                while block := file.read(1 << 20):
                    block += file.readline(READ_LIMIT)
                    yield path, number, _decoded(block).removesuffix("\n").encode()
                    number += block.count(b"\n")


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _open_below(root: str, below: str) -> int:
    """A descriptor of what lies at that relative path, no component being a link; nothing but files and folders."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if os.open not in os.supports_dir_fd:
        return os.open(os.path.join(root, below), flags)
    descriptor = os.open(root, flags)
    for part in below.split(os.sep) if below != "." else ():
        parent = descriptor
        try:
            mode = os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise PermissionError(1, "not a regular file")
            descriptor = os.open(part, flags | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)
    return descriptor


def _entries(root: str, below: str) -> list[tuple[str, str]] | None:
    """What a folder holds: (name, "file" | "folder" | "link"); None if it is a file."""
    descriptor = _open_below(root, below)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return None
        with os.scandir(descriptor if os.scandir in os.supports_fd else os.path.join(root, below)) as entries:
            kinds = [(entry.name, _kind(entry)) for entry in entries]
    finally:
        os.close(descriptor)
    return sorted(kinds, reverse=True)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"


def _glob(pattern: str) -> str:
    """A glob as a regular expression over paths with slashes: `*`, `?`, `[a-z]`, `{a,b}`, and `**` for any folders."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    depth, out = 0, []
    for word in re.findall(r"\*\*/|\*\*|\[!?\]?[^\]/]*\]|.", pattern, re.DOTALL):
        depth += (word == "{") - (word == "}" and depth > 0)
        braces = (word in "{," and depth) or (word == "}" and "(?:" in out)
        if len(word) > 2 and word[0] == "[":
            out.append(
                "[" + word[1:-1].replace("\\", r"\\").replace("[", r"\[").replace("!", "^", word[1] == "!") + "]"
            )
        else:
            out.append(words[word] if word in words and (braces or word not in "{},") else re.escape(word))
    return "".join(out) + ")" * depth


def _line_range(start_line: int, end_line: int | None) -> tuple[int, int | None]:
    """First and last line; models count from 0 and write -1 for the end as well."""
    first = max(start_line, 1)
    last = end_line if end_line is not None and end_line > 0 else None
    if last is not None and last < first:
        raise ValueError(f"end_line {last} is before start_line {first}")
    return first, last


def _as_utf8(file: typing.BinaryIO, path: str) -> typing.BinaryIO:
    """The file as lines of UTF-8 (or nearly so, see `_decoded`); ValueError if it is binary."""
    head = file.read(8192)
    file.seek(0)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        import io

        return io.BytesIO(file.read(4 * READ_LIMIT).decode("utf-16", "replace").encode())
    if b"\0" in head:
        raise ValueError(f"{path!r} is binary: read it in code, with open({path!r}, 'rb')")
    if head[:3] == b"\xef\xbb\xbf":
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


def _decoded(data: bytes) -> str:
    """The text of UTF-8 lines; a line that is not is taken for Windows-1252, as stray lines in logs mostly are."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\n".join(map(_decoded_line, data.split(b"\n")))
    return text.replace("\r\n", "\n")


def _decoded_line(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def _clipped(line: str, limit: int = LINE_LIMIT) -> str:
    return line if len(line) <= limit else f"{line[:limit]} … [a line of {len(line):,} characters or more]"


def _fitting(lines: list[str]) -> int:
    """How many of the lines a model is shown."""
    total = 0
    for count, line in enumerate(lines):
        total += len(line) + 1
        if total > VIEW_LIMIT:
            return count
    return len(lines)


_SEARCHER = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 1, SECONDS + 1))
except ImportError:
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
        match = find(line)
        if match:
            start = max(match.start() - LINE // 4, 0) if len(line) > LINE else 0
            print(json.dumps([path, number, line[start:start + LINE]]), flush=True)
            left -= 1
            if not left:
                sys.exit()
"""


def _grep(
    regex: str, blocks: Iterable[tuple[str, int, bytes]], most: int, seconds: float
) -> tuple[list[tuple[str, int, str]], str]:
    """The first matching lines, and why it stopped early if it did. In a process that can be killed: nothing else stops
    a regex that backtracks without end, and it would hold up every other thread."""
    import subprocess
    import tempfile

    settings = f"SECONDS, MOST, LINE = {int(seconds)}, {most}, {LINE_LIMIT}\n"
    command = [sys.executable, "-I", "-S", "-c", settings + _SEARCHER]
    path = ""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL)
        clock = threading.Timer(seconds, child.kill)
        clock.daemon = True
        clock.start()
        try:
            with contextlib.suppress(BrokenPipeError), typing.cast(typing.BinaryIO, child.stdin) as pipe:
                pipe.write(json.dumps(regex).encode() + b"\n")
                for path, number, text in blocks:
                    pipe.write(json.dumps([path, number, len(text)]).encode() + b"\n" + text)
            child.wait()
        finally:
            clock.cancel()
            child.kill()
            child.wait()
        out.seek(0)
        found = [json.loads(line) for line in out if line.endswith(b"\n")]
    if found and isinstance(found[0], str):
        raise ValueError(f"not a Python regular expression: {regex[:200]!r} ({found[0]})")
    stopped = f"the search took longer than {seconds:g} s, in {path!r}: simplify the regex or narrow the pattern"
    return [tuple(row) for row in found], stopped if child.returncode < 0 else ""


# --- tools from files, modules and installed packages ---------------------------------------------------------------

IMPORT_SECONDS = 20.0
_loaded_files = 0


def load_tools(spec: str) -> list[Tool]:
    """The tools of a file (`tools.py`), a module (`package.module`) or one name in it (`package.module:name`)."""
    if spec.endswith(".py") or "/" in spec or os.sep in spec:
        path = os.path.abspath(os.path.expanduser(spec))
        if not os.path.isfile(path):
            raise ToolError(f"no such tools file: {spec!r}", hint="--tools takes a file.py or a package.module")
        return _collected(_imported(spec, lambda: _module_of_file(path)), spec)
    module, _, name = spec.partition(":")
    import importlib

    found = _imported(spec, lambda: importlib.import_module(module))
    if name and not hasattr(found, name):
        raise ToolError(f"tools plug-in {spec!r}: the module has no {name!r}")
    return _collected(getattr(found, name) if name else found, spec)


def entry_point_tools() -> list[Tool]:
    """The tools of installed packages that name some in the entry-point group `rlm.tools`."""
    from importlib.metadata import entry_points

    tools: list[Tool] = []
    for point in sorted(entry_points(group="rlm.tools"), key=lambda point: point.name):
        source = f"{point.dist.name if point.dist else point.value} (entry point {point.name!r})"
        tools += _collected(_imported(source, point.load), source)
    return tools


def combine(*groups: Iterable[Tool], reserved: Iterable[str] = ()) -> list[Tool]:
    """All the tools in one list; ToolError if two have the same name, or one has a reserved name."""
    names = dict.fromkeys(reserved, "the REPL")
    tools = [tool for group in groups for tool in group]
    for item in tools:
        if item.name in names:
            first, second = names[item.name], item.source or "tools="
            raise ToolError(f"two tools are called {item.name!r}: one of {first}, one of {second}", hint="rename one")
        names[item.name] = item.source or "tools="
    return tools


def _module_of_file(path: str) -> Any:
    """The module in a file, under a name of its own; its folder is on the path, last, while it is imported."""
    import importlib.util

    global _loaded_files
    _loaded_files += 1
    stem = re.sub(r"\W", "_", os.path.basename(path).removesuffix(".py"))
    spec = importlib.util.spec_from_file_location(f"_rlm_tools_{_loaded_files}_{stem}", path)
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


def _imported(source: str, load: Callable[[], Any]) -> Any:
    """What a plug-in's import gives; whatever it raises, or its taking too long, is a ToolError that names it."""
    try:
        return _on_thread(load, IMPORT_SECONDS)
    except TimeoutError:
        raise ToolError(f"tools plug-in {source!r}: its import took longer than {IMPORT_SECONDS:g} s") from None
    except BaseException as error:  # a plug-in's module may raise anything, SystemExit too
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ToolError(f"tools plug-in {source!r} cannot be imported: {type(error).__name__}: {error}") from error


def _collected(found: Any, source: str) -> list[Tool]:
    """The tools in what a plug-in names: a tool, a list of them, a function that returns them, or a module."""
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
