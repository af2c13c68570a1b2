"""What osc-drp costs, beside the commands that it replaces: seconds and requests, as ratios of one run on one lab.

The lab (lab/README.md) is two shared cores and a fake hypervisor: seconds mean nothing by themselves, and differences under a
fifth mean nothing at all. Requests are counted at nova and cinder, without the logins at keystone. On a dozen servers most of
osc-drp's are what it costs to look at the whole cloud, before, between and after: they grow with it, not with what is done.

    . lab/env.sh && python benchmarks/compare.py [--rounds N]
"""
import argparse
import contextlib
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
import typing as ty

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lab/tests'))

import labkit
import procedure
from procedure import APPROVED, MAP, RAN, RESET, RESTART, RESTORE, ROOTS


#: {(server, data volume): device} of what ran, filled before the first comparison.
pairs: dict[tuple[str, str], str] = {}


class Cost(ty.NamedTuple):
    """What one way of doing it took."""

    seconds: float
    requests: int


def cost(work: ty.Callable[[], None]) -> Cost:
    """Do it, and measure."""
    with contextlib.ExitStack() as stack:
        sent = [stack.enter_context(labkit.requests(service)) for service in ('nova', 'cinder')]
        began = time.monotonic()
        work()
        seconds = time.monotonic() - began
    return Cost(seconds, sum(len(requests) for requests in sent))


# ---- the ways


def list_by_hand() -> None:
    """The listings of which the procedure's file is made: one command each, and one for each server."""
    labkit.openstack('server', 'list', '--all-projects', '--long', '-f', 'json')
    labkit.openstack('volume', 'list', '--all-projects', '--long', '-f', 'json')
    for server in (*RAN, *procedure.OFF):
        labkit.openstack('server', 'volume', 'list', labkit.server_id(server), '-f', 'json')


def save() -> None:
    with tempfile.TemporaryDirectory() as directory:
        labkit.drp('attachments', 'save', f'{directory}/map')


def start_by_hand() -> None:
    for server in RAN:
        labkit.openstack('server', 'start', labkit.server_id(server))
    labkit.wait_status(120, **dict.fromkeys(RAN, 'ACTIVE'))


def attach_by_hand() -> None:
    """The loop of the procedure, in the order of the devices, without its `sleep 2`."""
    for server, volume in sorted(pairs, key=lambda pair: (pair[0], pairs[pair])):
        labkit.openstack('server', 'add', 'volume', '--device', pairs[server, volume], labkit.server_id(server),
                         labkit.volume_id(volume))
    labkit.wait_volume(120, **{volume.replace('-', '_'): 'in-use' for _server, volume in pairs})


def check_by_apis() -> None:
    labkit.drp('attachments', 'check')


def check_by_databases() -> None:
    labkit.drp('attachments', 'check', *labkit.DATABASES)


def start() -> None:
    told(*RESTART, '--settle', '0')


def attach() -> None:
    told(*RESTORE)


def told(*args: str) -> None:
    assert set(procedure.results(*args, *APPROVED).values()) <= {'done', 'ok', 'left'}


# ---- what has to be done before


def nothing() -> None:
    """As it is."""


def lost() -> None:
    """After a power loss; nova has noticed."""
    labkit.restore_snapshot('lost')
    procedure.all_off()


def detached() -> None:
    """The servers run, and no record has their data volumes."""
    lost()
    told(*RESET)
    start()


#: What is compared: name, the way before, osc-drp's, and what has to be done before each.
COMPARED = (
    ('save the map', list_by_hand, save, nothing),
    ('check: by the APIs, by the databases', check_by_apis, check_by_databases, nothing),
    ('start all servers', start_by_hand, start, lost),
    ('attach all volumes', attach_by_hand, attach, detached),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=1, help='medians of so many (default: 1)')
    rounds = parser.parse_args().rounds

    labkit.restore_snapshot('seeded')
    MAP.unlink(missing_ok=True)
    shutil.rmtree(procedure.RUNS, ignore_errors=True)
    labkit.drp('attachments', 'save', str(MAP))
    pairs.update({key: a['device'] for key, a in labkit.attachments().nova.items() if key[0] in RAN and key not in ROOTS})

    print(f'{"":38} {"before":>16} {"osc-drp":>16} {"ratio":>16}')
    for name, old, new, prepare in COMPARED:
        costs: list[list[Cost]] = [[], []]
        for _round in range(rounds):
            for way, work in enumerate((old, new)):
                shutil.rmtree(procedure.RUNS, ignore_errors=True)
                prepare()
                costs[way].append(cost(work))
        a, b = (Cost(statistics.median(c.seconds for c in way), statistics.median(c.requests for c in way)) for way in costs)
        print(f'{name:38} {a.seconds:7.1f} s {a.requests:4.0f} r {b.seconds:8.1f} s {b.requests:4.0f} r'
              f' {a.seconds / b.seconds:8.1f} {a.requests / max(b.requests, 1):7.1f}', flush=True)


if __name__ == '__main__':
    main()
