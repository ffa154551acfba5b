"""Pages of an S3 listing, read several times faster than botocore reads them.

botocore turns every element of a page into Python objects by walking its model of the service; on a listing
of millions of objects that is where the time goes.  Signing, sending, retries and errors stay botocore's:
what is done here is one event handler that reads the body of a good answer, and puts the objects beside what
botocore makes of the rest.  What it does not understand it leaves to botocore.
"""

from __future__ import annotations

import functools
import re
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import botocore.handlers

from whisperbackup.storage.base import StoredObject

EVENT = "before-parse.s3.*"
OBJECTS = "WhisperBackupObjects"
"""Where a page holds its objects, if they were read here."""
ROOT = "ListBucketResult"
ENVELOPE = f"<{ROOT}/>".encode()
MD5 = re.compile("[0-9a-f]{32}")


def install(events: Any) -> None:
    """Have the listings of the client with these `events` read here.

    botocore's own handler parses every body to see whether it holds an error: it comes after ours, which leaves
    it nothing to parse but what is no page.
    """
    find_error = getattr(botocore.handlers, "_handle_200_error", None)
    if find_error:
        events.unregister(EVENT, find_error)
    events.register(EVENT, _read_page)
    if find_error:
        events.register(EVENT, find_error)


def _read_page(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Move what a page holds from the response's body to the customized response."""
    if operation_model.name != "ListObjectsV2" or response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
        if not root.tag.endswith(ROOT):
            return
        page = _page(root, root.tag.removesuffix(ROOT))
    except (ElementTree.ParseError, TypeError, ValueError):
        return
    customized_response_dict.update(page)
    response_dict["body"] = ENVELOPE


def _page(root: ElementTree.Element, namespace: str) -> dict[str, Any]:
    key, size, etag = (namespace + name for name in ("Key", "Size", "ETag"))
    is_quoted = root.findtext(namespace + "EncodingType") == "url"  # as botocore asks
    objects = []
    for found in root.iterfind(namespace + "Contents"):
        name, length = found.findtext(key), found.findtext(size)
        if not name or not length:
            raise ValueError("an object without a key or a size")
        objects.append(
            StoredObject(_unquote(name) if is_quoted else name, int(length), md5_of(found.findtext(etag, "")))
        )
    page: dict[str, Any] = {OBJECTS: objects, "IsTruncated": root.findtext(namespace + "IsTruncated") == "true"}
    if token := root.findtext(namespace + "NextContinuationToken"):
        page["NextContinuationToken"] = token
    return page


def _unquote(key: str) -> str:
    """As botocore does it; what stands before the last slash, and behind it, is mostly what it was a moment ago."""
    folder, slash, name = key.rpartition("/")
    return _unquote_part(folder) + slash + _unquote_part(name)


_unquote_part = functools.lru_cache(1024)(unquote_plus)


def objects_of(page: dict[str, Any]) -> list[StoredObject]:
    """The objects of a page, whoever read it."""
    if OBJECTS in page:
        return page[OBJECTS]  # type: ignore[no-any-return]
    return [StoredObject(o["Key"], o["Size"], md5_of(o.get("ETag", ""))) for o in page.get("Contents", ())]


def md5_of(etag: str) -> str | None:
    """An ETag as an MD5.  Under SSE-KMS it is none, but looks the same: the caller takes a mismatch as "don't know"."""
    etag = etag.strip('"')
    return etag if MD5.fullmatch(etag) else None
