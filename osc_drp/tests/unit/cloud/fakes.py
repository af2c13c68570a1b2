# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""A cloud in memory, that answers as nova and cinder do.

:class:`FakeCloud` knows what is there; :class:`FakeApi` is asked straight,
:class:`Server` over HTTP, with a keystone in front of it.
"""

import http.server
import json
import re
import threading
import urllib.parse
import uuid

from osc_drp import exceptions

NOW = '2026-11-22T12:00:00Z'
OLD = '2026-11-01T00:00:00Z'
DATE = 'Sun, 22 Nov 2026 12:00:00 GMT'
SECRET = 'chap-secret-7f3a'


def uid(number):
    """A fixed id."""
    return str(uuid.UUID(int=number, version=4))


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status, message, kind='badRequest'):
        super().__init__(message)
        self.status = status
        self.body = {kind: {'code': status, 'message': message}}


class FakeCloud:
    """What nova and cinder have on record."""

    def __init__(self, max_limit=1000):
        self.max_limit = max_limit
        self.servers = {}
        #: server id: mappings; None is a local disk.
        self.mappings = {}
        self.volumes = {}
        self.rows = {}
        self.agents = []
        self.ports = []
        self.actions = {}
        self.migrations = []
        self.segments = []
        self.nova_services = [
            {'binary': 'nova-compute', 'host': 'c1', 'state': 'up'},
            {'binary': 'nova-compute', 'host': 'c2', 'state': 'down'},
        ]
        self.cinder_services = [
            {'binary': 'cinder-volume', 'host': 'v1@lvm', 'state': 'up'}
        ]
        #: Ids that listings leave out.
        self.unlisted = set()
        #: Servers whose cell is down.
        self.lost = set()
        self.admin = True
        #: (method, path pattern): what to do instead.
        self.instead = {}
        self.seen = []
        self._lock = threading.Lock()

    # -- content

    def add_server(self, number, name=None, root='/dev/vda', **changes):
        server_id = uid(number)
        self.servers[server_id] = {
            'id': server_id,
            'name': name or f'server{number}',
            'status': 'ACTIVE',
            'tenant_id': 'project',
            'created': OLD,
            'image': {'id': uid(999)},
            'locked': False,
            'metadata': {},
            'OS-EXT-SRV-ATTR:host': 'c1',
            'OS-EXT-SRV-ATTR:root_device_name': root,
            'OS-EXT-SRV-ATTR:user_data': SECRET,
            'OS-EXT-STS:vm_state': 'active',
            'OS-EXT-STS:task_state': None,
            'OS-EXT-STS:power_state': 1,
            'OS-SRV-USG:launched_at': OLD,
            **changes,
        }
        self.mappings[server_id] = []
        return server_id

    def add_volume(self, number, **changes):
        volume_id = uid(number)
        self.volumes[volume_id] = {
            'id': volume_id,
            'name': f'volume{number}',
            'status': 'in-use',
            'multiattach': False,
            'created_at': '2026-11-01T00:00:00.000000',
            'migration_status': None,
            'os-vol-tenant-attr:tenant_id': 'project',
            'os-vol-host-attr:host': 'v1@lvm#lvm',
            **changes,
        }
        return volume_id

    def attach(
        self, server_id, volume_id, number, device='/dev/vdb', **changes
    ):
        """Record an attachment on both sides."""
        self.map(server_id, volume_id, number, device, **changes)
        self.add_row(server_id, volume_id, number, device=device)
        return uid(number)

    def map(self, server_id, volume_id, number, device, **changes):
        self.mappings[server_id].append(
            {
                'volumeId': volume_id,
                'serverId': server_id,
                'device': device,
                'tag': None,
                'delete_on_termination': False,
                'attachment_id': uid(number),
                'bdm_uuid': uid(number + 5000),
                **changes,
            }
        )

    def add_row(self, server_id, volume_id, number, **changes):
        self.rows[uid(number)] = {
            'id': uid(number),
            'volume_id': volume_id,
            'instance': server_id,
            'status': 'attached',
            'device': '/dev/vdb',
            'host': 'c1',
            **changes,
        }

    # -- answers

    def answer(self, service, method, path, params, microversion, body):
        """Give the JSON answer, or raise a Refusal."""
        with self._lock:
            self.seen.append((service, method, path, dict(params), body))
        self.microversion = microversion
        for (wanted, pattern), what in self.instead.items():
            if wanted == method and re.fullmatch(pattern, path):
                given = what(params) if callable(what) else what
                if isinstance(given, Exception):
                    raise given
                if given is not None:
                    return given
        kind = 'get' if method == 'GET' else 'post'
        parts = path.split('/')
        name = re.sub(r'\W', '_', f'{kind}_{service}_{parts[0]}')
        return getattr(self, name)(parts[1:], params)

    def _page(self, items, params, key='id'):
        limit = min(int(params.get('limit', self.max_limit)), self.max_limit)
        marker = params.get('marker')
        start = 0
        if marker:
            places = [n for n, i in enumerate(items) if i[key] == marker]
            if not places:
                raise Refusal(400, f'marker [{marker}] not found')
            start = places[0] + 1
        return items[start : start + limit]

    def _server_view(self, server_id):
        if server_id in self.lost:
            return {
                'id': server_id,
                'status': 'UNKNOWN',
                'tenant_id': 'project',
                'created': OLD,
            }
        view = dict(self.servers[server_id])
        view['os-extended-volumes:volumes_attached'] = [
            {'id': m['volumeId'], 'delete_on_termination': False}
            for m in self.mappings[server_id]
            if m
        ]
        if not self.admin:
            view.pop('OS-EXT-SRV-ATTR:host', None)
        return view

    def get_compute_servers(self, parts, params):
        if parts and parts[0] != 'detail':
            if parts[0] not in self.servers:
                raise Refusal(
                    404,
                    f'Instance {parts[0]} could not be found.',
                    'itemNotFound',
                )
            if len(parts) == 1:
                return {'server': self._server_view(parts[0])}
            below = parts[1].replace('-', '_')
            return getattr(self, f'server_{below}')(parts, params)
        if 'all_tenants' in params and not self.admin:
            raise Refusal(
                403,
                "Policy doesn't allow os_compute_api:servers:detail:"
                'get_all_tenants to be performed.',
                'forbidden',
            )
        paged = any(k in params for k in ('limit', 'marker', 'sort_key'))
        soft = params.get('vm_state') == 'soft-delete'
        views = [
            self._server_view(i)
            for i in self.servers
            if (i not in self.lost or not paged)
            and not (i in self.unlisted and parts)
        ]
        if paged:
            views = [
                v
                for v in views
                if (v['OS-EXT-STS:vm_state'] == 'soft-delete') == soft
            ]
        if not parts:
            views = [
                {k: v[k] for k in ('id', 'name', 'status') if k in v}
                if v['status'] == 'UNKNOWN'
                else {'id': v['id'], 'name': v['name']}
                for v in views
            ]
        return {'servers': self._page(views, params)}

    def server_os_volume_attachments(self, parts, params):
        offset = int(params.get('offset', 0))
        limit = min(int(params.get('limit', self.max_limit)), self.max_limit)
        found = self.mappings[parts[0]][offset : offset + limit]
        newest = self.microversion == '2.89'
        return {
            'volumeAttachments': [
                m
                if newest
                else {
                    k: v
                    for k, v in m.items()
                    if k not in ('attachment_id', 'bdm_uuid')
                }
                for m in found
                if m and (m['attachment_id'] or not newest)
            ]
        }

    def server_os_instance_actions(self, parts, params):
        listed = self.actions.get(parts[0], [])
        listed = [
            {k: v for k, v in a.items() if k != 'events'} for a in listed
        ]
        page = self._page(listed, params, 'request_id')
        more = page and page[-1] is not listed[-1]
        links = {'links': [{'rel': 'next', 'href': '...'}]} if more else {}
        return {'instanceActions': page, **links}

    def server_diagnostics(self, parts, params):
        return {'state': 'running', 'driver': 'libvirt'}

    def get_compute_os_services(self, parts, params):
        if not self.admin:
            raise Refusal(403, "Policy doesn't allow os-services", 'forbidden')
        return {'services': self.nova_services}

    def get_compute_os_migrations(self, parts, params):
        found = [m for m in self.migrations if m['status'] == params['status']]
        return {'migrations': self._page(found, params, 'uuid')}

    def _volume_view(self, volume_id):
        view = dict(self.volumes[volume_id])
        view['attachments'] = [
            {
                'id': volume_id,
                'attachment_id': r['id'],
                'volume_id': volume_id,
                'server_id': r['instance'],
                'host_name': r['host'],
                'device': r['device'],
            }
            for r in self.rows.values()
            if r['volume_id'] == volume_id and r['status'] == 'attached'
        ]
        return view

    def get_block_storage_volumes(self, parts, params):
        if parts[0] != 'detail':
            if parts[0] not in self.volumes:
                raise Refusal(404, 'Volume could not be found', 'itemNotFound')
            return {'volume': self._volume_view(parts[0])}
        views = [
            self._volume_view(i)
            for i in self.volumes
            if i not in self.unlisted
        ]
        return {'volumes': self._page(views, params)}

    def get_block_storage_attachments(self, parts, params):
        if parts:
            if parts[0] not in self.rows:
                raise Refusal(404, 'Attachment not found', 'itemNotFound')
            return {
                'attachment': {
                    'id': parts[0],
                    'connection_info': {'auth_password': SECRET},
                }
            }
        listed = [
            {k: r[k] for k in ('id', 'volume_id', 'instance', 'status')}
            for r in self.rows.values()
            if params.get('instance_id') in (None, r['instance'])
        ]
        return {'attachments': self._page(listed, params)}

    def get_block_storage_os_services(self, parts, params):
        return {'services': self.cinder_services}

    def get_network_agents(self, parts, params):
        return {'agents': self.agents}

    def get_network_ports(self, parts, params):
        return {'ports': self._page(self.ports, params)}

    def get_instance_ha_segments(self, parts, params):
        return {'segments': self.segments}

    def post_compute_servers(self, parts, params):
        if parts[1] == 'os-volume_attachments':
            return {'volumeAttachment': {'device': '/dev/vdc'}}
        return {}

    def post_block_storage_volumes(self, parts, params):
        return {}


class FakeApi:
    """Has the face of session.Api, without HTTP."""

    cloud = 'fake'
    now = NOW
    user_id = 'me'

    def __init__(self, cloud=None, compute=(2, 104), volume=(3, 71)):
        self.there = cloud or FakeCloud()
        self.compute_max = compute
        self.volume_max = volume
        self.catalog = {'compute', 'block-storage'}
        #: (service, microversion) of each request.
        self.versions = []

    def has(self, service):
        return service in self.catalog

    def version(self, service, wanted):
        number = tuple(int(p) for p in wanted.split('.'))
        highest = {
            'compute': self.compute_max,
            'block-storage': self.volume_max,
        }
        return '{}.{}'.format(*min(number, highest[service]))

    def get(self, service, path, microversion=None, params=None, retries=3):
        return self.request(
            service, 'GET', path, microversion, params=params or {}
        )

    def post(self, service, path, json, microversion=None, quiet=False):
        return self.request(service, 'POST', path, microversion, json)

    def request(
        self, service, method, path, microversion=None, json=None, params=None
    ):
        self.versions.append((service, path, microversion))
        try:
            body = self.there.answer(
                service, method, path, params or {}, microversion, json
            )
        except Refusal as exc:
            kind = {
                400: exceptions.Conflict,
                404: exceptions.NotFound,
                409: exceptions.Conflict,
            }.get(exc.status, exceptions.ApiError)
            words = str(exc)
            if exc.status == 403:
                words = f"cloud 'fake': user is not an administrator: {words}"
            raise kind(words) from None
        return Answer(body)


class Answer:
    """What a request gives."""

    status = 200
    date = NOW

    def __init__(self, body):
        self.body = body


class Server:
    """The same cloud over HTTP."""

    def __init__(self, cloud=None):
        self.cloud = cloud or FakeCloud()
        #: What to do with the next requests: a function of the handler that
        #: says whether it answered.
        self.tricks = []
        #: (method, path, headers) of all requests.
        self.requests = []
        self.date = True
        self.catalog = ['compute', 'volumev3', 'network']
        self.password = 'right'
        self.keystone_up = True
        #: Services that are down: 'compute', 'volume'; what a load balancer
        #: answers for them, or None: they hang up.
        self.down = {}
        #: (status, body) of the next answers to a login.
        self.keystone_says = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *args):
                pass

            def date_time_string(self, timestamp=None):
                return DATE

            def do_GET(self):
                outer.handle(self)

            def do_POST(self):
                outer.handle(self)

            def say(self, status, body, headers=()):
                data = body if isinstance(body, bytes) else json.dumps(body)
                data = data if isinstance(data, bytes) else data.encode()
                self.send_response_only(status)
                if outer.date:
                    self.send_header('Date', DATE)
                self.send_header('Content-Type', 'application/json')
                self.send_header('Content-Length', str(len(data)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self._httpd = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), Handler
        )
        self._httpd.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._httpd.server_address[1]}'
        self._thread = threading.Thread(
            target=self._httpd.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def close(self):
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    def sent(self, method, part=''):
        """Requests that arrived."""
        return [r for r in self.requests if r[0] == method and part in r[1]]

    def handle(self, handler):
        length = int(handler.headers.get('Content-Length') or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        parsed = urllib.parse.urlsplit(handler.path)
        self.requests.append(
            (handler.command, parsed.path, dict(handler.headers))
        )
        service, _, path = parsed.path.lstrip('/').partition('/')
        if service in self.down:
            status = self.down[service]
            if status is None:
                handler.close_connection = True
                return
            handler.say(status, b'<html>')
            return
        if service != 'identity' and self.tricks and path.count('/'):
            if self.tricks.pop(0)(handler):
                return
        if service == 'identity':
            if not self.keystone_up:
                handler.close_connection = True
                return
            if body and self.keystone_says:
                handler.say(*self.keystone_says.pop(0))
                return
            self._keystone(handler, path, body)
            return
        path = path.partition('/')[2]
        if not path:
            self._versions(handler, service)
            return
        params = dict(urllib.parse.parse_qsl(parsed.query))
        wanted = handler.headers.get('OpenStack-API-Version', '')
        kind = {
            'compute': 'compute',
            'volume': 'block-storage',
            'network': 'network',
        }[service]
        try:
            answer = self.cloud.answer(
                kind,
                handler.command,
                path,
                params,
                wanted.rpartition(' ')[2],
                body,
            )
        except Refusal as exc:
            handler.say(exc.status, exc.body)
        else:
            handler.say(200, answer)

    def _versions(self, handler, service):
        name, low, high, path = {
            'compute': ('v2.1', '2.1', '2.104', 'v2.1'),
            'volume': ('v3.0', '3.0', '3.71', 'v3'),
        }[service]
        href = f'{self.url}/{service}/{path}/'
        handler.say(
            200,
            {
                'version': {
                    'id': name,
                    'status': 'CURRENT',
                    'version': high,
                    'min_version': low,
                    'links': [{'rel': 'self', 'href': href}],
                }
            },
        )

    def _keystone(self, handler, path, body):
        if handler.command == 'GET':
            handler.say(
                200,
                {
                    'version': {
                        'id': 'v3.14',
                        'status': 'stable',
                        'links': [
                            {'rel': 'self', 'href': f'{self.url}/identity/v3'}
                        ],
                    }
                },
            )
            return
        user = body['auth']['identity']['password']['user']
        if user['password'] != self.password:
            handler.say(
                401,
                {
                    'error': {
                        'code': 401,
                        'title': 'Unauthorized',
                        'message': 'The request you have made requires '
                        'authentication.',
                    }
                },
            )
            return
        ends = {
            'compute': f'{self.url}/compute/v2.1',
            'volumev3': f'{self.url}/volume/v3',
            'network': f'{self.url}/network',
        }
        handler.say(
            201,
            {
                'token': {
                    'methods': ['password'],
                    'issued_at': '2026-11-22T11:00:00.000000Z',
                    'expires_at': '2099-01-01T00:00:00.000000Z',
                    'user': {
                        'id': 'me',
                        'name': 'admin',
                        'domain': {'id': 'default', 'name': 'Default'},
                    },
                    'project': {
                        'id': 'p',
                        'name': 'admin',
                        'domain': {'id': 'default', 'name': 'Default'},
                    },
                    'roles': [{'id': 'r', 'name': 'admin'}],
                    'catalog': [
                        {
                            'type': kind,
                            'name': kind,
                            'id': kind,
                            'endpoints': [
                                {
                                    'id': kind,
                                    'interface': 'public',
                                    'region': 'RegionOne',
                                    'region_id': 'RegionOne',
                                    'url': ends[kind],
                                }
                            ],
                        }
                        for kind in self.catalog
                    ],
                }
            },
            [('X-Subject-Token', 'token-1234567890')],
        )
