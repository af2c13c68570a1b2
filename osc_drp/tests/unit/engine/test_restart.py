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

"""Step 3, driven against a cloud in memory."""

import dataclasses
import threading
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp import report
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import plan
from osc_drp.engine import restart
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

Do = plan.Do
CONFLICT = exceptions.Conflict('409')
UNANSWERED = exceptions.Unanswered('no answer')
NOT_FOUND = exceptions.NotFound('404')


class TestCase(unittest.TestCase):
    """One server, off since the loss, with a data disk."""

    def setUp(self):
        self.said = []
        self.journal = fakes.run(self)
        self.map = build.cloud_map(('s1', 'v1'))
        self.cloud = fakes.Cloud(build.agreeing(('s1', 'v1')))
        self.clock = self.cloud.clock

    def job(self, stops=None, selection=None, **settings):
        settings.setdefault('wait', 30.0)
        self.last = restart.Restart(
            self.cloud,
            self.map,
            selection or plan.Selection(),
            restart.Settings(**settings),
            self.said.append,
            our_stops=stops or {},
            clock=self.clock,
        )
        return self.last

    def propose(self, *args, **settings):
        return self.job(*args, **settings).propose_ready()

    def one(self, *args, **settings):
        (item,) = self.propose(*args, **settings)
        return item

    def carry_out(self, items):
        (outcome,) = self.last.carry_out(items, self.journal)
        return outcome

    def restart_all(self, **settings):
        items = self.propose(**settings)
        return {
            o.server_id: o.status
            for o in self.last.carry_out(items, self.journal)
        }

    def outcome(self, **settings):
        items = self.propose(**settings)
        return self.carry_out(items)


