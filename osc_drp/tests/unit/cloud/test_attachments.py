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

"""`drp attachments save` and `show`, from the command line to the file."""

import io
import logging
import os
import pathlib
import tempfile
import unittest
from unittest import mock

from openstackclient import shell

from osc_drp.engine import facts
from osc_drp import mapfile
from osc_drp.tests.unit.cloud import fakes


class Case(unittest.TestCase):
    """Runs the real openstack program in this process."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = str(self.directory / 'map.json')
        self.server = fakes.Server()
        self.addCleanup(self.server.close)
        cloud = self.server.cloud
        self.web = cloud.add_server(1, 'web1')
        self.data = cloud.add_volume(101)
        self.log = cloud.add_volume(102)
        cloud.attach(self.web, self.log, 202, '/dev/vdaa')
        cloud.attach(self.web, self.data, 201, '/dev/vdb', tag='data')
        cloud.add_row(fakes.uid(9), cloud.add_volume(103), 203)

    def run_shell(self, *argv, **environment):
        """Give exit code, standard output and standard error."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith('OS_')}
        settings = {
            'OS_AUTH_URL': f'{self.server.url}/identity/v3',
            'OS_USERNAME': 'admin',
            'OS_PASSWORD': 'right',
            'OS_PROJECT_NAME': 'admin',
            'OS_USER_DOMAIN_ID': 'default',
            'OS_PROJECT_DOMAIN_ID': 'default',
            'OS_REGION_NAME': 'RegionOne',
            'HOME': str(self.directory),
            **environment,
        }
        out, err = io.StringIO(), io.StringIO()
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        with (
            mock.patch.dict(os.environ, {**keep, **settings}, clear=True),
            mock.patch('sys.stdout', out),
            mock.patch('sys.stderr', err),
        ):
            app = shell.OpenStackShell()
            app.stdout, app.stderr = out, err
            try:
                code = app.run(['drp', 'attachments', *argv])
            except SystemExit as done:
                code = done.code
            finally:
                root.handlers[:] = handlers
                root.setLevel(level)
        return code, out.getvalue(), err.getvalue()


class TestSave(Case):
    def test_save_and_show(self):
        code, out, err = self.run_shell('save', self.path)
        self.assertEqual((0, ''), (code, out), err)
        saved = mapfile.read(self.path)
        self.assertIn(
            f'saved 1 servers, 3 attachments to {self.path} '
            f'(sha256 {saved.sha256})',
            err,
        )
        self.assertEqual(facts.API, saved.source)
        self.assertEqual('envvars', saved.cloud)

        # No cloud is needed any more.
        self.server.requests.clear()
        code, out, err = self.run_shell(
            'show',
            self.path,
            *('-f', 'value', '-c', 'Volume', '-c', 'Server', '-c', 'Device'),
            OS_AUTH_URL='http://127.0.0.1:1/v3',
        )
        self.assertEqual(0, code, err)
        self.assertEqual(
            f'{fakes.uid(103)} {fakes.uid(9)} /dev/vdb\n'
            f'{self.data} {self.web} /dev/vdb\n'
            f'{self.log} {self.web} /dev/vdaa\n',
            out,
        )
        self.assertEqual([], self.server.requests)
        bare = str(self.directory / 'bare')
        pathlib.Path(bare).write_text(out, encoding='utf-8')
        self.assertEqual(3, len(mapfile.read(bare, True).attachments))

    def test_all_columns(self):
        self.run_shell('save', self.path)
        _code, out, _err = self.run_shell('show', self.path, '-f', 'csv')
        self.assertEqual(
            '"Volume","Server","Device","Server Name","Root","Tag",'
            '"Delete On Termination","Multiattach","Recorded By","Ran"',
            out.splitlines()[0],
        )
        self.assertIn(
            f'"{self.data}","{self.web}","/dev/vdb","web1",False,"data",'
            'False,False,"both",True',
            out.splitlines(),
        )

    def test_to_standard_output(self):
        code, out, err = self.run_shell('save', '-')
        self.assertEqual(0, code, err)
        pathlib.Path(self.path).write_text(out, encoding='ascii')
        self.assertEqual(3, len(mapfile.read(self.path).attachments))
        self.assertIn('saved 1 servers', err)

    def test_pinned_versions_hide_nothing(self):
        code, _out, err = self.run_shell(
            'save',
            self.path,
            OS_COMPUTE_API_VERSION='2.1',
            OS_VOLUME_API_VERSION='3.0',
        )
        self.assertEqual(0, code, err)
        found = {a.volume_id: a for a in mapfile.read(self.path).attachments}
        self.assertEqual('data', found[self.data].tag)
        self.assertEqual(fakes.uid(201), found[self.data].attachment_id)

    def failed(self, words, **environment):
        code, out, err = self.run_shell('save', self.path, **environment)
        self.assertEqual((1, ''), (code, out))
        self.assertIn(words, err)
        self.assertFalse(os.path.lexists(self.path))

    def test_cell_down(self):
        self.server.cloud.lost.add(self.web)
        self.failed('the database of a cell does not answer')

    def test_not_admin(self):
        self.server.cloud.admin = False
        self.failed("cloud 'envvars': user is not an administrator")

    def test_keystone_down(self):
        self.failed(
            "cloud 'envvars': keystone does not answer",
            OS_AUTH_URL='http://127.0.0.1:1/v3',
        )

    def test_existing_file_before_anything_slow(self):
        pathlib.Path(self.path).write_text('mine', encoding='ascii')
        code, _out, err = self.run_shell('save', self.path)
        self.assertEqual(1, code)
        self.assertIn('already exists', err)
        self.assertEqual([], self.server.requests)

    def test_no_file_named(self):
        self.assertEqual(2, self.run_shell('save')[0])

    def test_debug_shows_no_secret(self):
        code, _out, err = self.run_shell('save', '--debug', self.path)
        self.assertEqual(0, code)
        self.assertIn('REQ: curl', err)
        for word in (fakes.SECRET, 'token-1234567890', "'right'"):
            self.assertNotIn(word, err)


class TestShow(Case):
    def test_bad_map(self):
        pathlib.Path(self.path).write_text('{}', encoding='ascii')
        code, out, err = self.run_shell('show', self.path)
        self.assertEqual((1, ''), (code, out))
        self.assertIn('it is not a map', err)
