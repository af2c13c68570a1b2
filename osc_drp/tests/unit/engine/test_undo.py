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

from osc_drp import exceptions
from osc_drp.engine import plan
from osc_drp.engine import undo
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes


class TestEntries(unittest.TestCase):
    """What a run changed, by its journal."""

    def setUp(self):
        self.run_ = fakes.run(self, 'recover')

    def write(self, event, action, **more):
        about = {'server': 's1', 'volume': 'v1', **more}
        if event == 'old':
            about |= {'cloud_time': 'now', 'rows': {}}
        self.run_.write(event, action=action, **about)

    def found(self):
        return [
            (e.server_id, e.volume_id) for e in undo.entries(self.run_.path)
        ]

    def test_what_was_done(self):
        self.write('old', 'repair')
        self.write('outcome', 'repair', status='done')
        self.write('old', 'reset', volume='v2')
        self.assertEqual([('s1', 'v1'), ('s1', 'v2')], self.found())

    def test_declined_under_the_locks(self):
        self.write('old', 'reset', volume='v2')
        self.write('old', 'reset')
        self.write('outcome', 'reset', volume='v2', status='open')
        self.assertEqual([('s1', 'v1')], self.found())

    def test_an_attach_that_fails_later_takes_nothing_back(self):
        self.write('old', 'reset')
        self.write('outcome', 'reset', status='done')
        self.write('outcome', 'attach', status='open')
        self.assertEqual([('s1', 'v1')], self.found())

    def test_what_only_frees_for_an_attach(self):
        self.write('old', 'reset')
        self.write('old', 'unshield', server='')
        self.assertEqual([('s1', 'v1')], self.found())

    def test_damaged(self):
        self.run_.write('old', action='reset', server='s1')
        with self.assertRaisesRegex(exceptions.DrpError, 'is damaged'):
            self.found()


def at(hour):
    return f'2026-11-22T{hour}:00Z'


def entry(number, volume_id='v1', when='04:00'):
    return undo.Entry(
        number, 's1', volume_id, at(when), {'kind': 'reset', 'changes': []}
    )


class TestMovedOn(unittest.TestCase):
    """Whether a server's user came back after a change."""

    def setUp(self):
        seen = build.agreeing(('s1', 'v1'), ('s1', 'v2'))
        log = [
            build.action('start', at('05:00')),
            build.action('stop', at('05:30')),
        ]
        self.databases = fakes.Databases(seen, log)

    def planned(self, *changed, undone=()):
        job = undo.Undo(
            self.databases, list(changed), frozenset(undone), self.fail
        )
        return {i.volume_id: (i.do, i.reason) for i in job.propose()}

    def test_each_change_has_its_own_time(self):
        taken_up_again = entry(1, 'v2', '06:00')
        self.assertEqual(
            {
                'v1': (plan.Do.FLAG, 'the server moved on since: stop'),
                'v2': (plan.Do.UNDO, 'as the run left it'),
            },
            self.planned(entry(0), taken_up_again),
        )

    def test_the_first_of_two_changes_of_a_pair(self):
        again = entry(1, when='06:00')
        found = self.planned(entry(0), again)
        self.assertIs(plan.Do.FLAG, found['v1'][0])

    def test_not_of_one_that_is_put_back_already(self):
        again = entry(1, when='06:00')
        found = self.planned(entry(0), again, undone=[0])
        self.assertIs(plan.Do.UNDO, found['v1'][0])

    def test_all_put_back(self):
        found = self.planned(entry(0), undone=[0])
        self.assertEqual((plan.Do.NOTHING, 'put back already'), found['v1'])
