"""Runs a command and is to its orphans what init is: reaper.py COMMAND... Standard library only.

The guests of libvirtd have no parent but init. Where that is some other program, as in many containers, nobody waits for the
dead: a guest that was killed stays a zombie, and libvirt, and with it nova's hard reboot, waits in vain for its end.
"""
import ctypes
import os
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36

if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
    raise OSError(ctypes.get_errno(), 'prctl')
command = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _frame: os.kill(command, number))
while True:
    pid, status = os.wait()
    if pid == command:
        sys.exit(os.waitstatus_to_exitcode(status))
