"""Request parameters: their names on each wire, those that a server refuses, and the progress of a prompt."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
from scripted import KEY, Server, Turn, error

import rlm_backends
from rlm_backends import BackendError, HTTPBackend, connect

ASK = [{"role": "user", "content": "how are you?"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
MODELS = {"openai": "some-model", "anthropic": "claude-sonnet-4-5", "gemini": "gemini-3.8-flash"}
ALL = {
    "temperature": 0,
    "top_p": 0.5,
    "seed": 7,
    "stop": "END",
    "reasoning_effort": "low",
    "max_output_tokens": 50,
}


def to(server: Server, wire: str = "openai", **options: Any) -> HTTPBackend:
    url = server.base_url if wire == "openai" else server.url
    return connect(options.pop("model", MODELS[wire]), wire, base_url=url, api_key=KEY, **options)


def body(wire: str, model: str = "", **how: Any) -> dict[str, Any]:
    """What is sent, without what every request has."""
    sent = connect(model or MODELS[wire], wire, base_url="http://h/v1", api_key=KEY).dry_run(ASK, **how)[2]
    return {name: value for name, value in sent.items() if name not in ("model", "messages", "contents")}


# --- names ------------------------------------------------------------------------------------------------------------

THINK_LOW = {"thinkingConfig": {"thinkingLevel": "LOW"}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
SENT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "openai",
        {"params": ALL},
        {
            "temperature": 0,
            "top_p": 0.5,
            "seed": 7,
            "stop": ["END"],
            "reasoning_effort": "low",
            "max_tokens": 50,
        },
    ),
    (
        "anthropic",
        {"params": ALL},
        {
            "temperature": 0,
            "top_p": 0.5,
            "stop_sequences": ["END"],
            "output_config": {"effort": "low"},
            "max_tokens": 50,
        },
    ),
    (
        "gemini",
        {"params": ALL},
        {
            "generationConfig": {
                "temperature": 0,
                "topP": 0.5,
                "seed": 7,
                "stopSequences": ["END"],
                "maxOutputTokens": 50,
                **THINK_LOW,
            }
        },
    ),
    ("openai", {"params": {"max_output_tokens": 50}, "max_tokens": 40}, {"max_tokens": 40}),
    ("openai", {"params": {"max_output_tokens": 50}, "max_tokens": 60}, {"max_tokens": 50}),
    ("anthropic", {"params": {"max_output_tokens": 50}, "max_tokens": 60}, {"max_tokens": 50}),
    ("anthropic", {"params": {"max_output_tokens": 60_000}}, {"max_tokens": 60_000}),
    ("anthropic", {"params": {"max_output_tokens": 90_000}}, {"max_tokens": 64_000}),  # the most that the model can
    ("gemini", {"params": {"max_output_tokens": 50}, "max_tokens": 60}, {"generationConfig": {"maxOutputTokens": 50}}),
    ("openai", {"params": {"top_k": 40, "stop": ["a", "b"]}}, {"top_k": 40, "stop": ["a", "b"]}),
    ("anthropic", {"params": {"top_k": 40}, "max_tokens": 9}, {"top_k": 40, "max_tokens": 9}),
    (
        "gemini",
        {"params": {"safetySettings": [], "cached_content": "c"}},
        {"safetySettings": [], "cached_content": "c"},
    ),
    (
        "gemini",
        {"params": {"generationConfig": {"topK": 40, "seed": 1}, "seed": 7}},
        {"generationConfig": {"topK": 40, "seed": 7}},
    ),
    (
        "anthropic",
        {"params": {"reasoning_effort": "minimal"}, "schema": SCHEMA, "max_tokens": 9},
        {"output_config": {"effort": "low", "format": FORMAT}, "max_tokens": 9},
    ),
    (
        "anthropic",
        {"params": {"output_config": {"effort": "max"}}, "schema": SCHEMA, "max_tokens": 9},
        {"output_config": {"effort": "max", "format": FORMAT}, "max_tokens": 9},
    ),
    (
        "openai",
        {"params": {"temperature": 0}, "defaults": {"temperature": 1, "stop": "END", "min_p": 0.1}},
        {"temperature": 0, "stop": ["END"], "min_p": 0.1},
    ),
    ("openai", {"params": {"stop": None}, "defaults": {"stop": "END"}}, {}),
    ("openai", {"params": {}, "defaults": None}, {}),
]


@pytest.mark.parametrize(("wire", "how", "sent"), SENT)
def test_a_parameter_has_each_wire_s_name(wire: str, how: dict[str, Any], sent: dict[str, Any]) -> None:
    assert body(wire, **how) == sent


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-4-argon", "high", {"thinkingLevel": "HIGH"}),
        ("gemini-3-flash", "none", {"thinkingLevel": "MINIMAL"}),
        ("models/gemini-3.8-flash", "max", {"thinkingLevel": "XHIGH"}),
        ("gemini-2.5-pro", "low", {"thinkingBudget": 1024}),
        ("gemini-2.5-flash", "medium", {"thinkingBudget": 8192}),
        ("models/gemini-2.5-flash", "high", {"thinkingBudget": 24_576}),
        ("gemini-2.5-flash", "minimal", {"thinkingBudget": 0}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
    ],
)
def test_effort_is_a_level_or_a_budget_of_gemini_s(model: str, effort: str, thinking: dict[str, Any]) -> None:
    sent = body("gemini", model, params={"reasoning_effort": effort})
    assert sent == {"generationConfig": {"thinkingConfig": thinking}}


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_provider_takes_the_common_parameters(server: Server, wire: str) -> None:
    assert to(server, wire).complete(ASK, params=ALL, response_schema=SCHEMA).text == "ok"


@pytest.mark.parametrize(("params", "version"), [({}, "2026-10-21"), ({"temperature": 0}, "2023-06-01")], ids=str)
def test_anthropic_s_older_version_takes_what_the_newer_refuses(params: dict[str, Any], version: str) -> None:
    headers = connect("claude-opus-5-5", api_key=KEY).dry_run(ASK, params=params)[1]
    assert headers["anthropic-version"] == version


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model": "another"}, "'model' is a part of the request and cannot be a parameter | leave it out of params"),
        ({"messages": []}, "'messages' is a part of the request and cannot be a parameter | leave it out of params"),
        (
            {"system": "x"},
            "'system' is a part of the request and cannot be a parameter | give the system prompt as a message",
        ),
        ({"tools": []}, "'tools' is a part of the request and cannot be a parameter | give tools as tools"),
        ({"max_tokens": 5}, "'max_tokens' is a part of the request and cannot be a parameter | use max_output_tokens"),
        (
            {"response_format": {}},
            "'response_format' is a part of the request and cannot be a parameter | use a schema",
        ),
        ({"max_output_tokens": "5"}, "max_output_tokens is '5' | give a whole number of tokens"),
        (
            {"x": {1}},
            "params cannot be sent as JSON: Object of type set is not JSON serializable | "
            "give numbers, strings, lists and dicts",
        ),
        (
            {"x": float("nan")},
            "params cannot be sent as JSON: Out of range float values are not JSON compliant | "
            "give numbers, strings, lists and dicts",
        ),
    ],
)
@pytest.mark.parametrize("place", ["params", "defaults"])
def test_a_parameter_that_cannot_be_one_is_refused(place: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError) as caught:
        connect("m", "openai", base_url="http://h/v1").complete(ASK, **{place: params})
    assert caught.value.code == "config"
    assert f"{caught.value.message} | {caught.value.hint}".replace(": nan", "") == message


@pytest.mark.parametrize(("wire", "name"), [("gemini", "generationConfig"), ("anthropic", "output_config")])
def test_an_object_of_the_request_s_is_not_replaced(wire: str, name: str) -> None:
    with pytest.raises(BackendError, match=f"the parameter '{name}' is not an object"):
        body(wire, params={name: "x"}, schema=SCHEMA)


def test_parameters_are_part_of_the_cache_s_key(server: Server, tmp_path: Any) -> None:
    server.script = lambda request: str(request.number)
    backend = to(server, "anthropic", cache=str(tmp_path))
    hows: list[dict[str, Any]] = [
        {},
        {"params": {"temperature": 0}},
        {"defaults": {"temperature": 0.5}},
        {"params": {"max_output_tokens": 50}},
        {"params": {"seed": 1}},
        {"params": {"seed": 2}},
    ]
    first = [backend.complete(ASK, max_tokens=10, **how).text for how in hows]
    again = [backend.complete(ASK, max_tokens=20, **how).text for how in hows]
    assert first == again == ["1", "2", "3", "4", "5", "6"]


# --- what a server refuses --------------------------------------------------------------------------------------------

REFUSALS = [
    ("openai", "stop", "Unsupported parameter: 'stop' is not supported with this model.", {"stop"}),
    ("openai", "temperature", "Unsupported value: 'temperature' does not support 0 with this model.", {"temperature"}),
    ("openai", "top_p", "`temperature` and `top_p` cannot both be specified for this model.", {"top_p"}),
    ("openai", "seed", "property 'seed' is unsupported", {"seed"}),
    ("openai", "reasoning_effort", "Unrecognized request argument supplied: reasoning_effort", {"reasoning_effort"}),
    (
        "openai",
        "reasoning_effort",
        "Function tools with reasoning_effort are not supported for this model",
        {"reasoning_effort"},
    ),
    ("anthropic", "stop", "stop_sequences: each stop sequence must contain non-whitespace", {"stop_sequences"}),
    ("anthropic", "temperature", "temperature: range: 0..1", {"temperature"}),
    ("anthropic", "reasoning_effort", "output_config.effort: this model does not support it", {"output_config"}),
    ("anthropic", "reasoning_effort", "output_config: Extra inputs are not permitted", {"output_config"}),
]


@pytest.mark.parametrize(("wire", "name", "message", "dropped"), REFUSALS)
@pytest.mark.parametrize("place", ["params", "defaults"])
def test_a_parameter_that_the_server_refuses_is_left_out_from_then_on(
    server: Server, wire: str, name: str, message: str, dropped: set[str], place: str
) -> None:
    server.script = [error(400, message), "ok", "ok"]
    backend = to(server, wire)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert backend.complete(ASK, **{place: ALL}).text == "ok"
    before, *after = (set(request.body) for request in server.requests)
    assert after == [before - dropped] * 2
    place_of = f"{wire} at 127.0.0.1:{server.port}"
    said = f"{place_of} does not take the parameter {name!r} for {backend.model!r}: it is no longer sent"
    expected = [(RuntimeWarning, said)] if place == "params" else []
    assert [(found.category, str(found.message)) for found in caught] == expected


def test_of_two_the_runtime_s_own_is_given_up_first(server: Server) -> None:
    server.script = [error(400, "temperature and top_p must not both be given"), "ok"]
    to(server).complete(ASK, params={"top_p": 0.5}, defaults={"temperature": 0})
    assert {"temperature", "top_p"} & set(server.requests[1].body) == {"top_p"}


@pytest.mark.parametrize(
    "message",
    ["the messages are not valid", "seedling and non-stop are unknown", "temperature"],
)
def test_a_refusal_of_something_else_costs_no_parameter(server: Server, message: str) -> None:
    server.script = [error(400, message)]
    backend = to(server)
    with pytest.raises(BackendError, match="answers 400"):
        backend.complete(ASK, params=ALL)
    assert backend.refused == set()


def test_an_unknown_parameter_that_the_server_refuses_is_the_caller_s_to_mend(server: Server) -> None:
    server.also_allow = ["top_k"]
    server.script = [error(400, "Unsupported parameter: 'top_k'")]
    with pytest.raises(BackendError, match="Unsupported parameter: 'top_k'"):
        to(server).complete(ASK, params={"top_k": 1})


def test_gemini_s_refusals_are_understood() -> None:
    backend = connect("gemini-2.5-pro", api_key=KEY)
    for name, message in (
        ("reasoning_effort", "Budget 0 is invalid. This model only works in thinking mode."),
        ("stop", "Invalid value at 'generation_config.stop_sequences'"),
        ("top_p", "Unknown name \"topP\" at 'generation_config': Cannot find field."),
    ):
        ask = rlm_backends.Request(ASK, defaults=ALL)
        refusal = BackendError(message, code="bad_request", status=400)
        assert backend.adapt_to_error(refusal, backend._request(ask)[2], ask)
        assert name in backend.refused
    assert set(backend.dry_run(ASK, defaults=ALL)[2]["generationConfig"]) == {"temperature", "seed", "maxOutputTokens"}


def test_calls_that_are_refused_at_the_same_time_all_learn_from_it(server: Server) -> None:
    """Each was sent before any of them knew."""
    here = threading.Barrier(4)

    def script(request: Any) -> Any:
        if "stop" in request.body:
            here.wait(20)
            return error(400, "'stop' is not supported")
        return "ok"

    server.script = script
    backend, texts = to(server), list[str]()
    threads = [
        threading.Thread(target=lambda: texts.append(backend.complete(ASK, defaults={"stop": "END"}).text))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (texts, len(server.requests)) == (["ok"] * 4, 8)


# --- the progress of a prompt -----------------------------------------------------------------------------------------


@pytest.fixture
def llamacpp(server: Server) -> Server:
    server.llamacpp, server.models = True, ["some-model"]
    return server


def test_a_llama_cpp_server_tells_how_much_of_the_prompt_it_has_read(llamacpp: Server) -> None:
    backend, heard = to(llamacpp), list[Any]()

    def on_progress(processed: int, total: int) -> None:
        heard.append((processed, total))

    backend.complete(ASK, on_text=heard.append, on_progress=on_progress)  # nobody knows yet what server it is
    backend.inspect()
    backend.complete(ASK, on_progress=on_progress)  # no stream
    backend.complete(ASK, on_text=heard.append)
    assert heard == ["ok"] * 2
    backend.complete(ASK, on_text=heard.append, on_progress=on_progress)
    assert heard[2:] == [(0, 14), (7, 14), (14, 14), "ok"]
    assert ["return_progress" in request.body for request in llamacpp.requests] == [False] * 3 + [True]


def test_progress_is_no_beginning_of_the_answer(llamacpp: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that breaks off after it is asked for again."""
    from scripted import cut

    monkeypatch.setattr(rlm_backends, "backoff", lambda *_: 0.0)
    llamacpp.script = [cut(Turn("fine"), 450, framing="close"), Turn("fine")]
    backend, heard = to(llamacpp), list[int]()
    backend.inspect()
    reply = backend.complete(ASK, on_text=lambda _: None, on_progress=lambda done, _: heard.append(done))
    assert (reply.text, reply.attempts) == ("fine", 2)
    assert heard[-3:] == [0, 7, 14]
    assert len(heard) > 3


