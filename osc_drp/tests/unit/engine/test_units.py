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

"""Units of database work: what was done before a failure stays done."""

import unittest

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import plan
from osc_drp.engine import units


class ByVolumeTest(unittest.TestCase):
    """Lanes of one volume each."""

    def test_a_journal_that_fails_spoils_no_earlier_outcome(self) -> None:
        items = [
            plan.Item(server, 'v1', plan.Do.RESET, 'R1', '')
            for server in ('s1', 's2')
        ]

        def work(item: plan.Item) -> apply.Outcome:
            if item.server_id == 's2':
                raise exceptions.DrpError('the disk is full')
            return apply.Outcome(item.server_id, 'v1', apply.DONE, 'reset')

        found = units.by_volume(items, work, lambda message: None)
        self.assertEqual(
            [('s1', 'done', 'reset'), ('s2', 'failed', 'the disk is full')],
            [(o.server_id, o.status, o.what) for o in found],
        )
