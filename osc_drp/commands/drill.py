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

"""``openstack drp drill``: rehearse the loss on one server."""

import argparse
import typing as ty

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.commands import iscsi as iscsi_commands
from osc_drp.commands import recover
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import drill
    from osc_drp.engine import facts
    from osc_drp.engine import journal
    from osc_drp.hosts import cuts


class Drill(recover.Recover):
    _description = (
        _(
            'Let one server lose its power and storage, and recover it\n\n'
            'For a server whose owner agreed (property drp_drill=true). Takes '
            'checksums of its files, cuts it off as a power loss does: the '
            'iSCSI sessions of its volumes, where there are any, and its '
            'guest\'s process; then recovers it as "drp recover --server" '
            'does, and compares. Nothing of another server is touched, and '
            'what is cut is proven first and said. What the guest has not '
            'written to its disks is lost, as in a real loss. '
        )
        + iscsi_commands.WARNING
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        # not Recover's own: a drill has a server instead of a map
        parser = super(recover.Recover, self).get_parser(prog_name)
        parser.add_argument(
            '--server',
            metavar='<server>',
            type=options.name,
            required=True,
            help=_('The server (name or ID)'),
        )
        parser.add_argument(
            '--path',
            metavar='<path>',
            type=options.name,
            action='append',
            default=[],
            help=_(
                'Take the checksums of the files below this directory of the '
                'guest (default: where its volumes are mounted; repeat '
                'option for several)'
            ),
        )
        parser.add_argument(
            '--cut-command',
            metavar='<program>',
            type=options.name,
            help=_(
                'Cut it off by this program, run here with the ID and the '
                'host of the server, instead of over SSH on its host'
            ),
        )
        options.add_change(parser)
        options.add_readiness(parser)
        options.add_limit(parser)
        options.add_databases(parser)
        options.add_ssh(parser)
        options.add_network(parser)
        parser.set_defaults(
            project=[],
            host=[],
            volume=[],
            classic=False,
            lost_at=None,
            parallel=1,
            per_host=1,
            console_after=0.0,
            skip_guests=False,
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.cloud import client
        from osc_drp.engine import drill
        from osc_drp import exceptions
        from osc_drp import mapfile
        from osc_drp.hosts import samples

        progress = base.progress(self.app)
        cloud = client.connect_when_up(
            self.app, parsed_args.wait, progress.say
        )
        seen = cloud.observe()
        server = base.find_server(seen, parsed_args.server)
        parsed_args.server = [server.id]
        held = base.session(parsed_args, self.app, 'drill', None, progress.say)
        with (
            held.held(parsed_args.dry_run),
            self._databases(parsed_args, progress.say) as databases,
        ):
            fresh = not any(e.get('action') == 'drill' for e in held.earlier())
            if fresh:
                drill.check(server, seen)
            cloud_map = self._map_of(held, seen, fresh)
            job = drill.Drill(
                server,
                samples.Sampler(
                    base.guests(parsed_args, cloud, cloud_map),
                    server,
                    [
                        a.volume_id
                        for a in cloud_map.attachments
                        if a.server_id == server.id
                    ],
                    parsed_args.path,
                ),
                self._cuts(parsed_args, cloud, server, seen),
                lambda run: self._recover(
                    parsed_args, held, cloud, databases, cloud_map, run
                ),
                progress.say,
                wait=parsed_args.wait,
            )
            if parsed_args.dry_run:
                return drill.COLUMNS, [
                    (line, '', '', _('would be cut')) for line in job.propose()
                ]
            if fresh:
                lines = job.propose()
                base.confirm(
                    _("'%(name)s' loses its power now (%(cut)s)")
                    % {'name': server.name, 'cut': '; '.join(lines)},
                    f'drill {server.name}',
                    parsed_args.auto_approve,
                )
            self._progress = progress
            with held.journal() as run, progress:
                if fresh:
                    (run.path / recover.MAP).unlink(missing_ok=True)
                    mapfile.write(cloud_map, str(run.path / recover.MAP))
                well, rows = job.carry_out(run, samples.Sample.of_json)
        if not well:
            self.exit_code = exceptions.PARTIAL
        return drill.COLUMNS, rows

    def _map_of(
        self, held: ty.Any, seen: 'facts.Observation', fresh: bool
    ) -> 'facts.CloudMap':
        """Make the map, or take that of the drill that goes on."""
        from osc_drp.engine import mapmaker
        from osc_drp import mapfile

        if not fresh:
            return mapfile.read(str(held.unfinished() / recover.MAP))
        return mapmaker.make_map(seen, base.cloud_name(self.app))

    def _cuts(
        self,
        parsed_args: argparse.Namespace,
        cloud: ty.Any,
        server: 'facts.Server',
        seen: 'facts.Observation',
    ) -> 'list[cuts.Cut]':
        from osc_drp.hosts import cuts
        from osc_drp.hosts import iscsi
        from osc_drp.hosts import ssh

        if parsed_args.cut_command is not None:
            return [cuts.Program(parsed_args.cut_command, server)]
        shell = ssh.Ssh(parsed_args.ssh_config, parsed_args.ssh_user)
        name = server.host or ''
        host = iscsi.Host(shell, name)
        return [
            cuts.Sessions(
                host,
                lambda: iscsi.read_carried(host, cloud, seen, name),
                server,
                seen,
            ),
            cuts.Guest(shell, server),
        ]

    def _recover(
        self,
        parsed_args: argparse.Namespace,
        held: ty.Any,
        cloud: ty.Any,
        databases: ty.Any,
        cloud_map: 'facts.CloudMap',
        run: 'journal.Run',
    ) -> 'drill.Recovered':
        """Recover this server, as `drp recover --server` does."""
        from osc_drp.engine import apply
        from osc_drp.engine import drill
        from osc_drp.engine import recover as engine
        from osc_drp import exceptions
        from osc_drp import report

        job = self._job(
            parsed_args, held, cloud, databases, cloud_map, self._progress
        )
        steps = job.propose_ready()
        if job.has_work(steps):
            steps = job.carry_out(
                steps, run, lambda: engine.Memory.of(held.runs)
            )
        code = report.exit_code_of(steps)
        said = [
            f'{step.name}: {o.what}'
            for step in steps
            for o in step.outcomes
            if o.status in apply.NOT_WELL or step.name == engine.START
        ]
        said += [
            f'{step.name}: {i.reason}'
            for step in steps
            for i in step.items
            if i.do.value == 'flag' and not step.outcomes
        ]
        return drill.Recovered(
            code == exceptions.DONE, '; '.join(said) or _('nothing to do')
        )
