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

import contextlib
import logging
import sqlite3
import ssl
import traceback
import unittest
from unittest import mock

import fixtures
from oslo_db import exception as db_exception
import pymysql
import sqlalchemy as sa
import testtools

from osc_drp import exceptions
from osc_drp.db import config
from osc_drp.db import engines
from osc_drp.db import tables
from osc_drp.db import write
from osc_drp.tests.unit.db import fixture

MARIADB = fixture.MARIADB or ''


def sentence(test: testtools.TestCase, error: BaseException) -> str:
    """One sentence of our own: no SQL, no driver, no secret, no URL."""
    text = str(error)
    for word in ('\n', 'pymysql', 'FROM', 'sqlalche', 'S3CRET', '://'):
        test.assertNotIn(word, text)
    test.assertFalse(text.endswith('.'), text)
    test.assertTrue(text[0].isupper(), text)
    return text


class TestOpen(testtools.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.cloud = self.useFixture(fixture.CloudFixture())

    def test_all_cells(self) -> None:
        self.assertEqual(fixture.CELLS, tuple(self.cloud.dbs.cells))
        self.assertEqual(5, len(self.cloud.dbs.all()))
        self.assertNotIn('sqlite', repr(self.cloud.dbs))

    def test_names_are_no_keys(self) -> None:
        for number, name in ((10, None), (11, 'cell1'), (12, 'cell0')):
            self.cloud.insert(
                'nova_api',
                tables.cell_mappings,
                id=number,
                uuid=f'uuid-{number}',
                name=name,
                database_connection=self.cloud.engines[
                    'nova_cell2'
                ].url.render_as_string(hide_password=False),
            )
        with engines.open_databases(self.cloud.urls) as dbs:
            self.assertEqual(
                {
                    'cell0',
                    'cell2',
                    '00000000-0000-0000-0000-000000000001',
                    'uuid-10',
                    'uuid-11',
                    'uuid-12',
                },
                set(dbs.cells),
            )

    def test_templates(self) -> None:
        with self.cloud.engines['nova_api'].begin() as connection:
            connection.execute(
                sa.update(tables.cell_mappings).values(
                    database_connection='{scheme}:///{path}_x'
                )
            )
        urls = config.Urls(
            cinder=self.cloud.urls.cinder,
            nova_api=self.cloud.urls.nova_api,
            nova_default='sqlite:////tmp/nova',
        )
        with engines.open_databases(urls) as dbs:
            self.assertEqual(
                'tmp/nova_x', dbs.cells['cell1'].engine.url.database
            )

    def test_no_cells(self) -> None:
        with self.cloud.engines['nova_api'].begin() as connection:
            connection.execute(sa.delete(tables.cell_mappings))
        error = self.assertRaises(
            exceptions.DatabaseError, engines.open_databases, self.cloud.urls
        )
        self.assertIn('no cells', sentence(self, error))

    def test_strange_urls(self) -> None:
        for url, word in (
            ('postgresql://drp:S3CRET@h/cinder', 'postgresql'),
            ('S3CRET', 'not a database URL'),
            ('mysql://nova:p@ss:S3CRET@db/nova', 'not a database URL'),
        ):
            urls = config.Urls(cinder=url, nova_api=self.cloud.urls.nova_api)
            error = self.assertRaises(
                exceptions.ConfigError, engines.open_databases, urls
            )
            self.assertIn(word, sentence(self, error))
            # nor does --debug show it
            told = ''.join(traceback.format_exception(error))
            self.assertNotIn('S3CRET', told)

    def test_any_driver_is_pymysql(self) -> None:
        for driver in ('mysql', 'mariadb', 'mysql+mysqldb', 'mysql+pymysql'):
            url = engines._known_url('x', f'{driver}://u:p@h/d?ssl_ca=/a.pem')
            self.assertEqual('mysql+pymysql', url.drivername)
            self.assertEqual('/a.pem', url.query['ssl_ca'])

    def test_time_outs(self) -> None:
        database = engines._database(
            'x', 'mysql://u:p@h/d?read_timeout=7&ssl_ca=/a.pem', tables.CELL
        )
        query = database.engine.url.query
        self.assertEqual('5', query['connect_timeout'])
        self.assertEqual('7', query['read_timeout'])
        self.assertEqual('/a.pem', query['ssl_ca'])

    def test_schema(self) -> None:
        self.cloud.dbs.check_schema()
        with self.cloud.engines['nova_cell2'].begin() as connection:
            connection.exec_driver_sql(
                'ALTER TABLE block_device_mapping RENAME attachment_id TO a'
            )
        error = self.assertRaises(
            engines.UnknownSchema, self.cloud.dbs.check_schema
        )
        text = sentence(self, error)
        self.assertIn('block_device_mapping.attachment_id', text)
        self.assertIn("cell 'cell2'", text)
        self.assertEqual(exceptions.REFUSED, error.exit_code)

    def test_schema_lacks_a_table(self) -> None:
        with self.cloud.engines['cinder'].begin() as connection:
            connection.exec_driver_sql('DROP TABLE volume_attachment')
        error = self.assertRaises(
            engines.UnknownSchema, self.cloud.dbs.check_schema
        )
        self.assertIn('volume_attachment', sentence(self, error))

    def test_grants_mean_nothing_to_a_file(self) -> None:
        write.check_grants(self.cloud.dbs)

    def test_no_file(self) -> None:
        urls = config.Urls(
            cinder='sqlite:////no/x', nova_api='sqlite:////no/y'
        )
        error = self.assertRaises(engines.Lost, engines.open_databases, urls)
        self.assertIn('the nova API database', sentence(self, error))

    def test_writers_lock_the_file(self) -> None:
        cinder = self.cloud.dbs.cinder
        with (
            cinder.connect(write=True) as one,
            mock.patch.dict(cinder.engine.dialect.__dict__),
        ):
            one.execute(sa.select(tables.volumes.c.id))
            with cinder.connect() as two:
                two.execute(sa.select(tables.volumes.c.id))
            other = sa.create_engine(
                cinder.engine.url, connect_args={'timeout': 0}
            )
            with other.connect() as three:
                self.assertRaises(
                    sa.exc.OperationalError,
                    three.execute,
                    sa.insert(tables.volumes).values(id='x'),
                )

    def test_utc(self) -> None:
        with self.cloud.dbs.cinder.connect() as connection:
            time = engines.now(connection)
        # time zones differ by a quarter of an hour at least
        self.assertLess(abs((time - fixture.now()).total_seconds()), 300)
        self.assertIsNone(time.tzinfo)


class TestSentences(testtools.TestCase):
    """What each error of the server becomes."""

    def setUp(self) -> None:
        super().setUp()
        self.database = engines._database(
            'the cinder database',
            'mysql+pymysql://drp:S3CRET@db1:3307/cinder',
            tables.CINDER,
        )

    def explain(
        self, code: int, text: str, lost: bool = False, cause: object = None
    ) -> exceptions.DatabaseError:
        error = pymysql.err.OperationalError(code, text)
        if cause is not None:
            error.original_exception = cause
        found = engines._explain(self.database, error, None, lost)
        sentence(self, found)
        return found

    def check(self, kind: type, words: list[str], *args: object) -> None:
        error = self.explain(*args)
        self.assertIs(kind, type(error))
        for word in words:
            self.assertIn(word, str(error))

    def test_cannot_connect(self) -> None:
        self.check(
            engines.Lost,
            ['the cinder database at db1:3307 (Connection refused)'],
            2003,
            "Can't connect to MySQL server on 'db1'",
            True,
            ConnectionRefusedError(111, 'Connection refused'),
        )

    def test_lost(self) -> None:
        for code in (2006, 2013, 1053, 1927):
            self.check(engines.Lost, ['db1:3307 was lost'], code, 'x')
        self.check(engines.Lost, ['was lost'], 4031, 'x', True)

    def test_who_may_come(self) -> None:
        plain = exceptions.DatabaseError
        self.check(plain, ['Wrong user or password', "'drp'"], 1045, 'x')
        self.check(plain, ['Wrong user or password'], 1698, 'x')
        self.check(plain, ["no database 'cinder'"], 1049, 'x')
        self.check(plain, ["'drp'", "'cinder'"], 1044, 'x')
        self.check(plain, ['TLS'], 3159, 'x')
        self.check(plain, ['this machine'], 1130, 'x')
        self.check(plain, ['no connection left'], 1040, 'x')

    def test_missing_grants(self) -> None:
        plain = exceptions.DatabaseError
        self.check(
            plain,
            ['privilege UPDATE', 'table cinder.volumes'],
            1142,
            "UPDATE command denied to user 'drp'@'h' for table"
            ' `cinder`.`volumes`',
        )
        self.check(
            plain,
            ['privilege UPDATE', 'column status in table volumes'],
            1143,
            "UPDATE command denied to user 'drp'@'h' for column 'status' in"
            " table 'volumes'",
        )
        self.check(
            plain,
            ['SELECT, LOCK TABLES', 'instances'],
            1142,
            "SELECT, LOCK TABLES command denied to user 'a'@'b' for table"
            " 'instances'",
        )
        self.check(plain, ['privilege'], 1142, 'a text of the future')

    def test_schema(self) -> None:
        self.check(
            engines.UnknownSchema,
            ['volumes.multiattach'],
            1054,
            "Unknown column 'volumes.multiattach' in 'SELECT'",
        )
        self.check(
            engines.UnknownSchema,
            ['cinder.volume_attachment'],
            1146,
            "Table 'cinder.volume_attachment' doesn't exist",
        )

    def test_states(self) -> None:
        plain = exceptions.DatabaseError
        for code in (1213, 1205, 1020):
            self.check(engines.Deadlock, ['Others'], code, 'x')
        self.check(engines.NotReady, ['Galera'], 1047, 'x')
        for code in (1290, 1836, 1792):
            self.check(plain, ['read-only'], code, 'x')

    def test_a_node_that_is_not_ready_is_waited_for(self) -> None:
        slept: list[float] = []
        answers = [engines.NotReady('not ready'), engines.NotReady('no'), 7]
        with (
            mock.patch.object(engines, '_sleep', slept.append),
            self.assertLogs('osc_drp.db.engines', 'WARNING') as said,
        ):
            work = mock.Mock(side_effect=answers)
            self.assertEqual(7, engines.when_ready(work))
        self.assertEqual([engines.PAUSE] * 2, slept)
        self.assertIn('not ready: waiting', said.output[0])

    def test_nor_for_ever(self) -> None:
        now = iter(range(0, 1000, 10))
        work = mock.Mock(side_effect=engines.NotReady('not ready'))
        with (
            mock.patch.object(engines, '_sleep', lambda seconds: None),
            mock.patch.object(engines, '_clock', lambda: next(now)),
        ):
            self.assertRaises(engines.NotReady, engines.when_ready, work)
        self.assertEqual(6, work.call_count)

    def test_anything_else(self) -> None:
        self.check(exceptions.DatabaseError, ['error 1234'], 1234, 'S3CRET')

    def test_parameters_that_pymysql_does_not_know(self) -> None:
        database = engines._database(
            'the cinder database',
            'mysql+pymysql://drp:S3CRET@127.0.0.1:1/cinder?what=S3CRET',
            tables.CINDER,
        )
        self.assertIn('URL', self.fails(database))

    def test_certificate_is_missing(self) -> None:
        database = engines._database(
            'the cinder database',
            'mysql+pymysql://drp:S3CRET@127.0.0.1:1/c?ssl_ca=/no/S3CRET',
            tables.CINDER,
        )
        self.assertIn('No such file', self.fails(database))

    def test_nobody_listens(self) -> None:
        database = engines._database(
            'the cinder database',
            'mysql+pymysql://drp:S3CRET@127.0.0.1:1/cinder',
            tables.CINDER,
        )
        self.assertIn('127.0.0.1:1 (Connection refused)', self.fails(database))

    def test_a_server_that_dies_is_told_in_our_words_only(self) -> None:
        database = engines._database(
            'the cinder database', 'sqlite://', tables.CINDER
        )
        log = self.useFixture(fixtures.FakeLogger(level=logging.WARNING))
        died = sqlite3.OperationalError('S3CRET: gone')
        with database.connect():  # the first one asks more
            pass
        with (
            mock.patch.object(
                database.engine.dialect, 'do_rollback', side_effect=died
            ),
            contextlib.suppress(exceptions.DatabaseError),
            database.connect() as connection,
        ):
            connection.execute(sa.text('SELECT 1'))
        self.assertEqual('', log.output)

    def fails(self, database: engines.Database) -> str:
        log = self.useFixture(fixtures.FakeLogger(level=logging.WARNING))

        def connect() -> None:
            with database.connect():
                pass

        error = self.assertRaises(exceptions.DatabaseError, connect)
        self.assertEqual('', log.output)
        return sentence(self, error)


@unittest.skipUnless(MARIADB, 'OSC_DRP_TEST_MARIADB is not set')
class TestMariaDB(testtools.TestCase):
    """Real answers of a real server."""

    def setUp(self) -> None:
        super().setUp()
        self.cloud = self.useFixture(fixture.CloudFixture(MARIADB))
        self.log = self.useFixture(fixtures.FakeLogger(level=logging.WARNING))

    def sql(self, *statements: str) -> None:
        with self.cloud.admin.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def user(self) -> config.Urls:
        """A user with the grants that the documentation lists."""
        name = self.cloud.database('cinder').replace('_cinder', '')
        self.addCleanup(self.sql, f"DROP USER '{name}'@'%%'")
        self.sql(f"CREATE USER '{name}'@'%%' IDENTIFIED BY 'S3CRET'")
        for database, metadata in (
            ('cinder', tables.CINDER),
            ('nova_api', tables.API),
            *((f'nova_{cell}', tables.CELL) for cell in fixture.CELLS),
        ):
            for table in metadata.sorted_tables:
                self.sql(
                    f'GRANT SELECT ON {self.cloud.database(database)}'
                    f".{table.name} TO '{name}'@'%%'"
                )
        for database, table, columns in (
            ('cinder', 'volumes', 'status, attach_status'),
            (
                'cinder',
                'volume_attachment',
                'attach_status, detach_time, deleted, deleted_at',
            ),
            ('cinder', 'volume_admin_metadata', 'deleted, deleted_at'),
            *(
                (
                    f'nova_{cell}',
                    'block_device_mapping',
                    'deleted, deleted_at, updated_at',
                )
                for cell in fixture.CELLS
            ),
        ):
            self.sql(
                f'GRANT UPDATE ({columns}) ON'
                f" {self.cloud.database(database)}.{table} TO '{name}'@'%%'"
            )
        self.name = name
        return config.Urls(
            cinder=self.url('cinder'),
            nova_api=self.url('nova_api'),
            user=name,
            password='S3CRET',
        )

    def url(self, database: str, **changes: object) -> str:
        url = sa.make_url(MARIADB).set(
            username=self.name,
            password='S3CRET',
            database=self.cloud.database(database),
        )
        return url.set(**changes).render_as_string(hide_password=False)

    def fails(self, urls: config.Urls) -> str:
        def work() -> None:
            with engines.open_databases(urls) as dbs:
                dbs.check_schema()
                write.check_grants(dbs)

        error = self.assertRaises(exceptions.DatabaseError, work)
        self.assertEqual('', self.log.output)
        return sentence(self, error)

    def test_settings(self) -> None:
        with self.cloud.dbs.cinder.connect() as connection:
            found = connection.execute(
                sa.text(
                    'SELECT @@tx_isolation, @@lock_wait_timeout,'
                    ' @@innodb_lock_wait_timeout, @@sql_mode'
                )
            ).one()
        self.assertEqual(('READ-COMMITTED', 5, 5), tuple(found[:3]))
        self.assertIn('STRICT_ALL_TABLES', found[3])

    def test_least_grants(self) -> None:
        with engines.open_databases(self.user()) as dbs:
            dbs.check_schema()
            write.check_grants(dbs)
        self.assertEqual('', self.log.output)

    def test_missing_update(self) -> None:
        urls = self.user()
        for database, table, column in (
            ('cinder', 'volumes', 'status'),
            ('cinder', 'volume_attachment', 'detach_time'),
            ('cinder', 'volume_admin_metadata', 'deleted'),
            ('nova_cell2', 'block_device_mapping', 'updated_at'),
        ):
            where = f'{self.cloud.database(database)}.{table}'
            self.sql(
                f"REVOKE UPDATE ({column}) ON {where} FROM '{self.name}'@'%%'"
            )
            text = self.fails(urls)
            self.assertIn('privilege UPDATE', text)
            self.assertIn(f'column {column} in table {table}', text)
            self.sql(
                f"GRANT UPDATE ({column}) ON {where} TO '{self.name}'@'%%'"
            )

    def test_missing_select(self) -> None:
        urls = self.user()
        where = f'{self.cloud.database("nova_cell0")}.instances'
        self.sql(f"REVOKE SELECT ON {where} FROM '{self.name}'@'%%'")
        text = self.fails(urls)
        self.assertIn('privilege SELECT', text)
        self.assertIn('instances', text)
        self.assertIn("cell 'cell0'", text)

    def test_wrong_password(self) -> None:
        self.user()
        urls = config.Urls(
            cinder=self.url('cinder', password='no'),
            nova_api=self.url('nova_api', password='no'),
        )
        self.assertIn('Wrong user or password', self.fails(urls))

    def test_unknown_database(self) -> None:
        text = self.fails(
            config.Urls(
                cinder='sqlite://',
                nova_api=sa.make_url(MARIADB)
                .set(database='no_such')
                .render_as_string(hide_password=False),
            )
        )
        self.assertIn("no database 'no_such'", text)

    def test_no_access_to_a_database(self) -> None:
        urls = self.user()
        for table in tables.CELL.sorted_tables:
            where = f'{self.cloud.database("nova_cell1")}.{table.name}'
            self.sql(
                f'REVOKE ALL PRIVILEGES ON {where} FROM \'{self.name}\'@\'%%\''
            )
        text = self.fails(urls)
        self.assertIn(self.name, text)
        self.assertIn(self.cloud.database('nova_cell1'), text)

    def test_a_cell_that_is_down(self) -> None:
        self.cloud.set(
            'nova_api',
            tables.cell_mappings,
            3,
            database_connection='mysql+pymysql://a:S3CRET@127.0.0.1:1/x',
        )
        from osc_drp.db import read

        def work() -> None:
            with engines.open_databases(self.cloud.urls) as dbs:
                read.observe(dbs)

        error = self.assertRaises(engines.Lost, work)
        self.assertIn("cell 'cell2'", sentence(self, error))

    def test_unknown_schema(self) -> None:
        self.sql(
            f'ALTER TABLE {self.cloud.database("cinder")}.volumes'
            ' DROP COLUMN multiattach'
        )
        text = self.fails(self.cloud.urls)
        self.assertIn('volumes.multiattach', text)

    def test_no_table(self) -> None:
        self.sql(
            f'DROP TABLE {self.cloud.database("cinder")}.volume_attachment'
        )
        self.assertIn('volume_attachment', self.fails(self.cloud.urls))

    def test_read_only(self) -> None:
        self.addCleanup(self.sql, 'SET GLOBAL read_only = 0')
        self.sql('SET GLOBAL read_only = 1')
        self.assertIn('read-only', self.fails(self.cloud.urls))

    def test_no_error_gets_past(self) -> None:
        with self.cloud.dbs.cinder.connect() as connection:
            for statement in ('NONSENSE', 'SELECT 1 +', 'KILL 999999'):
                error = self.assertRaises(
                    exceptions.DatabaseError,
                    connection.execute,
                    sa.text(statement),
                )
                sentence(self, error)
                self.assertNotIsInstance(error, db_exception.DBError)

    def test_tls(self) -> None:
        url = self.cloud.urls.cinder + '?ssl_ca=/etc/hostname'
        database = engines._database('the x database', url, tables.CINDER)

        def connect() -> None:
            with database.connect():
                pass

        error = self.assertRaises(exceptions.DatabaseError, connect)
        self.assertIsInstance(error.__cause__, (ssl.SSLError, OSError))
        sentence(self, error)
