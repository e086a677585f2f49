"""What is built and installed: the wheel, the sdist, and the ways to run from a checkout.

Builds take a minute and need the package index, so they run in .ci/run (ENGINE_PACKAGING=require) and are skipped elsewhere.
What can be seen without building is always tested.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path

import pytest

import engine

ROOT = Path(__file__).resolve().parent.parent
EXTENSIONS = sorted(path.stem for path in (ROOT / "engine").glob("*.pyx"))
LEFT_BEHIND = {
    ".venv",
    ".git",
    "build",
    "dist",
    "__pycache__",
    ".hypothesis",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
}

builds = pytest.mark.skipif(
    os.environ.get("ENGINE_PACKAGING") != "require",
    reason="builds packages, which takes a minute and the package index: set ENGINE_PACKAGING=require, as .ci/run does",
)


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# --- without building -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXTENSIONS)
def test_stubs_name_everything_public_that_the_extension_has(name: str) -> None:
    module = import_module(f"engine.{name}")
    stub = ast.parse((ROOT / "engine" / f"{name}.pyi").read_text())
    named = {
        getattr(node, "name", None) or getattr(getattr(node, "target", None), "id", None)
        for node in stub.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AnnAssign))
    }
    own = {
        public
        for public, value in vars(module).items()
        if not public.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__
    }
    own -= {public for public in own if isinstance(vars(module)[public], type(os))}  # modules it imports
    assert own <= named, f"engine/{name}.pyi leaves out {sorted(own - named)}"


@pytest.mark.parametrize("name", EXTENSIONS)
def test_stubs_name_every_public_method(name: str) -> None:
    module = import_module(f"engine.{name}")
    stub = ast.parse((ROOT / "engine" / f"{name}.pyi").read_text())
    for node in stub.body:
        if not isinstance(node, ast.ClassDef):
            continue
        named = {
            getattr(member, "name", None) or getattr(getattr(member, "target", None), "id", None)
            for member in node.body
        }
        named |= {
            target.id
            for a in node.body
            if isinstance(a, ast.Assign)
            for target in a.targets
            if isinstance(target, ast.Name)
        }
        own = {public for public in vars(getattr(module, node.name)) if not public.startswith("_")}
        assert own <= named, f"engine/{name}.pyi: {node.name} leaves out {sorted(own - named)}"


def test_the_version_is_the_same_everywhere() -> None:
    written = next(
        line.split('"')[1]
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.startswith("version = ")
    )
    assert written == engine.__version__
    assert f"## {written}" in (ROOT / "CHANGELOG.md").read_text()


def third_party_imports(folder: str) -> set[str]:
    """Top-level modules from elsewhere. Those under TYPE_CHECKING count too: mypy wants them."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    ours = {path.stem for each in ("tests", "bench", "tools") for path in (ROOT / each).rglob("*")}
    return found - set(sys.stdlib_module_names) - ours - {"engine", "tests", "bench"}


@pytest.mark.parametrize(("folder", "extra"), [("tests", "test"), ("bench", "bench")])
def test_the_extras_name_what_is_imported(folder: str, extra: str) -> None:
    built_with = {"cython", "setuptools"}
    named = {
        re.split(r"[^\w.-]", requirement)[0].lower()
        for requirement in requires("putengine") or []
        if "extra ==" not in requirement or f'extra == "{extra}"' in requirement
    }
    missing = {name.lower().replace("_", "-") for name in third_party_imports(folder)} - named - built_with
    assert not missing, f"pyproject.toml: the extra {extra!r} lacks {sorted(missing)}"


def test_it_runs_from_the_root_of_a_checkout() -> None:
    said = run(sys.executable, "-m", "engine", "--version", cwd=ROOT)
    assert engine.__version__ in said


