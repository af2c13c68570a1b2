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
"""`drp recover`: its options, and the line that goes on with a run."""

import io
import pathlib
import shlex
import tempfile
import types
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.commands import attachments
from osc_drp.commands import db
from osc_drp.commands import drill
from osc_drp.commands import guests
from osc_drp.commands import recover
from osc_drp.engine import journal
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes


class RecoverTest(unittest.TestCase):
    """On two servers that nova stopped, with a data disk each."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.runs = journal.RunDirectory(self.dir / 'runs')
        self.err = io.StringIO()
        keys = [('s1', 'v1'), ('s2', 'v2')]
        self.map = build.cloud_map(*keys)
        self.cloud = fakes.Cloud(build.agreeing(*keys))

    def recover(self, *options):
        """Run the command, as the shell does; gives its exit code."""
        app = mock.Mock(
            stderr=self.err,
            stdout=io.StringIO(),
            cloud=types.SimpleNamespace(name='lab'),
        )
        command = recover.Recover(app, None, cmd_name='drp recover')
        args = command.get_parser('x').parse_args(list(options))
        with (
            mock.patch(
                'osc_drp.cloud.client.connect', return_value=self.cloud
            ),
            mock.patch(
                'osc_drp.engine.ports.RealClock',
                return_value=self.cloud.clock,
            ),
            mock.patch(
                'osc_drp.commands.base.databases_configured',
                return_value=False,
            ),
            mock.patch('osc_drp.mapfile.read', return_value=self.map),
            mock.patch(
                'osc_drp.mapfile.write',
                lambda _map, path: pathlib.Path(path).touch(),
            ),
            mock.patch.object(command, 'produce_output', return_value=0),
        ):
            return command.run(args)


class TestInterrupted(RecoverTest):
    """Ctrl-C, and the line that is to be typed next."""

    def interrupt(self, *options):
        """Interrupt it at the first start; gives the words to go on."""

        def die(server_id):
            raise KeyboardInterrupt

        self.cloud.next('start', die)
        with self.assertLogs():
            code = self.recover(
                *('--auto-approve', f'--run-dir={self.dir / "runs"}'),
                *('--skip-guests', '--console-after=0', *options),
            )
        self.assertEqual(130, code)
        [line] = [
            one
            for one in self.err.getvalue().splitlines()
            if one.startswith('to go on: ')
        ]
        return shlex.split(line.removeprefix('to go on: '))

    def test_the_line_is_whole_and_goes_on(self):
        words = self.interrupt('map.json', '--settle=1', '--ssh-user=me')
        [path] = self.runs.runs()
        self.assertEqual(
            [
                *('openstack', '--os-cloud', 'lab', 'drp', 'recover'),
                *('--resume', path.name),
                *('--run-dir', str(self.dir / 'runs'), '--settle', '1.0'),
                *('--console-after', '0.0', '--skip-guests'),
                *('--ssh-user', 'me'),
            ],
            words,
        )
        self.assertEqual(0, self.recover(*words[5:], '--auto-approve'))
        self.assertEqual([path], self.runs.runs())
        self.assertEqual('end', journal.read(path)[-1]['event'])

    def test_what_the_run_brings_back_is_left_out(self):
        words = self.interrupt(
            *('map.json', '--server=s1', '--lost-at=2026-11-22T03:30:00Z')
        )
        self.assertFalse({'s1', '--server', '--lost-at'} & set(words))
        # only the selected one, although the line does not name it
        self.recover(*words[5:], '--auto-approve')
        self.assertEqual({'s1'}, {server for _do, server in self.cloud.sent})

    def test_a_run_of_long_ago_is_not_taken_up_unasked(self):
        bare = f'--run-dir={self.dir / "runs"}', '--lost-at=2026-11-22T03:30Z'
        long_ago = '2026-10-01T00:00:00.000+00:00'
        for server in 's1', 's2':
            self.cloud.log(server, 'stop', user=None)
        with mock.patch.object(journal, '_now', lambda: long_ago):
            words = self.interrupt('--lost-at=2026-11-22T03:30Z')
        self.cloud.sent.clear()
        for how in '--auto-approve', '--dry-run':
            with self.assertLogs() as logs:
                code = self.recover(*bare, how)
            self.assertEqual(exceptions.REFUSED, code)
            self.assertIn('may be of another loss', logs.output[-1])
            self.assertIn('--resume', logs.output[-1])
        self.assertEqual([], self.cloud.sent)
        self.assertEqual(0, self.recover(*words[5:], '--auto-approve'))

    def test_killed_when_only_its_end_was_missing(self):
        words = self.interrupt('map.json')
        again = *words[5:], '--auto-approve'
        self.assertEqual(0, self.recover(*again))
        [run] = self.runs.runs()
        path = run / 'journal.jsonl'
        lines = path.read_text().splitlines(keepends=True)
        self.assertIn('"end"', lines.pop())
        path.write_text(''.join(lines))
        self.cloud.sent.clear()
        # what needs a person keeps the run, and its map, at hand
        self.cloud.change('s1', vm_state='error')
        self.assertEqual(3, self.recover(*again))
        self.assertNotEqual('end', journal.read(run)[-1]['event'])
        self.cloud.change('s1', vm_state='active')
        self.assertEqual(0, self.recover(*again))
        self.assertEqual('end', journal.read(run)[-1]['event'])
        self.assertEqual(([run], []), (self.runs.runs(), self.cloud.sent))

    def test_of_a_resumed_run(self):
        words = self.interrupt('map.json')
        self.err.truncate(0)
        self.err.seek(0)
        self.assertEqual(words, self.interrupt(*words[5:]))


class TestResume(RecoverTest):
    """--resume <run>."""

    def test_what_may_not_be_given_beside_it(self):
        with self.assertLogs() as logs:
            code = self.recover('m', '--resume=r', '--classic', '--host=h')
        self.assertEqual(2, code)
        self.assertIn('leave out <file>, --classic, --host', logs.output[0])
        self.assertIn('the map, the selection', logs.output[0])


class TestEmpty(unittest.TestCase):
    """'' is an unset variable of a script, never all of the cloud."""

    def test_wrong_usage(self):
        for cls, options, name in (
            (recover.Recover, [''], '<file>'),
            (recover.Recover, ['--resume', ''], '--resume'),
            (recover.Recover, ['--run-dir', ''], '--run-dir'),
            (recover.Recover, ['--config-file', ''], '--config-file'),
            (recover.Recover, ['--server', ''], '--server'),
            (db.RepairDatabase, [''], '<file>'),
            (db.RepairDatabase, ['--host-is-dead', ''], '--host-is-dead'),
            (attachments.CheckAttachments, [''], '<file>'),
            (guests.CheckGuests, [''], '<file>'),
            (
                drill.Drill,
                ['--server=x', '--cut-command', ''],
                '--cut-command',
            ),
        ):
            parser = cls(mock.Mock(), None, cmd_name='x').get_parser('x')
            with (
                self.subTest(f'{cls.__name__} {options}'),
                self.assertRaises(SystemExit) as caught,
                mock.patch('sys.stderr', io.StringIO()) as err,
            ):
                parser.parse_args(options)
            self.assertEqual(exceptions.USAGE, caught.exception.code)
            self.assertRegex(err.getvalue(), f'{name}: must not be empty')

    def test_nothing_given_is_the_default(self):
        for cls in recover.Recover, db.RepairDatabase:
            parser = cls(mock.Mock(), None, cmd_name='x').get_parser('x')
            args = parser.parse_args([])
            self.assertIsNone(args.file)
            self.assertIsNone(args.run_dir)
