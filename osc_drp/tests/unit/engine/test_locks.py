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
from osc_drp.engine import locks
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes


class TestLocks(unittest.TestCase):
    def setUp(self):
        self.cloud = fakes.Cloud(build.seen([build.server()]))
        self.run_ = fakes.run(self)
        self.said = []
        self.locks = locks.Locks(self.cloud, self.run_, self.said.append)

    def _held(self):
        """Hold the lock, and tell how the server was meanwhile."""
        with self.locks.held('s1'):
            return self.cloud.server('s1')

    def _kinds(self):
        return [
            e['event'] for e in fakes.events(self.run_, 'lock', 'unlocked')
        ]

    def test_held_and_released(self):
        meanwhile = self._held()
        self.assertTrue(meanwhile.locked)
        self.assertIn(self.run_.id, meanwhile.locked_reason)
        self.assertFalse(self.cloud.server('s1').locked)
        self.assertEqual(['lock', 'unlocked'], self._kinds())

    def test_released_when_the_work_fails(self):
        with self.assertRaises(KeyboardInterrupt):
            with self.locks.held('s1'):
                raise KeyboardInterrupt
        self.assertFalse(self.cloud.server('s1').locked)

    def test_somebodys_lock_stays(self):
        self.cloud.change('s1', locked=True, locked_reason='audit')
        self._held()
        server = self.cloud.server('s1')
        self.assertEqual('audit', server.locked_reason)
        self.assertEqual([], self.cloud.sent)

    def test_a_lock_without_a_reason_stays(self):
        self.cloud.change('s1', locked=True)
        self._held()
        self.assertTrue(self.cloud.server('s1').locked)

    def test_ours_from_before_a_kill_is_released(self):
        reason = locks.reason(self.run_.id)
        self.cloud.change('s1', locked=True, locked_reason=reason)
        self._held()
        self.assertFalse(self.cloud.server('s1').locked)
        self.assertEqual([('unlock', 's1')], self.cloud.sent)

    def test_locked_anew_meanwhile_stays(self):
        with self.locks.held('s1'):
            self.cloud.change('s1', locked_reason='audit')
        self.assertEqual('audit', self.cloud.server('s1').locked_reason)

    def test_no_answer_to_the_lock(self):
        def lock_it(_id):
            reason = locks.reason(self.run_.id)
            self.cloud.change('s1', locked=True, locked_reason=reason)

        error = exceptions.Unanswered('no answer')
        self.cloud.next('lock', fakes.then_raise(error, lock_it))
        with self.assertRaisesRegex(
            exceptions.ApiError, 'not locked, so nothing was done: no answer'
        ):
            self._held()
        self.assertFalse(self.cloud.server('s1').locked)

    def test_deleted_before_it_could_be_locked(self):
        def delete(_id):
            self.cloud.set(servers={})

        error = exceptions.NotFound('no server s1')
        self.cloud.next('lock', fakes.then_raise(error, delete))
        with self.assertRaises(exceptions.NotFound):
            self._held()
        self.assertEqual(['lock', 'unlocked'], self._kinds())

    def test_not_unlocked_is_said_and_kept(self):
        error = exceptions.ApiError('nova is away')
        self.cloud.next('unlock', fakes.then_raise(error))
        self._held()
        self.assertIn('still locked (nova is away)', self.said[0])
        self.assertEqual({'s1'}, self.locks.left)
        self.assertEqual(['lock'], self._kinds())

    def test_a_server_that_is_gone_needs_none(self):
        with self.locks.held('s1'):
            self.cloud.set(servers={})
        self.assertEqual(['lock', 'unlocked'], self._kinds())
        self.assertEqual([], self.said)

    def test_old_nova(self):
        self.cloud.keeps_lock_reasons = False
        self.assertFalse(self._held().locked)
