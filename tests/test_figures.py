"""--carbon: the counters of every run reach a real carbon, and no run waits for it or fails with it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import whisper
from conftest import Program, wait_for
from test_carbon import Carbon

from whisperbackup.report.carbon import Receiver, node_name, parse_receiver

NODE = node_name(socket.gethostname())


@pytest.fixture
def carbon(tmp_path: Path) -> Iterator[Carbon]:
    carbon = Carbon(tmp_path / "carbon", schema="1s:10m")
    yield carbon
    carbon.stop()


@pytest.fixture
def two(program: Program) -> Program:
    """A tree of two metrics."""
    program.write("a.one")
    program.write("a.two")
    return program


def report(carbon: Carbon, program: Program, command: str, *options: object, status: int = 0) -> None:
    """A run that reports to `carbon`."""
    said = program(command, "disk", "--carbon", f"127.0.0.1:{carbon.port}", *options, status=status)
    assert "did not reach" not in said


def values(carbon: Carbon, command: str, figure: str, prefix: str = "whisper-backup") -> list[float]:
    """What carbon's file holds of a figure, once it holds anything, the oldest first."""
    path = carbon.prefix / f"{prefix.replace('.', '/')}/{NODE}/{command}/{figure}.wsp"
    wait_for(path.exists)
    wait_for(lambda: _held(path))
    return _held(path)


def _held(path: Path) -> list[float]:
    """The values in a file; none while carbon is creating it."""
    try:
        (_, held) = whisper.fetch(str(path), int(time.time()) - 500)
    except whisper.CorruptWhisperFile:
        return []
    return [value for value in held if value is not None]


def test_a_machine_that_prunes_for_others_reports_under_their_names(two: Program, carbon: Carbon) -> None:
    two("backup", "disk", "--storage-path", "node7")
    report(carbon, two, "prune", "--storage-path", "node7", "--carbon-node", "node7.example.org")
    folder = carbon.prefix / "whisper-backup/node7/prune"
    wait_for(lambda: (folder / "success_time.wsp").exists())
    assert not (carbon.prefix / f"whisper-backup/{NODE}").exists()


def test_the_counters_of_every_command_can_be_read_back(two: Program, carbon: Carbon) -> None:
    began = int(time.time())
    report(carbon, two, "backup")
    stored = sum(path.stat().st_size for path in two.store.rglob("*.wsp.gz"))
    assert values(carbon, "backup", "backed_up") == [2]
    assert values(carbon, "backup", "stored_bytes") == [stored]
    assert values(carbon, "backup", "vanished") == [0]
    assert values(carbon, "backup", "failed") == [0]
    assert values(carbon, "backup", "status") == [0]
    assert 0 < values(carbon, "backup", "seconds")[0] < 60
    assert began <= values(carbon, "backup", "success_time")[0] <= time.time()
    target = two.home / "target"
    target.mkdir()
    report(carbon, two, "restore", "-p", target)
    assert values(carbon, "restore", "created") == [2]
    report(carbon, two, "purge")
    assert values(carbon, "purge", "examined") == [2]
    report(carbon, two, "verify")
    assert values(carbon, "verify", "good") == [2]
    report(carbon, two, "verify", "--tree")
    assert values(carbon, "verify_tree", "same") == [2]


def test_a_run_that_failed_is_told_and_leaves_the_last_success_as_it_was(two: Program, carbon: Carbon) -> None:
    report(carbon, two, "backup")
    successes = values(carbon, "backup", "success_time")
    time.sleep(1.1)
    (two.prefix / "a/one.wsp").write_bytes(b"cut off")
    report(carbon, two, "backup", status=3)
    wait_for(lambda: values(carbon, "backup", "status") == [0, 3])
    time.sleep(1.1)
    report(carbon, two, "backup", "-p", "/nowhere", status=1)
    wait_for(lambda: values(carbon, "backup", "status") == [0, 3, 1])
    wait_for(lambda: values(carbon, "backup", "failed") == [0, 1, 0])
    assert values(carbon, "backup", "success_time") == successes


def test_a_stopped_run_is_told(two: Program, carbon: Carbon) -> None:
    for number in range(60):
        two.write(f"m{number}")
    run = two.start("backup", "disk", "-f", "1", "--bwlimit", "0.02", "--carbon", f"127.0.0.1:{carbon.port}")
    wait_for(lambda: any(two.store.rglob("*.sha1")))
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143
    run.communicate()
    assert values(carbon, "backup", "status") == [143]
    assert values(carbon, "backup", "backed_up") == [len(list(two.store.rglob("*.sha1")))]
    assert not list(carbon.prefix.rglob("success_time.wsp"))


def test_a_store_that_keeps_nothing_is_no_success(two: Program, carbon: Carbon) -> None:
    two("backup", "noop", "--carbon", f"127.0.0.1:{carbon.port}")
    wait_for(lambda: list(carbon.prefix.rglob("status.wsp")))
    carbon.stop()  # which writes what it still holds
    assert not two.stamp.exists()
    assert not list(carbon.prefix.rglob("success_time.wsp"))


