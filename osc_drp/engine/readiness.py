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

"""The wait before anything is done: for services that are not up yet.

After a power loss they come back one by one, and databases last of all.
"""

import collections.abc
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import ports
from osc_drp.i18n import _

#: Seconds between two looks, and between two lines that say the same.
POLL = 4.0
SAY_AGAIN = 30.0

_Seen = ty.TypeVar('_Seen')


def wait_for(
    look: collections.abc.Callable[[], _Seen],
    wait: float,
    say: ports.Say,
    clock: ports.Clock | None = None,
) -> _Seen:
    """Look again and again until nothing is away; give what was seen.

    :param look: raises Away for what may come back by itself; every other
        error ends the wait: no password gets better by waiting
    :param wait: seconds; at least one look is taken
    :raises Refused: something is still away after that time
    """
    clock = clock or ports.RealClock()
    deadline = clock.monotonic() + wait
    said, say_next = '', 0.0
    while True:
        try:
            return look()
        except exceptions.Away as away:
            now = clock.monotonic()
            if now >= deadline:
                raise exceptions.Refused(
                    _('not ready after %(wait)d s: %(what)s')
                    % {'wait': wait, 'what': away.what}
                ) from away
            if away.what != said or now >= say_next:
                say(_('waiting for %s') % away.what)
                said, say_next = away.what, now + SAY_AGAIN
        clock.sleep(POLL)
