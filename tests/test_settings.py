"""Settings in the configuration file and in environment variables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Program, unprivileged

from whisperbackup.options import make_parser, parse

FILE = "etc/whisper-backup.conf"


@pytest.fixture
def conf(machine: Path) -> Path:
    return machine / FILE


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line about an invalid configuration."""
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    return said


def test_with_bucket_and_store_in_the_file_a_command_needs_no_more_words(program: Program, conf: Path) -> None:
    conf.write_text(f"bucket = {program.store}\nprefix = {program.prefix}\nstore = disk\nstorage-path = node1\n")
    path = program.write("servers.web1.cpu")
    content = path.read_bytes()

    def run(*words: str) -> str:
        ran = subprocess.run([sys.executable, "-m", "whisperbackup", *words], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout + ran.stderr

    assert f"settings of {conf}" in run("backup")
    assert (program.store / "node1").is_dir()
    path.unlink()
    assert "1 metrics, 1 backups" in run("list")
    run("restore", "-m", "servers.web1.cpu")
    assert path.read_bytes() == content


def test_command_line_wins_over_environment_and_that_over_the_file(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf.write_text("bucket = one\nretention = 7\nstorage-path = x\nstore = s3 eu-west-1\n[verify]\nstorage-path = v\n")
    read = parse(["backup"])
    assert (read.bucket, read.keep.last, read.driver, read.storage_arguments) == ("one", 7, "s3", ["eu-west-1"])
    assert parse(["verify"]).storage_path == "v/"
    monkeypatch.setenv("WHISPER_BACKUP_BUCKET", "two")
    monkeypatch.setenv("WHISPER_BACKUP_STORAGE_PATH", "y")
    monkeypatch.setenv("WHISPER_BACKUP_STORE", "swift")
    read = parse(["verify"])
    assert (read.bucket, read.storage_path, read.driver, read.storage_arguments) == ("two", "y/", "swift", [])
    read = parse(["-b", "three", "--storage-p", "", "list", "gcs"])
    assert (read.bucket, read.storage_path, read.driver) == ("three", "", "gcs")


def test_flags_repeated_options_and_their_opposites(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf.write_text("store = disk\nnice\nquiet = yes\nnolock = yes\nmetrics = a.{b,c}\n  d.*\n[list]\nmetrics = e\n")
    read = parse(["backup"])
    assert (read.nice, read.quiet, read.lockfile, read.debug) == (True, True, None, False)
    assert [name in read.selection for name in ("a.b", "a.c", "d.x", "e")] == [True, True, True, False]
    assert "e" in parse(["list"]).selection
    alone = parse(["backup", "-m", "f"]).selection
    assert [name in alone for name in ("f", "a.b")] == [True, False]
    assert parse(["backup", "--lockfile", "/x"]).lockfile == "/x"
    monkeypatch.setenv("WHISPER_BACKUP_NOLOCK", "no")
    monkeypatch.setenv("WHISPER_BACKUP_NICE", "no")
    monkeypatch.setenv("WHISPER_BACKUP_METRICS", "g\nh.*")
    read = parse(["backup"])
    assert (read.nice, read.lockfile) == (False, parse(["backup", "--config", "/dev/null", "disk"]).lockfile)
    assert [name in read.selection for name in ("g", "h.i", "a.b")] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("buket = x", "unknown setting 'buket'; did you mean 'bucket'?"),
        ("storage_path = x", "did you mean 'storage-path'?"),
        ("storage = x", "unknown setting 'storage'"),  # no abbreviations
        ("[verfy]\nnice", "'verfy' is no command; did you mean 'verify'?"),
        ("[DEFAULT]\nnice", "'DEFAULT' is no command"),
        ("[restore]\nnice", "'nice' is not an option of restore; it is one of backup"),
        ("retention = 0", "retention 0: at least one backup must be kept"),
        ("[backup]\nretention = many", "[backup]: retention many"),
        ("retention", "'retention' needs a value"),
        ("bucket =", "bucket is empty"),
        ("store =", "'store' is empty"),
        ("nice = maybe", "nice: yes or no"),
        ("nice\nnice", "line 2: given before"),
        ("[list]\n[list]", "line 2: given before"),
        ("nolock\nlockfile = /x", "'nolock' and 'lockfile' exclude each other"),
        ("bucket = a\n  b", "more than one line"),
        ("bucket = 'a'", "without quotes"),
        ("overwrite", "'overwrite' can't be set there: every restore would delete newer points"),
        ("noop = yes", "'noop' can't be set there"),
        ("config = /x", "'config' can't be set there"),
        ("help", "'help' can't be set there"),
        ("[broken", "unknown setting"),
        ("= x", "line 1: neither"),
        ("\udcff", "is not UTF-8"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(
    conf: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    conf.write_bytes(text.encode("utf-8", "surrogateescape"))
    for command in ("list", "backup"):
        said = refused([command, "disk"], capsys)
        assert expected in said
        assert str(conf) in said or "is no command" in said


@pytest.mark.parametrize(
    "text",
    [
        "aws_secret_access_key = hunter2",
        "ST_KEY = hunter2",
        "password = hunter2",
        "store = s3 secret=hunter2",
        "store = s3 endpoint=https://user:hunter2@host",
        "carbon = tcp://user:hunter2@host",
        "hunter2 hunter2\n: hunter2",
        "[x\nhunter2\n",
        "bukett = hunter2",
    ],
)
def test_secrets_are_refused_and_never_shown(conf: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    conf.write_text(text)
    said = refused(["list", "disk"], capsys)
    assert "hunter2" not in said
    assert "a secret, which must not be there" in said or "unknown setting" in said or "line 2: neither" in said


def test_unknown_variables_and_the_units_own_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_BACKUP_OPTIONS", "-b x")
    assert parse(["-q", "-b", "x", "backup", "disk"]).bucket.endswith("/x")
    assert "WHISPER_BACKUP_OPTIONS has no effect by itself" in refused(["backup", "disk"], capsys)
    monkeypatch.delenv("WHISPER_BACKUP_OPTIONS")
    monkeypatch.setenv("WHISPER_BACKUP_BUKET", "x")
    assert "WHISPER_BACKUP_BUKET: unknown setting 'buket'; did you mean 'bucket'?" in refused(["list"], capsys)


def test_a_file_that_is_named_must_be_there_and_the_default_may_be_absent(
    conf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert parse(["list", "disk"]).config is None
    assert f"the configuration file {tmp_path}/none does not exist" in refused(
        ["list", "disk", "--config", f"{tmp_path}/none"], capsys
    )
    conf.symlink_to(tmp_path / "none")
    assert "does not exist" in refused(["list", "disk"], capsys)
    (tmp_path / "other").write_text("store = gcs\n")
    assert parse(["list", "--config", f"{tmp_path}/other"]).driver == "gcs"
    monkeypatch.setenv("WHISPER_BACKUP_CONFIG", f"{tmp_path}/other")
    assert parse(["list"]).driver == "gcs"
    assert "no storage driver" in refused(["list", "--config", "/dev/null"], capsys)


def test_a_default_file_that_cannot_be_read_is_an_error(conf: Path, program: Program) -> None:
    conf.write_text("store = disk\n")
    conf.chmod(0)
    ran = subprocess.run([*unprivileged(), *program.words("verify", "disk")], capture_output=True, text=True)
    assert ran.returncode == 2
    assert f"the configuration file {conf} cannot be read: Permission denied" in ran.stderr
    assert "chmod 644" in ran.stderr


def test_a_log_file_in_the_configuration_does_not_keep_an_ordinary_user_from_verify(
    conf: Path, program: Program
) -> None:
    program.write("a.b")
    program("backup", "disk")
    conf.write_text("logfile = /proc/no/such\n")
    words = program.words("verify", "disk")
    at = words.index("--logfile")
    ran = subprocess.run([*words[:at], *words[at + 2 :]], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_every_option_has_a_long_name_that_a_file_can_use() -> None:
    assert all(row.long_names for row in make_parser().rows)


def test_settings_of_other_commands_do_not_apply(conf: Path) -> None:
    conf.write_text("store = disk\nsample = 1/30\ndate = 2026-01-01\nexclude = x.*  # a comment\n")
    assert parse(["backup"]).shares == 1
    assert parse(["backup"]).date is None
    assert parse(["verify"]).shares == 30
    assert "x.y" not in parse(["backup"]).selection


@pytest.mark.parametrize("command", ["backup", "increment", "restore", "purge", "verify"])
def test_every_command_that_reads_the_tree_takes_its_place_from_the_file(conf: Path, command: str) -> None:
    conf.write_text("store = disk\nprefix = /some/tree\nno-delete\nprotected-ok\n")
    assert parse([command]).prefix == b"/some/tree"
    assert parse(["backup"]).no_delete
    assert not parse(["purge"]).no_delete
