# /// script
# requires-python = ">=3.10"
# dependencies = ["requests", "RestrictedPython", "docker", "tomli; python_version < '3.11'"]
# ///
"""Recursive language models in a few flat files: the long input is a variable in a Python REPL, not a prompt.

    from rlm import complete
    print(complete("Which customer has the most failed payments?", Path("payments.csv")))

The model writes code that looks at `context`, runs it in a sandbox, and calls models on the pieces it cuts out
(`llm_query`) or on pieces that deserve a REPL of their own (`rlm_query`). Every step is journalled, bounded by
limits that hold for the whole tree of calls, and can be resumed or replayed.

How a prompt travels (this file reads top to bottom in that order):

    RLM.completion -> Run (ledger, journal, what all nodes share) -> Node.solve: ask, act, repeat
        ask -> rlm_backends (a model behind HTTP)      act -> rlm_sandbox (a REPL), rlm_tools
        a cell may call back: llm_query -> Run.call, rlm_query -> another Node, a tool -> rlm_tools

Needs its siblings rlm_config.py, rlm_backends.py, rlm_sandbox.py (with rlm_worker.py and rlm_policy.py) and
rlm_tools.py; rlm_viz.py for `result.show()`, rlm_cli.py for `python -m rlm`.
"""

from __future__ import annotations

if __name__ == "__main__":  # one copy of this module: everything else imports it as `rlm`
    try:
        if not __package__:
            from rlm_cli import main
        else:
            from .rlm_cli import main  # type: ignore[import-not-found,no-redef]

        raise SystemExit(main())
    except KeyboardInterrupt:  # before the command line could take it
        raise SystemExit(130) from None

import builtins
import contextlib
import dataclasses
import json
import keyword
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, count, islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING or not __package__:
    import rlm_backends
    import rlm_sandbox
    import rlm_tools
    from rlm_config import (
        LIMITS,
        OPTIONS,
        ConfigError,
        RLMError,
        counted,
        rebuild_error,
        require_encoding,
        server_secrets,
        sha256,
        shorten,
        suggestion,
    )
    from rlm_config import Configuration as Configuration
    from rlm_config import Options as Options
    from rlm_config import load_config as load_config
    from rlm_config import parse_params as parse_params
    from rlm_config import project_file as project_file
    from rlm_config import trust as trust
    from rlm_config import user_config_dir as user_config_dir
    from rlm_tools import Tool, to_json, tool
else:  # vendored into a package
    from . import rlm_backends, rlm_sandbox, rlm_tools
    from .rlm_config import (
        LIMITS,
        OPTIONS,
        ConfigError,
        RLMError,
        counted,
        rebuild_error,
        require_encoding,
        server_secrets,
        sha256,
        shorten,
        suggestion,
    )
    from .rlm_config import Configuration as Configuration
    from .rlm_config import Options as Options
    from .rlm_config import load_config as load_config
    from .rlm_config import parse_params as parse_params
    from .rlm_config import project_file as project_file
    from .rlm_config import trust as trust
    from .rlm_config import user_config_dir as user_config_dir
    from .rlm_tools import Tool, to_json, tool

if TYPE_CHECKING:
    import concurrent.futures
    from concurrent.futures import Executor

__version__ = "0.1.0"
__all__ = [
    "RLM",
    "CompletionResult",
    "ConfigError",
    "CostBudgetExhausted",
    "LimitExceeded",
    "MaxDepthExceeded",
    "MaxIterationsExceeded",
    "MaxSubcallsExceeded",
    "ProviderError",
    "REPLExecutionError",
    "RLMError",
    "SandboxError",
    "TimeoutExceeded",
    "TokenBudgetExhausted",
    "Tool",
    "ToolNotFoundError",
    "batch",
    "complete",
    "last_result",
    "read_context",
    "stream",
    "tool",
]

Message = dict[str, Any]  # of a chat, or a part of one
ToolCall = dict[str, Any]  # {"name", "arguments"}, and what else is known of it
Plan = Callable[..., Callable[[], object]]  # prepares a call from the REPL; what it returns makes the call


# --- the short forms ---------------------------------------------------------------------------------------------


def complete(prompt: str, context: object = None, *, system: str | None = None, **options: Any) -> CompletionResult:
    """Answer `prompt` over `context`. Same as `RLM(**options).completion(…)`, and closes the RLM afterwards."""
    with RLM(**options) as rlm:
        return rlm.completion(prompt, context, system=system)


def stream(prompt: str, *, system: str | None = None, **options: Any) -> Iterator[str]:
    """Yield the answer to a prompt piece by piece, as it arrives. Same as `RLM(**options).stream(…)`."""
    with RLM(**options) as rlm:
        yield from rlm.stream(prompt, system=system)


def batch(
    prompts: Iterable[str | Mapping[str, object]],
    *,
    executor: Executor | None = None,
    max_workers: int = 8,
    one_ledger: bool = False,
    on_result: Callable[[int, CompletionResult | RLMError], None] | None = None,
    **options: Any,
) -> Iterator[CompletionResult | RLMError]:
    """Yield the results of many prompts, in order. Same as `RLM(**options).batch(…)`."""
    how: dict[str, Any] = {"executor": executor, "max_workers": max_workers, "one_ledger": one_ledger}
    with RLM(**options) as rlm:
        yield from rlm.batch(prompts, on_result=on_result, **how)


def load_ipython_extension(shell: Any) -> None:
    """For notebooks: after `%load_ext rlm`, the cell magic `%%rlm [-m MODEL] [-c VARIABLE]` answers a cell's text."""
    import shlex

    def magic(line: str, cell: str) -> CompletionResult:
        words = shlex.split(line)
        if len(words) % 2 or any(flag not in ("-m", "-c") for flag in words[::2]):
            raise ConfigError(f"%%rlm does not take {line!r}", hint="%%rlm [-m MODEL] [-c VARIABLE]")
        options = dict(zip(words[::2], words[1::2], strict=True))
        context = shell.user_ns[options["-c"]] if "-c" in options else None
        return complete(cell.strip(), context, model=options.get("-m"))

    shell.register_magic_function(magic, "cell", "rlm")


# --- RLM: the class behind the short forms ------------------------------------------------------------------------

_last_result: CompletionResult | None = None


def last_result() -> CompletionResult | None:
    """The result of the newest completion of this process; after an interruption, its partial result."""
    return _last_result


class RLM:
    """A configured runtime. Each completion has a REPL and limits of its own, so one object serves many threads.

    An option that is None is looked up in the environment (RLM_*), then ./rlm.toml, then the user's file; otherwise
    it has its default. `config`: a file to read instead of both files, or False to read none.

    `on_event(event)` gets each journal event as it is written, and the model's text and a cell's output as they arrive.
    `on_progress(event)` gets what happens between them. Its `phase` is "loading" a model (`text`), "asking" it
    (`kind`), "reading" its prompt (`processed`, `total`), "running" a cell (`cell`) or "subcalls" (`done`, `total`).
    `on_confirm(forecast)` decides about a batch or a child that may cost more than `confirm_above`: True sends it, any
    other value refuses it.
    """

    def __init__(
        self,
        model: str | None = None,
        backend: object = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        sub_model: str | None = None,
        protocol: str | None = None,
        environment: object = None,
        max_depth: int | None = None,
        max_subcalls: int | None = None,
        max_iterations: int | None = None,
        max_errors: int | None = None,
        token_budget: int | None = None,
        cost_budget_usd: float | None = None,
        confirm_above: float | None = None,
        timeout_seconds: float | None = None,
        max_parallel: int | None = None,
        max_retries: int | None = None,
        output_limit: int | None = None,
        cell_timeout: float | None = None,
        compaction: bool | None = None,
        params: dict[str, Any] | None = None,
        sub_params: dict[str, Any] | None = None,
        prompt: str | None = None,
        show_below: int | None = None,
        plain_below: int | str | None = None,
        encoding: str | None = None,
        prices: dict[str, Any] | None = None,
        cache: bool | None = None,
        schema: object = None,
        tools: list[Any] | None = None,
        mcp: dict[str, Any] | list[str] | None = None,
        allowed_paths: list[str] | None = None,
        allowed_imports: list[str] | None = None,
        require: str | None = None,
        local_memory: str | None = None,
        docker_image: str | None = None,
        docker_cpus: float | None = None,
        docker_memory: str | None = None,
        docker_network_disabled: bool | None = None,
        docker_runtime: str | None = None,
        docker_mount: str | None = None,
        docker_pool: int | None = None,
        persistent: bool | None = None,
        snipara_api_key: str | None = None,
        snipara_project_slug: str | None = None,
        snipara_api_url: str | None = None,
        memory_enabled: bool | None = None,
        save_context: bool | None = None,
        verbose: bool | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        config: str | bool | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_progress: Callable[[Event], None] | None = None,
        on_confirm: Callable[[Forecast], bool] | None = None,
    ) -> None:
        given = locals()
        self._given = {name: given[name] for name in OPTIONS if given[name] is not None}
        self._config = config
        self._on_event = on_event
        self._on_progress = on_progress
        self._on_confirm = on_confirm
        self.configuration = load_config(self._given, config=config)
        self.options = Options(**self.configuration.values)
        self._lock = threading.RLock()
        self._backend: object = None
        self._tools: list[Tool] | None = None
        self._runs: dict[Run, Node] = {}  # those that go on, with their roots
        self._starting: dict[Any, tuple[Ledger, LedgerGroup | None]] = {}  # MCP servers of runs that have yet to begin
        self._conversation: tuple[Run, Node] | None = None
        self._last_context = Context(None)  # of the conversation, should its REPL be lost
        self._talking = threading.Lock()  # held while the conversation answers

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), config=self._config, **self._given), ()

    def __enter__(self) -> RLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation of a persistent RLM, and its connections."""
        self._end_conversation()
        with self._lock:
            backend, self._backend = self._backend, None
        if backend is not None:
            adapt(backend).close()

    def _end_conversation(self) -> None:
        with self._lock:
            conversation, self._conversation = self._conversation, None
            self._last_context = Context(None)
        if conversation is not None:
            conversation[1].close()
            conversation[0].close()

    def stop(self, reason: str = "stopped") -> None:
        """End the running completions, from another thread: each raises RLMError(reason) with its partial result."""
        self._abort(RLMError(reason, hint="go on with it: rlm resume"))

    def _abort(self, reason: BaseException, group: LedgerGroup | None = None) -> None:
        with self._lock:
            runs = [(run, node) for run, node in self._runs.items() if group is None or run.group is group]
            starting = [(s, ledger) for s, (ledger, its) in self._starting.items() if group is None or its is group]
        for servers, ledger in starting:
            ledger.fail(reason)
            servers.close()
        for run, node in runs:
            run.abort(reason)
            node.end(None, reason)  # the run's own thread is no longer heard

    # what a completion is made of

    @property
    def backend(self) -> Any:
        """The connected backend: the object that was given, or the provider that model, key and base_url name."""
        with self._lock:
            if self._backend is None:
                self._backend = connect(self.configuration, self.options, self._loading)
            return self._backend

    def _loading(self, text: str) -> None:
        """Tell the listener how a model file is being loaded."""
        if self._on_progress is not None:
            self._on_progress({"event": "progress", "phase": "loading", "text": text})

    @property
    def tools(self) -> list[Tool]:
        """The tools the model is offered besides execute_code."""
        with self._lock:
            if self._tools is None:
                self._tools = gather_tools(self.options)
            return self._tools

    def _new_run(
        self,
        trajectory_id: str,
        recording: JournalIndex,
        *,
        go_on: str | None = None,  # the journal to append to
        group: LedgerGroup | None = None,
        servers: Callable[[Ledger], Any] | None = None,
    ) -> Run:
        options, backend, tools = self.options, adapt(self.backend), self.tools
        backend.inspect()
        if not recording.is_replay:
            check_prices(options, backend)
        profile, origins = profile_for(backend, options.prompt), self.configuration.origins
        own: dict[str, Any] = {"output_limit": profile.output_limit, "show_below": profile.show_below}
        options = dataclasses.replace(options, **{k: v for k, v in own.items() if v and origins[k] == "default"})
        if options.environment == "docker":
            with our_errors():
                rlm_sandbox.docker_engine()  # before anything is sent, and before a thread imports what the SDK needs
        folder = None if recording.is_replay else options.log_dir
        path = go_on or (os.path.join(folder, f"{trajectory_id}.jsonl") if folder else None)
        unnamed = origins["log_dir"] == "default" and os.path.dirname(path or "") == OPTIONS["log_dir"].default
        ledger = Ledger(options, group.parent_ledger if group else None)
        try:
            open_servers = servers(ledger) if servers else None
        except rlm_tools.ToolError as error:
            ledger.check()
            raise our_error(error) from error
        journal = None
        try:
            journal = self._open_journal(path, trajectory_id, append=go_on is not None, follow_links=not unnamed)
            run = Run(options, backend, tools, journal, recording, ledger=ledger, group=group, servers=open_servers)
            run.on_confirm = self._on_confirm
            return run
        except BaseException:  # an unreadable prompt, a sub-model without a key: nothing has begun
            if open_servers:
                open_servers.close()
            if journal is not None:
                journal.close()
            if journal is not None and journal.path is not None and go_on is None:
                os.unlink(journal.path)
            raise

    def _open_journal(self, path: str | None, trajectory_id: str, *, append: bool, follow_links: bool) -> Journal:
        """A run's journal, which redacts the keys that this process knows and calls the listeners."""
        options, environ = self.options, self.configuration.environ
        keys = [environ.get(name, "") for name in rlm_backends.key_variables()]
        keys += [*server_secrets(options.mcp, environ), options.api_key or "", options.snipara_api_key or ""]
        printer = _printer(options.verbose)
        line = None if options.verbose else printer  # a notebook's line tells what goes on between events, too
        return Journal(
            path,
            trajectory_id,
            secrets=keys,
            on_event=[printer, self._on_event],
            on_progress=[line, self._on_progress],
            append=append,
            follow_links=follow_links,
        )

    def _connected_servers(self, ledger: Ledger, group: LedgerGroup | None = None) -> Any:
        """The configured MCP servers, started, for one run; None where there are none."""
        if not self.options.mcp:
            return None
        servers = sibling("rlm_mcp").ServerSet(self.options.mcp, self.configuration.environ)
        self._check_server_names(servers.specs)
        self._loading(f"starting MCP servers: {', '.join(self.options.mcp)}")
        with self._lock:
            self._starting[servers] = ledger, group
        try:
            servers.connect(ledger.deadline)
        finally:
            with self._lock:
                del self._starting[servers]
        return servers

    def _check_server_names(self, servers: Iterable[str]) -> None:
        """ConfigError for a server whose name in Python the REPL has already."""
        taken = {*_REPL_NAMES, *(tool.name for tool in self.tools), *dir(builtins)}
        names = [*servers, "tools"]  # the last is that of the function that searches them
        if clash := [name for name in names if name in taken or names.count(name) > 1]:
            raise ConfigError(f"{clash[0]!r} is wanted for MCP, but the REPL has one", hint="rename one")

    def _recorded_servers(self, recording: JournalIndex, _: Ledger) -> Any:
        """A recorded run's MCP servers, which start at the first call that the journal lacks; None if it had none."""
        recorded = recording.starts["n0"].get("mcp")
        if not recorded:
            return None
        if not isinstance(recorded, dict):
            raise ConfigError("the journal's MCP servers cannot be read", hint="rlm logs lists the runs")
        servers = sibling("rlm_mcp").ServerSet(self.options.mcp or {}, self.configuration.environ)
        servers.restore(recorded)
        self._check_server_names(servers.tools)
        missing = sorted(set(servers.tools) - set(servers.specs))
        if missing and not recording.is_replay:
            message = f"the run had the MCP server {missing[0]!r}, which is not configured now"
            raise ConfigError(message, hint=f"write [mcp.{missing[0]}] in rlm.toml again")
        return servers

    # completing

    def completion(self, prompt: str, context: object = None, *, system: str | None = None) -> CompletionResult:
        """Answer `prompt` over `context`: text, bytes, plain data, a Path (a file or folder) or a Context.

        `system`: instructions that are added to the system prompt. Every failure raises an RLMError with the partial
        `result`; KeyboardInterrupt is raised once the journal is complete. TypeError for a context of another type.
        """
        return self._complete(prompt, context, system)

    def _complete(
        self, prompt: str, context: object, system: str | None = None, group: LedgerGroup | None = None
    ) -> CompletionResult:
        prompt = _clean_prompt(prompt)
        given = as_context(context, self.options.log_dir, self.options.encoding)
        if not self.options.persistent or group is not None:
            return self._begin(prompt, given, system, group)
        if not self._talking.acquire(blocking=False):
            hint = "wait for its answer, or use an RLM for each thread"
            raise ConfigError("this persistent RLM is answering another prompt", hint=hint)
        try:
            if self._conversation is not None:
                return self._go_on(prompt, given, system)
            return self._begin(prompt, self._last_context if given.value is None else given, system, None)
        finally:
            self._talking.release()

    def _begin(self, prompt: str, context: Context, system: str | None, group: LedgerGroup | None) -> CompletionResult:
        if self.backend is not None and self.options.environment == "local":
            rlm_sandbox.warm(self.options.allowed_imports or ())  # while this thread reads tools and loads HTTP
        schema = self._schema()
        servers = partial(self._connected_servers, group=group)
        run = self._new_run(new_id(), JournalIndex(), group=group, servers=servers)
        node = Node(run, context, instructions=system or "", schema=schema)
        try:
            return self._supervise(run, node, lambda: node.complete(prompt))
        finally:
            self._settle(run, node)

    def _schema(self) -> rlm_tools.Schema | None:
        try:
            return None if self.options.schema is None else rlm_tools.schema_of(self.options.schema)
        except rlm_tools.ToolError as error:
            hint = "a JSON Schema (an object), a dataclass or a pydantic model"
            raise ConfigError(f"schema: {error}", hint=error.hint or hint) from error

    def _go_on(self, prompt: str, context: Context, system: str | None) -> CompletionResult:
        """Answer a further prompt of a persistent RLM: the same REPL and messages, fresh limits."""
        assert self._conversation is not None
        run, node = self._conversation
        if (system or "") not in ("", node.instructions):
            raise ConfigError("`system` is settled by a conversation's first prompt", hint="start another RLM for it")
        run.ledger, run.tool_calls, run.last_text = Ledger(self.options), [], ""
        node.set_context(context)
        try:
            return self._supervise(run, node, lambda: node.complete(prompt))
        finally:
            self._settle(run, node)

    def _settle(self, run: Run, node: Node) -> None:
        """After a completion: a persistent RLM keeps its REPL unless that is gone, any other closes what it opened."""
        goes_on = self.options.persistent and run.group is None and not run.aborted and bool(node.messages)
        if self.options.persistent and run.group is None:
            self._conversation, self._last_context = ((run, node) if goes_on else None), node.context
        if not goes_on:
            run.close()

    def _supervise(self, run: Run, node: Node, work: Callable[[], Answer]) -> CompletionResult:
        """Do the root node's work on another thread, so that Ctrl-C finds the main thread only waiting."""
        global _last_result
        with self._lock:
            self._runs[run] = node
        try:
            answer = _on_own_thread(work, run, node)
        except RLMError as error:
            run.aborted = run.aborted or isinstance(error, SandboxError)  # a conversation cannot go on in that REPL
            error.result = _last_result = run.result(None)
            error.trajectory_id = run.journal.trajectory_id if run.journal.path else None
            raise
        except (KeyboardInterrupt, SystemExit):
            _last_result = run.result(None)
            raise
        finally:
            with self._lock:
                self._runs.pop(run, None)
        result = run.result(answer)
        assert result is not None, "an answered run has a result"
        if self.options.schema is not None:
            result = dataclasses.replace(result, value=node.typed_value)
        _last_result = result
        return result

    def stream(self, prompt: str, *, system: str | None = None) -> Iterator[str]:
        """The answer to a prompt, piece by piece as it arrives: one call of the model, without context, REPL or tools.

        `system` is the whole system prompt. Closing the iterator ends the call. Errors as of `completion`.
        """
        import queue

        prompt = _clean_prompt(prompt)
        run = self._new_run(new_id(), JournalIndex())
        tokens: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None ends them
        node = Node(run, Context(None))
        solve = partial(_stream_into, tokens.put, node, system)

        def work() -> None:
            try:
                self._supervise(run, node, lambda: node.complete(prompt, solve))
            finally:
                tokens.put(None)

        asking = spawn(work)
        try:
            while (token := tokens.get()) is not None:
                yield token
            asking.get()
        except (GeneratorExit, KeyboardInterrupt) as stop:
            run.abort(stop)
            if not asking.wait(0):  # it can no longer write the end itself
                node.end(None, KeyboardInterrupt())
            raise
        finally:
            run.close()

    def batch(
        self,
        prompts: Iterable[str | Mapping[str, object]],
        *,
        executor: Executor | None = None,
        max_workers: int = 8,
        one_ledger: bool = False,
        on_result: Callable[[int, CompletionResult | RLMError], None] | None = None,
    ) -> Iterator[CompletionResult | RLMError]:
        """The results of many prompts, in order; a prompt that fails yields its RLMError, and the others continue.

        A prompt is a `str` or a dict {"prompt": …, "context": …}. `executor`: any concurrent.futures.Executor, also one
        on other machines; without it, `max_workers` threads. `one_ledger`: the limits hold for the batch as a whole
        rather than for each prompt. `on_result(index, result)` is called as each one finishes.
        """
        if isinstance(prompts, (str, Mapping)):
            raise ConfigError(f"a batch takes a list of prompts, not a {type(prompts).__name__}", hint="[prompt, …]")
        if max_workers < 1:
            raise ConfigError(f"max_workers is {max_workers}", hint="at least 1")
        items = [item if isinstance(item, Mapping) else {"prompt": item} for item in prompts]
        confirmed = self._confirm_batch(1 if one_ledger else len(items), len(items))
        if executor is not None and one_ledger:
            raise ConfigError("one ledger for the batch needs one process", hint="leave executor out")
        group = LedgerGroup(Ledger(self.options) if one_ledger else None, confirmed)
        elsewhere = [] if executor is None else [executor.submit(_complete_item, self, item, group) for item in items]
        ended: list[BaseException] = []  # why no further item is begun

        def work(number: int) -> CompletionResult | RLMError:
            if ended:
                raise ended[0]
            try:
                given = elsewhere[number] if elsewhere else None
                result = _complete_item(self, items[number], group) if given is None else _result_of(given)
                if on_result is not None:
                    on_result(number, result)
                return result
            except BaseException as error:  # of the caller's own `on_result`: raised where the results are read
                ended.append(error)
                raise

        futures = [Future(partial(work, number)) for number in range(len(items))]
        spawn(lambda: run_futures(futures, max_workers))
        try:
            for future in futures:
                future.wait()
                if ended:
                    raise ended[0]
                yield future.get()
        except BaseException as reason:
            ended.append(reason)
            for item in elsewhere:
                item.cancel()
            self._abort(KeyboardInterrupt() if isinstance(reason, GeneratorExit) else reason, group)
            raise

    def _confirm_batch(self, ledgers: int, count: int) -> bool:
        """Whether a batch was confirmed as a whole, so that its rows need not be; LimitExceeded if it was not."""
        options = self.options
        if options.confirm_above is None or not count:
            return False
        backend = adapt(self.backend)
        each = at_most(options.token_budget, options.cost_budget_usd, backend, options)
        cost = None if each is None else each * ledgers
        forecast = Forecast(count, f"runs of {backend.model}", cost)
        require_confirmation(forecast, options.confirm_above, self._on_confirm)
        return True

    def variables(self) -> dict[str, tuple[str, int | None, str]]:
        """The variables of a persistent RLM's REPL: {name: (type, size, short repr)}."""
        with our_errors():
            return self._conversation[1].sandbox.names() if self._conversation else {}

    # going on from a journal

    def resume(self, trajectory_id: str = "", **raised_limits: Any) -> CompletionResult:
        """Continue a recorded run, named by a unique prefix of its id; without an id, the newest unfinished run.

        Recorded replies come from the journal, and recorded cells run again with the recorded answers of their
        sub-calls, so that nothing is paid for twice; then the run continues with live calls. `raised_limits`: options
        that replace the recorded ones. ConfigError if there is no such run, or its context, tools or
        server are no longer the same.
        """
        path = self._find_log(trajectory_id)
        events = read_journal(path)
        recording = JournalIndex(events)
        rlm = self._as_recorded(recording, raised_limits, path)
        root = recording.starts["n0"]
        context = rlm._recorded_context(root, path)
        rlm._require_recorded(root)
        schema = rlm._schema()
        servers = partial(rlm._recorded_servers, recording)
        run = rlm._new_run(root["trajectory_id"], recording, go_on=path, servers=servers)
        before = run.active_before = round(sibling("rlm_viz").active_ms(events))
        run.write("resume", node="n0", lines=len(recording.turns), limits=raised_limits, active_ms=before)
        node = Node(run, context, instructions=root.get("instructions") or "", schema=schema)
        try:
            result = rlm._run_again(node, path)
        finally:
            rlm._settle(run, node)
        if rlm._conversation is not None:
            with self._talking:
                self._end_conversation()
                self._conversation, rlm._conversation = rlm._conversation, None
        return result

    def replay(self, trajectory_id: str) -> Replayed:
        """Run a recorded run again without calling a model: replies come from the journal, and the code really runs."""
        path = self._find_log(trajectory_id)
        recording = JournalIndex(read_journal(path), is_replay=True)
        rlm = self._as_recorded(recording, {"backend": ReplayBackend(recording)}, path)
        root = recording.starts["n0"]
        context = rlm._recorded_context(root, path)
        run = rlm._new_run(root["trajectory_id"], recording, servers=partial(rlm._recorded_servers, recording))
        run.journal.path = path
        node = Node(run, context, instructions=root.get("instructions") or "", schema=rlm._schema())
        try:
            result = rlm._run_again(node, path)
        finally:
            run.close()
        recorded = recording.ends.get("n0", {}).get("response")
        if recorded is not None and recorded != result.response:
            run.divergence.append(f"the answer differs: recorded {shorten(recorded)}, now {shorten(result.response)}")
        return Replayed(result, run.divergence)

    def _run_again(self, node: Node, path: str) -> CompletionResult:
        """The recorded prompts of the journal at `path`, each with its context, the last of them to its end."""
        *earlier, last = starts = node.run.recording.prompts

        def work() -> Answer:
            for start, following in zip(earlier, starts[1:], strict=True):
                node.replay_turns(start["prompt"], following["turn"])
                node.set_context(self._recorded_context(following, path))
            return node.complete(last["prompt"])

        return self._supervise(node.run, node, work)

    def _find_log(self, trajectory_id: str) -> str:
        folder = self.options.log_dir or "./logs"
        viz = sibling("rlm_viz")
        if not trajectory_id:
            unfinished = (str(run["path"]) for run in viz.list_runs(folder) if run["status"] != "answered")
            newest = next((path for path in unfinished if not _is_stream(path)), None)
            if newest is None:
                raise ConfigError(f"no unfinished run in {folder}", hint="rlm logs lists the runs")
            return newest
        try:
            return str(viz.find_log(folder, trajectory_id))
        except ValueError as error:
            raise ConfigError(str(error), hint="rlm logs lists the runs") from None

    def _as_recorded(self, recording: JournalIndex, raised: Mapping[str, Any], path: str) -> RLM:
        """An RLM with the options of the recorded run, those given here and now on top."""
        root = recording.starts.get("n0")
        known = all(isinstance(start.get("prompt"), str) for start in recording.prompts)
        if (
            root is None
            or not recording.prompts
            or not known
            or not re.fullmatch(r"[\w-]+", str(root.get("trajectory_id")))
        ):
            raise ConfigError(f"{path} holds no run that could go on", hint="rlm logs lists the runs")
        if root.get("protocol") == "stream":
            message = f"{root['trajectory_id']} was a stream: one call, which is not resumed or replayed"
            raise ConfigError(message, hint="ask again: rlm --stream PROMPT")
        limits = {**(root.get("limits") or {}), **recording.raised}
        recorded = {name: value for name, value in limits.items() if name in LIMITS}
        recorded.update({name: root.get(name) for name in ("model", "sub_model", "schema", "params", "sub_params")})
        recorded["prompt"] = root.get("prompt_file") or (
            root.get("profile") if root.get("profile") in _PROFILES else None
        )
        recorded.update(show_below=root.get("show_below"), confirm_above=self._confirm_above(root.get("confirm_above")))
        if root.get("protocol") == "text":  # "tools" is where a run begins that may yet change to text
            recorded["protocol"] = "text"
        for name, strict in (("environment", "docker"), ("docker_mount", "none"), ("require", "full")):
            if root.get(name) == strict:  # a journal may hold a run in, never let it out
                recorded[name] = strict
        recorded["allowed_paths"] = self._recorded_paths(root.get("allowed_paths"))
        options = {k: v for k, v in {**recorded, **self._given, **raised}.items() if v is not None}
        clone = RLM(
            **options,
            config=self._config,
            on_event=self._on_event,
            on_progress=self._on_progress,
            on_confirm=self._on_confirm,
        )
        clone._lock, clone._runs, clone._starting = self._lock, self._runs, self._starting  # `stop` ends its runs, too
        clone._given.setdefault("log_dir", os.path.dirname(path))
        clone.options = dataclasses.replace(clone.options, log_dir=os.path.dirname(path))
        return clone

    def _confirm_above(self, recorded: object) -> object:
        """The smaller of a recorded run's `confirm_above` and that of now: a journal may ask more often, not less."""
        now = self.options.confirm_above
        return now if now is not None and isinstance(recorded, (int, float)) and recorded > now else recorded

    def _recorded_paths(self, recorded: object) -> list[str] | None:
        """The folders of a recorded run where they are narrower than those of now."""
        if not isinstance(recorded, list) or not all(isinstance(path, str) for path in recorded):
            return None
        now = [os.path.realpath(path) for path in self.options.allowed_paths or [os.getcwd()]]
        return recorded if all(any(rlm_tools.is_under(path, top) for top in now) for path in recorded) else None

    def _require_recorded(self, root: Event) -> None:
        """ConfigError where a run would go on at another server, or without a tool that it had."""
        before = root.get("base_url")
        try:
            now = _without_login(adapt(self.backend).base_url)
        except RLMError as error:
            if not before or self.options.base_url is not None:
                raise
            message = f"the run was recorded with {before}, and that is not taken from a journal"
            raise ConfigError(message, hint=f"if it is to go on there: --base-url {before}") from error
        if before and now and before != now and self.options.base_url is None:
            message = f"the run was recorded with {before}, and would go on with {now}"
            raise ConfigError(message, hint=f"if that is meant: --base-url {now}")
        missing = {name for name in root.get("tools") or [] if isinstance(name, str)} - {t.name for t in self.tools}
        if missing:
            message = f"the run had a tool {min(missing)!r}, which is not there now"
            raise ConfigError(message, hint="give it again: --tools FILE")

    def _recorded_context(self, root: Event, path: str) -> Context:
        """The context of a recorded run, from its files or the copy beside the journal; ConfigError if it changed."""
        recorded = root.get("context")
        if not recorded:
            return Context(None)
        source = recorded.get("source")
        if _is_rereadable(source):
            context = Context(_read_again(source, path), source)
        else:
            context = Context(_load_context(_context_path(path, root.get("turn") or 0), recorded), source)
        if _digest(context.value)[0] != recorded.get("sha256"):
            names = ", ".join(source["paths"][:3]) if _is_rereadable(source) else "the kept copy"
            raise ConfigError(
                f"the context has changed since the run was recorded: {names}", hint="restore it, or start a new run"
            )
        return context


