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

import unittest

from osc_drp.cloud import act
from osc_drp import exceptions
from osc_drp.tests.unit.cloud import fakes

SERVER, VOLUME = fakes.uid(1), fakes.uid(101)


class TestAct(unittest.TestCase):
    def setUp(self):
        self.cloud = fakes.FakeCloud()
        self.api = fakes.FakeApi(self.cloud)

    def sent(self, path, body, version):
        """Exactly one request was sent, this one."""
        ((_service, method, its_path, _params, its_body),) = self.cloud.seen
        self.assertEqual(('POST', path, body), (method, its_path, its_body))
        self.assertEqual(version, self.api.versions[-1][2])

    def test_start(self):
        act.start(self.api, SERVER)
        self.sent(f'servers/{SERVER}/action', {'os-start': None}, '2.1')

    def test_stop(self):
        act.stop(self.api, SERVER)
        self.sent(f'servers/{SERVER}/action', {'os-stop': None}, '2.1')

    def test_hard_reboot(self):
        act.hard_reboot(self.api, SERVER)
        body = {'reboot': {'type': 'HARD'}}
        self.sent(f'servers/{SERVER}/action', body, '2.1')

    def test_lock(self):
        act.lock(self.api, SERVER, 'drp run 7')
        body = {'lock': {'locked_reason': 'drp run 7'}}
        self.sent(f'servers/{SERVER}/action', body, '2.73')

    def test_unlock(self):
        act.unlock(self.api, SERVER)
        self.sent(f'servers/{SERVER}/action', {'unlock': None}, '2.1')

    def test_attach(self):
        device = act.attach(self.api, SERVER, VOLUME, '/dev/vdb', None, False)
        self.assertEqual('/dev/vdc', device)
        body = {'volumeAttachment': {'volumeId': VOLUME, 'device': '/dev/vdb'}}
        self.sent(f'servers/{SERVER}/os-volume_attachments', body, '2.100')

    def test_attach_with_all(self):
        self.api.compute_max = (2, 96)
        act.attach(self.api, SERVER, VOLUME, None, 'data', True)
        body = {
            'volumeAttachment': {
                'volumeId': VOLUME,
                'tag': 'data',
                'delete_on_termination': True,
            }
        }
        self.sent(f'servers/{SERVER}/os-volume_attachments', body, '2.96')

    def test_attach_without_a_device_in_the_answer(self):
        self.cloud.instead['POST', '.*'] = {}
        self.assertIsNone(
            act.attach(self.api, SERVER, VOLUME, None, None, False)
        )

    def test_reset_status(self):
        act.reset_volume_status(self.api, VOLUME, 'available', 'detached')
        body = {
            'os-reset_status': {
                'status': 'available',
                'attach_status': 'detached',
            }
        }
        self.sent(f'volumes/{VOLUME}/action', body, '3.0')

    def test_reset_status_alone(self):
        act.reset_volume_status(self.api, VOLUME, 'available')
        body = {'os-reset_status': {'status': 'available'}}
        self.sent(f'volumes/{VOLUME}/action', body, '3.0')

    def test_refused(self):
        words = f"Cannot 'start' instance {SERVER} while it is in vm_state x"
        self.cloud.instead['POST', '.*'] = fakes.Refusal(409, words)
        with self.assertRaisesRegex(exceptions.Conflict, 'vm_state x'):
            act.start(self.api, SERVER)
