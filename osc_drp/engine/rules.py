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

"""Gates and rules: what is true of a pair, and what may be done about it.

Data, read from top to bottom: the first entry whose condition holds gives
the verdict. The gates are G1 to G11 of the table that the notes on cinder's
and nova's internals print (section 13), the rules are R1 to R8. Whatever no
entry knows is flagged for a person. Nothing here reads the clock, a file or
a cloud.
"""

import collections.abc
import enum
import typing as ty

from osc_drp.engine import facts


class Action(enum.StrEnum):
    """What a verdict allows."""

    #: True as it is.
    NONE = 'none'
    #: Healthy, and none of our business.
    LEAVE = 'leave'
    #: A person must look.
    FLAG = 'flag'
    #: Make cinder say what nova boots from.
    REPAIR = 'repair'
    #: Take the attachment off nova's record, and off cinder's if it is there.
    RESET = 'reset'
    #: Take the rows that no mapping names off cinder's record.
    RELEASE = 'release'


class Verdict(ty.NamedTuple):
    """The rule that matched, what it allows, and why (for the operator)."""

    rule: str
    action: Action
    reason: str


class Rule(ty.NamedTuple):
    """One line of the table."""

    key: str
    when: collections.abc.Callable[[facts.Pair], bool]
    action: Action
    reason: str


# cinder 29.0.0 objects/fields.py VolumeStatus; the rest of what cinder
# writes (unmanaging, reverting, ...) is unknown here on purpose: flagged.
KNOWN_STATUSES = frozenset(
    {
        'available',
        'in-use',
        'reserved',
        'attaching',
        'detaching',
        'error',
    }
)
CINDER_FINISHES = frozenset({'uploading', 'backing-up'})
# cinder 29.0.0 volume/api.py AVAILABLE_MIGRATION_STATUS, less 'deleting'.
NO_MIGRATION = frozenset({None, '', 'none', 'success', 'error'})
OFF_STATES = frozenset({'stopped', 'error'})
OFF_POWER = frozenset({facts.SHUTDOWN, facts.CRASHED, facts.NOSTATE})
SHELVED = frozenset({'shelved', 'shelved_offloaded'})
FROZEN = frozenset({'suspended', 'paused', 'soft-delete'})
IN_FLIGHT = frozenset({'attaching', 'reserved'})


def settled(pair: facts.Pair) -> bool:
    """Whether the server is known to be off, by a nova-compute that is up."""
    server = pair.server
    return (
        server is not None
        and server.vm_state in OFF_STATES
        and server.task_state is None
        and server.power_state in OFF_POWER
        and pair.compute_up is True
    )


def _matched(pair: facts.Pair) -> bool:
    """Whether one mapping names one attached row, and none is left over."""
    named = pair.named
    return (
        named is not None
        and named.attach_status == 'attached'
        and len(pair.rows) == 1
    )


def _connected(pair: facts.Pair) -> bool:
    # the API does not tell: then what it lists counts as connected
    return pair.mapping is not None and pair.mapping.connected is not False


def _agrees(pair: facts.Pair) -> bool:
    volume = pair.volume
    return (
        volume is not None
        and volume.status == 'in-use'
        and volume.attach_status in ('attached', None)
        and _matched(pair)
        and _connected(pair)
    )


def _same_host(pair: facts.Pair, row: facts.Row) -> bool:
    return (
        row.connector is True
        and pair.server is not None
        and row.host is not None
        and row.host == pair.server.host
    )


def _alone(pair: facts.Pair) -> bool:
    """Whether no other server has the volume, unless several may."""
    multiattach = pair.volume is not None and pair.volume.multiattach
    return multiattach or not (pair.other_rows or pair.other_mappings)


def _words_are_wrong(pair: facts.Pair) -> bool:
    named = pair.named
    return (
        named is not None
        and _connected(pair)
        and _same_host(pair, named)
        and len(pair.rows) == 1
        and _alone(pair)
    )


def _forgotten_row(pair: facts.Pair) -> facts.Row | None:
    """The soft-deleted row that nova's mapping names, if it may come back."""
    mapping = pair.mapping
    if mapping is None or pair.rows or not _connected(pair):
        return None
    row = next(
        (r for r in pair.old_rows if r.id == mapping.attachment_id), None
    )
    if row is None or row.server_id != pair.server_id:
        return None
    if not _same_host(pair, row) or row.deleted_at is None:
        return None
    others = (*pair.old_rows, *pair.other_rows)
    if any(
        r is not row and (r.created_at or '') >= row.deleted_at for r in others
    ):
        return None  # somebody used the volume meanwhile
    return row if _alone(pair) else None


