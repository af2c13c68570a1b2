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
import collections.abc
import typing as ty

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import facts
    from osc_drp.engine import ports


def _add_dead_hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--host-is-dead',
        metavar='<host>',
        type=options.name,
        action='append',
        default=[],
        help=_(
            'State that nothing runs on this compute host although its '
            'nova-compute is down (repeat option for several)'
        ),
    )


def _check_dead_hosts(
    hosts: collections.abc.Collection[str], seen: 'facts.Observation'
) -> None:
    """Refuse hosts that nobody knows: a typing error stated nothing.

    :raises DrpError: naming the first
    """
    from osc_drp import exceptions

    known = {s.host for s in seen.services if s.binary == 'nova-compute'}
    known |= {s.host for s in seen.servers.values() if s.host}
    for host in hosts:
        if host not in known:
            raise exceptions.DrpError(
                _("--host-is-dead: no compute host is named '%s'") % host
            )


class _Writer(base.DrpLister):
    """A command that plans, asks, writes rows, and shows what became of it."""

    #: What its outcomes are of, in the journal.
    action: str

    def _carry_out(
        self,
        parsed_args: argparse.Namespace,
        held: ty.Any,
        progress: ty.Any,
        cloud_map: ty.Any,
        prepare: collections.abc.Callable[[ty.Any], ty.Any],
        question: collections.abc.Callable[[ty.Any], tuple[str, str]],
        cinder_only: bool = False,
    ) -> base.Table:
        """Do the engine's job.

        :param held: the session
        :param progress: what the operator sees
        :param prepare: makes the job, of the databases
        :param question: what to ask about the items that change something
        :param cinder_only: nova is asked through its API
        """
        from osc_drp import report

        dry_run = parsed_args.dry_run
        opened = (
            base.half_databases(parsed_args, self.app)
            if cinder_only
            else base.databases(parsed_args)
        )
        with held.held(dry_run), opened as databases:
            databases.check_grants(locks=not dry_run)
            job = prepare(databases)
            dead_hosts = getattr(parsed_args, 'host_is_dead', ())
            if dead_hosts:
                # before anything is waited for
                job.propose()
                _check_dead_hosts(dead_hosts, job.seen)
            items = job.propose() if dry_run else job.propose_settled()
            outcomes = base.carry_out(
                *(parsed_args, held, progress, job, items, cloud_map),
                step=self.action,
                label=_('changing records'),
                question=question,
            )
        for line in job.advice():
            held.say(line)
        self.exit_code = report.exit_code(items, outcomes, dry_run)
        names = report.names(cloud_map, job.seen)
        return report.COLUMNS, report.attachment_rows(items, outcomes, names)


