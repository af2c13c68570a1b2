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

import pathlib
import textwrap
import traceback
from unittest import mock

import fixtures
from oslo_config import cfg
import sqlalchemy as sa
import testtools

from osc_drp import exceptions
from osc_drp.db import config

DEFAULT = 'mysql+pymysql://nova:p%40ss@db1:3307/nova?ssl_ca=/ca.pem&charset=u'


class TestTemplate(testtools.TestCase):
    """As nova's objects/cell_mapping.py fills it."""

    def test_plain_url_stays(self) -> None:
        url = 'mysql+pymysql://a:b@c/d'
        self.assertEqual(url, config.fill_template(url, None))
        self.assertEqual(url, config.fill_template(url, DEFAULT))

    def test_all_fields(self) -> None:
        template = (
            '{scheme}://{username}:{password}@{hostname}:{port}/{path}_cell1'
            '?{query}#{fragment}'
        )
        self.assertEqual(
            'mysql+pymysql://nova:p%40ss@db1:3307/nova_cell1'
            '?ssl_ca=/ca.pem&charset=u#f',
            config.fill_template(template, f'{DEFAULT}#f'),
        )

    def test_several_hosts(self) -> None:
        default = 'mysql://u1:p1@h1,u2:p2@h2:3307/nova'
        self.assertEqual(
            'mysql://u1:p1@h2:3307/x',
            config.fill_template(
                'mysql://{username1}:{password1}@{hostname2}:{port2}/x',
                default,
            ),
        )

    def test_nothing_to_fill_from(self) -> None:
        error = self.assertRaises(
            exceptions.ConfigError, config.fill_template, '{scheme}', None
        )
        self.assertIn('[database] connection', str(error))

    def test_unknown_field(self) -> None:
        for template in ('{what}', '{', '{0}', '{password1}'):
            error = self.assertRaises(
                exceptions.ConfigError,
                config.fill_template,
                template,
                DEFAULT,
            )
            self.assertNotIn('p%40ss', str(error))

    def test_a_password_that_looks_like_a_port(self) -> None:
        error = self.assertRaises(
            exceptions.ConfigError,
            config.fill_template,
            '{port}',
            'mysql://nova:S3CRET/x@db/nova',
        )
        told = ''.join(traceback.format_exception(error))
        self.assertNotIn('S3CRET', told)


