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

"""A cloud, its databases and its clock in memory, for the drivers.

Time passes only when somebody sleeps; what nova does takes some of it. A
test says what goes wrong by :meth:`Cloud.next`.
"""

import collections
import dataclasses
import pathlib
import tempfile
import threading

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.tests.unit.engine import build

ME = 'me'


class Clock:
    """Time that passes by sleeping; what is due then happens."""

    def __init__(self):
        self.now = 1000.0
        self.slept = 0.0
        self._due = []
        self._lock = threading.RLock()

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        with self._lock:
            self.now += seconds
            self.slept += seconds
            due = [e for e in self._due if e[0] <= self.now]
            self._due = [e for e in self._due if e[0] > self.now]
            for _at, happen in sorted(due, key=lambda e: e[0]):
                happen()

    def later(self, seconds, happen):
        """Let something happen in a while."""
        self._due.append((self.now + seconds, happen))


class Cloud:
    """ports.Cloud: nova and cinder as they behave in LAB.md."""

    user_id = ME
    keeps_lock_reasons = True
    reboot_cleans = True

    def __init__(self, seen, clock=None):
        self.clock = clock or Clock()
        self.seen = seen
        self.logs = collections.defaultdict(list)
        self.faults = {}
        self.diagnostics = {}
        #: What a guest says on its console.
        self.consoles = {}
        #: By attachment id, its iSCSI targets.
        self.targets_of = {}
        #: What was asked for, in its order.
        self.sent = []
        self.reads = collections.Counter()
        self.devices = {}
        #: Servers with a network port; masakari's segments.
        self.ports = frozenset()
        self.segments = []
        self._next = collections.defaultdict(list)
        self._lock = threading.RLock()

    def check_up(self):
        self._effect('check_up', None)

    def with_ports(self):
        return self.ports

    def addresses(self, server_id):
        return ()

    def targets(self, attachment_id):
        return self.targets_of.get(attachment_id, frozenset())

    def console(self, server_id):
        return self.consoles.get(server_id, [])

    def ha_segments(self):
        return self.segments

    # -- what a test says

    def next(self, request, *effects):
        """Say what the next requests of a kind do; None: as usual.

        Effects are called with the server's id, and may raise.
        """
        self._next[request].extend(effects)

    def change(self, server_id, **changes):
        """Change a server's record."""
        servers = dict(self.seen.servers)
        servers[server_id] = dataclasses.replace(servers[server_id], **changes)
        self.set(servers=servers)

    def set(self, **changes):
        self.seen = dataclasses.replace(self.seen, **changes)

    def set_volume(self, volume_id, **changes):
        volumes = dict(self.seen.volumes)
        volumes[volume_id] = dataclasses.replace(volumes[volume_id], **changes)
        self.set(volumes=volumes)

    def log(self, server_id, name, user='user', at=build.LATER):
        """Add the newest action of a server."""
        entries = self.logs[server_id]
        request = f'req-{server_id}-{len(entries)}'
        entries.insert(0, build.action(name, at, user, server_id, request))

    # -- what the engine asks

    def observe(self):
        self.reads['observe'] += 1
        self._effect('observe', None)
        return dataclasses.replace(self.seen, source=facts.API)

    def renew(self, seen):
        self.reads['renew'] += 1
        self._effect('observe', None)
        now = self.seen
        return seen.renewed(now.taken_at, now.servers, now.services)

    def server(self, server_id):
        self.reads['server'] += 1
        self._effect('server', server_id)
        if server_id not in self.seen.servers:
            raise exceptions.NotFound(f'no server {server_id}')
        return self.seen.servers[server_id]

    def fault(self, server_id):
        return self.faults.get(server_id, '')

    def mappings_of(self, server_id, server=None):
        # asks for the server, too, unless it was handed over
        self.reads['server'] += server is None
        self._effect('mappings_of', server_id)
        if server_id not in self.seen.servers:
            raise exceptions.NotFound(f'no server {server_id}')
        return tuple(m for m in self.seen.mappings if m.server_id == server_id)

    def rows_of(self, server_id, sought=None):
        self.reads['whole rows'] += sought is None
        self._effect('rows_of', server_id)
        return tuple(
            r
            for r in self.seen.rows
            if r.server_id == server_id and not r.deleted
        )

    def rows_of_volume(self, volume_id):
        self._effect('rows_of_volume', volume_id)
        return tuple(
            r
            for r in self.seen.rows
            if r.volume_id == volume_id and not r.deleted
        )

    def attachment_exists(self, attachment_id):
        self.reads['attachment'] += 1
        self._effect('attachment_exists', attachment_id)
        return any(
            r.id == attachment_id and not r.deleted for r in self.seen.rows
        )

    def volume(self, volume_id):
        if volume_id not in self.seen.volumes:
            raise exceptions.NotFound(f'no volume {volume_id}')
        return self.seen.volumes[volume_id]

    def actions(self, server_id):
        with self._lock:
            self.reads['actions'] += 1
            self._effect('actions', server_id)
            return tuple(self.logs[server_id])

    def diagnostics_running(self, server_id):
        with self._lock:
            self.reads['diagnostics'] += 1
            self._effect('diagnostics', server_id)
            return self.diagnostics.get(server_id, True)

    def start(self, server_id):
        with self._lock:
            self.sent.append(('start', server_id))
            if not self._effect('start', server_id):
                self.do_start(server_id)

    def stop(self, server_id):
        with self._lock:
            self.sent.append(('stop', server_id))
            if not self._effect('stop', server_id):
                self.do_stop(server_id)

    def lock(self, server_id, reason):
        with self._lock:
            self.sent.append(('lock', server_id))
            if not self._effect('lock', server_id):
                self.change(server_id, locked=True, locked_reason=reason)

    def unlock(self, server_id):
        with self._lock:
            self.sent.append(('unlock', server_id))
            if not self._effect('unlock', server_id):
                self.change(server_id, locked=False, locked_reason=None)

    def hard_reboot(self, server_id):
        with self._lock:
            self.sent.append(('reboot', server_id))
            if not self._effect('reboot', server_id):
                self.do_reboot(server_id)

    def make_available(self, volume_id):
        with self._lock:
            self.sent.append(('make_available', volume_id))
            if not self._effect('make_available', volume_id):
                self.set_volume(volume_id, status='available')

    def attach(self, wanted):
        with self._lock:
            self.sent.append(('attach', wanted.server_id, wanted.volume_id))
            if not self._effect('attach', wanted):
                self.do_attach(wanted)
            return self.devices.get(wanted.volume_id, wanted.device)

    # -- what nova does

    def do_start(self, server_id, user=ME):
        self._want(server_id, 'start', 'stopped')
        self.log(server_id, 'start', user)
        self.change(server_id, task_state='powering-on')

        def end():
            fault = self.faults.get(server_id)
            self.change(
                server_id,
                task_state=None,
                vm_state='error' if fault else 'active',
                power_state=facts.NOSTATE if fault else facts.RUNNING,
            )

        self.clock.later(6, end)

    def do_reboot(self, server_id, forgets=True, starts=True, user=ME):
        """Reboot hard: nova deletes every mapping that dangles."""
        self._want(server_id, 'reboot', 'active', 'stopped', 'error')
        self.log(server_id, 'reboot', user)
        self.change(server_id, task_state='rebooting_hard')

        def end():
            live = {r.id for r in self.seen.rows if not r.deleted}
            if forgets:
                self.set(
                    mappings=tuple(
                        m
                        for m in self.seen.mappings
                        if m.server_id != server_id or m.attachment_id in live
                    )
                )
                has = {m.volume_id for m in self.mappings_of(server_id)}
                self.change(server_id, volumes_attached=frozenset(has))
            self.change(server_id, task_state=None)
            if starts:
                self.change(
                    server_id, vm_state='active', power_state=facts.RUNNING
                )

        self.clock.later(6, end)

    def do_stop(self, server_id, user=ME):
        self._want(server_id, 'stop', 'active', 'error')
        self.log(server_id, 'stop', user)
        self.change(server_id, task_state='powering-off')
        self.clock.later(4, lambda: self.stopped(server_id))

    def stopped(self, server_id):
        self.change(
            server_id,
            task_state=None,
            vm_state='stopped',
            power_state=facts.SHUTDOWN,
        )

    def do_attach(self, wanted, fails=False, seconds=1):
        server_id, volume_id = wanted.server_id, wanted.volume_id
        volume = self.seen.volumes[volume_id]
        wanted_in = ('available', 'in-use')[: 1 + volume.multiattach]
        if volume.status not in wanted_in:
            raise exceptions.Conflict(f'volume {volume_id} {volume.status}')
        self.log(server_id, 'attach_volume', ME)
        mapping = build.mapping(server_id, volume_id, device=wanted.device)
        row = build.row(server_id, volume_id, attach_status='attaching')
        before = self.seen
        self.set(
            mappings=(*before.mappings, mapping), rows=(*before.rows, row)
        )
        self.set_volume(volume_id, status='attaching')

        def end():
            self.set(rows=tuple(r for r in self.seen.rows if r is not row))
            if fails:
                self.set(
                    mappings=tuple(
                        m for m in self.seen.mappings if m is not mapping
                    )
                )
                self.set_volume(volume_id, status='available')
                return
            attached = dataclasses.replace(row, attach_status='attached')
            self.set(rows=(*self.seen.rows, attached))
            self.set_volume(
                volume_id, status='in-use', attach_status='attached'
            )

        self.clock.later(seconds, end)

    def _want(self, server_id, what, *states):
        server = self.seen.servers[server_id]
        if server.vm_state not in states or server.task_state:
            raise exceptions.Conflict(
                f"Cannot '{what}' instance {server_id} while it is in "
                f'vm_state {server.vm_state}, task {server.task_state}'
            )

    def _effect(self, request, argument):
        if not self._next[request]:
            return False
        effect = self._next[request].pop(0)
        if effect is None:
            return False
        effect(argument)
        return True


