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

"""Connections to the databases of cinder, nova's API and every cell.

Each error that a server or the driver gives leaves here as one sentence of
our own, an ``exceptions.DatabaseError``: without statements, values or
passwords. Three kinds have a class, because the writers treat them apart.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import logging
import re
import time
import typing as ty

from oslo_db.sqlalchemy import engines as db_engines
from oslo_db.sqlalchemy import exc_filters
import sqlalchemy as sa

from osc_drp import exceptions
from osc_drp.db import config
from osc_drp.db import tables

CELL0_UUID = '00000000-0000-0000-0000-000000000000'
CELL0 = 'cell0'

# Seconds.
_CONNECT_TIMEOUT = 5
_READ_TIMEOUT = 60
_LOCK_TIMEOUT = 5

#: Seconds that we wait for a Galera node, and between two attempts.
PATIENCE = 60.0
PAUSE = 2.0

#: Execution option: a transaction that will write (BEGIN IMMEDIATE).
_WRITES = 'osc_drp_writes'
_Result = ty.TypeVar('_Result')

_clock = time.monotonic
_sleep = time.sleep
LOG = logging.getLogger(__name__)

# They log to the user's console what we say in our own words: with
# statements and values (exc_filters), or with a traceback of a connection
# that cannot be rolled back because its server has just died (pool).
for _name in (
    'oslo_db.api',
    'oslo_db.sqlalchemy.engines',
    'oslo_db.sqlalchemy.exc_filters',
    'sqlalchemy.pool',
):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Deadlock(exceptions.DatabaseError):
    """Rolled back for others' sake (1213, 1205, 1020): do it again."""


class NotReady(exceptions.DatabaseError):
    """A Galera node is not part of its cluster yet (1047): wait."""


class Lost(exceptions.DatabaseError):
    """No connection. At a commit: nobody knows whether it was done."""


class UnknownSchema(exceptions.DatabaseError):
    """A table or column that we need is missing."""

    exit_code = exceptions.REFUSED


@dataclasses.dataclass(frozen=True, slots=True)
class Database:
    """One database."""

    #: In messages: 'the cinder database'.
    label: str
    engine: sa.Engine = dataclasses.field(repr=False)
    metadata: sa.MetaData = dataclasses.field(repr=False)

    @property
    def mysql(self) -> bool:
        """Whether it is a MySQL or MariaDB server, not a test's file."""
        return self.engine.dialect.name == 'mysql'

    @contextlib.contextmanager
    def connect(self, *, write: bool = False) -> ty.Iterator[sa.Connection]:
        """Open a transaction; it is rolled back unless it is committed.

        :raises DatabaseError: from every call on the connection, too
        """
        try:
            connection = self.engine.connect()
        except (OSError, RuntimeError, TypeError, ValueError) as e:
            # PyMySQL lets these out as they are: an unreadable ssl_ca, an
            # unknown parameter in the URL.
            raise exceptions.DatabaseError(
                f'Cannot connect to {self.label}: its URL has a parameter'
                f' that does not work here{_reason(e)}'
            ) from e
        with connection:
            if write:
                connection.execution_options(**{_WRITES: True})
            yield connection


@dataclasses.dataclass(frozen=True, slots=True)
class Connections:
    """A transaction on each database."""

    cinder: sa.Connection
    #: None (and no cells): cinder's only.
    api: sa.Connection | None
    cells: ty.Mapping[str, sa.Connection]


