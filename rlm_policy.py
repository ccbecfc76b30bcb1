# /// script
# requires-python = ">=3.10"
# dependencies = ["RestrictedPython>=8.5,<10"]
# ///
"""What Python a cell of the local sandbox may use: names, attributes and modules, checked as RestrictedPython checks.

`rlm_worker` loads it, in the child process only, and it needs that file beside it.
"""

from __future__ import annotations

import ast
import builtins
import collections
import collections.abc
import contextlib
import functools
import io
import itertools
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import CallableProxyType, ProxyType

if TYPE_CHECKING or not __package__:
    from rlm_worker import (
        MODULES,
        UNSET,
        Files,
        Output,
        run_together,
        text_of,
        type_name,
    )
else:  # vendored into a package
    from .rlm_worker import (
        MODULES,
        UNSET,
        Files,
        Output,
        run_together,
        text_of,
        type_name,
    )

# --- the policy: what Python a cell may use (RestrictedPython) --------------------------------------------------------
#
# Three ideas carry it. Names are judged when a cell is compiled, so that most code then runs natively: an attribute
# without underscore is read and written as in plain Python. What makes that safe is that nothing reachable under such a
# name is dangerous: modules are seen through views, classes that are not the cell's own are frozen, and the library
# modules that cells can call have guarded `getattr`, `open`, `eval` and so on in their own globals. What can only be
# judged at run time (`_private` names, `format`, `__dict__` ...) goes through guards, whose names no cell can write.

Rule = str  # how an attribute name is treated: "plain" | "watched" | "private" | "refused"

IMMUTABLE_TYPE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: attributes of such a class can be neither set nor deleted


def words(text: str) -> list[str]:
    return text.split()


OPERATORS = "add sub mul matmul truediv floordiv mod pow lshift rshift and or xor"
DEFINABLE = frozenset(
    f"__{name}__"
    for name in (
        "init new del repr str bytes format lt le eq ne gt ge hash bool getattr getattribute setattr delattr dir"
        " get set delete set_name slots init_subclass class_getitem call len length_hint getitem setitem delitem"
        " missing iter next reversed contains neg pos abs invert complex int float index round trunc floor ceil"
        " enter exit copy deepcopy getstate setstate match_args instancecheck subclasscheck subclasshook prepare"
        " mro_entries divmod rdivmod fspath doc post_init sizeof module qualname hash replace array array_ufunc"
        " array_function"
        f" {OPERATORS} " + " ".join(f"r{name} i{name}" for name in OPERATORS.split())
    ).split()
)
READABLE = DEFINABLE - {"__getstate__", "__setstate__", "__match_args__"} | frozenset(
    words(
        "__name__ __class__ __base__ __bases__ __mro__ __cause__ __context__ __suppress_context__ __notes__"
        " __traceback__ __wrapped__ __members__ __version__ __all__ __origin__ __args__ __parameters__"
        " __supertype__ __orig_bases__ __dataclass_fields__ __dataclass_params__ __abstractmethods__"
        " __required_keys__ __optional_keys__ __total__ __type_params__ __value__ __bound__ __constraints__"
        " __match_args__ __isabstractmethod__ __forward_arg__"
    )
)
WATCHED = frozenset(
    words(
        "format format_map obj parser __dict__ __annotations__ __getattribute__ __getattr__ __setattr__ __delattr__"
        " __subclasses__"
    )
)
WRITABLE = DEFINABLE - {"__match_args__", "__slots__"} | frozenset(
    words("__name__ __dict__ __cause__ __context__ __suppress_context__ __notes__ __traceback__ __wrapped__")
)
LIBRARY_WRITABLE = WRITABLE | {"__annotations__", "__type_params__"}  # by functools.wraps and its like
SUNDER = frozenset(  # public in all but the name: namedtuple and Enum
    words(
        "_ _fields _asdict _replace _make _field_defaults _value_ _name_ _missing_ _ignore_ _order_ _member_map_"
        " _member_names_ _value2member_map_ _generate_next_value_"
    )
)
INSPECTION = frozenset(
    [f"{kind}_{what}" for kind in ("gi", "cr", "ag") for what in words("frame code yieldfrom await origin")]
    + [f"f_{what}" for what in words("back builtins code generator globals locals trace lineno lasti")]
    + ["tb_frame", "tb_next", "co_code", "co_consts", "func_globals", "func_code"]
)
LIBRARY_READABLE = frozenset(
    words("__partialmethod__ __text_signature__ __signature__ __type_params__ __file__ __package__ __path__")
)
PERILOUS = INSPECTION | frozenset(  # what library code may not be made to fetch
    f"__{name}__"
    for name in words("globals code closure builtins subclasses self func loader spec reduce reduce_ex getstate")
)
GLOBAL_DUNDERS = frozenset(words("__all__ __version__ __author__ __doc__"))
READABLE_NAMES = GLOBAL_DUNDERS | DEFINABLE | {"__name__", "__class__", "__debug__", "__import__", "__qualname__"}
ASYNC_REFUSED = "async code does not run here: write plain functions; llm_query_batched asks in parallel"
GUARD_NAME = re.compile(r"_[a-z]\w*_|_print|_tmp\d+|builtins|breakpoint")  # RestrictedPython's own, and what shadows


class PolicyError(SyntaxError):
    """Code that the policy refuses; the message says what it is and what to write instead."""


def rule_of(name: str) -> Rule:
    """How an attribute of this name is treated when it is read."""
    if name in WATCHED:
        return "watched"
    if not name.startswith("_"):
        return "refused" if name in INSPECTION else "plain"
    if name in SUNDER or name in READABLE:
        return "plain"
    return "refused" if name.startswith("__") and name.endswith("__") else "private"


def store_rule_of(name: str) -> Rule:
    """The same when it is set or deleted."""
    if name.startswith("__") and name.endswith("__"):
        return "plain" if name in WRITABLE else "refused"
    return rule_of(name) if name.startswith("_") or name in INSPECTION else "plain"


def refusal_of(name: str) -> str:
    if name in ("__globals__", "__code__", "__closure__", "__builtins__") or name in INSPECTION:
        return f"{name!r} is not accessible here: code and frames stay out of sight of the code that runs in them"
    if name.startswith("__"):
        return f"{name!r} is not accessible here: use the operator or built-in function that stands for it"
    return f"{name!r} is private to its owner and not accessible here"


# - compiling


def policy_compile(source: str, filename: str) -> tuple[CodeType, CodeType | None]:
    """The statements, and the last expression by itself if the source ends in one, as code that keeps the policy.

    SyntaxError for what is not Python, PolicyError for what is refused.
    """
    if state.stream is not None:
        sys.stdout = sys.stderr = state.stream  # whatever an earlier cell has put there
    state.sources[filename] = source
    tree = policy_tree(source, filename)
    last = tree.body[-1] if tree.body else None
    tail = None
    if isinstance(last, ast.Expr):
        tree.body.pop()
        tail = compiled(ast.Expression(last.value), filename, "eval")
    return compiled(tree, filename, "exec"), tail


def policy_tree(source: str, filename: str) -> ast.Module:
    """The parsed source, checked and with the guards in it."""
    try:
        with warnings_off():
            tree = ast.parse(source.removeprefix("\ufeff"), filename)
        checked: ast.Module = transformer_class()().visit(tree)
        return ast.fix_missing_locations(checked)
    except PolicyError as refusal:
        lines = source.splitlines()
        refusal.filename = filename
        refusal.text = lines[refusal.lineno - 1] if refusal.lineno and refusal.lineno <= len(lines) else ""
        raise
    except (RecursionError, MemoryError):
        raise PolicyError("the code is nested too deeply: split it into several statements") from None
    except (ValueError, UnicodeError) as error:
        raise SyntaxError(f"this is not source code: {error}") from None


def compiled(tree: Any, filename: str, mode: str) -> CodeType:
    try:
        with warnings_off():
            code: CodeType = compile(tree, filename, mode, dont_inherit=True)
    except (RecursionError, MemoryError):
        raise PolicyError("the code is nested too deeply: split it into several statements") from None
    return code


@contextlib.contextmanager
def warnings_off() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def transformer_class() -> type[Any]:
    from RestrictedPython.transformer import RestrictingNodeTransformer

    return type("Transformer", (Transforms, RestrictingNodeTransformer), {})


class Scope:
    """A function, class, comprehension or module while it is transformed."""

    def __init__(self, kind: str, name: str = "", parameters: frozenset[str] = frozenset()):
        self.kind, self.name, self.parameters = kind, name, parameters
        self.temporary: list[str] = []  # variables that the transformation has added


