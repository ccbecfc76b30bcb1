"""Ways past the language policy, each followed by all that code can then try. The verdict is by effect.

Introspection leads past any policy that runs inside Python, so these ways may succeed. What counts is that nothing
comes of it: no file of the host, no secret of the workspace, no network, no other process.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_sandbox import BaseSandbox, Cell, LocalSandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is Linux's")

SECRET = "CANARY-77d0e3"
LAYERS = {"both": ("policy", "confinement"), "confinement": ("confinement",)}

# Each sets `real` to the built-in functions themselves, or to a function of the library whose globals lead there.
WAYS = {
    "attrgetter": "import operator\nreal = operator.attrgetter('__globals__')(json.dumps)['__builtins__']",
    "object's own getattribute": "real = object.__getattribute__(json.dumps, '__globals__')['__builtins__']",
    "a function's own getattribute": "real = json.dumps.__getattribute__('__globals__')['__builtins__']",
    "a method of super": "class A: f = json.dumps\nclass B(A):\n"
    "    def go(self): return super().__getattribute__('f')\n"
    "found = object.__getattribute__(B().go(), '__func__')\n"
    "real = found.__getattribute__('__globals__')['__builtins__']",
    "a descriptor of the type": "real = type(json.dumps).__dict__['__globals__'].__get__(json.dumps)['__builtins__']",
    "a text that is not quite one": "class Text(str): pass\n"
    "real = getattr(json.dumps, Text('__globals__'))['__builtins__']",
    "match by position": "import types\nclass Meta(type):\n"
    "    def __instancecheck__(cls, value): return True\n"
    "class Any(metaclass=Meta): __match_args__ = ('__globals__',)\n"
    "match json.dumps:\n    case Any(found): real = found['__builtins__']",
    "match arguments swapped after the look": "class Meta(type):\n    looks = 0\n"
    "    def __instancecheck__(cls, value): return True\n"
    "    @property\n    def __match_args__(cls):\n        Meta.looks += 1\n        return ('__globals__',)\n"
    "class Any(metaclass=Meta): pass\nmatch json.dumps:\n    case Any(found): real = found['__builtins__']",
    "subclasses by a descriptor": "kinds = type.__dict__['__subclasses__'](object)\n"
    "init = [k for k in kinds if k.__name__ == '_wrap_close'][0].__init__\n"
    "real = init.__getattribute__('__globals__')['__builtins__']",
    "cached_property": "import functools\n"
    "view = functools.cached_property(lambda self: self.__getattribute__('__globals__'))\n"
    "real = view.func(json.dumps)['__builtins__']",
    "partialmethod": "import functools\n"
    "read = functools.partialmethod(object.__getattribute__, '__globals__').__get__(json.dumps, type(json.dumps))\n"
    "real = read()['__builtins__']",
    "a generated __eq__": "import dataclasses\nclass Spy:\n    def __eq__(self, other): Spy.seen = other; return True\n"
    "@dataclasses.dataclass\nclass D: x: object\nD(Spy()) == D(json.dumps)\n"
    "real = object.__getattribute__(Spy.seen, '__globals__')['__builtins__']",
    "copy's memo": "import copy\nclass Memo(dict):\n"
    "    def get(self, key, default=None): return json if key == id(given) else default\n"
    "given = [json]\nfound = copy.deepcopy(given, Memo()).dumps\n"
    "real = found.__getattribute__('__globals__')['__builtins__']",
    "a subclass of the mapping of globals": "class Mine(type(globals())): pass\n"
    "try: real = Mine.keys.__getattribute__('__globals__')['__builtins__']\n"
    "except AttributeError: real = json.dumps.__getattribute__('__globals__')['__builtins__']",
    "augmented assignment of a namespace": "class A: pass\na = A()\na.__dict__ |= {'f': json.dumps}\n"
    "real = object.__getattribute__(a.f, '__globals__')['__builtins__']",
    "a metaclass that names a class of the library": "class Meta(type):\n"
    "    def __new__(m, n, b, d): return json.JSONEncoder\nclass Taken(metaclass=Meta): pass\n"
    "real = object.__getattribute__(Taken.encode, '__globals__')['__builtins__']",
    "super with a decoy": "class Sub(json.JSONEncoder): pass\n"
    "real = object.__getattribute__(super(Sub, Sub).encode, '__globals__')['__builtins__']",
    "a frame": "import types\ntry: 1 / 0\nexcept ZeroDivisionError as problem: trace = problem.__traceback__\n"
    "real = type(trace).__dict__['tb_frame'].__get__(trace)\n"
    "real = type(real).__dict__['f_back'].__get__(real)\nreal = type(real).__dict__['f_builtins'].__get__(real)",
    "an error's object": "try: json.dumps.nope\nexcept AttributeError as problem: found = problem.obj\n"
    "real = object.__getattribute__(found, '__globals__')['__builtins__']",
    "a module behind a library object": "import warnings\nmodule = object.__getattribute__(\n"
    "    warnings.catch_warnings(), '_module')\nreal = module.sys.modules['builtins'].__dict__",
    "a formatter of one's own": "import string\nclass F(string.Formatter):\n"
    "    def get_field(self, name, args, kwargs):\n"
    "        F.seen = super().get_field(name, args, kwargs)[0]; return '', 0\n"
    "F().format('{0.__globals__}', json.dumps)\nreal = F.seen['__builtins__']",
    "code of one's own": "make = type(json.dumps)\nspace = json.dumps.__getattribute__('__globals__')\n"
    "codes = [f.__getattribute__('__code__') for f in (lambda: open, lambda: __import__)]\n"
    "real = {'open': make(codes[0], space)(), '__import__': make(codes[1], space)()}",
}

TRY = """
def get(name):
    space = real if isinstance(real, dict) else vars(real)
    return space[name]

