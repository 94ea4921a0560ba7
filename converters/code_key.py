"""What the code of a conversion does, as a checksum.

An edited comment, docstring, layout or annotation of a function keeps it, an edited constant
changes it, and code that the conversion does not import has no part in it.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType

FOLLOWED = ("converters", "modelspec")  # packages whose imports are followed


@cache
def code_sha256(*modules: str) -> str:
    """SHA-256 over these modules and what they import of ``FOLLOWED``, inside functions too."""
    sources: dict[str, tuple[CodeType, frozenset[str]]] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in sources:
            continue
        sources[name] = _compiled(name)
        package = name.rpartition(".")[0]
        pending += [*sources[name][1], *([package] if package else [])]
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode())
        for part in _parts(sources[name][0]):
            digest.update(part)
    return digest.hexdigest()


def file_code_sha256(path: Path) -> str:
    """SHA-256 over what the code of one file does; SyntaxError if it is not Python."""
    digest = hashlib.sha256()
    for part in _parts(_without_docstrings(ast.parse(path.read_bytes()), path.stem)):
        digest.update(part)
    return digest.hexdigest()


@cache
def _compiled(module: str) -> tuple[CodeType, frozenset[str]]:
    """The code of a module without docstrings, and the modules that it imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source of the module {module}")
    tree = ast.parse(Path(spec.origin).read_bytes())
    return _without_docstrings(tree, module), frozenset(_imported(tree))


def _without_docstrings(tree: ast.Module, name: str) -> CodeType:
    """The compiled code, without the annotations of functions and imports that only they need;
    ``name`` is in it in place of a path, so every checkout has the same."""
    return compile(_WithoutAnnotations().visit(tree), name, "exec", optimize=2)


class _WithoutAnnotations(ast.NodeTransformer):
    """Those of a class stay: they are a dataclass's fields."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        node.body = [
            statement
            for statement in node.body
            if not (isinstance(statement, ast.ImportFrom) and statement.module == "typing")
        ]
        return self.generic_visit(node)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_followed(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_followed(node.module):
            yield node.module
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if _is_module(name))
        yield from _imported(node)


def _is_followed(module: str) -> bool:
    return module.partition(".")[0] in FOLLOWED


@cache
def _is_module(name: str) -> bool:
    """Whether a name in a package is a module of it; the package itself is imported to find out."""
    package = importlib.util.find_spec(name.rpartition(".")[0])
    if package is None or package.submodule_search_locations is None:
        return False
    return importlib.util.find_spec(name) is not None


def _parts(code: CodeType) -> Iterator[bytes]:
    """Everything of ``code`` but where it is written."""
    yield code.co_code
    yield code.co_exceptiontable
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    yield repr((names, counts)).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
        else:
            yield f"{type(constant).__name__} {_text(constant)}".encode(errors="surrogatepass")


def _text(constant: object) -> str:
    """A set's order differs from process to process."""
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
