"""Measures how long after the hub's answer the last of many readers of its feed has a change: `make bench-revocation` (READERS, CHANGES).
Readers are plain connections; what a sidecar does with a line takes microseconds more."""
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STEPGATE = os.path.join(os.environ.get('CARGO_TARGET_DIR', os.path.join(ROOT, 'target')), 'release', 'stepgate')
READERS, CHANGES = int(os.environ.get('READERS', '100')), int(os.environ.get('CHANGES', '300'))
PORT = 18443


def ask(path, request, body=b''):
    """A request on the admin socket; gives the body of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        head = f'{request} HTTP/1.0\r\nHost: hub\r\nContent-Length: {len(body)}\r\n\r\n'
        connection.sendall(head.encode() + body)
        answer = b''.join(iter(lambda: connection.recv(65536), b''))
    assert b' 200 ' in answer.split(b'\r\n', 1)[0], answer
    return json.loads(answer.split(b'\r\n\r\n', 1)[1])


def read(epoch, ready, seen):
    """Follows the feed, and notes when each change came."""
    with urllib.request.urlopen(f'http://127.0.0.1:{PORT}/v1/feed?after={epoch}.0') as feed:
        ready.release()
        for line in feed:
            line = json.loads(line)
            if 'q' in line:
                seen[line['q']] = time.monotonic()


def main():
    with tempfile.TemporaryDirectory() as folder:
        admin = os.path.join(folder, 'hub.sock')
        hub = {'addr': f'127.0.0.1:{PORT}', 'data_dir': folder, 'admin_socket': f'unix://{admin}'}
        issuer = {'issuer': 'https://issuer', 'audiences': ['a'], 'algorithms': ['RS256'], 'jwks_url': 'https://issuer/jwks'}
        config = os.path.join(folder, 'hub.json')
        with open(config, 'w') as file:
            json.dump({'plugins': {'stepgate': {'hub': hub, 'issuers': [issuer]}}}, file)
        process = subprocess.Popen([STEPGATE, 'hub', '-c', config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            measure(admin)
        finally:
            process.kill()
            process.wait()


def measure(admin):
    while not os.path.exists(admin):
        time.sleep(0.05)
    epoch = ask(admin, 'GET /v1/hub/status')['epoch']
    ready, readers = threading.Semaphore(0), [{} for _ in range(READERS)]
    for seen in readers:
        threading.Thread(target=read, args=(epoch, ready, seen), daemon=True).start()
    for _ in readers:
        assert ready.acquire(timeout=30), 'a reader does not connect'
    answered, took = {}, []
    for number in range(CHANGES):
        body = {'kind': 'user', 'issuer': 'https://issuer', 'value': f'u{number}', 'action': 'disable', 'reason': 'bench'}
        began = time.monotonic()
        seq = ask(admin, 'POST /v1/revocations', json.dumps(body).encode())['seq']
        answered[seq] = time.monotonic()
        took.append(answered[seq] - began)
        time.sleep(0.01)
    deadline = time.monotonic() + 10
    while any(len(seen) < CHANGES for seen in readers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(len(seen) == CHANGES for seen in readers), 'a reader missed a change'
    last = sorted(max(seen[seq] for seen in readers) - at for seq, at in answered.items())
    took.sort()
    of = lambda times, share: max(times[min(int(len(times) * share), len(times) - 1)] * 1000, 0)
    print(f'{CHANGES} changes, {READERS} readers: durable answer p50 {of(took, .5):.1f} ms, p99 {of(took, .99):.1f} ms; '
          f'from the answer to the last reader p50 {of(last, .5):.1f} ms, p99 {of(last, .99):.1f} ms')
    assert of(last, .99) < 1000, 'p99 is a second or more'


if __name__ == '__main__':
    main()
