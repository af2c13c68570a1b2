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

"""`drp attachments check`: a verdict on every attachment, and its witnesses.

Pure: from one observation, and a map if there is one.
"""

import dataclasses

from osc_drp.engine import facts
from osc_drp.engine import mapmaker
from osc_drp.engine import plan
from osc_drp.engine import verdicts
from osc_drp.i18n import _

COLUMNS = (
    'Server',
    'Server ID',
    'Volume ID',
    'Device',
    'Rule',
    'Action',
    'Reason',
    'Nova',
    'Cinder',
    'Volume Status',
    'Server State',
    'Map',
)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line: an attachment of either record or of the map."""

    attachment: facts.MapAttachment
    judged: verdicts.Judged | None
    #: What the map says of it; '' without a map.
    in_map: str

    @property
    def well(self) -> bool:
        """Whether nova, cinder and the map agree."""
        return (
            self.judged is not None
            and self.judged.well
            and self.in_map in ('', IN_BOTH)
        )


IN_BOTH = _('has it')
LACKS = _('lacks it')
ONLY = _('only the map has it')


def check(
    seen: facts.Observation,
    selection: plan.Selection,
    cloud_map: facts.CloudMap | None = None,
) -> tuple[Finding, ...]:
    """Judge what is selected of the cloud, and compare it with the map."""
    judged = {
        (j.pair.server_id, j.pair.volume_id): j
        for j in verdicts.judge_all(seen)
    }
    scope = mapmaker.make_scope(
        seen, [j.pair for j in judged.values()], cloud_map
    )
    selected = plan.select(scope, selection, seen)
    names = {s.id: s.name for s in scope.servers}
    wanted = cloud_map.attachments if cloud_map else ()
    mapped = {(a.server_id, a.volume_id) for a in wanted}
    return tuple(
        Finding(
            one,
            found := judged.get((one.server_id, one.volume_id)),
            _in_map(one, found, mapped) if cloud_map else '',
        )
        for one in mapmaker.in_order(selected.attachments, names)
    )


def _in_map(
    one: facts.MapAttachment,
    judged: verdicts.Judged | None,
    mapped: set[tuple[str, str]],
) -> str:
    if judged is None:
        return ONLY
    key = (one.server_id, one.volume_id)
    return IN_BOTH if key in mapped else LACKS


def rows(
    findings: tuple[Finding, ...], names: dict[str, str]
) -> list[tuple[str, ...]]:
    """Give one row per finding, for COLUMNS."""
    return [
        (
            names.get(f.attachment.server_id, ''),
            f.attachment.server_id,
            f.attachment.volume_id,
            f.attachment.device or '',
            *_words(f),
            f.in_map,
        )
        for f in findings
    ]


def _words(finding: Finding) -> tuple[str, ...]:
    judged = finding.judged
    if judged is None:
        reason = _('neither record has it any more')
        return '', _('attach, unless it was detached'), reason, '', '', '', ''
    verdict = judged.verdict
    return (
        verdict.rule,
        verdicts.WORDS[verdict.action],
        verdict.reason,
        *verdicts.witnesses(judged.pair),
    )
