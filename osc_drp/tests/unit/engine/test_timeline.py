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

"""What a journal tells, whichever version wrote it."""

import datetime
import unittest

from osc_drp.engine import timeline

BEGIN = datetime.datetime(2026, 11, 22, 3, 0, tzinfo=datetime.UTC)


def at(seconds):
    """Give a time of the test."""
    return BEGIN + datetime.timedelta(seconds=seconds)


def entry(seconds, event, **fields):
    """Make an entry of a journal."""
    stamp = at(seconds).isoformat(timespec='milliseconds')
    return {'at': stamp, 'event': event, **fields}


def build(*entries):
    """Read a journal that was made at BEGIN."""
    return timeline.build(entries, BEGIN)


def restart(seconds, server='s1', status='done', what='started', took=10):
    """Make what `servers restart` writes of one server."""
    return [
        entry(seconds, 'before', action='start', server=server, newest='r'),
        entry(seconds + 1, 'sent', action='start', server=server),
        entry(
            seconds + took,
            'outcome',
            action='restart',
            server=server,
            status=status,
            what=what,
        ),
    ]


def attach(seconds, event, **fields):
    """Make an entry about an attachment."""
    key = {'action': 'attach', 'server': 's1', 'volume': 'v1'}
    return entry(seconds, event, **key, **fields)


class TestBars(unittest.TestCase):
    """From the first entry of an object to its outcome."""

    def test_restart(self):
        found = build(
            entry(0, 'begin', command='servers restart'),
            *restart(2),
            entry(13, 'end'),
        )
        (bar,) = found.bars
        self.assertEqual(
            ('restart', 's1', '', 'done', 'started'),
            (bar.action, bar.server_id, bar.volume_id, bar.status, bar.what),
        )
        self.assertEqual((at(2), at(12)), (bar.span.begun, bar.span.until))
        self.assertEqual(10, bar.span.seconds)
        self.assertTrue(bar.well)
        self.assertTrue(found.finished)
        self.assertEqual('servers restart', found.command)
        self.assertEqual(13, found.span.seconds)
        self.assertEqual((1, 0, 0), found.counts)
        self.assertEqual([], found.problems())

    def test_a_lock_that_another_run_released_takes_no_time(self):
        found = build(
            entry(0, 'begin', command='recover'),
            entry(1, 'lock', server='s1'),
            entry(13, 'end'),
            entry(7200, 'unlocked', server='s1', by='a later run'),
        )
        self.assertEqual(13, found.span.seconds)
        self.assertEqual((), tuple(found.locked))

    def test_stop_and_start_are_one_restart(self):
        found = build(
            entry(0, 'begin', command='servers restart'),
            entry(1, 'before', action='stop', server='s1', newest=None),
            entry(2, 'sent', action='stop', server='s1'),
            *restart(5),
        )
        (bar,) = found.bars
        self.assertEqual((at(1), at(15)), (bar.span.begun, bar.span.until))

    def test_a_volume_is_an_object_of_its_own(self):
        found = build(
            entry(0, 'begin', command='recover'),
            *restart(1),
            attach(11, 'intent'),
            attach(12, 'sent', device='/dev/vdb'),
            attach(14, 'outcome', status='failed', what='boom'),
            entry(
                15,
                'outcome',
                action='reset',
                server='s1',
                volume='v2',
                status='open',
                what='changed',
            ),
        )
        self.assertEqual(
            [('restart', ''), ('attach', 'v1'), ('reset', 'v2')],
            [(b.action, b.volume_id) for b in found.bars],
        )
        self.assertEqual((1, 1, 1), found.counts)
        self.assertEqual(
            [('s1, v1', 'attach: boom'), ('s1, v2', 'reset: changed')],
            found.problems(),
        )

    def test_without_an_outcome_it_is_unfinished(self):
        found = build(
            entry(0, 'begin', command='recover'), attach(3, 'intent')
        )
        (bar,) = found.bars
        self.assertEqual(timeline.UNFINISHED, bar.status)
        self.assertFalse(bar.span.ended)
        self.assertFalse(found.finished)
        self.assertEqual((0, 0, 1), found.counts)

    def test_the_console_says_otherwise(self):
        found = build(
            entry(0, 'begin', command='recover'),
            *restart(1),
            *restart(1, server='s2'),
            entry(120, 'console', server='s1', what='"emergency mode"'),
            entry(121, 'console', server='s9', what='x'),
        )
        self.assertEqual((1, 0, 1), found.counts)
        self.assertEqual(
            [('s1', 'restart: started, but "emergency mode"')],
            found.problems(),
        )

    def test_the_last_attempt_counts(self):
        found = build(
            entry(0, 'begin', command='recover'),
            *restart(1, status='failed', what='boom'),
            entry(20, 'resume'),
            *restart(21),
            entry(40, 'end'),
        )
        self.assertEqual(['failed', 'done'], [b.status for b in found.bars])
        self.assertEqual((1, 0, 0), found.counts)


