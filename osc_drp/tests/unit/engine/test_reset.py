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

"""Step 2, driven against two records in memory."""

import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import reset
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

Do = plan.Do


class TestCase(unittest.TestCase):
    """Two servers, off since the loss, with a data disk each."""

    def setUp(self):
        self.said = []
        self.journal = fakes.run(self)
        self.clock = fakes.Clock()
        self.keys = [('s1', 'v1'), ('s2', 'v2')]
        self.map = build.cloud_map(*self.keys)
        self.use(build.agreeing(*self.keys))

    def use(self, seen, stopped=('s1', 's2')):
        """Take these records; nova stopped the servers by itself."""
        self.databases = fakes.Databases(
            seen,
            [build.action('stop', user=None, server_id=s) for s in stopped],
        )

    def job(self, **options):
        self.last = reset.Reset(
            self.databases,
            self.map,
            options.pop('selection', plan.Selection()),
            self.said.append,
            clock=self.clock,
            **options,
        )
        return self.last

    def propose(self, **options):
        items = self.job(**options).propose_settled()
        return {(i.server_id, i.volume_id): i.do for i in items}

    def reset(self, meanwhile=lambda: None, **options):
        items = self.job(**options).propose_settled()
        meanwhile()
        outcomes = self.last.carry_out(items, self.journal)
        return {(o.server_id, o.volume_id): o for o in outcomes}

    def statuses(self, *args, **options):
        found = self.reset(*args, **options)
        return {key[0]: o.status for key, o in found.items()}


class TestReset(TestCase):
    """Planned, carried out, verified."""

    def test_dry_run_writes_nothing_and_waits_for_nothing(self):
        self.use(build.agreeing(*self.keys), stopped=())
        before = self.databases.seen
        items = self.job().propose()
        self.assertEqual([Do.RESET] * 2, [i.do for i in items])
        self.assertEqual(0, self.clock.slept)
        self.assertIs(before, self.databases.seen)

    def test_reset(self):
        self.assertEqual({'s1': 'done', 's2': 'done'}, self.statuses())
        self.assertEqual((), facts.pairs(self.databases.seen))
        self.assertEqual(
            {'available'},
            {v.status for v in self.databases.seen.volumes.values()},
        )
        self.assertEqual(0, self.clock.slept)

    def test_journal(self):
        self.reset(selection=plan.Selection(servers=('s1',)))
        which = {
            'action': 'reset',
            'server': 's1',
            'volume': 'v1',
            'free': True,
        }
        self.assertEqual(
            [
                {
                    'event': 'old',
                    'cloud_time': build.LATER,
                    'rows': {'server_id': 's1', 'volume_id': 'v1'},
                    **which,
                },
                {
                    'event': 'outcome',
                    'status': 'done',
                    'what': 'reset',
                    **which,
                },
                {'event': 'verified', 'objects': 1},
            ],
            fakes.events(self.journal, 'old', 'outcome', 'verified'),
        )

    def test_kept_from_others(self):
        self.assertEqual(
            {'s1': 'done', 's2': 'done'}, self.statuses(free=False)
        )
        self.assertEqual((), facts.pairs(self.databases.seen))
        self.assertEqual(
            {'reserved'},
            {v.status for v in self.databases.seen.volumes.values()},
        )
        self.assertEqual(
            {False},
            {e['free'] for e in fakes.events(self.journal, 'old', 'outcome')},
        )

    def test_old_rows_are_in_the_journal_before_the_first_commit(self):
        mappings = self.databases.seen.mappings
        real = self.journal.write

        def write(event, **fields):
            if event == 'old':
                self.assertEqual(mappings[:1], self.databases.seen.mappings)
            real(event, **fields)

        self.map = build.cloud_map(self.keys[0])
        self.use(build.agreeing(self.keys[0]))
        mappings = self.databases.seen.mappings
        with mock.patch.object(self.journal, 'write', write):
            self.assertEqual({'s1': 'done'}, self.statuses())

    def test_without_a_journal_nothing_is_written(self):
        before = self.databases.seen
        error = exceptions.DrpError('cannot write the journal')
        with mock.patch.object(self.journal, 'write', side_effect=error):
            found = self.statuses()
        self.assertEqual({'s1': 'failed', 's2': 'untried'}, found)
        self.assertIs(before, self.databases.seen)

    def test_stale_databases_are_refused(self):
        rows = [build.row('s1', f'old{n}') for n in range(11)]
        self.databases.set(rows=(*self.databases.seen.rows, *rows))
        with self.assertRaisesRegex(exceptions.Refused, 'older'):
            self.propose()
        self.assertEqual(
            {Do.RESET, Do.FLAG}, set(self.propose(limit=6.0).values())
        )

    def test_a_user_stopped_it(self):
        self.databases.actions.append(
            build.action('stop', '2026-11-22T04:30:00Z')
        )
        found = self.propose()
        self.assertIs(Do.LEAVE, found['s1', 'v1'])
        self.assertIs(Do.RESET, found['s2', 'v2'])

    def test_logs_are_read_since_the_map(self):
        self.propose()
        self.assertEqual(
            [(frozenset({'s1', 's2'}), build.TAKEN_AT)], self.databases.asked
        )

    def test_lost_at(self):
        self.map = build.cloud_map(
            servers=[
                build.map_server('s1', vm_state='stopped'),
                build.map_server('s2'),
            ],
            attachments=[build.attachment(*k) for k in self.keys],
        )
        self.assertIs(Do.LEAVE, self.propose()['s1', 'v1'])
        found = self.propose(lost_at='2026-11-22T03:30:00Z')
        self.assertIs(Do.RESET, found['s1', 'v1'])
        found = self.propose(lost_at='2026-11-22T05:00:00Z')
        self.assertEqual([Do.LEAVE, Do.RESET], list(found.values()))

    def test_selection_of_nothing_reads_no_log(self):
        self.map = build.cloud_map(servers=[], attachments=[])
        self.assertEqual({}, self.propose())
        self.assertEqual([], self.databases.asked)


