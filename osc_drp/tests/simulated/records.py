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

"""The rows of a simulated cloud: what cinder and nova have in databases.

Rows are dicts with the columns of db/tables.py, by database, table and id.
Transactions see what is committed and what they wrote themselves. The
judge compares the cloud before and after each write that osc-drp makes.
"""

import collections
import datetime
import threading
import typing as ty

from osc_drp.db import read
from osc_drp.engine import facts

CINDER = 'cinder'
API = 'nova_api'
CELLS = ('cell0', 'cell1', 'cell2')

Row = dict[str, ty.Any]
#: When the virtual clock says 0.
EPOCH = datetime.datetime(2026, 11, 22, 3, 0, 0)

#: What may become free, and what may be made in-use (INTERNALS 2.1).
_FREEABLE = frozenset(
    {'available', 'in-use', 'attaching', 'detaching', 'reserved'}
)


class Violation(AssertionError):
    """Osc-drp did what it never may."""


def text(time: datetime.datetime | None) -> str | None:
    """Write a time as the facts have it."""
    return time.isoformat(timespec='seconds') + 'Z' if time else None


class Records:
    """All databases of one cloud."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, str], dict[ty.Any, Row]] = (
            collections.defaultdict(dict)
        )
        #: Row locks: (database, table, id) to the transaction that has it.
        self.locks: dict[tuple[str, str, ty.Any], object] = {}
        self.guard = threading.RLock()
        self._number = 0
        #: Times of the services' last sign of life are 'up' or not, here.
        self.up: dict[tuple[str, str], bool] = {}
        self.migrating: set[str] = set()
        self.building: set[str] = set()

    def number(self) -> int:
        self._number += 1
        return self._number

    def insert(self, database: str, table: str, row: Row) -> Row:
        row.setdefault('id', self.number())
        self.tables[database, table][row['id']] = row
        return row

    def table(self, database: str, table: str) -> ty.Iterable[Row]:
        return self.tables[database, table].values()

    # -- the plain questions of nova and cinder

    def volume(self, volume_id: str) -> Row | None:
        row = self.tables[CINDER, 'volumes'].get(volume_id)
        return None if row is None or row['deleted'] else row

    def live_rows(self, volume_id: str | None = None) -> list[Row]:
        return [
            r
            for r in self.table(CINDER, 'volume_attachment')
            if not r['deleted'] and volume_id in (None, r['volume_id'])
        ]

    def live_mappings(
        self, volume_id: str | None = None, server_id: str | None = None
    ) -> list[tuple[str, Row]]:
        """Mappings of volumes, each with its cell."""
        return [
            (cell, m)
            for cell in CELLS
            for m in self.table(cell, 'block_device_mapping')
            if not m['deleted']
            and volume_id in (None, m['volume_id'])
            and server_id in (None, m['instance_uuid'])
        ]

    def server(self, server_id: str) -> tuple[str, Row] | None:
        for cell in CELLS:
            for row in self.table(cell, 'instances'):
                if row['uuid'] == server_id and not row['deleted']:
                    return cell, row
        return None

    # -- the judge

    def judge(self) -> frozenset[str]:
        """Everything that is true now and should not have come by us."""
        found = set()
        mapped = collections.defaultdict(set)
        for _cell, m in self.live_mappings():
            mapped[m['volume_id']].add(m['instance_uuid'])
            volume = self.volume(m['volume_id'])
            if (
                volume is not None
                and volume['status'] == 'available'
                and (m['attachment_id'] or m['connection_info'])
            ):
                found.add(
                    f'volume {volume["display_name"]} is available, and '
                    f'mapping {m["id"]} of {m["instance_uuid"]} is live'
                )
        used = collections.defaultdict(list)
        for r in self.live_rows():
            used[r['volume_id']].append(r)
        for volume in self.table(CINDER, 'volumes'):
            if volume['multiattach']:
                continue
            servers = mapped[volume['id']]
            if len(servers) > 1:
                found.add(f'{volume["display_name"]} is mapped for {servers}')
            rows = {r['instance_uuid'] for r in used[volume['id']]}
            if len(rows) > 1:
                found.add(f'{volume["display_name"]} is attached to {rows}')
        return frozenset(found)

    def check_change(self, table: str, old: Row, new: Row) -> None:
        """Judge one row that osc-drp's transaction has changed."""
        if table == 'block_device_mapping' and old['boot_index'] == 0:
            raise Violation(f'a root disk was written: {old["id"]}')
        if table == 'volume_attachment' and new['deleted'] > old['deleted']:
            for _cell, m in self.live_mappings(old['volume_id']):
                if m['boot_index'] == 0 and m['attachment_id'] == old['id']:
                    raise Violation(f'a root disk was reset: {old["id"]}')
        if table == 'volumes' and new['status'] != old['status']:
            allowed = set(_FREEABLE)
            if new['status'] == 'in-use':
                allowed.add('error')
            if old['status'] not in allowed:
                raise Violation(
                    f'{old["display_name"]}: {old["status"]} was overwritten'
                )

    # -- what db/read.py reads

    def observe(
        self,
        now: datetime.datetime,
        volume_id: str | None = None,
        server_ids: ty.Collection[str] = (),
        mapped: ty.Collection[str] = (),
    ) -> facts.Observation:
        """Read it as db/read.py's observe_on does."""
        volumes = {
            v['id']: _volume(v)
            for v in self.table(CINDER, 'volumes')
            if not v['deleted'] and volume_id in (None, v['id'])
        }
        live = [
            r for r in self.live_rows(volume_id) if r['volume_id'] in volumes
        ]
        live_ids = {r['id'] for r in live}
        mappings = self.live_mappings(volume_id)
        used = {m['volume_id'] for _c, m in mappings}
        used |= {r['volume_id'] for r in live} | {*mapped}
        dropped = [
            (cell, m)
            for cell in CELLS
            for m in self.table(cell, 'block_device_mapping')
            if m['deleted'] and m['attachment_id'] in live_ids
        ]
        gone = [
            r
            for r in self.table(CINDER, 'volume_attachment')
            if r['deleted'] and r['volume_id'] in used
        ]
        wanted = {
            *server_ids,
            *(m['instance_uuid'] for _c, m in mappings),
            *(r['instance_uuid'] for r in live if r['instance_uuid']),
        }
        roots = {
            m['instance_uuid'] for _c, m in mappings if m['boot_index'] == 0
        }
        if volume_id is not None:
            roots = {
                m['instance_uuid']
                for _c, m in self.live_mappings()
                if m['boot_index'] == 0
            }
        servers = {
            s['uuid']: _server(cell, s, s['uuid'] in roots)
            for cell in CELLS
            for s in self.table(cell, 'instances')
            if not s['deleted'] and (volume_id is None or s['uuid'] in wanted)
        }
        return facts.Observation(
            source=facts.DATABASE,
            taken_at=text(now) or '',
            servers=servers,
            volumes=volumes,
            mappings=tuple(_mapping(c, m) for c, m in [*mappings, *dropped]),
            rows=tuple(_row(r) for r in [*live, *gone]),
            services=tuple(
                facts.Service(binary, host, up)
                for (binary, host), up in self.up.items()
            ),
            migrating=frozenset(self.migrating & servers.keys()),
            unfinished=tuple(
                a
                for a in self.actions(wanted & servers.keys())
                if not a.finished
            ),
            building=frozenset(self.building - servers.keys()),
        )

    def actions(
        self, server_ids: ty.Collection[str], since: str = ''
    ) -> list[facts.Action]:
        """Read the action logs of some servers, oldest first."""
        return sorted(
            (
                facts.Action(
                    server_id=a['instance_uuid'],
                    action=a['action'],
                    request_id=a['request_id'],
                    user_id=a['user_id'],
                    start_time=text(a['start_time']) or '',
                    finished=a['finished'],
                )
                for cell in CELLS
                for a in self.table(cell, 'instance_actions')
                if a['instance_uuid'] in server_ids
                and (text(a['start_time']) or '') >= since
            ),
            key=lambda a: a.start_time,
        )


