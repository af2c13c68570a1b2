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

"""How far a run is: bars on a terminal, now and then a line elsewhere.

On stderr alone: what is on stdout is for programs.
"""

import datetime
import os
import threading
import types
import typing as ty

from rich import console as rich_console
from rich import progress as rich_progress

from osc_drp import report
from osc_drp.engine import ports
from osc_drp.i18n import _
from osc_drp import text


class Progress(report.Reporter):
    """Says lines, and counts; a context manager, around the acting.

    Nothing may be asked on the terminal inside: the bars are drawn there.
    """

    #: Seconds between two lines of a step where there is no terminal.
    INTERVAL = 10.0

    def __init__(
        self,
        stream: ty.TextIO,
        clock: ports.Clock | None = None,
        quiet: bool = False,
    ) -> None:
        """Prepare; shows nothing before the first step.

        :param quiet: count nothing (lines are said all the same: they tell
            what is waited for, and what went wrong)
        """
        super().__init__(stream)
        self._clock = clock or ports.RealClock()
        self._quiet = quiet
        self._steps: list[_Lines] = []
        self._bars: rich_progress.Progress | None = None
        if not quiet and _is_terminal(stream):
            self._bars = _bars(self._stream)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()
        for step in self._steps:
            step.end()

    def say(self, message: str) -> None:
        """Print a line at once, above the bars."""
        if self._bars and self._bars.live.is_started:
            self._bars.console.print(
                text.plain(message),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        else:
            super().say(message)

    def step(self, name: str, total: int) -> ports.Step:
        """Begin to count; several steps may be under way at once."""
        if self._bars:
            self._bars.start()
            return _Bar(self._bars, name, total)
        if self._quiet:
            return ports.NoStep()
        step = _Lines(self, self._clock, name, total)
        self._steps.append(step)
        return step


class _Bar:
    """A step on a terminal."""

    def __init__(
        self, bars: rich_progress.Progress, name: str, total: int
    ) -> None:
        self._bars = bars
        self._lock = threading.Lock()
        self._failed = 0
        self._task = bars.add_task(name, total=total, failed='')

    def advance(self, failed: bool = False) -> None:
        with self._lock:
            self._failed += failed
            told = _('%d failed') % self._failed if self._failed else ''
            self._bars.update(self._task, advance=1, failed=told)


class _Lines:
    """A step where no terminal is: seldom a line, and one at its end."""

    def __init__(
        self,
        progress: Progress,
        clock: ports.Clock,
        name: str,
        total: int,
    ) -> None:
        self._progress = progress
        self._clock = clock
        self._name = name
        self._total = total
        self._lock = threading.Lock()
        self._done = 0
        self._failed = 0
        #: What was counted when the last line was said.
        self._told = 0
        self._began = self._last = clock.monotonic()

    def advance(self, failed: bool = False) -> None:
        with self._lock:
            self._done += 1
            self._failed += failed
            now = self._clock.monotonic()
            if (
                self._done == self._total
                or now - self._last >= self._progress.INTERVAL
            ):
                self._tell(now)

    def end(self) -> None:
        """Say how far it came."""
        with self._lock:
            if self._told < self._done:
                self._tell(self._clock.monotonic())

    def _tell(self, now: float) -> None:
        self._last = now
        self._told = self._done
        self._progress.say(
            _('%(name)s: %(done)d of %(total)d, %(failed)d failed (%(time)s)')
            % {
                'name': self._name,
                'done': self._done,
                'total': self._total,
                'failed': self._failed,
                'time': datetime.timedelta(seconds=int(now - self._began)),
            }
        )


def _is_terminal(stream: ty.TextIO) -> bool:
    """Whether bars can be drawn there."""
    return stream.isatty() and os.environ.get('TERM') not in (
        'dumb',
        'unknown',
    )


def _bars(stream: ty.TextIO) -> rich_progress.Progress:
    # rich itself keeps to NO_COLOR
    return rich_progress.Progress(
        rich_progress.TextColumn('{task.description}', markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(
            '{task.fields[failed]}', style='red', markup=False
        ),
        rich_progress.TimeElapsedColumn(),
        console=rich_console.Console(file=stream, force_terminal=True),
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    )
