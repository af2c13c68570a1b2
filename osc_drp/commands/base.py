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

"""What all `drp` commands share: options, errors, the question, exit codes.

This module is imported on every ``openstack`` call, whatever the command:
standard library, cliff and our own exceptions only.
"""

import argparse
import collections.abc
import contextlib
import os
import pathlib
import typing as ty

from openstackclient import command

from osc_drp import exceptions
from osc_drp.i18n import _

EXIT_CODES = _(
    'Exit codes: 0 done; 1 failed (a file, a database, an API); 2 wrong '
    'usage; 3 finished, but some objects failed or need a person; 4 '
    'refused by a safety check, nothing changed; 130 interrupted.'
)

#: The names of the cloud where nobody named one.
NO_CLOUD = frozenset({'envvars', 'defaults'})
#: What options and arguments are called that are looked for from here.
PATHS = frozenset({'<file>', '<directory>'})

Rows: ty.TypeAlias = collections.abc.Iterable[tuple[ty.Any, ...]]
Table: ty.TypeAlias = tuple[tuple[str, ...], Rows]


class _Base(command.Command):
    """Turns our errors into one sentence and their exit code."""

    # Keystone may be down after a power loss: whoever needs an API asks for
    # it (cloud.session.connect), nobody needs it to be able to start.
    auth_required = False

    _parser: argparse.ArgumentParser | None = None

    #: What a command that prints its table nevertheless ends with.
    exit_code = exceptions.DONE

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.epilog = EXIT_CODES
        # cliff's: how the table is printed
        self._foreign = {a.dest for a in parser._actions}
        self._parser = parser
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        if self._parser:
            parsed_args.again = self._words(self._parser, parsed_args)
        try:
            code = super().run(parsed_args)
        except exceptions.DrpError as error:
            from osc_drp import text

            self.log.debug('the error in full', exc_info=True)
            self.log.error('%s', text.plain(str(error)))
            return error.exit_code
        except KeyboardInterrupt:
            self.log.error(
                _('interrupted; the same command goes on where this ended')
            )
            return exceptions.INTERRUPTED
        finally:
            self._end_stream()
        return code or self.exit_code

    def _end_stream(self) -> None:
        """Keep the exit code where nobody reads standard error any more."""
        try:
            self.app.stderr.flush()
        except BrokenPipeError:
            from osc_drp import report

            report.let_go(self.app.stderr)
        except (OSError, ValueError):
            # a full disk, a closed stream: nothing can be said about it
            return

    def _words(
        self, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace
    ) -> list[str]:
        """Give the command again, as it has to be typed anywhere.

        From what was parsed, not from what was typed: a global option may
        have been a password. Without --auto-approve: then it asks.
        """
        words = ['openstack']
        name = cloud_name(self.app)
        if name not in NO_CLOUD:
            words += ['--os-cloud', name]
        words += (self.cmd_name or '').split()
        given: list[str] = []
        for action in parser._actions:
            value = getattr(parsed_args, action.dest, None)
            if action.dest in {*self._foreign, 'dry_run', 'auto_approve'}:
                continue
            if value == action.default:
                continue
            if action.nargs == 0:
                words.append(action.option_strings[0])
                continue
            for one in value if isinstance(value, list) else [value]:
                text = str(one)
                if action.metavar in PATHS and text != '-':
                    text = os.path.abspath(text)
                if action.option_strings:
                    words += [action.option_strings[0], text]
                else:
                    given.append(text)
        return words + given


class DrpCommand(_Base):
    """A command without a table."""


#: Formats that escape by themselves what no terminal may get.
ESCAPING = frozenset({'json', 'yaml'})


