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

"""What osc-drp asks the APIs to do: each function one POST, never repeated.

A POST without an answer is an :class:`~osc_drp.exceptions.Unanswered`: read
what became of it (:mod:`osc_drp.cloud.read`). A refusal in the object's state
is a :class:`~osc_drp.exceptions.Conflict` in the service's own words, an
unknown object a :class:`~osc_drp.exceptions.NotFound`. That holds for every
function here.
"""

import typing as ty

from osc_drp.cloud import session

#: Attaching: tag from 2.49, multiattach from 2.60, delete_on_termination
#: from 2.79; from 2.101 on the answer no longer tells the device (nova
#: 34.0.0 api/openstack/compute/rest_api_version_history.rst).
ATTACH = '2.100'
LOCK = '2.73'
PLAIN = '2.1'


def start(api: session.Api, server_id: str) -> None:
    """Start a server that is SHUTOFF; 409 in any other state."""
    _server_action(api, server_id, {'os-start': None})


def stop(api: session.Api, server_id: str) -> None:
    """Stop a server that is ACTIVE or in ERROR (nova compute/api.py, stop).

    From ERROR, or with its guest lost, this is the way back: afterwards it
    can be started, and nova defines the guest anew (LAB.md).
    """
    _server_action(api, server_id, {'os-stop': None})


def hard_reboot(api: session.Api, server_id: str) -> None:
    """Reboot a server hard.

    Deletes every mapping whose attachment cinder does not know, the root's
    too (nova 28.0.0 and later, compute/manager.py, _delete_dangling_bdms):
    only for the one case that DESIGN 6 lists.
    """
    _server_action(api, server_id, {'reboot': {'type': 'HARD'}})


def lock(api: session.Api, server_id: str, reason: str) -> None:
    """Lock a server against its users (compute API 2.73, Train)."""
    body = {'lock': {'locked_reason': reason}}
    _server_action(api, server_id, body, LOCK)


def unlock(api: session.Api, server_id: str) -> None:
    """Unlock a server."""
    _server_action(api, server_id, {'unlock': None})


def attach(
    api: session.Api,
    server_id: str,
    volume_id: str,
    device: str | None,
    tag: str | None,
    delete_on_termination: bool,
) -> str | None:
    """Attach a volume and return the device that nova gave it.

    libvirt gives the next free name, whatever was asked for (LAB.md, g):
    compare. The attachment is complete only when both sides say so. A
    multiattach volume wants 2.60; nova's refusal below it is the error.
    """
    wanted: dict[str, ty.Any] = {'volumeId': volume_id}
    if device:
        wanted['device'] = device
    if tag:
        wanted['tag'] = tag
    version = api.version('compute', ATTACH)
    if delete_on_termination:
        wanted['delete_on_termination'] = True
    answer = api.post(
        'compute',
        f'servers/{server_id}/os-volume_attachments',
        {'volumeAttachment': wanted},
        version,
    )
    told = answer.body.get('volumeAttachment') or {}
    given = told.get('device')
    return str(given) if given else None


def reset_volume_status(
    api: session.Api,
    volume_id: str,
    status: str,
    attach_status: str | None = None,
) -> None:
    """Set a volume's status in cinder's database (os-reset_status).

    ``attach_status='detached'`` also soft-deletes every row of the volume,
    of all its servers (INTERNALS 4.1): cinder checks nothing, so the caller
    has to.
    """
    wanted = {'status': status}
    if attach_status:
        wanted['attach_status'] = attach_status
    api.post(
        'block-storage',
        f'volumes/{volume_id}/action',
        {'os-reset_status': wanted},
        '3.0',
    )


def _server_action(
    api: session.Api,
    server_id: str,
    action: dict[str, ty.Any],
    microversion: str = PLAIN,
) -> None:
    api.post('compute', f'servers/{server_id}/action', action, microversion)
