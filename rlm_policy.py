# /// script
# requires-python = ">=3.10"
# dependencies = ["RestrictedPython>=8.5,<10"]
# ///
"""Which Python a cell of the local sandbox may use. A seat belt: the kernel confinement is the boundary.

RestrictedPython's transformer decides which syntax exists; its run-time guards are not used. The names that they would
guard are checked when the cell is compiled, and the code then runs natively. Cells get built-in functions and read-only
proxies of library modules; files go through the worker. The table `DENIED` holds what is refused, why, and what to
write instead. Introspection gets around all of this, and ends at the kernel.

`rlm_worker` loads this file, in the child process only; keep the two side by side.
"""

from __future__ import annotations

import ast
import builtins
import collections
import collections.abc
import functools
import importlib
import io
import linecache
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING or not __package__:
    from rlm_worker import PlainLanguage, Setup, describe, format_traceback, print_help, start_task, type_name
else:  # vendored into a package
    from .rlm_worker import PlainLanguage, Setup, describe, format_traceback, print_help, start_task, type_name


# --- what is refused, why, and what to write instead ------------------------------------------------------------------


class Denial(NamedTuple):
    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.instead}"


# kind: names | reason | what to write instead
#
# attribute: refused when a cell is compiled, wherever it is written, and by getattr. builtin: a function that only
# raises. name: one that exists elsewhere; added to its NameError. syntax: by the node's type, or how the line begins.
# module, package: not importable; packages are those that `allowed_imports` can add. member: of a module's proxy.
DENIED_ROWS = """
attribute: __globals__ __code__ __closure__ __builtins__ ag_await ag_code ag_frame co_code cr_await cr_code cr_frame \
cr_origin f_back f_builtins f_code f_generator f_globals f_locals f_trace gi_code gi_frame gi_yieldfrom tb_frame tb_next
    | code and frames stay out of sight of the code that runs in them | pass values as arguments
attribute: __self__ __loader__ __spec__
    | it leads to a real module | use the operator or built-in function that stands for it
attribute: __subclasses__
    | it lists every class of the process | collect your own classes in __init_subclass__

builtin: input | nobody is there to answer | write the value into the code, or ask a model with llm_query
builtin: breakpoint | there is no debugger | print what you want to see
builtin: compile | code is made in one step here | eval(text) and exec(text) run text under the same rules

name: _ | the value of the last cell is not kept | assign it to a variable of your own
name: display | there is no notebook here | print(x), or end the cell with x: its value and its picture are shown
name: In Out get_ipython | there is no notebook here | variables live on between cells; _out[n] is what cell n printed
name: __file__ | a cell is no file | files are named from the working folder: open('name.txt')
name: unicode basestring xrange raw_input unichr | this is Python 3 | write str, range or chr

syntax: AsyncFunctionDef AsyncFor AsyncWith Await async
    | async code does not run here | write plain functions; llm_query_batched(prompts) asks in parallel
syntax: TryStar | except* is not available here | catch the group with except, and look at its .exceptions
syntax: ! | no other program can be run, and nothing installed | write it in Python; the caller adds packages with \
allowed_imports
syntax: % | notebook commands do not run here | leave the line out; to take the time, call time.perf_counter()
syntax: ? | notebook commands do not run here | print(dir(x)) lists names, help(x) prints the docstring

module: asyncio trio anyio | async code does not run here | llm_query_batched(prompts) asks in parallel
module: ctypes cffi mmap | there is no way to the machine from here | struct, array and bytes handle binary data
module: httpx requests urllib3 socket http aiohttp urllib.request ssl smtplib ftplib websocket
    | there is no network here | the host's functions are what reaches outside
module: multiprocessing _thread | there is one process and one thread | llm_query_batched(prompts) asks in parallel
module: pickle marshal shelve dill joblib | it loads code along with data
    | use json, or keep the value in a variable: variables live on between cells
module: shutil | files are copied and removed one by one here | os.remove, os.rename, and read and write with open
module: sqlite3 | its files are not for cells | use dicts and lists, or sorted() and itertools.groupby
module: subprocess pty signal | no other program can be run | write it in Python
module: tempfile | the working folder is private | open('name.txt', 'w') is enough
module: importlib runpy imp pkgutil | modules are loaded by import statements here | import name
module: site sysconfig pip setuptools | nothing can be installed from here | the caller adds packages with \
allowed_imports
module: tkinter turtle curses | there is no screen | print what you want to see

package: bs4 | not installed for cells | use html.parser.HTMLParser, or re for a few tags
package: chardet charset_normalizer | not installed for cells | try data.decode('utf-8'), then 'cp1252'
package: dateutil arrow | not installed for cells | datetime.fromisoformat(s), or datetime.strptime(s, '%d %b %Y')
package: docx pypdf PyPDF2 pdfplumber fitz | not installed for cells | context is text already
package: jsonschema | not installed for cells | check keys and types with isinstance
package: langchain | not installed for cells | chunks(text) cuts a text; llm_query(prompt) asks a model
package: lxml | not installed for cells | import xml.etree.ElementTree as ET; ET.fromstring(text)
package: matplotlib seaborn plotly | not installed for cells | nothing shows plots here: print the numbers
package: networkx | not installed for cells | use a dict of sets; graphlib.TopologicalSorter for an order
package: nltk | not installed for cells | re.findall(r'\\w+', text) for words, re.split(r'(?<=[.!?])\\s+', text)
package: numpy scipy | not installed for cells | use lists, sum() and the modules statistics and math
package: anthropic google litellm ollama openai tensorflow torch transformers
    | not installed for cells, and without a network | llm_query(prompt) asks a model
package: openpyxl xlrd | not installed for cells | csv or splitlines() for text; zipfile opens an .xlsx
package: pandas polars | not installed for cells
    | for CSV: import csv; rows = list(csv.DictReader(context.splitlines()))
package: pydantic attr attrs | not installed for cells | use dataclasses or dicts
package: pytz | not installed for cells | zoneinfo.ZoneInfo('Europe/Paris')
package: rapidfuzz fuzzywuzzy Levenshtein | not installed for cells | difflib.get_close_matches(word, words)
package: regex | not installed for cells | import re
package: simplejson ujson orjson | not installed for cells | import json
package: sklearn | not installed for cells | count with collections.Counter; llm_query(prompt) sorts by meaning
package: spacy | not installed for cells | re finds words and names; llm_query(prompt) understands text
package: tabulate rich prettytable | not installed for cells | print(f'{name:<20}{value:>8}') for each row
package: tiktoken | not installed for cells | len(text) // 4 is about the number of tokens
package: tqdm | not installed for cells | iterate without it: nobody sees a bar
package: yaml | not installed for cells | read simple lines with line.split(': ', 1); json where it is JSON

member: os.system os.popen os.fork os.execv os.spawnv os.kill | no other program can be run | write it in Python
member: os.open os.fdopen os.read os.write | there are no descriptors here | open files with open(path)
member: os.chdir | the working folder stays the same | name files from there: 'folder/name.txt'
member: pathlib.Path.symlink_to os.symlink os.link | links are not made here | write a copy with open
member: sys.settrace sys._getframe | there is no tracing | print what you want to see
member: threading.Thread threading.Timer | there is one thread
    | llm_query_batched(prompts) asks in parallel, and concurrent.futures overlaps host calls
"""


