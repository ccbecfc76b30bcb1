"""What makes the modules flat: who imports whom, what an import costs, and that the files work where they are put."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tokenize
import zipfile
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import ROOT, interpreter, need, node_module

import rlm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(PROJECT["tool"]["setuptools"]["py-modules"])
MAY_IMPORT = {
    "rlm": {"rlm_backends", "rlm_config", "rlm_mcp", "rlm_sandbox", "rlm_tools", "rlm_viz", "rlm_cli"},
    "rlm_cli": {"rlm", "rlm_backends", "rlm_config", "rlm_mcp", "rlm_sandbox", "rlm_tools", "rlm_viz"},
    "rlm_mcp": {"rlm", "rlm_backends", "rlm_config", "rlm_sandbox", "rlm_tools"},
    "rlm_policy": {"rlm_worker"},
    "rlm_backends": set(),
    "rlm_config": {"rlm_backends"},
    "rlm_sandbox": {"rlm_worker"},
    "rlm_tools": set(),
    "rlm_viz": set(),
    "rlm_worker": set(),
}
IMPORTERS = {"sibling", "LazyModule", "import_module", "__import__"}
# Read before the tests get a home of their own: what pip has downloaded once serves again.
PIP_CACHE = os.environ.get("PIP_CACHE_DIR") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pip"
)
EXPENSIVE = {
    *("requests", "docker", "RestrictedPython", "tomllib", "tomli", "argparse", "asyncio", "concurrent.futures"),
    *("http.client", "importlib.metadata", "logging", "pathlib", "subprocess", "tempfile", "uuid"),
}


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)


def ours_imported_by(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names} if node.module is None else {node.module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in IMPORTERS:
            names |= {str(part.value) for part in node.args if isinstance(part, ast.Constant)}
    return names & set(MODULES)


def test_the_modules_are_those_that_are_packaged() -> None:
    assert sorted(path.stem for path in ROOT.glob("rlm*.py")) == MODULES == sorted(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert ours_imported_by(ast.parse((ROOT / f"{module}.py").read_text())) <= MAY_IMPORT[module]


# Names that docs and code once had for things that have a standard one; each was in use in its module.
OLD_NAMES = {
    "rlm": "Later Recording Ticket _deaf_to_interrupts _wake from_cell journalled keyed mention relive told twin",
    "rlm_backends": "_Answer _Ask _Flight _Gate _Given _How _Link _Watch _again _pause _persist _who flight own_raw",
    "rlm_tools": "Given _clipped _fitting _parsed _some _way _words lasting left_out",
    "rlm_cli": "Shell _Sibling WRONG _listening _mend_streams _said flags_again left_off outcome reader_left wish",
    "rlm_mcp": "CellModels CommandModel Dialect HostModel MODERN Refusal Vanished Wire _told _too_wide hand_back posed",
    "rlm_viz": "BATCH KernelLine _Room _Stored _brief _ends _finite _goes_on _holds_text _moment all_ms own_ms tops",
}


@pytest.mark.parametrize("module", OLD_NAMES)
def test_names_are_the_field_s_own(module: str) -> None:
    with open(ROOT / f"{module}.py", "rb") as file:
        used = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
    assert not used & set(OLD_NAMES[module].split())


def test_what_few_runs_need_is_imported_inside_functions_of_rlm() -> None:
    tree = ast.parse((ROOT / "rlm.py").read_text())
    at_import = ast.Module([node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))], [])
    assert not ours_imported_by(at_import) & {"rlm_viz", "rlm_mcp"}


@pytest.mark.parametrize("module", MODULES)
def test_an_import_loads_nothing_expensive_and_does_nothing(module: str, workspace: Path) -> None:
    """Against what bare Python has loaded here: site-packages may hold .pth files that import things."""
    report = "import sys, json; before = set(sys.modules); {}; print(json.dumps(sorted(set(sys.modules) - before)))"
    ran = run(sys.executable, "-c", report.format(f"import {module}"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert set(json.loads(ran.stdout)) & EXPENSIVE == set()
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize("module", MODULES)
def test_a_vendored_file_says_what_it_needs(module: str) -> None:
    """The PEP 723 block names the third-party packages that the module imports, with pyproject's own markers."""
    source, declared = (ROOT / f"{module}.py").read_text(), declared_by(module)
    assert declared["requires-python"] == PROJECT["project"]["requires-python"]
    packages = {re.split(r"[<>=;\s]", need)[0] for need in declared.get("dependencies", [])}
    imported = {name.split(".")[0] for name in third_party(ast.parse(source))} - {"tomllib"}
    packages |= {"urllib3", "certifi"} if "requests" in packages else set()  # requests brings them
    optional = {"IPython", "xllamacpp", "pydantic", "distributed", "charset_normalizer", "markitdown", "certifi"}
    assert imported - optional <= packages