class Backend(Protocol):
    """What the loop uses of a model. `rlm_backends.HTTPBackend` is one.

    An object that you give as `backend` needs only `complete`, and of its arguments only those up to `cancel`; the
    other members are used where it has them.
    """

    model: str  # the model's name
    provider: str  # the provider's name
    base_url: str  # where requests go
    window: int | None  # tokens of prompt and answer together; None: unknown
    max_output: int | None  # tokens that the model may answer with; None: unknown
    parameters: float | None  # billions of parameters, which choose the profile; None: unknown
    supports_tools: bool  # whether it takes tools; else the loop uses the protocol text
    price_known: bool  # whether its replies can have a cost

    def complete(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        max_tokens: int | None,
        on_text: Callable[[str], None] | None,
        deadline: float | None,
        cancel: threading.Event | None,
        response_schema: Mapping[str, object] | None,
        params: Mapping[str, object] | None,
        defaults: Mapping[str, object] | None,
        on_progress: Callable[[int, int], None] | None,
    ) -> object:
        """Ask the model, and return a `Reply`, an object with some of its attributes, or the text of the answer.

        `deadline` is a time of `time.monotonic()`. Stop when `cancel` is set. An exception fails the call.
        """

    def with_model(self, model: str) -> Backend:
        """The backend of another model, for `sub_model` and `llm_query(model=…)`; without this method, itself."""

    def inspect(self) -> None:
        """Find out `window` and `parameters`, before the first call."""

    def close(self) -> None:
        """Close its connections."""


def adapt(backend: object) -> Backend:
    """A caller's backend object as the loop uses it; one of ours as it is."""
    return backend if isinstance(backend, rlm_backends.HTTPBackend) else CallersBackend(backend)


class CallersBackend:
    """A backend object that a caller gave. It must have `complete` and may have any other member of `Backend`."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._read_attributes()

    def _read_attributes(self) -> None:
        read = partial(getattr, self._given)
        self.model: str = read("model", None) or ""
        self.provider: str = read("provider", None) or ""
        self.base_url: str = read("base_url", None) or ""
        self.window: int | None = read("window", None)
        self.max_output: int | None = read("max_output", None)
        self.parameters: float | None = read("parameters", None)
        self.supports_tools: bool = read("supports_tools", True)
        self.price_known: bool = read("price_known", False)

    def complete(
        self,
        messages: list[Message],
        *,
        response_schema: Mapping[str, object] | None,
        params: Mapping[str, object] | None,
        defaults: Mapping[str, object] | None,
        on_progress: Callable[[int, int], None] | None,
        **documented: object,
    ) -> object:
        """The caller's reply, without the options that only our own backends take."""
        return self._given.complete(messages, **documented)

    def with_model(self, model: str) -> Backend:
        return adapt(self._given.with_model(model)) if hasattr(self._given, "with_model") else self

    def inspect(self) -> None:
        if hasattr(self._given, "inspect"):
            self._given.inspect()
            self._read_attributes()

    def close(self) -> None:
        if hasattr(self._given, "close"):
            self._given.close()


def window_of(backend: Backend) -> int:
    """The model's window in tokens, or a common size where it is not known."""
    return backend.window or _UNKNOWN_WINDOW


def connect(configuration: Configuration, options: Options, progress: Callable[[str], None] | None = None) -> object:
    """The backend that the options name. Without a model, a base URL and a key: a model server that answers here.

    ConfigError with what was looked for when there is none of these.
    """
    if not isinstance(options.backend, str):
        return options.backend
    named = partial(
        rlm_backends.connect,
        api_key=options.api_key,
        environ=configuration.environ,
        max_retries=options.max_retries,
        max_parallel=options.max_parallel,
        prices=options.prices,
        cache=options.cache,
        progress=progress,
    )
    backend = "auto" if options.backend == "litellm" else options.backend
    try:
        return named(options.model, backend, base_url=options.base_url)
    except rlm_backends.BackendError as error:
        if options.model is None and options.base_url is None and backend == "auto":
            for provider, url, models in rlm_backends.local_servers():
                if models:
                    return named(models[0], provider, base_url=url)
        raise our_error(error) from error


def gather_tools(options: Options) -> list[Tool]:
    """Built-in tools, those given, plug-ins and Snipara's; ConfigError that names the one that cannot be used."""
    with our_errors():
        logs = [options.log_dir] if options.log_dir else []  # a search would find its own question in there
        tools = rlm_tools.file_tools(options.allowed_paths, exclude=logs)
        for source in options.tools or []:
            tools += [source] if isinstance(source, Tool) else rlm_tools.load_tools(source)
        tools += rlm_tools.entry_point_tools()
        tools += rlm_tools.snipara_tools(
            options.snipara_api_key,
            options.snipara_project_slug,
            options.snipara_api_url,
            options.memory_enabled,
            post=rlm_backends.post,
        )
    seen: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in seen or tool.name in _REPL_NAMES:
            owner = seen[tool.name].source if tool.name in seen else "the REPL itself"
            raise ConfigError(f"two tools are called {tool.name!r}: of {owner} and of {tool.source}", hint="rename one")
        seen[tool.name] = tool
    return tools


_REPL_NAMES = {
    "execute_code",
    "context",
    "llm_query",
    "llm_query_batched",
    "rlm_query",
    "rlm_query_batched",
    "chunks",
    "map_query",
    "budget",
    "FINAL",
    "FINAL_VAR",
    "SHOW_VARS",
}


def check_prices(options: Options, backend: Backend) -> None:
    """ConfigError for a cost budget where the price of one of the run's models is unknown: it would never bind."""
    if options.cost_budget_usd is None:
        return
    own = None if backend.price_known else backend.model or "the backend's model"
    for model in filter(None, {own, options.sub_model}):
        if price_of(backend, options, model)(1, 1) is None:
            raise ConfigError(
                f"the price of {model!r} is not known, so cost_budget_usd cannot hold",
                hint=f'give it (USD per million tokens): prices = {{"{model}" = [1.0, 2.0]}}',
            )


def price_of(backend: Backend, options: Options, model: str | None = None) -> Price:
    """What a call costs, by its tokens. `model`: another one of the same provider."""

    def price(tokens_in: int, tokens_out: int) -> float | None:
        usage = {"input": tokens_in, "output": tokens_out}
        return rlm_backends.cost_of(model or backend.model, usage, options.prices, backend.provider)

    return price


def at_most(tokens: int, dollars: float | None, backend: Backend, options: Options) -> float | None:
    """The most that so many tokens cost, in or out, of the dearer of a run's two models; None: a price is not known.

    `dollars`: the budget, which the cost never passes.
    """
    prices = [price_of(backend, options, model) for model in {None, options.sub_model}]
    costs = [price(*amounts) for price in prices for amounts in ((tokens, 0), (0, tokens))]
    known = [cost for cost in costs if cost is not None]
    return min(max(known), math.inf if dollars is None else dollars) if len(known) == len(costs) else None


def require_confirmation(forecast: Forecast, above: float, on_confirm: Callable[[Forecast], bool] | None) -> None:
    """LimitExceeded for what may cost more than `above`, or nobody knows how much, unless on_confirm returns True."""
    if forecast.cost_usd is not None and forecast.cost_usd <= above:
        return
    try:
        confirmed = on_confirm is not None and on_confirm(forecast) is True
    except Exception as error:
        raise RLMError(
            f"on_confirm raised {type(error).__name__}: {error}", hint="fix on_confirm, then resume the run"
        ) from error
    if not confirmed:
        raise forecast.refusal(above)


def _on_own_thread(work: Callable[[], Answer], run: Run, node: Node) -> Answer:
    """The work's answer. On the main thread it runs on another one: Ctrl-C then stops the run, tidily, at once.

    A persistent run is given a moment to stop by itself, so that its REPL can be kept.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    later = Future(work)
    try:
        threading.Thread(target=later.run, daemon=True).start()  # not `spawn`: Ctrl-C may come before it returns
        later.wait()
    except KeyboardInterrupt as interrupt:
        with ignore_sigint():
            if run.options.persistent:
                run.stop(interrupt)
            if not (run.options.persistent and later.wait(_STOP_SECONDS)):
                run.abort(interrupt)
                node.end(None, interrupt)
                run.close()
        raise
    return later.get()


@contextlib.contextmanager
def ignore_sigint() -> Iterator[None]:
    """A second Ctrl-C must not cut the tidying up short."""
    import signal

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stream_into(put: Callable[[str], None], node: Node, system: str | None, prompt: str) -> Answer:
    """The answer of one call without tools, journalled like any other; `put` gets it piece by piece."""
    run, heard = node.run, False
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    node.messages, node.turn, node.protocol = messages, 1, "stream"
    event_fields: Event = {"node": "n0", "kind": "turn", "turn": 1, "prompt": [dict(m) for m in messages]}
    event_fields.update(depth=0, parent=None)

    def hear(delta: str) -> None:
        nonlocal heard
        heard = True
        put(delta)

    node._journal_start(prompt, True, None)
    most = _turn_output(run.backend, run.profile)
    with our_errors():
        text = run.call(node, run.backend, messages, event_fields, most=most, on_text=hear).text
    if text and not heard:  # a backend object need not know of on_text
        put(text)
    return Answer(text)


ITEM_KEYS = ("prompt", "context")


def _complete_item(rlm: RLM, item: Mapping[str, object], group: LedgerGroup) -> CompletionResult | RLMError:
    """One item of a batch: its result, or the error in its place."""
    try:
        if unknown := [str(key) for key in item if key not in ITEM_KEYS]:
            raise ConfigError(f"unknown key {unknown[0]!r} in a batch item", hint=suggestion(unknown[0], ITEM_KEYS))
        prompt, context = item["prompt"], as_context(item.get("context"), rlm.options.log_dir, rlm.options.encoding)
        prompt = _clean_prompt(prompt)
    except RLMError as error:
        return error
    except (KeyError, TypeError) as error:
        return ConfigError(f"not a batch item: {error}", hint='a str, or {"prompt": …, "context": …}')
    try:
        return rlm._complete(prompt, context, group=group)
    except RLMError as error:
        return error


def _result_of(item: concurrent.futures.Future[CompletionResult | RLMError]) -> CompletionResult | RLMError:
    """What somebody's executor made of an item, perhaps on another machine."""
    try:
        return item.result()
    except Exception as error:  # a worker that died, or what could not be pickled: the executor's own words
        return RLMError(f"the executor lost this item: {type(error).__name__}: {error}")


def _clean_prompt(prompt: object) -> str:
    """The prompt as text that can be sent: a lone surrogate, as a terminal may hand it over, becomes U+FFFD."""
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt must be a str, not {type(prompt).__name__}")
    if not prompt.strip():
        raise ConfigError("the prompt is empty", hint='rlm "which errors are in it?" -c big.log')
    return prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _printer(verbose: bool) -> Callable[[Event], None] | None:
    """A listener that prints each step to stderr, for `verbose=True`; in a notebook one that keeps a line."""
    if not verbose:
        line: Callable[[Event], None] | None = sibling("rlm_viz").kernel_line() if "ipykernel" in sys.modules else None
        return line

    step = sibling("rlm_viz").step

    def show(event: Event) -> None:
        if line := step(event):
            print(line, file=sys.stderr)

    return show


# --- a run: what all nodes of one tree share ---------------------------------------------------------------------


class Answer(NamedTuple):
    """How a node ended: its text, FINAL's Python data where `given`; `forced`: asked for when no turn was left."""

    text: str
    value: object = None
    given: bool = False
    forced: bool = False


@dataclass(frozen=True)
class CompletionResult:
    """The outcome of a completion. `str(result)` is the response; results render in notebooks."""

    response: str  # the answer as text; of a partial result the best text so far, or ""
    value: Any  # the answer as Python data: what code gave to FINAL, or what `schema` asks for; else None
    trajectory_id: str  # the run's id, for `resume`, `replay` and the commands
    total_calls: int  # calls of a model, sub-calls and children included
    total_tokens: int  # input and output tokens of all calls
    usage: dict[str, int]  # those tokens as input, output, and of these cached, cache_write, reasoning
    cost_usd: float | None  # US dollars for all calls; None: the price of one is unknown
    depth_reached: int  # how deep the calls went: 0 is the run itself, 1 its sub-calls and children
    tool_calls: list[dict[str, Any]]  # cells and tool calls in order: name, arguments, is_error and more
    duration_ms: int  # time that the run was active, from its start or from where it was resumed
    status: str  # "answered", or "partial": on an error, this is what the run had until then
    log: str | None  # path of the journal; None: there is none
    model: str = ""  # the main model's name
    forced: bool = False  # the answer comes from the last call, without tools, after the turns or errors allowed

    def __str__(self) -> str:
        return self.response

    def events(self) -> list[Event]:
        """The events of the journal; an empty list without one."""
        return read_journal(self.log) if self.log and os.path.exists(self.log) else []

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": self.response, "text/markdown": self.response, "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        """The response, the figures and, folded, the first rows of the call tree; escaped, without scripts."""
        return str(sibling("rlm_viz").card(vars(self), self.events()))

    def show(self) -> str:
        """Write the run's page next to its journal, display it in the notebook or the browser, and return its path.

        ConfigError if the run has no journal.
        """
        if not self.log:
            raise ConfigError("this run has no log, so there is nothing to show", hint="give log_dir a folder")
        return str(sibling("rlm_viz").show(self.log))


def sibling(name: str) -> Any:
    """One of our modules that few runs need, imported now."""
    import importlib

    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


class Replayed(NamedTuple):
    """The outcome of a replay."""

    result: CompletionResult  # of the run as it went now
    divergence: list[str]  # where it differed from the recording, a sentence for each place; empty if nowhere


class SubcallError(RuntimeError):
    """Raised inside the model's own code: some prompts of a batch failed, or a sub-call gave no usable answer.

    Of a batch, the exception there has `.results` (None for what failed) and `.errors` (None for what did not), in the
    order of the prompts. Of one answer that was cut off, refused or does not fit the schema, `.partial` has the text.
    """

    def __init__(self, message: str, **cell_data: Any) -> None:
        super().__init__(message)
        self.cell_data = cell_data


