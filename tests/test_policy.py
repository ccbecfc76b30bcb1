"""The language policy as a cell meets it: what runs, what is refused, and in which words.

What attacks it is in tests/corpus/sandbox/ and tested in test_sandbox_corpus.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import rlm_policy
import rlm_sandbox
import rlm_worker
from rlm_policy import PolicyError, policy_compile
from rlm_sandbox import BaseSandbox, Cell, LocalSandbox

LAYERS = ("policy",) if sys.platform != "linux" else ("policy", "confinement")


@pytest.fixture
def box() -> Iterator[BaseSandbox]:
    with LocalSandbox(layers=LAYERS) as sandbox:
        yield sandbox


def run(box: BaseSandbox, code: str) -> Cell:
    return box.execute(code, functions={"llm_query": lambda prompt: f"echo {prompt}"})


def printed(box: BaseSandbox, code: str) -> str:
    cell = run(box, code)
    assert cell.ok, cell.error
    return cell.stdout


# --- what runs --------------------------------------------------------------------------------------------------------

RUNS = {
    "private names of the cell's own classes": (
        """
class Box:
    count = 0
    _made = []
    def __init__(self): self._x = 1; self.__y = 2; Box._made.append(self)
    def _sum(self): return self._x + self.__y
class Sub(Box):
    def _sum(self): return super()._sum() + 1
b = Sub(); b._x += 5
print(b._sum(), len(Box._made), getattr(b, '_x'), hasattr(b, '_zz'))
""",
        "9 1 6 False\n",
    ),
    "augmented assignment to items, slices and attributes": (
        "d = {'a': [1, 2, 3]}\nd['a'][0] += 5\nd['a'][1:2] += [9]\nclass A: n = 1\nA.n += 1\nprint(d, A.n)",
        "{'a': [6, 2, 9, 3]} 2\n",
    ),
    "dataclasses with fields of any name": (
        """
from dataclasses import dataclass, field, asdict
@dataclass(order=True)
class Row:
    "kept"
    format: str = 'x'
    obj: int = 1
    parser: object = None
    tags: list = field(default_factory=list)
    _hidden: int = 2
print(Row(), Row('a') < Row('b'), asdict(Row())['obj'], Row.__doc__)
""",
        "Row(format='x', obj=1, parser=None, tags=[], _hidden=2) True 1 kept\n",
    ),
    "annotations written as text": (
        """
from __future__ import annotations
import typing
from dataclasses import dataclass
@dataclass
class Node:
    value: int
    next: typing.Optional[Node] = None
print(typing.get_type_hints(Node)['value'], Node(1, Node(2)).next.value)
""",
        "<class 'int'> 2\n",
    ),
    "patterns by position and by name": (
        """
from dataclasses import dataclass
@dataclass
class P:
    x: int
    y: int
def f(v):
    match v:
        case P(0, y): return ('y', y)
        case P(x=x): return ('x', x)
        case {'k': [first, *_], **rest}: return first, rest
        case int(n) if n > 5: return n
        case [1, 2 | 3 as z]: return z
        case _: return None
print([f(v) for v in (P(0, 1), P(2, 0), {'k': [1], 'z': 2}, 7, [1, 3], '')])
""",
        "[('y', 1), ('x', 2), (1, {'z': 2}), 7, 3, None]\n",
    ),
    "metaclasses, enums and abstract classes": (
        """
import abc, enum
class Meta(type):
    _all = []
    def __new__(mcs, name, bases, space):
        made = super().__new__(mcs, name, bases, space); mcs._all.append(name); return made
class A(metaclass=Meta): pass
class Color(str, enum.Enum):
    RED = 'r'
    @classmethod
    def _missing_(cls, value): return cls.RED
class Base(abc.ABC):
    @abc.abstractmethod
    def go(self): ...
