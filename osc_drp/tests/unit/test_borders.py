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

"""The borders inside osc-drp: who may import what, and who may write.

They keep the dangerous part small: whoever reviews what osc-drp can do to a
database reads db/write.py, whoever asks why it did so reads engine/rules.py.
"""

import ast
import pathlib
import re
import sys
import textwrap
import typing as ty
import unittest

PACKAGE = pathlib.Path(__file__).parents[2]

#: Libraries and the one directory that may import them.
HOMES = {
    'sqlalchemy': 'db/',
    'oslo_db': 'db/',
    'oslo_config': 'db/',
    'pymysql': 'db/',
    'openstack': 'cloud/',
    'keystoneauth1': 'cloud/',
    'rich': 'progress.py',
    'jinja2': 'page.py',
}
#: Pure: what they decide can be tested without a cloud.
PURE = (
    'engine/facts.py',
    'engine/kept.py',
    'engine/plan.py',
    'engine/rules.py',
    'engine/timeline.py',
    'engine/verdicts.py',
)
PURE_MAY = ('osc_drp.engine', 'osc_drp.exceptions', 'osc_drp.i18n')
#: What a command module imports inside functions only.
LAZY = (
    'osc_drp.cloud',
    'osc_drp.db',
    'osc_drp.engine',
    'osc_drp.hosts',
    'osc_drp.mapfile',
    'osc_drp.newfile',
    'osc_drp.page',
    'osc_drp.progress',
    'osc_drp.report',
    'jinja2',
    'rich',
)
WRITER = 'db/write.py'
WRITES = ('update', 'insert', 'delete')
SQL = re.compile(
    r'\s*(UPDATE|INSERT|DELETE|REPLACE|ALTER|DROP|TRUNCATE|CREATE|GRANT)\s'
)


class Import(ty.NamedTuple):
    """One imported name."""

    name: str
    line: int
    #: Outside functions, and not for the type checker alone.
    at_load: bool


def imports(tree: ast.AST) -> list[Import]:
    """Find all imports of a module."""
    found = []

    def walk(node: ast.AST, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(
                Import(a.name, node.lineno, at_load) for a in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            # the names may be modules: osc_drp + engine
            found.extend(
                Import(
                    f'{"." * node.level}{node.module or ""}.{a.name}',
                    node.lineno,
                    at_load,
                )
                for a in node.names
            )
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            at_load = False
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
            for child in node.body:
                walk(child, False)
            for child in node.orelse:
                walk(child, at_load)
            return
        for child in ast.iter_child_nodes(node):
            walk(child, at_load)

    walk(tree, True)
    return found


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or something in it."""
    return name == package or name.startswith(package + '.')


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are strings alone on a line."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }


def callers(method: str) -> set[str]:
    """List the modules that call a method of this name."""
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob('*.py')
        if 'tests' not in path.parts
        and any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == method
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }


def violations(path: str, source: str) -> list[str]:
    """List what a module does that it may not, as 'path:line what'."""
    tree = ast.parse(source)
    bad = []

    def report(line: int, what: str) -> None:
        bad.append(f'{path}:{line} {what}')

    for name, line, at_load in imports(tree):
        if name.startswith('.'):
            report(line, f'relative import {name}')
        for library, home in HOMES.items():
            if within(name, library) and not path.startswith(home):
                report(line, f'{library} outside {home}')
        if (
            path in PURE
            and name.split('.')[0] not in sys.stdlib_module_names
            and not any(within(name, p) for p in PURE_MAY)
        ):
            report(line, f'{name} in a pure module')
        if path.startswith('commands/') and at_load:
            report_lazy = [p for p in LAZY if within(name, p)]
            if report_lazy:
                report(line, f'{name} outside a function')

    texts = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == 'print':
                report(node.lineno, 'print()')
            if (
                path.startswith('db/')
                and isinstance(called, ast.Attribute | ast.Name)
                and getattr(called, 'attr', getattr(called, 'id', ''))
                in WRITES[0 if path != WRITER else 1 :]
            ):
                report(node.lineno, 'a write to a table')
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in texts
            and SQL.match(node.value)
        ):
            report(node.lineno, 'a statement that writes')
    return bad


class TestBorders(unittest.TestCase):
    """The tree as it is."""

    def test_tree(self):
        modules = [
            path
            for path in sorted(PACKAGE.rglob('*.py'))
            if path.relative_to(PACKAGE).parts[0] != 'tests'
        ]
        self.assertGreater(len(modules), 8)
        bad = []
        for path in modules:
            bad += violations(
                path.relative_to(PACKAGE).as_posix(),
                path.read_text(encoding='utf-8'),
            )
        self.assertEqual([], bad)

    def test_one_hard_reboot(self):
        """It deletes what cinder lacks, roots as well (DESIGN 2)."""
        self.assertEqual(
            {'cloud/client.py', 'engine/cleaner.py'}, callers('hard_reboot')
        )


class TestChecker(unittest.TestCase):
    """A check that finds nothing must be able to find something."""

    def find(self, path, source):
        return [
            line.partition(' ')[2]
            for line in violations(path, textwrap.dedent(source))
        ]

    def test_homes(self):
        source = 'import sqlalchemy as sa'
        self.assertEqual(
            ['sqlalchemy outside db/'], self.find('engine/x.py', source)
        )
        self.assertEqual([], self.find('db/read.py', source))
        source = """
            def connect():
                from openstack import connection
        """
        self.assertEqual(
            ['openstack outside cloud/'], self.find('commands/x.py', source)
        )
        # openstackclient is another package
        self.assertEqual(
            [],
            self.find('commands/x.py', 'from openstackclient import command'),
        )

    def test_pure(self):
        self.assertEqual(
            ['osc_drp.db.read in a pure module'],
            self.find('engine/plan.py', 'from osc_drp.db import read'),
        )
        self.assertEqual(
            [],
            self.find(
                'engine/plan.py',
                'import enum\nfrom osc_drp import exceptions\n'
                'from osc_drp.engine import facts',
            ),
        )

    def test_lazy(self):
        source = 'from osc_drp import mapfile'
        self.assertEqual(
            ['osc_drp.mapfile outside a function'],
            self.find('commands/x.py', source),
        )
        for inside in (
            f'def take_action(self):\n    {source}',
            f'if ty.TYPE_CHECKING:\n    {source}',
        ):
            self.assertEqual([], self.find('commands/x.py', inside))

    def test_writes(self):
        self.assertEqual(
            ['a write to a table'],
            self.find('db/read.py', 'x = table.update()'),
        )
        self.assertEqual([], self.find(WRITER, 'x = table.update()'))
        # nothing inserts and nothing deletes, not even the writer
        self.assertEqual(
            ['a write to a table'], self.find(WRITER, 'x = table.delete()')
        )
        self.assertEqual(
            ['a statement that writes'],
            self.find('cloud/x.py', 'x = "UPDATE volumes SET status = 1"'),
        )
        self.assertEqual(
            [], self.find('cloud/x.py', 'def f():\n    """UPDATE it."""')
        )

    def test_print(self):
        self.assertEqual(['print()'], self.find('report.py', 'print(1)'))
