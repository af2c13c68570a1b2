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

"""What is known of a cloud: frozen types without behaviour of their own.

Both readers, cloud/read.py (the APIs) and db/read.py (the databases), answer
with these; the rules and the planner know nothing else. ``None`` in a field
that says so means "this source cannot see it", never "no".
"""

import collections
import dataclasses
import re
import typing as ty
import uuid

#: nova's power states (nova 34.0.0 compute/power_state.py).
NOSTATE, RUNNING, PAUSED, SHUTDOWN, CRASHED, SUSPENDED = 0, 1, 3, 4, 6, 7

API = 'api'
DATABASE = 'database'

_ID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')


def id_of(told: str) -> str:
    """Give an id as nova and cinder write their own.

    From a user they take a UUID in capitals as well, cinder also without
    dashes, and keep it so: nova in the mapping of a volume that a server was
    created with, cinder in an attachment that a user made by himself.

    >>> id_of('6F1D9FE3-1F5E-4A51-9F0E-2F0B8A7F5C11')
    '6f1d9fe3-1f5e-4a51-9f0e-2f0b8a7f5c11'
    """
    if _ID.fullmatch(told):
        return told
    try:
        return str(uuid.UUID(told))
    except ValueError:
        return told


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A server as nova records it."""

    id: str
    name: str
    project_id: str
    host: str | None
    vm_state: str
    task_state: str | None
    power_state: int
    locked: bool
    #: '/dev/vda'; decides by API which volume is the root.
    root_device: str | None = None
    #: nova's launched_at is set: it ran at least once.
    launched: bool = True
    #: Boots from a volume; by API: the server has no image.
    volume_backed: bool | None = None
    #: The database only: name of the cell ('cell0' for failed schedules);
    #: None for a build request, which has no cell yet.
    cell: str | None = None
    #: The API only: ids in ``volumes_attached``, which also lists the legacy
    #: attachments that os-volume_attachments hides from 2.89 on.
    volumes_attached: frozenset[str] | None = None
    #: Server properties.
    metadata: tuple[tuple[str, str], ...] = ()
    #: Why it is locked, in the words of who locked it (compute API 2.73);
    #: None: no reason was given, or the source does not tell.
    locked_reason: str | None = None

    @property
    def ran(self) -> bool:
        """Whether nova recorded it as running."""
        return self.vm_state == 'active' and self.power_state == RUNNING


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a server can be reached (nova's addresses)."""

    network: str
    address: str
    #: 4 or 6.
    version: int
    floating: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """An iSCSI target in an attachment's connection record."""

    iqn: str
    #: 'address:port'.
    portal: str
    lun: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """Nova's record that a server has a volume (block_device_mapping)."""

    server_id: str
    volume_id: str
    device: str | None
    #: The cinder attachment that it names; None: legacy or in flight.
    attachment_id: str | None
    #: boot_index 0.
    root: bool
    tag: str | None = None
    delete_on_termination: bool = False
    #: connection_info is set; None: the API does not tell.
    connected: bool | None = None
    uuid: str | None = None
    #: The database only.
    id: int | None = None
    cell: str | None = None
    deleted: bool = False
    created_at: str | None = None
    deleted_at: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Cinder's record that a server has a volume (volume_attachment)."""

    id: str
    volume_id: str
    #: None: a host attachment (glance, backup, ironic), never ours.
    server_id: str | None
    attach_status: str
    device: str | None = None
    #: The host in the connector, else attached_host.
    host: str | None = None
    #: Whether a connector is stored; None: the API does not tell.
    connector: bool | None = None
    deleted: bool = False
    created_at: str | None = None
    deleted_at: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Volume:
    """A volume as cinder records it."""

    id: str
    name: str
    project_id: str
    status: str
    multiattach: bool
    #: volumes.attach_status; None: the API does not tell.
    attach_status: str | None = None
    migration_status: str | None = None
    #: The cinder-volume that owns it, 'host@backend#pool'.
    host: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """A nova or cinder service, or (binary) a network agent."""

    binary: str
    host: str
    up: bool
    #: The database only.
    cell: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """An entry of nova's action log (os-instance-actions)."""

    server_id: str
    action: str
    request_id: str
    #: None: nova did it by itself.
    user_id: str | None
    start_time: str
    finished: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """What one source saw of the cloud, at the cloud's own time."""

    source: str
    #: UTC, ISO 8601, by the cloud's clock (HTTP Date, UTC_TIMESTAMP()).
    taken_at: str
    servers: ty.Mapping[str, Server]
    volumes: ty.Mapping[str, Volume]
    #: Live mappings; the database also gives the soft-deleted ones that
    #: name a live row (our own unfinished half, DESIGN 4).
    mappings: tuple[Mapping, ...]
    #: Live rows; the database also gives soft-deleted ones of the same
    #: volumes.
    rows: tuple[Row, ...]
    services: tuple[Service, ...] = ()
    #: Servers with a migration record that is not finished; None: unknown.
    migrating: frozenset[str] | None = None
    #: Actions of nova's log without an end (the database only): what was in
    #: flight when the power went.
    unfinished: tuple[Action, ...] = ()
    #: Servers that are still a build request (no cell).
    building: frozenset[str] = frozenset()

    def renewed(
        self,
        taken_at: str,
        servers: ty.Mapping[str, Server],
        services: tuple[Service, ...],
    ) -> 'Observation':
        """Give the same with servers and services as they are by now.

        Servers deleted since are gone with their mappings; of those made
        since nothing else is known, so they are left out.
        """
        still = {i: s for i, s in servers.items() if i in self.servers}
        return dataclasses.replace(
            self,
            taken_at=taken_at,
            servers=still,
            mappings=tuple(m for m in self.mappings if m.server_id in still),
            services=services,
        )

    def name_of(self, server_id: str) -> str:
        """Give what an operator calls a server; its id if it is unknown."""
        server = self.servers.get(server_id)
        return (server and server.name) or server_id


