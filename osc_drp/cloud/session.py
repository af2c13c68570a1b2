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

"""The one door to the APIs: time-outs, microversions, errors.

Everything else in this package speaks through an :class:`Api`. It sends a
GET again if that may help, and a POST never: keystoneauth repeats any method
after a read time-out as soon as ``connect_retries`` is set (keystoneauth1
5.18.1 ``session.py``, ``_send_request``), so it is never set here.
"""

import collections.abc
import dataclasses
import datetime
import email.utils
import json as jsonlib
import logging
import re
import threading
import time
import typing as ty

from keystoneauth1 import adapter
from keystoneauth1 import exceptions as ksa_exceptions
from keystoneauth1 import session as ksa_session
from osc_lib import exceptions as osc_exceptions
import requests

from osc_drp.cloud import failures
from osc_drp import exceptions
from osc_drp.i18n import _

LOG = logging.getLogger(__name__)
#: keystoneauth's logger that warns of a keystone that does not answer.
DISCOVERY = 'keystoneauth.identity.generic.base'

#: Seconds to connect, and to wait for an answer. osc-lib sets no time-out
#: at all (osc_lib/clientmanager.py), and a half-dead API host is the rule
#: after a power loss.
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0
#: A POST may wait for nova's own RPC time-out of 60 s (an attach asks the
#: host for a device name): let nova's answer win.
POST_TIMEOUT = 90.0
#: How often a GET is sent again, and the longest pause between two.
RETRIES = 3
LONGEST_PAUSE = 30.0
#: Connections kept per host; requests' default of 10 makes urllib3 warn on
#: the user's terminal as soon as more threads are at work.
POOL = 32

#: Versions to discover; of the others the catalog's URL is taken as it is.
_VERSIONS = {
    'compute': ('2.1', '2.latest'),
    'block-storage': ('3', '3.latest'),
}
#: Answers with connection_info (CHAP secrets, keyrings) or user_data
#: (passwords): never in the log, not even with --debug.
_SECRET = re.compile(r'attachments\b|servers/detail\b|servers/[^/?]+$')

