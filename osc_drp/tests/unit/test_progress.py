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

"""How far a run is: on a terminal, in a log, in a script."""

import io
import threading
import time
import unittest
from unittest import mock

from osc_drp import progress
from osc_drp.tests.unit.engine import fakes


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class TestLines(unittest.TestCase):
    """Where no terminal is."""

    def setUp(self):
        self.stream = io.StringIO()
        self.clock = fakes.Clock()
        self.progress = progress.Progress(self.stream, self.clock)

    def lines(self):
        return self.stream.getvalue().splitlines()

    def test_a_line_at_intervals_and_at_the_end(self):
        with self.progress:
            step = self.progress.step('starting servers', 30)
            for number in range(30):
                self.clock.sleep(1)
                step.advance(failed=number == 2)
        self.assertEqual(
            [
                'starting servers: 10 of 30, 1 failed (0:00:10)',
                'starting servers: 20 of 30, 1 failed (0:00:20)',
                'starting servers: 30 of 30, 1 failed (0:00:30)',
            ],
            self.lines(),
        )

    def test_says_how_far_it_came(self):
        with self.assertRaises(KeyboardInterrupt), self.progress:
            step = self.progress.step('starting servers', 30)
            step.advance()
            self.assertEqual([], self.lines())
            raise KeyboardInterrupt
        self.assertEqual(
            ['starting servers: 1 of 30, 0 failed (0:00:00)'], self.lines()
        )

    def test_nothing_done_is_no_line(self):
        with self.progress:
            self.progress.step('starting servers', 0)
        self.assertEqual([], self.lines())

    def test_counts_in_all_threads(self):
        with self.progress:
            step = self.progress.step('x', 2000)
            lanes = [
                threading.Thread(
                    target=lambda: [step.advance(True) for _n in range(500)]
                )
                for _m in range(4)
            ]
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
        self.assertEqual(
            ['x: 2000 of 2000, 2000 failed (0:00:00)'], self.lines()
        )

    def test_says_lines(self):
        self.progress.say('before')
        with self.progress:
            self.progress.step('x', 1)
            self.progress.say('[red]web1[/red]: failed')
        self.assertEqual(['before', '[red]web1[/red]: failed'], self.lines())

    def test_quiet_counts_nothing_but_speaks(self):
        for stream in self.stream, Terminal():
            quiet = progress.Progress(stream, self.clock, quiet=True)
            with quiet:
                quiet.step('x', 1).advance(failed=True)
                quiet.say('waiting for nova')
            self.assertEqual('waiting for nova\n', stream.getvalue())


class TestBars(unittest.TestCase):
    """On a terminal."""

    def setUp(self):
        self.stream = Terminal()
        self.environ = {'TERM': 'xterm', 'COLUMNS': '100'}

    def show(self, say=()):
        """Draw two steps; gives what the terminal got."""
        with (
            mock.patch.dict('os.environ', self.environ, clear=True),
            mock.patch('sys.stdout', io.StringIO()) as out,
            progress.Progress(self.stream, fakes.Clock()) as shown,
        ):
            starts = shown.step('starting [servers]', 3)
            attaches = shown.step('attaching volumes', 2)
            starts.advance()
            starts.advance(failed=True)
            for line in say:
                shown.say(line)
            attaches.advance()
        self.assertEqual('', out.getvalue())
        return self.stream.getvalue()

    def test_one_bar_a_step(self):
        drawn = self.show().rpartition('starting [servers]')[2]
        self.assertIn('2/3', drawn)
        self.assertIn('1 failed', drawn)
        self.assertIn('attaching volumes', drawn)
        self.assertIn('1/2', drawn)
        self.assertRegex(drawn, r'0:00:0\d')

    def test_lines_stay_above_as_they_are(self):
        long = '[red]' + 'x' * 200 + ' /dev/vdb 42'
        self.assertIn(long, self.show(say=[long]))

    def test_names_move_no_cursor(self):
        self.assertIn('web1 [2J: failed', self.show(['web1\x1b[2J: failed']))

    def test_no_color(self):
        red = '\x1b[31m'
        self.assertIn(red, self.show())
        self.environ['NO_COLOR'] = '1'
        self.stream = Terminal()
        self.assertNotIn(red, self.show())

    def test_the_cursor_comes_back(self):
        drawn = self.show()
        self.assertGreater(drawn.rfind('\x1b[?25h'), drawn.rfind('\x1b[?25l'))
        self.assertIn('\x1b[?25l', drawn)

    def test_a_dumb_terminal_gets_lines(self):
        self.environ['TERM'] = 'dumb'
        self.assertEqual(
            [
                'starting [servers]: 2 of 3, 1 failed (0:00:00)',
                'attaching volumes: 1 of 2, 0 failed (0:00:00)',
            ],
            self.show().splitlines(),
        )


class Gone(Terminal):
    """A terminal that was closed."""

    def write(self, _text=''):
        raise OSError(5, 'Input/output error')

    flush = write


class TestLost(unittest.TestCase):
    """On a terminal that was closed: nothing is shown, nothing fails."""

    def test_bars(self):
        with (
            mock.patch.dict('os.environ', {'TERM': 'xterm'}),
            mock.patch('threading.excepthook') as died,
            progress.Progress(Gone()) as shown,
        ):
            step = shown.step('starting servers', 2)
            step.advance()
            shown.say('web1: failed')
            # longer than between two drawings
            time.sleep(0.6)
            step.advance(failed=True)
        died.assert_not_called()

    def test_a_reader(self):
        class Broken(io.StringIO):
            def write(self, text):
                raise BrokenPipeError(32, 'Broken pipe')

        with progress.Progress(Broken()) as shown:
            shown.step('starting servers', 1).advance()
            shown.say('web1: failed')