@dataclasses.dataclass(frozen=True, slots=True)
class Databases:
    """All databases of a cloud; a context manager that closes them."""

    cinder: Database
    #: None (and no cells): cinder's only.
    api: Database | None
    #: By the cell's name; 'cell0' and disabled cells too.
    cells: ty.Mapping[str, Database]

    def __enter__(self) -> ty.Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for database in self.all():
            database.engine.dispose()

    def all(self) -> list[Database]:
        """List them: cinder, API, cells."""
        nova = [self.api] if self.api else []
        return [self.cinder, *nova, *self.cells.values()]

    @contextlib.contextmanager
    def connect(
        self, *, write_cinder: bool = False, write_cell: str | None = None
    ) -> ty.Iterator[Connections]:
        """Open a transaction on each database, cinder's first.

        :raises DatabaseError: if one of them does not answer; an answer that
            lacks a cell is never given
        """
        with contextlib.ExitStack() as stack:
            cinder = self.cinder.connect(write=write_cinder)
            yield Connections(
                cinder=stack.enter_context(cinder),
                api=(
                    stack.enter_context(self.api.connect())
                    if self.api
                    else None
                ),
                cells={
                    name: stack.enter_context(
                        cell.connect(write=name == write_cell)
                    )
                    for name, cell in self.cells.items()
                },
            )

    def check_schema(self) -> None:
        """Compare the servers' columns with those that we use.

        :raises UnknownSchema: naming the first column that is missing
        :raises DatabaseError: naming a missing SELECT privilege
        """
        for database in self.all():
            with database.connect() as connection:
                for table in database.metadata.sorted_tables:
                    # Rather than information_schema, which hides what we
                    # have no privilege for.
                    connection.execute(sa.select(table).where(sa.false()))


def open_databases(urls: config.Urls) -> Databases:
    """Open cinder's, nova's API and every cell's database.

    Only the API database is asked (for its cell_mappings). Without its URL
    only cinder's is opened.

    :raises DatabaseError: if it cannot be
    :raises ConfigError: if a URL is of a kind that osc-drp does not know
    """
    cinder = _database('the cinder database', urls.cinder, tables.CINDER)
    if urls.nova_api is None:
        return Databases(cinder, None, {})
    api = _database('the nova API database', urls.nova_api, tables.API)
    cells = {}
    for name, connection in _cell_mappings(api):
        label = f"the database of cell '{name}'"
        cells[name] = _database(label, urls.cell(connection), tables.CELL)
    if not cells:
        raise exceptions.DatabaseError(
            f'{_upper(api.label)} has no cells: is it the right one?'
        )
    return Databases(cinder, api, cells)


def when_ready(work: ty.Callable[[], _Result]) -> _Result:
    """Read something, once the Galera nodes are part of their cluster.

    :raises NotReady: one still is not, after a minute of waiting for it
    """
    until = _clock() + PATIENCE
    while True:
        try:
            return work()
        except NotReady as e:
            if _clock() + PAUSE > until:
                raise
            LOG.warning('%s: waiting for it', e)
            _sleep(PAUSE)


def now(connection: sa.Connection) -> datetime.datetime:
    """Ask a database for its time: UTC, in whole seconds."""
    utc = sa.func.utc_timestamp(type_=sa.DateTime)
    return connection.execute(sa.select(utc)).scalar_one()


def _cell_mappings(api: Database) -> list[tuple[str, str]]:
    table = tables.cell_mappings
    statement = sa.select(
        table.c.uuid, table.c.name, table.c.database_connection
    ).order_by(table.c.id)
    with api.connect() as connection:
        found = connection.execute(statement).all()
    # A name is no key in nova: it may be NULL or used twice.
    names = [row.name for row in found]
    cells = []
    for row in found:
        unique = row.name and row.name != CELL0 and names.count(row.name) == 1
        name = row.name if unique else row.uuid
        if row.uuid == CELL0_UUID:
            name = CELL0
        cells.append((name, row.database_connection or ''))
    return cells


