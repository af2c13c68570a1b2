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

"""Carrying out: lanes side by side, a canary first, limits, a breaker.

A lane is what must happen one after the other: the steps of one server, or
all rows of one volume. Lanes run in threads, never more than ``parallel``
at once and never more than ``per_host`` on one host. The first lane that
has something to do runs alone (the canary); after ``breaker`` failures in a
row nothing new begins. An interrupt reaches no lane: it begins nothing new.
"""

import collections
import collections.abc
import concurrent.futures
import dataclasses
import threading

from osc_drp import exceptions
from osc_drp.i18n import _


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object."""

    server_id: str
    volume_id: str
    #: 'done': as it should be, now or already; 'left': healthy, left alone
    #: by rule; 'open': a person must look; 'failed'; 'untried'.
    status: str
    what: str
    #: Names that came back different, and the like.
    warning: str = ''


DONE = 'done'
LEFT = 'left'
OPEN = 'open'
FAILED = 'failed'
UNTRIED = 'untried'

#: The statuses that make a command end with exit code 3.
NOT_WELL = frozenset({OPEN, FAILED, UNTRIED})


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """Steps that must not overlap."""

    key: str
    host: str | None
    work: collections.abc.Callable[[], list[Outcome]]
    #: What to report if it is never begun.
    untried: tuple[Outcome, ...]


class Limits:
    """How much at once."""

    def __init__(
        self, parallel: int = 8, per_host: int = 4, breaker: int = 3
    ) -> None:
        self.parallel = parallel
        self.per_host = per_host
        self.breaker = breaker


class _Scheduler:
    """Hands out the next lane whose host has room."""

    def __init__(self, lanes: list[Lane], limits: Limits) -> None:
        self._waiting = collections.deque(lanes)
        self._busy: collections.Counter[str | None] = collections.Counter()
        self._limits = limits
        self._changed = threading.Condition()
        self._failures = 0
        self._under_way = 0
        self.stopped = ''

    def take(self) -> Lane | None:
        """Wait for a lane that may begin; None: there is none any more."""
        with self._changed:
            while self._waiting and not self.stopped:
                for lane in self._waiting:
                    if self._busy[lane.host] < self._limits.per_host:
                        self._waiting.remove(lane)
                        self._busy[lane.host] += 1
                        self._under_way += 1
                        return lane
                self._changed.wait(1.0)
            return None

    def ended(self, lane: Lane) -> None:
        """Give the lane's host its room back."""
        with self._changed:
            self._busy[lane.host] -= 1
            self._under_way -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until no lane is under way."""
        with self._changed:
            while self._under_way:
                self._changed.wait(1.0)

    def count(self, outcomes: list[Outcome]) -> None:
        """Count failures in a row."""
        with self._changed:
            if any(o.status == FAILED for o in outcomes):
                self._failures += 1
            elif any(o.status == DONE for o in outcomes):
                self._failures = 0
            if self._failures >= self._limits.breaker:
                self.stop(
                    _('%d failures in a row: nothing new was begun')
                    % self._failures
                )

    def stop(self, why: str) -> None:
        """Begin nothing new."""
        with self._changed:
            self.stopped = self.stopped or why
            self._changed.notify_all()

    def left_over(self) -> list[Lane]:
        """List what was never begun."""
        return list(self._waiting)


def run(
    lanes: list[Lane],
    limits: Limits,
    say: collections.abc.Callable[[str], None],
    canary: bool = True,
) -> list[Outcome]:
    """Run all lanes and give every outcome, in the order of the lanes.

    :raises KeyboardInterrupt: after the lanes under way have finished
    """
    results: dict[str, list[Outcome]] = {}
    scheduler = _Scheduler(lanes, limits)

    def first() -> None:
        while (lane := scheduler.take()) is not None:
            results[lane.key] = _work(lane, scheduler)
            statuses = {o.status for o in results[lane.key]}
            if FAILED in statuses:
                scheduler.stop(
                    _('the first one failed: nothing else was begun')
                )
            if DONE in statuses:
                return

    def worker() -> None:
        while (lane := scheduler.take()) is not None:
            results[lane.key] = _work(lane, scheduler)

    interrupted = None
    if canary:
        interrupted = _run_workers(first, 1, len(lanes), scheduler)
    if not interrupted:
        interrupted = _run_workers(
            worker, limits.parallel, len(lanes), scheduler
        )
    if scheduler.stopped:
        say(scheduler.stopped)
    for lane in scheduler.left_over():
        results[lane.key] = list(lane.untried)
    if interrupted:
        raise interrupted
    return [o for lane in lanes for o in results.get(lane.key, ())]


def _work(lane: Lane, scheduler: _Scheduler) -> list[Outcome]:
    try:
        try:
            outcomes = lane.work()
        except exceptions.DrpError as error:
            outcomes = [
                dataclasses.replace(o, status=FAILED, what=str(error))
                for o in lane.untried
            ]
        scheduler.count(outcomes)
    except BaseException:
        # a bug: begin nothing new, and let it be seen
        scheduler.stop(_('stopped by an unexpected error'))
        raise
    finally:
        scheduler.ended(lane)
    return outcomes


def _run_workers(
    worker: collections.abc.Callable[[], None],
    parallel: int,
    lanes: int,
    scheduler: _Scheduler,
) -> BaseException | None:
    count = max(1, min(parallel, lanes))
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        try:
            futures = [pool.submit(worker) for _n in range(count)]
            for future in futures:
                future.result()
        except BaseException as error:
            # not by the futures: an interrupt in submit() loses one
            scheduler.stop(_('interrupted: finishing what is under way'))
            scheduler.wait()
            return error
    return None
