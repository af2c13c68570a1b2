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

"""What a recovery tells, on simulated clouds; its interruptions are tested
in test_interrupted.py."""

import contextlib
import dataclasses
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import plan
from osc_drp.engine import recover
from osc_drp.engine import reset
from osc_drp.tests.simulated import disasters
from osc_drp.tests.simulated import recovery
from osc_drp.tests.simulated import seed
from osc_drp.tests.simulated import world as simulated
from osc_drp.tests.unit.engine import build


class TestCase(unittest.TestCase):
    def recover(self, world, cloud_map, classic=True, prepare=None, **more):
        """Recover in one process; give it and what it told."""
        subject = recovery.in_one(classic, **more)

        def run(case):
            if prepare:
                prepare(case.process)
            subject(case)

        with recovery.scratch() as directory:
            case = recovery.Case(world, cloud_map, directory)
            case.go(run)
            self.assertIsNone(case.error)
        self.told = case.told
        return case

    def result(self, world, step, server, volume=''):
        volume_id = world.volume_id(volume) if volume else ''
        return self.told[step, world.server_id(server), volume_id]


class TestTold(TestCase):
    def test_a_start_stays_true_if_its_attaches_fail(self):
        world, cloud_map = disasters.lost('web1')

        def prepare(process):
            start = process.cloud.start

            def then_cinder_is_ill(server_id):
                start(server_id)
                error = exceptions.ApiError('cinder is ill')
                process.fail('rows_of', error)

            process.cloud.start = then_cinder_is_ill

        self.recover(world, cloud_map, prepare=prepare)
        self.assertEqual(
            ('done', 'started'), self.result(world, 'start', 'web1')
        )
        self.assertEqual(
            ('failed', 'cinder is ill'),
            self.result(world, 'attach', 'web1', 'web1-data'),
        )

    def test_a_server_that_is_deleted_before_its_turn(self):
        world, cloud_map = disasters.lost('web1', 'app1')
        web1 = world.server_id('web1')
        volume = world.volume_id('web1-data')

        def prepare(process):
            release = process.databases.reset

            def and_it_is_deleted(pair, *args, **kwargs):
                release(pair, *args, **kwargs)
                if pair.server_id == web1:
                    world.delete_server(web1)

            process.databases.reset = and_it_is_deleted

        self.recover(world, cloud_map, prepare=prepare)
        self.assertEqual(
            ('left', 'the server was deleted since'),
            self.told['attach', web1, volume],
        )
        self.assertEqual('done', self.result(world, 'start', 'app1')[0])

    def test_lost_at_starts_what_was_created_after_the_map(self):
        for names in (), ('app1',):
            with self.subTest(names):
                world, cloud_map = disasters.lost('web1', 'app1')
                app1 = world.server_id('app1')
                attachments = tuple(
                    a for a in cloud_map.attachments if a.server_id != app1
                )
                servers = tuple(s for s in cloud_map.servers if s.id != app1)
                self.recover(
                    world,
                    dataclasses.replace(
                        cloud_map, servers=servers, attachments=attachments
                    ),
                    chosen=plan.Selection(servers=names),
                    lost_at=cloud_map.taken_at,
                )
                # started, and with its disks left as they are
                self.assertEqual(
                    {('start', app1, ''): ('done', 'started')},
                    {k: v for k, v in self.told.items() if k[1] == app1},
                )
                self.assertEqual(
                    not names,
                    ('start', world.server_id('web1'), '') in self.told,
                )

    def test_a_server_that_is_deleted_while_another_starts(self):
        world, cloud_map = disasters.lost('app1', 'db1', 'web1')
        web1, db1 = world.server_id('web1'), world.server_id('db1')

        def prepare(process):
            start = process.cloud.start

            def and_two_are_deleted(server_id):
                start(server_id)
                if server_id == db1:
                    # in spite of our lock; the other before its turn
                    world.delete_server(db1, user=simulated.ADMIN)
                    world.delete_server(web1)

            process.cloud.start = and_two_are_deleted

        self.recover(world, cloud_map, prepare=prepare)
        gone = {t for k, t in self.told.items() if k[1] in (web1, db1)}
        self.assertIn(('left', 'the server was deleted since'), gone)
        self.assertNotIn('failed', {status for status, _what in gone})
        self.assertNotIn('untried', {status for status, _what in gone})
        self.assertEqual('done', self.result(world, 'start', 'app1')[0])

    def test_what_is_deleted_before_the_last_look_is_left(self):
        step = recover.Step(
            'start', (), (apply.Outcome('s1', '', apply.DONE, 'started'),)
        )
        step = recover._without_deleted(step, build.seen())
        self.assertEqual(
            [('left', 'the server was deleted since')],
            [(o.status, o.what) for o in step.outcomes],
        )

    def meanwhile(self, change):
        """Let something happen while the question waits."""
        carry_out = recover.Recover.carry_out

        def changed(job, *args):
            change()
            return carry_out(job, *args)

        self.enterContext(
            mock.patch.object(recover.Recover, 'carry_out', changed)
        )

    def test_a_server_that_its_user_started_while_the_question_waited(self):
        world, cloud_map = disasters.lost('web1', 'app1')

        def change():
            world.start(world.server_id('web1'))
            world.sleep(10)

        self.meanwhile(change)
        self.recover(world, cloud_map, classic=False)
        self.assertEqual(
            ('done', 'somebody started it'),
            self.result(world, 'start', 'web1'),
        )
        self.assertEqual('done', self.result(world, 'start', 'app1')[0])

    def test_a_lock_that_stays_is_told(self):
        """Of a server that runs, too: nothing else is open there."""
        world, cloud_map = disasters.lost('web1')
        subject = recovery.in_one(False)

        def ill(case):
            error = exceptions.ApiError('nova is ill')
            case.process.fail('unlock', *[error] * 9)
            subject(case)

        with recovery.scratch() as directory:
            case = recovery.Case(world, cloud_map, directory)
            for _time in range(2):
                self.assertFalse(case.go(ill))
                self.told = case.told
                status, what = self.result(world, 'start', 'web1')
                self.assertEqual('open', status)
                self.assertIn('still locked', what)
            self.assertTrue(case.go(subject))
            self.assertEqual([], case.our_locks())
            self.assertEqual({}, case.runs.locks())

    def test_one_that_always_fails_stops_the_first_run_only(self):
        for subject in recovery.in_one(False), recovery.commands(False):
            world, cloud_map = disasters.lost('app1', 'web1')
            app1, web1 = map(world.server_id, ('app1', 'web1'))
            told = []
            with recovery.scratch() as directory:
                case = recovery.Case(world, cloud_map, directory)
                for _run in range(2):
                    case.go(self.without(app1, subject))
                    starts = {
                        key[1]: what[0]
                        for key, what in case.told.items()
                        if key[0] in ('start', 'servers restart')
                    }
                    told.append([starts[app1], starts[web1]])
            self.assertEqual([['failed', 'untried'], ['failed', 'done']], told)

    def without(self, server_id, subject):
        """Run it on a cloud where that server cannot be started."""

        def run(case):
            start = case.process.cloud.start

            def refused(wanted):
                if wanted == server_id:
                    raise exceptions.ApiError('no such disk')
                start(wanted)

            case.process.cloud.start = refused
            subject(case)

        return run

    def test_refused_after_a_repair_is_not_nothing_changed(self):
        world, cloud_map = disasters.lost('web1', 'app1')
        world.reset_volume_status(
            world.volume_id('web1-data'), 'available', 'detached'
        )
        settled = reset.Reset.propose_settled
        refused = exceptions.Refused('it changed')
        with recovery.scratch() as directory, contextlib.ExitStack() as stack:
            stack.enter_context(
                mock.patch.object(
                    reset.Reset, 'propose_settled', side_effect=refused
                )
            )
            case = recovery.Case(world, cloud_map, directory)
            case.go(recovery.in_one(True))
            self.assertNotIsInstance(case.error, exceptions.Refused)
            self.assertIn('it changed', str(case.error))
            self.assertIn('stays repaired', str(case.error))
        self.assertIs(settled, reset.Reset.propose_settled)

    def test_a_users_half_done_detach_is_finished_and_not_undone(self):
        """The map is newer than the wish, and so does not tell of it."""
        world = seed.make('app1')
        cloud_map = seed.take_map(world)
        app1, volume = world.server_id('app1'), world.volume_id('app1-data')
        world.detach(app1, volume)
        world.sleep(0.7)  # cinder forgot, nova did not yet
        world.power_loss()
        world.sleep(60)
        cloud_map = dataclasses.replace(
            cloud_map, taken_at=world.records.observe(world.now()).taken_at
        )
        world.power_on()
        world.sleep(70)
        key = 'attach', app1, volume

        case = self.recover(world, cloud_map, classic=False)
        self.assertEqual('leave', self.told[key][0])
        self.assertIn('finished by a repair', self.told[key][1])
        self.assertEqual([], recovery.check_journals(case, False))

    def test_no_lock_is_left_and_others_stay(self):
        world, cloud_map = disasters.lost('web1', 'app1')
        world.set_lock(world.server_id('app1'), 'audit', 'an-admin')
        self.recover(world, cloud_map)
        seen = world.records.observe(world.now())
        self.assertEqual(
            {'web1': False, 'app1': True},
            {s.name: s.locked for s in seen.servers.values()},
        )

    def test_classic_waits_for_no_shield_of_its_own(self):
        world, cloud_map = disasters.lost('cl1', 'cl2')
        before = world.now()
        self.recover(world, cloud_map)
        self.assertEqual([], [t for t in self.told.values() if t[0] == 'open'])
        # settling, starts, consoles: but not the 300 s of an attach
        self.assertLess((world.now() - before).total_seconds(), 300)

    def test_waves(self):
        world, cloud_map = disasters.lost('web1', 'db1', 'far1', 'idle1')
        for name, wave in (('far1', '1'), ('web1', '2'), ('idle1', '2')):
            world.metadata[world.server_id(name)] = {'drp_wave': wave}
        order = []

        def prepare(process):
            for what in 'start', 'attach':
                self.note(process.cloud, what, order)

        self.recover(world, cloud_map, prepare=prepare)
        names = {world.server_id(n): n for n in ('web1', 'db1', 'far1')}
        names[world.server_id('idle1')] = 'idle1'
        self.assertEqual(
            [
                *('start far1', 'attach far1', 'attach far1'),
                *('start idle1', 'start web1', 'attach web1'),
                *('start db1', 'attach db1', 'attach db1', 'attach db1'),
            ],
            [f'{what} {names[server_id]}' for what, server_id in order],
        )

    def note(self, cloud, what, order):
        """Write down which requests are sent, in their order."""
        real = getattr(cloud, what)

        def noted(wanted):
            order.append((what, getattr(wanted, 'server_id', wanted)))
            return real(wanted)

        setattr(cloud, what, noted)

    def test_repaired_volumes_wait_for_one_that_shows_their_export(self):
        world, cloud_map = disasters.lost('web1', 'db1', 'far1')
        for name in ('web1-data', 'db1-data'):
            world.reset_volume_status(
                world.volume_id(name), 'available', 'detached'
            )

        def prepare(process):
            error = exceptions.ApiError('no such target')
            process.fail('start', error)

        self.recover(world, cloud_map, classic=False, prepare=prepare)
        failed, held = (
            self.result(world, 'start', n) for n in ('db1', 'web1')
        )
        self.assertEqual('failed', failed[0])
        self.assertEqual('open', held[0])
        self.assertIn('restart cinder-volume', held[1])

    def test_who_is_left_alone_shows_no_export(self):
        names = ('db1', 'far1', 'far2', 'web1')
        world, cloud_map = disasters.lost(*names, 'app1')
        for name in names:
            world.reset_volume_status(
                world.volume_id(f'{name}-data'), 'available', 'detached'
            )
        gone = world.server_id('db1')
        # it is the canary of all; the others may go side by side
        world.metadata[world.server_id('app1')] = {'drp_wave': '1'}
        order = []

        def prepare(process):
            start, lock = process.cloud.start, process.cloud.lock

            def deleted(server_id, *args):
                lock(server_id, *args)
                if server_id == gone:
                    world.delete_server(gone, simulated.ADMIN)

            def fails(server_id):
                if order:
                    process.fail('start', exceptions.ApiError('no target'))
                order.append(server_id)
                start(server_id)

            process.cloud.lock = deleted
            process.cloud.start = fails

        self.recover(world, cloud_map, classic=False, prepare=prepare)
        left, _none = self.told['start', gone, '']
        self.assertEqual('left', left)
        self.assertEqual(
            [world.server_id('app1'), world.server_id('far1')], order
        )
        for name in 'far2', 'web1':
            status, what = self.result(world, 'start', name)
            self.assertEqual('open', status)
            self.assertIn('restart cinder-volume', what)


