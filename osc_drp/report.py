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

"""What the operator sees: lines on stderr, one table on stdout."""

import collections.abc
import contextlib
import os
import threading
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import plan
from osc_drp.engine import recover
from osc_drp.engine import timeline
from osc_drp import text


def let_go(stream: ty.TextIO) -> None:
    """Give a stream whose reader has gone to nobody.

    What is still in its buffer would otherwise fail once more when Python
    ends, and make the exit code 120. A stream without a file stays.
    """
    with contextlib.suppress(OSError, ValueError):
        nobody = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nobody, stream.fileno())
        finally:
            os.close(nobody)


class Lenient:
    """A stream that may be lost: what is done matters more than its report.

    ``2>&1 | tee log`` loses its reader to the Ctrl-C that the command itself
    outlives; the journal has it all.
    """

    def __init__(self, stream: ty.TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Show what was written, or not."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        # a full disk may get room again, a reader never comes back
        if isinstance(error, BrokenPipeError):
            let_go(self._stream)

    def __getattr__(self, name: str) -> ty.Any:
        return getattr(self._stream, name)


class Reporter:
    """Says on stderr what happens; the table is left to cliff.

    Never fails: see Lenient.
    """

    def __init__(self, stream: ty.TextIO) -> None:
        self._stream = ty.cast(ty.TextIO, Lenient(stream))
        self._lock = threading.Lock()

    def say(self, message: str) -> None:
        """Print a line at once."""
        with self._lock:
            self._stream.write(text.plain(message) + '\n')
            self._stream.flush()


#: What the Result column says of an item that no outcome tells about.
_RESULTS = {
    plan.Do.NOTHING: 'ok',
    plan.Do.LEAVE: 'left',
    plan.Do.FLAG: 'open',
    plan.Do.WAIT: 'open',
    plan.Do.PROVE: 'open',
}

COLUMNS = ('Server', 'Server ID', 'Volume ID', 'Device', 'Result', 'Reason')
STEP_COLUMNS = ('Step', *COLUMNS)
SERVER_COLUMNS = ('Server', 'Server ID', 'Host', 'Result', 'Reason')
ATTEMPT_COLUMNS = (
    *('Begun', 'Seconds', 'Server', 'Server ID', 'Volume ID'),
    *('Step', 'Result', 'Reason'),
)


def _result(item: plan.Item, outcome: apply.Outcome | None) -> tuple[str, str]:
    if outcome is None:
        return _RESULTS.get(item.do, f'would {item.do}'), item.reason
    if outcome.warning:
        return outcome.status, f'{outcome.what}; {outcome.warning}'
    return outcome.status, outcome.what


def attachment_rows(
    items: collections.abc.Iterable[plan.Item],
    outcomes: collections.abc.Iterable[apply.Outcome],
    names: collections.abc.Mapping[str, str],
) -> list[tuple[str, ...]]:
    """Give one row per attachment, for COLUMNS, by server and device."""
    by_key = {(o.server_id, o.volume_id): o for o in outcomes}

    def device(item: plan.Item) -> str | None:
        return item.attachment.device if item.attachment else None

    def place(item: plan.Item) -> tuple[str, str, tuple[int, str]]:
        name = names.get(item.server_id, '')
        return name, item.server_id, facts.device_order(device(item))

    return [
        (
            names.get(i.server_id, ''),
            i.server_id,
            i.volume_id,
            device(i) or '',
            *_result(i, by_key.get((i.server_id, i.volume_id))),
        )
        for i in sorted(items, key=place)
    ]


def step_rows(
    steps: collections.abc.Iterable[recover.Step],
    names: collections.abc.Mapping[str, str],
) -> list[tuple[str, ...]]:
    """Give one row per step and object, for STEP_COLUMNS.

    Of the records' repair, only what is not left as it is.
    """
    rows = []
    for step in steps:
        told = {(o.server_id, o.volume_id) for o in step.outcomes}
        items = [
            i
            for i in step.items
            if step.name != recover.REPAIR
            or i.do not in (plan.Do.NOTHING, plan.Do.LEAVE)
            or (i.server_id, i.volume_id) in told
        ]
        rows += [
            (step.name, *row)
            for row in attachment_rows(items, step.outcomes, names)
        ]
    return rows


def server_rows(
    items: collections.abc.Iterable[plan.Item],
    outcomes: collections.abc.Iterable[apply.Outcome],
    names: collections.abc.Mapping[str, str],
    hosts: collections.abc.Mapping[str, str | None],
) -> list[tuple[str, ...]]:
    """Give one row per server, for SERVER_COLUMNS."""
    by_server = {o.server_id: o for o in outcomes}
    return [
        (
            names.get(i.server_id, ''),
            i.server_id,
            hosts.get(i.server_id) or '',
            *_result(i, by_server.get(i.server_id)),
        )
        for i in items
    ]


def attempt_rows(found: timeline.Timeline) -> list[tuple[str, ...]]:
    """Give one row per attempt and per note, for ATTEMPT_COLUMNS."""
    rows = [
        (
            b.span.begun,
            f'{b.span.seconds:.1f}',
            found.names.get(b.server_id, ''),
            b.server_id,
            b.volume_id,
            b.action,
            b.status,
            b.what,
        )
        for b in found.bars
    ]
    rows += [(n.at, '', '', '', '', n.event, '', n.text) for n in found.notes]
    return [
        (row[0].isoformat(timespec='seconds'), *row[1:])
        for row in sorted(rows, key=lambda r: r[0])
    ]


def names(
    cloud_map: facts.CloudMap | None, seen: facts.Observation | None
) -> dict[str, str]:
    """Give the servers' names: of today, else of the map."""
    known = {s.id: s.name for s in cloud_map.servers} if cloud_map else {}
    if seen:
        known.update({s.id: s.name for s in seen.servers.values()})
    return known


def exit_code_of(
    steps: collections.abc.Iterable['recover.Step'], dry_run: bool = False
) -> int:
    """Give the exit code of all steps of a recovery."""
    return max(exit_code(s.items, s.outcomes, dry_run) for s in steps)


def exit_code(
    items: collections.abc.Iterable[plan.Item],
    outcomes: collections.abc.Iterable[apply.Outcome],
    dry_run: bool = False,
) -> int:
    """Give 3 if something failed or needs a person, else 0."""
    told = {(o.server_id, o.volume_id) for o in outcomes}
    if any(o.status in apply.NOT_WELL for o in outcomes):
        return exceptions.PARTIAL
    unsure = {plan.Do.FLAG}
    if not dry_run:
        # a real run waited for these, and asked
        unsure |= {plan.Do.WAIT, plan.Do.PROVE}
    if any(
        i.do in unsure and (i.server_id, i.volume_id) not in told
        for i in items
    ):
        return exceptions.PARTIAL
    return exceptions.DONE
