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

"""Every write to a database that osc-drp makes: one UPDATE, in ``_apply``.

No INSERT, no DELETE, no other UPDATE. What may be written is in
``_WRITABLE``; each write names one row by its id, is bound to that row's
volume, server and attachment, and is conditional on the values read before,
under a lock (DESIGN 4).

**The invariant** (DESIGN 2): after no commit of ours is a volume
``available`` while any cell holds a live mapping of it with attachment_id or
connection_info. Hence the orders: a reset commits nova's side first, then
cinder's; an undo cinder's first, then nova's; and whoever makes a volume
available, or a mapping live, holds the lock of its ``volumes`` row, so that
no two of them meet. A crash between the two commits leaves "nova forgot,
cinder says attached": nothing is free, and running again finishes it.

Locks are taken in one order: cinder's volume and its attachments, then
nova's instance, then its mappings of that volume.
"""

import contextlib
import dataclasses
import datetime
import logging
import time
import typing as ty

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from osc_drp import exceptions
from osc_drp.db import engines
from osc_drp.db import read
from osc_drp.db import tables
from osc_drp.engine import facts

LOG = logging.getLogger(__name__)

Confirm = ty.Callable[[facts.Observation], None]
#: Called as ``record(old=...)`` with JSON-able values, before the first
#: write; returns when they are safe on disk.
Record = ty.Callable[..., None]
Old = ty.Mapping[str, ty.Any]

_Value = str | int | bool | None
_Result = ty.TypeVar('_Result')

_bdm = tables.block_device_mapping
_instances = tables.instances
_metadata = tables.volume_admin_metadata
_rows = tables.volume_attachment
_volumes = tables.volumes

#: The name of cinder's database in the journal; cells go by theirs.
CINDER = 'cinder'

#: All columns that osc-drp ever writes.
_WRITABLE: dict[sa.Table, tuple[str, ...]] = {
    _volumes: ('status', 'attach_status'),
    _rows: ('attach_status', 'detach_time', 'deleted', 'deleted_at'),
    _metadata: ('deleted', 'deleted_at'),
    _bdm: ('deleted', 'deleted_at', 'updated_at'),
}

#: The columns that bind a row to its volume, server and attachment.
_BOUND: dict[sa.Table, tuple[str, ...]] = {
    _volumes: (),
    _rows: ('volume_id', 'instance_uuid'),
    _metadata: ('volume_id', 'key'),
    _bdm: ('volume_id', 'instance_uuid', 'attachment_id'),
}

#: Conditions of every write, whatever the caller thinks.
_ALWAYS: dict[sa.Table, tuple[sa.ColumnElement[bool], ...]] = {
    _volumes: (
        _volumes.c.deleted == sa.false(),
        sa.or_(
            _volumes.c.migration_status.is_(None),
            _volumes.c.migration_status.in_(('success', 'error')),
        ),
    ),
    _rows: (_rows.c.instance_uuid.is_not(None),),
    _metadata: (_metadata.c.key == 'attached_mode',),
    # Never a root disk.
    _bdm: (
        _bdm.c.destination_type == 'volume',
        sa.or_(_bdm.c.boot_index.is_(None), _bdm.c.boot_index != 0),
    ),
}

#: Volume states from which a volume may be made free (INTERNALS 2.1); from
#: any other, "available" would hide what cinder still has to do or to tell.
_RELEASABLE = ('available', 'in-use', 'attaching', 'detaching', 'reserved')
#: Of the server's power states: nothing runs (DESIGN 4, step 2).
_OFF = (facts.NOSTATE, facts.SHUTDOWN, facts.CRASHED)
#: Making a volume in-use is also right where its export failed (DESIGN 5).
_REPAIRABLE = (*_RELEASABLE, 'error')
_KINDS = ('reset', 'reset_cinder', 'release', 'repair')

_DEADLOCK_TRIES = 5
_PATIENCE = engines.PATIENCE
_PAUSE = engines.PAUSE

