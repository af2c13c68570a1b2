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

"""`drp db reset`: what it asks, writes down, prints and ends with."""

import contextlib
import io
import pathlib
import tempfile
import types
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.commands import base
from osc_drp.commands import db
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes


class Client(fakes.Databases):
    """The databases as db/client.py gives them."""

    grants: Exception | None = None

    def check_grants(self, locks=True):
        if self.grants:
            raise self.grants


class TestResetDatabase(unittest.TestCase):
    """On two servers that nova stopped, with a data disk each."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.runs = pathlib.Path(directory.name) / 'runs'
        self.err = io.StringIO()
        keys = [('s1', 'v1'), ('s2', 'v2')]
        self.map = build.cloud_map(*keys)
        self.databases = Client(
            build.agreeing(*keys),
            [
                build.action('stop', user=None, server_id=s)
                for s in ('s1', 's2')
            ],
        )
        self.opened = []

    def connect(self, *args):
        self.opened.append(args)
        return contextlib.nullcontext(self.databases)

    def command(self):
        app = mock.Mock(
            stderr=self.err,
            stdout=io.StringIO(),
            cloud=types.SimpleNamespace(name='lab'),
        )
        return db.ResetDatabase(app, None, cmd_name='drp db reset')

    def reset(self, *options, question=None):
        """Run the command; gives its exit code and rows."""
        command = self.command()
        args = command.get_parser('x').parse_args(
            ['map', f'--run-dir={self.runs}', *options]
        )
        with (
            mock.patch('osc_drp.mapfile.read', return_value=self.map),
            mock.patch('osc_drp.db.client.connect', self.connect),
            mock.patch('osc_drp.engine.ports.RealClock', fakes.Clock),
        ):
            if question:
                with mock.patch.object(base, 'confirm', question):
                    columns, rows = command.take_action(args)
            else:
                columns, rows = command.take_action(args)
        return command.exit_code, [
            dict(zip(columns, row, strict=True)) for row in rows
        ]

    def events(self):
        (path,) = journal.RunDirectory(self.runs).runs()
        return [e['event'] for e in journal.read(path)]

    def test_reset(self):
        code, rows = self.reset('--auto-approve')
        self.assertEqual(0, code)
        self.assertEqual(
            ['s1 v1 /dev/vdb done', 's2 v2 /dev/vdb done'],
            [
                '{Server ID} {Volume ID} {Device} {Result}'.format_map(r)
                for r in rows
            ],
        )
        self.assertEqual([('s1', 'v1'), ('s2', 'v2')], self.databases.resets)
        self.assertEqual(
            [
                *('begin', 'plan', 'names', 'open', 'old', 'outcome'),
                *('old', 'outcome', 'verified', 'end'),
            ],
            self.events(),
        )

    def test_dry_run_does_nothing_at_all(self):
        code, rows = self.reset('--dry-run')
        self.assertEqual(0, code)
        self.assertEqual({'would reset'}, {r['Result'] for r in rows})
        self.assertEqual([], self.databases.resets)
        self.assertFalse(self.runs.exists())

    def test_dry_run_works_while_another_run_holds_the_lock(self):
        other = journal.RunDirectory(self.runs)
        other.lock('me')
        self.addCleanup(other.unlock)
        self.assertEqual(0, self.reset('--dry-run')[0])
        with self.assertRaisesRegex(exceptions.Refused, 'another run'):
            self.reset('--auto-approve')
        self.assertEqual([], self.databases.resets)

    def test_asks_with_the_numbers(self):
        asked = []
        self.reset(question=lambda *a: asked.append(a))
        self.assertEqual(
            [
                (
                    '2 attachments of 2 servers will be taken off both '
                    'records',
                    'reset 2',
                    False,
                )
            ],
            asked,
        )

    def test_declined_nothing_is_written(self):
        def decline(*args):
            raise exceptions.Refused('no')

        with self.assertRaises(exceptions.Refused):
            self.reset(question=decline)
        self.assertEqual([], self.databases.resets)
        self.assertEqual([], journal.RunDirectory(self.runs).runs())
        # and the lock is free again
        self.assertEqual(0, self.reset('--auto-approve')[0])

    def test_nothing_to_do_asks_nothing(self):
        self.databases.seen = build.seen([build.server(), build.server('s2')])

        def never(*args):
            self.fail('asked')

        code, rows = self.reset(question=never)
        self.assertEqual(0, code)
        self.assertEqual({'ok'}, {r['Result'] for r in rows})
        self.assertEqual([], journal.RunDirectory(self.runs).runs())

    def test_what_needs_a_person_is_exit_code_3(self):
        self.databases.set(rows=self.databases.seen.rows[1:])
        code, rows = self.reset('--auto-approve')
        self.assertEqual(3, code)
        self.assertEqual(['open', 'done'], [r['Result'] for r in rows])
        self.assertEqual(3, self.reset('--dry-run')[0])

    def test_killed_and_run_again(self):
        def die():
            raise KeyboardInterrupt

        self.databases.between['s1', 'v1'] = die
        with self.assertRaises(KeyboardInterrupt):
            self.reset('--auto-approve')
        del self.databases.between['s1', 'v1']
        code, rows = self.reset('--auto-approve')
        self.assertEqual(0, code)
        self.assertEqual({'done'}, {r['Result'] for r in rows})
        self.assertIn('going on with run', self.err.getvalue())
        events = self.events()
        self.assertEqual(
            ['begin', 'plan', 'names', 'open', 'old', 'resume'], events[:6]
        )
        self.assertEqual('end', events[-1])

    def test_grants_are_checked_first(self):
        self.databases.grants = exceptions.DatabaseError('UPDATE denied')
        for option in '--dry-run', '--auto-approve':
            with self.assertRaises(exceptions.DatabaseError):
                self.reset(option)
        self.assertEqual(0, self.databases._observed)

    def test_a_map_in_which_nothing_ran(self):
        self.map = build.cloud_map(
            servers=[
                build.map_server(s, vm_state='stopped') for s in ('s1', 's2')
            ],
            attachments=self.map.attachments,
        )
        with self.assertRaisesRegex(exceptions.Refused, '--lost-at'):
            self.reset('--auto-approve')
        self.assertEqual([], self.opened)
        code, _rows = self.reset(
            '--auto-approve', '--lost-at=2026-11-22T03:30:00Z'
        )
        self.assertEqual(0, code)
        self.assertEqual(2, len(self.databases.resets))

    def test_options_reach_the_engine(self):
        with mock.patch('osc_drp.engine.reset.Reset') as made:
            made.return_value.propose.return_value = ()
            made.return_value.seen = build.seen(
                [build.server('s1', host='c2')], services=build.services('c1')
            )
            self.reset(
                *('--dry-run', '--limit=20', '--settle=7', '--server=s1'),
                *('--host-is-dead=c1', '--host-is-dead=c2'),
                *('--nova-config-file=n', '--cinder-config-file=c'),
                '--config-file=d',
            )
        _args, options = made.call_args
        self.assertEqual(
            (0.2, 7.0, {'c1', 'c2'}),
            (options['limit'], options['settle'], options['dead_hosts']),
        )
        self.assertEqual(
            plan.Selection(servers=('s1',)), made.call_args.args[2]
        )
        self.assertEqual([(['n'], ['c'], 'd')], self.opened)

    def test_cinder_only_opens_nothing_of_novas(self):
        opened = []
        cloud = fakes.Cloud(self.databases.seen)
        for server_id in 's1', 's2':
            cloud.log(server_id, 'stop', user=None)

        def connect_cinder(*args):
            opened.append(args)
            return contextlib.nullcontext(fakes.CinderDatabase(cloud))

        with (
            mock.patch('osc_drp.cloud.client.connect', lambda app: cloud),
            mock.patch('osc_drp.db.client.connect_cinder', connect_cinder),
        ):
            options = ('--cinder-only', '--cinder-config-file=c')
            code, rows = self.reset('--dry-run', *options)
            self.assertEqual({'would reset'}, {r['Result'] for r in rows})
            asked = []
            self.reset(*options, question=lambda *a: asked.append(a))
            code, rows = self.reset('--auto-approve', *options)
        self.assertEqual((0, {'ok'}), (code, {r['Result'] for r in rows}))
        self.assertEqual([(['c'], None)] * 3, opened)
        self.assertEqual([], self.opened)
        self.assertIn("cinder's record only", asked[0][0])
        self.assertEqual(
            {'reserved'}, {v.status for v in cloud.seen.volumes.values()}
        )
        self.assertIn('servers restart', self.err.getvalue())

    def test_a_dead_host_that_nobody_knows(self):
        for option in '--dry-run', '--auto-approve':
            with self.assertRaisesRegex(
                exceptions.DrpError, "no compute host is named 'compute'"
            ):
                self.reset(
                    *('--host-is-dead=compute1', '--host-is-dead=compute'),
                    option,
                )
        self.assertEqual([], self.databases.resets)

    def test_cinder_only_needs_nova_compute(self):
        with self.assertRaises(exceptions.Usage):
            self.reset('--cinder-only', '--host-is-dead=c1', '--dry-run')

    def test_selection(self):
        code, rows = self.reset('--auto-approve', '--server=name-s2')
        self.assertEqual(0, code)
        self.assertEqual(['s2'], [r['Server ID'] for r in rows])
        self.assertEqual([('s2', 'v2')], self.databases.resets)
