"""A proxy before a bucket's server that refuses, waits and cuts off."""

import contextlib
import http.client
import http.server
import threading
import time
from urllib.parse import urlsplit

_BODY = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{0}</Code><Message>{0}</Message><RequestId>1</RequestId></Error>"""


def refuse(status, code):
  """An answer of S3's, instead of the server's."""

  def act(handler, body):
    del body
    text = _BODY.format(code).encode()
    handler.answer(status, {'Content-Type': 'application/xml'}, text)

  return act


def wait(seconds):
  """The server's answer, later."""

  def act(handler, body):
    time.sleep(seconds)
    handler.answer(*handler.ask(body))

  return act


def cut_request(handler, body):
  """The connection ends, and the server has seen nothing."""
  del body
  handler.hang_up()


def cut_answer(handler, body):
  """The connection ends when the server has done what it was asked."""
  handler.ask(body)
  handler.hang_up()


def cut_body(handler, body):
  """Half of the server's answer."""
  handler.answer(*handler.ask(body), part=0.5)


class Proxy:
  """Counts and keeps (method, path) of every request; `rule` may answer it.

  Args:
    endpoint: http://HOST:PORT of the server.
  """

  def __init__(self, endpoint):
    self.requests = []
    self.rule = None  # (number, method, path) -> an action above, or None
    self._lock = threading.Lock()
    proxy, to = self, urlsplit(endpoint)

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def handle_any(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        with proxy._lock:
          number = len(proxy.requests)
          proxy.requests.append((self.command, self.path))
          act = proxy.rule and proxy.rule(number, self.command, self.path)
        with contextlib.suppress(OSError):
          if act:
            act(self, body)
          else:
            self.answer(*self.ask(body))

      do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

      def ask(self, body):
        connection = http.client.HTTPConnection(to.hostname, to.port)
        headers = {k: v for k, v in self.headers.items() if k != 'Expect'}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

      def answer(self, status, headers, data, part=1.0):
        self.send_response_only(status)
        told = ('transfer-encoding', 'connection', 'content-length')
        for name, value in headers.items():
          if name.lower() not in told:
            self.send_header(name, value)
        length = headers.get('Content-Length', len(data))
        if self.command != 'HEAD':
          length = len(data)
        self.send_header('Content-Length', str(length))
        self.end_headers()
        self.wfile.write(data[: int(len(data) * part)])
        if part < 1:
          self.hang_up()

      def hang_up(self):
        self.close_connection = True
        self.connection.close()

      def log_message(self, *unused):
        pass

      def handle(self):
        with contextlib.suppress(OSError, ValueError):
          super().handle()

    class Server(http.server.ThreadingHTTPServer):
      daemon_threads = True

      def handle_error(self, *unused):
        pass

    self._server = Server(('127.0.0.1', 0), Handler)
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    self.endpoint = f'http://127.0.0.1:{self._server.server_address[1]}'

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._server.shutdown()
    self._server.server_close()