class Run:
    """One tree of nodes: its ledger, journal, recording, backends and sandboxes."""

    def __init__(
        self,
        options: Options,
        backend: Backend,
        tools: list[Tool],
        journal: Journal,
        recording: JournalIndex,
        *,
        ledger: Ledger,
        group: LedgerGroup | None = None,
        servers: Any = None,  # a rlm_mcp.ServerSet
    ) -> None:
        self.servers = servers
        self.profile = profile_for(backend, options.prompt)
        self.custom_prompt = "" if options.prompt in (None, *_PROFILES) else read_prompt(str(options.prompt))
        self.options = options
        self.backend = backend
        self.tools = tools
        self.known_names = {"execute_code", *_REPL_NAMES, *(tool.name for tool in tools)} - {"context"}
        self.group = group
        schemas = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools]
        self.tool_schemas = [_EXECUTE_CODE, *schemas]
        self.tool_tokens = rlm_backends.estimate_tokens([], self.tool_schemas)
        self.journal = journal
        self.recording = recording
        self.ledger = ledger
        self.active_before = 0  # milliseconds that the run was active before the ledger's time began
        self.protocol = options.protocol
        self.tool_calls: list[ToolCall] = []
        self.divergence: list[str] = []
        self.aborted = False
        self._keeper: Future[None] | None = None  # a context that is being kept for a resume
        self.last_text = ""  # the root's last words: the partial answer, should the run be stopped
        self.on_confirm: Callable[[Forecast], bool] | None = None
        self._confirming = threading.Lock()
        self._slots = threading.BoundedSemaphore(options.max_parallel)
        self._lock = threading.Lock()
        self._backends: dict[str, Backend] = {}
        self._sandboxes: set[rlm_sandbox.Sandbox] = set()
        self._in_flight: dict[int, Event] = {}
        numbers = [re.sub(r"\D", "", str(event.get("call_id"))) for event in recording.calls]
        self._call_numbers = count(1 + max((int(number) for number in numbers if number), default=0))
        self._node_numbers = count(max(1, len(recording.starts)))
        self.subcall_characters = self._subcall_characters()
        self._enter_recorded()

    def _subcall_characters(self) -> int:
        """What `chunks` and `map_query` put into a sub-call: as recorded, since it decides which calls code makes."""
        recorded = self.recording.starts.get("n0", {}).get("subcall_characters")
        if isinstance(recorded, int) and 0 < recorded <= _SUBCALL_CHARACTERS:
            return recorded
        with our_errors():
            backend = self.backend if self.recording.is_replay else self.backend_for(self.options.sub_model)
        if backend is not self.backend:
            backend.inspect()
        return subcall_characters(backend, self.profile)

    def _enter_recorded(self) -> None:
        """Count the newest prompt's recorded calls, which are paid for, against the limits, before they are served."""
        recording, ledger = self.recording, self.ledger
        for event in recording.new_calls:
            ledger.spend(event.get("token_usage") or {}, event.get("cost_usd"))
            ledger.depth = max(ledger.depth, event.get("depth") or 0)
        ledger.subcalls = sum(e["kind"] == "sub" for e in recording.new_calls) + len(recording.new_children)

    # ids and things kept

    def node_id(self, key: str | None) -> str:
        """The id of the root, or of the child with that key: the recorded one where there is one."""
        return "n0" if key is None else self.recording.children.get(key) or f"n{next(self._node_numbers)}"

    def add_tool_call(self, name: str, arguments: object, node: Node, *, is_error: bool) -> None:
        """Note a tool call for the result."""
        self.tool_calls.append({"name": name, "arguments": arguments, "node": node.id, "is_error": is_error})

    def diverged(self, node: Node, text: str) -> None:
        """Record that a cell's second run differs from the journal; the run goes on."""
        self.divergence.append(text)
        self.write("resume", depth=node.depth, node=node.id, divergence=text, active_ms=self.active_ms())

    def backend_for(self, model: str | None) -> Backend:
        """The backend of a model of the run: its own, or one for the name that llm_query was given."""
        if model is None or model == self.backend.model:
            return self.backend
        with self._lock:
            if model not in self._backends:
                made = self.backend.with_model(model)
                if made is not self.backend:
                    check_prices(self.options, made)
                self._backends[model] = made
            return self._backends[model]

    def price(self, backend: Backend) -> Price:
        return price_of(backend, self.options)

    def confirm(self, forecast: Callable[[], Forecast]) -> None:
        """Return if the calls are cheap enough, or are confirmed; else stop the tree before any of them is sent."""
        above = self.options.confirm_above
        if above is None or self.recording.is_replay or (self.group is not None and self.group.is_confirmed):
            return
        with self._confirming:  # one question at a time: the other threads wait for the answer
            self.ledger.check()
            try:
                require_confirmation(forecast(), above, self.on_confirm)
            except BaseException as error:  # KeyboardInterrupt or SystemExit of on_confirm ends the run, not the cell
                raise self.ledger.fail(error) from error.__cause__

    # sandboxes

    def sandbox(self, context: Context) -> rlm_sandbox.Sandbox:
        """A new REPL with `context` in it."""
        with our_errors():
            sandbox = make_sandbox(self.options)
            with self._lock:
                self._sandboxes.add(sandbox)
            if self.aborted:  # while it started: nobody else knows of it
                self.close_sandbox(sandbox)
                self.ledger.check()
            self.hand_over(context, sandbox)
        return sandbox

    def hand_over(self, context: Context, sandbox: rlm_sandbox.Sandbox) -> None:
        """Set the variable `context` and, for a small model, what it would parse from it."""
        for name, value in self.variables(context).items():
            sandbox.set(name, value)

    def start_for(self, context: Context) -> str:
        """How code can begin with a context: a variable that is ready, or a line that makes one."""
        return (ready_in(context) if self.profile.guides else "") or use_of(context)

    def show_below(self, context: Context) -> int:
        """Characters up to which a context is shown whole: for a small model not data, with which it would reckon."""
        by_default = self.options.show_below == self.profile.show_below
        return 0 if self.profile.guides and by_default and context.is_data else self.options.show_below

    def variables(self, context: Context) -> dict[str, Any]:
        return {"context": context.value, **(context.parsed if self.profile.guides else {})}

    def keep_context(self, context: Context, turn: int) -> None:
        """Keep a context given by value beside the journal; a large one meanwhile, until the first reply is there."""
        path, size = self.journal.path, context.event_fields["bytes"] if context.event_fields else 0
        by_value = size <= _SAVED_CONTEXT and not _is_rereadable(context.source)
        if path is None or not by_value or not self.options.save_context:
            return
        save = partial(_save_context, _context_path(path, turn), context.value)
        if size > _SAVED_AT_ONCE:
            self._keeper = spawn(save)
        else:
            save()

    def close_sandbox(self, sandbox: rlm_sandbox.Sandbox) -> None:
        with self._lock:
            self._sandboxes.discard(sandbox)
        given: object = self.options.environment
        if sandbox is not given:  # one that the caller gave is the caller's to close
            sandbox.close()

    # calling a tool, and a model

    def run_cancellable(self, work: Callable[[], T]) -> T:
        """A tool's result. Its thread cannot be stopped: it is abandoned when the run is stopped or its time is up."""
        later = spawn(work)
        while not later.wait(0.1):
            self.ledger.check()
        return later.get()

    def call(
        self,
        node: Node,
        backend: Backend,
        messages: list[Message],
        event_fields: Event,
        *,
        most: int,
        read: Callable[[rlm_backends.Reply], Event] | None = None,
        **request: Any,
    ) -> rlm_backends.Reply:
        """One paid call: room is reserved, the model asked, the ledger settled, the reply journalled.

        `event_fields`: what the `call` line carries besides the reply; `read` gives more of them, from the reply.
        `most`: tokens of output. `request`: tools, on_text, defaults (request parameters), response_schema.
        """
        most = min(most, _whole_number(self.params_for(event_fields).get("max_output_tokens")) or most)
        size = tokens_of(messages) + (self.tool_tokens if request.get("tools") else 0)
        reservation = self.ledger.reserve(size, most, self.price(backend))
        request["max_tokens"] = self._max_tokens(backend, reservation, most)
        with self._in_flight_call(event_fields, reservation) as in_flight:
            reply = self._ask(node, backend, messages, size, in_flight, request)
        cost = self._settle(backend, reservation, reply)
        self.ledger.depth = max(self.ledger.depth, event_fields["depth"])
        fields = read(reply) if read else {}
        self._journal_call(node, {**event_fields, **fields}, in_flight, reply, cost)
        return reply

    @contextlib.contextmanager
    def _in_flight_call(self, event_fields: Event, reservation: Reservation) -> Iterator[Event]:
        """List a call as in flight while it lasts; one that ends without a reply gives its reservation back."""
        in_flight = {**event_fields, "started": time.monotonic()}
        with self._lock:
            self._in_flight[id(in_flight)] = in_flight
        try:
            yield in_flight
        except BaseException:
            self.ledger.release(reservation)
            raise
        finally:
            with self._lock:
                self._in_flight.pop(id(in_flight), None)

    def _ask(
        self,
        node: Node,
        backend: Backend,
        messages: list[Message],
        size: int,
        in_flight: Event,
        request: dict[str, Any],
    ) -> rlm_backends.Reply:
        """The model's reply, as soon as a slot is free; one that repeats itself is ended. A failure is journalled."""
        on_text = request.get("on_text")
        if (on_text is not None or self.profile.guides) and node.protocol != "stream":
            on_text = RepetitionWatch(on_text, patient=not self.profile.guides)
        try:
            with self._slots:
                self.ledger.check()
                self.journal.progress("asking", **call_site(in_flight))
                raw = backend.complete(messages, **{**self._request(in_flight), **request, "on_text": on_text})
            return normal_reply(raw, size, backend.model)
        except Repeating as repeating:
            reply = normal_reply(repeating.text, size, backend.model)
            cost = self.price(backend)(reply.usage["input"], len(repeating.received) // _CHARACTERS_PER_TOKEN)
            return reply._replace(stop_reason="repetition", cost_usd=cost)
        except Exception as error:
            is_usual = isinstance(error, rlm_backends.BackendError)
            if isinstance(error, RLMError) or not (is_usual or isinstance(backend, CallersBackend)):
                raise
            self._abandon(in_flight, str(error))
            self.ledger.check()
            if is_usual:
                raise
            raise ProviderError(f"the backend raised {type(error).__name__}: {error}") from error

    def _request(self, in_flight: Event) -> dict[str, Any]:
        """What every request carries, before the options of the call."""
        place = call_site(in_flight)

        def on_progress(processed: int, total: int) -> None:
            self.journal.progress("reading", processed=processed, total=total, **place)

        return {
            "tools": None,
            "response_schema": None,
            "deadline": self.ledger.deadline,
            "cancel": self.ledger.cancel,
            "params": self.params_for(in_flight),
            "defaults": self.profile.defaults,
            "on_progress": on_progress if self.journal.on_progress else None,
        }

    def params_for(self, event_fields: Event) -> Mapping[str, object]:
        """The caller's request parameters for a call: those of sub-calls are `sub_params`, where they are given."""
        of_sub = self.options.sub_params if event_fields["kind"] == "sub" else None
        return (self.options.params if of_sub is None else of_sub) or {}

    def _max_tokens(self, backend: Backend, reservation: Reservation, most: int) -> int | None:
        """The limit to ask for; none where the model's own maximum is unknown and far less than what is left."""
        unknown = backend.max_output is None and most == _TURN_OUTPUT
        plenty = self.options.cost_budget_usd is None and self.ledger.left()["tokens"] > 4 * most
        return None if unknown and plenty else reservation.output

    def _settle(self, backend: Backend, reservation: Reservation, reply: rlm_backends.Reply) -> float | None:
        """Replace a call's reservation by its real usage; returns its cost."""
        cost, prices = reply.cost_usd, self.options.prices
        if cost is None and isinstance(backend, CallersBackend):  # ours has looked it up already
            cost = rlm_backends.cost_of(reply.model, reply.usage, prices)
        saved = rlm_backends.saved_by_cache(reply.model, reply.usage, prices)
        self.ledger.settle(reservation, reply.usage, cost, saved or 0.0)
        return cost

    def _journal_call(
        self, node: Node, event_fields: Event, in_flight: Event, reply: rlm_backends.Reply, cost: float | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.get()  # a paid call can be resumed only with its context
        call_id = f"c{next(self._call_numbers)}"
        fields = dict(event_fields)
        depth, parent = fields.pop("depth"), fields.pop("parent")
        if reply.raw is not None:
            fields["raw"] = reply.raw
        line = self.write(
            "call",
            call_id=call_id,
            parent=parent,
            depth=depth,
            **fields,
            response=reply.text,
            tool_calls=reply.tool_calls,
            token_usage=reply.usage,
            cost_usd=cost,
            duration_ms=_ms_since(in_flight["started"]),
            model=reply.model,
            stop_reason=reply.stop_reason,
            attempts=reply.attempts,
            left={**self.ledger.left(), "iterations": node.iterations_left()},
        )
        if event_fields["kind"] == "turn":
            node.call_id, node.newest = call_id, line

    def write(self, event: str, **fields: Any) -> Event:
        """Journal an event. A journal that cannot be written stops the tree: unrecorded work would be lost."""
        try:
            return self.journal.write(event, **fields)
        except RLMError as error:
            raise self.ledger.fail(error) from error

    def active_ms(self) -> int:
        """How long the run has been active, the time before a resumption or an earlier prompt included."""
        return self.active_before + _ms_since(self.ledger.started)

    def _abandon(self, in_flight: Event, reason: str) -> None:
        fields = {k: in_flight[k] for k in ("kind", "node", "key", "turn", "cell") if k in in_flight}
        self.write(
            "interrupted",
            parent=in_flight["parent"],
            depth=in_flight["depth"],
            **fields,
            error=reason,
            duration_ms=_ms_since(in_flight["started"]),
        )

    def stop(self, reason: BaseException) -> None:
        """Stop every thread and cell of the tree gently: variables are kept."""
        self.ledger.fail(reason)
        with self._lock:
            sandboxes = list(self._sandboxes)
        for sandbox in sandboxes:
            if hasattr(sandbox, "interrupt"):
                sandbox.interrupt()
        if self.servers:
            self.servers.interrupt()

    def abort(self, reason: BaseException) -> None:
        """Ctrl-C: stop every thread and sandbox of the tree now, and leave a journal that can be resumed."""
        self.aborted = True
        self.journal.reject_other_threads()
        self.ledger.fail(reason)
        with self._lock:
            sandboxes, flights = list(self._sandboxes), list(self._in_flight.values())
            self._in_flight.clear()
        for sandbox in sandboxes:
            sandbox.kill() if hasattr(sandbox, "kill") else sandbox.close()
        if self.servers:
            self.servers.interrupt()
        with contextlib.suppress(RLMError):
            for in_flight in flights:
                self._abandon(in_flight, "interrupted")

    def close(self) -> None:
        """Close everything that is still open, the journal last."""
        with self._lock:
            sandboxes = list(self._sandboxes)
            self._sandboxes.clear()
        for sandbox in sandboxes:
            sandbox.close()
        if self.servers:
            self.servers.close()
        self.journal.close()

    def totals(self) -> dict[str, object]:
        """The tree's totals, as `end` carries them."""
        ledger = self.ledger
        return {
            "calls": ledger.calls,
            "tokens": ledger.tokens,
            "usage": dict(ledger.usage),
            "cost_usd": ledger.cost_usd,
            "saved_usd": round(ledger.saved, 9),
            "tool_calls": len(self.tool_calls),
            "depth_reached": ledger.depth,
            "duration_ms": _ms_since(ledger.started),
        }

    def result(self, answer: Answer | None) -> CompletionResult | None:
        """The result so far; None before the first call."""
        ledger = self.ledger
        if answer is None and not ledger.calls:
            return None
        return CompletionResult(
            response=answer.text if answer else self.last_text,
            value=answer.value if answer else None,
            trajectory_id=self.journal.trajectory_id,
            total_calls=ledger.calls,
            total_tokens=ledger.tokens,
            usage=dict(ledger.usage),
            cost_usd=ledger.cost_usd,
            depth_reached=ledger.depth,
            tool_calls=list(self.tool_calls),
            duration_ms=_ms_since(ledger.started),
            status="answered" if answer else "partial",
            log=self.journal.path,
            model=self.backend.model,
            forced=answer.forced if answer else False,
        )


def normal_reply(raw: object, size: int, model: str) -> rlm_backends.Reply:
    """A reply with every field in its type, whatever a backend object of the caller's returned."""
    text = getattr(raw, "text", raw if isinstance(raw, str) else "") or ""
    calls: list[ToolCall] = []
    given = islice(getattr(raw, "tool_calls", None) or [], rlm_backends.MOST_CALLS)
    for number, call in enumerate(given, 1):
        arguments = call.get("arguments", {})
        if isinstance(arguments, str) and (read := read_arguments(arguments)) is not None:
            arguments = read
        call_id = str(call.get("id") or "")
        if not call_id or any(call_id == other["id"] for other in calls):  # results are kept by their ids
            call_id = f"call_{number}"
        calls.append({"id": call_id, "name": str(call.get("name") or ""), "arguments": arguments})
    usage = dict(getattr(raw, "usage", None) or {})
    if not isinstance(usage.get("input"), int) or not isinstance(usage.get("output"), int):
        usage = {"input": size, "output": rlm_backends.estimate_tokens([{"content": text}]), "estimated": True}
    return rlm_backends.Reply(
        text=text,
        tool_calls=calls,
        usage={**dict.fromkeys(_USAGE, 0), **usage},
        stop_reason=getattr(raw, "stop_reason", None) or ("tool_calls" if calls else "stop"),
        model=getattr(raw, "model", None) or model,
        cost_usd=getattr(raw, "cost_usd", None),
        raw=getattr(raw, "raw", None),
        attempts=getattr(raw, "attempts", 1),
    )


def call_site(event_fields: Event) -> Event:
    return {name: event_fields[name] for name in ("node", "kind", "depth")}


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


class Repeating(Exception):
    """A reply that says the same again and again; `text` says it once, `received` is all that had come."""

    def __init__(self, text: str, received: str) -> None:
        super().__init__("the reply repeats itself")
        self.text = text
        self.received = received


class RepetitionWatch:
    """Hands on a reply's text as it arrives, and raises `Repeating` once its end is one passage many times over."""

    _STEP = 120  # characters between two looks

    def __init__(self, on_text: Callable[[str], None] | None, *, patient: bool = False) -> None:
        self._times, self._least = (30, 4000) if patient else (6, 480)  # what a large model repeats may be meant
        self._on_text = on_text
        self._parts: list[str] = []
        self._tail = ""
        self._unseen = 0

    def __call__(self, delta: str) -> None:
        if self._on_text is not None:
            self._on_text(delta)
        self._parts.append(delta)
        self._tail = (self._tail + delta)[-5 * self._least :]
        self._unseen += len(delta)
        if self._unseen >= self._STEP:
            self._unseen = 0
            if period := repeated_passage(self._tail, self._times, self._least):
                text = "".join(self._parts)
                raise Repeating(_without_repeats(text, period), text)


def repeated_passage(text: str, times: int, least: int) -> int:
    """The length of the passage that a text ends with `times` over, filling `least` characters; 0 if there is none."""
    probe = text[-24:]
    at = last = len(text) - len(probe)
    for _ in range(64):
        at = text.rfind(probe, 0, at + len(probe) - 1)
        period = last - at
        length = max(times * period, least if len(set(probe)) > 2 else 2 * least)  # a ruled line is not a loop
        if at < 0 or length > len(text):
            return 0
        piece = text[-length:]
        if piece[period:] == piece[:-period]:
            return period
    return 0


def _without_repeats(text: str, period: int) -> str:
    """The text with the passage that it ends with only once."""
    end = len(text)
    while end >= 2 * period and text[end - period : end] == text[end - 2 * period : end - period]:
        end -= period
    return text[:end]


def _ms_since(start: float) -> int:
    return round((time.monotonic() - start) * 1000)


def make_sandbox(options: Options) -> rlm_sandbox.Sandbox:
    """A REPL of the environment that the options name."""
    environment: Any = options.environment
    if not isinstance(environment, str):
        given: rlm_sandbox.Sandbox = environment() if callable(environment) else environment
        return given
    workspace = [os.getcwd()] if options.allowed_paths is None else options.allowed_paths
    if environment == "docker":
        return rlm_sandbox.DockerSandbox(
            image=options.docker_image,
            cpus=options.docker_cpus,
            memory=options.docker_memory,
            network_disabled=options.docker_network_disabled,
            runtime=options.docker_runtime,
            workspace=workspace[0] if workspace and options.docker_mount == "ro" else None,
            cell_timeout=options.cell_timeout,
            output_limit=options.output_limit,
            pool=options.docker_pool,
        )
    return rlm_sandbox.LocalSandbox(
        cell_timeout=options.cell_timeout,
        memory=options.local_memory,
        allowed_imports=options.allowed_imports,
        workspace=workspace,
        require=options.require,
        output_limit=options.output_limit,
    )


T = TypeVar("T")


class Future(Generic[T]):
    """The result of a piece of work, for whoever waits for it. Made by `spawn`, or run by `run_futures`."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Event()
        self._values: list[T] = []  # the result, once it is there
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._values.append(self._work())
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        self._done.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the work is done, after at most so many seconds; without them, wait until it is."""
        while not self._done.wait(1 if seconds is None else seconds):  # Windows hears Ctrl-C only between waits
            if seconds is not None:
                return False
        return True

    def outcome(self) -> T | BaseException:
        """The result, or the exception that the work raised."""
        self.wait()
        return self._values[0] if self._error is None else self._error

    def get(self) -> T:
        """The result; raises what the work raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._values[0]


def spawn(work: Callable[[], T]) -> Future[T]:
    """Start the work on a thread."""
    future = Future(work)
    threading.Thread(target=future.run, daemon=True).start()
    return future


def _turn_output(backend: Backend, profile: Profile) -> int:
    """Tokens of output to reserve for a turn."""
    most = profile.turn_output or _TURN_OUTPUT_MOST
    return min(backend.max_output or _TURN_OUTPUT, _TURN_OUTPUT_MOST, most)


def fan_out(tasks: Sequence[Callable[[], object]], width: int) -> list[Any]:
    """The results of the tasks, in order, `width` at a time; a task's exception stands in its place."""
    futures = [Future(task) for task in tasks]
    run_futures(futures, width)
    return [future.outcome() for future in futures]


def run_futures(futures: Sequence[Future[T]], width: int) -> None:
    """Run the work of all, in order, `width` at a time; this thread works, too."""
    waiting = deque(futures)

    def work() -> None:
        with contextlib.suppress(IndexError):  # none is left
            while True:
                waiting.popleft().run()

    others = [spawn(work) for _ in range(min(width, len(futures)) - 1)]
    work()
    for other in others:
        other.get()


# --- a node: ask, act, repeat ------------------------------------------------------------------------------------


class Node:
    """One RLM: its messages, its REPL, its depth. The root answers the caller, a child the code that asked for it."""

    def __init__(
        self,
        run: Run,
        context: Context,
        *,
        depth: int = 0,
        parent: str | None = None,
        key: str | None = None,
        cell: int | None = None,
        instructions: str = "",
        schema: rlm_tools.Schema | None = None,
    ) -> None:
        self.run = run
        self.context = context
        self.depth = depth
        self.parent = parent  # the call whose code issued this node
        self.call_id = parent  # call_id of the current turn
        self.newest: Event | None = None  # the reference to the newest turn or cell, which an answer comes from
        self.key = key
        self.id = run.node_id(key)
        self.parent_cell = cell
        self.announced_context: Context | None = None  # the one that the model has a description of
        self.announcement = ""  # the text that follows the newest prompt
        self.new_system = ""  # system prompt after a change of protocol, for the next `call` event
        self.instructions = instructions
        self.schema = schema
        self.typed_value: object = None  # the answer, made into what the schema option asks for
        self.protocol = self._protocol()  # "tools" or "text"; "plain" and "stream": one call without a REPL
        self.messages: list[Message] = []
        self.logged_count = 0  # messages that the journal already holds
        self.turn = self.first_turn = 0
        self.cells = 0
        self.failures = 0
        self.prompt = ""  # the newest
        self.warned = False
        self.looked = False  # code has looked at the context, or the model was shown all of it
        self.touched = False  # code that names the context has run, even if it failed
        self.sent_back = False  # an answer given before any code ran was sent back
        self.doubts = 0  # answers that lacked a number, or held one that no output shows
        self.written_calls = 0  # replies whose tool calls stood in their text
        self.unknown_calls = 0
        self.worked = False  # a cell has succeeded since the prompt
        self.forcing: RLMError | None = None  # the limit to raise if the last, tool-free call gives no answer
        self.fed_subcalls = False  # llm_query was called: only its first prompt is checked
        self.outcomes: dict[str, tuple[str, ...]] = {}  # each cell's code -> its newest outcome
        self.fruitless = 0  # how many outcomes in a row were errors or, for a small model, empty
        self.repeats = 0  # how often in a row a cell was an earlier one again, with the same outcome
        self.shown_whole = False  # the model has been shown all of the context
        self.last_error: RLMError | None = None
        self._read: tuple[str, WrittenAction | None] | None = None  # the newest reply, and what it asks for
        self._ordinals: dict[tuple[int, str], int] = {}
        self._sandbox: Future[rlm_sandbox.Sandbox] | None = None
        self.functions = self._host_functions()

    def solve(self, prompt: str) -> Answer:
        """Ask, act, repeat, until the model answers or a limit stops it."""
        self.open(prompt)
        while True:
            reply = self.ask()
            if (answer := self.act(reply)) is not None:
                return answer

    def complete(self, prompt: str, solve: Callable[[str], Answer] | None = None) -> Answer:
        """Solve the prompt, in another way if one is given, then close the node and journal its end, also a failure."""
        run = self.run
        answer: Answer | None = None
        failure: BaseException | None = None
        try:
            answer = (solve or self.solve)(prompt)
            return answer
        except BaseException as error:
            failure = error
            raise
        finally:
            if not run.options.persistent or self.depth:
                self.close()
            if not run.recording.is_replay:
                self.end(answer, failure)

    def end(self, answer: Answer | None, failure: BaseException | None) -> None:
        """Write a node's `end` event. A broken journal must not hide the failure that broke it."""
        fields: Event = {"node": self.id, "status": "answered", "response": None, "error": None}
        if answer is not None:
            fields.update(response=answer.text, given=answer.given, forced=answer.forced, answer=self.newest)
            if answer.given:
                fields.update(packed("value", answer.value))
        else:
            stopped = isinstance(failure, (KeyboardInterrupt, SystemExit))
            fields["status"] = (
                "interrupted" if stopped else "partial" if isinstance(failure, LimitExceeded) else "error"
            )
            hint = getattr(failure, "hint", "")
            fields["error"] = {"type": type(failure).__name__, "message": str(failure), "hint": hint}
            fields["response"] = self.run.last_text or None if self.depth == 0 else None
        fields["totals"] = self.run.totals()
        fields["active_ms"] = self.run.active_before + fields["totals"]["duration_ms"]
        if self.depth == 0:
            self.run.active_before = fields["active_ms"]  # a conversation's next prompt has another ledger
        with contextlib.suppress(RLMError):
            self.run.journal.write("end", parent=self.parent, depth=self.depth, **fields)

    def replay_turns(self, prompt: str, turns: int) -> None:
        """Repeat an earlier prompt of a recorded conversation up to its last recorded turn."""
        self.open(prompt)
        while self.turn < turns:
            reply = self.ask()
            stopped = self.forcing is not None or (reply.tool_calls and not self._was_run(reply.tool_calls))
            if self.turn == turns and stopped:  # the prompt ended here, in a limit
                self._remember(reply, None)
            elif self.act(reply) is not None:
                break

    def _was_run(self, calls: list[ToolCall]) -> bool:
        """Whether the journal holds an outcome of the newest turn's tool calls."""
        recording = self.run.recording
        cells = (cell for (node, _), cell in recording.cells.items() if node == self.id)
        return any(cell.get("turn") == self.turn for cell in cells) or any(
            (self.id, self.turn, call["id"]) in recording.tools for call in calls
        )

    # opening and closing

    def _protocol(self) -> str:
        if self.run.protocol == "auto":
            small = (self.run.backend.parameters or 1e9) <= _SMALL_PARAMETERS
            return "tools" if self.run.backend.supports_tools and not small else "text"
        return self.run.protocol

    def open(self, prompt: str) -> None:
        """Put the prompt before the model; for the first one also the instructions, and start a REPL meanwhile."""
        first = not self.messages
        plain = None
        recorded = self.run.recording.starts.get(self.id) if first else self._recorded_start(prompt)
        if first:
            self.prompt = prompt
            plain = plain_announcement(self) if recorded is None else None
            self.protocol = recorded["protocol"] if recorded else "plain" if plain is not None else self.protocol
            if self.protocol != "plain":
                self._start_sandbox()
            system = recorded["system"] if recorded else system_prompt(self)
            self.messages = [{"role": "system", "content": system}]
        else:
            self._answer_open_calls()
        new = self.context is not self.announced_context
        if new:
            whole = self.context.whole(self.run.show_below(self.context)) is not None
            if recorded and recorded.get("announcement"):  # perhaps by another rule
                whole = _ALL_OF_IT in recorded["announcement"]
            self.shown_whole, self.touched = whole or self.protocol == "plain", False
            self.looked = self.context.value is None or self.shown_whole or bool(self.context.images)
        self._ask_user(prompt, new, recorded, plain)
        self.first_turn, self.failures = self.turn, 0
        self.warned = self.worked = self.sent_back = False
        self.doubts = 0
        self.forcing = None
        self.outcomes = {}
        self.fruitless = self.repeats = 0
        if recorded is not None:
            line = reference(recorded)
        else:
            line = self._journal_start(prompt, first, self.context.event_fields if new else None)
        for message in self.messages if first else self.messages[-1:]:
            message["_refs"] = [line]
        self.announced_context = self.context

    def _recorded_start(self, prompt: str) -> Event | None:
        """The `start` of a further prompt that the journal holds."""
        starts = self.run.recording.prompts if self.depth == 0 else []
        return next((e for e in starts if e.get("turn") == self.turn and e["prompt"] == prompt), None)

    def _start_sandbox(self) -> None:
        self._sandbox = spawn(lambda: self.run.sandbox(self.context))

    def _ask_user(self, prompt: str, new: bool, recorded: Event | None, plain: str | None = None) -> None:
        """Append the user's message: the prompt, the description of the context, and its images."""
        self.prompt = prompt
        announced = recorded.get("announcement") if recorded else plain or announcement(self, new=new)
        self.announcement = announced or ""
        text = f"{prompt}\n\n{announced}" if announced else prompt
        shows = new and self.context.images
        content = [{"type": "text", "text": text}, *self.context.images] if shows else text
        self.messages.append({"role": "user", "content": content, "_prompt": True})

    def set_context(self, context: Context) -> None:
        """Use another context for the prompts that follow; None keeps the current one."""
        if context.value is None:
            return
        with our_errors():
            self.run.hand_over(context, self.sandbox)
        self.context = context

    def _answer_open_calls(self) -> None:
        """Give the tool calls of a turn that was stopped a result: providers want one for each."""
        answered = {message.get("tool_call_id") for message in self.messages}
        last: Message = next((m for m in reversed(self.messages) if m["role"] == "assistant"), {})
        for call in last.get("tool_calls", []):
            if call["id"] not in answered:
                placeholder = {"role": "tool", "tool_call_id": call["id"], "name": call["name"]}
                self.messages.append({**placeholder, "content": "[stopped before it ended]", "is_error": True})

    def _journal_start(self, prompt: str, first: bool, context_fields: Event | None) -> Event:
        run, options = self.run, self.run.options
        fields: Event = {"node": self.id, "kind": "child" if self.key else "root", "prompt": prompt}
        if self.key:
            fields.update(key=self.key, cell=self.parent_cell)
        elif context_fields:
            run.keep_context(self.context, self.turn)
        if not first:
            fields.update(continues=True, turn=self.turn)
        fields.update(
            system=self.messages[0]["content"] if first and self.messages[0]["role"] == "system" else None,
            announcement=self.announcement or None,
            profile=run.profile.name,
            prompt_file=options.prompt if options.prompt not in _PROFILES else None,
            show_below=options.show_below,
            confirm_above=options.confirm_above,
            subcall_characters=run.subcall_characters,
            params=options.params,
            sub_params=options.sub_params,
            model=run.backend.model or None,
            sub_model=options.sub_model,
            backend=run.backend.provider or None,
            protocol=self.protocol,
            environment=options.environment if isinstance(options.environment, str) else "object",
            limits={name: getattr(options, name) for name in LIMITS},
            context=context_fields,
            instructions=self.instructions or None,
            allowed_paths=[os.path.realpath(path) for path in options.allowed_paths or [os.getcwd()]],
            docker_mount=options.docker_mount,
            require=options.require,
            schema=self.schema,
            base_url=_without_login(run.backend.base_url),
            tools=[] if self.protocol in ("stream", "plain") else [tool.name for tool in run.tools],
            tool_schemas=run.tool_schemas
            if self.protocol == "tools" or (self.protocol == "plain" and self._protocol() == "tools")
            else None,
            mcp=run.servers.recorded() if run.servers and first and not self.key else None,
            version=__version__,
            active_ms=run.active_ms() if self.key else run.active_before,
        )
        return run.write("start", parent=self.parent, depth=self.depth, **fields)

    @property
    def sandbox(self) -> rlm_sandbox.Sandbox:
        assert self._sandbox is not None, "a node is opened before it runs code"
        return self._sandbox.get()

    def close(self) -> None:
        """End the REPL if it was started."""
        if self._sandbox is not None:
            with contextlib.suppress(RLMError, rlm_sandbox.SandboxError):
                self.run.close_sandbox(self._sandbox.get())
            self._sandbox = None

    def iterations_left(self) -> int:
        return self.run.options.max_iterations - (self.turn - self.first_turn)

    # asking

    def ask(self) -> rlm_backends.Reply:
        """The model's next reply: from the journal if it holds that turn, else live."""
        left, limit = self.iterations_left(), self.run.options.max_iterations
        if not left:
            error = MaxIterationsExceeded(limit, limit)
            raise self.run.ledger.fail(error) if self.depth == 0 else error
        if left == 1 and self.turn > self.first_turn and self.forcing is None:
            self._force(MaxIterationsExceeded(limit, limit))
        self.turn += 1
        recorded = self.run.recording.turns.get((self.id, self.turn))
        return self.run.recording.once(
            f"turn {self.turn} of node {self.id}", recorded, self._recorded_reply, self._new_reply
        )

    def _new_reply(self) -> rlm_backends.Reply:
        with our_errors():
            if self.protocol != "plain":
                if self.forcing is None:
                    self._say_what_is_left()
                if not self._replay_compaction():  # the run may have been stopped after it
                    self._compact()
            return self._mended_reply()

    def _mended_reply(self) -> rlm_backends.Reply:
        """A live reply; each fault that another form of request can mend is retried once."""
        mended: set[str] = set()
        while True:
            try:
                return self._live_reply()
            except rlm_backends.BackendError as error:
                if error.code in mended or not self._mend(error):
                    raise
                mended.add(error.code)

    def _mend(self, error: rlm_backends.BackendError) -> bool:
        if error.code == "no_tools" and self.protocol == "tools" and self.run.options.protocol != "tools":
            self._change_to_text()
            return True
        if error.code == "context_length" and self.protocol == "plain":
            self._leave_plain("")
            return True
        if error.code == "context_length":
            return self._compact(force=True)
        # A stream that was cut in its middle is no answer.
        return error.code == "truncated" or (error.code == "connection" and bool(error.partial))

    def _recorded_reply(self, event: Event) -> rlm_backends.Reply:
        """A reply that the journal holds, and the messages that went with it."""
        self.call_id, self.newest = event["call_id"], reference(event)
        if self.protocol == "plain" and event.get("system"):
            self._leave_plain("")
        if event.get("protocol") == "text" and self.protocol == "tools":
            self._change_to_text()
        if event.get("system"):
            self.messages[0], self.new_system = {"role": "system", "content": event["system"]}, ""
        if not event.get("forced"):
            self.forcing = None
        elif self.forcing is None:
            self.forcing = MaxIterationsExceeded(self.turn, self.turn)
        self._replay_compaction()
        new = [{k: v for k, v in m.items() if k != "replaces"} for m in event.get("prompt") or []]
        asked = [m for m in new if "content" in m and m.get("role") in ("user", "tool")]
        pending = [m for m in self.messages[self.logged_count :] if "_refs" in m or m["role"] == "system"]
        if asked and self.turn - 1 in self.run.recording.restarts.get(self.id, ()):
            asked[0] = {**asked[0], "_restart": True}
        # The result that stands in for a stopped call comes before the next prompt, as providers want it.
        self.messages[self.logged_count :] = sorted(pending + asked, key=lambda m: m["role"] != "tool")
        self.logged_count = len(self.messages)
        return rlm_backends.Reply(
            text=event.get("response") or "",
            tool_calls=event.get("tool_calls") or [],
            usage=event.get("token_usage") or {},
            stop_reason=event.get("stop_reason") or "stop",
            model=event.get("model") or "",
            cost_usd=event.get("cost_usd"),
            raw=event.get("raw"),
        )

    def _live_reply(self) -> rlm_backends.Reply:
        new = [_journal_form(m) for m in self.messages[self.logged_count :]]
        event_fields = {"node": self.id, "kind": "turn", "turn": self.turn, "prompt": new}
        event_fields.update(depth=self.depth, parent=self.parent)
        if self.protocol == "text" and self.run.options.protocol == "auto":
            event_fields["protocol"] = "text"
        if self.forcing is not None:
            event_fields["forced"] = True
        if self.new_system:
            event_fields["system"], self.new_system = self.new_system, ""
        backend, has_tools = self.run.backend, self.protocol == "tools"
        typed = self.protocol == "plain" and (self.schema or {}).get("type") == "object"
        reply = self.run.call(
            self,
            backend,
            self.messages,
            event_fields,
            tools=self.run.tool_schemas if has_tools and self.forcing is None else None,
            response_schema=self.schema if typed else None,
            most=_turn_output(backend, self.run.profile),
            on_text=self._on_text if self.run.journal.on_event and self.depth == 0 else None,
            defaults=self._defaults(),
            read=self._dropped,
        )
        self.logged_count = len(self.messages)
        return reply

    def _defaults(self) -> dict[str, object]:
        """Request parameters of ours: greedy decoding would write the same cell for ever, so a stuck model varies."""
        profile = self.run.profile
        stops = {"stop": _STOPS} if self.protocol == "text" else {}
        varied = profile.varied if self.repeats or self.doubts else {}
        return {**profile.defaults, **stops, **varied}

    def _on_text(self, delta: str) -> None:
        self.run.journal.emit("text", node=self.id, delta=delta)

    def _change_to_text(self) -> None:
        """Go on in the text protocol: this model has no tool calling."""
        self.run.protocol = self.protocol = "text"
        self.messages[0] = {"role": "system", "content": system_prompt(self)}
        self.new_system = self.messages[0]["content"] if self.logged_count else ""

    def _leave_plain(self, why: str) -> None:
        """Go on in the loop: the one plain call gave no answer, or (without `why`) its message was too long."""
        self.protocol = self._protocol()
        self._start_sandbox()
        self.messages[0] = {"role": "system", "content": system_prompt(self)}
        self.new_system = self.messages[0]["content"]
        announced = announcement(self, new=True)
        if not why:
            del self.messages[1:]
            announced = f"{self.prompt}\n\n{announced}"
        self.logged_count = min(self.logged_count, len(self.messages))
        self.messages.append(
            {"role": "user", "content": f"{_NOT_PLAIN.format(why)}\n{announced}" if why else announced}
        )

    def _plain_answer(self, reply: rlm_backends.Reply, text: str) -> Answer | None:
        """The answer to a plain call; None where the loop has to go on instead."""
        if reply.tool_calls:  # which was not offered any
            self._answer_open_calls()
            why = "it asked for a tool"
        elif not text.strip() or reply.stop_reason in ("length", "repetition"):
            why = "it was empty" if not text.strip() else "it was cut off"
        elif answer := self._accept(Answer(self._answer_in(text)), correct=False):
            return answer
        else:
            why = "it does not fit the schema"
        self._leave_plain(why)
        return None

    def _say_what_is_left(self) -> None:
        """Tell the model once when a limit is nearly reached, so that it can answer in time."""
        low = self.run.ledger.nearly_used()
        turns = self.iterations_left() + 1
        if turns <= max(1, self.run.options.max_iterations // 10):
            low.append(counted(turns, "turn"))
        if low and not self.warned:
            self.warned = True
            self.messages.append({"role": "user", "content": f"[nearly used up; left: {', '.join(low)}. Answer soon.]"})

    # acting

    def act(self, reply: rlm_backends.Reply) -> Answer | None:
        """Do what a reply asks for. Returns the answer if it is one; otherwise the model is shown the outcome."""
        text = visible(reply.text)
        action = None if reply.tool_calls else self._action(reply)
        self._remember(reply, action)
        asked = self._read[1] if self._read and self._read[0] == text else None
        if self.depth == 0 and (words := prose_of(text, asked)):
            self.run.last_text = words
        if self.forcing is not None:
            return self._forced_answer(reply, text, action)
        if reply.tool_calls and self.protocol == "plain":
            return self._plain_answer(reply, text)
        if reply.tool_calls:
            return self._run_tools([{**call, "name": self._meant(call)} for call in reply.tool_calls])
        if reply.stop_reason in ("refusal", "content_filter"):
            message = f"the model refused to answer: {text.strip() or reply.stop_reason}"
            raise ProviderError(message, provider=self.run.backend.provider)
        if reply.stop_reason == "pause":
            return None
        if self.protocol == "plain":
            return self._plain_answer(reply, text)
        if action is not None:
            return self._run_written(action, final_call(text))
        if reply.stop_reason in ("length", "repetition"):
            return self._corrected(_CUT_OFF if reply.stop_reason == "length" else _REPEATING)
        return self._read_answer(text)

    def _meant(self, call: ToolCall) -> str:
        """The name that a tool call means; an unknown one in a form that every provider takes in a history."""
        return re.sub(r"[^\w-]", "_", tool_name(call["name"], self.run.known_names), flags=re.ASCII)[:64] or "_"

    def _action(self, reply: rlm_backends.Reply) -> WrittenAction | None:
        """What a reply without tool calls asks to be done in its text, where that is not part of its answer."""
        text = visible(reply.text)
        if self._read is None or self._read[0] != text:
            self._read = text, written_action(text, self.run.known_names)
        action = self._read[1]
        if action is None or self.protocol == "plain" or reply.stop_reason in ("refusal", "content_filter", "pause"):
            return None
        if self.run.profile.guides and re.fullmatch(_ANSWER_BLOCK, action.code or ""):
            return None
        unfinished = reply.stop_reason in ("length", "repetition") and action.end >= len(text.rstrip())
        if unfinished and (action.code is None or not parses(action.code)):
            return None
        if action.calls:
            unknown = [call for call in action.calls if call["name"] not in self.run.known_names]
            answers = self.schema is not None and not rlm_tools.validate(self.schema, _json_in(text))[1]
            return None if answers or (unknown and self.unknown_calls >= 2) else action
        # In the tools protocol a fence may be part of the answer, but not before any code has given the evidence.
        is_python = action.tagged or may_be_code(action.code or "")
        as_text = self.protocol == "text" or (is_python and (self.written_calls or not self.worked))
        return action if as_text or re.search(r"(?m)^FINAL(_VAR)?\(", action.code or "") else None

    def _dropped(self, reply: rlm_backends.Reply) -> Event:
        """How many characters after its first action a reply has: output that it made up."""
        action = None if reply.tool_calls else self._action(reply)
        dropped = len(visible(reply.text).rstrip()) - action.end if action else 0
        return {"dropped": dropped} if dropped > 0 else {}

    def _remember(self, reply: rlm_backends.Reply, action: WrittenAction | None) -> None:
        """A reply as a message, without what it made up after its first action; the journal has all of it."""
        text = reply.text if action is None else visible(reply.text)[: action.end]
        message: Message = {"role": "assistant", "content": text}
        if reply.tool_calls:
            message["tool_calls"] = [{**call, "name": self._meant(call)} for call in reply.tool_calls]
        if reply.raw is not None and (action is None or action.end >= len(reply.text.rstrip())):
            message["raw"] = reply.raw
        self.messages.append(message)
        self.logged_count = len(self.messages)

    def _run_written(self, action: WrittenAction, final: str | None) -> Answer | None:
        """Run what a reply asks for in its text; after the second such reply the text protocol goes on."""
        calls = action.calls or [{"name": "execute_code", "arguments": {"code": action.code}}]
        self.written_calls += 1
        self.unknown_calls += any(call["name"] not in self.run.known_names for call in calls)
        outcomes: list[Outcome] = []
        for number, call in enumerate(calls, 1):
            call_id = f"text_{self.turn}_{number}"
            outcomes.append(self._run_tool({"id": call_id, **call})._replace(call_id=call_id))
            if outcomes[-1].error is not None or outcomes[-1].answer is not None:
                break
        self._show_outcomes(outcomes)
        if self.protocol == "tools" and self.written_calls >= 2 and self.run.options.protocol == "auto":
            self._change_to_text()
        answer = self._outcome(outcomes[-1:])
        if answer is None and outcomes[-1].error is None and final and _names_a_variable(final):
            return self._run_final(final)
        return answer

    def _show_outcomes(self, outcomes: list[Outcome]) -> None:
        """Show the model the outcomes of what its text asked for."""
        message: Message = {"role": "user", "tool_call_ids": [outcome.call_id for outcome in outcomes]}
        message["content"] = "\n\n".join(f"{_HEADING}\n{outcome.text}" for outcome in outcomes)
        message["_refs"] = [{**outcome.line, "heading": _HEADING} for outcome in outcomes]
        message["_cells"] = [outcome.cell for outcome in outcomes if outcome.cell]
        self.messages.append({**message, "_fruitless": outcomes[-1].fruitless})
        newest = outcomes[-1]
        self.fruitless = self.fruitless + 1 if newest.fruitless else 0
        stuck = self.fruitless > 1 if newest.fruitless else self.repeats > 1
        if self.run.profile.guides and (stuck or _CUT_MARK in newest.text or _LAST_ONLY in newest.text):
            self._restart(newest)

    def _restart(self, outcome: Outcome) -> None:
        """Leave out the attempts that the model only copies, and say what came of the newest."""
        fruitless, cut, newest = outcome.fruitless, _CUT_MARK in outcome.text, self.messages[-2]["content"]
        start = len(self.messages)
        while (
            self.messages[start - 2]["role"] == "assistant" and self.messages[start - 1].get("_fruitless") is fruitless
        ):
            if not fruitless and self.messages[start - 2]["content"] != newest:
                break
            start -= 2
        start -= bool(self.messages[start - 1].get("_restart"))
        left_out = self.messages[start:]
        del self.messages[start:]
        self.logged_count = len(self.messages)
        words = f"{_HAS_OUTPUT}\n{outcome.text}"
        if fruitless:
            words = _FAILED_BEFORE + re.sub(r"(?m)^in line \d+: .*\n?", "", outcome.text) + self._all_of_it()
        elif cut:
            beginning, note = outcome.text[:160].rpartition("\n")[0] or outcome.text[:160], outcome.text.split("\n")[-1]
            words = f"{_PRINTED_TOO_MUCH}{beginning}\n…\n{note}"
        elif _LAST_ONLY in outcome.text:  # its figures are wrong, and would be believed
            words = outcome.text.split("\n")[-1]
        self.messages.append({"role": "user", "content": words, "_restart": True})
        fields: Event = {"places": [], "cells": [n for m in left_out for n in m.get("_cells", ())], "restart": True}
        fields.update(tokens_before=tokens_of([*self.messages, *left_out]), tokens_after=tokens_of(self.messages))
        if self.turn not in self.run.recording.restarts.get(self.id, ()):
            self.run.write("compact", depth=self.depth, parent=self.parent, node=self.id, turn=self.turn, **fields)

    def _all_of_it(self) -> str:
        """The context itself, once code has failed to find anything in it, if a model can be expected to read it."""
        text = None if self.shown_whole else self.context.whole(Options.show_below)
        if text is None:
            return ""
        self.shown_whole = True
        return f"\n`context` is short. This is all of it:\n{text}\nAnswer from it in one line: ANSWER: <the answer>"

    def _read_answer(self, text: str) -> Answer | None:
        """A reply that asks for nothing to be run: the answer, unless it is empty or comes before any look."""
        if call := final_call(text):
            if not self.looked and not self.sent_back and not _names_a_variable(call):
                return self._send_back()
            return self._run_final(call)
        if not text.strip("`~ \t\r\n"):
            return self._corrected(_EMPTY)
        if not self.looked and not self.sent_back and not self._is_of_old():
            return self._send_back()
        if not (answer := self._answer_in(text)):
            return self._corrected(_EMPTY)
        if self.run.profile.guides and self.doubts < _DOUBTS and (doubt := self._doubt_about(answer)):
            self.doubts += 1
            return self._turn_down(
                doubt + _COMPUTE_IT.format("a ```python block" if self.protocol == "text" else "code")
            )
        return self._accept(Answer(answer))

    def _is_of_old(self) -> bool:
        """Whether the reply is from a journal that was written before answers were sent back."""
        start = self.run.recording.starts.get(self.id)
        return start is not None and "profile" not in start and (self.id, self.turn) in self.run.recording.turns

    def _turn_down(self, words: str) -> Answer | None:
        """Ask for something else than the newest reply, which a small model would repeat if it saw it; no answer."""
        message: Message = {"role": "user", "content": words}
        if self.run.profile.guides:
            self.messages.pop()
            self.logged_count = len(self.messages)
            message["_replaces"] = True
        self.messages.append(message)
        return None

    def _doubt_about(self, answer: str) -> str:
        """What is wrong with an answer that lacks the number asked for, or holds one that no output shows; else ""."""
        if self.shown_whole or not self.looked or self.context.value is None:
            return ""
        if len(answer) > 20 and answer.strip(" ?.\n") in self.prompt:
            return "That is the question, not its answer. "
        if re.search(_WANTS_NUMBER, self.prompt) and not re.search(_HAS_NUMBER, answer):
            return "The question asks for a number, too. "
        place = max(n for n, message in enumerate(self.messages) if message.get("_prompt"))
        seen = [str(m["content"]) for m in self.messages[place + 1 :] if m["role"] != "assistant"]
        seen += [str(m["content"]) for m in self.messages[2:place]]  # of a conversation's earlier prompts
        seen += [f"{stdout} {value}" for stdout, value, _ in self.outcomes.values()]
        unseen = unseen_numbers(answer[:500], f"{self.prompt} {' '.join(seen)}")
        return f"No output shows {' or '.join(unseen)}: do not guess. " if unseen else ""

    def _answer_in(self, text: str) -> str:
        """The answer of a reply: what follows the mark that the small profile asks for, else all of it."""
        if self.run.profile.guides and (marked := list(re.finditer(r"ANSWER:[ \t*]*", text))):
            text = text[marked[-1].end() :].strip().removesuffix("```") or text
        return "" if text.strip() in (_PLACEHOLDER, _JSON_PLACEHOLDER) else text.strip()

    def _send_back(self) -> Answer | None:
        """The answer to a question about a context that no code has looked at is a guess: ask for a look; None."""
        self.sent_back = True
        use = f" {self.run.start_for(self.context)}" if self.run.profile.guides else ""
        return self._turn_down(_LOOK_FIRST[self.protocol] + use)

    def _force(self, limit: RLMError) -> None:
        """Ask for the best answer from what has been seen, without tools, before this limit is raised."""
        self.forcing = limit
        line = _ANSWER_LINE if self.run.profile.guides else "."
        reminder = f"\nThe request: {self.prompt}" if self.run.profile.guides and len(self.prompt) <= 300 else ""
        self.messages.append({"role": "user", "content": _ANSWER_NOW.format(line=line) + reminder})

    def _forced_answer(self, reply: rlm_backends.Reply, text: str, action: WrittenAction | None) -> Answer | None:
        """The answer that the last call was asked for; the limit is raised if it gives none."""
        limit, self.forcing = self.forcing, None
        assert limit is not None
        no_answer = ("length", "refusal", "content_filter", "pause")
        if reply.stop_reason not in no_answer:
            accepted = self._final_answer(text, reply.tool_calls or (action.calls if action else []), action)
            if accepted is not None:
                return accepted._replace(forced=True)
        if isinstance(limit, MaxIterationsExceeded) and self.iterations_left():  # a resume has raised the limit
            self.messages.pop()
            return self.act(reply)
        raise self.run.ledger.fail(limit) if self.depth == 0 and isinstance(limit, LimitExceeded) else limit

    def _final_answer(self, text: str, calls: list[ToolCall], action: WrittenAction | None) -> Answer | None:
        """The answer in the last reply: prose, or code that ends with FINAL(...), which may name a variable."""
        codes = [code_argument(call["arguments"])[0] for call in calls if self._meant(call) == "execute_code"]
        call = None if calls or action else final_call(text)
        codes += [code for code in (call, action and action.code) if code and may_be_code(code)]
        final = next((code for code in codes if re.search(r"(?m)^FINAL(?:_VAR)?\(", code)), None)
        if final is not None:
            outcome = self.run_cell(final, f"cell_{self.cells + 1}")
            return self._accept(outcome.answer, correct=False) if outcome.answer else None
        if calls or action:
            return None
        answer = literal_answer(call) if call else self._answer_in(text)
        return self._accept(Answer(answer), correct=False) if answer.strip("`~ \t\r\n") else None

    def _corrected(self, words: str) -> Answer | None:
        """Point a mistake out to the model; None, since that is no answer."""
        self.messages.append({"role": "user", "content": words})
        self.count_failure(RLMError(words))
        return None

    def count_failure(self, error: RLMError | None) -> None:
        """Count a turn that failed, or with None forget the failures before one that did not."""
        self.failures = self.failures + 1 if error else 0
        if error and self.failures >= self.run.options.max_errors:
            error.hint = error.hint or f"{counted(self.failures, 'failure')} in a row; max_errors raises the limit"
            if not self.iterations_left():
                raise error
            self._force(error)

    def _accept(self, answer: Answer, *, correct: bool = True) -> Answer | None:
        """The answer, unless it does not fit the schema: then the model is told, where it may `correct` it."""
        if self.schema is None:
            return answer
        value = answer.value if answer.given else _json_in(answer.text)
        value, problems = rlm_tools.validate(self.schema, value)
        try:
            self.typed_value = None if problems else rlm_tools.construct(self.run.options.schema, value)
        except rlm_tools.ToolError as error:  # a class's own check, which the model can satisfy too
            problems = [str(error)]
        if problems and correct:
            return self._corrected("The answer does not fit the schema: " + "; ".join(problems[:8]))
        if problems:
            return None
        return Answer(_as_text(value), value, True)

    def _run_tools(self, calls: list[ToolCall]) -> Answer | None:
        """Run the tool calls of one turn, in parallel unless two of them are cells."""
        tasks = [partial(self._run_tool, call) for call in calls]
        cells = sum(call["name"] in _REPL_NAMES for call in calls)
        width = 1 if cells > 1 else self.run.options.max_parallel
        outcomes = fan_out(tasks, width)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        for call, outcome in zip(calls, outcomes, strict=True):
            self.messages.append(
                {
                    "role": "tool",
                    "tool_call_id": call["id"],
                    "name": call["name"],
                    "content": outcome.text,
                    "is_error": outcome.error is not None,
                    "_refs": [outcome.line],
                    "_cells": [outcome.cell] if outcome.cell else [],
                }
            )
        return self._outcome(outcomes)

    def _outcome(self, outcomes: list[Outcome]) -> Answer | None:
        """Read a turn's outcomes: an answer by FINAL, or a success or failure to count."""
        for outcome in outcomes:
            if outcome.answer is not None:
                return self._accept(outcome.answer)
        self.looked = self.looked or any(o.error is None and not o.cell for o in outcomes)
        if self.run.profile.guides and self.repeats > 1:
            self.count_failure(RLMError("the model repeats code whose output it has seen"))
            return None
        errors = [o.error or RLMError("the model's code found nothing") for o in outcomes if o.fruitless or o.error]
        self.count_failure(errors[-1] if len(errors) == len(outcomes) else None)
        return None

    def _run_tool(self, call: ToolCall) -> Outcome:
        """One tool call of the model's: a cell, or a tool by its name."""
        name, arguments, problem = call["name"], call["arguments"], ""
        if name in _REPL_NAMES and name != "execute_code":
            return self.run_cell(as_code(call), call["id"])
        if name == "execute_code":
            code, problem = code_argument(arguments)
            if not problem:
                return self.run_cell(code, call["id"])

        def serve(recorded: Event) -> Outcome:
            result = recorded["tool_results"][0]
            failed = bool(result.get("is_error"))
            self.run.add_tool_call(name, arguments, self, is_error=failed)
            text = str(result.get("content", ""))
            return Outcome(text, reference(recorded), RLMError(text) if failed else None)

        def work() -> Outcome:
            started = time.monotonic()
            text, error = (problem, RLMError(problem)) if problem else self._call_tool(name, arguments)
            self.run.add_tool_call(name, arguments, self, is_error=error is not None)
            cause = error and (error.__cause__ or error)
            return Outcome(text, self._journal_tool(call["id"], name, text, cause, started), error)

        recorded = self.run.recording.tools.get((self.id, self.turn, call["id"]))
        return self.run.recording.once(f"result of {name} in turn {self.turn}", recorded, serve, work)

    def _call_tool(self, name: str, arguments: Mapping[str, object] | str) -> tuple[str, RLMError | None]:
        tools = {tool.name: tool for tool in self.run.tools}
        if name not in tools:
            missing = ToolNotFoundError(name, [*tools, "execute_code"])
            return f"error: {missing}", missing
        try:
            text = self.run.run_cancellable(lambda: rlm_tools.call_for_model(tools[name], arguments))
        except Exception as error:  # whatever a tool raises is the model's to read
            self.run.ledger.check()
            failure = RLMError(f"tool {name!r} failed: {error}")
            failure.__cause__ = error
            return f"error: {type(error).__name__}: {error}", failure
        return _cut(text, self.run.options.output_limit), None

    def _journal_tool(
        self, call_id: str, name: str, text: str, error: BaseException | None, started: float, /, **fields: object
    ) -> Event:
        return self._write_tool(
            **fields,
            turn=self.turn,
            tool_calls=[call_id],
            tool_results=[{"id": call_id, "name": name, "content": text, "is_error": error is not None}],
            error=error_fields(error) if error else None,
            duration_ms=_ms_since(started),
        )

    def _write_tool(self, **fields: object) -> Event:
        place: Event = {"call_id": self.call_id, "parent": self.parent, "depth": self.depth, "node": self.id}
        return self.run.write("tool", **place, **fields)

    def _run_final(self, call: str) -> Answer | None:
        """A FINAL(...) in prose: run as code, so that it may name a variable; taken literally if it is not code."""
        in_json = self.schema is not None and re.search(r"\b(?:true|false|null)\b", call)
        if in_json and not isinstance(_json_in(written := literal_answer(call)), str):
            return self._accept(Answer(written))
        call = re.sub(r"\AFINAL_VAR\(\s*[\"']?(\w+)[\"']?\s*\)\Z", r"FINAL(\1)", call)
        if not parses(call):
            return self._accept(Answer(literal_answer(call)))
        call_id = f"cell_{self.cells + 1}"
        outcome = self.run_cell(call, call_id)._replace(call_id=call_id)
        if outcome.answer is not None:
            return self._accept(outcome.answer)
        if "NameError" in outcome.text and re.fullmatch(r"FINAL\([\w ]*\)", call):
            return self._accept(Answer(literal_answer(call)))
        self._show_outcomes([outcome])
        return self._outcome([outcome])

    # cells

    def run_cell(self, code: str, call_id: str) -> Outcome:
        """Run code in the REPL and journal its outcome; a recorded cell is run again for its variables."""
        self.cells += 1
        number = self.cells
        recorded = self.run.recording.cells.get((self.id, number))
        event = self._execute(code, number, recorded)
        line = reference(recorded) if recorded is not None else self._journal_cell(event, call_id)
        self.newest = line
        self.run.add_tool_call("execute_code", {"code": code}, self, is_error=event["error"] is not None)
        answer = event["final"] if event["error"] is None else None
        self.touched = self.touched or not names_in(code).isdisjoint(self.run.variables(self.context))
        if event["error"] is None:
            self.worked = True
            self.looked = self.looked or self.touched
        error = None if event["error"] is None else self._cell_error(code, event)
        fruitless = error is not None or (self.run.profile.guides and answer is None and is_empty_result(event))
        return Outcome(show_cell(event), line, error, answer, number, fruitless=fruitless)

    def _journal_cell(self, event: Event, call_id: str) -> Event:
        fields = {name: value for name, value in event.items() if name != "final"}
        traceback = fields["traceback"] = event["error"]
        fields["error"] = None if traceback is None else error_in(traceback, event["status"])
        result = {"id": call_id, "name": "execute_code", "is_error": traceback is not None}
        return self._write_tool(turn=self.turn, tool_calls=[call_id], tool_results=[result], **fields)

    def _note(self, code: str, event: Event, recorded: Event | None) -> str:
        """The note shown beside a cell's output; the recorded one if there is one."""
        shown = (event["stdout"], event["value"], event["error"])
        outcome = tuple(re.sub(r"<cell \d+>|_out\[\d+\]", "", text or "") for text in shown)  # which name the cell
        again = self.outcomes.get(code.strip()) == outcome
        self.repeats = self.repeats + 1 if again else 0
        self.outcomes[code.strip()] = outcome
        return str(recorded.get("note") or "") if recorded is not None else note_on(self, code, event, again)

    def _execute(self, code: str, number: int, recorded: Event | None) -> Event:
        """The `tool` event of a cell, with its Answer (or None) under `final`."""
        died = recorded is not None and (bool(recorded.get("restored")) or recorded.get("status") == "lost")
        self.run.journal.progress("running", node=self.id, depth=self.depth, cell=number)
        timeout, remaining = self.run.options.cell_timeout, self.run.ledger.remaining()
        deadline = self.run.ledger.deadline
        how = {"deadline": deadline} if deadline and isinstance(self.sandbox, rlm_sandbox.BaseSandbox) else {}
        try:
            cell = self.sandbox.execute(
                "None" if died else code,
                timeout=timeout if remaining is None else min(timeout, max(remaining, 0.01)),
                functions=self.functions,
                on_output=self._on_output if self.run.journal.on_event else None,
                **how,
            )
        except rlm_sandbox.AbortCell as stop:
            raise self.run.ledger.stopped or stop from None
        except rlm_sandbox.SandboxError as error:
            self.run.ledger.check()
            raise our_error(error) from error
        self.run.ledger.check()
        event: Event = {
            "cell": number,
            "code": code,
            "stdout": cell.stdout,
            "value": cell.value,
            "error": cell.error,
            "status": cell.status,
            "restored": cell.restored,
            "images": image_uris(cell.images),
            "duration_ms": round(cell.duration_ms, 1),
            "final": None,
        }
        if cell.status == "memory" and (limit := self._memory_limit(recorded)):
            event["error"] = f"{cell.error or 'MemoryError'}\n{limit}"
        if recorded is not None:
            event = self._compared(event, recorded, died)
        if event["status"] != "ok" and event["error"] is None:
            event["error"] = f"the cell ended: {event['status']}"
        if recorded is not None and "brief" in recorded:
            event["brief"] = recorded["brief"]
        elif event["error"] is not None and self.run.profile.guides:
            event["brief"] = brief_error(event["error"], code, number, has_advice=bool(self.context.parsed))
        event["note"] = self._note(code, event, recorded)
        if event["error"] is None and cell.final is not rlm_sandbox.UNSET:
            try:
                event["final"] = Answer(_as_text(cell.final), cell.final, True)
            except (ValueError, RecursionError) as error:  # an integer of too many digits, or a hostile worker's value
                event["error"] = f"{type(error).__name__}: FINAL's value cannot be written out: {error}"
        return event

    def _memory_limit(self, recorded: Event | None) -> str:
        """The limit that a MemoryError has hit and the option that raises it; for a recorded cell as recorded."""
        if recorded is not None:
            said = (recorded.get("traceback") or "").rpartition("\n")[2]
            return said if said.startswith("(the limit is ") else ""
        environment = self.run.options.environment
        if environment not in ("local", "docker"):
            return ""
        name = f"{environment}_memory"
        size = getattr(self.run.options, name)
        beyond = " beyond the context" if environment == "local" else ""
        return f"(the limit is {size} of memory{beyond}: option {name})"

    def _compared(self, event: Event, recorded: Event, died: bool) -> Event:
        """The recorded outcome, which the conversation continues from; a difference in the re-run is recorded."""
        before = {"error": recorded.get("traceback"), **{name: recorded.get(name) for name in ("stdout", "value")}}
        differing = [name for name in ("stdout", "value", "error") if not died and event[name] != before[name]]
        if differing:
            self.run.diverged(self, f"cell {event['cell']} of {self.id}: {', '.join(differing)} differ when run again")
        return {**event, **before, **{name: recorded.get(name) for name in ("status", "restored", "images")}}

    def _on_output(self, text: str) -> None:
        self.run.journal.emit("output", node=self.id, cell=self.cells, text=text)

    def _cell_error(self, code: str, event: Event) -> RLMError:
        """The error to raise if this cell is the last of `max_errors`: our own that its code let through, if any."""
        text, own = event["error"], self.last_error
        if own is not None and str(own) in text:
            return own
        line = text.rstrip().rsplit("\n", 1)[-1]
        return REPLExecutionError(f"the model's code failed: {line}", code=code, stderr=text)

    # what code in the REPL may call

    def _host_functions(self) -> dict[str, Callable[..., object]]:
        plans: dict[str, Plan] = {
            "llm_query": self._plan_llm_query,
            "llm_query_batched": self._plan_llm_query_batched,
            "rlm_query": self._plan_rlm_query,
            "rlm_query_batched": self._plan_rlm_query_batched,
            "map_query": self._plan_map_query,
            "budget": self._plan_budget,
        }
        for tool in self.run.tools:
            plans[tool.name] = self._tool_preparation(tool.name, tool.bind, partial(rlm_tools.call_tool, tool))
        if servers := self.run.servers:
            plans["tools"] = lambda word="": partial(servers.search, word)
        functions: dict[str, Callable[..., object]] = {
            name: HostFunction(self, plan, batched=name == "llm_query_batched") for name, plan in plans.items()
        }
        if servers:

            def remote(tool: Any) -> HostFunction:
                call = partial(servers.call, tool)
                return HostFunction(self, self._tool_preparation(tool.full_name, tool.arguments, call))

            functions.update(servers.namespaces(remote))
        return {**functions, "chunks": rlm_sandbox.Chunks(self.run.subcall_characters)}

    def _key(self, function: str, *parts: object) -> str:
        """The key of a call from the cell that is running: exact when the cell is run again."""
        text = to_json([function, *parts], sort_keys=True)
        digest = sha256(text.encode()).hexdigest()[:12]
        ordinal = self._ordinals.get((self.cells, digest), 0)
        self._ordinals[self.cells, digest] = ordinal + 1
        return f"{self.id}/{self.cells}/{digest}/{ordinal}"

    def _plan_budget(self) -> Callable[[], Any]:
        """What is left of each limit: {"tokens", "cost_usd", "subcalls", "seconds", "iterations"}; None: no limit."""
        return lambda: {**self.run.ledger.left(), "iterations": self.iterations_left()}

    def _plan_llm_query(
        self, prompt: str, model: str | None = None, schema: object = None, images: Iterable[object] | None = None
    ) -> Callable[[], Any]:
        """A model's answer to the prompt, which is all it sees: a `str`, or with `schema` Python data.

        `model`: by default `sub_model`, else the main model. `schema`: a JSON Schema, the name of a type ("int") or a
        list of the possible answers. `images`: bytes or data URIs. SubcallError for an answer that was cut off or
        refused, or twice did not fit the schema; its text is in `.partial`.
        """
        return self._plan_leaves("llm_query", [prompt], model, schema, images)[0]

    def _plan_llm_query_batched(
        self, prompts: list[str], model: str | None = None, schema: object = None
    ) -> Callable[[], list[Any]]:
        """The answers to many prompts, in order, asked in parallel; `model` and `schema` as for `llm_query`.

        If some fail, SubcallError once all have ended: `.results` has the answers, `.errors` the reasons.
        """
        return self._all_of(self._plan_leaves("llm_query_batched", prompts, model, schema))

    def _plan_leaves(
        self, function: str, prompts: object, model: str | None, schema: object, images: Iterable[object] | None = None
    ) -> list[partial[Any]]:
        prompts = _prompt_list(function, prompts)
        wanted = _subcall_schema(function, schema)
        wrapped = wanted is not None and wanted.get("type") != "object"
        form = SubcallForm(_object_schema({"answer": wanted}) if wrapped else wanted, _subcall_images(images), wrapped)
        model = model or self.run.options.sub_model
        keys = [self._key("llm_query", model, prompt, *form.key()) for prompt in prompts]
        recorded = self.run.recording.results_by_key
        if function == "llm_query" and keys[0] not in recorded:
            self._require_text(prompts[0])
        return self._leaves(prompts, keys, model, [form] * len(prompts))

    def _leaves(
        self, prompts: list[str], keys: list[str], model: str | None, forms: list[SubcallForm]
    ) -> list[partial[Any]]:
        """The sub-calls as tasks, once they are counted against the limit; those in the journal were already."""
        self.fed_subcalls = True
        recorded = self.run.recording.results_by_key
        self.run.ledger.count_subcalls(sum(key not in recorded for key in keys))
        calls = zip(keys, prompts, forms, strict=True)
        return [partial(self._leaf, key, prompt, model, self.cells, form) for key, prompt, form in calls]

    def _require_text(self, prompt: str) -> None:
        """Refuse the run's first sub-call if it only talks about the context: the model would have to invent it."""
        value = self.context.value
        fed = self.fed_subcalls or self.depth or not isinstance(value, (str, dict, list, tuple)) or not value
        asks_about_it = len(prompt.split()) >= 3 and len(prompt) <= _BARE_PROMPT and not self.context.images
        if fed or not asks_about_it or holds_text_of(prompt, value):
            return
        self.fed_subcalls = True
        raise ValueError(
            "llm_query sees only its prompt, and this one holds no text of `context`: put the text into it, as in "
            'llm_query("the question\\n" + piece). To count or search, use Python. (The same call again is sent.)'
        )

    def _plan_map_query(self, question: str, items: object, schema: object = None) -> Callable[[], list[Any]]:
        """One answer for each item of a list, in order, from as few sub-calls as the items fit into.

        `schema` is that of one answer, as for `llm_query`; without it an answer is a `str`. Items that are not text are
        written as text. ValueError for an item that is too long for a sub-call, SubcallError as of `llm_query_batched`.
        """
        if not isinstance(question, str) or not question.strip():
            raise TypeError("map_query(question, items): the question is a text that each item is asked")
        if not isinstance(items, (list, tuple)):
            raise TypeError(f"map_query takes a list of items, not {type(items).__name__}")
        texts = [item if isinstance(item, str) else _as_text(item) for item in items]
        wanted = _subcall_schema("map_query", schema) or {"type": "string"}
        groups = _groups_of(texts, self.run.subcall_characters, 10 if self.run.profile.guides else 50)
        model = self.run.options.sub_model
        prompts = [_map_prompt(question, [texts[n] for n in group]) for group in groups]
        keys = [self._key("map_query", model, prompt, wanted) for prompt in prompts]
        schemas = [_object_schema({str(n): wanted for n in range(1, len(group) + 1)}) for group in groups]
        forms = [SubcallForm(form, [], numbered=True) for form in schemas]
        tasks = self._leaves(prompts, keys, model, forms)

        def work() -> list[Any]:
            try:
                answers = self._all_of(tasks)()
            except SubcallError as error:  # by items, as they were asked
                data = error.cell_data
                for name in ("results", "errors"):
                    data[name] = _by_items(data[name], groups)
                raise
            return [value for group in answers for value in group.values()]

        return work

    def _counted(self, begun: Callable[[], None], tasks: Sequence[Callable[[], T]]) -> list[Callable[[], T]]:
        """The tasks, each of which says that its turn has come, and tells the listener when it is done."""
        done = 0
        lock = threading.Lock()

        def run(task: Callable[[], T]) -> T:
            nonlocal done
            begun()
            try:
                return task()
            finally:
                with lock:
                    done += 1
                    self.run.journal.progress("subcalls", node=self.id, done=done, total=len(tasks))

        return [partial(run, task) for task in tasks]

    def _plan_rlm_query(self, prompt: str, context: object = None) -> Callable[[], Any]:
        """The answer of a child run, one level deeper, with its own REPL. The argument becomes its variable `context`.

        Returns what the child gave to FINAL, as Python data, or else its text. MaxDepthExceeded at `max_depth`.
        """
        (child,) = self._plan_children("rlm_query", [prompt], [context])

        def work() -> object:
            self.run.confirm(lambda: self._forecast([child]))
            return child()

        return work

    def _plan_rlm_query_batched(self, prompts: list[str], contexts: list[Any] | None = None) -> Callable[[], list[Any]]:
        """The answers of many children, in order, run in parallel; errors as of `llm_query_batched`."""
        prompts = _prompt_list("rlm_query_batched", prompts)
        if contexts is None:
            contexts = [None] * len(prompts)
        if len(contexts) != len(prompts):
            raise ValueError(f"rlm_query_batched got {len(prompts)} prompts and {len(contexts)} contexts")
        return self._all_of(self._plan_children("rlm_query_batched", prompts, contexts))

    def _plan_children(self, function: str, prompts: object, contexts: Sequence[object]) -> list[partial[Any]]:
        prompts = _prompt_list(function, prompts)
        if self.depth >= self.run.options.max_depth:
            raise MaxDepthExceeded(self.depth + 1, self.run.options.max_depth)
        environment: object = self.run.options.environment
        if not isinstance(environment, str) and not callable(environment):
            raise TypeError(f"{function}: the environment is a single REPL; use llm_query instead")
        keys = [
            self._key("rlm_query", prompt, _digest(context)[0])
            for prompt, context in zip(prompts, contexts, strict=True)
        ]
        known = self.run.recording.children
        self.run.ledger.count_subcalls(sum(key not in known for key in keys))
        cell, parent = self.cells, self.call_id
        return [
            partial(self._child, key, prompt, context, cell, parent)
            for key, prompt, context in zip(keys, prompts, contexts, strict=True)
        ]

    def _forecast(self, tasks: Sequence[partial[Any]]) -> Forecast:
        """The most that sub-calls or children will cost, without those that the journal holds."""
        run, recording = self.run, self.run.recording
        new = [t for t in tasks if t.args[0] not in recording.results_by_key and t.args[0] not in recording.children]
        left = run.ledger.left()
        if new and new[0].func == self._child:  # children go on until they answer: all that is left is their limit
            cost = at_most(left["tokens"], left["cost_usd"], run.backend, run.options)
            return Forecast(len(new), f"children of {run.backend.model}", cost)
        try:
            backend = run.backend_for(new[0].args[2] if new else None)
        except (rlm_backends.BackendError, RLMError):  # each of them is going to fail, before it is sent
            return Forecast(len(new), "sub-calls", 0.0)
        params = run.params_for({"kind": "sub"})
        most = min(run.profile.subcall_output, _whole_number(params.get("max_output_tokens")) or sys.maxsize)
        calls = []
        for _, prompt, _, _, form in (task.args for task in new):
            size = tokens_of([{"role": "user", "content": form.prompt(prompt)}])
            calls.append((size, most))
            if form.schema is not None:  # what does not fit is asked for once more
                calls.append((size + most + _CORRECTION_TOKENS, most))
        cost = run.ledger.forecast(calls, run.price(backend))
        return Forecast(len(new), f"sub-calls of {backend.model}", cost)

    def _all_of(self, tasks: Sequence[partial[Any]]) -> Callable[[], list[Any]]:
        """All results in order; SubcallError, with `.results` and `.errors`, if some failed, once all have ended."""

        def work() -> list[Any]:
            self.run.confirm(lambda: self._forecast(tasks))
            with self.run.ledger.queue(len(tasks)) as begun:
                results = fan_out(self._counted(begun, tasks), self.run.options.max_parallel)
            self.run.ledger.check()
            errors = {n: r for n, r in enumerate(results) if isinstance(r, BaseException)}
            if errors:
                first = next(iter(errors.values()))
                raise SubcallError(
                    f"{len(errors)} of {len(results)} failed (.results has the others, .errors the reasons): {first}",
                    results=[None if n in errors else r for n, r in enumerate(results)],
                    errors=[str(errors[n]) if n in errors else None for n in range(len(results))],
                )
            return results

        return work

    def _leaf(self, key: str, prompt: str, model: str | None, cell: int, form: SubcallForm) -> Any:
        """One llm_query: the prompt as the only message, its answer as text, or as the data that was asked for."""
        content = form.prompt(prompt)
        messages = [{"role": "user", "content": content}]
        text = self._leaf_reply(key, messages, model, cell, form)
        if form.schema is None:
            return text
        value, problems = form.read(text)
        if not problems:
            return value
        again = f"That does not fit: {'; '.join(problems[:5])}. Answer again, with JSON only."
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
        if f"{key}/again" not in self.run.recording.results_by_key:
            self.run.ledger.count_subcalls(1)
        text = self._leaf_reply(f"{key}/again", messages, model, cell, form)
        value, problems = form.read(text)
        if problems:
            raise SubcallError(f"the answer does not fit the schema: {'; '.join(problems[:5])}", partial=text)
        return value

    def _leaf_reply(self, key: str, messages: list[Message], model: str | None, cell: int, form: SubcallForm) -> str:
        def serve(recorded: Event) -> str:
            text = visible(recorded.get("response") or "")
            return _leaf_text(text, recorded.get("stop_reason"), recorded["token_usage"])

        def work() -> str:
            fields = {"node": self.id, "kind": "sub", "cell": cell, "key": key, "prompt": [dict(m) for m in messages]}
            fields.update(depth=self.depth + 1, parent=self.call_id)
            with our_errors():
                backend = self.run.backend_for(model)
                _require_room(backend, messages)
                most = self.run.profile.subcall_output
                reply = self.run.call(self, backend, messages, fields, most=most, response_schema=form.schema)
            return _leaf_text(visible(reply.text), reply.stop_reason, reply.usage)

        return self.run.recording.once(f"sub-call {key}", self.run.recording.results_by_key.get(key), serve, work)

    def _child(self, key: str, prompt: str, context: object, cell: int, parent: str | None) -> object:
        """One rlm_query: a node one deeper, with a REPL of its own; FINAL's value, else its text."""
        run = self.run
        child = Node(run, Context(context, "code"), depth=self.depth + 1, parent=parent, key=key, cell=cell)
        ended = run.recording.ends.get(child.id)
        if (
            ended
            and ended["status"] == "answered"
            and not run.recording.is_replay
            and ("value" in ended or not ended["given"])
        ):
            return rlm_sandbox.unpack(ended["value"]) if ended["given"] else ended["response"]
        answer = child.complete(prompt)
        return answer.value if answer.given else answer.text

    def _tool_preparation(
        self, name: str, bind: Callable[..., dict[str, object]], call: Callable[[dict[str, object]], object]
    ) -> Plan:
        def prepare(*args: object, **kwargs: object) -> Callable[[], object]:
            arguments = bind(*args, **kwargs)
            key = self._key(name, arguments)
            return partial(self._tool_from_code, name, partial(call, arguments), arguments, key, self.cells)

        return prepare

    def _tool_from_code(
        self, name: str, call: Callable[[], object], arguments: dict[str, object], key: str, cell: int
    ) -> object:
        """A tool called by the model's code: its result as Python data, journalled so that a re-run gets the same."""
        recorded = self.run.recording.results_by_key.get(key)

        def serve(recorded: Event) -> object:
            self.run.add_tool_call(name, arguments, self, is_error=bool(recorded.get("error")))
            if recorded.get("error"):
                raise _recorded_error(recorded["error"])
            return rlm_sandbox.unpack(recorded["result"])

        def work() -> object:
            started = time.monotonic()
            result, error = None, None
            try:
                result = self.run.run_cancellable(call)
            except Exception as raised:  # whatever a tool raises belongs to the code that called it
                self.run.ledger.check()
                error = raised
            if recorded is None:
                fields = {"key": key, "from_cell": cell, "name": name, **packed("arguments", arguments)}
                if error is None:
                    fields.update(packed("result", result))
                shown = f"{type(error).__name__}: {error}" if error else _cut(rlm_tools.render(result), 2000)
                self._journal_tool(key, name, shown, error, started, **fields)
            self.run.add_tool_call(name, arguments, self, is_error=error is not None)
            if error is not None:
                raise error
            return result

        kept = recorded if recorded and (recorded.get("error") or "result" in recorded) else None  # or it was too large
        return self.run.recording.once(f"result of {name}", kept, serve, work)

    # compaction

    def _compact(self, *, force: bool = False) -> bool:
        """When the window fills, replace the oldest outputs by stubs, in one step; if that is too little, summarise."""
        window = window_of(self.run.backend)
        before = tokens_of(self.messages)
        if not self.run.options.compaction or not (force or before > 0.75 * window):
            return False
        places = self._stub_oldest(min(0.25 * window, 0.5 * before))
        after = tokens_of(self.messages)
        fields: Event = {"places": places, "cells": [n for p in places for n in self.messages[p]["_cells"]]}
        if after > 0.6 * window:
            fields["summary"] = self._summarise()
            after = tokens_of(self.messages)
        if not places and "summary" not in fields:
            return False
        fields.update(tokens_before=before, tokens_after=after, turn=self.turn)
        self.run.write("compact", depth=self.depth, parent=self.parent, node=self.id, **fields)
        return True

    def _stub_oldest(self, goal: float) -> list[int]:
        """Replace outputs, the oldest first, until the goal (tokens) is met; the places of those messages."""
        places, size = [], tokens_of(self.messages)
        for place, message in enumerate(self.messages[:-2]):
            if size <= goal:
                break
            if "_cells" in message and len(message["content"]) > _STUB_WORTH and not message.get("_stub"):
                size -= tokens_of([message])
                self.messages[place] = _stubbed(message)
                places.append(place)
        return places

    def _summarise(self) -> str:
        """Ask for a summary of the work so far and go on from that: the last resort."""
        request = {"role": "user", "content": _SUMMARISE}
        event_fields = {"node": self.id, "kind": "summary", "turn": self.turn, "prompt": [request]}
        event_fields.update(depth=self.depth, parent=self.parent)
        kept = [m for m in self.messages if m["role"] != "system"][-_SUMMARY_KEEPS:]
        window = window_of(self.run.backend)
        room = min(4000, 2 * window // max(1, len(kept)))  # characters of each: half a window of all
        text = "\n\n".join(f"{m['role']}: {_cut(str(m['content']), room)}" for m in kept)
        ask = [{"role": "user", "content": f"{text}\n\n{_SUMMARISE}"}]
        reply = self.run.call(self, self.run.backend, ask, event_fields, most=SUBCALL_OUTPUT)
        self._replace_by_summary(visible(reply.text))
        return visible(reply.text)

    def _replace_by_summary(self, summary: str) -> None:
        newest = [m for m in self.messages[2:] if m.get("_prompt")][-1:]  # a conversation's question is not summed up
        summed_up = {"role": "user", "content": f"[the work so far, summed up]\n{summary}"}
        self.messages[2:] = [summed_up, *newest]
        self.logged_count = len(self.messages)

    def _replay_compaction(self) -> bool:
        """Compact the messages as the journal says that they were before this turn, if it does."""
        event = self.run.recording.compactions.get((self.id, self.turn))
        if event is None:
            return False
        for place in event["places"]:
            self.messages[place] = _stubbed(self.messages[place])
        if "summary" in event:
            self._replace_by_summary(event["summary"])
        return True


_STOP_SECONDS = 2.0  # what a persistent run has to stop in after Ctrl-C, before its REPL is given up
_JOURNALLED_IMAGES = 1_000_000  # characters of a cell's images that the journal keeps
_JOURNALLED_VALUE = 1_000_000  # characters of a tool's result or of FINAL's value that the journal keeps
_UNKNOWN_WINDOW = 128_000  # tokens
_STUB_WORTH = 400  # characters; a shorter output is not worth replacing
_SUMMARY_KEEPS = 40  # messages that a summary is made of
_SUMMARISE = (
    "Sum up this work so that it can go on without the messages above: what was found (with figures), which variables "
    "in the REPL hold what, what was tried in vain, what is left to do."
)


class Outcome(NamedTuple):
    """The outcome of a cell or a tool call: the text the model reads, the error to count, the answer by FINAL."""

    text: str
    line: Event  # the reference to the journal's line that has it
    error: RLMError | None = None
    answer: Answer | None = None
    cell: int = 0
    call_id: str = ""
    fruitless: bool = False  # an error, or for a small model an empty result


class HostFunction:
    """A function as code in the REPL sees it. `schedule` runs as the call arrives, so that keys follow that order."""

    def __init__(self, node: Node, prepare: Plan, *, batched: bool = False) -> None:
        self.batched = batched  # the sandbox may split its first list when that is too large for one message
        self._node = node
        self._plan = prepare

    def schedule(self, *args: object, **kwargs: object) -> Callable[[], object]:
        work = self._guarded(lambda: self._plan(*args, **kwargs))
        return lambda: self._guarded(work)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.schedule(*args, **kwargs)()

    def _guarded(self, work: Callable[[], T]) -> T:
        """What stops the tree stops the cell; any other error of ours is noted and raised in the cell."""
        try:
            return work()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):  # of a caller's function: meant for the run, not for the cell
                self._node.run.ledger.fail(error)
            if self._node.run.ledger.stopped is not None:
                raise rlm_sandbox.AbortCell(str(self._node.run.ledger.stopped)) from error
            if isinstance(error, RLMError):
                self._node.last_error = error
            raise


def our_error(error: Exception) -> RLMError:
    """The error that users catch, for one of a module below."""
    hint = getattr(error, "hint", "")
    if isinstance(error, rlm_sandbox.SandboxError):
        return SandboxError(str(error), hint=hint)
    if isinstance(error, rlm_backends.BackendError) and error.code != "config":
        return ProviderError(str(error), provider=error.provider or "", status=error.status, hint=hint)
    return ConfigError(str(error), hint=hint)


@contextlib.contextmanager
def our_errors() -> Iterator[None]:
    """Raise what the modules below raise as errors that users catch."""
    try:
        yield
    except (rlm_backends.BackendError, rlm_sandbox.SandboxError, rlm_tools.ToolError) as error:
        raise our_error(error) from error


def _journal_form(message: Message) -> Message:
    """A message as a `call` line has it: without its content where another line holds that."""
    left_out = ("raw", "content", "is_error") if "_refs" in message else ("raw",)
    form = {k: v for k, v in message.items() if not k.startswith("_") and k not in left_out}
    if "_refs" in message:
        form["refs"] = message["_refs"]
    return form | ({"replaces": True} if message.get("_replaces") else {})


def _stubbed(message: Message) -> Message:
    """The message with a short stub instead of its outputs."""
    kept = " and ".join(f"_out[{n}]" for n in message["_cells"])
    where = f"it is in {kept}" if kept else "call the tool again if you need it"
    content = f"[{len(message['content']):,} characters of output stood here; {where}]"
    return {k: v for k, v in message.items() if k != "_tokens"} | {"content": content, "_stub": True}


def tokens_of(messages: Iterable[Message]) -> int:
    """About how many tokens the messages have; each is measured once, since a run sends it again and again."""
    total = 0
    for message in messages:
        if "_tokens" not in message:
            message["_tokens"] = rlm_backends.estimate_tokens([message])
        total += message["_tokens"]
    return total


def _without_login(url: str | None) -> str | None:
    return re.sub(r"//[^/@]*@", "//", url) if url else None


def error_fields(error: BaseException) -> Event:
    """An error as the journal has it."""
    return {"type": type(error).__name__, "message": str(error)}


def error_in(traceback: str, status: str) -> Event:
    """The exception that a cell's traceback ends with; the cell's status stands for the type of what was none."""
    lines = _CHAINED.split(traceback)[-1].split("\n")
    start = next((n for n, line in enumerate(lines) if not re.match(r"\s|Traceback|$", line)), 0)
    name, _, message = "\n".join(lines[start:]).rstrip().partition(": ")
    if re.fullmatch(r"(?:\w+\.)*[A-Z]\w*", name):
        return {"type": name, "message": message}
    return {"type": status, "message": "\n".join(lines[start:]).rstrip()}


_CHAINED = re.compile(r"\n\n(?:The above exception was the direct cause of|During handling of the above)[^\n]*\n\n")


def image_uris(images: Iterable[Mapping[str, str]]) -> list[str | None]:
    """Images as data URIs; None for each that is beyond what the journal keeps of a cell."""
    uris: list[str | None] = []
    for image in images:
        uri = f"data:{image['media_type']};base64,{image['data']}"
        fits = sum(map(len, filter(None, uris))) + len(uri) <= _JOURNALLED_IMAGES
        uris.append(uri if fits else None)
    return uris


def _cut(text: str, limit: int) -> str:
    """The text, its middle left out if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _as_text(value: object) -> str:
    """FINAL's value as the response: text as it is, data as JSON where it is that, else as Python prints it."""
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list)):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            if json.loads(text := json.dumps(value, ensure_ascii=False)) == value:
                return text
    return str(value)


def packed(name: str, value: object) -> Event:
    """{name: value} as a journal line carries it and `rlm_sandbox.unpack` reads it; {} for one that is too large."""
    try:
        return {name: rlm_sandbox.Packer(_JOURNALLED_VALUE).pack(value)}
    except (TypeError, ValueError, RecursionError):
        return {}


# --- errors -----------------------------------------------------------------------------------------------------

RLMError.__module__ = ConfigError.__module__ = __name__  # as tracebacks name them: where users import them from


class ProviderError(RLMError):
    """A model's server refused a call, failed, or could not be reached, and retries did not help."""

    def __init__(self, message: str, *, provider: str = "", status: int | None = None, **common: Any) -> None:
        super().__init__(message, **common)
        self.provider = provider  # the provider's name
        self.status = status  # the HTTP status; None: there was no response


class SandboxError(RLMError, rlm_sandbox.SandboxError):
    """The environment that runs code cannot start, or it broke and a new cell does not help."""


class REPLExecutionError(RLMError):
    """The model's code failed `max_errors` times in a row."""

    def __init__(self, message: str, *, code: str = "", stderr: str = "", **common: Any) -> None:
        super().__init__(message, **common)
        self.code = code  # the last cell
        self.stderr = stderr  # its traceback


class ToolNotFoundError(RLMError):
    """The model called a tool that does not exist `max_errors` times in a row."""

    def __init__(self, tool_name: str, available_tools: Iterable[str] = (), **common: Any) -> None:
        self.tool_name = tool_name  # what it called
        self.available_tools = sorted(available_tools)  # the names of the tools that exist
        super().__init__(f"no tool is called {tool_name!r}; there are: {', '.join(self.available_tools)}", **common)


class LimitExceeded(RLMError):
    """A limit stopped the run; `result` has what was done until then. The base of the errors below.

    Raised directly if a batch or a child may cost more than `confirm_above` and was not confirmed.
    """

    option: str = ""  # the option that sets the limit
    needed: float | None = None  # the value of that option with which the run could go on; None: unknown


class MaxDepthExceeded(LimitExceeded):
    """`rlm_query` was called at `max_depth` `max_errors` times in a row. A single such call is an error in the cell."""

    option = "max_depth"

    def __init__(self, depth: int, max_depth: int, **common: Any) -> None:
        super().__init__(
            f"rlm_query would go to depth {depth}, the limit is {max_depth}: use llm_query instead", **common
        )
        self.depth = depth  # the depth that the child would have had
        self.max_depth = max_depth  # the limit


class MaxSubcallsExceeded(LimitExceeded):
    """`llm_query`, `map_query` and `rlm_query` asked for more calls than `max_subcalls`."""

    option = "max_subcalls"

    def __init__(self, calls: int, limit: int, **common: Any) -> None:
        super().__init__(
            f"{counted(calls, 'sub-call')} {'was' if calls == 1 else 'were'} asked for, the limit is {limit}", **common
        )
        self.calls = calls  # how many there would have been
        self.limit = limit  # the limit


class MaxIterationsExceeded(LimitExceeded):
    """The root gave no answer in `max_iterations` turns, nor in the last call without tools."""

    option = "max_iterations"

    def __init__(self, iterations: int, limit: int, **common: Any) -> None:
        super().__init__(f"no answer after {counted(iterations, 'turn')}, the limit is {limit}", **common)
        self.iterations = iterations  # the turns that were taken
        self.limit = limit  # the limit


class TokenBudgetExhausted(LimitExceeded):
    """The next call does not fit what is left of `token_budget`, so it was not sent."""

    option = "token_budget"

    def __init__(self, tokens_used: int, budget: int, *, needed: int = 0, **common: Any) -> None:
        need = f", and it needs about {needed:,}" if needed else ""
        super().__init__(f"the next call does not fit: {tokens_used:,} of {budget:,} tokens are used{need}", **common)
        self.tokens_used = tokens_used  # tokens of all calls so far
        self.budget = budget  # the limit, in tokens


class CostBudgetExhausted(LimitExceeded):
    """The next call does not fit what is left of `cost_budget_usd`, so it was not sent."""

    option = "cost_budget_usd"

    def __init__(self, cost_used: float, budget: float, **common: Any) -> None:
        used, most = (f"${cost:.4f}" if cost >= 0.001 or not cost else f"${cost:.2g}" for cost in (cost_used, budget))
        super().__init__(f"the next call does not fit: {used} of {most} is used", **common)
        self.cost_used = cost_used  # US dollars for all calls so far
        self.budget = budget  # the limit, in US dollars


class TimeoutExceeded(LimitExceeded):
    """The run took longer than `timeout_seconds`, and was stopped."""

    option = "timeout_seconds"

    def __init__(self, elapsed_seconds: float, timeout_seconds: float, **common: Any) -> None:
        super().__init__(f"stopped after {elapsed_seconds:.1f} s, the limit is {timeout_seconds:g} s", **common)
        self.elapsed_seconds = elapsed_seconds  # how long it ran
        self.timeout_seconds = timeout_seconds  # the limit


# --- the ledger: limits that hold for the whole tree of calls ----------------------------------------------------

_LEAST_OUTPUT = 16  # tokens; a call that could answer with fewer is not worth sending
_CORRECTION_TOKENS = 500  # of the message that an answer does not fit its schema
SUBCALL_OUTPUT = 4096  # tokens reserved for the answer of llm_query
_TURN_OUTPUT = 16_384  # the same for a turn, where the model's own maximum is not known
_TURN_OUTPUT_MOST = 32_768  # and where it is: parallel children must not wait for reservations that none will use
_USAGE = ("input", "output", "cached", "cache_write", "reasoning")

Price = Callable[[int, int], "float | None"]  # (input tokens, output tokens) -> USD


class Reservation(NamedTuple):
    """What a call may use at most."""

    tokens: int
    cost: float
    output: int


class Forecast(NamedTuple):
    """What a batch or a child will cost at most, before its first call. `str(forecast)` is a sentence."""

    calls: int  # how many sub-calls, children or runs
    what: str  # what they are: "sub-calls of gpt-4o-mini"
    cost_usd: float | None  # US dollars at most; None: the price is unknown

    def __str__(self) -> str:
        verb, what = "are", self.what
        if self.calls == 1:
            verb, what = (
                "is",
                what.replace("children", "child", 1).replace("calls", "call", 1).replace("runs", "run", 1),
            )
        amount = f"{verb} of unknown price" if self.cost_usd is None else f"may cost up to ${self.cost_usd:,.4f}"
        return f"{self.calls:,} {what} {amount}"

    def refusal(self, above: float) -> LimitExceeded:
        """The error for calls that nobody has confirmed."""
        error = LimitExceeded(f"{self}, and above ${above:g} that has to be confirmed: nothing of it was sent")
        error.option = "confirm_above"
        if self.cost_usd is None:
            error.hint = "give its price, --prices '{\"MODEL\": [1.0, 2.0]}', or confirm on a terminal"
        else:
            error.needed = math.ceil(self.cost_usd * 100 + 1e-6) / 100
            error.hint = f"confirm_above={error.needed:g}, or an on_confirm that returns True"
        return error


class LedgerGroup(NamedTuple):
    """What the runs of one batch share: their common ledger, if they have one, and that all of it was confirmed."""

    parent_ledger: Ledger | None
    is_confirmed: bool = False


class Ledger:
    """What the tree of calls has used, has in flight and may still use.

    A call reserves before it is sent and settles with its real usage. What nobody can mend is kept in `stopped`,
    raised in every thread that asks, and sets `cancel`, which ends the calls in flight. With a `parent_ledger`, that of
    a whole batch, the limits are those of the batch: this ledger only adds up its own part.
    """

    def __init__(self, options: Options, parent_ledger: Ledger | None = None) -> None:
        self.options = options
        self.started = time.monotonic()
        self.deadline = self.started + options.timeout_seconds if options.timeout_seconds else None
        self.changed = threading.Condition(threading.RLock())
        if parent_ledger is not None:
            self.deadline, self.changed = parent_ledger.deadline, parent_ledger.changed
        self.shared = parent_ledger or self  # what the limits are compared with
        self.cancel = threading.Event()
        self.stopped: BaseException | None = None
        self.usage = dict.fromkeys(_USAGE, 0)
        self.cost = 0.0
        self.saved = 0.0  # dollars that the provider's prompt cache made less
        self.unpriced = 0
        self.calls = 0
        self.subcalls = 0
        self.depth = 0
        self._held: list[Reservation] = []
        self._waiting = 0
        self._queued = 0

    @property
    def tokens(self) -> int:
        """Tokens used so far, in and out."""
        return self.usage["input"] + self.usage["output"]

    def fail(self, error: BaseException) -> BaseException:
        """Stop the whole tree; the first reason is the one that every thread gets to see."""
        with self.changed:
            if self.stopped is None:
                self.stopped = error
            self.cancel.set()
            self.changed.notify_all()
            return self.stopped

    def check(self) -> None:
        """Raise what stopped the tree or the batch, or the time limit if it has passed."""
        shared = self.shared
        if self.stopped is not None:
            raise self.stopped
        if shared.stopped is not None:
            raise self._stopped_with(shared.stopped)
        if self.deadline is not None and time.monotonic() >= self.deadline:
            elapsed = time.monotonic() - shared.started
            raise self._limit_reached(TimeoutExceeded(elapsed, self.options.timeout_seconds or 0))

    def _limit_reached(self, error: RLMError) -> BaseException:
        """Stop everything that shares the limit."""
        return self._stopped_with(self.shared.fail(error))

    def _stopped_with(self, reason: BaseException) -> BaseException:
        """Stop this tree for the reason that stopped the batch; each item has an error, for a result, of its own."""
        if self.shared is not self and isinstance(reason, RLMError):
            reason = rebuild_error(type(reason), reason.args, dict(reason.__dict__))
        return self.fail(reason)

    def remaining(self) -> float | None:
        """Seconds until the time limit, None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def count_subcalls(self, number: int) -> None:
        """Count prompts given to llm_query or rlm_query, all of them before the first is sent."""
        with self.changed:
            wanted = self.shared.subcalls + number
            if wanted > self.options.max_subcalls:
                raise self._limit_reached(MaxSubcallsExceeded(wanted, self.options.max_subcalls))
            self.shared.subcalls = wanted

    def forecast(self, calls: Iterable[tuple[int, int]], price: Price) -> float | None:
        """Dollars for calls of so many tokens in and at most so many out, never more than is left of the budget.

        None where the price is not known.
        """
        costs = [price(size, most) for size, most in calls]
        total = sum(cost or 0.0 for cost in costs)
        left = self.left()["cost_usd"]
        return None if None in costs else total if left is None else min(total, left)

    @contextlib.contextmanager
    def queue(self, number: int) -> Iterator[Callable[[], None]]:
        """Let `number` coming sub-calls share what is left, rather than the first taking it all.

        Each says by the function that is handed out that its turn has come: from then on it waits for itself.
        """
        waiting, shared = [number], self.shared

        def begun() -> None:
            with self.changed:
                if waiting[0]:
                    waiting[0] -= 1
                    shared._queued -= 1

        with self.changed:
            shared._queued += number
        try:
            yield begun
        finally:
            with self.changed:
                shared._queued -= waiting[0]

    def reserve(self, size: int, most: int, price: Price, *, wait: bool = True) -> Reservation:
        """Room for a call of `size` tokens of input and up to `most` of output; waits for calls in flight if it must.

        Raises TokenBudgetExhausted or CostBudgetExhausted when it still does not fit once nothing is in flight.
        """
        shared = self.shared
        with self.changed:
            shared._waiting += 1
            try:
                while True:
                    self.check()
                    output = shared._room(size, most, price)
                    if output >= min(_LEAST_OUTPUT, most):
                        break
                    if not (shared._held and wait):
                        raise self._limit_reached(shared._exhausted(size))
                    self.changed.wait(self.remaining())
            finally:
                shared._waiting -= 1
            reservation = Reservation(size + output, price(size, output) or 0.0, output)
            shared._held.append(reservation)
            return reservation

    def _room(self, size: int, most: int, price: Price) -> int:
        """The tokens of output that a call of `size` could be granted now."""
        sharers = max(1, self._waiting + self._queued)
        room = self.options.token_budget - self.tokens - sum(t.tokens for t in self._held) - size
        output = min(most, room // sharers if room // sharers >= _LEAST_OUTPUT else room)
        if self.options.cost_budget_usd is not None:
            left = self.options.cost_budget_usd - self.cost - sum(t.cost for t in self._held)
            base = price(size, 0) or 0.0
            each = ((price(size, 1000) or 0.0) - base) / 1000
            if left < base:
                return -1
            output = min(output, int((left - base) / each)) if each else output
        return output

    def _exhausted(self, size: int) -> LimitExceeded:
        budget = self.options.cost_budget_usd
        if self.options.token_budget - self.tokens - size >= _LEAST_OUTPUT and budget is not None:
            return CostBudgetExhausted(self.cost, budget)
        return TokenBudgetExhausted(self.tokens, self.options.token_budget, needed=size + _LEAST_OUTPUT)

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back after a call without a reply."""
        with self.changed:
            self.shared._held.remove(reservation)
            self.changed.notify_all()

    def settle(self, reservation: Reservation, usage: Mapping[str, int], cost: float | None, saved: float) -> None:
        """Replace a reservation by what the call really used, before anybody can reserve what it gives back."""
        with self.changed:
            self.shared._held.remove(reservation)
            self.spend(usage, cost, saved)

    def spend(self, usage: Mapping[str, int], cost: float | None, saved: float = 0.0) -> None:
        """Enter a call that has been paid for."""
        with self.changed:
            for ledger in {self, self.shared}:
                ledger._enter(usage, cost, saved)
            self.changed.notify_all()

    def _enter(self, usage: Mapping[str, int], cost: float | None, saved: float) -> None:
        for name in _USAGE:
            self.usage[name] += int(usage.get(name) or 0)
        self.calls += 1
        self.saved += saved
        if cost is None:
            self.unpriced += 1
        else:
            self.cost += cost

    @property
    def cost_usd(self) -> float | None:
        """Dollars spent; None when the price of a call is not known."""
        return None if self.unpriced else round(self.cost, 9)

    def left(self) -> dict[str, Any]:
        """What remains of each limit; None for one that is not set."""
        options, used, seconds = self.options, self.shared, self.remaining()
        cost = None if options.cost_budget_usd is None else max(0.0, round(options.cost_budget_usd - used.cost, 9))
        return {
            "tokens": max(0, options.token_budget - used.tokens),
            "cost_usd": cost,
            "subcalls": max(0, options.max_subcalls - used.subcalls),
            "seconds": None if seconds is None else round(seconds, 1),
        }

    def nearly_used(self) -> list[str]:
        """Of which limits less than a tenth is left, in words for the model."""
        left, options = self.left(), self.options
        limits = (
            ("tokens", options.token_budget, "{:,} tokens"),
            ("cost_usd", options.cost_budget_usd, "${:.4f}"),
            ("subcalls", options.max_subcalls, "{} sub-calls"),
            ("seconds", options.timeout_seconds, "{:.0f} s"),
        )
        return [words.format(left[name]) for name, whole, words in limits if whole and left[name] <= whole / 10]


# --- the journal: one JSONL file per run -------------------------------------------------------------------------

SCHEMA_VERSION = 2
Event = dict[str, Any]  # a line, or what it says of a context, an error, a cell …


def new_id() -> str:
    """An id of a run, such as 'a1b2c3-d4e5f6'."""
    digits = os.urandom(6).hex()
    return f"{digits[:6]}-{digits[6:]}"


def timestamp() -> str:
    """Now, in UTC, ISO 8601 with microseconds."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"


def reference(line: Event) -> Event:
    """What names a line of the journal in another: {call_id, index}."""
    return {name: line.get(name) for name in ("call_id", "index")}


class Journal:
    """The run's events, appended and flushed line by line before the next step depends on them.

    Literal keys in `secrets` never get in. Without a `path` events only reach the listeners.
    """

    def __init__(
        self,
        path: str | None,
        trajectory_id: str,
        *,
        secrets: Iterable[str] = (),
        on_event: Iterable[Callable[[Event], None] | None] = (),
        on_progress: Iterable[Callable[[Event], None] | None] = (),
        append: bool = False,
        follow_links: bool = True,
    ) -> None:
        self.path = path
        self.on_event = list(filter(None, on_event))
        self.on_progress = list(filter(None, on_progress))
        self.trajectory_id = trajectory_id
        self.secrets = [json.dumps(s)[1:-1] for s in secrets if s and len(s) >= 8]  # as they would stand in a line
        self._lock = threading.Lock()
        self._closed = False
        self._only: int | None = None
        self._file = -1
        self._lines = 0
        if path is not None:
            self._file = _open_journal(path, append, follow_links)
            if append:
                self._lines = _cut_torn_tail(path)

    def write(
        self, event: str, *, call_id: str | None = None, parent: str | None = None, depth: int = 0, **fields: object
    ) -> Event:
        """Append one event; returns the reference to it. Once the journal is closed, a late thread's are dropped."""
        with self._lock:
            line: Event = {
                "v": SCHEMA_VERSION,
                "event": event,
                "index": self._lines,
                "trajectory_id": self.trajectory_id,
                "call_id": call_id,
                "parent_call_id": parent,
                "depth": depth,
                "timestamp": timestamp(),
                **fields,
            }
            if not self._closed and self._only in (None, threading.get_ident()):
                text = to_json(line, separators=(",", ":"))
                if any(secret in text for secret in self.secrets):
                    for secret in self.secrets:
                        text = text.replace(secret, "[redacted]")
                    line = json.loads(text)
                if self._file >= 0:
                    self._append(text.encode("ascii") + b"\n")
                self._lines += 1
                self._notify("on_event", line)
            return reference(line)

    def _append(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self._closed = True
            raise RLMError(
                f"cannot write the journal {self.path}: {error.strerror}", hint="free some space, then: rlm resume"
            ) from error

    def emit(self, event: str, **fields: object) -> None:
        """Send the listener an event that is not journalled (so it has no `v`): text or output as it arrives."""
        self._notify("on_event", {"event": event, "trajectory_id": self.trajectory_id, **fields})

    def progress(self, phase: str, **fields: object) -> None:
        """Report progress: {"event": "progress", "phase": asking, reading, running, subcalls or loading}."""
        self._notify(
            "on_progress", {"event": "progress", "trajectory_id": self.trajectory_id, "phase": phase, **fields}
        )

    def _notify(self, name: str, line: Event) -> None:
        """Call the listeners of that name; one that raises is not called again."""
        listeners: list[Callable[[Event], None]] = getattr(self, name)
        for call in [*listeners]:
            try:
                call(line)
            except Exception as error:
                import warnings

                with contextlib.suppress(ValueError):  # it raised on another thread, too
                    listeners.remove(call)
                warnings.warn(f"{name} raised {error!r} and is not called again", RuntimeWarning, stacklevel=3)

    def reject_other_threads(self) -> None:
        """Accept only this thread's events from now on: the other threads have been stopped."""
        with self._lock:
            self._only = threading.get_ident()

    def close(self) -> None:
        """Close the file; later events are dropped."""
        with self._lock:
            self._closed = True
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def _open_journal(path: str, append: bool, follow_links: bool = True) -> int:
    """A descriptor that appends to the journal, locked against a second process; ConfigError if that cannot be.

    Without `follow_links` the folder may be no link: nobody has named it, and the project may be anyone's.
    """
    folder = os.path.dirname(path) or "."
    if not follow_links and os.path.islink(folder):
        where = os.path.realpath(folder)
        raise ConfigError(f"the log folder {folder} is a link to {where}", hint=f"--log-dir {where}, if that is meant")
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    flags = flags if append else flags | os.O_CREAT | os.O_EXCL
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write to the log folder {folder}: {error.strerror}", hint="--log-dir DIR") from error
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has no flock; two processes on one run are the user's own doing there
        pass
    except OSError:
        os.close(descriptor)
        raise ConfigError(f"{path} is in use: that run is still going on", hint="wait for it, or stop it") from None
    return descriptor


_FIELDS_OF: dict[type | tuple[type, ...], str] = {
    str: "event node call_id system response code stdout model sub_model protocol environment base_url instructions"
    " announcement note profile traceback",
    int: "depth index",
    (str, list): "prompt",
    (int, list): "images",
    list: "tool_calls tool_results tools allowed_paths",
    dict: "limits context token_usage schema params sub_params",
}
_FIELDS = {name: kind for kind, names in _FIELDS_OF.items() for name in names.split()}
_TOOL_FIELDS = {**_FIELDS, "value": str, "error": dict}
LINE_LIMIT = 64 << 20  # bytes of a journal's line
EVENT_DEPTH = 400  # of lists and objects in one: Python data that JSON lacks takes three for one


def read_journal(path: str) -> list[Event]:
    """The events of a journal, in the newest version; a torn line, or one that is not ours, is skipped."""
    events, upgrade, number = [], None, 0
    with open(path, "rb") as file:
        while line := file.readline(LINE_LIMIT):
            event = journal_event(line)
            if event is not None and event.get("v") in (None, 1):
                upgrade = upgrade or sibling("rlm_viz").Upgrade()
                event = upgrade.add(event, number)
            if event is not None and event.get("event") is not None and _has_our_types(event):
                events.append(event)
            number += line.endswith(b"\n")
    return events


def journal_event(line: bytes | bytearray) -> Event | None:
    """The event in a complete line of a journal; None if it holds none."""
    if not line.endswith(b"\n"):
        return None
    with contextlib.suppress(ValueError):
        event = rlm_backends.from_json(line, depth=EVENT_DEPTH, constant=float)
        return event if isinstance(event, dict) else None
    return None


def _has_our_types(event: Event) -> bool:
    fields = _TOOL_FIELDS if event["event"] == "tool" else _FIELDS
    if not all(event.get(name) is None or isinstance(event[name], kind) for name, kind in fields.items()):
        return False
    amounts = [*(event.get("token_usage") or {}).values(), event.get("cost_usd")]
    if not all(isinstance(n, (int, float)) and 0 <= n < 1e15 for n in amounts if n is not None):
        return False
    lists = {"call": ("prompt", "tool_calls"), "tool": ("tool_results",)}.get(event["event"], ())
    return all(isinstance(item, dict) for name in lists for item in event.get(name) or ())


def _cut_torn_tail(path: str) -> int:
    """Remove an unfinished last line, so that appended events begin a new one; returns how many lines there are."""
    with open(path, "r+b") as file:
        blob = file.read()
        file.truncate(blob.rfind(b"\n") + 1)
    return blob.count(b"\n")


# --- how resume and replay work ----------------------------------------------------------------------------------


class JournalIndex:
    """The events of a journal under the keys by which a resumed run finds them. Empty for a new run.

    How resume works: `RLM.resume` starts the run again from its beginning, with the recorded prompt, context and
    options. The nodes do what they always do, but each step that is paid for or has an effect outside the REPL
    (a turn, a sub-call, a child, a tool call) goes through `once`, which serves it from here if the journal holds it.
    Only cells run again, since their variables are needed; the sub-calls and tools in them are served. At the first
    step that the journal lacks the run is live again, and its events are appended. A replay is the same, offline:
    there such a step is an error.

    The keys have to come out the same each time, whatever order threads run in:
      turns and cells       (node, number)
      a model's tool calls  (node, turn, id)
      what code calls       node/cell/digest of its arguments/ordinal among equal calls, counted as the calls arrive
      (llm_query, rlm_query, tools)
    What is served counts against the limits, once: `Run` enters it all when it begins.
    """

    def __init__(self, events: Iterable[Event] = (), *, is_replay: bool = False) -> None:
        self.is_replay = is_replay
        self.turns: dict[tuple[str, int], Event] = {}
        self.cells: dict[tuple[str, int], Event] = {}
        self.results_by_key: dict[str, Event] = {}  # leaf sub-calls and tools called from code
        self.tools: dict[tuple[str, int, str], Event] = {}
        self.compactions: dict[tuple[str, int], Event] = {}
        self.restarts: dict[str, set[int]] = {}  # the turns after which a node began afresh
        self.starts: dict[str, Event] = {}
        self.ends: dict[str, Event] = {}
        self.children: dict[str, str] = {}
        self.raised: dict[str, Any] = {}  # limits that a resume had
        self.calls: list[Event] = []
        self.new_calls: list[Event] = []  # of the newest prompt: limits hold for each prompt
        self.new_children: set[str] = set()
        self.prompts: list[Event] = []  # the root's starts, one for each prompt of a conversation
        for event in events:
            with contextlib.suppress(LookupError, TypeError):  # a foreign or damaged line records nothing
                self._add(event)

    def once(self, step: str, recorded: Event | None, serve: Callable[[Event], T], work: Callable[[], T]) -> T:
        """Serve a step from the journal if it holds it (as `recorded`); else do it, which also journals it."""
        if recorded is not None:
            return serve(recorded)
        if self.is_replay:
            raise ConfigError(f"the recording has no {step}", hint="record the run again")
        return work()

    def _add(self, event: Event) -> None:
        kind, node = event["event"], event.get("node", "")
        if kind == "start":
            self.starts.setdefault(node, event)
            if event.get("key"):
                self.children[event["key"]] = node
                self.new_children.add(event["key"])
            elif node == "n0":
                self.prompts.append(event)
                self.new_calls, self.new_children = [], set()
        elif kind == "call":
            self.calls.append(event)
            self.new_calls.append(event)
            if event["kind"] == "turn":
                self.turns[node, event["turn"]] = event
            elif event["kind"] == "sub":
                self.results_by_key[event["key"]] = event
        elif kind == "tool":
            if "cell" in event:
                self.cells[node, event["cell"]] = event
            elif not event.get("tool_results"):
                return
            elif "key" in event:
                self.results_by_key[event["key"]] = event
            else:
                self.tools[node, event["turn"], event["tool_calls"][0]] = event
        elif kind == "compact" and event.get("restart"):
            self.restarts.setdefault(node, set()).add(event["turn"])
        elif kind == "compact":
            self.compactions[node, event["turn"]] = event
        elif kind == "end":
            self.ends[node] = event
        elif kind == "resume":
            self.raised.update({name: value for name, value in (event.get("limits") or {}).items() if name in LIMITS})


class ReplayBackend:
    """The model of a replay. The journal answers first, so a call that reaches this is a divergence."""

    provider = "replay"

    def __init__(self, recording: JournalIndex) -> None:
        root = recording.starts.get("n0", {})
        self.model = root.get("model") or "recorded"
        self.supports_tools = root.get("protocol") != "text"

    def complete(self, messages: list[Message], **how: object) -> object:
        """Always an error: only calls that the journal lacks get here."""
        raise rlm_backends.BackendError("the recording has no such call", code="config", provider="replay")


def _is_stream(path: str) -> bool:
    """Whether a journal is that of a `stream`, which cannot go on."""
    starts = (event for event in read_journal(path) if event["event"] == "start")
    return bool(next(starts, {}).get("protocol") == "stream")


def _is_rereadable(source: object) -> bool:
    """Whether a context is files that a resume reads again, rather than what a reader made, a page or a value."""
    return isinstance(source, dict) and "documents" not in source


def _read_again(source: Event, journal: str) -> object:
    """The files that a journal names, as they are now: by the names they had, and nothing but those."""
    paths = _texts(source.get("paths"))
    names = _texts(source.get("names", paths))
    encoding = source.get("encoding")
    if encoding is not None:
        require_encoding(str(encoding), journal)
    if not paths or len(names) != len(paths):
        raise ConfigError(f"{journal} does not say which files its context was", hint="start a new run")
    try:
        contents = [rlm_tools.read_file(path, encoding) for path in paths]
    except rlm_tools.ToolError as error:
        raise ConfigError(str(error), hint="restore it, or start a new run") from error.__cause__
    return contents[0] if source.get("single") else dict(zip(names, contents))


def _texts(value: object) -> list[str]:
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def _recorded_error(error: Event) -> Exception:
    """The exception that a tool raised when it was recorded, with the same class name, so that code can catch it."""
    name = str(error.get("type"))
    kind: type[Exception] = type(name if name.isidentifier() else "ToolError", (RuntimeError,), {})
    return kind(str(error.get("message", "")))


# --- the context: the input that is not put into the prompt ------------------------------------------------------

_SAVED_CONTEXT = 64_000_000  # bytes; a larger value is not kept beside the journal
_SAVED_AT_ONCE = 1_000_000  # bytes; a larger one is compressed while the first call is under way
_IMAGES = 20  # shown with a prompt
_IMAGE_DATA = r"(?i)data:image/\w+;base64,[\w+/=]+"
_IMAGE_URL = r"(?i)https?://\S+\.(?:png|jpe?g|gif|webp)(?:\?\S*)?"
_PLAIN = (str, bytes, int, float, bool, type(None))
_ALL_OF_IT = "This is all of it:"  # stands before a context that is shown whole


@dataclass(frozen=True)
class Context:
    """The value of the variable `context`, its source, and notes on what was left out."""

    value: Any  # what code finds there
    source: object = "value"  # the caller's "value", "stdin", {"paths": [...]}, or what "code" handed to a child
    notes: tuple[str, ...] = ()  # what was left out or converted, a sentence each; the model is told

    @property
    def kind(self) -> str:
        return type(self.value).__name__

    @cached_property
    def images(self) -> list[Message]:
        """The images in it, as message parts: the model is shown them with the prompt.

        The provider fetches what is given by URL. So that is for the caller alone to give, as the whole context: in a
        file, or handed over by code, it would carry whatever its address holds out of a sandbox without a network.
        """
        value = self.value
        if self.source == "value" and isinstance(value, str) and len(value) < 8_000 and re.fullmatch(_IMAGE_URL, value):
            return [rlm_backends.image_part(value)]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        return list(islice(filter(None, map(_image_in, items)), _IMAGES))

    @cached_property
    def format(self) -> str:
        """The format of a text that has one, as `describe` says it."""
        return _format_of(self.value) if isinstance(self.value, str) else ""

    @cached_property
    def parsed(self) -> dict[str, Any]:
        """What code would make of it: `rows` of a table, `data` of JSON, `lines`, `numbers`, `tables` of files."""
        return _parsed(self.value, self.format)

    @cached_property
    def is_data(self) -> bool:
        """Whether it is records rather than prose: a table, JSON, numbers, or lines that are made alike."""
        return any(name != "lines" or _alike(value[:5]) for name, value in self.parsed.items())

    @property
    def is_images(self) -> bool:
        """Whether it is images and nothing else: the model sees them with the prompt."""
        items = len(self.value) if isinstance(self.value, (dict, list, tuple)) else 1
        return 0 < len(self.images) == items

    def whole(self, limit: int) -> str | None:
        """The context as text, if that is no longer than so many characters and says all; else None."""
        value = self.value
        if isinstance(value, bytes) or value is None or self.images:
            return None
        if not isinstance(value, str):
            if size_up_to(value, limit) > limit:
                return None
            value = repr(value)
        return value if len(value) <= limit else None

    def describe(self, show_below: int = 0) -> str:
        """The description in the prompt: all of it up to `show_below` characters, else type, size and first lines."""
        value = self.value
        if shown := self.whole(show_below):
            return f"`context` is a {self.kind} of {_amount(value)}{self._notes()}. {_ALL_OF_IT}\n{shown}"
        if value is None:
            return "There is no input: `context` is None."
        if isinstance(value, (str, bytes)):
            ends = "\n" if isinstance(value, str) else b"\n"
            lines = value.count(ends) + bool(value and not value.endswith(ends))  # type: ignore[arg-type]
            text = f"`context` is a {self.kind} of {_amount(value)} in {counted(lines, 'line')}"
            text += self.format
            head = _head(value)
        elif isinstance(value, dict):
            text = f"`context` is a dict of {_amount(value)}"
            rows = [f"{shorten(k)}: {_shape(v)}" for k, v in islice(value.items(), 8)]
            head = "\n".join(rows)
        elif isinstance(value, (list, tuple, set, frozenset)):
            text = f"`context` is a {self.kind} of {_amount(value)}"
            head = "\n".join(shorten(v) for v in islice(value, 4))
        else:
            return f"`context` is {shorten(value)} ({self.kind})."
        return f"{text}{self._notes()}. It begins:\n{head}" if head else f"{text}{self._notes()}."

    def _notes(self) -> str:
        shown = (f"{counted(len(self.images), 'image')} in it sent with the request",) if self.images else ()
        return "".join(f" ({note})" for note in (*self.notes, *shown))

    def size(self) -> int:
        """Characters, bytes or items."""
        return len(self.value) if hasattr(self.value, "__len__") else 1

    @cached_property
    def event_fields(self) -> Event | None:
        """The `context` field of the `start` event."""
        if self.value is None:
            return None
        digest, size = _digest(self.value)
        return {"type": self.kind, "size": self.size(), "bytes": size, "sha256": digest, "source": self.source}


def _image_in(value: object) -> Message | None:
    """The message part of an image given by its bytes or a data URI; else None."""
    if not isinstance(value, (str, bytes)) or len(value) > 50_000_000:
        return None
    if isinstance(value, str) and not re.fullmatch(_IMAGE_DATA, value):
        return None
    try:
        return rlm_backends.image_part(value)
    except ValueError:
        return None


_PARSED = 20_000_000  # characters of JSON that are parsed to say what is in it


def _format_of(text: str, parsed: int = _PARSED) -> str:
    """The format of a text that has one, and what it holds: `, CSV with the columns a, b`; else "".

    `parsed`: characters of JSON up to which it is parsed for that.
    """
    start = text[:1000].lstrip()
    if start[:1] in ("[", "{") and len(text) <= parsed:
        with contextlib.suppress(ValueError, RecursionError):
            return f", JSON: {_json_shape(rlm_backends.from_json(text, constant=float))}"
    lines = [line for line in text[:20_000].split("\n")[:5] if line]
    if len(lines) < 3:
        return ""
    for sign, name in ((",", "CSV"), ("\t", "tab-separated")):
        columns = [column.strip() for column in lines[0].split(sign)]
        counts = {line.count(sign) for line in lines if '"' not in line}
        if counts == {len(columns) - 1} and len(columns) > 1 and all(re.fullmatch(_COLUMN, c) for c in columns):
            return f", {name} with the columns {', '.join(columns[:30])}"
    for pattern, name in ((r"\d{4}-\d\d-\d\d", "date"), (r"-?\d+(?:\.\d+)?", "number")):
        if all(re.fullmatch(pattern, line.strip()) for line in lines):
            return f", one {name} a line"
    return ""


_COLUMN = r"\"?[A-Za-z_][\w-]*(?: [\w()/%-]+){0,2}\"?"


def _json_shape(value: object) -> str:
    if isinstance(value, list):
        shown = f", the first is {_short_json(value[0])}" if value else ""
        return f"a list of {len(value):,} item{'s' * (len(value) != 1)}{shown}"
    if isinstance(value, dict):
        keys = ", ".join(shorten(key)[1:-1] for key in islice(value, 20))
        more = ", …" if len(value) > 20 else ""
        first = next(iter(value.values()), None)
        shown = f", the first holds {_short_json(first)}" if isinstance(first, (list, dict)) else ""
        return f"an object with the key{'s' * (len(value) != 1)} {keys}{more}{shown}"
    return type(value).__name__


def _short_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _head(text: str | bytes) -> str:
    """The first lines of a text, each cut short."""
    if isinstance(text, bytes):
        return shorten(text[:60])
    lines = text[:2000].split("\n")[:3]
    return "\n".join(line[:160] + ("…" if len(line) > 160 else "") for line in lines)


def _amount(value: object) -> str:
    """How much a value holds, with its unit: `1,204 characters`."""
    unit = {"str": "character", "bytes": "byte", "dict": "key"}.get(type(value).__name__, "item")
    size = len(value) if hasattr(value, "__len__") else 1
    return f"{size:,} {unit}{'s' * (size != 1)}"


def size_up_to(value: object, limit: int) -> int:
    """About how many characters plain data takes when it is written down; counting ends beyond `limit`."""
    size, stack = 0, [value]
    while stack and size <= limit:
        item = stack.pop()
        size += len(item) + 2 if isinstance(item, (str, bytes)) else 2
        if isinstance(item, dict):
            stack += [*islice(item.keys(), limit), *islice(item.values(), limit)]
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += islice(item, limit)
    return size


def _shape(value: object) -> str:
    if not hasattr(value, "__len__"):
        return shorten(value)
    form = _format_of(value, 100_000) if isinstance(value, str) else ""
    return f"{type(value).__name__}, {_amount(value)}{form}"


def _digest(value: object) -> tuple[str, int]:
    """(sha256, size in bytes) of plain data; texts of a list are hashed joined, with their lengths."""
    sha, size = sha256(), 0

    def add(kind: str, shape: object, pieces: Iterable[bytes | bytearray] = ()) -> None:
        nonlocal size
        sha.update(f"{kind}:{shape}:".encode())
        for piece in pieces:
            sha.update(piece)
            size += len(piece)

    stack = [value]
    while stack:
        item = stack.pop()
        kind = type(item).__name__
        if isinstance(item, str):
            add(kind, len(item), rlm_sandbox.encoded(item))
        elif isinstance(item, (bytes, bytearray)):
            add(kind, len(item), [item])
        elif isinstance(item, (list, tuple)) and all(type(part) is str for part in item):
            add(kind, [len(part) for part in item], rlm_sandbox.encoded("".join(item)))
        elif isinstance(item, dict):
            add(kind, len(item))
            stack += [list(item.values()), list(item.keys())]
        elif isinstance(item, (list, tuple, set, frozenset)):
            add(kind, len(item))
            stack += sorted(item, key=repr) if isinstance(item, (set, frozenset)) else reversed(item)
        else:
            add(kind, 0, [repr(item).encode()])
    return sha.hexdigest(), size


def as_context(value: object, logs: str | None = None, encoding: str | None = None) -> Context:
    """The context a caller gave: text and plain data as they are, a Path as what the file or folder holds."""
    if isinstance(value, Context):
        return value
    paths = [value] if isinstance(value, os.PathLike) else value
    if isinstance(paths, (list, tuple)) and paths and all(isinstance(item, os.PathLike) for item in paths):
        return read_context([os.fspath(item) for item in paths], exclude=logs, encoding=encoding)
    _require_plain(value)
    if isinstance(value, str) and len(value) < 260 and "\0" not in value and os.path.isfile(value):
        import warnings

        what = f"the context is the text {value!r}, not the file of that name: give Path({value!r})"
        warnings.warn(what, RuntimeWarning, stacklevel=2)
        return Context(value, notes=("a file has this name; what it holds was not given",))
    return Context(value)


def _require_plain(value: object) -> None:
    """Raise a TypeError that says what to do instead, unless the value is plain data."""
    level: list[object] = [value]
    for _ in range(rlm_sandbox.DEPTH_MAX):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.keys())
                deeper.extend(item.values())
            elif isinstance(item, (list, tuple, set, frozenset)):
                deeper.extend(item)
            elif not isinstance(item, _PLAIN):
                raise TypeError(
                    f"context holds a {type(item).__name__}, which is not plain data: give text, bytes, numbers, "
                    "lists, dicts or a Path (for a DataFrame: df.to_csv(); for an object: its fields as a dict)"
                )
        if not deeper:
            return
        if len(deeper) > 50_000_000:
            raise TypeError("context has over 50,000,000 items, or holds itself: join them into one text")
        level = deeper
    raise TypeError(f"context is nested over {rlm_sandbox.DEPTH_MAX} deep, or holds itself: flatten it, or give text")


def read_context(
    specs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    stdin: str | bytes | None = None,
    cwd: str | None = None,
    exclude: str | None = None,
    encoding: str | None = None,
    within: str | None = None,
    on_slow: Callable[[str], None] | None = None,
) -> Context:
    """Read files, folders, globs, web addresses or `stdin` ("-"). One gives a `str`, several a `dict` name -> text.

    ConfigError for what is missing or unreadable, and for a folder or glob without files. A file that is not text is
    `bytes` if it is the only one; among several it is left out, with a note, as are the logs in the folder `exclude`.
    `cwd`: where relative paths begin. `encoding`: the encoding of the files, if known. `within`: a folder
    that every file must be in. `on_slow(text)` is told what is being read or fetched once that has taken two seconds.
    """
    wanted = [specs] if isinstance(specs, (str, os.PathLike)) else list(specs)
    named = [os.fspath(spec) for spec in wanted if spec != "-"]
    try:
        with rlm_tools.Documents(on_slow) as documents:
            urls = list(dict.fromkeys(filter(rlm_tools.is_url, named)))
            if urls and within is not None:
                hint = "download it into that folder"
                raise rlm_tools.ToolError(f"{rlm_tools.redact_url(urls[0])} lies outside of {within}", hint=hint)
            pages = [rlm_tools.read_url(url, documents, encoding) for url in urls]
            piped, note = rlm_tools.read_piped(stdin, documents, encoding) if isinstance(stdin, bytes) else (stdin, "")
            given = rlm_tools.read_context_files(
                [spec for spec in named if spec not in urls],
                cwd,
                exclude=[exclude] if exclude else (),
                keep=lambda head: _image_in(head) is not None,
                encoding=encoding,
                within=within,
                documents=documents,
            )
    except rlm_tools.ToolError as error:
        raise ConfigError(str(error), hint=error.hint) from error.__cause__
    notes = [f"stdin: {note}"] if note else []
    made = documents.records
    if not named:
        origin = "stdin" if stdin is not None else "value"
        return Context(piped, {"paths": [], "documents": made} if made else origin, tuple(notes))
    notes += _add_pages(given, zip(urls, pages))
    contents, single = given.contents, len(given.named) == len(wanted) == 1
    if any(isinstance(value, str) for value in contents.values()):
        _leave_out_unnamed_images(given)
    files: Event = {"paths": given.paths, "names": list(contents), "single": single}
    if encoding:
        files["encoding"] = encoding
    if made:
        files["documents"] = made
    lasting = made or (given.rereadable and (piped is None or len(named) == len(wanted)))
    source = files if lasting else "stdin"  # this cannot be read again: the value is kept beside the journal
    notes += given.notes
    if single:
        return Context(next(iter(contents.values())), source, tuple(notes))
    if piped is not None and len(named) < len(wanted):
        contents["-"] = piped
    if not contents:
        raise ConfigError(f"no text files in {', '.join(named)}", hint="give text files, or one binary file alone")
    return Context(contents, source, tuple(notes))


def _add_pages(given: rlm_tools.ContextFiles, pages: Iterable[tuple[str, tuple[Any, Iterable[str]]]]) -> list[str]:
    """Put web pages beside the files that were read; the notes on them."""
    notes: list[str] = []
    for number, (url, (content, said)) in enumerate(pages, 1):
        name = rlm_tools.redact_url(url)
        name = f"{name} ({number})" if name in given.contents else name  # they differ in what is redacted
        given.contents[name] = content
        given.paths.append(name)
        given.named.append(name)
        notes += [f"{name}: {note}" for note in said]
    return notes


def _leave_out_unnamed_images(given: rlm_tools.ContextFiles) -> None:
    """Images go along with every request: those are shown that were named, and not what a folder happens to hold."""
    unnamed = [n for n, value in given.contents.items() if isinstance(value, bytes) and n not in given.named]
    given.paths[:] = [path for name, path in zip(given.contents, given.paths, strict=True) if name not in unnamed]
    for name in unnamed:
        del given.contents[name]
    if unnamed:
        given.notes.append(f"left out {counted(len(unnamed), 'image')}: name each that is to be seen")


def _context_path(journal: str, turn: int) -> str:
    """Where the context of a prompt is kept: beside the journal, a conversation's later ones by their turn."""
    return os.path.splitext(journal)[0] + (f".{turn}.context" if turn else ".context")


def _save_context(path: str, value: object) -> None:
    """Write a value beside the journal, compressed; one that is too large, or a full disk, leaves none."""
    import zlib

    try:
        text = value if isinstance(value, str) else json.dumps(rlm_sandbox.Packer(_SAVED_CONTEXT).pack(value))
        squeeze = zlib.compressobj(1)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}.new")
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(squeeze.compress(b"s" if isinstance(value, str) else b"j"))
            file.writelines(map(squeeze.compress, rlm_sandbox.encoded(text)))
            file.write(squeeze.flush())
        os.replace(f"{path}.new", path)
    except ValueError:
        return
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.new")