class Guests:
    """ports.Guests: each takes ten seconds to reboot."""

    def __init__(self, clock):
        self.clock = clock
        self.boots = collections.Counter()
        self.reboots = collections.Counter()
        #: By server id: why nobody gets in.
        self.closed = {}
        #: By server id: what happens instead of a reboot.
        self.instead = {}

    def boot_id(self, server):
        if server.id in self.closed:
            raise exceptions.SshError(self.closed[server.id])
        return f'boot-{server.id}-{self.boots[server.id]}'

    def reboot(self, server, boot_id):
        if boot_id != self.boot_id(server):
            raise exceptions.Changed('another boot')
        if server.id in self.instead:
            self.instead[server.id]()
            return
        self.do_reboot(server.id)

    def do_reboot(self, server_id):
        self.reboots[server_id] += 1
        self.closed[server_id] = 'it refuses the connection'

        def up():
            self.boots[server_id] += 1
            del self.closed[server_id]

        self.clock.later(10, up)


class CinderDatabase:
    """ports.CinderDatabase: the database below a Cloud's cinder."""

    def __init__(self, cloud):
        self.cloud = cloud
        self.mapped = None
        #: Called between what was read under the lock and the commit.
        self.before_commit = lambda: None

    def check_grants(self, locks=True):
        self.locks = locks

    def observe_cinder(self, mapped):
        self.mapped = mapped
        return self._side()

    def _side(self):
        seen = self.cloud.seen
        return build.seen(volumes=seen.volumes.values(), rows=seen.rows)

    def reset_cinder(self, pair, confirm, record):
        confirm(self._side())
        key = (pair.server_id, pair.volume_id)
        ids = [r.id for r in pair.rows]
        record(
            old={
                'kind': 'reset_cinder',
                'server_id': key[0],
                'volume_id': key[1],
                'changes': [
                    {'table': 'volume_attachment', 'id': i} for i in ids
                ],
            }
        )
        self.before_commit()
        rows = tuple(
            build.gone(r) if r.id in ids else r for r in self.cloud.seen.rows
        )
        left = [r for r in rows if r.volume_id == key[1] and not r.deleted]
        self.cloud.set(rows=rows)
        self.cloud.set_volume(
            key[1],
            status='in-use' if left else 'reserved',
            attach_status='attached' if left else 'detached',
        )

    def undo(self, old, confirm, record):
        confirm(self._side())
        record(old={**old, 'kind': 'undo'})
        ids = {c['id'] for c in old['changes']}
        back = {'deleted': False, 'deleted_at': None}
        self.cloud.set(
            rows=tuple(
                dataclasses.replace(r, attach_status='attached', **back)
                if r.id in ids
                else r
                for r in self.cloud.seen.rows
            )
        )
        self.cloud.set_volume(
            old['volume_id'], status='in-use', attach_status='attached'
        )


