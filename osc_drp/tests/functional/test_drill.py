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

"""`drp drill` on real sshd: a guest, its host, and a cloud in memory."""

import argparse
import dataclasses
import io
import pathlib
import types
import typing as ty
import uuid
from unittest import mock

import fixtures

from osc_drp import exceptions
from osc_drp.commands import drill
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.hosts import cuts
from osc_drp.tests.functional import sshd
from osc_drp.tests.functional import test_ssh
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes
from osc_drp.tests.unit.hosts import captured

ID = '5b0d6a51-7b0e-4f0c-9d3c-000000000001'
OTHER = '5b0d6a51-7b0e-4f0c-9d3c-000000000002'
TARGET = f'iqn.2010-10.org.openstack:volume-{captured.VOLUME}'

VIRSH = r"""#!/bin/sh
echo "$*" >> {machine}/virsh
case "$*" in
*" domstate "*) [ -e {machine}/destroyed ] && echo 'shut off' || echo running
    echo ;;
*" destroy "*) touch {machine}/destroyed; echo "Domain destroyed" ;;
esac
"""


def row_of(server_id: ty.Any) -> str:
    """Give the id of a server's attachment."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, server_id))


class Cloud(fakes.Cloud):
    """Nova notices that a guest is gone; a start boots it."""

    def __init__(self, seen: ty.Any, host: ty.Any, guest: ty.Any) -> None:
        super().__init__(seen)
        self.host, self.guest = host, guest

    def observe(self) -> ty.Any:
        gone = self.host.dir / 'destroyed'
        if gone.exists() and self.seen.servers[ID].ran:
            self.stopped(ID)
            self.log(ID, 'stop', user=None)
        return super().observe()

    def do_start(self, server_id: str, user: str = fakes.ME) -> None:
        super().do_start(server_id, user)
        self.guest.write('proc/sys/kernel/random/boot_id', str(uuid.uuid4()))
        (self.host.dir / 'destroyed').unlink()
        self.on_start()

    def on_start(self) -> None:
        """What a test breaks meanwhile."""


class TestDrill(test_ssh.SshTest):
    """One server with a volume over iSCSI, and a neighbour."""

    def setUp(self) -> None:
        super().setUp()
        self.dir = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.host = self.lab.machine(build.HOST)
        self.host.program('bin/virsh', VIRSH)
        self.host.program('bin/iscsiadm', sshd.ISCSIADM)
        self.host.write('sessions', captured.SESSIONS)
        self.host.write(
            'sys/class/iscsi_session/session15/targetname', f'{TARGET}\n'
        )
        self.guest = self.lab.machine('web1')
        self.guest.is_server(ID)
        self.guest.write(
            'sys/class/block/vdb/serial', captured.VOLUME[:20] + '\n'
        )
        self.data = self.guest.dir / 'data'
        self.guest.write('proc/mounts', f'/dev/vdb {self.data} ext4 rw 0 0\n')
        for name in ('a file', 'log', "it's $(odd)"):
            self.guest.write(f'data/{name}', f'{name}\n' * 100)
        servers = [
            build.running(ID, name='web1', metadata=(('drp_drill', 'true'),)),
            build.running(OTHER, name='web2'),
        ]
        seen = build.agreeing(
            (ID, captured.VOLUME), (OTHER, captured.OTHER), servers=servers
        )
        # a map wants ids that look like ids
        seen = dataclasses.replace(
            seen,
            mappings=tuple(
                dataclasses.replace(m, attachment_id=row_of(m.server_id))
                for m in seen.mappings
            ),
            rows=tuple(
                dataclasses.replace(r, id=row_of(r.server_id))
                for r in seen.rows
            ),
        )
        self.cloud = Cloud(seen, self.host, self.guest)

    def drill(self, *options: str) -> dict[str, tuple[str, ...]]:
        """Run the command; gives its rows by their first word."""
        self.err = io.StringIO()
        app = mock.Mock(
            stderr=self.err,
            stdout=io.StringIO(),
            cloud=types.SimpleNamespace(name='lab'),
            options=types.SimpleNamespace(verbose_level=1),
        )
        made = drill.Drill(app, None, cmd_name='drp drill')
        args = made.get_parser('x').parse_args(
            [
                '--server=web1',
                f'--ssh-config={self.lab.config}',
                f'--run-dir={self.dir / "runs"}',
                *options,
            ]
        )
        with (
            mock.patch(
                'osc_drp.cloud.client.connect', return_value=self.cloud
            ),
            mock.patch(
                'osc_drp.commands.base.databases_configured',
                return_value=False,
            ),
            mock.patch(
                'osc_drp.engine.ports.RealClock', return_value=self.cloud.clock
            ),
        ):
            _columns, rows = made.take_action(args)
        self.exit_code = made.exit_code
        return {row[0]: tuple(row[1:]) for row in rows}

    def asked(self) -> list[str]:
        """What was cut."""
        wanted = ('-u', 'destroy')
        return [
            x
            for x in self.host.lines('iscsiadm') + self.host.lines('virsh')
            if any(w in x.split() for w in wanted)
        ]

    def test_nothing_lost(self) -> None:
        told = self.drill('--auto-approve')
        self.assertEqual(0, self.exit_code, told)
        self.assertEqual(
            ['-m session -r 15 -u', f'-c qemu:///system destroy {ID}'],
            self.asked(),
        )
        self.assertIn(
            ('start', ID), [x for x in self.cloud.sent if x[0] == 'start']
        )
        self.assertFalse([x for x in self.cloud.sent if x[1] == OTHER])
        self.assertEqual(
            ('running', 'start: started', 'ok'), told['server web1']
        )
        where = str(self.data)
        self.assertEqual(
            (where, where, 'ok'), told[f'disk {captured.VOLUME[:20]}']
        )
        self.assertEqual(('3', '3', 'ok'), told['files'])
        self.assertRegex(told['minutes until it answered'][1], r'^\d+\.\d$')
        for words in (
            'cutting off: iSCSI session 15 of compute1 (volume '
            f'{captured.VOLUME})',
            f'cutting off: the guest on compute1 (virsh destroy {ID})',
        ):
            self.assertIn(words, self.err.getvalue())
        self.assertEqual(0, self.guest.reboots)

    def test_one_sudo_for_all_files(self) -> None:
        self.guest.user(1000)
        noted = 'shift\necho "$1" >> {machine}/sudos\n'
        self.guest.program('bin/sudo', sshd.SUDO.replace('shift\n', noted))
        told = self.drill('--auto-approve')
        self.assertEqual(('3', '3', 'ok'), told['files'])
        # may it, and do it; before and after
        self.assertEqual(['sh'] * 4, self.guest.lines('sudos'))

    def test_losses(self) -> None:
        def lose() -> None:
            (self.data / 'a file').unlink()
            with open(self.data / 'log', 'a') as log:
                log.write('and it went on')
            (self.data / "it's $(odd)").write_text('short')
            self.guest.write('proc/mounts', '')

        self.cloud.on_start = lose
        told = self.drill('--auto-approve')
        self.assertEqual(3, self.exit_code)
        self.assertEqual(('3', '1', 'lost'), told['files'])
        self.assertEqual('gone', told[f'{self.data}/a file'][1])
        odd = told[f"{self.data}/it's $(odd)"]
        self.assertEqual('other content', odd[1])
        self.assertNotIn(f'{self.data}/log', told)
        self.assertEqual(
            (str(self.data), 'not mounted', 'lost'),
            told[f'disk {captured.VOLUME[:20]}'],
        )

    def test_dry_run(self) -> None:
        told = self.drill('--dry-run')
        self.assertEqual(2, len(told))
        self.assertEqual({'would be cut'}, {r[-1] for r in told.values()})
        self.assertEqual([], self.asked())
        self.assertFalse((self.dir / 'runs').exists())

    def declined(self, *options: str) -> str:
        error = self.assertRaises(
            exceptions.Refused, self.drill, '--auto-approve', *options
        )
        self.assertEqual([], self.asked())
        self.assertEqual([], self.cloud.sent)
        return str(error)

    def test_without_consent(self) -> None:
        for metadata in ((), (('drp_drill', 'false'),)):
            self.cloud.change(ID, metadata=metadata)
            self.assertIn("'web1' does not consent", self.declined())

    def test_not_healthy(self) -> None:
        self.cloud.set_volume(captured.VOLUME, status='detaching')
        self.assertIn(f'volume {captured.VOLUME} of', self.declined())
        self.cloud.change(ID, task_state='rebuilding')
        self.assertIn('does not simply run', self.declined())

    def test_a_session_that_carries_more(self) -> None:
        self.host.write(
            'sessions',
            captured.SESSIONS + '\t\tscsi3 Channel 00 Id 0 Lun: 2\n'
            '\t\t\tAttached scsi disk sdc\t\tState: running\n',
        )
        target = facts.Target(TARGET, '10.0.0.5:3260', 2)
        self.cloud.targets_of[row_of(OTHER)] = frozenset({target})
        self.assertIn(f'carries volume {captured.OTHER}', self.declined())

    def test_a_guest_that_does_not_run_there(self) -> None:
        (self.host.dir / 'sessions').unlink()
        self.host.program(
            'bin/virsh',
            "#!/bin/sh\necho 'error: failed to get domain'\nexit 1\n",
        )
        words = self.refused(self.drill, '--auto-approve')
        self.assertIn('compute1: virsh: error: failed to get', words)

    def test_killed_and_repeated(self) -> None:
        # right after the cut, before it is written down
        write = journal.Run.write

        def killed(run: journal.Run, event: str, **fields: ty.Any) -> None:
            if (event, fields.get('action')) == ('sent', 'drill'):
                raise KeyboardInterrupt
            write(run, event, **fields)

        with mock.patch.object(journal.Run, 'write', killed):
            self.assertRaises(KeyboardInterrupt, self.drill, '--auto-approve')
        cut = self.asked()
        self.assertEqual(2, len(cut))
        # nova has noticed, so nobody could begin a drill now
        self.cloud.observe()
        told = self.drill('--auto-approve')
        self.assertEqual(0, self.exit_code, told)
        self.assertEqual(cut, self.asked())
        self.assertEqual(('3', '3', 'ok'), told['files'])
        self.assertIn('cut off already', self.err.getvalue())

    def test_by_a_program(self) -> None:
        program = self.dir / 'cut'
        program.write_text(
            f'#!/bin/sh\necho "$@" > {self.dir}/args\n'
            f'touch {self.host.dir}/destroyed\n'
        )
        program.chmod(0o755)
        self.drill('--auto-approve', f'--cut-command={program}')
        self.assertEqual(0, self.exit_code)
        self.assertEqual(
            f'{ID} {build.HOST}\n', (self.dir / 'args').read_text()
        )
        self.assertEqual([], self.asked())
        self.assertIn(f'whatever {program} {ID}', self.err.getvalue())

    def test_a_program_that_fails(self) -> None:
        server = self.cloud.seen.servers[ID]
        for program, words in (
            ('/nonexistent', 'No such file'),
            ('/bin/false', '/bin/false ended with 1'),
        ):
            error = self.assertRaises(
                exceptions.DrpError, cuts.Program(program, server).cut
            )
            self.assertIn(words, str(error))

    def test_help_has_the_warnings(self) -> None:
        words = ' '.join(drill.Drill(None, None).get_description().split())
        self.assertIn('Never detach the volume through nova', words)
        self.assertIn('without "-r"', words)

    def test_one_server(self) -> None:
        parser = drill.Drill(None, None).get_parser('x')
        (action,) = [a for a in parser._actions if a.dest == 'server']
        self.assertIs(argparse._StoreAction, type(action))
        self.assertTrue(action.required)
