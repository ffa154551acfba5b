"""OpenStack Swift, through python-swiftclient, with keystoneauth for the tokens; puts and gets over `wire`.

This driver has no storage arguments.  The environment sets the server and the credentials: ST_AUTH, ST_USER and
ST_KEY (version 1), or the OS_* variables of an OpenStack shell (Keystone: passwords, application credentials and
the other types that OS_AUTH_TYPE can name).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

import requests
import urllib3
from keystoneauth1 import exceptions as keystone
from keystoneauth1 import loading
from keystoneauth1.session import Session
from requests.adapters import HTTPAdapter
from swiftclient import ClientException, Connection
from swiftclient.authv1 import PasswordPlugin

from whisperbackup.storage import deadline, ranges, wire
from whisperbackup.storage.base import (
    FIRST,
    WRITERS,
    AccessDenied,
    Exists,
    NotDeleted,
    NotFound,
    StorageError,
    StoredObject,
    Unavailable,
    UsageError,
    batches,
    holds,
    keyword_arguments,
    silence,
)
from whisperbackup.storage.wire import Wire

CONNECT_SECONDS, READ_SECONDS = 5, 30
LAST_ATTEMPT_SECONDS = 32
"""No attempt after a timeout begins later than this after the start of its call, so the call ends within a minute."""
TOKEN_SECONDS = 15
RETRIES = 5
PAUSE = 0.5  # seconds before a retry, after a response that was cut or is not Swift's
DELETE_AT_ONCE = 1000
"""At most this many keys in a bulk delete, though most clusters take 10,000: it gives up after 1,000 failures."""

MD5 = re.compile("[0-9a-f]{32}")


class NotSwift(ValueError):
    """A response that Swift would not send: a proxy, a maintenance page or a wrong address may answer 200 to all."""


COUNT = "x-container-object-count"
"""A header that Swift's response to every listing has."""


def open(bucket: str, create: bool, arguments: list[str]) -> Swift:
    """A driver for the container `bucket`; opening makes a request only with `create`."""
    given = keyword_arguments(arguments, None, WRITERS, WRITERS)
    if "/" in bucket:
        raise UsageError(f"bucket '{bucket}': a container's name contains no slash; set a path with --storage-path")
    # These libraries log the headers of each request, with the beginning of the token.
    silence("swiftclient", "keystoneauth", "keystoneclient", "requests", "urllib3", "stevedore")
    deadline.install()
    driver = Swift(_connector(), bucket, given.get("writers") == "one")
    if create:
        driver.create_if_absent()
    return driver


def _connector() -> Callable[[], TimedConnection]:
    """A function that makes a connection for a thread.  Only this reads the environment."""
    interface = os.environ.get("OS_INTERFACE") or os.environ.get("OS_ENDPOINT_TYPE") or "public"
    certificates = os.environ.get("OS_CACERT") or None
    place = {"region_name": os.environ.get("OS_REGION_NAME") or None, "endpoint_type": interface}
    shared = _session(certificates)

    def connect() -> TimedConnection:
        return TimedConnection(
            session=shared,
            os_options=place,
            retries=RETRIES,
            starting_backoff=0.5,
            max_backoff=8,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            cacert=certificates,
        )

    return connect


def _session(certificates: str | None) -> Session:
    """The session that gives all threads of this process their token, and a new one after it has expired."""
    repeat = urllib3.Retry(
        total=RETRIES,
        connect=2,
        read=1,  # two requests for the versions and two for the token: a minute, if the identity service is silent
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
        backoff_factor=0.5,
        raise_on_status=False,
    )
    http = requests.Session()
    http.mount("http://", HTTPAdapter(max_retries=repeat))
    http.mount("https://", HTTPAdapter(max_retries=repeat))
    return SharedSession(auth=_credentials(), session=http, timeout=TOKEN_SECONDS, verify=certificates or True)


