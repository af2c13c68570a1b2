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

"""SSH to real sshd: every way in which it fails, in words and in time."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import typing as ty
import unittest
from unittest import mock

import testtools

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.hosts import guests
from osc_drp.hosts import ssh
from osc_drp.tests.functional import sshd
from osc_drp.tests.unit.engine import build

ID = '5b0d6a51-7b0e-4f0c-9d3c-1c0a5f3a9e01'


class SshTest(testtools.TestCase):
    """Machines, and ssh as the operator has it."""

    def setUp(self) -> None:
        super().setUp()
        sshd.required(self)
        self.lab = self.useFixture(sshd.Machines())
        self.shell = ssh.Ssh(str(self.lab.config))

    def impatient(self, seconds: int = 2) -> None:
        """Wait no 15 seconds for the first words of a machine."""
        patch = mock.patch.object(ssh, 'CONNECT', seconds)
        patch.start()
        self.addCleanup(patch.stop)

    def refused(self, call: ty.Any, *args: ty.Any, **kwargs: ty.Any) -> str:
        """Call something that ends with an SshError; gives its words."""
        began = time.monotonic()
        error = self.assertRaises(exceptions.SshError, call, *args, **kwargs)
        self.assertLess(time.monotonic() - began, 30)
        self.kind = type(error)
        return str(error)

    def run_on(self, name: str, script: str = 'true', **kwargs: ty.Any) -> str:
        """Run a script that fails."""
        return self.refused(self.shell.run, ssh.Target(name), script, **kwargs)


class TestRun(SshTest):
    """One script on one machine."""

    def setUp(self) -> None:
        super().setUp()
        self.web1 = self.lab.machine('web1')

    def test_answer(self) -> None:
        answer = self.shell.run(
            ssh.Target('web1'),
            'section one\necho a; echo "$word"; cat\n'
            'section two\necho oops >&2; exit 3',
            values={'word': 'b; touch /tmp/x $(c) \'"'},
        )
        self.assertEqual(3, answer.code)
        self.assertEqual('oops', answer.words())
        self.assertEqual(
            {'begin': [], 'one': ['a', 'b; touch /tmp/x $(c) \'"'], 'two': []},
            answer.sections(),
        )
        self.assertEqual(['exec sh -s'], self.web1.lines('commands'))

    def test_noise_of_a_login_shell(self) -> None:
        text = (self.web1.dir / 'shell').read_text()
        self.web1.write('shell', text.replace('sed -E', 'echo hi\nsed -E', 1))
        answer = self.shell.run(ssh.Target('web1'), 'echo a')
        self.assertEqual(['a'], answer.sections()['begin'])

    def test_a_user_of_the_options(self) -> None:
        shell = ssh.Ssh(str(self.lab.config), 'nobody-of-that-name')
        self.assertEqual(
            'web1: it refuses the key of user nobody-of-that-name',
            self.refused(shell.run, ssh.Target('web1'), 'true'),
        )

    def test_by_a_jump_host(self) -> None:
        self.web1.program('shell', '#!/bin/sh\nexit 9\n')
        self.web1.stop()
        config = self.web1.dir / 'sshd_config'
        lines = config.read_text().splitlines()
        config.write_text('\n'.join(lines[:-1]) + '\n')
        self.web1.start()
        inner = self.lab.machine('inner')
        self.lab.entry('inner', inner.port, '  ProxyJump web1\n')
        # the jump is the ssh program's: it reads the user's configuration
        wrapper = self.lab.root / 'ssh'
        wrapper.write_text(f'#!/bin/sh\nexec ssh -F {self.lab.config} "$@"\n')
        wrapper.chmod(0o755)
        shell = ssh.Ssh(str(self.lab.config))
        answer = shell.run(ssh.Target('inner'), 'echo in')
        self.assertEqual(['in'], answer.sections()['begin'])

    def test_unknown_host_key(self) -> None:
        self.lab.known_hosts.write_text('')
        self.assertEqual(
            'web1: its host key is not known: check it, then add it to '
            'known_hosts',
            self.run_on('web1'),
        )
        self.assertEqual('', self.lab.known_hosts.read_text())
        self.assertEqual([], self.web1.lines('commands'))

    def test_wrong_host_key(self) -> None:
        other = self.lab.machine('web2')
        key = other.host_key().replace(str(other.port), str(self.web1.port))
        self.lab.known_hosts.write_text(key)
        self.assertIn(
            'web1: its host key is not the one in known_hosts',
            self.run_on('web1'),
        )
        self.assertEqual(key, self.lab.known_hosts.read_text())
        self.assertEqual([], self.web1.lines('commands'))

    def test_refused_key(self) -> None:
        other = (self.lab.root / 'other.pub').read_text()
        self.web1.write('authorized_keys', other)
        words = self.run_on('web1')
        self.assertIn('web1: it refuses our key', words)
        self.assertIn('(publickey)', words)

    def test_a_key_with_a_passphrase_asks_nobody(self) -> None:
        key = self.lab.root / 'key'
        command = ['ssh-keygen', '-q', '-p', '-N', 'secret', '-f', str(key)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        with mock.patch.dict(os.environ):
            os.environ.pop('SSH_AUTH_SOCK', None)
            self.assertIn('it refuses our key', self.run_on('web1'))

    def test_nobody_listens(self) -> None:
        self.web1.stop()
        self.assertEqual(
            'web1: it refuses the connection', self.run_on('web1')
        )

    def test_no_such_name(self) -> None:
        # too long for a label: no nameserver, slow or lying, is asked
        name = 'x' * 64 + '.invalid'
        self.assertEqual(
            f'{name}: its name cannot be resolved', self.run_on(name)
        )

    def test_takes_the_connection_and_says_nothing(self) -> None:
        self.impatient()
        with socket.create_server(('127.0.0.1', 0)) as silent:
            self.lab.entry('silent', silent.getsockname()[1])
            began = time.monotonic()
            self.assertEqual(
                'silent: it takes the connection and says nothing',
                self.run_on('silent'),
            )
            self.assertLess(time.monotonic() - began, 10)

    def test_takes_the_connection_and_ends_it(self) -> None:
        # as a boot that has not come to its sshd yet, behind a forwarded port
        with socket.create_server(('127.0.0.1', 0)) as server:
            self.lab.entry('early', server.getsockname()[1])

            def end() -> None:
                server.accept()[0].close()

            thread = threading.Thread(target=end)
            thread.start()
            self.assertEqual(
                'early: it takes the connection and ends it at once',
                self.run_on('early'),
            )
            thread.join(10)
        self.assertIs(exceptions.SshError, self.kind)

    def test_a_shell_that_hangs(self) -> None:
        self.web1.write('hangs', '')
        self.assertEqual(
            'web1: no end after 3 s, so it was ended',
            self.run_on('web1', limit=3),
        )
        # nobody knows how far it got
        self.assertIs(exceptions.SshBroken, self.kind)

    def test_a_script_that_hangs(self) -> None:
        self.assertEqual(
            'web1: no end after 3 s, so it was ended',
            self.run_on('web1', 'sleep 30', limit=3),
        )
        self.assertIs(exceptions.SshBroken, self.kind)

    def test_output_without_end(self) -> None:
        self.assertIn('bytes of output', self.run_on('web1', 'yes', limit=20))

    def test_a_connection_that_breaks(self) -> None:
        words = self.run_on(
            'web1',
            # a moment for what was said to leave
            f'touch {self.web1.dir}/down; sleep 1; '
            f'kill $(cat {self.web1.dir}/session)',
        )
        self.assertIn('the connection broke', words)
        self.assertIs(exceptions.SshBroken, self.kind)
        # this one never came so far
        words = self.run_on('web1')
        self.assertIn('closed by remote host', words)

    def test_a_script_that_is_cut_off_does_nothing(self) -> None:
        text = (self.web1.dir / 'shell').read_text()
        half = text.replace('sed -E', 'head -c 150 | sed -E', 1)
        self.web1.write('shell', half)
        mark = self.web1.dir / 'mark'
        words = self.run_on('web1', f'touch {mark}\n' * 10)
        self.assertIn('web1: no shell that runs our script', words)
        self.assertFalse(mark.exists())

    def test_nothing_is_left_behind(self) -> None:
        with mock.patch.object(ssh, '_end', wraps=ssh._end) as ended:
            self.run_on('web1', 'sleep 30', limit=1)
        process = ended.call_args.args[0]
        self.assertRaises(ProcessLookupError, os.killpg, process.pid, 0)

    def test_an_interrupt_reaches_no_ssh(self) -> None:
        script = textwrap.dedent(f"""
            import os, signal, threading
            from osc_drp.hosts import ssh
            signal.signal(signal.SIGINT, lambda *a: print('heard'))
            threading.Timer(1, os.killpg, (os.getpid(), 2)).start()
            shell = ssh.Ssh({str(self.lab.config)!r})
            answer = shell.run(ssh.Target('web1'), 'sleep 2; echo done')
            print(answer.sections()['begin'])
        """)
        result = subprocess.run(
            [sys.executable, '-c', script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            start_new_session=True,
        )
        self.assertEqual("heard\n['done']\n", result.stdout, result.stderr)


class TestNames(SshTest):
    """Names that are somebody else's choice."""

    EVIL = (
        '-oProxyCommand=touch pwned',
        '-F/dev/null',
        '--',
        '',
        ' ',
        'a b',
        'root@web1',
        'ssh://web1',
        'web1;touch pwned',
        '$(touch pwned)',
        '`touch pwned`',
        'web1\ntouch pwned',
        "'web1'",
        '*',
        '!web1',
        'w\u00e9b1',
        'x' * 300,
    )

    def test_no_name_becomes_an_option(self) -> None:
        with mock.patch.object(self.shell, '_call') as called:
            for name in self.EVIL:
                self.assertFalse(self.shell.entry(name), name)
                self.refused(ssh.Target, name)
        called.assert_not_called()

    def test_nor_by_the_program_itself(self) -> None:
        # were our own check to fail, ssh still gets it behind '--'
        pwned = pathlib.Path(tempfile.mkdtemp()) / 'pwned'
        with mock.patch.object(ssh, 'valid', return_value=True):
            name = f'-oProxyCommand=touch${{IFS}}{pwned}'
            try:
                self.shell.entry(name)
                self.shell.run(ssh.Target(name), 'true', limit=10)
            except exceptions.SshError:
                pass
        self.assertFalse(pwned.exists())

    def test_a_user_that_is_none(self) -> None:
        for user in ('-oProxyCommand=x', 'a b', '', 'a\nb'):
            self.assertRaises(exceptions.Usage, ssh.Ssh, None, user)

    def test_a_configuration_that_is_none(self) -> None:
        error = self.assertRaises(
            exceptions.ConfigError, ssh.Ssh, '/nonexistent/config'
        )
        self.assertIn("'/nonexistent/config': No such file", str(error))
        self.lab.config.write_text('Nonsense yes\n')
        words = self.refused(self.shell.entry, 'web1')
        self.assertIn('ssh cannot read its configuration', words)

    def test_entry(self) -> None:
        self.lab.entry('web1', 1)
        self.assertTrue(self.shell.entry('web1'))
        self.assertFalse(self.shell.entry('web2'))
        self.assertFalse(self.shell.entry(ID))

    def test_entry_beside_a_rule_for_all(self) -> None:
        text = 'Host web*\n  User x\nHost *\n  HostName %h.cloud.example\n'
        self.lab.config.write_text(text)
        self.assertTrue(self.shell.entry('web1'))
        self.assertFalse(self.shell.entry('db1'))


