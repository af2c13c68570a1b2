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

"""The one hard reboot of osc-drp: it makes nova forget volumes.

After `db reset --cinder-only` cinder has no attachment of a volume that nova
still maps. Since 2023.2 a hard reboot first deletes every mapping whose
attachment cinder does not know, the root disk's as well, and every
attachment at cinder that nova does not know (nova 34.0.0 compute/manager.py
_delete_dangling_bdms). So before it is sent, each mapping of the server must
be one that our journal knows, or must answer 200 at cinder; and only a volume
that left nova's record becomes 'available' (DESIGN 6).
"""

import collections.abc
import dataclasses
import threading
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import kept
from osc_drp.engine import locks
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import rules
from osc_drp.i18n import _

#: Seconds that cinder's last answer may be old when the reboot is sent.
FRESH = 5.0
TRIES = 3

#: Waits until nova is done with a server (restart.Restart): its id, what is
#: hoped for, and a word for the message.
Poll = collections.abc.Callable[
    [str, collections.abc.Callable[[facts.Server], bool], str], facts.Server
]
#: Sends a stop to a server, and waits for it.
Stop = collections.abc.Callable[[str, journal.Run], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What the journals know (journal.RunDirectory)."""

    #: What resets keep 'reserved'.
    resets: kept.Kept = dataclasses.field(default_factory=dict)
    #: By server, the run of ours that locked it and was killed.
    locks: collections.abc.Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )
    #: By server, the newest request ids before hard reboots of ours of which
    #: nobody heard, and the attachments that they were for.
    unanswered: collections.abc.Mapping[
        str, collections.abc.Mapping[str | None, frozenset[str]]
    ] = dataclasses.field(default_factory=dict)


class Work(ty.NamedTuple):
    """What is to be cleaned up after the resets, of one server."""

    #: Nova maps them still: they need the reboot.
    mapped: frozenset[str]
    #: Nova forgot them: they only wait to be made available.
    forgotten: tuple[str, ...]
    #: A killed run left our lock on it.
    locked: bool


class Proof(ty.NamedTuple):
    """What cinder answered about the disks that a server must keep."""

    stay: frozenset[str]
    #: When the last one was asked for (monotonic).
    at: float
    #: Why it is no proof; '' if it is.
    refused: str = ''


def _refuse(why: str) -> Proof:
    return Proof(frozenset(), 0.0, why)


class Cleaner:
    """Decides on, and carries out, what follows `db reset --cinder-only`."""

    def __init__(
        self,
        cloud: ports.Cloud,
        known: Known,
        poll: Poll,
        stop: Stop,
        say: ports.Say,
        clock: ports.Clock,
    ) -> None:
        self._cloud = cloud
        self._known = known
        self._poll = poll
        self._stop = stop
        self._say = say
        self._clock = clock
        #: Why nothing more may begin; '' if it may.
        self.ended = ''
        self._one_at_a_time = threading.Lock()

    # -- deciding --------------------------------------------------------

    def without(self, seen: facts.Observation) -> facts.Observation:
        """Take out what waits for a reboot, so that the rest is judged."""
        if not self._known.resets:
            return seen
        waiting = {
            kept.key_of(p)
            for p in facts.pairs(seen)
            if kept.holds(self._known.resets, p)
        }
        return kept.without(seen, waiting)

    def decide(self, item: plan.Item, seen: facts.Observation) -> plan.Item:
        """Correct what would be done to a server that knows no resets."""
        server_id = item.server_id
        work = self._work(server_id, seen)

        def instead(do: plan.Do, reason: str) -> plan.Item:
            return dataclasses.replace(item, do=do, reason=reason)

        if not any(work) or item.do in (plan.Do.WAIT, plan.Do.PROVE):
            return item
        if not work.mapped:
            return instead(plan.Do.CLEAN, _('a reset of it is to be finished'))
        if item.do is plan.Do.START:
            what = _('nova is to forget %d volumes by a hard reboot')
            return instead(plan.Do.CLEAN, what % len(work.mapped))
        if item.do in (plan.Do.NOTHING, plan.Do.STOP):
            return instead(
                plan.Do.FLAG,
                _(
                    'it is not off, and has %d volumes that a reset keeps '
                    'reserved at cinder: "openstack drp db undo" puts them '
                    'back'
                )
                % len(work.mapped),
            )
        return item

    def _work(self, server_id: str, seen: facts.Observation) -> Work:
        pairs = [p for p in facts.pairs(seen) if p.server_id == server_id]
        server = seen.servers.get(server_id)
        return Work(
            frozenset(
                p.volume_id for p in pairs if kept.holds(self._known.resets, p)
            ),
            kept.forgotten(self._known.resets, seen, server_id),
            server is not None and self._is_ours(server),
        )

    def _is_ours(self, server: facts.Server) -> bool:
        run_id = self._known.locks.get(server.id)
        return (
            run_id is not None
            and server.locked
            and server.locked_reason == locks.reason(run_id)
        )

    # -- acting ----------------------------------------------------------

    def clean(
        self, server_id: str, seen: facts.Observation, run: journal.Run
    ) -> tuple[str, str] | None:
        """Do what is to be done; the lock goes on every way out.

        :returns: status and what became of it; None: go on with the server
            as with any other, no reboot was needed
        """
        work = self._work(server_id, seen)
        ours = locks.Locks(self._cloud, run, self._say)
        if work.locked:
            ours.release(server_id, self._known.locks[server_id])
        if not work.mapped:
            self._make_available(server_id, work.forgotten, seen, run)
            return None
        with ours.held(server_id):
            status, what = self._reboot(server_id, work, seen, run)
        if server_id in ours.left:
            return apply.OPEN, _('%s, but it is still locked') % what
        return status, what

    def _reboot(
        self,
        server_id: str,
        work: Work,
        seen: facts.Observation,
        run: journal.Run,
    ) -> tuple[str, str]:
        """Send the reboot where it is safe, wait, and look what nova has."""
        wanted = frozenset[str]().union(
            *(self._known.resets[server_id, v] for v in work.mapped)
        )
        refused = self._sent_before(server_id, wanted)
        if refused:
            return apply.OPEN, refused
        log = self._cloud.actions(server_id)
        newest = log[0].request_id if log else None
        for _try in range(TRIES):
            stay, proven_at, refused = self._proven(server_id, work.mapped)
            if refused:
                return apply.OPEN, refused
            run.write(
                'before',
                action='reboot',
                server=server_id,
                newest=newest,
                attachments=sorted(wanted),
            )
            if self._clock.monotonic() - proven_at <= FRESH:
                break
        else:
            return apply.OPEN, _('cinder or the disk of the journal is slow')
        self._send(server_id, newest)
        run.write('sent', action='reboot', server=server_id)
        try:
            server = self._poll(
                server_id, lambda s: s.vm_state == 'active', 'reboot'
            )
        except exceptions.ApiError:
            self._end(server_id)
            raise
        return self._after(server, work, stay, seen, run)

    def _end(self, server_id: str) -> None:
        self.ended = (
            _(
                'not tried: the hard reboot of server %s did not do as it '
                'should'
            )
            % server_id
        )

    def _sent_before(self, server_id: str, wanted: frozenset[str]) -> str:
        """Say that a reboot without an answer did arrive; '' if none did.

        Never twice: what it did, or did not, a person must see. One that
        was for other attachments, of an earlier loss, is no matter.
        """
        before = {
            newest
            for newest, ids in self._known.unanswered.get(
                server_id, {}
            ).items()
            if ids & wanted
        }
        previous: str | None = None
        for action in reversed(self._cloud.actions(server_id)):
            if previous in before and self._is_our_reboot(action):
                return _(
                    'a hard reboot of an earlier run reached nova, and its '
                    'volumes are still mapped: "openstack drp db undo" puts '
                    'them back'
                )
            previous = action.request_id
        return ''

    def _is_our_reboot(self, action: facts.Action) -> bool:
        return (action.action, action.user_id) == (
            'reboot',
            self._cloud.user_id,
        )

    def _proven(self, server_id: str, volumes: frozenset[str]) -> Proof:
        """Ask nova and cinder about each disk, right before the reboot."""
        server = self._cloud.server(server_id)
        if (server.vm_state, server.task_state) != ('stopped', None):
            return _refuse(_('it is no longer off'))
        if server.power_state not in rules.OFF_POWER:
            return _refuse(_('its guest is not off'))
        mappings = self._cloud.mappings_of(server_id)
        why = self._dangling(server_id, volumes, mappings)
        if why:
            return _refuse(why)
        stay = [m for m in mappings if m.volume_id not in volumes]
        if server.volume_backed and not any(m.root for m in stay):
            return _refuse(_('nova does not say which volume is its root'))
        hidden = (server.volumes_attached or frozenset()) - {
            m.volume_id for m in mappings
        }
        if hidden:
            return _refuse(_('nova does not show all of its volumes'))
        # the root last: its answer is the freshest
        asked_at = self._clock.monotonic()
        for mapping in sorted(stay, key=lambda m: m.root):
            asked_at = self._clock.monotonic()
            if not mapping.attachment_id or not (
                self._cloud.attachment_exists(mapping.attachment_id)
            ):
                return _refuse(
                    _(
                        'cinder does not have the attachment of volume %s: '
                        'nova would forget that one, too'
                    )
                    % mapping.volume_id
                )
        return Proof(frozenset(m.volume_id for m in stay), asked_at)

    def _dangling(
        self,
        server_id: str,
        volumes: frozenset[str],
        mappings: collections.abc.Collection[facts.Mapping],
    ) -> str:
        """Say why the dangling disks are not exactly ours; '' if they are."""
        ours = {
            m.volume_id: m.attachment_id
            for m in mappings
            if m.volume_id in volumes
        }
        if {*ours} != volumes:
            return _("nova's mappings changed meanwhile")
        if any(m.root for m in mappings if m.volume_id in volumes):
            return _('one of them is its root disk')
        for volume_id, attachment_id in ours.items():
            known = self._known.resets.get((server_id, volume_id), frozenset())
            if attachment_id not in known or self._cloud.attachment_exists(
                attachment_id
            ):
                return _('volume %s was attached again') % volume_id
            status = self._cloud.volume(volume_id).status
            if status != 'reserved' or self._cloud.rows_of_volume(volume_id):
                return _('volume %(volume)s is %(status)s, not reserved') % {
                    'volume': volume_id,
                    'status': status,
                }
        named = {m.attachment_id for m in mappings}
        strange = {r.id for r in self._cloud.rows_of(server_id)} - named
        if strange:
            return _(
                'cinder has an attachment that nova does not name, and would '
                'delete: %s'
            ) % ', '.join(sorted(strange))
        return ''

    def _send(self, server_id: str, newest: str | None) -> None:
        """Send it once; without an answer, nova's log tells.

        :raises DrpError: it did not reach nova
        """
        try:
            self._cloud.hard_reboot(server_id)
        except (exceptions.Conflict, exceptions.Unanswered) as error:
            if isinstance(error, exceptions.Unanswered):
                for action in self._cloud.actions(server_id):
                    if action.request_id == newest:
                        break
                    if self._is_our_reboot(action):
                        return
            raise

    def _after(
        self,
        server: facts.Server,
        work: Work,
        stay: frozenset[str],
        seen: facts.Observation,
        run: journal.Run,
    ) -> tuple[str, str]:
        """Free what nova forgot; keep, and stop the run for, what it has."""
        has = {m.volume_id for m in self._cloud.mappings_of(server.id)}
        gone = sorted(work.mapped - has)
        self._make_available(server.id, (*gone, *work.forgotten), seen, run)
        stuck = sorted(work.mapped & has)
        lost = sorted(stay - has)
        if stuck or lost:
            self._end(server.id)
            if stuck and server.vm_state == 'active':
                self._stop(server.id, run)
            return apply.FAILED, _did_not(stuck, lost)
        if server.vm_state != 'active' or server.power_state != facts.RUNNING:
            return apply.FAILED, _('did not start (%(vm)s): %(fault)s') % {
                'vm': server.vm_state,
                'fault': self._cloud.fault(server.id)
                or _('nova gives no reason'),
            }
        return apply.DONE, _('rebooted hard: nova forgot %d volumes') % len(
            gone
        )

    def _make_available(
        self,
        server_id: str,
        volumes: collections.abc.Iterable[str],
        seen: facts.Observation,
        run: journal.Run,
    ) -> None:
        """Give volumes back that nobody has; the others stay as they are."""
        for volume_id in volumes:
            # two servers of one volume are not to judge it at once
            with self._one_at_a_time:
                self._free(server_id, volume_id, seen, run)

    def _free(
        self,
        server_id: str,
        volume_id: str,
        seen: facts.Observation,
        run: journal.Run,
    ) -> None:
        key = {'server': server_id, 'volume': volume_id}
        if self._cloud.volume(volume_id).status != 'reserved':
            return
        if self._has_users(volume_id, server_id, seen):
            return
        run.write('intent', action='free', **key)
        status, what = apply.DONE, _('available')
        try:
            self._cloud.make_available(volume_id)
        except (exceptions.Conflict, exceptions.Unanswered) as error:
            if self._cloud.volume(volume_id).status != 'available':
                status, what = apply.FAILED, str(error)
        run.write(
            'outcome',
            action='free',
            status=status,
            what=what,
            attachments=sorted(
                attachment_id
                for (_server, its_volume), ids in self._known.resets.items()
                if its_volume == volume_id
                for attachment_id in ids
            ),
            **key,
        )
        if status is apply.FAILED:
            raise exceptions.ApiError(
                _('volume %(volume)s stays reserved: %(why)s')
                % {'volume': volume_id, 'why': what}
            )

    def _has_users(
        self, volume_id: str, server_id: str, seen: facts.Observation
    ) -> bool:
        """Whether cinder has a row of it, or any server maps it."""
        if self._cloud.rows_of_volume(volume_id):
            return True
        servers = {
            *(m.server_id for m in seen.mappings if m.volume_id == volume_id),
            *(s for s, v in self._known.resets if v == volume_id),
            server_id,
        }
        return any(
            m.volume_id == volume_id
            for one in sorted(servers)
            for m in self._mappings_of(one)
        )

    def _mappings_of(self, server_id: str) -> tuple[facts.Mapping, ...]:
        try:
            return self._cloud.mappings_of(server_id)
        except exceptions.NotFound:
            return ()


def _did_not(stuck: list[str], lost: list[str]) -> str:
    words = []
    if stuck:
        words.append(
            _('after the hard reboot nova still maps %s: they stay reserved')
            % ', '.join(stuck)
        )
    if lost:
        words.append(
            _('the hard reboot made nova forget %s, which it should keep')
            % ', '.join(lost)
        )
    return '; '.join(words)
