"""The way to the replicas of a loader: urls, and the addresses of their names."""

import ipaddress
import socket
import threading

import grpc

from .wire import channel_options

# A resolver that hangs is not waited for: then gRPC is given the name.
RESOLVE_SECONDS = 5.0


class Link:
    """Replicas over the same data, tried in turn; of a name with several addresses each, unless the connection is encrypted: then gRPC chooses,
    as it would check the certificate against an address."""

    def __init__(self, urls, credentials, token, dataset, max_batch_bytes):
        self.urls, self.dataset = urls, dataset
        self._credentials, self._token, self._options = credentials, token, channel_options(max_batch_bytes)
        self._current, self._turns, self._addresses = 0, [0] * len(urls), [[] for _ in urls]

    def url(self):
        return self.urls[self._current]

    def turn(self):
        """Goes to the next replica, and of this one to the next address."""
        self._turns[self._current] += 1
        self._current = (self._current + 1) % len(self.urls)

    def num_replicas(self):
        """Tries after which each was asked, as far as their names were looked up."""
        return len(self.urls) * max(1, *map(len, self._addresses))

    def channel(self):
        if self._credentials is not None:
            return grpc.secure_channel(self.url(), self._credentials, self._options)
        return grpc.insecure_channel(self._address() or self.url(), self._options)

    def is_guarded(self):
        """Whether nothing turns a bit on the way: encrypted, or inside this machine."""
        return self._credentials is not None or is_this_machine(self.url())

    def metadata(self):
        return () if self._token is None else (("authorization", f"Bearer {self._token}"),)

    def check_secrecy(self):
        """Raises ValueError if a token would go to another machine in plain text."""
        open_urls = [url for url in self.urls if not is_this_machine(url)]
        if self._token is not None and self._credentials is None and open_urls:
            raise ValueError(
                f"loader at {open_urls[0]}: the token would go to another machine without encryption;"
                " pass `credentials`, or `allow_remote_plaintext=True` if nobody can read along"
            )

    def _address(self):
        """The address whose turn it is, of the present url's name; None if that has no choice."""
        number = self._current
        found = resolve(self.urls[number])
        # In a lasting order: resolvers change theirs with every answer.
        known = [address for address in self._addresses[number] if address in found]
        known += [address for address in found if address not in known]
        self._addresses[number] = known
        return known[self._turns[number] % len(known)] if len(known) > 1 else None


def is_this_machine(url):
    host = url.rpartition(":")[0].strip("[]")
    if url.startswith("unix:") or host.lower() == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback


def resolve(url):
    """The addresses of the name in `host:port`; none of what is no such name."""
    host, _, port = url.rpartition(":")
    if not host or not port.isdigit() or set(host) & set(":/[]") or is_address(host):
        return []
    found = []
    thread = threading.Thread(target=lambda: found.extend(look_up(host, int(port))), name="vela-resolve", daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    return list(found)


def look_up(host, port):
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        # gRPC is given the name, and tells what is wrong with it.
        return []
    hosts = dict.fromkeys(f"[{place[0]}]" if family == socket.AF_INET6 else place[0] for family, *_, place in answers)
    return [f"{host}:{port}" for host in hosts]


def is_address(host):
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
