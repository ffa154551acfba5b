"""The command line: what may be said, its defaults, and its checks."""

from __future__ import annotations

import functools
import optparse
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from whisperbackup import __version__, storage
from whisperbackup.report import carbon
from whisperbackup.repository import compression
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.runtime.defaults import LOCKFILE, LOGFILE, STAMPFILE, STATE_FOLDER, on_this_machine
from whisperbackup.tree.selection import BadGlob, Selection, select
from whisperbackup.util import Keep

USAGE = """whisper-backup [options] backup|restore|purge|list|verify
                      disk|gcs|noop|s3|swift [storage args]"""
ABOUT = {
    "backup": "store every metric whose file changed, then purge",
    "restore": "create what is missing in the tree, fill the gaps of what is there",
    "purge": "delete what has been gone from the tree for -x days",
    "list": "show the metrics in the store and their backups",
    "verify": "read backups back and check them",
}
STORES = {
    "disk": "a directory",
    "gcs": "Google Cloud Storage",
    "noop": "none: what a first backup would cost on this machine alone",
    "s3": "Amazon S3, and what speaks S3",
    "swift": "OpenStack Swift",
}
STORAGE_ARGS = "name=value, or one bare value, a region"
EXAMPLES = """\
  whisper-backup -b /backup/graphite backup disk
  whisper-backup -b graphite-backups --storage-path node1 backup s3 eu-west-1
  whisper-backup -b /backup/graphite -m 'servers.web1.*' list disk
  whisper-backup -b /backup/graphite -m 'servers.web1.*' -n restore disk
"""
STATUS = {
    "0": "all done",
    "1": "could not run: no store, credentials or tree, no match, lock busy",
    "2": "usage",
    "3": "ran, but some metrics failed; each is named on stderr",
    "128+N": "stopped by signal N",
}
COMMANDS = tuple(ABOUT)
MAX_DAYS = 36500
MAX_SECONDS = 10_000_000
MIN_BANDWIDTH, MAX_BANDWIDTH = 0.01, 1e6  # MB/s
MAX_SHARES = 1000
MAX_THREADS = 64  # what the drivers keep connections for
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Options:
    """A checked command line."""

    command: str
    driver: str
    storage_arguments: list[str]
    prefix: bytes
    processes: int
    threads: int | None  # None: what the driver likes
    keep: Keep
    purge_days: int
    purge_anyway: bool
    noop: bool
    bucket: str  # for disk an absolute path
    selection: Selection
    date: str | None  # a stamp; None: the newest
    algorithm: str
    storage_path: str  # empty, or ending in a slash
    max_file_size: int  # bytes
    overwrite: bool
    every_backup: bool
    shares: int  # verify one of so many, today's
    compares_tree: bool
    json: bool
    carbon: carbon.Receiver | None
    carbon_prefix: str
    debris: bool
    debug: bool
    quiet: bool
    logfile: str | None
    logfile_is_default: bool
    syslog: bool
    lockfile: str | None
    lock_timeout: float  # seconds
    splay: float  # seconds
    stampfile: str | None
    new_store: bool
    statefile: str | None  # empty: the default one; None: none
    bandwidth: float | None  # bytes a second, for all processes together
    nice: bool


class _Parser(optparse.OptionParser):
    def error(self, msg: str) -> NoReturn:
        self.exit(2, f"whisper-backup: {msg}; see whisper-backup --help\n")

    def format_help(self, formatter: optparse.HelpFormatter | None = None) -> str:
        """As optparse's, with tables around the options."""
        parts = [
            f"Usage: {USAGE}\n",
            _table("Commands", ABOUT),
            _table("Stores", STORES),
            f"Storage args: {STORAGE_ARGS}\n",
            self.format_option_help(formatter),
            f"Examples:\n{EXAMPLES}",
            _table("Exit status", STATUS),
        ]
        return "\n".join(parts)


def _table(title: str, rows: dict[str, str]) -> str:
    return f"{title}:\n" + "".join(f"  {name:<8} {text}\n" for name, text in rows.items())


def parse_date(text: str) -> str:
    """The stamp of a moment in ISO 8601: a date alone is 00:00, no zone is UTC.  Raises ValueError."""
    compact = re.sub(r"\s+(?=[+-]\d\d|Z$)", "", re.sub(r"\s*(UTC|GMT)$", "Z", text.strip(), flags=re.I))
    moment = datetime.fromisoformat(compact.upper())
    return stamp_of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text, re.I)
    if not match or int(match[1]) == 0:
        raise ValueError
    return int(match[1]) * SIZE_UNITS[match[2].upper()]


