# PID 1 of the machine outside: tells whoever connects by which address it sees him.
import socketserver
import sys


class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.client_address[0].encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


Server(("", int(sys.argv[1])), Answer).serve_forever()
