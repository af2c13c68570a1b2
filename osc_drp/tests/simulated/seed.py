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

"""The lab's seed (lab/README.md), simulated: the same names, disks, states."""

from osc_drp.engine import facts
from osc_drp.engine import mapmaker
from osc_drp.tests.simulated import world as world_module

#: The servers that run before the power goes.
RAN = ('web1', 'db1', 'bfv1', 'cl1', 'cl2', 'idle1', 'app1', 'far1', 'far2')

_SERVERS = (
    # name, project, cell, host
    ('web1', 'blue', 'cell1', 'compute1'),
    ('db1', 'blue', 'cell1', 'compute1'),
    ('bfv1', 'blue', 'cell1', 'compute1'),
    ('cl1', 'blue', 'cell1', 'compute1'),
    ('cl2', 'blue', 'cell2', 'compute2'),
    ('shelf1', 'blue', 'cell1', None),
    ('idle1', 'blue', 'cell2', 'compute2'),
    ('app1', 'green', 'cell1', 'compute1'),
    ('off1', 'green', 'cell1', 'compute1'),
    ('far1', 'green', 'cell2', 'compute2'),
    ('far2', 'green', 'cell2', 'compute2'),
)
_VOLUMES = (
    # server, volume, device
    ('web1', 'web1-data', '/dev/vdb'),
    ('db1', 'db1-data', '/dev/vdb'),
    ('db1', 'db1-log', '/dev/vdc'),
    ('db1', 'db1-backup', '/dev/vdd'),
    ('bfv1', 'bfv1-root', '/dev/vda'),
    ('bfv1', 'bfv1-data', '/dev/vdb'),
    ('cl1', 'cluster-shared', '/dev/vdb'),
    ('cl2', 'cluster-shared', '/dev/vdb'),
    ('shelf1', 'shelf1-data', '/dev/vdb'),
    ('app1', 'app1-data', '/dev/vdb'),
    ('app1', 'app1-scratch', '/dev/vdc'),
    ('off1', 'off1-data', '/dev/vdb'),
    ('far1', 'far1-data', '/dev/vdb'),
    ('far1', 'far1-log', '/dev/vdc'),
    ('far2', 'far2-data', '/dev/vdb'),
)


def make(*servers: str) -> world_module.World:
    """Make the cloud while it runs; only some of its servers, if named."""
    world = world_module.World()
    for host in ('compute1', 'compute2'):
        world.add_compute(host)
    world.records.up['cinder-volume', world_module.BACKEND] = True
    projects, ids = {}, {}
    for name, project, cell, host in _SERVERS:
        if servers and name not in servers:
            continue
        projects[name] = project
        values = {'image_ref': ''} if name == 'bfv1' else {}
        ids[name] = world.add_server(
            name, cell, host, project_id=project, **values
        )
    for name, volume, device in _VOLUMES:
        if name in ids:
            _attach(world, ids[name], name, volume, device, projects[name])
    world.add_volume('spare')
    world.add_volume('broken', status='error', project_id='green')
    world.sleep(60)
    for name, end in (('off1', _user_stops), ('shelf1', _shelved)):
        if name in ids:
            end(world, ids[name])
    world.sleep(60)
    return world


def _attach(
    world: world_module.World,
    server_id: str,
    name: str,
    volume: str,
    device: str,
    project: str,
) -> None:
    try:
        volume_id = world.volume_id(volume)
    except StopIteration:
        volume_id = world.add_volume(
            volume,
            project_id=project,
            multiattach=volume == 'cluster-shared',
        )
    values: dict[str, object] = {}
    if volume == 'bfv1-root':
        values = {'boot_index': 0, 'delete_on_termination': True}
    elif volume == 'app1-scratch':
        values = {'tag': 'scratch', 'delete_on_termination': True}
    world.add_attachment(server_id, volume_id, device, **values)


def _user_stops(world: world_module.World, server_id: str) -> None:
    world.stop(server_id, world_module.USER)
    world.sleep(10)


def _shelved(world: world_module.World, server_id: str) -> None:
    """Offloaded: its volumes are reserved, nova's record stays as it is."""
    _cell, server = world._server(server_id)
    server.update(vm_state='shelved_offloaded', power_state=facts.SHUTDOWN)
    for _c, mapping in world.records.live_mappings(server_id=server_id):
        for row in world.records.live_rows(mapping['volume_id']):
            row.update(
                attach_status='reserved',
                connector=None,
                attached_host=None,
                mountpoint=None,
            )
        world._volume(mapping['volume_id']).update(
            status='reserved', attach_status='reserved'
        )


def take_map(world: world_module.World) -> facts.CloudMap:
    """Take the map as `drp attachments save` does from the databases."""
    return mapmaker.make_map(world.records.observe(world.now()), 'simulated')