def declared_by(module: str) -> dict[str, Any]:
    """What the module's PEP 723 block says."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", (ROOT / f"{module}.py").read_text(), re.MULTILINE)
    assert block, "no PEP 723 block"
    return tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))


def third_party(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names | set(MODULES) | {"__future__"}}


VENDORING = (ROOT / "docs" / "vendoring.md").read_text()
ROWS = re.findall(r"^\| `(rlm\w*)\.py` \|(.*)\|(.*)\|$", VENDORING, re.MULTILINE)
# Runs a program, and says which files our modules came from: an installed copy must not help out.
ALONE = """import os, runpy, sys
sys.path[0] = os.getcwd()
runpy.run_path(sys.argv[1], run_name="__main__")
ours = [module for name, module in sys.modules.items() if name.split(".")[-1].split("_")[0] == "rlm"]
strangers = [module.__file__ for module in ours if not module.__file__.startswith(os.getcwd() + os.sep)]
assert ours and not strangers, strangers
"""


def alone(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the program prints when it has only the files that lie in its folder."""
    monkeypatch.delenv("PYTHONPATH")
    (folder / "program.py").write_text(program)
    ran = run(sys.executable, "-c", ALONE, "program.py", cwd=folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@pytest.mark.parametrize(("module", "beside", "packages"), ROWS, ids=[row[0] for row in ROWS])
def test_a_file_works_with_what_the_page_puts_beside_it(
    module: str, beside: str, packages: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = re.findall(r"`(\w+)\.py`", beside) if "all" not in beside else [m for m in MODULES if m != module]
    for name in (module, *others):
        shutil.copy(ROOT / f"{name}.py", workspace)
    monkeypatch.setenv("OPENAI_API_KEY", scripted.KEY)
    assert alone(f"import {module}\n{TRIED[module]}", workspace, monkeypatch) == "ok\n"
    needs = {re.split(r"[<>=;\s]", need)[0] for need in declared_by(module).get("dependencies", [])}
    assert needs == set(re.findall(r"`(\w+)`", packages))


TRIED = {
    "rlm": "with rlm.RLM(model='gpt-4o') as made: print('ok' if made.backend.model == 'gpt-4o' else made)",
    "rlm_backends": "print('ok' if rlm_backends.connect('gpt-4o').wire == 'openai' else '')",
    "rlm_cli": "print('ok' if callable(rlm_cli.main) else '')",
    "rlm_config": "print('ok' if rlm_config.load_config({}).values['max_depth'] == 4 else '')",
    "rlm_mcp": "print('ok' if rlm_mcp.rlm.RLM else '')",
    "rlm_policy": "print('ok' if rlm_policy.policy_compile('1', '') else '')",
    "rlm_sandbox": "print(rlm_sandbox.LocalSandbox().execute('print(\"ok\")').stdout, end='')",
    "rlm_tools": "print('ok' if len(rlm_tools.file_tools()) == 3 else '')",
    "rlm_viz": "print('ok' if rlm_viz.render([]).startswith('<!') else '')",
    "rlm_worker": "print('ok' if rlm_worker.unpack(rlm_worker.Packer().pack((1,))) == (1,) else '')",
}


def test_the_page_has_a_row_for_each_module() -> None:
    assert sorted(row[0] for row in ROWS) == MODULES


@pytest.mark.parametrize(
    ("files", "program", "shown"),
    re.findall(r"^```python\n# ([^\n]*)\n(.*?)^```\n\n```text\n(.*?)^```", VENDORING, re.MULTILINE | re.DOTALL),
    ids=["backends", "sandbox", "tools", "runtime", "package"],
)
def test_a_program_of_the_page_runs_with_the_files_that_it_names(
    files: str, program: str, shown: str, openai: scripted.Server, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = "FINAL(sum(',failed,' in line for line in context.splitlines()))"
    openai.script = lambda request: scripted.code(count) if "payments" in request.prompt else "an answer"
    for name in files.split():
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / Path(name).name, workspace / name)
    assert alone(program, workspace, monkeypatch) == shown


@pytest.mark.nightly
def test_uv_runs_the_files_with_nothing_installed(
    openai: scripted.Server, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    need("uv")
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    openai.script = lambda request: "an answer"
    for module in MODULES:
        shutil.copy(ROOT / f"{module}.py", workspace)
    ran = run("uv", "run", "--quiet", "rlm.py", "Why?", "--no-log", "-q", cwd=workspace)
    assert (ran.returncode, ran.stdout) == (0, "an answer\n"), ran.stderr


def test_the_files_work_inside_somebody_elses_package(workspace: Path) -> None:
    vendor = workspace / "product" / "vendor"
    vendor.mkdir(parents=True)
    for folder in (vendor, vendor.parent):
        (folder / "__init__.py").touch()
    for module in MODULES:
        shutil.copy(ROOT / f"{module}.py", vendor)
    # -P and an empty PYTHONPATH: nothing of the tree itself is on the path.
    script = (
        "import sys; sys.path = ['.'] + [p for p in sys.path if 'site-packages' in p or 'lib/python' in p]\n"
        "from product.vendor.rlm import RLM, RLMError; import product.vendor.rlm as rlm\n"
        "assert rlm.__file__.startswith(%r), rlm.__file__\n"
        "print(sorted(name for name in sys.modules if name.split('.')[-1].startswith('rlm')))"
    )
    ran = run(sys.executable, "-c", script % str(workspace), cwd=workspace)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.strip() == str(
        [f"product.vendor.{m}" for m in ("rlm", "rlm_backends", "rlm_config", "rlm_sandbox", "rlm_tools", "rlm_worker")]
    )


def test_running_a_vendored_module_makes_one_copy_of_it(workspace: Path) -> None:
    vendor = workspace / "product"
    vendor.mkdir()
    (vendor / "__init__.py").touch()
    for module in MODULES:
        shutil.copy(ROOT / f"{module}.py", vendor)
    ran = run(sys.executable, "-m", "product.rlm", "--version", cwd=workspace)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert version() in ran.stdout


def version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "rlm.py").read_text(), re.MULTILINE)
    assert found
    return found[1]


# --- what is packaged ----------------------------------------------------------------------------------------------

LEFTOVERS = shutil.ignore_patterns(".*_cache", ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", "logs")


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, made from the source archive, and the source archive, made from a copy of the tree."""
    folder = tmp_path_factory.mktemp("dist")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=LEFTOVERS)
    before = files_below(tree)
    ran = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, tree, cwd=folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert files_below(tree) - before <= {"__pycache__"}
    return folder


@pytest.fixture(scope="module")
def unpacked(dist: Path) -> Path:
    """The source archive's folder."""
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(dist / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (folder,) = (dist / "unpacked").iterdir()
    return folder


@pytest.mark.nightly
def test_the_wheel_and_the_source_hold_what_they_should(dist: Path, unpacked: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"flat_rlm-{version()}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {f"{module}{end}" for module in MODULES for end in (".py", "-stubs/__init__.pyi")}
    tree = files_below(dist / "tree") - {".gitignore"}
    assert files_below(unpacked) - tree == {"PKG-INFO", "setup.cfg"}
    assert {name for name in tree - files_below(unpacked) if not name.startswith((".", "__pycache__"))} == set()


@pytest.mark.nightly
def test_the_source_archive_is_installed_and_tested_by_the_readmes_commands(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh environment; of the tests those that read the tree: modules, pages, the packaging's settings."""
    for name in ("PYTHONPATH", "RLM_TEST_SESSION", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CACHE_DIR", PIP_CACHE)
    assert run(sys.executable, "-m", "venv", tmp_path / "venv").returncode == 0
    monkeypatch.setenv("PATH", f"{tmp_path}/venv/bin", prepend=os.pathsep)
    files = " ".join(f"tests/test_{name}.py" for name in ("layout", "config", "docs"))
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p no:cacheprovider --basetemp {tmp_path}/t {files}")
    commands = re.findall(r"^\$ (pip install .*)$", (unpacked / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        ran = run("bash", "-c", command, cwd=unpacked)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d{3,} passed", ran.stdout.splitlines()[-1].strip("= ")), ran.stdout


def test_the_stub_of_rlm_names_every_option() -> None:
    need("import setuptools")
    program = "import pathlib, _build; print(_build._with_options(pathlib.Path('rlm.py').read_text('utf-8')))"
    ran = run(sys.executable, "-c", program, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    takes = {n.name: n.args for n in ast.parse(ran.stdout).body if isinstance(n, ast.FunctionDef)}
    for name in ("complete", "stream", "batch"):
        own = {argument.arg for argument in takes[name].args}  # `prompt` is the first argument of two of them
        assert set(rlm.OPTIONS) - own <= {argument.arg for argument in takes[name].kwonlyargs}, name
        assert takes[name].kwarg is None


USER = """\
import rlm_cli, rlm_mcp, rlm_viz
from rlm import RLM, RLMError, batch, complete, stream, tool
from rlm_backends import connect
from rlm_sandbox import LocalSandbox

@tool
def price(item: str) -> float:
    "The price of an item."
    return 1.0

reveal_type(complete("x", model="m", cost_budget_usd=0.5))
reveal_type(complete("x").cost_usd)
reveal_type(list(batch(["x"], max_depth=1)))
reveal_type(list(stream("x", model="m")))
reveal_type(RLM(tools=[price]).completion("x", {"a.txt": "text"}))
reveal_type(price)
reveal_type(connect("m"))
reveal_type(LocalSandbox().execute("1").value)
reveal_type(rlm_viz.totals([]))
reveal_type(rlm_mcp.text_of({}))
reveal_type(rlm_cli.main([]))
complete("x", modle="m")
stream("x", max_depht=1)
list(batch(["x"], log_dri="logs"))
RLM(max_depth="3")
complete("x").respons
"""
REVEALED = [
    "CompletionResult",
    "float | None",
    "list[CompletionResult | RLMError]",
    "list[str]",
    "CompletionResult",
    "Tool",
    "HTTPBackend",
    "str | None",
    "dict[str, Any]",
    "str",
    "int",
]
MISTAKES = USER.splitlines().index('complete("x", modle="m")') + 1


@pytest.fixture(scope="module")
def user(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's program, and an environment that has the wheel and mypy."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "program.py").write_text(USER)
    assert run(sys.executable, "-m", "venv", folder / "venv").returncode == 0
    (wheel,) = dist.glob("*.whl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CACHE_DIR", PIP_CACHE)
        patch.delenv("PYTHONPATH")
        pip = run(folder / "venv/bin/pip", "install", "-q", wheel, "mypy")
    assert pip.returncode == 0, pip.stderr
    return folder


@pytest.mark.nightly
def test_mypy_sees_the_types_of_the_installed_wheel(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH")
    ran = run(user / "venv/bin/mypy", "--strict", "--cache-dir", user / "cache", "program.py", cwd=user)
    revealed = [re.sub(r"\b(rlm\w*|builtins)\.", "", kind) for kind in re.findall(r'type is "(.*)"', ran.stdout)]
    assert revealed == REVEALED, ran.stdout
    lines = {int(line) for line in re.findall(r"^program.py:(\d+): error", ran.stdout, re.MULTILINE)}
    assert lines == set(range(MISTAKES, MISTAKES + 5)), ran.stdout


@pytest.mark.nightly
def test_pyright_sees_the_types_of_the_installed_wheel(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyright = node_module(".bin/pyright")
    monkeypatch.delenv("PYTHONPATH")
    ran = run(pyright, "--outputjson", "--pythonpath", user / "venv/bin/python", "program.py", cwd=user)
    found = json.loads(ran.stdout)["generalDiagnostics"]
    revealed = [item["message"].rpartition(" is ")[2].strip('"') for item in found if item["severity"] == "information"]
    assert revealed == REVEALED
    lines = {item["range"]["start"]["line"] + 1 for item in found if item["severity"] == "error"}
    assert lines == set(range(MISTAKES, MISTAKES + 5)), ran.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("python", ["python3.10", "python3.13"])
def test_the_installed_command_runs(python: str, dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel in a fresh environment, dependencies and all; the extras of the specification are accepted."""
    need(python)
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("PIP_CACHE_DIR", PIP_CACHE)
    assert run(str(interpreter(python)), "-m", "venv", tmp_path / "venv").returncode == 0
    (wheel,) = dist.glob("*.whl")
    pip = run(tmp_path / "venv/bin/pip", "install", "-q", f"{wheel}[docker,mcp,snipara,visualizer,all]")
    assert pip.returncode == 0, pip.stderr
    assert "does not provide the extra" not in pip.stderr
    for command in ("rlm", "flat-rlm"):
        ran = run(tmp_path / "venv/bin" / command, "--version", cwd=tmp_path)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert version() in ran.stdout
