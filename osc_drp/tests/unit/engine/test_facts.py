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

"""Joining both records into pairs."""

import doctest
import unittest

from osc_drp.engine import facts
from osc_drp.tests.unit.engine import build


def load_tests(loader, tests, pattern):
    """Run the examples in the docstrings, too."""
    tests.addTests(doctest.DocTestSuite(facts))
    return tests


class TestPairs(unittest.TestCase):
    """facts.pairs."""

    def pairs(self, **changes):
        seen = build.seen(
            changes.pop('servers', [build.server('s1'), build.server('s2')]),
            changes.pop('volumes', [build.volume('v1')]),
            changes.pop('mappings', ()),
            changes.pop('rows', ()),
            **changes,
        )
        return {(p.server_id, p.volume_id): p for p in facts.pairs(seen)}

    def test_one_pair_if_both_records_name_it(self):
        found = self.pairs(mappings=[build.mapping()], rows=[build.row()])
        self.assertEqual([('s1', 'v1')], list(found))
        pair = found['s1', 'v1']
        self.assertEqual('s1', pair.server.id)
        self.assertEqual('v1', pair.volume.id)
        self.assertEqual(build.row(), pair.named)
        self.assertIs(True, pair.compute_up)
        self.assertIs(False, pair.migrating)

    def test_one_record_is_enough(self):
        self.assertIn(('s1', 'v1'), self.pairs(mappings=[build.mapping()]))
        found = self.pairs(rows=[build.row('s2')])
        self.assertEqual([('s2', 'v1')], list(found))
        self.assertIsNone(found['s2', 'v1'].mapping)

    def test_deleted_records_alone_make_no_pair(self):
        found = self.pairs(
            mappings=[build.gone(build.mapping())],
            rows=[build.gone(build.row())],
        )
        self.assertEqual({}, found)

    def test_dropped_are_only_those_that_name_a_live_row(self):
        mine = build.gone(build.mapping())
        older = build.gone(build.mapping(attachment_id='other'))
        found = self.pairs(mappings=[mine, older], rows=[build.row()])
        pair = found['s1', 'v1']
        self.assertEqual((mine,), pair.dropped)
        self.assertEqual((), pair.mappings)

    def test_dropped_of_another_server_is_not_ours(self):
        # it names our row, but it was never our mapping
        other = build.gone(build.mapping('s2', attachment_id='a-s1-v1'))
        found = self.pairs(mappings=[other], rows=[build.row()])
        self.assertEqual((), found['s1', 'v1'].dropped)

    def test_others_are_live_and_of_other_servers(self):
        found = self.pairs(
            mappings=[build.mapping('s1'), build.mapping('s2')],
            rows=[
                build.row('s1'),
                build.row('s2'),
                build.gone(build.row('s2', id='old')),
            ],
        )
        pair = found['s1', 'v1']
        self.assertEqual(['s2'], [m.server_id for m in pair.other_mappings])
        self.assertEqual(['a-s2-v1'], [r.id for r in pair.other_rows])
        self.assertEqual(['old'], [r.id for r in pair.old_rows])

    def test_host_attachment_shows_in_the_pairs_of_its_volume(self):
        host = build.row(id='h', server_id=None)
        found = self.pairs(mappings=[build.mapping()], rows=[host])
        self.assertEqual([('s1', 'v1')], list(found))
        self.assertEqual((host,), found['s1', 'v1'].other_rows)

    def test_two_mappings_are_no_mapping(self):
        found = self.pairs(
            mappings=[build.mapping(), build.mapping(attachment_id='b')],
            rows=[build.row()],
        )
        self.assertEqual(2, len(found['s1', 'v1'].mappings))
        self.assertIsNone(found['s1', 'v1'].mapping)
        self.assertIsNone(found['s1', 'v1'].named)

    def test_what_is_unknown_is_none(self):
        found = self.pairs(
            servers=[],
            volumes=[],
            rows=[build.row()],
            migrating=None,
        )
        pair = found['s1', 'v1']
        self.assertIsNone(pair.server)
        self.assertIsNone(pair.volume)
        self.assertIsNone(pair.migrating)
        self.assertIsNone(pair.compute_up)

    def test_compute_is_that_of_the_servers_host(self):
        other = facts.Service('nova-compute', 'compute2', True)
        down = facts.Service('nova-compute', build.HOST, False)
        agent = facts.Service('neutron:l2', build.HOST, True)
        found = self.pairs(rows=[build.row()], services=(other, down, agent))
        self.assertIs(False, found['s1', 'v1'].compute_up)
        found = self.pairs(rows=[build.row()], services=(other, agent))
        self.assertIsNone(found['s1', 'v1'].compute_up)

    def test_server_facts(self):
        detach = build.action('detach_volume')
        found = self.pairs(
            rows=[build.row('s1'), build.row('s2')],
            migrating=frozenset({'s2'}),
            building=frozenset({'s2'}),
            unfinished=(detach,),
        )
        self.assertEqual((detach,), found['s1', 'v1'].unfinished)
        self.assertEqual((), found['s2', 'v1'].unfinished)
        self.assertIs(False, found['s1', 'v1'].migrating)
        self.assertIs(True, found['s2', 'v1'].migrating)
        self.assertFalse(found['s1', 'v1'].building)
        self.assertTrue(found['s2', 'v1'].building)


class TestSmall(unittest.TestCase):
    """The rest."""

    def test_device_order_is_libvirts(self):
        names = ['/dev/vdaa', 'vdz', '/dev/vdb', None, '/dev/vdab']
        self.assertEqual(
            [None, '/dev/vdb', 'vdz', '/dev/vdaa', '/dev/vdab'],
            sorted(names, key=facts.device_order),
        )

    def test_ran_is_active_and_running(self):
        for make in build.server, build.map_server:
            for vm_state, power, ran in (
                ('active', facts.RUNNING, True),
                ('active', facts.SHUTDOWN, False),
                ('active', facts.PAUSED, False),
                ('stopped', facts.RUNNING, False),
                ('error', facts.RUNNING, False),
            ):
                with self.subTest(make=make, vm_state=vm_state, power=power):
                    one = make(vm_state=vm_state, power_state=power)
                    self.assertIs(ran, one.ran)

    def test_group_keeps_the_order(self):
        found = facts.group(['b1', 'a1', 'b2'], lambda s: s[0])
        self.assertEqual({'b': ['b1', 'b2'], 'a': ['a1']}, found)
        self.assertEqual(['b', 'a'], list(found))

    def test_map_finds_a_server(self):
        cloud_map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.assertEqual('s2', cloud_map.server('s2').id)
        self.assertIsNone(cloud_map.server('s3'))