class TestLoad(testtools.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.EnvironmentVariable('HOME', str(self.path)))
        self.patch(config, 'DRP_CONF', ('~/.config/osc-drp/osc-drp.conf',))
        self.nova = self.file(
            'nova.conf',
            f"""
            [DEFAULT]
            my_ip = 192.0.2.7
            debug = true
            [database]
            connection = {DEFAULT}
            [api_database]
            connection = mysql+pymysql://api:x@$my_ip/nova_api
            """,
        )
        self.cinder = self.file(
            'cinder.conf',
            """
            [database]
            connection = mysql+pymysql://cinder:y@db1/cinder
            max_retries = -1
            """,
        )

    def file(self, name: str, text: str) -> str:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return str(path)

    def load(self, drp: str | None = None) -> config.Urls:
        return config.load([self.nova], [self.cinder], drp)

    def refuse(self, *words: str, drp: str | None = None) -> None:
        error = self.assertRaises(exceptions.ConfigError, self.load, drp)
        for word in words:
            self.assertIn(word, str(error))
        # what --debug prints has it all
        told = ''.join(traceback.format_exception(error))
        for secret in ('p%40ss', 'cinder:y', 'S3CRET'):
            self.assertNotIn(secret, told)

    def test_nobodys_home(self) -> None:
        self.refuse('~nobody-here/x', drp='~nobody-here/x')

    def test_urls(self) -> None:
        urls = self.load()
        self.assertEqual('mysql+pymysql://cinder:y@db1/cinder', urls.cinder)
        self.assertEqual(
            'mysql+pymysql://api:x@192.0.2.7/nova_api', urls.nova_api
        )
        self.assertEqual(DEFAULT, urls.nova_default)
        self.assertEqual(
            'mysql+pymysql://nova:p%40ss@db1:3307/c1?ssl_ca=%2Fca.pem',
            urls.cell(
                '{scheme}://{username}:{password}@{hostname}:{port}/c1'
                '?ssl_ca=/ca.pem'
            ),
        )

    def test_cinder_only(self) -> None:
        drp = self.file(
            'osc-drp.conf',
            """
            [database]
            user = drp
            password_file = password
            """,
        )
        self.file('password', 'S3CRET')
        urls = config.load_cinder([self.cinder], drp)
        self.assertEqual('mysql+pymysql://drp:S3CRET@db1/cinder', urls.cinder)
        self.assertEqual((None, 'Urls()'), (urls.nova_api, repr(urls)))
        error = self.assertRaises(
            exceptions.ConfigError, config.load_cinder, [self.nova + '-no']
        )
        self.assertIn('nova.conf-no', str(error))

    def test_nothing_shows(self) -> None:
        self.assertEqual('Urls()', repr(self.load()))

    def test_the_environment_does_not_count(self) -> None:
        for name in ('DATABASE', 'API_DATABASE'):
            self.useFixture(
                fixtures.EnvironmentVariable(
                    f'OS_{name}__CONNECTION', 'sqlite://'
                )
            )
        self.assertIn('cinder', self.load().cinder)

    def test_directories(self) -> None:
        self.file(
            'cinder.conf.d/10-db.conf',
            '[database]\nconnection = sqlite:///x\n',
        )
        self.assertEqual('sqlite:///x', self.load().cinder)

    def test_several_files(self) -> None:
        more = self.file('2.conf', '[database]\nconnection = sqlite:///y\n')
        urls = config.load([self.nova], [self.cinder, more], None)
        self.assertEqual('sqlite:///y', urls.cinder)

    def test_connection_parameters(self) -> None:
        for name in ('nova.conf', 'cinder.conf'):
            for group in ('database', 'api_database'):
                self.file(
                    f'{name}.d/{group}.conf',
                    f'[{group}]\nconnection_parameters = ssl_ca=/x.pem\n',
                )
        urls = self.load()
        for url in (
            urls.cinder,
            urls.nova_api,
            urls.cell('mysql+pymysql://a:b@c/d'),
        ):
            self.assertEqual('/x.pem', sa.make_url(url).query['ssl_ca'])

    def test_missing_files(self) -> None:
        self.nova = str(self.path / 'none.conf')
        self.refuse('none.conf', 'does not exist')

    def test_usual_places(self) -> None:
        with mock.patch.object(config, '_parse') as parse:
            parse.side_effect = exceptions.ConfigError('stop')
            self.assertRaises(exceptions.ConfigError, config.load)
        parse.assert_called_once_with(
            'nova', ['/etc/nova/nova.conf'], mock.ANY
        )

    def test_unreadable(self) -> None:
        # Tests may run as root, who reads all files: a directory.
        path = pathlib.Path(self.cinder)
        path.unlink()
        path.mkdir()
        self.refuse('cinder.conf')

    def test_not_permitted(self) -> None:
        denied = cfg.ConfigFilesPermissionDeniedError([self.cinder])
        with mock.patch.object(cfg.ConfigOpts, '__call__', side_effect=denied):
            self.refuse('cinder.conf', 'cannot be read')

    def test_not_a_configuration_file(self) -> None:
        self.file('cinder.conf', '[database]\nconnection S3CRET\n')
        self.refuse('cinder.conf', 'line 2')

    def test_not_utf8(self) -> None:
        (self.path / 'cinder.conf').write_bytes(b'[database]\nx = \xff\n')
        self.refuse('cinder.conf')

    def test_no_connection(self) -> None:
        self.file('cinder.conf', '[DEFAULT]\n')
        self.refuse('[database] connection', 'cinder.conf')
        self.file('cinder.conf', '[database]\nconnection = sqlite://\n')
        self.file('nova.conf', '[database]\nconnection = sqlite://\n')
        self.refuse('[api_database] connection', 'nova.conf')

    def test_unknown_substitution(self) -> None:
        self.file('cinder.conf', '[database]\nconnection = sqlite://$no\n')
        self.refuse('[database] connection', 'cinder.conf')
        url = 'mysql://nova:p$S3CRET@db/nova'
        self.file('cinder.conf', f'[database]\nconnection = {url}\n')
        self.refuse('[database] connection', 'cinder.conf')

    def test_not_a_url(self) -> None:
        self.file('cinder.conf', '[database]\nconnection = S3CRET\n')
        self.refuse('[database] connection', 'cinder.conf')
        url = 'mysql+pymysql://nova:p@ss:S3CRET@db/nova'
        self.file('cinder.conf', f'[database]\nconnection = {url}\n')
        self.refuse('[database] connection', 'cinder.conf')

    # osc-drp.conf

    def drp(self, text: str, password: str | None = 'S3CR/ET\n') -> str:
        if password is not None:
            self.file('password', password)
        return self.file('osc-drp.conf', text)

    def test_own_user_everywhere(self) -> None:
        drp = self.drp('[database]\nuser = drp\npassword_file = password\n')
        urls = self.load(drp)
        for url in (
            urls.cinder,
            urls.nova_api,
            urls.cell('{scheme}://{username}:{password}@{hostname}/c1'),
            urls.cell('mysql+pymysql://nova:z@h/c2'),
        ):
            made = sa.make_url(url)
            self.assertEqual(
                ('drp', 'S3CR/ET'), (made.username, made.password)
            )
        self.assertEqual('Urls()', repr(urls))

    def test_own_file_in_the_usual_place(self) -> None:
        secret = self.file('secret', 'S3CRET')
        self.file(
            '.config/osc-drp/osc-drp.conf',
            f'[database]\nuser = drp\npassword_file = {secret}\n',
        )
        self.assertEqual('drp', self.load().user)

    def test_own_file_without_user(self) -> None:
        self.assertIsNone(self.load(self.drp('[database]\n')).user)

    def test_own_file_is_incomplete(self) -> None:
        self.refuse('nowhere.conf', 'does not exist', drp='/nowhere.conf')
        for text, word in (
            ('user = drp', '[database] password_file'),
            ('password_file = password', '[database] user'),
        ):
            drp = self.drp(f'[database]\n{text}\n')
            self.refuse(word, 'osc-drp.conf', drp=drp)

    def test_password_file(self) -> None:
        text = '[database]\nuser = drp\npassword_file = password\n'
        drp = self.drp(text, password=None)
        self.refuse('password_file', 'osc-drp.conf', 'No such', drp=drp)
        self.refuse('is empty', drp=self.drp(text, password='\n'))
        (self.path / 'password').write_bytes(b'\xff')
        self.refuse('not UTF-8', drp=drp)