class TestSittings(unittest.TestCase):
    """A run that was killed and went on."""

    def test_killed_in_the_middle(self):
        found = build(
            entry(0, 'begin', command='servers restart'),
            *restart(1)[:1],
            entry(5000, 'resume'),
            *restart(5010),
            entry(5021, 'end'),
        )
        self.assertEqual(
            [(at(0), at(1), False), (at(5000), at(5021), True)],
            [(s.begun, s.until, s.ended) for s in found.sittings],
        )
        self.assertEqual(
            [(timeline.UNFINISHED, at(1)), ('done', at(5020))],
            [(b.status, b.span.until) for b in found.bars],
        )
        self.assertEqual(5021, found.span.seconds)

    def test_the_clock_went_back(self):
        # the batteries of this machine's clock are empty
        found = build(
            entry(100, 'begin', command='servers restart'),
            *restart(101),
            entry(0, 'resume'),
            *restart(5, server='s2'),
            entry(20, 'end'),
        )
        self.assertEqual([10, 10], [b.span.seconds for b in found.bars])
        self.assertEqual(31, found.span.seconds)

    def test_a_step_back_within_a_sitting(self):
        found = build(
            entry(100, 'begin', command='servers restart'),
            *restart(90),
            entry(120, 'end'),
        )
        self.assertGreaterEqual(found.bars[0].span.seconds, 0)
        self.assertEqual(20, found.span.seconds)


class TestPlan(unittest.TestCase):
    """What was planned and never begun."""

    def test_never_begun(self):
        found = build(
            entry(0, 'begin', command='recover'),
            entry(1, 'plan', steps={'start': 3, 'attach': 1}),
            *restart(2),
            attach(13, 'outcome', status='done', what='attached'),
            entry(15, 'end'),
        )
        self.assertEqual({'restart': 2}, found.untried)
        self.assertEqual((2, 0, 2), found.counts)
        self.assertEqual(
            [('restart', '2 planned, and never begun')], found.problems()
        )

    def test_a_resumed_run_plans_what_is_left(self):
        found = build(
            entry(0, 'begin', command='recover'),
            entry(1, 'plan', steps={'restart': 3}),
            *restart(2),
            entry(20, 'resume'),
            entry(21, 'plan', steps={'restart': 2}),
            *restart(22, 's2'),
            *restart(33, 's3'),
            entry(44, 'end'),
        )
        self.assertEqual({}, found.untried)
        self.assertEqual((3, 0, 0), found.counts)

    def test_cut_short_and_not_taken_up(self):
        # nova had started it when the run went on: nothing was left to do
        entries = [
            entry(0, 'begin', command='recover'),
            entry(1, 'plan', steps={'restart': 2}),
            *restart(2, status='failed'),
            *restart(14)[:1],
            *restart(15, 's2')[:1],
            entry(50, 'resume'),
        ]
        self.assertEqual((0, 0, 2), build(*entries).counts)
        entries += [entry(51, 'plan', steps={}), entry(52, 'end')]
        found = build(*entries)
        self.assertEqual((0, 0, 0), found.counts)
        self.assertEqual(2, len(found.dropped))
        self.assertEqual([], found.problems())

    def test_cut_short_and_taken_up(self):
        found = build(
            entry(0, 'begin', command='recover'),
            *restart(1)[:1],
            entry(50, 'resume'),
            entry(51, 'plan', steps={'restart': 1}),
            *restart(52, status='failed', what='boom'),
            entry(70, 'end'),
        )
        self.assertEqual((0, 1, 0), found.counts)
        self.assertEqual((), found.dropped)

    def test_cut_short_at_the_end(self):
        found = build(
            entry(0, 'begin', command='recover'),
            entry(1, 'plan', steps={'restart': 1}),
            *restart(1)[:1],
        )
        self.assertEqual([('s1', 'restart: unfinished')], found.problems())

    def test_what_needs_a_person(self):
        flag = {'server': 's2', 'volume': 'v2', 'what': 'R8'}
        found = build(
            entry(0, 'begin', command='recover'),
            entry(1, 'open', items=[flag, {**flag, 'server': 's3'}]),
            entry(20, 'resume'),
            entry(21, 'open', items=[flag, 'x']),
            *restart(22),
            entry(40, 'end'),
        )
        self.assertEqual((1, 0, 1), found.counts)
        self.assertEqual([('s2, v2', 'R8')], found.problems())


