"""Every option at every level of configuration: argument > environment > ./rlm.toml > the user's file > default."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scripted
from scripted import Server

import rlm
import rlm_cli

# option: a value for the user's file, ./rlm.toml, the environment and the argument, each another one
VALUES: dict[str, tuple[Any, Any, Any, Any]] = {
    "model": ("gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-4o-mini"),
    "sub_model": ("gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-4o-mini"),
    "backend": ("openai", "anthropic", "groq", "mistral"),
    "api_key": ("key-of-the-user", "key-of-the-project", "key-of-the-environment", "key-of-the-argument"),
    "base_url": ("http://user:1/v1", "http://project:1/v1", "http://environment:1/v1", "http://argument:1/v1"),
    "protocol": ("text", "tools", "auto", "text"),
    "environment": ("docker", "local", "docker", "local"),
    "docker_image": ("a:1", "b:1", "c:1", "d:1"),
    "docker_memory": ("1g", "2g", "3g", "4g"),
    "local_memory": ("2g", "3g", "4g", "5g"),
    "docker_runtime": ("runsc", "kata", "crun", "runc"),
    "docker_mount": ("none", "ro", "none", "ro"),
    "require": ("full", "best", "full", "best"),
    "log_dir": ("user-logs", "project-logs", "environment-logs", "argument-logs"),
    "snipara_api_key": ("snipara-user", "snipara-project", "snipara-environment", "snipara-argument"),
    "snipara_project_slug": ("user", "project", "environment", "argument"),
    "snipara_api_url": ("https://user", "https://project", "https://environment", "https://argument"),
    "params": ({"seed": 1}, {"seed": 2}, {"seed": 3, "stop": ["a,b"]}, {"temperature": 0.5, "user": "me"}),
    "sub_params": ({"seed": 4}, {"seed": 5}, {"seed": 6}, {"seed": 7}),
    "prompt": ("full", "small", "full", "small"),
    "encoding": ("cp1251", "gb18030", "utf-16", "latin-1"),
    "prices": ({"m": [1, 2]}, {"m": [2, 3]}, {"m": [3, 4]}, {"m": [4, 5]}),
    "schema": ({"type": "string"}, {"type": "integer"}, {"type": "array"}, {"type": "object"}),
    "mcp": tuple({"s": {"command": [word], "env": {"KEY": "918273645546372819"}}} for word in "abcd"),
    "tools": (["a.py"], ["b.py"], ["c.py", "d"], ["e"]),
    "allowed_paths": (["a"], ["b"], ["c", "d"], ["e"]),
    "allowed_imports": (["a"], ["b"], ["c", "d"], ["e"]),
}
NUMBERS: dict[str, tuple[Any, Any, Any, Any]] = {"int": (201, 202, 203, 204), "float": (1.5, 2.5, 3.5, 4.5)}


def values_of(name: str) -> tuple[Any, Any, Any, Any]:
    kind = str(rlm.OPTIONS[name].type).split(" |")[0]
    default = rlm.OPTIONS[name].default
    return VALUES.get(name) or NUMBERS.get(kind) or (not default, default, not default, default)


def as_text(value: Any) -> str:
    """A value as the environment or a flag has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def write_user(**table: Any) -> None:
    path = Path(rlm.user_config_dir()) / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[rlm]\n" + "".join(f"{name} = {rlm_cli.toml(value)}\n" for name, value in table.items()))


def write_project(folder: Path, **table: Any) -> None:
    path = folder / "rlm.toml"
    path.write_text("[rlm]\n" + "".join(f"{name} = {rlm_cli.toml(value)}\n" for name, value in table.items()))
    rlm.trust(str(path))


def in_force(name: str, **given: Any) -> tuple[Any, str]:
    settings = rlm.load_config(given)
    return settings.values[name], settings.origins[name]


