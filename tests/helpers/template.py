"""A process that has imported everything and forks a copy of itself for every command that a test types.

Importing torch, Lightning and W&B takes seconds, and the suite starts hundreds of processes. A fork of one that is
ready is as real as a new one: it has its own arguments, folder, environment and output, and can be killed.

The template listens on a Unix socket. A request is a line of JSON with the file descriptors of its output; the answers
are the process id and, when the process is gone, its exit code (negative for a signal, as `subprocess` has it).
"""

import atexit
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import weakref
from contextlib import suppress


def serve(path):
    """Fork for every request until standard input is closed, which is when the tests are over."""
    import wdro_train.cli.evaluate
    import wdro_train.cli.train
    import wdro_train.evaluation.run
    import wdro_train.training.run  # noqa: F401
    from wdro_train.evaluation.report import matplotlib_figures

    # PDF and SVG take most of a short evaluation, and are no other figures; tests/evaluation has tests about them.
    for kind in ("pdf", "svg"):
        del matplotlib_figures._FORMATS[kind]
    waiting = selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{path}.new")
        door.listen()
        os.rename(f"{path}.new", path)  # it can be found when it can be called
        waiting.register(door, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is door:
                    _answer(door, waiting)
                else:
                    connection, pid = key.data
                    _, status = os.waitpid(pid, 0)
                    with suppress(OSError):
                        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                    connection.close()
                    waiting.unregister(key.fd)
                    os.close(key.fd)


def _answer(door, waiting):
    connection, _ = door.accept()
    text, fds, *_ = socket.recv_fds(connection, 1 << 20, 2)
    pid = os.fork()
    if pid == 0:
        door.close()
        waiting.close()
        connection.close()
        _become(json.loads(text), fds)
    for fd in fds:
        os.close(fd)
    connection.sendall(f"{pid}\n".encode())
    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (connection, pid))


def _become(request, fds):
    """Run the command as a new interpreter would, and exit."""
    code = 1
    try:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for target, fd in zip((1, 2), fds, strict=True):
            os.dup2(fd, target)
            os.close(fd)
        # Temporary folders that the template's imports have made are not this process's to remove.
        for inherited in list(weakref.finalize._registry):
            inherited.atexit = False
        atexit._clear()
        atexit.register(weakref.finalize._exitfunc)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        script, *arguments = request["args"]
        asked = request["env"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[1:1] = [path for path in asked if path and path not in sys.path]
        sys.argv = [script, *arguments]
        if script == "-m":
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(script)
            runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = _exit_code(end.code)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)


def _exit_code(code):
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def _leave(code):
    """What an interpreter does at its end; `os._exit` alone would skip W&B's and our own clean-up."""
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
