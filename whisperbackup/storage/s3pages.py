"""Checks of S3 responses before botocore parses them: botocore treats any 200 as a success.

A proxy, a maintenance page or a wrong endpoint may answer 200 to everything.  A response that S3 would not send
becomes the error NOT_S3.  It is retried like a transient fault, and then fails the call.

This module also parses the pages of a listing, many times faster than botocore, which walks its model of the
service for every element: pages as the known services write them by one expression, others by an XML parser.
botocore still does the signing, the sending, all other retries and errors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import botocore.handlers

from whisperbackup.storage.base import StoredObject

EVENT = "before-parse.s3.*"
NOT_S3 = "AnswerIsNotS3"
CONFLICT = "ConditionalRequestConflict"
"""S3's error code for a conditional put during another one to the same key: the client must retry."""
OBJECTS = "WhisperBackupObjects"
"""The response field with a page's objects."""
LISTING, DELETION, ERROR = "ListBucketResult", "DeleteResult", "Error"
ENVELOPE = f"<{LISTING}/>".encode()
REFUSAL = f"<Error><Code>{NOT_S3}</Code><Message>this is not a response of S3</Message></Error>".encode()
REFUSED_STATUS = 502
TRIES = 3
PAUSE = 0.5  # seconds, more with each try
MD5 = re.compile("[0-9a-f]{32}")


def install(events: Any) -> None:
    """Check the responses of the client with these `events`.

    botocore's own handler parses every body to find errors in it.  It is moved behind this module's handler, which
    replaces each page with a short body.
    """
    find_error = getattr(botocore.handlers, "_handle_200_error", None)
    if find_error:
        events.unregister(EVENT, find_error)
    events.register(EVENT, _read_answer)
    if find_error:
        events.register(EVENT, find_error)
    events.register("needs-retry.s3.*", _ask_again)


def _read_answer(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Reject a success that is not S3's; move a page's content to the customized response."""
    status, headers = response_dict["status_code"], response_dict["headers"]
    if not 200 <= status < 300:
        return
    match operation_model.name:
        case "ListObjectsV2":
            is_right = _read_page(response_dict, customized_response_dict)
        case "DeleteObjects":
            is_right = _root_name(response_dict["body"]) in (DELETION, ERROR)
        case "PutObject" | "GetObject":
            is_right = bool(headers.get("etag"))
        case "DeleteObject":
            is_right = status == 204
        case _:
            is_right = True
    if not is_right:
        response_dict["status_code"], response_dict["body"] = REFUSED_STATUS, REFUSAL


def _ask_again(response: Any, attempts: int, **_: object) -> float | None:
    """The seconds to wait before a retry, after a response that is not S3's or a conflict of two conditional puts."""
    if response is None or attempts >= TRIES:
        return None
    code = response[1].get("Error", {}).get("Code")
    return PAUSE * attempts if code in (NOT_S3, CONFLICT) else None


def _root_name(body: bytes) -> str:
    try:
        return ElementTree.fromstring(body).tag.rpartition("}")[2]
    except ElementTree.ParseError:
        return ""


_S = "[ \t\r\n]*"
_QUOTE = '(?:"|&quot;|&#34;)?'


def _optional(name: str) -> str:
    return f"(?:{_S}<{name}>[^<>&]*</{name}>)"


_ENTRY = re.compile(
    f"<Contents>{_S}<Key>([^<>&\x00-\x1f]+)</Key>{_optional('LastModified')}?"
    f"{_S}<ETag>(?:{_QUOTE}([0-9a-f]{{32}}){_QUOTE}|(?:[^<>&]|&quot;|&#34;)*)</ETag>"
    f"{_optional('ChecksumAlgorithm')}*{_optional('ChecksumType')}?"
    f"{_S}<Size>([0-9]+)</Size>{_optional('StorageClass')}?"
    f"(?:{_S}<Owner>(?:{_optional('ID')}|{_optional('DisplayName')}|{_S}<DisplayName/>)*{_S}</Owner>)?"
    f"{_optional('StorageClass')}?{_S}</Contents>{_S}"
)
_AROUND = re.compile(
    r"""(?:<\?xml\ version=["']1\.0["'](?:\ encoding=["'](?:UTF-8|utf-8)["'])?\ ?\?>\s*)?
    <ListBucketResult(?:\ xmlns="[^"<>&]*")?>\s*
    (?P<fields>(?:(?:<(?P<name>[A-Za-z]+)>[^<>&]*</(?P=name)>|<[A-Za-z]+/>)\s*)*)</ListBucketResult>\s*""",
    re.VERBOSE | re.ASCII,
)
_FIELD = re.compile("<([A-Za-z]+)>([^<]*)</")


def _usual_page(body: bytes) -> dict[str, Any] | None:
    """A page as the known services write it, in a quarter of an XML parser's time; None for any other."""
    try:
        before, *found = _ENTRY.split(body.decode())
    except UnicodeDecodeError:
        return None
    after = found[-1] if found else ""
    if any(found[3:-1:4]):
        return None  # something between the objects
    match = _AROUND.fullmatch(before + after)
    if not match:
        return None
    fields = _FIELD.findall(match["fields"])
    told = dict(fields)
    if len(told) != len(fields) or told.get("IsTruncated") not in ("true", "false"):
        return None
    keys: Iterable[str] = found[0::4]
    if told.get("EncodingType") == "url":
        keys = map(_unquote, keys)
    page = {
        OBJECTS: list(map(StoredObject, keys, map(int, found[2::4]), found[1::4])),
        "IsTruncated": told["IsTruncated"] == "true",
    }
    if token := told.get("NextContinuationToken"):
        page["NextContinuationToken"] = token
    return page


def _read_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any]) -> bool:
    """Whether the body is a page, which is parsed here, or an error, which botocore parses."""
    try:
        root = ElementTree.fromstring(response_dict["body"])
        space, brace, name = root.tag.rpartition("}")
        if name == ERROR:
            return True
        if name != LISTING:
            return False
        page = _page(root, space + brace)
    except (ElementTree.ParseError, TypeError, ValueError):
        return False
    customized_response_dict.update(page)
    response_dict["body"] = ENVELOPE
    return True