def denials(rows: str) -> dict[tuple[str, str], Denial]:
    """The table by category and name. An indented row continues the one before."""
    table = {}
    for row in rows.replace("\n    |", " |").splitlines():
        if row:
            named, reason, instead = row.split(" | ", 2)
            category, _, names = named.partition(": ")
            table.update({(category, name): Denial(reason.strip(), instead) for name in names.split()})
    return table


DENIED = denials(DENIED_ROWS)
DENIED_ATTRIBUTES = frozenset(name for denial_class, name in DENIED if denial_class == "attribute")


def attribute_refusal(name: str) -> str:
    return f"{name!r} is not accessible here: {DENIED['attribute', name]}"


def unavailable(category: str, name: str) -> Callable[..., NoReturn]:
    """A function that raises, and says why it is not available."""

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"{name}() is not available here: {DENIED[category, name]}")

    missing.__name__ = missing.__qualname__ = name
    return missing


# --- compiling --------------------------------------------------------------------------------------------------------


class PolicyError(SyntaxError):
    """Code that the policy refuses; the message says why, and what to write instead."""


HARMLESS_SYNTAX = (  # which RestrictedPython refuses
    "AnnAssign TypeAlias TypeVar ParamSpec TypeVarTuple Match match_case MatchValue MatchSingleton MatchSequence"
    " MatchMapping MatchClass MatchStar MatchAs MatchOr"
)


