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

"""All steps of the procedure in one run: observe, decide, act, verify.

The steps are those of the single commands, planned together, asked about
once. First the records, all of them, because that takes milliseconds a row;
then each server by itself: it is started, and as soon as nova says that it
runs, its missing volumes are attached, before the next one's turn. A guest
with systemd waits 90 s for a disk of its fstab, then drops to emergency mode.

Only what the operator was shown is done. What the cloud has become since is
looked at again before each step, and can only make the list shorter.
"""

import collections.abc
import dataclasses
import functools
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import expect
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import locks
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import reboot
from osc_drp.engine import repair
from osc_drp.engine import reset
from osc_drp.engine import restart
from osc_drp.engine import restore
from osc_drp.engine import rules
from osc_drp.engine import session
from osc_drp.engine import sidebyside
from osc_drp.engine import units
from osc_drp.engine import verdicts
from osc_drp.engine import waves
from osc_drp.i18n import _

#: The steps, in the order of the procedure.
REPAIR, RESET, START, ATTACH = 'repair', 'reset', 'start', 'attach'
GUEST = 'guest'

_RESETS = frozenset({plan.Do.RESET, plan.Do.FINISH})
_ATTACHES = frozenset({plan.Do.ATTACH, plan.Do.WAIT})

Key: ty.TypeAlias = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The options of `drp recover`."""

    #: The procedure as printed: reset every data disk, attach it again.
    classic: bool = False
    #: Share of all mappings that may disagree without a trace.
    limit: float = plan.LIMIT
    starting: restart.Settings = dataclasses.field(
        default_factory=restart.Settings
    )
    #: Seconds from a start to a look at its guest's console; 0: none.
    console: float = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """What earlier runs did, from their journals."""

    resets: collections.abc.Mapping[Key, str]
    wished_off: frozenset[Key]
    shielded: frozenset[str]
    stops: collections.abc.Mapping[str, list[str | None]]
    locks: collections.abc.Mapping[str, str]
    failing: collections.abc.Container[str] = ()

    @classmethod
    def of(cls, runs: journal.RunDirectory) -> 'Memory':
        """Read it from the journals of a run directory."""
        return cls(
            runs.resets(),
            runs.wished_off(),
            runs.shielded(),
            runs.stops(),
            runs.locks(),
            runs.failing(),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step's items, and what became of them."""

    name: str
    items: tuple[plan.Item, ...]
    outcomes: tuple[apply.Outcome, ...] = ()

    @property
    def acting(self) -> tuple[plan.Item, ...]:
        """The items that change something."""
        return tuple(i for i in self.items if i.do in plan.ACTING)


