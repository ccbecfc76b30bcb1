"""Tools: what models send is taken or corrected, files stay inside, plug-ins fail by name, Snipara on both wires."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from fake_snipara import FAILURES, KEY, SLUG, FakeSnipara

import rlm_backends
import rlm_sandbox
import rlm_tools
from rlm_sandbox import LocalSandbox
from rlm_tools import (
    Tool,
    ToolError,
    call_for_model,
    call_tool,
    construct,
    file_tools,
    load_tools,
    read_context_files,
    schema_of,
    tool,
    validate,
)

Files = dict[str, Tool]
Arguments = dict[str, Any]


def echo(**arguments: Any) -> Arguments:
    return arguments


def tool_with(properties: Arguments, *required: str, **more: Any) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(required), **more}
    return Tool("echo", "Give the arguments back", parameters, echo)


TEXT = {"type": "string"}
INT = {"type": "integer"}

# --- a tool, and calling it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("get-weather", "d", {}, echo), "a Python name .* for example 'get_weather'"),
        (("", "d", {}, echo), "a Python name"),
        (("class", "d", {}, echo), "a Python name"),
        (("x" * 65, "d", {}, echo), "at most 64"),
        ((7, "d", {}, echo), "a Python name"),
        (("print", "d", {}, echo), "a Python builtin"),
        (("t", None, {}, echo), "its description must be a string"),
        (("t", "d", {}, None), "its handler must be callable, not NoneType"),
        (("t", "d", [], echo), r"must be a JSON Schema \(a dict\), not list"),
        (("t", "d", {"type": "array"}, echo), "type 'object', not 'array'"),
        (("t", "d", {"properties": []}, echo), "'properties' .* must be a dict"),
        (("t", "d", {"properties": {"a": TEXT}, "required": ["b"]}, echo), "'b' is not among its properties"),
        (("t", "d", {"properties": {"a": "string"}}, echo), "the schema of 'a' must be a dict, not 'string'"),
        (("t", "d", {"properties": {"a": {"type": "str"}}}, echo), "the type of 'a' must be one of .*, not 'str'"),
        (("t", "d", {"properties": {"a": {}}, "required": True}, echo), "'required' .* must be a list"),
        (("t", "d", {"properties": {"a": {"default": {1}}}}, echo), "its parameters are not JSON"),
        (("t", "d", {"properties": {"a": {"minimum": "1"}}}, echo), r"not JSON Schema: properties.a.minimum cannot be"),
        (("t", "d", {"properties": {"a": {"pattern": "("}}}, echo), r"not JSON Schema: properties.a.pattern cannot be"),
    ],
)
def test_a_tool_that_cannot_be_offered_is_refused_when_made(arguments: Any, problem: str) -> None:
    with pytest.raises(ToolError, match=problem):
        Tool(*arguments)


def test_a_tool_is_frozen_and_called_like_its_handler() -> None:
    weather = tool_with({"city": TEXT, "days": {**INT, "default": 3}}, "city")
    assert weather("Rome") == weather(city="Rome") == {"city": "Rome", "days": 3}
    assert weather("Rome", 5) == weather.handler(city="Rome", days=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        weather.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        (("a", 1, 2), {}, r"echo\(city: string, days: integer = 3\) takes 2 arguments, 3 were given"),
        (("a",), {"city": "b"}, "got 'city' twice"),
        ((), {}, r"missing 'city' \(string\)"),
    ],
)
def test_a_wrong_python_call_names_the_signature(args: Any, kwargs: Any, problem: str) -> None:
    with pytest.raises(ToolError, match=problem):
        tool_with({"city": TEXT, "days": {**INT, "default": 3}}, "city")(*args, **kwargs)


@pytest.mark.parametrize(
    ("sent", "taken", "note"),
    [
        ({"city": "Rome"}, {"city": "Rome", "days": 3}, ""),
        ('{"city": "Rome"}', {"city": "Rome", "days": 3}, ""),
        (json.dumps('{"city": "Rome"}'), {"city": "Rome", "days": 3}, ""),
        ('{"city": "two\nlines"}', {"city": "two\nlines", "days": 3}, ""),
        ("Rome", {"city": "Rome", "days": 3}, ""),
        ('"Rome"', {"city": "Rome", "days": 3}, ""),
        ("42", {"city": "42", "days": 3}, ""),
        ({"city": "Rome", "days": "4"}, {"city": "Rome", "days": 4}, ""),
        ({"city": "Rome", "days": 4.0}, {"city": "Rome", "days": 4}, ""),
        ({"city": "Rome", "days": None}, {"city": "Rome", "days": 3}, ""),
        ({"city": 12}, {"city": "12", "days": 3}, ""),
        ({"City": "Rome"}, {"city": "Rome", "days": 3}, "took argument 'City' as 'city'"),
        ({"city_name": "Rome"}, {"city": "Rome", "days": 3}, "took argument 'city_name' as 'city'"),
        ({"city": "Rome", "units": "C"}, {"city": "Rome", "days": 3}, "ignored unknown argument 'units'"),
        ({"city": "Rome", "town": "X"}, {"city": "Rome", "days": 3}, "ignored unknown argument 'town'"),
    ],
)
def test_arguments_that_are_nearly_right_are_taken(sent: Any, taken: Arguments, note: str) -> None:
    weather = tool_with({"city": TEXT, "days": {**INT, "default": 3}}, "city")
    assert call_tool(weather, sent) == taken
    text, _, said = call_for_model(weather, sent).partition("\n")
    assert json.loads(text) == taken
    assert (note in said) if note else said == ""


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ({}, "missing 'city' (string: where)"),
        ("", "missing 'city'"),
        ("null", "missing 'city'"),
        ({"city": None}, "city: expected string, got null"),
        ({"city": ["a"]}, 'city: expected string, got array ["a"]'),
        ({"city": "Rome", "days": "three"}, "days: expected integer, got string 'three'"),
        ({"city": "Rome", "days": True}, "days: expected integer, got boolean true"),
        ({"city": "Rome", "days": 2.5}, "days: expected integer, got number 2.5"),
        ('{"city": "Ro', "the arguments are not a JSON object"),
        ("[1, 2]", "the arguments must be a JSON object, not array"),
        ("[1, 2", "the arguments are not a JSON object"),
        ("[" * 100_000, "the arguments are not a JSON object"),
    ],
)
def test_arguments_that_cannot_be_right_are_explained(sent: Any, problem: str) -> None:
    weather = tool_with({"city": {**TEXT, "description": "where"}, "days": INT, "to": TEXT}, "city", "to")
    with pytest.raises(ToolError) as caught:
        call_tool(weather, sent)
    assert problem in str(caught.value)
    assert str(caught.value).endswith("; expected echo(city: string, days: integer = null, to: string)")


def test_unknown_arguments_reach_a_tool_that_takes_any() -> None:
    assert tool_with({}, additionalProperties=True)(anything=1) == {"anything": 1}


def test_async_handlers_run_with_and_without_a_running_loop() -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    async def fail() -> None:
        raise KeyError("inner")

    doubled = Tool("double", "d", {"properties": {"n": INT}, "required": ["n"]}, double)
    failing = Tool("failing", "f", {}, fail)

    async def main() -> Any:
        with pytest.raises(KeyError, match="inner"):
            failing()
        return doubled(n=4)

    assert doubled(n=3) == 6
    assert asyncio.run(main()) == 8
    with pytest.raises(KeyError, match="inner"):
        failing()


def test_a_handlers_own_error_passes_as_it_is() -> None:
    def divide(a: int) -> float:
        return 1 / a

    with pytest.raises(ZeroDivisionError):
        call_tool(tool(divide), {"a": 0})


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Dumpable:
    def model_dump(self, mode: str) -> Arguments:
        return {"dumped": mode}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(1), {"x": 1, "y": 0.5}),
        ([Point(1, 2.0)], [{"x": 1, "y": 2.0}]),
        (Colour.RED, "red"),
        (Dumpable(), {"dumped": "json"}),
        (Path("a/b"), "a/b"),
        (datetime(2026, 1, 2, tzinfo=timezone.utc), "2026-01-02T00:00:00+00:00"),
        (b"raw", b"raw"),
        ((1, {2}), (1, {2})),
        (iter([1, 2]), [1, 2]),
        ({Colour.BLUE: Decimal("1.5")}, {"blue": "1.5"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_results_become_plain_data(value: Any, expected: Any) -> None:
    assert Tool("give", "g", {}, lambda: value)() == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [("as is", "as is"), (None, "done (no result)"), ({"é": [1]}, '{"é": [1]}'), (b"x", "\"b'x'\""), (True, "true")],
)
def test_the_model_reads_results_as_text(value: Any, text: str) -> None:
    assert call_for_model(Tool("give", "g", {}, lambda: value), {}) == text


# --- JSON Schema ---------------------------------------------------------------------------------------------------

ADDRESS = {"type": "object", "properties": {"street": TEXT, "no": INT}, "required": ["street"]}
TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"name": TEXT, "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
            "required": ["name"],
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        (True, [1], [1]),
        ({}, None, None),
        (INT, " 42 ", 42),
        (INT, "-3.0", -3),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "7", 7),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, 0, False),
        ({"type": ["integer", "null"]}, None, None),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["string", "integer"]}, "3", "3"),
        (ADDRESS, '{"street": "Main", "no": "5"}', {"street": "Main", "no": 5}),
        ({"type": "array", "items": INT}, "[1, 2]", [1, 2]),
        ({"type": "array", "items": INT}, 7, [7]),
        ({"type": "array", "items": TEXT}, "solo", ["solo"]),
        ({"type": "array", "items": INT}, (1, "2"), [1, 2]),
        ({"type": "array", "prefixItems": [INT, TEXT]}, ["1", 2], [1, "2"]),
        ({"enum": ["Fast", "slow"]}, "FAST ", "Fast"),
        ({"type": "integer", "enum": [1, 2]}, "2", 2),
        ({"const": 1}, 1, 1),
        ({"anyOf": [INT, TEXT]}, "5", "5"),
        ({"anyOf": [INT, {"type": "null"}]}, "5", 5),
        ({"oneOf": [ADDRESS, TEXT]}, {"street": "S"}, {"street": "S"}),
        ({"allOf": [INT, {"minimum": 3}]}, "4", 4),
        ({"not": INT}, "x", "x"),
        ({"properties": {"a": {"default": [1]}}}, {}, {"a": [1]}),
        ({"properties": {"a": {"type": ["string", "null"]}}}, {"a": None}, {"a": None}),
        ({"additionalProperties": INT}, {"k": "1"}, {"k": 1}),
        ({"patternProperties": {"^n_": INT}, "additionalProperties": False}, {"n_a": "1"}, {"n_a": 1}),
        ({"type": "string", "pattern": "^a", "minLength": 1, "maxLength": 3}, "abc", "abc"),
        ({"multipleOf": 0.1}, 0.3, 0.3),
        (TREE, {"name": "a", "children": [{"name": 5}]}, {"name": "a", "children": [{"name": "5"}]}),
    ],
)
def test_values_that_fit_or_can_be_made_to(schema: Any, value: Any, expected: Any) -> None:
    taken, problems = validate(schema, value)
    assert problems == []
    assert taken == expected and type(taken) is type(expected)


@pytest.mark.parametrize(
    ("schema", "value", "problems"),
    [
        (False, 1, ["nothing is allowed here"]),
        (INT, "9" * 5000, ["expected integer, got string '" + "9" * 56 + "..."]),
        (INT, "1_0", ["expected integer, got string '1_0'"]),
        ({"type": "number"}, True, ["expected number, got boolean true"]),
        ({"type": "number"}, "nan", ["expected number, got string 'nan'"]),
        ({"type": ["integer", "null"]}, "x", ["expected integer or null, got string 'x'"]),
        (ADDRESS, "{broken", ["expected object, got string '{broken'"]),
        (ADDRESS, {}, ["missing 'street' (string)"]),
        (
            {"properties": {"home": ADDRESS}},
            {"home": {"no": "x"}},
            ["home.no: expected integer, got string 'x'", "home: missing 'street' (string)"],
        ),
        (
            {"type": "array", "items": INT},
            [1, "b", None],
            ["[1]: expected integer, got string 'b'", "[2]: expected integer, got null"],
        ),
        ({"enum": ["a", 1, None]}, "z", ["string 'z' is not one of \"a\", 1, null"]),
        ({"const": True}, 1, ["integer 1 is not one of true"]),
        (
            {"anyOf": [INT, {"type": "boolean"}]},
            "x",
            ["expected integer, got string 'x' or expected boolean, got string 'x'"],
        ),
        ({"not": INT}, 3, ["integer 3 is not allowed"]),
        ({"properties": {"a": TEXT}, "additionalProperties": False}, {"b": 1}, ["b: unknown property; there are a"]),
        ({"minimum": 1, "exclusiveMaximum": 5}, 5, ["must be less than 5, is 5"]),
        ({"multipleOf": 2}, 3, ["must be a multiple of 2, is 3"]),
        ({"type": "string", "pattern": "^a$"}, "b", ["string 'b' does not match the pattern ^a$"]),
        ({"minLength": 3}, "ab", ["must be at least 3 characters, is 2"]),
        ({"maxItems": 1}, [1, 2], ["must be at most 1 items, is 2"]),
        ({"uniqueItems": True}, [1, 1], ["has the same item twice"]),
        ({"minProperties": 1}, {}, ["must be at least 1 properties, is 0"]),
        ({"$ref": "#"}, 1, ["nested more than 64 levels deep"]),
    ],
)
def test_values_that_do_not_fit_are_said_where_and_why(schema: Any, value: Any, problems: list[str]) -> None:
    assert validate(schema, value)[1] == problems


def test_nothing_is_bent_without_coercion() -> None:
    assert validate(INT, "3", coerce=False) == ("3", ["expected integer, got string '3'"])
    assert validate({"enum": ["a"]}, "A", coerce=False)[1] == ["string 'A' is not one of \"a\""]
    assert validate({"properties": {"a": TEXT}}, {"a": None}, coerce=False)[1] == ["a: expected string, got null"]


def test_the_value_given_and_the_defaults_stay_untouched() -> None:
    schema = {"properties": {"tags": {"type": "array", "default": []}, "n": INT}}
    given = {"n": "1"}
    first, _ = validate(schema, given)
    first["tags"].append("x")
    assert (given, validate(schema, given)[0]) == ({"n": "1"}, {"n": 1, "tags": []})


# --- types ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Invoice:
    number: str
    total: float
    day: date
    colour: Colour = Colour.RED
    lines: list[Point] = dataclasses.field(default_factory=list)
    note: Annotated[str | None, "free text"] = None
    computed: int = dataclasses.field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.total < 0:
            raise ValueError("the total is negative")


@dataclasses.dataclass
class Branch:
    name: str
    below: list[Branch] = dataclasses.field(default_factory=list)


class Movie(TypedDict):
    title: str
    year: int


def test_the_schema_of_a_dataclass_names_types_defaults_and_what_is_required() -> None:
    point = {"type": "object", "properties": {"x": INT, "y": {"type": "number", "default": 0.5}}, "required": ["x"]}
    assert schema_of(Invoice) == {
        "type": "object",
        "properties": {
            "number": TEXT,
            "total": {"type": "number"},
            "day": {"type": "string", "format": "date"},
            "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "lines": {"type": "array", "items": {**point, "additionalProperties": False}},
            "note": {"anyOf": [TEXT, {"type": "null"}], "description": "free text", "default": None},
        },
        "required": ["number", "total", "day"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Invoice, {"number": 7, "total": "1.5", "day": "2026-01-02", "lines": '[{"x": "1"}]'}, None),
        (Branch, {"name": "a", "below": [{"name": "b"}]}, Branch("a", [Branch("b")])),
        (Movie, {"title": "M", "year": "1931"}, {"title": "M", "year": 1931}),
        (list[int], ["1", 2], [1, 2]),
        (set[str], ["a", "b"], {"a", "b"}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (dict[str, Point], {"p": {"x": 1}}, {"p": Point(1)}),
        (int | None, None, None),
        (Point | str, {"x": 1}, Point(1)),
        (Literal["a", "b"], "A", "a"),
        (Colour, "Blue", Colour.BLUE),
        (float, 3, 3.0),
        (datetime, "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
        (Decimal, "1.10", Decimal("1.10")),
        (Path, "a/b", Path("a/b")),
        (Any, {"free": 1}, {"free": 1}),
        ({"type": "integer"}, "5", 5),
    ],
    ids=lambda part: str(sorted(part) if isinstance(part, set) else part),  # the same in each process
)
def test_typed_values_are_built_from_what_the_model_gave(kind: Any, value: Any, expected: Any) -> None:
    checked, problems = validate(schema_of(kind), value)
    assert problems == []
    expected = expected or Invoice("7", 1.5, date(2026, 1, 2), lines=[Point(1)]) if kind is Invoice else expected
    built = construct(kind, checked)
    assert built == expected and type(built) is type(expected)


def test_a_value_that_its_class_refuses_says_why() -> None:
    with pytest.raises(ToolError, match="not a valid Invoice: the total is negative"):
        construct(Invoice, {"number": "1", "total": -1.0, "day": "2026-01-02"})
    with pytest.raises(ToolError, match="not a valid date"):
        construct(date, "2026-13-45")


def test_pydantic_models_bring_their_own_schema_and_checks() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Line(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        sku: str
        amount: int = pydantic.Field(ge=1, description="how many")

    class Order(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        lines: list[Line]

    Order.model_rebuild(_types_namespace={"Line": Line})
    schema = schema_of(Order)
    assert validate(schema, {"lines": [{"sku": 1, "amount": "2"}]}) == ({"lines": [{"sku": "1", "amount": 2}]}, [])
    assert validate(schema, {"lines": [{"sku": "a", "amount": 0}]})[1] == ["lines[0].amount: must be at least 1, is 0"]
    assert construct(Order, {"lines": [{"sku": "a", "amount": 2}]}) == Order(lines=[Line(sku="a", amount=2)])
    assert validate(schema_of(list[Order]), [{"lines": []}])[1] == []
    with pytest.raises(ToolError, match="not a valid Order"):
        construct(Order, {"lines": 5})


def test_a_type_without_a_schema_is_refused() -> None:
    with pytest.raises(ToolError, match="no JSON Schema for the type 'socket'"):
        schema_of(socket.socket)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": 5}, "type cannot be integer 5"),
        ({"type": "str"}, "type cannot be string 'str'"),
        ({"properties": 5}, "properties cannot be integer 5"),
        (
            {"properties": {"type": {"type": ["string", "nil"]}}},
            'properties.type.type cannot be array ["string", "nil"]',
        ),
        ({"properties": {"n": "integer"}}, "properties.n cannot be string 'integer'"),
        ({"items": {"anyOf": {}}}, "items.anyOf cannot be object {}"),
        ({"anyOf": [{"required": "n"}]}, "anyOf.0.required cannot be string 'n'"),
        ({"required": [1]}, "required cannot be array [1]"),
        ({"enum": "abc"}, "enum cannot be string 'abc'"),
        ({"minimum": "1"}, "minimum cannot be string '1'"),
        ({"multipleOf": 0}, "multipleOf cannot be integer 0"),
        ({"pattern": "("}, "pattern cannot be string '('"),
        ({"additionalProperties": 0}, "additionalProperties cannot be integer 0"),
        ({"default": {1, 2}}, "Object of type set is not JSON serializable"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_schema_is_said_before_it_is_used(schema: Any, problem: str) -> None:
    with pytest.raises(ToolError, match=re.escape(f"not a JSON Schema: {problem}") + "$"):
        schema_of(schema)


def test_a_schema_of_all_that_is_checked_is_taken_as_it_is() -> None:
    schema = {
        "$defs": {"n": {"type": ["integer", "null"], "minimum": 0, "multipleOf": 0.5}},
        "type": "object",
        "properties": {"type": {"$ref": "#/$defs/n"}, "required": {"enum": [1, "a"]}, "anything": True},
        "patternProperties": {"^x-": {"type": "array", "items": False, "prefixItems": [{"pattern": "^a"}]}},
        "required": ["type"],
        "additionalProperties": {"not": {"const": {"type": 5}}},
        "examples": [{"type": 5}],
    }
    assert schema_of(schema) is schema


# --- @tool ---------------------------------------------------------------------------------------------------------


@tool
def forecast(city: str, day: date, units: Literal["C", "F"] = "C", limits: list[int] | None = None) -> str:
    """The weather to come.

    Asks nobody.

    Args:
        city: where,
            exactly
        day (date): when

    Returns:
        a sentence
    """
    return f"{city} on {day:%d.%m.%Y} in {units} {limits}"


def test_a_decorated_function_is_described_by_its_signature_and_docstring() -> None:
    assert (forecast.name, forecast.description) == ("forecast", "The weather to come.\n\nAsks nobody.")
    assert forecast.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where, exactly"},
            "day": {"type": "string", "format": "date", "description": "when"},
            "units": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "limits": {"anyOf": [{"type": "array", "items": INT}, {"type": "null"}], "default": None},
        },
        "required": ["city", "day"],
    }
    assert (
        call_for_model(forecast, {"city": "Rome", "day": "2026-05-06", "units": "f"}) == "Rome on 06.05.2026 in F None"
    )


def test_the_decorator_takes_a_name_and_other_docstrings() -> None:
    @tool(name="add_up", description="Adds")
    async def add(a: int, b: int = 2) -> int:
        return a + b

    @tool
    def sphinx(a, b):  # type: ignore[no-untyped-def]
        """Joins.

        :param a: the first
        :param str b: the second
        """
        return f"{a}{b}"

    @tool
    def anything(**rest: Any) -> Any:
        return rest

    assert (add.name, add.description, add(1)) == ("add_up", "Adds", 3)
    assert sphinx.description == "Joins." and sphinx(1, 2) == "12"
    assert sphinx.parameters["properties"] == {"a": {"description": "the first"}, "b": {"description": "the second"}}
    assert (anything.description, anything(x=1)) == ("anything", {"x": 1})


def test_a_function_that_models_cannot_call_is_refused() -> None:
    def positional(a: int, /) -> None: ...
    def star(*rest: int) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821
    def connection(s: socket.socket) -> None: ...

    with pytest.raises(ToolError, match="cannot be given by name, as models do"):
        tool(positional)
    with pytest.raises(ToolError, match="cannot be given by name"):
        tool(star)
    with pytest.raises(ToolError, match=r"the annotations of .*unknown cannot be read: NameError.*Nowhere"):
        tool(unknown)
    with pytest.raises(ToolError, match="no JSON Schema for the type 'socket'"):
        tool(connection)


def test_a_module_level_tool_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(forecast))
    assert copy.handler is forecast.handler
    assert copy("Rome", "2026-05-06") == forecast("Rome", "2026-05-06")


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(workspace: Path) -> Files:
    """The file tools over a small project in the working directory, with secrets, links and odd files around it."""
    (workspace / "src/deep").mkdir(parents=True)
    (workspace / "src/main.py").write_text("import os\n\ndef main():\n    return 'needle'\n")
    (workspace / "src/deep/util.py").write_text("x = 1\n")
    (workspace / "notes.md").write_text("# Notes\nfind the needle\n")
    (workspace / "data.bin").write_bytes(b"\x00\x01needle\x02" * 100)
    (workspace / "node_modules").mkdir()
    (workspace / "node_modules/lib.js").write_text("needle\n")
    for name in SECRETS:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("needle SECRET\n")
    outside = workspace.parent / "outside"
    outside.mkdir()
    (outside / "file.txt").write_text("needle SECRET\n")
    (workspace / "link_out.txt").symlink_to(outside / "file.txt")
    (workspace / "dir_out").symlink_to(outside)
    (workspace / "link_in.txt").symlink_to("notes.md")
    (workspace / "link_secret.txt").symlink_to(".env")
    (workspace / "link_loop").symlink_to("link_loop")
    return by_name(file_tools())


SECRETS = [
    *(".env", ".env.local", "src/.ENV", "server.pem", "src/Key.PEM", "id_rsa", "src/id_ed25519", ".netrc"),
    *(".aws/credentials", ".git/config", ".git/modules/sub/config", ".ssh/known_hosts", ".git-credentials"),
]


def by_name(tools: list[Tool]) -> Files:
    return {tool.name: tool for tool in tools}


def test_files_are_read_as_text_by_code_and_as_numbered_lines_by_the_model(files: Files) -> None:
    read = files["file_read"]
    assert read("src/main.py") == "import os\n\ndef main():\n    return 'needle'\n"
    assert read("src/main.py", 3) == "def main():\n    return 'needle'\n"
    assert read("./src/../src/main.py", 3, 3) == "def main():\n"
    assert read("link_in.txt", end_line=1) == "# Notes\n"
    assert (
        call_for_model(read, {"path": "src/main.py", "start_line": 3})
        == "     3 def main():\n     4     return 'needle'"
    )
    assert call_for_model(read, {"path": "src/main.py", "start_line": 0, "end_line": -1}).count("\n") == 3


def test_files_are_listed_by_glob(files: Files) -> None:
    assert files["file_list"]() == ["data.bin", "link_in.txt", "notes.md", "src/deep/util.py", "src/main.py"]
    assert call_for_model(files["file_list"], {"pattern": "*.md"}) == "notes.md  24 bytes"
    assert call_for_model(files["file_list"], {"pattern": "*.xyz"}) == "no file matches '*.xyz'"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.py", ["src/deep/util.py", "src/main.py"]),
        ("**/*.py", ["src/deep/util.py", "src/main.py"]),
        ("src/*.py", ["src/main.py"]),
        ("./src/*.py", ["src/main.py"]),
        ("src", ["src/deep/util.py", "src/main.py"]),
        ("src/", ["src/deep/util.py", "src/main.py"]),
        ("src/**", ["src/deep/util.py", "src/main.py"]),
        ("src/main.py", ["src/main.py"]),
        ("s?c/[!u]*.py", ["src/main.py"]),
        ("*.{md,bin}", ["data.bin", "notes.md"]),
        ("{a,b", []),
        ("a}b,c", []),
        ("[", []),
        ("[z-a]*", []),
        ("**/d*/**/*", ["src/deep/util.py"]),
        ("src/{deep/util,main}.py", ["src/deep/util.py", "src/main.py"]),
        ("node_modules/**", ["node_modules/lib.js"]),
        ("src/../*.md", ["notes.md"]),
        ("missing/*.py", []),
        ("missing", []),
    ],
)
def test_globs(files: Files, pattern: str, expected: list[str]) -> None:
    assert files["file_list"](pattern) == expected


@pytest.mark.parametrize(
    "pattern", ["*a" * 60 + "*b", "**/" * 40 + "nothing", "{a,a}" * 9, "[!a-z" * 500], ids=lambda p: p[:5]
)
def test_no_pattern_takes_long(files: Files, workspace: Path, pattern: str) -> None:
    folder = workspace / "/".join("abcdefghijklmnopqrst")
    folder.mkdir(parents=True)
    (folder / ("a" * 200)).touch()
    try:
        assert files["file_list"](pattern) == []
    except ValueError as error:
        assert "more than 256 patterns" in str(error)


def test_files_are_searched_by_regex(files: Files) -> None:
    search = files["file_search"]
    rows = [
        {"path": "link_in.txt", "line": 2, "text": "find the needle"},
        {"path": "notes.md", "line": 2, "text": "find the needle"},
        {"path": "src/main.py", "line": 4, "text": "    return 'needle'"},
    ]
    assert search("needle") == rows
    assert search("(?i)^# NOTES$", "*.md") == [{"path": "notes.md", "line": 1, "text": "# Notes"}]
    assert search("^$", "src/main.py") == [{"path": "src/main.py", "line": 2, "text": ""}]
    assert call_for_model(search, {"regex": "needle", "pattern": "src"}) == "src/main.py:4:     return 'needle'"
    assert call_for_model(search, {"regex": "nowhere"}) == "no line matches in 5 files"


@pytest.mark.parametrize("path", SECRETS)
def test_secrets_are_neither_read_nor_listed_nor_searched(files: Files, path: str) -> None:
    for call in (lambda: files["file_read"](path), lambda: call_for_model(files["file_read"], {"path": path})):
        with pytest.raises(PermissionError, match="may hold credentials"):
            call()
    with pytest.raises(PermissionError, match="may hold credentials"):
        files["file_list"](path)
    assert path not in files["file_list"](f"{path[:-1]}?") + files["file_list"](f"{path}/**")
    assert files["file_search"]("SECRET", "**") == files["file_search"]("SECRET", f"{path[:-1]}?") == []


OUTSIDE = [
    *(
        "../outside/file.txt",
        "link_out.txt",
        "dir_out/file.txt",
        "src/../../outside/file.txt",
        "/etc/passwd",
        "..",
        "/",
    ),
    *("/proc/self/environ", "/proc/self/root/etc/passwd", "/sys/kernel/version", "/dev/zero"),
    *("/proc/self/cwd/../outside/file.txt", "../outside/missing.txt"),
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_outside_are_refused_whether_or_not_they_exist(files: Files, path: str) -> None:
    for name in ("file_read", "file_list"):
        with pytest.raises(PermissionError, match="outside the allowed paths"):
            files[name](path)


@pytest.mark.parametrize("pattern", ["../*", "../**", "/**", "/*", "*", "**/file.txt", "dir_out/*", "/etc/*", "l*"])
def test_no_glob_leads_outside(files: Files, pattern: str) -> None:
    try:
        assert set(files["file_list"](pattern)) <= set(files["file_list"]())
        assert files["file_search"]("SECRET", pattern) == []
    except PermissionError as error:
        assert "outside the allowed paths" in str(error)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("notes.mb", FileNotFoundError, "no such file: 'notes.mb'; there is 'notes.md'"),
        ("nowhere/at/all", FileNotFoundError, "no such file: 'nowhere/at/all'"),
        ("notes.md/x", FileNotFoundError, "no such file"),
        ("link_loop", FileNotFoundError, "no such file|cannot read"),
        ("src", IsADirectoryError, r"'src' is a folder: file_list\('src'\) lists its files"),
        ("data.bin", ValueError, r"'data.bin' is binary: read it in code, with open\('data.bin', 'rb'\)"),
        ("a\0b", ValueError, "not a path"),
        ("\udcff\ud800", ValueError, "not a path"),
        ("x" * 5000, (ValueError, PermissionError, FileNotFoundError), "not a path|cannot read|no such file"),
        ("", IsADirectoryError, "is a folder"),
    ],
)
def test_what_cannot_be_read_is_said_clearly(files: Files, path: str, error: Any, message: str) -> None:
    errors = (error, PermissionError) if path == "link_loop" else error
    with pytest.raises(errors, match=message):
        files["file_read"](path)


def test_a_pipe_a_socket_and_a_device_are_refused_without_being_opened(files: Files, workspace: Path) -> None:
    os.mkfifo(workspace / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name in ("pipe", "socket"):
            with pytest.raises(PermissionError, match="not a regular file"):
                files["file_read"](name)
        assert {"pipe", "socket"}.isdisjoint(files["file_list"]())
    device = by_name(file_tools(["/dev"]))
    with pytest.raises(PermissionError, match="not a regular file"):
        device["file_read"]("/dev/zero")


def test_a_file_without_permission_is_a_clear_error(files: Files, workspace: Path) -> None:
    (workspace / "locked.txt").write_text("x")
    (workspace / "locked.txt").chmod(0)
    user = os.geteuid()
    try:
        os.seteuid(65534 if user == 0 else user)
        with pytest.raises(PermissionError, match=r"cannot read 'locked.txt': Permission denied"):
            files["file_read"]("locked.txt")
    finally:
        os.seteuid(user)


def test_a_folder_swapped_for_a_link_while_reading_is_refused(
    files: Files, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap happens between the check and the opening, at the worst moment."""
    (workspace / "swap").mkdir()
    (workspace / "swap/file.txt").write_text("inside\n")
    assert files["file_read"]("swap/file.txt") == "inside\n"
    opened_below = rlm_tools._open_below

    def swapped(root: str, below: str) -> int:
        if below.startswith("swap"):
            (workspace / "swap").rename(workspace / "moved")
            (workspace / "swap").symlink_to(workspace.parent / "outside")
        return opened_below(root, below)

    monkeypatch.setattr(rlm_tools, "_open_below", swapped)
    with pytest.raises(PermissionError, match="cannot read"):
        files["file_read"]("swap/file.txt")
    assert files["file_list"]("moved") == ["moved/file.txt"]