class Transforms:
    """What differs from RestrictedPython, which refuses whatever syntax neither of the two knows."""

    node_contents_visit: Callable[[Any], Any]

    def __init__(self) -> None:
        super().__init__()
        self.scopes = [Scope("module")]
        self.numbers = itertools.count()
        self.looks: list[Any] = []  # statements to run before the match that is being transformed

    def refuse(self, node: Any, message: str) -> NoReturn:
        error = PolicyError(message)
        error.lineno = getattr(node, "lineno", None)
        error.offset = getattr(node, "col_offset", -1) + 1
        raise error

    def error(self, node: Any, info: str) -> None:
        self.refuse(node, info)

    def not_allowed(self, node: Any) -> None:
        kind = type(node).__name__
        if kind.startswith("Async") or kind == "Await":
            self.refuse(node, ASYNC_REFUSED)
        if kind == "TryStar":
            self.refuse(node, "except* is not available here: catch the group with except and look at .exceptions")
        self.refuse(node, f"{kind} is not available here")

    def scoped(self, node: Any, scope: Scope) -> Any:
        self.scopes.append(scope)
        try:
            return self.node_contents_visit(node)
        finally:
            self.scopes.pop()

    # names

    def check_name(self, node: Any, name: str | None, allow_magic_methods: bool = False) -> None:
        if name is None or (not name.startswith("_") and name not in ("builtins", "breakpoint")):
            return
        if GUARD_NAME.fullmatch(name) and name not in SUNDER:
            self.refuse(node, f"the name {name!r} is reserved: choose another")
        if not (name.startswith("__") and name.endswith("__") and len(name) > 4):
            return
        in_class = self.scopes[-1].kind == "class" and name in DEFINABLE
        if name not in GLOBAL_DUNDERS and not in_class and not (allow_magic_methods and name in DEFINABLE):
            self.refuse(node, f"{name!r} cannot be defined here")

    def visit_Name(self, node: ast.Name) -> Any:
        if not isinstance(node.ctx, ast.Load):
            self.check_name(node, node.id)
        elif node.id == "__import__":
            return ast.copy_location(guard("import"), node)
        elif node.id not in READABLE_NAMES and node.id not in ("builtins", "breakpoint"):
            if node.id.startswith("__") and node.id.endswith("__") and len(node.id) > 4:
                self.refuse(node, refusal_of(node.id))
            self.check_name(node, node.id)
        return node

    def visit_Global(self, node: Any) -> Any:
        for name in node.names:
            self.check_name(node, name)
        return node

    visit_Nonlocal = visit_Global

    def visit_alias(self, node: Any) -> Any:
        return node

    def visit_Import(self, node: Any) -> Any:
        for alias in node.names:
            name = alias.asname or alias.name
            if name != "*":
                self.check_name(node, name)
            if alias.name.startswith("_") and alias.name != "__future__":
                self.refuse(node, f"{alias.name!r} is private and cannot be imported")
        return node

    visit_ImportFrom = visit_Import

    # attributes

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        loads = isinstance(node.ctx, ast.Load)
        name = node.attr = self.mangled(node.attr)
        rule = rule_of(name) if loads else store_rule_of(name)
        if rule == "refused":
            self.refuse(node, refusal_of(name))
        base = node.value
        node = self.node_contents_visit(node)
        if rule == "private":
            node.value = ast.copy_location(self.owned(base, node.value, name), node)
        elif rule == "watched" and loads:
            return ast.copy_location(ast.Call(guard("get"), [node.value, ast.Constant(name)], []), node)
        return node

    def owned(self, base: Any, visited: Any, name: str) -> Any:
        """The object, after a look at whether its `_name` is the cell's own; for a parameter the look is inline."""
        look = ast.Call(guard("own"), [visited, ast.Constant(name)], [])
        if not (isinstance(base, ast.Name) and base.id in self.scopes[-1].parameters):
            return look
        kind = ast.Call(guard("type"), [visited], [])
        return ast.IfExp(ast.Compare(ast.Call(guard("pure"), [kind], []), [ast.Is()], [kind]), visited, look)

    def mangled(self, name: str) -> str:
        """The name as the compiler would mangle it within a class."""
        classes = [scope.name for scope in self.scopes if scope.kind == "class"]
        if not classes or not name.startswith("__") or name.endswith("__") or not classes[-1].strip("_"):
            return name
        return f"_{classes[-1].lstrip('_')}{name}"

    def visit_Call(self, node: ast.Call) -> Any:
        if not is_plain_format(node.func):
            return self.node_contents_visit(node)
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        return node

    visit: Callable[[Any], Any]

    # statements that RestrictedPython rewrites and that run natively here

    def native(self, node: Any) -> Any:
        return self.node_contents_visit(node)

    visit_Subscript = visit_Assign = visit_AugAssign = visit_For = visit_With = visit_Module = visit_TypeAlias = native
    visit_MatchValue = visit_MatchSingleton = visit_MatchSequence = visit_MatchOr = visit_match_case = native

    def visit_comprehension(self, node: Any) -> Any:
        return self.refuse(node.target, ASYNC_REFUSED) if node.is_async else self.node_contents_visit(node)

    def in_comprehension(self, node: Any) -> Any:
        return self.scoped(node, Scope("comprehension"))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = in_comprehension

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        """In a class the annotation counts (dataclasses); elsewhere it would only be stored."""
        if self.scopes[-1].kind == "class":
            return self.node_contents_visit(node)
        target = self.visit(node.target)
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([target], self.visit(node.value)), node)

    def visit_TypeVar(self, node: Any) -> Any:
        self.check_name(node, node.name)
        return self.node_contents_visit(node)

    visit_ParamSpec = visit_TypeVarTuple = visit_TypeVar

    # definitions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        self.check_name(node, node.name, allow_magic_methods=True)
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        rebound = {name for inner in ast.walk(node) if isinstance(inner, ast.Nonlocal) for name in inner.names}
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.args = self.visit(arguments)
        node.returns = self.visit(node.returns) if node.returns else None
        for parameter in getattr(node, "type_params", []):
            self.visit(parameter)
        self.scopes.append(Scope("function", "", frozenset(arg.arg for arg in every) - rebound))
        node.body = self.visited(node.body)
        self.scopes.pop()
        return node

    def visited(self, statements: list[Any]) -> list[Any]:
        result: list[Any] = []
        for statement in statements:
            changed = self.visit(statement)
            result.extend(changed if isinstance(changed, list) else [changed])
        return result

    def visit_Lambda(self, node: Any) -> Any:
        return self.scoped(node, Scope("lambda"))

    def visit_arg(self, node: ast.arg) -> Any:
        kept = self.scopes
        self.scopes = [Scope("function")]  # a parameter is never a class's attribute
        self.check_name(node, node.arg)
        self.scopes = kept
        return self.node_contents_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        self.check_name(node, node.name)
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.bases = [self.visit(base) for base in node.bases]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        for parameter in getattr(node, "type_params", []):
            self.visit(parameter)
        self.scopes.append(Scope("class", node.name))
        node.body = self.visited(node.body)
        ours = GUARDS + self.scopes.pop().temporary
        start = 0 if ast.get_docstring(node, clean=False) is None else 1
        node.body.insert(start, ast.copy_location(ast.Global(ours), node))  # not from what `__prepare__` gave
        return node

    # match: class patterns read attributes, by names in the pattern or by those that the class gives

    def visit_Match(self, node: Any) -> Any:
        outer, self.looks = self.looks, []
        node = self.node_contents_visit(node)
        looks, self.looks = self.looks, outer
        return [*looks, node]

    def visit_MatchClass(self, node: Any) -> Any:
        for name in node.kwd_attrs:
            if rule_of(name) != "plain":
                self.refuse(node, refusal_of(name))
        node = self.node_contents_visit(node)
        if node.patterns:  # the class is looked up once, before the match, so that it cannot change in between
            name = f"~{next(self.numbers)}"
            self.scopes[-1].temporary.append(name)
            look = ast.Call(guard("match"), [node.cls, ast.Constant(len(node.patterns))], [])
            self.looks.append(ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], look), node.cls))
            node.cls = ast.copy_location(ast.Name(name, ast.Load()), node.cls)
        return node

    def visit_MatchAs(self, node: Any) -> Any:
        self.check_name(node, getattr(node, "name", None) or getattr(node, "rest", None))
        return self.node_contents_visit(node)

    visit_MatchStar = visit_MatchMapping = visit_MatchAs


GUARDS = ["~own", "~get", "~match", "~import", "~type", "~pure"]


def guard(name: str) -> ast.Name:
    """A guard by its name, which is no identifier: code can neither write nor shadow it."""
    return ast.Name("~" + name, ast.Load())


def is_plain_format(function: Any) -> bool:
    """Whether this is `"...".format` of a literal whose fields fetch nothing: that runs natively."""
    if not (isinstance(function, ast.Attribute) and function.attr == "format"):
        return False
    return isinstance(function.value, ast.Constant) and fetches_nothing(function.value.value)


@functools.lru_cache(maxsize=500)
def fetches_nothing(text: Any) -> bool:
    """Whether no replacement field of a format string has an attribute or an index."""
    from string import Formatter

    if type(text) is not str:
        return False
    try:
        fields = list(Formatter().parse(text))
    except ValueError:
        return False
    return all(
        name is None or ("." not in name and "[" not in name and ("{" not in (spec or "") or fetches_nothing(spec)))
        for _, name, spec, _ in fields
    )


# - guards: what is judged at run time


flags_of: Callable[[type], int] = type.__dict__["__flags__"].__get__
mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
namespace_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__
# Classes of the cells' own whose bases are their own or built in: all `_names` are theirs. Each leads to itself, and is
# compared with what comes out: a metaclass may say that a class equals another.
pure: dict[type, type] = {}


