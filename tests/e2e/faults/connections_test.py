"""Hostile and broken connections, while every answer is compared with an oracle."""
import os
import resource
import socket
import struct
import threading
import time

from envoy.service.auth.v3 import external_auth_pb2 as ea
import grpc
from expect import eq
from harness import CHECK
from load import Alone, Load, frames, request

SLOW = 'package app\ndefault allow := false\nallow if {\n\tsome a in numbers.range(1, 400)\n\tsome b in numbers.range(1, 60)\n\ta * b == 24000\n}\n'


def test_more_than_can_be_answered_is_denied_at_once() -> None:
    """What finds no place, and what has waited too long for its turn, is told so; nothing waits until its caller is gone."""
    for limits, least in (({'checks_in_flight': 4}, 100), ({}, 1)):
        with Alone({'plugins': {'stepgate': {'limits': {**limits, 'evaluation_timeout': '150ms'}}}}, text=SLOW) as alone:
            call = grpc.insecure_channel(f'127.0.0.1:{alone.sidecar.grpc}').unary_unary(CHECK, ea.CheckRequest.SerializeToString, ea.CheckResponse.FromString)
            futures = [call.future(request('/one'), timeout=60) for _ in range(300 * os.cpu_count())]
            answers = [future.result() for future in futures]
            allowed = sum(answer.status.code == 0 for answer in answers)
            reasons = [answer.dynamic_metadata.fields['reason'].string_value for answer in answers if answer.status.code]
            eq(set(reasons) <= {'overloaded', 'check_timeout', 'evaluation_timeout'}, True, set(reasons))
            eq({answer.denied_response.status.code for answer in answers if answer.status.code}, {503}, 'the status')
            eq((allowed > 0, reasons.count('overloaded') >= least), (True, True), f'{allowed} allowed, the others {sorted(reasons)[:1]}…, {len(reasons)}')
            eq(alone.metric('stepgate_faults_total{reason="overloaded"}'), reasons.count('overloaded'), 'what is counted')
            # A line for each would take the time that is missing.
            lines = sum('"reason":"overloaded"' in line for line in alone.sidecar.lines().splitlines())
            eq(1 <= lines <= 3, True, f'{lines} lines')
            eq(alone.ask('/one'), True, 'afterwards')


def test_silent_and_half_closed_connections() -> None:
    with Alone() as alone:
        begun = []
        for n in range(400):
            connection = socket.create_connection(('127.0.0.1', alone.sidecar.grpc))
            connection.sendall((b'', b'PRI * HTTP/2.0\r\n', b'GET / HTTP/1.1\r\n\r\n', b'\x16\x03\x01\x02\x00\x01')[n % 4])
            if n % 3 == 0:
                connection.shutdown(socket.SHUT_WR)
            begun.append(connection)
        with Load(alone.ask) as load:
            load.settled(2_000)
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        # Whoever has not begun to speak HTTP/2 after ten seconds is left.
        for connection in begun:
            connection.settimeout(15)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
            connection.close()
        # Nor does such a one hold up the end.
        with socket.create_connection(('127.0.0.1', alone.sidecar.grpc)):
            time.sleep(0.2)
            begin = time.monotonic()
            alone.sidecar.process.terminate()
            eq(alone.sidecar.process.wait(15), 0, 'how it ends')
            eq(time.monotonic() - begin < 5, True, f'{time.monotonic() - begin:.1f} s until the end')


def test_ten_thousand_idle_connections() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = min(10_000, hard - 600)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Alone() as alone:
        preface = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + b'\0\0\0\4\0\0\0\0\0'
        idle = []
        for _ in range(many):
            connection = socket.create_connection(('127.0.0.1', alone.sidecar.grpc))
            connection.sendall(preface)
            idle.append(connection)
        with Load(alone.ask) as load:
            load.settled(2_000)
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        for connection in idle:
            connection.close()
    print(f'{many} connections' + ('' if many == 10_000 else ' (the limit of open files here allows no more)'))


def test_messages_of_every_size() -> None:
    with Alone() as alone:
        eq(alone.call(request('/one', headers={'x-long': 'x' * (1 << 20)})).status.code, 0, 'a header of 1 MiB')
        eq(alone.call(request('/two', headers={f'x-{n}': 'y' for n in range(20_000)})).status.code, 7, '20,000 headers')
        eq(alone.call(request('/one', body='x' * (4 << 20) )).denied_response.status.code, 413, 'a body over the limit')
        kind = {'content-type': 'application/json'}
        whole = '[' + '0,' * ((4 << 19) - 1_000) + '0]'
        eq((alone.call(request('/one', headers=kind, body=whole)).status.code, alone.call(request('/two', headers=kind, body=whole)).status.code), (0, 7),
           'a body just below the limit')
        for body in ('[' * 10_000, '{"a":' * 10_000, '[' * 10_000 + ']' * 10_000):
            eq(alone.call(request('/one', headers=kind, body=body)).status.code in (0, 3, 7), True, 'a deep body')
            eq(alone.call(request('/two', headers=kind, body=body)).status.code == 0, False, 'a deep body where nothing is allowed')
        with Load(alone.ask) as load:
            load.settled(500)
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')