def connected(mapping: Row) -> bool:
    """Whether nova knows how to reach the volume (db/read.py CONNECTED)."""
    return mapping['connection_info'] not in (None, '', 'null', '{}')


def _volume(v: Row) -> facts.Volume:
    return facts.Volume(
        id=v['id'],
        name=v['display_name'],
        project_id=v['project_id'],
        status=v['status'],
        multiattach=v['multiattach'],
        attach_status=v['attach_status'],
        migration_status=v['migration_status'],
        host=v['host'],
    )


def _row(r: Row) -> facts.Row:
    return facts.Row(
        id=r['id'],
        volume_id=r['volume_id'],
        server_id=r['instance_uuid'],
        attach_status=r['attach_status'],
        device=r['mountpoint'],
        host=read._host(r['connector']) or r['attached_host'],
        connector=r['connector'] is not None,
        deleted=r['deleted'],
        created_at=text(r['created_at']),
        deleted_at=text(r['deleted_at']),
    )


def _mapping(cell: str, m: Row) -> facts.Mapping:
    return facts.Mapping(
        server_id=m['instance_uuid'],
        volume_id=m['volume_id'],
        device=m['device_name'],
        attachment_id=m['attachment_id'],
        root=m['boot_index'] == 0,
        tag=m['tag'],
        delete_on_termination=m['delete_on_termination'],
        connected=connected(m),
        uuid=m['uuid'],
        id=m['id'],
        cell=cell,
        deleted=m['deleted'] != 0,
        created_at=text(m['created_at']),
        deleted_at=text(m['deleted_at']),
    )


def _server(cell: str, s: Row, volume_backed: bool) -> facts.Server:
    return facts.Server(
        id=s['uuid'],
        name=s['display_name'],
        project_id=s['project_id'],
        host=s['host'],
        vm_state=s['vm_state'],
        task_state=s['task_state'],
        power_state=s['power_state'],
        locked=s['locked'],
        root_device=s['root_device_name'],
        launched=s['launched_at'] is not None,
        volume_backed=True if volume_backed or s['image_ref'] == '' else None,
        cell=cell,
    )
