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

"""iSCSI sessions of a host, by iscsiadm, over SSH.

The warnings of the procedure hold: never detach the volume through nova for
this, and never log out without the id of one session: ``iscsiadm -m session
-u`` without ``-r`` closes all sessions of the host. Nothing here can say
"all".
"""

import collections.abc
import dataclasses
import ipaddress
import re
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import ports
from osc_drp.hosts import guests
from osc_drp.hosts import parse
from osc_drp.hosts import ssh
from osc_drp.i18n import _
from osc_drp import text

#: iscsiadm's own words for "there is none" (open-iscsi 2.1.8 idbm.h,
#: ISCSI_ERR_NO_OBJS_FOUND).
_NONE = 21

#: Lists the sessions with their disks, and the serials of these.
LIST = """
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
section sessions
as_root iscsiadm -m session -P 3 2>&1; echo "code $?"
section serials
for one in /sys/class/block/*; do
    [ -e "$one/device/vpd_pg80" ] || continue
    printf '%s\\t%s\\n' "${one##*/}" \\
        "$(tr -cd '[:print:]' < "$one/device/vpd_pg80" 2>/dev/null)"
done
"""

DISCOVER = """
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
section targets
as_root iscsiadm -m discovery -t sendtargets -o nonpersistent \\
    -p "$portal" 2>&1
echo "code $?"
"""

LOGIN = """
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
section login
# nova's record may hold the CHAP secret: a new one only where there is none
as_root iscsiadm -m node -T "$target" -p "$portal" > /dev/null 2>&1 ||
    as_root iscsiadm -m node -T "$target" -p "$portal" -o new 2>&1 &&
    as_root iscsiadm -m node -T "$target" -p "$portal" --login 2>&1
echo "code $?"
"""

#: Compares once more what the session leads to: an id may be used again.
LOGOUT = """
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
case $session in
'' | *[!0-9]*) exit 64 ;;
esac
now=$(cat "/sys/class/iscsi_session/session$session/targetname")
[ "$now" = "$target" ] || exit 75
section logout
as_root iscsiadm -m session -r "$session" -u 2>&1
echo "code $?"
"""
_OTHER_SESSION = 75

_IQN = re.compile(
    r'iqn\.\d{4}-\d{2}\.[a-z0-9.-]+(:[a-z0-9.:_-]+)?|(eui|naa)\.[0-9a-f]{16,32}',
    re.IGNORECASE,
)
_PORTAL = re.compile(r'([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?')


def check_iqn(iqn: str) -> str:
    """Take an IQN and nothing else (RFC 3720).

    :raises Usage: it is none
    """
    if not _IQN.fullmatch(iqn) or len(iqn) > 223:
        raise exceptions.Usage(_("'%s' is no IQN") % text.one_line(iqn))
    return iqn


def check_portal(portal: str) -> str:
    """Take 'address' or 'address:port' and nothing else.

    :raises Usage: it is none
    """
    if _address(portal, 6):
        # 'fd00::5:3260' is an address, too
        raise exceptions.Usage(
            _("'%s': an IPv6 address wants brackets, as in [fd00::5]:3260")
            % portal
        )
    if not _PORTAL.fullmatch(portal) or portal.startswith(('-', '.')):
        raise exceptions.Usage(
            _("'%s' is no portal (address or address:port)")
            % text.one_line(portal)
        )
    return portal


def _address(told: str, *versions: int) -> ty.Any:
    """Read an address of one of these versions of IP; None: it is none."""
    try:
        found = ipaddress.ip_address(told)
    except ValueError:
        return None
    return found if found.version in versions else None


def _split(portal: str) -> tuple[str, int]:
    """Give the host of a portal, without brackets, and its port."""
    host, colon, port = portal.rpartition(':')
    number = text.number(port) if colon else None
    if number is None:
        host, number = portal, 3260
    return host.removeprefix('[').removesuffix(']'), number


def same_portal(wanted: str, portal: str) -> bool:
    """Whether a session's portal (address:port) is the one that is meant.

    A name may be any address: then the target alone has to tell.
    """
    host, port = _split(wanted)
    address = _address(host, 4, 6)
    if address is None:
        return True
    there, at = _split(portal)
    # IPv6 has many ways to write one address
    return (address, port) == (_address(there, 4, 6), at)