class Recover:
    """Plans and carries out `drp recover`."""

    def __init__(
        self,
        cloud: ports.Cloud,
        databases: ports.Databases | None,
        cloud_map: facts.CloudMap,
        selection: plan.Selection,
        settings: Settings,
        progress: ports.Progress,
        memory: Memory,
        *,
        guests: ports.Guests | None = None,
        earlier: collections.abc.Sequence[journal.Entry] = (),
        clock: ports.Clock | None = None,
    ) -> None:
        """Prepare a recovery.

        :param databases: None: what disagrees is flagged, not repaired
        :param guests: None: no guest is rebooted from the inside (step 5)
        :param earlier: the journal of the run that this one goes on with
        :raises Refused: ``classic`` without databases
        """
        if settings.classic and databases is None:
            raise exceptions.Refused(
                _('--classic writes databases, and none is configured')
            )
        self._cloud = cloud
        self._databases = databases
        self._map = cloud_map
        self._selection = selection.lost_at(settings.starting.lost_at)
        self._settings = settings
        self._progress = progress
        self._say = say = progress.say
        self._memory = memory
        self._guests = guests
        self._earlier = list(earlier)
        self._clock = clock or ports.RealClock()
        #: Servers that are proven to run before anything is done.
        self._running: set[str] = set()
        #: When the last server was started.
        self._started_at = 0.0
        self._runner = apply.Runner(settings.starting.limits, say)
        self._restart = restart.Restart(
            cloud,
            cloud_map,
            selection,
            settings.starting,
            say,
            our_stops=memory.stops,
            clock=self._clock,
        )

    # -- planning --------------------------------------------------------

    def propose(self) -> tuple[Step, ...]:
        """Observe once and plan all steps; changes and waits for nothing."""
        self._restart.propose()
        return self._plan(self._restart.decide)

    def propose_ready(self) -> tuple[Step, ...]:
        """Wait until the hosts are ready and nova has looked; then plan.

        :raises Refused: something that the selection needs is not up, or one
            database looks older than the other
        """
        self._restart.propose_ready()
        return self._plan(self._restart.decide_now)

    @property
    def seen(self) -> facts.Observation:
        """The last observation of the APIs."""
        return self._restart.seen

    def _plan(
        self,
        decide: collections.abc.Callable[
            [tuple[plan.Item, ...]], tuple[plan.Item, ...]
        ],
    ) -> tuple[Step, ...]:
        repairs, resets = self._plan_records()
        done = (*repairs, *resets)
        starts = decide(done)
        self._running = {
            i.server_id for i in starts if i.do is plan.Do.NOTHING
        }
        resets = self._left_running(resets)
        # a user's detach that is to be finished is no reset of ours
        wishes = {
            _key(i) for i in repairs if i.rule == 'R3a' and i.do in _RESETS
        }
        self._restore = self._make_restore(self._memory, wishes)
        taken = {_key(i) for i in done if i.do in _RESETS} - wishes
        on = expect.after(self.seen, (*done, *starts))
        attaches = self._restore.plan_on(on, taken)
        guests: tuple[plan.Item, ...] = ()
        if self._guests:
            late = journal.late_attaches(self._earlier) | {
                i.server_id for i in attaches if i.do in _ATTACHES
            }
            guests = self._make_reboot(
                self._guests, self._earlier, late
            ).plan_on(expect.after(on, attaches))
        return (
            Step(REPAIR, repairs),
            Step(RESET, resets),
            Step(START, starts),
            Step(ATTACH, attaches),
            Step(GUEST, guests),
        )

    def _plan_records(
        self,
    ) -> tuple[tuple[plan.Item, ...], tuple[plan.Item, ...]]:
        """Plan what is done in the databases."""
        if self._databases is None:
            return (), ()
        seen = self._databases.observe()
        self._repair = repair.Repair(
            self._databases,
            self._map,
            self._selection,
            self._say,
            limit=self._settings.limit,
            clock=self._clock,
        )
        repairs = self._not_shielded(self._repair.plan_on(seen))
        if not self._settings.classic:
            return repairs, ()
        self._reset = reset.Reset(
            self._databases,
            self._map,
            self._selection,
            self._say,
            limit=self._settings.limit,
            settle=self._settings.starting.settle,
            lost_at=self._settings.starting.lost_at,
            free=False,
            clock=self._clock,
        )
        return repairs, self._reset.plan_on(expect.after(seen, repairs))

    def _not_shielded(
        self, items: tuple[plan.Item, ...]
    ) -> tuple[plan.Item, ...]:
        """Leave out what waits for its attach: it is reserved by us.

        What nobody attaches any more is freed by a repair without
        --classic.
        """
        if not self._settings.classic:
            return items
        return tuple(
            i
            for i in items
            if i.server_id or i.volume_id not in self._memory.shielded
        )

    def _left_running(
        self, items: tuple[plan.Item, ...]
    ) -> tuple[plan.Item, ...]:
        """Leave alone what is not reset because its server proved to run.

        As after a kill: it is recovered already, or was never lost.
        """
        return tuple(
            dataclasses.replace(
                i, do=plan.Do.LEAVE, reason=_('its server runs already')
            )
            if (i.do, i.rule) == (plan.Do.FLAG, 'G9')
            and i.server_id in self._running
            else i
            for i in items
        )

    def _make_restore(
        self, memory: Memory, wishes: collections.abc.Set[Key] = frozenset()
    ) -> restore.Restore:
        classic = self._settings.classic
        return restore.Restore(
            self._cloud,
            self._map,
            self._selection,
            self._say,
            resets=memory.resets,
            wished_off=memory.wished_off | wishes,
            shielded=memory.shielded if classic else (),
            unshield=self._unshield,
            limits=self._settings.starting.limits,
            wait=self._settings.starting.wait,
            clock=self._clock,
        )

    def _make_reboot(
        self,
        guests: ports.Guests,
        entries: list[journal.Entry],
        late: collections.abc.Container[str],
    ) -> reboot.Reboot:
        starting = self._settings.starting
        return reboot.Reboot(
            self._cloud,
            guests,
            self._map,
            self._selection,
            reboot.Settings(starting.wait, starting.limits),
            self._say,
            boot_ids=journal.boot_ids(entries),
            resets=self._memory.resets,
            wished_off=self._memory.wished_off,
            needing=late,
            clock=self._clock,
        )

    def has_work(self, steps: tuple[Step, ...]) -> bool:
        """Whether there is anything to do, or to wait for."""
        return bool(self._memory.locks) or any(
            i.do in (*plan.ACTING, plan.Do.WAIT)
            for s in steps
            for i in s.items
        )

    # -- acting ----------------------------------------------------------

    def carry_out(
        self,
        steps: tuple[Step, ...],
        run: journal.Run,
        recall: collections.abc.Callable[[], Memory],
    ) -> tuple[Step, ...]:
        """Do what was planned, and give the steps with their outcomes.

        :param recall: reads the journals again, this run's included
        """
        planned = {s.name: s for s in steps}
        self._locks = locks.Locks(self._cloud, run, self._say)
        run.write(
            'plan', steps={s.name: len(s.acting) for s in steps if s.acting}
        )
        run.write(
            'names',
            servers={s.id: s.name for s in self.seen.servers.values()},
        )
        session.list_open(run, (i for s in steps for i in s.items))
        try:
            repaired = self._do_repair(planned[REPAIR], run)
            taken = self._do_reset(planned[RESET], run, repaired)
            memory = recall()
            self._restore = self._make_restore(memory)
            started, attached = self._do_servers(
                planned[START], planned[ATTACH], run
            )
        finally:
            self._release_left_over(recall().locks)
        started = self._with_locked(started)
        started, attached = self._verified(started, attached, run)
        started = self._read_consoles(started, run)
        guests = self._do_guests(planned[GUEST], run)
        return repaired, taken, started, attached, guests

    def _do_repair(self, step: Step, run: journal.Run) -> Step:
        if not step.acting:
            return step
        run.write('step', step=REPAIR, state='begin')
        fresh = self._not_shielded(self._repair.propose_settled())
        step = _shown(step, fresh)
        for item in step.acting:
            volume = item.pair.volume if item.pair else None
            if (
                item.do is plan.Do.REPAIR
                and volume is not None
                and volume.status != 'in-use'
            ):
                run.write(
                    'export',
                    server=item.server_id,
                    volume=item.volume_id,
                    backend=verdicts.backend(volume),
                    was=volume.status,
                )
        counter = self._progress.step(_('repairing records'), len(step.acting))
        outcomes = self._repair.carry_out(step.acting, run, counter)
        run.write('step', step=REPAIR, state='end')
        return dataclasses.replace(step, outcomes=tuple(outcomes))

    def _do_reset(self, step: Step, run: journal.Run, repaired: Step) -> Step:
        if not step.acting:
            return step
        run.write('step', step=RESET, state='begin')
        try:
            fresh = self._left_running(self._reset.propose_settled())
        except exceptions.Refused as refused:
            if not repaired.outcomes:
                raise
            # its exit code would say that nothing was changed
            raise exceptions.DrpError(
                _('%s (what was repaired before stays repaired)') % refused
            ) from refused
        step = _shown(step, fresh)
        counter = self._progress.step(_('resetting records'), len(step.acting))
        outcomes = self._reset.carry_out(step.acting, run, counter)
        run.write('step', step=RESET, state='end')
        return dataclasses.replace(step, outcomes=tuple(outcomes))

    def _do_servers(
        self, start: Step, attach: Step, run: journal.Run
    ) -> tuple[Step, Step]:
        """Start and attach, server by server, wave by wave."""
        start = _shown(start, self._look_again(start))
        self._restore.seen = self.seen
        wanted = facts.group(
            (i for i in attach.items if i.do in _ATTACHES),
            lambda i: i.server_id,
        )
        lanes = {
            server_id: self._lane(server_id, None, group, run)
            for server_id, group in wanted.items()
            if server_id in self.seen.servers
        }
        for item in start.acting:
            lanes[item.server_id] = self._lane(
                item.server_id, item, wanted.get(item.server_id, []), run
            )
        exports = waves.Exports.of(run.entries())
        counter = self._progress.step(
            _('starting servers, attaching volumes'),
            sum(len(lane.untried) for lane in lanes.values()),
        )
        outcomes = []
        for number, server_ids in waves.plan(
            [s for s in self.seen.servers.values() if s.id in lanes],
            self._say,
        ):
            run.write('wave', number=number, servers=list(server_ids))
            wave = apply.troubled_last(
                (lanes[s] for s in server_ids), self._memory.failing
            )
            outcomes += self._do_wave(wave, exports, counter)
        for server_id, group in wanted.items():
            if server_id not in self.seen.servers:
                why = _('the server was deleted since')
                outcomes += _told(group, apply.LEFT, why)
        starts = [o for o in outcomes if not o.volume_id]
        attaches = [o for o in outcomes if o.volume_id]
        return (
            dataclasses.replace(start, outcomes=tuple(starts)),
            dataclasses.replace(attach, outcomes=tuple(attaches)),
        )

    def _look_again(self, start: Step) -> tuple[plan.Item, ...]:
        """Plan the starts once more, on what is true after the question.

        Who was off and seems to run now was started by somebody: nothing
        else makes a stopped server active. That is no reason to wait for
        nova; its lane will look, and leave it.
        """
        shown = {i.server_id: i for i in start.acting}
        fresh = self._restart.look_again()
        unproven = {
            i.server_id
            for i in self._restart.decide()
            if i.do in (plan.Do.WAIT, plan.Do.PROVE)
        }
        return tuple(
            shown.get(i.server_id, i) if i.server_id in unproven else i
            for i in fresh
        )

    def _do_wave(
        self,
        lanes: list[apply.Lane],
        exports: waves.Exports,
        counter: ports.Step,
    ) -> list[apply.Outcome]:
        """Start one wave; first who shows that repaired volumes are there.

        Who is left alone, or open, shows nothing: then the next one is
        asked. Each round takes somebody out of the wave.
        """
        outcomes = []
        while first := exports.first([lane.key for lane in lanes]):
            shown = self._runner.run(
                [lane for lane in lanes if lane.key in first], step=counter
            )
            exports.learn(shown)
            outcomes += shown
            lanes = [lane for lane in lanes if lane.key not in first]
        rest = []
        for lane in lanes:
            why = exports.why_not(lane.key)
            if why:
                outcomes += [
                    dataclasses.replace(o, status=apply.OPEN, what=why)
                    for o in lane.untried
                ]
            else:
                rest.append(lane)
        return outcomes + self._runner.run(rest, step=counter)

    def _lane(
        self,
        server_id: str,
        start: plan.Item | None,
        attaches: list[plan.Item],
        run: journal.Run,
    ) -> apply.Lane:
        untried = [
            apply.Outcome(
                i.server_id, i.volume_id, apply.UNTRIED, _('not tried')
            )
            for i in ((start, *attaches) if start else attaches)
        ]
        return apply.Lane.of_server(
            self.seen,
            server_id,
            functools.partial(self._serve, server_id, start, attaches, run),
            untried,
        )

    def _serve(
        self,
        server_id: str,
        start: plan.Item | None,
        attaches: list[plan.Item],
        run: journal.Run,
    ) -> list[apply.Outcome]:
        """Start one server and attach what it lacks; nobody else acts."""
        outcomes: list[apply.Outcome] = []
        try:
            with self._locks.held(server_id):
                if start:
                    outcomes.append(self._restart.restart_one(start, run))
                    self._started_at = self._clock.monotonic()
                return outcomes + self._attach_after(
                    outcomes, server_id, attaches, run
                )
        except exceptions.NotFound:
            # its user deleted it before its turn
            left = attaches if outcomes or not start else [start, *attaches]
            why = _('the server was deleted since')
            return outcomes + _told(left, apply.LEFT, why)

    def _attach_after(
        self,
        started: list[apply.Outcome],
        server_id: str,
        attaches: list[plan.Item],
        run: journal.Run,
    ) -> list[apply.Outcome]:
        """Attach what a server lacks, if its start went well.

        :raises NotFound: nova does not know the server any more
        """
        for outcome in started:
            if outcome.status == apply.LEFT:
                return _told(attaches, apply.LEFT, outcome.what)
            if outcome.status != apply.DONE:
                why = _('its server was not started')
                return _told(attaches, apply.UNTRIED, why)
        if attaches and self._runner.interrupted:
            why = _('not tried: interrupted')
            return _told(attaches, apply.UNTRIED, why)
        try:
            return self._attach(server_id, attaches, run)
        except exceptions.NotFound:
            raise
        except exceptions.DrpError as error:
            # that it was started stays true
            return _told(attaches, apply.FAILED, str(error))

    def _attach(
        self, server_id: str, shown: list[plan.Item], run: journal.Run
    ) -> list[apply.Outcome]:
        """Attach what was shown and is still missing."""
        if not shown:
            return []
        by_key = {_key(i): i for i in self._restore.plan_server(server_id)}
        now = [by_key.get(_key(i), i) for i in shown]
        acting = [i for i in now if i.do in _ATTACHES]
        outcomes = [_settled(i) for i in now if i.do not in _ATTACHES]
        if not acting:
            return outcomes
        return outcomes + self._restore.attach_all(
            acting, run, lambda: not self._runner.interrupted
        )

    def _unshield(self, volume_id: str, run: journal.Run) -> None:
        """Make a volume available that our reset left reserved.

        Right before its attach, so that nobody takes it in between; under
        cinder's row lock, and with no mapping in any cell (db/write.py).

        :raises DrpError: it is not what the reset left any more
        """
        if self._cloud.volume(volume_id).status != 'reserved':
            return
        assert self._databases is not None
        volume = self.seen.volumes[volume_id]
        lone = facts.Pair.lone(volume)
        item = plan.Item('', volume_id, plan.Do.RELEASE, 'R7', '', lone)
        outcome = units.journalled(
            run,
            'unshield',
            item,
            functools.partial(_confirm_lone, volume_id),
            functools.partial(self._databases.release, lone, ()),
            _('available for its attach'),
        )
        if outcome.status == apply.DONE or volume.multiattach:
            # reserved by an attach to another of its servers: wait for it
            return
        raise exceptions.Changed(outcome.what)

    def _release_left_over(
        self, left: collections.abc.Mapping[str, str]
    ) -> None:
        """Unlock what killed runs, or this one, left locked."""
        for server_id, run_id in left.items():
            self._locks.release(server_id, run_id)

    def _with_locked(self, start: Step) -> Step:
        """Tell of servers on which nothing but an old lock was open."""
        told = {o.server_id for o in start.outcomes}
        still = [
            apply.Outcome(s, '', apply.OPEN, _('it is still locked'))
            for s in sorted(self._locks.left - told)
        ]
        return dataclasses.replace(start, outcomes=(*start.outcomes, *still))

    def _do_guests(self, step: Step, run: journal.Run) -> Step:
        """Reboot from the inside who got a volume after its boot."""
        if not step.acting or self._guests is None:
            return step
        entries = run.entries()
        job = self._make_reboot(
            self._guests, entries, journal.late_attaches(entries)
        )
        step = _shown(step, job.propose())
        counter = self._progress.step(_('rebooting guests'), len(step.acting))
        outcomes = job.carry_out(step.acting, run, counter)
        return dataclasses.replace(step, outcomes=tuple(outcomes))

    # -- verifying -------------------------------------------------------

    def _verified(
        self, start: Step, attach: Step, run: journal.Run
    ) -> tuple[Step, Step]:
        """Look once more at all that is said to be done."""
        start, attach = (
            _doubt(
                step,
                lambda o: (
                    _('but the server is still locked')
                    if o.server_id in self._locks.left
                    else ''
                ),
            )
            for step in (start, attach)
        )
        done = sum(
            o.status == apply.DONE for o in (*start.outcomes, *attach.outcomes)
        )
        if not done:
            return start, attach
        try:
            seen = self._cloud.observe()
        except exceptions.DrpError as error:
            why = _('but not verified: %s') % error
            return _doubt(start, lambda o: why), _doubt(attach, lambda o: why)
        run.write('verified', objects=done)
        start, attach = (
            _without_deleted(start, seen),
            _without_deleted(attach, seen),
        )
        pairs = {(p.server_id, p.volume_id): p for p in facts.pairs(seen)}

        def not_on(outcome: apply.Outcome) -> str:
            server = seen.servers[outcome.server_id]
            if server.ran:
                return ''
            return _('and is %s since') % server.vm_state

        def not_attached(outcome: apply.Outcome) -> str:
            pair = pairs.get((outcome.server_id, outcome.volume_id))
            if pair is not None and rules.judge(pair).rule == 'R1':
                return ''
            return _('and yet nova and cinder differ')

        return _doubt(start, not_on), _doubt(attach, not_attached)

    def _read_consoles(self, start: Step, run: journal.Run) -> Step:
        """Look once for guests that hang at their boot.

        Two minutes after its start a guest with systemd has given up waiting
        for a disk (DESIGN 6).
        """
        started = [
            o.server_id for o in start.outcomes if o.status == apply.DONE
        ]
        if not started or not self._settings.console:
            return start
        left = (
            self._started_at + self._settings.console - self._clock.monotonic()
        )
        if left > 0:
            self._say(
                _('waiting %(seconds)d s to read %(count)d consoles')
                % {'seconds': left, 'count': len(started)}
            )
            self._clock.sleep(left)
        consoles = sidebyside.each(
            self._cloud.console,
            started,
            self._settings.starting.limits.parallel,
        )
        evidence = {}
        for server_id, lines in zip(started, consoles, strict=True):
            why = reboot.why_hanging(lines)
            if why:
                run.write('console', server=server_id, what=why)
                evidence[server_id] = _('but %s') % why
        return _doubt(start, lambda o: evidence.get(o.server_id, ''))


