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

"""The guarded writes: what they change, what they refuse, and every crash."""

import contextlib
import dataclasses
import itertools
import sqlite3
import threading
import typing as ty
import unittest
from unittest import mock

import pymysql
import sqlalchemy as sa
import testtools

from osc_drp import exceptions
from osc_drp.db import config
from osc_drp.db import engines
from osc_drp.db import read
from osc_drp.db import tables
from osc_drp.db import write
from osc_drp.engine import facts
from osc_drp.tests.unit.db import fixture

VOLUMES = tables.volumes
ROWS = tables.volume_attachment
BDM = tables.block_device_mapping


class Killed(BaseException):
    """Our process dies here."""


class Crash:
    """Fail at the n-th thing that is asked of any database.

    Things are statements, and commits before and after the database does
    them. A killed process asks nothing more; any other error comes once.

    :param armed: whether to count before the old values are recorded
    :param lasting: all databases are down from then on
    """

    def __init__(
        self,
        dbs: engines.Databases,
        at: int,
        error: ty.Any = Killed,
        armed: bool = True,
        lasting: bool = False,
    ) -> None:
        self.dbs = dbs
        self.lasting = lasting
        self.at = at
        self.error = error
        self.armed = armed
        self.count = 0
        self.fired = False

    def hit(self) -> None:
        if not self.armed:
            return
        self.count += 1
        if self.count == self.at:
            self.fired = True
            raise self.error()
        if self.fired and (self.error is Killed or self.lasting):
            raise self.error()

    def __enter__(self) -> 'Crash':
        with contextlib.ExitStack() as stack:
            for database in self.dbs.all():
                for name in ('do_execute', 'do_commit'):
                    stack.enter_context(
                        self._patched(database.engine.dialect, name)
                    )
            stack.enter_context(
                mock.patch.object(write, '_sleep', lambda seconds: None)
            )
            if self.lasting:
                stack.enter_context(mock.patch.object(write, '_PATIENCE', 0))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _patched(self, dialect: ty.Any, name: str) -> ty.Any:
        real = getattr(dialect, name)

        def around(*args: ty.Any, **kwargs: ty.Any) -> ty.Any:
            self.hit()
            real(*args, **kwargs)
            if name == 'do_commit':
                self.hit()

        return mock.patch.object(dialect, name, around)


def agree(seen: facts.Observation) -> None:
    """The engine's verdict is still the same."""


class Base(testtools.TestCase):
    server_url: str | None = None

    def setUp(self) -> None:
        super().setUp()
        self.cloud = self.useFixture(fixture.CloudFixture(self.server_url))
        self.dbs = self.cloud.dbs
        self.olds: list[ty.Any] = []
        self.crash: Crash | None = None

    def record(self, old: ty.Any) -> None:
        self.olds.append(old)
        if self.crash is not None:
            self.crash.armed = True

    def pair(self, server_id: str, volume_id: str) -> facts.Pair:
        found = self.pairs(server_id, volume_id)
        self.assertEqual(1, len(found))
        return found[0]

    def pairs(self, server_id: str, volume_id: str) -> list[facts.Pair]:
        return [
            pair
            for pair in facts.pairs(read.observe(self.dbs))
            if (pair.server_id, pair.volume_id) == (server_id, volume_id)
        ]

    def reset(self, server_id: str, volume_id: str, **kwargs: ty.Any) -> None:
        pair = self.pair(server_id, volume_id)
        write.reset(self.dbs, pair, agree, self.record, **kwargs)

    def volume(self, volume_id: str) -> tuple[str, str]:
        found = self.cloud.get('cinder', VOLUMES, volume_id)
        return found['status'], found['attach_status']

    def row(self, row_id: str) -> ty.Any:
        return self.cloud.get('cinder', ROWS, row_id)

    def mapping(self, mapping_id: int, cell: str = 'cell1') -> ty.Any:
        return self.cloud.get(f'nova_{cell}', BDM, mapping_id)

    def assertReset(self, mapping_id: int, row_id: str) -> None:
        mapping, row = self.mapping(mapping_id), self.row(row_id)
        self.assertEqual(mapping_id, mapping['deleted'])
        self.assertIsNotNone(mapping['deleted_at'])
        self.assertEqual('detached', row['attach_status'])
        self.assertTrue(row['deleted'])
        self.assertIsNotNone(row['deleted_at'])
        self.assertIsNotNone(row['detach_time'])

    def assertUntouched(self, before: ty.Any) -> None:
        self.assertEqual(before, self.cloud.dump())

    def refuse(
        self, why: str, server_id: str, volume_id: str, **kwargs: ty.Any
    ) -> None:
        """A reset is refused, and nothing was written or recorded."""
        before = self.cloud.dump()
        error = self.assertRaises(
            exceptions.Changed, self.reset, server_id, volume_id, **kwargs
        )
        self.assertIn(why, str(error))
        self.assertUntouched(before)
        self.assertEqual([], self.olds)