print(Meta._all, Color('?'), [c.__name__ for c in A.__mro__], Color.__members__ is not None)
try: Base()
except TypeError: print('abstract')
""",
        None,
    ),
    "classes stay the cell's own when library modules are first imported": (
        "class A:\n    def __init__(self): self._v = 1\nimport fractions, ipaddress, graphlib\n"
        "A.extra = 2\na = A(); a._v += 1\nprint(A.extra, a._v)",
        "2 2\n",
    ),
    "eval and exec see the caller's variables": (
        "def f(x): return eval('x * 2')\nspace = {'n': 2}\nexec('m = n + 1\\ndef g(): return m', space)\n"
        "exec('top = 1')\nprint(f(4), space['m'], space['g'](), top)",
        "8 3 3 1\n",
    ),
    "globals, locals, vars and dir": (
        "a = 1\ndef f():\n    b = 2\n    return sorted(locals()), 'a' in globals()\nglobals()['c'] = 3\n"
        "class K: pass\nk = K(); k.__dict__.update(z=1)\nprint(f(), c, vars(k), 'append' in dir([]))",
        "(['b'], True) 3 {'z': 1} True\n",
    ),
    "output can be redirected for a while": (
        "import contextlib, io, sys\nbuffer = io.StringIO()\nwith contextlib.redirect_stdout(buffer): print('in')\n"
        "old = sys.stdout; sys.stdout = io.StringIO(); print('lost'); sys.stdout = old\nprint(repr(buffer.getvalue()))",
        "'in\\n'\n",
    ),
    "tasks in executors": (
        "from concurrent.futures import ThreadPoolExecutor, as_completed, wait\nwith ThreadPoolExecutor() as pool:\n"
        "    asked = [pool.submit(llm_query, str(n)) for n in range(3)]\n"
        "    print([f.result() for f in as_completed(asked)], list(pool.map(len, ['a', 'bc'])))\n"
        "    done, pending = wait(asked)\n    print(len(done), len(pending))",
        "['echo 0', 'echo 1', 'echo 2'] [1, 2]\n3 0\n",
    ),
    "files by name, with open, os and pathlib": (
        "import os\nfrom pathlib import Path\nPath('sub').mkdir()\n(Path('sub') / 'a.txt').write_text('x\\ny')\n"
        "with open('sub/a.txt') as f: print([line.strip() for line in f], f.name)\n"
        "print(os.listdir('sub'), os.path.getsize('sub/a.txt'), [p.suffix for p in Path('.').rglob('*.txt')])",
        "['x', 'y'] sub/a.txt\n['a.txt'] 3 ['.txt']\n",
    ),
    "logging and tracebacks are printed": (
        "import logging, traceback\nlogging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')\n"
        "logging.info('n=%d', 3)\ntry: {}['k']\nexcept KeyError:\n"
        "    print([line for line in traceback.format_exc().splitlines() if '~' not in line])",
        "INFO n=3\n['Traceback (most recent call last):', '  File \"<cell 1>\", line 4, in <module>', "
        "\"    try: {}['k']\", \"KeyError: 'k'\"]\n",
    ),
    "class keywords of any name": (
        """
class Base:
    def __init_subclass__(cls, **given): cls.given = given
class P(Base, name="p", function=2, metaclass=type, bases=()): pass
class Meta(type):
    def __new__(mcs, name, bases, space, **given): return super().__new__(mcs, name, bases, {**space, 'given': given})
    def __init__(cls, name, bases, space, **given): super().__init__(name, bases, space)
