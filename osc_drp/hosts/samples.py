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

"""What a guest has on its volumes, before a drill and after it.

Files, not disks: a file system in use changes all the time. Of each file the
length and the checksum count; afterwards what was there must still be the
beginning of it. So a log that went on is kept, and a file that was rewritten
in place is not: it is listed, for a person to judge. A name is bytes: what is
no UTF-8 in it stays in the strings here (surrogateescape), and in their JSON.
"""

import collections.abc
import dataclasses

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.hosts import guests
from osc_drp.hosts import parse
from osc_drp.i18n import _
from osc_drp import text

#: How many files are looked at, and how long each may be (blocks of 512).
FILES, BLOCKS = 2000, 131072
#: Seconds for reading them.
LIMIT = 600.0

#: One sudo, however many files there are: each is a line in the guest's log.
_ROOT = """
as_root() {
    if [ "$(id -u)" != 0 ] && sudo -n sh -c : 2> /dev/null; then
        sudo -n sh -c "$@"
    else
        sh -c "$@"
    fi
}
"""

TAKE = (
    _ROOT
    + """
section files
take=$(cat << 'END'
newline='
'
# what the guest knows to be written, is written
sync
while IFS= read -r path; do
    find "$path" -xdev -type f -size "-$2" ! -path "*$newline*" 2> /dev/null
done | head -n "$1" | while IFS= read -r file; do
    size=$(wc -c "$file" 2> /dev/null)
    size=${size%% *}
    sum=$(head -c "$size" "$file" 2> /dev/null | sha256sum)
    printf '%s %s %s\\n' "$size" "${sum%% *}" "$file"
done
END
)
printf '%s\\n' "$paths" | as_root "$take" sh "$files" "$blocks"
"""
)

COMPARE = (
    _ROOT
    + """
section files
compare=$(cat << 'END'
# not 'read -r size file', which takes the blanks off the name's end
while IFS= read -r line; do
    size=${line%% *}
    file=${line#* }
    if [ ! -f "$file" ]; then
        printf 'gone - %s\\n' "$file"
        continue
    fi
    now=$(wc -c "$file" 2> /dev/null)
    sum=$(head -c "$size" "$file" 2> /dev/null | sha256sum)
    printf '%s %s %s\\n' "${now%% *}" "${sum%% *}" "$file"
done
END
)
printf '%s\\n' "$wanted" | as_root "$compare"
"""
)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What a guest has."""

    boot_id: str
    #: By serial of a volume, where it is mounted ('' if nowhere).
    disks: collections.abc.Mapping[str, str]
    #: By path, length and checksum.
    files: collections.abc.Mapping[str, tuple[int, str]]

    def as_json(self) -> dict[str, object]:
        """Give it for a file."""
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, told: collections.abc.Mapping[str, object]) -> 'Sample':
        """Take it from a file."""
        files: object = told['files']
        disks: object = told['disks']
        assert isinstance(files, dict) and isinstance(disks, dict)
        return cls(
            str(told['boot_id']),
            disks,
            {path: (int(n), str(s)) for path, (n, s) in files.items()},
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Losses:
    """What became of a sample's files."""

    kept: int
    gone: tuple[str, ...]
    changed: tuple[str, ...]


def disks(
    machine: parse.Machine, volume_ids: collections.abc.Iterable[str]
) -> dict[str, str]:
    """Tell where a guest has mounted its volumes, by their serials."""
    wanted = {v[: guests.SERIAL] for v in volume_ids}
    found = {
        d.name: d.serial[: guests.SERIAL] for d in machine.devices.values()
    }
    for link, name in machine.links.items():
        for serial in wanted:
            if link.startswith('/dev/disk/by-id/') and link.endswith(serial):
                found[name] = serial
    places = {s: '' for s in found.values() if s in wanted}
    for mount in machine.mounts:
        for disk in machine.disks(machine.device(mount.source)):
            serial = found.get(disk.name, '')
            if serial in places and not places[serial]:
                places[serial] = mount.where
    return places


class Sampler:
    """Takes and compares samples of one guest, over SSH."""

    def __init__(
        self,
        way: guests.Guests,
        server: facts.Server,
        volume_ids: collections.abc.Iterable[str],
        paths: collections.abc.Sequence[str] = (),
    ) -> None:
        """Prepare.

        :param paths: what to look at; none: where its volumes are mounted
        """
        self._way = way
        self._server = server
        self._volume_ids = list(volume_ids)
        self._paths = list(paths)

    def take(self) -> Sample:
        """Look at the files; writes nothing but what is not synced yet.

        :raises SshError: it cannot be reached, or it is another machine
        """
        places = self._places()
        paths = self._paths or sorted({p for p in places.values() if p})
        values = {
            'paths': '\n'.join(paths),
            'files': str(FILES),
            'blocks': str(BLOCKS),
        }
        files = self._files(TAKE, values) if paths else {}
        return Sample(
            self._way.boot_id(self._server),
            places,
            {
                path: (number, digest)
                for path, (size, digest) in files.items()
                if (number := text.number(size)) is not None
            },
        )

    def compare(self, before: Sample) -> tuple[Sample, Losses]:
        """Look again, at the same files and their former lengths.

        :raises SshError: it cannot be reached, or it is another machine
        """
        wanted = '\n'.join(
            f'{size} {path}' for path, (size, _sum) in before.files.items()
        )
        files = self._files(COMPARE, {'wanted': wanted}) if wanted else {}
        gone = [
            p for p in before.files if files.get(p, ('gone',))[0] == 'gone'
        ]
        changed = [
            path
            for path, (size, digest) in before.files.items()
            if path not in gone
            and (
                (number := text.number(files[path][0])) is None
                or number < size
                or files[path][1] != digest
            )
        ]
        now = Sample(
            self._way.boot_id(self._server),
            self._places(),
            {p: before.files[p] for p in before.files if p not in gone},
        )
        kept = len(before.files) - len(gone) - len(changed)
        return now, Losses(kept, tuple(gone), tuple(changed))

    def _places(self) -> dict[str, str]:
        sections = self._way.look(self._server, parse.SCRIPT, exact=True)
        return disks(parse.machine(sections), self._volume_ids)

    def _files(
        self, script: str, values: dict[str, str]
    ) -> dict[str, tuple[str, str]]:
        sections = self._way.look(
            self._server, script, values, LIMIT, exact=True
        )
        found = {}
        for line in sections.get('files', []):
            size, _space, rest = line.partition(' ')
            digest, _space, path = rest.partition(' ')
            if path:
                found[path] = (size, digest)
        if not found:
            raise exceptions.SshError(
                _('%s: no file of it could be read')
                % (self._server.name or self._server.id)
            )
        return found
