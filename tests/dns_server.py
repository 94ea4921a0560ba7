"""A DNS server on loopback, over UDP and TCP, whose records a test sets."""

import contextlib
import socketserver
import struct
import threading
import time
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

TRUNCATED_BYTES = 512  # over UDP; the client asks again over TCP


class DnsServer:
    """``records`` maps (name, type) to the texts of its records; a name without any does not exist
    (NXDOMAIN). While ``rcode`` is set, every response is that error; while ``is_silent``, there is
    none. ``asked`` has the time (monotonic seconds) and the type of each question by its name."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.failing: dict[tuple[str, str], dns.rcode.Rcode] = {}
        self.ttl_s = 1
        self.rcode: dns.rcode.Rcode | None = None
        self.is_silent = False
        self.asked: list[tuple[float, str, str]] = []
        self.over_tcp = 0
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def response(self, wire: bytes, *, is_tcp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        record_type = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((time.monotonic(), name, record_type))
        if self.is_silent:
            return None
        response = dns.message.make_response(query, recursion_available=True)
        texts = self.records.get((name, record_type), [])
        failure = self.rcode or self.failing.get((name, record_type))
        if failure:
            response.set_rcode(failure)
        elif texts:
            rrset = dns.rrset.from_text_list(question.name, self.ttl_s, "IN", record_type, texts)
            response.answer.append(rrset)
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        answer = response.to_wire()
        if is_tcp:
            self.over_tcp += 1
        elif len(answer) > TRUNCATED_BYTES:
            response.answer.clear()
            response.flags |= dns.flags.TC
            answer = response.to_wire()
        return answer


@contextlib.contextmanager
def dns_server() -> Iterator[DnsServer]:
    server = DnsServer()

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, socket = self.request
            answer = server.response(wire, is_tcp=False)
            if answer is not None:
                socket.sendto(answer, self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            (length,) = struct.unpack("!H", self.rfile.read(2))
            answer = server.response(self.rfile.read(length), is_tcp=True)
            if answer is not None:
                self.wfile.write(struct.pack("!H", len(answer)) + answer)

    with (
        # First the port of TCP, of which others use far more than of UDP.
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stream) as streams,
        socketserver.ThreadingUDPServer(streams.server_address, Datagram) as datagrams,
    ):
        server.port = datagrams.server_address[1]
        threads = [
            threading.Thread(target=listener.serve_forever, args=(0.05,))
            for listener in (datagrams, streams)
        ]
        for thread in threads:
            thread.start()
        try:
            yield server
        finally:
            datagrams.shutdown()
            streams.shutdown()
            for thread in threads:
                thread.join()
