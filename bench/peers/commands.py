"""Programs: curl, s5cmd, rclone. Each is started once a round, so its start is in the time; many files go in one call."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from clients import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Command, Spec, program

LARGEST_PUT_MIB = 5 * 1024 - 1


class Tree:
    """A folder in which every file has the name of its key: links, so that no byte is copied."""

    def __init__(self, files: list[tuple[str, str]]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="bench-tree-", dir=os.path.dirname(files[0][0]))
        for path, key in files:
            os.link(path, Path(self.folder.name) / key)

    def __enter__(self) -> str:
        return self.folder.name

    def __exit__(self, *error: object) -> None:
        self.folder.cleanup()


class Curl(Command):
    def how(self) -> str:
        return "unsigned; curl -T FILE -L, process start included"

    def run(self, files: list[tuple[str, str]], jobs: Any) -> None:
        words = [program("curl") or "curl", "-sS", "-L", "--fail", "--noproxy", "*"]
        if self.spec.bundle:
            words += ["--cacert", self.spec.bundle]
        if jobs.concurrency > 1:
            words += ["--parallel", "--parallel-max", str(jobs.concurrency)]
        with tempfile.NamedTemporaryFile("w", suffix=".curl") as config:
            for path, key in files:
                config.write(f'upload-file = "{path}"\nurl = "{self.url(key)}"\noutput = "/dev/null"\n')
            config.flush()
            self.call(*words, "--config", config.name)


class S5cmd(Command):
    def how(self) -> str:
        return "process start included" + ("; --concurrency 8" if self.tuned else "")

    def run(self, files: list[tuple[str, str]], jobs: Any) -> None:
        words = [program("s5cmd") or "s5cmd", "--endpoint-url", self.spec.endpoint, "--log", "error"]
        if jobs.concurrency > 1:
            words += ["--numworkers", str(jobs.concurrency)]
        part = ["--part-size", str(LARGEST_PUT_MIB)] if jobs.action == "put" else []
        tuned = ["--concurrency", "8"] if self.tuned else []
        environment = {"AWS_CA_BUNDLE": self.spec.bundle} if self.spec.bundle else {}
        if len(files) == 1:
            path, key = files[0]
            self.call(*words, "cp", *part, *tuned, path, f"s3://{BUCKET}/{key}", **environment)
            return
        with Tree(files) as folder:
            self.call(*words, "cp", *part, *tuned, f"{folder}/", f"s3://{BUCKET}/", **environment)


class Rclone(Command):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.words = [
            *(program("rclone") or "rclone", "--config", "/dev/null", "--s3-provider", "Other"),
            *("--s3-endpoint", spec.endpoint, "--s3-region", REGION),
            *("--s3-access-key-id", ACCESS_KEY, "--s3-secret-access-key", SECRET_KEY),
            *("--s3-force-path-style", "--s3-no-check-bucket", "--retries", "1"),
        ]
        if spec.bundle:
            self.words += ["--ca-cert", spec.bundle]
        if self.tuned:
            self.words += ["--s3-disable-checksum", "--ignore-checksum", "--s3-no-head", "--no-check-dest"]

    def how(self) -> str:
        tuned = "; --s3-disable-checksum --ignore-checksum --s3-no-head --no-check-dest" if self.tuned else ""
        return "process start included" + tuned

    def run(self, files: list[tuple[str, str]], jobs: Any) -> None:
        words = [*self.words, "--transfers", str(jobs.concurrency)]
        if jobs.action == "put":
            words += ["--s3-upload-cutoff", f"{LARGEST_PUT_MIB}M"]
        if len(files) == 1:
            path, key = files[0]
            self.call(*words, "copyto", path, f":s3:{BUCKET}/{key}")
            return
        with Tree(files) as folder:
            self.call(*words, "copy", folder, f":s3:{BUCKET}/")
