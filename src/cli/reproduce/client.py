#!/usr/bin/env python3
"""Sends the requests of the case to the gateway, in the recorded order, shows what comes back, and
compares it with what the report recorded. It needs Python 3.8 or later and nothing else.

    python3 client.py                   upstream.py and the gateway must be running
    python3 client.py --gateway URL     for a gateway at another address

Exit codes: 1 the failure of the report is reproduced, 0 it is not, 2 the case could not be
 played whole, so that nothing is decided.
"""

import argparse
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.parse

from upstream import HERE, Journal, load, prompt_of, raw

# the longest wait for an answer, and for anything else that the report recorded, in seconds
ANSWER = 30.0
WAIT = 5.0
# a wait after one that was in vain
BRIEF = 0.3
# the longest pause of the recording that is kept, in seconds
PAUSE = 12.0


class Exchange(threading.Thread):
    """One request and its answer."""

    def __init__(self, client, sent, label):
        super().__init__(daemon=True)
        self.client, self.sent, self.label = client, sent, label
        self.socket = None
        self.ended = False
        self.left = False
        self.began = time.monotonic()
        self.buffer = bytearray()

    def note(self, event, **fields):
        self.client.journal.add("client", self.label, event, **fields)

    def end(self, event, **fields):
        if not self.ended:
            self.ended = True
            self.note(event, **fields)

    def leave(self):
        """Closes the connection, as a client does that gives up."""
        if not self.ended:
            self.left = True
            self.end("client_left")
        if self.socket is not None:
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self.socket.close()

    def run(self):
        body = raw(self.sent["body"])
        try:
            self.socket = socket.create_connection(self.client.address, timeout=30)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.write(self.bytes_of_request(body))
            self.socket.settimeout(None)
            self.read_answer()
        except (OSError, ValueError) as error:
            if not self.left:
                self.end("client_failed", error=str(error) or type(error).__name__, body="")

    def bytes_of_request(self, body):
        sent = self.sent
        if sent["path"].startswith("("):
            return body
        lines = ["%s %s%s HTTP/1.1" % (sent["method"], self.client.prefix, sent["path"])]
        lines.append("host: %s:%d" % self.client.address)
        for name, value in self.client.headers_of(sent["headers"]):
            if name.lower() != "host":
                lines.append("%s: %s" % (name, value))
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8") + body

    def write(self, data):
        dribbled = self.sent.get("dribbled")
        if not dribbled:
            return self.socket.sendall(data)
        for at in range(0, len(data), dribbled["piece"]):
            self.socket.sendall(data[at:at + dribbled["piece"]])
            self.socket.settimeout(0.001)
            try:
                if self.socket.recv(1, socket.MSG_PEEK) is not None:
                    return self.socket.settimeout(None)
            except (socket.timeout, BlockingIOError):
                pass
            self.socket.settimeout(None)
            time.sleep(dribbled["every_ms"] / 1e3)

    def more(self):
        piece = self.socket.recv(65536)
        self.buffer += piece
        return bool(piece)

    def read_answer(self):
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                raise ValueError("the gateway closed the connection without an answer")
        end = self.buffer.index(b"\r\n\r\n")
        lines = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        del self.buffer[:end + 4]
        status = int(lines[0].split(" ")[1])
        if 100 <= status < 200:
            return self.read_answer()
        headers = [[name.strip().lower(), value.strip()]
                   for name, _, value in (line.partition(":") for line in lines[1:])]
        named = dict(headers)
        self.note("client_status", status=status, headers=headers)
        is_stream = named.get("content-type", "").startswith("text/event-stream")
        body = bytearray()
        events = Events(self) if is_stream else None
        whole = True
        try:
            for piece in self.pieces(named, status):
                if events is None:
                    body += piece
                else:
                    events.feed(piece)
        except Cut as cut:
            whole = False
            how = str(cut)
        text = (events.unfinished() if events else bytes(body)).decode("utf-8", "replace")
        if whole:
            self.end("client_answered", status=status, body=text)
        elif not self.left:
            self.end("client_failed", error=how, body=text)
        self.socket.close()

    def pieces(self, named, status):
        """The body as it comes, without its framing."""
        if self.sent["method"] == "HEAD" or status in (204, 304):
            return
        if "chunked" in named.get("transfer-encoding", "").lower():
            while True:
                while b"\r\n" not in self.buffer:
                    self.need("inside a chunked body")
                end = self.buffer.index(b"\r\n")
                size = int(bytes(self.buffer[:end]).split(b";")[0], 16)
                while len(self.buffer) < end + 2 + size + 2:
                    self.need("inside a chunked body")
                piece = bytes(self.buffer[end + 2:end + 2 + size])
                del self.buffer[:end + 2 + size + 2]
                if size == 0:
                    return
                yield piece
        elif "content-length" in named:
            left = int(named["content-length"])
            while left > 0:
                if not self.buffer:
                    self.need("%d bytes before the end that content-length promises" % left)
                piece = bytes(self.buffer[:left])
                del self.buffer[:left]
                left -= len(piece)
                yield piece
        else:
            while True:
                if self.buffer:
                    yield bytes(self.buffer)
                    self.buffer.clear()
                try:
                    if not self.more():
                        return
                except OSError as error:
                    raise Cut("the connection broke: %s" % error)

    def need(self, where):
        try:
            more = self.more()
        except OSError as error:
            raise Cut("the connection broke %s: %s" % (where, error))
        if not more:
            raise Cut("the connection ended %s" % where)