def test_messages_that_come_after_their_refusal() -> None:
    """Whoever finds no place is refused before his message is here; what comes late ends no connection, also after thousands."""
    limits = {'plugins': {'stepgate': {'limits': {'checks_in_flight': 1}}}}
    with Alone(limits) as alone, socket.create_connection(('127.0.0.1', alone.sidecar.grpc)) as raw:
        raw.settimeout(5)
        frame, headers = frames()
        message = request('/one').SerializeToString()
        # With a window for all answers: a stream is closed once its answer has left.
        raw.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0) + frame(8, 0, 0, struct.pack('>I', 1 << 30)))
        ended = []

        def read():
            try:
                data = b''
                while True:
                    while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], 'big'):
                        if data[3] == 7:
                            ended.append(data[9:])
                        data = data[9 + int.from_bytes(data[:3], 'big'):]
                    more = raw.recv(1 << 16)
                    if not more:
                        return
                    data += more
            except OSError:
                return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for first in range(1, 8_000, 200):
            streams = range(first, first + 200, 2)
            raw.sendall(b''.join(frame(1, 4, stream, headers) for stream in streams))
            time.sleep(0.01)
            raw.sendall(b''.join(frame(0, 1, stream, b'\0' + struct.pack('>I', len(message)) + message) for stream in streams))
        alone.sidecar.settled(lambda: alone.metric('stepgate_in_flight_checks') == 0, 'answers')
        eq((ended, reader.is_alive()), ([], True), 'the connection')
        eq(alone.metric('stepgate_faults_total{reason="overloaded"}') > 2_000, True, 'refusals')


def test_what_was_reset_while_it_waited_is_not_decided() -> None:
    """Whole messages, and the end of their streams in the same breath: behind slow ones they are looked at once more, and dropped."""
    with Alone({'plugins': {'stepgate': {'limits': {'check_timeout': '5s', 'evaluation_timeout': '1s'}}}}, text=SLOW) as alone:
        frame, headers = frames()
        message = request('/one').SerializeToString()
        whole = b'\0' + struct.pack('>I', len(message)) + message
        with socket.create_connection(('127.0.0.1', alone.sidecar.grpc)) as raw:
            streams = b''.join(frame(1, 4, stream, headers) + frame(0, 1, stream, whole) + frame(3, 0, stream, struct.pack('>I', 8)) for stream in range(1, 400, 2))
            raw.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0) + streams)
            ends = lambda: (alone.metric('stepgate_cancelled_checks_total'), alone.metric('stepgate_checks_total{decision="allow"}'))
            alone.sidecar.settled(lambda: sum(ends()) == 200, 'the ends of all')
        cancelled, decided = ends()
        eq(cancelled > decided, True, f'{cancelled} given up, {decided} decided')


def test_streams_that_are_reset_at_once() -> None:
    # A check that waits behind the flood of another has time.
    patient = {'plugins': {'stepgate': {'limits': {'check_timeout': '3s'}}}}
    with Alone(patient) as alone, Load(alone.ask) as load:
        channel = grpc.insecure_channel(f'127.0.0.1:{alone.sidecar.grpc}')
        call = channel.unary_unary(CHECK, ea.CheckRequest.SerializeToString, ea.CheckResponse.FromString)
        for _ in range(20):
            for future in [call.future(request('/one')) for _ in range(500)]:
                future.cancel()
        load.settled(1_000)
        channel.close()
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        eq(alone.metric('stepgate_in_flight_checks') <= 4, True, 'nothing is left behind')
        # Opened and reset in one breath, before there is a message: given up, and no fault of anybody.
        alone.sidecar.settled(lambda: alone.metric('stepgate_in_flight_checks') <= 4, 'those before')
        before, lines = alone.metric('stepgate_cancelled_checks_total'), alone.sidecar.lines().count('"level":"error"')
        frame, headers = frames()
        with socket.create_connection(('127.0.0.1', alone.sidecar.grpc)) as raw:
            raw.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0))
            for stream in range(1, 2_000, 2):
                raw.sendall(frame(1, 4, stream, headers) + frame(3, 0, stream, struct.pack('>I', 8)))
            alone.sidecar.settled(lambda: alone.metric('stepgate_cancelled_checks_total') - before >= 1_000, 'those that were given up')
        load.settled(1_000)
        eq(alone.metric('stepgate_cancelled_checks_total') - before, 1_000, 'each counts once')
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        eq((alone.sidecar.lines().count('"level":"error"'), alone.metric('stepgate_faults_total{reason="check_timeout"}')), (lines, 0), 'no fault')