def test_one_rlms_paths_never_widen_anothers(workspace: Path) -> None:
    other = workspace.parent / "other"
    other.mkdir()
    (other / "x.txt").write_text("x\n")
    wide, narrow = by_name(file_tools([".", other])), by_name(file_tools())
    assert wide["file_read"](str(other / "x.txt")) == "x\n"
    assert (
        wide["file_list"]() == wide["file_list"]("*.txt") == [f"{other}/x.txt"] == wide["file_list"](f"{other}/*.txt")
    )
    with pytest.raises(PermissionError):
        narrow["file_read"](str(other / "x.txt"))
    os.chdir(other)
    with pytest.raises(FileNotFoundError):
        narrow["file_read"]("x.txt")


def test_a_single_file_can_be_all_that_is_allowed(workspace: Path) -> None:
    (workspace / "one.txt").write_text("1\n")
    (workspace / "two.txt").write_text("2\n")
    one = by_name(file_tools(["one.txt"]))
    assert (one["file_read"]("one.txt"), one["file_list"]()) == ("1\n", ["one.txt"])
    assert one["file_search"](".") == [{"path": "one.txt", "line": 1, "text": "1"}]
    with pytest.raises(PermissionError):
        one["file_read"]("two.txt")
    nothing = by_name(file_tools([]))
    with pytest.raises(PermissionError, match=r"'one.txt' is outside the allowed paths \(none\)"):
        nothing["file_read"]("one.txt")
    with pytest.raises(PermissionError, match="outside the allowed paths"):
        nothing["file_list"]()


