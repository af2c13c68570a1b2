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

"""`drp iscsi` and `drp hosts check` on real sshd, and on a real target."""

import argparse
import io
import os
import pathlib
import shutil
import subprocess
import textwrap
import time
import types
import typing as ty
from unittest import mock

import fixtures

from osc_drp import exceptions
from osc_drp.commands import base
from osc_drp.commands import hosts
from osc_drp.commands import iscsi
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.tests.functional import sshd
from osc_drp.tests.functional import test_ssh
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes
from osc_drp.tests.unit.hosts import captured

TARGET = f'iqn.2010-10.org.openstack:volume-{captured.VOLUME}'


class HostTest(test_ssh.SshTest):
    """One compute host with a session that a server's volume needs."""

    def setUp(self) -> None:
        super().setUp()
        self.dir = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.host = self.lab.machine(build.HOST)
        self.host.program('bin/iscsiadm', sshd.ISCSIADM)
        self.host.program('bin/iptables', '#!/bin/sh\necho -A a\n')
        self.host.write('target', captured.SESSIONS)
        self.connect()
        self.cloud = fakes.Cloud(
            build.agreeing(('s1', captured.VOLUME), ('s2', captured.OTHER))
        )

    def connect(self) -> None:
        """Let the host have the session."""
        self.host.write('sessions', captured.SESSIONS)
        self.host.write(
            'sys/class/iscsi_session/session15/targetname', f'{TARGET}\n'
        )

    def drp(self, command: ty.Any, *options: str) -> list[dict[str, ty.Any]]:
        """Run a command; gives its rows."""
        self.err = io.StringIO()
        app = mock.Mock(
            stderr=self.err,
            stdout=io.StringIO(),
            cloud=types.SimpleNamespace(name='lab'),
            options=types.SimpleNamespace(verbose_level=1),
        )
        with mock.patch(
            'osc_drp.cloud.client.connect', return_value=self.cloud
        ):
            made = command(app, None, cmd_name='drp')
            args = made.get_parser('x').parse_args(
                [f'--ssh-config={self.lab.config}', *options]
            )
            columns, rows = made.take_action(args)
        self.exit_code = made.exit_code
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def on_host(
        self, command: ty.Any, *options: str
    ) -> list[dict[str, ty.Any]]:
        changes = command in (iscsi.LoginIscsi, iscsi.LogoutIscsi)
        runs = [f'--run-dir={self.dir / "runs"}'] * changes
        return self.drp(command, f'--host={build.HOST}', *runs, *options)

    def asked(self) -> list[str]:
        """What iscsiadm was asked to change."""
        return [
            x
            for x in self.host.lines('iscsiadm')
            if x != '-m session -P 3' and not x.endswith('3260')
        ]


class TestList(HostTest):
    """`drp iscsi list`."""

    def test_list(self) -> None:
        (row,) = self.on_host(iscsi.ListIscsi)
        self.assertEqual(
            {
                'Session': 15,
                'Target': TARGET,
                'Portal': '10.0.0.5:3260',
                'State': 'LOGGED_IN',
                'Disks': 'sdb',
                'Volume ID': captured.VOLUME,
                'Server': 'name-s1',
                'Known By': 'name of the target',
            },
            row,
        )
        self.assertEqual([], self.asked())

    def test_by_connection_record(self) -> None:
        san = 'iqn.2001-05.com.example:san'
        text = captured.SESSIONS.replace(TARGET, san)
        self.host.write('sessions', text)
        self.cloud.targets_of[f'a-s2-{captured.OTHER}'] = frozenset(
            {facts.Target(san, '10.0.0.5:3260', 1)}
        )
        (row,) = self.on_host(iscsi.ListIscsi)
        self.assertEqual(
            (captured.OTHER, 'name-s2', 'connection record, LUN 1'),
            (row['Volume ID'], row['Server'], row['Known By']),
        )

    def test_no_sessions(self) -> None:
        (self.host.dir / 'sessions').unlink()
        self.assertEqual([], self.on_host(iscsi.ListIscsi))

    def test_sudo_with_a_password(self) -> None:
        self.host.user(1000)
        self.host.program('bin/sudo', sshd.SUDO_ASKS)
        self.assertIn(
            'compute1: iSCSI sessions: its sudo asks for a password',
            self.refused(self.on_host, iscsi.ListIscsi),
        )


