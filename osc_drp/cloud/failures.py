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

"""Every failure of a request as one of our errors, in one sentence.

It names the cloud, the service, the URL, the innermost reason and what to
do; the service's own words where it gave any.
"""

import typing as ty

from keystoneauth1 import exceptions as ksa_exceptions
from openstack import exceptions as sdk_exceptions
import requests
import urllib3

from osc_drp import exceptions
from osc_drp.i18n import _

#: Passing troubles of a GET: a service whose database or RabbitMQ comes back
#: answers 500 for a while, the load balancer before it 502 and 504.
RETRIABLE = frozenset({429, 500, 502, 503, 504})
#: After these nobody knows whether a POST was done: nova turns an RPC
#: time-out into 500, load balancers answer 502 and 504.
DOUBTFUL = frozenset({500, 502, 504})


class Passing(Exception):
    """Sending the request again may help.

    :ivar what: who does not answer, where and why
    :ivar pause: seconds that the service asks for; None: it does not
    """

    def __init__(
        self, message: str, what: str, pause: float | None = None
    ) -> None:
        super().__init__(message)
        self.what = what
        self.pause = pause


class Expired(Exception):
    """The service does not take the token: nothing was done."""


#: keystoneauth's and the SDK's errors share no base; OSError is a missing CA
#: file, and the base of what requests raises.
FAILURES = (
    ksa_exceptions.ClientException,
    sdk_exceptions.SDKException,
    urllib3.exceptions.HTTPError,
    OSError,
)
CONNECTION = (
    ksa_exceptions.RetriableConnectionFailure,
    # An answer that broke off.
    ksa_exceptions.UnknownConnectionError,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
)
_TIMEOUTS = (
    requests.exceptions.Timeout,
    urllib3.exceptions.TimeoutError,
    TimeoutError,
)


def login_error(
    cloud: str, region: ty.Any, exc: Exception
) -> exceptions.ApiError:
    """Say in one sentence why there is no token."""
    url = (region.config.get('auth') or {}).get('auth_url')
    words = {'cloud': cloud, 'url': url, 'reason': reason(exc)}
    if isinstance(exc, ksa_exceptions.Unauthorized):
        return exceptions.ApiError(
            _(
                "cloud '%(cloud)s': keystone at %(url)s refuses user or "
                'password: %(reason)s'
            )
            % words
        )
    if passes(exc) or isinstance(exc, ksa_exceptions.DiscoveryFailure):
        message = (
            _(
                "cloud '%(cloud)s': keystone does not answer at %(url)s "
                '(%(reason)s): check that it and its database are up'
            )
            % words
        )
        if passes(exc):
            return exceptions.Away(
                message, _('keystone at %(url)s: %(reason)s') % words
            )
        return exceptions.ApiError(message)
    if isinstance(exc, ksa_exceptions.ClientException):
        return exceptions.ApiError(
            _(
                "cloud '%(cloud)s': keystone at %(url)s gives no token: "
                '%(reason)s'
            )
            % words
        )
    return exceptions.ApiError(
        _("cloud '%(cloud)s': cannot log in: %(reason)s") % words
    )


def passes(exc: Exception) -> bool:
    """Tell whether the service may answer a moment later.

    keystoneauth wraps what happened into 'could not find versions'.
    """
    return any(
        isinstance(link, CONNECTION)
        or (
            isinstance(link, ksa_exceptions.HttpError)
            and link.http_status in RETRIABLE
        )
        for link in _chain(exc)
    )


def no_endpoint(
    cloud: str, service: str, url: str | None, exc: Exception
) -> Exception:
    """Say why a service does not tell its versions."""
    words = {
        'cloud': cloud,
        'service': service,
        'url': url,
        'reason': reason(exc),
    }
    message = (
        _(
            "cloud '%(cloud)s': %(service)s does not answer at %(url)s "
            '(%(reason)s): check that it and its database are up'
        )
        % words
    )
    if passes(exc):
        return Passing(
            message, _('%(service)s at %(url)s: %(reason)s') % words
        )
    return exceptions.ApiError(message)


