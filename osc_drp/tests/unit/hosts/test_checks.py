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

"""The rules for guests and hosts, each with what it finds and what not."""

import dataclasses
import subprocess
import unittest

from osc_drp.hosts import checks
from osc_drp.hosts import parse
from osc_drp.hosts import survey
from osc_drp.tests.unit.hosts import captured

SAN = '/sys/devices/platform/host3/session15/target3:0:0/3:0:0:1/block'
#: A fstab that nothing is wrong with.
GOOD = (
    'PARTUUID=6f1d9fe3-01 / ext4 errors=remount-ro 0 1\n'
    'UUID=2b1f8a53-9f44-4b7c-8f43-6b9b0ed5a1f0 /srv/db ext4 '
    'errors=remount-ro,nofail 0 2\n'
)
WELL = (
    '/dev/vda1 / ext4 rw,errors=remount-ro 0 0\n/dev/vdb /srv/db ext4 rw 0 0\n'
)


class TestGuests(unittest.TestCase):
    """GUEST_RULES."""

    def find(self, wanted=None, allowed=(), **said):
        """Give the findings by check."""
        said = {'fstab': GOOD, 'mounts': WELL, **said}
        if wanted is None:
            wanted = {captured.VOLUME: '/dev/vdb', captured.OTHER: '/dev/vdc'}
        guest = checks.Guest(
            parse.machine(captured.guest(**said)), wanted, allowed
        )
        found = {}
        for one in checks.judge(checks.GUEST_RULES, guest):
            self.assertTrue(one.fix or one.verdict == checks.GOOD, one)
            found.setdefault(one.check, []).append(one.evidence)
        return found

    def fstab(self, line, **said):
        return self.find(fstab=GOOD + line + '\n', **said)

    def test_all_good(self):
        self.assertEqual({'': ['']}, self.find())

    def test_captured(self):
        found = self.find(fstab=captured.FSTAB, mounts=captured.MOUNTS)
        self.assertEqual(
            {'errors=', 'nofail', 'device names', 'home', 'read-only'},
            set(found),
        )
        self.assertEqual(2, len(found['errors=']))

    def test_errors(self):
        line = 'UUID=x /mnt ext4 nofail{} 0 2'
        for options, words in (
            ('', 'writes go on after an I/O error'),
            (',errors=continue', 'writes go on'),
            (',errors=remount', 'errors=remount is no value'),
            (',errors=remount-ro', None),
            (',errors=panic', None),
            (',ro', None),
        ):
            with self.subTest(options):
                found = self.fstab(line.format(options)).get('errors=')
                if words is None:
                    self.assertIsNone(found)
                else:
                    self.assertIn(words, found[0])
        # other file systems know no such option
        self.assertEqual({'': ['']}, self.fstab('UUID=x /m xfs nofail 0 2'))
        # set in the superblock, seen where it is mounted
        mounts = WELL + '/dev/vdc /mnt ext4 rw,errors=remount-ro 0 0\n'
        found = self.fstab(line.format(''), mounts=mounts)
        self.assertEqual({'': ['']}, found)

    def test_errors_in_the_superblock(self):
        mounts = WELL + '/dev/vdc /mnt ext4 rw,relatime 0 0\n'
        line = 'UUID=x /mnt {} nofail{} 0 2'
        for kind, option, said, good in (
            ('ext4', '', 'remount-ro', True),
            ('ext4', '', 'panic', True),
            ('ext4', '', 'continue', False),
            ('auto', '', 'remount-ro', True),
            ('auto', '', 'continue', False),
            ('xfs,ext4', '', 'continue', False),
            # what fstab says counts at the next mount
            ('ext4', ',errors=continue', 'remount-ro', False),
        ):
            with self.subTest((kind, option, said)):
                found = self.fstab(
                    line.format(kind, option),
                    mounts=mounts,
                    ext4=f'vda1\terrors=continue\nvdc\terrors={said}\n',
                )
                self.assertEqual(not good, 'errors=' in found, found)
        found = self.find(
            fstab=GOOD.replace('errors=remount-ro 0 1', 'defaults 0 1'),
            mounts=WELL.replace('/dev/vda1', '/dev/root').replace(
                'rw,errors=remount-ro', 'rw'
            ),
            ext4='vda1\terrors=remount-ro\n',
        )
        self.assertEqual({'': ['']}, found)
        # not mounted, so nobody knows what it is
        self.assertEqual({'': ['']}, self.fstab(line.format('auto', '')))

    def test_by_id(self):
        link = 'virtio-' + captured.VOLUME[:20]
        found = self.fstab(
            f'ID={link} /srv/db ext4 defaults 0 2',
            links=f'/dev/disk/by-id/{link}\t/dev/vdb\n' + captured.LINKS,
        )
        self.assertEqual({'errors=', 'nofail'}, set(found))

    def test_nofail(self):
        self.assertIn('nofail', self.fstab('UUID=x /m xfs defaults 0 2'))
        for line in (
            'UUID=x /m xfs nofail 0 2',
            'UUID=x /m xfs noauto 0 2',
            'UUID=x /boot xfs defaults 0 2',
            'UUID=x none swap sw 0 0',
            'tmpfs /m tmpfs defaults 0 0',
            'nfs.example:/x /m nfs defaults 0 0',
        ):
            with self.subTest(line):
                self.assertEqual({'': ['']}, self.fstab(line))

    def test_netdev(self):
        devices = captured.DEVICES + f'sdb\t{SAN}/sdb\t\t\t\n'
        for spec in (
            '/dev/disk/by-path/ip-10.0.0.5:3260-iscsi-iqn.x-lun-1',
            '/dev/disk/by-uuid/san',
        ):
            with self.subTest(spec):
                found = self.fstab(
                    f'{spec} /m xfs nofail 0 2',
                    devices=devices,
                    links='/dev/disk/by-uuid/san\t/dev/sdb\n' + captured.LINKS,
                )
                self.assertEqual({'_netdev'}, set(found))
                found = self.fstab(f'{spec} /m xfs nofail,_netdev 0 2')
                self.assertEqual({'': ['']}, found)

    def test_device_names(self):
        found = self.fstab('/dev/vdb /m xfs nofail 0 2')
        self.assertIn('/dev/vdb /m', found['device names'][0])
        guest = checks.Guest(
            parse.machine(
                captured.guest(fstab='/dev/vdb /m xfs nofail 0 2\n')
            ),
            {},
            (captured.VOLUME, captured.OTHER),
        )
        (one,) = [
            f
            for f in checks.judge(checks.GUEST_RULES, guest)
            if f.check == 'device names'
        ]
        self.assertIn('UUID=2b1f8a53-9f44-4b7c-8f43-6b9b0ed5a1f0', one.fix)
        found = self.fstab('/dev/mapper/vg-lv /m xfs nofail 0 2')
        self.assertEqual({'': ['']}, found)

    def test_home(self):
        for where in ('/home', '/home/debian', '/home/debian/.ssh'):
            with self.subTest(where):
                mounts = WELL + f'/dev/vdc {where} xfs rw 0 0\n'
                self.assertIn(
                    f'{where} is wholly on another disk (/dev/vdc)',
                    self.find(mounts=mounts)['home'][0],
                )
        # a partition of the root disk comes with it
        mounts = WELL + '/dev/vda15 /home xfs rw 0 0\n'
        self.assertEqual({'': ['']}, self.find(mounts=mounts))

    def test_read_only(self):
        mounts = WELL.replace('/srv/db ext4 rw', '/srv/db ext4 ro')
        found = self.find(mounts=mounts)
        self.assertIn('/srv/db (/dev/vdb) is', found['read-only'][0])
        meant = GOOD.replace('remount-ro,nofail', 'remount-ro,nofail,ro')
        self.assertEqual({'': ['']}, self.find(mounts=mounts, fstab=meant))
        for more in ('sr0 /media iso9660', 'vdb /srv/copy ext4'):
            mounts = WELL + f'/dev/{more} ro 0 0\n'
            self.assertEqual({'': ['']}, self.find(mounts=mounts))

    def test_read_only_root(self):
        root = '/dev/vda4 / xfs ro 0 0\n'
        self.assertIn(
            '/ (/dev/vda4) is',
            self.find(fstab='', mounts=root)['read-only'][0],
        )
        # Fedora CoreOS: an empty fstab, and all this as it should be
        for image in (
            '/dev/vda4 /sysroot xfs ro 0 0\n/dev/vda3 /boot ext4 ro 0 0\n',
            '/dev/vda4 /usr xfs ro 0 0\n',
        ):
            found = self.find(fstab='', mounts=root + image)
            self.assertEqual({'': ['']}, found)
        found = self.find(fstab=GOOD, mounts=root + image)
        self.assertEqual({'read-only'}, set(found))

    def test_missing_disk(self):
        gone = 'ffffffff-0000-4000-8000-000000000000'
        found = self.find(
            {captured.VOLUME: '/dev/vdb', gone: '/dev/vdc'},
            (captured.OTHER,),
        )
        self.assertEqual({'missing disk'}, set(found))
        self.assertIn(f'{gone} (/dev/vdc)', found['missing disk'][0])

    def test_wrong_disk(self):
        found = self.find({captured.VOLUME: '/dev/vdb'})
        self.assertEqual({'wrong disk'}, set(found))
        self.assertIn('vdc is volume 11111111-2222-4333-8', str(found))
        # attached since the map was taken
        found = self.find({captured.VOLUME: '/dev/vdb'}, (captured.OTHER,))
        self.assertEqual({'': ['']}, found)

    def test_scsi_serials(self):
        link = f'scsi-0QEMU_QEMU_HARDDISK_{captured.VOLUME[:20]}'
        machine = parse.machine(
            captured.guest(
                devices='sdb\t/sys/devices/pci/block/sdb\t\t\t\n',
                links=f'/dev/disk/by-id/{link}\t/dev/sdb\n'
                f'/dev/disk/by-id/{link}-part1\t/dev/sdb1\n',
            )
        )
        self.assertEqual(
            {captured.VOLUME[:20]: 'sdb'}, checks.serials(machine)
        )

    def test_uuids_that_are_no_serials(self):
        uuid = 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee'
        links = captured.LINKS + ''.join(
            f'/dev/disk/by-id/{name}\t/dev/dm-0\n'
            for name in (
                f'dm-name-luks-{uuid}',
                f'dm-uuid-CRYPT-LUKS2-{uuid.replace("-", "")}-luks-{uuid}',
                f'nvme-uuid.{uuid}',
                f'md-uuid-{uuid}',
                f'virtio-{uuid[:20]}-part1',
                f'scsi-0QEMU_QEMU_HARDDISK_{uuid[:20]}-part1',
            )
        )
        self.assertEqual({'': ['']}, self.find(links=links))
        for name in (
            f'virtio-{uuid[:20]}',
            f'scsi-0QEMU_QEMU_HARDDISK_{uuid[:20]}',
            f'scsi-SQEMU_QEMU_HARDDISK_{uuid}',
        ):
            with self.subTest(name):
                found = self.find(
                    links=f'/dev/disk/by-id/{name}\t/dev/sdz\n'
                    + captured.LINKS
                )
                self.assertIn(f'sdz is volume {uuid[:20]}', str(found))

    def test_hostile_lines(self):
        found = self.fstab('UUID=x /\x1b[2J xfs defaults 0 2' + 'x' * 999)
        self.assertNotIn('\x1b', found['nofail'][0])
        self.assertLessEqual(len(found['nofail'][0]), 200)


