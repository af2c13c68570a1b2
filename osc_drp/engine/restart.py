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

"""Step 3 of the procedure: start each server that the loss stopped, once."""

import collections.abc
import dataclasses
import functools
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import cleaner
from osc_drp.engine import expect
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import oneserver
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import readiness
from osc_drp.engine import sidebyside
from osc_drp.i18n import _

#: Seconds between two looks at something that is under way.
POLL = 2.0
#: Seconds that nova may take to start or stop one server.
POWER_LIMIT = 600.0
#: Seconds after which what was read in bulk is read again before a start.
FRESH = 60.0

Reading = tuple[str, str | None, int]
Log = tuple[facts.Action, ...]

_Told = ty.TypeVar('_Told')


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The options of `drp servers restart`."""

    wait: float = 300.0
    settle: float = 120.0
    lost_at: str | None = None
    skip_not_ready: bool = False
    limits: apply.Limits = dataclasses.field(default_factory=apply.Limits)


class Restart:
    """Plans and carries out `drp servers restart`."""

    def __init__(
        self,
        cloud: ports.Cloud,
        cloud_map: facts.CloudMap,
        selection: plan.Selection,
        settings: Settings,
        say: ports.Say,
        *,
        our_stops: collections.abc.Mapping[str, list[str | None]],
        known: cleaner.Known | None = None,
        failing: collections.abc.Container[str] = (),
        clock: ports.Clock | None = None,
    ) -> None:
        """Prepare a restart.

        :param our_stops: by server, the newest request id right before
            each stop that a run of ours sent
        :param known: what resets with --cinder-only left to be done
        :param failing: servers that failed the last time
        """
        self._cloud = cloud
        self._map = cloud_map
        self._selection = selection.lost_at(settings.lost_at)
        self._settings = settings
        self._say = say
        self._our_stops = our_stops
        self._failing = failing
        self._clock = clock or ports.RealClock()
        self._cleaner = cleaner.Cleaner(
            cloud,
            known or cleaner.Known(),
            self._poll,
            self._stop_again,
            say,
            self._clock,
        )
        self._started: set[str] = set()
        self._runs: dict[str, bool | None] = {}
        self._histories: dict[str, plan.PowerHistory] = {}
        #: Deleted since the last look.
        self._gone: set[str] = set()
        self._first_up: dict[str, float] = {}
        self._readings: dict[str, tuple[Reading, float]] = {}
        self._not_ready: dict[str, str] = {}
        #: Which services the last look missed, and who needs them.
        self._lacking: dict[str, set[str]] = {}
        self._in_map = {
            (a.server_id, a.volume_id) for a in cloud_map.attachments
        }

    # -- looking ---------------------------------------------------------

    def propose(self) -> tuple[plan.Item, ...]:
        """Observe once and plan; changes nothing, waits for nothing."""
        return self._decide(self._look())

    def propose_ready(self) -> tuple[plan.Item, ...]:
        """Wait until the hosts are ready and nova has looked; then plan.

        :raises Refused: something that the selection needs is not up
        """
        seen, whole = self._gate(), True
        deadline = self._clock.monotonic() + max(
            self._settings.wait, self._settings.settle + 2 * POLL
        )
        while True:
            items = self._decide(seen)
            waiting = [i for i in items if i.do is plan.Do.WAIT]
            over = not waiting or self._clock.monotonic() > deadline
            if over and whole:
                break
            if not over:
                self._say(_waits_for(waiting))
                self._clock.sleep(readiness.POLL)
            # what is planned in the end is planned on a whole look
            seen = self._wait_for(self._look if over else self._glance)
            whole = over
        unproven = [i.server_id for i in items if i.do is plan.Do.PROVE]
        if unproven:
            self._prove(unproven)
            items = self._decide(seen)
        return tuple(_give_up(i, seen) for i in items)

    def _prove(self, server_ids: list[str]) -> None:
        """Ask the hypervisors; one that hangs takes a minute for each."""
        self._say(_('asking the hypervisors of %d servers') % len(server_ids))
        self._runs.update(
            self._of_each(self._cloud.diagnostics_running, server_ids)
        )

    def _of_each(
        self,
        ask: collections.abc.Callable[[str], _Told],
        server_ids: list[str],
    ) -> dict[str, _Told]:
        """Ask about each server; those deleted since the look are noted."""

        def one(server_id: str) -> tuple[str, _Told] | None:
            try:
                return server_id, ask(server_id)
            except exceptions.NotFound:
                return None

        parallel = self._settings.limits.parallel
        told = sidebyside.each(one, server_ids, parallel)
        found = dict(answer for answer in told if answer)
        self._gone |= {*server_ids} - found.keys()
        return found

    def look_again(self) -> tuple[plan.Item, ...]:
        """Observe and plan once more; waits for nothing."""
        self._look()
        return self.decide_now()

    def decide(
        self, expected: collections.abc.Iterable[plan.Item] = ()
    ) -> tuple[plan.Item, ...]:
        """Plan on the last observation once more.

        :param expected: what will have been done when the servers' turn
            comes
        """
        return self._decide(expect.after(self.seen, expected))

    def decide_now(
        self, expected: collections.abc.Iterable[plan.Item] = ()
    ) -> tuple[plan.Item, ...]:
        """Plan as ``decide``; who must be waited for is flagged."""
        return tuple(_give_up(i, self.seen) for i in self.decide(expected))

    def _look(self) -> facts.Observation:
        return self._note(self._cloud.observe())

    def _glance(self) -> facts.Observation:
        """Look only at what is waited for: no request per server."""
        return self._note(self._cloud.renew(self.seen))

    def _note(self, seen: facts.Observation) -> facts.Observation:
        now = self._clock.monotonic()
        self._seen_at = now
        self.seen = seen
        self._gone.clear()
        selected = plan.select(self._map, self._selection, seen)
        self._server_ids = selected.server_ids | selected.unmapped
        for service in seen.services:
            if service.binary == 'nova-compute':
                if not service.up:
                    self._first_up.pop(service.host, None)
                else:
                    self._first_up.setdefault(service.host, now)
        for server_id in self._server_ids:
            self._note_reading(server_id, seen.servers.get(server_id), now)
        return seen

    def _note_reading(
        self, server_id: str, server: facts.Server | None, now: float
    ) -> None:
        if server is None:
            return
        reading = (server.vm_state, server.task_state, server.power_state)
        last = self._readings.get(server_id)
        if last is None or last[0] != reading:
            self._readings[server_id] = (reading, now)

    def _settled(self, server: facts.Server, now: float) -> bool:
        """Whether equal readings lie far enough apart (DESIGN 6)."""
        up = self._first_up.get(server.host or '')
        if up is None:
            return False
        since = max(up, self._readings[server.id][1])
        return now - since >= self._settings.settle

    def _decide(self, seen: facts.Observation) -> tuple[plan.Item, ...]:
        rest = self._cleaner.without(seen)
        pairs = facts.group(facts.pairs(rest), lambda p: p.server_id)
        now = self._clock.monotonic()
        self._read_histories(rest)
        items = []
        for server_id in sorted(
            self._server_ids, key=lambda s: (seen.name_of(s), s)
        ):
            server = rest.servers.get(server_id)
            lost = self._lost(server_id, server)
            look = plan.Look(
                settled=server is not None and self._settled(server, now),
                runs=self._runs.get(server_id),
                asked=server_id in self._runs,
                started=server_id in self._started,
            )
            item = plan.decide_restart(
                self._map.server(server_id),
                server,
                pairs.get(server_id, []),
                self._history(server_id, server),
                look,
                self._in_map,
                lost,
            )
            items.append(
                self._unless_hindered(self._cleaner.decide(item, seen))
            )
        return tuple(items)

    def _unless_hindered(self, item: plan.Item) -> plan.Item:
        """Leave out who was deleted since, or lacks a service."""
        if item.server_id in self._gone:
            do, reason = plan.Do.LEAVE, _('the server was deleted since')
        elif item.server_id in self._not_ready and item.do not in (
            plan.Do.LEAVE,
            plan.Do.NOTHING,
        ):
            do, reason = plan.Do.FLAG, self._not_ready[item.server_id]
        else:
            return item
        return dataclasses.replace(item, do=do, reason=reason)

    def _wanted(self, server_id: str) -> bool:
        wanted = self._map.server(server_id)
        return (wanted is not None and wanted.ran) or bool(
            self._settings.lost_at
        )

    def _has_history(
        self, server_id: str, server: facts.Server | None
    ) -> bool:
        """Whether the action log matters: it is off, and may be wanted."""
        return (
            server is not None
            and server.vm_state != 'active'
            and self._wanted(server_id)
        )

    def _read_histories(self, seen: facts.Observation) -> None:
        """Read the action logs that matter; once, then they are cached."""
        unread = [
            server_id
            for server_id in sorted(self._server_ids)
            if server_id not in self._histories
            and server_id not in self._gone
            and self._has_history(server_id, seen.servers.get(server_id))
        ]
        for server_id, log in self._of_each(
            self._cloud.actions, unread
        ).items():
            self._keep_history(server_id, log)

    def _keep_history(self, server_id: str, log: Log) -> None:
        since = plan.history_since(
            self._map, server_id, self._settings.lost_at
        )
        ours = plan.our_stops(
            log, self._our_stops.get(server_id, ()), self._cloud.user_id
        )
        self._histories[server_id] = plan.power_history(log, since, ours)

    def _history(
        self, server_id: str, server: facts.Server | None
    ) -> plan.PowerHistory:
        nothing = plan.PowerHistory()
        if not self._has_history(server_id, server):
            return nothing
        return self._histories.get(server_id, nothing)

    def _ran(self, server_id: str) -> bool:
        wanted = self._map.server(server_id)
        return wanted is not None and wanted.ran

    def _lost(self, server_id: str, server: facts.Server | None) -> bool:
        """Whether it ran by --lost-at, although not when the map was taken.

        Nova or a killed run of ours stopped it after that, or it still says
        active: nova has not looked yet.
        """
        if not self._settings.lost_at or self._ran(server_id):
            return False
        if server is not None and server.vm_state == 'active':
            return True
        history = self._history(server_id, server)
        return history.stopped_by_nova or history.stopped_by_us

    # -- the readiness gate ----------------------------------------------

    def _gate(self) -> facts.Observation:
        """Wait until all that the selection needs is up (DESIGN 6).

        :raises Refused: it is not, after the time of --wait
        """
        try:
            segments = self._cloud.ha_segments()
        except exceptions.Away as away:
            # nothing needs it; it is in the way only when it is back
            self._say(_('hold masakari when it is back: %s') % away)
            segments = []
        except exceptions.ApiError as error:
            self._say(
                _('hold masakari; its segments cannot be listed: %s') % error
            )
            segments = []
        for segment in segments:
            self._say(
                _(
                    "hold masakari's segment '%s': it restarts and moves "
                    'servers by itself'
                )
                % segment
            )
        try:
            seen = self._wait_for(self._look_ready)
        except exceptions.Refused as refused:
            if not self._lacking:
                raise
            if not self._settings.skip_not_ready:
                raise exceptions.Refused(
                    _(
                        '%s (start them, or go on without their servers with '
                        '--skip-not-ready)'
                    )
                    % refused
                ) from refused
            for what, server_ids in self._lacking.items():
                for server_id in server_ids:
                    self._not_ready[server_id] = _('%s is not up') % what
            return self._wait_for(self._look)
        self._warn_of_errors(seen)
        return seen

    def _wait_for(
        self, look: collections.abc.Callable[[], facts.Observation]
    ) -> facts.Observation:
        wait = self._settings.wait
        return readiness.wait_for(look, wait, self._say, self._clock)

    def _look_ready(self) -> facts.Observation:
        """Look, and see that all that the selection needs is up.

        What was missing is waited for with glances, until it is there.

        :raises Away: something is not up
        """
        waited, self._lacking = bool(self._lacking), {}
        if waited:
            self._require_up(self._glance())
        return self._require_up(self._look())

    def _require_up(self, seen: facts.Observation) -> facts.Observation:
        self._lacking = self._missing(seen)
        if self._lacking:
            what = ', '.join(sorted(self._lacking))
            raise exceptions.Away(_('%s: not up') % what, what)
        return seen

    def _missing(self, seen: facts.Observation) -> dict[str, set[str]]:
        """List which services are not up, and the servers that need them."""
        up = {(s.binary, s.host): s.up for s in seen.services}
        agents = facts.group(
            (s for s in seen.services if s.binary.startswith('neutron:')),
            lambda s: s.host,
        )
        pairs = facts.group(facts.pairs(seen), lambda p: p.server_id)
        missing: dict[str, set[str]] = {}
        if any(not a.up for group in agents.values() for a in group):
            # an agent that nobody on its host needs is no reason to wait
            networked = self._cloud.with_ports()
        else:
            networked = frozenset()

        def need(binary: str, host: str, server_id: str) -> None:
            if not up.get((binary, host)):
                missing.setdefault(f'{binary} on {host}', set()).add(server_id)

        for server_id in self._server_ids:
            server = seen.servers.get(server_id)
            if server is None or not self._wanted(server_id):
                continue
            if server.host:
                need('nova-compute', server.host, server_id)
                if server_id in networked:
                    for agent in agents.get(server.host, ()):
                        need(agent.binary, agent.host, server_id)
            for pair in pairs.get(server_id, ()):
                if pair.volume is not None and pair.volume.host:
                    host = pair.volume.host.split('#')[0]
                    need('cinder-volume', host, server_id)
        return missing

    def _warn_of_errors(self, seen: facts.Observation) -> None:
        """Name the volume hosts whose storage came back too late.

        cinder-volume sets what it cannot export at its start to 'error'
        (cinder 29.0.0 volume/manager.py _init_host). The two commands are
        the procedure's.
        """
        lost = facts.group(
            (
                p
                for p in facts.pairs(seen)
                if p.server_id in self._server_ids
                and p.volume is not None
                and p.volume.status == 'error'
                and any(r.attach_status == 'attached' for r in p.rows)
            ),
            lambda p: (p.volume and p.volume.host) or '',
        )
        for host, pairs in lost.items():
            self._say(
                _(
                    "%(count)d attached volumes of '%(host)s' are in error: "
                    'its storage was not there when cinder-volume started. '
                    'On that host, with the addresses of the SAN:\n'
                    '  iscsiadm -m discovery -t st -p $SAN_IP\n'
                    '  iscsiadm -m node --target-name $IQN -p $SAN_IP -l\n'
                    'then restart its cinder-volume'
                )
                % {'count': len(pairs), 'host': host}
            )

    # -- acting ----------------------------------------------------------

    def carry_out(
        self,
        items: tuple[plan.Item, ...],
        run: journal.Run,
        step: ports.Step | None = None,
    ) -> list[apply.Outcome]:
        """Start what the plan says, in lanes, each verified."""
        acting = [i for i in items if i.do in plan.ACTING]
        lanes = []
        for item in acting:
            untried = apply.Outcome(
                item.server_id, '', apply.UNTRIED, _('not tried')
            )
            lanes.append(
                apply.Lane.of_server(
                    self.seen,
                    item.server_id,
                    functools.partial(self._restart_lane, item, run),
                    [untried],
                )
            )
        lanes = apply.troubled_last(lanes, self._failing)
        return apply.run(lanes, self._settings.limits, self._say, step=step)

    def _restart_lane(
        self, item: plan.Item, run: journal.Run
    ) -> list[apply.Outcome]:
        return [self.restart_one(item, run)]

    def restart_one(self, item: plan.Item, run: journal.Run) -> apply.Outcome:
        """Start one server; never raises one of our errors."""
        if self._cleaner.ended:
            status, what = apply.UNTRIED, self._cleaner.ended
            return apply.Outcome(item.server_id, '', status, what)
        try:
            status, what = self._power(item, run)
        except exceptions.NotFound:
            status, what = apply.LEFT, _('the server was deleted since')
        except exceptions.DrpError as error:
            status, what = apply.FAILED, str(error)
        run.write(
            'outcome',
            action='restart',
            server=item.server_id,
            status=status,
            what=what,
        )
        if status in apply.NOT_WELL:
            self._say(f'{self.seen.name_of(item.server_id)}: {what}')
        return apply.Outcome(item.server_id, '', status, what)

    def _power(self, item: plan.Item, run: journal.Run) -> tuple[str, str]:
        """Stop if the plan says so, then start; checked before each."""
        cleaned = item.do is plan.Do.CLEAN
        if cleaned:
            done = self._cleaner.clean(item.server_id, self.seen, run)
            if done:
                return done
        step, log = self._again(item, cleaned=cleaned)
        if step.do is plan.Do.STOP:
            self._stop_again(step.server_id, run, log)
            step, log = self._again(item, stopped=True)
        if step.do is plan.Do.NOTHING:
            return apply.DONE, step.reason
        if step.do is plan.Do.LEAVE:
            return apply.LEFT, step.reason
        if step.do is not plan.Do.START:
            return apply.OPEN, step.reason
        self._started.add(step.server_id)
        self._send('start', step.server_id, run, log)
        try:
            return self._until_on(step.server_id)
        except exceptions.NotFound:
            raise
        except exceptions.DrpError as error:
            # it may well run by now: only that nobody could see it
            return apply.FAILED, _('the start was sent, but: %s') % error

    def _stop_again(
        self, server_id: str, run: journal.Run, log: Log | None = None
    ) -> None:
        self._send('stop', server_id, run, log)
        self._until_off(server_id)

    def _again(
        self, item: plan.Item, stopped: bool = False, cleaned: bool = False
    ) -> tuple[plan.Item, Log | None]:
        """Decide again on what is true now, right before acting.

        The question may have waited for its answer for an hour: a user may
        have stopped the server since, or revived its guest.

        :return: the step, and the action log if the last thing read was that
        """
        server_id = item.server_id
        # nova's own stop, for instance, may be under way
        server = self._poll(server_id, lambda s: True, 'let go of')
        if server.vm_state == 'active' and item.do is plan.Do.START:
            return self._started_by_others(item, server), None
        if server.power_state == facts.RUNNING:
            self._runs[server_id] = self._cloud.diagnostics_running(server_id)
        seen = self._seen_now(server)
        log, history = None, plan.PowerHistory()
        if not stopped:  # else that stop was ours
            if self._has_history(server_id, server):
                log = self._cloud.actions(server_id)
                self._keep_history(server_id, log)
            history = self._history(server_id, server)
        rest = self._cleaner.without(seen)
        step = plan.decide_restart(
            self._map.server(server_id),
            rest.servers[server_id],
            [p for p in facts.pairs(rest) if p.server_id == server_id],
            history,
            plan.Look(
                settled=True,
                runs=self._runs.get(server_id),
                asked=server_id in self._runs,
                started=server_id in self._started,
            ),
            self._in_map,
            stopped or self._lost(server_id, server),
        )
        if not cleaned:
            step = self._cleaner.decide(step, seen)
        return step, log

    def _started_by_others(
        self, item: plan.Item, server: facts.Server
    ) -> plan.Item:
        """Tell of a server that is active, and was off when it was planned.

        Its guest may be off again (another loss): the hypervisor knows.
        """
        do, reason = plan.Do.NOTHING, _('somebody started it')
        if (
            not server.ran
            or self._cloud.diagnostics_running(server.id) is False
        ):
            do = plan.Do.FLAG
            reason = _(
                'somebody started it, and its guest is off: run again when '
                'nova has noticed'
            )
        return dataclasses.replace(item, do=do, reason=reason)

    def _seen_now(self, server: facts.Server) -> facts.Observation:
        """Give what was seen, its records read again if not fresh."""
        seen = self.seen
        if self._clock.monotonic() - self._seen_at > FRESH:
            seen = oneserver.read(self._cloud, seen, server.id, server=server)
        servers = {**seen.servers, server.id: server}
        return dataclasses.replace(seen, servers=servers)

    def _send(
        self,
        action: str,
        server_id: str,
        run: journal.Run,
        log: Log | None = None,
    ) -> None:
        """Send one request; whether nova took it is read, never guessed.

        :param log: the action log, if it was read right before
        """
        if log is None:
            log = self._cloud.actions(server_id)
        newest = log[0].request_id if log else None
        run.write('before', action=action, server=server_id, newest=newest)
        send = self._cloud.start if action == 'start' else self._cloud.stop
        try:
            send(server_id)
        except (exceptions.Conflict, exceptions.Unanswered) as error:
            try:
                taken = self._taken(action, server_id, newest, error)
            except exceptions.NotFound:
                raise
            except exceptions.ApiError as unseen:
                raise error from unseen
            if not taken:
                raise
        run.write('sent', action=action, server=server_id)

    def _taken(
        self,
        action: str,
        server_id: str,
        newest: str | None,
        error: exceptions.DrpError,
    ) -> bool:
        """Whether nova is at it, or done, all the same."""
        server = self._cloud.server(server_id)
        on_its_way = (
            server.task_state == 'powering-on' or server.vm_state == 'active'
            if action == 'start'
            else server.task_state == 'powering-off'
            or server.vm_state == 'stopped'
        )
        if on_its_way:
            return True
        if isinstance(error, exceptions.Unanswered):
            for entry in self._cloud.actions(server_id):
                if entry.request_id == newest:
                    break
                if (entry.action, entry.user_id) == (
                    action,
                    self._cloud.user_id,
                ):
                    return True
        return False

    def _until_off(self, server_id: str) -> None:
        server = self._poll(
            server_id, lambda s: s.vm_state == 'stopped', 'stop'
        )
        if server.vm_state != 'stopped':
            raise exceptions.ApiError(
                _('it did not stop: %s') % self._cloud.fault(server_id)
            )

    def _until_on(self, server_id: str) -> tuple[str, str]:
        server = self._poll(
            server_id, lambda s: s.vm_state == 'active', 'start'
        )
        if server.vm_state == 'active' and server.power_state == facts.RUNNING:
            return apply.DONE, _('started')
        return apply.FAILED, _('did not start (%(vm)s): %(fault)s') % {
            'vm': server.vm_state,
            'fault': self._cloud.fault(server_id) or _('nova gives no reason'),
        }

    def _poll(
        self,
        server_id: str,
        reached: collections.abc.Callable[[facts.Server], bool],
        what: str,
    ) -> facts.Server:
        """Wait until nova is done with a server, one way or the other.

        :raises ApiError: it is not, after POWER_LIMIT seconds
        """
        deadline = self._clock.monotonic() + POWER_LIMIT
        idle = 0
        while self._clock.monotonic() < deadline:
            server = self._cloud.server(server_id)
            if server.task_state is None:
                # a cast may not have arrived yet: idle twice is idle
                idle += 1
                if reached(server) or idle > 3:
                    return server
            else:
                idle = 0
            self._clock.sleep(POLL)
        raise exceptions.ApiError(
            _('nova did not %(what)s it within %(limit)d s')
            % {'what': what, 'limit': POWER_LIMIT}
        )


def _give_up(item: plan.Item, seen: facts.Observation) -> plan.Item:
    """Flag what was waited for; say what may help.

    A request that nova-compute never got (RabbitMQ died with it) leaves its
    server busy for ever; nova-compute repeats it when it starts (nova 34.0.0
    compute/manager.py _init_instance).
    """
    if item.do not in (plan.Do.WAIT, plan.Do.PROVE):
        return item
    reason = _('waited in vain: %s') % item.reason
    server = seen.servers.get(item.server_id)
    if server and server.task_state in ('powering-on', 'powering-off'):
        reason += _(
            '; if its nova-compute lost the request, a restart of '
            'nova-compute on %s repeats it'
        ) % (server.host or _('its host'))
    return dataclasses.replace(item, do=plan.Do.FLAG, reason=reason)


def _waits_for(items: list[plan.Item]) -> str:
    reasons = facts.group(items, lambda i: i.reason)
    why = '; '.join(f'{len(g)} {reason}' for reason, g in reasons.items())
    return _('waiting for %(count)d servers: %(why)s') % {
        'count': len(items),
        'why': why,
    }