@pytest.mark.parametrize("name", list(rlm.OPTIONS))
def test_each_level_wins_over_those_below(name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, project, environment, argument = values_of(name)
    assert in_force(name) == (rlm.OPTIONS[name].default, "default")
    write_user(**{name: user})
    assert in_force(name) == (user, f"{rlm.user_config_dir()}/config.toml:2")
    write_project(workspace, **{name: project})
    assert in_force(name) == (project, "rlm.toml:2")
    monkeypatch.setenv("RLM_" + name.upper(), as_text(environment))
    assert in_force(name) == (environment, "RLM_" + name.upper())
    assert in_force(name, **{name: argument}) == (argument, "argument")
    runtime = rlm.RLM(**{name: argument})
    assert getattr(runtime.options, name) == argument


def test_every_option_is_an_argument_of_RLM() -> None:
    import inspect

    assert {"config", "on_event", "on_progress", "on_confirm", *rlm.OPTIONS} == set(
        inspect.signature(rlm.RLM).parameters
    )


def test_every_option_is_a_flag_that_wins_over_the_environment(workspace: Path) -> None:
    """All of them at once, as one command line, over an environment that sets them all."""
    environment, flags, expected = dict(os.environ), [], {}
    for name in rlm.OPTIONS:
        environment["RLM_" + name.upper()] = as_text(values_of(name)[2])
        value = values_of(name)[3]
        flag = rlm_cli.flags_of(name)[-1]
        long = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(long if value else f"--no-{long[2:]}")
        else:
            flags += [flag, as_text(value)]
        shown = rlm_cli.shown_value(name, value)
        expected[name] = {"value": shown, "origin": flag}
    command = [sys.executable, "-m", "rlm", "config", "--json"]
    ran = subprocess.run([*command, *flags], capture_output=True, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == expected
    ran = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    shown = {name: rlm_cli.shown_value(name, values_of(name)[2]) for name in rlm.OPTIONS}
    found = json.loads(ran.stdout)
    assert {name: row["value"] for name, row in found.items()} == shown
    assert {row["origin"] for row in found.values()} == {"RLM_" + name.upper() for name in rlm.OPTIONS}


def test_short_forms_of_flags() -> None:
    assert rlm_cli.flags_of("model") == ["-m", "--model"]
    assert rlm_cli.flags_of("environment") == ["-e", "--environment", "--env"]
    assert rlm_cli.flags_of("cost_budget_usd")[-1] == "--cost-budget"
    assert rlm_cli.flags_of("timeout_seconds")[-1] == "--timeout"
    assert "-v" in rlm_cli.flags_of("verbose")
    assert rlm_cli.flags_of("params") == ["-p", "--params"]
    assert rlm_cli.flags_of("prompt")[-1] == "--prompt-file"  # `rlm batch --prompt` is another


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["-p", "temperature=0"], {"temperature": 0}),
        (["-p", "temperature=0", "-p", "temperature=0.5", "--params", "seed=1"], {"temperature": 0.5, "seed": 1}),
        (["-p", "user=me", "-p", "reasoning=false", "-p", "stop=[1]"], {"user": "me", "reasoning": False, "stop": [1]}),
        (
            ["--params", '{"temperature": 0, "stop": ["x=1"]}', "-p", "temperature=1"],
            {"temperature": 1, "stop": ["x=1"]},
        ),
        (["-p", "note=a=b"], {"note": "a=b"}),
        (["--params=seed=-1"], {"seed": -1}),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("option", ["params", "sub_params"])
def test_request_parameters_come_as_pairs_or_as_json(option: str, flags: list[str], value: dict[str, Any]) -> None:
    if option == "sub_params":
        flags = [flag.replace("--params", "--sub-params") if flag != "-p" else "--sub-params" for flag in flags]
    parser = rlm_cli.command_parser("run")
    args = rlm_cli.parse_args(parser, [*flags, "What?"], named=True)
    assert rlm_cli.given_options(args) == {option: value}
    again = shlex.split(rlm_cli.rerun_flags(args))
    repeated = rlm_cli.given_options(rlm_cli.parse_args(rlm_cli.command_parser("run"), again, named=True))
    assert repeated == {option: value}


@pytest.mark.parametrize("text", ["hot", "=1", '{"a": 1', "[1]"])
def test_what_is_no_parameter_is_an_error_with_an_example(text: str) -> None:
    args = rlm_cli.parse_args(rlm_cli.command_parser("run"), ["-p", text], named=True)
    with pytest.raises(rlm.ConfigError) as caught:
        rlm_cli.given_options(args)
    assert caught.value.message.startswith(f"-p: {text!r}") and "temperature=0" in caught.value.hint


def test_request_parameters_may_be_a_table_of_their_own(workspace: Path) -> None:
    (workspace / "c.toml").write_text('[rlm]\nmodel = "m"\n\n[rlm.params]\ntemperature = 0\nstop = ["x"]\n')
    settings = rlm.load_config({}, config="c.toml")
    assert settings.values["params"] == {"temperature": 0, "stop": ["x"]}
    assert settings.origins["params"] == "c.toml:4"


def test_init_writes_request_parameters_down(workspace: Path) -> None:
    given = {"params": {"temperature": 0, "a b": {"c.d": [1]}}, "max_depth": 2}
    (workspace / "c.toml").write_text(rlm_cli.commented_config(given))
    values = rlm.load_config({}, config="c.toml").values
    assert {name: values[name] for name in given} == given
    assert "params = { temperature = 0, " in (workspace / "c.toml").read_text()


def test_the_specifications_variables(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exports of the original's documentation, over a file; test_spec has its rlm.toml."""
    (workspace / "rlm.toml").write_text('[rlm]\nmodel = "gpt-4o-mini"\nenvironment = "docker"\n')
    exports = {
        "RLM_MODEL": "gpt-4o",
        "RLM_ENVIRONMENT": "local",
        "SNIPARA_API_KEY": "rlm_key",
        "SNIPARA_PROJECT_SLUG": "slug",
        "SNIPARA_API_URL": "https://here",
    }
    for name, value in exports.items():
        monkeypatch.setenv(name, value)
    settings = rlm.load_config({})
    named = ("model", "environment", "snipara_api_key", "snipara_project_slug", "snipara_api_url")
    assert [settings.values[name] for name in named] == list(exports.values())
    assert [settings.origins[name] for name in named] == list(exports)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_MODEL", "")
    assert in_force("model") == (None, "default")


def test_the_nearest_file_above_is_the_projects(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "a" / "b").mkdir(parents=True)
    write_project(workspace, max_depth=7)
    monkeypatch.chdir(workspace / "a" / "b")
    assert in_force("max_depth") == (7, "rlm.toml:2")
    write_project(workspace / "a", max_errors=3)
    assert in_force("max_depth") == (4, "default")


def test_a_named_file_is_read_alone_and_False_reads_none(workspace: Path) -> None:
    write_user(max_depth=5)
    write_project(workspace, max_errors=6)
    (workspace / "other.toml").write_text('[rlm]\nmax_iterations = 9\nbase_url = "http://localhost:1/v1"\n')
    names = ("max_depth", "max_errors", "max_iterations")

    def found(config: Any) -> list[Any]:
        return [rlm.load_config({}, config=config).values[name] for name in names]

    assert found(None) == [5, 6, 30]
    assert found("other.toml") == [4, 5, 9]
    assert found(False) == [4, 5, 30]


def test_only_provider_keys_come_from_dotenv(workspace: Path, openai: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    openai.script = "Paris"
    lines = ["# a comment", f"export OPENAI_API_KEY='{scripted.KEY}'  ", "RLM_MODEL=gpt-4", "PATH=/nowhere"]
    (workspace / ".env").write_text("\n".join(lines))
    assert rlm.complete("Capital?").response == "Paris"
    assert openai.requests[0].headers["authorization"] == f"Bearer {scripted.KEY}"
    assert openai.requests[0].model == "gpt-4o-mini"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[rlm]\nmax_dpeth = 3\n", "rlm.toml:2: unknown key 'max_dpeth'", "did you mean 'max_depth'?"),
        ("[rlm]\n\nzzz = 3\n", "rlm.toml:3: unknown key 'zzz'", "there are: allowed_imports"),
        ("model = 'x'\n", "rlm.toml: 'model' is outside the [rlm] table", "put every key under [rlm]"),
        ("rlm = 3\n", "rlm.toml: rlm is not a table", "write [rlm] above the keys"),
        ("[rlm\n", "rlm.toml is not valid TOML", ""),
        ("[rlm]\nmodel = 3\n", "model (rlm.toml:2) must be text, not 3", ""),
        ("[rlm]\nmax_depth = 'deep'\n", "max_depth (rlm.toml:2) must be a whole number, not 'deep'", ""),
        ("[rlm]\nmax_depth = true\n", "max_depth (rlm.toml:2) must be a whole number, not True", ""),
        ("[rlm]\nmax_depth = -1\n", "max_depth (rlm.toml:2) is -1", "at least 0"),
        ("[rlm]\nmax_iterations = 0\n", "max_iterations (rlm.toml:2) is 0", "at least 1"),
        ("[rlm]\ntimeout_seconds = 0\n", "timeout_seconds (rlm.toml:2) is 0", "above 0"),
        ("[rlm]\ncost_budget_usd = nan\n", "cost_budget_usd (rlm.toml:2) is nan", "above 0"),
        ("[rlm]\ntimeout_seconds = inf\n", "timeout_seconds (rlm.toml:2) is inf", "above 0"),
        ("[rlm]\nenvironment = 'cloud'\n", "environment", ""),
        ("[rlm]\nverbose = 'yes'\n", "verbose (rlm.toml:2) must be true or false, not 'yes'", ""),
    ],
    ids=lambda value: value.strip().replace("\n", " ") if "rlm" in value[:4] else None,
)
def test_a_bad_file_is_an_error_that_names_the_line(workspace: Path, text: str, message: str, hint: str) -> None:
    (workspace / "rlm.toml").write_text(text)
    with pytest.raises(rlm.ConfigError) as caught:
        rlm.load_config({})
    assert message in caught.value.message and hint in caught.value.hint


def test_a_file_that_is_not_text(workspace: Path) -> None:
    (workspace / "rlm.toml").write_bytes(b"\xff\xfe\x00[rlm]")
    with pytest.raises(rlm.ConfigError, match="not valid TOML"):
        rlm.load_config({})


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("RLM_MAX_DEPTH", "deep", "RLM_MAX_DEPTH: 'deep' is not a whole number"),
        ("RLM_COST_BUDGET_USD", "lots", "RLM_COST_BUDGET_USD: 'lots' is not a number"),
        ("RLM_VERBOSE", "perhaps", "RLM_VERBOSE: 'perhaps' is not true or false"),
        ("RLM_PRICES", "{", "RLM_PRICES: '{' is not JSON"),
        ("RLM_ENVIRONMENT", "cloud", "environment (RLM_ENVIRONMENT) is 'cloud'"),
    ],
)
def test_a_bad_variable_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(rlm.ConfigError) as caught:
        rlm.load_config({})
    assert caught.value.message == message