def _load_context(path: str, recorded: Event) -> object:
    """The value that `_save_context` wrote; ConfigError for anything else, however much it says it unpacks to.

    `recorded`: what the journal says of it. What is much larger than that is not unpacked.
    """
    import zlib

    try:
        said = recorded.get("bytes")
        size = min(said, _SAVED_CONTEXT) if isinstance(said, int) else 0
        with open(path, "rb") as file:
            packed = file.read(min(os.fstat(file.fileno()).st_size, _SAVED_CONTEXT))
        values = _SAVED_VALUES + 4 * len(packed)
        most = size if recorded.get("type") == "str" else 6 * size + 32 * values  # JSON may take six bytes for one
        squeezed = zlib.decompressobj()
        kind = squeezed.decompress(packed, 1)
        blob = squeezed.decompress(squeezed.unconsumed_tail, most + 1)
        if not squeezed.eof:
            raise ValueError("its copy is damaged or too large")
        if kind == b"s":
            return blob.decode("utf-8", "surrogatepass")
        return rlm_sandbox.unpack(rlm_backends.from_json(blob, values=values, depth=EVENT_DEPTH))
    except (OSError, ValueError, TypeError, RecursionError, zlib.error) as error:
        raise ConfigError(
            f"the context of this run was not kept ({error})",
            hint="start a new run (save_context keeps a value of up to 64 MB, files are read again)",
        ) from None


