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

"""The databases that the real db/write.py writes to, without a server.

Its statements are few and plain: SELECTs of one table by equalities, with
and without FOR UPDATE, and UPDATEs of one row. They are carried out on the
rows of records.py, with transactions (READ COMMITTED) and row locks, some
thirty times quicker than by SQLite, so that thousands of interrupted runs
can be tried. A statement of another kind is an error, never guessed at.
"""

import collections
import contextlib
import functools
import hashlib
import operator
import typing as ty

import sqlalchemy as sa
from sqlalchemy.sql import elements
from sqlalchemy.sql import functions
from sqlalchemy.sql import operators

from osc_drp.db import engines
from osc_drp.tests.simulated import records

#: Seconds (real ones) to wait for a row lock of another thread of ours.
_PATIENCE = 5.0


class Connection:
    """A transaction on one database, for as long as it is open."""

    def __init__(self, world: ty.Any, process: ty.Any, database: str) -> None:
        self._world = world
        self._process = process
        self._records: records.Records = world.records
        self.database = database
        self._written: dict[tuple[str, ty.Any], records.Row] = {}
        self._locked: list[tuple[str, str, ty.Any]] = []

    # -- as SQLAlchemy's

    def execute(self, statement: ty.Any) -> 'Result':
        self._process.reach('sql')
        with self._records.guard:
            if isinstance(statement, sa.Update):
                return self._update(statement)
            if isinstance(statement, sa.Select):
                return self._select(statement)
        raise NotImplementedError(str(statement))

    def commit(self) -> None:
        self._process.reach('commit before')
        with self._records.guard:
            before = self._records.judge()
            for (table, row_id), row in self._written.items():
                rows = self._records.tables[self.database, table]
                old = dict(rows[row_id])
                rows[row_id].update(row)
                self._records.check_change(table, old, row)
            wrote = bool(self._written)
            new = self._records.judge() - before
            self.rollback()
            if new:
                raise records.Violation('; '.join(sorted(new)))
        if wrote:
            self._process.reach('commit after')

    def rollback(self) -> None:
        with self._records.guard:
            self._written.clear()
            for key in self._locked:
                self._records.locks.pop(key, None)
            self._locked.clear()
            self._world.unlocked.set()

    close = rollback

    # -- statements

    def _rows(self, table: str) -> ty.Iterator[records.Row]:
        for row in self._records.table(self.database, table):
            mine = self._written.get((table, row['id']))
            yield row if mine is None else mine

    def _select(self, statement: ty.Any) -> 'Result':
        columns = statement._raw_columns
        if isinstance(columns[0], functions.Function) and (
            columns[0].name == 'utc_timestamp'
        ):
            return Result([(self._world.now(),)], ('now',))
        table = _table_of(columns[0])
        where = _all(statement._where_criteria)
        found = [row for row in self._rows(table.name) if where(row)]
        if statement._for_update_arg is not None:
            for row in found:
                self._lock(table.name, row['id'])
        values = [_value_of(c) for c in columns]
        names = tuple(getattr(c, 'name', 'value') for c in columns)
        return Result([tuple(v(row) for v in values) for row in found], names)

    def _update(self, statement: ty.Any) -> 'Result':
        table = statement.table.name
        where = _all(statement._where_criteria)
        found = [row for row in self._rows(table) if where(row)]
        for row in found:
            self._lock(table, row['id'])
            self._written[table, row['id']] = {
                **row,
                **{_name(c): _bound(v) for c, v in statement._values.items()},
            }
        return Result([], (), len(found))

    def _lock(self, table: str, row_id: ty.Any) -> None:
        key = (self.database, table, row_id)
        holder = self._records.locks.get(key)
        if holder is self:
            return
        if holder is not None:
            # another lane of ours; a real server waits, too
            self._records.guard.release()
            try:
                self._world.unlocked.clear()
                self._world.unlocked.wait(_PATIENCE)
            finally:
                self._records.guard.acquire()
            if self._records.locks.get(key) is not None:
                raise engines.Deadlock(f'Others hold rows of {table}')
        self._records.locks[key] = self
        self._locked.append(key)


