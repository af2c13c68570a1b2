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

"""Whole commands: the shell, files, and databases in SQLite files."""

import io
import json
import pathlib
import typing as ty
from unittest import mock

import fixtures
from openstackclient import shell
import testtools

from osc_drp.tests.unit.db import fixture


class CommandTest(testtools.TestCase):
    """A cloud without servers, all services up."""

    def setUp(self) -> None:
        super().setUp()
        self.cloud = self.useFixture(fixture.CloudFixture())
        self.dir = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(
            fixtures.EnvironmentVariable('XDG_STATE_HOME', str(self.dir))
        )
        self.cloud.compute()
        self.cloud.cinder_service()

    def configs(self) -> list[str]:
        nova, cinder = self.dir / 'nova.conf', self.dir / 'cinder.conf'
        urls = self.cloud.urls
        nova.write_text(f'[api_database]\nconnection = {urls.nova_api}\n')
        cinder.write_text(f'[database]\nconnection = {urls.cinder}\n')
        return [
            f'--nova-config-file={nova}',
            f'--cinder-config-file={cinder}',
        ]

    def run_shell(self, *args: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch('sys.stdout', out),
            mock.patch('sys.stderr', err),
        ):
            openstack = shell.OpenStackShell()
            openstack.stdout, openstack.stderr = out, err
            rc = openstack.run(list(args))
        return rc, out.getvalue(), err.getvalue()

    def drp(self, *args: str, expected: int = 0, table: bool = True) -> ty.Any:
        """Run a command on the databases; its rows, and ``self.err``."""
        rc, out, err = self.run_shell(
            'drp', *args, *self.configs(), *(('-f', 'json') * table)
        )
        self.assertEqual(expected, rc, err)
        self.err = err
        return json.loads(out) if out and table else out or None