def test_what_init_writes_loads_with_every_default_uncommented(workspace: Path) -> None:
    lines = rlm_cli.commented_config({}).splitlines()
    keys = [line[2:] for line in lines if line.startswith("# ") and line[2:].split(" = ")[0] in rlm.OPTIONS]
    assert {key.split(" = ")[0] for key in keys} == set(rlm.OPTIONS)
    (workspace / "all.toml").write_text("[rlm]\n" + "\n".join(keys))
    values = rlm.load_config({}, config="all.toml").values
    for name, row in rlm.OPTIONS.items():
        assert values[name] == (row.metadata["example"] if row.default is None else row.default)


@pytest.mark.parametrize(
    "value", [True, 3, 2.5, 'a "quoted" \\ \n \x7f é 🎉', ["a", 1], {"a b": {"c": [1.5, "x"]}}, [], {}]
)
def test_toml_is_written_as_it_is_read(value: Any) -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    assert tomllib.loads(f"x = {rlm_cli.toml(value)}") == {"x": value}


def test_a_key_is_not_in_the_message_about_it(workspace: Path) -> None:
    (workspace / "c.toml").write_text("[rlm]\napi_key = 918273645546372819\n")
    with pytest.raises(rlm.ConfigError) as caught:
        rlm.load_config({}, config="c.toml")
    assert "918273645546372819" not in str(caught.value)


