"""guest_def_libvirt.py STATE < DOMAIN_XML: a guest as libvirt has stored it, in the words of guest_def.py."""
import json
import sys
import xml.etree.ElementTree as ET

STATES = {'running': 'running', 'shut off': 'shutdown', 'paused': 'paused', 'crashed': 'crashed'}
domain = ET.parse(sys.stdin).getroot()
disks = {d.find('target').get('dev'): d.findtext('serial') for d in domain.iter('disk')}
print(json.dumps({
    'name': domain.findtext('name'), 'state': STATES.get(sys.argv[1], sys.argv[1]),
    'volumes': [{'volume_id': serial, 'device': f'/dev/{device}'} for device, serial in sorted(disks.items()) if serial],
}, indent=1))