def attempts():
    load = get('__import__')
    os, io = load('os'), load('io')
    yield lambda: get('open')(SECRET_PATH).read()
    yield lambda: io.FileIO(SECRET_PATH).read()
    yield lambda: io.open_code(SECRET_PATH).read()
    yield lambda: os.read(os.open(SECRET_PATH, 0), 100)
    yield lambda: os.listdir(FOLDER)
    yield lambda: os.symlink(SECRET_PATH, 'link') or get('open')('link').read()
    yield lambda: os.link(SECRET_PATH, 'hard') or get('open')('hard').read()
    yield lambda: [get('open')(f'/proc/{n}/environ').read() for n in (1, os.getppid(), 'self')]
    yield lambda: get('open')(MARKER, 'w').write('x')
    yield lambda: os.open(MARKER, os.O_CREAT | os.O_WRONLY)
    yield lambda: os.system(f'touch {MARKER}')
    yield lambda: load('subprocess').run(['touch', MARKER])
    yield lambda: os.execv('/bin/touch', ['touch', MARKER])
    yield lambda: load('socket').create_connection(('127.0.0.1', PORT), 1)
    yield lambda: load('shutil').copy(SECRET_PATH, 'copy') and get('open')('copy').read()
    yield lambda: load('linecache').getlines(SECRET_PATH)
    yield lambda: load('ctypes').CDLL(None).open(SECRET_PATH.encode(), 0)
    yield lambda: load('ctypes').CDLL(None).system(f'touch {MARKER}'.encode())
    yield lambda: load('mmap').mmap(os.open(SECRET_PATH, 0), 0, access=1).read()

tried = 0
for attempt in attempts():
    try: found = str(attempt())
    except BaseException as problem: found = str(problem)
    tried += 1
    print(found)
    llm_query(found)
print('tried', tried)
"""


class Bypassed:
    """What a way past the policy led to."""

    def __init__(self, box: BaseSandbox, folder: Path, secret: Path, way: str):
        (outside := folder / "outside").mkdir()
        self.marker, self.prompts = outside / "marker", list[str]()
        self.connected = False
        secret.parent.mkdir(exist_ok=True)
        secret.write_text(SECRET)
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.05)
            for name, value in {"SECRET_PATH": secret, "FOLDER": secret.parent, "MARKER": self.marker}.items():
                box.set(name, str(value))
            box.set("PORT", server.getsockname()[1])
            code = f"import json\n{way}\n{TRY}"
            self.cell: Cell = box.execute(code, functions={"llm_query": lambda prompt: self.prompts.append(prompt)})
            try:
                server.accept()[0].close()
                self.connected = True
            except TimeoutError:
                pass

    def check(self) -> None:
        shown = "\n".join(map(str, (self.cell, *self.prompts)))
        assert SECRET not in shown, shown
        assert not self.marker.exists() and not self.connected


@pytest.fixture(params=LAYERS)
def layers(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    yield LAYERS[request.param]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_the_host_is_behind_a_way_past_the_policy(layers: tuple[str, ...], way: str, tmp_path: Path) -> None:
    with LocalSandbox(layers=layers, cell_timeout=20) as box:
        found = Bypassed(box, tmp_path, tmp_path / "outside" / "secret.txt", WAYS[way])
        found.check()
        if "policy" not in layers:
            assert found.cell.stdout.endswith("tried 19\n"), found.cell.error
        assert box.execute("1 + 1").value == "2"


@pytest.mark.parametrize("way", WAYS)
def test_no_secret_of_the_workspace_is(layers: tuple[str, ...], way: str, tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    with LocalSandbox(layers=layers, workspace=str(tmp_path / "workspace"), cell_timeout=20) as box:
        Bypassed(box, tmp_path, tmp_path / "workspace" / ".env", WAYS[way]).check()
