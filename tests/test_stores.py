"""backup, list, purge and restore on every kind of store: content, request counts, latency's friends, faults."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from conftest import Program, add_point, contents, wait_for
from servers import Store, TroubleProxy
from test_storage import open_store

PROCESSES = 2
KINDS = ["disk", "s3-rclone", "s3-swift", "swift-v1", "swift-v3", "gcs"]
NETWORK = ["s3-rclone", "swift-v1", "gcs"]
NAMES = [
    "servers.web1.cpu",
    "servers.web1.load avg",
    "_tagged.a1b.2c3.disk;dc=a",
    "über.größe",
    "a+b.c#d?",
    "top",
    "x.y.z",
]


def connect(program: Program, store: Store) -> Callable[..., str]:
    """Point the program at a new bucket of `store`; what runs a command there."""
    program.environment = {
        "AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true", "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull, **store.environment,
    }  # fmt: skip
    if store.driver not in servers.LOCAL:
        program.bucket = program.bucket or f"end-to-end-{uuid.uuid4().hex[:12]}"

    def run(command: str, *options: object, status: int = 0) -> str:
        # Each worker reads boto3's description of the service, which costs more than all its work here.
        few = ["-f", "2"] if store.driver == "s3" and command not in ("list", "doctor") else []
        return program(command, store.driver, *store.arguments, *few, *options, status=status)

    return run


@pytest.fixture
def small_tree(program: Program) -> Program:
    for number, name in enumerate(NAMES):
        program.write(name, number)
    return program


def stored(program: Program, store: Store, with_runs: bool = False) -> dict[str, bytes]:
    """Every object, payloads decompressed; the records of runs only if asked for."""
    driver = open_store(store, program.bucket or str(program.store))
    found = {}
    for listed in driver.list(""):
        if ".runs/" in listed.key and not with_runs:
            continue
        body = driver.get(listed.key)
        found[listed.key] = gzip.decompress(body) if listed.key.endswith(".gz") else body
    driver.close()
    return found


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.soak) if kind == "s3-swift" else kind for kind in KINDS],
)
def test_the_whole_life_of_a_tree(small_tree: Program, kind: str) -> None:
    program, store = small_tree, servers.store(kind)
    run = connect(program, store)
    assert "7 backed up" in run("backup")
    first = contents(program.prefix)
    assert "7 unchanged, 0 backed up" in run("backup")
    objects = stored(program, store)
    assert {re.sub(r"/2.*\+00:00", "/STAMP", key) for key in objects} == {
        f"{metric}/STAMP.{end}" for metric in NAMES for end in ("sha1", "wsp.gz")
    }
    for name in NAMES:
        path = program.prefix / (name.replace(".", "/") + ".wsp")
        (payload,) = [body for key, body in objects.items() if key.startswith(f"{name}/") and key.endswith(".gz")]
        assert payload == path.read_bytes()
    shown = [json.loads(line) for line in run("list", "--json", "-q").splitlines()]
    assert sorted(line["metric"] for line in shown) == sorted(NAMES)
    stamp = max(backup["stamp"] for line in shown for backup in line["backups"])
    time.sleep(1.1)
    for name in NAMES[:3]:
        add_point(program.prefix / (name.replace(".", "/") + ".wsp"))
    assert "4 unchanged, 3 backed up" in run("backup", "-r", "1")
    assert len(stored(program, store)) == 14  # the three older ones are gone
    second = contents(program.prefix)
    assert "7 good" in run("verify")
    target = program.home / "target"
    target.mkdir()
    assert "1 created" in run("restore", "-m", "top", "-c", stamp, "-p", target)
    assert contents(target) == {"top.wsp": first["top.wsp"]}
    assert "6 created" in run("restore", "-p", target)
    assert contents(target) == second
    (program.prefix / "top.wsp").unlink()
    assert "1 marked missing" in run("backup")
    assert [key for key in stored(program, store) if key.endswith(".missing")]
    run("purge", "-x", "-1")
    assert "1 purged" in run("purge", "-x", "0")
    left = stored(program, store)
    assert len(left) == 12
    assert not any(key.startswith("top/") for key in left)


@pytest.fixture
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[Store, TroubleProxy]]:
    """The store that the test's parameter names, behind a proxy."""
    direct = servers.store(request.param)
    with TroubleProxy(direct.port) as proxy:
        yield direct.through(proxy.port), proxy


def plant(program: Program, count: int) -> None:
    first = program.write("many.m0")
    for number in range(1, count):
        shutil.copy(first, first.with_name(f"m{number}.wsp"))


@pytest.mark.parametrize("proxied", NETWORK, indirect=True)
def test_requests_are_few(program: Program, proxied: tuple[Store, TroubleProxy]) -> None:
    store, proxy = proxied
    run = connect(program, store)
    count = 300
    plant(program, count)
    run("backup")
    proxy.requests.clear()
    assert f"{count} unchanged" in run("backup")
    # a get, two puts and up to six listings are about run records and increments; one, whether there are backups
    assert proxy.requests.total() <= 2 * count / store.page + 4 + 10, proxy.requests
    changed = 40
    for number in range(changed):
        add_point(program.prefix / f"many/m{number}.wsp")
    proxy.requests.clear()
    assert f"{changed} backed up" in run("backup", "-r", "1")
    requests = proxy.requests
    trials = 4  # whether an S3 service knows conditions is tried once by each worker
    assert requests["PUT"] + requests["POST"] <= 2 * changed + trials, requests
    assert requests["GET"] <= changed + 2  # the last run's record; Swift is asked once what it can delete at a time
    assert requests["DELETE"] == 0
    assert requests["BULKDELETE"] <= 2
    assert requests["EXPECT"] == 0


