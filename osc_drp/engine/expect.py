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

"""What an observation will be when planned items are done: pure.

recover plans all of its steps before it asks, the later ones on what the
earlier ones will have made.
"""

import collections.abc
import dataclasses

from osc_drp.engine import facts
from osc_drp.engine import plan


def after(
    seen: facts.Observation, items: collections.abc.Iterable[plan.Item]
) -> facts.Observation:
    """Give what will be seen after these items."""
    for item in items:
        if item.do in (plan.Do.START, plan.Do.STOP):
            seen = _started(seen, item.server_id)
        elif item.do is plan.Do.ATTACH:
            seen = _attached(seen, item)
        elif item.do is plan.Do.REPAIR:
            seen = _repaired(seen, item)
        elif item.do in (plan.Do.RESET, plan.Do.FINISH):
            seen = _without(seen, item, keep=None)
        elif item.do is plan.Do.RELEASE:
            named = item.pair.named if item.pair else None
            seen = _without(seen, item, keep=named.id if named else '')
    return seen


def _started(seen: facts.Observation, server_id: str) -> facts.Observation:
    server = seen.servers.get(server_id)
    if server is None:
        return seen
    on = dataclasses.replace(
        server, vm_state='active', power_state=facts.RUNNING
    )
    return dataclasses.replace(seen, servers={**seen.servers, on.id: on})


def _of(one: facts.Row | facts.Mapping, item: plan.Item) -> bool:
    return (
        one.server_id == item.server_id
        and one.volume_id == item.volume_id
        and not one.deleted
    )


def _attached(seen: facts.Observation, item: plan.Item) -> facts.Observation:
    wanted = item.attachment
    if wanted is None:
        return seen
    mapping = facts.Mapping(
        server_id=item.server_id,
        volume_id=item.volume_id,
        device=wanted.device,
        attachment_id='expected',
        root=False,
    )
    row = facts.Row(
        id='expected',
        volume_id=item.volume_id,
        server_id=item.server_id,
        attach_status='attached',
        device=wanted.device,
    )
    seen = dataclasses.replace(
        seen, mappings=(*seen.mappings, mapping), rows=(*seen.rows, row)
    )
    return _volume(seen, item.volume_id)


def _repaired(seen: facts.Observation, item: plan.Item) -> facts.Observation:
    """Cinder says what nova boots from."""
    mapping = item.pair.mapping if item.pair else None
    if mapping is None or mapping.attachment_id is None:
        return seen
    row = facts.Row(
        id=mapping.attachment_id,
        volume_id=item.volume_id,
        server_id=item.server_id,
        attach_status='attached',
        device=mapping.device,
    )
    rows = (*(r for r in seen.rows if r.id != row.id), row)
    return _volume(dataclasses.replace(seen, rows=rows), item.volume_id)


def _without(
    seen: facts.Observation, item: plan.Item, keep: str | None
) -> facts.Observation:
    """Take a pair off.

    :param keep: None: off both records; else the id of cinder's row that
        stays, and nova's mapping stays as well
    """
    mappings = seen.mappings
    if keep is None:
        mappings = tuple(m for m in mappings if not _of(m, item))
        seen = _unlisted(seen, item)
    rows = tuple(r for r in seen.rows if not _of(r, item) or r.id == keep)
    seen = dataclasses.replace(seen, mappings=mappings, rows=rows)
    return _volume(seen, item.volume_id)


def _unlisted(seen: facts.Observation, item: plan.Item) -> facts.Observation:
    """Take the volume out of nova's short list in the server, too."""
    server = seen.servers.get(item.server_id)
    if server is None or server.volumes_attached is None:
        return seen
    server = dataclasses.replace(
        server, volumes_attached=server.volumes_attached - {item.volume_id}
    )
    return dataclasses.replace(
        seen, servers={**seen.servers, server.id: server}
    )


def _volume(seen: facts.Observation, volume_id: str) -> facts.Observation:
    """Let the volume's status follow from its rows."""
    volume = seen.volumes.get(volume_id)
    if volume is None:
        return seen
    used = any(
        r.attach_status == 'attached' and not r.deleted
        for r in seen.rows
        if r.volume_id == volume_id
    )
    volume = dataclasses.replace(
        volume,
        status='in-use' if used else 'available',
        attach_status='attached' if used else 'detached',
    )
    return dataclasses.replace(
        seen, volumes={**seen.volumes, volume_id: volume}
    )
