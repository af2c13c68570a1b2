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

"""What `db reset --cinder-only` keeps 'reserved' until nova forgets it.

Nova still maps such a volume, by an attachment that cinder no longer has;
which ones these are only the journal knows. Pure.
"""

import collections.abc
import dataclasses

from osc_drp.engine import facts

Key = tuple[str, str]

#: By server and volume: the ids of the attachments that a reset of ours took
#: off cinder's record (journal.RunDirectory.kept).
Kept = collections.abc.Mapping[Key, frozenset[str]]


def key_of(pair: facts.Pair) -> Key:
    """Name a pair."""
    return pair.server_id, pair.volume_id


def holds(kept: Kept, pair: facts.Pair) -> bool:
    """Whether nova's mapping of this pair still waits to be forgotten.

    The volume of several servers is in-use until the last of them is reset.
    """
    mapping, volume = pair.mapping, pair.volume
    return (
        mapping is not None
        and not pair.rows
        and mapping.attachment_id in kept.get(key_of(pair), ())
        and volume is not None
        and (
            volume.status == 'reserved'
            or (volume.multiattach and bool(pair.other_rows))
        )
    )


def forgotten(
    kept: Kept, seen: facts.Observation, server_id: str
) -> tuple[str, ...]:
    """List the server's kept volumes that nova has forgotten already.

    They are nobody's: 'reserved', without a row, and not mapped here.
    """
    mapped = {
        m.volume_id
        for m in seen.mappings
        if m.server_id == server_id and not m.deleted
    }
    used = {r.volume_id for r in seen.rows if not r.deleted}
    return tuple(
        sorted(
            volume_id
            for its_server, volume_id in kept
            if its_server == server_id
            and volume_id not in mapped | used
            and volume_id in seen.volumes
            and seen.volumes[volume_id].status == 'reserved'
        )
    )


def without(
    seen: facts.Observation, keys: collections.abc.Collection[Key]
) -> facts.Observation:
    """Take mappings out of an observation, as nova will."""
    servers = {
        server.id: dataclasses.replace(
            server,
            volumes_attached=server.volumes_attached
            - {volume_id for its, volume_id in keys if its == server.id},
        )
        if server.volumes_attached
        else server
        for server in seen.servers.values()
    }
    mappings = tuple(
        m for m in seen.mappings if (m.server_id, m.volume_id) not in keys
    )
    return dataclasses.replace(seen, servers=servers, mappings=mappings)
