"""The documents say what is so: examples run, links lead somewhere, tables have every row that the code has."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import uvloop

import engine
from engine import cli, errors, events, sandbox
from engine.results import SendPath

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(path: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Line number and text of the page's code blocks."""
    text = path.read_text()
    for found in FENCE.finditer(text):
        if found[1] in languages:
            yield text.count("\n", 0, found.start(2)) + 1, found[2]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PYTHON_EXAMPLES = [(path, line, code) for path in PAGES for line, code in blocks(path, "python")]
COMMAND_PAGES = [path for path in PAGES if any("putengine " in code for _, code in blocks(path, "sh"))]


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sandbox.Sandbox]:
    """The world of the examples: a folder with a big.bin, and an environment that names a store."""
    (tmp_path / "big.bin").write_bytes(os.urandom(3 << 20))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with sandbox.start() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.mark.parametrize(
    ("path", "line", "code"), PYTHON_EXAMPLES, ids=[f"{name_of(path)}:{line}" for path, line, _ in PYTHON_EXAMPLES]
)
def test_python_examples_run(path: Path, line: int, code: str, stores: sandbox.Sandbox) -> None:
    padding = "\n" * (line - 1)  # so that a traceback names the page's own line
    compiled = compile(padding + code, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    space: dict[str, Any] = {"__name__": "__main__"}
    if compiled.co_flags & inspect.CO_COROUTINE:
        uvloop.run(eval(compiled, space))
    else:
        exec(compiled, space)


def test_there_are_examples_in_the_readme_and_of_the_command_line() -> None:
    assert "README.md" in {name_of(path) for path, _, _ in PYTHON_EXAMPLES}
    assert {"README.md", "docs/cli.md"} <= {name_of(path) for path in COMMAND_PAGES}


@pytest.mark.parametrize("path", COMMAND_PAGES, ids=name_of)
def test_command_examples_run(path: Path, stores: sandbox.Sandbox) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _, code in blocks(path, "sh"):
        for command in code.splitlines():
            words = shlex.split(command, comments=True)
            if words[:1] != ["putengine"]:
                continue
            done = subprocess.run(
                [sys.executable, "-m", "engine", *words[1:]],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_make_verbs_in_the_documents_exist() -> None:
    verbs = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    for path in PAGES:
        used = set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), re.MULTILINE))
        assert used <= verbs, f"{name_of(path)}: the Makefile has no {used - verbs}"


# --- links ----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(FENCE, "", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(FENCE, "", path.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)} links to {target}, which is not there"
        assert there.is_relative_to(ROOT), f"{name_of(path)} links out of the repository: {target}"
        assert not anchor or anchor in anchors(there.read_text()), f"{name_of(path)}: no heading for {target}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_named_in_the_documents_exist(path: Path) -> None:
    named = re.findall(r"`((?:engine|tests|tools|bench|docs|examples|\.ci)/[\w./-]*)`", path.read_text())
    gone = [name for name in named if not (ROOT / name).exists()]
    assert not gone, f"{name_of(path)} names files which are not there: {gone}"


def test_every_page_of_docs_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", page("README.md")))
    assert {name_of(path) for path in (ROOT / "docs").glob("*.md")} <= linked


# --- tables ---------------------------------------------------------------------------------------------------------


def rows(name: str, columns: int) -> list[list[str]]:
    """The cells of all table rows with so many columns."""
    found = []
    for line in page(name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == columns and not set(cells[0]) <= {"-", ":"}:
            found.append(cells)
    return found


def test_every_public_name_is_documented() -> None:
    text = page("README.md") + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    missing = [name for name in engine.__all__ if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"not in README.md or docs/: {missing}"


def test_every_event_is_documented() -> None:
    names = {name for name, value in vars(events).items() if dataclasses.is_dataclass(value)}
    missing = [name for name in names if f"`{name}`" not in page("docs/python.md")]
    assert not missing, f"docs/python.md: {missing}"


def test_the_configuration_table_has_every_field_with_its_default() -> None:
    table = {field: default for field, default, _ in rows("docs/python.md", 3)}
    for field in dataclasses.fields(engine.Config):
        default = getattr(engine.Config(), field.name)
        shown = f"{type(default).__name__}()" if dataclasses.is_dataclass(default) else repr(default)
        assert table.get(f"`{field.name}`", "").replace('"', "'") == f"`{shown}`", f"docs/python.md: {field.name}"


def test_the_error_table_has_every_error_with_its_exit_code() -> None:
    table = {re.match(r"`(\w+)`", cells[0])[1]: cells for cells in rows("docs/errors.md", 5) if cells[0][0] == "`"}  # type: ignore[index]
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.EngineError) and kind is not errors.EngineError
    }
    assert set(table) == set(kinds)
    for name, kind in kinds.items():
        error = kind.__new__(kind)
        assert table[name][4] == str(cli.exit_code(error)), f"docs/errors.md: exit code of {name}"
        base = re.search(r"\((\w+)\)", table[name][0])
        assert base is None or base[1] in {each.__name__ for each in kind.__mro__}, f"docs/errors.md: base of {name}"


