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

"""`drp db undo`: put back what one run changed, where nobody moved on."""

import collections.abc
import dataclasses
import functools
import pathlib
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import rules
from osc_drp.engine import units
from osc_drp.i18n import _

_Key = tuple[str, str]

#: The actions in a journal that can be undone. Not 'unshield', which only
#: frees for its attach what a reset kept reserved.
UNDOABLE = frozenset({'reset', 'repair'})


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One change of the run that is to be undone."""

    #: Its place in the journal.
    number: int
    server_id: str
    volume_id: str
    #: The cloud's clock, before the change.
    at: str
    old: dict[str, ty.Any]

    @property
    def key(self) -> _Key:
        """The server and the volume."""
        return self.server_id, self.volume_id

    @property
    def cinder_only(self) -> bool:
        """Whether it is of `db reset --cinder-only`."""
        return self.old.get('kind') == 'reset_cinder'


def entries(path: pathlib.Path) -> list[Entry]:
    """Read what a run changed, oldest first.

    :raises DrpError: it is no run
    """
    lines = journal.read(path)
    if not lines or lines[0].get('event') != 'begin':
        raise exceptions.DrpError(_("no journal of a run in '%s'") % path)
    found: dict[int, Entry] = {}
    newest: dict[tuple[str, str, str], int] = {}
    try:
        for number, line in enumerate(lines):
            if line.get('action') not in UNDOABLE:
                continue
            key = line['action'], line['server'], line['volume']
            if line['event'] == 'old':
                newest[key] = number
                found[number] = Entry(
                    number,
                    line['server'],
                    line['volume'],
                    line['cloud_time'],
                    line['rows'],
                )
            elif _declined(line) and key in newest:
                del found[newest.pop(key)]
    except (KeyError, TypeError):
        raise exceptions.DrpError(
            _("the journal of run '%s' is damaged") % path
        ) from None
    return list(found.values())


def _declined(line: journal.Entry) -> bool:
    """Whether a change was given up under the locks: nothing was written."""
    return line['event'] == 'outcome' and line.get('status') == apply.OPEN


class Undo:
    """Plans and carries out `drp db undo`."""

    def __init__(
        self,
        databases: ports.Databases,
        changed: list[Entry],
        undone: frozenset[int],
        say: ports.Say,
    ) -> None:
        """Prepare.

        :param changed: what the run changed
        :param undone: numbers of the entries that are put back already
        """
        self._databases = databases
        self._entries: dict[_Key, list[Entry]] = {}
        for entry in reversed(changed):
            self._entries.setdefault(entry.key, []).append(entry)
        self._undone = undone
        self._say = say
        self.seen: facts.Observation | None = None

    def propose(self) -> tuple[plan.Item, ...]:
        """Observe once and plan; writes nothing."""
        seen = self._databases.observe()
        self.seen = seen
        moved = self._moved_on()
        pairs = {
            (p.server_id, p.volume_id): p
            for p in (*facts.pairs(seen), *facts.lone(seen))
        }
        items = []
        # of a volume of several servers, the newest change first as well
        for key in sorted(
            self._entries,
            key=lambda k: (k[1], -self._entries[k][0].number),
        ):
            do, reason = self._plan(key, moved)
            items.append(plan.Item(*key, do, '', reason, pairs.get(key)))
        return tuple(items)

    #: Nothing settles: rows and actions are compared, not states.
    propose_settled = propose

    def advice(self) -> tuple[str, ...]:
        """Give nothing: the reasons say all."""
        return ()

    def _moved_on(self) -> dict[_Key, str]:
        """Name the newest action of its server since each pair's change.

        Of several changes of a pair the first counts, for all are put back.
        Each pair by itself: a run that was taken up again may have changed
        another volume of the server after its user came back.

        Times are of whole seconds. What came within the second of the change
        may have been before it; after it, it shows in the server's state or
        in the rows, which are compared as well.
        """
        since = {
            key: min(e.at for e in self._open(key))
            for key in self._entries
            if key[0] and self._open(key)
        }
        if not since:
            return {}
        log = facts.group(
            self._databases.actions_since(
                frozenset(server_id for server_id, _volume in since),
                min(since.values()),
            ),
            lambda a: a.server_id,
        )
        return {
            key: a.action
            for key, at in since.items()
            for a in log.get(key[0], ())
            if a.start_time > at
        }

    def _plan(self, key: _Key, moved: dict[_Key, str]) -> tuple[plan.Do, str]:
        assert self.seen is not None
        if not self._open(key):
            return plan.Do.NOTHING, _('put back already')
        server = self.seen.servers.get(key[0])
        if all(e.cinder_only for e in self._open(key)):
            return self._plan_cinder_only(server)
        if key in moved:
            reason = _('the server moved on since: %s') % moved[key]
            return plan.Do.FLAG, reason
        if server is not None and not off(server):
            return plan.Do.FLAG, _('the server is not off')
        if any(_from_available(e) for e in self._open(key)):
            reason = _('repaired from available: never made so again')
            return plan.Do.FLAG, reason
        return plan.Do.UNDO, _('as the run left it')

    def _plan_cinder_only(
        self, server: facts.Server | None
    ) -> tuple[plan.Do, str]:
        """As a repair: it only makes a volume less free.

        So whatever the server did since: if nova maps the volume by the same
        attachment (asked under the locks), cinder shall say so again.
        """
        if server is None:
            return plan.Do.FLAG, _('the server was deleted since')
        if server.task_state is not None:
            reason = _('the server is busy (%s)') % server.task_state
            return plan.Do.FLAG, reason
        return plan.Do.UNDO, _('as the run left it')

    def _open(self, key: _Key) -> list[Entry]:
        return [e for e in self._entries[key] if e.number not in self._undone]

    def carry_out(
        self,
        items: tuple[plan.Item, ...],
        run: journal.Run,
        step: ports.Step | None = None,
    ) -> list[apply.Outcome]:
        """Put back each pair, its newest change first."""
        acting = [i for i in items if i.do is plan.Do.UNDO]
        work = functools.partial(self._undo_pair, run)
        return units.by_volume(acting, work, self._say, step)

    def _undo_pair(self, run: journal.Run, item: plan.Item) -> apply.Outcome:
        outcome = apply.Outcome(
            item.server_id, item.volume_id, apply.DONE, _('put back')
        )
        for entry in self._open((item.server_id, item.volume_id)):
            outcome = units.journalled(
                run,
                'undo',
                item,
                functools.partial(self._confirm, item),
                functools.partial(self._databases.undo, entry.old),
                _('put back'),
                number=entry.number,
            )
            if outcome.status != apply.DONE:
                break
        return outcome

    def _confirm(self, item: plan.Item, seen: facts.Observation) -> None:
        """Check under the locks that the server is as the plan saw it."""
        assert self.seen is not None
        server = seen.servers.get(item.server_id)
        if server != self.seen.servers.get(item.server_id):
            raise exceptions.Changed(_('the server changed meanwhile'))


def off(server: facts.Server) -> bool:
    """Whether nova says that the server is off and stays so."""
    return (
        server.vm_state in rules.OFF_STATES
        and server.task_state is None
        and server.power_state in rules.OFF_POWER
    )


def _from_available(entry: Entry) -> bool:
    """Whether it is a repair of a volume that was 'available' (DESIGN 3)."""
    changes = entry.old.get('changes', ())
    return entry.old.get('kind') == 'repair' and any(
        c['table'] == 'volumes' and c['old']['status'] == 'available'
        for c in changes
    )


def question(
    acting: collections.abc.Sequence[plan.Item],
) -> tuple[str, str]:
    """Say what is about to happen, and the phrase to be typed."""
    sentence = _('%d attachments will be put back') % len(acting)
    return sentence, f'undo {len(acting)}'
