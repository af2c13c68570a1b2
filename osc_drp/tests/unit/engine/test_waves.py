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

from osc_drp.engine import apply
from osc_drp.engine import waves
from osc_drp.tests.unit.engine import build


def server(name, wave=None):
    metadata = (('drp_wave', wave),) if wave is not None else ()
    return build.server(name, name=name, metadata=metadata)


def export(server_id, backend='b1', was='available'):
    return {
        'event': 'export',
        'server': server_id,
        'backend': backend,
        'was': was,
    }


class TestPlan(unittest.TestCase):
    def plan(self, *servers):
        self.said = []
        return waves.plan(servers, self.said.append)

    def test_lowest_first_and_none_last(self):
        found = self.plan(
            server('z'), server('app', '2'), server('db', '10'), server('a')
        )
        self.assertEqual(
            ((2, ('app',)), (10, ('db',)), (waves.LAST, ('a', 'z'))), found
        )

    def test_what_is_no_number_is_said_and_last(self):
        for text in ('first', '-1', '1.5', '', '²', '99999999'):
            with self.subTest(text):
                found = self.plan(server('a', text))
                self.assertEqual(((waves.LAST, ('a',)),), found)
                self.assertIn("drp_wave '", self.said[0])

    def test_what_is_said_is_one_line(self):
        self.plan(server('a', '\x1b[2J\nall is well'))
        self.assertIn("'[2J all is well'", self.said[0])


class TestExports(unittest.TestCase):
    def outcome(self, server_id, status):
        return apply.Outcome(server_id, '', status, '')

    def test_one_for_each_host_goes_first(self):
        exports = waves.Exports.of(
            [export('s1'), export('s2'), export('s3', 'b2')]
        )
        self.assertEqual({'s1', 's3'}, exports.first(['s1', 's2', 's3', 's4']))

    def test_proven(self):
        exports = waves.Exports.of([export('s1'), export('s2')])
        exports.learn([self.outcome('s1', apply.DONE)])
        self.assertEqual(frozenset(), exports.first(['s2']))
        self.assertEqual('', exports.why_not('s2'))

    def test_the_others_wait_for_a_restart_of_cinder_volume(self):
        exports = waves.Exports.of(
            [export('s1'), export('s2'), export('s3', 'b2')]
        )
        exports.learn([self.outcome('s1', apply.FAILED)])
        self.assertIn("restart cinder-volume 'b1'", exports.why_not('s2'))
        self.assertEqual('', exports.why_not('s3'))
        self.assertEqual('', exports.why_not('s4'))
        self.assertEqual({'s3'}, exports.first(['s2', 's3']))

    def test_untried_proves_nothing(self):
        exports = waves.Exports.of([export('s1'), export('s2')])
        exports.learn([self.outcome('s1', apply.UNTRIED)])
        self.assertEqual({'s2'}, exports.first(['s2']))

    def test_repaired_from_error_waits_for_the_next_invocation(self):
        entries = [export('s1', was='error'), export('s2')]
        exports = waves.Exports.of(entries)
        self.assertEqual(frozenset(), exports.first(['s1', 's2']))
        self.assertIn('restart', exports.why_not('s1'))
        again = waves.Exports.of([*entries, {'event': 'resume'}])
        self.assertEqual({'s1'}, again.first(['s1', 's2']))
        self.assertEqual('', again.why_not('s1'))
