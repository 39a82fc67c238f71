"""Whether the hosts of some addresses answer, known within seconds."""

import queue
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable

_DEFAULT_PORTS = {"http": 80, "https": 443, "ftp": 21}


def unreachable_hosts(urls: Iterable[str], timeout_seconds: float = 4.0) -> dict[str, str]:
    """Tries a connection to each host that `urls` name, all at once.

    Where the environment names a proxy for an address, the proxy is tried in the host's place.

    Args:
        urls: addresses with scheme and host.
        timeout_seconds: how long to wait for all of them together.

    Returns:
        The hosts that did not answer, as `{"host:port": cause}`; empty when all did.
    """
    endpoints = {_endpoint(url) for url in urls}
    answers = queue.SimpleQueue()
    threads = [
        # Daemons, because resolving a name ignores every time-out and must not hold up the process' end.
        threading.Thread(target=_try_to_connect, args=(endpoint, timeout_seconds, answers), daemon=True)
        for endpoint in endpoints
    ]
    for thread in threads:
        thread.start()
    causes = {endpoint: f"no answer within {timeout_seconds:g} seconds" for endpoint in endpoints}
    try:
        for _ in endpoints:
            endpoint, cause = answers.get(timeout=timeout_seconds)
            causes[endpoint] = cause
    except queue.Empty:
        pass
    return {f"{host}:{port}": cause for (host, port), cause in sorted(causes.items()) if cause}


def _endpoint(url):
    """The host and port to which a client would really connect for `url`."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 443)


def _try_to_connect(endpoint, timeout_seconds, answers):
    try:
        socket.create_connection(endpoint, timeout=timeout_seconds).close()
    except OSError as error:
        answers.put((endpoint, str(error)))
    else:
        answers.put((endpoint, ""))
