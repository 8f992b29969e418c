"""Just enough ManageSieve to put, activate and delete scripts."""

import base64
import socket


class ManageSieve:
    """One connection to timsieved, authenticated by PLAIN for another user."""

    def __init__(self, port, user, password, as_user):
        self.sock = socket.create_connection(("127.0.0.1", port), 30)
        self.file = self.sock.makefile("rb")
        self._answer()
        plain = base64.b64encode("\0".join([as_user, user, password]).encode()).decode()
        self.command(b'AUTHENTICATE "PLAIN" "%s"' % plain.encode())

    def __enter__(self):
        return self

    def __exit__(self, *_what):
        self.sock.sendall(b"LOGOUT\r\n")
        self.file.close()
        self.sock.close()

    def _answer(self):
        lines = []
        while True:
            line = self.file.readline()
            if not line:
                raise EOFError("timsieved closed the connection")
            lines.append(line)
            word = line.split()[0].upper() if line.split() else b""
            if word == b"OK":
                return lines
            if word in (b"NO", b"BYE"):
                if line.rstrip().endswith(b"}"):
                    lines.append(self.file.readline())
                raise RuntimeError(b"".join(lines).decode(errors="replace"))

    def command(self, line):
        self.sock.sendall(line + b"\r\n")
        return self._answer()

    def put(self, name, text):
        data = text.encode()
        self.command(b'PUTSCRIPT "%s" {%d+}\r\n%s' % (name.encode(), len(data), data))

    def activate(self, name):
        self.command(b'SETACTIVE "%s"' % name.encode())

    def delete(self, name):
        self.command(b'DELETESCRIPT "%s"' % name.encode())
