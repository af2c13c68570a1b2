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

"""Reading the cloud through its APIs, in bulk and whole.

Raw JSON, paged by hand: an SDK object costs 3.6 ms per server against
0.01 ms for plain JSON. A short answer must never look like a small cloud;
what could make one short is checked here, and is an
:class:`~osc_drp.exceptions.Incomplete`:

* a cell whose database is down is skipped silently by every listing that is
  paged or sorted (nova 34.0.0 ``api/openstack/compute/servers.py``,
  ``_is_cell_down_supported``), and one with ``limit`` reached hides it even
  unpaged; ``os-services`` never does, so both are asked, before and after;
* ids of a cheap listing that the detailed one lacks are asked one by one,
  and so are volumes and servers that only the other service names;
* who is no administrator sees his own project only (cinder ignores
  ``all_tenants`` without a word).

No secret is read: the attachments are listed without their details.
"""

import collections.abc
import concurrent.futures
import logging
import typing as ty

from osc_drp.cloud import session
from osc_drp.engine import facts
from osc_drp import exceptions
from osc_drp.i18n import _

LOG = logging.getLogger(__name__)

COMPUTE, VOLUME, NETWORK = 'compute', 'block-storage', 'network'

#: Newest microversions whose answers this file knows. os-volume_attachments
#: has the attachment id from 2.89 (nova 24); cells that are down show from
#: 2.69; cinder's os-services ask the scheduler by RPC from 3.49 on (cinder
#: api/v3/services.py), which must not be needed after an outage.
SERVERS, MAPPINGS, SERVICES = '2.90', '2.89', '2.90'
LEGACY_MAPPINGS = '2.88'
ACTIONS, MIGRATIONS, DIAGNOSTICS = '2.58', '2.59', '2.48'
VOLUMES, ATTACHMENTS, VOLUME_SERVICES = '3.59', '3.27', '3.48'

#: Asked for; services give less if their own maximum is lower.
PAGE = 1000
#: Threads for requests per server.
WORKERS = 8
#: A listing whose marker vanished meanwhile is begun again.
RESTARTS = 3

#: Statuses of migration records that are not over ('finished': a resize
#: that waits for its confirmation).
UNFINISHED = (
    'accepted',
    'queued',
    'preparing',
    'pre-migrating',
    'running',
    'running (post-copy)',
    'post-migrating',
    'migrating',
    'finished',
    'confirming',
    'reverting',
)

#: Servers that wait to be reclaimed show in no other listing, yet they keep
#: their volumes (nova 34.0.0 db/main/api.py,
#: instance_get_all_by_filters_sort). Listed apart: the filter hides servers
#: that are being built (objects/build_request.py, _pass_exact_filters).
SOFT_DELETED = {'vm_state': 'soft-delete', 'soft_deleted': 'True'}

_Json = dict[str, ty.Any]
_In = ty.TypeVar('_In')
_Out = ty.TypeVar('_Out')


def observe(
    api: session.Api,
    server_ids: collections.abc.Collection[str] | None = None,
    actions: bool = False,
    network: bool = False,
) -> facts.Observation:
    """Read what nova and cinder know of servers and volumes.

    :param server_ids: keep to these servers, their volumes, and whoever
        shares one of those; the bulk listings are read all the same.
    :param actions: also fill ``unfinished``: two requests for each server
        with volumes.
    :param network: also list neutron's agents among the services.
    :raises exceptions.Incomplete: a cell is down, or a listing is short.
    :raises exceptions.ApiError: a service cannot be reached, or the user is
        not an administrator.
    """
    _check_cells(api)
    reader = _Reader(api, taken_at=api.now)
    services_seen = services(api, network)
    reader.read_servers()
    reader.read_volumes()
    reader.check_strangers()
    _check_cells(api)
    if server_ids is not None:
        reader.keep(frozenset(server_ids))
    reader.read_mappings()
    return facts.Observation(
        source=facts.API,
        taken_at=reader.taken_at,
        servers=reader.servers,
        volumes=reader.volumes,
        mappings=tuple(sorted(reader.mappings, key=_mapping_key)),
        rows=tuple(sorted(reader.rows.values(), key=_row_key)),
        services=services_seen,
        migrating=_migrating(api),
        unfinished=reader.read_actions() if actions else (),
        building=frozenset(
            s.id
            for s in reader.servers.values()
            if s.vm_state == 'building' and s.host is None
        ),
    )