@dataclasses.dataclass(frozen=True, slots=True)
class MapServer:
    """A server in the map."""

    id: str
    name: str
    project_id: str
    host: str | None
    vm_state: str
    power_state: int
    locked: bool

    @property
    def ran(self) -> bool:
        """Whether it ran when the map was taken."""
        return self.vm_state == 'active' and self.power_state == RUNNING


@dataclasses.dataclass(frozen=True, slots=True)
class MapAttachment:
    """A volume of a server in the map."""

    server_id: str
    volume_id: str
    device: str | None
    #: Nova's; None: nova has no record, or a legacy one.
    attachment_id: str | None
    #: The id of cinder's attached row; None: cinder has no record.
    cinder_attachment_id: str | None
    #: 'both', 'nova' or 'cinder'.
    recorded_by: str
    root: bool
    tag: str | None
    delete_on_termination: bool
    multiattach: bool


@dataclasses.dataclass(frozen=True, slots=True)
class CloudMap:
    """The map of `drp attachments save`: step 1 of the procedure."""

    taken_at: str
    cloud: str
    source: str
    servers: tuple[MapServer, ...]
    attachments: tuple[MapAttachment, ...]
    #: Of the file's content; the identity of the map in the journal.
    sha256: str = ''
    #: True for the three-column file: ids and devices only.
    bare: bool = False

    def server(self, server_id: str) -> MapServer | None:
        """Find a server by id."""
        return next((s for s in self.servers if s.id == server_id), None)


def device_order(device: str | None) -> tuple[int, str]:
    """Sort key of device names: vdb .. vdz, vdaa, as libvirt hands them out.

    >>> sorted(['/dev/vdaa', '/dev/vdc', '/dev/vdb'], key=device_order)
    ['/dev/vdb', '/dev/vdc', '/dev/vdaa']
    """
    name = (device or '').removeprefix('/dev/')
    return len(name), name


_Item = ty.TypeVar('_Item')


