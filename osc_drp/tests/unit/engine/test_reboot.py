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

"""Step 5, driven against guests in memory."""

import unittest

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import reboot
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

Do = plan.Do
KEYS = (('s1', 'v1'), ('s2', 'v2'), ('s3', 'v3'))


class TestCase(unittest.TestCase):
    """Three servers that run with a volume each."""

    def setUp(self):
        self.said = []
        self.journal = fakes.run(self)
        self.map = build.cloud_map(*KEYS)
        self.cloud = fakes.Cloud(
            build.agreeing(*KEYS, servers=[build.running(s) for s, _v in KEYS])
        )
        self.clock = self.cloud.clock
        self.guests = fakes.Guests(self.clock)

    def job(self, boot_ids=None, selection=None, **more):
        self.last = reboot.Reboot(
            self.cloud,
            self.guests,
            self.map,
            selection or plan.Selection(),
            reboot.Settings(
                wait=60.0, limits=apply.Limits(parallel=1, per_host=1)
            ),
            self.said.append,
            boot_ids=boot_ids or {},
            resets={},
            clock=self.clock,
            **more,
        )
        return self.last

    def propose(self, **more):
        return {i.server_id: i for i in self.job(**more).propose()}

    def reboot_all(self, **more):
        job = self.job(**more)
        return {
            o.server_id: (o.status, o.what)
            for o in job.carry_out(job.propose(), self.journal)
        }

    def statuses(self, **more):
        return [s for s, _what in self.reboot_all(**more).values()]


class TestPropose(TestCase):
    """Who is rebooted."""

    def test_all_that_run(self):
        self.assertEqual({Do.REBOOT}, {i.do for i in self.propose().values()})
        # nothing is asked of a guest yet
        self.assertEqual(0, self.clock.slept)

    def test_selection(self):
        found = self.propose(selection=plan.Selection(servers=('name-s2',)))
        self.assertEqual(['s2'], list(found))

    def test_not_on(self):
        self.cloud.stopped('s1')
        self.cloud.stopped('s2')
        self.map = build.cloud_map(
            *KEYS,
            servers=[
                build.map_server('s1'),
                build.map_server('s2', vm_state='stopped'),
                build.map_server('s3'),
            ],
        )
        found = self.propose()
        self.assertEqual(
            (Do.FLAG, 'the server is stopped: restart it first'),
            (found['s1'].do, found['s1'].reason),
        )
        self.assertEqual(
            (Do.LEAVE, 'the server is stopped'),
            (found['s2'].do, found['s2'].reason),
        )

    def test_guest_off_or_busy_or_deleted(self):
        self.cloud.change('s1', power_state=4)
        self.cloud.change('s2', task_state='rebuilding')
        servers = dict(self.cloud.seen.servers)
        del servers['s3']
        self.cloud.set(servers=servers)
        found = self.propose()
        self.assertIn('active, but its guest is off', found['s1'].reason)
        self.assertEqual(
            [Do.FLAG, Do.FLAG, Do.LEAVE],
            [found[s].do for s in ('s1', 's2', 's3')],
        )

    def test_a_missing_disk_would_hang_the_boot(self):
        seen = self.cloud.seen
        self.cloud.set(
            mappings=tuple(m for m in seen.mappings if m.volume_id != 'v1'),
            rows=tuple(r for r in seen.rows if r.volume_id != 'v1'),
        )
        self.cloud.set_volume('v1', status='available')
        for selection in (
            plan.Selection(),
            plan.Selection(servers=('s1',)),
        ):
            item = self.propose(selection=selection)['s1']
            self.assertIs(Do.FLAG, item.do)
            self.assertIn('volume v1 of the map is not', item.reason)
        # but not one that its user took off
        self.cloud.log('s1', 'detach_volume')
        self.assertIs(Do.REBOOT, self.propose()['s1'].do)

    def test_only_those_that_need_it(self):
        found = self.propose(needing={'s2'})
        self.assertEqual(
            [Do.LEAVE, Do.REBOOT, Do.LEAVE], [i.do for i in found.values()]
        )
        self.assertIn('booted with all', found['s1'].reason)


