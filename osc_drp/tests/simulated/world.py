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

"""A simulated cloud: nova, cinder, the computes, and time.

What it does was measured on a real cloud (LAB.md), and one contract suite
(tests/contract.py) holds both to the same answers; what no contract case
shows was read in nova 34.0.0 and cinder 29.0.0. Time passes only when
somebody sleeps; what is due then happens, in order.

Answers are exceptions of osc-drp's own kinds, as cloud/failures.py makes
them of HTTP's: Conflict is a 400 or 409.
"""

import collections
import datetime
import heapq
import json
import threading
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.tests.simulated import records

ADMIN = 'admin-user'
USER = 'blue-user'
BACKEND = 'storage1@nfs'

# Seconds that things take.
START, STOP, REBOOT = 4.0, 3.0, 5.0
#: Of an attach, and of a detach.
STEP = 0.5
#: From nova-compute's start to its first look at its guests (60 s at most,
#: nova 34.0.0 compute/manager.py _sync_power_states), and between two looks.
FIRST_SYNC, SYNC = 50.0, 600.0


class Refusal(exceptions.Conflict):
    """An answer 400 or 409."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guest:
    """What the hypervisor has stored of a server, and the guest inside."""

    def __init__(self, volumes: ty.Iterable[tuple[str, str]] = ()) -> None:
        self.runs = False
        #: (device, volume id), in the order of the devices.
        self.volumes: list[tuple[str, str]] = []
        for device, volume_id in volumes:
            self.add(device, volume_id)
        self.boot = 0
        #: It reboots from the inside: nobody can log in.
        self.away = False
        #: A volume came since it booted.
        self.late = False

    def add(self, device: str, volume_id: str) -> None:
        self.volumes.append((device, volume_id))
        self.volumes.sort(key=lambda v: facts.device_order(v[0]))


class Clock:
    """Virtual seconds; what is due happens while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._due: list[tuple[float, int, ty.Callable[[], None]]] = []
        self._number = 0

    def later(self, seconds: float, happen: ty.Callable[[], None]) -> None:
        self._number += 1
        at = self.seconds + seconds
        heapq.heappush(self._due, (at, self._number, happen))

    def pass_(self, seconds: float) -> None:
        until = self.seconds + seconds
        while self._due and self._due[0][0] <= until:
            at, _number, happen = heapq.heappop(self._due)
            self.seconds = max(self.seconds, at)
            happen()
        self.seconds = until

    def forget(self) -> None:
        """Nothing that was under way goes on."""
        self._due.clear()


