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

"""``openstack drp servers``: step 3 of the procedure."""

import argparse
import typing as ty

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import restart


class RestartServers(base.DrpLister):
    """Start each server that ran when the map was taken, once

    Waits until the hosts are ready and nova has noticed the loss, then
    starts (never reboots) what is off, one server first, then side by side.
    A server that was off before, that a user stopped since, or whose disks
    are not proven to be its own, is left alone and listed with the reason.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser, _('The map, of "openstack drp attachments save"')
        )
        options.add_selection(parser)
        options.add_change(parser)
        options.add_lanes(parser, _('servers'))
        options.add_readiness(parser)
        options.add_lost_at(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import mapfile
        from osc_drp import report
        from osc_drp.engine import plan

        cloud_map = mapfile.read(parsed_args.file)
        plan.check_map(cloud_map, parsed_args.lost_at)
        progress = base.progress(self.app)
        say = progress.say
        held = base.session(
            parsed_args, self.app, 'servers restart', cloud_map, say
        )
        with held.held(parsed_args.dry_run):
            # under the lock: it reads what earlier runs did
            job = self._job(parsed_args, cloud_map, say, held)
            if parsed_args.dry_run:
                items = job.propose()
            else:
                items = job.propose_ready()
            outcomes = base.carry_out(
                *(parsed_args, held, progress, job, items, cloud_map),
                step='restart',
                label=_('starting servers'),
                question=lambda acting: (
                    _('%d servers will be started') % len(acting),
                    f'restart {len(acting)}',
                ),
            )
        self.exit_code = report.exit_code(items, outcomes, parsed_args.dry_run)
        names = report.names(cloud_map, job.seen)
        hosts = {s.id: s.host for s in job.seen.servers.values()}
        rows = report.server_rows(items, outcomes, names, hosts)
        return report.SERVER_COLUMNS, rows

    def _job(
        self,
        parsed_args: argparse.Namespace,
        cloud_map: ty.Any,
        say: ty.Any,
        held: ty.Any,
    ) -> 'restart.Restart':
        from osc_drp.cloud import client
        from osc_drp.engine import cleaner
        from osc_drp.engine import restart

        return restart.Restart(
            client.connect_when_up(self.app, parsed_args.wait, say),
            cloud_map,
            base.selection(parsed_args),
            base.restart_settings(parsed_args),
            say,
            our_stops=held.runs.stops(),
            known=cleaner.Known(
                resets=held.runs.kept(),
                locks=held.runs.locks(),
                unanswered=held.runs.unanswered_reboots(),
            ),
            failing=held.runs.failing(),
        )
