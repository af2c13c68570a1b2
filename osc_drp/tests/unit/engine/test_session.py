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

"""One invocation: the lock, and which journal it writes."""

import pathlib
import tempfile
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import session


class TestSession(unittest.TestCase):
    """session.Session."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name) / 'lab'
        self.said = []

    def session(self, subject=None):
        return session.Session(
            self.path, 'db reset', subject or {'map': 'x'}, self.said.append
        )

    def run_to_end(self):
        with self.session().held(), self.session().journal() as run:
            return run

    def test_held_keeps_others_out_until_it_ends(self):
        with self.session().held():
            with self.assertRaisesRegex(exceptions.Refused, 'db reset by '):
                with self.session().held():
                    self.fail('both held it')
        with self.session().held():
            pass

    def test_held_is_given_back_after_an_error(self):
        with self.assertRaises(ZeroDivisionError), self.session().held():
            raise ZeroDivisionError
        with self.session().held():
            pass

    def test_dry_run_takes_no_lock_and_makes_nothing(self):
        with self.session().held(dry_run=True):
            self.assertFalse(self.path.exists())
            with self.session().held():
                pass

    def test_a_user_without_a_name(self):
        for error in KeyError, OSError:
            with mock.patch.object(
                session.getpass, 'getuser', side_effect=error
            ):
                with self.session().held():
                    note = (self.path / journal.LOCK).read_text()
            self.assertRegex(note, 'by uid [0-9]+ on ')

    def test_journal_ends(self):
        run = self.run_to_end()
        events = [e['event'] for e in run.entries()]
        self.assertEqual(['begin', 'end'], events)
        self.assertIn(str(run.path), self.said[0])

    def test_next_run_is_a_new_one(self):
        first, second = self.run_to_end(), self.run_to_end()
        self.assertNotEqual(first.id, second.id)

    def test_left_by_an_error_it_goes_on_next_time(self):
        for error in KeyboardInterrupt, exceptions.DatabaseError:
            with self.assertRaises(error), self.session().held():
                with self.session().journal() as run:
                    raise error
            self.assertNotIn('end', [e['event'] for e in run.entries()])
            self.said.clear()
            again = self.run_to_end()
            self.assertEqual(run.id, again.id)
            self.assertEqual(
                ['begin', 'resume', 'end'],
                [e['event'] for e in again.entries()],
            )
            self.assertEqual([f'going on with run {run.id}'], self.said)

    def test_another_subject_is_another_run(self):
        with self.assertRaises(KeyboardInterrupt), self.session().held():
            with self.session().journal() as run:
                raise KeyboardInterrupt
        with self.session({'map': 'y'}).held():
            with self.session({'map': 'y'}).journal() as other:
                self.assertNotEqual(run.id, other.id)


class TestAnnounce(unittest.TestCase):
    """What the journal holds for its readers."""

    def test_plan_names_and_what_needs_a_person(self):
        run = mock.Mock()
        items = [
            plan.Item('s1', '', plan.Do.START, '', 'is off'),
            plan.Item('s2', '', plan.Do.FLAG, '', 'its root dangles'),
            plan.Item('s3', '', plan.Do.LEAVE, '', 'was off before'),
            plan.Item('s4', 'v4', plan.Do.WAIT, '', 'busy'),
        ]
        names = {'s1': 'web1', 's2': 'web2', 's9': 'not selected'}
        session.announce(run, 'restart', items, names)
        self.assertEqual(
            [
                mock.call('plan', steps={'restart': 1}),
                mock.call('names', servers={'s1': 'web1', 's2': 'web2'}),
                mock.call(
                    'open',
                    items=[
                        {
                            'server': 's2',
                            'volume': '',
                            'what': 'its root dangles',
                        },
                        {'server': 's4', 'volume': 'v4', 'what': 'busy'},
                    ],
                ),
            ],
            run.write.mock_calls,
        )

    def test_what_is_waited_for_is_no_open_end(self):
        run = mock.Mock()
        items = [plan.Item('s4', 'v4', plan.Do.WAIT, '', 'busy')]
        does = {*plan.ACTING, plan.Do.WAIT}
        session.announce(run, 'attach', items, {}, does)
        self.assertIn(
            mock.call('plan', steps={'attach': 1}), run.write.mock_calls
        )
        self.assertIn(mock.call('open', items=[]), run.write.mock_calls)
