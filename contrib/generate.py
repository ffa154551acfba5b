"""Writes the bash completion, the manual page and docs/options.md, from the parser itself: run it after changing one.

python contrib/generate.py
"""

from __future__ import annotations

import optparse
import textwrap
from collections.abc import Iterable
from pathlib import Path

from whisperbackup import __version__, options, pages, storage
from whisperbackup.repository import compression

FOLDER = Path(__file__).parent
COMPLETION, PAGE = FOLDER / "whisper-backup.bash", FOLDER / "whisper-backup.1"
REFERENCE = FOLDER.parent / "docs/options.md"

BASH = r"""# Completion of whisper-backup in bash.  Made by contrib/generate.py; source it, or install it as
# /usr/share/bash-completion/completions/whisper-backup

_whisper_backup() {{
    local word=$2 before=$3 place=0 command= index names
    [[ $word == = ]] && word=
    [[ $before == = ]] && before=${{COMP_WORDS[COMP_CWORD - 2]}}
    COMPREPLY=()
    case $before in
        {files}) mapfile -t COMPREPLY < <(compgen -f -- "$word"); compopt -o filenames 2>/dev/null; return ;;
        {folders}) mapfile -t COMPREPLY < <(compgen -d -- "$word"); compopt -o filenames 2>/dev/null; return ;;
        {codec}) mapfile -t COMPREPLY < <(compgen -W '{codecs}' -- "$word"); return ;;
        {values}) return ;;
    esac
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${{COMP_WORDS[index]}} in
            {values}) [[ ${{COMP_WORDS[index + 1]}} == = ]] && ((index++)); ((index++)) ;;
            -*) ;;
            *) ((place++)) || command=${{COMP_WORDS[index]}} ;;
        esac
    done
    if [[ $word == -* ]]; then
        case $command in
{by_command}
            *) names='{names}' ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word")
        return
    fi
    case $place in
        0) mapfile -t COMPREPLY < <(compgen -W '{commands} {help}' -- "$word") ;;
        1)
            [[ $command == {help} ]] && names='{topics}' || names='{drivers}'
            mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word")
            ;;
    esac
}}
complete -F _whisper_backup whisper-backup
"""

MAN = r"""'\" Made by contrib/generate.py
.TH WHISPER-BACKUP 1 "" "whisper-backup {version}" "User Commands"
.SH NAME
whisper-backup \- back up Graphite's whisper files, and restore them
.SH SYNOPSIS
.B whisper-backup
[options] \fIcommand\fR \fIstore\fR [\fIstorage args\fR]
.br
.B whisper-backup help
[\fIcommand\fR|\fIpage\fR]
.SH DESCRIPTION
Copies the whisper files of a Graphite node, file by file, compressed, several generations of each, into an object store
or a directory, and restores any part of them, also into the tree that carbon is writing to.
Options and arguments come in any order.
.SS Commands
{commands}
.SS Stores
{stores}
.PP
Storage args: {storage_args}.
Credentials come from the environment and from files, as the store's own client library reads them.
.SS Pages
\fBwhisper\-backup help\fR \fIpage\fR shows a page of the documentation: {pages}.
\fBhelp restore\fR is the runbook for emergencies; \fBrestore \-\-help\fR shows the options of that command.
.SH OPTIONS
{options}
.SH CONFIGURATION
{settings}
.SH EXIT STATUS
{status}
.SH EXAMPLES
.nf
{examples}
.fi
.SH FILES
{files}
.SH SEE ALSO
.BR carbon-cache (1),
.BR whisper-info (1)
"""

MARKDOWN = """<!-- Made by contrib/generate.py -->
# Every command and option

    whisper-backup [options] command store [storage args]

Options and arguments come in any order. An option without a list of commands belongs to all. `whisper-backup help`
shows the commands, `whisper-backup help restore` and other names of pages these pages, and `whisper-backup help backup`
the options of a command.

## Commands

{commands}

## Stores

{stores}

Storage args: {storage_args}. Each store's own: [stores.md](stores.md).

{options}

## Settings

{settings}
[operations.md](operations.md#the-configuration-file) has an example.

## Exit statuses

{status}
"""


