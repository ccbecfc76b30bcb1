# /// script
# requires-python = ">=3.10"
# dependencies = ["requests>=2.32", "urllib3>=2.3"]
# ///
"""Calls a model over HTTP: three wire formats, some 200 providers, with retries, deadlines and prices.

    backend = connect("claude-opus-5-5")                        # or "groq/llama-3.3-70b-versatile", "ollama/qwen3" …
    reply = backend.complete([{"role": "user", "content": "hello"}], on_text=print)

Covered: OpenAI chat completions and its many dialects, Anthropic messages, Gemini; text, parallel tool calls, images,
streaming, usage, prices; retries, a deadline, cancelling, rate limits, caching. A key is sent to its own host only.
Not covered: OpenAI responses, SigV4 and OAuth sign-in (Bedrock and Vertex native), audio, embeddings, batches.

Reads from top to bottom: the public part, a backend and its retries, the wires, connections, local models, coding
agents, and at the end the tables of models and providers. Imports no other module of the project: it works alone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from ssl import SSLContext
    from subprocess import Popen
    from urllib.parse import SplitResult

    from requests import Response
    from requests.adapters import HTTPAdapter

__all__ = [
    "DEFAULT_MODEL",
    "BackendError",
    "HTTPBackend",
    "Reply",
    "SubprocessBackend",
    "agents",
    "connect",
    "cost_of",
    "downloaded_models",
    "estimate_tokens",
    "image_part",
    "key_variables",
    "local_servers",
    "mask",
    "post",
    "providers",
    "remove_model",
    "saved_by_cache",
    "size_in_name",
    "stop_programs",
]

DEFAULT_MODEL = "gpt-4o-mini"

Message = Mapping[str, Any]  # role, content, tool_calls …
JSONMap = Mapping[str, Any]  # a JSON object that is read
JSONObject = dict[str, Any]  # and one that is built
Content = str | Sequence[JSONMap] | None  # of a message: text, or parts
T = TypeVar("T")
_Sent = tuple[str, dict[str, str], bytes]  # URL, headers and body of a request

CONNECT_TIMEOUT = 10.0
LONGEST_WAIT = 120.0  # seconds: if a server asks for a longer wait, the call fails
MOST_ATTEMPTS = 10  # of one call, however large `max_retries` is
BODY_LIMIT = 32 << 20
ERROR_LIMIT = 1 << 18  # bytes of an error body that are read
MOST_CALLS = 128  # tool calls per answer; further ones are dropped
PIECE = 1 << 20  # bytes of a request sent at a time: each one sent restarts the idle timeout
LOOPBACK = ("localhost", "127.0.0.1", "::1")
INSPECT_TIME = 2.0  # seconds for a local server to describe its model
LIST_TIME = 10.0  # seconds for it to say which model it serves, where the caller names none
INSPECT_LIMIT = 1 << 20
TICK = 0.02  # seconds between polls of what may end a call


# --- results and errors -------------------------------------------------------------------------------------------


class BackendError(RuntimeError):
    """A call that failed, or a backend that cannot be made."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",  # optional for pickle, which sets it afterwards
        provider: str = "",
        status: int | None = None,
        hint: str = "",
        partial: str = "",
        looked_for: Sequence[str] = (),
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message  # what happened, as in str(error)
        self.code = code  # why, in a word: config, auth, quota, rate, context_length, refused, connection, timeout, …
        self.provider = provider  # the provider's name
        self.status = status  # the HTTP status; None: there was no response
        self.hint = hint  # what to do next; "" if there is nothing
        self.partial = partial  # the text that arrived before the failure
        self.looked_for = list(looked_for)  # the variables that could have held the key, if it is missing
        self.retryable = retryable  # the same call may succeed later
        self.retry_after = retry_after  # seconds to wait first, if the server said so
        self.idle_closed = False


class Reply(NamedTuple):
    """A model's answer."""

    text: str  # what it wrote; "" if it only called tools
    tool_calls: list[dict[str, Any]]  # each {id, name, arguments}
    # Tokens: `input` (the whole prompt; of it `cached` and `cache_write`), `output` (of it `reasoning`). `estimated` is
    # true if the server did not count them.
    usage: dict[str, Any]
    stop_reason: str  # stop, length, tool_calls, refusal, content_filter or pause
    model: str  # the model's name, as the server gives it
    cost_usd: float | None = None  # US dollars; None: the price is unknown
    raw: dict[str, Any] | None = None  # what has to be sent back unchanged in the next turn; None: nothing
    attempts: int = 1  # requests that were sent; 0: the answer is from the cache


# --- connecting -------------------------------------------------------------------------------------------------

_OPENAI_MODEL = r"gpt-(?!oss)|chatgpt-|o\d(?:-|$)|codex-"
# Model names that tell the provider. An open model's name does not, since many serve it.
_MAKERS = (
    ("openai", _OPENAI_MODEL),
    ("anthropic", r"claude-"),
    ("google", r"gemini-"),
    ("xai", r"grok-"),
    ("deepseek", r"deepseek-"),
    ("mistral", r"(?:mistral|magistral|ministral|codestral|devstral|pixtral)-"),
    ("moonshotai", r"kimi-|moonshot-"),
    ("perplexity", r"sonar(?:-|$)"),
    ("cohere", r"command-"),
)
# What to use when no model is named, in this order.
_DEFAULTS = {
    "openai": DEFAULT_MODEL,
    "anthropic": "claude-haiku-5-5",
    "google": "gemini-3.8-flash",
    "openrouter": "openai/gpt-4o-mini",
    "xai": "grok-4.7",
    "deepseek": "deepseek-flash",
    "mistral": "mistral-small-latest",
    "groq": "llama-3.3-70b-versatile",
}


class BackendOptions(NamedTuple):
    """The options that a backend and its siblings share."""

    max_retries: int  # after a transient error
    max_parallel: int  # calls at once
    prices: JSONMap | None  # as for `cost_of`
    cache: str | None  # the folder in which answers are kept; None: nowhere
    timeout: float  # seconds that the server may be silent


def connect(
    model: str | None,
    backend: str = "auto",
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    environ: Mapping[str, str] | None = None,
    max_retries: int = 4,
    max_parallel: int = 16,
    prices: Mapping[str, Any] | None = None,
    cache: bool | str = False,
    timeout: float = 600.0,
    progress: Callable[[str], None] | None = None,
) -> HTTPBackend:
    """Make the backend for a model. BackendError(code="config") says what is missing.

    Nothing is sent, with one exception: a server in the private network that is named by `base_url` alone is asked for
    its models. It must have only one, or the provider's default.

    `model` may be the path of a .gguf file, which is served on this machine, or hf:OWNER/REPO[:QUANT], which is
    downloaded now if necessary; `progress` is called with the state of downloading and loading. It may be cli:claude,
    cli:codex or cli:gemini, optionally with /MODEL: a coding agent's program, with the account that it is signed in to.
    `timeout` is how many seconds the server may be silent. `cache` keeps answers on disk: in the folder that it names,
    or for True in the user's cache folder.
    """
    env = _Environ(environ)
    environ = None  # a traceback may show this frame's variables
    api_key = _Secret(api_key) if api_key else None
    key = _checked_key(api_key, "api_key") if api_key else None
    base_url = _checked_url(base_url.strip()) if base_url else None
    for known, price in (prices or {}).items():
        _as_price(known, price)
    how = BackendOptions(max_retries, max_parallel, prices, _cache_folder(cache, env), timeout)
    backend = "auto" if backend == "litellm" else backend
    by_name = base_url is None and backend == "auto"
    if model and model.startswith("cli:") and by_name:
        return _agent_backend(model, env, how)
    if model and model.startswith("hf:") and by_name:
        _check_package()
        return _LocalModel(_Hub(model, env, progress).file(), how, progress, name=model)
    if model and model.endswith(".gguf") and (by_name or (base_url is None and backend == "llamacpp")):
        return _LocalModel(model, how, progress)
    row, name = _choose(model, backend, base_url, env)
    made = _connected(row, name, backend, base_url, key, env, how)
    return made if model or not base_url else made._with_served_model()


def _connected(
    row: Provider, name: str, backend: str, url: str | None, key: _Secret | None, env: _Environ, how: BackendOptions
) -> HTTPBackend:
    base = _base_url(row, url, env)
    made = HTTPBackend(row, name, base, key or _key(row, name, base, url, env), how)

    def reconnect(model: str) -> HTTPBackend:
        """Another model; one whose name does not tell its provider belongs to the same one."""
        if model.startswith(("cli:", "hf:")):
            hint = "leave sub_model out, or name a provider's model"
            raise BackendError(f"{model!r} can only be the main model", code="config", hint=hint)
        try:
            other, other_name = _choose(model, "auto", None, env)
        except BackendError:
            return made._sibling(model)
        if other.id == made.provider:
            return made._sibling(other_name)
        return _connected(other, other_name, backend, None, None, env, how)

    if backend == "auto" and url is None:
        made._reconnect = reconnect
    return made


def _choose(model: str | None, backend: str, base_url: str | None, env: _Environ) -> tuple[Provider, str]:
    """The model's provider, and its name there."""
    if backend != "auto":
        row = _provider(backend)
        name = model or _DEFAULTS.get(row.id, "")
        if not name:
            raise BackendError(f"which model of {row.id}?", code="config", provider=row.id, hint="-m MODEL")
        word, _, rest = name.partition("/")
        is_prefix = not base_url and rest and word in (row.id, *row.aliases)
        return row, rest if is_prefix and ("own" not in row.quirks or "/" in rest) else name
    if not model:
        with_key = (_rows()[id_] for id_ in _DEFAULTS if any(env.get(name) for name in _rows()[id_].keys))
        row = (provider_for_url(base_url) if base_url else next(with_key, None)) or _rows()["openai"]
        return row, _DEFAULTS.get(row.id, DEFAULT_MODEL)
    for separator in "/:":
        word, _, rest = model.partition(separator)
        if rest and word in _by_name():
            return _by_name()[word], rest
    if base_url and (row_there := provider_for_url(base_url)):
        return row_there, model
    maker = next((id_ for id_, names in _MAKERS if re.match(names, model)), None)
    if maker is None and base_url is None:
        hint = f"write provider/model, as in openrouter/{model} or ollama/{model}; `rlm providers` lists them"
        raise BackendError(f"cannot tell whose model {model!r} is", code="config", hint=hint)
    return _rows()[maker or "openai"], model


def _provider(name: str) -> Provider:
    if row := _by_name().get(name):
        return row
    import difflib

    near = difflib.get_close_matches(name, _by_name(), 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`rlm providers` lists them"
    raise BackendError(f"no provider is called {name!r}", code="config", hint=hint)


def provider_for_url(url: str) -> Provider | None:
    """The provider that has exactly this host."""
    if _is_loopback(url):
        return None
    return next((row for row in _rows().values() if _host(row.base_url) == _host(url)), None)


def _base_url(row: Provider, base_url: str | None, env: _Environ) -> str:
    url = base_url or env.get(row.quirks.get("base", "")) or row.base_url
    missing = [name for name in re.findall(r"\$\{(\w+)\}", url) if not env.get(name)]
    if missing:
        hint = f"export {missing[0]}=…, or give base_url"
        needs = f"the URL of {row.id} needs {' and '.join(missing)}"
        raise BackendError(needs, code="config", provider=row.id, hint=hint)
    url = _checked_url(re.sub(r"\$\{(\w+)\}", lambda found: env.get(found[1]), url).strip())
    return f"{url}/openai/v1" if "azure" in row.quirks and url == _origin(url) else url


def _split_url(url: str) -> SplitResult | None:
    """The parts of an http or https URL; None for any other text."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if fine and not re.search(r"[\s\x00-\x1f\x7f]", url) else None


def _redirect_target(url: str, location: str, hint: str) -> str:
    """Where a redirect from `url` leads; BackendError if that is no URL to follow."""
    from urllib.parse import urljoin

    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    parts = _split_url(target)
    if parts is None or parts.username is not None or (url.startswith("https:") and parts.scheme != "https"):
        shown = re.sub("//.*@", "//", _origin(location)) or "elsewhere"  # without a login
        message = f"{netloc(url)} redirects to a URL that is not allowed: {shown[:100]!r}"
        raise BackendError(_tidy(message, ""), code="redirect", hint=hint)
    return target


def _checked_url(url: str) -> str:
    parts = _split_url(url)
    if parts is None:
        raise BackendError("the base URL is not an http or https URL", code="config", hint="as in https://HOST/v1")
    if parts.username or parts.password:
        raise BackendError("the base URL holds a user name or password", code="config", hint="give the key as api_key")
    head, mark, query = url.partition("#")[0].partition("?")
    return head.rstrip("/") + mark + query


def _key(row: Provider, model: str, base: str, given_url: str | None, env: _Environ) -> _Secret:
    """The key of the provider that owns the host; for a custom host, of the provider that the user named."""
    owner = row if _host(row.base_url) == _host(base) else provider_for_url(base) or row
    for name in owner.keys:
        if env.get(name):
            return _checked_key(env.secret(name), name)
    if given_url is not None or _is_loopback(base) or not {"local", "keyless"}.isdisjoint(owner.quirks):
        return _Secret("")
    raise BackendError(
        f"no API key for model {model!r}",
        code="config",
        provider=row.id,
        looked_for=owner.keys,
        hint=f"export {owner.keys[0]}=…",
    )


# --- a model of a provider ----------------------------------------------------------------------------------------


class HTTPBackend:
    """A model of a provider, with the members of `rlm.Backend`. Made by `connect`; thread-safe."""

    def __init__(self, row: Provider, model: str, base_url: str, key: _Secret, how: BackendOptions) -> None:
        self.provider = row.id
        self.wire = row.wire
        self.quirks = row.quirks
        self.base_url = base_url
        self.key_source = key.source
        self._key = key
        self._how = how
        self._reconnect: Callable[[str], HTTPBackend] | None = None
        self._set_model(model)

    def _set_model(self, model: str) -> None:
        """Set the model, and reset what was learnt about another."""
        facts = _facts(model)
        self.model = model
        self.refused: set[str] = set()  # fields of a request that the server has turned out not to take
        self.supports_tools = "notools" not in self.quirks
        self.supports_images = "noimages" not in self.quirks and (facts is None or facts.images)
        self.window = facts.window if facts else None
        self.max_output = facts.max_output if facts else None
        self.parameters = None if facts else size_in_name(model)  # billions
        self.server = ""  # "llamacpp" once `inspect` has found that it is
        self._listed: list[JSONObject] = []  # the server's models, if it has been asked for the name of the model
        self._inspected = False
        self._inspecting = threading.Lock()
        priced = _price(model, self._how.prices, self.provider) is not None
        self.price_known = priced or self.provider.startswith("openrouter")  # which says what a call has cost

    def __repr__(self) -> str:
        return f"<HTTPBackend {self.provider} {self.model!r} at {self.base_url}>"

    @property
    def api_key(self) -> str:
        """The key, for masking. Its repr does not show it."""
        return self._key

    @property
    def limit_field(self) -> str:
        """The server's name for the output token limit."""
        newer = "mct" in self.quirks
        if self.provider == "openai" and _host(self.base_url) != "api.openai.com":
            newer = bool(re.match(_OPENAI_MODEL, self.model))  # behind a proxy; anything else is another server
        return "max_completion_tokens" if newer != ("limit" in self.refused) else "max_tokens"

    def with_model(self, model: str) -> HTTPBackend:
        """The same provider and connections with another model; another provider if the name says so."""
        return self._reconnect(model) if self._reconnect else self._sibling(model)

    def _sibling(self, model: str) -> HTTPBackend:
        made = copy.copy(self)
        made._set_model(model)
        return made

    def close(self) -> None:
        """Close the idle connections. The backend can still be used: it opens new ones."""
        if link := _links.get((_origin(self.base_url), self._how.max_parallel)):
            link.adapter.close()

    def provider_state(self, message: Message) -> JSONObject:
        """The provider state in a message that this model must get back unchanged."""
        raw = message.get("raw")
        mine = {"wire": self.wire, "model": self.model, "provider": self.provider}
        return raw if isinstance(raw, dict) and mine.items() <= raw.items() else {}

    def dry_run(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
        """The URL, headers and body that `complete` would send.

        Options: tools, max_tokens, schema, stream, params, defaults, on_progress.
        """
        return self._request(Request(messages, **how))

    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        response_schema: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Reply:
        """Ask the model and return its answer; `on_text` gets the text as it arrives. BackendError if the call fails.

        `deadline` (of `time.monotonic`) holds for all attempts together; `cancel`, set by any thread, ends the call.
        `params` go into the request: temperature, top_p, seed, stop, reasoning_effort and max_output_tokens in the
        wire's form, any other unchanged. `params` override `defaults`, and a default that the server refuses is dropped
        without a warning. `on_progress(processed, total)` is called with the tokens of the prompt that a llama.cpp
        server (see `inspect`) has read, if the call streams.
        """
        if tools and not self.supports_tools:
            raise self._no_tools()
        if not self.supports_images and _has_images(messages):
            raise self._no_images()
        stream = on_text is not None
        ask = Request(messages, tools, max_tokens, response_schema, stream, params, defaults, on_progress)
        state = CallState(self.provider, self._how.timeout, deadline, cancel)
        with _watch.watching(state):
            self._prepare(state)
            return (_cached if self._how.cache else _live)(self, ask, state, on_text)

    def _prepare(self, state: CallState) -> None:
        """Prepare the server; called before anything is sent."""

    def _request(self, ask: Request) -> tuple[str, dict[str, str], JSONObject]:
        base, _, query = self.base_url.partition("?")
        common, others = _params(self, ask)
        limits = [limit for limit in (ask.max_tokens, common.get("max_output_tokens")) if limit is not None]
        if limits:
            ask = ask._replace(max_tokens=min([*limits, self.max_output or limits[0]]))
        url = _WIRES[self.wire].url(base, self.model, ask.stream)
        if query:
            url += ("&" if "?" in url else "?") + query
        headers = self._headers(ask.stream)
        if self.wire == "anthropic" and not {"temperature", "top_p", "top_k"}.isdisjoint({*common, *others}):
            headers["anthropic-version"] = "2023-06-01"  # the later ones refuse these
        body = _WIRES[self.wire].body(self, ask, common)
        for name, value in others.items():
            if isinstance(own := body.get(name), dict):
                if not isinstance(value, dict):
                    raise BackendError(f"the parameter {name!r} is not an object", code="config", hint="give a dict")
                value = {**value, **own}
            body[name] = value
        return url, headers, {name: value for name, value in body.items() if name not in self.refused}

    def _hold_capacity(self, ask: Request, state: CallState) -> contextlib.AbstractContextManager[None]:
        """Hold what an attempt needs besides its place at the limiter."""
        return contextlib.nullcontext()

    def _headers(self, stream: bool) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if stream else "application/json",
            # Some proxies hold a compressed stream back.
            "Accept-Encoding": "identity" if stream else "gzip, deflate",
            "User-Agent": "flat-rlm",
        }
        if self.wire == "anthropic":
            known = _host(self.base_url) == "api.anthropic.com" and "anthropic-version" not in self.refused
            headers["anthropic-version"] = "2026-10-21" if known else "2023-06-01"
        return {**headers, **self._key_headers()}

    def _key_headers(self) -> dict[str, str]:
        if not self._key:
            return {}
        bearer = _Secret(f"Bearer {self._key}")
        own = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}.get(self.wire, "Authorization")
        name = "api-key" if "azure" in self.quirks else "Authorization" if "bearer" in self.quirks else own
        headers: dict[str, str] = {name: bearer if name == "Authorization" else self._key}
        if extra := self.quirks.get("header"):
            headers[extra] = bearer if "authorization" in extra else self._key
        return headers

    def _attempt(self, link: HostPool, state: CallState, request: _Sent, builder: ResponseBuilder) -> ResponseBuilder:
        response = link.open(state, *request)
        finished = False
        try:
            self._read(builder, state, response, _chunks(state, response, request[0]))
            builder.finish()
            finished = True
            return builder
        except (BackendError, *_MISREAD) as error:
            if error is builder.refused:
                raise
            unexpected = f"the server's answer has an unexpected form: {error}"
            misread = self._error("protocol", unexpected, retryable=True)
            failure = error if isinstance(error, BackendError) else misread
        finally:
            if not finished or not _drain(state, response):
                response.raw.close()
            response.raw.release_conn()
        failure.partial = "".join(builder.text)
        failure.retryable = failure.retryable and not builder.began
        failure.provider = self.provider
        raise failure.with_traceback(None)  # the frames hold the server's words, which may repeat the key

    def _read(self, builder: ResponseBuilder, state: CallState, response: Response, chunks: Iterator[bytes]) -> None:
        if response.status_code >= 300:
            raise self._refusal(response, _gathered(chunks, ERROR_LIMIT))
        first = head = b""
        while len(head) < 6 and head[:1] not in (b"{", b"[", b"<") and b":" not in head:
            if not (chunk := next(chunks, b"")):
                break
            first = (first + chunk)[-65_536:]  # some servers send blanks while they work
            head = first.lstrip().removeprefix(_BYTE_ORDER).lstrip()
        if re.match(rb"(data|event|id|retry)?:", head):  # whatever the header says
            self._read_stream(builder, state, _events(chain([first], chunks)))
        else:
            self._read_body(builder, state, _gathered(chain([first], chunks)))

    def _read_body(self, builder: ResponseBuilder, state: CallState, data: bytearray) -> None:
        if mark := re.search(rb"(data:\s{0,9})?\[DONE\]\s{0,9}\Z", data[-40:]):
            del data[len(data) - len(mark[0]) :]
        body, problem = None, "no JSON object"
        try:
            body = from_json(data)
        except ValueError as error:
            problem = f"what cannot be read ({error})" if len(data) > JSON_VALUES else problem
        begins = data[:65_536].lstrip()[:1]
        if isinstance(body, dict):
            self._raise_error_in(body)
            builder.feed(body)
            problem = "no message"
        elif body is None and begins == b"{":
            first, _, rest = data.partition(b"\n")  # a stream that has one event per line
            with contextlib.suppress(ValueError):
                if rest and isinstance(from_json(first), dict):
                    lines = map(bytes.strip, bytes(data).split(b"\n"))
                    self._read_stream(builder, state, (line.decode("utf-8", "replace") for line in lines if line))
        if not builder.ended:
            page = begins == b"<"
            what, hint = ("a page of HTML", "check the base URL") if page else (problem, "")
            raise self._error("protocol", f"the server answered with {what}", status=200, retryable=not page, hint=hint)

    def _read_stream(self, builder: ResponseBuilder, state: CallState, events: Iterator[str]) -> None:
        try:
            for data in events:
                if data == "[DONE]":
                    builder.ended = True
                    return
                event = None
                with contextlib.suppress(ValueError):
                    event = from_json(data)
                if not isinstance(event, dict):
                    raise self._error("truncated", "the stream holds an event that is not JSON", retryable=True)
                self._raise_error_in(event)
                state.quiet_until = None  # the caller's time is not the server's silence
                builder.feed(event)
                state.check()
                state.touch()
                if builder.ended and self.wire == "anthropic":
                    return
        except BackendError as error:
            if not builder.ended or error.code not in ("connection", "timeout"):
                raise
        if not builder.ended:
            raise self._error("truncated", "the stream ended before the answer did", retryable=True)

    def _raise_error_in(self, body: JSONMap) -> None:
        """Raise an error that came with status 200, in a body or in the middle of a stream."""
        if error := body.get("error"):
            named, code = _object(error), _object(error).get("code")
            words = (named.get("type"), named.get("status"), code)
            kinds = [_STATUS_OF[word] for word in words if isinstance(word, str) and word in _STATUS_OF]
            status = code if isinstance(code, int) and 400 <= code < 600 else (*kinds, 500)[0]
            raise self._status_error(status, _error_text(dict(body)), None)

    def _refusal(self, response: Response, body: bytearray) -> BackendError:
        if 300 <= response.status_code < 400:
            target = _split_url(response.headers.get("location", ""))
            words = f"it redirects to {target.hostname if target else 'elsewhere'}"
            return self._status_error(response.status_code, words, None)
        wait = _wait_asked(response.headers, body)
        error = self._status_error(response.status_code, _error_text(body), wait)
        error.retryable = error.retryable and response.headers.get("x-should-retry") != "false"
        return error

    def server_label(self) -> str:
        """The provider's name; with the host, if that is not the provider's own."""
        owner = provider_for_url(self.base_url)
        return self.provider if owner and owner.id == self.provider else f"{self.provider} at {netloc(self.base_url)}"

    def _status_error(self, status: int, text: str, wait: float | None) -> BackendError:
        text = text[:4_000]
        code = _code_for(status, text)
        lasting = code in ("quota", "context_length") or re.search(_NO_TOOLS, text) or re.search(_NO_IMAGES, text)
        again = not lasting and (status in _RETRIED or status >= 500)
        message = f"{self.server_label()} answers {status}: {text}"
        return self._error(code, message, status=status, hint=_HINTS.get(code, ""), retryable=again, retry_after=wait)

    def _error(self, code: str, message: str, **more: Any) -> BackendError:
        return BackendError(_tidy(message, self._key), code=code, provider=self.provider, **more)

    def _no_tools(self) -> BackendError:
        self.supports_tools = False
        hint = "use the text protocol: code in fenced blocks"
        return self._error("no_tools", f"{self.model!r} does not support tool calls", status=400, hint=hint)

    def _no_images(self) -> BackendError:
        self.supports_images = False
        return self._error("no_images", f"{self.model!r} cannot see images", status=400, hint="use a model with vision")

    def adapt_to_error(self, error: BackendError, body: JSONMap, ask: Request) -> bool:
        """Learn from an error how to ask from now on; whether a new attempt makes sense."""
        if error.status not in (400, 404, 422, 500, 501) or error.code == "quota":
            return False
        text = error.message
        if lesson := self._refused_param(error, ask):
            return self._remember(lesson, ask)
        if error.code == "context_length" and (
            found := re.search(r"context length is (\d+)|context size \((\d+)", text)
        ):
            self.window = self.window or int(found[1] or found[2])
        if body.get("tools") and re.search(_NO_TOOLS, text):
            raise self._no_tools()
        if re.search(_NO_IMAGES, text) and _has_images(ask.messages):
            raise self._no_images()
        if error.status not in (400, 422):
            return False
        if found := re.search(r"at most (\d+) completion|> (\d+), which is the maximum", text):
            known, self.max_output = self.max_output, int(found[1] or found[2])
            return known != self.max_output
        lessons = {field: field for field in _OPTIONAL if field in body} | {"anthropic-version": "anthropic-version"}
        if self.limit_field in body and re.search(_UNKNOWN_FIELD, text):
            lessons[self.limit_field] = "limit"
        lesson = next((lesson for field, lesson in lessons.items() if field in text), None)
        if lesson is not None:
            return self._remember(lesson, ask)
        return self._request(ask)[2] != body  # another call has learnt it meanwhile

    def _refused_param(self, error: BackendError, ask: Request) -> str | None:
        """The parameter that an error names; a default before one of the caller's."""
        text = error.message
        if error.status not in (400, 422) or error.code != "bad_request" or not re.search(_REFUSAL, text):
            return None
        sent = _params(self, ask)[0]
        named = [
            name for name in _COMMON if name in sent and re.search(rf"(?i)(?<![\w-])({_COMMON[name]})(?![\w-])", text)
        ]
        return min(named, key=lambda name: name in (ask.params or {}), default=None)

    def _remember(self, lesson: str, ask: Request) -> bool:
        """Leave a field out of all further requests; warn once if the caller had asked for it."""
        with _learning:
            known = lesson in self.refused
            self.refused.add(lesson)
        within = ("output_config", "reasoning_effort") if lesson == "output_config" else (lesson,)
        name = next((name for name in within if name in (ask.params or {})), None)
        if name and not known:
            what = f"does not take the parameter {name!r} for {self.model!r}: it is no longer sent"
            warnings.warn(f"{self.server_label()} {what}", RuntimeWarning, stacklevel=2)
        return True

    def _with_served_model(self) -> HTTPBackend:
        """Self, or the only model of a server in the private network; BackendError if there are several to choose from.

        A server without a list is asked for the default model, as is one that does not answer in time: with a warning.
        """
        if not self._is_near or self.wire != "openai":
            return self
        import shlex

        state = CallState(self.provider, LIST_TIME, time.monotonic() + LIST_TIME, None)
        entries: list[JSONObject] = []
        try:
            with _watch.watching(state):
                entries = self._served_models(state)
        except BackendError as error:
            if error.code == "timeout":
                what = f"did not say within {LIST_TIME:g} s which model it serves"
                warnings.warn(
                    f"{self.server_label()} {what}: it is asked for {self.model}", RuntimeWarning, stacklevel=2
                )
        except _MISREAD:
            pass
        names = [entry["id"] for entry in entries if isinstance(entry.get("id"), str)]
        if not names or self.model in names or len(names) == 1:
            made = self._sibling(names[0]) if len(names) == 1 else self
            made._listed = entries
            return made
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        message = f"{self.server_label()} serves {len(names)} models: {listed}"
        raise self._error("config", message, hint=f"-m {shlex.quote(_tidy(names[0], self._key))}")

    @property
    def _is_near(self) -> bool:
        return "local" in self.quirks or _is_private(_host(self.base_url))

    def _served_models(self, state: CallState) -> list[JSONObject]:
        """The server's list of its models."""
        base = self.base_url.partition("?")[0].removesuffix("/chat/completions")
        return [item for item in self._fetch(state, f"{base}/models")["data"] if isinstance(item, dict)]

    def inspect(self, deadline: float | None = None) -> None:
        """Ask a local server for `window`, `parameters` and `server`. Never raises.

        Asks once, for at most two seconds; not about known models or remote providers.
        """
        if self._inspected or not self._is_near or self.wire != "openai" or _facts(self.model):
            return
        if not self._inspecting.acquire(timeout=INSPECT_TIME):  # a forked process may have inherited it locked
            return
        try:
            until = time.monotonic() + INSPECT_TIME
            state = CallState(self.provider, INSPECT_TIME, min(until, deadline or until), None)
            if not self._inspected:
                with contextlib.suppress(BackendError, *_MISREAD), _watch.watching(state):
                    self._inspect(state)
        finally:
            self._inspected = True
            self._inspecting.release()

    def _inspect(self, state: CallState) -> None:
        """Read the model list of llama.cpp, vLLM, LM Studio or a similar server; ask Ollama for the model's size."""
        entry: JSONObject = {}
        if self.provider != "ollama":
            entries = self._listed or self._served_models(state)
            named = [item for item in entries if item.get("id") == self.model]
            entry = next(iter(named or (entries if len(entries) == 1 else ())), {})
            if entry.get("owned_by") == "llamacpp":
                self._is_llamacpp()
            names = ("loaded_context_length", "max_model_len", "context_length", "max_context_length")
            sizes = [token_count(entry, "meta", "n_ctx"), *(token_count(entry, name) for name in names)]
            self.window = self.window or next((size for size in sizes if size >= 256), None)
            self.parameters = self.parameters or round(token_count(entry, "meta", "n_params") / 1e9, 3) or None
        if self.provider == "ollama" or entry.get("owned_by") == "library":
            # Its window is a setting of the server, mostly far below the model's own, and is not reported here.
            shown = self._fetch(state, f"{_origin(self.base_url)}/api/show", _dumps({"model": self.model}))
            self.parameters = self.parameters or size_in_name(str(shown["details"]["parameter_size"]))

    def _is_llamacpp(self) -> None:
        """Note that the server is llama.cpp: one named by its address alone has a provider now, and a price."""
        self.server = "llamacpp"
        if self.provider == "openai":
            row = _rows()["llamacpp"]
            self.provider, self.quirks, self.price_known = row.id, row.quirks, True

    def _fetch(self, state: CallState, url: str, data: bytes | None = None) -> Any:
        """GET, or POST `data`, and return the JSON. BackendError or ValueError if that fails."""
        link = _link(self.base_url, self._how.max_parallel)
        ask = functools.partial(link.fetch, state, url, self._headers(False), data, limit=INSPECT_LIMIT)
        status, _, body = with_retries(state, AdaptiveLimiter(1), 0, ask)[0]
        return from_json(body if status == 200 else b"")