@pytest.mark.parametrize(
    "path",
    [
        *SECRETS,
        "a/.env.local",
        "ID_RSA",
        "x.PEM",
        ".git/config",
        ".git/config.worktree",
        ".git/HEAD",
        "config",
        "env",
        "a/b.py",
        "a.pem.",
        "a.pem . ",
        ".aws./x",
        ".git /config",
        "sub\\.env",
        "..",
        ".",
        "",
    ],
)
def test_the_sandbox_and_the_file_tools_take_the_same_names_for_secrets(path: str) -> None:
    """Both modules are to work alone, so each has the rule."""
    assert rlm_sandbox.may_hold_secrets(path.split("/")) == rlm_tools.is_secret(path)
    assert rlm_sandbox.SECRET_NAMES == rlm_tools._SECRET


@pytest.mark.parametrize(
    "path", ["/proc", "/proc/1/environ", "/sys/x", "/dev/zero", "/dev/shm", "/dev/shm/x", "/p", "/"]
)
def test_the_sandbox_and_the_file_tools_take_the_same_folders_for_the_kernels(path: str) -> None:
    assert rlm_sandbox.is_kernel_file(path) == rlm_tools._is_kernels(path)
    assert rlm_sandbox.KERNEL_FOLDERS == rlm_tools._KERNEL


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="needs O_PATH")
def test_a_file_in_a_folder_that_cannot_be_listed_is_read() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # which anybody can enter
        tree(Path(folder), "a.txt")
        os.chmod(folder, 0o111)
        user = os.geteuid()
        try:
            os.seteuid(65534 if user == 0 else user)
            assert by_name(file_tools([folder]))["file_read"](f"{folder}/a.txt") == "a.txt"
            assert read_context_files([f"{folder}/a.txt"], cwd="/").contents == {f"{folder}/a.txt": "a.txt"}
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o700)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
def test_files_in_shared_memory_are_files(workspace: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "a.txt").write_text("text")
        (Path(folder) / "link").symlink_to("a.txt")
        (workspace / "out").symlink_to(Path(folder) / "a.txt")
        tools = by_name(file_tools([folder]))
        assert tools["file_read"](f"{folder}/a.txt") == tools["file_read"](f"{folder}/link") == "text"
        assert list(read_context_files([folder]).contents.values()) == ["text", "text"]
        assert list(read_context_files(["link"], cwd=folder).contents.values()) == ["text"]
        with pytest.raises(ToolError, match="is the kernel's"):
            read_context_files(["out"])
        with LocalSandbox(workspace=folder) as box:
            assert box.execute("open('a.txt').read() + open('link').read()").value == "'texttext'"