class TestLogout(HostTest):
    """`drp iscsi logout`."""

    def logout(self, *options: str, session: int = 15) -> ty.Any:
        (row,) = self.on_host(
            iscsi.LogoutIscsi,
            f'--session={session}',
            '--server=name-s1',
            *options,
        )
        return row['Result']

    def declined(self, *options: str, **kwargs: ty.Any) -> str:
        error = self.assertRaises(
            exceptions.Refused, self.logout, *options, **kwargs
        )
        self.assertEqual([], self.asked())
        return str(error)

    def test_logout(self) -> None:
        self.assertEqual('logged out', self.logout('--auto-approve'))
        self.assertEqual(['-m session -r 15 -u'], self.asked())
        (path,) = journal.RunDirectory(self.dir / 'runs').runs()
        entries = journal.read(path)
        self.assertEqual(
            ['begin', 'before', 'outcome', 'end'],
            [e['event'] for e in entries],
        )
        self.assertEqual(
            (TARGET, 15, 's1'),
            tuple(entries[1][k] for k in ('target', 'session', 'server')),
        )

    def test_dry_run(self) -> None:
        self.assertEqual('would log out', self.logout('--dry-run'))
        self.assertEqual([], self.asked())
        self.assertFalse((self.dir / 'runs').exists())

    def test_asks(self) -> None:
        asked = []

        def decline(*args: ty.Any) -> None:
            asked.append(args)
            raise exceptions.Refused('no')

        with mock.patch.object(base, 'confirm', decline):
            self.declined()
        self.assertEqual(
            [
                (
                    f"the session of 'name-s1' to {TARGET} will be closed",
                    'logout 15',
                    False,
                )
            ],
            asked,
        )
        self.assertEqual([], journal.RunDirectory(self.dir / 'runs').runs())

    def test_no_way_to_say_all(self) -> None:
        for words in (
            [],
            ['--session=all'],
            ['--session=0'],
            ['--session=-1'],
            ['--session=15 -m node'],
            ['--session='],
        ):
            with mock.patch('sys.stderr', io.StringIO()):
                self.assertRaises(
                    SystemExit,
                    self.on_host,
                    iscsi.LogoutIscsi,
                    '--server=name-s1',
                    '--auto-approve',
                    *words,
                )
        # one session, not a list of them
        parser = iscsi.LogoutIscsi(None, None).get_parser('x')
        for action in parser._actions:
            if action.dest in ('host', 'session', 'server'):
                self.assertIs(argparse._StoreAction, type(action))
                self.assertIsNone(action.nargs)
        self.assertEqual([], self.asked())

    def test_unproven(self) -> None:
        self.host.write(
            'sessions', captured.SESSIONS.replace(TARGET, 'iqn.2001-05.x:y')
        )
        self.assertIn('of no known volume', self.declined('--auto-approve'))

    def test_of_another_server(self) -> None:
        text = captured.SESSIONS.replace(captured.VOLUME, captured.OTHER)
        self.host.write('sessions', text)
        self.assertIn(
            "which 'name-s1' has not", self.declined('--auto-approve')
        )

    def test_no_such_session(self) -> None:
        self.assertIn(
            'compute1 has no session 3',
            self.declined('--auto-approve', session=3),
        )

    def test_a_server_that_runs(self) -> None:
        self.cloud.change('s1', vm_state='active', power_state=facts.RUNNING)
        self.assertIn('cut off under it', self.declined('--auto-approve'))
        result = self.logout('--auto-approve', '--even-if-running')
        self.assertEqual('logged out', result)

    def test_the_number_is_used_again_meanwhile(self) -> None:
        self.host.write(
            'sys/class/iscsi_session/session15/targetname', 'iqn.else\n'
        )
        error = self.assertRaises(
            exceptions.Changed, self.logout, '--auto-approve'
        )
        self.assertIn('leads elsewhere', str(error))
        self.assertEqual([], self.asked())

    def test_it_stays(self) -> None:
        self.host.write('stuck', '')
        words = self.refused(self.logout, '--auto-approve')
        self.assertEqual('compute1 still has session 15', words)

    def test_killed_and_repeated(self) -> None:
        write = journal.Run.write

        def killed(run: journal.Run, event: str, **fields: ty.Any) -> None:
            if event == 'outcome':
                raise KeyboardInterrupt
            write(run, event, **fields)

        with mock.patch.object(journal.Run, 'write', killed):
            self.assertRaises(KeyboardInterrupt, self.logout, '--auto-approve')
        self.assertEqual(
            'logged out, before this command was repeated',
            self.logout('--auto-approve'),
        )
        self.assertEqual(['-m session -r 15 -u'], self.asked())