class Q(metaclass=Meta, function=1, func=2, metacls=3): pass
print(P.given, Q.given)
""",
        "{'name': 'p', 'function': 2, 'bases': ()} {'function': 1, 'func': 2, 'metacls': 3}\n",
    ),
    "names that RestrictedPython keeps for itself": (
        "class A:\n    _x_ = 1\n    def _repr_html_(self): return self._x_\n_getattr_ = 2\nprinted = 3\n"
        "from math import *\nprint(A()._repr_html_(), _getattr_, printed, floor(pi))",
        "1 2 3 3\n",
    ),
    "archives and compressed files, by name": (
        "import bz2, gzip, lzma, tarfile, zipfile\n"
        "with zipfile.ZipFile('a.zip', 'w') as z: z.writestr('in.txt', 'zipped')\n"
        "print(zipfile.ZipFile('a.zip').read('in.txt'))\n"
        "for module in (bz2, gzip, lzma):\n"
        "    with module.open('a.txt.z', 'wt') as f: f.write(module.__name__)\n"
        "    with module.open('a.txt.z', 'rt') as f: print(f.read())\n"
        "with tarfile.open('a.tgz', 'w:gz') as t: t.add('a.zip')\n"
        "with tarfile.open('a.tgz') as t: print(t.getnames(), len(t.extractfile('a.zip').read()) > 100)",
        "b'zipped'\nbz2 (read-only)\ngzip (read-only)\nlzma (read-only)\n['a.zip'] True\n",
    ),
    "glob and walk": (
        "import glob, os\nos.makedirs('a/b')\n"
        "for name in ('a/1.txt', 'a/b/2.txt', '3.md'): open(name, 'w').close()\n"
        "print(glob.glob('*/*.txt'), glob.glob('**/*.txt', recursive=True))\n"
        "print(glob.glob('none/*'), glob.glob('[0-9].md'))\n"
        "print(list(os.walk('a')))",
        "['a/1.txt'] ['a/1.txt', 'a/b/2.txt']\n[] ['3.md']\n[('a', ['b'], ['1.txt']), ('a/b', [], ['2.txt'])]\n",
    ),
    "builtins as a module": ("import builtins\nprint(builtins.len([1]), builtins.open is open)", "1 True\n"),
    "str.format walks fields": (
        "t = '{0.real} {x[a]} {1!r:>4}'\n"
        "print(t.format(5, 'z', x={'a': 1}), '{:>3}'.format(1), '{a}'.format_map({'a': 2}))",
        "5 1  'z'   1 2\n",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_ordinary_python_runs(box: BaseSandbox, name: str) -> None:
    code, expected = RUNS[name]
    out = printed(box, code).replace(rlm_worker.WRITTEN, "")
    assert expected is None or out == expected


# --- what is refused, and what to write instead -----------------------------------------------------------------------

REFUSED = {
    "f = len.__self__": "'__self__' is not accessible here",
    "x = (i for i in []).gi_frame": "out of sight",
    "import numpy": "statistics and math (the caller can add numpy with allowed_imports)",
    "import pandas as pd": "for CSV: import csv; rows = list(csv.DictReader(context.splitlines()))",
    "from sklearn.cluster import KMeans": "collections.Counter",
    "import tiktoken": "len(text) // 4",
    "import openai": "llm_query(prompt)",
    "import nltk": "re.findall",
    "import yaml, bs4": "line.split(': ', 1)",
    "import bs4": "html.parser",
    "import idna": "there are: abc, argparse, ",
    "import subprocess": "no other program can be run",
    "import requests": "no network here",
    "import pickle": "use json",
    "import os; os.system('ls')": "no other program can be run",
    "from os import fork": "cannot import name 'fork'",
    "import threading; threading.Thread(target=print).start()": "llm_query_batched",
    "open('/etc/passwd')": "file_read",
    "input('?')": "nobody is there to answer",
    "compile('1', '', 'eval')": "eval(text)",
    "import math; math.nope": "there are: acos, ",
    "__builtins__ = {}": "'__builtins__' is not accessible here",
    "def f(__globals__, /): pass": "'__globals__' is not accessible here",
    "match 1:\n    case int(__globals__=g): pass": "'__globals__' is not accessible here",
    "getattr(len, '__se' + 'lf__')": "it leads to a real module",
    "().__class__.__base__.__subclasses__()": "__init_subclass__",
    "globals()['__builtins__'] = {}": "is not accessible here",
    "import asyncio": "async code does not run here; llm_query_batched",
    "async def f(): pass": "async code does not run here; write plain functions; llm_query_batched",
    "y = [x async for x in []]": "async code does not run here; write plain functions; llm_query_batched",
    "x = 1\n!pip install numpy": "the caller adds packages with allowed_imports",
    "%%time\nx = 1": "time.perf_counter()",
    "  %matplotlib inline": "notebook commands do not run here",
    "len?": "help(x) prints the docstring",
    "print(_)": "assign it to a variable of your own",
    "display(1)": "end the cell with x",
    "open(__file__)": "a cell is no file",
    "import shutil": "os.rename",
    "import json; json.dumps = 1": "cannot be changed",
    "try:\n    pass\nexcept* ValueError: pass": "except" if sys.version_info >= (3, 11) else "SyntaxError",
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_refusal_says_what_it_is_and_what_to_write(box: BaseSandbox, code: str) -> None:
    cell = run(box, code)
    assert not cell.ok
    assert REFUSED[code] in str(cell.error)


def test_a_refusal_names_the_line_and_leaves_the_variables(box: BaseSandbox) -> None:
    box.execute("kept = 1")
    cell = box.execute("a = 1\nb = print.__self__\n")
    assert (cell.status, cell.error) == (
        "refused",
        '  File "<cell 2>", line 2\n    b = print.__self__\n        ^\n'
        "PolicyError: '__self__' is not accessible here: it leads to a real module; "
        "use the operator or built-in function that stands for it",
    )
    assert box.execute("kept").value == "1"


def test_an_error_shows_the_cell_s_lines_only(box: BaseSandbox) -> None:
    box.execute("import json\ndef load(text):\n    return json.loads(text)")
    error = str(box.execute("try:\n    load('{')\nexcept ValueError as e:\n    raise KeyError('k') from e").error)
    shown = "Traceback (most recent call last):\n  File \"<cell 2>\", line 2, in <module>\n    load('{')\n"
    shown += '  File "<cell 1>", line 3, in load\n    return json.loads(text)\n'
    assert error.startswith((shown + "json.decoder.JSONDecodeError: ", shown + "JSONDecodeError: "))
    assert error.endswith("line 4, in <module>\n    raise KeyError('k') from e\nKeyError: 'k'")
    assert "direct cause" in error


def test_output_put_aside_by_a_cell_is_back_in_the_next(box: BaseSandbox) -> None:
    box.execute("import io, sys\nsys.stdout = io.StringIO()\nprint('lost')")
    assert printed(box, "print('back')") == "back\n"


def test_files_of_a_given_folder_can_be_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    with LocalSandbox(layers=LAYERS, workspace=str(tmp_path)) as box:
        code = "import csv, os\nprint(list(csv.reader(open('data.csv'))), 'data.csv' in os.listdir())"
        assert printed(box, code) == "[['a', 'b'], ['1', '2']] True\n"
        printed(box, "open('data.csv', 'w').write('scratch')")
    assert (tmp_path / "data.csv").read_text() == "a,b\n1,2\n"


def test_what_restrictedpython_hides_of_frames_and_code_is_in_the_table() -> None:
    from RestrictedPython.transformer import INSPECT_ATTRIBUTES

    assert rlm_policy.DENIED_ATTRIBUTES >= INSPECT_ATTRIBUTES


def test_each_row_of_the_table_has_a_reason_and_what_to_write_instead() -> None:
    kinds = {"attribute", "builtin", "member", "module", "name", "package", "syntax"}
    assert {kind for kind, _ in rlm_policy.DENIED} == kinds
    for (kind, name), denial in rlm_policy.DENIED.items():
        assert denial.reason and denial.instead and "|" not in str(denial), (kind, name)
        assert len(str(denial)) < 140, (kind, name)


@pytest.mark.parametrize("kind, name", [(kind, n) for kind, n in rlm_policy.DENIED if kind in ("module", "package")])
def test_a_hint_for_an_import_names_only_modules_that_are_here(box: BaseSandbox, kind: str, name: str) -> None:
    denial = rlm_policy.DENIED[kind, name]
    error = str(box.execute(f"import {name}").error).splitlines()[-1]
    assert error.startswith(f"ModuleNotFoundError: no module '{name}' here; {denial}")
    assert (f"the caller can add {name} with allowed_imports" in error) == (kind == "package")
    hint = denial.instead
    for module in re.findall(r"import ([\w.]+)", hint) + re.findall(r"\b([a-z]+)\.[A-Za-z]+\(", hint):
        known = module in ("str", "context", "data", "datetime", "line", "name") or box.execute(f"import {module}").ok
        assert known, module


def test_a_name_error_of_another_name_has_no_hint(box: BaseSandbox) -> None:
    assert str(box.execute("nope").error).endswith("NameError: name 'nope' is not defined")
    assert "notebook" not in str(box.execute("What is this?").error)


def test_listing_the_variables_shows_names_and_no_values(box: BaseSandbox) -> None:
    box.set("context", "SECRET " * 1_000_000)
    code = """
