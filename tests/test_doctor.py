"""doctor, on a directory and on S3."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import servers
from conftest import Program
from servers import TroubleProxy, refuse_deletions
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


@pytest.mark.parametrize(
    ("written", "result", "text"),
    [(1000, "ok", "same"), (900, "warning", "ahead of"), (1100, "warning", "behind"), (5000, "failure", "behind")],
)
def test_clocks(written: float, result: str, text: str) -> None:
    line = doctor.clock(1000.5, 1001.0, written)
    assert line.result == result
    assert text in line.text


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
