"""The house style, executable. Each failure names its remedy; the reasons are in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "engine"

# A module imports only from modules above it. ARCHITECTURE.md has the same list with what each owns.
LAYERS = [
    "errors",
    "limits",
    "results",
    "events",
    "wire",
    "proxy",
    "_fastparse",
    "exchange",
    "_bodysend",
    "_tls",
    "tls",
    "connection",
    "tls_connection",
    "pool",
    "body",
    "signing",
    "credentials",
    "checksums",
    "hashing",
    "s3",
    "redirect",
    "retry",
    "config",
    "sinks",
    "request",
    "client",
    "sandbox",
    "cli",
]
# Part of the command line, in this order below cli; not layers of the engine.
CLI_PARTS = ["arguments", "display", "interrupt", "explain", "demo"]
ORDER = LAYERS[:-1] + CLI_PARTS + LAYERS[-1:]

PURE = ["wire", "exchange", "redirect", "retry", "signing", "s3"]
IMPURE_IMPORTS = {"asyncio", "socket", "os", "time", "threading", "subprocess", "selectors", "uvloop"}

FUNCTION_LINES_MAX = 70

# Tested by the test of another module, which is named here.
TESTED_ELSEWHERE = {
    "hashing": "test_client.py",
    "sinks": "test_client.py",
    "__main__": "test_cli.py",
    "arguments": "test_cli.py",
    "explain": "test_cli.py",
    "interrupt": "test_cli.py",
    "tls_connection": "test_tls.py",
}

MODULES = sorted(ENGINE.glob("*.py"))
PYTHON = [
    ROOT / "setup.py",
    *(path for folder in ("engine", "tests", "bench", "tools") for path in sorted((ROOT / folder).rglob("*.py"))),
]
TEXT = sorted(
    {
        *PYTHON,
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        *ROOT.glob(".ci/*"),
        ROOT / "Makefile",
        *(
            path
            for folder in ("engine", "tests", "bench", "docs", "tools")
            for suffix in ("md", "pyx", "pxd", "pyi", "h", "c", "sh", "json", "conf", "txt", "allow")
            for path in (ROOT / folder).rglob(f"*.{suffix}")
            if not (path.suffix == ".c" and path.with_suffix(".pyx").exists())
        ),
    }
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of each import that runs: those under TYPE_CHECKING don't."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        else:
            yield from imported(node)


def layer_imports(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imported(parsed(path)):
        parts = name.split(".")
        if parts[0] == "engine" and len(parts) > 1 and parts[1] in ORDER:
            yield line, parts[1]


# --- layout ---------------------------------------------------------------------------------------------------------


def test_every_module_has_its_place() -> None:
    names = {path.stem for path in MODULES} | {path.stem for path in ENGINE.glob("*.pyx")}
    names |= {path.parent.name for path in ENGINE.glob("*/__init__.py")}
    homeless = names - set(ORDER) - {"__init__", "__main__"}
    assert not homeless, f"put {sorted(homeless)} into LAYERS (tests/test_tidy.py) and into ARCHITECTURE.md's table"
    assert not set(LAYERS) - names, "LAYERS names modules which are not there"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards_only(path: Path) -> None:
    if path.stem in ("__init__", "__main__"):
        return
    mine = ORDER.index(path.stem)
    for line, name in layer_imports(path):
        assert ORDER.index(name) < mine, (
            f"{name_of(path)}:{line} imports {name}, which is below it. Move what both need up, pass it as an argument, "
            "or describe it as a Protocol as body.Wire does"
        )


def test_the_sandbox_shares_nothing_with_the_engine() -> None:
    # It judges the engine's requests: with the engine's own parser or signer both could be wrong in the same way.
    for path in sorted((ENGINE / "sandbox").glob("*.py")):
        for line, name in layer_imports(path):
            assert name in ("errors", "signing", "sandbox"), (
                f"{name_of(path)}:{line} imports engine.{name}; write what it needs anew"
            )
        taken = {name.removeprefix("engine.signing.") for _, name in imported(parsed(path)) if "signing." in name}
        taken |= {
            node.attr
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "signing"
        }
        assert taken <= {"Credentials"}, f"{name_of(path)}: takes {taken} of engine.signing; only the value is shared"


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_no_io(name: str) -> None:
    for line, module in imported(parsed(ENGINE / f"{name}.py")):
        assert module.split(".")[0] not in IMPURE_IMPORTS, (
            f"engine/{name}.py:{line} imports {module}: let the caller pass time, bytes or addresses in"
        )


def test_the_layers_are_those_of_architecture_md() -> None:
    table = re.findall(r"^\| (`.+?) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    shown = [
        name.removesuffix(".py").removesuffix(".pyx").rstrip("/") for name in re.findall(r"`(.+?)`", " ".join(table))
    ]
    assert sorted(shown) == sorted(LAYERS), "remedy: the table in ARCHITECTURE.md"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_its_tests(path: Path) -> None:
    if path.stem == "__init__":
        return
    expected = ROOT / "tests" / TESTED_ELSEWHERE.get(path.stem, f"test_{path.stem}.py")
    assert expected.exists(), f"write {name_of(expected)}, or say in TESTED_ELSEWHERE what tests {path.stem}"


@pytest.mark.parametrize("path", sorted(ENGINE.glob("*.pyx")), ids=name_of)
def test_every_extension_has_stubs_and_tests(path: Path) -> None:
    assert path.with_suffix(".pyi").exists(), f"write {path.stem}.pyi; make check compares it with the module"
    assert (ROOT / "tests" / f"test_{path.stem.lstrip('_')}.py").exists(), (
        f"write tests/test_{path.stem.lstrip('_')}.py"
    )


# --- text -----------------------------------------------------------------------------------------------------------

# Put together from pieces, so that this file does not find itself.
LEFTOVERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
WORKPLACE = re.compile(
    "|".join(
        [
            r"/wo" + r"rk/",
            r"/ro" + r"ot/",
            r"/ho" + r"me/\w",
            r"/opt/p" + r"ypi",
            r"\.mir" + r"ror/",
            r"\.lib" + r"rary/",
        ]
    )
)
REAL_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE " + r"KEY-----")


@pytest.mark.parametrize("path", TEXT, ids=name_of)
def test_text_is_tidy(path: Path) -> None:
    text = path.read_bytes().decode("utf-8")
    lines = text.splitlines()
    name = name_of(path)
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        assert not LEFTOVERS.search(line), f"{where}: do it, or open an issue, and take the note out"
        assert not WORKPLACE.search(line), (
            f"{where}: a path of one machine; take it from the environment or make it relative"
        )
        assert not PRIVATE_KEY.search(line), f"{where}: make keys when the test runs"
        for key in REAL_ACCESS_KEY.findall(line):
            made_up = "EXAMPLE" in key or len(set(key[4:])) <= 6  # 16 random characters have 12 different ones
            assert made_up, f"{where}: looks like a real access key; use AKIAIOSFODNN7EXAMPLE"
    if "vectors" in path.parts:
        return  # bytes as they are
    assert "\r" not in text, f"{name}: write line ends as \\n"
    assert text.endswith("\n") or not text, f"{name}: end the last line"
    assert path.suffix in (".md",) or path.name == "Makefile" or "\t" not in text, f"{name}: indent with spaces"
    trailing = [number for number, line in enumerate(lines, 1) if line != line.rstrip()]
    assert not trailing, f"{name}: white space at the end of lines {trailing}"


# --- Python ---------------------------------------------------------------------------------------------------------


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for function in functions(parsed(path)):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, (
            f"{name_of(path)}:{function.lineno} {function.name} has {lines} lines, at most {FUNCTION_LINES_MAX}: name its parts"
        )


@pytest.mark.parametrize("path", sorted(ENGINE.glob("*.pyx")), ids=name_of)
def test_cython_functions_are_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"\s*(?:async )?(?:def|cdef|cpdef)\b.*\(.*", line)]
    for start in starts:
        indent = len(lines[start]) - len(lines[start].lstrip())
        end = start + 1
        while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
            end += 1
        body = "\n".join(lines[start:end]).rstrip()
        count = body.count("\n") + 1
        assert count <= FUNCTION_LINES_MAX, f"{name_of(path)}:{start + 1} has {count} lines: name its parts"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_modules_say_what_they_own(path: Path) -> None:
    tree = parsed(path)
    assert not tree.body or ast.get_docstring(tree), (
        f"{name_of(path)}: write a module docstring: what it owns, what it must not know"
    )


MAY_PRINT = {f"engine/{name}.py" for name in ("cli", "display", "explain", "demo")} | {"engine/sandbox/__init__.py"}


@pytest.mark.parametrize("path", [*MODULES, *sorted((ENGINE / "sandbox").glob("*.py"))], ids=name_of)
def test_the_engine_neither_prints_nor_stops_in_a_debugger(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "breakpoint", f"{name_of(path)}:{node.lineno}: take breakpoint() out"
            assert node.func.id != "print" or name_of(path) in MAY_PRINT, (
                f"{name_of(path)}:{node.lineno}: print is for the command line; raise, return, log or send an event"
            )


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Functions, classes and methods whose names, all the way down, have no underscore in front."""
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, holder = waiting.pop()
        for node in ast.iter_child_nodes(holder):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith(
                "_"
            ):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    waiting.append((f"{prefix}{node.name}.", node))