def _said(sections: parse.Sections, name: str) -> tuple[int, list[str]]:
    """Give iscsiadm's exit code and words."""
    *lines, last = sections.get(name) or ['code 127']
    return guests.code_of(last, '\n'.join(lines)), lines


def sessions(
    sections: parse.Sections,
) -> tuple[tuple[parse.Session, ...], str]:
    """Read what LIST said: the sessions, or why they cannot be read."""
    code, lines = _said(sections, 'sessions')
    words = ' '.join(lines)
    if code in (0, _NONE):
        return parse.sessions(lines), ''
    refused = guests.sudo_refused(words)
    if code == guests.NOT_FOUND and not refused:
        return (), ''  # no iscsiadm: no iSCSI
    return (), _('iSCSI sessions: %s') % (refused or text.one_line(words))


@dataclasses.dataclass(frozen=True, slots=True)
class Carried:
    """A session and what is known of what it carries."""

    session: parse.Session
    #: By device, its serial.
    serials: collections.abc.Mapping[str, str]
    #: Volumes that it carries, as far as they are known.
    volume_ids: frozenset[str]
    #: How that is known, by volume.
    proofs: collections.abc.Mapping[str, str]
    #: Its disks that are of no known volume.
    unknown: tuple[str, ...]


def carried(
    session: parse.Session,
    serials: collections.abc.Mapping[str, str],
    volume_ids: collections.abc.Collection[str],
    targets: collections.abc.Mapping[str, frozenset[facts.Target]],
) -> Carried:
    """Find the volumes of a session, disk by disk.

    A disk is a volume's if its serial is the first 20 characters of the
    volume's id, or if the volume's connection record names this target and
    its LUN. A target that is named after the volume has no other volume
    (cinder 29.0.0 volume/targets/iscsi.py).

    :param volume_ids: all volumes that may be meant
    :param targets: by volume, its connection records
    """
    by_serial = {v[: guests.SERIAL]: v for v in volume_ids}
    by_lun = {
        target.lun: volume_id
        for volume_id, found in targets.items()
        for target in found
        if target.iqn == session.target
    }
    proofs: dict[str, str] = {}
    unknown = []
    for lun, device in session.disks:
        if not device:
            continue  # a controller, or gone already
        name = serials.get(device, '')
        serial = next((s for s in by_serial if s in name), None)
        if serial:
            proofs[by_serial[serial]] = _('serial of %s') % device
        elif lun in by_lun:
            proofs[by_lun[lun]] = _('connection record, LUN %d') % lun
        elif session.volume_id in volume_ids:
            proofs[session.volume_id] = _('name of the target')
        else:
            unknown.append(device)
    if not session.disks or (not proofs and not unknown):
        # no disk (any more): the target itself has to tell
        if session.volume_id in volume_ids:
            proofs[session.volume_id] = _('name of the target')
        for volume_id in by_lun.values():
            proofs.setdefault(volume_id, _('connection record'))
    return Carried(session, serials, frozenset(proofs), proofs, tuple(unknown))


def prove(
    found: Carried,
    server: facts.Server,
    seen: facts.Observation,
    host: str,
    even_if_running: bool,
) -> None:
    """See that a session carries volumes of one server and nothing else.

    :raises Refused: that is not proven, or the server runs
    """
    pairs = facts.group(facts.pairs(seen), lambda p: p.volume_id)
    name = server.name or server.id

    def refuse(why: str) -> exceptions.Refused:
        return exceptions.Refused(
            _('session %(id)d of %(host)s stays: %(why)s')
            % {'id': found.session.id, 'host': host, 'why': why}
        )

    if found.unknown:
        raise refuse(
            _('it also carries %s, of no known volume')
            % ', '.join(found.unknown)
        )
    if not found.volume_ids:
        raise refuse(_('nothing proves that it carries a volume of a server'))
    for volume_id in sorted(found.volume_ids):
        users = {p.server_id for p in pairs.get(volume_id, ())}
        if server.id not in users:
            raise refuse(
                _("it carries volume %(volume)s, which '%(server)s' has not")
                % {'volume': volume_id, 'server': name}
            )
        others = [
            seen.servers[u].name or u
            for u in sorted(users - {server.id})
            if u in seen.servers and seen.servers[u].host == server.host
        ]
        if others:
            raise refuse(
                _("'%(other)s' on this host has volume %(volume)s too")
                % {'other': others[0], 'volume': volume_id}
            )
    if server.host != host:
        raise refuse(
            _("'%(server)s' is on host %(host)s")
            % {'server': name, 'host': server.host}
        )
    off = server.vm_state in ('stopped', 'error') and not server.task_state
    if not even_if_running and not (
        off and server.power_state != facts.RUNNING
    ):
        raise refuse(
            _(
                "'%s' is not off: its disk would be cut off under it "
                '(--even-if-running, in a drill)'
            )
            % name
        )


