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

"""What the services' answers mean: their JSON as our facts."""

import typing as ty

from osc_drp.cloud import session
from osc_drp.engine import facts
from osc_drp import exceptions
from osc_drp.i18n import _

_Json = dict[str, ty.Any]


def server(api: session.Api, item: _Json) -> facts.Server:
    """Turn nova's server into ours.

    :raises exceptions.Incomplete: nothing but the id is there: its cell is
        down.
    :raises exceptions.ApiError: what only administrators see is missing.
    """
    if item.get('status') == 'UNKNOWN' or 'OS-EXT-STS:vm_state' not in item:
        raise exceptions.Incomplete(
            _(
                "cloud '%(cloud)s': server %(id)s lies in a cell whose "
                'database does not answer: bring up the cell first'
            )
            % {'cloud': api.cloud, 'id': item.get('id')}
        )
    if 'OS-EXT-SRV-ATTR:host' not in item:
        raise not_admin(api, _("nova hides the servers' hosts"))
    attached = item.get('os-extended-volumes:volumes_attached') or []
    return facts.Server(
        id=item['id'],
        name=item.get('name') or '',
        project_id=item.get('tenant_id') or '',
        host=item['OS-EXT-SRV-ATTR:host'],
        vm_state=item['OS-EXT-STS:vm_state'] or '',
        task_state=item.get('OS-EXT-STS:task_state'),
        power_state=int(item.get('OS-EXT-STS:power_state') or 0),
        locked=bool(item.get('locked')),
        root_device=item.get('OS-EXT-SRV-ATTR:root_device_name'),
        launched=bool(item.get('OS-SRV-USG:launched_at')),
        volume_backed=not item.get('image'),
        volumes_attached=frozenset(facts.id_of(v['id']) for v in attached),
        metadata=tuple(sorted((item.get('metadata') or {}).items())),
        locked_reason=item.get('locked_reason'),
    )


def volume(api: session.Api, item: _Json) -> facts.Volume:
    """Turn cinder's volume into ours.

    :raises exceptions.ApiError: what only administrators see is missing.
    """
    if 'os-vol-host-attr:host' not in item:
        raise not_admin(api, _("cinder hides the volumes' hosts"))
    return facts.Volume(
        id=item['id'],
        name=item.get('name') or '',
        project_id=item.get('os-vol-tenant-attr:tenant_id') or '',
        status=item['status'],
        multiattach=bool(item.get('multiattach')),
        migration_status=item.get('migration_status'),
        host=item['os-vol-host-attr:host'],
    )


def rows(item: _Json) -> list[facts.Row]:
    """Take the attached rows out of a volume: no others show there."""
    return [
        facts.Row(
            id=a['attachment_id'],
            volume_id=item['id'],
            server_id=_maybe_id(a.get('server_id')),
            attach_status='attached',
            device=a.get('device'),
            host=a.get('host_name'),
        )
        for a in item.get('attachments') or []
    ]


def row(item: _Json, attached: facts.Row | None) -> facts.Row:
    """Join an entry of the attachments with the volume's, newer first."""
    return facts.Row(
        id=item['id'],
        volume_id=item['volume_id'],
        server_id=_maybe_id(item.get('instance')),
        attach_status=item['status'],
        device=attached.device if attached else None,
        host=attached.host if attached else None,
    )


def mapping(server: facts.Server, item: _Json) -> facts.Mapping:
    """Turn an entry of os-volume_attachments into ours.

    The root is the device that the server boots from, if it has no image:
    the API does not show boot_index.
    """
    device = item.get('device')
    return facts.Mapping(
        server_id=server.id,
        volume_id=facts.id_of(item['volumeId']),
        device=device,
        attachment_id=item.get('attachment_id'),
        root=bool(
            server.volume_backed and device and device == server.root_device
        ),
        tag=item.get('tag'),
        delete_on_termination=bool(item.get('delete_on_termination')),
        uuid=item.get('bdm_uuid'),
    )


def _maybe_id(told: str | None) -> str | None:
    return None if told is None else facts.id_of(told)


def action(item: _Json) -> facts.Action:
    return facts.Action(
        server_id=item['instance_uuid'],
        action=item['action'],
        request_id=item['request_id'],
        user_id=item.get('user_id'),
        start_time=item['start_time'][:19] + 'Z',
    )


def not_admin(api: session.Api, why: str) -> exceptions.ApiError:
    return exceptions.ApiError(
        _("cloud '%(cloud)s': user is not an administrator: %(why)s")
        % {'cloud': api.cloud, 'why': why}
    )