_SAVED_VALUES = 250_000


# --- prompts: what a model reads ---------------------------------------------------------------------------------

_FULL = """\
You answer a request by writing Python for a persistent REPL{where}. The input is the variable `context` there; this \
chat shows it only if it is short.

In it, besides Python{imports}:
- llm_query(prompt, model=None, schema=None, images=None): a model reads the prompt, all it sees. \
llm_query_batched(prompts): in parallel.
- chunks(text): pieces that fit a sub-call. map_query(question, items, schema=None): an answer for each.
{recursion}- {functions}
- SHOW_VARS(); budget(): what is left; _out[n]: all of cell n's output, if it was cut.
- FINAL(value), also Python data, or FINAL_VAR("name") ends with that answer.

How to work:
- Look first: size, head, structure. Then plan.
- Search, count, sort, join, calculate by code, not sub-calls.
- Sub-calls are for reading that needs understanding. Give each tens of thousands of characters and the question, ask \
for a terse, parseable answer, batch independent ones; never one tiny prompt a line.
- Keep results in variables, print samples, compute nothing twice.
- Answer as soon as the evidence is there. {finish}
Limits: {limits}."""

_RECURSION = """\
- rlm_query(prompt, context=None): a child with its own REPL, for a part of several steps. \
rlm_query_batched(prompts, contexts=None).
"""
_FINISH_TOOLS = "Plain text without a tool call is the answer; so is FINAL(value) in code."
_FINISH_TEXT = (
    "To run code, write it in one ```repl fence a reply; its output comes back. A reply without code is taken as the "
    "answer; an answer that holds code goes through FINAL(value)."
)

