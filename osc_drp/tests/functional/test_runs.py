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

"""`drp runs` in the whole client, and what it says is to be typed next."""

import json
import shlex
from unittest import mock

from osc_drp.engine import units
from osc_drp.tests.functional import base
from osc_drp.tests.functional import test_db_reset
from osc_drp.tests.unit.db import fixture


class RunsTest(base.CommandTest):
    """A reset of two data disks that is killed at the second."""

    save = test_db_reset.ResetTest._save

    def setUp(self) -> None:
        super().setUp()
        self.web = self.cloud.server('web1')
        for device in 'bc':
            volume = self.cloud.volume(f'data-{device}')
            self.cloud.attach(self.web, volume, device=f'/dev/vd{device}')
        self.map = self.save()
        self.cloud.action(
            self.web, 'stop', user_id=None, start_time=fixture.now()
        )

    def runs(self, *args: str) -> list[dict[str, str]]:
        rc, out, self.err = self.run_shell('drp', 'runs', *args, '-f', 'json')
        self.assertEqual(0, rc, self.err)
        return json.loads(out)

    def kill(self) -> None:
        done = []

        def journalled(*args, **kwargs):
            if done:
                raise KeyboardInterrupt
            done.append(1)
            return units_journalled(*args, **kwargs)

        units_journalled = units.journalled
        with mock.patch.object(units, 'journalled', journalled):
            self.drp(
                *('db', 'reset', self.map, '--auto-approve'),
                *('--server', 'web1', '--limit', '50'),
                expected=130,
            )

    def test_the_next_command_is_exact(self) -> None:
        self.kill()
        (row,) = self.runs('list')
        self.assertEqual(
            ('db reset', 'unfinished', 1, 1),
            (row['Command'], row['State'], row['Done'], row['Open']),
        )
        page = self.dir / 'run.html'
        (shown,) = self.runs('show', row['Run'][:-2], '--html', str(page))
        self.assertEqual(
            ('web1', 'reset', 'done'),
            (shown['Server'], shown['Step'], shown['Result']),
        )
        self.assertIn('open: reset: 1 planned, and never begun', self.err)
        (line,) = [x for x in self.err.splitlines() if x.startswith('next: ')]
        words = shlex.split(line.removeprefix('next: '))
        self.assertEqual(['openstack', 'drp', 'db', 'reset'], words[:4])
        self.assertNotIn('--auto-approve', words)
        text = page.read_text(encoding='utf-8')
        self.assertIn('openstack drp db reset', text)
        self.assertIn('web1', text)
        rc, _out, err = self.run_shell(*words[1:], '--auto-approve')
        self.assertEqual(0, rc, err)
        self.assertIn(f'going on with run {row["Run"]}', err)
        (row,) = self.runs('list')
        self.assertEqual(
            ('finished', 2, 0, 0),
            (row['State'], row['Done'], row['Failed'], row['Open']),
        )
        self.runs('show', 'latest')
        self.assertNotIn('next:', self.err)

    def test_progress_spoils_no_json(self) -> None:
        told = self.drp('db', 'reset', self.map, '--auto-approve')
        self.assertEqual(['done', 'done'], [r['Result'] for r in told])
        self.assertIn('changing records: 2 of 2, 0 failed', self.err)

    def test_quiet(self) -> None:
        rc, out, err = self.run_shell(
            *('--quiet', 'drp', 'db', 'reset', self.map, '--auto-approve'),
            *(*self.configs(), '-f', 'json'),
        )
        self.assertEqual(0, rc, err)
        self.assertEqual(2, len(json.loads(out)))
        self.assertNotIn('changing records', err)

    def test_no_run_no_directory(self) -> None:
        self.assertEqual([], self.runs('list'))
        rc, _out, err = self.run_shell('drp', 'runs', 'show', 'latest')
        self.assertEqual(1, rc)
        self.assertIn("no run 'latest' in", err)
        self.assertFalse((self.dir / 'osc-drp').exists())