def f(inner):
    print(locals(), vars(), locals().keys())
f(context)
print(globals(), locals(), vars(), globals().keys(), globals().items(), globals().values())
[globals()]
"""
    cell = run(box, code)
    assert cell.ok, cell.error
    assert "SECRET" not in cell.stdout + str(cell.value) and len(cell.stdout) < 3000
    assert "{inner: str[7000000]}" in cell.stdout and "context: str[7000000]" in cell.stdout
    assert "dict_keys(['inner'])" in cell.stdout
    assert (
        printed(box, "print(globals()['context'] is context, dict(globals())['context'] is context)") == "True True\n"
    )


def test_errors_about_files_name_them_as_the_cell_did(box: BaseSandbox) -> None:
    printed(box, "import os\nfrom pathlib import Path\nopen('a.txt', 'w').close()\nos.remove('a.txt')\nos.mkdir('sub')")
    for code, shown in {
        "os.remove('a.txt')": "No such file or directory: 'a.txt'",
        "Path('sub/x').unlink()": "No such file or directory: 'sub/x'",
        "os.rmdir('x')": "No such file or directory: 'x'",
        "os.rename('x', 'y')": "No such file or directory: 'x' -> 'y'",
        "os.mkdir('sub')": "File exists: 'sub'",
        "open('sub')": "Is a directory: 'sub'",
        "open('none/x', 'w')": "No such file or directory: 'none/x'",
    }.items():
        error = str(box.execute(code).error)
        assert error.endswith(shown) and "rlm-sandbox" not in error, error
    assert printed(box, "f = open('a.txt', 'w')\nprint(f.name, f)").count("a.txt") == 2


def test_a_picture_of_a_class_of_the_cell_is_shown(box: BaseSandbox) -> None:
    cell = run(box, "class Plot:\n    def _repr_png_(self): return b'\\x89PNG\\r\\n\\x1a\\n' + bytes(9)\nPlot()")
    assert cell.ok and [image["media_type"] for image in cell.images] == ["image/png"]


def test_imported_modules_are_listed_as_modules(box: BaseSandbox) -> None:
    printed(box, "import json, os.path")
    assert {name: shown[0] for name, shown in box.names().items()} == {"json": "module", "os": "module"}
    assert "not a module" in str(box.execute("import math\nFINAL(math)").error)


def test_chunks_leads_to_nothing_but_its_result(box: BaseSandbox) -> None:
    functions = {"chunks": rlm_sandbox.Chunks(10)}
    for attribute in ("__globals__", "__closure__", "__code__", "__wrapped__", "__self__", "__func__"):
        for code in (f"chunks.{attribute}", f"getattr(chunks, '{attribute}')"):
            assert not box.execute(code, functions=functions).ok, attribute
    code = """