def page_in(body: bytes) -> dict[str, Any] | None:
    """The page of a listing in a response; None if it is anything else."""
    if usual := _usual_page(body):
        return usual
    try:
        root = ElementTree.fromstring(body)
        space, brace, name = root.tag.rpartition("}")
        return _page(root, space + brace) if name == LISTING else None
    except (ElementTree.ParseError, TypeError, ValueError):
        return None


def _page(root: ElementTree.Element, namespace: str) -> dict[str, Any]:
    key, size, etag = (namespace + name for name in ("Key", "Size", "ETag"))
    is_quoted = root.findtext(namespace + "EncodingType") == "url"  # botocore requests it
    objects = []
    for found in root.iterfind(namespace + "Contents"):
        name, length = found.findtext(key), found.findtext(size)
        if not name or not length:
            raise ValueError("an object without a key or a size")
        objects.append(
            StoredObject(_unquote(name) if is_quoted else name, int(length), md5_of(found.findtext(etag, "")))
        )
    is_truncated = root.findtext(namespace + "IsTruncated", "")
    if is_truncated not in ("true", "false"):
        raise ValueError("a page that does not state whether it is the last")
    page: dict[str, Any] = {OBJECTS: objects, "IsTruncated": is_truncated == "true"}
    if token := root.findtext(namespace + "NextContinuationToken"):
        page["NextContinuationToken"] = token
    return page


def _unquote(key: str) -> str:
    """Decode like botocore.  Both parts of a key mostly repeat those of the keys before, so they are cached."""
    folder, slash, name = key.rpartition("/")
    return _unquote_part(folder) + slash + _unquote_part(name)


_unquote_part = functools.lru_cache(1024)(unquote_plus)


def md5_of(etag: str) -> str | None:
    """An ETag as an MD5.  Under SSE-KMS it is not one, but looks the same: callers treat a mismatch as unknown."""
    etag = etag.strip('"')
    return etag if MD5.fullmatch(etag) else None
