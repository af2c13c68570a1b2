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

import dataclasses
import unittest

from osc_drp.engine import facts
from osc_drp.engine import mapmaker


def server(server_id, **changes):
    return facts.Server(
        **{
            'id': server_id,
            'name': f'name-{server_id}',
            'project_id': 'p',
            'host': 'c1',
            'vm_state': 'active',
            'task_state': None,
            'power_state': facts.RUNNING,
            'locked': False,
            'root_device': '/dev/vda',
            **changes,
        }
    )


def mapping(server_id, volume_id, **changes):
    return facts.Mapping(
        **{
            'server_id': server_id,
            'volume_id': volume_id,
            'device': '/dev/vdb',
            'attachment_id': f'a-{server_id}-{volume_id}',
            'root': False,
            **changes,
        }
    )


def row(server_id, volume_id, **changes):
    return facts.Row(
        **{
            'id': f'a-{server_id}-{volume_id}',
            'volume_id': volume_id,
            'server_id': server_id,
            'attach_status': 'attached',
            'device': '/dev/vdb',
            **changes,
        }
    )


def volume(volume_id, **changes):
    return facts.Volume(
        **{
            'id': volume_id,
            'name': volume_id,
            'project_id': 'p',
            'status': 'in-use',
            'multiattach': False,
            **changes,
        }
    )


def seen(servers=(), volumes=(), mappings=(), rows=(), source=facts.API):
    return facts.Observation(
        source=source,
        taken_at='2026-11-22T12:00:00Z',
        servers={s.id: s for s in servers},
        volumes={v.id: v for v in volumes},
        mappings=tuple(mappings),
        rows=tuple(rows),
    )