@pytest.mark.parametrize("raised", [TypeError, BackendError], ids=lambda kind: kind.__name__)
def test_what_the_listener_to_progress_raises_is_the_caller_s(llamacpp: Server, raised: Any) -> None:
    mine = raised("mine", code="timeout") if raised is BackendError else raised("mine")

    def listen(*_: int) -> None:
        raise mine

    backend = to(llamacpp)
    backend.inspect()
    with pytest.raises(raised) as caught:
        backend.complete(ASK, on_text=lambda _: None, on_progress=listen)
    assert caught.value is mine


def test_a_server_that_does_not_take_return_progress_is_not_asked_for_it_again(llamacpp: Server) -> None:
    llamacpp.script = [error(400, "unknown field return_progress"), "ok", "ok"]
    backend = to(llamacpp)
    backend.inspect()
    for _ in range(2):
        assert backend.complete(ASK, on_text=lambda _: None, on_progress=lambda *_: None).text == "ok"
    assert ["return_progress" in request.body for request in llamacpp.requests] == [True, False, False]


@pytest.mark.parametrize("progress", [None, 5, [], {}, {"total": 0}, {"total": "x", "processed": 1}], ids=str)
def test_progress_of_no_known_form_is_ignored(server: Server, progress: Any) -> None:
    server.script = [Turn("fine", extra={"prompt_progress": progress})]
    heard: list[Any] = []
    assert to(server).complete(ASK, on_text=lambda _: None, on_progress=lambda *at: heard.append(at)).text == "fine"
    assert heard == []


@pytest.mark.parametrize(
    ("extra", "cached"),
    [
        (
            {"usage": {"prompt_tokens": 50, "prompt_tokens_details": {"cached_tokens": 26}}, "timings": {"cache_n": 9}},
            26,
        ),
        ({"usage": {"prompt_tokens": 50}, "timings": {"cache_n": 26}}, 26),
        ({"usage": {"prompt_tokens": 50}, "timings": {"cache_n": 99}}, 50),
        ({"usage": {"prompt_tokens": 50}, "timings": None}, 0),
    ],
    ids=["usage", "timings", "more than there is", "neither"],
)
def test_what_came_from_llama_cpp_s_cache_is_counted(server: Server, extra: dict[str, Any], cached: int) -> None:
    server.script = [Turn("fine", extra=extra)]
    assert to(server).complete(ASK).usage["cached"] == cached