def test_every_part_of_a_name_is_judged_though_it_is_a_link(workspace: Path) -> None:
    tree(workspace, "conf/credentials", "real.txt")
    (workspace / ".aws").symlink_to("conf")
    (workspace / ".env").symlink_to("real.txt")
    tools = by_name(file_tools())
    for path in (".aws/credentials", "./conf/../.aws/credentials", str(workspace / ".aws/credentials"), ".aws", ".env"):
        for name in ("file_read", "file_list"):
            with pytest.raises(PermissionError, match="may hold credentials"):
                tools[name](path)
    assert tools["file_list"](".aws/*") == tools["file_search"]("c", ".aws/*") == []
    assert tools["file_read"]("conf/credentials") == "conf/credentials"
    for spec in (".aws/credentials", ".aws", ".aws/*", ".env"):
        with pytest.raises(ToolError, match="may hold credentials") as caught:
            read_context_files([spec], within=str(workspace))
        assert "leads" not in str(caught.value)
    assert list(read_context_files(["conf"], within=str(workspace)).contents) == ["conf/credentials"]
    allowed = by_name(file_tools([".aws"]))  # the caller's own word
    assert allowed["file_read"](".aws/credentials") == "conf/credentials"


def test_a_folder_that_is_a_secret_by_name_can_be_allowed_by_name(workspace: Path) -> None:
    (workspace / "id_project").mkdir()
    (workspace / "id_project/a.txt").write_text("a\n")
    tools = by_name(file_tools(["id_project"]))
    assert tools["file_read"]("id_project/a.txt") == "a\n"
    assert tools["file_list"]("id_project") == tools["file_list"]("id_project/*") == ["id_project/a.txt"]