#: Seconds for iscsiadm: it waits up to 120 s for a login by itself (open-
#: iscsi 2.1.8 iscsid.conf, node.session.initial_login_retry_max).
LIMIT = 180.0


class Host:
    """One host's iscsiadm."""

    def __init__(self, shell: ssh.Ssh, host: str) -> None:
        self._shell = shell
        self._target = ssh.Target(host)

    def sessions(self) -> tuple[tuple[parse.Session, ...], dict[str, str]]:
        """Read the sessions, and the serials of all disks.

        :raises SshError: nobody gets in, or iscsiadm does not tell
        """
        answer = self._shell.run(self._target, LIST)
        sections = answer.sections()
        found, why = sessions(sections)
        if why:
            raise exceptions.SshError(f'{self._target.host}: {why}')
        serials = {}
        for line in sections.get('serials', []):
            device, _tab, serial = line.partition('\t')
            serials[device] = serial
        return found, serials

    def discover(self, portal: str) -> tuple[tuple[str, str], ...]:
        """Ask a portal for its targets; gives (portal, target) of each.

        The host's node records stay as they are: nova's hold CHAP secrets.
        """
        lines = self._do('targets', DISCOVER, portal=portal)
        return parse.discovered(lines)

    def login(self, portal: str, target: str) -> None:
        """Log in to one target at one portal."""
        self._do('login', LOGIN, portal=portal, target=target)

    def logout(self, session: parse.Session) -> None:
        """Log out of one session, if it still leads where it did.

        :raises Changed: it does not
        """
        self._do(
            'logout', LOGOUT, session=str(session.id), target=session.target
        )

    def _do(self, name: str, script: str, **values: str) -> list[str]:
        answer = self._shell.run(self._target, script, LIMIT, values)
        if name not in answer.sections():
            if answer.code == _OTHER_SESSION:
                raise exceptions.Changed(
                    _('%s: that session leads elsewhere by now, or is gone')
                    % self._target.host
                )
            raise exceptions.SshError(f'{self._target.host}: {answer.words()}')
        code, lines = _said(answer.sections(), name)
        if code == 0:
            return lines
        words = ' '.join(lines)
        why = guests.sudo_refused(words)
        if code == guests.NOT_FOUND:
            why = why or _('it has no iscsiadm')
        why = why or text.one_line(words)
        raise exceptions.SshError(f'{self._target.host}: iscsiadm: {why}')


def read_carried(
    host: Host, cloud: ports.Cloud, seen: facts.Observation, name: str
) -> list[Carried]:
    """Read a host's sessions and find out what each carries.

    :param name: nova's name of the host
    :raises SshError: nobody gets in, or iscsiadm does not tell
    """
    found, serials = host.sessions()
    here = {s.id for s in seen.servers.values() if s.host == name}
    rows = facts.group(
        (r for r in seen.rows if r.server_id in here and not r.deleted),
        lambda r: r.volume_id,
    )
    targets: dict[str, frozenset[facts.Target]] = {}
    if found:
        targets = {
            volume_id: frozenset().union(*(cloud.targets(r.id) for r in group))
            for volume_id, group in rows.items()
        }
    volume_ids = {p.volume_id for p in facts.pairs(seen)}
    return [carried(s, serials, volume_ids, targets) for s in found]