def freeze() -> None:
    """Make classes immutable: all that exist when a session begins, later those of the library alone.

    Packages that are handed out whole, and what they depend on, are left as they are.
    """
    state.modules_seen = len(sys.modules)
    library_only = bool(state.globals or state.allowed)
    library = {__name__, Output.__module__, *sys.stdlib_module_names}
    seen: set[int] = set()
    waiting: list[type] = [object]
    while waiting:
        kinds: list[type] = type.__subclasses__(waiting.pop())
        for kind in kinds:
            if id(kind) in seen:
                continue
            seen.add(id(kind))
            waiting.append(kind)
            module = namespace_of(kind).get("__module__")
            package = module.partition(".")[0] if type(module) is str else ""
            if is_own(kind) and (package in library or not library_only):
                set_flags(kind, flags_of(kind) | IMMUTABLE_TYPE)


def freeze_new() -> None:
    """The same where a module has been imported since: others make no classes that last."""
    if len(sys.modules) != state.modules_seen:
        freeze()


def set_flags(kind: type, flags: int) -> None:
    """Write the flags into the class's structure, which Python code cannot do otherwise."""
    import ctypes

    word = ctypes.c_ulong
    if state.flags_offset is None:
        state.flags_offset = flags_offset(word)
    place = word.from_address(id(kind) + state.flags_offset)
    if place.value == flags_of(kind):
        place.value = flags


def flags_offset(word: Any) -> int:
    """Where the flags are: at the one place that differs between classes exactly as their flags do."""

    samples = [type(f"Sample{bits}", bases, {}) for bits, bases in enumerate([(), (int,), (dict,), (Exception,)])]
    for offset in range(8, 400, 8):
        if all(word.from_address(id(kind) + offset).value == flags_of(kind) for kind in samples):
            return offset
    raise RuntimeError("this Python lays out its classes in an unknown way, so the policy cannot protect them")


def is_own(kind: type) -> bool:
    """Whether a class was made by a cell."""
    return not flags_of(kind) & IMMUTABLE_TYPE


def is_user_function(value: Any) -> bool:
    return type(value) is FunctionType and value.__globals__.get("__builtins__") is state.builtins


class PolicyState:
    """What the guards of this process go by: a worker serves one session."""

    def __init__(self) -> None:
        self.builtins: dict[str, Any] = {}
        self.globals: dict[str, Any] = {}
        self.sources: dict[str, str] = {}  # of the cells, for tracebacks that a cell asks for itself
        self.allowed: tuple[str, ...] = ()  # packages handed out whole
        self.views: dict[str, View] = {}
        self.files: Any = None
        self.stream: Any = None
        self.reconstruct: Any = None  # what `copy` had before
        self.flags_offset: int | None = None  # of the flags in a class's structure
        self.modules_seen = 0  # how many there were when classes were last frozen


state = PolicyState()


def guard_own(target: Any, name: str) -> Any:
    """The target, if its attribute `_name` is not the library's."""
    kind = type(target)
    if pure.get(kind) is kind:
        return target
    if issubclass(kind, type):
        owners = mro_of(target) + mro_of(kind)
    else:
        owners = mro_of(kind_behind(target))
        if kind is not super and forwards(kind):
            raise AttributeError(refusal_of(name))
    holder = next((owner for owner in owners if name in namespace_of(owner)), owners[0])
    if (is_own(holder) and is_own(owners[0])) or is_user_function(target):
        return target
    raise AttributeError(refusal_of(name))


def kind_behind(target: Any) -> type:
    """The class whose attributes are looked up: for `super()` that of the object it stands for."""
    kind: type = type(target)
    return super.__getattribute__(target, "__self_class__") if kind is super else kind


def forwards(kind: type) -> bool:
    """Whether instances show another object's attributes, as `list[int]`, weak proxies and subclasses of super do."""
    owners = mro_of(kind)
    return any(
        id(owner) in FORWARDERS or (not is_own(owner) and "__getattr__" in namespace_of(owner)) for owner in owners
    )


FORWARDERS = frozenset(map(id, (type(list[int]), MethodType, ProxyType, CallableProxyType, super)))


def guard_get(target: Any, name: str) -> Any:
    """An attribute whose name alone does not tell whether it is harmless."""
    formats_text = name == "format" and type(target) is str and len(target) < 1000
    if formats_text and fetches_nothing(target):
        return getattr(target, name)  # bound to this very text
    if name in ("__dict__", "__subclasses__"):
        return dict_of(target) if name == "__dict__" else subclasses_of(target)
    value = getattr(target, name)
    if name == "obj" and hides_its_object(kind_behind(target), value):
        raise AttributeError("the object behind an AttributeError is not accessible here")
    if name == "parser" and type(value) is ModuleType:  # of a path
        raise AttributeError(refusal_of(name))
    if name in ("obj", "parser"):
        return value
    if name == "__annotations__":
        return dict(value) if issubclass(type(value), dict) else value
    if name in ("format", "format_map"):
        return safe_format_of(value)
    return safe_access_of(target, value, name)


def hides_its_object(kind: type, value: Any) -> bool:
    return issubclass(kind, AttributeError) or forwards(kind) or value is AttributeError.__dict__["obj"]


def safe_format_of(value: Any) -> Any:
    """`str.format` with guarded field lookups in place of the native one, bound or not."""
    kind = type(value)
    if kind is BuiltinMethodType and issubclass(type(value.__self__), str):
        return functools.partial(formats[value.__name__], value.__self__)
    if kind is MethodDescriptorType and issubclass(value.__objclass__, str):
        return formats[value.__name__]
    return value


def format_text(text: str, /, *args: Any, **kwargs: Any) -> str:
    return expand(text, args, kwargs)


def format_map(text: str, mapping: Any, /) -> str:
    return expand(text, (), mapping)


formats: dict[str, Callable[..., str]] = {"format": format_text, "format_map": format_map}


def expand(text: str, args: tuple[Any, ...], named: Any) -> str:
    if not issubclass(type(text), str):
        raise TypeError(f"format needs a str, not {type_name(type(text))}")
    text = str.__str__(text)
    if fetches_nothing(text):
        return text.format(*args, **named) if args or type(named) is dict else text.format_map(named)
    import string

    return string.Formatter().vformat(text, args, named)  # its getattr is guarded, see `shadow`


def safe_access_of(target: Any, value: Any, name: str) -> Any:
    """`__getattribute__`, `__setattr__` ... as functions that judge the names they are given."""
    if is_user_function(value) or is_user_function(getattr(value, "__func__", None)):
        return value
    access = {"__setattr__": "set", "__delattr__": "set"}.get(name, "get")
    bound = type(value) in (MethodWrapperType, MethodType, BuiltinMethodType)

    def guarded(*args: Any) -> Any:
        place = 0 if bound else 1
        if len(args) <= place:
            raise TypeError(f"{name} needs {place + 1} arguments or more")
        owner, attribute = value.__self__ if bound else args[0], exact_name(args[place])
        rule = rule_of(attribute) if access == "get" else store_rule_of(attribute)
        if rule == "refused":
            raise AttributeError(refusal_of(attribute))
        if rule == "private":
            guard_own(owner, attribute)
        elif rule == "watched" and access == "get":
            return safe_format_of(value(*args)) if "format" in attribute else guard_get(owner, attribute)
        return value(*args[:place], attribute, *args[place + 1 :])

    return guarded


def exact_name(name: Any) -> str:
    if type(name) is not str:
        raise TypeError(f"attribute name must be string, not {type_name(type(name))!r}")
    return name


def dict_of(target: Any) -> Any:
    """`vars(target)`: the real one for what is the cell's own, a copy without private names for other objects."""
    kind = type(target)
    if kind is View:
        return target.public()
    if issubclass(kind, type):
        if is_own(target):
            return target.__dict__
        raise AttributeError("the namespace of a library class is not accessible here; dir() lists its names")
    if kind is ModuleType or forwards(kind):
        raise AttributeError(refusal_of("__dict__"))
    if is_own(kind) or kind is FunctionType:
        return target.__dict__
    return {name: value for name, value in target.__dict__.items() if rule_of(name) == "plain"}


def subclasses_of(target: Any) -> Any:
    if issubclass(type(target), type) and is_own(target):
        return functools.partial(type.__subclasses__, target)
    raise AttributeError("'__subclasses__' is there for the cell's own classes only")


def guard_match(kind: Any, count: int) -> Any:
    """A class for a pattern with so many positions, whose `__match_args__` must not name what code may not read."""
    if not issubclass(type(kind), type) or kind in SELF_MATCHING:
        return kind
    if is_own(type(kind)):
        raise TypeError("classes with a metaclass of their own cannot be matched by position: name the attributes")
    names = getattr(kind, "__match_args__", ())
    if type(names) is not tuple or len(names) < count:
        raise TypeError(f"{type_name(kind)}() does not take {count} positional sub-patterns")
    if not all(type(name) is str and rule_of(name) == "plain" for name in names[:count]):
        raise TypeError("only public attributes can be matched by position here")
    if is_own(kind) and "__match_args__" not in namespace_of(kind):
        type.__setattr__(kind, "__match_args__", names)  # so that nothing gives it others during the match
    return kind


SELF_MATCHING = (bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple)


def fetch(target: Any, name: Any) -> Any:
    """An attribute by a name that is only known at run time."""
    rule = rule_of(exact_name(name))
    if rule == "refused":
        raise AttributeError(refusal_of(name))
    if rule == "watched":
        return guard_get(target, name)
    return getattr(guard_own(target, name) if rule == "private" else target, name)