class TestRecover(unittest.TestCase):
    """What a run of several steps writes besides."""

    def setUp(self):
        self.found = build(
            entry(0, 'begin', command='recover', again=['openstack', 'x']),
            entry(1, 'names', servers={'s1': 'web1'}),
            entry(2, 'step', step='repair', state='begin'),
            entry(4, 'step', step='repair', state='end'),
            entry(5, 'wave', number=1, servers=['s1', 's2']),
            entry(6, 'lock', server='s1'),
            entry(7, 'locked', server='s2'),
            *restart(8),
            entry(19, 'unlocked', server='s1'),
            entry(20, 'step', step='start', state='begin'),
            entry(21, 'guest', server='s1', boot='b'),
            entry(22, 'wave', number=1, servers=['s3']),
        )

    def test_names(self):
        self.assertEqual('web1', self.found.name('s1'))
        self.assertEqual('s2', self.found.name('s2'))

    def test_steps(self):
        self.assertEqual(
            [('repair', 2, True), ('start', 2, False)],
            [(s.name, s.span.seconds, s.span.ended) for s in self.found.steps],
        )

    def test_waves(self):
        (wave,) = self.found.waves
        self.assertEqual(
            ('1', ('s1', 's2', 's3')), (wave.number, wave.server_ids)
        )

    def test_locks_that_are_left(self):
        self.assertEqual(('s2',), self.found.locked)
        self.assertEqual(
            [('s2', 'still locked by this run')], self.found.problems()
        )

    def test_what_is_not_known_is_a_note(self):
        self.assertEqual(
            [('guest', 'boot: b, server: s1')],
            [(n.event, n.text) for n in self.found.notes],
        )

    def test_the_command_again(self):
        self.assertEqual(('openstack', 'x'), self.found.again)


class TestDamage(unittest.TestCase):
    """Whatever lies there, it is read."""

    def test_empty(self):
        found = build()
        self.assertEqual('', found.command)
        self.assertFalse(found.finished)
        self.assertEqual(BEGIN, found.span.begun)
        self.assertEqual((0, 0, 0), found.counts)
        self.assertEqual(timeline.CUT, timeline.state(found, 'x, since y'))

    def test_empty_while_another_run_is_under_way(self):
        holder = f'x by op on host, pid 7, since {BEGIN.isoformat()}'
        self.assertEqual(timeline.CUT, timeline.state(build(), holder))

    def test_no_year_of_utc(self):
        found = build(
            {'at': '0001-01-01T00:00:00+10:00', 'event': 'begin'},
            {'at': '9999-12-31T23:59:59-10:00', 'event': 'end'},
        )
        self.assertEqual(BEGIN, found.span.until)

    def test_odd_entries(self):
        found = build(
            {'event': 'begin'},
            {'at': 'noon', 'event': 'outcome', 'action': 'attach'},
            {'at': 7, 'event': ['x'], 'server': {}},
            {},
            {'event': 'outcome'},
            {'event': 'plan', 'steps': {'start': 'many'}, 'at': None},
            {'event': 'plan', 'steps': 5},
            {'event': 'names', 'servers': []},
            {'event': 'wave', 'servers': 7},
            {'event': 'step'},
            {'event': 'resume', 'again': 'x'},
            {'at': '2026-11-22T03:00:05', 'event': 'end'},
        )
        self.assertEqual(5, found.span.seconds)
        self.assertEqual(1, len(found.bars))
        self.assertEqual(3, len(found.notes))


class TestState(unittest.TestCase):
    """Whether somebody is at it."""

    def state(self, since, *entries):
        found = build(entry(10, 'begin', command='x'), *entries)
        holder = f'x by op on host, pid 7, since {at(since).isoformat()}'
        return timeline.state(found, holder if since else '')

    def test_state(self):
        for since, more, state in (
            (0, [], timeline.CUT),
            (9, [], timeline.UNDER_WAY),
            # another run has the lock
            (11, [], timeline.CUT),
            (11, [entry(12, 'resume')], timeline.UNDER_WAY),
            (9, [entry(12, 'end')], timeline.FINISHED),
            # nothing to do: it ended twice
            (9, [entry(12, 'end'), entry(13, 'resume')], timeline.UNDER_WAY),
        ):
            with self.subTest(since=since, state=state):
                self.assertEqual(state, self.state(since, *more))
