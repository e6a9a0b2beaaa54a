#!/usr/bin/env python3
"""Stands in for the LLM providers of one case: it answers as case.json has recorded it, byte for
byte, with the same pauses, cuts and resets. It needs Python 3.8 or later and nothing else.

    python3 upstream.py                 Ctrl-C ends it

Each provider listens on a port of its own. Where the case waited, an answer waits at a gate until
client.py opens it. To open a gate by hand:

    curl -X POST http://127.0.0.1:CONTROL/open/NAME     (the port is printed at the start)
"""

import argparse
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
HEALTHY = "This is an answer of %s."


def load(path=os.path.join(HERE, "case.json")):
    """Reads the case."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def raw(data):
    """Returns the bytes that a text of the tape stands for."""
    if isinstance(data, str):
        return data.encode("utf-8")
    if "latin1" in data:
        return data["latin1"].encode("latin-1")
    return data["text"].encode("utf-8")


def prompt_of(method, path, body):
    """Returns what identifies a request: its method, its path, its model, whether it asks for a
    stream, and what the last message of the user says."""
    path = path.split("?")[0]
    try:
        parsed = json.loads(body)
    except ValueError:
        return (method, path, "", False, "")
    if not isinstance(parsed, dict):
        return (method, path, "", False, "")
    last = ""
    for message in parsed.get("messages") or []:
        if isinstance(message, dict) and message.get("role") == "user":
            last = json.dumps(message.get("content"), sort_keys=True)
    last = last or json.dumps(parsed.get("input", parsed.get("prompt")), sort_keys=True)
    return (method, path, str(parsed.get("model")), parsed.get("stream") is True, last)


def unmasked(data, key):
    """Where the report masks a key of the length of the gateway's own, the answer showed that key."""
    mask = rb"\[secret \d+\]\.*"
    return re.sub(mask, lambda found: key.encode("latin-1")
                  if len(found[0]) == len(key) else found[0], data)


class Journal:
    """What was seen, in order, in the form of the tape."""

    def __init__(self, quiet=False):
        self.changed = threading.Condition()
        self.entries = []
        self.begin = time.monotonic()
        self.quiet = quiet

    def add(self, who, name, event, **fields):
        with self.changed:
            entry = {
                "at_us": int((time.monotonic() - self.begin) * 1e6),
                "clock": time.monotonic(),
                "side": {"who": who, "name": name},
                "event": event,
            }
            entry.update(fields)
            self.entries.append(entry)
            self.changed.notify_all()
        if not self.quiet:
            print("%9.1f ms  %-8s %s" % (entry["at_us"] / 1e3, name, in_words(entry)), flush=True)
        return entry


def in_words(entry):
    """Returns what happened, for the console."""
    event = entry["event"]
    if event == "request_read":
        model, words = prompt_of(entry["method"], entry["path"], entry["body"])[2::2]
        return "reads request %d: %s %s %s %s" % (
            entry["request"], entry["method"], entry["path"], model, words[:60])
    if event == "event_sent":
        return "sends event %d to request %d" % (entry["n"], entry["request"])
    if event == "head_sent":
        return "sends status %d to request %d" % (entry["status"], entry["request"])
    if event == "held":
        return "holds the answer to request %d at gate %s" % (entry["request"], entry["gate"])
    if event == "answer_sent":
        return "has sent the whole answer to request %d" % entry["request"]
    if event == "fault":
        return "%s: request %s" % (entry["fault"], entry["request"])
    if event == "peer_closed":
        of = "idle" if entry["request"] is None else "request %d is unanswered" % entry["request"]
        return "sees the gateway close the connection (%s)" % of
    if event == "listening":
        return "now does this with new connections: %s" % entry["how"]
    return event.replace("_", " ")


