"""guest_lines.py TOLD VOLUME_IDS < LINES: what a guest acknowledged, and what is there (lab/guest-lines).

TOLD: what the guest told on its second serial port, in all its boots; "GUEST ack SERIAL NUMBER boot BOOT" is what
counts. LINES: every line of every volume's file, after the file's name: "/vol/SERIAL/lines line NUMBER boot BOOT ... end". A serial is
the first 20 characters of the volume's id. A lost line's number is given again in a later boot, so both numbers must fit.
"""
import collections
import json
import re
import sys

acknowledged, there = collections.defaultdict(set), collections.defaultdict(set)
with open(sys.argv[1], errors='replace') as f:
    for line in f:
        if m := re.match(r'GUEST ack (\S+) (\d+) boot (\d+)\s*$', line):
            acknowledged[m[1]].add((int(m[2]), int(m[3])))
for line in sys.stdin:
    if m := re.match(r'/vol/([^/]+)/lines line (\d+) boot (\d+) .* end$', line):
        there[m[1]].add((int(m[2]), int(m[3])))
with open(sys.argv[2]) as f:
    ids = {line.strip()[:20]: line.strip() for line in f}

answer = {}
for serial in sorted(acknowledged.keys() | there.keys()):
    answer[ids.get(serial, serial)] = {
        'acknowledged': max(acknowledged[serial], default=(0, 0))[0],
        'there': max(there[serial])[0] if there[serial] else None,
        'missing': [number for number, _boot in sorted(acknowledged[serial] - there[serial])],
    }
print(json.dumps(answer, indent=1))
sys.exit(any(v['missing'] for v in answer.values()))
