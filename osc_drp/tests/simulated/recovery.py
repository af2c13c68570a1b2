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

"""Recoveries that are cut short and taken up again, to be compared.

A case is a cloud, what is run on it, where it is stopped, and what happens
to the cloud before it goes on. At its end it is compared with the same
recovery undisturbed.
"""

import collections
import collections.abc
import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import cinder_only
from osc_drp.engine import cleaner
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import recover
from osc_drp.engine import repair
from osc_drp.engine import reset
from osc_drp.engine import restart
from osc_drp.engine import restore
from osc_drp.engine import session
from osc_drp.tests.simulated import process as process_module
from osc_drp.tests.simulated import records
from osc_drp.tests.simulated import world as world_module

#: One at a time: so the same case is the same each time.
ALONE = apply.Limits(1, 1)

#: By (command or step, server, volume): (status, what).
Told: ty.TypeAlias = dict[tuple[str, str, str], tuple[str, str]]
Subject: ty.TypeAlias = collections.abc.Callable[['Case'], None]
Error: ty.TypeAlias = process_module.Error


class Case:
    """One recovery of one cloud, in as many processes as it takes."""

    def __init__(
        self,
        world: world_module.World,
        cloud_map: facts.CloudMap,
        directory: pathlib.Path,
    ) -> None:
        self.world = world
        self.map = cloud_map
        self.directory = directory
        self.process = process_module.Process(world)
        #: Steps that the operator has seen end.
        self.ended: set[str] = set()
        #: What was told last of each object.
        self.told: Told = {}
        self.limits = ALONE
        #: What is run reboots guests from the inside as well.
        self.reboots = False
        #: Whoever runs it gives up on what does not end well.
        self.last = False
        #: The last process came to its end; or Ctrl-C was its end.
        self.finished = False
        self.interrupted = False
        self.error: Exception | None = None

    @property
    def runs(self) -> journal.RunDirectory:
        return journal.RunDirectory(self.directory)

    def session(self, command: str) -> session.Session:
        return session.Session(
            self.directory, command, {'map': 'm'}, self.process.say
        )

    def tell(
        self,
        step: str,
        items: collections.abc.Iterable[plan.Item],
        outcomes: collections.abc.Iterable[apply.Outcome],
    ) -> None:
        """Note what a command's table would say."""
        for item in items:
            key = (step, item.server_id, item.volume_id)
            self.told[key] = (str(item.do), item.reason)
        for o in outcomes:
            self.told[step, o.server_id, o.volume_id] = (o.status, o.what)

    def go(
        self, subject: Subject, stop_at: int | None = None, error: Error = None
    ) -> bool:
        """Run in a process of its own; False: it is to be run again."""
        self.process = process_module.Process(self.world, stop_at, error)
        self.finished, self.error = False, None
        self.interrupted = False
        self.last = stop_at is None
        with self.process.running():
            try:
                subject(self)
            except process_module.Killed:
                return False
            except KeyboardInterrupt:
                self.interrupted = True
                return False
            except exceptions.DrpError as refused:
                self.error = refused
                return False
        self.finished = True
        return not self.not_well()

    def our_locks(self) -> list[str]:
        """List the servers that we have locked, and still have."""
        return [
            f'server {server_id} is still locked: {reason}'
            for server_id, reason in self.world.reasons.items()
            if (reason or '').startswith('osc-drp')
        ]

    def not_well(self) -> list[str]:
        """List what was told that should not be."""
        bad = (*apply.NOT_WELL, plan.Do.FLAG)
        return [f'{k}: {v}' for k, v in self.told.items() if v[0] in bad]

    def lists(
        self,
        servers: collections.abc.Collection[str],
        volumes: collections.abc.Collection[str],
    ) -> bool:
        """Whether the operator is told that one of these is not as it was."""
        tables = [
            self.world.records.table(cell, 'instances')
            for cell in records.CELLS
        ]
        ids = {
            row['uuid']
            for table in tables
            for row in table
            if row['display_name'] in servers
        } | {
            row['id']
            for row in self.world.records.table(records.CINDER, 'volumes')
            if row['display_name'] in volumes
        }
        well = (apply.DONE, plan.Do.NOTHING)
        return any(
            ids & {*key} and told[0] not in well
            for key, told in self.told.items()
        )


