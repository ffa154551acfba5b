"""doctor, on a directory and on S3."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import servers
from conftest import Program
from servers import TroubleProxy, refuse_deletions
from test_progress import shown
from test_stores import connect, stored

from whisperbackup.commands import doctor


def results(printed: str) -> dict[str, str]:
    found = [json.loads(line) for line in printed.splitlines() if line.startswith('{"check"')]
    return {line["check"]: line["result"] for line in found}


def conf(machine: Path, name: str, text: str) -> None:
    path = machine / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_healthy_node(program: Program, machine: Path) -> None:
    program.write("a.b")
    program("backup")
    conf(machine, "opt/graphite/conf/carbon.conf", "[cache]\nWHISPER_LOCK_WRITES = True\n[cache:b]\nX = 1\n")
    before = sorted(path for path in program.store.rglob("*"))
    found = results(program("doctor", "disk", "--json"))
    assert set(found.values()) == {"ok"}, found
    assert set(found) == {"tree", "locking", "store", "rights", "delete", "clock", "runs", "state", "log", "stamp"}
    assert sorted(path for path in program.store.rglob("*")) == before


def test_what_is_wrong_is_named_with_its_remedy(program: Program) -> None:
    program.write("a.b")
    printed = program("doctor", status=3)
    assert "failure  store: " in printed
    assert "run backup once" in printed
    assert "warning  locking: no configuration" in printed
    program("backup")
    assert results(program("doctor", "disk", "--json"))["locking"] == "warning"
    os.utime(program.stamp, (time.time() - 10 * 86400,) * 2)
    assert results(program("doctor", "disk", "--json", status=3))["stamp"] == "failure"
    program.store.rename(program.home / "unmounted")
    program.store.mkdir()
    assert results(program("doctor", "disk", "--json", status=3))["store"] == "failure"
    assert not list(program.store.iterdir())
    (program.prefix / "a/b.wsp").unlink()
    assert results(program("doctor", "disk", "--json", status=3))["tree"] == "failure"


def test_a_dry_run_writes_nothing(program: Program) -> None:
    program.write("a.b")
    program("backup")
    before = {path: path.stat().st_mtime_ns for path in program.store.rglob("*")}
    assert results(program("doctor", "disk", "--json", "-n"))["rights"] == "warning"
    assert {path: path.stat().st_mtime_ns for path in program.store.rglob("*")} == before


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("[cache]\nWHISPER_LOCK_WRITES = True\n", "ok"),
        ("[cache]\nWHISPER_LOCK_WRITES = False\n", "warning"),
        ("[cache]\n# WHISPER_LOCK_WRITES = True\n", "warning"),
        ("[cache]\nWHISPER_LOCK_WRITES = True\n[cache:b]\nWHISPER_LOCK_WRITES = no\n", "warning"),
        ("[relay]\nWHISPER_LOCK_WRITES = True\n", "warning"),
        ("nonsense", "warning"),
    ],
)
def test_locking_of_carbon(text: str, result: str) -> None:
    assert doctor.carbon_locking("carbon.conf", text).result == result


@pytest.mark.parametrize(
    ("text", "result"),
    [("[whisper]\nflock = true\n", "ok"), ("[whisper]\nflock = false\n", "warning"), ("flock = ", "warning")],
)
def test_locking_of_go_carbon(text: str, result: str) -> None:
    assert doctor.go_carbon_locking("go-carbon.conf", text).result == result


def test_each_configuration_of_carbon_is_a_line_with_its_remedy(program: Program, machine: Path) -> None:
    program.write("a.b")
    program("backup")
    conf(machine, "opt/graphite/conf/carbon.conf", "[cache]\nWHISPER_LOCK_WRITES = False\n")
    conf(machine, "etc/carbon/carbon.conf", "[cache]\nWHISPER_LOCK_WRITES = True\n")
    conf(machine, "etc/go-carbon/go-carbon.conf", "[whisper]\nflock = false\n")
    (machine / "etc/go-carbon.conf").mkdir()  # it cannot be read
    lines = [json.loads(line) for line in program("doctor", "disk", "--json").splitlines() if '"locking"' in line]
    assert [line["result"] for line in lines] == ["warning", "ok", "warning", "warning"]
    assert "WHISPER_LOCK_WRITES = True in [cache]" in lines[0]["remedy"]
    assert "flock = true in [whisper]" in lines[2]["remedy"]
    assert "cannot read" in lines[3]["text"]
    conf(machine, "opt/graphite/conf/carbon.conf", "[cache]\nWHISPER_LOCK_WRITES = True\n")
    conf(machine, "etc/go-carbon/go-carbon.conf", "[whisper]\nflock = true\n")
    (machine / "etc/go-carbon.conf").rmdir()
    printed = program("doctor", "disk")
    assert printed.count("ok       locking: ") == 3


@pytest.mark.parametrize(
    ("written", "result", "text"),
    [(1000, "ok", "same"), (900, "warning", "ahead of"), (1100, "warning", "behind"), (5000, "failure", "behind")],
)
def test_clocks(written: float, result: str, text: str) -> None:
    line = doctor.clock(1000.5, 1001.0, written)
    assert line.result == result
    assert text in line.text


SHIFTED = {"s3-rclone": 3600, "swift-v1": -3600, "gcs": -120}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3-rclone", "swift-v1", "gcs"])
def test_a_clock_that_differs_from_the_stores(program: Program, kind: str) -> None:
    store, ahead = servers.store(kind), SHIFTED[kind]
    program.write("a.b")
    connect(program, store)("backup")
    assert results(connect(program, store)("doctor", "--json"))["clock"] == "ok"
    when = datetime.now(UTC) + timedelta(seconds=ahead)
    shift = f"Last-Modified: {format_datetime(when, usegmt=True)}\r".encode()

    def answer(head: bytes) -> bytes | None:
        """The metadata of an object on GCS, which is in the body."""
        if kind != "gcs" or not head.startswith(b"GET ") or b"/o/" not in head or b"alt=media" in head:
            return None
        body = json.dumps({"kind": "storage#object", "updated": when.strftime("%Y-%m-%dT%H:%M:%S.000Z")})
        start = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return (start + body).encode()

    with TroubleProxy(store.port) as proxy:
        proxy.lie = answer
        proxy.alter = lambda head, answer: re.sub(rb"(?i)last-modified: [^\r]*\r", shift, answer)
        run = connect(program, store.through(proxy.port))
        printed = run("doctor", "--json", status=3 if abs(ahead) >= doctor.MUCH_SKEW else 0)
    (line,) = (json.loads(line) for line in printed.splitlines() if '"clock"' in line)
    assert line["result"] == ("failure" if abs(ahead) >= doctor.MUCH_SKEW else "warning")
    assert re.search(rf"{'behind' if ahead > 0 else 'ahead of'} the store's$", line["text"])
    assert "NTP" in line["remedy"]


def test_quiet_and_without_a_tree(program: Program) -> None:
    program.write("a.b")
    program("backup")
    printed = program("doctor", "disk", "-q")
    assert [line.split(":")[0] for line in printed.splitlines() if line[0] != " "] == ["warning  locking"]
    (program.prefix / "a/b.wsp").unlink()
    lines = results(program("doctor", "disk", "--json", "-p", "/dev/null"))
    assert lines["tree"] == "ok"
    assert "locking" not in lines


def test_on_a_terminal_every_line_fits(program: Program) -> None:
    program.write("a.b")
    program("backup")
    screen = shown(program, "doctor", "disk", stdout=None).splitlines()
    text = " ".join(line.strip() for line in screen)
    assert f"the last success by {program.stamp} is 0 hours old" in text
    assert max(len(line) for line in screen if "/" not in line) <= 80  # no path is broken
    assert all(line[:9].strip() in ("", "ok", "warning") for line in screen)


def test_a_store_that_tells_no_time() -> None:
    assert doctor.clock(1000.5, 1001.0, None).result == "warning"


@pytest.mark.servers
@pytest.mark.slow
def test_credentials_that_may_not_delete(program: Program) -> None:
    store = servers.store("s3-rclone")
    program.write("a.b")
    connect(program, store)("backup")
    before = stored(program, store, with_runs=True)
    found = results(connect(program, store)("doctor", "--json"))
    assert (found["rights"], found["delete"], found["clock"], found["runs"]) == ("ok",) * 4
    assert stored(program, store, with_runs=True) == before
    with TroubleProxy(store.port) as proxy:
        proxy.lie = refuse_deletions
        as_node = connect(program, store.through(proxy.port))
        assert "run backup with --no-delete" in as_node("doctor", status=3)
        troubles = proxy.troubles
        assert troubles
        as_node("doctor", "--no-delete")
        assert proxy.troubles == troubles, "a request to delete was sent"
    run = connect(program, store)
    (probe, _) = sorted(stored(program, store, with_runs=True).keys() - before.keys())
    assert probe.startswith(".runs/.whisper-backup-")
    for command in ("list", "verify"):
        assert "unrecognized" not in run(command)
    assert "1 unchanged" in run("backup")