class World:
    """One cloud. All methods may be called by several threads."""

    def __init__(self) -> None:
        self.records = records.Records()
        self.lock = self.records.guard
        self.clock = Clock()
        self.guests: dict[str, Guest] = {}
        self.computes: dict[str, bool] = {}
        #: 'up', 'refused' (connections) or 'error' (answers 500).
        self.cinder_api = 'up'
        #: Servers that the hypervisor cannot start, and why.
        self.broken: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.reasons: dict[str, str | None] = {}
        self.locked_by: dict[str, str | None] = {}
        self.ports: frozenset[str] = frozenset()
        self.segments: list[str] = []
        #: Every write by osc-drp that was accepted: (what, server, volume).
        self.done: list[tuple[str, ...]] = []
        #: How often a guest went off by itself, by a user or by the loss.
        self._lost: collections.Counter[str] = collections.Counter()
        self._started: dict[str, int] = {}
        self.unlocked = threading.Event()

    # -- time

    def now(self) -> datetime.datetime:
        passed = datetime.timedelta(seconds=int(self.clock.seconds))
        return records.EPOCH + passed

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.clock.pass_(seconds)

    # -- small helpers

    def _id(self, kind: int) -> str:
        number = self.records.number()
        return f'{kind:08x}-0000-4000-8000-{number:012x}'

    def _server(self, server_id: str) -> tuple[str, records.Row]:
        found = self.records.server(server_id)
        if found is None:
            raise exceptions.NotFound(
                f'nova: Instance {server_id} could not be found.'
            )
        return found

    def _volume(self, volume_id: str) -> records.Row:
        found = self.records.volume(volume_id)
        if found is None:
            raise exceptions.NotFound(
                f'cinder: Volume {volume_id} could not be found.'
            )
        return found

    def server_id(self, name: str) -> str:
        return next(
            s['uuid']
            for cell in records.CELLS
            for s in self.records.table(cell, 'instances')
            if s['display_name'] == name and not s['deleted']
        )

    def volume_id(self, name: str) -> str:
        return ty.cast(
            str,
            next(
                v['id']
                for v in self.records.table(records.CINDER, 'volumes')
                if v['display_name'] == name and not v['deleted']
            ),
        )

    def _log(
        self, server_id: str, action: str, user: str | None
    ) -> records.Row:
        cell, _row = self._server(server_id)
        number = self.records.number()
        return self.records.insert(
            cell,
            'instance_actions',
            {
                'id': number,
                'instance_uuid': server_id,
                'action': action,
                'request_id': f'req-{number}',
                'user_id': user,
                'start_time': self.now(),
                'finished': False,
                'failed': False,
            },
        )

    def _end(
        self, server: records.Row, vm_state: str | None, power: int | None
    ) -> None:
        """Nova is done with a server."""
        server['task_state'] = None
        if vm_state:
            server['vm_state'] = vm_state
        if power is not None:
            server['power_state'] = power

    # -- building a cloud

    def add_compute(self, host: str) -> None:
        self.computes[host] = True
        self.records.up['nova-compute', host] = True

    def add_server(
        self, name: str, cell: str, host: str | None, **values: ty.Any
    ) -> str:
        """A server that runs, unless told otherwise."""
        server_id = self._id(1)
        self.records.insert(
            cell,
            'instances',
            {
                'uuid': server_id,
                'display_name': name,
                'hostname': name,
                'project_id': 'blue',
                'host': host,
                'vm_state': 'active',
                'task_state': None,
                'power_state': facts.RUNNING,
                'locked': False,
                'image_ref': 'image',
                'root_device_name': '/dev/vda',
                'launched_at': records.EPOCH,
                'deleted': 0,
                **values,
            },
        )
        self._log(server_id, 'create', USER)['finished'] = True
        if host:
            self.guests[server_id] = Guest()
            self.guests[server_id].runs = True
        return server_id

    def add_volume(self, name: str, **values: ty.Any) -> str:
        """A volume that is free, unless told otherwise."""
        volume_id = self._id(2)
        self.records.insert(
            records.CINDER,
            'volumes',
            {
                'id': volume_id,
                'display_name': name,
                'project_id': 'blue',
                'host': BACKEND + '#pool',
                'status': 'available',
                'attach_status': 'detached',
                'migration_status': None,
                'multiattach': False,
                'deleted': False,
                **values,
            },
        )
        return volume_id

    def add_attachment(
        self, server_id: str, volume_id: str, device: str, **values: ty.Any
    ) -> None:
        """Both records and the hypervisor have it."""
        cell, server = self._server(server_id)
        row = self._new_row(server_id, volume_id)
        mapping = self._new_mapping(cell, server_id, volume_id, device)
        mapping['attachment_id'] = row['id']
        mapping.update(values)
        self._connect(row, mapping, server)
        self._complete(row)
        if server_id in self.guests:
            self.guests[server_id].add(device, volume_id)

    def _new_row(self, server_id: str, volume_id: str) -> records.Row:
        return self.records.insert(
            records.CINDER,
            'volume_attachment',
            {
                'id': self._id(3),
                'volume_id': volume_id,
                'instance_uuid': server_id,
                'attached_host': None,
                'mountpoint': None,
                'attach_status': 'reserved',
                'connector': None,
                'detach_time': None,
                'deleted': False,
                'deleted_at': None,
                'created_at': self.now(),
            },
        )

    def _new_mapping(
        self, cell: str, server_id: str, volume_id: str, device: str
    ) -> records.Row:
        return self.records.insert(
            cell,
            'block_device_mapping',
            {
                'uuid': self._id(4),
                'instance_uuid': server_id,
                'volume_id': volume_id,
                'attachment_id': None,
                'destination_type': 'volume',
                'boot_index': None,
                'device_name': device,
                'tag': None,
                'delete_on_termination': False,
                'connection_info': None,
                'created_at': self.now(),
                'updated_at': self.now(),
                'deleted_at': None,
                'deleted': 0,
            },
        )

    # -- cinder

    def _connect(
        self, row: records.Row, mapping: records.Row, server: records.Row
    ) -> None:
        """Do attachment_update: the connector is known."""
        row['connector'] = json.dumps({'host': server['host']})
        row['attached_host'] = server['host']
        row['mountpoint'] = mapping['device_name']
        row['attach_status'] = 'attaching'
        self._volume(row['volume_id']).update(
            status='attaching', attach_status='attaching'
        )
        mapping['connection_info'] = json.dumps({'data': {'secret': 'S'}})

    def _complete(self, row: records.Row) -> None:
        """Do attachment_complete."""
        row['attach_status'] = 'attached'
        self._volume(row['volume_id']).update(
            status='in-use', attach_status='attached'
        )

    def _delete_row(self, row: records.Row) -> None:
        """Do attachment_delete; the status follows from what is left.

        cinder 29.0.0 db/api.py:volume_detached
        """
        row.update(
            deleted=True,
            deleted_at=self.now(),
            detach_time=self.now(),
            attach_status='detached',
        )
        volume = self.records.volume(row['volume_id'])
        if volume is None:
            return
        words = [
            r['attach_status']
            for r in self.records.live_rows(row['volume_id'])
        ]
        status = min(words, default='detached')
        volume['attach_status'] = status
        volume['status'] = {'attached': 'in-use', 'detached': 'available'}.get(
            status, status
        )

    def _reserve(self, server_id: str, volume: records.Row) -> records.Row:
        """Do attachment_create (cinder volume/api.py _attachment_reserve)."""
        if 'error' in volume['status']:
            raise Refusal(
                400,
                'nova: Invalid input received: Invalid volume: Volume '
                'attachments can not be created if the volume is in an error '
                f'state. The Volume {volume["id"]} currently has a status of: '
                f'{volume["status"]} ',
            )
        free = ['available', 'downloading']
        if volume['multiattach']:
            free = ['available', 'in-use', 'downloading']
        own = any(
            r['instance_uuid'] == server_id
            for r in self.records.live_rows(volume['id'])
        )
        if volume['status'] in free:
            volume['status'] = 'reserved'
        elif not (own and volume['status'] in ('in-use', 'reserved')):
            raise Refusal(
                400,
                f'nova: Invalid volume: Volume {volume["id"]} status must be '
                f'{" or ".join(free)} to reserve, but the current status is '
                f'{volume["status"]}.',
            )
        return self._new_row(server_id, volume['id'])

    def reset_volume_status(
        self, volume_id: str, status: str, attach_status: str | None = None
    ) -> None:
        """Do os-reset_status (cinder api/contrib/admin_actions.py)."""
        with self.lock:
            volume = self._volume(volume_id)
            rows = self.records.live_rows(volume_id)
            if status == 'in-use' and not rows:
                raise Refusal(
                    400,
                    'cinder: Cannot reset-state to in-use because volume '
                    'does not have any attachments.',
                )
            volume['status'] = status
            if attach_status:
                volume['attach_status'] = attach_status
            if attach_status == 'detached':
                for row in rows:
                    self._delete_row(row)

    def delete_volume(self, volume_id: str) -> None:
        """Do what a user's `volume delete` does."""
        with self.lock:
            volume = self._volume(volume_id)
            if volume['status'] not in ('available', 'error'):
                raise Refusal(
                    400,
                    'cinder: Invalid volume: Volume status must be available '
                    'or error or error_restoring or error_extending or '
                    'error_managing and must not be migrating, attached, '
                    'belong to a group, have snapshots, awaiting a transfer, '
                    'or be disassociated from snapshots after volume '
                    'transfer.',
                )
            volume['deleted'] = True

    # -- nova

    def _refuse(self, what: str, server: records.Row, kind: str) -> None:
        raise Refusal(
            409,
            f"nova: Cannot '{what}' instance {server['uuid']} while it is in "
            f'{kind} {server[kind]}',
        )

    def _may(
        self, what: str, server: records.Row, user: str, *states: str
    ) -> None:
        if server['locked'] and user != ADMIN:
            raise Refusal(409, f'nova: Instance {server["uuid"]} is locked')
        if states and server['vm_state'] not in states:
            self._refuse(what, server, 'vm_state')
        if server['task_state'] is not None:
            self._refuse(what, server, 'task_state')

    def start(self, server_id: str, user: str = USER) -> None:
        with self.lock:
            _cell, server = self._server(server_id)
            self._may('start', server, user, 'stopped')
            server['task_state'] = 'powering-on'
            entry = self._log(server_id, 'start', user)
            self._on_compute(
                server, START, lambda: self._power_on(server, entry)
            )

    def _power_on(self, server: records.Row, entry: records.Row) -> None:
        server_id = server['uuid']
        entry['finished'] = True
        if server_id in self.broken:
            # nova 34.0.0 compute/manager.py start_instance: it stays stopped
            entry['failed'] = True
            self.faults[server_id] = self.broken[server_id]
            self._end(server, None, None)
            return
        self._define(server_id)
        self._end(server, 'active', facts.RUNNING)

    def _define(self, server_id: str) -> None:
        """Define the guest anew from nova's mappings, and run it."""
        guest = Guest(
            (m['device_name'], m['volume_id'])
            for _cell, m in self.records.live_mappings(server_id=server_id)
            if records.connected(m)
        )
        guest.runs, guest.boot = True, self.records.number()
        self.guests[server_id] = guest
        self._started[server_id] = self._lost[server_id]

    def stop(self, server_id: str, user: str | None = USER) -> None:
        with self.lock:
            _cell, server = self._server(server_id)
            if user is not None:
                self._may('stop', server, user, 'active', 'error')
            server['task_state'] = 'powering-off'
            if user != ADMIN:
                self._lost[server_id] += 1
            entry = self._log(server_id, 'stop', user)
            self._on_compute(
                server, STOP, lambda: self._power_off(server, entry)
            )

    def _power_off(self, server: records.Row, entry: records.Row) -> None:
        entry['finished'] = True
        guest = self.guests.get(server['uuid'])
        if guest is not None:
            guest.runs = False
        self._end(server, 'stopped', facts.SHUTDOWN)

    def hard_reboot(self, server_id: str, user: str = USER) -> None:
        with self.lock:
            _cell, server = self._server(server_id)
            self._may(
                'reboot',
                server,
                user,
                'active',
                'stopped',
                'paused',
                'suspended',
                'error',
            )
            server['task_state'] = 'rebooting_hard'
            entry = self._log(server_id, 'reboot', user)
            self._on_compute(
                server, REBOOT, lambda: self._reboot(server, entry)
            )

    def _reboot(self, server: records.Row, entry: records.Row) -> None:
        """Delete what dangles, then define the guest anew.

        nova 28.0.0 and later, compute/manager.py _delete_dangling_bdms; a
        cinder that refuses connections fails it (LAB.md), one that answers
        with an error is not asked.
        """
        server_id = server['uuid']
        entry['finished'] = True
        if self.cinder_api == 'refused':
            entry['failed'] = True
            self._end(server, None, None)
            return
        mappings = self.records.live_mappings(server_id=server_id)
        if self.cinder_api == 'up':
            rows = {r['id']: r for r in self.records.live_rows()}
            for _cell, m in mappings:
                if m['attachment_id'] and m['attachment_id'] not in rows:
                    self._drop(m)
            named = {m['attachment_id'] for _c, m in mappings}
            for row in rows.values():
                if row['instance_uuid'] == server_id and (
                    row['id'] not in named
                ):
                    self._delete_row(row)
        booted = server['image_ref'] or any(
            m['boot_index'] == 0
            for _c, m in self.records.live_mappings(server_id=server_id)
        )
        if not booted:
            entry['failed'] = True
            self.faults[server_id] = (
                f'No disk at /var/lib/nova/instances/{server_id}/disk'
            )
            self.guests.pop(server_id, None)
            self._end(server, 'error', facts.NOSTATE)
            return
        self._define(server_id)
        self._end(server, 'active', facts.RUNNING)

    def _drop(self, mapping: records.Row) -> None:
        mapping.update(
            deleted=mapping['id'],
            deleted_at=self.now(),
            updated_at=self.now(),
        )

    def attach(
        self,
        server_id: str,
        volume_id: str,
        user: str = USER,
        device: str | None = None,
        tag: str | None = None,
        delete_on_termination: bool = False,
    ) -> str:
        """Attach a volume; gives its device."""
        with self.lock:
            cell, server = self._server(server_id)
            states = ('active', 'paused', 'stopped', 'resized', 'soft-delete')
            if server['locked'] and user != ADMIN:
                self._may('attach_volume', server, user)
            if server['vm_state'] not in states:
                self._refuse('attach_volume', server, 'vm_state')
            if server['task_state'] is not None:
                self._refuse('attach_volume', server, 'task_state')
            volume = self._volume(volume_id)
            self._check_mapped(server_id, volume)
            if not self.computes.get(server['host'] or ''):
                raise exceptions.Unanswered(
                    'nova: MessagingTimeout: nobody on '
                    f'{server["host"]} reserves a device'
                )
            given = self._next_device(server_id)
            mapping = self._new_mapping(cell, server_id, volume_id, given)
            mapping['tag'] = tag
            mapping['delete_on_termination'] = delete_on_termination
            try:
                row = self._reserve(server_id, volume)
            except Refusal:
                self._drop(mapping)
                raise
            mapping['attachment_id'] = row['id']
            entry = self._log(server_id, 'attach_volume', user)
            self._on_compute(
                server,
                STEP,
                lambda: self._attach_1(server, mapping, row, entry),
            )
            return given

    def _check_mapped(self, server_id: str, volume: records.Row) -> None:
        """Do compute/api.py _check_volume_already_attached."""
        users = [
            m['instance_uuid']
            for _cell, m in self.records.live_mappings(volume['id'])
        ]
        if users and not volume['multiattach']:
            raise Refusal(
                400,
                f'nova: Invalid volume: volume {volume["id"]} is already '
                f'attached to instances: {" ".join(users)}',
            )
        if server_id in users:
            raise Refusal(
                400,
                f'nova: Invalid volume: volume {volume["id"]} already '
                'attached',
            )

    def _next_device(self, server_id: str) -> str:
        taken = {
            m['device_name']
            for _cell, m in self.records.live_mappings(server_id=server_id)
        } | {'/dev/vda'}
        return next(
            d
            for d in (f'/dev/vd{c}' for c in 'bcdefghijklmnopqrstuvwxyz')
            if d not in taken
        )

    def _attach_1(
        self,
        server: records.Row,
        mapping: records.Row,
        row: records.Row,
        entry: records.Row,
    ) -> None:
        """The compute has the order: cinder learns the connector."""
        if row['deleted'] or self.cinder_api != 'up':
            entry.update(finished=True, failed=True)
            self._drop(mapping)
            return
        self._connect(row, mapping, server)
        guest = self.guests.setdefault(server['uuid'], Guest())
        devices = dict(guest.volumes)
        if mapping['volume_id'] in devices.values() or (
            mapping['device_name'] in devices
        ):
            # "unsupported configuration: non unique alias detected"
            entry.update(finished=True, failed=True)
            self._delete_row(row)
            self._drop(mapping)
            return
        guest.add(mapping['device_name'], mapping['volume_id'])
        guest.late = True

        def complete() -> None:
            entry['finished'] = True
            if not row['deleted']:
                self._complete(row)

        self._on_compute(server, STEP, complete)

    def detach(self, server_id: str, volume_id: str, user: str = USER) -> None:
        with self.lock:
            _cell, server = self._server(server_id)
            if server['locked'] and user != ADMIN:
                self._may('detach_volume', server, user)
            mapping = next(
                (
                    m
                    for _c, m in self.records.live_mappings(
                        volume_id, server_id
                    )
                ),
                None,
            )
            if mapping is None:
                raise exceptions.NotFound(
                    f'nova: Instance {server_id} is not attached'
                )
            if mapping['boot_index'] == 0:
                raise Refusal(400, 'nova: Cannot detach a root device volume')
            volume = self._volume(volume_id)
            if (volume['status'], volume['attach_status']) != (
                'in-use',
                'attached',
            ):
                raise Refusal(
                    400,
                    'nova: Invalid volume: Invalid input received: Invalid '
                    'volume: Unable to detach volume. Volume status must be '
                    "'in-use' and attach_status must be 'attached' to detach.",
                )
            volume['status'] = 'detaching'
            entry = self._log(server_id, 'detach_volume', user)
            self._on_compute(
                server, STEP, lambda: self._detached(server, mapping, entry)
            )

    def _detached(
        self, server: records.Row, mapping: records.Row, entry: records.Row
    ) -> None:
        guest = self.guests.get(server['uuid'])
        if guest is not None:
            guest.volumes = [
                v for v in guest.volumes if v[1] != mapping['volume_id']
            ]
        for row in self.records.live_rows(mapping['volume_id']):
            if row['id'] == mapping['attachment_id']:
                self._delete_row(row)

        def end() -> None:
            entry['finished'] = True
            self._drop(mapping)

        self._on_compute(server, STEP, end)

    def set_lock(
        self,
        server_id: str,
        user: str,
        reason: str | None = None,
    ) -> None:
        """Lock a server; nova compute/api.py lock."""
        with self.lock:
            _cell, server = self._server(server_id)
            owner = user != ADMIN
            if server['locked'] and owner:
                return
            self._log(server_id, 'lock', user)['finished'] = True
            server['locked'] = True
            self.locked_by[server_id] = 'owner' if owner else 'admin'
            if reason:
                self.reasons[server_id] = reason

    def unlock(self, server_id: str, user: str) -> None:
        with self.lock:
            _cell, server = self._server(server_id)
            if user != ADMIN and self.locked_by.get(server_id) == 'admin':
                raise exceptions.ApiError(
                    "nova: Policy doesn't allow os_compute_api:os-lock-server:"
                    'unlock:unlock_override to be performed.'
                )
            self._log(server_id, 'unlock', user)['finished'] = True
            server['locked'] = False
            self.locked_by[server_id] = self.reasons[server_id] = None

    def delete_server(self, server_id: str, user: str = USER) -> None:
        """Do what a user's `server delete` does, at once."""
        with self.lock:
            _cell, server = self._server(server_id)
            if server['locked'] and user != ADMIN:
                self._may('delete', server, user)
            self.guests.pop(server_id, None)
            for _c, m in self.records.live_mappings(server_id=server_id):
                for row in self.records.live_rows(m['volume_id']):
                    if row['id'] == m['attachment_id']:
                        self._delete_row(row)
                self._drop(m)
                volume = self.records.volume(m['volume_id'])
                if m['delete_on_termination'] and volume is not None:
                    volume['deleted'] = True
            server['deleted'] = server['id']

    # -- the computes

    def _on_compute(
        self,
        server: records.Row,
        seconds: float,
        do: ty.Callable[[], None],
    ) -> None:
        """Let a compute do something, if it is up and stays up."""

        def happen() -> None:
            if self.computes.get(server['host']) and not server['deleted']:
                do()

        self.clock.later(seconds, happen)

    def compute_up(self, host: str) -> None:
        """Start nova-compute: it finishes tasks, and looks before long."""
        with self.lock:
            self.computes[host] = True
            self.records.up['nova-compute', host] = True
            for server in self._on(host):
                self._init_instance(server)
            self.clock.later(FIRST_SYNC, lambda: self._sync(host))

    def compute_down(self, host: str) -> None:
        with self.lock:
            self.computes[host] = False
            self.records.up['nova-compute', host] = False

    def _on(self, host: str) -> list[records.Row]:
        return [
            s
            for cell in records.CELLS
            for s in self.records.table(cell, 'instances')
            if s['host'] == host and not s['deleted']
        ]

    def _init_instance(self, server: records.Row) -> None:
        """Do compute/manager.py _init_instance: what was cut short."""
        task, entry = server['task_state'], {'finished': False}
        if task == 'powering-off':
            self._on_compute(
                server, STOP, lambda: self._power_off(server, entry)
            )
        elif task == 'powering-on':
            self._on_compute(
                server, START, lambda: self._power_on(server, entry)
            )
        elif task == 'rebooting_hard':
            self._on_compute(
                server, REBOOT, lambda: self._reboot(server, entry)
            )

    def _sync(self, host: str) -> None:
        """Do compute/manager.py _sync_instance_power_state."""
        if not self.computes.get(host):
            return
        for server in self._on(host):
            if server['task_state'] is not None:
                continue
            guest = self.guests.get(server['uuid'])
            power = (
                facts.NOSTATE
                if guest is None
                else facts.RUNNING
                if guest.runs
                else facts.SHUTDOWN
            )
            server['power_state'] = power
            lost = server['vm_state'] == 'active' and power == facts.SHUTDOWN
            odd = server['vm_state'] == 'stopped' and power == facts.RUNNING
            if lost or odd:
                self.stop(server['uuid'], user=None)
        self.clock.later(SYNC, lambda: self._sync(host))

    # -- the guests

    def log_in(self, server_id: str) -> Guest:
        """Reach a guest over SSH."""
        guest = self.guests.get(server_id)
        if guest is None or not guest.runs or guest.away:
            raise exceptions.SshError(f'{server_id} does not answer')
        return guest

    def reboot_guest(self, server_id: str, boot: str) -> None:
        """Do `shutdown -r now`, once for what came since the boot."""
        with self.lock:
            guest = self.log_in(server_id)
            if str(guest.boot) != boot:
                raise exceptions.Changed('another boot')
            if not guest.late:
                raise records.Violation(f'guest {server_id} rebooted twice')
            guest.away = True

            def back() -> None:
                guest.away = guest.late = False
                guest.boot = self.records.number()

            self.clock.later(8, back)

    # -- disasters

    def power_loss(self) -> None:
        """Everything dies at once; nothing is written."""
        with self.lock:
            self.clock.forget()
            for server_id, guest in self.guests.items():
                guest.runs = False
                self._lost[server_id] += 1
            for host in self.computes:
                self.compute_down(host)
            self.records.locks.clear()

    def power_on(self) -> None:
        """Everything starts again; nothing recovers by itself."""
        with self.lock:
            for host in self.computes:
                self.compute_up(host)

    def guest_off(self, server_id: str, undefine: bool = False) -> None:
        """A guest ends by itself, or its definition is lost as well."""
        with self.lock:
            self._lost[server_id] += 1
            self.guests[server_id].runs = False
            if undefine:
                del self.guests[server_id]

    # -- the judge of what osc-drp asks for

    def may_start(self, server_id: str) -> None:
        """No guest that runs is started, none twice after one loss."""
        _cell, server = self._server(server_id)
        guest = self.guests.get(server_id)
        if server['vm_state'] != 'stopped' or server['task_state']:
            return  # it will be refused
        if guest is not None and guest.runs:
            raise records.Violation(f'{server["display_name"]} runs')
        if self._started.get(server_id) == self._lost[server_id]:
            raise records.Violation(
                f'{server["display_name"]} is started twice'
            )

    def may_reboot(self, server_id: str) -> None:
        """Only what is off, once, and only if its root disk survives it."""
        _cell, server = self._server(server_id)
        guest = self.guests.get(server_id)
        if guest is not None and guest.runs:
            raise records.Violation(f'{server["display_name"]} runs')
        if self._started.get(server_id) == self._lost[server_id]:
            raise records.Violation(
                f'{server["display_name"]} is restarted twice'
            )
        rows = {r['id'] for r in self.records.live_rows()}
        for _c, m in self.records.live_mappings(server_id=server_id):
            if m['boot_index'] == 0 and m['attachment_id'] not in rows:
                raise records.Violation(
                    f'{server["display_name"]} loses its root disk'
                )
