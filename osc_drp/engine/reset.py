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

"""Step 2 of the procedure: take attachments off both records, row by row."""

import collections.abc
import functools

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import rules
from osc_drp.engine import units
from osc_drp.i18n import _


class Reset:
    """Plans and carries out `drp db reset`."""

    def __init__(
        self,
        databases: ports.Databases,
        cloud_map: facts.CloudMap,
        selection: plan.Selection,
        say: ports.Say,
        *,
        limit: float = 0.05,
        settle: float = 120.0,
        dead_hosts: collections.abc.Container[str] = (),
        lost_at: str | None = None,
        free: bool = True,
        clock: ports.Clock | None = None,
    ) -> None:
        """Prepare a reset.

        :param limit: share of the mappings, see plan.stale
        :param settle: seconds that a server must be seen unchanged
        :param free: False leaves the volumes 'reserved' instead of
            'available', so that nobody takes them (DESIGN 10)
        """
        self._databases = databases
        self._map = cloud_map
        self._selection = selection
        self._say = say
        self._limit = limit
        self._settle = settle
        self._dead_hosts = dead_hosts
        self._lost_at = lost_at
        self._free = free
        self._clock = clock or ports.RealClock()
        self.seen: facts.Observation | None = None

    def propose(self) -> tuple[plan.Item, ...]:
        """Observe once and plan; writes nothing, waits for nothing.

        :raises Refused: one database looks older than the other
        """
        return self.plan_on(self._databases.observe())

    def plan_on(self, seen: facts.Observation) -> tuple[plan.Item, ...]:
        """Plan on an observation of the databases; see ``propose``."""
        self.seen = seen
        older = plan.stale(seen, self._limit)
        if older:
            raise exceptions.Refused(older)
        selected = plan.select(self._map, self._selection, seen)
        self._histories = self._read_histories(selected.server_ids)
        return self._plan(seen, selected)

    def _plan(
        self, seen: facts.Observation, selected: plan.Selected
    ) -> tuple[plan.Item, ...]:
        return plan.plan_reset(
            self._map,
            seen,
            selected,
            self._histories,
            self._dead_hosts,
            self._lost_at,
        )

    def _read_histories(
        self, server_ids: frozenset[str]
    ) -> dict[str, plan.PowerHistory]:
        since = {
            server_id: plan.history_since(self._map, server_id, self._lost_at)
            for server_id in server_ids
        }
        if not since:
            return {}
        log = facts.group(
            self._databases.actions_since(server_ids, min(since.values())),
            lambda a: a.server_id,
        )
        return {
            server_id: plan.power_history(actions, since[server_id])
            for server_id, actions in log.items()
        }

    def advice(self) -> tuple[str, ...]:
        """Give nothing: what it flags, `drp attachments check` explains."""
        return ()

    def unsettled(self, items: tuple[plan.Item, ...]) -> frozenset[str]:
        """List the servers whose off state nobody proves but time.

        A stop that nova made by itself since the map was taken shows that
        nova-compute has looked at that server after the loss.
        """
        return frozenset(
            i.server_id
            for i in items
            if i.do in (plan.Do.RESET, plan.Do.FINISH)
            and not self._histories.get(
                i.server_id, plan.PowerHistory()
            ).stopped_by_nova
        )

    def propose_settled(self) -> tuple[plan.Item, ...]:
        """Plan on readings that stayed equal for the settling time."""
        items = self.propose()
        waiting = self.unsettled(items)
        if not waiting or not self._settle:
            return items
        before = self._readings(waiting)
        self._say(
            _(
                'waiting %(seconds)d s: nova-compute may not have looked at '
                '%(count)d servers yet'
            )
            % {'seconds': self._settle, 'count': len(waiting)}
        )
        self._clock.sleep(self._settle)
        items = self.propose()
        # a server that came to be off only now was not watched
        if (
            self._readings(waiting) != before
            or not self.unsettled(items) <= waiting
        ):
            raise exceptions.Refused(
                _(
                    'servers changed while nova-compute was watched: run '
                    'the command again when the cloud is quiet'
                )
            )
        return items

    def _readings(
        self, server_ids: frozenset[str]
    ) -> dict[str, tuple[str, str | None, int] | None]:
        assert self.seen is not None
        readings: dict[str, tuple[str, str | None, int] | None] = {}
        for server_id in server_ids:
            server = self.seen.servers.get(server_id)
            readings[server_id] = (
                (server.vm_state, server.task_state, server.power_state)
                if server
                else None
            )
        return readings

    def carry_out(
        self,
        items: tuple[plan.Item, ...],
        run: journal.Run,
        step: ports.Step | None = None,
    ) -> list[apply.Outcome]:
        """Reset what the plan says, one volume after the other, and verify."""
        acting = [i for i in items if i.do in (plan.Do.RESET, plan.Do.FINISH)]
        work = functools.partial(self._reset_one, run)
        outcomes = units.by_volume(acting, work, self._say, step)
        return self._verified(outcomes, run)

    def _reset_one(self, run: journal.Run, item: plan.Item) -> apply.Outcome:
        assert item.pair is not None
        return units.journalled(
            run,
            'reset',
            item,
            functools.partial(self._confirm, item),
            functools.partial(
                self._databases.reset, item.pair, free=self._free
            ),
            _('reset') if self._free else _('reset, and kept reserved'),
            free=self._free,
            **self._more(item),
        )

    def _more(self, item: plan.Item) -> dict[str, object]:
        """Give what the journal needs besides."""
        return {}

    def _confirm(self, item: plan.Item, seen: facts.Observation) -> None:
        """Check every fact of the verdict again, under the locks."""
        pair = plan.pair_of(
            seen, item.server_id, item.volume_id, self._dead_hosts
        )
        if pair is None:
            raise exceptions.Changed(_('neither record has it any more'))
        if any(m.root for m in pair.mappings) or not rules.settled(pair):
            raise exceptions.Changed(_('the server is no longer off'))
        verdict = rules.judge(pair)
        as_planned = (
            rules.own_half(pair)
            if item.do is plan.Do.FINISH
            else verdict.rule == 'R1'
        )
        if not as_planned:
            raise exceptions.Changed(
                _('changed meanwhile: %s') % verdict.reason
            )

    def _verified(
        self, outcomes: list[apply.Outcome], run: journal.Run
    ) -> list[apply.Outcome]:
        if not any(o.status == apply.DONE for o in outcomes):
            return outcomes
        try:
            seen = self._databases.observe()
        except exceptions.DrpError as error:
            return apply.not_verified(outcomes, error)
        left = self._left(seen)
        checked = []
        for o in outcomes:
            if o.status == apply.DONE and (o.server_id, o.volume_id) in left:
                o = apply.Outcome(
                    o.server_id,
                    o.volume_id,
                    apply.OPEN,
                    _('reset, but a record has it again: somebody else acted'),
                )
            checked.append(o)
        run.write('verified', objects=len(checked))
        return checked

    def _left(self, seen: facts.Observation) -> set[tuple[str, str]]:
        """List what a record has that should have none."""
        return {(p.server_id, p.volume_id) for p in facts.pairs(seen)}


def question(
    acting: collections.abc.Sequence[plan.Item],
) -> tuple[str, str]:
    """Say what is about to happen, and the phrase to be typed."""
    sentence = _(
        '%(volumes)d attachments of %(servers)d servers will be taken off '
        'both records'
    ) % {
        'volumes': len(acting),
        'servers': len({i.server_id for i in acting}),
    }
    return sentence, f'reset {len(acting)}'
