"""Settings: the values of options from environment variables and from the configuration file.

    WHISPER_BACKUP_STORAGE_PATH=node1        a long option's name in capitals, `_` for `-`
    storage-path = node1                     in the file, before its first section: for every command
    [verify]                                 for this command alone
    sample = 1/30

`store` (WHISPER_BACKUP_STORE) is the driver with its storage arguments.  A flag is `yes` or `no`, or in the file its
name alone.  An option that may be repeated has a line for each value.
"""

from __future__ import annotations

import io
import optparse
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

STORE = "store"
VARIABLE = "WHISPER_BACKUP_"
OF_THE_UNIT = f"{VARIABLE}OPTIONS"
"""Older systemd units put its words on the command line."""
MAX_SIZE = 1 << 20  # bytes
COMMON = ""
"""The section before the first heading, for all commands."""

_HEADING = "\0"  # no line of a file can hold it
_SECRET = re.compile(r"passw|secret|token|credential|access[-_]?key|private|^(st|api)[-_]key$|^auth$", re.I)
_NAME = re.compile(r"[\w-]{1,40}", re.ASCII)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s]*@")
_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


class BadSetting(ValueError):
    """A setting that cannot be used; the text names its place and the remedy, and never shows a possible secret."""


class Setting(NamedTuple):
    """One setting as text; `place` is for messages, and `text` is None for a name alone."""

    place: str
    name: str
    text: str | None


class Row(Protocol):
    """What an option must tell of itself."""

    dest: str | None
    action: str
    const: Any
    commands: tuple[str, ...]
    by_hand: str

    def takes_value(self) -> bool:
        """Whether a value follows its name."""

    def check_value(self, opt: str, value: str) -> Any:
        """The value of a text.  Raises OptionValueError."""


class Value(NamedTuple):
    """The value of `dest`; `is_default` if the setting turns the option off, so that its default applies."""

    dest: str
    value: Any
    is_default: bool
    commands: tuple[str, ...]
    name: str


# -- reading


def from_environment(environment: Mapping[str, str], ours: Iterable[str], words: Sequence[str]) -> list[Setting]:
    """The settings among the variables, except those named in `ours`.  Raises BadSetting."""
    found = []
    for variable in sorted(environment):
        if variable == OF_THE_UNIT:
            _check_of_the_unit(environment[variable], words)
        elif variable.startswith(VARIABLE) and variable not in ours:
            name = variable.removeprefix(VARIABLE).lower().replace("_", "-")
            found.append(Setting(variable, name, environment[variable]))
    return found


def _check_of_the_unit(text: str, words: Sequence[str]) -> None:
    theirs = text.split()
    if not any(list(words[at : at + len(theirs)]) == theirs for at in range(len(words) + 1)):
        raise BadSetting(
            f"{OF_THE_UNIT} has no effect by itself; set a variable for each option, for example {VARIABLE}BUCKET, "
            "or use the configuration file"
        )


def from_file(path: str, is_default: bool) -> dict[str, list[Setting]]:
    """The settings in the file `path`, by section; a default one may be absent.  Raises BadSetting."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        if is_default and not os.path.lexists(path):
            return {}
        raise BadSetting(f"the configuration file {path} does not exist; correct --config") from None
    except OSError as error:
        raise BadSetting(
            f"the configuration file {path} cannot be read: {error.strerror}; it holds no secrets, so make it readable "
            "to every user (chmod 644), or name another with --config"
        ) from None
    if len(content) > MAX_SIZE:
        raise BadSetting(f"the configuration file {path} is larger than 1 MiB; correct --config")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSetting(f"the configuration file {path} is not UTF-8") from None
    return _sections(path, text) if text.strip() else {}


def _sections(path: str, text: str) -> dict[str, list[Setting]]:
    import configparser

    parser = configparser.RawConfigParser(
        allow_no_value=True, inline_comment_prefixes=("#",), empty_lines_in_values=False, default_section=_HEADING * 2
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    # The parser's own messages show whole lines, and a line may hold a secret.
    try:
        parser.read_file(io.StringIO(f"[{_HEADING}]\n{text}"))
    except configparser.ParsingError as error:
        lines = ", ".join(str(number - 1) for number, _ in error.errors)
        raise BadSetting(f"{path}, line {lines}: neither 'name = value' nor '[command]'") from None
    except (configparser.DuplicateOptionError, configparser.DuplicateSectionError) as error:
        line = (error.lineno or 1) - 1
        raise BadSetting(f"{path}, line {line}: given before; give each name and each section once") from None
    return {
        "" if section == _HEADING else section: [
            Setting(path if section == _HEADING else f"{path} [{section}]", name, value)
            for name, value in parser.items(section)
        ]
        for section in parser.sections()
    }


# -- understanding


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `known`, or nothing."""
    import difflib

    found = difflib.get_close_matches(word.lower(), list(known), 1)
    return f"; did you mean '{found[0]}'?" if found else ""


