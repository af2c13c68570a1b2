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

"""`drp runs`: from the journals, and from nothing else."""

import contextlib
import io
import os
import pathlib
import tempfile
import types
import time
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.commands import runs
from osc_drp.engine import journal


def outcome(run, server='s1', status='done', what='started'):
    """Write what became of a server."""
    run.write('before', action='start', server=server, newest=None)
    run.write(
        'outcome', action='restart', server=server, status=status, what=what
    )


class RunsTest(unittest.TestCase):
    """In a run directory."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.runs = journal.RunDirectory(self.dir / 'runs')
        self.err = io.StringIO()

    def begin(self, command='servers restart', **more):
        (self.dir / 'runs').mkdir(exist_ok=True)
        run = self.runs.begin(command, {}, **more)
        self.addCleanup(run.close)
        return run

    def drp(self, cls, *options, run_dir='runs'):
        """Run a command; gives its rows."""
        app = mock.Mock(
            stderr=self.err, cloud=types.SimpleNamespace(name='lab')
        )
        app.client_manager = None
        command = cls(app, None, cmd_name='drp runs x')
        args = command.get_parser('x').parse_args(
            [f'--run-dir={self.dir / (run_dir or "")}'] * bool(run_dir)
            + [*options]
        )
        columns, rows = command.take_action(args)
        self.assertEqual(0, command.exit_code)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def listing(self, **more):
        return [
            (r['Run'], r['State'], r['Done'], r['Failed'], r['Open'])
            for r in self.drp(runs.ListRuns, **more)
        ]

    def show(self, *options):
        return self.drp(runs.ShowRuns, *options)


class TestList(RunsTest):
    """drp runs list."""

    def test_no_directory(self):
        with mock.patch.dict('os.environ', XDG_STATE_HOME=str(self.dir)):
            self.assertEqual([], self.listing(run_dir=None))
        self.assertEqual([], os.listdir(self.dir))

    def test_no_such_directory(self):
        for show in self.listing, lambda: self.show('latest'):
            with self.assertRaisesRegex(
                exceptions.DrpError, 'there is no run directory'
            ):
                show()
        self.assertFalse((self.dir / 'runs').exists())

    def test_the_directory_of_another_user(self):
        (self.dir / 'runs').mkdir()
        with (
            # root may read everything
            mock.patch('os.listdir', side_effect=PermissionError(13, 'no')),
            self.assertRaisesRegex(exceptions.DrpError, 'cannot read the run'),
        ):
            self.listing()

    def test_every_command(self):
        for name in (
            *('db reset', 'db repair', 'db undo', 'servers restart'),
            *('attachments restore', 'recover', 'of tomorrow'),
        ):
            self.begin(name).write('end')
        rows = self.drp(runs.ListRuns)
        self.assertEqual(
            ['db reset', 'db repair', 'db undo'],
            [r['Command'] for r in rows[:3]],
        )
        self.assertEqual(7, len(rows))

    def test_counts_and_states(self):
        first = self.begin()
        outcome(first)
        outcome(first, 's2', 'failed', 'boom')
        outcome(first, 's3', 'open', 'was stopped')
        outcome(first, 's4', 'left', 'was stopped')
        first.write('end')
        second = self.begin()
        second.write('before', action='start', server='s1', newest=None)
        self.assertEqual(
            [
                (first.id, 'finished', 2, 1, 1),
                (second.id, 'unfinished', 0, 0, 1),
            ],
            self.listing(),
        )

    def test_under_way_is_who_has_the_lock(self):
        killed = self.begin()
        # the next one comes later than the journal's clock can tell apart
        time.sleep(0.005)
        self.runs.lock('drp servers restart')
        self.addCleanup(self.runs.unlock)
        mine = self.begin()
        self.assertEqual(
            [(killed.id, 'unfinished'), (mine.id, 'under way')],
            [row[:2] for row in self.listing()],
        )

    def test_a_note_without_a_lock_is_of_a_killed_run(self):
        killed = self.begin()
        note = 'x, pid 1, since 2020-01-01T00:00:00.000+00:00\n'
        (self.dir / 'runs' / journal.LOCK).write_text(note)
        self.assertEqual([(killed.id, 'unfinished', 0, 0, 0)], self.listing())

    def test_takes_no_lock_and_writes_nothing(self):
        outcome(self.begin())
        self.runs.lock('drp servers restart')
        self.addCleanup(self.runs.unlock)
        before = {
            p: p.read_bytes() for p in self.dir.rglob('*') if p.is_file()
        }
        with mock.patch('fcntl.flock', side_effect=AssertionError):
            self.listing()
            self.show('latest')
        after = {p: p.read_bytes() for p in self.dir.rglob('*') if p.is_file()}
        self.assertEqual(before, after)

    def test_a_journal_that_is_empty_or_cut(self):
        (self.dir / 'runs' / '20261122T030000Z-x-0000').mkdir(parents=True)
        path = self.dir / 'runs' / '20261122T030000Z-x-0000' / journal.FILE
        path.write_bytes(b'')
        self.assertEqual(
            [('20261122T030000Z-x-0000', 'unfinished', 0, 0, 0)],
            self.listing(),
        )
        path.write_bytes(b'[]\n{"event": "begin", "comm')
        self.assertEqual(1, len(self.listing()))
        self.show('latest')


class TestShow(RunsTest):
    """drp runs show."""

    def setUp(self):
        super().setUp()
        self.run_ = self.begin(
            again=['openstack', 'drp', 'servers', 'restart', '/my map']
        )
        self.run_.write('names', servers={'s1': 'web1'})
        outcome(self.run_, status='failed', what='no host')
        self.run_.write('verified', objects=3)

    def test_rows(self):
        rows = self.show(self.run_.id)
        self.assertEqual(
            [
                ('web1', 's1', '', 'restart', 'failed', 'no host'),
                ('', '', '', 'verified', '', 'objects: 3'),
            ],
            [tuple(r.values())[2:] for r in rows],
        )

    def test_open_and_next(self):
        self.show(self.run_.id)
        self.assertIn('unfinished', self.err.getvalue())
        self.assertIn('open: web1: restart: no host\n', self.err.getvalue())
        self.assertIn(
            "next: openstack drp servers restart '/my map'\n",
            self.err.getvalue(),
        )

    def test_nothing_open_nothing_next(self):
        outcome(self.run_)
        self.run_.write('end')
        self.show(self.run_.id)
        self.assertNotIn('next:', self.err.getvalue())
        self.assertNotIn('open:', self.err.getvalue())

    def test_under_way(self):
        self.runs.lock('x')
        self.addCleanup(self.runs.unlock)
        run = self.begin()
        self.show('latest')
        self.assertIn(run.id, self.err.getvalue())
        self.assertIn('under way: x, pid', self.err.getvalue())
        self.assertNotIn('next:', self.err.getvalue())

    def test_names_of_a_run(self):
        newer = self.begin('db reset')
        for name, found in (
            ('latest', newer.id),
            (newer.id, newer.id),
            (self.run_.id[:-2], self.run_.id),
        ):
            self.err.truncate(0)
            self.show(name)
            self.assertIn(f'run {found}:', self.err.getvalue())

    def test_no_such_run(self):
        for name in 'nothing', '../runs', '':
            with self.subTest(name):
                newer = self.begin()
                with self.assertRaises(exceptions.DrpError) as caught:
                    self.show(name)
                self.assertEqual(1, caught.exception.exit_code)
                self.assertTrue(newer.path.exists())

    def test_ambiguous(self):
        self.begin()
        with self.assertRaisesRegex(exceptions.DrpError, 'any of 2 runs'):
            self.show('20')


class TestHtml(TestShow):
    """drp runs show --html."""

    def setUp(self):
        super().setUp()
        self.file = self.dir / 'run.html'

    def show(self, *options):
        with contextlib.suppress(FileNotFoundError):
            self.file.unlink()
        return super().show(*options, f'--html={self.file}')

    def test_file(self):
        self.show('latest')
        self.assertIn('no host', self.file.read_text(encoding='utf-8'))
        self.assertEqual(0o600, self.file.stat().st_mode & 0o777)
        self.assertEqual({'runs', 'run.html'}, set(os.listdir(self.dir)))

    def test_never_overwrites(self):
        self.file.write_text('mine')
        for target in self.file, self.dir:
            with self.assertRaisesRegex(
                exceptions.DrpError, 'never overwritten'
            ):
                super().show('latest', f'--html={target}')
        self.assertEqual('mine', self.file.read_text())

    def test_cannot_be_written(self):
        with self.assertRaisesRegex(exceptions.DrpError, 'cannot be written'):
            super().show('latest', f'--html={self.dir / "no" / "file"}')

    def test_a_full_disk_leaves_no_file(self):
        with (
            mock.patch('os.fsync', side_effect=OSError(28, 'No space left')),
            self.assertRaisesRegex(exceptions.DrpError, 'No space left'),
        ):
            self.show('latest')
        self.assertEqual({'runs'}, set(os.listdir(self.dir)))

    def test_a_name_that_is_no_unicode(self):
        self.run_.write('names', servers={'s1': 'a\ud800b'})
        self.show('latest')
        self.assertIn('a?b', self.file.read_text(encoding='utf-8'))
