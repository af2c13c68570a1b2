"""purge_queues.py MQ_URL: empties the queues of the services that a restored snapshot starts anew.

What waited in them was meant for the cloud as it was before; after a real power loss it would be gone too.
"""
import sys
from urllib.parse import urlsplit

import amqp

QUEUES = {'cell1': ['compute', 'compute.compute1', 'compute-alt', 'compute-alt.compute1'],
          'cell2': ['compute', 'compute.compute2', 'compute-alt', 'compute-alt.compute2'],
          'cinder': ['cinder-volume', 'cinder-volume.lab@san', 'cinder-volume.lab@san.lab', 'cinder-backup', 'cinder-backup.lab']}
url = urlsplit(sys.argv[1])
for vhost, queues in QUEUES.items():
    with amqp.Connection(f'{url.hostname}:{url.port}', url.username, url.password, virtual_host=vhost) as c:
        for queue in queues:
            channel = c.channel()
            try:
                channel.queue_purge(queue)
            except amqp.NotFound:       # its service never ran
                pass
