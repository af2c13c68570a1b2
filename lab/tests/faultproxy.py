"""The APIs behind a proxy that makes them fail as they do in real life, for chosen requests only.

    with faultproxy.Proxy() as proxy:
        with proxy.failing(Rule(timeout_after, 'nova', 'POST', 'action$')) as seen:
            labkit.drp(..., env=proxy.env)

Only the operator's client is sent through it (proxy.env: a clouds.yaml with other end points); the services talk to each other
as ever. A fault is a function of an Exchange: one request, which it may forward, answer, hang or break off.
"""
from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import json
import re
import socket
import struct
import tempfile
import threading
import typing as ty
import urllib.parse

import labkit
import yaml

SERVICES = ('keystone', 'nova', 'cinder')
#: Seconds that a request hangs at most: longer than any client of the tests waits.
LONGEST = 120.0
HOP_BY_HOP = ('connection', 'keep-alive', 'transfer-encoding', 'content-length')


@dataclasses.dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Exchange:
    """One request that came in."""

    def __init__(self, handler: http.server.BaseHTTPRequestHandler, backend: str, ended: threading.Event) -> None:
        self._handler = handler
        self._backend = backend
        self._ended = ended
        self.method, self.path = handler.command, handler.path
        self._body = handler.rfile.read(int(handler.headers.get('Content-Length') or 0))

    def forward(self) -> Reply:
        """Let the service do it, and give its answer."""
        connection = http.client.HTTPConnection(self._backend, timeout=LONGEST)
        try:
            # with the Host header as it came: the services' links then lead through the proxy too
            headers = {k: v for k, v in self._handler.headers.items() if k.lower() not in HOP_BY_HOP}
            connection.request(self.method, self.path, self._body or None, headers)
            got = connection.getresponse()
            return Reply(got.status, [(k, v) for k, v in got.getheaders() if k.lower() not in HOP_BY_HOP], got.read())
        finally:
            connection.close()

    def answer(self, reply: Reply, length: int | None = None) -> None:
        """Send an answer; `length` is what it claims to be long, whatever it is."""
        handler = self._handler
        handler.send_response_only(reply.status)
        for name, value in reply.headers:
            handler.send_header(name, value)
        handler.send_header('Content-Length', str(len(reply.body) if length is None else length))
        handler.send_header('Connection', 'close')
        handler.end_headers()
        handler.wfile.write(reply.body)

    def hang(self, seconds: float) -> None:
        """Say nothing for a while, or until the test is over."""
        self._ended.wait(seconds)

    def reset(self) -> None:
        """Break the connection off: the peer gets ECONNRESET."""
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self._handler.connection.close()


Fault = ty.Callable[[Exchange], None]


# ---- faults


def passing(exchange: Exchange) -> None:
    """No fault."""
    exchange.answer(exchange.forward())


def error(status: int, message: str = 'The server said no.', after: bool = False, **headers: str) -> Fault:
    """The service answers an error; after=True: to something that it has done all the same."""
    def fault(exchange: Exchange) -> None:
        if after:
            exchange.forward()
        body = json.dumps({'someFault': {'code': status, 'message': message}}).encode()
        named = [(k.replace('_', '-'), v) for k, v in headers.items()]
        exchange.answer(Reply(status, [('Content-Type', 'application/json'), *named], body))
    return fault


def html(status: int, after: bool = False) -> Fault:
    """A load balancer's own page."""
    def fault(exchange: Exchange) -> None:
        if after:
            exchange.forward()
        exchange.answer(Reply(status, [('Content-Type', 'text/html')], b'<html><body><h1>Oops</h1></body></html>'))
    return fault


def timeout_before(exchange: Exchange) -> None:
    """The service never hears of it, and nobody answers."""
    exchange.hang(LONGEST)
    exchange.reset()


def timeout_after(exchange: Exchange) -> None:
    """The service does it, and its answer never comes."""
    exchange.forward()
    exchange.hang(LONGEST)
    exchange.reset()


def reset_before(exchange: Exchange) -> None:
    """The connection is reset before the service hears of it."""
    exchange.reset()


def reset_after(exchange: Exchange) -> None:
    """The service does it, and the connection is reset instead of an answer."""
    exchange.forward()
    exchange.reset()


