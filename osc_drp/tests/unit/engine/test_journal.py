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

"""The journal: on the disk before it counts, readable after any crash."""

import errno
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.engine import journal
from osc_drp.engine import locks
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

SUBJECT = {'map': 'f' * 64, 'selection': {'servers': ['s1']}}
HOLD = """
import pathlib, sys, time
from osc_drp.engine import journal
runs = journal.RunDirectory(pathlib.Path(sys.argv[1]))
runs.lock('db reset by ann on control1')
print('held', flush=True)
time.sleep(600)
"""


class TestCase(unittest.TestCase):
    """Has a run directory."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name) / 'state' / 'lab'
        self.path.mkdir(parents=True)
        self.runs = journal.RunDirectory(self.path)
        self._closed = set()

    def close(self, run):
        """Close a journal once."""
        if run not in self._closed:
            self._closed.add(run)
            run.close()

    def begin(self, command='db reset', subject=SUBJECT):
        """Begin a run."""
        run = self.runs.begin(command, subject)
        self.addCleanup(self.close, run)
        return run


class TestRun(TestCase):
    """One journal."""

    def lines(self, run):
        return (run.path / journal.FILE).read_bytes()

    def test_no_name_of_a_run(self):
        with self.assertRaisesRegex(exceptions.DrpError, "no run 'xxx"):
            self.runs.find('x' * 10000)

    def test_cannot_be_read(self):
        run = self.begin()
        # a disk that the loss has damaged
        with (
            mock.patch(
                'pathlib.Path.read_bytes', side_effect=OSError(5, 'IO')
            ),
            self.assertRaisesRegex(exceptions.DrpError, 'journal.jsonl: IO'),
        ):
            run.entries()

    def test_what_has_no_event_is_left_out(self):
        run = self.begin()
        for line in (
            b'{"at": "x"}',
            b'[' * 100000,
            b'7' * 5000,
            b'{"event": 1}',
        ):
            with open(run.path / journal.FILE, 'ab') as stream:
                stream.write(line + b'\n')
        self.assertEqual(['begin'], [e['event'] for e in run.entries()])

    def test_an_entry_that_lacks_something_is_an_error(self):
        for lines, ask in (
            ([{'event': 'old', 'action': 'reset'}], self.runs.resets),
            ([{'event': 'old', 'free': False}], self.runs.shielded),
            ([{'event': 'old', 'cinder_only': True}], self.runs.kept),
            (
                [{'event': 'before', 'action': 'reboot'}],
                self.runs.unanswered_reboots,
            ),
            (
                [{'event': 'old', 'rule': 'R3a', 'server': []}],
                self.runs.wished_off,
            ),
            ([{'event': 'before'}], self.runs.stops),
            ([{'event': 'lock'}], self.runs.locks),
            ([{'event': 'outcome', 'action': 'attach'}], self.runs.failing),
            (
                [{'event': 'begin', 'subject': None}],
                lambda: self.runs.undone('x'),
            ),
        ):
            with self.subTest(lines):
                run = self.begin()
                text = ''.join(json.dumps(line) + '\n' for line in lines)
                (run.path / journal.FILE).write_text(text)
                with self.assertRaisesRegex(
                    exceptions.DrpError, f'{run.id}. is damaged'
                ):
                    ask()
                (run.path / journal.FILE).unlink()

    def test_idle_by_no_time(self):
        for at in {}, {'at': 'noon'}, {'at': None}:
            self.assertGreater(
                journal.idle([{'event': 'begin', **at}]).days, 1000
            )

    def test_entries_come_back_in_order(self):
        run = self.begin()
        run.write('old', rows={'b': 1, 'a': None}, text='zwölf\n')
        run.write('end')
        events = [e['event'] for e in run.entries()]
        self.assertEqual(['begin', 'old', 'end'], events)
        old = run.entries()[1]
        self.assertEqual({'b': 1, 'a': None}, old['rows'])
        self.assertEqual('zwölf\n', old['text'])
        self.assertTrue(old['at'].endswith('+00:00'))
        self.assertEqual(3, self.lines(run).count(b'\n'))

    def test_on_the_disk_before_write_returns(self):
        run = self.begin()
        calls = []
        write, fsync = os.write, os.fsync

        def note_write(fd, data):
            calls.append(('write', fd, json.loads(data)['event']))
            return write(fd, data)

        def note_fsync(fd):
            calls.append(('fsync', fd))
            return fsync(fd)

        with (
            mock.patch.object(os, 'write', note_write),
            mock.patch.object(os, 'fsync', note_fsync),
        ):
            run.write('one')
            calls.append('returned')
            run.write('two')
        fd = calls[0][1]
        self.assertEqual(
            [
                ('write', fd, 'one'),
                ('fsync', fd),
                'returned',
                ('write', fd, 'two'),
                ('fsync', fd),
            ],
            calls,
        )

    def test_names_are_on_the_disk_before_begin_returns(self):
        synced = []
        fsync = os.fsync

        def note(fd):
            synced.append(os.readlink(f'/proc/self/fd/{fd}'))
            return fsync(fd)

        with mock.patch.object(os, 'fsync', note):
            run = self.begin()
        real = run.path.resolve()
        self.assertIn(str(real), synced)
        self.assertIn(str(real.parent), synced)
        self.assertIn(str(real / journal.FILE), synced)

    def test_only_the_owner_may_read(self):
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        runs = journal.RunDirectory(self.path / 'new')
        runs.lock('me')
        self.addCleanup(runs.unlock)
        run = runs.begin('db reset', SUBJECT)
        self.addCleanup(run.close)
        for path, mode in (
            (runs.path, 0o700),
            (runs.path / journal.LOCK, 0o600),
            (run.path, 0o700),
            (run.path / journal.FILE, 0o600),
        ):
            self.assertEqual(mode, stat.S_IMODE(path.stat().st_mode), path)

    def test_many_threads(self):
        """Each entry on a line of its own, and no other line."""
        run = self.begin()
        together = threading.Barrier(8)

        def work(number):
            together.wait()
            for n in range(20):
                run.write('old', thread=number, n=n)

        threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = (run.path / journal.FILE).read_text().splitlines()
        found = [json.loads(line) for line in lines[1:]]
        self.assertEqual(
            {(t, n) for t in range(8) for n in range(20)},
            {(e['thread'], e['n']) for e in found},
        )
        self.assertEqual(160, len(found))

    def test_torn_last_line(self):
        run = self.begin()
        run.write('old', n=1)
        self.close(run)
        file = run.path / journal.FILE
        whole = file.read_bytes()
        for cut in range(1, len(whole.splitlines()[-1])):
            file.write_bytes(whole[: -cut - 1])
            again = journal.Run(run.path)
            again.write('resume')
            again.close()
            events = [e['event'] for e in again.entries()]
            self.assertEqual(['begin', 'resume'], events)
        file.write_bytes(whole[:-1])  # all but its end
        again = journal.Run(run.path)
        again.write('resume')
        again.close()
        events = [e['event'] for e in again.entries()]
        self.assertEqual(['begin', 'old', 'resume'], events)

    def test_what_is_no_entry_is_left_out(self):
        run = self.begin()
        with (run.path / journal.FILE).open('ab') as file:
            file.write(b'\0\0\0\n[1]\n7\n\xff\n')
        run.write('end')
        self.assertEqual(2, len(run.entries()))

    def test_disk_full(self):
        run = self.begin()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name in 'write', 'fsync':
            with mock.patch.object(os, name, side_effect=full):
                with self.assertRaisesRegex(
                    exceptions.DrpError, 'cannot write .*No space left'
                ):
                    run.write('old')

    def test_disk_full_in_the_middle_of_a_line(self):
        run = self.begin()
        write = os.write
        with mock.patch.object(
            os, 'write', lambda fd, data: write(fd, data[:9])
        ):
            with self.assertRaisesRegex(exceptions.DrpError, 'full'):
                run.write('torn')
        # what comes when there is room again is not lost with it
        run.write('whole')
        run.write('end')
        events = [e['event'] for e in run.entries()]
        self.assertEqual(['begin', 'whole', 'end'], events)

    def test_disk_full_at_the_beginning(self):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with mock.patch.object(pathlib.Path, 'mkdir', side_effect=full):
            with self.assertRaisesRegex(exceptions.DrpError, 'No space left'):
                self.begin()

    def test_no_file_is_no_entries(self):
        self.assertEqual([], journal.read(self.path / 'nothing'))


class TestLock(TestCase):
    """One run at a time."""

    def hold(self):
        child = subprocess.Popen(
            [sys.executable, '-c', HOLD, str(self.path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.assertEqual('held\n', child.stdout.readline())
        return child

    def test_another_process_is_named(self):
        child = self.hold()
        with self.assertRaises(exceptions.Refused) as caught:
            self.runs.lock('me')
        self.assertIn('db reset by ann on control1', str(caught.exception))
        self.assertIn(f'pid {child.pid}', str(caught.exception))
        self.assertEqual(4, caught.exception.exit_code)

    def test_of_a_killed_owner_it_is_free(self):
        child = self.hold()
        child.send_signal(signal.SIGKILL)
        child.wait()
        self.runs.lock('me')
        note = (self.path / journal.LOCK).read_text()
        self.assertTrue(note.startswith('me, pid '))
        self.assertNotIn('ann', note)
        self.runs.unlock()

    def test_twice_in_one_process(self):
        self.runs.lock('me')
        other = journal.RunDirectory(self.path)
        with self.assertRaisesRegex(exceptions.Refused, 'me, pid'):
            other.lock('you')
        self.runs.unlock()
        other.lock('you')
        other.unlock()
        other.unlock()  # harmless

    def test_directory_that_cannot_be_used(self):
        file = self.path / 'file'
        file.write_text('')
        with self.assertRaisesRegex(exceptions.DrpError, 'run directory'):
            journal.RunDirectory(file).lock('me')
        for name in 'flock', 'write':
            module = journal.fcntl if name == 'flock' else os
            failure = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            with mock.patch.object(module, name, side_effect=failure):
                with self.assertRaisesRegex(exceptions.DrpError, 'No locks'):
                    self.runs.lock('me')
        self.runs.lock('me')
        self.runs.unlock()


class TestRunDirectory(TestCase):
    """What earlier runs tell."""

    def unfinished(self, command='db reset', subject=SUBJECT):
        return self.runs.unfinished(command, subject)

    def test_no_directory(self):
        runs = journal.RunDirectory(self.path / 'nothing')
        self.assertEqual([], runs.runs())
        self.assertIsNone(runs.unfinished('db reset', SUBJECT))
        self.assertEqual({}, runs.resets())
        self.assertEqual({}, runs.stops())

    def test_what_cannot_be_read_is_not_empty(self):
        run = self.begin()
        denied = PermissionError(13, 'Permission denied', 'x')
        # root may read everything
        for name in 'listdir', 'open':
            with (
                self.subTest(name),
                mock.patch.object(os, name, side_effect=denied),
                self.assertRaisesRegex(
                    exceptions.DrpError, 'cannot read the run directory'
                ),
            ):
                self.runs.runs()
        run.path.rename(self.path / 'lost+found')
        with mock.patch.object(os, 'open', side_effect=denied):
            self.assertEqual([], self.runs.runs())

    def test_other_files_are_no_runs(self):
        (self.path / 'lock').touch()
        (self.path / 'empty').mkdir()
        self.assertEqual([], self.runs.runs())

    def test_the_name_of_a_run(self):
        run = self.begin('servers restart')
        self.assertRegex(run.id, r'^\d{8}T\d{6}Z-servers-restart-[0-9a-f]{4}$')
        self.assertEqual([run.path], self.runs.runs())

    def test_unfinished_goes_on_with_the_newest(self):
        self.begin()
        newest = self.begin()
        self.assertEqual(newest.path, self.unfinished())

    def test_order_is_that_of_beginning_whatever_the_clock_says(self):
        real = journal.datetime.datetime
        begun = []
        for text in (
            '2026-11-22T12:00:00Z',
            '2026-11-22T12:00:00Z',
            '1970-01-01T00:00:00Z',  # the battery of its clock is empty
            '2026-11-22T12:00:02Z',
            '2026-11-23T12:00:00Z',
        ):
            with mock.patch.object(journal.datetime, 'datetime') as fake:
                fake.now.return_value = real.fromisoformat(text)
                fake.strptime = real.strptime
                begun.append(self.begin().path)
        self.assertEqual(begun, self.runs.runs())
        self.assertEqual(begun[-1], self.unfinished())
        self.assertEqual('20261123T120000Z', begun[-1].name[:16])

    def test_a_directory_of_another_name_is_no_hindrance(self):
        odd = self.path / 'zzz'
        odd.mkdir()
        (odd / journal.FILE).write_text('')
        self.assertIn(self.begin().path, self.runs.runs())

    def test_a_finished_run_hides_older_ones(self):
        self.begin()
        self.begin().write('end')
        self.assertIsNone(self.unfinished())

    def test_only_of_the_same_command_and_subject(self):
        run = self.begin()
        self.begin('servers restart').write('end')
        self.begin(subject={**SUBJECT, 'map': 'e' * 64}).write('end')
        self.assertEqual(run.path, self.unfinished())
        self.assertIsNone(self.unfinished('servers start'))
        self.assertIsNone(self.unfinished(subject={}))

    def test_a_run_whose_first_line_is_torn_never_began(self):
        run = self.begin()
        torn = self.begin()
        (torn.path / journal.FILE).write_bytes(b'{"at": "2026')
        self.assertEqual(run.path, self.unfinished())

    def reset(self, run, volume, at, status=None):
        which = {'action': 'reset', 'server': 's1', 'volume': volume}
        run.write('old', cloud_time=at, rows={}, **which)
        if status:
            run.write('outcome', status=status, what='', **which)

    def test_wished_off(self):
        run = self.begin('db repair')
        for volume, rule, status in (
            ('v1', 'R3a', 'done'),
            ('v2', 'R3a', 'open'),
            ('v3', 'R5', 'done'),
            ('v4', 'R3a', 'done'),
            ('killed', 'R3a', None),
            ('failed', 'R3a', 'failed'),
        ):
            key = {'rule': rule, 'server': 's1', 'volume': volume}
            run.write('old', action='repair', rows=[], **key)
            if status:
                run.write(
                    'outcome', action='repair', status=status, what='', **key
                )
        # it was attached again, and a reset of ours took it off
        self.reset(self.begin(), 'v4', '6', 'done')
        self.assertEqual(
            {('s1', v) for v in ('v1', 'killed', 'failed')},
            self.runs.wished_off(),
        )

    def test_resets(self):
        run = self.begin()
        self.reset(run, 'done', '1', 'done')
        self.reset(run, 'killed', '2')
        self.reset(run, 'declined', '3', 'open')
        self.reset(run, 'failed', '4', 'failed')
        self.reset(run, 'twice', '5', 'done')
        self.reset(self.begin(), 'twice', '6', 'done')
        run.write('outcome', action='restart', server='s1', status='failed')
        run.write(
            'outcome',
            action='attach',
            server='s1',
            volume='done',
            status='failed',
        )
        self.assertEqual(
            {
                ('s1', 'done'): '1',
                ('s1', 'killed'): '2',
                ('s1', 'twice'): '6',
            },
            self.runs.resets(),
        )

    def test_stops(self):
        run = self.begin('servers restart')
        run.write('before', action='stop', server='s1', newest='r1')
        run.write('before', action='start', server='s1', newest='r2')
        run.write('before', action='stop', server='s2', newest=None)
        run = self.begin('servers restart')
        run.write('before', action='stop', server='s1', newest='r3')
        self.assertEqual({'s1': ['r1', 'r3'], 's2': [None]}, self.runs.stops())

    def test_failing(self):
        for told in (
            {'s1': 'failed', 's2': 'failed', 's3': 'done'},
            {'s1': 'done', 's3': 'open'},
        ):
            run = self.begin('servers restart')
            for server, status in told.items():
                run.write(
                    'outcome', action='restart', server=server, status=status
                )
        for volume, status in ('v1', 'failed'), ('v2', 'done'):
            run.write(
                'outcome',
                action='attach',
                server='s4',
                volume=volume,
                status=status,
            )
        self.assertEqual({'s2', 's4'}, self.runs.failing())

    def test_locks(self):
        first = self.begin('recover')
        first.write('lock', server='s1')
        first.write('lock', server='s2')
        first.write('unlocked', server='s1')
        second = self.begin('recover')
        second.write('lock', server='s3')
        self.assertEqual({'s2': first.id, 's3': second.id}, self.runs.locks())

    def test_a_journal_that_cannot_be_opened(self):
        run = self.begin('recover')
        (run.path / journal.FILE).unlink()
        (run.path / journal.FILE).mkdir()
        with self.assertRaisesRegex(
            exceptions.DrpError, f'cannot open the journal {run.path}'
        ):
            journal.Run(run.path)

    def test_a_release_is_of_the_lock_before_it(self):
        first = self.begin('recover')
        first.write('lock', server='s1')
        said = []
        released = locks.Locks(
            fakes.Cloud(build.seen([build.server()])),
            self.begin('servers restart'),
            said.append,
        )
        released.release('s1', first.id)
        self.assertEqual({}, self.runs.locks())
        # taken up again, and killed again
        first.write('lock', server='s1')
        self.assertEqual({'s1': first.id}, self.runs.locks())
        self.assertEqual([], said)

    def test_late_attaches(self):
        run = self.begin('recover')
        done = {'event': 'outcome', 'status': 'done'}
        for server in ('s1', 's2', 's3'):
            run.write('before', action='start', server=server)
        for server in ('s1', 's2', 's3'):
            run.write(**done, action='attach', server=server)
        # the power went again: it boots with its disks
        run.write('before', action='start', server='s2')
        run.write(**done, action='guest reboot', server='s3')
        run.write('outcome', status='failed', action='attach', server='s4')
        # killed before its outcome was written: it may be attached
        run.write('intent', action='attach', server='s5')
        self.assertEqual({'s1', 's5'}, journal.late_attaches(run.entries()))

    def test_boot_ids(self):
        run = self.begin('recover')
        for server in ('s1', 's2', 's3'):
            run.write(
                'before', action='guest reboot', server=server, boot_id='b'
            )
        # the power went again; a volume came later
        run.write('before', action='start', server='s2')
        run.write('intent', action='attach', server='s3')
        self.assertEqual({'s1': 'b'}, journal.boot_ids(run.entries()))

    def test_undone(self):
        run = self.begin('db undo', {'run': 'r1'})
        which = {'event': 'outcome', 'what': ''}
        for number, action, status in (
            (1, 'undo', 'done'),
            (2, 'undo', 'failed'),
            (3, 'reset', 'done'),
        ):
            run.write(**which, number=number, action=action, status=status)
        again = self.begin('db undo', {'run': 'r1'})
        again.write(**which, number=4, action='undo', status='done')
        other = self.begin('db undo', {'run': 'r2'})
        other.write(**which, number=5, action='undo', status='done')
        self.assertEqual({1, 4}, self.runs.undone('r1'))
        self.assertEqual(frozenset(), self.runs.undone('r9'))
