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

"""What machines say, read into types."""

import time
import unittest

from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies

from osc_drp.hosts import checks
from osc_drp.hosts import parse
from osc_drp.hosts import samples
from osc_drp.tests.unit.hosts import captured


class TestFstab(unittest.TestCase):
    """fstab(5)."""

    def test_captured(self):
        found = parse.fstab(captured.FSTAB.splitlines())
        self.assertEqual(
            [
                '/',
                '/boot/efi',
                '/srv/db',
                '/home',
                '/mnt/with space',
                'none',
                '/tmp',
            ],
            [e.where for e in found],
        )
        self.assertEqual('LABEL=with space', found[4].spec)
        self.assertEqual(('errors=remount', 'nofail'), found[4].options)

    def test_odd_lines(self):
        for line, wanted in (
            ('', []),
            ('# /dev/vdb /x ext4', []),
            ('   #x y z', []),
            ('/dev/vdb', []),
            ('/dev/vdb /x', []),
            ('/dev/vdb /x ext4', [('/x', ('defaults',))]),
            ('\t/dev/vdb\t/x  ext4\tnofail,ro', [('/x', ('nofail', 'ro'))]),
        ):
            with self.subTest(line):
                self.assertEqual(
                    wanted, [(e.where, e.options) for e in parse.fstab([line])]
                )


class TestMachine(unittest.TestCase):
    """Which disk is meant."""

    def test_device(self):
        machine = parse.machine(captured.guest())
        for spec, wanted in (
            ('/dev/vdb', 'vdb'),
            ('PARTUUID=6f1d9fe3-01', 'vda1'),
            ('UUID="7d1c9b1e-1f5e-4a51-9f0e-2f0b8a7f5c11"', 'vdc'),
            ('UUID=none-of-them', None),
            ('/dev/vdz', None),
            ('tmpfs', None),
        ):
            with self.subTest(spec):
                device = machine.device(spec)
                self.assertEqual(wanted, device and device.name)

    def test_labels_as_udev_writes_them(self):
        machine = parse.machine(
            captured.guest(links='/dev/disk/by-label/a\\x20b\t/dev/vdb\n')
        )
        self.assertEqual('vdb', machine.device('LABEL=a b').name)

    def test_disks_through_partitions_and_lvm(self):
        devices = (
            captured.DEVICES + 'dm-0\t/sys/devices/virtual/block/dm-0\t\tvg-lv'
            '\tLVM-abc\ndm-1\t/sys/devices/virtual/block/dm-1\t\tloop\tLVM-x\n'
        )
        machine = parse.machine(
            captured.guest(
                devices=devices,
                slaves='dm-0 vdb\ndm-0 vda1\ndm-1 dm-1\n',
                links='/dev/mapper/vg-lv\t/dev/dm-0\n',
            )
        )
        found = machine.disks(machine.device('/dev/mapper/vg-lv'))
        self.assertEqual({'vda', 'vdb'}, {d.name for d in found})
        # a circle ends
        self.assertEqual(set(), machine.disks(machine.device('/dev/dm-1')))

    def test_logical_volume_by_its_group(self):
        virtual = '/sys/devices/virtual/block'
        machine = parse.machine(
            captured.guest(
                devices=captured.DEVICES
                + f'dm-0\t{virtual}/dm-0\t\tmy--vg-a--lv\tLVM-abc\n'
                + f'dm-1\t{virtual}/dm-1\t\tmapper-x\tCRYPT-x\n',
                slaves='dm-0 vdb\n',
            )
        )
        for spec, wanted in (
            ('/dev/my-vg/a-lv', 'dm-0'),
            ('/dev/my/vg-a-lv', None),
            ('/dev/mapper/x', None),
            ('my-vg/a-lv', None),
        ):
            with self.subTest(spec):
                device = machine.device(spec)
                self.assertEqual(wanted, device and device.name)

    def test_iscsi_disk(self):
        path = (
            '/sys/devices/platform/host3/session15/target3:0:0/3:0:0:1/block/'
        )
        machine = parse.machine(
            captured.guest(
                devices=f'sdb\t{path}sdb\t\t\t\nsdb1\t{path}sdb/sdb1\t\t\t\n'
            )
        )
        (disk,) = machine.disks(machine.device('/dev/sdb1'))
        self.assertEqual(('sdb', True), (disk.name, disk.iscsi))

    def test_mount_of(self):
        machine = parse.machine(captured.guest())
        for path, wanted in (
            ('/', '/'),
            ('/homer', '/'),
            ('/home', '/home'),
            ('/home/debian/.ssh', '/home'),
            ('/srv', '/'),
        ):
            with self.subTest(path):
                self.assertEqual(wanted, machine.mount_of(path).where)

    def test_a_guest_that_says_much_holds_nobody_up(self):
        many = range(20000)
        machine = parse.machine(
            {
                'fstab': [f'/dev/a/b{n} /m{n}/x ext4 ro' for n in many]
                + [f'UUID=x {"/x" * 200000} ext4 ro'],
                'mounts': [f'/dev/a/b{n} /m{n} ext4 rw' for n in many],
                'devices': [f'd{n}\t/\t\ta-b{n}\tLVM-x' for n in many],
                'home': ['/x' * 200000],
            }
        )
        begun = time.monotonic()
        checks.judge(checks.GUEST_RULES, checks.Guest(machine, {}, ()))
        samples.disks(machine, ['x'])
        self.assertLess(time.monotonic() - begun, 10)

    def test_root_by_its_fstab_line(self):
        mounts = captured.MOUNTS.replace('/dev/vda1', '/dev/root')
        machine = parse.machine(captured.guest(mounts=mounts))
        self.assertEqual(['vda'], [d.name for d in machine.root_disks])

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(strategies.text(), strategies.text())
    def test_whatever_a_guest_says(self, one, two):
        sections = {
            name: f'{one}\n{two}\t{one}\t{two}\n'.splitlines()
            for name in ('fstab', 'mounts', 'devices', 'links', 'slaves')
        }
        machine = parse.machine({**sections, 'home': [one]})
        for entry in machine.fstab:
            machine.disks(machine.device(entry.spec))
        parse.sessions(sections['fstab'])
        parse.discovered(sections['fstab'])