def _credentials() -> Any:
    """keystoneauth's plugin for the credentials in the environment."""
    environment = os.environ
    for name in ("ST_AUTH", "OS_AUTH_URL"):
        if "@" in urlsplit(environment.get(name, "")).netloc:  # keystoneauth's warnings would tell it
            raise UsageError(f"{name} contains a user or password; set these in their own variables")
    if environment.get("ST_AUTH"):
        try:
            return PasswordPlugin(environment["ST_AUTH"], environment["ST_USER"], environment["ST_KEY"])
        except KeyError as unset:
            raise AccessDenied(f"Swift: ST_AUTH is set, but {unset.args[0]} is not; set all three of ST_*") from None
    if not environment.get("OS_AUTH_URL"):
        raise AccessDenied("Swift: no credentials; set ST_AUTH, ST_USER and ST_KEY, or source your openrc file (OS_*)")
    is_application = environment.get("OS_APPLICATION_CREDENTIAL_ID")
    kind = environment.get("OS_AUTH_TYPE") or ("v3applicationcredential" if is_application else "password")
    if kind.endswith("password"):
        # keystoneauth notices this only after its first request, and raises a bare Exception.
        for names in (("OS_PASSWORD",), ("OS_USERNAME", "OS_USER_ID")):
            if not any(environment.get(name) for name in names):
                raise AccessDenied(f"Swift: OS_AUTH_URL is set, but {names[0]} is not; source your whole openrc file")
    try:
        return loading.get_plugin_loader(kind).load_from_options_getter(_option)
    except keystone.OptionError as error:
        raise AccessDenied(f"Swift: OS_AUTH_TYPE={kind} needs more OS_* variables: {error}") from error
    except keystone.NoMatchingPlugin as error:
        raise AccessDenied(f"Swift: OS_AUTH_TYPE={kind} is not supported; set another, usually password") from error


def _option(option: Any) -> str | None:
    """The value of one of a plugin's options: OS_PROJECT_NAME for project-name, or OS_TENANT_NAME, its older name."""
    names = (f"OS_{spelling.dest.upper()}" for spelling in (option, *option.deprecated))
    return next((os.environ[name] for name in names if os.environ.get(name)), option.default)


def _is_row(row: Any) -> bool:
    """Whether this is an object in a listing."""
    return isinstance(row, dict) and {"name", "bytes", "hash"} <= row.keys()


def _named_by(errors: Sequence[Any], bucket: str, batch: Sequence[str]) -> Sequence[str]:
    """The keys of `batch` that the errors of a bulk delete may name; all of them if an error names none of them.

    Swift writes a path as it was sent, Ceph without quotes and without the first slash.  A text that fits two keys
    names both: a second request to delete an object is no error.
    """
    keys, named = frozenset(batch), set[str]()
    for error in errors:
        path = error[0] if isinstance(error, list) and error else ""
        texts = (path, unquote(path), unquote(unquote(path))) if isinstance(path, str) else ()
        paths = {form for text in texts for form in (text, text.removeprefix("/"))}
        found = keys & {form for path in paths for form in (path, path.removeprefix(f"{bucket}/"))}
        if not found:
            return batch
        named |= found
    return [key for key in batch if key in named]


class SharedSession(Session):  # type: ignore[misc,unused-ignore]
    """A session in which several threads can find at once that the token has expired."""

    def invalidate(self, auth: Any = None) -> bool:
        """Whether to retry: always; the base class returns False if another thread was faster."""
        super().invalidate(auth)
        return True


class TimedConnection(Connection):  # type: ignore[misc]
    """swiftclient's connection, with a deadline for each call; swiftclient itself only limits the number of retries."""

    began = 0.0
    url: str | None
    token: str | None

    def http_connection(self, url: str | None = None) -> Any:
        """Called before each attempt that follows a timeout or a broken connection."""
        if time.monotonic() - self.began > LAST_ATTEMPT_SECONDS:
            raise Unavailable(f"{urlsplit(self.url or '').netloc} does not answer; check the network and the cluster")
        return super().http_connection(url)

    def get_auth(self) -> tuple[str, str]:
        url, token = super().get_auth()
        if not url:
            raise StorageError("the cloud's catalog has no object-store: check OS_REGION_NAME and OS_INTERFACE")
        return url, token

    def get_capabilities(self, url: str | None = None) -> Any:
        """Like the base class, which however has no address before the first other request, and does not retry."""
        if not self.token:
            self.url, self.token = self.get_auth()
        for backoff in (1, 2, 4):
            try:
                return super().get_capabilities(url)
            except OSError:
                self.close()
            except ClientException as error:
                if error.http_status < 500:
                    raise
            time.sleep(backoff)
        return super().get_capabilities(url)


