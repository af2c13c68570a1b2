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

"""What cinder's and nova's databases record, in bulk and without a lock.

A handful of SELECTs per database, whatever the size of the cloud; the
writers use the same ones, with their locked transactions and one volume.
connection_info, which holds secrets, never leaves the servers.
"""

import datetime
import json
import typing as ty

import sqlalchemy as sa

from osc_drp.db import engines
from osc_drp.db import tables
from osc_drp.engine import facts

#: Seconds without a sign of life after which nova and cinder call a service
#: down (service_down_time of both).
DOWN_AFTER = 60

#: Migrations that are over: nova 34.0.0 db/main/api.py,
#: migration_get_in_progress_by_host_and_node. 'accepted' and 'finished'
#: (a resize that waits for its confirmation) are not.
_OVER = (
    'cancelled',
    'completed',
    'confirmed',
    'done',
    'error',
    'failed',
    'reverted',
)

#: Values in one IN list.
_CHUNK = 1000

_Where = sa.ColumnElement[bool]

_bdm = tables.block_device_mapping
_instances = tables.instances
_rows = tables.volume_attachment
_volumes = tables.volumes

#: connection_info says how to reach the volume: nova uses it at the next
#: start. Empty documents count as none (nova 34.0.0 virt/block_device.py).
CONNECTED = sa.and_(
    _bdm.c.connection_info.is_not(None),
    _bdm.c.connection_info.not_in(('', 'null', '{}')),
)


def observe(
    dbs: engines.Databases, *, down_after: int = DOWN_AFTER
) -> facts.Observation:
    """Read the whole cloud.

    :param down_after: seconds after which a silent service is down
    :raises DatabaseError: if a database does not answer: never less than all
    """
    with dbs.connect() as on:
        return observe_on(on, down_after=down_after)


def observe_cinder(
    dbs: engines.Databases, mapped: ty.Collection[str]
) -> facts.Observation:
    """Read cinder's side only.

    :param mapped: see ``observe_on``
    :raises DatabaseError: if the database does not answer
    """
    with dbs.connect() as on:
        return observe_on(on, mapped=mapped)


def observe_on(
    on: engines.Connections,
    *,
    volume_id: str | None = None,
    server_ids: ty.Collection[str] = (),
    mapped: ty.Collection[str] = (),
    down_after: int = DOWN_AFTER,
) -> facts.Observation:
    """Read the cloud, or one volume and all its servers.

    Of cinder's database alone, cinder's side: no servers, no mappings.

    :param volume_id: only this volume
    :param server_ids: with it, servers that are read in any case
    :param mapped: volumes that nova maps by another source: their
        soft-deleted rows are read as well
    """
    one = volume_id is not None
    taken_at = engines.now(on.cinder)
    volumes = {
        volume.id: volume
        for volume in _read_volumes(
            on.cinder, *([_volumes.c.id == volume_id] if one else [])
        )
    }
    live = _live_rows(on.cinder, volume_id)
    mappings = [
        mapping
        for name, cell in on.cells.items()
        for mapping in _live_mappings(cell, name, volume_id)
    ]
    used = {m.volume_id for m in mappings} | {r.volume_id for r in live}
    used |= {*mapped}
    dropped = _dropped_mappings(on, live)
    rows = live + _deleted_rows(on.cinder, used)
    wanted = {
        *server_ids,
        *(m.server_id for m in mappings),
        *(r.server_id for r in live if r.server_id),
    }
    only = wanted if one else None
    servers = _servers(on, only)
    return facts.Observation(
        source=facts.DATABASE,
        taken_at=taken_at.isoformat() + 'Z',
        servers=servers,
        volumes=volumes,
        mappings=tuple(mappings + dropped),
        rows=tuple(rows),
        services=tuple(_services(on, down_after)),
        migrating=_migrating(on, wanted if one else None).intersection(
            servers
        ),
        unfinished=tuple(_unfinished(on, wanted & servers.keys())),
        building=_building(on, only).difference(servers),
    )


def actions_since(
    dbs: engines.Databases, server_ids: ty.Collection[str], since: str
) -> list[facts.Action]:
    """Read nova's action log of some servers, oldest first.

    :param since: UTC, ISO 8601; by the databases' clock
    """
    start = _actions.c.start_time >= _datetime(since)
    with dbs.connect() as on:
        found = _read_actions(on, server_ids, start)
    return sorted(found, key=lambda action: action.start_time)


