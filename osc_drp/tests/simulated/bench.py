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

"""The simulated cloud as the contract suite wants it (tests/contract.py)."""

import contextlib
import json
import typing as ty

from osc_drp import exceptions
from osc_drp.cloud import client
from osc_drp.tests import contract
from osc_drp.tests.simulated import process
from osc_drp.tests.simulated import records
from osc_drp.tests.simulated import seed
from osc_drp.tests.simulated import world as world_module
from osc_drp.tests.unit.cloud import fakes


class User:
    """Asks the simulated nova and cinder by names."""

    def __init__(self, world: world_module.World, user_id: str) -> None:
        self._world = world
        self.id = user_id

    def _ask(self, work: ty.Callable[..., ty.Any], *args: ty.Any) -> ty.Any:
        try:
            work(*args)
        except world_module.Refusal as error:
            return contract.Answer(error.status, str(error))
        except exceptions.NotFound as error:
            return contract.Answer(404, str(error))
        except exceptions.ApiError as error:
            return contract.Answer(403, str(error))
        return contract.Answer(202, '')

    def start(self, server: str) -> contract.Answer:
        return self._ask(
            self._world.start, self._world.server_id(server), self.id
        )

    def stop(self, server: str) -> contract.Answer:
        return self._ask(
            self._world.stop, self._world.server_id(server), self.id
        )

    def hard_reboot(self, server: str) -> contract.Answer:
        return self._ask(
            self._world.hard_reboot, self._world.server_id(server), self.id
        )

    def lock(self, server: str, reason: str = '') -> contract.Answer:
        return self._ask(
            self._world.set_lock,
            self._world.server_id(server),
            self.id,
            reason or None,
        )

    def unlock(self, server: str) -> contract.Answer:
        return self._ask(
            self._world.unlock, self._world.server_id(server), self.id
        )

    def attach(self, server: str, volume: str) -> contract.Answer:
        return self._ask(
            self._world.attach,
            self._world.server_id(server),
            self._world.volume_id(volume),
            self.id,
        )

    def detach(self, server: str, volume: str) -> contract.Answer:
        return self._ask(
            self._world.detach,
            self._world.server_id(server),
            self._world.volume_id(volume),
            self.id,
        )

    def delete_volume(self, volume: str) -> contract.Answer:
        return self._ask(
            self._world.delete_volume, self._world.volume_id(volume)
        )

    def reset_status(
        self, volume: str, status: str, attach_status: str = ''
    ) -> contract.Answer:
        return self._ask(
            self._world.reset_volume_status,
            self._world.volume_id(volume),
            status,
            attach_status or None,
        )


class Bench:
    """The simulated seed after a power loss, its computes still off."""

    def __init__(self) -> None:
        self.world = seed.make()
        self.world.power_loss()
        self.process = process.Process(self.world)
        self.cloud = self.process.cloud
        self.databases = self.process.databases
        self.user = User(self.world, world_module.USER)
        self.admin = User(self.world, world_module.ADMIN)
        self.server_id = self.world.server_id
        self.volume_id = self.world.volume_id

    def computes_start(self) -> None:
        self.world.power_on()

    def until(
        self, so: ty.Callable[[], ty.Any], what: str, seconds: float = 90
    ) -> None:
        end = self.world.clock.seconds + seconds
        while not so():
            if self.world.clock.seconds > end:
                raise AssertionError(f'not within {seconds} s: {what}')
            self.world.sleep(0.3)

    def guest(self, server: str) -> tuple[bool, list[tuple[str, str]]] | None:
        guest = self.world.guests.get(self.world.server_id(server))
        if guest is None:
            return None
        volumes = self.world.records.tables[records.CINDER, 'volumes']
        return guest.runs, [
            (device, volumes[volume_id]['display_name'])
            for device, volume_id in guest.volumes
        ]

    def guest_off(self, server: str) -> None:
        self.world.guest_off(self.world.server_id(server))

    @contextlib.contextmanager
    def cinder_refuses(self) -> ty.Iterator[None]:
        self.world.cinder_api = 'refused'
        try:
            yield
        finally:
            self.world.cinder_api = 'up'

    @contextlib.contextmanager
    def small_pages(self) -> ty.Iterator[client.Client]:
        """Read the same cloud over HTTP's JSON, with the real reader."""
        api: ty.Any = fakes.FakeApi(as_answers(self.world, max_limit=3))
        yield client.Client(api)


def as_answers(world: world_module.World, max_limit: int) -> ty.Any:
    """Make nova's and cinder's JSON of a simulated cloud."""
    cloud = fakes.FakeCloud(max_limit)
    rows = world.records
    cloud.nova_services = [
        {'binary': binary, 'host': host, 'state': 'up' if up else 'down'}
        for (binary, host), up in rows.up.items()
        if binary == 'nova-compute'
    ]
    cloud.cinder_services = [
        {'binary': binary, 'host': host, 'state': 'up' if up else 'down'}
        for (binary, host), up in rows.up.items()
        if binary != 'nova-compute'
    ]
    for cell in records.CELLS:
        for s in rows.table(cell, 'instances'):
            if s['deleted']:
                continue
            _add_server(cloud, s, rows)
    for v in rows.table(records.CINDER, 'volumes'):
        if not v['deleted']:
            cloud.volumes[v['id']] = {
                'id': v['id'],
                'name': v['display_name'],
                'status': v['status'],
                'multiattach': v['multiattach'],
                'created_at': fakes.OLD,
                'migration_status': v['migration_status'],
                'os-vol-tenant-attr:tenant_id': v['project_id'],
                'os-vol-host-attr:host': v['host'],
            }
    for r in rows.live_rows():
        cloud.rows[r['id']] = {
            'id': r['id'],
            'volume_id': r['volume_id'],
            'instance': r['instance_uuid'],
            'status': r['attach_status'],
            'device': r['mountpoint'],
            'host': json.loads(r['connector'] or '{}').get('host'),
        }
    return cloud


def _add_server(cloud: ty.Any, s: records.Row, rows: records.Records) -> None:
    cloud.servers[s['uuid']] = {
        'id': s['uuid'],
        'name': s['display_name'],
        'status': 'ANY',
        'tenant_id': s['project_id'],
        'created': fakes.OLD,
        'image': {'id': s['image_ref']} if s['image_ref'] else '',
        'locked': s['locked'],
        'metadata': {},
        'OS-EXT-SRV-ATTR:host': s['host'],
        'OS-EXT-SRV-ATTR:root_device_name': s['root_device_name'],
        'OS-EXT-STS:vm_state': s['vm_state'],
        'OS-EXT-STS:task_state': s['task_state'],
        'OS-EXT-STS:power_state': s['power_state'],
        'OS-SRV-USG:launched_at': records.text(s['launched_at']),
    }
    cloud.mappings[s['uuid']] = [
        {
            'volumeId': m['volume_id'],
            'serverId': s['uuid'],
            'device': m['device_name'],
            'tag': m['tag'],
            'delete_on_termination': m['delete_on_termination'],
            'attachment_id': m['attachment_id'],
            'bdm_uuid': m['uuid'],
        }
        for _cell, m in rows.live_mappings(server_id=s['uuid'])
    ]
    cloud.actions[s['uuid']] = [
        {
            'instance_uuid': a.server_id,
            'action': a.action,
            'request_id': a.request_id,
            'user_id': a.user_id,
            'start_time': a.start_time,
        }
        for a in reversed(rows.actions({s['uuid']}))
    ]


if ty.TYPE_CHECKING:

    def _fits(bench: Bench) -> contract.Bench:
        return bench
