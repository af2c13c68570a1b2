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

import unittest

import sqlalchemy as sa
import testtools

from osc_drp.db import read
from osc_drp.db import tables
from osc_drp.engine import facts
from osc_drp.tests.unit.db import fixture


class Reads:
    server_url: str | None = None

    def setUp(self) -> None:
        super().setUp()
        self.cloud = self.useFixture(fixture.CloudFixture(self.server_url))

    def observe(self, **kwargs: int) -> facts.Observation:
        return read.observe(self.cloud.dbs, **kwargs)

    def test_empty(self) -> None:
        seen = self.observe()
        self.assertEqual('database', seen.source)
        self.assertRegex(seen.taken_at, r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$')
        self.assertEqual({}, seen.servers)
        self.assertEqual((), seen.rows + seen.mappings + seen.unfinished)
        self.assertEqual(frozenset(), seen.migrating)

    def test_an_attachment(self) -> None:
        server_id = self.cloud.server(locked=True)
        volume_id = self.cloud.volume(multiattach=True)
        mapping_id, row_id = self.cloud.attach(
            server_id, volume_id, tag='t', delete_on_termination=True
        )
        seen = self.observe()
        self.assertEqual(
            facts.Server(
                id=server_id,
                name='web1',
                project_id='blue',
                host='compute1',
                vm_state='stopped',
                task_state=None,
                power_state=facts.SHUTDOWN,
                locked=True,
                root_device='/dev/vda',
                cell='cell1',
            ),
            seen.servers[server_id],
        )
        self.assertEqual(
            facts.Volume(
                id=volume_id,
                name='data',
                project_id='blue',
                status='in-use',
                multiattach=True,
                attach_status='attached',
                host='store1@lvm#pool',
            ),
            seen.volumes[volume_id],
        )
        (mapping,), (row,) = seen.mappings, seen.rows
        self.assertEqual(
            facts.Mapping(
                server_id=server_id,
                volume_id=volume_id,
                device='/dev/vdb',
                attachment_id=row_id,
                root=False,
                tag='t',
                delete_on_termination=True,
                connected=True,
                uuid=mapping.uuid,
                id=mapping_id,
                cell='cell1',
                created_at=mapping.created_at,
            ),
            mapping,
        )
        self.assertEqual(
            facts.Row(
                id=row_id,
                volume_id=volume_id,
                server_id=server_id,
                attach_status='attached',
                device='/dev/vdb',
                host='compute1',
                connector=True,
                created_at=row.created_at,
            ),
            row,
        )
        self.assertRegex(row.created_at or '', 'T.*Z$')
        self.assertNotIn('S3CRET', repr(seen))

    def test_ids_in_a_form_of_a_users_choice(self) -> None:
        server_id = self.cloud.server()
        volume_id = self.cloud.volume()
        self.cloud.mapping(server_id, volume_id.upper(), None)
        self.cloud.row(volume_id, server_id.replace('-', ''))
        self.cloud.row(volume_id, None)
        seen = self.observe()
        (mapping,) = seen.mappings
        self.assertEqual(volume_id, mapping.volume_id)
        self.assertEqual(
            {server_id, None}, {row.server_id for row in seen.rows}
        )

    def test_every_cell(self) -> None:
        ids = {self.cloud.server(cell, cell): cell for cell in fixture.CELLS}
        volume_id = self.cloud.volume()
        for server_id, cell in ids.items():
            self.cloud.mapping(server_id, volume_id, 'a', cell)
        seen = self.observe()
        self.assertEqual(ids, {s.id: s.cell for s in seen.servers.values()})
        self.assertEqual(ids, {m.server_id: m.cell for m in seen.mappings})

    def test_what_is_deleted_is_left_out(self) -> None:
        server_id = self.cloud.server(deleted=7)
        gone = self.cloud.volume(deleted=True)
        self.cloud.row(gone, server_id)
        volume_id = self.cloud.volume()
        self.cloud.mapping(server_id, volume_id, 'a', dropped=True)
        self.cloud.mapping(
            server_id, volume_id, None, destination_type='local'
        )
        self.cloud.mapping(server_id, None, None)
        self.cloud.row(self.cloud.volume(), server_id, deleted=True)
        seen = self.observe()
        self.assertEqual({}, seen.servers)
        self.assertNotIn(gone, seen.volumes)
        self.assertEqual((), seen.mappings + seen.rows)

    def test_deleted_rows_of_volumes_in_use(self) -> None:
        server_id = self.cloud.server()
        mapped, attached = self.cloud.volume(), self.cloud.volume()
        self.cloud.mapping(server_id, mapped, 'gone')
        self.cloud.row(attached, server_id)
        old = {
            self.cloud.row(
                volume_id,
                server_id,
                deleted=True,
                deleted_at=fixture.now(-60),
                attach_status='detached',
            )
            for volume_id in (mapped, attached)
        }
        seen = self.observe()
        found = [row for row in seen.rows if row.deleted]
        self.assertEqual(old, {row.id for row in found})
        self.assertIsNotNone(found[0].deleted_at)
        self.assertEqual(1, len(seen.rows) - len(found))

    def test_dropped_mappings_of_live_rows(self) -> None:
        server_id, volume_id = self.cloud.server(), self.cloud.volume()
        row_id = self.cloud.row(volume_id, server_id)
        ours = self.cloud.mapping(server_id, volume_id, row_id, dropped=True)
        self.cloud.mapping(server_id, volume_id, 'older', dropped=True)
        self.cloud.mapping(server_id, volume_id, None, dropped=True)
        (mapping,) = self.observe().mappings
        self.assertEqual(ours, mapping.id)
        self.assertTrue(mapping.deleted)
        (pair,) = facts.pairs(self.observe())
        self.assertEqual((mapping,), pair.dropped)

    def test_connected(self) -> None:
        server_id = self.cloud.server()
        for info, connected in (
            (None, False),
            ('', False),
            ('null', False),
            ('{}', False),
            ('{"data": {}}', True),
        ):
            self.cloud.mapping(
                server_id,
                self.cloud.volume(),
                None,
                connection_info=info,
                tag=repr(info),
            )
            found = {m.tag: m.connected for m in self.observe().mappings}
            self.assertEqual(connected, found[repr(info)], info)

    def test_hosts_of_rows(self) -> None:
        server_id = self.cloud.server()
        for connector, host, has in (
            (None, 'old-host', False),
            ('{"host": "c9"}', 'c9', True),
            ('{}', 'old-host', True),
            ('[1]', 'old-host', True),
            ('broken {', 'old-host', True),
            ('{"host": 7}', 'old-host', True),
        ):
            row_id = self.cloud.row(
                self.cloud.volume(),
                server_id,
                connector=connector,
                attached_host='old-host',
                attach_status='whatever',
            )
            row = next(r for r in self.observe().rows if r.id == row_id)
            self.assertEqual((host, has), (row.host, row.connector))
            self.assertEqual('whatever', row.attach_status)

    def test_rows_without_a_server(self) -> None:
        self.cloud.row(self.cloud.volume(), None)
        (row,) = self.observe().rows
        self.assertIsNone(row.server_id)

    def test_roots(self) -> None:
        bfv = self.cloud.server('bfv', image_ref='')
        mapped, plain = self.cloud.server('mapped'), self.cloud.server()
        volume_id = self.cloud.volume()
        self.cloud.attach(mapped, volume_id, boot_index=0)
        seen = self.observe()
        self.assertTrue(seen.mappings[0].root)
        self.assertTrue(seen.servers[bfv].volume_backed)
        self.assertTrue(seen.servers[mapped].volume_backed)
        self.assertIsNone(seen.servers[plain].volume_backed)

    def test_odd_servers(self) -> None:
        server_id = self.cloud.server(
            display_name=None,
            hostname='h1',
            project_id=None,
            vm_state=None,
            power_state=None,
            locked=None,
            launched_at=None,
            host=None,
        )
        found = self.observe().servers[server_id]
        self.assertEqual(
            ('h1', '', ''), (found.name, found.project_id, found.vm_state)
        )
        self.assertEqual(facts.NOSTATE, found.power_state)
        self.assertFalse(found.launched or found.locked)

    def test_a_server_in_two_cells(self) -> None:
        server_id = self.cloud.server()
        with self.cloud.engines['nova_api'].begin() as connection:
            connection.execute(sa.delete(tables.instance_mappings))
        self.cloud.server(cell='cell2', uuid=server_id, host='compute2')
        found = self.observe().servers[server_id]
        self.assertEqual(('cell2', 'compute2'), (found.cell, found.host))

    def test_building(self) -> None:
        live = self.cloud.server()
        for server_id in (live, 'to-be', None):
            self.cloud.insert(
                'nova_api', tables.build_requests, instance_uuid=server_id
            )
        self.assertEqual({'to-be'}, self.observe().building)

    def test_migrations(self) -> None:
        moving = set()
        for status, open_ in (
            ('accepted', True),
            ('running', True),
            ('finished', True),
            ('post-migrating', True),
            ('confirmed', False),
            ('reverted', False),
            ('error', False),
            ('failed', False),
            ('completed', False),
            ('cancelled', False),
            ('done', False),
        ):
            server_id = self.cloud.server(status)
            self.cloud.migration(server_id, status)
            moving |= {server_id} if open_ else set()
        self.cloud.migration('gone', 'accepted')
        self.assertEqual(moving, self.observe().migrating)

    def test_actions(self) -> None:
        server_id = self.cloud.server()
        self.cloud.attach(server_id, self.cloud.volume())
        idle = self.cloud.server('no volumes')
        for name, events in (
            ('done', (True, True)),
            ('half', (True, False)),
            ('not begun', ()),
        ):
            self.cloud.action(server_id, name, events=events)
        self.cloud.action(
            server_id, 'ended', events=(), finish_time=fixture.now()
        )
        self.cloud.action(idle, 'half', events=(False,))
        self.cloud.action(server_id, 'deleted', events=(), deleted=3)
        found = self.observe().unfinished
        self.assertEqual(
            [(server_id, 'half'), (server_id, 'not begun')],
            sorted((a.server_id, a.action) for a in found),
        )
        self.assertEqual({False}, {a.finished for a in found})

    def test_actions_since(self) -> None:
        server_id = self.cloud.server(cell='cell2')
        other = self.cloud.server('other')
        for seconds, action in ((-20, 'b'), (-600, 'old'), (-30, 'a')):
            for server in (server_id, other):
                self.cloud.action(
                    server,
                    action,
                    'cell2',
                    user_id=None,
                    start_time=fixture.now(seconds),
                )
        since = fixture.now(-60).isoformat() + 'Z'
        found = read.actions_since(self.cloud.dbs, [server_id], since)
        self.assertEqual(['a', 'b'], [a.action for a in found])
        self.assertEqual({server_id}, {a.server_id for a in found})
        self.assertEqual((None, True), (found[0].user_id, found[0].finished))
        self.assertEqual([], read.actions_since(self.cloud.dbs, [], since))

    def test_services(self) -> None:
        compute, cinder = self.cloud.compute, self.cloud.cinder_service
        compute('up')
        compute('cell2', 'cell2')
        compute('silent', last_seen_up=fixture.now(-90))
        compute('never', last_seen_up=None)
        compute('new', last_seen_up=None, created_at=fixture.now())
        compute('forced', forced_down=True)
        compute('gone', deleted=9)
        compute('other', binary='nova-conductor')
        cinder('cinder-volume', 'up@lvm')
        cinder('cinder-backup', 'silent', updated_at=fixture.now(-90))
        cinder('cinder-volume', 'never', updated_at=None)
        cinder('cinder-scheduler', 'other')
        cinder('cinder-volume', 'gone', deleted=True)
        found = {(s.binary, s.host): s.up for s in self.observe().services}
        self.assertEqual(
            {
                ('nova-compute', 'up'): True,
                ('nova-compute', 'cell2'): True,
                ('nova-compute', 'silent'): False,
                ('nova-compute', 'never'): False,
                ('nova-compute', 'new'): True,
                ('nova-compute', 'forced'): False,
                ('cinder-volume', 'up@lvm'): True,
                ('cinder-backup', 'silent'): False,
                ('cinder-volume', 'never'): False,
            },
            found,
        )
        later = self.observe(down_after=120).services
        self.assertTrue(next(s.up for s in later if s.host == 'silent'))
        cells = {s.host: s.cell for s in later}
        self.assertEqual('cell2', cells['cell2'])
        self.assertIsNone(cells['up@lvm'])

    def test_one_volume_is_as_in_the_whole(self) -> None:
        one, two = self.cloud.server(), self.cloud.server('b', 'cell2')
        volume_id = self.cloud.volume(multiattach=True)
        self.cloud.attach(one, volume_id)
        self.cloud.attach(two, volume_id, 'cell2', boot_index=0)
        self.cloud.row(volume_id, one, deleted=True)
        self.cloud.row(volume_id, None)
        self.cloud.attach(one, self.cloud.volume('other'))
        self.cloud.attach(self.cloud.server('c'), self.cloud.volume())
        self.cloud.action(one, 'detach_volume', events=(False,))
        self.cloud.migration(two, 'running', 'cell2')
        self.cloud.compute()
        whole = self.observe()
        with self.cloud.dbs.connect() as on:
            part = read.observe_on(on, volume_id=volume_id)
        self.assertEqual({volume_id}, set(part.volumes))
        self.assertEqual({one, two}, set(part.servers))
        self.assertEqual(
            [p for p in facts.pairs(whole) if p.volume_id == volume_id],
            list(facts.pairs(part)),
        )

    def test_the_number_of_statements_does_not_grow(self) -> None:
        counts = []
        for size in (1, 30):
            for number in range(size):
                server_id = self.cloud.server(f's{number}')
                self.cloud.attach(server_id, self.cloud.volume())
            counts.append(self.count_statements())
        self.assertEqual(counts[0], counts[1])
        self.assertLess(counts[0], 60)

    def count_statements(self) -> int:
        count = 0

        def one_more(*args: object) -> None:
            nonlocal count
            count += 1

        for database in self.cloud.dbs.all():
            sa.event.listen(database.engine, 'before_cursor_execute', one_more)
        self.observe()
        for database in self.cloud.dbs.all():
            sa.event.remove(database.engine, 'before_cursor_execute', one_more)
        return count

    def test_long_lists_are_cut(self) -> None:
        self.patch(read, '_CHUNK', 2)
        for _ in range(5):
            self.cloud.attach(self.cloud.server(), self.cloud.volume())
        seen = self.observe()
        self.assertEqual(5, len(facts.pairs(seen)))


class TestRead(Reads, testtools.TestCase):
    pass


@unittest.skipUnless(fixture.MARIADB, 'OSC_DRP_TEST_MARIADB is not set')
class TestReadMariaDB(Reads, testtools.TestCase):
    server_url = fixture.MARIADB
