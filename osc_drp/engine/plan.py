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

"""From facts to what should be done: pure, and tested from every state.

Each planner takes the map and one observation and gives items in the order
in which they may be carried out. An item that changes nothing says why.
Nothing here reads the clock, a file or a cloud.
"""

import collections.abc
import dataclasses
import enum
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import rules
from osc_drp.engine import verdicts
from osc_drp.i18n import _


class Do(enum.StrEnum):
    """What to do about an item."""

    #: As it should be already.
    NOTHING = 'nothing'
    #: Healthy, left alone by rule.
    LEAVE = 'leave'
    #: A person must look.
    FLAG = 'flag'
    RESET = 'reset'
    #: Cinder's half of a reset of ours that was killed.
    FINISH = 'finish'
    ATTACH = 'attach'
    #: Look again soon: something is under way.
    WAIT = 'wait'
    REPAIR = 'repair'
    RELEASE = 'release'
    UNDO = 'undo'
    START = 'start'
    STOP = 'stop'
    #: From the inside (`drp guests reboot`).
    REBOOT = 'reboot'
    #: Make nova forget what `db reset --cinder-only` took (cleaner.py).
    CLEAN = 'clean'
    #: It says that it runs; ask the hypervisor.
    PROVE = 'prove'


#: What a run would do; the rest is said only.
ACTING = frozenset(
    {
        Do.RESET,
        Do.FINISH,
        Do.REPAIR,
        Do.RELEASE,
        Do.UNDO,
        Do.ATTACH,
        Do.START,
        Do.STOP,
        Do.REBOOT,
        Do.CLEAN,
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One line of a plan: one attachment, or (no volume) one server."""

    server_id: str
    volume_id: str
    do: Do
    rule: str
    reason: str
    pair: facts.Pair | None = None
    attachment: facts.MapAttachment | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """What --server, --project, --host and --volume named."""

    servers: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    #: Servers that the map lacks are meant as well; see :meth:`lost_at`.
    unmapped: bool = False

    def subject(self) -> dict[str, list[str]]:
        """Describe what was named, for the journal."""
        return {
            name: sorted(getattr(self, name))
            for name in ('servers', 'projects', 'hosts', 'volumes')
        }

    def lost_at(self, time: str | None) -> 'Selection':
        """Give the selection of a restart with (or without) --lost-at.

        A server that was created after the map ran as well, if nova stopped
        it by itself after that time (DESIGN 10).
        """
        return dataclasses.replace(self, unmapped=bool(time))


class Selected(ty.NamedTuple):
    """The part of the map that is meant."""

    server_ids: frozenset[str]
    attachments: tuple[facts.MapAttachment, ...]
    #: Servers that the map lacks: started with --lost-at, nothing else.
    unmapped: frozenset[str] = frozenset()


def _find(
    wanted: str, names: collections.abc.Mapping[str, str], what: str
) -> str:
    """Resolve a name or id to an id."""
    if wanted in names:
        return wanted
    found = [key for key, name in names.items() if name == wanted]
    if not found:
        raise exceptions.DrpError(
            _("no %(what)s '%(name)s' in the map")
            % {'what': what, 'name': wanted}
        )
    if len(found) > 1:
        raise exceptions.DrpError(
            _("more than one %(what)s is named '%(name)s': use its id")
            % {'what': what, 'name': wanted}
        )
    return found[0]


def _check_known(
    wanted: collections.abc.Iterable[str],
    known: collections.abc.Collection[str | None],
    what: str,
) -> None:
    for name in wanted:
        if name not in known:
            raise exceptions.DrpError(
                _("no server of the map has the %(what)s '%(name)s'")
                % {'what': what, 'name': name}
            )


def _find_server(
    wanted: str,
    names: collections.abc.Mapping[str, str],
    meant: collections.abc.Container[str],
) -> str:
    """Resolve a server's name or id; by those that are meant, if it can be.

    :raises DrpError: also if only the cloud has it, and says so
    """
    known = {i: name for i, name in names.items() if i in meant}
    if wanted in known or wanted in known.values():
        return _find(wanted, known, _('server'))
    if wanted in names or wanted in names.values():
        raise exceptions.DrpError(
            _(
                "no server '%s' in the map, only in the cloud: it was made "
                'after the map ("servers restart" and "recover" start it '
                'with --lost-at, if nova stopped it since)'
            )
            % wanted
        )
    return _find(wanted, known, _('server'))


def select(
    cloud_map: facts.CloudMap,
    selection: Selection,
    seen: facts.Observation | None = None,
) -> Selected:
    """Pick what the options name; several kinds of options narrow it.

    :raises DrpError: a name that the map does not have, or has twice; or
        the options together pick nothing
    """
    # by the map first: its names are those the operator knows
    live = seen.servers if seen else {}
    servers: dict[str, facts.Server | facts.MapServer] = {
        **live,
        **{s.id: s for s in cloud_map.servers},
    }
    in_map = {s.id for s in cloud_map.servers} | {
        a.server_id for a in cloud_map.attachments
    }
    outside: set[str] = set()
    if selection.unmapped:
        # as in a map: what was never launched cannot be restarted
        outside = {i for i, s in live.items() if s.launched} - in_map
    known = in_map | outside
    wanted_servers = {
        _find_server(s, {i: n.name for i, n in servers.items()}, known)
        for s in selection.servers
    }
    users = _users(cloud_map, seen, outside)
    volumes = {
        v: seen.volumes[v].name if seen and v in seen.volumes else ''
        for _s, v in users
    }
    wanted_volumes = {
        _find(v, volumes, _('volume')) for v in selection.volumes
    }

    # but a host is where the server is today
    hosts = {
        **{i: s.host for i, s in servers.items() if i in known},
        **{i: s.host for i, s in live.items() if i in known},
    }
    projects = {i: s.project_id for i, s in servers.items() if i in known}
    _check_known(selection.projects, projects.values(), _('project'))
    _check_known(selection.hosts, hosts.values(), _('host'))

    def meant(server_id: str) -> bool:
        if wanted_servers and server_id not in wanted_servers:
            return False
        if (
            selection.projects
            and projects.get(server_id) not in selection.projects
        ):
            return False
        return not selection.hosts or hosts.get(server_id) in selection.hosts

    server_ids = frozenset(s for s in known if meant(s))
    if wanted_volumes:
        server_ids &= {s for s, v in users if v in wanted_volumes}
    if not server_ids and any(selection.subject().values()):
        raise exceptions.DrpError(
            _('the options together pick nothing of the map')
        )
    return Selected(
        server_ids & in_map,
        tuple(
            a
            for a in cloud_map.attachments
            if a.server_id in server_ids
            and (not wanted_volumes or a.volume_id in wanted_volumes)
        ),
        server_ids - in_map,
    )


def _users(
    cloud_map: facts.CloudMap,
    seen: facts.Observation | None,
    outside: collections.abc.Container[str],
) -> set[tuple[str, str]]:
    """List who has which volume: by the map, or outside of it by nova."""
    return {(a.server_id, a.volume_id) for a in cloud_map.attachments} | {
        (m.server_id, m.volume_id)
        for m in (seen.mappings if seen else ())
        if m.server_id in outside and not m.deleted
    }


# -- what all planners ask ---------------------------------------------------


#: The share of all mappings that may disagree without a trace.
LIMIT = 0.05


def stale(seen: facts.Observation, limit: float) -> str:
    """Tell whether one database looks older than the other; '' if not.

    :param limit: the share of all mappings that may disagree without a
        trace (0.05); never less than 10 of them (DESIGN 4)
    """
    live = {r.id: r for r in seen.rows if not r.deleted and r.server_id}
    known = {r.id for r in seen.rows}
    mappings = [m for m in seen.mappings if not m.deleted]
    nowhere = [
        m
        for m in mappings
        if m.connected is not False
        and m.attachment_id is not None
        and m.attachment_id not in known
    ]
    named = {m.attachment_id for m in seen.mappings}
    unnamed = [
        r
        for r in live.values()
        if r.attach_status == 'attached' and r.id not in named
    ]
    count = len(nowhere) + len(unnamed)
    if count <= max(10, int(limit * len(mappings))):
        return ''
    return _(
        'one database looks older than the other: %(nowhere)d mappings of '
        'nova name attachments that cinder never had, and %(unnamed)d '
        'attachments of cinder are named by no mapping (limit %(limit)d of '
        '%(all)d)'
    ) % {
        'nowhere': len(nowhere),
        'unnamed': len(unnamed),
        'limit': max(10, int(limit * len(mappings))),
        'all': len(mappings),
    }


class PowerHistory(ty.NamedTuple):
    """What nova's action log says of a server since the map was taken."""

    #: The newest stop was asked for by a user (not by us, not by nova).
    stopped_by_user: bool = False
    #: The newest power action is a stop that nova made by itself.
    stopped_by_nova: bool = False
    #: The newest power action is a stop that this tool asked for.
    stopped_by_us: bool = False


#: The actions that tell whether somebody wanted the server on or off
#: (nova 34.0.0 compute/instance_actions.py).
POWER_ACTIONS = frozenset(
    {'stop', 'start', 'reboot', 'shelve', 'unshelve', 'create', 'rebuild'}
)


def power_history(
    actions: collections.abc.Iterable[facts.Action],
    since: str,
    ours: collections.abc.Container[str] = (),
) -> PowerHistory:
    """Read the action log of one server.

    :param since: UTC; older actions say nothing
    :param ours: request ids of stops that this tool asked for
    """
    newest = max(
        (
            a
            for a in actions
            if a.action in POWER_ACTIONS and a.start_time > since
        ),
        key=lambda a: a.start_time,
        default=None,
    )
    if newest is None or newest.action != 'stop':
        return PowerHistory()
    if newest.user_id is None:
        return PowerHistory(stopped_by_nova=True)
    if newest.request_id in ours:
        return PowerHistory(stopped_by_us=True)
    return PowerHistory(stopped_by_user=True)


def history_since(
    cloud_map: facts.CloudMap, server_id: str, lost_at: str | None
) -> str:
    """Tell from when on a server's action log counts.

    From the map on; of a server that did not run then, from --lost-at on.
    """
    wanted = cloud_map.server(server_id)
    if lost_at is None or (wanted is not None and wanted.ran):
        return cloud_map.taken_at
    return lost_at


def check_map(cloud_map: facts.CloudMap, lost_at: str | None) -> None:
    """Refuse a map that was taken too late, after nova's first sync.

    :raises Refused: no server of it ran, and --lost-at is missing
    """
    if lost_at is None and not any(s.ran for s in cloud_map.servers):
        raise exceptions.Refused(
            _(
                'no server of the map ran when it was taken: say with '
                '--lost-at when the power went'
            )
        )


def our_stops(
    actions: collections.abc.Sequence[facts.Action],
    before: collections.abc.Container[str | None],
    user_id: str | None,
) -> frozenset[str]:
    """Find the stops in a server's log that this tool asked for.

    :param actions: newest first
    :param before: the newest request id right before each stop of ours
    :param user_id: whose password the tool uses
    """
    found = set()
    previous: str | None = None
    for action in reversed(actions):
        if (
            action.action == 'stop'
            and action.user_id == user_id
            and previous in before
        ):
            found.add(action.request_id)
        previous = action.request_id
    return frozenset(found)


def why_not_restart(
    wanted: facts.MapServer | None,
    server: facts.Server | None,
    history: PowerHistory,
    lost: bool = False,
) -> tuple[Do, str] | None:
    """Say why `servers restart` would leave this server alone; None: it acts.

    :param lost: it counts as running although the map says otherwise
        (an automatic stop after --lost-at)
    """
    if wanted is None and not lost:
        return Do.LEAVE, _(
            'the map does not have it, and no automatic stop after '
            '--lost-at tells that it ran'
        )
    if server is None or server.vm_state in ('deleted', 'soft-delete'):
        return Do.LEAVE, _('the server was deleted since')
    if wanted is not None and not wanted.ran and not lost:
        return Do.LEAVE, _('it did not run when the map was taken')
    if history.stopped_by_user:
        return Do.LEAVE, _('a user stopped it since')
    if server.vm_state in rules.SHELVED:
        return Do.LEAVE, _('it was shelved since')
    if server.vm_state not in ('active', *rules.OFF_STATES):
        return Do.FLAG, _('the server is %s') % server.vm_state
    return None


# -- db reset ----------------------------------------------------------------


def pair_of(
    seen: facts.Observation,
    server_id: str,
    volume_id: str,
    dead_hosts: collections.abc.Container[str] = (),
) -> facts.Pair | None:
    """Find one pair in an observation; None: neither record has it."""
    for pair in (*facts.pairs(seen), *facts.lone(seen)):
        if (pair.server_id, pair.volume_id) == (server_id, volume_id):
            return verdicts.looked_at(pair, dead_hosts)
    return None


def _reset_server(
    cloud_map: facts.CloudMap,
    seen: facts.Observation,
    server_id: str,
    pairs: list[facts.Pair],
    history: PowerHistory,
    lost_at: str | None,
) -> tuple[Do, str, str] | None:
    """Say why no disk of this server may be reset; None: they may be."""
    server = seen.servers.get(server_id)
    lost = lost_at is not None and history.stopped_by_nova
    why = why_not_restart(cloud_map.server(server_id), server, history, lost)
    if why:
        return why[0], '', why[1]
    assert server is not None
    if server.ran:
        return Do.FLAG, 'G9', _('the server runs, or nova has not looked yet')
    if server.task_state is not None:
        return Do.FLAG, 'G6', _('the server is busy (%s)') % server.task_state
    for pair in pairs:
        if not rules.settled(pair):
            if pair.compute_up is not True:
                reason = _("nova-compute on '%s' is not up") % server.host
            else:
                reason = _('the server is not off (%(vm)s, power %(power)d)')
                reason %= {
                    'vm': server.vm_state,
                    'power': server.power_state,
                }
            return Do.FLAG, 'G6', reason
        if not verdicts.volume_service_up(pair.volume, seen.services):
            reason = _(
                "cinder-volume '%(host)s' of volume %(volume)s is not up"
            ) % {
                'host': pair.volume.host if pair.volume else None,
                'volume': pair.volume_id,
            }
            return Do.FLAG, '', reason
        verdict = rules.judge(pair)
        if verdict.rule != 'R1' and not rules.own_half(pair):
            reason = _('volume %(volume)s of the server: %(reason)s') % {
                'volume': pair.volume_id,
                'reason': verdict.reason,
            }
            return Do.FLAG, verdict.rule, reason
    return None


def plan_reset(
    cloud_map: facts.CloudMap,
    seen: facts.Observation,
    selected: Selected,
    histories: collections.abc.Mapping[str, PowerHistory],
    dead_hosts: collections.abc.Container[str] = (),
    lost_at: str | None = None,
) -> tuple[Item, ...]:
    """Plan step 2 of the procedure, for both records or none (DESIGN 4).

    Only what agrees (R1) and our own unfinished halves; never a root; a
    multiattach volume only if all of its pairs can be, in this run. Ordered
    by volume, as the locks are.
    """
    pairs = [verdicts.looked_at(p, dead_hosts) for p in facts.pairs(seen)]
    by_key = {(p.server_id, p.volume_id): p for p in pairs}
    by_server = facts.group(pairs, lambda p: p.server_id)
    by_volume = facts.group(pairs, lambda p: p.volume_id)
    why_not = {
        server_id: _reset_server(
            cloud_map,
            seen,
            server_id,
            by_server.get(server_id, []),
            histories.get(server_id, PowerHistory()),
            lost_at,
        )
        for server_id in selected.server_ids
    }
    items = {}
    for wanted in selected.attachments:
        key = (wanted.server_id, wanted.volume_id)
        items[key] = _reset_item(
            wanted, by_key.get(key), why_not[wanted.server_id]
        )
    for volume_id, users in by_volume.items():
        all_or_none(volume_id, users, items)
    return tuple(
        sorted(items.values(), key=lambda i: (i.volume_id, i.server_id))
    )


def _reset_item(
    wanted: facts.MapAttachment,
    pair: facts.Pair | None,
    why_not: tuple[Do, str, str] | None,
) -> Item:
    def item(do: Do, rule: str, reason: str) -> Item:
        return Item(
            wanted.server_id, wanted.volume_id, do, rule, reason, pair, wanted
        )

    if pair is None:
        return item(Do.NOTHING, '', _('neither record has it any more'))
    if wanted.root or any(m.root for m in pair.mappings):
        return item(Do.LEAVE, '', _('a root disk is never reset'))
    if why_not:
        return item(*why_not)
    if rules.own_half(pair):
        return item(
            Do.FINISH, 'R4', _('an interrupted reset: nova forgot already')
        )
    verdict = rules.judge(pair)
    if verdict.rule == 'R1':
        return item(Do.RESET, 'R1', verdict.reason)
    return item(Do.FLAG, verdict.rule, verdict.reason)


def all_or_none(
    volume_id: str,
    users: list[facts.Pair],
    items: dict[tuple[str, str], Item],
) -> None:
    """A volume with a user outside this reset is not touched at all."""
    acting = (Do.RESET, Do.FINISH)
    outside = [
        p.server_id
        for p in users
        if (item := items.get((p.server_id, volume_id))) is None
        or item.do not in acting
    ]
    if not outside:
        return
    for pair in users:
        key = (pair.server_id, volume_id)
        if key in items and items[key].do in acting:
            items[key] = dataclasses.replace(
                items[key],
                do=Do.FLAG,
                rule='G10',
                reason=_('server %s has the volume too, and is not reset')
                % ', '.join(outside),
            )


# -- servers restart ---------------------------------------------------------


def disks_proven(
    server: facts.Server,
    pairs: list[facts.Pair],
    in_map: collections.abc.Container[tuple[str, str]],
) -> tuple[str, str] | None:
    """Say which disk of the server is not proven to be its own; None: all.

    `start` asks cinder nothing (nova 34.0.0 compute/manager.py
    start_instance), so it is asked here, before.
    """
    listed = {p.volume_id for p in pairs if p.mappings}
    if server.volume_backed and not (listed or server.volumes_attached):
        return 'R8', _('it boots from a volume, and nova maps none for it')
    hidden = (server.volumes_attached or frozenset()) - listed
    if hidden:
        return 'G11', _(
            'volume %s was attached before Queens, or never finished'
        ) % ', '.join(sorted(hidden))
    for pair in pairs:
        if not pair.mappings:
            if (pair.server_id, pair.volume_id) in in_map:
                return 'R4', _(
                    'cinder still has volume %s for it, nova does not: '
                    'run "openstack drp db reset" again first'
                ) % pair.volume_id
            continue
        verdict = rules.judge(pair)
        if verdict.rule not in ('R1', 'R6'):
            return verdict.rule, _(
                'volume %(volume)s: %(reason)s; "openstack drp attachments '
                'check" on the databases tells the cause, "openstack drp db '
                'repair" mends it'
            ) % {
                'volume': pair.volume_id,
                'reason': verdict.reason,
            }
    return None


class Look(ty.NamedTuple):
    """What is known of a server besides its records."""

    #: nova-compute is up, and the readings were equal for long enough.
    settled: bool
    #: The hypervisor's word (diagnostics); None: not asked or no answer.
    runs: bool | None = None
    asked: bool = False
    #: Restarted in this invocation already.
    started: bool = False


def decide_restart(
    wanted: facts.MapServer | None,
    server: facts.Server | None,
    pairs: list[facts.Pair],
    history: PowerHistory,
    look: Look,
    in_map: collections.abc.Container[tuple[str, str]] = (),
    lost: bool = False,
) -> Item:
    """Give the next step of one server (the table of DESIGN 6)."""
    server_id = server.id if server else wanted.id if wanted else ''

    def item(do: Do, reason: str, rule: str = '') -> Item:
        return Item(server_id, '', do, rule, reason)

    why = why_not_restart(wanted, server, history, lost)
    if why:
        return item(*why)
    assert server is not None
    if server.task_state is not None:
        return item(Do.WAIT, _('busy (%s)') % server.task_state)
    if server.vm_state == 'active':
        step = _decide_active(server, look, item)
    elif server.power_state not in rules.OFF_POWER:
        step = _decide_odd(server, look, item)
    elif server.vm_state == 'error':
        step = item(Do.STOP, _('in error: stop, then start'))
    else:
        step = item(Do.START, _('off since the loss'))
    if step.do not in (Do.START, Do.STOP):
        return step
    broken = disks_proven(server, pairs, in_map)
    if broken:
        return item(Do.FLAG, broken[1], broken[0])
    if look.started:
        return item(Do.FLAG, _('it went off again after its start'))
    return step


def _decide_odd(
    server: facts.Server,
    look: Look,
    item: collections.abc.Callable[..., Item],
) -> Item:
    """Stopped or in error, but nova records that its guest is on.

    nova's `start` would pull the plug of a guest that runs.
    """
    if not look.settled:
        return item(Do.WAIT, _('nova may not have looked yet'))
    if server.vm_state == 'error':
        if not look.asked:
            return item(Do.PROVE, _('in error, but its guest may run'))
        if look.runs is False:
            return item(Do.STOP, _('in error: stop, then start'))
    return item(
        Do.FLAG,
        _('%(vm)s, but its guest is not off (power %(power)d)')
        % {'vm': server.vm_state, 'power': server.power_state},
    )


def _decide_active(
    server: facts.Server,
    look: Look,
    item: collections.abc.Callable[..., Item],
) -> Item:
    if not look.settled:
        return item(Do.WAIT, _('nova may not have looked yet'))
    if server.power_state != facts.RUNNING:
        return item(Do.STOP, _('its guest is off: stop, then start'))
    if not look.asked:
        return item(Do.PROVE, _('says that it runs'))
    if look.runs:
        return item(Do.NOTHING, _('runs'))
    if look.runs is None:
        return item(
            Do.FLAG, _('not proven: nova says running, diagnostics do not')
        )
    return item(Do.STOP, _('its guest is gone: stop, then start'))


# -- attachments restore -----------------------------------------------------


def plan_restore(
    cloud_map: facts.CloudMap,
    seen: facts.Observation,
    selected: Selected,
    actions: collections.abc.Mapping[
        str, collections.abc.Sequence[facts.Action]
    ],
    resets: collections.abc.Mapping[tuple[str, str], str],
    shielded: collections.abc.Container[str] = (),
) -> tuple[Item, ...]:
    """Plan step 4: attach what the map has and both sides lack.

    In device order within each server, as libvirt hands the names out.

    :param actions: nova's action log of each server that lacks a volume
    :param resets: when a reset of ours took an attachment off (the cloud's
        clock)
    :param shielded: volumes that a reset of ours left reserved
    """
    by_key = {(p.server_id, p.volume_id): p for p in facts.pairs(seen)}
    names = {
        server_id: server.name for server_id, server in seen.servers.items()
    }
    missing = facts.group(
        (
            a
            for a in cloud_map.attachments
            if (a.server_id, a.volume_id) not in by_key and not a.root
        ),
        lambda a: a.server_id,
    )
    items = []
    for wanted in sorted(
        selected.attachments,
        key=lambda a: (
            names.get(a.server_id, ''),
            a.server_id,
            facts.device_order(a.device),
        ),
    ):
        key = (wanted.server_id, wanted.volume_id)
        do, rule, reason = _restore_one(
            wanted, by_key.get(key), seen, shielded
        )
        if do is Do.ATTACH:
            why = _detached(
                wanted,
                cloud_map,
                missing[wanted.server_id],
                actions.get(wanted.server_id, ()),
                resets,
            )
            if why:
                do, reason = why
        items.append(Item(*key, do, rule, reason, by_key.get(key), wanted))
    return tuple(items)


def _restore_one(
    wanted: facts.MapAttachment,
    pair: facts.Pair | None,
    seen: facts.Observation,
    shielded: collections.abc.Container[str],
) -> tuple[Do, str, str]:
    if pair is not None:
        return _restore_present(pair)
    server = seen.servers.get(wanted.server_id)
    volume = seen.volumes.get(wanted.volume_id)
    if server is None:
        return Do.LEAVE, '', _('the server was deleted since')
    if wanted.root:
        return Do.FLAG, 'R8', _('a root disk that neither record has')
    if volume is None:
        return Do.FLAG, '', _('the volume is gone')
    if volume.project_id != server.project_id:
        return Do.FLAG, '', _('the volume belongs to another project now')
    # in flight: for another of its servers; the attach waits for that
    free = (
        volume.status == 'available'
        or (volume.status == 'reserved' and volume.id in shielded)
        or (
            volume.multiattach
            and volume.status in ('in-use', *rules.IN_FLIGHT)
        )
    )
    if not free:
        return Do.FLAG, '', _('the volume is %s') % volume.status
    if volume.migration_status not in rules.NO_MIGRATION:
        return Do.FLAG, 'G2', _('the volume is being migrated')
    if server.task_state is not None:
        return Do.FLAG, 'G6', _('the server is busy (%s)') % server.task_state
    if server.vm_state == 'stopped':
        return Do.FLAG, '', _('the server is off: start it first')
    if server.vm_state != 'active':
        return Do.FLAG, '', _('the server is %s') % server.vm_state
    if server.power_state != facts.RUNNING:
        return Do.FLAG, '', _('its guest is off: restart it first')
    return Do.ATTACH, '', _('neither record has it')


def _restore_present(pair: facts.Pair) -> tuple[Do, str, str]:
    verdict = rules.judge(pair)
    if verdict.rule == 'R1':
        return Do.NOTHING, 'R1', _('attached')
    if verdict.action is rules.Action.LEAVE:
        return Do.LEAVE, verdict.rule, verdict.reason
    in_flight = pair.rows and all(
        r.attach_status in rules.IN_FLIGHT for r in pair.rows
    )
    if in_flight:
        return Do.WAIT, '', _('an attach is under way')
    return Do.FLAG, verdict.rule, verdict.reason


def _detached(
    wanted: facts.MapAttachment,
    cloud_map: facts.CloudMap,
    missing: collections.abc.Sequence[facts.MapAttachment],
    actions: collections.abc.Sequence[facts.Action],
    resets: collections.abc.Mapping[tuple[str, str], str],
) -> tuple[Do, str] | None:
    """Say whether a user detached it since; nova's log names no volume.

    The three-column file has no date: what it lists is the operator's word.
    """
    if cloud_map.bare:
        return None

    def wished_off(one: facts.MapAttachment) -> int:
        since = max(
            cloud_map.taken_at,
            resets.get((one.server_id, one.volume_id), ''),
        )
        return sum(
            a.action == 'detach_volume' and a.start_time > since
            for a in actions
        )

    count = wished_off(wanted)
    if not count:
        return None
    suspects = sum(1 for one in missing if wished_off(one))
    # what was attached since may be what was detached, too
    attached = any(
        a.action == 'attach_volume' and a.start_time > cloud_map.taken_at
        for a in actions
    )
    if count >= suspects and not attached:
        return Do.LEAVE, _('a user detached it since')
    return Do.FLAG, _(
        'perhaps detached by a user since: %(count)d of %(suspects)d missing '
        'volumes of this server were'
    ) % {'count': count, 'suspects': suspects}


# -- guests reboot -----------------------------------------------------------


def decide_reboot(
    server_id: str,
    wanted: facts.MapServer | None,
    server: facts.Server | None,
    disks: collections.abc.Iterable[Item],
    needed: bool,
) -> Item:
    """Decide on one guest (step 5).

    :param disks: what plan_restore says of its attachments: a guest whose
        fstab names a disk that is missing hangs when it boots
    :param needed: a volume came after its boot, or all are asked for
    """

    def item(do: Do, reason: str) -> Item:
        return Item(server_id, '', do, '', reason)

    if server is None or server.vm_state in ('deleted', 'soft-delete'):
        return item(Do.LEAVE, _('the server was deleted since'))
    if not server.ran:
        state = server.vm_state
        if state == 'active':
            state = _('active, but its guest is off')
        if wanted is not None and wanted.ran:
            return item(
                Do.FLAG, _('the server is %s: restart it first') % state
            )
        return item(Do.LEAVE, _('the server is %s') % state)
    if not needed:
        return item(Do.LEAVE, _('it booted with all its volumes'))
    if server.task_state is not None:
        return item(Do.FLAG, _('busy (%s)') % server.task_state)
    for disk in disks:
        missing = disk.pair is None and disk.do in (Do.ATTACH, Do.FLAG)
        if missing or disk.do is Do.WAIT:
            return item(
                Do.FLAG,
                _('volume %(volume)s of the map is not attached: %(reason)s')
                % {'volume': disk.volume_id, 'reason': disk.reason},
            )
    return item(Do.REBOOT, _('runs'))