@functools.cache
def known_syntax() -> frozenset[str]:
    """The names of the syntax tree's nodes that cells may have: what a newer Python adds is refused."""
    from RestrictedPython.transformer import RestrictingNodeTransformer

    visited = (name.removeprefix("visit_") for name in dir(RestrictingNodeTransformer))
    return frozenset([*visited, *HARMLESS_SYNTAX.split()])


def check(node: ast.AST) -> None:
    """PolicyError for syntax or a name that is refused, in this node or below."""
    kind = type(node).__name__
    if ("syntax", kind) in DENIED:
        refuse(node, str(DENIED["syntax", kind]))
    if kind not in known_syntax():
        refuse(node, f"{kind} is not known here; write it another way")
    if isinstance(node, ast.comprehension) and node.is_async:
        refuse(node.target, str(DENIED["syntax", "async"]))
    for field in node._fields:
        held = getattr(node, field, None)
        for item in held if type(held) is list else (held,):
            if isinstance(item, ast.AST):
                check(item)
            elif type(item) is str and item in DENIED_ATTRIBUTES and kind != "Constant":
                refuse(node, attribute_refusal(item))


def refuse(node: ast.AST, reason: str) -> NoReturn:
    error = PolicyError(reason)
    error.lineno, error.offset = getattr(node, "lineno", None), getattr(node, "col_offset", -1) + 1
    raise error


def policy_compile(source: str, filename: str) -> tuple[CodeType, CodeType | None]:
    """The compiled statements and, if the source ends in an expression, that expression separately.

    SyntaxError for what is not Python, PolicyError for what is refused.
    """
    tree = checked_tree(source, filename)
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)  # `traceback` shows lines of it
    last = tree.body[-1] if tree.body else None
    tail = None
    if isinstance(last, ast.Expr):
        tree.body.pop()
        tail = compiled(ast.Expression(last.value), filename, "eval")
    return compiled(tree, filename, "exec"), tail


def checked_tree(source: str, filename: str) -> ast.Module:
    """Parse the source; PolicyError if anything in it is refused."""
    source = source.removeprefix("\ufeff")
    try:
        tree: ast.Module = compiled(source, filename, "exec", ast.PyCF_ONLY_AST)
        check(tree)
        return tree
    except SyntaxError as error:
        lines = source.splitlines()
        line = lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else ""
        refusal = error if type(error) is PolicyError else notebook_refusal(error, line)
        if type(refusal) is PolicyError:
            refusal.filename, refusal.text = filename, line
        raise refusal from None
    except RecursionError:
        raise PolicyError(TOO_DEEP) from None
    except (ValueError, UnicodeError) as error:
        raise SyntaxError(f"this is not source code: {error}") from None


TOO_DEEP = "the code is nested too deeply; split it into several statements"


def notebook_refusal(error: SyntaxError, line: str) -> SyntaxError:
    """A clearer error than "invalid syntax" for a notebook command: `!pip`, `%%time`, `x?`."""
    line = line.strip()
    asks = line.endswith("?") and line.rstrip("?").replace(".", "").isidentifier()
    denial = DENIED.get(("syntax", "?" if asks else line[:1]))
    return error if denial is None else PolicyError(str(denial), ("", error.lineno, 1, line))


def compiled(source: str | ast.Module | ast.Expression, filename: str, mode: str, flags: int = 0) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(source, filename, mode, flags, dont_inherit=True)
    except (RecursionError, MemoryError):
        raise PolicyError(TOO_DEEP) from None


# --- built-in functions -----------------------------------------------------------------------------------------------


class Session:
    """The state of the built-in functions and proxies; a worker serves one session."""

    def __init__(self) -> None:
        self.builtins: dict[str, object] = {}
        self.globals: dict[str, object] = {}
        self.allowed: tuple[str, ...] = ()  # packages handed out whole
        self.proxies: dict[str, ModuleProxy] = {}


session = Session()