class TestHosts(unittest.TestCase):
    """HOST_RULES."""

    def setUp(self):
        self.session = parse.sessions(captured.SESSIONS.splitlines())[0]
        self.host = checks.Host(
            name='compute1',
            machine=parse.machine(captured.guest(fstab=GOOD, mounts=WELL)),
            sessions=(self.session,),
            volumes={captured.VOLUME},
            targets=frozenset(),
            filter_rules=12,
            networked=True,
            storage=False,
        )

    def find(self, **changes):
        machine = changes.pop('said', None)
        if machine is not None:
            said = {'fstab': GOOD, 'mounts': WELL, **machine}
            changes['machine'] = parse.machine(captured.guest(**said))
        host = dataclasses.replace(self.host, **changes)
        return {
            f.check: (f.evidence, f.fix)
            for f in checks.judge(checks.HOST_RULES, host)
        }

    def test_all_good(self):
        self.assertEqual({'': ('', '')}, self.find())

    def test_errors_where_cinder_volume_runs(self):
        said = {'fstab': GOOD + 'UUID=x /var/lib/cinder ext4 noauto 0 2\n'}
        self.assertEqual({''}, set(self.find(said=said)))
        evidence, _fix = self.find(said=said, storage=True)['errors=']
        self.assertIn('/var/lib/cinder', evidence)

    def test_san_in_fstab(self):
        devices = captured.DEVICES + f'sdb\t{SAN}/sdb\t\t\t\n'
        fstab = GOOD + 'UUID=san /var/lib/san xfs nofail{} 0 2\n'
        links = '/dev/disk/by-uuid/san\t/dev/sdb\n' + captured.LINKS
        for more, wanted in (('', {'SAN in fstab'}), (',noauto', {''})):
            said = {
                'fstab': fstab.format(more),
                'devices': devices,
                'links': links,
            }
            self.assertEqual(wanted, set(self.find(said=said)))

    def test_san_in_fstab_by_its_group(self):
        said = {
            'devices': captured.DEVICES
            + f'sdb\t{SAN}/sdb\t\t\t\n'
            + 'dm-0\t/sys/devices/virtual/block/dm-0\t\tsan-a--b\tLVM-x\n',
            'slaves': 'dm-0 sdb\n',
            'fstab': GOOD + '/dev/san/a-b /srv/san xfs defaults 0 2\n',
        }
        self.assertIn('/dev/san/a-b', self.find(said=said)['SAN in fstab'][0])

    def test_left_session(self):
        evidence, fix = self.find(volumes=())['left session']
        self.assertIn(f'session 15 to {self.session.target}', evidence)
        self.assertIn('iscsiadm -m session -r 15 -u (never without', fix)
        self.assertIn('nothing uses sdb', fix)
        # after a migration the target has another name
        targets = {self.session.target}
        self.assertEqual({''}, set(self.find(volumes=(), targets=targets)))

    def test_the_san_of_a_storage_host(self):
        san = dataclasses.replace(self.session, target='iqn.2001-05.com:san')
        self.assertIn('left session', self.find(sessions=(san,)))
        found = self.find(sessions=(san,), storage=True)
        self.assertEqual({''}, set(found))

    def test_packet_filter(self):
        self.assertIn('packet filter', self.find(filter_rules=0))
        for changes in (
            {'filter_rules': None},
            {'filter_rules': 0, 'networked': False},
        ):
            self.assertEqual({''}, set(self.find(**changes)))

    def test_guests_lvm_in_an_iscsi_disk(self):
        devices = (
            captured.DEVICES + f'sdb\t{SAN}/sdb\t\t\t\n'
            'dm-7\t/sys/devices/virtual/block/dm-7\t\tdata-db\tLVM-q\n'
        )
        said = {'devices': devices, 'slaves': 'dm-7 sdb\n'}
        evidence, fix = self.find(said=said)["guests' LVM"]
        self.assertIn('data-db is active on the host, but', evidence)
        self.assertIn(captured.VOLUME, evidence)
        self.assertIn('global_filter', fix)
        mounted = {**said, 'mounts': WELL + '/dev/dm-7 /x xfs rw 0 0\n'}
        self.assertEqual({''}, set(self.find(said=mounted)))

    def test_guests_lvm_in_a_logical_volume(self):
        name = 'cinder--volumes-volume--' + captured.VOLUME.replace('-', '--')
        devices = (
            captured.DEVICES
            + f'dm-3\t/sys/devices/virtual/block/dm-3\t\t{name}\tLVM-p\n'
            'dm-7\t/sys/devices/virtual/block/dm-7\t\tdata-db\tLVM-q\n'
        )
        said = {'devices': devices, 'slaves': 'dm-3 vdb\ndm-7 dm-3\n'}
        self.assertEqual({"guests' LVM"}, set(self.find(said=said)))
        # cinder's own volumes are no guests' LVM
        said = {'devices': devices, 'slaves': 'dm-3 vdb\ndm-7 vdb\n'}
        self.assertEqual({''}, set(self.find(said=said)))


