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

"""`drp db reset --cinder-only`: for who has cinder's database only.

Nova's side is read through its API, and nothing of it is changed: each
volume becomes 'reserved', which no user can delete or attach, until a hard
reboot of its server makes nova forget it (engine/cleaner.py).
"""

import collections.abc
import dataclasses
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import kept
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import reset
from osc_drp.engine import sidebyside
from osc_drp.i18n import _

#: Requests at once.
WORKERS = 8


class HalfDatabases:
    """Cinder's database, and nova through its API, as ports.Databases."""

    def __init__(
        self, cloud: ports.Cloud, cinder: ports.CinderDatabase
    ) -> None:
        self.cloud = cloud
        self._cinder = cinder
        self._seen: facts.Observation | None = None

    def check_grants(self, locks: bool = True) -> None:
        """Prove that we may write what we write; writes nothing."""
        self._cinder.check_grants(locks)

    def observe(self) -> facts.Observation:
        """Read nova by its API, cinder in its database."""
        nova = self.cloud.observe()
        cinder = self._cinder.observe_cinder(
            {m.volume_id for m in nova.mappings}
        )
        self._seen = dataclasses.replace(
            nova, volumes=cinder.volumes, rows=cinder.rows
        )
        return self._seen

    def actions_since(
        self, server_ids: collections.abc.Collection[str], since: str
    ) -> list[facts.Action]:
        """Read the action logs of these servers, one request each."""
        logs = sidebyside.each(self._actions, sorted(server_ids), WORKERS)
        return [a for log in logs for a in log if a.start_time >= since]

    def _actions(self, server_id: str) -> tuple[facts.Action, ...]:
        try:
            return self.cloud.actions(server_id)
        except exceptions.NotFound:
            return ()

    def reset(
        self,
        pair: facts.Pair,
        confirm: ports.Confirm,
        record: ports.Record,
        *,
        free: bool = True,
    ) -> None:
        """Take one attachment off cinder's record; 'reserved' then."""
        if free:
            raise AssertionError('nova would map a volume that is available')
        self._cinder.reset_cinder(
            pair,
            lambda seen: confirm(self._with_nova(seen, pair.server_id)),
            record,
        )

    def undo(
        self,
        old: collections.abc.Mapping[str, ty.Any],
        confirm: ports.Confirm,
        record: ports.Record,
    ) -> None:
        """Put cinder's record back, if nova's mapping still names it.

        :raises Changed: nova forgot it
        """
        names = {
            c['id']
            for c in old.get('changes', ())
            if c.get('table') == 'volume_attachment'
        }

        def confirmed(seen: facts.Observation) -> None:
            joined = self._with_nova(seen, old['server_id'])
            mine = {
                m.attachment_id
                for m in joined.mappings
                if (m.server_id, m.volume_id)
                == (old['server_id'], old['volume_id'])
            }
            if not names or mine != names:
                raise exceptions.Changed(_('nova no longer maps it'))
            confirm(joined)

        self._cinder.undo(old, confirmed, record)

    def repair(self, *args: object) -> ty.NoReturn:
        """Never: it needs nova's databases."""
        raise AssertionError('not by half of the databases')

    release = repair

    def _with_nova(
        self, cinder: facts.Observation, server_id: str
    ) -> facts.Observation:
        """Join what is locked at cinder with what nova says now.

        The services, and the mappings of others, are of the last reading.
        """
        assert self._seen is not None
        try:
            server = self.cloud.server(server_id)
            mappings = self.cloud.mappings_of(server_id)
        except exceptions.NotFound:
            raise exceptions.Changed(_('the server was deleted')) from None
        others = (m for m in self._seen.mappings if m.server_id != server_id)
        return dataclasses.replace(
            self._seen,
            taken_at=cinder.taken_at,
            servers={**self._seen.servers, server_id: server},
            volumes=cinder.volumes,
            mappings=(*others, *mappings),
            rows=cinder.rows,
        )