class TestGuests(SshTest):
    """The right machine, and no other."""

    def setUp(self) -> None:
        super().setUp()
        self.machine = self.lab.machine('web1')
        self.server = build.running(ID, name='web1')
        self.volume = '0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d'
        self.asked: list[str] = []
        self.addresses: list[facts.Address] = []
        self.guests = guests.Guests(
            self.shell, self._addresses, lambda s: [self.volume]
        )

    def _addresses(self, server_id: str) -> list[facts.Address]:
        self.asked.append(server_id)
        return self.addresses

    def test_by_its_name(self) -> None:
        self.machine.is_server(ID)
        self.assertEqual(
            self.machine.boot_id, self.guests.boot_id(self.server)
        )
        self.assertEqual([], self.asked)

    def test_its_id_goes_before_its_name(self) -> None:
        machine = self.lab.machine(ID)
        machine.is_server(ID)
        self.assertEqual(machine.boot_id, self.guests.boot_id(self.server))
        self.assertEqual([], self.machine.lines('commands'))

    def test_else_novas_address(self) -> None:
        self.machine.is_server(ID)
        self.lab.entry('127.0.0.1', self.machine.port)
        self.addresses = [facts.Address('net', '127.0.0.1', 4, False)]
        server = build.running(ID, name='-oProxyCommand=touch pwned')
        self.assertEqual(self.machine.boot_id, self.guests.boot_id(server))
        self.assertEqual([ID], self.asked)

    def test_witnesses(self) -> None:
        for path, content in (
            ('sys/class/dmi/id/product_uuid', ID.upper()),
            # SMBIOS before 2.6
            (
                'sys/class/dmi/id/product_uuid',
                '516a0d5b-0e7b-0c4f-9d3c-1c0a5f3a9e01',
            ),
            ('var/lib/cloud/data/instance-id', ID),
            ('sys/block/vdb/serial', self.volume[:20]),
            ('sys/block/vdb/serial', f'{self.volume[:20]}\n'),
            (f'dev/disk/by-id/virtio-{self.volume[:20]}', ''),
        ):
            self.machine.write(path, content)
            self.assertEqual(
                self.machine.boot_id, self.guests.boot_id(self.server), path
            )
            (self.machine.dir / path).unlink()
        words = self.refused(self.guests.boot_id, self.server)
        self.assertIn('web1 does not say which server it is', words)
        self.assertIn(f'"Host {ID}"', words)

    def test_the_operators_entry_of_the_id_is_a_word(self) -> None:
        machine = self.lab.machine(ID)
        self.assertEqual(machine.boot_id, self.guests.boot_id(self.server))

    def test_another_machine_of_that_name(self) -> None:
        # a tenant may call a server like the operator's own machine
        other = 'ffffffff-0000-4000-8000-000000000001'
        self.machine.is_server(other)
        words = self.refused(self.guests.boot_id, self.server)
        self.assertEqual(f'web1 is another machine: firmware {other}', words)

    def test_reboot(self) -> None:
        self.machine.is_server(ID)
        boot_id = self.machine.boot_id
        self.guests.reboot(self.server, boot_id)
        self.assertEqual(1, self.machine.reboots)
        self.assertIn('bin/shutdown -r now', self.machine.lines('reboots')[0])

    def test_never_another_boot(self) -> None:
        self.machine.is_server(ID)
        self.assertRaises(
            exceptions.Changed,
            self.guests.reboot,
            self.server,
            '00000000-0000-4000-8000-000000000000',
        )
        self.assertEqual(0, self.machine.reboots)

    def test_with_sudo(self) -> None:
        self.machine.is_server(ID)
        self.machine.user(1000)
        self.machine.program('bin/sudo', sshd.SUDO)
        self.guests.reboot(self.server, self.machine.boot_id)
        self.assertEqual(1, self.machine.reboots)

    def test_sudo_with_a_password(self) -> None:
        self.machine.is_server(ID)
        self.machine.user(1000)
        self.machine.program('bin/sudo', sshd.SUDO_ASKS)
        words = self.refused(
            self.guests.reboot, self.server, self.machine.boot_id
        )
        self.assertEqual(
            'web1: its sudo asks for a password, and nobody is there to '
            'answer',
            words,
        )
        self.assertIs(exceptions.SshError, self.kind)
        self.assertEqual(0, self.machine.reboots)

    def test_hostile_words_are_no_terminal_commands(self) -> None:
        self.machine.is_server(ID)
        self.machine.program(
            'bin/shutdown', "#!/bin/sh\nprintf '\\033[2Jboo\\n' >&2; exit 1\n"
        )
        words = self.refused(
            self.guests.reboot, self.server, self.machine.boot_id
        )
        self.assertEqual('web1: it does not reboot: [2Jboo', words)


