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

"""Step 4, driven against a cloud in memory."""

import dataclasses
import threading
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import plan
from osc_drp.engine import restore
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

Do = plan.Do
DEVICES = ('/dev/vdb', '/dev/vdc', '/dev/vdaa')
UNANSWERED = exceptions.Unanswered('no answer')
CONFLICT = exceptions.Conflict('400')


class TestRestore(unittest.TestCase):
    """One server that runs, and lacks its three data disks."""

    def setUp(self):
        self.said = []
        self.journal = fakes.run(self)
        # neither by id nor by name in the order of the devices
        self.map = self.make_map('s1')
        self.cloud = fakes.Cloud(
            build.seen(
                [build.running()],
                [build.free(v) for v in ('v1', 'v2', 'v3')],
            )
        )
        self.clock = self.cloud.clock

    def make_map(self, *servers):
        return build.cloud_map(
            attachments=[
                build.attachment(s, v, device=d)
                for s in servers
                for v, d in zip(('v3', 'v1', 'v2'), DEVICES, strict=True)
            ][::-1]
        )

    def job(self, **options):
        options = {
            'resets': {},
            'limits': apply.Limits(),
            'wait': 60.0,
            **options,
        }
        self.last = restore.Restore(
            self.cloud,
            self.map,
            plan.Selection(),
            self.said.append,
            clock=self.clock,
            **options,
        )
        return self.last

    def restore(self, meanwhile=lambda: None, **options):
        items = self.job(**options).propose()
        meanwhile()
        outcomes = self.last.carry_out(items, self.journal)
        return {o.volume_id: o for o in outcomes}

    def statuses(self, found):
        return {v: o.status for v, o in found.items()}

    def attached(self):
        return [entry[2] for entry in self.cloud.sent]

    def test_dry_run_sends_nothing(self):
        items = self.job().propose()
        self.assertEqual([Do.ATTACH] * 3, [i.do for i in items])
        self.assertEqual([], self.cloud.sent)
        self.assertEqual(0, self.clock.slept)

    def test_in_device_order_each_after_the_one_before_is_attached(self):
        def check(wanted):
            words = {r.attach_status for r in self.cloud.seen.rows}
            self.assertLessEqual(words, {'attached'})
            self.cloud.do_attach(wanted)

        self.cloud.next('attach', check, check, check)
        found = self.restore()
        self.assertEqual(['v3', 'v1', 'v2'], self.attached())
        self.assertEqual({'done'}, set(self.statuses(found).values()))
        self.assertEqual({''}, {o.warning for o in found.values()})
        self.assertLess(self.clock.slept, 10)
        again = {i.do for i in self.job().propose()}
        self.assertEqual({Do.NOTHING}, again)

    def test_only_the_verification_reads_all_rows(self):
        self.restore()
        self.assertEqual(1, self.cloud.reads['whole rows'])

    def test_journal(self):
        self.restore()
        which = {'action': 'attach', 'server': 's1', 'volume': 'v3'}
        self.assertEqual(
            [
                {'event': 'intent', **which},
                {'event': 'sent', 'device': '/dev/vdb', **which},
                {
                    'event': 'outcome',
                    'status': 'done',
                    'what': 'attached',
                    **which,
                },
            ],
            fakes.events(self.journal, 'intent', 'sent', 'outcome')[:3],
        )

    def test_intent_is_in_the_journal_before_the_request(self):
        def check(wanted):
            intents = fakes.events(self.journal, 'intent')
            self.assertEqual(wanted.volume_id, intents[-1]['volume'])
            self.cloud.do_attach(wanted)

        self.cloud.next('attach', check, check, check)
        self.assertEqual(3, len(self.restore()))

    def test_another_device_name_is_a_warning(self):
        self.cloud.devices['v1'] = '/dev/vdd'
        found = self.restore()
        self.assertEqual('done', found['v1'].status)
        self.assertEqual('was /dev/vdc, is /dev/vdd', found['v1'].warning)
        self.assertEqual('', found['v3'].warning)

    def test_no_warning_where_a_name_is_unknown(self):
        self.map = build.cloud_map(
            attachments=[build.attachment('s1', 'v1', device=None)]
        )
        self.cloud.devices['v1'] = '/dev/vdd'
        self.assertEqual('', self.restore()['v1'].warning)

    def test_stops_at_the_first_failure_of_a_server(self):
        self.cloud.next('attach', None, fakes.then_raise(CONFLICT))
        found = self.restore()
        self.assertEqual(
            {'v3': 'done', 'v1': 'failed', 'v2': 'untried'},
            self.statuses(found),
        )
        self.assertEqual('400', found['v1'].what)
        self.assertIn('the name of v1', found['v2'].what)
        self.assertEqual(['v3', 'v1'], self.attached())
        # by the names that an operator knows
        self.assertIn('name-s1: volume v1: ', self.said[0])

    def test_fails_afterwards_on_the_compute_host(self):
        self.cloud.next(
            'attach', lambda w: self.cloud.do_attach(w, fails=True)
        )
        found = self.restore()
        self.assertEqual('failed', found['v3'].status)
        self.assertIn('failed on the compute host', found['v3'].what)
        self.assertEqual(['v3'], self.attached())

    def test_takes_too_long(self):
        self.cloud.next(
            'attach', lambda w: self.cloud.do_attach(w, seconds=1000)
        )
        found = self.restore(wait=60.0)
        self.assertEqual('failed', found['v3'].status)
        self.assertEqual(
            'not attached within 60 s; it is attaching', found['v3'].what
        )
        self.assertLess(self.clock.slept, 70)

    def test_unanswered_but_taken(self):
        self.cloud.next(
            'attach', fakes.then_raise(UNANSWERED, self.cloud.do_attach)
        )
        found = self.restore()
        self.assertEqual({'done'}, set(self.statuses(found).values()))
        self.assertEqual(['v3', 'v1', 'v2'], self.attached())

    def test_unanswered_and_on_novas_record_only_yet(self):
        def begin(wanted):
            mapping = build.mapping(
                's1', 'v3', attachment_id=None, connected=False
            )
            self.cloud.set(mappings=(mapping,))

            def go_on():
                self.cloud.set(mappings=())
                self.cloud.do_attach(wanted)

            self.clock.later(3, go_on)

        self.cloud.next('attach', fakes.then_raise(UNANSWERED, begin))
        found = self.restore()
        self.assertEqual({'done'}, set(self.statuses(found).values()))
        self.assertEqual(['v3', 'v1', 'v2'], self.attached())

    def test_unanswered_and_stays_on_novas_record_only(self):
        def begin(wanted):
            self.cloud.set(mappings=(build.mapping('s1', 'v3'),))

        self.cloud.next('attach', fakes.then_raise(UNANSWERED, begin))
        found = self.restore()
        self.assertIn('it is in nova only', found['v3'].what)

    def test_unanswered_and_nobody_to_ask(self):
        """The first doubt is told, not the second: it may be done."""

        def blind(wanted):
            def no_answer(_server_id):
                raise exceptions.ApiError('cinder does not answer')

            self.cloud.rows_of = no_answer

        self.cloud.next('attach', fakes.then_raise(UNANSWERED, blind))
        self.assertEqual('no answer', self.restore()['v3'].what)

    def test_unanswered_and_not_taken_is_never_sent_again(self):
        self.cloud.next('attach', fakes.then_raise(UNANSWERED))
        found = self.restore()
        self.assertEqual(
            {'v3': 'failed', 'v1': 'untried', 'v2': 'untried'},
            self.statuses(found),
        )
        self.assertEqual(['v3'], self.attached())

    def test_attached_meanwhile_by_somebody_else(self):
        def attach():
            self.cloud.do_attach(build.attachment('s1', 'v3'))
            self.clock.sleep(5)

        found = self.restore(meanwhile=attach)
        self.assertEqual('done', found['v3'].status)

    def test_taken_meanwhile_by_another_server(self):
        found = self.restore(
            meanwhile=lambda: self.cloud.set_volume('v3', status='in-use')
        )
        self.assertEqual('failed', found['v3'].status)
        self.assertEqual('untried', found['v1'].status)

    def test_server_changed_meanwhile(self):
        for changes, text in (
            ({'vm_state': 'stopped', 'power_state': 4}, 'stopped'),
            ({'power_state': facts.SHUTDOWN}, 'its guest is off'),
            ({'task_state': 'rebooting'}, 'rebooting'),
        ):
            self.setUp()
            found = self.restore(
                meanwhile=lambda c=changes: self.cloud.change('s1', **c)
            )
            self.assertEqual({'open'}, set(self.statuses(found).values()))
            self.assertIn(text, found['v3'].what)
            self.assertEqual([], self.cloud.sent)

    def test_right_after_power_on_the_hypervisor_is_asked(self):
        self.cloud.diagnostics['s1'] = False
        found = self.restore()
        self.assertEqual({'open'}, set(self.statuses(found).values()))
        self.assertIn('nova has not noticed yet', found['v3'].what)
        self.assertEqual([], self.cloud.sent)

    def test_server_deleted_meanwhile(self):
        found = self.restore(meanwhile=lambda: self.cloud.set(servers={}))
        self.assertEqual({'left'}, set(self.statuses(found).values()))
        self.assertEqual('the server was deleted since', found['v3'].what)
        self.assertEqual([], self.cloud.sent)

    def test_an_attach_under_way_is_waited_for_not_sent(self):
        self.cloud.do_attach(
            next(a for a in self.map.attachments if a.volume_id == 'v3'),
            seconds=10,
        )
        found = self.restore()
        self.assertEqual('done', found['v3'].status)
        self.assertEqual(['v1', 'v2'], self.attached())

    def test_an_attach_under_way_is_not_waited_for_without_end(self):
        self.cloud.set(rows=(build.row('s1', 'v3', attach_status='reserved'),))
        self.cloud.set_volume('v3', status='reserved')
        found = self.restore(wait=60.0)
        self.assertEqual('failed', found['v3'].status)
        self.assertIn('reserved', found['v3'].what)
        self.assertEqual([], self.cloud.sent)

    def test_verified_on_both_sides(self):
        def differ(wanted):
            self.cloud.do_attach(wanted)

            def other_id():
                self.cloud.set(
                    mappings=tuple(
                        dataclasses.replace(m, attachment_id='other')
                        if m.volume_id == 'v3'
                        else m
                        for m in self.cloud.seen.mappings
                    )
                )

            self.clock.later(1, other_id)

        self.cloud.next('attach', differ)
        found = self.restore()
        self.assertEqual(
            {'v3': 'open', 'v1': 'done', 'v2': 'done'}, self.statuses(found)
        )
        self.assertIn('differ', found['v3'].what)

    def test_gone_again_when_verified(self):
        # somebody detaches it just before both sides are asked
        self.map = build.cloud_map(('s1', 'v1'))
        self.cloud.next('mappings_of', lambda s: self.cloud.set(rows=()))
        found = self.restore()
        self.assertEqual('open', found['v1'].status)

    def test_what_cannot_be_verified_is_not_called_failed(self):
        self.cloud.next(
            'mappings_of',
            fakes.then_raise(exceptions.ApiError('nova is gone')),
        )
        found = self.restore()
        self.assertEqual({'open'}, set(self.statuses(found).values()))
        self.assertIn('not verified: nova is gone', found['v3'].what)

    def test_only_logs_of_servers_that_lack_something_are_read(self):
        self.map = dataclasses.replace(
            self.make_map('s1', 's2', 's3'),
            attachments=(
                build.attachment('s1', 'v1'),
                build.attachment('s2', 'v2'),
                build.attachment('s3', 'v3'),
            ),
        )
        # s2 has its volume; s3 was deleted
        self.cloud.seen = build.seen(
            [build.running(), build.running('s2')],
            [build.free('v1'), build.volume('v2'), build.free('v3')],
            [build.mapping('s2', 'v2')],
            [build.row('s2', 'v2')],
        )
        items = self.job().propose()
        self.assertEqual(
            [Do.LEAVE, Do.ATTACH, Do.NOTHING], [i.do for i in items]
        )
        self.assertEqual(1, self.cloud.reads['actions'])

    def test_a_server_deleted_since_the_look_keeps_nobody_up(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.cloud.seen = build.seen(
            [build.running(), build.running('s2')],
            [build.free('v1'), build.free('v2')],
        )
        gone = exceptions.NotFound('404')
        self.cloud.next('actions', fakes.then_raise(gone))
        items = self.job(limits=apply.Limits(parallel=1)).propose()
        self.assertEqual(
            [
                (Do.LEAVE, 'the server was deleted since'),
                (Do.ATTACH, 'neither record has it'),
            ],
            [(i.do, i.reason) for i in items],
        )

    def test_action_logs_are_read_side_by_side(self):
        self.map = build.cloud_map(('s1', 'v1'), ('s2', 'v2'))
        self.cloud.seen = build.seen(
            [build.running(), build.running('s2')],
            [build.free('v1'), build.free('v2')],
        )
        barrier, actions = threading.Barrier(2), self.cloud.actions

        def together(server_id):
            barrier.wait(10)
            return actions(server_id)

        with mock.patch.object(self.cloud, 'actions', together):
            items = self.job().propose()
        self.assertEqual([Do.ATTACH] * 2, [i.do for i in items])

    def test_a_row_of_a_volume_that_cinder_does_not_know(self):
        self.map = build.cloud_map(('s1', 'v1'))
        self.cloud.set(
            volumes={},
            rows=(build.row('s1', 'v1', attach_status='reserved'),),
        )
        found = self.restore(wait=5.0)
        self.assertEqual('failed', found['v1'].status)
        self.assertIn('it is reserved', found['v1'].what)

    def test_one_server_is_read_once(self):
        self.job().propose()
        self.cloud.reads.clear()
        items = self.last.plan_server('s1')
        self.assertEqual([Do.ATTACH] * 3, [i.do for i in items])
        self.assertEqual(1, self.cloud.reads['server'])

    def test_detached_by_a_user_since(self):
        for _n in range(3):
            self.cloud.log('s1', 'detach_volume')
        self.assertEqual({}, self.restore())
        self.assertEqual([], self.cloud.sent)

    def test_a_detach_that_a_repair_finished(self):
        found = self.restore(wished_off={('s1', 'v1')})
        self.assertEqual({'v2': 'done', 'v3': 'done'}, self.statuses(found))
        self.assertEqual(2, len(self.cloud.sent))

    def test_our_own_resets_are_no_detach_of_a_user(self):
        self.cloud.log('s1', 'detach_volume', at='2026-11-22T03:10:00Z')
        resets = {
            ('s1', v): '2026-11-22T03:30:00Z' for v in ('v1', 'v2', 'v3')
        }
        found = self.restore(resets=resets)
        self.assertEqual({'done'}, set(self.statuses(found).values()))

    def test_each_in_its_own_order(self):
        self.map = build.cloud_map(
            attachments=[
                build.attachment(s, f'{s}{d}', device=d)
                for s in ('s1', 's2')
                for d in DEVICES[::-1]
            ]
        )
        self.cloud.seen = build.seen(
            [build.running(), build.running('s2')],
            [build.free(a.volume_id) for a in self.map.attachments],
        )
        found = self.restore()
        self.assertEqual({'done'}, set(self.statuses(found).values()))
        for server_id in 's1', 's2':
            self.assertEqual(
                [server_id + d for d in DEVICES],
                [v for _a, s, v in self.cloud.sent if s == server_id],
            )

    def shared(self):
        self.map = build.cloud_map(
            attachments=[
                build.attachment(s, 'v1', multiattach=True)
                for s in ('s1', 's2', 's3')
            ]
        )
        self.cloud.seen = build.seen(
            [build.running(s) for s in ('s0', 's1', 's2', 's3')],
            [build.free('v1', multiattach=True)],
        )

    def test_multiattach_goes_to_one_server_at_a_time(self):
        # cinder reserves a volume for one server at a time
        self.shared()
        barrier = threading.Barrier(2)
        met = []
        volume = self.cloud.volume

        def meet(volume_id):
            # asked just before an attach is sent
            try:
                barrier.wait(0.3)
                met.append(volume_id)
            except threading.BrokenBarrierError:
                barrier.reset()
            return volume(volume_id)

        with mock.patch.object(self.cloud, 'volume', meet):
            outcomes = self.last_outcomes()
        self.assertEqual([], met)
        self.assertEqual(['done'] * 3, [o.status for o in outcomes])
        self.assertEqual(3, len(self.cloud.sent))

    def test_multiattach_waits_for_another_servers_attach(self):
        self.shared()
        outcomes = self.last_outcomes(
            lambda: self.cloud.do_attach(
                build.attachment('s0', 'v1'), seconds=7
            )
        )
        self.assertEqual(['done'] * 3, [o.status for o in outcomes])

    def last_outcomes(self, meanwhile=lambda: None):
        items = self.job().propose()
        meanwhile()
        return self.last.carry_out(items, self.journal)
