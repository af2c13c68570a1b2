"""Service users, the catalog, and the two tenant projects; only what is missing."""
import os

import openstack

c = openstack.connect()
secret = os.environ['LAB_SECRET']


def find_or_create(find, create, name, **kw):
    return find(name) or create(name=name, **kw)


def project(name):
    return find_or_create(c.identity.find_project, c.identity.create_project, name, domain_id='default')


def user(name, proj, *roles):
    u = find_or_create(c.identity.find_user, c.identity.create_user, name, password=secret, domain_id='default',
                       default_project_id=proj.id)
    for r in roles:
        role = find_or_create(c.identity.find_role, c.identity.create_role, r)
        c.identity.assign_project_role_to_user(proj, u, role)
    return u


service = project('service')
for name in ('nova', 'cinder', 'glance', 'placement', 'neutron'):
    # service: what service tokens are checked for (cinder lets only those detach a volume that a server uses);
    # admin: what nova and cinder still need to act for others
    user(name, service, 'service', 'admin')


def port(name, default):
    return os.environ.get(f'LAB_{name}_PORT', default)


catalog = {
    ('glance', 'image'): f"http://127.0.0.1:{port('GLANCE', 9292)}",
    ('placement', 'placement'): f"http://127.0.0.1:{port('PLACEMENT', 8778)}",
    ('nova', 'compute'): f"http://127.0.0.1:{port('NOVA', 8774)}/v2.1",
    ('cinder', 'block-storage'): f"http://127.0.0.1:{port('CINDER', 8776)}/v3",
    ('cinderv3', 'volumev3'): f"http://127.0.0.1:{port('CINDER', 8776)}/v3",
    ('neutron', 'network'): f"http://127.0.0.1:{port('NEUTRON', 9696)}",
}
for (name, kind), url in catalog.items():
    s = c.identity.find_service(name) or c.identity.create_service(name=name, type=kind)
    for interface in ('public', 'internal'):
        if not list(c.identity.endpoints(service_id=s.id, interface=interface)):
            c.identity.create_endpoint(service_id=s.id, interface=interface, url=url, region_id='RegionOne')

for name in ('blue', 'green'):
    user(name, project(name), 'member')