class Gates:
    """Gates, rendezvous and interlocks, by name."""

    def __init__(self, journal):
        self.journal = journal
        self.changed = threading.Condition()
        self.opened = set()
        self.waiting = {}
        self.acknowledged = {}

    def open(self, name):
        with self.changed:
            if name not in self.opened:
                self.opened.add(name)
                self.journal.add("gate", name, "opened")
            self.changed.notify_all()

    def acknowledge(self, name, event):
        with self.changed:
            self.acknowledged[name] = max(event, self.acknowledged.get(name, 0))
            self.changed.notify_all()

    def wait(self, ready, gone):
        """Waits until something holds; returns False if the peer has gone before."""
        with self.changed:
            while not ready():
                if gone():
                    return False
                self.changed.wait(0.02)
        return True

    def meet(self, name, count, gone):
        token = object()
        with self.changed:
            meeting = self.waiting.setdefault(name, {"here": [], "met": set()})
            meeting["here"].append(token)
            if len(meeting["here"]) >= count:
                meeting["met"].update(meeting["here"])
                meeting["here"] = []
                self.journal.add("gate", name, "met", count=count)
            self.changed.notify_all()
        met = self.wait(lambda: token in meeting["met"], gone)
        with self.changed:
            if token in meeting["here"]:
                meeting["here"].remove(token)
        return met


class Gone(Exception):
    """The gateway has closed the connection."""


