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

"""``openstack drp hosts``: the machines below the servers."""

import argparse

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _


class CheckHosts(base.DrpLister):
    _description = _(
        'Look at compute and storage hosts for what a recovery trips over\n\n'
        'Over SSH, and only reading: disks of the SAN in /etc/fstab, iSCSI '
        'sessions that no attachment names, packet filter rules that are '
        'gone, LVM of guests that the host has activated. Each finding has '
        'its evidence and the fix. Exit code 0 if all is good, else 3.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser,
            _(
                'Map whose hosts are meant (- for standard input); without '
                'it, all hosts with nova-compute or cinder-volume'
            ),
            optional=True,
        )
        options.add_selection(parser)
        options.add_lanes(parser, _('hosts'))
        options.add_ssh(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.cloud import client
        from osc_drp.engine import apply
        from osc_drp.engine import plan
        from osc_drp import exceptions
        from osc_drp.hosts import ssh
        from osc_drp.hosts import survey

        cloud = client.connect(self.app)
        seen = cloud.observe()
        cloud_map = base.read_map(parsed_args, self.app, lambda: seen)
        wanted = base.selection(parsed_args)
        selected = plan.select(cloud_map, wanted, seen)
        hosts = survey.host_names(
            seen,
            selected.server_ids,
            not parsed_args.file and wanted == plan.Selection(),
        )
        shell = ssh.Ssh(parsed_args.ssh_config, parsed_args.ssh_user)
        looks = survey.HostSurvey(cloud, seen, shell)
        with base.progress(self.app) as progress:
            found = survey.each(
                {host: host for host in hosts},
                looks.ask,
                apply.Limits(parsed_args.parallel, parsed_args.per_host),
                progress.say,
                progress.step(_('looking at hosts'), len(hosts)),
            )
        if not survey.well(found):
            self.exit_code = exceptions.PARTIAL
        return ('Host', *survey.COLUMNS), (
            (host, *finding)
            for host, findings in found.items()
            for finding in survey.rows(findings)
        )