# Cinder


def _read_volumes(
    connection: sa.Connection, *where: _Where
) -> ty.Iterator[facts.Volume]:
    c = _volumes.c
    statement = sa.select(
        c.id,
        c.display_name,
        c.project_id,
        c.status,
        c.multiattach,
        c.attach_status,
        c.migration_status,
        c.host,
    ).where(c.deleted == sa.false(), *where)
    for row in connection.execute(statement):
        yield facts.Volume(
            id=row.id,
            name=row.display_name or '',
            project_id=row.project_id or '',
            status=row.status or '',
            multiattach=bool(row.multiattach),
            attach_status=row.attach_status,
            migration_status=row.migration_status,
            host=row.host,
        )


def _live_rows(
    connection: sa.Connection, volume_id: str | None
) -> list[facts.Row]:
    """Live rows of live volumes."""
    where = [_rows.c.deleted == sa.false(), _volumes.c.deleted == sa.false()]
    if volume_id is not None:
        where.append(_rows.c.volume_id == volume_id)
    return list(_read_rows(connection, *where, join=True))


def _deleted_rows(
    connection: sa.Connection, volume_ids: ty.Collection[str]
) -> list[facts.Row]:
    deleted = _rows.c.deleted == sa.true()
    return [
        row
        for chunk in _chunks(volume_ids)
        for row in _read_rows(
            connection, deleted, _rows.c.volume_id.in_(chunk)
        )
    ]


def _read_rows(
    connection: sa.Connection, *where: _Where, join: bool = False
) -> ty.Iterator[facts.Row]:
    c = _rows.c
    statement = sa.select(
        c.id,
        c.volume_id,
        c.instance_uuid,
        c.attach_status,
        c.mountpoint,
        c.attached_host,
        c.connector,
        c.deleted,
        c.created_at,
        c.deleted_at,
    ).where(*where)
    if join:
        statement = statement.join(_volumes, _volumes.c.id == c.volume_id)
    for row in connection.execute(statement):
        yield facts.Row(
            id=row.id,
            volume_id=row.volume_id,
            server_id=row.instance_uuid and facts.id_of(row.instance_uuid),
            attach_status=row.attach_status or '',
            device=row.mountpoint,
            host=_host(row.connector) or row.attached_host,
            connector=row.connector is not None,
            deleted=bool(row.deleted),
            created_at=_time(row.created_at),
            deleted_at=_time(row.deleted_at),
        )


def _host(connector: str | None) -> str | None:
    """Take the host out of a connector (os-brick's JSON)."""
    try:
        found = json.loads(connector or 'null')
    except ValueError:
        return None
    host = found.get('host') if isinstance(found, dict) else None
    return host if isinstance(host, str) else None


# Nova


def _live_mappings(
    connection: sa.Connection, cell: str, volume_id: str | None
) -> ty.Iterator[facts.Mapping]:
    where = [_bdm.c.deleted == 0]
    if volume_id is not None:
        where.append(_bdm.c.volume_id == volume_id)
    return _read_mappings(connection, cell, *where)


def _dropped_mappings(
    on: engines.Connections, live: ty.Collection[facts.Row]
) -> list[facts.Mapping]:
    """Soft-deleted mappings that name a live row."""
    ids = {row.id for row in live}
    volume_ids = {row.volume_id for row in live}
    return [
        mapping
        for name, cell in on.cells.items()
        # By volume: there is no index on attachment_id.
        for chunk in _chunks(volume_ids)
        for mapping in _read_mappings(
            cell,
            name,
            _bdm.c.deleted != 0,
            _bdm.c.attachment_id.is_not(None),
            _bdm.c.volume_id.in_(chunk),
        )
        if mapping.attachment_id in ids
    ]


def _read_mappings(
    connection: sa.Connection, cell: str, *where: _Where
) -> ty.Iterator[facts.Mapping]:
    c = _bdm.c
    statement = sa.select(
        c.id,
        c.uuid,
        c.instance_uuid,
        c.volume_id,
        c.device_name,
        c.attachment_id,
        c.boot_index,
        c.tag,
        c.delete_on_termination,
        CONNECTED.label('connected'),
        c.deleted,
        c.created_at,
        c.deleted_at,
    ).where(
        c.destination_type == 'volume',
        c.volume_id.is_not(None),
        c.instance_uuid.is_not(None),
        *where,
    )
    for row in connection.execute(statement):
        yield facts.Mapping(
            server_id=row.instance_uuid,
            volume_id=facts.id_of(row.volume_id),
            device=row.device_name,
            attachment_id=row.attachment_id,
            root=row.boot_index == 0,
            tag=row.tag,
            delete_on_termination=bool(row.delete_on_termination),
            connected=bool(row.connected),
            uuid=row.uuid,
            id=row.id,
            cell=cell,
            deleted=row.deleted != 0,
            created_at=_time(row.created_at),
            deleted_at=_time(row.deleted_at),
        )


