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

"""The map of all attachments: take it, look at it."""

import argparse
import typing as ty

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import facts
    from osc_drp.engine import ports


class SaveAttachments(base.DrpCommand):
    _description = _(
        'Save which volumes each server has, and which servers run\n\n'
        'Step 1 of the recovery, or better: done daily. The map is the union '
        "of nova's and cinder's records. An existing file is never "
        'overwritten; a cell that is down or a short listing is an error and '
        'leaves no file (admin only). The databases give the same map as the '
        'APIs, much faster, and while keystone is still down.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser, _('File to write the map to (- for standard output)')
        )
        parser.add_argument(
            '--source',
            choices=('api', 'database'),
            default='api',
            help=_('Where to read both records (default: api)'),
        )
        options.add_databases(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from osc_drp.engine import mapmaker
        from osc_drp import mapfile
        from osc_drp import report

        mapfile.refuse_existing(parsed_args.file)
        if parsed_args.source == 'database':
            with base.databases(parsed_args) as databases:
                seen = databases.observe()
        else:
            seen = self._ask()
        cloud_map = mapmaker.make_map(seen, base.cloud_name(self.app))
        digest = mapfile.write(cloud_map, parsed_args.file)
        report.Reporter(self.app.stderr).say(
            _(
                'saved %(servers)d servers, %(attachments)d attachments to '
                '%(file)s (sha256 %(sha256)s)'
            )
            % {
                'servers': len(cloud_map.servers),
                'attachments': len(cloud_map.attachments),
                'file': parsed_args.file,
                'sha256': digest,
            }
        )

    def _ask(self) -> 'facts.Observation':
        from osc_drp.cloud import read
        from osc_drp.cloud import session

        return read.observe(session.connect(self.app))


class ShowAttachments(base.DrpLister):
    _description = _(
        'Show the attachments in a map\n\n'
        'Needs no cloud. With -f value -c Volume -c Server -c Device it '
        "prints the procedure's three columns, which drp attachments restore "
        'takes as well.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(parser, _('Map to show (- for standard input)'))
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.engine import mapmaker
        from osc_drp import mapfile

        cloud_map = mapfile.read(parsed_args.file)
        servers = {s.id: s for s in cloud_map.servers}
        names = {s.id: s.name for s in cloud_map.servers}
        columns = (
            'Volume',
            'Server',
            'Device',
            'Server Name',
            'Root',
            'Tag',
            'Delete On Termination',
            'Multiattach',
            'Recorded By',
            'Ran',
        )
        return columns, (
            (
                one.volume_id,
                one.server_id,
                one.device,
                names.get(one.server_id),
                one.root,
                one.tag,
                one.delete_on_termination,
                one.multiattach,
                one.recorded_by,
                one.server_id in servers and servers[one.server_id].ran,
            )
            for one in mapmaker.in_order(cloud_map.attachments, names)
        )


class CheckAttachments(base.DrpLister):
    _description = _(
        'Compare what nova and cinder record, and say what is wrong\n\n'
        'A verdict on every attachment, with its rule, what "openstack drp '
        'db repair" would do, and the witnesses: both records, the volume '
        'and the server. From the databases if their configuration is given '
        'or found; the APIs alone tell whether the records agree, but not '
        'why they do not. With a map, also what only one of map and cloud '
        'has. Where only nova-manage helps, the exact lines are printed. '
        'Exit code 0 if all agree, else 3.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser,
            _('Map to compare the cloud with (- for standard input)'),
            optional=True,
        )
        options.add_selection(parser)
        options.add_databases(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import exceptions
        from osc_drp import mapfile
        from osc_drp import report
        from osc_drp.engine import check
        from osc_drp.engine import plan
        from osc_drp.engine import verdicts

        say = report.Reporter(self.app.stderr).say
        cloud_map = None
        if parsed_args.file is not None:
            cloud_map = mapfile.read(parsed_args.file, allow_bare=True)
        seen = self._look(parsed_args, say)
        findings = check.check(seen, base.selection(parsed_args), cloud_map)
        older = plan.stale(seen, plan.LIMIT)
        if older and seen.source == 'database':
            say(older)
        for line in verdicts.advice(f.judged for f in findings if f.judged):
            say(line)
        if older or not all(f.well for f in findings):
            self.exit_code = exceptions.PARTIAL
        names = {s.id: s.name for s in cloud_map.servers} if cloud_map else {}
        names |= {s.id: s.name for s in seen.servers.values()}
        return check.COLUMNS, check.rows(findings, names)

    def _look(
        self, parsed_args: argparse.Namespace, say: 'ports.Say'
    ) -> 'facts.Observation':
        from osc_drp import exceptions
        from osc_drp.cloud import read
        from osc_drp.cloud import session

        named = bool(
            parsed_args.nova_config_file or parsed_args.cinder_config_file
        )
        if named or base.databases_configured():
            try:
                with base.databases(parsed_args) as databases:
                    seen: facts.Observation = databases.observe()
                    return seen
            except exceptions.DrpError as error:
                if named:
                    raise
                say(_('asking the APIs instead: %s') % error)
        else:
            say(
                _(
                    'no configuration of the databases was given or found: '
                    'the APIs tell what disagrees, but not why'
                )
            )
        return read.observe(session.connect(self.app))


class RestoreAttachments(base.DrpLister):
    _description = _(
        'Attach the volumes that the map has and both sides lack\n\n'
        'Step 4 of the recovery. Volumes of running servers are attached in '
        'device order, one after the other within a server, with their tag '
        'and delete-on-termination flag. What is attached already is done; '
        'what a user detached since the map was taken is left alone. The '
        "file may also be the procedure's three columns: volume, server, "
        'device (admin only).'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser, _('Map to restore from (- for standard input)')
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
                'long one attach may take (default: 300)'
            ),
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.cloud import client
        from osc_drp.engine import apply
        from osc_drp.engine import plan
        from osc_drp.engine import restore
        from osc_drp import mapfile
        from osc_drp import report

        cloud_map = mapfile.read(parsed_args.file, allow_bare=True)
        progress = base.progress(self.app)
        say = progress.say
        held = base.session(
            parsed_args, self.app, 'attachments restore', cloud_map, say
        )
        job = restore.Restore(
            client.connect_when_up(self.app, parsed_args.wait, say),
            cloud_map,
            base.selection(parsed_args),
            say,
            resets=held.runs.resets(),
            wished_off=held.runs.wished_off(),
            failing=held.runs.failing(),
            limits=apply.Limits(parsed_args.parallel, parsed_args.per_host),
            wait=parsed_args.wait,
        )
        with held.held(parsed_args.dry_run):
            items = job.propose()
            outcomes = base.carry_out(
                *(parsed_args, held, progress, job, items, cloud_map),
                step='attach',
                label=_('attaching volumes'),
                question=lambda acting: (
                    _(
                        '%(volumes)d volumes will be attached to %(servers)d '
                        'servers'
                    )
                    % {
                        'volumes': len(acting),
                        'servers': len({i.server_id for i in acting}),
                    },
                    f'attach {len(acting)}',
                ),
                # what an earlier run began is waited for
                unasked={plan.Do.WAIT},
            )
        self.exit_code = report.exit_code(items, outcomes, parsed_args.dry_run)
        names = report.names(cloud_map, job.seen)
        return report.COLUMNS, report.attachment_rows(items, outcomes, names)