def _database(label: str, url: str, metadata: sa.MetaData) -> Database:
    made = _known_url(label, url)
    # Parameters of the URL win.
    defaults = {
        'connect_timeout': _CONNECT_TIMEOUT,
        'read_timeout': _READ_TIMEOUT,
    }
    mysql = made.get_backend_name() == 'mysql'
    engine = db_engines.create_engine(
        made,
        mysql_sql_mode='TRADITIONAL' if mysql else None,
        max_pool_size=5,
        max_overflow=5,
        max_retries=0,
        thread_checkin=False,
        connection_parameters='&'.join(
            f'{name}={value}'
            for name, value in defaults.items()
            if mysql and name not in made.query
        ),
    )
    database = Database(label, engine, metadata)
    listen = sa.event.listen
    listen(engine, 'connect', _set_up_mysql if mysql else _set_up_sqlite)
    if not mysql:
        listen(engine, 'begin', _begin_sqlite)
    # oslo.db's handler lets some errors out as they are, past the next one:
    # ours takes its place, and asks it.
    sa.event.remove(engine, 'handle_error', exc_filters.handler)
    listen(
        engine, 'handle_error', lambda context: _translate(database, context)
    )
    return database


def _known_url(label: str, url: str) -> sa.URL:
    """Parse a URL; PyMySQL, which we bring, replaces any other driver."""
    try:
        made = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # The exception quotes the URL, or a part of its password.
        raise exceptions.ConfigError(
            f'The URL of {label} is not a database URL'
        ) from None
    kind = made.get_backend_name()
    if kind in ('mysql', 'mariadb'):
        return made.set(drivername='mysql+pymysql')
    if kind != 'sqlite':
        raise exceptions.ConfigError(
            f'{_upper(label)} is of the kind {kind}: osc-drp knows MariaDB'
            ' and MySQL only'
        )
    return made


def _set_up_mysql(dbapi: ty.Any, record: object) -> None:
    """READ COMMITTED: what a row lock waited for is seen afterwards."""
    with dbapi.cursor() as cursor:
        cursor.execute(
            'SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED'
        )
        cursor.execute(
            f'SET SESSION lock_wait_timeout = {_LOCK_TIMEOUT},'
            f' innodb_lock_wait_timeout = {_LOCK_TIMEOUT}'
        )
        # Galera: read what any node committed.
        if cursor.execute("SHOW VARIABLES LIKE 'wsrep_on'"):
            if cursor.fetchone()[1] == 'ON':
                cursor.execute('SET SESSION wsrep_sync_wait = 1')


def _set_up_sqlite(dbapi: ty.Any, record: object) -> None:
    """Give a test's file the functions that we use of MySQL."""
    dbapi.create_function('utc_timestamp', 0, _utc_timestamp)
    dbapi.create_function('sha2', 2, _sha2, deterministic=True)


def _utc_timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M:%S')


def _sha2(text: str | None, bits: int) -> str | None:
    if text is None:
        return None
    return hashlib.new(f'sha{bits}', text.encode()).hexdigest()


def _begin_sqlite(connection: sa.Connection) -> None:
    """SQLite has no row locks: a writer locks the file when it begins."""
    if connection.get_execution_options().get(_WRITES):
        # oslo.db's listener came first, with a plain BEGIN.
        connection.exec_driver_sql('ROLLBACK')
        connection.exec_driver_sql('BEGIN IMMEDIATE')


def check_writable(database: Database, connection: sa.Connection) -> None:
    """Prove that the server takes writes at all.

    :raises DatabaseError: it is read-only
    """
    # A number; a word in MariaDB 12.
    found = connection.scalar(sa.text('SELECT @@global.read_only'))
    if str(found) not in ('0', 'OFF'):
        raise exceptions.DatabaseError(_read_only(database.label))


# Errors


def _translate(database: Database, context: sa.ExceptionContext) -> None:
    """Say it in our own words (an event of SQLAlchemy's).

    oslo.db's filters classify what they know, deadlocks of Galera and lost
    connections above all (oslo.db 18.1.1 sqlalchemy/exc_filters.py).
    """
    if not database.mysql:
        # A file is never lost (and oslo.db's listeners fail if it is).
        context.is_disconnect = False
    if context.sqlalchemy_exception is None:
        # No error of the database: an interrupt, a bug.
        return
    try:
        known = exc_filters.handler(context)
    except sa.exc.SQLAlchemyError as e:
        known = e
    if not context.is_pre_ping:
        raise _explain(
            database, context.original_exception, known, context.is_disconnect
        )


