"""The virtual environment behind `make`, with the standard library alone.

    python3 tools/environment.py make .venv          make it, or make it anew when it is another Python's; else do nothing
    .venv/bin/python tools/environment.py extra test     the requirements of an extra of the installed putengine, one a line

`make` runs before anything is installed: it says what is missing, and how to get it, instead of failing in the middle.
"""

import os
import shutil
import subprocess
import sys
import sysconfig

OLDEST = (3, 10)


def what_is_missing() -> list:
    """Sentences, each naming a remedy; none when all is there."""
    version = "{}.{}".format(*sys.version_info)
    if sys.version_info < OLDEST:
        return [
            f"Python {version} is too old, {OLDEST[0]}.{OLDEST[1]} or newer is needed: "
            "`make VERB PYTHON=python3.11` picks another one."
        ]
    missing = []
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        missing.append(
            "This Python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv "
            f"(or python{version}-venv, for this very one)."
        )
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing.append(
            "The headers of this Python are not there. On Debian and Ubuntu: apt install python3-dev "
            f"(or python{version}-dev, for this very one); on Fedora: dnf install python3-devel."
        )
    if shutil.which(os.environ.get("CC", "gcc").split()[0]) is None:
        missing.append("There is no C compiler. On Debian and Ubuntu: apt install gcc libc6-dev; or set CC.")
    if not sys.platform.startswith("linux"):
        missing.append(f"This is {sys.platform}; engine runs on Linux.")
    return missing


def fits(folder: str) -> bool:
    """Whether `folder` is an environment of this Python, with pip."""
    code = "import sys, pip; print(sys.version)"
    try:
        found = subprocess.run(
            [os.path.join(folder, "bin", "python"), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    return found.returncode == 0 and found.stdout.decode().strip() == sys.version.strip()


def make(folder: str) -> None:
    missing = what_is_missing()
    if missing:
        sys.exit("\n".join(missing))
    if fits(folder):
        return
    print("making {} (Python {}.{}.{})".format(folder, *sys.version_info), flush=True)
    if os.path.lexists(folder):
        if not os.path.exists(os.path.join(folder, "pyvenv.cfg")):
            sys.exit(f"{folder} is there and is no virtual environment: move it away, or set VENV.")
        shutil.rmtree(folder)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    with open(os.path.join(folder, ".made"), "w"):
        pass


def extra(name: str) -> None:
    from importlib.metadata import metadata, requires

    if name not in (metadata("putengine").get_all("Provides-Extra") or []):
        sys.exit(f"putengine has no extra {name!r}")
    for requirement in requires("putengine") or []:
        wanted, _, marker = requirement.partition(";")
        if f'extra == "{name}"' in marker:
            print(wanted.strip())


if __name__ == "__main__":
    verbs = {"make": make, "extra": extra}
    if len(sys.argv) != 3 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]](sys.argv[2])