class TestLogin(HostTest):
    """`drp iscsi login`."""

    def login(self, *options: str) -> ty.Any:
        (row,) = self.on_host(
            iscsi.LoginIscsi,
            '--portal=10.0.0.5',
            f'--target={TARGET}',
            *options,
        )
        return row['Result']

    def test_logged_in_already(self) -> None:
        self.assertEqual('logged in already', self.login())
        self.assertEqual([], self.asked())

    def test_login(self) -> None:
        (self.host.dir / 'sessions').unlink()
        self.assertEqual('would log in', self.login('--dry-run'))
        self.assertEqual([], self.asked())
        self.assertEqual('logged in', self.login('--auto-approve'))
        self.assertEqual(
            [f'-m node -T {TARGET} -p 10.0.0.5 --login'],
            [x for x in self.asked() if x.endswith('--login')],
        )

    def test_no_session_afterwards(self) -> None:
        (self.host.dir / 'sessions').unlink()
        self.host.write('target', '')
        self.assertEqual(
            f'compute1 has no session to {TARGET}',
            self.refused(self.login, '--auto-approve'),
        )


class TestHosts(HostTest):
    """`drp hosts check`."""

    def check(self) -> dict[str, dict[str, str]]:
        rows = self.drp(hosts.CheckHosts)
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            found.setdefault(row['Host'], {})[row['Check']] = row['Verdict']
        return found

    def test_check(self) -> None:
        storage = self.lab.machine('storage1')
        self.assertEqual(
            {build.HOST: {'': 'good'}, 'storage1': {'': 'good'}}, self.check()
        )
        self.assertEqual(0, self.exit_code)

        storage.write(
            'etc/fstab',
            '/dev/disk/by-path/ip-10.0.0.9:3260-iscsi-iqn.x-lun-0 /srv xfs '
            'defaults 0 2\n',
        )
        text = captured.SESSIONS.replace(captured.VOLUME, 'f' * 36)
        self.host.write('sessions', text)
        self.assertEqual(
            {
                build.HOST: {'left session': 'bad'},
                'storage1': {'SAN in fstab': 'bad'},
            },
            self.check(),
        )
        self.assertEqual(3, self.exit_code)
        self.assertEqual([], self.asked())

    def test_what_cannot_be_read_is_said(self) -> None:
        self.lab.machine('storage1').stop()
        self.host.user(1000)
        self.host.program('bin/sudo', sshd.SUDO_ASKS)
        found = self.check()
        self.assertEqual({'read': 'unknown'}, found[build.HOST])
        self.assertEqual({'ssh': 'unknown'}, found['storage1'])
        self.assertEqual(3, self.exit_code)