class TestFilterRules(unittest.TestCase):
    """How many rules there are, if anybody says so."""

    def test_counts(self):
        none = ['bash: x: command not found', 'code 127']
        accept = ['-P INPUT ACCEPT', '-P FORWARD ACCEPT', 'code 0']
        rules = ['-P INPUT ACCEPT', '-N a', '-A INPUT -j a', 'code 0']
        nft = ['table ip nat {', '\tchain x {', '\t\ttype nat hook', '\t\t}']
        asks = ['sudo: a password is required', 'code 1']
        for iptables, nftables, flows, wanted in (
            (accept, none, ['0', 'code 0'], 0),
            (rules, none, ['0', 'code 0'], 1),
            (accept, [*nft, '}', 'code 0'], ['0', 'code 0'], 0),
            (accept, [*nft[:3], 'masquerade', '}', '}', 'code 0'], none, 1),
            (accept, none, ['7', 'code 0'], 7),
            (none, ['table ip a {', '\tset s {', *nft, 'code 0'], none, 0),
            (none, none, none, None),
            (asks, asks, ['0', 'code 0'], None),
        ):
            with self.subTest((iptables, nftables, flows)):
                found, why = survey.filter_rules(
                    {
                        'iptables': iptables,
                        'nftables': nftables,
                        'flows': flows,
                    }
                )
                self.assertEqual(wanted, found)
                self.assertEqual(iptables is asks, 'password' in why)
                self.assertEqual(found is None, bool(why))

    def test_only_rules_in_chains(self):
        nft = (
            'table inet a {',
            '\tset s {',
            '\t\ttype ipv4_addr',
            '\t\telements = { 10.0.0.1,',
            '\t\t\t     10.0.0.2 }',
            '\t}',
            '\tchain x {',
            '\t\ttype filter hook input priority filter; policy accept;',
            '\t}',
            '}',
        )
        for more, wanted in (((), 0), (('\t\tct state new drop',), 1)):
            found, _why = survey.filter_rules(
                {'nftables': [*nft[:8], *more, *nft[8:], 'code 0']}
            )
            self.assertEqual(wanted, found)

    def test_unread_is_not_empty(self):
        none = ['bash: x: command not found', 'code 127']
        denied = ['Fatal: cannot open lock: Permission denied', 'code 4']
        bridge = ['ovs-ofctl: br-int is not a bridge', 'code 1']
        missing = ['sudo: nft: command not found', 'code 1']
        empty = ['-P INPUT ACCEPT', 'code 0']
        for iptables, nftables, flows, words in (
            (denied, none, none, 'iptables: Fatal: cannot open lock'),
            (denied, ['code 0'], none, 'Permission denied'),
            (empty, missing, bridge, 'flows: ovs-ofctl: br-int is not'),
            (none, missing, none, 'neither iptables, nft nor'),
            (empty, missing, none, ''),
        ):
            with self.subTest((iptables, nftables, flows)):
                found, why = survey.filter_rules(
                    {
                        'iptables': iptables,
                        'nftables': nftables,
                        'flows': flows,
                    }
                )
                self.assertIn(words, why)
                self.assertEqual(None if words else 0, found)

    def test_flows_keep_the_code_of_their_program(self):
        for program, wanted in (
            ('echo "a ct(x)"; echo b; echo "ct(y)"', ['2', 'code 0']),
            ('echo no bridge >&2; exit 1', ['no bridge', 'code 1']),
        ):
            with self.subTest(program):
                script = survey.FILTER.replace(
                    'as_root ovs-ofctl dump-flows br-int', f'{{ {program}; }}'
                )
                done = subprocess.run(
                    ['sh'],
                    input='section() { :; }\n'
                    + script[script.index('section flows') :],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                self.assertEqual(wanted, done.stdout.split('\n')[:-1])
