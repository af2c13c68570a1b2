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

"""``openstack drp recover``: the whole procedure in one command."""

import argparse
import contextlib
import datetime
import shlex
import typing as ty

from osc_drp import exceptions
from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import facts
    from osc_drp.engine import ports
    from osc_drp.engine import recover

#: The map of a run, in its directory.
MAP = 'map.json'
#: An unfinished run that rested for longer may be of another loss.
STALE = datetime.timedelta(days=1)
#: What --resume brings back of its run, and nobody gives beside it. All else
#: (waiting, limits, databases, ssh, guests) is as it is given now.
BROUGHT_BACK = (
    *('file', 'classic', 'lost_at'),
    *('server', 'project', 'host', 'volume'),
)


class Recover(base.DrpLister):
    """Recover the cloud after a total power loss, step by step

    Repairs what nova and cinder disagree on, starts each server that ran,
    once, and attaches what the map has and both sides lack, as soon as its
    server runs. Shows the plan, asks once, and can be interrupted or killed
    at any point: the same command goes on. While it works on a server, its
    users cannot (a lock of nova, which says so). Servers with the property
    drp_wave=<number> go first, the lowest number before all. Guests that got
    a volume after they had booted are rebooted over SSH in the end.

    Without a file, a map is made of what nova and cinder record now, and
    kept with the run. The databases are used if their configuration is given
    or found; without them, what disagrees is listed, not repaired.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_map(
            parser,
            _('The map, of "openstack drp attachments save"'),
            optional=True,
        )
        parser.add_argument(
            '--classic',
            action='store_true',
            help=_(
                'The procedure as it was printed: take every data disk off '
                'both records, start, attach again. Nothing that agrees '
                'needs this'
            ),
        )
        parser.add_argument(
            '--resume',
            metavar='<run>',
            type=options.name,
            help=_(
                'Go on with this unfinished run: with its map, selection, '
                '--classic and --lost-at; other options are given again'
            ),
        )
        options.add_selection(parser)
        options.add_change(parser)
        options.add_lanes(parser, _('servers'))
        options.add_readiness(parser)
        options.add_lost_at(parser)
        options.add_limit(parser)
        parser.add_argument(
            '--console-after',
            metavar='<seconds>',
            type=options.seconds,
            default=120.0,
            help=_(
                'How long after its start the console of a guest is read, '
                'for signs that its boot hangs; 0: never (default: 120)'
            ),
        )
        parser.add_argument(
            '--skip-guests',
            action='store_true',
            help=_(
                'Do not reboot, over SSH, the guests that got a volume after '
                'they had booted'
            ),
        )
        options.add_databases(parser)
        options.add_ssh(parser)
        options.add_network(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import report
        from osc_drp.cloud import client

        progress = base.progress(self.app)
        held = self._session(parsed_args, progress.say)
        cloud = client.connect_when_up(
            self.app, parsed_args.wait, progress.say
        )
        with (
            held.held(parsed_args.dry_run),
            self._databases(parsed_args, progress.say) as databases,
        ):
            cloud_map = self._map(parsed_args, held, cloud, databases)
            job = self._job(
                parsed_args, held, cloud, databases, cloud_map, progress
            )
            if parsed_args.dry_run:
                steps = job.propose()
            else:
                steps = self._act(parsed_args, held, job, cloud_map, progress)
        self.exit_code = report.exit_code_of(steps, parsed_args.dry_run)
        names = report.names(cloud_map, job.seen)
        return report.STEP_COLUMNS, report.step_rows(steps, names)

    def _act(
        self,
        parsed_args: argparse.Namespace,
        held: ty.Any,
        job: 'recover.Recover',
        cloud_map: 'facts.CloudMap',
        progress: ty.Any,
    ) -> tuple['recover.Step', ...]:
        """Wait, plan, ask, act."""
        from osc_drp import mapfile
        from osc_drp import report
        from osc_drp.engine import apply
        from osc_drp.engine import recover

        steps = job.propose_ready()
        if not job.has_work(steps):
            if held.unfinished() and not report.exit_code_of(steps):
                # it was killed when nothing but its end was missing
                with held.journal():
                    pass
            return steps
        sentence, phrase = recover.question(steps)
        if parsed_args.classic:
            progress.say(recover.warning(steps))
        base.confirm(sentence, phrase, parsed_args.auto_approve)
        with held.journal() as run, progress:
            if not (run.path / MAP).exists():
                mapfile.write(cloud_map, str(run.path / MAP))
            try:
                steps = job.carry_out(
                    steps, run, lambda: recover.Memory.of(held.runs)
                )
            except KeyboardInterrupt:
                progress.say(_('to go on: %s') % self._on(parsed_args, run.id))
                raise
            held.keep_open = any(
                o.status in apply.NOT_WELL for s in steps for o in s.outcomes
            )
        return steps

    def _on(self, parsed_args: argparse.Namespace, run_id: str) -> str:
        """Give the whole line that goes on with a run."""
        assert self._parser is not None
        again = argparse.Namespace(**vars(parsed_args))
        for name in BROUGHT_BACK:
            setattr(again, name, self._parser.get_default(name))
        again.resume = run_id
        return shlex.join(self._words(self._parser, again))

    def _session(
        self, parsed_args: argparse.Namespace, say: 'ports.Say'
    ) -> ty.Any:
        """Open the session; --resume brings back BROUGHT_BACK."""
        from osc_drp import mapfile
        from osc_drp.engine import journal
        from osc_drp.engine import plan

        self._given: facts.CloudMap | None = None
        if parsed_args.resume is not None:
            self._check_resume(parsed_args)
            held = base.session(parsed_args, self.app, 'recover', None, say)
            subject: journal.Entry = held.resume(parsed_args.resume)
            for name, option in (
                ('servers', 'server'),
                ('projects', 'project'),
                ('hosts', 'host'),
                ('volumes', 'volume'),
            ):
                setattr(parsed_args, option, subject['selection'][name])
            parsed_args.classic = bool(subject['classic'])
            parsed_args.lost_at = subject['lost_at'] or None
            return held
        if parsed_args.file is not None:
            self._given = mapfile.read(parsed_args.file)
            plan.check_map(self._given, parsed_args.lost_at)
        return base.session(
            parsed_args,
            self.app,
            'recover',
            self._given,
            say,
            classic='yes' if parsed_args.classic else '',
            lost_at=parsed_args.lost_at or '',
        )

    def _check_resume(self, parsed_args: argparse.Namespace) -> None:
        given = [name for name in BROUGHT_BACK if getattr(parsed_args, name)]
        if given:
            raise exceptions.Usage(
                _(
                    '--resume brings back the map, the selection, --classic '
                    'and --lost-at of its run: leave out %s'
                )
                % ', '.join(
                    '<file>' if n == 'file' else '--' + n.replace('_', '-')
                    for n in given
                )
            )

    @contextlib.contextmanager
    def _databases(
        self, parsed_args: argparse.Namespace, say: 'ports.Say'
    ) -> ty.Iterator[ty.Any]:
        """Open the databases, if there are any."""
        if (
            parsed_args.classic
            or parsed_args.nova_config_file
            or parsed_args.cinder_config_file
            or base.databases_configured()
        ):
            with base.databases(parsed_args) as databases:
                databases.check_grants(locks=not parsed_args.dry_run)
                yield databases
            return
        say(
            _(
                'no configuration of the databases was given or found: what '
                'disagrees is listed, and not repaired'
            )
        )
        yield None

    def _map(
        self,
        parsed_args: argparse.Namespace,
        held: ty.Any,
        cloud: ty.Any,
        databases: ty.Any,
    ) -> 'facts.CloudMap':
        """Give the file's map, an unfinished run's, or a new one."""
        from osc_drp import mapfile
        from osc_drp.engine import mapmaker
        from osc_drp.engine import plan

        if self._given is not None:
            return self._given
        unfinished = held.unfinished()
        if unfinished and (unfinished / MAP).exists():
            cloud_map = mapfile.read(str(unfinished / MAP))
            words = {'run': unfinished.name, 'time': cloud_map.taken_at}
            if parsed_args.resume is None and held.idle() > STALE:
                raise exceptions.Refused(
                    _(
                        'run %(run)s is not finished, its map is of %(time)s '
                        'and may be of another loss: go on with it by '
                        '--resume %(run)s, or save a map and name it'
                    )
                    % words
                )
            held.say(
                _('run %(run)s is not finished: its map is of %(time)s')
                % words
            )
        elif parsed_args.resume is not None:
            raise exceptions.DrpError(
                _('run %s was stopped before it did anything: begin anew')
                % unfinished.name
            )
        else:
            seen = (databases or cloud).observe()
            cloud_map = mapmaker.make_map(seen, base.cloud_name(self.app))
        plan.check_map(cloud_map, parsed_args.lost_at)
        return cloud_map

    def _job(
        self,
        parsed_args: argparse.Namespace,
        held: ty.Any,
        cloud: ty.Any,
        databases: ty.Any,
        cloud_map: 'facts.CloudMap',
        progress: ty.Any,
    ) -> 'recover.Recover':
        from osc_drp.engine import recover

        return recover.Recover(
            cloud,
            databases,
            cloud_map,
            base.selection(parsed_args),
            recover.Settings(
                classic=parsed_args.classic,
                limit=parsed_args.limit / 100,
                console=parsed_args.console_after,
                starting=base.restart_settings(parsed_args),
            ),
            progress,
            recover.Memory.of(held.runs),
            guests=(
                None
                if parsed_args.skip_guests
                else base.guests(parsed_args, cloud, cloud_map)
            ),
            earlier=held.earlier(),
        )