class Provider:
    """One provider: its port, and its recorded answers."""

    def __init__(self, name, port, entries, journal, gates):
        self.name, self.port = name, port
        self.journal, self.gates = journal, gates
        self.lock = threading.Lock()
        self.generation = 0
        self.listener = None
        self.fillers = []
        # the connections that wait for a request
        self.idle = set()
        self.requests = self.connections = 0
        reads = {}
        self.answers = []
        for entry in entries:
            if entry["event"] == "request_read":
                reads[entry["request"]] = entry
            elif entry["event"] == "planned" and entry["request"] in reads:
                read = reads[entry["request"]]
                key = prompt_of(read["method"], read["path"], read["body"])
                self.answers.append([key, entry["actions"], False])

    def listen(self, how):
        """Changes what the port does with new connections, and closes those that wait for a
        request."""
        with self.lock:
            self.generation += 1
            for waiting in self.idle:
                try:
                    waiting.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            for old in [self.listener] + self.fillers:
                if old is not None:
                    # a thread that accepts wakes up
                    try:
                        old.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
                    old.close()
            self.listener, self.fillers = None, []
            if how == "refuse":
                return
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(0 if how == "never_accept" else 512)
            self.listener = listener
            if how == "never_accept":
                self.fill()
            else:
                arguments = (listener, how, self.generation)
                threading.Thread(target=self.accept, args=arguments, daemon=True).start()

    def fill(self):
        """Connects until the accept queue is full, so that no connection is established."""
        for _ in range(20):
            filler = socket.socket()
            filler.settimeout(0.2)
            self.fillers.append(filler)
            try:
                filler.connect(("127.0.0.1", self.port))
            except OSError:
                return
        print("%s: the accept queue is not full; the operating system differs from Linux here"
              % self.name, file=sys.stderr)

    def accept(self, listener, how, generation):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self.lock:
                self.connections += 1
                number = self.connections
            self.journal.add("provider", self.name, "accepted", connection=number)
            serve = self.leave_alone if how == "silence" else self.serve
            arguments = (connection, number, generation)
            threading.Thread(target=serve, args=arguments, daemon=True).start()

    def leave_alone(self, connection, number, generation):
        """Reads nothing and writes nothing until the gateway leaves."""
        while generation == self.generation and not has_left(connection):
            time.sleep(0.02)
        self.journal.add("provider", self.name, "peer_closed", connection=number, request=None)
        connection.close()

    def serve(self, connection, number, generation):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray()
        request = None
        try:
            while True:
                request = None
                with self.lock:
                    self.idle.add(connection)
                method, path, headers, body = self.read(connection, buffer, generation)
                with self.lock:
                    self.requests += 1
                    request = self.requests
                text = body.decode("utf-8", "replace")
                self.journal.add("provider", self.name, "request_read", connection=number,
                                 request=request, method=method, path=path, headers=headers,
                                 body=text)
                actions = self.choose(method, path, text)
                key = dict(headers).get("authorization", "").split(" ")[-1]
                keeps = self.play(connection, request, actions, buffer, key)
                if not keeps:
                    return
        except (Gone, OSError):
            self.journal.add("provider", self.name, "peer_closed", connection=number,
                             request=request)
        finally:
            with self.lock:
                self.idle.discard(connection)
            connection.close()

    def read(self, connection, buffer, generation):
        """Reads one request."""
        while b"\r\n\r\n" not in buffer:
            self.more(connection, buffer, generation)
        end = buffer.index(b"\r\n\r\n")
        lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
        del buffer[:end + 4]
        method, path = (lines[0].split(" ") + ["", ""])[:2]
        headers = [[name.strip().lower(), value.strip()]
                   for name, _, value in (line.partition(":") for line in lines[1:])]
        named = dict(headers)
        if named.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in named.get("transfer-encoding", "").lower():
            body = bytearray()
            while True:
                while b"\r\n" not in buffer:
                    self.more(connection, buffer)
                end = buffer.index(b"\r\n")
                size = int(bytes(buffer[:end]).split(b";")[0], 16)
                while len(buffer) < end + 2 + size + 2:
                    self.more(connection, buffer)
                body += buffer[end + 2:end + 2 + size]
                del buffer[:end + 2 + size + 2]
                if size == 0:
                    return method, path, headers, bytes(body)
        length = int(named.get("content-length", "0") or 0)
        while len(buffer) < length:
            self.more(connection, buffer)
        body = bytes(buffer[:length])
        del buffer[:length]
        return method, path, headers, body

    def more(self, connection, buffer, generation=None):
        """Reads more bytes. A connection without a request ends when the port changes."""
        connection.settimeout(0.05)
        while True:
            try:
                piece = connection.recv(65536)
            except socket.timeout:
                if generation not in (None, self.generation) and not buffer:
                    raise Gone()
                continue
            if not piece:
                raise Gone()
            with self.lock:
                self.idle.discard(connection)
            buffer += piece
            connection.settimeout(None)
            return

    def choose(self, method, path, body):
        """Returns the recorded answer to this request: of those to the same prompt the next one,
        or the last one again; for a prompt that was not recorded, a healthy answer."""
        key = prompt_of(method, path, body)
        with self.lock:
            same = [answer for answer in self.answers if answer[0] == key]
            fresh = [answer for answer in same if not answer[2]]
            for answer in fresh[:1] or same[-1:]:
                answer[2] = True
                return answer[1]
        return healthy(self.name, key)

    def play(self, connection, request, actions, buffer, key):
        """Sends an answer. Returns whether the connection serves another request."""
        event = lambda kind, **fields: self.journal.add(
            "provider", self.name, kind, request=request, **fields)
        gone = lambda: has_left(connection, buffer)
        head_sent = False

        def write(data):
            nonlocal head_sent
            if gone():
                raise Gone()
            data = unmasked(data, key)
            if not head_sent and data.startswith(b"HTTP/1.1 "):
                head_sent = True
                event("head_sent", status=int(data[9:12]))
            connection.settimeout(60)
            connection.sendall(data)

        def pause(ms):
            until = time.monotonic() + ms / 1e3
            while True:
                left = until - time.monotonic()
                if left <= 0:
                    return
                if gone():
                    raise Gone()
                time.sleep(min(left, 0.02))

        for action in actions:
            kind, what = (action, {}) if isinstance(action, str) else next(iter(action.items()))
            if kind == "send":
                if what.get("event"):
                    event("event_sent", n=what["event"])
                write(raw(what["bytes"]))
            elif kind == "drip":
                for n, piece in enumerate(what["pieces"]):
                    if n:
                        pause(what["every_ms"])
                    write(raw(piece))
            elif kind == "repeat":
                event("fault", fault="repeats its last event forever")
                n = what["from"]
                while True:
                    pause(what["every_ms"])
                    data = raw(what["before"])
                    if what.get("after") is not None:
                        data += b"%d" % n + raw(what["after"])
                    if what["chunked"]:
                        data = b"%x\r\n%s\r\n" % (len(data), data)
                    write(data)
                    n += 1
            elif kind == "hold":
                if what["gate"] not in self.gates.opened:
                    event("held", gate=what["gate"])
                if not self.gates.wait(lambda: what["gate"] in self.gates.opened, gone):
                    raise Gone()
            elif kind == "meet":
                event("held", gate=what["rendezvous"])
                if not self.gates.meet(what["rendezvous"], what["count"], gone):
                    raise Gone()
            elif kind == "acknowledged":
                reached = lambda: self.gates.acknowledged.get(what["interlock"], 0) >= what["event"]
                if not self.gates.wait(reached, gone):
                    raise Gone()
            elif kind == "pause":
                pause(what["ms"])
            elif kind == "drain":
                pause(50)
            elif kind == "stall":
                event("fault", fault="stalls")
                self.gates.wait(lambda: False, gone)
                raise Gone()
            elif kind in ("cut", "close"):
                if kind == "cut":
                    event("fault", fault="cuts the connection")
                else:
                    event("answer_sent")
                connection.shutdown(socket.SHUT_WR)
                until = time.monotonic() + 1
                while not gone() and time.monotonic() < until:
                    time.sleep(0.01)
                return False
            elif kind == "reset":
                pause(50)
                event("fault", fault="resets the connection")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        event("answer_sent")
        return True


