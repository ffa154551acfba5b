"""To object stores, at a distance: S3 beside its peers; Swift and Google Cloud Storage.

The services are those of the tests, on this machine: client, service and the proxy that adds latency and counts
share its cores.  So beside what a run took stand its CPU time and what the latency alone comes to.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import whispertree
from peers import Rclone, Restic, Service, installed
from timing import Command, Table, Target, run
from tools import Tool, WhisperBackup, empty

from whisperbackup.storage.s3 import S3

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import servers  # the tests'

METRICS = 2000
LATENCY = 0.03  # seconds
IN_FLIGHT = 4 * S3.threads  # what -f is by default, times threads; Swift and GCS have as many
ADVANCED = "40% of the files advanced by a point"
STEPS = ("first backup", "unchanged", ADVANCED, "restore all", "restore one metric")

Choice = Callable[[servers.Store, Path], list[Tool]]


def s3(_root: Path | None, scratch: Path, rounds: int) -> list[Target]:
    """S3 next door, where nothing stands between, and at a distance."""
    tree = _tree(scratch)
    for latency in (0, LATENCY):
        _measure("s3-rclone", latency, tree, scratch, rounds, _s3_tools)
    return []


def others(_root: Path | None, scratch: Path, rounds: int) -> list[Target]:
    """Swift and Google Cloud Storage at a distance."""
    tree = _tree(scratch)
    for kind in ("swift-v1", "gcs"):
        _measure(kind, LATENCY, tree, scratch, rounds, lambda store, home: [_own(store, home)])
    return []


def _tree(scratch: Path) -> Path:
    whispertree.build(scratch / "small", METRICS, schema="minute")
    return scratch / "small"


def _own(store: servers.Store, home: Path) -> WhisperBackup:
    environment = {**store.environment, "AWS_EC2_METADATA_DISABLED": "true"}
    return WhisperBackup(home, "gz", (store.driver, *store.arguments), environment, IN_FLIGHT)


def _s3_tools(store: servers.Store, home: Path) -> list[Tool]:
    service = Service(store.arguments[0].removeprefix("endpoint="), store.environment)
    peers: dict[str, Tool] = {"restic": Restic(home, service), "rclone": Rclone(home, service, IN_FLIGHT)}
    return [_own(store, home), *(peers[name] for name in installed(*peers))]


def _measure(kind: str, latency: float, tree: Path, scratch: Path, rounds: int, choose: Choice) -> None:
    """Each tool goes through all the steps with a store of its own, in turn, `rounds` times; a table a step."""
    store, requests = servers.store(kind), Counter[str]()
    with contextlib.ExitStack() as held:
        if latency:
            proxy = held.enter_context(servers.TroubleProxy(store.port))
            proxy.delay = latency
            store, requests = store.through(proxy.port), proxy.requests
        tables = {step: Table(f"{kind}, {METRICS} metrics, {latency * 1000:g} ms away: {step}") for step in STEPS}
        tools = choose(store, scratch)
        for _ in range(rounds):
            for tool in tools:
                tool.clear()
                for step, table in tables.items():
                    command = _command(step, tool, tree, scratch / "target")
                    os.sync()
                    requests.clear()
                    taken, sent = run(command), requests.total()
                    limit = sent * latency / tool.in_flight
                    table.add(tool.label, taken, {"requests": sent, "limit s": limit} if latency else None)
    for table in tables.values():
        table.show()


def _command(step: str, tool: Tool, tree: Path, target: Path) -> Command:
    """What the step is, everything before it made ready."""
    empty(target)
    if step == ADVANCED:
        whispertree.advance(tree, 0.4)
    if not step.startswith("restore"):
        return tool.backup(tree)
    one = next(tree.rglob("*.wsp")).relative_to(tree)
    return tool.restore(target, str(one) if step == "restore one metric" else "")