_clock = time.monotonic
_sleep = time.sleep


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """One UPDATE of one row, and all that is needed to take it back."""

    database: str
    table: sa.Table
    id: _Value
    bound: dict[str, _Value]
    old: dict[str, _Value]
    new: dict[str, _Value]
    #: SHA-256 of nova's connection_info; its content is secret.
    digest: str | None = None

    def back(self) -> '_Change':
        """Make the inverse."""
        return dataclasses.replace(self, old=self.new, new=self.old)

    def to_dict(self) -> dict[str, ty.Any]:
        """Make it fit for the journal."""
        values = {f.name: getattr(self, f.name) for f in _FIELDS}
        return {**values, 'table': self.table.name}

    @classmethod
    def from_dict(cls, values: Old) -> '_Change':
        """Read it from the journal.

        :raises Refused: if it is not one of ours
        """
        table = _TABLES.get(values.get('table', ''))
        if table is None or {*values} != {f.name for f in _FIELDS}:
            raise exceptions.Refused(_STRANGE)
        change = cls(**{**values, 'table': table})
        if (
            not {*change.old} == {*change.new} <= {*_WRITABLE[table]}
            or {*change.bound} != {*_BOUND[table]}
            or (change.database == CINDER) == (table is _bdm)
        ):
            raise exceptions.Refused(_STRANGE)
        return change


_FIELDS = dataclasses.fields(_Change)
_TABLES = {table.name: table for table in _WRITABLE}
_STRANGE = 'The journal has a change that osc-drp does not make'


def check_grants(dbs: engines.Databases, locks: bool = True) -> None:
    """Prove that the user may write what this module writes.

    EXPLAIN UPDATE needs the privileges of the UPDATE and writes nothing
    (MariaDB 10.11, tried). Nothing is proven on SQLite.

    :param locks: also prove that rows may be locked (no row is); a dry run
        does without
    :raises DatabaseError: naming the privilege that is missing
    """
    for database in dbs.all():
        if database.mysql:
            with database.connect() as connection:
                engines.check_writable(database, connection)
                for statement in probes(database.metadata, locks):
                    connection.execute(statement)


def probes(
    metadata: sa.MetaData, locks: bool = True
) -> ty.Iterator[sa.Executable]:
    """Make statements that need our privileges and change nothing.

    One EXPLAIN UPDATE per table that we write, and the row locks, on no
    row. MySQL 8 wants UPDATE or LOCK TABLES for a lock, MariaDB 10.11 is
    content with SELECT.
    """
    for table, columns in _WRITABLE.items():
        if table.metadata is metadata:
            update = (
                sa.update(table)
                .where(table.c.id.is_(None), *_ALWAYS[table])
                .values({name: sa.null() for name in columns})
            )
            yield _explain(update)
    for table in (_volumes, _rows, _instances, _bdm):
        if locks and table.metadata is metadata:
            yield (
                sa.select(table.c.id).where(table.c.id.is_(None))
            ).with_for_update()


def _explain(update: sa.Update) -> sa.TextClause:
    text = update.compile(
        dialect=mysql.dialect(),
        compile_kwargs={'literal_binds': True},
    )
    return sa.text(f'EXPLAIN {text}'.replace(':', r'\:'))


# What the engine calls


def reset(
    dbs: engines.Databases,
    pair: facts.Pair,
    confirm: Confirm,
    record: Record,
    *,
    free: bool = True,
) -> None:
    """Take one volume of one server off both records (DESIGN 4).

    Where nova's half is already gone (``pair.dropped`` names the live row:
    our own unfinished reset) only cinder's half is done.

    :param confirm: judges both records as they are under the locks; whatever
        it raises ends the work, and nothing was changed
    :param record: makes the old values durable
    :param free: False leaves the volume 'reserved' where it would become
        'available' (DESIGN 10), so that nobody takes it
    :raises Changed: if the rows are not those of the pair, or the volume
        would be available while a server maps it; nothing was changed, or
        it was put back
    :raises DatabaseError: nothing was changed, or it was put back, or the
        message says that it is not known; a lost commit was read
    """

    def work() -> None:
        with _locked(dbs, *_key(pair), confirm) as held:
            held.expect(pair)
            held.volume_in(_RELEASABLE)
            held.server_off()
            held.require(
                bool(held.mappings or held.dropped), 'nova does not map it'
            )
            nova = [_drop_mapping(held, m) for m in held.mappings]
            cinder = _drop_rows(held, {r.id for r in held.rows}, free=free)
            _run(held, 'reset', record, nova, cinder)

    _patiently(work)