def test_a_missing_extension_is_announced_with_its_remedy(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("*.so"))
    # -S: an editable install in this environment would find the extensions elsewhere.
    done = subprocess.run([sys.executable, "-S", "-c", "import engine"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: engine" in done.stderr
    assert "pip install -e ." in done.stderr


# --- built ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is in the repository, without anything that was built."""
    copy = tmp_path_factory.mktemp("checkout") / "putengine"
    shutil.copytree(
        ROOT, copy, ignore=lambda _, names: {n for n in names if n in LEFT_BEHIND or n.endswith((".so", ".egg-info"))}
    )
    for name in EXTENSIONS:
        (copy / "engine" / f"{name}.c").unlink(missing_ok=True)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    clean_environment(checkout.parent / "builder")
    python = checkout.parent / "builder" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "build", cwd=checkout)
    run(python, "-m", "build", "--sdist", "--outdir", checkout.parent / "dist", checkout, cwd=checkout.parent)
    [found] = (checkout.parent / "dist").glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist, as installers do where there is no wheel."""
    python = sdist.parent.parent / "builder" / "bin" / "python"
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", sdist.parent, sdist, cwd=sdist.parent)
    [found] = sdist.parent.glob("*.whl")
    return found


def clean_environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin" / "python"


TRY_IT = """
import engine, sys
from engine import sandbox
with sandbox.start() as stores:
    result = engine.put(b"x" * 100_000, "s3://redirect-307/k", endpoint_url=stores.redirector_url,
                        region=stores.region, credentials=stores.credentials)
    assert [hop.body_bytes_sent for hop in result.hops] == [0, 100_000], result
print(engine.__file__)
"""


@builds
def test_the_wheel_holds_what_runs_and_no_source_of_extensions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package = [name for name in names if not name.split("/")[0].endswith(".dist-info")]
    assert {name.partition("/")[0] for name in package} == {"engine", "putengine_bench"}
    assert {Path(name).suffix for name in package if name.startswith("engine/")} == {".py", ".pyi", ".so", ".typed"}
    assert {"putengine_bench/peers/sink.c", "putengine_bench/peers/limits.c"} <= set(package)
    for name in EXTENSIONS:
        assert any(each.startswith(f"engine/{name}.") and each.endswith(".so") for each in package), name
        assert f"engine/{name}.pyi" in package
    assert "engine/py.typed" in package
    modules = {
        path.relative_to(ROOT).as_posix() for folder in ("engine", "bench") for path in (ROOT / folder).rglob("*.py")
    }
    assert {name.removeprefix("putengine_") for name in package if name.endswith(".py")} == modules
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@builds
def test_the_sdist_holds_what_builds_and_nothing_that_was_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("engine", "tests", "docs", "tools", "bench", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")
    }
    sources -= {f"engine/{name}.c" for name in EXTENSIONS}
    assert sources <= names, f"remedy: MANIFEST.in. Missing: {sources - names}"
    assert {"LICENSE", "Makefile", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= names
    assert not {name for name in names if name.endswith((".so", ".pyc")) or re.match(r"engine/.*\.c$", name)}


@builds
def test_the_sdist_installs_and_puts_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "clean")
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    assert str(tmp_path) in run(python, "-c", TRY_IT, cwd=tmp_path)
    putengine = tmp_path / "clean" / "bin" / "putengine"
    assert engine.__version__ in run(putengine, "--version", cwd=tmp_path)
    assert "put-4GiB-1x" in run(putengine, "bench", "--list", cwd=tmp_path)
    run(putengine, "bench", "--tiny", "--clients", "engine", "--only", "put-2MiB", cwd=tmp_path)


@builds
def test_pip_install_of_a_checkout_works(checkout: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "clean")
    run(python, "-m", "pip", "install", "-q", ".", cwd=checkout)
    assert str(tmp_path) in run(python, "-c", TRY_IT, cwd=tmp_path)


@builds
def test_an_editable_install_runs_the_checkout_s_own_files(checkout: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "clean")
    run(python, "-m", "pip", "install", "-q", "-e", ".", cwd=checkout)
    assert str(checkout) in run(python, "-c", TRY_IT, cwd=tmp_path)
    assert str(checkout) in run(python, "-c", TRY_IT, cwd=checkout)


@builds
def test_types_are_seen_by_those_who_install_it(wheel: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "clean")
    run(python, "-m", "pip", "install", "-q", "mypy", wheel, cwd=tmp_path)
    (tmp_path / "user.py").write_text(
        "import engine\nresult = engine.put('f', 's3://b/k', if_none_match='*')\nhop: engine.Hop = result.hops[0]\n"
    )
    run(python, "-m", "mypy", "--strict", "user.py", cwd=tmp_path)
    (tmp_path / "user.py").write_text("import engine\nengine.put('f', 's3://b/k', if_none_match=1)\n")
    wrong = subprocess.run(
        [str(python), "-m", "mypy", "--strict", "user.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "if_none_match" in wrong.stdout
