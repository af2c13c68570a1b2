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

"""``openstack drp guests``: step 5 of the procedure, inside the servers."""

import argparse
import typing as ty

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import facts
    from osc_drp.engine import reboot


class RebootGuests(base.DrpLister):
    _description = _(
        'Reboot servers from the inside, each once\n\n'
        'Step 5 of the recovery, for guests that mount or use a volume that '
        'came back only after their boot. "shutdown -r now" over SSH, with '
        'sudo where needed; never by nova. A new boot id proves that the '
        'guest came back, and the boot id in the journal that no guest is '
        'rebooted twice, even if this command is killed and repeated. Host '
        'keys are always checked. A server of which a volume of the map is '
        'missing is left alone: it might hang at its next boot.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser,
            _(
                'Map of the servers (- for standard input); without it, '
                'what the cloud has now, of selected servers only'
            ),
            optional=True,
        )
        options.add_selection(parser)
        options.add_change(parser)
        options.add_lanes(parser, _('servers'))
        parser.add_argument(
            '--wait',
            metavar='<seconds>',
            type=options.seconds,
            default=300.0,
            help=_(
                'How long to wait for keystone, nova and cinder, and how '
                'long a guest may take to come back (default: 300)'
            ),
        )
        options.add_ssh(parser)
        options.add_network(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.cloud import client
        from osc_drp.engine import plan
        from osc_drp import exceptions
        from osc_drp import report

        wanted = base.selection(parsed_args)
        if not parsed_args.file and wanted == plan.Selection():
            raise exceptions.Usage(
                _('name a map, or the servers (--server and the like)')
            )
        progress = base.progress(self.app)
        say = progress.say
        cloud = client.connect_when_up(self.app, parsed_args.wait, say)
        cloud_map = base.read_map(parsed_args, self.app, cloud.observe)
        held = base.session(
            parsed_args,
            self.app,
            'guests reboot',
            cloud_map if parsed_args.file is not None else None,
            say,
        )
        with held.held(parsed_args.dry_run):
            job = self._job(parsed_args, cloud, cloud_map, say, held)
            items = job.propose()
            outcomes = base.carry_out(
                *(parsed_args, held, progress, job, items, cloud_map),
                step='guest reboot',
                label=_('rebooting guests'),
                question=lambda acting: (
                    _('%d servers will be rebooted from the inside')
                    % len(acting),
                    f'reboot {len(acting)}',
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
        cloud: ty.Any,
        cloud_map: 'facts.CloudMap',
        say: ty.Any,
        held: ty.Any,
    ) -> 'reboot.Reboot':
        from osc_drp.engine import apply
        from osc_drp.engine import journal
        from osc_drp.engine import reboot

        return reboot.Reboot(
            cloud,
            base.guests(parsed_args, cloud, cloud_map),
            cloud_map,
            base.selection(parsed_args),
            reboot.Settings(
                wait=parsed_args.wait,
                limits=apply.Limits(
                    parsed_args.parallel, parsed_args.per_host
                ),
            ),
            say,
            boot_ids=journal.boot_ids(held.earlier()),
            resets=held.runs.resets(),
            wished_off=held.runs.wished_off(),
        )


class CheckGuests(base.DrpLister):
    _description = _(
        'Look inside servers for what keeps them from coming back\n\n'
        'Over SSH, and only reading: /etc/fstab lines without errors=remount-'
        'ro, nofail or _netdev, or by device names that change; /home or the '
        'keys wholly on a volume; file systems that are read-only now; disks '
        'that are missing or of another server, by their serials. Each '
        'finding has its evidence and the fix. Exit code 0 if all is good, '
        'else 3.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser,
            _(
                'Map of the servers (- for standard input); without it, '
                'what the cloud has now'
            ),
            optional=True,
        )
        options.add_selection(parser)
        options.add_lanes(parser, _('servers'))
        options.add_ssh(parser)
        options.add_network(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.cloud import client
        from osc_drp.engine import apply
        from osc_drp.engine import plan
        from osc_drp import exceptions
        from osc_drp.hosts import survey

        cloud = client.connect(self.app)
        seen = cloud.observe()
        cloud_map = base.read_map(parsed_args, self.app, lambda: seen)
        selected = plan.select(cloud_map, base.selection(parsed_args), seen)
        names = {s.id: s.name for s in cloud_map.servers}
        names |= {s.id: s.name for s in seen.servers.values()}
        hosts = {s.id: s.host for s in seen.servers.values()}
        looks = survey.GuestSurvey(
            seen, cloud_map, base.guests(parsed_args, cloud, cloud_map)
        )
        with base.progress(self.app) as progress:
            found = survey.each(
                {
                    s: hosts.get(s)
                    for s in sorted(
                        selected.server_ids, key=lambda s: (names.get(s), s)
                    )
                },
                looks.ask,
                apply.Limits(parsed_args.parallel, parsed_args.per_host),
                progress.say,
                progress.step(
                    _('looking into guests'), len(selected.server_ids)
                ),
            )
        if not survey.well(found):
            self.exit_code = exceptions.PARTIAL
        columns = ('Server', 'Server ID', *survey.COLUMNS)
        return columns, (
            (names.get(server_id, ''), server_id, *finding)
            for server_id, findings in found.items()
            for finding in survey.rows(findings)
        )