class Result:
    """What a statement gave."""

    def __init__(
        self,
        rows: list[tuple[ty.Any, ...]],
        names: tuple[str, ...],
        rowcount: int = -1,
    ) -> None:
        self.rowcount = rowcount
        self._rows = rows
        self._names = names

    def __iter__(self) -> ty.Iterator[ty.Any]:
        return iter(self.all())

    def all(self) -> list[ty.Any]:
        kind = _row_type(self._names)
        return [kind(*row) for row in self._rows]

    def first(self) -> ty.Any:
        return next(iter(self.all()), None)

    def scalar_one(self) -> ty.Any:
        (row,) = self._rows
        return row[0]

    def scalars(self) -> 'Result':
        return _Scalars(self._rows, self._names)


class _Scalars(Result):
    def all(self) -> list[ty.Any]:
        return [row[0] for row in self._rows]


@functools.cache
def _row_type(names: tuple[str, ...]) -> ty.Any:
    return collections.namedtuple('Row', names)


# Expressions

_Test = ty.Callable[[records.Row], bool]

_COMPARE: dict[ty.Any, ty.Callable[[ty.Any, ty.Any], bool]] = {
    operators.eq: lambda a, b: (
        a is not None and b is not None and operator.eq(a, b)
    ),
    operators.ne: lambda a, b: (
        a is not None and b is not None and operator.ne(a, b)
    ),
    operators.is_: lambda a, b: a is b or a == b,
    operators.is_not: lambda a, b: not (a is b or a == b),
    operators.in_op: lambda a, b: a is not None and a in b,
    operators.not_in_op: lambda a, b: a is not None and a not in b,
}


def _all(criteria: ty.Iterable[ty.Any]) -> _Test:
    tests = [_test(one) for one in criteria]
    return lambda row: all(test(row) for test in tests)


def _test(expression: ty.Any) -> _Test:
    if isinstance(expression, elements.Grouping):
        return _test(expression.element)
    if isinstance(expression, elements.BooleanClauseList):
        tests = [_test(one) for one in expression.clauses]
        join = {operators.and_: all, operators.or_: any}[expression.operator]
        return lambda row: join(test(row) for test in tests)
    if isinstance(expression, elements.BinaryExpression):
        name = expression.left.name
        compare = _COMPARE[expression.operator]
        value = _bound(expression.right)
        return lambda row: compare(row[name], value)
    raise NotImplementedError(str(expression))


def _bound(value: ty.Any) -> ty.Any:
    if isinstance(value, elements.Grouping):
        return _bound(value.element)
    if isinstance(value, elements.BindParameter):
        return value.effective_value
    if isinstance(value, elements.Null):
        return None
    if isinstance(value, elements.True_ | elements.False_):
        return isinstance(value, elements.True_)
    raise NotImplementedError(str(value))


def _name(column: ty.Any) -> str:
    return column if isinstance(column, str) else str(column.name)


def _table_of(column: ty.Any) -> sa.Table:
    if isinstance(column, functions.Function):
        return _table_of(next(iter(column.clauses)))
    return ty.cast(sa.Table, column.table)


def _value_of(column: ty.Any) -> ty.Callable[[records.Row], ty.Any]:
    if not isinstance(column, functions.Function):
        name = column.name
        return lambda row: row[name]
    if column.name != 'sha2':
        raise NotImplementedError(str(column))
    argument = next(iter(column.clauses)).name

    def digest(row: records.Row) -> str | None:
        found = row[argument]
        return found and hashlib.sha256(found.encode()).hexdigest()

    return digest


class Databases:
    """Stands in for engines.Databases.

    :param nova: False: cinder's database is all that we may use
    """

    def __init__(
        self, world: ty.Any, process: ty.Any, nova: bool = True
    ) -> None:
        self._world = world
        self._process = process
        self._nova = nova

    def all(self) -> list[ty.Any]:
        return []

    @contextlib.contextmanager
    def connect(
        self, *, write_cinder: bool = False, write_cell: str | None = None
    ) -> ty.Iterator[engines.Connections]:
        self._process.reach('connect')
        made: dict[str, ty.Any] = {
            name: Connection(self._world, self._process, name)
            for name in (records.CINDER, records.API, *records.CELLS)
        }
        cells = records.CELLS if self._nova else ()
        try:
            yield engines.Connections(
                cinder=made[records.CINDER],
                api=made[records.API] if self._nova else None,
                cells={cell: made[cell] for cell in cells},
            )
        finally:
            for connection in made.values():
                connection.close()