# What reading an answer raises if a part of it has an unexpected type.
_MISREAD = (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError)
_OPTIONAL = ("stream_options", "return_progress", "prompt_cache_key", "response_format", "output_config")


def _live(backend: HTTPBackend, ask: Request, state: CallState, on_text: Callable[[str], None] | None) -> Reply:
    """Ask the server; if it refuses a field, ask again without it."""
    link = _link(backend.base_url, backend._how.max_parallel)
    while True:
        url, headers, body = backend._request(ask)
        request = url, headers, _dumps(body)

        def send(request: _Sent = request) -> ResponseBuilder:
            builder = _WIRES[backend.wire].builder(backend, ask, on_text)
            with backend._hold_capacity(ask, state):
                return backend._attempt(link, state, request, builder)

        try:
            builder, attempts = with_retries(state, link.gate(backend.model), backend._how.max_retries, send)
        except BackendError as error:
            failure = error
        else:
            return _reply(backend, builder, ask, attempts)
        if failure.partial or not backend.adapt_to_error(failure, body, ask):
            raise failure


def _reply(backend: HTTPBackend, builder: ResponseBuilder, ask: Request, attempts: int) -> Reply:
    text, calls = "".join(builder.text), _tool_calls(builder.calls)
    usage: JSONObject | None = builder.usage
    if usage is None or not (usage["input"] or usage["output"]):
        into, out = estimate_tokens(ask.messages, ask.tools), estimate_tokens([{"content": text, "tool_calls": calls}])
        usage = {**_usage(into, out), "estimated": True}
    cost = builder.cost
    if cost is None:
        cost = cost_of(backend.model, usage, backend._how.prices, backend.provider)
    raw = builder.raw and {"wire": backend.wire, "model": backend.model, "provider": backend.provider, **builder.raw}
    return Reply(text, calls, usage, builder.stop, builder.model or backend.model, cost, raw, attempts)


def _drain(state: CallState, response: Response) -> bool:
    """Read the rest of a response so that its connection can be reused; False if too much follows."""
    if response.raw.connection is None:  # fully read: another call may already use the connection
        return True
    try:
        state.socket.settimeout(0.01)
        return any(not response.raw.read1(65536) for _ in range(4))
    except Exception:  # any failure means that the connection cannot be reused
        return False
    finally:
        with contextlib.suppress(OSError):
            state.socket.settimeout(state.timeout)


# --- the cache ----------------------------------------------------------------------------------------------------


def _cache_folder(cache: bool | str, env: _Environ) -> str | None:
    if isinstance(cache, str):
        return os.path.expanduser(cache)
    return os.path.join(env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rlm") if cache else None


_pending: dict[str, CallQueue] = {}  # by the answer's path: the call that asks, and those that wait for its answer


def _cached(backend: HTTPBackend, ask: Request, state: CallState, on_text: Callable[[str], None] | None) -> Reply:
    """The cached answer, or a live one, which is cached if it is complete. Equal requests in flight are sent once."""
    body = backend._request(ask._replace(max_tokens=None, stream=False))[2]
    params = {**(ask.defaults or {}), **(ask.params or {})}  # also those that this wire leaves out
    name = _digest([backend.provider, backend.base_url, backend.model, body, *([params] if params else [])])
    path = os.path.join(backend._how.cache or "", f"{name}.json")
    is_first = path not in _pending
    with contextlib.ExitStack() as turn:
        turn.enter_context(_pending.setdefault(path, CallQueue(1)).reserve(state))
        turn.callback(_pending.pop, path, None)
        if not is_first:
            turn.close()  # the others ask in parallel if the first answer was not cached
        if reply := _read_reply(path):
            if on_text and reply.text:
                on_text(reply.text)
            return reply._replace(usage=_usage(0, 0), cost_usd=0.0, attempts=0)
        _check_cache(os.path.dirname(path))
        reply = _live(backend, ask, state, on_text)
        if reply.stop_reason in ("stop", "tool_calls"):  # so that it does not depend on the output limit
            with contextlib.suppress(OSError, RecursionError):
                _write_json(path, reply._asdict())
        return reply


def _read_reply(path: str) -> Reply | None:
    try:
        with open(path, "rb") as file:
            reply = Reply(**from_json(file.read()))
    except (OSError, ValueError, TypeError):  # missing or incomplete: ask again
        return None
    return reply if isinstance(reply.text, str) and isinstance(reply.tool_calls, list) else None


def _check_cache(folder: str) -> None:
    """Create the cache folder; BackendError before anything is paid for if it cannot be written."""
    import errno

    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        message = f"cannot write to the cache {folder!r}: {getattr(error, 'strerror', None) or error}"
        raise BackendError(message, code="config", hint="name a folder of yours, or leave the cache off") from None


def _write_json(path: str, value: object) -> None:
    """Write a file atomically, readable by its owner only."""
    import tempfile

    handle, name = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with open(handle, "wb") as file:
            file.write(_dumps(value))
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


# --- other requests -----------------------------------------------------------------------------------------------


def post(
    url: str,
    *,
    json: object,
    headers: Mapping[str, str],
    timeout: float = 30.0,
    max_retries: int = 4,
    deadline: float | None = None,
    cancel: threading.Event | None = None,
    complete: Callable[[bytes], bool] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """POST JSON with the retries of a model call; return `(status, headers, body)` of the last response.

    `complete(chunk)` tells for each chunk whether the body ends there, even if the server keeps it open.
    """
    _checked_url(url)
    headers = {name: _Secret(value) for name, value in headers.items()}
    headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate", **headers}
    data = _dumps(json)
    state = CallState("", timeout, deadline, cancel)
    link = _link(url, 16)
    last: list[tuple[int, dict[str, str], bytes]] = []

    def send() -> None:
        last.clear()
        status, answered, body = link.fetch(state, url, headers, data, complete=complete)
        last.append((status, {name.lower(): value for name, value in answered.items()}, body))
        if status in _RETRIED or status >= 500:
            wait, code = _wait_asked(answered, body), _code_for(status, "")
            raise BackendError(f"status {status}", code=code, status=status, retryable=True, retry_after=wait)

    with _watch.watching(state):
        try:
            with_retries(state, link.gate(url), max_retries, send)
        except BackendError:
            if not last or state.end_reason:
                raise
    return last[0]


_LOCAL = ("ollama", "lm_studio", "llamacpp", "vllm")


def server_models(base_url: str, timeout: float) -> tuple[int, list[str] | None]:
    """(HTTP status, models) of a server's list of models, None where it has none; OSError if it does not answer.

    It costs nothing, and no key is sent.
    """
    state = CallState("", timeout, time.monotonic() + timeout, None)
    headers, url = {"Accept-Encoding": "identity", "User-Agent": "flat-rlm"}, f"{base_url.rstrip('/')}/models"
    try:
        with _watch.watching(state):
            status, _, body = _link(base_url, 16).fetch(state, url, headers, None, limit=INSPECT_LIMIT)
    except BackendError as error:
        raise (TimeoutError if error.code == "timeout" else ConnectionError)(error.message) from None
    try:
        return status, [str(entry["id"]) for entry in from_json(body)["data"]]
    except _MISREAD:
        return status, None


def local_servers(timeout: float = 0.3) -> list[tuple[str, str, list[str]]]:
    """List the model servers on this machine: `(provider id, base URL, models)`."""
    from concurrent.futures import ThreadPoolExecutor

    def probe(id_: str) -> tuple[str, str, list[str] | None]:
        base, models = _rows()[id_].base_url, None
        with contextlib.suppress(OSError):
            models = server_models(base, timeout)[1]
        return id_, base, models

    with ThreadPoolExecutor(len(_LOCAL)) as pool:
        return [(id_, base, models) for id_, base, models in pool.map(probe, _LOCAL) if models is not None]


# --- retries ------------------------------------------------------------------------------------------------------


def with_retries(
    state: CallState,
    gate: AdaptiveLimiter,
    max_retries: int,
    send: Callable[[], T],
    progress: Callable[[], int] = lambda: 0,
) -> tuple[T, int]:
    """Call `send` until it succeeds or the retries or the deadline are used up; return its result and the attempts.

    `progress` measures what the attempts have achieved together: when it grows, the retries are counted anew.
    """
    attempt = failures = 0
    idle_closed = False
    while True:
        attempt += 1
        brought = progress()
        gate.enter(state, first=attempt > 1)
        before = gate.answered
        try:
            result = send()
            gate.count_answer()
            return result, attempt
        except BackendError as error:
            failure = error
            # A 429 while other calls are answered only means waiting in line, and an idle connection that the server
            # has closed was no attempt: neither uses up the retries.
            queued = error.code == "rate" and gate.answered > before
            failures += not queued and (idle_closed or not error.idle_closed)
            if idle_closed and error.idle_closed:
                error.retry_after = None  # two in a row: the server closes what is in use, too
            idle_closed = error.idle_closed
            if progress() > brought:
                attempt = failures = 1
            wait = backoff(error, failures)
            if error.retryable and (error.code == "rate" or error.status in (503, 529)):
                gate.throttle(min(wait, LONGEST_WAIT))
        finally:
            gate.leave()
        exhausted = failures > max_retries or attempt >= max(MOST_ATTEMPTS, max_retries + 1)
        late = state.deadline is not None and time.monotonic() + wait >= state.deadline
        if not failure.retryable or exhausted or late or wait > LONGEST_WAIT:
            raise failure
        state.pause(wait)


def backoff(error: BackendError, failures: int) -> float:
    """Seconds until the next attempt: what the server asks for, else exponential, with jitter."""
    import random

    if error.retry_after is not None:
        return error.retry_after + random.uniform(0.01, 0.06) if error.retry_after else 0.0
    return float(min(8.0, 0.5 * 2.0 ** max(0, failures - 1)) * random.uniform(0.75, 1.0))


# --- errors from servers ------------------------------------------------------------------------------------------

_RETRIED = (408, 409, 429)
# Patterns for servers' messages: compiled at the first error, not at import.
_MONEY = (
    r"(?i)insufficient_quota|insufficient.balance|credit.balance|spend_limit|usage_limit_exceeded|billing_hard_limit"
    r"|exceeded_current_quota|PerDay"
)
_TOO_LONG = (
    r"(?i)context_length|context length|context window|context size|maximum context|(prompt|input) is too long"
    r"|input token count|too many tokens|exceed_context"
)
_CACHE_FULL = r"(?i)context size has been exceeded"  # llama.cpp: the concurrent calls together filled it
_NO_TOOLS = (
    r"(?is)\b(tools?|tool_choice|functions?)\b.{0,60}(not|n't) (be )?(support|enabl|allow|available)"
    r"|(unsupported|unrecogni[sz]ed|unknown|extra).{0,60}\btools\b"
    r"|(not|n't) support.{0,30}(tool|function)|no endpoints found that support tool use"
    r"|tools? param requires|requires --(jinja|enable-auto-tool-choice)"
)
_NO_IMAGES = (
    r"(?is)(image|vision|multimodal).{0,60}(not|n't) (be )?(support|enabl|allow|available)"
    r"|(not|n't) support.{0,30}(image|vision)|no endpoints found that support image|mmproj"
)
_BLOCKED = r"(?i)content_filter|content_policy|moderation"
_UNKNOWN_FIELD = r"(?i)unsupported|unrecogni[sz]ed|unknown|unexpected|not supported|not permitted|extra"
_REFUSAL = (
    r"(?i)support|recogni[sz]ed|unknown|unexpected|permitted|allowed|accept|extra|deprecated|range|require"
    r"|\b(?:in)?valid\b|must|cannot|can't|only|should"  # not the `invalid_request_error` of every refusal
)
_KEY_SHAPE = r"\b(?:sk|pk|gsk|xai|hf|r8|nvapi|key)[-_][-_A-Za-z0-9]{12,}|\bAIza[-_A-Za-z0-9]{20,}"
_HINTS = {
    "auth": "check the key: it may be revoked, of another account, or not allowed to use this model",
    "quota": "the account's credit or spending limit is used up: raise it with the provider, or use another",
    "not_found": "check the model's name and the base URL",
    "context_length": "give it less: keep long text in variables and send pieces of it",
    "redirect": "set the base URL to where the server wants to be called: a key is not sent after a redirect",
    "rate": "wait, or lower max_parallel",
    "refused": "the provider's content rules refuse the prompt",
}
_CODES = {401: "auth", 402: "quota", 403: "auth", 404: "not_found", 408: "timeout", 409: "server", 429: "rate"}
# The status that an error sent with status 200 stands for.
_STATUS_OF = {
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "RESOURCE_EXHAUSTED": 429,
    "insufficient_quota": 402,
    "invalid_request_error": 400,
    "INVALID_ARGUMENT": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
}


def _code_for(status: int, text: str) -> str:
    if status in (400, 403, 429) and re.search(_MONEY, text):
        return "quota"
    if status == 500 and re.search(_CACHE_FULL, text):
        return "rate"
    if status in (400, 413, 422, 500) and re.search(_TOO_LONG, text):
        return "context_length"
    if status in (400, 403) and re.search(_BLOCKED, text):
        return "refused"
    if 300 <= status < 400:
        return "redirect"
    return "server" if status >= 500 else _CODES.get(status, "bad_request")


def _error_text(body: object) -> str:
    """The message in an error body with its codes, or the body itself."""
    if isinstance(body, (bytes, bytearray)):
        text = body.decode("utf-8", "replace").strip()
        if text.startswith("<"):
            return "a page of HTML"
        try:
            body = from_json(text)
        except ValueError:
            return text or "nothing"
    body = body[0] if isinstance(body, list) and body else body
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error)
    details = error.get("details")
    words = [error.get("type"), error.get("code"), error.get("status"), _object(details).get("error_code")]
    words += re.findall(r"\b\w{1,100}PerDay\w{0,100}", json.dumps(details)[:10_000])[:1]
    message = error.get("message") or error.get("detail") or json.dumps(error, ensure_ascii=False)
    named = ", ".join(dict.fromkeys(str(word) for word in words if word))
    return f"{message} ({named})" if named else str(message)


def _wait_asked(headers: Mapping[str, str], body: bytes | bytearray) -> float | None:
    """The seconds that the server asks to wait, from any of the headers and fields in use."""
    after = headers.get("retry-after", "")
    for text, unit in ((headers.get("retry-after-ms", ""), 1000.0), (after, 1.0)):
        with contextlib.suppress(ValueError):
            if (seconds := float(text) / unit) >= 0:  # false for NaN
                return seconds
    if after:
        from email.utils import parsedate_to_datetime

        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    found = re.search(rb'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d{1,9})?)s"', body)
    return float(found[1]) if found else None


def _tidy(text: str, secret: str) -> str:
    """Make a server's text fit one line: without keys, control characters and excess length."""
    text = re.sub(_KEY_SHAPE, "[redacted]", mask(text, [secret])[:4_000])
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text).split())
    return text if len(text) <= 600 else f"{text[:600]} …"


