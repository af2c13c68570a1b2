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

A short answer must never look like a small cloud; what could make one short
is checked here, and is an
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
import logging
import typing as ty

from osc_drp.cloud import answers
from osc_drp.cloud import listing
from osc_drp.cloud import session
from osc_drp.engine import facts
from osc_drp import exceptions
from osc_drp.i18n import _

LOG = logging.getLogger(__name__)


def observe(api: session.Api, network: bool = False) -> facts.Observation:
    """Read what nova and cinder know of servers and volumes.

    :param network: also list neutron's agents among the services.
    :raises exceptions.Incomplete: a listing is short.
    :raises exceptions.Away: a service, or a cell's database, does not answer.
    :raises exceptions.ApiError: the user is not an administrator.
    """
    listing.check_cells(api)
    reader = _Reader(api, taken_at=api.now)
    services_seen = services(api, network)
    reader.read_servers()
    reader.read_volumes()
    reader.check_strangers()
    listing.check_cells(api)
    reader.read_mappings()
    return facts.Observation(
        source=facts.API,
        taken_at=reader.taken_at,
        servers=reader.servers,
        volumes=reader.volumes,
        mappings=tuple(sorted(reader.mappings, key=_mapping_key)),
        rows=tuple(sorted(reader.rows.values(), key=_row_key)),
        services=services_seen,
        migrating=listing.migrating(api),
        building=frozenset(
            s.id
            for s in reader.servers.values()
            if s.vm_state == 'building' and s.host is None
        ),
    )


def renew(
    api: session.Api, seen: facts.Observation, network: bool = False
) -> facts.Observation:
    """Read again how the servers and services are that ``observe`` saw.

    Volumes and both records of the attachments stay as they were seen: they
    cost a request per server, and nothing is waited for that shows there.

    :param network: also list neutron's agents among the services.
    :raises exceptions.DrpError: as ``observe``.
    """
    listing.check_cells(api)
    reader = _Reader(api, taken_at=api.now)
    services_seen = services(api, network)
    reader.read_servers()
    listing.check_cells(api)
    return seen.renewed(reader.taken_at, reader.servers, services_seen)


class _Reader:
    """One observation while it grows."""

    def __init__(self, api: session.Api, taken_at: str) -> None:
        self.api = api
        self.taken_at = taken_at
        self.servers: dict[str, facts.Server] = {}
        self.volumes: dict[str, facts.Volume] = {}
        self.rows: dict[str, facts.Row] = {}
        self.mappings: list[facts.Mapping] = []

    def read_servers(self) -> None:
        """List the servers twice: ids first, then all that is known."""
        expected = [s['id'] for s in listing.servers(self.api, 'servers')]
        for item in (
            *listing.servers(self.api, 'servers/detail'),
            *listing.servers(self.api, 'servers/detail', listing.SOFT_DELETED),
        ):
            self.servers[item['id']] = answers.server(self.api, item)
        missing = [i for i in expected if i not in self.servers]
        for late in listing.each(self._missing_server, missing):
            if late is not None:
                self.servers[late.id] = late

    def _missing_server(self, server_id: str) -> facts.Server | None:
        """Ask for a server that a listing lacks: None, it is deleted."""
        try:
            item = listing.server_json(self.api, server_id)
        except exceptions.NotFound:
            return None
        found = answers.server(self.api, item)
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
        for item in listing.volumes(api):
            self.volumes[item['id']] = answers.volume(api, item)
            attached.update((r.id, r) for r in answers.rows(item))
        for item in listing.attachments(api):
            row = answers.row(item, attached.pop(item['id'], None))
            if row.attach_status != 'detached':
                self.rows[row.id] = row
        for late in listing.each(self._vanished_row, list(attached.values())):
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
        for late in listing.each(self._missing_server, unknown):
            if late is not None:
                self.servers[late.id] = late

    def _add_volumes(self, volume_ids: set[str]) -> None:
        unknown = sorted(volume_ids - self.volumes.keys())
        for late in listing.each(self._missing_volume, unknown):
            if late is not None:
                self.volumes[late.id] = late

    def _missing_volume(self, volume_id: str) -> facts.Volume | None:
        """Ask for a volume that the listing lacks: None, it is gone."""
        try:
            item = listing.volume_json(self.api, volume_id)
        except exceptions.NotFound:
            return None
        if self._newer(item.get('created_at')):
            return answers.volume(self.api, item)
        raise exceptions.Incomplete(
            _(
                "cloud '%(cloud)s': cinder's listing lacks volume %(id)s, "
                'which exists: nothing was read to the end; try again'
            )
            % {'cloud': self.api.cloud, 'id': volume_id}
        )

    def read_mappings(self) -> None:
        """Ask nova for each server that either side says has volumes."""
        named = {r.server_id for r in self.rows.values()}
        having = [
            s
            for s in self.servers.values()
            if s.volumes_attached or s.id in named
        ]
        answers = listing.each(self._mappings, having)
        for server, found in zip(having, answers, strict=True):
            if found is None:
                # Deleted while we read.
                del self.servers[server.id]
                continue
            self.mappings += found
        self._add_volumes({m.volume_id for m in self.mappings})

    def _mappings(self, server: facts.Server) -> list[facts.Mapping] | None:
        try:
            return listing.mappings(self.api, server)
        except exceptions.NotFound:
            if self._known(server.id):
                raise
            return None

    def _known(self, server_id: str) -> bool:
        try:
            listing.server_json(self.api, server_id)
        except exceptions.NotFound:
            return False
        return True


