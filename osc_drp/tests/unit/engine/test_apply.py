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

"""Lanes: limits, canary, breaker, errors, interrupts; without sleeping."""

import collections
import signal
import threading
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.tests.unit.engine import build

#: Seconds after which a test that waits has failed.
LONG = 20
#: Lanes that take longer than one thread may run before another does.
MANY = 5000


class Lanes:
    """Makes lanes and watches how many are under way."""

    def __init__(self):
        self.lock = threading.Lock()
        self.begun = []
        self.now = collections.Counter()
        self.most = collections.Counter()

    def lane(self, key, host='h', status=apply.DONE, work=None, steps=1):
        outcomes = [
            apply.Outcome(key, f'v{n}', status, 'what') for n in range(steps)
        ]

        def run():
            with self.lock:
                self.begun.append(key)
                for name in host, 'all':
                    self.now[name] += 1
                    self.most[name] = max(self.most[name], self.now[name])
            try:
                if work:
                    work()
                return outcomes
            finally:
                with self.lock:
                    self.now[host] -= 1
                    self.now['all'] -= 1

        untried = tuple(
            apply.Outcome(key, f'v{n}', apply.UNTRIED, 'not tried')
            for n in range(steps)
        )
        return apply.Lane(key, host, run, untried)


class TestRun(unittest.TestCase):
    """apply.Runner."""

    def setUp(self):
        self.lanes = Lanes()
        self.said = []

    def run_lanes(self, lanes, *limits, canary=False, step=None):
        runner = apply.Runner(apply.Limits(*limits), self.said.append)
        return runner.run(lanes, canary, step)

    def statuses(self, outcomes):
        return [(o.server_id, o.status) for o in outcomes]

    def test_nothing(self):
        self.assertEqual([], self.run_lanes([], canary=True))

    def test_order_is_that_of_the_lanes_not_of_the_end(self):
        ended = threading.Event()
        slow = self.lanes.lane('slow', work=lambda: ended.wait(LONG))
        quick = self.lanes.lane('quick', work=ended.set, steps=2)
        outcomes = self.run_lanes([slow, quick])
        self.assertEqual(
            [('slow', 'v0'), ('quick', 'v0'), ('quick', 'v1')],
            [(o.server_id, o.volume_id) for o in outcomes],
        )

    def test_outcomes_are_counted(self):
        step = mock.Mock()
        self.run_lanes(
            [
                self.lanes.lane('a', steps=2),
                self.lanes.lane('b', status=apply.OPEN),
                self.lanes.lane('c', status=apply.FAILED),
                self.lanes.lane('never begun'),
            ],
            *(1, 1, 1),
            step=step,
        )
        self.assertEqual(
            [False, False, False, True],
            [c.kwargs['failed'] for c in step.advance.call_args_list],
        )

    def test_parallel_is_used_and_never_exceeded(self):
        # the barrier breaks unless three are under way at once
        barrier = threading.Barrier(3)
        lanes = [
            self.lanes.lane(n, host=n, work=lambda: barrier.wait(LONG))
            for n in range(9)
        ]
        outcomes = self.run_lanes(lanes, 3, 9)
        self.assertEqual({apply.DONE}, {o.status for o in outcomes})
        self.assertEqual(3, self.lanes.most['all'])

    def test_per_host_is_used_and_never_exceeded(self):
        barrier = threading.Barrier(2)
        lanes = [
            self.lanes.lane((h, n), host=h, work=lambda: barrier.wait(LONG))
            for h in ('a',)
            for n in range(6)
        ]
        outcomes = self.run_lanes(lanes, 6, 2)
        self.assertEqual({apply.DONE}, {o.status for o in outcomes})
        self.assertEqual(2, self.lanes.most['a'])

    def test_a_full_host_holds_no_other_up(self):
        other_ran = threading.Event()
        lanes = [
            self.lanes.lane('a1', 'a', work=lambda: other_ran.wait(LONG)),
            self.lanes.lane('a2', 'a'),
            self.lanes.lane('b1', 'b', work=other_ran.set),
        ]
        self.run_lanes(lanes, 2, 1)
        self.assertTrue(other_ran.is_set())
        self.assertEqual('a2', self.lanes.begun[-1])
        self.assertEqual(1, self.lanes.most['a'])

    def test_canary_runs_alone(self):
        alone = []
        lanes = [
            self.lanes.lane(
                0, work=lambda: alone.append(list(self.lanes.begun))
            ),
            *(self.lanes.lane(n) for n in range(1, 4)),
        ]
        self.run_lanes(lanes, canary=True)
        self.assertEqual([[0]], alone)
        self.assertEqual({0, 1, 2, 3}, set(self.lanes.begun))

    def test_canary_that_fails_stops_all(self):
        lanes = [
            self.lanes.lane('a', status=apply.FAILED),
            self.lanes.lane('b', steps=2),
        ]
        outcomes = self.run_lanes(lanes, canary=True)
        self.assertEqual(['a'], self.lanes.begun)
        self.assertEqual(
            [('a', 'failed'), ('b', 'untried'), ('b', 'untried')],
            self.statuses(outcomes),
        )
        self.assertIn('the first one failed', self.said[0])

    def test_a_lane_that_did_nothing_is_no_canary(self):
        for status in apply.OPEN, apply.LEFT:
            self.lanes = Lanes()
            most = []
            lanes = [
                self.lanes.lane(0, status=status),
                self.lanes.lane(
                    1, work=lambda m=most: m.extend(self.lanes.begun)
                ),
                *(self.lanes.lane(n) for n in range(2, 5)),
            ]
            self.run_lanes(lanes, canary=True)
            self.assertEqual([0, 1], most)

    def test_breaker_counts_failures_in_a_row(self):
        def run(statuses):
            self.lanes, self.said = Lanes(), []
            lanes = [
                self.lanes.lane(n, status=s) for n, s in enumerate(statuses)
            ]
            self.run_lanes(lanes, 1, 1, 3)
            return len(self.lanes.begun)

        bad, good = apply.FAILED, apply.DONE
        self.assertEqual(3, run([bad, bad, bad, good, good]))
        self.assertIn('3 failures in a row', self.said[0])
        self.assertEqual(6, run([bad, bad, good, bad, bad, good]))
        self.assertEqual([], self.said)
        # what was left alone neither counts nor proves that it works again
        self.assertEqual(4, run([bad, bad, apply.OPEN, bad, good, good]))

    def test_breaker_lets_finish_what_is_under_way(self):
        failed = threading.Event()
        slow = self.lanes.lane('slow', work=lambda: failed.wait(LONG))
        bad = self.lanes.lane('bad', status=apply.FAILED, work=failed.set)
        never = self.lanes.lane('never')
        outcomes = self.run_lanes([slow, bad, never], 2, 2, 1)
        self.assertEqual(('slow', 'done'), self.statuses(outcomes)[0])
        # 'slow' may end before the breaker is seen, never after 'never'
        self.assertIn(('bad', 'failed'), self.statuses(outcomes))

    def test_our_error_fails_the_lane_only(self):
        def fail():
            raise exceptions.ApiError('nova is gone')

        lanes = [
            self.lanes.lane('a', work=fail, steps=2),
            self.lanes.lane('b'),
        ]
        outcomes = self.run_lanes(lanes)
        self.assertEqual(
            [('a', 'failed'), ('a', 'failed'), ('b', 'done')],
            self.statuses(outcomes),
        )
        self.assertEqual('nova is gone', outcomes[0].what)
        self.assertEqual(['a: nova is gone'], self.said)

    def test_a_server_is_called_by_its_name(self):
        def fail():
            raise exceptions.ApiError('nova is gone')

        seen = build.seen(
            [build.server('s1', name='web1'), build.server('s2', name='')]
        )
        lanes = [
            apply.Lane.of_server(seen, s, fail, []) for s in ('s1', 's2', 's3')
        ]
        self.assertEqual(
            [build.HOST, build.HOST, None], [lane.host for lane in lanes]
        )
        self.run_lanes(lanes, 1, 1, 9)
        self.assertEqual(
            [f'{name}: nova is gone' for name in ('web1', 's2', 's3')],
            self.said,
        )

    def test_a_bug_stops_all_and_shows(self):
        def fail():
            raise ZeroDivisionError

        for canary in True, False:
            self.lanes = Lanes()
            lanes = [
                self.lanes.lane('a', work=fail),
                self.lanes.lane('b'),
            ]
            with self.assertRaises(ZeroDivisionError):
                self.run_lanes(lanes, 1, canary=canary)
            self.assertEqual(['a'], self.lanes.begun)

    def test_interrupt_lets_finish_what_is_under_way(self):
        for canary in True, False:
            with self.subTest(canary=canary):
                self.interrupt(canary)

    def interrupt(self, canary):
        self.lanes = Lanes()
        finished = []
        handled = threading.Event()

        def handler(_number, _frame):
            handled.set()
            raise KeyboardInterrupt

        def work():
            # the signal comes while the lane is in the middle of its work
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            self.assertTrue(handled.wait(LONG))
            finished.append(True)

        before = signal.signal(signal.SIGINT, handler)
        try:
            with self.assertRaises(KeyboardInterrupt):
                self.run_lanes(
                    [
                        self.lanes.lane('a', work=work),
                        *(self.lanes.lane(n) for n in range(MANY)),
                    ],
                    1,
                    canary=canary,
                )
        finally:
            signal.signal(signal.SIGINT, before)
        self.assertEqual([True], finished)
        # with bad luck one more began before the main thread came to stop
        self.assertLess(len(self.lanes.begun), MANY)

    def test_interrupted_main_thread_waits_for_workers(self):
        """Even if the interrupt comes while it waits for the first."""
        ended = []
        gate = threading.Event()

        def work():
            gate.wait(LONG)
            ended.append(True)

        real = apply.concurrent.futures.Future.result

        def result(future, timeout=None):
            gate.set()
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return real(future, timeout)

        lanes = [self.lanes.lane(n, host=n, work=work) for n in range(3)]
        with mock.patch.object(
            apply.concurrent.futures.Future, 'result', result
        ):
            with self.assertRaises(KeyboardInterrupt):
                self.run_lanes(lanes, 3)
        self.assertEqual(len(self.lanes.begun), len(ended))

    def test_later_lanes_need_no_canary(self):
        runner = apply.Runner(apply.Limits(2, 2), self.said.append)
        runner.run([self.lanes.lane('canary')])
        gate = threading.Barrier(2)
        both = [self.lanes.lane(n, work=lambda: gate.wait(LONG)) for n in 'ab']
        outcomes = runner.run(both)
        self.assertEqual(
            [('a', 'done'), ('b', 'done')], self.statuses(outcomes)
        )

    def test_the_breaker_remembers(self):
        runner = apply.Runner(apply.Limits(1, 1, 2), self.said.append)
        runner.run([self.lanes.lane('a', status='failed')], canary=False)
        runner.run(
            [self.lanes.lane(n, status='failed') for n in 'bc'], canary=False
        )
        later = runner.run([self.lanes.lane('d')])
        self.assertEqual([('d', 'untried')], self.statuses(later))
        self.assertEqual(
            ['2 failures in a row: nothing new was begun'], self.said
        )