# --- requests and responses ---------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A request to a model, independent of the wire."""

    messages: Sequence[Message]
    tools: Sequence[JSONMap] | None = None
    max_tokens: int | None = None
    schema: JSONMap | None = None
    stream: bool = False
    params: JSONMap | None = None  # the caller's request parameters
    defaults: JSONMap | None = None  # the runtime's own, which the caller's override
    on_progress: Callable[[int, int], None] | None = None

    @property
    def is_conversation(self) -> bool:
        """Whether later turns will repeat this one as their prefix; a single prompt is not sent again."""
        return bool(self.tools) or any(message["role"] != "user" for message in self.messages)


# How servers spell a common parameter when they refuse it. If two are named together, the first is dropped.
_COMMON = {
    "top_p": r"top_?p",
    "temperature": r"temperature",
    "seed": r"seed",
    "stop": r"stop(?:_?sequences)?",
    "reasoning_effort": r"reasoning_?effort|effort|thinking(?:_?(?:config|level|budget))?",
    "max_output_tokens": r"(?!)",  # its spelling and its size are learnt in other ways
}
# Parts of a request that cannot be parameters, and what to use instead.
_RESERVED = {
    **dict.fromkeys(("model", "messages", "contents", "stream", "stream_options", "return_progress"), ""),
    **dict.fromkeys(("system", "systemInstruction", "system_instruction"), "give the system prompt as a message"),
    **dict.fromkeys(("tools", "tool_choice", "toolConfig", "tool_config"), "give tools as tools"),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "maxOutputTokens"), "use max_output_tokens"),
    "response_format": "use a schema",
}


def _params(backend: HTTPBackend, ask: Request) -> tuple[JSONObject, JSONObject]:
    """The caller's parameters over the defaults: those with a name on every wire, and the others, sent as they are."""
    params = {**(ask.defaults or {}), **(ask.params or {})}
    for name in params:
        if name in _RESERVED:
            message = f"{name!r} is a part of the request and cannot be a parameter"
            raise BackendError(message, code="config", hint=_RESERVED[name] or "leave it out of params")
    try:
        json.dumps(params, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        hint = "give numbers, strings, lists and dicts"
        raise BackendError(f"params cannot be sent as JSON: {error}", code="config", hint=hint) from None
    limit = params.get("max_output_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise BackendError(f"max_output_tokens is {limit!r}", code="config", hint="give a whole number of tokens")
    common = {name: params.pop(name) for name in _COMMON if name in params}
    common = {name: value for name, value in common.items() if value is not None and name not in backend.refused}
    if isinstance(common.get("stop"), str):
        common["stop"] = [common["stop"]]
    return common, params


def _renamed(common: JSONMap, names: Mapping[str, str]) -> JSONObject:
    """Rename the parameters that a wire supports."""
    return {names[name]: value for name, value in common.items() if name in names}


class ResponseBuilder:
    """Builds a response from a body or from a stream's events. Each wire has a subclass."""

    def __init__(self, backend: HTTPBackend, ask: Request, on_text: Callable[[str], None] | None) -> None:
        self.backend = backend
        self.on_text = on_text
        self.on_progress = ask.on_progress
        self.refused: BaseException | None = None  # an exception from a callback, not from the server
        self.text: list[str] = []
        self.calls: list[JSONObject] = []
        self.full = False  # more calls have come than MOST_CALLS
        self.kept = 0  # JSON values that are kept to be sent back
        self.began = False  # part of the answer has come: a retry would repeat it
        self.ended = False  # the server has marked the end
        self.stop = ""
        self.model = ""
        self.usage: dict[str, int] | None = None
        self.cost: float | None = None
        self.raw: JSONObject | None = None

    def append_text(self, text: object) -> None:
        if isinstance(text, str) and text:
            self.began = True
            self.text.append(text)
            if self.on_text:
                self._hand_on(self.on_text, text)

    def _hand_on(self, callback: Callable[..., None], *values: object) -> None:
        try:
            callback(*values)
        except BaseException as error:
            self.refused = error
            raise

    def add_call(self, call: JSONObject) -> None:
        """Add a tool call, unless there are too many already."""
        self.full = self.full or len(self.calls) >= MOST_CALLS
        if not self.full:
            self.calls.append(call)

    def keep(self, part: T) -> T:
        """Return a part that is sent back unchanged; BackendError if such parts grow too large."""
        self.kept += _count_json(_JSON.encode(part), JSON_VALUES - self.kept)
        if self.kept > JSON_VALUES:
            raise BackendError("the answer has more reasoning or signatures than can be kept", code="protocol")
        return part

    def feed(self, body: JSONMap) -> None:
        """Read one event of a stream, or a complete body."""
        raise NotImplementedError

    def finish(self) -> None:
        """Complete the response; everything has arrived."""
        raise NotImplementedError


def _dumps(value: object) -> bytes:
    return _JSON.encode(value).encode("utf-8", "replace")


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _arguments(value: object) -> JSONObject | str:
    """Parse a call's arguments; text that is no object is returned as it is."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    if text.strip() in ("", "null"):
        return {}
    try:
        parsed = from_json(text)
        if isinstance(parsed, str):  # some servers encode twice
            parsed = from_json(parsed)
    except ValueError:
        parsed = last_object(text)
    return parsed if isinstance(parsed, dict) else text


def last_object(text: str, *, strict: bool = True) -> JSONObject | None:
    """Parse the last of several concatenated objects: some servers stream `{}` before the arguments, or repeat them."""
    if _count_json(text, JSON_VALUES) > JSON_VALUES:
        return None
    found, at = None, 0
    decoder = json.JSONDecoder(strict=strict)
    for _ in range(8):
        try:
            _, end = decoder.raw_decode(text, at)
            found = from_json(text[at:end], strict=strict)
        except (ValueError, RecursionError):
            return None
        if not (rest := text[end:].lstrip()):
            return found if isinstance(found, dict) else None
        at = len(text) - len(rest)
    return None


def _tool_calls(calls: Sequence[JSONMap]) -> list[JSONObject]:
    """The tool calls of a response, each with a unique id."""
    made: list[JSONObject] = []
    taken: set[str] = set()
    for call in calls:
        number = len(made) + 1
        id_ = call.get("id")
        while not isinstance(id_, str) or not id_ or id_ in taken:
            id_ = f"call_{number}"
            number += 1
        taken.add(id_)
        made.append({"id": id_, "name": str(call.get("name") or ""), "arguments": _arguments(call.get("arguments"))})
    return made


def _sendable(arguments: object) -> JSONObject:
    """Arguments as an object: many servers answer 500 to a history with anything else."""
    return arguments if isinstance(arguments, dict) else {"unreadable": str(arguments)}


def _arguments_text(arguments: JSONObject) -> str:
    """Arguments as JSON. An encoder costs more than the text of a cell, which is all that most calls have."""
    if len(arguments) == 1:
        [(name, value)] = arguments.items()
        if type(name) is type(value) is str:
            return f"{{{_quoted(name)}: {_quoted(value)}}}"
    return json.dumps(arguments, ensure_ascii=False)


_quoted = json.encoder.encode_basestring


def _object(value: object) -> JSONObject:
    return value if isinstance(value, dict) else {}


def _first_object(value: object) -> JSONObject:
    return _object(value[0]) if isinstance(value, list) and value else {}


def _amount(value: Any, otherwise: float | None = None) -> float | None:
    """Read a cost in USD; `otherwise` if it is not a plausible number."""
    return float(value) if type(value) in (int, float) and 0 <= value < 1e6 else otherwise


def token_count(usage: Any, *path: str) -> int:
    """Read a count from a nested usage object; 0 if it is not a number."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return max(0, int(usage)) if type(usage) in (int, float) and abs(usage) < 1e15 else 0


def _usage(into: int, out: int, cached: int = 0, cache_write: int = 0, reasoning: int = 0) -> JSONObject:
    return {"input": into, "output": out, "cached": cached, "cache_write": cache_write, "reasoning": reasoning}


# Where input, output, cached, cache_write and reasoning are counted: a sum with "+", alternatives with "|".
_COUNTS = {
    "openai": "prompt_tokens completion_tokens"
    " prompt_tokens_details.cached_tokens|prompt_cache_hit_tokens|timings.cache_n"
    " prompt_tokens_details.cache_write_tokens completion_tokens_details.reasoning_tokens",
    "anthropic": "input_tokens+cache_read_input_tokens+cache_creation_input_tokens output_tokens"
    " cache_read_input_tokens cache_creation_input_tokens"
    " output_tokens_details.thinking_tokens|output_tokens_details.reasoning_tokens",
    "gemini": "promptTokenCount+toolUsePromptTokenCount candidatesTokenCount+thoughtsTokenCount cachedContentTokenCount"
    " - thoughtsTokenCount",
    "codex": "input_tokens output_tokens cached_input_tokens cache_write_input_tokens reasoning_output_tokens",
    "gemini-cli": "tokens.prompt+tokens.tool tokens.candidates+tokens.thoughts tokens.cached - tokens.thoughts",
}


def _counted(form: str, usage: object) -> JSONObject:
    """Read the token counts of a wire or of a coding agent."""

    def first(names: str) -> int:
        return next(filter(None, (token_count(usage, *name.split(".")) for name in names.split("|"))), 0)

    into, out, cached, written, reasoning = (sum(map(first, names.split("+"))) for names in _COUNTS[form].split())
    cached = min(cached, into)
    return _usage(into, out, cached, min(written, into - cached), reasoning)


def _parts(content: Content) -> list[JSONObject]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [_inline(dict(part)) for part in content or ()]


_DATA_URI = r"(?i)data:([\w.+-]+/[\w.+-]+)?(?:;[\w=-]+)*;base64,"


def _inline(part: JSONObject) -> JSONObject:
    """Decode an image part whose URL is a data URI."""
    found = re.match(_DATA_URI, part.get("url", "")) if part.get("type") == "image" else None
    if not found:
        return part
    return {"type": "image", "media_type": found[1] or "image/png", "data": part["url"][found.end() :]}


def _turns(messages: Sequence[Message]) -> Iterator[tuple[str, Iterator[Message]]]:
    """The messages in turns of `user` and `assistant`, without system messages; a tool result is the user's."""
    others = (message for message in messages if message["role"] != "system")
    return groupby(others, lambda message: "assistant" if message["role"] == "assistant" else "user")


def _plain(content: Content) -> str:
    if isinstance(content, str):  # nearly always, and a long history is converted for each request
        return content
    return "\n".join(part["text"] for part in _parts(content) if part["type"] == "text")


def _images(content: Content) -> list[JSONObject]:
    return [] if isinstance(content, str) else [part for part in _parts(content) if part["type"] == "image"]


def _has_images(messages: Sequence[Message]) -> bool:
    return any(_images(message.get("content")) for message in messages)


_IMAGES = {rb"\x89PNG": "png", rb"\xff\xd8\xff": "jpeg", rb"GIF8": "gif", rb"RIFF....WEBP": "webp"}


def image_part(source: str | os.PathLike[str] | bytes | bytearray) -> dict[str, Any]:
    """Make a message part of an image: bytes, a path, an http URL or a data URI. ValueError if it is not an image."""
    if isinstance(source, str) and re.match(r"(https?|data):", source, re.IGNORECASE):
        return _inline({"type": "image", "url": source})
    if isinstance(source, (bytes, bytearray)):
        data = bytes(source)
    else:
        with open(source, "rb") as file:
            data = file.read()
    kind = next((f"image/{kind}" for magic, kind in _IMAGES.items() if re.match(magic, data, re.DOTALL)), None)
    if kind is None:
        raise ValueError("not a PNG, JPEG, GIF or WebP image")
    import base64

    return {"type": "image", "media_type": kind, "data": base64.b64encode(data).decode()}


# --- OpenAI chat completions ------------------------------------------------------------------------------------

_OPENAI_PARAMS = {name: name for name in ("temperature", "top_p", "seed", "stop", "reasoning_effort")}
_OPENAI_STOPS = {"length": "length", "content_filter": "content_filter", "max_tokens": "length"}


def _openai_url(base: str, model: str, stream: bool) -> str:
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


def _openai_body(backend: HTTPBackend, ask: Request, common: JSONMap) -> JSONObject:
    body: JSONObject = {"model": backend.model, "messages": _openai_messages(backend, ask.messages)}
    if ask.tools:
        body["tools"] = [{"type": "function", "function": dict(tool)} for tool in ask.tools]
    if ask.max_tokens is not None:
        body[backend.limit_field] = ask.max_tokens
    if ask.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ask.schema}}
    if ask.stream:
        body.update(stream=True, stream_options={"include_usage": True})
        if ask.on_progress and backend.server == "llamacpp":
            body["return_progress"] = True
    if ask.is_conversation and _host(backend.base_url) == "api.openai.com":
        body["prompt_cache_key"] = _digest(body["messages"][:2])[:32]
    if ask.is_conversation and "marks" in backend.quirks and "anthropic/" in backend.model:
        _mark_openai_style(body["messages"])
    return {**body, **_renamed(common, _OPENAI_PARAMS)}


def _mark_openai_style(messages: list[JSONObject]) -> None:
    """Add cache marks in OpenRouter's form: on the system prompt's text and on the last two turns."""
    systems = [message for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] in ("user", "tool")]
    for message in (*systems[-1:], *turns[-2:]):
        if isinstance(text := message["content"], str) and text:
            message["content"] = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]


def _digest(value: object) -> str:
    import hashlib

    return hashlib.sha256(_dumps(value)).hexdigest()


def _openai_messages(backend: HTTPBackend, messages: Sequence[Message]) -> list[JSONObject]:
    made: list[JSONObject] = []
    for are_results, run in groupby(messages, lambda message: message["role"] == "tool"):
        group = list(run)
        made += [_openai_message(backend, message) for message in group]
        images = [image for message in group if are_results for image in _images(message["content"])]
        if images:  # tool results hold text only
            made.append({"role": "user", "content": _openai_content(images)})
    if not backend.parameters and not backend.server:
        return made
    merged: list[JSONObject] = []  # chat templates of open models refuse two user messages in a row
    for are_texts, same in groupby(made, lambda message: message["role"] == "user" and type(message["content"]) is str):
        alike = list(same)
        merged += [{"role": "user", "content": "\n\n".join(m["content"] for m in alike)}] if are_texts else alike
    return merged


def _openai_message(backend: HTTPBackend, message: Message) -> JSONObject:
    if message["role"] == "assistant":
        return _openai_assistant(backend, message)
    if message["role"] != "tool":
        return {"role": message["role"], "content": _openai_content(message["content"])}
    name = {"name": message["name"]} if "name" in backend.quirks else {}
    return {"role": "tool", "tool_call_id": message["tool_call_id"], "content": _plain(message["content"]), **name}


def _openai_content(content: Content) -> str | list[JSONObject]:
    """Content as a string, which every server accepts; as parts only if there is an image."""
    if not _images(content):
        return _plain(content)
    parts = _parts(content)
    made = []
    for part in parts:
        if part["type"] == "text":
            made.append({"type": "text", "text": part["text"]})
        else:
            url = part.get("url") or f"data:{part['media_type']};base64,{part['data']}"
            made.append({"type": "image_url", "image_url": {"url": url}})
    return made


def _openai_assistant(backend: HTTPBackend, message: Message) -> JSONObject:
    made: JSONObject = {"role": "assistant", "content": _plain(message["content"])}
    raw = backend.provider_state(message)
    extras = raw.get("extras", {})
    calls = []
    for call in message.get("tool_calls") or ():
        function = {"name": call["name"], "arguments": _arguments_text(_sendable(call["arguments"]))}
        calls.append({"id": call["id"], "type": "function", "function": function, **extras.get(call["id"], {})})
    if calls:
        made["tool_calls"] = calls
        if "reasoning" in backend.quirks:
            made["reasoning_content"] = ""
    return {**made, **raw.get("fields", {})}


class _OpenAIBuilder(ResponseBuilder):
    def __init__(self, backend: HTTPBackend, ask: Request, on_text: Callable[[str], None] | None) -> None:
        super().__init__(backend, ask, on_text)
        self.thoughts: list[str] = []
        self.details: list[object] = []
        self.reason: str | None = None

    def feed(self, body: JSONMap) -> None:
        if isinstance(body.get("model"), str):
            self.model = body["model"]
        if isinstance(body.get("usage"), dict):
            usage, self.cost = body["usage"], _amount(body["usage"].get("cost"), self.cost)
            counts = self.usage = _counted("openai", {**usage, "timings": body.get("timings")})
            # Some count reasoning in the total only.
            counts["output"] = max(counts["output"], token_count(usage, "total_tokens") - counts["input"])
        if self.on_progress and (total := token_count(body, "prompt_progress", "total")):
            self._hand_on(self.on_progress, token_count(body, "prompt_progress", "processed"), total)
        choice = _first_object(body.get("choices"))
        if isinstance(choice.get("delta"), dict):
            self._delta(choice["delta"], whole=False)
        if isinstance(choice.get("message"), dict):
            self._delta(choice["message"], whole=True)
            self.ended = True
        if choice.get("finish_reason"):
            self.reason = str(choice["finish_reason"])
            self.ended = True

    def _delta(self, delta: JSONMap, *, whole: bool) -> None:
        self.append_text(_text_of(delta.get("content")))
        if delta.get("refusal"):
            self.stop = "refusal"
            self.append_text(delta["refusal"])
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            self.thoughts.append(thought)
            self.began = True
        if isinstance(delta.get("reasoning_details"), list):
            self.details += self.keep(delta["reasoning_details"])
        for index, fragment in enumerate(delta.get("tool_calls") or ()):
            if isinstance(fragment, dict):
                self._call({**fragment, "index": index} if whole else fragment)
        if isinstance(delta.get("function_call"), dict):  # the older form
            self._call({"index": 0, "function": delta["function_call"]})

    def _call(self, fragment: JSONMap) -> None:
        """Add a fragment of a call. Servers omit the index, repeat the id, or send several calls as index 0."""
        self.began = True
        if self.full:  # the fragment may belong to a call that was dropped
            return
        function = _object(fragment.get("function"))
        index, id_ = fragment.get("index"), fragment.get("id")
        call = next((call for call in reversed(self.calls) if call["index"] == index), None)
        if call is None and index is None and not id_ and self.calls:
            call = self.calls[-1]
        if call is None or (id_ and call["id"] and id_ != call["id"]):
            call = {"index": index, "id": id_, "name": "", "arguments": [], "extra": {}}
            self.add_call(call)
        call["id"] = call["id"] or id_
        call["name"] = call["name"] or function.get("name") or ""
        if isinstance(fragment.get("extra_content"), dict):
            call["extra"] = {"extra_content": self.keep(fragment["extra_content"])}
        if isinstance(piece := function.get("arguments"), str):
            call["arguments"].append(piece)
        elif piece:
            call["arguments"][:] = [json.dumps(piece)]

    def finish(self) -> None:
        for call in self.calls:
            call["arguments"] = "".join(call["arguments"])
        self.stop = self.stop or _OPENAI_STOPS.get(self.reason or "", "tool_calls" if self.calls else "stop")
        fields: JSONObject = {}
        if "reasoning" in self.backend.quirks and self.thoughts and self.calls:
            fields["reasoning_content"] = "".join(self.thoughts)
        if "details" in self.backend.quirks and self.details:
            fields["reasoning_details"] = self.details
        extras = {call["id"]: call["extra"] for call in self.calls if call["extra"] and call["id"]}
        if fields or extras:
            self.raw = {"fields": fields, "extras": extras}


def _text_of(content: object) -> str:
    """The text of content, which some servers send as a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


# --- Anthropic messages -----------------------------------------------------------------------------------------

_ANTHROPIC_PARAMS = {"temperature": "temperature", "top_p": "top_p", "stop": "stop_sequences"}  # there is no seed
_ANTHROPIC_STOPS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
}


def _anthropic_url(base: str, model: str, stream: bool) -> str:
    if base.endswith("/messages"):
        return base
    return f"{base}/messages" if re.search(r"/v\d+$", base) else f"{base}/v1/messages"


def _anthropic_body(backend: HTTPBackend, ask: Request, common: JSONMap) -> JSONObject:
    body: JSONObject = {
        "model": backend.model,
        "max_tokens": ask.max_tokens or min(backend.max_output or 8192, 32_000),
        "messages": _anthropic_messages(backend, ask.messages),
    }
    if system := [part for message in ask.messages if message["role"] == "system" for part in _solid(message)]:
        body["system"] = system
    if tools := _anthropic_tools(ask):
        body["tools"] = tools
        if not ask.tools:
            body["tool_choice"] = {"type": "none"}
    config: JSONObject = {}
    if "reasoning_effort" in common:
        effort = common["reasoning_effort"]
        config["effort"] = "low" if effort in ("none", "minimal") else effort
    if ask.schema is not None:
        config["format"] = {"type": "json_schema", "schema": ask.schema}
    if config:
        body["output_config"] = config
    if ask.stream:
        body["stream"] = True
    if ask.is_conversation:
        _mark_for_cache(body)
    return {**body, **_renamed(common, _ANTHROPIC_PARAMS)}


def _anthropic_tools(ask: Request) -> list[JSONObject]:
    """The tools; if none are offered, those that the history uses, which must be defined."""
    if ask.tools:
        return [
            {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
            for tool in ask.tools
        ]
    used = {call["name"]: None for message in ask.messages for call in message.get("tool_calls") or ()}
    return [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in used]


def _mark_for_cache(body: JSONObject) -> None:
    """Mark what a later turn will read again: tools, system prompt and the last two turns (at most four marks).

    A lookup goes back at most 20 blocks from a mark, and a turn with many calls is longer: hence two turns.
    """
    turns = [message["content"] for message in body["messages"] if message["role"] == "user"][-2:]
    for blocks in (body.get("tools") or [], body.get("system") or [], *turns):
        markable = [block for block in blocks if "thinking" not in block.get("type", "")]
        if markable:
            markable[-1]["cache_control"] = {"type": "ephemeral"}


def _anthropic_messages(backend: HTTPBackend, messages: Sequence[Message]) -> list[JSONObject]:
    """The turns: consecutive user messages are merged, with tool results first."""
    made = []
    for role, turn in _turns(messages):
        blocks = [block for message in turn for block in _anthropic_blocks(backend, message)]
        blocks.sort(key=lambda block: role == "user" and block["type"] != "tool_result")
        made.append({"role": role, "content": blocks or [{"type": "text", "text": "(nothing)"}]})
    return made


def _anthropic_blocks(backend: HTTPBackend, message: Message) -> list[JSONObject]:
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"]}
        if parts := _solid(message):
            result["content"] = parts
        return [{**result, "is_error": True} if message.get("is_error") else result]
    if kept := backend.provider_state(message).get("content"):
        return [dict(block) for block in kept]
    return _solid(message) + [
        {"type": "tool_use", "id": call["id"], "name": call["name"], "input": _sendable(call["arguments"])}
        for call in message.get("tool_calls") or ()
    ]


def _solid(message: Message) -> list[JSONObject]:
    """The blocks of a message's content, without blank texts, which the API refuses."""
    return [_anthropic_part(part) for part in _parts(message["content"]) if part.get("text", "x").strip()]