_Told = ty.TypeVar('_Told')


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a service said."""

    status: int
    body: dict[str, ty.Any]
    #: The HTTP Date header, 'YYYY-MM-DDTHH:MM:SSZ'; None if there is none.
    date: str | None


class Api:
    """A cloud's services for one user.

    Safe for threads: what changes is the clock, the end points found so far
    and the token, and keystoneauth locks the token itself.
    """

    def __init__(
        self, session: ksa_session.Session, region: ty.Any, cloud: str
    ) -> None:
        self.cloud = cloud
        self._session = session
        self._region = region
        self._lock = threading.Lock()
        self._endpoints: dict[str, tuple[str, tuple[int, int]]] = {}
        #: The cloud's time, and our monotonic clock when it was told.
        self._clock: tuple[datetime.datetime, float] | None = None
        #: How often a GET, and a login, is sent again.
        self.retries = RETRIES
        self._token_clock()

    @property
    def now(self) -> str:
        """The cloud's time, 'YYYY-MM-DDTHH:MM:SSZ'; never the local clock.

        From the newest HTTP Date header; where no service sends one (nova
        and cinder under uwsgi do not), from the time at which keystone
        issued the token that we logged in with.

        :raises exceptions.ApiError: no service ever told the time.
        """
        clock = self._clock
        if clock is None:
            raise exceptions.ApiError(
                _("cloud '%s': no service tells the time (HTTP Date)")
                % self.cloud
            )
        told, when = clock
        passed = datetime.timedelta(seconds=time.monotonic() - when)
        return _iso(told + passed)

    @property
    def compute_max(self) -> tuple[int, int]:
        """The highest microversion of nova, as in (2, 104).

        :raises exceptions.ApiError: nova cannot be reached.
        """
        return self._endpoint('compute')[1]

    @property
    def user_id(self) -> str | None:
        """Our user's id: tells our own actions from others'.

        :raises exceptions.ApiError: keystone cannot be reached.
        """
        try:
            return self._session.get_user_id()
        except failures.FAILURES as exc:
            raise self._refused_login(exc) from exc

    def version(self, service: str, wanted: str) -> str:
        """Lower a microversion to what the cloud has.

        :raises exceptions.ApiError: the service cannot be reached.
        """
        return _text(min(_number(wanted), self._endpoint(service)[1]))

    def has(self, service: str) -> bool:
        """Whether the catalog lists a service, as in 'instance-ha'.

        :raises exceptions.ApiError: keystone cannot be reached.
        """
        try:
            return bool(self._catalog_url(service))
        except failures.FAILURES as exc:
            raise self._refused_login(exc) from exc

    def get(
        self,
        service: str,
        path: str,
        microversion: str | None = None,
        params: ty.Mapping[str, ty.Any] | None = None,
        retries: int | None = None,
    ) -> Answer:
        """Read; see :meth:`request`."""
        return self.request(
            service,
            'GET',
            path,
            microversion=microversion,
            params=params,
            retries=retries,
        )

    def post(
        self,
        service: str,
        path: str,
        json: ty.Any,
        microversion: str | None = None,
        quiet: bool = False,
    ) -> Answer:
        """Change something, once; see :meth:`request`."""
        return self.request(
            service,
            'POST',
            path,
            microversion=microversion,
            json=json,
            quiet=quiet,
        )

    def request(
        self,
        service: str,
        method: str,
        path: str,
        microversion: str | None = None,
        json: ty.Any = None,
        params: ty.Mapping[str, ty.Any] | None = None,
        retries: int | None = None,
        quiet: bool = False,
    ) -> Answer:
        """Send a request.

        :param path: below the service's end point, as in 'servers/detail'.
        :param microversion: wins over whatever the user pinned
            (OS_COMPUTE_API_VERSION).
        :param retries: of a GET on 429, 5xx and lost connections, instead of
            :attr:`retries`; everything else is sent once.
        :param quiet: the answer may hold a secret: no log of it, ever.
        :raises exceptions.NotFound: 404.
        :raises exceptions.Conflict: 400 or 409, in the service's own words.
        :raises exceptions.Unanswered: no answer, or a doubtful one, to a
            request that changes something: it may be done.
        :raises exceptions.Away: keystone, or a GET, got no answer again and
            again, or a 429 or 5xx.
        :raises exceptions.ApiError: everything else.
        """
        url = f'{self._endpoint(service)[0]}/{path.lstrip("/")}'
        again = self.retries if retries is None else retries
        left = again if method == 'GET' else 0
        quiet = quiet or bool(_SECRET.match(path.lstrip('/')))

        def ask() -> Answer:
            return self._once(
                service, method, url, quiet, microversion, json, params
            )

        # Apart, lest keystone's silence look like the service's.
        self._patiently(self._login, self.retries)
        try:
            return self._patiently(ask, left)
        except failures.Expired as exc:
            LOG.debug('%s; getting another token', exc)
            self._session.invalidate()
        self._patiently(self._login, self.retries)
        try:
            return self._patiently(ask, left)
        except failures.Expired as exc:
            raise exceptions.ApiError(str(exc)) from exc

    def _patiently(
        self, ask: collections.abc.Callable[[], _Told], left: int
    ) -> _Told:
        """Ask again, a few times, after what may pass.

        :raises exceptions.Away: it did not pass.
        """
        pause = 1.0
        while True:
            try:
                return ask()
            except failures.Passing as exc:
                if not left:
                    raise exceptions.Away(str(exc), exc.what) from exc
                LOG.debug('%s; trying again', exc)
                time.sleep(min(exc.pause or pause, LONGEST_PAUSE))
            left -= 1
            pause *= 2

    def _once(
        self,
        service: str,
        method: str,
        url: str,
        quiet: bool,
        microversion: str | None,
        json: ty.Any,
        params: ty.Mapping[str, ty.Any] | None,
    ) -> Answer:
        reads = method == 'GET'
        try:
            response = self._session.request(
                url,
                method,
                json=json,
                params=dict(params or {}),
                microversion=microversion,
                microversion_service_type=service,
                headers={'Accept': 'application/json'},
                raise_exc=False,
                allow_reauth=False,
                connect_retries=0,
                status_code_retries=0,
                log=not quiet,
                timeout=(
                    CONNECT_TIMEOUT,
                    READ_TIMEOUT if reads else POST_TIMEOUT,
                ),
            )
        except failures.FAILURES as exc:
            raise failures.no_answer(
                self.cloud, service, method, url, exc
            ) from exc
        date = self._hear(response)
        if quiet:
            LOG.debug('%s %s: %d', method, url, response.status_code)
        if response.status_code >= 300:
            raise failures.bad_answer(
                self.cloud, service, method, url, response
            )
        return Answer(
            response.status_code, self._body(service, url, response), date
        )

    def _login(self) -> None:
        """Have a token; keystone is asked for one only now and then.

        :raises failures.Passing: keystone is away, perhaps for a moment.
        """
        try:
            self._session.get_auth_headers()
        except failures.FAILURES as exc:
            error = self._refused_login(exc)
            if isinstance(error, exceptions.Away):
                raise failures.Passing(str(error), error.what) from exc
            raise error from exc

    def _hear(self, response: requests.Response) -> str | None:
        """Set the clock by an answer."""
        try:
            told = email.utils.parsedate_to_datetime(response.headers['Date'])
        except (KeyError, TypeError, ValueError):
            return None
        if told.tzinfo is None:
            told = told.replace(tzinfo=datetime.UTC)
        self._clock = told, time.monotonic()
        return _iso(told)

    def _token_clock(self) -> None:
        """Set the clock by the token, which is as good as new."""
        try:
            auth: ty.Any = self._session.auth
            issued = auth.get_access(self._session).issued
        except (*failures.FAILURES, AttributeError):
            # Not every way to log in has a token with a time.
            return
        if issued is not None:
            told = issued.astimezone(datetime.UTC)
            self._clock = told, time.monotonic()

    def _body(
        self, service: str, url: str, response: requests.Response
    ) -> dict[str, ty.Any]:
        if not response.content:
            return {}
        try:
            body = jsonlib.loads(response.content)
        except ValueError:
            body = None
        if isinstance(body, dict):
            return body
        if response.request is not None and response.request.method != 'GET':
            # Done it is: only what it said is unreadable.
            return {}
        raise exceptions.ApiError(
            _(
                "cloud '%(cloud)s': %(service)s answers something that is no "
                'JSON object at %(url)s: is it the right end point?'
            )
            % {'cloud': self.cloud, 'service': service, 'url': url}
        )

    def _adapter(self, service: str) -> adapter.Adapter:
        low, high = _VERSIONS.get(service, (None, None))
        region = self._region
        return adapter.Adapter(
            session=self._session,
            service_type=region.get_service_type(service),
            service_name=region.get_service_name(service),
            interface=region.get_interface(service),
            region_name=region.get_region_name(service),
            endpoint_override=region.get_endpoint(service),
            min_version=low,
            max_version=high,
        )

    def _catalog_url(self, service: str) -> str | None:
        try:
            url = self._adapter(service).get_endpoint(
                skip_discovery=True, min_version=None, max_version=None
            )
        except ksa_exceptions.EndpointNotFound:
            return None
        return url.rstrip('/') if url else None

    def _endpoint(self, service: str) -> tuple[str, tuple[int, int]]:
        """Find a service's URL and its highest microversion, once."""

        def find() -> tuple[str, tuple[int, int]]:
            with self._lock:
                if service not in self._endpoints:
                    try:
                        self._endpoints[service] = self._discover(service)
                    except failures.FAILURES as exc:
                        raise self._no_endpoint(service, exc) from exc
                return self._endpoints[service]

        return self._patiently(find, self.retries)

    def _discover(self, service: str) -> tuple[str, tuple[int, int]]:
        plain = self._catalog_url(service)
        if not plain:
            raise exceptions.ApiError(
                _(
                    "cloud '%(cloud)s': keystone's catalog has no "
                    '%(service)s: check region, interface and the catalog'
                )
                % {'cloud': self.cloud, 'service': service}
            )
        if service == 'network':
            # Older neutrons hide their version document (openstack
            # config/cloud_region.py, get_session_client).
            return f'{plain.removesuffix("/v2.0")}/v2.0', (0, 0)
        if service not in _VERSIONS:
            return plain, (0, 0)
        data = self._adapter(service).get_endpoint_data()
        if data is None or not data.url or not data.max_microversion:
            # keystoneauth keeps to itself why it found no versions, and
            # gives the catalog's URL without any if the API is down
            self._session.get(plain)
            raise exceptions.ApiError(
                _(
                    "cloud '%(cloud)s': %(service)s at %(url)s does not say "
                    'which versions it has'
                )
                % {'cloud': self.cloud, 'service': service, 'url': plain}
            )
        major, minor = data.max_microversion[:2]
        return data.url.rstrip('/'), (int(major), int(minor))

    def _no_endpoint(self, service: str, exc: Exception) -> Exception:
        try:
            url = self._catalog_url(service)
        except failures.FAILURES as failure:
            return self._refused_login(failure)
        return failures.no_endpoint(self.cloud, service, url, exc)

    def _refused_login(self, exc: Exception) -> exceptions.ApiError:
        return failures.login_error(self.cloud, self._region, exc)