def guarded_getattr(target: Any, name: str, /, *default: Any) -> Any:
    if len(default) > 1:
        raise TypeError(f"getattr expected at most 3 arguments, got {2 + len(default)}")
    try:
        return fetch(target, name)
    except AttributeError:
        if default:
            return default[0]
        raise


def guarded_hasattr(target: Any, name: str, /) -> bool:
    try:
        fetch(target, name)
    except AttributeError:
        return False
    return True


def guarded_setattr(target: Any, name: str, value: Any, /) -> None:
    setattr(storable(target, name), name, value)


def guarded_delattr(target: Any, name: str, /) -> None:
    delattr(storable(target, name), name)


def storable(target: Any, name: str) -> Any:
    rule = store_rule_of(exact_name(name))
    if rule == "refused":
        raise AttributeError(refusal_of(name))
    return guard_own(target, name) if rule == "private" else target


def build_class(function: Any, name: str, *bases: Any, **keywords: Any) -> Any:
    """What a `class` statement calls."""
    made = real_build_class(function, name, *bases, **keywords)
    known = issubclass(type(made), type) and not is_own(type(made)) and len(pure) < 10_000
    if known and all(pure.get(base) is base or base in BUILT_IN for base in mro_of(made)[1:]):
        pure[made] = made
    return made


real_build_class = builtins.__build_class__
BUILT_IN = frozenset(value for value in vars(builtins).values() if isinstance(value, type)) - {super, type}


# - built-in functions that look at the code that calls them


def caller_locals(depth: int = 2) -> dict[str, Any] | None:
    """The local variables of the cell's code that called the built-in function; None at its top level."""
    frame = sys._getframe(depth)
    if frame.f_builtins is not state.builtins or frame.f_locals is frame.f_globals:
        return None
    return {name: value for name, value in dict(frame.f_locals).items() if "~" not in name}


class Globals(collections.abc.MutableMapping[str, Any]):
    """The cell's variables as `globals()` shows them."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name == "__builtins__":
            raise KeyError(name)
        return state.globals[name]

    def __setitem__(self, name: str, value: Any) -> None:
        state.globals[self.checked(name)] = value

    def __delitem__(self, name: str) -> None:
        del state.globals[self.checked(name)]

    def checked(self, name: str) -> str:
        if type(name) is not str or not name.isidentifier() or len(name) > 1000 or GUARD_NAME.fullmatch(name):
            raise ValueError(f"not a name for a variable: {text_of(ValueError(name))[:80]}")
        if name.startswith("__") and name.endswith("__") and name not in GLOBAL_DUNDERS:
            raise ValueError(refusal_of(name))
        return name

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in state.globals if name != "__builtins__" and "~" not in name])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return repr(dict(self))


def guarded_globals() -> Globals:
    return Globals()


def guarded_locals() -> Any:
    found = caller_locals()
    return Globals() if found is None else found


def guarded_vars(*target: Any) -> Any:
    if target:
        try:
            return dict_of(target[0])
        except AttributeError as error:
            raise TypeError(f"vars() argument must have a readable __dict__: {error}") from None
    found = caller_locals()
    return Globals() if found is None else found


def guarded_dir(*target: Any) -> list[str]:
    if not target:
        found = caller_locals()
        return sorted(Globals() if found is None else found)
    return [name for name in dir(*target) if type(name) is str and rule_of(name) in ("plain", "watched")]


def guarded_eval(source: Any, globals: Any = None, locals: Any = None, /) -> Any:
    """The value of an expression, under the same policy as the cell."""
    if type(source) is not str:
        raise TypeError(f"eval() takes the text of an expression, not {type_name(type(source))!r}")
    tree = policy_tree(source.strip(), "<eval>")
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        raise SyntaxError("eval() takes one expression; exec() takes statements")
    code = compiled(ast.Expression(tree.body[0].value), "<eval>", "eval")
    return eval(code, run_space(globals, locals, caller_locals()))


def guarded_exec(source: Any, globals: Any = None, locals: Any = None, /) -> None:
    """Run statements under the same policy as the cell."""
    if type(source) is not str:
        raise TypeError(f"exec() takes the text of statements, not {type_name(type(source))!r}")
    code = compiled(policy_tree(source, "<exec>"), "<exec>", "exec")
    found = caller_locals()
    if globals is None and found is None:
        exec(code, state.globals)
        return
    space = run_space(globals, locals, found)
    before = dict(space)
    exec(code, space)
    target = locals if locals is not None else globals
    for name, value in space.items():
        if target is not None and name not in ("__builtins__", "__name__") and before.get(name, UNSET) is not value:
            target[name] = value


def run_space(globals: Any, locals: Any, found: dict[str, Any] | None) -> dict[str, Any]:
    """The variables for eval and exec: those of the caller, or copies of what it gave."""
    if globals is None and locals is None and found is None:
        return state.globals
    space = identifiers_of(state.globals if globals is None else globals)
    space.update(found if locals is None and globals is None and found else identifiers_of(locals or {}))
    return {**space, "__builtins__": state.builtins, "__name__": "__main__"}


def identifiers_of(given: Any) -> dict[str, Any]:
    """A copy of a namespace without names that no code could write: among those are the guards."""
    return {name: given[name] for name in given if type(name) is str and name.isidentifier()}


def not_here(name: str, instead: str) -> Callable[..., NoReturn]:
    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{name}() is not available here: {instead}")

    missing.__name__ = missing.__qualname__ = name
    return missing


def guarded_help(*topic: Any) -> None:
    """Print what is known of an object."""
    about = getattr(topic[0], "__doc__", None) if topic else None
    print(about if isinstance(about, str) else "no help on that")


# - the library: views of its modules, and guards in the globals of those that cells can call


class View:
    """A module as cells see it: its public names, none of which is another module."""

    def __init__(self, name: str, members: dict[str, Any]):
        if vars(self):
            raise TypeError("a view is made once")
        vars(self).update(members, __name__=f"view of {name}")  # a name that `import` finds in no `sys.modules`

    def public(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __getattr__(self, name: str) -> Any:
        module = vars(self)["__name__"].removeprefix("view of ")
        there = ", ".join(sorted(self.public())[:40])
        hint = MEMBER_HINTS.get(f"{module}.{name}") or f"there are: {there}"
        raise AttributeError(f"module {module!r} has no attribute {name!r} here; {hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{vars(self)['__name__'].removeprefix('view of ')!r} is shared and cannot be changed")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __dir__(self) -> list[str]:
        return sorted(self.public())

    def __repr__(self) -> str:
        return f"<{vars(self)['__name__']}>"


MODULES.append(View)


class SystemView(View):
    """`sys`, whose streams can be replaced for a while."""

    @property
    def stdout(self) -> Any:
        return sys.stdout

    @property
    def stderr(self) -> Any:
        return sys.stderr

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("stdout", "stderr"):
            super().__setattr__(name, value)
        setattr(sys, name, value)


PLAIN_MODULES = words(  # seen through a view of their public names
    "__future__ abc argparse array ast base64 binascii bisect calendar cmath collections collections.abc colorsys"
    " configparser contextlib contextvars copy csv dataclasses datetime decimal difflib email.header email.message"
    " email.utils enum fnmatch fractions functools graphlib hashlib heapq hmac html html.entities html.parser"
    " ipaddress itertools json json.decoder json.encoder keyword locale math numbers operator pprint queue quopri"
    " random re reprlib secrets shlex statistics string struct textwrap time tomllib typing unicodedata"
    " urllib.parse warnings weakref xml.etree.ElementTree zlib zoneinfo"
)
PARTIAL_MODULES = {  # of these only the names given
    "bz2": "compress decompress",
    "codecs": "encode decode BOM_UTF8 BOM_UTF16 BOM_UTF16_LE BOM_UTF16_BE BOM_UTF32 getincrementaldecoder",
    "email": "message_from_string message_from_bytes",
    "gc": "collect",
    "gzip": "compress decompress BadGzipFile",
    "inspect": "signature Signature Parameter cleandoc getdoc isfunction isclass ismethod isgenerator isbuiltin"
    " isgeneratorfunction isabstract ismodule",
    "lzma": "compress decompress LZMAError",
    "platform": "python_version python_version_tuple python_implementation system",
    "timeit": "default_timer",
    "types": "SimpleNamespace MappingProxyType GeneratorType FunctionType LambdaType MethodType BuiltinFunctionType"
    " NoneType EllipsisType NotImplementedType UnionType GenericAlias new_class resolve_bases prepare_class",
    "uuid": "UUID uuid3 uuid4 uuid5 NAMESPACE_DNS NAMESPACE_URL NAMESPACE_OID NAMESPACE_X500",
    "xml.dom.minidom": "parseString Document",
    "xml.sax.saxutils": "escape unescape quoteattr",
}
DENIED_MEMBERS = {
    "argparse": "FileType",
    "contextlib": "chdir",
    "enum": "global_enum global_enum_repr global_flag_repr global_str",
    "time": "clock_settime clock_settime_ns pthread_getcpuclockid tzset",
    "weakref": "WeakMethod finalize",
    "zoneinfo": "reset_tzpath TZPATH",
}
HINTS = {
    "asyncio": "async code does not run here; llm_query_batched(prompts) asks in parallel",
    "builtins": "the built-in functions are there without it",
    "ctypes": "there is no way to the machine from here",
    "httpx": "there is no network here; the host's functions are what reaches outside",
    "multiprocessing": "there is one process; llm_query_batched(prompts) asks in parallel",
    "pickle": "use json, or keep the value in a variable: variables live on between cells",
    "shutil": "the working folder is written with open, pathlib and os",
    "sqlite3": "use dicts and lists, or sorted() and itertools.groupby",
    "subprocess": "no other program can be run; write it in Python",
    "tempfile": "the working folder is private: open('name.txt', 'w') is enough",
    "_thread": "llm_query_batched(prompts) asks in parallel",
}
HINTS.update(
    dict.fromkeys(["requests", "urllib3", "socket", "http", "aiohttp", "urllib.request", "ssl"], HINTS["httpx"])
)
HINTS.update(dict.fromkeys(["marshal", "shelve", "dill"], HINTS["pickle"]))
LLM_HINT = "llm_query(prompt) asks a model; there is no network here"
PACKAGE_HINTS = {  # what does the work of packages that are not here unless the caller allows them
    "bs4": "use html.parser.HTMLParser, or re for a few tags",
    "chardet": "try data.decode('utf-8'), then 'cp1252'",
    "dateutil": "datetime.fromisoformat(s), or datetime.strptime(s, '%d %b %Y')",
    "docx": "context is text already",
    "jsonschema": "check keys and types with isinstance",
    "langchain": "chunks(text) cuts a text; llm_query(prompt) asks a model",
    "lxml": "import xml.etree.ElementTree as ET; ET.fromstring(text)",
    "matplotlib": "nothing shows plots here: print the numbers",
    "networkx": "use a dict of sets; graphlib.TopologicalSorter for an order",
    "nltk": "re.findall(r'\\w+', text) gives words, re.split(r'(?<=[.!?])\\s+', text) sentences",
    "numpy": "use lists, sum() and the modules statistics and math",
    "openai": LLM_HINT,
    "openpyxl": "context is text already: csv or splitlines()",
    "pandas": "for CSV: import csv; rows = list(csv.DictReader(context.splitlines()))",
    "pydantic": "use dataclasses or dicts",
    "pypdf": "context is text already",
    "pytz": "zoneinfo.ZoneInfo('Europe/Paris')",
    "rapidfuzz": "difflib.get_close_matches(word, words)",
    "regex": "import re",
    "scipy": "use the modules statistics and math",
    "simplejson": "import json",
    "sklearn": "count with collections.Counter; llm_query(prompt) sorts by meaning",
    "spacy": "re finds words and names; llm_query(prompt) understands text",
    "tabulate": "print(f'{name:<20}{value:>8}') for each row",
    "tiktoken": "len(text) // 4 is about the number of tokens",
    "tqdm": "iterate without it: nobody sees a bar",
    "yaml": "read simple lines with line.split(': ', 1); json where it is JSON",
}
PACKAGE_HINTS.update(
    dict.fromkeys(["anthropic", "google", "litellm", "ollama", "torch", "transformers", "tensorflow"], LLM_HINT),
    seaborn=PACKAGE_HINTS["matplotlib"],
    plotly=PACKAGE_HINTS["matplotlib"],
    polars=PACKAGE_HINTS["pandas"],
    arrow=PACKAGE_HINTS["dateutil"],
    fuzzywuzzy=PACKAGE_HINTS["rapidfuzz"],
    PyPDF2=PACKAGE_HINTS["pypdf"],
    ujson=PACKAGE_HINTS["simplejson"],
    orjson=PACKAGE_HINTS["simplejson"],
)
MEMBER_HINTS = {
    "os.system": HINTS["subprocess"],
    "os.popen": HINTS["subprocess"],
    "os.open": "open files with open(path), or read the caller's with file_read",
    "sys.settrace": "there is no tracing",
}


def module_view(name: str) -> View:
    """The view of a library module; its classes are frozen and its own globals guarded from then on."""
    import importlib

    module = importlib.import_module(name)
    shadow(name)
    freeze_new()
    if name in PARTIAL_MODULES:
        names = PARTIAL_MODULES[name].split()
    else:
        guards = ("open", "eval", "exec", "compile", "getattr", "setattr")
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_" and n not in guards]
    denied = DENIED_MEMBERS.get(name, "").split()
    members = {n: getattr(module, n) for n in names if hasattr(module, n) and n not in denied}
    public = {n: value for n, value in members.items() if type(value) is not ModuleType}
    return View(name, {**public, "__doc__": module.__doc__, **REPLACED.get(name, {})})


def shadow(name: str) -> None:
    """Put guards into a library module's own globals, where they come before the built-in functions."""
    space = vars(sys.modules[name])
    if not str(space.get("__file__", "")).endswith((".py", ".pyc")):
        return
    guards: dict[str, Any] = {"open": guarded_open, "eval": no_eval, "exec": no_eval, "compile": no_eval}
    if name == "typing":
        guards["compile"], guards["eval"] = compile_annotation, evaluate_annotation
    if name in ("ast", "collections"):  # the one parses, the other checks the names that it puts into its text
        guards = {"open": guarded_open}
    if name in words("ast contextlib dataclasses functools inspect operator reprlib types weakref"):
        guards["getattr"] = library_getattr
    if name == "argparse":
        guards["getattr"] = argparse_getattr
    if name == "enum":
        guards["getattr"] = enum_getattr
    if name == "string":
        guards["getattr"] = guarded_getattr
    if name in ("argparse", "ast", "contextlib", "functools"):
        guards["setattr"] = library_setattr
    if name == "dataclasses":
        guards["setattr"], guards["exec"] = dataclass_setattr, exec_generated
    for builtin, function in guards.items():
        space.setdefault(builtin, function)
    if name == "collections":
        space["UserString"].format = lambda self, /, *args, **named: expand(self.data, args, named)
        space["UserString"].format_map = lambda self, mapping: expand(self.data, (), mapping)
    if name == "xml.dom.minidom":
        load_and_save = sys.modules["xml.dom.xmlbuilder"]
        vars(load_and_save)["DOMBuilder"] = not_here("createDOMBuilder", "parseString(text) reads XML")  # it opens URLs
    if name == "copy" and space["_reconstruct"] is not reconstruct:
        state.reconstruct, space["_reconstruct"] = space["_reconstruct"], reconstruct