def checked_name(name: object) -> str:
    """Check an attribute name computed at run time by the rules for written ones."""
    if type(name) is str and name in DENIED_ATTRIBUTES:
        raise AttributeError(attribute_refusal(name))
    if type(name) is not str:
        raise TypeError(f"attribute name must be string, not {type_name(type(name))!r}")
    return name


def checked_getattr(target: object, name: str, /, *default: object) -> object:
    if default and type(name) is str and name in DENIED_ATTRIBUTES:
        return default[0]
    return getattr(target, checked_name(name), *default)


def checked_hasattr(target: object, name: str, /) -> bool:
    try:
        return hasattr(target, checked_name(name))
    except AttributeError:
        return False


def shown_names(names: dict[str, object]) -> str:
    """Variables with type and length, without values: one may be a whole context."""
    described = [(name, *describe(value)[:2]) for name, value in names.items() if not name.startswith("__")]
    parts = [f"{name}: {cls}" + ("" if size is None else f"[{size}]") for name, cls, size in described]
    return "{" + ", ".join(parts) + "}"


class LocalVariables(dict[str, object]):
    """`locals()` of a function."""

    def __repr__(self) -> str:
        return shown_names(self)


class GlobalVariables(collections.abc.MutableMapping[str, object]):
    """`globals()`: the cells' variables themselves, without `__builtins__`."""

    __slots__ = ()

    def __getitem__(self, name: str) -> object:
        if name == "__builtins__":
            raise KeyError(name)
        return session.globals[name]

    def __setitem__(self, name: str, value: object) -> None:
        session.globals[checked_name(name)] = value

    def __delitem__(self, name: str) -> None:
        del session.globals[checked_name(name)]

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in session.globals if name != "__builtins__"])

    def __len__(self) -> int:
        return len(session.globals) - 1

    def copy(self) -> LocalVariables:
        return LocalVariables({name: session.globals[name] for name in self})

    def __repr__(self) -> str:
        return shown_names(self.copy())


Space = dict[str, object] | GlobalVariables | None


def checked_vars(*target: object) -> object:
    """`vars`, and without an argument `locals`."""
    if target:
        return vars(*target)
    frame = sys._getframe(1)
    return GlobalVariables() if frame.f_locals is frame.f_globals else LocalVariables(frame.f_locals)


def checked_eval(source: object, globals: Space = None, locals: Space = None, /) -> object:
    """`eval`, under the same policy as the cell."""
    tree = checked_tree(source_text(source, "eval").strip(), "<eval>")
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        raise SyntaxError("eval() takes one expression; exec() takes statements")
    code = compiled(ast.Expression(tree.body[0].value), "<eval>", "eval")
    return eval(code, *spaces(globals, locals, sys._getframe(1)))


def checked_exec(source: object, globals: Space = None, locals: Space = None, /) -> None:
    """`exec`, under the same policy as the cell."""
    code = compiled(checked_tree(source_text(source, "exec"), "<exec>"), "<exec>", "exec")
    exec(code, *spaces(globals, locals, sys._getframe(1)))


def source_text(source: object, function: str) -> str:
    if not isinstance(source, str):
        raise TypeError(f"{function}() takes text here, not {type_name(type(source))!r}")
    return str.__str__(source)


def spaces(globals: Space, locals: Space, caller: FrameType) -> tuple[dict[str, object], Mapping[str, object]]:
    """The namespaces for eval and exec: those given, else the caller's."""
    if globals is None:
        if locals is None and caller.f_locals is not caller.f_globals:
            locals = caller.f_locals
        return session.globals, session.globals if locals is None else locals
    space = session.globals if isinstance(globals, GlobalVariables) else globals
    space.setdefault("__builtins__", session.builtins)
    return space, space if locals is None or isinstance(locals, GlobalVariables) else locals


def checked_open(file: object, *options: Any, **more: Any) -> object:
    """`open`, which the worker routes to the files of cells. Descriptors are the worker's own."""
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(f"a file is named by a str or Path here, not {type_name(type(file))!r}")
    return open(file, *options, **more)


def session_builtins() -> dict[str, object]:
    kept = {name: value for name, value in vars(builtins).items() if not name.startswith("_")}
    kept.update({name: unavailable(category, name) for category, name in DENIED if category == "builtin"})
    kept.update(
        open=checked_open,
        getattr=checked_getattr,
        hasattr=checked_hasattr,
        globals=GlobalVariables,
        locals=checked_vars,
        vars=checked_vars,
        eval=checked_eval,
        exec=checked_exec,
        help=print_help,
        exit=sys.exit,
        quit=sys.exit,
    )
    return {**kept, "__import__": import_module, "__build_class__": builtins.__build_class__, "__debug__": True}


