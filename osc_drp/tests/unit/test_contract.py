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

"""The simulated cloud keeps the contract that the lab keeps."""

import unittest

from osc_drp.tests import contract
from osc_drp.tests.simulated import bench


class TestSimulatedCloud(unittest.TestCase):
    """One test: the cases share one cloud, and have an order."""

    def test_contract(self):
        cloud = bench.Bench()
        names = unittest.TestLoader().getTestCaseNames(contract.Contract)
        self.assertGreater(len(names), 15)
        with cloud.process.running():
            for name in names:
                case = contract.Contract(name)
                case.bench = cloud
                with self.subTest(name):
                    case.debug()
