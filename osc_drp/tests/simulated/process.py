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

"""One process of osc-drp on a simulated cloud, which can be killed anywhere.

A process reaches points: each API call, SQL statement, commit and journal
entry, before and after its effect. It can be told to die at one of them: a
dead process writes nothing more, whatever its handlers and ``finally``
clauses try, as after a SIGKILL or when the operator's machine loses its
power.
"""

import collections
import contextlib
import dataclasses
import typing as ty
from unittest import mock

from osc_drp.db import client
from osc_drp.db import read
from osc_drp.db import write
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import ports
from osc_drp.tests.simulated import records
from osc_drp.tests.simulated import sql
from osc_drp.tests.simulated import world as world_module

ADMIN = world_module.ADMIN
BEFORE, AFTER = 'before', 'after'
#: In place of the number of a point: an error may come at any.
EVERYWHERE = -1


class Killed(BaseException):
    """The process is dead."""


#: Gives what is raised at a point, once, instead of death; None: nothing.
Error: ty.TypeAlias = ty.Callable[[str], BaseException | None] | None


class Process:
    """One invocation of osc-drp.

    :param stop_at: the number of the point where it dies; None: nowhere
    :param error: what happens there instead
    """

    def __init__(
        self,
        world: world_module.World,
        stop_at: int | None = None,
        error: Error = None,
    ) -> None:
        self.world = world
        self.stop_at = stop_at
        self._error = error
        self.points = 0
        self.died_at = ''
        #: (call, before or after its effect): errors to raise, in order.
        self._faults: dict[tuple[str, str], list[BaseException | None]] = (
            collections.defaultdict(list)
        )
        self.calls: collections.Counter[str] = collections.Counter()
        self.said: list[str] = []
        self.cloud = Cloud(self)
        self.guests = Guests(self)
        self.clock = Clock(self)
        both: ty.Any = sql.Databases(world, self)
        self.databases = client.Client(both)
        cinder: ty.Any = sql.Databases(world, self, nova=False)
        self.cinder = client.Client(cinder)

    def fail(
        self, call: str, *errors: BaseException | None, when: str = BEFORE
    ) -> None:
        """Say how the next calls of a kind fail; None: one that does not."""
        self._faults[call, when].extend(errors)

    def reach(self, what: str) -> None:
        """Pass a point, or die there."""
        with self.world.lock:
            if self.died_at:
                raise Killed(self.died_at)
            self.points += 1
            self.calls[what] += 1
            if self.stop_at not in (self.points, EVERYWHERE):
                return
            if self._error is None:
                self.died_at = what
                raise Killed(what)
            error = self._error(what)
            if error is not None:
                raise error

    def fault(self, call: str, when: str) -> None:
        """Fail as a test told to."""
        waiting = self._faults.get((call, when))
        if waiting:
            error = waiting.pop(0)
            if error is not None:
                raise error

    # -- ports.Progress

    def say(self, message: str) -> None:
        self.said.append(message)

    def step(self, name: str, total: int) -> ports.Step:
        return ports.NoStep()

    @contextlib.contextmanager
    def running(self) -> ty.Iterator[None]:
        """Let the product's own modules run in this process."""
        with contextlib.ExitStack() as stack:
            for owner, name, stand_in in (
                (read, 'observe_on', self._observe_on),
                (read, 'actions_since', self._actions_since),
                (write, '_sleep', self.clock.sleep),
                (write, '_clock', self.clock.monotonic),
                (journal.Run, 'write', self._journal()),
            ):
                stack.enter_context(mock.patch.object(owner, name, stand_in))
            yield

    def _observe_on(
        self,
        on: ty.Any,
        *,
        volume_id: str | None = None,
        server_ids: ty.Collection[str] = (),
        mapped: ty.Collection[str] = (),
        down_after: int = 0,
    ) -> facts.Observation:
        self.reach('sql')
        with self.world.lock:
            seen = self.world.records.observe(
                self.world.now(), volume_id, server_ids, mapped
            )
        if on.cells:
            return seen
        return dataclasses.replace(
            seen,
            servers={},
            mappings=(),
            services=tuple(
                s for s in seen.services if s.binary != 'nova-compute'
            ),
            migrating=frozenset(),
            unfinished=(),
            building=frozenset(),
        )

    def _actions_since(
        self, dbs: ty.Any, server_ids: ty.Collection[str], since: str
    ) -> list[facts.Action]:
        self.reach('sql')
        with self.world.lock:
            return self.world.records.actions(server_ids, since)

    def _journal(self) -> ty.Any:
        """Give the journal its points, and a line that is cut in half."""
        process, plain = self, journal.Run.write

        def write(run: journal.Run, event: str, **fields: ty.Any) -> None:
            process.reach(f'journal {event} before')
            try:
                process.reach(f'journal {event} torn')
            except Killed:
                if process.points == process.stop_at:
                    process.stop_at = None
                    with open(run.path / journal.FILE, 'ab') as f:
                        f.write(b'{"at": "2026-11-22T03:0')
                raise
            process.fault('journal', BEFORE)
            plain(run, event, **fields)
            process.reach(f'journal {event} after')

        return write


