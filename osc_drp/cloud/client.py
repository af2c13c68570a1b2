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

"""The cloud as the engine wants it (engine/ports.py, ``Cloud``)."""

import typing as ty

from osc_drp.cloud import act
from osc_drp.cloud import read
from osc_drp.cloud import session
from osc_drp.engine import facts
from osc_drp.engine import ports
from osc_drp.engine import readiness


def connect(app: ty.Any) -> 'Client':
    """Log in; see :func:`osc_drp.cloud.session.connect`.

    :raises exceptions.ApiError: there is no way in.
    """
    return Client(session.connect(app))


def connect_when_up(app: ty.Any, wait: float, say: ports.Say) -> 'Client':
    """Log in as soon as keystone, nova and cinder answer.

    :param wait: seconds
    :raises exceptions.Refused: one still does not, after that time.
    :raises exceptions.ApiError: waiting does not help.
    """

    def look() -> 'Client':
        client = connect(app)
        client.check_up()
        return client

    return readiness.wait_for(look, wait, say)


class Client:
    """Binds the functions of read.py and act.py to one cloud."""

    def __init__(self, api: session.Api) -> None:
        self.api = api

    def check_up(self) -> None:
        read.check_up(self.api)

    @property
    def user_id(self) -> str | None:
        return self.api.user_id

    @property
    def keeps_lock_reasons(self) -> bool:
        return self.api.compute_max >= (2, 73)

    @property
    def reboot_cleans(self) -> bool:
        # 2.100 came after the release that began to (2023.2), and nothing
        # between them tells from outside
        return self.api.compute_max >= (2, 100)

    def observe(self) -> facts.Observation:
        return read.observe(self.api, network=True)

    def renew(self, seen: facts.Observation) -> facts.Observation:
        return read.renew(self.api, seen, network=True)

    def server(self, server_id: str) -> facts.Server:
        return read.server(self.api, server_id)

    def addresses(self, server_id: str) -> tuple[facts.Address, ...]:
        return tuple(read.addresses(self.api, server_id))

    def targets(self, attachment_id: str) -> frozenset[facts.Target]:
        return read.targets(self.api, attachment_id)

    def console(self, server_id: str) -> list[str]:
        return read.console(self.api, server_id)

    def fault(self, server_id: str) -> str:
        return read.fault(self.api, server_id)

    def mappings_of(
        self, server_id: str, server: facts.Server | None = None
    ) -> tuple[facts.Mapping, ...]:
        return tuple(read.mappings_of(self.api, server_id, server))

    def rows_of(
        self, server_id: str, sought: str | None = None
    ) -> tuple[facts.Row, ...]:
        return tuple(read.rows_of(self.api, server_id, sought))

    def rows_of_volume(self, volume_id: str) -> tuple[facts.Row, ...]:
        return tuple(read.rows_of_volume(self.api, volume_id))

    def attachment_exists(self, attachment_id: str) -> bool:
        return read.attachment_exists(self.api, attachment_id)

    def volume(self, volume_id: str) -> facts.Volume:
        return read.volume(self.api, volume_id)

    def actions(self, server_id: str) -> tuple[facts.Action, ...]:
        return tuple(read.actions(self.api, server_id))

    def diagnostics_running(self, server_id: str) -> bool | None:
        return read.diagnostics_running(self.api, server_id)

    def with_ports(self) -> frozenset[str]:
        return frozenset(read.ports(self.api))

    def ha_segments(self) -> list[str]:
        return read.masakari_segments(self.api)

    def start(self, server_id: str) -> None:
        act.start(self.api, server_id)

    def stop(self, server_id: str) -> None:
        act.stop(self.api, server_id)

    def lock(self, server_id: str, reason: str) -> None:
        act.lock(self.api, server_id, reason)

    def unlock(self, server_id: str) -> None:
        act.unlock(self.api, server_id)

    def hard_reboot(self, server_id: str) -> None:
        act.hard_reboot(self.api, server_id)

    def make_available(self, volume_id: str) -> None:
        act.reset_volume_status(self.api, volume_id, 'available')

    def attach(self, wanted: facts.MapAttachment) -> str | None:
        return act.attach(
            self.api,
            wanted.server_id,
            wanted.volume_id,
            wanted.device,
            wanted.tag,
            wanted.delete_on_termination,
        )


if ty.TYPE_CHECKING:

    def _fits(client: Client) -> ports.Cloud:
        return client
