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

"""What the engine needs from the world; cloud/ and db/ give it.

Every method raises exceptions.DrpError's kinds and nothing else.
"""

import collections.abc
import time
import typing as ty

from osc_drp.engine import facts


class Cloud(ty.Protocol):
    """Nova and cinder through their APIs (cloud/client.py)."""

    @property
    def user_id(self) -> str | None:
        """Whom nova's action log names for what we ask."""

    @property
    def keeps_lock_reasons(self) -> bool:
        """Whether nova says why a server is locked (compute API 2.73)."""

    @property
    def reboot_cleans(self) -> bool:
        """Whether a hard reboot makes nova forget dangling mappings.

        For certain, that is: since compute API 2.100 (DESIGN 2).
        """

    def observe(self) -> facts.Observation:
        """Read everything, in bulk, services included."""

    def renew(self, seen: facts.Observation) -> facts.Observation:
        """Read again how servers and services are; nothing else.

        For a wait: it needs no request per server.
        """

    def server(self, server_id: str) -> facts.Server:
        """Read one server; NotFound."""

    def fault(self, server_id: str) -> str:
        """Say why a server is in error; '' if nova does not say."""

    def mappings_of(
        self, server_id: str, server: facts.Server | None = None
    ) -> tuple[facts.Mapping, ...]:
        """Read nova's record of one server; NotFound.

        :param server: it, if it was read right before: saves a request
        """

    def rows_of(
        self, server_id: str, sought: str | None = None
    ) -> tuple[facts.Row, ...]:
        """Read cinder's record of one server.

        :param sought: to be polled for a row of this volume: if there is
            one, other rows may be left out, which saves a request
        """

    def rows_of_volume(self, volume_id: str) -> tuple[facts.Row, ...]:
        """Read cinder's record of one volume."""

    def attachment_exists(self, attachment_id: str) -> bool:
        """Ask cinder for one attachment; False: 404."""

    def volume(self, volume_id: str) -> facts.Volume:
        """Read one volume; NotFound."""

    def actions(self, server_id: str) -> tuple[facts.Action, ...]:
        """Read nova's action log of one server, newest first."""

    def diagnostics_running(self, server_id: str) -> bool | None:
        """Ask the hypervisor whether the guest runs; None: no answer."""

    def with_ports(self) -> frozenset[str]:
        """List the servers that have a network port."""

    def ha_segments(self) -> list[str]:
        """Name masakari's segments; none without masakari."""

    def start(self, server_id: str) -> None:
        """Start a server (202)."""

    def stop(self, server_id: str) -> None:
        """Stop a server (202)."""

    def lock(self, server_id: str, reason: str) -> None:
        """Lock a server against its users, at once."""

    def unlock(self, server_id: str) -> None:
        """Unlock a server, at once."""

    def hard_reboot(self, server_id: str) -> None:
        """Reboot a server hard (202); engine/cleaner.py alone may."""

    def make_available(self, volume_id: str) -> None:
        """Make a volume 'available'; cinder checks nothing (202)."""

    def attach(self, wanted: facts.MapAttachment) -> str | None:
        """Attach a volume; gives the device name that nova answered."""

    def addresses(self, server_id: str) -> tuple[facts.Address, ...]:
        """Read where a server can be reached; NotFound."""

    def targets(self, attachment_id: str) -> frozenset[facts.Target]:
        """Read which iSCSI targets cinder gave to an attachment."""

    def console(self, server_id: str) -> list[str]:
        """Read the end of a guest's console; empty: there is none."""


class Guests(ty.Protocol):
    """The inside of servers (hosts/guests.py).

    Both raise SshError, or SshBroken where nobody knows what ran.
    """

    def boot_id(self, server: facts.Server) -> str:
        """Read the id of the present boot, of this server and no other."""

    def reboot(self, server: facts.Server, boot_id: str) -> None:
        """Reboot it, unless it is another boot by now (Changed)."""


#: Judges both records as they are under the locks; raises Changed.
Confirm: ty.TypeAlias = collections.abc.Callable[[facts.Observation], None]
#: Makes the old values durable.
Record: ty.TypeAlias = collections.abc.Callable[..., None]


class Databases(ty.Protocol):
    """Cinder's and nova's databases (db/client.py)."""

    def observe(self) -> facts.Observation:
        """Read everything, in bulk."""

    def actions_since(
        self, server_ids: collections.abc.Collection[str], since: str
    ) -> list[facts.Action]:
        """Read the action logs of these servers."""

    def reset(
        self,
        pair: facts.Pair,
        confirm: Confirm,
        record: Record,
        *,
        free: bool = True,
    ) -> None:
        """Take one attachment off both records (db/write.py).

        :param free: False leaves the volume 'reserved', not 'available'
        """

    def repair(
        self,
        pair: facts.Pair,
        row_id: str,
        confirm: Confirm,
        record: Record,
    ) -> None:
        """Make cinder say what nova boots from."""

    def release(
        self,
        pair: facts.Pair,
        row_ids: collections.abc.Collection[str],
        confirm: Confirm,
        record: Record,
    ) -> None:
        """Take rows off cinder's record, or only its status (no ids)."""

    def undo(
        self,
        old: collections.abc.Mapping[str, ty.Any],
        confirm: Confirm,
        record: Record,
    ) -> None:
        """Put back what one of these changed."""


class CinderDatabase(ty.Protocol):
    """Cinder's database alone (db/client.py)."""

    def check_grants(self, locks: bool = True) -> None:
        """Prove that we may write what we write; writes nothing."""

    def observe_cinder(
        self, mapped: collections.abc.Collection[str]
    ) -> facts.Observation:
        """Read cinder's side; of mapped volumes deleted rows as well."""

    def reset_cinder(
        self,
        pair: facts.Pair,
        confirm: Confirm,
        record: Record,
    ) -> None:
        """Take one attachment off cinder's record; 'reserved' then."""

    def undo(
        self,
        old: collections.abc.Mapping[str, ty.Any],
        confirm: Confirm,
        record: Record,
    ) -> None:
        """Put back what that changed."""


class Clock(ty.Protocol):
    """Time that a test can make pass."""

    def monotonic(self) -> float:
        """Seconds, never going back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class RealClock:
    """The machine's clock."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


Say: ty.TypeAlias = collections.abc.Callable[[str], None]


class Step(ty.Protocol):
    """How far one step of a run is."""

    def advance(self, failed: bool = False) -> None:
        """Count one more object, in any thread."""


class Progress(ty.Protocol):
    """What the operator sees while a run acts (progress.py)."""

    def say(self, message: str) -> None:
        """Print a line at once."""

    def step(self, name: str, total: int) -> Step:
        """Begin to count.

        :param name: what is done, as in 'starting servers'
        :param total: how many objects there are
        """


class NoStep:
    """Counts for nobody."""

    def advance(self, failed: bool = False) -> None:
        """Do nothing."""
