"""Volume types, flavors, and one availability zone for each cell; only what is missing."""
import openstack

c = openstack.connect()

types = {t.name for t in c.block_storage.types()}
for name, specs in (('san', {}), ('san-multi', {'multiattach': '<is> True'})):
    if name not in types:
        c.block_storage.create_type(name=name, extra_specs={'volume_backend_name': 'san', **specs})
flavors = {f.name for f in c.compute.flavors()}
for name, ram, disk in (('tiny', 192, 1), ('tiny-bfv', 192, 0)):
    if name not in flavors:
        c.compute.create_flavor(name=name, ram=ram, vcpus=1, disk=disk)
aggregates = {a.name: a for a in c.compute.aggregates()}
for n in (1, 2):
    a = aggregates.get(f'cell{n}') or c.compute.create_aggregate(name=f'cell{n}', availability_zone=f'cell{n}')
    if f'compute{n}' not in (a.hosts or []):
        c.compute.add_host_to_aggregate(a, f'compute{n}')
