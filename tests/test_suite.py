"""The suite's own promises: servers are started once, end with the session, and no test leaves anything behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import children, started, wait_for

TESTS = Path(__file__).parent
pytestmark = [pytest.mark.servers, pytest.mark.slow]

INNER = """
import os, time
from pathlib import Path
import pytest
import servers

@pytest.mark.servers
@pytest.mark.parametrize("number", range(4))
def test_asks(number):
    port = servers.store("s3-rclone").port
    (Path(os.environ["PORTS"]) / f"{os.getpid()}-{port}").touch()
    wanted = int(os.environ["WORKERS"])
    while len(list(Path(os.environ["PORTS"]).iterdir())) < wanted:
        time.sleep(0.05)
    time.sleep(float(os.environ["PAUSE"]))

def test_is_not_marked():
    with pytest.raises(servers.ServerFailed, match="mark .*test_is_not_marked"):
        servers.store("s3-rclone")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A session of its own: tests, with the conftest of these."""
    (tmp_path / "ports").mkdir()
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n" + CONFTEST)
    (tmp_path / "pyproject.toml").write_text((TESTS.parent / "pyproject.toml").read_text())
    return tmp_path


CONFTEST = """
import importlib.util
spec = importlib.util.spec_from_file_location("outer", sys.path[0] + "/conftest.py")
outer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(outer)
for name in dir(outer):
    if name.startswith("pytest_"):
        globals()[name] = getattr(outer, name)
"""


def session(folder: Path, pause: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--numprocesses", "2", folder / "test_inner.py"]
    environment = {**os.environ, "PORTS": str(folder / "ports"), "WORKERS": "2", "PAUSE": str(pause)}
    for name in [name for name in environment if name.startswith(("PYTEST", "TEST_SERVERS"))]:
        del environment[name]
    run = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    started.append(run)
    return run


def test_workers_share_a_server_that_ends_with_the_session(folder: Path) -> None:
    said = session(folder, 0).communicate(timeout=120)[0]
    assert "5 passed" in said, said
    pairs = [path.name.split("-") for path in (folder / "ports").iterdir()]
    assert len({pid for pid, _ in pairs}) == 2
    assert len({port for _, port in pairs}) == 1
    assert not listening(int(pairs[0][1]))


@pytest.mark.soak
def test_servers_die_with_a_session_that_is_killed(folder: Path) -> None:
    run = session(folder, 600)
    wait_for(lambda: len(list((folder / "ports").iterdir())) == 2)
    port = int(next((folder / "ports").iterdir()).name.split("-")[1])
    assert listening(port)
    below = list(children(run.pid))  # two workers and the server
    assert len(below) == 3
    run.kill()
    run.communicate()
    wait_for(lambda: not listening(port))
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