def reset_cinder(
    dbs: engines.Databases, pair: facts.Pair, confirm: Confirm, record: Record
) -> None:
    """Take one attachment off cinder's record only (DESIGN 4).

    The volume becomes 'reserved', never 'available': nova maps it still.
    Nova's databases are neither read nor locked; what is to be known of nova
    is for ``confirm`` to ask.

    :raises Changed: if the rows are not those of the pair, or the volume is
        not in-use; nothing was changed
    :raises DatabaseError: as for ``reset``
    """

    def work() -> None:
        key = (pair.server_id, pair.volume_id, None)
        with _locked(dbs, *key, confirm) as held:
            held.volume_in(('in-use',))
            held.require(
                {r.id for r in pair.rows}
                == {r.id for r in held.rows}
                != set(),
                'its records changed meanwhile',
            )
            cinder = _drop_rows(held, {r.id for r in held.rows}, free=False)
            _run(held, 'reset_cinder', record, cinder)

    _patiently(work)


def release(
    dbs: engines.Databases,
    pair: facts.Pair,
    row_ids: ty.Collection[str],
    confirm: Confirm,
    record: Record,
) -> None:
    """Take rows that no mapping names off cinder's record (DESIGN 5, R4-R7).

    The volume's status follows from the rows that stay; without row ids it
    is only computed anew (R7).

    :raises Changed: if a row is not live, not of this pair, or named by a
        live mapping, or if the volume would be available while any server
        maps it; nothing was changed
    :raises DatabaseError: as for ``reset``
    """

    def work() -> None:
        with _locked(dbs, *_key(pair), confirm) as held:
            held.volume_in(_RELEASABLE)
            ours = {row.id for row in held.rows}
            held.require({*row_ids} <= ours, 'a row is gone')
            named = {m.attachment_id for m in held.all_mappings}
            held.require(not named & {*row_ids}, 'nova names a row')
            cinder = _drop_rows(held, {*row_ids}, free=True)
            _run(held, 'release', record, cinder)

    _patiently(work)


def repair(
    dbs: engines.Databases,
    pair: facts.Pair,
    row_id: str,
    confirm: Confirm,
    record: Record,
) -> None:
    """Make cinder say what nova boots from (DESIGN 5, R2 and R3).

    The row that nova's mapping names becomes live and attached, the volume
    in-use; nova is only locked. For roots and multiattach volumes, too.

    :raises Changed: if no mapping with connection_info names the row, if it
        has no connector, or others have the volume; nothing was changed
    :raises DatabaseError: as for ``reset``
    """

    def work() -> None:
        with _locked(dbs, *_key(pair), confirm) as held:
            held.volume_in(_REPAIRABLE)
            held.require(
                [(m.attachment_id, m.connected) for m in held.mappings]
                == [(row_id, True)],
                'nova does not name the row',
            )
            held.alone()
            _run(held, 'repair', record, _raise_row(held, row_id))

    _patiently(work)


def undo(
    dbs: engines.Databases, old: Old, confirm: Confirm, record: Record
) -> None:
    """Put back what a reset, a release or a repair changed.

    Cinder's half first. Each half is as the change left it, and is put back,
    or it is as it was before (an undo cut short, a change that never came so
    far), and is left.

    :param old: what ``record`` was given by the change
    :raises Changed: if a row is neither, if the server is not off, if the
        volume was attached again or to others, or if it was 'available'
        before and nova maps it; nothing was changed
    :raises Refused: if ``old`` is nothing that osc-drp wrote
    :raises DatabaseError: nothing was changed, or cinder's half only: run it
        again
    """
    key, changes = _parsed(old)
    nova = [c for c in changes if c.table is _bdm]
    cinder = [c for c in changes if c.table is not _bdm]
    # What was live then, or was made so; anything else came later.
    known = {f'{c.database} {c.id}' for c in changes}.union(old['live'])

    def work() -> None:
        with _locked(dbs, *key, confirm) as held:
            if held.server is not None:
                held.server_off()
            held.require(held.live() <= known, 'it was attached again')
            held.require(
                held.volume.multiattach or held.live(others=True) <= known,
                'others have the volume',
            )
            held.require(
                old['kind'] != 'repair' or bool(held.mappings),
                'nova no longer maps it',
            )
            status = next(
                (c.old['status'] for c in cinder if c.table is _volumes),
                held.volume.status,
            )
            held.require(
                status != 'available' or not (nova or held.all_mappings),
                'it was available before',
            )
            _run(
                held,
                'undo',
                record,
                _taken_back(held, cinder),
                _taken_back(held, nova),
            )

    _patiently(work)