# --- the library: read-only proxies of its modules --------------------------------------------------------------------

WHOLE = (  # with their public names
    "__future__ abc argparse array ast base64 binascii bisect bz2 calendar cmath codecs collections collections.abc"
    " configparser contextlib contextvars copy csv dataclasses datetime decimal difflib email email.header"
    " email.message email.utils enum fnmatch fractions functools graphlib gzip hashlib heapq hmac html html.entities"
    " glob html.parser ipaddress itertools json json.decoder json.encoder keyword locale logging lzma math"
    " numbers operator pprint queue random re reprlib secrets shlex statistics string struct tarfile"
    " textwrap time timeit tomllib traceback typing unicodedata urllib.parse uuid warnings weakref xml.dom.minidom"
    " xml.etree.ElementTree xml.sax.saxutils zipfile zlib zoneinfo"
)
PARTIAL = {  # of these the names given
    "concurrent.futures": "ALL_COMPLETED FIRST_COMPLETED FIRST_EXCEPTION CancelledError InvalidStateError TimeoutError",
    "gc": "collect",
    "inspect": "signature Signature Parameter cleandoc getdoc isfunction isclass ismethod isgenerator isbuiltin"
    " isgeneratorfunction isabstract ismodule",
    "io": "StringIO BytesIO TextIOWrapper BufferedReader BufferedIOBase TextIOBase RawIOBase IOBase"
    " UnsupportedOperation SEEK_SET SEEK_CUR SEEK_END DEFAULT_BUFFER_SIZE",
    "os": "sep linesep extsep curdir pardir pathsep altsep name fspath urandom PathLike strerror error"
    " listdir scandir walk stat mkdir makedirs remove rename replace rmdir unlink",
    "os.path": "join split splitext splitdrive basename dirname normpath isabs commonprefix commonpath relpath sep"
    " extsep exists getmtime getsize isdir isfile islink",
    "pathlib": "PurePath PurePosixPath PureWindowsPath",
    "platform": "python_version python_version_tuple python_implementation system",
    "sys": "version version_info maxsize maxunicode byteorder hexversion float_info int_info hash_info platform"
    " exc_info exception getsizeof getrefcount intern getrecursionlimit setrecursionlimit getdefaultencoding exit"
    " api_version copyright implementation set_int_max_str_digits get_int_max_str_digits",
    "threading": "Lock RLock Condition Semaphore BoundedSemaphore Event Barrier local get_ident current_thread",
    "types": "SimpleNamespace MappingProxyType GeneratorType FunctionType LambdaType MethodType BuiltinFunctionType"
    " ModuleType NoneType EllipsisType NotImplementedType UnionType GenericAlias DynamicClassAttribute new_class"
    " resolve_bases prepare_class",
}
STUBS: dict[str, Callable[[], dict[str, object]]] = {  # what is ours in a module, besides or in place of its own names
    "builtins": lambda: {name: value for name, value in session.builtins.items() if not name.startswith("_")},
    "concurrent.futures": lambda: future_members(),
    "io": lambda: {"open": checked_open},
    "os": lambda: os_members(),
    "os.path": lambda: dict.fromkeys(["abspath", "realpath", "expanduser"], os.path.normpath),
    "pathlib": lambda: path_classes(),
    "sys": lambda: {"argv": [""], "path": [], "modules": {}, "executable": "", "stdin": io.StringIO()},
    "threading": lambda: {name: unavailable("member", "threading." + name) for name in ("Thread", "Timer")},
}
ALLOWED = frozenset(WHOLE.split())
KNOWN = {*ALLOWED, *PARTIAL, *STUBS}

READ_ONLY = " (read-only)"
STREAMS = ("stdout", "stderr")  # of `sys`, which can be replaced for a while