def _unfinished_detach(pair: facts.Pair) -> bool:
    return any(a.action == 'detach_volume' for a in pair.unfinished)


def _has_history(pair: facts.Pair) -> bool:
    """Whether the server is one whose records can be judged at all."""
    server = pair.server
    return server is None or (
        server.launched and server.cell != 'cell0' and not pair.building
    )


def _lost_root(pair: facts.Pair) -> bool:
    """Whether cinder's rows are those of a root disk that nova dropped."""
    device = pair.server.root_device if pair.server else None
    return any(m.root for m in pair.dropped) or (
        device is not None and any(r.device == device for r in pair.rows)
    )


def _leftover_rows(pair: facts.Pair) -> bool:
    named = pair.named
    return (
        named is not None
        and named.attach_status == 'attached'
        and named.connector is True
        and len(pair.rows) > 1
        and pair.volume is not None
        and pair.volume.status != 'error'
        and pair.migrating is False
        and settled(pair)
    )


def _never_finished(pair: facts.Pair) -> bool:
    mapping = pair.mapping
    if mapping is None or mapping.root or mapping.connected is not False:
        return False
    if not settled(pair) or not _has_history(pair):
        return False
    if any(r.attach_status not in IN_FLIGHT for r in pair.rows):
        return False
    # a failed `nova-manage volume_attachment refresh` looks alike, but the
    # volume was attached before: that one has data to lose
    return not any(
        r.server_id == pair.server_id
        and (r.deleted_at or '') >= (mapping.created_at or '')
        for r in pair.old_rows
    )


def _nobody_has_it(pair: facts.Pair) -> bool:
    """Whether it is a volume alone (facts.lone), and waits for nothing.

    An attach makes nova's mapping before it reserves the volume, a detach
    takes cinder's row and the status off together: what is left without
    either is of an attach or detach by nobody we know, or long over.
    """
    return (
        not pair.server_id
        and pair.server is None
        and not (pair.mappings or pair.rows)
        and not (pair.other_mappings or pair.other_rows)
        and pair.volume is not None
        and pair.volume.status in facts.PASSING
    )


def _running(pair: facts.Pair) -> bool:
    return pair.server is not None and pair.server.ran


GATES: tuple[Rule, ...] = (
    Rule(
        'G1',
        lambda p: p.volume is None,
        Action.FLAG,
        'cinder has no such volume',
    ),
    Rule(
        'G2',
        lambda p: (
            p.volume is not None
            and p.volume.migration_status not in NO_MIGRATION
        ),
        Action.FLAG,
        'the volume is being migrated ({migration})',
    ),
    Rule(
        'G4',
        lambda p: p.volume is not None and p.volume.status in CINDER_FINISHES,
        Action.FLAG,
        'the volume is {status}: cinder finishes that itself, look again',
    ),
    Rule(
        'G3',
        lambda p: (
            p.volume is not None and p.volume.status not in KNOWN_STATUSES
        ),
        Action.FLAG,
        'the volume is {status}: a status that is never overwritten',
    ),
    Rule(
        'G5',
        lambda p: any(r.server_id is None for r in p.other_rows),
        Action.FLAG,
        'the volume is also attached to a host, not to a server',
    ),
    Rule(
        'G6',
        lambda p: p.building,
        Action.FLAG,
        'the server is still being built',
    ),
    Rule(
        'G6',
        lambda p: p.server is None and bool(p.mappings),
        Action.FLAG,
        'nova maps the volume for a server that it does not have',
    ),
    Rule(
        'G6',
        lambda p: p.server is not None and p.server.task_state is not None,
        Action.FLAG,
        'the server is busy ({task}): look again when it is not',
    ),
    Rule(
        'G7',
        lambda p: (
            p.server is not None
            and p.server.vm_state in SHELVED
            and p.volume is not None
            and p.volume.status in ('reserved', 'in-use')
            and p.named is not None
            and len(p.rows) == 1
        ),
        Action.LEAVE,
        'the server is {vm}: its volume waits for it',
    ),
    Rule(
        # an operator's UPDATE of all volumes frees it for everybody
        'G7',
        lambda p: (
            p.server is not None
            and p.server.vm_state in SHELVED
            and p.volume is not None
            and p.volume.status == 'available'
            and p.named is not None
            and len(p.rows) == 1
            and p.rows[0].attach_status in ('reserved', 'attached')
            and _alone(p)
        ),
        Action.REPAIR,
        'the server is {vm}: its volume waits for it, but says {status}',
    ),
    Rule(
        'G8',
        lambda p: (
            p.server is not None and p.server.vm_state in FROZEN and _agrees(p)
        ),
        Action.LEAVE,
        'the server is {vm}: its memory still refers to the disk',
    ),
    Rule(
        'G6',
        lambda p: (
            p.server is not None
            and p.server.vm_state not in OFF_STATES
            and p.server.vm_state != 'active'
        ),
        Action.FLAG,
        'the server is {vm}',
    ),
    Rule(
        'G11',
        lambda p: (
            p.mapping is not None
            and p.mapping.attachment_id is None
            and p.mapping.connected is not False
            and p.volume is not None
            and p.volume.status == 'in-use'
            and len(p.rows) == 1
        ),
        Action.LEAVE,
        'attached before Queens: start the server, never reboot it',
    ),
    Rule(
        'G11',
        lambda p: (
            p.mapping is not None
            and p.mapping.attachment_id is None
            and p.mapping.connected is not False
        ),
        Action.FLAG,
        'nova names no attachment of the volume, and the records differ',
    ),
    Rule(
        'G9',
        lambda p: (
            _running(p)
            and not _agrees(p)
            and not _words_are_wrong(p)
            and _forgotten_row(p) is None
        ),
        Action.FLAG,
        'the guest runs, and the records differ',
    ),
)

