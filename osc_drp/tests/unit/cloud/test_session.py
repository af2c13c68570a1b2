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

import io
import logging
import socket
import threading
import time
import types
import unittest
from unittest import mock

from keystoneauth1 import session as ksa_session
from openstack.config import loader

from osc_drp.cloud import act
from osc_drp.cloud import client
from osc_drp.cloud import read
from osc_drp.cloud import session
from osc_drp.engine import ports
from osc_drp import exceptions
from osc_drp.tests.unit.cloud import fakes


class Manager:
    """What osc-lib's client manager does on demand."""

    def __init__(self, region):
        self._cli_options = region
        self._auth_required = False
        self.session = None

    def setup_auth(self):
        assert self._auth_required
        self.session = self._cli_options.get_session()


def application(url, password='right', **more):
    """A command's self.app, for a cloud at an address."""
    region = loader.OpenStackConfig(
        load_yaml_config=False, load_envvars=False
    ).get_one(
        auth_type='password',
        auth={
            'auth_url': url,
            'username': 'admin',
            'password': password,
            'project_name': 'admin',
            'user_domain_id': 'default',
            'project_domain_id': 'default',
        },
        region_name='RegionOne',
        **more,
    )
    region._name = 'blue'
    return types.SimpleNamespace(
        client_manager=Manager(region),
        options=types.SimpleNamespace(debug=None),
    )


class Case(unittest.TestCase):
    def setUp(self):
        self.server = fakes.Server()
        self.addCleanup(self.server.close)
        self.sleeps = []
        patch = mock.patch.object(session.time, 'sleep', self.sleeps.append)
        patch.start()
        self.addCleanup(patch.stop)

    def nobody(self):
        """Give a port where nobody listens, and nobody else will."""
        held = socket.socket()
        self.addCleanup(held.close)
        held.bind(('127.0.0.1', 0))
        return held.getsockname()[1]

    def connect(self, **more):
        app = application(f'{self.server.url}/identity/v3', **more)
        api = session.connect(app)
        self.addCleanup(app.client_manager.session.session.close)
        return api


def say(status, body=None, headers=()):
    """Make a trick: answer so, whatever was asked."""

    def trick(handler):
        handler.say(status, body if body is not None else {}, headers)
        return True

    return trick


