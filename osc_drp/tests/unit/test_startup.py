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

"""What osc-drp costs those who only list servers.

openstackclient imports the module of every command of every plugin on every
call. So the command modules may import next to nothing.
"""

import json
import subprocess
import sys
import unittest

from osc_drp.tests.unit import test_plugin

BUDGET = 20
FORBIDDEN = (
    'alembic',
    'jinja2',
    'oslo_config',
    'oslo_db',
    'osc_drp.cloud',
    'osc_drp.db',
    'osc_drp.engine',
    'osc_drp.hosts',
    'osc_drp.mapfile',
    'osc_drp.newfile',
    'osc_drp.page',
    'osc_drp.progress',
    'osc_drp.report',
    'pymysql',
    'rich.progress',
    'sqlalchemy',
    'testtools',
)

SCRIPT = """
import importlib, importlib.metadata, json, sys, time
import openstackclient.shell
for group in importlib.metadata.entry_points().groups:
    if group.startswith('openstack.'):
        for entry in importlib.metadata.entry_points(group=group):
            if not entry.value.startswith('osc_drp.'):
                entry.load()
# the shell has imported our plugin module already: that is ours, too
before = {m for m in sys.modules if m.split('.')[0] != 'osc_drp'}
start = time.process_time()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
spent = time.process_time() - start
print(json.dumps({
    'new': sorted(set(sys.modules) - before), 'ms': round(spent * 1000, 1)}))
"""


class TestStartup(unittest.TestCase):
    """The budget, counted in modules: milliseconds depend on the machine."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        modules = ['osc_drp.plugin']
        for target in test_plugin.commands().values():
            modules.append(target.partition(':')[0])
        result = subprocess.run(
            [
                sys.executable,
                '-W',
                'ignore',
                '-c',
                SCRIPT,
                json.dumps(sorted(set(modules))),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if result.returncode:
            raise AssertionError(result.stderr)
        cls.seen = json.loads(result.stdout)

    def test_nothing_heavy(self):
        heavy = [
            name
            for name in self.seen['new']
            if any(
                name == banned or name.startswith(banned + '.')
                for banned in FORBIDDEN
            )
        ]
        self.assertEqual([], heavy)

    def test_few_modules(self):
        self.assertLessEqual(
            len(self.seen['new']), BUDGET, f'{self.seen["ms"]} ms of CPU'
        )
        self.assertIn('osc_drp.plugin', self.seen['new'])