class Cut(Exception):
    """An answer that is not whole."""


class Events:
    """Reads server-sent events."""

    def __init__(self, exchange):
        self.exchange = exchange
        self.rest = bytearray()
        self.lines = bytearray()
        self.name, self.data = None, []
        self.n = 0

    def unfinished(self):
        """What came after the last whole event."""
        return bytes(self.lines + self.rest)

    def feed(self, piece):
        self.rest += piece
        while True:
            at = re.search(rb"\r\n|\n|\r(?=.)", bytes(self.rest), re.DOTALL)
            if at is None:
                return
            line = bytes(self.rest[:at.start()]).decode("utf-8", "replace")
            self.lines += self.rest[:at.end()]
            del self.rest[:at.end()]
            self.line(line)
            if not line:
                self.lines.clear()

    def line(self, line):
        if not line:
            if self.data:
                self.n += 1
                data = "\n".join(self.data)
                fields = {"name": self.name} if self.name else {}
                self.exchange.note("client_chunk", n=self.n, text=text_of(data), data=data, **fields)
            self.name, self.data = None, []
            return
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "data":
            self.data.append(value)
        elif field == "event":
            self.name = value


def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def text_of(data):
    """The text that an event of a stream adds to the answer."""
    event = parsed(data)
    choices = event.get("choices") if isinstance(event, dict) else None
    texts = [((choice or {}).get("delta") or {}).get("content") or "" for choice in choices or []]
    return "".join(text for text in texts if isinstance(text, str))