def test_the_attributes_of_errors_are_those_of_the_table() -> None:
    table = {cells[0]: cells[3] for cells in rows("docs/errors.md", 5) if cells[0][0] == "`"}
    for shown, attributes in table.items():
        kind = getattr(errors, re.match(r"`(\w+)`", shown)[1])  # type: ignore[index]
        parameters = set(inspect.signature(kind).parameters)
        for attribute in re.findall(r"`(\w+)`", attributes):
            assert attribute in parameters, f"docs/errors.md: {kind.__name__} has no {attribute}"


def test_every_way_that_bodies_leave_is_documented() -> None:
    later = {"ktls"}
    missing = [path for path in get_args(SendPath) if f"`{path}`" not in page("docs/sending.md") and path not in later]
    assert not missing, f"docs/sending.md: {missing}"


def test_every_benchmark_is_in_the_table_of_benchmarks() -> None:
    named = set(re.findall(r"^\| `(\w+\.py)` \|", page("bench/README.md"), re.MULTILINE))
    there = {path.name for path in (ROOT / "bench").glob("*.py")}
    assert {"put.py", *(name for name in there if name.startswith("micro_"))} <= named <= there


def refusals() -> set[str]:
    """The first argument of every Refuse(…) in the engine: its reason. Of an f-string, the constant beginning."""
    found = set()
    for path in (ROOT / "engine" / "redirect.py", ROOT / "engine" / "request.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "Refuse":
                reason = node.args[0]
                if isinstance(reason, ast.JoinedStr):
                    reason = reason.values[0]
                assert isinstance(reason, ast.Constant), f"{path.name}:{node.lineno}"
                found.add(str(reason.value))
    return found


def test_every_reason_to_refuse_a_redirect_is_documented() -> None:
    shown = re.findall(r"`([a-z-]+)`", "".join(cells[0] for cells in rows("docs/redirects.md", 3)))
    assert refusals()
    assert all(any(name.startswith(reason) for name in shown) for reason in refusals()), refusals() - set(shown)
    assert all(name.startswith(tuple(refusals())) for name in shown), set(shown) - refusals()


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    table = {int(code) for code, _ in rows("docs/cli.md", 2) if code.isdigit()}
    codes = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    # 70 is a bug and 141 a closed pipe: both are the shell's conventions, not ours.
    assert table == codes - {70, 141} | {130}


def test_the_commands_are_those_of_the_command_line() -> None:
    table = {re.match(r"`([a-z]+)", name)[1] for name, _ in rows("docs/cli.md", 2) if name[0] == "`"}  # type: ignore[index]
    assert table == set(cli.arguments.COMMANDS)


def test_the_tests_that_security_md_names_exist_and_every_promise_has_some() -> None:
    tests = {
        node.name
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    promises = page("SECURITY.md").partition("## What is promised")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", promises))
    assert named - tests == set(), "SECURITY.md names tests which are not there"
    for promise in re.split(r"^- ", promises, flags=re.MULTILINE)[1:]:
        assert re.search(r"`test_\w+`", promise), f"SECURITY.md: nothing holds {promise[:60]!r}"


# --- generated ------------------------------------------------------------------------------------------------------


def test_the_state_diagram_is_drawn_from_the_table() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import diagram
    finally:
        sys.path.remove(str(ROOT / "tools"))
    text = page("ARCHITECTURE.md")
    assert diagram.put_into(text) == text, "remedy: python tools/diagram.py --write"


def test_the_documents_stay_short() -> None:
    assert len(page("ARCHITECTURE.md").split()) < 1400, "ARCHITECTURE.md has two pages"
    assert len(page("README.md").split()) < 1000
