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

"""What machines say of themselves, read into types: pure, no machine needed.

Everything here was written by somebody else, a guest's owner perhaps: what
does not parse is left out, and nothing is believed beyond its own machine.
"""

import collections.abc
import dataclasses
import functools
import re

from osc_drp import text

#: A volume's id within a name that cinder made of it: an IQN, a logical
#: volume (cinder 29.0.0 volume_name_template, 'volume-%s').
VOLUME = re.compile(
    r'volume-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})'
)
_OCTAL = re.compile(r'\\([0-7]{3})')
_SESSION = re.compile(r'/session\d+/')
#: Lines of an fstab that are read, and characters of a path (PATH_MAX): a
#: guest may say what keeps us busy for hours.
_ENTRIES, _PATH = 1000, 4096

#: Reads what :func:`machine` takes. Writes nothing, needs no root.
SCRIPT = """
section fstab
cat /etc/fstab 2>/dev/null
section mounts
cat /proc/mounts 2>/dev/null
section ext4
for one in /proc/fs/ext4/*/options; do
    [ -e "$one" ] || continue
    name=${one%/options}
    printf '%s\\t%s\\n' "${name##*/}" \\
        "$(grep '^errors=' "$one" 2>/dev/null)"
done
section home
echo "$HOME"
section devices
for one in /sys/class/block/*; do
    [ -e "$one" ] || continue
    name=${one##*/}
    path=$(readlink -f "$one" 2>/dev/null)
    serial=$(cat "$one/serial" 2>/dev/null || cat "$one/device/serial" \\
        2>/dev/null)
    dm=$(cat "$one/dm/name" 2>/dev/null)
    uuid=$(cat "$one/dm/uuid" 2>/dev/null)
    printf '%s\\t%s\\t%s\\t%s\\t%s\\n' "$name" "$path" "$serial" "$dm" "$uuid"
done
section slaves
for one in /sys/class/block/*/slaves/*; do
    [ -e "$one" ] || continue
    below=${one%/slaves/*}
    echo "${below##*/} ${one##*/}"
done
section links
for one in /dev/disk/by-*/* /dev/mapper/*; do
    [ -e "$one" ] || continue
    printf '%s\\t%s\\n' "$one" "$(readlink -f "$one" 2>/dev/null)"
done
"""

Sections = collections.abc.Mapping[str, list[str]]