class TestMakeMap(unittest.TestCase):
    def made(self, *args, **kwargs):
        return mapmaker.make_map(seen(*args, **kwargs), 'blue')

    def one(self, *args, **kwargs):
        (found,) = self.made(*args, **kwargs).attachments
        return found

    def test_both(self):
        made = self.made(
            [server('s', host='c9', locked=True)],
            [volume('v', multiattach=True)],
            [
                mapping(
                    's', 'v', root=True, tag='t', delete_on_termination=True
                )
            ],
            [row('s', 'v')],
        )
        self.assertEqual(
            facts.CloudMap(
                taken_at='2026-11-22T12:00:00Z',
                cloud='blue',
                source='api',
                servers=(
                    facts.MapServer(
                        id='s',
                        name='name-s',
                        project_id='p',
                        host='c9',
                        vm_state='active',
                        power_state=facts.RUNNING,
                        locked=True,
                    ),
                ),
                attachments=(
                    facts.MapAttachment(
                        server_id='s',
                        volume_id='v',
                        device='/dev/vdb',
                        attachment_id='a-s-v',
                        cinder_attachment_id='a-s-v',
                        recorded_by='both',
                        root=True,
                        tag='t',
                        delete_on_termination=True,
                        multiattach=True,
                    ),
                ),
            ),
            made,
        )

    def test_nova_alone(self):
        found = self.one([server('s')], [volume('v')], [mapping('s', 'v')], [])
        self.assertEqual('nova', found.recorded_by)
        self.assertIsNone(found.cinder_attachment_id)

    def test_cinder_alone(self):
        found = self.one([server('s')], [volume('v')], [], [row('s', 'v')])
        self.assertEqual('cinder', found.recorded_by)
        self.assertIsNone(found.attachment_id)
        self.assertEqual('a-s-v', found.cinder_attachment_id)
        self.assertFalse(found.root)

    def test_cinder_alone_and_the_root(self):
        found = self.one(
            [server('s', volume_backed=True)],
            [volume('v')],
            [],
            [row('s', 'v', device='/dev/vda')],
        )
        self.assertTrue(found.root)

    def test_only_attached_rows(self):
        for change in (
            {'attach_status': 'reserved'},
            {'attach_status': 'attaching'},
            {'deleted': True},
            {'server_id': None},
        ):
            changed = dataclasses.replace(row('s', 'v'), **change)
            made = self.made([server('s')], [volume('v')], [], [changed])
            self.assertEqual((), made.attachments, change)

    def test_only_live_mappings(self):
        made = self.made(
            [server('s')], [volume('v')], [mapping('s', 'v', deleted=True)]
        )
        self.assertEqual((), made.attachments)

    def test_shelved(self):
        """Its row is reserved; nova's mapping alone brings it in."""
        found = self.one(
            [server('s', vm_state='shelved_offloaded', host=None)],
            [volume('v', status='reserved')],
            [mapping('s', 'v')],
            [row('s', 'v', attach_status='reserved')],
        )
        self.assertEqual('nova', found.recorded_by)

    def test_server_that_nova_does_not_know(self):
        made = self.made([], [volume('v')], [], [row('s', 'v')])
        self.assertEqual((), made.servers)
        self.assertEqual('cinder', made.attachments[0].recorded_by)

    def test_volume_that_cinder_does_not_know(self):
        found = self.one([server('s')], [], [mapping('s', 'v')])
        self.assertFalse(found.multiattach)

    def test_two_of_each(self):
        """The ones that belong together, whatever their order."""
        mappings = [
            mapping('s', 'v', attachment_id=None),
            mapping('s', 'v', attachment_id='zz'),
            mapping('s', 'v', attachment_id='mm'),
        ]
        rows = [row('s', 'v', id='aa'), row('s', 'v', id='mm')]
        for turn in (1, -1):
            found = self.one(
                [server('s')], [volume('v')], mappings[::turn], rows[::turn]
            )
            self.assertEqual('mm', found.attachment_id)
            self.assertEqual('mm', found.cinder_attachment_id)

    def test_device_of_the_other_side(self):
        found = self.one(
            [server('s')],
            [volume('v')],
            [mapping('s', 'v', device=None)],
            [row('s', 'v', device='/dev/vdx')],
        )
        self.assertEqual('/dev/vdx', found.device)

    def test_order(self):
        made = self.made(
            [server('s2', name='a'), server('s1', name='b')],
            [],
            [
                mapping('s1', 'v1', device='/dev/vdaa'),
                mapping('s1', 'v2', device='/dev/vdz'),
                mapping('s1', 'v3', device='/dev/vdb'),
                mapping('s2', 'v4', device='/dev/vdb'),
            ],
        )
        self.assertEqual(['s2', 's1'], [s.id for s in made.servers])
        self.assertEqual(
            ['v4', 'v3', 'v2', 'v1'], [a.volume_id for a in made.attachments]
        )

    def test_never_launched(self):
        """cell0's failures and build requests, unless they have a volume."""
        made = self.made(
            [
                server('s1', launched=False),
                server('s2', launched=False),
                server('s3'),
            ],
            [volume('v')],
            [mapping('s2', 'v')],
        )
        self.assertEqual(['s2', 's3'], [s.id for s in made.servers])

    def test_both_sources_agree(self):
        """What only one source tells does not show in the map."""
        servers = [server('s', volume_backed=True)]
        volumes = [volume('v')]
        mappings, rows = [mapping('s', 'v')], [row('s', 'v')]
        by_api = self.made(servers, volumes, mappings, rows)
        by_database = self.made(
            [dataclasses.replace(s, cell='cell1') for s in servers],
            [
                dataclasses.replace(v, attach_status='attached')
                for v in volumes
            ],
            [
                *(
                    dataclasses.replace(m, id=7, cell='cell1', connected=True)
                    for m in mappings
                ),
                mapping('s', 'v', deleted=True, attachment_id='old'),
            ],
            [
                *(dataclasses.replace(r, connector=True) for r in rows),
                row('s', 'v', deleted=True, id='old'),
            ],
            source=facts.DATABASE,
        )
        self.assertEqual(
            by_api, dataclasses.replace(by_database, source=facts.API)
        )
