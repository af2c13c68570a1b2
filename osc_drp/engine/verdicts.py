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

"""The verdict on everything that one observation saw.

What the rules say of each pair, corrected by what only the whole cloud
tells, and the words in which a person reads it. Pure.
"""

import collections
import collections.abc
import dataclasses
import typing as ty

from osc_drp.engine import facts
from osc_drp.engine import rules
from osc_drp.i18n import _


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """A pair (or a volume alone) and what is true of it."""

    pair: facts.Pair
    verdict: rules.Verdict

    @property
    def well(self) -> bool:
        """Whether it is as it should be."""
        return self.verdict.action in (rules.Action.NONE, rules.Action.LEAVE)


def judge_all(
    seen: facts.Observation,
    dead_hosts: collections.abc.Container[str] = (),
) -> tuple[Judged, ...]:
    """Judge every pair of either record, and the volumes without one.

    :param dead_hosts: compute hosts on which the operator says nothing runs
    """
    pairs = [looked_at(p, dead_hosts) for p in facts.pairs(seen)]
    pairs += facts.lone(seen)
    found = [Judged(pair, judge(pair, seen)) for pair in pairs]
    if seen.source == facts.API:
        return tuple(_by_api(one) for one in found)
    detaches = collections.Counter(
        j.pair.server_id
        for j in found
        if j.verdict.rule == 'R3a'
        or (j.pair.volume and j.pair.volume.status == 'detaching')
    )
    return tuple(
        Judged(j.pair, AMBIGUOUS)
        if j.verdict.rule == 'R3a' and detaches[j.pair.server_id] > 1
        else j
        for j in found
    )


#: nova's action log names no volume.
AMBIGUOUS = rules.Verdict(
    'R8',
    rules.Action.FLAG,
    "a user's detach was nearly done, but of which of the server's volumes",
)


def judge(pair: facts.Pair, seen: facts.Observation) -> rules.Verdict:
    """Judge one pair; a failed export is repaired only where it can be.

    cinder-volume writes 'error' itself where it cannot export a volume at
    its start (cinder 29.0.0 volume/manager.py:_init_host).
    """
    verdict = rules.judge(pair)
    if (
        verdict.action is rules.Action.REPAIR
        and pair.volume is not None
        and pair.volume.status == 'error'
        and not volume_service_up(pair.volume, seen.services)
    ):
        reason = _(
            "the volume is in error, and its cinder-volume '%s' is down"
        )
        return verdict._replace(
            action=rules.Action.FLAG, reason=reason % backend(pair.volume)
        )
    if verdict.action in _TAKES and _frees_what_is_mapped(pair):
        return verdict._replace(
            action=rules.Action.FLAG,
            reason=_(
                'nothing else would keep the volume from being available, '
                'and nova maps it for %s'
            )
            % ', '.join(sorted({m.server_id for m in pair.other_mappings})),
        )
    return verdict


_TAKES = frozenset({rules.Action.RELEASE, rules.Action.RESET})


def _frees_what_is_mapped(pair: facts.Pair) -> bool:
    """Whether the volume would be available while a server maps it.

    db/write.py would refuse it; so the plan says so (DESIGN 5).
    """
    return (
        pair.volume is not None
        and pair.volume.status != 'available'
        and pair.named is None
        and not pair.other_rows
        and any(
            m.attachment_id is not None or m.connected is not False
            for m in pair.other_mappings
        )
    )


def _by_api(one: Judged) -> Judged:
    """The APIs hide what tells the causes apart (DESIGN 10)."""
    if one.well:
        return one
    return Judged(
        one.pair,
        rules.Verdict(
            '',
            rules.Action.FLAG,
            _('the records disagree; the databases would tell the cause'),
        ),
    )


def looked_at(
    pair: facts.Pair, dead_hosts: collections.abc.Container[str]
) -> facts.Pair:
    """Take a host that the operator declares dead as looked at."""
    server = pair.server
    if server is None or server.host not in dead_hosts:
        return pair
    return dataclasses.replace(pair, compute_up=True)


def backend(volume: facts.Volume | None) -> str | None:
    """Name the cinder-volume of a volume: its host without the pool."""
    if volume is None or volume.host is None:
        return None
    return volume.host.split('#')[0]


def volume_service_up(
    volume: facts.Volume | None,
    services: collections.abc.Iterable[facts.Service],
) -> bool:
    """Tell whether the cinder-volume of a volume is up."""
    host = backend(volume)
    return host is not None and any(
        s.up and s.binary == 'cinder-volume' and s.host == host
        for s in services
    )


# -- in words ----------------------------------------------------------------


WORDS = {
    rules.Action.NONE: _('agree'),
    rules.Action.LEAVE: _('leave alone'),
    rules.Action.FLAG: _('needs a person'),
    rules.Action.REPAIR: _("repair cinder's record"),
    rules.Action.RESET: _('take it off both records'),
    rules.Action.RELEASE: _("take it off cinder's record"),
}