class Client:
    """Plays the case."""

    def __init__(self, case, gateway, quiet, given):
        self.case = case
        self.given = given
        self.journal = Journal(quiet=True)
        self.quiet = quiet
        self.shown = 0
        found = re.match(r"http://([^:/]+):(\d+)(/.*)?$", gateway)
        if not found:
            sys.exit("%s is not http://HOST:PORT; give the address of the gateway" % gateway)
        self.address = (found[1], int(found[2]))
        self.prefix = (found[3] or "").rstrip("/")
        self.exchanges = []
        self.by_label = {}
        # ids that the gateway gave in the examination, and those that it gave now
        self.ids = {}
        self.unplayed = None
        self.patience = {"answer": ANSWER, "other": WAIT}
        # how often each kind of observation has been awaited
        self.wanted = {}
        # the recorded answers so far, by client
        self.answers = {}
        # how much the upstreams had seen before the case, once it is known
        self.first = None
        threading.Thread(target=self.follow, daemon=True).start()

    def headers_of(self, recorded):
        """The recorded headers, with the key of the gateway instead of a masked one."""
        own = dict(self.case["gateway"].get("headers") or [])
        own.update(self.given)
        headers = []
        for name, value in recorded:
            if "[secret" in value and name.lower() in own:
                value = own[name.lower()]
            for mask, key in self.case["keys"].items():
                value = value.replace(mask, key)
            headers.append((name, value))
        return headers

    def control(self, method, *words):
        path = "/" + "/".join(urllib.parse.quote(str(word), safe="") for word in words)
        connection = http.client.HTTPConnection("127.0.0.1", self.case["control_port"], timeout=10)
        connection.request(method, path)
        answer = connection.getresponse().read()
        connection.close()
        return json.loads(answer)

    def follow(self):
        """Adds what the upstreams see to what the client sees."""
        seen = None
        while True:
            try:
                if seen is None:
                    # only what happens from now on belongs to the case
                    seen = self.first = len(self.control("GET", "journal", 0))
                for entry in self.control("GET", "journal", seen):
                    seen += 1
                    with self.journal.changed:
                        # both programs read the same clock of the system
                        entry["at_us"] = int((entry["clock"] - self.journal.begin) * 1e6)
                        self.journal.entries.append(entry)
                        self.journal.changed.notify_all()
            except OSError:
                time.sleep(0.1)

    def until(self, ready, longest):
        """Waits until something holds, at most so many seconds."""
        until = time.monotonic() + longest
        with self.journal.changed:
            while not ready():
                self.show()
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self.journal.changed.wait(min(left, 0.05))
        self.show()
        return True

    def show(self):
        """Writes what the client saw to the console."""
        while self.shown < len(self.journal.entries):
            entry = self.journal.entries[self.shown]
            self.shown += 1
            line = shown(entry)
            if line and not self.quiet:
                print("%9.1f ms  %s" % (entry["at_us"] / 1e3, line), flush=True)

    def play(self):
        """Plays the recorded order: before each action what was seen before it is awaited."""
        seen_before, last_us, recorded = [], None, {}
        sent_at = {}
        for entry in self.case["tape"]:
            action = self.action(entry, recorded)
            if action is None:
                if is_observation(entry, self.case):
                    seen_before.append(entry)
                    last_us = entry["at_us"]
                continue
            for seen in seen_before:
                self.await_like(seen)
            del seen_before[:]
            pause = (entry["at_us"] - last_us) / 1e6 if last_us is not None else 0
            last_us = entry["at_us"]
            name = entry["side"].get("name")
            if entry["event"] == "client_sent":
                sent_at[name] = entry["at_us"]
            leavers = self.by_label.get(name, []) if entry["event"] == "client_left" else []
            if leavers:
                # as long after its own request as in the examination
                stays = (entry["at_us"] - sent_at[name]) / 1e6
                pause = min(pause, leavers[-1].began + stays - time.monotonic())
            if pause > 0.03:
                self.until(lambda: bool(leavers) and leavers[-1].ended, min(pause, PAUSE))
            action()
        for seen in seen_before:
            self.await_like(seen)
        # what comes later than in the recording is seen, too
        longest = self.case["settle_ms"] / 1e3
        self.until(lambda: all(one.ended for one in self.exchanges) and self.is_idle(), longest)
        self.until(lambda: False, 0.3)
        for exchange in self.exchanges:
            exchange.leave()

    def is_idle(self):
        """Whether no upstream has an unanswered request."""
        open_requests = set()
        for entry in self.journal.entries:
            of = (entry["side"].get("name"), entry.get("request"))
            if entry["event"] == "request_read":
                open_requests.add(of)
            elif entry["event"] in ("answer_sent", "peer_closed"):
                open_requests.discard(of)
            elif entry["event"] == "fault" and "stall" not in entry["fault"]:
                open_requests.discard(of)
        return not open_requests

    def action(self, entry, recorded):
        """Returns what the client has to do at this point, if anything."""
        event, name = entry["event"], entry["side"].get("name")
        if event == "client_sent":
            return lambda: self.send(entry, name)
        if event == "client_answered":
            self.answers.setdefault(name, []).append(entry)
        if event == "client_left":
            return lambda: name in self.by_label and self.leave(name)
        if event == "opened":
            return lambda: self.control("POST", "open", name)
        if event == "planned":
            recorded[(name, entry["request"])] = {
                what["event"]: what["interlock"] for what in
                (action.get("acknowledged") for action in entry["actions"]
                 if isinstance(action, dict)) if what}
        if event == "event_sent":
            known = recorded.get((name, entry["request"]), {})
            interlock = known.get(entry["n"] - 1)
            if interlock:
                return lambda: self.control("POST", "acknowledge", interlock, entry["n"] - 1)
        if event == "listening" and entry.get("later"):
            return lambda: self.control("POST", "listen", name, entry["how"])
        if event == "target" and entry.get("what") in ("SIGTERM", "SIGKILL"):
            return lambda: self.signal(entry["what"])
        return None

    def learn_ids(self):
        """Pairs the ids in the recorded answers with those in the answers that came."""
        for label, recorded in self.answers.items():
            now = [entry for entry in self.journal.entries if entry["event"] == "client_answered"
                   and entry["side"]["name"] == label]
            for old, new in zip(recorded, now):
                pair_ids(parsed(as_text(old["body"])), parsed(as_text(new["body"])), self.ids)

    def with_new_ids(self, entry):
        """The request with the ids that this gateway gave."""
        self.learn_ids()
        text = json.dumps(entry)
        for old, new in self.ids.items():
            text = text.replace(old, new)
        changed = json.loads(text)
        lengths = [len(raw(one["body"])) for one in (entry, changed)]
        changed["headers"] = [
            [name, str(lengths[1]) if name.lower() == "content-length"
             and value == str(lengths[0]) else value] for name, value in changed["headers"]]
        return changed

    def send(self, entry, label):
        entry = self.with_new_ids(entry)
        exchange = Exchange(self, entry, label)
        self.exchanges.append(exchange)
        self.by_label.setdefault(label, []).append(exchange)
        exchange.note("client_sent", method=entry["method"], path=entry["path"],
                      headers=[list(one) for one in self.headers_of(entry["headers"])],
                      body=entry["body"])
        exchange.start()

    def leave(self, label):
        for exchange in self.by_label[label]:
            if not exchange.ended:
                return exchange.leave()

    def signal(self, name):
        try:
            with open(os.path.join(HERE, "gateway", "gateway.pid"), encoding="utf-8") as file:
                os.kill(int(file.read()), getattr(signal, name))
        except (OSError, ValueError) as error:
            self.unplayed = "%s could not be sent to the gateway (%s)" % (name, error)
            print(self.unplayed)

    def await_like(self, seen):
        """Waits until something like the recorded observation has been seen as often."""
        like = kind_of(seen)
        self.wanted[like] = self.wanted.get(like, 0) + 1
        count = self.wanted[like]
        label = seen["side"].get("name")

        def reached():
            # counted in the journal, so that order does not matter
            if sum(1 for entry in self.journal.entries if kind_of(entry) == like) >= count:
                return True
            of_client = seen["side"]["who"] == "client"
            return of_client and all(one.ended for one in self.by_label.get(label, []))

        of = "answer" if like[2] in ("end", "client_status") else "other"
        if not self.until(reached, self.patience[of]):
            self.patience[of] = BRIEF


