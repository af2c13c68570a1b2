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

"""What the operator reads, and the exit code."""

import io
import os
import threading
import unittest
from unittest import mock

from osc_drp import report
from osc_drp.engine import apply
from osc_drp.engine import plan
from osc_drp.tests.unit.engine import build

Do = plan.Do


def item(do, volume='v1', server='s1', device='/dev/vdb'):
    """Make a line of a plan."""
    wanted = None
    if volume:
        wanted = build.attachment(server, volume, device=device)
    return plan.Item(server, volume, do, '', f'why {do}', attachment=wanted)


def outcome(status, volume='v1', server='s1', warning=''):
    """Make what became of it."""
    return apply.Outcome(server, volume, status, f'is {status}', warning)


class Full(io.StringIO):
    """A file on a full disk, which gets room again."""

    full = True

    def write(self, text):
        if self.full:
            raise OSError(28, 'No space left on device')
        return super().write(text)


class TestLost(unittest.TestCase):
    """Standard error is gone, and the work goes on."""

    def test_the_reader_has_gone(self):
        end, ours = os.pipe()
        os.close(end)
        stream = open(ours, 'w', encoding='utf-8')
        reporter = report.Reporter(stream)
        reporter.say('a')
        reporter.say('b')
        # nothing is left in it that fails later
        stream.close()

    def test_a_full_disk(self):
        stream = Full()
        reporter = report.Reporter(stream)
        reporter.say('a')
        stream.full = False
        reporter.say('b')
        self.assertEqual('b\n', stream.getvalue())

    def test_nothing_else_is_hidden(self):
        with self.assertRaises(TypeError):
            report.Reporter(io.StringIO()).say(None)


class TestExitCode(unittest.TestCase):
    """0 or 3."""

    def test_by_item(self):
        for do, code, dry in (
            (Do.NOTHING, 0, 0),
            (Do.LEAVE, 0, 0),
            (Do.FLAG, 3, 3),
            # a real run waited, and asked
            (Do.WAIT, 3, 0),
            (Do.PROVE, 3, 0),
            (Do.START, 0, 0),
            (Do.RESET, 0, 0),
        ):
            with self.subTest(do):
                self.assertEqual(code, report.exit_code([item(do)], []))
                self.assertEqual(dry, report.exit_code([item(do)], [], True))

    def test_by_outcome(self):
        for status, code in (
            (apply.DONE, 0),
            (apply.LEFT, 0),
            (apply.OPEN, 3),
            (apply.FAILED, 3),
            (apply.UNTRIED, 3),
        ):
            with self.subTest(status):
                found = report.exit_code([item(Do.RESET)], [outcome(status)])
                self.assertEqual(code, found)

    def test_an_outcome_tells_more_than_the_plan(self):
        items = [item(Do.WAIT)]
        self.assertEqual(0, report.exit_code(items, [outcome(apply.DONE)]))
        other = outcome(apply.DONE, 'v2')
        self.assertEqual(3, report.exit_code(items, [other]))

    def test_one_is_enough(self):
        items = [item(Do.RESET), item(Do.FLAG, 'v2')]
        self.assertEqual(3, report.exit_code(items, [outcome(apply.DONE)]))

    def test_nothing_at_all(self):
        self.assertEqual(0, report.exit_code([], []))

    def test_a_warning_is_well(self):
        found = outcome(apply.DONE, warning='was /dev/vdb, is /dev/vdc')
        self.assertEqual(0, report.exit_code([item(Do.ATTACH)], [found]))


class TestRows(unittest.TestCase):
    """The tables."""

    def test_attachments(self):
        items = [item(Do.RESET), item(Do.FLAG, 'v2', device=None)]
        rows = report.attachment_rows(
            items, [outcome(apply.DONE, warning='but')], {'s1': 'web'}
        )
        self.assertEqual(
            [
                ('web', 's1', 'v2', '', 'open', 'why flag'),
                ('web', 's1', 'v1', '/dev/vdb', 'done', 'is done; but'),
            ],
            rows,
        )
        self.assertEqual(len(report.COLUMNS), len(rows[0]))

    def test_dry_run_says_would(self):
        (row,) = report.attachment_rows([item(Do.RESET)], [], {})
        self.assertEqual(('would reset', 'why reset'), row[4:])

    def test_what_is_not_acted_on(self):
        for do, word in (
            (Do.NOTHING, 'ok'),
            (Do.LEAVE, 'left'),
            (Do.FLAG, 'open'),
            (Do.WAIT, 'open'),
            (Do.PROVE, 'open'),
        ):
            (row,) = report.attachment_rows([item(do)], [], {})
            self.assertEqual(word, row[4])

    def test_by_server_name_and_device(self):
        items = [
            item(Do.RESET, 'v1', 's1', '/dev/vdaa'),
            item(Do.RESET, 'v2', 's1', '/dev/vdb'),
            item(Do.RESET, 'v3', 's2', '/dev/vdc'),
        ]
        rows = report.attachment_rows(items, [], {'s1': 'web', 's2': 'db'})
        self.assertEqual(['v3', 'v2', 'v1'], [r[2] for r in rows])

    def test_outcomes_belong_to_pairs(self):
        # a multiattach volume: two servers, two outcomes
        items = [item(Do.RESET, server='s1'), item(Do.RESET, server='s2')]
        rows = report.attachment_rows(
            items,
            [
                outcome(apply.FAILED, server='s2'),
                outcome(apply.DONE, server='s1'),
            ],
            {},
        )
        self.assertEqual(['done', 'failed'], [r[4] for r in rows])

    def test_servers(self):
        items = [item(Do.START, ''), item(Do.LEAVE, '', 's2')]
        rows = report.server_rows(
            items, [outcome(apply.DONE, '')], {'s1': 'web'}, {'s1': 'c1'}
        )
        self.assertEqual(
            [
                ('web', 's1', 'c1', 'done', 'is done'),
                ('', 's2', '', 'left', 'why leave'),
            ],
            rows,
        )
        self.assertEqual(len(report.SERVER_COLUMNS), len(rows[0]))

    def test_names_of_today_before_those_of_the_map(self):
        cloud_map = build.cloud_map(
            servers=[
                build.map_server('s1', name='old'),
                build.map_server('s2', name='gone'),
            ],
            attachments=[],
        )
        seen = build.seen([build.server('s1', name='new')])
        self.assertEqual(
            {'s1': 'new', 's2': 'gone'}, report.names(cloud_map, seen)
        )
        self.assertEqual('old', report.names(cloud_map, None)['s1'])


class TestReporter(unittest.TestCase):
    """Lines on stderr."""

    def test_say_is_seen_at_once(self):
        stream = mock.Mock()
        report.Reporter(stream).say('started')
        self.assertEqual(
            [mock.call.write('started\n'), mock.call.flush()],
            stream.mock_calls,
        )

    def test_names_move_no_cursor(self):
        stream = io.StringIO()
        report.Reporter(stream).say('\x1b[2Jweb1: started\nnext')
        self.assertEqual(' [2Jweb1: started\nnext\n', stream.getvalue())

    def test_lines_of_many_lanes_are_not_mixed(self):
        stream = io.StringIO()
        reporter = report.Reporter(stream)
        lanes = [
            threading.Thread(
                target=lambda n=n: [
                    reporter.say(str(n) * 50) for _m in range(50)
                ]
            )
            for n in range(4)
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        lines = stream.getvalue().splitlines()
        self.assertEqual(200, len(lines))
        self.assertEqual({1}, {len(set(line)) for line in lines})
        self.assertEqual({50}, {len(line) for line in lines})
