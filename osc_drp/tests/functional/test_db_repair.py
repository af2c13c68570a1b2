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

"""``openstack drp db repair`` and ``db undo`` as a whole, on SQLite files."""

import typing as ty

import sqlalchemy as sa

from osc_drp.db import tables
from osc_drp.engine import journal
from osc_drp.tests.functional import base
from osc_drp.tests.unit.db import fixture

VOLUMES = tables.volumes
ROWS = tables.volume_attachment
BDM = tables.block_device_mapping

#: What a soft-deleted row of cinder's looks like.
GONE = {'deleted': True, 'attach_status': 'detached'}


class Case(base.CommandTest):
    """One server, and what a test makes of it."""

    def setUp(self) -> None:
        super().setUp()
        self.web = self.cloud.server('web1')

    def gone(self, row: str, at: float = -60) -> None:
        time = fixture.now(at)
        self.cloud.set(
            'cinder', ROWS, row, deleted_at=time, detach_time=time, **GONE
        )

    def status(self, volume: str) -> str:
        row = self.cloud.get('cinder', VOLUMES, volume)
        return ty.cast(str, row['status'])

    def live(self, row: str) -> bool:
        return not self.cloud.get('cinder', ROWS, row)['deleted']

    def mapped(self, mapping: int) -> bool:
        return not self.cloud.get('nova_cell1', BDM, mapping)['deleted']

    def results(self, *args: str, expected: int = 0) -> dict[str, str]:
        before = {*self.cloud.violations()}
        told = self.drp('db', *args, expected=expected)
        self.assertEqual(set(), {*self.cloud.violations()} - before)
        return {row['Volume ID']: row['Result'] for row in told}

    def repair(self, *args: str, expected: int = 0) -> dict[str, str]:
        return self.results(
            'repair', '--auto-approve', '--settle', '0', *args,
            expected=expected,
        )  # fmt: skip

    def undo(self, *args: str, expected: int = 0) -> dict[str, str]:
        return self.results(
            'undo', self.run_id, '--auto-approve', *args, expected=expected
        )

    @property
    def run_id(self) -> str:
        """The newest run that is no undo."""
        runs = journal.RunDirectory(self.dir / 'osc-drp/defaults').runs()
        return [r.name for r in runs if '-undo-' not in r.name][-1]

    # The states of DESIGN 5

    def r2(self, status: str = 'reserved', **mapping: ty.Any) -> str:
        volume = self.cloud.volume(status=status)
        self.cloud.attach(self.web, volume, **mapping)
        return volume

    def r3(self, status: str = 'available', **mapping: ty.Any) -> str:
        volume = self.cloud.volume(status=status, attach_status='detached')
        _mapping, row = self.cloud.attach(self.web, volume, **mapping)
        self.gone(row)
        return volume

    def r4(self) -> str:
        volume = self.cloud.volume()
        self.cloud.row(volume, self.web)
        return volume

    def r5(self) -> str:
        volume = self.cloud.volume(status='attaching')
        row = self.cloud.row(
            volume, self.web, attach_status='attaching', connector=None
        )
        self.cloud.mapping(self.web, volume, row, connection_info=None)
        return volume

    def r6(self) -> str:
        volume = self.cloud.volume()
        self.cloud.attach(self.web, volume)
        self.cloud.row(volume, self.web, attach_status='attaching')
        return volume

    def r7(self, status: str = 'reserved') -> str:
        return self.cloud.volume(status=status, attach_status='detached')


