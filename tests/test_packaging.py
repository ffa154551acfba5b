"""What is installed is what is written down."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from importlib.metadata import requires
from pathlib import Path

import pytest
from conftest import Program, contents

from whisperbackup import __version__

ROOT = Path(__file__).parent.parent


def canonical(requirement: str) -> str:
    requirement = requirement.replace('"', "'")
    return re.sub(r"\s*(?:;\s*|and\s*)extra == '\w+'", "", requirement).replace(" ", "").lower().strip()


def specifiers(requirement: str) -> tuple[str, frozenset[str], str]:
    name, versions, marker = re.fullmatch(r"([\w.-]+)([^;]*)(.*)", requirement).groups()  # type: ignore[union-attr]
    return name, frozenset(versions.strip("()").split(",")), marker


def test_requirements_txt_is_the_extra_all() -> None:
    wanted = requires("whisper-backup") or []
    everything = {canonical(r) for r in wanted if "extra" not in r or "extra == 'all'" in r.replace('"', "'")}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {canonical(line) for line in lines if line and not line.startswith("#")}
    assert {specifiers(r) for r in listed} == {specifiers(r) for r in everything}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is made from it."""
    scratch = tmp_path_factory.mktemp("packaging")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "demo", "__pycache__")
    shutil.copytree(ROOT, scratch / "source", ignore=ignored)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", scratch / "dist", scratch / "source"]
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return scratch / "dist"


def install(folder: Path, built: Path, extra: str = "", kind: str = "*.whl") -> Path:
    """Install the wheel, or the sdist, into a fresh environment; the folder of its programs."""
    (package,) = built.glob(kind)
    venv.create(folder)
    home = pwd.getpwuid(os.geteuid()).pw_dir  # where pip may have been told which index to use
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]  # one in the environment costs seconds
    words = [*pip, "install", "--quiet", "--no-compile", f"{package}{extra}"]
    subprocess.run(words, check=True, env={**os.environ, "HOME": home})
    return folder / "bin"


@pytest.mark.slow
def test_the_sdist_holds_what_a_packager_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "docs/design.md", "tests/conftest.py", "requirements.txt"):
        assert name in names
    assert {f"contrib/whisper-backup.{end}" for end in ("1", "bash", "cron", "service", "timer")} <= names
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.soak
@pytest.mark.servers
def test_without_extras_a_directory_works_and_s3_says_what_to_install(
    built: Path, tmp_path: Path, program: Program
) -> None:
    programs = install(tmp_path / "venv", built)
    program.write("a.b")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        options = ["--nolog", "--nolock", "--nostamp", "--nostate", "-p", program.prefix, "-b", program.store]
        return subprocess.run(
            [programs / "whisper-backup", *options, *words], capture_output=True, text=True, env=clean, cwd="/"
        )

    for command in ("backup", "list", "verify"):
        assert run(command, "disk").returncode == 0, command
    assert run("help", "restore").stdout.startswith("# Restore")
    assert run("help", "stores").stdout.startswith("# ")
    before = contents(program.prefix)
    (program.prefix / "a/b.wsp").unlink()
    assert run("restore", "disk").returncode == 0
    assert contents(program.prefix) == before
    ran = run("list", "s3")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "pip install 'whisper-backup[s3]'" in ran.stderr


release = pytest.mark.skipif(not os.environ.get("RELEASE"), reason="takes minutes; `make release-check` runs it")


@release
@pytest.mark.parametrize("kind", ["*.tar.gz", "*.whl"])
@pytest.mark.servers
def test_what_is_released_shows_its_version_its_runbook_and_the_demo(built: Path, tmp_path: Path, kind: str) -> None:
    programs = install(tmp_path / "venv", built, kind=kind)
    shutil.copy(ROOT / "contrib/demo.py", tmp_path)

    def run(*words: object) -> str:
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
        ran = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
        return ran.stdout

    assert run(programs / "whisper-backup", "--version") == f"whisper-backup {__version__}\n"
    assert (ROOT / "docs/restore.md").read_text().splitlines()[0] in run(programs / "whisper-backup", "help", "restore")
    assert "Every stored point is back." in run(programs / "python", tmp_path / "demo.py")


@release
def test_the_changelog_begins_with_the_version_that_is_released_and_its_date() -> None:
    (first, *_) = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(__version__)}, 20\d\d-\d\d-\d\d", first)


@release
@pytest.mark.parametrize("extra", ["s3", "swift", "gcs", "all"])
@pytest.mark.servers
def test_each_extra_brings_what_its_driver_imports(built: Path, tmp_path: Path, extra: str) -> None:
    programs = install(tmp_path, built, f"[{extra}]")
    for driver in ("s3", "swift", "gcs") if extra == "all" else (extra,):
        words = [programs / "python", "-c", f"import whisperbackup.storage.{driver}"]
        subprocess.run(words, check=True, cwd="/", env={"PATH": os.environ["PATH"]})