def _servers(
    on: engines.Connections, server_ids: ty.Collection[str] | None
) -> dict[str, facts.Server]:
    found: dict[str, list[facts.Server]] = {}
    for name, cell in on.cells.items():
        roots = _volume_backed(cell, server_ids)
        for server in _read_servers(cell, name, server_ids, roots):
            found.setdefault(server.id, []).append(server)
    twice = [server_id for server_id in found if len(found[server_id]) > 1]
    cells = _cells_of(on, twice) if twice else {}
    return {
        server_id: next(
            (s for s in servers if s.cell == cells.get(server_id)), servers[0]
        )
        for server_id, servers in found.items()
    }


def _read_servers(
    connection: sa.Connection,
    cell: str,
    server_ids: ty.Collection[str] | None,
    roots: ty.Collection[str],
) -> ty.Iterator[facts.Server]:
    c = _instances.c
    statement = sa.select(
        c.uuid,
        c.display_name,
        c.hostname,
        c.project_id,
        c.host,
        c.vm_state,
        c.task_state,
        c.power_state,
        c.locked,
        c.image_ref,
        c.root_device_name,
        c.launched_at,
    ).where(c.deleted == 0)
    for row in _execute(connection, statement, c.uuid, server_ids):
        yield facts.Server(
            id=row.uuid,
            name=row.display_name or row.hostname or '',
            project_id=row.project_id or '',
            host=row.host,
            vm_state=row.vm_state or '',
            task_state=row.task_state,
            power_state=row.power_state or facts.NOSTATE,
            locked=bool(row.locked),
            root_device=row.root_device_name,
            launched=row.launched_at is not None,
            volume_backed=(
                True if row.uuid in roots or row.image_ref == '' else None
            ),
            cell=cell,
        )


def _volume_backed(
    connection: sa.Connection, server_ids: ty.Collection[str] | None
) -> set[str]:
    """Servers whose root disk is mapped to a volume."""
    c = _bdm.c
    statement = sa.select(c.instance_uuid).where(
        c.deleted == 0, c.destination_type == 'volume', c.boot_index == 0
    )
    found = _execute(connection, statement, c.instance_uuid, server_ids)
    return {row.instance_uuid for row in found}


def _cells_of(
    on: engines.Connections, server_ids: ty.Collection[str]
) -> dict[str, str]:
    """Ask the API database, as nova does, which cell's record counts.

    A server is in two cells during a resize across cells (nova 34.0.0
    conductor/tasks/cross_cell_migrate.py).
    """
    mappings, cells = tables.instance_mappings, tables.cell_mappings
    statement = sa.select(
        mappings.c.instance_uuid, cells.c.uuid, cells.c.name
    ).join(cells, cells.c.id == mappings.c.cell_id)
    assert on.api is not None
    found = _execute(on.api, statement, mappings.c.instance_uuid, server_ids)
    return {
        row.instance_uuid: (
            engines.CELL0
            if row.uuid == engines.CELL0_UUID
            else row.name
            if row.name in on.cells
            else row.uuid
        )
        for row in found
    }


def _building(
    on: engines.Connections, server_ids: ty.Collection[str] | None
) -> frozenset[str]:
    if on.api is None:
        return frozenset()
    column = tables.build_requests.c.instance_uuid
    statement = sa.select(column).where(column.is_not(None))
    found = _execute(on.api, statement, column, server_ids)
    return frozenset(row.instance_uuid for row in found)


def _migrating(
    on: engines.Connections, server_ids: ty.Collection[str] | None
) -> frozenset[str]:
    c = tables.migrations.c
    statement = sa.select(c.instance_uuid).where(
        c.deleted == 0,
        sa.or_(c.status.is_(None), c.status.not_in(_OVER)),
        c.instance_uuid.is_not(None),
    )
    return frozenset(
        row.instance_uuid
        for cell in on.cells.values()
        for row in _execute(cell, statement, c.instance_uuid, server_ids)
    )


