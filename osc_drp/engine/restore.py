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

"""Step 4 of the procedure: attach what the map has and both sides lack."""

import collections.abc
import contextlib
import dataclasses
import functools
import threading
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import oneserver
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import rules
from osc_drp.engine import sidebyside
from osc_drp.i18n import _

#: Seconds between two looks at a volume that is being attached: soon at
#: first (the old script slept 2 s after each), then seldom.
FIRST_POLL = 0.5
POLL = 2.0

#: Makes one volume available.
Unshield: ty.TypeAlias = collections.abc.Callable[[str, journal.Run], None]


class Restore:
    """Plans and carries out `drp attachments restore`."""

    def __init__(
        self,
        cloud: ports.Cloud,
        cloud_map: facts.CloudMap,
        selection: plan.Selection,
        say: ports.Say,
        *,
        resets: collections.abc.Mapping[tuple[str, str], str],
        wished_off: collections.abc.Container[tuple[str, str]] = (),
        shielded: collections.abc.Container[str] = (),
        unshield: Unshield = lambda volume_id, run: None,
        failing: collections.abc.Container[str] = (),
        limits: apply.Limits,
        wait: float = 300.0,
        clock: ports.Clock | None = None,
    ) -> None:
        """Prepare a restore.

        :param resets: what resets of ours took off, and when
        :param wished_off: users' detaches that a repair of ours finished
        :param shielded: volumes that a reset of ours left reserved
        :param unshield: makes such a volume available right before its
            attach, if it still is what we left; else raises
        :param failing: servers that failed the last time
        :param wait: seconds that one attach may take
        """
        self._cloud = cloud
        self._map = cloud_map
        self._selection = selection
        self._say = say
        self._resets = resets
        self._wished_off = wished_off
        self._shielded = shielded
        self._unshield = unshield
        self._failing = failing
        self._limits = limits
        self._wait = wait
        self._clock = clock or ports.RealClock()
        #: The last observation of the whole cloud.
        self.seen: facts.Observation
        self._guard = threading.Lock()
        #: One lock for each multiattach volume.
        self._turns: dict[str, threading.Lock] = {}

    def propose(self) -> tuple[plan.Item, ...]:
        """Observe once and plan; changes nothing."""
        return self.plan_on(self._cloud.observe())

    def plan_on(
        self,
        seen: facts.Observation,
        to_be_reset: collections.abc.Collection[tuple[str, str]] = (),
    ) -> tuple[plan.Item, ...]:
        """Plan on an observation of the APIs.

        :param to_be_reset: what ``seen`` lacks only because a reset is about
            to come
        """
        self.seen = seen
        selected = plan.select(self._map, self._selection, seen)
        return self.judge(seen, selected, to_be_reset)

    def plan_server(self, server_id: str) -> tuple[plan.Item, ...]:
        """Read one server anew and plan its attaches."""
        selected = plan.select(self._map, self._selection, self.seen)
        wanted = tuple(
            a for a in selected.attachments if a.server_id == server_id
        )
        volumes = [a.volume_id for a in wanted]
        seen = oneserver.read(self._cloud, self.seen, server_id, volumes)
        mine = plan.Selected(frozenset((server_id,)), wanted)
        return self.judge(seen, mine)

    def judge(
        self,
        seen: facts.Observation,
        selected: plan.Selected,
        to_be_reset: collections.abc.Collection[tuple[str, str]] = (),
    ) -> tuple[plan.Item, ...]:
        """Plan from what was seen; see ``plan_on``."""
        have = {(p.server_id, p.volume_id) for p in facts.pairs(seen)}
        lacking = {
            a.server_id
            for a in selected.attachments
            if (a.server_id, a.volume_id) not in have
            and (a.server_id, a.volume_id) not in to_be_reset
            and a.server_id in seen.servers
        }
        actions = self._logs(sorted(lacking))
        resets = dict(self._resets)
        resets.update(dict.fromkeys(to_be_reset, seen.taken_at))
        items = plan.plan_restore(
            self._map, seen, selected, actions, resets, self._shielded
        )
        gone = lacking - actions.keys()
        return tuple(self._unless_off(i, gone) for i in items)

    def _unless_off(
        self, item: plan.Item, gone: collections.abc.Container[str]
    ) -> plan.Item:
        """Leave out what has nobody who wants it any more.

        :param gone: servers that were deleted since the look
        """
        if item.server_id in gone:
            reason = _('the server was deleted since')
        elif (
            item.do is plan.Do.ATTACH
            and (item.server_id, item.volume_id) in self._wished_off
        ):
            reason = _("a user's detach of it was finished by a repair")
        else:
            return item
        return dataclasses.replace(item, do=plan.Do.LEAVE, reason=reason)

    def _logs(
        self, server_ids: list[str]
    ) -> dict[str, tuple[facts.Action, ...]]:
        """Read nova's action log of each server that is still there."""

        def one(
            server_id: str,
        ) -> tuple[str, tuple[facts.Action, ...]] | None:
            try:
                return server_id, self._cloud.actions(server_id)
            except exceptions.NotFound:
                return None

        logs = sidebyside.each(one, server_ids, self._limits.parallel)
        return dict(log for log in logs if log)

    def carry_out(
        self,
        items: tuple[plan.Item, ...],
        run: journal.Run,
        step: ports.Step | None = None,
    ) -> list[apply.Outcome]:
        """Attach in device order within a server, servers side by side."""
        acting = [i for i in items if i.do in (plan.Do.ATTACH, plan.Do.WAIT)]
        lanes = [
            apply.Lane.of_server(
                self.seen,
                server_id,
                functools.partial(self.attach_all, group, run),
                [_outcome(i, apply.UNTRIED, _('not tried')) for i in group],
            )
            for server_id, group in facts.group(
                acting, lambda i: i.server_id
            ).items()
        ]
        lanes = apply.troubled_last(lanes, self._failing)
        return apply.run(lanes, self._limits, self._say, step=step)

    def attach_all(
        self,
        items: collections.abc.Sequence[plan.Item],
        run: journal.Run,
        go_on: collections.abc.Callable[[], bool] = lambda: True,
    ) -> list[apply.Outcome]:
        """Attach one server's volumes; stop at the first that fails.

        The next one would take the name of the one that failed.

        :param go_on: asked before each one after the first
        """
        outcomes: list[apply.Outcome] = []
        try:
            changed = self._not_on(items[0].server_id)
        except exceptions.NotFound:
            why = _('the server was deleted since')
            return [_outcome(i, apply.LEFT, why) for i in items]
        if changed:
            return [_outcome(i, apply.OPEN, changed) for i in items]
        for number, item in enumerate(items):
            outcome = self._attach_one(item, run)
            outcomes.append(outcome)
            run.write(
                'outcome',
                action='attach',
                server=item.server_id,
                volume=item.volume_id,
                status=outcome.status,
                what=outcome.what,
            )
            why = ''
            if outcome.status != apply.DONE:
                why = _('not tried: it would take the name of %s')
                why %= item.volume_id
            elif not go_on():
                why = _('not tried: interrupted')
            if why:
                outcomes.extend(
                    _outcome(i, apply.UNTRIED, why)
                    for i in items[number + 1 :]
                )
                break
        return self._verified(outcomes)

    def _not_on(self, server_id: str) -> str:
        """Say why the server takes no attach any more; '' if it does.

        The question may have waited for its answer for an hour. An attach to
        a server that is off is accepted, and fails later (LAB.md).

        :raises NotFound: nova does not know the server any more
        """
        server = self._cloud.server(server_id)
        if server.ran and server.task_state is None:
            if self._cloud.diagnostics_running(server_id) is False:
                # right after power-on nova still says what was true before
                return _('its guest is off, nova has not noticed yet')
            return ''
        return _('changed meanwhile: the server is %(vm)s, %(task)s') % {
            'vm': server.vm_state,
            'task': server.task_state or _('its guest is off'),
        }

    def _attach_one(self, item: plan.Item, run: journal.Run) -> apply.Outcome:
        wanted = item.attachment
        assert wanted is not None
        device: str | None = None
        try:
            with self._alone(wanted):
                if item.do is plan.Do.ATTACH:
                    if wanted.volume_id in self._shielded:
                        self._unshield(wanted.volume_id, run)
                    self._until_free(wanted)
                    device = self._send(wanted, run)
                self._until_attached(wanted)
        except exceptions.DrpError as error:
            self._say(
                _('%(server)s: volume %(volume)s: %(error)s')
                % {
                    'server': self.seen.name_of(item.server_id),
                    'volume': item.volume_id,
                    'error': error,
                }
            )
            return _outcome(item, apply.FAILED, str(error))
        outcome = _outcome(item, apply.DONE, _('attached'))
        if device and wanted.device and device != wanted.device:
            outcome = dataclasses.replace(
                outcome,
                warning=_('was %(old)s, is %(new)s')
                % {'old': wanted.device, 'new': device},
            )
        return outcome

    @contextlib.contextmanager
    def _alone(
        self, wanted: facts.MapAttachment
    ) -> collections.abc.Iterator[None]:
        """Attach a volume to one server at a time.

        While one attach of a multiattach volume is under way, cinder refuses
        the next: "current status is attaching" (400, cinder 29.0.0
        volume/api.py _attachment_reserve; seen in the lab).
        """
        volume_id = wanted.volume_id
        # None: cinder has a row of a volume that it no longer knows
        volume = self.seen.volumes.get(volume_id)
        if not (wanted.multiattach or (volume and volume.multiattach)):
            yield
            return
        with self._guard:
            lock = self._turns.setdefault(volume_id, threading.Lock())
        with lock:
            yield

    def _until_free(self, wanted: facts.MapAttachment) -> None:
        """Wait for an attach to another server (a killed run's) to end."""
        if wanted.volume_id not in self._turns:
            return
        deadline = self._clock.monotonic() + self._wait
        while (
            self._cloud.volume(wanted.volume_id).status in rules.IN_FLIGHT
            and self._clock.monotonic() < deadline
        ):
            self._clock.sleep(POLL)

    def _send(
        self, wanted: facts.MapAttachment, run: journal.Run
    ) -> str | None:
        """Send one attach; a doubtful answer is settled by looking."""
        run.write(
            'intent',
            action='attach',
            server=wanted.server_id,
            volume=wanted.volume_id,
        )
        try:
            device = self._cloud.attach(wanted)
        except (exceptions.Conflict, exceptions.Unanswered) as error:
            try:
                present = self._present(wanted)
            except exceptions.ApiError as unseen:
                raise error from unseen
            if not present:
                raise
            device = None
        run.write(
            'sent',
            action='attach',
            server=wanted.server_id,
            volume=wanted.volume_id,
            device=device,
        )
        return device

    def _present(self, wanted: facts.MapAttachment) -> bool:
        """Whether a record has the volume for the server, finished or not.

        nova's comes first and goes last (nova 34.0.0 compute/api.py
        _attach_volume).
        """
        rows = self._cloud.rows_of(wanted.server_id)
        mappings = self._cloud.mappings_of(wanted.server_id)
        return wanted.volume_id in (
            {r.volume_id for r in rows} | {m.volume_id for m in mappings}
        )

    def _until_attached(self, wanted: facts.MapAttachment) -> None:
        """Wait until cinder says in-use, and nova has let go of the attach.

        :raises ApiError: it came back free, or took longer than --wait
        """
        deadline = self._clock.monotonic() + self._wait
        pause = FIRST_POLL
        while True:
            rows = [
                r
                for r in self._cloud.rows_of(
                    wanted.server_id, wanted.volume_id
                )
                if r.volume_id == wanted.volume_id
            ]
            if any(r.attach_status == 'attached' for r in rows):
                return
            if not rows and not self._present(wanted):
                raise exceptions.ApiError(
                    _(
                        'the attach failed on the compute host: see the '
                        "server's events and the log of its nova-compute"
                    )
                )
            if self._clock.monotonic() >= deadline:
                raise exceptions.ApiError(
                    _('not attached within %(limit)d s; it is %(status)s')
                    % {
                        'limit': self._wait,
                        'status': (
                            rows[0].attach_status
                            if rows
                            else _('in nova only')
                        ),
                    }
                )
            self._clock.sleep(pause)
            pause = min(POLL, pause * 2)

    def _verified(self, outcomes: list[apply.Outcome]) -> list[apply.Outcome]:
        """Ask nova and cinder once more whether they agree."""
        done = [o for o in outcomes if o.status == apply.DONE]
        if not done:
            return outcomes
        server_id = done[0].server_id
        try:
            mappings = self._cloud.mappings_of(server_id)
            rows = self._cloud.rows_of(server_id)
        except exceptions.DrpError as error:
            what = _('attached, but not verified: %s') % error
            return [
                dataclasses.replace(o, status=apply.OPEN, what=what)
                if o.status == apply.DONE
                else o
                for o in outcomes
            ]
        names = {m.volume_id: m.attachment_id for m in mappings}
        attached = {
            r.volume_id: r.id for r in rows if r.attach_status == 'attached'
        }
        return [
            o
            if o.status != apply.DONE
            or (
                o.volume_id in attached
                and names.get(o.volume_id) == attached[o.volume_id]
            )
            else dataclasses.replace(
                o,
                status=apply.OPEN,
                what=_('attached, but nova and cinder differ'),
            )
            for o in outcomes
        ]


def _outcome(item: plan.Item, status: str, what: str) -> apply.Outcome:
    return apply.Outcome(item.server_id, item.volume_id, status, what)
