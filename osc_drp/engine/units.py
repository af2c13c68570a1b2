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

"""What the commands that write rows share: one unit after the other.

A unit is one server having one volume: confirmed under the locks, its old
values on the disk before the first write, its outcome after the last one.
"""

import collections.abc
import functools

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.i18n import _

#: Carries out one unit.
Write = collections.abc.Callable[[ports.Confirm, ports.Record], None]
Work = collections.abc.Callable[[plan.Item], apply.Outcome]


def by_volume(
    items: collections.abc.Sequence[plan.Item],
    work: Work,
    say: ports.Say,
    step: ports.Step | None = None,
) -> list[apply.Outcome]:
    """Do all units, one volume after the other, as the locks are taken."""

    def lane(group: list[plan.Item]) -> list[apply.Outcome]:
        outcomes = []
        for item in group:
            try:
                outcomes.append(work(item))
            except exceptions.DrpError as error:
                # the journal failed: what was done before stays done
                outcomes.append(
                    apply.Outcome(
                        item.server_id,
                        item.volume_id,
                        apply.FAILED,
                        str(error),
                    )
                )
        return outcomes

    lanes = [
        apply.Lane(
            key=volume_id,
            host=None,
            work=functools.partial(lane, group),
            untried=tuple(
                apply.Outcome(
                    i.server_id, volume_id, apply.UNTRIED, _('not tried')
                )
                for i in group
            ),
        )
        for volume_id, group in facts.group(
            items, lambda i: i.volume_id
        ).items()
    ]
    return apply.run(lanes, apply.Limits(1, 1), say, step=step)


def journalled(
    run: journal.Run,
    action: str,
    item: plan.Item,
    confirm: ports.Confirm,
    write: Write,
    what: str,
    **more: object,
) -> apply.Outcome:
    """Do one unit and journal it.

    :param what: what became of it, if it is done
    :param more: for the journal, besides what is always in it
    """
    key = {'server': item.server_id, 'volume': item.volume_id, **more}
    checked_at = ''

    def confirmed(seen: facts.Observation) -> None:
        nonlocal checked_at
        confirm(seen)
        checked_at = seen.taken_at

    def record(old: object) -> None:
        run.write('old', action=action, cloud_time=checked_at, rows=old, **key)

    status = apply.DONE
    try:
        write(confirmed, record)
    except exceptions.Changed as error:
        status, what = apply.OPEN, str(error)
    except exceptions.DrpError as error:
        status, what = apply.FAILED, str(error)
    run.write('outcome', action=action, status=status, what=what, **key)
    return apply.Outcome(item.server_id, item.volume_id, status, what)