_SMALL = """\
You answer questions about a large input by running Python. The input is already loaded in the variable `context`; \
you cannot see it, so you must write code to look at it.

{how} It is run, and you are shown what it printed. Variables are kept between blocks. When you have seen the result, \
reply with one line:
ANSWER: <the answer>

Example.
User: Which book is the most expensive, and what percentage of the items are books?
`context` is a str of 40,412 characters in 1,031 lines, CSV with the columns id, kind, author, pages, price. It begins:
id,kind,author,pages,price
1,book,Hamsun,312,12.50
Ready to use: `rows`, a list of 1,030 dicts, the first is {'id': 1, 'kind': 'book', 'author': 'Hamsun', 'pages': 312, \
'price': 12.5}
Assistant:
```python
books = [row for row in rows if row["kind"] == "book"]
print(max(books, key=lambda row: row["price"]), 100 * len(books) / len(rows))
```
User: Output:
{'id': 17, 'kind': 'book', 'author': 'Ibsen', 'pages': 511, 'price': 98.0} 61.26
Assistant: ANSWER: Book 17 is the most expensive; 61.26 percent of the items are books.

Example.
User: Which author has the second most pages in all, and how many are they?
Assistant:
```python
pages = {}
for row in rows:
    pages[row["author"]] = pages.get(row["author"], 0) + row["pages"]
ranking = sorted(pages.items(), key=lambda item: item[1], reverse=True)
print(ranking[1])
```
User: Output:
('Undset', 9120)
Assistant: ANSWER: Undset, with 9120 pages.

Example.
User: Which pressure did the last warning of the pump before noon give?
`context` is a str of 61,220 characters in 900 lines. It begins:
2024-03-01 06:00:02 [INFO] pump: 71 bar
Ready to use: `lines`, a list of 900 str. In lines[0].split() [0] is '2024-03-01', [1] is '06:00:02', [2] is \
'[INFO]', [3] is 'pump:', [4] is '71', [5] is 'bar'. line[:19] is its time, such as '2024-03-01 06:00:02': compare it \
as text
Assistant:
```python
found = [line for line in lines if "WARN" in line and "pump" in line and line[:19] < "2024-03-01 12:00:00"]
print(len(found), found[-1], found[-1].split()[4])
```
User: Output:
31 2024-03-01 11:58:40 [WARN] pump: 78 bar 78
Assistant: ANSWER: 78 bar

Example.
User: What is the fee for Oslo that the text mentions?
Assistant:
```python
import re
for m in re.finditer("Oslo", context):
    print(context[max(0, m.start() - 100):m.end() + 100])
```
User: Output:
is free. The fee for Oslo is 350 EUR a year. In
Assistant: ANSWER: 350 EUR a year

Example.
User: How many of the comments are friendly?
`context` is a list of 40 items. It begins:
'Thank you so much!'
Assistant:
```python
answers = map_query("Is this comment friendly?", context, ["yes", "no"])
print(answers.count("yes"))
```
User: Output:
31
Assistant: ANSWER: 31 comments are friendly.

Rules: never answer before code has run on `context`. `context` is a variable, not a file. Use print to see values, \
and print every part that the question asks for. Copy names and numbers as they are printed. Use the standard \
library only. Count, search and compare by code; what texts mean is for map_query(question, items, answers) and \
llm_query(prompt), which asks a model and returns its answer as a str."""

_SMALL_HOW = {
    "text": "Reply with exactly one ```python block.",
    "tools": "Call execute_code with Python, once a turn.",
}


class Profile(NamedTuple):
    """How to work with a model of a certain size: its prompt, the limits of a reply, the guidance beside outputs."""

    name: str
    turn_output: int | None  # tokens; None: what the model's own maximum allows
    subcall_output: int  # tokens
    subcall_share: float  # of the sub-model's window, for the text that `chunks` puts into a sub-call
    output_limit: int | None  # characters of a cell's output, where the caller sets none
    show_below: int | None  # characters up to which a context is shown whole, where the caller sets none
    recursion: bool  # the prompt offers rlm_query: a small model gains nothing by it
    defaults: Mapping[str, object]  # request parameters, where the caller sets none
    varied: Mapping[str, object]  # the same after a cell that was run before

    @property
    def guides(self) -> bool:
        """Whether each output comes with a line that says what to do next."""
        return self.name == "small"


_PROFILES = {
    "full": Profile("full", None, 4096, 0.4, None, None, True, {}, {}),
    "small": Profile("small", 1500, 1024, 0.25, 600, 800, False, {"temperature": 0}, {"temperature": 0.8}),
}
_SMALL_WINDOW = 32_768  # tokens; up to here, and up to so many billions of parameters, a model gets the small profile
_SMALL_PARAMETERS = 10.0
_SUBCALL_CHARACTERS = 100_000  # at most, however large the window is
_CHARACTERS_PER_TOKEN = 3
_STOPS = ["\nOutput:", "\nUser:"]  # where a reply of the text protocol goes on with invented output


def profile_for(backend: Backend, prompt: str | None = None) -> Profile:
    """The profile of a backend's model: the one that `prompt` names, else chosen by the model's size, if known."""
    if prompt in _PROFILES:
        return _PROFILES[prompt]
    is_small = (backend.parameters or 1e9) <= _SMALL_PARAMETERS or (backend.window or 1e9) <= _SMALL_WINDOW
    return _PROFILES["small" if is_small else "full"]


def subcall_characters(backend: Backend, profile: Profile) -> int:
    """How many characters of text `chunks` and `map_query` put into one sub-call to this model."""
    window = window_of(backend)
    return max(1000, min(_SUBCALL_CHARACTERS, int(window * profile.subcall_share) * _CHARACTERS_PER_TOKEN))