class TestRealTarget(HostTest):
    """The real iscsiadm and a real target daemon (Debian's tgt).

    The kernel here has no iSCSI, so what a session needs of it is imitated:
    sysfs has the transport and one session, made by hand, and somebody gives
    iscsid's answers for the initiator's name. The discovery itself, login and
    SendTargets over TCP, is the programs' own.
    """

    def setUp(self) -> None:
        super().setUp()
        missing = [
            name
            for name in ('iscsiadm', 'tgtd', 'unshare', 'nsenter')
            if not shutil.which(name, path='/usr/sbin:/sbin:/usr/bin:/bin')
        ]
        if missing or os.getuid():
            why = f'needs root, and {missing or "nothing"} to be installed'
            if os.environ.get('CI'):
                raise AssertionError(why)
            self.skipTest(why)
        self.node = self.useFixture(TargetHost(self.dir))
        self.host.program(
            'bin/iscsiadm',
            f'#!/bin/sh\nexec nsenter -t {self.node.pid} -m -n -- '
            '/usr/sbin/iscsiadm "$@"\n',
        )

    def test_discover(self) -> None:
        rows = self.on_host(iscsi.DiscoverIscsi, '--portal=127.0.0.1')
        self.assertEqual(
            {
                ('127.0.0.1:3260', TARGET, captured.VOLUME),
                ('127.0.0.1:3260', 'iqn.2001-05.com.example:san', ''),
            },
            {tuple(row.values()) for row in rows},
        )

    def test_nobody_at_the_portal(self) -> None:
        words = self.refused(
            self.on_host, iscsi.DiscoverIscsi, '--portal=127.0.0.1:9'
        )
        self.assertIn('compute1: iscsiadm:', words)
        self.assertIn('connect', words)

    def test_list(self) -> None:
        (row,) = self.on_host(iscsi.ListIscsi)
        self.assertEqual(
            (15, TARGET, '10.0.0.5:3260', 'LOGGED_IN', 'sdb'),
            tuple(row.values())[:5],
        )

    def test_a_logout_that_iscsiadm_refuses(self) -> None:
        # the session is made by hand: the program cannot close it
        words = self.refused(
            self.on_host,
            iscsi.LogoutIscsi,
            '--session=15',
            '--server=name-s1',
            '--auto-approve',
        )
        self.assertIn('compute1', words)


