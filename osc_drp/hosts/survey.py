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

"""Asking many machines what they have, and judging each (checks.py).

Nothing is written on any of them.
"""

import collections.abc
import functools
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import ports
from osc_drp.hosts import checks
from osc_drp.hosts import guests
from osc_drp.hosts import iscsi
from osc_drp.hosts import parse
from osc_drp.hosts import ssh
from osc_drp.i18n import _
from osc_drp import text

Findings: ty.TypeAlias = dict[str, list[checks.Finding]]

COLUMNS = ('Check', 'Verdict', 'Evidence', 'Fix')


def rows(
    findings: collections.abc.Iterable[checks.Finding],
) -> list[tuple[str, str, str, str]]:
    """Give one row per finding, for COLUMNS."""
    return [(f.check, f.verdict, f.evidence, f.fix) for f in findings]


def well(found: Findings) -> bool:
    """Whether there is nothing that a person must look at."""
    return all(
        f.verdict in (checks.GOOD, checks.LEFT)
        for findings in found.values()
        for f in findings
    )


#: Reads the packet filter; whoever is not root needs sudo.
FILTER = """
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
section iptables
as_root iptables -S 2>&1; echo "code $?"
section nftables
as_root nft list ruleset 2>&1; echo "code $?"
section flows
flows=$(as_root ovs-ofctl dump-flows br-int 2>&1)
code=$?
# many thousands on a busy host: counted there
if [ $code = 0 ]; then
    printf '%s\\n' "$flows" | grep -c 'ct('
else
    printf '%s\\n' "$flows"
fi
echo "code $code"
"""


def each(
    machines: collections.abc.Mapping[str, str | None],
    ask: collections.abc.Callable[[str], list[checks.Finding]],
    limits: apply.Limits,
    say: ports.Say,
    step: ports.Step | None = None,
) -> Findings:
    """Ask all machines, side by side; one that fails is a finding.

    :param machines: by key, the host that it runs on (for --per-host)
    """
    found: Findings = {}

    def work(key: str) -> list[apply.Outcome]:
        try:
            found[key] = ask(key)
        except exceptions.DrpError as error:
            found[key] = checks.unreached(str(error))
        return [apply.Outcome(key, '', apply.DONE, '')]

    lanes = [
        apply.Lane(
            key=key, host=host, work=functools.partial(work, key), untried=()
        )
        for key, host in machines.items()
    ]
    apply.Runner(limits, say).run(lanes, canary=False, step=step)
    return {key: found[key] for key in machines}


class GuestSurvey:
    """`drp guests check`."""

    def __init__(
        self,
        seen: facts.Observation,
        cloud_map: facts.CloudMap,
        way: guests.Guests,
    ) -> None:
        self._seen = seen
        self._map = cloud_map
        self._way = way

    def ask(self, server_id: str) -> list[checks.Finding]:
        """Look into one guest.

        :raises SshError: nobody gets in
        """
        server = self._seen.servers.get(server_id)
        if server is None:
            return [checks.Finding('', checks.LEFT, _('deleted since'))]
        if not server.ran:
            why = _('the server is %s') % server.vm_state
            return [checks.Finding('', checks.LEFT, why)]
        sections = self._way.look(server, parse.SCRIPT)
        return checks.judge(
            checks.GUEST_RULES,
            checks.Guest(
                machine=parse.machine(sections),
                wanted=checks.guest_volumes(self._map, server_id),
                allowed={
                    m.volume_id
                    for m in self._seen.mappings
                    if m.server_id == server_id and not m.deleted
                },
            ),
        )


