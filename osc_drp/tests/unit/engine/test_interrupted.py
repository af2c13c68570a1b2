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

"""Recoveries that are killed anywhere, and taken up again.

At every journal entry, API call, SQL statement and commit, before and after
its effect; once and twice; the cloud as it was left, or changed meanwhile;
and with errors, or Ctrl-C, instead of kills. A normal run tries a fixed
sample of some hundred cases. OSC_DRP_TEST_ALL=1 kills and interrupts at every
point once, and tries some thousand of the combinations.
"""

import collections
import functools
import os
import signal
import sys
import threading
import time
import typing as ty
import unittest

from osc_drp import exceptions
from osc_drp.db import engines
from osc_drp.engine import apply
from osc_drp.tests.simulated import disasters
from osc_drp.tests.simulated import process
from osc_drp.tests.simulated import recovery

ALL = bool(os.environ.get('OSC_DRP_TEST_ALL'))

#: One of each kind, for what is tried often.
FEW = ('web1', 'bfv1', 'cl1', 'cl2', 'app1', 'off1', 'idle1')

Make: ty.TypeAlias = ty.Callable[[], disasters.Made]

SUBJECTS: dict[str, tuple[Make, recovery.Subject]] = {
    'recover': (disasters.lost, recovery.in_one(classic=False)),
    'recover broken': (disasters.broken, recovery.in_one(classic=False)),
    'recover --classic': (disasters.lost, recovery.in_one(classic=True)),
    'commands': (disasters.broken, recovery.commands(classic=False)),
    'commands classic': (disasters.lost, recovery.commands(classic=True)),
    'commands cinder-only': (
        disasters.lost,
        recovery.commands(classic=True, only_cinder=True),
    ),
}
SMALL: dict[str, tuple[Make, recovery.Subject]] = {
    name: (functools.partial(make, *FEW), subject)
    for name, (make, subject) in SUBJECTS.items()
}


class Ended(ty.NamedTuple):
    """A case at its end."""

    case: recovery.Case
    #: What is wrong with it, whatever was changed.
    wrong: list[str]
    servers: set[str]
    volumes: set[str]
    #: The change was made: not refused in the state that things were in.
    changed: bool


def run_case(
    make: Make,
    subject: recovery.Subject,
    stops: tuple[int, ...] = (),
    change: disasters.Change = disasters.nothing,
    limits: apply.Limits = recovery.ALONE,
    error: recovery.Error = None,
) -> Ended:
    """Run one case to its end.

    :param stops: at which point each of the first processes ends
    :param change: what happens after the first of them
    :param error: what happens at the points, instead of death
    """
    world, cloud_map = make()
    touched: disasters.Changed = set(), set()
    changed = True
    wrong = []
    with recovery.scratch() as directory:
        case = recovery.Case(world, cloud_map, directory)
        case.limits = limits
        for number, stop in enumerate((*stops, None)):
            if case.go(subject, stop, error):
                break
            if stop and error is _ctrl_c:
                # what was under way is finished, and nothing is held on to
                wrong += case.our_locks()
                if not case.interrupted:
                    wrong.append('it ended otherwise than by Ctrl-C')
            world.sleep(7)
            if number == 0:
                try:
                    touched = change(world)
                except (exceptions.ApiError, StopIteration):
                    changed = False
                # an operator looks at all servers again
                case.ended &= {'db reset', 'db repair'}
        # so that whatever is on its way arrives
        world.sleep(60)
        wrong += recovery.check_journals(case, error is _disk_full)
    if not case.finished:
        wrong.append(f'it did not come to its end: {case.error}')
    if changed and stops:
        wrong += filter(None, [disasters.respected(world, change)])
    return Ended(case, wrong, *touched, changed)


@functools.cache
def undisturbed(
    make: Make, subject: recovery.Subject
) -> tuple[recovery.End, int]:
    """Give the end of the recovery that nothing stops, and its points."""
    ended = run_case(make, subject)
    assert not ended.wrong, ended.wrong
    assert not ended.case.not_well(), ended.case.not_well()
    return recovery.end_of(ended.case), ended.case.process.points


