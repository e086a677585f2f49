"""Where credentials come from, and when they are fetched again. Nothing here leaves the machine."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import uvloop

from engine import credentials as module
from engine import limits
from engine.credentials import ANONYMOUS, explain, from_environment, resolve
from engine.errors import CredentialsError, UsageError
from engine.signing import Credentials

T = TypeVar("T")
ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "Qsecret-of-the-test"
TOKEN = "Qtoken-of-the-test"


@pytest.fixture(autouse=True)
def _no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "BOTO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("BOTO_CONFIG", str(tmp_path / "boto"))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[T]], T]:
    """Runs a coroutine on a fresh loop of either kind, failing on what the loop could only log."""

    def run_it(awaitable: Awaitable[T]) -> T:
        async def main() -> T:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            return await awaitable

        complaints: list[dict[str, Any]] = []
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        loop = factory()
        try:
            return loop.run_until_complete(main())
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            gc.collect()
            assert not complaints

    return run_it


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def issued(number: int, expires_at: float | None = None) -> Credentials:
    return Credentials(f"key{number}", "s", None, expires_at)


async def settled(provider: Any) -> None:
    """Waits for the refresh in flight, if any."""
    while provider._flight is not None:  # noqa: ASYNC110 - it is set by a thread
        await asyncio.sleep(0.001)


# --- what may be given ------------------------------------------------------------------------------------------------


def test_explicit_credentials_are_given_back(run: Any) -> None:
    given = Credentials("a", "b", "c")
    provider = resolve(given)
    assert run(provider.get()) is given
    assert provider.origin == "argument"
    assert provider.invalidate(given) is False


def test_anonymous_gives_none(run: Any) -> None:
    provider = resolve(ANONYMOUS)
    assert run(provider.get()) is None
    assert provider.origin == "anonymous"
    assert repr(ANONYMOUS) == "engine.ANONYMOUS"


def test_explicit_credentials_that_expired_are_an_error_that_says_when(run: Any) -> None:
    with pytest.raises(CredentialsError, match="expired at 2001-09-09 01:46:40 UTC"):
        run(resolve(Credentials("a", SECRET_KEY, None, 1_000_000_000)).get())


@pytest.mark.parametrize("wrong", [("a", "b"), "profile", Credentials, 7, {"access_key": "a"}])
def test_anything_else_is_a_usage_error(wrong: Any) -> None:
    with pytest.raises(UsageError, match="neither engine"):
        resolve(wrong)


def test_a_profile_beside_credentials_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="profile"):
        resolve(Credentials("a", "b"), profile="p")


# --- environment ------------------------------------------------------------------------------------------------------


def test_the_environment_is_read_when_asked_not_before(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = resolve(None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    assert run(provider.get()) == Credentials(ACCESS_KEY, SECRET_KEY, TOKEN)
    assert provider.origin == "environment"


def test_the_environment_needs_no_thread(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))
    assert run(resolve(None).get()).access_key == ACCESS_KEY


def test_environment_credentials_called_expired_by_the_server_are_read_again(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    provider = resolve(None)
    old = run(provider.get())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
    assert run(provider.get()) is old
    assert provider.invalidate(old)
    new = run(provider.get())
    assert new.access_key == "new"
    # Another request may still report the old ones.
    provider.invalidate(old)
    assert run(provider.get()) is new


@pytest.mark.parametrize(
    ("there", "missing"),
    [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")],
)
def test_half_a_pair_in_the_environment_names_the_missing_half(run: Any, there: str, missing: str) -> None:
    with pytest.raises(CredentialsError, match=f"^{there} is set .* {missing} is not$") as caught:
        from_environment({there: SECRET_KEY, missing: ""})
    assert SECRET_KEY not in str(caught.value)


def test_empty_variables_count_as_absent() -> None:
    assert from_environment({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}) is None
    found = from_environment({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": ""})
    assert found == Credentials("a", "b")


@pytest.mark.parametrize("text", ["2027-01-15T08:00:00Z", "2027-01-15T08:00:00+00:00", "2027-01-15T09:00:00+01:00"])
def test_an_expiration_in_the_environment_is_honoured(text: str) -> None:
    pair = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    found = from_environment({**pair, "AWS_CREDENTIAL_EXPIRATION": text})
    assert found is not None
    assert found.expires_at == 1_800_000_000
    with pytest.raises(CredentialsError, match="ISO 8601"):
        from_environment({**pair, "AWS_CREDENTIAL_EXPIRATION": "soon"})


# --- functions --------------------------------------------------------------------------------------------------------


def test_a_sync_function_runs_off_the_loop_once(run: Any) -> None:
    threads = []

    def fetch() -> Credentials:
        threads.append(threading.get_ident())
        return issued(1)

    async def main() -> None:
        provider = resolve(fetch)
        got = await asyncio.gather(*(provider.get() for _ in range(50)))
        assert {id(c) for c in got} == {id(await provider.get())}
        assert "fetch" in provider.origin

    run(main())
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


class AsyncCallable:
    def __init__(self) -> None:
        self.threads: list[int] = []

    async def __call__(self) -> Credentials:
        self.threads.append(threading.get_ident())
        await asyncio.sleep(0.01)
        return issued(1)


@pytest.mark.parametrize(
    "as_option",
    [
        pytest.param(lambda c: c, id="object"),
        pytest.param(lambda c: c.__call__, id="method"),
        pytest.param(lambda c: partial(c.__call__), id="partial"),
        pytest.param(lambda c: lambda: c(), id="lambda-returning-a-coroutine"),
    ],
)
def test_an_async_function_is_awaited_on_the_loop_once(run: Any, as_option: Any) -> None:
    function = AsyncCallable()

    async def main() -> None:
        provider = resolve(as_option(function))
        got = await asyncio.gather(*(provider.get() for _ in range(50)))
        assert {c.access_key for c in got} == {"key1"}

    run(main())
    assert function.threads == [threading.get_ident()]


def test_a_function_runs_in_the_callers_context(run: Any) -> None:
    import contextvars

    tenant = contextvars.ContextVar[str]("tenant")
    tenant.set("blue")
    assert run(resolve(lambda: Credentials(tenant.get(), "s")).get()).access_key == "blue"


async def _fails_async() -> Credentials:
    raise ValueError(SECRET_KEY)


def _fails() -> Credentials:
    raise ValueError(SECRET_KEY)


def _exits() -> Credentials:
    raise SystemExit(SECRET_KEY)


@pytest.mark.parametrize("function", [_fails, _fails_async, _exits])
def test_a_failing_function_is_a_credentials_error_for_each_that_asked(run: Any, function: Any) -> None:
    async def main() -> list[Any]:
        provider = resolve(function)
        return await asyncio.gather(*(provider.get() for _ in range(3)), return_exceptions=True)

    errors = run(main())
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert type(error) is CredentialsError
        assert function.__name__ in str(error)
        assert SECRET_KEY not in str(error)
        assert isinstance(error.__cause__, (ValueError, SystemExit))


def test_a_credentials_error_of_the_function_passes_as_it_is(run: Any) -> None:
    def fetch() -> Credentials:
        raise CredentialsError("the vault is sealed")

    with pytest.raises(CredentialsError, match=r"^the vault is sealed$"):
        run(resolve(fetch).get())


def test_a_function_may_fail_and_be_asked_again(run: Any) -> None:
    answers: list[Any] = [OSError("down"), issued(1)]

    def fetch() -> Credentials:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main() -> None:
        provider = resolve(fetch)
        with pytest.raises(CredentialsError, match="OSError"):
            await provider.get()
        assert (await provider.get()).access_key == "key1"

    run(main())


@pytest.mark.parametrize("answer", [None, ("a", SECRET_KEY), ANONYMOUS])
def test_a_function_that_returns_something_else_is_an_error_without_it(run: Any, answer: Any) -> None:
    with pytest.raises(CredentialsError, match="instead of engine") as caught:
        run(resolve(lambda: answer).get())
    assert SECRET_KEY not in str(caught.value)


def test_a_function_that_returns_expired_credentials_is_an_error(run: Any) -> None:
    with pytest.raises(CredentialsError, match="expired at 2001"):
        run(resolve(lambda: issued(1, 1_000_000_000)).get())


def test_a_cancelled_caller_does_not_stop_the_refresh_for_others(run: Any) -> None:
    release = threading.Event()
    calls = []

    def fetch() -> Credentials:
        calls.append(1)
        assert release.wait(10)
        return issued(1)

    async def main() -> None:
        provider = resolve(fetch)
        first, second = (asyncio.ensure_future(provider.get()) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)
        assert first.cancelled()
        release.set()
        assert (await second).access_key == "key1"

    run(main())
    assert calls == [1]


def test_a_refresh_that_ends_after_its_caller_and_the_loop_are_gone_complains_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release, done = threading.Event(), threading.Event()

    def fetch() -> Credentials:
        assert release.wait(10)
        return issued(1)

    provider = resolve(fetch)

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(provider.get(), 0.01)
        provider._flight.outcome.add_done_callback(lambda _: done.set())  # type: ignore[attr-defined]

    asyncio.run(leave())
    release.set()
    assert done.wait(10)
    assert asyncio.run(provider.get()) == issued(1)  # type: ignore[arg-type]
    assert not caplog.records


# --- refreshing -------------------------------------------------------------------------------------------------------


class Issuer:
    """Gives out numbered credentials that live for `life_s`; `error` makes it fail, `gate` makes it wait."""

    def __init__(self, clock: Clock, life_s: float | None = 3600) -> None:
        self.clock, self.life_s = clock, life_s
        self.calls = 0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> Credentials:
        self.calls += 1
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return issued(self.calls, None if self.life_s is None else self.clock.now + self.life_s)


def test_credentials_without_expiry_are_kept_for_ever(run: Any) -> None:
    clock = Clock()
    issuer = Issuer(clock, None)
    provider = module._Called(issuer, clock)
    first = run(provider.get())
    clock.now += 1e9
    assert run(provider.get()) is first


def test_a_refresh_starts_early_and_keeps_nobody_waiting(run: Any) -> None:
    clock = Clock()
    issuer = Issuer(clock)

    async def main() -> None:
        provider = module._Called(issuer, clock)
        first = await provider.get()
        clock.now += 3600 - limits.CREDENTIALS_EARLY_S - 1
        assert await provider.get() is first
        await settled(provider)
        assert issuer.calls == 1
        clock.now += 2
        issuer.gate.clear()
        # The new ones are on their way, and until they are there everyone gets the old ones.
        assert [await provider.get() for _ in range(20)] == [first] * 20
        issuer.gate.set()
        await settled(provider)
        assert (await provider.get()).access_key == "key2"
        assert issuer.calls == 2

    run(main())


def test_after_the_expiry_everyone_waits_for_the_one_refresh(run: Any) -> None:
    clock = Clock()
    issuer = Issuer(clock)

    async def main() -> None:
        provider = module._Called(issuer, clock)
        await provider.get()
        clock.now += 3600
        got = await asyncio.gather(*(provider.get() for _ in range(20)))
        assert {c.access_key for c in got} == {"key2"}
        assert issuer.calls == 2

    run(main())


def test_a_refresh_that_fails_is_no_error_while_the_old_ones_are_valid(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    issuer = Issuer(clock)

    async def main() -> None:
        provider = module._Called(issuer, clock)
        first = await provider.get()
        issuer.error = OSError(SECRET_KEY)
        clock.now += 3600 - limits.CREDENTIALS_EARLY_S
        for _ in range(10):
            assert await provider.get() is first
            await settled(provider)
        assert issuer.calls == 2  # not asked again at once
        clock.now += module._REFRESH_AGAIN_S
        assert await provider.get() is first
        await settled(provider)
        assert issuer.calls == 3
        clock.now += limits.CREDENTIALS_EARLY_S
        with pytest.raises(CredentialsError, match="OSError"):
            await provider.get()
        issuer.error = None
        assert (await provider.get()).access_key == "key5"

    with caplog.at_level(logging.WARNING, "engine"):
        run(main())
    assert "refresh failed (OSError); the present ones last 300 s" in caplog.text
    assert SECRET_KEY not in caplog.text


def test_credentials_shorter_lived_than_the_margin_are_not_fetched_for_every_request(run: Any) -> None:
    clock = Clock()
    issuer = Issuer(clock, life_s=60)

    async def main() -> None:
        provider = module._Called(issuer, clock)
        for _second in range(600):
            await provider.get()
            await settled(provider)
            clock.now += 1

    run(main())
    assert issuer.calls == 20  # every 30 of 600 s


def test_who_comes_too_late_to_refresh_takes_what_is_there(run: Any) -> None:
    clock = Clock()
    issuer = Issuer(clock)

    async def main() -> None:
        provider = module._Called(issuer, clock)
        first = await provider.get()
        assert await provider._get_slowly() is first

    run(main())
    assert issuer.calls == 1


def test_invalidated_credentials_are_fetched_anew_even_without_expiry(run: Any) -> None:
    clock = Clock()
    issuer = Issuer(clock, None)

    async def main() -> None:
        provider = module._Called(issuer, clock)
        first = await provider.get()
        assert provider.invalidate(first)
        second = await provider.get()
        assert second.access_key == "key2"
        assert provider.invalidate(first)
        assert await provider.get() is second

    run(main())


# --- threads, loops, processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_loops_in_several_threads_share_one_refresh(kind: str) -> None:
    calls: list[int] = []
    everybody_asked = threading.Barrier(8)
    asked = threading.Event()

    def fetch() -> Credentials:
        calls.append(1)
        assert asked.wait(10)
        return issued(1)

    async def fetch_async() -> Credentials:
        calls.append(1)
        while not asked.is_set():  # noqa: ASYNC110 - it is set by another loop
            await asyncio.sleep(0.001)
        return issued(1)

    provider = resolve(fetch if kind == "sync" else fetch_async)

    async def ask() -> Credentials | None:
        task = asyncio.ensure_future(provider.get())
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, everybody_asked.wait, 10)
        asked.set()
        return await task

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda _: asyncio.run(ask()), range(8)))
    assert {id(c) for c in got} == {id(got[0])}
    assert calls == [1]


@pytest.mark.parametrize("leaves", ["cancels", "just closes"])
def test_a_loop_that_goes_away_in_mid_refresh_leaves_the_others_not_hanging(
    leaves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ORPHAN_CHECK_S", 0.02)
    calls: list[int] = []
    tasks = []

    async def fetch() -> Credentials:
        calls.append(1)
        if len(calls) == 1:
            tasks.append(asyncio.current_task())
            await asyncio.Event().wait()
        return issued(len(calls))

    provider = resolve(fetch)
    waiting = threading.Event()

    async def wait_too() -> Credentials | None:
        task = asyncio.ensure_future(provider.get())
        await asyncio.sleep(0.01)
        waiting.set()
        return await asyncio.wait_for(task, 10)

    loop = asyncio.new_event_loop()
    first = loop.create_task(provider.get())
    loop.run_until_complete(asyncio.sleep(0.01))
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(asyncio.run, wait_too())
        assert waiting.wait(10)
        first.cancel()
        if leaves == "cancels":
            tasks[0].cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        if leaves == "cancels":
            got = other.result(20)  # needs no close to notice
        loop.set_exception_handler(lambda loop, context: None)  # the abandoned task's farewell
        loop.close()
        got = other.result(20)
    assert got is not None
    assert got.access_key == "key2"
    coroutine = tasks[0].get_coro()
    tasks.clear()
    if leaves == "just closes":
        coroutine.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: with threads; that is the test
def test_a_forked_child_fetches_for_itself_though_the_parent_was_in_the_middle_of_it(run: Any) -> None:
    parent = os.getpid()
    release = threading.Event()

    def fetch() -> Credentials:
        if os.getpid() == parent:
            assert release.wait(10)
        return issued(os.getpid())

    async def main() -> None:
        provider = resolve(fetch)
        task = asyncio.ensure_future(provider.get())
        await asyncio.sleep(0.01)
        provider._lock.acquire()  # type: ignore[attr-defined]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            status = 1
            try:
                asyncio.events._set_running_loop(None)
                got = asyncio.run(asyncio.wait_for(provider.get(), 5))
                os.write(writer, got.access_key.encode())  # type: ignore[union-attr]
                status = 0
            finally:
                os._exit(status)
        provider._lock.release()  # type: ignore[attr-defined]
        os.close(writer)
        with open(reader, "rb") as file:  # noqa: ASYNC230
            assert file.read().decode() == f"key{child}"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222
        release.set()
        assert (await task).access_key == f"key{parent}"

    run(main())


# --- botocore's chain -------------------------------------------------------------------------------------------------


def write_profiles(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        f"[work]\naws_access_key_id = AKIAWORKWORKWORKWORK\naws_secret_access_key = {SECRET_KEY}\n"
        f"aws_session_token = {TOKEN}\n"
        f"[half]\naws_access_key_id = AKIAHALF\n"
    )


def test_the_default_profile_of_the_credentials_file_is_found(run: Any, tmp_path: Path) -> None:
    write_profiles(tmp_path)
    provider = resolve(None)
    assert run(provider.get()) == Credentials(ACCESS_KEY, SECRET_KEY)
    assert provider.origin == "botocore: shared-credentials-file"


def test_a_profile_is_chosen_by_aws_profile(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profiles(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert run(resolve(None).get()) == Credentials("AKIAWORKWORKWORKWORK", SECRET_KEY, TOKEN)


def test_a_profile_argument_goes_before_the_environment_and_aws_profile_behind_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profiles(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env")
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert run(resolve(None).get()).access_key == "env"
    assert run(resolve(None, profile="work").get()).access_key == "AKIAWORKWORKWORKWORK"


def test_a_profile_called_expired_by_the_server_is_read_again(run: Any, tmp_path: Path) -> None:
    write_profiles(tmp_path)
    provider = resolve(None)
    old = run(provider.get())
    text = (tmp_path / "credentials").read_text()
    (tmp_path / "credentials").write_text(text.replace(ACCESS_KEY, "AKIANEWNEWNEWNEWNEWN"))
    assert run(provider.get()) is old
    assert provider.invalidate(old)
    assert run(provider.get()).access_key == "AKIANEWNEWNEWNEWNEWN"


def test_an_unknown_profile_is_an_error_that_names_it(run: Any, tmp_path: Path) -> None:
    write_profiles(tmp_path)
    with pytest.raises(CredentialsError, match=r"ProfileNotFound.*nowhere"):
        run(resolve(None, profile="nowhere").get())


def test_half_a_pair_in_a_profile_is_an_error(run: Any, tmp_path: Path) -> None:
    write_profiles(tmp_path)
    with pytest.raises(CredentialsError, match=r"PartialCredentials.*aws_secret_access_key"):
        run(resolve(None, profile="half").get())


def test_nothing_found_says_where_was_looked_and_what_to_do(run: Any, tmp_path: Path) -> None:
    with pytest.raises(CredentialsError) as caught:
        run(resolve(None).get())
    text = str(caught.value)
    for hint in (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: not set",
        "profile default",
        str(tmp_path / "credentials"),
        "no AWS_CONTAINER_CREDENTIALS_…_URI",
        "EC2 role: AWS_EC2_METADATA_DISABLED",
        "engine.ANONYMOUS",
        "--no-sign-request",
    ):
        assert hint in text


def test_without_botocore_the_error_says_what_was_not_looked_at(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(CredentialsError, match=r"botocore is not installed.*pip install 'putengine\[aws\]'"):
        run(resolve(None).get())
    with pytest.raises(CredentialsError, match="profile work"):
        run(resolve(None, profile="work").get())


def test_the_chain_is_walked_off_the_loop(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profiles(tmp_path)
    threads = []
    ask = module._ask_botocore

    def watched(profile: str | None) -> Any:
        threads.append(threading.current_thread())
        return ask(profile)

    monkeypatch.setattr(module, "_ask_botocore", watched)
    run(resolve(None).get())
    (thread,) = threads
    assert thread is not threading.main_thread()
    assert thread.daemon


def test_a_credential_process_is_refreshed_before_its_credentials_expire(run: Any, tmp_path: Path) -> None:
    counter = tmp_path / "count"
    script = tmp_path / "issue"
    script.write_text(
        f"#!/bin/sh\necho x >> {counter}\nn=$(wc -l < {counter})\n"
        f'echo "{{\\"Version\\": 1, \\"AccessKeyId\\": \\"key$n\\", \\"SecretAccessKey\\": \\"{SECRET_KEY}\\",'
        f' \\"SessionToken\\": \\"{TOKEN}\\", \\"Expiration\\": \\"$(cat {tmp_path}/expiry)\\"}}"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {script}\n")

    def expire_in(seconds: float) -> float:
        when = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(seconds=seconds)
        (tmp_path / "expiry").write_text(when.isoformat())
        return when.timestamp()

    async def main() -> None:
        expires_at = expire_in(3600)
        clock = Clock()
        clock.now = expires_at - 3600
        provider = module._Chain(None, clock)
        first = await provider.get()
        assert first == Credentials("key1", SECRET_KEY, TOKEN, expires_at)
        assert provider.origin == "botocore: custom-process"
        clock.now = expires_at - limits.CREDENTIALS_EARLY_S
        provider._botocore._time_fetcher = lambda: datetime.fromtimestamp(clock.now, timezone.utc)
        expires_at = expire_in(7200)
        assert await provider.get() is first
        await settled(provider)
        assert await provider.get() == Credentials("key2", SECRET_KEY, TOKEN, expires_at)

    run(main())


class Container(BaseHTTPRequestHandler):
    """The credentials endpoint of an ECS task."""

    answers: ClassVar[list[tuple[int, dict[str, str]]]] = []
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, document = self.answers.pop(0) if self.answers else (500, {})
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Container]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Container)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Qcontainer-token")
    Container.answers.clear()
    Container.asked.clear()
    yield Container
    server.shutdown()
    thread.join()
    server.server_close()


def role(number: int, expires_at: datetime) -> tuple[int, dict[str, str]]:
    document = {"AccessKeyId": f"key{number}", "SecretAccessKey": SECRET_KEY, "Token": TOKEN}
    return 200, {**document, "Expiration": expires_at.isoformat()}


def test_a_container_role_is_found_and_refreshed(run: Any, container: type[Container]) -> None:
    soon, late = (datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=n) for n in (1, 6))
    container.answers += [role(1, soon), role(2, late)]

    async def main() -> None:
        clock = Clock()
        clock.now = soon.timestamp() - 3600
        provider = module._Chain(None, clock)
        first = await provider.get()
        assert first == Credentials("key1", SECRET_KEY, TOKEN, soon.timestamp())
        assert provider.origin == "botocore: container-role"
        clock.now = soon.timestamp() - limits.CREDENTIALS_EARLY_S
        provider._botocore._time_fetcher = lambda: datetime.fromtimestamp(clock.now, timezone.utc)
        assert await provider.get() is first
        await settled(provider)
        assert await provider.get() == Credentials("key2", SECRET_KEY, TOKEN, late.timestamp())

    run(main())
    assert container.asked == [("/role", "Qcontainer-token")] * 2


def test_a_container_endpoint_that_fails_is_an_error_without_the_token(
    run: Any, container: type[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    with pytest.raises(CredentialsError, match=r"CredentialRetrievalError.*container-role") as caught:
        run(resolve(None).get())
    assert "Qcontainer-token" not in str(caught.value)
    assert container.asked


# --- config --explain -------------------------------------------------------------------------------------------------


def used(sources: list[module.Source]) -> list[str]:
    return [source.name for source in sources if source.used]


def test_explain_tells_the_source_and_never_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = explain()
    assert used(nothing) == []
    assert [source.name for source in nothing] == ["argument", "environment", "botocore"]
    assert "No credentials found" in nothing[-1].detail

    write_profiles(tmp_path)
    profile = explain()
    assert used(profile) == ["botocore"]
    assert profile[-1].detail.startswith("shared-credentials-file: Credentials(AKIA…")

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    half = explain(probe=False)
    assert used(half) == []
    assert "AWS_SECRET_ACCESS_KEY is not" in half[-1].detail
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    environment = explain()
    assert used(environment) == ["environment"]
    named = explain(profile="work")
    assert used(named) == ["botocore"]
    assert "passed over" in named[1].detail

    given = explain(Credentials(ACCESS_KEY, SECRET_KEY, TOKEN))
    function = explain(_fails)
    assert used(given) == used(function) == used(explain(ANONYMOUS)) == ["argument"]
    assert "_fails" in function[0].detail
    for text in map(str, (nothing, profile, half, environment, named, given, function)):
        assert SECRET_KEY not in text
        assert TOKEN not in text
        assert ACCESS_KEY not in text