class HostSurvey:
    """`drp hosts check`."""

    def __init__(
        self,
        cloud: ports.Cloud,
        seen: facts.Observation,
        shell: ssh.Ssh,
    ) -> None:
        self._cloud = cloud
        self._seen = seen
        self._shell = shell
        self._here = facts.group(
            (s for s in seen.servers.values() if s.host),
            lambda s: s.host or '',
        )
        agents = {
            s.host for s in seen.services if s.binary.startswith('neutron:')
        }
        self._networked = {
            host
            for host, servers in self._here.items()
            if host in agents and any(s.ran for s in servers)
        }
        self._storage = {
            s.host.split('@')[0]
            for s in seen.services
            if s.binary == 'cinder-volume'
        }

    def ask(self, host: str) -> list[checks.Finding]:
        """Look at one host.

        :raises SshError: nobody gets in
        """
        script = parse.SCRIPT + FILTER + iscsi.LIST
        answer = self._shell.run(ssh.Target(host), script)
        sections = answer.sections()
        sessions, why = iscsi.sessions(sections)
        here = {s.id for s in self._here.get(host, ())}
        volumes = {
            p.volume_id for p in facts.pairs(self._seen) if p.server_id in here
        }
        rules, why_no_rules = filter_rules(sections)
        found = checks.judge(
            checks.HOST_RULES,
            checks.Host(
                name=host,
                machine=parse.machine(sections),
                sessions=sessions,
                volumes=volumes,
                targets=self._targets(here, sessions, volumes),
                filter_rules=rules,
                networked=host in self._networked,
                storage=host in self._storage,
            ),
        )
        if host not in self._networked:
            why_no_rules = ''  # nobody asks for rules there
        unread = [w for w in (why, why_no_rules) if w]
        if not unread:
            return found
        found = [f for f in found if f.verdict != checks.GOOD]
        return found + [
            checks.Finding('read', checks.UNKNOWN, w) for w in unread
        ]

    def _targets(
        self,
        here: collections.abc.Container[str],
        sessions: collections.abc.Iterable[parse.Session],
        volumes: collections.abc.Container[str],
    ) -> frozenset[str]:
        """Read the connection records, if a target's name does not tell.

        It tells another id after a migration (the volume's name_id).
        """
        if all(s.volume_id in volumes for s in sessions):
            return frozenset()
        return frozenset(
            target.iqn
            for row in self._seen.rows
            if row.server_id in here and not row.deleted
            for target in self._cloud.targets(row.id)
        )


def filter_rules(sections: parse.Sections) -> tuple[int | None, str]:
    """Count the packet filter's rules; None, and why, if they are not known.

    Policies (-P) and empty tables are none. There is no rule if a program
    that could be run shows none, and none failed: what a host does not have
    (exit code 127) has no rules.
    """
    count = 0
    read = False
    why = ''
    for name in ('iptables', 'nftables', 'flows'):
        *lines, last = sections.get(name) or ['code 127']
        words = ' '.join(lines)
        code = guests.code_of(last, words)
        refused = guests.sudo_refused(words)
        if code:
            if refused or code != guests.NOT_FOUND:
                why = why or refused or text.one_line(f'{name}: {words}')
            continue
        read = True
        if name == 'flows':
            count += sum(text.number(x) or 0 for x in lines)
        elif name == 'iptables':
            count += sum(x.startswith('-A') for x in lines)
        else:
            count += _nft_rules(lines)
    if count:
        return count, ''
    if not read:
        why = why or _('it has neither iptables, nft nor ovs-ofctl')
    return (None, _('packet filter: %s') % why) if why else (0, '')


def _nft_rules(lines: collections.abc.Iterable[str]) -> int:
    """Count the rules in ``nft list ruleset`` (nftables 1.0.6).

    They are in chains only; a table has sets, maps and objects too.
    """
    count = 0
    chain = False
    for line in map(str.strip, lines):
        if line.startswith('chain ') and line.endswith('{'):
            chain = True
        elif line == '}':
            chain = False
        elif chain:
            count += not line.startswith(('type ', 'policy ', 'comment ', '#'))
    return count


def host_names(
    seen: facts.Observation,
    server_ids: collections.abc.Container[str],
    everything: bool,
) -> list[str]:
    """List the hosts of servers and of their volumes.

    :param everything: also those of the services, busy or not
    """
    found = {
        s.host for s in seen.servers.values() if s.id in server_ids and s.host
    }
    found |= {
        (p.volume.host or '').split('@')[0]
        for p in facts.pairs(seen)
        if p.server_id in server_ids and p.volume is not None
    }
    if everything:
        found |= {
            s.host.split('@')[0]
            for s in seen.services
            if s.binary in ('nova-compute', 'cinder-volume')
        }
    return sorted(found - {''})
