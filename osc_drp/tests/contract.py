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

"""What nova, cinder and their databases do: one suite for both clouds.

Run against the simulated cloud with the unit tests, and against the real
one with the lab's (lab/tests/test_contract.py). Where they differ, the
simulator is wrong. The cases have the seed of the lab and one power loss in
common, and run in the order of their names; each has servers of its own.
"""

import contextlib
import typing as ty
import unittest

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import ports
from osc_drp.tests.simulated import seed


class Answer(ty.NamedTuple):
    """What a service said to somebody's request."""

    status: int
    text: str


class User(ty.Protocol):
    """Somebody who asks for things, by the names of servers and volumes."""

    id: str

    def start(self, server: str) -> Answer: ...

    def stop(self, server: str) -> Answer: ...

    def hard_reboot(self, server: str) -> Answer: ...

    def lock(self, server: str, reason: str = '') -> Answer: ...

    def unlock(self, server: str) -> Answer: ...

    def attach(self, server: str, volume: str) -> Answer: ...

    def detach(self, server: str, volume: str) -> Answer: ...

    def delete_volume(self, volume: str) -> Answer: ...

    def reset_status(
        self, volume: str, status: str, attach_status: str = ''
    ) -> Answer: ...


class Bench(ty.Protocol):
    """A cloud with the lab's seed, and what is done to it from outside."""

    cloud: ports.Cloud
    databases: ports.Databases
    #: The owner of every server that a case uses it for, and the operator.
    user: User
    admin: User

    def server_id(self, name: str) -> str: ...

    def volume_id(self, name: str) -> str: ...

    def computes_start(self) -> None:
        """Start the nova-computes, which were off since the loss."""

    def until(
        self, so: ty.Callable[[], ty.Any], what: str, seconds: float = 90
    ) -> None:
        """Wait."""

    def guest(self, server: str) -> tuple[bool, list[tuple[str, str]]] | None:
        """What the hypervisor has: runs, and (device, volume); or nothing."""

    def guest_off(self, server: str) -> None: ...

    def cinder_refuses(self) -> contextlib.AbstractContextManager[None]:
        """Refuse connections at cinder's API."""

    def small_pages(self) -> contextlib.AbstractContextManager[ports.Cloud]:
        """Give answers in pages of a few items."""