class TargetHost(fixtures.Fixture):
    """Namespaces with tgtd, and what iscsiadm looks for."""

    def __init__(self, where: pathlib.Path) -> None:
        super().__init__()
        self._dir = where

    def _setUp(self) -> None:
        script = self._dir / 'node.sh'
        script.write_text(NODE.replace('@DIR@', str(self._dir)))
        (self._dir / 'iscsid.py').write_text(ISCSID)
        self._log = self._dir / 'node.log'
        with open(self._log, 'wb') as log:
            process = subprocess.Popen(
                ['unshare', '-m', '-n', 'bash', str(script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.addCleanup(self._stop, process)
        self.pid = process.pid
        deadline = time.monotonic() + 30
        while not (self._dir / 'ready').exists():
            if time.monotonic() > deadline or process.poll() is not None:
                raise AssertionError(self._log.read_text())
            time.sleep(0.1)

    def _stop(self, process: 'subprocess.Popen[bytes]') -> None:
        os.killpg(process.pid, 9)
        process.wait(10)


NODE = textwrap.dedent(f"""\
    set -e
    ip link set lo up
    # the transport, a session and its disk, as the kernel would show them
    new=@DIR@/sys
    mkdir -p $new @DIR@/run
    mount -t tmpfs none $new
    put() {{ mkdir -p "${{1%/*}}"; echo "$2" > "$1"; }}
    host=$new/devices/platform/host3
    one=$host/session15/iscsi_session/session15
    link=$host/session15/connection15:0/iscsi_connection/connection15:0
    disk=$host/session15/target3:0:0/3:0:0:1
    put $one/targetname {TARGET}
    put $one/tpgt 1
    put $one/state LOGGED_IN
    put $one/ifacename default
    for name in address persistent_address; do put $link/$name 10.0.0.5; done
    for name in port persistent_port; do put $link/$name 3260; done
    put $host/iscsi_host/host3/ipaddress 10.0.0.7
    put $host/scsi_host/host3/state running
    put $host/scsi_host/host3/proc_name iscsi_tcp
    put $disk/state running
    mkdir -p $disk/block/sdb $new/bus/scsi/devices $new/class/block
    put $new/devices/virtual/iscsi_transport/tcp/handle 1
    put $new/devices/virtual/iscsi_transport/tcp/caps 0x39
    put $new/module/scsi_transport_iscsi/version 2.0-870
    in=../../devices
    mkdir -p $new/class/iscsi_session $new/class/iscsi_connection
    mkdir -p $new/class/iscsi_host $new/class/scsi_host
    mkdir -p $new/class/iscsi_transport
    at=$in/platform/host3
    ln -s $at/session15/iscsi_session/session15 $new/class/iscsi_session/
    ln -s $at/session15/connection15:0/iscsi_connection/connection15:0 \\
        $new/class/iscsi_connection/
    ln -s $at/iscsi_host/host3 $new/class/iscsi_host/
    ln -s $at/scsi_host/host3 $new/class/scsi_host/
    ln -s $in/virtual/iscsi_transport/tcp $new/class/iscsi_transport/
    ln -s ../../$at/session15/target3:0:0/3:0:0:1 $new/bus/scsi/devices/
    rm $new/bus/scsi/devices/3:0:0:1
    ln -s ../../../devices/platform/host3/session15/target3:0:0/3:0:0:1 \\
        $new/bus/scsi/devices/3:0:0:1
    for name in $one $link $host/iscsi_host/host3 $host/scsi_host/host3; do
        ln -s ../.. $name/device
    done
    mount --bind $new /sys
    # a tgtd of our own, and none of the machine's records
    mkdir -p /var/run/tgtd
    mount --bind @DIR@/run /var/run/tgtd
    mkdir -p @DIR@/etc
    echo InitiatorName=iqn.1993-08.org.debian:01:test \\
        > @DIR@/etc/initiatorname.iscsi
    : > @DIR@/etc/iscsid.conf
    mount --bind @DIR@/etc /etc/iscsi
    tgtd -f -C 0 --iscsi portal=127.0.0.1:3260 &
    for n in $(seq 250); do
        tgtadm -C 0 --lld iscsi --op show --mode target 2> /dev/null && break
        sleep 0.1
    done
    n=0
    for target in {TARGET} iqn.2001-05.com.example:san; do
        n=$((n + 1))
        tgtadm --lld iscsi --mode target --op new --tid $n -T $target
        tgtadm --lld iscsi --mode target --op bind --tid $n -I ALL
    done
    python3 @DIR@/iscsid.py @DIR@/ready &
    wait
""")

#: Gives iscsid's answers to iscsiadm's questions for names (open-iscsi 2.1.8
#: usr/mgmt_ipc.h): 8 the initiator's name, 9 its alias, 10 the configuration.
ISCSID = textwrap.dedent("""\
    import socket
    import struct
    import sys

    NAMES = {8: b'iqn.1993-08.org.debian:01:test', 9: b'test',
             10: b'/etc/iscsi/iscsid.conf'}
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind('\\0ISCSIADM_ABSTRACT_NAMESPACE')
    server.listen(9)
    open(sys.argv[1], 'w').close()
    while True:
        client, _address = server.accept()
        with client:
            (command,) = struct.unpack('=i', client.recv(65536)[:4])
            if command in NAMES:
                head = struct.pack('=ii', command, 0)
                client.sendall(head + NAMES[command].ljust(8192, b'\\0'))
""")