def _anthropic_part(part: JSONMap) -> JSONObject:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if "url" in part:
        return {"type": "image", "source": {"type": "url", "url": part["url"]}}
    source = {"type": "base64", "media_type": part["media_type"], "data": part["data"]}
    return {"type": "image", "source": source}


_GROWING = ("text", "thinking", "signature")  # fields that arrive in pieces; some servers begin with null
_ANTHROPIC_DELTAS = {  # the block's field and the delta's, by the delta's type
    "text_delta": ("text", "text"),
    "input_json_delta": ("json", "partial_json"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
}


class _AnthropicBuilder(ResponseBuilder):
    def __init__(self, backend: HTTPBackend, ask: Request, on_text: Callable[[str], None] | None) -> None:
        super().__init__(backend, ask, on_text)
        self.blocks: dict[int, JSONObject] = {}
        self.growing: dict[tuple[int, str], list[str]] = {}  # fields of the blocks
        self.counts: JSONObject = {}

    def feed(self, body: JSONMap) -> None:
        kind = body.get("type")
        if "content" in body:
            self._message(body)
            for index, block in enumerate(body["content"] or ()):
                if isinstance(block, dict):
                    self._open(index, block)
            self.ended = isinstance(body["content"], list)
        elif kind == "message_start" and isinstance(body.get("message"), dict):
            self._message(body["message"])
        elif kind == "content_block_start" and isinstance(body.get("content_block"), dict):
            self._open(token_count(body, "index"), body["content_block"])
        elif kind == "content_block_delta" and isinstance(body.get("delta"), dict):
            self._delta(token_count(body, "index"), body["delta"])
        elif kind == "message_delta":
            self._message({**(body.get("delta") or {}), "usage": body.get("usage")})
        elif kind == "message_stop":
            self.ended = True

    def _message(self, message: Message) -> None:
        self.model = str(message.get("model") or self.model)
        self.stop = str(message.get("stop_reason") or self.stop)
        if isinstance(message.get("usage"), dict):
            self.counts.update({name: value for name, value in message["usage"].items() if value is not None})

    def _open(self, index: int, block: JSONMap) -> None:
        begun = {name: "" for name in _GROWING if name in block and block[name] is None}
        self.blocks[index] = self.keep({**block, **begun})
        self.began = self.began or block.get("type") != "text"
        self.append_text(block.get("text"))

    def _delta(self, index: int, delta: JSONMap) -> None:
        if index not in self.blocks:
            return
        self.began = True
        field, piece = _ANTHROPIC_DELTAS.get(str(delta.get("type")), ("", ""))
        if field:
            self.growing.setdefault((index, field), []).append(str(delta.get(piece) or ""))
        if field == "text":
            self.append_text(delta.get("text"))

    def finish(self) -> None:
        for (index, field), text in self.growing.items():
            self.blocks[index][field] = "".join([self.blocks[index].get(field) or "", *text])
        blocks = [block for _, block in sorted(self.blocks.items()) if isinstance(block.get("type"), str)]
        for block in blocks:
            if block.get("type") == "tool_use":
                arguments = block.pop("json", "") or block.get("input")
                self.add_call({"id": block.get("id"), "name": block.get("name"), "arguments": arguments})
                block["input"] = _sendable(_arguments(arguments))
        if self.full:  # every call in a request needs its result
            taken = [call["id"] for call in self.calls]
            blocks = [block for block in blocks if block["type"] != "tool_use" or block.get("id") in taken]
        if any(block.get("type") not in ("text", "tool_use") for block in blocks):
            self.raw = {"content": [_replayable(block) for block in blocks if block.get("text", "x").strip()]}
        self.stop = _ANTHROPIC_STOPS.get(self.stop, "tool_calls" if self.calls else "stop")
        if self.counts:
            self.usage = _counted("anthropic", self.counts)


def _replayable(block: JSONMap) -> JSONObject:
    """A response's block as a request may hold it: thinking unmodified, others without response-only fields."""
    keep = {"text": ("type", "text"), "tool_use": ("type", "id", "name", "input")}.get(block.get("type", ""))
    return {name: block[name] for name in keep if name in block} if keep else dict(block)


# --- Gemini -----------------------------------------------------------------------------------------------------

_GEMINI_PARAMS = {"temperature": "temperature", "top_p": "topP", "seed": "seed", "stop": "stopSequences"}
_GEMINI_BUDGETS = {"none": 0, "minimal": 0, "low": 1024, "medium": 8192}  # tokens of thought; the most for any other
_GEMINI_LEVELS = {"none": "MINIMAL", "max": "XHIGH"}
_GEMINI_FILTERS = ("SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII", "BLOCKLIST", "LANGUAGE", "IMAGE_SAFETY")
_GEMINI_STOPS = {"MAX_TOKENS": "length", **dict.fromkeys(_GEMINI_FILTERS, "content_filter")}
# Google's placeholder for calls that another model made: from Gemini 3 on, a call without a signature is an error.
_UNSIGNED = "skip_thought_signature_validator"


def _gemini_url(base: str, model: str, stream: bool) -> str:
    from urllib.parse import quote

    if ".." in model.split("/"):  # code in a cell may name a model: it is to name no other address
        raise BackendError(f"no model is called {model!r}", code="config")
    path = quote(model if model.startswith(("models/", "tunedModels/")) else f"models/{model}")
    return f"{base}/{path}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}"


def _gemini_body(backend: HTTPBackend, ask: Request, common: JSONMap) -> JSONObject:
    body: JSONObject = {"contents": _gemini_contents(backend, ask.messages)}
    system = [_plain(message["content"]) for message in ask.messages if message["role"] == "system"]
    if system:
        body["systemInstruction"] = {"parts": [{"text": text} for text in system]}
    if ask.tools:
        declared = [
            {"name": tool["name"], "description": tool["description"], "parametersJsonSchema": tool["parameters"]}
            for tool in ask.tools
        ]
        body["tools"] = [{"functionDeclarations": declared}]
    config = _renamed(common, _GEMINI_PARAMS)
    if "reasoning_effort" in common:
        config["thinkingConfig"] = _gemini_thinking(backend.model, str(common["reasoning_effort"]).lower())
    if ask.max_tokens is not None:
        config["maxOutputTokens"] = ask.max_tokens
    if ask.schema is not None:
        config.update(responseMimeType="application/json", responseJsonSchema=ask.schema)
    if config:
        body["generationConfig"] = config
    return body


def _gemini_thinking(model: str, effort: str) -> JSONObject:
    """The thinking level (from Gemini 3 on) or token budget (before)."""
    if re.match(r"(models/)?gemini-[12]\b", model):
        return {"thinkingBudget": _GEMINI_BUDGETS.get(effort, 24_576)}
    return {"thinkingLevel": _GEMINI_LEVELS.get(effort, effort.upper())}


def _gemini_contents(backend: HTTPBackend, messages: Sequence[Message]) -> list[JSONObject]:
    kept = [part for message in messages for part in backend.provider_state(message).get("parts", ())]
    native = [part["functionCall"].get("id") for part in kept if "functionCall" in part]  # Gemini wants these ids back
    turns = [
        {
            "role": "model" if role == "assistant" else "user",
            "parts": [part for message in turn for part in _gemini_parts(backend, message, native)],
        }
        for role, turn in _turns(messages)
    ]
    return [turn for turn in turns if turn["parts"]]


def _gemini_parts(backend: HTTPBackend, message: Message, native: Collection[object]) -> list[JSONObject]:
    if kept := backend.provider_state(message).get("parts"):
        return [dict(part) for part in kept]
    if message["role"] != "tool":
        signed = {"thoughtSignature": _UNSIGNED} if re.match(r"(models/)?gemini-[3-9]", backend.model) else {}
        parts = [_gemini_part(part) for part in _parts(message["content"])]
        return parts + [
            {"functionCall": {"name": call["name"], "args": _sendable(call["arguments"])}, **signed}
            for call in message.get("tool_calls") or ()
        ]
    key = "error" if message.get("is_error") else "result"
    response = {"name": message["name"], "response": {key: _plain(message["content"])}}
    if message["tool_call_id"] in native:
        response["id"] = message["tool_call_id"]
    return [{"functionResponse": response}, *(_gemini_part(part) for part in _images(message["content"]))]


def _gemini_part(part: JSONMap) -> JSONObject:
    if part["type"] == "text":
        return {"text": part["text"]}
    if "url" in part:
        return {"fileData": {"fileUri": part["url"], "mimeType": part.get("media_type") or "image/*"}}
    return {"inlineData": {"mimeType": part["media_type"], "data": part["data"]}}


class _GeminiBuilder(ResponseBuilder):
    def __init__(self, backend: HTTPBackend, ask: Request, on_text: Callable[[str], None] | None) -> None:
        super().__init__(backend, ask, on_text)
        self.parts: list[JSONObject] = []
        self.texts: list[list[str]] = []  # of the parts
        self.reason = ""

    def feed(self, body: JSONMap) -> None:
        self.model = str(body.get("modelVersion") or self.model)
        if isinstance(body.get("usageMetadata"), dict):
            self.usage = _counted("gemini", body["usageMetadata"])
        if _object(body.get("promptFeedback")).get("blockReason"):
            self.reason, self.ended = "SAFETY", True
        candidate = _first_object(body.get("candidates"))
        for part in _object(candidate.get("content")).get("parts") or ():
            if isinstance(part, dict):
                self._part({name: value for name, value in part.items() if value is not None})
        if candidate.get("finishReason"):
            self.reason, self.ended = str(candidate["finishReason"]), True

    def _part(self, part: JSONObject) -> None:
        self.began = True
        if not part.get("thought"):
            self.append_text(part.get("text"))
        if "functionCall" in part:
            call = part["functionCall"]
            self.add_call({"id": call.get("id"), "name": call.get("name"), "arguments": call.get("args")})
            if self.full:
                return
        if set(part) == {"text"} and self.parts and set(self.parts[-1]) == {"text"}:
            self.texts[-1].append("" + part["text"])
        else:
            self.parts.append(self.keep(dict(part)))
            self.texts.append([str(part.get("text") or "")])

    def finish(self) -> None:
        for part, text in zip(self.parts, self.texts):
            if "text" in part:
                part["text"] = "".join(text)
        unusable = self.reason not in ("STOP", *_GEMINI_STOPS) and not self.text and not self.calls
        if unusable:
            raise BackendError(f"the model's answer was not usable ({self.reason})", code="protocol", retryable=True)
        self.stop = _GEMINI_STOPS.get(self.reason, "tool_calls" if self.calls else "stop")
        if any("thoughtSignature" in part or "id" in part.get("functionCall", {}) for part in self.parts):
            self.raw = {"parts": [part for part in self.parts if not part.get("thought")]}


class _Wire(NamedTuple):
    url: Callable[[str, str, bool], str]
    body: Callable[[HTTPBackend, Request, JSONMap], JSONObject]
    builder: type[ResponseBuilder]


_WIRES = {
    "openai": _Wire(_openai_url, _openai_body, _OpenAIBuilder),
    "anthropic": _Wire(_anthropic_url, _anthropic_body, _AnthropicBuilder),
    "gemini": _Wire(_gemini_url, _gemini_body, _GeminiBuilder),
}


# --- deadlines and cancelling -------------------------------------------------------------------------------------


class CallState:
    """One call in flight: what may end it early, and how its waiting thread is woken.

    A thread in `recv` cannot wait for an event too, so a watching thread does, and shuts the socket down.
    """

    def __init__(self, provider: str, timeout: float, deadline: float | None, cancel: threading.Event | None) -> None:
        self.provider = provider
        self.timeout = timeout
        self.deadline = deadline
        self.cancel = cancel
        self.quiet_until: float | None = None  # when the idle timeout ends the attempt
        self.end_reason = ""  # the call is over: cancelled, deadline or quiet
        self.wake = threading.Event()
        self.connection: TrackedConnection | None = None
        self.socket: Any = None
        self.reused = False

    def poll(self, now: float) -> None:
        """End the call if it is cancelled, out of time, or the server has been silent for too long."""
        if self.end_reason:
            return
        if self.cancel is not None and self.cancel.is_set():
            self._abort("cancelled")
        elif self.deadline is not None and now >= self.deadline:
            self._abort("deadline")
        elif self.quiet_until is not None and now >= self.quiet_until:
            self._abort("quiet")

    def _abort(self, reason: str) -> None:
        import socket

        with _watch.lock:
            self.end_reason = reason
            if self.connection is not None and self.socket is not None and self.connection.state is self:
                raw_socket = self.socket if isinstance(self.socket, socket.socket) else self.socket.socket
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(raw_socket, socket.SHUT_RDWR)  # below TLS, whose state the reader holds
        self.wake.set()

    def take(self, connection: TrackedConnection) -> None:
        """Record which connection the call uses now."""
        with _watch.lock:
            if self.end_reason:
                raise OSError("given up")
            self.connection, self.socket = connection, connection.sock
            connection.state = self

    def touch(self) -> None:
        """Restart the idle timeout: the server has sent or taken something."""
        self.quiet_until = time.monotonic() + self.timeout

    def check(self) -> None:
        """Raise BackendError if the call was cancelled or timed out."""
        self.poll(time.monotonic())
        if self.end_reason == "cancelled":
            raise BackendError("the call was cancelled", code="cancelled", provider=self.provider)
        if self.end_reason == "deadline":
            raise BackendError("no answer before the deadline", code="timeout", provider=self.provider)
        if self.end_reason == "quiet":
            self.end_reason, self.quiet_until = "", None
            message = f"the server sent nothing for {self.timeout:g} s"
            raise BackendError(message, code="timeout", provider=self.provider, retryable=True)

    def pause(self, seconds: float) -> None:
        """Wait for the whole time, even if `wake` is set; raise if the call is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.sleep(left)

    def sleep(self, seconds: float | None) -> None:
        """Wait until `wake` is set, at most `seconds`; raise if the call is over."""
        self.quiet_until = None
        self.end_reason = self.end_reason.replace("quiet", "")  # of the attempt before
        self.check()
        self.wake.wait(seconds)
        self.wake.clear()
        self.check()


class CancelWatcher:
    """A thread that polls all calls in flight every 20 ms. It ends after a second without calls."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.states: set[CallState] = set()
        self.running = False

    @contextlib.contextmanager
    def watching(self, state: CallState) -> Iterator[None]:
        with self.lock:
            if not self.running:
                _begin(self._run, "rlm-watch")
                self.running = True
            self.states.add(state)
        try:
            yield
        finally:
            with self.lock:
                self.states.discard(state)
                if state.connection is not None and state.connection.state is state:
                    state.connection.state = None

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(TICK)
            with self.lock:
                states = list(self.states)
                idle = 0 if states else idle + 1
                if idle * TICK > 1:
                    self.running = False
                    return
            now = time.monotonic()
            for state in states:
                state.poll(now)


def _begin(work: Callable[[], None], name: str) -> None:
    """Run `work` on a new thread; BackendError if the system has no more threads."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        hint = "fewer calls at once: lower max_parallel, or raise the limit (ulimit -u)"
        raise BackendError("no thread for the call can be started", code="config", hint=hint) from None


_watch = CancelWatcher()
_learning = threading.Lock()
_here = threading.local()  # .state: the call that this thread is sending


def _forget_after_fork() -> None:
    """Reset what a child process cannot use: the watching thread, open connections and held locks."""
    global _watch, _learning, _serving
    _watch = CancelWatcher()
    _learning, _serving = threading.Lock(), threading.Lock()
    _links.clear()
    _pending.clear()
    _programs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


# --- connections --------------------------------------------------------------------------------------------------


class TrackedConnection:
    """Mixin for urllib3's connections: each knows the call that it serves, so that the call can be aborted."""

    sock: Any
    state: CallState | None = None
    used = False

    def connect(self) -> None:
        """Connect on another thread: name resolution, handshakes and proxies cannot be interrupted, only abandoned."""
        state: CallState | None = getattr(_here, "state", None)
        connect = super().connect  # type: ignore[misc]
        if state is None:
            connect()
            return
        outcome: list[BaseException | None] = []

        def work() -> None:
            try:
                connect()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error.with_traceback(None))
            if state.end_reason:
                self.close()  # nobody waits for it any more
            state.wake.set()

        _begin(work, "rlm-connect")
        while not outcome and not state.end_reason:
            state.wake.wait()
            state.wake.clear()
        if outcome and outcome[0] is not None:
            raise outcome[0]
        state.take(self)

    def request(self, *args: object, **options: object) -> object:
        state: CallState | None = getattr(_here, "state", None)
        if state is not None:
            state.reused, self.used = self.used, True
            state.take(self)
        return super().request(*args, **options)  # type: ignore[misc]

    def close(self) -> None:
        self.used = False  # urllib3 opens the same object again
        super().close()  # type: ignore[misc]

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send in pieces: the socket still has the timeout for connecting, and a long prompt takes longer."""
        data = memoryview(data)
        state: CallState | None = getattr(_here, "state", None)
        if self.sock is None:
            self.connect()
        if state is not None:
            self.sock.settimeout(state.timeout)
        for start in range(0, len(data), PIECE):
            super().send(data[start : start + PIECE])  # type: ignore[misc]
            if state is not None:
                state.touch()


@functools.cache
def _adapter_class() -> type[HTTPAdapter]:
    """A requests adapter with such connections. Made when first used: requests takes 100 ms to import."""
    import socket

    from requests import Response
    from requests.adapters import HTTPAdapter

    # A long silent answer must survive the idle limits of the network between.
    alive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            alive.append((socket.IPPROTO_TCP, getattr(socket, name), value))

    class Adapter(HTTPAdapter):
        pool: Any = None

        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
            """The connections to the one host that this adapter is for, directly or through a proxy."""
            if self.pool is None:
                pool: Any = super().get_connection_with_tls_context(*args, **options)
                if pool.scheme == "https":
                    pool.conn_kw["ssl_context"] = _tls()
                kind = pool.ConnectionCls
                pool.conn_kw["socket_options"] = [*kind.default_socket_options, *alive]
                if not issubclass(kind, TrackedConnection):  # another thread may have done so
                    pool.ConnectionCls = type("Connection", (TrackedConnection, kind), {})
                self.pool = pool
            return self.pool

        def cert_verify(self, conn: object, url: str, verify: object, cert: object) -> None:
            """Do nothing: `_tls` has loaded the certificates once, for all connections."""

        def build_response(self, req: Any, resp: Any) -> Response:
            """Build a response without reading cookies."""
            response = Response()
            response.status_code, response.headers, response.raw = resp.status, resp.headers, resp
            response.request, response.url = req, req.url
            return response

        def close(self) -> None:
            self.pool = None
            super().close()

    return Adapter


@functools.cache
def _tls() -> SSLContext:
    """A TLS context with certifi's certificates, or with those that the environment names."""
    import certifi
    from urllib3.util import create_urllib3_context

    context = create_urllib3_context()
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    path = next((os.environ[name] for name in names if os.environ.get(name)), certifi.where())
    folders = [folder for folder in os.environ.get("SSL_CERT_DIR", "").split(os.pathsep) if folder]
    for place in (path, *folders):
        try:
            context.load_verify_locations(**{"capath" if os.path.isdir(place) else "cafile": place})
        except OSError as error:
            raise BackendError(f"cannot read the certificates in {place!r}: {error}", code="config") from None
    return context


class CallQueue:
    """A resource that several calls share. Each waits in turn until its part is free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = 0
        self.lock = threading.Lock()
        self.queue: deque[CallState] = deque()

    @property
    def free(self) -> int:
        return self.size - self.busy

    def pause(self) -> float | None:
        """Seconds until something may become free without a call leaving; None if that cannot happen."""
        return None

    def enter(self, state: CallState, amount: int = 1, *, first: bool = False) -> None:
        """Wait until `amount` is free and take it; `first` goes before the others that wait."""
        with self.lock:
            (self.queue.appendleft if first else self.queue.append)(state)
        try:
            while not self._take(state, amount):
                state.sleep(self.pause())
        except BaseException:
            with self.lock:
                if state in self.queue:
                    self.queue.remove(state)
                self._wake_next()
            raise

    def leave(self, amount: int = 1) -> None:
        with self.lock:
            self.busy -= amount
            self._wake_next()

    @contextlib.contextmanager
    def reserve(self, state: CallState, amount: int = 1) -> Iterator[None]:
        """Hold `amount` inside the block. A single call always fits."""
        amount = min(amount, self.size)
        self.enter(state, amount)
        try:
            yield
        finally:
            self.leave(amount)

    def _take(self, state: CallState, amount: int) -> bool:
        with self.lock:
            if self.queue[0] is not state or self.free < amount:
                return False
            self.queue.popleft()
            self.busy += amount
            self._wake_next()
            return True

    def _wake_next(self) -> None:
        if self.queue:
            self.queue[0].wake.set()


class AdaptiveLimiter(CallQueue):
    """How many calls may run at once: half as many after a 429, slowly more again after answers."""

    def __init__(self, width: int) -> None:
        super().__init__(max(1, width))
        self.limit = float(self.size)
        self.answered = 0
        self.opens_at = 0.0

    @property
    def free(self) -> int:
        return int(self.limit) - self.busy if time.monotonic() >= self.opens_at else 0

    def pause(self) -> float | None:
        left = self.opens_at - time.monotonic()
        return left if left > 0 else None

    def count_answer(self) -> None:
        with self.lock:
            self.answered += 1
            self.limit = min(self.size, self.limit + 1 / self.limit)

    def throttle(self, seconds: float) -> None:
        """Let no call in for `seconds`, then half as many: the provider is overloaded."""
        with self.lock:
            now = time.monotonic()
            if now >= self.opens_at:
                self.limit = max(1.0, self.limit / 2)
            self.opens_at = max(self.opens_at, now + seconds)


class HostPool:
    """The connections to one host, with a limiter for each model."""

    def __init__(self, url: str, width: int) -> None:
        import requests  # the whole package: another thread may be importing a part of it  # noqa: F401
        from requests.utils import get_environ_proxies

        self.adapter = _adapter_class()(pool_connections=4, pool_maxsize=max(64, width))
        self.proxies = {} if _is_loopback(url) else get_environ_proxies(url, no_proxy=None)
        self.width = width
        self.gates: dict[str, AdaptiveLimiter] = {}

    def gate(self, model: str) -> AdaptiveLimiter:
        return self.gates.get(model) or self.gates.setdefault(model, AdaptiveLimiter(self.width))

    def open(self, state: CallState, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        """Send a POST (a GET if `body` is None) and return the response, unread.

        An exception from here holds no header, and no frame that has one.
        """
        from requests import PreparedRequest
        from requests.structures import CaseInsensitiveDict

        request = PreparedRequest()
        request.method, request.url, request.body = "GET" if body is None else "POST", url, body
        length = {} if body is None else {"Content-Length": str(len(body))}
        request.headers = CaseInsensitiveDict({**headers, **length})
        state.check()
        state.touch()
        state.wake.clear()
        state.reused = False
        _here.state = state
        timeout = (CONNECT_TIMEOUT, state.timeout)
        try:
            return self.adapter.send(request, stream=True, timeout=timeout, proxies=self.proxies)
        except BaseException as error:
            problem = error
        finally:
            _here.state = None
        failure = _transport_error(problem, state, url, _proxy_for(url, self.proxies), opening=True)
        if state.reused and isinstance(failure, BackendError) and failure.code == "connection":
            failure.retry_after, failure.idle_closed = 0.0, True  # closed while idle: nothing was asked
        raise failure

    def fetch(
        self,
        state: CallState,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        limit: int = BODY_LIMIT,
        complete: Callable[[bytes], bool] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request and return the status, the headers and at most `limit` bytes of the body."""
        response = self.open(state, url, headers, body)
        try:
            return (
                response.status_code,
                response.headers,
                bytes(_gathered(_chunks(state, response, url), limit, complete)),
            )
        finally:
            _release(response)


