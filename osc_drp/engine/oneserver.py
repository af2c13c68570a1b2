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

"""Reading one server anew, when the bulk observation is no longer fresh."""

import collections.abc
import dataclasses

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import ports


def read(
    cloud: ports.Cloud,
    seen: facts.Observation,
    server_id: str,
    volume_ids: collections.abc.Iterable[str] = (),
    server: facts.Server | None = None,
) -> facts.Observation:
    """Observe one server, its attachments and their volumes.

    What else bears on it (services, migrations) is as in ``seen``.

    :param volume_ids: further volumes to read
    :param server: it, if it was read right before
    :raises NotFound: nova does not know the server
    """
    server = server or cloud.server(server_id)
    mappings = cloud.mappings_of(server_id, server)
    rows = cloud.rows_of(server_id)
    volumes = {}
    for volume_id in (
        {m.volume_id for m in mappings}
        | {r.volume_id for r in rows}
        | set(volume_ids)
    ):
        try:
            volumes[volume_id] = cloud.volume(volume_id)
        except exceptions.NotFound:
            continue
    return dataclasses.replace(
        seen,
        servers={server_id: server},
        volumes=volumes,
        mappings=mappings,
        rows=rows,
    )