class ResetDatabase(_Writer):
    """Take the attachments of the map off nova's and cinder's records

    Step 2 of the procedure: row by row, each one guarded, both records or
    none. The volumes become available. Only for servers that "openstack drp
    servers restart" would start afterwards; root disks are never touched,
    nor is anything on which nova and cinder do not agree.

    A cloud whose records agree needs no reset: starting the servers is the
    whole recovery.
    """

    action = 'reset'

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser, _('The map, of "openstack drp attachments save"')
        )
        options.add_selection(parser)
        options.add_change(parser)
        options.add_databases(parser)
        options.add_lost_at(parser)
        options.add_limit(parser)
        parser.add_argument(
            '--settle',
            metavar='<seconds>',
            type=options.seconds,
            default=120.0,
            help=_(
                'How long the state of a server that nova did not stop by '
                'itself must be seen unchanged (default: 120)'
            ),
        )
        _add_dead_hosts(parser)
        parser.add_argument(
            '--cinder-only',
            action='store_true',
            help=_(
                "For who has cinder's database only: nova is asked through "
                "its API, and the volumes stay 'reserved' until \"servers "
                'restart" made nova forget them by a hard reboot (compute '
                'API 2.100 or later)'
            ),
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import exceptions
        from osc_drp import mapfile
        from osc_drp.engine import cinder_only
        from osc_drp.engine import plan
        from osc_drp.engine import reset

        half = parsed_args.cinder_only
        if half and parsed_args.host_is_dead:
            raise exceptions.Usage(
                _(
                    '--cinder-only and --host-is-dead do not go together: '
                    'only a nova-compute that is up makes nova forget'
                )
            )
        cloud_map = mapfile.read(parsed_args.file)
        plan.check_map(cloud_map, parsed_args.lost_at)
        progress = base.progress(self.app)
        say = progress.say
        subject = {'only': 'cinder'} if half else {}
        held = base.session(
            parsed_args, self.app, 'db reset', cloud_map, say, **subject
        )

        def prepare(databases: ty.Any) -> reset.Reset:
            common: ty.Any = {
                'limit': parsed_args.limit / 100,
                'settle': parsed_args.settle,
                'lost_at': parsed_args.lost_at,
            }
            selection = base.selection(parsed_args)
            if half:
                known = held.runs.kept()
                return cinder_only.Reset(
                    *(databases, cloud_map, selection, say),
                    known=known,
                    **common,
                )
            return reset.Reset(
                *(databases, cloud_map, selection, say),
                dead_hosts=frozenset(parsed_args.host_is_dead),
                **common,
            )

        question = cinder_only.question if half else reset.question
        return self._carry_out(
            parsed_args, held, progress, cloud_map, prepare, question, half
        )


class RepairDatabase(_Writer):
    """Make both records agree again where the cause is known

    Where cinder forgot what nova boots from, its row comes back, for root
    disks and multiattach volumes as well; half-done attaches and detaches
    are finished or taken off; volumes that wait for nobody become
    available. "openstack drp attachments check" shows the same verdicts
    before; what no rule knows is listed, and left to a person.
    """

    action = 'repair'

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser,
            _('Map: only servers and volumes that it has'),
            optional=True,
        )
        options.add_selection(parser)
        options.add_change(parser)
        options.add_databases(parser)
        options.add_limit(parser)
        parser.add_argument(
            '--settle',
            metavar='<seconds>',
            type=options.seconds,
            default=30.0,
            help=_(
                'How long what is to be taken off a record must be seen '
                'unchanged (default: 30)'
            ),
        )
        _add_dead_hosts(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import mapfile
        from osc_drp.engine import repair

        cloud_map = None
        if parsed_args.file is not None:
            cloud_map = mapfile.read(parsed_args.file)
        progress = base.progress(self.app)
        say = progress.say
        held = base.session(parsed_args, self.app, 'db repair', cloud_map, say)

        def prepare(databases: 'ports.Databases') -> repair.Repair:
            return repair.Repair(
                databases,
                cloud_map,
                base.selection(parsed_args),
                say,
                limit=parsed_args.limit / 100,
                settle=parsed_args.settle,
                dead_hosts=frozenset(parsed_args.host_is_dead),
            )

        return self._carry_out(
            parsed_args, held, progress, cloud_map, prepare, repair.question
        )


class UndoDatabase(_Writer):
    """Put back what a run of "drp db reset" or "drp db repair" changed

    Each attachment by itself, its newest change first: only where the rows
    are exactly as the run left them, the server is still off and did
    nothing since, and nobody else got the volume. All others are refused
    and listed. A repair of a volume that was available is never undone.
    """

    action = 'undo'

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'run',
            metavar='<run>',
            help=_('ID of the run (the name of its directory), or the path'),
        )
        options.add_change(parser)
        options.add_databases(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.engine import undo

        progress = base.progress(self.app)
        say = progress.say
        held = base.session(parsed_args, self.app, 'db undo', None, say)
        path = held.runs.find(parsed_args.run)
        changed = undo.entries(path)
        held = base.session(
            parsed_args, self.app, 'db undo', None, say, run=path.name
        )

        def prepare(databases: 'ports.Databases') -> undo.Undo:
            undone = held.runs.undone(path.name)
            return undo.Undo(databases, changed, undone, say)

        half = any(entry.cinder_only for entry in changed)
        return self._carry_out(
            parsed_args, held, progress, None, prepare, undo.question, half
        )
