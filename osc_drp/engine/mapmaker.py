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

"""Making the map out of an observation: step 1 of the procedure.

The map is the union of both records, for after a power loss (and half a
reset) either may be the one that remembers. The same cloud gives the same
map whether the APIs or the databases were read, but for source and time.
"""

import collections.abc

from osc_drp.engine import facts

BOTH, NOVA, CINDER = 'both', 'nova', 'cinder'


def make_map(seen: facts.Observation, cloud: str) -> facts.CloudMap:
    """Make the map of a cloud.

    Attachments: nova's live mappings, and cinder's live rows that are
    attached to a server (DESIGN 3). Rows that are reserved or attaching are
    no attachment yet; a shelved server's volume is in by nova's mapping.

    Servers: those that were ever launched, and those with an attachment.
    Failed schedules and build requests were not, and nothing can be restarted
    or lost there. That is decided by launched_at and not by the cell (cell0),
    because the API does not tell the cell and both sources must agree.
    """
    mappings = facts.group(
        [m for m in seen.mappings if not m.deleted],
        lambda m: _key(m.server_id, m.volume_id),
    )
    rows = facts.group(
        [
            r
            for r in seen.rows
            if r.server_id and r.attach_status == 'attached' and not r.deleted
        ],
        lambda r: _key(r.server_id or '', r.volume_id),
    )
    attachments = [
        _attachment(seen, mappings.get(key, []), rows.get(key, []))
        for key in mappings | rows
    ]
    having = {a.server_id for a in attachments}
    servers = [
        _server(s)
        for s in seen.servers.values()
        if s.launched or s.id in having
    ]
    names = {s.id: s.name for s in servers}
    return facts.CloudMap(
        taken_at=seen.taken_at,
        cloud=cloud,
        source=seen.source,
        servers=tuple(sorted(servers, key=lambda s: (s.name, s.id))),
        attachments=in_order(attachments, names),
    )


def make_scope(
    seen: facts.Observation,
    pairs: collections.abc.Iterable[facts.Pair],
    cloud_map: facts.CloudMap | None = None,
) -> facts.CloudMap:
    """Make a map of all that can be meant: these pairs and those of a map.

    Other than the map it has what is attached halfway, and volumes alone.
    """
    known = cloud_map.servers if cloud_map else ()
    servers = {s.id: s for s in known}
    servers |= {s.id: _server(s) for s in seen.servers.values()}
    wanted = cloud_map.attachments if cloud_map else ()
    attachments = {(a.server_id, a.volume_id): a for a in wanted}
    for pair in pairs:
        rows = [r for r in pair.rows if not r.deleted]
        attachments[pair.server_id, pair.volume_id] = (
            _attachment(seen, list(pair.mappings), rows)
            if pair.mappings or rows
            else _nobodys(pair.volume_id)
        )
    return facts.CloudMap(
        taken_at=cloud_map.taken_at if cloud_map else seen.taken_at,
        cloud='',
        source=seen.source,
        servers=tuple(servers.values()),
        attachments=tuple(attachments.values()),
        sha256=cloud_map.sha256 if cloud_map else '',
    )


def _nobodys(volume_id: str) -> facts.MapAttachment:
    return facts.MapAttachment(
        server_id='',
        volume_id=volume_id,
        device=None,
        attachment_id=None,
        cinder_attachment_id=None,
        recorded_by='',
        root=False,
        tag=None,
        delete_on_termination=False,
        multiattach=False,
    )


def in_order(
    attachments: collections.abc.Iterable[facts.MapAttachment],
    names: collections.abc.Mapping[str, str],
) -> tuple[facts.MapAttachment, ...]:
    """Sort attachments by server name, then as libvirt names devices."""
    return tuple(
        sorted(
            attachments,
            key=lambda a: (
                names.get(a.server_id, ''),
                a.server_id,
                facts.device_order(a.device),
                a.volume_id,
            ),
        )
    )


def _key(server_id: str, volume_id: str) -> str:
    return f'{server_id} {volume_id}'


def _server(server: facts.Server) -> facts.MapServer:
    return facts.MapServer(
        id=server.id,
        name=server.name,
        project_id=server.project_id,
        host=server.host,
        vm_state=server.vm_state,
        power_state=server.power_state,
        locked=server.locked,
    )


def _attachment(
    seen: facts.Observation,
    mappings: list[facts.Mapping],
    rows: list[facts.Row],
) -> facts.MapAttachment:
    """Join both records of one pair.

    More than one mapping or row of a pair is a person's case (DESIGN 5); the
    map holds one of each, and rather those that belong together.
    """
    live = {r.id for r in rows}
    mapping = min(
        mappings,
        key=lambda m: (m.attachment_id not in live, m.attachment_id or ''),
        default=None,
    )
    named = mapping.attachment_id if mapping else None
    row = min(rows, key=lambda r: (r.id != named, r.id), default=None)
    one = mapping or row
    assert one is not None and one.server_id is not None
    volume = seen.volumes.get(one.volume_id)
    device = (mapping and mapping.device) or (row and row.device) or None
    return facts.MapAttachment(
        server_id=one.server_id,
        volume_id=one.volume_id,
        device=device,
        attachment_id=named,
        cinder_attachment_id=row.id if row else None,
        recorded_by=BOTH if mapping and row else NOVA if mapping else CINDER,
        root=(
            mapping.root
            if mapping
            else _boots_from(seen.servers.get(one.server_id), device)
        ),
        tag=mapping.tag if mapping else None,
        delete_on_termination=bool(mapping and mapping.delete_on_termination),
        multiattach=bool(volume and volume.multiattach),
    )


def _boots_from(server: facts.Server | None, device: str | None) -> bool:
    """Whether a device that only cinder records is the root."""
    return bool(
        server
        and server.volume_backed
        and device
        and device == server.root_device
    )