class Clock:
    """ports.Clock: the world's; the dead do not sleep."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def monotonic(self) -> float:
        return self._process.world.clock.seconds

    def sleep(self, seconds: float) -> None:
        if self._process.died_at:
            raise Killed(self._process.died_at)
        self._process.world.sleep(seconds)


class Cloud:
    """ports.Cloud, asked as an administrator."""

    user_id = ADMIN
    keeps_lock_reasons = True
    reboot_cleans = True

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._records = process.world.records

    def _read(self, name: str, work: ty.Callable[[], ty.Any]) -> ty.Any:
        self._process.reach(f'read {name}')
        self._process.fault(name, BEFORE)
        with self._world.lock:
            return work()

    def _write(
        self,
        name: str,
        key: tuple[str, ...],
        work: ty.Callable[[], ty.Any],
    ) -> ty.Any:
        process = self._process
        process.reach(f'{name} before')
        process.fault(name, BEFORE)
        with self._world.lock:
            before = self._records.judge()
            answer = work()
            self._world.done.append((name, *key))
            new = self._records.judge() - before
            if new:
                raise records.Violation('; '.join(sorted(new)))
        process.reach(f'{name} after')
        process.fault(name, AFTER)
        return answer

    # -- looking

    def observe(self) -> facts.Observation:
        return ty.cast(facts.Observation, self._read('observe', self._observe))

    def renew(self, seen: facts.Observation) -> facts.Observation:
        now = ty.cast(facts.Observation, self._read('renew', self._observe))
        return seen.renewed(now.taken_at, now.servers, now.services)

    def _observe(self) -> facts.Observation:
        seen = self._records.observe(self._world.now())
        return facts.Observation(
            source=facts.API,
            taken_at=seen.taken_at,
            servers={
                s.id: self._as_api(s)
                for s in seen.servers.values()
                if s.vm_state != 'deleted'
            },
            volumes={v.id: _volume_by_api(v) for v in seen.volumes.values()},
            mappings=tuple(
                sorted(
                    (
                        _mapping_by_api(m)
                        for m in seen.mappings
                        if not m.deleted
                    ),
                    key=lambda m: (
                        m.server_id,
                        facts.device_order(m.device),
                        m.volume_id,
                    ),
                )
            ),
            rows=tuple(
                sorted(
                    (_row_by_api(r) for r in seen.rows if not r.deleted),
                    key=lambda r: (r.volume_id, r.server_id or '', r.id),
                )
            ),
            services=seen.services,
            migrating=seen.migrating,
            unfinished=(),
            building=seen.building,
        )

    def _as_api(self, server: facts.Server) -> facts.Server:
        mapped = self._records.live_mappings(server_id=server.id)
        root = any(m['boot_index'] == 0 for _c, m in mapped)
        _cell, row = self._world._server(server.id)
        return facts.Server(
            id=server.id,
            name=server.name,
            project_id=server.project_id,
            host=server.host,
            vm_state=server.vm_state,
            task_state=server.task_state,
            power_state=server.power_state,
            locked=server.locked,
            locked_reason=self._world.reasons.get(server.id),
            root_device=server.root_device,
            launched=server.launched,
            volume_backed=root or not row['image_ref'],
            cell=None,
            volumes_attached=frozenset(m['volume_id'] for _c, m in mapped),
            metadata=tuple(
                sorted(self._world.metadata.get(server.id, {}).items())
            ),
        )

    def server(self, server_id: str) -> facts.Server:
        def work() -> facts.Server:
            cell, row = self._world._server(server_id)
            return self._as_api(records._server(cell, row, False))

        return ty.cast(facts.Server, self._read('server', work))

    def fault(self, server_id: str) -> str:
        return ty.cast(
            str,
            self._read('fault', lambda: self._world.faults.get(server_id, '')),
        )

    def mappings_of(
        self, server_id: str, server: facts.Server | None = None
    ) -> tuple[facts.Mapping, ...]:
        def work() -> tuple[facts.Mapping, ...]:
            self._world._server(server_id)
            return tuple(
                _mapping_by_api(records._mapping(cell, m))
                for cell, m in self._records.live_mappings(server_id=server_id)
            )

        return ty.cast(
            tuple[facts.Mapping, ...], self._read('mappings_of', work)
        )

    def rows_of(
        self, server_id: str, sought: str | None = None
    ) -> tuple[facts.Row, ...]:
        def work() -> tuple[facts.Row, ...]:
            return tuple(
                facts.Row(
                    id=r['id'],
                    volume_id=r['volume_id'],
                    server_id=server_id,
                    attach_status=r['attach_status'],
                )
                for r in self._records.live_rows()
                if r['instance_uuid'] == server_id
            )

        return ty.cast(tuple[facts.Row, ...], self._read('rows_of', work))

    def rows_of_volume(self, volume_id: str) -> tuple[facts.Row, ...]:
        def work() -> tuple[facts.Row, ...]:
            return tuple(
                facts.Row(
                    id=r['id'],
                    volume_id=volume_id,
                    server_id=r['instance_uuid'],
                    attach_status=r['attach_status'],
                )
                for r in self._records.live_rows(volume_id)
            )

        return ty.cast(
            tuple[facts.Row, ...], self._read('rows_of_volume', work)
        )

    def volume(self, volume_id: str) -> facts.Volume:
        def work() -> facts.Volume:
            row = self._world._volume(volume_id)
            return _volume_by_api(records._volume(row))

        return ty.cast(facts.Volume, self._read('volume', work))

    def actions(self, server_id: str) -> tuple[facts.Action, ...]:
        def work() -> tuple[facts.Action, ...]:
            self._world._server(server_id)
            found = self._records.actions({server_id})
            return tuple(
                facts.Action(
                    a.server_id,
                    a.action,
                    a.request_id,
                    a.user_id,
                    a.start_time,
                )
                for a in reversed(found)
            )

        return ty.cast(tuple[facts.Action, ...], self._read('actions', work))

    def attachment_exists(self, attachment_id: str) -> bool:
        def work() -> bool:
            return any(
                r['id'] == attachment_id for r in self._records.live_rows()
            )

        return bool(self._read('attachment_exists', work))

    def diagnostics_running(self, server_id: str) -> bool | None:
        def work() -> bool | None:
            _cell, row = self._world._server(server_id)
            if not self._world.computes.get(row['host'] or ''):
                return None
            guest = self._world.guests.get(server_id)
            if row['vm_state'] not in ('active', 'error', 'stopped'):
                return None
            return guest is not None and guest.runs

        return ty.cast(bool | None, self._read('diagnostics', work))

    def with_ports(self) -> frozenset[str]:
        return self._world.ports

    def ha_segments(self) -> list[str]:
        return self._world.segments

    # -- acting

    def start(self, server_id: str) -> None:
        def work() -> None:
            self._world.may_start(server_id)
            self._world.start(server_id, ADMIN)

        self._write('start', (server_id,), work)

    def stop(self, server_id: str) -> None:
        self._write(
            'stop',
            (server_id,),
            lambda: self._world.stop(server_id, ADMIN),
        )

    def hard_reboot(self, server_id: str) -> None:
        def work() -> None:
            self._world.may_reboot(server_id)
            self._world.hard_reboot(server_id, ADMIN)

        self._write('hard_reboot', (server_id,), work)

    def lock(self, server_id: str, reason: str) -> None:
        self._write(
            'lock',
            (server_id,),
            lambda: self._world.set_lock(server_id, ADMIN, reason),
        )

    def unlock(self, server_id: str) -> None:
        self._write(
            'unlock',
            (server_id,),
            lambda: self._world.unlock(server_id, ADMIN),
        )

    def attach(self, wanted: facts.MapAttachment) -> str | None:
        return ty.cast(
            str | None,
            self._write(
                'attach',
                (wanted.server_id, wanted.volume_id),
                lambda: self._world.attach(
                    wanted.server_id,
                    wanted.volume_id,
                    ADMIN,
                    wanted.device,
                    wanted.tag,
                    wanted.delete_on_termination,
                ),
            ),
        )

    def make_available(self, volume_id: str) -> None:
        def work() -> None:
            volume = dict(self._world._volume(volume_id))
            self._world.reset_volume_status(volume_id, 'available')
            self._records.check_change(
                'volumes', volume, self._world._volume(volume_id)
            )

        self._write('make_available', (volume_id,), work)

    def console(self, server_id: str) -> list[str]:
        return ty.cast(list[str], self._read('console', lambda: ['login:']))


class Guests:
    """ports.Guests."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    def boot_id(self, server: facts.Server) -> str:
        self._process.reach('read boot id')
        with self._world.lock:
            return str(self._world.log_in(server.id).boot)

    def reboot(self, server: facts.Server, boot_id: str) -> None:
        self._process.reach('guest reboot before')
        self._process.fault('guest reboot', BEFORE)
        self._world.reboot_guest(server.id, boot_id)
        self._process.reach('guest reboot after')
        self._process.fault('guest reboot', AFTER)


