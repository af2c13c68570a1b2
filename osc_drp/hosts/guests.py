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

"""The inside of servers, over SSH.

Whom we reach must be the server that we mean: its name is its owner's
choice, and may be the name of somebody's else in the operator's ssh
configuration; its address may be used in another network too. So a guest
must name itself: the UUID in its firmware (nova gives each guest its own
id), cloud-init's instance id, or the serial of a disk that it has.
"""

import collections.abc
import ipaddress
import re
import threading
import uuid

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.hosts import ssh
from osc_drp.i18n import _
from osc_drp import text

#: virtio and SCSI keep this many characters of a serial; nova gives the
#: volume's id (nova 34.0.0 virt/libvirt/volume/volume.py, get_config; QEMU
#: VIRTIO_BLK_ID_BYTES).
SERIAL = 20

#: Seconds for a run on a guest; a guest that boots may be slow.
LIMIT = 60.0

#: Reads what tells who and which boot this is. Writes nothing.
IDENTITY = """
section boot
cat /proc/sys/kernel/random/boot_id
section firmware
if [ -e /sys/class/dmi/id/product_uuid ]; then
    cat /sys/class/dmi/id/product_uuid 2>/dev/null ||
        sudo -n cat /sys/class/dmi/id/product_uuid 2>/dev/null
fi
section instance
cat /var/lib/cloud/data/instance-id 2>/dev/null
section serials
for file in /sys/block/*/serial; do
    [ -r "$file" ] && cat "$file" 2>/dev/null && echo
done
ls /dev/disk/by-id 2>/dev/null
exit 0
"""

#: Compares the boot once more, then ends it. busybox has no shutdown.
REBOOT = """
now=$(cat /proc/sys/kernel/random/boot_id)
[ "$now" = "$boot_id" ] || exit 75
if command -v shutdown > /dev/null; then
    set -- shutdown -r now
elif command -v reboot > /dev/null; then
    set -- reboot
else
    echo 'neither shutdown nor reboot' >&2
    exit 127
fi
[ "$(id -u)" = 0 ] || set -- sudo -n "$@"
section sent
"$@"
"""
_OTHER_BOOT = 75

#: The code of a shell that does not find a program.
NOT_FOUND = 127
#: What sudo says of a program that is missing; it ends with 1 then (sudo
#: 1.9.13). A shell that finds no sudo says 'sudo: not found' (dash, busybox)
#: or 'sudo: command not found' (bash), with nothing in between.
_SUDO_FINDS_NONE = re.compile(r'sudo: [^:\s]+: command not found')
_NO_SUDO = re.compile(r'sudo: (command )?not found')


def address_of(
    addresses: collections.abc.Sequence[facts.Address],
    network: str | None,
) -> str:
    """Pick where to go: floating before fixed, IPv4 before IPv6.

    :param network: the only network to look at; None: any
    :raises SshError: there is none
    """
    found = [a for a in addresses if network in (None, a.network)]
    if not found:
        if network is None or not addresses:
            raise exceptions.SshError(_('nova knows no address of it'))
        raise exceptions.SshError(
            _("it has no address in network '%(network)s', only in %(known)s")
            % {
                'network': network,
                # a network's name is its owner's choice
                'known': ', '.join(
                    text.one_line(n, 40)
                    for n in dict.fromkeys(a.network for a in addresses)
                ),
            }
        )
    # sorted() keeps nova's order among equals
    best = sorted(found, key=lambda a: (not a.floating, a.version))[0]
    try:
        return str(ipaddress.ip_address(best.address))
    except ValueError:
        raise exceptions.SshError(
            _("nova's address of it is none: '%s'")
            % text.one_line(best.address)
        ) from None


def sudo_refused(words: str) -> str:
    """Say in our words that sudo did not let us; '' if it did."""
    lower = words.lower()
    if 'password is required' in lower or 'a terminal is required' in lower:
        return _('its sudo asks for a password, and nobody is there to answer')
    if 'not in the sudoers' in lower or 'not allowed to' in lower:
        return _('its sudo does not allow it')
    if _NO_SUDO.search(lower):
        return _('not root there, and it has no sudo')
    return ''


def code_of(told: str, words: str) -> int:
    """Give a program's own exit code, whether sudo ran it or not.

    :param told: 'code <number>', as our scripts end a section
    :param words: what was said before
    :returns: NOT_FOUND if the program is missing, or told nothing
    """
    number = text.number(told.strip().removeprefix('code '))
    code = NOT_FOUND if number is None else number
    return NOT_FOUND if code and _SUDO_FINDS_NONE.search(words) else code