_POWER = {
    facts.NOSTATE: 'nostate',
    facts.RUNNING: 'running',
    facts.PAUSED: 'paused',
    facts.SHUTDOWN: 'shutdown',
    facts.CRASHED: 'crashed',
    facts.SUSPENDED: 'suspended',
}


class Witnesses(ty.NamedTuple):
    """What each side says of a pair."""

    nova: str
    cinder: str
    volume: str
    server: str


def witnesses(pair: facts.Pair) -> Witnesses:
    """Quote both records, the volume's status and the server's state."""
    return Witnesses(
        nova='; '.join(map(_mapping, pair.mappings)) or _('no mapping'),
        cinder='; '.join(map(_row, _rows(pair))) or _('no row'),
        volume=_volume(pair.volume),
        server=_server(pair),
    )


def _mapping(mapping: facts.Mapping) -> str:
    words = [mapping.attachment_id or _('no attachment id')]
    if mapping.root:
        words.append(_('root'))
    if mapping.connected is False:
        words.append(_('without connection'))
    return ', '.join(words)


def _rows(pair: facts.Pair) -> tuple[facts.Row, ...]:
    """Give the live rows of the pair, and the deleted one nova names."""
    named = {m.attachment_id for m in pair.mappings}
    return (*pair.rows, *(r for r in pair.old_rows if r.id in named))


def _row(row: facts.Row) -> str:
    words = [row.id, _('deleted') if row.deleted else row.attach_status]
    if row.connector is False:
        words.append(_('without connector'))
    elif row.host:
        words.append(row.host)
    return ', '.join(words)


def _volume(volume: facts.Volume | None) -> str:
    if volume is None:
        return _('no volume')
    words = [w for w in (volume.status, volume.attach_status) if w]
    return '/'.join(words)


def _server(pair: facts.Pair) -> str:
    server = pair.server
    if server is None:
        return _('no server') if pair.server_id else ''
    power = _POWER.get(server.power_state, str(server.power_state))
    words = [f'{server.vm_state}/{power}', server.task_state or '']
    if pair.compute_up is False:
        words.append(_("nova-compute '%s' is down") % server.host)
    return ', '.join(filter(None, words))


class NovaManage(ty.NamedTuple):
    """A line of nova's own tool, and where to type it."""

    host: str
    line: str


def nova_manage(one: Judged) -> tuple[NovaManage, ...]:
    """Give nova's own repair of a pair, if only that helps and it would.

    `refresh` makes a new attachment for a mapping that lives. cinder accepts
    that for a volume that is available, that the same server has reserved,
    or that is in use by several. Beside another row with a connector it
    answers 409 half-way (cinder 29.0.0 volume/api.py:attachment_update), and
    nova is left without connection info: seen in the lab.
    """
    pair, volume = one.pair, one.pair.volume
    host = pair.server.host if pair.server else None
    if (
        one.verdict.rule != 'R8'
        or one.verdict == AMBIGUOUS
        or host is None
        or volume is None
        or not _attachment_is_lost(pair)
    ):
        return ()
    accepted = (
        volume.status == 'available'
        or (volume.status == 'reserved' and bool(pair.rows))
        or (volume.status == 'in-use' and volume.multiattach)
    )
    in_the_way = not volume.multiattach and (
        pair.other_mappings
        or any(
            r.connector is not False for r in (*pair.rows, *pair.other_rows)
        )
    )
    if not accepted or in_the_way:
        return ()
    tool = 'nova-manage volume_attachment'
    file = f'connector-{host}.json'
    return (
        NovaManage(host, f'{tool} get_connector --json > {file}'),
        NovaManage(
            _('a controller'),
            f'{tool} refresh {pair.server_id} {pair.volume_id} {file}',
        ),
    )


def _attachment_is_lost(pair: facts.Pair) -> bool:
    """Whether nova's mapping lives, and its attachment is of no use."""
    mapping, named = pair.mapping, pair.named
    if mapping is None:
        return False
    if mapping.connected is False:
        # not an attach that never finished: it had one before
        return any(r.server_id == pair.server_id for r in pair.old_rows)
    return (
        named is None
        or not (named.connector and pair.server)
        or (named.host != pair.server.host)
    )


def advice(
    judged: collections.abc.Iterable[Judged],
) -> tuple[str, ...]:
    """Give the lines of nova's own tool, each with its place."""
    lines = (
        _('on %(place)s: %(line)s') % {'place': one.host, 'line': one.line}
        for which in judged
        for one in nova_manage(which)
    )
    found = dict.fromkeys(lines)
    if not found:
        return ()
    return (
        _(
            "only nova's own tool helps here; each server must be stopped, "
            'and not rebooted before:'
        ),
        *found,
    )
