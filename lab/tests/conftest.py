"""The cloud under the tests: `pytest lab/tests`, with the pytest of $LAB_HOME/client.

A lab that is not there is made and seeded; one that is off is switched on. With guests that are real (LAB_VIRT=libvirt, then or
when it was made) the tests are those of virt/, else all others.
"""
import fcntl
import pathlib
import shutil

import labkit
import procedure
import pytest


def pytest_ignore_collect(collection_path):
    """Only the tests of this lab's hypervisor."""
    here = pathlib.Path(__file__).parent
    if collection_path.parent == here and (collection_path.is_dir() or collection_path.name.startswith('test_')):
        return (collection_path.name == 'virt') != (labkit.VIRT == 'libvirt') or None
    return None


def pytest_report_header():
    return f'lab: {labkit.LAB_HOME}, guests: {labkit.VIRT}'


def pytest_addoption(parser):
    """--long."""
    parser.addoption('--long', action='store_true', help='kill at every point; twenty rounds of power losses instead of two')


@pytest.fixture(scope='session')
def alone():
    """One test run at a time on this lab; another waits for its turn."""
    labkit.TESTS.mkdir(parents=True, exist_ok=True)
    with open(labkit.TESTS / 'lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope='session', autouse=True)
def cloud(alone):
    """A lab that is up and seeded, with the snapshots `seeded` and `lost`; at the end no output held a secret."""
    def ready():
        snapshots = labkit.LAB_HOME / 'snapshots'
        secrets = labkit.LAB_HOME / 'var/secrets'
        return (labkit.LAB_HOME / 'var/.seeded').exists() and all(
            (p := snapshots / name / 'var/secrets').exists() and p.read_bytes() == secrets.read_bytes()
            for name in ('seeded', 'lost'))

    shutil.rmtree(labkit.OUT, ignore_errors=True)
    if not (labkit.LAB_HOME / 'var/.bootstrapped').exists() or labkit.lab('status', check=False).rc:
        labkit.lab('up', timeout=1500)
    if not ready():
        if (labkit.LAB_HOME / 'var/.seeded').exists():      # seeded, and used since: nobody knows how
            labkit.lab('up', LAB_FRESH='1')
        labkit.lab('seed')
        assert ready()
    labkit.lab('violations', '--clear')
    yield
    # what osc-drp said, its journals, its maps
    assert not (found := labkit.leaks(labkit.OUT, procedure.RUNS, procedure.MAP)), found


@pytest.fixture(autouse=True)
def judge(cloud):
    """After each test: nothing that osc-drp wrote, and nothing as it stands, may have endangered a volume."""
    yield
    labkit.judged()


@pytest.fixture
def seeded():
    """Everything runs, as seeded."""
    labkit.restore_snapshot('seeded')


@pytest.fixture
def lost():
    """The seeded cloud after a power loss and its power back, at the moment its services are up."""
    labkit.restore_snapshot('lost')


@pytest.fixture(scope='session')
def the_map(cloud):
    """The map, saved as an operator should: the power is back, nova-compute not yet. Gives both records of then."""
    labkit.restore_snapshot('lost', without=('nova-compute1', 'nova-compute2'))
    procedure.MAP.unlink(missing_ok=True)
    shutil.rmtree(procedure.RUNS, ignore_errors=True)
    labkit.drp('attachments', 'save', str(procedure.MAP))
    before = labkit.attachments()
    labkit.lab('start', 'nova-compute1', 'nova-compute2')
    return before