def cut(exchange: Exchange) -> None:
    """The answer breaks off in the middle of its body."""
    reply = exchange.forward()
    half = dataclasses.replace(reply, body=reply.body[:len(reply.body) // 2])
    exchange.answer(half, length=len(reply.body) + 1)


def garbage(exchange: Exchange) -> None:
    """The service does it and answers half a JSON document, with a length that fits."""
    reply = exchange.forward()
    exchange.answer(dataclasses.replace(reply, body=(reply.body or b'{"a": 1}')[:-1]))


def empty(exchange: Exchange) -> None:
    """The service does it and answers an empty JSON object."""
    exchange.answer(dataclasses.replace(exchange.forward(), body=b'{}'))


def changed(change: ty.Callable[[dict[str, ty.Any]], None]) -> Fault:
    """The answer's JSON is changed on its way."""
    def fault(exchange: Exchange) -> None:
        reply = exchange.forward()
        body = json.loads(reply.body)
        change(body)
        exchange.answer(dataclasses.replace(reply, body=json.dumps(body).encode()))
    return fault


def short(key: str) -> Fault:
    """A page that lacks its end and its link to the next one."""
    def change(body: dict[str, ty.Any]) -> None:
        body[key] = body[key][:-1]
        body.pop(f'{key}_links', None)
    return changed(change)


def slow(seconds: float) -> Fault:
    """The service is slow, and right."""
    def fault(exchange: Exchange) -> None:
        exchange.hang(seconds)
        passing(exchange)
    return fault


def after(act: ty.Callable[[], object], fault: Fault = passing) -> Fault:
    """Something happens right before the request goes on: a service dies."""
    def both(exchange: Exchange) -> None:
        act()
        fault(exchange)
    return both


# ---- rules


@dataclasses.dataclass
class Rule:
    """Which requests fail, and how: the nth that matches and those after it, `times` in all (None: for ever).

    `method` and `path` are regular expressions: the whole of the one, a part of the other.
    """

    fault: Fault
    service: str
    method: str = '.*'
    path: str = ''
    nth: int = 1
    times: int | None = 1
    #: Of these only each so-many-th.
    every: int = 1
    #: Only after this other rule struck.
    then: Rule | None = None
    #: How many matched so far, and how many of them failed.
    seen: int = 0
    struck: int = 0

    def hits(self, service: str, method: str, path: str) -> bool:
        """Whether this request is one of them."""
        if service != self.service or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self.then and not self.then.struck:
            return False
        self.seen += 1
        hit = self.seen >= self.nth and (self.seen - self.nth) % self.every == 0 and self.struck != self.times
        self.struck += hit
        return hit


class Proxy:
    """Keystone, nova and cinder, each on a port of its own on the loopback."""

    def __init__(self) -> None:
        settings = json.loads((labkit.ETC / 'lab.json').read_text())
        self._urls = {s: urllib.parse.urlsplit(settings[{'keystone': 'auth_url'}.get(s, s)]) for s in SERVICES}
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        #: Every request since `failing` began: (service, method, path).
        self.requests: list[tuple[str, str, str]] = []

    def __enter__(self) -> Proxy:
        self._servers = {service: self._serve(service) for service in SERVICES}
        self._directory = tempfile.TemporaryDirectory()
        settings = yaml.safe_load((labkit.ETC / 'clouds.yaml').read_text())
        for cloud in settings['clouds'].values():
            cloud['auth']['auth_url'] = self._through('keystone')
            cloud['compute_endpoint_override'] = self._through('nova')
            cloud['block_storage_endpoint_override'] = self._through('cinder')
        file = f'{self._directory.name}/clouds.yaml'
        with open(file, 'w') as f:
            yaml.safe_dump(settings, f)
        #: For the client that is to come this way.
        self.env = {'OS_CLIENT_CONFIG_FILE': file}
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        self._directory.cleanup()

    @contextlib.contextmanager
    def failing(self, *rules: Rule) -> ty.Iterator[list[tuple[str, str, str]]]:
        """These rules hold inside the block; gives the requests that came: (service, method, path)."""
        with self._lock:
            self._rules, self.requests = list(rules), []
        self._ended.clear()
        try:
            yield self.requests
        finally:
            self._ended.set()
            with self._lock:
                self._rules = []

    def _through(self, service: str) -> str:
        host, port = self._servers[service].server_address[:2]
        return f'http://{host}:{port}{self._urls[service].path}'

    def _serve(self, service: str) -> http.server.ThreadingHTTPServer:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                self.close_connection = True
                if self.raw_requestline and self.parse_request():
                    self.close_connection = True
                    proxy._handle(service, self)

        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _handle(self, service: str, handler: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.requests.append((service, handler.command, handler.path))
            hit = [rule.fault for rule in self._rules if rule.hits(service, handler.command, handler.path)]
        exchange = Exchange(handler, self._urls[service].netloc, self._ended)
        # a client that gave up meanwhile is no trouble of ours
        with contextlib.suppress(OSError):
            (hit or [passing])[0](exchange)
