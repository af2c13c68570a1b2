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

"""What makes a machine fail to come back, or lose data: rules as data.

Each rule looks at what a machine said (hosts/parse.py) and finds nothing, or
evidence and the fix. The rules are the procedure's suggestions, as they are
written today; where the procedure errs it is said.
"""

import collections.abc
import dataclasses
import re
import typing as ty

from osc_drp.engine import facts
from osc_drp.hosts import guests
from osc_drp.hosts import parse
from osc_drp.i18n import _
from osc_drp import text

GOOD = 'good'
BAD = 'bad'
UNKNOWN = 'unknown'
#: Not looked at: a server that is off.
LEFT = 'left'


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What a rule says of a machine."""

    check: str
    verdict: str
    evidence: str
    fix: str = ''


Found: ty.TypeAlias = collections.abc.Iterator[tuple[str, str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Guest:
    """A guest, what it should have, and what it has."""

    machine: parse.Machine
    #: By volume id, the device name in the map; None where it has none.
    wanted: collections.abc.Mapping[str, str | None]
    #: Volumes that nova maps for it now, or any it may rightly have.
    allowed: collections.abc.Collection[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """A host, and what the cloud says of it."""

    name: str
    machine: parse.Machine
    sessions: tuple[parse.Session, ...]
    #: Volumes of the servers on it, by id.
    volumes: collections.abc.Collection[str]
    #: Targets that the connection records of these name.
    targets: collections.abc.Collection[str]
    #: Lines of packet filter rules; None: they could not be read.
    filter_rules: int | None
    #: Whether neutron has an agent there, and servers run there.
    networked: bool
    #: Whether cinder-volume runs there: its SAN may be mounted by LVM.
    storage: bool


class Rule(ty.NamedTuple):
    """A question to a machine."""

    name: str
    find: collections.abc.Callable[[ty.Any], Found]


def judge(rules: collections.abc.Iterable[Rule], of: ty.Any) -> list[Finding]:
    """Ask all questions; one finding that says so if all is good."""
    found = [
        Finding(
            rule.name,
            BAD,
            text.one_line(evidence),
            # copied by people: in whole, though without control characters
            text.one_line(fix, 1000),
        )
        for rule in rules
        for evidence, fix in rule.find(of)
    ]
    return found or [Finding('', GOOD, '')]


# -- fstab, everywhere -------------------------------------------------------

_EXT = frozenset({'ext2', 'ext3', 'ext4'})
_ERRORS = frozenset({'continue', 'remount-ro', 'panic'})
#: Those that end all writes.
_STOPS = frozenset({'remount-ro', 'panic'})
_BY_NAME = re.compile(r'/dev/(vd|sd|xvd|hd|nvme|mmcblk|dm-)[a-z0-9]+')
#: Without these nothing boots, whatever nofail says.
_NEEDED = frozenset({'/', '/usr', '/boot', '/boot/efi'})
#: Writable file systems that turn read-only on errors.
_WRITABLE = _EXT | {'xfs', 'btrfs', 'f2fs', 'jfs'}


def _real(machine: parse.Machine) -> list[parse.FstabEntry]:
    """Give the lines that are about block devices."""
    return [
        e
        for e in machine.fstab
        if e.spec.startswith(('/dev/', 'UUID=', 'LABEL=', 'PART', 'ID='))
    ]


def _effective(
    machine: parse.Machine, mount: parse.Mount | None, spec: str
) -> str:
    """Tell what a mounted ext file system does after an error; '': unknown.

    The kernel says it of ext4 (its driver has ext2 and ext3 too); else only
    the options do that are not set in the superblock.

    :param spec: what fstab has for it, where it is mounted as /dev/root
    """
    if mount is None:
        return ''
    device = machine.device(mount.source) or machine.device(spec)
    told = machine.errors.get(device.name, '') if device else ''
    for option in mount.options:
        told = told or option.partition('errors=')[2]
    return told


def _errors(of: Guest | Host) -> Found:
    machine = of.machine
    for entry in _real(machine):
        mount = machine.mount_of(entry.where)
        if mount is not None and mount.where != entry.where:
            mount = None
        # 'auto', or several to try: what it is, is seen where it is mounted
        kinds = set(entry.fstype.split(','))
        if mount is not None and (len(kinds) > 1 or 'auto' in kinds):
            kinds = {mount.fstype}
        if not kinds <= _EXT:
            continue
        given = [
            o.removeprefix('errors=')
            for o in entry.options
            if o.startswith('errors=')
        ]
        wrong = [g for g in given if g not in _ERRORS]
        if wrong:
            yield (
                _('"%(entry)s": errors=%(value)s is no value: not mounted')
                % {'entry': entry, 'value': wrong[0]},
                _('errors=remount-ro, in /etc/fstab'),
            )
        elif _STOPS & set(given) or 'ro' in entry.options:
            continue
        elif not given and _effective(machine, mount, entry.spec) in _STOPS:
            continue
        else:
            yield (
                _('"%s": writes go on after an I/O error') % entry,
                _(
                    'add errors=remount-ro in /etc/fstab (or see that '
                    '"tune2fs -l" says: Errors behavior: Remount read-only)'
                ),
            )


def _nofail(guest: Guest) -> Found:
    for entry in _real(guest.machine):
        if entry.where in _NEEDED or entry.fstype == 'swap':
            continue
        if {'nofail', 'noauto'} & set(entry.options):
            continue
        yield (
            _('"%s": without its disk the guest does not boot') % entry,
            _('add nofail in /etc/fstab'),
        )


def _netdev(guest: Guest) -> Found:
    machine = guest.machine
    for entry in _real(machine):
        disks = machine.disks(machine.device(entry.spec))
        by_path = '-iscsi-' in entry.spec
        if not by_path and not any(d.iscsi for d in disks):
            continue
        if {'_netdev', 'noauto'} & set(entry.options):
            continue
        yield (
            _('"%s": an iSCSI disk, wanted before the network is up') % entry,
            _('add _netdev in /etc/fstab'),
        )


def _names(guest: Guest) -> Found:
    uuids: dict[str, str] = {}
    for link, name in guest.machine.links.items():
        if link.startswith('/dev/disk/by-uuid/'):
            uuids.setdefault(name, link.rpartition('/')[2])
    for entry in _real(guest.machine):
        if not _BY_NAME.fullmatch(entry.spec):
            continue
        device = guest.machine.device(entry.spec)
        better = 'UUID=' + uuids.get(device.name if device else '', '...')
        yield (
            _('"%s": device names change from boot to boot') % entry,
            _('%s instead, in /etc/fstab (lsblk -o +UUID)') % better,
        )


def _home(guest: Guest) -> Found:
    machine = guest.machine
    root = machine.root_disks
    if not root:
        return
    seen: set[str] = set()
    for path in ('/home', machine.home, f'{machine.home}/.ssh'):
        mount = machine.mount_of(path) if path.startswith('/') else None
        if mount is None or mount.where in ('/', *seen):
            continue
        disks = machine.disks(machine.device(mount.source))
        if disks and not disks & root:
            seen.add(mount.where)
            yield (
                _('%(where)s is wholly on another disk (%(source)s)')
                % {'where': mount.where, 'source': mount.source},
                _(
                    'below it, on the root disk, leave the directory of one '
                    'user with .ssh/authorized_keys: without the volume '
                    'nobody gets in by key'
                ),
            )


def _meant_writable(machine: parse.Machine) -> set[str]:
    """Give the mount points that are to be writable.

    Those of fstab without 'ro', and '/', which some machines leave to the
    kernel's command line. An image-based system (Fedora CoreOS, Flatcar) has
    more that is read-only on purpose and may not name any of it.
    """
    named = {e.where for e in machine.fstab}
    meant = named - {e.where for e in machine.fstab if 'ro' in e.options}
    image = any(
        m.where in ('/sysroot', '/usr') and 'ro' in m.options
        for m in machine.mounts
    )
    if '/' not in named and not image:
        meant.add('/')
    return meant


def _read_only(guest: Guest) -> Found:
    machine = guest.machine
    meant = _meant_writable(machine)
    for mount in machine.mounts:
        if (
            mount.fstype in _WRITABLE
            and 'ro' in mount.options
            and mount.where in meant
        ):
            yield (
                _('%(where)s (%(source)s) is mounted read-only')
                % {'where': mount.where, 'source': mount.source},
                _(
                    'see dmesg for I/O errors; once its disk is well: umount, '
                    'fsck, mount'
                ),
            )


# -- disks -------------------------------------------------------------------

#: A volume's id as QEMU shows it: its first 20 characters, or all of it.
_SERIAL = re.compile(
    r'([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f])([0-9a-f]{3}-[0-9a-f]{12})?'
)
#: udev's names of QEMU's disks. Other links by-id end in UUIDs of the guest's
#: own making: of LUKS, of LVM, of NVMe.
_BY_SERIAL = re.compile(
    r'/dev/disk/by-id/(?:virtio-|scsi-\w*QEMU_HARDDISK_)' + _SERIAL.pattern
)


def serials(machine: parse.Machine) -> dict[str, str]:
    """Give the volume serials that a machine has, with their devices.

    virtio shows them in sysfs and in the links by-id (virtio-<serial>), SCSI
    in the links alone (scsi-0QEMU_QEMU_HARDDISK_<serial>).
    """
    found = {}
    for link, name in machine.links.items():
        match = _BY_SERIAL.fullmatch(link)
        if match:
            found[match.group(1)] = name
    for device in machine.devices.values():
        match = _SERIAL.fullmatch(device.serial)
        if match:
            found[match.group(1)] = device.name
    return found


def _missing(guest: Guest) -> Found:
    have = serials(guest.machine)
    for volume_id, device in guest.wanted.items():
        if volume_id[: guests.SERIAL] not in have:
            yield (
                _('no disk with the serial of volume %(id)s (%(device)s)')
                % {'id': volume_id, 'device': device or _('no device name')},
                _(
                    'openstack drp attachments check: is it attached? If so, '
                    'rescan in the guest, or reboot it'
                ),
            )


def _strangers(guest: Guest) -> Found:
    known = {v[: guests.SERIAL] for v in (*guest.wanted, *guest.allowed)}
    for serial, device in sorted(serials(guest.machine).items()):
        if serial not in known:
            yield (
                _('%(device)s is volume %(serial)s..., of another server')
                % {'device': device, 'serial': serial},
                _(
                    'stop writing to it; openstack drp attachments check '
                    'tells who has it'
                ),
            )


GUEST_RULES = (
    Rule('errors=', _errors),
    Rule('nofail', _nofail),
    Rule('_netdev', _netdev),
    Rule('device names', _names),
    Rule('home', _home),
    Rule('read-only', _read_only),
    Rule('missing disk', _missing),
    Rule('wrong disk', _strangers),
)


# -- hosts -------------------------------------------------------------------


def _san_in_fstab(host: Host) -> Found:
    machine = host.machine
    for entry in _real(machine):
        disks = machine.disks(machine.device(entry.spec))
        san = '-iscsi-' in entry.spec or any(d.iscsi for d in disks)
        if san and 'noauto' not in entry.options and entry.where != '/':
            yield (
                _('"%s": a disk of the SAN; the host may hang at its boot')
                % entry,
                _('take it out of /etc/fstab, or add noauto'),
            )


def _storage_errors(host: Host) -> Found:
    # the procedure asks for it where the SAN may be mounted
    if host.storage:
        yield from _errors(host)


def _left_sessions(host: Host) -> Found:
    for session in host.sessions:
        if session.target in host.targets:
            continue
        if session.volume_id in host.volumes:
            continue
        if not session.volume_id and host.storage:
            continue  # the SAN of cinder-volume itself
        yield (
            _('session %(id)d to %(target)s: no attachment on this host')
            % {'id': session.id, 'target': session.target},
            _(
                'make sure that nothing uses %(disks)s, then on the host: '
                'iscsiadm -m session -r %(id)d -u (never without -r)'
            )
            % {
                'disks': ', '.join(d for _n, d in session.disks if d)
                or _('its disks'),
                'id': session.id,
            },
        )


def _filter(host: Host) -> Found:
    if host.networked and host.filter_rules == 0:
        yield (
            _('no packet filter rule (iptables, nftables, Open vSwitch)'),
            _("restart the host's network agent, and see its log"),
        )


def _guests_lvm(host: Host) -> Found:
    machine = host.machine
    mounted = {
        d.name
        for mount in machine.mounts
        if mount.source.startswith('/dev/')
        for d in [machine.device(mount.source)]
        if d is not None
    }
    sessions = {disk: s for s in host.sessions for _n, disk in s.disks if disk}
    for device in machine.devices.values():
        if not device.lvm or device.name in mounted:
            continue
        below = _below(machine, device)
        volumes = [
            d.dm_name
            for d in below
            # '-' is doubled in the names of device-mapper
            if d is not device
            and d.lvm
            and parse.VOLUME.search(d.dm_name.replace('--', '-'))
        ]
        volumes += [
            sessions[d.name].target
            for d in below
            if d.name in sessions and sessions[d.name].volume_id
        ]
        if volumes:
            yield (
                _('%(name)s is active on the host, but lies in %(volume)s')
                % {'name': device.dm_name, 'volume': volumes[0]},
                _(
                    'vgchange -an for it, then let lvm.conf know only the '
                    "host's own disks (devices/global_filter)"
                ),
            )


def _below(machine: parse.Machine, device: parse.Device) -> list[parse.Device]:
    """Find all devices that one lies on, itself included."""
    found: dict[str, parse.Device] = {}
    todo = [device]
    while todo:
        one = todo.pop()
        if one.name in found:
            continue
        found[one.name] = one
        for name in (one.disk, *one.slaves):
            if name in machine.devices:
                todo.append(machine.devices[name])
    return list(found.values())


HOST_RULES = (
    Rule('errors=', _storage_errors),
    Rule('SAN in fstab', _san_in_fstab),
    Rule('left session', _left_sessions),
    Rule('packet filter', _filter),
    Rule("guests' LVM", _guests_lvm),
)


def unreached(why: str) -> list[Finding]:
    """Make the finding of a machine that nobody could ask."""
    return [Finding('ssh', UNKNOWN, text.one_line(why))]


def guest_volumes(
    cloud_map: facts.CloudMap, server_id: str
) -> dict[str, str | None]:
    """Give a server's volumes in the map, with their device names."""
    return {
        a.volume_id: a.device
        for a in cloud_map.attachments
        if a.server_id == server_id
    }