RULES: tuple[Rule, ...] = (
    Rule(
        'R6',
        _leftover_rows,
        Action.RELEASE,
        'cinder has further rows of this server that nova does not name',
    ),
    Rule('R1', _agrees, Action.NONE, 'nova and cinder agree'),
    Rule(
        'R2',
        lambda p: (
            _words_are_wrong(p)
            and p.volume is not None
            and p.volume.status == 'detaching'
        ),
        Action.REPAIR,
        "cinder has nova's attachment, but says {status}/{row}: a user "
        'wanted it off, and nova never came to it',
    ),
    Rule(
        'R2',
        _words_are_wrong,
        Action.REPAIR,
        "cinder has nova's attachment, but says {status}/{row}",
    ),
    Rule(
        # all below would compute its status anew, and hide the error
        'R8',
        lambda p: p.volume is not None and p.volume.status == 'error',
        Action.FLAG,
        'the volume is in error, and the records differ',
    ),
    Rule(
        'R3a',
        lambda p: (
            _forgotten_row(p) is not None
            and _unfinished_detach(p)
            and p.mapping is not None
            and not p.mapping.root
            and settled(p)
        ),
        Action.RESET,
        "a user's detach was nearly done: cinder forgot, nova did not yet",
    ),
    Rule(
        'R3',
        lambda p: _forgotten_row(p) is not None,
        Action.REPAIR,
        'cinder forgot the attachment that nova boots from',
    ),
    Rule(
        'R4',
        lambda p: (
            bool(p.rows)
            and not p.mappings
            and (p.server is None or settled(p))
            and p.migrating is False
            and _has_history(p)
            and not _lost_root(p)
        ),
        Action.RELEASE,
        'cinder remembers an attachment that nova dropped',
    ),
    Rule(
        'R5',
        _never_finished,
        Action.RESET,
        'the attach never finished',
    ),
    Rule(
        'R7',
        _nobody_has_it,
        Action.RELEASE,
        'the volume is {status}, and neither record has an attachment of it',
    ),
)

UNKNOWN = Rule(
    'R8', lambda p: True, Action.FLAG, 'the records differ in no known way'
)


def judge(pair: facts.Pair) -> Verdict:
    """Give the one verdict on a pair: total, and the same every time.

    ``verdicts.judge_all`` adds what only the whole cloud tells.
    """
    for rule in (*GATES, *RULES, UNKNOWN):
        if rule.when(pair):
            return Verdict(rule.key, rule.action, _explain(rule, pair))
    raise AssertionError('R8 matches everything')


def own_half(pair: facts.Pair) -> bool:
    """Whether a killed reset of ours left this: nova forgot, cinder not yet.

    Proven from the rows: a live attached row that only a soft-deleted
    mapping of the same server names (DESIGN 4).
    """
    return (
        not pair.mappings
        and len(pair.rows) == 1
        and pair.rows[0].attach_status == 'attached'
        and any(m.attachment_id == pair.rows[0].id for m in pair.dropped)
        and judge(pair).rule == 'R4'
        and pair.server is not None
    )


def _explain(rule: Rule, pair: facts.Pair) -> str:
    volume, server = pair.volume, pair.server
    return rule.reason.format(
        status=volume.status if volume else 'gone',
        migration=volume.migration_status if volume else '',
        vm=server.vm_state if server else 'unknown',
        task=server.task_state if server else '',
        row=pair.rows[0].attach_status if pair.rows else 'no row',
    )
