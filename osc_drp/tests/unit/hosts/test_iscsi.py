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

"""What a session carries, and when it may be closed."""

import dataclasses
import unittest

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.hosts import iscsi
from osc_drp.hosts import parse
from osc_drp.hosts import ssh
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.hosts import captured

VOLUME, OTHER = captured.VOLUME, captured.OTHER
SAN = 'iqn.2001-05.com.example:san'


def session(target=SAN, disks=((0, ''), (1, 'sdb'))):
    return parse.Session(15, target, '10.0.0.5:3260', 'LOGGED_IN', disks)


class TestCarried(unittest.TestCase):
    """By serial, by connection record, by the target's name."""

    def carried(self, one, serials=None, targets=None):
        return iscsi.carried(
            one, serials or {}, {VOLUME, OTHER}, targets or {}
        )

    def test_by_serial(self):
        found = self.carried(session(), {'sdb': f'x{VOLUME[:20]}'})
        self.assertEqual({VOLUME: 'serial of sdb'}, found.proofs)
        self.assertEqual((), found.unknown)

    def test_by_connection_record(self):
        targets = {VOLUME: frozenset({facts.Target(SAN, 'p', 1)})}
        found = self.carried(session(), targets=targets)
        self.assertEqual({VOLUME: 'connection record, LUN 1'}, found.proofs)
        # of another LUN
        targets = {VOLUME: frozenset({facts.Target(SAN, 'p', 2)})}
        found = self.carried(session(), targets=targets)
        self.assertEqual((('sdb',), {}), (found.unknown, found.proofs))
        # of another target
        targets = {VOLUME: frozenset({facts.Target(SAN + '2', 'p', 1)})}
        found = self.carried(session(), targets=targets)
        self.assertEqual((('sdb',), {}), (found.unknown, found.proofs))

    def test_by_the_name_of_the_target(self):
        name = f'iqn.2010-10.org.openstack:volume-{VOLUME}'
        found = self.carried(session(name))
        self.assertEqual({VOLUME: 'name of the target'}, found.proofs)
        found = self.carried(session(name, ()))
        self.assertEqual({VOLUME: 'name of the target'}, found.proofs)

    def test_one_target_for_many_volumes(self):
        disks = ((1, 'sdb'), (2, 'sdc'), (3, 'sdd'))
        targets = {VOLUME: frozenset({facts.Target(SAN, 'p', 1)})}
        found = self.carried(session(SAN, disks), {'sdc': OTHER[:20]}, targets)
        self.assertEqual({VOLUME, OTHER}, found.volume_ids)
        self.assertEqual(('sdd',), found.unknown)

    def test_nothing_known(self):
        found = self.carried(session(SAN, ()))
        self.assertEqual(((), frozenset()), (found.unknown, found.volume_ids))


class TestProve(unittest.TestCase):
    """Refused unless proven."""

    def setUp(self):
        self.seen = build.agreeing(('s1', VOLUME), ('s2', OTHER))
        self.server = self.seen.servers['s1']
        self.one = iscsi.Carried(
            session(), {}, frozenset({VOLUME}), {VOLUME: 'x'}, ()
        )

    def prove(self, running=False, **changes):
        iscsi.prove(
            dataclasses.replace(self.one, **changes),
            self.server,
            self.seen,
            build.HOST,
            running,
        )

    def refused(self, words, **changes):
        with self.assertRaisesRegex(exceptions.Refused, words) as caught:
            self.prove(**changes)
        self.assertIn('session 15 of compute1 stays', str(caught.exception))

    def test_proven(self):
        self.prove()

    def test_refused(self):
        self.refused('nothing proves', volume_ids=frozenset())
        self.refused('also carries sdz, of no known', unknown=('sdz',))
        self.refused(
            f"carries volume {OTHER}, which 'name-s1' has not",
            volume_ids=frozenset({VOLUME, OTHER}),
        )

    def test_shared_on_one_host(self):
        self.seen = build.agreeing(('s1', VOLUME), ('s2', VOLUME))
        self.refused("'name-s2' on this host has volume")
        servers = [build.server('s1'), build.server('s2', host='compute2')]
        self.seen = build.agreeing(
            ('s1', VOLUME), ('s2', VOLUME), servers=servers
        )
        self.prove()

    def test_another_host(self):
        self.server = build.server('s1', host='compute2')
        self.refused("'name-s1' is on host compute2")

    def test_running(self):
        for changes in (
            {'vm_state': 'active', 'power_state': facts.RUNNING},
            {'vm_state': 'active', 'power_state': facts.SHUTDOWN},
            {'vm_state': 'stopped', 'power_state': facts.RUNNING},
            {'vm_state': 'paused', 'power_state': facts.PAUSED},
            {'task_state': 'powering-on'},
        ):
            with self.subTest(changes):
                self.server = build.server('s1', **changes)
                self.refused('its disk would be cut off under it')
                self.prove(running=True)