def _parsed(old: Old) -> tuple[tuple[str, str, str | None], list[_Change]]:
    """Read an entry of the journal, and trust nothing of it.

    :raises Refused: if it is not one of ours
    """
    try:
        key = old['server_id'], old['volume_id'], old['cell']
        changes = [_Change.from_dict(change) for change in old['changes']]
    except (KeyError, TypeError, AttributeError) as e:
        raise exceptions.Refused(_STRANGE) from e
    volumes = [c for c in changes if c.table is _volumes]
    if not (
        isinstance(old.get('live'), list)
        and all(_is_of(change, *key[:2]) for change in changes)
        and all(c.old.get('status') in _REPAIRABLE for c in volumes)
        and old.get('kind') in _KINDS
        and (
            old['kind'] == 'reset' or not any(c.table is _bdm for c in changes)
        )
    ):
        raise exceptions.Refused(_STRANGE)
    return key, changes


# Locks


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """A volume and one of its servers, locked and read again."""

    dbs: engines.Databases
    on: engines.Connections
    server_id: str
    volume_id: str
    #: The server's; None: nova does not know it, nothing of it is locked.
    cell: str | None
    server: facts.Server | None
    volume: facts.Volume
    #: Live: of the server, of others, and of the volume as a whole.
    mappings: tuple[facts.Mapping, ...]
    all_mappings: tuple[facts.Mapping, ...]
    rows: tuple[facts.Row, ...]
    all_rows: tuple[facts.Row, ...]
    #: The server's soft-deleted mappings that name one of its live rows.
    dropped: tuple[facts.Mapping, ...]
    #: The server's soft-deleted rows.
    old_rows: tuple[facts.Row, ...]

    def connection(self, database: str) -> sa.Connection:
        return (
            self.on.cinder if database == CINDER else self.on.cells[database]
        )

    def require(self, so: bool, else_why: str) -> None:
        """Stop unless something is so.

        :raises Changed: saying why
        """
        if not so:
            raise exceptions.Changed(
                f'Volume {self.volume_id} of server {self.server_id}:'
                f' {else_why}'
            )

    def expect(self, pair: facts.Pair) -> None:
        """Stop unless the live rows are those that the plan saw."""
        same = {m.id for m in pair.mappings} == {m.id for m in self.mappings}
        same &= {r.id for r in pair.rows} == {r.id for r in self.rows}
        self.require(same, 'its records changed meanwhile')

    def volume_in(self, statuses: ty.Collection[str]) -> None:
        """Stop unless the volume is in one of the states."""
        status, migration = self.volume.status, self.volume.migration_status
        self.require(status in statuses, f'it is {status}')
        self.require(migration in (None, 'success', 'error'), 'it migrates')

    def server_off(self) -> None:
        """Stop unless the server is off, and nova has nothing to do."""
        server = self.server
        off = server is not None and (
            server.vm_state in ('stopped', 'error')
            and server.task_state is None
            and server.power_state in _OFF
        )
        self.require(off, 'the server is not off')

    def live(self, *, others: bool = False) -> set[str]:
        """Name what is live of the server, or of anybody."""
        mappings = self.all_mappings if others else self.mappings
        rows = self.all_rows if others else self.rows
        return {
            *(f'{m.cell} {m.id}' for m in mappings),
            *(f'{CINDER} {r.id}' for r in rows),
        }

    def alone(self) -> None:
        """Stop if others have the volume, unless they may."""
        others = len(self.all_rows) > len(self.rows) or len(
            self.all_mappings
        ) > len(self.mappings)
        self.require(
            self.volume.multiattach or not others, 'others have the volume'
        )


