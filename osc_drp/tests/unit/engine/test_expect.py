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

import dataclasses
import unittest

from osc_drp.engine import expect
from osc_drp.engine import facts
from osc_drp.engine import plan
from osc_drp.engine import rules
from osc_drp.tests.unit.engine import build


def item(do, seen, **changes):
    """Make an item about s1 and v1, as a planner does."""
    pair = plan.pair_of(seen, 's1', 'v1')
    values = {
        'server_id': 's1',
        'volume_id': 'v1',
        'do': do,
        'rule': '',
        'reason': '',
        'pair': pair,
        'attachment': build.attachment(),
    }
    return plan.Item(**{**values, **changes})


def rule(seen):
    """Judge the pair s1, v1; '' if there is none."""
    pair = plan.pair_of(seen, 's1', 'v1')
    return rules.judge(pair).rule if pair else ''


class TestAfter(unittest.TestCase):
    def after(self, do, seen, **changes):
        return expect.after(seen, [item(do, seen, **changes)])

    def test_start(self):
        seen = self.after(plan.Do.START, build.agreeing(('s1', 'v1')))
        self.assertTrue(seen.servers['s1'].ran)

    def test_reset(self):
        seen = build.agreeing(('s1', 'v1'), ('s2', 'v2'))
        listed = dataclasses.replace(
            seen.servers['s1'], volumes_attached=frozenset({'v1'})
        )
        seen = dataclasses.replace(
            seen, servers={**seen.servers, 's1': listed}
        )
        seen = self.after(plan.Do.RESET, seen)
        self.assertEqual('', rule(seen))
        self.assertEqual('available', seen.volumes['v1'].status)
        self.assertEqual(frozenset(), seen.servers['s1'].volumes_attached)
        self.assertEqual('in-use', seen.volumes['v2'].status)
        self.assertEqual(1, len(facts.pairs(seen)))

    def test_reset_of_one_of_two(self):
        seen = build.agreeing(('s1', 'v1'), ('s2', 'v1'))
        seen = self.after(plan.Do.RESET, seen)
        self.assertEqual('in-use', seen.volumes['v1'].status)

    def test_repair(self):
        seen = build.seen(
            [build.server()], [build.free()], [build.mapping()], []
        )
        self.assertNotEqual('R1', rule(seen))
        seen = self.after(plan.Do.REPAIR, seen)
        self.assertEqual('R1', rule(seen))

    def test_release_keeps_what_nova_names(self):
        extra = build.row(id='extra', attach_status='attaching')
        seen = build.agreeing(('s1', 'v1'))
        seen = dataclasses.replace(seen, rows=(*seen.rows, extra))
        seen = self.after(plan.Do.RELEASE, seen)
        self.assertEqual('R1', rule(seen))
        self.assertNotIn('extra', {r.id for r in seen.rows})

    def test_release_of_what_nova_dropped(self):
        seen = build.seen(
            [build.server()], [build.volume()], [], [build.row()]
        )
        seen = self.after(plan.Do.RELEASE, seen)
        self.assertEqual('', rule(seen))
        self.assertEqual('available', seen.volumes['v1'].status)

    def test_attach(self):
        seen = build.seen([build.server()], [build.free()])
        seen = self.after(plan.Do.ATTACH, seen)
        self.assertEqual('R1', rule(seen))

    def test_nothing_else_changes_anything(self):
        seen = build.agreeing(('s1', 'v1'))
        for do in (plan.Do.FLAG, plan.Do.LEAVE, plan.Do.NOTHING):
            self.assertEqual(seen, self.after(do, seen))