def test_noop_tells_nothing_and_a_prefix_goes_before(two: Program, carbon: Carbon) -> None:
    report(carbon, two, "backup", "-n")
    report(carbon, two, "backup", "--carbon-prefix", "ops.backup-1")
    assert values(carbon, "backup", "examined", "ops.backup-1") == [2]
    assert not (carbon.prefix / "whisper-backup").exists()


# -- a carbon that is not there, or does not answer ---------------------------------------------------


def test_a_carbon_that_is_not_there_is_a_warning(program: Program) -> None:
    program.write("a")
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        said = program("backup", "disk", "--carbon", f"127.0.0.1:{taken.getsockname()[1]}")
    assert said.count("WARNING: the counters did not reach carbon at 127.0.0.1") == 1
    assert "Connection refused" in said
    assert program.stamp.exists()


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a listener whose queue is full: connecting to it takes minutes to fail."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for client in waiting:
            client.close()


@pytest.mark.slow
def test_a_deaf_carbon_costs_five_seconds(program: Program, deaf: int) -> None:
    program.write("a")
    began = time.monotonic()
    said = program("backup", "disk", "--carbon", f"127.0.0.1:{deaf}")
    assert 4.5 < time.monotonic() - began < 20
    assert said.count("WARNING: the counters did not reach carbon") == 1
    assert program.stamp.exists()


def test_a_signal_while_carbon_is_waited_for_does_not_change_how_the_run_ended(program: Program, deaf: int) -> None:
    program.write("a")
    for signals, status in ((1, 0), (2, 143)):
        run = program.start("backup", "disk", "--carbon", f"127.0.0.1:{deaf}", "-f", "1")
        assert run.stderr
        for line in run.stderr:
            if " complete" in line:
                break
        time.sleep(0.3)
        for _ in range(signals):
            run.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        said = run.communicate(timeout=60)[1]
        assert run.returncode == status, said
        assert "Traceback" not in said


@pytest.mark.slow
def test_the_lock_is_free_while_carbon_is_waited_for(program: Program, deaf: int) -> None:
    program.write("a")
    run = program.start("backup", "disk", "--carbon", f"127.0.0.1:{deaf}")
    wait_for(program.stamp.exists)
    program("backup", "disk", "--locktimeout", "1")
    assert run.poll() is None
    assert run.wait(60) == 0
    run.communicate()


def test_an_ipv6_address_is_reached(program: Program) -> None:
    program.write("a")
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        said = program("backup", "disk", "--carbon", f"[::1]:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
        with connection, connection.makefile() as file:
            lines = file.read().splitlines()
    assert said.count("WARNING") == 1  # the new store
    assert all(re.fullmatch(rf"whisper-backup\.{re.escape(NODE)}\.backup\.\w+ [\d.]+ \d{{10}}", line) for line in lines)
    assert len({line.split()[2] for line in lines}) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can put another resolv.conf in place")
@pytest.mark.slow
def test_a_name_server_that_does_not_answer_costs_five_seconds(program: Program) -> None:
    program.write("a")
    resolv = program.home / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.99\noptions timeout:10\n")
    with socket.socket(type=socket.SOCK_DGRAM) as name_server:
        name_server.bind(("127.0.0.99", 53))
        words = program.words("backup", "disk", "--carbon", "graphite.example.org")
        script = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
        began = time.monotonic()
        ran = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", resolv, *words], capture_output=True, text=True, timeout=60
        )
        assert name_server.recv(500), "it was asked"
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("WARNING: the counters did not reach carbon at graphite.example.org") == 1
    assert 4.5 < time.monotonic() - began < 20


def test_a_name_that_cannot_be_looked_up_is_a_warning(program: Program) -> None:
    program.write("a")
    assert program("backup", "disk", "--carbon", "x" * 100 + ".invalid").count("WARNING: the counters did not") == 1


@pytest.mark.parametrize(
    ("text", "receiver"),
    [
        ("graphite", Receiver("graphite", 2003)),
        ("graphite.example.org:2103", Receiver("graphite.example.org", 2103)),
        ("10.0.0.1:1", Receiver("10.0.0.1", 1)),
        ("[::1]", Receiver("::1", 2003)),
        ("[fe80::1%eth0]:65535", Receiver("fe80::1%eth0", 65535)),
    ],
)
def test_receivers_in_every_spelling(text: str, receiver: Receiver) -> None:
    assert parse_receiver(text) == receiver


@pytest.mark.parametrize("text", ["", ":2003", "::1", "a:0", "a:65536", "a:b", "[::1", "a b", "a:1:2", "[::1]2003"])
def test_what_is_no_receiver_is_a_usage_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_receiver(text)


@pytest.mark.parametrize("options", [["--carbon", "::1"], ["--carbon-prefix", "a..b"], ["--carbon-prefix", "a b"]])
def test_usage(program: Program, options: list[str]) -> None:
    assert options[0] in program("backup", "disk", *options, status=2)


def test_a_nodes_name_is_one_part_of_a_metrics() -> None:
    assert node_name("node-1.example.org") == "node-1"
    assert node_name("ñode 1") == "_ode_1"
    assert node_name("") == "_"