class _Reader:
    """One observation while it grows."""

    def __init__(self, api: session.Api, taken_at: str) -> None:
        self.api = api
        self.taken_at = taken_at
        self.servers: dict[str, facts.Server] = {}
        self.volumes: dict[str, facts.Volume] = {}
        self.rows: dict[str, facts.Row] = {}
        self.mappings: list[facts.Mapping] = []
        #: None: all; else the volumes that matter.
        self.wanted: frozenset[str] | None = None
        self.selected: frozenset[str] | None = None

    def read_servers(self) -> None:
        """List the servers twice: ids first, then all that is known."""
        expected = [s['id'] for s in _list_servers(self.api, 'servers')]
        for item in (
            *_list_servers(self.api, 'servers/detail'),
            *_list_servers(self.api, 'servers/detail', SOFT_DELETED),
        ):
            self.servers[item['id']] = _server(self.api, item)
        missing = [i for i in expected if i not in self.servers]
        for late in _each(self._missing_server, missing):
            if late is not None:
                self.servers[late.id] = late

    def _missing_server(self, server_id: str) -> facts.Server | None:
        """Ask for a server that a listing lacks: None, it is deleted."""
        item = _server_json(self.api, server_id)
        if item is None:
            return None
        found = _server(self.api, item)
        if self._newer(item.get('created')):
            return found
        raise exceptions.Incomplete(
            _(
                "cloud '%(cloud)s': nova's listing lacks server %(name)s "
                '(%(id)s), which exists: nothing was read to the end; try '
                'again'
            )
            % {'cloud': self.api.cloud, 'name': found.name, 'id': found.id}
        )

    def _newer(self, created: str | None) -> bool:
        """Whether something was created after we began: no listing's fault.

        Both formats ('2026-01-02T03:04:05Z' and '...05.000000') begin alike.
        """
        return bool(created) and str(created)[:19] >= self.taken_at[:19]

    def read_volumes(self) -> None:
        """List volumes with attached rows, and then rows of every state."""
        api = self.api
        attached: dict[str, facts.Row] = {}
        for item in _list_volumes(api):
            self.volumes[item['id']] = _volume(api, item)
            attached.update((r.id, r) for r in _rows(item))
        for item in _list_attachments(api):
            row = _row(item, attached.pop(item['id'], None))
            if row.attach_status != 'detached':
                self.rows[row.id] = row
        for late in _each(self._vanished_row, list(attached.values())):
            if late is not None:
                self.rows[late.id] = late

    def _vanished_row(self, row: facts.Row) -> facts.Row | None:
        """Ask for a row that was there a moment ago."""
        return row if attachment_exists(self.api, row.id) else None

    def check_strangers(self) -> None:
        """Ask for what one service names and the other did not list."""
        volume_ids = {r.volume_id for r in self.rows.values()}
        for server in self.servers.values():
            volume_ids |= server.volumes_attached or frozenset()
        self._add_volumes(volume_ids)
        server_ids = {r.server_id for r in self.rows.values() if r.server_id}
        unknown = sorted(server_ids - self.servers.keys())
        for late in _each(self._missing_server, unknown):
            if late is not None:
                self.servers[late.id] = late

    def _add_volumes(self, volume_ids: set[str]) -> None:
        unknown = sorted(volume_ids - self.volumes.keys())
        for late in _each(self._missing_volume, unknown):
            if late is not None:
                self.volumes[late.id] = late

    def _missing_volume(self, volume_id: str) -> facts.Volume | None:
        """Ask for a volume that the listing lacks: None, it is gone."""
        try:
            item = _volume_json(self.api, volume_id)
        except exceptions.NotFound:
            return None
        if self._newer(item.get('created_at')):
            return _volume(self.api, item)
        raise exceptions.Incomplete(
            _(
                "cloud '%(cloud)s': cinder's listing lacks volume %(id)s, "
                'which exists: nothing was read to the end; try again'
            )
            % {'cloud': self.api.cloud, 'id': volume_id}
        )

    def keep(self, selected: frozenset[str]) -> None:
        """Forget what does not touch the selected servers."""
        wanted = {
            r.volume_id for r in self.rows.values() if r.server_id in selected
        }
        for server_id in selected & self.servers.keys():
            wanted |= self.servers[server_id].volumes_attached or frozenset()
        self.rows = {
            r.id: r for r in self.rows.values() if r.volume_id in wanted
        }
        sharing = {r.server_id for r in self.rows.values()}
        self.servers = {
            s.id: s
            for s in self.servers.values()
            if s.id in selected
            or s.id in sharing
            or (s.volumes_attached or frozenset()) & wanted
        }
        self.volumes = {
            v.id: v for v in self.volumes.values() if v.id in wanted
        }
        self.wanted, self.selected = frozenset(wanted), selected

    def read_mappings(self) -> None:
        """Ask nova for each server that either side says has volumes."""
        named = {r.server_id for r in self.rows.values()}
        having = [
            s
            for s in self.servers.values()
            if s.volumes_attached or s.id in named
        ]
        answers = _each(self._mappings, having)
        for server, found in zip(having, answers, strict=True):
            if found is None:
                # Deleted while we read.
                del self.servers[server.id]
                continue
            self.mappings += [m for m in found if self._matters(m)]
        self._add_volumes({m.volume_id for m in self.mappings})

    def _matters(self, mapping: facts.Mapping) -> bool:
        return (
            self.wanted is None
            or self.selected is None
            or mapping.server_id in self.selected
            or mapping.volume_id in self.wanted
        )

    def _mappings(self, server: facts.Server) -> list[facts.Mapping] | None:
        try:
            return _mappings(self.api, server)
        except exceptions.NotFound:
            if _server_json(self.api, server.id) is None:
                return None
            raise

    def read_actions(self) -> tuple[facts.Action, ...]:
        """Find actions that never ended, the newest of each server only."""
        having = sorted({m.server_id for m in self.mappings})
        newest = _each(lambda i: _newest(self.api, i), having)
        return tuple(a for a in newest if a and a.finished is False)


