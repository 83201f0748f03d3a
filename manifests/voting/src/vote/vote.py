"""The ballot: a page to vote on, and the count. Writes go to the first member of the Redis StatefulSet, reads to any member.

GET / -> the page    GET /votes -> {"votes": {"cats": 3}, "read from": "store-2.store"}    POST /votes/cats
"""

import html
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis


def connect(host):
    return redis.Redis(host=host, decode_responses=True, socket_timeout=5)


primary = connect(os.environ["REDIS_PRIMARY"])


def count():
    # A connection of its own, so that each count may come from another member.
    members = connect(os.environ["REDIS_MEMBERS"])
    try:
        votes = {option: int(number) for option, number in members.hgetall("votes").items()}
        return votes, members.config_get("replica-announce-ip")["replica-announce-ip"]
    finally:
        members.close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        votes, member = count()
        if self.path == "/votes":
            return self.answer(200, "application/json", json.dumps({"votes": votes, "read from": member}))
        rows = "".join(
            f'<tr><td><form method="post" action="/votes/{html.escape(option)}"><button>{html.escape(option)}</button></form></td>'
            f"<td>{number}</td></tr>"
            for option, number in sorted(votes.items())
        )
        page = f"<!doctype html><title>Voting</title><h1>Vote</h1><table>{rows}</table><p>Counted by {html.escape(member)}.</p>"
        self.answer(200, "text/html", page)

    def do_POST(self):
        option = self.path.removeprefix("/votes/")
        if not primary.hexists("votes", option):
            return self.answer(404, "application/json", json.dumps({"error": "no such option"}))
        primary.hincrby("votes", option, 1)
        self.send_response(303)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, status, kind, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except redis.RedisError as error:
            self.answer(503, "application/json", json.dumps({"error": str(error)}))


# Process 1 of a container ends on SIGTERM only if it says so.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer(("", 8080), Handler).serve_forever()
