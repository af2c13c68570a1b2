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
from osc_drp.engine import facts
from osc_drp.engine import ports
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


def not_verified(
    outcomes: collections.abc.Iterable[Outcome], error: exceptions.DrpError
) -> list[Outcome]:
    """Open what is said to be done when nobody could look at it again."""
    return [
        dataclasses.replace(
            o,
            status=OPEN,
            what=_('%(done)s, but not verified: %(error)s')
            % {'done': o.what, 'error': error},
        )
        if o.status == DONE
        else o
        for o in outcomes
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """Steps that must not overlap."""

    key: str
    host: str | None
    work: collections.abc.Callable[[], list[Outcome]]
    #: What to report if it is never begun.
    untried: tuple[Outcome, ...]
    #: What the operator calls it; the key, if nobody knows better.
    name: str = ''

    @classmethod
    def of_server(
        cls,
        seen: facts.Observation,
        server_id: str,
        work: collections.abc.Callable[[], list[Outcome]],
        untried: collections.abc.Iterable[Outcome],
    ) -> 'Lane':
        """Make the lane of a server, on the host where it was seen."""
        server = seen.servers.get(server_id)
        return cls(
            key=server_id,
            host=server.host if server else None,
            work=work,
            untried=tuple(untried),
            name=seen.name_of(server_id),
        )


def troubled_last(
    lanes: collections.abc.Iterable[Lane],
    failing: collections.abc.Container[str],
) -> list[Lane]:
    """Let those who failed the last time wait for all others.

    As the first one, who runs alone, a server that cannot be started would
    stop every run.
    """
    return sorted(lanes, key=lambda lane: lane.key in failing)


class Limits:
    """How much at once."""

    def __init__(
        self, parallel: int = 8, per_host: int = 4, breaker: int = 3
    ) -> None:
        self.parallel = parallel
        self.per_host = per_host
        self.breaker = breaker


class Runner:
    """Runs lanes; what stops it stops all that it is given later."""

    def __init__(
        self, limits: Limits, say: collections.abc.Callable[[str], None]
    ) -> None:
        self._limits = limits
        self._say = say
        self._changed = threading.Condition()
        self._waiting: collections.deque[Lane] = collections.deque()
        self._busy: collections.Counter[str | None] = collections.Counter()
        self._failures = 0
        self._under_way = 0
        self._canary = True
        #: Why nothing new begins any more; lanes ask between their steps
        #: whether they were :attr:`interrupted`.
        self.stopped = ''
        self.interrupted = False

    def run(
        self,
        lanes: collections.abc.Sequence[Lane],
        canary: bool = True,
        step: ports.Step | None = None,
    ) -> list[Outcome]:
        """Run all lanes and give every outcome, in the order of the lanes.

        :param canary: begin with one alone, unless one was done before
        :param step: counts each outcome when its lane has ended
        :raises KeyboardInterrupt: after the lanes under way have finished
        """
        results: dict[str, list[Outcome]] = {}
        self._waiting = collections.deque(lanes)
        said = self.stopped
        counter = step or ports.NoStep()

        def work(lane: Lane) -> list[Outcome]:
            outcomes = self._work(lane)
            for outcome in outcomes:
                counter.advance(failed=outcome.status == FAILED)
            return outcomes

        def first() -> None:
            while (lane := self._take()) is not None:
                results[lane.key] = work(lane)
                statuses = {o.status for o in results[lane.key]}
                if FAILED in statuses:
                    self._stop(
                        _('the first one failed: nothing else was begun')
                    )
                if DONE in statuses:
                    self._canary = False
                    return

        def worker() -> None:
            while (lane := self._take()) is not None:
                results[lane.key] = work(lane)

        interrupted = None
        if canary and self._canary:
            interrupted = self._run_workers(first, 1)
        if not interrupted:
            count = max(1, min(self._limits.parallel, len(lanes)))
            interrupted = self._run_workers(worker, count)
        if self.stopped != said:
            self._say(self.stopped)
        for lane in self._waiting:
            results[lane.key] = list(lane.untried)
        if interrupted:
            raise interrupted
        return [o for lane in lanes for o in results.get(lane.key, ())]

    def _take(self) -> Lane | None:
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

    def _work(self, lane: Lane) -> list[Outcome]:
        try:
            try:
                outcomes = lane.work()
            except exceptions.DrpError as error:
                self._say(f'{lane.name or lane.key}: {error}')
                outcomes = [
                    dataclasses.replace(o, status=FAILED, what=str(error))
                    for o in lane.untried
                ]
            self._count(outcomes)
        except BaseException:
            # a bug: begin nothing new, and let it be seen
            self._stop(_('stopped by an unexpected error'))
            raise
        finally:
            with self._changed:
                # give the lane's host its room back
                self._busy[lane.host] -= 1
                self._under_way -= 1
                self._changed.notify_all()
        return outcomes

    def _count(self, outcomes: list[Outcome]) -> None:
        """Count failures in a row."""
        with self._changed:
            if any(o.status == FAILED for o in outcomes):
                self._failures += 1
            elif any(o.status == DONE for o in outcomes):
                self._failures = 0
            if self._failures >= self._limits.breaker:
                self._stop(
                    _('%d failures in a row: nothing new was begun')
                    % self._failures
                )

    def _stop(self, why: str) -> None:
        """Begin nothing new."""
        with self._changed:
            self.stopped = self.stopped or why
            self._changed.notify_all()

    def _run_workers(
        self, worker: collections.abc.Callable[[], None], count: int
    ) -> BaseException | None:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            try:
                futures = [pool.submit(worker) for _n in range(count)]
                for future in futures:
                    future.result()
            except BaseException as error:
                self.interrupted = True
                # not by the futures: an interrupt in submit() loses one
                self._stop(_('interrupted: finishing what is under way'))
                with self._changed:
                    while self._under_way:
                        self._changed.wait(1.0)
                return error
        return None


def run(
    lanes: collections.abc.Sequence[Lane],
    limits: Limits,
    say: collections.abc.Callable[[str], None],
    step: ports.Step | None = None,
) -> list[Outcome]:
    """Run lanes once; see :meth:`Runner.run`."""
    return Runner(limits, say).run(lanes, step=step)
