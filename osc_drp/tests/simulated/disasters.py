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

"""Clouds that lost their power, and what people do while they recover."""

import typing as ty

from osc_drp.engine import facts
from osc_drp.tests.simulated import seed
from osc_drp.tests.simulated import world as world_module

World: ty.TypeAlias = world_module.World
Made: ty.TypeAlias = tuple[World, facts.CloudMap]


def lost(*servers: str) -> Made:
    """Make a cloud that lost its power a while ago, all agreeing."""
    world = seed.make(*servers)
    cloud_map = seed.take_map(world)
    world.power_loss()
    world.power_on()
    world.sleep(70)
    return world, cloud_map


def broken(*servers: str) -> Made:
    """The same, and cinder forgot or mistook much of it."""
    world, cloud_map = lost(*servers)
    for name in ('web1-data', 'bfv1-root', 'cluster-shared'):
        world.reset_volume_status(
            world.volume_id(name), 'available', 'detached'
        )
    # users were at it when the power went
    world._volume(world.volume_id('app1-data'))['status'] = 'detaching'
    volume = world._volume(world.volume_id('app1-scratch'))
    volume.update(status='attaching', attach_status='attaching')
    for row in world.records.live_rows(volume['id']):
        row['attach_status'] = 'attaching'
    # an attach that never finished
    spare, idle = world.volume_id('spare'), world.server_id('idle1')
    cell, _row = world._server(idle)
    row = world._reserve(idle, world._volume(spare))
    mapping = world._new_mapping(cell, idle, spare, '/dev/vdb')
    mapping['attachment_id'] = row['id']
    return world, cloud_map


# -- what people do meanwhile; each gives what ends otherwise because of it

#: Servers and volumes.
Changed: ty.TypeAlias = tuple[set[str], set[str]]
Change: ty.TypeAlias = ty.Callable[[World], Changed]


def nothing(world: World) -> Changed:
    """Nobody does anything."""
    return set(), set()


def power_goes_again(world: World) -> Changed:
    world.power_loss()
    world.sleep(300)
    world.power_on()
    return set(), set()


def power_goes_and_nova_looked(world: World) -> Changed:
    power_goes_again(world)
    world.sleep(90)
    return set(), set()


def user_stops(world: World) -> Changed:
    world.stop(world.server_id('web1'))
    world.sleep(10)
    return {'web1'}, {'web1-data'}


def user_starts(world: World) -> Changed:
    """Perhaps between the two halves of a reset: then without its disk."""
    world.start(world.server_id('web1'))
    world.sleep(10)
    return {'web1'}, {'web1-data'}


def user_detaches(world: World) -> Changed:
    world.detach(world.server_id('app1'), world.volume_id('app1-data'))
    world.sleep(10)
    return {'app1'}, {'app1-data', 'app1-scratch'}


def user_deletes_server(world: World) -> Changed:
    world.delete_server(world.server_id('web1'))
    return {'web1'}, {'web1-data'}


def user_deletes_volume(world: World) -> Changed:
    world.delete_volume(world.volume_id('web1-data'))
    return {'web1'}, {'web1-data'}


def user_attaches_elsewhere(world: World) -> Changed:
    world.attach(world.server_id('idle1'), world.volume_id('web1-data'))
    world.sleep(10)
    return {'web1', 'idle1'}, {'web1-data'}


def user_attaches_it_himself(world: World) -> Changed:
    """And nothing is left to do."""
    world.attach(world.server_id('web1'), world.volume_id('web1-data'))
    world.sleep(10)
    return {'web1'}, {'web1-data'}


def admin_locks(world: World) -> Changed:
    """Somebody else's lock stays."""
    world.set_lock(world.server_id('web1'), world_module.ADMIN, 'hands off')
    return {'web1'}, set()


def guest_dies(world: World) -> Changed:
    """And nova has not looked yet."""
    world.guest_off(world.server_id('web1'))
    return {'web1'}, {'web1-data'}


CHANGES: tuple[Change, ...] = (
    power_goes_again,
    power_goes_and_nova_looked,
    user_stops,
    user_starts,
    user_detaches,
    user_deletes_server,
    user_deletes_volume,
    user_attaches_elsewhere,
    user_attaches_it_himself,
    admin_locks,
    guest_dies,
)


# -- how it must end after that


def _users(world: World, volume: str) -> set[str]:
    """Name the servers that either record gives a volume to."""
    seen = world.records.observe(world.now())
    names = {s.id: s.name for s in seen.servers.values()}
    wanted = {v.id for v in seen.volumes.values() if v.name == volume}
    return {
        names.get(one.server_id or '', 'nobody')
        for one in (*seen.mappings, *seen.rows)
        if one.volume_id in wanted and not one.deleted
    }


def respected(world: World, change: Change) -> str:
    """Say what of somebody's will was not respected; '' if all was."""
    servers = {
        s.name: s for s in world.records.observe(world.now()).servers.values()
    }
    if change is user_stops and servers['web1'].vm_state != 'stopped':
        return 'a server that its user stopped was started'
    if change is user_detaches and _users(world, 'app1-data'):
        return 'a volume that its user detached was attached'
    # deleted between the two halves of a reset it leaves cinder's row to
    # nobody: told, and a case for db repair (R4)
    if change is user_deletes_server and (
        _users(world, 'web1-data') - {'nobody'}
    ):
        return "a deleted server's volume has another user"
    if change is user_attaches_elsewhere and (
        _users(world, 'web1-data') != {'idle1'}
    ):
        return 'a volume was taken from another server'
    if change is admin_locks and (
        not servers['web1'].locked
        or world.reasons[servers['web1'].id] != 'hands off'
    ):
        return "somebody else's lock was released"
    return ''
