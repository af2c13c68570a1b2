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

"""Repair and undo from any state of both records, cut anywhere.

On real (SQLite) databases, through the writer: the engine's plan and the
writer's guards have to hold together.
"""

import contextlib
import pathlib
import tempfile
import unittest

import hypothesis
from hypothesis import strategies as st
import sqlalchemy as sa

from osc_drp import exceptions
from osc_drp.db import client
from osc_drp.db import read
from osc_drp.db import tables
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import repair
from osc_drp.engine import rules
from osc_drp.engine import undo
from osc_drp.engine import verdicts
from osc_drp.tests.unit.db import fixture
from osc_drp.tests.unit.db import test_write

STATUSES = st.sampled_from(
    [
        *('in-use', 'available', 'reserved', 'attaching', 'detaching'),
        *('error', 'in-use', 'available', 'available', 'extending'),
    ]
)
WORDS = st.sampled_from(['attached', 'attached', 'reserved', 'attaching'])


@st.composite
def states(draw):
    """Make what may be wrong with the records of two servers and a volume."""
    chance = st.integers(0, 3).map(lambda n: n == 0)
    users = []
    multiattach = draw(chance)
    for number in range(2 if draw(chance) else 1):
        users.append(
            {
                'vm_state': draw(
                    st.sampled_from(['stopped', 'stopped', 'active'])
                ),
                'mapped': not draw(chance),
                'root': number == 0 and draw(chance),
                'connected': not draw(chance),
                'row': not draw(chance),
                'row_gone': draw(chance),
                'same_id': not draw(chance),
                'word': draw(WORDS),
                'extra': draw(chance),
                'detaching': draw(chance),
            }
        )
    return draw(STATUSES), multiattach, users


def build(cloud, state):
    """Put a state into the databases; its volume."""
    status, multiattach, users = state
    attached = 'attached' if status == 'in-use' else 'detached'
    volume = cloud.volume(
        status=status, attach_status=attached, multiattach=multiattach
    )
    for number, user in enumerate(users):
        cell = f'cell{number + 1}'
        on = user['vm_state'] == 'active'
        server = cloud.server(
            f's{number}',
            cell,
            vm_state=user['vm_state'],
            power_state=1 if on else 4,
        )
        row = 'a-id-of-nobody'
        if user['row']:
            gone = {}
            if user['row_gone']:
                gone = {'deleted': True, 'deleted_at': fixture.now(-60)}
            row = cloud.row(
                volume,
                server,
                attach_status='detached' if gone else user['word'],
                **gone,
            )
        if user['extra']:
            cloud.row(volume, server, attach_status='attaching')
        if user['mapped']:
            info = '{"data": {}}' if user['connected'] else None
            cloud.mapping(
                server,
                volume,
                row if user['same_id'] else 'another-id',
                cell,
                connection_info=info,
                boot_index=0 if user['root'] else None,
            )
        if user['detaching']:
            cloud.action(server, 'detach_volume', cell, events=(False,))
    return volume


class TestAnywhere(unittest.TestCase):
    """What no repair and no undo ever does, wherever it is cut."""

    def setUp(self):
        super().setUp()
        self.cloud = fixture.CloudFixture()
        self.cloud.setUp()
        self.addCleanup(self.cloud.cleanUp)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.runs = journal.RunDirectory(pathlib.Path(directory.name))
        self.databases = client.Client(self.cloud.dbs)

    def repair(self):
        job = repair.Repair(
            self.databases, None, plan.Selection(), lambda text: None, settle=0
        )
        items = job.propose_settled()
        run = self.runs.begin('db repair', {})
        with contextlib.closing(run):
            job.carry_out(items, run)
        return items

    def undo(self):
        path = [r for r in self.runs.runs() if 'undo' not in r.name][-1]
        job = undo.Undo(
            self.databases,
            undo.entries(path),
            self.runs.undone(path.name),
            lambda text: None,
        )
        items = job.propose()
        run = self.runs.begin('db undo', {'run': path.name})
        with contextlib.closing(run):
            job.carry_out(items, run)

    def roots(self):
        bdm = tables.block_device_mapping
        found = []
        for cell in fixture.CELLS:
            with self.cloud.engines[f'nova_{cell}'].connect() as connection:
                found += connection.execute(
                    sa.select(bdm).where(bdm.c.boot_index == 0)
                ).all()
        return found

    def status(self, volume):
        return self.cloud.get('cinder', tables.volumes, volume)['status']

    @hypothesis.settings(
        max_examples=80,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(states(), st.integers(1, 60), st.booleans())
    def test_cut_anywhere(self, state, at, then_undo):
        self.cloud.clear()
        self.cloud.compute()
        self.cloud.compute(cell='cell2')
        self.cloud.cinder_service()
        volume = build(self.cloud, state)
        roots, before = self.roots(), self.status(volume)
        wrong = self.cloud.violations()

        def hold():
            self.assertEqual(roots, self.roots())
            # none that was not there when we came
            self.assertLessEqual(
                set(self.cloud.violations()), set(wrong), state
            )
            if before not in rules.KNOWN_STATUSES:
                self.assertEqual(before, self.status(volume))

        work = self.repair
        if then_undo:
            self.repair()
            hold()
            wrong = self.cloud.violations()
            work = self.undo
        crash = test_write.Crash(self.cloud.dbs, at)
        with crash, contextlib.suppress(test_write.Killed):
            work()
        hold()
        # run again, it finishes; and what was finished stays. A leftover of
        # one server may have hidden what heals another: so once more
        for _again in range(2):
            with contextlib.suppress(exceptions.Refused):
                work()
            hold()
        if not then_undo:
            left = verdicts.judge_all(read.observe(self.cloud.dbs))
            acting = {
                j.verdict.rule
                for j in left
                if not j.well and j.verdict.action is not rules.Action.FLAG
            }
            self.assertEqual(set(), acting, state)

    def test_an_undo_killed_everywhere_finishes(self):
        user = {
            'vm_state': 'stopped',
            'mapped': True,
            'root': False,
            'connected': True,
            'row': True,
            'row_gone': False,
            'same_id': True,
            'word': 'attached',
            'extra': False,
            'detaching': False,
        }
        broken = (
            ('detaching', False, [user]),
            ('reserved', False, [{**user, 'row_gone': True}]),
            ('in-use', False, [{**user, 'mapped': False}]),
            ('in-use', False, [{**user, 'extra': True}]),
            ('attaching', False, []),
        )
        at, fired = 0, True
        while fired:
            at += 11
            self.cloud.clear()
            self.cloud.compute()
            self.cloud.cinder_service()
            for state in broken:
                build(self.cloud, state)
            before = self.cloud.dump()
            acted = [i for i in self.repair() if i.do in plan.ACTING]
            self.assertEqual(len(broken), len(acted))
            self.assertNotEqual(before, self.cloud.dump())
            crash = test_write.Crash(self.cloud.dbs, at)
            with crash, contextlib.suppress(test_write.Killed):
                self.undo()
            fired = crash.fired
            self.undo()
            self.assertEqual(before, self.cloud.dump(), at)
