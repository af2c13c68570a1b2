"""wait_services.py SERVICE... [-- SERVICE...]: waits until every binary of nova and cinder is up, but for those after --.

The services named were started just now: for them a heartbeat from before that does not count (after a quick restart the old
one is still fresh enough for nova and cinder to call a service up that is not there yet).
"""
import datetime
import re
import sys
import time

import openstack

WANTED = {('nova-conductor', 'lab'): 3, ('nova-scheduler', 'lab'): 1, ('nova-compute', 'compute1'): 1, ('nova-compute', 'compute2'): 1,
          ('cinder-scheduler', 'lab'): 1, ('cinder-volume', 'lab@san'): 1, ('cinder-backup', 'lab'): 1}
began = datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0)
split = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
started = {re.sub('-super|[12]$', '', s) for s in sys.argv[1:split]}
for name in sys.argv[split + 1:]:
    for binary, host in list(WANTED):
        if name == binary or name == f'{binary}{host[-1]}':
            del WANTED[binary, host]
        elif binary == 'nova-conductor' and name.startswith(('nova-conductor', 'nova-super-conductor')):
            WANTED[binary, host] -= 1


def is_up(service):
    if service['state'] != 'up':
        return False
    return service['binary'] not in started or datetime.datetime.fromisoformat(service['updated_at'] or '1970-01-01') >= began


def services(proxy):
    answer = proxy.get('/os-services')
    openstack.exceptions.raise_from_response(answer)
    return answer.json()['services']


end, last = time.time() + 400, ''
cloud = openstack.connect()
while True:
    try:
        # neutron's first query must not be one for ports: Port.port_forwardings exists once the ORM's mappers are configured
        if 'neutron-api' not in sys.argv[split:]:
            cloud.network.get('/networks').json()['networks']
        up = [(s['binary'], s['host'])
              for proxy in (cloud.compute, cloud.block_storage) for s in services(proxy) if is_up(s)]
        missing = [f'{b}@{h}' for (b, h), n in WANTED.items() if up.count((b, h)) < n]
        if not missing:
            break
        last = ', '.join(missing)
    except Exception as e:  # what is not up yet fails in many ways; the last of them is told below
        last = repr(e)
    if time.time() > end:
        sys.exit(f'not up: {last}')
    time.sleep(0.3)
