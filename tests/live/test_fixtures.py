"""The instruments of the live tests, tested: what they count is exact, and what they start they end."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import matrix, servers, tcpdiag
from .relay import Relay, reset
from .servers import LiveServer, Nginx, ProgramMissing, StartFailed


class Sleeper(LiveServer):
    """A server of one shell that says something and then does what its class says."""

    script = "sleep 1000"

    def start(self) -> None:
        self.process = self.spawn("sleeper", ["sh", "-c", self.script])


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    """Return when it is so; a busy machine may take its time."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_server_leaves_no_process_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STOP_TIMEOUT_S", 0.2)

    class Stubborn(Sleeper):
        # Neither the shell nor its child ends when asked to.
        script = "trap '' TERM; (trap '' TERM; echo $$; sleep 1000) & echo child $!; wait; sleep 1000"

    server = Stubborn()
    with server:
        log = server.folder / "sleeper.log"
        until(lambda: "child" in log.read_text())
        child = int(log.read_text().split("child")[1].split()[0])
        pid, folder = server.process.pid, server.folder
    until(lambda: not exists(pid) and not exists(child))
    assert not folder.exists()


def test_a_server_that_dies_is_reported_with_its_log_and_removed() -> None:
    class Dying(Sleeper):
        script = "echo the configuration is wrong; exit 3"

        def start(self) -> None:
            super().start()
            self.wait_until(lambda: False, "never")

    server = Dying()
    with pytest.raises(StartFailed, match=r"(?s)ended with 3.*the configuration is wrong"), server:
        pass
    assert server.folder == Path()


def test_a_server_which_is_not_ready_in_time_is_reported_with_its_log() -> None:
    class Slow(Sleeper):
        script = "echo still reading; sleep 1000"

        def start(self) -> None:
            super().start()
            until(lambda: (self.folder / "sleeper.log").stat().st_size > 0)
            self.wait_until(lambda: False, "it is ready", timeout_s=0.1)

    with pytest.raises(StartFailed, match=r"(?s)it is ready: not after 0.1 s.*still reading"), Slow():
        pass


def test_a_missing_program_is_named_with_its_package() -> None:
    class Missing(Sleeper):
        programs = {"no-such-daemon": "no-such-package"}  # noqa: RUF012

    with pytest.raises(ProgramMissing, match=r"no-such-daemon .*package no-such-package"), Missing():
        pass


def test_servers_end_when_the_test_run_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from live.test_fixtures import Sleeper\n"
        "Sleeper.script = 'echo started; exec sleep 1000'\n"
        "server = Sleeper().__enter__()\n"
        "while not (server.folder / 'sleeper.log').read_text(): time.sleep(0.01)\n"
        "print(server.process.pid, server.folder, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as test_run:
        assert test_run.stdout is not None
        pid, folder = test_run.stdout.readline().split()
        # Not the number: an orphan keeps it until somebody reaps it, and another process may have it next.
        sleeper = os.pidfd_open(int(pid))
        test_run.send_signal(signal.SIGKILL)
    try:
        assert select.select([sleeper], [], [], 60)[0], "it has not ended"
    finally:
        os.close(sleeper)
    shutil.rmtree(folder)


def test_a_taken_port_is_given_to_nobody_else_but_a_server_may_listen_on_it() -> None:
    ports = servers.Ports()
    try:
        port = ports.take()
        assert not servers.accepts(port)
        with pytest.raises(OSError), socket.socket() as plain:
            plain.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)):
            assert servers.accepts(port)
    finally:
        ports.close()


@pytest.fixture
def sink() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_the_relay_counts_head_and_body_exactly_and_says_what_came_before_an_answer(sink: socket.socket) -> None:
    head = b"PUT /x HTTP/1.1\r\nHost: here\r\nX-One:  two \r\n\r\n"
    with Relay(f"http://127.0.0.1:{sink.getsockname()[1]}/base") as relay:
        assert relay.url.endswith("/base")
        with socket.create_connection(("127.0.0.1", int(relay.url.split(":")[2].split("/")[0]))) as client:
            server, _ = sink.accept()
            with server, server.makefile("rb") as received:
                client.sendall(head + b"abc")
                assert received.read(len(head) + 3) == head + b"abc"
                server.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 100")
                body = os.urandom(3 << 20)
                client.sendall(body)
                client.shutdown(socket.SHUT_WR)
                assert received.read() == body
                server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            assert client.recv(100) == b"HTTP/1.1 200 OK\r\n\r\n"
            assert client.recv(100) == b""
        [connection] = relay.settled()
    assert connection.request_line == "PUT /x HTTP/1.1"
    assert connection.fields == {"host": "here", "x-one": "two"}
    assert connection.body_received == 3 + len(body)
    assert connection.body_before(b" 100 ") == 3
    assert connection.body_before(b" 200 ") == 3 + len(body)
    with pytest.raises(AssertionError):
        connection.body_before(b" 307 ")