class ModuleProxy(ModuleType):
    """A module as cells see it: its public names, without other modules."""

    def __init__(self, name: str, members: dict[str, object]):
        super().__init__(name + READ_ONLY)  # a name that `import` does not find in `sys.modules`
        vars(self).update(members)

    def __getattr__(self, name: str) -> object:
        module = vars(self)["__name__"].removesuffix(READ_ONLY)
        if module == "sys" and name in STREAMS:
            return getattr(sys, name)
        raise AttributeError(missing_member(module, name, dir(self)))

    def __setattr__(self, name: str, value: object) -> None:
        module = vars(self)["__name__"].removesuffix(READ_ONLY)
        if module != "sys" or name not in STREAMS:
            raise AttributeError(f"module {module!r} is read-only and cannot be changed; use a variable of your own")
        setattr(sys, name, value)

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __dir__(self) -> list[str]:
        return sorted(name for name in vars(self) if not name.startswith("_"))

    def __repr__(self) -> str:
        return f"<module {self.__name__}>"


def missing_member(module: str, name: str, there: list[str]) -> str:
    hint = DENIED.get(("member", f"{module}.{name}")) or "there are: " + ", ".join(there[:40])
    return f"module {module!r} has no attribute {name!r} here; {hint}"


ModuleProxy.__name__ = "module"  # as lists of variables call them


def proxy_of(name: str) -> ModuleProxy:
    """The proxy of a module that cells may import, with those of its parents; ImportError for any other."""
    if name in session.proxies:
        return session.proxies[name]
    if name in KNOWN:
        members = module_members(name)
    elif any(known.startswith(name + ".") for known in KNOWN):
        members = {}
    else:
        raise no_module(name)
    proxy = session.proxies[name] = ModuleProxy(name, members)
    parent, _, child = name.rpartition(".")
    if parent:
        vars(proxy_of(parent))[child] = proxy
    for part in ("collections.abc", "html.entities", "os.path", "json.decoder", "email.message"):
        if part.rpartition(".")[0] == name:
            vars(proxy)[part.rpartition(".")[2]] = proxy_of(part)
    return proxy


def module_members(name: str) -> dict[str, object]:
    members: dict[str, object] = {}
    if name in ALLOWED or name in PARTIAL:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:  # newer than this Python
            raise no_module(name) from None
        public = [public for public in vars(module) if not public.startswith("_")]
        names = PARTIAL[name].split() if name in PARTIAL else getattr(module, "__all__", public)
        members = {public: getattr(module, public) for public in names if hasattr(module, public)}
        members = {public: value for public, value in members.items() if type(value) is not ModuleType}
        members["__doc__"] = module.__doc__
    return {**members, **STUBS.get(name, dict)()}


def no_module(name: str) -> ImportError:
    top = name.partition(".")[0]
    hint = str(DENIED.get(("module", name)) or DENIED.get(("module", top)) or "")
    if package := DENIED.get(("package", top)):
        hint = f"{package} (the caller can add {top} with allowed_imports)"
    elif not hint:
        there = sorted({known.partition(".")[0] for known in KNOWN} - {"__future__", "gc"})
        hint = f"there are: {', '.join([*session.allowed, *there])}. The caller can add others with allowed_imports"
    return ModuleNotFoundError(f"no module {name!r} here; {hint}", name=name)


def import_module(
    name: str, globals: object = None, locals: object = None, fromlist: Sequence[str] | None = (), level: int = 0
) -> ModuleType | None:
    """What an import statement calls, and `__import__`."""
    if level:
        raise ImportError("relative imports have no package to start from here")
    if type(fromlist) is list and not fromlist:  # C code on behalf of a cell: it looks in `sys.modules` itself
        importlib.import_module(name)
        return None
    top = name.partition(".")[0]
    if top in session.allowed:
        module = importlib.import_module(name)
        return module if fromlist else sys.modules[top]
    proxy = proxy_of(name)
    for wanted in fromlist or ():
        if wanted != "*":
            require_member(name, proxy, wanted)
    return proxy if fromlist else proxy_of(top)


def require_member(name: str, proxy: ModuleProxy, wanted: str) -> None:
    """ImportError unless the proxy has the name: Python would look for a real module next."""
    if wanted not in vars(proxy):
        try:
            proxy_of(f"{name}.{wanted}")
        except ImportError:
            missing = missing_member(name, wanted, dir(proxy))
            raise ImportError(f"cannot import name {wanted!r}: {missing}", name=name) from None