def no_eval(*args: Any, **kwargs: Any) -> NoReturn:
    raise NameError("library functions do not evaluate text here")


def compile_annotation(text: str, *ignored: Any, **more: Any) -> CodeType:
    """The code of an annotation that was written as text, under the policy."""
    tree = policy_tree(str.__str__(text).strip(), "<annotation>")
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        raise SyntaxError("an annotation is one expression")
    return compiled(ast.Expression(tree.body[0].value), "<annotation>", "eval")


def evaluate_annotation(code: Any, *ignored: Any, **more: Any) -> Any:
    """Its value among the cells' variables, whatever module the annotated object claims to be of."""
    if type(code) is not CodeType or code.co_filename != "<annotation>":
        no_eval()
    return eval(code, state.globals)


def library_getattr(target: Any, name: str, *default: Any) -> Any:
    """`getattr` for library code, which may be acting on names and objects that a cell gave it."""
    name = str.__str__(name)
    try:
        if (rule_of(name) == "refused" and name not in LIBRARY_READABLE) or is_out_of_reach(target, name):
            raise AttributeError(refusal_of(name))
        if name in ("__dict__", "format", "format_map", "obj", "parser"):
            return guard_get(target, name)
        return getattr(guard_own(target, name) if rule_of(name) == "private" else target, name)
    except AttributeError:
        if default:
            return default[0]
        raise


def is_out_of_reach(target: Any, name: str) -> bool:
    """Whether this is a real module, of which contextlib exchanges the streams in the name of a cell, and no more."""
    return type(target) is ModuleType and name not in ("stdout", "stderr")


def argparse_getattr(target: Any, name: str, *default: Any) -> Any:
    """The parser finds its own `_handle_conflict_...` by name; the rest are names that a cell gave."""
    if type(name) is str and name.startswith("_handle_conflict_"):
        return getattr(target, name)
    return library_getattr(target, name, *default)


def enum_getattr(target: Any, name: str, *default: Any) -> Any:
    """Making an enum fetches `__reduce_ex__`; what its property fetches, a subclass of a cell's may have named."""
    fetch_it = library_getattr if sys._getframe(1).f_code.co_name == "__get__" else getattr
    return fetch_it(target, name, *default)


def library_setattr(target: Any, name: str, value: Any) -> None:
    name = str.__str__(name)
    allowed = (name in LIBRARY_WRITABLE or store_rule_of(name) == "plain") and not is_out_of_reach(target, name)
    if not allowed and store_rule_of(name) == "private":
        allowed = guard_own(target, name) is target
    if not allowed:
        raise AttributeError(refusal_of(name))
    setattr(target, name, value)


def dataclass_setattr(target: Any, name: str, value: Any) -> None:
    """`setattr` for dataclasses, which give a class `__match_args__` only where it has none."""
    if name == "__match_args__" or name.startswith("__dataclass_"):
        setattr(target, name, value)
    else:
        library_setattr(target, name, value)


