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
import dataclasses
import unittest

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import cinder_only
from osc_drp.engine import cleaner
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import locks
from osc_drp.engine import plan
from osc_drp.engine import restart
from osc_drp.engine import restore
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

Do = plan.Do


class TestCase(unittest.TestCase):
    """s1 has a root disk and a data disk, that was reset at cinder."""

    def setUp(self):
        self.said = []
        self.runs = journal.RunDirectory(fakes.run(self).path.parent)
        self.map = build.cloud_map(
            attachments=[
                build.attachment('s1', 'root', root=True, device='/dev/vda'),
                build.attachment(),
            ]
        )
        server = build.server(
            volume_backed=True, volumes_attached=frozenset({'root', 'v1'})
        )
        self.use(
            build.seen(
                [server],
                [build.volume('root'), build.volume()],
                [
                    build.mapping('s1', 'root', root=True, device='/dev/vda'),
                    build.mapping(),
                ],
                [build.row('s1', 'root'), build.row()],
            )
        )

    def use(self, seen):
        """Take these records, and reset what the map has."""
        self.cloud = fakes.Cloud(seen)
        self.clock = self.cloud.clock
        for server_id in seen.servers:
            self.cloud.log(server_id, 'stop', user=None)
        job = cinder_only.Reset(
            cinder_only.HalfDatabases(
                self.cloud, fakes.CinderDatabase(self.cloud)
            ),
            self.map,
            plan.Selection(),
            self.said.append,
            known={},
            clock=self.clock,
        )
        run = self.runs.begin('db reset', {})
        with contextlib.closing(run):
            outcomes = job.carry_out(job.propose_settled(), run)
        self.assertEqual({'done'}, {o.status for o in outcomes})
        self.journal = self.runs.begin('servers restart', {})
        self.addCleanup(self.journal.close)

    def job(self, **options):
        return restart.Restart(
            self.cloud,
            self.map,
            options.pop('selection', plan.Selection()),
            restart.Settings(
                settle=4.0, limits=apply.Limits(parallel=1), **options
            ),
            self.said.append,
            our_stops=self.runs.stops(),
            known=cleaner.Known(
                resets=self.runs.kept(),
                locks=self.runs.locks(),
                unanswered=self.runs.unanswered_reboots(),
            ),
            clock=self.clock,
        )

    def does(self):
        return {i.server_id: i.do for i in self.job().propose_ready()}

    def restart(self, meanwhile=lambda: None):
        job = self.job()
        items = job.propose_ready()
        meanwhile()
        outcomes = job.carry_out(items, self.journal)
        return {o.server_id: o for o in outcomes}

    def refused(self, meanwhile):
        """Restart s1 when it is not safe: nothing is rebooted or freed."""
        outcome = self.restart(meanwhile)['s1']
        self.assertEqual('open', outcome.status)
        self.assertNotIn(('reboot', 's1'), self.cloud.sent)
        self.assertNotIn(('make_available', 'v1'), self.cloud.sent)
        self.assertFalse(self.cloud.seen.servers['s1'].locked)
        return outcome.what

    def status(self, volume_id='v1'):
        return self.cloud.seen.volumes[volume_id].status

    def mapped(self):
        return {m.volume_id for m in self.cloud.seen.mappings}