def test_a_name_that_looks_like_a_pattern_is_found(workspace: Path) -> None:
    for name in ("[id].tsx", "i.tsx", "data{1}.csv", "a*b"):
        (workspace / name).write_text("needle\n")
    tools = by_name(file_tools())
    for name in ("[id].tsx", "data{1}.csv", "a*b"):
        assert tools["file_list"](name) == [row["path"] for row in tools["file_search"]("needle", name)] == [name]
    assert tools["file_list"]("[i].tsx") == ["i.tsx"]
    assert tools["file_list"](".") == tools["file_list"]()
    with pytest.raises(ValueError, match="null"):
        tools["file_list"]("\0/*")


def test_a_folder_whose_name_looks_like_a_pattern_is_one(workspace: Path) -> None:
    tree(workspace, "[slug]/page.tsx", "[slug]/deep/page.tsx", "s/page.tsx")
    listed = by_name(file_tools())["file_list"]
    assert listed("[slug]/*.tsx") == list(read_context_files(["[slug]/*.tsx"]).contents) == ["[slug]/page.tsx"]
    assert listed("[s]/*.tsx") == ["s/page.tsx"]


def test_a_runs_own_logs_are_seen_only_when_asked_for(workspace: Path) -> None:
    (workspace / "logs").mkdir()
    (workspace / "logs/run.jsonl").write_text("needle\n")
    (workspace / "a.txt").write_text("needle\n")
    tools = by_name(file_tools(exclude=["./logs"]))
    assert (tools["file_list"](), tools["file_list"]("*.jsonl")) == (["a.txt"], [])
    assert [row["path"] for row in tools["file_search"]("needle")] == ["a.txt"]
    assert tools["file_list"]("logs") == tools["file_list"]("logs/*") == ["logs/run.jsonl"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ""),
        (b"no end", "no end"),
        (b"win\r\ndows\r\n", "win\ndows\n"),
        (b"\xef\xbb\xbfmark\n", "mark\n"),
        ("sixteen é\n".encode("utf-16"), "sixteen é\n"),
        (b"caf\xe9\nna\xc3\xafve \xe2\x82\xac \xe9\n", "café\nnaïve € é\n"),
        (b"\xed\xa0\x80\n", "í\xa0€\n"),
        (b"\x1b[31mred\x1b[0m\n", "\x1b[31mred\x1b[0m\n"),
    ],
)
def test_texts_are_decoded_whatever_wrote_them(workspace: Path, content: bytes, expected: str) -> None:
    (workspace / "text.txt").write_bytes(content)
    tools = by_name(file_tools())
    assert tools["file_read"]("text.txt") == expected
    found = [row["text"] for row in tools["file_search"]("")]
    assert found == expected.removesuffix("\n").split("\n") if content else found == []
    assert "text.txt is empty" in call_for_model(tools["file_read"], {"path": "text.txt"}) or content
    assert read_context_files(["text.txt"]).contents == {"text.txt": expected}  # as the context it is the same text


def test_a_long_file_is_shown_in_part_and_says_how_to_go_on(workspace: Path) -> None:
    (workspace / "long.txt").write_text("".join(f"line {n} {'x' * 90}\n" for n in range(1, 1001)))
    read = by_name(file_tools())["file_read"]
    text = call_for_model(read, {"path": "long.txt"})
    said = re.search(r"\[lines 1-(\d+) of long.txt, a file of [0-9,]+ bytes; next: start_line=(\d+)\]$", text)
    assert said and int(said[2]) == int(said[1]) + 1 and len(text) < 10_000
    assert call_for_model(read, {"path": "long.txt", "start_line": int(said[2])}).startswith(
        f"{said[2]:>6} line {said[2]} x"
    )
    assert read("long.txt") == (workspace / "long.txt").read_text()
    with pytest.raises(ValueError, match="start_line 1,002 is after the last line, 1,000"):
        read("long.txt", 1002)
    with pytest.raises(ValueError, match="end_line 2 is before start_line 3"):
        read("long.txt", 3, 2)


def test_a_huge_file_costs_little_and_code_is_told_to_read_less(workspace: Path) -> None:
    with open("huge.txt", "wb") as file:
        file.write(b"first\n")
        file.truncate(3_000_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    (workspace / "lines.txt").write_bytes(b"0123456789\n" * 1_000_000)
    tools = by_name(file_tools())
    with pytest.raises(ValueError, match=r"huge.txt' is binary"):
        tools["file_read"]("huge.txt")
    with pytest.raises(ValueError, match=r"more than 5 MB there: read fewer lines, or in code open\('lines.txt'\)"):
        tools["file_read"]("lines.txt")
    assert tools["file_read"]("lines.txt", 999_999) == "0123456789\n" * 2
    assert call_for_model(tools["file_read"], {"path": "lines.txt"}).endswith(
        "lines.txt, a file of 11,000,000 bytes; next: start_line=528]"
    )


def test_one_endless_line_is_cut(workspace: Path) -> None:
    (workspace / "line.json").write_text("[" + "1234567890," * 1_000_000)
    tools = by_name(file_tools())
    text = call_for_model(tools["file_read"], {"path": "line.json"})
    assert len(text) < 3_000 and "… [a line of 38,000 characters or more]" in text
    for row in tools["file_search"]("7890"):  # one for each 6 MB of the line
        assert (row["line"], len(row["text"])) == (1, 2000) and "7890" in row["text"]


def test_search_shows_the_place_of_a_match_in_a_long_line(workspace: Path) -> None:
    (workspace / "long.txt").write_text("x" * 50_000 + "needle" + "y" * 50_000)
    assert "needle" in by_name(file_tools())["file_search"]("needle")[0]["text"]


def test_many_matches_are_shown_in_part_and_too_many_are_an_error(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "many.txt").write_text("match\n" * 3000)
    search = by_name(file_tools())["file_search"]
    assert len(search("match")) == 3000
    assert call_for_model(search, {"regex": "match"}).endswith(
        " of 3,000 matching lines; narrow the regex or the pattern]"
    )
    monkeypatch.setattr(rlm_tools, "MATCH_LIMIT", 100)
    with pytest.raises(ValueError, match="more than 100 lines match 'match'"):
        search("match")
    monkeypatch.setattr(rlm_tools, "VIEW_LIMIT", 500)
    assert "of more than 100 matching lines" in call_for_model(search, {"regex": "match"})


@pytest.mark.parametrize("regex", ["(", "*", "a{2,1}", "(?P<x", "[z-a]", "(?i", "\\"])
def test_a_regex_that_is_none_is_said(files: Files, regex: str) -> None:
    with pytest.raises(ValueError, match="not a Python regular expression"):
        files["file_search"](regex)


def test_a_regex_that_never_ends_is_stopped_and_its_process_is_gone(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "a.txt").write_text("aaa!\n")
    (workspace / "b.txt").write_text("a" * 64 + "!\n")
    monkeypatch.setattr(rlm_tools, "SEARCH_SECONDS", 0.5)
    children: list[Any] = []
    started = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: children.append(started(*a, **k)) or children[-1])
    search = by_name(file_tools())["file_search"]
    with pytest.raises(TimeoutError, match=r"the search took longer than 0.5 s, in 'b.txt': simplify the regex"):
        search("^(a+)+$|a!")
    text = call_for_model(search, {"regex": "^(a+)+$|aaa!"})
    assert text.startswith("a.txt:1: aaa!\n[the search took longer than 0.5 s")
    assert [child.poll() is not None for child in children] == [True, True]


