"""guest_lines.py CONSOLES VOLUME_IDS < LINES: what a guest acknowledged, and what is there (lab/guest-lines).

CONSOLES: all that the guest told on its consoles; "GUEST ack SERIAL NUMBER" is what counts. LINES: every line of every volume's
file, after the file's name: "/vol/SERIAL/lines line NUMBER ... end". A serial is the first 20 characters of the volume's id.
"""
import collections
import json
import re
import sys

acknowledged, there = collections.defaultdict(set), collections.defaultdict(set)
with open(sys.argv[1], errors='replace') as f:
    for line in f:
        if m := re.match(r'GUEST ack (\S+) (\d+)\s*$', line):
            acknowledged[m[1]].add(int(m[2]))
for line in sys.stdin:
    if m := re.match(r'/vol/([^/]+)/lines line (\d+) .* end$', line):
        there[m[1]].add(int(m[2]))
with open(sys.argv[2]) as f:
    ids = {line.strip()[:20]: line.strip() for line in f}

answer = {}
for serial in sorted(acknowledged.keys() | there.keys()):
    answer[ids.get(serial, serial)] = {
        'acknowledged': max(acknowledged[serial], default=0),
        'there': max(there[serial]) if there[serial] else None,
        'missing': sorted(acknowledged[serial] - there[serial]),
    }
print(json.dumps(answer, indent=1))
sys.exit(any(v['missing'] for v in answer.values()))