def _key(pair: facts.Pair) -> tuple[str, str, str | None]:
    cell = pair.server.cell if pair.server else None
    return pair.server_id, pair.volume_id, cell


@contextlib.contextmanager
def _locked(
    dbs: engines.Databases,
    server_id: str,
    volume_id: str,
    cell: str | None,
    confirm: Confirm,
) -> ty.Iterator[_Held]:
    """Lock a volume and a server, read both again, ask the engine."""
    with dbs.connect(write_cinder=True, write_cell=cell) as on:
        _lock(on, server_id, volume_id, cell)
        seen = read.observe_on(
            on,
            volume_id=volume_id,
            server_ids=[server_id],
            mapped=() if on.cells else [volume_id],
        )
        confirm(seen)
        yield _hold(dbs, on, server_id, volume_id, cell, seen)


def _lock(
    on: engines.Connections, server_id: str, volume_id: str, cell: str | None
) -> None:
    """Take the row locks, always in this order.

    cinder takes the first one for each detach (cinder 29.0.0
    db/api.py:volume_detached) and changes that row for each attach, so the
    volume's attachments are still until we commit.
    """
    on.cinder.execute(_for_update(_volumes, _volumes.c.id == volume_id))
    on.cinder.execute(_for_update(_rows, _rows.c.volume_id == volume_id))
    if cell is not None and cell in on.cells:
        nova = on.cells[cell]
        nova.execute(_for_update(_instances, _instances.c.uuid == server_id))
        nova.execute(
            _for_update(
                _bdm,
                _bdm.c.instance_uuid == server_id,
                _bdm.c.volume_id == volume_id,
            )
        )


def _for_update(
    table: sa.Table, *where: sa.ColumnElement[bool]
) -> sa.Select[ty.Any]:
    return sa.select(table.c.id).where(*where).with_for_update()


def _hold(
    dbs: engines.Databases,
    on: engines.Connections,
    server_id: str,
    volume_id: str,
    cell: str | None,
    seen: facts.Observation,
) -> _Held:
    volume = seen.volumes.get(volume_id)
    server = seen.servers.get(server_id)
    if volume is None or (server and server.cell) != cell:
        raise exceptions.Changed(
            f'Volume {volume_id} of server {server_id}: one of them is gone'
        )
    mappings = [m for m in seen.mappings if not m.deleted]
    rows = [r for r in seen.rows if not r.deleted]
    live = {r.id for r in rows if r.server_id == server_id}
    ours = [m for m in seen.mappings if m.server_id == server_id]
    return _Held(
        dbs=dbs,
        on=on,
        server_id=server_id,
        volume_id=volume_id,
        cell=cell,
        server=server,
        volume=volume,
        mappings=tuple(m for m in ours if not m.deleted),
        all_mappings=tuple(mappings),
        rows=tuple(r for r in rows if r.server_id == server_id),
        all_rows=tuple(rows),
        dropped=tuple(
            m for m in ours if m.deleted and m.attachment_id in live
        ),
        old_rows=tuple(
            r for r in seen.rows if r.deleted and r.server_id == server_id
        ),
    )


# What changes


def _drop_mapping(held: _Held, mapping: facts.Mapping) -> _Change:
    """Nova's half of a detach.

    nova 34.0.0 db/main/api.py:block_device_mapping_destroy.
    """
    held.require(len(held.mappings) == 1, 'nova maps it more than once')
    held.require(not mapping.root, 'it is a root disk')
    held.require(
        mapping.cell is not None and mapping.cell == held.cell,
        'its mapping is not in the cell of its server',
    )
    assert mapping.cell is not None
    now = _json(engines.now(held.on.cells[mapping.cell]))
    return _change(
        held,
        _bdm,
        mapping.id,
        {'deleted': mapping.id, 'deleted_at': now, 'updated_at': now},
        mapping.cell,
    )