_links: dict[tuple[str, int], HostPool] = {}


def _link(base_url: str, width: int) -> HostPool:
    place = (_origin(base_url), width)
    return _links.get(place) or _links.setdefault(place, HostPool(base_url, width))


def _origin(url: str) -> str:
    return re.match(r"[^/?#]*//[^/?#]*|", url)[0].lower()  # type: ignore[index]


@functools.lru_cache(256)
def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return (urlsplit(url).hostname or "").lower()


def netloc(url: str) -> str:
    """The host and port of a URL."""
    from urllib.parse import urlsplit

    return urlsplit(url).netloc.rpartition("@")[2].lower()


def _is_loopback(url: str) -> bool:
    return _host(url) in LOOPBACK


def _is_private(host: str) -> bool:
    """Whether the name is of this machine or of a local network."""
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".lan", ".internal", ".home.arpa"))
    return address.is_private or address.is_loopback or address.is_link_local


def _transport_error(
    problem: BaseException, state: CallState, url: str, proxy: str = "", *, opening: bool = False
) -> BaseException:
    """The error to raise for an exception of requests or urllib3: without its frames, which hold headers."""
    from urllib3.exceptions import HTTPError

    if not isinstance(problem, (OSError, HTTPError)):  # an interrupt or our own error
        problem.__context__ = problem.__cause__ = None
        return problem.with_traceback(None)
    try:
        state.check()
    except BackendError as over:
        return over.with_traceback(None)
    reason = _innermost(problem)
    trouble, hint, retryable = _diagnosis(reason, url, proxy, opening and not state.reused)
    return BackendError(
        f"no connection to {netloc(url)}{f' through the proxy {netloc(proxy)}' if proxy else ''}: {trouble}",
        code="timeout" if isinstance(reason, TimeoutError) else "connection",
        provider=state.provider,
        hint=hint,
        retryable=retryable,
    )


def _diagnosis(reason: BaseException, url: str, proxy: str, opening: bool) -> tuple[str, str, bool]:
    """Return what broke the connection, a hint, and whether another attempt may succeed."""
    import ssl

    without_tls = f"{_origin(url).replace('https://', 'http://')} instead of https, if that is what it serves"
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = "if it is yours, name the authority that signed it: SSL_CERT_FILE=ca.pem or SSL_CERT_DIR"
        return f"certificate verify failed: {reason.verify_message}", hint, False
    if isinstance(reason, ssl.SSLError) and re.search(_NO_TLS, str(getattr(reason, "reason", ""))):
        return "it does not speak TLS there", without_tls, False
    if isinstance(reason, ssl.SSLEOFError) and opening:
        return "it broke the handshake off, as a server does that does not speak TLS", without_tls, True
    if "socks" in str(reason).lower() and "dependencies" in str(reason):
        return "PySocks is not installed", "pip install 'requests[socks]'", False
    tunnel = re.search(r"Tunnel connection failed: [\w -]{3,60}", str(reason))
    words = str(getattr(reason, "strerror", None) or (tunnel[0] if tunnel else "it broke off")).lower()
    again = not words.startswith("tunnel connection failed: 407")
    if not proxy:
        return words, "is the server running?" if _is_loopback(url) else _NO_NETWORK, again
    named = [name for name in os.environ if name.upper().endswith("_PROXY") and os.environ[name].rstrip("/") in proxy]
    where = " or ".join(sorted(name for name in named if os.environ[name])) or "the system's settings"
    return words, f"is the proxy of {where} running? NO_PROXY=HOST goes around it", again


_NO_TLS = "WRONG_VERSION_NUMBER|RECORD_LAYER|HTTP_REQUEST|PACKET_LENGTH"
_NO_NETWORK = "is the network up, and the base URL right?"


def _proxy_for(url: str, proxies: Mapping[str, str]) -> str:
    """The proxy that requests uses for this URL, or ""."""
    from requests.utils import select_proxy

    proxy = str(select_proxy(url, dict(proxies)) or "")
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


def _innermost(problem: BaseException) -> BaseException:
    """The root cause in a chain of exceptions, which urllib3 wraps in several ways."""
    seen = {id(problem)}
    while True:
        inside = [getattr(problem, "reason", None), problem.__cause__, problem.__context__, *problem.args]
        found = next((item for item in inside if isinstance(item, BaseException) and id(item) not in seen), None)
        if found is None:
            return problem
        problem = found
        seen.add(id(found))


def _chunks(
    state: CallState, response: Response, url: str, size: int = 65_536, *, endless: bool = False
) -> Iterator[bytes]:
    """Yield the decompressed body as it arrives; BackendError after BODY_LIMIT, unless `endless`."""
    total, data, problem = 0, b"", None
    while True:
        try:
            # read1 hands on what has arrived in every framing; iter_content holds close-delimited bodies back.
            data = response.raw.read1(size, decode_content=True)
        except BaseException as error:
            problem = error
        if problem is not None:
            raise _transport_error(problem, state, url)
        state.check()
        if not data:
            return
        total += len(data)
        if total > BODY_LIMIT and not endless:
            raise BackendError(f"the answer is larger than {BODY_LIMIT >> 20} MB", code="protocol")
        yield data


def _release(response: Response) -> None:
    """Close the response; its connection is not used again."""
    response.raw.close()
    response.raw.release_conn()


def _gathered(
    chunks: Iterator[bytes], enough: int = BODY_LIMIT, complete: Callable[[bytes], bool] | None = None
) -> bytearray:
    """Join the chunks without holding them twice; stop after `enough` bytes, or where `complete(chunk)` is true."""
    data, looked_at = bytearray(), _LOOK
    for chunk in chunks:
        data += chunk
        if len(data) >= looked_at:
            _refuse_costly(data)
            looked_at *= 2
        if len(data) > enough or (complete is not None and complete(chunk)):
            break
    return data[:enough] if len(data) > enough else data


_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER = b"\xef\xbb\xbf"  # some proxies put it before the body