class TestIscsiadm(unittest.TestCase):
    """iscsiadm's tables."""

    def test_sessions(self):
        self.assertEqual(
            (
                parse.Session(
                    15,
                    f'iqn.2010-10.org.openstack:volume-{captured.VOLUME}',
                    '10.0.0.5:3260',
                    'LOGGED_IN',
                    ((0, ''), (1, 'sdb')),
                ),
            ),
            parse.sessions(captured.SESSIONS.splitlines()),
        )

    def test_two_portals_of_one_target_and_another(self):
        first = captured.SESSIONS
        # the second session of a target is told without the target's line
        second = first[first.index('\tCurrent Portal') :]
        second = second.replace('10.0.0.5', '10.0.0.6')
        second = second.replace('SID: 15', 'SID: 16').replace('sdb', 'sdc')
        third = first[first.index('Target:') :].replace('SID: 15', 'SID: 2')
        third = third.replace(captured.VOLUME, captured.OTHER)
        found = parse.sessions((first + second + third).splitlines())
        self.assertEqual(
            [
                (15, captured.VOLUME, '10.0.0.5:3260'),
                (16, captured.VOLUME, '10.0.0.6:3260'),
                (2, captured.OTHER, '10.0.0.5:3260'),
            ],
            [(s.id, s.volume_id, s.portal) for s in found],
        )
        self.assertEqual(((0, ''), (1, 'sdc')), found[1].disks)

    def test_no_sessions(self):
        self.assertEqual((), parse.sessions(['iscsiadm: No active sessions.']))

    def test_no_secret_is_kept(self):
        text = captured.SESSIONS.replace('********', 's3cret')
        self.assertNotIn('s3cret', repr(parse.sessions(text.splitlines())))

    def test_discovered(self):
        self.assertEqual(
            (
                (
                    '127.0.0.1:13260',
                    f'iqn.2010-10.org.openstack:volume-{captured.OTHER}',
                ),
                (
                    '127.0.0.1:13260',
                    f'iqn.2010-10.org.openstack:volume-{captured.VOLUME}',
                ),
            ),
            parse.discovered(captured.DISCOVERED.splitlines()),
        )
        self.assertEqual((), parse.discovered(captured.NO_DRIVER.splitlines()))