def _drop_rows(
    held: _Held, row_ids: ty.Collection[str], *, free: bool
) -> list[_Change]:
    """Cinder's half: rows, volume and the access mode of the attachment.

    cinder 29.0.0 db/models.py:VolumeAttachment.delete_values,
    db/api.py:volume_detached; volumes.updated_at stays.
    """
    cinder = held.on.cinder
    now = _json(engines.now(cinder))
    gone: dict[str, _Value] = {'deleted': True, 'deleted_at': now}
    row = {'attach_status': 'detached', 'detach_time': now, **gone}
    stay = [r for r in held.all_rows if r.id not in row_ids]
    changes = [_change(held, _rows, row_id, row) for row_id in sorted(row_ids)]
    changes += _set_volume(held, *_statuses(stay, free=free))
    if not stay:
        modes = cinder.execute(
            sa.select(_metadata.c.id).where(
                _metadata.c.volume_id == held.volume_id,
                _metadata.c.key == 'attached_mode',
                _metadata.c.deleted == sa.false(),
            )
        ).scalars()
        changes += [
            _change(held, _metadata, mode, gone) for mode in modes.all()
        ]
    return changes


def _statuses(rows: ty.Iterable[facts.Row], *, free: bool) -> tuple[str, str]:
    """Compute a volume's status and attach_status from its live rows.

    cinder 17.4.0 to 29.0.0 db/api.py:_get_statuses_from_attachments.
    """
    words = [
        r.attach_status
        for r in rows
        if not r.attach_status.startswith('error_')
    ]
    attach_status = min(words, default='detached')
    status = {
        'attached': 'in-use',
        'detached': 'available' if free else 'reserved',
    }.get(attach_status, attach_status)
    return status, attach_status


def _raise_row(held: _Held, row_id: str) -> list[_Change]:
    """Make a row live and attached again (LAB.md: the inverse of a reset)."""
    row = next(
        (r for r in (*held.rows, *held.old_rows) if r.id == row_id), None
    )
    held.require(
        row is not None and bool(row.connector),
        'the row that nova names is gone or has no connector',
    )
    new: dict[str, _Value] = {
        'attach_status': 'attached',
        'detach_time': None,
        'deleted': False,
        'deleted_at': None,
    }
    change = _change(held, _rows, row_id, new)
    changes = [] if change.old == change.new else [change]
    return changes + _set_volume(held, 'in-use', 'attached')


def _set_volume(held: _Held, status: str, attach_status: str) -> list[_Change]:
    new: dict[str, _Value] = {
        'status': status,
        'attach_status': attach_status,
    }
    change = _change(held, _volumes, held.volume_id, new)
    return [] if change.old == change.new else [change]


def _is_of(change: _Change, server_id: str, volume_id: str) -> bool:
    volume = change.id if change.table is _volumes else volume_id
    return volume == volume_id and _names(change.bound, server_id, volume_id)


def _names(bound: dict[str, _Value], server_id: str, volume_id: str) -> bool:
    """Whether a row is of both, in whatever form it keeps their ids."""
    ids = {'volume_id': volume_id, 'instance_uuid': server_id}
    return all(
        facts.id_of(str(bound.get(name, value))) == value
        for name, value in ids.items()
    )


def _taken_back(held: _Held, half: list[_Change]) -> list[_Change]:
    """Invert one half of a reset; nothing if it is as it was before."""
    states = {_state(held.connection(c.database), c) for c in half}
    held.require(len(states) < 2 and None not in states, 'it changed since')
    return [c.back() for c in half] if states == {_NEW} else []


def _change(
    held: _Held,
    table: sa.Table,
    row_id: _Value,
    new: dict[str, _Value],
    database: str = CINDER,
) -> _Change:
    """Read a (locked) row's old values."""
    connection = held.connection(database)
    found = _values(connection, table, row_id)
    assert found is not None
    # as the row has them: users write ids in other forms, too
    bound = {name: found[name] for name in _BOUND[table]}
    held.require(
        _names(bound, held.server_id, held.volume_id), 'a row is of others'
    )
    return _Change(
        database=database,
        table=table,
        id=row_id,
        bound=bound,
        old={name: found[name] for name in new},
        new=new,
        digest=_digest(connection, row_id) if table is _bdm else None,
    )


