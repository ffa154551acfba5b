"""Which metrics are selected: globs over dotted names, and the literal prefixes that limit where to look."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from whisperbackup.tree.names import metric_name

MAX_ALTERNATIVES = 1000
MAX_LENGTH = 4096
MAX_BRACES = 100
WILDCARD = re.compile(r"[*?[]")


class BadGlob(ValueError):
    """An invalid glob; the text says why."""


def expand_braces(glob: str) -> list[str]:
    """`a.{b,c}` as `a.b`, `a.c`; braces nest, as in a shell.  Raises BadGlob."""
    if glob.count("{") > MAX_BRACES:
        raise BadGlob(f"glob '{glob[:60]}…': more than {MAX_BRACES} braces")
    start = glob.find("{")
    if start < 0:
        if "}" in glob:
            raise BadGlob(f"glob '{glob}': a '}}' without a '{{'")
        return [glob]
    if "}" in glob[:start]:
        raise BadGlob(f"glob '{glob}': a '}}' without a '{{'")
    depth, begin, choices = 0, start + 1, []
    for position in range(start, len(glob)):
        character = glob[position]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
        if (character == "," and depth == 1) or depth == 0:
            choices.append(glob[begin:position])
            begin = position + 1
        if depth == 0:
            break
    else:
        raise BadGlob(f"glob '{glob}': a '{{' without a '}}'")
    globs: list[str] = []
    for choice in choices:
        globs += expand_braces(glob[:start] + choice + glob[begin:])
        if len(globs) > MAX_ALTERNATIVES:  # checked here, since a line of commas would expand to millions
            raise BadGlob(f"glob '{glob}': its braces make more than {MAX_ALTERNATIVES} alternatives")
    return globs


def check_glob(glob: str) -> None:
    """Raises BadGlob for a glob over dotted names that could match nothing."""
    if not _is_unicode(glob):
        raise BadGlob(f"glob {glob!a} is not UTF-8")
    if len(glob) > MAX_LENGTH:
        raise BadGlob(f"a glob of {len(glob)} characters is too long; {MAX_LENGTH} are allowed")
    if not glob:
        raise BadGlob("an empty glob matches nothing; '*' matches every metric")
    if "/" in glob:
        raise BadGlob(f"glob '{glob}': metric names have dots, not slashes, for example 'servers.web1.*'")
    if "[" in re.sub(r"\[!?+.[^]]*+\]", "", glob):
        raise BadGlob(f"glob '{glob}': a '[' without a ']'")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def literal_prefix(glob: str) -> str:
    """The common prefix of all `name/` whose name matches `glob`; the whole `name/` if there is no wildcard."""
    wildcard = WILDCARD.search(glob)
    return glob[: wildcard.start()] if wildcard else glob + "/"


def disjoint(prefixes: Sequence[str]) -> tuple[str, ...]:
    """`prefixes` sorted, without those that begin with another one."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept)


@dataclass(frozen=True)
class Selection:
    """The metrics that match one of the wanted globs and none of the excluded ones.

    `prefixes` are sorted and disjoint; each `name/` in the selection begins with one of them.
    """

    prefixes: tuple[str, ...]
    wanted: re.Pattern[str] | None  # None: all
    excluded: re.Pattern[str] | None  # None: none
    folders_excluded: re.Pattern[str] | None
    globs: tuple[str, ...] = ()  # the wanted ones as they were given
    excluded_names: tuple[str, ...] = ()  # the excluded ones without any wildcard

    @property
    def exact(self) -> list[str]:
        """The names that were given without any wildcard."""
        return [prefix[:-1] for prefix in self.prefixes if prefix.endswith("/")]

    @property
    def has_all(self) -> bool:
        """Whether every metric is selected."""
        return self.wanted is None and self.excluded is None

    def __contains__(self, name: str) -> bool:
        """Whether the metric `name` is selected."""
        return (self.wanted is None or self.wanted.match(name) is not None) and (
            self.excluded is None or self.excluded.match(name) is None
        )

    def may_hold(self, folder: str) -> bool:
        """Whether a metric whose name begins with `folder` (empty, or ending in a dot) may be selected."""
        return self.reaches(folder) and not (folder and self.folders_excluded and self.folders_excluded.match(folder))

    def reaches(self, folder: str) -> bool:
        """Whether `folder` is above or below one of the prefixes."""
        return any(folder.startswith(prefix) or prefix.startswith(folder) for prefix in self.prefixes)


