"""Whose model a name is, where its requests go and with which key; what a model costs. Nothing is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import ROOT

import rlm_backends
from rlm_backends import BackendError, HTTPBackend, connect, cost_of, saved_by_cache

KEY = "sk-planted-table-4f1c9a7be2d05836af"
ASK = [{"role": "user", "content": "hello"}]
ROWS = rlm_backends.providers()
BY_ID = {row["id"]: row for row in ROWS}
# What the variables in templated URLs are set to.
PLACES = {
    "AZURE_RESOURCE_NAME": "res",
    "AZURE_COGNITIVE_SERVICES_RESOURCE_NAME": "res",
    "AWS_REGION": "eu-west-1",
    "CLOUDFLARE_ACCOUNT_ID": "acc",
    "CLOUDFLARE_GATEWAY_ID": "gate",
    "SNOWFLAKE_ACCOUNT": "acc",
    "DATABRICKS_HOST": "https://dbx.example",
    "NEON_AI_GATEWAY_BASE_URL": "https://neon.example",
    **{f"{name}_API_BASE": "https://own.example/v1" for name in ("AZURE_AI", "HEROKU", "HOSTED_VLLM")},
    **{f"{name}_API_BASE": "https://own.example/v1" for name in ("LITELLM_PROXY", "XINFERENCE")},
}
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/models/"
BEDROCK = "https://bedrock-runtime.eu-west-1.amazonaws.com"
OWN_HEADER = {"anthropic": "x-api-key", "gemini": "x-goog-api-key", "openai": "Authorization"}
NEWER_LIMIT = set(
    "openai azure azure-cognitive-services cerebras github github-copilot github-models groq vercel xai".split()  # noqa: SIM905
)


def config_error(*args: Any, **options: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        connect(*args, **options)
    assert caught.value.code == "config"
    return caught.value


def where(backend: HTTPBackend) -> tuple[str, str]:
    return backend.provider, backend.model


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_what_it_promises() -> None:
    assert len(ROWS) == len(BY_ID) >= 200
    remote = [row for row in ROWS if row["base_url"].startswith("https://") and "$" not in row["base_url"]]
    assert len(remote) >= 175
    assert {row["wire"] for row in ROWS} == {"openai", "anthropic", "gemini"}
    names = [name for row in rlm_backends._rows().values() for name in (row.id, *row.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("id_", BY_ID)
def test_each_row_makes_a_request_to_its_own_host_with_its_own_key(id_: str) -> None:
    row = BY_ID[id_]
    keys = dict.fromkeys(row["key_env"][:1], KEY)
    backend = connect("the/model", id_, environ={**PLACES, **keys})
    url, headers, body = backend.dry_run(ASK, max_tokens=7)
    base = row["base_url"]
    for name, value in PLACES.items():
        base = base.replace(f"${{{name}}}", value)
    assert backend.wire == row["wire"]
    assert (backend.provider, backend.key_source) == (id_, next(iter(keys), None))
    assert urlsplit(url).netloc == urlsplit(base).netloc != ""
    assert url.startswith(base)
    if row["wire"] == "openai":
        assert url == (base if base.endswith("/chat/completions") else f"{base}/chat/completions")
        assert body["max_completion_tokens" if id_ in NEWER_LIMIT else "max_tokens"] == 7
    elif row["wire"] == "anthropic":
        assert url == (f"{base}/messages" if base[-3:] in ("/v1", "/v3") else f"{base}/v1/messages")
        assert body["max_tokens"] == 7
        assert headers["anthropic-version"] == ("2026-10-21" if id_ == "anthropic" else "2023-06-01")
    else:
        assert url == f"{base}/models/the/model:generateContent"
        assert body["generationConfig"] == {"maxOutputTokens": 7}
    assert [name for name in body if name.startswith("max_")] in ([], ["max_tokens"], ["max_completion_tokens"])
    sent = {name for name, value in headers.items() if KEY in value}
    assert sent == expected_headers(id_, row["wire"]) if keys else sent == set()


def expected_headers(id_: str, wire: str) -> set[str]:
    if id_.startswith("azure") and wire == "openai":
        return {"api-key"}
    if id_ in ("openrouter@pi-anthropic", "vercel-ai-gateway", "bedrock@anthropic"):
        return {"Authorization"}
    extra = {"sarvam": "api-subscription-key", "cloudflare-ai-gateway": "cf-aig-authorization"}
    return {OWN_HEADER[wire]} | ({extra[id_]} if id_ in extra else set())


CHAT = "/chat/completions"
NEW, OLD = "max_completion_tokens", "max_tokens"


@pytest.mark.parametrize(
    ("model", "url", "key", "limit"),
    [
        ("gpt-6.1-sol", f"https://api.openai.com/v1{CHAT}", "Authorization OPENAI_API_KEY", NEW),
        ("o4-mini", f"https://api.openai.com/v1{CHAT}", "Authorization OPENAI_API_KEY", NEW),
        ("claude-opus-5-5", "https://api.anthropic.com/v1/messages", "x-api-key ANTHROPIC_API_KEY", OLD),
        ("gemini/gemini-4-argon", f"{GOOGLE}gemini-4-argon:generateContent", "x-goog-api-key GEMINI_API_KEY", ""),
        ("gemini-3.8-flash", f"{GOOGLE}gemini-3.8-flash:generateContent", "x-goog-api-key GOOGLE_API_KEY", ""),
        ("groq/llama-3.3-70b-versatile", f"https://api.groq.com/openai/v1{CHAT}", "Authorization GROQ_API_KEY", NEW),
        ("openrouter/anthropic/claude", f"https://openrouter.ai/api/v1{CHAT}", "Authorization OPENROUTER_API_KEY", OLD),
        ("together_ai/zai-org/GLM-5.2", f"https://api.together.ai/v1{CHAT}", "Authorization TOGETHERAI_API_KEY", OLD),
        ("deepseek/deepseek-v4-pro", f"https://api.deepseek.com{CHAT}", "Authorization DEEPSEEK_API_KEY", OLD),
        ("mistral:mistral-large-latest", f"https://api.mistral.ai/v1{CHAT}", "Authorization MISTRAL_API_KEY", OLD),
        ("azure/my-own", f"https://res.openai.azure.com/openai/v1{CHAT}", "api-key AZURE_API_KEY", NEW),
        ("bedrock/x", f"{BEDROCK}/openai/v1{CHAT}", "Authorization AWS_BEARER_TOKEN_BEDROCK", OLD),
        ("minimax/MiniMax-M3", "https://api.minimax.io/anthropic/v1/messages", "x-api-key MINIMAX_API_KEY", OLD),
        (
            "fireworks_ai/a/x/m/y",
            f"https://api.fireworks.ai/inference/v1{CHAT}",
            "Authorization FIREWORKS_API_KEY",
            OLD,
        ),
        ("ollama/qwen3:8b", f"http://localhost:11434/v1{CHAT}", "", OLD),
        ("lm_studio/openai/gpt-oss-20b", f"http://localhost:1234/v1{CHAT}", "", OLD),
    ],
)
def test_well_known_names_go_where_they_belong(model: str, url: str, key: str, limit: str) -> None:
    header, _, variable = key.partition(" ")
    backend = connect(model, environ={variable or "NOBODYS_KEY": KEY, **PLACES})
    found, headers, body = backend.dry_run(ASK, max_tokens=7)
    assert found == url
    assert [name for name, value in headers.items() if KEY in value] == ([header] if header else [])
    assert limit == "" or body[limit] == 7


def test_providers_can_be_searched_and_say_which_key_is_there() -> None:
    found = rlm_backends.providers("groq", {"GROQ_API_KEY": "x"})
    assert [row["id"] for row in found] == ["groq"]
    assert found[0] == {
        "id": "groq",
        "name": "Groq",
        "wire": "openai",
        "base_url": "https://api.groq.com/openai/v1",
        "key_env": ["GROQ_API_KEY"],
        "key_present": True,
    }
    assert [row["key_present"] for row in rlm_backends.providers("groq", {})] == [False]
    assert json.loads(json.dumps(ROWS)) == ROWS
    assert {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"} <= rlm_backends.key_variables()


# --- names ----------------------------------------------------------------------------------------------------------


def test_without_a_model_the_first_key_that_is_there_decides() -> None:
    assert where(connect(None, environ={"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY})) == ("openai", "gpt-4o-mini")
    assert connect(None, environ={"ANTHROPIC_API_KEY": KEY}).provider == "anthropic"
    assert connect(None, environ={"GROQ_API_KEY": KEY}).provider == "groq"
    for foreign in ("GITHUB_TOKEN", "HF_TOKEN"):
        caught = config_error(None, environ={foreign: KEY})
        assert caught.message == "no API key for model 'gpt-4o-mini'"
        assert (caught.looked_for, caught.hint) == (["OPENAI_API_KEY"], "export OPENAI_API_KEY=…")


@pytest.mark.parametrize(
    "model", ["meta-llama/Llama-4", "gpt-oss-20b", "qwen3:8b", "nobody/knows:it", "/", ":x", "o", "x/"]
)
def test_a_name_that_does_not_say_whose_model_it_is_is_asked_about(model: str) -> None:
    caught = config_error(model, environ={"OPENAI_API_KEY": KEY, "OPENROUTER_API_KEY": KEY})
    assert caught.message == f"cannot tell whose model {model!r} is"
    assert f"openrouter/{model}" in caught.hint


def test_a_key_of_another_provider_is_no_key() -> None:
    assert config_error("claude-opus-5-5", environ={"OPENAI_API_KEY": KEY}).looked_for == ["ANTHROPIC_API_KEY"]


def test_a_provider_that_there_is_not_is_asked_about() -> None:
    caught = config_error("x", "opnai", environ={})
    assert caught.message == "no provider is called 'opnai'"
    assert caught.hint.startswith("did you mean openai")


def test_a_provider_without_a_model_needs_one() -> None:
    assert config_error(None, "togetherai", environ={}).message == "which model of togetherai?"
    assert where(connect(None, "anthropic", api_key=KEY)) == ("anthropic", "claude-haiku-5-5")


@pytest.mark.parametrize(
    ("model", "backend", "base_url", "expected"),
    [
        ("groq/llama-3", "groq", None, ("groq", "llama-3")),
        ("openai/gpt-oss-20b", "groq", None, ("groq", "openai/gpt-oss-20b")),
        ("openrouter/auto", "openrouter", None, ("openrouter", "openrouter/auto")),
        ("openrouter/openai/gpt-4o", "openrouter", None, ("openrouter", "openai/gpt-4o")),
        ("openai/gpt-oss-20b", "openai", "http://localhost:9/v1", ("openai", "openai/gpt-oss-20b")),
        ("meta-llama/Llama-4", "auto", "http://localhost:9/v1", ("openai", "meta-llama/Llama-4")),
        ("claude-opus-5-5", "auto", "http://localhost:9/v1", ("anthropic", "claude-opus-5-5")),
        ("claude-opus-5-5", "openai", "http://localhost:9/v1", ("openai", "claude-opus-5-5")),
        ("llama-3", "auto", "https://api.groq.com/openai/v1", ("groq", "llama-3")),
        ("gpt-4o", "litellm", None, ("openai", "gpt-4o")),
        (None, "auto", "http://localhost:9/v1", ("openai", "gpt-4o-mini")),
    ],
)
def test_a_backend_and_a_base_url_settle_whose_model_it_is(
    model: str | None, backend: str, base_url: str | None, expected: tuple[str, str]
) -> None:
    assert where(connect(model, backend, base_url=base_url, api_key=KEY)) == expected


def test_base_urls_are_taken_from_the_provider_s_own_variable() -> None:
    env = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    proxies = {"OPENAI_BASE_URL": "http://proxy.example/v1/", "ANTHROPIC_BASE_URL": "http://proxy.example/a"}
    assert connect("gpt-4o", environ={**env, **proxies}).base_url == "http://proxy.example/v1"
    assert connect("claude-opus-5-5", environ={**env, **proxies}).base_url == "http://proxy.example/a"
    assert connect("grok-4.7", environ={"XAI_API_KEY": KEY, **proxies}).base_url == "https://api.x.ai/v1"
    assert connect("gpt-4o", base_url="http://mine.example/v1", environ={**env, **proxies}).base_url.startswith(
        "http://mine"
    )


@pytest.mark.parametrize(
    ("url", "called"),
    [
        ("https://res.openai.azure.com", "https://res.openai.azure.com/openai/v1/chat/completions"),
        ("https://res.openai.azure.com/", "https://res.openai.azure.com/openai/v1/chat/completions"),
        (
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
    ],
)
def test_azure_s_addresses_in_their_old_and_new_forms(url: str, called: str) -> None:
    assert connect("d", "azure", environ={"AZURE_API_BASE": url, "AZURE_API_KEY": KEY}).dry_run(ASK)[0] == called


def test_a_url_that_lacks_its_place_says_which_variable_it_needs() -> None:
    caught = config_error("azure/d", environ={"AZURE_API_KEY": KEY})
    assert (caught.message, caught.hint.split(",")[0]) == (
        "the URL of azure needs AZURE_RESOURCE_NAME",
        "export AZURE_RESOURCE_NAME=…",
    )


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "localhost:8000", "http://", "http://h:99999/v1", "http://a b/", "x\n", "http://[::1"]
)
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    assert "not an http or https URL" in config_error("x", base_url=url, api_key=KEY).message


def test_a_password_in_a_base_url_is_refused_without_showing_it() -> None:
    caught = config_error("x", base_url=f"https://me:{KEY}@host/v1", api_key="y" * 9)
    assert KEY not in str(caught) + caught.hint


# --- keys and hosts -------------------------------------------------------------------------------------------------


def test_at_a_url_of_another_provider_that_one_s_key_is_used_and_no_other() -> None:
    env = {"OPENAI_API_KEY": "of-openai", "GROQ_API_KEY": "of-groq"}
    backend = connect("gpt-4o", "openai", base_url="https://api.groq.com/openai/v1", environ=env)
    assert (backend.key_source, str(backend.api_key)) == ("GROQ_API_KEY", "of-groq")
    without = connect("gpt-4o", "openai", base_url="https://api.groq.com/v1", environ={"OPENAI_API_KEY": "of-openai"})
    assert (without.key_source, str(without.api_key)) == (None, "")


def test_a_gemini_model_s_name_leads_to_no_other_address() -> None:
    def path_for(name: str) -> str:
        made = connect(f"gemini/{name}", environ={"GEMINI_API_KEY": "AIza-planted-too"})
        return made.dry_run([{"role": "user", "content": "x"}])[0].partition("/v1beta/")[2]

    assert path_for("a?key=1#b c") == "models/a%3Fkey%3D1%23b%20c:generateContent"
    assert path_for("tunedModels/mine") == "tunedModels/mine:generateContent"
    for name in ("../../upload/x", "models/../../x", ".."):
        with pytest.raises(BackendError, match="no model is called"):
            path_for(name)


def test_a_host_must_match_exactly() -> None:
    env = {"OPENAI_API_KEY": "of-openai", "GROQ_API_KEY": "of-groq"}
    for host in ("api.groq.com.evil.example", "evil-api.groq.com", "api.groq.com@evil.example"):
        try:
            backend = connect("llama", base_url=f"https://{host}/v1", environ=env)
        except BackendError:
            continue
        assert backend.key_source == "OPENAI_API_KEY"  # the user's own URL, taken for the openai wire


def test_another_model_by_name_takes_its_own_provider_and_key() -> None:
    env = {"OPENAI_API_KEY": "of-openai", "ANTHROPIC_API_KEY": "of-anthropic"}
    main = connect("claude-opus-5-5", environ=env)
    sub = main.with_model("gpt-4o-mini")
    assert (where(sub), str(sub.api_key)) == (("openai", "gpt-4o-mini"), "of-openai")
    assert where(sub.with_model("claude-haiku-5-5")) == ("anthropic", "claude-haiku-5-5")
    assert where(main.with_model("some-new-name")) == ("anthropic", "some-new-name")
    with pytest.raises(BackendError, match="no API key for model 'grok-"):
        main.with_model("grok-4.7")


def test_a_key_given_by_hand_is_not_sent_to_another_provider() -> None:
    main = connect("gpt-4o", api_key=KEY, environ={})
    with pytest.raises(BackendError, match="no API key"):
        main.with_model("claude-opus-5-5")
    assert str(main.with_model("gpt-4o-mini").api_key) == KEY


@pytest.mark.parametrize("options", [{"backend": "groq"}, {"base_url": "http://localhost:9/v1"}], ids=str)
def test_a_provider_named_by_hand_serves_every_model(options: dict[str, Any]) -> None:
    main = connect("llama-3", api_key=KEY, **options)
    assert main.with_model("openai/gpt-oss-20b").base_url == main.base_url
    assert main.with_model("claude-opus-5-5").provider == main.provider


def test_nothing_is_sent_and_nothing_loaded_to_connect() -> None:
    source = (
        "import sys, rlm_backends as b; b.connect('gpt-4o', api_key='x'*9).dry_run([]);"
        "assert not {'requests', 'urllib3', 'http.client'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True, timeout=60)


def test_the_file_works_where_it_is_put(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "vendor").mkdir(parents=True)
    (tmp_path / "pkg" / "vendor" / "rlm_backends.py").write_bytes((ROOT / "rlm_backends.py").read_bytes())
    source = "from pkg.vendor.rlm_backends import connect; print(connect('gpt-4o', api_key='x'*9))"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[0:0] = [{str(tmp_path)!r}]; {source}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "<HTTPBackend openai 'gpt-4o' at https://api.openai.com/v1>\n"


# --- prices ---------------------------------------------------------------------------------------------------------

MILLION = {"input": 1_000_000, "output": 0, "cached": 0, "cache_write": 0}


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4o-mini", 0.15),
        ("gpt-4o-mini-2024-07-18", 0.15),
        ("gpt-4o", 2.5),
        ("gpt-4o-2024-11-20", 2.5),
        ("gpt-4o-2024-05-13", 5.0),
        ("gpt-4o-nano-2030-01-01", None),
        ("gpt-4o-audio-preview", None),
        ("gpt-5-mini-2025-08-07", 0.25),
        ("gpt-5.9", None),
        ("gpt-4-32k", None),
        ("o3-mini-2025-01-31", 1.1),
        ("o3-tiny", None),
        ("claude-sonnet-4-5-20250929", 3.0),
        ("claude-sonnet-4-5@20250929", 3.0),
        ("claude-opus-5-7", None),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", 3.0),
        ("gemini-3.1-pro-preview", 4.0),
        ("openai/gpt-4o-mini", 0.15),
        ("GPT-4o-Mini", 0.15),
        ("", None),
    ],
)
def test_a_model_has_its_own_price_and_never_a_sibling_s(model: str, price: float | None) -> None:
    assert cost_of(model, MILLION) == (None if price is None else pytest.approx(price))


def test_a_reseller_s_price_is_not_the_maker_s_and_a_local_model_costs_nothing() -> None:
    assert cost_of("gpt-4o", MILLION, provider="302ai") is None
    assert cost_of("gpt-4o", MILLION, provider="azure") == 2.5
    assert cost_of("anthropic/claude-opus-5-5", MILLION, provider="openrouter") == 4.0
    assert cost_of("anything", MILLION, provider="ollama") == 0.0
    assert not connect("302ai/gpt-4o", api_key=KEY).price_known
    assert connect("ollama/gemma").price_known
    assert connect("openrouter/some/model", api_key=KEY).price_known  # it reports what a call has cost


def test_the_user_s_prices_count_before_ours() -> None:
    prices = {"gpt-4o": [1, 2], "groq/": {"input": 0.5, "output": 1, "cached": 0.1}}
    usage = {"input": 1_000_000, "output": 1_000_000, "cached": 500_000, "cache_write": 0}
    assert cost_of("gpt-4o-mini", usage, prices) == 3.0
    assert cost_of("llama", usage, prices, "groq") == pytest.approx(0.5 * 0.5 + 0.5 * 0.1 + 1)
    assert cost_of("llama", usage, prices) is None


@pytest.mark.parametrize(
    "price", [1.0, [], [1], [1, "x"], [1, -2], [1, 2, 3, 4, 5], {"input": 1}, None, [float("nan"), 1]]
)
def test_a_price_that_is_none_is_refused(price: Any) -> None:
    caught = config_error("gpt-4o", api_key=KEY, prices={"gpt-4o": price})
    assert caught.message == "invalid price for 'gpt-4o'"


def test_long_prompts_cost_what_long_prompts_cost() -> None:
    assert cost_of("gpt-6-sol", {"input": 272_000, "output": 1000}) == pytest.approx(0.272 * 2 + 0.001 * 10)
    assert cost_of("gpt-6-sol", {"input": 300_000, "output": 1000}) == pytest.approx(0.3 * 4 + 0.001 * 15)


def test_what_the_cache_saved_is_told_also_where_it_cost_more() -> None:
    read = {"input": 1_000_000, "output": 0, "cached": 900_000, "cache_write": 0}
    assert saved_by_cache("claude-opus-5-5", read) == pytest.approx(0.9 * (4 - 0.2))
    assert saved_by_cache("claude-opus-5-5", {**read, "cached": 0, "cache_write": 900_000}) == pytest.approx(-0.9)
    assert saved_by_cache("nobody-knows", read) is None


def test_estimates_are_on_the_high_side() -> None:
    """Against counts of o200k: 1,000 English words are some 1,330 tokens, 1,000 Chinese characters some 700."""
    english = [{"role": "user", "content": "the quick brown fox jumps over a dog " * 125}]
    chinese = [{"role": "user", "content": "中文字符测试一下好吧" * 100}]
    assert 1_125 <= rlm_backends.estimate_tokens(english) <= 2_000
    assert 700 <= rlm_backends.estimate_tokens(chinese) <= 1_500
    image = [{"role": "user", "content": [{"type": "image", "data": "x" * 9_000_000}]}]
    assert rlm_backends.estimate_tokens(image) < 2_000
    tools = [{"name": "f", "description": "d" * 300, "parameters": {}}]
    assert rlm_backends.estimate_tokens([], tools) > 100
    assert (
        rlm_backends.estimate_tokens([{"role": "assistant", "content": None, "tool_calls": [{"arguments": "x" * 300}]}])
        > 100
    )
