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

"""``openstack drp db``: commands that write databases and nothing else."""

import argparse

from osc_drp.commands import base
from osc_drp.i18n import _


class ResetDatabase(base.DrpLister):
    """Take the attachments of the map off nova's and cinder's records

    Step 2 of the procedure: row by row, each one guarded, both records or
    none. The volumes become available. Only for servers that "openstack drp
    servers restart" would start afterwards; root disks are never touched,
    nor is anything on which nova and cinder do not agree.

    A cloud whose records agree needs no reset: starting the servers is the
    whole recovery.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'file',
            metavar='<file>',
            help=_('The map, of "openstack drp attachments save"'),
        )
        base.add_selection(parser)
        base.add_change(parser)
        base.add_databases(parser)
        base.add_lost_at(parser)
        parser.add_argument(
            '--limit',
            metavar='<percent>',
            type=base.percent,
            default=5.0,
            help=_(
                'How much of all mappings may disagree without a trace '
                'before nothing is written at all (default: 5)'
            ),
        )
        parser.add_argument(
            '--settle',
            metavar='<seconds>',
            type=base.seconds,
            default=120.0,
            help=_(
                'How long the state of a server that nova did not stop by '
                'itself must be seen unchanged (default: 120)'
            ),
        )
        parser.add_argument(
            '--host-is-dead',
            metavar='<host>',
            action='append',
            default=[],
            help=_(
                'State that nothing runs on this compute host although its '
                'nova-compute is down (repeat option for several)'
            ),
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import mapfile
        from osc_drp import report
        from osc_drp.engine import apply
        from osc_drp.engine import plan
        from osc_drp.engine import reset

        cloud_map = mapfile.read(parsed_args.file)
        plan.check_map(cloud_map, parsed_args.lost_at)
        say = report.Reporter(self.app.stderr).say
        held = base.session(parsed_args, self.app, 'db reset', cloud_map, say)
        outcomes: list[apply.Outcome] = []
        with (
            held.held(parsed_args.dry_run),
            base.databases(parsed_args) as databases,
        ):
            databases.check_grants()
            job = reset.Reset(
                databases,
                cloud_map,
                base.selection(parsed_args),
                say,
                limit=parsed_args.limit / 100,
                settle=parsed_args.settle,
                dead_hosts=frozenset(parsed_args.host_is_dead),
                lost_at=parsed_args.lost_at,
            )
            if parsed_args.dry_run:
                items = job.propose()
            else:
                items = job.propose_settled()
            acting = [i for i in items if i.do in plan.ACTING]
            if acting and not parsed_args.dry_run:
                base.confirm(
                    _(
                        '%(volumes)d attachments of %(servers)d servers '
                        'will be taken off both records'
                    )
                    % {
                        'volumes': len(acting),
                        'servers': len({i.server_id for i in acting}),
                    },
                    f'reset {len(acting)}',
                    parsed_args.auto_approve,
                )
                with held.journal() as run:
                    outcomes = job.carry_out(items, run)
        self.exit_code = report.exit_code(items, outcomes, parsed_args.dry_run)
        names = report.names(cloud_map, job.seen)
        return report.COLUMNS, report.attachment_rows(items, outcomes, names)