class TestSessions(unittest.TestCase):
    """No iscsiadm is no iSCSI; no sudo is not known."""

    def test_not_found(self):
        for words, code, why in (
            ('sh: 12: iscsiadm: not found', 127, ''),
            # sudo 1.9.13
            ('sudo: iscsiadm: command not found', 1, ''),
            ('sh: 12: sudo: not found', 127, 'it has no sudo'),
            ('sh: line 3: sudo: command not found', 127, 'has no sudo'),
            ('sudo: a password is required', 1, 'asks for a password'),
            ('iscsiadm: no records', 6, 'no records'),
        ):
            with self.subTest(words):
                found, told = iscsi.sessions(
                    {'sessions': [words, f'code {code}']}
                )
                self.assertEqual((), found)
                self.assertEqual(bool(why), bool(told), told)
                self.assertIn(why, told)

    def test_asked_for_more(self):
        class Shell:
            def run(self, *args):
                return ssh.Answer(
                    0,
                    f'{ssh.MARK}login\nsudo: iscsiadm: command not found\n'
                    'code 1\n',
                    '',
                )

        with self.assertRaisesRegex(exceptions.SshError, 'has no iscsiadm'):
            iscsi.Host(Shell(), 'compute1').login('10.0.0.5', 'iqn.x')


class TestOptions(unittest.TestCase):
    """What an operator can say, and what not."""

    def test_iqn(self):
        for iqn in (
            f'iqn.2010-10.org.openstack:volume-{VOLUME}',
            'iqn.2001-05.com.example',
            'eui.02004567A425678D',
            'naa.52004567ba64678d52004567ba64678d',
        ):
            self.assertEqual(iqn, iscsi.check_iqn(iqn))
        for iqn in (
            '',
            'all',
            '-u',
            'iqn.2010-10.org.openstack:a b',
            'iqn.2010-10.org.openstack:$(reboot)',
            "iqn.2010-10.org.openstack:'",
            'iqn.2010-10.org\niqn.2010-10.org',
            'iqn.2010-10.' + 'x' * 250,
        ):
            with self.assertRaises(exceptions.Usage):
                iscsi.check_iqn(iqn)

    def test_portal(self):
        for portal in ('10.0.0.5', 'san:3260', '[2001:db8::5]:3260'):
            self.assertEqual(portal, iscsi.check_portal(portal))
        for portal in ('', '-d', '.x', 'a b', 'a;b', '10.0.0.5:x', '$(x)'):
            with self.assertRaises(exceptions.Usage):
                iscsi.check_portal(portal)

    def test_portal_of_ipv6(self):
        for portal in ('fd00::5', 'FD00::5:3260', '::1'):
            with self.assertRaisesRegex(exceptions.Usage, 'wants brackets'):
                iscsi.check_portal(portal)

    def test_same_portal(self):
        for wanted, portal, same in (
            ('10.0.0.5', '10.0.0.5:3260', True),
            ('10.0.0.5:3260', '10.0.0.5:3260', True),
            ('10.0.0.5:3261', '10.0.0.5:3260', False),
            ('10.0.0.6', '10.0.0.5:3260', False),
            ('[2001:db8::5]', '[2001:db8::5]:3260', True),
            ('[FD00::5]', '[fd00::5]:3260', True),
            ('[fd00:0:0::5]:3261', '[fd00::5]:3261', True),
            ('[fd00::5]:3261', '[fd00::5]:3260', False),
            ('[fd00::5]', '[fd00::6]:3260', False),
            ('10.0.0.5', 'san:3260', False),
            ('10.0.0.5', '10.0.0.5:' + '1' * 5000, False),
            ('san.example', '10.0.0.5:3260', True),
        ):
            with self.subTest(wanted):
                self.assertEqual(same, iscsi.same_portal(wanted, portal))