def test_too_many_files_are_an_error_that_says_so(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (workspace / f"{number}.txt").touch()
    listing = by_name(file_tools())["file_list"]
    monkeypatch.setattr(rlm_tools, "VIEW_LIMIT", 200)
    assert call_for_model(listing, {}).endswith("of 30 files; narrow the pattern]")
    monkeypatch.setattr(rlm_tools, "LIST_LIMIT", 20)
    with pytest.raises(ValueError, match=r"more than 20 files match '\*\*'"):
        listing()


def test_a_tree_that_takes_too_long_is_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "a/b/c").mkdir(parents=True)
    monkeypatch.setattr(rlm_tools, "SEARCH_SECONDS", -1)
    with pytest.raises(TimeoutError, match=r"listing files took longer than .* narrow the pattern"):
        by_name(file_tools())["file_list"]()


def test_the_file_tools_cost_little_of_the_prompt() -> None:
    """They are in every request; the system prompt with all schemas has 3,300 bytes."""
    schemas = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in file_tools()]
    assert len(json.dumps(schemas)) < 1000


# --- files given as the context ------------------------------------------------------------------------------------


def tree(folder: Path, *names: str) -> None:
    """Files that each hold their own name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("src", ["src/.hidden", "src/a.py", "src/deep/b.py"]),
        ("./src/", ["src/.hidden", "src/a.py", "src/deep/b.py"]),
        ("src/*", ["src/a.py"]),
        ("src/.*", ["src/.hidden"]),
        ("src/**/*.py", ["src/a.py", "src/deep/b.py"]),
        ("*.txt", ["c.txt"]),
        ("{c,d}.txt", ["c.txt"]),
        ("odd[1]/*.txt", ["odd[1]/x.txt"]),
        ("~/h.txt", ["HOME/h.txt"]),
        ("~", ["HOME/h.txt"]),
        ("~/*.txt", ["HOME/h.txt"]),
        ("src/../c.txt", ["c.txt"]),
    ],
)
def test_what_a_caller_names_for_the_context(workspace: Path, spec: str, names: list[str]) -> None:
    tree(workspace, "src/a.py", "src/deep/b.py", "src/.hidden", "src/__pycache__/a.pyc", "c.txt", "odd[1]/x.txt")
    tree(workspace, "src/.env", "src/deep/id_rsa", "logs/1.jsonl")
    home = Path.home()
    tree(home, "h.txt")
    given = read_context_files([spec], exclude=["./logs"])
    assert list(given.contents) == [name.replace("HOME", str(home)) for name in names]
    assert [Path(path).read_text() for path in given.paths] == list(given.contents.values())


def test_a_glob_in_a_folder_whose_name_has_brackets(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(workspace, "a[1]/x.txt", "a1/wrong.txt")
    monkeypatch.chdir(workspace / "a[1]")
    assert list(read_context_files(["*.txt"]).contents) == ["x.txt"]
    assert list(read_context_files([str(workspace / "a[1]/*.txt")]).contents) == [str(workspace / "a[1]/x.txt")]


def test_links_in_circles_end(workspace: Path) -> None:
    tree(workspace, "two/x.txt")
    for name in ("a", "b"):
        (workspace / "two" / name).symlink_to(".")
    for spec in ("two/**/*.txt", "two/*/*.txt", "two"):
        with pytest.raises(ToolError, match="was not found") if "/*/" in spec else contextlib.nullcontext():
            assert list(read_context_files([spec]).contents) == ["two/x.txt"]


def test_own_logs_are_no_context_unless_they_are_named(workspace: Path) -> None:
    tree(workspace, "a.txt", "logs/1.jsonl")
    assert list(read_context_files(["."], exclude=["./logs"]).contents) == ["a.txt"]
    assert list(read_context_files(["logs"], exclude=["./logs"]).contents) == ["logs/1.jsonl"]


def test_a_pipe_that_is_named_is_read(workspace: Path) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: (workspace / "pipe").write_bytes(b"through a pipe" * 10_000))
    writer.start()
    given = read_context_files(["pipe"])
    writer.join()
    assert (given.contents, given.rereadable, given.single) == ({"pipe": "through a pipe" * 10_000}, False, True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "was not found"),
        ("a\0b", "was not found"),
        ("none.txt", "was not found"),
        ("none/*.txt", "was not found"),
        ("*.none", "was not found"),
        ("c.txt/", "was not found"),
        ("empty", "holds no file to read"),
        (".aws", "may hold credentials"),
        (".aws/*", "may hold credentials"),
        ("{a,b}" * 9, "cannot be used: the pattern stands for more than 256 patterns"),
    ],
)
def test_what_cannot_be_a_context_is_said(workspace: Path, spec: str, message: str) -> None:
    tree(workspace, "c.txt", ".aws/credentials")
    (workspace / "empty").mkdir()
    with pytest.raises(ToolError, match=re.escape(f"context {spec!r} {message}")) as caught:
        read_context_files([spec])
    assert "-c 'src/**/*.py'" in caught.value.hint


def test_binaries_among_files_are_left_out_without_being_read(workspace: Path) -> None:
    tree(workspace, "all/a.txt")
    for number in range(4):
        with open(f"all/{number}.bin", "wb") as file:
            file.truncate(10_000_000_000)  # does not fit into memory
    given = read_context_files(["all"])
    assert (given.contents, given.notes) == (
        {"all/a.txt": "all/a.txt"},
        ["4 files that are not text were left out: all/0.bin, all/1.bin, all/2.bin, all/3.bin"],
    )
    (workspace / "b.png").write_bytes(b"PNG\0")
    assert (
        read_context_files(["b.png", "all/a.txt"], keep=lambda head: head[:3] == b"PNG").contents["b.png"] == b"PNG\0"
    )
    assert read_context_files(["b.png"]).contents == {"b.png": b"PNG\0"}
    assert read_context_files(["./b.png", "all"], keep=lambda head: head[:3] == b"PNG").named == ["b.png"]


# --- plug-ins ------------------------------------------------------------------------------------------------------

PLUGIN = """
from rlm_tools import Tool, tool
from helper import GREETING

@tool
def greet(name: str) -> str:
    "Greets."
    return f"{GREETING} {name}"