@pytest.mark.parametrize("who_resets", ["client", "server"])
def test_the_relay_passes_on_a_reset(sink: socket.socket, who_resets: str) -> None:
    with Relay(f"http://127.0.0.1:{sink.getsockname()[1]}") as relay:
        client = socket.create_connection(("127.0.0.1", int(relay.url.split(":")[2])))
        server, _ = sink.accept()
        first, second = (client, server) if who_resets == "client" else (server, client)
        first.sendall(b"x")
        assert second.recv(1) == b"x"
        reset(first)
        with second, pytest.raises(ConnectionResetError):
            second.recv(1)
        assert relay.connections[0].ended.wait(10)


def test_the_kernel_counts_what_a_server_received_even_unread(
    kernel_counts: tcpdiag.DestroyedSockets, sink: socket.socket
) -> None:
    port = sink.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        server, _ = sink.accept()
        client.sendall(b"x" * 123_456)
        with server:
            assert server.recv(1) == b"x"
            peer_port = client.getsockname()[1]
            until(lambda: len(server.recv(200_000, socket.MSG_PEEK)) == 123_455)
    assert kernel_counts.wait(port, [peer_port]) == {peer_port: 123_456}


def test_the_kernel_counts_every_connection_to_a_port(
    kernel_counts: tcpdiag.DestroyedSockets, sink: socket.socket
) -> None:
    port = sink.getsockname()[1]
    for size in (1000, 2000):
        with socket.create_connection(("127.0.0.1", port)) as client:
            server, _ = sink.accept()
            with server:
                client.sendall(b"x" * size)
                until(lambda server=server, size=size: len(server.recv(9999, socket.MSG_PEEK)) == size)  # type: ignore[misc]
                with pytest.raises(AssertionError, match="still there"):
                    tcpdiag.wait_for_none(port, 0.05)
    assert sorted(kernel_counts.all_of(port, 2)) == [1000, 2000]
    with pytest.raises(AssertionError, match="2 connections instead of 3"):
        kernel_counts.all_of(port, 3, 0.1)


def test_a_stopped_server_does_nothing_until_it_goes_on() -> None:
    class Counter(Sleeper):
        script = f"exec {sys.executable} -c 'import time\nwhile True: print(flush=True); time.sleep(0.01)'"

    with Counter() as server:
        log = server.folder / "sleeper.log"
        until(lambda: log.stat().st_size > 0)
        with server.stopped():
            before = log.stat().st_size
            time.sleep(0.1)
            assert log.stat().st_size == before
        until(lambda: log.stat().st_size > before)


# --- the table of docs/servers.md -----------------------------------------------------------------------------------


def small_matrix(*cells: str) -> str:
    case = matrix.Case("once", "Once", "What is seen.", ("got", "took"))
    table = matrix.Matrix([case], ["one", "two"], versions={"one": "1.2"})
    table.enter("once", "one", *cells)
    assert table.missing == [("once", "two")]
    table.enter("once", "two", "– it cannot")
    assert not table.missing
    return table.render("today")


def test_a_table_with_other_verdicts_differs_and_one_with_other_numbers_does_not() -> None:
    committed = small_matrix(f"0 {matrix.about(812)}", f"part {matrix.about(1.5)}")
    same = small_matrix(f"0 {matrix.about(3_000_000)}", f"part {matrix.about('a while')}").replace("1.2", "1.3")
    assert committed != same
    assert matrix.differences(committed, same) == ""
    other = matrix.differences(committed, small_matrix("all", f"part {matrix.about(1.5)}"))
    assert "-| one | 0 | part |" in other
    assert "+| one | all | part |" in other


def test_a_table_is_put_between_the_marks_of_its_page_and_read_from_there() -> None:
    page = f"# Servers\n\nby hand\n\n{matrix.BEGIN}\n{matrix.END}\n\nmore\n"
    for cells in (("0", "all"), ("all", "0")):
        page = matrix.put_into(page, small_matrix(*cells))
        assert matrix.measured_part(page) == small_matrix(*cells)
        assert page.startswith("# Servers\n\nby hand\n\n")
        assert page.endswith("\n\nmore\n")
    with pytest.raises(ValueError, match="has not both"):
        matrix.put_into("# Servers\n", small_matrix("0", "all"))


def test_the_committed_page_has_a_table_of_every_case() -> None:
    from . import test_matrix

    measured = matrix.measured_part(matrix.PAGE.read_text())
    for case in test_matrix.CASES:
        assert f"### {case.title}\n\n{case.text}\n" in measured, matrix.REMEDY
    for row in test_matrix.ROWS:
        assert measured.count(f"| {row} |") == len(test_matrix.CASES), matrix.REMEDY


@pytest.mark.live
def test_two_instances_of_a_server_run_side_by_side(nginx: Nginx) -> None:
    with Nginx() as other:
        assert other.store != nginx.store
        assert servers.status_of("GET", f"{other.store}/none") == 404
    assert servers.status_of("GET", f"{nginx.store}/none") == 404
