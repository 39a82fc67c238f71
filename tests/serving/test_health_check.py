"""The script by which Docker asks the server's container for its health, run against a server of a few lines."""

import contextlib
import http.server
import pathlib
import subprocess
import threading

from nvae_tf.serving import server_files

HEALTH_CHECK = pathlib.Path(server_files.__file__).with_name("templates").joinpath("health_check.sh").read_text()


class Server(http.server.BaseHTTPRequestHandler):
    """Answers for a few models as TensorFlow Serving does."""

    STATES = {"digits": "AVAILABLE", "faces": "AVAILABLE", "late": "LOADING"}

    def do_GET(self):
        state = self.STATES.get(self.path.removeprefix("/v1/models/"))
        body = f'{{\n "model_version_status": [\n  {{\n   "version": "3",\n   "state": "{state}"\n  }}\n ]\n}}\n'
        self.send_response(200 if state else 404)
        self.end_headers()
        self.wfile.write(body.encode() if state else b'{ "error": "Could not find any versions, \\"AVAILABLE\\"" }')

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running_server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def health(port, *names):
    """The exit code of the script; nothing but bash's own commands can be found."""
    environment = {"PATH": "/nowhere", "SERVING_REST_PORT": str(port)}
    arguments = ["/bin/bash", "-c", HEALTH_CHECK, "health_check.sh", *names]
    return subprocess.run(arguments, env=environment, capture_output=True, timeout=20).returncode


def test_the_health_check_asks_every_model_with_bash_alone():
    with running_server() as port:
        assert health(port, "digits") == health(port, "digits", "faces") == 0
        assert health(port, "late") == health(port, "digits", "late") == health(port, "missing") == 1
    assert health(port, "digits") == 1