GENERATED_NODES = frozenset(
    words(
        "Module FunctionDef arguments arg Return Assign Attribute Name Load Store Call If Compare Tuple Set"
        " JoinedStr keyword FormattedValue Constant BinOp Add Expr Raise IfExp Is IsNot Eq NotEq In Lt LtE Gt GtE"
        " BoolOp Or And UnaryOp Not Pass"
    )
)
GENERATED_CALLS = re.compile(
    r"hash|type|super|FrozenInstanceError|_dflt_\w+|_?_?dataclass\w*|__dataclass\w*|_recursive_repr"
)


def exec_generated(text: str, globals: dict[str, Any], locals: dict[str, Any]) -> None:
    """`exec` for the methods that dataclasses write: field names cannot smuggle anything else into them."""
    for node in ast.walk(ast.parse(text)):
        if type(node).__name__ not in GENERATED_NODES:
            raise TypeError("a field's name is not an identifier")
        if isinstance(node, ast.Call):
            called = node.func
            by_name = isinstance(called, ast.Name) and GENERATED_CALLS.fullmatch(called.id)
            if not by_name and getattr(called, "attr", "") not in ("__setattr__", "__delattr__", "__post_init__"):
                raise TypeError("a field's name is not an identifier")
        if isinstance(node, ast.Attribute) and (node.attr in PERILOUS or node.attr in ("__dict__", "__getattribute__")):
            raise TypeError(refusal_of(node.attr))
        if isinstance(node, ast.Name) and rule_of(node.id) == "refused" and not node.id.startswith("__dataclass_"):
            raise TypeError(refusal_of(node.id))  # such as the built-in functions, guards and all
    exec(text, state.globals or globals, locals)  # never with a library module's names, nor its built-in functions


def reconstruct(original: Any, memo: Any, function: Any, args: Any, *rest: Any, **options: Any) -> Any:
    """`copy._reconstruct` for objects that say how they are copied: not into something of another kind."""

    def make(*given: Any) -> Any:
        made = function(*given)
        if type(made) is not type(original):
            raise TypeError("a copy must be of the same class as the original")
        return made

    return state.reconstruct(original, memo, make, args, *rest, **options)


def guarded_attrgetter(*names: str) -> Callable[[Any], Any]:
    def walk(target: Any, path: str) -> Any:
        for name in path.split("."):
            target = fetch(target, name)
        return target

    paths = [exact_name(name) for name in names]
    if not paths:
        raise TypeError("attrgetter expected at least 1 argument, got 0")
    if len(paths) == 1:
        return lambda target: walk(target, paths[0])
    return lambda target: tuple(walk(target, path) for path in paths)