@pytest.mark.servers
@pytest.mark.soak
def test_ten_thousand_purged_objects_take_ten_requests(program: Program) -> None:
    program.write("stays")
    bucket = program.home / "server/buckets/planted"
    with servers.rclone_s3(program.home / "server") as server, TroubleProxy(server.port) as proxy:
        for number in range(5000):  # rclone serves a directory, and has not looked at it yet
            folder = bucket / f"gone.m{number}"
            folder.mkdir(parents=True)
            for end in ("sha1", "wsp.gz"):
                (folder / f"2026-01-01T00:00:00+00:00.{end}").touch()
        program.bucket = "planted"
        run = connect(program, Store("s3", [f"endpoint={proxy.url}"], server.environment, 1000, proxy.port))
        assert "none of 5000 metrics in the store" in run("backup", "-x", "0", "-n", status=3)
        assert proxy.requests["BULKDELETE"] == 0
        assert "5000 purged" in run("purge", "-x", "0", "--purge-anyway")
        assert proxy.requests["BULKDELETE"] == 10
        assert not list(bucket.glob("gone.*"))


@pytest.mark.parametrize("proxied", NETWORK, indirect=True)
def test_faults_are_survived(program: Program, proxied: tuple[Store, TroubleProxy]) -> None:
    store, proxy = proxied
    run = connect(program, store)
    plant(program, 150)
    proxy.refuse, proxy.cut = 0.05, 0.02
    assert "150 backed up" in run("backup")
    target = program.home / "target"
    target.mkdir()
    assert "150 created" in run("restore", "-p", target)
    assert contents(target) == contents(program.prefix)
    assert proxy.troubles > 20


@pytest.mark.servers
@pytest.mark.soak
def test_a_store_that_goes_away_ends_the_run_and_stays_consistent(tmp_path: Path) -> None:
    """All three at once, since each takes a minute to give up."""
    runs = []
    for kind in NETWORK:
        (tmp_path / kind).mkdir()
        program, direct = Program(tmp_path / kind), servers.store(kind)
        plant(program, 2000)
        proxy = TroubleProxy(direct.port).__enter__()
        proxy.delay = 0.02
        store = direct.through(proxy.port)
        connect(program, store)
        run = program.start("backup", store.driver, *store.arguments)
        wait_for(lambda: proxy.requests["PUT"] + proxy.requests["POST"] >= 100)  # noqa: B023
        proxy.vanish()
        runs.append((program, direct, proxy, run, time.monotonic()))
    ended = []
    for program, direct, proxy, run, began in runs:
        _, said = run.communicate(timeout=120)
        assert time.monotonic() - began < 120
        ended.append((program, direct, proxy, run, said))
    for program, direct, proxy, run, said in ended:
        assert run.returncode in (1, 3), said
        assert "Traceback" not in said
        assert not program.stamp.exists()
        proxy.__exit__()
        again = connect(program, direct)
        _, checked = program.start("verify", direct.driver, *direct.arguments).communicate()
        assert re.search(r"(\d+) examined, \1 good", checked), checked  # what is complete is good
        assert set(re.findall(r"^ERROR: many\.\S+ (.*)", checked, re.MULTILINE)) <= {
            "has no complete backup, only debris of an interrupted run; see list --debris"
        }
        assert re.search(r"2000 examined, [1-9]\d* unchanged", again("backup"))
        assert "2000 good" in again("verify")


@pytest.mark.parametrize("kind", ["s3-rclone", "swift-v1", "swift-v3"])
def test_no_secret_in_any_log_nor_in_ps(program: Program, kind: str) -> None:
    store = servers.store(kind)
    connect(program, store)
    program.write("a.b")
    named = re.compile("SECRET|KEY|PASSWORD|TOKEN")
    secrets = {value for name, value in store.environment.items() if named.search(name) and len(value) > 6}
    assert secrets
    run = program.start("backup", store.driver, *store.arguments, "-d")
    commands = set()
    while run.poll() is None:
        for pid in [run.pid]:
            try:
                commands.add(Path(f"/proc/{pid}/cmdline").read_text())
            except OSError:
                pass
        time.sleep(0.01)
    _, said = run.communicate()
    assert run.returncode == 0, said
    log = program.log.read_text()
    assert "a.b: stored" in log
    for text in (said, log, *commands):
        for secret in secrets:
            assert secret not in text
        assert not re.search(r"AWS4-HMAC|X-Auth-Token|Signature=|gAAAA|AUTH_tk", text)


@pytest.mark.servers
def test_a_node_that_may_list_below_its_storage_path_only_is_told_of_a_mistyped_name(program: Program) -> None:
    store = servers.store("s3-rclone")
    denied: list[bytes] = []

    def refuse(head: bytes) -> bytes | None:
        line = head.split(b"\r\n")[0]
        if b"list-type" not in line or b"prefix=node1%2F" in line:
            return None
        denied.append(line)
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        return b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b" % (
            len(body), body
        )  # fmt: skip

    with servers.TroubleProxy(store.port) as proxy:
        run = connect(program, store.through(proxy.port))
        program.write("a")
        run("backup", "--storage-path", "node2")  # it creates the bucket
        proxy.lie = refuse
        program.state.unlink()
        said = run("backup", "--storage-path", "node1")
        assert "WARNING" not in said
        assert denied, "the first backup looks whether it is a store"
        for command in ("restore", "verify", "list"):
            said = run(command, "--storage-path", "node1", "-m", "mistyped", status=1)
            assert "no metric in" in said
            assert "matches; check -m, --exclude and --storage-path" in said