def server(api: session.Api, server_id: str) -> facts.Server:
    """Read one server.

    :raises exceptions.NotFound: nova does not know it.
    :raises exceptions.Incomplete: its cell is down.
    """
    path = f'servers/{server_id}'
    answer = api.get(COMPUTE, path, api.version(COMPUTE, SERVERS))
    return _server(api, answer.body['server'])


def volume(api: session.Api, volume_id: str) -> facts.Volume:
    """Read one volume.

    :raises exceptions.NotFound: cinder does not know it.
    """
    return _volume(api, _volume_json(api, volume_id))


def rows_of(api: session.Api, server_id: str) -> list[facts.Row]:
    """Read cinder's live rows of one server, in every state.

    Cheap enough to be polled, so without device and host. An unknown server
    has none.
    """
    rows = [
        _row(item, None)
        for item in _list_attachments(api, {'instance_id': server_id})
    ]
    return [r for r in rows if r.attach_status != 'detached']


def fault(api: session.Api, server_id: str) -> str:
    """Say why a server is in ERROR, in nova's words; '' if it does not say.

    :raises exceptions.NotFound: nova does not know the server.
    """
    path = f'servers/{server_id}'
    body = api.get(COMPUTE, path, api.version(COMPUTE, SERVERS)).body
    told = body['server'].get('fault') or {}
    return ' '.join(str(told.get('message') or '').split())


def mappings_of(api: session.Api, server_id: str) -> list[facts.Mapping]:
    """Read nova's mappings of one server, as they are now.

    :raises exceptions.NotFound: nova does not know the server.
    """
    return _mappings(api, server(api, server_id))


def attachment_exists(api: session.Api, attachment_id: str) -> bool:
    """Whether cinder has a live row with this id (404: it has none).

    The answer carries connection_info; it is neither logged nor kept.
    """
    path = f'attachments/{attachment_id}'
    try:
        api.get(VOLUME, path, api.version(VOLUME, ATTACHMENTS))
    except exceptions.NotFound:
        return False
    return True


