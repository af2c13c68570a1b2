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

import contextlib
import threading
import unittest

from osc_drp import exceptions
from osc_drp.engine import cinder_only
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import undo
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

Do = plan.Do


class TestCase(unittest.TestCase):
    """Two servers, off since the loss, with a data disk each."""

    def setUp(self):
        self.said = []
        self.journal = fakes.run(self)
        self.runs = journal.RunDirectory(self.journal.path.parent)
        self.keys = [('s1', 'v1'), ('s2', 'v2')]
        self.map = build.cloud_map(*self.keys)
        self.use(build.agreeing(*self.keys))

    def use(self, seen):
        """Take these records; nova stopped the servers by itself."""
        self.cloud = fakes.Cloud(seen)
        for server_id in seen.servers:
            self.cloud.log(server_id, 'stop', user=None)
        self.cinder = fakes.CinderDatabase(self.cloud)
        self.half = cinder_only.HalfDatabases(self.cloud, self.cinder)

    def job(self, **options):
        return cinder_only.Reset(
            self.half,
            self.map,
            options.pop('selection', plan.Selection()),
            self.said.append,
            known=self.runs.kept(),
            clock=self.cloud.clock,
            **options,
        )

    def propose(self, **options):
        items = self.job(**options).propose_settled()
        return {(i.server_id, i.volume_id): i for i in items}

    def does(self, **options):
        return {key[0]: i.do for key, i in self.propose(**options).items()}

    def reset(self, **options):
        job = self.job(**options)
        outcomes = job.carry_out(job.propose_settled(), self.journal)
        return {o.server_id: o for o in outcomes}

    def statuses(self):
        return {v.id: v.status for v in self.cloud.seen.volumes.values()}


