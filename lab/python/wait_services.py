"""wait_services.py SERVICE...: waits until keystone answers and every binary of nova and cinder that the lab starts is up.

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
started = {re.sub('-super|[12]$', '', s) for s in sys.argv[1:]}


def is_up(service):
    if service['state'] != 'up':
        return False
    return service['binary'] not in started or datetime.datetime.fromisoformat(service['updated_at'] or '1970-01-01') >= began


end, last = time.time() + 180, ''
cloud = openstack.connect()
while True:
    try:
        # neutron's first query must not be one for ports: Port.port_forwardings exists once the ORM's mappers are configured
        cloud.network.get('/networks').json()['networks']
        up = [(s['binary'], s['host'])
              for s in cloud.compute.get('/os-services').json()['services'] + cloud.block_storage.get('/os-services').json()['services']
              if is_up(s)]
        missing = [f'{b}@{h}' for (b, h), n in WANTED.items() if up.count((b, h)) < n]
        if not missing:
            break
        last = ', '.join(missing)
    except Exception as e:  # what is not up yet fails in many ways; the last of them is told below
        last = repr(e)
    if time.time() > end:
        sys.exit(f'not up: {last}')
    time.sleep(0.3)
