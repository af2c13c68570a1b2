"""The contract that the simulated cloud keeps as well (osc_drp/tests/contract.py), on the real one: in the order of
the names, from one power loss. What differs here is mended in osc_drp/tests/simulated."""
import contextlib

import labkit
import pytest
from openstack import config as sdk_config

from osc_drp.cloud import client as cloud_client
from osc_drp.cloud import session
from osc_drp.db import client as db_client
from osc_drp.tests import contract

#: Who owns what, as the seed has it.
GREEN = ('app1', 'far1', 'far2', 'off1', 'app1-data', 'app1-scratch', 'far1-data', 'far1-log', 'far2-data', 'off1-data')


def connect(cloud):
    """The product's own client, logged in as somebody."""
    region = sdk_config.OpenStackConfig(config_files=[str(labkit.ETC / 'clouds.yaml')]).get_one(cloud)
    return cloud_client.Client(session.Api(region.get_session(), region, cloud))


class User:
    """Asks nova and cinder as the owner of what is asked for, or as the administrator."""

    def __init__(self, user_id, cloud=None):
        self.id, self.cloud = user_id, cloud

    def of(self, name):
        return self.cloud or ('lab-green' if name in GREEN else 'lab-blue')

    def told(self, answer):
        text = answer.json if isinstance(answer.json, str) else next(iter((answer.json or {'': {}}).values()))
        return contract.Answer(answer.status, text.get('message', '') if isinstance(text, dict) else str(text))

    def act(self, server, action, body=None, microversion='2.1'):
        return self.told(labkit.act(server, action, body, cloud=self.of(server), microversion=microversion))

    def start(self, server):
        return self.act(server, 'os-start')

    def stop(self, server):
        return self.act(server, 'os-stop')

    def hard_reboot(self, server):
        return self.act(server, 'reboot', {'type': 'HARD'})

    def lock(self, server, reason=''):
        return self.act(server, 'lock', {'locked_reason': reason} if reason else None, '2.73')

    def unlock(self, server):
        return self.act(server, 'unlock')

    def attach(self, server, volume):
        return self.told(labkit.attach(server, volume, cloud=self.of(server)))

    def detach(self, server, volume):
        return self.told(labkit.detach(server, volume, cloud=self.of(server)))

    def delete_volume(self, volume):
        return self.told(labkit.api('cinder', 'DELETE', f'/volumes/{labkit.volume_id(volume)}', cloud=self.of(volume)))

    def reset_status(self, volume, status, attach_status=''):
        body = {'status': status, **({'attach_status': attach_status} if attach_status else {})}
        return self.told(labkit.api('cinder', 'POST', f'/volumes/{labkit.volume_id(volume)}/action',
                                    {'os-reset_status': body}, cloud=self.of(volume)))


class Bench:
    """The lab, after a power loss, its nova-computes still off."""

    def __init__(self, databases):
        self.cloud, self.databases = connect('lab'), databases
        self.user, self.admin = User(connect('lab-blue').user_id), User(self.cloud.user_id, 'lab')
        self.server_id, self.volume_id, self.guest_off = labkit.server_id, labkit.volume_id, labkit.guest_off

    def computes_start(self):
        labkit.lab('start', 'nova-compute1', 'nova-compute2')

    def until(self, so, what, seconds=90):
        labkit.wait_until(so, seconds, what)

    def guest(self, server):
        found = labkit.guest_def(server)
        if found is None:
            return None
        names = {v['id']: name for name, v in labkit.volumes().items()}
        return found['state'] == 'running', [(v['device'], names[v['volume_id']]) for v in found['volumes']]

    @contextlib.contextmanager
    def cinder_refuses(self):
        labkit.lab('stop', '--kill', 'cinder-api')
        try:
            yield
        finally:
            labkit.lab('start', 'cinder-api')

    @contextlib.contextmanager
    def small_pages(self):
        labkit.lab('restart', '--kill', 'nova-api', 'cinder-api', LAB_MAX_LIMIT='3')
        try:
            yield connect('lab')
        finally:
            labkit.lab('restart', '--kill', 'nova-api', 'cinder-api')


@pytest.fixture(autouse=True)
def judge(cloud):
    """Cases make an operator's mistakes on purpose, which the judge sees "now"; what osc-drp itself wrote is judged."""
    yield
    assert not (found := [v for v in labkit.violations() if not v.startswith('now: ')]), found


class TestRealCloud(contract.Contract):
    """All cases, one after the other."""

    @pytest.fixture(scope='class', autouse=True)
    def lab(self, cloud, request):
        labkit.restore_snapshot('lost', without=('nova-compute1', 'nova-compute2'))
        with db_client.connect([str(labkit.ETC / 'nova.conf')], [str(labkit.ETC / 'cinder.conf')],
                               str(labkit.ETC / 'osc-drp.conf')) as databases:
            request.cls.bench = Bench(databases)
            yield
        # and each case has put right what it did
        labkit.judged()
