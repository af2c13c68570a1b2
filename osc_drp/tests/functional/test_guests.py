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

"""`drp guests` on real sshd: a bad day's guests, all in one run."""

import io
import json
import pathlib
import socket
import types
import typing as ty
from unittest import mock

import fixtures

from osc_drp.commands import guests
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import reboot
from osc_drp.tests.functional import sshd
from osc_drp.tests.functional import test_ssh
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes


def server_id(number: int) -> str:
    """Give an id that looks like nova's."""
    return f'5b0d6a51-7b0e-4f0c-9d3c-{number:012d}'


class GuestsTest(test_ssh.SshTest):
    """Servers that run, each behind an sshd of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.dir = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.servers: list[facts.Server] = []
        self.keys: list[tuple[str, str]] = []
        patch = mock.patch.object(reboot, 'POLL', 0.3)
        patch.start()
        self.addCleanup(patch.stop)

    def server(self, name: str) -> facts.Server:
        """Add a server without a machine."""
        number = len(self.servers) + 1
        one = build.running(server_id(number), name=name)
        self.servers.append(one)
        self.keys.append((one.id, f'0a1b2c3d-4e5f-4a6b-8c7d-{number:012d}'))
        return one

    def guest(self, name: str) -> ty.Any:
        """Add a server, and a machine that says that it is this one."""
        machine = self.lab.machine(name)
        machine.is_server(self.server(name).id)
        return machine

    def drp(self, command: ty.Any, *options: str) -> dict[str, ty.Any]:
        """Run a command; gives its rows by the server's name."""
        self.cloud = fakes.Cloud(
            build.agreeing(*self.keys, servers=self.servers)
        )
        self.cloud.consoles = getattr(self, 'consoles', {})
        cloud_map = build.cloud_map(
            *self.keys,
            servers=[
                build.map_server(s.id, name=s.name) for s in self.servers
            ],
        )
        self.err = io.StringIO()
        app = mock.Mock(
            stderr=self.err,
            stdout=io.StringIO(),
            cloud=types.SimpleNamespace(name='lab'),
            options=types.SimpleNamespace(verbose_level=1),
        )
        with (
            mock.patch('osc_drp.mapfile.read', return_value=cloud_map),
            mock.patch(
                'osc_drp.cloud.client.connect', return_value=self.cloud
            ),
        ):
            made = command(app, None, cmd_name='drp')
            args = made.get_parser('x').parse_args(
                ['map', f'--ssh-config={self.lab.config}', *options]
            )
            columns, rows = made.take_action(args)
        self.exit_code = made.exit_code
        found: dict[str, ty.Any] = {}
        for row in rows:
            one = dict(zip(columns, row, strict=True))
            found.setdefault(one['Server'], []).append(one)
        return found