def completion() -> str:
    """The bash completion."""
    parser = options.make_parser()
    valued = [option for option in _options(parser) if option.takes_value()]
    files = _named(option for option in valued if option.metavar == "FILE")
    folders = _named(option for option in valued if option.metavar == "DIR" or option.dest == "bucket")
    codec = _named(option for option in valued if option.metavar == "CODEC")
    return BASH.format(
        files="|".join(files),
        folders="|".join(folders),
        codec="|".join(codec),
        values="|".join(_named(valued)),  # the others: there is nothing to propose
        names=" ".join(_named(_options(parser))),
        by_command="\n".join(
            f"            {command}) names='{' '.join(_named(_options(options.make_parser(command))))}' ;;"
            for command in options.COMMANDS
        ),
        codecs=" ".join(compression.CODECS),
        commands=" ".join(options.COMMANDS),
        drivers=" ".join(storage.BUILT_IN),
        help=options.HELP,
        topics=" ".join([*options.COMMANDS, *(name for name in pages.names() if name not in options.COMMANDS)]),
    )


def manual_page() -> str:
    """The manual page, in the man macros."""
    parser = options.make_parser()
    groups = [f".SS {group.title}\n{_tagged(_described(parser, group.option_list))}" for group in parser.option_groups]
    files = {
        options.CONFIG: "settings: options by their long names, and the store; may be absent",
        options.LOGFILE: "the log; five rotated ones of 10 MiB stay beside it",
        options.LOCKFILE: "the lock of backup, restore, purge and prune",
        options.STAMPFILE: "touched by a backup, restore, purge or prune that did all its work",
        "/var/cache/whisper-backup": "what backup knows of files that need not be read again",
    }
    return MAN.format(
        version=_roff(__version__),
        commands=_tagged((_bold(name), text) for name, text in options.ABOUT.items()),
        stores=_tagged((_bold(name), text) for name, text in options.STORES.items()),
        storage_args=_roff(options.STORAGE_ARGS),
        pages=", ".join(pages.names()),
        options="\n".join(groups),
        settings=_roff(options.SETTINGS.strip()),
        status=_tagged((_bold(status), text) for status, text in options.STATUS.items()),
        examples=_roff(textwrap.dedent(options.EXAMPLES).rstrip()),
        files=_tagged((_bold(path), text) for path, text in files.items()),
    )


def reference() -> str:
    """docs/options.md."""
    parser = options.make_parser()
    groups = (f"## {group.title}\n\n{_rows(_documented(parser, group.option_list))}" for group in parser.option_groups)
    return MARKDOWN.format(
        commands=_rows((f"`{name}`", text) for name, text in options.ABOUT.items()),
        stores=_rows((f"`{name}`", text) for name, text in options.STORES.items()),
        storage_args=options.STORAGE_ARGS,
        options="\n\n".join(groups),
        settings=options.SETTINGS.strip(),
        status=_rows((f"`{status}`", text) for status, text in options.STATUS.items()),
    )


def _options(parser: optparse.OptionParser) -> list[optparse.Option]:
    return [option for group in parser.option_groups for option in group.option_list]


def _names(option: optparse.Option) -> list[str]:
    return [*option._short_opts, *option._long_opts]  # type: ignore[attr-defined]


def _named(listed: Iterable[optparse.Option]) -> list[str]:
    return [name for option in listed for name in _names(option)]


def _documented(parser: optparse.OptionParser, listed: Iterable[optparse.Option]) -> Iterable[tuple[str, str]]:
    for option in listed:
        value = f" {option.metavar}" if option.takes_value() and option.metavar else ""
        only = getattr(option, "commands", options.COMMANDS)
        commands = "" if only == options.COMMANDS else f" ({', '.join(only)})"
        yield (
            ", ".join(f"`{name}{value}`" for name in _names(option)),
            parser.formatter.expand_default(option) + commands,
        )


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    escaped = ((tag, text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")) for tag, text in pairs)
    return "\n".join(["| | |", "|---|---|", *(f"| {tag} | {text} |" for tag, text in escaped)])


def _described(parser: optparse.OptionParser, listed: Iterable[optparse.Option]) -> Iterable[tuple[str, str]]:
    for option in listed:
        value = rf" \fI{_roff(option.metavar)}\fR" if option.takes_value() and option.metavar else ""
        shown = ", ".join(_bold(name) + value for name in _names(option))
        only = getattr(option, "commands", options.COMMANDS)
        prefix = "" if only == options.COMMANDS else f"{', '.join(only)}: "
        yield shown, prefix + parser.formatter.expand_default(option)


def _tagged(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f".TP\n{tag}\n{_roff(text)}" for tag, text in rows)


def _bold(text: str) -> str:
    return rf"\fB{_roff(text)}\fR"


def _roff(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in escaped.splitlines())


if __name__ == "__main__":
    COMPLETION.write_text(completion())
    PAGE.write_text(manual_page())
    REFERENCE.write_text(reference())
