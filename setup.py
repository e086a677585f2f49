"""Extensions and compiler flags; everything else is in pyproject.toml.

Environment: ENGINE_DEBUG=1 (-O0 -g, assertions on), ENGINE_SANITIZE=1 (ASan + UBSan, see `make sanitize`),
ENGINE_COVERAGE=1 (Cython line tracing).
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("ENGINE_DEBUG") == "1"
SANITIZE = os.environ.get("ENGINE_SANITIZE") == "1"
COVERAGE = os.environ.get("ENGINE_COVERAGE") == "1"

compile_args = ["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if DEBUG or SANITIZE:
    compile_args += ["-g", "-O1" if SANITIZE else "-O0", "-UNDEBUG", "-fno-omit-frame-pointer"]
else:
    compile_args += ["-O3", "-g0"]
if SANITIZE:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_args += flags
    link_args += flags
if COVERAGE:
    macros.append(("CYTHON_TRACE_NOGIL", "1"))


def extension(name: str, *, depends: list[str], args: list[str]) -> Extension:
    return Extension(
        f"engine.{name}",
        [f"engine/{name}.pyx"],
        depends=depends,
        extra_compile_args=compile_args + args,
        extra_link_args=link_args,
        define_macros=macros,
    )


setup(
    ext_modules=cythonize(
        [
            # The vectoriser makes short loops around the hand-written code into slower long ones.
            extension("_fastparse", depends=["engine/_scan.h", "engine/_framing.h"], args=["-fno-tree-vectorize"]),
            extension("_bodysend", depends=["engine/_bodysend.h", "engine/_batch.h"], args=["-pthread"]),
            extension("_smallput", depends=["engine/_fastparse.pxd", "engine/_scan.h", "engine/_framing.h"], args=[]),
            extension("_tls", depends=["engine/_tls.h", "engine/_batch.h"], args=[]),
        ],
        compiler_directives={
            "language_level": 3,
            "freethreading_compatible": False,
            "linetrace": COVERAGE,
        },
    ),
)
