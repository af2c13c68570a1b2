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

"""`drp servers restart`: what it asks, writes down, prints and ends with."""

import io
import pathlib
import tempfile
import types
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.commands import base
from osc_drp.commands import servers
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes


class TestRestartServers(unittest.TestCase):
    """On two servers that nova stopped, with a data disk each."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.runs = pathlib.Path(directory.name) / 'runs'
        self.err = io.StringIO()
        keys = [('s1', 'v1'), ('s2', 'v2')]
        self.map = build.cloud_map(*keys)
        self.cloud = fakes.Cloud(build.agreeing(*keys))

    def restart(self, *options, question=None):
        """Run the command; gives its exit code and rows."""
        app = mock.Mock(
            stderr=self.err,
            stdout=io.StringIO(),
            cloud=types.SimpleNamespace(name='lab'),
        )
        command = servers.RestartServers(
            app, None, cmd_name='drp servers restart'
        )
        args = command.get_parser('x').parse_args(
            ['map', f'--run-dir={self.runs}', *options]
        )
        with (
            mock.patch('osc_drp.mapfile.read', return_value=self.map),
            mock.patch(
                'osc_drp.cloud.client.connect', return_value=self.cloud
            ),
            mock.patch(
                'osc_drp.engine.ports.RealClock',
                return_value=self.cloud.clock,
            ),
            mock.patch.object(base, 'confirm', question or base.confirm),
        ):
            columns, rows = command.take_action(args)
        return command.exit_code, [
            dict(zip(columns, row, strict=True)) for row in rows
        ]

    def test_restart(self):
        code, rows = self.restart('--auto-approve')
        self.assertEqual(0, code)
        self.assertEqual(
            [
                'name-s1 s1 compute1 done started',
                'name-s2 s2 compute1 done started',
            ],
            [' '.join(r.values()) for r in rows],
        )
        self.assertEqual([('start', 's1'), ('start', 's2')], self.cloud.sent)
        (path,) = journal.RunDirectory(self.runs).runs()
        self.assertEqual('end', journal.read(path)[-1]['event'])
        self.assertIn(
            'starting servers: 2 of 2, 0 failed', self.err.getvalue()
        )

    def test_run_again_starts_nothing(self):
        self.restart('--auto-approve')
        code, rows = self.restart('--auto-approve', '--settle=0')
        self.assertEqual(0, code)
        self.assertEqual({'ok'}, {r['Result'] for r in rows})
        self.assertEqual(2, len(self.cloud.sent))

    def test_dry_run_does_nothing_at_all(self):
        code, rows = self.restart('--dry-run')
        self.assertEqual(0, code)
        self.assertEqual({'would start'}, {r['Result'] for r in rows})
        self.assertEqual([], self.cloud.sent)
        self.assertFalse(self.runs.exists())
        self.assertEqual(0, self.cloud.clock.slept)

    def test_asks_with_the_numbers(self):
        asked = []
        self.restart(question=lambda *a: asked.append(a))
        self.assertEqual(
            [('2 servers will be started', 'restart 2', False)], asked
        )

    def test_declined_nothing_is_started(self):
        def decline(*args):
            raise exceptions.Refused('no')

        with self.assertRaises(exceptions.Refused):
            self.restart(question=decline)
        self.assertEqual([], self.cloud.sent)
        self.assertEqual([], journal.RunDirectory(self.runs).runs())

    def test_lock(self):
        other = journal.RunDirectory(self.runs)
        other.lock('me')
        self.addCleanup(other.unlock)
        with self.assertRaisesRegex(exceptions.Refused, 'another run'):
            self.restart('--auto-approve')
        self.assertEqual([], self.cloud.sent)

    def test_failed_is_exit_code_3(self):
        self.cloud.faults['s1'] = 'boom'
        code, rows = self.restart('--auto-approve')
        self.assertEqual(3, code)
        self.assertEqual(['failed', 'untried'], [r['Result'] for r in rows])
        self.assertIn('the first one failed', self.err.getvalue())

    def test_left_alone_is_exit_code_0(self):
        self.cloud.log('s2', 'stop')
        code, rows = self.restart('--auto-approve')
        self.assertEqual(0, code)
        self.assertEqual(['done', 'left'], [r['Result'] for r in rows])

    def test_gate_refuses_or_skips(self):
        self.cloud.set(services=build.services('other'))
        with self.assertRaisesRegex(exceptions.Refused, 'nova-compute'):
            self.restart('--auto-approve', '--wait=10')
        code, rows = self.restart(
            '--auto-approve', '--wait=0', '--skip-not-ready'
        )
        self.assertEqual(3, code)
        self.assertEqual({'open'}, {r['Result'] for r in rows})
        self.assertEqual([], self.cloud.sent)

    def test_waits_for_the_apis_before_anything(self):
        def ask(*args):
            self.assertEqual(8, self.cloud.clock.slept)

        gone = fakes.then_raise(exceptions.Away('503', 'nova: it said 503'))
        self.cloud.next('check_up', gone, gone)
        code, _rows = self.restart(question=ask)
        self.assertEqual(0, code)
        self.assertIn('waiting for nova: it said 503', self.err.getvalue())
        for option in ('--auto-approve', '--dry-run'):
            self.cloud.sent.clear()
            self.cloud.next('check_up', *[gone] * 3)
            with self.assertRaisesRegex(exceptions.Refused, 'not ready after'):
                self.restart(option, '--wait=8')
            self.assertEqual([], self.cloud.sent)
        # nothing stays behind, the lock of the run neither
        self.assertEqual(0, self.restart('--auto-approve')[0])

    def test_map_in_which_nothing_ran(self):
        self.map = build.cloud_map(
            servers=[
                build.map_server(s, vm_state='stopped') for s in ('s1', 's2')
            ],
            attachments=self.map.attachments,
        )
        with self.assertRaisesRegex(exceptions.Refused, '--lost-at'):
            self.restart('--auto-approve')
        self.cloud.log('s1', 'stop', user=None)
        code, rows = self.restart(
            '--auto-approve', '--lost-at=2026-11-22T03:30:00Z'
        )
        self.assertEqual(0, code)
        self.assertEqual(['done', 'left'], [r['Result'] for r in rows])

    def test_stop_of_a_killed_run_is_resumed(self):
        self.cloud.change('s1', vm_state='error', power_state=facts.NOSTATE)

        def die(server_id):
            self.cloud.do_stop(server_id)
            raise KeyboardInterrupt

        self.cloud.next('stop', die)
        with self.assertRaises(KeyboardInterrupt):
            self.restart('--auto-approve')
        self.cloud.clock.sleep(10)
        self.assertEqual([('stop', 's1')], self.cloud.sent)
        code, rows = self.restart('--auto-approve')
        self.assertEqual(0, code, rows)
        self.assertEqual({'done'}, {r['Result'] for r in rows})
        self.assertEqual(
            [('stop', 's1'), ('start', 's1'), ('start', 's2')],
            self.cloud.sent,
        )
        self.assertIn('going on with run', self.err.getvalue())

    def test_options_reach_the_engine(self):
        with mock.patch('osc_drp.engine.restart.Restart') as made:
            made.return_value.propose.return_value = ()
            made.return_value.seen = build.seen()
            self.restart(
                *('--dry-run', '--wait=1', '--settle=2', '--parallel=3'),
                *('--per-host=4', '--skip-not-ready'),
                '--lost-at=2026-11-22T03:30:00Z',
            )
        settings = made.call_args.args[3]
        self.assertEqual(
            (1.0, 2.0, '2026-11-22T03:30:00Z', True, 3, 4),
            (
                settings.wait,
                settings.settle,
                settings.lost_at,
                settings.skip_not_ready,
                settings.limits.parallel,
                settings.limits.per_host,
            ),
        )