def _events(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the `data` of each server-sent event. Chunks may split UTF-8 and line ends, so events are decoded whole."""
    line, data = bytearray(), bytearray()
    after_cr, looked_at = False, _LOOK
    for chunk in chain(chunks, (b"\n\n",)):  # some servers forget the empty line after the last event
        first, *others = _LINE_END.split(chunk[1:] if after_cr and chunk.startswith(b"\n") else chunk)
        after_cr = chunk.endswith(b"\r")
        line += first
        for other in others:
            if line:
                data = _with_line(data, line)
            elif data:
                del data[-1]
                yield data.decode("utf-8", "replace")
                data, looked_at = bytearray(), _LOOK
            line = bytearray(other)
        if len(line) + len(data) >= looked_at:
            _refuse_costly(line if len(line) > len(data) else data)
            looked_at *= 2


def _with_line(data: bytearray, line: bytearray) -> bytearray:
    """Add a line's data to an event's; large data is not copied."""
    if line.startswith(_BYTE_ORDER):
        del line[: len(_BYTE_ORDER)]
    if not line.startswith(b"data:"):
        return data
    del line[: 6 if line[5:6] == b" " else 5]
    line += b"\n"
    if not data:
        return line
    data += line
    return data


_LOOK = 1 << 20  # bytes of JSON after which its values are counted, and again after each doubling


def _refuse_costly(data: bytearray) -> None:
    """Raise BackendError if this JSON, or beginning of JSON, would take far more memory than its bytes."""
    if _count_json(data, JSON_VALUES) > JSON_VALUES:
        raise BackendError(f"the answer holds more than {JSON_VALUES:,} values", code="protocol")


# --- secrets ----------------------------------------------------------------------------------------------------


class _Secret(str):
    """A string whose repr, and so a traceback that shows locals, does not reveal it."""

    source: str | None = None  # the option or variable that it is from

    def __repr__(self) -> str:
        return "'[redacted]'"


_SECRET_NAME = (
    r"(?i)SECRET|PASSWORD|PASSWD|(?:^|_)(?:TOKEN|PASS|PASSPHRASE|PAT)$"
    r"|(?:API|ACCESS|AUTH|PRIVATE|ACCOUNT)_?KEY(?:_ID)?$"
)


class _Environ:
    """The environment, without a repr that prints every key in it."""

    def __init__(self, values: Mapping[str, str] | None) -> None:
        self._values = os.environ if values is None else values

    def __repr__(self) -> str:
        return "<environ>"

    def without(self, names: Collection[str]) -> dict[str, str]:
        """The environment for a child process: without these names and without the project's own options."""
        mine = ("RLM_", "SNIPARA_")
        return {name: value for name, value in self._values.items() if name not in names and not name.startswith(mine)}

    def get(self, name: str) -> str:
        return (self._values.get(name) or "").strip()

    def secret_names(self) -> frozenset[str]:
        """The variables that hold a key, as the table of providers or their names say."""
        return key_variables() | {name for name in self._values if re.search(_SECRET_NAME, name)}

    def secret(self, name: str) -> _Secret:
        return _Secret(self.get(name))


def mask(text: str, secrets: Sequence[str] = ()) -> str:
    """`text` with each secret of 8 characters or more replaced by [redacted]."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        if len(secret) >= 8:
            text = text.replace(secret, "[redacted]")
    return text


def _checked_key(key: str, source: str) -> _Secret:
    """Strip a key; refuse one that cannot be sent in a header, without showing it."""
    secret = _Secret(key.strip())
    if secret[:1] in ("'", '"', "`") or secret[-1:] in ("'", '"', "`"):
        raise BackendError(
            f"the API key from {source} has quotes around it, which are not part of a key",
            code="config",
            hint=f"set {source} again without the quotes (docker --env-file and some editors keep them)",
        )
    if re.search(r"[^\x21-\x7e]", secret):
        raise BackendError(
            f"the API key from {source} holds a space, a line break or another character that no key has",
            code="config",
            hint=f"set {source} again, from one line, without quotes",
        )
    secret.source = source
    return secret


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


# --- a model in a file ------------------------------------------------------------------------------------------

_SERVE = """
import sys
sys.path = [folder for folder in sys.path if folder]  # not the working directory
import json, xllamacpp
how = json.loads(sys.stdin.readline())
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = how["path"], how["context"], how["parallel"]
params.kv_unified, params.use_jinja, params.port = True, True, 0
params.api_keys, params.cors_origins = [how["key"]], ""
if hasattr(params, "cache_ram_mib"):
    params.cache_ram_mib = how["cache_mib"]
server = xllamacpp.Server(params)
print(json.dumps({"url": server.listening_address}), flush=True)
sys.stdin.read()  # until the host closes it, or ends in any way
"""
_SLOTS = 4  # calls that the server works on at once; they share its context, and each keeps its prefix for the next
_PROMPT_CACHE_MIB = 2048  # for prompts whose slot another call has taken
_LONGEST_CONTEXT = 32_768  # tokens, even if the model could take more: the memory is allocated at the start


_ANSWER_ROOM = 1024  # tokens that an answer is expected to take, if its limit is not lower


class _Served(NamedTuple):
    process: Popen[bytes]
    url: str
    key: _Secret
    shared: CallQueue  # tokens of the one context that the calls share


_served: dict[str, _Served] = {}
_serving = threading.Lock()


class _LocalModel(HTTPBackend):
    """A GGUF file behind a llama.cpp server on loopback, which the first call starts and all calls share."""

    def __init__(self, path: str, how: BackendOptions, progress: Callable[[str], None] | None, name: str = "") -> None:
        self.path = os.path.realpath(os.path.expanduser(path))
        header = _gguf_header(self.path)
        _check_package()
        _check_memory(path, _model_size(self.path))
        how = how._replace(max_parallel=min(_SLOTS, how.max_parallel))
        super().__init__(_rows()["llamacpp"], name or path, "http://127.0.0.1", _Secret(""), how)
        self.window = self._context = min(header.context or 4096, _LONGEST_CONTEXT)
        self.parameters = self.parameters or header.parameters
        self.server, self._inspected = "llamacpp", True
        self._progress = progress

    def with_model(self, model: str) -> HTTPBackend:
        if model != self.model:
            hint = "leave sub_model out, or name a provider's model as the main one"
            raise BackendError(f"{self.model!r} serves no other model than itself", code="config", hint=hint)
        return self

    def _prepare(self, state: CallState) -> None:
        with _serving:
            served = _served.get(self.path)
            if served is not None and served.process.poll() is not None:
                _end(_served.pop(self.path).process)
                served = None
            served = _served[self.path] = served or self._serve(state)
        self.base_url, self._key, self._shared = f"{served.url}/v1", served.key, served.shared

    def _hold_capacity(self, ask: Request, state: CallState) -> contextlib.AbstractContextManager[None]:
        tokens = estimate_tokens(ask.messages, ask.tools) + min(ask.max_tokens or _ANSWER_ROOM, _ANSWER_ROOM)
        return self._shared.reserve(state, tokens)

    def _serve(self, state: CallState) -> _Served:
        """Start the server and wait until it has loaded the model; report progress every second."""
        import atexit
        import subprocess
        import sys
        import tempfile

        atexit.register(stop_local_models)
        key, free = _Secret(os.urandom(16).hex()), _free_memory()
        how = {"path": self.path, "context": self._context, "parallel": self._how.max_parallel, "key": key}
        left = _PROMPT_CACHE_MIB << 22 if free is None else max(0, free - _model_size(self.path))
        how["cache_mib"] = min(_PROMPT_CACHE_MIB, left >> 22)  # a quarter of what the model leaves free
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
            env = _Environ(None)
            keyless = env.without(env.secret_names())
            command = [sys.executable, "-c", _SERVE]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log, env=keyless)
            try:
                with contextlib.suppress(OSError):
                    process.stdin.write(json.dumps(how).encode() + b"\n")  # type: ignore[union-attr]
                    process.stdin.flush()  # type: ignore[union-attr]
                url = from_json(self._first_line(process, out, state))["url"]
                return _Served(process, url, key, CallQueue(self._context))
            except BaseException as error:
                _end(process)
                if not isinstance(error, ValueError):
                    raise
            log.seek(0)
            lines = log.read()[-2000:].decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"]
        raise self._error("config", f"llama.cpp cannot serve {self.model!r}: {lines[-1]}")

    def _first_line(self, process: Popen[bytes], out: IO[bytes], state: CallState) -> bytes:
        """Wait until the server has written a line or has ended."""
        size, started, reports, line = _model_size(self.path) / 1e9, time.monotonic(), 0, b""
        while process.poll() is None and not line.endswith(b"\n"):
            waited = time.monotonic() - started
            if self._progress and waited >= reports:
                self._progress(f"loading {os.path.basename(self.path)} ({size:.1f} GB): {waited:.0f} s")
                reports += 1
            state.sleep(TICK)
            out.seek(0)
            line = out.read()
        return line


def stop_local_models() -> None:
    """Stop the servers of model files. Runs by itself at exit."""
    with _serving:
        while _served:
            _end(_served.popitem()[1].process)


def _end(process: Popen[bytes]) -> None:
    process.kill()
    process.communicate()  # closes its standard input, and waits


def _check_package() -> None:
    """Raise BackendError if xllamacpp is not installed."""
    import importlib.util

    if importlib.util.find_spec("xllamacpp") is None:
        hint = "pip install 'flat-rlm[local]'"
        raise BackendError("a .gguf model needs the package xllamacpp", code="config", hint=hint)


def _check_memory(name: str, size: int) -> None:
    """Raise BackendError if a model of that size does not fit into memory."""
    free = _free_memory()
    if free is not None and size > free:
        message = f"{name!r} takes {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        raise BackendError(message, code="config", hint="use a smaller model or a stronger quantisation")


def _model_size(path: str) -> int:
    """Bytes of a model file, of all its parts if it is split."""
    first = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path, re.DOTALL)
    parts = [f"{first[1]}-{n:05}-of-{first[2]}.gguf" for n in range(1, int(first[2]) + 1)] if first else [path]
    return sum(map(_size_of, parts))


def _free_memory() -> int | None:
    """Bytes of free memory; None if unknown or if a GPU has its own."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(r"MemAvailable:\s+(\d+) kB", file.read())
    except OSError:
        return None
    return int(found[1]) * 1024 if found and not os.path.exists("/dev/nvidia0") else None


class _GGUFHeader(NamedTuple):
    """The fields of a GGUF header that are used."""

    context: int | None = None
    parameters: float | None = None  # billions


def _gguf_header(path: str) -> _GGUFHeader:
    """Read the header of a GGUF file; BackendError if it is not one.

    The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 20)  # the fields that are used come before the long vocabulary
    except OSError as error:
        raise BackendError(f"cannot read the model {path!r}: {error.strerror}", code="config") from None
    if not head.startswith(b"GGUF"):
        raise BackendError(f"{path!r} is not a GGUF file", code="config", hint="give a llama.cpp model file")

    def number(key: bytes) -> int | None:
        found = re.search(re.escape(key) + rb"(?:\x04\0{3}(.{4})|\x0a\0{3}(.{8}))", head, re.DOTALL)
        return int.from_bytes(found[1] or found[2], "little") if found else None

    has_keys = head[16:24] != bytes(8)
    if has_keys and not re.search(rb"general\.|\.context_length", head):
        raise BackendError(f"{path!r} is a damaged GGUF file", code="config", hint="download it again")
    count = number(b"general.parameter_count")
    label = re.search(rb"general\.size_label\x08\0{3}(.)\0{7}", head, re.DOTALL)
    size = size_in_name(head[label.end() :][: label[1][0]].decode("utf-8", "replace")) if label else None
    return _GGUFHeader(number(b".context_length"), count / 1e9 if count else size)


# --- model files of Hugging Face ----------------------------------------------------------------------------------

_HUB = "https://huggingface.co"
_HUB_NAME = r"hf:([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?::([A-Za-z0-9][\w.+/-]{0,199}))?"
_HUB_PATH = r"(?:[A-Za-z0-9_][\w.+-]{0,149}/){0,3}[A-Za-z0-9_][\w.+-]{0,149}\.gguf"  # a safe relative path
_SPLIT = r"-(\d{5})-of-(\d{5})$"
_QUANT = r"(?i)(?<![a-z0-9])(?:(?:IQ|TQ|Q)\d(?:_[a-z0-9]{1,3})*|MXFP4(?:_MOE)?|BF16|FP?16|FP?32)(?![a-z0-9])"
_HUB_TIMEOUT = 60.0  # seconds of silence
_HUB_TRIES = 3  # retries in a row without progress


class _HubFile(NamedTuple):
    path: str
    size: int
    sha256: str


class _Variant(NamedTuple):
    """A model in a repository: one file, or the parts of a split one."""

    stem: str
    quant: str
    files: list[_HubFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def base(self) -> str:
        return self.stem.rpartition("/")[2]


def _variants(files: Sequence[_HubFile]) -> list[_Variant]:
    """The complete models among the files, smallest first."""
    parts: dict[tuple[str, str], list[_HubFile]] = {}
    for file in sorted(files):
        stem = file.path.removesuffix(".gguf")
        split = re.search(_SPLIT, stem)
        parts.setdefault((re.sub(_SPLIT, "", stem), split[2] if split else ""), []).append(file)
    made = []
    for (stem, count), its_files in parts.items():
        quants = re.findall(_QUANT, stem.rpartition("/")[2])
        names = (f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, len(its_files) + 1))
        if not count or (int(count) == len(its_files) and all(map(str.__eq__, names, (f.path for f in its_files)))):
            made.append(_Variant(stem, quants[-1].upper() if quants else "", its_files))
    return sorted(made, key=lambda variant: variant.size)


def _matching(variants: Sequence[_Variant], selector: str) -> list[_Variant]:
    """The variants that `selector` names by quantisation or file; by default Q4_K_M or the smallest from 4 bits up."""
    if selector:
        name = selector.lower().removesuffix(".gguf")
        found = [v for v in variants if name in (v.quant.lower(), v.base.lower(), v.stem.lower())]
    else:
        found = [v for v in variants if v.quant == "Q4_K_M"]
        if not found and len({re.sub(_QUANT, "", v.base) for v in variants}) == 1:
            found = [v for v in variants if not re.match(r"[IT]?Q[123]_", v.quant)][:1] or list(variants[-1:])
    whole = [v for v in found if len(v.files) == 1]
    return whole if len(whole) == 1 else found


class _Hub:
    """`hf:OWNER/REPO[:QUANT]`: a model file of a Hugging Face repository, and the folder that it is kept in."""

    def __init__(self, name: str, env: _Environ, progress: Callable[[str], None] | None = None) -> None:
        found = re.fullmatch(_HUB_NAME, name, re.ASCII)
        if not found:
            hint = "hf:OWNER/REPO or hf:OWNER/REPO:QUANT, as in hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M"
            raise BackendError(f"{name[:200]!r} is not a hub model name", code="config", hint=hint)
        self.repo, self.selector = f"{found[1]}/{found[2]}", found[3] or ""
        self.top = os.path.join(_cache_folder(True, env) or "", "models")
        self.folder = os.path.join(self.top, found[1], found[2])
        self._index_path = os.path.join(self.folder, "index.json")
        self._env, self._notify = env, progress or (lambda text: None)

    def file(self) -> str:
        """The path of the file or of its first part; it is downloaded if it is not there."""
        if path := self._local_path():
            return path
        self._endpoint = _checked_url(self._env.get("HF_ENDPOINT") or _HUB)
        self._token = _checked_key(self._env.secret("HF_TOKEN"), "HF_TOKEN")
        with self._locked():
            return self._local_path() or self._download()

    # what is kept

    def index(self) -> dict[str, list[_HubFile]]:
        """The downloaded files by quantisation or name; under "" those that the bare name means."""
        try:
            with open(self._index_path, "rb") as file:
                body = from_json(file.read(INSPECT_LIMIT))
            kept = {str(key): [_HubFile(*entry) for entry in files] for key, files in body.items()}
            return {key: files for key, files in kept.items() if files and all(map(self._is_here, files))}
        except (OSError, *_MISREAD):
            return {}

    def _is_here(self, file: _HubFile) -> bool:
        path = os.path.join(self.folder, file.path)
        return bool(re.fullmatch(_HUB_PATH, file.path, re.ASCII)) and _size_of(path) == file.size

    def _local_path(self) -> str | None:
        files = self.index().get(self.selector.lower())
        return os.path.join(self.folder, files[0].path) if files else None

    def remove(self) -> int:
        """Delete the model, or for a bare name the whole repository; return the bytes freed."""
        import shutil

        with self._locked(wait=False):
            kept, key = self.index(), self.selector.lower()
            removed = set(kept.get(key, ()))
            rest = {name: files for name, files in kept.items() if key and not removed.intersection(files)}
            paths = [os.path.join(self.folder, file.path) for file in removed] if rest else _files_below(self.folder)
            if not paths or (key and not removed):
                what = f"'hf:{self.repo}:{self.selector}' is not" if key else f"nothing of {self.repo!r} is"
                raise BackendError(f"{what} downloaded", code="not_found", hint="rlm models")
            size = sum(map(_size_of, paths))
            if rest:
                _write_json(self._index_path, rest)
                for path in paths:
                    os.unlink(path)
            else:
                shutil.rmtree(self.folder)
            return size

    @contextlib.contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[None]:
        """Lock the repository's folder against other processes."""
        locks = os.path.join(self.top, ".locks")
        try:
            os.makedirs(locks, exist_ok=True)
            file = open(os.path.join(locks, self.repo.replace("/", "--")), "ab")  # noqa: SIM115
        except OSError as error:
            raise self._disk_error(error) from None
        with file:
            notified = False
            while (locked := _lock(file)) is False:
                if not wait:
                    message = f"another process is downloading {self.repo!r}"
                    raise BackendError(message, code="config", hint="wait for it, or end it")
                if not notified:
                    self._notify(f"waiting for another process that downloads {self.repo}")
                notified = True
                time.sleep(0.2)
            if locked is None:
                self._notify(f"{self.top} is on a file system without locks: start one download at a time")
            yield

    # the hub

    def _download(self) -> str:
        state = CallState("the hub", _HUB_TIMEOUT, None, None)
        with _watch.watching(state):
            self._notify(f"asking {netloc(self._endpoint)} for {self.repo}")
            commit, files = self._listing(state)
            variants = _variants(files)
            variant = self._chosen(variants)
            _check_memory(f"hf:{self.repo}:{variant.quant or variant.base}", variant.size)
            self._check_disk(variant.files)
            for file in variant.files:
                self._fetch(state, commit, file)
        by_quant = _matching(variants, variant.quant or variant.base) == [variant]
        names = {self.selector.lower(), (variant.quant if by_quant else variant.base).lower() or variant.base.lower()}
        _write_json(self._index_path, {**self.index(), **dict.fromkeys(names, variant.files)})
        return os.path.join(self.folder, variant.files[0].path)

    def _chosen(self, variants: Sequence[_Variant]) -> _Variant:
        found = _matching(variants, self.selector)
        if len(found) == 1:
            return found[0]
        quants = [variant.quant for variant in variants]
        named = (found or variants)[:12]
        names = [v.quant if v.quant and quants.count(v.quant) == 1 else v.base for v in named]
        choices = ", ".join(f"{n} ({v.size / 1e9:.1f} GB)" for n, v in zip(names, named))
        if not variants:
            hint = "look for a repository whose name ends in -GGUF"
            raise BackendError(f"{self.repo!r} has no GGUF file", code="not_found", hint=hint)
        what = f"has no {self.selector!r}" if self.selector and not found else "has several models"
        hint = f"name one, as in hf:{self.repo}:{names[0]}"
        raise BackendError(f"{self.repo!r} {what}: there are {choices}", code="not_found", hint=hint)

    def _listing(self, state: CallState) -> tuple[str, list[_HubFile]]:
        """The newest commit and its GGUF files, without those whose names are unsafe here."""

        def ask() -> Any:
            with self._open(state, f"{self._endpoint}/api/models/{self.repo}?blobs=true") as (response, url):
                return from_json(_gathered(_chunks(state, response, url)))

        files = []
        try:
            body = self._with_retries(state, ask)
            commit = str(body.get("sha"))
            for entry in body["siblings"]:
                path, lfs = str(entry["rfilename"]), entry.get("lfs") or {}
                size, digest = (lfs or entry).get("size"), str(lfs.get("sha256") or "").lower()
                usable = re.fullmatch(_HUB_PATH, path, re.ASCII) and not re.search("(?i)mmproj|imatrix", path)
                if usable and (type(size) is not int or not 0 <= size < 1 << 50):
                    raise ValueError(f"{str(size)[:40]!r} as the size of {path!r}")
                if usable and size:
                    files.append(_HubFile(path, size, digest if re.fullmatch("[0-9a-f]{64}", digest) else ""))
        except _MISREAD as error:
            hint = f"is {self._endpoint} a Hugging Face hub?"
            raise BackendError(f"the hub's answer cannot be read: {error}", code="protocol", hint=hint) from None
        return (commit if re.fullmatch("[0-9a-f]{7,64}", commit) else "main"), files

    def _fetch(self, state: CallState, commit: str, file: _HubFile) -> None:
        """Download a file, or the rest of it, and verify it."""
        from urllib.parse import quote

        target = os.path.join(self.folder, file.path)
        if self._is_here(file):
            return
        part = f"{target}.{(file.sha256 or commit)[:16]}.part"  # named by its content: a changed file starts anew
        url = f"{self._endpoint}/{self.repo}/resolve/{commit}/{quote(file.path)}"
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not file.sha256 or _size_of(part) > file.size:
                open(part, "wb").close()
            self._with_retries(state, lambda: self._receive(state, url, part, file), lambda: _size_of(part))
            self._check_digest(state, part, file)
            os.replace(part, target)
        except OSError as error:
            raise self._disk_error(error) from None
        for old in _files_below(os.path.dirname(target)):
            if old.startswith(f"{target}.") and old.endswith(".part"):
                os.unlink(old)

    def _with_retries(self, state: CallState, ask: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Call `ask` until it succeeds or several attempts in a row make no progress."""
        try:
            return with_retries(state, AdaptiveLimiter(1), _HUB_TRIES, ask, progress)[0]
        except BackendError as failure:
            if failure.retryable and (part := progress()):
                failure.hint = f"run it again: it goes on after the {part / 1e6:,.1f} MB that have come"
            elif failure.code in ("connection", "timeout"):
                failure.hint = "is the network up, and HF_ENDPOINT right?"
                if kept := sorted(filter(None, self.index())):
                    failure.hint += f" Downloaded already: {', '.join(f'hf:{self.repo}:{key}' for key in kept)}"
            raise failure from None

    def _receive(self, state: CallState, url: str, part: str, file: _HubFile) -> None:
        """Append the missing bytes to `part`."""
        have = _size_of(part)
        if have == file.size:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self._open(state, url, headers) as (response, where):
            going_on = response.headers.get("content-range", "").startswith(f"bytes {have}-")
            if response.status_code == 416 or (response.status_code == 206 and not going_on):
                os.truncate(part, 0)
                raise BackendError("the hub cannot go on where the download stopped", code="protocol", retryable=True)
            total = have if response.status_code == 206 else 0
            with open(part, "ab" if total else "wb") as out:
                for data in self._pieces(state, response, where, file, total):
                    out.write(data)
                    if out.tell() > file.size:
                        break
        if (got := _size_of(part)) > file.size:
            os.unlink(part)  # retries cannot help
            message = f"the hub sends more of {file.path!r} than the {file.size:,} bytes that it has"
            raise BackendError(message, code="protocol", hint="is a proxy in the way? run it again")
        if got < file.size:
            message = f"the download of {file.path!r} ended after {got:,} of {file.size:,} bytes"
            raise BackendError(message, code="truncated", hint="run it again", retryable=True)

    def _pieces(self, state: CallState, response: Response, url: str, file: _HubFile, total: int) -> Iterator[bytes]:
        """Yield the body and report progress."""
        began, shown, start, name = time.monotonic(), 0.0, total, os.path.basename(file.path)
        for data in _chunks(state, response, url, PIECE, endless=True):
            state.touch()
            total += len(data)
            yield data
            if (now := time.monotonic()) - shown > 0.5:
                shown, rate = now, (total - start) / max(now - began, 0.001) / 1e6
                size = f"{file.size / 1e9:.1f} GB"
                self._notify(f"downloading {name}: {100 * total // file.size}% of {size}, {rate:.1f} MB/s")

    @contextlib.contextmanager
    def _open(
        self, state: CallState, url: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Response, str]]:
        """GET with redirects: the response and its final URL. The token is sent to the endpoint's own host only."""
        hint = (
            f"is a proxy in the way, or HF_ENDPOINT wrong? curl -sIL {self._endpoint}/{self.repo} shows the redirects"
        )
        token = _Secret(f"Bearer {self._token}")
        for _ in range(6):
            own = {"Authorization": token} if self._token and _origin(url) == _origin(self._endpoint) else {}
            common = {"User-Agent": "flat-rlm", "Accept-Encoding": "identity", **(headers or {})}
            response = _link(url, 4).open(state, url, {**common, **own}, None)
            try:
                if response.status_code in (200, 206, 416):
                    yield response, url
                    return
                if response.status_code not in (301, 302, 303, 307, 308):
                    raise self._refusal(response, url, state)
                location = response.headers.get("location", "")
            finally:
                _release(response)
            url = _redirect_target(url, location, hint)
        raise BackendError("the hub redirects in a circle", code="redirect", hint=hint)

    def _refusal(self, response: Response, url: str, state: CallState) -> BackendError:
        """The error for an HTTP status, with a hint."""
        status, named = response.status_code, response.headers.get("x-error-code", "")
        body = _gathered(_chunks(state, response, url), ERROR_LIMIT)
        page = f"{self._endpoint}/{self.repo}"
        if "Gated" in named or status == 403:
            hint = f"accept the model's terms at {page}, then export HF_TOKEN=… of that account"
        elif status in (401, 404):  # the hub also answers 401 for a missing repository
            hint = "check the name; a private model needs HF_TOKEN"
            hint += ", and the one that is set is refused or may not read it" if self._token and status == 401 else ""
        elif status == 429:
            hint = "wait" + ("" if self._token else "; HF_TOKEN raises the limit")
        else:
            hint = "try again later"
        words = _error_text(body) if body else named or "nothing"
        text = _tidy(f"{netloc(url)} answers {status} for {self.repo!r}: {words}", self._token)
        error = BackendError(text, code=_code_for(status, ""), provider="the hub", status=status, hint=hint)
        error.retryable, error.retry_after = status in _RETRIED or status >= 500, _wait_asked(response.headers, body)
        return error

    # the disk

    def _check_disk(self, files: Sequence[_HubFile]) -> None:
        import shutil

        needed = sum(file.size for file in files if not self._is_here(file))
        needed -= sum(_size_of(path) for path in _files_below(self.folder) if path.endswith(".part"))
        if needed > (free := shutil.disk_usage(self.top).free):
            raise self._disk_error(None, f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free")

    def _disk_error(self, error: OSError | None, words: str = "") -> BackendError:
        words = words or (error.strerror if error else "") or str(error)
        hint = "rlm models remove NAME makes room, XDG_CACHE_HOME names another place"
        return BackendError(f"cannot keep a model in {self.folder!r}: {words}", code="config", hint=hint)

    def _check_digest(self, state: CallState, part: str, file: _HubFile) -> None:
        import hashlib

        if not file.sha256:
            return
        self._notify(f"checking {os.path.basename(file.path)}")
        digest = hashlib.sha256()
        with open(part, "rb") as data:
            while piece := data.read(PIECE):
                digest.update(piece)
                state.check()
        if digest.hexdigest() != file.sha256:
            os.unlink(part)
            message = f"{file.path!r} differs from the hub's file: its SHA-256 differs"
            raise BackendError(message, code="protocol", hint="is a proxy or a mirror in the way? run it again")


def _lock(file: IO[bytes]) -> bool | None:
    """Try to lock an open file; None where that is impossible: on Windows and on some network file systems."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _size_of(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _files_below(folder: str) -> list[str]:
    return [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]


def downloaded_models(environ: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """List the downloaded models as `{name, bytes, path, complete}`, partial downloads too."""
    import glob

    env, rows = _Environ(environ), list[JSONObject]()
    top = os.path.join(_cache_folder(True, env) or "", "models")
    for folder in sorted(glob.glob(os.path.join(glob.escape(top), "*", "*", ""))):
        repo = os.path.relpath(folder, top).replace(os.sep, "/")
        if not re.fullmatch(_HUB_NAME, f"hf:{repo}", re.ASCII):
            continue
        index = _Hub(f"hf:{repo}", env).index()
        by_path = {
            files[0].path: (key, files) for key, files in sorted(index.items(), key=lambda item: -len(item[0])) if key
        }
        for key, files in sorted(by_path.values()):
            size, path = sum(file.size for file in files), os.path.join(folder, files[0].path)
            rows.append({"name": f"hf:{repo}:{key}", "bytes": size, "path": path, "complete": True})
        for part in sorted(path for path in _files_below(folder) if path.endswith(".part")):
            rows.append({"name": f"hf:{repo}", "bytes": _size_of(part), "path": part, "complete": False})
    return rows


def remove_model(name: str, environ: Mapping[str, str] | None = None) -> int:
    """Delete a downloaded model, or for `hf:OWNER/REPO` the whole repository; return the bytes freed."""
    return _Hub(name, _Environ(environ)).remove()


# --- coding agents and other programs -----------------------------------------------------------------------------

_AGENT_PROMPT_LIMIT = 8_000_000  # bytes: Gemini CLI drops what comes after 8 MB
_AGENT_PARALLEL = 4  # each is a process of several hundred megabytes
_CONVERSATION = (
    "The prompt is a conversation: each message is preceded by its role in brackets. "
    "Reply with the text of the assistant's next message only."
)


class _Output(NamedTuple):
    """A program's parsed output: an answer or an error."""

    text: str | None = None
    error: str = ""
    usage: dict[str, int] | None = None
    cost_usd: float | None = None
    model: str = ""


class _Agent(NamedTuple):
    """How to run a coding agent for one prompt, without its own tools."""

    arguments: str  # {folder} has system.md and policy.toml in it
    keys: tuple[str, ...]  # the secrets that it documents for signing in; others are not handed to it
    parse: Callable[[str], _Output]
    install: str
    sign_in: str
    tested_with: str
    reports_cost: bool = False
    cloud_keys: Mapping[str, tuple[str, ...]] = {}  # further secrets, if this variable is set


def _require_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return value


def _from_program(text: str) -> Any:
    """Parse a program's JSON; NaN, which some print for a cost, becomes None."""
    return from_json(text, constant=lambda name: None)


# The text of an answer is paid for: it is kept even if the rest of the output cannot be read.


def _parse_claude(stdout: str) -> _Output:
    """Parse the output of `claude -p --output-format json`."""
    body = _from_program(stdout)
    text = body.get("result")
    if body.get("is_error"):
        return _Output(error=text if isinstance(text, str) and text.strip() else str(body.get("subtype") or "an error"))
    cost, model = _amount(body.get("total_cost_usd")), next(iter(_object(body.get("modelUsage"))), "")
    return _Output(_require_text(text), "", _counted("anthropic", body.get("usage")), cost, model)


def _parse_codex(stdout: str) -> _Output:
    """Parse the events of `codex exec --json`, one per line; the last message is the answer."""
    output = _Output()
    for line in filter(None, map(str.strip, stdout.split("\n"))):
        try:
            event = _object(_from_program(line))
        except ValueError:
            event = {"type": "item.completed", "item": {"type": "agent_message"}} if "agent_message" in line else {}
        item = _object(event.get("item"))
        if event.get("type") == "item.completed" and item.get("type") == "agent_message":
            output = output._replace(text=item["text"] if isinstance(item.get("text"), str) else None)
        elif event.get("type") == "turn.completed":
            output = output._replace(usage=_counted("codex", event.get("usage")))
        elif event.get("type") in ("error", "turn.failed"):
            output = output._replace(
                error=_error_text({"error": event.get("error") or event.get("message") or "an error"})
            )
    return output if output.text is None or output.usage is None else output._replace(error="")


def _parse_gemini(stdout: str) -> _Output:
    """Parse the output of `gemini --output-format json`."""
    body = _from_program(stdout)
    if error := body.get("error"):
        message = _object(error).get("message")
        return _Output(error=_error_text(message.encode() if isinstance(message, str) else {"error": error}))
    models = _object(_object(body.get("stats")).get("models"))
    counts = [_counted("gemini-cli", entry) for entry in models.values()]
    usage = {name: sum(count[name] for count in counts) for name in _usage(0, 0)}
    return _Output(_require_text(body["response"]), usage=usage if models else None, model=next(iter(models), ""))


_AGENTS = {
    "claude": _Agent(
        "-p --output-format json --max-turns 1 --tools '' --strict-mcp-config --safe-mode --no-session-persistence"
        " --system-prompt-file {folder}/system.md",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "AWS_BEARER_TOKEN_BEDROCK"),
        _parse_claude,
        "npm install -g @anthropic-ai/claude-code",
        "claude, then /login",
        "2.1.197",
        reports_cost=True,
        cloud_keys={
            "CLAUDE_CODE_USE_BEDROCK": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
            "CLAUDE_CODE_USE_FOUNDRY": ("ANTHROPIC_FOUNDRY_API_KEY", "AZURE_CLIENT_SECRET"),
        },
    ),
    "codex": _Agent(
        "exec --json --sandbox read-only --skip-git-repo-check --ephemeral --ignore-user-config --ignore-rules"
        " -c model_instructions_file={folder}/system.md -c web_search=disabled -c project_doc_max_bytes=0"
        " -c skills.include_instructions=false -c include_environment_context=false"
        " -c include_permissions_instructions=false -c tools.experimental_request_user_input.enabled=false"
        + "".join(
            f" -c features.{name}=false"
            for name in ("shell_tool", "unified_exec", "apps", "plugins", "hooks", "multi_agent", "view_image", "goals")
        ),
        ("CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "OPENAI_API_KEY"),
        _parse_codex,
        "npm install -g @openai/codex",
        "codex login",
        "0.171.0",
    ),
    "gemini": _Agent(
        "--output-format json --skip-trust --extensions none --allowed-mcp-server-names none"
        " --policy {folder}/policy.toml",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_CLOUD_ACCESS_TOKEN"),
        _parse_gemini,
        "npm install -g @google/gemini-cli",
        "gemini, then choose how to sign in",
        "0.61.0",
    ),
}
_NO_TOOLS_POLICY = (
    '[[rule]]\ntoolName = "*"\ndecision = "deny"\npriority = 999\n'  # Gemini CLI then offers the model no tools
)
_SIGNED_OUT = r"(?i)not logged in|/login\b|log in|auth method|authenticat|unauthori[sz]ed|invalid.{0,9}api.?key|\b401\b"
_USED_UP = r"(?i)(hit|reached|exceeded).{0,20}limit|limit.{0,9} (reached|exceeded|hit)|quota|credit|billing"
_TOO_FAST = r"(?i)rate.?limit|too many requests|overloaded|\b(429|529)\b"
_UNKNOWN_FLAG = r"(?i)unknown (option|argument)|unexpected argument|not a recognized"


def agents(environ: Mapping[str, str] | None = None) -> list[tuple[str, str | None]]:
    """List the coding agents that can be a model: `(name, path of the program or None)`."""
    import shutil

    path = _Environ(environ).get("PATH")
    return [(f"cli:{name}", shutil.which(name, path=path)) for name in _AGENTS]


def _agent_backend(model: str, env: _Environ, options: BackendOptions) -> SubprocessBackend:
    """The backend for `cli:NAME` or `cli:NAME/MODEL` (or NAME:MODEL)."""
    import shutil

    name, _, model_argument = model.removeprefix("cli:").replace(":", "/", 1).partition("/")
    agent = _AGENTS.get(name)
    if agent is None:
        hint = " or ".join(f"cli:{known}" for known in _AGENTS)
        raise BackendError(f"unknown coding agent {model!r}", code="config", hint=hint)
    program = shutil.which(name, path=env.get("PATH"))
    if program is None:
        hint = f"{agent.install}, then sign in: {agent.sign_in}"
        raise BackendError(f"{model!r} needs the program {name!r}, which is not on the PATH", code="config", hint=hint)
    return SubprocessBackend([program], model_argument, agent=agent, name=f"cli:{name}", env=env, options=options)


class SubprocessBackend(HTTPBackend):
    """A model behind a command: the prompt on its standard input, the answer on its standard output.

    Text only. System messages go into a file that the command line names, the others into one prompt: a single message
    as it is, several with their roles in brackets. Without `agent`, the prompt includes the system messages.
    """

    def __init__(
        self,
        words: Sequence[str],
        model: str | None = None,
        *,
        agent: _Agent | None = None,
        name: str = "",
        env: _Environ | None = None,
        options: BackendOptions | None = None,
    ) -> None:
        options = options or BackendOptions(0, _AGENT_PARALLEL, None, None, 600.0)
        options = options._replace(max_parallel=min(_AGENT_PARALLEL, options.max_parallel))
        self._words, self._agent, self._env = list(words), agent, env or _Environ(None)
        self._name = name or os.path.basename(words[0])
        row = Provider("cli", "a program", "", (), (), {"notools": "", "noimages": ""})
        super().__init__(row, model or "", f"cli://{self._name.removeprefix('cli:')}", _Secret(""), options)

    def _set_model(self, model: str) -> None:
        if model and not re.fullmatch(r"[A-Za-z0-9][\w.:/@+\[\]-]{0,99}", model):  # it becomes an argument
            raise BackendError(f"invalid model name {model[:100]!r}", code="config", hint=f"{self._name}/MODEL")
        super()._set_model(model)
        self._model_argument, self.parameters, self._inspected = model, None, True
        self.model = f"{self._name}/{model}" if model else self._name
        self.price_known = self.price_known or (self._agent is not None and self._agent.reports_cost)

    def with_model(self, model: str) -> HTTPBackend:
        name = model.removeprefix(self._name)
        if model.startswith("cli:") and name == model:
            hint = f"leave sub_model out, or name a model of the same program: {self._name}/MODEL"
            raise BackendError(f"{self._name!r} cannot start {model!r}", code="config", hint=hint)
        return self._sibling(name if name == model else name[1:])

    def _request(self, ask: Request) -> tuple[str, dict[str, str], JSONObject]:
        if ask.params and "params" not in self.refused:
            self.refused.add("params")
            named = ", ".join(map(repr, ask.params))
            warnings.warn(f"{self._name} takes no request parameters: {named}", RuntimeWarning, stacklevel=2)
        parts = [(str(m["role"]), _plain(m.get("content"))) for m in ask.messages]
        system = [text for role, text in parts if role == "system" and self._agent]
        turns = [(role, text) for role, text in parts if role != "system" or not self._agent]
        prompt = turns[0][1] if len(turns) == 1 else "\n\n".join(f"[{role}]\n{text}" for role, text in turns)
        system += [_CONVERSATION] if len(turns) > 1 else []
        return self.base_url, {}, {"model": self._model_argument, "system": "\n\n".join(system), "prompt": prompt}

    def _attempt(self, link: HostPool, state: CallState, request: _Sent, builder: ResponseBuilder) -> ResponseBuilder:
        try:
            output = self._answer(state, json.loads(request[2]))
        except BackendError as error:
            raise error.with_traceback(None) from None  # the frames hold the program's output, which may repeat a key
        builder.model, builder.usage, builder.cost, builder.stop = output.model, output.usage, output.cost_usd, "stop"
        builder.append_text(output.text)
        return builder

    def _answer(self, state: CallState, asked: Mapping[str, str]) -> _Output:
        if len(asked["prompt"].encode("utf-8", "replace")) > _AGENT_PROMPT_LIMIT:
            raise self._error(
                "context_length",
                f"the prompt has more than {_AGENT_PROMPT_LIMIT:,} bytes",
                hint=_HINTS["context_length"],
            )
        status, stdout, stderr = self._run(state, asked["system"], asked["prompt"])
        output = self._parse(stdout if stdout.strip() else stderr[stderr.rfind("\n{") + 1 :])
        if status or output.error or output.text is None:
            complaint = output.error.strip() or (stderr.strip() if status or not stdout.strip() else "")
            if output.text is not None:
                complaint = complaint or "although it printed an answer"
            raise self._failure(complaint, status, stdout.strip())
        return output

    def _parse(self, stdout: str) -> _Output:
        """Parse the output; that of the user's own command is an object like that of `claude -p`, or plain text."""
        try:
            return (self._agent.parse if self._agent else _parse_claude)(stdout)
        except _MISREAD:
            return _Output(None if self._agent else stdout.strip() or None)

    def _failure(self, complaint: str, status: int, stdout: str) -> BackendError:
        """The error for a program's complaint, or for output that is not an answer."""
        code, hint, words = "server", self._by_hand(), complaint or stdout
        for pattern, its_code, its_hint in (
            (_UNKNOWN_FLAG, "config", f"update it: {self._agent.install}" if self._agent else ""),
            (_TOO_LONG, "context_length", _HINTS["context_length"]),
            (_TOO_FAST, "rate", _HINTS["rate"]),
            (_USED_UP, "quota", "wait until the plan's limit is reset, or use another model"),
            (_SIGNED_OUT, "auth", f"sign in once: {self._agent.sign_in}" if self._agent else "sign in"),
        ):
            if re.search(pattern, words[:4_000]):
                code, hint = its_code, its_hint or hint
                break
        lines = [line for line in words.splitlines() if line.strip()]
        output = words if len(words) < 600 else " … ".join((*lines[:1], *lines[-3:]))
        output = mask(output, [self._env.get(name) for name in self._env.secret_names()])
        problem = "" if complaint else "it printed what is not an answer: " if stdout else "it printed no answer"
        ended = f" ended with status {status}" if status else ""
        return self._error(code, f"{self._name}{ended}: {problem}{output}", hint=hint)

    def _by_hand(self) -> str:
        """The hint for a program that fails for an unknown reason."""
        if self._agent is None:
            return f"try it by hand: echo hello | {self._name}{' …' if self._words[1:] else ''}"
        arguments = self._agent.arguments.partition("json")[0]
        version = f"rlm was tested with {self._name.removeprefix('cli:')} {self._agent.tested_with}"
        return f"try it by hand: echo hello | {self._name.removeprefix('cli:')} {arguments}json; {version}"

    def _environment(self, folder: str) -> dict[str, str]:
        """The program's environment; a coding agent's is without secrets except those that it signs in with."""
        nested = {"CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT"}  # a claude that finds itself inside another does not start
        if self._agent is None:
            return self._env.without(nested)
        cloud = [names for switch, names in self._agent.cloud_keys.items() if self._env.get(switch)]
        own = {*self._agent.keys, *chain.from_iterable(cloud)}
        return {
            **self._env.without(nested | (self._env.secret_names() - own)),
            "GEMINI_SYSTEM_MD": os.path.join(folder, "system.md"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # otherwise it also asks the model for a title
        }

    def _run(self, state: CallState, system: str, prompt: str) -> tuple[int, str, str]:
        """Run the program in an empty folder; return its status, standard output and standard error."""
        import tempfile

        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rlm-cli-", ignore_cleanup_errors=True))
            stdin, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            stdin.write(prompt.encode("utf-8", "replace"))
            stdin.seek(0)
            process = self._start(self._command(folder, system), folder, stdin, stdout, stderr)
            _programs.add(process.pid)
            try:
                self._wait_for(state, process, stdout, stderr)
            finally:
                kill_group(process.pid)
                process.wait()
                _programs.discard(process.pid)
            texts: list[str] = []
            for file in (stdout, stderr):
                file.seek(0)
                texts.append(file.read(BODY_LIMIT).decode("utf-8", "replace"))
            return process.returncode, texts[0], texts[1]

    def _command(self, folder: str, system: str) -> list[str]:
        """Write the files that the command line names; return its words."""
        import shlex

        if self._agent is None:
            return self._words
        for name, text in (("system.md", system or "Answer the prompt."), ("policy.toml", _NO_TOOLS_POLICY)):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(text.encode("utf-8", "replace"))
        words = [word.replace("{folder}", folder) for word in shlex.split(self._agent.arguments)]
        return [*self._words, *words, *(["--model", self._model_argument] if self._model_argument else [])]

    def _start(
        self, words: list[str], folder: str, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]
    ) -> Popen[bytes]:
        import atexit
        import subprocess

        empty, problem = os.path.join(folder, "empty"), ""
        os.mkdir(empty)
        atexit.unregister(stop_programs)
        atexit.register(stop_programs)
        try:
            return subprocess.Popen(
                words,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=empty,
                env=self._environment(folder),
                start_new_session=True,
            )
        except OSError as error:
            problem = error.strerror or str(error)
        hint = "is it installed, and executable?"
        raise self._error("connection", f"{words[0]}: {problem}", hint=hint)  # here, since the frames above hold keys

    def _wait_for(self, state: CallState, process: Popen[bytes], *outputs: IO[bytes]) -> None:
        """Wait for the program; BackendError if the call is over first, or if it prints or takes too much."""
        until = time.monotonic() + self._how.timeout
        while process.poll() is None:
            state.sleep(0.03)
            code, problem = "", ""
            if any(os.fstat(file.fileno()).st_size > BODY_LIMIT for file in outputs):
                code, problem = "protocol", f"printed more than {BODY_LIMIT >> 20} MB"
            elif time.monotonic() > until:
                code, problem = "timeout", f"has not answered after {self._how.timeout:g} s"
            if problem:
                raise self._error(code, f"{self._name} {problem}", hint=self._by_hand())


_programs: set[int] = set()  # process groups that run


def kill_group(group: int) -> None:
    import signal

    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def stop_programs() -> None:
    """Kill the running programs and all that they have started. Runs by itself at exit."""
    for group in list(_programs):
        kill_group(group)


# --- the table of models: prices and sizes ------------------------------------------------------------------------

# As of November 2026, from LiteLLM 1.106.2:
# model | USD per million tokens: input, output, cached input ("-": as input), cache write ("-": as input) | context
# tokens | output tokens | THRESHOLD:IN:OUT: beyond so many input tokens all costs so many times as much
MODELS = """
gpt-6-astra 10 50 1 12.5 922k 128k 272k:2:1.5
gpt-6.1-sol 2 10 .1 2.5 922k 128k 272k:2:1.5
gpt-6-sol 2 10 .2 2.5 922k 128k 272k:2:1.5
gpt-6-luna .1 .5 .01 .125 922k 128k 272k:2:1.5
gpt-5.6-sol 4 20 .4 5 922k 128k 272k:2:1.5
gpt-5.6-terra 2 12 .2 2.5 922k 128k 272k:2:1.5
gpt-5.6-luna .2 1.2 .02 .25 922k 128k 272k:2:1.5
gpt-5.5 5 30 .5 - 1050k 128k 272k:2:1.5
gpt-5.5-pro 30 180 - - 1050k 128k 272k:2:1.5
gpt-5.4 2.5 15 .25 - 1050k 128k 272k:2:1.5
gpt-5.4-mini .75 4.5 .075 - 272k 128k
gpt-5.4-nano .2 1.25 .02 - 272k 128k
gpt-5.4-pro 30 180 - - 1050k 128k 272k:2:1.5
gpt-5.2 1.75 14 .175 - 272k 128k
gpt-5.1 1.25 10 .125 - 272k 128k
gpt-5.1-codex 1.25 10 .125 - 400k 128k
gpt-5 1.25 10 .125 - 272k 128k
gpt-5-mini .25 2 .025 - 272k 128k
gpt-5-nano .05 .4 .005 - 272k 128k
gpt-5-pro 15 120 - - 400k 272k
gpt-5-codex 1.25 10 .125 - 272k 128k
gpt-4.1 2 8 .5 - 1047k 32k
gpt-4.1-mini .4 1.6 .1 - 1047k 32k
gpt-4.1-nano .1 .4 .025 - 1047k 32k
gpt-4o 2.5 10 1.25 - 128k 16k
gpt-4o-mini .15 .6 .075 - 128k 16k
gpt-4o-2024-05-13 5 15 - - 128k 4k
gpt-4-turbo 10 30 - - 128k 4k
gpt-4-0125 10 30 - - 128k 4k noimages
gpt-4-1106 10 30 - - 128k 4k noimages
gpt-4 30 60 - - 8k 4k noimages
gpt-3.5-turbo .5 1.5 - - 16k 4k noimages
o1 15 60 7.5 - 200k 100k
o1-pro 150 600 - - 200k 100k
o3 2 8 .5 - 200k 100k
o3-mini 1.1 4.4 .55 - 200k 100k noimages
o3-pro 20 80 - - 200k 100k
o4-mini 1.1 4.4 .275 - 200k 100k
claude-fable-5-1 10 50 .25 12.5 1000k 128k
claude-fable-5 10 50 1 12.5 1000k 128k
claude-opus-5-5 4 20 .2 5 1000k 128k
claude-opus-5 5 25 .5 6.25 1000k 128k
claude-opus-4-8 5 25 .5 6.25 1000k 128k
claude-opus-4-7 5 25 .5 6.25 1000k 128k
claude-opus-4-6 5 25 .5 6.25 1000k 128k
claude-opus-4-5 5 25 .5 6.25 200k 64k
claude-sonnet-5-5 2 10 .1 2.5 1000k 128k
claude-sonnet-5 2 10 .2 2.5 1000k 128k
claude-sonnet-4-6 3 15 .3 3.75 1000k 128k
claude-sonnet-4-5 3 15 .3 3.75 200k 64k
claude-haiku-5-5 .1 .5 .01 .125 1000k 128k 100k:5:5
claude-haiku-4-5 1 5 .1 1.25 200k 64k
gemini-4-argon 2 10 .1 - 1048k 1048k
gemini-3.8-flash .75 3.75 .075 - 1048k 65k
gemini-3.5-flash 1.5 9 .15 - 1048k 65k
gemini-3.1-pro 2 12 .2 - 1048k 65k 200k:2:1.5
gemini-3-flash .5 3 .05 - 1048k 65k
gemini-2.5-pro 1.25 10 .125 - 1048k 65k 200k:2:1.5
gemini-2.5-flash .3 2.5 .03 - 1048k 65k
gemini-2.5-flash-lite .1 .4 .01 - 1048k 65k
grok-4.7 2 6 .5 - 500k 500k 200k:2:2
grok-4.3 1.25 2.5 .2 - 1000k 1000k 200k:2:2
grok-code-fast-1 1 2 .2 - 256k 256k 200k:2:2
deepseek-v4-pro 1.32 3.96 .044 - 1000k 393k noimages
deepseek-v4-flash .3 1.2 .006 - 1000k 393k
deepseek-flash .3 1.2 .006 - 1000k 393k
deepseek-chat .28 .42 .028 - 131k 8k noimages
deepseek-reasoner .28 .42 .028 - 131k 65k noimages
kimi-k2.6 .95 4 .16 - 262k 262k
mistral-large .5 1.5 .05 - 262k 262k
mistral-medium 1.5 7.5 .15 - 262k 262k
mistral-small .15 .6 .015 - 262k 262k
codestral .3 .9 .03 - 128k 128k noimages
MiniMax-M3 .3 1.2 .06 - 1000k 128k 512k:2:2
"""

# Suffixes of a model's name that leave it the same model: a date, a channel, a version of Bedrock's.
_SNAPSHOT = (
    r"(?:[-@]?(?:\d{8}|\d{6}|\d{4}-\d\d-\d\d|\d{4}|\d\d-\d{4}|\d\d-\d\d|\d{3})"
    r"|[-:@](?:latest|preview|exp|default|v\d+(?::\d+)?))*"
)
# Providers that charge what the makers of the models charge, so that a maker's price holds for them.
_LIST_PRICE = frozenset(
    "openai anthropic google azure azure@anthropic bedrock bedrock_mantle bedrock@anthropic xai deepseek mistral "  # noqa: SIM905
    "codestral moonshotai minimax openrouter openrouter@pi-anthropic vercel vercel-ai-gateway".split()
)


class ModelFacts(NamedTuple):
    """A model's prices (USD per token), sizes and abilities."""

    input: float
    output: float
    cached: float
    cache_write: float
    window: int | None = None
    max_output: int | None = None
    long: tuple[float, float, float] | None = None  # beyond so many tokens, input and output cost so many times more
    images: bool = True


def _model_row(line: str) -> tuple[str, ModelFacts]:
    name, into, *others = line.split()
    out, cached, write = (float(into if price == "-" else price) / 1e6 for price in others[:3])
    window, limit = (int(size.rstrip("k")) * 1000 for size in others[3:5])
    long = next((entry.split(":") for entry in others[5:] if ":" in entry), None)
    beyond = (float(long[0].rstrip("k")) * 1000, float(long[1]), float(long[2])) if long else None
    facts = ModelFacts(float(into) / 1e6, out, cached, write, window, limit, beyond, "noimages" not in others)
    return name.lower(), facts


@functools.cache
def _models() -> dict[str, ModelFacts]:
    return dict(map(_model_row, MODELS.strip().splitlines()))


@functools.lru_cache(256)
def _facts(model: str) -> ModelFacts | None:
    """Find the longest known name that `model` starts with; only a date or a channel may follow it."""
    name = re.sub(r"^(?:\w+\.)?anthropic\.", "", model.lower().rpartition("/")[2])
    known = next((name[:end] for end in range(len(name), 0, -1) if name[:end] in _models()), None)
    return _models()[known] if known and re.fullmatch(_SNAPSHOT, name[len(known) :]) else None


def size_in_name(name: str) -> float | None:
    """The billions of parameters in a model's name, as in `qwen2.5:0.5b` or `mixtral-8x7b` (56); None if absent."""
    name = name.lower().rpartition("/")[2]
    if re.search(r"phi-?[34](?:\.5)?[-:]mini", name):
        return 3.8
    for number, unit in ((r"\d{1,4}(?:\.\d+)?", "b"), (r"\d{2,3}\.\d+|\d{3}", "m")):
        if found := re.search(rf"(?<![a-z0-9.])(?:(\d{{1,3}})x|[er])?({number}){unit}(?![a-z0-9])", name):
            return round(int(found[1] or 1) * float(found[2]) / (1 if unit == "b" else 1000), 3)
    return None


def _as_price(name: str, value: Any) -> ModelFacts:
    """Parse a user's price: `[input, output, cached, cache_write]` or a table of these, the last two optional."""
    try:
        if isinstance(value, Mapping):
            into = value["input"]
            value = [into, value["output"], value.get("cached", into), value.get("cache_write", into)]
        prices = [price / 1e6 for price in [*value, *[value[0]] * (4 - len(value))]]
        if len(value) < 2 or len(prices) > 4 or not all(0 <= price < 1 for price in prices):
            raise ValueError
    except (TypeError, ValueError, LookupError):
        hint = f'USD per million tokens, as in prices = {{"{name}" = [1.0, 2.0]}}: input, output, cached, cache_write'
        raise BackendError(f"invalid price for {name!r}", code="config", hint=hint) from None
    return ModelFacts(*prices)


def _price(model: str, prices: JSONMap | None, provider: str | None) -> ModelFacts | None:
    prices = prices or {}
    for name in (f"{provider}/{model}", model):
        if known := max((key for key in prices if name.startswith(key)), key=len, default=None):
            return _as_price(known, prices[known])
    if provider in _rows() and "local" in _rows()[provider].quirks:
        return ModelFacts(0.0, 0.0, 0.0, 0.0)
    return _facts(model) if provider is None or provider in _LIST_PRICE else None


def cost_of(
    model: str, usage: Mapping[str, Any], prices: Mapping[str, Any] | None = None, provider: str | None = None
) -> float | None:
    """The cost of `usage` in USD; None if the price is unknown.

    `prices` are the user's, in USD per million tokens: `{"model": [input, output, cached, cache_write]}`, the last two
    optional; the longest key that the model's name starts with counts.
    """
    price = _price(model, prices, provider)
    if price is None:
        return None
    whole, cached, written = usage.get("input", 0), usage.get("cached", 0), usage.get("cache_write", 0)
    into = (whole - cached - written) * price.input + cached * price.cached + written * price.cache_write
    beyond, times_in, times_out = price.long or (0.0, 1.0, 1.0)
    if whole <= beyond:
        times_in = times_out = 1.0
    return float(into * times_in + usage.get("output", 0) * price.output * times_out)


def saved_by_cache(
    model: str, usage: Mapping[str, Any], prices: Mapping[str, Any] | None = None, provider: str | None = None
) -> float | None:
    """What the provider's prompt cache saved, in USD; negative if writing it cost more than reading it saved."""
    cost = cost_of(model, usage, prices, provider)
    uncached = cost_of(model, {**usage, "cached": 0, "cache_write": 0}, prices, provider)
    return None if cost is None or uncached is None else uncached - cost


def estimate_tokens(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> int:
    """Estimate the tokens of a request, rather too high than too low: 3 bytes per token, 1,600 tokens per image."""
    total = _text_tokens(json.dumps(tools, ensure_ascii=False, default=str)) if tools else 0
    for message in messages:
        content, calls = message.get("content") or (), message.get("tool_calls") or ()
        parts = [{"text": content}] if isinstance(content, str) else content
        total += 8 + sum(1600 if part.get("type") == "image" else _text_tokens(part.get("text", "")) for part in parts)
        total += sum(12 + _text_tokens(json.dumps(call, ensure_ascii=False, default=str)) for call in calls)
    return total


def _text_tokens(text: str) -> int:
    return (len(text) if text.isascii() else len(text.encode("utf-8", "replace"))) // 3 + 1


# --- the table of providers ---------------------------------------------------------------------------------------

# id | display name | base URL (https:// left out, ${VARIABLES} filled in) | key variables | aliases | quirks
#   anthropic, gemini   the wire (else OpenAI chat completions)
#   local               runs on this machine: no key, no price         keyless   a key is optional
#   mct                 the limit is called max_completion_tokens (else max_tokens, the older spelling)
#   azure, bearer       the key's header is api-key, or Authorization where the wire has another
#   header=NAME         the key goes into this header too              base=VARIABLE  a variable with the base URL
#   own                 model names start with the id as well          notools, noimages   cannot do that
#   reasoning           reasoning_content goes back with tool calls    details   so do reasoning_details
#   name                tool results carry the tool's name             marks     accepts cache marks for Claude
PROVIDERS = """
302ai|302.AI|api.302.ai/v1|302AI_API_KEY
abacus|Abacus|routellm.abacus.ai/v1|ABACUS_API_KEY
abliteration-ai|abliteration.ai|api.abliteration.ai/v1|ABLIT_KEY ABLITERATION_API_KEY|abliteration
ai21_chat|AI21 Chat|api.ai21.com/studio/v1|AI21_API_KEY
aihubmix|AIHubMix|aihubmix.com/v1|AIHUBMIX_API_KEY
aiml|AI/ML API|api.aimlapi.com/v1|AIML_API_KEY
alibaba-cn|Alibaba (China)|dashscope.aliyuncs.com/compatible-mode/v1|DASHSCOPE_API_KEY QWEN_AI_PLATFORM_API_KEY|dashscope qwen_ai_platform
alibaba-coding-plan-cn|Alibaba Coding Plan (China)|coding.dashscope.aliyuncs.com/v1|ALIBABA_CODING_PLAN_API_KEY
alibaba-coding-plan|Alibaba Coding Plan|coding-intl.dashscope.aliyuncs.com/v1|ALIBABA_CODING_PLAN_API_KEY
alibaba-token-plan-cn|Alibaba Token Plan (China)|token-plan.cn-beijing.maas.aliyuncs.com/compatible-mode/v1|ALIBABA_TOKEN_PLAN_API_KEY
alibaba-token-plan|Alibaba Token Plan|token-plan.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1|ALIBABA_TOKEN_PLAN_API_KEY
alibaba|Alibaba|dashscope-intl.aliyuncs.com/compatible-mode/v1|DASHSCOPE_API_KEY QWENCLOUD_API_KEY|qwencloud
ambient|Ambient|api.ambient.xyz/v1|AMBIENT_API_KEY
ant-ling||api.ant-ling.com/v1|ANT_LING_API_KEY
anthropic|Anthropic|api.anthropic.com|ANTHROPIC_API_KEY||anthropic base=ANTHROPIC_BASE_URL
anyapi|AnyAPI|api.anyapi.ai/v1|ANYAPI_API_KEY
apertis|Apertis|api.stima.tech/v1|STIMA_API_KEY
assemblyai|AssemblyAI|llm-gateway.assemblyai.com/v1|ASSEMBLYAI_API_KEY
atomic-chat|Atomic Chat|http://127.0.0.1:1337/v1|ATOMIC_CHAT_API_KEY||local
auriko|Auriko|api.auriko.ai/v1|AURIKO_API_KEY
azure-cognitive-services|Azure Cognitive Services|${AZURE_COGNITIVE_SERVICES_RESOURCE_NAME}.openai.azure.com/openai/v1|AZURE_COGNITIVE_SERVICES_API_KEY||azure mct
azure@anthropic|Claude on Azure|${AZURE_RESOURCE_NAME}.services.ai.azure.com/anthropic|AZURE_API_KEY||anthropic
azure_ai|Azure AI|${AZURE_AI_API_BASE}|AZURE_AI_API_KEY||azure
azure|Azure|${AZURE_RESOURCE_NAME}.openai.azure.com/openai/v1|AZURE_API_KEY AZURE_OPENAI_API_KEY||azure mct base=AZURE_API_BASE
bailing|Bailing|api.tbox.cn/api/llm/v1/chat/completions|BAILING_API_TOKEN
baseten|Baseten|inference.baseten.co/v1|BASETEN_API_KEY
bedrock@anthropic|Claude on Bedrock|bedrock-mantle.${AWS_REGION}.api.aws/anthropic|AWS_BEARER_TOKEN_BEDROCK||anthropic bearer
bedrock_mantle|Bedrock Mantle|bedrock-mantle.${AWS_REGION}.api.aws/v1|AWS_BEARER_TOKEN_BEDROCK BEDROCK_MANTLE_API_KEY
bedrock|Amazon Bedrock|bedrock-runtime.${AWS_REGION}.amazonaws.com/openai/v1|AWS_BEARER_TOKEN_BEDROCK|amazon-bedrock
berget|Berget.AI|api.berget.ai/v1|BERGET_API_KEY
cascadia|Cascadia|http://localhost:9090/v1|CASCADIA_API_KEY||local
cerebras|Cerebras|api.cerebras.ai/v1|CEREBRAS_API_KEY||mct
charity_engine|Charity Engine|api.charityengine.services/remotejobs/v2/inference|CHARITY_ENGINE_API_KEY
chutes|Chutes|llm.chutes.ai/v1|CHUTES_API_KEY
clarifai|Clarifai|api.clarifai.com/v2/ext/openai/v1|CLARIFAI_PAT CLARIFAI_API_KEY
claudinio|Claudinio|api.claudin.io/v1|CLAUDINIO_API_KEY
cloudferro-sherlock|CloudFerro Sherlock|api-sherlock.cloudferro.com/openai/v1|CLOUDFERRO_SHERLOCK_API_KEY
cloudflare-ai-gateway|Cloudflare AI Gateway|gateway.ai.cloudflare.com/v1/${CLOUDFLARE_ACCOUNT_ID}/${CLOUDFLARE_GATEWAY_ID}/compat|CLOUDFLARE_API_TOKEN||header=cf-aig-authorization
cloudflare-workers-ai|Cloudflare Workers AI|api.cloudflare.com/client/v4/accounts/${CLOUDFLARE_ACCOUNT_ID}/ai/v1|CLOUDFLARE_API_KEY|cloudflare
codestral|Codestral|codestral.mistral.ai/v1|CODESTRAL_API_KEY||name
cognition|Cognition|api.cognition.ai/v1|COGNITION_API_KEY
cohere|Cohere|api.cohere.ai/compatibility/v1|COHERE_API_KEY CO_API_KEY|cohere_chat
cometapi|CometAPI|api.cometapi.com/v1|COMETAPI_KEY
compactifai|CompactifAI|api.compactif.ai/v1|COMPACTIFAI_API_KEY
cortecs|Cortecs|api.cortecs.ai/v1|CORTECS_API_KEY
crof|CrofAI|crof.ai/v1|CROF_API_KEY
crusoe|Crusoe|managed-inference-api-proxy.crusoecloud.com/v1|CRUSOE_API_KEY
darkbloom|Darkbloom|api.darkbloom.dev/v1|DARKBLOOM_API_KEY
databricks|Databricks|${DATABRICKS_HOST}/ai-gateway/mlflow/v1|DATABRICKS_TOKEN
datarobot|DataRobot|app.datarobot.com/api/v2/genai/llmgw/chat/completions|DATAROBOT_API_TOKEN
deepinfra|Deep Infra|api.deepinfra.com/v1/openai|DEEPINFRA_API_KEY
deepseek|DeepSeek|api.deepseek.com|DEEPSEEK_API_KEY||reasoning noimages
digitalocean|DigitalOcean|inference.do-ai.run/v1|DIGITALOCEAN_ACCESS_TOKEN GRADIENT_AI_API_KEY|gradient_ai
dinference|DInference|api.dinference.com/v1|DINFERENCE_API_KEY
docker_model_runner|Docker Model Runner|http://localhost:22088/engines/llama.cpp|DOCKER_MODEL_RUNNER_API_KEY||local
drun|D.Run (China)|chat.d.run/v1|DRUN_API_KEY
edenai|Eden AI|api.edenai.run/v3|EDENAI_API_KEY
empiriolabs|Empiriolabs|api.empiriolabs.ai/v1|EMPIRIOLABS_API_KEY
empower|Empower|app.empower.dev/api/v1|EMPOWER_API_KEY
evroc||models.think.evroc.com/v1|EVROC_API_KEY||own
fastrouter|FastRouter|go.fastrouter.ai/api/v1|FASTROUTER_API_KEY
featherless_ai|Featherless AI|api.featherless.ai/v1|FEATHERLESS_AI_API_KEY FEATHERLESS_API_KEY
fireworks-ai|Fireworks AI|api.fireworks.ai/inference/v1|FIREWORKS_API_KEY FIREWORKSAI_API_KEY FIREWORKS_AI_API_KEY FIREWORKS_AI_TOKEN|fireworks_ai
fireworks||api.fireworks.ai/inference|FIREWORKS_API_KEY||anthropic
freemodel|FreeModel|cc.freemodel.dev/v1|FREEMODEL_API_KEY||anthropic
friendli|Friendli|api.friendli.ai/serverless/v1|FRIENDLI_TOKEN FRIENDLIAI_API_KEY|friendliai
frogbot|FrogBot|app.frogbot.ai/api/v1|FROGBOT_API_KEY
galadriel|Galadriel|api.galadriel.com/v1|GALADRIEL_API_KEY
gigachat|GigaChat|gigachat.devices.sberbank.ru/api/v1|GIGACHAT_CREDENTIALS GIGACHAT_API_KEY
github-copilot|GitHub Copilot|api.githubcopilot.com|GITHUB_TOKEN|github_copilot|mct
github-models|GitHub Models|models.github.ai/inference|GITHUB_TOKEN|github-models-new|mct
github|GitHub Models|models.inference.ai.azure.com|GITHUB_API_KEY||mct
gmicloud|GMI Cloud|api.gmi-serving.com/v1|GMICLOUD_API_KEY GMI_API_KEY|gmi
google|Google|generativelanguage.googleapis.com/v1beta|GOOGLE_API_KEY GOOGLE_GENERATIVE_AI_API_KEY GEMINI_API_KEY|gemini|gemini
groq|Groq|api.groq.com/openai/v1|GROQ_API_KEY||mct
helicone|Helicone|ai-gateway.helicone.ai/v1|HELICONE_API_KEY
heroku|Heroku|${HEROKU_API_BASE}|HEROKU_API_KEY
hosted_vllm|Hosted vLLM|${HOSTED_VLLM_API_BASE}|HOSTED_VLLM_API_KEY||local
hpc-ai|HPC-AI|api.hpc-ai.com/inference/v1|HPC_AI_API_KEY
huggingface|Hugging Face|router.huggingface.co/v1|HF_TOKEN
hyperbolic|Hyperbolic|api.hyperbolic.xyz/v1|HYPERBOLIC_API_KEY
iflowcn|iFlow|apis.iflow.cn/v1|IFLOW_API_KEY
inception|Inception|api.inceptionlabs.ai/v1|INCEPTION_API_KEY
inceptron|Inceptron|api.inceptron.io/v1|INCEPTRON_API_KEY
inference|Inference|inference.net/v1|INFERENCE_API_KEY
io-net|IO.NET|api.intelligence.io.solutions/api/v1|IOINTELLIGENCE_API_KEY
jiekou|Jiekou.AI|api.jiekou.ai/openai|JIEKOU_API_KEY
kilo|Kilo Gateway|api.kilo.ai/api/gateway|KILO_API_KEY
kimi-coding||api.kimi.com/coding/v1|KIMI_API_KEY||reasoning
kimi-for-coding|Kimi For Coding|api.kimi.com/coding/v1|KIMI_API_KEY||anthropic
kuae-cloud-coding-plan|KUAE Cloud Coding Plan|coding-plan-endpoint.kuaecloud.net/v1|KUAE_API_KEY
lambda_ai|Lambda AI|api.lambda.ai/v1|LAMBDA_API_KEY
lemonade|Lemonade|http://localhost:8000/api/v1|LEMONADE_API_KEY||local
libertai|LibertAI|api.libertai.io/v1|LIBERTAI_API_KEY
lilac|Lilac|api.getlilac.com/v1|LILAC_API_KEY
litellm_proxy|LiteLLM Proxy|${LITELLM_PROXY_API_BASE}|LITELLM_PROXY_API_KEY||keyless
llamacpp|llama.cpp server|http://127.0.0.1:8080/v1|||local
llamafile|Llamafile|http://127.0.0.1:8080/v1|||local
llamagate|LlamaGate|api.llamagate.dev/v1|LLAMAGATE_API_KEY
llama|Llama|api.llama.com/compat/v1|LLAMA_API_KEY|meta_llama
llmgateway|LLM Gateway|api.llmgateway.io/v1|LLMGATEWAY_API_KEY
llmtr|LLMTR|llmtr.com/v1|LLMTR_API_KEY
lm_studio|LM Studio|http://localhost:1234/v1|LM_STUDIO_API_KEY||local
lmstudio|LMStudio|http://127.0.0.1:1234/v1|LMSTUDIO_API_KEY||local
lucidquery|LucidQuery|api.lucidquery.com/v1|LUCIDQUERY_API_KEY
maritalk|Maritalk|chat.maritaca.ai/api|MARITALK_API_KEY
meganova|Meganova|api.meganova.ai/v1|MEGANOVA_API_KEY
meta|Meta|api.meta.ai/v1|META_API_KEY
minimax-cn-coding-plan|MiniMax Token Plan (minimaxi.com)|api.minimaxi.com/anthropic/v1|MINIMAX_API_KEY||anthropic
minimax-cn|MiniMax (minimaxi.com)|api.minimaxi.com/anthropic/v1|MINIMAX_API_KEY||anthropic
minimax-coding-plan|MiniMax Token Plan (minimax.io)|api.minimax.io/anthropic/v1|MINIMAX_API_KEY||anthropic
minimax@litellm|Minimax|api.minimax.io/v1|MINIMAX_API_KEY
minimax|MiniMax (minimax.io)|api.minimax.io/anthropic/v1|MINIMAX_API_KEY||anthropic
mistral|Mistral|api.mistral.ai/v1|MISTRAL_API_KEY MISTRAL_AZURE_API_KEY||name
mixlayer|Mixlayer|models.mixlayer.ai/v1|MIXLAYER_API_KEY
moark|Moark|moark.com/v1|MOARK_API_KEY
modelscope|ModelScope|api-inference.modelscope.cn/v1|MODELSCOPE_API_KEY
moonshotai-cn|Moonshot AI (China)|api.moonshot.cn/v1|MOONSHOT_API_KEY||reasoning
moonshotai|Moonshot AI|api.moonshot.ai/v1|MOONSHOT_API_KEY|moonshot|reasoning
morph|Morph|api.morphllm.com/v1|MORPH_API_KEY
nadir|Nadir|api.getnadir.com/v1|NADIR_API_KEY
nano-gpt|NanoGPT|nano-gpt.com/api/v1|NANO_GPT_API_KEY NANOGPT_API_KEY
nearai|NEAR AI Cloud|cloud-api.near.ai/v1|NEARAI_API_KEY
nebius|Nebius Token Factory|api.tokenfactory.nebius.com/v1|NEBIUS_API_KEY
neon|Neon|${NEON_AI_GATEWAY_BASE_URL}/ai-gateway/mlflow/v1|NEON_AI_GATEWAY_TOKEN
neosantara|Neosantara|api.neosantara.xyz/v1|NEOSANTARA_API_KEY
neuralwatt|Neuralwatt|api.neuralwatt.com/v1|NEURALWATT_API_KEY
nova|Nova|api.nova.amazon.com/v1|NOVA_API_KEY AMAZON_NOVA_API_KEY|amazon_nova
novita-ai|NovitaAI|api.novita.ai/openai|NOVITA_API_KEY|novita
nscale|Nscale|inference.api.nscale.com/v1|NSCALE_API_KEY
nvidia|Nvidia|integrate.api.nvidia.com/v1|NVIDIA_API_KEY NVIDIA_NIM_API_KEY|nvidia_nim
ollama-cloud|Ollama Cloud|ollama.com/v1|OLLAMA_API_KEY
ollama|Ollama|http://localhost:11434/v1|OLLAMA_API_KEY|ollama_chat|local
openai|OpenAI|api.openai.com/v1|OPENAI_API_KEY||mct base=OPENAI_BASE_URL
opencode-go@pi-anthropic|opencode-go|opencode.ai/inference/go/anthropic|OPENCODE_API_KEY||anthropic
opencode-go@pi-gemini|opencode-go|opencode.ai/inference/go/google/v1beta|OPENCODE_API_KEY||gemini
opencode-go|OpenCode Go|opencode.ai/zen/go/v1|OPENCODE_API_KEY
opencode|OpenCode Zen|opencode.ai/zen/v1|OPENCODE_API_KEY
openrouter@pi-anthropic|openrouter|openrouter.ai/api|OPENROUTER_API_KEY||anthropic bearer
openrouter|OpenRouter|openrouter.ai/api/v1|OPENROUTER_API_KEY||details own marks
orcarouter|OrcaRouter|api.orcarouter.ai/v1|ORCAROUTER_API_KEY||own
ovhcloud|OVHcloud AI Endpoints|oai.endpoints.kepler.ai.cloud.ovh.net/v1|OVHCLOUD_API_KEY
parasail|Parasail|api.parasail.io/v1|PARASAIL_API_KEY
perplexity-agent|Perplexity Agent|api.perplexity.ai/v1|PERPLEXITY_API_KEY
perplexity|Perplexity|api.perplexity.ai|PERPLEXITY_API_KEY PERPLEXITYAI_API_KEY||notools
pinstripes|Pinstripes|pinstripes.io/v1|PINSTRIPES_API_KEY
poe|Poe|api.poe.com/v1|POE_API_KEY
poolside|Poolside|inference.poolside.ai/v1|POOLSIDE_API_KEY||own
portkey|Portkey|api.portkey.ai/v1|PORTKEY_API_KEY
prism|Prism|api.prisminference.com/v1|PRISM_API_KEY
privatemode-ai|Privatemode AI|http://localhost:8080/v1|PRIVATEMODE_API_KEY||keyless
publicai|PublicAI|api.publicai.co/v1|PUBLICAI_API_KEY
qihang-ai|QiHang|api.qhaigc.net/v1|QIHANG_API_KEY
qiniu-ai|Qiniu|api.qnaigc.com/v1|QINIU_API_KEY
regolo-ai|Regolo AI|api.regolo.ai/v1|REGOLO_API_KEY
reka|Reka|api.reka.ai/v1|REKA_API_KEY
requesty|Requesty|router.requesty.ai/v1|REQUESTY_API_KEY
routing-run|routing.run|ai.routing.sh/v1|ROUTING_RUN_API_KEY
sail|Sail|api.sailresearch.com/v1|SAIL_API_KEY
sakana|Sakana AI|api.sakana.ai/v1|SAKANA_API_KEY
sambanova|Sambanova|api.sambanova.ai/v1|SAMBANOVA_API_KEY
sarvam|Sarvam AI|api.sarvam.ai/v1|SARVAM_API_KEY||header=api-subscription-key
scaleway|Scaleway|api.scaleway.ai/v1|SCALEWAY_API_KEY SCW_SECRET_KEY
scx-ai|SCX.ai|api.scx.ai/v1|SCX_API_KEY
siliconflow-cn|SiliconFlow (China)|api.siliconflow.cn/v1|SILICONFLOW_CN_API_KEY
siliconflow|SiliconFlow|api.siliconflow.com/v1|SILICONFLOW_API_KEY
snowflake-cortex|Snowflake Cortex|${SNOWFLAKE_ACCOUNT}.snowflakecomputing.com/api/v2/cortex/v1|SNOWFLAKE_CORTEX_PAT
stackit|STACKIT|api.openai-compat.model-serving.eu01.onstackit.cloud/v1|STACKIT_API_KEY
stepfun-ai|StepFun AI|api.stepfun.ai/step_plan/v1|STEPFUN_API_KEY
stepfun|StepFun|api.stepfun.com/v1|STEPFUN_API_KEY
subconscious|Subconscious|api.subconscious.dev/v1|SUBCONSCIOUS_API_KEY||own
submodel||llm.submodel.ai/v1|SUBMODEL_INSTAGEN_ACCESS_KEY
synthetic|Synthetic|api.synthetic.new/openai/v1|SYNTHETIC_API_KEY
tencent-coding-plan|Tencent Coding Plan (China)|api.lkeap.cloud.tencent.com/coding/v3|TENCENT_CODING_PLAN_API_KEY
tencent-tokenhub|Tencent TokenHub|tokenhub.tencentmaas.com/v1|TENCENT_TOKENHUB_API_KEY
tencent|Tencent|tokenhub-intl.tencentcloudmaas.com/v1|TENCENT_API_KEY
tensormesh|Tensormesh|serverless.tensormesh.ai/v1|TENSORMESH_INFERENCE_API_KEY
the-grid-ai|The Grid AI|api.thegrid.ai/v1|THEGRIDAI_API_KEY
tinfoil|Tinfoil|inference.tinfoil.sh/v1|TINFOIL_API_KEY
togetherai|Together AI|api.together.ai/v1|TOGETHER_API_KEY TOGETHERAI_API_KEY TOGETHER_AI_API_KEY TOGETHER_AI_TOKEN|together_ai
umans-ai-coding-plan|Umans AI Coding Plan|api.code.umans.ai/v1|UMANS_AI_CODING_PLAN_API_KEY
umans-ai|Umans AI|api.code.umans.ai/v1|UMANS_AI_API_KEY
upstage|Upstage|api.upstage.ai/v1/solar|UPSTAGE_API_KEY
v0||api.v0.dev/v1|V0_API_KEY
venice|Venice AI|api.venice.ai/api/v1|VENICE_API_KEY VENICE_AI_API_KEY|veniceai
vercel-ai-gateway||ai-gateway.vercel.sh|AI_GATEWAY_API_KEY||anthropic bearer
vercel|Vercel AI Gateway|ai-gateway.vercel.sh/v1|AI_GATEWAY_API_KEY VERCEL_AI_GATEWAY_API_KEY VERCEL_OIDC_TOKEN|vercel_ai_gateway|mct
vivgrid|Vivgrid|api.vivgrid.com/v1|VIVGRID_API_KEY
vllm|vLLM|http://localhost:8000/v1|VLLM_API_KEY||local
volcengine|Volcengine|ark.cn-beijing.volces.com/api/v3|VOLCENGINE_API_KEY
vultr|Vultr|api.vultrinference.com/v1|VULTR_API_KEY
wafer.ai|Wafer|pass.wafer.ai/v1|WAFER_API_KEY
wandb|Weights & Biases|api.inference.wandb.ai/v1|WANDB_API_KEY
xai|xAI|api.x.ai/v1|XAI_API_KEY||mct
xiaomi-token-plan-ams|Xiaomi Token Plan (Europe)|token-plan-ams.xiaomimimo.com/v1|XIAOMI_API_KEY
xiaomi-token-plan-cn|Xiaomi Token Plan (China)|token-plan-cn.xiaomimimo.com/v1|XIAOMI_API_KEY
xiaomi-token-plan-sgp|Xiaomi Token Plan (Singapore)|token-plan-sgp.xiaomimimo.com/v1|XIAOMI_API_KEY
xiaomi|Xiaomi|api.xiaomimimo.com/v1|XIAOMI_API_KEY XIAOMI_MIMO_API_KEY|xiaomi_mimo|reasoning
xinference|Xinference|${XINFERENCE_API_BASE}|XINFERENCE_API_KEY||local
xpersona|Xpersona|www.xpersona.co/v1|XPERSONA_API_KEY
zai-coding-plan|Z.AI Coding Plan|api.z.ai/api/coding/paas/v4|ZHIPU_API_KEY||reasoning
zai|Z.AI|api.z.ai/api/paas/v4|ZHIPU_API_KEY ZAI_API_KEY||reasoning
zeldoc|Zeldoc|api.zeldoc.ai/v1|ZELDOC_API_KEY
zenmux|ZenMux|zenmux.ai/api/v1|ZENMUX_API_KEY
zhipuai-coding-plan|Zhipu AI Coding Plan|open.bigmodel.cn/api/coding/paas/v4|ZHIPU_API_KEY||reasoning
zhipuai|Zhipu AI|open.bigmodel.cn/api/paas/v4|ZHIPU_API_KEY||reasoning
"""  # noqa: E501


class Provider(NamedTuple):
    """One provider."""

    id: str  # as in `backend`
    name: str  # for people
    base_url: str  # of its API
    keys: tuple[str, ...]  # the variables that may hold its key
    aliases: tuple[str, ...]  # other ids
    quirks: Mapping[str, str]  # how its API differs from that of its wire

    @property
    def wire(self) -> str:
        """The form of its requests: openai, anthropic or gemini."""
        return next((wire for wire in ("anthropic", "gemini") if wire in self.quirks), "openai")


def _row(line: str) -> Provider:
    id_, name, url, keys, aliases, quirks = (line.split("|") + [""] * 5)[:6]
    if "://" not in url and not url.endswith("_BASE}"):
        url = f"https://{url}"
    pairs = dict((quirk + "=").split("=")[:2] for quirk in quirks.split())
    return Provider(id_, name or id_, url, tuple(keys.split()), tuple(aliases.split()), pairs)


@functools.cache
def _rows() -> dict[str, Provider]:
    return {row.id: row for row in map(_row, PROVIDERS.strip().splitlines())}


@functools.cache
def _by_name() -> dict[str, Provider]:
    """The providers by id and by alias."""
    return {**{alias: row for row in _rows().values() for alias in row.aliases}, **_rows()}


def providers(word: str | None = None, environ: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """List the providers that match `word`, as `{id, name, wire, base_url, key_env, key_present}`."""
    env = _Environ(environ)
    return [
        {
            "id": row.id,
            "name": row.name,
            "wire": row.wire,
            "base_url": row.base_url,
            "key_env": list(row.keys),
            "key_present": any(env.get(name) for name in row.keys),
        }
        for row in _rows().values()
        if not word or word.lower() in " ".join((row.id, row.name, row.base_url, *row.aliases)).lower()
    ]


def key_variables() -> frozenset[str]:
    """Return the names of all environment variables that hold a provider's API key."""
    return frozenset(name for row in _rows().values() for name in row.keys)