def _parse_shares(parser: optparse.OptionParser, values: optparse.Values, command: str) -> int:
    """The N of --sample 1/N, 1 if not given; complains of what does not go together with verify's options."""
    for name in ("all", "sample", "tree"):
        if getattr(values, name) and command != "verify":
            parser.error(f"--{name} is an option of verify")
    if values.tree and (values.all or values.date is not None):
        parser.error("--tree compares with the newest backups; neither --all nor -c goes with it")
    if values.sample is None:
        return 1
    match = re.fullmatch(r"1/(\d{1,4})", values.sample, re.ASCII)
    if not match or not 1 <= int(match[1]) <= MAX_SHARES:
        parser.error(f"--sample '{values.sample}': 1/N, with an N from 1 to {MAX_SHARES}")
    return int(match[1])


def make_parser() -> optparse.OptionParser:
    """The parser of the whole command line; also what the manual page and the completion are made from."""
    parser = _Parser(
        usage=USAGE,
        version=f"whisper-backup {__version__}",
        add_help_option=False,
        formatter=optparse.IndentedHelpFormatter(max_help_position=30),
    )
    parser.remove_option("--version")

    def add(group: optparse.OptionGroup, *names: str, text: str, **settings: Any) -> None:
        shown = f"{text} [%default]" if settings.get("default", "") != "" else text
        group.add_option(*names, help=shown, **settings)

    def group(title: str) -> Callable[..., None]:
        return functools.partial(add, parser.add_option_group(optparse.OptionGroup(parser, title)))

    where = group("Where")
    where("-p", "--prefix", default="/opt/graphite/storage/whisper", metavar="DIR", text="the tree of whisper files")
    where("-b", "--bucket", default="graphite-backups", metavar="NAME",
        text="bucket, container, or (disk) directory")  # fmt: skip
    where("--storage-path", default="", metavar="PATH", text="what every key in the bucket begins with [none]")

    what = group("What")
    what("-m", "--metrics", action="append", metavar="GLOB",
        text="metrics to work on, as 'servers.web1.*' or 'a.{b,c}'; * crosses dots; may be repeated [*]")  # fmt: skip
    what("--exclude", action="append", metavar="GLOB", text="metrics to leave out; may be repeated")
    what("-c", "--date", metavar="DATE",
        text="restore, list, verify: as of this moment, ISO 8601; no zone is UTC, a date alone 00:00 "
        "[the newest]")  # fmt: skip
    what("-n", "--noop", action="store_true", text="read and report everything, change nothing")
    what("--overwrite", action="store_true", text="restore: replace files instead of filling their gaps")
    what("--all", action="store_true", text="verify: every backup of every metric, or those up to -c")
    what("--sample", metavar="1/N",
        text="verify: another share of the metrics each day (UTC), so that N days in a row take all")  # fmt: skip
    what("--tree", action="store_true",
        text="verify: compare the tree with the newest backups, of which only the marks are read")  # fmt: skip
    what("--debris", action="store_true", text="list: what interrupted runs left, instead")

    keep = group("Retention and purge")
    keep("-r", "--retention", type="int", default=5, metavar="N", text="backups to keep of each metric")
    for period, unit in (("daily", "day"), ("weekly", "ISO week"), ("monthly", "month")):
        keep(f"--keep-{period}", type="int", default=0, metavar="N",
            text=f"beside -r, keep the newest backup of each of N {unit}s (UTC)")  # fmt: skip
    keep("-x", "--purge", type="int", default=45, metavar="DAYS",
        text="days after which the backups of a metric that is gone are deleted; 0: at once, -1: never")  # fmt: skip
    keep("--purge-anyway", action="store_true", text="purge even where it looks like a mistake")

    where("--new-store", action="store_true",
        text="backup: begin a new store where the one of earlier runs is absent or empty (not for cron)")  # fmt: skip

    tune = group("Tuning")
    tune("-a", "--algorithm", default="gz", metavar="CODEC",
        text=f"how backup compresses: {', '.join(compression.installed())}")  # fmt: skip
    tune("-f", "--processes", type="int", default=4, metavar="N", text="worker processes")
    tune("--threads", type="int", metavar="N", text="requests in flight in each process [what the store likes]")
    tune("--bwlimit", type="float", metavar="MB/s",
        text="backup, verify --tree: read whisper files no faster than this [no limit]")  # fmt: skip
    tune("--nice", action="store_true",
        text="backup, verify --tree: lowest CPU and I/O priority, but while holding a file's lock")  # fmt: skip
    tune("--max-file-size", default="1G", metavar="SIZE",
        text="refuse larger files, in the tree and in the store")  # fmt: skip
    tune("--statefile", metavar="FILE",
        text="backup: where to note which files need not be read again [one for each prefix and store, "
        f"in {STATE_FOLDER}, or in the cache folder of a user who is not root]")  # fmt: skip
    tune("--nostate", action="store_true", text="backup: read every file, touched or not, and keep no state file")

    when = group("When")
    when("--splay", type="float", default=0, metavar="SECONDS", text="sleep for a random time up to this, first")
    when("--lockfile", metavar="FILE", text=f"lock file [{LOCKFILE}]")
    when("--locktimeout", type="float", default=90, metavar="SECONDS", text="how long to wait for the lock")
    when("--nolock", action="store_true", text="do not exclude other runs on this machine")

    log = group("Logging and monitoring")
    log("-q", "--quiet", action="store_true", text="only warnings and errors on stderr")
    log("-d", "--debug", action="store_true", text="log what a developer wants to know, too")
    log("--logfile", metavar="FILE", text=f"log file; it rotates itself [{LOGFILE}]")
    log("--nolog", action="store_true", text="no log file")
    log("--syslog", action="store_true", text="log to syslog, too")
    log("--stampfile", metavar="FILE", text=f"touched after a run that did all its work [{STAMPFILE}]")
    log("--nostamp", action="store_true", text="no stamp file")
    log("--json", action="store_true", text="JSON on stdout: failures and, last of all, figures and status")
    log("--carbon", metavar="HOST[:PORT]",
        text=f"send the figures of the run to this carbon's line receiver [port {carbon.PORT}]")  # fmt: skip
    log("--carbon-prefix", default="whisper-backup", metavar="PREFIX",
        text="they are PREFIX.<node>.<command>.<figure>")  # fmt: skip

    more = group("Help")
    more("-h", "--help", action="help", text="show this and exit")
    more("--version", action="version", text="show the version and exit")
    return parser