# --- bounds: a number from outside must not be able to take the machine --------------------------------------------

NUMERIC = [name for name, row in rlm.OPTIONS.items() if str(row.type).split(" |")[0] in ("int", "float")]
SIZES = ["local_memory", "docker_memory"]


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("value", ["1" + "0" * 15, "1" + "0" * 400, "0x" + "f" * 5000, "inf", "-inf", "nan"])
def test_every_number_has_an_upper_bound(workspace: Path, name: str, value: str) -> None:
    (workspace / "rlm.toml").write_text(f"[rlm]\n{name} = {value}\n")
    with pytest.raises(rlm.ConfigError) as raised:
        rlm.load_config({})
    assert len(raised.value.message) < 500 and name in raised.value.message
    if value[0] == "1":
        (workspace / "rlm.toml").unlink()
        flag = rlm_cli.flags_of(name)[-1]
        ran = subprocess.run([sys.executable, "-m", "rlm", "x", flag, value], capture_output=True, timeout=60)
        assert (ran.returncode, ran.stdout) == (2, b"")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", ["1000000g", "1e400", "inf", "nan", "0", "-1g"])
def test_every_size_has_an_upper_bound(workspace: Path, name: str, value: str) -> None:
    (workspace / "rlm.toml").write_text(f'[rlm]\n{name} = "{value}"\n')
    rlm.trust("rlm.toml")
    with pytest.raises(rlm.ConfigError, match=name):
        rlm.load_config({})


def test_the_bounds_are_above_what_anybody_needs() -> None:
    generous = {"max_parallel": 256, "max_depth": 64, "max_subcalls": 100_000, "token_budget": 10**9}
    assert {name: rlm.load_config(generous).values[name] for name in generous} == generous


def test_the_flags_of_batch_and_of_the_server_are_bounded(workspace: Path) -> None:
    (workspace / "p.jsonl").write_text('"a"\n')
    for command in (["batch", "p.jsonl", "-j", "1000000000"], ["mcp-serve", "--max-wait", "1" + "0" * 400]):
        ran = subprocess.run([sys.executable, "-m", "rlm", *command], capture_output=True, timeout=60)
        assert (ran.returncode, ran.stdout) == (2, b""), ran.stderr