# Nova's action log

_actions = tables.instance_actions
_events = tables.instance_actions_events


#: Of the events of one action. nova ends these, not the action: finish_time
#: of instance_actions stays NULL in nearly all (nova 34.0.0
#: db/main/api.py:action_event_finish; action_finish has two callers).
_FINISHED = sa.or_(
    sa.func.max(_actions.c.finish_time).is_not(None),
    sa.and_(
        sa.func.count(_events.c.id) > 0,
        sa.func.count(_events.c.id) == sa.func.count(_events.c.finish_time),
    ),
)


def _unfinished(
    on: engines.Connections, server_ids: ty.Collection[str]
) -> list[facts.Action]:
    return _read_actions(on, server_ids, having=sa.not_(_FINISHED))


def _read_actions(
    on: engines.Connections,
    server_ids: ty.Collection[str],
    where: _Where = sa.true(),
    having: _Where = sa.true(),
) -> list[facts.Action]:
    c = _actions.c
    statement = (
        sa.select(
            c.instance_uuid,
            c.action,
            c.request_id,
            c.user_id,
            c.start_time,
            _FINISHED.label('finished'),
        )
        # EXISTS would make MariaDB read the events of all servers.
        .outerjoin(_events, _events.c.action_id == c.id)
        .where(c.deleted == 0, where)
        .group_by(
            c.id,
            c.instance_uuid,
            c.action,
            c.request_id,
            c.user_id,
            c.start_time,
        )
        .having(having)
    )
    return [
        facts.Action(
            server_id=row.instance_uuid,
            action=row.action or '',
            request_id=row.request_id or '',
            user_id=row.user_id,
            start_time=_time(row.start_time) or '',
            finished=bool(row.finished),
        )
        for cell in on.cells.values()
        for row in _execute(cell, statement, c.instance_uuid, server_ids)
    ]


# Services of both


def _services(
    on: engines.Connections, down_after: int
) -> ty.Iterator[facts.Service]:
    for name, cell in on.cells.items():
        yield from _nova_services(cell, name, down_after)
    c = tables.cinder_services.c
    statement = sa.select(c.binary, c.host, c.updated_at).where(
        c.deleted == sa.false(),
        c.binary.in_(('cinder-volume', 'cinder-backup')),
    )
    # cinder 29.0.0 objects/service.py:is_up
    oldest = _oldest(on.cinder, down_after)
    for row in on.cinder.execute(statement):
        yield facts.Service(
            binary=row.binary,
            host=row.host or '',
            up=row.updated_at is not None and row.updated_at >= oldest,
        )


def _nova_services(
    connection: sa.Connection, cell: str, down_after: int
) -> ty.Iterator[facts.Service]:
    c = tables.nova_services.c
    statement = sa.select(
        c.host, c.forced_down, c.last_seen_up, c.created_at
    ).where(c.deleted == 0, c.binary == 'nova-compute')
    oldest = _oldest(connection, down_after)
    for row in connection.execute(statement):
        # nova 34.0.0 servicegroup/drivers/db.py:is_up
        seen = row.last_seen_up or row.created_at
        yield facts.Service(
            binary='nova-compute',
            host=row.host or '',
            up=not row.forced_down and seen is not None and seen >= oldest,
            cell=cell,
        )


def _oldest(connection: sa.Connection, down_after: int) -> datetime.datetime:
    return engines.now(connection) - datetime.timedelta(seconds=down_after)


# Helpers


def _execute(
    connection: sa.Connection,
    statement: sa.Select[ty.Any],
    column: sa.ColumnElement[ty.Any],
    values: ty.Collection[str] | None,
) -> ty.Iterator[sa.Row[ty.Any]]:
    """Run a SELECT; with values, for those of a column, in chunks."""
    if values is None:
        yield from connection.execute(statement)
        return
    for chunk in _chunks(values):
        yield from connection.execute(statement.where(column.in_(chunk)))


def _chunks(values: ty.Collection[str]) -> ty.Iterator[list[str]]:
    ordered = sorted(values)
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]


def _time(time: datetime.datetime | None) -> str | None:
    return time.isoformat(timespec='seconds') + 'Z' if time else None


def _datetime(time: str) -> datetime.datetime:
    parsed = datetime.datetime.fromisoformat(time)
    if parsed.tzinfo is None:
        return parsed
    return parsed.astimezone(datetime.UTC).replace(tzinfo=None)