class Writes:
    """What each write changes and refuses."""

    def attached(self, **mapping: ty.Any) -> tuple[str, str, int, str]:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        ids = self.cloud.attach(server_id, volume_id, **mapping)
        return server_id, volume_id, *ids

    # reset

    def test_reset_takes_it_off_both(self) -> None:
        server_id, volume_id, mapping_id, row_id = self.attached()
        other = self.cloud.volume('other')
        self.cloud.attach(server_id, other, device='/dev/vdc')
        before = self.cloud.dump()
        self.reset(server_id, volume_id)
        self.assertReset(mapping_id, row_id)
        self.assertEqual(('available', 'detached'), self.volume(volume_id))
        self.assertEqual(('in-use', 'attached'), self.volume(other))
        after = self.cloud.dump()
        changed = {key for key in before if before[key] != after[key]}
        self.assertEqual(
            {
                ('cinder', 'volumes'),
                ('cinder', 'volume_attachment'),
                ('nova_cell1', 'block_device_mapping'),
            },
            changed,
        )

    def test_old_values_come_before_the_first_write(self) -> None:
        server_id, volume_id, mapping_id, row_id = self.attached()
        seen = []

        def record(old: ty.Any) -> None:
            seen.append(old)
            raise OSError('disk full')

        before = self.cloud.dump()
        pair = self.pair(server_id, volume_id)
        self.assertRaises(OSError, write.reset, self.dbs, pair, agree, record)
        self.assertUntouched(before)
        nova, row, volume = seen[0]['changes']
        self.assertEqual(0, nova['old']['deleted'])
        self.assertEqual(mapping_id, nova['new']['deleted'])
        self.assertEqual('attached', row['old']['attach_status'])
        self.assertEqual(row_id, row['id'])
        self.assertEqual('in-use', volume['old']['status'])
        self.assertEqual(64, len(nova['digest']))
        self.assertNotIn('S3CRET', str(seen))

    def test_reserved_instead_of_free(self) -> None:
        server_id, volume_id, *_ = self.attached()
        self.reset(server_id, volume_id, free=False)
        self.assertEqual(('reserved', 'detached'), self.volume(volume_id))

    # cinder's database only

    def cinder_only(self) -> engines.Databases:
        cinder = config.Urls(cinder=self.cloud.urls.cinder, nova_api=None)
        dbs = engines.open_databases(cinder)
        self.addCleanup(dbs.close)
        return dbs

    def test_cinders_record_only(self) -> None:
        server_id, volume_id, mapping_id, row_id = self.attached()
        nova = self.mapping(mapping_id)
        before, pair = self.cloud.dump(), self.pair(server_id, volume_id)
        dbs, seen = self.cinder_only(), []
        write.check_grants(dbs)
        dbs.check_schema()
        write.reset_cinder(dbs, pair, seen.append, self.record)
        self.assertEqual(('reserved', 'detached'), self.volume(volume_id))
        self.assertEqual(nova, self.mapping(mapping_id))
        self.assertTrue(self.row(row_id)['deleted'])
        # what is judged under the lock is cinder's side
        ((locked,),) = [o.rows for o in seen]
        self.assertEqual(row_id, locked.id)
        self.assertEqual(({}, ()), (seen[0].servers, seen[0].mappings))
        # once it is done it is not done again, by whatever plan
        self.assertRaises(
            exceptions.Changed,
            *(write.reset_cinder, dbs, pair, agree, self.record),
        )
        # the deleted row shows for a volume that nova maps by its API
        self.assertEqual((), read.observe_cinder(dbs, []).rows)
        (old,) = read.observe_cinder(dbs, [volume_id]).rows
        self.assertTrue(old.deleted)
        write.undo(dbs, self.olds[0], agree, self.record)
        self.assertEqual(before, self.cloud.dump())

    def test_cinders_record_of_a_volume_of_two(self) -> None:
        volume_id = self.cloud.volume(multiattach=True)
        servers = [self.cloud.server(f's{n}') for n in range(2)]
        for server_id in servers:
            self.cloud.attach(server_id, volume_id)
        before, dbs = self.cloud.dump(), self.cinder_only()
        pairs = [self.pair(s, volume_id) for s in servers]
        for pair, status in zip(pairs, ('in-use', 'reserved'), strict=True):
            write.reset_cinder(dbs, pair, agree, self.record)
            self.assertEqual(status, self.volume(volume_id)[0])
        for old in reversed(self.olds[:]):
            write.undo(dbs, old, agree, self.record)
        self.assertEqual(before, self.cloud.dump())

    def test_cinders_record_in_another_state(self) -> None:
        server_id, volume_id, *_ = self.attached()
        pair = self.pair(server_id, volume_id)
        other = dataclasses.replace(pair, rows=())
        self.cloud.row(volume_id, server_id, attach_status='attaching')
        before = self.cloud.dump()
        for expected in (pair, other):
            self.assertRaises(
                exceptions.Changed,
                *(write.reset_cinder, self.cinder_only(), expected),
                *(agree, self.record),
            )
        self.assertUntouched(before)
        for status in ('available', 'reserved', 'error', 'detaching'):
            self.cloud.set('cinder', VOLUMES, volume_id, status=status)
            pair = self.pair(server_id, volume_id)
            self.assertRaises(
                exceptions.Changed,
                *(write.reset_cinder, self.cinder_only(), pair),
                *(agree, self.record),
            )
        self.assertEqual([], self.olds)

    def test_without_nova_nothing_becomes_available(self) -> None:
        server_id, volume_id, *_ = self.attached()
        pair = self.pair(server_id, volume_id)
        dbs = self.cinder_only()
        write.reset_cinder(dbs, pair, agree, self.record)
        before = self.cloud.dump()
        (old,) = self.olds
        for change in old['changes']:
            if change['table'] == 'volumes':
                change['old']['status'] = 'available'
        self.assertRaises(
            exceptions.Changed,
            *(write.undo, dbs, old, agree, self.record),
        )
        alone = dataclasses.replace(pair, rows=(), server=None)
        self.assertRaises(
            exceptions.Changed,
            *(write.release, dbs, alone, (), agree, self.record),
        )
        self.assertUntouched(before)

    def test_access_mode_goes_with_the_last_row(self) -> None:
        server_id, volume_id, *_ = self.attached()
        modes = [
            self.cloud.insert(
                'cinder',
                tables.volume_admin_metadata,
                volume_id=volume_id,
                key=key,
                deleted=False,
            )
            for key in ('attached_mode', 'readonly')
        ]
        self.reset(server_id, volume_id)
        get = self.cloud.get
        gone, stays = (
            get('cinder', tables.volume_admin_metadata, mode) for mode in modes
        )
        self.assertTrue(gone['deleted'])
        self.assertIsNotNone(gone['deleted_at'])
        self.assertFalse(stays['deleted'])
        write.undo(self.dbs, self.olds[0], agree, self.record)
        back = get('cinder', tables.volume_admin_metadata, modes[0])
        self.assertFalse(back['deleted'])

    def test_one_server_of_a_multiattach_volume(self) -> None:
        volume_id = self.cloud.volume(multiattach=True)
        one, two = self.cloud.server(), self.cloud.server('web2', 'cell2')
        mapping_id, row_id = self.cloud.attach(one, volume_id)
        other, other_row = self.cloud.attach(two, volume_id, 'cell2')
        self.reset(one, volume_id)
        self.assertReset(mapping_id, row_id)
        self.assertEqual(('in-use', 'attached'), self.volume(volume_id))
        self.assertEqual(0, self.mapping(other, 'cell2')['deleted'])
        self.assertFalse(self.row(other_row)['deleted'])
        self.reset(two, volume_id)
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_an_attach_that_never_finished(self) -> None:
        server_id = self.cloud.server()
        volume_id = self.cloud.volume(
            status='reserved', attach_status='detached'
        )
        row_id = self.cloud.row(
            volume_id, server_id, attach_status='reserved', connector=None
        )
        mapping_id = self.cloud.mapping(
            server_id, volume_id, row_id, connection_info=None
        )
        self.reset(server_id, volume_id)
        self.assertReset(mapping_id, row_id)
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_nova_alone_still_has_it(self) -> None:
        server_id = self.cloud.server()
        volume_id = self.cloud.volume(
            status='detaching', attach_status='detached'
        )
        row_id = self.cloud.row(volume_id, server_id, deleted=True)
        mapping_id = self.cloud.mapping(server_id, volume_id, row_id)
        self.reset(server_id, volume_id)
        self.assertEqual(mapping_id, self.mapping(mapping_id)['deleted'])
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_our_own_half(self) -> None:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        row_id = self.cloud.row(volume_id, server_id)
        mapping_id = self.cloud.mapping(
            server_id, volume_id, row_id, dropped=True
        )
        self.reset(server_id, volume_id)
        self.assertReset(mapping_id, row_id)
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_not_what_nova_never_had(self) -> None:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        self.cloud.row(volume_id, server_id)
        self.refuse('nova does not map it', server_id, volume_id)

    def test_never_a_root(self) -> None:
        server_id, volume_id, *_ = self.attached(boot_index=0)
        self.refuse('root', server_id, volume_id)

    def test_the_update_itself_never_takes_a_root(self) -> None:
        server_id, volume_id, mapping_id, _ = self.attached()
        pair = self.pair(server_id, volume_id)
        # As if the checks above it were wrong.
        with mock.patch.object(write._Held, 'require'):
            self.cloud.set('nova_cell1', BDM, mapping_id, boot_index=0)
            before = self.cloud.dump()
            self.assertRaises(
                exceptions.Changed,
                write.reset,
                self.dbs,
                pair,
                agree,
                self.record,
            )
        self.assertUntouched(before)

    def test_not_from_every_status(self) -> None:
        for status in ('error', 'deleting', 'extending', 'retyping', 'what'):
            self.cloud.clear()
            server_id, volume_id, *_ = self.attached()
            self.cloud.set('cinder', VOLUMES, volume_id, status=status)
            self.refuse(status, server_id, volume_id)

    def test_not_during_a_migration(self) -> None:
        server_id, volume_id, *_ = self.attached()
        for word in ('migrating', f'target:{volume_id}', 'completing'):
            self.cloud.set('cinder', VOLUMES, volume_id, migration_status=word)
            self.refuse('migrates', server_id, volume_id)
        self.cloud.set(
            'cinder', VOLUMES, volume_id, migration_status='success'
        )
        self.reset(server_id, volume_id)

    def test_not_under_a_server_that_is_not_off(self) -> None:
        server_id, volume_id, *_ = self.attached()
        with self.cloud.engines['nova_cell1'].begin() as connection:
            connection.execute(
                sa.update(tables.instances).values(task_state='powering-on')
            )
        self.refuse('not off', server_id, volume_id)

    def test_what_the_engine_says_under_the_locks(self) -> None:
        server_id, volume_id, *_ = self.attached()
        self.cloud.compute()
        before = self.cloud.dump()
        pair = self.pair(server_id, volume_id)
        seen = []

        def confirm(now: facts.Observation) -> None:
            seen.append(now)
            raise exceptions.Refused('no longer')

        self.assertRaises(
            exceptions.Refused,
            write.reset,
            self.dbs,
            pair,
            confirm,
            self.record,
        )
        self.assertUntouched(before)
        self.assertEqual([pair], list(facts.pairs(seen[0])))
        self.assertTrue(facts.pairs(seen[0])[0].compute_up)

    def test_other_records_than_planned(self) -> None:
        server_id, volume_id, *_ = self.attached()
        pair = self.pair(server_id, volume_id)
        self.cloud.row(volume_id, server_id, attach_status='attaching')
        before = self.cloud.dump()
        self.assertRaises(
            exceptions.Changed,
            write.reset,
            self.dbs,
            pair,
            agree,
            self.record,
        )
        self.assertUntouched(before)

    def test_never_available_while_any_cell_maps_it(self) -> None:
        for cell in fixture.CELLS:
            for info in ('{"data": {}}', None):
                self.cloud.clear()
                server_id, volume_id, *_ = self.attached()
                other = self.cloud.server('other', cell)
                self.cloud.mapping(
                    other, volume_id, 'a1', cell, connection_info=info
                )
                self.refuse(f'in cell {cell} maps it', server_id, volume_id)

    def test_a_blank_mapping_holds_nothing(self) -> None:
        server_id, volume_id, *_ = self.attached()
        other = self.cloud.server('other', 'cell2')
        self.cloud.mapping(
            other, volume_id, None, 'cell2', connection_info=None
        )
        self.reset(server_id, volume_id)
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_a_mapping_that_comes_between_the_commits(self) -> None:
        # It cannot, under the lock; what if it did?
        server_id, volume_id, mapping_id, row_id = self.attached()
        other = self.cloud.server('other', 'cell2')
        real = write._write

        def write_and_attach(held: ty.Any, half: ty.Any) -> None:
            real(held, half)
            if half[0].table is BDM and half[0].new['deleted']:
                held.on.cells['cell2'].rollback()
                self.cloud.mapping(other, volume_id, 'a1', 'cell2')

        with mock.patch.object(write, '_write', write_and_attach):
            self.assertRaises(
                exceptions.Changed, self.reset, server_id, volume_id
            )
        self.assertEqual(0, self.mapping(mapping_id)['deleted'])
        self.assertFalse(self.row(row_id)['deleted'])
        self.assertEqual(('in-use', 'attached'), self.volume(volume_id))

    # undo

    def test_undo_is_the_inverse(self) -> None:
        server_id, volume_id, *_ = self.attached()
        before = self.cloud.dump()
        self.reset(server_id, volume_id)
        write.undo(self.dbs, self.olds[0], agree, self.record)
        self.assertUntouched(before)
        self.assertEqual('undo', self.olds[1]['kind'])

    def test_undo_twice_is_once(self) -> None:
        server_id, volume_id, *_ = self.attached()
        before = self.cloud.dump()
        self.reset(server_id, volume_id)
        for _ in range(2):
            write.undo(self.dbs, self.olds[0], agree, self.record)
        self.assertUntouched(before)
        self.assertEqual(2, len(self.olds))

    def refuse_undo(self) -> str:
        before = self.cloud.dump()
        error = self.assertRaises(
            exceptions.Changed,
            write.undo,
            self.dbs,
            self.olds[0],
            agree,
            self.record,
        )
        self.assertUntouched(before)
        return str(error)

    def test_no_undo_after_another_attach(self) -> None:
        server_id, volume_id, *_ = self.attached()
        self.reset(server_id, volume_id)
        other = self.cloud.server('other', 'cell2')
        self.cloud.attach(other, volume_id, 'cell2')
        self.refuse_undo()

    def test_no_undo_beside_a_mapping_with_the_same_number(self) -> None:
        server_id, volume_id, mapping_id, _row = self.attached()
        self.reset(server_id, volume_id)
        other = self.cloud.server('other', 'cell2')
        self.cloud.mapping(other, volume_id, None, 'cell2', id=mapping_id)
        self.refuse_undo()

    def test_no_undo_after_it_was_attached_again(self) -> None:
        server_id, volume_id, *_ = self.attached()
        self.reset(server_id, volume_id)
        self.cloud.attach(server_id, volume_id)
        self.refuse_undo()

    def test_no_undo_of_a_changed_row(self) -> None:
        server_id, volume_id, mapping_id, _row = self.attached()
        self.reset(server_id, volume_id)
        self.cloud.set('nova_cell1', BDM, mapping_id, connection_info='{}')
        self.refuse_undo()

    def test_no_undo_of_a_volume_that_goes(self) -> None:
        server_id, volume_id, *_ = self.attached()
        self.reset(server_id, volume_id)
        self.cloud.set('cinder', VOLUMES, volume_id, status='deleting')
        self.refuse_undo()

    def test_no_undo_to_available_and_mapped(self) -> None:
        server_id = self.cloud.server()
        volume_id = self.cloud.volume(
            status='available', attach_status='detached'
        )
        self.cloud.mapping(server_id, volume_id, 'a1')
        self.reset(server_id, volume_id)
        self.assertIn('available before', self.refuse_undo())

    def test_undo_between_whose_commits_it_becomes_available(self) -> None:
        server_id, volume_id, mapping_id, _row = self.attached()
        self.reset(server_id, volume_id)
        real = write._write

        def write_and_free(held: ty.Any, half: ty.Any) -> None:
            real(held, half)
            if half[0].table is not BDM:
                self.cloud.set(
                    'cinder', VOLUMES, volume_id, status='available'
                )

        with mock.patch.object(write, '_write', write_and_free):
            self.assertRaises(
                exceptions.Changed,
                write.undo,
                self.dbs,
                self.olds[0],
                agree,
                self.record,
            )
        self.assertEqual(mapping_id, self.mapping(mapping_id)['deleted'])

    def test_the_update_is_conditional_on_all_that_was_read(self) -> None:
        server_id, volume_id, *_ = self.attached()
        self.reset(server_id, volume_id)
        write.undo(self.dbs, self.olds[0], agree, self.record)
        for values in self.olds[0]['changes']:
            change = write._Change.from_dict(values)
            others = {name: 'x' for name in (*change.old, *change.bound)} | {
                'deleted': 7,
                'deleted_at': '2026-01-01T00:00:00',
            }
            others |= {
                name: others['deleted_at']
                for name in ('detach_time', 'updated_at')
            }
            for name in (*change.old, *change.bound):
                wrong = dataclasses.replace(
                    change,
                    old=change.old | {name: others[name]}
                    if name in change.old
                    else change.old,
                    bound=change.bound | {name: others[name]}
                    if name in change.bound
                    else change.bound,
                )
                self.assertChanges(wrong, False)
            self.assertChanges(change, True)

    def assertChanges(self, change: ty.Any, changes: bool) -> None:
        database = (
            self.dbs.cinder
            if change.database == 'cinder'
            else self.dbs.cells[change.database]
        )
        with database.connect(write=True) as connection:
            if changes:
                write._apply(connection, change)
            else:
                self.assertRaises(
                    exceptions.Changed, write._apply, connection, change
                )

    def test_a_forged_journal(self) -> None:
        server_id, volume_id, *_ = self.attached()
        self.reset(server_id, volume_id)
        old = self.olds[0]
        nova, row, volume = old['changes']
        for forged in (
            {**nova, 'table': 'instances'},
            {**nova, 'database': 'cinder'},
            {**nova, 'old': {'boot_index': 0}, 'new': {'boot_index': 1}},
            {**row, 'bound': {}},
            {**row, 'bound': {**row['bound'], 'volume_id': 'x'}},
            {**volume, 'id': 'x'},
            {**volume, 'more': 1},
        ):
            self.assertRaises(
                exceptions.Refused,
                write.undo,
                self.dbs,
                {**old, 'changes': [forged]},
                agree,
                self.record,
            )

    # repair

    def repair(self, server_id: str, volume_id: str, row_id: str) -> None:
        pair = self.pair(server_id, volume_id)
        write.repair(self.dbs, pair, row_id, agree, self.record)

    def test_repair_what_a_reset_of_cinder_alone_did(self) -> None:
        server_id, volume_id, _bdm, row_id = self.attached(boot_index=0)
        before = self.cloud.dump()
        for status in ('available', 'reserved', 'detaching', 'error'):
            self.cloud.set(
                'cinder',
                VOLUMES,
                volume_id,
                status=status,
                attach_status='detached',
            )
            self.cloud.set(
                'cinder',
                ROWS,
                row_id,
                deleted=True,
                deleted_at=fixture.now(),
                detach_time=fixture.now(),
                attach_status='detached',
            )
            self.repair(server_id, volume_id, row_id)
            self.assertUntouched(before)

    def test_repair_words(self) -> None:
        server_id, volume_id, _mapping, row_id = self.attached()
        self.cloud.set('cinder', ROWS, row_id, attach_status='attaching')
        self.cloud.set('cinder', VOLUMES, volume_id, status='attaching')
        self.repair(server_id, volume_id, row_id)
        self.assertEqual('attached', self.row(row_id)['attach_status'])
        self.assertEqual(('in-use', 'attached'), self.volume(volume_id))

    def test_nothing_to_repair(self) -> None:
        server_id, volume_id, _mapping, row_id = self.attached()
        before = self.cloud.dump()
        self.repair(server_id, volume_id, row_id)
        self.assertUntouched(before)
        self.assertEqual([], self.olds)

    def refuse_repair(self, *ids: str) -> None:
        before = self.cloud.dump()
        self.assertRaises(exceptions.Changed, self.repair, *ids)
        self.assertUntouched(before)

    def test_no_repair(self) -> None:
        set_ = self.cloud.set
        server_id, volume_id, mapping_id, row_id = self.attached()
        set_('cinder', VOLUMES, volume_id, status='available')
        self.refuse_repair(server_id, volume_id, 'another')
        set_('cinder', ROWS, row_id, connector=None)
        self.refuse_repair(server_id, volume_id, row_id)
        set_('cinder', ROWS, row_id, connector='{}')
        set_('nova_cell1', BDM, mapping_id, connection_info=None)
        self.refuse_repair(server_id, volume_id, row_id)
        set_('nova_cell1', BDM, mapping_id, connection_info='{"a": 1}')
        set_('cinder', VOLUMES, volume_id, status='deleting')
        self.refuse_repair(server_id, volume_id, row_id)
        set_('cinder', VOLUMES, volume_id, status='available')
        other = self.cloud.server('other', 'cell2')
        self.cloud.mapping(other, volume_id, 'a1', 'cell2')
        self.refuse_repair(server_id, volume_id, row_id)
        set_('cinder', VOLUMES, volume_id, multiattach=True)
        self.repair(server_id, volume_id, row_id)

    # release

    def release(self, server_id: str, volume_id: str, *rows: str) -> None:
        pair = self.pair(server_id, volume_id)
        write.release(self.dbs, pair, rows, agree, self.record)

    def test_release_a_leftover(self) -> None:
        server_id, volume_id, _bdm, row_id = self.attached()
        extra = self.cloud.row(volume_id, server_id, attach_status='attaching')
        self.release(server_id, volume_id, extra)
        self.assertTrue(self.row(extra)['deleted'])
        self.assertFalse(self.row(row_id)['deleted'])
        self.assertEqual(('in-use', 'attached'), self.volume(volume_id))

    def test_release_what_nova_dropped(self) -> None:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        row_id = self.cloud.row(volume_id, server_id)
        self.release(server_id, volume_id, row_id)
        self.assertTrue(self.row(row_id)['deleted'])
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_a_row_with_its_servers_id_as_a_user_wrote_it(self) -> None:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        for written in server_id.upper(), server_id.replace('-', ''):
            row_id = self.cloud.row(volume_id, written)
            before = self.cloud.dump()
            self.release(server_id, volume_id, row_id)
            self.assertTrue(self.row(row_id)['deleted'])
            write.undo(self.dbs, self.olds[-1], agree, self.record)
            self.assertUntouched(before)
            self.release(server_id, volume_id, row_id)
            self.cloud.set('cinder', VOLUMES, volume_id, status='in-use')

    def test_release_of_a_server_that_is_gone(self) -> None:
        volume_id = self.cloud.volume()
        row_id = self.cloud.row(volume_id, 'gone')
        self.release('gone', volume_id, row_id)
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_release_a_status(self) -> None:
        volume_id = self.cloud.volume(
            status='detaching', attach_status='detached'
        )
        pair = facts.Pair(
            server_id='',
            volume_id=volume_id,
            server=None,
            volume=None,
            mappings=(),
            rows=(),
            dropped=(),
            old_rows=(),
            other_mappings=(),
            other_rows=(),
            unfinished=(),
            migrating=None,
            building=False,
            compute_up=None,
        )
        write.release(self.dbs, pair, (), agree, self.record)
        self.assertEqual(('available', 'detached'), self.volume(volume_id))

    def test_no_release(self) -> None:
        server_id, volume_id, _mapping, row_id = self.attached()
        extra = self.cloud.row(volume_id, server_id, attach_status='attaching')
        for rows in ((row_id,), ('unknown',), (extra, 'unknown')):
            before = self.cloud.dump()
            self.assertRaises(
                exceptions.Changed, self.release, server_id, volume_id, *rows
            )
            self.assertUntouched(before)

    def test_no_release_while_a_legacy_mapping_lives(self) -> None:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        row_id = self.cloud.row(volume_id, server_id)
        self.cloud.mapping(server_id, volume_id, None)
        before = self.cloud.dump()
        self.assertRaises(
            exceptions.Changed, self.release, server_id, volume_id, row_id
        )
        self.assertUntouched(before)