class TestInterrupted(unittest.TestCase):
    """The same end, whatever happened."""

    def setUp(self) -> None:
        self.tried: collections.Counter[str] = collections.Counter()

    def tearDown(self) -> None:
        told = ', '.join(f'{n} {name}' for name, n in self.tried.items())
        print(f'{self.id()}: {told}', file=sys.stderr)

    def sample(
        self, cases: ty.Iterable[ty.Any], one_in: int, thorough: int = 1
    ) -> ty.Any:
        """Give some of the cases, always the same.

        :param one_in: in a normal run
        :param thorough: the same with OSC_DRP_TEST_ALL
        """
        share = thorough if ALL else one_in
        for number, one in enumerate(cases):
            if number % share == share // 2:
                yield one

    def check(
        self,
        name: str,
        made: tuple[Make, recovery.Subject],
        *args: ty.Any,
        **kwargs: ty.Any,
    ) -> Ended:
        """Run a case, and compare its end with the undisturbed one."""
        wanted, _points = undisturbed(*made)
        what = f'{name} {args} {kwargs}'
        try:
            ended = run_case(*made, *args, **kwargs)
        except Exception as error:
            raise AssertionError(what) from error
        left = (ended.servers, ended.volumes)
        found = recovery.end_of(ended.case)
        wrong = ended.wrong + recovery.difference(
            wanted.without(*left), found.without(*left)
        )
        if not any(left):
            wrong += ended.case.not_well()
        elif not (
            kwargs.get('change') is disasters.admin_locks
            or found == wanted
            or ended.case.lists(*left)
        ):
            wrong += recovery.difference(wanted, found)
            wrong.append('and nothing of that was told')
        self.assertEqual([], wrong, what)
        self.tried[name] += 1
        return ended

    def test_killed_once(self):
        for name, made in SUBJECTS.items():
            _end, points = undisturbed(*made)
            for stop in self.sample(range(1, points + 1), 67):
                self.check(name, made, (stop,))

    def test_killed_twice(self):
        for name, made in SMALL.items():
            _end, points = undisturbed(*made)
            for first in self.sample(range(1, points + 1, 3), 43, 2):
                ended = run_case(*made, (first,))
                again = ended.case.process.points
                for second in self.sample(range(1, again + 1, 7), 11, 13):
                    self.check(name, made, (first, second))

    def test_changed_meanwhile(self):
        for name, made in SMALL.items():
            _end, points = undisturbed(*made)
            for number, change in enumerate(disasters.CHANGES):
                stops = range(1 + number % 3, points + 1, 3)
                for stop in self.sample(stops, 53, 2):
                    ended = self.check(name, made, (stop,), change=change)
                    if not ended.changed:
                        self.tried['refused'] += 1

    def test_killed_side_by_side(self):
        for name, made in SMALL.items():
            _end, points = undisturbed(*made)
            for stop in self.sample(range(1, points + 1, 2), 41, 2):
                limits = apply.Limits(parallel=4, per_host=3)
                self.check(name, made, (stop,), limits=limits)

    def test_errors(self):
        """A 500, a 503, a refusal, a lost answer or connection, once."""
        for name, made in SMALL.items():
            _end, points = undisturbed(*made)
            for stop in self.sample(range(1, points + 1), 73, 7):
                for error in ERRORS:
                    self.check(name, made, (stop,), error=error)

    def test_ctrl_c(self):
        """SIGTERM and a closed terminal are the same (engine/session.py)."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        for name, made in SUBJECTS.items():
            _end, points = undisturbed(*made)
            for stop in self.sample(range(1, points + 1), 79):
                self.check(name, made, (stop,), error=_ctrl_c)

    def test_ctrl_c_side_by_side(self):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        for name, made in SMALL.items():
            _end, points = undisturbed(*made)
            for stop in self.sample(range(1, points + 1, 2), 41, 2):
                limits = apply.Limits(parallel=4, per_host=3)
                self.check(name, made, (stop,), limits=limits, error=_ctrl_c)

    def test_a_server_that_stays_locked_is_told(self):
        """Not as done; the next run unlocks it."""

        def stays_locked(what: str) -> Exception | None:
            if what == 'unlock before':
                return exceptions.ApiError('nova is away')
            return None

        for name in ('recover', 'recover --classic', 'commands cinder-only'):
            make, subject = SMALL[name]
            with recovery.scratch() as directory:
                case = recovery.Case(*make(), directory)
                stop = process.EVERYWHERE
                self.assertFalse(case.go(subject, stop, stays_locked))
                locked = [s for s in case.world.reasons.values() if s]
                self.assertNotEqual([], locked)
                told = [w for w in case.not_well() if 'still locked' in w]
                self.assertGreaterEqual(len(told), len(locked))
                self.assertTrue(case.go(subject), case.not_well())
                case.world.sleep(60)
                self.assertEqual([], recovery.check_journals(case, False))
            self.assertEqual(
                [],
                recovery.difference(
                    undisturbed(make, subject)[0], recovery.end_of(case)
                ),
            )


def _ctrl_c(what: str) -> BaseException | None:
    """Python interrupts its main thread, whatever the others are at."""
    main = threading.main_thread()
    if threading.current_thread() is main:
        return KeyboardInterrupt()
    assert main.ident is not None
    signal.pthread_kill(main.ident, signal.SIGINT)
    # so that it arrives before this thread goes on
    time.sleep(0.01)
    return None


def _unanswered(what: str) -> Exception | None:
    """The request was done or not, and nobody says so."""
    if what.startswith(('start', 'stop', 'attach', 'lock', 'unlock')):
        return exceptions.Unanswered(f'no answer to {what}')
    return None


def _refused(what: str) -> Exception | None:
    if what.endswith('before') and not what.startswith(('journal', 'commit')):
        return exceptions.Conflict(f'409 to {what}')
    return None


def _unavailable(what: str) -> Exception | None:
    if what.startswith('read') or what.endswith('before'):
        if not what.startswith(('journal', 'commit')):
            return exceptions.ApiError(f'503 to {what}')
    return None


def _connection_lost(what: str) -> Exception | None:
    if what.startswith(('sql', 'commit', 'connect')):
        return engines.Lost(f'the connection was lost at {what}')
    return None


def _deadlock(what: str) -> Exception | None:
    return engines.Deadlock('1213') if what == 'sql' else None


def _disk_full(what: str) -> Exception | None:
    if what.startswith('journal') and what.endswith('before'):
        return exceptions.DrpError('cannot write the journal')
    return None


ERRORS = (
    _unanswered,
    _refused,
    _unavailable,
    _connection_lost,
    _deadlock,
    _disk_full,
)