@dataclasses.dataclass(frozen=True, slots=True)
class FstabEntry:
    """A line of /etc/fstab (fstab(5))."""

    spec: str
    where: str
    fstype: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.spec} {self.where} {self.fstype} ' + ','.join(
            self.options
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/mounts."""

    source: str
    where: str
    fstype: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A block device, as /sys/class/block has it."""

    name: str
    #: The whole disk of a partition; else its own name.
    disk: str
    serial: str
    #: What device-mapper calls it, and its kind ('LVM-...').
    dm_name: str
    dm_uuid: str
    #: Of an iSCSI session of this machine's own.
    iscsi: bool
    #: The devices that it lies on.
    slaves: tuple[str, ...] = ()

    @property
    def lvm(self) -> bool:
        """Whether it is a logical volume."""
        return self.dm_uuid.startswith('LVM-')


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine's disks and what it does with them."""

    fstab: tuple[FstabEntry, ...]
    mounts: tuple[Mount, ...]
    devices: collections.abc.Mapping[str, Device]
    #: '/dev/disk/by-uuid/...' -> 'vdb1'.
    links: collections.abc.Mapping[str, str]
    #: Of who is logged in.
    home: str
    #: By device, what its mounted ext4 does after an error ('remount-ro'),
    #: though it be set in the superblock: /proc/mounts has only what differs
    #: from that (Linux fs/ext4/super.c, _ext4_show_options).
    errors: collections.abc.Mapping[str, str]

    def device(self, spec: str) -> Device | None:
        """Find what fstab or /proc/mounts means; None: it is not there."""
        kind, _, value = spec.partition('=')
        if kind in ('UUID', 'LABEL', 'PARTUUID', 'PARTLABEL', 'ID'):
            value = value.strip('"').replace('/', r'\x2f')
            value = value.replace(' ', r'\x20')
            path = f'/dev/disk/by-{kind.lower()}/{value}'
        else:
            path = spec
        name = self.links.get(path, path.removeprefix('/dev/'))
        return self.devices.get(name) or self._logical(path)

    def _logical(self, path: str) -> Device | None:
        """Find a logical volume by /dev/<group>/<volume>.

        device-mapper doubles each '-' within the two names, and joins them
        by one (lvm(8), VALID NAMES).
        """
        names = path.removeprefix('/dev/').replace('-', '--').split('/')
        if not path.startswith('/dev/') or len(names) != 2:
            return None
        wanted = '-'.join(names)
        return self._by_dm_name.get(wanted)

    @functools.cached_property
    def _by_dm_name(self) -> dict[str, Device]:
        return {d.dm_name: d for d in self.devices.values() if d.lvm}

    def disks(self, device: Device | None) -> frozenset[Device]:
        """Find the disks that something lies on, through LVM and the like."""
        found: set[Device] = set()
        todo = [device]
        seen: set[str] = set()
        while todo:
            one = todo.pop()
            if one is None or one.name in seen:
                continue
            seen.add(one.name)
            disk = self.devices.get(one.disk)
            if disk is not None and disk is not one:
                todo.append(disk)
            elif one.slaves:
                todo += [self.devices.get(s) for s in one.slaves]
            else:
                found.add(one)
        return frozenset(found)

    def mount_of(self, path: str) -> Mount | None:
        """Find what is mounted where a path lies; the newest wins."""
        place = path if len(path) <= _PATH else ''
        while place not in self._by_place and '/' in place:
            place = place.rpartition('/')[0]
        # '' is the root: nothing relative lies there
        return self._by_place.get(place) if path.startswith('/') else None

    @functools.cached_property
    def _by_place(self) -> dict[str, Mount]:
        return {m.where.rstrip('/'): m for m in self.mounts}

    @property
    def root_disks(self) -> frozenset[Device]:
        """The disks below '/'."""
        root = self.mount_of('/')
        found = self.disks(self.device(root.source)) if root else frozenset()
        if not found:
            # /dev/root, or nothing but a UUID on the kernel's command line
            for entry in self.fstab:
                if entry.where == '/':
                    found = self.disks(self.device(entry.spec))
        return found


def _plain(text: str) -> str:
    """Undo the octal escapes of fstab and /proc/mounts."""
    return _OCTAL.sub(lambda m: chr(int(m.group(1), 8)), text)


def fstab(lines: collections.abc.Iterable[str]) -> tuple[FstabEntry, ...]:
    """Read /etc/fstab; comments and broken lines are left out.

    So is whatever comes after more lines than anybody has.
    """
    found: list[FstabEntry] = []
    for line in lines:
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith('#'):
            continue
        if len(found) == _ENTRIES:
            break
        options = fields[3] if len(fields) > 3 else 'defaults'
        found.append(
            FstabEntry(
                _plain(fields[0]),
                _plain(fields[1]),
                fields[2],
                tuple(options.split(',')),
            )
        )
    return tuple(found)


def mounts(lines: collections.abc.Iterable[str]) -> tuple[Mount, ...]:
    """Read /proc/mounts."""
    return tuple(
        Mount(
            _plain(fields[0]),
            _plain(fields[1]),
            fields[2],
            tuple(fields[3].split(',')),
        )
        for fields in map(str.split, lines)
        if len(fields) >= 4
    )


def devices(sections: Sections) -> dict[str, Device]:
    """Read the block devices."""
    below: dict[str, list[str]] = {}
    for line in sections.get('slaves', []):
        name, _, slave = line.partition(' ')
        below.setdefault(name, []).append(slave.strip())
    found = {}
    for line in sections.get('devices', []):
        fields = [f.strip() for f in line.split('\t')]
        if len(fields) != 5 or not fields[0]:
            continue
        name, path, serial, dm_name, dm_uuid = fields
        _bus, block, rest = path.partition('/block/')
        found[name] = Device(
            name=name,
            disk=rest.split('/')[0] if block else name,
            serial=serial,
            dm_name=dm_name,
            dm_uuid=dm_uuid,
            iscsi=_SESSION.search(path) is not None,
            slaves=tuple(below.get(name, ())),
        )
    return found