def group(
    items: ty.Iterable[_Item], key: ty.Callable[[_Item], str]
) -> dict[str, list[_Item]]:
    """Group items by a key, in their order."""
    groups: dict[str, list[_Item]] = collections.defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """All that bears on one server having one volume.

    The rules (engine/rules.py) judge pairs and nothing else.
    """

    server_id: str
    volume_id: str
    server: Server | None
    volume: Volume | None
    #: Nova's live mappings of this pair: more than one is a person's case.
    mappings: tuple[Mapping, ...]
    #: Cinder's live rows of this pair.
    rows: tuple[Row, ...]
    #: Soft-deleted mappings of this pair that name one of its live rows.
    dropped: tuple[Mapping, ...]
    #: Soft-deleted rows of the volume, of any server.
    old_rows: tuple[Row, ...]
    #: Live mappings and rows of the volume for others.
    other_mappings: tuple[Mapping, ...]
    other_rows: tuple[Row, ...]
    #: Unfinished actions of the server.
    unfinished: tuple[Action, ...]
    migrating: bool | None
    building: bool
    #: The server's nova-compute; None: not known.
    compute_up: bool | None

    @classmethod
    def lone(cls, volume: Volume) -> 'Pair':
        """Make the pair of a volume that neither record gives to anybody."""
        return cls(
            server_id='',
            volume_id=volume.id,
            server=None,
            volume=volume,
            mappings=(),
            rows=(),
            dropped=(),
            old_rows=(),
            other_mappings=(),
            other_rows=(),
            unfinished=(),
            migrating=False,
            building=False,
            compute_up=None,
        )

    @property
    def mapping(self) -> Mapping | None:
        """Nova's only live mapping."""
        return self.mappings[0] if len(self.mappings) == 1 else None

    @property
    def named(self) -> Row | None:
        """The live row that nova's mapping names."""
        if self.mapping is None:
            return None
        wanted = self.mapping.attachment_id
        return next((r for r in self.rows if r.id == wanted), None)


def pairs(seen: Observation) -> tuple[Pair, ...]:
    """Join both records: one pair per server and volume that either names.

    Host attachments (rows without a server) belong to no pair, but they show
    in the ``other_rows`` of their volume's pairs.
    """
    mappings = group(seen.mappings, lambda m: m.volume_id)
    rows = group(seen.rows, lambda r: r.volume_id)
    actions = group(seen.unfinished, lambda a: a.server_id)
    up = {s.host: s.up for s in seen.services if s.binary == 'nova-compute'}
    found = []
    for volume_id in {**mappings, **rows}:
        v_mappings = mappings.get(volume_id, [])
        v_rows = rows.get(volume_id, [])
        live = {r.id for r in v_rows if not r.deleted}
        server_ids = dict.fromkeys(
            [m.server_id for m in v_mappings if not m.deleted]
            + [r.server_id for r in v_rows if r.server_id and not r.deleted]
        )
        for server_id in server_ids:
            server = seen.servers.get(server_id)
            ours = [m for m in v_mappings if m.server_id == server_id]
            found.append(
                Pair(
                    server_id=server_id,
                    volume_id=volume_id,
                    server=server,
                    volume=seen.volumes.get(volume_id),
                    mappings=tuple(m for m in ours if not m.deleted),
                    rows=tuple(
                        r
                        for r in v_rows
                        if r.server_id == server_id and not r.deleted
                    ),
                    dropped=tuple(
                        m
                        for m in ours
                        if m.deleted and m.attachment_id in live
                    ),
                    old_rows=tuple(r for r in v_rows if r.deleted),
                    other_mappings=tuple(
                        m
                        for m in v_mappings
                        if m.server_id != server_id and not m.deleted
                    ),
                    other_rows=tuple(
                        r
                        for r in v_rows
                        if r.server_id != server_id and not r.deleted
                    ),
                    unfinished=tuple(actions.get(server_id, ())),
                    migrating=(
                        None
                        if seen.migrating is None
                        else server_id in seen.migrating
                    ),
                    building=server_id in seen.building,
                    compute_up=(
                        up.get(server.host) if server and server.host else None
                    ),
                )
            )
    return tuple(found)


#: What a volume says while an attach or a detach of it is under way.
PASSING = frozenset({'reserved', 'attaching', 'detaching'})


def lone(seen: Observation) -> tuple[Pair, ...]:
    """Find volumes that wait for an attachment which neither record has.

    As pairs without a server, so that one judge sees all. Whether nova maps
    such a volume under a blank mapping is no matter: it counts as a pair.
    """
    used = {m.volume_id for m in seen.mappings if not m.deleted}
    used |= {r.volume_id for r in seen.rows if not r.deleted}
    return tuple(
        Pair.lone(volume)
        for volume in seen.volumes.values()
        if volume.status in PASSING and volume.id not in used
    )