def has_left(connection, buffer=None):
    """Returns whether the peer has closed. Bytes that came early stay in the socket."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


def healthy(name, key):
    """Returns the actions of a good answer to a request that the case has not recorded."""
    method, path, model, stream, _ = key
    text = HEALTHY % name
    if method == "POST" and path.endswith("/api/chat"):
        record = lambda content, done: json.dumps(
            {"model": model, "created_at": "2026-01-01T00:00:00Z",
             "message": {"role": "assistant", "content": content}, "done": done,
             "done_reason": "stop" if done else None, "prompt_eval_count": 1, "eval_count": 1})
        body = record(text, False) + "\n" + record("", True) + "\n" if stream \
            else record(text, True)
        kind = "application/x-ndjson" if stream else "application/json"
    elif method == "POST" and stream:
        chunk = lambda delta, finish: "data: %s\n\n" % json.dumps(
            {"id": "chatcmpl-healthy", "object": "chat.completion.chunk", "created": 1,
             "model": model, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        body = chunk({"role": "assistant", "content": ""}, None) + chunk({"content": text}, None) \
            + chunk({}, "stop") + "data: [DONE]\n\n"
        kind = "text/event-stream"
    elif method == "POST":
        body = json.dumps(
            {"id": "chatcmpl-healthy", "object": "chat.completion", "created": 1, "model": model,
             "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                          "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
        kind = "application/json"
    else:
        body = json.dumps({"object": "list", "data": [], "models": [], "version": "0.0.0"})
        kind = "application/json"
    data = body.encode("utf-8")
    head = "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(data))
    return [{"send": {"bytes": head}}, {"send": {"bytes": body}}]


class Control(threading.Thread):
    """The control port: gates are opened here, and the journal is read."""

    def __init__(self, port, providers, journal, gates):
        super().__init__(daemon=True)
        self.providers, self.journal, self.gates = providers, journal, gates
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen(64)

    def run(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            path = head.decode("latin-1").split(" ")[1].strip("/")
            words = [urllib.parse.unquote(word) for word in path.split("/")]
            body = self.act(words)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                               b"content-length: %d\r\nconnection: close\r\n\r\n%s"
                               % (len(body), body))

    def act(self, words):
        if words[0] == "open":
            self.gates.open(words[1])
        elif words[0] == "acknowledge":
            self.gates.acknowledge(words[1], int(words[2]))
        elif words[0] == "listen":
            self.journal.add("provider", words[1], "listening", how=words[2])
            self.providers[words[1]].listen(words[2])
        elif words[0] == "journal":
            first = int(words[1])
            with self.journal.changed:
                if len(self.journal.entries) <= first:
                    self.journal.changed.wait(0.2)
                return json.dumps(self.journal.entries[first:]).encode("utf-8")
        return b"{}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quiet", action="store_true", help="write nothing to the console")
    arguments = parser.parse_args()
    case = load()
    journal = Journal(arguments.quiet)
    gates = Gates(journal)
    providers = {}
    for known in case["providers"]:
        own = [entry for entry in case["tape"]
               if entry["side"] == {"who": "provider", "name": known["name"]}]
        provider = Provider(known["name"], known["port"], own, journal, gates)
        providers[known["name"]] = provider
        provider.listen(known["listen"])
        print("%-8s http://127.0.0.1:%d  (%s)" % (known["name"], known["port"], known["listen"]))
    Control(case["control_port"], providers, journal, gates).start()
    print("control  http://127.0.0.1:%d" % case["control_port"])
    waits = sorted(set(re.findall(r'"gate": "([^"]+)"', json.dumps(case["tape"]))))
    if waits:
        print("gates    %s: an answer waits there until client.py, or a POST to /open/NAME of the "
              "control port, opens it" % ", ".join(waits))
    sys.stdout.flush()
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