def hang_up(handler):
    """Make a trick: close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


class TestConnect(Case):
    def test_connect(self):
        api = self.connect()
        self.assertEqual('blue', api.cloud)
        self.assertEqual('me', api.user_id)
        self.assertEqual((2, 104), api.compute_max)

    def test_timeouts_and_pool(self):
        api = self.connect()
        self.assertEqual(
            (session.CONNECT_TIMEOUT, session.READ_TIMEOUT),
            api._session.timeout,
        )
        mounted = api._session.session.get_adapter(self.server.url)
        self.assertIsInstance(mounted, ksa_session.TCPKeepAliveAdapter)
        self.assertEqual(session.POOL, mounted._pool_maxsize)

    def test_timeout_of_each_request(self):
        api = self.connect()
        sent = []
        request = api._session.session.request

        def listen(method, url, **kwargs):
            sent.append((method, kwargs['timeout']))
            return request(method, url, **kwargs)

        with mock.patch.object(api._session.session, 'request', listen):
            api.get('compute', 'os-services', '2.1')
            api.post('compute', 'servers/x/action', {'os-start': None})
        self.assertEqual(('GET', (10.0, 60.0)), sent[-2])
        self.assertEqual(('POST', (10.0, 90.0)), sent[-1])

    def test_wrong_password(self):
        with self.assertRaisesRegex(
            exceptions.ApiError,
            r"^cloud 'blue': keystone at http://.* refuses user or password",
        ):
            self.connect(password='wrong')

    def test_keystone_down(self):
        with self.assertRaisesRegex(
            exceptions.ApiError,
            r"^cloud 'blue': keystone does not answer at http://127.0.0.1:1/v3"
            r' \(Connection refused\): ',
        ):
            session.connect(application('http://127.0.0.1:1/v3'))

    def test_keystone_ill(self):
        """It says so, or something between us and it answers instead."""
        sick = self.server.keystone_says
        for status, body, words in (
            (503, b'<html>', r'does not answer at http:.*503'),
            (200, b'<html>', r'at http://.*/v3 gives no token: '),
        ):
            sick[:] = [(status, body)] * 3
            with self.assertRaisesRegex(
                exceptions.ApiError, f"^cloud 'blue': keystone {words}"
            ):
                self.connect()

    def test_incomplete_settings(self):
        app = application(f'{self.server.url}/identity/v3')
        app.client_manager.setup_auth = mock.Mock(
            side_effect=session.osc_exceptions.CommandError(
                'Missing value auth-url\nrequired for auth plugin password'
            )
        )
        with self.assertRaisesRegex(
            exceptions.ApiError,
            "^cloud 'blue': cannot log in: Missing value auth-url required",
        ):
            session.connect(app)

    def test_has(self):
        api = self.connect()
        self.assertIs(True, api.has('network'))
        self.assertIs(True, api.has('block-storage'))
        self.assertIs(False, api.has('instance-ha'))

    def test_service_missing(self):
        api = self.connect()
        with self.assertRaisesRegex(
            exceptions.ApiError, "catalog has no instance-ha: "
        ):
            api.get('instance-ha', 'segments')

    def test_service_down(self):
        port = self.nobody()
        api = self.connect(
            compute_endpoint_override=f'http://127.0.0.1:{port}/v2.1'
        )
        with self.assertRaisesRegex(
            exceptions.ApiError,
            rf"cloud 'blue': compute does not answer at http://127.0.0.1:"
            rf'{port}/v2.1',
        ):
            api.get('compute', 'servers', '2.1')

    def test_pool_is_quiet(self):
        """More threads than requests' ten connections: no warning."""
        for n in range(60):
            self.server.cloud.add_server(n + 1)
            self.server.cloud.attach(
                fakes.uid(n + 1),
                self.server.cloud.add_volume(n + 101),
                n + 201,
            )
        api = self.connect()
        with self.assertNoLogs('urllib3', logging.WARNING):
            seen = read.observe(api)
        self.assertEqual(60, len(seen.mappings))

    def test_down_while_its_versions_are_asked_for(self):
        """It comes back, and is not taken for one without microversions."""
        for answer in (None, 502, 503):
            with self.subTest(answer):
                api = self.connect()
                self.sleeps.clear()
                self.server.down = {'compute': answer}
                with self.assertRaises(exceptions.Away) as caught:
                    api.compute_max
                self.assertIn(
                    f'compute at {self.server.url}/compute/v2.1: ',
                    caught.exception.what,
                )
                self.assertEqual([1.0, 2.0, 4.0], self.sleeps)
                self.server.down = {}
                self.assertEqual((2, 104), api.compute_max)

    def test_no_versions_at_all(self):
        """It answers, but that is no nova of ours: waiting helps nobody."""
        self.server.down = {'compute': 200}
        with self.assertRaisesRegex(
            exceptions.ApiError, 'does not say which versions'
        ) as caught:
            self.connect().compute_max
        self.assertNotIsInstance(caught.exception, exceptions.Away)
        self.assertEqual([], self.sleeps)


