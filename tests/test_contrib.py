"""What lies in contrib: it is what the parser says, and what bash, man and systemd take."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Program, add_point

from whisperbackup import options, storage

CONTRIB = Path(__file__).parent.parent / "contrib"
SCRIPT = """
source "$1"; shift
complete -p whisper-backup >&2
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_whisper_backup whisper-backup "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CONTRIB / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def completions(*words: str, folder: Path = CONTRIB) -> list[str]:
    """What bash proposes for the last of `words`."""
    ran = subprocess.run(
        ["bash", "-c", SCRIPT, "bash", CONTRIB / "whisper-backup.bash", "whisper-backup", *words],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert ran.stderr == "complete -F _whisper_backup whisper-backup\n"
    return ran.stdout.split()


def test_completion_manual_page_and_reference_are_what_the_parser_says(generate: ModuleType) -> None:
    assert generate.COMPLETION.read_text() == generate.completion(), "run contrib/generate.py"
    assert generate.PAGE.read_text() == generate.manual_page(), "run contrib/generate.py"
    assert generate.REFERENCE.read_text() == generate.reference(), "run contrib/generate.py"


def test_bash_completes_options_commands_stores_and_files(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "log.txt").touch()
    assert completions("--st") == ["--storage-path", "--statefile", "--stampfile"]
    assert completions("") == [*options.COMMANDS, "help"]
    assert completions("help", "res") == ["restore"]
    assert {"faq", "backup"} < set(completions("help", "")) and "s3" not in completions("help", "")
    assert completions("-n", "-r", "3", "res") == ["restore"]
    assert completions("backup", "") == list(storage.BUILT_IN)
    assert completions("-b", "store", "--logfile", "=", "x", "list", "s") == ["s3", "swift"]
    assert completions("backup", "disk", "") == []
    assert completions("-r", "3", "backup", "disk", "--over") == []
    assert completions("restore", "disk", "--over") == ["--overwrite"]
    assert completions("-a", "") == ["gz", "sz", "zst"]
    assert completions("-r", "") == []
    assert sorted(completions("--logfile", "lo", folder=tmp_path)) == ["log.txt", "logs"]
    assert completions("--logfile", "=", "log.", folder=tmp_path) == ["log.txt"]
    assert completions("--logfile", "=", folder=tmp_path) == completions("--logfile", "", folder=tmp_path)
    assert completions("-b", "lo", folder=tmp_path) == ["logs"]


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_the_manual_page_renders_without_a_warning(generate: ModuleType) -> None:
    words = ["groff", "-man", "-Tutf8", "-ww", generate.PAGE]
    ran = subprocess.run(words, capture_output=True, text=True, env={"GROFF_NO_SGR": "1", "PATH": "/usr/bin:/bin"})
    assert (ran.returncode, ran.stderr) == (0, "")
    shown = re.sub(".\b", "", ran.stdout)
    for option in (option for group in options.make_parser().option_groups for option in group.option_list):
        assert option.get_opt_string().removeprefix("--") in shown, option


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_service_and_timer(tmp_path: Path) -> None:
    for unit in [path.name for path in CONTRIB.iterdir() if path.suffix in (".service", ".timer")]:
        text = (CONTRIB / unit).read_text().replace("/usr/local/bin/whisper-backup", "/bin/true")
        (tmp_path / unit).write_text(text)
    units = sorted(tmp_path.iterdir())
    ran = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_service_that_prunes_is_a_command_line(machine: Path) -> None:
    (machine / "etc/whisper-backup.conf").write_text("store = s3 eu-west-1\nbucket = x\n")
    text = (CONTRIB / "whisper-backup-prune@.service").read_text()
    (start,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    read = options.parse(start.replace("%i", "node-1").replace("%S", "/var/lib").split()[1:])
    assert (read.command, read.bucket, read.storage_path) == ("prune", "x", "node-1/")
    assert read.stampfile == "/var/lib/whisper-backup-prune/node-1/success"
    assert "StateDirectory=whisper-backup-prune/%i\n" in text


@pytest.mark.slow
def test_the_cron_line_that_prunes_goes_on_after_a_node_that_fails(program: Program, machine: Path) -> None:
    program.write("a.b")
    for node in ("node1", "node3"):
        for number in range(3):
            add_point(program.prefix / "a/b.wsp", number)
            program("backup", "disk", "--storage-path", node, "--no-delete")
    (machine / "etc/whisper-backup.conf").write_text(f"store = disk\nbucket = {program.store}\nretention = 1\n")
    nodes = machine / "etc/whisper-backup-nodes"
    nodes.write_text("node1\nnode2\n\nnode3\n")
    line = (CONTRIB / "whisper-backup-prune.cron").read_text().splitlines()[-1]
    command = line.partition("  root  ")[2].replace("/etc/whisper-backup-nodes", str(nodes))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert ran.returncode == 123
    assert re.search("ERROR: .*node2", ran.stderr)
    assert [len(program.stamps(f"{node}/a.b")) for node in ("node1", "node3")] == [1, 1]


@pytest.mark.parametrize(("name", "command"), [("whisper-backup", "backup"), ("whisper-backup-increment", "increment")])
def test_the_cron_line_and_the_service_are_command_lines(
    name: str, command: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "etc/whisper-backup.conf").write_text("store = s3 eu-west-1\nbucket = x\n")
    line = (CONTRIB / f"{name}.cron").read_text().splitlines()[-1]
    read = options.parse(line.split("whisper-backup ", 1)[1].split())
    assert (read.command, read.storage_arguments) == (command, ["eu-west-1"])
    (start,) = (line for line in (CONTRIB / f"{name}.service").read_text().splitlines() if "ExecStart" in line)
    assert options.parse(start.replace("$WHISPER_BACKUP_OPTIONS", "").split()[1:]).bucket == "x"
    (machine / "etc/whisper-backup.conf").unlink()  # as an older installation has it
    monkeypatch.setenv("WHISPER_BACKUP_OPTIONS", "-b y --storage-path node1")
    monkeypatch.setenv("WHISPER_BACKUP_STORE", "s3 eu-west-2")
    read = options.parse(start.replace("$WHISPER_BACKUP_OPTIONS", "-b y --storage-path node1").split()[1:])
    assert (read.bucket, read.storage_path, read.storage_arguments) == ("y", "node1/", ["eu-west-2"])


def on_a_terminal(*words: object, **variables: str) -> tuple[int, str]:
    """What a command ends with, and what it writes to a terminal."""
    terminal, end = pty.openpty()
    ran = subprocess.Popen(words, stdout=end, stderr=end, env={**os.environ, "TERM": "xterm", **variables})
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:
        pass  # it has no other end any more
    os.close(terminal)
    return ran.wait(), shown.decode()


@pytest.mark.slow
def test_the_demo_shows_what_healing_means() -> None:
    words = [sys.executable, CONTRIB / "demo.py"]
    environment = {**os.environ, "WHISPER_BACKUP_STORE": "s3", "WHISPER_BACKUP_NONSENSE": "1"}  # none of its business
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    before, after = (row[6:] for row in re.findall(r"^(     \|.*)\n   0 \+", ran.stdout, re.MULTILINE))
    assert re.fullmatch(r" {62}#{10}", before)
    assert re.fullmatch(r"o{48}\+{12} {2}#{10}", after)
    assert "Every stored point is back." in ran.stdout
    assert "\033" not in ran.stdout


@pytest.mark.slow
def test_the_demo_is_in_colour_on_a_terminal_but_for_no_color() -> None:
    words = [sys.executable, CONTRIB / "demo.py"]
    status, shown = on_a_terminal(*words, NO_COLOR="")
    assert status == 0
    assert "\033[32mo\033[0m" in shown
    status, shown = on_a_terminal(*words, NO_COLOR="1")
    assert status == 0
    assert "\033[32m" not in shown
    assert "oooooooooo" in shown