class RepairTest(Case):
    def test_every_rule(self) -> None:
        root = self.r3(boot_index=0, device='/dev/vda')
        volumes = {
            self.r2(): 'in-use',
            self.r2('detaching'): 'in-use',
            self.r2('error'): 'in-use',
            self.r3(): 'in-use',
            root: 'in-use',
            self.r4(): 'available',
            self.r5(): 'available',
            self.r6(): 'in-use',
            self.r7(): 'available',
            self.r7('detaching'): 'available',
        }
        before = self.cloud.dump()
        told = self.results('repair', '--dry-run')
        self.assertEqual(
            {'would repair', 'would release', 'would reset'},
            set(told.values()),
        )
        self.assertEqual(before, self.cloud.dump())
        self.assertFalse((self.dir / 'osc-drp').exists())
        told = self.repair()
        self.assertEqual(dict.fromkeys(volumes, 'done'), told)
        self.assertIn("cinder-volume 'store1@lvm' may not export", self.err)
        self.assertEqual(volumes, {v: self.status(v) for v in volumes})
        checked = self.drp('attachments', 'check')
        self.assertEqual({'R1'}, {r['Rule'] for r in checked})
        again = self.repair()
        self.assertEqual({'ok'}, set(again.values()))

    def test_one_word_wrong_of_a_volume_of_two(self) -> None:
        volume = self.cloud.volume(
            status='available', attach_status='detached', multiattach=True
        )
        self.cloud.attach(self.web, volume)
        other = self.cloud.server('web2')
        self.cloud.attach(other, volume)
        told = self.drp('db', 'repair', '--auto-approve', '--settle', '0')
        self.assertEqual(['done', 'done'], [r['Result'] for r in told])
        self.assertEqual('in-use', self.status(volume))

    def test_a_shelved_servers_volume_that_was_freed(self) -> None:
        shelf = self.cloud.server(vm_state='shelved_offloaded', host=None)
        volume = self.cloud.volume(
            status='available', attach_status='detached'
        )
        row = self.cloud.row(
            volume, shelf, attach_status='reserved', connector=None
        )
        self.cloud.mapping(shelf, volume, row)
        self.assertEqual({volume: 'done'}, self.repair())
        self.assertEqual('reserved', self.status(volume))
        self.assertEqual({volume: 'left'}, self.repair())

    def test_a_detach_that_was_nearly_done(self) -> None:
        volume = self.r3()
        self.cloud.action(self.web, 'detach_volume', events=(False,))
        self.assertEqual({volume: 'done'}, self.repair())
        self.assertEqual('available', self.status(volume))
        self.assertEqual([], self.drp('attachments', 'check'))

    def test_a_detach_of_one_of_two(self) -> None:
        two = {self.r3(), self.r3(device='/dev/vdc')}
        self.cloud.action(self.web, 'detach_volume', events=(False,))
        before = self.cloud.dump()
        told = self.repair(expected=3)
        self.assertEqual(dict.fromkeys(two, 'open'), told)
        self.assertEqual(before, self.cloud.dump())

    def test_from_error_only_with_its_cinder_volume(self) -> None:
        volume = self.r2('error')
        with self.cloud.engines['cinder'].begin() as connection:
            connection.execute(
                sa.update(tables.cinder_services).values(
                    updated_at=fixture.now(-600)
                )
            )
        self.assertEqual({volume: 'open'}, self.repair(expected=3))
        self.assertEqual('error', self.status(volume))

    def test_flagged_with_the_lines_of_novas_tool(self) -> None:
        volume = self.cloud.volume(
            status='available', attach_status='detached'
        )
        self.cloud.mapping(self.web, volume, 'a-row-that-was-purged')
        before = self.cloud.dump()
        self.assertEqual({volume: 'open'}, self.repair(expected=3))
        self.assertIn(f'refresh {self.web} {volume} connector-', self.err)
        self.assertEqual(before, self.cloud.dump())

    def test_selection_and_map(self) -> None:
        ours, alone = self.r2(), self.r7()
        other = self.cloud.server('db1')
        volume = self.cloud.volume(status='reserved')
        self.cloud.attach(other, volume)
        told = self.repair('--server', 'web1')
        self.assertEqual({ours: 'done'}, told)
        told = self.repair('--volume', alone)
        self.assertEqual({alone: 'done'}, told)
        self.assertEqual('reserved', self.status(volume))

    def test_the_global_stop(self) -> None:
        wrong = self.r2()
        for _number in range(12):
            self.cloud.mapping(self.web, self.cloud.volume(), 'never')
        before = self.cloud.dump()
        self.drp('db', 'repair', '--auto-approve', expected=4)
        self.assertIn('one database looks older', self.err)
        self.assertEqual(before, self.cloud.dump())
        told = self.repair('--limit', '100', expected=3)
        self.assertEqual('done', told[wrong])


class UndoTest(Case):
    def test_after_a_repair(self) -> None:
        free = self.r3()
        back = [self.r2(), self.r3('in-use'), self.r4(), self.r6(), self.r7()]
        before = self.cloud.dump()
        told = self.repair()
        self.assertEqual(dict.fromkeys([free, *back], 'done'), told)
        told = self.undo(expected=3)
        self.assertEqual({free: 'open'} | dict.fromkeys(back, 'done'), told)
        self.assertEqual('in-use', self.status(free))
        after = self.cloud.dump()
        kept = ('cinder', 'volumes'), ('cinder', 'volume_attachment')
        for key, rows in before.items():
            if key not in kept:
                self.assertEqual(rows, after[key], key)
                continue
            column = 0 if key == kept[0] else 1
            self.assertEqual(
                [r for r in rows if r[column] != free],
                [r for r in after[key] if r[column] != free],
            )
        # once more: nothing is left to do
        told = self.undo(expected=3)
        self.assertEqual({free: 'open'} | dict.fromkeys(back, 'ok'), told)
        self.assertEqual(after, self.cloud.dump())

    def test_of_a_volume_of_several(self) -> None:
        volume = self.cloud.volume(multiattach=True)
        for name in ('web2', 'web3', 'web4'):
            server = self.cloud.server(name)
            self.cloud.row(volume, server)
        before = self.cloud.dump()
        self.repair()
        self.assertEqual('available', self.status(volume))
        self.assertEqual({volume: 'done'}, self.undo())
        self.assertEqual(before, self.cloud.dump())

    def test_dry_run(self) -> None:
        volume = self.r4()
        self.repair()
        before = self.cloud.dump()
        told = self.results('undo', self.run_id, '--dry-run')
        self.assertEqual({volume: 'would undo'}, told)
        self.assertEqual(before, self.cloud.dump())

    def test_after_changes_by_others(self) -> None:
        taken, kept = self.r4(), self.r4()
        self.repair()
        other = self.cloud.server('other', 'cell2')
        self.cloud.attach(other, taken, 'cell2')
        self.cloud.set('cinder', VOLUMES, taken, status='in-use')
        told = self.undo(expected=3)
        self.assertEqual({taken: 'open', kept: 'done'}, told)

    def test_not_after_the_server_did_something(self) -> None:
        volume = self.r4()
        self.repair()
        self.cloud.action(self.web, 'start', start_time=fixture.now(1))
        before = self.cloud.dump()
        self.assertEqual({volume: 'open'}, self.undo(expected=3))
        self.assertEqual(before, self.cloud.dump())

    def test_not_while_the_server_is_on(self) -> None:
        volume = self.r4()
        self.repair()
        with self.cloud.engines['nova_cell1'].begin() as connection:
            connection.execute(
                sa.update(tables.instances).values(task_state='powering-on')
            )
        self.assertEqual({volume: 'open'}, self.undo(expected=3))

    def test_no_such_run(self) -> None:
        self.drp('db', 'undo', 'nothing', '--auto-approve', expected=1)
        self.assertIn("no run 'nothing'", self.err)