class Contract(unittest.TestCase):
    """The cases."""

    bench: Bench
    maxDiff = None

    # -- asking

    def server(self, name: str) -> facts.Server:
        return self.bench.cloud.server(self.bench.server_id(name))

    def volume(self, name: str) -> facts.Volume:
        return self.bench.cloud.volume(self.bench.volume_id(name))

    def mapped(self, name: str) -> dict[str, facts.Mapping]:
        """Nova's record, by device."""
        found = self.bench.cloud.mappings_of(self.bench.server_id(name))
        return {m.device or '': m for m in found}

    def rows(self, name: str) -> list[tuple[str, str]]:
        """Cinder's record: (volume id, status)."""
        found = self.bench.cloud.rows_of(self.bench.server_id(name))
        return sorted((r.volume_id, r.attach_status) for r in found)

    def newest(self, name: str) -> facts.Action:
        return self.bench.cloud.actions(self.bench.server_id(name))[0]

    def pair(self, server: str, volume: str) -> facts.Pair:
        """What the databases say of a server having a volume."""
        ids = self.bench.server_id(server), self.bench.volume_id(volume)
        return next(
            p
            for p in facts.pairs(self.bench.databases.observe())
            if (p.server_id, p.volume_id) == ids
        )

    def until_off(self, name: str) -> None:
        self.bench.until(
            lambda: self.idle(name, 'stopped'), f'{name} is stopped'
        )

    def until_on(self, name: str) -> None:
        self.bench.until(lambda: self.idle(name, 'active'), f'{name} runs')

    def idle(self, name: str, vm_state: str) -> bool:
        server = self.server(name)
        return server.vm_state == vm_state and server.task_state is None

    def until_status(self, name: str, status: str) -> None:
        self.bench.until(
            lambda: self.volume(name).status == status, f'{name} is {status}'
        )

    def until_unmapped(self, server: str, volume: str) -> None:
        wanted = self.bench.volume_id(volume)
        self.bench.until(
            lambda: (
                wanted
                not in {m.volume_id for m in self.mapped(server).values()}
            ),
            f'nova drops {volume}',
        )

    def refused(self, answer: Answer, status: int, text: str) -> None:
        self.assertEqual(status, answer.status, answer)
        self.assertIn(text, answer.text)

    def accepted(self, answer: Answer) -> None:
        self.assertIn(answer.status, (200, 202), answer)

    def wanted(
        self, server: str, volume: str, **changes: ty.Any
    ) -> facts.MapAttachment:
        values: dict[str, ty.Any] = {
            'server_id': self.bench.server_id(server),
            'volume_id': self.bench.volume_id(volume),
            'device': None,
            'attachment_id': None,
            'cinder_attachment_id': None,
            'recorded_by': 'both',
            'root': False,
            'tag': None,
            'delete_on_termination': False,
            'multiattach': False,
            **changes,
        }
        return facts.MapAttachment(**values)

    # -- the cases

    def test_00_both_readings_of_the_seed(self) -> None:
        """After the loss, before nova has looked: all as it was."""
        world = seed.make()
        world.power_loss()
        wanted = in_words(world.records.observe(world.now()))
        self.assertEqual(wanted, in_words(self.bench.databases.observe()))
        for key in ('connected', 'connector', 'cell', 'attach_status'):
            for lines in wanted.values():
                for line in lines.values():
                    line.pop(key, None)
        found = in_words(self.bench.cloud.observe())
        for lines in found.values():
            for line in lines.values():
                for key in ('connected', 'connector', 'cell', 'attach_status'):
                    line.pop(key, None)
        self.assertEqual(wanted, found)

    def test_01_power_states_over_time(self) -> None:
        """Running by nova's word, until nova looks and stops them."""
        web1 = self.server('web1')
        self.assertEqual(
            ('active', facts.RUNNING, None),
            (web1.vm_state, web1.power_state, web1.task_state),
        )
        self.refused(self.bench.user.start('web1'), 409, 'vm_state active')
        before = self.bench.cloud.observe()
        self.bench.computes_start()
        for name in seed.RAN:
            self.until_off(name)
        renewed = in_words(self.bench.cloud.renew(before))
        self.assertEqual(in_words(self.bench.cloud.observe()), renewed)
        for name in seed.RAN:
            self.assertEqual(facts.SHUTDOWN, self.server(name).power_state)
            newest = self.newest(name)
            self.assertEqual(('stop', None), (newest.action, newest.user_id))
        self.assertEqual('stopped', self.server('off1').vm_state)
        self.assertEqual(
            ('stop', True),
            (self.newest('off1').action, bool(self.newest('off1').user_id)),
        )
        self.assertEqual('shelved_offloaded', self.server('shelf1').vm_state)

    def test_02_start(self) -> None:
        log = len(self.bench.cloud.actions(self.bench.server_id('web1')))
        self.bench.cloud.start(self.bench.server_id('web1'))
        self.refused(self.bench.admin.start('web1'), 409, "Cannot 'start'")
        self.until_on('web1')
        self.assertEqual(facts.RUNNING, self.server('web1').power_state)
        self.assertEqual(
            (True, [('/dev/vdb', 'web1-data')]), self.bench.guest('web1')
        )
        with self.assertRaisesRegex(exceptions.Conflict, 'vm_state active'):
            self.bench.cloud.start(self.bench.server_id('web1'))
        newest = self.newest('web1')
        self.assertEqual(
            ('start', self.bench.cloud.user_id, log + 1),
            (
                newest.action,
                newest.user_id,
                len(self.bench.cloud.actions(newest.server_id)),
            ),
        )
        self.assertIs(
            True, self.bench.cloud.diagnostics_running(newest.server_id)
        )

    def test_03_stop(self) -> None:
        self.bench.cloud.stop(self.bench.server_id('web1'))
        self.until_off('web1')
        self.assertEqual(
            ('stop', self.bench.cloud.user_id),
            (self.newest('web1').action, self.newest('web1').user_id),
        )
        self.refused(self.bench.admin.stop('web1'), 409, 'vm_state stopped')
        self.accepted(self.bench.user.start('web1'))
        self.until_on('web1')
        self.assertEqual(self.bench.user.id, self.newest('web1').user_id)

    def test_04_attach_and_attach_again(self) -> None:
        """On the next free device, whatever was asked for."""
        device = self.bench.cloud.attach(
            self.wanted('web1', 'spare', device='/dev/vdx')
        )
        self.assertEqual('/dev/vdc', device)
        self.bench.until(
            lambda: (
                (self.bench.volume_id('spare'), 'attached')
                in self.rows('web1')
            ),
            'cinder says attached',
        )
        # the row first, the volume after it: two commits
        self.until_status('spare', 'in-use')
        mapping = self.mapped('web1')['/dev/vdc']
        self.assertEqual(
            (None, False, False),
            (mapping.tag, mapping.delete_on_termination, mapping.root),
        )
        rows = self.bench.cloud.rows_of(self.bench.server_id('web1'))
        self.assertIn(mapping.attachment_id, {r.id for r in rows})
        self.refused(
            self.bench.admin.attach('web1', 'spare'),
            400,
            'is already attached to instances: ',
        )
        with self.assertRaisesRegex(exceptions.Conflict, 'already attached'):
            self.bench.cloud.attach(self.wanted('web1', 'spare'))
        self.refused(
            self.bench.user.delete_volume('spare'), 400, 'Volume status must'
        )
        self.assertEqual('attach_volume', self.newest('web1').action)

    def test_05_detach(self) -> None:
        self.accepted(self.bench.user.detach('web1', 'spare'))
        self.until_status('spare', 'available')
        self.until_unmapped('web1', 'spare')
        self.assertEqual(
            ('detach_volume', self.bench.user.id),
            (self.newest('web1').action, self.newest('web1').user_id),
        )
        self.assertEqual(
            (True, [('/dev/vdb', 'web1-data')]), self.bench.guest('web1')
        )
        self.refused(
            self.bench.user.detach('web1', 'spare'), 404, 'not attached'
        )
        self.refused(
            self.bench.user.detach('bfv1', 'bfv1-root'),
            400,
            'Cannot detach a root device volume',
        )

    def test_06_attach_while_nova_maps_it(self) -> None:
        """Cinder's half of a reset alone: split brain."""
        self.accepted(
            self.bench.admin.reset_status('db1-data', 'available', 'detached')
        )
        self.assertEqual('available', self.volume('db1-data').status)
        self.assertEqual(
            {'/dev/vdb', '/dev/vdc', '/dev/vdd'}, {*self.mapped('db1')}
        )
        self.assertNotIn(
            self.bench.volume_id('db1-data'),
            {volume for volume, _status in self.rows('db1')},
        )
        self.refused(
            self.bench.admin.attach('db1', 'db1-data'),
            400,
            'is already attached to instances: ',
        )
        self.refused(
            self.bench.user.detach('db1', 'db1-data'),
            400,
            'Unable to detach volume',
        )
        self.refused(
            self.bench.admin.reset_status('db1-data', 'in-use', 'attached'),
            400,
            'Cannot reset-state to in-use',
        )

    def test_07_hard_reboot_drops_what_dangles(self) -> None:
        self.accepted(self.bench.admin.hard_reboot('db1'))
        self.until_on('db1')
        self.assertEqual('reboot', self.newest('db1').action)
        self.assertEqual({'/dev/vdc', '/dev/vdd'}, {*self.mapped('db1')})
        self.assertEqual(
            (True, [('/dev/vdc', 'db1-log'), ('/dev/vdd', 'db1-backup')]),
            self.bench.guest('db1'),
        )
        device = self.bench.cloud.attach(
            self.wanted('db1', 'db1-data', tag='t', delete_on_termination=True)
        )
        self.assertEqual('/dev/vdb', device)
        self.until_status('db1-data', 'in-use')
        mapping = self.mapped('db1')['/dev/vdb']
        self.assertEqual(
            ('t', True), (mapping.tag, mapping.delete_on_termination)
        )

    def test_08_hard_reboot_without_cinder(self) -> None:
        """It fails, the mapping stays, and the answer does not tell."""
        self.accepted(
            self.bench.admin.reset_status('far1-data', 'available', 'detached')
        )
        with self.bench.cinder_refuses():
            self.accepted(self.bench.admin.hard_reboot('far1'))
            self.until_off('far1')
        self.assertEqual({'/dev/vdb', '/dev/vdc'}, {*self.mapped('far1')})
        # and nothing is lost: repaired, it starts with both
        self.repair('far1', 'far1-data')
        self.bench.cloud.start(self.bench.server_id('far1'))
        self.until_on('far1')
        self.assertEqual(
            (True, [('/dev/vdb', 'far1-data'), ('/dev/vdc', 'far1-log')]),
            self.bench.guest('far1'),
        )

    def test_09_hard_reboot_drops_a_root(self) -> None:
        self.accepted(
            self.bench.admin.reset_status('bfv1-root', 'available', 'detached')
        )
        self.assertTrue(self.mapped('bfv1')['/dev/vda'].root)
        self.accepted(self.bench.admin.hard_reboot('bfv1'))
        self.bench.until(
            lambda: self.server('bfv1').task_state is None, 'nova is done'
        )
        self.assertEqual({'/dev/vdb'}, {*self.mapped('bfv1')})

    def test_10_repair(self) -> None:
        """Cinder's row comes back with its id, and the server starts."""
        self.accepted(
            self.bench.admin.reset_status('far2-data', 'available', 'detached')
        )
        pair = self.pair('far2', 'far2-data')
        self.assertEqual(((), 1), (pair.rows, len(pair.old_rows)))
        mapping = self.repair('far2', 'far2-data')
        found = self.pair('far2', 'far2-data')
        assert found.volume is not None
        self.assertEqual(
            ('in-use', 'attached'),
            (found.volume.status, found.volume.attach_status),
        )
        self.assertEqual(
            [(mapping.attachment_id, 'attached', True)],
            [(r.id, r.attach_status, r.connector) for r in found.rows],
        )
        self.assertEqual((mapping,), found.mappings)
        self.bench.cloud.start(self.bench.server_id('far2'))
        self.until_on('far2')
        self.assertEqual(
            (True, [('/dev/vdb', 'far2-data')]), self.bench.guest('far2')
        )

    def repair(self, server: str, volume: str) -> facts.Mapping:
        pair = self.pair(server, volume)
        mapping = pair.mapping
        assert mapping is not None and mapping.attachment_id is not None
        self.bench.databases.repair(
            pair, mapping.attachment_id, self.no_doubt, self.no_record
        )
        return mapping

    def no_doubt(self, seen: facts.Observation) -> None:
        self.judged = seen

    def no_record(self, old: ty.Any) -> None:
        self.old = old

    def test_11_reset_both_records(self) -> None:
        """Nova's mapping and cinder's row go; the volume is free."""
        before = self.pair('app1', 'app1-data')
        self.bench.databases.reset(before, self.no_doubt, self.no_record)
        self.assertEqual([before.server_id], [*self.judged.servers])
        self.assertEqual('available', self.volume('app1-data').status)
        self.assertEqual({'/dev/vdc'}, {*self.mapped('app1')})
        seen = self.bench.databases.observe()
        self.assertNotIn(
            (before.server_id, before.volume_id),
            {(p.server_id, p.volume_id) for p in facts.pairs(seen)},
        )
        with self.assertRaises(exceptions.Changed):
            self.bench.databases.reset(before, self.no_doubt, self.no_record)

    def test_12_undo(self) -> None:
        pair = self.pair('app1', 'app1-scratch')
        self.bench.databases.reset(pair, self.no_doubt, self.no_record)
        self.assertEqual({}, self.mapped('app1'))
        self.bench.databases.undo(self.old, self.no_doubt, self.no_record)
        found = self.pair('app1', 'app1-scratch')
        self.assertEqual(
            (pair.rows, pair.mappings, pair.volume),
            (found.rows, found.mappings, found.volume),
        )

    def test_13_attach_to_a_stopped_server_after_a_reset(self) -> None:
        """Accepted, and fails: the guest still has the old disk."""
        self.accepted(self.bench.admin.attach('app1', 'app1-data'))
        self.bench.until(
            lambda: (
                self.volume('app1-data').status == 'available'
                and {*self.mapped('app1')} == {'/dev/vdc'}
            ),
            'the attach has failed',
        )
        self.accepted(self.bench.admin.start('app1'))
        self.until_on('app1')
        self.assertEqual(
            (True, [('/dev/vdc', 'app1-scratch')]), self.bench.guest('app1')
        )
        self.accepted(self.bench.admin.attach('app1', 'app1-data'))
        self.until_status('app1-data', 'in-use')
        self.assertEqual(
            (True, [('/dev/vdb', 'app1-data'), ('/dev/vdc', 'app1-scratch')]),
            self.bench.guest('app1'),
        )

    def test_14_reserved_after_a_reset(self) -> None:
        """The shield: nobody attaches or deletes it, until it is free."""
        pair = self.pair('off1', 'off1-data')
        self.bench.databases.reset(
            pair, self.no_doubt, self.no_record, free=False
        )
        self.assertEqual('reserved', self.volume('off1-data').status)
        self.assertEqual({}, self.mapped('off1'))
        self.refused(
            self.bench.admin.attach('off1', 'off1-data'), 400, 'reserve'
        )
        self.refused(
            self.bench.user.delete_volume('off1-data'), 400, 'status must'
        )
        volume = self.bench.databases.observe().volumes[pair.volume_id]
        lone = facts.lone(
            facts.Observation(
                source=facts.DATABASE,
                taken_at='',
                servers={},
                volumes={volume.id: volume},
                mappings=(),
                rows=(),
            )
        )[0]
        self.bench.databases.release(lone, (), self.no_doubt, self.no_record)
        self.assertEqual('available', self.volume('off1-data').status)

    def test_15_locks(self) -> None:
        """An administrator's lock binds users, and no administrator."""
        server_id = self.bench.server_id('cl1')
        self.bench.cloud.lock(server_id, 'a reason')
        locked = self.server('cl1')
        self.assertEqual(
            (True, 'a reason'), (locked.locked, locked.locked_reason)
        )
        self.assertEqual('lock', self.newest('cl1').action)
        self.assertEqual(self.bench.cloud.user_id, self.newest('cl1').user_id)
        self.refused(self.bench.user.start('cl1'), 409, 'is locked')
        self.assertEqual(403, self.bench.user.unlock('cl1').status)
        # no error, and no change
        self.accepted(self.bench.user.lock('cl1'))
        self.assertEqual('a reason', self.server('cl1').locked_reason)
        self.bench.cloud.start(server_id)
        self.until_on('cl1')
        self.refused(
            self.bench.user.detach('cl1', 'cluster-shared'), 409, 'is locked'
        )
        self.bench.cloud.unlock(server_id)
        self.assertEqual('unlock', self.newest('cl1').action)
        unlocked = self.server('cl1')
        self.assertEqual(
            (False, None), (unlocked.locked, unlocked.locked_reason)
        )
        self.accepted(self.bench.user.lock('cl1', 'mine'))
        self.assertEqual('mine', self.server('cl1').locked_reason)
        self.refused(self.bench.user.stop('cl1'), 409, 'is locked')
        self.accepted(self.bench.user.unlock('cl1'))
        # an unlocked server may be unlocked
        self.accepted(self.bench.user.unlock('cl1'))

    def test_16_multiattach(self) -> None:
        """One server after the other; both have it in the end."""
        self.bench.cloud.start(self.bench.server_id('cl2'))
        self.until_on('cl2')
        for name in ('cl1', 'cl2'):
            self.accepted(self.bench.user.detach(name, 'cluster-shared'))
            self.until_unmapped(name, 'cluster-shared')
            self.until_status(
                'cluster-shared', 'in-use' if name == 'cl1' else 'available'
            )
        for name in ('cl1', 'cl2'):
            self.bench.cloud.attach(
                self.wanted(name, 'cluster-shared', multiattach=True)
            )
            self.bench.until(
                lambda name=name: (
                    (self.bench.volume_id('cluster-shared'), 'attached')
                    in self.rows(name)
                ),
                f'attached to {name}',
            )
            self.until_status('cluster-shared', 'in-use')
        self.refused(
            self.bench.admin.attach('cl1', 'cluster-shared'),
            400,
            'already attached',
        )

    def test_17_a_guest_that_dies(self) -> None:
        """Diagnostics know at once, nova when it looks."""
        self.bench.guest_off('web1')
        server_id = self.bench.server_id('web1')
        self.bench.until(
            lambda: (
                self.bench.cloud.diagnostics_running(server_id) is not True
            ),
            'the guest is off',
        )
        self.bench.until(
            lambda: self.idle('web1', 'stopped'), 'nova looked', 700
        )
        newest = self.newest('web1')
        self.assertEqual(('stop', None), (newest.action, newest.user_id))

    def test_18_what_is_not_there(self) -> None:
        nobody = '00000000-0000-4000-8000-0000000000ff'
        for ask in (
            self.bench.cloud.server,
            self.bench.cloud.volume,
            self.bench.cloud.mappings_of,
            self.bench.cloud.actions,
            self.bench.cloud.start,
            self.bench.cloud.stop,
        ):
            with self.assertRaises(exceptions.NotFound):
                ask(nobody)
        self.assertEqual((), self.bench.cloud.rows_of(nobody))

    def test_19_pages(self) -> None:
        wanted = in_words(self.bench.cloud.observe())
        with self.bench.small_pages() as cloud:
            found = in_words(cloud.observe())
            actions = cloud.actions(self.bench.server_id('web1'))
        self.assertEqual(wanted, found)
        self.assertEqual(
            self.bench.cloud.actions(self.bench.server_id('web1')), actions
        )


