"""Runs one command, its output thrown away, and prints what it took: wall, user and system seconds, bytes; status.

A process of its own, and a small one: to the kernel, a program's peak memory is at least that of the process
which started it.
"""

import os
import sys
import time

if __name__ == "__main__":
    nothing = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    began = time.perf_counter()
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[nothing])
    _, status, usage = os.wait4(child, 0)  # counts the children that it has waited for, too
    seconds = time.perf_counter() - began
    print(seconds, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status))