def actions(api: session.Api, server_id: str) -> list[facts.Action]:
    """Read nova's action log of a server, newest first.

    ``finished`` stays None: the list does not tell.

    :raises exceptions.NotFound: nova does not know the server.
    """
    path = f'servers/{server_id}/os-instance-actions'
    found = [
        _action(item)
        for item in _pages(
            api, COMPUTE, path, ACTIONS, 'instanceActions', 'request_id'
        )
    ]
    return sorted(found, key=lambda a: a.start_time, reverse=True)


def diagnostics_running(api: session.Api, server_id: str) -> bool | None:
    """Whether the hypervisor says that the guest runs; None: unknown.

    nova-compute asks its hypervisor, not the database. A guest that is off
    or lost is a 409 naming its power state (nova 34.0.0 compute/manager.py,
    ``get_instance_diagnostics``, InstanceInvalidState with attr 'power
    state'); any other 409, a 400, a driver without diagnostics (501) and a
    host that does not answer (500 after nova's RPC time-out) prove nothing.

    :raises exceptions.NotFound: nova does not know the server.
    """
    path = f'servers/{server_id}/diagnostics'
    try:
        answer = api.get(
            COMPUTE, path, api.version(COMPUTE, DIAGNOSTICS), retries=0
        )
    except exceptions.NotFound:
        raise
    except exceptions.Conflict as exc:
        return False if 'power state' in str(exc) else None
    except exceptions.ApiError:
        return None
    state = answer.body.get('state')
    return None if state is None else state == 'running'


def services(
    api: session.Api, network: bool = True
) -> tuple[facts.Service, ...]:
    """Read who is up: nova's and cinder's services, and network agents.

    A nova-compute in a cell that is down counts as down (nova 34.0.0
    ``api/openstack/compute/services.py``: status UNKNOWN without a state).

    :param network: also neutron's agents, if the catalog has neutron; as
        binary 'neutron:' and the agent's own.
    :raises exceptions.ApiError: a service cannot be reached, or the user is
        not an administrator.
    """
    found = [
        facts.Service(
            binary=s['binary'], host=s['host'], up=s.get('state') == 'up'
        )
        for s in (*_nova_services(api), *_cinder_services(api))
    ]
    if network and api.has(NETWORK):
        computes = (s.host for s in found if s.binary == 'nova-compute')
        found += _agents(api, computes)
    return tuple(found)


def ports(api: session.Api) -> dict[str, int]:
    """Count the ports of each device; empty without neutron."""
    counts: dict[str, int] = collections.Counter()
    if not api.has(NETWORK):
        return counts
    for item in _pages(
        api,
        NETWORK,
        'ports',
        None,
        'ports',
        params={
            'fields': ['id', 'device_id'],
            'sort_key': 'id',
            'sort_dir': 'asc',
        },
    ):
        if item.get('device_id'):
            counts[item['device_id']] += 1
    return dict(counts)


def masakari_segments(api: session.Api) -> list[str]:
    """Name masakari's segments; empty without masakari.

    They restart servers by themselves: hold them during a recovery.
    """
    if not api.has('instance-ha'):
        return []
    body = api.get('instance-ha', 'segments').body
    return sorted(s.get('name', '') for s in body.get('segments', []))


# What the answers look like.


def _server(api: session.Api, item: _Json) -> facts.Server:
    """Turn nova's server into ours.

    :raises exceptions.Incomplete: nothing but the id is there: its cell is
        down.
    :raises exceptions.ApiError: what only administrators see is missing.
    """
    if item.get('status') == 'UNKNOWN' or 'OS-EXT-STS:vm_state' not in item:
        raise exceptions.Incomplete(
            _(
                "cloud '%(cloud)s': server %(id)s lies in a cell whose "
                'database does not answer: bring up the cell first'
            )
            % {'cloud': api.cloud, 'id': item.get('id')}
        )
    if 'OS-EXT-SRV-ATTR:host' not in item:
        raise _not_admin(api, _("nova hides the servers' hosts"))
    attached = item.get('os-extended-volumes:volumes_attached') or []
    return facts.Server(
        id=item['id'],
        name=item.get('name') or '',
        project_id=item.get('tenant_id') or '',
        host=item['OS-EXT-SRV-ATTR:host'],
        vm_state=item['OS-EXT-STS:vm_state'],
        task_state=item.get('OS-EXT-STS:task_state'),
        power_state=int(item.get('OS-EXT-STS:power_state') or 0),
        locked=bool(item.get('locked')),
        root_device=item.get('OS-EXT-SRV-ATTR:root_device_name'),
        launched=bool(item.get('OS-SRV-USG:launched_at')),
        volume_backed=not item.get('image'),
        volumes_attached=frozenset(v['id'] for v in attached),
        metadata=tuple(sorted((item.get('metadata') or {}).items())),
    )