def is_in_share(name: str, shares: int, day: int) -> bool:
    """Whether the metric `name` is in the share of the day number `day`; there are `shares` shares of about equal size.

    Each metric is in the share of exactly one of any `shares` consecutive days.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") - day) % shares == 0


def select(wanted: Sequence[str], excluded: Sequence[str] = ()) -> Selection:
    """The selection that `-m` and `--exclude` describe.  Raises BadGlob.

    `*` and `?` match any character, dots too; `[abc]` and `{a,b}` are Graphite's.
    """
    includes, excludes = _expanded(wanted), _expanded(excluded)
    return Selection(
        prefixes=disjoint([literal_prefix(glob) for glob in includes]),
        wanted=None if "*" in includes else _any_of(includes),
        excluded=_any_of(excludes),
        # a trailing `*` that may stand for nothing: what matches the folder's own prefix matches all below it
        folders_excluded=_any_of([glob for glob in excludes if glob.endswith("*")]),
        globs=tuple(wanted),
        excluded_names=tuple(glob for glob in excludes if not WILDCARD.search(glob)),
    )


class Unmatched:
    """Which of several globs match none of the selected metrics that are seen; a single one is never among them.

    A name is compared only with globs whose literal prefix it has, and that have matched nothing so far.
    """

    def __init__(self, selection: Selection) -> None:
        self.left = dict.fromkeys(selection.globs) if len(selection.globs) > 1 else {}
        self._by_prefix: dict[str, list[tuple[str, re.Pattern[str] | None]]] = {}
        for glob in self.left:
            for part in _expanded([glob]):
                pattern = re.compile(fnmatch.translate(part)) if WILDCARD.search(part) else None
                self._by_prefix.setdefault(literal_prefix(part), []).append((glob, pattern))
        self._lengths = {len(prefix) for prefix in self._by_prefix}

    def see(self, name: str) -> None:
        """Note that the metric `name` is there."""
        if self.left:
            key = name + "/"
            for length in self._lengths:
                globs = self._by_prefix.get(key[:length], [])
                found = [g for g, pattern in globs if g not in self.left or pattern is None or pattern.match(name)]
                if found:
                    for glob in found:
                        self.left.pop(glob, None)
                    self._by_prefix[key[:length]] = [each for each in globs if each[0] in self.left]


def _expanded(globs: Sequence[str]) -> list[str]:
    expanded: list[str] = []
    for glob in globs:
        if series := tagged_metrics(glob):
            expanded += series
            if "/" not in glob:
                expanded.append(glob)  # what was written without tags in mind may have this very name
        else:
            check_glob(glob)
            expanded += expand_braces(glob)
    return expanded


def tagged_metrics(series: str) -> list[str]:
    """The metrics whose files can hold the tagged series `name;tag=value`, in Graphite's two forms; else none.

    Its tags may be in any order.  Both carbon and go-carbon name the file by the SHA-256 of the name with sorted tags,
    with TAG_HASH_FILENAMES by that alone.  What has a wildcard, or is a file's name already, is a glob.
    """
    name, *tags = series.split(";")
    name = name.lstrip("~")  # as carbon does
    pairs = dict(tag.split("=", 1) for tag in tags if "=" in tag)
    if (
        not name or len(series) > MAX_LENGTH or not tags
        or name.startswith("_tagged.") or re.search(r"[*?\[{}]", series) or not _is_unicode(series)
        or not all(re.fullmatch(r"[^;!^=]+=[^~].*", tag, re.DOTALL) for tag in tags)
    ):  # fmt: skip
        return []
    pairs.pop("name", None)
    path = name + "".join(sorted(f";{tag}={value}" for tag, value in pairs.items()))
    if not pairs:
        return [path]
    digest = hashlib.sha256(path.encode()).hexdigest()
    stems = (path.replace(".", "_DOT_"), digest)
    return [metric_name(f"_tagged/{digest[:3]}/{digest[3:6]}/{stem}.wsp".encode()) for stem in stems]


def _any_of(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)) if globs else None