class Crashes:
    """Every write, ended at every point, in every way."""

    errors: dict[str, ty.Any]

    def every_point(
        self,
        prepare: ty.Callable[[], tuple[str, str]],
        act: ty.Callable[[str, str], None],
        again: ty.Callable[[str, str], None],
        check: ty.Callable[[str, str], None],
    ) -> None:
        one = prepare, act, again, check
        # Before the first write, at some points; then at every point.
        self.points(*one, 'killed', Killed, armed=True, step=9)
        for name, error in self.errors.items():
            self.points(*one, name, error, armed=False, step=1)

    def points(
        self,
        prepare: ty.Callable[[], tuple[str, str]],
        act: ty.Callable[[str, str], None],
        again: ty.Callable[[str, str], None],
        check: ty.Callable[[str, str], None],
        name: str,
        error: ty.Any,
        armed: bool,
        step: int,
    ) -> None:
        for at in itertools.count(1, step):
            self.cloud.clear()
            self.olds.clear()
            ids = prepare()
            raised: BaseException | None = None
            down = name == 'down'
            with Crash(self.dbs, at, error, armed, down) as self.crash:
                try:
                    act(*ids)
                except (Killed, KeyboardInterrupt, exceptions.DrpError) as e:
                    raised = e
            fired, self.crash = self.crash.fired, None
            where = f'{name} at {at}: {raised!r}'
            self.assertEqual([], self.cloud.violations(), where)
            if not fired:
                self.assertIsNone(raised, where)
                self.assertGreater(at, 3)
                return
            again(*ids)
            check(*ids)
            self.assertEqual([], self.cloud.violations(), where)

    def reset_again(self, server_id: str, volume_id: str) -> None:
        """What the command does when it runs again."""
        if self.pairs(server_id, volume_id):
            self.reset(server_id, volume_id)

    def check_reset(self, server_id: str, volume_id: str) -> None:
        self.assertEqual([], self.pairs(server_id, volume_id))

    def test_reset(self) -> None:
        def prepare() -> tuple[str, str]:
            server_id, volume_id = self.cloud.server(), self.cloud.volume()
            self.cloud.attach(server_id, volume_id)
            return server_id, volume_id

        def check(server_id: str, volume_id: str) -> None:
            self.check_reset(server_id, volume_id)
            self.assertEqual(('available', 'detached'), self.volume(volume_id))

        self.every_point(prepare, self.reset, self.reset_again, check)

    def test_not_known_is_said(self) -> None:
        """Nova's half is committed, and then no database answers."""
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        self.cloud.attach(server_id, volume_id)
        error = self.errors['down']
        # Two statements before it; before and after the commit.
        with Crash(self.dbs, 4, error, False, True) as self.crash:
            said = self.assertRaises(
                exceptions.DatabaseError, self.reset, server_id, volume_id
            )
        self.assertIn('not known whether it was done', str(said))
        self.crash = None
        self.assertEqual([], self.cloud.violations())
        self.assertEqual((), self.pair(server_id, volume_id).mappings)

    def test_reset_of_a_half(self) -> None:
        def prepare() -> tuple[str, str]:
            server_id, volume_id = self.cloud.server(), self.cloud.volume()
            row_id = self.cloud.row(volume_id, server_id)
            self.cloud.mapping(server_id, volume_id, row_id, dropped=True)
            return server_id, volume_id

        self.every_point(
            prepare, self.reset, self.reset_again, self.check_reset
        )

    def test_reset_of_one_of_two(self) -> None:
        def prepare() -> tuple[str, str]:
            one, two = self.cloud.server(), self.cloud.server('b', 'cell2')
            volume_id = self.cloud.volume(multiattach=True)
            self.cloud.attach(one, volume_id)
            self.cloud.attach(two, volume_id, 'cell2')
            return one, volume_id

        def check(server_id: str, volume_id: str) -> None:
            self.check_reset(server_id, volume_id)
            self.assertEqual(('in-use', 'attached'), self.volume(volume_id))

        self.every_point(prepare, self.reset, self.reset_again, check)

    def test_undo(self) -> None:
        def prepare() -> tuple[str, str]:
            server_id, volume_id = self.cloud.server(), self.cloud.volume()
            self.cloud.attach(server_id, volume_id)
            self.before = self.cloud.dump()
            self.reset(server_id, volume_id)
            return server_id, volume_id

        def undo(*ids: str) -> None:
            write.undo(self.dbs, self.olds[0], agree, self.record)

        self.every_point(
            prepare, undo, undo, lambda *ids: self.assertUntouched(self.before)
        )

    def test_reset_half_done_and_undone(self) -> None:
        """Whatever a killed reset left, its undo takes back."""

        def prepare() -> tuple[str, str]:
            server_id, volume_id = self.cloud.server(), self.cloud.volume()
            self.cloud.attach(server_id, volume_id)
            self.before = self.cloud.dump()
            return server_id, volume_id

        def undo(*ids: str) -> None:
            if self.olds:
                old = self.olds[-1]
                write.undo(self.dbs, old, agree, self.record)

        self.every_point(
            prepare,
            self.reset,
            undo,
            lambda *ids: self.assertUntouched(self.before),
        )

    def test_repair(self) -> None:
        def prepare() -> tuple[str, str]:
            server_id = self.cloud.server()
            volume_id = self.cloud.volume(
                status='reserved', attach_status='detached'
            )
            self.row_id = self.cloud.row(volume_id, server_id, deleted=True)
            self.cloud.mapping(server_id, volume_id, self.row_id, boot_index=0)
            return server_id, volume_id

        def repair(server_id: str, volume_id: str) -> None:
            pair = self.pair(server_id, volume_id)
            write.repair(self.dbs, pair, self.row_id, agree, self.record)

        def check(server_id: str, volume_id: str) -> None:
            self.assertEqual(('in-use', 'attached'), self.volume(volume_id))
            self.assertFalse(self.row(self.row_id)['deleted'])

        self.every_point(prepare, repair, repair, check)