_EXECUTE_CODE = {
    "name": "execute_code",
    "description": "Run Python in the REPL. Shows what it prints and the last expression's value.",
    "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}


def system_prompt(node: Node) -> str:
    """The instructions of a node: the same for every run and every child, so that prompt caches hit from the start."""
    run, options = node.run, node.run.options
    if node.protocol == "plain":
        return f"{_PLAIN_SYSTEM}\n\n{node.instructions}" if node.instructions else _PLAIN_SYSTEM
    parts = {
        "where": " (tool execute_code)" if node.protocol == "tools" else "",
        "imports": " and its standard library" if options.environment == "docker" else " (no network, no os)",
        "recursion": _RECURSION if run.profile.recursion and options.max_depth else "",
        "functions": ", ".join(map(_signature, run.tools)),
        "finish": _FINISH_TOOLS if node.protocol == "tools" else _FINISH_TEXT,
        "how": _SMALL_HOW[node.protocol],
        "limits": _limits_in_words(options),
    }
    text = run.custom_prompt or {"full": _FULL, "small": _SMALL}[run.profile.name]
    for name, part in parts.items():
        text = text.replace("{%s}" % name, part)  # noqa: UP031 - an f-string with four braces
    if run.servers:
        text += f"\n{run.servers.prompt_line()}"
    own = [tool for tool in run.tools if not tool.name.startswith("file_")]
    if run.profile.guides and own and not run.custom_prompt:
        listed = "; ".join(f"{_signature(tool)}: {tool.description[:200]}" for tool in own)
        text += f"\nOther functions in Python: {listed}"
    return f"{text}\n\n{node.instructions}" if node.instructions else text


def _signature(tool: Tool) -> str:
    return f"{tool.name}({', '.join(tool.parameters.get('properties', {}))})"


def announcement(node: Node, *, new: bool) -> str:
    """What follows a prompt in the user's message: the context (whole, if it is short) and the answer's schema."""
    parts = []
    known = node.context.value is not None
    if new and (known or node.announced_context is not None) and not node.context.is_images:
        parts.append(node.context.describe(node.run.show_below(node.context)))
        if node.run.profile.guides and known and not node.shown_whole:
            parts += filter(None, [node.run.start_for(node.context), words_of(node.prompt, node.context)])
            parts.append(_BEGIN[node.protocol])
    if node.schema is not None:
        form = "the JSON of a value" if node.run.profile.guides else "FINAL(value) with a value"
        parts.append(f"The answer must be {form} of this JSON Schema: {json.dumps(node.schema)}")
    return "\n".join(parts)


def _limits_in_words(options: Options) -> str:
    limits = [
        counted(options.max_subcalls, "sub-call"),
        counted(options.token_budget, "token"),
        counted(options.max_iterations, "turn"),
    ]
    if options.cost_budget_usd is not None:
        limits.append(f"${options.cost_budget_usd:g}")
    if options.timeout_seconds is not None:
        limits.append(f"{options.timeout_seconds:g} s")
    return ", ".join(limits)


def read_prompt(path: str) -> str:
    """The system prompt in a file; ConfigError if it cannot be read."""
    try:
        text = rlm_tools.read_text(path)[:200_000]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the prompt {path!r}: {why}", hint="full, small, or a text file") from None
    return text.strip()


# - a context that is short enough for one call without a REPL

_PLAIN_SYSTEM = "Answer the request from the input that follows it."
_PLAIN_LEAST_OUTPUT = 1024  # tokens that have to be left in the model's window
_NOT_PLAIN = "That was not taken as the answer: {}. Work by code: the input is the variable `context`."


def plain_announcement(node: Node) -> str | None:
    """The whole context and the schema, to follow the prompt of a plain call; None if the loop has to answer.

    It is for the root of a run that has no tools but the built-in ones, and whose context is text that fits
    both `plain_below` and the model's window.
    """
    run, options, context = node.run, node.run.options, node.context
    below = options.plain_below
    own_tools = bool(run.servers) or any(not tool.name.startswith("file_") for tool in run.tools)
    if not below or node.depth or options.persistent or own_tools or context.value is None:
        return None
    if below == "auto":
        is_short = context.whole(run.show_below(context)) is not None
    else:  # no tokenizer packs more into a token
        is_short = bool(context.images) or size_up_to(context.value, 8 * int(below)) <= 8 * int(below)
    text = _plain_text(context) if is_short else None
    if text is None:
        return None
    content = [{"type": "text", "text": text}, *context.images]
    size = rlm_backends.estimate_tokens([{"role": "user", "content": content}])
    if node.schema is not None:
        text += f"\n\nAnswer with JSON of this schema, and nothing else: {json.dumps(node.schema)}"
    window = window_of(run.backend)
    others = rlm_backends.estimate_tokens([{"role": "user", "content": f"{node.prompt}{node.schema or ''}"}])
    fits = size + others + _PLAIN_LEAST_OUTPUT <= window
    return text if fits and (below == "auto" or size <= int(below)) else None


def _plain_text(context: Context) -> str | None:
    """A context without its images, as a reader would have it; None where bytes are in it."""
    value = context.value
    if isinstance(value, str):
        return "" if context.images else value
    if isinstance(value, dict):
        value = {name: item for name, item in value.items() if _image_in(item) is None}
        if all(isinstance(item, str) for item in value.values()):
            return "\n\n".join(f"{name}:\n{text}" for name, text in value.items())
    elif isinstance(value, list):
        value = [item for item in value if _image_in(item) is None]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return None if any(isinstance(item, bytes) for item in items) else repr(value)


# - corrections for a model that has gone astray

_BEGIN = {"text": "Reply with a ```python block.", "tools": "Call execute_code."}
_LOOK_FIRST = {
    "text": "You have not looked at `context` yet. Write a ```python block.",
    "tools": "You have not looked at `context` yet. Call execute_code with Python that looks at it.",
}
_EMPTY = "Your reply was empty. Run code, or give the answer."
_CUT_OFF = "Your reply was cut off at its token limit and was not taken as the answer. Be shorter, or build it in code."
_REPEATING = "Your reply repeated itself and was stopped. Write short code that computes it, or answer in one line."
_ANSWER_BLOCK = r"\s*ANSWER:[^\n]+\s*"  # an answer that stands in a code block; Python would take it for an annotation
_ANSWER_NOW = "No turn is left for code. Answer the request now, as well as what you have seen allows{line}"
_PLACEHOLDER, _JSON_PLACEHOLDER = "<the answer>", "<the answer as JSON>"  # which a model may copy
_ANSWER_LINE = f", in one line: ANSWER: {_PLACEHOLDER}"
_FAILED_BEFORE = "Code that was tried before ended with:\n"
_PRINTED_TOO_MUCH = "Code that was tried before printed too much, beginning with:\n"
_CUT_MARK = " characters left out"
_LAST_ONLY = "and a dict made in one line keeps only the last of them"
_HEADING = "Output:"  # stands before each outcome that a message in the text protocol shows
_HAS_OUTPUT = "Code has run on `context` already. Output:"
_DOUBTS = 2  # how often a small model's answer is not believed
_COMPUTE_IT = (
    "Write {} that computes and prints it, such as print(len(...)) or print(Counter(...).most_common(3)), with the "
    "rest of the answer."
)
_WANTS_NUMBER = r"(?i)\bhow (?:many|much|often|long|large|old|high|big|far)\b"
_WANTS_NAME = (
    r"(?i)(?:^|[.?!,;:] |\band )(?:which|who|whose|whom)\b(?! (?:day|date|year|month|hour|time|line|number)s?\b)"
)
_WANTS_DIFFERENT = r"(?i)\bhow many (?:\w{1,30} ){0,2}(?:different|distinct|unique)\b"
_COLLECTS = r"set\(|Counter|\{|unique|fromkeys"
_HAS_NUMBER = r"(?i)\d|\b(?:no|none|one|two|three|four|five|six|seven|eight|nine|ten)\b"


def note_on(node: Node, code: str, outcome: Event, again: bool) -> str:
    """The advice beside a cell's output on what to do next; "" for none."""
    taught = advice_on(node.context, code, outcome, partial(node.run.start_for, node.context))
    parts = [taught] if taught else []
    guides, failed = node.run.profile.guides, outcome["error"] is not None
    fruitless = failed or (guides and is_empty_result(outcome))
    if again and fruitless:
        parts.append("This came out in the same way before. Write different code.")
    elif again and guides:
        parts.append(f"You have run exactly this before. Answer the question now from this output{_ANSWER_LINE}")
    elif again and node.repeats in (1, 4):  # in a long history each word is paid for many times
        parts.append("You have this output already: answer in one line.")
    elif failed and node.protocol == "text":
        parts.append("That failed. Mend the code and reply with one ```python block.")
    elif guides and not failed:
        parts.append(_next_step(node, outcome))
    if failed and guides and node.shown_whole:
        parts.append("Or answer from the text of `context` that you were shown, in one line: ANSWER: <the answer>")
    note = "\n".join(parts)
    return note if node.schema is None else note.replace(_PLACEHOLDER, _JSON_PLACEHOLDER)


def _next_step(node: Node, outcome: Event) -> str:
    """The next step that a small model is told, by what is wrong with an output."""
    block = "a ```python block" if node.protocol == "text" else "code"
    reminder = f" ({node.prompt})" if len(node.prompt) <= 300 else ""
    output = (outcome["stdout"] or "") + (outcome["value"] or "")
    if not output.strip() and (node.context.value is None or "print(" not in outcome["code"]):
        made = re.findall(r"(?m)^ {0,8}(\w{1,40})(?:\[.{1,200}\])? *[+-]?= ", outcome["code"])
        goes_on = f"goes on with {made[-1]} and " if made else ""
        return f"Nothing was printed. Write {block} that {goes_on}prints what the question asks for{reminder}."
    if is_empty_result(outcome):
        return (
            f"Nothing was found: the code does not fit the data. {_reading(node.context.value)}"
            f"Write {block} that prints some of `context`, or that searches differently."
        )
    if _CUT_MARK in output:
        return (
            f"The output is too long and was cut. Write {block} that prints only what answers the question{reminder}."
        )
    if sums := _sums_for(outcome["code"], node.run.variables(node.context).get("rows", ())):
        return f"{sums} Write {block} that does this."
    counts, once = (re.search(pattern, outcome["code"]) for pattern in (r"len\(|count|sum\(", _COLLECTS))
    if re.search(_WANTS_DIFFERENT, node.prompt) and counts and not once:
        return (
            "The question asks for different ones, and this counts each as often as it occurs. "
            f"Write {block} that puts them into a set(...) and prints its length."
        )
    if len(output) <= 200 and lacks_a_part(node.prompt, output):  # a longer one shows data
        by_name = re.search(r"(max|min)\((\w{1,40}), key=\2\.get\)", outcome["code"])
        example = f", such as {by_name[1]}({by_name[2]}.items(), key=lambda item: item[1])" if by_name else ""
        return f"That is a part of what the question asks for{reminder}. Write {block} that prints all of it{example}."
    return (
        f"If this output answers every part of the question{reminder} reply with one line: ANSWER: <the answer>. "
        f"Otherwise reply with another {'```python block' if node.protocol == 'text' else 'call'}."
    )


def lacks_a_part(prompt: str, output: str) -> bool:
    """Whether an output has no number where one is asked for, no name beside it, or one word for two things."""
    if re.search(_WANTS_NUMBER, prompt):
        lacks_name = re.search(_WANTS_NAME, prompt) and not re.search(r"[^\W\d_]", output)
        if lacks_name or not re.search(r"(?<![\w-])\d", output):
            return True
    return bool(re.search(r"(?i)\band (?:how|what|which|who|when|where)\b", prompt)) and len(output.split()) == 1


def is_empty_result(outcome: Event) -> bool:
    """Whether a cell that ended well has shown nothing, or nothing but a zero or an empty collection."""
    output = f"{outcome['stdout'] or ''}{outcome['value'] or ''}".strip()
    return outcome["error"] is None and (not output or output in _EMPTY_RESULTS)


def _reading(value: object) -> str:
    """How texts are judged by their meaning, for a context that is several of them."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    items = list(islice(values, 50))
    if not items or not all(isinstance(item, str) and len(item) < 20_000 for item in items):
        return ""
    texts = "list(context.values())" if isinstance(value, dict) else "context"
    return (
        f'If meaning decides and not a word: answers = map_query("QUESTION?", {texts}, ["yes", "no"]); '
        "print(list(zip(context, answers))). "
    )


_EMPTY_RESULTS = {"0", "0.0", "None", "[]", "{}", "()", "set()", "nan", "False", "Counter()", "''", '""'}


# --- reading what models write -----------------------------------------------------------------------------------

# Compiled when first used, since most processes that import this never read a reply.
# No two neighbouring parts of a pattern may match the same text: a reply of nothing but blanks would take minutes.
_OPENING = r"^(?:[-*>] |\d{1,3}\. )?[ \t]*(`{3,}|~{3,})[ \t]*\{?\.?([\w+#.-]*)[^`\n]*$"
_ONE_LINE = r"^```(\w*)[ \t]+([^\s`].*?)[ \t]*```$"
_RUNNABLE = {"", "repl", "python", "py", "python3", "py3", "ipython", "ipython3", "tool_code", "code"}
_THINKING = r"(?s)\A\s*<think(?:ing)?>.*?</think(?:ing)?>"
_PARSED_CODE = 60_000  # characters of code that are parsed here, at up to 500 bytes for each; longer code is just run
_PARSED_AT_ALL = 200_000  # characters parsed to find where the blocks of one reply end
_MOST_FENCES = 5_000
_FALSE_STARTS = 20  # of tool calls: each may be looked at to its far end
_MISSES = 100  # places tried in vain: more would take minutes over a reply that repeats itself
_READ = 400_000  # characters of a reply that are read; a longer one is a loop
_MOST_CALLS = 16  # tool calls of one reply that are run when they are written as text
_FINAL_LINE = r"(?m)^[ \t]*(?:ANSWER:[ \t]*)?(?:\*\*)?`?(FINAL(?:_VAR)?)[ \t]*\("


class Fence(NamedTuple):
    """A fenced block: its tag in lower case, its code, and the lines it takes, fences included."""

    tag: str
    code: str
    first: int
    last: int


class WrittenAction(NamedTuple):
    """What a reply asks to be done in its text: tool calls, or the code of its first block; `end`: where that ends."""

    calls: list[ToolCall]
    code: str | None
    end: int
    tagged: bool = False  # the block says that it is Python


def visible(text: str) -> str:
    """A reply without the reasoning that some models put in front of it."""
    return re.sub(_THINKING, "", text, count=1)


def prose_of(text: str, action: WrittenAction | None) -> str:
    """A reply's words, without code, tool calls and what it made up after them: they may become a partial answer."""
    text = text[: action.end] if action else text
    if "```" not in text:
        return "" if action else text.strip()
    return "".join(text.split("```")[::2]).strip()  # an unclosed block reaches to the end


def parses(code: str) -> bool:
    """Whether this is syntactically valid Python."""
    try:
        _tree(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _tree(code: str) -> Any:
    """The syntax tree of a text that may be Python, without Python's own remarks on it; ValueError for a long one."""
    import ast
    import warnings

    if len(code) > _PARSED_CODE:
        raise ValueError("too long to be parsed here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)


def may_be_code(code: str) -> bool:
    """Whether this is Python, or too long for that to be found out here."""
    return len(code) > _PARSED_CODE or parses(code)


class _Patience:
    """What may yet be spent on finding the ends of a reply's blocks."""

    def __init__(self) -> None:
        self.misses = _MISSES
        self.characters = _PARSED_AT_ALL

    @property
    def over(self) -> bool:
        return self.misses <= 0 or self.characters <= 0

    def parses(self, code: str) -> bool:
        if self.over:
            return False
        self.characters -= len(code)
        if parses(code):
            return True
        self.misses -= 1
        return False


def fences(text: str) -> list[Fence]:
    """The fenced blocks of a reply, in order.

    A block may hold fences in its strings: it ends at the first closing fence up to which it is Python, else at the
    first closing fence. One that is never closed goes on to the next opening one up to which it is Python, or to the
    end of the text. After `_MISSES` places that are no end of Python, and in a block that is too long to be parsed, the
    first closing fence is taken for it.
    """
    patience = _Patience()
    lines = text[:_READ].replace("\r\n", "\n").split("\n")
    found: list[Fence] = []
    i = 0
    while i < len(lines) and len(found) < _MOST_FENCES:
        line = lines[i].strip()
        if one := re.match(_ONE_LINE, line) if len(line) < 2000 else None:
            found.append(Fence(one[1].lower(), one[2], i, i))
        elif opening := re.match(_OPENING, line):
            found.append(_block(lines, i, opening[1], opening[2].lower(), patience))
            i = found[-1].last
        i += 1
    return found


def _block(lines: list[str], start: int, mark: str, tag: str, patience: _Patience) -> Fence:
    import textwrap

    sizes = 0  # of the block's lines so far

    def code_to(end: int) -> str:
        return textwrap.dedent("\n".join(lines[start + 1 : end]))

    closings: list[int] = []
    for i in range(start + 1, len(lines)):
        stripped = lines[i].strip()
        if _closes(stripped, mark):
            if tag not in _RUNNABLE or sizes > _PARSED_CODE or patience.parses(code_to(i)):
                end = closings[0] if closings and sizes > _PARSED_CODE else i
                return Fence(tag, code_to(end), start, end)
            closings.append(i)
            if patience.over:
                break
        elif (
            not (closings or patience.over or sizes > _PARSED_CODE)
            and (inner := re.match(_OPENING, stripped))
            and inner[2]
            and patience.parses(code_to(i))
        ):
            return Fence(tag, code_to(i), start, i - 1)
        sizes += len(lines[i]) + 1
    end = closings[0] if closings else len(lines)
    return Fence(tag, code_to(end), start, min(end, len(lines) - 1))


def _closes(line: str, mark: str) -> bool:
    """Whether a line closes a fence: marks alone, or with a tail that can be no tag, such as `<end_code>`."""
    tail = line.lstrip(mark[0])
    return len(line) - len(tail) >= len(mark) and (not tail or re.match(r"[ \t]*[<>)\]};,\"']", tail) is not None)


def code_blocks(text: str) -> list[str]:
    """The fenced code of a reply that could be run."""
    return [f.code for f in fences(text) if f.tag in _RUNNABLE and f.code.strip()]


def written_action(text: str, known: Collection[str]) -> WrittenAction | None:
    """The first thing that a reply asks to be done in its text, None if there is none.

    `known`: the names of tools and of the REPL's functions, execute_code among them. Tool calls are read in the forms
    that models write them in when they miss the server's own: JSON with the keys of any of the wires, XML, and the
    marks of the chat templates of Llama, Mistral, DeepSeek, Kimi, GLM, Gemma and OpenAI's open models (harmony).
    """
    text = text[:_READ]
    block = _first_block(text, known)
    marked = _marked_calls(text, known)
    if block is None or (marked is not None and marked[0] <= block[0]):
        if marked is None:
            return None
        _, end, calls = marked
        return WrittenAction(calls[:_MOST_CALLS], None, end)
    return block[1]


def _first_block(text: str, known: Collection[str]) -> tuple[int, WrittenAction] | None:
    """Where the first fenced block begins that is to be run, and what it asks for: its code, or the call that it is."""
    # Lines as `fences` counts them: a carriage return stays at the end of its line.
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    for fence in fences(text):
        if not fence.code.strip():
            continue
        start, end = starts[fence.first], min(len(text), starts[fence.last + 1] - 1)
        if call := _python_call(fence.code, known):
            return start, WrittenAction([call], None, end)
        inner = _marked_calls(fence.code, known)
        if inner is not None and not (fence.tag in _RUNNABLE and may_be_code(fence.code) and inner[0] > 0):
            return start, WrittenAction(inner[2][:_MOST_CALLS], None, end)
        if fence.tag in _RUNNABLE:
            return start, WrittenAction([], clean_code(fence.code), end, fence.tag not in ("", "code"))
    return None


# - tool calls written as text

_NAME_KEYS = ("name", "function", "tool", "tool_name", "function_name", "recipient_name", "action")
_ARGUMENT_KEYS = ("arguments", "parameters", "input", "args", "kwargs", "params", "tool_input", "action_input")
_CALL_KEYS = {*_NAME_KEYS, *_ARGUMENT_KEYS, "type", "id", "call_id", "tool_call_id", "index", "thought", "reasoning"}
_LIST_KEYS = ("tool_calls", "tool_uses", "calls", "function_call", "tool_call", "call")
_PYTHON_NAMES = {
    *("python", "ipython", "repl", "code", "run", "execute", "exec", "interpreter", "code_interpreter", "python_repl"),
    *("run_code", "run_python", "execute_python", "python_interpreter", "executecode", "code_execution", "tool_code"),
}
_CODE_KEYS = ("code", "python", "source", "script", "input", "cell", "command")
_BAR = r"[|｜]"
# Where a call may begin, each with what follows it: a name and arguments, JSON, or code.
_MARKS = (
    r"<(?P<xml>tool_calls?|tools|function_calls?|call_record|action)>"
    rf"|<(?:function|invoke|tool|{_BAR}DSML{_BAR}invoke)(?:=| name=|_name=)"
    r"[\"']?(?P<name>[^\s\"'<>]{1,80})[\"']?\s*>"
    r"|<(?P<direct>execute_code|python|code)>"
    r"|(?:(?m:^)|(?<=>))[ \t\[]*(?:[\w.]{0,40}\.)?execute_code[ \t]*(?:(?P<call>\()|(?P<brace>(?=\{)))"
    r"|\bto=functions\.(?P<bare>\w{1,80})[^{}<\n]{0,40}(?=\{)"
    r"|\[TOOL_CALLS?\]|functools(?=\[)"
    rf"|<{_BAR}python_tag{_BAR}>"
    rf"|<{_BAR}channel{_BAR}>[^<\n]{{0,60}}?\bto=(?P<to>[\w.:-]{{1,80}})[^<]{{0,40}}(?:<{_BAR}constrain{_BAR}>[^<]{{0,20}})?<{_BAR}message{_BAR}>"
    rf"|<{_BAR}tool[▁_ ]calls?[▁_ ](?:section[▁_ ])?begin{_BAR}>"
    rf"|<{_BAR}(?:tool_calls?|START_ACTION|action_start|tool_start){_BAR}>"
    r"|(?m:^)[ \t]*Action:[ \t]*(?P<act>[\w.]{1,80})[ \t]*\n[ \t]*Action Input:"
)
_MARK_ENDS = (
    r"</(?:tool_calls?|tools|function_calls?|call_record|action|function|invoke|tool|parameter|execute_code|python|code|tool_code)>"
    rf"|<{_BAR}(?:call|end|eot_id|eom_id|im_end|return|END_ACTION|tool[▁_ ]calls?[▁_ ](?:section[▁_ ])?end){_BAR}>"
    rf"|</?{_BAR}DSML{_BAR}\w*>|<{_BAR}/tool_calls?{_BAR}>|</s>|<end_of_turn>"
)
_PARAMETER = (
    rf"<(?:{_BAR}DSML{_BAR})?parameter(?:=| name=)[\"']?([\w-]{{1,60}})[\"']?[^>\n]{{0,60}}>\n?"
    r"|<arg_key>\s{0,9}([\w-]{1,60})\s{0,9}</arg_key>\s{0,9}<arg_value>"
)
_PARAMETER_END = rf"\n?</(?:(?:{_BAR}DSML{_BAR})?parameter|arg_value)>"
_OBJECT = r"\{\s*[\"'](?:%s)[\"']\s*:"


def tool_name(written: str, known: Collection[str]) -> str:
    """The tool or function that a decorated name means (`functions.execute_code<|channel|>json`); else as written."""
    written = written[:200]
    bare = re.split(r"<[|｜]|[\s(]", written.strip(), maxsplit=1)[0]
    bare = re.sub(r":\d+$", "", bare)
    last = re.split(r"[./]|::|__(?=\w+$)", bare)[-1]
    for candidate in (written, bare, last, last.lower().replace("-", "_")):
        if candidate in known:
            return candidate
    by_letters = {name.lower().replace("_", ""): name for name in known}
    squeezed = last.lower().replace("-", "").replace("_", "")
    if squeezed in by_letters:
        return by_letters[squeezed]
    return "execute_code" if last.lower().replace("-", "_") in _PYTHON_NAMES and "execute_code" in known else bare


def _marked_calls(text: str, known: Collection[str]) -> tuple[int, int, list[ToolCall]] | None:
    """The first group of calls that follow each other in a text: where it begins and ends, and the calls."""
    calls: list[ToolCall] = []
    begin, at, misses = -1, 0, 0
    anywhere = re.compile(f"(?:{_MARKS})|" + _OBJECT % "|".join((*_CALL_KEYS, *_LIST_KEYS, "code", *known)))
    while len(calls) < _MOST_CALLS and misses < _FALSE_STARTS:
        found = anywhere.search(text, at)
        if found is None:
            break
        between = text[at : found.start()]
        if calls and re.sub(_MARK_ENDS, "", between[:2000]).strip(" \t\r\n,;[]"):
            break
        read = _call_at(text, found, known)
        if read is None:
            misses += 1
            at = found.start() + 1 if not calls else len(text)
            continue
        begin = found.start() if begin < 0 else begin
        at = read[0]
        calls += read[1]
    if not calls:
        whole = _python_call(text, known) if len(text) < 20_000 else None
        return (0, len(text), [whole]) if whole else None
    closing = re.compile(rf"\s*(?:{_MARK_ENDS}|\]|```)")
    while end := closing.match(text, at):
        at = end.end()
    return begin, at, calls


def _call_at(text: str, found: re.Match[str], known: Collection[str]) -> tuple[int, list[ToolCall]] | None:
    """Where the calls that begin at a mark end, and the calls; None if the mark begins none."""
    if found[0][0] == "{":
        return _json_calls(text, found.start(), known)
    names = found.groupdict()
    name, start = names["name"] or names["to"] or names["act"] or names["bare"], found.end()
    if names["brace"] is not None:
        name = "execute_code"
    if names["call"]:
        return _call_in_prose(text, found.start(), known)
    if names["direct"]:
        return _raw_code(text, start, known, f"</{names['direct']}>")
    if name:
        return _named_call(text, start, tool_name(name, known), known)
    head = re.compile(
        r"\s*(?:<[|｜]tool[▁_ ]call[▁_ ]begin[|｜]>\s*)?(?:function<[|｜]tool[▁_ ]sep[|｜]>\s*)?"
        r"(?P<name>[A-Za-z_][\w.:-]{0,80})\s*"
        r"(?:<[|｜]tool[▁_ ](?:sep|call[▁_ ]argument[▁_ ]begin)[|｜]>|\[ARGS\]|(?=\{|```)|\n(?=<arg_key>))"
        r"\s*(?:```\w*\n)?"
    ).match(text, start)
    if head and tool_name(head["name"], known) in known:
        return _named_call(text, head.end(), tool_name(head["name"], known), known)
    following = re.compile(r"[\s\[]*(?:```\w*\s*)?(?=\{)").match(text, start)
    if following and (read := _json_calls(text, following.end(), known)):
        return read
    if names["xml"]:
        return None  # its content may begin with another mark
    return _raw_code(text, start, known, "") if "python_tag" in found[0] else None


def _call_in_prose(text: str, start: int, known: Collection[str]) -> tuple[int, list[ToolCall]] | None:
    """A call of execute_code on lines of its own: it ends at the first bracket up to which it is Python."""
    for closing in islice(re.compile(r"\)\]?(?=[ \t;`]*(?:\n|\Z|<))").finditer(text, start, start + 10_000), 8):
        if call := _python_call(text[start : closing.end()], known):
            return closing.end(), [call]
    return None


def _named_call(text: str, start: int, name: str, known: Collection[str]) -> tuple[int, list[ToolCall]] | None:
    """A call whose name has been read: its arguments are JSON, parameters in XML, or code as it is."""
    if re.compile(r"\s*\{").match(text, start):
        value, end = _json_value(text, text.index("{", start))
        if isinstance(value, dict):
            return end, [{"name": name, "arguments": value}]
    region = text[start : start + _READ // 4]
    stop = re.search(r"</(?:[|｜]DSML[|｜])?(?:function|invoke|tool|tool_call)>", region)
    region = region[: stop.start()] if stop else region
    if values := _parameters(region):
        return start + len(region), [{"name": name, "arguments": values}]
    return _raw_code(text, start, known, "") if name == "execute_code" else None


def _parameters(region: str) -> dict[str, object]:
    """The arguments that a call has as XML elements."""
    values: dict[str, object] = {}
    at = 0
    begins, ends = re.compile(_PARAMETER), re.compile(_PARAMETER_END)
    while len(values) < 50 and (opening := begins.search(region, at)):
        closing = ends.search(region, opening.end())
        if closing is None:
            break
        values[opening[1] or opening[2]] = _typed(region[opening.end() : closing.start()])
        at = closing.end()
    return values


def _raw_code(text: str, start: int, known: Collection[str], closing: str) -> tuple[int, list[ToolCall]] | None:
    """Code that stands as it is behind a mark, up to the next one."""
    stop = re.compile(re.escape(closing) if closing and closing in text[start:] else _MARK_ENDS).search(text, start)
    end = min(stop.start() if stop else len(text), start + 20_000)
    paragraphs = [m.start() for m in islice(re.compile(r"\n[ \t]*\n").finditer(text, start, end), 4)]
    for stop_at in (end, *reversed(paragraphs)):  # without a mark at its end, prose may follow the code
        code = text[start:stop_at].strip()
        code = next(iter(code_blocks(code)), code) if code.startswith("```") else code
        if call := _python_call(code, known):
            return stop_at, [call]
        if code and parses(code):
            return stop_at, [{"name": "execute_code", "arguments": {"code": code}}]
        if stop is not None:
            break
    return None


def _typed(text: str) -> object:
    """A parameter's value: JSON where it is a number, a list or an object; else the text."""
    if re.fullmatch(r"\s*(?:-?\d[\d.eE+-]{0,30}|true|false|null|[\[{].*[\]}])\s*", text, re.DOTALL):
        with contextlib.suppress(ValueError):
            return rlm_backends.from_json(text)
    return text


def _json_calls(text: str, start: int, known: Collection[str]) -> tuple[int, list[ToolCall]] | None:
    value, end = _json_value(text, start)
    calls = _calls_of(value, known)
    return (end, calls) if calls else None


def _json_value(text: str, start: int) -> tuple[object, int]:
    """The object that begins at `start`, and where it ends: JSON, or nearly; (None, start) if it is neither.

    Forgiven are raw line breaks in strings, Python's quotes, missing brackets at the end, and unescaped quotes in code.
    """
    if re.compile(r"(?:[\[{][^\[\]{}]{0,40}){200}").match(text, start):
        return None, start  # no call is nested so deep
    with contextlib.suppress(ValueError, RecursionError):
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        rlm_backends.check_depth(value)
        return value, end
    end = _object_end(text, start)
    piece = text[start:end]
    with contextlib.suppress(
        ValueError, SyntaxError, MemoryError, RecursionError, TypeError, LookupError, AttributeError
    ):
        import ast

        return ast.literal_eval(_tree(piece).body[0].value), end
    for closing in ("}", '"}', '"}}', "}}"):
        with contextlib.suppress(ValueError):
            return rlm_backends.from_json(piece.rstrip("`\n ") + closing, strict=False), end
    return _code_in_broken_json(piece), end


def _object_end(text: str, start: int) -> int:
    """Where the brackets that open at `start` are closed outside of strings; the text's end if they are not."""
    depth, quoted = 0, ""
    for token in re.compile(r"\\.|[{}\"]", re.DOTALL).finditer(text, start, start + 50_000):
        sign = token[0]
        if sign == '"':
            quoted = "" if quoted else '"'
        elif not quoted and sign in "{}":
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return token.end()
    return min(len(text), start + 50_000)


def _code_in_broken_json(piece: str) -> ToolCall | None:
    """A call whose code breaks the JSON around it by its quotes: what lies between the outermost, if it is Python."""
    key = re.search(r"\"(?:code|python|source|script)\"\s*:\s*(\"\"\"|'''|`{1,3}|\"|')", piece)
    name = re.search(r"\"(?:name|function|tool)\"\s*:\s*\"([^\"\n]{1,80})\"", piece)
    if not key or not name:
        return None
    rest = piece[key.end() :].rstrip("}] \t\r\n`")
    end = rest.rfind(key[1])
    code = rest[:end] if end >= 0 else rest
    for form in (code, code.replace('\\"', '"').replace("\\n", "\n").replace("\\t", "\t")):
        if form.strip() and parses(form):
            return {"name": name[1], "arguments": {"code": form}}
    return None


def _calls_of(value: object, known: Collection[str], depth: int = 0) -> list[ToolCall]:
    """The tool calls that a JSON value stands for; an empty list if it is data."""
    if depth > 8:
        return []
    if isinstance(value, list):
        return [call for item in value[:_MOST_CALLS] for call in _calls_of(item, known, depth + 1)]
    if not isinstance(value, dict):
        return []
    for key in _LIST_KEYS:
        if isinstance(value.get(key), (list, dict)) and (calls := _calls_of(value[key], known, depth + 1)):
            return calls
    if isinstance(value.get("function"), dict):
        return _calls_of(value["function"], known, depth + 1)
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    if name is None:
        return _unnamed_call(value, known)
    arguments = next((value[key] for key in _ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):
        arguments = _json_in(arguments)
    meant = tool_name(name, known)
    if arguments is None:  # they may stand beside the name
        beside = {k: v for k, v in value.items() if k not in (*_NAME_KEYS, "type", "id")}
        is_call = (meant == "execute_code" and not set(_CODE_KEYS).isdisjoint(beside)) or meant == name in known
        return [{"name": meant, "arguments": beside}] if is_call else []
    if meant == "execute_code" and isinstance(arguments, dict) and set(_CODE_KEYS).isdisjoint(arguments):
        return []
    if meant in known or (set(value) <= _CALL_KEYS and isinstance(arguments, dict)):
        return [{"name": meant, "arguments": arguments}]
    return []


def _unnamed_call(value: Mapping[str, object], known: Collection[str]) -> list[ToolCall]:
    """A call whose name is the only key, or the bare arguments of execute_code."""
    if len(value) != 1:
        return []
    key, inner = next(iter(value.items()))
    meant = tool_name(str(key), known)
    if isinstance(inner, str) and meant == "execute_code":
        is_code = re.search(r"[(=\n]", inner) and parses(inner)
        return [{"name": meant, "arguments": {"code": inner}}] if is_code or key == meant else []
    named = {"prompt", "prompts", "value", "name", "question", "text", *_CODE_KEYS}
    fits = isinstance(inner, dict) and (key not in _REPL_NAMES or not named.isdisjoint(inner))
    return [{"name": meant, "arguments": inner}] if key == meant and meant in known and fits else []


def _python_call(code: str, known: Collection[str]) -> ToolCall | None:
    """The call of `execute_code("…")` or of a tool's decorated name that a text is, as Python; None for other code."""
    if len(code) > _PARSED_CODE or not re.match(r"[A-Za-z_][\w.]*[ \t]*\(", code[:300].lstrip(" \t\r\n[(")):
        return None
    import ast

    with contextlib.suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        body = _tree(code.strip()).body
        node: Any = body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
        node = node.elts[0] if isinstance(node, ast.List) and len(node.elts) == 1 else node
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print" and len(node.args) == 1:
            node = node.args[0]
        if not isinstance(node, ast.Call):
            return None
        written = ast.unparse(node.func)
        name = tool_name(written.removesuffix(".call"), known)
        if name not in known or (name == written and name != "execute_code"):
            return None  # a function of the REPL by its own name is code like any other
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        values = [ast.literal_eval(value) for value in node.args]
        if values and isinstance(values[0], dict):
            return {"name": name, "arguments": values[0]}
        if name == "execute_code":
            return {"name": name, "arguments": {"code": values[0], **arguments} if values else arguments}
        return None if values else {"name": name, "arguments": arguments}
    return None


def as_code(call: ToolCall) -> str:
    """A call of one of the REPL's functions as the code that makes it."""
    arguments = call["arguments"] if isinstance(call["arguments"], dict) else {"": call["arguments"]}
    if len(arguments) == 1 and not call["name"].startswith("map_"):
        return f"{call['name']}({next(iter(arguments.values()))!r})"
    named = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if str(key).isidentifier())
    return f"{call['name']}({named})"


def final_call(text: str) -> str | None:
    """The `FINAL(...)` or `FINAL_VAR(...)` that ends a reply outside its fences, as the model wrote it."""
    text = text[-_READ:]
    lines = text.rstrip().split("\n")
    for fence in fences(text):
        lines[fence.first : fence.last + 1] = [""] * (fence.last + 1 - fence.first)
    prose = "\n".join(lines).rstrip().rstrip("`*.").rstrip()
    if not prose.endswith(")"):
        return None
    starts = [m.start(1) for m in islice(re.finditer(_FINAL_LINE, prose), _MISSES)]
    sizes = accumulate(len(prose) - start for start in starts)
    calls = [prose[start:] for start, size in zip(starts, sizes, strict=False) if size <= _PARSED_AT_ALL]
    return next((call for call in calls if parses(call)), None) or next(filter(_closes_at_end, calls), None)


def _names_a_variable(call: str) -> bool:
    """Whether a FINAL(...) hands over what code has computed, rather than a literal or prose."""
    return parses(call) and (call.startswith("FINAL_VAR") or names_in(call) != {"FINAL"})


def names_in(code: str) -> set[str]:
    """The names that code uses; of text that is not parsed, its words."""
    import ast

    if not parses(code):
        return {word[0] for word in re.finditer(r"\w+", code)}
    return {node.id for node in ast.walk(_tree(code)) if isinstance(node, ast.Name)}


def _closes_at_end(call: str) -> bool:
    """Whether the bracket that opens the call is closed by its last character, and not by one before."""
    depth = 0
    for place, sign in enumerate(call):
        depth += (sign == "(") - (sign == ")")
        if sign == ")" and depth == 0:
            return place == len(call) - 1
    return True


def unseen_numbers(answer: str, seen: str) -> list[str]:
    """The numbers in an answer that a text does not hold, neither as they are nor rounded nor as a percentage."""
    pattern = r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])"
    known = [float(n[0].replace(",", "")) for n in islice(re.finditer(pattern, seen[:1_000_000]), 20_000)]
    unseen = []
    for number in (found[0] for found in islice(re.finditer(pattern, answer[:_READ]), 20)):
        value, digits = float(number.replace(",", "")), len(number.partition(".")[2])
        near = 0.5 * 10**-digits + 1e-9
        if not any(abs(value - other * scale) <= near for other in known for scale in (1, 100)):
            unseen.append(number)
    return unseen[:3]


def literal_answer(call: str) -> str:
    """What is between the brackets of a `FINAL(...)` that is not Python: prose, taken as it stands."""
    inner = call[call.index("(") + 1 : -1].strip()
    return inner[1:-1] if len(inner) > 1 and inner[0] == inner[-1] and inner[0] in "\"'" else inner


def show_cell(event: Event) -> str:
    """A cell's outcome as the model reads it."""
    error = event.get("brief") or event.get("error") or ""
    parts = [(event.get("stdout") or "").rstrip("\n"), event.get("value") or "", error]
    if images := event.get("images"):
        parts.append(f"[images made: {images if isinstance(images, int) else len(images)}]")
    output = "\n".join(part for part in parts if part) or "[no output]"
    return f"{output}\n{event['note']}" if event.get("note") else output


def brief_error(error: str, code: str, cell: int, *, has_advice: bool = False) -> str:
    """An error for a small model: its message and the line of the cell that it arose in, which it reads sooner.

    `has_advice`: a note says what to use in place of a missing module; the message's own advice is left out.
    """
    lines = error.rstrip().split("\n")
    start = next((n for n in range(len(lines) - 1, 0, -1) if lines[n - 1][:1] == " " and lines[n][:1] != " "), 0)
    message = "\n".join(lines[start:])[:600]
    if has_advice:
        message = re.sub(r"\A(ModuleNotFoundError: no module '[\w.]{1,80}' here);.*", r"\1", message)
    places = re.findall(rf'File "<cell {cell}>", line (\d{{1,6}})', error)
    source = code.split("\n")
    if not places or int(places[-1]) > len(source):
        return message
    return f"{message}\nin line {places[-1]}: {source[int(places[-1]) - 1].strip()[:200]}"


def read_arguments(text: str) -> dict[str, object] | None:
    """A call's arguments from JSON, or nearly; None where it is not certain what is meant.

    Forgiven are: an object said twice or after an empty one, a list around it, a fence, tags behind it, trailing
    commas, single backslashes such as those of a regex, and what `_json_value` forgives.
    """
    text = text.strip()
    if text.startswith("```") and (found := fences(text)):
        text = found[0].code.strip()
    text = re.sub(rf"(?:{_MARK_ENDS})\Z", "", text[:_READ]).rstrip() if text.endswith(">") else text
    mended = _mended(text) if len(text) <= _READ else text
    for form in dict.fromkeys((text, mended)):
        value: object = rlm_backends.last_object(form, strict=False)
        if value is None:
            with contextlib.suppress(ValueError):
                value = rlm_backends.from_json(form, strict=False)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            return value
    cut_off = re.sub(r"\\.", "", text[:_READ], flags=re.DOTALL).count('"') % 2
    if text[:1] == "{" and len(text) <= _READ and not cut_off:
        value, end = _json_value(text, 0)
        return value if isinstance(value, dict) and not text[end:].strip("`}] \n") else None
    return None


def _mended(text: str) -> str:
    """JSON without trailing commas, each backslash that escapes nothing doubled."""
    # An unclosed string goes on to the end, so that no place is looked at twice.
    parts = re.split(r'("[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z))', text, flags=re.DOTALL)
    parts[::2] = [re.sub(r",(?=\s*[}\]])", "", part) for part in parts[::2]]
    escape = r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|)'
    parts[1::2] = [re.sub(escape, lambda m: m[0] if m[1] else "\\\\", part) for part in parts[1::2]]
    return "".join(parts)


def clean_code(code: str) -> str:
    """Code without what a model has put around it; unchanged if it is Python already, or nothing helps.

    That is a fence, `<code>` tags, the `>>> ` of a session, an indentation of all lines, or line breaks escaped twice.
    """
    if may_be_code(code):
        return code
    forms = [code]
    for clean in (_untagged, _unfenced, _unprompted, _dedented, _unescaped):
        forms += [form for form in map(clean, forms) if form.strip() and form not in forms]
    return next((form for form in forms[1:] if parses(form)), code)


def _untagged(code: str) -> str:
    code = re.sub(r"\A\s*<(?:code|python|execute_code|execute_python|tool_code)>", "", code)
    tail = re.search(rf"(?:{_MARK_ENDS}|<end_code>)\s*\Z", code[-200:])
    return code[: len(code) - len(tail[0])].rstrip() if tail else code


def _unfenced(code: str) -> str:
    return "\n".join(code_blocks(code)) if "```" in code or "~~~" in code else code


def _unprompted(code: str) -> str:
    lines = code.strip().split("\n")
    if not lines[0].lstrip().startswith(">>>"):
        return code
    prompts = [line.lstrip() for line in lines if line.lstrip()[:3] in (">>>", "...")]
    return "\n".join(line[4:] if line[3:4] == " " else line[3:] for line in prompts)


def _dedented(code: str) -> str:
    import textwrap

    return textwrap.dedent(code).strip("\n")


def _unescaped(code: str) -> str:
    if "\n" in code.strip() or "\\n" not in code:
        return code
    return code.replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"')


def code_argument(arguments: object) -> tuple[str, str]:
    """(code, "") of an execute_code call, or ("", an error about its arguments for the model)."""
    if isinstance(arguments, str) and (read := read_arguments(arguments)) is not None:
        arguments = read
    if isinstance(arguments, dict):
        for name in _CODE_KEYS:
            if isinstance(arguments.get(name), str):
                return clean_code(arguments[name]), ""
        if isinstance(arguments.get("code"), list) and all(isinstance(line, str) for line in arguments["code"]):
            return clean_code("\n".join(arguments["code"])), ""
        return "", 'error: execute_code needs {"code": "..."}, a string; nothing was run'
    text = str(arguments).strip()
    if blocks := code_blocks(text):
        return clean_code("\n".join(blocks)), ""
    if text and not text.startswith("{") and parses(clean_code(text)):
        return clean_code(text), ""
    return "", 'error: the arguments are not a JSON object and nothing was run; send {"code": "..."}, properly escaped'


def _prompt_list(function: str, prompts: object) -> list[str]:
    """The prompts of a call from the REPL; TypeError that says what to write where they are none."""
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"{function} takes a list of prompts, not {type(prompts).__name__}")
    for prompt in prompts:
        if not isinstance(prompt, str):
            instead = "; for several prompts: llm_query_batched(prompts)" if isinstance(prompt, (list, tuple)) else ""
            raise TypeError(f"{function}: a prompt must be a str, not {type(prompt).__name__}{instead}")
        if not prompt.strip():
            raise ValueError(f"{function}: a prompt is empty")
    return list(prompts)


