"""One raw request to nova or cinder (see lab/api)."""
import argparse
import json
import os
import re

import keystoneauth1.identity
import keystoneauth1.session
import openstack

p = argparse.ArgumentParser()
p.add_argument('-c', '--cloud', default='lab')
p.add_argument('-m', '--microversion')
p.add_argument('-s', '--service-token', action='store_true')
p.add_argument('service', choices=['nova', 'cinder'])
p.add_argument('method')
p.add_argument('path')
p.add_argument('body', nargs='?')
a = p.parse_args()

admin = openstack.connect(cloud='lab')
c = openstack.connect(cloud=a.cloud)
ids = {}


def named(text):
    if '{' in text and not ids:
        for s in admin.compute.get('/servers?all_tenants=1').json()['servers']:
            ids[s['name']] = s['id']
        for v in admin.block_storage.get('/volumes?all_tenants=1').json()['volumes']:
            ids[v['name']] = v['id']
    return re.sub(r'\{([\w-]+)\}', lambda m: ids.get(m[1], m[0]), text)


headers = {}
if a.service_token:
    auth = c.config.auth
    headers['X-Service-Token'] = keystoneauth1.session.Session(keystoneauth1.identity.V3Password(
        auth_url=auth['auth_url'], username='nova', password=os.environ['LAB_SECRET'],
        project_name='service', user_domain_id='default', project_domain_id='default')).get_token()
proxy = c.compute if a.service == 'nova' else c.block_storage
r = proxy.request(named(a.path), a.method, headers=headers, raise_exc=False,
                  **({'microversion': a.microversion} if a.microversion else {}),
                  **({'json': json.loads(named(a.body))} if a.body else {}))
print(f'{r.status_code} {r.text}'.rstrip())
