"""gRPC, its synchronous Python API: one unary call, bytes in and out without protobuf messages; plaintext and TLS."""

import datetime
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import ClassVar

import numpy as np

from benches.peers.ways import Call, Flood, Way, flood_by_futures
from benches.peers.workloads import Requests, answer_array

SERVICE = "bench.Models"
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
"""The default of 4 MiB is near the largest request."""
SERVER_THREADS = 4


class Grpc(Way):
    name = "grpc"
    label = "gRPC"
    needs = ("grpc",)
    extra = "bench-grpc"
    module = "benches.peers.peer_grpc"

    def open(self) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.address}", options=OPTIONS)

    def caller(self, requests: Requests) -> Call:
        unary = self._channel.unary_unary(f"/{SERVICE}/{requests.workload.name}")
        raw, workload = requests.raw, requests.workload
        return lambda number: answer_array(workload, unary(raw[number % len(raw)]))

    def flood(self, requests: Requests, in_flight: int, seconds: float) -> Flood:
        unary = self._channel.unary_unary(f"/{SERVICE}/{requests.workload.name}")
        raw, workload = requests.raw, requests.workload

        def submit(number: int) -> Callable[[], np.ndarray]:
            future = unary.future(raw[number % len(raw)])
            return lambda: answer_array(workload, future.result())

        return flood_by_futures(submit, requests, in_flight, seconds)

    def close(self) -> None:
        self._channel.close()


class GrpcTls(Grpc):
    name = "grpc-tls"
    label = "gRPC, TLS"
    encrypted = "TLS 1.3"
    environment: ClassVar[dict[str, str]] = {"BENCH_PEERS_TLS": "1"}

    def open(self) -> None:
        import grpc

        authority = (self.folder / "grpc-tls.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(authority)
        self._channel = grpc.secure_channel(f"127.0.0.1:{self.address}", credentials, options=OPTIONS)


def make_certificate(folder: Path) -> tuple[bytes, bytes]:
    """Make a key and a certificate for 127.0.0.1, and leave the certificate for the client."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "grpc-tls.pem").write_bytes(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, pem


def serve() -> None:
    import os

    import grpc

    from benches.peers.serving import arguments, say_ready

    folder, loaded = arguments()

    def handler(run: Callable[[bytes], np.ndarray]) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: run(request).tobytes())

    methods = {name: handler(model.run) for name, model in loaded.items()}
    server = grpc.server(futures.ThreadPoolExecutor(SERVER_THREADS), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    if os.environ.get("BENCH_PEERS_TLS"):
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([make_certificate(folder)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say_ready(port)
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