def _key(item: plan.Item) -> Key:
    return item.server_id, item.volume_id


def _shown(step: Step, fresh: tuple[plan.Item, ...]) -> Step:
    """Keep to what the operator was shown.

    A server that is to be started may first have to be stopped; of a record
    just that is done.
    """

    def what(item: plan.Item) -> tuple[Key, object]:
        acts = item.do in plan.ACTING
        return _key(item), acts and (step.name == START or item.do)

    shown = {what(i) for i in step.items}
    return dataclasses.replace(
        step,
        items=tuple(
            i
            if i.do not in plan.ACTING or what(i) in shown
            else dataclasses.replace(
                i,
                do=plan.Do.FLAG,
                reason=_('it was not in the plan that you saw: run again'),
            )
            for i in fresh
        ),
    )


def _told(
    items: list[plan.Item], status: str, why: str
) -> list[apply.Outcome]:
    return [
        apply.Outcome(i.server_id, i.volume_id, status, why) for i in items
    ]


def _settled(item: plan.Item) -> apply.Outcome:
    """Tell of an attach that is no longer to be done."""
    status = {
        plan.Do.NOTHING: apply.DONE,
        plan.Do.LEAVE: apply.LEFT,
    }.get(item.do, apply.OPEN)
    return apply.Outcome(item.server_id, item.volume_id, status, item.reason)