def guarded_methodcaller(name: str, /, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    exact_name(name)
    return lambda target: fetch(target, name)(*args, **kwargs)


# - files


class File:
    """An open file, without a way to what it is made of."""

    __slots__ = ("_file",)

    def __init__(self, file: Any):
        self._file = file

    def __iter__(self) -> File:
        return self

    def __next__(self) -> Any:
        return next(self._file)

    def __enter__(self) -> File:
        self._file.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return f"<file {self.name!r} mode {self.mode!r}>"

    def fileno(self) -> int:
        raise io.UnsupportedOperation("descriptors are not handed out here")

    @property
    def name(self) -> str:
        return os.path.basename(str(self._file.name))

    @property
    def mode(self) -> str:
        return str(self._file.mode)

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    @property
    def encoding(self) -> str | None:
        return getattr(self._file, "encoding", None)


def delegate(name: str) -> Callable[..., Any]:
    def method(self: File, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._file, name)(*args, **kwargs)

    method.__name__ = name
    return method


for file_method in words(
    "read readline readlines write writelines seek tell flush close truncate readable writable seekable isatty readinto"
):
    setattr(File, file_method, delegate(file_method))


class Stream(io.TextIOBase):
    """What `print` writes to."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, target: Any):
        streams.setdefault(id(self), target)  # not an attribute, which a cell could reach

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not issubclass(type(text), str):
            raise TypeError(f"write() argument must be str, not {type_name(type(text))}")
        written: int = streams[id(self)].write(str.__str__(text))
        return written

    def flush(self) -> None:
        streams[id(self)].flush()

    def close(self) -> None:
        """Cells do not close what the next one prints to."""


streams: dict[int, Any] = {}


def path_text(path: Any) -> str:
    """A path as a plain string, whatever it was given as."""
    if type(path) is int or issubclass(type(path), (bytes, bool)):
        raise TypeError(f"a file is named by a str or Path here, not {type_name(type(path))!r}")
    return str.__str__(os.fspath(path))


def guarded_open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *ignored: Any,
    **more: Any,
) -> Any:
    """`open` within the working folder, and for reading in the folders that the caller has given."""
    mode = str.__str__(mode)
    if "b" not in mode:
        encoding = encoding or "utf-8"
    return File(state.files.open(path_text(file), mode, buffering, encoding, errors, newline))


def stat_of(path: Any) -> os.stat_result:
    result: os.stat_result = state.files.stat(path_text(path))
    return result


def is_kind(test: Callable[[int], bool]) -> Callable[[Any], bool]:
    def check(path: Any) -> bool:
        try:
            return test(stat_of(path).st_mode)
        except (OSError, ValueError):
            return False

    return check


def list_folder(path: Any = ".") -> list[str]:
    """The names in a folder, the cells' own and the caller's."""
    return list(state.files.entries(path_text(path)))


def walk_folders(top: Any = ".", *ignored: Any, **more: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    base = path_text(top)
    entries = state.files.entries(base)
    folders = [name for name, is_folder in entries.items() if is_folder]
    yield base, folders, [name for name, is_folder in entries.items() if not is_folder]
    for folder in folders:
        yield from walk_folders(os.path.join(base, folder))


def find_files(pattern: Any, *ignored: Any, recursive: bool = False, **more: Any) -> list[str]:
    """`glob.glob` over what a cell may read."""
    import fnmatch

    text = path_text(pattern)
    base, rest = os.path.split(text)
    deep = "**" in text
    if deep:
        base, rest = text.split("**", 1)[0].rstrip("/"), text.rsplit("/", 1)[-1]
    found = []
    for folder, _, names in walk_folders(base or "."):
        found += [os.path.join(folder, name) for name in fnmatch.filter(names, rest)]
        if not deep:
            break
    return sorted(os.path.normpath(path) for path in found)


exists_file, exists_folder, exists = is_kind(stat.S_ISREG), is_kind(stat.S_ISDIR), is_kind(lambda mode: True)


def in_scratch(function: Callable[..., Any], paths: int = 1) -> Callable[..., None]:
    """A function of `os` that changes files, for the working folder."""

    def change(*args: Any, exist_ok: bool = False, **ignored: Any) -> None:
        real = [state.files.writable(path_text(path)) for path in args[:paths]]
        function(*real, exist_ok=True) if exist_ok else function(*real)

    change.__name__ = function.__name__
    return change


def path_class() -> type:
    """`pathlib.Path` for what a cell may read and write."""
    import pathlib

    class Path(pathlib.PurePosixPath):
        __slots__ = ()

        def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return guarded_open(self, mode, *args, **kwargs)

        def read_text(self, encoding: str | None = None, errors: str | None = None) -> Any:
            with guarded_open(self, "r", -1, encoding, errors) as file:
                return file.read()

        def read_bytes(self) -> Any:
            with guarded_open(self, "rb") as file:
                return file.read()

        def write_text(self, data: str, encoding: str | None = None, *args: Any, **kwargs: Any) -> Any:
            with guarded_open(self, "w", -1, encoding) as file:
                return file.write(data)

        def write_bytes(self, data: bytes) -> Any:
            with guarded_open(self, "wb") as file:
                return file.write(data)

        def iterdir(self) -> Any:
            return (self / name for name in list_folder(self))

        def glob(self, pattern: str) -> Any:
            return (type(self)(path) for path in find_files(os.path.join(path_text(self), pattern)))

        def rglob(self, pattern: str) -> Any:
            return self.glob("**/" + pattern)

        @classmethod
        def cwd(cls) -> Any:
            return cls(".")

        def resolve(self, strict: bool = False) -> Any:
            return type(self)(os.path.normpath(path_text(self)))

        def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
            make_folders(self, exist_ok=exist_ok)

        def touch(self, *args: Any, **kwargs: Any) -> None:
            guarded_open(self, "a").close()

        def unlink(self, missing_ok: bool = False) -> None:
            if not missing_ok or exists(self):
                remove_file(self)

        def rename(self, target: Any) -> Any:
            rename_file(self, target)
            return type(self)(target)

        exists, is_file, is_dir, stat, rmdir = exists, exists_file, exists_folder, stat_of, in_scratch(os.rmdir)
        absolute = expanduser = resolve

    Path.__module__, Path.__qualname__ = "pathlib", "Path"
    return Path


make_folders, remove_file = in_scratch(os.makedirs), in_scratch(os.remove)
rename_file = in_scratch(os.replace, paths=2)


# - stand-ins for modules that are made of what cells may not have


class Future:
    """A task of an executor below: it runs when its result, or that of a later one, is first asked for."""

    def __init__(self, executor: Executor, task: Callable[[], Any]):
        self._executor, self._task = executor, task
        self._outcome: tuple[bool, Any] | None = None
        self._callbacks: list[Callable[[Future], Any]] = []

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._executor._run()
        ok, value = self._outcome or (False, RuntimeError("the task did not run"))
        return None if ok else value

    def result(self, timeout: float | None = None) -> Any:
        problem = self.exception()
        if problem is not None:
            raise problem
        return self._outcome[1] if self._outcome else None

    def done(self) -> bool:
        return self._outcome is not None

    def running(self) -> bool:
        return False

    cancelled = running

    def cancel(self) -> bool:
        return False

    def add_done_callback(self, function: Callable[[Future], Any]) -> None:
        self._callbacks.append(function)
        if self.done():
            self._finish()

    def _finish(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for function in callbacks:
            function(self)


class Executor:
    """`concurrent.futures` without threads: tasks run in the order they came, and their host calls overlap."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._waiting: list[Future] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future = Future(self, functools.partial(function, *args, **kwargs))
        self._waiting.append(future)
        return future

    def map(self, function: Callable[..., Any], *iterables: Any, timeout: Any = None, chunksize: int = 1) -> Any:
        futures = [self.submit(function, *args) for args in zip(*iterables)]
        return (future.result() for future in futures)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._run()

    def _run(self) -> None:
        futures, self._waiting = self._waiting, []
        for future, outcome in zip(futures, run_together([future._task for future in futures])):
            future._outcome = outcome
            future._finish()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._run()


def as_completed(futures: Any, timeout: float | None = None) -> Iterator[Future]:
    for future in list(futures):
        future.exception()
        yield future


DoneAndNotDone = collections.namedtuple("DoneAndNotDone", ["done", "not_done"])


def wait_for_futures(futures: Any, timeout: float | None = None, return_when: str = "ALL_COMPLETED") -> Any:
    done = set(as_completed(futures))
    return DoneAndNotDone(done, set())


logging_settings: dict[str, Any] = {"level": 30, "format": "%(levelname)s:%(name)s:%(message)s"}
LEVELS = {"NOTSET": 0, "DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class Logger:
    """As much of `logging` as prints."""

    def __init__(self, name: str = "root"):
        self.name = name
        self.level: int | None = None

    def setLevel(self, level: Any) -> None:
        self.level = LEVELS.get(level, 0) if type(level) is str else level

    def isEnabledFor(self, level: int) -> bool:
        return level >= (logging_settings["level"] if self.level is None else self.level)

    def log(self, level: int, message: Any, *args: Any, exc_info: Any = None, **ignored: Any) -> None:
        if not self.isEnabledFor(level):
            return
        name = next((name for name, number in LEVELS.items() if number == level), f"Level {level}")
        text = str(message) % args if args else str(message)
        asctime = time.strftime("%Y-%m-%d %H:%M:%S")
        record = {"levelname": name, "levelno": level, "name": self.name, "message": text, "asctime": asctime}
        try:
            line = logging_settings["format"] % record
        except (KeyError, ValueError, TypeError):
            line = f"{name}:{self.name}:{text}"
        print(line, file=sys.stderr)
        if exc_info:
            print(recent_traceback(), file=sys.stderr)

    def debug(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(10, message, *args, **more)

    def info(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(20, message, *args, **more)

    def warning(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(30, message, *args, **more)

    def error(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(40, message, *args, **more)

    def critical(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(50, message, *args, **more)

    def exception(self, message: Any, *args: Any, **more: Any) -> None:
        self.log(40, message, *args, **{"exc_info": True, **more})

    def addHandler(self, handler: Any) -> None:
        """All that is logged is printed."""

    removeHandler = addFilter = addHandler


class Handler:
    """Accepted wherever `logging` takes a handler or formatter, and without effect."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.given = args

    def setLevel(self, level: Any) -> None:
        """All that is logged is printed."""

    setFormatter = addFilter = setLevel


loggers: dict[str, Logger] = {}


def get_logger(name: str | None = None) -> Logger:
    return loggers.setdefault(name or "root", Logger(name or "root"))


def configure_logging(*, level: Any = None, format: str | None = None, **ignored: Any) -> None:
    if level is not None:
        logging_settings["level"] = LEVELS.get(level, 0) if type(level) is str else level
    if format is not None and "{" not in format:
        logging_settings["format"] = str.__str__(format)


def logging_members() -> dict[str, Any]:
    root = get_logger()
    names = words("debug info warning error critical exception log")
    members: dict[str, Any] = {name: getattr(root, name) for name in names}
    members.update({"getLogger": get_logger, "basicConfig": configure_logging, "Logger": Logger, "WARN": 30, **LEVELS})
    members.update(dict.fromkeys(["Handler", "StreamHandler", "NullHandler", "Formatter"], Handler))
    return {**members, "disable": not_here("logging.disable", "use setLevel"), "getLevelName": level_name}


def level_name(level: int) -> str:
    return next((name for name, number in LEVELS.items() if number == level), f"Level {level}")


def recent_traceback(*ignored: Any) -> str:
    """`traceback.format_exc`: the cells' own lines only."""
    problem = sys.exc_info()[1]
    return format_traceback(problem, state.sources) + "\n" if problem is not None else "NoneType: None\n"


def shown_exception(*given: Any, **ignored: Any) -> list[str]:
    problem = given[1] if len(given) > 1 else given[0]
    return [format_traceback(problem, state.sources) + "\n"]


def traceback_members() -> dict[str, Any]:
    def print_exc(limit: Any = None, file: Any = None, chain: bool = True) -> None:
        print(recent_traceback(), end="", file=file or sys.stderr)

    def print_exception(*given: Any, file: Any = None, **ignored: Any) -> None:
        print(*shown_exception(*given), sep="", end="", file=file or sys.stderr)

    def format_exception_only(*given: Any) -> list[str]:
        return [shown_exception(*given)[0].splitlines()[-1] + "\n"]

    return {
        "format_exc": recent_traceback,
        "print_exc": print_exc,
        "format_exception": shown_exception,
        "format_exception_only": format_exception_only,
        "print_exception": print_exception,
    }


def threading_members() -> dict[str, Any]:
    names = words("Lock RLock Condition Semaphore BoundedSemaphore Event Barrier local get_ident")
    threads = not_here(
        "threading.Thread", "llm_query_batched(prompts) asks in parallel, and concurrent.futures overlaps host calls"
    )
    return {**{name: getattr(threading, name) for name in names}, "Thread": threads, "Timer": threads}


def futures_members() -> dict[str, Any]:
    waits = {name: name for name in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION")}
    pools = {"ThreadPoolExecutor": Executor, "ProcessPoolExecutor": Executor, "Executor": Executor}
    return {
        **waits,
        **pools,
        "Future": Future,
        "as_completed": as_completed,
        "wait": wait_for_futures,
        "TimeoutError": TimeoutError,
    }


def path_members() -> dict[str, Any]:
    names = "join split splitext splitdrive basename dirname normpath isabs commonprefix commonpath relpath sep extsep"
    members = {name: getattr(os.path, name) for name in names.split()}
    members.update(exists=exists, isfile=exists_file, isdir=exists_folder, islink=lambda path: False)
    members.update(dict.fromkeys(["abspath", "realpath", "expanduser"], os.path.normpath))
    return {**members, "getsize": lambda path: stat_of(path).st_size, "getmtime": lambda path: stat_of(path).st_mtime}


def os_members() -> dict[str, Any]:
    names = "sep linesep extsep curdir pardir pathsep altsep name fspath urandom PathLike strerror error"
    members = {name: getattr(os, name) for name in names.split()}
    environment: dict[str, str] = {}
    members.update(path=view_of("os.path"), environ=environment, getenv=environment.get, listdir=list_folder)
    members.update(walk=walk_folders, stat=stat_of, getcwd=lambda: ".", getpid=lambda: 1, cpu_count=lambda: 1)
    members.update(mkdir=in_scratch(os.mkdir), makedirs=make_folders, rmdir=in_scratch(os.rmdir), remove=remove_file)
    return {**members, "unlink": remove_file, "rename": rename_file, "replace": rename_file}


def sys_members() -> dict[str, Any]:
    names = (
        "version version_info maxsize maxunicode byteorder hexversion float_info int_info hash_info platform exc_info"
    )
    names += (
        " getsizeof getrefcount intern getrecursionlimit getdefaultencoding exit api_version copyright implementation"
    )
    names += " exception set_int_max_str_digits get_int_max_str_digits"
    members = {name: getattr(sys, name) for name in names.split() if hasattr(sys, name)}
    unset: dict[str, Any] = {"argv": [""], "path": [], "modules": {}, "executable": "", "stdin": io.StringIO()}
    return {**members, **unset, "setrecursionlimit": limit_recursion}


def limit_recursion(limit: int) -> None:
    """`sys.setrecursionlimit`, within what the C stack bears."""
    sys.setrecursionlimit(min(max(int(limit), 1000), 10_000))


def io_members() -> dict[str, Any]:
    names = "StringIO BytesIO TextIOWrapper BufferedReader TextIOBase IOBase RawIOBase BufferedIOBase"
    names += " UnsupportedOperation SEEK_SET SEEK_CUR SEEK_END DEFAULT_BUFFER_SIZE"
    members = {name: getattr(io, name) for name in names.split()}
    return {**members, "open": guarded_open}


@contextlib.contextmanager
def catch_warnings(*, record: bool = False, **options: Any) -> Iterator[Any]:
    """`warnings.catch_warnings`, whose own instances hold the module."""
    import warnings

    with warnings.catch_warnings(record=record, **options) as caught:
        yield caught


STAND_INS: dict[str, Callable[[], dict[str, Any]]] = {
    "concurrent.futures": futures_members,
    "glob": lambda: {"glob": find_files, "iglob": lambda *args, **more: iter(find_files(*args, **more))},
    "io": io_members,
    "logging": logging_members,
    "os": os_members,
    "os.path": path_members,
    "pathlib": lambda: dict.fromkeys(["Path", "PosixPath"], path_class()) | pure_paths(),
    "sys": sys_members,
    "threading": threading_members,
    "traceback": traceback_members,
}
REPLACED: dict[str, dict[str, Any]] = {
    "codecs": {"open": guarded_open},
    "operator": {"attrgetter": guarded_attrgetter, "methodcaller": guarded_methodcaller},
    "warnings": {"catch_warnings": catch_warnings},
}


def pure_paths() -> dict[str, Any]:
    import pathlib

    return {name: getattr(pathlib, name) for name in ("PurePath", "PurePosixPath", "PureWindowsPath")}


# - imports


def view_of(name: str) -> View:
    """The view of a module that cells may import, with those of its parents; ImportError for any other."""
    if name in state.views:
        return state.views[name]
    if name in STAND_INS:
        members = STAND_INS[name]()
        freeze()
        view = SystemView(name, members) if name == "sys" else View(name, members)
    elif name in PLAIN_MODULES or name in PARTIAL_MODULES:
        view = library_view(name)
    elif any(known.startswith(name + ".") for known in (*PLAIN_MODULES, *PARTIAL_MODULES, *STAND_INS)):
        view = View(name, {})
    else:
        raise no_module(name)
    state.views[name] = view
    parent, _, child = name.rpartition(".")
    if parent:
        vars(view_of(parent))[child] = view
    for part in ("collections.abc", "html.entities", "os.path", "json.decoder"):
        if part.rpartition(".")[0] == name:
            vars(view)[part.rpartition(".")[2]] = view_of(part)
    return view


def library_view(name: str) -> View:
    try:
        return module_view(name)
    except ModuleNotFoundError:  # newer than this Python
        raise no_module(name) from None


def no_module(name: str) -> ImportError:
    top = name.partition(".")[0]
    hint = HINTS.get(name) or HINTS.get(top)
    if top in PACKAGE_HINTS:
        hint = f"{PACKAGE_HINTS[top]} (the caller can add {top} with allowed_imports)"
    elif not hint:
        there = sorted({known.partition(".")[0] for known in (*PLAIN_MODULES, *PARTIAL_MODULES, *STAND_INS)})
        there = [known for known in (*state.allowed, *there) if known not in ("__future__", "gc", "email")]
        hint = f"there are: {', '.join(there)}. The caller can add others with allowed_imports"
    return ModuleNotFoundError(f"no module {name!r} here; {hint}", name=name)


def import_for_statement(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """What an import statement calls, and C code on its behalf (which passes a list, and uses only `sys.modules`)."""
    import importlib

    if level:
        raise ImportError("relative imports have no package to start from here")
    if type(fromlist) is list:
        if name not in sys.modules and name.partition(".")[0] not in (*state.allowed, "_strptime"):
            raise no_module(name)
        importlib.import_module(name)
        return None
    if name.partition(".")[0] in state.allowed:
        module = importlib.import_module(name)
        return module if fromlist else sys.modules[name.partition(".")[0]]
    view = view_of(name)
    for wanted in fromlist or ():
        if wanted != "*":
            require_member(name, view, wanted)
    return view if fromlist else view_of(name.partition(".")[0])


def require_member(name: str, view: View, wanted: str) -> None:
    """See that `from name import wanted` finds it in the view: Python would look for a real module next."""
    if wanted in vars(view):
        return
    try:
        view_of(f"{name}.{wanted}")
    except ImportError as problem:
        try:
            getattr(view, wanted)
        except AttributeError as missing:
            raise ImportError(f"cannot import name {wanted!r}: {missing}", name=name) from None
        raise problem


def guarded_import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """`__import__` as a function."""
    names = tuple(item for item in fromlist or () if type(item) is str and not item.startswith("_"))
    return import_for_statement(exact_name(name), None, None, names, level)


# - a session


def policy_preload(allowed_imports: tuple[str, ...] = ()) -> None:
    """Prepare what all sessions of this process and its forks share: guarded library modules, frozen classes."""
    state.allowed = tuple(name.partition(".")[0] for name in allowed_imports)
    transformer_class()
    __import__("_strptime")  # what C code imports on behalf of a cell has to be there
    import linecache

    linecache.updatecache = lambda *ignored: []  # warnings would show lines of any file
    if not state.views:
        state.modules_seen = len(sys.modules)  # all at once, afterwards
        for name in ("collections", "copy", "dataclasses", "enum", "functools", "re", "string", "typing"):
            view_of(name)
        freeze()
    freeze_new()


def policy_globals(
    functions: dict[str, Any], *, files: Any, allowed_imports: tuple[str, ...], stdout: Any
) -> dict[str, Any]:
    """The variables that a session starts with. This changes the process, which from then on serves that session."""
    policy_preload(allowed_imports)
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    state.files, state.globals, state.builtins = files, vars(main), session_builtins()
    sys.stdout = sys.stderr = state.stream = Stream(stdout)
    sys.stdin = io.StringIO()  # what shlex reads by itself: a real file leads to all others
    vars(main).update(functions, __builtins__=state.builtins)
    return vars(main)


def session_builtins() -> dict[str, Any]:
    """The built-in functions, and the guards under names that no code can write."""
    kept = {name: value for name, value in vars(builtins).items() if not name.startswith("_")}
    kept.update(
        open=guarded_open,
        getattr=guarded_getattr,
        hasattr=guarded_hasattr,
        setattr=guarded_setattr,
        delattr=guarded_delattr,
        globals=guarded_globals,
        locals=guarded_locals,
        vars=guarded_vars,
        dir=guarded_dir,
        eval=guarded_eval,
        exec=guarded_exec,
        help=guarded_help,
        compile=not_here("compile", "eval(text) and exec(text) run code under the same rules"),
        input=not_here("input", "nobody is there to answer"),
        breakpoint=not_here("breakpoint", "print what you want to see"),
    )
    kept.update(dict.fromkeys(["exit", "quit"], sys.exit))
    kept.update({"__import__": import_for_statement, "__build_class__": build_class, "__debug__": True})
    guards = {"own": guard_own, "get": guard_get, "match": guard_match, "import": guarded_import}
    kept.update({"~" + name: function for name, function in guards.items()})
    return {**kept, "~type": type, "~pure": pure.get}


# - errors


def format_traceback(error: BaseException, sources: dict[str, str]) -> str:
    """An exception as Python shows it, of the cells' own lines only."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    link = ""
    while current is not None and id(current) not in seen and len(parts) < 9:
        seen.add(id(current))
        parts += [link, one_traceback(current, sources)] if parts else [one_traceback(current, sources)]
        link = LINK_CONTEXT if current.__cause__ is None else LINK_CAUSE
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(reversed(parts))


LINK_CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
LINK_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n"


def one_traceback(error: BaseException, sources: dict[str, str]) -> str:
    lines = []
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename in sources:
            frames.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    if frames:
        lines.append("Traceback (most recent call last):")
    for filename, number, name in frames[:10]:
        lines += frame_lines(filename, number, name, sources)
    if len(frames) > 20:
        lines.append(f"  [... {len(frames) - 20} more calls ...]")
    for filename, number, name in frames[max(10, len(frames) - 10) :]:
        lines += frame_lines(filename, number, name, sources)
    if isinstance(error, SyntaxError) and error.lineno and error.filename in (*sources, "<eval>", "<exec>"):
        lines += syntax_lines(error)
        message = str(error.msg)
    else:
        message = text_of(error)
    notes = [str.__str__(note) for note in getattr(error, "__notes__", None) or () if issubclass(type(note), str)]
    return "\n".join([*lines, type_name(type(error)) + (": " + message if message else ""), *notes[:10]])


def frame_lines(filename: str, number: int, name: str, sources: dict[str, str]) -> list[str]:
    lines = sources[filename].splitlines()
    shown = [f'  File "{filename}", line {number}, in {name}']
    if 0 < number <= len(lines) and lines[number - 1].strip():
        shown.append("    " + lines[number - 1].strip()[:500])
    return shown


def syntax_lines(error: SyntaxError) -> list[str]:
    text = (error.text or "").rstrip("\n")
    shown = [f'  File "{error.filename}", line {error.lineno}']
    if text.strip():
        shown.append("    " + text.strip()[:500])
        column = (error.offset or 0) - 1 - (len(text) - len(text.lstrip()))
        if 0 <= column < 500:
            shown.append("    " + " " * column + "^")
    return shown


# - what the worker is given


class PolicyLanguage:
    """Python under this policy, as the worker uses it."""

    def __init__(self, setup: dict[str, Any]):
        self.setup = setup

    def compile(self, source: str, filename: str) -> tuple[CodeType, CodeType | None]:
        return policy_compile(source, filename)

    def namespace(self, functions: dict[str, Any], stdout: Any, files: Files) -> dict[str, Any]:
        allowed = tuple(self.setup["allowed_imports"])
        return policy_globals(functions, files=files, allowed_imports=allowed, stdout=stdout)

    def traceback(self, error: BaseException, sources: dict[str, str]) -> str:
        return format_traceback(error, sources)