def _absolute(parser: optparse.OptionParser, option: str, path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:
        parser.error(f"{option} {path}: the working directory cannot be found ({error.strerror}); give a whole path")


def _lies_in(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or below it, links resolved; neither needs to exist."""
    folder = os.path.realpath(folder)
    return os.path.commonpath([folder, os.path.realpath(path)]) == folder


def parse(words: list[str]) -> Options:
    """The checked command line; exits with status 2 and one line for one that cannot be meant."""
    parser = make_parser()
    values, arguments = parser.parse_args(words)
    if not arguments:
        parser.error(f"no command; one of {', '.join(COMMANDS)}")
    command, *arguments = arguments
    if command not in COMMANDS:
        parser.error(f"unknown command '{command}'; one of {', '.join(COMMANDS)}")
    if not arguments:
        parser.error(f"no storage driver; one of {', '.join(storage.names())}")
    driver, *arguments = arguments
    if not storage.is_known(driver):
        parser.error(f"unknown storage driver '{driver}'; one of {', '.join(storage.names())}")
    if values.processes < 1:
        parser.error(f"-f {values.processes}: at least one process is needed")
    if values.threads is not None and not 1 <= values.threads <= MAX_THREADS:
        parser.error(f"--threads {values.threads}: from 1 to {MAX_THREADS}")
    if values.retention < 1:
        parser.error(f"-r {values.retention}: at least one backup must be kept")
    for name in ("keep_daily", "keep_weekly", "keep_monthly"):
        if getattr(values, name) < 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(values, name)}: a number of backups, 0 or more")
    if not -1 <= values.purge <= MAX_DAYS:
        parser.error(f"-x {values.purge}: days up to {MAX_DAYS}, 0 for at once, or -1 for never")
    for letter, value in (("-p", values.prefix), ("-b", values.bucket)):
        if not value:
            parser.error(f"{letter} is empty")
    if values.algorithm not in compression.installed():
        parser.error(f"-a {values.algorithm}: this machine has {', '.join(compression.installed())}")
    for name in ("splay", "locktimeout"):
        if not 0 <= getattr(values, name) <= MAX_SECONDS:
            parser.error(f"--{name} {getattr(values, name):g}: a number of seconds from 0 to {MAX_SECONDS}")
    if values.bwlimit is not None and not MIN_BANDWIDTH <= values.bwlimit <= MAX_BANDWIDTH:
        parser.error(f"--bwlimit {values.bwlimit:g}: MB/s, from {MIN_BANDWIDTH:g} to {MAX_BANDWIDTH:g}")
    date = None
    if values.date is not None:
        try:
            date = parse_date(values.date)
        except (ValueError, OverflowError):
            parser.error(f"-c '{values.date}' is no date in ISO 8601, as 2026-11-23 or 2026-11-23T18:00:00+01:00")
    shares = _parse_shares(parser, values, command)
    receiver = None
    if values.carbon is not None:
        try:
            receiver = carbon.parse_receiver(values.carbon)
        except ValueError:
            parser.error(f"--carbon '{values.carbon}': HOST or HOST:PORT, an IPv6 address in brackets")
    if not carbon.is_prefix(values.carbon_prefix):
        parser.error(f"--carbon-prefix '{values.carbon_prefix}': letters, digits, '_' and '-', in parts joined by dots")
    try:
        max_file_size = _parse_size(values.max_file_size)
    except ValueError:
        parser.error(f"--max-file-size '{values.max_file_size}': a number of bytes, as 500M or 2G")
    try:
        selection = select(values.metrics or ["*"], values.exclude or [])
    except BadGlob as error:
        parser.error(str(error))
    for name, value, commands in (
        ("--overwrite", values.overwrite, ("restore",)),
        ("--debris", values.debris, ("list",)),
        ("--new-store", values.new_store, ("backup",)),
        ("-c", values.date, ("backup", "restore", "list", "verify")),  # of backup the older tool takes it, too
    ):
        if value and command not in commands:
            known_by = ", which goes by -x DAYS" if command == "purge" else ""
            parser.error(f"{name} means nothing to {command}{known_by}")
    prefix = _absolute(parser, "-p", values.prefix)
    bucket = values.bucket
    if driver == "disk":
        bucket = _absolute(parser, "-b", bucket)
        if command in ("backup", "purge") and _lies_in(bucket, prefix):
            parser.error(f"-b {values.bucket}: the store must not lie in the tree, {values.prefix} (-p)")
    path = values.storage_path
    if not path.isprintable():  # also what argv holds that is not UTF-8
        parser.error(f"--storage-path {path!a}: printable UTF-8 only")
    return Options(
        command=command,
        driver=driver,
        storage_arguments=arguments,
        prefix=os.fsencode(prefix),
        processes=values.processes,
        threads=values.threads,
        keep=Keep(values.retention, values.keep_daily, values.keep_weekly, values.keep_monthly),
        purge_days=values.purge,
        purge_anyway=bool(values.purge_anyway),
        noop=bool(values.noop),
        bucket=bucket,
        selection=selection,
        date=date,
        algorithm=values.algorithm,
        storage_path=path if not path or path.endswith("/") else path + "/",
        max_file_size=max_file_size,
        overwrite=bool(values.overwrite),
        every_backup=bool(values.all),
        shares=shares,
        compares_tree=bool(values.tree),
        json=bool(values.json),
        carbon=receiver,
        carbon_prefix=values.carbon_prefix,
        debris=bool(values.debris),
        debug=bool(values.debug),
        quiet=bool(values.quiet),
        logfile=None if values.nolog else values.logfile or on_this_machine(LOGFILE),
        logfile_is_default=values.logfile is None,
        syslog=bool(values.syslog),
        lockfile=None if values.nolock else values.lockfile or on_this_machine(LOCKFILE),
        lock_timeout=values.locktimeout,
        splay=values.splay,
        stampfile=None if values.nostamp else values.stampfile or on_this_machine(STAMPFILE),
        new_store=bool(values.new_store),
        statefile=None if values.nostate else values.statefile or "",
        bandwidth=None if values.bwlimit is None else values.bwlimit * 1e6,
        nice=bool(values.nice),
    )
