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

"""``openstack drp runs``: what earlier runs did, from their journals."""

import argparse
import os
import pathlib
import typing as ty

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import journal
    from osc_drp.engine import timeline


def _read(path: pathlib.Path) -> 'timeline.Timeline':
    import datetime

    from osc_drp.engine import journal
    from osc_drp.engine import timeline

    made = datetime.datetime.fromtimestamp(
        (path / journal.FILE).stat().st_mtime, datetime.UTC
    )
    return timeline.build(journal.read(path), made)


def _directory(
    parsed_args: argparse.Namespace, app: ty.Any
) -> 'journal.RunDirectory':
    """Give the run directory; the usual one need not be there yet.

    :raises DrpError: that of --run-dir is not there
    """
    from osc_drp import exceptions
    from osc_drp.engine import journal

    path = base.run_directory(parsed_args, app)
    if parsed_args.run_dir is not None and not os.path.exists(path):
        raise exceptions.DrpError(_("there is no run directory '%s'") % path)
    return journal.RunDirectory(path)


def _find(runs: 'journal.RunDirectory', name: str) -> pathlib.Path:
    """Find a run by its id, the beginning of it, or 'latest'."""
    from osc_drp import exceptions

    paths = runs.runs()
    if name == 'latest':
        found = paths[-1:]
    else:
        exact = [p for p in paths if p.name == name]
        found = exact or [p for p in paths if p.name.startswith(name)]
    if not found:
        raise exceptions.DrpError(
            _("no run '%(name)s' in '%(path)s'")
            % {'name': name, 'path': runs.path}
        )
    if len(found) > 1:
        raise exceptions.DrpError(
            _("'%(name)s' may be any of %(count)d runs: %(first)s, %(more)s")
            % {
                'name': name,
                'count': len(found),
                'first': found[0].name,
                'more': found[1].name + (', ...' if len(found) > 2 else ''),
            }
        )
    return found[0]


class ListRuns(base.DrpLister):
    """List the runs on this cloud, oldest first

    From their journals: needs no cloud, takes no lock, and writes nothing.
    What is open of a run is not done by it; a later run may have done it.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        options.add_run_dir(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.engine import timeline

        runs = _directory(parsed_args, self.app)
        holder = runs.holder()
        rows = []
        for path in runs.runs():
            found = _read(path)
            rows.append(
                (
                    path.name,
                    found.command,
                    found.span.begun.isoformat(timespec='seconds'),
                    timeline.state(found, holder),
                    *found.counts,
                )
            )
        columns = ('Run', 'Command', 'Begun', 'State')
        return (*columns, 'Done', 'Failed', 'Open'), rows


class ShowRuns(base.DrpLister):
    """Show what a run did, what is open, and what to type next

    From its journal: needs no cloud, and takes no lock. The table has every
    attempt at every step; what is open and the next command are on standard
    error. With --html also as a page with the timeline of every server,
    which needs nothing but a browser.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'run',
            metavar='<run>',
            help=_('ID of the run, the beginning of it, or "latest"'),
        )
        parser.add_argument(
            '--html',
            metavar='<file>',
            type=options.name,
            help=_('Also write a page to this file, which must not exist'),
        )
        options.add_run_dir(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import report
        from osc_drp.engine import timeline

        runs = _directory(parsed_args, self.app)
        path = _find(runs, parsed_args.run)
        holder = runs.holder()
        found = _read(path)
        state = timeline.state(found, holder)
        if parsed_args.html is not None:
            _write_page(path.name, found, state, parsed_args.html)
        say = report.Reporter(self.app.stderr).say
        for line in _summary(path.name, found, state, holder):
            say(line)
        return report.ATTEMPT_COLUMNS, report.attempt_rows(found)


def _write_page(
    run_id: str, found: 'timeline.Timeline', state: str, file: str
) -> None:
    from osc_drp import exceptions
    from osc_drp import newfile
    from osc_drp import page

    text = page.render(run_id, found, state)
    try:
        newfile.write(text.encode(errors='replace'), file)
    except FileExistsError:
        raise exceptions.DrpError(
            _("'%s' already exists, and is never overwritten") % file
        ) from None
    except OSError as error:
        raise exceptions.DrpError(
            _("'%(file)s' cannot be written: %(reason)s")
            % {'file': file, 'reason': error.strerror or error}
        ) from error


def _summary(
    run_id: str, found: 'timeline.Timeline', state: str, holder: str
) -> list[str]:
    """Say how it stands, in lines."""
    import shlex

    from osc_drp.engine import timeline

    done, failed, rest = found.counts
    lines = [
        _(
            'run %(run)s: %(state)s, %(minutes).1f minutes; '
            '%(done)d done, %(failed)d failed, %(open)d open'
        )
        % {
            'run': run_id,
            'state': state,
            'minutes': found.span.seconds / 60,
            'done': done,
            'failed': failed,
            'open': rest,
        }
    ]
    if state == timeline.UNDER_WAY:
        return [*lines, _('under way: %s') % holder]
    problems = found.problems()
    lines += [
        _('open: %(who)s: %(what)s') % {'who': who, 'what': what}
        for who, what in problems
    ]
    if problems or state != timeline.FINISHED:
        again = shlex.join(found.again)
        lines.append(
            _('next: %s')
            % (again or _('the same command, map and selection again'))
        )
    return lines
