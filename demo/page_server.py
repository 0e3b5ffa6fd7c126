"""The web server of one container: serves one page on a socket that is listening already."""

import socket
import sys
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer


class Page(BaseHTTPRequestHandler):
    """Says who answers, and to whom."""

    def do_GET(self) -> None:
        """The page."""
        who = self.client_address[0].removeprefix("::ffff:")  # how an IPv6 socket shows IPv4
        body = f"I am {sys.argv[2]}, you are {who}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet: the demo tells what happened."""


if __name__ == "__main__":
    server = ThreadingTCPServer(("", 0), Page, bind_and_activate=False)
    server.socket = socket.socket(fileno=int(sys.argv[1]))
    print("ready", flush=True)
    server.serve_forever()
