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

"""Who is started first: the server property drp_wave, and repaired volumes.

cinder-volume exports what is in-use, once, when it starts (cinder 29.0.0
volume/manager.py:_init_host). A volume that was repaired after that may have
no export: one server with such a volume shows it for all of that host.
"""

import collections.abc
import dataclasses

from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import ports
from osc_drp.i18n import _
from osc_drp import text

PROPERTY = 'drp_wave'
#: Servers without the property come after all others.
LAST = 1_000_000

Entry = collections.abc.Mapping[str, object]


def plan(
    servers: collections.abc.Iterable[facts.Server], say: ports.Say
) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Group server ids by wave, the lowest number first; by name within."""
    found: dict[int, list[facts.Server]] = {}
    for server in servers:
        found.setdefault(_wave(server, say), []).append(server)
    return tuple(
        (
            number,
            tuple(s.id for s in sorted(group, key=lambda s: (s.name, s.id))),
        )
        for number, group in sorted(found.items())
    )


def _wave(server: facts.Server, say: ports.Say) -> int:
    value = dict(server.metadata).get(PROPERTY)
    if value is None:
        return LAST
    number = text.number(value) if value.isascii() else None
    if number is not None and number < LAST:
        return number
    say(
        _("server %(server)s: its %(property)s '%(text)s' is no number")
        % {
            'server': server.name or server.id,
            'property': PROPERTY,
            'text': text.one_line(value, 40),
        }
    )
    return LAST


@dataclasses.dataclass
class Exports:
    """What is known of the exports of repaired volumes."""

    #: By server: the cinder-volumes of its repaired volumes.
    needs: dict[str, set[str]]
    #: Hosts on which a volume was in error: nothing but their restart helps.
    held: set[str]
    proven: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def of(cls, entries: collections.abc.Sequence[Entry]) -> 'Exports':
        """Read a run's journal.

        A volume that was repaired from 'error' waits for the next
        invocation: until then the operator has read what to restart.
        """
        last = max(
            (n for n, e in enumerate(entries) if e['event'] == 'resume'),
            default=-1,
        )
        needs: dict[str, set[str]] = {}
        held = set()
        for number, entry in enumerate(entries):
            if entry['event'] != 'export':
                continue
            backend = str(entry['backend'])
            needs.setdefault(str(entry['server']), set()).add(backend)
            if entry['was'] == 'error' and number > last:
                held.add(backend)
        return cls(needs, held)

    def first(self, server_ids: list[str]) -> frozenset[str]:
        """Pick one server for each cinder-volume that is not proven yet.

        None: each one of these servers needs is proven or held. What was
        picked may have proven nothing: ask again without it.
        """
        chosen: dict[str, str] = {}
        for server_id in server_ids:
            needs = self.needs.get(server_id, set())
            if needs & self.held:
                continue
            for backend in needs - self.proven:
                chosen.setdefault(backend, server_id)
        return frozenset(chosen.values())

    def learn(self, outcomes: collections.abc.Iterable[apply.Outcome]) -> None:
        """Take in what became of them."""
        for outcome in outcomes:
            if outcome.volume_id:
                continue
            needs = self.needs.get(outcome.server_id, set())
            if outcome.status == apply.DONE:
                self.proven |= needs
            elif outcome.status == apply.FAILED:
                self.held |= needs - self.proven

    def why_not(self, server_id: str) -> str:
        """Say why a server must not be started yet; '' if it may."""
        missing = self.needs.get(server_id, set()) & self.held
        if not missing:
            return ''
        return _(
            "its volume was repaired: restart cinder-volume '%s', which may "
            'not export it, and run again'
        ) % "', '".join(sorted(missing))