_OLD, _NEW = 'old', 'new'


def _state(connection: sa.Connection, change: _Change) -> str | None:
    """Tell whether a row is as before the change or as after it."""
    found = _values(connection, change.table, change.id)
    if found is None or not change.bound.items() <= found.items():
        return None
    if change.table is _bdm:
        if _digest(connection, change.id) != change.digest:
            return None
    if change.new.items() <= found.items():
        return _NEW
    return _OLD if change.old.items() <= found.items() else None


def _values(
    connection: sa.Connection, table: sa.Table, row_id: _Value
) -> dict[str, _Value] | None:
    names = (*_BOUND[table], *_WRITABLE[table])
    statement = sa.select(*(table.c[name] for name in names))
    found = connection.execute(statement.where(table.c.id == row_id)).first()
    if found is None:
        return None
    return {n: _json(v) for n, v in zip(names, found, strict=True)}


def _digest(connection: sa.Connection, row_id: _Value) -> str | None:
    digest = sa.func.sha2(_bdm.c.connection_info, 256)
    statement = sa.select(digest).where(_bdm.c.id == row_id)
    return ty.cast(str | None, connection.execute(statement).scalar_one())


def _json(value: ty.Any) -> _Value:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return ty.cast(_Value, value)


# Writing


def _apply(connection: sa.Connection, change: _Change) -> None:
    """Send the UPDATE: one row, as it was read, or none.

    :raises Changed: if the row is not as it was; nothing was changed
    """
    table = change.table
    if not {*change.new} <= {*_WRITABLE[table]}:
        raise AssertionError(f'{table.name} {sorted(change.new)}')
    update = (
        sa.update(table)
        .where(
            table.c.id == change.id,
            *_ALWAYS[table],
            *_equal(table, change.bound),
            *_equal(table, change.old),
        )
        .values({n: _bind(table.c[n], v) for n, v in change.new.items()})
    )
    # Matched rows, not altered ones: SQLAlchemy sets CLIENT.FOUND_ROWS.
    if connection.execute(update).rowcount != 1:
        raise exceptions.Changed(f'{table.name} {change.id} changed meanwhile')


def _equal(
    table: sa.Table, values: ty.Mapping[str, _Value]
) -> ty.Iterator[sa.ColumnElement[bool]]:
    for name, value in values.items():
        column = table.c[name]
        if value is None:
            yield column.is_(None)
        else:
            yield column == _bind(column, value)


def _bind(column: sa.Column[ty.Any], value: _Value) -> ty.Any:
    if isinstance(column.type, sa.DateTime) and isinstance(value, str):
        return datetime.datetime.fromisoformat(value)
    return value


def _run(
    held: _Held, kind: str, record: Record, *halves: list[_Change]
) -> None:
    """Journal the changes, then make them: a commit per half, in order."""
    todo = [half for half in halves if half]
    if not todo:
        return
    _check_free(held.on, held.volume_id, todo, soon=todo)
    record(
        old={
            'kind': kind,
            'server_id': held.server_id,
            'volume_id': held.volume_id,
            'cell': held.cell,
            'live': sorted(held.live(others=True)),
            'changes': [c.to_dict() for half in todo for c in half],
        }
    )
    try:
        for half in todo:
            if held.cell is not None and _frees(half):
                # As after a reset's first commit: nova's locks are no more
                # needed, and in the way of a trigger that looks at nova.
                held.connection(held.cell).rollback()
            _write(held, half)
    except BaseException as e:
        # An interrupt as well: what is half done is put back at once.
        if not _settled(held, todo, e):
            raise


def _write(held: _Held, half: list[_Change]) -> None:
    _check_mapped(held.on, held.volume_id, half)
    for change in half:
        _apply(held.connection(change.database), change)
    _check_free(held.on, held.volume_id, [half])
    held.connection(half[0].database).commit()


def _frees(half: list[_Change]) -> bool:
    return any(c.new.get('status') == 'available' for c in half)


