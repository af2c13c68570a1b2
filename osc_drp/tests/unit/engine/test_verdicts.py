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

"""Verdicts on a whole cloud, and the words that a person reads."""

import dataclasses
import unittest

from osc_drp.engine import facts
from osc_drp.engine import rules
from osc_drp.engine import verdicts
from osc_drp.tests.unit.engine import build

DETACH = build.action('detach_volume')


def forgotten(*volumes, **changes):
    """A server whose volumes cinder forgot."""
    keys = [('s1', v) for v in volumes]
    return build.seen(
        [build.server()],
        [build.free(v) for v in volumes],
        [build.mapping(*k) for k in keys],
        [build.gone(build.row(*k)) for k in keys],
        **changes,
    )


class TestJudgeAll(unittest.TestCase):
    def rules(self, seen, *dead):
        return {
            (j.pair.server_id, j.pair.volume_id): j.verdict.rule
            for j in verdicts.judge_all(seen, dead)
        }

    def test_pairs_and_volumes_alone(self):
        seen = build.agreeing(('s1', 'v1'))
        volumes = {
            **seen.volumes,
            'v2': build.free('v2', status='attaching'),
            'v3': build.free('v3'),
        }
        seen = build.seen(
            seen.servers.values(),
            volumes.values(),
            seen.mappings,
            seen.rows,
        )
        self.assertEqual(
            {('s1', 'v1'): 'R1', ('', 'v2'): 'R7'}, self.rules(seen)
        )

    def test_no_volume_is_alone_that_somebody_names(self):
        for mappings, rows in (
            ([build.mapping(connected=False, attachment_id=None)], []),
            ([], [build.row(attach_status='reserved')]),
            ([], [build.row(server_id=None)]),
        ):
            seen = build.seen(
                [build.server()],
                [build.free(status='reserved')],
                mappings,
                rows,
            )
            self.assertNotIn(('', 'v1'), self.rules(seen))

    def test_a_detach_that_fits_one_volume(self):
        seen = forgotten('v1', unfinished=(DETACH,))
        self.assertEqual({('s1', 'v1'): 'R3a'}, self.rules(seen))

    def test_a_detach_that_fits_two(self):
        seen = forgotten('v1', 'v2', unfinished=(DETACH,))
        self.assertEqual({'R8'}, {*self.rules(seen).values()})

    def test_a_detach_that_fits_one_that_says_so(self):
        seen = forgotten('v1', unfinished=(DETACH,))
        seen = build.seen(
            seen.servers.values(),
            [*seen.volumes.values(), build.volume('v2', status='detaching')],
            [*seen.mappings, build.mapping('s1', 'v2')],
            [*seen.rows, build.row('s1', 'v2')],
            unfinished=(DETACH,),
        )
        self.assertEqual(
            {('s1', 'v1'): 'R8', ('s1', 'v2'): 'R2'}, self.rules(seen)
        )

    def test_error_needs_its_cinder_volume(self):
        for up, action in (
            (True, rules.Action.REPAIR),
            (False, rules.Action.FLAG),
        ):
            seen = build.seen(
                [build.server()],
                [build.volume(status='error')],
                [build.mapping()],
                [build.row()],
                services=(
                    facts.Service('nova-compute', build.HOST, True),
                    facts.Service('cinder-volume', build.BACKEND, up),
                ),
            )
            [one] = verdicts.judge_all(seen)
            self.assertEqual(('R2', action), one.verdict[:2])

    def test_a_dead_host_counts_as_looked_at(self):
        seen = build.seen(
            [build.server()],
            [build.volume()],
            rows=[build.row()],
            services=build.services(up=False),
        )
        self.assertEqual({('s1', 'v1'): 'R8'}, self.rules(seen))
        self.assertEqual({('s1', 'v1'): 'R4'}, self.rules(seen, build.HOST))

    def test_the_apis_tell_no_cause(self):
        seen = forgotten('v1', source=facts.API)
        [one] = verdicts.judge_all(seen)
        self.assertEqual(('', rules.Action.FLAG), one.verdict[:2])
        seen = build.agreeing(('s1', 'v1'), source=facts.API)
        [one] = verdicts.judge_all(seen)
        self.assertTrue(one.well)


