"""Waits until keystone answers and every binary of nova and cinder that the lab starts reports up."""
import sys
import time

import openstack

WANTED = {('nova-conductor', 'lab', 3), ('nova-scheduler', 'lab', 1), ('nova-compute', 'compute1', 1), ('nova-compute', 'compute2', 1),
          ('cinder-scheduler', 'lab', 1), ('cinder-volume', 'lab@san', 1), ('cinder-backup', 'lab', 1)}
end, last = time.time() + 180, ''
cloud = openstack.connect()
while True:
    try:
        # neutron's first query must not be one for ports: Port.port_forwardings exists once the ORM's mappers are configured
        cloud.network.get('/networks').json()['networks']
        services = [(s['binary'], s['host'], s['state'])
                    for s in cloud.compute.get('/os-services').json().get('services', [])
                    + cloud.block_storage.get('/os-services').json().get('services', [])]
        missing = [w for w in WANTED if services.count((w[0], w[1], 'up')) < w[2]]
        if not missing:
            break
        last = ', '.join(f'{b}@{h}' for b, h, _n in missing)
    except Exception as e:  # what is not up yet fails in many ways; the last of them is told below
        last = str(e)
    if time.time() > end:
        sys.exit(f'not up: {last}')
    time.sleep(0.5)
