"""A tree that a real carbon-cache writes to, at this moment."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import snappy
import zstandard
from conftest import Program, contents, wait_for

from whisperbackup.tree.names import metric_name

PROCESSES = 2
METRICS = [f"servers.web{number}.cpu" for number in range(20)] + ["disk.used;dc=a;host=b"]


class Carbon:
    """A carbon-cache on free ports, with a tree of its own."""

    def __init__(self, home: Path, locks: bool = True, schema: str = "1s:5m,10s:1h") -> None:
        self.home, self.log = home, home / "carbon.log"
        self.prefix = home / "whisper"
        servers.check_mark()
        self.port, pickle, query = (servers.free_port() for _ in range(3))
        (home / "conf").mkdir(parents=True)
        self.prefix.mkdir()
        (home / "conf/carbon.conf").write_text(
            f"[cache]\nSTORAGE_DIR = {home}\nLOCAL_DATA_DIR = {self.prefix}\nCONF_DIR = {home}/conf\nLOG_DIR = {home}\n"
            f"PID_DIR = {home}\nUSER =\nLINE_RECEIVER_INTERFACE = 127.0.0.1\nLINE_RECEIVER_PORT = {self.port}\n"
            f"PICKLE_RECEIVER_INTERFACE = 127.0.0.1\nPICKLE_RECEIVER_PORT = {pickle}\n"
            f"CACHE_QUERY_INTERFACE = 127.0.0.1\nCACHE_QUERY_PORT = {query}\nMAX_CREATES_PER_MINUTE = inf\n"
            f"MAX_UPDATES_PER_SECOND = inf\nWHISPER_LOCK_WRITES = {locks}\nCARBON_METRIC_INTERVAL = 0\n"
            "CACHE_WRITE_STRATEGY = naive\nENABLE_TAGS = False\n"
        )
        (home / "conf/storage-schemas.conf").write_text(f"[all]\npattern = .*\nretentions = {schema}\n")
        script = shutil.which("carbon-cache.py", path=str(Path(sys.executable).parent)) or "carbon-cache.py"
        environment = {
            **os.environ,
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
            "GRAPHITE_ROOT": str(home),
            "GRAPHITE_CONF_DIR": str(home / "conf"),
            "GRAPHITE_STORAGE_DIR": str(home),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, script, f"--config={home}/conf/carbon.conf", "--nodaemon", "start"],
                stdout=log, stderr=log, env=environment, preexec_fn=servers.die_with_parent,
            )  # fmt: skip
        wait_for(self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def send(self, metrics: list[str], value: float, when: int | None = None) -> None:
        """One point for each metric."""
        lines = "".join(f"{metric} {value} {when or int(time.time())}\n" for metric in metrics)
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(lines.encode())

    def stop(self) -> None:
        """End the daemon, which flushes its cache."""
        self.process.terminate()
        self.process.wait(60)

    def said(self) -> str:
        """Everything that it logged."""
        return "".join(path.read_text() for path in self.home.rglob("*.log"))


@pytest.fixture
def carbon(tmp_path: Path) -> Iterator[Carbon]:
    carbon = Carbon(tmp_path / "carbon")
    yield carbon
    carbon.stop()


def test_a_tree_that_carbon_writes_to_comes_back_as_it_was_read(program: Program, carbon: Carbon) -> None:
    now = int(time.time())
    for age in range(120, 0, -10):
        carbon.send(METRICS, age / 7, now - age)
    wait_for(lambda: len(list(carbon.prefix.rglob("*.wsp"))) == len(METRICS))
    decompress = {
        "gz": gzip.decompress,
        "sz": lambda payload: snappy.StreamDecompressor().decompress(payload),
        "zst": lambda payload: zstandard.ZstdDecompressor().decompress(payload),
    }
    for codec, expand in decompress.items():
        program.store = program.home / codec
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(carbon.port), *METRICS])
        time.sleep(0.5)
        said = program("backup", "disk", "--new-store", "-p", carbon.prefix, "-a", codec)
        writer.terminate()
        writer.wait()
        assert f"{len(METRICS)} backed up" in said
        read = {}
        paths = [str(path.relative_to(carbon.prefix)) for path in carbon.prefix.rglob("*.wsp")]
        assert any(path.startswith("_tagged/") for path in paths)
        for path in paths:
            (payload,) = (program.store / metric_name(os.fsencode(path))).glob(f"*.wsp.{codec}")
            content = expand(payload.read_bytes())
            mark = payload.with_name(payload.name.replace(f".wsp.{codec}", ".sha1"))
            assert mark.read_text() == hashlib.sha1(content).hexdigest()
            read[path] = mark.read_text()
        target = program.home / f"restored-{codec}"
        target.mkdir()
        program("restore", "disk", "-p", target)
        assert contents(target) == read
    assert "Traceback" not in carbon.said()


WRITER = """
import socket, sys, time
while True:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as client:
        for number in range(50):
            now = time.time()
            client.sendall("".join(f"{metric} {now} {int(now)}\\n" for metric in sys.argv[2:]).encode())
            time.sleep(0.02)
"""
