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
from osc_drp.engine import readiness
from osc_drp.tests.unit.engine import fakes


class TestWaitFor(unittest.TestCase):
    """Keystone and nova, of which one or both are away."""

    def setUp(self):
        self.clock = fakes.Clock()
        self.said = []
        self.looks = 0
        self.away = 'keystone at http://k: Connection refused'

    def look(self):
        self.looks += 1
        if isinstance(self.away, str):
            raise exceptions.Away('the error in full', self.away)
        if self.away:
            raise self.away
        return 'seen'

    def becomes(self, seconds, away):
        def change():
            self.away = away

        self.clock.later(seconds, change)

    def wait_for(self, wait=100.0):
        return readiness.wait_for(
            self.look, wait, self.said.append, self.clock
        )

    def test_nothing_away(self):
        self.away = None
        self.assertEqual('seen', self.wait_for(0.0))
        self.assertEqual((1, [], 0), (self.looks, self.said, self.clock.slept))

    def test_back(self):
        self.becomes(10, None)
        self.assertEqual('seen', self.wait_for())
        self.assertEqual(
            ['waiting for keystone at http://k: Connection refused'], self.said
        )
        self.assertEqual(12, self.clock.slept)

    def test_something_else_is_said_at_once_and_the_same_seldom(self):
        self.becomes(70, 'nova at http://n: it answers 503')
        with self.assertRaises(exceptions.Refused):
            self.wait_for()
        self.assertEqual(
            ['keystone'] * 3 + ['nova'], [s.split()[2] for s in self.said]
        )

    def test_in_vain(self):
        with self.assertRaises(exceptions.Refused) as caught:
            self.wait_for()
        self.assertEqual(
            'not ready after 100 s: keystone at http://k: Connection refused',
            str(caught.exception),
        )
        self.assertEqual(4, caught.exception.exit_code)
        self.assertEqual(100, self.clock.slept)

    def test_one_look_at_least(self):
        with self.assertRaises(exceptions.Refused):
            self.wait_for(0.0)
        self.assertEqual((1, [], 0), (self.looks, self.said, self.clock.slept))

    def test_what_does_not_pass_ends_the_wait(self):
        for error in (exceptions.ApiError('password'), KeyboardInterrupt()):
            self.away = 'keystone'
            self.becomes(10, error)
            with self.assertRaises(type(error)) as caught:
                self.wait_for()
            self.assertIs(error, caught.exception)