EVERYTHING = plan.Selection()


def commands(classic: bool, only_cinder: bool = False) -> Subject:
    """Give the single commands, one after the other, as an operator would.

    Whoever runs them goes on with the one that was cut short.

    :param classic: reset and attach again; else repair
    :param only_cinder: reset in cinder's database, by whoever has no other
    """

    def subject(case: Case) -> None:
        p, chosen = case.process, EVERYTHING
        case.told = {k: v for k, v in case.told.items() if k[0] in case.ended}

        def step(command: str, job: ty.Any, propose: ty.Any) -> None:
            if command in case.ended:
                return
            if case.not_well() and not case.last:
                return  # first things first
            held = case.session(command)
            outcomes: list[apply.Outcome] = []
            with held.held():
                made = job(held.runs)
                items = getattr(made, propose)()
                acting = (*plan.ACTING, plan.Do.WAIT)
                if any(i.do in acting for i in items):
                    with held.journal() as run:
                        outcomes = made.carry_out(items, run)
            case.tell(command, items, outcomes)
            if not any(o.status in apply.NOT_WELL for o in outcomes):
                case.ended.add(command)

        if only_cinder:
            step(
                'db reset',
                lambda runs: cinder_only.Reset(
                    cinder_only.HalfDatabases(p.cloud, p.cinder),
                    case.map,
                    chosen,
                    p.say,
                    known=runs.kept(),
                    clock=p.clock,
                ),
                'propose_settled',
            )
        elif classic:
            step(
                'db reset',
                lambda runs: reset.Reset(
                    p.databases, case.map, chosen, p.say, clock=p.clock
                ),
                'propose_settled',
            )
        else:
            step(
                'db repair',
                lambda runs: repair.Repair(
                    p.databases, case.map, chosen, p.say, clock=p.clock
                ),
                'propose_settled',
            )
        step(
            'servers restart',
            lambda runs: restart.Restart(
                p.cloud,
                case.map,
                chosen,
                restart.Settings(limits=case.limits),
                p.say,
                our_stops=runs.stops(),
                known=cleaner.Known(
                    resets=runs.kept(),
                    locks=runs.locks(),
                    unanswered=runs.unanswered_reboots(),
                ),
                failing=runs.failing(),
                clock=p.clock,
            ),
            'propose_ready',
        )
        step(
            'attachments restore',
            lambda runs: restore.Restore(
                p.cloud,
                case.map,
                chosen,
                p.say,
                resets=runs.resets(),
                wished_off=runs.wished_off(),
                failing=runs.failing(),
                limits=case.limits,
                clock=p.clock,
            ),
            'propose',
        )

    return subject


def in_one(
    classic: bool,
    chosen: plan.Selection = EVERYTHING,
    lost_at: str | None = None,
) -> Subject:
    """Give `drp recover`."""

    def subject(case: Case) -> None:
        p = case.process
        case.reboots = True
        held = case.session('recover')
        with held.held():
            job = recover.Recover(
                p.cloud,
                p.databases,
                case.map,
                chosen,
                recover.Settings(
                    classic=classic,
                    starting=restart.Settings(
                        limits=case.limits, lost_at=lost_at
                    ),
                ),
                p,
                recover.Memory.of(held.runs),
                guests=p.guests,
                earlier=held.earlier(),
                clock=p.clock,
            )
            steps = job.propose_ready()
            if job.has_work(steps):
                with held.journal() as run:
                    steps = job.carry_out(
                        steps, run, lambda: recover.Memory.of(held.runs)
                    )
                    held.keep_open = any(
                        o.status in apply.NOT_WELL
                        for s in steps
                        for o in s.outcomes
                    )
        case.told.clear()
        for step in steps:
            case.tell(step.name, step.items, step.outcomes)

    return subject


# -- what is compared