class Text(str):
    def rfind(self, *a): seen.append(self)
    def find(self, *a): seen.append(self)
    def __getitem__(self, at): seen.append(at)
    def __len__(self): return 10 ** 9
class Texts(list):
    def __iter__(self): seen.append(self); return iter([self])
    def __len__(self): return 1
seen = []
pieces = chunks(Text('ab cd ef gh ij'), 6), chunks(Texts(['abc', Text('def')]), 7)
print(pieces, [type(piece) is str for piece in pieces[0]], len(seen))
try:
    chunks(len)
except TypeError as error:
    print(error)
"""
    cell = box.execute(code, functions=functions)
    assert cell.ok, cell.error
    assert cell.stdout.splitlines() == [
        "(['ab cd ', 'ef gh ', 'ij'], [['abc', 'def']]) [True, True, True] 0",
        "chunks takes a text or a list of texts, not builtin_function_or_method: str(x), or [str(item) for item in x]",
    ]


# --- what it costs ----------------------------------------------------------------------------------------------------

NATIVE = [
    "for i, (a, b) in enumerate(c): total += a[i] * b.size",
    "d[k] += 1; d[k] = v; a.b.c = d[1:2]; a.n += 1; del d[k], a.b",
    "x = [f(y, *z, **w).name for y in range(10) if y.real]; first, *rest = x",
    "def f(a, /, b=1, *c, d, **e):\n    with a.b() as g: yield from g.h\n    return f'{a.b!r:>5}'",
    "print('{} {name:>4}'.format(1, name=2), not a < b <= c, lambda: a.b)",
    "class A(b.C, k=1, metaclass=M):\n    x: int = 1\n    def _f(self): self._y += super().__init__(self.__z)",
    "match a:\n    case P(1, x=[2, *_], y={'k': v, **rest}): pass\n    case int() | None: pass",
    "def f():\n    global g\n    x = 1\n    def h():\n        nonlocal x\n        x = yield (y := x)",
]


@pytest.mark.parametrize("code", NATIVE)
def test_what_a_name_alone_decides_is_compiled_as_plain_python(code: str) -> None:
    policy = policy_compile(code + "\npass", "<cell 1>")[0]
    plain = compile(code + "\npass", "<cell 1>", "exec", dont_inherit=True)
    assert same_code(policy, plain)


def same_code(one: CodeType, other: CodeType) -> bool:
    if (one.co_code, one.co_names) != (other.co_code, other.co_names) or len(one.co_consts) != len(other.co_consts):
        return False
    pairs = zip(one.co_consts, other.co_consts)
    return all(same_code(a, b) if isinstance(a, CodeType) else a == b for a, b in pairs)


def test_variables_of_the_policy_s_own_are_not_shown(box: BaseSandbox) -> None:
    printed(
        box, "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nmatch P(1):\n    case P(x): pass"
    )
    assert sorted(box.names()) == ["P", "dataclass", "x"]
    assert box.execute("sorted(name for name in globals() if '~' in name)").value == "[]"
    assert "no variable" in str(box.execute("FINAL_VAR('__builtins__')").error)


# --- compiling by itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    ["def (:", "x = " + "(" * 300 + "1" + ")" * 300, "a\0b", "'\ud800'\nx = (", "x = 1" + ".a" * 100_000, "1 +"],
    ids=["syntax", "parentheses", "null byte", "surrogate", "attributes", "unfinished"],
)
def test_what_cannot_be_compiled_is_a_syntax_error(source: str) -> None:
    with pytest.raises(SyntaxError):
        policy_compile(source, "<cell 1>")


def test_the_last_expression_is_compiled_by_itself() -> None:
    assert policy_compile("a = 1\na + 1", "<cell 1>")[1] is not None
    assert policy_compile("a = 1", "<cell 1>")[1] is None
    assert policy_compile("", "<cell 1>")[1] is None


def test_a_byte_order_mark_is_no_part_of_the_code() -> None:
    assert policy_compile("\ufeff1 + 1", "<cell 1>")[1] is not None


def test_identifiers_are_judged_as_python_reads_them() -> None:
    with pytest.raises(PolicyError, match="__globals__"):
        policy_compile("f.__glob\uff41ls__", "<cell 1>")