def _check_free(
    on: engines.Connections,
    volume_id: str,
    halves: list[list[_Change]],
    soon: ty.Iterable[list[_Change]] = (),
) -> None:
    """Hold the invariant where a volume becomes available.

    :param soon: changes that will be made before
    :raises Changed: if any cell holds a live mapping of it
    """
    if not any(_frees(half) for half in halves):
        return
    if not on.cells:
        raise exceptions.Changed(
            f'Volume {volume_id} would be available, and no database of nova'
            ' tells who maps it'
        )
    leaving = {(c.database, c.id) for half in soon for c in half}
    for name, connection in on.cells.items():
        found = connection.execute(
            sa.select(_bdm.c.id, _bdm.c.instance_uuid).where(
                _bdm.c.volume_id == volume_id,
                _bdm.c.deleted == 0,
                sa.or_(_bdm.c.attachment_id.is_not(None), read.CONNECTED),
            )
        )
        for row in found:
            if (name, row.id) not in leaving:
                raise exceptions.Changed(
                    f'Volume {volume_id} would be available, but server'
                    f' {row.instance_uuid} in cell {name} maps it'
                )


def _check_mapped(
    on: engines.Connections, volume_id: str, half: list[_Change]
) -> None:
    """Hold the invariant where a mapping becomes live.

    The lock is taken (again, after a commit) and kept until nova's commit.

    :raises Changed: if the volume is available
    """
    if any(c.table is _bdm and c.new['deleted'] == 0 for c in half):
        status = on.cinder.execute(
            sa.select(_volumes.c.status)
            .where(_volumes.c.id == volume_id)
            .with_for_update()
        ).scalar_one()
        if status == 'available':
            raise exceptions.Changed(
                f'Volume {volume_id} is available meanwhile'
            )


def _settled(
    held: _Held, halves: list[list[_Change]], error: BaseException
) -> bool:
    """After a failure, read what is true; put back nova's half if alone.

    :returns: whether all was done after all, and only the answer was lost
    :raises DatabaseError: if it cannot be read, and so is not known
    """
    for connection in (held.on.cinder, *held.on.cells.values()):
        # Not rollback(): after a failed commit it has nothing to do.
        with contextlib.suppress(exceptions.DatabaseError):
            connection.close()
    try:
        done = _patiently(lambda: _settle(held, halves), lost=True)
    except exceptions.DrpError as e:
        if not isinstance(error, Exception):
            return False
        raise exceptions.DatabaseError(
            f'Volume {held.volume_id} of server {held.server_id}: not known'
            f' whether it was done, run this again: {e}'
        ) from error
    return done and isinstance(error, exceptions.DatabaseError)


def _settle(held: _Held, halves: list[list[_Change]]) -> bool:
    key = held.server_id, held.volume_id, held.cell
    with held.dbs.connect(write_cinder=True, write_cell=held.cell) as on:
        # Waits for a transaction of ours that the server has not ended yet.
        _lock(on, *key)
        fresh = dataclasses.replace(held, on=on)
        states = [
            {_state(fresh.connection(c.database), c) for c in half}
            for half in halves
        ]
        if all(state == {_NEW} for state in states):
            return True
        nova = halves[0]
        if nova[0].table is _bdm and states[0] == {_NEW}:
            if all(state == {_OLD} for state in states[1:]):
                # Not if it is available: it was so before us.
                with contextlib.suppress(exceptions.Changed):
                    _write(fresh, [change.back() for change in nova])
        return False


def _patiently(work: ty.Callable[[], _Result], lost: bool = False) -> _Result:
    """Repeat a unit of work while a database asks for it.

    Deadlocks a few times; a Galera node that is not ready (and, if the
    caller can bear it, a lost connection) for a minute.
    """
    until = _clock() + _PATIENCE
    waiting: tuple[type[exceptions.DatabaseError], ...] = (
        (engines.NotReady, engines.Lost) if lost else (engines.NotReady,)
    )
    tries = 0
    while True:
        try:
            return work()
        except engines.Deadlock:
            tries += 1
            if tries >= _DEADLOCK_TRIES:
                raise
            _sleep(0.1 * 2**tries)
        except waiting as e:
            if _clock() + _PAUSE > until:
                raise
            LOG.warning('%s: waiting for it', e)
            _sleep(_PAUSE)