class Reset(reset.Reset):
    """Plans and carries out `drp db reset --cinder-only`."""

    def __init__(
        self,
        databases: HalfDatabases,
        cloud_map: facts.CloudMap,
        selection: plan.Selection,
        say: ports.Say,
        *,
        known: kept.Kept,
        **options: ty.Any,
    ) -> None:
        """Prepare; the options are those of reset.Reset.

        :param known: what earlier runs keep 'reserved'
        """
        super().__init__(
            databases, cloud_map, selection, say, free=False, **options
        )
        self._cloud = databases.cloud
        self._kept = known

    def propose(self) -> tuple[plan.Item, ...]:
        """Observe once and plan.

        :raises Refused: also if nova may not forget by a hard reboot
        """
        if not self._cloud.reboot_cleans:
            raise exceptions.Refused(
                _(
                    "this nova's compute API is older than 2.100: it is not "
                    'known whether a hard reboot makes it forget volumes; '
                    'use both databases'
                )
            )
        return super().propose()

    def _plan(
        self, seen: facts.Observation, selected: plan.Selected
    ) -> tuple[plan.Item, ...]:
        pairs = facts.pairs(seen)
        waiting = {kept.key_of(p) for p in pairs if kept.holds(self._kept, p)}
        rest = kept.without(seen, waiting)
        planned = super()._plan(rest, selected)
        items = {(i.server_id, i.volume_id): i for i in planned}
        by_server = facts.group(facts.pairs(rest), lambda p: p.server_id)
        for key, item in items.items():
            if key in waiting:
                what = _('kept reserved by an earlier run')
                items[key] = dataclasses.replace(item, reason=what)
            elif item.do is plan.Do.RESET:
                its = by_server[item.server_id]
                items[key] = self._reachable(item, rest, its)
        # again: what is refused here is a user of the volume, too
        for volume_id, users in facts.group(
            facts.pairs(rest), lambda p: p.volume_id
        ).items():
            plan.all_or_none(volume_id, users, items)
        return tuple(items.values())

    def _reachable(
        self,
        item: plan.Item,
        seen: facts.Observation,
        pairs: list[facts.Pair],
    ) -> plan.Item:
        """Flag what the hard reboot would not be safe for."""
        server = seen.servers[item.server_id]
        in_map = {(a.server_id, a.volume_id) for a in self._map.attachments}
        broken = plan.disks_proven(server, pairs, in_map)
        roots = [p for p in pairs if p.mapping and p.mapping.root]
        if server.vm_state != 'stopped':
            broken = 'G6', _('the server is %s') % server.vm_state
        elif server.volume_backed and len(roots) != 1:
            broken = 'R8', _('nova does not say which volume is its root')
        elif any(m.root for p in pairs for m in p.other_mappings):
            broken = 'R8', _('a volume is the root of another server')
        if broken is None:
            return item
        return dataclasses.replace(
            item, do=plan.Do.FLAG, rule=broken[0], reason=broken[1]
        )

    def _confirm(self, item: plan.Item, seen: facts.Observation) -> None:
        super()._confirm(item, seen)
        if seen.servers[item.server_id].vm_state != 'stopped':
            raise exceptions.Changed(_('the server is no longer off'))

    def _more(self, item: plan.Item) -> dict[str, object]:
        assert item.pair is not None
        ids = sorted(r.id for r in item.pair.rows)
        return {'cinder_only': True, 'attachments': ids}

    def _left(self, seen: facts.Observation) -> set[kept.Key]:
        return {kept.key_of(p) for p in facts.pairs(seen) if p.rows}

    def advice(self) -> tuple[str, ...]:
        """Say what is still to come."""
        return (
            _(
                'nova still maps what is taken off here, and the volumes stay '
                'reserved: "openstack drp servers restart" makes nova forget '
                'them by a hard reboot'
            ),
        )


def question(
    acting: collections.abc.Sequence[plan.Item],
) -> tuple[str, str]:
    """Say what is about to happen, and the phrase to be typed."""
    sentence = _(
        "%(volumes)d attachments of %(servers)d servers will be taken off "
        "cinder's record only; the restart of the servers will be a hard "
        'reboot'
    ) % {
        'volumes': len(acting),
        'servers': len({i.server_id for i in acting}),
    }
    return sentence, f'reset {len(acting)}'
