"""The processes of a lab: processes.py LAB_HOME list | kill | kill-session PID STARTTIME | guest UUID | rss. Standard library only.

A process belongs to the lab if one of these holds, and it is none of the lab's own scripts, nor in other namespaces (lab/apart):
- its session was begun by a service that has a pid file (pid and start time, as pids come round again);
- its environment has OSC_DRP_LAB=LAB_HOME (daemons that make a session of their own, like epmd and QEMU guests);
- it has files of LAB_HOME/venv mapped (uwsgi and cotyledon write their title over the environment; so what an earlier,
  killed `lab/up` left behind is found even when its pid files are gone).
"""
import glob
import os
import signal
import sys
import time


def stat(pid):
    """(session, start time, state) of a process; None if there is none."""
    try:
        with open(f'/proc/{pid}/stat') as f:
            fields = f.read().rpartition(')')[2].split()
    except OSError:
        return None
    return int(fields[3]), fields[19], fields[0]


def sessions(home):
    found = set()
    for path in glob.glob(f'{home}/run/*.pid'):
        try:
            with open(path) as f:
                pid, began = f.read().split()
        except (OSError, ValueError):       # -own.pid and -beam.pid are the daemons' own
            continue
        leader = stat(pid)
        if leader is None:                  # the leader is gone, its children keep the session's number
            found.add(int(pid))
        elif leader[1] == began:
            found.add(int(pid))
    return found


def namespace(pid):
    try:
        return os.readlink(f'/proc/{pid}/ns/pid')
    except OSError:
        return None


def read(path):
    try:
        with open(path, 'rb') as f:
            return f.read()
    except OSError:
        return b''


def lab_processes(home):
    leaders, mine, here = sessions(home), {os.getpid(), os.getppid()}, namespace('self')
    marker, script = f'OSC_DRP_LAB={home}'.encode(), b'OSC_DRP_LAB_SCRIPT=1'
    for pid in (int(p) for p in os.listdir('/proc') if p.isdigit()):
        st = stat(pid)
        if pid in mine or st is None or st[2] in 'ZX' or namespace(pid) != here:
            continue
        environ = read(f'/proc/{pid}/environ').split(b'\0')
        if script in environ:
            continue
        if st[0] in leaders or marker in environ or f' {home}/venv/'.encode() in read(f'/proc/{pid}/maps'):
            yield pid


def kill(pids_of):
    """SIGKILL to all at once; again for what a dying parent's child was just starting. Returns how many."""
    seen = set()
    for _round in range(50):
        pids = list(pids_of())
        if not pids:
            break
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        seen.update(pids)
        time.sleep(0.05)
    return len(seen)


def main(home, what='list', *args):
    if what == 'list':
        print(*sorted(lab_processes(home)))
    elif what == 'kill':
        print(kill(lambda: lab_processes(home)))
    elif what == 'kill-session':
        sid, began = int(args[0]), args[1]

        def pids():
            leader = stat(sid)
            if leader is not None and leader[1] != began:
                return
            for pid in (int(p) for p in os.listdir('/proc') if p.isdigit()):
                st = stat(pid)
                if st is not None and st[0] == sid and st[2] not in 'ZX':
                    yield pid
        kill(pids)
    elif what == 'guest':                   # the pid of a server's QEMU, if it runs
        for pid in lab_processes(home):
            words = read(f'/proc/{pid}/cmdline').split(b'\0')
            if b'-uuid' in words and words[words.index(b'-uuid') + 1] == args[0].encode():
                print(pid)
    elif what == 'freeze' or what == 'thaw':
        for pid in lab_processes(home):
            os.kill(pid, signal.SIGSTOP if what == 'freeze' else signal.SIGCONT)
    elif what == 'rss':                     # pid file name -> MiB of its session
        total = {}
        for pid in lab_processes(home):
            st = stat(pid)
            for line in read(f'/proc/{pid}/status').splitlines():
                if line.startswith(b'VmRSS'):
                    total[st[0]] = total.get(st[0], 0) + int(line.split()[1])
        for sid, kib in total.items():
            print(sid, kib // 1024)
    else:
        raise SystemExit(__doc__)


main(*sys.argv[1:])