class TestReboot(GuestsTest):
    """`drp guests reboot`."""

    def reboot(self, *options: str) -> dict[str, tuple[str, str]]:
        told = self.drp(
            guests.RebootGuests, f'--run-dir={self.dir / "runs"}', *options
        )
        return {
            name: (row['Result'], row['Reason'])
            for name, (row,) in told.items()
        }

    def test_a_bad_day(self) -> None:
        machines = {
            name: self.guest(name) for name in ('a-good', 'b-sudo', 'z-last')
        }
        machines['b-sudo'].user(1000)
        machines['b-sudo'].program('bin/sudo', sshd.SUDO)

        asks = self.guest('c-asks')
        asks.user(1000)
        asks.program('bin/sudo', sshd.SUDO_ASKS)
        refuses = self.guest('d-refuses')
        refuses.write('authorized_keys', '')
        self.guest('e-unreachable').stop()
        never = self.guest('f-never')
        never.write('never', '')
        emergency = self.guest('g-emergency')
        emergency.write('never', '')
        self.consoles = {
            self.servers[-1].id: ['You are in emergency mode. Press Enter']
        }
        ignores = self.guest('h-ignores')
        ignores.write('ignores', '')
        other = self.lab.machine('i-other')
        other.is_server(server_id(999))
        self.server('i-other')
        unknown = self.guest('j-unknown-key')
        wrong = self.guest('k-wrong-key')
        self.server('l-no-address')
        silent = self.useFixture(Silent())
        self.impatient(5)
        self.lab.entry('m-silent', silent.port)
        self.server('m-silent')
        known = self.lab.known_hosts.read_text().splitlines()
        lines = [x for x in known if f':{unknown.port} ' not in x]
        text = '\n'.join(lines) + '\n'
        swapped = text.replace(
            wrong.host_key(), f'[127.0.0.1]:{wrong.port} {key_of(other)}'
        )
        self.assertNotEqual(text, swapped)
        self.lab.known_hosts.write_text(swapped)

        with mock.patch('osc_drp.engine.apply.Limits', Limits):
            told = self.reboot('--auto-approve', '--wait=6')

        self.assertEqual(3, self.exit_code)
        for name, machine in machines.items():
            self.assertEqual('done', told[name][0], told[name])
            self.assertRegex(told[name][1], 'rebooted, back after')
            self.assertEqual(1, machine.reboots, name)
        for name, result, words in (
            ('c-asks', 'open', 'its sudo asks for a password'),
            ('d-refuses', 'open', 'it refuses our key'),
            ('e-unreachable', 'open', 'it refuses the connection'),
            ('f-never', 'failed', 'not back 6 s after its reboot: f-never:'),
            ('g-emergency', 'failed', 'it waits in the emergency shell'),
            ('h-ignores', 'failed', 'it still says that it is the same boot'),
            ('i-other', 'open', 'is another machine: firmware'),
            ('j-unknown-key', 'open', 'its host key is not known'),
            ('k-wrong-key', 'open', 'its host key is not the one in known'),
            ('l-no-address', 'open', 'nova knows no address of it'),
            ('m-silent', 'open', 'it takes the connection and says nothing'),
        ):
            self.assertEqual(result, told[name][0], told[name])
            self.assertIn(words, told[name][1])
        for machine in (asks, refuses, other, unknown, wrong):
            self.assertEqual(0, machine.reboots)
        self.assertEqual(swapped, self.lab.known_hosts.read_text())

    def test_killed_and_repeated(self) -> None:
        one, two = self.guest('web1'), self.guest('web2')
        write = journal.Run.write

        def killed(run: journal.Run, event: str, **fields: ty.Any) -> None:
            write(run, event, **fields)
            if event == 'sent':
                raise KeyboardInterrupt

        with mock.patch.object(journal.Run, 'write', killed):
            self.assertRaises(KeyboardInterrupt, self.reboot, '--auto-approve')
        self.assertEqual([1, 0], [one.reboots, two.reboots])
        told = self.reboot('--auto-approve', '--wait=20')
        self.assertEqual(0, self.exit_code, told)
        self.assertEqual([1, 1], [one.reboots, two.reboots])
        self.assertIn('going on with run', self.err.getvalue())

    def test_a_number_without_end_stops_nobody_else(self) -> None:
        evil, good = self.guest('a-evil'), self.guest('b-good')
        evil.program(
            'shell',
            '#!/bin/sh\ncat > /dev/null\n'
            'printf "@osc-drp begin\\n\\n@osc-drp exit %05000d\\n" 7\n',
        )
        told = self.reboot('--auto-approve', '--wait=20')
        self.assertEqual('open', told['a-evil'][0], told)
        self.assertEqual('done', told['b-good'][0], told)
        self.assertEqual([0, 1], [evil.reboots, good.reboots])

    def test_dry_run_goes_nowhere(self) -> None:
        one = self.guest('web1')
        told = self.reboot('--dry-run')
        self.assertEqual({'web1': ('would reboot', 'runs')}, told)
        self.assertEqual(0, self.exit_code)
        self.assertEqual([], one.lines('commands'))
        self.assertFalse((self.dir / 'runs').exists())

    def test_no_secret_in_the_journal(self) -> None:
        self.guest('web1')
        self.reboot('--auto-approve')
        (path,) = journal.RunDirectory(self.dir / 'runs').runs()
        text = json.dumps(journal.read(path))
        self.assertNotIn('PRIVATE', text)
        self.assertIn('boot_id', text)


class TestCheck(GuestsTest):
    """`drp guests check`."""

    def check(self, *options: str) -> dict[str, ty.Any]:
        return self.drp(guests.CheckGuests, *options)

    def test_a_good_one_and_others(self) -> None:
        good = self.guest('a-good')
        serial = self.keys[0][1][:20]
        good.write('sys/class/block/vdb/serial', f'{serial}\n')
        good.write('proc/mounts', '/dev/vda1 / ext4 rw 0 0\n')
        bad = self.guest('b-bad')
        bad.write('etc/fstab', '/dev/vdb /home ext4 defaults 0 2\n')
        self.guest('c-gone').stop()
        self.server('d-off')
        self.servers[-1] = build.server(self.servers[-1].id, name='d-off')
        told = self.check()
        self.assertEqual(3, self.exit_code)
        self.assertEqual(
            ['good', 'unknown', 'left'],
            [told[n][0]['Verdict'] for n in ('a-good', 'c-gone', 'd-off')],
        )
        self.assertEqual(
            {'errors=', 'nofail', 'device names', 'missing disk'},
            {row['Check'] for row in told['b-bad']},
        )
        for row in told['b-bad']:
            self.assertTrue(row['Evidence'])
            self.assertTrue(row['Fix'])
        self.assertIn('refuses the connection', told['c-gone'][0]['Evidence'])

    def test_all_good_is_0(self) -> None:
        good = self.guest('a-good')
        serial = self.keys[0][1][:20]
        good.write('sys/class/block/vdb/serial', f'{serial}\n')
        self.check()
        self.assertEqual(0, self.exit_code)

    def test_nothing_is_written(self) -> None:
        machine = self.guest('a')
        before = files(machine.dir)
        self.check()
        self.assertEqual(before, files(machine.dir))


def files(where: pathlib.Path) -> dict[str, bytes]:
    """Read all files of a machine but its own notes."""
    return {
        str(p): p.read_bytes()
        for p in where.rglob('*')
        if p.is_file() and p.name not in ('commands', 'session', 'sshd.log')
    }


class Limits(ty.NamedTuple):
    """Limits that no bad day trips."""

    parallel: int = 8
    per_host: int = 8
    breaker: int = 99


class Silent(fixtures.Fixture):
    """Takes connections and says nothing."""

    def _setUp(self) -> None:
        server = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(server.close)
        self.port = server.getsockname()[1]


def key_of(machine: ty.Any) -> str:
    """Give a machine's host key without its address."""
    return machine.host_key().partition(' ')[2]