class TestCarryOut(TestCase):
    """Each once, each proven."""

    def test_rebooted_and_proven(self):
        found = self.reboot_all()
        self.assertEqual({'s1': 1, 's2': 1, 's3': 1}, self.guests.reboots)
        for status, what in found.values():
            self.assertEqual(apply.DONE, status)
            self.assertRegex(what, r'^rebooted, back after \d+ s$')

    def test_the_journal_holds_the_boot_before_it_ends(self):
        held = []
        real = self.guests.reboot

        def spied(server, boot_id):
            held.append(journal.boot_ids(self.journal.entries())[server.id])
            real(server, boot_id)

        self.guests.reboot = spied
        self.reboot_all()
        self.assertEqual(['boot-s1-0', 'boot-s2-0', 'boot-s3-0'], held)
        events = [e['event'] for e in self.journal.entries()]
        self.assertEqual(['begin'] + ['before', 'sent', 'outcome'] * 3, events)

    def test_a_journal_that_fails_reboots_nobody(self):
        def full(*args, **kwargs):
            raise exceptions.DrpError('the disk is full')

        self.journal.write = full
        # the journal of the outcome fails too, and is the lane's error
        self.assertEqual(
            [apply.FAILED, apply.UNTRIED, apply.UNTRIED], self.statuses()
        )
        self.assertEqual(0, sum(self.guests.reboots.values()))

    def test_resumed_after_a_kill_anywhere(self):
        for number, event in enumerate(('before', 'sent', 'outcome')):
            with self.subTest(event):
                self.setUp()
                real = self.journal.write

                def killed(name, event=event, real=real, **fields):
                    real(name, **fields)
                    if name == event:
                        raise KeyboardInterrupt

                self.journal.write = killed
                with self.assertRaises(KeyboardInterrupt):
                    self.reboot_all()
                self.assertEqual(min(number, 1), self.guests.reboots['s1'])
                self.journal.write = real
                self.clock.sleep(30)
                found = self.reboot_all(
                    boot_ids=journal.boot_ids(self.journal.entries())
                )
                self.assertEqual(
                    {apply.DONE}, {status for status, _w in found.values()}
                )
                self.assertEqual(
                    {'s1': 1, 's2': 1, 's3': 1}, self.guests.reboots
                )

    def test_a_guest_that_nobody_reaches_keeps_nobody_waiting(self):
        self.guests.closed['s1'] = 'web1: its host key is not known'
        found = self.reboot_all()
        self.assertEqual(
            (apply.OPEN, 'web1: its host key is not known'), found['s1']
        )
        self.assertEqual({'s2': 1, 's3': 1}, self.guests.reboots)
        self.assertIn('name-s1: web1: its host key', self.said[0])

    def test_declined_by_the_guest(self):
        def asks():
            raise exceptions.SshError('its sudo asks for a password')

        self.guests.instead['s1'] = asks
        found = self.reboot_all()
        self.assertEqual(
            (apply.OPEN, 'its sudo asks for a password'), found['s1']
        )
        self.assertEqual(
            [apply.OPEN, apply.DONE, apply.DONE],
            [s for s, _w in found.values()],
        )

    def test_a_broken_connection_is_no_failure(self):
        def breaks():
            self.guests.do_reboot('s1')
            raise exceptions.SshBroken('closed by remote host')

        self.guests.instead['s1'] = breaks
        self.assertEqual([apply.DONE] * 3, self.statuses())

    def test_another_boot_meanwhile(self):
        def other():
            self.guests.boots['s1'] += 1
            raise exceptions.Changed('another boot')

        self.guests.instead['s1'] = other
        self.assertEqual([apply.DONE] * 3, self.statuses())
        self.assertEqual(0, self.guests.reboots['s1'])

    def test_it_does_not_reboot(self):
        self.guests.instead['s2'] = lambda: None
        found = self.reboot_all()
        self.assertEqual(
            (
                apply.FAILED,
                'not back 60 s after its reboot: it still says that it is '
                'the same boot',
            ),
            found['s2'],
        )
        self.assertEqual(apply.DONE, found['s3'][0])

    def test_taken_up_again_while_it_reboots(self):
        self.guests.do_reboot('s1')  # and killed
        found = self.reboot_all(boot_ids={'s1': 'boot-s1-0'})
        self.assertEqual(
            (apply.DONE, 'it was rebooted already, in this run'), found['s1']
        )
        self.assertEqual(1, self.guests.reboots['s1'])

    def test_it_does_not_come_back(self):
        def gone():
            self.guests.closed['s2'] = 'web2: it does not answer'

        self.guests.instead['s2'] = gone
        self.cloud.consoles['s2'] = [
            'Welcome',
            '[ TIME ] Timed out waiting for device /dev/vdb.',
            'You are in emergency mode. \x1b[2J',
            'Press Enter',
        ]
        found = self.reboot_all()
        self.assertEqual(
            (
                apply.FAILED,
                'not back 60 s after its reboot: it waits in the emergency '
                'shell (console: "You are in emergency mode. [2J")',
            ),
            found['s2'],
        )
        # and again: nothing is sent to it, and its neighbours are done
        found = self.reboot_all(
            boot_ids=journal.boot_ids(self.journal.entries())
        )
        self.assertEqual(apply.OPEN, found['s2'][0])
        self.assertIn('not back since its reboot in this run', found['s2'][1])
        self.assertEqual({'s1': 1, 's3': 1}, self.guests.reboots)

    def test_the_first_that_does_not_come_back_is_the_last(self):
        def gone():
            self.guests.closed['s1'] = 'it does not answer'

        self.guests.instead['s1'] = gone
        self.assertEqual(
            [apply.FAILED, apply.UNTRIED, apply.UNTRIED], self.statuses()
        )
        self.assertIn('the first one failed', self.said[-1])

    def test_changed_since_the_question(self):
        job = self.job()
        items = job.propose()
        self.cloud.stopped('s1')
        servers = dict(self.cloud.seen.servers)
        del servers['s2']
        self.cloud.set(servers=servers)
        outcomes = job.carry_out(items, self.journal)
        self.assertEqual(
            [apply.OPEN, apply.LEFT, apply.DONE], [o.status for o in outcomes]
        )


class TestConsole(unittest.TestCase):
    """What the end of a console tells."""

    def test_why_hanging(self):
        for line, words in (
            ('You are in emergency mode. After logging in', 'emergency'),
            ('Entering emergency mode. Exit the shell', 'emergency'),
            ('Give root password for maintenance', 'root'),
            ('(initramfs) _', 'initramfs'),
            (
                '[***] A start job is running for /dev/disk/by-uuid/1 (1min '
                '2s / 1min 30s)',
                'something to start',
            ),
            ('Kernel panic - not syncing: VFS: Unable', 'panicked'),
        ):
            with self.subTest(line):
                self.assertIn(words, reboot.why_hanging(['x', line, 'y']))

    def test_nothing_to_tell(self):
        self.assertEqual('', reboot.why_hanging([]))
        self.assertEqual('', reboot.why_hanging(['Debian', 'web1 login: ']))
