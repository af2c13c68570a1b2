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

"""A cloud's databases for tests: cinder, nova's API, cell0 and two cells.

Made from db/tables.py, on SQLite files or on a MariaDB server where databases
may be created (``OSC_DRP_TEST_MARIADB``, a URL such as
``mysql+pymysql://root@127.0.0.1:33999``).
"""

import datetime
import itertools
import json
import os
import typing as ty
import uuid

import fixtures
import sqlalchemy as sa

from osc_drp.db import config
from osc_drp.db import engines
from osc_drp.db import tables

CELLS = ('cell0', 'cell1', 'cell2')
MARIADB = os.environ.get('OSC_DRP_TEST_MARIADB')

Values = ty.Any


def now(seconds: float = 0) -> datetime.datetime:
    """The time some seconds from now, as the services store it."""
    time = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return (time + datetime.timedelta(seconds=seconds)).replace(microsecond=0)


class CloudFixture(fixtures.Fixture):
    """Empty databases with the schema that osc-drp needs, and a builder.

    ``dbs`` is what the code under test gets; ``urls`` is where it came from.
    The builder writes through engines of its own.
    """

    def __init__(self, server: str | None = None) -> None:
        super().__init__()
        self.server_url = server
        self._count = itertools.count(1)

    def _setUp(self) -> None:
        names = {'cinder': tables.CINDER, 'nova_api': tables.API}
        names |= {f'nova_{cell}': tables.CELL for cell in CELLS}
        self._urls = self._make(list(names))
        self.engines = {
            name: sa.create_engine(self._urls[name]) for name in names
        }
        for engine in self.engines.values():
            self.addCleanup(engine.dispose)
        for name, metadata in names.items():
            metadata.create_all(self.engines[name])
        for number, cell in enumerate(CELLS):
            self.insert(
                'nova_api',
                tables.cell_mappings,
                id=number + 1,
                uuid=str(uuid.UUID(int=number)),
                name=cell,
                database_connection=self._urls[f'nova_{cell}'],
            )
        self.urls = config.Urls(
            cinder=self._urls['cinder'], nova_api=self._urls['nova_api']
        )
        self.dbs = engines.open_databases(self.urls)
        self.addCleanup(self.dbs.close)

    def _make(self, names: list[str]) -> dict[str, str]:
        if self.server_url is None:
            # In memory: thousands of small commits.
            memory = '/dev/shm' if os.path.isdir('/dev/shm') else None
            path = self.useFixture(fixtures.TempDir(memory)).path
            return {name: f'sqlite:///{path}/{name}.db' for name in names}
        mark = uuid.uuid4().hex[:8]
        server = sa.make_url(self.server_url)
        self.admin = sa.create_engine(server, isolation_level='AUTOCOMMIT')
        self.addCleanup(self.admin.dispose)
        urls = {}
        for name in names:
            database = f'drp_{mark}_{name}'
            with self.admin.connect() as connection:
                connection.exec_driver_sql(f'CREATE DATABASE {database}')
            self.addCleanup(self._drop, database)
            url = server.set(database=database)
            urls[name] = url.render_as_string(hide_password=False)
        return urls

    def _drop(self, database: str) -> None:
        with self.admin.connect() as connection:
            connection.exec_driver_sql(f'DROP DATABASE {database}')

    def database(self, name: str) -> str:
        """The name of a database on the server."""
        return sa.make_url(self._urls[name]).database or ''

    # Plain access

    def insert(self, database: str, table: sa.Table, **values: Values) -> int:
        with self.engines[database].begin() as connection:
            done = connection.execute(sa.insert(table).values(**values))
            return ty.cast(int, done.inserted_primary_key[0])

    def set(
        self, database: str, table: sa.Table, row: Values, **values: Values
    ) -> None:
        with self.engines[database].begin() as connection:
            connection.execute(
                sa.update(table).where(table.c.id == row).values(**values)
            )

    def get(self, database: str, table: sa.Table, row: Values) -> Values:
        """A row by its id, as a mapping."""
        with self.engines[database].connect() as connection:
            return (
                connection.execute(sa.select(table).where(table.c.id == row))
                .mappings()
                .one()
            )

    def dump(self) -> Values:
        """All rows of all databases, to compare before and after."""
        found = {}
        for name, engine in self.engines.items():
            with engine.connect() as connection:
                for table in self._metadata(name).sorted_tables:
                    rows = connection.execute(
                        sa.select(table).order_by(table.c.id)
                    )
                    found[name, table.name] = [tuple(row) for row in rows]
        return found

    def clear(self) -> None:
        """Empty all tables but cell_mappings."""
        for name, engine in self.engines.items():
            with engine.begin() as connection:
                for table in self._metadata(name).sorted_tables:
                    if table is not tables.cell_mappings:
                        connection.execute(sa.delete(table))

    def _metadata(self, name: str) -> sa.MetaData:
        return {'cinder': tables.CINDER, 'nova_api': tables.API}.get(
            name, tables.CELL
        )

    # Builder

    def server(
        self, name: str = 'web1', cell: str = 'cell1', **values: Values
    ) -> str:
        """A server that was stopped by the loss."""
        server_id = values.setdefault('uuid', str(uuid.uuid4()))
        defaults = {
            'display_name': name,
            'hostname': name,
            'project_id': 'blue',
            'host': 'compute1',
            'vm_state': 'stopped',
            'power_state': 4,
            'locked': False,
            'image_ref': str(uuid.uuid4()),
            'root_device_name': '/dev/vda',
            'launched_at': now(-86400),
            'deleted': 0,
        }
        self.insert(f'nova_{cell}', tables.instances, **defaults | values)
        cell_id = None if cell is None else CELLS.index(cell) + 1
        self.insert(
            'nova_api',
            tables.instance_mappings,
            instance_uuid=server_id,
            cell_id=cell_id,
        )
        return ty.cast(str, server_id)

    def volume(self, name: str = 'data', **values: Values) -> str:
        """A volume; in-use unless told otherwise."""
        volume_id = values.setdefault('id', str(uuid.uuid4()))
        defaults = {
            'display_name': name,
            'project_id': 'blue',
            'host': 'store1@lvm#pool',
            'status': 'in-use',
            'attach_status': 'attached',
            'multiattach': False,
            'deleted': False,
        }
        self.insert('cinder', tables.volumes, **defaults | values)
        return ty.cast(str, volume_id)

    def row(
        self, volume_id: str, server_id: str | None, **values: Values
    ) -> str:
        """Cinder's attachment."""
        row_id = values.setdefault('id', str(uuid.uuid4()))
        connector = {'host': 'compute1', 'initiator': 'iqn.2026-01.x:c1'}
        defaults = {
            'volume_id': volume_id,
            'instance_uuid': server_id,
            'attached_host': 'compute1',
            'mountpoint': '/dev/vdb',
            'attach_status': 'attached',
            'connector': json.dumps(connector),
            'created_at': now(-3600),
            'deleted': False,
        }
        self.insert('cinder', tables.volume_attachment, **defaults | values)
        return ty.cast(str, row_id)

    def mapping(
        self,
        server_id: str,
        volume_id: str,
        attachment_id: str | None,
        cell: str = 'cell1',
        **values: Values,
    ) -> int:
        """Nova's block device mapping."""
        defaults = {
            'uuid': str(uuid.uuid4()),
            'instance_uuid': server_id,
            'volume_id': volume_id,
            'attachment_id': attachment_id,
            'destination_type': 'volume',
            'device_name': '/dev/vdb',
            'delete_on_termination': False,
            'connection_info': '{"data": {"auth_password": "S3CRET"}}',
            'created_at': now(-3600),
            'updated_at': now(-3600),
            'deleted': 0,
        }
        if values.pop('dropped', False):
            number = next(self._count) + 10_000
            values |= {'id': number, 'deleted': number}
            values.setdefault('deleted_at', now(-60))
        return self.insert(
            f'nova_{cell}', tables.block_device_mapping, **defaults | values
        )

    def attach(
        self,
        server_id: str,
        volume_id: str,
        cell: str = 'cell1',
        device: str = '/dev/vdb',
        **mapping: Values,
    ) -> tuple[int, str]:
        """Both records of an attachment: ids of mapping and row."""
        row_id = self.row(volume_id, server_id, mountpoint=device)
        mapping_id = self.mapping(
            server_id, volume_id, row_id, cell, device_name=device, **mapping
        )
        return mapping_id, row_id

    def compute(
        self, host: str = 'compute1', cell: str = 'cell1', **values: Values
    ) -> None:
        """A nova-compute that was seen just now."""
        defaults = {
            'host': host,
            'binary': 'nova-compute',
            'last_seen_up': now(),
            'forced_down': False,
            'deleted': 0,
        }
        self.insert(f'nova_{cell}', tables.nova_services, **defaults | values)

    def cinder_service(
        self,
        binary: str = 'cinder-volume',
        host: str = 'store1@lvm',
        **values: Values,
    ) -> None:
        """A cinder service that was seen just now."""
        defaults = {
            'host': host,
            'binary': binary,
            'updated_at': now(),
            'deleted': False,
        }
        self.insert('cinder', tables.cinder_services, **defaults | values)

    def action(
        self,
        server_id: str,
        action: str,
        cell: str = 'cell1',
        events: ty.Sequence[bool] = (True,),
        **values: Values,
    ) -> int:
        """An entry of the action log; events: whether each has ended."""
        defaults = {
            'instance_uuid': server_id,
            'action': action,
            'request_id': f'req-{uuid.uuid4()}',
            'user_id': 'u1',
            'start_time': now(-600),
            'deleted': 0,
        }
        action_id = self.insert(
            f'nova_{cell}', tables.instance_actions, **defaults | values
        )
        for ended in events:
            self.insert(
                f'nova_{cell}',
                tables.instance_actions_events,
                action_id=action_id,
                finish_time=now(-590) if ended else None,
            )
        return action_id

    def migration(
        self, server_id: str, status: str, cell: str = 'cell1'
    ) -> None:
        """A migration record."""
        self.insert(
            f'nova_{cell}',
            tables.migrations,
            instance_uuid=server_id,
            status=status,
            deleted=0,
        )

    # The invariant

    def violations(self) -> list[str]:
        """Volumes that are available although a cell maps them (DESIGN 2)."""
        volumes, bdm = tables.volumes, tables.block_device_mapping
        with self.engines['cinder'].connect() as connection:
            free = set(
                connection.scalars(
                    sa.select(volumes.c.id).where(
                        volumes.c.status == 'available',
                        volumes.c.deleted == sa.false(),
                    )
                )
            )
        found = []
        for cell in CELLS:
            with self.engines[f'nova_{cell}'].connect() as connection:
                mapped = connection.scalars(
                    sa.select(bdm.c.volume_id).where(
                        bdm.c.deleted == 0,
                        sa.or_(
                            bdm.c.attachment_id.is_not(None),
                            bdm.c.connection_info.is_not(None),
                        ),
                    )
                )
                found += sorted(free.intersection(mapped))
        return found