# What says nothing beyond its name and types needs no sentence: overrides of a documented base, properties, one-liners.
SHORT_ENOUGH_LINES = 8


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_functions_are_documented(path: Path) -> None:
    for name, node in public_definitions(parsed(path)):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node) or "." in name or lines <= SHORT_ENOUGH_LINES or isinstance(node, ast.ClassDef):
            continue
        pytest.fail(f"{name_of(path)}:{node.lineno} {name}: say what it gives, in which unit, what it raises")


def test_the_public_interface_is_documented_to_the_last_method() -> None:
    import engine

    for name in engine.__all__:
        thing = getattr(engine, name)
        if not isinstance(thing, type):
            continue
        assert (thing.__doc__ or "").strip(), f"engine.{name} has no docstring"
        assert not (thing.__doc__ or "").startswith(f"{name}("), (
            f"engine.{name} has only the docstring dataclasses make up"
        )


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_functions_are_annotated(path: Path) -> None:
    for function in functions(parsed(path)):
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{name_of(path)}:{function.lineno} {function.name}: annotate {bare}"
        assert function.returns is not None, (
            f"{name_of(path)}:{function.lineno} {function.name}: annotate what it returns"
        )


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=name_of)
def test_names_of_tests_are_sentences(path: Path) -> None:
    for function in functions(parsed(path)):
        if function.name.startswith("test_"):
            words = function.name.split("_")[1:]
            assert len(words) >= 2, f"{name_of(path)}:{function.lineno} {function.name}: say what holds"