def _confirm_lone(volume_id: str, seen: facts.Observation) -> None:
    """Check under the locks that nobody has the volume (R7)."""
    pair = plan.pair_of(seen, '', volume_id)
    if pair is None or rules.judge(pair).rule != 'R7':
        raise exceptions.Changed(
            _('the volume is no longer as its reset left it')
        )


def _without_deleted(step: Step, seen: facts.Observation) -> Step:
    """Leave what was done to servers that their users deleted since."""
    return dataclasses.replace(
        step,
        outcomes=tuple(
            o
            if o.status != apply.DONE or o.server_id in seen.servers
            else dataclasses.replace(
                o, status=apply.LEFT, what=_('the server was deleted since')
            )
            for o in step.outcomes
        ),
    )


def _doubt(
    step: Step, why: collections.abc.Callable[[apply.Outcome], str]
) -> Step:
    """Open again what is said to be done and has a reason not to be."""

    def looked_at(outcome: apply.Outcome) -> apply.Outcome:
        if outcome.status != apply.DONE or not (doubt := why(outcome)):
            return outcome
        return dataclasses.replace(
            outcome, status=apply.OPEN, what=f'{outcome.what}, {doubt}'
        )

    return dataclasses.replace(
        step, outcomes=tuple(looked_at(o) for o in step.outcomes)
    )


def question(
    steps: collections.abc.Iterable[Step],
) -> tuple[str, str]:
    """Say what is about to happen, and the phrase to be typed."""
    acting = {s.name: s.acting for s in steps}
    parts = []
    for name, text in (
        (REPAIR, _('repair %d attachments')),
        (RESET, _('reset %d attachments')),
        (START, _('start %d servers')),
        (ATTACH, _('attach %d volumes')),
        (GUEST, _('reboot %d guests over SSH')),
    ):
        if acting.get(name):
            parts.append(text % len(acting[name]))
    servers = {i.server_id for items in acting.values() for i in items}
    if not parts:
        parts.append(_('finish what an earlier run left under way or locked'))
    return ', '.join(parts), f'recover {len(servers)}'


def warning(steps: collections.abc.Iterable[Step]) -> str:
    """Say what --classic takes apart."""
    acting = next(s.acting for s in steps if s.name == RESET)
    return _(
        '--classic takes %(volumes)d healthy attachments of %(servers)d '
        'servers apart and puts them together again; without it they would '
        'stay as they are'
    ) % {
        'volumes': len(acting),
        'servers': len({i.server_id for i in acting}),
    }