def names_itself(
    server_id: str,
    sections: collections.abc.Mapping[str, list[str]],
    volume_ids: collections.abc.Iterable[str],
) -> tuple[bool, str]:
    """Judge whether a machine is the server; also what it says it is.

    One witness that names the server suffices: a bare-metal server's
    firmware has an id of its own.
    """
    told = []
    for line in sections.get('firmware', []):
        try:
            value = uuid.UUID(line.strip())
        except ValueError:
            continue
        # firmware before SMBIOS 2.6 is read in the other byte order
        found = {str(value), str(uuid.UUID(bytes_le=value.bytes))}
        if server_id in found:
            return True, ''
        told.append(_('firmware %s') % value)
    for line in sections.get('instance', []):
        if line.strip() == server_id:
            return True, ''
        if line.strip():
            told.append(_('cloud-init %s') % text.one_line(line, 60))
    serials = {s[:SERIAL] for s in volume_ids}
    for line in sections.get('serials', []):
        # also virtio-<serial> and scsi-0QEMU_QEMU_HARDDISK_<serial>
        if any(line.strip().endswith(s) for s in serials):
            return True, ''
    return False, ', '.join(told)


class Guests:
    """Goes to servers, and makes sure that it got there."""

    def __init__(
        self,
        shell: ssh.Ssh,
        addresses: collections.abc.Callable[
            [str], collections.abc.Sequence[facts.Address]
        ],
        volumes: collections.abc.Callable[
            [str], collections.abc.Collection[str]
        ],
        network: str | None = None,
        limit: float = LIMIT,
    ) -> None:
        """Prepare; nothing is asked yet.

        :param addresses: gives nova's addresses of a server
        :param volumes: gives the ids of the volumes that a server has
        :param network: whose addresses to use
        """
        self._shell = shell
        self._addresses = addresses
        self._volumes = volumes
        self._network = network
        self._limit = limit
        self._targets: dict[str, ssh.Target] = {}
        self._guard = threading.Lock()

    def target(self, server: facts.Server) -> ssh.Target:
        """Tell where a server is reached.

        By the operator's ssh configuration, if that has an entry for its id
        or its name; else at nova's address.
        """
        with self._guard:
            found = self._targets.get(server.id)
        if found is None:
            for name in (server.id, server.name):
                if self._shell.entry(name):
                    found = ssh.Target(name, named=name == server.id)
                    break
            else:
                found = ssh.Target(
                    address_of(self._addresses(server.id), self._network)
                )
            with self._guard:
                self._targets[server.id] = found
        return found

    def look(
        self,
        server: facts.Server,
        script: str = '',
        values: collections.abc.Mapping[str, str] | None = None,
        limit: float | None = None,
        exact: bool = False,
    ) -> dict[str, list[str]]:
        """Run a script that only reads, on this server and no other.

        :param values: variables for the script, whatever is in them
        :param limit: seconds for all of it
        :param exact: keep bytes that are no UTF-8 (ssh.Answer.sections)
        :returns: what it said, by its sections
        :raises SshError: it cannot be reached, or it is another machine
        """
        target = self.target(server)
        answer = self._shell.run(
            target, script + IDENTITY, limit or self._limit, values
        )
        self._check(server, target, answer.sections())
        return answer.sections(exact)

    def _check(
        self,
        server: facts.Server,
        target: ssh.Target,
        sections: collections.abc.Mapping[str, list[str]],
    ) -> None:
        proven, told = names_itself(
            server.id, sections, self._volumes(server.id)
        )
        if proven:
            return
        if told:
            raise exceptions.SshError(
                _('%(host)s is another machine: %(told)s')
                % {'host': target.host, 'told': told}
            )
        if not target.named:
            raise exceptions.SshError(
                _(
                    '%(host)s does not say which server it is (no firmware '
                    'UUID, no cloud-init, no disk of it): an entry "Host '
                    '%(id)s" in the ssh configuration states it'
                )
                % {'host': target.host, 'id': server.id}
            )

    def boot_id(self, server: facts.Server) -> str:
        """Read the id of the present boot, of this server and no other.

        :raises SshError: it cannot be reached, or it is another machine
        """
        told = ' '.join(self.look(server).get('boot', [])).strip()
        try:
            return str(uuid.UUID(told))
        except ValueError:
            raise exceptions.SshError(
                _('%s: it has no boot id') % self.target(server).host
            ) from None

    def reboot(self, server: facts.Server, boot_id: str) -> None:
        """Reboot a guest from the inside, unless it is another boot by now.

        :raises Changed: it is
        :raises SshBroken: the connection broke, as a shutdown may do
        :raises SshError: it cannot be reached, or does not let us
        """
        target = self.target(server)
        answer = self._shell.run(
            target, REBOOT, self._limit, {'boot_id': boot_id}
        )
        if answer.code == _OTHER_BOOT and 'sent' not in answer.sections():
            raise exceptions.Changed(_('it is another boot by now'))
        if answer.code == 0:
            return
        if answer.code > 128:
            # ended by a signal, as a shutdown may do with whatever runs
            raise exceptions.SshBroken(answer.words())
        why = sudo_refused(answer.err) or _('it does not reboot: %s') % (
            answer.words()
        )
        raise exceptions.SshError(
            _('%(host)s: %(why)s') % {'host': target.host, 'why': why}
        )