class TestConnectWhenUp(Case):
    """Nothing is done before keystone, nova and cinder answer."""

    def setUp(self):
        super().setUp()
        self.said = []
        #: What happens at each pause; then nothing any more.
        self.pauses = []
        self.slept = 0.0
        clock = mock.Mock(
            monotonic=lambda: 100.0 + self.slept, sleep=self.sleep
        )
        patch = mock.patch.object(ports, 'RealClock', lambda: clock)
        patch.start()
        self.addCleanup(patch.stop)

    def sleep(self, seconds):
        self.slept += seconds
        if self.pauses:
            self.pauses.pop(0)()

    def when_up(self, wait=60.0, **more):
        app = application(f'{self.server.url}/identity/v3', **more)
        cloud = client.connect_when_up(app, wait, self.said.append)
        self.addCleanup(app.client_manager.session.session.close)
        return cloud

    def down(self, **services):
        self.server.down = services

    def back(self):
        self.server.keystone_up = True
        self.server.down = {}

    def test_at_once(self):
        self.assertEqual((2, 104), self.when_up().api.compute_max)
        self.assertEqual(([], 0.0), (self.said, self.slept))

    def test_waits_for_keystone(self):
        self.server.keystone_up = False
        self.pauses = [lambda: None, self.back]
        self.when_up()
        [line] = self.said
        self.assertIn(
            f'waiting for keystone at {self.server.url}/identity/v3: ', line
        )
        self.assertEqual(8.0, self.slept)

    def test_says_for_what_it_waits_in_turn(self):
        self.server.keystone_says = [(503, b'<html>')]
        self.down(compute=503, volume=None)
        self.pauses = [lambda: None, lambda: self.down(volume=None), self.back]
        cloud = self.when_up()
        self.assertEqual(
            [
                'waiting for keystone at',
                'waiting for compute at',
                'waiting for block-storage at',
            ],
            [' '.join(line.split()[:4]) for line in self.said],
        )
        # what nova's load balancer gave for its versions is forgotten
        self.assertEqual((2, 104), cloud.api.compute_max)
        # and nobody is as impatient later
        self.assertEqual(session.RETRIES, cloud.api.retries)

    def test_waits_for_a_cells_database(self):
        lost = {'binary': 'nova-compute', 'host': 'far9', 'status': 'UNKNOWN'}
        services = self.server.cloud.nova_services
        services.append(lost)
        self.pauses = [lambda: services.remove(lost)]
        self.when_up()
        self.assertEqual(
            ['waiting for the database of a cell, the one of host far9'],
            self.said,
        )

    def test_in_vain(self):
        self.down(volume=503)
        with self.assertRaisesRegex(
            exceptions.Refused,
            r'^not ready after 60 s: block-storage at http://.*: .*503',
        ):
            self.when_up()
        self.assertEqual(60.0, self.slept)
        self.assertEqual([], self.server.sent('POST', 'servers'))

    def test_what_no_waiting_helps(self):
        self.server.cloud.admin = False
        for words, options in (
            ('refuses user or password', {'password': 'wrong'}),
            ('not an administrator', {}),
        ):
            with self.subTest(words):
                with self.assertRaisesRegex(exceptions.ApiError, words) as c:
                    self.when_up(**options)
                self.assertEqual(1, c.exception.exit_code)
                self.assertEqual(([], 0.0), (self.said, self.slept))

    def test_interrupted(self):
        def ctrl_c():
            raise KeyboardInterrupt

        self.server.keystone_up = False
        self.pauses = [ctrl_c]
        with self.assertRaises(KeyboardInterrupt):
            self.when_up()


class TestClock(Case):
    def test_date(self):
        api = self.connect()
        answer = api.get('compute', 'os-services', '2.1')
        self.assertEqual('2026-11-22T12:00:00Z', answer.date)
        self.assertEqual('2026-11-22T12:00:0', api.now[:18])

    def test_it_goes_on(self):
        api = self.connect()
        api.get('compute', 'os-services', '2.1')
        later = time.monotonic() + 100
        with mock.patch.object(session.time, 'monotonic', lambda: later):
            self.assertEqual('2026-11-22T12:01', api.now[:16])

    def test_without_date(self):
        """nova and cinder under uwsgi send none."""
        self.server.date = False
        api = self.connect()
        answer = api.get('compute', 'os-services', '2.1')
        self.assertIsNone(answer.date)
        self.assertEqual('2026-11-22T11:00:0', api.now[:18])

    def test_nobody_tells(self):
        api = self.connect()
        api._clock = None
        with self.assertRaisesRegex(exceptions.ApiError, 'tells the time'):
            api.now


class TestVersions(Case):
    def headers(self):
        return self.server.requests[-1][2]

    def test_given(self):
        api = self.connect()
        api.get('compute', 'os-services', '2.53')
        self.assertEqual(
            'compute 2.53', self.headers()['OpenStack-API-Version']
        )
        api.get('block-storage', 'os-services', '3.48')
        self.assertEqual(
            'volume 3.48', self.headers()['OpenStack-API-Version']
        )

    def test_pins_lose(self):
        """OS_COMPUTE_API_VERSION=2.1 hides tags and attachment ids."""
        api = self.connect(
            compute_api_version='2.1', compute_default_microversion='2.1'
        )
        api.get('compute', 'os-services', '2.53')
        self.assertEqual(
            'compute 2.53', self.headers()['OpenStack-API-Version']
        )

    def test_lowered(self):
        api = self.connect()
        self.assertEqual('2.90', api.version('compute', '2.90'))
        self.assertEqual('2.104', api.version('compute', '2.200'))
        self.assertEqual('3.71', api.version('block-storage', '3.100'))

    def test_network(self):
        api = self.connect()
        api.get('network', 'agents')
        self.assertTrue(self.server.sent('GET', '/network/v2.0/agents'))