class DrpLister(_Base, command.Lister):
    """A command that prints one table, and still has an exit code."""

    def produce_output(
        self,
        parsed_args: argparse.Namespace,
        column_names: collections.abc.Sequence[str],
        data: collections.abc.Iterable[collections.abc.Sequence[ty.Any]],
    ) -> int:
        if parsed_args.formatter not in ESCAPING:
            data = [tuple(map(self._printable, row)) for row in data]
        code: int = super().produce_output(parsed_args, column_names, data)
        return code

    def _printable(self, cell: ty.Any) -> ty.Any:
        """Make a cell fit for the terminal, and for its encoding.

        Names are their owners' choice, and the table tells what was done: it
        must not get lost by one of them.
        """
        from osc_drp import text

        if not isinstance(cell, str):
            return cell
        encoding = getattr(self.app.stdout, 'encoding', None) or 'utf-8'
        said = text.plain(cell).replace('\n', ' ')
        return said.encode(encoding, 'backslashreplace').decode(encoding)


def databases(parsed_args: argparse.Namespace) -> ty.Any:
    """Open the databases that the options name (a context manager)."""
    from osc_drp.db import client

    return client.connect(
        parsed_args.nova_config_file,
        parsed_args.cinder_config_file,
        parsed_args.config_file,
    )


def half_databases(
    parsed_args: argparse.Namespace, app: ty.Any
) -> contextlib.AbstractContextManager[ty.Any]:
    """Open cinder's database only, and log in for nova's side."""
    from osc_drp.cloud import client as cloud_client
    from osc_drp.db import client
    from osc_drp.engine import cinder_only

    @contextlib.contextmanager
    def opened() -> collections.abc.Iterator[cinder_only.HalfDatabases]:
        cloud = cloud_client.connect(app)
        with client.connect_cinder(
            parsed_args.cinder_config_file, parsed_args.config_file
        ) as cinder:
            yield cinder_only.HalfDatabases(cloud, cinder)

    return opened()


def databases_configured() -> bool:
    """Tell whether the services' configuration files lie where they do."""
    from osc_drp.db import client

    return client.configured()


def guests(
    parsed_args: argparse.Namespace, cloud: ty.Any, cloud_map: ty.Any
) -> ty.Any:
    """Give the way into the servers of a map."""
    from osc_drp.engine import facts
    from osc_drp.hosts import guests as hosts_guests
    from osc_drp.hosts import ssh

    attachments = facts.group(cloud_map.attachments, lambda a: a.server_id)
    return hosts_guests.Guests(
        ssh.Ssh(parsed_args.ssh_config, parsed_args.ssh_user),
        cloud.addresses,
        lambda server_id: [
            a.volume_id for a in attachments.get(server_id, ())
        ],
        parsed_args.network,
    )


def read_map(
    parsed_args: argparse.Namespace,
    app: ty.Any,
    look: collections.abc.Callable[[], ty.Any],
) -> ty.Any:
    """Read the map; without one, make it of what the cloud has now."""
    from osc_drp.engine import mapmaker
    from osc_drp import mapfile

    if parsed_args.file is not None:
        return mapfile.read(parsed_args.file, allow_bare=True)
    return mapmaker.make_map(look(), cloud_name(app))


def find_server(seen: ty.Any, wanted: str) -> ty.Any:
    """Find a server by its id or its only name.

    :raises DrpError: there is none, or more than one
    """
    if wanted in seen.servers:
        return seen.servers[wanted]
    found = [s for s in seen.servers.values() if s.name == wanted]
    if not found:
        raise exceptions.DrpError(_("there is no server '%s'") % wanted)
    if len(found) > 1:
        raise exceptions.DrpError(
            _("more than one server is named '%s': use its id") % wanted
        )
    return found[0]


def selection(parsed_args: argparse.Namespace) -> ty.Any:
    """Give the plan.Selection that the options name."""
    from osc_drp.engine import plan

    return plan.Selection(
        tuple(parsed_args.server),
        tuple(parsed_args.project),
        tuple(parsed_args.host),
        tuple(parsed_args.volume),
    )


def restart_settings(parsed_args: argparse.Namespace) -> ty.Any:
    """Give the restart.Settings that the options name."""
    from osc_drp.engine import apply
    from osc_drp.engine import restart

    return restart.Settings(
        wait=parsed_args.wait,
        settle=parsed_args.settle,
        lost_at=parsed_args.lost_at,
        skip_not_ready=parsed_args.skip_not_ready,
        limits=apply.Limits(parsed_args.parallel, parsed_args.per_host),
    )