def no_answer(
    cloud: str, service: str, method: str, url: str, exc: Exception
) -> Exception:
    """Turn silence into an error: is it known that nothing was done?"""
    words = {
        'cloud': cloud,
        'service': service,
        'method': method,
        'url': url,
        'reason': reason(exc),
    }
    if method == 'GET' or _not_sent(exc):
        message = (
            _(
                "cloud '%(cloud)s': %(service)s does not answer at "
                '%(url)s (%(reason)s): check that it is up'
            )
            % words
        )
        if method == 'GET' and isinstance(exc, CONNECTION):
            what = _('%(service)s at %(url)s: %(reason)s') % words
            return Passing(message, what)
        return exceptions.ApiError(message)
    return exceptions.Unanswered(
        _(
            "cloud '%(cloud)s': %(service)s gave no answer to %(method)s "
            '%(url)s (%(reason)s): it may be done or not'
        )
        % words
    )


def bad_answer(
    cloud: str,
    service: str,
    method: str,
    url: str,
    response: requests.Response,
) -> Exception:
    """Turn an answer of 300 and above into an error."""
    status = response.status_code
    words = {
        'cloud': cloud,
        'service': service,
        'method': method,
        'url': url,
        'status': status,
        'message': _message(response),
    }
    if status == 404:
        return exceptions.NotFound('{service}: {message}'.format(**words))
    if status in (400, 409):
        return exceptions.Conflict('{service}: {message}'.format(**words))
    if status == 403:
        return exceptions.ApiError(
            _("cloud '%(cloud)s': user is not an administrator: %(message)s")
            % words
        )
    if status == 401:
        return Expired(
            _(
                "cloud '%(cloud)s': user is not an administrator, or "
                '%(service)s cannot ask keystone: it does not take our '
                'token (401): %(message)s'
            )
            % words
        )
    message = (
        _(
            "cloud '%(cloud)s': %(service)s answers %(status)d to "
            '%(method)s %(url)s: %(message)s'
        )
        % words
    )
    if method == 'GET' and status in RETRIABLE:
        what = _('%(service)s at %(url)s: it answers %(status)d') % words
        return Passing(message, what, _retry_after(response))
    if method != 'GET' and status in DOUBTFUL:
        return exceptions.Unanswered(message)
    return exceptions.ApiError(message)


def _chain(exc: BaseException | None) -> ty.Iterator[BaseException]:
    """Walk from an error to what caused it, also inside urllib3's."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        inner = getattr(exc, 'reason', None)
        if not isinstance(inner, BaseException):
            inner = next(
                (a for a in exc.args if isinstance(a, BaseException)), None
            )
        exc = inner or exc.__cause__ or exc.__context__


def reason(exc: BaseException) -> str:
    """Give the innermost reason in few words."""
    links = list(_chain(exc))
    for link in links:
        # urllib3 counts a refused connection among its time-outs.
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
    if any(isinstance(link, _TIMEOUTS) for link in links):
        return _('timed out')
    return ' '.join(str(exc).split()) or type(exc).__name__


def _not_sent(exc: BaseException) -> bool:
    """Whether the request provably never left: no connection was made."""
    return any(
        isinstance(
            link,
            (
                requests.exceptions.ConnectTimeout,
                urllib3.exceptions.NewConnectionError,
                urllib3.exceptions.ConnectTimeoutError,
            ),
        )
        for link in _chain(exc)
    )


def _message(response: requests.Response) -> str:
    """Dig the service's own words out of an error answer.

    nova, cinder and keystone wrap them ({"itemNotFound": {"message": ..}}),
    neutron too ({"NeutronError": {"message": ..}}); proxies answer HTML.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        for part in (body, *body.values()):
            if isinstance(part, dict) and isinstance(part.get('message'), str):
                return ' '.join(part['message'].split())
    return f'{response.status_code} {response.reason or ""}'.strip()


def _retry_after(response: requests.Response) -> float | None:
    try:
        return max(float(response.headers['Retry-After']), 0.0)
    except (KeyError, ValueError):
        return None