class TestAddress(unittest.TestCase):
    """Which of nova's addresses."""

    def test_address_of(self) -> None:
        fixed = facts.Address('blue', '10.0.0.5', 4, False)
        six = facts.Address('blue', '2001:db8::5', 6, False)
        floating = facts.Address('blue', '192.0.2.5', 4, True)
        other = facts.Address('green', '10.1.0.5', 4, False)
        for addresses, network, expected in (
            ([fixed], None, '10.0.0.5'),
            ([six, fixed], None, '10.0.0.5'),
            ([six], None, '2001:db8::5'),
            ([fixed, six, floating], None, '192.0.2.5'),
            ([fixed, other], None, '10.0.0.5'),
            ([fixed, floating, other], 'green', '10.1.0.5'),
        ):
            with self.subTest(expected):
                self.assertEqual(
                    expected, guests.address_of(addresses, network)
                )

    def test_none(self) -> None:
        fixed = facts.Address('blue', '10.0.0.5', 4, False)
        evil = facts.Address('blue', '-oProxyCommand=x', 4, False)
        rude = facts.Address('\x1b[2J\nall is well', '10.0.0.5', 4, False)
        for addresses, network, words in (
            ([], None, 'nova knows no address of it'),
            ([], 'green', 'nova knows no address of it'),
            ([fixed], 'green', "'green', only in blue"),
            ([rude], 'green', r"'green', only in \[2J all is well"),
            ([evil], None, "nova's address of it is none"),
        ):
            with self.assertRaisesRegex(exceptions.SshError, words):
                guests.address_of(addresses, network)