def _volume_by_api(v: facts.Volume) -> facts.Volume:
    """Cinder's API does not tell the attach_status."""
    return facts.Volume(
        id=v.id,
        name=v.name,
        project_id=v.project_id,
        status=v.status,
        multiattach=v.multiattach,
        migration_status=v.migration_status,
        host=v.host,
    )


def _mapping_by_api(m: facts.Mapping) -> facts.Mapping:
    return facts.Mapping(
        server_id=m.server_id,
        volume_id=m.volume_id,
        device=m.device,
        attachment_id=m.attachment_id,
        root=m.root,
        tag=m.tag,
        delete_on_termination=m.delete_on_termination,
        uuid=m.uuid,
    )


def _row_by_api(r: facts.Row) -> facts.Row:
    attached = r.attach_status == 'attached'
    return facts.Row(
        id=r.id,
        volume_id=r.volume_id,
        server_id=r.server_id,
        attach_status=r.attach_status,
        device=r.device if attached else None,
        host=r.host if attached else None,
    )


if ty.TYPE_CHECKING:

    def _fits(
        cloud: Cloud, clock: Clock, guests: Guests, process: Process
    ) -> tuple[ports.Cloud, ports.Clock, ports.Guests, ports.Progress]:
        return cloud, clock, guests, process
