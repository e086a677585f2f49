"""The sandbox in a process of its own, talked to in lines of JSON over stdin and stdout.

First line in: the options. First line out: the URLs. Then "records" or "settled" in, a line out. It ends when stdin does, so it
cannot outlive its parent.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import engine
from engine.sandbox._options import Options
from engine.sandbox._records import Record, Recorder
from engine.sandbox._thread import ServerThread


class ServerProcess:
    """The parent's side; the same methods as ServerThread."""

    def __init__(self, options: Options) -> None:
        root = str(Path(engine.__file__).parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._lock = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, "-c", "from engine.sandbox._process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C on the terminal is for the parent, which decides
        )
        try:
            urls = self._ask(options.as_json())
        except BaseException:
            self.close()
            raise
        self.pid = self._child.pid
        self.redirector_url: str = urls["redirector_url"]
        self.store_url: str = urls["store_url"]

    def _ask(self, question: object) -> Any:
        assert self._child.stdin
        assert self._child.stdout
        with self._lock:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the sandbox's process ended; what it said is on stderr")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise OSError(answer["error"])
        return answer

    def records(self) -> list[Record]:
        return [Record.from_json(values) for values in self._ask("records")]

    def settled(self) -> bool:
        return bool(self._ask("settled"))

    def close(self) -> None:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()


def main() -> None:
    lines = iter(sys.stdin.readline, "")
    try:
        options = Options.from_json(json.loads(next(lines)))
        server = ServerThread(options, Recorder(options.keep_records))
    except OSError as error:
        _say({"error": str(error)})
        return
    _say({"redirector_url": server.redirector_url, "store_url": server.store_url})
    for line in lines:
        _say([r.as_json() for r in server.records()] if json.loads(line) == "records" else server.settled())
    server.close()
    if options.owns_folder:  # the parent may have died
        shutil.rmtree(options.folder, ignore_errors=True)


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
