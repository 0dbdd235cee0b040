"""A bare TCP socket: the least that a process of its own costs. A name's number, a length, the bytes; as an answer a
length and the bytes. One buffer per connection, filled by recv_into; a thread per connection."""

import socket
import struct
import threading

from benches.peers.ways import Call, Way
from benches.peers.workloads import Requests, answer_array

HEADER = struct.Struct("<II")
"""Number of the model, bytes that follow."""
BUFFER_BYTES = 4 << 20


def receive_exactly(connection: socket.socket, view: memoryview) -> bool:
    """Fill a view; False where the other side has closed."""
    while view:
        count = connection.recv_into(view)
        if count == 0:
            return False
        view = view[count:]
    return True


class BareSocket(Way):
    name = "socket"
    label = "bare TCP socket"
    module = "benches.peers.peer_socket"

    def start(self, models) -> None:
        self._numbers = {name: number for number, name in enumerate(models)}
        super().start(models)

    def caller(self, requests: Requests) -> Call:
        connection = socket.create_connection(("127.0.0.1", int(self.address)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.append(connection)
        number, raw, workload = self._numbers[requests.workload.name], requests.raw, requests.workload
        buffer = memoryview(bytearray(1 << 16))

        def call(request: int):
            data = raw[request % len(raw)]
            header = HEADER.pack(number, len(data))
            sent = connection.sendmsg([header, data])
            if sent < len(header) + len(data):
                connection.sendall(memoryview(data)[sent - len(header) :])
            receive_exactly(connection, buffer[: HEADER.size])
            _, size = HEADER.unpack_from(buffer)
            receive_exactly(connection, buffer[:size])
            return answer_array(workload, bytes(buffer[:size]))

        return call


def serve() -> None:
    from benches.peers.serving import arguments, say_ready

    _, loaded = arguments()
    models = list(loaded.values())

    def talk(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = memoryview(bytearray(BUFFER_BYTES))
        with connection:
            while receive_exactly(connection, buffer[: HEADER.size]):
                number, size = HEADER.unpack_from(buffer)
                if not receive_exactly(connection, buffer[:size]):
                    return
                answer = models[number].run(buffer[:size])
                connection.sendmsg([HEADER.pack(0, answer.nbytes), answer.data.cast("B") if answer.size else b""])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        say_ready(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=talk, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    serve()