def pair_ids(old, new, ids):
    """Adds the ids at the same positions of two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if isinstance(old[key], str) and isinstance(new.get(key), str):
                if (key == "id" or key.endswith("_id")) and len(old[key]) >= 8:
                    ids[old[key]] = new[key]
            else:
                pair_ids(old[key], new.get(key), ids)
    elif isinstance(old, list) and isinstance(new, list):
        for one, other in zip(old, new):
            pair_ids(one, other, ids)


def is_observation(entry, case):
    if entry["event"] == "accepted":
        # connections are used again, so that they count only where no request is read
        silent = [one["name"] for one in case["providers"] if one["listen"] == "silence"]
        return entry["side"].get("name") in silent
    return entry["event"] in ("client_status", "client_chunk", "client_answered", "client_failed",
                              "request_read", "held", "met") or \
        entry["event"] == "peer_closed" and entry.get("request") is not None


def kind_of(entry):
    event = entry["event"]
    if event in ("client_answered", "client_failed"):
        event = "end"
    return (entry["side"]["who"], entry["side"].get("name"), event)


def shown(entry):
    """One line for the console; what the upstreams do is on theirs."""
    event, name = entry["event"], entry["side"].get("name")
    if event == "client_sent":
        return "client %s sends %s %s %s" % (name, entry["method"], entry["path"],
                                             clipped(as_text(entry["body"]), 200))
    if event == "client_status":
        kind = dict(entry["headers"]).get("content-type", "no content-type")
        return "client %s gets status %d (%s)" % (name, entry["status"], kind)
    if event == "client_chunk":
        return "client %s gets event %d: %s" % (name, entry["n"], clipped(entry["data"], 200))
    if event == "client_answered":
        return "client %s has the whole answer: %s" % (name, clipped(entry["body"], 400))
    if event == "client_failed":
        return "client %s: the answer fails: %s %s" % (name, entry["error"],
                                                       clipped(as_text(entry["body"]), 200))
    if event == "client_left":
        return "client %s leaves" % name
    if event == "opened":
        return "gate %s is opened" % name
    if event == "request_read":
        return "upstream %s reads request %d" % (name, entry["request"])
    if event == "peer_closed" and entry.get("request") is not None:
        return "upstream %s sees the gateway close the connection of request %d" % (
            name, entry["request"])
    return None


def as_text(data):
    return data if isinstance(data, str) else raw(data).decode("utf-8", "replace")


def clipped(text, most):
    return text if len(text) <= most else text[:most] + "… (%d characters)" % len(text)


# parts of the names of facts: something came too early, too late, in one piece, not in parallel
EARLY = ("lower_bound", "gap", "backoff", "growth")
LATER = ("own_timeout", "deadline", "timeout")
BUFFERED = ("held", "interlock")
PARALLEL = ("in_flight", "at_once", "rendezvous")
ORDER = ("order",)
GIVEN_UP = ("closed", "left", "hang", "attempts")
# from when on a text comes late, in microseconds
LATE = 400000
# after how long a client that leaves has waited in vain, in microseconds
VAIN = 3000000
# stands for whatever comes
ANY = "(not known, since the examination ended before)"
# how many exchanges at the same time make a crowd, of which not each one is compared
CROWD = 12

# What two runs of the same gateway differ in, and what therefore is not compared.
OWN = {"date", "server", "connection", "keep-alive", "content-length", "transfer-encoding", "host",
       "via", "user-agent"}


def masked(text):
    """A text without numbers, ids and keys, which differ from run to run."""
    text = re.sub(r"\[secret( \d+)?\]\.*|\bsk-[\w-]+|\bBearer \S+", "#secret#", text)
    text = re.sub(r"(?<![0-9A-Za-z])[0-9a-f]{8,}(-[0-9a-f]{4,})*\b", "#", text)
    return re.sub(r"\d+(\.\d+)?", "#", text)


def normal(value):
    """A JSON value without what differs from run to run. Of the words of an error only a key counts
    that they show."""
    if isinstance(value, dict):
        if isinstance(value.get("message"), str) and any(
                key in value for key in ("code", "type", "cause")):
            shows = "#secret#" if "#secret#" in masked(value["message"]) else "(in words)"
            value = dict(value, message=shows)
        return {key: normal(item) for key, item in sorted(value.items())
                if key not in ("id", "created", "created_at", "system_fingerprint", "request_id")
                and not key.endswith(("_ms", "_at", "_id"))}
    if isinstance(value, list):
        # whole numbers beside words are positions, which move with the names of the models
        words = any(isinstance(item, str) for item in value)
        return ["#" if words and isinstance(item, int) else normal(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def body_of(data):
    text = as_text(data)
    value = parsed(text)
    if value is not None:
        return json.dumps(normal(value), sort_keys=True)
    return masked(text)


def metrics(text, fact):
    """The metrics that the fact is about: those whose names have a word of it."""
    words = [word for word in re.split(r"[._]", fact) if len(word) > 4]
    lines = [line for line in text.split("\n") if line and not line.startswith("#")
             and any(word in line for word in words) and "seconds" not in line]
    return "\n".join(lines)


def summary(tape, fact):
    """What was observed, as rows that two runs of the same gateway have in common. What a gateway
    asks its upstreams before the first request of a client is no part of the case."""
    first = [n for n, entry in enumerate(tape) if entry["event"] == "client_sent"]
    tape = tape[first[0]:] if first else []
    exchanges, order, rows = {}, [], {}
    count = {}
    answering = None
    for entry in tape:
        if entry["event"] == "head_sent":
            answering = entry["at_us"]
        if entry["side"]["who"] != "client":
            continue
        label = entry["side"]["name"]
        if entry["event"] == "client_sent":
            count[label] = count.get(label, 0) + 1
            key = label if count[label] == 1 else "%s (%d)" % (label, count[label])
            one = {"key": key, "began": entry["at_us"], "text": "", "data": [], "end": "no end",
                   "status": "none", "headers": [], "body": "", "raw": "", "open": True, "label": label}
            exchanges.setdefault(label, []).append(one)
            order.append(one)
            continue
        open_ones = [one for one in exchanges.get(label, []) if one["open"]]
        if not open_ones:
            continue
        one = open_ones[0]
        if entry["event"] == "client_status":
            one["status"], one["headers"] = str(entry["status"]), entry["headers"]
        elif entry["event"] == "client_chunk":
            if entry["text"] and not one["text"] and answering is not None:
                late = entry["at_us"] - answering > LATE
                one["late"] = "later" if late else "at once"
            one["text"] += entry["text"]
            one["data"].append(as_text(entry["data"]))
        elif entry["event"] in ("client_answered", "client_failed", "client_left"):
            one["open"] = False
            one["ended"] = entry["at_us"]
            text = one["raw"] = as_text(entry.get("body", ""))
            is_metrics = re.search(r"^\w+(\{.*\})? [\d.e+-]+$", text, re.MULTILINE)
            one["body"] = metrics(text, fact) if is_metrics else body_of(text)
            one["end"] = {"client_answered": "whole", "client_failed": "broken",
                          "client_left": "none before the client left"}[entry["event"]]
    crowd = most_at_once(order) > CROWD
    for one in order:
        # a stream that the case has read as a whole
        if not one["data"] and one["raw"].lstrip().startswith("data:"):
            for event in re.split(r"\r?\n\r?\n", one["raw"]):
                lines = [line[5:].strip() for line in event.splitlines() if line.startswith("data:")]
                one["data"] += ["\n".join(lines)] if lines else []
            one["text"] = "".join(text_of(data) for data in one["data"])
            one["body"] = ""
    for one in order:
        of_stream = ""
        if one["data"]:
            events = [parsed(data) for data in one["data"]]
            errors = [event["error"] for event in events
                      if isinstance(event, dict) and event.get("error")]
            kinds = [[str(error.get("type")), str(error.get("code"))] for error in errors
                     if isinstance(error, dict)]
            broken = sum(1 for data, event in zip(one["data"], events)
                         if event is None and data.strip() != "[DONE]")
            finishes = [choice.get("finish_reason") for event in events if isinstance(event, dict)
                        for choice in event.get("choices") or [] if choice.get("finish_reason")]
            usage = [json.dumps(event["usage"], sort_keys=True) for event in events
                     if isinstance(event, dict) and event.get("usage")]
            calls = "".join(json.dumps(choice["delta"]["tool_calls"], sort_keys=True)
                            for event in events if isinstance(event, dict)
                            for choice in event.get("choices") or []
                            if (choice.get("delta") or {}).get("tool_calls"))
            of_stream = "text %r; error events: %d %s; [DONE]: %d; finish reasons: %s; usage: %s%s%s" % (
                masked(one["text"]), len(errors), masked(str(kinds)), one["data"].count("[DONE]"),
                finishes, usage, "; tool calls: " + masked(calls) if calls else "",
                "; events that are no JSON: %d" % broken if broken else "")
            of_stream += "; ids: %d; models: %s" % (
                len({event.get("id") for event in events if isinstance(event, dict)}),
                sorted({masked(str(event.get("model"))) for event in events
                        if isinstance(event, dict) and "model" in event}))
        names = sorted({name.lower() for name, _ in one["headers"]} - OWN)
        kept = ["%s: %s" % (name, masked(value)) for name, value in sorted(one["headers"])
                if name.lower() in ("content-type", "www-authenticate", "retry-after")]
        left_early = (one["end"] == "none before the client left" and one["status"] == "none"
                      and one["ended"] - one["began"] < VAIN)
        if one["end"] == "no end" or left_early:
            # the examination ended before the answer, or the client left before the gateway sent
            # the status that it may send before its upstream answers
            one["row"] = [(name, ANY) for name in ("end of the answer", "stream", "body", "headers")]
            one["row"].append(("status", one["status"] if one["status"] != "none" else ANY))
            continue
        one["row"] = [("status", one["status"]), ("end of the answer", one["end"]),
                      ("stream", of_stream), ("body", one["body"]),
                      ("headers", ", ".join(names + kept))]
        if "late" in one and is_in(fact, BUFFERED):
            one["row"].append(("first text, after the upstream's status", one["late"]))
        if is_in(fact, EARLY + LATER) and "ended" in one:
            one["row"].append(("time (ms)", (one["ended"] - one["began"]) / 1e3))
    if crowd:
        # the examination may have ended before all had their answers
        kinds = {}
        for one in order:
            if one["end"] != "no end":
                kind = "%s, %s" % (one["status"], one["end"])
                kinds[kind] = kinds.get(kind, 0) + 1
        for kind, n in sorted(kinds.items()):
            rows["clients with the answer %s" % kind] = About(n)
    else:
        for one in order:
            for name, value in one["row"]:
                if value != "":
                    rows["client %s: %s" % (one["key"], name)] = value
    names = {}
    for one in order:
        for name, value in one["headers"]:
            names.setdefault(name.lower(), []).append(value)
    for name in sorted(set(names) - OWN):
        if len(order) > 1 and not crowd:
            rows["header %s of the answers" % name] = "%d values, %d different" % (
                len(names[name]), len(set(names[name])))
    providers(tape, fact, rows, crowd)
    gates(tape, rows)
    return rows


def most_at_once(exchanges):
    """The largest number of exchanges that were open together."""
    ends = sorted([(one["began"], 1) for one in exchanges]
                  + [(one.get("ended", float("inf")), -1) for one in exchanges])
    most = now = 0
    for _, change in ends:
        now += change
        most = max(most, now)
    return most


class About(int):
    """A number that differs a little from run to run."""


def providers(tape, fact, rows, crowd):
    """What each upstream saw."""
    seen, last = {}, {}
    of_client = {}
    for entry in tape:
        if entry["event"] == "client_sent":
            for name, value in entry["headers"]:
                of_client.setdefault(name.lower(), set()).add(value)
        if entry["side"]["who"] != "provider":
            continue
        if entry["event"] == "listening":
            continue
        one = seen.setdefault(entry["side"]["name"], {
            "requests": 0, "closed": 0, "open": set(), "most": 0, "bodies": [], "headers": {},
            "gaps": [], "probes": set()})
        if entry.get("request") in one["probes"]:
            continue
        if entry["event"] == "request_read" and entry["method"] == "GET" and "probe" not in fact:
            # a gateway asks for models whenever it likes
            one["probes"].add(entry["request"])
        elif entry["event"] == "request_read":
            one["requests"] += 1
            one["open"].add(entry["request"])
            one["most"] = max(one["most"], len(one["open"]))
            one["bodies"].append("%s %s %s" % (entry["method"], entry["path"],
                                               body_of(entry["body"])))
            prompt = prompt_of(entry["method"], entry["path"], entry["body"])
            if prompt in last:
                one["gaps"].append((entry["at_us"] - last[prompt]) / 1e3)
            last[prompt] = entry["at_us"]
            for name, value in entry["headers"]:
                one["headers"].setdefault(name.lower(), []).append(value)
        elif entry["event"] == "peer_closed" and entry.get("request") is not None:
            one["closed"] += 1
            one["open"].discard(entry["request"])
        elif entry["event"] in ("answer_sent", "fault"):
            if entry.get("request") is not None and "stall" not in entry.get("fault", ""):
                one["open"].discard(entry["request"])
    if is_in(fact, ORDER) and len(seen) <= 10:
        rows.update(orders(tape, fact))
    for name, one in sorted(seen.items()):
        row = "upstream %s: " % name
        number = About if crowd else str
        rows[row + "requests"] = number(one["requests"])
        if is_in(fact, GIVEN_UP) and not crowd:
            rows[row + "unanswered requests that the gateway gave up"] = str(one["closed"])
        if not crowd:
            for body in sorted(set(one["bodies"])):
                rows[row + "got %d times" % one["bodies"].count(body) + " " + clipped(body, 300)] = ""
            for header in sorted(set(one["headers"]) - OWN):
                values = one["headers"][header]
                rows[row + "header " + header] = "%d values, %d different, %d a client's" % (
                    len(values), len(set(values)),
                    sum(1 for value in values if value in of_client.get(header, ())))
        if is_in(fact, PARALLEL):
            rows[row + "most requests at once"] = number(one["most"])
        if is_in(fact, EARLY):
            for n, gap in enumerate([] if crowd else one["gaps"]):
                rows[row + "gap %d between its requests (ms)" % (n + 1)] = gap


def orders(tape, fact):
    """How often the upstream that the fact is about was asked before another one had answered."""
    asked, last = {}, {}
    for entry in tape:
        if entry["side"]["who"] == "provider":
            name = entry["side"]["name"]
            if entry["event"] == "request_read":
                asked.setdefault(name, []).append(entry["at_us"])
            elif entry["event"] == "answer_sent":
                last[name] = entry["at_us"]
    return {"upstream %s was asked before the last answer of %s" % (one, other):
            "%d times" % sum(1 for at in asked[one] if at < last.get(other, float("inf")))
            for one in asked if one in fact for other in asked if one != other}


def gates(tape, rows):
    """What the clients had when a gate was opened."""
    states = {}
    for entry in tape:
        who, name, event = entry["side"]["who"], entry["side"].get("name"), entry["event"]
        if who == "client":
            if event == "client_status":
                states[name] = "status %d" % entry["status"]
            elif event == "client_chunk" and entry["text"]:
                states[name] = states.get(name, "") .split(", text")[0] + ", text"
            elif event in ("client_answered", "client_failed"):
                states[name] = states.get(name, "") + ", the end"
        elif event == "opened" and len(states) <= 12:
            rows["when gate %s was opened" % name] = "; ".join(
                "client %s had %s" % item for item in sorted(states.items())) or "no client had " \
                "anything"


def is_in(fact, words):
    return any(word in fact for word in words)


def is_same(fact, recorded, now):
    if recorded == ANY or now == ANY:
        return True
    if recorded in (None, 0) and now in (None, 0):
        return True
    if isinstance(recorded, About) and isinstance(now, About):
        return max(recorded, now) <= 1.25 * min(recorded, now) + 1
    if isinstance(recorded, float) and isinstance(now, float):
        # a busy machine makes everything later
        if is_in(fact, EARLY):
            return now <= max(1.5 * recorded, recorded + 60.0)
        return now >= 0.6 * recorded - 60.0
    return recorded == now


def ready(case, address, prefix):
    """Waits until the gateway accepts connections, and until its readiness path answers well."""
    wanted = case["gateway"].get("ready")
    until = time.monotonic() + case["gateway"].get("ready_ms", 60000) / 1e3
    while time.monotonic() < until:
        try:
            connection = http.client.HTTPConnection(address[0], address[1], timeout=5)
            if not wanted:
                connection.connect()
                return True
            connection.request("GET", wanted["path"],
                               headers=dict(case["gateway"].get("headers") or []))
            if connection.getresponse().status in wanted["status"]:
                return True
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    case = load()
    parser.add_argument("--gateway", default=case["gateway"]["url"], metavar="URL",
                        help="the address of the gateway (default: %(default)s)")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'",
                        help="send this header instead of the masked one of that name")
    parser.add_argument("--quiet", action="store_true", help="show the comparison alone")
    parser.add_argument("--ports-are-free", action="store_true",
                        help="check that no program listens at the ports yet, and end")
    arguments = parser.parse_args()
    if arguments.ports_are_free:
        return occupied(case)
    given = {name.strip().lower(): value.strip() for name, _, value in
             (header.partition(":") for header in arguments.header)}
    client = Client(case, arguments.gateway, arguments.quiet, given)
    if not ready(case, client.address, client.prefix):
        print("nothing is ready at %s; start the gateway, or give its address with --gateway"
              % arguments.gateway)
        return 2
    if not client.until(lambda: client.first is not None, 10):
        print("upstream.py does not answer at its control port %d; start it first"
              % case["control_port"])
        return 2
    client.journal.begin = time.monotonic()
    client.play()
    return judge(case, client)


def occupied(case):
    gateway = urllib.parse.urlsplit(case["gateway"]["url"]).port
    for port in [gateway, case["control_port"]] + [one["port"] for one in case["providers"]]:
        try:
            socket.create_connection(("127.0.0.1", port), 2).close()
        except OSError:
            continue
        print("a program listens at port %d already; end it, or let gauntlet reproduce write these "
              "files with --port" % port)
        return 2
    return 0


def judge(case, client):
    with client.journal.changed:
        seen = sorted(client.journal.entries, key=lambda entry: entry["at_us"])
    recorded, now = summary(case["tape"], case["fact"]), summary(seen, case["fact"])
    if ANY in recorded.values():
        # the headers of an answer that nobody waited for are not compared
        now = {row: value for row, value in now.items()
               if row in recorded or not row.endswith(" of the answers")}
    differing = [row for row in list(recorded) + [row for row in now if row not in recorded]
                 if not is_same(case["fact"], recorded.get(row), now.get(row))]
    print("\n%s  %s" % (case["id"], case["requirement"]))
    print("expected  %s" % case["expected"])
    print("observed in the report  %s" % case["observed"])
    print("observed now")
    for row, value in now.items():
        if row.startswith(("client", "upstream")) and "header" not in row:
            print("  %s%s" % (row, ": %s" % clipped(str(value), 300) if value != "" else ""))
    parts = case["missing"] + ([client.unplayed] if client.unplayed else [])
    if parts:
        print("\nUNDECIDED: the case cannot be played whole: %s" % " ".join(parts))
        print("What came %s the report." % ("differs from" if differing else "agrees with"))
    elif not differing:
        print("\nREPRODUCED: the gateway does what the report recorded (%d observations are equal)."
              % len(recorded))
        return 1
    else:
        print("\nNOT REPRODUCED: the gateway does something else than the report recorded:")
    for row in differing[:12]:
        print("  %s\n      report: %s\n      now:    %s" % (
            row, clipped(str(recorded.get(row, "nothing")), 300),
            clipped(str(now.get(row, "nothing")), 300)))
    return 2 if parts else 0


if __name__ == "__main__":
    try:
        code = main()
    except Exception:  # whatever it is, the case was not played
        traceback.print_exc()
        code = 2
    sys.stdout.flush()
    os._exit(code)