def connect(app: ty.Any) -> Api:
    """Log in, for a command with ``auth_required = False``.

    Such a command starts without keystone; when it needs the API after all,
    the client manager is told so and set up on demand (osc-lib 4.7.0
    ``clientmanager.py``, ``setup_auth``).

    :param app: the command's ``self.app``.
    :raises exceptions.Away: keystone does not answer, or says that it cannot.
    :raises exceptions.ApiError: the settings are incomplete, or keystone
        refuses the user. (That no such cloud exists is said by
        openstackclient before any command runs.)
    """
    if not app.options.debug:
        # it would tell a failure before we do, and worse
        logging.getLogger(DISCOVERY).setLevel(logging.ERROR)
    manager = app.client_manager
    region = manager._cli_options
    cloud = region.name or 'envvars'
    try:
        manager._auth_required = True
        manager.setup_auth()
        session = manager.session
        _tune(session)
        session.get_token()
    except (*failures.FAILURES, osc_exceptions.CommandError) as exc:
        raise failures.login_error(cloud, region, exc) from exc
    except osc_exceptions.AuthorizationFailure as exc:
        raise failures.login_error(cloud, region, exc) from exc
    return Api(session, region, cloud)


def _tune(session: ksa_session.Session) -> None:
    """Set time-outs and a pool that many threads can share."""
    # A pair is what requests takes; keystoneauth hands it on unseen.
    session.timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)  # type: ignore[assignment]
    for prefix, mounted in list(session.session.adapters.items()):
        plain = not (
            getattr(mounted, 'tls_ciphers', None)
            or getattr(mounted, 'tls_min_version', None)
        )
        if plain and isinstance(mounted, ksa_session.TCPKeepAliveAdapter):
            session.session.mount(
                prefix, ksa_session.TCPKeepAliveAdapter(pool_maxsize=POOL)
            )


def _iso(when: datetime.datetime) -> str:
    return when.astimezone(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%SZ')


def _number(microversion: str) -> tuple[int, int]:
    major, _dot, minor = microversion.partition('.')
    return int(major), int(minor)


def _text(microversion: tuple[int, int]) -> str:
    return '{}.{}'.format(*microversion)