Words: ty.TypeAlias = dict[str, dict[ty.Any, dict[str, ty.Any]]]


def in_words(seen: facts.Observation) -> Words:
    """Give what was seen by names, without ids and times."""
    servers = {s.id: s.name for s in seen.servers.values()}
    volumes = {v.id: v.name for v in seen.volumes.values()}
    named = {m.attachment_id for m in seen.mappings if not m.deleted}
    return {
        'servers': {
            s.name: {
                'host': s.host,
                'vm_state': s.vm_state,
                'task_state': s.task_state,
                'power_state': s.power_state,
                'locked': s.locked,
                'root_device': s.root_device,
                'launched': s.launched,
                'volume_backed': bool(s.volume_backed),
                'cell': s.cell,
            }
            for s in seen.servers.values()
        },
        'volumes': {
            v.name: {
                'status': v.status,
                'attach_status': v.attach_status,
                'multiattach': v.multiattach,
                'migration_status': v.migration_status,
            }
            for v in seen.volumes.values()
        },
        'mappings': {
            (servers[m.server_id], volumes[m.volume_id]): {
                'device': m.device,
                'root': m.root,
                'tag': m.tag,
                'delete_on_termination': m.delete_on_termination,
                'connected': m.connected,
                'cell': m.cell,
            }
            for m in seen.mappings
            if not m.deleted
        },
        'rows': {
            (servers[r.server_id or ''], volumes[r.volume_id]): {
                'attach_status': r.attach_status,
                'device': r.device,
                'host': r.host,
                'connector': r.connector,
                'named': r.id in named,
            }
            for r in seen.rows
            if not r.deleted
        },
    }
