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

"""``openstack drp db reset`` as a whole: the shell, files, SQLite databases.

In-process, through openstackclient's own shell; whatever appears on stderr
that a test does not expect is a failure.
"""

import typing as ty
from unittest import mock

from osc_drp.db import tables
from osc_drp.engine import facts
from osc_drp.engine import mapmaker
from osc_drp import mapfile
from osc_drp.tests.functional import base
from osc_drp.tests.unit.db import fixture


class ResetTest(base.CommandTest):
    """One server with two data disks, one with its root on a volume."""

    def setUp(self) -> None:
        super().setUp()
        self.web = self.cloud.server('web1')
        self.bfv = self.cloud.server('bfv1', image_ref='')
        self.volumes = [self.cloud.volume(f'data{n}') for n in range(2)]
        self.root = self.cloud.volume('root')
        for device, volume in zip('bc', self.volumes, strict=True):
            self.cloud.attach(self.web, volume, device=f'/dev/vd{device}')
        self.cloud.attach(self.bfv, self.root, device='/dev/vda', boot_index=0)
        self.map = self._save()
        for server in (self.web, self.bfv):
            self.cloud.action(
                server, 'stop', user_id=None, start_time=fixture.now()
            )

    def _save(self) -> str:
        """The map as it was before nova noticed the loss."""
        from osc_drp.db import read

        seen = read.observe(self.cloud.dbs)
        made = mapmaker.make_map(seen, 'test')
        ran = [
            facts.MapServer(
                s.id, s.name, s.project_id, s.host, 'active', 1, False
            )
            for s in made.servers
        ]
        made = facts.CloudMap(
            taken_at=fixture.now(-300).isoformat() + 'Z',
            cloud='test',
            source='database',
            servers=tuple(ran),
            attachments=made.attachments,
        )
        path = str(self.dir / 'map.json')
        mapfile.write(made, path)
        return path

    def reset(self, *args: str, expected: int = 0) -> ty.Any:
        return self.drp('db', 'reset', self.map, *args, expected=expected)

    def test_dry_run_writes_nothing(self) -> None:
        before = self.cloud.dump()
        told = self.reset('--dry-run')
        self.assertEqual(
            ['left', 'would reset', 'would reset'],
            sorted(r['Result'] for r in told),
        )
        self.assertEqual(before, self.cloud.dump())
        self.assertEqual('', self.err)
        self.assertFalse((self.dir / 'osc-drp').exists())

    def test_data_disks_go_and_the_root_stays(self) -> None:
        told = self.reset('--auto-approve')
        self.assertEqual(
            {v: 'done' for v in self.volumes} | {self.root: 'left'},
            {r['Volume ID']: r['Result'] for r in told},
        )
        for volume in self.volumes:
            row = self.cloud.get('cinder', tables.volumes, volume)
            self.assertEqual('available', row['status'])
        row = self.cloud.get('cinder', tables.volumes, self.root)
        self.assertEqual('in-use', row['status'])
        again = self.reset('--auto-approve')
        self.assertEqual({'ok', 'left'}, {r['Result'] for r in again})

    def test_undone_it_has_never_been(self) -> None:
        before = self.cloud.dump()
        self.reset('--auto-approve')
        self.assertNotEqual(before, self.cloud.dump())
        run = self.err.split('run ', 1)[1].split()[0]
        told = self.drp('db', 'undo', run, '--auto-approve')
        self.assertEqual(['done', 'done'], [r['Result'] for r in told])
        self.assertEqual(before, self.cloud.dump())

    def test_a_running_server_is_left_and_said(self) -> None:
        with self.cloud.engines['nova_cell1'].begin() as connection:
            connection.execute(
                tables.instances.update()
                .where(tables.instances.c.uuid == self.web)
                .values(vm_state='active', power_state=1)
            )
        before = self.cloud.dump()
        told = self.reset('--auto-approve', expected=3)
        self.assertEqual({'open', 'left'}, {r['Result'] for r in told})
        self.assertEqual(before, self.cloud.dump())

    def test_without_a_terminal_it_refuses(self) -> None:
        before = self.cloud.dump()
        with mock.patch('builtins.open', side_effect=_no_terminal(open)):
            self.assertIsNone(self.reset(expected=4))
        self.assertIn('--auto-approve', self.err)
        self.assertEqual(before, self.cloud.dump())

    def test_no_secret_in_the_journal(self) -> None:
        self.reset('--auto-approve')
        written = b''.join(
            p.read_bytes()
            for p in (self.dir / 'osc-drp').rglob('*')
            if p.is_file()
        )
        self.assertIn(b'"event": "old"', written)
        self.assertNotIn(b'S3CRET', written)


def _no_terminal(real: ty.Any) -> ty.Any:
    def opened(path: ty.Any, *args: ty.Any, **kwargs: ty.Any) -> ty.Any:
        if path == '/dev/tty':
            raise OSError('no such device')
        return real(path, *args, **kwargs)

    return opened