def _volume(api: session.Api, item: _Json) -> facts.Volume:
    """Turn cinder's volume into ours.

    :raises exceptions.ApiError: what only administrators see is missing.
    """
    if 'os-vol-host-attr:host' not in item:
        raise _not_admin(api, _("cinder hides the volumes' hosts"))
    return facts.Volume(
        id=item['id'],
        name=item.get('name') or '',
        project_id=item.get('os-vol-tenant-attr:tenant_id') or '',
        status=item['status'],
        multiattach=bool(item.get('multiattach')),
        migration_status=item.get('migration_status'),
        host=item['os-vol-host-attr:host'],
    )


def _rows(item: _Json) -> list[facts.Row]:
    """Take the attached rows out of a volume: no others show there."""
    return [
        facts.Row(
            id=a['attachment_id'],
            volume_id=item['id'],
            server_id=a.get('server_id'),
            attach_status='attached',
            device=a.get('device'),
            host=a.get('host_name'),
        )
        for a in item.get('attachments') or []
    ]


def _row(item: _Json, attached: facts.Row | None) -> facts.Row:
    """Join an entry of the attachments with the volume's, newer first."""
    return facts.Row(
        id=item['id'],
        volume_id=item['volume_id'],
        server_id=item.get('instance'),
        attach_status=item['status'],
        device=attached.device if attached else None,
        host=attached.host if attached else None,
    )


def _mapping(server: facts.Server, item: _Json) -> facts.Mapping:
    """Turn an entry of os-volume_attachments into ours.

    The root is the device that the server boots from, if it has no image:
    the API does not show boot_index.
    """
    device = item.get('device')
    return facts.Mapping(
        server_id=server.id,
        volume_id=item['volumeId'],
        device=device,
        attachment_id=item.get('attachment_id'),
        root=bool(
            server.volume_backed and device and device == server.root_device
        ),
        tag=item.get('tag'),
        delete_on_termination=bool(item.get('delete_on_termination')),
        uuid=item.get('bdm_uuid'),
    )


def _action(item: _Json, finished: bool | None = None) -> facts.Action:
    return facts.Action(
        server_id=item['instance_uuid'],
        action=item['action'],
        request_id=item['request_id'],
        user_id=item.get('user_id'),
        start_time=item['start_time'][:19] + 'Z',
        finished=finished,
    )


# How they are asked for.


def _list_servers(
    api: session.Api, path: str, only: collections.abc.Mapping[str, str] = {}
) -> list[_Json]:
    """List all servers; uuid is added as last sort key by nova itself."""
    return _pages(
        api,
        COMPUTE,
        path,
        SERVERS,
        'servers',
        params={
            'all_tenants': '1',
            'sort_key': 'created_at',
            'sort_dir': 'asc',
            **only,
        },
    )


def _list_volumes(api: session.Api) -> list[_Json]:
    return _pages(
        api,
        VOLUME,
        'volumes/detail',
        VOLUMES,
        'volumes',
        params={'all_tenants': '1', 'sort': 'created_at:asc,id:asc'},
    )


def _list_attachments(
    api: session.Api, only: collections.abc.Mapping[str, str] = {}
) -> list[_Json]:
    """List rows without their secrets.

    Never filtered by status: cinder answers that with nothing at all.
    """
    return _pages(
        api,
        VOLUME,
        'attachments',
        ATTACHMENTS,
        'attachments',
        params={
            'all_tenants': '1',
            'sort': 'created_at:asc,id:asc',
            **only,
        },
    )


