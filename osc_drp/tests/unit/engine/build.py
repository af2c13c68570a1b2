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

"""Facts for tests: a small cloud that lost its power and agrees with itself.

Every builder gives something healthy; a test says what is different.
"""

import dataclasses

from osc_drp.engine import facts

#: Before the loss: the map.
TAKEN_AT = '2026-11-22T03:00:00Z'
#: After it.
LATER = '2026-11-22T04:00:00Z'
HOST = 'compute1'
BACKEND = 'storage1@lvm'


def server(server_id='s1', **changes):
    """Make a server that nova stopped after the loss."""
    values = {
        'id': server_id,
        'name': f'name-{server_id}',
        'project_id': 'blue',
        'host': HOST,
        'vm_state': 'stopped',
        'task_state': None,
        'power_state': facts.SHUTDOWN,
        'locked': False,
        'root_device': '/dev/vda',
        'cell': 'cell1',
    }
    return facts.Server(**{**values, **changes})


def running(server_id='s1', **changes):
    """Make a server that runs."""
    state = {'vm_state': 'active', 'power_state': facts.RUNNING}
    return server(server_id, **{**state, **changes})


def mapping(server_id='s1', volume_id='v1', **changes):
    """Make nova's record of a data disk."""
    values = {
        'server_id': server_id,
        'volume_id': volume_id,
        'device': '/dev/vdb',
        'attachment_id': f'a-{server_id}-{volume_id}',
        'root': False,
        'connected': True,
        'created_at': '2026-01-01T00:00:00Z',
    }
    return facts.Mapping(**{**values, **changes})


def row(server_id='s1', volume_id='v1', **changes):
    """Make cinder's record of the same."""
    values = {
        'id': f'a-{server_id}-{volume_id}',
        'volume_id': volume_id,
        'server_id': server_id,
        'attach_status': 'attached',
        'device': '/dev/vdb',
        'host': HOST,
        'connector': True,
        'created_at': '2026-01-01T00:00:00Z',
    }
    return facts.Row(**{**values, **changes})


def gone(one, at=LATER):
    """Make it soft-deleted."""
    changes = {'deleted': True, 'deleted_at': at}
    if isinstance(one, facts.Row):
        changes['attach_status'] = 'detached'
    return dataclasses.replace(one, **changes)


def volume(volume_id='v1', **changes):
    """Make a volume in use."""
    values = {
        'id': volume_id,
        'name': f'name-{volume_id}',
        'project_id': 'blue',
        'status': 'in-use',
        'multiattach': False,
        'attach_status': 'attached',
        'host': BACKEND + '#pool',
    }
    return facts.Volume(**{**values, **changes})


def free(volume_id='v1', **changes):
    """Make a volume that nobody has."""
    state = {'status': 'available', 'attach_status': 'detached'}
    return volume(volume_id, **{**state, **changes})


def services(*hosts, up=True):
    """Make nova-computes (of compute1) and the cinder-volume of all."""
    return (
        *(facts.Service('nova-compute', h, up) for h in hosts or (HOST,)),
        facts.Service('cinder-volume', BACKEND, True),
    )


def action(name, at=LATER, user='user', server_id='s1', request=None):
    """Make an entry of nova's action log."""
    return facts.Action(server_id, name, request or f'req-{at}', user, at)


def pair(**changes):
    """Make a pair on which both records agree (R1), the server off."""
    values = {
        'server_id': 's1',
        'volume_id': 'v1',
        'server': server(),
        'volume': volume(),
        'mappings': (mapping(),),
        'rows': (row(),),
        'dropped': (),
        'old_rows': (),
        'other_mappings': (),
        'other_rows': (),
        'unfinished': (),
        'migrating': False,
        'building': False,
        'compute_up': True,
    }
    return facts.Pair(**{**values, **changes})


def seen(servers=(), volumes=(), mappings=(), rows=(), **changes):
    """Make an observation."""
    values = {
        'source': facts.DATABASE,
        'taken_at': LATER,
        'servers': {s.id: s for s in servers},
        'volumes': {v.id: v for v in volumes},
        'mappings': tuple(mappings),
        'rows': tuple(rows),
        'services': services(),
        'migrating': frozenset(),
    }
    return facts.Observation(**{**values, **changes})


def agreeing(*keys, servers=None, **changes):
    """Make an observation of pairs (server id, volume id) that agree."""
    if servers is None:
        servers = [server(s) for s in dict.fromkeys(k[0] for k in keys)]
    users = facts.group(keys, lambda k: k[1])
    return seen(
        servers,
        [volume(v, multiattach=len(users[v]) > 1) for v in users],
        [mapping(*k) for k in keys],
        [row(*k) for k in keys],
        **changes,
    )


def map_server(server_id='s1', **changes):
    """Make a server of the map, that ran."""
    values = {
        'id': server_id,
        'name': f'name-{server_id}',
        'project_id': 'blue',
        'host': HOST,
        'vm_state': 'active',
        'power_state': facts.RUNNING,
        'locked': False,
    }
    return facts.MapServer(**{**values, **changes})


def attachment(server_id='s1', volume_id='v1', **changes):
    """Make an attachment of the map."""
    values = {
        'server_id': server_id,
        'volume_id': volume_id,
        'device': '/dev/vdb',
        'attachment_id': f'a-{server_id}-{volume_id}',
        'cinder_attachment_id': f'a-{server_id}-{volume_id}',
        'recorded_by': 'both',
        'root': False,
        'tag': None,
        'delete_on_termination': False,
        'multiattach': False,
    }
    return facts.MapAttachment(**{**values, **changes})


def cloud_map(*keys, servers=None, attachments=None, **changes):
    """Make the map of pairs (server id, volume id)."""
    if attachments is None:
        attachments = [attachment(*k) for k in keys]
    if servers is None:
        ids = dict.fromkeys(a.server_id for a in attachments)
        servers = [map_server(s) for s in ids]
    values = {
        'taken_at': TAKEN_AT,
        'cloud': 'lab',
        'source': facts.DATABASE,
        'servers': tuple(servers),
        'attachments': tuple(attachments),
        'sha256': 'f' * 64,
    }
    return facts.CloudMap(**{**values, **changes})