class TestSettle(TestCase):
    """Off, but not stopped by nova itself: only time proves it."""

    def watched(self, change=lambda: None, **options):
        self.use(build.agreeing(*self.keys), stopped=('s2',))

        def observed(number):
            if number == 2:
                change()

        self.databases.on_observe = observed
        return self.propose(**options)

    def test_waits(self):
        found = self.watched(settle=120.0)
        self.assertEqual({Do.RESET}, set(found.values()))
        self.assertEqual(120, self.clock.slept)
        self.assertIn('1 servers', self.said[0])

    def test_changes_while_watched(self):
        for changes in (
            {'vm_state': 'active'},
            {'power_state': facts.NOSTATE},
            {'task_state': 'powering-on'},
        ):
            with self.assertRaisesRegex(exceptions.Refused, 'changed'):
                self.watched(
                    lambda c=changes: self.databases.change('s1', **c)
                )

    def test_another_server_that_comes_to_be_off_was_not_watched(self):
        self.keys.append(('s3', 'v3'))
        self.map = build.cloud_map(*self.keys)
        seen = build.agreeing(
            *self.keys,
            servers=[
                build.server('s1'),
                build.server('s2'),
                build.running('s3'),
            ],
        )
        with mock.patch.object(build, 'agreeing', return_value=seen):
            with self.assertRaisesRegex(exceptions.Refused, 'changed'):
                self.watched(
                    lambda: self.databases.change(
                        's3', vm_state='error', power_state=facts.NOSTATE
                    )
                )

    def test_settle_nought(self):
        self.watched(settle=0)
        self.assertEqual(0, self.clock.slept)