class Swift:
    """One container."""

    threads = 8
    is_ranged = True

    def __init__(self, connect: Callable[[], TimedConnection], bucket: str, has_one_writer: bool) -> None:
        self._connect = connect
        self._bucket = bucket
        self._has_one_writer = has_one_writer
        self._idle: list[TimedConnection] = []
        self._place: tuple[Wire, str] | None = None  # the account's, and a token that was good
        self._bulk_limit: int | None = None

    def create_if_absent(self) -> None:
        try:
            # Try to list first: creating a container needs permissions in the account, even if it exists.
            self._page("", "", FIRST)
        except NotFound:
            self._call("create", None, lambda swift: swift.put_container(self._bucket))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self.list_range(prefix, "", "")

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        marker, end = after, until and until + FIRST  # Swift's own end is exclusive
        while page := self._page(prefix, marker, end):
            for row in page:
                md5 = row["hash"]
                yield StoredObject(row["name"], row["bytes"], md5 if MD5.fullmatch(md5) else None)
            marker = page[-1]["name"]

    def _page(self, prefix: str, marker: str, end: str) -> Sequence[Any]:
        # The request sets no limit, so the cluster chooses the length of a page; only an empty page is surely the last.
        def request(swift: TimedConnection) -> Sequence[Any]:
            headers, rows = swift.get_container(self._bucket, prefix=prefix, marker=marker, end_marker=end)
            if COUNT not in headers or not isinstance(rows, list) or not all(map(_is_row, rows)):
                raise NotSwift
            return rows

        return cast(Sequence[Any], self._call("list", None, request))

    def get(self, key: str) -> bytes:
        def request(swift: TimedConnection) -> bytes:
            answer: dict[str, Any] = {}
            headers, body = swift.get_object(self._bucket, key, response_dict=answer)
            ranges.check_whole(answer["status"])
            if not headers.get("etag"):
                raise NotSwift
            return bytes(body)

        with self._attempt("GET", key, {}, b"") as answer:
            if answer and answer.status == 200 and answer.headers.get("etag"):
                return answer.body
            return cast(bytes, self._call("read", key, request))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        def request(swift: TimedConnection) -> bytes:
            answer: dict[str, Any] = {}
            part = {"Range": ranges.header(offset, length)}
            headers, body = swift.get_object(self._bucket, key, headers=part, response_dict=answer)
            if not headers.get("etag"):
                raise NotSwift
            return ranges.cut(bytes(body), answer["status"], headers.get("content-range"), offset, length)

        try:
            return cast(bytes, self._call("read", key, request))
        except StorageError as error:
            if getattr(error.__cause__, "http_status", None) != ranges.NOT_SATISFIABLE:
                raise
            return self.get(key)[offset : offset + length]

    def modified(self, key: str) -> float | None:
        headers = self._call("read", key, lambda swift: swift.head_object(self._bucket, key))
        try:
            return parsedate_to_datetime(headers.get("last-modified")).timestamp()
        except (TypeError, ValueError):
            return None

    def put(self, key: str, body: bytes) -> None:
        self._put(key, body, {})

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        for key, body in objects:
            try:
                self._put(key, body, {"If-None-Match": "*"})
            except StorageError as error:
                if getattr(error.__cause__, "http_status", None) != 412:
                    raise
                if not holds(self, key, body):
                    raise Exists(key) from None
        return self._has_one_writer  # a cluster accepts both of two simultaneous puts, and keeps the later one

    def _put(self, key: str, body: bytes, condition: dict[str, str]) -> None:
        # swiftclient can rewind a file for a retry.  With the length Swift rejects a truncated body.  TLS and the SHA-1
        # in every backup protect the content.
        def request(swift: TimedConnection) -> None:
            content = io.BytesIO(body) if body else None
            if swift.put_object(self._bucket, key, content, content_length=len(body), headers=condition) != md5:
                raise NotSwift

        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
        with self._attempt("PUT", key, condition, body) as answer:
            if not answer or answer.status != 201 or answer.headers.get("etag", "").strip('"') != md5:
                self._call("write", key, request)

    def _attempt(
        self, method: str, key: str, headers: Mapping[str, str], body: bytes
    ) -> contextlib.AbstractContextManager[wire.Answer | None]:
        """The answer to one cheap attempt, if any; the block asks through swiftclient where it is no good."""
        if self._place is None:  # before the first call, or with a proxy between
            return contextlib.nullcontext()
        way, token = self._place
        complete = {"host": way.host, "user-agent": wire.AGENT, "x-auth-token": token, **headers}
        return wire.attempt(way, lambda: way.ask(method, way.path + quote(f"/{self._bucket}/{key}"), complete, body))

    def delete(self, keys: Iterable[str]) -> None:
        stayed: dict[str, StorageError] = {}
        for batch in batches(keys, self._keys_in_a_bulk_delete()):
            for key in self._bulk_delete(batch):
                try:
                    self._delete_one(key)
                except Unavailable:
                    raise  # each further key would need a minute to fail
                except StorageError as error:
                    stayed[key] = error
        if stayed:
            first = next(iter(stayed.values()))
            raise NotDeleted(
                f"container '{self._bucket}': {len(stayed)} objects were not deleted; {first}",
                {key: str(error) for key, error in stayed.items() if isinstance(error, AccessDenied)},
                {key: str(error) for key, error in stayed.items() if not isinstance(error, AccessDenied)},
            )

    def _delete_one(self, key: str) -> None:
        def request(swift: TimedConnection) -> None:
            answer: dict[str, Any] = {}
            swift.delete_object(self._bucket, key, response_dict=answer)
            if answer["status"] != 204:
                raise NotSwift

        try:
            self._call("delete", key, request)
        except NotFound:
            pass

    def _bulk_delete(self, batch: Sequence[str]) -> Sequence[str]:
        """Delete in one request; return the keys to retry one by one, which then succeed or show the reason."""
        if len(batch) == 1:
            return batch
        paths = "\n".join(quote(f"/{self._bucket}/{key}") for key in batch).encode()
        headers = {"Content-Type": "text/plain", "Accept": "application/json"}

        def request(swift: TimedConnection) -> tuple[int, Sequence[Any]]:
            _, body = swift.post_account(headers, query_string="bulk-delete", data=paths)
            # The status is always 200; the body contains the result.
            outcome = json.loads(body)
            try:
                return outcome["Number Deleted"] + outcome["Number Not Found"], tuple(outcome["Errors"])
            except (KeyError, TypeError):
                raise NotSwift from None

        try:
            done, errors = self._call("delete from", None, request)
        except Unavailable:
            raise
        except StorageError:
            return batch
        if done + len(set(map(repr, errors))) < len(batch):
            return batch  # the cluster stopped early, after too many failures
        return _named_by(errors, self._bucket, batch)

    def _keys_in_a_bulk_delete(self) -> int:
        """How many keys the cluster can delete at once; 1 if it has no bulk delete, or hides its /info."""
        if self._bulk_limit is None:
            try:
                offered = self._call("query", None, TimedConnection.get_capabilities).get("bulk_delete", {})
            except Unavailable:
                raise
            except StorageError:
                offered = {}
            self._bulk_limit = min(DELETE_AT_ONCE, int(offered.get("max_deletes_per_request", 1)))
        return self._bulk_limit

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._place:
            self._place[0].close()

    def _call(self, doing: str, key: str | None, request: Callable[[TimedConnection], Any]) -> Any:
        """Make a request over an idle or a new connection; its exceptions become StorageErrors."""
        with self._errors(doing, key), self._connection() as connection:
            connection.began = wire.began()
            for _ in range(2):
                try:
                    answer = request(connection)
                    self._remember(connection)
                    return answer
                except (urllib3.exceptions.HTTPError, ValueError):
                    # swiftclient does not retry a response that was cut after its headers, or is not Swift's.
                    connection.close()
                    time.sleep(PAUSE)
            return request(connection)

    def _remember(self, connection: TimedConnection) -> None:
        if not connection.url or not connection.token:
            return
        place = self._place  # one read: other threads may replace it
        if place is None or place[1] != connection.token:
            way = place[0] if place else self._open(connection.url)
            self._place = (way, connection.token) if way else None

    @staticmethod
    def _open(url: str) -> Wire | None:
        return wire.open_wire(url, os.environ.get("OS_CACERT") or os.environ.get("REQUESTS_CA_BUNDLE"))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[TimedConnection]:
        """A connection for one call.  The pool holds as many connections as calls have run at once."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    @contextlib.contextmanager
    def _errors(self, doing: str, key: str | None) -> Iterator[None]:
        """Convert the libraries' exceptions to StorageErrors that name the failed action and the remedy."""
        what = f"cannot {doing} container '{self._bucket}'" if key is None else f"cannot {doing} '{key}'"
        try:
            yield
        except StorageError as error:
            raise type(error)(f"{what}: {error}") from error.__cause__
        except ClientException as error:
            if error.http_status == 404 and key is None:
                raise NotFound(
                    f"{what}: it does not exist; correct -b, or run backup once, which creates it"
                ) from error
            raise self._refusal(what, error) from error
        except keystone.Unauthorized as error:
            raise AccessDenied(
                f"{what}: wrong user, password or credential; check ST_USER and ST_KEY, or the OS_* variables"
            ) from error
        except (keystone.SSLError, requests.exceptions.SSLError) as error:
            raise Unavailable(
                f"{what}: TLS failed; for a private certificate authority set OS_CACERT to its file"
            ) from error
        except (keystone.ConnectionError, keystone.HttpServerError) as error:
            raise Unavailable(
                f"{what}: the identity service does not answer ({type(error).__name__}); "
                "check ST_AUTH or OS_AUTH_URL, and the network"
            ) from error
        except keystone.EndpointNotFound as error:
            raise StorageError(
                f"{what}: the cloud's catalog has no object-store; check OS_REGION_NAME and OS_INTERFACE"
            ) from error
        except (keystone.BadRequest, keystone.Forbidden, keystone.NotFound) as error:
            raise AccessDenied(
                f"{what}: the identity service knows no such credential, project or domain; check the OS_* variables"
            ) from error
        except keystone.ClientException as error:
            raise StorageError(
                f"{what}: the identity service sends an invalid answer ({type(error).__name__}); "
                "check ST_AUTH or OS_AUTH_URL, and the names of project and domains"
            ) from error
        except ranges.WrongRange as error:
            raise Unavailable(f"{what}: the cluster answers with {error}; check any proxy") from error
        except ValueError as error:
            raise Unavailable(
                f"{what}: the cluster answers 200 with something that is not Swift: check ST_AUTH or OS_AUTH_URL, "
                "any proxy, and whether the server shows a maintenance page"
            ) from error
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise Unavailable(
                f"{what}: the cluster does not answer ({type(error).__name__}); check the network"
            ) from error

    def _refusal(self, what: str, error: Any) -> StorageError:
        status = error.http_status
        if status == 404:
            return NotFound(f"{what}: the object or the container '{self._bucket}' does not exist")
        if status in (401, 403):
            return AccessDenied(
                f"{what}: {error.http_host} denies access (status {status}); "
                "check the user's role in the project, or the container's ACL"
            )
        if status in (413, 507):
            return StorageError(f"{what}: status {status}, the quota is used up: raise it, or keep fewer backups")
        if status is None or status >= 500 or status in (408, 429, 498, 499):
            return Unavailable(f"{what}: status {status} from {error.http_host} after {RETRIES + 1} attempts")
        return StorageError(f"{what}: status {status} {error.http_reason} from {error.http_host}")
