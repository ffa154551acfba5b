"""The days of an operator: nodes that may not delete, one bucket, one machine that prunes, and a node that is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import servers
import whisper
from conftest import Program, add_point, contents
from servers import TroubleProxy, refuse_deletions
from test_stores import connect

NODES = ("node1", "node2", "node3")
METRICS = 4


@pytest.mark.soak
@pytest.mark.servers
def test_nodes_that_may_not_delete_a_machine_that_prunes_and_a_node_that_is_lost(tmp_path: Path) -> None:
    store = servers.store("s3-rclone")
    programs: dict[str, Program] = {}
    for node in NODES:
        (tmp_path / node).mkdir()
        programs[node] = Program(tmp_path / node)
        for number in range(METRICS):
            programs[node].write(f"servers.{node}.disk{number}")
    (tmp_path / "admin").mkdir()
    admin = Program(tmp_path / "admin")
    admin.bucket = "forty-nodes"
    everywhere = connect(admin, store)
    with TroubleProxy(store.port) as proxy:
        proxy.lie = refuse_deletions

        def on_each(command: str, *options: str) -> None:
            for node, program in programs.items():
                program.bucket = admin.bucket
                run = connect(program, store.through(proxy.port))
                run(command, "--storage-path", node, "--no-delete", *options)
                for path in program.prefix.rglob("*.wsp"):
                    add_point(path)

        on_each("backup", "-r", "1")
        on_each("increment")
        on_each("increment")
        (programs["node3"].prefix / "servers/node3/disk0.wsp").unlink()
        on_each("backup", "-r", "1")
        on_each("doctor")
        assert not proxy.troubles, "a request to delete was sent"
    for node in NODES:
        kept = METRICS - (node == "node3")
        said = everywhere("prune", "--storage-path", node, "-r", "1")
        assert f"{kept} removed, {METRICS - kept} missing, 0 purged" in said
    lines = everywhere("list", "--summary", "--json").splitlines()
    for node, summary in zip(NODES, map(json.loads, lines), strict=True):
        assert (summary["storage_path"], summary["metrics"], summary["backups"]) == (f"{node}/", METRICS, METRICS)
        assert (summary["orphans"], summary["increments"], summary["last_run"]["status"]) == (0, 2, 0)

    lost, other = programs["node1"], programs["node2"]
    own = contents(other.prefix)
    in_backup = everywhere("verify", "--storage-path", "node1")
    assert "0 failed" in in_backup
    assert f"{METRICS} created" in connect(other, store)("restore", "--storage-path", "node1")
    after = contents(other.prefix)
    assert {name: after[name] for name in own} == own
    for path in lost.prefix.rglob("*.wsp"):
        back = other.prefix / path.relative_to(lost.prefix)
        (_, live), (_, restored) = (whisper.fetch(str(file), 0) for file in (path, back))
        # The point that came after the last backup is lost with the node.
        differing = [pair for pair in zip(live, restored, strict=False) if pair[0] != pair[1]]
        assert len(differing) <= 2
        assert all(point is None or was is not None for was, point in differing)
