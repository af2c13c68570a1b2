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

"""``drp attachments save --source database`` and ``check`` as a whole."""

import os
import typing as ty

import sqlalchemy as sa

from osc_drp.db import tables
from osc_drp import mapfile
from osc_drp.tests.functional import base


class SaveTest(base.CommandTest):
    """No API anywhere: nothing is listening."""

    def save(self, expected: int = 0) -> str:
        path = str(self.dir / 'map')
        self.drp(
            'attachments', 'save', path, '--source', 'database',
            expected=expected, table=False,
        )  # fmt: skip
        return path

    def test_the_map_without_any_api(self) -> None:
        web = self.cloud.server('web1', vm_state='active', power_state=1)
        volume = self.cloud.volume()
        _mapping, row = self.cloud.attach(web, volume, tag='data')
        saved = mapfile.read(self.save())
        self.assertEqual('database', saved.source)
        self.assertEqual('defaults', saved.cloud)
        self.assertEqual([(web, True)], [(s.id, s.ran) for s in saved.servers])
        [one] = saved.attachments
        self.assertEqual(
            (web, volume, row, row, 'both', 'data'),
            (
                one.server_id,
                one.volume_id,
                one.attachment_id,
                one.cinder_attachment_id,
                one.recorded_by,
                one.tag,
            ),
        )
        self.assertNotIn('S3CRET', open(self.dir / 'map').read())

    def test_a_cell_that_is_down_makes_no_map(self) -> None:
        with self.cloud.engines['nova_api'].begin() as connection:
            connection.execute(
                sa.update(tables.cell_mappings)
                .where(tables.cell_mappings.c.name == 'cell2')
                .values(database_connection='sqlite:////nonexistent/x.db')
            )
        path = self.save(expected=1)
        self.assertIn('cell2', self.err)
        self.assertFalse(os.path.lexists(path))


class CheckTest(base.CommandTest):
    """A server whose two disks agree."""

    def setUp(self) -> None:
        super().setUp()
        self.web = self.cloud.server('web1')
        self.data = self.cloud.volume('data')
        self.log = self.cloud.volume('log')
        self.cloud.attach(self.web, self.data)
        self.mapping, self.row = self.cloud.attach(
            self.web, self.log, device='/dev/vdc'
        )

    def check(self, *args: str, expected: int = 3) -> ty.Any:
        before = self.cloud.dump()
        told = self.drp('attachments', 'check', *args, expected=expected)
        self.assertEqual(before, self.cloud.dump())
        return {row['Volume ID']: row for row in told}

    def purge(self, row: str) -> None:
        table = tables.volume_attachment
        with self.cloud.engines['cinder'].begin() as connection:
            connection.execute(sa.delete(table).where(table.c.id == row))

    def test_all_agree(self) -> None:
        told = self.check(expected=0)
        self.assertEqual({'agree'}, {r['Action'] for r in told.values()})
        self.assertEqual('', self.err)

    def test_a_verdict_with_its_witnesses(self) -> None:
        self.cloud.set('cinder', tables.volumes, self.log, status='detaching')
        told = self.check()
        self.assertEqual('R1', told[self.data]['Rule'])
        line = told[self.log]
        self.assertEqual(
            ('web1', '/dev/vdc', 'R2', "repair cinder's record"),
            tuple(line[k] for k in ('Server', 'Device', 'Rule', 'Action')),
        )
        self.assertIn('a user wanted it off', line['Reason'])
        self.assertEqual('detaching/attached', line['Volume Status'])
        self.assertEqual('stopped/shutdown', line['Server State'])
        self.assertEqual(self.row, line['Nova'])
        self.assertEqual(f'{self.row}, attached, compute1', line['Cinder'])

    def test_a_volume_that_waits_for_nobody(self) -> None:
        alone = self.cloud.volume(status='reserved', attach_status='detached')
        told = self.check()
        self.assertEqual('R7', told[alone]['Rule'])
        self.assertEqual('', told[alone]['Server ID'])
        told = self.check('--server', 'web1', expected=0)
        self.assertEqual({self.data, self.log}, set(told))

    def test_the_lines_of_novas_own_tool(self) -> None:
        # the row was purged after somebody's reset
        self.purge(self.row)
        self.cloud.set('cinder', tables.volumes, self.log, status='available')
        told = self.check()
        self.assertEqual('R8', told[self.log]['Rule'])
        self.assertIn(
            'on compute1: nova-manage volume_attachment get_connector --json '
            '> connector-compute1.json\n'
            'on a controller: nova-manage volume_attachment refresh '
            f'{self.web} {self.log} connector-compute1.json\n',
            self.err,
        )

    def test_map_and_cloud(self) -> None:
        path = str(self.dir / 'map')
        self.drp(
            'attachments', 'save', path, '--source', 'database', table=False
        )
        told = self.check(path, expected=0)
        self.assertEqual({'has it'}, {r['Map'] for r in told.values()})
        gone = {'deleted': self.mapping}
        table = tables.block_device_mapping
        self.cloud.set('nova_cell1', table, self.mapping, **gone)
        table = tables.volume_attachment
        self.cloud.set('cinder', table, self.row, deleted=True)
        new = self.cloud.volume('new')
        self.cloud.attach(self.web, new, device='/dev/vdd')
        told = self.check(path)
        self.assertEqual(
            {
                self.data: 'has it',
                self.log: 'only the map has it',
                new: 'lacks it',
            },
            {v: r['Map'] for v, r in told.items()},
        )

    def test_one_database_is_older(self) -> None:
        for number in range(12):
            volume = self.cloud.volume(f'v{number}')
            self.cloud.mapping(self.web, volume, f'a{number}')
        self.check()
        self.assertIn('one database looks older', self.err)