def private(): ...
second = Tool("second", "Second", {}, lambda: 2)
"""


def test_tools_come_from_a_file_and_what_lies_beside_it(workspace: Path) -> None:
    (workspace / "tools").mkdir()
    (workspace / "tools/mine.py").write_text(PLUGIN)
    (workspace / "tools/helper.py").write_text("GREETING = 'hello'")
    path = list(sys.path)
    greet, second = load_tools("tools/mine.py")
    assert (greet.name, greet("you"), second(), greet.source) == ("greet", "hello you", 2, "tools/mine.py")
    assert sys.path == path and "mine" not in sys.modules
    sys.modules.pop("helper")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("TOOLS = [Tool('a', 'A', {}, print)]\nb = Tool('b', 'B', {}, print)", ["a"]),
        ("TOOLS = (Tool(n, n, {}, print) for n in 'xy')", ["x", "y"]),
        ("a = b = Tool('a', 'A', {}, print)", ["a"]),
    ],
)
def test_a_module_may_list_its_tools(workspace: Path, source: str, names: list[str]) -> None:
    (workspace / "mine.py").write_text(f"from rlm_tools import Tool\n{source}\n")
    assert [item.name for item in load_tools("mine.py")] == names


def test_tools_come_from_a_module_or_one_name_in_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "pack_age").mkdir()
    source = (
        "from rlm_tools import Tool\na = Tool('a', 'A', {}, print)\ndef make(): return [a, Tool('m', 'M', {}, print)]"
    )
    (workspace / "pack_age/mod.py").write_text(source)
    monkeypatch.syspath_prepend(str(workspace))
    assert [item.name for item in load_tools("pack_age.mod")] == ["a"]
    assert [item.name for item in load_tools("pack_age.mod:make")] == ["a", "m"]
    assert [item.name for item in load_tools("pack_age.mod:a")] == ["a"]


def test_a_plain_function_is_a_tool_and_a_number_is_none(workspace: Path) -> None:
    def double(n: int) -> int:
        return 2 * n

    (made,) = load_tools(double)
    assert (made.name, made("4"), load_tools(made)) == ("double", 8, [made])
    (workspace / "mine.py").write_text("from rlm_tools import Tool\nt = Tool('t', 'T', {}, lambda: 1)")
    assert [item.name for item in load_tools(workspace / "mine.py")] == ["t"]
    with pytest.raises(ToolError, match="not a tool: integer 5"):
        load_tools(5)


@pytest.mark.parametrize(
    ("spec", "source", "message"),
    [
        ("bad.py", "import nowhere_to_be_found", "'bad.py' cannot be imported: ModuleNotFoundError: No module named"),
        ("bad.py", "def f(:", "'bad.py' cannot be imported: SyntaxError"),
        ("bad.py", "1/0", "'bad.py' cannot be imported: ZeroDivisionError"),
        ("bad.py", "raise SystemExit(3)", "'bad.py' cannot be imported: SystemExit: 3"),
        ("bad.py", "\0", "'bad.py' cannot be imported: (SyntaxError|ValueError)"),
        ("bad.py", "x = 1", "'bad.py' has no tools"),
        ("bad.py", "TOOLS = [1]", "'bad.py' has no tools"),
        ("bad.py", "TOOLS = 'abc'", "'bad.py' has no tools"),
        ("bad.py", "from rlm_tools import Tool; Tool('print', '', {}, print)", "ToolError: tool 'print'"),
        ("missing.py", "", "no such tools file: 'missing.py'"),
        ("./missing", "", "no such tools file: './missing'"),
        ("no.such.module", "", "'no.such.module' cannot be imported: ModuleNotFoundError"),
        ("json:nothing", "", "'json:nothing': the module has no 'nothing'"),
        ("json", "", "'json' has no tools"),
        ("json:dumps", "", "'json:dumps' cannot be imported: TypeError"),
        ("", "", "cannot be imported: ValueError"),
        ("..x", "", "cannot be imported"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named(workspace: Path, spec: str, source: str, message: str) -> None:
    if spec == "bad.py":
        (workspace / spec).write_text(source)
    before = set(sys.modules)
    with pytest.raises(ToolError, match=message):
        load_tools(spec)
    assert not [name for name in set(sys.modules) - before if name.startswith("_rlm_tools")] or "no tools" in message


def test_the_place_of_a_plug_ins_error_is_said(workspace: Path) -> None:
    (workspace / "bad.py").write_text("x = 1\n\nx.upper()\n")
    with pytest.raises(ToolError, match="AttributeError") as caught:
        load_tools("bad.py")
    assert caught.value.hint == f"see {workspace / 'bad.py'}, line 3"


@pytest.mark.parametrize(
    ("source", "text", "hint"),
    [
        ("bad.py", "x = 1\ndef f(:\n", "see {}/bad.py, line 2"),
        ("no_such_module", "", "give a file or an installed module: --tools FILE.py"),
    ],
)
def test_the_hint_of_a_plugin_leads_to_its_own_lines(workspace: Path, source: str, text: str, hint: str) -> None:
    (workspace / "bad.py").write_text(text)
    with pytest.raises(rlm_tools.ToolError) as caught:
        rlm_tools.load_tools(source)
    assert caught.value.hint == hint.format(workspace)


def test_an_edited_tools_file_is_loaded_anew(workspace: Path) -> None:
    source = "from rlm_tools import Tool\nt = Tool('t', 'T', {}, lambda: VALUE)"
    for value in (1, 22, 333):
        (workspace / "mine.py").write_text(source.replace("VALUE", str(value)))
        assert load_tools("mine.py")[0]() == value
    assert len([name for name in sys.modules if name.startswith("_rlm_tools") and name.endswith("mine_py")]) <= 9


def test_a_plug_in_that_does_not_end_its_import_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(threading, "released_by_the_test", release, raising=False)
    (workspace / "slow.py").write_text("import threading; threading.released_by_the_test.wait()")
    monkeypatch.setattr(rlm_tools, "IMPORT_SECONDS", 0.1)
    try:
        with pytest.raises(ToolError, match=r"'slow.py': its import took longer than 0.1 s"):
            load_tools("slow.py")
    finally:
        release.set()


# --- Snipara -------------------------------------------------------------------------------------------------------


@pytest.fixture
def snipara() -> Iterator[FakeSnipara]:
    with FakeSnipara() as running:
        yield running


def post(url: str, **options: Any) -> Any:
    return rlm_backends.post(url, max_retries=2, **options)


def snipara_tools(fake: FakeSnipara, url: str = "", **options: Any) -> Files:
    given = {"api_key": KEY, "slug": SLUG, "memory_enabled": True, **options}
    return by_name(rlm_tools.snipara_tools(**given, url=url or fake.url, post=post))


def write_login(home: Path, **entry: Any) -> Path:
    path = home / ".snipara/tokens.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    login = {"access_token": "access-good", "refresh_token": "refresh-good", "project_slug": SLUG, **entry}
    path.write_text(json.dumps({"other": {"access_token": "access-other", "project_slug": "first"}, "p1": login}))
    path.chmod(0o600)
    return path


def test_five_tools_without_memory_and_nine_with(snipara: FakeSnipara) -> None:
    five = ["context_query", "search", "sections", "read", "shared_context"]
    assert list(snipara_tools(snipara, memory_enabled=False)) == five
    assert list(snipara_tools(snipara)) == [*five, "remember", "recall", "memories", "forget"]
    assert snipara.requests == []


@pytest.mark.parametrize("wire", ["url", "rest_url", "v1_url"])
def test_every_tool_works_on_every_wire(snipara: FakeSnipara, wire: str) -> None:
    tools = snipara_tools(snipara, getattr(snipara, wire) + "/")
    (section,) = tools["context_query"]("tokens")["sections"]
    assert (section["title"], section["lines"]) == ("Authentication", [1, 3])
    assert tools["search"]("Refunds")["results"][0]["line_number"] == 6
    assert [s["title"] for s in tools["sections"]()["sections"]] == ["Authentication", "Payments"]
    assert (
        tools["read"](2, 3)["content"] == "    2| Users log in with a password.\n    3| Tokens expire after 30 minutes."
    )
    assert tools["shared_context"]()["merged_content"] == "Write tests first."
    assert tools["remember"]("Deploy on Mondays")["memory_id"] == "m1"
    assert tools["recall"]("mondays")["memories"][0]["content"] == "Deploy on Mondays"
    assert tools["memories"]()["total_count"] == 1
    assert tools["forget"]("m1") == {"deleted_count": 1, "message": "Deleted 1 memories"}
    assert {request.headers["x-api-key"] for request in snipara.requests} == {KEY}


def test_the_wire_of_a_call(snipara: FakeSnipara) -> None:
    snipara_tools(snipara)["search"]("x", max_results=None)
    snipara_tools(snipara, snipara.rest_url)["context_query"]("q")
    rpc, rest = snipara.requests
    arguments = {"pattern": "x", "max_results": 20}
    params = {"name": "rlm_search", "arguments": arguments}
    assert (rpc.path, rpc.body) == (
        f"/mcp/{SLUG}",
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params},
    )
    defaults = {"max_tokens": 2000, "search_mode": "hybrid", "prefer_summaries": False, "include_metadata": True}
    assert (rest.path, rest.body) == (
        f"/api/mcp/{SLUG}",
        {"tool": "rlm_context_query", "params": {"query": "q", **defaults}},
    )
    assert rpc.headers["content-type"] == "application/json" and "authorization" not in rpc.headers


def test_v1_falls_back_to_the_older_path(snipara: FakeSnipara) -> None:
    snipara.has_v1 = False
    assert snipara_tools(snipara, snipara.v1_url)["sections"]()["total_sections"] == 2
    assert [request.path for request in snipara.requests] == [f"/v1/{SLUG}/mcp", f"/api/mcp/{SLUG}"]


def test_read_asks_for_no_more_than_200_lines(snipara: FakeSnipara) -> None:
    assert snipara_tools(snipara)["read"](1, 5000)["end_line"] == 200


def test_the_model_reads_documents_as_text(snipara: FakeSnipara) -> None:
    tools = snipara_tools(snipara)
    text = call_for_model(tools["context_query"], {"query": "refunds"})
    assert "\n# Payments\nCards are charged through the gateway.\nRefunds need an approval.\n" in text
    assert '"file": "docs/guide.md"' in text and '"suggestions"' not in text
    assert call_for_model(tools["read"], {"start_line": "1", "end_line": 1}) == "    1| # Authentication"
    assert json.loads(call_for_model(tools["search"], {"pattern": "Cards"}))["total_matches"] == 1
    assert call_for_model(tools["search"], {"pattern": "("}).startswith("Invalid regex pattern")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("401", "the server answered 401: Token expired"),
        ("403", r"the server answered 403: No access to this project \(code forbidden\)"),
        ("404", "the server answered 404: Project not found"),
        ("422", "the server answered 422: field required"),
        ("429", "the server answered 429: Monthly query limit of 100 is reached"),
        ("500", "the server answered 500: Internal Server Error"),
        ("302", "302|redirect"),
        ("html", "200 with what is not a JSON object: '<!DOCTYPE html>"),
        ("empty", "200 with what is not a JSON object: ''"),
        ("half", "200 with what is not a JSON object: '{\"jsonrpc"),
        ("list", "200 with what is not a JSON object"),
        ("nothing", "200 with neither a result nor an error"),
        ("error object", r"The index is being rebuilt \(code -32000\)"),
        ("error string", "The index is being rebuilt"),
        ("detail", "The index is being rebuilt"),
        ("not a success", "Out of luck"),
        ("isError", "the tool failed: Section index unavailable try later"),
        ("echo", r"403: Key \[redacted\] is blocked"),
    ],
)
def test_every_failure_is_one_clear_error_with_the_servers_words(
    snipara: FakeSnipara, failure: str, message: str
) -> None:
    snipara.failures = [failure] * 9
    with pytest.raises(ToolError, match=message) as caught:
        snipara_tools(snipara)["search"]("x")
    assert str(caught.value).startswith("snipara search: ")
    assert KEY not in str(caught.value)
    assert bool(caught.value.hint) == (failure in ("401", "403", "echo"))


@pytest.mark.parametrize("failure", ["429", "500"])
def test_a_passing_failure_is_retried(snipara: FakeSnipara, failure: str) -> None:
    snipara.failures = [failure]
    assert snipara_tools(snipara)["search"]("Cards")["total_matches"] == 1
    assert len(snipara.requests) == 2


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("two blocks", [{"part": 1}, {"part": 2}]),
        ("plain text", "No documentation loaded"),
        ("text and image", "a caption"),
        ("structured", {"sections": []}),
    ],
)
def test_unusual_results_are_read(snipara: FakeSnipara, reply: str, expected: Any) -> None:
    snipara.failures = [reply]
    assert snipara_tools(snipara)["search"]("x") == expected


def test_all_failures_of_the_fake_server_are_covered() -> None:
    tests = (test_every_failure_is_one_clear_error_with_the_servers_words, test_unusual_results_are_read)
    marks = [mark for test in tests for mark in test.pytestmark]  # type: ignore[attr-defined]
    assert {row[0] for mark in marks for row in mark.args[1]} == set(FAILURES)


def test_a_server_that_cannot_be_reached_is_a_tool_error(snipara: FakeSnipara) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/mcp"
        tools = by_name(
            rlm_tools.snipara_tools(KEY, SLUG, url, False, lambda u, **o: rlm_backends.post(u, max_retries=0, **o))
        )
        with pytest.raises(ToolError, match="snipara cannot be reached"):
            tools["sections"]()


@pytest.mark.parametrize("key", ["two\nlines", "k\u00e9y", "with space"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(snipara: FakeSnipara, key: str) -> None:
    with pytest.raises(ToolError, match="the snipara key holds characters that no key has") as caught:
        snipara_tools(snipara, api_key=key)
    assert key not in str(caught.value)
    assert snipara_tools(snipara, api_key=f" {KEY}\n")["sections"]()["total_sections"] == 2


def test_nothing_is_registered_without_both_key_and_slug_or_a_matching_login(
    snipara: FakeSnipara, workspace: Path
) -> None:
    home = Path(os.environ["HOME"])
    assert snipara_tools(snipara, api_key=None) == snipara_tools(snipara, slug=None) == {}
    write_login(home)
    assert snipara_tools(snipara, api_key=None, slug="second") == {}
    assert snipara_tools(snipara, api_key=None, slug=None) == {}
    assert len(snipara_tools(snipara, api_key=None)) == 9
    with pytest.raises(ToolError, match="not a snipara project slug"):
        snipara_tools(snipara, slug="../../admin")


def test_an_explicit_key_wins_over_a_login(snipara: FakeSnipara) -> None:
    write_login(Path(os.environ["HOME"]))
    snipara_tools(snipara)["sections"]()
    (request,) = snipara.requests
    assert request.headers["x-api-key"] == KEY and "authorization" not in request.headers


def test_a_login_sends_its_token(snipara: FakeSnipara) -> None:
    write_login(Path(os.environ["HOME"]), expires_at="2999-01-01T00:00:00Z")
    snipara_tools(snipara, api_key=None)["sections"]()
    (request,) = snipara.requests
    assert request.headers["authorization"] == "Bearer access-good" and "x-api-key" not in request.headers


@pytest.mark.parametrize("expires_at", ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00.5+00:00", "2020-01-01T00:00:00"])
def test_an_expired_token_is_renewed_and_kept(snipara: FakeSnipara, expires_at: str) -> None:
    path = write_login(Path(os.environ["HOME"]), expires_at=expires_at, access_token="access-old")
    tools = snipara_tools(snipara, api_key=None)

    async def in_a_running_loop() -> Any:
        return tools["sections"]()

    assert asyncio.run(in_a_running_loop())["total_sections"] == 2
    refresh, call = snipara.requests
    assert refresh.path == "/api/oauth/token"
    assert refresh.body == {"grant_type": "refresh_token", "refresh_token": "refresh-good"}
    assert call.headers["authorization"] == "Bearer access-new"
    kept = json.loads(path.read_text())
    assert (kept["p1"]["access_token"], kept["p1"]["refresh_token"]) == ("access-new", "refresh-next")
    assert kept["other"]["access_token"] == "access-other" and path.stat().st_mode & 0o777 == 0o600
    assert [name.name for name in path.parent.iterdir()] == ["tokens.json"]
    snipara_tools(snipara, api_key=None)["sections"]()
    assert len(snipara.requests) == 3


def test_a_login_that_has_lost_its_token_gets_one(snipara: FakeSnipara) -> None:
    write_login(Path(os.environ["HOME"]), access_token=None, expires_at="2999-01-01T00:00:00Z")
    assert snipara_tools(snipara, api_key=None)["sections"]()["total_sections"] == 2


def test_a_token_that_the_server_no_longer_takes_is_renewed_once(snipara: FakeSnipara) -> None:
    write_login(Path(os.environ["HOME"]), access_token="access-revoked")
    assert snipara_tools(snipara, api_key=None)["sections"]()["total_sections"] == 2
    assert [request.path for request in snipara.requests] == [f"/mcp/{SLUG}", "/api/oauth/token", f"/mcp/{SLUG}"]


def test_a_token_that_another_process_has_renewed_is_taken_from_the_file(snipara: FakeSnipara) -> None:
    home = Path(os.environ["HOME"])
    write_login(home, access_token="access-revoked")
    tools = snipara_tools(snipara, api_key=None)
    write_login(home, access_token="access-good")
    assert tools["sections"]()["total_sections"] == 2
    assert [request.path for request in snipara.requests] == [f"/mcp/{SLUG}", f"/mcp/{SLUG}"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"expires_at": "2020-01-01T00:00:00Z", "refresh_token": "refresh-void"}, "the snipara login has expired"),
        ({"expires_at": "2020-01-01T00:00:00Z", "refresh_token": None}, "the snipara login has expired"),
        ({"access_token": "access-revoked", "refresh_token": "refresh-void"}, "answered 401: Invalid API key or token"),
    ],
)
def test_a_login_that_cannot_be_renewed_says_to_log_in_again(
    snipara: FakeSnipara, entry: Arguments, message: str
) -> None:
    write_login(Path(os.environ["HOME"]), **entry)
    with pytest.raises(ToolError, match=message) as caught:
        snipara_tools(snipara, api_key=None)["sections"]()
    assert caught.value.hint == "run snipara-mcp-login again"
    assert "access-" not in str(caught.value) and "refresh-" not in str(caught.value)


def test_many_threads_renew_a_token_once(snipara: FakeSnipara) -> None:
    write_login(Path(os.environ["HOME"]), expires_at="2020-01-01T00:00:00Z")
    sections = snipara_tools(snipara, api_key=None)["sections"]
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(sections()["total_sections"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [2] * 8
    assert [request.path for request in snipara.requests].count("/api/oauth/token") == 1


@pytest.mark.parametrize("content", ["{broken", "[]", '{"p": 5}', '"x"', "\udcff"])
def test_a_broken_login_file_is_an_error_or_no_login(snipara: FakeSnipara, content: str) -> None:
    path = write_login(Path(os.environ["HOME"]))
    path.write_bytes(content.encode(errors="surrogateescape"))
    if content in ("{broken", "\udcff"):
        with pytest.raises(ToolError, match="cannot read the snipara login"):
            snipara_tools(snipara, api_key=None)
    else:
        assert snipara_tools(snipara, api_key=None) == {}
    assert len(snipara_tools(snipara)) == 9


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        (None, "https://www.snipara.com/api/oauth/token"),
        ("https://api.snipara.com/mcp", "https://www.snipara.com/api/oauth/token"),
        ("https://snipara.example:8443/mcp", "https://snipara.example:8443/api/oauth/token"),
        ("https://api.snipara.com.evil.example/mcp", "https://api.snipara.com.evil.example/api/oauth/token"),
    ],
)
def test_a_refresh_token_goes_to_snipara_or_to_the_server_named_in_its_place(url: str | None, asked: str) -> None:
    write_login(Path(os.environ["HOME"]), expires_at="2020-01-01T00:00:00Z")
    urls: list[str] = []

    def refuse(url: str, **_: Any) -> tuple[int, dict[str, str], bytes]:
        urls.append(url)
        return 400, {}, b"{}"

    sections = by_name(rlm_tools.snipara_tools(None, SLUG, url, False, refuse))["sections"]
    with pytest.raises(ToolError, match="has expired"):
        sections()
    assert urls == [asked]