@dataclasses.dataclass(frozen=True)
class End:
    """How a cloud ended: by name, without ids that may differ."""

    servers: ty.Mapping[str, tuple[ty.Any, ...]]
    volumes: ty.Mapping[str, tuple[ty.Any, ...]]
    #: By server: what nova, cinder and the hypervisor say of its volumes.
    disks: ty.Mapping[str, tuple[ty.Any, ...]]

    def without(
        self,
        servers: collections.abc.Collection[str],
        volumes: collections.abc.Collection[str],
    ) -> 'End':
        """Leave out what somebody else changed."""
        return End(
            {n: v for n, v in self.servers.items() if n not in servers},
            {n: v for n, v in self.volumes.items() if n not in volumes},
            {n: v for n, v in self.disks.items() if n not in servers},
        )


def end_of(case: Case) -> End:
    """Look at a cloud's end."""
    world = case.world
    seen = world.records.observe(world.now())
    names = {v.id: v.name for v in seen.volumes.values()}
    nova: dict[str, list[ty.Any]] = collections.defaultdict(list)
    cinder: dict[str, list[ty.Any]] = collections.defaultdict(list)
    for m in seen.mappings:
        if not m.deleted:
            nova[m.server_id].append(
                (
                    m.device,
                    names.get(m.volume_id),
                    m.root,
                    m.tag,
                    m.delete_on_termination,
                    m.connected,
                )
            )
    for r in seen.rows:
        if not r.deleted:
            named = any(m.attachment_id == r.id for m in seen.mappings)
            cinder[r.server_id or ''].append(
                (names.get(r.volume_id), r.attach_status, named)
            )
    servers, disks = {}, {}
    for s in seen.servers.values():
        guest = world.guests.get(s.id)
        servers[s.name] = (
            s.vm_state,
            s.task_state,
            s.power_state,
            s.locked,
            guest is not None and guest.runs and not guest.away,
            # each guest knows all its disks
            case.reboots and guest is not None and guest.late,
        )
        disks[s.name] = (
            tuple(sorted(nova[s.id], key=str)),
            tuple(sorted(cinder[s.id], key=str)),
            tuple((d, names.get(v)) for d, v in guest.volumes)
            if guest
            else (),
        )
    volumes = {
        v.name: (v.status, v.attach_status) for v in seen.volumes.values()
    }
    return End(servers, volumes, disks)


def difference(wanted: End, found: End) -> list[str]:
    """Say what differs."""
    lines = []
    for field in dataclasses.fields(End):
        a, b = getattr(wanted, field.name), getattr(found, field.name)
        lines += [
            f'{field.name} {name}: {a.get(name)} became {b.get(name)}'
            for name in sorted({*a, *b})
            if a.get(name) != b.get(name)
        ]
    return lines


def check_journals(case: Case, failed: bool) -> list[str]:
    """Say what is wrong with journals and locks after all ended well.

    :param failed: the disk refused a line
    """
    directory = case.directory
    wrong = []
    runs = journal.RunDirectory(directory)
    for path in runs.runs():
        # a later run may have released its locks
        entries = [e for e in journal.read(path) if 'by' not in e]
        events = [e['event'] for e in entries]
        if not entries:
            continue  # killed before its first line was whole
        if events[0] != 'begin':
            wrong.append(f'{path.name} begins with {events[0]}')
        if 'end' in events[:-1]:
            wrong.append(f'{path.name} goes on after its end')
        opened = collections.Counter(
            (e.get('server'), e.get('volume'))
            for e in entries
            if e['event'] == 'old'
        )
        for key in opened:
            told = [
                e
                for e in entries
                if e['event'] == 'outcome'
                and (e.get('server'), e.get('volume')) == key
            ]
            if events[-1] == 'end' and not (
                told or failed or 'resume' in events
            ):
                wrong.append(f'{path.name}: {key} has no outcome')
    if case.reboots and runs.locks():
        # recover would ask to release them
        wrong.append(f'servers still locked by the journal: {runs.locks()}')
    return wrong + case.our_locks()


@contextlib.contextmanager
def scratch() -> ty.Iterator[pathlib.Path]:
    """Give a directory for journals, in memory if there is such a place."""
    memory = '/dev/shm' if pathlib.Path('/dev/shm').is_dir() else None
    path = pathlib.Path(tempfile.mkdtemp(dir=memory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def entries(directory: pathlib.Path) -> list[dict[str, ty.Any]]:
    """Read all journals, for a message."""
    return [
        json.loads(json.dumps(e))
        for path in journal.RunDirectory(directory).runs()
        for e in journal.read(path)
    ]