class TestReset(TestCase):
    """Cinder's record goes, nova's stays, and the volume is nobody's."""

    def test_reset(self):
        before = self.cloud.seen.mappings
        found = self.reset()
        self.assertEqual({'done'}, {o.status for o in found.values()})
        self.assertEqual(before, self.cloud.seen.mappings)
        self.assertEqual({'v1': 'reserved', 'v2': 'reserved'}, self.statuses())
        self.assertEqual([], self.cloud.sent)
        self.assertEqual({'v1', 'v2'}, self.cinder.mapped)

    def test_the_journal_knows_which(self):
        self.reset(selection=plan.Selection(servers=('s1',)))
        self.assertEqual(
            {('s1', 'v1'): frozenset({'a-s1-v1'})}, self.runs.kept()
        )
        self.assertEqual([('s1', 'v1')], list(self.runs.resets()))
        (old,) = fakes.events(self.journal, 'old')
        self.assertEqual((True, False), (old['cinder_only'], old['free']))

    def test_recover_does_not_take_them_for_its_own(self):
        self.reset()
        self.assertEqual(frozenset(), self.runs.shielded())

    def test_run_again_goes_on(self):
        def die():
            self.cinder.before_commit = die_now

        def die_now():
            raise KeyboardInterrupt

        self.cinder.before_commit = die
        with self.assertRaises(KeyboardInterrupt):
            self.reset()
        self.cinder.before_commit = lambda: None
        self.assertEqual({'v1': 'reserved', 'v2': 'in-use'}, self.statuses())
        found = self.propose()
        self.assertIs(Do.NOTHING, found['s1', 'v1'].do)
        self.assertIn('earlier run', found['s1', 'v1'].reason)
        self.assertIs(Do.RESET, found['s2', 'v2'].do)
        self.reset()
        self.assertEqual({Do.NOTHING}, set(self.does().values()))

    def test_old_nova(self):
        self.cloud.reboot_cleans = False
        with self.assertRaisesRegex(exceptions.Refused, '2.100'):
            self.propose()

    def test_only_what_is_off_and_settled(self):
        for changes in (
            {'vm_state': 'error', 'power_state': facts.NOSTATE},
            {'vm_state': 'active', 'power_state': facts.RUNNING},
            {'task_state': 'powering-off'},
            {'power_state': facts.RUNNING},
        ):
            self.setUp()
            self.cloud.change('s1', **changes)
            found = self.does(settle=0)
            self.assertEqual({'s1': Do.FLAG, 's2': Do.RESET}, found, changes)

    def test_nova_compute_is_to_be_up(self):
        self.cloud.set(services=build.services(up=False))
        self.assertEqual({Do.FLAG}, set(self.does().values()))

    def test_a_user_stopped_it(self):
        self.cloud.log('s1', 'stop', at='2026-11-22T05:00:00Z')
        self.assertEqual({'s1': Do.LEAVE, 's2': Do.RESET}, self.does())

    def test_the_logs_are_read_side_by_side(self):
        barrier, plain = threading.Barrier(2), self.cloud.actions

        def both(server_id):
            barrier.wait(timeout=30)
            return plain(server_id)

        self.cloud.actions = both
        found = self.half.actions_since({'s2', 's1'}, '')
        self.assertEqual(['s1', 's2'], [a.server_id for a in found])

    def test_deleted_server_has_no_log(self):
        def gone(server_id):
            raise exceptions.NotFound('no server')

        self.cloud.actions = gone
        self.assertEqual([], self.half.actions_since(['s1'], ''))

    def with_root(self, **changes):
        """A server that boots from a volume, and has a data disk."""
        server = build.server(
            volume_backed=True, volumes_attached=frozenset({'root', 'v1'})
        )
        self.map = build.cloud_map(
            attachments=[
                build.attachment('s1', 'root', root=True, device='/dev/vda'),
                build.attachment(),
            ]
        )
        self.use(
            build.seen(
                [server],
                [build.volume('root'), build.volume()],
                [
                    build.mapping(
                        's1',
                        'root',
                        **{'root': True, 'device': '/dev/vda', **changes},
                    ),
                    build.mapping(),
                ],
                [build.row('s1', 'root'), build.row()],
            )
        )

    def test_the_root_stays(self):
        self.with_root()
        found = self.reset()
        self.assertEqual(
            {'s1': 'done'}, {k: o.status for k, o in found.items()}
        )
        self.assertEqual({'root': 'in-use', 'v1': 'reserved'}, self.statuses())

    def test_a_root_in_reach(self):
        # nova does not say which one is the root
        self.with_root(root=False)
        self.assertIs(Do.FLAG, self.propose()['s1', 'v1'].do)
        # the root's own record disagrees: the reboot would delete it
        self.with_root()
        self.cloud.set(rows=(build.row(),))
        self.assertIs(Do.FLAG, self.propose()['s1', 'v1'].do)

    def test_a_root_of_another_server(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v1'))
        self.use(build.agreeing(('s1', 'v1'), ('s2', 'v1')))
        other = build.mapping('s2', 'v1', root=True)
        self.cloud.set(mappings=(build.mapping(), other))
        self.assertIs(Do.FLAG, self.propose()['s1', 'v1'].do)

    def test_what_nova_hides(self):
        hidden = frozenset({'v1', 'legacy'})
        self.cloud.change('s1', volumes_attached=hidden)
        found = self.propose()
        self.assertEqual('G11', found['s1', 'v1'].rule)

    def test_multiattach_all_or_none(self):
        keys = [('s1', 'v1'), ('s2', 'v1')]
        self.map = build.cloud_map(*keys)
        self.use(build.agreeing(*keys))
        found = self.propose(selection=plan.Selection(servers=('s1',)))
        self.assertEqual('G10', found['s1', 'v1'].rule)
        # one of its servers could not be rebooted hard
        self.cloud.change('s2', vm_state='error')
        self.assertEqual({Do.FLAG}, set(self.does(settle=0).values()))
        self.cloud.change('s2', vm_state='stopped')
        self.reset()
        self.assertEqual({'v1': 'reserved'}, self.statuses())

    def test_multiattach_half_done_is_finished(self):
        keys = [('s1', 'v1'), ('s2', 'v1')]
        self.map = build.cloud_map(*keys)
        self.use(build.agreeing(*keys))

        def die():
            self.cinder.before_commit = die_now

        def die_now():
            raise KeyboardInterrupt

        self.cinder.before_commit = die
        with self.assertRaises(KeyboardInterrupt):
            self.reset()
        self.cinder.before_commit = lambda: None
        self.assertEqual({'v1': 'in-use'}, self.statuses())
        self.assertEqual({'s1': Do.NOTHING, 's2': Do.RESET}, self.does())

    def test_free_is_a_bug(self):
        with self.assertRaises(AssertionError):
            self.half.reset(build.pair(), None, None, free=True)

    def test_nova_does_no_repairs(self):
        for method in (self.half.repair, self.half.release):
            with self.assertRaises(AssertionError):
                method(build.pair(), 'a', None, None)

    def test_question_and_advice(self):
        items = list(self.propose().values())
        sentence, phrase = cinder_only.question(items)
        self.assertIn('2 attachments of 2 servers', sentence)
        self.assertEqual('reset 2', phrase)
        self.assertIn('servers restart', self.job().advice()[0])


class TestMeanwhile(TestCase):
    """Nova is asked once more, with cinder's rows locked."""

    def meanwhile(self, change):
        job = self.job()
        items = job.propose_settled()
        change()
        outcomes = {o.server_id: o for o in job.carry_out(items, self.journal)}
        self.assertEqual('done', outcomes['s2'].status)
        self.assertEqual('in-use', self.cloud.seen.volumes['v1'].status)
        return outcomes['s1']

    def test_started(self):
        outcome = self.meanwhile(
            lambda: self.cloud.change(
                's1', vm_state='active', power_state=facts.RUNNING
            )
        )
        self.assertEqual('open', outcome.status)

    def test_in_error(self):
        outcome = self.meanwhile(
            lambda: self.cloud.change('s1', vm_state='error')
        )
        self.assertIn('no longer off', outcome.what)

    def test_deleted(self):
        servers = {'s2': self.cloud.seen.servers['s2']}
        outcome = self.meanwhile(lambda: self.cloud.set(servers=servers))
        self.assertEqual('open', outcome.status)
        self.assertIn('deleted', outcome.what)

    def test_refreshed(self):
        mappings = (
            build.mapping(attachment_id='new'),
            build.mapping('s2', 'v2'),
        )
        outcome = self.meanwhile(lambda: self.cloud.set(mappings=mappings))
        self.assertEqual('open', outcome.status)


class TestUndo(TestCase):
    """Cinder's half only, while nova still names it."""

    def undo(self):
        path = self.journal.path
        job = undo.Undo(
            self.half,
            undo.entries(path),
            self.runs.undone(path.name),
            self.said.append,
        )
        items = job.propose()
        run = self.runs.begin('db undo', {'run': path.name})
        with contextlib.closing(run):
            outcomes = job.carry_out(items, run)
        return {i.server_id: i.do for i in items}, {
            o.server_id: o.status for o in outcomes
        }

    def test_undo(self):
        before = self.cloud.seen
        self.reset()
        self.assertEqual({'s1': 'done', 's2': 'done'}, self.undo()[1])
        self.assertEqual(before, self.cloud.seen)
        self.assertEqual({}, self.runs.kept())
        self.assertEqual({'s1': Do.NOTHING, 's2': Do.NOTHING}, self.undo()[0])

    def test_of_a_volume_of_two(self):
        keys = [('s1', 'v1'), ('s2', 'v1')]
        self.map = build.cloud_map(*keys)
        self.use(build.agreeing(*keys))
        before = self.cloud.seen
        self.reset()
        self.assertEqual({'s1': 'done', 's2': 'done'}, self.undo()[1])
        self.assertEqual(before, self.cloud.seen)

    def test_nova_forgot(self):
        self.reset()
        self.cloud.set(mappings=self.cloud.seen.mappings[1:])
        self.assertEqual({'s1': 'open', 's2': 'done'}, self.undo()[1])
        self.assertEqual('reserved', self.cloud.seen.volumes['v1'].status)

    def test_started_meanwhile_it_is_put_right(self):
        self.reset()
        self.cloud.do_start('s1', user='user')
        self.assertIs(Do.FLAG, self.undo()[0]['s1'])
        self.cloud.clock.sleep(60)
        self.assertEqual({'s1': 'done'}, self.undo()[1])

    def test_deleted(self):
        self.reset()
        self.cloud.set(servers={'s2': self.cloud.seen.servers['s2']})
        self.assertIs(Do.FLAG, self.undo()[0]['s1'])
