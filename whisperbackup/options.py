"""The command line: one table of options is the source of parser, help, completion, manual page and checks."""

from __future__ import annotations

import dataclasses
import functools
import optparse
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from whisperbackup import __version__, pages, settings, storage
from whisperbackup.report import carbon
from whisperbackup.repository import compression, dates
from whisperbackup.repository.stamps import seconds, stamp_of
from whisperbackup.runtime import clock
from whisperbackup.runtime.defaults import (
    CONFIG,
    INCREMENT_LOCKFILE,
    INCREMENT_STAMPFILE,
    LOCKFILE,
    LOGFILE,
    STAMPFILE,
    STATE_FOLDER,
    TEST_ROOT,
    on_this_machine,
)
from whisperbackup.tree.selection import BadGlob, Selection, select
from whisperbackup.util import Keep

USAGE = """whisper-backup [options]
                      backup|increment|restore|purge|prune|list|verify|doctor
                      disk|gcs|noop|s3|swift [storage args]
       whisper-backup help [COMMAND|PAGE]"""
ABOUT = {
    "backup": "store every metric whose file changed, then purge",
    "increment": "store the points written since the last increment or backup",
    "restore": "create missing files, fill the gaps of existing ones",
    "purge": "delete the backups of metrics missing from the tree for -x days",
    "prune": "delete what is due in the store, on a machine without the tree",
    "list": "show the metrics in the store and their backups",
    "verify": "read backups and check them",
    "doctor": "check this machine, the store and the last runs, with remedies",
}
HELP = "help"
RUNBOOK = "restore"
"""The page of emergencies; it is shown instead of the help of the command with the same name."""
STORES = {
    "disk": "a directory",
    "gcs": "Google Cloud Storage",
    "noop": "stores nothing; measures the local cost of a first backup",
    "s3": "Amazon S3 and S3-compatible stores (MinIO, Ceph RGW)",
    "swift": "OpenStack Swift",
}
STORAGE_ARGS = "name=value, or one bare value, a region"
SETTINGS = f"""\
{CONFIG} sets options by their long names, for all commands
or in a section for one, and the store (store = s3 eu-west-1). Variables
WHISPER_BACKUP_<NAME> override the file; the command line overrides both.
"""
EXAMPLES = """\
  whisper-backup -b /backup/graphite backup disk
  whisper-backup -b graphite-backups --storage-path node1 backup s3 eu-west-1
  whisper-backup -b /backup/graphite -m 'servers.web1.*' list disk
  whisper-backup -b /backup/graphite -m 'servers.web1.*' -n restore disk
  whisper-backup -m 'servers.web1.*' restore      # with a configuration file
"""
STATUS = {
    "0": "all done",
    "1": "could not run: no store, credentials, tree or match; lock busy",
    "2": "wrong command line or configuration",
    "3": "ran, but some metrics, or checks of doctor, failed; each is named",
    "128+N": "stopped by signal N",
}
COMMANDS = tuple(ABOUT)
MATCHING = tuple(command for command in COMMANDS if command not in ("increment", "doctor"))
"""The commands that work on selected metrics."""
LOCKING = ("backup", "increment", "restore", "purge", "prune")
"""The commands that hold the lock and touch the stamp file."""
TREE = ("backup", "increment", "restore", "purge")
"""The commands that always use the tree."""
WORKING = (*LOCKING, "verify")
"""The commands that have worker processes, counters and the default log."""
MAX_DAYS = 36500
MAX_LAG = 86400
MAX_SECONDS = 10_000_000
MAX_SHARES = 1000
MAX_THREADS = 64  # the drivers keep this many connections
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Options:
    """A checked command line."""

    command: str
    config: str | None  # the configuration file that was read
    driver: str
    storage_arguments: list[str]
    prefix: bytes
    processes: int
    threads: int | None  # None: the driver's preference
    keep: Keep
    purge_days: int
    purge_anyway: bool
    no_delete: bool
    protected_ok: bool
    new_store: bool
    noop: bool
    bucket: str  # for disk an absolute path
    selection: Selection
    date: str | None  # a stamp; None: the newest
    algorithm: str
    storage_path: str  # empty, or ending in a slash
    max_file_size: int  # bytes
    since: int | None  # restore points from here on, Unix time
    until: int | None
    no_increments: bool
    overwrite: bool
    every_backup: bool
    shares: int  # verify only today's share, one of this many
    compares_tree: bool
    json: bool
    carbon: carbon.Receiver | None
    carbon_prefix: str
    carbon_node: str | None
    prometheus: str | None
    debris: bool
    summary: bool
    debug: bool
    quiet: bool
    logfile: str | None
    logfile_is_default: bool
    syslog: bool
    lockfile: str | None
    lock_timeout: float  # seconds
    splay: float  # seconds
    metrics: tuple[str, ...]
    exclude: tuple[str, ...]
    lag: int  # seconds
    keep_increments: int  # days
    runs: bool
    stampfile: str | None
    statefile: str | None  # empty: the default one; None: none
    bandwidth: float | None  # bytes a second, for all processes together
    nice: bool