def server(api: session.Api, server_id: str) -> facts.Server:
    """Read one server.

    :raises exceptions.NotFound: nova does not know it.
    :raises exceptions.Incomplete: its cell is down.
    """
    return answers.server(api, listing.server_json(api, server_id))


def volume(api: session.Api, volume_id: str) -> facts.Volume:
    """Read one volume.

    :raises exceptions.NotFound: cinder does not know it.
    """
    return answers.volume(api, listing.volume_json(api, volume_id))


def rows_of(
    api: session.Api, server_id: str, sought: str | None = None
) -> list[facts.Row]:
    """Read cinder's live rows of one server, in every state.

    Cheap enough to be polled, so without device and host. An unknown server
    has none.

    :param sought: a volume; read on only until a row of it shows, in one
        request mostly. A whole listing takes a further, empty page: cinder
        gives attachments no links (see ``listing.pages``).
    """

    def enough(item: listing.Json) -> bool:
        row = answers.row(item, None)
        return row.volume_id == sought and row.attach_status != 'detached'

    only = {'instance_id': server_id}
    rows = [
        answers.row(item, None)
        for item in listing.attachments(api, only, enough if sought else None)
    ]
    return [r for r in rows if r.attach_status != 'detached']


def rows_of_volume(api: session.Api, volume_id: str) -> list[facts.Row]:
    """Read cinder's live rows of one volume, as ``rows_of`` does."""
    rows = [
        answers.row(item, None)
        for item in listing.attachments(api, {'volume_id': volume_id})
    ]
    return [r for r in rows if r.attach_status != 'detached']


def fault(api: session.Api, server_id: str) -> str:
    """Say why a server is in ERROR, in nova's words; '' if it does not say.

    :raises exceptions.NotFound: nova does not know the server.
    """
    told = listing.server_json(api, server_id).get('fault') or {}
    return ' '.join(str(told.get('message') or '').split())


def addresses(api: session.Api, server_id: str) -> list[facts.Address]:
    """Read a server's addresses, in nova's order.

    :raises exceptions.NotFound: nova does not know the server.
    """
    told = listing.server_json(api, server_id).get('addresses') or {}
    return [
        facts.Address(
            network=network,
            address=one['addr'],
            version=int(one['version']),
            floating=one.get('OS-EXT-IPS:type') == 'floating',
        )
        for network, found in told.items()
        for one in found
    ]


#: Lines of a console that are asked for: the end of a boot that hangs.
CONSOLE = 50


def console(api: session.Api, server_id: str) -> list[str]:
    """Read the last lines of a guest's console; empty if there is none.

    A driver without consoles answers 501, a guest without one 404, a
    server that is busy 409: none of them tells anything about the guest.
    A POST that changes nothing (nova 34.0.0
    ``api/openstack/compute/console_output.py``).
    """
    body = {'os-getConsoleOutput': {'length': CONSOLE}}
    path = f'servers/{server_id}/action'
    try:
        # consoles have been seen to tell passwords
        answer = api.post(
            listing.COMPUTE, path, body, listing.PLAIN, quiet=True
        )
    except exceptions.ApiError as exc:
        LOG.debug('no console of %s: %s', server_id, exc)
        return []
    return str(answer.body.get('output') or '').splitlines()[-CONSOLE:]