def links(lines: collections.abc.Iterable[str]) -> dict[str, str]:
    """Read the names that udev gives to devices."""
    found = {}
    for line in lines:
        link, _, path = line.partition('\t')
        if path.startswith('/dev/'):
            found[link] = path.strip().removeprefix('/dev/')
    return found


def ext4_errors(lines: collections.abc.Iterable[str]) -> dict[str, str]:
    """Read what each mounted ext4 does after an error."""
    found = {}
    for line in lines:
        name, _, option = line.partition('\terrors=')
        if option:
            found[name] = option.strip()
    return found


def machine(sections: Sections) -> Machine:
    """Read all that SCRIPT says."""
    return Machine(
        fstab=fstab(sections.get('fstab', [])),
        mounts=mounts(sections.get('mounts', [])),
        devices=devices(sections),
        links=links(sections.get('links', [])),
        home=''.join(sections.get('home', [])[:1]).strip(),
        errors=ext4_errors(sections.get('ext4', [])),
    )


# -- iscsiadm ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """An iSCSI session of a host (iscsiadm -m session -P 3)."""

    id: int
    target: str
    portal: str
    state: str
    #: (lun, device) of its disks; the device is '' until the kernel has it.
    disks: tuple[tuple[int, str], ...] = ()

    @property
    def volume_id(self) -> str:
        """The volume that the target is named after; '' if none."""
        found = VOLUME.search(self.target)
        return found.group(1) if found else ''


_FIELDS = {
    'Target': 'target',
    'Current Portal': 'portal',
    'SID': 'id',
    'iSCSI Session State': 'state',
}
_LUN = re.compile(r'scsi\d+ Channel \d+ Id \d+ Lun: (\d{1,18})\b')
_DISK = re.compile(r'Attached scsi disk (\S+)')


def sessions(lines: collections.abc.Iterable[str]) -> tuple[Session, ...]:
    """Read ``iscsiadm -m session -P 3`` (open-iscsi 2.1.8).

    A target is told once for all of its sessions, a portal before each.
    """
    found: list[Session] = []
    known = {'target': '', 'portal': ''}
    for raw in lines:
        line = raw.strip()
        label, colon, value = line.partition(': ')
        field = _FIELDS.get(label) if colon else None
        lun = _LUN.match(line)
        disk = _DISK.match(line)
        if field in known:
            # 'iqn... (non-flash)', '10.0.0.5:3260,1'
            known[field] = value.split()[0].split(',')[0]
            if field == 'target':
                known['target'] = value.split()[0]
        elif field == 'id' and (number := text.number(value)) is not None:
            found.append(Session(number, known['target'], known['portal'], ''))
        elif not found:
            continue
        elif field == 'state':
            found[-1] = dataclasses.replace(found[-1], state=value.strip())
        elif lun:
            disks = (*found[-1].disks, (int(lun.group(1)), ''))
            found[-1] = dataclasses.replace(found[-1], disks=disks)
        elif disk and found[-1].disks:
            *rest, (number, _name) = found[-1].disks
            found[-1] = dataclasses.replace(
                found[-1], disks=(*rest, (number, disk.group(1)))
            )
    return tuple(found)


def discovered(
    lines: collections.abc.Iterable[str],
) -> tuple[tuple[str, str], ...]:
    """Read ``iscsiadm -m discovery``: portal and target, one a line.

    As in '10.0.0.5:3260,1 iqn.2010-10.org.openstack:volume-...'.
    """
    found = []
    for line in lines:
        fields = line.split()
        if len(fields) == 2 and ',' in fields[0]:
            found.append((fields[0].rpartition(',')[0], fields[1]))
    return tuple(found)
