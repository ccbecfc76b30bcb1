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
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, interpreter, need

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(PROJECT["tool"]["setuptools"]["py-modules"])
MAY_IMPORT = {
    "rlm": {"rlm_backends", "rlm_sandbox", "rlm_tools", "rlm_viz", "rlm_cli"},
    "rlm_cli": {"rlm", "rlm_backends", "rlm_mcp", "rlm_sandbox", "rlm_tools", "rlm_viz"},
    "rlm_mcp": {"rlm", "rlm_sandbox"},
    "rlm_backends": set(),
    "rlm_sandbox": set(),
    "rlm_tools": set(),
    "rlm_viz": set(),
}
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
    return names & set(MODULES)


def test_the_modules_are_those_that_are_packaged() -> None:
    assert sorted(path.stem for path in ROOT.glob("rlm*.py")) == MODULES == sorted(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert ours_imported_by(ast.parse((ROOT / f"{module}.py").read_text())) <= MAY_IMPORT[module]


def test_only_the_reader_of_journals_is_imported_inside_functions_of_rlm() -> None:
    tree = ast.parse((ROOT / "rlm.py").read_text())
    at_import = ast.Module([node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))], [])
    assert "rlm_viz" not in ours_imported_by(at_import)


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
    source = (ROOT / f"{module}.py").read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE)
    assert block, "no PEP 723 block"
    declared = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
    assert declared["requires-python"] == PROJECT["project"]["requires-python"]
    packages = {re.split(r"[<>=;\s]", need)[0] for need in declared.get("dependencies", [])}
    imported = {name.split(".")[0] for name in third_party(ast.parse(source))} - {"tomllib"}
    packages |= {"urllib3", "certifi"} if "requests" in packages else set()  # requests brings them
    assert imported - {"IPython", "xllamacpp", "pydantic", "distributed"} <= packages


def third_party(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names | set(MODULES) | {"__future__"}}


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
        [f"product.vendor.{m}" for m in ("rlm", "rlm_backends", "rlm_sandbox", "rlm_tools")]
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


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    ran = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_and_the_source_hold_what_they_should(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"flat_rlm-{version()}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name for name in names if "-stubs/" not in name} == {f"{module}.py" for module in MODULES}
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "tests/conftest.py", "docs/quickstart.md", "rlm.py"} <= packed


@pytest.mark.slow
@pytest.mark.timeout(600)
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