def path_classes() -> dict[str, object]:
    """`pathlib.Path` without the real place of the working folder, and without links."""
    import pathlib

    system_path: Any = type(pathlib.Path())

    class Path(system_path):  # type: ignore[misc]
        __slots__ = ()

        @classmethod
        def cwd(cls) -> Path:
            return cls(".")

        def resolve(self, strict: bool = False) -> Path:
            return type(self)(os.path.normpath(self))

        def touch(self, *options: object, **more: object) -> None:
            open(self, "a").close()

        absolute = expanduser = resolve
        symlink_to = hardlink_to = link_to = unavailable("member", "pathlib.Path.symlink_to")

    Path.__module__, Path.__qualname__ = "pathlib", "Path"
    return {"Path": Path, "PosixPath": Path}


def os_members() -> dict[str, object]:
    environment: dict[str, str] = {}
    members: dict[str, object] = {"path": proxy_of("os.path"), "environ": environment, "getenv": environment.get}
    return {**members, "getcwd": lambda: ".", "getpid": lambda: 1, "cpu_count": lambda: 1}


# --- concurrent.futures, without threads ------------------------------------------------------------------------------


TOGETHER_MAX = 64  # host calls in flight at once


def future_members() -> dict[str, object]:
    """An executor whose tasks run in order, and whose host calls overlap, when a result is first needed."""
    from concurrent import futures

    class Future(futures.Future[Any]):
        def __init__(self, executor: Executor, task: Callable[[], object]):
            super().__init__()
            self.executor, self.task = executor, task

        def exception(self, timeout: float | None = None) -> BaseException | None:
            self.executor.shutdown()
            return super().exception(0)  # a task that was interrupted has none

        def result(self, timeout: float | None = None) -> object:
            self.executor.shutdown()
            return super().result(0)

    class Executor(futures.Executor):
        def __init__(self, *args: object, **kwargs: object):
            self.waiting: list[Future] = []

        def submit(self, function: Callable[..., Any], /, *args: object, **kwargs: object) -> Future:
            self.waiting.append(Future(self, functools.partial(function, *args, **kwargs)))
            return self.waiting[-1]

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            ready = [future for future in self.waiting if future.set_running_or_notify_cancel()]
            self.waiting.clear()
            for at in range(0, len(ready), TOGETHER_MAX):
                part = ready[at : at + TOGETHER_MAX]
                for future, task in zip(part, [start_task(future.task) for future in part]):
                    try:
                        future.set_result(task())
                    except Exception as error:
                        future.set_exception(error)

    def as_completed(waited: Iterable[Future], timeout: float | None = None) -> Iterator[Future]:
        for future in list(waited):
            future.executor.shutdown()
            yield future

    def wait(waited: Iterable[Future], timeout: float | None = None, return_when: str = "ALL_COMPLETED") -> object:
        return futures.wait(list(as_completed(waited)))

    executors = dict.fromkeys(["ThreadPoolExecutor", "ProcessPoolExecutor", "Executor"], Executor)
    return {**executors, "Future": Future, "as_completed": as_completed, "wait": wait}


# --- a session --------------------------------------------------------------------------------------------------------


def policy_preload(allowed_imports: tuple[str, ...] = ()) -> None:
    """Prepare what all sessions of this process and its forks share."""
    known_syntax()
    session.allowed = tuple(name.partition(".")[0] for name in allowed_imports)


class PolicyLanguage(PlainLanguage):
    """Python under this policy, as the worker uses it."""

    compile = staticmethod(policy_compile)

    def __init__(self, setup: Setup):
        self.setup = setup

    def namespace(self, functions: dict[str, object]) -> dict[str, object]:
        """The variables that a session starts with. From then on, this process serves that session only."""
        policy_preload(tuple(self.setup["allowed_imports"]))
        main = sys.modules["__main__"] = ModuleType("__main__")
        session.globals, session.builtins = vars(main), session_builtins()
        sys.stdin = io.StringIO()
        vars(main).update(functions, __builtins__=session.builtins)
        return vars(main)

    def traceback(self, error: BaseException, sources: dict[str, str]) -> str:
        shown = format_traceback(error, sources)
        hint = DENIED.get(("name", str(error.name))) if type(error) is NameError else None
        return f"{shown}: {hint}" if hint else shown
