"""Runs a program in a pseudo-terminal and does things to it.

usage: terminal.py COLUMNS ROWS STEPS PROGRAM ARGUMENT...

STEPS is a JSON list of [TEXT, ACTION]: once TEXT is in the output that came since the last action, ACTION is done:
"send:KEYS", "signal:NAME", "resize:COLUMNSxROWS", "stopped" (waits until the program is stopped) or "hangup" (the terminal is
closed). Prints a JSON object: the exit code, the output, whether the terminal is as it was, and whether
it was at each "stopped".
"""

import fcntl, json, os, pty, select, signal, struct, subprocess, sys, termios

columns, rows, steps, command = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
# The whole terminal, and not standard input alone: `2>FILE` and the like are the shell's business.
master, slave = pty.openpty()


def resize(columns, rows):
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def own_terminal():
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


resize(columns, rows)
before = termios.tcgetattr(slave)
child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=own_terminal)
output, since, stopped_as_it_was = b"", 0, []


def drain(wait):
    """What has come, waiting for it at most so long; whether there was any."""
    global output
    if not select.select([master], [], [], wait)[0]:
        return False
    output += os.read(master, 65536)
    return True


is_open = True
while child.poll() is None:
    if is_open:
        drain(0.05)
    else:
        child.wait()
    if not steps or steps[0][0].encode() not in output[since:]:
        continue
    action = steps.pop(0)[1]
    verb, _, value = action.partition(":")
    since = len(output)
    if verb == "send":
        os.write(master, value.encode())
    elif verb == "signal":
        child.send_signal(getattr(signal, "SIG" + value))
    elif verb == "resize":
        resize(*map(int, value.split("x")))
        os.killpg(child.pid, signal.SIGWINCH)
    elif verb == "stopped":
        # Its output must be read meanwhile, so that it can be written.
        while True:
            pid, status = os.waitpid(child.pid, os.WUNTRACED | os.WNOHANG)
            if pid:
                if not os.WIFSTOPPED(status):
                    sys.exit(f"it ended instead: {status}")
                break
            drain(0.05)
        while drain(0):
            pass
        stopped_as_it_was.append(termios.tcgetattr(slave) == before)
    elif verb == "hangup":
        os.close(slave)
        os.close(master)
        is_open = False

restored = None
if is_open:
    while drain(0):
        pass
    restored = termios.tcgetattr(slave) == before
print(
    json.dumps(
        {
            "code": child.returncode,
            "output": output.decode(errors="replace"),
            "restored": restored,
            "stopped_as_it_was": stopped_as_it_was,
            "left": steps,
        }
    )
)