class TestWords(unittest.TestCase):
    def judged(self, **changes):
        pair = build.pair(**changes)
        return verdicts.Judged(pair, rules.judge(pair))

    def test_witnesses(self):
        old = build.gone(build.row())
        pair = build.pair(
            server=build.server(task_state='rebooting'),
            mappings=(build.mapping(root=True, connected=False),),
            rows=(),
            old_rows=(old, build.gone(build.row(id='other'))),
            compute_up=False,
        )
        self.assertEqual(
            (
                'a-s1-v1, root, without connection',
                'a-s1-v1, deleted, compute1',
                'in-use/attached',
                "stopped/shutdown, rebooting, nova-compute 'compute1' is down",
            ),
            verdicts.witnesses(pair),
        )
        nothing = build.pair(
            server=None, volume=None, mappings=(), rows=(), compute_up=None
        )
        self.assertEqual(
            ('no mapping', 'no row', 'no volume', 'no server'),
            verdicts.witnesses(nothing),
        )

    def test_novas_own_tool(self):
        lost = {'rows': (), 'volume': build.free()}
        [connector, refresh] = verdicts.nova_manage(self.judged(**lost))
        self.assertEqual('compute1', connector.host)
        self.assertEqual(
            'nova-manage volume_attachment refresh s1 v1 '
            'connector-compute1.json',
            refresh.line,
        )
        root = {**lost, 'mappings': (build.mapping(root=True),)}
        self.assertEqual(2, len(verdicts.nova_manage(self.judged(**root))))

    def test_novas_own_tool_only_where_it_helps(self):
        for changes in (
            # others heal it, or nothing is wrong
            {},
            {'volume': build.free()},
            # cinder would refuse the new attachment
            {'rows': ()},
            {'rows': (), 'volume': build.free(status='attaching')},
            {'rows': (), 'volume': build.free(status='error')},
            # cinder would refuse it half-way: seen in the lab
            {'rows': (build.row(id='b'),)},
            {'rows': (build.row(id='b'),), 'volume': build.free()},
            # another server has it
            {
                'rows': (),
                'volume': build.free(),
                'other_mappings': (build.mapping('s2'),),
            },
            # there is no mapping to be refreshed
            {'mappings': (), 'rows': (build.row(device='/dev/vda'),)},
            # a user's detach, of we do not know which
            {'rows': (), 'server': None, 'volume': build.free()},
        ):
            with self.subTest(changes):
                self.assertEqual(
                    (), verdicts.nova_manage(self.judged(**changes))
                )

    def test_advice_says_each_line_once(self):
        lost = self.judged(rows=(), volume=build.free())
        lines = verdicts.advice([lost, lost])
        self.assertEqual(3, len(lines))
        self.assertIn('on compute1: nova-manage', lines[1])
        self.assertEqual((), verdicts.advice([self.judged()]))


class TestNothingMappedIsFreed(unittest.TestCase):
    """The last row of a volume that another server maps is not taken."""

    def judge(self, **changes):
        leftover = build.pair(
            mappings=(),
            rows=(build.row(attach_status='attaching'),),
            volume=build.volume(status='in-use', multiattach=True),
            other_mappings=(build.mapping('s2', connected=False),),
        )
        pair = dataclasses.replace(leftover, **changes)
        return verdicts.judge(pair, build.seen())

    def test_flagged(self):
        verdict = self.judge()
        self.assertEqual('R4', verdict.rule)
        self.assertIs(rules.Action.FLAG, verdict.action)
        self.assertIn('nova maps it for s2', verdict.reason)

    def test_something_else_keeps_it(self):
        self.assertIs(
            rules.Action.RELEASE,
            self.judge(other_rows=(build.row('s2'),)).action,
        )

    def test_a_blank_mapping_is_none(self):
        blank = build.mapping('s2', connected=False, attachment_id=None)
        self.assertIs(
            rules.Action.RELEASE, self.judge(other_mappings=(blank,)).action
        )
