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

"""The databases as the engine sees them (engine/ports.py)."""

import collections.abc
import contextlib
import os

from osc_drp.db import config
from osc_drp.db import engines
from osc_drp.db import read
from osc_drp.db import write
from osc_drp.engine import facts


class Client:
    """All databases of one cloud."""

    def __init__(self, databases: engines.Databases) -> None:
        self._databases = databases

    def check_grants(self, locks: bool = True) -> None:
        """Prove that we may write what we write; writes nothing.

        :param locks: also that we may lock rows
        :raises DatabaseError: naming the privilege that is missing
        """
        engines.when_ready(lambda: write.check_grants(self._databases, locks))

    def observe(self) -> facts.Observation:
        """Read everything, in bulk."""
        return engines.when_ready(lambda: read.observe(self._databases))

    def actions_since(
        self, server_ids: collections.abc.Collection[str], since: str
    ) -> list[facts.Action]:
        """Read the action logs of these servers, oldest first."""
        return engines.when_ready(
            lambda: read.actions_since(self._databases, server_ids, since)
        )

    def reset(
        self,
        pair: facts.Pair,
        confirm: write.Confirm,
        record: write.Record,
        *,
        free: bool = True,
    ) -> None:
        """Take one attachment off both records.

        :param free: False leaves the volume 'reserved', not 'available'
        :raises Changed: the facts are no longer those of the plan
        :raises DatabaseError: a database failed; nothing is half done but
            what running again finishes
        """
        write.reset(self._databases, pair, confirm, record, free=free)

    def observe_cinder(
        self, mapped: collections.abc.Collection[str]
    ) -> facts.Observation:
        """Read cinder's side only.

        :param mapped: volumes that nova maps, by its API
        """
        return engines.when_ready(
            lambda: read.observe_cinder(self._databases, mapped)
        )

    def reset_cinder(
        self,
        pair: facts.Pair,
        confirm: write.Confirm,
        record: write.Record,
    ) -> None:
        """Take one attachment off cinder's record; raises as ``reset``."""
        write.reset_cinder(self._databases, pair, confirm, record)

    def repair(
        self,
        pair: facts.Pair,
        row_id: str,
        confirm: write.Confirm,
        record: write.Record,
    ) -> None:
        """Make cinder say what nova boots from; raises as ``reset``."""
        write.repair(self._databases, pair, row_id, confirm, record)

    def release(
        self,
        pair: facts.Pair,
        row_ids: collections.abc.Collection[str],
        confirm: write.Confirm,
        record: write.Record,
    ) -> None:
        """Take rows off cinder's record; raises as ``reset``."""
        write.release(self._databases, pair, row_ids, confirm, record)

    def undo(
        self, old: write.Old, confirm: write.Confirm, record: write.Record
    ) -> None:
        """Put back what one of these changed.

        :raises Changed: the rows, or reality, moved on
        :raises Refused: it is nothing that osc-drp wrote
        """
        write.undo(self._databases, old, confirm, record)


def configured() -> bool:
    """Tell whether both services' files lie where they usually do."""
    usual = (config.NOVA_CONF, config.CINDER_CONF)
    return all(os.access(path, os.R_OK) for path in usual)


@contextlib.contextmanager
def connect(
    nova_files: collections.abc.Sequence[str],
    cinder_files: collections.abc.Sequence[str],
    drp_file: str | None,
) -> collections.abc.Iterator[Client]:
    """Open the databases that the configuration files name.

    :raises ConfigError: a file or an option is missing
    :raises DatabaseError: a database or a cell does not answer, does not let
        us in, or is of an unknown schema
    """
    urls = config.load(nova_files, cinder_files, drp_file)
    with _open(urls) as client:
        yield client


@contextlib.contextmanager
def connect_cinder(
    cinder_files: collections.abc.Sequence[str], drp_file: str | None
) -> collections.abc.Iterator[Client]:
    """Open cinder's database only; raises as ``connect``."""
    with _open(config.load_cinder(cinder_files, drp_file)) as client:
        yield client


@contextlib.contextmanager
def _open(urls: config.Urls) -> collections.abc.Iterator[Client]:
    opened = engines.when_ready(lambda: engines.open_databases(urls))
    with opened as databases:
        engines.when_ready(databases.check_schema)
        yield Client(databases)