class Databases:
    """ports.Databases: two records, written as db/write.py does."""

    def __init__(self, seen, actions=()):
        self.seen = seen
        self.actions = list(actions)
        self.asked = []
        self.resets = []
        #: By (server, volume): called between the two commits.
        self.between = {}
        #: Called with the number of each observation.
        self.on_observe = lambda number: None
        self._observed = 0

    def observe(self):
        self._observed += 1
        self.on_observe(self._observed)
        return self.seen

    def actions_since(self, server_ids, since):
        self.asked.append((frozenset(server_ids), since))
        return [
            a
            for a in self.actions
            if a.server_id in server_ids and a.start_time >= since
        ]

    def reset(self, pair, confirm, record, *, free=True):
        confirm(self.seen)
        key = (pair.server_id, pair.volume_id)
        record(old={'server_id': key[0], 'volume_id': key[1]})
        self.resets.append(key)

        def drop(records):
            return tuple(
                build.gone(one)
                if (one.server_id, one.volume_id) == key and not one.deleted
                else one
                for one in records
            )

        self.set(mappings=drop(self.seen.mappings))
        self.between.get(key, lambda: None)()
        self.set(rows=drop(self.seen.rows))
        left = [
            r
            for r in self.seen.rows
            if r.volume_id == key[1] and not r.deleted
        ]
        unused = 'available' if free else 'reserved'
        volume = dataclasses.replace(
            self.seen.volumes[key[1]],
            status='in-use' if left else unused,
            attach_status='attached' if left else 'detached',
        )
        self.set(volumes={**self.seen.volumes, volume.id: volume})

    def set(self, **changes):
        self.seen = dataclasses.replace(self.seen, **changes)

    def change(self, server_id, **changes):
        servers = dict(self.seen.servers)
        servers[server_id] = dataclasses.replace(servers[server_id], **changes)
        self.set(servers=servers)


def run(test, command='test'):
    """Open a journal that goes away with the test."""
    directory = tempfile.TemporaryDirectory()
    test.addCleanup(directory.cleanup)
    runs = journal.RunDirectory(pathlib.Path(directory.name))
    one = runs.begin(command, {})
    test.addCleanup(one.close)
    return one


def events(one, *names):
    """List a journal's entries of some kinds, without their time."""
    return [
        {k: v for k, v in e.items() if k != 'at'}
        for e in one.entries()
        if e['event'] in names
    ]


def then_raise(error, first=None):
    """Make an effect: do something (or nothing), then fail."""

    def effect(argument):
        if first:
            first(argument)
        raise error

    return effect
