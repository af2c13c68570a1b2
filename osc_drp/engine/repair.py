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

"""`drp db repair`: heal what the rules know, flag the rest."""

import collections.abc
import dataclasses
import functools

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import mapmaker
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import rules
from osc_drp.engine import units
from osc_drp.engine import verdicts
from osc_drp.i18n import _

#: What each verdict asks for.
DO = {
    rules.Action.NONE: plan.Do.NOTHING,
    rules.Action.LEAVE: plan.Do.LEAVE,
    rules.Action.FLAG: plan.Do.FLAG,
    rules.Action.REPAIR: plan.Do.REPAIR,
    rules.Action.RESET: plan.Do.RESET,
    rules.Action.RELEASE: plan.Do.RELEASE,
}
#: What takes something away waits until nothing moves any more.
TAKES = frozenset({plan.Do.RESET, plan.Do.RELEASE})

_DONE = {
    plan.Do.REPAIR: _('repaired'),
    plan.Do.RESET: _('taken off both records'),
    plan.Do.RELEASE: _("taken off cinder's record"),
}


class Repair:
    """Plans and carries out `drp db repair`."""

    def __init__(
        self,
        databases: ports.Databases,
        cloud_map: facts.CloudMap | None,
        selection: plan.Selection,
        say: ports.Say,
        *,
        limit: float = plan.LIMIT,
        settle: float = 30.0,
        dead_hosts: collections.abc.Container[str] = (),
        clock: ports.Clock | None = None,
    ) -> None:
        self._databases = databases
        self._map = cloud_map
        #: Ids of the map's servers and volumes.
        self._in_map = frozenset(
            {s.id for s in cloud_map.servers}
            | {a.server_id for a in cloud_map.attachments}
            | {a.volume_id for a in cloud_map.attachments}
            if cloud_map
            else ()
        )
        self._selection = selection
        self._say = say
        self._limit = limit
        self._settle = settle
        self._dead_hosts = dead_hosts
        self._clock = clock or ports.RealClock()
        self.seen: facts.Observation | None = None
        self._judged: tuple[verdicts.Judged, ...] = ()

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
        judged = verdicts.judge_all(seen, self._dead_hosts)
        scope = mapmaker.make_scope(seen, [j.pair for j in judged])
        selected = plan.select(scope, self._selection, seen)
        wanted = {(a.server_id, a.volume_id): a for a in selected.attachments}
        items = []
        self._judged = tuple(j for j in judged if self._meant(j, wanted))
        for one in self._judged:
            key = one.pair.server_id, one.pair.volume_id
            verdict = one.verdict
            items.append(
                plan.Item(
                    *key,
                    DO[verdict.action],
                    verdict.rule,
                    verdict.reason,
                    one.pair,
                    wanted[key],
                )
            )
        return tuple(sorted(items, key=lambda i: (i.volume_id, i.server_id)))

    def _meant(
        self,
        one: verdicts.Judged,
        wanted: collections.abc.Container[tuple[str, str]],
    ) -> bool:
        """Whether it is selected, and touches what the map has.

        A server of the map that had no volume then may have got one since.
        """
        pair = one.pair
        if (pair.server_id, pair.volume_id) not in wanted:
            return False
        return self._map is None or bool(
            {pair.server_id, pair.volume_id} & self._in_map
        )

    def propose_settled(self) -> tuple[plan.Item, ...]:
        """Plan; what takes something away only after two equal readings."""
        items = self.propose()
        before = {
            (i.server_id, i.volume_id): i.pair for i in items if i.do in TAKES
        }
        if not before or not self._settle:
            return items
        self._say(
            _(
                'waiting %(seconds)d s: %(count)d attachments may still be '
                'under way'
            )
            % {'seconds': self._settle, 'count': len(before)}
        )
        self._clock.sleep(self._settle)
        return tuple(
            i
            if i.do not in TAKES
            or before.get((i.server_id, i.volume_id)) == i.pair
            else dataclasses.replace(
                i,
                do=plan.Do.FLAG,
                reason=_('it changed while it was watched: run again'),
            )
            for i in self.propose()
        )

    def advice(self) -> tuple[str, ...]:
        """Give the lines of nova's own tool for what is flagged."""
        return verdicts.advice(self._judged)

    def carry_out(
        self,
        items: tuple[plan.Item, ...],
        run: journal.Run,
        step: ports.Step | None = None,
    ) -> list[apply.Outcome]:
        """Heal what the plan says, one volume after the other, and verify."""
        acting = [i for i in items if i.do in plan.ACTING]
        work = functools.partial(self._heal, run)
        outcomes = units.by_volume(acting, work, self._say, step)
        outcomes = self._verified(outcomes, run)
        self._say_exports(acting, outcomes)
        return outcomes

    def _heal(self, run: journal.Run, item: plan.Item) -> apply.Outcome:
        return units.journalled(
            run,
            'repair',
            item,
            functools.partial(self._confirm, item),
            self._write(item),
            _DONE[item.do],
            rule=item.rule,
        )

    def _write(self, item: plan.Item) -> units.Write:
        pair = item.pair
        assert pair is not None
        if item.do is plan.Do.RESET:
            return functools.partial(self._databases.reset, pair)
        if item.do is plan.Do.RELEASE:
            named = pair.named
            ids = [r.id for r in pair.rows if r is not named]
            return functools.partial(self._databases.release, pair, ids)
        if item.rule == 'G7':
            # its status follows from its row, as always at cinder
            return functools.partial(self._databases.release, pair, ())
        row_id = pair.mapping.attachment_id if pair.mapping else None
        assert row_id is not None
        return functools.partial(self._databases.repair, pair, row_id)

    def _confirm(self, item: plan.Item, seen: facts.Observation) -> None:
        """Judge again, under the locks."""
        pair = plan.pair_of(
            seen, item.server_id, item.volume_id, self._dead_hosts
        )
        if pair is None:
            raise exceptions.Changed(_('neither record has it any more'))
        verdict = verdicts.judge(pair, seen)
        if (verdict.rule, DO[verdict.action]) != (item.rule, item.do):
            raise exceptions.Changed(
                _('changed meanwhile: %s') % verdict.reason
            )
        assert item.pair is not None
        rows = {r.id for r in item.pair.rows}
        if rows != {r.id for r in pair.rows}:
            raise exceptions.Changed(_("cinder's rows changed meanwhile"))

    def _verified(
        self, outcomes: list[apply.Outcome], run: journal.Run
    ) -> list[apply.Outcome]:
        """Judge what was healed once more."""
        if not outcomes:
            return outcomes
        try:
            seen = self._databases.observe()
        except exceptions.DrpError as error:
            return apply.not_verified(outcomes, error)
        left = {
            (j.pair.server_id, j.pair.volume_id): j.verdict
            for j in verdicts.judge_all(seen, self._dead_hosts)
            if not j.well
        }
        checked = []
        for o in outcomes:
            verdict = left.get((o.server_id, o.volume_id))
            if o.status == apply.OPEN and not verdict:
                # the repair of another server's attachment was enough
                o = dataclasses.replace(
                    o, status=apply.DONE, what=_('agrees meanwhile')
                )
            if o.status == apply.DONE and verdict:
                what = _('%(done)s, and yet: %(reason)s') % {
                    'done': o.what,
                    'reason': verdict.reason,
                }
                o = dataclasses.replace(o, status=apply.OPEN, what=what)
            checked.append(o)
        run.write('verified', objects=len(checked))
        return checked

    def _say_exports(
        self, acting: list[plan.Item], outcomes: list[apply.Outcome]
    ) -> None:
        """Name the cinder-volumes that may not export what was repaired.

        At its start cinder-volume exports what is in-use, once (cinder
        29.0.0 volume/manager.py:_init_host).
        """
        done = {
            (o.server_id, o.volume_id)
            for o in outcomes
            if o.status == apply.DONE
        }
        backends: dict[str, set[str]] = {}
        for i in acting:
            volume = i.pair.volume if i.pair else None
            if (
                i.do is plan.Do.REPAIR
                and (i.server_id, i.volume_id) in done
                and volume is not None
                and volume.status != 'in-use'
            ):
                host = verdicts.backend(volume) or '?'
                backends.setdefault(host, set()).add(volume.id)
        for host, volumes in sorted(backends.items()):
            self._say(
                _(
                    "cinder-volume '%(host)s' may not export %(count)d "
                    'repaired volumes: restart it if the start of a server '
                    'fails'
                )
                % {'host': host, 'count': len(volumes)}
            )


def question(
    acting: collections.abc.Sequence[plan.Item],
) -> tuple[str, str]:
    """Say what is about to happen, and the phrase to be typed."""
    sentence = _(
        '%(repaired)d attachments will be repaired at cinder, %(taken)d '
        'leftovers will be taken off the records'
    ) % {
        'repaired': sum(i.do is plan.Do.REPAIR for i in acting),
        'taken': sum(i.do in TAKES for i in acting),
    }
    return sentence, f'repair {len(acting)}'