class TestErrors(Case):
    def setUp(self):
        super().setUp()
        self.api = self.connect()
        self.api.get('compute', 'os-services', '2.1')
        self.server.requests.clear()

    def get(self):
        return self.api.get('compute', 'os-services', '2.1')

    def post(self):
        return self.api.post('compute', 'servers/x/action', {'os-start': None})

    def refused(self, kind, words, call):
        with self.assertRaises(kind) as caught:
            call()
        self.assertIs(kind, type(caught.exception))
        self.assertIn(words, str(caught.exception))
        self.assertNotIn('\n', str(caught.exception))

    def test_own_words(self):
        body = {'conflictingRequest': {'code': 409, 'message': 'busy\n now'}}
        for status, kind in (
            (404, exceptions.NotFound),
            (400, exceptions.Conflict),
            (409, exceptions.Conflict),
        ):
            for call in (self.get, self.post):
                self.server.tricks = [say(status, body)]
                self.refused(kind, 'compute: busy now', call)

    def test_not_admin(self):
        body = {'forbidden': {'code': 403, 'message': 'Policy says no'}}
        self.server.tricks = [say(403, body)]
        self.refused(
            exceptions.ApiError,
            "cloud 'blue': user is not an administrator: Policy says no",
            self.get,
        )

    def test_token_refused(self):
        self.server.tricks = [say(401), say(401)]
        self.refused(exceptions.ApiError, '(401)', self.get)

    def test_new_token(self):
        self.server.tricks = [say(401)]
        self.assertEqual(200, self.get().status)

    def test_get_again(self):
        self.server.tricks = [say(503), hang_up, say(429)]
        self.assertEqual(200, self.get().status)
        self.assertEqual(4, len(self.server.sent('GET')))
        self.assertEqual([1.0, 2.0, 4.0], self.sleeps)

    def test_answer_that_breaks_off(self):
        def half(handler):
            handler.send_response_only(200)
            handler.send_header('Content-Length', '1000')
            handler.end_headers()
            handler.wfile.write(b'{"services": [')
            return hang_up(handler)

        self.server.tricks = [half]
        self.assertEqual(200, self.get().status)
        self.server.requests.clear()
        self.server.tricks = [half]
        with self.assertRaises(exceptions.Unanswered):
            self.post()
        self.assertEqual(1, len(self.server.sent('POST')))

    def test_get_not_for_ever(self):
        self.server.tricks = [say(503)] * 9
        self.refused(exceptions.Away, 'answers 503', self.get)
        self.assertEqual(4, len(self.server.sent('GET')))

    def test_get_without_again(self):
        self.server.tricks = [hang_up]
        with self.assertRaises(exceptions.ApiError):
            self.api.get('compute', 'os-services', '2.1', retries=0)
        self.assertEqual(1, len(self.server.sent('GET')))

    def test_retry_after(self):
        self.server.tricks = [
            say(503, headers=[('Retry-After', '7')]),
            say(503, headers=[('Retry-After', '7000')]),
        ]
        self.get()
        self.assertEqual([7.0, session.LONGEST_PAUSE], self.sleeps)

    def test_get_500(self):
        body = {'computeFault': {'code': 500, 'message': 'Unexpected'}}
        self.server.tricks = [say(500, body)] * 4
        self.refused(exceptions.Away, 'answers 500 to GET', self.get)
        self.assertEqual(4, len(self.server.sent('GET')))

    def test_get_while_things_come_up(self):
        """A 500 for want of a database, a load balancer's 502 and 504."""
        self.server.tricks = [say(500), say(502), say(504)]
        self.assertEqual(200, self.get().status)

    def expired(self):
        """Need a new token, while keystone is away."""
        self.get()
        self.api._session.auth.invalidate()
        self.server.requests.clear()
        self.server.keystone_up = False

    def test_keystone_away_for_a_moment(self):
        """The token expired, and keystone answers again: nothing is lost."""

        def back(_seconds):
            self.server.keystone_up = len(self.server.requests) > 1

        self.expired()
        with mock.patch.object(session.time, 'sleep', back):
            self.post()
        self.assertEqual(1, len(self.server.sent('POST', 'action')))

    def test_keystone_away_when_the_token_is_refused(self):
        """It is keystone that is waited for, and the POST leaves again."""
        self.get()
        self.server.requests.clear()
        self.server.keystone_says = [(503, {})]
        self.server.tricks = [say(401)]
        self.post()
        self.assertEqual([1.0], self.sleeps)
        self.assertEqual(2, len(self.server.sent('POST', 'action')))

    def test_keystone_away(self):
        self.expired()
        self.refused(exceptions.Away, 'keystone', self.post)
        self.assertEqual([1.0, 2.0, 4.0], self.sleeps)
        self.assertEqual([], self.server.sent('POST', 'action'))

    def test_post_never_again(self):
        """Whatever comes back, a POST leaves once."""
        for trick, kind in (
            (hang_up, exceptions.Unanswered),
            (say(500), exceptions.Unanswered),
            (say(502), exceptions.Unanswered),
            (say(504), exceptions.Unanswered),
            (say(503), exceptions.ApiError),
            (say(429), exceptions.ApiError),
        ):
            self.server.requests.clear()
            self.server.tricks = [trick]
            with self.assertRaises(exceptions.ApiError) as caught:
                self.post()
            self.assertIs(kind, type(caught.exception))
            self.assertEqual(1, len(self.server.sent('POST')))

    def test_post_timed_out(self):
        def slow(handler):
            came.set()
            slowly.wait(5)
            return hang_up(handler)

        came, slowly = threading.Event(), threading.Event()
        self.addCleanup(slowly.set)
        self.server.tricks = [slow]
        with mock.patch.object(session, 'POST_TIMEOUT', 0.2):
            self.refused(
                exceptions.Unanswered, '(timed out): it may be', self.post
            )
        # its thread may be slower than the time-out
        self.assertTrue(came.wait(20))
        self.assertEqual(1, len(self.server.sent('POST')))

    def test_post_never_left(self):
        """A refused connection proves that nothing was done."""
        where = (f'http://127.0.0.1:{self.nobody()}/v2.1', (2, 104))
        self.api._endpoints['compute'] = where
        self.refused(exceptions.ApiError, 'does not answer at', self.post)

    def test_keystone_down_is_no_lost_post(self):
        self.api._session.auth.invalidate()
        self.server.keystone_up = False
        self.refused(exceptions.Away, 'keystone does not answer', self.post)

    def test_html(self):
        self.server.tricks = [say(200, b'<html>welcome</html>')]
        self.refused(exceptions.ApiError, 'no JSON object', self.get)
        self.server.tricks = [say(200, b'<html>welcome</html>')]
        self.assertEqual({}, self.post().body)

    def test_html_error(self):
        self.server.tricks = [say(404, b'<html>nginx</html>')]
        self.refused(exceptions.NotFound, '404', self.get)

    def test_empty_answer(self):
        self.server.tricks = [say(202, b'')]
        self.assertEqual({}, self.post().body)

    def test_environment_cannot_make_it_repeat(self):
        """connect_retries from clouds.yaml is not ours."""
        api = self.connect(
            compute_connect_retries=3, compute_status_code_retries=3
        )
        api.compute_max
        self.server.requests.clear()
        self.server.tricks = [hang_up]
        with self.assertRaises(exceptions.Unanswered):
            act.start(api, 'x')
        self.assertEqual(1, len(self.server.sent('POST', 'action')))