def mappings_of(
    api: session.Api, server_id: str, known: facts.Server | None = None
) -> list[facts.Mapping]:
    """Read nova's mappings of one server, as they are now.

    :param known: the server, if it was read right before.
    :raises exceptions.NotFound: nova does not know the server.
    """
    return listing.mappings(api, known or server(api, server_id))


def attachment_exists(api: session.Api, attachment_id: str) -> bool:
    """Whether cinder has a live row with this id (404: it has none).

    The answer carries connection_info; it is neither logged nor kept.
    """
    path = f'attachments/{attachment_id}'
    try:
        listing.get(
            api, listing.VOLUME, path, listing.ATTACHMENTS, 'attachment'
        )
    except exceptions.NotFound:
        return False
    return True


def targets(api: session.Api, attachment_id: str) -> frozenset[facts.Target]:
    """Read the iSCSI targets of an attachment; none if it has no others.

    Of the connection_info, which also holds secrets, nothing else is kept
    (os-brick 7.1.1 ``initiator/connectors/iscsi.py``, ``_get_all_targets``).
    """
    path = f'attachments/{attachment_id}'
    try:
        found = listing.get(
            api, listing.VOLUME, path, listing.ATTACHMENTS, 'attachment'
        )
    except exceptions.NotFound:
        return frozenset()
    info = found.get('connection_info') or {}
    info = info.get('data') or info
    singles = (
        info.get('target_iqn'),
        info.get('target_portal'),
        info.get('target_lun'),
    )
    several = zip(
        info.get('target_iqns') or (),
        info.get('target_portals') or (),
        info.get('target_luns') or (),
        strict=False,
    )
    return frozenset(
        facts.Target(str(iqn), str(portal), lun)
        for iqn, portal, lun in (singles, *several)
        if iqn and portal
    )


def actions(api: session.Api, server_id: str) -> list[facts.Action]:
    """Read nova's action log of a server, newest first.

    ``finished`` stays None: the list does not tell.

    :raises exceptions.NotFound: nova does not know the server.
    """
    path = f'servers/{server_id}/os-instance-actions'
    found = [
        answers.action(item)
        for item in listing.pages(
            api,
            listing.COMPUTE,
            path,
            listing.ACTIONS,
            'instanceActions',
            'request_id',
            # nova 34.0.0 api/openstack/compute/instance_actions.py, index
            links='links',
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
        version = api.version(listing.COMPUTE, listing.DIAGNOSTICS)
        answer = api.get(listing.COMPUTE, path, version, retries=0)
    except exceptions.NotFound:
        raise
    except exceptions.Conflict as exc:
        return False if 'power state' in str(exc) else None
    except exceptions.ApiError:
        return None
    state = answer.body.get('state')
    return None if state is None else state == 'running'


def check_up(api: session.Api) -> None:
    """See that nova and cinder answer, all their databases included.

    Each is asked once: whoever waits for them asks again.

    :raises exceptions.Away: one does not.
    :raises exceptions.ApiError: the user is not an administrator.
    """
    patience, api.retries = api.retries, 0
    try:
        listing.check_cells(api)
        listing.cinder_services(api)
    finally:
        api.retries = patience


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
        for s in (*listing.nova_services(api), *listing.cinder_services(api))
    ]
    if network and api.has(listing.NETWORK):
        computes = (s.host for s in found if s.binary == 'nova-compute')
        found += _agents(api, computes)
    return tuple(found)


def ports(api: session.Api) -> dict[str, int]:
    """Count the ports of each device; empty without neutron."""
    counts: dict[str, int] = collections.Counter()
    if not api.has(listing.NETWORK):
        return counts
    for item in listing.pages(
        api,
        listing.NETWORK,
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


def _agents(
    api: session.Api, hosts: collections.abc.Iterable[str]
) -> list[facts.Service]:
    """Read neutron's agents; some drivers keep none (404).

    A neutron that does not answer is a service that is down on every host:
    whoever starts servers waits for it, everybody else goes on.
    """
    try:
        found = api.get(listing.NETWORK, 'agents').body.get('agents', [])
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


def _mapping_key(mapping: facts.Mapping) -> tuple[ty.Any, ...]:
    return (
        mapping.server_id,
        facts.device_order(mapping.device),
        mapping.volume_id,
    )


def _row_key(row: facts.Row) -> tuple[str, str, str]:
    return row.volume_id, row.server_id or '', row.id