_DEADLOCKS = (1020, 1205, 1213)
_READ_ONLY = (1290, 1792, 1836)
#: The server is going down, or it was told to end us.
_GOING = (1053, 1077, 1152, 1317, 1927, 2006, 2013)

_SENTENCES = {
    1040: '{where} has no connection left for us ({label})',
    1044: '{where} does not let the user {user} use the database {name}',
    1045: 'Wrong user or password: {where} refuses {user} ({label})',
    1049: '{where} has no database {name} ({label})',
    1130: '{where} does not accept connections from this machine ({label})',
    1698: 'Wrong user or password: {where} refuses {user} ({label})',
    3159: '{where} wants TLS, which the URL does not ask for ({label})',
}


def _explain(
    database: Database,
    error: BaseException,
    known: BaseException | None,
    disconnected: bool,
) -> exceptions.DatabaseError:
    code, text = _code(error)
    label = database.label
    where = _where(database.engine.url)
    if code in _DEADLOCKS or 'database is locked' in text:
        return Deadlock(f'Others hold rows of {label} that we need')
    if code == 1047:
        return NotReady(f'The Galera node at {where} is not ready ({label})')
    if code in _READ_ONLY or 'readonly database' in text:
        return exceptions.DatabaseError(_read_only(label))
    if code in (1142, 1143):
        return exceptions.DatabaseError(_missing_grant(label, text))
    if missing := _missing_column(text):
        return _unknown_schema(label, missing)
    if code in _SENTENCES:
        sentence = _SENTENCES[code].format(
            where=f'The server at {where}',
            label=label,
            user=f"'{database.engine.url.username}'",
            name=f"'{database.engine.url.database}'",
        )
        return exceptions.DatabaseError(sentence)
    if code in (2002, 2003) or 'unable to open database' in text:
        reason = _reason(getattr(error, 'original_exception', None))
        return Lost(f'Cannot connect to {label} at {where}{reason}')
    if disconnected or code in _GOING:
        return Lost(f'The connection to {label} at {where} was lost')
    kind = f'error {code}' if code else type(known or error).__name__
    return exceptions.DatabaseError(f'{_upper(label)} at {where}: {kind}')


def _code(error: BaseException) -> tuple[int, str]:
    """Take number and text out of PyMySQL's (or SQLite's) error."""
    first, *rest = error.args or ('',)
    if isinstance(first, int):
        return first, str(rest[0]) if rest else ''
    return 0, str(first)


def _where(url: sa.URL) -> str:
    if url.get_backend_name() == 'sqlite':
        return str(url.database)
    socket = url.query.get('unix_socket')
    return str(socket or f'{url.host}:{url.port or 3306}')


def _reason(error: BaseException | None) -> str:
    """Say why in parentheses, without the values of the URL."""
    if isinstance(error, OSError) and error.strerror:
        return f' ({error.strerror})'
    return f' ({type(error).__name__})' if error else ''


def _missing_grant(label: str, text: str) -> str:
    # "UPDATE command denied to user 'u'@'h' for column 'status' in table
    # 'volumes'", and "... for table `cinder`.`volumes`"
    found = re.match(r'(.+?) command denied .*? for (.*)', text)
    if not found:
        return f'A privilege is missing on {label}'
    what = re.sub(r'[`\'"]', '', found[2])
    return f'The privilege {found[1]} is missing on {label}: {what}'


def _missing_column(text: str) -> str | None:
    found = re.search(
        r"Unknown column '([^']+)'|Table '([^']+)' doesn't exist"
        r'|no such (?:column|table): (\S+)',
        text,
    )
    return next(filter(None, found.groups()), None) if found else None


def _unknown_schema(label: str, missing: str) -> UnknownSchema:
    return UnknownSchema(
        f'{_upper(label)} has no {missing}: it is of a release that osc-drp'
        ' does not know'
    )


def _read_only(label: str) -> str:
    return f'{_upper(label)} is read-only: is it a replica?'


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