def session(
    parsed_args: argparse.Namespace,
    app: ty.Any,
    command_name: str,
    cloud_map: ty.Any,
    say: ty.Any,
    **subject: str,
) -> ty.Any:
    """Open the engine's session for a command on a map (None: without).

    :param subject: what it is about, besides map and selection
    """
    from osc_drp.engine import session as engine_session

    return engine_session.Session(
        run_directory(parsed_args, app),
        command_name,
        {
            'map': cloud_map.sha256 if cloud_map else '',
            'selection': (
                selection(parsed_args).subject()
                if hasattr(parsed_args, 'project')
                else {}
            ),
            **subject,
        },
        say,
        getattr(parsed_args, 'again', ()),
    )


def cloud_name(app: ty.Any) -> str:
    """Name the cloud as clouds.yaml does ('envvars' without one)."""
    return getattr(app.cloud, 'name', None) or 'envvars'


def run_directory(
    parsed_args: argparse.Namespace, app: ty.Any
) -> pathlib.Path:
    """Tell where the journals lie."""
    if parsed_args.run_dir is not None:
        return pathlib.Path(parsed_args.run_dir)
    state = os.environ.get('XDG_STATE_HOME') or '~/.local/state'
    try:
        home = pathlib.Path(state).expanduser()
    except RuntimeError:
        # no $HOME, and a user whom nobody knows: a container
        raise exceptions.DrpError(
            _('you have no home directory: say by --run-dir where runs lie')
        ) from None
    return home / 'osc-drp' / cloud_name(app)


def progress(app: ty.Any) -> ty.Any:
    """Give the progress.Progress of a command that acts."""
    from osc_drp import progress

    return progress.Progress(app.stderr, quiet=app.options.verbose_level == 0)


def carry_out(
    parsed_args: argparse.Namespace,
    held: ty.Any,
    progress: ty.Any,
    job: ty.Any,
    items: ty.Any,
    cloud_map: ty.Any,
    *,
    step: str,
    label: str,
    question: collections.abc.Callable[[ty.Any], tuple[str, str]],
    unasked: collections.abc.Collection[ty.Any] = (),
) -> ty.Any:
    """Ask, and do what was planned; nothing in a dry run.

    :param held: the session, which is held
    :param job: the engine's, which planned the items
    :param step: what the outcomes are of, in the journal
    :param label: what the operator sees it do
    :param question: what to ask about the items that change something, and
        the phrase to be typed
    :param unasked: what else is carried out: what an earlier run began
    :returns: the outcomes
    :raises Refused: no terminal, or another answer
    """
    from osc_drp import report
    from osc_drp.engine import plan
    from osc_drp.engine import session

    acting = [i for i in items if i.do in plan.ACTING]
    does = {*plan.ACTING, *unasked}
    count = sum(i.do in does for i in items)
    if parsed_args.dry_run or not count:
        return []
    if acting:
        confirm(*question(acting), parsed_args.auto_approve)
    with held.journal() as run, progress:
        names = report.names(cloud_map, job.seen)
        session.announce(run, step, items, names, does)
        return job.carry_out(items, run, progress.step(label, count))


def confirm(sentence: str, phrase: str, approved: bool) -> None:
    """Ask the operator to type the phrase with the numbers.

    Asks on the terminal itself: standard input may be the map.

    :param sentence: what is about to happen, with the numbers
    :raises Refused: no terminal, or another answer
    """
    if approved:
        return
    try:
        # two streams: a terminal cannot seek, so one for both is refused
        with (
            open('/dev/tty', 'w', errors='replace') as screen,
            open('/dev/tty', errors='replace') as keyboard,
        ):
            screen.write(
                _("%(what)s: type '%(phrase)s' to go on: ")
                % {'what': sentence, 'phrase': phrase}
            )
            screen.flush()
            answer = keyboard.readline().strip()
    except OSError:
        raise exceptions.Refused(
            _('no terminal to ask on: use --auto-approve to %s') % phrase
        ) from None
    if answer != phrase:
        raise exceptions.Refused(
            _("the answer was not '%s': nothing was changed") % phrase
        )