def _server_json(api: session.Api, server_id: str) -> _Json | None:
    path = f'servers/{server_id}'
    try:
        answer = api.get(COMPUTE, path, api.version(COMPUTE, SERVERS))
    except exceptions.NotFound:
        return None
    return ty.cast(_Json, answer.body['server'])


def _volume_json(api: session.Api, volume_id: str) -> _Json:
    path = f'volumes/{volume_id}'
    answer = api.get(VOLUME, path, api.version(VOLUME, VOLUMES))
    return ty.cast(_Json, answer.body['volume'])


def _mappings(api: session.Api, server: facts.Server) -> list[facts.Mapping]:
    """Read nova's mappings of a server, the legacy ones too.

    From 2.89 on, mappings without an attachment id do not show (nova 34.0.0
    ``api/openstack/compute/volume_attachments.py``, index), and the answer
    is cut at nova's max_limit without a next link, empty places of local
    disks counted (``common.limited``). So if an id of volumes_attached is
    missing, the list is walked to its end, at both versions.
    """
    path = f'servers/{server.id}/os-volume_attachments'
    version = api.version(COMPUTE, MAPPINGS)
    body = api.get(COMPUTE, path, version, {'limit': PAGE}).body
    found = {i['volumeId']: i for i in body['volumeAttachments']}
    if (server.volumes_attached or frozenset()) - found.keys():
        older = api.version(COMPUTE, LEGACY_MAPPINGS)
        found = _walk(api, path, older) | _walk(api, path, version)
    return [_mapping(server, item) for item in found.values()]


def _walk(api: session.Api, path: str, version: str) -> dict[str, _Json]:
    """Follow a listing by offset until nothing comes any more."""
    found: dict[str, _Json] = {}
    offset = empty = 0
    while empty < 3:
        params = {'limit': PAGE, 'offset': offset}
        body = api.get(COMPUTE, path, version, params).body
        page = body['volumeAttachments']
        found.update((i['volumeId'], i) for i in page)
        offset += max(len(page), 1)
        empty = 0 if page else empty + 1
    return found


def _newest(api: session.Api, server_id: str) -> facts.Action | None:
    """Read a server's newest action and whether it came to an end."""
    path = f'servers/{server_id}/os-instance-actions'
    version = api.version(COMPUTE, ACTIONS)
    try:
        body = api.get(COMPUTE, path, version, {'limit': 1}).body
        listed = body.get('instanceActions') or []
        if not listed:
            return None
        path = f'{path}/{listed[0]["request_id"]}'
        item = api.get(COMPUTE, path, version).body['instanceAction']
    except exceptions.NotFound:
        return None
    events = item.get('events') or []
    ended = bool(events) and all(e.get('finish_time') for e in events)
    return _action(item, finished=ended)


def _migrating(api: session.Api) -> frozenset[str]:
    """Name the servers with a migration record that is not finished.

    nova's listing takes one status at a time, and its whole history may be
    long.
    """

    def by_status(status: str) -> list[_Json]:
        return _pages(
            api,
            COMPUTE,
            'os-migrations',
            MIGRATIONS,
            'migrations',
            'uuid',
            params={'status': status},
        )

    return frozenset(
        item['instance_uuid']
        for page in _each(by_status, UNFINISHED)
        for item in page
    )


def _nova_services(api: session.Api) -> list[_Json]:
    version = api.version(COMPUTE, SERVICES)
    body = api.get(COMPUTE, 'os-services', version).body
    return ty.cast(list[_Json], body['services'])


def _cinder_services(api: session.Api) -> list[_Json]:
    version = api.version(VOLUME, VOLUME_SERVICES)
    body = api.get(VOLUME, 'os-services', version).body
    return ty.cast(list[_Json], body['services'])


