"""The quick reader of S3's pages reads what the XML parser reads, or leaves it to that."""

from __future__ import annotations

import uuid
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st
from test_storage import open_store

from whisperbackup.storage import s3pages

AWS = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>b</Name><Prefix></Prefix><KeyCount>2</KeyCount><EncodingType>url</EncodingType>"
    "<IsTruncated>true</IsTruncated><NextContinuationToken>1/x+y==</NextContinuationToken>"
    "<Contents><Key>a%20b/2026-11-20T00%3A00%3A00%2B00%3A00.sha1</Key><LastModified>2026-11-20</LastModified>"
    "<ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag><Size>40</Size><StorageClass>STANDARD</StorageClass>"
    "</Contents><Contents><Key>a%20b/+x</Key><LastModified>2026-11-20</LastModified><ETag>&quot;0-2&quot;</ETag>"
    "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>5</Size>"
    "<Owner><ID>1</ID><DisplayName/></Owner><StorageClass>GLACIER</StorageClass></Contents></ListBucketResult>"
)


def slow(body: str | bytes) -> object:
    """What the XML parser says."""
    try:
        root = ElementTree.fromstring(body)
        space, brace, name = root.tag.rpartition("}")
        return s3pages._page(root, space + brace) if name == s3pages.LISTING else None
    except (ElementTree.ParseError, TypeError, ValueError):
        return None


def test_a_page_of_aws_is_read_the_quick_way() -> None:
    page = s3pages._usual_page(AWS.encode())
    assert page is not None
    assert page == slow(AWS)
    assert [found.key for found in page[s3pages.OBJECTS]] == ["a b/2026-11-20T00:00:00+00:00.sha1", "a b/ x"]
    assert page["NextContinuationToken"] == "1/x+y=="
    empty = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    assert s3pages._usual_page(empty.encode()) == slow(empty) == {s3pages.OBJECTS: [], "IsTruncated": False}


PIECES = [AWS[begin:end] for begin, end in zip([0, *(i for i, c in enumerate(AWS) if c == "<")], [i for i, c in
    enumerate(AWS) if c == "<"] + [len(AWS)], strict=True)]  # fmt: skip


@given(st.data())
def test_whatever_the_quick_way_reads_the_parser_reads_the_same(data: st.DataObject) -> None:
    """Elements left out, repeated, exchanged or cut: it may leave a page to the parser, and never reads another."""
    pieces = list(PIECES)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(pieces) - 1))
        match data.draw(st.sampled_from(["drop", "repeat", "swap", "cut", "insert"])):
            case "drop":
                del pieces[place]
            case "repeat":
                pieces.insert(place, pieces[place])
            case "swap":
                pieces[place], pieces[place - 1] = pieces[place - 1], pieces[place]
            case "cut":
                pieces[place] = pieces[place][: data.draw(st.integers(0, 9))]
            case "insert":
                more = st.sampled_from(["&amp;", "&", "x", "<![CDATA[x]]>", "<!-- -->", "<Key>z</Key>", "é", "0", " "])
                pieces.insert(place, data.draw(more))
        if not pieces:
            return
    body = "".join(pieces).encode()
    quick = s3pages._usual_page(body)
    assert quick is None or quick == slow(body)


@given(st.lists(st.text(min_size=1)), st.booleans())
def test_any_key_is_read(keys: list[str], is_quoted: bool) -> None:
    keys = [key for key in keys if not s3pages_cannot_hold(key)]
    listed = "".join(
        f"<Contents><Key>{quote(key) if is_quoted else escape(key)}</Key><ETag>x</ETag><Size>1</Size></Contents>"
        for key in keys
    )
    encoding = "<EncodingType>url</EncodingType>" if is_quoted else ""
    body = f"<ListBucketResult>{encoding}<IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode()
    page = s3pages.page_in(body)
    assert page is not None
    assert [found.key for found in page[s3pages.OBJECTS]] == keys


def s3pages_cannot_hold(key: str) -> bool:
    """Whether XML cannot hold it, or has another form of it."""
    return any(c < " " or c in "\x7f\ufffe\uffff\r" or "\ud800" <= c <= "\udfff" for c in key)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["s3-rclone", "s3-swift"])
def test_a_real_servers_page_is_read_the_quick_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = open_store(servers.store(kind), f"pages-{uuid.uuid4().hex}", create=True)
    for key in ("a b/x", "é/+", "c"):
        driver.put(key, b"x")
    read = []
    original = s3pages._usual_page
    monkeypatch.setattr(s3pages, "_usual_page", lambda body: read.append(original(body)) or read[-1])
    assert [found.key for found in driver.list("")] == ["a b/x", "c", "é/+"]
    assert [page is not None for page in read] == [True]
