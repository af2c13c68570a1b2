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

"""The columns of cinder and nova that osc-drp uses, and no others.

They exist under these names in every release from Queens (cinder 12, nova
17) to 2026.2 (cinder 29.0.0 db/models.py, nova 34.0.0 db/main/models.py and
db/api/models.py). ``Databases.check_schema`` compares them with the server's,
so an older or unknown schema is refused instead of guessed at.

Soft-deleted rows: cinder's ``deleted`` is a boolean, nova's an integer that
holds the row's own id.
"""

import sqlalchemy as sa

CINDER = sa.MetaData()
API = sa.MetaData()
CELL = sa.MetaData()

volumes = sa.Table(
    'volumes',
    CINDER,
    sa.Column('id', sa.String(36), primary_key=True),
    sa.Column('display_name', sa.String(255)),
    sa.Column('project_id', sa.String(255)),
    sa.Column('host', sa.String(255)),
    sa.Column('status', sa.String(255)),
    sa.Column('attach_status', sa.String(255)),
    sa.Column('migration_status', sa.String(255)),
    sa.Column('multiattach', sa.Boolean),
    sa.Column('deleted', sa.Boolean),
)

volume_attachment = sa.Table(
    'volume_attachment',
    CINDER,
    sa.Column('id', sa.String(36), primary_key=True),
    sa.Column('volume_id', sa.String(36), nullable=False, index=True),
    sa.Column('instance_uuid', sa.String(36)),
    sa.Column('attached_host', sa.String(255)),
    sa.Column('mountpoint', sa.String(255)),
    sa.Column('attach_status', sa.String(255)),
    sa.Column('connector', sa.Text),
    sa.Column('detach_time', sa.DateTime),
    sa.Column('created_at', sa.DateTime),
    sa.Column('deleted_at', sa.DateTime),
    sa.Column('deleted', sa.Boolean),
)

volume_admin_metadata = sa.Table(
    'volume_admin_metadata',
    CINDER,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('volume_id', sa.String(36), nullable=False, index=True),
    sa.Column('key', sa.String(255)),
    sa.Column('deleted_at', sa.DateTime),
    sa.Column('deleted', sa.Boolean),
)

cinder_services = sa.Table(
    'services',
    CINDER,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('host', sa.String(255)),
    sa.Column('binary', sa.String(255)),
    sa.Column('updated_at', sa.DateTime),
    sa.Column('deleted', sa.Boolean),
)

cell_mappings = sa.Table(
    'cell_mappings',
    API,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('uuid', sa.String(36), nullable=False),
    sa.Column('name', sa.String(255)),
    sa.Column('database_connection', sa.Text),
)

instance_mappings = sa.Table(
    'instance_mappings',
    API,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('instance_uuid', sa.String(36), nullable=False, index=True),
    sa.Column('cell_id', sa.Integer),
)

build_requests = sa.Table(
    'build_requests',
    API,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('instance_uuid', sa.String(36)),
)

instances = sa.Table(
    'instances',
    CELL,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('uuid', sa.String(36), nullable=False, unique=True),
    sa.Column('display_name', sa.String(255)),
    sa.Column('hostname', sa.String(255)),
    sa.Column('project_id', sa.String(255)),
    sa.Column('host', sa.String(255)),
    sa.Column('vm_state', sa.String(255)),
    sa.Column('task_state', sa.String(255)),
    sa.Column('power_state', sa.Integer),
    sa.Column('locked', sa.Boolean),
    sa.Column('image_ref', sa.String(255)),
    sa.Column('root_device_name', sa.String(255)),
    sa.Column('launched_at', sa.DateTime),
    sa.Column('deleted', sa.Integer),
)

block_device_mapping = sa.Table(
    'block_device_mapping',
    CELL,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('uuid', sa.String(36)),
    sa.Column('instance_uuid', sa.String(36), index=True),
    sa.Column('volume_id', sa.String(36), index=True),
    sa.Column('attachment_id', sa.String(36)),
    sa.Column('destination_type', sa.String(255)),
    sa.Column('boot_index', sa.Integer),
    sa.Column('device_name', sa.String(255)),
    sa.Column('tag', sa.String(255)),
    sa.Column('delete_on_termination', sa.Boolean),
    sa.Column('connection_info', sa.Text),
    sa.Column('created_at', sa.DateTime),
    sa.Column('updated_at', sa.DateTime),
    sa.Column('deleted_at', sa.DateTime),
    sa.Column('deleted', sa.Integer),
)

instance_actions = sa.Table(
    'instance_actions',
    CELL,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('action', sa.String(255)),
    sa.Column('instance_uuid', sa.String(36), index=True),
    sa.Column('request_id', sa.String(255)),
    sa.Column('user_id', sa.String(255)),
    sa.Column('start_time', sa.DateTime),
    sa.Column('finish_time', sa.DateTime),
    sa.Column('deleted', sa.Integer),
)

instance_actions_events = sa.Table(
    'instance_actions_events',
    CELL,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('action_id', sa.Integer, index=True),
    sa.Column('finish_time', sa.DateTime),
)

migrations = sa.Table(
    'migrations',
    CELL,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('instance_uuid', sa.String(36), index=True),
    sa.Column('status', sa.String(255)),
    sa.Column('deleted', sa.Integer),
)

nova_services = sa.Table(
    'services',
    CELL,
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('host', sa.String(255)),
    sa.Column('binary', sa.String(255)),
    sa.Column('last_seen_up', sa.DateTime),
    sa.Column('created_at', sa.DateTime),
    sa.Column('forced_down', sa.Boolean),
    sa.Column('deleted', sa.Integer),
)