def _agents(
    api: session.Api, hosts: collections.abc.Iterable[str]
) -> list[facts.Service]:
    """Read neutron's agents; some drivers keep none (404).

    A neutron that does not answer is a service that is down on every host:
    whoever starts servers waits for it, everybody else goes on.
    """
    try:
        found = api.get(NETWORK, 'agents').body.get('agents', [])
    except exceptions.NotFound:
        return []
    except exceptions.ApiError as exc:
        LOG.debug('taken as down: %s', exc)
        return [
            facts.Service(binary='neutron:server', host=host, up=False)
            for host in sorted(set(hosts))
        ]
    return [
        facts.Service(
            binary=f'neutron:{a["binary"]}',
            host=a['host'],
            up=bool(a.get('alive')),
        )
        for a in found
    ]


def _check_cells(api: session.Api) -> None:
    """See that every cell answers.

    :raises exceptions.Incomplete: one does not; named by its hosts, for the
        API does not know cells by name.
    """
    hosts = sorted(
        s['host']
        for s in _nova_services(api)
        if s.get('status') == 'UNKNOWN' and 'state' not in s
    )
    if hosts:
        raise exceptions.Incomplete(
            _(
                "cloud '%(cloud)s': the database of a cell does not answer, "
                'the one of host %(hosts)s: bring it up first'
            )
            % {'cloud': api.cloud, 'hosts': _some(hosts)}
        )
    version = api.version(COMPUTE, SERVERS)
    body = api.get(COMPUTE, 'servers', version, {'all_tenants': '1'}).body
    lost = sorted(
        s['id'] for s in body['servers'] if s.get('status') == 'UNKNOWN'
    )
    if lost:
        raise exceptions.Incomplete(
            _(
                "cloud '%(cloud)s': the database of a cell does not answer, "
                'the one of server %(servers)s: bring it up first'
            )
            % {'cloud': api.cloud, 'servers': _some(lost)}
        )


def _some(names: list[str]) -> str:
    shown = ', '.join(names[:3])
    if len(names) <= 3:
        return shown
    return _('%(names)s and %(more)d more') % {
        'names': shown,
        'more': len(names) - 3,
    }


def _not_admin(api: session.Api, why: str) -> exceptions.ApiError:
    return exceptions.ApiError(
        _("cloud '%(cloud)s': user is not an administrator: %(why)s")
        % {'cloud': api.cloud, 'why': why}
    )


def _pages(
    api: session.Api,
    service: str,
    path: str,
    microversion: str | None,
    key: str,
    id_key: str = 'id',
    params: collections.abc.Mapping[str, ty.Any] | None = None,
) -> list[_Json]:
    """Read a listing to its end: until a page brings nothing new.

    Neither the length of a page nor a missing next link proves the end: the
    service's max_limit may be below ours, attachments have no links at all,
    and nova leaves the link out when servers being built fill a page.

    :raises exceptions.Incomplete: the listing changes faster than it reads.
    """
    version = api.version(service, microversion) if microversion else None
    for _attempt in range(RESTARTS):
        found: dict[str, _Json] = {}
        query = {'limit': PAGE, **(params or {})}
        while True:
            try:
                body = api.get(service, path, version, query).body
            except (exceptions.NotFound, exceptions.Conflict) as exc:
                if 'marker' not in query:
                    raise
                # The marker was deleted between two pages.
                LOG.debug('%s: beginning again: %s', path, exc)
                break
            page = body.get(key) or []
            new = [i for i in page if i[id_key] not in found]
            if not new:
                return list(found.values())
            found.update((i[id_key], i) for i in new)
            query['marker'] = page[-1][id_key]
    raise exceptions.Incomplete(
        _(
            "cloud '%(cloud)s': %(service)s's listing of %(path)s changes "
            'faster than it can be read: try again'
        )
        % {'cloud': api.cloud, 'service': service, 'path': path}
    )


def _each(
    work: collections.abc.Callable[[_In], _Out],
    items: collections.abc.Sequence[_In],
) -> list[_Out]:
    """Do something for each item, WORKERS at a time; the first error ends."""
    if not items:
        return []
    pool = concurrent.futures.ThreadPoolExecutor(WORKERS)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


def _mapping_key(mapping: facts.Mapping) -> tuple[ty.Any, ...]:
    return (
        mapping.server_id,
        facts.device_order(mapping.device),
        mapping.volume_id,
    )


def _row_key(row: facts.Row) -> tuple[str, str, str]:
    return row.volume_id, row.server_id or '', row.id