ONCE = {
    2013: 'Lost connection to server during query',
    1213: 'Deadlock found when trying to get lock; try restarting transaction',
    1047: 'WSREP has not yet prepared node for application use',
}


def errors(kind: type[Exception]) -> dict[str, ty.Any]:
    found: dict[str, ty.Any] = {
        'killed': Killed,
        'interrupted': KeyboardInterrupt,
    }
    for code, text in ONCE.items():
        found[str(code)] = lambda code=code, text=text: kind(code, text)
    return {**found, 'down': found['2013']}


class TestWrites(Writes, Base):
    pass


class TestCrashes(Crashes, Base):
    errors = errors(sqlite3.OperationalError)


needs_mariadb = unittest.skipUnless(
    fixture.MARIADB,
    'OSC_DRP_TEST_MARIADB is not set: the URL of a server where databases'
    ' may be created',
)


@needs_mariadb
class TestWritesMariaDB(Writes, Base):
    server_url = fixture.MARIADB


@needs_mariadb
class TestCrashesMariaDB(Crashes, Base):
    server_url = fixture.MARIADB
    errors = errors(pymysql.err.OperationalError)


@needs_mariadb
class TestLocksMariaDB(Base):
    """What only a server with row locks can show."""

    server_url = fixture.MARIADB

    def attached(self) -> tuple[str, str]:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        self.mapping_id, self.row_id = self.cloud.attach(server_id, volume_id)
        return server_id, volume_id

    def hold(self, database: str, table: sa.Table) -> ty.Any:
        """A transaction of somebody else's that holds a table's rows."""
        connection = self.cloud.engines[database].connect()
        self.addCleanup(connection.close)
        connection.execute(sa.select(table.c.id).with_for_update())
        return connection

    def test_rows_that_others_hold(self) -> None:
        server_id, volume_id = self.attached()
        before = self.cloud.dump()
        sleeps: list[float] = []
        with (
            mock.patch.object(write, '_sleep', sleeps.append),
            mock.patch.object(write, '_DEADLOCK_TRIES', 2),
        ):
            for database, table in (
                ('cinder', VOLUMES),
                ('cinder', ROWS),
                ('nova_cell1', tables.instances),
                ('nova_cell1', BDM),
            ):
                holder = self.hold(database, table)
                error = self.assertRaises(
                    engines.Deadlock, self.reset, server_id, volume_id
                )
                self.assertIn('Others hold rows', str(error))
                holder.close()
                if table is VOLUMES:
                    # 5 s each: the others need it once.
                    write._DEADLOCK_TRIES = 1
        self.assertUntouched(before)
        self.assertEqual(1, len(sleeps))

    def test_what_comes_while_we_wait_is_seen(self) -> None:
        """READ COMMITTED: the lock is worth nothing with an old snapshot."""
        server_id, volume_id = self.attached()
        holder = self.cloud.engines['cinder'].connect()
        self.addCleanup(holder.close)
        holder.execute(sa.update(VOLUMES).values(status='detaching'))
        seen: list[str] = []

        def confirm(now: facts.Observation) -> None:
            seen.append(now.volumes[volume_id].status)

        pair = self.pair(server_id, volume_id)
        thread = threading.Thread(
            target=write.reset, args=(self.dbs, pair, confirm, self.record)
        )
        thread.start()
        thread.join(1)
        self.assertTrue(thread.is_alive())
        holder.commit()
        thread.join(20)
        self.assertEqual(['detaching'], seen)

    def test_many_at_once(self) -> None:
        """Eight tools, one pair: one does it, the others see it done."""
        server_id, volume_id = self.attached()
        pair = self.pair(server_id, volume_id)
        results: list[str] = []

        def work() -> None:
            try:
                write.reset(self.dbs, pair, agree, self.record)
                results.append('done')
            except exceptions.DrpError as e:
                results.append(type(e).__name__)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(['Changed'] * 3 + ['done'], sorted(results))
        self.assertEqual(1, len(self.olds))

    def test_connections_killed_by_the_server(self) -> None:
        """Each connection dies, at each moment: read what is true."""
        for database in ('cinder', 'nova_cell1'):
            for moment in ('before', 'after'):
                with self.subTest(database=database, moment=moment):
                    self.kill_at_commit(database, moment)

    def kill_at_commit(self, name: str, moment: str) -> None:
        self.cloud.clear()
        server_id, volume_id = self.attached()
        database = {
            'cinder': self.dbs.cinder,
            'nova_cell1': self.dbs.cells['cell1'],
        }[name]
        real = database.engine.dialect.do_commit
        killed = []

        def commit(connection: ty.Any) -> None:
            # Commits without an answer: the server ends the connection.
            if moment == 'after' and not killed:
                real(connection)
            if not killed:
                killed.append(connection.thread_id())
                with self.cloud.admin.connect() as admin:
                    admin.exec_driver_sql(f'KILL {killed[0]}')
            real(connection)

        pair = self.pair(server_id, volume_id)
        with (
            mock.patch.object(database.engine.dialect, 'do_commit', commit),
            mock.patch.object(write, '_sleep', lambda seconds: None),
        ):
            if name == 'cinder' and moment == 'after':
                write.reset(self.dbs, pair, agree, self.record)
            else:
                self.assertRaises(
                    engines.Lost,
                    write.reset,
                    self.dbs,
                    pair,
                    agree,
                    self.record,
                )
        self.assertEqual(1, len(killed))
        self.assertEqual([], self.cloud.violations())
        after = self.pairs(server_id, volume_id)
        if name == 'cinder' and moment == 'after':
            self.assertEqual([], after)
        else:
            # Put back, or never done.
            self.assertEqual([pair], after)

    def test_as_before_is_matched_too(self) -> None:
        """An UPDATE that alters nothing still counts its row."""
        volume_id = self.cloud.volume()
        with self.dbs.cinder.connect(write=True) as connection:
            done = connection.execute(
                sa.update(VOLUMES)
                .where(VOLUMES.c.id == volume_id)
                .values(status='in-use')
            )
            self.assertEqual(1, done.rowcount)