class TestPlan(unittest.TestCase):
    def test_classic_needs_databases(self):
        cloud_map = facts.CloudMap('', '', '', (), ())
        memory = recover.Memory({}, frozenset(), frozenset(), {}, {})
        with self.assertRaises(exceptions.Refused):
            recover.Recover(
                None,
                None,
                cloud_map,
                plan.Selection(),
                recover.Settings(classic=True),
                None,
                memory,
            )

    def items(self, *dos):
        return tuple(
            plan.Item(f's{n}', 'v', do, '', '') for n, do in enumerate(dos)
        )

    def test_the_question_counts_all_that_is_done(self):
        steps = (
            recover.Step('repair', self.items(plan.Do.REPAIR, plan.Do.FLAG)),
            recover.Step('reset', ()),
            recover.Step('start', self.items(plan.Do.START, plan.Do.START)),
            recover.Step('attach', self.items(plan.Do.NOTHING)),
        )
        self.assertEqual(
            ('repair 1 attachments, start 2 servers', 'recover 2'),
            recover.question(steps),
        )

    def test_what_was_not_shown_is_not_done(self):
        shown = recover.Step('start', self.items(plan.Do.START, plan.Do.LEAVE))
        fresh = self.items(plan.Do.START, plan.Do.START)
        step = recover._shown(shown, fresh)
        self.assertEqual(
            [plan.Do.START, plan.Do.FLAG], [i.do for i in step.items]
        )
        self.assertIn('run again', step.items[1].reason)

    def test_a_record_is_written_as_shown(self):
        for name, do in (('repair', 'flag'), ('start', 'stop')):
            shown, fresh = plan.Do.REPAIR, plan.Do.RESET
            if name == 'start':
                shown, fresh = plan.Do.START, plan.Do.STOP
            step = recover._shown(
                recover.Step(name, self.items(shown)), self.items(fresh)
            )
            self.assertEqual([do], [str(i.do) for i in step.items])


class TestDoubt(unittest.TestCase):
    def test_only_what_is_said_to_be_done(self):
        step = recover.Step(
            'start',
            (),
            (
                apply.Outcome('s1', '', apply.DONE, 'started'),
                apply.Outcome('s2', '', apply.FAILED, 'no'),
            ),
        )
        seen = build.seen([build.server('s1')])
        told = recover._doubt(
            step,
            lambda o: f'and is {seen.servers[o.server_id].vm_state} since',
        )
        self.assertEqual(
            [('open', 'started, and is stopped since'), ('failed', 'no')],
            [(o.status, o.what) for o in told.outcomes],
        )