def _leaf_text(text: str, stop_reason: str | None, usage: Mapping[str, int]) -> str:
    """A sub-call's answer; SubcallError for one that was cut off or refused, since that is not an answer."""
    if stop_reason == "length":
        raise SubcallError(
            f"the answer was cut off after {usage.get('output', 0)} tokens: ask for a shorter one "
            "(what came is in .partial)",
            partial=text,
        )
    if stop_reason == "repetition":
        raise SubcallError("the answer repeated itself and was stopped (what came is in .partial)", partial=text)
    if stop_reason in ("refusal", "content_filter"):
        raise SubcallError(f"the model refused: {text or stop_reason}", partial=text)
    return text


# - sub-calls: the form of their answers, and checks of their prompts

_BARE_PROMPT = 400  # characters; a longer prompt holds more than a question


class SubcallForm(NamedTuple):
    """What a sub-call carries besides its prompt, and how its answer is read."""

    schema: rlm_tools.Schema | None  # of an object
    images: list[Message]
    wrapped: bool = False  # the schema asked for is that of `answer`, since some servers take objects only
    numbered: bool = False  # one answer for each item of map_query, by its number

    def key(self) -> list[object]:
        """What of it belongs to the call's key."""
        return [part for part in (self.schema, self.images) if part]

    def prompt(self, text: str) -> str | list[Message]:
        """The message's content: the prompt, the schema in words, the images."""
        if self.schema is not None:
            text += f"\n\nAnswer with JSON only, of this JSON Schema: {json.dumps(self.schema)}"
        return [{"type": "text", "text": text}, *self.images] if self.images else text

    def read(self, text: str) -> tuple[Any, list[str]]:
        """The answer as Python data, and its problems."""
        assert self.schema is not None
        value = _json_in(text)
        if self.wrapped and not (isinstance(value, dict) and set(value) == {"answer"}):
            value = {"answer": value}  # some models leave the wrapping away
        if self.numbered and isinstance(value, list) and len(value) == len(self.schema["required"]):
            value = dict(zip(self.schema["required"], value, strict=True))
        value, problems = rlm_tools.validate(self.schema, value)
        if self.numbered and not problems:
            value = {name: value[name] for name in self.schema["required"]}
        return value["answer"] if self.wrapped and not problems else value, problems


_TYPE_NAMES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}


def _subcall_schema(function: str, schema: object) -> rlm_tools.Schema | None:
    """The schema of a sub-call's answer; TypeError if it is not a schema."""
    if schema is None:
        return None
    if isinstance(schema, str):
        schema = {"type": _TYPE_NAMES.get(schema, schema)}
    if isinstance(schema, (list, tuple)):
        schema = {"enum": list(schema)}
    if not isinstance(schema, dict):
        raise TypeError(
            f'{function}: schema is a JSON Schema, such as {{"type": "integer"}}, or a list of the answers there are'
        )
    try:
        return rlm_tools.schema_of(schema)
    except rlm_tools.ToolError as error:
        raise TypeError(f"{function}: schema: {error}") from None


def _object_schema(properties: rlm_tools.Schema) -> rlm_tools.Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _subcall_images(images: Iterable[object] | None) -> list[Message]:
    """Images for a sub-call as message parts. A URL is refused: it would be fetched by the provider."""
    items = [images] if isinstance(images, (str, bytes)) else list(images or ())
    parts = [_image_in(item) for item in items]
    if None in parts:
        raise TypeError("images: each is the bytes of a PNG, JPEG, GIF or WebP file, or a data URI")
    return [part for part in parts if part is not None]


def _groups_of(texts: list[str], most: int, count: int) -> list[list[int]]:
    """The places of the texts in groups of at most `count` with at most `most` characters, in order."""
    groups: list[list[int]] = []
    room = 0
    for n, text in enumerate(texts):
        if len(text) > most:
            raise ValueError(f"item {n} has {len(text):,} characters, and a sub-call takes {most:,}: use chunks(text)")
        if not groups or room < len(text) + 8 or len(groups[-1]) == count:
            groups.append([])
            room = most
        groups[-1].append(n)
        room -= len(text) + 8
    return groups


def _by_items(values: Iterable[object], groups: list[list[int]]) -> list[object]:
    """For each item what its group has: the answer under its number, or the group's error."""
    items: list[object] = []
    for value, group in zip(values, groups, strict=True):
        items += list(value.values()) if isinstance(value, dict) else [value] * len(group)
    return items


def _map_prompt(question: str, texts: list[str]) -> str:
    listed = "\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1))
    return f"For each numbered item: {question}\n\n{listed}\n\nGive the answer for each item under its number."


def holds_text_of(prompt: str, value: object) -> bool:
    """Whether a prompt holds text of the context: a passage of it, or one of its lines or items."""
    pieces = list(islice(_texts_in(value), 2000))
    starts = [match.start() for match in islice(re.finditer(r"\S+", prompt), 60)]
    passages = {prompt[start : start + 16] for start in starts if len(prompt) - start >= 16}
    scanned = 0
    for piece in pieces:
        scanned += len(piece)
        if scanned > 50_000_000:
            return True  # too much to be looked through
        if any(passage in piece for passage in passages):
            return True
        lines = islice(piece[:200_000].splitlines(), 2000)
        least = 4 if isinstance(value, str) else 1
        if any(len(line) >= least and line in prompt for line in map(str.strip, lines)):
            return True
    return False


def _texts_in(value: object) -> Iterator[str]:
    """The texts and numbers in plain data, as text."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack += [*islice(item.values(), 2000), *islice(item.keys(), 2000)]
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += islice(item, 2000)
        elif isinstance(item, (int, float)):
            yield str(item)


def _require_room(backend: Backend, messages: list[Message]) -> None:
    """ValueError, before anything is sent, for a prompt that cannot fit the model's window."""
    window = backend.window
    size = sum(len(message["content"]) for message in messages if isinstance(message["content"], str))
    if window and size > 6 * window:
        raise ValueError(
            f"the prompt has {size:,} characters, and the model takes some {_CHARACTERS_PER_TOKEN * window:,}: "
            "cut it with chunks(text), one llm_query_batched over the pieces"
        )


# - advice for mistakes that models make with `context`

_LOOPS_OVER_TEXT = r"csv\.(?:Dict)?[rR]eader\(\s*context\s*[,)]|(?:for \w+ in|enumerate\()\s*context\s*[:,)]"


def advice_on(context: Context, code: str, outcome: Event, start: Callable[[], str]) -> str:
    """What to write instead, for the mistakes that models make most with a context of this kind; "" for none.

    `start`: says how code can begin with the context.
    """
    error, value = outcome["error"] or "", context.value
    if value is None:
        return ""
    opens = re.search(r"(?<!\w)open\(\s*[\"']?context\b|(?<!\w)open\(\s*[\"'][^\"']{0,80}[\"']", code)
    if opens and re.search(r"FileNotFoundError|PermissionError|IsADirectoryError|No such file", error):
        return f"The input is not a file: it is already in `context`. {start()}"
    if isinstance(value, str):
        if re.search(_LOOPS_OVER_TEXT, code):
            return f"`context` is one str: looping over it gives single characters. {start()}"
        if re.search(r"context\.read(?:lines|line)?\(|json\.load\(\s*context", code) and error:
            return f"`context` is a str, not a file. {start()}"
    if re.search(r"TypeError: .*'(?:int|float|str)' and '(?:int|float|str)'|multiply sequence|'<' not", error):
        return "Values that are read from text are str: convert them with float(value)."
    if re.search(r"ValueError: invalid literal for int\(\)", error):
        return "Not every value is a whole number: use float(value), and strip what is not part of the number."
    if "'NoneType' object has no attribute 'group'" in error:
        return f"The pattern was not found. {start()}"
    if "IndexError: list index out of range" in error:
        filters = re.search(r"\bfor \w{1,40} in [^\n\]]{1,200} if ", code)
        return "Too few items passed the filter: leave it out." if filters else "The list is shorter than that."
    if re.search(r"(?:ModuleNotFound|Import)Error", error) and re.search(r"pandas|numpy|polars", error):
        made = {"rows": "csv.DictReader(context.splitlines()), with numbers as numbers", "data": "json.loads(context)"}
        ready = re.match("Ready to use: `(rows|data)`", begin := start())
        return f"{begin}. It is made by {made[ready[1]]}." if ready else begin
    if re.search(r"AttributeError: '(?:dict|list)' object has no attribute|TypeError: .*(?:dict|list)", error):
        return "" if isinstance(value, str) else f"`context` is a {type(value).__name__}. {start()}"
    if found := re.search(r"NameError: name '(json|re|csv|datetime|math|collections|Counter|statistics)'", error):
        name = found[1]
        return f"Write `{'from collections import Counter' if name == 'Counter' else f'import {name}'}` first."
    return ""


def _sums_for(code: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What to write in place of a dict comprehension by a column in which several rows have the same value; else ""."""
    made = re.search(r"\{\s?(\w{1,40})\[[\"'](\w{1,40})[\"']\] ?: ?([^{}\n]{1,300}?) for \1 in rows\b", code)
    values = [str(row.get(made[2])) for row in rows] if made else []
    if not made or len(values) == len(set(values)):
        return ""
    row, column, value = made.groups()
    key = f"{row}[{column!r}]"
    return (
        f"Several rows have the same {column}, {_LAST_ONLY}. Add up: totals = {{}}, then "
        f"for {row} in rows: totals[{key}] = totals.get({key}, 0) + {value}, then "
        "print(sorted(totals.items(), key=lambda item: item[1], reverse=True)[:3])."
    )


def words_of(prompt: str, context: Context) -> str:
    """Which words of a request occur in a text, how often, and where most of them are together: a lead for a search."""
    value = context.value
    if not isinstance(value, str) or len(value) > 50_000_000 or context.format:
        return ""
    if sample := _like_code(prompt, value):
        return sample
    # The first word begins a sentence; dates, times and numbers are bounds more often than they are looked for.
    found = dict.fromkeys(re.findall(r"\w[\w-]*\w", prompt[:2000].partition(" ")[2]))
    words = [w for w in found if (len(w) > 3 or not w.islower()) and w.lower() not in _COMMON_WORDS]
    words = [w for w in words if not re.fullmatch(r"[\d-]+", w)]
    counts = sorted((count, word) for word in words[:20] if (count := value.count(word)))
    shown = [f"{word!r} {counted(count, 'time')}" for count, word in counts][:4]
    passage = passage_with([word for _, word in counts], counts[0][0], value) if counts else ""
    together = f"\nMost of these words together: {passage!r}" if passage else _filter_by(counts, prompt, context)
    return f"In it: {', '.join(shown)}.{together}" if shown else ""


def _like_code(prompt: str, text: str) -> str:
    """Code that finds what looks like a code that a request gives as a sample, such as KX-1234; "" if it finds none."""
    for sample in re.findall(r"\b[A-Z]{1,6}[-_]?\d{2,10}\b", prompt[:2000]):
        digits = re.sub(r"\d+", lambda found: rf"\d{{{len(found[0])}}}", sample)
        pattern = rf"\b{digits}\b"
        if sample not in text and (found := re.search(pattern, text)):
            return f"In it: {found[0]!r} and others. Use: import re; found = re.findall(r'{pattern}', context)"
    return ""


def _filter_by(counts: Sequence[tuple[int, str]], prompt: str, context: Context) -> str:
    """Code that finds the lines that hold these words, at the times that the request names; "" if it finds none."""
    lines = context.parsed.get("lines", ())
    words = [word for count, word in counts if 2 < count < 0.9 * len(lines)]
    are_together = words and any(all(word in line for word in words) for line in lines)
    if not are_together or re.search(_WANTS_DIFFERENT, prompt):
        return ""
    tests = [f"{word!r} in line" for word in words] + _time_tests(prompt, lines[0])
    wanted = [f"found[{n}]" for n, word in ((0, "first"), (-1, "last")) if re.search(rf"(?i)\b{word}\b", prompt)]
    shown = ", ".join(wanted or ["len(found)", "found[0]", "found[-1]"])
    return f"\nUse: found = [line for line in lines if {' and '.join(tests)}]; print({shown})"


def _time_tests(prompt: str, line: str) -> list[str]:
    """Comparisons of a line's time with those that a request names, if the line begins with one of the same form."""
    time = re.match(_LINE_TIME, line)
    if not time:
        return []
    size = len(time[0])
    bounds = re.findall(rf"(?i)\b(before|until|after|since|from|between|to|and) ({_LINE_TIME})(?!:?\d)", prompt[:2000])
    signs = {"before": "<", "until": "<=", "to": "<=", "and": "<=", "after": ">"}
    return [f"line[:{size}] {signs.get(word.lower(), '>=')} {bound!r}" for word, bound in bounds if len(bound) == size]


_LINE_TIME = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?"


def passage_with(words: Sequence[str], occurrences: int, text: str) -> str:
    """The passage around an occurrence of the first word that holds more of the words than any other; "" without one.

    It holds at least three of them. Nothing is searched for a first word with more than 200 `occurrences`.
    """
    if len(words) < 3 or occurrences > 200:
        return ""
    found = []
    for match in re.finditer(re.escape(words[0]), text):
        passage = text[max(0, match.start() - 150) : match.end() + 150]
        found.append((sum(word in passage for word in words), passage))
    found.sort(key=lambda pair: -pair[0])
    alone = len(found) == 1 or found[0][0] > found[1][0]
    return found[0][1] if found[0][0] >= 3 and alone else ""


_COMMON_WORDS = {
    *("what", "which", "where", "when", "that", "this", "these", "those", "there", "their", "they", "with", "from"),
    *("have", "does", "were", "been", "than", "then", "many", "much", "most", "more", "into", "over", "each", "other"),
    *("about", "only", "give", "name", "your", "file", "text", "line", "lines", "list", "number", "answer", "between"),
}


def _parsed(value: Any, form: str) -> dict[str, Any]:
    if isinstance(value, dict):
        texts = list(islice(value.items(), 100)) if sum(map(_length, value.values())) <= _PARSED_TABLE else []
        forms = {name: _format_of(text) for name, text in texts if isinstance(text, str)}
        tables = {name: _parsed(value[name], form).get("rows") for name, form in forms.items()}
        found = {name: rows for name, rows in tables.items() if rows}
        names = {_variable_for(name): rows for name, rows in found.items()}
        return names if len(names) == len(found) and "" not in names else {"tables": found}
    if not isinstance(value, str) or len(value) > (_PARSED_TABLE if form else _PARSED_LINES):
        return {}
    import csv

    with contextlib.suppress(ValueError, RecursionError, csv.Error):
        if form.startswith(", JSON"):
            return {"data": rlm_backends.from_json(value, constant=float)}
        if form.endswith("number a line"):
            lines = [line.strip() for line in value.splitlines() if line.strip()]
            return {"numbers": list(map(_number, lines))} if all(map(_is_number, lines)) else {}
        if "columns" in form:
            return {"rows": _rows(value, "\t" if form.startswith(", tab") else ",")}
    return {"lines": value.splitlines()} if not form and "\n" in value[:2000] else {}


_PARSED_TABLE = 2_000_000  # characters of a table or JSON, and of plain lines, that are parsed for a small model
_PARSED_LINES = 10_000_000
# No leading zeros: such a value is a name. Commas stand between thousands.
_NUMBER = r"-?(?:0|[1-9]\d{0,17}|[1-9]\d{0,2}(?:,\d{3}){1,5})(?:\.\d{1,17})?"


def _variable_for(path: Any) -> str:
    """A variable's name for the table in a file; "" for none that is safe."""
    name = re.sub(r"\W", "_", re.split(r"[/\\]", str(path))[-1].partition(".")[0]).lower()
    taken = keyword.iskeyword(name) or hasattr(builtins, name) or name in ("context", "chunks", "rows", "tables")
    return name if re.fullmatch(r"(?!file_|\w*query)[a-z]\w{2,40}", name) and not taken else ""


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _rows(text: str, sign: str) -> list[dict[str, Any]]:
    """The rows of a table; a column that holds nothing but numbers becomes numbers."""
    import csv

    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines(), delimiter=sign, skipinitialspace=True))
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("the rows have different lengths")
    for name in rows[0] if rows else ():
        if all(_is_number(row[name]) for row in rows):
            for row in rows:
                row[name] = _number(row[name])
    return rows


def _is_number(text: str) -> bool:
    return re.fullmatch(_NUMBER, text) is not None


def _number(text: str) -> int | float:
    text = text.replace(",", "")
    return float(text) if "." in text else int(text)


def ready_in(context: Context) -> str:
    """What a small model is told of the variables that were made of its context; "" without any."""
    if not context.parsed:
        return ""
    if isinstance(context.value, dict):
        tables = context.parsed.get("tables")
        named = {f"tables[{name!r}]": rows for name, rows in tables.items()} if tables else context.parsed
        shown = [f"`{name}`, {_table_shape(rows)}" for name, rows in islice(named.items(), 5)]
        return f"Ready to use: {'; '.join(shown)}"
    [(name, value)] = context.parsed.items()
    if name == "rows":
        return f"Ready to use: `rows`, {_table_shape(value)}"
    if name == "data":
        more = "; data.items()" if isinstance(value, dict) else ""
        return f"Ready to use: `data`, the same as Python objects{more}"
    if name == "numbers":
        return f"Ready to use: `numbers`, a list of {len(value):,} numbers"
    return f"Ready to use: `lines`, a list of {len(value):,} str{_line_shape(value[:5])}"


def _table_shape(rows: list[dict[str, Any]]) -> str:
    first = f", the first is {str(rows[0])[:300]}" if rows else ""
    return f"a list of {counted(len(rows), 'dict')}{first}"


def _line_shape(lines: list[str]) -> str:
    """How to take lines apart that are made alike; "" for others."""
    parts = ", ".join(f"[{n}] is {word[:40]!r}" for n, word in enumerate(lines[0].split()))
    split = f". In lines[0].split() {parts}" if _alike(lines) else ": for number, line in enumerate(lines, 1)"
    time = re.match(_LINE_TIME, lines[0])
    return split + (f". line[:{len(time[0])}] is its time, such as {time[0]!r}: compare it as text" if time else "")


def _alike(lines: list[str]) -> bool:
    """Whether several lines have the same number of words, a few."""
    sizes = {len(line.split()) for line in lines}
    return len(lines) > 2 and len(sizes) == 1 and 3 <= min(sizes) <= 14


def use_of(context: Context) -> str:
    """How to begin with a context of this kind, in a line of code."""
    value, form = context.value, context.format
    if isinstance(value, dict):
        first = next(iter(value.values()), "")
        texts = "for name, text in context.items(): lines = text.splitlines()"
        return f"Use: {texts if isinstance(first, str) else 'for name, value in context.items():'} ..."
    if not isinstance(value, str):
        return "Use: for item in context: ..."
    if form.startswith(", JSON"):
        return f"Use: import json; data = json.loads(context){'; data.items()' if ' an object' in form[:20] else ''}"
    if form.endswith("date a line"):
        return "Use: from datetime import date; days = [date.fromisoformat(line) for line in context.splitlines()]"
    if form.endswith("number a line"):
        return "Use: numbers = [float(line) for line in context.splitlines()]"
    if form:
        sign = ', delimiter="\\t"' if form.startswith(", tab") else ""
        return f"Use: import csv; rows = list(csv.DictReader(context.splitlines(){sign})); the values are str"
    if "\n" not in value[:2000]:
        return (
            "Use: context.count(WORD), or import re; for m in list(re.finditer(WORD, context))[:5]: "
            "print(context[max(0, m.start() - 100):m.end() + 100])"
        )
    words = value[:2000].split("\n", 1)[0].split()
    if not 4 <= len(words) <= 14:
        return "Use: lines = context.splitlines()"
    return f"Use: lines = context.splitlines(); a line.split() is like {[word[:40] for word in words]}"


def _json_in(text: str) -> object:
    """The value of an answer given as text: JSON, fenced or not, or a list or dict of Python; else the text itself."""
    blocks = [f.code for f in fences(text) if f.tag in ("json", "")]
    for candidate in [*blocks, text]:
        with contextlib.suppress(ValueError):
            return rlm_backends.from_json(candidate, constant=float)
    bare = text.strip()
    if bare[:1] in ("[", "{") and parses(bare):
        import ast

        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return ast.literal_eval(_tree(bare).body[0].value)
    return text