class TestPropose(TestCase):
    """Looking and waiting."""

    def test_dry_run_asks_once_and_sends_nothing(self):
        (item,) = self.job().propose()
        self.assertIs(Do.START, item.do)
        self.assertEqual(1, self.cloud.reads['observe'])
        self.assertEqual([], self.cloud.sent)
        self.assertEqual(0, self.clock.slept)

    def test_off_and_ready_needs_no_waiting(self):
        self.assertIs(Do.START, self.one().do)
        self.assertEqual(0, self.clock.slept)

    def test_waits_for_novas_look(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.clock.later(50, lambda: self.cloud.stopped('s1'))
        self.clock.later(50, lambda: self.cloud.log('s1', 'stop', user=None))
        self.assertIs(Do.START, self.one().do)
        self.assertGreaterEqual(self.clock.slept, 50)
        self.assertLess(self.clock.slept, 60)
        self.assertIn('may not have looked yet', self.said[0])
        # a whole look first and last; between them only at what changes
        self.assertEqual(2, self.cloud.reads['observe'])
        self.assertGreater(self.cloud.reads['renew'], 10)

    def test_plans_on_the_records_as_they_are_after_the_wait(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.clock.later(50, lambda: self.cloud.stopped('s1'))
        self.clock.later(50, lambda: self.cloud.log('s1', 'stop', user=None))
        self.clock.later(30, lambda: self.cloud.set(rows=()))
        item = self.one()
        self.assertEqual((Do.FLAG, 'R8'), (item.do, item.rule))

    def test_one_that_really_runs_is_proven_after_settling(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        item = self.one(settle=120.0)
        self.assertEqual((Do.NOTHING, 'runs'), (item.do, item.reason))
        self.assertGreaterEqual(self.clock.slept, 120)
        self.assertEqual(1, self.cloud.reads['diagnostics'])

    def test_settling_begins_when_its_compute_is_first_seen_up(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.cloud.set(services=build.services(up=False))
        up = build.services()
        self.clock.later(100, lambda: self.cloud.set(services=up))
        self.one(settle=120.0, wait=600.0)
        self.assertGreaterEqual(self.clock.slept, 220)

    def test_settling_begins_anew_when_its_compute_was_away(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        for at, up in ((100, False), (110, True)):
            self.clock.later(
                at,
                lambda up=up: self.cloud.set(services=build.services(up=up)),
            )
        self.one(settle=120.0, wait=600.0)
        self.assertGreaterEqual(self.clock.slept, 230)

    def test_settling_begins_anew_when_a_reading_changes(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.clock.later(
            100, lambda: self.cloud.change('s1', power_state=facts.SHUTDOWN)
        )
        item = self.one(settle=120.0, wait=600.0)
        self.assertIs(Do.STOP, item.do)
        self.assertGreaterEqual(self.clock.slept, 220)

    def test_not_proven(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.cloud.diagnostics['s1'] = None
        item = self.one(settle=0.0)
        self.assertIs(Do.FLAG, item.do)
        self.assertIn('not proven', item.reason)

    def test_busy_is_waited_for(self):
        self.cloud.change('s1', task_state='powering-off')
        self.clock.later(20, lambda: self.cloud.change('s1', task_state=None))
        self.assertIs(Do.START, self.one().do)

    def test_a_request_that_nova_compute_never_got(self):
        self.cloud.change('s1', task_state='powering-on')
        item = self.one(wait=30.0, settle=0.0)
        self.assertIs(Do.FLAG, item.do)
        self.assertIn(
            f'a restart of nova-compute on {build.HOST}', item.reason
        )

    def test_busy_is_not_waited_for_without_end(self):
        self.cloud.change('s1', task_state='rebuilding')
        item = self.one(wait=30.0, settle=0.0)
        self.assertIs(Do.FLAG, item.do)
        self.assertIn('waited in vain: busy (rebuilding)', item.reason)
        self.assertLess(self.clock.slept, 60)

    def test_a_busy_server_does_not_keep_others_from_being_proven(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.cloud.set(
            servers={
                's1': build.server(task_state='rebuilding'),
                's2': build.running('s2'),
            }
        )
        found = [i.do for i in self.propose(wait=30.0, settle=0.0)]
        self.assertEqual([Do.FLAG, Do.NOTHING], found)

    def test_selection(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.cloud.set(servers={s: build.server(s) for s in ('s1', 's2')})
        item = self.one(selection=plan.Selection(servers=('s2',)))
        self.assertEqual('s2', item.server_id)


class TestGate(TestCase):
    """Nothing begins before all that is needed is up."""

    def down(self, binary, host):
        services = [
            s for s in build.services() if (s.binary, s.host) != (binary, host)
        ]
        down = facts.Service(binary, host, False)
        self.cloud.set(services=(*services, down))

    def test_names_service_and_host_and_refuses(self):
        for binary, host in (
            ('nova-compute', build.HOST),
            ('cinder-volume', build.BACKEND),
            ('neutron:neutron-openvswitch-agent', build.HOST),
        ):
            with self.subTest(binary):
                self.cloud.ports = frozenset({'s1'})
                self.down(binary, host)
                slept = self.clock.slept
                with self.assertRaises(exceptions.Refused) as caught:
                    self.propose(wait=30.0)
                self.assertIn(f'{binary} on {host}', str(caught.exception))
                self.assertGreaterEqual(self.clock.slept - slept, 30)
                self.assertLess(self.clock.slept - slept, 40)
                self.assertIn(f'waiting for {binary} on', self.said[-1])

    def test_a_server_without_ports_needs_no_agent(self):
        self.down('neutron:neutron-openvswitch-agent', build.HOST)
        self.assertIs(Do.START, self.one().do)

    def test_an_api_that_goes_away_again(self):
        """In the gate, and while servers settle: it is waited for."""
        gone = fakes.then_raise(exceptions.Away('503', 'nova: it said 503'))
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.cloud.next('observe', gone, None, gone, gone, None)
        self.assertIs(Do.NOTHING, self.one(settle=120.0).do)
        told = [s for s in self.said if s == 'waiting for nova: it said 503']
        self.assertEqual(2, len(told), self.said)

    def test_an_api_that_stays_away_cannot_be_skipped(self):
        gone = fakes.then_raise(exceptions.Away('503', 'nova: it said 503'))
        self.cloud.next('observe', *[gone] * 20)
        with self.assertRaises(exceptions.Refused) as caught:
            self.propose(wait=30.0, skip_not_ready=True)
        self.assertEqual(
            'not ready after 30 s: nova: it said 503', str(caught.exception)
        )

    def test_skips_what_was_away_in_the_last_look_only(self):
        """The service that was missing before the API went is no excuse."""
        gone = fakes.then_raise(exceptions.Away('503', 'nova: it said 503'))
        self.down('nova-compute', build.HOST)
        self.cloud.next('observe', None, *[gone] * 20)
        with self.assertRaisesRegex(exceptions.Refused, 'it said 503'):
            self.propose(wait=30.0, skip_not_ready=True)

    def test_masakari_that_is_away_holds_nobody_up(self):
        gone = exceptions.Away('instance-ha does not answer', 'masakari')
        self.cloud.ha_segments = mock.Mock(side_effect=gone)
        self.assertIs(Do.START, self.one().do)
        self.assertIn('hold masakari when it is back: instance-ha', *self.said)

    def test_masakari_that_refuses_holds_nobody_up(self):
        for error in (
            exceptions.ApiError('instance-ha answers 403'),
            exceptions.NotFound('instance-ha answers 404'),
        ):
            self.cloud.ha_segments = mock.Mock(side_effect=error)
            self.assertIs(Do.START, self.one().do)
            self.assertEqual(
                f'hold masakari; its segments cannot be listed: {error}',
                self.said[-1],
            )

    def test_names_what_acts_by_itself(self):
        self.cloud.segments = ['blue-segment']
        self.propose()
        self.assertIn("hold masakari's segment 'blue-segment'", self.said[0])

    def test_volumes_in_error_come_with_the_two_commands(self):
        self.cloud.set_volume('v1', status='error')
        item = self.one()
        self.assertIs(Do.FLAG, item.do)
        said = '\n'.join(self.said)
        self.assertIn(f"1 attached volumes of '{build.BACKEND}", said)
        self.assertIn('iscsiadm -m discovery -t st -p $SAN_IP', said)

    def test_a_service_that_is_not_listed_is_not_up(self):
        self.cloud.set(services=())
        with self.assertRaisesRegex(exceptions.Refused, 'nova-compute'):
            self.propose()

    def test_waits_until_it_is_up(self):
        self.down('cinder-volume', build.BACKEND)
        self.clock.later(20, lambda: self.cloud.set(services=build.services()))
        self.assertIs(Do.START, self.one().do)
        self.assertEqual(2, self.cloud.reads['observe'])
        self.assertGreater(self.cloud.reads['renew'], 3)

    def test_skips_on_the_records_as_they_are_after_the_wait(self):
        self.down('nova-compute', build.HOST)
        self.clock.later(20, lambda: self.cloud.set(rows=()))
        job = self.job(wait=30.0, skip_not_ready=True)
        job.propose_ready()
        self.assertEqual((), job.seen.rows)

    def test_wait_nought_looks_once(self):
        self.down('nova-compute', build.HOST)
        with self.assertRaises(exceptions.Refused):
            self.propose(wait=0.0)
        self.assertEqual(1, self.cloud.reads['observe'])

    def test_only_what_the_selection_needs(self):
        self.down('nova-compute', 'another')
        self.assertIs(Do.START, self.one().do)
        # of a server that will not be started nothing is needed
        self.down('nova-compute', build.HOST)
        self.map = dataclasses.replace(
            self.map,
            servers=(
                build.map_server(vm_state='stopped'),
                build.map_server('s9'),
            ),
        )
        self.assertIs(Do.LEAVE, self.propose()[0].do)

    def test_skip_not_ready(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.cloud.seen = build.agreeing(
            ('s1', 'v1'),
            ('s2', 'v2'),
            servers=[build.server(), build.server('s2', host='compute2')],
        )
        items = self.propose(skip_not_ready=True)
        self.assertEqual([Do.START, Do.FLAG], [i.do for i in items])
        self.assertEqual('nova-compute on compute2 is not up', items[1].reason)


class TestDeleted(TestCase):
    """One that is deleted after the look is no reason to stop for all."""

    def setUp(self):
        super().setUp()
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.cloud.seen = build.agreeing(('s1', 'v1'), ('s2', 'v2'))

    def check_left(self, first, second, **settings):
        one, two = self.propose(**settings)
        self.assertEqual(
            (first, 'the server was deleted since'), (one.do, one.reason)
        )
        self.assertIs(second, two.do)

    def test_before_its_log_is_read(self):
        self.cloud.next('actions', fakes.then_raise(NOT_FOUND))
        limits = apply.Limits(parallel=1)
        self.check_left(Do.LEAVE, Do.START, limits=limits)
        # nor is it asked for again by a plan on the same look
        asked = self.cloud.reads['actions']
        self.assertIs(Do.LEAVE, self.last.decide()[0].do)
        self.assertEqual(asked, self.cloud.reads['actions'])

    def test_one_that_the_map_does_not_have(self):
        self.map = build.cloud_map(('s1', 'v1'))
        gone = fakes.then_raise(NOT_FOUND)
        self.cloud.next('actions', None, gone)
        limits = apply.Limits(parallel=1)
        _one, two = self.propose(lost_at=build.TAKEN_AT, limits=limits)
        self.assertEqual(('s2', Do.LEAVE), (two.server_id, two.do))

    def test_before_its_hypervisor_is_asked(self):
        for server_id in 's1', 's2':
            self.cloud.change(
                server_id, vm_state='active', power_state=facts.RUNNING
            )
        self.cloud.next('diagnostics', fakes.then_raise(NOT_FOUND))
        limits = apply.Limits(parallel=1)
        self.check_left(Do.LEAVE, Do.NOTHING, settle=0.0, limits=limits)

    def test_the_next_look_decides_anew(self):
        self.cloud.next('actions', fakes.then_raise(NOT_FOUND))
        self.propose(limits=apply.Limits(parallel=1))
        again = [i.do for i in self.last.look_again()]
        self.assertEqual([Do.START, Do.START], again)

    def test_right_before_its_start(self):
        items = self.propose()
        self.cloud.next('actions', fakes.then_raise(NOT_FOUND))
        first, _second = self.last.carry_out(items, self.journal)
        self.assertEqual(
            ('left', 'the server was deleted since'),
            (first.status, first.what),
        )
        self.assertEqual([('start', 's2')], self.cloud.sent)


class TestSideBySide(TestCase):
    """Answers that take long are waited for at the same time."""

    def setUp(self):
        super().setUp()
        keys = [(f's{n}', f'v{n}') for n in range(1, 9)]
        self.map = build.cloud_map(*keys)
        self.cloud.seen = build.agreeing(*keys)
        self.most = 0

    def slow(self, name, parallel):
        """Let a call return as soon as so many are under way."""
        barrier, plain = threading.Barrier(parallel), getattr(self.cloud, name)

        def together(server_id):
            self.most = max(self.most, threading.active_count())
            barrier.wait(10)
            return plain(server_id)

        setattr(self.cloud, name, together)

    def check(self, do, **settings):
        before = threading.active_count()
        limits = apply.Limits(parallel=4)
        found = {i.do for i in self.propose(limits=limits, **settings)}
        self.assertEqual({do}, found)
        self.assertLessEqual(self.most - before, 4)

    def test_hypervisors(self):
        for n in range(1, 9):
            self.cloud.change(
                f's{n}', vm_state='active', power_state=facts.RUNNING
            )
        self.slow('diagnostics_running', 4)
        self.check(Do.NOTHING, settle=0.0)
        self.assertEqual(
            ['asking the hypervisors of 8 servers'], self.said[-1:]
        )

    def test_action_logs(self):
        self.slow('actions', 4)
        self.check(Do.START)

    def test_errors_end_it_as_before(self):
        gone = exceptions.Away('503', 'nova: it said 503')
        self.cloud.next('actions', fakes.then_raise(gone))
        with self.assertRaises(exceptions.Away):
            self.propose()


class TestHistory(TestCase):
    """Who was running, and who wanted it off."""

    def test_a_users_stop_is_respected(self):
        self.cloud.log('s1', 'stop')
        self.assertIs(Do.LEAVE, self.one().do)

    def test_novas_stop_is_the_loss(self):
        self.cloud.log('s1', 'stop', user=None)
        self.assertIs(Do.START, self.one().do)

    def test_our_own_killed_stop_is_resumed(self):
        self.cloud.log('s1', 'create')
        self.cloud.log('s1', 'stop', user=fakes.ME)
        stops = {'s1': ['req-s1-0']}
        self.assertIs(Do.START, self.one(stops).do)
        self.assertIs(Do.LEAVE, self.one().do)

    def test_a_second_loss(self):
        self.cloud.log('s1', 'stop', user=None)
        self.cloud.log('s1', 'start', user=fakes.ME)
        self.cloud.log('s1', 'stop', user=None)
        self.assertIs(Do.START, self.one().do)

    def off_in_map(self):
        self.map = dataclasses.replace(
            self.map, servers=(build.map_server(vm_state='stopped'),)
        )

    def test_lost_at(self):
        self.off_in_map()
        self.cloud.log('s1', 'stop', user=None)
        self.assertIs(Do.LEAVE, self.one().do)
        self.assertIs(Do.START, self.one(lost_at='2026-11-22T03:30:00Z').do)
        later = '2026-11-22T05:00:00Z'
        self.assertIs(Do.LEAVE, self.one(lost_at=later).do)

    def test_lost_at_waits_for_novas_look(self):
        self.off_in_map()
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)

        def look():
            self.cloud.log('s1', 'stop', user=None)
            self.cloud.stopped('s1')

        self.clock.later(50, look)
        self.assertIs(Do.START, self.one(lost_at=build.TAKEN_AT).do)

    def test_lost_at_resumes_our_own_killed_stop(self):
        self.off_in_map()
        self.cloud.log('s1', 'stop', user=None)
        self.cloud.log('s1', 'stop', user=fakes.ME)
        lost_at = build.TAKEN_AT
        self.assertIs(
            Do.START, self.one({'s1': ['req-s1-0']}, lost_at=lost_at).do
        )
        self.assertIs(Do.LEAVE, self.one(lost_at=lost_at).do)

    def grown(self):
        """Let three servers have been created after the map."""
        new = {
            s: build.server(s) for s in ('new-lost', 'new-off', 'new-never')
        }
        self.cloud.set(servers={**self.cloud.seen.servers, **new})
        for server_id, user in ('s1', None), ('new-lost', None):
            self.cloud.log(server_id, 'stop', user=user)
        self.cloud.log('new-off', 'stop')

    def test_lost_at_starts_what_was_created_after_the_map(self):
        self.grown()
        lost_at = '2026-11-22T03:30:00Z'
        self.assertEqual('s1', self.one().server_id)
        items = self.propose(lost_at=lost_at)
        self.assertEqual(
            {
                's1': Do.START,
                'new-lost': Do.START,
                'new-off': Do.LEAVE,
                'new-never': Do.LEAVE,
            },
            {i.server_id: i.do for i in items},
        )
        self.assertIn(
            'the map does not have it',
            next(i.reason for i in items if i.server_id == 'new-off'),
        )
        self.assertEqual(0, report.exit_code(items, (), dry_run=False))
        outcomes = self.last.carry_out(items, self.journal)
        self.assertEqual(
            {('s1', apply.DONE), ('new-lost', apply.DONE)},
            {(o.server_id, o.status) for o in outcomes},
        )

    def test_lost_at_names_what_was_created_after_the_map(self):
        self.grown()
        chosen = plan.Selection(servers=('name-new-lost',))
        with self.assertRaisesRegex(exceptions.DrpError, 'only in the cloud'):
            self.one(selection=chosen)
        item = self.one(selection=chosen, lost_at=build.TAKEN_AT)
        self.assertEqual(('new-lost', Do.START), (item.server_id, item.do))

    def test_the_log_is_read_only_of_servers_that_are_off_and_wanted(self):
        self.off_in_map()
        self.one()
        self.assertEqual(0, self.cloud.reads['actions'])


class TestCarryOut(TestCase):
    """Starting."""

    def test_start(self):
        outcome = self.outcome()
        self.assertEqual(('done', 'started'), (outcome.status, outcome.what))
        self.assertEqual([('start', 's1')], self.cloud.sent)
        self.assertEqual(
            [
                {
                    'event': 'before',
                    'action': 'start',
                    'server': 's1',
                    'newest': None,
                },
                {'event': 'sent', 'action': 'start', 'server': 's1'},
                {
                    'event': 'outcome',
                    'action': 'restart',
                    'server': 's1',
                    'status': 'done',
                    'what': 'started',
                },
            ],
            fakes.events(self.journal, 'before', 'sent', 'outcome'),
        )

    def test_journal_knows_the_newest_action_before_the_request(self):
        self.cloud.log('s1', 'stop', user=None)

        def sent(_server_id):
            (entry,) = fakes.events(self.journal, 'before')
            self.assertEqual('req-s1-0', entry['newest'])

        self.cloud.next('start', fakes.then_raise(CONFLICT, sent))
        self.assertEqual('failed', self.outcome().status)

    def test_the_log_is_read_once_for_the_plan_and_once_for_the_act(self):
        """The journal has what the last decision was made of."""
        items = self.propose()
        self.cloud.log('s1', 'lock')
        self.cloud.reads.clear()
        self.assertEqual('done', self.carry_out(items).status)
        self.assertEqual(1, self.cloud.reads['actions'])
        (entry,) = fakes.events(self.journal, 'before')
        self.assertEqual('req-s1-0', entry['newest'])

    def test_the_log_is_read_last(self):
        """What a user does while the disks are read again is seen."""
        items = self.propose()
        self.clock.sleep(restart.FRESH + 1)
        self.cloud.next('mappings_of', lambda s: self.cloud.log(s, 'stop'))
        self.assertEqual('left', self.carry_out(items).status)
        self.assertEqual([], self.cloud.sent)

    def test_the_server_is_not_read_again_for_its_disks(self):
        items = self.propose()
        self.cloud.reads.clear()
        self.carry_out(items)
        fresh = self.cloud.reads['server']
        self.cloud.stopped('s1')
        items = self.propose()
        self.clock.sleep(restart.FRESH + 1)
        self.cloud.reads.clear()
        self.carry_out(items)
        self.assertEqual(fresh, self.cloud.reads['server'])

    def test_nothing_to_do_is_no_outcome(self):
        self.cloud.log('s1', 'stop')
        items = self.propose()
        self.assertEqual([], self.last.carry_out(items, self.journal))

    def test_error_is_stopped_then_started(self):
        self.cloud.change('s1', vm_state='error', power_state=0)
        self.assertEqual('done', self.outcome().status)
        self.assertEqual([('stop', 's1'), ('start', 's1')], self.cloud.sent)
        befores = fakes.events(self.journal, 'before')
        self.assertEqual(
            [('stop', None), ('start', 'req-s1-0')],
            [(b['action'], b['newest']) for b in befores],
        )

    def test_active_without_a_guest_is_stopped_then_started(self):
        self.cloud.change('s1', vm_state='active')
        self.assertEqual('done', self.outcome(settle=0.0).status)
        self.assertEqual([('stop', 's1'), ('start', 's1')], self.cloud.sent)

    def test_lost_guest(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.cloud.diagnostics['s1'] = False
        items = self.propose(settle=0.0)
        self.assertEqual('done', self.carry_out(items).status)
        self.assertEqual([('stop', 's1'), ('start', 's1')], self.cloud.sent)

    def test_lost_at_and_stopped_by_us_is_started(self):
        self.map = dataclasses.replace(
            self.map, servers=(build.map_server(vm_state='stopped'),)
        )
        self.cloud.change('s1', vm_state='active')
        outcome = self.outcome(settle=0.0, lost_at=build.TAKEN_AT)
        self.assertEqual('done', outcome.status)

    def test_start_that_fails_tells_novas_fault(self):
        self.cloud.faults['s1'] = 'No disk at /var/lib'
        outcome = self.outcome()
        self.assertEqual('failed', outcome.status)
        self.assertEqual(
            'did not start (error): No disk at /var/lib', outcome.what
        )

    def test_start_that_nova_forgets(self):
        self.cloud.next('start', lambda server_id: None)
        outcome = self.outcome()
        self.assertEqual('failed', outcome.status)
        self.assertIn('nova gives no reason', outcome.what)

    def test_active_but_dark_is_not_started(self):
        def dark(_server_id):
            self.cloud.change('s1', vm_state='active')

        self.cloud.next('start', dark)
        self.assertEqual('failed', self.outcome().status)

    def test_start_without_end(self):
        self.cloud.next(
            'start',
            lambda s: self.cloud.change(s, task_state='powering-on'),
        )
        outcome = self.outcome()
        self.assertEqual('failed', outcome.status)
        self.assertEqual(
            'the start was sent, but: nova did not start it within 600 s',
            outcome.what,
        )
        self.assertLess(self.clock.slept, 700)

    def test_stop_that_fails_is_not_followed_by_a_start(self):
        self.cloud.change('s1', vm_state='error', power_state=0)
        self.cloud.next('stop', lambda server_id: None)
        self.cloud.faults['s1'] = 'boom'
        outcome = self.outcome()
        self.assertEqual(
            ('failed', 'it did not stop: boom'), (outcome.status, outcome.what)
        )
        self.assertEqual([('stop', 's1')], self.cloud.sent)


class TestDoubt(TestCase):
    """Answers that do not tell what became of the request."""

    def doubt(self, error, first=None, action='start'):
        self.cloud.next(action, fakes.then_raise(error, first))
        return self.outcome()

    def test_unanswered_but_taken(self):
        outcome = self.doubt(UNANSWERED, self.cloud.do_start)
        self.assertEqual('done', outcome.status)
        self.assertEqual([('start', 's1')], self.cloud.sent)

    def test_unanswered_and_nobody_to_ask(self):
        """The first doubt is told, not the second: it may be done."""

        def blind(server_id):
            def no_answer(_server_id):
                raise exceptions.ApiError('nova does not answer')

            self.cloud.server = no_answer

        outcome = self.doubt(UNANSWERED, blind)
        self.assertEqual(
            ('failed', 'no answer'), (outcome.status, outcome.what)
        )

    def test_sent_and_nobody_to_ask(self):
        def blind(server_id):
            def no_answer(_server_id):
                raise exceptions.ApiError('nova does not answer')

            self.cloud.server = no_answer

        self.cloud.next('start', blind)
        outcome = self.outcome()
        self.assertEqual(
            ('failed', 'the start was sent, but: nova does not answer'),
            (outcome.status, outcome.what),
        )

    def test_unanswered_taken_and_over(self):
        def fail_quickly(server_id):
            self.cloud.log(server_id, 'start', fakes.ME)
            self.cloud.faults[server_id] = 'boom'

        outcome = self.doubt(UNANSWERED, fail_quickly)
        self.assertEqual('did not start (stopped): boom', outcome.what)
        self.assertEqual([('start', 's1')], self.cloud.sent)

    def test_unanswered_and_not_taken_is_never_sent_again(self):
        outcome = self.doubt(UNANSWERED)
        self.assertEqual(
            ('failed', 'no answer'), (outcome.status, outcome.what)
        )
        self.assertEqual([('start', 's1')], self.cloud.sent)

    def test_unanswered_and_somebody_else_did_something_else(self):
        for name, user in (('reboot', fakes.ME), ('start', 'user')):
            self.setUp()
            outcome = self.doubt(
                UNANSWERED,
                lambda s, n=name, u=user: self.cloud.log(s, n, u),
            )
            self.assertEqual('no answer', outcome.what)

    def test_conflict_but_powering_on(self):
        outcome = self.doubt(
            CONFLICT, lambda s: self.cloud.do_start(s, 'user')
        )
        self.assertEqual('done', outcome.status)

    def test_conflict_but_active(self):
        def started(server_id):
            self.cloud.change(
                server_id, vm_state='active', power_state=facts.RUNNING
            )

        self.assertEqual('done', self.doubt(CONFLICT, started).status)

    def test_conflict_is_not_done_because_the_log_is_longer(self):
        outcome = self.doubt(
            CONFLICT, lambda s: self.cloud.log(s, 'start', fakes.ME)
        )
        self.assertEqual(('failed', '409'), (outcome.status, outcome.what))
        self.assertEqual([('start', 's1')], self.cloud.sent)

    def test_stop_that_nova_does_by_itself(self):
        self.cloud.change('s1', vm_state='error', power_state=0)
        outcome = self.doubt(
            CONFLICT, lambda s: self.cloud.do_stop(s, None), 'stop'
        )
        self.assertEqual('done', outcome.status)
        self.assertEqual([('stop', 's1'), ('start', 's1')], self.cloud.sent)

    def test_other_errors_fail_at_once(self):
        outcome = self.doubt(exceptions.ApiError('nova answers 500'))
        self.assertEqual('nova answers 500', outcome.what)


class TestMeanwhile(TestCase):
    """What changed between the plan and the act."""

    def meanwhile(self, change, **settings):
        items = self.propose(**settings)
        change()
        return self.carry_out(items)

    def test_somebody_started_it_and_the_guest_is_off_again(self):
        for power_state, runs in (
            (facts.RUNNING, False),
            (facts.SHUTDOWN, True),
        ):
            with self.subTest(power_state):
                self.setUp()
                self.cloud.diagnostics['s1'] = runs
                outcome = self.meanwhile(
                    lambda power_state=power_state: self.cloud.change(
                        's1', vm_state='active', power_state=power_state
                    )
                )
                self.assertEqual('open', outcome.status)
                self.assertIn('its guest is off', outcome.what)
                self.assertEqual([], self.cloud.sent)

    def test_somebody_started_it(self):
        outcome = self.meanwhile(
            lambda: self.cloud.change(
                's1', vm_state='active', power_state=facts.RUNNING
            )
        )
        self.assertEqual(
            ('done', 'somebody started it'), (outcome.status, outcome.what)
        )
        self.assertEqual([], self.cloud.sent)

    def test_a_user_stopped_it(self):
        def started_and_stopped():
            self.cloud.log('s1', 'start')
            self.cloud.log('s1', 'stop', at='2026-11-22T04:00:09Z')

        outcome = self.meanwhile(started_and_stopped)
        self.assertEqual('left', outcome.status)
        self.assertEqual([], self.cloud.sent)

    def test_a_user_revived_its_guest(self):
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.cloud.diagnostics['s1'] = False
        outcome = self.meanwhile(
            lambda: self.cloud.diagnostics.update(s1=True), settle=0.0
        )
        self.assertEqual('done', outcome.status)
        self.assertEqual([], self.cloud.sent)

    def test_deleted(self):
        outcome = self.meanwhile(lambda: self.cloud.set(servers={}))
        self.assertEqual('left', outcome.status)

    def test_shelved(self):
        outcome = self.meanwhile(
            lambda: self.cloud.change('s1', vm_state='shelved')
        )
        self.assertEqual('left', outcome.status)

    def test_novas_own_stop_is_waited_for(self):
        self.cloud.change('s1', vm_state='active')
        outcome = self.meanwhile(
            lambda: self.cloud.do_stop('s1', None), settle=0.0
        )
        self.assertEqual('done', outcome.status)
        self.assertEqual([('start', 's1')], self.cloud.sent)

    def test_busy_without_end(self):
        outcome = self.meanwhile(
            lambda: self.cloud.change('s1', task_state='rebuilding')
        )
        self.assertEqual('failed', outcome.status)
        self.assertEqual([], self.cloud.sent)

    def dangle(self):
        self.cloud.set(rows=())
        self.cloud.set_volume('v1', status='available')

    def test_disks_are_read_again_when_the_plan_is_old(self):
        def later():
            self.dangle()
            self.clock.sleep(restart.FRESH + 1)

        outcome = self.meanwhile(later)
        self.assertEqual('open', outcome.status)
        self.assertIn('v1', outcome.what)
        self.assertEqual([], self.cloud.sent)

    def test_volume_gone(self):
        def later():
            self.cloud.set(volumes={})
            self.clock.sleep(restart.FRESH + 1)

        self.assertEqual('open', self.meanwhile(later).status)

    def test_disks_are_read_again_after_a_long_stop(self):
        self.cloud.change('s1', vm_state='error', power_state=0)

        def slow(server_id):
            self.cloud.change(server_id, task_state='powering-off')
            self.clock.later(100, lambda: self.cloud.stopped(server_id))
            self.clock.later(50, self.dangle)

        self.cloud.next('stop', slow)
        self.assertEqual('open', self.outcome().status)
        self.assertEqual([('stop', 's1')], self.cloud.sent)


class TestMany(TestCase):
    """Several servers."""

    def setUp(self):
        super().setUp()
        self.keys = [(f's{n}', f'v{n}') for n in range(1, 7)]
        self.map = build.cloud_map(*self.keys)
        self.cloud.seen = build.agreeing(*self.keys)

    def test_each_is_started_once(self):
        found = self.restart_all()
        self.assertEqual({'done'}, set(found.values()))
        self.assertEqual(
            sorted(('start', s) for s, _v in self.keys),
            sorted(self.cloud.sent),
        )

    def test_canary_that_fails_stops_all(self):
        self.cloud.faults['s1'] = 'boom'
        found = self.restart_all()
        self.assertEqual('failed', found.pop('s1'))
        self.assertEqual({'untried'}, set(found.values()))
        self.assertEqual([('start', 's1')], self.cloud.sent)

    def test_never_two_starts_in_one_invocation(self):
        # it goes off right after its start; the same job plans again
        items = self.propose()
        self.last.carry_out(items[:1], self.journal)
        self.cloud.stopped('s1')
        again = self.last.propose_ready()
        self.assertIs(Do.FLAG, again[0].do)
        self.assertIn('went off again', again[0].reason)
        # nor with the old plan in hand
        self.assertEqual(
            ['open'],
            [o.status for o in self.last.carry_out(items[:1], self.journal)],
        )
        self.assertEqual([('start', 's1')], self.cloud.sent)

    def test_limits_reach_the_lanes(self):
        limits = apply.Limits(parallel=2, per_host=1)
        self.assertEqual(
            {'done'}, set(self.restart_all(limits=limits).values())
        )