class TestSecrets(Case):
    """--debug sets the root logger to DEBUG."""

    def setUp(self):
        super().setUp()
        self.log = io.StringIO()
        handler = logging.StreamHandler(self.log)
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        self.addCleanup(root.setLevel, level)
        self.addCleanup(root.removeHandler, handler)

    def test_nothing_leaks(self):
        cloud = self.server.cloud
        server = cloud.add_server(1)
        cloud.attach(server, cloud.add_volume(101), 201)
        api = self.connect()
        read.observe(api)
        read.server(api, server)
        read.fault(api, server)
        self.assertTrue(read.attachment_exists(api, fakes.uid(201)))
        act.start(api, server)
        secret = {'connection_info': {'auth_password': fakes.SECRET}}
        cloud.instead['GET', 'attachments/detail'] = {'attachments': [secret]}
        api.get('block-storage', 'attachments/detail', '3.27')
        told = {'output': f'password: {fakes.SECRET}'}
        cloud.instead['POST', f'servers/{server}/action'] = told
        self.assertIn(fakes.SECRET, read.console(api, server)[0])
        log = self.log.getvalue()
        self.assertNotIn(fakes.SECRET, log)
        self.assertNotIn('token-1234567890', log)
        self.assertNotIn('right', log)
        # It is no empty log that proves it.
        self.assertIn('os-volume_attachments', log)
        self.assertIn('{SHA256}', log)
        self.assertIn(f'attachments/{fakes.uid(201)}: 200', log)