def understood(
    rows: Mapping[str, Row],
    commands: Sequence[str],
    environment: Sequence[Setting],
    sections: Mapping[str, Sequence[Setting]],
    command: str,
) -> dict[str, Value]:
    """The value of each `dest` for `command`, the first that is set: environment, its section, the common settings.

    `rows` are the options by long name, without dashes.  All settings are checked, also those of other commands.
    Raises BadSetting.
    """
    for section in sections:
        if section not in (COMMON, *commands):
            raise BadSetting(f"{section!r} is no command{nearest(section, commands)}; a section is named by a command")
    values = {section: _values(rows, settings, section) for section, settings in sections.items()}
    chosen: dict[str, Value] = {}
    for source in (_values(rows, environment, COMMON), values.get(command, {}), values.get(COMMON, {})):
        for dest, value in source.items():
            if command in value.commands:
                chosen.setdefault(dest, value)
    return chosen


def _values(rows: Mapping[str, Row], settings: Sequence[Setting], section: str) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for setting in settings:
        value = _value(rows, setting, section)
        other = found.get(value.dest)
        if other and not other.is_default and not value.is_default:
            raise BadSetting(f"{setting.place}: '{other.name}' and '{value.name}' exclude each other; keep one")
        if not other or other.is_default:
            found[value.dest] = value
    return found


def _value(rows: Mapping[str, Row], setting: Setting, section: str) -> Value:
    place, name, text = setting
    shown = f"'{name}'"
    if name == STORE:
        words = _words(place, text)
        return Value(STORE, words, False, _every_command(rows), name)
    row = rows.get(name)
    if row is None:
        if _SECRET.search(name):
            raise _secret(place, name if _NAME.fullmatch(name) else "a line")
        near = nearest(name, [*rows, STORE])
        # What resembles no setting, and has no value, may be part of a secret.
        named = f" {shown}" if _NAME.fullmatch(name) and (near or text is not None) else ""
        raise BadSetting(f"{place}: unknown setting{named}{near}")
    if row.by_hand or row.dest is None:
        raise BadSetting(f"{place}: {shown} can't be set there: {row.by_hand}; give it on the command line")
    if section and section not in row.commands:
        raise BadSetting(f"{place}: {shown} is not an option of {section}; it is one of {', '.join(row.commands)}")
    if not row.takes_value():
        is_on = _flag(f"{place}: {name}", text)
        const = is_on if row.action == "store_true" else row.const
        return Value(row.dest, const, row.action == "store_const" and not is_on, row.commands, name)
    if text is None:
        raise BadSetting(f"{place}: {shown} needs a value: {name} = …")
    if _URL_WITH_PASSWORD.search(text):
        raise _secret(place, name)
    lines = [line for line in text.splitlines() if line] if row.action == "append" else [text]
    for line in lines:
        if "\n" in line:
            raise BadSetting(f"{place}: {shown} has more than one line; only one value is allowed")
        if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
            raise BadSetting(f"{place}: {shown}: write the value without quotes")
    try:
        checked = [row.check_value(f"{place}: {name}", line) for line in lines]
    except optparse.OptionValueError as error:
        raise BadSetting(str(error)) from None
    return Value(row.dest, checked if row.action == "append" else checked[0], False, row.commands, name)


def _every_command(rows: Mapping[str, Row]) -> tuple[str, ...]:
    return tuple({command: None for row in rows.values() for command in row.commands})


def _flag(what: str, text: str | None) -> bool:
    if text is not None and text.lower() not in (*_YES, *_NO):
        raise BadSetting(f"{what}: yes or no")
    return text is None or text.lower() in _YES


def _words(place: str, text: str | None) -> list[str]:
    try:
        words = shlex.split(text or "")
    except ValueError:
        raise BadSetting(f"{place}: 'store' has a quote without its end") from None
    if not words:
        raise BadSetting(f"{place}: 'store' is empty; name a driver and its storage arguments: store = s3 eu-west-1")
    for word in words[1:]:
        name, equals, _ = word.partition("=")
        if (equals and _SECRET.search(name)) or _URL_WITH_PASSWORD.search(word):
            raise _secret(place, f"store: {name}" if equals else "store")
    return words


def _secret(place: str, name: str) -> BadSetting:
    return BadSetting(
        f"{place}: '{name}' is or holds a secret, which must not be there; credentials come from the files and "
        "variables of the store's own client library: see docs/stores.md"
    )
