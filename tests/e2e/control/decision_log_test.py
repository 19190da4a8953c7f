"""The decision log and its subscribers."""
import json
import os
import socket
import subprocess
import tempfile
import time

from expect import eq
from harness import Server, Sidecar, config, policy, policy_file, stepgate, wait
from stack import STEPGATE


def test_events_without_room_go_to_disk_and_are_uploaded_later() -> None:
    server = Server()
    server.log_status = 500
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package app\ndefault allow := true\n')
        logs = {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1, 'upload_size_limit_bytes': 2000,
                                              'buffer_size_limit_bytes': 20000}}
        own = {'log': {'overflow': 'spill', 'spill_directory': os.path.join(folder, 'spill')}}
        whole = {'services': {'s': {'url': server.url}}, 'decision_logs': logs, 'plugins': {'stepgate': own}}
        with Sidecar(whole, files=[file]) as sidecar:
            for _ in range(300):
                eq(sidecar.check('/x'), True, 'a check')
            wait(lambda: os.listdir(os.path.join(folder, 'spill')), 'events on disk', sidecar)
        eq(server.logs, [], 'nothing was taken')
        server.log_status = 200
        with Sidecar(whole, files=[file]) as sidecar:
            wait(lambda: len(server.logs) >= 300, 'all of them', sidecar)
            wait(lambda: not os.listdir(os.path.join(folder, 'spill')), 'nothing left on disk', sidecar)
        eq(len({event['decision_id'] for event in server.logs}), 300, 'every decision once')
    server.stop()


def test_what_must_be_logged_is_denied_when_it_cannot_be() -> None:
    server = Server()
    server.log_status = 500
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package app\ndefault allow := true\n')
        logs = {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1, 'buffer_size_limit_bytes': 100000}}
        whole = {'services': {'s': {'url': server.url}}, 'decision_logs': logs, 'plugins': {'stepgate': {'log': {'audit': 'required', 'cpu_share_percent': 100}}}}
        with Sidecar(whole, files=[file]) as sidecar:
            allowed = 0
            while sidecar.check('/x') and allowed < 20000:
                allowed += 1
            answer = sidecar.answer('/x')
            eq((answer.status.code, answer.denied_response.status.code), (7, 503), 'no room is a denial')
            eq('audit_log_full' in answer.denied_response.body, True, answer.denied_response.body)
            server.log_status = 200
            sidecar.settled(lambda: sidecar.check('/x'), 'room again')
        eq(len([event for event in server.logs if event.get('result')]), allowed + 1, 'every allowed check in the log')
    server.stop()


def test_decisions_are_watched_as_they_are_made() -> None:
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'))
    with Sidecar(config(server, plugins={'stepgate': {'input': {'ambiguous_path': 'reject'}}})) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        tail = [STEPGATE, 'tail', '--socket', sidecar.admin]
        odd = subprocess.Popen([*tail, '-n', '1', '--format', 'json', '--reason', 'ambiguous_path'], stdout=subprocess.PIPE, text=True)
        watching = subprocess.Popen([*tail, '-n', '2', '--format', 'json', '--path', '/two'], stdout=subprocess.PIPE, text=True)
        pretty = subprocess.Popen([*tail, '-n', '1', '--denied', '--color', 'always'], stdout=subprocess.PIPE, text=True)
        forever = subprocess.Popen([*tail, '--contains', 'nothing has this'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 10
        while (watching.poll() is None or pretty.poll() is None) and time.time() < deadline:
            sidecar.check('/one')
            sidecar.answer('/two?access_token=secret')
            time.sleep(0.05)
        events = [json.loads(line) for line in watching.communicate(timeout=5)[0].splitlines()]
        eq([event['input']['parsed_path'] for event in events], [['two']] * 2, 'what was asked for')
        eq([event['result'] for event in events], [False] * 2, 'what came of it')
        eq('secret' in json.dumps(events), False, 'nothing secret')
        eq(odd.poll(), None, 'nothing had that reason yet')
        sidecar.check('/a/%2e%2e/b')
        eq(json.loads(odd.communicate(timeout=5)[0])['input']['attributes']['request']['http']['path'], '/a/%2e%2e/b', 'for that reason')
        line = pretty.communicate(timeout=5)[0]
        eq(('DENY' in line, '/two' in line, 'secret' in line), (True, True, False), line)
        # One who asks and never reads, as a terminal that is stopped.
        stalled = socket.socket(socket.AF_UNIX)
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(sidecar.admin)
        stalled.sendall(b'GET /v1/decisions HTTP/1.1\r\nhost: a\r\n\r\n')
        time.sleep(0.2)
        for _ in range(60):
            sidecar.answer('/two?' + 'x' * 20_000)
        time.sleep(0.5)
        begin = time.monotonic()
        sidecar.process.terminate()
        eq((sidecar.process.wait(15), time.monotonic() - begin < 6), (0, True), f'{time.monotonic() - begin:.1f} s until the end')
        stalled.close()
    # The server stops although somebody watches.
    eq(forever.wait(5), 0, 'the end of the watcher')
    eq('has ended' in forever.communicate()[1], True, 'and why')
    server.stop()
    gone = stepgate('tail', '--socket', '/nowhere/admin.sock', check=False)
    eq((gone.returncode != 0, 'admin_socket' in gone.stderr), (True, True), gone.stderr)
