"""Servers, volumes and attachments of two projects, in two cells: see the tables in README.md. Once only.

seed.py GUEST_DIR fake|libvirt

What does not depend on each other runs at the same time; within a server everything keeps its order (device names).
"""
from concurrent.futures import ThreadPoolExecutor
import sys
import time

import openstack

NOVA = '2.93'      # network: none (2.37), tag (2.49), delete_on_termination of an attached volume (2.79)
admin = openstack.connect(cloud='lab')


def wait(get, good, bad=('error',), timeout=240):
    end = time.time() + timeout
    while True:
        o = get()
        s = o.status.lower()
        if s in good:
            return o
        if s in bad or time.time() > end:
            raise SystemExit(f'{o.name} is {s}')
        time.sleep(0.3)


def post(proxy, path, body, **kw):
    r = proxy.post(path, json=body, **kw)
    openstack.exceptions.raise_from_response(r)
    return r.json() if r.content else None


def upload(name, path, disk_format, container_format, **properties):
    image = admin.image.find_image(name)
    if not image:
        image = admin.image.create_image(name=name, disk_format=disk_format, container_format=container_format,
                                         visibility='public', **properties)
        with open(path, 'rb') as f:
            image.data = f
            openstack.exceptions.raise_from_response(image.upload(admin.image))
        wait(lambda: admin.image.get_image(image.id), ('active',))
    return image


guest, libvirt = sys.argv[1], sys.argv[2] == 'libvirt'
boot = {}
if libvirt:
    boot = {'kernel_id': upload('guest-kernel', guest + '/kernel', 'aki', 'aki').id,
            'ramdisk_id': upload('guest-ramdisk', guest + '/ramdisk', 'ari', 'ari').id,
            'os_command_line': 'console=ttyS0 quiet panic=5 mitigations=off'}
image = upload('guest', guest + '/root', 'raw', 'bare', **boot)
flavors = {f.name: f.id for f in admin.compute.flavors()}


class Project:
    def __init__(self, name):
        c = openstack.connect(cloud=f'lab-{name}')
        self.compute, self.volumes = c.compute, c.block_storage

    def volume(self, name, **kw):
        v = self.volumes.create_volume(name=name, size=1, **kw)
        return wait(lambda: self.volumes.get_volume(v.id), ('available',))

    def server(self, name, cell, root=None):
        body = {'name': name, 'flavorRef': flavors['tiny-bfv' if root else 'tiny'], 'networks': 'none', 'availability_zone': cell}
        if root:
            body['block_device_mapping_v2'] = [{'boot_index': 0, 'uuid': root.id, 'source_type': 'volume',
                                                'destination_type': 'volume', 'delete_on_termination': True}]
        else:
            body['imageRef'] = image.id
        sid = post(self.compute, '/servers', {'server': body}, microversion=NOVA)['server']['id']
        server = wait(lambda: self.compute.get_server(sid), ('active',))
        if libvirt and cell == 'cell1':
            self.wait_console(server, 'GUEST ready')
        return server

    def wait_console(self, server, text):
        end = time.time() + 240
        while text not in self.compute.get_server_console_output(server)['output']:
            if time.time() > end:
                raise SystemExit(f'{server.name} does not say "{text}" on its console')
            time.sleep(1)

    def attach(self, server, volume, device, **kw):
        post(self.compute, f'/servers/{server.id}/os-volume_attachments',
             {'volumeAttachment': {'volumeId': volume.id, 'device': device, **kw}}, microversion=NOVA)
        wait(lambda: self.volumes.get_volume(volume.id), ('in-use',))
        if libvirt and server.availability_zone == 'cell1':
            self.wait_console(server, f'GUEST ack {volume.id[:20]} ')       # the guest uses it
        print(f'{server.name}: {volume.name} at {device} {kw or ""}'.rstrip())

    def stop(self, server):
        self.compute.stop_server(server)
        wait(lambda: self.compute.get_server(server.id), ('shutoff',))

    def shelve(self, server):
        self.compute.shelve_server(server)
        wait(lambda: self.compute.get_server(server.id), ('shelved_offloaded',))


blue, green = Project('blue'), Project('green')
B, C, D = '/dev/vdb', '/dev/vdc', '/dev/vdd'


def simple(project, name, cell, *volumes):
    server = project.server(name, cell)
    for volume, device, *kw in volumes:
        project.attach(server, project.volume(volume), device, **(kw[0] if kw else {}))
    return server


def bfv1():
    root = blue.volume('bfv1-root', image_id=image.id)
    blue.attach(blue.server('bfv1', 'cell1', root), blue.volume('bfv1-data'), B)


def cluster():
    shared = blue.volume('cluster-shared', volume_type='san-multi')
    for name, cell in (('cl1', 'cell1'), ('cl2', 'cell2')):
        blue.attach(blue.server(name, cell), shared, B)


def off1():
    green.stop(simple(green, 'off1', 'cell1', ('off1-data', B)))


def unattached():
    blue.volume('spare')
    admin.block_storage.reset_volume_status(green.volume('broken'), 'error', None, None)


if libvirt:             # few, as they are emulated
    jobs = [
        lambda: simple(blue, 'web1', 'cell1', ('web1-data', B), ('web1-log', C)),
        bfv1, cluster, off1,
        lambda: simple(green, 'far1', 'cell2', ('far1-data', B)),
    ]
else:
    jobs = [
        lambda: simple(blue, 'db1', 'cell1', ('db1-data', B), ('db1-log', C), ('db1-backup', D)),
        bfv1, cluster, off1, unattached,
        lambda: blue.shelve(simple(blue, 'shelf1', 'cell1', ('shelf1-data', B))),
        lambda: simple(green, 'app1', 'cell1', ('app1-data', B),
                       ('app1-scratch', C, {'tag': 'scratch', 'delete_on_termination': True})),
        lambda: simple(green, 'far1', 'cell2', ('far1-data', B), ('far1-log', C)),
        lambda: simple(green, 'far2', 'cell2', ('far2-data', B)),
        lambda: simple(blue, 'idle1', 'cell2'),
        lambda: simple(blue, 'web1', 'cell1', ('web1-data', B)),
    ]
with ThreadPoolExecutor(5) as pool:
    for job in [pool.submit(j) for j in jobs]:
        job.result()
print('seeded')