# -- checks of option values: each returns the value of a text, or raises ValueError with what is expected


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _number(kind: type[int] | type[float], low: float, high: float, what: str, text: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(what) from None
    if not low <= value <= high:
        raise ValueError(what)
    return value


def _integer(low: int, high: int, what: str) -> Callable[[str], float]:
    return functools.partial(_number, int, low, high, what)


def _decimal(low: float, high: float, what: str) -> Callable[[str], float]:
    return functools.partial(_number, float, low, high, what)


_seconds = _decimal(0, MAX_SECONDS, f"a number of seconds from 0 to {MAX_SECONDS}")


def _date(text: str) -> str:
    return dates.parse_date(text, clock.utc_now())


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text, re.I)
    if not match or int(match[1]) == 0:
        raise ValueError("a number of bytes, for example 500M or 2G")
    return int(match[1]) * SIZE_UNITS[match[2].upper()]


def _shares(text: str) -> int:
    match = re.fullmatch(r"1/(\d{1,4})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= MAX_SHARES:
        raise ValueError(f"1/N, with an N from 1 to {MAX_SHARES}")
    return int(match[1])


def _bandwidth(text: str) -> float:
    return 1e6 * _number(float, 0.01, 1e6, "MB/s, from 0.01 to 1e+06", text)


def _storage_path(text: str) -> str:
    if not text.isprintable():  # this includes bytes of argv that are not UTF-8
        raise ValueError("printable UTF-8 only")
    return text if not text or text.endswith("/") else text + "/"


def _prometheus_file(text: str) -> str:
    if not text.endswith(".prom") or not os.path.basename(text).removesuffix(".prom"):
        raise ValueError("a file that ends in .prom, in the directory of node_exporter's textfile collector")
    return text


def _codec(text: str) -> str:
    if text not in compression.installed():
        raise ValueError(f"this machine has {', '.join(compression.installed())}")
    return text


# -- the table


class _Option(optparse.Option):
    """One row of the table.

    It has an effect on `commands`, and is shown only in their help.  The commands in `ignored_by` accept and ignore it:
    the older tool accepted every option with every command, and scripts share options between commands.
    """

    check: Callable[[str], Any] | None = None
    commands: tuple[str, ...] = COMMANDS
    ignored_by: tuple[str, ...] = COMMANDS
    by_hand: str = ""  # why it must not be in a configuration file or in the environment

    @property
    def long_names(self) -> list[str]:
        """Its names that begin with two dashes."""
        return list(self._long_opts)

    def check_value(self, opt: str, value: str) -> Any:
        """The result of `check` for the text `value`; its ValueError becomes a one-line error."""
        if self.check is None:
            return value
        try:
            return self.check(value)
        except ValueError as error:
            shown = value if value.isprintable() else ascii(value)
            raise optparse.OptionValueError(f"{opt} {shown}: {error}" if value else f"{opt} is empty") from None

    def process(self, opt: str, value: Any, values: optparse.Values, parser: optparse.OptionParser) -> int:
        """Process the option as optparse does, and record that it was given."""
        assert isinstance(parser, _Parser)
        parser.given[self] = opt
        return super().process(opt, value, values, parser)


def _row(
    *names: str,
    text: str,
    check: Callable[[str], Any] | None = None,
    commands: tuple[str, ...] = COMMANDS,
    ignored_by: tuple[str, ...] = COMMANDS,
    by_hand: str = "",
    **attributes: Any,
) -> _Option:
    if "action" not in attributes and "metavar" not in attributes:
        attributes |= {"action": "store_true", "default": False}
    shown = f"{text} [%default]" if attributes.get("default") and attributes["metavar"] else text
    row = _Option(*names, help=shown, **attributes)
    row.check, row.commands, row.ignored_by, row.by_hand = check, commands, ignored_by, by_hand
    return row


def _table() -> dict[str, list[_Option]]:
    """Every option, in the groups of the help."""
    count = _integer(0, 10**9, "a number of backups, 0 or more")
    return {
        "Where": [
            _row("-p", "--prefix", dest="prefix", default="/opt/graphite/storage/whisper", metavar="DIR",
                check=_not_empty, commands=(*TREE, "verify", "doctor"), text="the tree of whisper files"),
            _row("-b", "--bucket", dest="bucket", default="graphite-backups", metavar="NAME", check=_not_empty,
                text="bucket, container, or (disk) directory"),
            _row("--storage-path", dest="storage_path", default="", metavar="PATH", check=_storage_path,
                text="first part of every key in the bucket [none]"),
            _row("--new-store", dest="new_store", commands=("backup",), ignored_by=(),
                by_hand="it would switch off the check that the store is there",
                text="start a new store if the one of earlier runs is absent or empty (not for cron)"),
        ],
        "What": [
            _row("-m", "--metrics", dest="metrics", action="append", metavar="GLOB", commands=MATCHING,
                ignored_by=(),
                text="metrics to work on, for example 'servers.web1.*' or 'a.{b,c}'; * crosses dots; "
                "may be repeated [*]"),
            _row("--exclude", dest="exclude", action="append", metavar="GLOB",
                text="metrics to leave out; may be repeated"),
            _row("-c", "--date", dest="date", metavar="DATE", check=_date, commands=("restore", "list", "verify"),
                ignored_by=("backup",),  # the older tool accepts it there
                text="the newest backup at or before this moment: ISO 8601, 36h, 2d, yesterday; no zone is UTC, "
                "a date alone 00:00 [now]"),
            _row("-n", "--noop", "--dry-run", dest="noop", by_hand="no run would change anything",
                text="read and report everything, change nothing"),
            _row("--from", dest="since", metavar="DATE", check=_date, commands=("restore",), ignored_by=(),
                text="restore only points from this moment on [all]"),
            _row("--until", dest="until", metavar="DATE", check=_date, commands=("restore",), ignored_by=(),
                text="restore only points up to this moment; others stay as they are [all]"),
            _row("--no-increments", dest="no_increments", commands=("restore", "verify"), ignored_by=(),
                text="use backups alone"),
            _row("--overwrite", dest="overwrite", commands=("restore",), ignored_by=(),
                by_hand="every restore would delete newer points",
                text="replace existing files instead of filling their gaps"),
            _row("--all", dest="every_backup", commands=("verify",), ignored_by=(),
                text="check every backup of every metric, or those up to -c"),
            _row("--sample", dest="shares", default=None, metavar="1/N", check=_shares, commands=("verify",),
                ignored_by=(), text="check another share of the metrics each day (UTC); N consecutive days cover all"),
            _row("--tree", dest="compares_tree", commands=("verify",), ignored_by=(),
                text="compare local files with the newest backups' checksums"),
            _row("--lag", dest="lag", default="900", metavar="SECONDS", check=_integer(0, MAX_LAG,
                f"whole seconds up to {MAX_LAG}"), commands=("increment",), ignored_by=(),
                text="how late a point may be written; must exceed the time that carbon holds points in memory"),
            _row("--runs", dest="runs", commands=("list",), ignored_by=(),
                text="show the runs of backup and the increments; to restore all up to a run, give -c its end"),
            _row("--debris", dest="debris", commands=("list",), ignored_by=(),
                text="show the debris of interrupted runs instead of backups"),
            _row("--summary", dest="summary", commands=("list",), ignored_by=(),
                text="one line for each storage path: metrics, backups, dates and sizes"),
        ],
        "Retention and purge": [
            _row("-r", "--retention", dest="retention", default="5", metavar="N", commands=("backup", "prune"),
                check=_integer(1, 10**9, "at least one backup must be kept"), text="backups to keep of each metric"),
            *(
                _row(f"--keep-{period}", dest=f"keep_{period}", default="0", metavar="N", check=count,
                    commands=("backup", "prune"),
                    text=f"also keep the newest backup from each of the last N {unit}s (UTC) that have one")
                for period, unit in (("daily", "day"), ("weekly", "ISO week"), ("monthly", "month"))
            ),
            _row("-x", "--purge", dest="purge_days", default="45", metavar="DAYS",
                commands=("backup", "purge", "prune"),
                check=_integer(-1, MAX_DAYS, f"days up to {MAX_DAYS}, 0 for at once, or -1 for never"),
                text="days after which the backups of a missing metric are deleted; 0: at once, -1: never"),
            _row("--keep-increments", dest="keep_increments", default="7", metavar="DAYS", commands=("backup", "prune"),
                check=_integer(0, MAX_DAYS, f"days up to {MAX_DAYS}"),
                text="days after which an increment is deleted, if backups have all its points"),
            _row("--purge-anyway", dest="purge_anyway", commands=("backup", "purge", "prune"),
                by_hand="it would switch off the check for a wrong tree",
                text="purge even what looks like a mistake, such as half of all metrics"),
            _row("--no-delete", dest="no_delete", commands=("backup", "increment", "doctor"), ignored_by=(),
                text="delete nothing in the store, and need no right to do so; prune deletes it from elsewhere"),
            _row("--protected-ok", dest="protected_ok", commands=("prune",), ignored_by=(),
                text="objects that the store refuses to delete (locked, retained) are no failure"),
        ],
        "Tuning": [
            _row("-a", "--algorithm", dest="algorithm", default="gz", metavar="CODEC", check=_codec,
                commands=("backup",), text=f"compression: {', '.join(compression.installed())}"),
            _row("-f", "--processes", dest="processes", default="4", metavar="N",
                check=_integer(1, 10**6, "at least one process is needed"),
                commands=WORKING, text="worker processes"),
            _row("--threads", dest="threads", default=None, metavar="N",
                check=_integer(1, MAX_THREADS, f"from 1 to {MAX_THREADS}"), commands=WORKING,
                text="requests in flight in each process [the store's preference]"),
            _row("--bwlimit", dest="bandwidth", default=None, metavar="MB/s", check=_bandwidth,
                commands=("backup", "verify"), text="read whisper files no faster than this [no limit]"),
            _row("--nice", dest="nice", commands=("backup", "increment", "verify"),
                text="lowest CPU and I/O priority; normal CPU priority while holding a file lock"),
            _row("--max-file-size", dest="max_file_size", default="1G", metavar="SIZE", check=_size,
                commands=("backup", "restore", "verify"), text="refuse larger files, in the tree and in the store"),
            _row("--statefile", dest="statefile", default="", metavar="FILE",
                commands=("backup", "increment", "doctor"),
                text="where to record which files need not be read again [one for each prefix and store, in "
                f"{STATE_FOLDER}, or in the cache folder of a user other than root]"),
            _row("--nostate", dest="statefile", action="store_const", const=None,
                commands=("backup", "increment", "doctor"),
                text="read every file, modified or not, and keep no state file"),
        ],
        "When": [
            _row("--splay", dest="splay", default="0", metavar="SECONDS", check=_seconds,
                commands=tuple(command for command in LOCKING if command != "restore"),
                text="first sleep for a random time up to this; not at a terminal"),
            _row("--lockfile", dest="lockfile", default=LOCKFILE, metavar="FILE", commands=LOCKING,
                text="lock file; increment appends .increment to its name"),
            _row("--locktimeout", dest="lock_timeout", default="90", metavar="SECONDS", check=_seconds,
                commands=LOCKING, text="how long to wait for the lock"),
            _row("--nolock", dest="lockfile", action="store_const", const=None, commands=LOCKING,
                text="run without the lock"),
        ],
        "Logging and monitoring": [
            _row("-q", "--quiet", dest="quiet", text="only warnings and errors on stderr"),
            _row("-d", "--debug", dest="debug", text="debug messages; names every metric"),
            _row("--logfile", dest="logfile", default=LOGFILE, metavar="FILE", text="log file; it rotates itself"),
            _row("--nolog", dest="logfile", action="store_const", const=None, text="no log file"),
            _row("--syslog", dest="syslog", text="also log to syslog"),
            _row("--stampfile", dest="stampfile", default=STAMPFILE, metavar="FILE", commands=(*LOCKING, "doctor"),
                text="touched after a fully successful run; increment appends .increment to a FILE that is named"),
            _row("--nostamp", dest="stampfile", action="store_const", const=None,
                commands=(*LOCKING, "doctor"),
                text="no stamp file"),
            _row("--json", dest="json", text="JSON on stdout: failures, then counters and status as the last line"),
            _row("--carbon", dest="carbon", default=None, metavar="HOST[:PORT]", check=carbon.parse_receiver,
                commands=WORKING,
                text=f"send the run's counters to this carbon's line receiver [port {carbon.PORT}]"),
            _row("--carbon-prefix", dest="carbon_prefix", default="whisper-backup", metavar="PREFIX",
                check=carbon.parse_prefix, commands=WORKING,
                text="counters are named PREFIX.<node>.<command>.<counter>"),
            _row("--carbon-node", dest="carbon_node", default=None, metavar="NAME", check=carbon.node_name,
                commands=WORKING, text="<node> in these names, where a machine works for others [this host's name]"),
            _row("--prometheus", dest="prometheus", default=None, metavar="FILE", check=_prometheus_file,
                commands=WORKING, text="write the run's counters to this file of node_exporter's textfile collector"),
        ],
        "Settings and help": [
            _row("--config", dest="config", default=CONFIG, metavar="FILE", by_hand="a file can't name another",
                text="file with settings; /dev/null for none"),
            _row("-h", "--help", action="help", by_hand="it is for one run",
                text="show this and exit; after a command: its options"),
            _row("--version", action="version", by_hand="it is for one run", text="show the version and exit"),
        ],
    }  # fmt: skip


CONFIG_VARIABLE = f"{settings.VARIABLE}CONFIG"


class _Parser(optparse.OptionParser):
    def __init__(self, command: str | None) -> None:
        """Create a parser for all options, or for those that have an effect on `command`."""
        super().__init__(
            usage=USAGE,
            version=f"whisper-backup {__version__}",
            add_help_option=False,
            formatter=optparse.IndentedHelpFormatter(max_help_position=30),
            option_class=_Option,
        )
        self.remove_option("--version")
        self.command = command
        self.given: dict[_Option, str] = {}
        for title, rows in _table().items():
            if chosen := [row for row in rows if command is None or command in row.commands]:
                self.add_option_group(optparse.OptionGroup(self, title)).add_options(chosen)

    @property
    def rows(self) -> list[_Option]:
        """All options."""
        return [row for group in self.option_groups for row in group.option_list if isinstance(row, _Option)]

    def _match_long_opt(self, opt: str) -> str:
        """The option that `opt` names or abbreviates; of an unknown one the error names the nearest."""
        try:
            matched: str = super()._match_long_opt(opt)
            return matched
        except optparse.AmbiguousOptionError:
            raise
        except optparse.BadOptionError:
            near = settings.nearest(opt, (name for row in self.rows for name in row.long_names))
            raise optparse.BadOptionError(opt + near) from None

    def error(self, msg: str) -> NoReturn:
        self.exit(2, f"whisper-backup: {msg}{' See' if msg.endswith('?') else '; see'} whisper-backup --help\n")

    def print_help(self, file: Any = None) -> None:
        words = [*(self.largs or ()), *(self.rargs or ())]
        command = next((word for word in words if word in COMMANDS), None)
        print(make_parser(command).format_help(), end="", file=file)

    def format_help(self, formatter: optparse.HelpFormatter | None = None) -> str:
        """Format the help: options with tables around them; for a command only its own options."""
        if self.command:
            usage = f"Usage: whisper-backup [options] {self.command} {'|'.join(STORES)} [storage args]\n"
            return "\n".join([usage, f"{ABOUT[self.command]}\n", self.format_option_help(formatter)])
        parts = [
            f"Usage: {USAGE}\n",
            _shown(
                "Commands", ABOUT | {HELP: f"show a command's options, or a page; for emergencies: {HELP} {RUNBOOK}"}
            ),
            f"Pages: {_listed(pages.names())}\n",
            _shown("Stores", STORES),
            f"Storage args: {STORAGE_ARGS}\n",
            self.format_option_help(formatter),
            f"Settings:\n{textwrap.indent(SETTINGS, '  ')}",
            f"Examples:\n{EXAMPLES}",
            _shown("Exit status", STATUS),
        ]
        return "\n".join(parts)


def _listed(words: Sequence[str]) -> str:
    return textwrap.fill(", ".join(words), 78, initial_indent=" " * 7, subsequent_indent=" " * 7).strip()


def _shown(title: str, rows: dict[str, str]) -> str:
    return f"{title}:\n" + "".join(f"  {name:<9} {text}\n" for name, text in rows.items())


def make_parser(command: str | None = None) -> _Parser:
    """The parser of all options, or of one command's; also the source of help, completion and manual page."""
    return _Parser(command)


# -- parsing


def parse(words: list[str]) -> Options:
    """Parse and check the command line; an invalid one ends the process with status 2 and one line."""
    parser = make_parser()
    values, arguments = parser.parse_args(words)
    if arguments[:1] == [HELP]:
        parser.exit(_help(parser, arguments[1:]))
    command = _command(parser, arguments)
    configured, config = _apply_settings(parser, values, command, words)
    (driver, *storage_arguments) = _store(parser, arguments[1:] or configured.get(settings.STORE))
    for option, name in parser.given.items():
        if command not in option.commands and command not in option.ignored_by:
            hint = "; it uses -x DAYS" if name in ("-c", "--date") else f"; it is one of {', '.join(option.commands)}"
            parser.error(f"{name} is not an option of {command}{hint}")
    if values.compares_tree and (values.every_backup or values.date is not None):
        parser.error("--tree compares with the newest backups; it can't be combined with --all or -c")
    if values.summary and (values.debris or values.date is not None):
        parser.error("--summary counts everything; it can't be combined with --debris or -c")
    since, until = (seconds(text) if text else None for text in (values.since, values.until))
    if values.overwrite and not since is until is None:
        parser.error("--overwrite replaces whole files; it can't be combined with --from or --until")
    if since is not None and until is not None and since > until:
        parser.error(f"--from {values.since} is later than --until {values.until}")
    for name, text in (("--from", values.since), ("--until", values.until)):
        if text and text > stamp_of(clock.utc_now() + timedelta(days=1)):
            parser.error(f"{name} {text} is more than a day ahead of this machine's clock; check the clock (NTP)")
    try:
        selection = select(values.metrics or ["*"], values.exclude or [])
    except BadGlob as error:
        parser.error(str(error))
    prefix = _absolute(parser, "-p", values.prefix)
    bucket = values.bucket
    if driver == "disk":
        bucket = _absolute(parser, "-b", bucket)
        if command in ("backup", "increment", "purge") and _lies_in(bucket, prefix):
            parser.error(f"-b {values.bucket}: the store must not be inside the tree, {values.prefix} (-p)")
    on_command_line = {option.dest for option in parser.given}
    given = on_command_line | set(configured)
    if command == "increment":  # beside a backup that takes hours
        own = {"lockfile": INCREMENT_LOCKFILE, "stampfile": INCREMENT_STAMPFILE}
        for name, default in own.items():
            path = getattr(values, name)
            if name not in given:
                setattr(values, name, default)
            elif path and not path.endswith(".increment"):
                setattr(values, name, f"{path}.increment")
    made = {
        "command": command,
        "driver": driver,
        "storage_arguments": storage_arguments,
        "config": config,
        "prefix": os.fsencode(prefix),
        "keep": Keep(values.retention, values.keep_daily, values.keep_weekly, values.keep_monthly),
        "bucket": bucket,
        "selection": selection,
        "metrics": tuple(values.metrics or ()),
        "exclude": tuple(values.exclude or ()),
        "shares": values.shares or 1,
        "since": since,
        "until": until,
        "logfile_is_default": "logfile" not in on_command_line,  # one in the configuration may be only root's
        **{
            name: on_this_machine(getattr(values, name))
            for name in ("logfile", "lockfile", "stampfile")
            if name not in given
        },
    }
    fields = (field.name for field in dataclasses.fields(Options))
    return Options(**{name: made[name] if name in made else getattr(values, name) for name in fields})


def _help(parser: _Parser, topics: list[str]) -> int:
    """Show what `help` was asked for; the exit status."""
    installed = pages.names()
    topic = topics[0] if topics else None
    if topic and topic not in (*COMMANDS, *installed):
        parser.error(f"no help on '{topic}'; {_meant(topic, [*COMMANDS, *installed])}")
    if topic in installed:
        shown = pages.text(topic)
        if topic in COMMANDS:
            shown += f"\nThe options: whisper-backup {topic} --help\n"
    else:
        shown = make_parser(topic).format_help()
    try:
        pages.show(shown)
    except OSError as error:
        parser.exit(1, f"whisper-backup: cannot write to standard output: {error.strerror}\n")
    return 0


def _command(parser: _Parser, arguments: list[str]) -> str:
    if not arguments:
        parser.error(f"no command; one of {', '.join(COMMANDS)}")
    if arguments[0] not in COMMANDS:
        parser.error(f"unknown command '{arguments[0]}'; {_meant(arguments[0], COMMANDS)}")
    return arguments[0]


def _store(parser: _Parser, words: list[str] | None) -> list[str]:
    """Driver and storage arguments."""
    if not words:
        parser.error(f"no storage driver; one of {', '.join(storage.names())}, or 'store' in {CONFIG}")
    if not storage.is_known(words[0]):
        parser.error(f"unknown storage driver '{words[0]}'; {_meant(words[0], storage.names())}")
    return words


def _meant(word: str, known: Sequence[str]) -> str:
    return settings.nearest(word, known).removeprefix("; ") or f"one of {', '.join(known)}"


def _apply_settings(
    parser: _Parser, values: optparse.Values, command: str, words: list[str]
) -> tuple[dict[str, Any], str | None]:
    """Put settings of environment and file into `values`, below the command line.

    Returns those that are set, the store among them, and the path of the file if one was read.
    """
    given = {option.dest for option in parser.given}
    rows = {name.removeprefix("--"): row for row in parser.rows for name in row.long_names}
    path = os.environ.get(CONFIG_VARIABLE) if "config" not in given else values.config
    try:
        environment = settings.from_environment(os.environ, (TEST_ROOT, CONFIG_VARIABLE), words)
        if path == "":
            raise settings.BadSetting("the name of the configuration file is empty; /dev/null stands for none")
        file = path or on_this_machine(CONFIG)
        sections = settings.from_file(file, is_default=path is None)
        chosen = settings.understood(rows, COMMANDS, environment, sections, command)
    except settings.BadSetting as error:
        parser.error(str(error))
    configured = {}
    for dest, (_, value, is_default, *_) in chosen.items():
        if dest not in given and not is_default:
            configured[dest] = value
            setattr(values, dest, value)
    return configured, file if sections else None


def _absolute(parser: _Parser, option: str, path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:
        parser.error(f"{option} {path}: the working directory cannot be found ({error.strerror}); use an absolute path")


def _lies_in(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or below it, with symbolic links resolved; neither needs to exist."""
    folder = os.path.realpath(folder)
    return os.path.commonpath([folder, os.path.realpath(path)]) == folder