class TestClean(TestCase):
    """Locked, proven, rebooted once, freed, unlocked."""

    def test_clean(self):
        outcome = self.restart()['s1']
        self.assertEqual(
            ('done', 'rebooted hard: nova forgot 1 volumes'),
            (outcome.status, outcome.what),
        )
        self.assertEqual(
            [
                ('lock', 's1'),
                ('reboot', 's1'),
                ('make_available', 'v1'),
                ('unlock', 's1'),
            ],
            self.cloud.sent,
        )
        self.assertEqual({'root'}, self.mapped())
        self.assertEqual(
            ('available', 'in-use'), (self.status(), self.status('root'))
        )
        self.assertEqual({}, self.runs.kept())
        self.assertEqual({'s1': Do.NOTHING}, self.does())

    def test_restore_attaches_it_afterwards(self):
        self.restart()
        job = restore.Restore(
            self.cloud,
            self.map,
            plan.Selection(),
            self.said.append,
            resets=self.runs.resets(),
            limits=apply.Limits(),
            clock=self.clock,
        )
        outcomes = job.carry_out(job.propose(), self.journal)
        self.assertEqual(['done'], [o.status for o in outcomes])

    def test_dry_run_only_says_it(self):
        (item,) = self.job().propose()
        self.assertIs(Do.CLEAN, item.do)
        self.assertIn('hard reboot', item.reason)
        self.assertEqual([], self.cloud.sent)

    def test_others_are_started(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.map = dataclasses.replace(
            self.map,
            servers=(*self.map.servers, build.map_server('s3')),
        )
        seen = build.agreeing(('s1', 'v1'), ('s2', 'v2'))
        servers = {**seen.servers, 's3': build.server('s3')}
        self.use(dataclasses.replace(seen, servers=servers))
        self.assertEqual(
            {'s1': Do.CLEAN, 's2': Do.CLEAN, 's3': Do.START}, self.does()
        )
        found = self.restart()
        self.assertEqual({'done'}, {o.status for o in found.values()})

    def test_without_the_journal_it_is_flagged(self):
        self.runs.kept = dict
        self.assertEqual({'s1': Do.FLAG}, self.does())

    def test_a_lock_that_was_there_stays(self):
        self.cloud.change('s1', locked=True, locked_reason='paid late')
        self.assertEqual('done', self.restart()['s1'].status)
        self.assertNotIn(('unlock', 's1'), self.cloud.sent)
        server = self.cloud.seen.servers['s1']
        self.assertEqual(
            (True, 'paid late'), (server.locked, server.locked_reason)
        )

    def test_multiattach_is_free_when_the_last_one_forgot(self):
        keys = [('s1', 'v1'), ('s2', 'v1')]
        self.map = build.cloud_map(*keys)
        self.use(build.agreeing(*keys))
        statuses = []
        unlock = self.cloud.unlock

        def unlocked(server_id):
            statuses.append(self.status())
            unlock(server_id)

        self.cloud.unlock = unlocked
        found = self.restart()
        self.assertEqual({'done'}, {o.status for o in found.values()})
        self.assertEqual(['reserved', 'available'], statuses)

    def test_a_server_that_is_not_off_is_flagged(self):
        for changes in (
            {'vm_state': 'active', 'power_state': facts.RUNNING},
            {'vm_state': 'error', 'power_state': facts.NOSTATE},
        ):
            self.cloud.change('s1', **changes)
            (item,) = self.job().propose_ready()
            self.assertIs(Do.FLAG, item.do)
            self.assertIn('db undo', item.reason)

    def test_a_user_stopped_it(self):
        self.cloud.log('s1', 'stop', at='2026-11-22T05:00:00Z')
        self.assertEqual({'s1': Do.LEAVE}, self.does())


class TestProof(TestCase):
    """What makes the reboot unsafe, right before it is sent."""

    def test_the_roots_attachment_is_gone(self):
        def change():
            rows = tuple(
                r for r in self.cloud.seen.rows if r.volume_id != 'root'
            )
            self.cloud.set(rows=rows)

        self.assertIn('volume root', self.refused(change))

    def test_the_root_is_not_shown(self):
        def change():
            mappings = tuple(
                dataclasses.replace(m, root=False)
                for m in self.cloud.seen.mappings
            )
            self.cloud.set(mappings=mappings)

        self.assertIn('root', self.refused(change))

    def test_attached_again(self):
        def change():
            rows = tuple(
                dataclasses.replace(r, deleted=False)
                for r in self.cloud.seen.rows
            )
            self.cloud.set(rows=rows)

        self.assertIn('attached again', self.refused(change))

    def test_another_attachment_of_the_same_volume(self):
        def change():
            row = build.row('s1', 'v1', id='other', attach_status='reserved')
            self.cloud.set(rows=(*self.cloud.seen.rows, row))

        self.assertIn('reserved', self.refused(change))

    def test_no_longer_reserved(self):
        outcome = self.refused(
            lambda: self.cloud.set_volume('v1', status='available')
        )
        self.assertIn('is available, not reserved', outcome)

    def test_cinder_has_what_nova_does_not_name(self):
        def change():
            self.cloud.set(
                rows=(*self.cloud.seen.rows, build.row('s1', 'v9')),
                volumes={
                    **self.cloud.seen.volumes,
                    'v9': build.volume('v9'),
                },
            )

        self.assertIn('a-s1-v9', self.refused(change))

    def test_a_mapping_of_an_unknown_attachment(self):
        def change():
            mappings = (
                *self.cloud.seen.mappings,
                build.mapping('s1', 'v9', attachment_id='gone'),
            )
            self.cloud.set(mappings=mappings)

        self.assertIn('volume v9', self.refused(change))

    def test_a_legacy_mapping(self):
        attached = frozenset({'root', 'v1', 'legacy'})
        outcome = self.refused(
            lambda: self.cloud.change('s1', volumes_attached=attached)
        )
        self.assertIn('show all', outcome)

    def test_forgotten_meanwhile(self):
        mappings = self.cloud.seen.mappings[:1]
        outcome = self.refused(lambda: self.cloud.set(mappings=mappings))
        self.assertIn('changed', outcome)

    def test_no_longer_off(self):
        for changes in (
            {'vm_state': 'active', 'power_state': facts.RUNNING},
            {'task_state': 'powering-on'},
            {'power_state': facts.RUNNING},
        ):
            self.setUp()
            self.assertIn(
                'off',
                self.refused(lambda c=changes: self.cloud.change('s1', **c)),
            )

    def test_answers_grow_old(self):
        def slow(argument):
            self.clock.sleep(6)

        # two attachments are asked for in each try
        self.cloud.next('attachment_exists', *[None, slow] * cleaner.TRIES)
        self.assertIn('slow', self.refused(lambda: None))

    def test_one_slow_answer_is_asked_again(self):
        def slow(argument):
            self.clock.sleep(6)

        self.cloud.next('attachment_exists', None, slow)
        self.assertEqual('done', self.restart()['s1'].status)
        self.assertEqual(1, self.cloud.sent.count(('reboot', 's1')))

    def test_cinder_does_not_answer(self):
        error = exceptions.ApiError('no answer')
        self.cloud.next('attachment_exists', None, fakes.then_raise(error))
        outcome = self.restart()['s1']
        self.assertEqual('failed', outcome.status)
        self.assertEqual([('lock', 's1'), ('unlock', 's1')], self.cloud.sent)


class TestGoesWrong(TestCase):
    """The reboot was sent, and not all was as it should be."""

    def reboot_that(self, **options):
        self.cloud.next('reboot', lambda s: self.cloud.do_reboot(s, **options))

    def add_server(self):
        """Another one comes after s1."""
        self.map = dataclasses.replace(
            self.map,
            servers=(*self.map.servers, build.map_server('s2')),
        )
        servers = {**self.cloud.seen.servers, 's2': build.server('s2')}
        self.cloud.set(servers=servers)

    def test_nova_still_maps_it(self):
        self.add_server()
        self.reboot_that(forgets=False)
        found = self.restart()
        self.assertEqual(
            {'s1': 'failed', 's2': 'untried'},
            {k: o.status for k, o in found.items()},
        )
        self.assertIn('still maps v1', found['s1'].what)
        self.assertEqual('reserved', self.status())
        self.assertEqual(
            ['lock', 'reboot', 'stop', 'unlock'],
            [request[0] for request in self.cloud.sent],
        )
        self.assertEqual('stopped', self.cloud.seen.servers['s1'].vm_state)

    def test_the_run_ends_for_those_after_the_canary_too(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'), ('s3', 'v3'))
        self.use(build.agreeing(('s1', 'v1'), ('s2', 'v2'), ('s3', 'v3')))
        self.cloud.next(
            'reboot', None, lambda s: self.cloud.do_reboot(s, forgets=False)
        )
        found = self.restart()
        self.assertEqual(
            ['done', 'failed', 'untried'],
            [found[s].status for s in ('s1', 's2', 's3')],
        )
        self.assertIn('s2', found['s3'].what)

    def test_it_forgot_what_it_should_keep(self):
        def reboot(server_id):
            self.cloud.do_reboot(server_id)
            self.clock.later(6, lambda: self.cloud.set(mappings=()))

        self.cloud.next('reboot', reboot)
        outcome = self.restart()['s1']
        self.assertEqual('failed', outcome.status)
        self.assertIn('forget root', outcome.what)

    def test_it_does_not_come_up(self):
        self.reboot_that(starts=False)
        self.cloud.faults['s1'] = 'no disk'
        outcome = self.restart()['s1']
        self.assertEqual('failed', outcome.status)
        self.assertIn('no disk', outcome.what)
        # but nova forgot it, so it is nobody's
        self.assertEqual('available', self.status())

    def test_it_never_ends(self):
        self.cloud.next(
            'reboot',
            lambda s: self.cloud.change(s, task_state='rebooting_hard'),
        )
        outcome = self.restart()['s1']
        self.assertIn('within', outcome.what)
        self.assertEqual('reserved', self.status())
        self.assertEqual(('unlock', 's1'), self.cloud.sent[-1])

    def test_no_answer_but_it_arrived(self):
        error = exceptions.Unanswered('504')
        self.cloud.next(
            'reboot', fakes.then_raise(error, self.cloud.do_reboot)
        )
        self.assertEqual('done', self.restart()['s1'].status)
        self.assertEqual(1, self.cloud.sent.count(('reboot', 's1')))

    def test_no_answer_and_it_did_not_arrive(self):
        error = exceptions.Unanswered('504')
        self.cloud.next('reboot', fakes.then_raise(error))
        self.assertEqual('failed', self.restart()['s1'].status)
        self.assertEqual(1, self.cloud.sent.count(('reboot', 's1')))
        self.assertEqual('reserved', self.status())
        # nova never heard of it: the next run sends the first one
        self.assertEqual('done', self.restart()['s1'].status)

    def test_no_answer_is_never_sent_again(self):
        def arrived(server_id):
            self.cloud.do_reboot(server_id, forgets=False, starts=False)
            raise KeyboardInterrupt

        self.cloud.next('reboot', arrived)
        with self.assertRaises(KeyboardInterrupt):
            self.restart()
        self.clock.sleep(60)
        outcome = self.restart()['s1']
        self.assertEqual('open', outcome.status)
        self.assertIn('reached nova', outcome.what)
        self.assertEqual(1, self.cloud.sent.count(('reboot', 's1')))
        self.assertFalse(self.cloud.seen.servers['s1'].locked)

    def test_no_answer_is_of_that_reset_only(self):
        def arrived(server_id):
            self.cloud.do_reboot(server_id)
            raise KeyboardInterrupt

        self.cloud.next('reboot', arrived)
        with self.assertRaises(KeyboardInterrupt):
            self.restart()
        self.clock.sleep(60)
        self.assertEqual('done', self.restart()['s1'].status)
        # attached again, the power goes again, reset again
        self.cloud.set(
            mappings=(
                self.cloud.seen.mappings[0],
                build.mapping(attachment_id='a2'),
            ),
            rows=(self.cloud.seen.rows[0], build.row(id='a2')),
        )
        self.cloud.set_volume('v1', status='in-use', attach_status='attached')
        self.cloud.stopped('s1')
        self.cloud.change('s1', volumes_attached=frozenset({'root', 'v1'}))
        logs, seen = self.cloud.logs['s1'], self.cloud.seen
        self.use(seen)
        self.cloud.logs['s1'][1:] = logs
        self.assertEqual('done', self.restart()['s1'].status)
        self.assertEqual('available', self.status())

    def test_refused_by_nova(self):
        error = exceptions.Conflict('409')
        self.cloud.next('reboot', fakes.then_raise(error))
        self.assertEqual('failed', self.restart()['s1'].status)
        self.assertEqual(('unlock', 's1'), self.cloud.sent[-1])

    def test_cinder_does_not_free_it(self):
        error = exceptions.Unanswered('504')
        self.cloud.next('make_available', fakes.then_raise(error))
        outcome = self.restart()['s1']
        self.assertEqual('failed', outcome.status)
        self.assertIn('stays reserved', outcome.what)
        # and the next run does
        outcome = self.restart()['s1']
        self.assertEqual('done', outcome.status)
        self.assertEqual('available', self.status())
        self.assertEqual(1, self.cloud.sent.count(('reboot', 's1')))

    def test_freed_without_an_answer(self):
        def freed(volume_id):
            self.cloud.set_volume(volume_id, status='available')
            raise exceptions.Unanswered('504')

        self.cloud.next('make_available', freed)
        self.assertEqual('done', self.restart()['s1'].status)


class TestKilled(TestCase):
    """Killed somewhere, and run again."""

    def kill(self, request):
        def die(argument):
            raise KeyboardInterrupt

        self.cloud.next(request, die)
        with self.assertRaises(KeyboardInterrupt):
            self.restart()

    def test_our_lock_is_found_again(self):
        reason = locks.reason(self.journal.id)
        self.journal.write('lock', server='s1')
        self.cloud.change('s1', locked=True, locked_reason=reason)
        self.assertEqual('done', self.restart()['s1'].status)
        self.assertFalse(self.cloud.seen.servers['s1'].locked)

    def test_our_lock_on_one_that_runs(self):
        self.restart()
        self.journal.write('lock', server='s1')
        reason = locks.reason(self.journal.id)
        self.cloud.change('s1', locked=True, locked_reason=reason)
        self.assertEqual({'s1': Do.CLEAN}, self.does())
        self.assertEqual('done', self.restart()['s1'].status)
        self.assertFalse(self.cloud.seen.servers['s1'].locked)

    def test_before_it_was_freed(self):
        self.kill('make_available')
        self.assertEqual('reserved', self.status())
        self.assertEqual({'s1': Do.CLEAN}, self.does())
        outcome = self.restart()['s1']
        self.assertEqual(('done', 'runs'), (outcome.status, outcome.what))
        self.assertEqual('available', self.status())
        self.assertEqual(1, self.cloud.sent.count(('reboot', 's1')))

    def test_a_user_rebooted_it(self):
        self.cloud.do_reboot('s1', starts=False, user='user')
        self.clock.sleep(60)
        outcome = self.restart()['s1']
        self.assertEqual(('done', 'started'), (outcome.status, outcome.what))
        self.assertEqual('available', self.status())
        self.assertNotIn(('reboot', 's1'), self.cloud.sent)

    def test_a_deleted_server_leaves_its_volume_to_be_freed(self):
        self.cloud.set(servers={}, mappings=self.cloud.seen.mappings[:0])
        self.assertEqual('left', self.restart()['s1'].status)
        self.assertEqual('available', self.status())

    def test_freed_only_if_nobody_has_it(self):
        mapping = build.mapping('s9', 'v1')
        self.cloud.set(
            mappings=(self.cloud.seen.mappings[0], mapping),
            servers={**self.cloud.seen.servers, 's9': build.server('s9')},
        )
        self.restart()
        self.assertEqual('reserved', self.status())
        self.assertNotIn(('make_available', 'v1'), self.cloud.sent)