class TestMeanwhile(TestCase):
    """What is no longer so under the locks is not written."""

    def meanwhile(self, change):
        found = self.reset(meanwhile=change)
        self.assertEqual('done', found['s2', 'v2'].status)
        self.assertNotIn(('s1', 'v1'), self.databases.resets)
        return found['s1', 'v1']

    def test_server_no_longer_off(self):
        for changes in (
            {'vm_state': 'active', 'power_state': facts.RUNNING},
            {'task_state': 'powering-on'},
        ):
            self.setUp()
            outcome = self.meanwhile(
                lambda c=changes: self.databases.change('s1', **c)
            )
            self.assertEqual('open', outcome.status)
            self.assertIn('no longer off', outcome.what)

    def test_compute_down(self):
        change = {'services': build.services(up=False)}
        found = self.reset(meanwhile=lambda: self.databases.set(**change))
        self.assertEqual({'open'}, {o.status for o in found.values()})

    def test_compute_declared_dead(self):
        self.databases.set(services=build.services(up=False))
        found = self.statuses(dead_hosts={build.HOST})
        self.assertEqual({'s1': 'done', 's2': 'done'}, found)

    def test_became_a_root(self):
        mappings = (
            build.mapping(root=True),
            build.mapping('s2', 'v2'),
        )
        outcome = self.meanwhile(lambda: self.databases.set(mappings=mappings))
        self.assertEqual('open', outcome.status)

    def test_records_differ(self):
        mappings = (build.mapping('s2', 'v2'),)
        outcome = self.meanwhile(lambda: self.databases.set(mappings=mappings))
        self.assertEqual('open', outcome.status)
        self.assertIn('changed meanwhile', outcome.what)

    def test_gone(self):
        def change():
            self.databases.set(
                mappings=(build.mapping('s2', 'v2'),),
                rows=(build.row('s2', 'v2'),),
            )

        outcome = self.meanwhile(change)
        self.assertIn('neither record', outcome.what)

    def test_has_it_again_when_verified(self):
        def again(number):
            # attached by somebody right before the verification
            if number == 2:
                seen = build.agreeing(('s1', 'v1'))
                self.databases.set(mappings=seen.mappings, rows=seen.rows)

        self.databases.on_observe = again
        found = self.statuses()
        self.assertEqual({'s1': 'open', 's2': 'done'}, found)

    def test_what_cannot_be_verified_is_shown_nevertheless(self):
        def fail(number):
            if number == 2:
                raise exceptions.DatabaseError('cinder is gone')

        self.databases.on_observe = fail
        found = self.reset()
        self.assertEqual({'open'}, {o.status for o in found.values()})
        self.assertIn('not verified: cinder', found['s1', 'v1'].what)

    def test_nothing_done_needs_no_verification(self):
        self.reset(
            meanwhile=lambda: self.databases.set(
                services=build.services(up=False)
            )
        )
        self.assertEqual([], fakes.events(self.journal, 'verified'))


class TestKilled(TestCase):
    """Between nova's commit and cinder's."""

    def kill(self, key=('s1', 'v1'), error=KeyboardInterrupt):
        def die():
            raise error

        self.databases.between[key] = die
        if issubclass(error, exceptions.DrpError):
            found = self.statuses()
        else:
            with self.assertRaises(error):
                self.reset()
            found = None
        del self.databases.between[key]
        return found

    def test_nothing_is_free_and_running_again_finishes_it(self):
        self.kill()
        self.assertEqual('in-use', self.databases.seen.volumes['v1'].status)
        items = self.job().propose_settled()
        self.assertEqual([Do.FINISH, Do.RESET], [i.do for i in items])
        self.last.carry_out(items, self.journal)
        self.assertEqual((), facts.pairs(self.databases.seen))

    def test_the_journal_still_knows_that_it_was_attached(self):
        self.kill()
        runs = journal.RunDirectory(self.journal.path.parent)
        self.assertEqual({('s1', 'v1'): build.LATER}, runs.resets())

    def test_another_server_took_it_meanwhile(self):
        self.kill()
        self.databases.set(
            mappings=(
                *self.databases.seen.mappings,
                build.mapping('s1', 'v1', attachment_id='new'),
            )
        )
        found = self.propose()
        self.assertIs(Do.FLAG, found['s1', 'v1'])

    def test_an_own_half_is_confirmed_under_the_locks_too(self):
        self.kill()

        def gone():
            self.databases.set(
                mappings=tuple(
                    m
                    for m in self.databases.seen.mappings
                    if m.volume_id != 'v1'
                )
            )

        found = self.statuses(meanwhile=gone)
        self.assertEqual({'s1': 'open', 's2': 'done'}, found)

    def test_database_that_fails_is_the_canary(self):
        found = self.kill(error=exceptions.DatabaseError)
        self.assertEqual({'s1': 'failed', 's2': 'untried'}, found)

    def test_one_that_fails_leaves_the_others(self):
        found = self.kill(('s2', 'v2'), exceptions.DatabaseError)
        self.assertEqual({'s1': 'done', 's2': 'failed'}, found)

    def test_pairs_of_one_volume_each_have_their_outcome(self):
        self.keys = [('s1', 'v1'), ('s2', 'v1')]
        self.map = build.cloud_map(*self.keys)
        self.use(build.agreeing(*self.keys))
        found = self.kill(('s2', 'v1'), exceptions.DatabaseError)
        self.assertEqual({'s1': 'done', 's2': 'failed'}, found)
        self.assertEqual('in-use', self.databases.seen.volumes['v1'].status)
        self.assertEqual({'s2': 'done'}, self.statuses())
        self.assertEqual('available', self.databases.seen.volumes['v1'].status)
